"""Trajectories: whole days of many campaigns as one record, read from a log, checked, with scores and returns-to-go.

Reads the columns of AuctionNet's trajectory tables (`period, advertiser, category, budget, cpa, t, s0..s15, action,
reward, reward_continuous, cost, exposed`, the form that recordings and the market simulator of this package use) and the official
competition files (`deliveryPeriodIndex, ..., state` as one text column). What a log does not hold itself is worked out
from its state columns: volume is s13, sum of p is s12 * s13, wins and lowest winning costs are the differences of s7
and s4, which are means of means over the ticks so far. A log that disagrees with itself is refused.

Value is `reward_continuous` (sum of p over shown wins) wherever the log has it: it is the mean of what `reward` draws.

Returns-to-go are GAVE's (equations 13-15): with S_t the score of everything up to tick t, r_t = S_T - S_{t-1}. gamma is
really squared when it is 2; S_T is the score after the last tick, not the score of the last state.
"""

from __future__ import annotations

import ast
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import polars as pl
from numpy.typing import NDArray

from rankloom.bidding.day import STOP_BELOW, DayResult
from rankloom.bidding.protocol import N_TICKS, Campaigns, FloatArray, History, IntArray
from rankloom.bidding.score import DEFAULT_GAMMA, score
from rankloom.errors import RankloomError
from rankloom.files import atomic_file

REQUIRED: Final = ("period", "advertiser", "budget", "cpa", "t", "action", "cost", "reward", "s4", "s7", "s12", "s13")
_OFFICIAL: Final = {
    "deliveryPeriodIndex": "period",
    "advertiserNumber": "advertiser",
    "advertiserCategoryIndex": "category",
    "CPAConstraint": "cpa",
    "timeStepIndex": "t",
}


@dataclass(frozen=True)
class Trajectories:
    """N finished days of one campaign each, T = 48.

    Attributes:
        period_N, seat_N: where each came from; days of one period share their market.
        source: what bid, one label a trajectory.
    """

    campaigns: Campaigns
    history: History
    period_N: IntArray
    seat_N: IntArray
    source: tuple[str, ...]

    @property
    def n(self) -> int:
        return self.campaigns.n

    @property
    def remaining_NT(self) -> FloatArray:
        """Money left before each tick."""
        spent_NT = np.cumsum(self.history.spend_NT, axis=1) - self.history.spend_NT
        return np.maximum(self.campaigns.budget_N[:, None] - spent_NT, 0.0)

    @property
    def alive_NT(self) -> NDArray[np.bool_]:
        """Ticks in which something was decided: money is left and a multiplier was asked for."""
        alive_NT: NDArray[np.bool_] = (self.remaining_NT >= STOP_BELOW) & (self.history.multiplier_NT > 0)
        return alive_NT

    def score_NT(self, gamma: float = DEFAULT_GAMMA) -> FloatArray:
        """S_t: score of everything up to and with tick t."""
        return score(
            np.cumsum(self.history.value_NT, axis=1),
            np.cumsum(self.history.spend_NT, axis=1),
            self.campaigns.target_cpa_N[:, None],
            gamma,
        )

    def returns_to_go_NT(self, gamma: float = DEFAULT_GAMMA) -> FloatArray:
        """r_t = S_T - S_{t-1}; gamma 0 is the plain sum of the values to come."""
        scores_NT = self.score_NT(gamma)
        before_NT = np.concatenate([np.zeros((self.n, 1)), scores_NT[:, :-1]], axis=1)
        return np.asarray(scores_NT[:, -1:] - before_NT)

    def select(self, wanted: NDArray[Any]) -> Trajectories:
        """The trajectories at these indices (or where this mask is true)."""
        index = np.flatnonzero(wanted) if wanted.dtype == np.bool_ else np.asarray(wanted)
        return Trajectories(
            campaigns=Campaigns(
                budget_N=self.campaigns.budget_N[index],
                target_cpa_N=self.campaigns.target_cpa_N[index],
                category_N=self.campaigns.category_N[index],
                name=tuple(self.campaigns.name[i] for i in index),
            ),
            history=History(**{f.name: getattr(self.history, f.name)[index] for f in fields(History)}),
            period_N=self.period_N[index],
            seat_N=self.seat_N[index],
            source=tuple(self.source[i] for i in index),
        )


def concatenate(parts: Sequence[Trajectories]) -> Trajectories:
    """All trajectories of all parts, in order."""

    def joined(pick: Any) -> Any:
        return np.concatenate([pick(part) for part in parts])

    return Trajectories(
        campaigns=Campaigns(
            budget_N=joined(lambda p: p.campaigns.budget_N),
            target_cpa_N=joined(lambda p: p.campaigns.target_cpa_N),
            category_N=joined(lambda p: p.campaigns.category_N),
            name=tuple(name for part in parts for name in part.campaigns.name),
        ),
        history=History(**{f.name: joined(lambda p, f=f: getattr(p.history, f.name)) for f in fields(History)}),
        period_N=joined(lambda p: p.period_N),
        seat_N=joined(lambda p: p.seat_N),
        source=tuple(label for part in parts for label in part.source),
    )


