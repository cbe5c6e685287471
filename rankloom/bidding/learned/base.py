"""What every learned bidder shares: the training set, the action, the return target, the controller around a network.

**Action.** The multiplier is learned as a bounded residual in log space on the mean of the campaign's own last four log
multipliers (Kuaishou's online form, GAVE section 4: "a residual on the mean multiplier of the last two hours"):

    log(alpha_t / C) = mean of the last 4 log(alpha / C) + a_t,   |a_t| < RESIDUAL

before the first tick the mean is 0, that is alpha = C. One step can change the multiplier by at most exp(RESIDUAL), and a
network that has learned "a bit more than before" can no longer grow it without end. With an `Outlook` the residual stands on MPC's multiplier instead:
log(alpha_t / C) = log(MPC's / C) + a_t, and MPC's view of the day is part of the state. GAVE, CBD and the pathwise expert have one unless they are told
otherwise; the baselines (DT, DT-score, offline RL, GAS) are trained as published, without.

**Return target.** What a return-conditioned policy asks for is never a constant: `ReturnTarget` is a set of expectiles of
the (normalised) return-to-go given the state, and the policy asks for one of them, chosen on held-out training periods. Returns
are divided by what the budget buys at the target (budget / C).

Letters: N trajectories, T ticks, D normalised state columns + context columns (+ outlook columns), E expectiles.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from rankloom.bidding.learned.outlook import OUTLOOK, Outlook, with_lead
from rankloom.bidding.protocol import Campaigns, Decision, FloatArray, Observation
from rankloom.bidding.score import DEFAULT_GAMMA
from rankloom.bidding.state import (
    CONTEXT,
    LOG_ACTION_MAX,
    LOG_ACTION_MIN,
    STATE,
    DayTensors,
    Normaliser,
    day_states,
    day_tensors,
    observation_tensors,
    reference_target,
)
from rankloom.bidding.trajectories import Trajectories

RESIDUAL: Final = 0.7
ANCHOR_TICKS: Final = 4
EXPECTILES: Final = (0.5, 0.6, 0.7, 0.8, 0.9, 0.95)
INPUT_WIDTH: Final = len(STATE) + len(CONTEXT)


def input_width(outlook: Outlook | None) -> int:
    """Columns of a state as networks read it."""
    return INPUT_WIDTH + (0 if outlook is None else len(OUTLOOK))


def anchor(log_action_NT: Tensor, n_states: int) -> Tensor:
    """(N, S) mean of the last `ANCHOR_TICKS` log actions before each of the ticks 0..S-1; 0 before the first."""
    zero_N1 = log_action_NT.new_zeros(len(log_action_NT), 1)
    padded = torch.cat([zero_N1, torch.cumsum(log_action_NT, dim=1)], dim=1)
    at_S = torch.arange(n_states)
    count_S = at_S.clamp(max=ANCHOR_TICKS)
    return (padded[:, at_S] - padded[:, at_S - count_S]) / count_S.clamp_min(1)


@dataclass(frozen=True)
class TrainingSet:
    """Trajectories as tensors.

    Attributes:
        x_NTD: z-scored state beside context (beside z-scored outlook). log_action_NT: log(multiplier / C). residual_NT: what it is above `anchor_NT`.
        alive_NT: float mask of ticks in which something was decided.
        reward_NT: score gained in the tick, return_NT: return-to-go of the score, value_return_NT: of the plain value; all over
            budget / C. baseline_NT: what of the return was the day's luck: a part, fitted per tick, of the best constant's score on the
            same day in hindsight; 0 where only a log is known. It does not depend on what was bid, so differences between
            actions are the same without it, and stand out.
        outlook: what the anchor and the last columns of x come from, if any.
        meant_NT: the residual before a perturbation that the bidder was given on purpose; `residual_NT` itself where nothing is known of any.
    """

    x_NTD: Tensor
    log_action_NT: Tensor
    anchor_NT: Tensor
    residual_NT: Tensor
    alive_NT: Tensor
    return_NT: Tensor
    value_return_NT: Tensor
    baseline_NT: Tensor
    normaliser: Normaliser
    fallback_target: float
    gamma: float
    meant_NT: Tensor
    outlook: Outlook | None = None

    @property
    def n(self) -> int:
        return self.x_NTD.shape[0]

    @property
    def next_return_NT(self) -> Tensor:
        """r_{t+1}; nothing is left to gain after the last tick."""
        return torch.cat([self.return_NT[:, 1:], torch.zeros_like(self.return_NT[:, :1])], dim=1)


def prepare(
    trajectories: Trajectories,
    *,
    gamma: float = DEFAULT_GAMMA,
    normaliser: Normaliser | None = None,
    best_score_N: FloatArray | None = None,
    outlook: Outlook | None = None,
    looked_NTO: Tensor | None = None,
    meant_multiplier_NT: Tensor | None = None,
) -> TrainingSet:
    """The training set of some trajectories; the normalisers are fitted on them unless they are given.

    Args:
        best_score_N: the best constant's score on each trajectory's day, where that is known.
        outlook: MPC's view, and its multiplier as the anchor.
        looked_NTO: the outlook's raw columns (`Outlook.day`) where they were worked out before.
        meant_multiplier_NT: before perturbations, where the bidder was perturbed on purpose.
    """
    targets = trajectories.campaigns.target_cpa_N
    finite = targets[np.isfinite(targets)]
    fallback = float(np.median(finite)) if finite.size else 1.0
    day = day_tensors(trajectories.campaigns, trajectories.history, fallback_target=fallback)
    x_NTD, k_NTK = day_states(day)
    alive_NT = torch.from_numpy(trajectories.alive_NT.astype(np.float32))
    if normaliser is None:
        normaliser = Normaliser.fit(x_NTD[alive_NT > 0])
    affordable_N1 = (day.budget_N / day.target_N)[:, None]
    anchor_NT = anchor(day.log_action_NT, x_NTD.shape[1])
    columns = [normaliser(x_NTD), k_NTK]
    if outlook is not None:
        if looked_NTO is None:
            looked_NTO = outlook.day(
                trajectories.campaigns, trajectories.history, fallback_target=fallback, n_states=x_NTD.shape[1]
            )
        raw_NTO = with_lead(looked_NTO, day.log_action_NT[:, :-1])
        if outlook.normaliser is None:
            outlook = replace(outlook, normaliser=Normaliser.fit(raw_NTO[alive_NT > 0]))
        columns.append(outlook.normalised(raw_NTO))
        anchor_NT = looked_NTO[..., 0]
    edge = 0.98 * RESIDUAL
    meant_NT = day.log_action_NT
    if meant_multiplier_NT is not None:
        meant_NT = torch.log((meant_multiplier_NT / day.target_N[:, None]).clamp_min(1e-9)).float().clamp(LOG_ACTION_MIN, LOG_ACTION_MAX)

    def over_budget(values: FloatArray) -> Tensor:
        return torch.from_numpy(values.astype(np.float32)) / affordable_N1

    return_NT = over_budget(trajectories.returns_to_go_NT(gamma))
    baseline_NT = torch.zeros_like(return_NT)
    if best_score_N is not None:
        luck_N1 = over_budget(best_score_N[:, None])
        luck_N1 = luck_N1 - luck_N1.mean()
        share_T = (luck_N1 * return_NT).mean(dim=0) / luck_N1.square().mean().clamp_min(1e-9)
        baseline_NT = luck_N1 * share_T
    return TrainingSet(
        x_NTD=torch.cat(columns, dim=-1),
        log_action_NT=day.log_action_NT,
        anchor_NT=anchor_NT,
        residual_NT=(day.log_action_NT - anchor_NT).clamp(-edge, edge),
        alive_NT=alive_NT,
        return_NT=return_NT,
        value_return_NT=over_budget(trajectories.returns_to_go_NT(0.0)),
        baseline_NT=baseline_NT,
        normaliser=normaliser,
        fallback_target=fallback,
        gamma=gamma,
        meant_NT=(meant_NT - anchor_NT).clamp(-edge, edge),
        outlook=outlook,
    )


def mlp(sizes: Sequence[int]) -> nn.Sequential:
    """Linear layers with SiLU between them."""
    layers: list[nn.Module] = []
    for i, (inner, outer) in enumerate(pairwise(sizes)):
        layers.append(nn.Linear(inner, outer))
        if i < len(sizes) - 2:
            layers.append(nn.SiLU())
    return nn.Sequential(*layers)


def expectile_loss(error: Tensor, tau: Tensor | float) -> Tensor:
    """|tau - 1(error < 0)| error^2 with error = observed - predicted (GAVE equation 20)."""
    below = (error < 0).to(error.dtype)
    return (tau - below).abs() * error**2


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Mean over the entries where the mask is 1."""
    return (values * mask).sum() / mask.sum().clamp_min(1.0)


