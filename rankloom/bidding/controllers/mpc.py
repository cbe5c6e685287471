"""Model-predictive control: predict the rest of the day, solve for the multiplier, bid it for one tick, predict again.

Prediction. Scenarios of the ticks to come (mean prediction, prices, traffic) from Gaussian paths conditioned on the day so
far, and the dimensionless response curves of `rankloom.bidding.curves`, corrected for each campaign by what it won so
far against what the curves said it would.

Solution. The multiplier that maximises the mean over scenarios of the Score at the day's end,

    mean_k  V_k min{(C V_k / S_k)^gamma, 1},    V_k, S_k = value and spend so far + predicted rest, cut where the budget ends,

over a grid of constant multipliers, refined by a parabola. Solving the CPA equation for a "CPA root" instead is a known trap: after a
costly start it drops far below C, where no bid can worsen the CPA any more, and throws the day away.

Kuaishou's own MPC is not published; this is our design after GRM (KDD 2026, arXiv 2605.27811: saturating monotone curves, receding
horizon) and the lightweight MPC of arXiv 2603.07721 (isotonic curves, updated online). Decisions depend on the observation
and the seed alone.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri

from rankloom.bidding.controllers.constant import scale
from rankloom.bidding.curves import TINY, MarketPrior, PathPrior
from rankloom.bidding.protocol import N_TICKS, Campaigns, Decision, FloatArray, Observation

SHIFTS: Final = (-6.0, 0.05, 200)  # first, step and number of the grid of log(C m / l)


@dataclass(frozen=True)
class MPCSettings:
    """Chosen on rebuilt training days.

    Attributes:
        gamma: exponent of the Score that is maximised.
        scenarios: how many futures, at least 2.
        lowest, highest, points: grid of multipliers in units of the CPA target.
        faith: conversions (and their price) that the curves weigh against a campaign's own record.
        fresh: other scenarios every tick instead of one set for the day: what few scenarios get wrong is then not the same all day.
    """

    gamma: float = 2.0
    scenarios: int = 24
    lowest: float = 0.3
    highest: float = 4.0
    points: int = 53
    faith: float = 4.0
    fresh: bool = False


@dataclass(frozen=True)
class _Path:
    """Scenarios of one quantity in the ticks to come, the coming one first: exp(centre + away).

    What the day so far says (`centre_NR`) is every campaign's own, what it leaves open (`away_KR`) is the same for all: so products of
    quantities take exponentials of N R and K R numbers instead of N K R.
    """

    centre_NR: FloatArray
    away_KR: FloatArray

    def __mul__(self, other: _Path) -> _Path:
        return _Path(self.centre_NR + other.centre_NR, self.away_KR + other.away_KR)

    def __truediv__(self, other: _Path) -> _Path:
        return _Path(self.centre_NR - other.centre_NR, self.away_KR - other.away_KR)

    def log_NKR(self) -> FloatArray:
        return self.centre_NR[:, None] + self.away_KR[None]

    def values_NKR(self) -> FloatArray:
        return np.exp(self.centre_NR)[:, None] * np.exp(self.away_KR)[None]


@dataclass(frozen=True)
class _Forecast:
    """Mean prediction, lowest winning cost and number of opportunities."""

    p_mean: _Path
    price: _Path
    volume: _Path


class MPC:
    """Receding-horizon control towards the best expected Score; see the module's text.

    Args:
        prior: curves and paths; the package's by default, `MarketPrior.fit` makes one from your own log.
    """

    name = "mpc"

    def __init__(self, settings: MPCSettings | None = None, prior: MarketPrior | None = None) -> None:
        self.config = settings or MPCSettings()
        self.prior = prior or MarketPrior.default()
        self._normals = self._draws(0)
        self._factor_A = np.geomspace(self.config.lowest, self.config.highest, self.config.points)
        shift_H = SHIFTS[0] + SHIFTS[1] * np.arange(SHIFTS[2])
        self._value_HA, self._cost_HA = self.prior.curves(np.asarray(shift_H[:, None] + np.log(self._factor_A)))

    def start(self, campaigns: Campaigns, seed: int) -> None:
        self._normals = self._draws(seed)

    def _draws(self, seed: int) -> list[tuple[FloatArray, FloatArray, FloatArray]]:
        """Standard normal draws (K, T) for the three paths, one set or one a tick: a Latin hypercube, so that few scenarios cover the tails evenly."""
        rng = np.random.default_rng((seed, 29))
        count = self.config.scenarios
        levels_K = ndtri((np.arange(count) + 0.5) / count)
        levels_K /= levels_K.std()
        sets = []
        for _ in range(N_TICKS if self.config.fresh else 1):
            p_mean, price, volume = rng.permuted(np.tile(levels_K, (3, N_TICKS, 1)), axis=2).swapaxes(1, 2)
            sets.append((p_mean, price, volume))
        return sets

    def foresee(self, observation: Observation) -> tuple[FloatArray, dict[str, FloatArray]]:
        """The multiplier (N,) and what is foreseen at it: the figures of `Decision.details`, without a plan per tick."""
        multiplier_N, details, _forecast, _cost_factor_N, _penalised_N = self._solve(observation)
        return multiplier_N, details

    def decide(self, observation: Observation) -> Decision:
        multiplier_N, details, forecast, cost_factor_N, penalised_N = self._solve(observation)
        binding = tuple(
            "budget" if early > 0.5 else ("cpa" if over > 0.25 else "none")
            for early, over in zip(details["probability_budget_ends"], penalised_N, strict=True)
        )
        return Decision(
            multiplier_N,
            binding,
            planned_spend_NR=self._planned(forecast, multiplier_N, cost_factor_N, observation.remaining_N),
            details=details,
        )

    def _solve(
        self, observation: Observation
    ) -> tuple[FloatArray, dict[str, FloatArray], _Forecast, FloatArray, FloatArray]:
        """Multiplier, figures, forecast, correction of the cost curve, and the chance of a penalty at 10% more."""
        config, campaigns, history = self.config, observation.campaigns, observation.history
        target_N = scale(observation)
        value_factor_N, cost_factor_N, errors = self._record(observation, target_N)
        forecast = self._forecast(observation)
        factor_A = self._factor_A
        value_NKA, cost_NKA = self._rest(forecast, target_N)
        value_NKA *= value_factor_N[:, None, None]
        cost_NKA *= cost_factor_N[:, None, None]
        spent_N, bought_N = history.spend_NT.sum(axis=1), history.value_NT.sum(axis=1)
        payable_NKA = np.minimum(1.0, observation.remaining_N[:, None, None] / np.maximum(cost_NKA, TINY))
        final_value_NKA = bought_N[:, None, None] + value_NKA * payable_NKA
        final_cost_NKA = spent_N[:, None, None] + cost_NKA * payable_NKA
        limited_N = np.isfinite(campaigns.target_cpa_N)
        allowed_NKA = np.where(limited_N, campaigns.target_cpa_N, 0.0)[:, None, None] * final_value_NKA
        kept_NKA = np.minimum(1.0, allowed_NKA / np.maximum(final_cost_NKA, TINY))
        kept_NKA[~limited_N] = 1.0
        score_NA = (final_value_NKA * kept_NKA**config.gamma).mean(axis=1)
        place_N = _peak(score_NA)
        step = np.log(factor_A[1] / factor_A[0])
        multiplier_N = target_N * config.lowest * np.exp(step * place_N)

        nearest_N = np.clip(np.round(place_N), 0, config.points - 1).astype(np.int64)

        def at(table_NA: FloatArray, place_N: NDArray[np.int64]) -> FloatArray:
            return np.take_along_axis(table_NA, place_N[:, None], axis=1)[:, 0]

        # 10% more is this many grid points up
        above_N = np.minimum(nearest_N + max(1, round(np.log(1.1) / step)), config.points - 1)
        mean_cost_NA, mean_value_NA = final_cost_NKA.mean(axis=1), final_value_NKA.mean(axis=1)
        ends_early_N = at((payable_NKA < 1.0).mean(axis=1), nearest_N)
        penalised_N = at((kept_NKA < 1.0).mean(axis=1), above_N)
        details = {
            "predicted_score": at(score_NA, nearest_N),
            "predicted_value": at(mean_value_NA, nearest_N),
            "predicted_cost": at(mean_cost_NA, nearest_N),
            "score_at_10_percent_more": at(score_NA, above_N),
            "value_at_10_percent_more": at(mean_value_NA, above_N),
            "cost_at_10_percent_more": at(mean_cost_NA, above_N),
            "probability_budget_ends": ends_early_N,
            **errors,
        }
        return multiplier_N, details, forecast, cost_factor_N, penalised_N

    def _record(
        self, observation: Observation, target_N: FloatArray
    ) -> tuple[FloatArray, FloatArray, dict[str, FloatArray]]:
        """Corrections of the curves' value and cost (N,) by the campaign's own record, and the last tick's error."""
        history = observation.history
        n = observation.campaigns.n
        if history.n_ticks == 0:
            return np.ones(n), np.ones(n), {}
        multiplier_NT, price_NT = history.multiplier_NT, history.least_winning_cost_NT
        p_mean_NT = history.p_sum_NT / np.maximum(history.volume_NT, 1.0)
        x_NT = multiplier_NT * p_mean_NT / np.maximum(price_NT, TINY)
        value_NT, cost_NT = self.prior.curves(np.log(np.maximum(x_NT, TINY)))
        counts_NT = (multiplier_NT > 0) & (price_NT > 0)
        value_NT = np.where(counts_NT, value_NT * history.volume_NT * p_mean_NT, 0.0)
        cost_NT = np.where(counts_NT, cost_NT * history.volume_NT * price_NT, 0.0)
        found_value_NT = np.where(counts_NT, history.value_NT, 0.0)
        found_cost_NT = np.where(counts_NT, history.spend_NT, 0.0)
        faith = self.config.faith
        value_factor_N = (found_value_NT.sum(axis=1) + faith) / (value_NT.sum(axis=1) + faith)
        cost_factor_N = (found_cost_NT.sum(axis=1) + faith * target_N) / (cost_NT.sum(axis=1) + faith * target_N)
        errors = {
            "value_error": np.log((found_value_NT[:, -1] + 0.1) / (value_NT[:, -1] + 0.1)),
            "cost_error": np.log((found_cost_NT[:, -1] + 0.1 * target_N) / (cost_NT[:, -1] + 0.1 * target_N)),
        }
        return np.clip(value_factor_N, 0.25, 4.0), np.clip(cost_factor_N, 0.25, 4.0), errors

    def _forecast(self, observation: Observation) -> _Forecast:
        history = observation.history
        normal_p, normal_price, normal_volume = self._normals[observation.tick % len(self._normals)]
        p_mean_NT = history.p_sum_NT / np.maximum(history.volume_NT, 1.0)

        def path(prior: PathPrior, known_NT: FloatArray, told_N: FloatArray | None, normal_KT: FloatArray) -> _Path:
            if told_N is not None:
                known_NT = np.concatenate([known_NT, told_N[:, None]], axis=1)
            centre_NR, away_KR = prior.condition(known_NT), prior.residuals(known_NT.shape[1], normal_KT)
            if told_N is None:
                return _Path(centre_NR, away_KR)
            return _Path(
                np.concatenate([np.log(np.maximum(told_N, TINY))[:, None], centre_NR], axis=1),
                np.concatenate([np.zeros((len(away_KR), 1)), away_KR], axis=1),
            )

        return _Forecast(
            p_mean=path(self.prior.p_mean, p_mean_NT, observation.p_mean_forecast_N, normal_p),
            price=path(self.prior.price, history.least_winning_cost_NT, None, normal_price),
            volume=path(self.prior.volume, history.volume_NT, observation.volume_forecast_N, normal_volume),
        )

    def _rest(self, forecast: _Forecast, scale_N: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Value and cost (N, K, A) of the ticks to come at each multiplier of the grid, were nothing to stop them.

        The response of every tick is one curve, shifted by log(scale m / l). So the ticks of a scenario are first gathered, with
        linear weights, on a grid of shifts (H); the sum of their curves at all multipliers is then one matrix product.
        """
        ratio = forecast.p_mean / forecast.price
        n, k = len(ratio.centre_NR), len(ratio.away_KR)
        first, step, points = SHIFTS
        place_NKR = _Path(
            (ratio.centre_NR + np.log(np.maximum(scale_N, TINY))[:, None] - first) / step, ratio.away_KR / step
        ).log_NKR()
        np.clip(place_NKR, 0.0, points - 1.000001, out=place_NKR)
        left_NKR = place_NKR.astype(np.int64)
        place_NKR -= left_NKR
        left_NKR += (np.arange(n * k) * points).reshape(n, k, 1)
        index, part = left_NKR.reshape(-1), place_NKR.reshape(-1)
        size = n * k * points

        def gathered(path: _Path) -> FloatArray:
            weight = path.values_NKR().reshape(-1)
            right = weight * part
            weight -= right
            found = np.bincount(index, weight, minlength=size)
            # the place to the right of a place: one up
            found[1:] += np.bincount(index, right, minlength=size)[:-1]
            return np.asarray(found, dtype=np.float64).reshape(n, k, points)

        value_NKH = gathered(forecast.volume * forecast.p_mean)
        return value_NKH @ self._value_HA, gathered(forecast.volume * forecast.price) @ self._cost_HA

    def expected_cost(self, observation: Observation) -> tuple[FloatArray, FloatArray]:
        """Multiples of the target (A,) and the mean cost (N, A) of the rest of the day at each, were nothing to stop it."""
        _, cost_NKA = self._rest(self._forecast(observation), scale(observation))
        return self._factor_A, cost_NKA.mean(axis=1)

    def _planned(
        self, forecast: _Forecast, multiplier_N: FloatArray, factor_N: FloatArray, remaining_N: FloatArray
    ) -> FloatArray:
        """(N, R) mean spend of each tick to come at this multiplier, within the budget."""
        money_NKR = (forecast.volume * forecast.price).values_NKR()
        log_x_NKR = np.log(np.maximum(multiplier_N, TINY))[:, None, None] + (forecast.p_mean / forecast.price).log_NKR()
        spend_NR = (self.prior.curves(log_x_NKR)[1] * money_NKR).mean(axis=1) * factor_N[:, None]
        left_NR = np.minimum(np.cumsum(spend_NR, axis=1), remaining_N[:, None])
        return np.diff(left_NR, axis=1, prepend=0.0)

    def arrays(self) -> dict[str, NDArray[Any]]:
        return self.prior.arrays()

    def settings(self) -> dict[str, Any]:
        return asdict(self.config)


def _peak(score_NA: FloatArray) -> FloatArray:
    """(N,) place of each row's maximum, between grid points by the parabola through its neighbours."""
    best_N = score_NA.argmax(axis=1)
    last = score_NA.shape[1] - 1
    rows = np.arange(len(best_N))
    middle = score_NA[rows, best_N]
    left, right = score_NA[rows, np.maximum(best_N - 1, 0)], score_NA[rows, np.minimum(best_N + 1, last)]
    bend = left - 2 * middle + right
    inside = (best_N > 0) & (best_N < last) & (bend < 0)
    shift = np.where(inside, 0.5 * (left - right) / np.where(bend < 0, bend, -1.0), 0.0)
    return np.asarray(best_N + np.clip(shift, -0.5, 0.5))
