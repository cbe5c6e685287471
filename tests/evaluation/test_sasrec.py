"""SASRec: padding does not matter, long histories train whole, the sampled softmax is the full one in the limit."""

from __future__ import annotations

import numpy as np
import torch

from rankloom.data.sequences import TEST, Cases
from rankloom.evaluation.metrics import gains, target_rank
from rankloom.evaluation.sasrec import SASRec
from tests.evaluation.logs import leave_one_out

LISTS = [[(start + step) % 12 for step in range(6)] for start in range(12)] * 12


def fitted(lists: list[list[int]], n_items: int, **options: object) -> tuple[SASRec, object]:
    sequences = leave_one_out(lists, n_items)
    defaults: dict[str, object] = {
        "use_text": True, "dim": 16, "blocks": 1, "dropout": 0.1, "max_rounds": 15, "learning_rate": 5e-3,
        "batch_tokens": 256, "quiet": True,
    }  # fmt: skip
    system = SASRec(**{**defaults, **options})  # type: ignore[arg-type]
    system.fit(sequences, np.eye(n_items, 8, dtype=np.float32), 0)
    return system, sequences


def test_it_learns_a_cycle_and_is_the_same_for_a_seed() -> None:
    system, sequences = fitted(LISTS, 12)
    cases = sequences.cases(TEST)  # type: ignore[attr-defined]
    lists = system.rank(sequences, cases, 3, mask_seen=True)  # type: ignore[arg-type]
    assert gains(target_rank(lists, cases.target), 1, "recall").mean() > 0.9
    again, _ = fitted(LISTS, 12)
    np.testing.assert_array_equal(lists, again.rank(sequences, cases, 3, mask_seen=True))  # type: ignore[arg-type]


def test_without_text_and_with_sampled_negatives_it_learns_the_same_cycle() -> None:
    system, sequences = fitted(LISTS, 12, use_text=False, full_softmax_limit=4, n_negatives=6, max_rounds=30)
    cases = sequences.cases(TEST)  # type: ignore[attr-defined]
    lists = system.rank(sequences, cases, 3, mask_seen=True)  # type: ignore[arg-type]
    assert gains(target_rank(lists, cases.target), 1, "recall").mean() > 0.8
    assert system.variant == "id"


def test_scores_of_a_batch_are_those_of_each_alone() -> None:
    lists = [[0, 1, 2, 3, 4, 5, 6, 7], [3, 4, 5], [7, 1, 0, 2], *LISTS[:30]]
    system, sequences = fitted(lists, 12, max_rounds=2, length=5)
    cases = sequences.cases(TEST)  # type: ignore[attr-defined]
    together = system.scores(sequences, cases, slice(0, 8))  # type: ignore[arg-type]
    for number in range(8):
        alone = system.scores(sequences, cases, slice(number, number + 1))[0]  # type: ignore[arg-type]
        np.testing.assert_allclose(together[number], alone, atol=1e-5)


def test_every_transition_of_a_long_history_is_trained_once() -> None:
    lists = [list(range(12)) * 2, [0, 1, 2, 3, 4], [5, 6, 7, 8]]
    sequences = leave_one_out(lists, 12)
    system = SASRec(length=5, quiet=True)
    start, stop = system._windows(sequences)
    assert (stop - start <= 6).all()
    trained = sorted(place for a, b in zip(start, stop, strict=True) for place in range(a + 1, b))
    # 22 + 3 + 2 training targets; the first of each person has nothing before it
    assert trained == [*range(1, 22), 23, 24, 26]


def test_the_sampled_softmax_tends_to_the_full_one() -> None:
    system, sequences = fitted(LISTS, 12, max_rounds=2, dropout=0.0)
    item = torch.from_numpy(sequences.item[sequences.stage == 0].astype(np.int64))  # type: ignore[attr-defined]
    begin, end = torch.tensor([0, 4, 8]), torch.tensor([4, 8, 12])
    with torch.no_grad(), torch.random.fork_rng():
        torch.manual_seed(0)
        system.full_softmax_limit = 100
        full = float(system._loss(item, begin, end))
        system.full_softmax_limit, system.n_negatives = 1, 60_000
        sampled = float(system._loss(item, begin, end))
    assert abs(full - sampled) < 0.02


def test_a_stranger_gets_what_is_popular() -> None:
    system, sequences = fitted([[0, 1, 2, 3], [4, 1, 5, 2], [1, 4, 3, 2]], 6, max_rounds=1)
    nobody = Cases(np.array([0], np.int32), np.array([0], np.int64), np.array([3], np.int32))
    assert system.rank(sequences, nobody, 1, mask_seen=True)[0, 0] == 1  # type: ignore[arg-type]
