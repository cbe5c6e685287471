"""The benchmarks on WANDS, ESCI and KuaiSearch-Lite, run whole on small sets in the same files; what they refuse, and how."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from rankloom.errors import RankloomError
from tests import judged_sets
from tests.test_benchmarks import load

common: Any = load("_common")
judged: Any = load("_judged")
engines: Any = load("_judged_engines")
files: Any = load("_judged_files")
wands: Any = load("search_wands")
esci: Any = load("search_esci")
kuaisearch: Any = load("search_kuaisearch")


def run(module: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, data: Path, *flags: str) -> dict[str, Any]:
    """Rows and all of a quick run."""
    out = tmp_path / "out.json"
    kept = ["--cells", str(tmp_path / "cells"), "--folder", str(tmp_path / "models")]
    monkeypatch.setattr(sys, "argv", ["benchmark", "--data", str(data), "--quick", "--json", str(out), *kept, *flags])
    assert judged.guarded(module.main) == 0
    result: dict[str, Any] = json.loads(out.read_text())
    return result


def figure(
    result: dict[str, Any], system: str, metric: str, k: int, gains: str = "", variant: str | None = None
) -> float:
    found = [
        row["value"]
        for row in result["rows"]
        if (row["system"], row["metric"], row["k"], row.get("gains") or "") == (system, metric, k, gains)
        and (row["variant"] == variant if variant else not row["variant"].startswith("minus"))
    ]
    assert len(found) == 1
    return float(found[0])


def test_wands_is_asked_in_folds_and_kept_cells_are_not_measured_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    data = judged_sets.wands(tmp_path / "WANDS")
    result = run(wands, monkeypatch, tmp_path, data)
    systems = {row["system"] for row in result["rows"]}
    assert systems == {"bm25", "dense", "rrf", "aligned", "joined", "rankloom", "rankloom-generator"}
    assert {row["n"] for row in result["rows"]} == {15}
    # every right product has the words of its query, but for three queries that say crimson instead of red
    for variant in ("default", "default, all text", "tuned"):
        assert 0.9 < figure(result, "bm25", "ndcg", 10, "exact 1, partial .5", variant) < 1
    assert figure(result, "rankloom", "ndcg", 10, "exact 1, partial .5") > 0.5
    gap = figure(result, "rankloom", "ndcg", 10, "2^g - 1", "minus bm25, tuned")
    both = [figure(result, "rankloom", "ndcg", 10, "2^g - 1"), figure(result, "bm25", "ndcg", 10, "2^g - 1", "tuned")]
    assert gap == pytest.approx(both[0] - both[1], abs=1e-6)
    said = capsys.readouterr().out
    assert "query.csv has 15 rows, the published one 480" in said
    assert "fold 2: rankloom" in said
    monkeypatch.setattr(engines.Engines, "lists", lambda *_: pytest.fail("a kept cell is measured again"))
    again = run(wands, monkeypatch, tmp_path, data)
    assert again["rows"] == result["rows"]


def test_esci_asks_the_test_queries_of_the_locale_in_the_small_version(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = judged_sets.esci(tmp_path / "esci-data")
    result = run(esci, monkeypatch, tmp_path, data)
    assert {row["n"] for row in result["rows"]} == {5}
    assert figure(result, "bm25", "recall", 10, variant="tuned") > 0.9
    assert figure(result, "rankloom", "ndcg", 10, "E 1, S .1, C .01") > 0.4
    assert figure(result, "rrf", "ndcg", 10, "E 3, S 2, C 1") > 0.5


def test_kuaisearch_asks_for_the_person(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = judged_sets.kuaisearch(tmp_path / "KuaiSearch")
    result = run(kuaisearch, monkeypatch, tmp_path, data, "--engines", "bm25", "joined", "rankloom")
    own = [row for row in result["rows"] if not row.get("published")]
    assert {row["n"] for row in own} == {15}
    assert {(row["metric"], row["k"]) for row in own} == {
        (metric, k) for metric in ("hr", "recall") for k in (10, 20, 50)
    }
    # a kind has twenty items: words find them all; one item that was taken is in no file, and is missed by everybody
    words = figure(result, "bm25", "recall", 20, variant="tuned")
    assert words == pytest.approx((14 + 4 / 5) / 15, abs=1e-6)
    # which ten of them are better depends on the person
    assert figure(result, "rankloom", "recall", 10) > figure(result, "bm25", "recall", 10, variant="tuned") + 0.3
    published = {
        (row["system"], row["metric"], row["k"]): row["value"] for row in result["rows"] if row.get("published")
    }
    assert published["DPR-SDE", "hr", 10] == 0.1210
    assert (published["BM25", "recall", 10], published["LTRGR", "hr", 50]) == (0.0706, 0.2184)


# -- what is read --------------------------------------------------------------------------------------------------------


def test_wands_becomes_a_catalogue_and_graded_pairs(tmp_path: Path) -> None:
    study = wands.read(judged_sets.wands(tmp_path / "WANDS") / "dataset")
    item = study.items.row(3, named=True)
    assert item["title"] == "red coffee table 27.5 '' steel"
    assert item["category"] == ["Furniture", "Living Room", "Coffee Tables", "Accent Pieces"]
    assert item["description"] == 'a red coffee table , "made" of steel'
    assert item["attributes"] == [
        {"key": "color", "value": "red"},
        {"key": "material", "value": "steel"},
        {"key": "legs", "value": "4"},
    ]
    assert study.items["description"][0] is None
    own = study.questions.judged.take(np.asarray([0]))
    assert dict(zip(own.item.tolist(), own.grade.tolist(), strict=True)) == {
        0: 2, 1: 2, **dict.fromkeys(range(2, 10), 1), 10: 0, 11: 0,
    }  # fmt: skip
    assert study.whole
    parts = judged.folded(study, np.arange(15) % 5, "wands").parts
    assert [part.asked.tolist() for part in parts][1] == [1, 6, 11]
    for part in parts:
        assert set(part.learn.text).isdisjoint(study.questions.text[place] for place in part.asked)
        assert len(part.learn) == 12


def test_esci_leaves_out_other_locales_and_the_large_version(tmp_path: Path) -> None:
    data = judged_sets.esci(tmp_path / "esci-data")
    study = esci.read(data)
    assert len(study.questions) == 5
    assert len(study.parts[0].learn) == 10
    assert set(study.questions.text).isdisjoint(study.parts[0].learn.text)
    assert study.items.height == 60
    every = esci.read(data, catalogue="all")
    assert every.items.height == 61
    assert every.items["title"][60] == ""
    item = study.items.row(0, named=True)
    assert (item["title"], item["brand"], item["attributes"]) == (
        "Coffee Table, blue",
        "Acme",
        [{"key": "color", "value": "blue"}],
    )
    assert item["description"] == "made of oak\nblue\n A coffee table of oak"
    assert study.items["attributes"][1].to_list() == []
    assert study.items["brand"][1] is None


def test_kuaisearch_takes_of_a_session_are_right_and_histories_are_older(tmp_path: Path) -> None:
    study = kuaisearch.read(judged_sets.kuaisearch(tmp_path / "KuaiSearch"))
    item = study.items.row(0, named=True)
    assert (item["title"], item["brand"], item["category"]) == ("【高档】红色连衣裙新款", "金粟兰", ["百货", "连衣裙"])
    assert study.items["brand"].to_list()[1:3] == [None, None]
    assert item["attributes"] == [{"key": "seller", "value": "红色小店"}]
    asked = study.questions
    assert len(asked) == 15
    assert asked.judged.at_least(1).tolist() == [5] + [4] * 14
    assert asked.judged.item.max() == 120  # the item without a row lies beyond the catalogue
    for place, history in enumerate(asked.history):
        # the first person's first session took nothing
        assert len(history) == (12 if asked.user[place] == "0" else 16)
        times = [event.timestamp for event in history]
        assert times == sorted(times)
        assert times[-1] < asked.at[place]
        assert sum(event.event == "purchase" for event in history) == 1
        assert {event.surface for event in history} == {"search"}
    learn = study.parts[0].learn
    assert learn.judged.item.max() < 120
    assert np.bincount(learn.judged.grade).tolist() == [119 * 16, 119 * 4 - 30, 30]
    study.parts[0].log(tmp_path / "shop")
    events = pl.read_parquet(tmp_path / "shop" / "events.parquet")
    assert events["event"].value_counts(sort=True).rows() == [("click", 119 * 4 - 30), ("purchase", 30)]
    assert events["timestamp"].max() < min(asked.at)
    assert pl.read_parquet(tmp_path / "shop" / "users.parquet").height == 30


def test_a_smaller_catalogue_keeps_what_was_judged(tmp_path: Path) -> None:
    data = judged_sets.wands(tmp_path / "WANDS")
    study = wands.read(data, n_items=20, n_asked=2)
    whole = wands.read(data)
    assert not study.whole
    assert 20 <= study.items.height < 60
    ids, every = study.items["item_id"].to_list(), whole.items["item_id"].to_list()
    for place, text in enumerate(study.questions.text):
        at = whole.questions.text.index(text)
        own, other = study.questions.judged.take(np.asarray([place])), whole.questions.judged.take(np.asarray([at]))
        assert [ids[row] for row in own.item] == [every[row] for row in other.item]
        assert own.grade.tolist() == other.grade.tolist()


def test_the_log_of_a_set_without_people_is_strangers_who_take_what_is_right(tmp_path: Path) -> None:
    study = wands.read(judged_sets.wands(tmp_path / "WANDS"))
    part = judged.folded(study, np.arange(15) % 5, "wands").parts[0]
    part.log(tmp_path / "shop")
    events = pl.read_parquet(tmp_path / "shop" / "events.parquet")
    right = {
        (part.learn.text[q], study.items["item_id"][int(i)])
        for q, i, grade in zip(part.learn.judged.query, part.learn.judged.item, part.learn.judged.grade, strict=True)
        if grade == 2
    }
    assert set(events.select("query", "item_id").rows()) == right
    assert events["user_id"].value_counts()["count"].max() <= judged.TAKES_A_VISIT
    assert events.group_by("user_id").agg(pl.col("query").n_unique())["query"].max() == 1
    spans = (
        events.group_by("query")
        .agg(pl.col("timestamp").min().alias("a"), pl.col("timestamp").max().alias("b"))
        .sort("a")
    )
    assert (spans["a"][1:] > spans["b"][:-1]).all()


def test_fusion_is_the_sum_of_reciprocal_ranks() -> None:
    one, two = np.asarray([[4, 2, 7]]), np.asarray([[2, 9, -1]])
    # 2: 1/62 + 1/61; 4: 1/61; 9: 1/62; 7: 1/63
    assert engines.fuse([one, two], 5).tolist() == [[2, 4, 9, 7, -1]]


# -- what is refused -----------------------------------------------------------------------------------------------------

READERS: list[tuple[Any, Callable[[Path], Path], str, str]] = [
    (wands, judged_sets.wands, "dataset/label.csv", "github.com/wayfair/WANDS"),
    (
        esci,
        judged_sets.esci,
        "shopping_queries_dataset/shopping_queries_dataset_products.parquet",
        "github.com/amazon-science/esci-data",
    ),
    (kuaisearch, judged_sets.kuaisearch, "items_lite/train.jsonl", "benchen4395/KuaiSearch"),
]


@pytest.mark.parametrize(("module", "make", "name", "home"), READERS, ids=["wands", "esci", "kuaisearch"])
def test_a_missing_file_is_named_and_where_to_get_it(
    module: Any, make: Callable[[Path], Path], name: str, home: str, tmp_path: Path
) -> None:
    data = make(tmp_path / "set")
    (data / name).unlink()
    with pytest.raises(RankloomError, match=Path(name).name) as found:
        module.read(data)
    assert found.value.code == "data-missing"
    assert home in str(found.value)
    shutil.rmtree(data)
    with pytest.raises(RankloomError, match="no folder"):
        module.read(data)


@pytest.mark.parametrize(("module", "make", "name", "home"), READERS, ids=["wands", "esci", "kuaisearch"])
def test_a_git_lfs_pointer_is_called_one(
    module: Any, make: Callable[[Path], Path], name: str, home: str, tmp_path: Path
) -> None:
    data = make(tmp_path / "set")
    (data / name).write_text(judged_sets.POINTER)
    with pytest.raises(RankloomError, match="Git LFS pointer") as found:
        module.read(data)
    assert found.value.place == str(data / name)
    assert "git lfs pull" in (found.value.action or "")


def test_wrong_columns_are_named(tmp_path: Path) -> None:
    data = judged_sets.wands(tmp_path / "WANDS")
    path = data / "dataset" / "label.csv"
    path.write_text(path.read_text().replace("product_id", "sku", 1))
    with pytest.raises(RankloomError, match=r"no column product_id; it has id, query_id, sku, label"):
        wands.read(data)
    data = judged_sets.esci(tmp_path / "esci-data")
    path = data / "shopping_queries_dataset" / "shopping_queries_dataset_examples.parquet"
    pl.read_parquet(path).drop("esci_label", "split").write_parquet(path)
    with pytest.raises(RankloomError, match="no column esci_label, split"):
        esci.read(data)


def test_values_that_are_none_of_the_known_ones_are_named(tmp_path: Path) -> None:
    data = judged_sets.wands(tmp_path / "WANDS")
    path = data / "dataset" / "label.csv"
    path.write_text(path.read_text().replace("Partial", "Perfect", 1))
    with pytest.raises(RankloomError, match="'Perfect' is none of Irrelevant, Partial, Exact"):
        wands.read(data)
    path.write_text(path.read_text().replace("\t101\t", "\t\t", 1))
    with pytest.raises(RankloomError, match="a value is missing") as found:
        wands.read(data)
    assert "column query_id" in str(found.value.place)


def test_a_broken_line_and_a_broken_number_say_where(tmp_path: Path) -> None:
    data = judged_sets.kuaisearch(tmp_path / "KuaiSearch")
    path = data / "recall_lite" / "train.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines()
    path.write_text("\n".join([*lines[:6], lines[6][:-9], *lines[7:]]), encoding="utf-8")
    with pytest.raises(RankloomError) as found:
        kuaisearch.read(data)
    assert "line 7" in str(found.value.place)
    rows = [json.loads(line) for line in lines]
    rows[4]["time_index"] = "noon"
    judged_sets.write_lines(path, rows)
    with pytest.raises(RankloomError, match="'noon' is no whole number") as found:
        kuaisearch.read(data)
    assert "line 5, column time_index" in str(found.value.place)


def test_the_demo_without_test_sessions_is_called_what_it_is(tmp_path: Path) -> None:
    data = judged_sets.kuaisearch(tmp_path / "KuaiSearch")
    path = data / "recall_lite" / "train.jsonl"
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    judged_sets.write_lines(path, [row for row in rows if row["split"] == "train"])
    with pytest.raises(RankloomError, match="no test session"):
        kuaisearch.read(data)


def test_the_script_tells_what_is_wrong_without_a_traceback(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["search_wands", "--data", str(tmp_path), "--cells", str(tmp_path / "cells")])
    assert judged.guarded(wands.main) == 1
    said = capsys.readouterr().err
    assert "has no query.csv (nor dataset/query.csv)" in said
    assert "what to do: get WANDS: git clone https://github.com/wayfair/WANDS" in said
