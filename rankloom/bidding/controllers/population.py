"""The rest of a market: rivals of other kinds than the ones we would recommend.

`OnlineLP` reads the multiplier at which a usual day would use up the remaining budget (AuctionNet's OnlineLP, capped at 1.5 C);
`Exploring` walks at random; `Noisy` bids its target with noise; `Burner` bids high from the first opportunity until the
money is gone.
"""

from __future__ import annotations

import numpy as np

from rankloom.bidding.controllers.constant import scale
from rankloom.bidding.controllers.mpc import MPC, MPCSettings
from rankloom.bidding.curves import MarketPrior
from rankloom.bidding.protocol import Campaigns, Decision, FloatArray, Observation


class OnlineLP:
    """The multiplier at which the expected rest of a usual day costs the remaining budget, at most `cap` times the target."""

    name = "online-lp"

    def __init__(self, cap: float = 1.5, prior: MarketPrior | None = None) -> None:
        self.cap = cap
        self._planner = MPC(MPCSettings(scenarios=2), prior)

    def start(self, campaigns: Campaigns, seed: int) -> None: ...

    def decide(self, observation: Observation) -> Decision:
        target_N = scale(observation)
        factor_A, cost_NA = self._planner.expected_cost(observation)
        affordable_NA = cost_NA <= observation.remaining_N[:, None]
        place_N = np.maximum(affordable_NA.sum(axis=1) - 1, 0)
        factor_N = np.minimum(factor_A[place_N], self.cap)
        binding = tuple("budget" if factor < self.cap else "cpa" for factor in factor_N)
        return Decision(factor_N * target_N, binding)


class _Random:
    """A random walk of the multiplier around a level of the day."""

    name = "random"
    level_mean, level_sd, walk_sd, noise_sd = 0.0, 0.0, 0.0, 0.0

    def __init__(self) -> None:
        self._level_N: FloatArray = np.zeros(0)
        self._walk_N: FloatArray = np.zeros(0)
        self._rng = np.random.default_rng(0)

    def start(self, campaigns: Campaigns, seed: int) -> None:
        self._rng = np.random.default_rng((seed, 41))
        self._level_N = (
            self._rng.normal(self.level_mean, self.level_sd, campaigns.n)
            if self.level_sd
            else np.full(campaigns.n, self.level_mean)
        )
        self._walk_N = np.zeros(campaigns.n)

    def decide(self, observation: Observation) -> Decision:
        n = observation.campaigns.n
        self._walk_N = 0.9 * self._walk_N + self._rng.normal(0.0, 1.0, n) * self.walk_sd
        log_N = self._level_N + self._walk_N + self._rng.normal(0.0, 1.0, n) * self.noise_sd
        return Decision(scale(observation) * np.exp(np.clip(log_N, -2.0, 2.0)), ("none",) * n)


class Exploring(_Random):
    """Target times a lognormal level of the day times an AR(1) walk."""

    name = "exploring"
    level_mean, level_sd, walk_sd = 0.0, 0.35, 0.1


class Noisy(_Random):
    """Target times noise that is drawn anew in every tick."""

    name = "noisy"
    level_mean, noise_sd = -0.05, 0.2


class Burner(_Random):
    """First come: twice the target until the budget is gone."""

    name = "burner"
    level_mean = float(np.log(2.0))
