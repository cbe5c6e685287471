"""What a captured search is asked, in memory that stays where it is: one buffer on the host, one like it on the device.

Everything of a batch that changes from request to request is written into named parts of the host's buffer (page-locked
where the device is CUDA) and goes over in one copy. A part has the shape of its bucket; what a batch does not fill is padding
that changes no answer. Filters and the lift of exposure are tables over the nodes of the trie: they stay on the device and
are sent only when they are new.

Shapes: B requests, P places, R queries, X closed nodes, M named nodes, S filters, H moments, n_l nodes at depth l.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor

from rankloom.decoding.children import Indices
from rankloom.decoding.exposure import Lift
from rankloom.decoding.graph_search import NOTHING, Asked, Remembered
from rankloom.decoding.masks import NodeCounts, RequestMasks
from rankloom.decoding.memory import Guide
from rankloom.models.context import ContextBatch
from rankloom.models.graph_decoder import Question

_ALIGN: Final = 64
_EVENTS: Final = ("kind_BT", "watch_BT", "gap_BT", "surface_BT", "position_BT")
_NEVER: Final = 2**31 - 1


@dataclass(frozen=True)
class Shape:
    """The bucket of a batch: one captured graph each. A count of 0 is a graph without that part.

    Attributes:
        batch, places, beam: requests, places of the history, beams, at most.
        queries, text, features: queries in the contexts, the width of their vectors, static features of the user.
        closed, named: nodes of a level that exclusions empty, that the memory names.
        filters, moments: rows of the tables on the device.
        over_children: see `search`.
    """

    batch: int
    places: int
    beam: int
    queries: int = 0
    text: int = 0
    features: int = 0
    closed: int = 0
    named: int = 0
    filters: int = 0
    moments: int = 0
    over_children: bool = False


class Buffers:
    """Named tensors in one piece of memory on the host and one on the device."""

    def __init__(self, parts: Mapping[str, tuple[tuple[int, ...], torch.dtype]], device: torch.device) -> None:
        places: dict[str, tuple[int, int]] = {}
        end = 0
        for name, (shape, dtype) in parts.items():
            size = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
            places[name] = (end, size)
            end += -(-size // _ALIGN) * _ALIGN
        self._host = torch.zeros(end, dtype=torch.uint8, pin_memory=device.type == "cuda")
        self._device = torch.zeros(end, dtype=torch.uint8, device=device)

        def views(whole: Tensor) -> dict[str, Tensor]:
            return {
                name: whole[begin : begin + size].view(parts[name][1]).view(parts[name][0])
                for name, (begin, size) in places.items()
            }

        self.host, self.device = views(self._host), views(self._device)

    def send(self) -> None:
        """Copies the host's part to the device; the host's must not change before the device has it."""
        self._device.copy_(self._host, non_blocking=True)


def buffers(shape: Shape, n_levels: int, device: torch.device) -> Buffers:
    """The parts of a bucket."""
    batch, whole = shape.batch, torch.int64
    history = (batch, shape.places)
    parts: dict[str, tuple[tuple[int, ...], torch.dtype]] = dict.fromkeys(("item_BT", *_EVENTS), (history, whole))
    parts |= dict.fromkeys(("length_B", "surface_B", "beam_B", "slot_B", "moment_B"), ((batch,), whole))
    if shape.queries:
        parts["query_BQD"] = ((batch, shape.queries, shape.text), torch.float32)
        parts["query_from_BQ"] = ((batch, shape.queries), whole)
    if shape.features:
        parts["user_BF"] = ((batch, shape.features), whole)
    for depth in range(1, n_levels + 1):
        if shape.closed:
            parts[f"closed.{depth}"] = ((batch, shape.closed), whole)
        if shape.named:
            parts[f"named.{depth}"] = ((batch, shape.named), whole)
            parts[f"amount.{depth}"] = ((batch, shape.named), torch.float64)
    if shape.named:
        parts |= {"whole_B": ((batch,), torch.float64), "share": ((), torch.float64)}
    return Buffers(parts, device)


def question_of(own: Mapping[str, Tensor]) -> Question:
    """The contexts that lie in a bucket's parts."""
    given = {name: own[name] for name in ("item_BT", *_EVENTS, "length_B")}
    queries, targets, users = (own.get(name) for name in ("query_BQD", "query_from_BQ", "user_BF"))
    return Question(ContextBatch(**given, query_BQD=queries, query_from_BQ=targets, user_BF=users), own["surface_B"])


def asked_of(
    own: Mapping[str, Tensor], shape: Shape, n_levels: int, opened: tuple[Tensor, ...] | None, lift: tuple[Tensor, ...] | None
) -> Asked:  # fmt: skip
    """What lies in a bucket's parts beside them, with the tables of filters and lift."""
    depths = range(1, n_levels + 1)
    memory = None
    if shape.named:
        named, amount = (tuple(own[f"{name}.{depth}"] for depth in depths) for name in ("named", "amount"))
        memory = Remembered(named, amount, own["whole_B"], own["share"])
    return Asked(
        own["beam_B"],
        own["slot_B"] if opened is not None else None,
        opened,
        tuple(own[f"closed.{depth}"] for depth in depths) if shape.closed else None,
        memory,
        own["moment_B"] if lift is not None else None,
        lift,
    )


