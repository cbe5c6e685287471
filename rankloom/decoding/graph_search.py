"""The whole constrained beam search as a pure function of tensors: what a CUDA graph captures, and what runs on the CPU too.

It gives what `beam_search` gives (beam.py, the eager twin), under the rules of a captured graph: every shape is known before
it starts, the number of steps is the number of levels, and nothing asks for a value (no `.item()`, no `nonzero`, no copy
from or to the host).

* the children of a beam are a window of the trie (device_trie.py), masked beyond the beam's own;
* filters are a table of open nodes per filter, exclusions a sorted list of closed nodes per request and level: the same
  legality that masks.py works out, so that no beam ends in nothing;
* the behaviour memory and the lift of exposure are added to the codes' log-probabilities as memory.py and exposure.py do;
* the best are chosen by one whole number per child, score first and node second, so that ties go to the first in the trie
  and no two children are equal;
* a batch of any mix is padded: a request's beams beyond its own width do not live.

Shapes: B requests, W beams, K codes, F places of a window, C = W * F, P beams of the next level, X closed nodes, M named
nodes, S filters, H moments, n_l nodes at depth l.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final, Protocol

import torch
from torch import Tensor

from rankloom.decoding.device_trie import DeviceTrie
from rankloom.decoding.memory import EVIDENCE

NOTHING: Final = 2**62
"""Pads ascending lists of nodes."""
_ILLEGAL: Final = -(2**63)
_HIGH: Final = 2**32
_LOW: Final = 2**32 - 1


class TensorSteps(Protocol):
    """A generator's part of the search. `state` is opaque; nothing here may ask for a value."""

    def begin(self) -> tuple[Tensor, Any]:
        """(B, 1, K) float32 logits of the first code, and the state after BOS."""
        ...

    def step(self, level: int, code_BW: Tensor, parent_BW: Tensor, state: Any) -> tuple[Tensor, Any]:
        """(B, W, K) float32 logits of the code at `level`, and the next state.

        Args:
            code_BW: the codes chosen at `level - 1`.
            parent_BW: which of the beams before each of them continues.
        """
        ...


@dataclass(frozen=True)
class Remembered:
    """A `Guide` as tensors: per depth 1..L the (B, M) nodes that it names, ascending, and (B, M) float64 amounts; then (B,) all
    that each history brings to mind, and the () float64 share."""

    named: tuple[Tensor, ...]
    amount: tuple[Tensor, ...]
    whole_B: Tensor
    share: Tensor


@dataclass(frozen=True)
class Asked:
    """What a batch asks of a search, beside its contexts.

    Attributes:
        beam_B: beams of each request; 0 for one that only fills the batch.
        slot_B: which row of `open` is a request's filter.
        open: per depth 1..L, (S, n_l) bool, or None where nobody filters.
        closed: per depth 1..L, (B, X) nodes that exclusions have emptied, ascending, `NOTHING` behind; or None.
        memory: see `Remembered`.
        moment_B, lift: per depth 1..L, (H, n_l) float32 what is added, and which row is a request's; or None.
    """

    beam_B: Tensor
    slot_B: Tensor | None = None
    open: tuple[Tensor, ...] | None = None
    closed: tuple[Tensor, ...] | None = None
    memory: Remembered | None = None
    moment_B: Tensor | None = None
    lift: tuple[Tensor, ...] | None = None


@dataclass(frozen=True)
class Level:
    """(B, P) beams after a level, best first: nodes (-1 where there are fewer), the beams that they continue, codes (both 0
    there) and log-probabilities (-inf there; NaN where logits are no numbers)."""

    node_BP: Tensor
    parent_BP: Tensor
    code_BP: Tensor
    score_BP: Tensor


def search(steps: TensorSteps, trie: DeviceTrie, asked: Asked, *, width: int, over_children: bool) -> list[Level]:
    """All levels of the search.

    Args:
        width: beams that any request may have.
        over_children: normalise over the trie's children and not over the codebook.
    """
    logits, state = steps.begin()
    batch, device = len(asked.beam_B), asked.beam_B.device
    node = torch.zeros(batch, 1, dtype=torch.long, device=device)
    score = torch.zeros(batch, 1, device=device)
    whole = None if asked.memory is None else asked.memory.whole_B[:, None]
    levels: list[Level] = []
    for level in range(trie.n_levels):
        if levels:
            logits, state = steps.step(level, levels[-1].code_BP, levels[-1].parent_BP, state)
        found, whole = _extend(trie, asked, level, logits, node, score, whole, width, over_children)
        levels.append(found)
        node, score = found.node_BP, found.score_BP
    return levels


