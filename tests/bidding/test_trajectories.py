"""Trajectories: what is read from a log, what is refused, and GAVE's returns-to-go."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rankloom.bidding.protocol import N_TICKS, Campaigns, History
from rankloom.bidding.trajectories import Trajectories, read_trajectories, with_conversions, write_trajectories
from rankloom.errors import RankloomError
from tests.bidding.small_log import small_log


@pytest.fixture(scope="module")
def log() -> Trajectories:
    return small_log(2)


@pytest.fixture
def path(log: Trajectories, tmp_path: Path) -> Path:
    write_trajectories(tmp_path / "log.parquet", log)
    return tmp_path / "log.parquet"


def day_of(value: list[float], cost: list[float], target: float) -> Trajectories:
    """One campaign whose day is over after the given ticks."""

    def row(values: list[float]) -> np.ndarray:
        return np.array([values + [0.0] * (N_TICKS - len(values))])

    columns = {name: np.zeros((1, N_TICKS)) for name in History.__dataclass_fields__}
    columns |= {"value_NT": row(value), "spend_NT": row(cost)}
    return Trajectories(
        campaigns=Campaigns(np.array([1000.0]), np.array([target]), np.array([0]), ("c",)),
        history=History(**columns),
        period_N=np.array([0]),
        seat_N=np.array([0]),
        source=("hand",),
    )


def test_returns_to_go_are_final_score_less_score_so_far() -> None:
    # CPA so far 5, 10, 20 at a limit of 10: the score is 2, then 4, then 4 * (10/20)^2 = 1
    day = day_of([2.0, 2.0, 0.0], [10.0, 30.0, 40.0], 10.0)
    np.testing.assert_allclose(day.score_NT()[0, :3], [2.0, 4.0, 1.0])
    np.testing.assert_allclose(day.returns_to_go_NT()[0, :4], [1.0, -1.0, -3.0, 0.0])
    np.testing.assert_allclose(day.returns_to_go_NT(0.0)[0, :3], [4.0, 2.0, 0.0])


def test_gamma_is_the_exponent_itself() -> None:
    day = day_of([4.0], [80.0], 10.0)
    scores = [day.score_NT(gamma)[0, -1] for gamma in (0.0, 1.0, 2.0, 5.0)]
    np.testing.assert_allclose(scores, [4.0, 2.0, 1.0, 4.0 / 32])


@given(st.lists(st.tuples(st.floats(0, 5), st.floats(0, 100)), min_size=1, max_size=N_TICKS), st.sampled_from([0.0, 2.0, 5.0]))
def test_the_first_return_is_the_days_score_and_steps_add_up(ticks: list[tuple[float, float]], gamma: float) -> None:
    day = day_of([v for v, _ in ticks], [c for _, c in ticks], 20.0)
    returns, scores = day.returns_to_go_NT(gamma)[0], day.score_NT(gamma)[0]
    assert returns[0] == pytest.approx(scores[-1])
    np.testing.assert_allclose(returns[:-1] - returns[1:], np.diff(np.concatenate([[0.0], scores]))[:-1], atol=1e-9)


def test_a_written_log_reads_back(log: Trajectories, path: Path) -> None:
    found = read_trajectories(path)
    for name in History.__dataclass_fields__:
        last = -1 if name in ("won_NT", "least_winning_cost_NT") else None
        np.testing.assert_allclose(
            getattr(found.history, name)[:, :last], getattr(log.history, name)[:, :last], rtol=1e-3, atol=2e-3, err_msg=name
        )
    np.testing.assert_array_equal(found.campaigns.budget_N, log.campaigns.budget_N)
    assert found.source == log.source


def test_only_the_wanted_split_is_read(path: Path, log: Trajectories) -> None:
    table = pl.read_parquet(path).with_columns(
        pl.when(pl.col("period") == 1).then(pl.lit("eval")).otherwise(pl.lit("train")).alias("split")
    )
    table.write_parquet(path)
    assert set(read_trajectories(path).period_N.tolist()) == {0}
    assert read_trajectories(path, split=None).n == log.n


def test_official_columns_are_understood(path: Path, tmp_path: Path, log: Trajectories) -> None:
    table = pl.read_parquet(path)
    official = table.select(
        pl.col("period").alias("deliveryPeriodIndex"),
        pl.col("advertiser").alias("advertiserNumber"),
        pl.col("category").alias("advertiserCategoryIndex"),
        "budget",
        pl.col("cpa").alias("CPAConstraint"),
        pl.col("t").alias("timeStepIndex"),
        pl.concat_str(
            [pl.lit("("), pl.concat_str([pl.col(f"s{i}") for i in range(16)], separator=", "), pl.lit(")")]
        ).alias("state"),
        "action",
        "reward",
        "reward_continuous",
    )
    official.write_csv(tmp_path / "official.csv")
    found = read_trajectories(tmp_path / "official.csv")
    # the official files hold no cost: it is read from the budget that was left, which no row tells after the last tick
    np.testing.assert_allclose(found.history.spend_NT[:, :-1], log.history.spend_NT[:, :-1], atol=0.05)


@pytest.mark.parametrize(
    ("change", "fact"),
    [
        (pl.col("t").replace({7: 8}), "ticks 0 to 47"),
        (pl.when(pl.col("t") == 3).then(float("nan")).otherwise(pl.col("cost")).alias("cost"), "cost is nan"),
        (pl.when(pl.col("t") == 3).then(-1.0).otherwise(pl.col("action")).alias("action"), "action is -1.0"),
        (pl.lit(0.0).alias("budget"), "budget is 0.0"),
        (pl.when(pl.col("t") == 3).then(1.0).otherwise(pl.col("cpa")).alias("cpa"), "cpa changes within a day"),
        ((pl.col("cost") + pl.col("budget")).alias("cost"), "spent more than its budget"),
    ],
)
def test_a_log_with_one_bad_row_is_refused_whole(path: Path, change: pl.Expr, fact: str) -> None:
    pl.read_parquet(path).with_columns(change).write_parquet(path)
    with pytest.raises(RankloomError, match=fact):
        read_trajectories(path)


def test_a_missing_column_is_named(path: Path) -> None:
    pl.read_parquet(path).drop("s13").write_parquet(path)
    with pytest.raises(RankloomError, match="'s13'"):
        read_trajectories(path)


def test_drawn_conversions_have_the_mean_of_the_expected_ones(log: Trajectories) -> None:
    drawn = with_conversions(log, seed=1).history.conversions_NT
    assert drawn.sum() == pytest.approx(log.history.value_NT.sum(), rel=0.1)
    assert (drawn == np.round(drawn)).all()
    assert not np.array_equal(drawn, log.history.value_NT)
