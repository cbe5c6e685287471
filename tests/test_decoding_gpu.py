"""The benchmark of the graph engine: it says where it cannot run, and its measuring works on whatever runs recordings."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from rankloom.decoding import beam as beam_module
from rankloom.decoding import graph_engine
from rankloom.decoding.beam import BeamResult
from rankloom.models import lazy_decoder
from tests.decoding.graph_rules import TapeRecorder
from tests.test_benchmarks import bench, load

gpu = load("decoding_gpu")
RATE = {"fp32": 1e9, "bf16": 4e9, "bytes": 1e8, "gap": 1e-3}


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_without_a_device_it_says_so_in_a_line_and_ends_with_status_1(tmp_path: Path) -> None:
    with pytest.raises(SystemExit) as told:
        gpu.main(["--quick", "--json", str(tmp_path / "out.json"), "--cells", str(tmp_path)])
    # Python ends with status 1 for a message
    assert told.value.code == gpu.NO_DEVICE
    assert "CUDA" in gpu.NO_DEVICE
    assert "\n" not in gpu.NO_DEVICE
    assert not (tmp_path / "out.json").exists()


class WallClock(gpu.Clock):  # type: ignore[misc, name-defined]
    def ms(self, work: Callable[[], Any]) -> float:
        begun = time.perf_counter()
        work()
        return (time.perf_counter() - begun) * 1e3


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_shape_is_measured_and_compared_with_the_eager_engine(
    precision: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (beam_module, lazy_decoder):
        monkeypatch.setattr(module, "use_graph", lambda engine, device: engine == "graph")
    monkeypatch.setattr(graph_engine, "recorder_for", lambda device: TapeRecorder())
    model, index = gpu.build(n_items=400, places=12, preset="tiny")
    model.items.tabulate()
    shape = {"batch": 2, "beam": 16, "places": 12, "precision": precision}
    own = gpu.measure(model, index, repeats=3, seed=0, clock=WallClock(), kernels=lambda work: 40, **shape)
    assert own["p99"] >= own["p50"] > 0
    run = bench(tmp_path)
    gpu.report(run, model, RATE, own, **shape)
    metrics = {row["metric"]: row["value"] for row in run.rows}
    assert metrics["launch floor, ms"] == pytest.approx(0.04)
    assert metrics["search over the floor"] == pytest.approx(own["p50"] / max(0.04, metrics["arithmetic floor, ms"]))
    assert metrics["MFU, %"] > 0
    if precision == "fp32":
        assert own["both"] == own["placed"] == 1
        assert all(check["ok"] for check in run.checks)
    else:
        assert [check["target"] for check in run.checks] == ["<= 2.0"]


def test_the_floor_is_what_is_multiplied_or_read() -> None:
    model, _ = gpu.build(n_items=50, places=10, preset="tiny")
    one = gpu.arithmetic(model, 1, 8, 10, RATE, "fp32")
    many = gpu.arithmetic(model, 4, 8, 10, RATE, "fp32")
    assert many["operations"] == pytest.approx(4 * one["operations"])
    # 2 layers of 18 D^2, 4 N D for attention, a head of 64 codes; two codes after BOS
    row = 2 * 2 * 18 * 32**2 + 4 * 2 * 10 * 32 + 2 * 32 * 64
    pathway = (32 + 5 * 8) * 32 + 32 * 32
    assert one["operations"] == pytest.approx(2 * 10 * pathway + row + 2 * 8 * row)
    slow = gpu.arithmetic(model, 1, 8, 10, {**RATE, "bytes": 1.0}, "bf16")
    assert slow["ms"] == pytest.approx(3 * (2 * (2 * 18 * 32**2 + 32 * 64) + 10 * 32 * 2))


def test_beams_are_compared_by_item_and_place() -> None:
    def result(leaves: list[int], scores: list[float]) -> BeamResult:
        return BeamResult(torch.tensor([leaves]), torch.zeros(1, len(leaves), 1), torch.tensor([scores]))

    twin = result([4, 2, 9, -1], [-1.0, -2.0, -3.0, float("-inf")])
    assert gpu.alike(twin, twin) == {"both": 1.0, "placed": 1.0, "apart": 0.0}
    found = gpu.alike(result([2, 4, 7, -1], [-1.0, -1.5, -3.0, float("-inf")]), twin)
    assert found == {"both": pytest.approx(2 / 3), "placed": 0.0, "apart": 1.0}
