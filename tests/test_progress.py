"""Progress says how far, how fast and how long still."""

from __future__ import annotations

import pytest

from rankloom import progress
from rankloom.progress import Progress, format_seconds, track


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def test_short_work_says_nothing(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    with Progress("reading", 10) as running:
        for _ in range(10):
            clock[0] += 0.19
            running.advance()
    assert capsys.readouterr().err == ""


def test_long_work_says_done_of_total_and_the_time_left(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    running = Progress("reading", 300, unit="files")
    clock[0] += 10
    running.advance(100, note="all well")
    assert capsys.readouterr().err == "reading: 100/300 files (33%), ETA 0:20, all well\n"
    clock[0] += 5
    running.advance(50)
    assert capsys.readouterr().err == ""  # a log gets a line every ten seconds
    clock[0] += 5
    running.advance(50)
    assert capsys.readouterr().err == "reading: 200/300 files (67%), ETA 0:10\n"


def test_a_resumed_run_counts_what_was_done_and_not_its_speed(
    clock: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    running = Progress("training", 1000, unit="steps", done=900)
    clock[0] += 10
    running.advance(10)
    assert capsys.readouterr().err == "training: 910/1,000 steps (91%), ETA 1:30\n"


def test_work_of_unknown_length_says_its_rate(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    running = Progress("importing", unit="rows")
    clock[0] += 4
    running.advance(8000)
    assert capsys.readouterr().err == "importing: 8,000 rows, 2,000/s, 0:04 so far\n"
    clock[0] += 100
    Progress("importing", quiet=True).advance()
    assert capsys.readouterr().err == ""


def test_tracking_yields_everything(clock: list[float]) -> None:
    assert list(track(iter("abc"), "letters")) == ["a", "b", "c"]


@pytest.mark.parametrize(("seconds", "text"), [(-3, "0:00"), (75, "1:15"), (3700, "1:01:40"), (59.6, "1:00")])
def test_times_read_like_a_clock(seconds: float, text: str) -> None:
    assert format_seconds(seconds) == text
