"""What MPC sees ahead, as columns of a learned bidder's state and as the multiplier that its action starts from.

A small `MPC` (few scenarios, the market's prior) looks at the observation of every tick; its multiplier over the target, the Score, value and cost that
it foresees at the day's end, what 10% more would change of them, the chance that the budget ends and how far its last forecasts were off are the
columns `OUTLOOK`. With an outlook the learned action is a residual in logs around MPC's multiplier (`base`): a network that answers 0 plays MPC, and what
it has learned is what MPC does not know. It is the residual form of Kuaishou's online action (GAVE section 4), with a planner in the place of the recent mean:
MPC never reads the campaign's own past multipliers, so nothing can be fed back and grow.

An outlook depends on the observation alone (its scenarios are fixed), the same in training, in simulated days and in serving.

Letters: N campaigns, S states, O outlook columns.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rankloom.bidding.controllers import MPC
from rankloom.bidding.controllers.mpc import MPCSettings
from rankloom.bidding.curves import MarketPrior
from rankloom.bidding.protocol import Campaigns, History, Observation
from rankloom.bidding.score import DEFAULT_GAMMA
from rankloom.bidding.state import LOG_ACTION_MAX, LOG_ACTION_MIN, Normaliser, reference_target

OUTLOOK: Final = (
    "plan_log_multiplier", "plan_score", "plan_value", "plan_cost", "plan_score_gain", "plan_value_gain", "plan_cost_gain",
    "plan_budget_ends", "plan_log_cpa", "plan_value_error", "plan_cost_error", "lead_1",
)  # fmt: skip
"""What MPC foresees, and (last) by how much the last log multiplier was above MPC's."""
LEAD: Final = OUTLOOK.index("lead_1")
SCENARIOS, POINTS = 16, 27
"""Scenarios and multipliers that the small MPC weighs up. Its scenarios are other ones every tick: what few of them get wrong averages out over the day."""
_ERROR_LIMIT: Final = 2.0


