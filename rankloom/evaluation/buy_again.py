"""Buy again: the floor where people come back to what they took. What a person took often and lately comes first.

    score(i | u) = sum over the person's takes of i of decay^(takes since then)

The personal part of frequency recommenders (Li, Jullien, Ariannezhad & de Rijke 2023 find it hard to beat on repeats); the
decay is chosen on validation, 1 is plain frequency. Below it popularity orders what the person never took.

Shapes: C cases of a block, I items.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from scipy import sparse

from rankloom.data.sequences import VALID, Cases, Sequences
from rankloom.evaluation.metrics import gains, target_rank
from rankloom.evaluation.systems import FloatArray, ScoringSystem, training_counts

DECAYS: Final = (1.0, 0.998, 0.995, 0.99, 0.98, 0.95, 0.9, 0.8)
_CASES: Final = 2000


class BuyAgain(ScoringSystem):
    """See the module's docstring. `decay` fixes what is otherwise chosen on validation (NDCG@10)."""

    name = "buy-again"

    def __init__(self, decay: float | None = None) -> None:
        self.fixed = decay
        self.decay = 1.0 if decay is None else decay

    def fit(self, sequences: Sequences, content: FloatArray | None, seed: int) -> None:
        counts = training_counts(sequences).astype(np.float32)
        # below the least that one take can count for
        self.backoff = 1e-9 * counts / (counts.sum() + 1)
        if self.fixed is not None:
            return
        cases = sequences.cases(VALID, max_per_user=5, max_users=_CASES, seed=seed)
        if not len(cases):
            return
        figures = []
        for decay in DECAYS:
            self.decay = decay
            lists = self.rank(sequences, cases, 10, mask_seen=False)
            figures.append(float(gains(target_rank(lists, cases.target), 10, "ndcg").mean()))
        self.decay = DECAYS[int(np.argmax(figures))]

    def scores(self, sequences: Sequences, cases: Cases, part: slice) -> FloatArray:
        start, stop = sequences.offsets[cases.user[part]], cases.row[part]
        length = stop - start
        place = np.repeat(np.arange(len(length)), length)
        rows = np.repeat(start, length) + np.arange(len(place)) - np.repeat(np.cumsum(length) - length, length)
        taken = sequences.target[rows]
        place, rows = place[taken], rows[taken]
        # takes since then, counted among the takes alone
        own = np.bincount(place, minlength=len(length))
        since = np.repeat(np.cumsum(own), own) - 1 - np.arange(len(place))
        weight = np.maximum(self.decay**since, 1e-6).astype(np.float32)
        entries: Any = (weight, (place, sequences.item[rows]))
        scores: FloatArray = sparse.csr_matrix(entries, shape=(len(length), sequences.n_items)).toarray() + self.backoff
        return scores
