"""A controller in every seat of a recorded day at once, the other seats' bids standing still.

In seat i of an opportunity: take i's own bid out of the five recorded ones (at least four rivals are left), bid
multiplier * p, rank among the rivals' three highest, and if shown pay the next rival's bid (generalised second
price, never above the own bid, never below the reserve). A bidder in slot 1, 2, 3 is shown with probability 1, 0.8,
0.48 (slot 3 shows only what slot 2 showed). Opportunities come in their recorded order, and the auction that the budget could not pay is
the campaign's last. The sample stands for the whole day: every row weighs 1 / sample_fraction.

`outcomes="expected"` (the default, and what reference scores use) counts exposure probability times price as spend and
exposure probability times p as conversions: one policy has one score. `"sampled"` draws exposure and conversions.

    day = load_trace("auctionnet_sim_eval_200_trace.npz")
    result = play_day(ReplayMarket(day, budget_ratio=0.75), controller)
    result.outcome.summary()

Rivals do not react: this is the evaluation of a small advertiser, not of a market in which everybody changes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from rankloom.bidding.day import DayResult, TickOutcome, play_day
from rankloom.bidding.protocol import N_TICKS, Campaigns, Controller, FloatArray
from rankloom.bidding.traces import MarketDay

Outcomes = Literal["expected", "sampled"]


class ReplayMarket:
    """A recorded day as a market whose campaigns are all its seats; see the module's text.

    Args:
        budget_ratio: budgets are the recorded ones times this.
        cpa_ratio: CPA targets likewise.
        rival_bid_factor: rivals bid this many times what they bid.
        volume_factor_T: (48,) each tick brings this many times its opportunities.
        p_bias: the controller's p is the recorded one times this; the score counts the recorded one.
        outcomes: expected or sampled.
        seed: of sampled outcomes.
    """

    def __init__(
        self,
        day: MarketDay,
        *,
        budget_ratio: float = 1.0,
        cpa_ratio: float = 1.0,
        rival_bid_factor: float = 1.0,
        volume_factor_T: FloatArray | None = None,
        p_bias: float = 1.0,
        outcomes: Outcomes = "expected",
        seed: int = 0,
    ) -> None:
        if not all(each > 0 for each in (budget_ratio, cpa_ratio, rival_bid_factor, p_bias)):
            raise ValueError("budget_ratio, cpa_ratio, rival_bid_factor and p_bias must be positive")
        self.name = day.name
        self.day = day
        self.campaigns: Campaigns = replace(
            day.campaigns,
            budget_N=day.campaigns.budget_N * budget_ratio,
            target_cpa_N=day.campaigns.target_cpa_N * cpa_ratio,
        )
        self._bounds = day.bounds
        factor_T = np.ones(N_TICKS) if volume_factor_T is None else np.asarray(volume_factor_T, dtype=np.float64)
        self._weight_T = factor_T / day.sample_fraction
        self._rival_bid_factor = np.float32(rival_bid_factor)
        self._p_bias = p_bias
        self._sampled = outcomes == "sampled"
        self._seed = seed
        self._seats = np.arange(day.campaigns.n, dtype=np.int16)

    def rivals(self, tick: int) -> NDArray[np.float32]:
        """(S + 1, m, A) for each seat and opportunity of the tick the rivals' highest bids, descending."""
        rows = slice(self._bounds[tick], self._bounds[tick + 1])
        bid_M5 = self.day.top_bid_M5[rows] * self._rival_bid_factor
        own_M5A = self.day.top_seat_M5[rows, :, None] == self._seats
        rivals = []
        passed_MA = np.zeros(own_M5A[:, 0].shape, dtype=bool)
        for rank in range(self.day.exposure_S.size + 1):
            passed_MA |= own_M5A[:, rank]
            rivals.append(np.where(passed_MA, bid_M5[:, rank + 1, None], bid_M5[:, rank, None]))
        return np.stack(rivals)

    def forecast(self, tick: int) -> tuple[FloatArray, FloatArray] | None:
        p_MA = self._p(tick)
        volume = p_MA.shape[0] * self._weight_T[tick]
        mean_N = p_MA.mean(axis=0, dtype=np.float64) if p_MA.shape[0] else np.zeros(self.campaigns.n)
        return np.full(self.campaigns.n, volume), mean_N * self._p_bias

    def weight(self, tick: int) -> float:
        """How many opportunities of the day a row of this tick stands for."""
        return float(self._weight_T[tick])

    def _p(self, tick: int) -> NDArray[np.float32]:
        return self.day.p_MA[self._bounds[tick] : self._bounds[tick + 1]]

    def play(self, tick: int, multiplier_N: FloatArray, remaining_N: FloatArray) -> TickOutcome:
        p_MN = self._p(tick).astype(np.float64)
        weight = self._weight_T[tick]
        seen_MN = p_MN * self._p_bias
        bid_MN = seen_MN * multiplier_N
        rival_SMN = self.rivals(tick)
        shown_MN = np.zeros_like(bid_MN)
        price_MN = np.zeros_like(bid_MN)
        # from the last slot up: a bid that beats a higher rival overwrites what it won below
        for slot in reversed(range(self.day.exposure_S.size)):
            wins_MN = (bid_MN > rival_SMN[slot]) & (bid_MN >= self.day.reserve)
            np.copyto(shown_MN, self.day.exposure_S[slot], where=wins_MN)
            np.copyto(price_MN, np.maximum(rival_SMN[slot], self.day.reserve), where=wins_MN)
        won_MN = shown_MN > 0
        converts_MN = p_MN
        if self._sampled:
            shown_MN, converts_MN = self._draw(tick, shown_MN, p_MN)
        spend_MN = shown_MN * price_MN * weight
        affordable_MN = np.cumsum(spend_MN, axis=0) <= remaining_N
        stopped_N = ~affordable_MN[-1] if len(affordable_MN) else np.zeros(self.campaigns.n, dtype=bool)
        live_MN = affordable_MN & (multiplier_N > 0)
        shown_MN = np.where(live_MN, shown_MN, 0.0)
        judged_N = (shown_MN * converts_MN).sum(axis=0) * weight
        # the fourth highest of all bids, the own one among them: AuctionNet's leastWinningCost
        lowest_MN = np.where(won_MN, rival_SMN[-2], np.maximum(np.where(live_MN, bid_MN, 0.0), rival_SMN[-1]))
        return TickOutcome(
            spend_N=np.where(live_MN, spend_MN, 0.0).sum(axis=0),
            value_N=(shown_MN * seen_MN).sum(axis=0) * weight,
            conversions_N=judged_N,
            judged_N=judged_N,
            volume_N=np.full(self.campaigns.n, len(p_MN) * weight),
            p_sum_N=seen_MN.sum(axis=0) * weight,
            bid_sum_N=np.where(live_MN, bid_MN, 0.0).sum(axis=0) * weight,
            won_N=(won_MN & live_MN).sum(axis=0) * weight,
            exposed_N=shown_MN.sum(axis=0) * weight,
            least_winning_cost_N=lowest_MN.mean(axis=0) if len(p_MN) else np.zeros(self.campaigns.n),
            stopped_N=stopped_N,
        )

    def _draw(self, tick: int, shown_MN: FloatArray, p_MN: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Exposure and, per exposed row, the mean of its conversions; the same draws whatever is bid."""
        rng = np.random.default_rng((self._seed, tick))
        drawn_M = rng.random(len(p_MN))
        probability_MN = np.clip(p_MN * (1 + self.day.sigma_ratio_A * rng.standard_normal(p_MN.shape)), 0.0, 1.0)
        stands_for = max(1, round(1 / self.day.sample_fraction))
        converts_MN = rng.binomial(stands_for, probability_MN) / stands_for
        return (drawn_M[:, None] < shown_MN).astype(np.float64), converts_MN


def replay(
    days: Sequence[MarketDay],
    controller: Controller,
    *,
    budget_ratio: float = 1.0,
    seed: int = 0,
    forecasts: bool = True,
    outcomes: Outcomes = "expected",
) -> list[DayResult]:
    """The controller on each recorded day, in all seats; one result a day."""
    return [
        play_day(
            ReplayMarket(day, budget_ratio=budget_ratio, outcomes=outcomes, seed=seed),
            controller,
            seed=seed,
            forecasts=forecasts,
        )
        for day in days
    ]
