"""What the refiner reads of each generated item, beside what generator and selection head say of it.

Four kinds of evidence: the scores and their ranks; what the memory says, of the item and of its neighbours among the
candidates (items of its category, items that share its first code); how the item stands in the catalogue now (taken how
often, how old); and how it relates to the person's history (how near, how much in common, how far from the usual price,
seen when).

Shapes: B requests, C generated items, P latest items of the history, F features, I catalogue rows, G groupings.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray
from torch import Tensor

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
)  # fmt: skip
"""What is read beside them when somebody searches."""
_SILENT: Final = -9.0
_NEVER: Final = 200
_LEAST: Final = 1e-4


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
        near_BC: cosine of query and item.
        behaviour_BC: amount of the behaviour memory, which the memory of a search has taken in.
    """

    relevance_BC: Tensor
    coverage_BC: Tensor
    place_BC: Tensor
    near_BC: Tensor
    behaviour_BC: Tensor


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
    """(B, C, F) float32 in the order of `FEATURES`, and of `SEARCH_FEATURES` for searches; anything for padding."""
    real = given.item_BC >= 0
    item = given.item_BC.clamp_min(0)
    generator = torch.log_softmax(given.log_prob_BC, dim=-1)
    selection = torch.log_softmax(given.select_BC, dim=-1)
    nothing = torch.zeros_like(generator)
    memory = nothing if given.memory_BC is None else given.memory_BC
    count = facts.count_I[item]
    age = nothing if given.age_BC is None else torch.nan_to_num(given.age_BC, nan=0.0).clamp(0, 90)
    columns = [
        generator,
        selection,
        _log_rank(generator, real),
        _log_rank(selection, real),
        nothing if given.memory_BC is None else memory.clamp_min(np.exp(_SILENT)).log(),
        nothing if given.now_BC is None else given.now_BC,
        (count + 1).log(),
        count == 0,
        facts.watched_I[item],
        torch.log1p(age.float()),
        age / 30,
        *_nearness(given, facts, item),
        nothing if given.told_B is None else torch.log1p(given.told_B)[:, None].expand_as(generator),
        *_sightings(given, item),
        *_groups(given, facts, item),
        *_sizes(given, facts, item),
        *_company(facts.group_IG[item], real, (generator.exp(), selection.exp(), memory)),
        *([] if given.query is None else _words(given.query)),
    ]
    out = torch.stack([column.float() for column in columns], dim=-1)
    return torch.where(torch.isfinite(out), out, -30.0)


def _weights(seen: Tensor, decay: float) -> Tensor:
    """(B, P) weights of the places of a history, summing to 1 where there is any."""
    weight = decay ** torch.arange(seen.shape[1]) * seen
    return weight / weight.sum(1, keepdim=True).clamp_min(1e-6)


def _nearness(given: RefineInput, facts: ItemFacts, item: Tensor) -> list[Tensor]:
    """Cosines and attributes in common with the near places, whether it was seen, and what kind of request this is."""
    history = given.history_BP[:, :NEAR]
    seen, history = history >= 0, history.clamp_min(0)
    weight = _weights(seen, DECAY)[:, None]
    near = torch.einsum("bcd,bpd->bcp", facts.unit_ID[item], facts.unit_ID[history]) * seen[:, None]
    shared = torch.zeros_like(near)
    if facts.tokens_IA is not None:
        for column in range(facts.tokens_IA.shape[1]):
            own, theirs = facts.tokens_IA[item, column], facts.tokens_IA[history, column]
            shared = shared + ((own[:, :, None] == theirs[:, None]) & (own > 0)[:, :, None]) * seen[:, None]
    return [
        near[:, :, 0],
        near.amax(-1),
        (near * weight).sum(-1),
        given.seen_BC,
        given.search_B[:, None].expand_as(item),
        (seen.sum(1).float() / NEAR)[:, None].expand_as(item),
        shared[:, :, 0],
        (shared * weight).sum(-1),
    ]


