"""Controllers side by side on recorded days: one row a figure, tidy, the same for every market and budget."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np

from rankloom.bidding.bounds import best_constant, knapsack_oracle
from rankloom.bidding.controllers import CONTROLLERS, controller
from rankloom.bidding.day import DayResult, play_day
from rankloom.bidding.protocol import Controller, FloatArray
from rankloom.bidding.replay import ReplayMarket
from rankloom.bidding.score import Outcome, concatenate
from rankloom.bidding.traces import MarketDay
from rankloom.errors import RankloomError

BOUNDS: Final = ("best constant in hindsight", "knapsack oracle")
METRICS: Final = (
    "score", "score_gamma0", "score_gamma5", "value", "utilisation", "cpa_ratio", "over_cpa", "max_utilisation",
)  # fmt: skip
Row = dict[str, Any]


def find_controller(spec: str) -> Controller:
    """A trained bidder's folder, or a controller that needs no training by its name; `constant-K` is alpha = K C.

    Raises:
        RankloomError: neither.
    """
    if Path(spec).is_dir():
        from rankloom.bidding.bidders import load_bidder

        bidder: Controller = load_bidder(Path(spec))
        return bidder
    factor = re.fullmatch(r"constant-(\d+(?:\.\d+)?)", spec)
    if factor:
        from rankloom.bidding.controllers import Constant

        return Constant(float(factor[1]))
    if spec not in CONTROLLERS and ("/" in spec or Path(spec).exists()):
        raise RankloomError(
            f"{spec} is no bidder's folder",
            place=spec,
            action="train one with `rankloom bid train`",
            code="bidder-missing",
        )
    return controller(spec)


def interval(values: FloatArray, seed: int = 0, draws: int = 2000) -> tuple[float, float]:
    """95% bootstrap interval of the mean over (day, seat)."""
    rng = np.random.default_rng(seed)
    means = values[rng.integers(0, values.size, (draws, values.size))].mean(axis=1)
    low, high = np.quantile(means, [0.025, 0.975])
    return float(low), float(high)


def budget_name(ratio: float) -> str:
    return f"budget {ratio:.0%}"


def rows_of(system: str, variant: str, outcomes: Sequence[Outcome], markets: Sequence[str]) -> list[Row]:
    """Tidy rows of one controller at one budget: all days together, and the Score of each."""
    together = concatenate(list(outcomes))
    figures = together.summary()
    rows: list[Row] = []
    n = len(together.value_N)
    for metric in METRICS:
        row: Row = {"system": system, "variant": variant, "metric": metric, "value": figures[metric], "n": n}
        if metric == "score":
            row["low"], row["high"] = interval(together.score())
        rows.append(row | {"market": "all"})
    for name, outcome in zip(markets, outcomes, strict=True):
        own = float(outcome.score().mean())
        rows.append(
            {
                "system": system,
                "variant": variant,
                "metric": "score",
                "value": own,
                "n": len(outcome.value_N),
                "market": name,
            }
        )
    return rows


def evaluate(
    days: Sequence[MarketDay],
    controllers: Sequence[Controller],
    *,
    budget_ratio: float = 1.0,
    seed: int = 0,
    bounds: bool = False,
    keep: Callable[[DayResult], None] | None = None,
) -> dict[str, Any]:
    """Every controller in every seat of every day.

    Args:
        bounds: also the best constant and the knapsack oracle in hindsight (about 15 s a day).
        keep: is handed each finished day, for plots.

    Returns:
        `rows` (what was measured) and `checks` (no budget was exceeded).
    """
    variant = budget_name(budget_ratio)
    markets = [day.name for day in days]
    rows: list[Row] = []
    most = 0.0
    for own in controllers:
        outcomes = []
        for day in days:
            result = play_day(ReplayMarket(day, budget_ratio=budget_ratio), own, seed=seed)
            outcomes.append(result.outcome)
            if keep is not None:
                keep(result)
        rows += rows_of(own.name, variant, outcomes, markets)
        most = max(most, max(float(each.utilisation.max()) for each in outcomes))
    if bounds:
        rows += rows_of(BOUNDS[0], variant, [hindsight(day, budget_ratio) for day in days], markets)
        oracle = [knapsack_oracle(ReplayMarket(day, budget_ratio=budget_ratio)) for day in days]
        rows += rows_of(BOUNDS[1], variant, oracle, markets)
    check = {"name": "highest share of a budget spent", "value": most, "target": "<= 1", "ok": most <= 1 + 1e-9}
    return {"rows": rows, "checks": [check] if controllers else []}


def hindsight(day: MarketDay, budget_ratio: float = 1.0) -> Outcome:
    """What the best constants reach on a day."""
    return best_constant(lambda: ReplayMarket(day, budget_ratio=budget_ratio))[1]


def table(rows: Sequence[Row]) -> str:
    """One line a controller and budget."""
    found: dict[tuple[str, str], dict[str, Row]] = {}
    for row in rows:
        if row["market"] == "all":
            found.setdefault((row["variant"], row["system"]), {})[row["metric"]] = row
    lines = [
        f"{'controller':28} {'budget':>12} {'Score':>7} {'95% interval':>15} {'value':>7} {'spent':>6} {'CPA/limit':>9} {'over CPA':>8}"
    ]
    for (variant, system), own in sorted(found.items(), key=lambda each: (each[0][0], each[1]["score"]["value"])):
        interval_text = f"{own['score']['low']:.1f} .. {own['score']['high']:.1f}"
        lines.append(
            f"{system:28} {variant.removeprefix('budget '):>12} {own['score']['value']:7.2f} {interval_text:>15} "
            f"{own['value']['value']:7.2f} {own['utilisation']['value']:6.0%} {own['cpa_ratio']['value']:9.2f} {own['over_cpa']['value']:8.0%}"
        )
    return "\n".join(lines)
