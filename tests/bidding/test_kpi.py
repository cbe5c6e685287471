"""A figure is held at its reference, from either side, without winding up."""

from __future__ import annotations

import numpy as np
import pytest

from rankloom.bidding.controllers.kpi import KpiPID, hold, step_response
from rankloom.errors import RankloomError


@pytest.mark.parametrize("reference", [0.2, 0.5, 0.8])
@pytest.mark.parametrize("start", [0.25, 4.0])
def test_a_win_rate_settles_at_its_reference(reference: float, start: float) -> None:
    def play(_: int, factor: float) -> float:
        bid = start * factor
        return bid / (bid + 1)

    figures = hold(KpiPID(reference), play, 40)
    found = step_response(figures, reference)
    assert found.settling < 40  # the horizon in which all nine campaigns of the paper settle
    assert found.overshoot < 0.3
    assert abs(figures[-1] / reference - 1) < 0.1


def test_a_reference_out_of_reach_winds_nothing_up() -> None:
    """However long nothing can be won, the bid comes down from its clamp as fast afterwards."""

    def back_after(idle: int) -> int:
        def play(each: int, factor: float) -> float:
            return 0.0 if each < idle else factor / (factor + 0.2)

        figures = hold(KpiPID(0.5, highest=1.0), play, idle + 40)
        return int(np.argmax(np.abs(figures[idle:] / 0.5 - 1) < 0.1))

    assert back_after(10) == back_after(50) > 0


def test_the_response_is_measured_as_the_paper_does() -> None:
    found = step_response(np.array([0.2, 0.6, 1.2, 0.95, 1.0, 1.0]), 1.0)
    assert (found.rise, found.settling) == (3, 3)
    assert step_response(np.array([0.2, 0.95, 1.25, 1.0]), 1.0).overshoot == pytest.approx(0.25)
    assert step_response(np.zeros(5), 1.0).settling == 5


def test_a_round_without_news_raises_the_bid_and_a_bad_reference_is_refused() -> None:
    pid = KpiPID(0.5)
    assert pid.update(float("nan")) > 0
    with pytest.raises(RankloomError, match="reference"):
        KpiPID(0.0)
