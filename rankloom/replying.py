"""From requests to replies: what each asks is read against the catalogue, all are generated for together, and each gets its list,
ordered, cut and explained as it asked.

Shapes: B requests, K items of the widest list, I catalogue rows.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rankloom.browsing import SORTED_FROM, facets, matching, sort_values
from rankloom.data import schema
from rankloom.decoding.masks import NodeCounts
from rankloom.decoding.query_memory import Match
from rankloom.decoding.select import Weights, top_k
from rankloom.decoding.trace import BeamTrace, trace_of
from rankloom.errors import RankloomError
from rankloom.generating import Cases, are_searches, generate
from rankloom.ordering import Generated, scores, scores_by_breadth
from rankloom.requests import Explanation, HistoryEvent, Recommendation, RecommendedItem, Request
from rankloom.semantic.words import words

if TYPE_CHECKING:
    from rankloom.recommender import Rankloom

Reply = tuple[Recommendation, BeamTrace | None]


@dataclass
class Ranking:
    """Raw result of a batch.

    Attributes:
        item_BK: catalogue rows, -1 padding.
        score_BK: final scores.
        share_BK, chance_B: of calibrated searches the shares of the chance of the whole list, and that chance.
    """

    item_BK: Tensor
    score_BK: Tensor
    share_BK: Tensor | None = None
    chance_B: Tensor | None = None


@dataclass(frozen=True)
class Asked:
    """One request as this catalogue understands it.

    Attributes:
        seen: rows of the history's items.
        filter: what its filter leaves; None without one.
        excluded: rows that it may not show.
        order_I: what its `sort` orders by, lower first; None for the model's order.
        match: what its words find in the catalogue; None without words, or a memory of them.
        shown: what they find of what its filter leaves.
        found: rows of the matches that it may show.
        width: items that are ranked for it, at least `k`.
        within: the filter that it is generated under.
        beam: how wide.
    """

    request: Request
    history: list[HistoryEvent]
    seen: list[int]
    filter: NodeCounts | None
    excluded: Tensor
    order_I: NDArray[np.float64] | None
    typos: int
    match: Match | None
    shown: Match | None
    found: NDArray[np.int64] | None
    width: int
    within: NodeCounts | None
    beam: int


def answer(own: Rankloom, requests: Sequence[Request], *, trace: bool) -> list[Reply]:
    """Of checked requests that are all searches, or all none: each reply, and with `trace` how the beam got there.

    Raises:
        RankloomError: what one of them asks for cannot be.
    """
    if not requests:
        return []
    started = time.perf_counter()
    for request in requests:
        if request.min_relevance:
            check_relevance(own)
    asked = [read(own, request) for request in requests]
    histories = [one.history for one in asked]
    table, start, stop = own.request_rows.table(own.tokenizer, own.catalogue, requests, histories)
    prepared = time.perf_counter()
    cases = Cases(
        table, start, stop,
        beam=[one.beam for one in asked],
        filters=[one.within for one in asked],
        excluded=[one.excluded for one in asked],
        queries_at=stop,
        user=torch.tensor([own.history_row(request.user) for request in requests]),
        surface=torch.tensor([schema.SURFACE_CODE.get(request.surface, 0) for request in requests]),
        when=None if own.model.age is None else own.request_rows.moments(requests, histories),
        trace=trace or any(request.explain for request in requests),
        # of a history that comes with its request; the folder's copies never change
        people=[None if request.history is None else request.user for request in requests],
        matches=[one.shown for one in asked],
    )  # fmt: skip
    ranking, generated = rank(own, cases, max(one.width for one in asked))
    decoded = time.perf_counter()
    replies: list[Reply] = []
    for number, one in enumerate(asked):
        reply = _reply(own, one, ranking, generated, number)
        timing = {
            "prepare": round((prepared - started) * 1e3, 3),
            "generate": round((decoded - prepared) * 1e3, 3),
            "total": round((time.perf_counter() - started) * 1e3, 3),
        }
        told = _trace(own, one, generated, number, len(reply.items)) if trace else None
        replies.append((replace(reply, timing_ms=timing), told))
    return replies


def read(own: Rankloom, request: Request) -> Asked:
    """A request against the catalogue.

    Raises:
        RankloomError: its filter or sort does not fit the catalogue's columns.
    """
    catalogue, config = own.catalogue, own.config
    history = list(request.history) if request.history is not None else own.history_of(request.user or "")
    passing = catalogue.filter(request.filter)
    seen = catalogue.known_rows([event.item_id for event in history])
    masked = own.mask_seen if request.seen == "auto" else request.seen == "mask"
    excluded = torch.tensor(
        sorted({*(seen if masked else []), *catalogue.known_rows(request.exclude)}), dtype=torch.long
    )
    order = None if request.sort is None else sort_values(own.items, request.sort)
    typos = config.memory.max_typos if request.max_typos is None else request.max_typos
    match = shown = None
    found: NDArray[np.int64] | None = None
    if own.query_memory is not None and request.query is not None:
        match = own.query_memory.match(request.query, typos)
        shown = match
        if passing is not None:
            shown = own.query_memory.match_among(request.query, typos, passing.allowed_I.numpy())
        rows = matching(shown, match)
        alive = catalogue.passing(None).allowed_I.numpy()
        found = rows[alive[rows] & ~np.isin(rows, excluded.numpy())]
    width, within = request.k, passing
    if order is not None:
        n_found = 0 if found is None else len(found)
        width = max(request.k, SORTED_FROM, n_found)
        # nothing else may take the place of a match; a cut needs what the whole list would give each
        if found is not None and n_found and not request.min_relevance:
            within = catalogue.only(found)
    beam = max(request.beam or config.decoding.beam, width)
    return Asked(request, history, seen, passing, excluded, order, typos, match, shown, found, width, within, beam)


def rank(
    own: Rankloom, cases: Cases, k: int, *, weights: Weights | None = None, search_weights: Weights | None = None
) -> tuple[Ranking, Generated]:
    """Generate, then select.

    Args:
        weights, search_weights: instead of the model's own; with the latter broad searches are ordered like the others.
    """
    weights, broad = weights or own.weights, None
    if are_searches(own, cases.table, cases.queries_at):
        weights = search_weights or own.search_choices.weights
        broad = None if search_weights is not None else own.search_choices.broad
    generated = generate(own, cases, memory=weights.memory, lift=weights.lift)
    score_BC = scores(generated, weights) if broad is None else scores_by_breadth(generated, weights, broad)
    items, best, _ = top_k(generated.candidates, score_BC, k)
    relevance, share, chance = own.search_choices.relevance, None, None
    if generated.query is not None and relevance is not None:
        share, chance = relevance.share(best, score_BC), relevance.most(score_BC, generated.query.coverage_BC)
    return Ranking(items, best, share, chance), generated


def check_relevance(own: Rankloom) -> None:
    """Raises RankloomError where the model has no calibrated relevance to cut at."""
    if own.search_choices.relevance is None:
        raise RankloomError(
            "this model's search scores are not calibrated, so that there is no relevance to cut at", place="min_relevance",
            action="leave it out, or train again with this version on a log with at least thirty searches in its validation period",
            code="relevance-missing",
        )  # fmt: skip


def _reply(own: Rankloom, asked: Asked, ranking: Ranking, generated: Generated, number: int) -> Recommendation:
    """What the `number`-th request gets, its timing left out."""
    request, catalogue, cut = asked.request, own.catalogue, asked.request.min_relevance
    rows = [int(row) for row in ranking.item_BK[number][: asked.width].tolist() if row >= 0]
    score_of = dict(zip(rows, ranking.score_BK[number].tolist(), strict=False))
    chance, relevance_of = _relevance(own, asked, ranking, number, rows)
    if cut is not None:
        rows = [row for row in rows if relevance_of.get(row, 0.0) >= cut]
    if asked.order_I is not None:
        rows = _in_order(rows, asked.order_I, asked.found, catalogue.ids)
    rows = rows[: request.k]
    reasons: list[list[str]] = [[] for _ in rows]
    explanations: list[Explanation | None] = [None for _ in rows]
    if request.explain:
        reasons = own.teller.reasons(rows, asked.seen, request.query, asked.typos)
        explanations = own.teller.explanations(
            rows, number, generated, request.query, asked.typos, weights=own.weights, search=own.search_choices
        )
    # a list that the cut has made short is what was asked for
    degraded = _short(own, asked, len(rows)) if len(rows) < request.k and cut is None else None
    match, codes = asked.match, own.semantic_ids.codes
    return Recommendation(
        items=[
            RecommendedItem(
                item_id=catalogue.ids[row],
                title=catalogue.titles[row],
                score=float(score_of[row]),
                sid=tuple(int(code) for code in codes[row]),
                reasons=reasons[place],
                relevance=relevance_of.get(row),
                explanation=explanations[place],
            )
            for place, row in enumerate(rows)
        ],
        model_version=own.model_version,
        degraded=degraded is not None,
        degraded_reason=degraded,
        facets=_facets(own, asked),
        no_match=(asked.found is not None and not len(asked.found)) or (cut is not None and not rows),
        matches=None if asked.found is None else len(asked.found),
        read_as=() if match is None else match.read_as,
        unknown=() if match is None else match.unknown,
        chance=None if match is None else chance,
    )


def _relevance(
    own: Rankloom, asked: Asked, ranking: Ranking, number: int, rows: Sequence[int]
) -> tuple[float | None, dict[int, float]]:
    """The chance of the whole list, and of each row; None and nothing where nothing is calibrated."""
    request = asked.request
    if asked.match is not None and not words(request.query or "") and own.search_choices.relevance is not None:
        # decoded as the feed is, and no answer to anything
        return 0.0, dict.fromkeys(rows, 0.0)
    if ranking.share_BK is None or ranking.chance_B is None:
        return None, {}
    chance = float(ranking.chance_B[number]) if request.chance_left is None else request.chance_left
    return chance, dict(zip(rows, (chance * ranking.share_BK[number]).tolist(), strict=False))


def _in_order(
    rows: list[int], value_I: NDArray[np.float64], among: NDArray[np.int64] | None, ids: Sequence[str]
) -> list[int]:
    """The rows by ascending value, equal ones by id; where some are `among` the matches, these alone."""
    kept = rows if among is None else [row for row, own in zip(rows, np.isin(rows, among), strict=True) if own]
    return sorted(kept or rows, key=lambda row: (float(value_I[row]), ids[row]))


def _short(own: Rankloom, asked: Asked, n: int) -> str:
    """Why a list has only `n` items."""
    if asked.order_I is not None:
        return f"{n} of {asked.request.k}: no more matches of the search to sort"
    left = int(own.catalogue.passing(asked.filter).allowed_I.sum())
    return f"{n} of {asked.request.k}: {left} items pass the filter, {len(asked.excluded)} are excluded"


def _facets(own: Rankloom, asked: Asked) -> dict[str, list[tuple[str, int]]]:
    """Of the matches that the request may show."""
    if not asked.request.facets:
        return {}
    return facets(own.items, [] if asked.found is None else asked.found.tolist(), asked.request.facets)


def _trace(own: Rankloom, asked: Asked, generated: Generated, number: int, shown: int) -> BeamTrace:
    passing = own.catalogue.passing(asked.filter)
    banned = int(passing.allowed_I[asked.excluded].sum()) if len(asked.excluded) else 0
    left = int(passing.allowed_I.sum())
    funnel = {
        "catalogue": own.trie.n_items,
        "passes the filter": left,
        "not seen or excluded": left - banned,
        "generated": int((generated.candidates.item_BC[number] >= 0).sum()),
        "shown": shown,
    }
    return trace_of(generated.beams, own.trie, number, funnel)
