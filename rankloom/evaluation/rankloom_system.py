"""Our model under evaluation: with selection (`rankloom`) and without (`rankloom-generator`)."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray
from torch import Tensor

from rankloom.data.sequences import Cases, Sequences
from rankloom.data.shop import Shop
from rankloom.evaluation.systems import FloatArray, IntArray
from rankloom.pipeline import feature_table
from rankloom.progress import track
from rankloom.recommender import Rankloom


class RankloomSystem:
    """A trained model behind the protocol. It is never fitted here.

    Items of the shop that the model does not know get a semantic ID from its frozen tokenizer first, as a live catalogue
    would; the model's items that the shop no longer has are not shown. `added` says how many were new.
    """

    def __init__(
        self, model: Rankloom, shop: Shop, *, select: bool = True, beam: int | None = None, quiet: bool = False
    ) -> None:
        self.name = "rankloom" if select else "rankloom-generator"
        self.model = model
        self.weights = model.weights if select else model.generator_weights
        # the model's own, which may tell broad searches from others
        self.search_weights = None if select else model.search_choices.generator_weights
        self.beam = beam
        self.quiet = quiet
        self.shop = shop
        items = shop.items()
        known = set(model.items["item_id"].to_list())
        fresh = items.filter(~pl.col("item_id").is_in(list(known)))
        self.added = model.add_items(fresh) if fresh.height else 0
        gone = known - set(items["item_id"].to_list())
        if gone:
            model.remove_items(sorted(gone))
        rows = [model.row_of(item) for item in items["item_id"].to_list()]
        self.row_of_shop_item = np.asarray([-1 if row is None else row for row in rows], dtype=np.int32)
        self.shop_item_of_row = np.full(len(model.semantic_ids.codes), -1, dtype=np.int32)
        self.shop_item_of_row[self.row_of_shop_item] = np.arange(items.height)

    def fit(self, sequences: Sequences, content: FloatArray | None, seed: int) -> None:
        """Nothing: the model folder is what it is."""

    def rank(self, sequences: Sequences, cases: Cases, k: int, *, mask_seen: bool) -> IntArray:
        own = translate(sequences, self.row_of_shop_item, len(self.shop_item_of_row))
        table = feature_table(own, self.model.tokenizer, self.shop)
        out = np.full((len(cases), k), -1, dtype=np.int32)
        size = 64
        offsets = torch.from_numpy(own.offsets)
        seconds = torch.from_numpy(own.timestamp / 1e6) if own.has_clock else None
        batches = searches_apart(own, cases, size)
        for places in track(batches, self.name, unit="batches", quiet=self.quiet):
            part = Cases(cases.user[places], cases.row[places], cases.target[places])
            row = torch.from_numpy(part.row)
            user = torch.from_numpy(part.user).long()
            ranking, _, _ = self.model.rank(
                table, offsets[user], row, k=k, beam=max(k, self.beam or self.model.config.decoding.beam),
                excluded=_seen_rows(own, part) if mask_seen else None,
                queries_at=row, user=user, surface=table.surface[row], weights=self.weights,
                search_weights=self.search_weights, when=None if seconds is None else seconds[row],
            )  # fmt: skip
            found = ranking.item_BK.numpy()
            out[places] = np.where(found >= 0, self.shop_item_of_row[np.maximum(found, 0)], -1)
        return out


def searches_apart(sequences: Sequences, cases: Cases, size: int) -> list[NDArray[np.intp]]:
    """Places of the cases in batches of at most `size`, none of which has both searches and others."""
    asks = sequences.query[cases.row] >= 0
    return [
        places[begin : begin + size]
        for places in (np.flatnonzero(~asks), np.flatnonzero(asks))
        for begin in range(0, len(places), size)
    ]


def translate(sequences: Sequences, row_of_shop_item: IntArray, n_rows: int) -> Sequences:
    """The same log in the model's catalogue rows."""
    return replace(sequences, item=row_of_shop_item[sequences.item], n_items=n_rows)


def _seen_rows(sequences: Sequences, cases: Cases) -> list[Tensor]:
    """Per case every item of its history, the target too where the person has seen it before (see `seen_pairs`)."""
    return [
        torch.from_numpy(np.unique(sequences.item[sequences.offsets[user] : row]).astype(np.int64))
        for user, row in zip(cases.user, cases.row, strict=True)
    ]
