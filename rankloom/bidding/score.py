"""What a bidder is judged by: conversions under a budget, marked down where the cost per conversion broke its limit.

    Score = value * min{(C / CPA)^gamma, 1},   CPA = cost / value

with C the campaign's CPA target (AuctionNet, section 4; GAVE, equations 13-15). gamma = 0 counts conversions alone (CBD's
"Value"), 2 is what all released code and later papers use, 5 punishes hard; the AuctionNet paper's text says "typically 3".
A campaign without any value scores 0, whatever it spent: dividing by a tiny epsilon instead is a known slip.

All functions work on arrays of any one shape, money and targets in the same unit.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import ArrayLike

from rankloom.bidding.protocol import FloatArray

GAMMAS: Final = (0.0, 2.0, 5.0)
DEFAULT_GAMMA: Final = 2.0


def cpa_ratio(value: ArrayLike, cost: ArrayLike, target_cpa: ArrayLike) -> FloatArray:
    """Realised cost per conversion over its limit; 0 where nothing was spent, inf where money bought nothing."""
    value_, cost_, target = (np.asarray(each, dtype=np.float64) for each in (value, cost, target_cpa))
    allowed = np.where(value_ > 0, value_, 0.0) * np.where(np.isfinite(target), target, 0.0)
    spent, allowed = np.broadcast_arrays(cost_, allowed)
    with np.errstate(over="ignore"):  # money over next to no value is infinitely dear
        ratio = np.divide(spent, allowed, out=np.full(spent.shape, np.inf), where=allowed > 0)
    limitless = np.broadcast_to(~np.isfinite(target) & (value_ > 0), spent.shape)
    return np.where((spent <= 0) | limitless, 0.0, ratio)


def score(value: ArrayLike, cost: ArrayLike, target_cpa: ArrayLike, gamma: float = DEFAULT_GAMMA) -> FloatArray:
    """Score of each campaign.

    Args:
        value: conversions, expected or realised.
        cost: money spent.
        target_cpa: limit of cost per conversion; inf for none.
        gamma: exponent of the penalty, >= 0.
    """
    if not gamma >= 0:
        raise ValueError(f"gamma must be at least 0, not {gamma}")
    value_ = np.asarray(value, dtype=np.float64)
    over = np.maximum(cpa_ratio(value_, cost, target_cpa), 1.0)
    with np.errstate(under="ignore"):
        penalty = over**-gamma
    return np.asarray(np.where(value_ > 0, value_ * penalty, 0.0), dtype=np.float64)


@dataclass(frozen=True)
class Outcome:
    """How a batch of campaigns ended, one entry a campaign; see `score`.

    Attributes:
        value_N: conversions that are judged.
        cost_N, budget_N, target_cpa_N: money.
    """

    value_N: FloatArray
    cost_N: FloatArray
    budget_N: FloatArray
    target_cpa_N: FloatArray

    def score(self, gamma: float = DEFAULT_GAMMA) -> FloatArray:
        return score(self.value_N, self.cost_N, self.target_cpa_N, gamma)

    @property
    def cpa_ratio(self) -> FloatArray:
        return cpa_ratio(self.value_N, self.cost_N, self.target_cpa_N)

    @property
    def utilisation(self) -> FloatArray:
        """Share of the budget that was spent."""
        return np.divide(self.cost_N, self.budget_N, out=np.zeros_like(self.cost_N), where=self.budget_N > 0)

    @property
    def over_cpa(self) -> FloatArray:
        """1 where the CPA limit is broken."""
        return (self.cpa_ratio > 1.0).astype(np.float64)

    def summary(self, gammas: tuple[float, ...] = GAMMAS) -> dict[str, float]:
        """Means over the campaigns; `cpa_ratio` is total cost over total allowed cost, which no empty day can blow up."""
        limited = np.isfinite(self.target_cpa_N)
        allowed = float((self.value_N * np.where(limited, self.target_cpa_N, 0.0)).sum())
        figures = {
            ("score" if gamma == DEFAULT_GAMMA else f"score_gamma{gamma:g}"): float(self.score(gamma).mean())
            for gamma in gammas
        }
        return figures | {
            "value": float(self.value_N.mean()),
            "utilisation": float(self.utilisation.mean()),
            "cpa_ratio": float(self.cost_N[limited].sum()) / allowed if allowed > 0 else 0.0,
            "over_cpa": float(self.over_cpa.mean()),
            "max_utilisation": float(self.utilisation.max()),
        }


def concatenate(outcomes: list[Outcome]) -> Outcome:
    """Outcomes of several days as one, campaign after campaign."""
    return Outcome(
        value_N=np.concatenate([each.value_N for each in outcomes]),
        cost_N=np.concatenate([each.cost_N for each in outcomes]),
        budget_N=np.concatenate([each.budget_N for each in outcomes]),
        target_cpa_N=np.concatenate([each.target_cpa_N for each in outcomes]),
    )


def paired_bootstrap(
    first: FloatArray, second: FloatArray, *, seed: int = 0, draws: int = 10_000, level: float = 0.95
) -> tuple[float, float, float]:
    """Mean of `first - second` over pairs (the same campaign on the same day) and its bootstrap interval.

    Returns:
        (mean difference, low, high). The difference is significant at `level` when the interval excludes 0.
    """
    difference = np.asarray(first, dtype=np.float64) - np.asarray(second, dtype=np.float64)
    rng = np.random.default_rng(seed)
    means = np.empty(draws)
    # in blocks: 10,000 draws of 96 pairs are small, of many days they are not
    block = max(1, 2_000_000 // max(difference.size, 1))
    for begin in range(0, draws, block):
        size = min(block, draws - begin)
        means[begin : begin + size] = difference[rng.integers(0, difference.size, (size, difference.size))].mean(axis=1)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(difference.mean()), float(low), float(high)