def from_result(result: DayResult, *, period: int, seat_N: IntArray | None = None) -> Trajectories:
    """A played day as trajectories."""
    n = result.campaigns.n
    return Trajectories(
        campaigns=result.campaigns,
        history=result.history,
        period_N=np.full(n, period, dtype=np.int64),
        seat_N=np.arange(n) if seat_N is None else seat_N,
        source=(result.controller,) * n,
    )


def read_trajectories(path: str | Path, *, split: str | None = "train") -> Trajectories:
    """A trajectory log; see the module's text.

    Args:
        split: where the log has a `split` column only its rows with this value are read; None reads all.

    Raises:
        RankloomError: unreadable, columns missing, days not of 48 ticks, values not finite or negative, or columns
            that contradict each other; nothing is returned of a log that has one bad row.
    """
    path = Path(path)
    table = _columns(_read_table(path), path)
    if split is not None and "split" in table.columns:
        table = table.filter(pl.col("split").cast(pl.String) == split)
    table = table.sort("period", "advertiser", "t")
    _check_days(table, path)
    n = table.height // N_TICKS

    def column(name: str) -> FloatArray:
        return table[name].cast(pl.Float64).to_numpy().reshape(n, N_TICKS)

    names = [*REQUIRED, *(name for name in ("reward_continuous", "exposed") if name in table.columns)]
    values = {name: column(name) for name in names}
    _check_values(values, table, path)
    volume, p_mean = values["s13"], values["s12"]
    p_sum = p_mean * volume
    win_rate, least = _unmean(values["s7"]), _unmean(values["s4"])
    won = np.clip(win_rate, 0.0, 1.0) * volume
    exposed = values.get("exposed", won)
    # nothing after the last tick tells what it won
    won[:, -1] = exposed[:, -1]
    least[:, -1] = least[:, -2]
    history = History(
        multiplier_NT=values["action"],
        spend_NT=values["cost"],
        value_NT=values.get("reward_continuous", values["reward"]),
        conversions_NT=values["reward"],
        volume_NT=volume,
        p_sum_NT=p_sum,
        bid_sum_NT=values["action"] * p_sum,
        won_NT=np.maximum(won, 0.0),
        exposed_NT=exposed,
        least_winning_cost_NT=np.maximum(least, 0.0),
    )
    first = table.gather_every(N_TICKS)
    algo = first["algo"].cast(pl.String).to_list() if "algo" in first.columns else ["log"] * n
    periods, seats = (first[name].cast(pl.Int64).to_numpy() for name in ("period", "advertiser"))
    trajectories = Trajectories(
        campaigns=Campaigns(
            budget_N=values["budget"][:, 0].copy(),
            target_cpa_N=values["cpa"][:, 0].copy(),
            category_N=first["category"].cast(pl.Int64).to_numpy()
            if "category" in first.columns
            else np.full(n, -1, dtype=np.int64),
            name=tuple(f"period {p} advertiser {s}" for p, s in zip(periods, seats, strict=True)),
        ),
        history=history,
        period_N=periods,
        seat_N=seats,
        source=tuple(str(each) for each in algo),
    )
    _check_money(trajectories, path)
    return trajectories


def write_trajectories(path: str | Path, trajectories: Trajectories) -> None:
    """Writes a log that `read_trajectories` reads back, atomically; the s columns are AuctionNet's 16."""
    from rankloom.bidding.state import day_states, day_tensors

    states = day_states(day_tensors(trajectories.campaigns, trajectories.history, fallback_target=1.0))[0].double().numpy()
    n, history = trajectories.n, trajectories.history
    spread = np.ones((1, N_TICKS))
    columns: dict[str, Any] = {
        "period": np.repeat(trajectories.period_N, N_TICKS),
        "advertiser": np.repeat(trajectories.seat_N, N_TICKS),
        "algo": np.repeat(np.array(trajectories.source), N_TICKS),
        "category": np.repeat(trajectories.campaigns.category_N, N_TICKS),
        "budget": (trajectories.campaigns.budget_N[:, None] * spread).ravel(),
        "cpa": (trajectories.campaigns.target_cpa_N[:, None] * spread).ravel(),
        "t": np.tile(np.arange(N_TICKS), n),
        **{f"s{i}": states[:, :, i].ravel() for i in range(16)},
        "action": history.multiplier_NT.ravel(),
        "reward": history.conversions_NT.ravel(),
        "reward_continuous": history.value_NT.ravel(),
        "cost": history.spend_NT.ravel(),
        "remaining_budget": trajectories.remaining_NT.ravel(),
        "exposed": history.exposed_NT.ravel(),
        "split": ["train"] * (n * N_TICKS),
    }
    with atomic_file(path) as temporary:
        pl.DataFrame(columns).write_parquet(temporary)


