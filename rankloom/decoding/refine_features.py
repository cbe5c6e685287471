"""What the refiner reads of each generated item, beside what generator and selection head say of it.

Four kinds of evidence: the scores and their ranks; what the memory says, of the item and of its neighbours among the
candidates (items of its category, items that share its first code); how the item stands in the catalogue now (taken how
often, how old); and how it relates to the person's history (how near, how much in common, how far from the usual price,
seen when).

Shapes: B requests, C generated items, P latest items of the history, F features, I catalogue rows, G groupings.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray
from torch import Tensor

Floats = NDArray[np.float32]
PLACES: Final = 60
"""Latest items of the history that are read."""
NEAR: Final = 12
"""Of these, the ones that nearness is measured to."""
DECAY: Final = 0.8
LONG_DECAY: Final = 0.95
"""Weight of one more step back, over the near and over all places."""
GROUPINGS: Final = ("category", "department", "brand", "code", "two codes")
SIZES: Final = ("price", "duration")
FEATURES: Final = (
    "generator", "selection", "generator rank", "selection rank", "memory", "now", "log count", "never taken", "watched",
    "log age", "age", "near the last", "nearest", "near the history", "seen before", "search", "history length",
    "shared with the last", "shared with the history",
    "memory says", "seen lately", "times seen", "steps since seen",
    *(f"share of {name}" for name in GROUPINGS), *(f"{name} of the last" for name in GROUPINGS),
    *(f"{name} {way}" for name in SIZES for way in ("above the usual", "off the usual")),
    *(f"{opinion} of its {name}" for name in ("category", "code") for opinion in ("generator", "selection", "memory")),
)  # fmt: skip
SEARCH_FEATURES: Final = (
    "relevance", "relevance rank", "relevant", "coverage", "coverage of the best", "near the query", "history says",
    "breadth of the query",
)  # fmt: skip
"""What is read beside them when somebody searches."""
BROAD_FEATURES: Final = ("share of code among the matches", "log share of code among the matches")
"""What the refiner of broad searches reads beside both."""
_HARDLY: Final = math.exp(-9.0)
_NEVER: Final = 200
_LEAST: Final = 1e-4
_FAINT: Final = 0.005
"""Share of a history that says hardly anything yet: a tenth of one item of fifty, about."""
_EQUAL: Final = 1e-6
"""Shares of a query's words that differ by less are the same."""


@dataclass
class RefineInput:
    """What the features of one batch are made of.

    Attributes:
        log_prob_BC, select_BC: scores of generator and selection, -inf for padding.
        item_BC: catalogue rows, -1 for padding.
        memory_BC: share of the memory in (0, 1], 0 where it is silent; None without a memory.
        told_B: amount of all that the memory says; None likewise.
        now_BC: log of how often the items are taken at the moment; None where the model does not know.
        age_BC: days since the items were listed, NaN unknown; None likewise.
        history_BP: catalogue rows of the latest items, latest first, -1 padding.
        search_B: whether the request is a search.
        seen_BC: whether the items are in the history, however long ago.
    """

    log_prob_BC: Tensor
    select_BC: Tensor
    item_BC: Tensor
    memory_BC: Tensor | None
    told_B: Tensor | None
    now_BC: Tensor | None
    age_BC: Tensor | None
    history_BP: Tensor
    search_B: Tensor
    seen_BC: Tensor
    query: QueryEvidence | None = None


@dataclass
class QueryEvidence:
    """What relates the generated items of a search to its query; 0 for items that share no word with it.

    Attributes:
        relevance_BC: BM25 score over that of the best item.
        coverage_BC: share of the query's words that the item has.
        place_BC: 1 / (1 + place by relevance).
        untried_BC: share of the query's words that the item has and that no search of the log has had (query_memory.py).
        near_BC: cosine of query and item.
        behaviour_BC: amount of the behaviour memory, which the memory of a search has taken in.
        breadth_B: in [0, 1], 0 where one item has as many of the query's words as the best, 1 where a thousand have: whether the words
            leave it to the person.
    """

    relevance_BC: Tensor
    coverage_BC: Tensor
    place_BC: Tensor
    untried_BC: Tensor
    near_BC: Tensor
    behaviour_BC: Tensor
    breadth_B: Tensor


