"""One multiplier for the whole day: a multiple of the CPA target.

At `factor` 1 no win costs more than target * p, so the expected CPA keeps the limit whatever the market does. That makes
it the floor for everything cleverer: a bidder that scores below it has learned nothing.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from rankloom.bidding.protocol import Campaigns, Decision, FloatArray, Observation
from rankloom.errors import RankloomError


def anchor(campaigns: Campaigns, unlimited: float = 100.0) -> FloatArray:
    """(N,) the CPA target, or `unlimited` where a campaign has none: the scale of its multipliers."""
    return np.where(np.isfinite(campaigns.target_cpa_N), campaigns.target_cpa_N, unlimited)


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
        return Decision(anchor(campaigns) * self.factor, ("none",) * campaigns.n)

    def arrays(self) -> dict[str, NDArray[Any]]:
        return {"factor": np.atleast_1d(np.asarray(self.factor, dtype=np.float64))}

    def settings(self) -> dict[str, Any]:
        return {"factor": self.factor} if isinstance(self.factor, (int, float)) else {}
