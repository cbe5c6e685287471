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

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rankloom.decoding.children import Children, Indices
from rankloom.decoding.exposure import Lift
from rankloom.decoding.memory import Guide
from rankloom.semantic.trie import Trie


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
        untried: the same for words that no search of the log has had, of which nothing else was learned.
    """

    mix: float = 0.5
    memory: float = 0.0
    selection_memory: float = 0.0
    lift: float = 0.0
    now: float = 0.0
    refine: float = 0.0
    words: float = 0.0
    untried: float = 0.0


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


def leaf_log_share(trie: Trie, prior_I: Tensor, *, smoothing: float = 1.0) -> Tensor:
    """(n_leaf_items,) log p(item | SID) in the order of `leaf_items`: the item's smoothed share of its leaf's prior."""
    weight = prior_I.numpy()[trie.leaf_items.numpy()].astype(np.float64) + smoothing
    _, size = trie.places_of(np.arange(trie.n_leaves))
    total = np.repeat(trie.sums(weight)[-1], size)
    return torch.from_numpy(np.log(weight / total).astype(np.float32))


def expand(
    leaf_BW: Tensor,
    log_prob_BW: Tensor,
    *,
    trie: Trie,
    log_share: Tensor,
    allowed: Tensor | None = None,
    excluded: list[Tensor] | None = None,
    guide: Guide | None = None,
    lift: Lift | None = None,
) -> Candidates:
    """All items of the generated leaves.

    Args:
        leaf_BW: leaves of the trie, -1 for padding.
        log_share: what `leaf_log_share` gave.
        allowed: (I,) or (B, I) bool, the items that pass the filter.
        excluded: per request, items that may not be shown.
        guide: a behaviour memory, which also knows which item of a leaf is meant.
        lift: items of a leaf share its probability as they are taken now, not by `log_share`.
    """
    found = Children(trie, trie.n_levels, leaf_BW.numpy())
    place = found.nodes()
    item = trie.leaf_items.numpy()[place].astype(np.int64)
    request, pair = found.spread(found.request_N), found.spread(found.pair_N)
    share = log_share.numpy()[place]
    if lift is not None:
        share = _lifted(lift, request, pair, item)
    if guide is not None:
        leaf = found.spread(found.node_N)
        given = [torch.from_numpy(own) for own in (request, leaf, item)]
        share = guide.mix(torch.from_numpy(share), guide.n_levels + 1, *given).numpy()
    log_prob = log_prob_BW.numpy().reshape(-1)[pair] + share
    keep = np.ones(len(item), dtype=np.bool_)
    if allowed is not None:
        keep &= allowed.numpy()[item] if allowed.ndim == 1 else allowed.numpy()[request, item]
    if excluded is not None and any(len(rows) for rows in excluded):
        span = 1 + max(int(item.max(initial=0)), *(int(rows.max()) for rows in excluded if len(rows)))
        banned = np.sort(np.concatenate([rows.numpy() + number * span for number, rows in enumerate(excluded)]))
        asked = item + request * span
        keep &= banned[np.minimum(banned.searchsorted(asked), len(banned) - 1)] != asked
    if not keep.all():
        item, log_prob, request, pair = item[keep], log_prob[keep], request[keep], pair[keep]
    batch, width = leaf_BW.shape
    counts = np.bincount(request, minlength=batch)
    shape = (batch, max(1, int(counts.max(initial=0))))
    at = (request, np.arange(len(item)) - np.repeat(counts.cumsum() - counts, counts))
    item_BC, beam_BC = np.full(shape, -1, dtype=np.int64), np.zeros(shape, dtype=np.int64)
    log_prob_BC = np.full(shape, -np.inf, dtype=np.float32)
    item_BC[at], beam_BC[at], log_prob_BC[at] = item, pair % width, log_prob
    return Candidates(torch.from_numpy(item_BC), torch.from_numpy(log_prob_BC), torch.from_numpy(beam_BC))


def _lifted(lift: Lift, request: Indices, pair: Indices, item: Indices) -> NDArray[np.float32]:
    """Log of each item's share of its leaf as the items are taken now."""
    now = np.exp(lift.item_HI.numpy()[lift.moment_B.numpy()[request], item].astype(np.float64))
    whole = np.bincount(pair, weights=now)
    share: NDArray[np.float32] = np.log((now / whole[pair].clip(1e-300)).clip(1e-30)).astype(np.float32)
    return share


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
