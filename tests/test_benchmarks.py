"""The helpers that benchmarks share: cells are measured once, stale ones again; checks gate; JSON is tidy."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from rankloom import compiling
from rankloom.data.sequences import TEST, load_sequences
from rankloom.data.shop import Shop
from rankloom.recommender import Rankloom

ROOT = Path(__file__).resolve().parent.parent


def load(name: str) -> ModuleType:
    """A benchmark as a module, found the way `python benchmarks/NAME.py` finds its neighbours."""
    folder = str(ROOT / "benchmarks")
    if folder not in sys.path:
        sys.path.insert(0, folder)
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, ROOT / "benchmarks" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


common = load("_common")


def bench(tmp_path: Path, *flags: str) -> Any:
    return common.Benchmark.from_args("sample", argv=["--cells", str(tmp_path), *flags], sources=("benchmarks",))


def test_a_finished_cell_is_not_measured_twice(tmp_path: Path) -> None:
    calls: list[int] = []

    def measure() -> dict[str, int]:
        calls.append(1)
        return {"recall": len(calls)}

    assert bench(tmp_path).cell({"seed": 0}, measure) == {"recall": 1}
    assert bench(tmp_path).cell({"seed": 0}, measure) == {"recall": 1}
    assert bench(tmp_path).cell({"seed": 1}, measure) == {"recall": 2}
    assert bench(tmp_path, "--fresh").cell({"seed": 0}, measure) == {"recall": 3}
    assert bench(tmp_path, "--quick").cell({"seed": 0}, measure) == {"recall": 4}


def test_fresh_measures_once_a_run(tmp_path: Path) -> None:
    run = bench(tmp_path, "--fresh")
    values = iter([1, 2])
    assert run.cell({"a": 1}, lambda: next(values)) == 1
    assert run.cell({"a": 1}, lambda: next(values)) == 1


def test_a_failed_measurement_leaves_no_cell(tmp_path: Path) -> None:
    store = common.CellStore(tmp_path / "cells")
    with pytest.raises(ZeroDivisionError):
        store.run({"seed": 0}, lambda: 1 // 0)
    assert store.get({"seed": 0}) is None
    assert store.run({"seed": 0}, lambda: 7) == 7


def test_changed_sources_are_measured_again_unless_told_not_to(tmp_path: Path) -> None:
    source = tmp_path / "code"
    source.mkdir()
    (source / "a.py").write_text("x = 1\n")
    before = common.fingerprint([source])
    common.CellStore(tmp_path / "cells", fingerprint=before).put({"k": 1}, "old")
    (source / "a.py").write_text("x = 2\n")
    after = common.fingerprint([source])
    assert before != after
    assert common.CellStore(tmp_path / "cells", fingerprint=after).get({"k": 1}) is None
    assert common.CellStore(tmp_path / "cells", fingerprint=after, keep_stale=True).get({"k": 1}) == "old"


def test_a_broken_cell_is_measured_again(tmp_path: Path) -> None:
    store = common.CellStore(tmp_path)
    store.put({"k": 1}, 5)
    store.path({"k": 1}).write_text("{half")
    assert store.run({"k": 1}, lambda: 6) == 6


@pytest.mark.parametrize(
    ("bounds", "value", "ok"),
    [
        ({"at_least": 0.5}, 0.5, True),
        ({"at_least": 0.5}, 0.49, False),
        ({"at_most": 12}, 12, True),
        ({"at_most": 12}, 12.1, False),
        ({"target": 0}, 0, True),
        ({"target": 0}, 1, False),
        ({"at_least": 0.5}, None, False),
        ({"target": "interval excludes 0", "ok": True}, 0.2, True),
    ],
)
def test_checks_compare_and_gate_the_exit_status(tmp_path: Path, bounds: dict[str, Any], value: Any, ok: bool) -> None:
    run = bench(tmp_path)
    assert run.check("figure", value, **bounds) is ok
    assert run.finish() == (0 if ok else 1)


def test_a_check_needs_exactly_one_bound(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="exactly one"):
        bench(tmp_path).check("figure", 1, at_least=0, at_most=2)


def test_json_is_tidy_and_plain(tmp_path: Path) -> None:
    out = tmp_path / "result.json"
    run = bench(tmp_path, "--json", str(out))
    run.row(value=np.float64(0.25), n=np.int64(4), k=10, system="rankloom", metric="recall", seed=3)
    run.check("above the floor", np.float64(0.25), at_least=0.2)
    assert run.finish() == 0
    result = json.loads(out.read_text())
    assert list(result["rows"][0]) == ["system", "metric", "k", "value", "n", "seed"]
    assert result["rows"][0]["value"] == 0.25
    assert result["checks"] == [{"name": "above the floor", "value": 0.25, "target": ">= 0.2", "ok": True}]
    assert result["machine"]["cores"] >= 1
    assert {"name", "machine", "rows", "checks"} <= set(result)


def test_json_alone_goes_to_standard_output(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = bench(tmp_path, "--json")
    run.row(system="a", value=1.0)
    run.finish()
    assert json.loads(capsys.readouterr().out)["rows"] == [{"system": "a", "value": 1.0}]


def test_quick_measures_one_seed(tmp_path: Path) -> None:
    assert bench(tmp_path, "--seeds", "4", "5").seeds == [4, 5]
    assert bench(tmp_path, "--seeds", "4", "5", "--quick").seeds == [4]


def test_missing_data_says_how_to_point_to_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANKLOOM_DATA", str(tmp_path))
    (tmp_path / "here").mkdir()
    assert common.data_folder("here") == tmp_path / "here"
    with pytest.raises(SystemExit, match="RANKLOOM_DATA"):
        common.data_folder("absent", "items.parquet")


# -- benchmarks that look for faults find them


@pytest.fixture(scope="module")
def decoding() -> ModuleType:
    return load("decoding_exact")


def test_exact_decoding_is_told_exact(decoding: ModuleType) -> None:
    found = decoding.invalid("tiny", "filter and exclusions", 300, 16, 0)
    assert found["generated"] >= 300
    assert (found["invalid"], found["missing"], found["items"]) == (0, 0, 0)
    for twin in decoding.equalities("tiny", 60, 0).values():
        assert twin["order"]
        assert twin["ulp"] <= decoding.ULP_LIMIT


def test_a_filter_that_is_not_applied_is_found(decoding: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    requests = decoding.MaskIndex.requests
    monkeypatch.setattr(decoding.MaskIndex, "requests", lambda own, filters, excluded: requests(own, [None] * len(filters)))
    found = decoding.invalid("tiny", "comparison", 300, 16, 0)
    assert found["invalid"] > 0


def test_a_beam_that_stops_early_is_found(decoding: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    search = decoding.beam_search

    def narrow(*args: Any, beam: list[int], **options: Any) -> Any:
        return search(*args, beam=[max(1, width - 1) for width in beam], **options)

    monkeypatch.setattr(decoding, "beam_search", narrow)
    assert decoding.invalid("tiny", "none", 300, 16, 0)["missing"] > 0


@pytest.mark.parametrize("engine", ["eager", "compiled"])
def test_a_cache_that_follows_the_wrong_beam_is_found(decoding: ModuleType, monkeypatch: pytest.MonkeyPatch, engine: str) -> None:
    model: Any = decoding.LazyDecoder
    if engine == "eager":
        monkeypatch.setattr(compiling, "available", lambda: False)
    else:
        if not compiling.available():
            pytest.skip("numba is not installed")
        from rankloom.models.compiled import CompiledSteps

        model = CompiledSteps
    reorder = model.reorder
    monkeypatch.setattr(model, "reorder", lambda own, cache, parent: reorder(own, cache, parent * 0))
    twins = decoding.equalities("tiny", 60, 0)
    assert twins["cached against recomputed"]["ulp"] > decoding.ULP_LIMIT


def test_a_killed_training_is_told_by_what_it_left(tmp_path: Path) -> None:
    crash = load("crash_training")
    out = tmp_path / "model"
    assert crash.whole_or_absent(out)
    assert crash.place_of_death(out) == "starting"
    (tmp_path / "model.training").mkdir()
    (tmp_path / "model.training" / "run.json").touch()
    assert crash.place_of_death(out) == "reading and tokenising"
    (tmp_path / "model.training" / "checkpoint.safetensors").touch()
    assert crash.place_of_death(out) == "training or choosing weights"
    (tmp_path / ".model.tmp-1").mkdir()
    assert crash.place_of_death(out) == "export"
    out.mkdir()
    (out / "config.json").touch()
    assert not crash.whole_or_absent(out)


def test_a_lost_event_and_a_person_who_came_back_are_found(tmp_path: Path) -> None:
    from rankloom.serving.sqlite_store import SqliteStore
    from tests.serving.stores import event

    crash = load("serving_crash")
    books = crash.Books(tmp_path / "s")
    store = SqliteStore(tmp_path / "s")
    store.append([event("a"), event("b", user="victim")])
    store.close()
    books.read(["e a\n"])
    books.compare()
    assert (books.lost, books.back, books.unfinished) == (set(), 0, 0)
    books.read(["e a gone\n", "d 2 7\n", "f victim\n"])
    books.compare()
    assert books.lost == {"gone", "item2 = 7"}
    assert books.back == 2  # no tombstone, and the events are there


def test_the_oracle_of_random_rules_agrees_with_the_filter_language() -> None:
    import random

    import polars as pl

    from rankloom.data.filters import parse_filter

    rules = load("_rules")
    rng = random.Random(3)
    rows = [
        {
            "item_id": f"i{n}", "title": rng.choice(("Red lamp", "blue TEA", "\u7ea2\u8336 cup")), "brand": rng.choice(("A", "B", None)),
            "category": rng.choice((["x", "y"], ["z"], None)), "price_micros": rng.choice((None, rng.randrange(10**8))),
            "duration_s": rng.choice((None, rng.random() * 100)), "in_stock": rng.choice((True, False, None)),
        }
        for n in range(60)
    ]  # fmt: skip
    frame = pl.DataFrame(rows, infer_schema_length=None)
    for _ in range(400):
        text, oracle = rules.random_rule(rng, rows)
        assert parse_filter(text).mask(frame).tolist() == [oracle(row) for row in rows], text


def test_reliability_sections_are_replaced_one_by_one_and_not_by_quick_runs(tmp_path: Path) -> None:
    report = load("_report")
    page = tmp_path / "page.md"
    run = bench(tmp_path)
    run.check("events lost", 0, target=0)
    report.publish(run, "load", "First", page=page)
    report.publish(run, "crash", "Second", page=page)
    report.publish(run, "load", "Third", page=page)
    text = page.read_text()
    assert "First" not in text
    assert text.index("Second") < text.index("Third")
    assert "| events lost | 0 | 0 | holds |" in text
    report.publish(bench(tmp_path, "--quick"), "load", "Quick", page=page)
    assert page.read_text() == text


def test_a_broken_server_is_found_by_random_rules(model_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import asyncio

    from rankloom.serving.service import Service

    fuzz = load("serving_fuzz")
    found = asyncio.run(fuzz.rules(model_path, 100, 0, lies=0.5))
    assert not any(found[name] for name in ("rule broken", "excluded shown", "seen shown", "repeated", "5xx"))
    # without the guard, what a model that forgets the rules says is shown
    monkeypatch.setattr(Service, "_guard", lambda own, prepared, shown: ([s for s in shown if s.row >= 0], 0))
    found = asyncio.run(fuzz.rules(model_path, 100, 0, lies=0.5))
    assert found["rule broken"]
    assert found["seen shown"]


def test_known_items_are_asked_for_and_the_switch_is_measured(model_path: Path) -> None:
    known = load("search_known")
    rows = known.measure(model_path, 8, 4)
    value = {(row["system"], row["queries"], row["k"]): row["value"] for row in rows}
    assert {queries for _, queries, _ in value} == {"whole title", "two rarest words", "new word", "new title"}
    assert value["rankloom", "whole title", 1] == value["rankloom", "new word", 1] == 1.0
    assert all(value[system, queries, 1] <= value[system, queries, 10] for system, queries, _ in value)
    assert len({known.made_word(n) for n in range(200)}) == 200
    assert known.rarest("red kettle of steel", {"red": 9, "kettle": 1, "of": 50, "steel": 2}) == "kettle steel"


def test_searches_of_both_languages_are_asked_apart(bazaar: Shop, model_path: Path) -> None:
    both = load("search_bazaar")
    found = both.measure(model_path, bazaar.path)
    assert set(found) == {"Chinese", "English"}
    sequences = load_sequences(bazaar, Rankloom.from_pretrained(model_path).config.data)
    asked = both.searches(sequences, TEST)
    assert sum(len(own["user"]) for own in found.values()) == len(asked) > 0
    for user, row, target in zip(asked.cases.user, asked.cases.row, asked.cases.target, strict=True):
        assert target not in sequences.item[sequences.offsets[user] : row]
    for own in found.values():
        assert {len(rank) for rank in own["rank"].values()} == {len(own["user"])}