class ReturnTarget(nn.Module):
    """Expectiles of the return-to-go given the state; (..., D) -> (..., E), in units of budget / C."""

    tau_E: Tensor

    def __init__(self, width: int = 64, *, inputs: int = INPUT_WIDTH) -> None:
        super().__init__()
        self.net = mlp((inputs, width, width, len(EXPECTILES)))
        self.register_buffer("tau_E", torch.tensor(EXPECTILES), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.net(x)
        return out

    def loss(self, x_BTD: Tensor, return_BT: Tensor, alive_BT: Tensor) -> Tensor:
        error_BTE = return_BT[..., None] - self(x_BTD)
        return masked_mean(expectile_loss(error_BTE, self.tau_E).mean(dim=-1), alive_BT)

    def at(self, x: Tensor, level: float) -> Tensor:
        """The expectile at `level`, between two trained ones by straight line, never below 0."""
        out = self(x)
        place = float(np.interp(level, EXPECTILES, np.arange(len(EXPECTILES))))
        lower = min(int(place), len(EXPECTILES) - 2)
        share = place - lower
        between: Tensor = out[..., lower] * (1 - share) + out[..., lower + 1] * share
        return between.clamp_min(0.0)


class LearnedController(nn.Module, ABC):
    """A network as a controller: states from observations, a bounded log action, the reasons.

    A subclass names its kind, keeps its settings and answers `residual`.
    """

    kind = "learned"

    def __init__(
        self, *, normaliser: Normaliser, fallback_target: float, name: str | None = None, outlook: Outlook | None = None
    ) -> None:
        super().__init__()
        self.name = name or self.kind
        self.fallback_target = fallback_target
        self.normaliser = normaliser
        self.outlook = outlook
        self.input_width = input_width(outlook)
        self.looked_NSO: Tensor | None = None  # what the outlook showed so far today
        self._past_NT: Tensor | None = None  # the log actions that `looked_NSO` and `_states_NSD` were seen after
        self._states_NSD: Tensor | None = None
        self._rng = np.random.default_rng(0)

    # --- to be answered by a subclass -------------------------------------------------------------------------------

    def options(self) -> dict[str, Any]:
        """The constructor's own arguments, JSON-able."""
        return {}

    @abstractmethod
    def residual(self, x_NSD: Tensor, day: DayTensors, anchor_NS: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """(N,) residual log action of the last state, and figures that explain it; x holds all states, or the last where
        `needs_history` said so."""

    def begin(self) -> None:
        """A new day: forget what was kept of the last one."""

    def needs_history(self, day: DayTensors) -> bool:
        """False where `residual` will look at the last state alone: then only that one is built."""
        return True

    # --- the controller ---------------------------------------------------------------------------------------------

    def start(self, campaigns: Campaigns, seed: int) -> None:
        self._rng = np.random.default_rng(seed)
        self.eval()
        self.looked_NSO = self._past_NT = self._states_NSD = None
        self.begin()

    @torch.inference_mode()
    def decide(self, observation: Observation) -> Decision:
        day = observation_tensors(observation, fallback_target=self.fallback_target)
        n_states = day.volume_NS.shape[1]
        whole = self.needs_history(day)
        goes_on = self._goes_on(day)
        x_NSD = self._states(day, goes_on) if whole else torch.cat(self._scored(day, last=1), dim=-1)
        if self.outlook is None:
            anchor_NS = anchor(day.log_action_NT, n_states)
        else:
            looked_NSO = self._look(self.outlook, observation, goes_on)
            anchor_NS = looked_NSO[..., 0]
            if whole:
                seen_NSO = with_lead(looked_NSO, day.log_action_NT)
            else:
                seen_NSO = with_lead(looked_NSO[:, -2:], day.log_action_NT)[:, -1:]
            x_NSD = torch.cat([x_NSD, self.outlook.normalised(seen_NSO)], dim=-1)
        self._past_NT = day.log_action_NT.clone()
        residual_N, details = self.residual(x_NSD, day, anchor_NS)
        log_action_N = (anchor_NS[:, -1] + residual_N).clamp(LOG_ACTION_MIN, LOG_ACTION_MAX)
        target_N = reference_target(observation.campaigns, self.fallback_target)
        multiplier_N = (torch.exp(log_action_N) * target_N).double().numpy()
        return Decision(
            multiplier_N=multiplier_N,
            binding=binding_constraint(observation),
            details={name: value.double().numpy() for name, value in details.items()}
            | {"log_multiplier_over_target": log_action_N.double().numpy()},
        )

    def _goes_on(self, day: DayTensors) -> bool:
        """Whether this is the tick after the one that was decided last, of the same day."""
        past, tick = self._past_NT, day.n_ticks
        return past is not None and past.shape == (len(day.budget_N), tick - 1) and torch.equal(past, day.log_action_NT[:, :-1])

    def _scored(self, day: DayTensors, *, last: int | None) -> tuple[Tensor, Tensor]:
        raw_NSD, context_NSK = day_states(day, last=last)
        return self.normaliser(raw_NSD), context_NSK

    def _states(self, day: DayTensors, goes_on: bool) -> Tensor:
        """(N, S, D) of all ticks. Once a tick is over nothing of its state changes, so while the day goes on as it did only two are built: the
        tick at hand, and the one before, whose traffic is no forecast any more."""
        kept = self._states_NSD
        if kept is None or not goes_on or kept.shape[1] != day.n_ticks:
            states = torch.cat(self._scored(day, last=None), dim=-1)
        else:
            states = torch.cat([kept[:, :-1], torch.cat(self._scored(day, last=2), dim=-1)], dim=1)
        self._states_NSD = states
        return states

    def _look(self, outlook: Outlook, observation: Observation, goes_on: bool) -> Tensor:
        """(N, S, O - 1) raw outlook of all states; those of earlier ticks are kept while the day goes on as it did."""
        tick, kept = observation.tick, self.looked_NSO
        if tick == 0:
            kept = None
        elif not goes_on or kept is None or kept.shape[1] != tick:
            kept = outlook.day(
                observation.campaigns, observation.history, fallback_target=self.fallback_target, n_states=tick
            )
        now_N1O = outlook.look(observation, fallback_target=self.fallback_target)[:, None]
        looked = now_N1O if kept is None else torch.cat([kept, now_N1O], dim=1)
        self.looked_NSO = looked
        return looked

    def arrays(self) -> dict[str, NDArray[Any]]:
        tensors = {f"weights.{name}": value for name, value in self.state_dict().items()}
        tensors |= {"state.mean": self.normaliser.mean_D, "state.std": self.normaliser.std_D}
        arrays: dict[str, NDArray[Any]] = {name: value.detach().cpu().numpy().copy() for name, value in tensors.items()}
        if self.outlook is not None:
            arrays |= {f"outlook.{name}": value for name, value in self.outlook.arrays().items()}
        return arrays

    def settings(self) -> dict[str, Any]:
        return {
            "kind": self.kind,
            "name": self.name,
            "fallback_target": self.fallback_target,
            "state_columns": list(STATE),
            "options": self.options(),
            **({} if self.outlook is None else {"outlook": self.outlook.settings()}),
        }


def bounded(output: Tensor) -> Tensor:
    """A network's output as a residual inside (-RESIDUAL, RESIDUAL)."""
    return RESIDUAL * torch.tanh(output)


def binding_constraint(observation: Observation) -> tuple[str, ...]:
    """What holds each campaign back so far: `cpa` when it has paid 98% of its limit or more per conversion, `budget` when
    money runs ahead of the day, else `none`."""
    history, campaigns = observation.history, observation.campaigns
    spent_N, value_N = history.spend_NT.sum(axis=1), history.value_NT.sum(axis=1)
    tight_N = (spent_N > 0) & (spent_N >= 0.98 * campaigns.target_cpa_N * value_N)
    ahead_N = observation.remaining_N < 0.95 * campaigns.budget_N * (1 - history.n_ticks / 48)
    return tuple("cpa" if tight else "budget" if ahead else "none" for tight, ahead in zip(tight_N, ahead_N, strict=True))
