"""Safe pacing: the controller that is always there. No files, no prior, no state, so that it can take over in any tick.

Two services, one for the budget and one for the cost per conversion; the lower of their bids counts (minimum pacing,
field guide arXiv 2302.08530: taking the minimum keeps both guarantees, chaining the services does not). Each moves the
multiplier in force multiplicatively. `controllers.MinPacing` is the method proper, with its duals and a traffic
prior; this one continues from whatever another controller left, in any currency, for campaigns without a limit too.
"""

from __future__ import annotations

import numpy as np

from rankloom.bidding.protocol import N_TICKS, Campaigns, Decision, FloatArray, Observation


class SafePacing:
    """Budget service: spend what is left evenly over the expected traffic to come. CPA service: keep cost per expected
    conversion at the target. Both move by at most `max_step` a tick and start at the target (or at what the budget buys).
    """

    def __init__(self, *, gain: float = 0.7, max_step: float = 2.0, n_ticks: int = N_TICKS) -> None:
        self.name = "safe-pacing"
        self.gain, self.max_step, self.n_ticks = gain, max_step, n_ticks

    def start(self, campaigns: Campaigns, seed: int) -> None:
        """Nothing to prepare."""

    def decide(self, observation: Observation) -> Decision:
        own, history, t = observation.campaigns, observation.history, observation.tick
        left = max(self.n_ticks - t, 1)
        finite = np.isfinite(own.target_cpa_N)
        start_N = np.where(finite, own.target_cpa_N, 1.0)
        last_N, spend_N, value_N = np.zeros(own.n), np.zeros(own.n), np.zeros(own.n)
        if history.n_ticks:
            last_N, spend_N = history.multiplier_NT[:, -1], history.spend_NT[:, -1]
            value_N = history.value_NT[:, -3:].sum(axis=1)
        recent_N = history.spend_NT[:, -3:].sum(axis=1) if history.n_ticks else spend_N
        # before anything was bought: the target; without one, what an impression of mean worth may cost
        unlimited_N = ~finite & (last_N <= 0)
        if unlimited_N.any():
            volume_N = _first(observation.volume_forecast_N, history.volume_NT)
            p_N = _first(observation.p_mean_forecast_N, history.p_sum_NT / np.maximum(history.volume_NT, 1))
            worth_N = np.maximum(volume_N * p_N * left, 1e-12)
            start_N = np.where(
                unlimited_N, np.where(worth_N > 1e-9, own.budget_N / np.maximum(worth_N, 1e-9), 1.0), start_N
            )
        last_N = np.where(last_N > 0, last_N, start_N)
        planned_N = observation.remaining_N / left
        ratio_N = np.where(spend_N > 0, planned_N / np.maximum(spend_N, 1e-12), self.max_step if t else 1.0)
        budget_N = last_N * self._step(ratio_N)
        cpa_N = np.where(value_N > 0, recent_N / np.maximum(value_N, 1e-12), 0.0)
        # paying at most the bid, a multiplier of C cannot overrun C in expectation: the service starts there
        limit_N = np.where(
            finite & (cpa_N > 0),
            np.maximum(last_N * self._step(own.target_cpa_N / np.maximum(cpa_N, 1e-12)), own.target_cpa_N),
            np.where(finite, own.target_cpa_N, np.inf),
        )
        multiplier_N = np.minimum(budget_N, limit_N)
        multiplier_N = np.where(observation.remaining_N > 0, multiplier_N, 0.0)
        binding = tuple("budget" if b <= c else "cpa" for b, c in zip(budget_N, limit_N, strict=True))
        plan_NR = np.repeat(planned_N[:, None], left, axis=1)
        return Decision(multiplier_N, binding, plan_NR, {"budget_service": budget_N, "cpa_service": limit_N})

    def _step(self, ratio_N: FloatArray) -> FloatArray:
        step_N: FloatArray = np.exp(self.gain * np.log(np.clip(ratio_N, 1e-6, 1e6)))
        return np.clip(step_N, 1 / self.max_step, self.max_step)


def _first(forecast_N: FloatArray | None, seen_NT: FloatArray) -> FloatArray:
    if forecast_N is not None:
        return forecast_N
    return seen_NT.mean(axis=1) if seen_NT.shape[1] else np.zeros(seen_NT.shape[0])
