"""Is one system above another on the same cases, over several seeds?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from _common import Benchmark
from numpy.typing import NDArray

from rankloom.evaluation.metrics import Bootstrap, gains


def check_above(
    bench: Benchmark, over: str, ours: Sequence[Sequence[float]], theirs: Sequence[Sequence[float]], owner: NDArray[Any],
    *, prefix: str = "",
) -> None:  # fmt: skip
    """Checks of recall@10 and NDCG@10: the interval of the paired difference, people resampled, lies above 0.

    Args:
        over: the other system, for the name of the check.
        ours, theirs: per seed the rank of every target.
        owner: the person of each case.
    """
    # seeds are paired too: a case's value is its mean over the seeds that both have
    n = min(len(ours), len(theirs))
    for metric in ("recall", "ndcg"):
        difference = np.mean(
            [gains(np.asarray(a), 10, metric) - gains(np.asarray(b), 10, metric) for a, b in zip(ours[:n], theirs[:n], strict=True)],
            axis=0,
        )
        low, high = Bootstrap(owner, 1000).interval(difference)
        bench.check(
            f"{prefix}{metric}@10 {over}, paired, {n} seeds", f"{difference.mean():+.4f} ({low:+.4f} .. {high:+.4f})",
            target="interval above 0", ok=bool(low > 0),
        )  # fmt: skip
