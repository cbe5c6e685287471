"""Recorded market days: what 48 seats thought an opportunity was worth and the five highest bids it drew.

One day is one `.npz` file (no pickle) with, for a sample of the day's opportunities in the order in which they came:

    t (n,) tick; pv1000 (n, A) 1000 p of every seat; top5_bid (n, 5) highest bids, descending; top5_id (n, 5) whose;
    budget, cpa, category, algo (A,) per seat; sigma_ratio (A,) sigma of p over p; sample_fraction (); slot_coef (S,)
    exposure coefficients of the slots; reserve () lowest price

With the five highest bids and their owners any one seat can be taken out and played by somebody else exactly, while
the others' bids stand still (`rankloom.bidding.replay`). The files of `shared/data/bidding` and the days that
`rankloom.bidding.market` records have the same form.
"""

from __future__ import annotations

import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from rankloom.bidding.protocol import N_TICKS, Campaigns, FloatArray, IntArray
from rankloom.errors import RankloomError
from rankloom.files import atomic_file

PATTERN: Final = "*_trace.npz"
_REQUIRED: Final = ("t", "pv1000", "top5_bid", "top5_id", "budget", "cpa", "category")


@dataclass(frozen=True)
class MarketDay:
    """One recorded day; M sampled opportunities, A seats, S slots. Rows are in order of time.

    Attributes:
        name: label of the day.
        tick_M: tick of each opportunity, non-decreasing.
        p_MA: conversion probability each seat saw, float32.
        top_bid_M5, top_seat_M5: highest five bids, descending, and whose they were (-1 where there was none, bid 0).
        campaigns: of the seats.
        algorithm: who played each seat when the day was recorded.
        sigma_ratio_A: standard deviation of p over p.
        sample_fraction: share of the day's opportunities that are here.
        exposure_S: probability that a bidder in slot s is shown (continuity multiplied in: 1, 0.8, 0.48).
        reserve: lowest price.
    """

    name: str
    tick_M: IntArray
    p_MA: NDArray[np.float32]
    top_bid_M5: NDArray[np.float32]
    top_seat_M5: NDArray[np.int16]
    campaigns: Campaigns
    algorithm: tuple[str, ...]
    sigma_ratio_A: FloatArray
    sample_fraction: float
    exposure_S: FloatArray
    reserve: float

    @property
    def n_opportunities(self) -> int:
        return int(self.tick_M.shape[0])

    @property
    def bounds(self) -> IntArray:
        """(N_TICKS + 1,) rows of tick t are bounds[t] up to bounds[t + 1]."""
        return np.searchsorted(self.tick_M, np.arange(N_TICKS + 1)).astype(np.int64)


