"""What is kept of a person's context, so that a history that grew by one event costs one event.

An element of the context depends on its own interaction alone, neither on its place nor on its age (context.py): recency is a
bias of the attention. So the normed keys and values of the interactions are kept, and an element is used again where all
that it is made of is what it was: the features of the interaction, the item's vector, the weights. What differs is computed.
There is no rule for events that are appended, dropped, late, changed or repeated, nor for an item that changed: whatever was
done to a history, equal elements are kept and no others.

Made anew in every request: ranks, the pool and BOS, the null element, the user's static features, the query; and whole contexts
that cost less than looking them up, those of small models and short histories. So the compiled decoder keeps nothing.

Shapes: B requests, P places of the history, F elements to be computed, N context elements, Z width of item vectors, C width of
all keys and values of an element.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rankloom.models.context import ContextBatch, ContextKV, ContextProcessor

Weights = tuple[tuple["weakref.ref[Tensor]", int], ...]
LEAST: Final = 50_000_000
"""Multiplications of a context from which keeping pays: below, looking at what is there takes longer than computing it."""
_OBJECTS: Final = 1000
"""Bytes of the objects around the arrays of one person."""
_NONE: Final = np.zeros(0, np.int64)


@dataclass(frozen=True)
class KeptContext:
    """The interactions of one person as keys and values. Never changed; a request makes another.

    Attributes:
        event_P: which item with which features.
        vector_PZ: the item vectors that were read.
        ready_PC: normed keys and values.
        weights: what they were computed with, as it was.
        reused: how many of them the request that made this did not compute.
    """

    event_P: NDArray[np.int64]
    vector_PZ: Tensor
    ready_PC: Tensor
    weights: Weights
    reused: int

    @property
    def nbytes(self) -> int:
        return self.event_P.nbytes + self.vector_PZ.nbytes + self.ready_PC.nbytes + _OBJECTS


class KeptContexts(Protocol):
    """Where contexts of people wait for their next request."""

    def get(self, version: str, person: str) -> KeptContext | None:
        """What a version of a model made of a person last; None where it is not there any more."""
        ...

    def put(self, version: str, person: str, own: KeptContext) -> None:
        """What it made now."""
        ...


def worth_keeping(processor: ContextProcessor, places: int) -> bool:
    """Whether contexts of so many interactions are."""
    return places * sum(own.numel() for own in processor.history_path.parameters() if own.ndim == 2) >= LEAST


def with_kept(
    processor: ContextProcessor, batch: ContextBatch, vector_BPZ: Tensor, kept: Sequence[KeptContext | None]
) -> tuple[ContextKV, list[KeptContext | None]]:
    """What `processor(batch, vector_BPZ)` gives but for rounding, and per request what to keep (None: an empty history).

    Args:
        kept: of each request, what may be used again. It need not be of the same person, model or catalogue.
    """
    batch_size, places = batch.item_BT.shape
    weights = _weights(processor)
    event_BP = _events(batch)
    lengths = batch.length_B.tolist()
    missing_BP = np.arange(places) < batch.length_B.numpy()[:, None]
    again = [_again(event_BP[b, : lengths[b]], vector_BPZ[b], own, weights) for b, own in enumerate(kept)]
    for b, (place, _) in enumerate(again):
        missing_BP[b, place] = False
    rim_BNC = _rim(processor, batch)
    ready_BNC = rim_BNC.new_zeros(batch_size, rim_BNC.shape[1] + places, rim_BNC.shape[2])
    ready_BNC[:, 0], ready_BNC[:, places + 1 :] = rim_BNC[:, 0], rim_BNC[:, 1:]
    row, place_F = (torch.from_numpy(own) for own in np.nonzero(missing_BP))
    if len(row):
        features = (batch.kind_BT, batch.watch_BT, batch.gap_BT, batch.surface_BT, batch.position_BT)
        elements = processor.interactions(vector_BPZ[row, place_F], *(own[row, place_F] for own in features))
        ready_BNC[row, place_F + 1] = torch.cat(processor.normed(elements), dim=-1)
    now: list[KeptContext | None] = []
    for b, own in enumerate(kept):
        place, source = again[b]
        if own is not None and len(place):
            ready_BNC[b, _places(place + 1)] = own.ready_PC[_places(source)]
        vector_PZ, ready_PC = vector_BPZ[b, : lengths[b]], ready_BNC[b, 1 : lengths[b] + 1]
        if batch_size > 1:  # a person does not keep the memory of all others
            vector_PZ, ready_PC = vector_PZ.clone(), ready_PC.clone()
        made = KeptContext(event_BP[b, : lengths[b]].copy(), vector_PZ, ready_PC, weights, len(place))
        now.append(made if lengths[b] else None)
    return processor.as_kv(batch, list(ready_BNC.chunk(processor.config.l_kv * processor.config.s_kv, dim=-1))), now


def _rim(processor: ContextProcessor, batch: ContextBatch) -> Tensor:
    """(B, 1 + U, C) the elements beside the history."""
    further, _ = processor.further(batch)
    null = processor.null.expand(batch.batch_size, 1, -1)
    return torch.cat(processor.normed(torch.cat([null, further], dim=1)), dim=-1)


def _events(batch: ContextBatch) -> NDArray[np.int64]:
    """(B, P) a number for each interaction that no other has."""
    out: NDArray[np.int64] = batch.item_BT.numpy().copy()
    for feature in (batch.kind_BT, batch.watch_BT, batch.gap_BT, batch.surface_BT, batch.position_BT):
        out <<= 6
        out |= feature.numpy()
    return out


def _again(
    event_P: NDArray[np.int64], vector_PZ: Tensor, own: KeptContext | None, weights: Weights
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Places of a history whose elements are there already, and where."""
    if (
        own is None
        or not len(event_P)
        or not _same(own.weights, weights)
        or own.vector_PZ.shape[1] != vector_PZ.shape[1]
    ):
        return _NONE, _NONE
    order = np.argsort(own.event_P, kind="stable")
    at = order[np.minimum(np.searchsorted(own.event_P, event_P, sorter=order), len(order) - 1)]
    place = np.flatnonzero(own.event_P[at] == event_P)
    source = at[place]
    if not len(place):
        return _NONE, _NONE
    now, before = vector_PZ[_places(place)], own.vector_PZ[_places(source)]
    if not torch.equal(now, before):
        same = (now == before).all(1).numpy()
        place, source = place[same], source[same]
    return place, source


def _places(index: NDArray[np.int64]) -> slice | Tensor:
    """A slice, which copies nothing, where it does."""
    if len(index) and index[-1] - index[0] + 1 == len(index) and bool((np.diff(index) == 1).all()):
        return slice(int(index[0]), int(index[-1]) + 1)
    return torch.from_numpy(index)


def _weights(processor: ContextProcessor) -> Weights:
    return tuple((weakref.ref(own), own._version) for own in processor.parameters())


def _same(before: Weights, now: Weights) -> bool:
    return len(before) == len(now) and all(a is c and b == d for (a, b), (c, d) in zip(before, now, strict=True))
