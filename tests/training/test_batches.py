"""Windows of sequences: every target once, with the past that serving would see, in buckets of like length."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rankloom.data.sequences import TEST, TRAIN, VALID, Sequences
from rankloom.training.batches import SequenceBatches
from rankloom.training.features import FeatureTable


def log(lengths: list[int], *, seed: int = 0, n_items: int = 50, held_out: int = 2) -> Sequences:
    """A log with every feature; the last `held_out` interactions of each person are not for training."""
    rng = np.random.default_rng(seed)
    offsets = np.r_[0, np.cumsum(lengths)].astype(np.int64)
    n = int(offsets[-1])
    left = np.repeat(offsets[1:], lengths) - np.arange(n)
    stage = np.where(left > held_out, TRAIN, np.where(left == 1, TEST, VALID))
    return Sequences(
        user_ids=np.array([f"u{user}" for user in range(len(lengths))]),
        offsets=offsets,
        item=rng.integers(0, n_items, n).astype(np.int32),
        kind=rng.integers(1, 11, n).astype(np.int8),
        timestamp=np.sort(rng.integers(0, 10**12, n)),
        watch_ratio=np.where(rng.random(n) < 0.3, np.nan, rng.random(n) * 2).astype(np.float32),
        surface=rng.integers(0, 3, n).astype(np.int8),
        position=rng.integers(-1, 20, n).astype(np.int16),
        query=np.where(rng.random(n) < 0.4, rng.integers(0, 5, n), -1).astype(np.int32),
        target=rng.random(n) < 0.8,
        stage=stage.astype(np.int8),
        n_items=n_items,
        queries=tuple("abcde"),
    )


def batches(sequences: Sequences, **options: Any) -> SequenceBatches:
    table = FeatureTable.from_sequences(
        sequences,
        query_vectors=np.random.default_rng(1).normal(size=(5, 7)).astype(np.float32),
        user_features=np.random.default_rng(2).integers(0, 4096, (sequences.n_users, 3)),
        text_dim=7,
    )
    options = {"max_history": 8, "batch_tokens": 64, "seed": 3, **options}
    return SequenceBatches(sequences, table, **options)


@settings(max_examples=30, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 60), min_size=1, max_size=8),
    max_history=st.integers(1, 12),
    epoch=st.integers(0, 5),
    seed=st.integers(0, 999),
)
def test_an_epoch_trains_every_target_once_with_all_the_past_it_would_have_when_served(
    lengths: list[int], max_history: int, epoch: int, seed: int
) -> None:
    sequences = log(lengths, seed=seed)
    # item = row, so that a place of a batch tells its row of the log
    rows = np.arange(sequences.n_interactions, dtype=np.int32)
    made = batches(Sequences(**{**vars(sequences), "item": rows, "n_items": len(rows)}), max_history=max_history)
    seen: list[int] = []
    for batch in made.epoch(epoch):
        assert len(batch.item_M) == int(batch.target_BT.sum())
        seen += batch.item_M.tolist()
        for row, place in batch.target_BT.nonzero().tolist():
            target = int(batch.context.item_BT[row, place])
            begin = int(sequences.offsets[np.searchsorted(sequences.offsets, target, side="right") - 1])
            past = batch.context.item_BT[row, max(0, place - max_history) : place].tolist()
            assert past == list(range(max(begin, target - max_history), target))
    trained = np.flatnonzero((sequences.stage == TRAIN) & sequences.target)
    assert sorted(seen) == trained.tolist()
    assert made.n_targets == len(trained)


def test_batches_hold_windows_of_like_length_and_stay_within_their_size() -> None:
    lengths = np.random.default_rng(0).integers(3, 50, 400).tolist()
    made = batches(log(lengths, held_out=0), max_history=50, batch_tokens=300)
    sizes = [np.sort(batch.context.length_B.numpy()) for batch in made.epoch(0)]
    assert all(len(own) * own[-1] <= 300 for own in sizes)
    padding = 1 - sum(own.sum() for own in sizes) / sum(len(own) * own[-1] for own in sizes)
    shuffled = np.random.default_rng(0).permutation(lengths)
    unsorted = 1 - np.mean([own.mean() / own.max() for own in np.array_split(shuffled, len(sizes))])
    assert padding < 0.2 < unsorted
    # the order of batches is no order of length
    firsts = [int(own[-1]) for own in sizes]
    assert firsts != sorted(firsts)
    assert firsts != sorted(firsts, reverse=True)


def test_seed_and_epoch_alone_decide_the_order() -> None:
    made = batches(log([20] * 12))
    again = batches(log([20] * 12))
    assert [b.item_M.tolist() for b in made.epoch(2)] == [b.item_M.tolist() for b in again.epoch(2)]
    assert [b.item_M.tolist() for b in made.epoch(2)] != [b.item_M.tolist() for b in made.epoch(3)]
    other = batches(log([20] * 12), seed=4)
    assert [b.item_M.tolist() for b in made.epoch(2)] != [b.item_M.tolist() for b in other.epoch(2)]
    assert [b.item_M.tolist() for b in made.epoch(2, skip=3)] == [b.item_M.tolist() for b in made.epoch(2)][3:]


@pytest.mark.parametrize("world_size", [2, 3])
def test_processes_share_an_epoch_without_overlap(world_size: int) -> None:
    whole = [b.item_M.tolist() for b in batches(log([20] * 30)).epoch(1)]
    shares = [
        [b.item_M.tolist() for b in batches(log([20] * 30), rank=rank, world_size=world_size).epoch(1)]
        for rank in range(world_size)
    ]
    assert len({len(share) for share in shares}) == 1
    step_by_step = [batch for step in zip(*shares, strict=True) for batch in step]
    assert step_by_step == whole[: len(whole) - len(whole) % world_size]
    assert batches(log([20] * 30), rank=1, world_size=world_size).n_batches(1) == len(shares[1])


def test_chronological_order_reads_windows_by_their_newest_target() -> None:
    sequences = log([9] * 20)
    rows = np.arange(sequences.n_interactions, dtype=np.int32)
    made = batches(
        Sequences(**{**vars(sequences), "item": rows, "n_items": len(rows)}), order="chronological", max_history=20
    )
    newest = [max(sequences.timestamp[b.context.item_BT.numpy()].max(1)) for b in made.epoch(0)]
    assert newest == sorted(newest)


def test_newest_trains_the_last_target_of_each_window_only() -> None:
    sequences = log([7, 3, 12, 1], held_out=0)
    made = batches(sequences, supervise="newest", max_history=20)
    trained = (sequences.stage == TRAIN) & sequences.target
    last = [
        max((row for row in range(begin, end) if trained[row]), default=-1)
        for begin, end in zip(sequences.offsets[:-1], sequences.offsets[1:], strict=True)
    ]
    seen = sorted(int(item) for batch in made.epoch(0) for item in batch.item_M)
    assert seen == sorted(int(sequences.item[row]) for row in last if row >= 0)


def test_a_share_of_the_searches_is_read_as_feed_another_one_in_every_epoch() -> None:
    sequences = log([9] * 40, held_out=1)
    kept = batches(sequences)
    own = batches(sequences, query_dropout=0.5)
    left_out = []
    for epoch in range(3):
        hidden = own._unasked(epoch)
        assert hidden is not None
        assert not bool((hidden & (own.table.query < 0)).any())
        share = float(hidden.sum()) / float((own.table.query >= 0).sum())
        assert 0.3 < share < 0.7
        left_out.append(hidden)
        for before, after in zip(kept.epoch(epoch), own.epoch(epoch), strict=True):
            assert before.item_M.tolist() == after.item_M.tolist()
            asked = [
                0 if b.context.query_from_BQ is None else int((b.context.query_from_BQ < 99).sum())
                for b in (before, after)
            ]
            assert asked[1] < asked[0]
            changed = before.surface_BT != after.surface_BT
            assert not bool(after.surface_BT[changed].any())
    assert not bool((left_out[0] == left_out[1]).all())
    again = batches(sequences, query_dropout=0.5)
    assert bool((again._unasked(2) == left_out[2]).all())
    assert batches(sequences, query_dropout=1.0)._unasked(0).tolist() == (own.table.query >= 0).tolist()  # type: ignore[union-attr]