def load_trace(path: str | Path) -> MarketDay:
    """Reads and checks one recorded day.

    Raises:
        RankloomError: the file is missing, is no such archive, lacks an array or holds impossible values.
    """
    path = Path(path)

    def bad(fact: str, action: str = "record the day anew, or take the file out of the folder") -> RankloomError:
        return RankloomError(fact, place=str(path), action=action, code="trace-broken")

    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays: dict[str, NDArray[Any]] = {key: archive[key] for key in archive.files}
    except FileNotFoundError:
        raise RankloomError(
            f"no file {path.name}", place=str(path), action="check the path", code="file-missing"
        ) from None
    except (ValueError, OSError, zipfile.BadZipFile, EOFError) as error:
        raise bad(f"{path.name} is no recorded market day: {error}") from None
    missing = [key for key in _REQUIRED if key not in arrays]
    if missing:
        raise bad(f"{path.name} lacks the array {missing[0]!r}")
    tick, p, bid, seat = (arrays[key] for key in ("t", "pv1000", "top5_bid", "top5_id"))
    if p.ndim != 2 or tick.ndim != 1 or bid.ndim != 2:
        raise bad(f"{path.name}: t, pv1000 and top5_bid must have 1, 2 and 2 dimensions")
    rows, seats = p.shape
    if rows == 0 or tick.shape != (rows,) or bid.shape != (rows, 5) or seat.shape != (rows, 5):
        raise bad(f"{path.name}: t, pv1000, top5_bid and top5_id do not describe the same opportunities")
    for key in ("budget", "cpa", "category"):
        if arrays[key].shape != (seats,):
            raise bad(f"{path.name}: {key} has shape {arrays[key].shape}, {seats} seats need ({seats},)")
    p_MA = p.astype(np.float32) / np.float32(1000)
    if tick.min() < 0 or tick.max() >= N_TICKS:
        raise bad(f"{path.name}: ticks run from {tick.min()} to {tick.max()}, a day has 0 to {N_TICKS - 1}")
    if not np.isfinite(p_MA).all() or p_MA.min() < 0:
        raise bad(f"{path.name}: pv1000 holds values that are no probabilities")
    if not np.isfinite(bid).all() or bid.min() < 0 or (np.diff(bid, axis=1) > 0).any():
        raise bad(f"{path.name}: top5_bid must be finite, not negative and descending in each row")
    if seat.min() < -1 or seat.max() >= seats:
        raise bad(f"{path.name}: top5_id names a seat outside 0 to {seats - 1}")
    budget, cpa = (arrays[key].astype(np.float64) for key in ("budget", "cpa"))
    if not (np.isfinite(budget).all() and budget.min() > 0 and cpa.min() > 0):
        raise bad(f"{path.name}: budget and cpa must be positive")
    coefficients = arrays.get("slot_coef", np.array([1.0, 0.8, 0.6])).astype(np.float64)
    if coefficients.ndim != 1 or not 1 <= coefficients.size <= 3:
        raise bad(f"{path.name}: slot_coef has {coefficients.size} slots; five bids let one to three be replayed")
    order = np.argsort(tick, kind="stable")
    return MarketDay(
        name=path.name.removesuffix(".npz").removesuffix("_trace"),
        tick_M=tick[order].astype(np.int64),
        p_MA=p_MA[order],
        top_bid_M5=bid[order].astype(np.float32),
        top_seat_M5=seat[order].astype(np.int16),
        campaigns=Campaigns(
            budget_N=budget,
            target_cpa_N=cpa,
            category_N=arrays["category"].astype(np.int64),
            name=tuple(f"seat {each}" for each in range(seats)),
        ),
        algorithm=tuple(str(each) for each in arrays.get("algo", np.array(["?"] * seats))),
        sigma_ratio_A=arrays.get("sigma_ratio", np.zeros(seats)).astype(np.float64),
        sample_fraction=float(arrays.get("sample_fraction", np.array(1.0))),
        exposure_S=np.asarray(np.cumprod(coefficients), dtype=np.float64),
        reserve=float(arrays.get("reserve", np.array(0.0))),
    )


def load_traces(folder: str | Path) -> list[MarketDay]:
    """All recorded days of a folder, in order of their names.

    Raises:
        RankloomError: there is none, or one is broken.
    """
    folder = Path(folder)
    paths = sorted(folder.glob(PATTERN)) if folder.is_dir() else []
    if not paths:
        raise RankloomError(
            f"no recorded market day ({PATTERN}) in {folder}",
            place=str(folder),
            action="point to a folder with recorded days; `rankloom bid simulate --out DIR` records some",
            code="traces-missing",
        )
    return [load_trace(path) for path in paths]


def save_trace(day: MarketDay, folder: str | Path) -> Path:
    """Writes a day as `NAME_trace.npz`, atomically; p is kept as float16 of 1000 p, as in the public recordings."""
    path = Path(folder) / f"{day.name}_trace.npz"
    coefficients = day.exposure_S / np.concatenate([[1.0], day.exposure_S[:-1]])
    with atomic_file(path) as temporary, open(temporary, "wb") as handle:
        np.savez_compressed(
            handle,
            t=day.tick_M.astype(np.int8),
            pv1000=(day.p_MA * np.float32(1000)).astype(np.float16),
            top5_bid=day.top_bid_M5,
            top5_id=day.top_seat_M5.astype(np.int8 if day.p_MA.shape[1] < 128 else np.int16),
            budget=day.campaigns.budget_N,
            cpa=day.campaigns.target_cpa_N,
            category=day.campaigns.category_N,
            algo=np.array(day.algorithm),
            sigma_ratio=day.sigma_ratio_A,
            sample_fraction=np.array(day.sample_fraction),
            slot_coef=coefficients,
            reserve=np.array(day.reserve),
        )
    return path
