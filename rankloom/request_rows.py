"""Requests as the network reads them: the rows of their histories, each followed by one that carries the request's query.

Shapes: B requests, D text dimensions.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray
from torch import Tensor

from rankloom.catalogue import Catalogue
from rankloom.config import Config
from rankloom.data import schema
from rankloom.requests import HistoryEvent, Request
from rankloom.semantic.tokenizer import Tokenizer
from rankloom.semantic.words import words
from rankloom.training.features import FeatureTable, kind_code

_QUERIES: Final = 20_000
"""Queries whose vectors are kept: those of people's histories come again and again."""


class RequestRows:
    """Makes feature tables of requests.

    Args:
        histories: the model folder's; their `features`, where there are some, are read for the people that it knows.
        log_end: seconds of the newest event that the model has heard of, None unknown.
    """

    def __init__(self, config: Config, histories: pl.DataFrame, log_end: float | None) -> None:
        self.config, self.log_end = config, log_end
        self._vectors: dict[str, NDArray[np.float32]] = {}
        self._people: Tensor | None = None
        if "features" in histories.columns:
            known = np.asarray(histories["features"].to_list(), dtype=np.int64)
            # the last row stands for strangers (index -1)
            self._people = torch.from_numpy(np.vstack([known, np.zeros_like(known[:1])]))

    def table(
        self,
        tokenizer: Tokenizer,
        catalogue: Catalogue,
        requests: Sequence[Request],
        histories: Sequence[Sequence[HistoryEvent]],
    ) -> tuple[FeatureTable, Tensor, Tensor]:
        """The table, and (B,) the first row of each history and (B,) the row after its last, which holds the query.

        Events of items that the catalogue does not know are left out.
        """
        rows: list[tuple[int, int, float, float, int, int, int]] = []
        start, stop = [], []
        queries: dict[str, int] = {}
        items = catalogue.items
        durations = items["duration_s"].to_list() if "duration_s" in items.columns else None
        for request, history in zip(requests, histories, strict=True):
            start.append(len(rows))
            first = max(0, len(history) - self.config.model.max_history)
            before = history[first - 1].timestamp if first else None
            for event in history[first:]:
                row = catalogue.row_of.get(event.item_id)
                if row is None:
                    continue
                duration = durations[row] if durations is not None else None
                ratio = event.watch_s / duration if event.watch_s is not None and duration else float("nan")
                gap = (event.timestamp - before).total_seconds() if event.timestamp and before else -1.0
                before = event.timestamp or before
                surface = schema.SURFACE_CODE.get(event.surface, 0)
                position = -1 if event.position is None else event.position
                query = queries.setdefault(event.query, len(queries)) if event.query else -1
                rows.append((row, kind_code(event.event), ratio, gap, surface, position, query))
            stop.append(len(rows))
            asked = words(request.query or "")
            query = queries.setdefault(request.query, len(queries)) if request.query and asked else -1
            rows.append((0, 0, float("nan"), -1.0, 0, -1, query))
        vectors = self.embed(tokenizer, list(queries)) if queries else None
        table = FeatureTable.from_columns(rows, vectors, self._people, tuple(queries))
        return table, torch.tensor(start), torch.tensor(stop)

    def moments(self, requests: Sequence[Request], histories: Sequence[Sequence[HistoryEvent]]) -> Tensor:
        """(B,) float64 seconds of the requests: as asked, else the newest that is known, NaN where nothing is."""
        moments = []
        for request, history in zip(requests, histories, strict=True):
            known = [event.timestamp.timestamp() for event in history[-1:] if event.timestamp is not None]
            newest = max([*known, *([] if self.log_end is None else [self.log_end])], default=float("nan"))
            moments.append(newest if request.at is None else request.at.timestamp())
        return torch.tensor(moments, dtype=torch.float64)

    def embed(self, tokenizer: Tokenizer, queries: list[str]) -> NDArray[np.float32]:
        """(n, D) vectors of queries."""
        fresh = [query for query in queries if query not in self._vectors]
        if fresh:
            if len(self._vectors) + len(fresh) > _QUERIES:
                self._vectors.clear()
                fresh = queries
            self._vectors.update(zip(fresh, tokenizer.query_vectors(fresh, self.config.model.content), strict=True))
        return np.stack([self._vectors[query] for query in queries])
