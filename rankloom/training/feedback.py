"""What feedback is worth: OneSearch's six levels, the calibrated counts r(q, i), and the weight of a pair.

| level | what happened to the item | base weight lambda |
|---|---|---|
| 1 | ordered in a search | 2.0 |
| 2 | ordered in a recommendation, same category as the query | 1.5 |
| 3 | clicked | 1.0 |
| 4 | shown, not clicked | 0.5 |
| 5 | of the same category, not shown | 0.2 |
| 6 | of another category | 0.0 |

With exposures p, clicks c and orders o of an item under a query,

    Cnt = log((p + 10)(c + 10)(o + 10)),  Ctr = log(c + 10) / Cnt,  Cvr = log(o + 10) / log(c + 10)
    r(q, i) = 2 lambda Ctr Cvr / (Ctr + Cvr)

An item never seen scores .5 lambda, one shown a thousand times and never clicked .333 lambda: who was not tried is given the
benefit of the doubt. Differences of two r can therefore be negative, and `rw_delta` takes them as at least `least`.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

LEVEL_WEIGHTS: Final = (2.0, 1.5, 1.0, 0.5, 0.2, 0.0)
POSITIVE: Final = 3
"""Levels 1 to 3 are positive, 4 to 6 negative."""
Numbers = NDArray[np.float64]


def levels(
    *,
    ordered_in_search: NDArray[np.bool_],
    ordered_in_feed: NDArray[np.bool_],
    clicked: NDArray[np.bool_],
    shown: NDArray[np.bool_],
    same_category: NDArray[np.bool_],
) -> NDArray[np.int64]:
    """The level, 1 to 6, of each (context, item); the first that fits.

    An order in the feed of another category is no evidence about this query: it counts as what else is known.
    """
    conditions = [ordered_in_search, ordered_in_feed & same_category, clicked, shown, same_category]
    out: NDArray[np.int64] = np.select(conditions, [1, 2, 3, 4, 5], default=6).astype(np.int64)
    return out


def calibrated(level: NDArray[Any], shown: NDArray[Any], clicks: NDArray[Any], orders: NDArray[Any]) -> Numbers:
    """r(q, i) of levels and counts, element by element."""
    weight = np.asarray(LEVEL_WEIGHTS)[np.asarray(level) - 1]
    p, c, o = (np.log(np.asarray(count, dtype=np.float64) + 10) for count in (shown, clicks, orders))
    ctr, cvr = c / (p + c + o), o / c
    reward: Numbers = 2 * weight * ctr * cvr / (ctr + cvr)
    return reward


def rw_delta(better: NDArray[Any], worse: NDArray[Any], *, least: float = 0.05) -> Numbers:
    """1 / (r(q, i+) - r(q, i-)), the difference at least `least`."""
    weight: Numbers = 1 / np.maximum(np.asarray(better, dtype=np.float64) - worse, least)
    return weight
