"""Broken input is refused whole: a sample of the benchmark's cases, and random damage to the bytes of good sources."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rankloom.data.importing import FORMATS, import_data
from rankloom.errors import RankloomError
from tests.test_benchmarks import load

sources = load("_sources")
broken = load("broken_inputs")
SAMPLE = broken.draw(64)


def test_there_are_two_hundred_cases_over_every_format() -> None:
    drawn = broken.draw(broken.N_CASES)
    assert len({case.name for case in drawn}) == 200
    assert {sources.SOURCES[case.source][0] for case in drawn} == set(FORMATS)
    assert len({case.damage for case in drawn}) >= 40
    assert [case.name for case in drawn[:64]] == [case.name for case in SAMPLE], "drawn with a fixed seed"


@pytest.mark.parametrize("case", SAMPLE, ids=lambda case: case.name)
def test_broken_input_gives_a_clear_error_and_writes_nothing(tmp_path: Path, case: object) -> None:
    outcome = broken.run(case, tmp_path)
    assert outcome.faults == (), outcome.said


def test_the_harness_notices_what_is_not_refused(tmp_path: Path) -> None:
    sound = broken.Case("csv", "items.csv", "nothing", lambda folder: None)
    outcome = broken.run(sound, tmp_path)
    assert {"exit status 0", "no fact", "no place", "no action", "something was written"} == set(outcome.faults)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    name=st.sampled_from(sorted(sources.SOURCES)),
    which=st.integers(0, 5),
    edits=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.binary(min_size=0, max_size=4), st.integers(0, 3)), min_size=1, max_size=4),
)  # fmt: skip
def test_any_damage_to_bytes_is_imported_or_refused_never_half_done(
    name: str, which: int, edits: list[tuple[float, bytes, int]]
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        format, source = sources.write(name, Path(folder) / "source")
        files = sorted(path for path in source.rglob("*") if path.is_file())
        path = files[which % len(files)]
        raw = bytearray(path.read_bytes())
        for place, new, gone in edits:
            at = int(place * len(raw))
            raw[at : at + gone] = new
        path.write_bytes(bytes(raw))
        out = Path(folder) / "out" / "shop"
        refused: RankloomError | None = None
        try:
            import_data(format, source, out)
        except RankloomError as error:
            refused = error
        if refused is None:
            assert (out / "shop.json").exists()
        else:
            assert refused.place
            assert refused.action
            assert not out.exists()
            assert list(out.parent.glob(".*")) == []
