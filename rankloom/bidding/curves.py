"""What a multiplier buys: monotone response curves, and how p, prices and traffic run through a day.

Response. In one tick a campaign with mean prediction m bids alpha * p against a market whose lowest winning cost is
about l. What matters is where the bids lie relative to the prices, x = alpha m / l; then

    value = volume * m * F(x),     cost = volume * l * G(x)

with one pair of non-decreasing curves F, G for all campaigns and ticks, fitted by isotonic regression on a log (the
expected response of GRM, section 3, and of the lightweight MPC of arXiv 2603.07721, made dimensionless so that it carries over
from one campaign to another). No price is above the bid, hence G(x) <= x F(x).

Paths. log m, log l and log volume over the 48 ticks are Gaussian with the log's mean and covariance. A day that has begun
conditions them: what is known moves what is to come by as much as the log's correlations say, and scenarios are drawn from the rest.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property, lru_cache
from importlib import resources
from pathlib import Path
from typing import Any, Final

import numpy as np
import polars as pl
from numpy.typing import NDArray
from sklearn.isotonic import IsotonicRegression

from rankloom.bidding.protocol import N_TICKS, FloatArray
from rankloom.bidding.surrogate import read_log
from rankloom.errors import RankloomError

GRID: Final = (-4.0, 2.6, 133)  # of log x: from never winning to winning all
TINY: Final = 1e-12


@dataclass(frozen=True)
class ResponseShape:
    """F and G on a uniform grid of log x; see the module's text.

    Attributes:
        low, step: first point of the grid and its spacing.
        value_G, cost_G: non-decreasing; 0 below the grid, constant above it.
    """

    low: float
    step: float
    value_G: FloatArray
    cost_G: FloatArray

    @classmethod
    def fit(
        cls, log_x: FloatArray, value_share: FloatArray, cost_share: FloatArray, weight: FloatArray
    ) -> ResponseShape:
        """Isotonic regression of both shares on log x, smoothed over a twentieth of a natural unit."""
        low, high, points = GRID
        grid_G = np.linspace(low, high, points)

        def isotonic(share: FloatArray) -> FloatArray:
            model = IsotonicRegression(y_min=0.0, increasing=True, out_of_bounds="clip")
            fitted_G = model.fit(log_x, share, sample_weight=weight).predict(grid_G)
            kernel = np.exp(-0.5 * (np.arange(-4, 5) / 1.5) ** 2)
            padded = np.pad(fitted_G, 4, mode="edge")
            return np.asarray(np.maximum.accumulate(np.convolve(padded, kernel / kernel.sum(), mode="valid")))

        value_G = isotonic(value_share)
        cost_G = np.maximum.accumulate(np.minimum(isotonic(cost_share), value_G * np.exp(grid_G)))
        return cls(low=low, step=float(grid_G[1] - grid_G[0]), value_G=value_G, cost_G=cost_G)

    def __call__(self, log_x: FloatArray) -> tuple[FloatArray, FloatArray]:
        """(F, G) at log x, linear between grid points; any shape."""
        place = np.clip((log_x - self.low) / self.step, 0.0, self.value_G.size - 1.000001)
        index = place.astype(np.int32)
        part = place - index
        starts = log_x > self.low
        found = []
        for curve_G in (self.value_G, self.cost_G):
            left = curve_G[index]
            found.append(np.where(starts, left + part * (curve_G[index + 1] - left), 0.0))
        return found[0], found[1]


@dataclass(frozen=True, eq=False)
class PathPrior:
    """A Gaussian over the 48 logarithms of one quantity's day.

    Attributes:
        mean_T, covariance_TT: of the logarithm.
        noise: standard deviation of what is observed around the path.
    """

    mean_T: FloatArray
    covariance_TT: FloatArray
    noise: float = 0.03

    @classmethod
    def fit(cls, path_DT: FloatArray, *, noise: float = 0.03) -> PathPrior:
        """From D days (or campaign days) of positive values.

        A covariance of few days is noise far from the diagonal, so it is tapered there, the more the fewer days there are.
        """
        log_DT = np.log(np.maximum(path_DT, TINY))
        mean_T = np.median(log_DT, axis=0)
        spread_T = 1.4826 * np.median(np.abs(log_DT - mean_T), axis=0) + 1e-3
        # a seat that saw no traffic is no information about how p runs
        centred_DT = np.clip(log_DT - mean_T, -4 * spread_T, 4 * spread_T)
        mean_T = mean_T + centred_DT.mean(axis=0)
        centred_DT = centred_DT - centred_DT.mean(axis=0)
        days = len(log_DT)
        covariance_TT = centred_DT.T @ centred_DT / max(days - 1, 1)
        distance_TT = np.abs(np.subtract.outer(np.arange(N_TICKS), np.arange(N_TICKS)))
        reach = 4.0 + 0.2 * min(days, 400)
        covariance_TT = covariance_TT * np.exp(-((distance_TT / reach) ** 2))
        covariance_TT[np.diag_indices(N_TICKS)] += 1e-5
        return cls(mean_T=mean_T, covariance_TT=covariance_TT, noise=noise)

    @cached_property
    def _factor_TT(self) -> FloatArray:
        values, vectors = np.linalg.eigh(self.covariance_TT)
        return np.asarray(vectors * np.sqrt(np.maximum(values, 0.0)))

    def __deepcopy__(self, memo: dict[int, Any]) -> PathPrior:
        """Itself: nothing of it changes, and copies would have to solve for the gains anew."""
        return self

    @cached_property
    def _gains(self) -> dict[int, FloatArray]:
        return {}

    def gain(self, known: int) -> FloatArray:
        """(T - known, known): how the known first ticks move the others."""
        if known not in self._gains:
            covariance = self.covariance_TT
            inner = covariance[:known, :known] + self.noise**2 * np.eye(known)
            self._gains[known] = np.asarray(np.linalg.solve(inner, covariance[:known, known:]).T)
        return self._gains[known]

    def condition(self, path_NT: FloatArray) -> FloatArray:
        """Conditional mean of the logarithm of the ticks that `path_NT` (N, known) leaves open; (N, T - known).

        Values of the path that are not positive count as not observed.
        """
        known = path_NT.shape[1]
        if known == 0:
            return np.broadcast_to(self.mean_T, (path_NT.shape[0], N_TICKS))
        deviation_T = np.sqrt(np.diag(self.covariance_TT)[:known])
        limit_T = 5.0 * deviation_T
        away_NT = np.where(path_NT > TINY, np.log(np.maximum(path_NT, TINY)) - self.mean_T[:known], 0.0)
        # a market of another scale than the log's: shift the whole path rather than believe in a 3.7-sigma day
        shift_N = np.zeros(len(away_NT))
        ratio_NT = np.abs(away_NT) / deviation_T
        # a median is above only where half of the ticks are: counting is cheaper than medians of all campaigns
        far = np.flatnonzero(2 * np.count_nonzero(ratio_NT > 3.7, axis=1) >= known)
        if far.size:
            shift_N[far] = np.where(np.median(ratio_NT[far], axis=1) > 3.7, np.median(away_NT[far], axis=1), 0.0)
        away_NT = np.clip(away_NT - shift_N[:, None], -limit_T, limit_T)
        return np.asarray(self.mean_T[known:] + shift_N[:, None] + away_NT @ self.gain(known).T)

    def residuals(self, known: int, normal_KT: FloatArray) -> FloatArray:
        """(K, T - known) draws of what the known ticks leave open, from standard normal draws."""
        path_KT = normal_KT @ self._factor_TT.T
        if known == 0:
            return path_KT
        return np.asarray(path_KT[:, known:] - path_KT[:, :known] @ self.gain(known).T)


@dataclass(frozen=True)
class MarketPrior:
    """What a log of past days says about any campaign's day.

    Attributes:
        curves: response of one tick.
        p_mean, price, volume: paths of the mean prediction, the lowest winning cost and the number of opportunities.
    """

    curves: ResponseShape
    p_mean: PathPrior
    price: PathPrior
    volume: PathPrior

    @classmethod
    def fit(cls, trajectories: str | Path | pl.DataFrame, *, split: str | None = "train") -> MarketPrior:
        """From a trajectory log in AuctionNet's columns (s4, s12 and s13 are read).

        Raises:
            RankloomError: the log cannot be read, or nobody bid in it.
        """
        log = read_log(trajectories, split)
        days = log.select("period", "advertiser").n_unique()

        def logged(name: str) -> FloatArray:
            return log[name].cast(pl.Float64).to_numpy().reshape(days, N_TICKS)

        p_mean_DT, volume_DT, action_DT = logged("s12"), logged("s13"), logged("action")
        # s4 is the mean of the ticks before: undo the running mean; the last tick is not in it
        running_DT = logged("s4") * np.arange(N_TICKS)
        price_DT = np.diff(running_DT, axis=1)
        price_DT = np.maximum(np.concatenate([price_DT, price_DT[:, -1:]], axis=1), TINY)
        spent_DT, value_DT = logged("cost"), logged("reward_continuous")
        usable_DT = (
            (action_DT > 0) & (p_mean_DT > 0) & (price_DT > 1e-6) & (logged("remaining_budget") - spent_DT > 1.0)
        )
        usable_DT[:, -1] = False
        if usable_DT.sum() < 100:
            raise RankloomError(
                f"only {int(usable_DT.sum())} ticks of the log have bids",
                action="log more days in which campaigns bid",
                code="trajectories-empty",
            )
        m, volume, price = p_mean_DT[usable_DT], volume_DT[usable_DT], price_DT[usable_DT]
        curves = ResponseShape.fit(
            np.log(action_DT[usable_DT] * m / price),
            value_DT[usable_DT] / (volume * m),
            spent_DT[usable_DT] / (volume * price),
            volume,
        )
        of_period = log["period"].to_numpy().reshape(days, N_TICKS)[:, 0]
        _, first = np.unique(of_period, return_index=True)
        return cls(
            curves=curves,
            p_mean=PathPrior.fit(p_mean_DT),
            price=PathPrior.fit(price_DT[first]),
            volume=PathPrior.fit(volume_DT[first]),
        )

    def arrays(self) -> dict[str, NDArray[Any]]:
        """For saving; `from_arrays` is the way back."""
        found: dict[str, NDArray[Any]] = {
            "curves.grid": np.array([self.curves.low, self.curves.step]),
            "curves.value": self.curves.value_G,
            "curves.cost": self.curves.cost_G,
        }
        for name in ("p_mean", "price", "volume"):
            path: PathPrior = getattr(self, name)
            found |= {f"{name}.mean": path.mean_T, f"{name}.covariance": path.covariance_TT}
        return found

    @classmethod
    def from_arrays(cls, arrays: dict[str, NDArray[Any]]) -> MarketPrior:
        """The prior that `arrays()` described.

        Raises:
            KeyError: an array is missing.
        """
        wide = {name: np.asarray(array, dtype=np.float64) for name, array in arrays.items()}
        paths = {
            name: PathPrior(mean_T=wide[f"{name}.mean"], covariance_TT=wide[f"{name}.covariance"])
            for name in ("p_mean", "price", "volume")
        }
        low, step = (float(each) for each in wide["curves.grid"])
        curves = ResponseShape(low=low, step=step, value_G=wide["curves.value"], cost_G=wide["curves.cost"])
        return cls(curves=curves, **paths)

    @classmethod
    def default(cls) -> MarketPrior:
        """The prior in the package, fitted on the training days of AuctionNet's public simulator."""
        return _default_prior()


@lru_cache(maxsize=1)
def _default_prior() -> MarketPrior:
    text = resources.files("rankloom.bidding").joinpath("resources/market_prior.json").read_text(encoding="utf-8")
    return MarketPrior.from_arrays({name: np.array(values) for name, values in json.loads(text)["arrays"].items()})
