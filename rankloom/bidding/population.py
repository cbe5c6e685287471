"""Training trajectories of behaviour that nobody logged: days played on the response curves of training periods.

A log shows each campaign-day under one bidder, mostly a mediocre one, and its actions are confounded with who bid. On the
curves of the same days (`responses`) any bidder can be tried in any seat with any budget. The population mixes

* `expert`: the best bidder at hand (the pathwise policy) under perturbation: a factor for the whole
  day, and noise from tick to tick;
* `hindsight` (none by default): the best constant of the day, known afterwards, off by a random factor. What it bids is chosen with
  knowledge of the day to come, which a critic cannot tell from an effect of the bid;
* `wander` (none by default): random constants with a slow random walk, good and bad ones.

Because the perturbations are drawn, not chosen by a bidder, what follows from a higher multiplier can be read from the population
without confounding: it is what the explored actions of GAVE and the critics of offline RL need. Realised conversions are Poisson draws
of the expected ones. Only training periods may be given.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np

from rankloom.bidding.day import play_day
from rankloom.bidding.protocol import Campaigns, Controller, Decision, FloatArray, IntArray, Observation
from rankloom.bidding.responses import CurveMarket, ResponseCurves
from rankloom.bidding.trajectories import Trajectories, concatenate, from_result


@dataclass(frozen=True)
class PopulationConfig:
    """Attributes: passes over all seat-days per kind of behaviour; budget_ratios: drawn log-uniformly; perturbations as standard
    deviations of log factors (whole day, tick to tick); tick_memory: how much of a tick's factor is left in the next (a first-order
    autoregression): a deviation that lasts some ticks has an effect that can be learned, one that lasts all day is copied."""

    hindsight: int = 0
    expert: int = 4
    wander: int = 0
    budget_ratios: tuple[float, float] = (0.4, 1.7)
    hindsight_day_sd: float = 0.10
    expert_day_sd: float = 0.05
    tick_sd: float = 0.12
    tick_memory: float = 0.3
    wander_day_sd: float = 0.40
    wander_step_sd: float = 0.06


@dataclass
class _Perturbed:
    """A controller (or a constant, as log multiples of the target) times a factor per day and noise per tick."""

    name: str
    day_sd: float
    tick_sd: float
    memory: float
    step_sd: float = 0.0
    controller: Controller | None = None
    log_constant_N: FloatArray | None = None
    _rng: np.random.Generator = field(default_factory=lambda: np.random.default_rng(0))
    _day_N: FloatArray = field(default_factory=lambda: np.zeros(0))
    _noise_N: FloatArray = field(default_factory=lambda: np.zeros(0))

    def start(self, campaigns: Campaigns, seed: int) -> None:
        self._rng = np.random.default_rng(seed)
        self._day_N = self.day_sd * self._rng.standard_normal(campaigns.n)
        self._noise_N = self.tick_sd * self._rng.standard_normal(campaigns.n)
        if self.controller is not None:
            self.controller.start(campaigns, seed)

    def decide(self, observation: Observation) -> Decision:
        n = observation.campaigns.n
        if self.controller is not None:
            log_N = np.log(np.maximum(self.controller.decide(observation).multiplier_N, 1e-9))
        else:
            constant_N = self.log_constant_N if self.log_constant_N is not None else np.zeros(n)
            log_N = constant_N + np.log(observation.campaigns.target_cpa_N)
        self._day_N = self._day_N + self.step_sd * self._rng.standard_normal(n)
        fresh_N = np.sqrt(1 - self.memory**2) * self.tick_sd * self._rng.standard_normal(n)
        self._noise_N = self.memory * self._noise_N + fresh_N
        return Decision(np.exp(log_N + self._day_N + self._noise_N), ("none",) * n)


def build_population(
    curves: ResponseCurves,
    index_M: IntArray,
    expert: Controller | None,
    *,
    config: PopulationConfig | None = None,
    seed: int = 0,
) -> Trajectories:
    """The population on seat-days `index_M` of the curves; see the module's text."""
    config = config or PopulationConfig()
    if expert is None and not (config.hindsight or config.wander):
        # nobody to perturb: known-afterwards constants and walks around them are what is left
        config = replace(config, hindsight=1, wander=1)
    rng = np.random.default_rng((seed, 29))
    low, high = np.log(config.budget_ratios[0]), np.log(config.budget_ratios[1])
    parts = []

    def play(behaviour: _Perturbed, ratio_M: FloatArray) -> None:
        market = CurveMarket(
            curves, index_M, budget_ratio_M=ratio_M, conversions_seed=int(rng.integers(2**31)), name=behaviour.name
        )
        result = play_day(market, behaviour, seed=int(rng.integers(2**31)))
        day = from_result(result, period=0, seat_N=curves.seat_N[index_M])
        parts.append(replace(day, period_N=curves.period_N[index_M]))

    for kind, passes in (("hindsight", config.hindsight), ("expert", config.expert), ("wander", config.wander)):
        for _ in range(passes if kind != "expert" or expert is not None else 0):
            ratio_M = np.exp(rng.uniform(low, high, len(index_M)))
            if kind == "hindsight":
                best_M, _score = curves.best_constants(index_M, curves.campaigns.budget_N[index_M] * ratio_M)
                play(_Perturbed(kind, config.hindsight_day_sd, config.tick_sd, config.tick_memory, log_constant_N=best_M), ratio_M)
            elif kind == "expert":
                play(_Perturbed(kind, config.expert_day_sd, config.tick_sd, config.tick_memory, controller=expert), ratio_M)
            else:
                centre_M = np.full(len(index_M), 0.1)
                play(
                    _Perturbed(
                        kind, config.wander_day_sd, config.tick_sd, config.tick_memory, config.wander_step_sd, log_constant_N=centre_M
                    ),
                    ratio_M,
                )
    return concatenate(parts)