def write_contexts(host: Mapping[str, Tensor], question: Question) -> None:
    """Writes a batch; further requests of the bucket have empty histories."""
    batch = question.batch
    size, places = batch.item_BT.shape
    host["item_BT"].fill_(-1)
    host["item_BT"][:size, :places] = batch.item_BT
    for name in _EVENTS:
        # nobody sees what features the places beyond have
        host[name][:size, :places] = getattr(batch, name)
    host["length_B"].zero_()
    host["length_B"][:size] = batch.length_B
    host["surface_B"][:size] = question.surface_B
    if "query_BQD" in host:
        host["query_BQD"].zero_()
        host["query_from_BQ"].fill_(_NEVER)
        if batch.query_BQD is not None and batch.query_from_BQ is not None:
            host["query_BQD"][:size, : batch.query_BQD.shape[1]] = batch.query_BQD
            host["query_from_BQ"][:size, : batch.query_from_BQ.shape[1]] = batch.query_from_BQ
    if "user_BF" in host and batch.user_BF is not None:
        host["user_BF"].zero_()
        host["user_BF"][:size] = batch.user_BF


def write_asked(host: Mapping[str, Tensor], beam_B: Indices, masks: RequestMasks, guide: Guide | None) -> None:
    """Writes beams, exclusions and memory."""
    size, n_levels = len(beam_B), masks.index.trie.n_levels
    host["beam_B"].zero_()
    host["beam_B"][:size] = torch.from_numpy(beam_B)
    if "closed.1" in host:
        for depth in range(1, n_levels + 1):
            closed = host[f"closed.{depth}"].fill_(NOTHING).numpy()
            for number in range(size):
                own = masks.blocked(depth, number)
                closed[number, : len(own)] = own
    if "named.1" in host and guide is not None:
        host["share"].fill_(guide.share)
        whole = host["whole_B"].zero_()
        for number in range(size):
            whole[number] = float(guide.named(0, number)[2].sum())
        for depth in range(1, n_levels + 1):
            named = host[f"named.{depth}"].fill_(NOTHING).numpy()
            amount = host[f"amount.{depth}"].zero_().numpy()
            for number in range(size):
                node, _, below = guide.named(depth, number)
                named[number, : len(node)] = node
                amount[number, : len(node)] = below


def most_closed(masks: RequestMasks, size: int) -> int:
    """Nodes of a level that a request's exclusions have emptied, at most."""
    depths = range(1, masks.index.trie.n_levels + 1)
    return max((len(masks.blocked(depth, number)) for depth in depths for number in range(size)), default=0)


def most_named(guide: Guide | None, size: int) -> int:
    """Nodes of a level that the memory names for a request, at most."""
    if guide is None:
        return 0
    return max((len(guide.named(guide.n_levels, number)[0]) for number in range(size)), default=0)


class FilterSlots:
    """Filters as rows of tables of open nodes on the device; row 0 is no filter. The latest used stay.

    Args:
        n_nodes: per depth 0..L.
    """

    def __init__(self, n_nodes: tuple[int, ...], device: torch.device) -> None:
        self.n_nodes, self.device = n_nodes, device
        self.tables: tuple[Tensor, ...] = ()
        self._slot: OrderedDict[int, tuple[int, NodeCounts]] = OrderedDict()

    def room(self, n_filters: int) -> int:
        """Rows of tables that hold so many filters at once; tables that are too small are made anew."""
        wanted = 1 << n_filters.bit_length()
        if not self.tables or len(self.tables[0]) < wanted:
            self.tables = tuple(
                torch.ones(wanted, own, dtype=torch.bool, device=self.device) for own in self.n_nodes[1:]
            )
            self._slot.clear()
        return len(self.tables[0])

    def place(self, filters: list[NodeCounts]) -> list[int]:
        """The row of each filter, sent if it is not there; `room` must have been asked for all of them."""
        for own in filters:
            if id(own) in self._slot:
                self._slot.move_to_end(id(own))
        return [self._row(own) for own in filters]

    def _row(self, own: NodeCounts) -> int:
        if own.counts is None:
            return 0
        known = self._slot.get(id(own))
        if known is not None:
            return known[0]
        free = len(self._slot) + 1
        row = free if free < len(self.tables[0]) else self._slot.popitem(last=False)[1][0]
        for table, counts in zip(self.tables, own.counts, strict=True):
            table[row].copy_(torch.from_numpy(counts > 0))
        # the filter is kept with its number, which another one could get otherwise
        self._slot[id(own)] = (row, own)
        return row


class LiftRows:
    """The lift of exposure as rows of tables on the device, by moment."""

    def __init__(self, n_nodes: tuple[int, ...], device: torch.device) -> None:
        self.n_nodes, self.device = n_nodes, device
        self.tables: tuple[Tensor, ...] = ()
        self._sent: tuple[float, list[Any]] | None = None

    def room(self, n_moments: int) -> int:
        """Rows of tables that hold so many moments; tables that are too small are made anew."""
        # requests of one moment and of a few share their graphs
        wanted = max(4, 1 << max(0, n_moments - 1).bit_length())
        if not self.tables or len(self.tables[0]) < wanted:
            self.tables = tuple(torch.zeros(wanted, own, device=self.device) for own in self.n_nodes[1:])
            self._sent = None
        return len(self.tables[0])

    def place(self, lift: Lift) -> None:
        """Sends the lift of a batch, unless it is there; requests of the same hours share one."""
        if lift.alike(self._sent):
            return
        self._sent = lift.made_of
        for table, own in zip(self.tables, lift.nodes, strict=True):
            table[: len(own)].copy_(own)
