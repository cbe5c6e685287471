"""CBD: causal auto-bidding with a diffusion completer-aligner (arXiv 2509.03348), complete, with its ablations.

A day is a trajectory of 48 states; a plan is one such trajectory with what has happened at its true positions; the multiplier follows from the
plan's next state.

* **Completer** (section on training): per SAMPLE a diffusion step k and a query length t ~ U[0, T-1] are drawn; positions 0..t hold the clean observed
  states, t+1..T-1 noised ones; the loss counts the answer t+1..T-1 alone. Sampling starts from noise and writes the observed states into
  their places before EVERY denoising step. `completer=False` is a plain decision diffuser (DiffBid): everything noised, loss everywhere.
* **Condition** y: trajectory properties (return, share spent in the first half, unevenness of spend), each z-scored and each present or not
  (dropped independently in training), beside what the campaign is. Guidance weight 1: the conditional model alone. The shape of spending is told
  as the difference to what the campaign spends by itself, and learned from days that were shaped on purpose (`PlannedDays`): the raw share differs
  three times as much between campaigns and their traffic as by anything a bidder does.
* **Aligner**: a return model R(x_0) regresses y; after the last denoising step one gradient move on the answer only,
  s~' = s~ - lambda grad ||R(x~_0) - y||^2, up or down to what was asked. `aligner="sample"` is GS-Align: of 10 plans the best aligned.
* **Inverse dynamics**: a_t = f(s_{t-2}, s_{t-1}, s_t, s~_{t+1}), history L = 3.
* **Few-step student**: the same network trained on for a single pass to the mean plan (`distil`): what fits a control path on a CPU, and
  what is played by default; any number of DDIM steps up to the full chain is a setting.

States are z-scored (AuctionNet's raw columns would drown in unit noise), and the columns of a plan are those that a bidder steers or must foresee
(`PLAN`). The network predicts the clean day ("x0") or the noise ("epsilon", the paper's form); cosine schedule, DDIM sampling.
The paper leaves normalisation, schedule and the return model's architecture open; a plan has no state after the last
tick, so there the campaign keeps its anchor. The completer's answer is added to a fading copy of the last observed state
(`persistence`): what a bidder acts on is how the next state differs from this one, and that is small beside the spread of days. Clock and remaining
budget are not free numbers: the clock is known, and a tick spends a share of what is left (`CbdController.steered`).

Shapes: B days, T ticks, P plan columns, C condition columns.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Final, Literal

import numpy as np
import torch
from torch import Tensor, nn

from rankloom.bidding.learned.base import (
    INPUT_WIDTH,
    LearnedController,
    ReturnTarget,
    TrainingSet,
    bounded,
    masked_mean,
    mlp,
)
from rankloom.bidding.learned.fitting import Checkpointing, FitConfig, draw, fit
from rankloom.bidding.learned.outlook import LEAD, OUTLOOK, Outlook
from rankloom.bidding.learned.unet import TemporalUNet
from rankloom.bidding.protocol import N_TICKS
from rankloom.bidding.state import CONTEXT, N_CATEGORIES, STATE, DayTensors
from rankloom.bidding.trajectories import Trajectories

PLAN: Final = (
    "time_left", "budget_left", "log_cpa_so_far", "value_so_far", "log_cpa_3", "spend_speed_1", "spend_speed_3", "win_share_3",
    "log_worth_1", "log_worth_3", "log_multiplier_1", "log_p_now_over_mean", "log_p_now_at_target", "log_volume_now",
)  # fmt: skip
PLAN_COLUMNS: Final = tuple(STATE.index(name) for name in PLAN)
STATIC: Final = ("log_budget_in_conversions", "log_target")
STATIC_COLUMNS: Final = tuple(STATE.index(name) for name in STATIC)
PROPERTIES: Final = ("return", "early_spend", "unevenness")
PLAN_OUTLOOK: Final = OUTLOOK
"""Further plan columns where the bidder has an outlook; the own column is then how far the multiplier stands above MPC's."""
CONDITION_WIDTH: Final = 2 * len(PROPERTIES) + len(STATIC) + N_CATEGORIES
HISTORY_STATES: Final = 3
BUDGET, TIME = PLAN.index("budget_left"), PLAN.index("time_left")

Aligner = Literal["gradient", "sample", "none"]


