"""The search ablation: what its variants read, how settings are joined, and when its check of signs holds."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from rankloom.onesearch.settings import OneSearchConfig
from tests.test_benchmarks import load

ablation: Any = load("search_ablation")


def test_every_ablation_of_the_paper_is_a_variant_whose_settings_differ() -> None:
    assert set(ablation.ABLATIONS) <= {*ablation.TRAINED, *ablation.DERIVED}
    configs = [
        OneSearchConfig.model_validate(ablation._merged(ablation.BASE, changes)) for changes in ablation.TRAINED.values()
    ]
    assert len({config.model_dump_json() for config in configs}) == len(ablation.TRAINED)
    by_name = dict(zip(ablation.TRAINED, configs, strict=True))
    assert not by_name["no short sequence"].behaviour.short
    assert by_name["hashed uid"].behaviour.uid == "hashed"
    assert not by_name["no opq"].opq
    assert by_name["no s2"].stages.s2_steps == 0


def test_derived_variants_are_read_from_the_weights_of_full() -> None:
    every = [*ablation.TRAINED, *ablation.DERIVED]
    assert ablation._weights(every) == [*ablation.TRAINED, "sft"]
    assert ablation._readings("full", every) == [("full", "selected"), ("no selection", "generator")]
    assert ablation._readings("sft", every) == [("no adaptive reward", "selected"), ("generator alone", "generator")]
    assert ablation._weights(["generator alone"]) == ["sft"]
    assert ablation._readings("no s2", every) == [("no s2", "selected"), ("no s2, generator", "generator")]


def test_parts_of_the_generator_are_judged_in_its_order() -> None:
    judged = {name: ablation._judged(name) for name in ablation.ABLATIONS}
    assert judged["no s2"] == ("no selection", "no s2, generator")
    assert judged["no adaptive reward"] == ("no selection", "generator alone")
    assert judged["no selection"] == ("full", "no selection")


def test_settings_of_the_command_line_are_typed_and_win() -> None:
    typed = ablation._typed(["stages.s3_steps=9", "behaviour.uid=none", "stages.s1_steps=1"])
    assert typed == {"stages": {"s3_steps": 9, "s1_steps": 1}, "behaviour": {"uid": "none"}}
    merged = ablation._merged({"stages": {"s3_steps": 1, "s2_steps": 2}}, typed)
    assert merged["stages"] == {"s3_steps": 9, "s2_steps": 2, "s1_steps": 1}


@pytest.mark.parametrize(("n_worse", "ok"), [(6, True), (5, True), (4, False)])
def test_five_signs_are_asked_for(n_worse: int, ok: bool) -> None:
    def cell(place: int) -> dict[str, Any]:
        return {"rank": [place] * 4, "user": [0, 1, 2, 3], "count": [9] * 4, "seed": 0}

    found = {("category", "full"): [cell(0)], ("category", "no selection"): [cell(5)]}
    others = [worse for better, worse in map(ablation._judged, ablation.ABLATIONS) if better == "no selection"]
    for number, name in enumerate(others):
        # selection itself is one of the six
        found["category", name] = [cell(9 if number < n_worse - 1 else 1)]
    found["category", "bm25 (default)"] = [cell(99)]
    checks: list[tuple[str, Any, bool]] = []

    class Bench:
        def row(self, **values: Any) -> None:
            assert values["low"] <= values["value"] <= values["high"]

        def check(self, name: str, value: Any, *, at_least: Any = None, target: Any = None, ok: bool | None = None) -> None:
            checks.append((name, value, value >= at_least if ok is None else ok))

    ablation._checks(Bench(), "set", "category", found)
    assert checks[-1][1:] == (n_worse, ok)
    assert "mrr@10" in checks[-1][0]
    assert checks[0] == ("set, category queries: full over bm25 (default), hr@10, paired", "+1.0000 (+1.0000 .. +1.0000)", True)


def test_a_cell_tells_its_figures() -> None:
    cell = {"rank": [0, 15, 400, 9], "count": [1, 9, 9, 2]}
    assert ablation._numbers(cell) == pytest.approx([0.5, 0.75, 0.75, np.mean([1, 0, 0, 0.1]), 1.0])
