"""The log as training reads it: per-user sequences in flat arrays, split by time before anything is fitted.

Several events of one user on one item in immediate succession (impression, click, purchase) are one *interaction*: it
keeps the strongest kind, the first time and the longest watch. Splits:

* `leave-one-out`: per user the last target is test, the one before it validation, everything earlier training.
* `time`: the last `test_share` of all targets by clock time is test, the `valid_share` before it validation. Nothing
  fitted on the training part sees anything later.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

TRAIN: Final = 0
VALID: Final = 1
TEST: Final = 2


@dataclass(frozen=True)
class Sequences:
    """Interactions of all users, user by user, oldest first (E interactions, U users).

    Attributes:
        user_ids: (U,) str.
        offsets: (U + 1,) int64; user u owns rows offsets[u]:offsets[u + 1].
        item: (E,) int32, row of the catalogue.
        kind: (E,) int8, index into `schema.EVENT_KINDS`.
        timestamp: (E,) int64, UTC microseconds; for ordered lists without a clock, the position.
        watch_ratio: (E,) float32, watched seconds over duration; NaN where unknown.
        surface: (E,) int8, index into `schema.SURFACES`.
        position: (E,) int16, rank in the list shown; -1 unknown.
        query: (E,) int32, index into `queries`; -1 none.
        target: (E,) bool, whether this interaction may be predicted.
        stage: (E,) int8, TRAIN, VALID or TEST.
        n_items: catalogue size.
        queries: distinct query strings.
        has_clock: False when timestamps are only positions.
    """

    user_ids: NDArray[np.str_]
    offsets: NDArray[np.int64]
    item: NDArray[np.int32]
    kind: NDArray[np.int8]
    timestamp: NDArray[np.int64]
    watch_ratio: NDArray[np.float32]
    surface: NDArray[np.int8]
    position: NDArray[np.int16]
    query: NDArray[np.int32]
    target: NDArray[np.bool_]
    stage: NDArray[np.int8]
    n_items: int
    queries: tuple[str, ...] = ()
    has_clock: bool = True

    @property
    def n_users(self) -> int:
        return len(self.offsets) - 1

    @property
    def n_interactions(self) -> int:
        return len(self.item)

    @property
    def user(self) -> NDArray[np.int32]:
        """(E,) the user of each interaction."""
        return np.repeat(np.arange(self.n_users, dtype=np.int32), np.diff(self.offsets))

    def cases(self, stage: int, *, max_per_user: int | None = None, max_users: int | None = None, seed: int = 0) -> Cases:
        """What to predict in `stage`: the first `max_per_user` targets of each user, of at most `max_users` random users."""
        rows = np.flatnonzero((self.stage == stage) & self.target)
        owner = self.user[rows]
        if max_per_user is not None and len(rows):
            first = np.r_[True, owner[1:] != owner[:-1]]
            start = np.maximum.accumulate(np.where(first, np.arange(len(rows)), 0))
            keep = np.arange(len(rows)) - start < max_per_user
            rows, owner = rows[keep], owner[keep]
        if max_users is not None:
            users = np.unique(owner)
            if len(users) > max_users:
                chosen = np.random.default_rng(seed).choice(users, size=max_users, replace=False)
                keep = np.isin(owner, chosen)
                rows, owner = rows[keep], owner[keep]
        return Cases(user=owner.astype(np.int32), row=rows.astype(np.int64), target=self.item[rows])

    def history(self, case_user: int, case_row: int) -> NDArray[np.int64]:
        """Rows of the interactions before `case_row` of its user, oldest first."""
        return np.arange(self.offsets[case_user], case_row, dtype=np.int64)


@dataclass(frozen=True)
class Cases:
    """C questions to a recommender: given the user's interactions before `row`, which item comes at `row`?

    Attributes:
        user: (C,) int32.
        row: (C,) int64, the row of the target in `Sequences`; the history is offsets[user]:row.
        target: (C,) int32, the item to be found.
    """

    user: NDArray[np.int32]
    row: NDArray[np.int64]
    target: NDArray[np.int32]

    def __len__(self) -> int:
        return len(self.user)
