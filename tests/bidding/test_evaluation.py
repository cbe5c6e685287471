"""Bidders side by side: tidy rows, a table, a page, and commands that say what is wrong."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from rankloom.bidding.cli import app
from rankloom.bidding.controllers import Constant, OnlineLP
from rankloom.bidding.evaluation import evaluate, find_controller, rows_of, table
from rankloom.bidding.market import MarketSettings, simulate
from rankloom.bidding.report import page, write_report
from rankloom.bidding.score import Outcome
from rankloom.bidding.traces import MarketDay, save_trace
from rankloom.errors import RankloomError

runner = CliRunner()


@pytest.fixture(scope="module")
def days() -> list[MarketDay]:
    return [simulate(MarketSettings(opportunities=1_500), seed=seed).trace for seed in (0, 1)]


@pytest.fixture(scope="module")
def folder(days: list[MarketDay], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("days")
    for day in days:
        save_trace(day, out)
    return out


def test_rows_are_tidy_and_cover_every_bidder_and_day(days: list[MarketDay]) -> None:
    found = evaluate(days, [Constant(), OnlineLP()], budget_ratio=0.75)
    scores = [row for row in found["rows"] if row["metric"] == "score"]
    assert {(row["system"], row["market"]) for row in scores} == {
        (system, market) for system in ("alpha = C", "online-lp") for market in ("all", days[0].name, days[1].name)
    }
    for row in scores:
        if row["market"] == "all":
            assert row["variant"] == "budget 75%"
            assert row["low"] <= row["value"] <= row["high"]
            assert row["n"] == 96
    assert found["checks"][0]["ok"]
    assert "alpha = C" in table(found["rows"])


def test_the_score_of_all_days_is_the_mean_over_campaign_days() -> None:
    first, second = (
        Outcome(np.array([value]), np.array([value * 50]), np.array([1000.0]), np.array([100.0]))
        for value in (4.0, 8.0)
    )
    rows = rows_of("x", "budget 100%", [first, second], ["a", "b"])
    assert next(row["value"] for row in rows if row["metric"] == "score" and row["market"] == "all") == 6.0


def test_bounds_are_rows_too(days: list[MarketDay]) -> None:
    rows = evaluate(days[:1], [Constant()], bounds=True)["rows"]
    score = {row["system"]: row["value"] for row in rows if row["metric"] == "score" and row["market"] == "all"}
    assert score["knapsack oracle"] >= score["best constant in hindsight"] >= 0.98 * score["alpha = C"]


def test_constants_have_names_and_unknown_bidders_are_told(tmp_path: Path) -> None:
    assert find_controller("constant-1.3").name == "alpha = 1.3 C"
    with pytest.raises(RankloomError, match="no bidder's folder"):
        find_controller(str(tmp_path / "missing"))


def test_the_page_is_one_file_with_every_bidder(days: list[MarketDay], tmp_path: Path) -> None:
    out = write_report(days[:1], [Constant(), OnlineLP()], tmp_path / "page.html", budget_ratios=(0.5, 1.0), quiet=True)
    text = out.read_text(encoding="utf-8")
    assert "online-lp" in text
    assert "Through the day" in text
    assert "http://" not in text.split("<script>", 1)[0]
    assert "NaN" not in text.split("const options=", 1)[1]
    assert "<h1>Bidders</h1>" in page(evaluate(days[:1], [Constant()])["rows"])


def test_evaluate_prints_a_table_or_tidy_json(folder: Path) -> None:
    plain = runner.invoke(app, ["evaluate", "--traces", str(folder), "--bidder", "constant", "--bidder", "pid"])
    assert plain.exit_code == 0, plain.output
    assert "alpha = C" in plain.output
    machine = runner.invoke(
        app, ["evaluate", "--traces", str(folder), "--bidder", "constant", "--budget-ratio", "0.5", "--json"]
    )
    result = json.loads(machine.output)
    assert {"name", "machine", "rows", "checks"} <= set(result)
    assert result["rows"][0]["variant"] == "budget 50%"


def test_commands_refuse_what_they_cannot_do(folder: Path, tmp_path: Path) -> None:
    for arguments in (
        ["evaluate", "--traces", str(tmp_path)],
        ["evaluate", "--traces", str(folder), "--budget-ratio", "0"],
        ["evaluate", "--traces", str(folder), "--bidder", "pdi"],
        ["report", "--traces", str(tmp_path), "--out", str(tmp_path / "x.html")],
        ["rebuild", "--trajectories", str(tmp_path / "no.parquet"), "--out", str(tmp_path / "days")],
        ["simulate", "--out", str(tmp_path / "days"), "--opportunities", "1"],
    ):
        found = runner.invoke(app, arguments)
        assert found.exit_code != 0
        assert isinstance(found.exception, RankloomError), (arguments, found.output)
    assert not (tmp_path / "days").exists()
    assert not (tmp_path / "x.html").exists()


def test_simulated_days_are_evaluated_and_rebuilt(tmp_path: Path) -> None:
    """simulate -> evaluate; simulate -> trajectories -> rebuild -> evaluate: one form everywhere."""
    made = runner.invoke(app, ["simulate", "--out", str(tmp_path / "days"), "--days", "1", "--opportunities", "1000"])
    assert made.exit_code == 0, made.output
    log = tmp_path / "days" / "trajectories.parquet"
    built = runner.invoke(app, ["rebuild", "--trajectories", str(log), "--out", str(tmp_path / "rebuilt")])
    assert built.exit_code == 0, built.output
    for place in ("days", "rebuilt"):
        found = runner.invoke(app, ["evaluate", "--traces", str(tmp_path / place), "--bidder", "constant", "--json"])
        assert json.loads(found.output)["rows"][0]["value"] > 0
