"""Lists to figures: hit rate and reciprocal rank, by how often the target was taken, with intervals; paired differences.

Shapes: C cases, K length of a list, I items, R seeds.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from rankloom.evaluation.metrics import Bootstrap, gains, target_rank
from rankloom.evaluation.systems import IntArray

HIT_AT: Final = (1, 10, 50, 350)
RECIPROCAL_AT: Final = (10, 350)
LONGEST: Final = 350
COLD: Final = 3
_METRIC: Final = {"hr": "recall", "mrr": "mrr"}
Ranks = NDArray[np.int64]


def figures(
    rank_C: Ranks, count_C: NDArray[Any], user_C: NDArray[Any], *, n_samples: int = 1000, seed: int = 0
) -> list[dict[str, Any]]:
    """Rows of metric (`hr`, `mrr`), k, value, low, high, n and slice.

    Args:
        rank_C: 0-based places of the targets, `metrics.MISSING` where not listed.
        count_C: TRAIN events of the targets: slices `cold` (at most three) and `warm`, and `rare`, `middle` and `often`, a third
            of the cases each.
        user_C: whose case each is; people are resampled.
    """
    bootstrap = Bootstrap(user_C, n_samples, seed)
    thirds = third_of(count_C)
    slices = {
        "all": np.ones(len(rank_C), dtype=bool),
        "cold": count_C <= COLD,
        "warm": count_C > COLD,
        **{name: thirds == number for number, name in enumerate(("rare", "middle", "often"))},
    }
    rows = []
    for part, inside in slices.items():
        if not inside.any():
            continue
        for metric, ks in (("hr", HIT_AT), ("mrr", RECIPROCAL_AT)):
            for k in ks if part == "all" else (10,):
                values = gains(rank_C, k, _METRIC[metric])
                low, high = bootstrap.interval(values, inside)
                rows.append(
                    {
                        "metric": metric, "k": k, "value": float(values[inside].mean()), "low": low, "high": high,
                        "n": int(inside.sum()), "slice": part,
                    }
                )  # fmt: skip
    return rows


def value(rank_C: Ranks, metric: str, k: int, inside_C: NDArray[np.bool_] | None = None) -> float:
    """One figure; NaN without cases."""
    values = gains(rank_C, k, _METRIC[metric])
    if inside_C is not None:
        values = values[inside_C]
    return float(values.mean()) if len(values) else float("nan")


def difference(
    ours_RC: Sequence[Ranks],
    theirs_RC: Sequence[Ranks],
    user_C: NDArray[Any],
    metric: str,
    k: int,
    *,
    n_samples: int = 1000,
) -> tuple[float, float, float]:
    """(mean, low, high) of ours minus theirs, paired over cases and seeds, 95% interval over people.

    Seeds are paired in order; where one side has fewer (nothing of it is drawn), its last one stands for the rest.
    """
    n = max(len(ours_RC), len(theirs_RC))

    def mean_of(ranks: Sequence[Ranks]) -> NDArray[np.float64]:
        own = [gains(np.asarray(ranks[min(turn, len(ranks) - 1)]), k, _METRIC[metric]) for turn in range(n)]
        total: NDArray[np.float64] = np.mean(own, axis=0)
        return total

    values = mean_of(ours_RC) - mean_of(theirs_RC)
    low, high = Bootstrap(user_C, n_samples).interval(values)
    return float(values.mean()), low, high


def third_of(count_C: NDArray[Any]) -> NDArray[np.int64]:
    """(C,) 0, 1 or 2 by ascending count; equal counts are in one third."""
    order = np.sort(count_C)
    limits = [order[-(-len(order) * part // 3) - 1] for part in (1, 2)] if len(order) else [0, 0]
    out: NDArray[np.int64] = np.searchsorted(np.asarray(limits), count_C, side="left").astype(np.int64)
    return out


def ranks_of(lists_CK: IntArray, target_C: IntArray) -> Ranks:
    """(C,) 0-based place of each target."""
    return target_rank(lists_CK, target_C)
