"""Offline RL on states alone: behaviour cloning, IQL, CQL, TD3-BC; one small class each behind one training function.

All act by the bounded residual of `base` on the state of the tick (no history but what the state holds); rewards are the score gained in a tick
(dense, S_t - S_{t-1}, over budget / C), no discount within the day: the day's sum is what counts.

* **BC**: squared error to the logged action.
* **IQL** (Kostrikov et al. 2021; Kuaishou's bidder before GAVE): expectile V, Q towards r + V', policy by advantage-weighted regression; Q is
  never asked about an action that was not logged.
* **CQL** (Kumar et al. 2020): TD with a penalty that pushes Q down on sampled actions and up on logged ones; deterministic policy that ascends Q.
* **TD3-BC** (Fujimoto and Gu 2021): twin critics, target policy smoothing, policy ascends lambda Q less the squared distance to the logged action.
"""

from __future__ import annotations

import copy
from typing import Any, Final, Literal

import torch
from torch import Tensor, nn

from rankloom.bidding.learned.base import (
    INPUT_WIDTH,
    RESIDUAL,
    LearnedController,
    TrainingSet,
    bounded,
    expectile_loss,
    mlp,
)
from rankloom.bidding.learned.fitting import Checkpointing, FitConfig, draw, fit
from rankloom.bidding.state import DayTensors

Method = Literal["bc", "iql", "cql", "td3-bc"]
METHODS: Final = ("bc", "iql", "cql", "td3-bc")


