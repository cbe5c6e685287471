"""Small logs built by hand for the tests of evaluation."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from rankloom.data.sequences import TEST, TRAIN, VALID, Sequences
from tests.semantic.test_tokenizer import log


def leave_one_out(lists: list[list[int]], n_items: int) -> Sequences:
    """Each list's last item is test, the one before it validation."""
    sequences = log(lists, n_items)
    stage = sequences.stage.copy()
    ends = sequences.offsets[1:]
    stage[ends - 2], stage[ends - 1] = VALID, TEST
    return replace(sequences, stage=stage, has_clock=False)


def by_time(lists: list[list[int]], days: list[list[float]], n_items: int, *, valid: float, test: float) -> Sequences:
    """Split by the clock at the days `valid` and `test`."""
    sequences = log(lists, n_items)
    when = np.array([day for own in days for day in own]) * 86_400_000_000
    stage = np.full(len(when), TRAIN, np.int8)
    stage[when >= valid * 86_400_000_000] = VALID
    stage[when >= test * 86_400_000_000] = TEST
    return replace(sequences, timestamp=when.astype(np.int64), stage=stage)