def _sightings(given: RefineInput, item: Tensor) -> list[Tensor]:
    """Whether the item is among the near places, how often among all, and one over the steps since."""
    same = (item[:, :, None] == given.history_BP[:, None]) & (given.history_BP >= 0)[:, None]
    places = torch.arange(same.shape[2])
    steps = torch.where(same, places, _NEVER + len(places)).amin(-1)
    return [same[:, :, :NEAR].any(-1), torch.log1p(same.sum(-1).float()), 1 / (1 + steps.float())]


def _groups(given: RefineInput, facts: ItemFacts, item: Tensor) -> list[Tensor]:
    """Per grouping the share of the history in the item's group; then whether the last item is in it."""
    seen, history = given.history_BP >= 0, given.history_BP.clamp_min(0)
    weight = _weights(seen, LONG_DECAY)[:, None]
    shares, last = [], []
    for column in range(facts.group_IG.shape[1]):
        own, theirs = facts.group_IG[item, column], facts.group_IG[history, column]
        same = (own[:, :, None] == theirs[:, None]) & (own > 0)[:, :, None] & seen[:, None]
        shares.append((same * weight).sum(-1))
        last.append(same[:, :, 0])
    return shares + last


def _sizes(given: RefineInput, facts: ItemFacts, item: Tensor) -> list[Tensor]:
    """How far price and duration lie from the person's mean, in octaves: with sign, and without."""
    seen, history = given.history_BP >= 0, given.history_BP.clamp_min(0)
    out = []
    for column in range(facts.size_I2.shape[1]):
        own, theirs = facts.size_I2[item, column], facts.size_I2[history, column]
        weight = LONG_DECAY ** torch.arange(seen.shape[1]) * (seen & ~torch.isnan(theirs))
        total = weight.sum(1, keepdim=True)
        usual = (weight * torch.nan_to_num(theirs)).sum(1, keepdim=True) / total.clamp_min(1e-6)
        gap = torch.where((total > 0) & ~torch.isnan(own), torch.nan_to_num(own) - usual, 0.0)
        out += [gap, gap.abs()]
    return out


def _company(group_BCG: Tensor, real: Tensor, opinions: tuple[Tensor, ...]) -> list[Tensor]:
    """Log of what each opinion gives to all candidates of the item's category, then of its first code."""
    request = torch.arange(len(real))[:, None]
    out = []
    for column in (GROUPINGS.index("category"), GROUPINGS.index("code")):
        group = group_BCG[:, :, column]
        span = int(group.max()) + 1 if group.numel() else 1
        keys, place = torch.unique(request * span + group, return_inverse=True)
        counted = real & (group > 0)
        for opinion in opinions:
            amount = torch.where(counted, opinion, 0.0).double()
            # added one by one, so that padding and neighbours in the batch change nothing
            total = torch.zeros(len(keys), dtype=torch.float64).index_add(0, place.reshape(-1), amount.reshape(-1))
            out.append(torch.where(counted, total[place], 0.0).clamp_min(_LEAST).log())
    return out


def _words(query: QueryEvidence) -> list[Tensor]:
    """How the item stands to the query: by its words, by its meaning, and what the history says of it."""
    return [
        query.relevance_BC,
        -query.place_BC.clamp_min(1e-3).log(),
        query.relevance_BC > 0,
        query.coverage_BC,
        query.coverage_BC.amax(1, keepdim=True).expand_as(query.coverage_BC),
        query.near_BC,
        query.behaviour_BC.clamp_min(np.exp(_SILENT)).log(),
    ]


def _log_rank(score: Tensor, real: Tensor) -> Tensor:
    ordered = torch.where(real, score, float("-inf")).sort(dim=1, descending=True, stable=True).indices
    rank = torch.empty_like(ordered).scatter_(1, ordered, torch.arange(score.shape[1]).expand_as(ordered))
    return torch.log1p(rank.float())
