"""The simulated market as a Gymnasium environment: one campaign is yours, everybody else bids live.

    pip install "rankloom[bidding]"

    import gymnasium
    import rankloom.bidding.environment            # registers the id
    env = gymnasium.make("rankloom/Bidding-v0", settings=MarketSettings(opportunities=5_000))
    observation, info = env.reset(seed=0)
    observation, reward, terminated, truncated, info = env.step([1.1])

One episode is one day of 48 steps. The action is the multiplier over the CPA target, in (0, 8). The observation is the state that
learned controllers see (`rankloom.bidding.state.STATE`). The reward of a step is the growth of the Score so far, so that the
rewards of a day add up to its Score; `info` holds the tick's spend, value and conversions.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from rankloom.bidding.controllers.constant import anchor
from rankloom.bidding.market import LINE_UP, MarketSettings, Session, World, deal
from rankloom.bidding.protocol import Campaigns, Controller, FloatArray, IntArray, Observation
from rankloom.bidding.score import DEFAULT_GAMMA, score
from rankloom.errors import RankloomError

try:
    import gymnasium
    from gymnasium import spaces
except ImportError as error:  # told where the environment is used
    raise RankloomError(
        "the bidding environment needs gymnasium, which is not installed",
        action='install it with: pip install "rankloom[bidding]"',
        code="extra-missing",
    ) from error

if TYPE_CHECKING:
    Base = gymnasium.Env[NDArray[np.float32], NDArray[np.float32]]
else:
    Base = gymnasium.Env

ID: Final = "rankloom/Bidding-v0"
HIGHEST: Final = 8.0


class BiddingEnv(Base):
    """One campaign's day in the live market; see the module's text.

    Args:
        settings: the market.
        seat: which campaign is yours; a new one every episode where None.
        gamma: exponent of the Score that is rewarded.
    """

    metadata: dict[str, Any] = {"render_modes": []}  # noqa: RUF012  # gymnasium's own form

    def __init__(
        self, settings: MarketSettings | None = None, *, seat: int | None = None, gamma: float = DEFAULT_GAMMA
    ) -> None:
        from rankloom.bidding.state import STATE

        self.settings = settings or MarketSettings(opportunities=20_000)
        if seat is not None and not 0 <= seat < self.settings.campaigns:
            raise RankloomError(
                f"seat {seat}", action=f"choose one of 0 to {self.settings.campaigns - 1}", code="seat-unknown"
            )
        self._fixed_seat = seat
        self.gamma = gamma
        self.observation_space = spaces.Box(-np.inf, np.inf, (len(STATE),), np.float32)
        self.action_space = spaces.Box(0.0, HIGHEST, (1,), np.float32)
        self._session: Session | None = None
        self._groups: list[tuple[Controller, IntArray]] = []
        self._seats: IntArray = np.zeros(1, dtype=np.int64)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.float32], dict[str, Any]]:
        super().reset(seed=seed)
        day = int(self.np_random.integers(0, 2**31))
        seat = (
            int(self.np_random.integers(0, self.settings.campaigns)) if self._fixed_seat is None else self._fixed_seat
        )
        self._session = Session(World(self.settings, day))
        self._seats = np.array([seat])
        algorithm = np.array(deal(self.settings, day))
        makers = dict(LINE_UP)
        self._groups = []
        for name in dict.fromkeys(algorithm.tolist()):
            seats = np.flatnonzero(algorithm == name)
            seats = seats[seats != seat].astype(np.int64)
            if len(seats):
                bidder = makers[name]()
                bidder.start(self._session.observation(seats).campaigns, day)
                self._groups.append((bidder, seats))
        return self._state(), {"seat": seat, "day": day}

    def step(self, action: NDArray[np.float32]) -> tuple[NDArray[np.float32], float, bool, bool, dict[str, Any]]:
        session = self._session
        if session is None or session.done:
            raise RankloomError("the day is over", action="call reset() first", code="day-over")
        factor = float(np.clip(np.asarray(action, dtype=np.float64).reshape(-1)[0], 0.0, HIGHEST))
        multiplier_A: FloatArray = np.zeros(self.settings.campaigns)
        for bidder, seats in self._groups:
            multiplier_A[seats] = bidder.decide(session.observation(seats)).multiplier_N
        multiplier_A[self._seats] = factor * anchor(self._own())
        before = self._score()
        session.play(multiplier_A)
        history = session.history(self._seats)
        info = {
            "spend": float(history.spend_NT[0, -1]),
            "value": float(history.value_NT[0, -1]),
            "conversions": float(history.conversions_NT[0].sum()),
            "remaining": float(session.remaining_A[self._seats[0]]),
            "score": self._score(),
        }
        over = session.done or not bool(session.live_A[self._seats[0]])
        return self._state(), self._score() - before, over, False, info

    def _own(self) -> Campaigns:
        assert self._session is not None
        whole = self._session.campaigns
        return Campaigns(
            whole.budget_N[self._seats],
            whole.target_cpa_N[self._seats],
            whole.category_N[self._seats],
            tuple(whole.name[int(seat)] for seat in self._seats),
        )

    def _score(self) -> float:
        assert self._session is not None
        history = self._session.history(self._seats)
        value_N = self._session.judged_A[self._seats]
        return float(score(value_N, history.spend_NT.sum(axis=1), self._own().target_cpa_N, self.gamma)[0])

    def _state(self) -> NDArray[np.float32]:
        from rankloom.bidding.state import day_states, observation_tensors

        assert self._session is not None
        session = self._session
        if session.done:
            observation = Observation(
                session.tick, self._own(), session.history(self._seats), session.remaining_A[self._seats].copy()
            )
        else:
            observation = session.observation(self._seats)
        raw_NSD, _ = day_states(observation_tensors(observation, fallback_target=100.0), last=1)
        state: NDArray[np.float32] = raw_NSD[0, -1].numpy().astype(np.float32)
        return state


if ID not in gymnasium.registry:
    gymnasium.register(id=ID, entry_point=f"{__name__}:BiddingEnv")
