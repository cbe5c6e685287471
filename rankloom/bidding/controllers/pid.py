"""Feedback control: the multiplier follows what was spent and what it bought.

`PID` is the first generation as the control literature writes it (Zhang et al., WSDM 2016, arXiv 1603.01055): an
exponential actuator, alpha' = alpha exp(phi), because a linear one goes negative; one loop for the budget and one for the
CPA, joined by their minimum (never chained: field guide, arXiv 2302.08530). Each loop is in velocity form,

    phi = Kp (e_t - e_{t-1}) + Ki e_t + Kd (e_t - 2 e_{t-1} + e_{t-2}),

starting from the multiplier that was really bid. So a loop that is overruled by the other, or sits at a clamp, winds nothing
up, and the controller keeps no state: whatever it needs is in the history, and a restarted server goes on as if nothing
had happened.

The budget loop's error is log(remaining budget / spend that the recent rate would need for the traffic to come), with
traffic weighed by the shape of a usual day; the CPA loop's is log(target / CPA at the day's end if it went on like
that). Below alpha = C no bid can worsen the expected CPA, so the CPA loop does not push lower than `cpa_floor` * C.

`StockPID` is the rule AuctionNet calls PID, for reference.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from rankloom.bidding.controllers.constant import scale
from rankloom.bidding.curves import MarketPrior
from rankloom.bidding.protocol import N_TICKS, Campaigns, Decision, FloatArray, History, Observation


@dataclass(frozen=True)
class PIDSettings:
    """Gains, tuned for Score on rebuilt training days of the public log; multipliers in units of the CPA target.

    They are slow: there a loop that follows every tick chases noise. budget_p 0.3, budget_i 0.1, budget_d 0.05, window 4 settle a step
    within ten ticks, and score 1.7 less.

    Attributes:
        start: first multiplier.
        lowest, highest: clamps of the multiplier.
        budget_p, budget_i, budget_d, cpa_p, cpa_i, cpa_d: gains of the two loops.
        cpa_floor: the CPA loop goes no lower than this.
        cpa_ceiling: nor higher than this: how far above the target bids may go while the CPA allows.
        cpa_goal: CPA to steer for, in units of the target.
        step: largest change of log(multiplier) in a tick.
        window: ticks whose spend makes the recent rate.
    """

    start: float = 1.0
    lowest: float = 0.2
    highest: float = 4.0
    budget_p: float = 0.15
    budget_i: float = 0.018
    budget_d: float = 0.0
    cpa_p: float = 0.4
    cpa_i: float = 0.1
    cpa_d: float = 0.0
    cpa_floor: float = 1.0
    cpa_ceiling: float = 1.6
    cpa_goal: float = 1.1
    step: float = 0.4
    window: int = 11


ERROR_LIMIT: Final = 1.5  # of log errors: an empty tick says "more", not "infinitely more"


class PID:
    """Two PID loops joined by min; see the module's text.

    Args:
        prior: gives the shape of a usual day's traffic; the package's by default.
    """

    name = "pid"

    def __init__(self, settings: PIDSettings | None = None, prior: MarketPrior | None = None) -> None:
        self.config = settings or PIDSettings()
        self.prior = prior or MarketPrior.default()
        traffic_T = np.exp(self.prior.volume.mean_T + self.prior.p_mean.mean_T)
        self._traffic_T = traffic_T / traffic_T.sum()

    def start(self, campaigns: Campaigns, seed: int) -> None: ...

    def _errors(self, observation: Observation, tick: int) -> tuple[FloatArray, FloatArray]:
        """Errors of the budget and the CPA loop (N,) after `tick` ticks of the day."""
        config, campaigns, history = self.config, observation.campaigns, observation.history
        spend_NT, value_NT = history.spend_NT[:, :tick], history.value_NT[:, :tick]
        spent_N, value_N = spend_NT.sum(axis=1), value_NT.sum(axis=1)
        remaining_N = np.maximum(campaigns.budget_N - spent_N, 0.0)
        recent = slice(max(0, tick - config.window), tick)
        seen = float(self._traffic_T[recent].sum())
        to_come = float(self._traffic_T[tick:].sum())
        expected_N = spend_NT[:, recent].sum(axis=1) * (to_come / max(seen, 1e-9))
        more_value_N = value_NT[:, recent].sum(axis=1) * (to_come / max(seen, 1e-9))
        small_N = 1e-3 * campaigns.budget_N
        budget_N = np.log((remaining_N + small_N) / (expected_N + small_N))
        target_N = scale(observation)
        # one conversion's worth of good faith keeps the first ticks from shouting
        final_cost_N = spent_N + expected_N + target_N
        final_value_N = value_N + more_value_N + 1.0
        cpa_N = np.log(config.cpa_goal * target_N * final_value_N / final_cost_N)
        cpa_N = np.where(np.isfinite(campaigns.target_cpa_N), cpa_N, ERROR_LIMIT)
        return np.clip(budget_N, -ERROR_LIMIT, ERROR_LIMIT), np.clip(cpa_N, -ERROR_LIMIT, ERROR_LIMIT)

    def decide(self, observation: Observation) -> Decision:
        config, campaigns, history = self.config, observation.campaigns, observation.history
        scale_N = scale(observation)
        tick = history.n_ticks
        if tick == 0:
            return Decision(config.start * scale_N, ("none",) * campaigns.n)
        errors = [self._errors(observation, max(1, tick - back)) for back in range(3)]
        last_N = _last_multiplier(history, config.start * scale_N) / scale_N
        log_last_N = np.log(np.clip(last_N, config.lowest, config.highest))
        moves = []
        for loop, (p, i, d) in enumerate(
            ((config.budget_p, config.budget_i, config.budget_d), (config.cpa_p, config.cpa_i, config.cpa_d))
        ):
            now_N, before_N, earlier_N = (each[loop] for each in errors)
            phi_N = p * (now_N - before_N) + i * now_N + d * (now_N - 2 * before_N + earlier_N)
            moves.append(log_last_N + np.clip(phi_N, -config.step, config.step))
        log_budget_N, log_cpa_N = moves
        limited_N = np.isfinite(campaigns.target_cpa_N)
        ceiling_N = np.where(limited_N, min(config.cpa_ceiling, config.highest), config.highest)
        log_cpa_N = np.clip(log_cpa_N, np.log(config.cpa_floor), np.log(ceiling_N))
        log_cpa_N = np.where(limited_N, log_cpa_N, np.log(config.highest))
        chosen_N = np.clip(np.minimum(log_budget_N, log_cpa_N), np.log(config.lowest), np.log(config.highest))
        binding = tuple(
            "budget" if budget < cpa else ("cpa" if limited else "none")
            for budget, cpa, limited in zip(log_budget_N, log_cpa_N, limited_N, strict=True)
        )
        return Decision(
            np.exp(chosen_N) * scale_N,
            binding,
            planned_spend_NR=_planned_spend(observation.remaining_N, self._traffic_T[tick:]),
            details={
                "budget_error": errors[0][0],
                "cpa_error": errors[0][1],
                "budget_multiplier": np.exp(log_budget_N) * scale_N,
                "cpa_multiplier": np.exp(log_cpa_N) * scale_N,
            },
        )

    def arrays(self) -> dict[str, NDArray[Any]]:
        return self.prior.arrays()

    def settings(self) -> dict[str, Any]:
        return asdict(self.config)


def _last_multiplier(history: History, otherwise_N: FloatArray) -> FloatArray:
    """The last multiplier that was really bid; `otherwise_N` where none was."""
    multiplier_NT = history.multiplier_NT
    bid_NT = multiplier_NT > 0
    place_N = multiplier_NT.shape[1] - 1 - np.argmax(bid_NT[:, ::-1], axis=1)
    last_N = np.take_along_axis(multiplier_NT, place_N[:, None], axis=1)[:, 0]
    return np.where(bid_NT.any(axis=1), last_N, otherwise_N)


def _planned_spend(remaining_N: FloatArray, traffic_R: FloatArray) -> FloatArray:
    return remaining_N[:, None] * (traffic_R / max(float(traffic_R.sum()), 1e-12))


class StockPID:
    """AuctionNet's rule of that name: start low, times 1.2 or 0.7 by what the last tick's spend projects to.

    The rule looks at the budget alone. A last tick whose spend, times the ticks left, is below 70% of the remaining
    budget raises the multiplier by a fifth, above 110% lowers it by three tenths.
    """

    name = "stock pid"

    def __init__(self, first: float = 15.0) -> None:
        self.first = first

    def start(self, campaigns: Campaigns, seed: int) -> None: ...

    def decide(self, observation: Observation) -> Decision:
        campaigns, history = observation.campaigns, observation.history
        if history.n_ticks == 0:
            return Decision(np.full(campaigns.n, self.first), ("none",) * campaigns.n)
        projected_N = history.spend_NT[:, -1] * (N_TICKS - history.n_ticks)
        remaining_N = np.maximum(observation.remaining_N, 1e-9)
        factor_N = np.where(projected_N < 0.7 * remaining_N, 1.2, np.where(projected_N > 1.1 * remaining_N, 0.7, 1.0))
        last_N = _last_multiplier(history, np.full(campaigns.n, self.first))
        return Decision(last_N * factor_N, ("budget",) * campaigns.n)
