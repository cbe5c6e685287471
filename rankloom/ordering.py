"""From what was generated to an order of it: generator, selection head, memory, words and refiner, joined.

Shapes: B requests, C generated items, -1 and -inf for padding.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from rankloom.decoding.beam import BeamResult
from rankloom.decoding.choices import BroadOrder
from rankloom.decoding.memory import Guide
from rankloom.decoding.refine import Refiner
from rankloom.decoding.refine_features import ItemFacts, QueryEvidence, RefineInput, features
from rankloom.decoding.select import Candidates, Weights, mix_scores, with_memory


@dataclass
class Generated:
    """What one decoding gave, before its items are ordered.

    Attributes:
        refiner: the one that orders requests of this kind, None without one.
        select_BC: the selection head's scores; None where it is off.
        guide: what the memory says.
        now_BC: log of how often items are taken at the moment; None where the model does not know.
        query: what the words say; None on the feed.
        given: what the refiner's features are made of; None without a selection head.
        facts: of the catalogue, for the same.
    """

    refiner: Refiner | None
    beams: BeamResult
    candidates: Candidates
    select_BC: Tensor | None
    guide: Guide | None
    now_BC: Tensor | None
    query: QueryEvidence | None
    given: RefineInput | None
    facts: ItemFacts

    @cached_property
    def feature_BCF(self) -> Tensor:
        """(B, C, F) what the refiner reads; only where something is `given`."""
        assert self.given is not None
        return features(self.given, self.facts)


@torch.no_grad()
def scores(generated: Generated, weights: Weights) -> Tensor:
    """(B, C) final scores of the generated items."""
    candidates, select = generated.candidates, generated.select_BC
    if select is not None and generated.guide is not None and weights.selection_memory > 0:
        select = with_memory(select, candidates.item_BC, generated.guide, weights.selection_memory)
    bonus = None if generated.now_BC is None or not weights.now else weights.now * generated.now_BC
    if generated.query is not None and (weights.words or weights.untried):
        words_BC = _of_words(generated.query, weights)
        bonus = words_BC if bonus is None else bonus + words_BC
    own = mix_scores(candidates.log_prob_BC, select if weights.mix < 1 else None, weights.mix, bonus)
    if generated.refiner is not None and weights.refine and generated.given is not None:
        own = own + weights.refine * generated.refiner(generated.feature_BCF)
    return own


@torch.no_grad()
def parts(generated: Generated, weights: Weights) -> dict[str, Tensor]:
    """(B, C) the parts that `scores` adds up, by name; they differ from it by a number a request."""
    candidates, select = generated.candidates, generated.select_BC
    mix = weights.mix if select is not None else 1.0
    own = {"generator": mix * torch.log_softmax(candidates.log_prob_BC, dim=-1)} if mix > 0 else {}
    if select is not None and mix < 1:
        if generated.guide is not None and weights.selection_memory > 0:
            select = with_memory(select, candidates.item_BC, generated.guide, weights.selection_memory)
        own["selection"] = (1 - mix) * torch.log_softmax(select, dim=-1)
    if generated.now_BC is not None and weights.now:
        own["taken now"] = weights.now * generated.now_BC
    if generated.query is not None and (weights.words or weights.untried):
        own["words"] = _of_words(generated.query, weights)
    if generated.refiner is not None and weights.refine and generated.given is not None:
        own["refiner"] = weights.refine * generated.refiner(generated.feature_BCF)
    return own


def as_broad(generated: Generated, weights: Weights, broad: BroadOrder) -> tuple[Generated, Weights]:
    """What orders a broad search: all as for any other, and the refiner of broad ones."""
    return replace(generated, refiner=broad.refiner), replace(weights, refine=1.0)


def scores_by_breadth(generated: Generated, weights: Weights, broad: BroadOrder) -> Tensor:
    """(B, C) final scores of searches; on those of broad ones their own refiner has the last word."""
    assert generated.query is not None
    broad_B = generated.query.breadth_B >= broad.least
    if not broad_B.any():
        return scores(generated, weights)
    own = scores(*as_broad(generated, weights, broad))
    return own if broad_B.all() else torch.where(broad_B[:, None], own, scores(generated, weights))


def ndcgs(generated: Generated, grid: Sequence[Weights], target_B: Tensor) -> list[float]:
    """Summed NDCG@10 of the targets under weights that share one decoding: `scores` without the refiner and without what does
    not change the order, each part computed once."""
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
        if generated.query is not None and (weights.words or weights.untried):
            score = score + _of_words(generated.query, weights)
        score = score.masked_fill(padding, float("-inf"))
        mine = score.gather(1, column[:, None])
        # ties keep the generator's order
        rank = ((score > mine) | ((score == mine) & before)).sum(1)
        out.append(float(torch.where(found & (rank < 10), 1 / torch.log2(rank + 2.0), 0.0).sum()))
    return out


def _of_words(query: QueryEvidence, weights: Weights) -> Tensor:
    """(B, C) what the items gain by having words of the query."""
    return weights.words * query.coverage_BC + weights.untried * query.untried_BC
