"""A simulated ad market in which everybody bids live: multi-slot auctions, budgets, exposure, conversions that come late.

One day: 48 ticks of opportunities, 48 campaigns, each played by some controller that sees what the protocol lets it see.

* traffic: the day's shape times a lognormal day factor times a uniform factor per block of four ticks.
* value: p = level(campaign, block of 8 ticks) * quality of the user (shared by all campaigns, so that they want the same users)
  * affinity (own). Level: category shock U(0.3, 1.7) times campaign shock U(0.5, 1.5) around 5e-4 (sparse) or 5e-3 (dense).
* prediction: campaigns see p * exp(bias + noise); the bias is a campaign's own and drifts through the day.
* auction: generalised second price over 1-3 slots with floors; shown with probability 1 / 0.8 / 0.48, slot 3 only if slot 2
  was; paid if shown. A share of auctions may be first-price: there bids are shaded and the own bid is paid.
* budget: the auction that a budget cannot pay is the campaign's last, within the tick, and the auctions after it are cleared without it.
* conversions: Poisson draws around p with relative deviation sigma; 60% are known in the tick, the rest arrive geometrically later.
* interventions: budgets and CPA targets that change at mid-day, spikes of traffic, campaigns that enter late.

A simulated opportunity stands for FULL_DAY / opportunities real ones, so that budgets and CPA are of one scale whatever the sample. The shapes
follow AuctionNet (section 3 and its parametric generator) where that has them; user quality, bias drift, delay and interventions are ours;
winning prices are set against published quantiles of iPinYou's (`IPINYOU_QUANTILES`; tests/bidding/test_market.py).

    day = simulate(MarketSettings(opportunities=100_000), seed=0)
    day.trace                       # a MarketDay: any seat can be replayed by somebody else
    day.results["mpc"].outcome.summary()

Letters: M opportunities of a tick, A campaigns, S slots, T ticks.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray

from rankloom.bidding.controllers import MPC, PID, Constant, MinPacing, MPCSettings, OnlineLP
from rankloom.bidding.controllers.population import Burner, Exploring, Noisy
from rankloom.bidding.day import STOP_BELOW, DayResult, empty_history
from rankloom.bidding.protocol import (
    N_TICKS,
    Campaigns,
    Controller,
    Decision,
    FloatArray,
    History,
    IntArray,
    Observation,
)
from rankloom.bidding.surrogate import highest_bids
from rankloom.bidding.traces import MarketDay, save_trace
from rankloom.errors import RankloomError
from rankloom.progress import track

Bools = NDArray[np.bool_]

FULL_DAY: Final = 500_000
# share of traffic per half hour from midnight, in thousandths: AuctionNet's public counts (Apache-2.0), last hour smoothed
TRAFFIC_SHAPE: Final = (
    18.9, 14.1, 10.3, 8.0, 6.2, 5.2, 4.0, 3.2, 3.0, 3.6, 4.4, 6.0, 8.5, 10.6, 15.1, 18.7, 20.8, 22.1, 24.2, 25.7, 25.8, 28.0, 28.0, 27.3,
    26.9, 27.6, 27.7, 27.6, 26.7, 26.8, 26.8, 26.7, 27.8, 26.8, 25.3, 25.2, 25.7, 26.2, 28.8, 30.4, 32.7, 34.0, 37.2, 36.2, 33.8, 29.8, 26.0, 22.0,
)  # fmt: skip
IPINYOU_QUANTILES: Final = {
    0.05: (0.06, 0.12, 0.15), 0.10: (0.10, 0.22, 0.26), 0.25: (0.22, 0.42, 0.53), 0.50: (0.65, 0.83, 0.94),
    0.75: (1.16, 1.34, 1.65), 0.90: (2.07, 2.16, 2.43), 0.95: (2.50, 2.70, 3.16), 0.99: (2.80, 3.17, 4.08),
}  # fmt: skip
"""Winning price over its mean: lowest, median and highest of nine campaigns, by quantile (aggregates of the published histograms)."""

LATE: Final = (
    0.6  # of conversions are known in the tick of their auction; each further tick reveals this share of the rest
)
BLOCK: Final = 8


@dataclass(frozen=True)
class MarketSettings:
    """One kind of market.

    Attributes:
        opportunities: simulated a day.
        campaigns: seats; the line-up is repeated over them.
        regime: level of p, and with it of CPA targets: sparse 5e-4 and about 100, dense 5e-3 and about 10.
        slots: 1 to 3.
        user_shape: shape of the gamma distribution of users' quality, the smaller the more unequal; affinity: mean of a campaign's own relative deviation.
        bias_sigma, bias_drift: of the log bias of predictions at the start, and added a tick.
        floor_scale, floor_sigma: floors are lognormal around floor_scale times what an average opportunity is worth.
        first_price_share: of auctions.
        budget_median: of a lognormal with deviation 0.25 in logs, clipped to 2,000-5,000 (sparse; the dense budgets are equal).
        budget_factor: budgets of all campaigns but the tested ones times this.
        change_share: of campaigns whose budget or target changes at mid-day; enter_share: that come in late.
        spikes: how many two-hour spikes of traffic by half again.
    """

    opportunities: int = 100_000
    campaigns: int = 48
    regime: Literal["sparse", "dense"] = "sparse"
    slots: int = 3
    user_shape: float = 1.7
    affinity: float = 0.4
    bias_sigma: float = 0.1
    bias_drift: float = 0.01
    floor_scale: float = 0.15
    floor_sigma: float = 0.8
    first_price_share: float = 0.0
    budget_median: float = 2_800.0
    budget_factor: float = 1.0
    change_share: float = 0.0
    enter_share: float = 0.0
    spikes: int = 0

    def __post_init__(self) -> None:
        for name, value, low, high in (
            ("opportunities", self.opportunities, N_TICKS, 50_000_000),
            ("campaigns", self.campaigns, 6, 10_000),
            ("slots", self.slots, 1, 3),
            ("first_price_share", self.first_price_share, 0, 1),
            ("change_share", self.change_share, 0, 1),
            ("enter_share", self.enter_share, 0, 1),
        ):
            if not low <= value <= high:
                raise RankloomError(
                    f"{name} is {value}", action=f"choose between {low} and {high}", code="market-settings"
                )


Maker = Callable[[], Controller]
LINE_UP: Final[tuple[tuple[str, Maker], ...]] = (
    ("constant", Constant),
    ("pid", PID),
    ("online-lp", OnlineLP),
    ("mpc", lambda: MPC(MPCSettings(scenarios=8, points=27))),
    ("min-pacing", MinPacing),
    ("exploring", Exploring),
    ("noisy", Noisy),
    ("constant-0.8", lambda: Constant(0.8)),
    ("online-lp", OnlineLP),
    ("burner", Burner),
    ("constant-1.2", lambda: Constant(1.2)),
    ("exploring", Exploring),
)  # fmt: skip
"""Kinds of bidders, dealt to the seats in a new order every day (AuctionNet permutes profiles and agents too)."""


# ---- the auction


@dataclass(frozen=True)
class Cleared:
    """A tick's auctions, cleared. Attributes: M opportunities, S slots, A campaigns.

    bid_MA: as they stood in each auction, 0 once a budget was gone. top_bid_M5, top_seat_M5: the highest five.
    price_MS: what slot s pays if shown; shown_MS: bool. spend_A: money. stopped_A: bool, budget gone in this tick.
    """

    bid_MA: NDArray[np.float32]
    top_bid_M5: NDArray[np.float32]
    top_seat_M5: NDArray[np.int16]
    price_MS: FloatArray
    shown_MS: Bools
    spend_A: FloatArray
    stopped_A: Bools


def clear(
    bid_MA: NDArray[np.float32],
    floor_M: FloatArray,
    first_price_M: Bools,
    visible_MS: Bools,
    remaining_A: FloatArray,
    *,
    weight: float = 1.0,
) -> Cleared:
    """Clears the auctions of a tick in their order.

    Args:
        bid_MA: bids; below the floor they lose.
        visible_MS: whether a bidder in slot s would be shown (continuity is in it).
        remaining_A: budgets before the tick; never exceeded. weight: money of one opportunity counts this many times.
    """
    bid_MA = np.where(bid_MA >= np.maximum(floor_M, 1e-12)[:, None], bid_MA, np.float32(0)).astype(np.float32)
    n_slots, seats = visible_MS.shape[1], bid_MA.shape[1]
    top_bid_M5, top_seat_M5 = highest_bids(bid_MA)
    stopped_A = np.zeros(seats, dtype=bool)
    while True:
        winner_MS, next_MS = top_seat_M5[:, :n_slots], top_bid_M5[:, 1 : n_slots + 1].astype(np.float64)
        price_MS = np.where(first_price_M[:, None], top_bid_M5[:, :n_slots], np.maximum(next_MS, floor_M[:, None]))
        # float32 bids against float64 floors: no price is above its bid by a rounding error either
        price_MS = np.minimum(price_MS, top_bid_M5[:, :n_slots])
        shown_MS = visible_MS & (winner_MS >= 0)
        paid_MS = np.where(shown_MS, price_MS * weight, 0.0)
        spend_A = np.bincount(np.maximum(winner_MS, 0).reshape(-1), paid_MS.reshape(-1), seats).astype(np.float64)
        over = np.flatnonzero(spend_A > remaining_A)
        if len(over) == 0:
            return Cleared(bid_MA, top_bid_M5, top_seat_M5, price_MS, shown_MS, spend_A, stopped_A)
        # the earliest auction that somebody cannot pay: it and what follows are cleared anew without that bidder
        first, who = len(bid_MA), -1
        for seat in over:
            row_M = (paid_MS * (winner_MS == seat)).sum(axis=1)
            row = int(np.argmax(np.cumsum(row_M) > remaining_A[seat]))
            if row < first:
                first, who = row, int(seat)
        bid_MA[first:, who] = 0
        stopped_A[who] = True
        top_bid_M5[first:], top_seat_M5[first:] = highest_bids(bid_MA[first:])


def shaded(value_MA: NDArray[np.float32], typical_price: float, spread: float = 0.5) -> NDArray[np.float32]:
    """Bids for first-price auctions: the share of the value that maximises (value - bid) * P(win | bid).

    P is logistic in log(bid / typical price) with scale `spread`. The best share depends on value / typical price alone, so it is
    solved on a grid once and read off.
    """
    ratio_G = np.geomspace(0.05, 50, 121)
    share_B = np.linspace(0.05, 1.0, 96)
    win_GB = 1 / (1 + (ratio_G[:, None] * share_B) ** (-1 / spread))
    best_G = share_B[((1 - share_B) * win_GB).argmax(axis=1)]
    log_ratio = np.log(np.maximum(value_MA, 1e-12) / max(typical_price, 1e-12))
    share_MA = np.interp(log_ratio, np.log(ratio_G), best_G)
    bid_MA: NDArray[np.float32] = (value_MA * share_MA).astype(np.float32)
    return bid_MA


# ---- the world


@dataclass(frozen=True)
class Opportunities:
    """A tick's opportunities. p_MA: true; seen_MA: what campaigns are told."""

    p_MA: NDArray[np.float32]
    seen_MA: NDArray[np.float32]
    floor_M: FloatArray
    first_price_M: Bools
    visible_MS: Bools