@dataclass(frozen=True)
class CbdConfig:
    """Attributes:
    widths: of the U-Net. diffusion_steps: K of training. sampling_steps: of DDIM at inference: K is the full chain, 1 the mean plan (see `distil`).
    predict: "x0" or "epsilon". completer: see the module's text. condition_dropout: per property.
    aligner, align_step: how plans are aligned and lambda. align_samples: plans of GS-Align. noise: scale of the starting noise.
    level: expectile of the attainable return that is asked for. near_weight: see `answer_loss`. own_weight, pace_weight: see `CbdController.weighted`.
    """

    widths: tuple[int, ...] = (24, 48, 96)
    diffusion_steps: int = 100
    sampling_steps: int = 1
    predict: Literal["x0", "epsilon"] = "x0"
    completer: bool = True
    condition_dropout: float = 0.2
    aligner: Aligner = "gradient"
    align_step: float = 0.1
    align_samples: int = 10
    noise: float = 1.0
    level: float = 0.8
    near_weight: float = 20.0
    own_weight: float = 60.0
    pace_weight: float = 3.0

    def __post_init__(self) -> None:
        if not 1 <= self.sampling_steps <= self.diffusion_steps:
            raise ValueError(f"sampling_steps must be 1 to {self.diffusion_steps}, not {self.sampling_steps}")


def plan_columns(outlook: Outlook | None) -> list[int]:
    """Which columns of a state are a plan's."""
    return list(PLAN_COLUMNS) + ([] if outlook is None else list(range(INPUT_WIDTH, INPUT_WIDTH + len(PLAN_OUTLOOK))))


def cosine_signal(steps: int) -> Tensor:
    """(K,) cumulated signal share alpha-bar of a cosine schedule (Nichol and Dhariwal 2021)."""
    at = torch.arange(steps + 1) / steps
    curve = torch.cos((at + 0.008) / 1.008 * torch.pi / 2) ** 2
    return (curve[1:] / curve[0]).clamp(1e-4, 0.9999)


def query_mask(length_B: Tensor, n_ticks: int = N_TICKS) -> Tensor:
    """(B, T) float: 1 at the observed positions 0..t of a query of length t."""
    return (torch.arange(n_ticks)[None, :] <= length_B[:, None]).float()


def impose(plan_BTP: Tensor, observed_BTP: Tensor, known_BT: Tensor) -> Tensor:
    """The plan with the observed states written into their places."""
    return torch.where(known_BT[..., None] > 0, observed_BTP, plan_BTP)


def persistence(plan_BTP: Tensor, known_BT: Tensor, memory: float = 6.0) -> Tensor:
    """What is expected of the answer before the network has said anything: the last observed state, fading with distance (e-fold `memory`
    ticks); 0 at observed positions and where nothing is observed."""
    b, n_ticks, _ = plan_BTP.shape
    last_B = known_BT.sum(dim=1).long() - 1
    held_BP = plan_BTP[torch.arange(b), last_B.clamp_min(0)]
    distance_BT = torch.arange(n_ticks)[None, :] - last_B[:, None] - 1
    weight_BT = torch.exp(-distance_BT.clamp_min(0) / memory) * (1 - known_BT) * (last_B >= 0)[:, None]
    return weight_BT[..., None] * held_BP[:, None]


def answer_loss(error_BTP: Tensor, known_BT: Tensor, near: float = 0.0) -> Tensor:
    """Mean squared error over the answer (positions that are not known) only.

    Args:
        near: how much more the positions right after the query count: their weight is 1 + near exp(-distance / 2). A bidder acts on the first of
            them and plans again; with 0 the mean is over all entries of the answer alike.
    """
    answer_BT = 1 - known_BT
    distance_BT = torch.arange(known_BT.shape[1])[None, :] - known_BT.sum(dim=1, keepdim=True)
    answer_BT = answer_BT * (1 + near * torch.exp(-distance_BT.clamp_min(0) / 2))
    return (error_BTP.square().mean(dim=-1) * answer_BT).sum() / answer_BT.sum().clamp_min(1.0)


