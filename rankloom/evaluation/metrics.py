"""Ranking metrics over the whole catalogue, one target a case, with intervals by bootstrap over users.

Shapes: C cases, K the longest list.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rankloom.data.sequences import TRAIN, Cases, Sequences

IntArray = NDArray[np.int32]
FloatArray = NDArray[np.float64]


def target_rank(lists_CK: IntArray, target_C: IntArray) -> NDArray[np.int64]:
    """(C,) 0-based rank of the target in its list, K where it is missing."""
    hit = lists_CK == target_C[:, None]
    rank: NDArray[np.int64] = np.where(hit.any(1), hit.argmax(1), lists_CK.shape[1]).astype(np.int64)
    return rank


def gains(rank_C: NDArray[np.int64], k: int, metric: str) -> FloatArray:
    """(C,) per-case values of `recall`, `ndcg` or `mrr` at k."""
    hit = rank_C < k
    if metric == "recall":
        return hit.astype(np.float64)
    if metric == "ndcg":
        return np.where(hit, 1 / np.log2(rank_C + 2.0), 0.0)
    if metric == "mrr":
        return np.where(hit, 1 / (rank_C + 1.0), 0.0)
    raise ValueError(f"unknown metric {metric!r}")


class Bootstrap:
    """Percentile intervals of a mean over cases, resampling users (cases of a user stay together)."""

    def __init__(self, user_C: NDArray[np.integer], n_samples: int, seed: int = 0) -> None:
        users, self.owner = np.unique(user_C, return_inverse=True)
        self.n_users = len(users)
        self.cases = np.bincount(self.owner, minlength=self.n_users).astype(np.float64)
        rng = np.random.default_rng(seed)
        self.weights = [
            rng.multinomial(self.n_users, np.full(self.n_users, 1 / self.n_users)) for _ in range(n_samples)
        ]

    def interval(self, values_C: FloatArray, *, level: float = 0.95) -> tuple[float, float]:
        """The interval of the mean; for a paired comparison pass the per-case differences of two systems."""
        if not self.weights or not len(values_C):
            return float("nan"), float("nan")
        per_user = np.bincount(self.owner, weights=values_C, minlength=self.n_users)
        means = [float(w @ per_user / (w @ self.cases)) for w in self.weights]
        low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
        return float(low), float(high)


def popularity_buckets(sequences: Sequences) -> dict[str, NDArray[np.bool_]]:
    """Item masks: `head` the most popular items that hold half of the training targets, `mid` the next 40%, `tail` the
    rest with at least one, `cold` none, `cold<=3` at most three."""
    trained = (sequences.stage == TRAIN) & sequences.target
    counts = np.bincount(sequences.item[trained], minlength=sequences.n_items)
    order = np.argsort(-counts, kind="stable")
    share = np.zeros(len(counts))
    share[order] = (np.cumsum(counts[order]) - counts[order]) / max(1, counts.sum())
    return {
        "head": (share < 0.5) & (counts > 0),
        "mid": (share >= 0.5) & (share < 0.9) & (counts > 0),
        "tail": (share >= 0.9) & (counts > 0),
        "cold": counts == 0,
        "cold<=3": counts <= 3,
    }


def beyond_accuracy(lists_CK: IntArray, k: int, sequences: Sequences) -> dict[str, float]:
    """`coverage` of the catalogue, `gini` of exposure, `novelty` in bits (mean -log2 of the training share)."""
    shown = lists_CK[:, :k]
    shown = shown[shown >= 0]
    exposure = np.sort(np.bincount(shown, minlength=sequences.n_items).astype(np.float64))
    trained = (sequences.stage == TRAIN) & sequences.target
    counts = np.bincount(sequences.item[trained], minlength=sequences.n_items) + 1.0
    n = len(exposure)
    total = exposure.sum()
    gini = float((2 * np.arange(1, n + 1) - n - 1) @ exposure / (n * total)) if total else float("nan")
    novelty = float(-np.log2(counts[shown] / counts.sum()).mean()) if len(shown) else float("nan")
    return {"coverage": float((exposure > 0).mean()), "gini": gini, "novelty": novelty}


def rows_of(
    lists_CK: IntArray, cases: Cases, sequences: Sequences, *, system: str, variant: str, masked: bool,
    ks: Sequence[int], bootstrap: Bootstrap,
) -> list[dict[str, Any]]:  # fmt: skip
    """All tidy rows of one system's lists."""
    rank = target_rank(lists_CK, cases.target)
    base = {"system": system, "variant": variant, "masked": masked}
    rows: list[dict[str, Any]] = []
    for metric in ("recall", "ndcg", "mrr"):
        for k in ks:
            values = gains(rank, k, metric)
            low, high = bootstrap.interval(values)
            rows.append({**base, "metric": metric, "k": k, "value": float(values.mean()) if len(values) else float("nan"),
                         "low": low, "high": high, "n": len(values), "slice": "all"})  # fmt: skip
    for name, mask in popularity_buckets(sequences).items():
        inside = mask[cases.target]
        if inside.any():
            value = float(gains(rank[inside], 10, "recall").mean())
            rows.append({**base, "metric": "recall", "k": 10, "value": value, "low": None, "high": None,
                         "n": int(inside.sum()), "slice": name})  # fmt: skip
    for metric, value in beyond_accuracy(lists_CK, 10, sequences).items():
        rows.append(
            {
                **base,
                "metric": metric,
                "k": 10,
                "value": value,
                "low": None,
                "high": None,
                "n": len(rank),
                "slice": "all",
            }
        )
    return rows
