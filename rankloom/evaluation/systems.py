"""What is compared: one protocol for our model, the floors and the baselines, and the shared scoring of the plain ones."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from rankloom.data.sequences import TRAIN, Cases, Sequences

IntArray = NDArray[np.int32]
FloatArray = NDArray[np.float32]


class System(Protocol):
    """A recommender under evaluation."""

    name: str

    def fit(self, sequences: Sequences, content: FloatArray | None, seed: int) -> None:
        """Learns from TRAIN rows (VALID rows only to choose a stopping point)."""
        ...

    def rank(self, sequences: Sequences, cases: Cases, k: int, *, mask_seen: bool) -> IntArray:
        """(C, k) items, best first, -1 where fewer; with `mask_seen` nothing of the case's history."""
        ...


class ScoringSystem(ABC):
    """Base of systems that score the whole catalogue: ranks in blocks, masks the history."""

    name = "scoring"
    block = 512

    @abstractmethod
    def scores(self, sequences: Sequences, cases: Cases, part: slice) -> FloatArray:
        """(block, I) scores, higher is better."""

    def rank(self, sequences: Sequences, cases: Cases, k: int, *, mask_seen: bool) -> IntArray:
        out = np.full((len(cases), k), -1, dtype=np.int32)
        for begin in range(0, len(cases), self.block):
            part = slice(begin, begin + self.block)
            scores = self.scores(sequences, cases, part)
            if mask_seen:
                scores[seen_pairs(sequences, cases, part)] = -np.inf
            out[part] = top_items(scores, k)
        return out


def top_items(scores: FloatArray, k: int) -> IntArray:
    """(B, k) best columns; ties go to the lower item number; -1 where the score is -inf."""
    width = min(k, scores.shape[1])
    best = torch.topk(torch.from_numpy(scores), width, dim=1).indices.numpy()
    # the cut at k may split ties arbitrarily: take every item at the boundary score, then sort exactly
    floor = np.take_along_axis(scores, best, 1).min(1)
    out = np.full((len(scores), k), -1, dtype=np.int32)
    ties = (scores >= floor[:, None]).sum(1)
    simple = ties == width
    order = np.lexsort((best[simple], -np.take_along_axis(scores[simple], best[simple], 1)), axis=1)
    out[simple, :width] = np.take_along_axis(best[simple], order, 1)
    tied = np.flatnonzero(~simple)
    row, item = np.nonzero(scores[tied] >= floor[tied, None])
    order = np.lexsort((item, -scores[tied][row, item], row))
    first = np.cumsum(ties[tied]) - ties[tied]
    place = np.arange(len(row)) - np.repeat(first, ties[tied])
    kept = order[place < width]
    out[tied, :width] = item[kept].reshape(len(tied), width)
    values = np.take_along_axis(scores, np.maximum(out[:, :width], 0), 1)
    out[:, :width][np.isneginf(values)] = -1
    return out


def seen_pairs(sequences: Sequences, cases: Cases, part: slice) -> tuple[NDArray[np.int64], IntArray]:
    """(case within the part, item) of every history interaction.

    A target that the person has seen before is among them: leaving it out of the mask would tell which of the seen items
    is the answer. Where seen items are masked, such a case is a miss for everybody.
    """
    start = sequences.offsets[cases.user[part]]
    length = cases.row[part] - start
    place = np.repeat(np.arange(len(length)), length)
    rows = np.repeat(start, length) + np.arange(len(place)) - np.repeat(np.cumsum(length) - length, length)
    return place, sequences.item[rows]


def training_counts(sequences: Sequences) -> NDArray[np.int64]:
    """(I,) training targets per item."""
    trained = (sequences.stage == TRAIN) & sequences.target
    return np.bincount(sequences.item[trained], minlength=sequences.n_items)


def people_come_back(sequences: Sequences, *, share: float = 0.0) -> bool:
    """Whether more than a share of the training targets are items that the person already had."""
    rows = np.flatnonzero((sequences.stage == TRAIN) & sequences.target)
    pairs = sequences.user[rows].astype(np.int64) * sequences.n_items + sequences.item[rows]
    return len(rows) - len(np.unique(pairs)) > share * len(rows)


def last_items(sequences: Sequences, cases: Cases, part: slice) -> IntArray:
    """(B,) the item right before the target, -1 for an empty history."""
    row = cases.row[part]
    has = row > sequences.offsets[cases.user[part]]
    return np.where(has, sequences.item[np.maximum(row - 1, 0)], -1).astype(np.int32)
