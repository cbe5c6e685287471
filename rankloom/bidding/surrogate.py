"""Training days rebuilt as markets: opportunity-level days from a log that holds only totals per tick.

A trajectory log says for every seat and tick how many opportunities came, their mean p, the seat's multiplier and what
it won. In a market where everybody bids multiplier * p that is nearly the whole auction: only how p varies inside a
tick is missing. p of one seat inside a tick is drawn as max(0, normal(mean, spread * mean)), independently of the other
seats (AuctionNet's parametric generator), every seat bids what its log says, the five highest bids are
recorded, and the spread of each seat and tick is moved until the seat wins what the log says it won. The result is a
`MarketDay` like any recorded one, so that one replay scores controllers on both.

Use it wherever something is chosen (gains, checkpoints, return targets): recorded evaluation days are for reporting.

    days = rebuild_days("auctionnet_sim_trajectories.parquet", periods=range(20, 30))   # split = train by default
    result = replay(days, controller, budget_ratio=1.0)
    concatenate([each.outcome for each in result]).summary()["score"]

Rebuilding takes about 2 s a day; `rankloom bid rebuild --trajectories FILE --out DIR` keeps the days in a folder that
`load_traces` (and `rankloom bid evaluate --traces`) reads. Budgets are by default each advertiser's median over the
log, so that `budget_ratio` means the same on every day.

What is not in it: correlation of p across seats, bids that are not linear in p, and what rivals would have done.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Final, Literal

import numpy as np
import polars as pl
from numpy.typing import NDArray
from scipy.special import ndtr

from rankloom.bidding.day import play_day
from rankloom.bidding.protocol import N_TICKS, Campaigns, Decision, FloatArray, IntArray, Observation
from rankloom.bidding.replay import ReplayMarket
from rankloom.bidding.traces import MarketDay, save_trace
from rankloom.errors import RankloomError
from rankloom.progress import track

COLUMNS: Final = (
    "period", "advertiser", "category", "budget", "cpa", "t", "s12", "s13",
    "action", "reward_continuous", "cost", "remaining_budget",
)  # fmt: skip
EXPOSURE: Final = (1.0, 0.8, 0.48)
RESERVE: Final = 1e-4
# spread of p inside a tick over its mean: what makes the training days of the public log cost what they cost
SPREAD_MEAN, SPREAD_OF_SEATS, SPREAD_OF_TICKS = 0.47, 0.08, 0.09
SPREAD_RANGE: Final = (0.12, 0.9)
MATCHING_ROUNDS: Final = 5
MATCHING_POWER: Final = 0.25


class _Logged:
    """Plays back logged multipliers (A, T), whatever happens."""

    name = "logged"

    def __init__(self, multiplier_AT: FloatArray) -> None:
        self.multiplier_AT = multiplier_AT

    def start(self, campaigns: Campaigns, seed: int) -> None: ...

    def decide(self, observation: Observation) -> Decision:
        return Decision(self.multiplier_AT[:, observation.tick], ("none",) * observation.campaigns.n)


def read_log(trajectories: str | Path | pl.DataFrame, split: str | None = "train") -> pl.DataFrame:
    """The trajectory log, checked for the columns that rebuilding needs, in order of period, advertiser, tick.

    Args:
        split: keep rows of this split where the log has the column; None keeps all.

    Raises:
        RankloomError: no such file, no table, columns missing, or a period that is not 48 ticks of every advertiser.
    """
    place = None if isinstance(trajectories, pl.DataFrame) else str(trajectories)
    if isinstance(trajectories, pl.DataFrame):
        log = trajectories
    else:
        try:
            log = pl.read_parquet(trajectories)
        except (OSError, pl.exceptions.PolarsError) as error:
            raise RankloomError(
                f"{Path(trajectories).name} is no readable Parquet file: {error}",
                place=place,
                action="point to a trajectory log",
                code="trajectories-unreadable",
            ) from None
    missing = [column for column in COLUMNS if column not in log.columns]
    if missing:
        raise RankloomError(
            f"the trajectory log lacks the column {missing[0]!r}",
            place=place,
            action=f"it needs {', '.join(COLUMNS)}",
            code="trajectories-columns",
        )
    if split is not None and "split" in log.columns:
        log = log.filter(pl.col("split").cast(pl.String) == split)
    log = log.sort("period", "advertiser", "t")
    ticks = log.group_by("period", "advertiser").agg(pl.col("t").n_unique().alias("n"), pl.len().alias("rows"))
    broken = ticks.filter((pl.col("n") != N_TICKS) | (pl.col("rows") != N_TICKS))
    if log.is_empty() or not broken.is_empty():
        raise RankloomError(
            "the trajectory log has no rows"
            if log.is_empty()
            else f"{broken.height} advertiser days do not have one row for each of {N_TICKS} ticks",
            place=place,
            action="log every tick of every advertiser",
            code="trajectories-ticks",
        )
    return log


def base_budgets(log: pl.DataFrame) -> dict[int, float]:
    """Each advertiser's median budget over the periods of the log."""
    medians = log.group_by("advertiser").agg(pl.col("budget").cast(pl.Float64).median())
    return {int(advertiser): float(budget) for advertiser, budget in medians.iter_rows()}


