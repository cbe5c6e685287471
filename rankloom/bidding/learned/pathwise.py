"""A policy trained by the gradient of the day's score through the day itself (model-based, pathwise gradients).

On response curves of training days spend and value are differentiable in the multiplier, the state is built in torch from what was spent and won, so
the score at the end of the day has a gradient in every weight of a small state-to-multiplier network; no value function and
no sampling is needed. The curves are of training periods only. Bidding by backpropagation through a learned or logged response
is our own choice of expert; it plays two parts: a controller to compare with, and the source of good behaviour (perturbed) in
the population from which the generative bidders learn (`population`), in the place that expert trajectories have in
oracle-imitation bidders (OIL, arXiv 2412.11434) and expert-guided planners (EGDP, arXiv 2508.08687).

With an outlook the policy is a residual on MPC's multiplier. MPC is not differentiable, yet it answers to what was spent before; a small network that reads
MPC's multiplier from the state lends it its slope (the value is MPC's own, the gradient the reader's).

Few days make few markets. `Variation` draws others around them, exactly: with p of the own seat, traffic or all rivals' bids some per cent higher for a day
and for blocks of it, the answer to a multiplier is the recorded curve, shifted and scaled.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from rankloom.bidding.learned.base import INPUT_WIDTH, LearnedController, TrainingSet, mlp
from rankloom.bidding.learned.fitting import Checkpointing, FitConfig, draw, fit
from rankloom.bidding.learned.outlook import with_lead
from rankloom.bidding.protocol import N_TICKS, Campaigns, FloatArray, History, IntArray, Observation
from rankloom.bidding.responses import ResponseCurves
from rankloom.bidding.state import DayTensors, day_states

CENTRE, REACH = 0.1, 1.2
"""log(alpha / C) lies in CENTRE +- REACH: 0.33 to 3.7 times the target."""
OUTLOOK_REACH = 0.6
"""With an outlook: in log(MPC's / C) +- OUTLOOK_REACH."""
READER_STEPS = 800
P_BLOCK, VOLUME_BLOCK = 8, 4
"""Ticks in which shocks of p and of traffic stay as they are."""


@dataclass(frozen=True)
class Variation:
    """Days drawn around recorded ones. Attributes: standard deviations of log factors; `day`: the whole day, `block`: each block of it."""

    p_day: float = 0.08
    p_block: float = 0.12
    volume_block: float = 0.12
    price_day: float = 0.06

    def draw(self, n: int, generator: torch.Generator) -> Factors:
        def normal(sd: float, columns: int) -> Tensor:
            return sd * torch.randn(n, columns, generator=generator)

        return Factors(
            p_NT=normal(self.p_day, 1) + normal(self.p_block, N_TICKS // P_BLOCK).repeat_interleave(P_BLOCK, dim=1),
            volume_NT=normal(self.volume_block, N_TICKS // VOLUME_BLOCK).repeat_interleave(VOLUME_BLOCK, dim=1),
            price_NT=normal(self.price_day, 1).expand(n, N_TICKS),
        )


@dataclass(frozen=True)
class Factors:
    """How a day differs from a recorded one. Attributes: logs of factors of the seat's p, of traffic, of the rivals' bids."""

    p_NT: Tensor
    volume_NT: Tensor
    price_NT: Tensor

    @classmethod
    def none(cls, n: int) -> Factors:
        return cls(*(torch.zeros(n, N_TICKS) for _ in range(3)))


class PathwiseController(LearnedController):
    """State -> log(alpha / C), see the module's text.

    Args:
        members: small networks, each trained on days of its own, that bid together (the mean of their log multipliers).
        trust: how much of what they say is bid.
    """

    kind = "pathwise"

    def __init__(self, *, width: int = 64, members: int = 1, trust: float = 1.0, **common: Any) -> None:
        super().__init__(**common)
        self.width, self.members, self.trust = width, members, trust
        self.nets = nn.ModuleList(mlp((self.input_width, width, width, 1)) for _ in range(members))
        for net in self.nets:
            last = net[-1]  # type: ignore[index]
            nn.init.zeros_(last.weight)
            nn.init.zeros_(last.bias)

    def options(self) -> dict[str, Any]:
        return {"width": self.width, "members": self.members, "trust": self.trust}

    def log_action(self, x_NSD: Tensor, anchor_NS: Tensor, member_N: Tensor | None = None) -> Tensor:
        """(N, S) log(alpha / C) of the members together, or of one each; the anchor is MPC's where there is an outlook, else it does not count."""
        out_KNS = torch.stack([torch.tanh(net(x_NSD)[..., 0]) for net in self.nets])
        if member_N is None:
            out_NS = self.trust * out_KNS.mean(dim=0)
        else:
            out_NS = out_KNS[member_N, torch.arange(len(member_N))]
        return CENTRE + REACH * out_NS if self.outlook is None else anchor_NS + OUTLOOK_REACH * out_NS

    def needs_history(self, day: DayTensors) -> bool:
        return False

    def residual(self, x_NSD: Tensor, day: DayTensors, anchor_NS: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        return self.log_action(x_NSD, anchor_NS)[:, -1] - anchor_NS[:, -1], {}


class _Record:
    """The numbers of a day that is being rolled out, as a planner reads them."""

    def __init__(self, campaigns: Campaigns) -> None:
        self.campaigns = campaigns
        names = History.__dataclass_fields__
        self.columns: dict[str, FloatArray] = {name: np.zeros((campaigns.n, N_TICKS)) for name in names}

    def observation(self, tick: int, remaining_N: Tensor, volume_N: Tensor, p_mean_N: Tensor) -> Observation:
        return Observation(
            tick=tick,
            campaigns=self.campaigns,
            history=History(**{name: values[:, :tick] for name, values in self.columns.items()}),
            remaining_N=remaining_N.detach().double().numpy(),
            volume_forecast_N=volume_N.double().numpy(),
            p_mean_forecast_N=p_mean_N.double().numpy(),
        )

    def write(self, tick: int, **values: Tensor) -> None:
        for name, value in values.items():
            self.columns[f"{name}_NT"][:, tick] = value.detach().double().numpy()


def roll_out(
    policy: PathwiseController,
    curves: ResponseCurves,
    index_N: Tensor,
    budget_ratio_N: Tensor,
    *,
    gamma: float,
    reader: nn.Module | None = None,
    factors: Factors | None = None,
    member_N: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """A day on the curves with gradients.

    Args:
        reader: states without outlook -> MPC's log multiplier; lends MPC its slope. None: MPC answers to nothing.
        factors: how the days differ from the recorded ones.
        member_N: which member bids in each day; None: all together.

    Returns:
        (N,) score, value and spend; all differentiable in the policy's weights.
    """
    base, outlook = curves.campaigns, policy.outlook
    where = index_N.numpy()
    n = len(where)
    factors = factors or Factors.none(n)
    budget_N = torch.from_numpy(base.budget_N[where].astype(np.float32)) * budget_ratio_N
    target_N = torch.from_numpy(base.target_cpa_N[where].astype(np.float32))
    category_N = torch.from_numpy(base.category_N[where])
    volume_NT = curves.volume_NT[index_N] * torch.exp(factors.volume_NT)
    p_mean_NT = curves.p_mean_NT[index_N] * torch.exp(factors.p_NT)
    record = _Record(Campaigns(budget_N.double().numpy(), target_N.double().numpy(), base.category_N[where], ("",) * n))
    remaining_N = budget_N
    names = ("log_action", "spend", "value", "bid_mean", "won", "least")
    past: dict[str, list[Tensor]] = {name: [] for name in names}
    remaining: list[Tensor] = []
    looked: list[Tensor] = []
    for tick in range(N_TICKS):
        remaining.append(remaining_N)
        stacked = {name: torch.stack(each, dim=1) if each else torch.zeros(n, 0) for name, each in past.items()}
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
            volume_NS=volume_NT[:, : tick + 1],
            p_now_NS=p_mean_NT[:, : tick + 1],
        )
        raw_N1D, context_N1K = day_states(day, last=1)
        x_N1D = torch.cat([policy.normaliser(raw_N1D), context_N1K], dim=-1)
        anchor_N1 = torch.zeros(n, 1)
        if outlook is not None:
            seen = record.observation(tick, remaining_N, volume_NT[:, tick], p_mean_NT[:, tick])
            looked.append(outlook.look(seen, fallback_target=policy.fallback_target))
            anchor_N1 = looked[-1][:, :1]
            if reader is not None:
                read_N1 = reader(x_N1D)[:, :, 0]
                anchor_N1 = anchor_N1 + read_N1 - read_N1.detach()
            led_NSO = with_lead(torch.stack(looked[-2:], dim=1), stacked["log_action"])
            x_N1D = torch.cat([x_N1D, outlook.normalised(led_NSO[:, -1:])], dim=-1)
        log_action_N = policy.log_action(x_N1D, anchor_N1, member_N)[:, 0]
        # p and rivals' bids moved by some factor: what the seat meets at another multiplier, in other units
        shift_N = factors.p_NT[:, tick] - factors.price_NT[:, tick]
        got_NQ = curves.look_up(index_N, tick, log_action_N + shift_N)
        traffic_N = torch.exp(factors.volume_NT[:, tick])
        price_N, p_factor_N = torch.exp(factors.price_NT[:, tick]), torch.exp(factors.p_NT[:, tick])
        asked_N = got_NQ[:, 0] * traffic_N * price_N
        share_N = (remaining_N / asked_N.clamp_min(1e-6)).clamp(max=1.0)
        spend_N = asked_N * share_N
        value_N = got_NQ[:, 1] * traffic_N * p_factor_N * share_N
        won_N, least_N = got_NQ[:, 2] * traffic_N * share_N, got_NQ[:, 4] * price_N
        bid_mean_N = p_mean_NT[:, tick] * torch.exp(log_action_N) * target_N * share_N
        remaining_N = (remaining_N - spend_N).clamp_min(0.0)
        for name, value in zip(names, (log_action_N, spend_N, value_N, bid_mean_N, won_N, least_N), strict=True):
            past[name].append(value)
        if outlook is not None:
            record.write(
                tick,
                multiplier=torch.exp(log_action_N) * target_N,
                spend=spend_N,
                value=value_N,
                conversions=value_N,
                volume=volume_NT[:, tick],
                p_sum=volume_NT[:, tick] * p_mean_NT[:, tick],
                bid_sum=volume_NT[:, tick] * bid_mean_N,
                won=won_N,
                least_winning_cost=least_N,
            )
    spend_N = torch.stack(past["spend"]).sum(dim=0)
    value_N = torch.stack(past["value"]).sum(dim=0)
    within_N = (target_N * value_N / spend_N.clamp_min(1e-6)).clamp(max=1.0)
    return value_N * within_N**gamma, value_N, spend_N


def train_reader(data: TrainingSet, *, seed: int = 0, steps: int = READER_STEPS) -> nn.Module:
    """A network that reads MPC's log multiplier from the state without outlook."""
    torch.manual_seed(seed)
    reader = mlp((INPUT_WIDTH, 64, 64, 1))
    generator = torch.Generator().manual_seed(seed)
    alive = data.alive_NT > 0
    x_MD, anchor_M = data.x_NTD[..., :INPUT_WIDTH][alive], data.anchor_NT[alive]
    optimizer = torch.optim.Adam(reader.parameters(), lr=3e-3)
    for _ in range(steps):
        index = draw(len(x_MD), 1024, generator)
        loss = (reader(x_MD[index])[:, 0] - anchor_M[index]).square().mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
    return reader.requires_grad_(False)


def train_pathwise(
    curves: ResponseCurves,
    index_M: IntArray,
    data: TrainingSet,
    *,
    gamma: float = 2.0,
    budget_ratios: tuple[float, float] = (0.4, 1.7),
    variation: Variation | None = None,
    members: int = 1,
    trust: float = 1.0,
    config: FitConfig | None = None,
    seed: int = 0,
    checkpointing: Checkpointing | None = None,
    quiet: bool = False,
) -> tuple[PathwiseController, list[dict[str, float]]]:
    """Trains on seat-days `index_M` of the curves, budgets drawn log-uniformly as multiples of the base ones.

    The loss is the mean of -score / sqrt(budget / C): between counting conversions (large campaigns decide) and shares of what is
    affordable (small ones do).

    Args:
        data: what normalisers, outlook and (with an outlook) the reader come from; any behaviour on the same days.
        variation: how days are drawn around the recorded ones.
    """
    config = config or FitConfig(steps=180, batch=288, learning_rate=4e-3, weight_decay=1e-2, warmup=20, average=0.98)
    reader = None if data.outlook is None else train_reader(data, seed=seed, steps=min(READER_STEPS, 20 * config.steps))
    torch.manual_seed(seed)
    policy = PathwiseController(
        normaliser=data.normaliser, fallback_target=data.fallback_target, outlook=data.outlook, members=members, trust=trust
    )
    affordable_M = torch.from_numpy((curves.campaigns.budget_N / curves.campaigns.target_cpa_N)[index_M].astype(np.float32))
    index = torch.from_numpy(np.asarray(index_M, dtype=np.int64))
    low, high = np.log(budget_ratios[0]), np.log(budget_ratios[1])

    def step_loss(_step: int, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        chosen = draw(len(index), config.batch, generator)
        ratio = torch.exp(low + (high - low) * torch.rand(len(chosen), generator=generator))
        factors = None if variation is None else variation.draw(len(chosen), generator)
        member = torch.arange(len(chosen)) % members
        score, _value, _spend = roll_out(
            policy, curves, index[chosen], ratio, gamma=gamma, reader=reader, factors=factors, member_N=member
        )
        return -(score / (affordable_M[chosen] * ratio).sqrt()).mean(), {"score": float(score.detach().mean())}

    log = fit(policy, step_loss, replace(config, batch=min(config.batch, len(index))), seed=seed, label="pathwise",
              checkpointing=checkpointing, quiet=quiet)  # fmt: skip
    return policy, log
