"""`Rankloom`: a trained model folder that recommends, searches, takes new items and explains how the beam got there.

    model = Rankloom.from_pretrained("model")
    model.recommend("user-1", k=10, filter="price < 30")
    model.recommend(history=["item-3", "item-9"], k=5, explain=True)

One request runs: history -> context K/V (once) -> beam search under the trie, with filter and exclusions folded in ->
items of the generated semantic IDs -> selection head -> top k. `recommend_batch` runs any mix of requests together and
gives what each would get alone. Not thread-safe: one caller at a time (the server queues).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray
from torch import Tensor

from rankloom.building import created_seconds
from rankloom.catalogue import Catalogue
from rankloom.compiling import no_cuda, use_graph
from rankloom.config import Config
from rankloom.decoding.beam import BeamResult
from rankloom.decoding.choices import UNTRIED_SEARCH, Choices
from rankloom.decoding.exposure import Exposure
from rankloom.decoding.masks import NodeCounts
from rankloom.decoding.memory import BehaviourMemory
from rankloom.decoding.query_memory import QueryMemory, searched_texts
from rankloom.decoding.refine import RefineExamples, Refiner
from rankloom.decoding.select import Candidates, Weights
from rankloom.decoding.trace import BeamTrace
from rankloom.errors import RankloomError
from rankloom.generating import Cases, are_searches, generate
from rankloom.models.attributes import item_attributes
from rankloom.models.kept_context import KeptContexts
from rankloom.models.lazy_decoder import LazyDecoder
from rankloom.ordering import ndcgs, scores
from rankloom.progress import Progress
from rankloom.replying import Ranking, answer, check_relevance, rank
from rankloom.request_rows import RequestRows
from rankloom.requests import HistoryEvent, Recommendation, Request, SeenPolicy, check_request
from rankloom.semantic.ids import SemanticIds
from rankloom.semantic.stuffing import witness_groups
from rankloom.semantic.tokenizer import Tokenizer
from rankloom.semantic.trie import Trie
from rankloom.semantic.words import words
from rankloom.storing import load, save
from rankloom.telling import Teller
from rankloom.training.features import FeatureTable, kind_code


class Rankloom:
    """See the module's docstring. Build it with `from_pretrained`, or let `rankloom.pipeline.train` build it."""

    def __init__(
        self,
        *,
        config: Config,
        tokenizer: Tokenizer,
        model: LazyDecoder,
        items: pl.DataFrame,
        histories: pl.DataFrame,
        mask_seen: bool,
        weights: Weights | None = None,
        generator_weights: Weights | None = None,
        memory: BehaviourMemory | None = None,
        exposure: Exposure | None = None,
        refiner: Refiner | None = None,
        query_memory: QueryMemory | None = None,
        search_choices: Choices = UNTRIED_SEARCH,
        metadata: dict[str, Any] | None = None,
        model_version: str = "unsaved",
        alive: NDArray[np.bool_] | None = None,
        log_end: float | None = None,
        read_columns: Sequence[str] | None = None,
    ) -> None:
        self.config = config
        self.tokenizer = tokenizer
        self.model = model.eval()
        self.model.engine, self.model.precision = config.decoding.engine, config.decoding.precision
        if config.decoding.engine == "graph":
            if not torch.cuda.is_available():
                raise no_cuda("the graph engine needs a CUDA device, and torch finds none")
            self.model.to("cuda")
        self.items = items
        self.weights = weights or Weights()
        self.generator_weights = generator_weights or replace(self.weights, mix=1.0, refine=0.0)
        self.mask_seen = mask_seen
        self.memory = memory
        self.exposure = exposure
        self.refiner = refiner
        self.query_memory = query_memory
        self.search_choices = search_choices
        self.metadata = metadata or {}
        self.model_version = model_version
        self.log_end = log_end
        # columns that came after training can be filtered and shown; network and refiner have never read them
        self.read_columns = tuple(items.columns if read_columns is None else read_columns)
        self._histories = histories
        self._history_row = {user: row for row, user in enumerate(histories["user_id"].to_list())}
        untaken = ("<pad>", "impression", "search", *config.data.context_events)
        self.not_taken = torch.tensor([kind_code(kind) for kind in untaken])
        # removed items keep their row (learned vectors belong to rows); the trie no longer names them
        self._alive = np.ones(items.height, dtype=np.bool_) if alive is None else alive
        self.request_rows = RequestRows(config, histories, log_end)
        # a server's: where the contexts of people wait for their next request
        self.contexts: KeptContexts | None = None
        self._refresh()

    # -- folders ---------------------------------------------------------------------------------------------------

    @classmethod
    def from_pretrained(cls, path: str | Path) -> Rankloom:
        """Loads a model folder after checking every file against its manifest.

        Raises:
            RankloomError: not a model folder, or a missing or damaged file, by name.
        """
        return cls(**load(path))

    def save_pretrained(self, path: str | Path, *, overwrite: bool = False, extra: dict[str, str] | None = None) -> str:
        """Writes the model folder, atomically; returns the model version.

        Args:
            extra: further text files of the folder by name (the card, the training log).

        Raises:
            RankloomError: the folder exists and `overwrite` is not set, or it is not a model folder.
        """
        self.model_version = save(self, path, overwrite=overwrite, extra=extra or {})
        return self.model_version

    def to(self, device: torch.device | str) -> Rankloom:
        """Moves the network to a device; catalogue, filters and memory stay on the CPU. On CUDA `decoding.engine: auto` is the
        graph engine. Returns itself.

        Raises:
            RankloomError: CUDA is asked for and torch finds none, or `decoding.engine: graph` and another device.
        """
        kind = torch.device(device).type
        if kind == "cuda" and not torch.cuda.is_available():
            raise no_cuda(f"no CUDA device for {device}")
        use_graph(self.config.decoding.engine, kind)
        self.model.to(device)
        self.model.items.tabulate()
        return self

    def capture(self, batches: Sequence[int] = (1, 2, 4, 8, 16, 32)) -> int:
        """Captures the graph engine's searches for batches of these sizes and every length of history, before anybody waits for
        one; with the other engines there is nothing to do. Wider beams than `decoding.beam`, filters and searches are captured
        when the first comes. Returns how many it holds.
        """
        if not use_graph(self.config.decoding.engine, self.model.device.type) or not self.trie.n_items:
            return 0
        from rankloom.decoding.graph_engine import place_bucket

        longest = self.config.model.max_history
        lengths = sorted({place_bucket(places, longest) for places in range(1, longest + 1)})
        taken = HistoryEvent(self.catalogue.ids[int(self.trie.leaf_items[0])])
        # people who have searched before have their words in the context
        last = [taken]
        if "queries" in self._histories.columns:
            last += [replace(taken, query=query) for query in self._histories["queries"].explode().drop_nulls()[:1]]
        with Progress("capturing searches", len(lengths) * len(batches) * len(last)) as progress:
            for length in lengths:
                for event in last:
                    for size in batches:
                        self.recommend_batch([Request(history=(*(taken,) * (length - 1), event), k=1)] * size)
                        progress.advance()
        return len(self.model.searches.captured)

    # -- asking ----------------------------------------------------------------------------------------------------

    @property
    def users(self) -> list[str]:
        """People whose history the folder holds."""
        return list(self._history_row)

    @property
    def histories(self) -> pl.DataFrame:
        """The last interactions of every person that the folder holds."""
        return self._histories

    @property
    def alive(self) -> NDArray[np.bool_]:
        """(I,) which catalogue rows may be shown; removed items keep their row."""
        return self._alive

    @property
    def semantic_ids(self) -> SemanticIds:
        return self.tokenizer.semantic_ids

    def history_of(self, user: str) -> list[HistoryEvent]:
        """The stored interactions of a person, oldest first; empty for a stranger."""
        row = self._history_row.get(user)
        if row is None:
            return []
        own = self._histories.row(row, named=True)
        unknown = [None] * len(own["item_ids"])
        columns = ("item_ids", "events", "timestamps", "watch_s", "surfaces", "positions", "queries")
        return [HistoryEvent(*event) for event in zip(*(own.get(name, unknown) for name in columns), strict=True)]

    def recommend(
        self,
        user: str | None = None,
        *,
        history: Sequence[str | HistoryEvent] | None = None,
        k: int = 10,
        filter: str | None = None,
        exclude: Sequence[str] = (),
        query: str | None = None,
        surface: str = "feed",
        explain: bool = False,
        beam: int | None = None,
        seen: SeenPolicy = "auto",
        at: datetime | None = None,
        sort: str | None = None,
        facets: Sequence[str] = (),
        min_relevance: float | None = None,
        max_typos: int | None = None,
    ) -> Recommendation:
        """What to show one person next, best first.

        Args:
            user: a known person; a stranger gets what the model gives an empty history.
            history: interactions instead of the stored ones, oldest first; plain item ids are clicks.
            k: how many.
            filter: an expression that every item must meet, see `rankloom.data.filters`.
            exclude: items not to show.
            query: words of a search; the model generates for them.
            seen: whether items of the history may be shown; `auto` does what the training log did.
            at: the moment of the request, for the age of the items; the newest one the model has heard of (the end of its
                log, or the last event of the history) where it is left out.
            sort: order the matches of a search by a column of numbers or dates instead, `price`, `-price`, `newest`, ...
            facets: columns of names whose values among the matches of a search are counted, `brand`, `category`, ...
            min_relevance: of a search, show only what is at least so relevant, a chance from 0 to 1; the list may be shorter
                than k, or empty.
            max_typos: slips of a word that are forgiven, 0 to 2; what the configuration says where it is left out.

        Raises:
            RankloomError: a bad filter, an unknown surface or policy, a k or beam that is no positive whole number. Items
                that the catalogue does not know are passed over in `history` and `exclude`: catalogues change. A `min_relevance`
                where the model was not calibrated (`relevance-missing`).
        """
        events = None if history is None else tuple(HistoryEvent(h) if isinstance(h, str) else h for h in _several(history, "history"))
        request = Request(
            user, events, k, filter, _several(exclude, "exclude"), query, surface, explain, beam, seen, at, sort,
            _several(facets, "facets"), min_relevance, max_typos,
        )  # fmt: skip
        return self.recommend_batch([request])[0]

    def search(self, text: str, **options: Any) -> Recommendation:
        """`recommend` for a query, on the search surface; takes the same options."""
        return self.recommend(query=text, **{"surface": "search", "seen": "allow", **options})

    def recommend_batch(self, requests: Sequence[Request]) -> list[Recommendation]:
        """Any mix of requests at once; each gets what it would get alone.

        Raises:
            RankloomError: one of them cannot be answered; then none is.
        """
        for request in requests:
            check_request(request)
        replies: dict[int, Recommendation] = {}
        # searches are decoded with weights of their own
        for searching in (False, True):
            own = [n for n, request in enumerate(requests) if bool(words(request.query or "")) == searching]
            answers = answer(self, [requests[n] for n in own], trace=False)
            replies.update(zip(own, (reply for reply, _ in answers), strict=True))
        return [replies[n] for n in range(len(requests))]

    def answer_with_trace(self, request: Request) -> tuple[Recommendation, BeamTrace]:
        """One reply and how the beam got there."""
        check_request(request)
        reply, trace = answer(self, [request], trace=True)[0]
        assert trace is not None
        return reply, trace

    def trace(self, request: Request) -> BeamTrace:
        """How the beam of one request went, code by code."""
        return self.answer_with_trace(request)[1]

    @torch.no_grad()
    def rank(
        self,
        table: FeatureTable,
        start: Tensor,
        stop: Tensor,
        *,
        k: int,
        beam: int | Sequence[int] | None = None,
        filters: list[NodeCounts | None] | None = None,
        excluded: list[Tensor] | None = None,
        queries_at: Tensor | None = None,
        user: Tensor | None = None,
        surface: Tensor | None = None,
        when: Tensor | None = None,
        weights: Weights | None = None,
        search_weights: Weights | None = None,
        trace: bool = False,
        people: Sequence[str | None] | None = None,
        typos: Sequence[int] | None = None,
    ) -> tuple[Ranking, BeamResult, Candidates]:
        """Generate, then select, for histories given as row ranges of a feature table. The core of every face.

        Searches are told from the feed by their queries; a batch that has both is decoded as the feed is.

        Args:
            when: (B,) float64 seconds of the requests, for the age of the items.
            weights, search_weights: instead of the model's own; with the latter broad searches are ordered like the others.
            people: whose histories these are, for what `contexts` keeps; None keeps nothing of a request.
            typos: slips of a word that each search forgives, instead of what the configuration says.
        """
        cases = Cases(
            table, start, stop, beam, filters, excluded, queries_at, user, surface, when, trace, people, typos
        )
        ranking, generated = rank(self, cases, k, weights=weights, search_weights=search_weights)
        return ranking, generated.beams, generated.candidates

    def check_relevance(self) -> None:
        """Raises RankloomError where the model has no calibrated relevance to cut at."""
        check_relevance(self)

    @torch.no_grad()
    def ndcg_of_weights(
        self,
        table: FeatureTable,
        start: Tensor,
        stop: Tensor,
        target_B: Tensor,
        grid: Sequence[Weights],
        *,
        excluded: list[Tensor] | None = None,
        queries_at: Tensor | None = None,
        user: Tensor | None = None,
        surface: Tensor | None = None,
        when: Tensor | None = None,
    ) -> NDArray[np.float64]:
        """(len(grid),) summed NDCG@10 of the targets under several weights; one decoding for each memory in the code."""
        cases = Cases(
            table, start, stop, excluded=excluded, queries_at=stop if queries_at is None else queries_at, user=user,
            surface=surface, when=when,
        )  # fmt: skip
        out = np.zeros(len(grid))
        for memory, strength in sorted({(weights.memory, weights.lift) for weights in grid}):
            generated = generate(self, cases, memory=memory, lift=strength)
            own = [
                (n, weights) for n, weights in enumerate(grid) if (weights.memory, weights.lift) == (memory, strength)
            ]
            for (number, _), value in zip(own, ndcgs(generated, [w for _, w in own], target_B), strict=True):
                out[number] = value
        return out

    @torch.no_grad()
    def refine_examples(
        self, table: FeatureTable, start: Tensor, stop: Tensor, target_B: Tensor, *,
        excluded: list[Tensor] | None = None, queries_at: Tensor | None = None, user: Tensor | None = None,
        surface: Tensor | None = None, when: Tensor | None = None,
    ) -> RefineExamples:  # fmt: skip
        """What a refiner is fitted on: one batch of cases under the model's own weights."""
        queries_at = stop if queries_at is None else queries_at
        weights = self.search_choices.weights if are_searches(self, table, queries_at) else self.weights
        cases = Cases(
            table, start, stop, excluded=excluded, queries_at=queries_at, user=user, surface=surface, when=when
        )
        generated = generate(self, cases, memory=weights.memory, lift=weights.lift)
        joined = scores(generated, replace(weights, refine=0.0))
        return RefineExamples(generated.feature_BCF, joined, generated.candidates.item_BC, target_B)

    @torch.no_grad()
    def search_examples(
        self, table: FeatureTable, start: Tensor, stop: Tensor, target_B: Tensor, *, queries_at: Tensor,
        user: Tensor | None = None, surface: Tensor | None = None, when: Tensor | None = None,
    ) -> tuple[RefineExamples, Tensor]:  # fmt: skip
        """One batch of searches as they are served, nothing hidden, before the refiner; and (B, C) which share of the query each
        generated item has."""
        weights = self.search_choices.weights
        cases = Cases(table, start, stop, queries_at=queries_at, user=user, surface=surface, when=when)
        generated = generate(self, cases, memory=weights.memory, lift=weights.lift)
        assert generated.query is not None
        joined = scores(generated, replace(weights, refine=0.0))
        read = joined[:, :, None] if generated.given is None else generated.feature_BCF
        return RefineExamples(read, joined, generated.candidates.item_BC, target_B), generated.query.coverage_BC

    # -- the catalogue, live ---------------------------------------------------------------------------------------

    def add_items(self, items: pl.DataFrame) -> int:
        """Adds or updates items; they can be recommended at once. Returns how many were new.

        A new item gets its semantic ID from the frozen tokenizer. A known one keeps its ID and takes the new metadata
        (price, stock, title), where it brings any: an empty value keeps what was. A removed one comes back. Columns that the catalogue has not had can be filtered, sorted and counted
        from now on, empty for all other items; the network does not read them before it is trained with them.

        Raises:
            RankloomError: no item_id or title, empty or duplicate ids.
        """
        for name in ("item_id", "title"):
            if name not in items.columns or items[name].null_count():
                raise RankloomError(f"every item needs {name}", place=name, action="fill it in", code="item-incomplete")
        if items["item_id"].n_unique() < items.height:
            raise RankloomError(
                "an item_id comes twice", place="item_id", action="send each item once", code="item-twice"
            )
        items = items.with_columns(pl.col("item_id").cast(pl.String))
        more = [name for name in items.columns if name not in self.items.columns and items.schema[name] != pl.Null]
        self.items = self.items.with_columns(pl.lit(None, dtype=items.schema[name]).alias(name) for name in more)
        known = items.filter(pl.col("item_id").is_in(self.catalogue.ids))
        fresh = items.filter(~pl.col("item_id").is_in(self.catalogue.ids))
        if known.height:
            shared = [name for name in known.columns if name in self.items.columns]
            self.items = self.items.update(
                known.select(shared).cast({n: self.items.schema[n] for n in shared}), on="item_id"
            )
            self._alive[[self.catalogue.row_of[item] for item in known["item_id"].to_list()]] = True
        if fresh.height:
            content, aligned, codes = self.tokenizer.assign(fresh)
            ids = self.semantic_ids
            self.tokenizer.content = np.concatenate([self.tokenizer.content, content])
            self.tokenizer.aligned = np.concatenate([self.tokenizer.aligned, aligned])
            self.tokenizer.semantic_ids = SemanticIds(
                np.concatenate([ids.codes, codes]),
                ids.codebook_sizes,
                np.r_[ids.prior, np.zeros(fresh.height, np.float32)],
            )
            common = [name for name in fresh.columns if name in self.items.columns]
            self.items = pl.concat([self.items, fresh.select(common)], how="diagonal_relaxed").select(
                self.items.columns
            )
            self._alive = np.r_[self._alive, np.ones(fresh.height, dtype=np.bool_)]
        self._refresh()
        return fresh.height

    def remove_items(self, item_ids: Sequence[str]) -> int:
        """Takes items out of every answer at once; returns how many were there."""
        rows = [row for row in self.catalogue.known_rows(item_ids) if self._alive[row]]
        self._alive[rows] = False
        self._refresh()
        return len(rows)

    @property
    def trie(self) -> Trie:
        return self.catalogue.trie

    def row_of(self, item_id: str) -> int | None:
        """Catalogue row of an item, None when unknown."""
        return self.catalogue.row_of.get(item_id)

    def history_row(self, user: str | None) -> int:
        """Row of a person in the histories, -1 for a stranger."""
        return self._history_row.get(user or "", -1)

    def _refresh(self) -> None:
        """Works out anew what depends on the catalogue."""
        ids, tokenizer = self.semantic_ids, self.tokenizer
        content = tokenizer.model_content(self.config.model.content)
        read = self.items.select(self.read_columns)
        self.model.items.replace_catalogue(
            torch.from_numpy(ids.codes.astype(np.int64)),
            torch.from_numpy(content),
            attributes_IF=item_attributes(read),
            created_I=created_seconds(read),
        )
        self.model.items.tabulate()
        self.catalogue = Catalogue(
            self.items, read, self._alive, ids, tokenizer.aligned, self.model.items, self.exposure
        )
        if self.query_memory is not None:
            self.query_memory = self.query_memory.following(
                searched_texts(self.items), self._alive, ids.prior, witness_groups(self.items)
            )
        self.teller = Teller(self.catalogue, tokenizer, self.memory, self.query_memory)


def _several(values: Sequence[Any], name: str) -> tuple[Any, ...]:
    """A text is a sequence of letters, and never meant as one."""
    if isinstance(values, str) or not isinstance(values, Iterable):
        raise RankloomError(f"{name} is {values!r}", place=name, action="give a list", code="wrong-type")
    return tuple(values)
