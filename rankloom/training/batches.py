"""Training batches: windows of user sequences, bucketed by length, in an order that only seed and epoch decide.

A sequence longer than the model's history is cut into windows that overlap by one history, so that every target is
trained once and sees as much past as it would see at serving.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rankloom.data.sequences import TRAIN, Sequences
from rankloom.models.context import ContextBatch
from rankloom.training.features import FeatureTable


@dataclass
class TrainingBatch:
    """One step's input. M = target_BT.sum() targets.

    Attributes:
        context: the windows.
        target_BT: (B, T) which places are predicted.
        item_M: (M,) catalogue rows of the targets, row-major.
        surface_BT: (B, T) where each place was shown.
        when_M: (M,) float64 seconds of the targets, None for logs without a clock.
    """

    context: ContextBatch
    target_BT: Tensor
    item_M: Tensor
    surface_BT: Tensor
    when_M: Tensor | None = None


class SequenceBatches:
    """All windows of one stage of a log.

    Args:
        supervise: `all` trains every target of a window, `newest` only its last (OneRec-V2 section 4.1, layout c).
        order: `shuffled`, or `chronological` (windows by the time of their last target).
        query_dropout: share of the interactions with a query that an epoch reads as if they came from the feed.
    """

    def __init__(
        self,
        sequences: Sequences,
        table: FeatureTable,
        *,
        max_history: int,
        batch_tokens: int,
        seed: int,
        order: Literal["shuffled", "chronological"] = "shuffled",
        supervise: Literal["all", "newest"] = "all",
        query_dropout: float = 0.0,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self.table = table
        self.query_dropout = query_dropout if len(table.queries) else 0.0
        self.seed = seed
        self._left_out = (-1, torch.zeros(0, dtype=torch.bool))
        self.order = order
        self.rank, self.world_size = rank, world_size
        self.user_of_row = torch.from_numpy(sequences.user)
        trained = (sequences.stage == TRAIN) & sequences.target
        self.is_target = torch.from_numpy(trained)
        self.windows = _windows(sequences, max_history, supervise=supervise)
        self.time = sequences.timestamp
        self.seconds = torch.from_numpy(sequences.timestamp / 1e6) if sequences.has_clock else None
        self.n_targets = int(self.windows.n_targets.sum())
        # a small log is cut into at least some thirty batches, or an epoch would be a handful of steps
        self.batch_tokens = min(batch_tokens, max(32, int((self.windows.stop - self.windows.start).sum()) // 30))

    def n_batches(self, epoch: int) -> int:
        return len(self._plan(epoch)) // self.world_size

    def _plan(self, epoch: int) -> list[NDArray[np.int64]]:
        windows = self.windows
        rng = np.random.default_rng((self.seed, epoch))
        length = windows.stop - windows.start
        if self.order == "chronological":
            arranged = np.lexsort((np.arange(len(length)), self.time[windows.stop - 1]))
        else:
            # jitter keeps neighbours changing from epoch to epoch while padding stays small
            arranged = np.argsort(length * rng.uniform(0.85, 1.15, len(length)), kind="stable")
        batches: list[NDArray[np.int64]] = []
        begin = 0
        while begin < len(arranged):
            # the longest window of a batch decides its padded size
            guess = max(1, self.batch_tokens // int(length[arranged[begin]]))
            size = max(1, min(guess, self.batch_tokens // int(length[arranged[begin : begin + guess]].max())))
            batches.append(np.sort(arranged[begin : begin + size]))
            begin += size
        if self.order == "shuffled":
            rng.shuffle(batches)
        return batches[: len(batches) - len(batches) % self.world_size]

    def epoch(self, epoch: int, *, skip: int = 0) -> Iterator[TrainingBatch]:
        """The batches of one epoch, from batch `skip` on (for an exact resume)."""
        mine = self._plan(epoch)[self.rank :: self.world_size]
        for chosen in mine[skip:]:
            yield self.build(chosen, epoch)

    def build(self, chosen: NDArray[np.int64], epoch: int = 0) -> TrainingBatch:
        windows = self.windows
        start = torch.from_numpy(windows.start[chosen])
        stop = torch.from_numpy(windows.stop[chosen])
        first_target = torch.from_numpy(windows.first_target[chosen])
        context = self.table.pack(start, stop, user=self.user_of_row[start], unasked=self._unasked(epoch))
        index = start[:, None] + torch.arange(context.item_BT.shape[1])
        real = index < stop[:, None]
        index = index.clamp_max(len(self.table.item) - 1)
        target = real & (index >= first_target[:, None]) & self.is_target[index]
        chosen_M = index[target]
        when_M = None if self.seconds is None else self.seconds[chosen_M]
        return TrainingBatch(context, target, self.table.item[chosen_M], context.surface_BT, when_M)

    def _unasked(self, epoch: int) -> Tensor | None:
        """(E,) the interactions whose query this epoch leaves out; None where it leaves out none."""
        if not self.query_dropout:
            return None
        if self._left_out[0] != epoch:
            drawn = np.random.default_rng((self.seed, epoch, 1)).random(len(self.table.item)) < self.query_dropout
            self._left_out = (epoch, torch.from_numpy(drawn) & (self.table.query >= 0))
        return self._left_out[1]


@dataclass(frozen=True)
class _Windows:
    start: NDArray[np.int64]
    stop: NDArray[np.int64]
    first_target: NDArray[np.int64]
    n_targets: NDArray[np.int64]


def _windows(sequences: Sequences, max_history: int, *, supervise: str) -> _Windows:
    """Row ranges to train on; the context of a window starts up to `max_history` rows before its first target."""
    begin = sequences.offsets[:-1]
    in_training = np.add.reduceat(
        np.r_[(sequences.stage == TRAIN).astype(np.int64), 0], np.minimum(begin, len(sequences.stage))
    )
    in_training[np.diff(sequences.offsets) == 0] = 0
    end = begin + in_training
    span = 2 * max_history
    pieces = np.maximum(1, -(-(end - begin - max_history) // max_history))
    pieces[end - begin <= span] = 1
    owner = np.repeat(np.arange(len(begin)), pieces)
    piece = np.arange(len(owner)) - np.repeat(np.cumsum(pieces) - pieces, pieces)
    first = np.where(piece == 0, begin[owner], begin[owner] + (piece + 1) * max_history)
    stop = np.where(piece == pieces[owner] - 1, end[owner], begin[owner] + (piece + 2) * max_history)
    start = np.where(piece == 0, begin[owner], first - max_history)
    targets = np.r_[0, np.cumsum((sequences.stage == TRAIN) & sequences.target)]
    if supervise == "newest":
        rows = np.arange(len(targets) - 1)
        is_target = (sequences.stage == TRAIN) & sequences.target
        last = np.maximum.accumulate(np.where(is_target, rows, -1))
        final = np.where(stop > start, last[np.maximum(stop - 1, 0)], -1)
        first = np.maximum(final, first)
        stop = np.where(final >= 0, final + 1, stop)
        start = np.maximum(start, first - max_history)
    n_targets = targets[stop] - targets[np.minimum(first, stop)]
    keep = n_targets > 0
    return _Windows(start[keep], stop[keep], first[keep], n_targets[keep])
