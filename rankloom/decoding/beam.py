"""Exact constrained beam search over semantic IDs.

* the context is computed once per request and never copied per beam; each beam owns only the K/V of its few codes;
* only children that the trie has are ever looked at: they come as one flat list (children.py), are scored, and the best
  legal `beam` of each request survive; there is no codebook-wide top-k;
* filter and exclusions are part of legality (masks.py), so a beam never ends in nothing;
* the score of a SID is the sum over levels of log-softmax over the whole codebook (`normalise="codebook"`) or over the
  children that the unfiltered trie has (`"trie"`);
* ties are broken by trie order; a batch of any mix, beam widths included, gives what each request would get alone.

With a beam as wide as the catalogue this is brute force, which is how it is tested. Where the model sits on a CUDA device the
whole search is one captured graph instead (graph_engine.py), with the same answer.

Shapes: B requests, W beams, L levels, K codes, N living (request, beam) pairs, C children of them, P kept ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rankloom.compiling import Engine, use_compiled, use_graph
from rankloom.decoding.children import Children, Indices, Next, Scores
from rankloom.decoding.exposure import Lift
from rankloom.decoding.masks import RequestMasks
from rankloom.decoding.memory import Guide
from rankloom.decoding.protocol import Generator, steps_of
from rankloom.semantic.offsets import Integers
from rankloom.semantic.trie import Trie

_BLOCKS: Final = 8
"""Parts for every beam that a long list is cut into; the best child of each stands for its part."""


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


@dataclass
class _Scored:
    """The children of a level's beams with their codes, cumulative scores, and which are legal (None: all)."""

    children: Children
    code_C: Integers
    score_C: Scores
    legal_C: NDArray[np.bool_] | None


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
    engine: Engine = "auto",
) -> BeamResult:
    """The `beam` most probable legal semantic IDs of each request.

    Args:
        prefix: what the model's prefill returned for B requests.
        beam: width, one for all requests or one each.
        masks: one entry a request (`MaskIndex.requests`).
        guide: a behaviour memory to interpolate with at every code (memory.py).
        lift: how today's exposure differs from the training period's (exposure.py); each code is normalised again.
        engine: how the children of the trie are scored and cut to the beam; the model has its own (`LazyDecoder.engine`).

    Raises:
        RankloomError: see `use_compiled` and `use_graph`.
    """
    if use_graph(engine, getattr(model, "device", torch.device("cpu")).type):
        from rankloom.decoding import graph_engine

        found_all = graph_engine.answer(
            model, prefix, trie, beam_B=_widths(beam, masks), masks=masks, normalise=normalise, guide=guide, lift=lift
        )
        if found_all is not None:
            return _result(found_all, trie, masks, trace)
    fast = None
    if use_compiled(engine):
        from rankloom.decoding import compiled

        fast = compiled if compiled.serves(trie) else None
    beam_B = _widths(beam, masks)
    batch = len(beam_B)
    node_BW = np.zeros((batch, 1), dtype=np.int64)
    score_BW = np.zeros((batch, 1), dtype=np.float32)
    cache: Any = None
    taken: list[Next] = []
    steps = steps_of(model, prefix)
    for level in range(trie.n_levels):
        logits, cache = steps.step(level, taken[-1].code_BP if taken else None, cache)
        found = None
        if fast is not None:
            found = fast.advance(
                trie, level, node_BW, score_BW, logits, beam_B, masks,
                over_children=normalise == "trie", guide=guide, lift=lift,
            )  # fmt: skip
        if found is None:
            own = torch.from_numpy(logits)
            log_probs = torch.log_softmax(own, dim=-1) if normalise == "codebook" else own
            scored = _continuations(trie, level, node_BW, score_BW, log_probs, masks, normalise, guide, lift)
            found = _best(scored, beam_B)
        taken.append(found)
        node_BW, score_BW = found.node_BP, found.score_BP
        if level + 1 < trie.n_levels:
            cache = steps.reorder(cache, found.parent_BP)
    return _result(taken, trie, masks, trace)


def _widths(beam: int | Sequence[int], masks: RequestMasks) -> Indices:
    """(B,) beams of each request."""
    batch = len(masks.which_B)
    beam_B = np.array([beam] * batch if isinstance(beam, int) else list(beam), dtype=np.int64)
    if len(beam_B) != batch:
        raise ValueError(f"{len(beam_B)} beam widths for {batch} requests")
    if batch and int(beam_B.min()) < 1:
        raise ValueError(f"beam must be at least 1, got {int(beam_B.min())}")
    return beam_B


def _result(taken: list[Next], trie: Trie, masks: RequestMasks, trace: bool) -> BeamResult:
    """What the levels of a search come to."""
    levels: list[LevelTrace] = []
    before_BW = np.zeros((len(masks.which_B), 1), dtype=np.int64)
    for level, found in enumerate(taken if trace else []):
        counts = _n_legal(Children(trie, level, before_BW), masks)
        node, score, parent = (torch.from_numpy(own) for own in (found.node_BP, found.score_BP, found.parent_BP))
        levels.append(LevelTrace(node, score, parent, torch.from_numpy(counts)))
        before_BW = found.node_BP
    last = taken[-1]
    codes_BWL = torch.from_numpy(_spelled(taken))
    return BeamResult(torch.from_numpy(last.node_BP), codes_BWL, torch.from_numpy(last.score_BP), levels)


