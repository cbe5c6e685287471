"""One campaign in the live market, as Gymnasium wants it."""

from __future__ import annotations

import numpy as np
import pytest

gymnasium = pytest.importorskip("gymnasium", reason="the extra `bidding` is not installed")

from rankloom.bidding.environment import ID, BiddingEnv  # noqa: E402
from rankloom.bidding.market import MarketSettings  # noqa: E402
from rankloom.errors import RankloomError  # noqa: E402

SETTINGS = MarketSettings(opportunities=1_000)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_gymnasium_accepts_it() -> None:
    from gymnasium.utils.env_checker import check_env

    check_env(BiddingEnv(SETTINGS), skip_render_check=True)


def test_rewards_add_up_to_the_score_and_seeds_repeat() -> None:
    totals = []
    for _ in range(2):
        env = gymnasium.make(ID, settings=SETTINGS, seat=3)
        _, info = env.reset(seed=7)
        assert info["seat"] == 3
        total, steps, over = 0.0, 0, False
        while not over:
            state, reward, over, _, info = env.step(np.array([1.0], dtype=np.float32))
            assert np.isfinite(state).all()
            total, steps = total + reward, steps + 1
        assert total == pytest.approx(info["score"])
        assert steps <= 48
        totals.append(total)
    assert totals[0] == totals[1]


def test_a_finished_day_wants_a_reset() -> None:
    env = BiddingEnv(SETTINGS, seat=0)
    with pytest.raises(RankloomError, match="over"):
        env.step(np.array([1.0], dtype=np.float32))
    with pytest.raises(RankloomError, match="seat 99"):
        BiddingEnv(SETTINGS, seat=99)
