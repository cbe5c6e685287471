"""DT and DT-score: the action that went with a return, given the day so far (Chen et al. 2021; as bidders in GAVE and CBD).

DT asks for a sum of values to come; DT-score for a return-to-go of the CPA-penalised score (GAVE equations 13-15 without
the rest of GAVE: their GAVE-VA ablation). Both predict the bounded residual of `base`, both ask per campaign and per state for an expectile of
`ReturnTarget`, never for a constant.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from rankloom.bidding.learned.base import (
    LearnedController,
    ReturnTarget,
    TrainingSet,
    bounded,
    masked_mean,
)
from rankloom.bidding.learned.fitting import Checkpointing, FitConfig, draw, fit
from rankloom.bidding.learned.transformer import DayTransformer, KeyValue, TransformerConfig
from rankloom.bidding.state import DayTensors

DEFAULT_LEVEL = 0.8


class SequenceController(LearnedController):
    """A day transformer with an action head and a return target as a controller; keys and values live for a day.

    Args:
        level: expectile of the return target that is asked for.
        score_aligned: returns are of the score (DT-score, GAVE), else of the plain value (DT).
    """

    kind = "dt-score"

    def __init__(
        self,
        *,
        width: int = 64,
        layers: int = 2,
        heads: int = 4,
        window: int | None = None,
        level: float = DEFAULT_LEVEL,
        score_aligned: bool = True,
        **common: Any,
    ) -> None:
        super().__init__(**common)
        self.config = TransformerConfig(input_width=self.input_width, width=width, layers=layers, heads=heads, window=window)
        self.level = level
        self.score_aligned = score_aligned
        self.target = ReturnTarget(inputs=self.input_width)
        self.transformer = DayTransformer(self.config)
        self.action_head = nn.Linear(width, 1)
        nn.init.zeros_(self.action_head.weight)
        nn.init.zeros_(self.action_head.bias)
        self._kept: list[KeyValue] | None = None
        self._done = 0
        self._past: Tensor | None = None

    def options(self) -> dict[str, Any]:
        return {
            "width": self.config.width,
            "layers": self.config.layers,
            "heads": self.config.heads,
            "window": self.config.window,
            "level": self.level,
            "score_aligned": self.score_aligned,
        }

    def returns_of(self, data: TrainingSet) -> Tensor:
        return data.return_NT if self.score_aligned else data.value_return_NT

    def begin(self) -> None:
        self._kept, self._done, self._past = None, 0, None

    def needs_history(self, day: DayTensors) -> bool:
        """Whether the kept keys are those of this very day up to the tick before; if not, the day is read again."""
        tick = day.volume_NS.shape[1] - 1
        before = day.log_action_NT[:, : max(tick - 1, 0)]
        fits = self._done == tick and (
            tick == 0 or (self._past is not None and self._past.shape == before.shape and torch.equal(self._past, before))
        )
        if not fits:
            self.begin()
        return not fits

    def residual(self, x_NSD: Tensor, day: DayTensors, anchor_NS: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        tick = day.volume_NS.shape[1] - 1
        # a single state where the day so far is kept, all of them where it must be read again
        first = tick + 1 - x_NSD.shape[1]
        for t in range(self._done, tick + 1):
            x_ND = x_NSD[:, t - first]
            wanted_N = self.target.at(x_ND, self.level)
            previous = day.log_action_NT[:, t - 1] if t else None
            hidden_NW, self._kept = self.transformer.step(wanted_N, x_ND, previous, t, self._kept)
        self._done, self._past = tick + 1, day.log_action_NT[:, :tick].clone()
        residual_N = bounded(self.action_head(hidden_NW)[:, 0])
        return residual_N, {"return_target": wanted_N * day.budget_N / day.target_N, **self.figures(hidden_NW)}

    def figures(self, hidden_NW: Tensor) -> dict[str, Tensor]:
        """Further explanations from the state token."""
        return {}

    def batch(self, data: TrainingSet, index: Tensor) -> dict[str, Tensor]:
        returns = self.returns_of(data)
        next_return = torch.cat([returns[:, 1:], torch.zeros_like(returns[:, :1])], dim=1)
        return {
            "return": returns[index],
            "next_return": next_return[index],
            "x": data.x_NTD[index],
            "log_action": data.log_action_NT[index],
            "anchor": data.anchor_NT[index],
            "residual": data.residual_NT[index],
            "alive": data.alive_NT[index],
            "baseline": data.baseline_NT[index],
        }


def train_dt(
    data: TrainingSet,
    *,
    score_aligned: bool = True,
    config: FitConfig | None = None,
    seed: int = 0,
    options: dict[str, Any] | None = None,
    checkpointing: Checkpointing | None = None,
    quiet: bool = False,
) -> tuple[SequenceController, list[dict[str, float]]]:
    """DT-score, or DT where `score_aligned` is false."""
    config = config or FitConfig()
    torch.manual_seed(seed)
    model = SequenceController(
        normaliser=data.normaliser,
        fallback_target=data.fallback_target,
        name="dt-score" if score_aligned else "dt",
        score_aligned=score_aligned,
        outlook=data.outlook,
        **(options or {}),
    )

    def step_loss(_step: int, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        batch = model.batch(data, draw(data.n, config.batch, generator))
        hidden_BTW, _actions, _kept = model.transformer(batch["return"], batch["x"], batch["log_action"])
        predicted_BT = bounded(model.action_head(hidden_BTW)[..., 0])
        imitation = masked_mean((predicted_BT - batch["residual"]) ** 2, batch["alive"])
        aim = model.target.loss(batch["x"], batch["return"], batch["alive"])
        return 10.0 * imitation + aim, {"imitation": float(imitation.detach()), "aim": float(aim.detach())}

    log = fit(model, step_loss, config, seed=seed, label=model.name, checkpointing=checkpointing, quiet=quiet)
    return model, log
