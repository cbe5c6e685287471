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


def test_a_cache_that_follows_the_wrong_beam_is_found(decoding: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    reorder = decoding.LazyDecoder.reorder
    monkeypatch.setattr(decoding.LazyDecoder, "reorder", lambda model, cache, parent: reorder(model, cache, parent * 0))
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
