"""One multiplier for the whole day: a multiple of the CPA target.

At `factor` 1 no win costs more than target * p, so the expected CPA keeps the limit whatever the market does. That makes
it the floor for everything cleverer: a bidder that scores below it has learned nothing.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from rankloom.bidding.protocol import N_TICKS, Campaigns, Decision, FloatArray, Observation
from rankloom.errors import RankloomError

WON_SHARE: Final = 0.1  # of a day's p: what a campaign of usual size wins of it


def anchor(campaigns: Campaigns, unlimited: float = 100.0) -> FloatArray:
    """(N,) the CPA target, or `unlimited` where a campaign has none: the scale of its multipliers."""
    return np.where(np.isfinite(campaigns.target_cpa_N), campaigns.target_cpa_N, unlimited)


def scale(observation: Observation) -> FloatArray:
    """(N,) the CPA target; for campaigns without one half the price that the market asks per unit of p so far.

    Half, because that is where the targets of the public log lie: a campaign wins the opportunities that suit it best. Before a
    price is known it is what the budget could pay if a small share of the day's p were won, in any currency and at any level of
    p; before anything is known, 100.
    """
    campaigns, history = observation.campaigns, observation.history
    if np.isfinite(campaigns.target_cpa_N).all():
        return campaigns.target_cpa_N
    guess_N = np.full(campaigns.n, 100.0)
    volume_N, p_mean_N = observation.volume_forecast_N, observation.p_mean_forecast_N
    if volume_N is not None and p_mean_N is not None:
        day_N = volume_N * p_mean_N * N_TICKS
        guess_N = np.where(day_N > 0, campaigns.budget_N / (WON_SHARE * np.maximum(day_N, 1e-300)), guess_N)
    known_NT = (history.least_winning_cost_NT > 0) & (history.p_sum_NT > 0)
    price_N = np.where(known_NT, history.least_winning_cost_NT * history.volume_NT, 0.0).sum(axis=1)
    p_sum_N = np.where(known_NT, history.p_sum_NT, 0.0).sum(axis=1)
    market_N = np.where(p_sum_N > 0, 0.5 * price_N / np.where(p_sum_N > 0, p_sum_N, 1.0), guess_N)
    return np.where(np.isfinite(campaigns.target_cpa_N), campaigns.target_cpa_N, market_N)


class Constant:
    """multiplier = factor * target CPA, all day.

    Args:
        factor: one number, or one a campaign.
    """

    def __init__(self, factor: float | FloatArray = 1.0) -> None:
        if not (np.isfinite(factor).all() and (np.asarray(factor) >= 0).all()):
            raise RankloomError(
                f"a constant bidder's factor is a finite number of at least 0, not {factor}", code="factor-invalid"
            )
        self.factor = factor
        self.name = "alpha = C" if np.ndim(factor) == 0 and factor == 1 else "alpha = k C"
        if np.ndim(factor) == 0 and factor != 1:
            self.name = f"alpha = {float(factor):g} C"

    def start(self, campaigns: Campaigns, seed: int) -> None: ...

    def decide(self, observation: Observation) -> Decision:
        campaigns = observation.campaigns
        return Decision(scale(observation) * self.factor, ("none",) * campaigns.n)

    def arrays(self) -> dict[str, NDArray[Any]]:
        return {"factor": np.atleast_1d(np.asarray(self.factor, dtype=np.float64))}

    def settings(self) -> dict[str, Any]:
        return {"factor": self.factor} if isinstance(self.factor, (int, float)) else {}
