"""Exact constrained beam search over semantic IDs.

* the context is computed once per request and never copied per beam; each beam owns only the K/V of its few codes;
* only legal children are ever looked at: they are gathered from the trie as ragged lists, scored, and the best `beam` of
  each request survive (one sort over all pairs of a batch); there is no codebook-wide top-k and no illegal candidate;
* filter and exclusions are part of legality (masks.py), so a beam never ends in nothing;
* the score of a SID is the sum over levels of log-softmax over the whole codebook (`normalise="codebook"`) or over the
  children that the unfiltered trie has (`"trie"`);
* ties are broken by trie order; a batch of any mix, beam widths included, gives what each request would get alone.

With a beam as wide as the catalogue this is brute force, which is how it is tested.

Shapes: B requests, W beams, L levels, P legal (request, beam, child) triples of a level.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from rankloom.decoding.exposure import Lift
from rankloom.decoding.masks import RequestMasks
from rankloom.decoding.memory import Guide
from rankloom.decoding.protocol import Generator
from rankloom.semantic.trie import Trie


@dataclass
class LevelTrace:
    """The beam after one level: (B, W) nodes of the trie (-1 padding), log-probabilities, parents, legal continuations."""

    node_BW: Tensor
    log_prob_BW: Tensor
    parent_BW: Tensor
    n_legal_B: Tensor


@dataclass
class BeamResult:
    """Finished beams, best first.

    Attributes:
        leaf_BW: leaves of the trie, -1 where a request has fewer.
        codes_BWL: their semantic IDs, -1 for padding.
        log_prob_BW: -inf for padding.
        levels: one `LevelTrace` a level when asked for.
    """

    leaf_BW: Tensor
    codes_BWL: Tensor
    log_prob_BW: Tensor
    levels: list[LevelTrace] = field(default_factory=list)


@torch.no_grad()
def beam_search(
    model: Generator,
    prefix: Any,
    trie: Trie,
    *,
    beam: int | Sequence[int],
    masks: RequestMasks,
    normalise: Literal["codebook", "trie"] = "codebook",
    guide: Guide | None = None,
    lift: Lift | None = None,
    trace: bool = False,
) -> BeamResult:
    """The `beam` most probable legal semantic IDs of each request.

    Args:
        prefix: what the model's prefill returned for B requests.
        beam: width, one for all requests or one each.
        masks: one entry a request (`MaskIndex.requests`).
        guide: a behaviour memory to interpolate with at every code (memory.py).
        lift: how today's exposure differs from the training period's (exposure.py); each code is normalised again.
    """
    batch = len(masks.which_B)
    beam_B = torch.tensor([beam] * batch if isinstance(beam, int) else list(beam), dtype=torch.long)
    if len(beam_B) != batch:
        raise ValueError(f"{len(beam_B)} beam widths for {batch} requests")
    if batch and int(beam_B.min()) < 1:
        raise ValueError(f"beam must be at least 1, got {int(beam_B.min())}")
    node_BW = torch.zeros(batch, 1, dtype=torch.long)
    score_BW = torch.zeros(batch, 1)
    codes_BWL = torch.zeros(batch, 1, 0, dtype=torch.long)
    cache: Any = None
    levels: list[LevelTrace] = []
    for level in range(trie.n_levels):
        chosen = None if level == 0 else codes_BWL[:, :, -1].clamp_min(0)
        logits, cache = model.step(prefix, level, chosen, cache)
        log_probs = logits.float()
        if normalise == "codebook":
            log_probs = torch.log_softmax(log_probs, dim=-1)
        request, parent, child, code, score = _continuations(
            trie, level, node_BW, score_BW, log_probs, masks, normalise, guide, lift
        )
        kept, column, counts = _best(request, child, score, beam_B)
        width = max(1, int(counts.max())) if batch else 1
        rows = request[kept]
        new_node = torch.full((batch, width), -1, dtype=torch.long)
        new_score = torch.full((batch, width), float("-inf"))
        new_parent = torch.zeros(batch, width, dtype=torch.long)
        new_code = torch.full((batch, width), -1, dtype=torch.long)
        new_node[rows, column] = child[kept]
        new_score[rows, column] = score[kept]
        new_parent[rows, column] = parent[kept]
        new_code[rows, column] = code[kept]
        codes_BWL = torch.cat(
            [codes_BWL.gather(1, new_parent[:, :, None].expand(-1, -1, level)), new_code[:, :, None]], dim=2
        )
        codes_BWL = torch.where(new_node[:, :, None] >= 0, codes_BWL, -1)
        node_BW, score_BW = new_node, new_score
        if level + 1 < trie.n_levels:
            cache = model.reorder(cache, new_parent)
        if trace:
            levels.append(LevelTrace(node_BW, score_BW, new_parent, torch.bincount(request, minlength=batch)))
    return BeamResult(node_BW, codes_BWL, score_BW, levels)


def _continuations(
    trie: Trie,
    level: int,
    node_BW: Tensor,
    score_BW: Tensor,
    log_probs_BWK: Tensor,
    masks: RequestMasks,
    normalise: str,
    guide: Guide | None,
    lift: Lift | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """All legal triples of a level: (P,) request, parent beam, child node, code, cumulative score."""
    batch, width = node_BW.shape
    alive = (node_BW >= 0).reshape(-1)
    node = node_BW.reshape(-1).clamp_min(0)
    begin = trie.child_start[level][node]
    fan_out = torch.where(alive, trie.child_start[level][node + 1] - begin, 0)
    pair = torch.repeat_interleave(torch.arange(batch * width), fan_out)
    offset = torch.arange(len(pair)) - torch.repeat_interleave(fan_out.cumsum(0) - fan_out, fan_out)
    child = begin[pair] + offset
    request = pair // width
    code = trie.child_code[level][child]
    own = log_probs_BWK.reshape(batch * width, -1)[pair, code]
    if normalise == "trie":
        own = _normalised(own, pair, batch * width)
    if guide is not None:
        own = guide.mix(own, level + 1, request, node[pair], child)
    if lift is not None:
        own = _normalised(own + lift.of(level + 1, request, child), pair, batch * width)
    legal = masks.open(level + 1, request, child)
    pair, request, child, code, own = pair[legal], request[legal], child[legal], code[legal], own[legal]
    return request, pair % width, child, code, score_BW.reshape(-1)[pair] + own


def _normalised(log_prob: Tensor, pair: Tensor, n_pairs: int) -> Tensor:
    """Log-softmax over the trie's children of each parent, before any mask."""
    peak = torch.full((n_pairs,), float("-inf")).scatter_reduce(0, pair, log_prob, "amax")
    total = torch.zeros(n_pairs).index_add(0, pair, (log_prob - peak[pair]).exp())
    return log_prob - peak[pair] - total[pair].log()


