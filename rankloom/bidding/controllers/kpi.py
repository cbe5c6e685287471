"""Hold one figure at a reference: the PID of Zhang et al. (WSDM 2016, arXiv 1603.01055), and what control theory asks of it.

    e_k = (reference - x_k) / reference
    phi_{k+1} = P e_k + I sum_j e_j + D (e_k - e_{k-1}),      bid' = bid * exp(phi)

x is any figure that grows with the bid: win rate, cost per (expected) click, spend of a round. `Integral` clamping: a
round in which phi stands at its clamp and the error pushes further is not added to the sum.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from rankloom.bidding.protocol import FloatArray
from rankloom.errors import RankloomError


@dataclass
class KpiPID:
    """Holds a figure at `reference`.

    Attributes:
        p, i, d: gains on the relative error.
        lowest, highest: clamps of phi, the log factor of the bid.
        error_limit: of the relative error, so that one wild round moves little.
    """

    reference: float
    p: float = 0.3
    i: float = 0.25
    d: float = 0.05
    lowest: float = -4.0
    highest: float = 4.0
    error_limit: float = 1.0

    def __post_init__(self) -> None:
        if not (np.isfinite(self.reference) and self.reference > 0):
            raise RankloomError(f"a reference of {self.reference}", action="give a positive number", code="reference")
        self.phi = 0.0
        self._sum = 0.0
        self._last: float | None = None

    def update(self, figure: float) -> float:
        """The log factor for the next round, after a round that showed `figure` (nan: nothing was seen)."""
        error = 1.0 if not np.isfinite(figure) else (self.reference - figure) / self.reference
        error = float(np.clip(error, -self.error_limit, self.error_limit))
        change = 0.0 if self._last is None else error - self._last
        self._last = error
        wanted = self.p * error + self.i * (self._sum + error) + self.d * change
        if self.lowest < wanted < self.highest or (wanted >= self.highest) == (error < 0):
            self._sum += error
        self.phi = float(np.clip(wanted, self.lowest, self.highest))
        return self.phi


@dataclass(frozen=True)
class StepResponse:
    """Rounds until the figure first touches the band, until it stays in it (the number of rounds if never), how far it went
    beyond the reference (share of it, seen from where it started), and the relative error once settled."""

    rise: int
    settling: int
    overshoot: float
    rmse: float


def step_response(figures: FloatArray, reference: float, band: float = 0.1) -> StepResponse:
    """Measures a run the way the paper does, with a band of +-10%."""
    inside = np.abs(figures / reference - 1) <= band
    rise = int(np.argmax(inside)) if inside.any() else len(figures)
    outside = np.flatnonzero(~inside)
    settling = 0 if len(outside) == 0 else int(outside[-1]) + 1
    above = figures[0] > reference
    beyond = (reference - figures if above else figures - reference) / reference
    overshoot = float(np.maximum(beyond[rise:], 0).max()) if rise < len(figures) else 0.0
    steady = figures[settling:]
    rmse = float(np.sqrt(np.mean((steady / reference - 1) ** 2))) if len(steady) else float("inf")
    return StepResponse(rise=rise, settling=settling, overshoot=overshoot, rmse=rmse)


def hold(controller: KpiPID, play: Callable[[int, float], float], rounds: int) -> FloatArray:
    """(rounds,) the figure of each round; `play(round, factor)` bids with the factor and tells the figure."""
    figures = np.zeros(rounds)
    for each in range(rounds):
        figures[each] = play(each, float(np.exp(controller.phi)))
        controller.update(float(figures[each]))
    return figures