def _read_table(path: Path) -> pl.DataFrame:
    try:
        return pl.read_parquet(path) if path.suffix == ".parquet" else pl.read_csv(path, infer_schema_length=None)
    except (OSError, pl.exceptions.PolarsError) as error:
        raise RankloomError(
            f"{path.name} is no readable table: {error}",
            place=str(path),
            action="point to a Parquet or CSV file of trajectories",
            code="trajectories-unreadable",
        ) from None


def _columns(table: pl.DataFrame, path: Path) -> pl.DataFrame:
    table = table.rename({old: new for old, new in _OFFICIAL.items() if old in table.columns and new not in table.columns})
    if "s0" not in table.columns and "state" in table.columns:
        try:
            states = np.array([ast.literal_eval(text) for text in table["state"].to_list()], dtype=np.float64)
        except (ValueError, SyntaxError, TypeError) as error:
            raise _refused(f"the column 'state' does not hold 16 numbers a row: {error}", path) from None
        if states.ndim != 2 or states.shape[1] != 16:
            raise _refused("the column 'state' does not hold 16 numbers a row", path)
        table = table.with_columns([pl.Series(f"s{i}", states[:, i]) for i in range(16)])
    if "cost" not in table.columns and "s1" in table.columns and "budget" in table.columns:
        # the official tables hold no cost column: it is what the budget left lost until the next tick
        next_left = pl.col("s1").shift(-1).over("period", "advertiser")
        table = table.sort("period", "advertiser", "t").with_columns(
            ((pl.col("s1") - next_left.fill_null(pl.col("s1"))) * pl.col("budget")).clip(lower_bound=0.0).alias("cost")
        )
    missing = [name for name in REQUIRED if name not in table.columns]
    if missing:
        raise _refused(f"the trajectories lack the column {missing[0]!r}", path, f"they need {', '.join(REQUIRED)}")
    return table


def _check_days(table: pl.DataFrame, path: Path) -> None:
    if table.is_empty():
        raise _refused("the trajectories have no rows of the wanted split", path)
    ticks = table.group_by("period", "advertiser", maintain_order=True).agg(pl.col("t").cast(pl.Int64).alias("ticks"))
    for period, advertiser, found in ticks.iter_rows():
        if found != list(range(N_TICKS)):
            raise _refused(
                f"period {period:g}, advertiser {advertiser:g} does not have ticks 0 to {N_TICKS - 1} once each",
                path,
                "log one row a tick, also after the budget is gone (action 0)",
            )


def _check_values(values: dict[str, FloatArray], table: pl.DataFrame, path: Path) -> None:
    for name, value in values.items():
        positive = name in ("budget", "cpa")
        fine = (np.isfinite(value) | (np.isposinf(value) if name == "cpa" else False)) & (
            value > 0 if positive else value >= (-np.inf if name.startswith("s") else 0)
        )
        if not fine.all():
            row = int(np.flatnonzero(~fine.ravel())[0])
            where = f"period {table['period'][row]}, advertiser {table['advertiser'][row]}, tick {table['t'][row]}"
            wanted = "a positive number" if positive else "a finite number of at least 0"
            raise _refused(f"{name} is {value.ravel()[row]} at {where}, not {wanted}", path)
    for name in ("budget", "cpa"):
        changed = (values[name] != values[name][:, :1]).any(axis=1)
        if changed.any():
            raise _refused(f"{name} changes within a day (day {int(np.flatnonzero(changed)[0])} of the log)", path)


def _check_money(trajectories: Trajectories, path: Path) -> None:
    over = trajectories.history.spend_NT.sum(axis=1) > trajectories.campaigns.budget_N * 1.001 + 1.0
    if over.any():
        name = trajectories.campaigns.name[int(np.flatnonzero(over)[0])]
        raise _refused(f"{name} spent more than its budget", path, "check the units of cost and budget")


def _unmean(mean_NT: FloatArray) -> FloatArray:
    """Per-tick values from means over the ticks so far; the last tick's, which no mean holds, is 0."""
    summed = mean_NT * np.arange(N_TICKS)
    return np.concatenate([np.diff(summed, axis=1), np.zeros((len(mean_NT), 1))], axis=1)


def _refused(fact: str, path: Path, action: str = "repair the log and read it again") -> RankloomError:
    return RankloomError(fact, place=str(path), action=action, code="trajectories-invalid")


def with_conversions(trajectories: Trajectories, seed: int) -> Trajectories:
    """The same days with realised conversions drawn (Poisson of the expected ones), so that noise is seen in training."""
    drawn = np.random.default_rng(seed).poisson(trajectories.history.value_NT).astype(np.float64)
    return replace(trajectories, history=replace(trajectories.history, conversions_NT=drawn))
