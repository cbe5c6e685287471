"""GAVE: generative auto-bidding with value-guided explorations (arXiv 2504.14587), complete.

A day transformer over (return-to-go, state, action) (`transformer`) answers, from the state token: action a^_t, exploration coefficient
beta_t, value V_{t+1}; from the action token: next return-to-go r^_{t+1} (equation 12).

* **Score-based return-to-go** (13-15, 25): r_t = S_T - S_{t-1}, S the score so far with gamma really squared when it is 2.
* **Action exploration** (16-18): a~_t = beta_t a_t, beta_t = sigmoid(FC(h)) + 0.5 in (0.5, 1.5), anchored on the LOGGED action. The second
  pass gives r~_{t+1} with the logged history kept and only the current action exchanged. w_t = sigmoid(alpha_r (r~ - r^)).
* **Learnable value function** (20-22): V is the tau-expectile of r_{t+1}; r~ is pulled to the frozen V.

      L_r = (r^ - r)^2           L_a = (1 - w')(a^ - a)^2 + w'(a^ - a~')^2
      L_e = expectile_tau(r - V)  L_v = (r~ - V')^2        L = a1 L_r + a2 L_a + a3 L_e + a4 L_v

with ' for stop-gradient and means over the ticks in which something was decided. At inference only a^ is used (23).

**Where ours departs, and why; each is a switch.**

1. Actions are multipliers over the target CPA in logs and a^ is a bounded residual on the campaign's own recent mean (`base`; Kuaishou's
   online form): a~ = beta a is an addition of log beta.
2. `hide_returns`: return head, V and beta read the day with its return tokens hidden, and r^, r~ and V stand for r_t, the score still to come
   WITH the tick at hand. In the paper's form r_t stands in the sequence and r_{t+1} = r_t - (S_t - S_{t-1}) identically, so that of two
   actions the one that gains less now has the higher predicted r_{t+1}: where actions are not confounded with who bid, exploration
   then learns to bid nothing (benchmarks/bidding_gave.py measures both).
3. `deviations`: the critic's side reads actions as deviations from what the logged bidders do on average in that state (a small
   cloned network), which cannot be mistaken for the state itself; read as they are, a low multiplier is first of all the sign of a cheap day.
   Where the day can be looked at in hindsight (rebuilt days) a baseline for its luck is taken off the returns.
4. `restrict_value_gradient`: L_v moves the beta head alone. In the paper's form its gradient also runs through return head and backbone,
   which can satisfy it by being optimistic about a~.
5. `exploration_cost` (log beta)^2 joins L_v: Adam would follow the smallest slope of the return head to the edge of (0.5, 1.5), and a shift that is
   right for one tick adds up over a day in which every tick is shifted.

`paper_form()` switches all of them off. The ablations are switches too: `value_function=False` (GAVE-V: L_e and L_v give way to
L_w = 1 - sigmoid(alpha_r (r~ - r^')), equation 26), `exploration=False` (GAVE-VA: score-based DT with the return loss), and
`decision_transformer.train_dt` (DT).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from typing import Any

import torch
from torch import Tensor, nn

from rankloom.bidding.learned.base import RESIDUAL, TrainingSet, bounded, expectile_loss, masked_mean, mlp
from rankloom.bidding.learned.decision_transformer import SequenceController
from rankloom.bidding.learned.fitting import Checkpointing, FitConfig, draw, fit
from rankloom.bidding.state import LOG_ACTION_MAX, LOG_ACTION_MIN

DEVIATION_SCALE = 5.0
"""Deviations of log multipliers are of the order of 0.1; tokens like numbers of the order of 1."""


@dataclass(frozen=True)
class GaveConfig:
    """Attributes:
    return_weight, action_weight, expectile_weight, value_weight: a1, a2, a3, a4 of the loss.
    alpha_r: steepness of w_t; returns are in units of budget / C.
    tau: expectile of the value function.
    value_function, exploration, hide_returns, deviations, restrict_value_gradient, exploration_cost: see the module's text.
    """

    return_weight: float = 1.0
    action_weight: float = 10.0
    expectile_weight: float = 1.0
    value_weight: float = 1.0
    alpha_r: float = 100.0
    tau: float = 0.99
    value_function: bool = True
    exploration: bool = True
    hide_returns: bool = True
    deviations: bool = True
    restrict_value_gradient: bool = True
    exploration_cost: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.tau < 1:
            raise ValueError(f"tau must be between 0 and 1, not {self.tau}")
        if self.alpha_r <= 0:
            raise ValueError(f"alpha_r must be positive, not {self.alpha_r}")


def paper_form(**changes: Any) -> GaveConfig:
    """The losses as the paper has them."""
    return GaveConfig(hide_returns=False, deviations=False, restrict_value_gradient=False, exploration_cost=0.0, **changes)


@dataclass(frozen=True)
class GaveLosses:
    """The loss and its parts (scalars), with w_t and beta_t (B, T) for health checks."""

    total: Tensor
    return_loss: Tensor
    action_loss: Tensor
    expectile_loss: Tensor
    value_loss: Tensor
    weight_BT: Tensor
    beta_BT: Tensor


def exploration_weight(explored_return: Tensor, predicted_return: Tensor, alpha_r: float) -> Tensor:
    """w_t (equation 18), without gradient."""
    return torch.sigmoid(alpha_r * (explored_return - predicted_return)).detach()


def action_loss(predicted: Tensor, logged: Tensor, explored: Tensor, weight: Tensor) -> Tensor:
    """(1 - w)(a^ - a)^2 + w (a^ - a~)^2 elementwise (equation 19); neither w nor a~ get a gradient."""
    weight, explored = weight.detach(), explored.detach()
    return (1 - weight) * (predicted - logged) ** 2 + weight * (predicted - explored) ** 2


@contextmanager
def frozen(*modules: nn.Module) -> Iterator[None]:
    """What is computed inside has no gradient in the modules' parameters, but still one in its inputs."""
    parameters = [p for module in modules for p in module.parameters() if p.requires_grad]
    for parameter in parameters:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in parameters:
            parameter.requires_grad_(True)