def _spelled(taken: list[Next]) -> Indices:
    """(B, W, L) the codes that led to the last level's beams, -1 for padding."""
    node_BW = taken[-1].node_BP
    batch, width = node_BW.shape
    codes_LBW = np.empty((len(taken), batch, width), dtype=np.int64)
    first_B1 = np.arange(batch)[:, None]
    own_BW: Indices | None = None
    for level in reversed(range(len(taken))):
        step = taken[level]
        if own_BW is None:
            codes_LBW[level], own_BW = step.code_BP, step.parent_BP
        else:
            at = own_BW + first_B1 * step.node_BP.shape[1]
            codes_LBW[level], own_BW = step.code_BP.take(at), step.parent_BP.take(at)
    codes_LBW[:, node_BW < 0] = -1
    return codes_LBW.transpose(1, 2, 0)


def _continuations(
    trie: Trie,
    level: int,
    node_BW: Indices,
    score_BW: Scores,
    log_probs_BWK: Tensor,
    masks: RequestMasks,
    normalise: str,
    guide: Guide | None,
    lift: Lift | None,
) -> _Scored:
    """All children of the beams of a level."""
    children = Children(trie, level, node_BW)
    code_C = children.codes()
    own_C = _at_codes(log_probs_BWK, children, code_C)
    if normalise == "trie":
        own_C = _normalised(own_C, children)
    if guide is not None:
        guide.mix_children(own_C, children)
    if lift is not None:
        request = torch.from_numpy(children.spread(children.request_N))
        own_C += lift.of(level + 1, request, torch.from_numpy(children.nodes())).numpy()
        own_C = _normalised(own_C, children)
    own_C += children.spread(score_BW.reshape(-1)[children.pair_N])
    return _Scored(children, code_C, own_C, masks.legal(children))


def _at_codes(log_probs_BWK: Tensor, children: Children, code_C: Integers) -> Scores:
    """(C,) each child's own log-probability; a copy."""
    # indices half as wide are read twice as fast
    kind = np.int32 if log_probs_BWK.numel() <= np.iinfo(np.int32).max else np.int64
    row = children.spread((children.pair_N * log_probs_BWK.shape[-1]).astype(kind))
    place = torch.from_numpy(np.add(row, code_C, dtype=kind))
    own: Scores = log_probs_BWK.reshape(-1).index_select(0, place).numpy()
    return own


def _normalised(log_prob_C: Scores, children: Children) -> Scores:
    """Log-softmax over the trie's children of each parent, before any mask."""
    if not children.total:
        return log_prob_C
    shifted = log_prob_C - children.spread(np.maximum.reduceat(log_prob_C, children.first_N))
    total_N = np.add.reduceat(np.exp(shifted), children.first_N)
    out: Scores = shifted - children.spread(np.log(total_N))
    return out


def _best(scored: _Scored, beam_B: Indices) -> Next:
    """The best `beam_B[b]` legal children of each request; ties by trie order."""
    children, score_C, legal_C = scored.children, scored.score_C, scored.legal_C
    kept = _cut(children, score_C if legal_C is None else np.where(legal_C, score_C, -np.inf), beam_B)
    if legal_C is not None:
        kept = kept[legal_C[kept]]
    owner = children.owner(kept)
    request = children.request_N[owner]
    node = children.begin_N[owner] + kept - children.first_N[owner]
    score = score_C[kept]
    order = np.lexsort((node, -score, request))
    counts = np.bincount(request, minlength=len(beam_B))
    column = np.arange(len(kept)) - np.repeat(counts.cumsum() - counts, counts)
    inside = column < beam_B[request[order]]
    order = order[inside]
    at = (request[order], column[inside])
    parent = children.pair_N[owner[order]] % children.width
    shape = (len(beam_B), max(1, int(np.minimum(counts, beam_B).max(initial=0))))
    values = ((node[order], -1), (parent, 0), (scored.code_C[kept[order]], 0), (score[order], -np.inf))
    return Next(*(_filled(shape, at, value, padding) for value, padding in values))


def _filled(shape: tuple[int, int], at: tuple[Indices, Indices], value_P: NDArray[Any], padding: float) -> NDArray[Any]:
    """(B, P) values at their places."""
    out = np.full(shape, padding, dtype=np.float32 if value_P.dtype.kind == "f" else np.int64)
    out[at] = value_P
    return out


def _cut(children: Children, score_C: Scores, beam_B: Indices) -> Indices:
    """Places in the list that hold every request's best `beam_B[b]` children and few others."""
    counts_B, widest = children.counts(), int(beam_B.max(initial=0))
    longest = int(counts_B.max(initial=0))
    if longest <= 4 * widest:
        return np.arange(len(score_C))
    if len(beam_B) == 1:
        return np.flatnonzero(score_C >= _bound(score_C, widest))
    column = np.arange(len(score_C)) - np.repeat(counts_B.cumsum() - counts_B, counts_B)
    request = np.repeat(np.arange(len(beam_B)), counts_B)
    padded = torch.full((len(beam_B), longest), float("-inf"))
    padded[torch.from_numpy(request), torch.from_numpy(column)] = torch.from_numpy(score_C)
    best = padded.topk(widest, dim=1).values
    floor = best.gather(1, torch.from_numpy(beam_B)[:, None] - 1)[:, 0].numpy()
    return np.flatnonzero(score_C >= floor[request])


def _bound(score_C: Scores, width: int) -> float:
    """At most the `width`-th largest score, and hardly less."""
    size = len(score_C) // (_BLOCKS * width)
    if size > 1:
        # `width` parts have a child that is as good
        blocks = len(score_C) // size
        score_C = score_C[: blocks * size].reshape(size, blocks).max(axis=0)
    return float(torch.from_numpy(score_C).topk(width).values[-1])


def _n_legal(children: Children, masks: RequestMasks) -> Indices:
    """(B,) legal continuations of each request."""
    legal_C = masks.legal(children)
    if legal_C is None:
        return children.counts()
    request = children.spread(children.request_N)
    return np.bincount(request[legal_C], minlength=children.batch)
