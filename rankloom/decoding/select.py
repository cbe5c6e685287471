"""Generate, then select: from the beam's semantic IDs to ordered items (OneRec technical report, reward-model selection).

A semantic ID may name several items. Its probability is shared among them by their prior, so the generator alone
already is a distribution over items: p(item) = p(SID) * p(item | SID). The selection head then scores the generated
items, and only those, and the two are mixed:

    score = mix * log p(item | context) + (1 - mix) * log p_selection(item | generated items)

Shapes: B requests, W beams, C candidate items of a request (padded with -1).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from rankloom.decoding.exposure import Lift
from rankloom.decoding.memory import Guide


@dataclass(frozen=True)
class Weights:
    """How the three opinions are joined; chosen on validation.

    Attributes:
        mix: weight of the generator's log-probability beside the selection head's, 1 is the generator alone.
        memory: share of the behaviour memory in the probability of each code.
        selection_memory: its share in the selection head's distribution over the generated items.
        lift: strength of the shift from the training period's exposure to that of the moment, 0 is none.
        now: weight of the log of how often an item is taken at that moment, beside the two scores.
        refine: 1 where the refiner has the last word, 0 where it has none.
        words: what an item that has all words of a search gains beside the two scores, in nats; less for a part of them.
    """

    mix: float = 0.5
    memory: float = 0.0
    selection_memory: float = 0.0
    lift: float = 0.0
    now: float = 0.0
    refine: float = 0.0
    words: float = 0.0


@dataclass
class Candidates:
    """Generated items of each request.

    Attributes:
        item_BC: catalogue rows, -1 for padding.
        log_prob_BC: log p(item | context) of the generator, -inf for padding.
        beam_BC: the beam that generated each item.
    """

    item_BC: Tensor
    log_prob_BC: Tensor
    beam_BC: Tensor


def leaf_log_share(item_start: Tensor, leaf_items: Tensor, prior_I: Tensor, *, smoothing: float = 1.0) -> Tensor:
    """(n_leaf_items,) log p(item | SID) in the order of `leaf_items`: the item's smoothed share of its leaf's prior."""
    weight = prior_I[leaf_items.long()].double() + smoothing
    sizes = (item_start[1:] - item_start[:-1]).long()
    leaf = torch.repeat_interleave(torch.arange(len(sizes)), sizes)
    total = torch.zeros(len(sizes), dtype=torch.float64).index_add(0, leaf, weight)
    return (weight / total[leaf]).log().float()


def expand(
    leaf_BW: Tensor,
    log_prob_BW: Tensor,
    *,
    item_start: Tensor,
    leaf_items: Tensor,
    log_share: Tensor,
    allowed: Tensor | None = None,
    excluded: list[Tensor] | None = None,
    guide: Guide | None = None,
    lift: Lift | None = None,
) -> Candidates:
    """All items of the generated leaves.

    Args:
        leaf_BW: leaves of the trie, -1 for padding.
        allowed: (I,) or (B, I) bool, the items that pass the filter.
        excluded: per request, items that may not be shown.
        guide: a behaviour memory, which also knows which item of a leaf is meant.
        lift: items of a leaf share its probability as they are taken now, not by `log_share`.
    """
    batch, width = leaf_BW.shape
    leaf = leaf_BW.clamp_min(0).long()
    begin = item_start.long()[leaf]
    size = torch.where(leaf_BW >= 0, item_start.long()[leaf + 1] - begin, 0)
    flat_size = size.reshape(-1)
    total = int(flat_size.sum())
    pair = torch.repeat_interleave(torch.arange(batch * width), flat_size)
    offset = torch.arange(total) - torch.repeat_interleave(flat_size.cumsum(0) - flat_size, flat_size)
    place = begin.reshape(-1)[pair] + offset
    item = leaf_items.long()[place]
    request = pair // width
    share = log_share[place]
    if lift is not None:
        now = lift.item_HI[lift.moment_B[request], item].double().exp()
        whole = torch.zeros(batch * width, dtype=torch.float64).index_add_(0, pair, now)
        share = (now / whole[pair].clamp_min(1e-300)).clamp_min(1e-30).log().float()
    if guide is not None:
        share = guide.mix(share, guide.n_levels + 1, request, leaf.reshape(-1)[pair], item)
    log_prob = log_prob_BW.reshape(-1)[pair] + share
    keep = torch.ones(total, dtype=torch.bool)
    if allowed is not None:
        keep &= allowed[item] if allowed.ndim == 1 else allowed[request, item]
    if excluded is not None and any(len(rows) for rows in excluded):
        span = int(leaf_items.max()) + 1 if len(leaf_items) else 1
        banned = torch.cat([rows.long() + number * span for number, rows in enumerate(excluded)])
        keep &= ~torch.isin(item + request * span, banned)
    item, log_prob, request, beam = item[keep], log_prob[keep], request[keep], (pair % width)[keep]
    counts = torch.bincount(request, minlength=batch)
    columns = max(1, int(counts.max())) if len(counts) else 1
    column = torch.arange(len(item)) - torch.repeat_interleave(counts.cumsum(0) - counts, counts)
    item_BC = torch.full((batch, columns), -1, dtype=torch.long)
    log_prob_BC = torch.full((batch, columns), float("-inf"))
    beam_BC = torch.zeros((batch, columns), dtype=torch.long)
    item_BC[request, column] = item
    log_prob_BC[request, column] = log_prob
    beam_BC[request, column] = beam
    return Candidates(item_BC, log_prob_BC, beam_BC)


def with_memory(select_BC: Tensor, item_BC: Tensor, guide: Guide, share: float) -> Tensor:
    """(B, C) selection log-probabilities over the candidates with a share of the memory's; where it is silent, as they are.

    Args:
        select_BC: selection scores, -inf for padding.
    """
    log_prob_BC = torch.log_softmax(select_BC, dim=-1)
    told_BC, whole_B1 = guide.items(item_BC)
    told_BC = (told_BC / whole_B1.clamp_min(1e-300)).log().float() + math.log(share)
    mixed_BC = torch.logaddexp(log_prob_BC + math.log1p(-share), told_BC)
    return torch.where((whole_B1 > 0) & (item_BC >= 0), mixed_BC, log_prob_BC)


def mix_scores(log_prob_BC: Tensor, select_BC: Tensor | None, mix: float, bonus_BC: Tensor | None = None) -> Tensor:
    """(B, C) final scores as log-probabilities over the candidates; padding stays -inf.

    Args:
        bonus_BC: what is added to the joined scores.
    """
    if select_BC is None:
        scores = log_prob_BC
    else:
        # one scale for both: log-softmax over the candidates shifts a request's scores by a constant only
        scores = mix * torch.log_softmax(log_prob_BC, dim=-1) + (1 - mix) * torch.log_softmax(select_BC, dim=-1)
        scores = torch.where(torch.isinf(log_prob_BC), float("-inf"), scores)
    if bonus_BC is not None:
        scores = scores + bonus_BC
    empty = torch.isinf(scores).all(-1, keepdim=True)
    return torch.where(empty, scores, torch.log_softmax(torch.where(empty, 0.0, scores), dim=-1))


def top_k(candidates: Candidates, scores_BC: Tensor, k: int) -> tuple[Tensor, Tensor, Tensor]:
    """((B, k) items, (B, k) scores, (B, k) beams), best first; ties keep the generator's order; -1 where fewer."""
    width = min(k, scores_BC.shape[1])
    order = torch.sort(scores_BC, dim=1, descending=True, stable=True).indices[:, :width]
    scores = scores_BC.gather(1, order)
    items = torch.where(torch.isinf(scores), -1, candidates.item_BC.gather(1, order))
    beams = candidates.beam_BC.gather(1, order)
    if width < k:
        pad = (0, k - width)
        items = torch.nn.functional.pad(items, pad, value=-1)
        scores = torch.nn.functional.pad(scores, pad, value=float("-inf"))
        beams = torch.nn.functional.pad(beams, pad, value=0)
    return items, scores, beams
