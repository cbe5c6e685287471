"""What a day would have answered to any multiplier: per seat and tick, spend and value as functions of the multiplier.

From an opportunity-level day (recorded, rebuilt from a log, or simulated) `ResponseCurves.from_days` works out, for a grid of
log(multiplier / target CPA), what each seat would have spent, won and been shown in each tick had it bid so, its
rivals' bids standing still. A policy's whole day is then a table look-up per tick: thousands of campaigns a second,
with any budget, and differentiable, since between two grid points the curves are straight. Three uses: trajectories
of behaviour that nobody logged (`population`), gradients of a day's score through the day (`learned.pathwise`), and
the choice of settings on held-out training periods. Never build them from days that are reported on.

Letters: N seat-days, T ticks, G grid points, Q quantities.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rankloom.bidding.day import TickOutcome
from rankloom.bidding.protocol import N_TICKS, Campaigns, FloatArray, IntArray
from rankloom.bidding.replay import ReplayMarket
from rankloom.bidding.state import LOG_ACTION_MAX, LOG_ACTION_MIN
from rankloom.bidding.traces import MarketDay
from rankloom.errors import RankloomError
from rankloom.progress import track

QUANTITIES: Final = ("spend", "value", "won", "exposed", "least_winning_cost")
GRID_POINTS: Final = 49


@dataclass(frozen=True)
class ResponseCurves:
    """Curves of N seat-days.

    Attributes:
        table_NTGQ: `QUANTITIES` at each grid point, non-decreasing along G.
        grid_G: log(multiplier / target), evenly spaced.
        campaigns: base budgets and targets. period_N, seat_N: where each seat-day comes from.
    """

    table_NTGQ: Tensor
    grid_G: Tensor
    volume_NT: Tensor
    p_mean_NT: Tensor
    campaigns: Campaigns
    period_N: IntArray
    seat_N: IntArray

    @property
    def n(self) -> int:
        return self.campaigns.n

    @classmethod
    def from_days(
        cls, days: Sequence[MarketDay], *, grid_points: int = GRID_POINTS, quiet: bool = False
    ) -> ResponseCurves:
        """Curves of every seat of every day; period is the day's index.

        Raises:
            RankloomError: no days, or a seat without a target CPA (the grid is relative to it).
        """
        if not days:
            raise RankloomError("no market days to take response curves from", code="responses-empty")
        grid_G = np.linspace(LOG_ACTION_MIN, LOG_ACTION_MAX, grid_points)
        tables, volumes, p_means = [], [], []
        for day in track(days, "response curves", unit="days", quiet=quiet):
            if not np.isfinite(day.campaigns.target_cpa_N).all():
                raise RankloomError(
                    f"day {day.name} has seats without a target CPA", place=day.name, code="responses-no-target"
                )
            table_ATGQ, volume_T, p_mean_AT = _day_curves(day, grid_G)
            tables.append(table_ATGQ)
            volumes.append(np.broadcast_to(volume_T, p_mean_AT.shape))
            p_means.append(p_mean_AT)
        campaigns = [day.campaigns for day in days]
        return cls(
            table_NTGQ=torch.from_numpy(np.concatenate(tables)),
            grid_G=torch.from_numpy(grid_G.astype(np.float32)),
            volume_NT=torch.from_numpy(np.concatenate(volumes).astype(np.float32)),
            p_mean_NT=torch.from_numpy(np.concatenate(p_means).astype(np.float32)),
            campaigns=Campaigns(
                budget_N=np.concatenate([each.budget_N for each in campaigns]),
                target_cpa_N=np.concatenate([each.target_cpa_N for each in campaigns]),
                category_N=np.concatenate([each.category_N for each in campaigns]),
                name=tuple(name for each in campaigns for name in each.name),
            ),
            period_N=np.repeat(np.arange(len(days)), [each.n for each in campaigns]),
            seat_N=np.concatenate([np.arange(each.n) for each in campaigns]),
        )

    def look_up(self, index_M: Tensor, tick: int, log_action_M: Tensor) -> Tensor:
        """(M, Q) what seat-days `index_M` get in a tick at these log(multiplier / target); differentiable in the latter.

        Straight between grid points; below the grid and above it the curves are flat.
        """
        step = float(self.grid_G[1] - self.grid_G[0])
        place_M = ((log_action_M - self.grid_G[0]) / step).clamp(0.0, len(self.grid_G) - 1.0)
        lower_M = place_M.detach().floor().clamp(max=len(self.grid_G) - 2).long()
        share_M1 = (place_M - lower_M)[:, None]
        table_MGQ = self.table_NTGQ[:, tick]
        return table_MGQ[index_M, lower_M] * (1 - share_M1) + table_MGQ[index_M, lower_M + 1] * share_M1

    def best_constants(self, index_M: IntArray, budget_M: FloatArray, gamma: float = 2.0) -> tuple[FloatArray, FloatArray]:
        """Hindsight: per campaign the constant log(multiplier / target) on the grid with the best score, and that score."""
        index = torch.from_numpy(index_M)
        budget_M1 = torch.from_numpy(budget_M.astype(np.float32))[:, None]
        target_M1 = torch.from_numpy(self.campaigns.target_cpa_N[index_M].astype(np.float32))[:, None]
        spent_MG = torch.zeros(len(index_M), len(self.grid_G))
        value_MG = torch.zeros_like(spent_MG)
        for tick in range(N_TICKS):
            table_MGQ = self.table_NTGQ[index, tick]
            share_MG = ((budget_M1 - spent_MG) / table_MGQ[..., 0].clamp_min(1e-9)).clamp(0.0, 1.0)
            spent_MG = spent_MG + share_MG * table_MGQ[..., 0]
            value_MG = value_MG + share_MG * table_MGQ[..., 1]
        score_MG = value_MG * (target_M1 * value_MG / spent_MG.clamp_min(1e-9)).clamp(max=1.0) ** gamma
        best_M = score_MG.argmax(dim=1)
        return (
            self.grid_G[best_M].double().numpy(),
            score_MG.gather(1, best_M[:, None])[:, 0].double().numpy(),
        )


class CurveMarket:
    """Seat-days of `ResponseCurves` as a market: any mix of them, with any budgets, as one batch; see `bidding.day`.

    Args:
        index_M: which seat-days, repeats allowed.
        budget_ratio_M: budgets as multiples of the base budgets.
        conversions_seed: realised conversions are Poisson draws of the expected ones with this seed; None makes them equal.
    """

    def __init__(
        self,
        curves: ResponseCurves,
        index_M: IntArray,
        *,
        budget_ratio_M: FloatArray | float = 1.0,
        conversions_seed: int | None = None,
        name: str = "curves",
    ) -> None:
        self.name = name
        self.curves = curves
        self.index_M = np.asarray(index_M, dtype=np.int64)
        base = curves.campaigns
        self.campaigns = Campaigns(
            budget_N=base.budget_N[self.index_M] * budget_ratio_M,
            target_cpa_N=base.target_cpa_N[self.index_M],
            category_N=base.category_N[self.index_M],
            name=tuple(base.name[i] for i in self.index_M),
        )
        self._index = torch.from_numpy(self.index_M)
        self._rng = None if conversions_seed is None else np.random.default_rng(conversions_seed)

    def forecast(self, tick: int) -> tuple[FloatArray, FloatArray] | None:
        return self._of(self.curves.volume_NT, tick), self._of(self.curves.p_mean_NT, tick)

    def _of(self, values_NT: Tensor, tick: int) -> FloatArray:
        return values_NT[self._index, tick].double().numpy()

    def play(self, tick: int, multiplier_N: FloatArray, remaining_N: FloatArray) -> TickOutcome:
        relative = np.log(np.maximum(multiplier_N / self.campaigns.target_cpa_N, 1e-9))
        got = self.curves.look_up(self._index, tick, torch.from_numpy(relative.astype(np.float32))).double().numpy()
        # below the grid the market is not known to answer at all
        got[relative < LOG_ACTION_MIN - 1e-6, :4] = 0.0
        spend_N = got[:, 0]
        share_N = np.clip(remaining_N / np.maximum(spend_N, 1e-9), 0.0, 1.0)
        value_N = got[:, 1] * share_N
        volume_N, p_mean_N = self._of(self.curves.volume_NT, tick), self._of(self.curves.p_mean_NT, tick)
        return TickOutcome(
            spend_N=spend_N * share_N,
            value_N=value_N,
            conversions_N=value_N if self._rng is None else self._rng.poisson(value_N).astype(np.float64),
            judged_N=value_N,
            volume_N=volume_N,
            p_sum_N=volume_N * p_mean_N,
            bid_sum_N=volume_N * p_mean_N * multiplier_N * share_N,
            won_N=got[:, 2] * share_N,
            exposed_N=got[:, 3] * share_N,
            least_winning_cost_N=got[:, 4],
            stopped_N=(share_N < 1.0) & (spend_N > 0),
        )


def _day_curves(day: MarketDay, grid_G: FloatArray) -> tuple[NDArray[np.float32], FloatArray, FloatArray]:
    """(A, T, G, Q) curves, (T,) volumes, (A, T) mean p of one day.

    A seat's outcome in one opportunity changes only where its bid passes a rival's: at log(rival / p / target). So the
    changes are summed into the grid cell above each such threshold, and the curve is their running sum along the grid.
    """
    market = ReplayMarket(day)
    bounds, n = day.bounds, day.campaigns.n
    points = len(grid_G)
    step = grid_G[1] - grid_G[0]
    weight = 1.0 / day.sample_fraction
    log_target_A = np.log(day.campaigns.target_cpa_N)
    table = np.zeros((n, N_TICKS, points + 1, len(QUANTITIES)))
    volume_T = np.diff(bounds[: N_TICKS + 1]) * weight
    p_mean_AT = np.zeros((n, N_TICKS))
    offset_A = np.arange(n) * (points + 1)
    exposure_S = np.asarray(day.exposure_S, dtype=np.float64)
    for tick in range(N_TICKS):
        p_MA = day.p_MA[bounds[tick] : bounds[tick + 1]].astype(np.float64)
        if not len(p_MA):
            continue
        p_mean_AT[:, tick] = p_MA.mean(axis=0)
        rival_SMA = market.rivals(tick).astype(np.float64)
        log_p_MA = np.log(np.maximum(p_MA, 1e-12)) + log_target_A

        def add(threshold_MA: FloatArray, quantity: int, change_MA: FloatArray, tick: int, log_p_MA: FloatArray) -> None:
            place_MA = np.ceil((np.log(np.maximum(threshold_MA, day.reserve)) - log_p_MA - grid_G[0]) / step)
            key_MA = np.clip(place_MA, 0, points).astype(np.int64) + offset_A
            table[:, tick, :, quantity] += np.bincount(
                key_MA.ravel(), weights=change_MA.ravel(), minlength=n * (points + 1)
            ).reshape(n, points + 1)

        shown_below, paid_below_MA = 0.0, np.zeros_like(p_MA)
        for slot in reversed(range(len(exposure_S))):
            shown = exposure_S[slot]
            paid_MA = np.maximum(rival_SMA[slot], day.reserve) * shown
            add(rival_SMA[slot], 0, (paid_MA - paid_below_MA) * weight, tick, log_p_MA)
            add(rival_SMA[slot], 1, p_MA * (shown - shown_below) * weight, tick, log_p_MA)
            add(rival_SMA[slot], 3, np.full_like(p_MA, (shown - shown_below) * weight), tick, log_p_MA)
            if slot == len(exposure_S) - 1:
                add(rival_SMA[slot], 2, np.full_like(p_MA, weight), tick, log_p_MA)
            shown_below, paid_below_MA = shown, paid_MA
        # between the rivals' fourth and third bid the own bid is the fourth: halfway on each side of it
        fourth_MA, third_MA = rival_SMA[-1], rival_SMA[-2]
        half_MA = (third_MA - fourth_MA) / 2 / len(p_MA)
        add(fourth_MA, 4, half_MA, tick, log_p_MA)
        add(third_MA, 4, half_MA, tick, log_p_MA)
        table[:, tick, 0, 4] += fourth_MA.mean(axis=0)
    return np.cumsum(table, axis=2)[:, :, :points].astype(np.float32), volume_T, p_mean_AT
