"""K-means with k-means++ seeding, plain or with clusters of equal size.

Balanced assignment follows the OneRec paper (2502.18965): centroids take their nearest still-unassigned points up to an
equal share. Here the points are dealt in order of the regret of not getting their best centroid, which fills the same
quotas with less distortion; sizes differ by at most one.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from rankloom.semantic.quantizers.base import FloatArray

_BLOCK_NUMBERS: Final = 2**26


def distances(x_ND: FloatArray, centroids_KD: FloatArray) -> FloatArray:
    """(N, K) squared Euclidean distances up to a constant per row."""
    out: FloatArray = (centroids_KD**2).sum(1)[None] - 2 * x_ND @ centroids_KD.T
    return out


def nearest(x_ND: FloatArray, centroids_KD: FloatArray) -> NDArray[np.int64]:
    """(N,) nearest centroid of each row; ties go to the lower number. At most 256 MiB of distances at a time."""
    block = max(1, _BLOCK_NUMBERS // len(centroids_KD))
    parts = [distances(x_ND[i : i + block], centroids_KD).argmin(1) for i in range(0, len(x_ND), block)]
    return np.concatenate(parts) if parts else np.zeros(0, dtype=np.int64)


def kmeans(
    x_ND: FloatArray,
    k: int,
    rng: np.random.Generator,
    *,
    iterations: int = 25,
    balanced: bool = False,
    start: FloatArray | None = None,
) -> tuple[FloatArray, NDArray[np.int64]]:
    """Centroids (k, D) and the assignment (N,). With fewer distinct points than k, spare centroids repeat points.

    Plain: every point is with its nearest centroid. Balanced: every centroid is the mean of its points. In both cases the
    squared error is at most that of no clustering at all.

    Args:
        start: (k, D) centroids to go on from instead of k-means++; the squared error never rises above theirs.
    """
    centroids = seed_centroids(x_ND, k, rng) if start is None else start
    assignment = np.full(len(x_ND), -1, dtype=np.int64)
    for _ in range(iterations):
        new = balanced_assignment(x_ND, centroids) if balanced else nearest(x_ND, centroids)
        if np.array_equal(new, assignment):
            return centroids, assignment
        assignment = new
        centroids = _means(x_ND, assignment, centroids)
    # balanced: dealing once more could part the points from the means just taken
    return centroids, assignment if balanced else nearest(x_ND, centroids)


def balanced_assignment(x_ND: FloatArray, centroids_KD: FloatArray) -> NDArray[np.int64]:
    """(N,) centroid of each point; every centroid gets floor(N / K) or ceil(N / K). Memory as in `nearest`."""
    n, k = len(x_ND), len(centroids_KD)
    base, extra = divmod(n, k)
    quota = np.full(k, base)
    spare = extra
    assignment = np.full(n, -1, dtype=np.int64)
    open_points = np.arange(n)
    blocked = np.zeros(k, dtype=bool)
    while len(open_points):
        best, regret = _best_and_regret(x_ND[open_points], centroids_KD, blocked)
        order = np.lexsort((open_points, -regret))
        # each round a centroid takes, by regret, what its quota (and one of the spare places) still allows
        ranked = best[order]
        by_centroid = np.argsort(ranked, kind="stable")
        sizes = np.bincount(ranked, minlength=k)
        place = np.arange(len(order)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
        room = quota.copy()
        wants = np.flatnonzero((sizes > room) & ~blocked)
        lucky = wants[:spare]
        room[lucky] += 1
        taken = place < room[ranked[by_centroid]]
        chosen = order[by_centroid[taken]]
        assignment[open_points[chosen]] = best[chosen]
        used = np.bincount(best[chosen], minlength=k)
        over = used > quota
        spare -= int(over.sum())
        quota = np.maximum(quota - used, 0)
        blocked |= over | ((quota == 0) & (spare == 0))
        if spare > 0:
            # centroids whose own quota is used up stay open for a spare place
            blocked |= over
        open_points = np.flatnonzero(assignment < 0)
    return assignment


def _best_and_regret(
    x_ND: FloatArray, centroids_KD: FloatArray, blocked_K: NDArray[np.bool_]
) -> tuple[NDArray[np.int64], FloatArray]:
    """Per point its nearest open centroid, and how much farther the next one is (infinite where there is none)."""
    best = np.empty(len(x_ND), dtype=np.int64)
    regret = np.empty(len(x_ND), dtype=np.float32)
    block = max(1, _BLOCK_NUMBERS // len(centroids_KD))
    for begin in range(0, len(x_ND), block):
        part = slice(begin, begin + block)
        cost = distances(x_ND[part], centroids_KD)
        cost[:, blocked_K] = np.inf
        rows = np.arange(len(cost))
        best[part] = cost.argmin(1)
        nearest_cost = cost[rows, best[part]]
        cost[rows, best[part]] = np.inf
        regret[part] = cost.min(1) - nearest_cost
    return best, regret


def seed_centroids(x_ND: FloatArray, k: int, rng: np.random.Generator) -> FloatArray:
    """k-means++ on a sample of at most 20 k points."""
    limit = max(20 * k, 2048)
    sample = x_ND if len(x_ND) <= limit else x_ND[np.sort(rng.choice(len(x_ND), limit, replace=False))]
    centroids = np.empty((k, x_ND.shape[1]), dtype=np.float32)
    centroids[0] = sample[rng.integers(len(sample))]
    best = ((sample - centroids[0]) ** 2).sum(1).astype(np.float64)
    for number in range(1, k):
        total = best.sum()
        pick = rng.choice(len(sample), p=best / total) if total > 0 else rng.integers(len(sample))
        centroids[number] = sample[pick]
        np.minimum(best, ((sample - centroids[number]) ** 2).sum(1), out=best)
    return centroids


def _means(x_ND: FloatArray, assignment: NDArray[np.int64], old: FloatArray) -> FloatArray:
    k = len(old)
    counts = np.bincount(assignment, minlength=k)
    order = np.argsort(assignment, kind="stable")
    starts = np.r_[0, np.cumsum(counts)[:-1]]
    sums = np.zeros_like(old)
    filled = counts > 0
    sums[filled] = np.add.reduceat(x_ND[order], starts[filled], axis=0)
    centroids = np.where(filled[:, None], sums / np.maximum(counts, 1)[:, None], old).astype(np.float32)
    empty = np.flatnonzero(~filled)
    if len(empty):
        # an unused code is put where the distortion is largest
        error = ((x_ND - centroids[assignment]) ** 2).sum(1)
        worst = np.argsort(-error, kind="stable")[: len(empty)]
        centroids[empty[: len(worst)]] = x_ND[worst]
    return centroids
