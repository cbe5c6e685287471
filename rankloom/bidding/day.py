"""A day of bidding: any market, any controller, one loop.

A market plays one tick for a batch of campaigns; `play_day` keeps the record that the controller sees, stops campaigns
whose budget is gone and remembers what was decided. Replays of recorded days, response curves fitted to logs and the
simulator's seats are markets; so is whatever a user plugs in.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final, Protocol

import numpy as np

from rankloom.bidding.protocol import N_TICKS, Campaigns, Controller, Decision, FloatArray, History, Observation
from rankloom.bidding.score import Outcome
from rankloom.errors import RankloomError

STOP_BELOW: Final = 0.1
"""A campaign with less than this left is over: AuctionNet's rule, in units of money where a conversion costs 60-130."""


@dataclass(frozen=True)
class TickOutcome:
    """What one tick brought, one entry a campaign; the columns of `History`.

    Attributes:
        judged_N: conversions that count for the score; differs from value_N only where p is wrong or outcomes are drawn.
        stopped_N: bool, the platform refused a bid because the budget could not pay it.
    """

    spend_N: FloatArray
    value_N: FloatArray
    conversions_N: FloatArray
    judged_N: FloatArray
    volume_N: FloatArray
    p_sum_N: FloatArray
    bid_sum_N: FloatArray
    won_N: FloatArray
    exposed_N: FloatArray
    least_winning_cost_N: FloatArray
    stopped_N: np.ndarray[Any, np.dtype[np.bool_]]


class TickMarket(Protocol):
    """A day that can be played once, tick after tick."""

    name: str
    campaigns: Campaigns

    def forecast(self, tick: int) -> tuple[FloatArray, FloatArray] | None:
        """Volume and mean p of the coming tick, where the platform tells them; each (N,)."""
        ...

    def play(self, tick: int, multiplier_N: FloatArray, remaining_N: FloatArray) -> TickOutcome:
        """One tick at these multipliers; spends at most `remaining_N`."""
        ...


@dataclass(frozen=True)
class DayResult:
    """A finished day: the whole record, and what is judged.

    Attributes:
        decisions: one a tick, as the controller gave them.
    """

    market: str
    controller: str
    campaigns: Campaigns
    history: History
    judged_N: FloatArray
    decisions: tuple[Decision, ...]

    @property
    def outcome(self) -> Outcome:
        return Outcome(
            value_N=self.judged_N,
            cost_N=self.history.spend_NT.sum(axis=1),
            budget_N=self.campaigns.budget_N,
            target_cpa_N=self.campaigns.target_cpa_N,
        )


_COLUMNS: Final = (
    "spend",
    "value",
    "conversions",
    "volume",
    "p_sum",
    "bid_sum",
    "won",
    "exposed",
    "least_winning_cost",
)


def empty_history(n: int) -> History:
    """A record of no ticks for `n` campaigns."""
    return History(multiplier_NT=np.zeros((n, 0)), **{f"{column}_NT": np.zeros((n, 0)) for column in _COLUMNS})


def play_day(market: TickMarket, controller: Controller, *, seed: int = 0, forecasts: bool = True) -> DayResult:
    """Plays the market's day with the controller in all its campaigns at once.

    Args:
        seed: handed to the controller.
        forecasts: tell the controller the coming tick's volume and mean p where the market knows them.

    Raises:
        RankloomError: the controller answered with something that is no multiplier.
    """
    campaigns = market.campaigns
    n = campaigns.n
    columns = {column: np.zeros((n, N_TICKS)) for column in ("multiplier", *_COLUMNS)}
    judged_N = np.zeros(n)
    remaining_N = campaigns.budget_N.astype(np.float64).copy()
    live_N = remaining_N >= STOP_BELOW
    decisions = []
    controller.start(campaigns, seed)
    for tick in range(N_TICKS):
        history = History(**{f"{column}_NT": whole[:, :tick] for column, whole in columns.items()})
        told = market.forecast(tick) if forecasts else None
        decision = controller.decide(
            Observation(
                tick=tick,
                campaigns=campaigns,
                history=history,
                remaining_N=remaining_N.copy(),
                volume_forecast_N=told[0] if told else None,
                p_mean_forecast_N=told[1] if told else None,
            )
        )
        multiplier_N = np.asarray(decision.multiplier_N, dtype=np.float64)
        if multiplier_N.shape != (n,) or not np.isfinite(multiplier_N).all() or (multiplier_N < 0).any():
            raise RankloomError(
                f"controller {controller.name!r} answered tick {tick} with multipliers that are not {n} finite "
                "numbers of at least 0",
                place=market.name,
                action="wrap it in a fallback, or repair the controller",
                code="multiplier-invalid",
            )
        decisions.append(decision)
        multiplier_N = np.where(live_N, multiplier_N, 0.0)
        outcome = market.play(tick, multiplier_N, np.where(live_N, remaining_N, 0.0))
        columns["multiplier"][:, tick] = multiplier_N
        for column in _COLUMNS:
            columns[column][:, tick] = getattr(outcome, f"{column}_N")
        judged_N += outcome.judged_N
        # a rounding error of the sum is not money
        remaining_N = np.maximum(remaining_N - outcome.spend_N, 0.0)
        live_N &= ~outcome.stopped_N & (remaining_N >= STOP_BELOW)
    return DayResult(
        market=market.name,
        controller=controller.name,
        campaigns=campaigns,
        history=History(**{f"{column}_NT": whole for column, whole in columns.items()}),
        judged_N=judged_N,
        decisions=tuple(decisions),
    )