def rebuild_day(
    log: pl.DataFrame,
    period: int,
    *,
    seed: int = 0,
    sample_fraction: float = 0.1,
    budgets: dict[int, float] | None = None,
    rounds: int = MATCHING_ROUNDS,
) -> MarketDay:
    """One period of a log as an opportunity-level day; see the module's text.

    Args:
        log: from `read_log`.
        budgets: by advertiser; the period's own where None.
        rounds: how often the spreads are moved towards what was won.
    """
    day = log.filter(pl.col("period") == period)
    if day.is_empty():
        raise RankloomError(f"the trajectory log has no period {period}", code="period-missing")
    advertisers = day["advertiser"].to_numpy()[::N_TICKS]
    n = len(advertisers)

    def logged(name: str) -> FloatArray:
        return day[name].cast(pl.Float64).to_numpy().reshape(n, N_TICKS)

    budget_A = logged("budget")[:, 0]
    if budgets is not None:
        budget_A = np.array([budgets[int(each)] for each in advertisers])
    campaigns = Campaigns(
        budget_N=budget_A,
        target_cpa_N=logged("cpa")[:, 0],
        category_N=logged("category")[:, 0].astype(np.int64),
        name=tuple(f"advertiser {each}" for each in advertisers),
    )
    names = day["algo"].cast(pl.String).to_list()[::N_TICKS] if "algo" in day.columns else ["?"] * n
    rng = np.random.default_rng((seed, 17, period))
    volume_T = np.round(np.median(logged("s13"), axis=0) * sample_fraction).astype(np.int64)
    tick_M = np.repeat(np.arange(N_TICKS), volume_T)
    action_AT, cost_AT, value_AT = (logged(name) for name in ("action", "cost", "reward_continuous"))
    left_AT = logged("remaining_budget") - cost_AT
    # in the tick in which the budget ends a part of the bids is taken back: the multiplier stands, the bids thin out
    ends_AT = (cost_AT > 0) & (left_AT < 0.15)
    before_AT = np.concatenate([action_AT[:, :1], action_AT[:, :-1]], axis=1)
    multiplier_AT = np.where(ends_AT, np.maximum(action_AT, before_AT), action_AT)
    kept_AT = np.where(ends_AT, action_AT / np.maximum(multiplier_AT, 1e-12), 1.0)
    normal_MA = rng.standard_normal((len(tick_M), n), dtype=np.float32)
    bids_MA = rng.random((len(tick_M), n), dtype=np.float32) <= kept_AT.T.astype(np.float32)[tick_M]
    spread_AT = np.clip(
        rng.normal(SPREAD_MEAN, SPREAD_OF_SEATS, (n, 1)) + rng.normal(0.0, SPREAD_OF_TICKS, (n, N_TICKS)),
        *SPREAD_RANGE,
    )

    def build(spread_AT: FloatArray) -> MarketDay:
        p_MA = _draw_p(logged("s12"), spread_AT, normal_MA, tick_M)
        bid_MA = np.where(bids_MA, p_MA * multiplier_AT.T.astype(np.float32)[tick_M], np.float32(0))
        bid_MA[bid_MA < RESERVE] = 0
        top_bid_M5, top_seat_M5 = highest_bids(bid_MA)
        return MarketDay(
            name=f"rebuilt_{period}",
            tick_M=tick_M,
            p_MA=p_MA,
            top_bid_M5=top_bid_M5,
            top_seat_M5=top_seat_M5,
            campaigns=campaigns,
            algorithm=tuple(str(each) for each in names),
            sigma_ratio_A=np.full(n, 0.15),
            sample_fraction=sample_fraction,
            exposure_S=np.asarray(np.cumprod([1.0, 0.8, 0.6])),
            reserve=RESERVE,
        )

    built = build(spread_AT)
    slack_A1 = 0.01 * np.maximum(value_AT.sum(axis=1, keepdims=True), 5.0)
    for _ in range(rounds):
        found_AT = play_day(ReplayMarket(built, budget_ratio=1e6), _Logged(action_AT), forecasts=False).history.value_NT
        pull_AT = ((value_AT + slack_A1) / (found_AT + slack_A1)) ** MATCHING_POWER
        spread_AT = np.clip(spread_AT * pull_AT, *SPREAD_RANGE)
        built = build(spread_AT)
    return built


