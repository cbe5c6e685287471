"""The report: one offline file that shows the figures it was given, and says what it lacks."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rankloom.config import EvaluationConfig
from rankloom.data.sequences import load_sequences
from rankloom.data.shop import Shop
from rankloom.errors import RankloomError
from rankloom.evaluation.evaluate import EvaluationResult, evaluate
from rankloom.evaluation.rankloom_system import RankloomSystem
from rankloom.evaluation.report import Chart, _data, _in_rows, measure_latency, write_report
from rankloom.evaluation.sasrec import SASRec
from rankloom.evaluation.suite import SYSTEMS, suite
from rankloom.files import write_json
from rankloom.recommender import Rankloom


@pytest.fixture(scope="module")
def result(bazaar: Shop, model_path: Path) -> EvaluationResult:
    """Every system of `rankloom evaluate --baselines`, small."""
    own = Rankloom.from_pretrained(model_path)
    sequences = load_sequences(bazaar, own.config.data)
    systems, content = suite(RankloomSystem(own, bazaar, quiet=True), bazaar, sequences, quiet=True)
    for system in systems:
        if isinstance(system, SASRec):
            system.max_rounds, system.dim = 2, 16
    return evaluate(systems, sequences, content, EvaluationConfig(bootstrap=50, max_cases_per_user=1), max_cases=60)


@pytest.fixture
def folder(model: Rankloom, model_path: Path, tmp_path: Path) -> Path:
    log = (model_path / "training_log.jsonl").read_text(encoding="utf-8")
    model.save_pretrained(tmp_path / "model", extra={"training_log.jsonl": log})
    return tmp_path / "model"


def charts(page: str) -> list[dict[str, Any]]:
    found = re.search(r'<script type="application/json" id="report-data">(.*?)</script>', page, re.S)
    assert found is not None
    options: list[dict[str, Any]] = json.loads(found[1])["options"]
    assert len(options) == page.count('class="chart"')
    return options


def test_the_evaluation_names_every_system_and_both_text_variants(result: EvaluationResult) -> None:
    assert {row["system"] for row in result.rows} == set(SYSTEMS)
    assert {row["variant"] for row in result.rows if row["system"] == "sasrec"} == {"id", "id+text"}
    for metric in ("recall", "ndcg", "mrr"):
        for k in (5, 10, 50):
            both = [r["masked"] for r in result.rows if (r["system"], r["metric"], r["k"], r["slice"]) == ("cascade", metric, k, "all")]  # fmt: skip
            assert sorted(both) == [False, True]
    assert {entry["system"] for entry in result.seconds} == set(SYSTEMS)
    json.dumps(result.to_json(), allow_nan=False)


def test_the_report_shows_the_figures_it_was_given(result: EvaluationResult, folder: Path, tmp_path: Path) -> None:
    write_json(tmp_path / "evaluation.json", result.to_json())
    page = write_report(folder, tmp_path / "report.html", latency_seconds=0).read_text(encoding="utf-8")
    options = charts(page)
    assert len(options) >= 14
    recall = next(option for option in options if any(s.get("type") == "custom" for s in option["series"]))
    names = recall["xAxis"]["data"]
    assert {"rankloom", "cascade", "sasrec id", "sasrec id+text"} <= set(names)
    masked = recall["series"][0]["data"]
    assert masked[names.index("cascade")] == pytest.approx(result.value("cascade", "recall", 10, masked=True), abs=1e-5)
    value = result.value("cascade", "recall", 50, masked=False)
    assert re.search(rf"<tr><th>cascade</th>.*?<td>{value:.4f}</td>", page)
    assert "p50" in page
    assert "p90" in page
    assert "p99" in page
    assert "no network, no HTTP" in page
    assert any(series["type"] == "treemap" for option in options for series in option["series"])


def test_it_is_one_offline_file(folder: Path, tmp_path: Path) -> None:
    page = write_report(folder, tmp_path / "report.html", latency_seconds=0).read_text(encoding="utf-8")
    markup = re.sub(r"<script.*?</script>", "", page, flags=re.S)
    assert not re.search(r"(?:src|href)=\"(?!#)", markup)
    assert "url(" not in markup
    assert len(page) < 3_000_000
    # nothing was evaluated: the section says what to run
    assert "rankloom evaluate" in markup


def test_what_was_not_measured_stands_at_the_end_and_says_how(folder: Path, tmp_path: Path) -> None:
    page = write_report(folder, tmp_path / "report.html", latency_seconds=0).read_text(encoding="utf-8")
    sections = re.findall(r'<section id="([\w-]+)"', page)
    assert sections == re.findall(r'<a href="#([\w-]+)"', page)
    assert sections[-1] == "quality"
    missing = re.search(r'<p class="missing">(.*?)</p>', page)
    assert missing is not None
    assert f"rankloom evaluate {folder} SHOP --baselines --out {tmp_path / 'evaluation.json'}" in missing[1]


def test_captions_tell_of_the_last_bar_only_where_it_is_there(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def caption(title: str) -> str:
        page = write_report(folder, tmp_path / "report.html", latency_seconds=0).read_text(encoding="utf-8")
        found = re.search(rf"<figcaption><b>{title}</b>(.*?)</figcaption>", page)
        assert found is not None
        return found[1]

    assert "last bar" not in caption("Collisions: items per semantic ID")
    monkeypatch.setattr("rankloom.evaluation.report._FULLEST", 1)
    assert "The last bar is 1 and more." in caption("Collisions: items per semantic ID")


def test_an_axis_of_counts_begins_at_one_and_bars_end_with_the_longest_history(model: Rankloom) -> None:
    shape = {"history_lengths": [0, 4, 2, *[0] * 58], "popularity_rank": [1, 2, 3], "popularity_count": [9, 1, 0]}
    model.metadata["shape"] = shape
    lengths, popularity, *_ = _data(model)
    assert lengths.option["series"][0]["data"] == [0, 4, 2]
    assert "more" not in lengths.sentence
    assert popularity.option["series"][0]["data"] == [(1, 9), (2, 1)]
    assert popularity.option["yAxis"]["min"] == 1
    assert "nobody took" in popularity.sentence
    shape["history_lengths"][60] = 3
    assert "the last bar is 60 and more" in _data(model)[0].sentence


@given(st.lists(st.booleans(), max_size=9))
def test_no_row_of_charts_is_half_empty(wide: list[bool]) -> None:
    placed = _in_rows([Chart(str(n), "", {}, own) for n, own in enumerate(wide)])
    assert [chart.title for chart in placed] == [str(n) for n in range(len(wide))]
    runs = "".join("W" if chart.wide else "n" for chart in placed).split("W")
    assert all(len(run) % 2 == 0 for run in runs)
    assert all(chart.wide for chart, own in zip(placed, wide, strict=True) if own)


def test_titles_and_categories_cannot_break_out_of_the_page(model: Rankloom, tmp_path: Path) -> None:
    evil = "</script><img src=x onerror=alert(1)>"
    path = pl.Series([["root", evil, evil]] * model.items.height, dtype=pl.List(pl.String()))
    model.items = model.items.with_columns(path.alias("category"))
    model.save_pretrained(tmp_path / "model")
    page = write_report(tmp_path / "model", tmp_path / "report.html", latency_seconds=0).read_text(encoding="utf-8")
    assert evil not in page
    assert any(evil in json.dumps(option) for option in charts(page))


def test_a_broken_evaluation_is_told_and_nothing_is_written(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "evaluation.json").write_text("{half")
    with pytest.raises(RankloomError, match="not valid JSON"):
        write_report(folder, tmp_path / "report.html", latency_seconds=0)
    assert not (tmp_path / "report.html").exists()


def test_where_nothing_can_be_written_nothing_is_measured(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rankloom.evaluation.report.measure_latency", lambda *_, **__: pytest.fail("it was measured"))
    (tmp_path / "file").write_text("")
    for out in (Path("/proc/x.html"), tmp_path, tmp_path / "file" / "x.html"):
        with pytest.raises(RankloomError, match="cannot be written") as refused:
            write_report(folder, out)
        assert ".tmp-" not in str(refused.value)


def test_latency_is_that_of_single_requests(model: Rankloom) -> None:
    took = measure_latency(model, n=25, seconds=0.0)
    assert len(took) == 20
    assert (took > 0).all()
    assert np.isfinite(took).all()
