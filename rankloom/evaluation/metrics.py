"""Ranking metrics over the whole catalogue, one target a case, with intervals by bootstrap over users.

Shapes: C cases, K the longest list, U users, S bootstrap samples.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from rankloom.data.sequences import TRAIN, Cases, Sequences

IntArray = NDArray[np.int32]
FloatArray = NDArray[np.float64]

METRICS: Final = ("recall", "ndcg", "mrr")
SLICES: Final = ("head", "mid", "tail", "cold", "cold<=3")
# beyond every list, however short the list and large the k
MISSING: Final = np.iinfo(np.int32).max
# coverage, Gini and novelty describe one page of results
BEYOND_K: Final = 10


def target_rank(lists_CK: IntArray, target_C: IntArray) -> NDArray[np.int64]:
    """(C,) 0-based rank of the target in its list, `MISSING` where it is not there."""
    hit = lists_CK == target_C[:, None]
    rank: NDArray[np.int64] = np.where(hit.any(1), hit.argmax(1), MISSING).astype(np.int64)
    return rank


def gains(rank_C: NDArray[np.int64], k: int, metric: str) -> FloatArray:
    """(C,) per-case values of `recall`, `ndcg` or `mrr` at k. With one target, recall is the hit rate and the ideal DCG 1."""
    hit = rank_C < k
    if metric == "recall":
        return hit.astype(np.float64)
    if metric == "ndcg":
        return np.where(hit, 1 / np.log2(rank_C + 2.0), 0.0)
    if metric == "mrr":
        return np.where(hit, 1 / (rank_C + 1.0), 0.0)
    raise ValueError(f"unknown metric {metric!r}")


class Bootstrap:
    """Percentile intervals of a mean over cases, resampling users (cases of a user stay together).

    Args:
        user_C: whose case each is.
        n_samples: S; 0 gives no intervals (NaN).
    """

    def __init__(self, user_C: NDArray[np.integer], n_samples: int, seed: int = 0) -> None:
        users, self.owner = np.unique(user_C, return_inverse=True)
        self.n_users = len(users)
        # float32 counts are exact, and one matrix product does all samples of a figure
        self.weight_SU = np.zeros((0, self.n_users), dtype=np.float32)
        if self.n_users and n_samples:
            share = np.full(self.n_users, 1 / self.n_users)
            drawn = np.random.default_rng(seed).multinomial(self.n_users, share, size=n_samples)
            self.weight_SU = drawn.astype(np.float32)

    def interval(
        self, values_C: FloatArray, inside_C: NDArray[np.bool_] | None = None, *, level: float = 0.95
    ) -> tuple[float, float]:
        """The interval of the mean; for a paired comparison pass the per-case differences of two systems.

        Args:
            inside_C: which cases count; None for all.
        """
        if not len(self.weight_SU) or not len(values_C):
            return float("nan"), float("nan")
        inside = np.ones(len(values_C)) if inside_C is None else inside_C.astype(np.float64)
        sums = np.bincount(self.owner, weights=values_C * inside, minlength=self.n_users)
        sizes = np.bincount(self.owner, weights=inside, minlength=self.n_users)
        total = self.weight_SU @ sizes
        # a sample that drew nobody of the slice says nothing about it
        means = (self.weight_SU @ sums)[total > 0] / total[total > 0]
        if not len(means):
            return float("nan"), float("nan")
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
    """All tidy rows of one system's lists: every metric over all cases, recall by popularity of the target, and what
    accuracy does not tell. A figure that cannot be computed (no cases) is None, and so is an interval without samples."""
    rank = target_rank(lists_CK, cases.target)
    rows: list[dict[str, Any]] = []

    def add(metric: str, k: int, value: float, interval: tuple[float, float] | None, n: int, part: str = "all") -> None:
        low, high = interval or (float("nan"), float("nan"))
        rows.append(
            {
                "system": system, "variant": variant, "metric": metric, "k": k, "masked": masked, "value": _number(value),
                "low": _number(low), "high": _number(high), "n": n, "slice": part,
            }
        )  # fmt: skip

    for metric in METRICS:
        for k in ks:
            values = gains(rank, k, metric)
            mean = float(values.mean()) if len(values) else float("nan")
            add(metric, k, mean, bootstrap.interval(values), len(values))
    for name, mask in popularity_buckets(sequences).items():
        inside = mask[cases.target]
        if inside.any():
            for k in ks:
                values = gains(rank, k, "recall")
                add(
                    "recall",
                    k,
                    float(values[inside].mean()),
                    bootstrap.interval(values, inside),
                    int(inside.sum()),
                    name,
                )
    for metric, value in beyond_accuracy(lists_CK, BEYOND_K, sequences).items():
        add(metric, BEYOND_K, value, None, len(rank))
    return rows


def _number(value: float) -> float | None:
    """JSON has no NaN."""
    return None if np.isnan(value) else float(value)