@dataclass
class ItemFacts:
    """Static facts of the catalogue that the features read.

    Attributes:
        count_I: how often each item was taken in training.
        watched_I: whether it is watched (a video) and not bought.
        unit_ID: unit vectors.
        tokens_IA: attribute tokens, 0 unknown, or None.
        group_IG: the item's group in each of `GROUPINGS`, 0 unknown.
        size_I2: log2 of price and duration, NaN unknown.
    """

    count_I: Tensor
    watched_I: Tensor
    unit_ID: Tensor
    tokens_IA: Tensor | None
    group_IG: Tensor
    size_I2: Tensor


def item_groups(items: pl.DataFrame, codes_IQ: NDArray[np.integer]) -> Tensor:
    """(I, G) int64 in the order of `GROUPINGS`; only equality means something."""
    nothing = pl.Series("nothing", [None] * items.height, dtype=pl.String)
    category = department = brand = nothing
    if "category" in items.columns and items["category"].dtype == pl.List(pl.String):
        category, department = items["category"].list.join("\x1f"), items["category"].list.first()
    if "brand" in items.columns:
        brand = items["brand"].cast(pl.String, strict=False)
    named = [pl.select(pl.when(own != "").then(own)).to_series() for own in (category, department, brand)]
    columns = [torch.from_numpy(own.rank("dense").fill_null(0).to_numpy().astype(np.int64)) for own in named]
    codes = torch.from_numpy(codes_IQ.astype(np.int64))
    second = codes[:, min(1, codes.shape[1] - 1)]
    columns += [codes[:, 0] + 1, codes[:, 0] * (int(second.max()) + 1 if len(second) else 1) + second + 1]
    return torch.stack(columns, dim=1)


def item_sizes(items: pl.DataFrame) -> Tensor:
    """(I, 2) float32: log2 of price and duration, NaN where the catalogue does not say."""
    columns = []
    for name in ("price_micros", "duration_s"):
        value = np.full(items.height, np.nan)
        if name in items.columns:
            value = items[name].cast(pl.Float64, strict=False).fill_null(np.nan).to_numpy().copy()
        value[~(value > 0)] = np.nan
        columns.append(torch.from_numpy(np.log2(value)).float())
    return torch.stack(columns, dim=1)


def features(given: RefineInput, facts: ItemFacts) -> Tensor:
    """(B, C, F) float32 in the order of `FEATURES`, and of `SEARCH_FEATURES` and `BROAD_FEATURES` for searches; anything for
    padding."""
    item_BC = given.item_BC.numpy()
    real, item = item_BC >= 0, np.maximum(item_BC, 0)
    generator, selection = (
        torch.log_softmax(own.detach(), dim=-1).numpy() for own in (given.log_prob_BC, given.select_BC)
    )
    nothing = np.zeros(item.shape, dtype=np.float32)
    memory = nothing if given.memory_BC is None else given.memory_BC.numpy()
    count = facts.count_I.numpy()[item]
    age = nothing
    if given.age_BC is not None:
        age = np.minimum(np.maximum(np.where(np.isnan(given.age_BC.numpy()), 0.0, given.age_BC.numpy()), 0.0), 90.0)
    group_BCG = facts.group_IG.numpy()[item]
    own = [
        generator,
        selection,
        _log_rank(generator, real),
        _log_rank(selection, real),
        nothing if given.memory_BC is None else np.log(np.maximum(memory, _HARDLY)),
        nothing if given.now_BC is None else given.now_BC.numpy(),
        np.log(count + 1),
        count == 0,
        facts.watched_I.numpy()[item],
        np.log1p(age),
        age / 30,
        *_nearness(given, facts, item),
        0.0 if given.told_B is None else np.log1p(given.told_B.numpy())[:, None],
        *_sightings(given, item),
    ]
    groups = _groups(given, facts, group_BCG)
    blocks = [
        _columns(own, item.shape),
        groups,
        _sizes(given, facts, item),
        _company(group_BCG, real, (np.exp(generator), np.exp(selection), memory)),
    ]
    if given.query is not None:
        code = GROUPINGS.index("code")
        kinds = _among_matches(given.query, real, group_BCG[..., code], groups[..., code])
        blocks.append(_columns([*_words(given.query), *kinds], item.shape))
    out = np.concatenate(blocks, axis=-1)
    return torch.from_numpy(np.where(np.isfinite(out), out, np.float32(-30.0)))


