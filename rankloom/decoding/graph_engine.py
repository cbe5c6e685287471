"""`decoding.engine: graph`: the whole search of a batch, context included, as one captured CUDA graph.

A graph is captured once for a bucket of batches (graph_inputs.py: so many requests, places, beams, ..) and run again for every
batch of that bucket: inputs are written into memory that stays, one launch runs contexts, all codes and all cuts to the
beam (graph_search.py), and one copy brings the beams back. The model keeps its graphs; changed weights, another catalogue or
another trie begin anew, since a graph is of the memory that it was captured with. Filters, exclusions, beams and histories of
a request are inputs: none of them captures anything twice.

Where it does not serve (no catalogue, logits that are no numbers, a generator that is not made of tensors) nothing is returned
and the eager way answers.

Shapes: B requests, W beams, P beams of a level.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor

from rankloom.decoding.children import Indices, Next
from rankloom.decoding.cuda_graph import CudaRecorder, Recorder, Recording
from rankloom.decoding.device_trie import DeviceTrie, fits
from rankloom.decoding.exposure import Lift
from rankloom.decoding.graph_inputs import (
    Buffers,
    FilterSlots,
    LiftRows,
    Shape,
    asked_of,
    buffers,
    most_closed,
    most_named,
    question_of,
    write_asked,
    write_contexts,
)
from rankloom.decoding.graph_search import Level, search
from rankloom.decoding.masks import RequestMasks
from rankloom.decoding.memory import Guide
from rankloom.models.graph_decoder import GraphDecoder, Question
from rankloom.semantic.trie import Trie

KEPT: Final = 64
"""Captured buckets of one model and catalogue; the one that was not used for longest makes room."""


@dataclass(frozen=True)
class _Captured:
    """One bucket: where its inputs lie, its recording, the widths of its levels, and page-locked memory for what comes out."""

    buffers: Buffers
    recording: Recording
    widths: list[int]
    host: Tensor


class Searches:
    """The captured searches of one model over one trie. One caller at a time.

    Args:
        decoder: the model as graphs run it.
        recorder: how work is captured.
    """

    def __init__(self, decoder: GraphDecoder, trie: Trie, recorder: Recorder) -> None:
        self.decoder, self.trie, self.recorder = decoder, trie, recorder
        self.device = decoder.model.device
        self.on_device = DeviceTrie.of(trie, self.device)
        self.filters = FilterSlots(self.on_device.n_nodes, self.device)
        self.lifts = LiftRows(self.on_device.n_nodes, self.device)
        self.captured: OrderedDict[Shape, _Captured] = OrderedDict()

    def search(
        self, question: Question, beam_B: Indices, masks: RequestMasks, *, over_children: bool, guide: Guide | None,
        lift: Lift | None,
    ) -> tuple[list[Next], Tensor] | None:  # fmt: skip
        """The beams of every level as `beam_search` has them, and (B, D_item) selection queries on the device; None where
        logits are no numbers."""
        shape = self.shape(question, beam_B, masks, over_children=over_children, guide=guide, lift=lift)
        size = len(beam_B)
        own = self._captured(shape)
        host = own.buffers.host
        write_contexts(host, question)
        write_asked(host, beam_B, masks, guide)
        if shape.filters:
            rows = np.array(self.filters.place(masks.unique), dtype=np.int64)
            host["slot_B"].zero_()
            host["slot_B"][:size] = torch.from_numpy(rows[masks.which_B])
        if lift is not None:
            self.lifts.place(lift)
            host["moment_B"].zero_()
            host["moment_B"][:size] = lift.moment_B
        own.buffers.send()
        packed, user_BD = own.recording.run()
        own.host.copy_(packed, non_blocking=True)
        # the next run writes where this one wrote
        user_BD = user_BD[:size].clone()
        if self.device.type == "cuda":
            torch.cuda.current_stream(self.device).synchronize()
        levels = _unpacked(own.host.numpy()[:size], own.widths)
        return None if levels is None else (levels, user_BD)

    def shape(
        self, question: Question, beam_B: Indices, masks: RequestMasks, *, over_children: bool, guide: Guide | None,
        lift: Lift | None,
    ) -> Shape:  # fmt: skip
        """The bucket of a batch."""
        batch, size = question.batch, len(beam_B)
        longest, places = self.decoder.model.config.max_history, batch.item_BT.shape[1]
        filtered = [own for own in masks.unique if own.counts is not None]
        queries = 0 if batch.query_BQD is None else batch.query_BQD.shape[1]
        return Shape(
            batch=bucket(size, 1, 2),
            places=place_bucket(places, longest),
            beam=bucket(int(beam_B.max()), 8, 2),
            queries=bucket(queries, 16, 4),
            text=0 if batch.query_BQD is None else batch.query_BQD.shape[2],
            features=0 if batch.user_BF is None else batch.user_BF.shape[1],
            # room costs less than one more graph
            closed=bucket(max(1, most_closed(masks, size)), 64, 4),
            named=0 if guide is None else bucket(max(1, most_named(guide, size)), 1024, 4),
            filters=self.filters.room(len(filtered)) if filtered else 0,
            moments=0 if lift is None else self.lifts.room(len(lift.nodes[0])),
            over_children=over_children,
        )

    def _captured(self, shape: Shape) -> _Captured:
        own = self.captured.get(shape)
        if own is None:
            if len(self.captured) >= KEPT:
                self.captured.popitem(last=False)
            own = self.captured[shape] = self._capture(shape)
        self.captured.move_to_end(shape)
        return own

    def _capture(self, shape: Shape) -> _Captured:
        n_levels = self.on_device.n_levels
        lying = buffers(shape, n_levels, self.device)
        asked = asked_of(
            lying.device, shape, n_levels, self.filters.tables if shape.filters else None,
            self.lifts.tables if shape.moments else None,
        )  # fmt: skip
        question = question_of(lying.device)
        widths: list[int] = []

        def work() -> tuple[Tensor, ...]:
            steps = self.decoder.steps(question)
            found = search(steps, self.on_device, asked, width=shape.beam, over_children=shape.over_children)
            widths[:] = [own.node_BP.shape[1] for own in found]
            return packed(found), steps.user_BD

        recording = self.recorder.record(work)
        host = torch.zeros(shape.batch, 4 * sum(widths), dtype=torch.int32, pin_memory=self.device.type == "cuda")
        return _Captured(lying, recording, widths, host)


def answer(
    model: Any, prefix: Any, trie: Trie, *, beam_B: Indices, masks: RequestMasks, normalise: str, guide: Guide | None, lift: Lift | None
) -> list[Next] | None:  # fmt: skip
    """The beams of every level for a prefix whose context the graph is to compute (`LazyDecoder.prefill`), which is told the
    selection queries; None where the graph engine does not serve."""
    question = getattr(prefix, "question", None)
    if question is None or not fits(trie) or not len(beam_B):
        return None
    held = model.searches
    if not isinstance(held, Searches) or held.trie is not trie or not held.decoder.fresh:
        held = model.searches = Searches(model.graph_decoder(), trie, recorder_for(model.device))
    found = held.search(question, beam_B, masks, over_children=normalise == "trie", guide=guide, lift=lift)
    if found is None:
        return None
    levels, prefix.user_BD = found
    return levels


def recorder_for(device: torch.device) -> Recorder:
    """How work is captured on a device."""
    return CudaRecorder(device)


def packed(found: list[Level]) -> Tensor:
    """(B, 4 * P summed over levels) int32: nodes, parents, codes and the bits of scores of every level."""
    parts: list[Tensor] = []
    for own in found:
        parts += [own.node_BP.int(), own.parent_BP.int(), own.code_BP.int(), own.score_BP.view(torch.int32)]
    return torch.cat(parts, dim=1)


def _unpacked(packed_BX: np.ndarray[Any, np.dtype[np.int32]], widths: list[int]) -> list[Next] | None:
    """The levels, as wide as their widest request; None where a score is no number."""
    out: list[Next] = []
    at = 0
    for width in widths:
        node, parent, code, bits = (packed_BX[:, at + part * width : at + (part + 1) * width] for part in range(4))
        at += 4 * width
        wide = max(1, int((node >= 0).sum(1).max(initial=0)))
        score = np.array(bits[:, :wide]).view(np.float32)
        if np.isnan(score).any():
            return None
        whole = [own[:, :wide].astype(np.int64) for own in (node, parent, code)]
        out.append(Next(whole[0], whole[1], whole[2], score))
    return out


def place_bucket(places: int, longest: int) -> int:
    """The bucket of a history; beyond what a target sees, which is rare, each length is its own."""
    return min(bucket(places, 16, 4), longest) if places <= longest else places


def bucket(n: int, least: int, factor: int) -> int:
    """0 for 0, else the first of least, least * factor, .. that is at least n."""
    if n == 0:
        return 0
    size = least
    while size < n:
        size *= factor
    return size
