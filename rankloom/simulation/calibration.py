"""The bazaar's marginals beside public KuaiRand figures: target, value, tolerance, source.

What has no public figure (return hazard, session length, cart and purchase rates, search rate, campaign budgets) is
assumed and not listed as calibrated; volumes per person and day (KuaiRand: 381 impressions) are out of reach by design at
this size.
"""

from __future__ import annotations

from dataclasses import dataclass

import polars as pl

from rankloom.data.shop import Shop


@dataclass(frozen=True)
class Marginal:
    """One figure. `tolerance` is relative to the target."""

    name: str
    target: float
    value: float
    tolerance: float
    source: str

    @property
    def ok(self) -> bool:
        return abs(self.value - self.target) <= self.tolerance * self.target


def calibration(shop: Shop) -> list[Marginal]:
    """All calibrated marginals of a bazaar's video impressions."""
    durations = shop.items().select("item_id", "duration_s").filter(pl.col("duration_s").is_not_null())
    events = pl.read_parquet(shop.path / "events.parquet").join(durations, on="item_id", how="inner")
    shown = events.filter((pl.col("event") == "impression") & (pl.col("surface") == "feed"))
    n = shown.height
    watch, duration = shown["watch_s"], shown["duration_s"]
    long_view = shown.select(((pl.col("watch_s") >= 18) | (pl.col("watch_s") >= pl.col("duration_s"))).mean()).item()

    def rate(kind: str) -> float:
        return events.filter((pl.col("event") == kind) & (pl.col("surface") == "feed")).height / n

    def number(value: object) -> float:
        assert isinstance(value, (int, float))
        return float(value)

    pure, fit = "KuaiRand-Pure train rates", "KuaiRand-Pure play times"
    return [
        Marginal("click rate (play over 7 s)", 0.4634, rate("click"), 0.10, pure),
        Marginal("long view rate", 0.3366, number(long_view), 0.15, pure),
        Marginal("like rate", 0.01868, rate("like"), 0.35, pure),
        Marginal("comment rate", 0.00257, rate("comment"), 0.6, pure),
        Marginal("follow rate", 0.00101, rate("follow"), 0.8, pure),
        Marginal("forward rate", 0.00100, rate("share"), 0.8, pure),
        Marginal("hate rate", 0.00042, rate("dislike"), 0.8, pure),
        Marginal("play time mean, s", 23.26, number(watch.mean()), 0.20, fit),
        Marginal("play time median, s", 4.97, number(watch.median()), 0.25, fit),
        Marginal("play time p90, s", 62.8, number(watch.quantile(0.9)), 0.20, fit),
        Marginal("play time p99, s", 213.0, number(watch.quantile(0.99)), 0.35, fit),
        Marginal("zero plays", 0.117, number((watch == 0).mean()), 0.10, fit),
        Marginal("complete plays", 0.156, number((watch >= duration).mean()), 0.25, fit),
        Marginal("duration median, s", 70.0, number(duration.median()), 0.20, "KuaiRand, impression-weighted"),
        Marginal("duration p10, s", 12.0, number(duration.quantile(0.1)), 0.35, "KuaiRand, impression-weighted"),
        Marginal("duration p90, s", 236.0, number(duration.quantile(0.9)), 0.20, "KuaiRand, impression-weighted"),
    ]


def render(rows: list[Marginal]) -> str:
    """A table for a person."""
    lines = [f"{'marginal':<30}{'target':>10}{'bazaar':>10}{'tolerance':>11}  ok   source"]
    for row in rows:
        lines.append(
            f"{row.name:<30}{row.target:>10.4g}{row.value:>10.4g}{row.tolerance:>10.0%}   {'yes' if row.ok else 'NO':<4} {row.source}"
        )
    return "\n".join(lines)
