"""A relevance model from graded pairs: lexical and vector evidence joined by boosted trees.

OneSearch scores pairs with a language model; a shop with a few thousand pairs that people graded can fit this instead, at the cost
of seconds. It ranks the candidates of a query (LambdaMART, Burges 2010, by LightGBM) by the features of evidence.py, each also as
its distance to the best and to the mean of the query's candidates: what is relevant among these is what is asked.

Shapes: P pairs, F features.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float32]
ROUNDS: Final = 200
_SETTINGS: Final[dict[str, Any]] = {
    "objective": "lambdarank", "learning_rate": 0.05, "num_leaves": 15, "min_data_in_leaf": 40, "feature_fraction": 0.6,
    "bagging_fraction": 0.8, "bagging_freq": 1, "lambda_l2": 5.0, "verbosity": -1, "deterministic": True, "num_threads": 1,
}  # fmt: skip


def in_lists(features_PF: FloatArray, group_P: NDArray[Any]) -> FloatArray:
    """(P, 3 F) features, then each less the largest and less the mean of its list.

    Args:
        group_P: which list (query) a pair belongs to.
    """
    _, number = np.unique(group_P, return_inverse=True)
    number = number.reshape(-1)
    n = int(number.max(initial=-1)) + 1
    most = np.full((n, features_PF.shape[1]), -np.inf, dtype=np.float32)
    np.maximum.at(most, number, features_PF)
    total = np.zeros((n, features_PF.shape[1]), dtype=np.float64)
    np.add.at(total, number, features_PF)
    mean = (total / np.bincount(number, minlength=n)[:, None]).astype(np.float32)
    return np.concatenate([features_PF, features_PF - most[number], features_PF - mean[number]], axis=1)


class RelevanceTeacher:
    """See the module's docstring.

    Args:
        seeds: boosters whose scores are averaged.
    """

    def __init__(self, *, rounds: int = ROUNDS, seeds: int = 3) -> None:
        self.rounds, self.seeds = rounds, seeds
        self.boosters: list[Any] = []

    def fit(self, features_PF: FloatArray, grade_P: NDArray[Any], group_P: NDArray[Any], *, seed: int = 0) -> RelevanceTeacher:
        """Learns from graded lists; returns itself.

        Args:
            grade_P: whole numbers from 0 on, more is better.
        """
        import lightgbm

        order = np.argsort(group_P, kind="stable")
        _, sizes = np.unique(group_P[order], return_counts=True)
        rows = in_lists(features_PF, group_P)[order]
        data = lightgbm.Dataset(rows, label=grade_P[order], group=sizes, free_raw_data=False)
        self.boosters = [
            lightgbm.train({**_SETTINGS, "seed": seed * self.seeds + n}, data, num_boost_round=self.rounds)
            for n in range(self.seeds)
        ]
        return self

    def score(self, features_PF: FloatArray, group_P: NDArray[Any]) -> NDArray[np.float64]:
        """(P,) scores, comparable within a list."""
        rows = in_lists(features_PF, group_P)
        total = np.zeros(len(rows))
        for booster in self.boosters:
            total += booster.predict(rows)
        return total / max(1, len(self.boosters))