class GaveController(SequenceController):
    """GAVE's network as a controller; see the module's text."""

    kind = "gave"

    def __init__(self, *, gave: GaveConfig | dict[str, Any] | None = None, **common: Any) -> None:
        super().__init__(**common)
        self.gave = gave if isinstance(gave, GaveConfig) else GaveConfig(**(gave or {}))
        width = self.config.width
        self.beta_head = nn.Linear(width, 1)
        # beta = 1 at the start: nothing is explored before the return head has something to say
        nn.init.zeros_(self.beta_head.weight)
        nn.init.zeros_(self.beta_head.bias)
        self.return_head = mlp((width, 32, 1))
        self.value_head = mlp((width, 32, 1))
        self.behaviour = mlp((self.input_width, 64, 64, 1))

    def options(self) -> dict[str, Any]:
        return super().options() | {"gave": asdict(self.gave)}

    def beta(self, hidden: Tensor) -> Tensor:
        """(0.5, 1.5) from the state token (equation 16)."""
        return torch.sigmoid(self.beta_head(hidden)[..., 0]) + 0.5

    def figures(self, hidden_NW: Tensor) -> dict[str, Tensor]:
        if self.gave.hide_returns:
            # beta and V read another pass over the day, which serving does not make
            return {}
        return {"beta": self.beta(hidden_NW), "value_share": self.value_head(hidden_NW)[:, 0]}

    def losses(self, batch: dict[str, Tensor]) -> GaveLosses:
        """All parts on a batch of days; `batch` as `SequenceController.batch` makes it."""
        config = self.gave
        alive, logged, residual = batch["alive"], batch["log_action"], batch["residual"]
        state_BTW, action_BTW, kept = self.transformer(batch["return"], batch["x"], logged)
        predicted_BT = bounded(self.action_head(state_BTW)[..., 0])
        goal_BT, read_BT, cloning = batch["next_return"], logged, torch.zeros(())
        if config.hide_returns:
            if config.deviations:
                usual_BT = bounded(self.behaviour(batch["x"])[..., 0])
                cloning = masked_mean((usual_BT - residual) ** 2, alive)
                read_BT = DEVIATION_SCALE * (residual - usual_BT.detach())
            state_BTW, action_BTW, kept = self.transformer(None, batch["x"], read_BT)
            goal_BT = batch["return"] - batch["baseline"]
        predicted_return_BT = self.return_head(action_BTW)[..., 0]
        return_loss = masked_mean((predicted_return_BT - goal_BT) ** 2, alive)
        zero = torch.zeros(())
        if not config.exploration:
            imitation = masked_mean((predicted_BT - residual) ** 2, alive)
            total = config.return_weight * return_loss + config.action_weight * imitation
            half = torch.full_like(alive, 0.5)
            return GaveLosses(total, return_loss, imitation, zero, zero, half, torch.ones_like(alive))
        alone = config.restrict_value_gradient
        beta_BT = self.beta(state_BTW.detach() if alone else state_BTW)
        explored_BT = (logged + torch.log(beta_BT)).clamp(LOG_ACTION_MIN, LOG_ACTION_MAX)
        scale = DEVIATION_SCALE if config.hide_returns and config.deviations else 1.0
        explored_read_BT = read_BT + scale * (explored_BT - logged)
        if alone:
            with frozen(self.transformer, self.return_head):
                explored_return_BT = self._return_of(explored_read_BT, [(k.detach(), v.detach()) for k, v in kept])
        else:
            explored_return_BT = self._return_of(explored_read_BT, kept)
        weight_BT = exploration_weight(explored_return_BT, predicted_return_BT, config.alpha_r)
        edge = 0.98 * RESIDUAL
        explored_residual_BT = (explored_BT - batch["anchor"]).clamp(-edge, edge)
        imitation = masked_mean(action_loss(predicted_BT, residual, explored_residual_BT, weight_BT), alive)
        if config.value_function:
            value_BT = self.value_head(state_BTW)[..., 0]
            value_expectile = masked_mean(expectile_loss(goal_BT - value_BT, config.tau), alive)
            guidance = masked_mean((explored_return_BT - value_BT.detach()) ** 2, alive)
        else:
            value_expectile = zero
            gain_BT = explored_return_BT - predicted_return_BT.detach()
            guidance = masked_mean(1 - torch.sigmoid(config.alpha_r * gain_BT), alive)
        cost = config.exploration_cost * masked_mean(torch.log(beta_BT) ** 2, alive)
        total = (
            config.return_weight * return_loss
            + config.action_weight * imitation
            + config.expectile_weight * value_expectile
            + config.value_weight * guidance
            + cost
            + cloning
        )
        return GaveLosses(total, return_loss, imitation, value_expectile, guidance, weight_BT, beta_BT)

    def _return_of(self, explored_BT: Tensor, kept: list[tuple[Tensor, Tensor]]) -> Tensor:
        out: Tensor = self.return_head(self.transformer.explore(explored_BT, kept))[..., 0]
        return out


