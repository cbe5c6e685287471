"""`Rankloom`: a trained model folder that recommends, searches, takes new items and explains how the beam got there.

    model = Rankloom.from_pretrained("model")
    model.recommend("user-1", k=10, filter="price < 30")
    model.recommend(history=["item-3", "item-9"], k=5, explain=True)

One request runs: history -> context K/V (once) -> beam search under the trie, with filter and exclusions folded in ->
items of the generated semantic IDs -> selection head -> top k. `recommend_batch` runs any mix of requests together and
gives what each would get alone. Not thread-safe: one caller at a time (the server queues).
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray
from torch import Tensor

from rankloom.browsing import SORTED_FROM, matching, sort_values
from rankloom.browsing import facets as facets_of
from rankloom.building import created_seconds, watched
from rankloom.compiling import no_cuda, use_graph
from rankloom.config import Config
from rankloom.data import schema
from rankloom.data.filters import parse_filter
from rankloom.decoding.beam import BeamResult, beam_search
from rankloom.decoding.choices import UNTRIED_SEARCH, BroadOrder, Choices
from rankloom.decoding.exposure import Exposure, LiftTables
from rankloom.decoding.masks import MaskIndex, NodeCounts
from rankloom.decoding.memory import BehaviourMemory, Guide, in_history, latest_first
from rankloom.decoding.query_evidence import query_evidence
from rankloom.decoding.query_memory import Match, QueryMemory, searched_texts
from rankloom.decoding.refine import RefineExamples, Refiner
from rankloom.decoding.refine_features import (
    PLACES,
    ItemFacts,
    QueryEvidence,
    RefineInput,
    features,
    item_groups,
    item_sizes,
)
from rankloom.decoding.select import Candidates, Weights, expand, leaf_log_share, mix_scores, top_k, with_memory
from rankloom.decoding.trace import BeamTrace, trace_of
from rankloom.errors import RankloomError
from rankloom.explaining import Explainer, above_the_mean, refiner_parts
from rankloom.models.attributes import item_attributes
from rankloom.models.context import ContextBatch
from rankloom.models.kept_context import KeptContexts
from rankloom.models.lazy_decoder import LazyDecoder
from rankloom.models.prefix import Prefix
from rankloom.progress import Progress
from rankloom.reasons import Reasons
from rankloom.requests import (
    Explanation,
    HistoryEvent,
    Recommendation,
    RecommendedItem,
    Request,
    SeenPolicy,
    check_request,
)
from rankloom.semantic.ids import SemanticIds
from rankloom.semantic.stuffing import witness_groups
from rankloom.semantic.tokenizer import Tokenizer
from rankloom.semantic.trie import Trie
from rankloom.semantic.words import words
from rankloom.storing import load, save
from rankloom.training.features import FeatureTable, kind_code


@dataclass
class Ranking:
    """Raw result of a batch: (B, k) catalogue rows (-1 padding), scores, the generator's log-probabilities of all candidates, and
    of calibrated searches (B, k) shares of the chance of the whole list, and (B,) that chance."""

    item_BK: Tensor
    score_BK: Tensor
    log_prob_BK: Tensor
    share_BK: Tensor | None = None
    chance_B: Tensor | None = None


@dataclass
class _Generated:
    """What one decoding gave, before its items are ordered."""

    refiner: Refiner | None
    beams: BeamResult
    candidates: Candidates
    select_BC: Tensor | None
    guide: Guide | None
    now_BC: Tensor | None
    query: QueryEvidence | None
    given: RefineInput | None


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
        self._histories = histories
        self._history_row = {user: row for row, user in enumerate(histories["user_id"].to_list())}
        untaken = ("<pad>", "impression", "search", *config.data.context_events)
        self._not_taken = torch.tensor([kind_code(kind) for kind in untaken])
        # removed items keep their row (learned vectors belong to rows); the trie no longer names them
        self._alive = np.ones(items.height, dtype=np.bool_) if alive is None else alive
        self._query_vectors: dict[str, NDArray[np.float32]] = {}
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
        if not use_graph(self.config.decoding.engine, self.model.device.type) or not self._trie.n_items:
            return 0
        from rankloom.decoding.graph_engine import place_bucket

        longest = self.config.model.max_history
        lengths = sorted({place_bucket(places, longest) for places in range(1, longest + 1)})
        taken = HistoryEvent(self._item_ids[int(self._trie.leaf_items[0])])
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
        events = None if history is None else tuple(HistoryEvent(h) if isinstance(h, str) else h for h in history)
        request = Request(
            user, events, k, filter, tuple(exclude), query, surface, explain, beam, seen, at, sort, tuple(facets), min_relevance,
            max_typos,
        )  # fmt: skip
        return self.recommend_batch([request])[0]

    def search(self, text: str, **options: Any) -> Recommendation:
        """`recommend` for a query, on the search surface; takes the same options."""
        return self.recommend(options.pop("user", None), query=text, surface="search", seen="allow", **options)

    def recommend_batch(self, requests: Sequence[Request]) -> list[Recommendation]:
        """Any mix of requests at once; each gets what it would get alone."""
        replies: dict[int, Recommendation] = {}
        # searches are decoded with weights of their own
        for searching in (False, True):
            own = [n for n, request in enumerate(requests) if bool(words(request.query or "")) == searching]
            answers = self._answer([requests[n] for n in own], trace=False)
            replies.update(zip(own, (reply for reply, _ in answers), strict=True))
        return [replies[n] for n in range(len(requests))]

    def answer_with_trace(self, request: Request) -> tuple[Recommendation, BeamTrace]:
        """One reply and how the beam got there."""
        reply, trace = self._answer([request], trace=True)[0]
        assert trace is not None
        return reply, trace

    def trace(self, request: Request) -> BeamTrace:
        """How the beam of one request went, code by code."""
        trace = self._answer([request], trace=True)[0][1]
        assert trace is not None
        return trace

    def _answer(self, requests: Sequence[Request], *, trace: bool) -> list[tuple[Recommendation, BeamTrace | None]]:
        if not requests:
            return []
        started = time.perf_counter()
        for request in requests:
            check_request(request)
            if request.min_relevance:
                self.check_relevance()
        filters = [self._filter(request.filter) for request in requests]
        histories = [
            list(request.history) if request.history is not None else self.history_of(request.user or "")
            for request in requests
        ]
        table, start, stop = self._table(requests, histories)
        seen_rows = [self._known_rows([event.item_id for event in history]) for history in histories]
        excluded = []
        for request, rows in zip(requests, seen_rows, strict=True):
            masked = self.mask_seen if request.seen == "auto" else request.seen == "mask"
            own = {*(rows if masked else []), *self._known_rows(request.exclude)}
            excluded.append(torch.tensor(sorted(own), dtype=torch.long))
        orders = [None if request.sort is None else sort_values(self.items, request.sort) for request in requests]
        typos = [self.config.memory.max_typos if r.max_typos is None else r.max_typos for r in requests]
        matches = [
            None if self.query_memory is None or request.query is None else self.query_memory.match(request.query, own)
            for request, own in zip(requests, typos, strict=True)
        ]
        shown = [
            None if match is None else self._shown_matches(match, own, banned)
            for match, own, banned in zip(matches, filters, excluded, strict=True)
        ]
        widths, within = [request.k for request in requests], list(filters)
        for number, (request, rows_found) in enumerate(zip(requests, shown, strict=True)):
            if request.sort is None:
                continue
            n_found = 0 if rows_found is None else len(rows_found)
            widths[number] = max(request.k, SORTED_FROM, n_found)
            # nothing else may take the place of a match; a cut needs what the whole list would give each
            if rows_found is not None and n_found and not request.min_relevance:
                among = torch.zeros(self.items.height, dtype=torch.bool)
                among[torch.from_numpy(rows_found)] = True
                within[number] = self._index.compile(among)
        width = max(widths, default=1)
        beams_asked = [max(request.beam or self.config.decoding.beam, own) for request, own in zip(requests, widths, strict=True)]
        prepared = time.perf_counter()
        surface = torch.tensor([schema.SURFACE_CODE.get(request.surface, 0) for request in requests])
        users = torch.tensor([self._history_row.get(r.user or "", -1) for r in requests])
        explained = any(request.explain for request in requests)
        ranking, generated = self._rank(
            table,
            start,
            stop,
            k=width,
            beam=beams_asked,
            filters=within,
            excluded=excluded,
            queries_at=stop,
            user=users,
            surface=surface,
            when=self._moments(requests, histories),
            trace=trace or explained,
            typos=typos,
            # of a history that comes with its request; the folder's copies never change
            people=[None if request.history is None else request.user for request in requests],
        )
        beams, candidates = generated.beams, generated.candidates
        decoded = time.perf_counter()
        replies: list[tuple[Recommendation, BeamTrace | None]] = []
        for number, request in enumerate(requests):
            rows = [int(row) for row in ranking.item_BK[number][: widths[number]].tolist() if row >= 0]
            score_of = dict(zip(rows, ranking.score_BK[number].tolist(), strict=False))
            relevance_of: dict[int, float] = {}
            chance: float | None = None
            if ranking.share_BK is not None and ranking.chance_B is not None:
                chance = float(ranking.chance_B[number]) if request.chance_left is None else request.chance_left
                relevance_of = dict(zip(rows, (chance * ranking.share_BK[number]).tolist(), strict=False))
            match, found = matches[number], shown[number]
            if match is not None and not words(request.query or "") and self.search_choices.relevance is not None:
                # decoded as the feed is, and no answer to anything
                chance, relevance_of = 0.0, dict.fromkeys(rows, 0.0)
            cut = request.min_relevance
            if cut is not None:
                rows = [row for row in rows if relevance_of.get(row, 0.0) >= cut]
            order = orders[number]
            if order is not None:
                rows = self._in_order(rows, order, found)
            rows = rows[: request.k]
            reasons: list[list[str]] = [[] for _ in rows]
            explanations: list[Explanation | None] = [None for _ in rows]
            if request.explain:
                reasons = self._reasons_for(rows, seen_rows[number], request, typos[number])
                explanations = self._explanations(rows, number, generated, request, typos[number])
            degraded = None
            # a list that the cut has made short is what was asked for
            if len(rows) < request.k and cut is None:
                allowed = self._index.unfiltered if filters[number] is None else filters[number]
                left = int(allowed.allowed_I.sum()) if allowed is not None else 0
                degraded = (
                    f"{len(rows)} of {request.k}: {left} items pass the filter, {len(excluded[number])} are excluded"
                    if order is None
                    else f"{len(rows)} of {request.k}: no more matches of the search to sort"
                )
            answer = Recommendation(
                items=[
                    RecommendedItem(
                        item_id=self._item_ids[row],
                        title=self._titles[row],
                        score=float(score_of[row]),
                        sid=tuple(int(code) for code in self.semantic_ids.codes[row]),
                        reasons=reasons[place],
                        relevance=relevance_of.get(row),
                        explanation=explanations[place],
                    )
                    for place, row in enumerate(rows)
                ],
                model_version=self.model_version,
                degraded=degraded is not None,
                degraded_reason=degraded,
                facets=self._facets(request, found),
                no_match=(match is not None and not len(match.row)) or (cut is not None and not rows),
                matches=None if found is None else len(found),
                read_as=() if match is None else match.read_as,
                unknown=() if match is None else match.unknown,
                chance=None if match is None else chance,
                timing_ms={
                    "prepare": round((prepared - started) * 1e3, 3),
                    "generate": round((decoded - prepared) * 1e3, 3),
                    "total": round((time.perf_counter() - started) * 1e3, 3),
                },
            )
            own_trace = None
            if trace:
                counts = self._index.unfiltered if filters[number] is None else filters[number]
                assert counts is not None
                banned = int(counts.allowed_I[excluded[number]].sum()) if len(excluded[number]) else 0
                funnel = {
                    "catalogue": self._trie.n_items,
                    "passes the filter": int(counts.allowed_I.sum()),
                    "not seen or excluded": int(counts.allowed_I.sum()) - banned,
                    "generated": int((candidates.item_BC[number] >= 0).sum()),
                    "shown": len(rows),
                }
                own_trace = trace_of(beams, self._trie, number, funnel)
            replies.append((answer, own_trace))
        return replies

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
        ranking, generated = self._rank(
            table, start, stop, k=k, beam=beam, filters=filters, excluded=excluded, queries_at=queries_at, user=user,
            surface=surface, when=when, weights=weights, search_weights=search_weights, trace=trace, people=people, typos=typos,
        )  # fmt: skip
        return ranking, generated.beams, generated.candidates

    @torch.no_grad()
    def _rank(
        self, table: FeatureTable, start: Tensor, stop: Tensor, *, k: int, beam: int | Sequence[int] | None = None,
        filters: list[NodeCounts | None] | None = None, excluded: list[Tensor] | None = None, queries_at: Tensor | None = None,
        user: Tensor | None = None, surface: Tensor | None = None, when: Tensor | None = None, weights: Weights | None = None,
        search_weights: Weights | None = None, trace: bool = False, people: Sequence[str | None] | None = None,
        typos: Sequence[int] | None = None,
    ) -> tuple[Ranking, _Generated]:  # fmt: skip
        """`rank`, with what was generated."""
        weights, broad = weights or self.weights, None
        if self.are_searches(table, queries_at):
            weights = search_weights or self.search_choices.weights
            broad = None if search_weights is not None else self.search_choices.broad
        generated = self._generate(
            table, start, stop, beam=beam, filters=filters, excluded=excluded, queries_at=queries_at, user=user,
            surface=surface, when=when, memory=weights.memory, lift=weights.lift, trace=trace, people=people, typos=typos,
        )  # fmt: skip
        scores = self._scores(generated, weights) if broad is None else self._by_breadth(generated, weights, broad)
        items, best, _ = top_k(generated.candidates, scores, k)
        relevance, share, chance = self.search_choices.relevance, None, None
        if generated.query is not None and relevance is not None:
            share, chance = relevance.share(best, scores), relevance.most(scores, generated.query.coverage_BC)
        return Ranking(items, best, generated.candidates.log_prob_BC, share, chance), generated

    def check_relevance(self) -> None:
        """Raises RankloomError where the model has no calibrated relevance to cut at."""
        if self.search_choices.relevance is None:
            raise RankloomError(
                "this model's search scores are not calibrated, so that there is no relevance to cut at", place="min_relevance",
                action="leave it out, or train again with this version on a log with at least thirty searches in its validation period",
                code="relevance-missing",
            )  # fmt: skip

    def _shown_matches(self, match: Match, passing: NodeCounts | None, excluded: Tensor) -> NDArray[np.int64]:
        """Catalogue rows of the matches that the request may show."""
        rows = matching(match)
        allowed = (self._index.unfiltered if passing is None else passing).allowed_I.numpy()
        return rows[allowed[rows] & ~np.isin(rows, excluded.numpy())]

    def _facets(self, request: Request, shown: NDArray[np.int64] | None) -> dict[str, list[tuple[str, int]]]:
        """Of the matches that the request may show."""
        if not request.facets:
            return {}
        return facets_of(self.items, [] if shown is None else shown.tolist(), request.facets)

    def _in_order(self, rows: list[int], value_I: NDArray[np.float64], among: NDArray[np.int64] | None) -> list[int]:
        """The rows by ascending value, equal ones by id; where some are `among` the matches, these alone."""
        kept = rows if among is None else [row for row, own in zip(rows, np.isin(rows, among), strict=True) if own]
        return sorted(kept or rows, key=lambda row: (float(value_I[row]), self._item_ids[row]))

    def are_searches(self, table: FeatureTable, queries_at: Tensor | None) -> bool:
        """Whether every request of a batch asks for something and the model has a query memory to answer from."""
        if self.query_memory is None or queries_at is None or not len(queries_at) or not table.queries:
            return False
        return bool(((queries_at >= 0) & (table.query[queries_at.clamp_min(0)] >= 0)).all())

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
        out = np.zeros(len(grid))
        for memory, strength in sorted({(weights.memory, weights.lift) for weights in grid}):
            generated = self._generate(
                table, start, stop, excluded=excluded, queries_at=stop if queries_at is None else queries_at, user=user,
                surface=surface, when=when, memory=memory, lift=strength,
            )  # fmt: skip
            own = [
                (n, weights) for n, weights in enumerate(grid) if (weights.memory, weights.lift) == (memory, strength)
            ]
            for (number, _), value in zip(own, self._ndcgs(generated, [w for _, w in own], target_B), strict=True):
                out[number] = value
        return out

    def _ndcgs(self, generated: _Generated, grid: Sequence[Weights], target_B: Tensor) -> list[float]:
        """Summed NDCG@10 under weights that share one decoding: `_scores` without what does not change the order, each part
        computed once."""
        item_BC, select = generated.candidates.item_BC, generated.select_BC
        padding = item_BC < 0
        log_prob = torch.log_softmax(generated.candidates.log_prob_BC, dim=-1).masked_fill(padding, 0.0)
        hit = item_BC == target_B[:, None]
        found, column = hit.any(1), hit.long().argmax(1)
        before = torch.arange(item_BC.shape[1])[None] < column[:, None]
        selections: dict[float, Tensor] = {}
        out = []
        for weights in grid:
            score = log_prob
            if select is not None and weights.mix < 1:
                share = weights.selection_memory if generated.guide is not None else 0.0
                if share not in selections:
                    own = select
                    if share > 0 and generated.guide is not None:
                        own = with_memory(select, item_BC, generated.guide, share)
                    selections[share] = torch.log_softmax(own, dim=-1).masked_fill(padding, 0.0)
                score = weights.mix * log_prob + (1 - weights.mix) * selections[share]
            if generated.now_BC is not None and weights.now:
                score = score + weights.now * generated.now_BC
            if generated.query is not None and weights.words:
                score = score + weights.words * generated.query.coverage_BC
            score = score.masked_fill(padding, float("-inf"))
            mine = score.gather(1, column[:, None])
            # ties keep the generator's order
            rank = ((score > mine) | ((score == mine) & before)).sum(1)
            out.append(float(torch.where(found & (rank < 10), 1 / torch.log2(rank + 2.0), 0.0).sum()))
        return out

    def _generate(
        self,
        table: FeatureTable,
        start: Tensor,
        stop: Tensor,
        *,
        memory: float,
        lift: float,
        beam: int | Sequence[int] | None = None,
        filters: list[NodeCounts | None] | None = None,
        excluded: list[Tensor] | None = None,
        queries_at: Tensor | None = None,
        user: Tensor | None = None,
        surface: Tensor | None = None,
        when: Tensor | None = None,
        trace: bool = False,
        people: Sequence[str | None] | None = None,
        typos: Sequence[int] | None = None,
    ) -> _Generated:
        begin = torch.maximum(start, stop - self.config.model.max_history)
        prefix = self._prefill(table.pack(begin, stop, queries_at=queries_at, user=user), surface, people)
        masks = self._index.requests(filters or [None] * len(start), excluded)
        recalled = (torch.zeros(0, dtype=torch.long), torch.zeros(0, dtype=torch.long), torch.zeros(0))
        if self.memory is not None:
            taken = ~torch.isin(table.kind, self._not_taken)
            recalled = self.memory.recall(latest_first(table.item, taken, begin, stop))
        guide = None
        matches: list[Match] | None = None
        if self.query_memory is not None and queries_at is not None and self.are_searches(table, queries_at):
            asked_for = table.query[queries_at].tolist()
            slips = [self.config.memory.max_typos] * len(asked_for) if typos is None else typos
            matches = [self.query_memory.match(table.queries[n], own) for n, own in zip(asked_for, slips, strict=True)]
            guide = Guide(self._index, self.query_memory.recall(matches, recalled), share=memory)
        elif self.memory is not None:
            guide = Guide(self._index, recalled, share=memory)
        in_code = guide if memory > 0 else None
        shift = self._lifts.lift(when, lift) if self._lifts is not None and when is not None and lift > 0 else None
        beams = beam_search(
            self.model,
            prefix,
            self._trie,
            beam=self.config.decoding.beam if beam is None else beam,
            masks=masks,
            normalise=self.config.decoding.normalise,
            guide=in_code,
            lift=shift,
            trace=trace,
            engine=self.config.decoding.engine,
        )
        candidates = expand(
            beams.leaf_BW,
            beams.log_prob_BW,
            trie=self._trie,
            log_share=self._log_share,
            allowed=masks.allowed_items(),
            excluded=excluded,
            guide=in_code,
            lift=shift,
        )
        select = None
        if self.config.selection.enabled:
            select = self._select(self.model.user(prefix), candidates.item_BC, when)
        now = None
        if self._lifts is not None and when is not None:
            now = self._lifts.log_now(when, candidates.item_BC)
        query = given = None
        if matches is not None and queries_at is not None:
            asked = table.query_vectors[table.query[queries_at]]
            query = query_evidence(candidates.item_BC, matches, recalled, asked, self._facts.unit_ID)
        if select is not None:
            given = self._refine_input(candidates, select, guide, now, table, begin, stop, when, surface)
            given.query = query
        refiner = self.refiner if matches is None else self.search_choices.refiner
        return _Generated(refiner, beams, candidates, select, guide, now, query, given)

    def _prefill(self, batch: ContextBatch, surface: Tensor | None, people: Sequence[str | None] | None) -> Prefix:
        """The contexts of a batch, of known people from what their last request left."""
        own = self.contexts
        if own is None or people is None:
            return self.model.prefill(batch, surface)
        before = [None if person is None else own.get(self.model_version, person) for person in people]
        prefix = self.model.prefill(batch, surface, kept=before)
        for person, now in zip(people, prefix.kept or [None] * len(people), strict=True):
            if person is not None and now is not None:
                own.put(self.model_version, person, now)
        return prefix

    def _select(self, user_BD: Tensor, item_BC: Tensor, when: Tensor | None) -> Tensor:
        """(B, C) the selection head's scores; it works where the model is, everything around it on the CPU."""
        device = self.model.device
        if device.type == "cpu":
            return self.model.select_scores(user_BD, item_BC, when).float()
        when = None if when is None else when.to(device)
        return self.model.select_scores(user_BD, item_BC.to(device), when).float().cpu()

    def _scores(self, generated: _Generated, weights: Weights) -> Tensor:
        """(B, C) final scores of the generated items."""
        candidates, select = generated.candidates, generated.select_BC
        if select is not None and generated.guide is not None and weights.selection_memory > 0:
            select = with_memory(select, candidates.item_BC, generated.guide, weights.selection_memory)
        bonus = None if generated.now_BC is None or not weights.now else weights.now * generated.now_BC
        if generated.query is not None and weights.words:
            words_BC = weights.words * generated.query.coverage_BC
            bonus = words_BC if bonus is None else bonus + words_BC
        scores = mix_scores(candidates.log_prob_BC, select if weights.mix < 1 else None, weights.mix, bonus)
        if generated.refiner is not None and weights.refine and generated.given is not None:
            scores = scores + weights.refine * generated.refiner(features(generated.given, self._facts))
        return scores

    def _by_breadth(self, generated: _Generated, weights: Weights, broad: BroadOrder) -> Tensor:
        """(B, C) final scores; on those of broad searches their own refiner has the last word."""
        assert generated.query is not None
        broad_B = generated.query.breadth_B >= broad.least
        if not broad_B.any():
            return self._scores(generated, weights)
        scores = self._scores(*_as_broad(generated, weights, broad))
        return scores if broad_B.all() else torch.where(broad_B[:, None], scores, self._scores(generated, weights))

    def _refine_input(
        self, candidates: Candidates, select_BC: Tensor, guide: Guide | None, now_BC: Tensor | None, table: FeatureTable,
        begin: Tensor, stop: Tensor, when: Tensor | None, surface: Tensor | None,
    ) -> RefineInput:  # fmt: skip
        memory = told = age = None
        if guide is not None:
            own, whole = guide.items(candidates.item_BC)
            memory, told = own / whole.clamp_min(1e-300), whole[:, 0]
        if self.model.age is not None and when is not None:
            age = (when[:, None] - self._created_I[candidates.item_BC.clamp_min(0)]) / 86_400
        everything = torch.ones(len(table.item), dtype=torch.bool)
        searches = torch.zeros(len(stop), dtype=torch.bool)
        if surface is not None:
            searches = surface == schema.SURFACE_CODE["search"]
        history = latest_first(table.item, everything, begin, stop, places=PLACES)
        seen = in_history(candidates.item_BC, table.item, begin, stop)
        return RefineInput(
            candidates.log_prob_BC, select_BC, candidates.item_BC, memory, told, now_BC, age, history, searches, seen
        )

    @torch.no_grad()
    def refine_examples(
        self, table: FeatureTable, start: Tensor, stop: Tensor, target_B: Tensor, *,
        excluded: list[Tensor] | None = None, queries_at: Tensor | None = None, user: Tensor | None = None,
        surface: Tensor | None = None, when: Tensor | None = None,
    ) -> RefineExamples:  # fmt: skip
        """What a refiner is fitted on: one batch of cases under the model's own weights."""
        queries_at = stop if queries_at is None else queries_at
        weights = self.search_choices.weights if self.are_searches(table, queries_at) else self.weights
        generated = self._generate(
            table, start, stop, excluded=excluded, queries_at=queries_at, user=user, surface=surface, when=when,
            memory=weights.memory, lift=weights.lift,
        )  # fmt: skip
        assert generated.given is not None
        scores = self._scores(generated, replace(weights, refine=0.0))
        return RefineExamples(features(generated.given, self._facts), scores, generated.candidates.item_BC, target_B)

    @torch.no_grad()
    def search_examples(
        self, table: FeatureTable, start: Tensor, stop: Tensor, target_B: Tensor, *, queries_at: Tensor,
        user: Tensor | None = None, surface: Tensor | None = None, when: Tensor | None = None,
    ) -> tuple[RefineExamples, Tensor]:  # fmt: skip
        """One batch of searches as they are served, nothing hidden, before the refiner; and (B, C) which share of the query each
        generated item has."""
        weights = self.search_choices.weights
        generated = self._generate(
            table, start, stop, queries_at=queries_at, user=user, surface=surface, when=when, memory=weights.memory, lift=weights.lift
        )
        assert generated.query is not None
        scores = self._scores(generated, replace(weights, refine=0.0))
        read = scores[:, :, None] if generated.given is None else features(generated.given, self._facts)
        return RefineExamples(read, scores, generated.candidates.item_BC, target_B), generated.query.coverage_BC

    # -- the catalogue, live ---------------------------------------------------------------------------------------

    def add_items(self, items: pl.DataFrame) -> int:
        """Adds or updates items; they can be recommended at once. Returns how many were new.

        A new item gets its semantic ID from the frozen tokenizer. A known one keeps its ID and takes the new metadata
        (price, stock, title); a removed one comes back.

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
        known = items.filter(pl.col("item_id").is_in(list(self._row_of)))
        fresh = items.filter(~pl.col("item_id").is_in(list(self._row_of)))
        if known.height:
            shared = [name for name in known.columns if name in self.items.columns]
            self.items = self.items.update(
                known.select(shared).cast({n: self.items.schema[n] for n in shared}), on="item_id"
            )
            self._alive[[self._row_of[item] for item in known["item_id"].to_list()]] = True
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
        rows = [row for row in self._known_rows(item_ids) if self._alive[row]]
        self._alive[rows] = False
        self._refresh()
        return len(rows)

    @property
    def trie(self) -> Trie:
        return self._trie

    def row_of(self, item_id: str) -> int | None:
        """Catalogue row of an item, None when unknown."""
        return self._row_of.get(item_id)

    def _refresh(self) -> None:
        """Rebuilds what depends on the catalogue."""
        ids = self.semantic_ids
        # built when somebody asks
        self._reasons: Reasons | None = None
        self._explainer: Explainer | None = None
        content = self.tokenizer.model_content(self.config.model.content)
        self.model.items.replace_catalogue(
            torch.from_numpy(ids.codes.astype(np.int64)),
            torch.from_numpy(content),
            attributes_IF=item_attributes(self.items),
            created_I=created_seconds(self.items),
        )
        self.model.items.tabulate()
        self._trie = Trie.build(ids.codes, ids.codebook_sizes, ids.prior, rows=np.flatnonzero(self._alive))
        self._index = MaskIndex(self._trie, len(ids.codes))
        self._log_share = leaf_log_share(self._trie, torch.from_numpy(ids.prior))
        self._created_I = self.model.items.created_I.cpu()
        self._lifts: LiftTables | None = None
        if self.exposure is not None:
            self._lifts = LiftTables(
                self.exposure,
                self._index,
                created_I=self._created_I,
                kind_I=watched(self.items),
                count_I=torch.from_numpy(ids.prior),
            )
        tokens = self.model.items.attributes_IF
        self._facts = ItemFacts(
            count_I=torch.from_numpy(ids.prior),
            watched_I=watched(self.items),
            unit_ID=torch.nn.functional.normalize(torch.from_numpy(self.tokenizer.aligned).float(), dim=1),
            tokens_IA=None if tokens is None else tokens.cpu(),
            group_IG=item_groups(self.items, ids.codes),
            size_I2=item_sizes(self.items),
        )
        if self.query_memory is not None:
            self.query_memory = self.query_memory.following(
                searched_texts(self.items), self._alive, ids.prior, witness_groups(self.items)
            )
        self._item_ids: list[str] = self.items["item_id"].to_list()
        self._titles: list[str] = self.items["title"].to_list()
        self._row_of = {item: row for row, item in enumerate(self._item_ids)}
        self._filters: dict[str, NodeCounts] = {}

    def _filter(self, text: str | None) -> NodeCounts | None:
        if text is None or not text.strip():
            return None
        if text not in self._filters:
            if len(self._filters) > 256:
                self._filters.clear()
            self._filters[text] = self._index.compile(torch.from_numpy(parse_filter(text).mask(self.items)))
        return self._filters[text]

    def _known_rows(self, item_ids: Sequence[str]) -> list[int]:
        return [self._row_of[item] for item in item_ids if item in self._row_of]

    def _table(
        self, requests: Sequence[Request], histories: list[list[HistoryEvent]]
    ) -> tuple[FeatureTable, Tensor, Tensor]:
        """Feature rows of all histories, each followed by one row that carries the request's query."""
        rows: list[tuple[int, int, float, float, int, int, int]] = []
        start, stop = [], []
        queries: dict[str, int] = {}
        durations = self.items["duration_s"].to_list() if "duration_s" in self.items.columns else None
        for request, history in zip(requests, histories, strict=True):
            start.append(len(rows))
            first = max(0, len(history) - self.config.model.max_history)
            before = history[first - 1].timestamp if first else None
            for event in history[first:]:
                row = self._row_of.get(event.item_id)
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
        vectors = self._embed_queries(list(queries)) if queries else None
        table = FeatureTable.from_columns(rows, vectors, self._user_features(), tuple(queries))
        return table, torch.tensor(start), torch.tensor(stop)

    def _moments(self, requests: Sequence[Request], histories: list[list[HistoryEvent]]) -> Tensor | None:
        """(B,) seconds of the requests; None where the model does not read time."""
        if self.model.age is None:
            return None
        moments = []
        for request, history in zip(requests, histories, strict=True):
            known = [event.timestamp.timestamp() for event in history[-1:] if event.timestamp is not None]
            newest = max([*known, *([] if self.log_end is None else [self.log_end])], default=float("nan"))
            moments.append(newest if request.at is None else request.at.timestamp())
        return torch.tensor(moments, dtype=torch.float64)

    def _embed_queries(self, queries: list[str]) -> NDArray[np.float32]:
        """(n, D_text) vectors; those of the queries in people's histories come again and again, so they are kept."""
        fresh = [query for query in queries if query not in self._query_vectors]
        if fresh:
            if len(self._query_vectors) + len(fresh) > 20_000:
                self._query_vectors.clear()
                fresh = queries
            self._query_vectors.update(
                zip(fresh, self.tokenizer.query_vectors(fresh, self.config.model.content), strict=True)
            )
        return np.stack([self._query_vectors[query] for query in queries])

    def _user_features(self) -> Tensor | None:
        if "features" not in self._histories.columns:
            return None
        if not hasattr(self, "_features"):
            known = np.asarray(self._histories["features"].to_list(), dtype=np.int64)
            # the last row stands for strangers (index -1)
            self._features = torch.from_numpy(np.vstack([known, np.zeros_like(known[:1])]))
        return self._features

    def _explanations(
        self, rows: list[int], number: int, generated: _Generated, request: Request, typos: int
    ) -> list[Explanation | None]:
        """Of the rows of one request, the `number`-th of those that were generated for."""
        if not rows:
            return []
        if self._explainer is None:
            keywords = None if self.tokenizer.keywords is None else self.tokenizer.keywords.matcher
            self._explainer = Explainer(self.items, self._trie, self.semantic_ids.codes, self.query_memory, keywords)
        explainer = self._explainer
        weights = self.weights
        if generated.query is not None:
            weights, broad = self.search_choices.weights, self.search_choices.broad
            if broad is not None and generated.query.breadth_B[number] >= broad.least:
                generated, weights = _as_broad(generated, weights, broad)
        item_C = generated.candidates.item_BC[number]
        column_of = {row: column for column, row in enumerate(item_C.tolist())}
        columns, real_C = [column_of[row] for row in rows], item_C >= 0
        parts = {name: value[number] for name, value in self._parts(generated, weights).items()}
        told = above_the_mean(parts, real_C, columns)
        refined: list[dict[str, float]] = [{} for _ in rows]
        if "refiner" in parts and generated.refiner is not None and generated.given is not None:
            refined = refiner_parts(generated.refiner, features(generated.given, self._facts)[number], real_C, columns)
        found = explainer.words(rows, request.query, typos) if request.query else [[] for _ in rows]
        return [
            Explanation(found[place], explainer.path(row, generated.beams, number), told[place], refined[place])
            for place, row in enumerate(rows)
        ]

    def _parts(self, generated: _Generated, weights: Weights) -> dict[str, Tensor]:
        """(B, C) the parts that `_scores` adds up; they differ from it by a number a request."""
        candidates, select = generated.candidates, generated.select_BC
        mix = weights.mix if select is not None else 1.0
        parts = {"generator": mix * torch.log_softmax(candidates.log_prob_BC, dim=-1)} if mix > 0 else {}
        if select is not None and mix < 1:
            if generated.guide is not None and weights.selection_memory > 0:
                select = with_memory(select, candidates.item_BC, generated.guide, weights.selection_memory)
            parts["selection"] = (1 - mix) * torch.log_softmax(select, dim=-1)
        if generated.now_BC is not None and weights.now:
            parts["taken now"] = weights.now * generated.now_BC
        if generated.query is not None and weights.words:
            parts["words"] = weights.words * generated.query.coverage_BC
        if generated.refiner is not None and weights.refine and generated.given is not None:
            parts["refiner"] = weights.refine * generated.refiner(features(generated.given, self._facts)).detach()
        return parts

    def _reasons_for(self, rows: list[int], seen: list[int], request: Request, typos: int) -> list[list[str]]:
        if self._reasons is None:
            ids = self.semantic_ids
            self._reasons = Reasons(
                self.items, self.tokenizer.aligned, self.tokenizer.content, ids.codes, ids.prior, self.memory
            )
        if request.query:
            vector = self.tokenizer.embed_texts([request.query])[0]
            return self._reasons.of_search(rows, request.query, vector, self.query_memory, typos)
        return self._reasons.of_history(rows, seen)


def _as_broad(generated: _Generated, weights: Weights, broad: BroadOrder) -> tuple[_Generated, Weights]:
    """What orders a broad search: all as for any other, and the refiner of broad ones."""
    return replace(generated, refiner=broad.refiner), replace(weights, refine=1.0)
