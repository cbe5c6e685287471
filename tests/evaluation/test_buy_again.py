"""The floor for repeats: frequency and recency by hand, popularity below, and a decay that validation chose."""

from __future__ import annotations

import numpy as np

from rankloom.data.sequences import TEST
from rankloom.evaluation.buy_again import DECAYS, BuyAgain
from tests.evaluation.logs import leave_one_out


def ranked(decay: float | None, lists: list[list[int]], n_items: int = 6) -> tuple[BuyAgain, np.ndarray]:
    sequences = leave_one_out(lists, n_items)
    system = BuyAgain(decay)
    system.fit(sequences, None, 0)
    return system, system.rank(sequences, sequences.cases(TEST), n_items, mask_seen=False)


def test_often_and_lately_first_then_what_others_take() -> None:
    lists = [[0, 0, 1, 2, 5], [3, 3, 3, 4, 5]]
    _, plain = ranked(1.0, lists)
    # item 0 twice; 1 and 2 once, the lower number first; then 3, which others took most
    assert plain[0].tolist()[:4] == [0, 1, 2, 3]
    _, recent = ranked(0.5, lists)
    # .5^3 + .5^2 for item 0, .5 for item 1, 1 for item 2
    assert recent[0].tolist()[:4] == [2, 1, 0, 3]


def test_the_decay_is_chosen_on_validation() -> None:
    loyal, _ = ranked(None, [[1, 1, 1, 2, 3, 1, 1] for _ in range(20)])
    drifting, _ = ranked(None, [[1, 1, 1, 2, 2, 2, 2] for _ in range(20)])
    assert loyal.decay == DECAYS[0]
    assert drifting.decay < DECAYS[0]


def test_masking_leaves_only_what_was_not_taken() -> None:
    sequences = leave_one_out([[0, 1, 2, 3], [4, 4, 5, 0]], 6)
    system = BuyAgain(1.0)
    system.fit(sequences, None, 0)
    lists = system.rank(sequences, sequences.cases(TEST), 6, mask_seen=True)
    assert not set(lists[0][lists[0] >= 0].tolist()) & {0, 1, 2}
