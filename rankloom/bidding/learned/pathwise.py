"""A policy trained by the gradient of the day's score through the day itself (model-based, pathwise gradients).

On response curves of training days spend and value are differentiable in the multiplier, the state is built in torch from what was spent and won, so
the score at the end of the day has a gradient in every weight of a small state-to-multiplier network; no value function and
no sampling is needed. The curves are of training periods only. Bidding by backpropagation through a learned or logged response
is our own choice of expert; it plays two parts: a controller to compare with, and the source of good behaviour (perturbed) in
the population from which the generative bidders learn (`population`), in the place that expert trajectories have in
oracle-imitation bidders (OIL, arXiv 2412.11434) and expert-guided planners (EGDP, arXiv 2508.08687).
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rankloom.bidding.learned.base import INPUT_WIDTH, LearnedController, mlp
from rankloom.bidding.learned.fitting import Checkpointing, FitConfig, draw, fit
from rankloom.bidding.protocol import N_TICKS, IntArray
from rankloom.bidding.responses import ResponseCurves
from rankloom.bidding.state import DayTensors, Normaliser, day_states

CENTRE, REACH = 0.1, 1.2
"""log(alpha / C) lies in CENTRE +- REACH: 0.33 to 3.7 times the target."""


class PathwiseController(LearnedController):
    """State -> log(alpha / C), see the module's text."""

    kind = "pathwise"

    def __init__(self, *, width: int = 64, **common: Any) -> None:
        super().__init__(**common)
        self.width = width
        self.net = mlp((INPUT_WIDTH, width, width, 1))
        torch.nn.init.zeros_(self.net[-1].weight)  # type: ignore[arg-type]
        torch.nn.init.zeros_(self.net[-1].bias)  # type: ignore[arg-type]

    def options(self) -> dict[str, Any]:
        return {"width": self.width}

    def log_action(self, x_NSD: Tensor) -> Tensor:
        """(N, S) log(alpha / C)."""
        return CENTRE + REACH * torch.tanh(self.net(x_NSD)[..., 0])

    def needs_history(self, day: DayTensors) -> bool:
        return False

    def residual(self, x_NSD: Tensor, day: DayTensors, anchor_NS: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        return self.log_action(x_NSD)[:, -1] - anchor_NS[:, -1], {}


def roll_out(
    policy: PathwiseController, curves: ResponseCurves, index_N: Tensor, budget_ratio_N: Tensor, *, gamma: float
) -> tuple[Tensor, Tensor, Tensor]:
    """A day on the curves with gradients.

    Returns:
        (N,) score, value and spend; all differentiable in the policy's weights.
    """
    base = curves.campaigns
    where = index_N.numpy()
    budget_N = torch.from_numpy(base.budget_N[where].astype(np.float32)) * budget_ratio_N
    target_N = torch.from_numpy(base.target_cpa_N[where].astype(np.float32))
    category_N = torch.from_numpy(base.category_N[where])
    remaining_N = budget_N
    names = ("log_action", "spend", "value", "bid_mean", "won", "least")
    record: dict[str, list[Tensor]] = {name: [] for name in names}
    remaining: list[Tensor] = []
    for tick in range(N_TICKS):
        remaining.append(remaining_N)
        stacked = {
            name: torch.stack(past, dim=1) if past else torch.zeros(len(where), 0) for name, past in record.items()
        }
        day = DayTensors(
            budget_N=budget_N,
            target_N=target_N,
            category_N=category_N,
            log_action_NT=stacked["log_action"],
            spend_NT=stacked["spend"],
            value_NT=stacked["value"],
            conversions_NT=stacked["value"],
            bid_mean_NT=stacked["bid_mean"],
            won_NT=stacked["won"],
            least_winning_cost_NT=stacked["least"],
            remaining_NS=torch.stack(remaining, dim=1),
            volume_NS=curves.volume_NT[index_N, : tick + 1],
            p_now_NS=curves.p_mean_NT[index_N, : tick + 1],
        )
        raw_N1D, context_N1K = day_states(day, last_only=True)
        log_action_N = policy.log_action(torch.cat([policy.normaliser(raw_N1D), context_N1K], dim=-1))[:, 0]
        got_NQ = curves.look_up(index_N, tick, log_action_N)
        share_N = (remaining_N / got_NQ[:, 0].clamp_min(1e-6)).clamp(max=1.0)
        spend_N = got_NQ[:, 0] * share_N
        remaining_N = (remaining_N - spend_N).clamp_min(0.0)
        p_now_N = curves.p_mean_NT[index_N, tick]
        for name, value in zip(
            names,
            (
                log_action_N,
                spend_N,
                got_NQ[:, 1] * share_N,
                p_now_N * torch.exp(log_action_N) * target_N * share_N,
                got_NQ[:, 2] * share_N,
                got_NQ[:, 4],
            ),
            strict=True,
        ):
            record[name].append(value)
    spend_N = torch.stack(record["spend"]).sum(dim=0)
    value_N = torch.stack(record["value"]).sum(dim=0)
    within_N = (target_N * value_N / spend_N.clamp_min(1e-6)).clamp(max=1.0)
    return value_N * within_N**gamma, value_N, spend_N


def train_pathwise(
    curves: ResponseCurves,
    index_M: IntArray,
    normaliser: Normaliser,
    *,
    fallback_target: float,
    gamma: float = 2.0,
    budget_ratios: tuple[float, float] = (0.4, 1.7),
    config: FitConfig | None = None,
    seed: int = 0,
    checkpointing: Checkpointing | None = None,
    quiet: bool = False,
) -> tuple[PathwiseController, list[dict[str, float]]]:
    """Trains on seat-days `index_M` of the curves, budgets drawn log-uniformly as multiples of the base ones.

    The loss is the mean of -score / sqrt(budget / C): between counting conversions (large campaigns decide) and shares of what is
    affordable (small ones do).
    """
    config = config or FitConfig(steps=250, batch=160, learning_rate=4e-3, weight_decay=1e-3, warmup=20, average=0.98)
    torch.manual_seed(seed)
    policy = PathwiseController(normaliser=normaliser, fallback_target=fallback_target)
    affordable_M = torch.from_numpy((curves.campaigns.budget_N / curves.campaigns.target_cpa_N)[index_M].astype(np.float32))
    index = torch.from_numpy(np.asarray(index_M, dtype=np.int64))
    low, high = np.log(budget_ratios[0]), np.log(budget_ratios[1])

    def step_loss(_step: int, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        chosen = draw(len(index), config.batch, generator)
        ratio = torch.exp(low + (high - low) * torch.rand(len(chosen), generator=generator))
        score, _value, _spend = roll_out(policy, curves, index[chosen], ratio, gamma=gamma)
        return -(score / (affordable_M[chosen] * ratio).sqrt()).mean(), {"score": float(score.detach().mean())}

    log = fit(policy, step_loss, replace(config, batch=min(config.batch, len(index))), seed=seed, label="pathwise",
              checkpointing=checkpointing, quiet=quiet)  # fmt: skip
    return policy, log