class PolicyController(LearnedController):
    """A state-to-residual network as a controller."""

    kind = "policy"

    def __init__(self, *, width: int = 96, **common: Any) -> None:
        super().__init__(**common)
        self.width = width
        self.net = mlp((self.input_width, width, width, 1))

    def options(self) -> dict[str, Any]:
        return {"width": self.width}

    def act(self, x: Tensor) -> Tensor:
        """(...,) residual in (-RESIDUAL, RESIDUAL)."""
        return bounded(self.net(x)[..., 0])

    def needs_history(self, day: DayTensors) -> bool:
        return False

    def residual(self, x_NSD: Tensor, day: DayTensors, anchor_NS: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        return self.act(x_NSD[:, -1]), {}


class Critic(nn.Module):
    """Twin Q(s, a); the action is a residual, scaled to [-1, 1]."""

    def __init__(self, width: int = 96, *, inputs: int = INPUT_WIDTH) -> None:
        super().__init__()
        self.first = mlp((inputs + 1, width, width, 1))
        self.second = mlp((inputs + 1, width, width, 1))

    def forward(self, x: Tensor, action: Tensor) -> tuple[Tensor, Tensor]:
        both = torch.cat([x, action[..., None] / RESIDUAL], dim=-1)
        return self.first(both)[..., 0], self.second(both)[..., 0]

    def least(self, x: Tensor, action: Tensor) -> Tensor:
        return torch.minimum(*self(x, action))


class _Learner(nn.Module):
    """Policy, critic, value and slowly following copies."""

    def __init__(self, policy: PolicyController, width: int) -> None:
        super().__init__()
        self.policy = policy
        self.critic = Critic(width, inputs=policy.input_width)
        self.value = mlp((policy.input_width, width, width, 1))
        self.slow_critic = copy.deepcopy(self.critic).requires_grad_(False)
        self.slow_policy = copy.deepcopy(policy).requires_grad_(False)

    def follow(self, rate: float = 0.01) -> None:
        with torch.no_grad():
            for slow, fast in ((self.slow_critic, self.critic), (self.slow_policy, self.policy)):
                for p, q in zip(slow.parameters(), fast.parameters(), strict=True):
                    p.lerp_(q, rate)


def advantage_weight(advantage: Tensor, beta: float, limit: float = 20.0) -> Tensor:
    """exp(beta A), bounded, without gradient (IQL equation 7)."""
    return torch.exp(beta * advantage).clamp(max=limit).detach()


def conservative_penalty(sampled_q_SB: Tensor, logged_q_B: Tensor) -> Tensor:
    """log mean exp of Q over sampled actions minus Q of the logged one (CQL equation 4, uniform proposals)."""
    return torch.logsumexp(sampled_q_SB, dim=0) - torch.log(torch.tensor(float(len(sampled_q_SB)))) - logged_q_B


def train_policy(
    data: TrainingSet,
    *,
    method: Method,
    config: FitConfig | None = None,
    width: int = 96,
    tau: float = 0.7,
    beta: float = 30.0,
    conservatism: float = 0.05,
    td3_weight: float = 2.5,
    seed: int = 0,
    checkpointing: Checkpointing | None = None,
    quiet: bool = False,
) -> tuple[PolicyController, list[dict[str, float]]]:
    """One of the four methods.

    Args:
        config: `batch` counts ticks here, not days.
        tau, beta: IQL's expectile and inverse temperature. conservatism: CQL's alpha. td3_weight: TD3-BC's alpha.
    """
    if method not in METHODS:
        raise ValueError(f"method must be one of {', '.join(METHODS)}, not {method!r}")
    config = config or FitConfig(steps=3000, batch=512, learning_rate=1e-3, average=0.995)
    torch.manual_seed(seed)
    policy = PolicyController(
        normaliser=data.normaliser, fallback_target=data.fallback_target, name=method, width=width, outlook=data.outlook
    )
    learner = _Learner(policy, width)
    alive = data.alive_NT > 0
    reward_NT = data.return_NT - data.next_return_NT
    x = data.x_NTD[alive]
    action = data.residual_NT[alive]
    reward = reward_NT[alive]
    follows_NT = torch.cat([data.alive_NT[:, 1:], torch.zeros(data.n, 1)], dim=1)
    follows = follows_NT[alive]
    x_next = torch.cat([data.x_NTD[:, 1:], data.x_NTD[:, -1:]], dim=1)[alive]

    def step_loss(step: int, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        i = draw(len(x), config.batch, generator)
        s, a, r, s_next, goes_on = x[i], action[i], reward[i], x_next[i], follows[i]
        chosen = policy.act(s)
        if method == "bc":
            loss = (chosen - a).square().mean()
            return loss, {}
        q_1, q_2 = learner.critic(s, a)
        if method == "iql":
            slow_q = learner.slow_critic.least(s, a)
            v = learner.value(s)[..., 0]
            value_loss = expectile_loss(slow_q - v, tau).mean()
            aim = (r + goes_on * learner.value(s_next)[..., 0]).detach()
            weight = advantage_weight(slow_q - v, beta)
            policy_loss = (weight * (chosen - a).square()).mean()
            critic_loss = (q_1 - aim).square().mean() + (q_2 - aim).square().mean()
            loss = value_loss + critic_loss + policy_loss
        else:
            with torch.no_grad():
                next_action = learner.slow_policy.act(s_next)
                if method == "td3-bc":
                    noise = (0.1 * torch.randn(len(i), generator=generator)).clamp(-0.2, 0.2)
                    next_action = (next_action + noise).clamp(-RESIDUAL, RESIDUAL)
                aim = r + goes_on * learner.slow_critic.least(s_next, next_action)
            critic_loss = (q_1 - aim).square().mean() + (q_2 - aim).square().mean()
            for parameter in learner.critic.parameters():
                parameter.requires_grad_(False)
            of_chosen = learner.critic(s, chosen)[0]
            for parameter in learner.critic.parameters():
                parameter.requires_grad_(True)
            scale = of_chosen.detach().abs().mean().clamp_min(1e-6)
            imitation = (chosen - a).square().mean() / RESIDUAL**2
            if method == "td3-bc":
                policy_loss = -td3_weight * (of_chosen / scale).mean() + imitation
            else:
                proposals = (2 * torch.rand(8, len(i), generator=generator) - 1) * RESIDUAL
                wide = s.expand(8, *s.shape)
                other_1, other_2 = learner.critic(wide, proposals)
                critic_loss = critic_loss + conservatism * (
                    conservative_penalty(other_1, q_1) + conservative_penalty(other_2, q_2)
                ).mean()
                policy_loss = -(of_chosen / scale).mean()
            loss = critic_loss + policy_loss
        learner.follow()
        return loss, {"critic": float(critic_loss.detach()), "policy": float(policy_loss.detach())}

    log = fit(learner, step_loss, config, seed=seed, label=method, checkpointing=checkpointing, quiet=quiet)
    return policy, log
