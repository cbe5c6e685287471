"""GAS: generative auto-bidding with post-training search (arXiv 2412.17018): critics vote on a transformer's perturbed actions.

The policy is DT-score. At inference its action and N - 1 perturbed ones (alpha * U(0.9, 1.1)) are candidates; M independently seeded critics score each
given the history; each critic's scores are min-max normalised over the candidates, summed (Q-voting), and the best candidate is played.
Our critics are day transformers like the policy: state token -> V by expectile regression, action token -> Q by regression on the score that was still
gained (the data's own return-to-go; the paper trains them by IQL), so a critic reads history as the paper's does. Candidates are read with
`DayTransformer.peek`: the history kept, the current action exchanged.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from rankloom.bidding.learned.base import TrainingSet, bounded, masked_mean, mlp
from rankloom.bidding.learned.decision_transformer import SequenceController
from rankloom.bidding.learned.fitting import Checkpointing, FitConfig, draw, fit
from rankloom.bidding.learned.transformer import DayTransformer, KeyValue, TransformerConfig
from rankloom.bidding.state import DayTensors


class HistoryCritic(nn.Module):
    """Q of an action given the day so far."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.transformer = DayTransformer(config)
        self.head = mlp((config.width, 32, 1))

    def forward(self, x_BTD: Tensor, log_action_BT: Tensor) -> Tensor:
        """(B, T) Q of the logged actions; critics are not told a return to aim at."""
        _state, action_BTW, _kept = self.transformer(None, x_BTD, log_action_BT)
        out: Tensor = self.head(action_BTW)[..., 0]
        return out

    def candidates(self, tick: int, kept: list[KeyValue], candidate_BC: Tensor) -> Tensor:
        """(B, C) Q of candidate actions of `tick`, with what `DayTransformer.step` kept up to its state."""
        out: Tensor = self.head(self.transformer.peek(candidate_BC, tick, kept))[..., 0]
        return out


def vote(scores_MBC: Tensor) -> Tensor:
    """(B,) index of the candidate with the largest sum over critics of min-max normalised scores; a critic that sees no difference abstains."""
    low = scores_MBC.amin(dim=-1, keepdim=True)
    span = scores_MBC.amax(dim=-1, keepdim=True) - low
    normalised = torch.where(span > 0, (scores_MBC - low) / span.clamp_min(1e-12), torch.zeros_like(scores_MBC))
    return normalised.sum(dim=0).argmax(dim=-1)


class GasController(SequenceController):
    """DT-score with voting critics; see the module's text.

    Args:
        critics: M. candidates: N, the policy's own action among them. reach: perturbation in logs (paper: 10%).
    """

    kind = "gas"

    def __init__(self, *, critics: int = 3, candidates: int = 5, reach: float = 0.1, **common: Any) -> None:
        super().__init__(**common)
        if critics < 1 or candidates < 2:
            raise ValueError("GAS needs at least 1 critic and 2 candidates")
        self.n_critics, self.n_candidates, self.reach = critics, candidates, reach
        small = TransformerConfig(
            input_width=self.config.input_width, width=32, layers=2, heads=self.config.heads, window=self.config.window
        )
        self.critics = nn.ModuleList(HistoryCritic(small) for _ in range(critics))

    def options(self) -> dict[str, Any]:
        own = {"critics": self.n_critics, "candidates": self.n_candidates, "reach": self.reach}
        return super().options() | own

    def begin(self) -> None:
        super().begin()
        self._critics_kept: list[list[KeyValue] | None] = [None] * self.n_critics

    def residual(self, x_NSD: Tensor, day: DayTensors, anchor_NS: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        own_N, details = super().residual(x_NSD, day, anchor_NS)
        n, tick = len(own_N), day.volume_NS.shape[1] - 1
        drawn = torch.from_numpy(self._rng.uniform(1 - self.reach, 1 + self.reach, (n, self.n_candidates - 1))).float()
        shift_NC = torch.cat([torch.zeros(n, 1), torch.log(drawn)], dim=1)
        candidate_NC = anchor_NS[:, -1:] + own_N[:, None] + shift_NC
        scores = []
        for place, critic in enumerate(self.critics):
            assert isinstance(critic, HistoryCritic)
            kept = self._critics_kept[place]
            # one state: the day so far is kept; all of them: it was read again, and is by the critics
            first = tick + 1 - x_NSD.shape[1]
            for t in range(first, tick + 1):
                previous = day.log_action_NT[:, t - 1] if t else None
                _hidden, kept = critic.transformer.step(None, x_NSD[:, t - first], previous, t, kept)
            assert kept is not None
            self._critics_kept[place] = kept
            scores.append(critic.candidates(tick, kept, candidate_NC))
        chosen_N1 = vote(torch.stack(scores))[:, None]
        return own_N + shift_NC.gather(1, chosen_N1)[:, 0], details


def train_gas(
    data: TrainingSet,
    *,
    config: FitConfig | None = None,
    seed: int = 0,
    options: dict[str, Any] | None = None,
    checkpointing: Checkpointing | None = None,
    quiet: bool = False,
) -> tuple[GasController, list[dict[str, float]]]:
    """DT-score and its critics in one loop; every critic has its own seed and its own batches."""
    config = config or FitConfig()
    torch.manual_seed(seed)
    model = GasController(
        normaliser=data.normaliser, fallback_target=data.fallback_target, name="gas", outlook=data.outlook, **(options or {})
    )

    def step_loss(_step: int, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        batch = model.batch(data, draw(data.n, config.batch, generator))
        hidden_BTW, _actions, _kept = model.transformer(batch["return"], batch["x"], batch["log_action"])
        predicted_BT = bounded(model.action_head(hidden_BTW)[..., 0])
        imitation = masked_mean((predicted_BT - batch["residual"]) ** 2, batch["alive"])
        aim = model.target.loss(batch["x"], batch["return"], batch["alive"])
        loss = 10.0 * imitation + aim
        critic_loss = torch.zeros(())
        for critic in model.critics:
            own = model.batch(data, draw(data.n, max(1, config.batch // 2), generator))
            q_BT = critic(own["x"], own["log_action"])
            critic_loss = critic_loss + masked_mean((q_BT - own["return"]) ** 2, own["alive"])
        return loss + critic_loss, {"imitation": float(imitation.detach()), "critic": float(critic_loss.detach())}

    log = fit(model, step_loss, config, seed=seed, label="gas", checkpointing=checkpointing, quiet=quiet)
    return model, log
