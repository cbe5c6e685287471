"""Min-pacing: two services that know nothing of each other, the lower bid wins (field guide, arXiv 2302.08530, section 4).

Each service keeps the dual of its own constraint and moves it by mirror descent with the entropy regulariser, that is
multiplicatively, after every tick:

    budget  mu     <- mu     * exp(eta (spend - budget of the tick) / budget of an average tick),     alpha_B = C / mu
    target  lambda <- lambda * exp(eta (spend - C * value) / budget of an average tick),              alpha_C = C (1 + lambda) / lambda

With p in the role of value over target, C (1 + lambda) / lambda is the optimal bid of a value maximiser under a
return-on-spend limit and C / mu under a budget. The duals are sums over the history: nothing is kept between ticks.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rankloom.bidding.controllers.constant import scale
from rankloom.bidding.curves import MarketPrior
from rankloom.bidding.protocol import Campaigns, Decision, Observation


@dataclass(frozen=True)
class MinPacingSettings:
    """Tuned on rebuilt training days.

    Attributes:
        eta_budget, eta_target: step sizes of the duals, in units of an average tick's budget.
        mu, lam: duals before the first tick.
        highest: clamp of the multiplier in units of the target.
    """

    eta_budget: float = 0.021
    eta_target: float = 0.042
    mu: float = 1.0
    lam: float = 1.6
    highest: float = 2.5


class MinPacing:
    """The lower of a budget service's and a CPA service's bid; see the module's text."""

    name = "min-pacing"

    def __init__(self, settings: MinPacingSettings | None = None, prior: MarketPrior | None = None) -> None:
        self.config = settings or MinPacingSettings()
        self.prior = prior or MarketPrior.default()
        traffic_T = np.exp(self.prior.volume.mean_T)
        self._traffic_T = traffic_T / traffic_T.sum()

    def start(self, campaigns: Campaigns, seed: int) -> None: ...

    def decide(self, observation: Observation) -> Decision:
        config, campaigns, history = self.config, observation.campaigns, observation.history
        target_N = scale(observation)
        unit_N = campaigns.budget_N / len(self._traffic_T)
        log_mu_N = np.full(campaigns.n, np.log(config.mu))
        log_lam_N = np.full(campaigns.n, np.log(config.lam))
        for tick in range(history.n_ticks):
            spend_N, value_N = history.spend_NT[:, tick], history.value_NT[:, tick]
            allowed_N = campaigns.budget_N * self._traffic_T[tick]
            # duals live in a box: without it a quiet morning would take an afternoon to forget
            log_mu_N = np.clip(
                log_mu_N + config.eta_budget * (spend_N - allowed_N) / unit_N, np.log(1 / config.highest), np.log(4.0)
            )
            log_lam_N = np.clip(
                log_lam_N + config.eta_target * (spend_N - target_N * value_N) / unit_N, np.log(0.2), np.log(50.0)
            )
        budget_N = target_N * np.exp(-log_mu_N)
        limited_N = np.isfinite(campaigns.target_cpa_N)
        limit_N = np.where(limited_N, target_N * (1 + np.exp(-log_lam_N)), np.inf)
        multiplier_N = np.minimum(np.minimum(budget_N, limit_N), config.highest * target_N)
        binding = tuple("budget" if low else "cpa" for low in budget_N <= limit_N)
        left_R = self._traffic_T[history.n_ticks :]
        return Decision(
            multiplier_N,
            binding,
            planned_spend_NR=observation.remaining_N[:, None] * (left_R / left_R.sum()),
            details={"mu": np.exp(log_mu_N), "lambda": np.exp(log_lam_N)},
        )

    def arrays(self) -> dict[str, NDArray[Any]]:
        return self.prior.arrays()

    def settings(self) -> dict[str, Any]:
        return asdict(self.config)