def _best(request: Tensor, child: Tensor, score: Tensor, beam_B: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Indices of the best `beam_B[b]` triples of each request, their column, and how many each request has."""
    batch = len(beam_B)
    counts = torch.bincount(request, minlength=batch)
    if len(score) and int(counts.max()) > 4 * int(beam_B.max()):
        # a first cut by a padded top-k keeps the exact sort small
        width = int(counts.max())
        column = torch.arange(len(score)) - torch.repeat_interleave(counts.cumsum(0) - counts, counts)
        padded = torch.full((batch, width), float("-inf"))
        padded[request, column] = score
        best = padded.topk(min(int(beam_B.max()), width), dim=1).values
        floor = best.gather(1, beam_B[:, None] - 1)[:, 0]
        kept = torch.nonzero(score >= floor[request])[:, 0]
    else:
        kept = torch.arange(len(score))
    # stable sorts, last key first: trie order, then score, then request
    kept = kept[torch.sort(child[kept], stable=True).indices]
    kept = kept[torch.sort(score[kept], descending=True, stable=True).indices]
    kept = kept[torch.sort(request[kept], stable=True).indices]
    counts = torch.bincount(request[kept], minlength=batch)
    column = torch.arange(len(kept)) - torch.repeat_interleave(counts.cumsum(0) - counts, counts)
    inside = column < beam_B[request[kept]]
    return kept[inside], column[inside], torch.minimum(counts, beam_B)