@dataclass(frozen=True)
class Outlook:
    """See the module's text.

    Attributes:
        planner: looks ahead. normaliser: z-scores of the columns; None until they are fitted.
    """

    planner: MPC
    normaliser: Normaliser | None = None

    def __deepcopy__(self, memo: dict[int, Any]) -> Outlook:
        """Itself: an outlook keeps nothing of what it saw."""
        return self

    @classmethod
    def of(
        cls, prior: MarketPrior | None = None, *, gamma: float = DEFAULT_GAMMA, scenarios: int = SCENARIOS
    ) -> Outlook:
        """With a market's prior (None: the package's), for the score of this gamma."""
        return cls(MPC(_settings(gamma, scenarios), prior))

    def look(self, observation: Observation, *, fallback_target: float) -> Tensor:
        """(N, O - 1) raw columns of the tick at hand, all but the last; the first is log(MPC's multiplier / target)."""
        campaigns = observation.campaigns
        target_N = reference_target(campaigns, fallback_target).double().numpy()
        affordable_N = campaigns.budget_N / target_N
        multiplier_N, found = self.planner.foresee(observation)
        score_N, value_N, cost_N = (found[f"predicted_{name}"] for name in ("score", "value", "cost"))
        nothing_N = np.zeros(campaigns.n)
        columns = (
            np.clip(np.log(np.maximum(multiplier_N / target_N, 1e-9)), LOG_ACTION_MIN, LOG_ACTION_MAX),
            score_N / affordable_N,
            value_N / affordable_N,
            cost_N / campaigns.budget_N,
            (found["score_at_10_percent_more"] - score_N) / affordable_N,
            (found["value_at_10_percent_more"] - value_N) / affordable_N,
            (found["cost_at_10_percent_more"] - cost_N) / campaigns.budget_N,
            found["probability_budget_ends"],
            np.log(np.maximum(cost_N, 1e-3 * target_N) / np.maximum(target_N * value_N, 1e-3 * target_N)),
            np.clip(found.get("value_error", nothing_N), -_ERROR_LIMIT, _ERROR_LIMIT),
            np.clip(found.get("cost_error", nothing_N), -_ERROR_LIMIT, _ERROR_LIMIT),
        )
        return torch.from_numpy(np.stack(columns, axis=1).astype(np.float32))

    def day(self, campaigns: Campaigns, history: History, *, fallback_target: float, n_states: int) -> Tensor:
        """(N, S, O - 1) raw columns of the first ticks of a day that is known: of each tick what could be seen before it.

        The volume and mean p of a tick count as told before it, as the platform does.
        """
        spent_NT = np.cumsum(history.spend_NT, axis=1)
        found = []
        for tick in range(n_states):
            left_N = campaigns.budget_N - (spent_NT[:, tick - 1] if tick else 0.0)
            known = tick < history.n_ticks
            volume_N = history.volume_NT[:, tick] if known else None
            found.append(
                self.look(
                    Observation(
                        tick=tick,
                        campaigns=campaigns,
                        history=History(**{name: values[:, :tick] for name, values in vars(history).items()}),
                        remaining_N=np.maximum(left_N, 0.0),
                        volume_forecast_N=volume_N,
                        p_mean_forecast_N=None if volume_N is None else history.p_sum_NT[:, tick] / np.maximum(volume_N, 1.0),
                    ),
                    fallback_target=fallback_target,
                )
            )
        return torch.stack(found, dim=1)

    def normalised(self, raw: Tensor) -> Tensor:
        """z-scores of all `OUTLOOK` columns."""
        if self.normaliser is None:
            raise ValueError("the outlook's columns were not fitted yet")
        return self.normaliser(raw)

    def arrays(self) -> dict[str, NDArray[Any]]:
        """For saving, beside `settings`; `restore` is the way back."""
        assert self.normaliser is not None
        own = {"mean": self.normaliser.mean_D.numpy().copy(), "std": self.normaliser.std_D.numpy().copy()}
        return own | {f"prior.{name}": values for name, values in self.planner.prior.arrays().items()}

    def settings(self) -> dict[str, Any]:
        return {"gamma": self.planner.config.gamma, "scenarios": self.planner.config.scenarios, "columns": list(OUTLOOK)}

    @classmethod
    def restore(cls, settings: dict[str, Any], arrays: dict[str, NDArray[Any]]) -> Outlook:
        """The outlook of these `settings()` and `arrays()`.

        Raises:
            ValueError: it had other columns. KeyError: an array is missing.
        """
        if settings["columns"] != list(OUTLOOK):
            raise ValueError("its outlook has other columns than this version builds")
        prior = MarketPrior.from_arrays(
            {name.removeprefix("prior."): values for name, values in arrays.items() if name.startswith("prior.")}
        )
        normaliser = Normaliser(torch.from_numpy(arrays["mean"].copy()), torch.from_numpy(arrays["std"].copy()))
        planner = MPC(_settings(float(settings["gamma"]), int(settings["scenarios"])), prior)
        return cls(planner, normaliser)


def _settings(gamma: float, scenarios: int) -> MPCSettings:
    return MPCSettings(gamma=gamma, scenarios=scenarios, points=POINTS, fresh=True)


def with_lead(looked_NSO: Tensor, log_action_NT: Tensor) -> Tensor:
    """The raw columns with the last one, log(multiplier / target) of the tick before over MPC's; 0 before the first tick.

    Args:
        looked_NSO: of the last S states (N, S, O - 1), with the state before them first where there is one.
        log_action_NT: of all ticks before the last state.
    """
    n, n_states, _ = looked_NSO.shape
    lead_NS = looked_NSO.new_zeros(n, n_states)
    if n_states > 1:
        lead_NS[:, 1:] = log_action_NT[:, log_action_NT.shape[1] - n_states + 1 :] - looked_NSO[:, :-1, 0]
    return torch.cat([looked_NSO, lead_NS[..., None]], dim=-1)