def highest_bids(bid_MA: NDArray[np.float32], keep: int = 5) -> tuple[NDArray[np.float32], NDArray[np.int16]]:
    """The highest bids of each row, descending, and whose they are; seat -1 where fewer seats bid."""
    keep_ = min(keep, bid_MA.shape[1])
    seat = np.argpartition(-bid_MA, keep_ - 1, axis=1)[:, :keep_]
    bid = np.take_along_axis(bid_MA, seat, axis=1)
    order = np.argsort(-bid, axis=1, kind="stable")
    seat, bid = np.take_along_axis(seat, order, axis=1), np.take_along_axis(bid, order, axis=1)
    owner = np.where(bid > 0, seat, -1).astype(np.int16)
    missing = keep - keep_
    if missing:
        bid = np.pad(bid, ((0, 0), (0, missing)))
        owner = np.pad(owner, ((0, 0), (0, missing)), constant_values=-1)
    return bid.astype(np.float32), owner


def _draw_p(
    mean_AT: FloatArray, spread_AT: FloatArray, normal_MA: NDArray[np.float32], tick_M: IntArray
) -> NDArray[np.float32]:
    """max(0, normal) with this mean after the cut at 0."""
    edge_AT = 1.0 / spread_AT
    kept_AT = ndtr(edge_AT) + spread_AT * np.exp(-0.5 * edge_AT**2) / np.sqrt(2 * np.pi)
    centre_TA = (mean_AT / kept_AT).T.astype(np.float32)
    scale_TA = centre_TA * spread_AT.T.astype(np.float32)
    p_MA: NDArray[np.float32] = np.maximum(centre_TA[tick_M] + scale_TA[tick_M] * normal_MA, np.float32(0))
    return p_MA


def rebuild_days(
    trajectories: str | Path | pl.DataFrame,
    *,
    periods: Iterable[int] | None = None,
    split: str | None = "train",
    budgets: Literal["base", "recorded"] = "base",
    seed: int = 0,
    sample_fraction: float = 0.1,
    out: str | Path | None = None,
    quiet: bool = False,
) -> list[MarketDay]:
    """The log's periods (all by default) as opportunity-level days, written to the folder `out` too where given."""
    log = read_log(trajectories, split)
    wanted = sorted(log["period"].unique().to_list()) if periods is None else list(periods)
    base = base_budgets(log) if budgets == "base" else None
    days = []
    for period in track(wanted, "rebuilding days", unit="days", quiet=quiet):
        days.append(rebuild_day(log, int(period), seed=seed, sample_fraction=sample_fraction, budgets=base))
        if out is not None:
            save_trace(days[-1], out)
    return days