def trajectory_properties(trajectories: Trajectories, return_N: Tensor) -> Tensor:
    """(N, 3) `PROPERTIES` of finished days: normalised return, share of the spend in the first half, and how far the cumulated spend is from a
    straight line over the day, as a mean share of the spend (0: the same in every tick). The deviation of the spend from tick to tick is no property:
    most of it is the traffic's."""
    spend_NT = torch.from_numpy(trajectories.history.spend_NT.astype(np.float32))
    total_N = spend_NT.sum(dim=1).clamp_min(1e-6)
    early_N = spend_NT[:, : N_TICKS // 2].sum(dim=1) / total_N
    line_T = torch.arange(1, N_TICKS + 1) / N_TICKS
    uneven_N = (spend_NT.cumsum(dim=1) / total_N[:, None] - line_T).abs().mean(dim=1)
    return torch.stack([return_N, early_N, uneven_N], dim=1)


class ReturnModel(nn.Module):
    """R(x_0): properties of a whole day from its states; every position has its say (mean over the day)."""

    def __init__(self, columns: int = len(PLAN), width: int = 48) -> None:
        super().__init__()
        self.conv_1 = nn.Conv1d(columns + 1, width, 5, padding=2)
        self.conv_2 = nn.Conv1d(width, width, 5, padding=2)
        self.head = mlp((width + len(STATIC) + N_CATEGORIES, width, len(PROPERTIES)))

    def forward(self, x_BTP: Tensor, static_BC: Tensor) -> Tensor:
        place_BT1 = torch.linspace(-1, 1, x_BTP.shape[1])[None, :, None].expand(len(x_BTP), -1, 1)
        h = torch.cat([x_BTP, place_BT1], dim=-1).transpose(1, 2)
        h = nn.functional.silu(self.conv_2(nn.functional.silu(self.conv_1(h)))).mean(dim=-1)
        out: Tensor = self.head(torch.cat([h, static_BC], dim=-1))
        return out


class CbdController(LearnedController):
    """CBD's planner as a controller; see the module's text.

    Args:
        property_mean, property_std: of the training days, for the z-scores of y.
        ask: fixed wishes: {"early_spend": 0.1} is a tenth of the spend more in the first half of the day than it would be by itself, {"unevenness": -0.03}
            a smoother day; the return is asked for per campaign and state unless it stands here.
    """

    kind = "cbd"

    def __init__(
        self,
        *,
        cbd: CbdConfig | dict[str, Any] | None = None,
        property_mean: list[float] | None = None,
        property_std: list[float] | None = None,
        ask: dict[str, float] | None = None,
        distilled: bool = False,
        **common: Any,
    ) -> None:
        super().__init__(**common)
        if not isinstance(cbd, CbdConfig):
            told: dict[str, Any] = dict(cbd or {})
            cbd = CbdConfig(**(told | {"widths": tuple(told["widths"])} if "widths" in told else told))
        self.cbd = cbd
        self.property_mean = torch.tensor(property_mean or [0.0] * len(PROPERTIES))
        self.property_std = torch.tensor(property_std or [1.0] * len(PROPERTIES))
        self.ask = dict(ask or {})
        self.distilled = distilled
        self.columns = plan_columns(self.outlook)
        width = len(self.columns)
        self.own = PLAN.index("log_multiplier_1") if self.outlook is None else len(PLAN) + LEAD
        self.unet = TemporalUNet(columns=width, condition=CONDITION_WIDTH, widths=cbd.widths)
        self.return_model = ReturnModel(width)
        self.inverse = mlp(((HISTORY_STATES + 1) * width + len(STATIC) + N_CATEGORIES, 128, 128, 1))
        self.target = ReturnTarget(inputs=self.input_width)
        self.signal_K = cosine_signal(cbd.diffusion_steps)
        self._generator = torch.Generator().manual_seed(0)
        self.last_plan_NTP: Tensor | None = None

    def options(self) -> dict[str, Any]:
        return {
            "cbd": asdict(self.cbd),
            "property_mean": self.property_mean.tolist(),
            "property_std": self.property_std.tolist(),
            "ask": self.ask,
            "distilled": self.distilled,
        }

    def start(self, campaigns: Any, seed: int) -> None:
        super().start(campaigns, seed)
        self._generator = torch.Generator().manual_seed(seed)

    # --- conditions -------------------------------------------------------------------------------------------------

    def static(self, x_BTD: Tensor) -> Tensor:
        """(B, static + categories) what the campaign is."""
        first = x_BTD[:, 0]
        return torch.cat([first[:, list(STATIC_COLUMNS)], first[:, len(STATE) : len(STATE) + N_CATEGORIES]], dim=-1)

    def condition(self, wish_BC: Tensor, present_BC: Tensor, static_BC: Tensor) -> Tensor:
        """z-scored wishes (0 where absent), which are present, and the campaign."""
        scored = (wish_BC - self.property_mean) / self.property_std
        return torch.cat([scored * present_BC, present_BC, static_BC], dim=-1)

    def draw_condition(
        self, properties_BC: Tensor, static_BC: Tensor, generator: torch.Generator, shaped_BC: Tensor | None = None
    ) -> Tensor:
        """Training's conditions: a day's own properties, each dropped independently; spending shape, a wish that few make, half as often shown.

        Args:
            shaped_BC: bool, in which properties a day was shaped; of such a day those are always shown and no other shape (see `PlannedDays`).
        """
        shown_C = (1 - self.cbd.condition_dropout) * torch.tensor([1.0] + [0.5] * (len(PROPERTIES) - 1))
        present_BC = (torch.rand(properties_BC.shape, generator=generator) < shown_C).float()
        if shaped_BC is not None:
            present_BC[:, 1:] = torch.where(shaped_BC.any(dim=1, keepdim=True), shaped_BC.float(), present_BC)[:, 1:]
        return self.condition(properties_BC, present_BC, static_BC)

    # --- completer --------------------------------------------------------------------------------------------------

    def completer_loss(
        self, plan_BTP: Tensor, condition_BC: Tensor, generator: torch.Generator
    ) -> Tensor:
        """Diffusion step and query length per sample, clean prefix, loss on the answer only."""
        b, n_ticks, _ = plan_BTP.shape
        # more often the noisy steps: with little noise the answer stands in the input, and few-step sampling never asks for it
        share_B = torch.rand(b, generator=generator).sqrt()
        step_B = (share_B * self.cbd.diffusion_steps).long().clamp(max=self.cbd.diffusion_steps - 1)
        if self.cbd.completer:
            known_BT = query_mask(torch.randint(n_ticks - 1, (b,), generator=generator), n_ticks)
        else:
            known_BT = torch.zeros(b, n_ticks)
        noise_BTP = torch.randn(plan_BTP.shape, generator=generator)
        signal_B11 = self.signal_K[step_B][:, None, None]
        noised = impose(signal_B11.sqrt() * plan_BTP + (1 - signal_B11).sqrt() * noise_BTP, plan_BTP, known_BT)
        predicted = self._network(noised, known_BT, step_B, condition_BC)
        near = self.cbd.near_weight if self.cbd.completer else 0.0
        error_BTP = predicted - (plan_BTP if self.cbd.predict == "x0" else noise_BTP)
        return answer_loss(self.weighted(error_BTP), known_BT, near)

    def weighted(self, error_BTP: Tensor) -> Tensor:
        """Errors with the bidder's own column counting `own_weight` times the others (Diffuser's action weight, Janner et al. 2022) and the remaining
        budget `pace_weight` times: most columns are the market's, which no planner foresees well and the inverse dynamics hardly needs."""
        weight_P = torch.ones(len(self.columns))
        weight_P[self.own], weight_P[BUDGET] = self.cbd.own_weight**0.5, self.cbd.pace_weight**0.5
        return error_BTP * weight_P

    def _network(self, noised_BTP: Tensor, known_BT: Tensor, step_B: Tensor, condition_BC: Tensor) -> Tensor:
        out: Tensor = self.unet(noised_BTP, known_BT, step_B, condition_BC)
        if self.cbd.predict != "x0" or not self.cbd.completer:
            return out
        expected_BTP = persistence(noised_BTP, known_BT)
        clock_BT1, budget_BT1 = self.steered(noised_BTP, known_BT, out[..., BUDGET])
        answer_BTP = (out + expected_BTP).index_copy(2, torch.tensor([TIME]), clock_BT1)
        return answer_BTP.index_copy(2, torch.tensor([BUDGET]), budget_BT1)

    def steered(self, plan_BTP: Tensor, known_BT: Tensor, said_BT: Tensor) -> tuple[Tensor, Tensor]:
        """(B, T, 1) z-scored clock and remaining budget of the answer.

        The clock is known. Of the money that is left a tick spends a share: sigmoid of what the network said above what an even run to nothing at the
        day's end would be. So a plan's budget cannot rise, nor pass what there is.
        """
        n_ticks = plan_BTP.shape[1]
        last_B1 = known_BT.sum(dim=1, keepdim=True).long() - 1
        first_B1 = last_B1.clamp_min(0)
        distance_BT = torch.arange(n_ticks)[None, :] - first_B1
        answer_BT = ((1 - known_BT) > 0) & (distance_BT > 0)
        ahead_BT = (n_ticks - first_B1 - distance_BT + 1).clamp_min(1).float()
        # an even run spends 1 / (ticks ahead, this one among them) of what is left
        spent_BT = torch.sigmoid(said_BT - torch.log((ahead_BT - 1).clamp_min(0.05)))
        kept_BT = torch.cumsum(torch.where(answer_BT, torch.log1p(-spent_BT.clamp(max=0.999)), torch.zeros_like(spent_BT)), dim=1)
        found = []
        for column, share_BT in ((TIME, (1 - distance_BT / (n_ticks - first_B1)).clamp(0, 1)), (BUDGET, torch.exp(kept_BT))):
            of = PLAN_COLUMNS[column]
            nothing = -self.normaliser.mean_D[of] / self.normaliser.std_D[of]
            held_B1 = plan_BTP[..., column].gather(1, first_B1)
            found.append((nothing + (held_B1 - nothing) * share_BT)[..., None])
        return found[0], found[1]

    def denoise(self, noised_BTP: Tensor, known_BT: Tensor, step: int, condition_BC: Tensor) -> tuple[Tensor, Tensor]:
        """The clean day and the noise that the network sees in `noised_BTP`."""
        step_B = torch.full((len(noised_BTP),), step)
        # a plain decision diffuser was never told what is known; its prefix is only written in
        told_BT = known_BT if self.cbd.completer else torch.zeros_like(known_BT)
        predicted = self._network(noised_BTP, told_BT, step_B, condition_BC)
        signal = self.signal_K[step]
        if self.cbd.predict == "x0":
            return predicted, (noised_BTP - signal.sqrt() * predicted) / (1 - signal).sqrt()
        return (noised_BTP - (1 - signal).sqrt() * predicted) / signal.sqrt(), predicted

    def complete(
        self,
        observed_BTP: Tensor,
        known_BT: Tensor,
        condition_BC: Tensor,
        generator: torch.Generator,
        *,
        steps: int | None = None,
        start_BTP: Tensor | None = None,
    ) -> Tensor:
        """Plans: DDIM from noise, the observed states written in before every denoising step and at the end.

        Args:
            steps: denoising steps; None for the configured number (1 for a distilled student).
            start_BTP: the noise to start from; drawn where None.
        """
        steps = steps or (1 if self.distilled else self.cbd.sampling_steps)
        if start_BTP is None:
            scale = self.cbd.noise
            drawn = torch.randn(observed_BTP.shape, generator=generator) if scale else torch.zeros_like(observed_BTP)
            start_BTP = scale * drawn
        x = start_BTP
        schedule = np.linspace(self.cbd.diffusion_steps - 1, 0, steps).round().astype(int).tolist()
        for position, step in enumerate(schedule):
            x = impose(x, observed_BTP, known_BT)
            clean, noise = self.denoise(x, known_BT, step, condition_BC)
            if position + 1 < len(schedule):
                signal = self.signal_K[schedule[position + 1]]
                x = signal.sqrt() * clean + (1 - signal).sqrt() * noise
            else:
                x = clean
        return impose(x, observed_BTP, known_BT)

    # --- aligner ----------------------------------------------------------------------------------------------------

    def misalignment(self, plan_BTP: Tensor, wish_BC: Tensor, present_BC: Tensor, static_BC: Tensor) -> Tensor:
        """(B,) ||R(x) - y||^2 over the properties that are asked for, in z-scores."""
        scored = (wish_BC - self.property_mean) / self.property_std
        off_BC: Tensor = (self.return_model(plan_BTP, static_BC) - scored).square() * present_BC
        return off_BC.sum(dim=-1)

    def align(
        self,
        plan_BTP: Tensor,
        known_BT: Tensor,
        wish_BC: Tensor,
        present_BC: Tensor,
        static_BC: Tensor,
        *,
        step: float | None = None,
    ) -> Tensor:
        """One gradient move of the answer towards y; observed states do not move."""
        with torch.inference_mode(False), torch.enable_grad():
            plan = plan_BTP.detach().clone().requires_grad_(True)
            distance = self.misalignment(plan, wish_BC.clone(), present_BC.clone(), static_BC.clone()).sum()
            (gradient,) = torch.autograd.grad(distance, plan)
        moved = plan_BTP - (self.cbd.align_step if step is None else step) * gradient
        return impose(moved, plan_BTP, known_BT)

    # --- the controller ---------------------------------------------------------------------------------------------

    def plan(self, x_NSD: Tensor, day: DayTensors | None = None) -> tuple[Tensor, Tensor]:
        """Aligned plans (N, T, P) from the states so far, and the wishes (N, 3) in their own units."""
        n, n_states, _ = x_NSD.shape
        observed_NTP = torch.zeros(n, N_TICKS, len(self.columns))
        observed_NTP[:, :n_states] = x_NSD[..., self.columns]
        known_NT = query_mask(torch.full((n,), n_states - 1))
        static_NC = self.static(x_NSD)
        wish_NC, present_NC = self.wishes(x_NSD)
        condition_NC = self.condition(wish_NC, present_NC, static_NC)
        if self.cbd.aligner == "sample":
            many = self.cbd.align_samples

            def repeat(values: Tensor) -> Tensor:
                return values.repeat_interleave(many, dim=0)

            plans = self.complete(repeat(observed_NTP), repeat(known_NT), repeat(condition_NC), self._generator)
            off = self.misalignment(plans, repeat(wish_NC), repeat(present_NC), repeat(static_NC)).view(n, many)
            best_N = off.argmin(dim=1)
            return plans.view(n, many, N_TICKS, len(self.columns))[torch.arange(n), best_N], wish_NC
        plan_NTP = self.complete(observed_NTP, known_NT, condition_NC, self._generator)
        if self.cbd.aligner == "gradient":
            plan_NTP = self.align(plan_NTP, known_NT, wish_NC, present_NC, static_NC)
        return plan_NTP, wish_NC

    def wishes(self, x_NSD: Tensor) -> tuple[Tensor, Tensor]:
        """What is asked for: the return is the score so far and what is attainable from here, the rest as told."""
        so_far_N = self._score_so_far(x_NSD[:, -1])
        wish_NC = torch.zeros(len(x_NSD), len(PROPERTIES))
        present_NC = torch.zeros_like(wish_NC)
        wish_NC[:, 0] = so_far_N + self.target.at(x_NSD[:, -1], self.cbd.level)
        present_NC[:, 0] = 1.0
        for name, value in self.ask.items():
            wish_NC[:, PROPERTIES.index(name)] = value
            present_NC[:, PROPERTIES.index(name)] = 1.0
        return wish_NC, present_NC

    def _score_so_far(self, x_ND: Tensor) -> Tensor:
        column = STATE.index("score_so_far")
        return x_ND[:, column] * self.normaliser.std_D[column] + self.normaliser.mean_D[column]

    def residual(self, x_NSD: Tensor, day: DayTensors, anchor_NS: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        n, n_states, _ = x_NSD.shape
        if n_states == N_TICKS:
            return torch.zeros(n), {}
        plan_NTP, wish_NC = self.plan(x_NSD, day)
        self.last_plan_NTP = plan_NTP
        residual_N = self.act(plan_NTP, n_states - 1, self.static(x_NSD))
        raw_NTP = self.raw(plan_NTP)
        return residual_N, {
            "return_target": wish_NC[:, 0] * day.budget_N / day.target_N,
            "planned_budget_left_next": raw_NTP[:, n_states, BUDGET],
        }

    def act(self, plan_NTP: Tensor, tick: int, static_NC: Tensor) -> Tensor:
        """f(s_{t-2}, s_{t-1}, s_t, s~_{t+1}); before the third tick the first state stands in for earlier ones."""
        at = [max(0, tick - back) for back in range(HISTORY_STATES - 1, -1, -1)] + [tick + 1]
        seen = plan_NTP[:, at].flatten(1)
        return bounded(self.inverse(torch.cat([seen, static_NC], dim=-1))[:, 0])

    def raw(self, plan_NTP: Tensor) -> Tensor:
        """Plan columns in their own units."""
        own = list(PLAN_COLUMNS)
        std_P, mean_P = self.normaliser.std_D[own], self.normaliser.mean_D[own]
        if self.outlook is not None and self.outlook.normaliser is not None:
            std_P = torch.cat([std_P, self.outlook.normaliser.std_D])
            mean_P = torch.cat([mean_P, self.outlook.normaliser.mean_D])
        return plan_NTP * std_P + mean_P


def plan_validity(raw_NTP: Tensor, first_tick: int, *, tolerance: float = 0.01) -> Tensor:
    """(N,) bool: from `first_tick` on the planned remaining budget never rises by more than `tolerance` of the budget from one tick to
    the next, stays within [-tolerance, 1 + tolerance], and the clock runs (time left is right within half a tick)."""
    budget_NT = raw_NTP[:, first_tick:, BUDGET]
    falls = (budget_NT.diff(dim=1) <= tolerance).all(dim=1)
    inside = ((budget_NT >= -tolerance) & (budget_NT <= 1 + tolerance)).all(dim=1)
    clock_T = 1 - torch.arange(first_tick, raw_NTP.shape[1]) / N_TICKS
    on_time = ((raw_NTP[:, first_tick:, TIME] - clock_T).abs() <= 0.5 / N_TICKS).all(dim=1)
    return falls & inside & on_time


@dataclass(frozen=True)
class PlannedDays:
    """What a planner learns from.

    Attributes:
        data: the days.
        properties_NC: (N, 3) `PROPERTIES` of each: its return, and by how much its spending was earlier and less even than the same
            campaign spends by itself.
        shaped_NC: (N, 3) bool, in which of the properties a day's spending was shaped on purpose. Such a day is never shown without these, so
            what is planned when nobody asks for a shape is as if it were not there, and never with the others, which merely followed; and it
            says nothing about what return is attainable.
    """

    data: TrainingSet
    properties_NC: Tensor
    shaped_NC: Tensor

    @property
    def shaped_N(self) -> Tensor:
        """Bool: days whose spending was shaped on purpose."""
        return self.shaped_NC.any(dim=1)

    @classmethod
    def of(cls, data: TrainingSet, trajectories: Trajectories) -> PlannedDays:
        """Days none of which was shaped on purpose; what a campaign does by itself is then the mean of its days."""
        properties_NC = trajectory_properties(trajectories, data.return_NT[:, 0])
        _, place_N = np.unique(trajectories.seat_N, return_inverse=True)
        place = torch.from_numpy(place_N.reshape(-1))
        sums_SC = torch.zeros(int(place.max()) + 1, properties_NC.shape[1]).index_add(0, place, properties_NC)
        usual_SC = sums_SC / torch.bincount(place)[:, None]
        usual_SC[:, 0] = 0.0
        return cls(data, properties_NC - usual_SC[place], torch.zeros(properties_NC.shape, dtype=torch.bool))

    def scale(self) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of each property; of a shape over the days that were shaped in it, where there are any."""
        mean_C = self.properties_NC[~self.shaped_N].mean(dim=0)
        counts_NC = torch.where(self.shaped_NC.any(dim=0), self.shaped_NC, True)
        counts_NC[:, 0] = ~self.shaped_N
        std_C = torch.stack([self.properties_NC[counts_NC[:, place], place].std() for place in range(len(PROPERTIES))])
        return mean_C, std_C.clamp_min(1e-6)


def join(parts: Sequence[TrainingSet]) -> TrainingSet:
    """One training set of several that were prepared with the normalisers of the first."""
    columns = [each.name for each in fields(TrainingSet) if isinstance(getattr(parts[0], each.name), Tensor)]
    joined: dict[str, Any] = {name: torch.cat([getattr(part, name) for part in parts]) for name in columns}
    return replace(parts[0], **joined)


def train_cbd(
    days: PlannedDays,
    *,
    cbd: CbdConfig | None = None,
    config: FitConfig | None = None,
    seed: int = 0,
    name: str = "cbd",
    checkpointing: Checkpointing | None = None,
    quiet: bool = False,
) -> tuple[CbdController, list[dict[str, float]]]:
    """Completer, return model, inverse dynamics and return target: four independent losses (section 2.4), trained in one loop."""
    data, properties_NC = days.data, days.properties_NC
    cbd = cbd or CbdConfig()
    config = config or FitConfig(steps=600, batch=48, learning_rate=2e-3, average=0.99)
    torch.manual_seed(seed)
    mean_C, std_C = days.scale()
    model = CbdController(
        normaliser=data.normaliser,
        fallback_target=data.fallback_target,
        name=name,
        cbd=cbd,
        property_mean=mean_C.tolist(),
        property_std=std_C.tolist(),
        outlook=data.outlook,
    )
    plan_NTP = data.x_NTD[..., model.columns]
    scored_NC = (properties_NC - mean_C) / std_C

    def step_loss(_step: int, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        index = draw(data.n, config.batch, generator)
        x_BTD, plan_BTP, alive_BT = data.x_NTD[index], plan_NTP[index], data.alive_NT[index]
        static_BC = model.static(x_BTD)
        shaped_BC = days.shaped_NC[index]
        condition_BC = model.draw_condition(properties_NC[index], static_BC, generator, shaped_BC)
        completion = model.completer_loss(plan_BTP, condition_BC, generator)
        reading = (model.return_model(plan_BTP, static_BC) - scored_NC[index]).square().mean()
        acting = inverse_loss(model, plan_BTP, data.residual_NT[index], alive_BT, static_BC)
        aim = model.target.loss(x_BTD, data.return_NT[index], alive_BT * ~shaped_BC.any(dim=1, keepdim=True))
        figures = {"completion": completion, "reading": reading, "acting": acting, "aim": aim}
        return (
            completion + reading + 10.0 * acting + aim,
            {key: float(value.detach()) for key, value in figures.items()},
        )

    log = fit(model, step_loss, config, seed=seed, label=name, checkpointing=checkpointing, quiet=quiet)
    return model, log


def inverse_loss(
    model: CbdController, plan_BTP: Tensor, residual_BT: Tensor, alive_BT: Tensor, static_BC: Tensor
) -> Tensor:
    """||a_t - f(s_{t-2..t}, s_{t+1})||^2 over all ticks that have a next state and in which something was decided."""
    b, n_ticks, _ = plan_BTP.shape
    now = torch.arange(n_ticks - 1)
    at = torch.stack([(now - back).clamp_min(0) for back in range(HISTORY_STATES - 1, -1, -1)] + [now + 1], dim=1)
    seen = plan_BTP[:, at].flatten(2)
    static = static_BC[:, None].expand(b, n_ticks - 1, -1)
    predicted_BT = bounded(model.inverse(torch.cat([seen, static], dim=-1))[..., 0])
    return masked_mean((predicted_BT - residual_BT[:, :-1]) ** 2, alive_BT[:, :-1])


def meant_plan(model: CbdController, data: TrainingSet) -> Tensor:
    """(N, T, P) the days as plans, in the bidder's own column what it meant to do instead of what it was perturbed to.

    The mean of both is the same, since perturbations are drawn whatever the state; the second differs from it by them alone, which here is more than the
    differences between good bids.
    """
    plan_NTP = data.x_NTD[..., model.columns].clone()
    if data.outlook is None or data.outlook.normaliser is None:
        return plan_NTP
    mean, std = (getattr(data.outlook.normaliser, name)[LEAD] for name in ("mean_D", "std_D"))
    plan_NTP[:, 1:, model.own] = ((data.meant_NT[:, :-1] - mean) / std).clamp(-data.normaliser.limit, data.normaliser.limit)
    return plan_NTP


def distil(
    teacher: CbdController,
    days: PlannedDays,
    *,
    config: FitConfig | None = None,
    seed: int = 0,
    checkpointing: Checkpointing | None = None,
    quiet: bool = False,
) -> tuple[CbdController, list[dict[str, float]]]:
    """A student that plans in one pass.

    At the last diffusion step nothing of the answer is left in the input, so what minimises the squared error there is the mean of all days that go on
    from this query under this wish: the mean of what the teacher's many steps sample. The student starts from the teacher and trains that one
    step alone. For control the mean is also the better plan: a sampled day carries the noise of the bidders it was learned from, and a
    planner that samples anew every tick adds that noise to its multiplier every tick. Since the noise tells nothing, the student starts from its mean, 0.
    """
    config = config or FitConfig(steps=3000, batch=64, learning_rate=1.5e-3, average=0.99)
    data, properties_NC = days.data, days.properties_NC
    torch.manual_seed(seed)
    student = CbdController(
        normaliser=teacher.normaliser,
        fallback_target=teacher.fallback_target,
        name=f"{teacher.name}-student",
        outlook=teacher.outlook,
        **(teacher.options() | {"distilled": True, "cbd": replace(teacher.cbd, noise=0.0)}),
    )
    student.load_state_dict(teacher.state_dict())
    for part in (student.return_model, student.inverse, student.target):
        part.requires_grad_(False)
    last = teacher.cbd.diffusion_steps - 1
    plan_NTP = data.x_NTD[..., student.columns]
    goal_NTP = meant_plan(student, data)

    def step_loss(_step: int, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        index = draw(data.n, config.batch, generator)
        observed = plan_NTP[index]
        known_BT = query_mask(torch.randint(N_TICKS - 1, (len(index),), generator=generator))
        static_BC = student.static(data.x_NTD[index])
        condition_BC = student.draw_condition(properties_NC[index], static_BC, generator, days.shaped_NC[index])
        start = student.cbd.noise * torch.randn(observed.shape, generator=generator)
        clean, _noise = student.denoise(impose(start, observed, known_BT), known_BT, last, condition_BC)
        loss = answer_loss(student.weighted(clean - goal_NTP[index]), known_BT, student.cbd.near_weight)
        return loss, {"distance": float(loss.detach())}

    log = fit(student, step_loss, config, seed=seed, label=student.name, checkpointing=checkpointing, quiet=quiet)
    return student, log


__all__ = [
    "CONTEXT",
    "INPUT_WIDTH",
    "PLAN",
    "PROPERTIES",
    "CbdConfig",
    "CbdController",
    "PlannedDays",
    "ReturnModel",
    "answer_loss",
    "cosine_signal",
    "distil",
    "impose",
    "inverse_loss",
    "join",
    "persistence",
    "plan_validity",
    "query_mask",
    "train_cbd",
    "trajectory_properties",
]  # fmt: skip