def _extend(
    trie: DeviceTrie, asked: Asked, level: int, logits_BWK: Tensor, node_BW: Tensor, score_BW: Tensor, whole_BW: Tensor | None,
    width: int, over_children: bool,
) -> tuple[Level, Tensor | None]:  # fmt: skip
    """The best legal continuations, and what the memory has below each of them."""
    child, exists = _children(trie, level, node_BW)
    code = trie.code[level][child].long()
    if over_children:
        own = _over_children(logits_BWK.gather(2, code), exists)
    else:
        own = torch.log_softmax(logits_BWK, dim=-1).gather(2, code)
    part = None
    if asked.memory is not None and whole_BW is not None:
        own, part = _remember(asked.memory, level, own, child, whole_BW)
    if asked.lift is not None and asked.moment_B is not None:
        table = asked.lift[level]
        shift = table.view(-1)[asked.moment_B[:, None, None] * table.shape[1] + child]
        own = _over_children(own + shift, exists)
    own = own + score_BW[:, :, None]
    legal = _legal(asked, level, child, exists)
    return _best(trie, asked, level, child, code, own, legal, part, width)


def _children(trie: DeviceTrie, level: int, node_BW: Tensor) -> tuple[Tensor, Tensor]:
    """(B, W, F) nodes of the beams' windows (0 where there is none), and which of them are there."""
    start, known = trie.start[level], node_BW.clamp_min(0)
    begin, end = start[known].long(), start[known + 1].long()
    child = begin[:, :, None] + torch.arange(trie.window[level], device=node_BW.device)
    exists = (child < end[:, :, None]) & (node_BW >= 0)[:, :, None]
    return torch.where(exists, child, 0), exists


def _over_children(value_BWF: Tensor, exists_BWF: Tensor) -> Tensor:
    """Log-softmax over the children of each beam."""
    return torch.log_softmax(value_BWF.masked_fill(~exists_BWF, float("-inf")), dim=-1)


def _remember(
    memory: Remembered, level: int, own_BWF: Tensor, child_BWF: Tensor, whole_BW: Tensor
) -> tuple[Tensor, Tensor]:
    """`Guide.mix_children`, and (B, W, F) float64 what the memory has below each child."""
    flat = child_BWF.flatten(1)
    named, amount = memory.named[level], memory.amount[level]
    at = torch.searchsorted(named, flat).clamp_max(named.shape[1] - 1)
    part = torch.where(named.gather(1, at) == flat, amount.gather(1, at), 0.0).view(child_BWF.shape)
    whole = whole_BW[:, :, None]
    evidence = whole + EVIDENCE
    own = own_BWF + torch.log1p(-memory.share * whole / evidence).float()
    told = torch.log(memory.share * part / evidence).float()
    return torch.where(part > 0, torch.logaddexp(own, told), own), part


def _legal(asked: Asked, level: int, child_BWF: Tensor, exists_BWF: Tensor) -> Tensor:
    """(B, W, F) which children a request may walk to: `RequestMasks.legal`."""
    legal = exists_BWF
    if asked.open is not None and asked.slot_B is not None:
        table = asked.open[level]
        legal = legal & table.view(-1)[asked.slot_B[:, None, None] * table.shape[1] + child_BWF]
    if asked.closed is not None:
        closed, flat = asked.closed[level], child_BWF.flatten(1)
        at = torch.searchsorted(closed, flat).clamp_max(closed.shape[1] - 1)
        legal = legal & (closed.gather(1, at) != flat).view(legal.shape)
    return legal


def _best(
    trie: DeviceTrie, asked: Asked, level: int, child_BWF: Tensor, code_BWF: Tensor, own_BWF: Tensor, legal_BWF: Tensor,
    part_BWF: Tensor | None, width: int,
) -> tuple[Level, Tensor | None]:  # fmt: skip
    child, own = child_BWF.flatten(1), own_BWF.flatten(1)
    # scores as whole numbers of the same order; what is no number comes first, so that somebody hears of it
    bits = torch.nan_to_num(own + 0.0, nan=float("inf"), posinf=float("inf"), neginf=float("-inf")).view(torch.int32)
    ordered = (bits ^ ((bits >> 31) & 0x7FFFFFFF)).long()
    key = (ordered * _HIGH + (_LOW - child)).masked_fill(~legal_BWF.flatten(1), _ILLEGAL)
    kept = min(width, key.shape[1], trie.n_nodes[level + 1])
    best, place = key.topk(kept, dim=1)
    lives = (best > _ILLEGAL) & (torch.arange(kept, device=key.device) < asked.beam_B[:, None])
    dies = ~lives
    found = Level(
        node_BP=child.gather(1, place).masked_fill(dies, -1),
        parent_BP=torch.div(place, child_BWF.shape[2], rounding_mode="floor").masked_fill(dies, 0),
        code_BP=code_BWF.flatten(1).gather(1, place).masked_fill(dies, 0),
        score_BP=own.gather(1, place).masked_fill(dies, float("-inf")),
    )
    return found, None if part_BWF is None else part_BWF.flatten(1).gather(1, place)