def train_gave(
    data: TrainingSet,
    *,
    gave: GaveConfig | None = None,
    config: FitConfig | None = None,
    seed: int = 0,
    options: dict[str, Any] | None = None,
    name: str = "gave",
    checkpointing: Checkpointing | None = None,
    quiet: bool = False,
) -> tuple[GaveController, list[dict[str, float]]]:
    """Trains GAVE (or one of its ablations); the log holds the parts of the loss, mean w_t and beta_t.

    Args:
        data: prepared with the gamma of the objective that is wanted.
        options: of the network: width, layers, heads, window, level.
    """
    config = config or FitConfig()
    torch.manual_seed(seed)
    model = GaveController(
        normaliser=data.normaliser,
        fallback_target=data.fallback_target,
        name=name,
        gave=gave,
        outlook=data.outlook,
        **(options or {}),
    )

    def step_loss(_step: int, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        batch = model.batch(data, draw(data.n, config.batch, generator))
        parts = model.losses(batch)
        aim = model.target.loss(batch["x"], batch["return"], batch["alive"])
        alive = batch["alive"]
        figures = {
            part.name: float(getattr(parts, part.name).detach())
            for part in fields(GaveLosses)
            if part.name not in ("total", "weight_BT", "beta_BT")
        }
        figures |= {
            "weight": float(masked_mean(parts.weight_BT, alive)),
            "beta": float(masked_mean(parts.beta_BT.detach(), alive)),
            "beta_at_bound": float(masked_mean((parts.beta_BT.detach() > 1.45).float(), alive)),
            "aim": float(aim.detach()),
        }
        return parts.total + aim, figures

    log = fit(model, step_loss, config, seed=seed, label=name, checkpointing=checkpointing, quiet=quiet)
    return model, log