def _columns(columns: Sequence[NDArray[Any] | float], shape: tuple[int, ...]) -> Floats:
    out = np.empty((*shape, len(columns)), dtype=np.float32)
    for place, column in enumerate(columns):
        out[..., place] = column
    return out


def _weights(seen: NDArray[np.bool_], decay: float) -> Floats:
    """(B, P) weights of the places of a history, summing to 1 where there is any."""
    weight = _decays(seen.shape[1], decay) * seen
    total: Floats = weight.sum(1, keepdims=True)
    return np.divide(weight, np.maximum(total, np.float32(1e-6)), dtype=np.float32)


@functools.cache
def _decays(places: int, decay: float) -> Floats:
    return (decay ** np.arange(places)).astype(np.float32)


def _theirs(table: Tensor, history: NDArray[np.int64]) -> NDArray[np.int64]:
    """(B, P, ..) labels of the items of a history, -1 where there is no item or its label is unknown."""
    label = table.numpy()[np.maximum(history, 0)]
    return np.where((label > 0) & (history >= 0)[:, :, None], label, -1)


def _nearness(given: RefineInput, facts: ItemFacts, item: NDArray[np.int64]) -> list[NDArray[Any]]:
    """Cosines and attributes in common with the near places, whether it was seen, and what kind of request this is."""
    history = given.history_BP.numpy()[:, :NEAR]
    seen = history >= 0
    weight = _weights(seen, DECAY)[:, None]
    own, theirs = (torch.from_numpy(facts.unit_ID.numpy()[rows]) for rows in (item, np.maximum(history, 0)))
    near = torch.bmm(own, theirs.transpose(1, 2)).numpy() * seen[:, None]
    shared = np.zeros_like(near)
    if facts.tokens_IA is not None:
        tokens, known = facts.tokens_IA.numpy()[item], _theirs(facts.tokens_IA, history)
        for column in range(tokens.shape[2]):
            shared += tokens[:, :, None, column] == known[:, None, :, column]
    return [
        near[:, :, 0],
        near.max(-1),
        (near * weight).sum(-1),
        given.seen_BC.numpy(),
        given.search_B.numpy()[:, None],
        (seen.sum(1) / NEAR)[:, None],
        shared[:, :, 0],
        (shared * weight).sum(-1),
    ]


def _sightings(given: RefineInput, item: NDArray[np.int64]) -> list[NDArray[Any]]:
    """Whether the item is among the near places, how often among all, and one over the steps since."""
    same = item[:, :, None] == given.history_BP.numpy()[:, None]
    times = same.sum(-1)
    steps = np.where(times > 0, same.argmax(-1), _NEVER + same.shape[2])
    return [steps < NEAR, np.log1p(times.astype(np.float32)), 1 / (1 + steps.astype(np.float32))]


def _groups(given: RefineInput, facts: ItemFacts, group_BCG: NDArray[np.int64]) -> Floats:
    """(B, C, 2 G): the share of the history in the item's group of each grouping; then whether the last item is in it."""
    history = given.history_BP.numpy()
    theirs_BGP = _theirs(facts.group_IG, history).transpose(0, 2, 1)
    same = group_BCG[..., None] == theirs_BGP[:, None]
    weight_B1P1 = _weights(history >= 0, LONG_DECAY)[:, None, :, None]
    shares = np.matmul(same.astype(np.float32), weight_B1P1)[..., 0]
    return np.concatenate([shares, same[..., 0]], axis=-1)


