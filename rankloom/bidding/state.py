"""The state of a campaign's day: one builder, used for training rows, for simulated days and before every served decision.

`day_states` turns a record of T ticks into the states of ticks 0..T (or the last of them only) by prefix sums, in torch,
so that a policy can also be trained by gradients that pass through its own states. The first 16 columns are AuctionNet's,
in AuctionNet's order and units (`AUCTIONNET_STATE`; its means are means over ticks of the ticks' means). The others say
the same things relative to the campaign's own target and budget, which is what lets one policy serve campaigns of any
size: cost per conversion so far over its limit, score so far over what the budget buys at the limit, own multipliers
over the limit in logs, what an average opportunity is worth at the limit against what the market asks for.

Letters: N campaigns, T ticks that are over, S states, D state columns, K context columns (category, time of day).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from rankloom.bidding.protocol import N_TICKS, Campaigns, History, Observation

AUCTIONNET_STATE: Final = (
    "time_left", "budget_left", "bid_mean", "bid_mean_3", "least_winning_cost_mean", "p_mean", "conversions_mean", "win_rate",
    "least_winning_cost_mean_3", "p_mean_3", "conversions_mean_3", "win_rate_3", "p_now", "volume_now", "volume_3", "volume_so_far",
)  # fmt: skip
WINDOWS: Final = (1, 3, 8)
_RELATIVE: Final = (
    "budget_ahead", "log_cpa_so_far", "value_so_far", "score_so_far", "log_budget_in_conversions", "log_target", "calibration",
    *(
        f"{name}_{window}"
        for window in WINDOWS
        for name in ("log_cpa", "spend_speed", "win_share", "log_worth", "log_multiplier")
    ),
    "log_p_now_over_mean", "log_volume_now_over_mean", "log_worth_so_far", "log_p_now_at_target", "log_volume_now",
)  # fmt: skip
STATE: Final = AUCTIONNET_STATE + _RELATIVE
N_CATEGORIES: Final = 8
TIME_BLOCKS: Final = 12
CONTEXT: Final = tuple(f"category_{i}" for i in range(N_CATEGORIES)) + tuple(f"time_{i}" for i in range(TIME_BLOCKS))

LOG_ACTION_MIN, LOG_ACTION_MAX = float(np.log(0.05)), float(np.log(8.0))
"""Multipliers are learned as log(multiplier / target CPA), inside this range."""

_FRACTIONS_OF_BUDGET: Final = 0.02
_TINY: Final = 1e-9
GAMMA: Final = 2.0


@dataclass(frozen=True)
class DayTensors:
    """A record of T ticks as tensors; S = T + 1 where the coming tick is known, else T. Money in one currency.

    Attributes:
        target_N: finite reference CPA (see `reference_target`).
        log_action_NT: log(multiplier / target), clipped to the learned range.
        remaining_NS: budget left before each tick. volume_NS, p_now_NS: opportunities and mean p of the tick itself.
    """

    budget_N: Tensor
    target_N: Tensor
    category_N: Tensor
    log_action_NT: Tensor
    spend_NT: Tensor
    value_NT: Tensor
    conversions_NT: Tensor
    bid_mean_NT: Tensor
    won_NT: Tensor
    least_winning_cost_NT: Tensor
    remaining_NS: Tensor
    volume_NS: Tensor
    p_now_NS: Tensor

    @property
    def n_ticks(self) -> int:
        return self.spend_NT.shape[1]


def reference_target(campaigns: Campaigns, fallback: float) -> Tensor:
    """(N,) the CPA that multipliers are measured by: the target, or `fallback` for campaigns that have none."""
    target_N = torch.from_numpy(np.asarray(campaigns.target_cpa_N, dtype=np.float32).copy())
    return torch.where(torch.isfinite(target_N), target_N, torch.full_like(target_N, fallback))


def log_action(multiplier_NT: Tensor, target_N: Tensor) -> Tensor:
    """log(multiplier / target), clipped to the learned range.

    A multiplier of 0 says that nothing could be bid any more, not that bidding low was chosen: the last one before it stands (0, that is the
    target itself, where there was none). Otherwise every average over days would hold the ends of budgets as very low bids.
    """
    relative_NT = torch.log((multiplier_NT / target_N[:, None]).clamp_min(_TINY)).clamp(LOG_ACTION_MIN, LOG_ACTION_MAX)
    if not multiplier_NT.shape[1]:
        return relative_NT
    place_NT = torch.where(multiplier_NT > 0, torch.arange(multiplier_NT.shape[1]), -1).cummax(dim=1).values
    carried_NT = relative_NT.gather(1, place_NT.clamp_min(0))
    return torch.where(place_NT >= 0, carried_NT, torch.zeros_like(carried_NT))


def day_tensors(
    campaigns: Campaigns,
    history: History,
    *,
    fallback_target: float,
    remaining_N: ArrayLike | None = None,
    volume_N: ArrayLike | None = None,
    p_mean_N: ArrayLike | None = None,
) -> DayTensors:
    """The record as tensors.

    Args:
        remaining_N: money left before the coming tick; None for budget minus spend.
        volume_N, p_mean_N: of the coming tick. Where the platform does not tell them the last tick's stand in.
    """
    columns = {
        name: torch.from_numpy(np.asarray(getattr(history, f"{name}_NT"), dtype=np.float32).copy())
        for name in ("multiplier", "spend", "value", "conversions", "volume", "p_sum", "bid_sum", "won", "least_winning_cost")
    }
    n, n_ticks = columns["spend"].shape
    budget_N = _column(campaigns.budget_N)
    target_N = reference_target(campaigns, fallback_target)
    volume_NT = columns["volume"]
    p_NT = columns["p_sum"] / volume_NT.clamp_min(1.0)
    spent_NT = torch.from_numpy(np.cumsum(np.asarray(history.spend_NT, dtype=np.float64), axis=1).astype(np.float32))
    remaining_NS = torch.cat([budget_N[:, None], budget_N[:, None] - spent_NT], dim=1).clamp_min(0.0)
    if n_ticks < N_TICKS:
        if remaining_N is not None:
            remaining_NS = torch.cat([remaining_NS[:, :-1], _column(remaining_N)[:, None]], dim=1)
        coming_volume = _coming(volume_N, volume_NT, n)
        coming_p = _coming(p_mean_N, p_NT, n)
        volume_NS = torch.cat([volume_NT, coming_volume], dim=1)
        p_now_NS = torch.cat([p_NT, coming_p], dim=1)
    else:
        remaining_NS, volume_NS, p_now_NS = remaining_NS[:, :-1], volume_NT, p_NT
    return DayTensors(
        budget_N=budget_N,
        target_N=target_N,
        category_N=torch.from_numpy(np.asarray(campaigns.category_N, dtype=np.int64).copy()),
        log_action_NT=log_action(columns["multiplier"], target_N),
        spend_NT=columns["spend"],
        value_NT=columns["value"],
        conversions_NT=columns["conversions"],
        bid_mean_NT=columns["bid_sum"] / volume_NT.clamp_min(1.0),
        won_NT=columns["won"],
        least_winning_cost_NT=columns["least_winning_cost"],
        remaining_NS=remaining_NS,
        volume_NS=volume_NS,
        p_now_NS=p_now_NS,
    )


def observation_tensors(observation: Observation, *, fallback_target: float) -> DayTensors:
    """What a controller sees before a tick, as tensors; its last state is the state of that tick."""
    return day_tensors(
        observation.campaigns,
        observation.history,
        fallback_target=fallback_target,
        remaining_N=observation.remaining_N,
        volume_N=observation.volume_forecast_N,
        p_mean_N=observation.p_mean_forecast_N,
    )


def _column(values: ArrayLike) -> Tensor:
    return torch.from_numpy(np.asarray(values, dtype=np.float32).copy())


def _coming(told_N: ArrayLike | None, past_NT: Tensor, n: int) -> Tensor:
    if told_N is not None:
        return _column(told_N)[:, None]
    return past_NT[:, -1:] if past_NT.shape[1] else torch.zeros(n, 1)


def score_so_far(value_NS: Tensor, cost_NS: Tensor, target_N: Tensor, gamma: float = GAMMA) -> Tensor:
    """GAVE equations 13-14 on everything up to a tick: value * min{(C / CPA)^gamma, 1}; 0 without value."""
    within_NS = (target_N[:, None] * value_NS / cost_NS.clamp_min(_TINY)).clamp(max=1.0)
    return value_NS * within_NS**gamma


def day_states(day: DayTensors, *, last: int | None = None) -> tuple[Tensor, Tensor]:
    """States and contexts of ticks 0..S-1, or of the `last` of them only.

    Returns:
        x_NSD: raw state columns `STATE` (not z-scored), and k_NSK: one-hot category and time of day `CONTEXT`.
    """
    n_states = day.volume_NS.shape[1]
    at_S = torch.arange(n_states if last is None else min(last, n_states)) + (0 if last is None else max(0, n_states - last))
    volume_NT = day.volume_NS[:, : day.n_ticks]
    now_volume, now_p, remaining = day.volume_NS[:, at_S], day.p_now_NS[:, at_S], day.remaining_NS[:, at_S]
    budget, target = day.budget_N[:, None], day.target_N[:, None]
    mean = _Windows(
        at_S,
        every=last is None,
        bid_mean=day.bid_mean_NT,
        price=day.least_winning_cost_NT,
        p=day.p_now_NS[:, : day.n_ticks],
        conversion=day.conversions_NT / volume_NT.clamp_min(1.0),
        win=day.won_NT / volume_NT.clamp_min(1.0),
        volume=volume_NT,
        spend=day.spend_NT,
        value=day.value_NT,
        conversions=day.conversions_NT,
        won=day.won_NT,
        log_action=day.log_action_NT,
    )
    time_left = (1.0 - at_S.to(budget.dtype) / N_TICKS).expand(len(budget), -1)
    budget_left = remaining / budget
    columns = [
        time_left,
        budget_left,
        mean("bid_mean"),
        mean("bid_mean", 3),
        mean("price"),
        mean("p"),
        mean("conversion"),
        mean("win"),
        mean("price", 3),
        mean("p", 3),
        mean("conversion", 3),
        mean("win", 3),
        now_p,
        now_volume,
        mean.sum("volume", 3),
        mean.sum("volume"),
    ]
    spent, value = mean.sum("spend"), mean.sum("value")
    # prior money at exactly the target keeps the ratio quiet while nothing has been bought
    prior = _FRACTIONS_OF_BUDGET * budget
    affordable = budget / target
    columns += [
        budget_left - time_left,
        torch.log((spent + prior) / (target * value + prior)),
        value / affordable,
        score_so_far(value, spent, day.target_N) / affordable,
        torch.log(affordable).expand_as(spent),
        torch.log(target).expand_as(spent),
        torch.log((mean.sum("conversions") + 10.0) / (value + 10.0)),
    ]
    for window in WINDOWS:
        spent_w, value_w = mean.sum("spend", window), mean.sum("value", window)
        columns += [
            torch.log((spent_w + 0.1 * prior) / (target * value_w + 0.1 * prior)),
            mean("spend", window) / budget * N_TICKS,
            mean.sum("won", window) / mean.sum("volume", window).clamp_min(1.0),
            _log_ratio(now_p * target, mean("price", window)),
            mean("log_action", window),
        ]
    columns += [
        _log_ratio(now_p, mean("p")),
        _log_ratio(now_volume, mean("volume")),
        _log_ratio(mean("p") * target, mean("price")),
        torch.log((now_p * target).clamp_min(_TINY)),
        torch.log(now_volume.clamp_min(1.0)),
    ]
    return torch.stack(columns, dim=-1), _context(day.category_N, at_S)


def _log_ratio(above: Tensor, below: Tensor) -> Tensor:
    """log(above / below), 0 where either is not known yet."""
    known = (above > 0) & (below > 0)
    return torch.where(known, torch.log(above.clamp_min(_TINY) / below.clamp_min(_TINY)), torch.zeros_like(below))


def _context(category_N: Tensor, at_S: Tensor) -> Tensor:
    known_N = (category_N >= 0) & (category_N < N_CATEGORIES)
    category_NK = torch.nn.functional.one_hot(category_N.clamp(0, N_CATEGORIES - 1), N_CATEGORIES) * known_N[:, None]
    block_SK = torch.nn.functional.one_hot((at_S * TIME_BLOCKS).div(N_TICKS, rounding_mode="floor"), TIME_BLOCKS)
    n, s = len(category_N), len(at_S)
    return torch.cat(
        [category_NK[:, None].expand(n, s, N_CATEGORIES), block_SK[None].expand(n, s, TIME_BLOCKS)], dim=-1
    ).float()


class _Windows:
    """Sums and means over all ticks, or the last `window` ticks, before each of the wanted states; 0 before tick 1.

    All series are summed together: a decision asks for forty of these sums, and each call by itself costs more than its additions.

    Args:
        every: `at_S` are all states; otherwise a few, each of which sums its own ticks.
        series: (N, T) each.
    """

    def __init__(self, at_S: Tensor, *, every: bool, **series: Tensor) -> None:
        self.at_S = at_S
        self._place = {name: place for place, name in enumerate(series)}
        self._values_QNT = torch.stack(tuple(series.values())).double()
        self._dtype = next(iter(series.values())).dtype
        self._summed: Tensor | None = None
        if every:
            begin = self._values_QNT.new_zeros(*self._values_QNT.shape[:2], 1)
            self._summed = torch.cat([begin, torch.cumsum(self._values_QNT, dim=-1)], dim=-1)
        self._kept: dict[int | None, Tensor] = {}

    def _sums(self, window: int | None) -> Tensor:
        """(Q, N, S) of all series."""
        if window not in self._kept:
            if self._summed is not None:
                total = self._summed[..., self.at_S]
                if window is not None:
                    total = total - self._summed[..., (self.at_S - window).clamp_min(0)]
            else:
                ends = self.at_S.tolist()
                begins = [0 if window is None else max(0, end - window) for end in ends]
                total = torch.stack(
                    [self._values_QNT[..., begin:end].sum(dim=-1) for begin, end in zip(begins, ends, strict=True)], dim=-1
                )
            self._kept[window] = total.to(self._dtype)
        return self._kept[window]

    def sum(self, name: str, window: int | None = None) -> Tensor:
        return self._sums(window)[self._place[name]]

    def __call__(self, name: str, window: int | None = None) -> Tensor:
        count_S = self.at_S if window is None else self.at_S.clamp(max=window)
        return self.sum(name, window) / count_S.clamp_min(1)


@dataclass(frozen=True)
class Normaliser:
    """z-scores: (x - mean) / std, clipped; fitted on training states only.

    Attributes:
        mean_D, std_D: per column; a column that never varies has std 1.
    """

    mean_D: Tensor
    std_D: Tensor
    limit: float = 5.0

    @classmethod
    def fit(cls, x_ND: Tensor) -> Normaliser:
        x = x_ND.reshape(-1, x_ND.shape[-1]).double()
        std = x.std(dim=0)
        std = torch.where(std > 1e-8 * (1 + x.mean(dim=0).abs()), std, torch.ones_like(std))
        return cls(x.mean(dim=0).float(), std.float())

    def __call__(self, x_ND: Tensor) -> Tensor:
        return ((x_ND - self.mean_D) / self.std_D).clamp(-self.limit, self.limit)