class World:
    """What a day brings, whoever bids; one seed, one day."""

    def __init__(self, settings: MarketSettings, seed: int) -> None:
        self.settings = settings
        self.seed = seed
        rng = np.random.default_rng((seed, 101))
        n = settings.campaigns
        self.weight = FULL_DAY / settings.opportunities
        shape_T = np.array(TRAFFIC_SHAPE) * np.repeat(rng.uniform(0.6, 1.4, N_TICKS // 4), 4)
        for start in rng.integers(0, N_TICKS - 4, settings.spikes):
            shape_T[start : start + 4] *= 1.5
        whole = settings.opportunities * rng.lognormal(0.0, 0.1)
        self.volume_T: IntArray = np.maximum(np.round(whole * shape_T / sum(TRAFFIC_SHAPE)), 1).astype(np.int64)
        dense = settings.regime == "dense"
        self.category_A: IntArray = np.arange(n) * 6 // n
        blocks = N_TICKS // BLOCK
        category_BC = rng.uniform(0.3, 1.7, (blocks, 6))
        level_BA = (5e-3 if dense else 5e-4) * category_BC[:, self.category_A] * rng.uniform(0.5, 1.5, (blocks, n))
        self.level_TA = np.repeat(level_BA, BLOCK, axis=0)
        self.spread_TA = np.clip(rng.normal(settings.affinity, 0.1, (N_TICKS, n)), 0.05, 1.0)
        self.sigma_A = np.clip(rng.normal(0.15, 0.06, n), 0.01, 0.4)
        drift_TA = np.cumsum(rng.normal(0, settings.bias_drift, (N_TICKS, n)), axis=0)
        self.bias_TA = rng.normal(0, settings.bias_sigma, n) + drift_TA
        scale = 0.1 if dense else 1.0
        target_A = scale * rng.uniform(60, 130, n)
        budget_A = np.clip(settings.budget_median * rng.lognormal(0, 0.25, n), 2000, 5000)
        self.campaigns = Campaigns(
            budget_N=budget_A, target_cpa_N=target_A, category_N=self.category_A,
            name=tuple(f"campaign {each}" for each in range(n)),
        )  # fmt: skip
        self.worth = 0.05 * settings.floor_scale  # mean level times mean target
        self.changes = self._changes(rng)
        self.enters_A: IntArray = np.where(rng.random(n) < settings.enter_share, rng.integers(6, 24, n), 0).astype(
            np.int64
        )

    def _changes(self, rng: np.random.Generator) -> list[tuple[int, int, float, float]]:
        """(tick, campaign, factor of the budget, factor of the target) of the day's interventions, in order."""
        n = self.settings.campaigns
        changes = []
        for seat in np.flatnonzero(rng.random(n) < self.settings.change_share):
            tick = int(rng.integers(12, 36))
            if rng.random() < 0.5:
                changes.append((tick, int(seat), float(rng.uniform(0.7, 1.6)), 1.0))
            else:
                changes.append((tick, int(seat), 1.0, float(rng.uniform(0.75, 1.3))))
        return sorted(changes)

    def opportunities(self, tick: int) -> Opportunities:
        rng = np.random.default_rng((self.seed, 103, tick))
        settings, m, n = self.settings, int(self.volume_T[tick]), self.settings.campaigns
        # a gamma, not a lognormal: iPinYou's prices have many cheap impressions and no endless tail
        quality_M = rng.gamma(settings.user_shape, 1 / settings.user_shape, m)
        own_MA = 1 + self.spread_TA[tick].astype(np.float32) * rng.standard_normal((m, n), dtype=np.float32)
        p_MA = np.clip(own_MA, 0, None) * (
            self.level_TA[tick].astype(np.float32) * quality_M[:, None].astype(np.float32)
        )
        p_MA = np.minimum(p_MA, np.float32(1))
        noise_MA = rng.standard_normal((m, n), dtype=np.float32) * np.float32(0.05)
        seen_MA = p_MA * np.exp(self.bias_TA[tick].astype(np.float32) + noise_MA)
        second_M = rng.random(m) < 0.8
        visible_MS = np.stack([np.ones(m, dtype=bool), second_M, second_M & (rng.random(m) < 0.6)], axis=1)
        return Opportunities(
            p_MA=p_MA.astype(np.float32),
            seen_MA=np.minimum(seen_MA, 1).astype(np.float32),
            floor_M=self.worth * np.exp(rng.normal(0, settings.floor_sigma, m)),
            first_price_M=rng.random(m) < settings.first_price_share,
            visible_MS=visible_MS[:, : settings.slots],
        )


# ---- the day


class Session:
    """A day in play: hand it a multiplier per campaign, tick after tick; it keeps every campaign's record and money."""

    def __init__(self, world: World) -> None:
        self.world = world
        n = world.settings.campaigns
        self.tick = 0
        self.campaigns = world.campaigns
        self.remaining_A = world.campaigns.budget_N.copy()
        self.live_A = np.ones(n, dtype=bool)
        names = [name.removesuffix("_NT") for name in vars(empty_history(0))]
        self._columns = {name: np.zeros((n, N_TICKS)) for name in names}
        self._late_ATT: FloatArray = np.zeros((n, N_TICKS, N_TICKS))  # auction tick, tick in which it is known
        self.judged_A = np.zeros(n)
        self.winning_prices: list[FloatArray] = []
        self._parts: list[tuple[IntArray, NDArray[np.float32], NDArray[np.float32], NDArray[np.int16]]] = []
        self._rng = np.random.default_rng((world.seed, 107))
        self._coming = world.opportunities(0)

    @property
    def done(self) -> bool:
        return self.tick >= N_TICKS

    def history(self, seats: IntArray | slice = slice(None)) -> History:
        """The record so far of some campaigns, with the conversions that are known by now."""
        known_AT = self._late_ATT[seats][:, : self.tick, : self.tick].sum(axis=2)
        columns = {f"{name}_NT": whole[seats][:, : self.tick] for name, whole in self._columns.items()}
        return History(**(columns | {"conversions_NT": known_AT}))

    def observation(self, seats: IntArray) -> Observation:
        """What the controller of these campaigns may see before the coming tick."""
        part = Campaigns(
            budget_N=self.campaigns.budget_N[seats], target_cpa_N=self.campaigns.target_cpa_N[seats],
            category_N=self.campaigns.category_N[seats], name=tuple(self.campaigns.name[each] for each in seats),
        )  # fmt: skip
        seen_MA = self._coming.seen_MA
        return Observation(
            tick=self.tick,
            campaigns=part,
            history=self.history(seats),
            remaining_N=self.remaining_A[seats].copy(),
            volume_forecast_N=np.full(len(seats), len(seen_MA) * self.world.weight),
            p_mean_forecast_N=seen_MA[:, seats].mean(axis=0, dtype=np.float64),
        )

    def play(self, multiplier_A: FloatArray) -> Cleared:
        """One tick; campaigns that are over, or not there yet, do not bid whatever is asked."""
        tick, world, weight = self.tick, self.world, self.world.weight
        here_A = self.live_A & (tick >= world.enters_A)
        multiplier_A = np.where(here_A, multiplier_A, 0.0)
        coming = self._coming
        bid_MA = coming.seen_MA * multiplier_A.astype(np.float32)
        rows = np.flatnonzero(coming.first_price_M)
        if len(rows):
            past = self._columns["least_winning_cost"][0, :tick]
            typical = float(past[-4:].mean()) if tick else float(np.median(coming.floor_M)) * 4
            bid_MA[rows] = shaded(bid_MA[rows], typical)
        cleared = clear(
            bid_MA, coming.floor_M, coming.first_price_M, coming.visible_MS,
            np.where(here_A, self.remaining_A, 0.0), weight=weight,
        )  # fmt: skip
        self._record(multiplier_A, coming, cleared)
        self.remaining_A = np.maximum(self.remaining_A - cleared.spend_A, 0.0)
        self.live_A &= ~cleared.stopped_A & (self.remaining_A >= STOP_BELOW)
        self.tick += 1
        if not self.done:
            for at, seat, budget, target in world.changes:
                if at == self.tick:
                    self._change(seat, budget, target)
            self._coming = world.opportunities(self.tick)
        return cleared

    def _change(self, seat: int, budget: float, target: float) -> None:
        """A budget or target changes at mid-day; a budget never below what is spent."""
        budget_A, target_A = self.campaigns.budget_N.copy(), self.campaigns.target_cpa_N.copy()
        spent = budget_A[seat] - self.remaining_A[seat]
        budget_A[seat] = max(spent, budget_A[seat] * budget)
        target_A[seat] *= target
        self.campaigns = replace(self.campaigns, budget_N=budget_A, target_cpa_N=target_A)
        self.remaining_A[seat] = budget_A[seat] - spent
        self.live_A[seat] = self.remaining_A[seat] >= STOP_BELOW

    def _record(self, multiplier_A: FloatArray, coming: Opportunities, cleared: Cleared) -> None:
        tick, weight, n = self.tick, self.world.weight, self.campaigns.n
        slots = cleared.shown_MS.shape[1]
        winner_MS = cleared.top_seat_M5[:, :slots].astype(np.int64)
        row_W, slot_W = np.nonzero(cleared.shown_MS)
        seat_W = winner_MS[row_W, slot_W]
        p_W = coming.p_MA[row_W, seat_W].astype(np.float64)
        seen_W = coming.seen_MA[row_W, seat_W].astype(np.float64)

        def by_seat(weights_W: FloatArray | None = None) -> FloatArray:
            return np.bincount(seat_W, weights_W, minlength=n).astype(np.float64) * weight

        columns = self._columns
        columns["multiplier"][:, tick] = multiplier_A
        columns["spend"][:, tick] = cleared.spend_A
        columns["value"][:, tick] = by_seat(seen_W)
        columns["volume"][:, tick] = len(coming.p_MA) * weight
        columns["p_sum"][:, tick] = coming.seen_MA.sum(axis=0, dtype=np.float64) * weight
        columns["bid_sum"][:, tick] = cleared.bid_MA.sum(axis=0, dtype=np.float64) * weight
        columns["won"][:, tick] = np.bincount(winner_MS[winner_MS >= 0], minlength=n) * weight
        columns["exposed"][:, tick] = by_seat()
        columns["least_winning_cost"][:, tick] = np.maximum(cleared.top_bid_M5[:, slots], coming.floor_M).mean()
        self.judged_A += by_seat(p_W)
        sigma_W = self.world.sigma_A[seat_W]
        rate_W = np.clip(p_W * (1 + sigma_W * self._rng.standard_normal(len(p_W))), 0, 1) * weight
        count_W = self._rng.poisson(rate_W)
        hit = np.flatnonzero(count_W)
        known = np.minimum(tick + self._rng.geometric(LATE, len(hit)) - 1, N_TICKS - 1)
        cell = seat_W[hit] * N_TICKS + known
        self._late_ATT[:, tick] += np.bincount(cell, count_W[hit], n * N_TICKS).reshape(n, N_TICKS)
        self.winning_prices.append(cleared.price_MS[:, 0][cleared.top_seat_M5[:, 0] >= 0])
        self._parts.append((np.full(len(coming.p_MA), tick), coming.seen_MA, cleared.top_bid_M5, cleared.top_seat_M5))

    def trace(self, name: str, algorithm: Sequence[str]) -> MarketDay:
        """The day as a recording in which any seat can be replayed; p is what campaigns were told."""
        tick, p, bid, seat = (np.concatenate(each) for each in zip(*self._parts, strict=True))
        return MarketDay(
            name=name, tick_M=tick.astype(np.int64), p_MA=p, top_bid_M5=bid, top_seat_M5=seat, campaigns=self.campaigns,
            algorithm=tuple(algorithm), sigma_ratio_A=self.world.sigma_A, sample_fraction=1 / self.world.weight,
            exposure_S=np.asarray(np.cumprod([1.0, 0.8, 0.6])[: self.world.settings.slots]), reserve=1e-4,
        )  # fmt: skip


@dataclass(frozen=True)
class SimulatedDay:
    """A day that was played.

    Attributes:
        trace: recording for replays. algorithm: who played each seat. winning_prices: of slot 1, all auctions.
        results: by kind of bidder, its seats' day. seats: which seats those were.
    """

    trace: MarketDay
    algorithm: tuple[str, ...]
    winning_prices: FloatArray
    results: Mapping[str, DayResult] = field(default_factory=dict)
    seats: Mapping[str, IntArray] = field(default_factory=dict)


def deal(settings: MarketSettings, seed: int) -> tuple[str, ...]:
    """Who plays which seat: the line-up repeated, in the day's own order."""
    names = [LINE_UP[each % len(LINE_UP)][0] for each in range(settings.campaigns)]
    return tuple(np.random.default_rng((seed, 109)).permutation(names).tolist())


def simulate(
    settings: MarketSettings | None = None,
    *,
    seed: int = 0,
    tested: Mapping[str, Controller] | None = None,
    tested_seats: Mapping[str, IntArray] | None = None,
    name: str | None = None,
) -> SimulatedDay:
    """Plays a day with all bidders live.

    Args:
        tested: further controllers by name, each in `tested_seats[name]`, in place of who would sit there.
    """
    settings = settings or MarketSettings()
    world = World(settings, seed)
    algorithm = list(deal(settings, seed))
    for own, seats in (tested_seats or {}).items():
        for seat in seats:
            algorithm[int(seat)] = own
    session = Session(world)
    if settings.budget_factor != 1.0:
        is_tested_A = np.array([each in (tested or {}) for each in algorithm])
        factor_A = np.where(is_tested_A, 1.0, settings.budget_factor)
        session.campaigns = replace(session.campaigns, budget_N=session.campaigns.budget_N * factor_A)
        session.remaining_A = session.campaigns.budget_N.copy()
    makers = dict(LINE_UP)
    groups: list[tuple[str, Controller, IntArray]] = []
    for own in dict.fromkeys(algorithm):
        seats = np.flatnonzero(np.array(algorithm) == own).astype(np.int64)
        bidder = tested[own] if tested and own in tested else makers[own]()
        groups.append((own, bidder, seats))
    decisions: dict[str, list[Decision]] = {own: [] for own, _, _ in groups}
    for _, bidder, seats in groups:
        bidder.start(session.observation(seats).campaigns, seed)
    while not session.done:
        multiplier_A = np.zeros(settings.campaigns)
        for own, bidder, seats in groups:
            decision = bidder.decide(session.observation(seats))
            decisions[own].append(decision)
            multiplier_A[seats] = decision.multiplier_N
        session.play(multiplier_A)
    results = {}
    for own, bidder, seats in groups:
        whole = session.history(seats)
        part = Campaigns(
            budget_N=session.campaigns.budget_N[seats], target_cpa_N=session.campaigns.target_cpa_N[seats],
            category_N=session.campaigns.category_N[seats], name=tuple(session.campaigns.name[each] for each in seats),
        )  # fmt: skip
        results[own] = DayResult(
            market=name or f"simulated_{seed}", controller=bidder.name, campaigns=part, history=whole,
            judged_N=session.judged_A[seats], decisions=tuple(decisions[own]),
        )  # fmt: skip
    return SimulatedDay(
        trace=session.trace(name or f"simulated_{seed}", algorithm),
        algorithm=tuple(algorithm),
        winning_prices=np.concatenate(session.winning_prices),
        results=results,
        seats={own: seats for own, _, seats in groups},
    )


def record_days(settings: MarketSettings, *, days: int, seed: int, out: str | Path, quiet: bool = False) -> Path:
    """Simulates days, and writes each as a recording and all as one trajectory log in AuctionNet's columns.

    Raises:
        RankloomError: no day is asked for.
    """
    from rankloom.bidding.trajectories import concatenate, from_result, write_trajectories

    if days < 1:
        raise RankloomError(f"{days} days", place="--days", action="simulate at least one", code="market-days")
    out = Path(out)
    parts = []
    for day in track(range(days), "simulating", unit="days", quiet=quiet):
        played = simulate(settings, seed=seed + day)
        save_trace(played.trace, out)
        for own, result in played.results.items():
            parts.append(from_result(result, period=seed + day, seat_N=played.seats[own]))
    path = out / "trajectories.parquet"
    write_trajectories(path, concatenate(parts))
    return path