def _sizes(given: RefineInput, facts: ItemFacts, item: NDArray[np.int64]) -> Floats:
    """(B, C, 4): how far price, then duration, lie from the person's mean, in octaves: with sign, and without."""
    history, sizes = given.history_BP.numpy(), facts.size_I2.numpy()
    own, theirs = sizes[item], sizes[np.maximum(history, 0)]
    known = (history >= 0)[:, :, None] & ~np.isnan(theirs)
    weight = _decays(history.shape[1], LONG_DECAY)[:, None] * known
    total = weight.sum(1)
    usual = (weight * np.where(known, theirs, np.float32(0))).sum(1) / np.maximum(total, np.float32(1e-6))
    gap = np.where((total > 0)[:, None] & ~np.isnan(own), own - usual[:, None], np.float32(0))
    return np.stack([gap, np.abs(gap)], axis=-1).reshape(*item.shape, -1)


def _company(group_BCG: NDArray[np.int64], real: NDArray[np.bool_], opinions: tuple[NDArray[Any], ...]) -> Floats:
    """(B, C, 6): log of what each opinion gives to all candidates of the item's category, then of its first code."""
    columns = [GROUPINGS.index("category"), GROUPINGS.index("code")]
    group = group_BCG[:, :, columns]
    counted = real[:, :, None] & (group > 0)
    span = int(group.max(initial=0)) + 1
    # a number for each request, grouping and group
    key = (np.arange(len(real))[:, None, None] * len(columns) + np.arange(len(columns))) * span + group
    place = np.unique(key, return_inverse=True)[1].reshape(key.shape)
    out = np.empty((*key.shape, len(opinions)), dtype=np.float32)
    for number, opinion in enumerate(opinions):
        # added one by one, so that padding and neighbours in the batch change nothing
        amount = np.where(counted, opinion[:, :, None], 0.0)
        total = np.bincount(place.reshape(-1), weights=amount.reshape(-1))
        out[..., number] = np.log(np.maximum(np.where(counted, total[place], 0.0), _LEAST))
    return out.reshape(*real.shape, -1)


def _words(query: QueryEvidence) -> list[NDArray[Any]]:
    """How the item stands to the query: by its words, by its meaning, and what the history says of it."""
    relevance, coverage = query.relevance_BC.numpy(), query.coverage_BC.numpy()
    return [
        relevance,
        -np.log(np.maximum(query.place_BC.numpy(), 1e-3)),
        relevance > 0,
        coverage,
        coverage.max(1, keepdims=True),
        query.near_BC.numpy(),
        np.log(np.maximum(query.behaviour_BC.numpy(), _HARDLY)),
        query.breadth_B.numpy()[:, None],
    ]


def _among_matches(
    query: QueryEvidence, real: NDArray[np.bool_], code_BC: NDArray[np.int64], share_BC: Floats
) -> list[NDArray[Any]]:
    """Of what the history has in the first codes of the query's matches, the share that an item's own has: which kind of what was asked
    for this person takes, whatever else they like. Matches are the candidates that have as much of the query as the best; 0 for others."""
    coverage = query.coverage_BC.numpy()
    match = real & (coverage > 0) & (coverage >= coverage.max(1, keepdims=True) - _EQUAL)
    request, column = np.nonzero(match)
    first = np.unique(request * (int(code_BC.max(initial=0)) + 1) + code_BC[match], return_index=True)[1]
    # every code counts once, however many items it has
    total = np.bincount(request[first], weights=share_BC[request[first], column[first]], minlength=len(match))[:, None]
    own = np.where(match, share_BC, 0.0)
    said = total > 0
    return [
        own / np.where(said, total, 1.0),
        np.where(said, np.log((own + _FAINT) / (total + _FAINT)), 0.0),
    ]


def _log_rank(score_BC: Floats, real: NDArray[np.bool_]) -> Floats:
    """(B, C) log of one plus each item's place by a score; ties keep their order."""
    order = np.argsort(np.where(real, -score_BC, np.float32(np.inf)), axis=1, kind="stable")
    rank = np.empty(order.shape, dtype=np.float32)
    rank[np.arange(len(order))[:, None], order] = np.arange(order.shape[1])
    return np.log1p(rank)
