"""Every check has a bad fixture: a clean shop with one thing broken."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import polars as pl
import pytest

from rankloom.data.shop import Shop
from rankloom.data.validate import ROW_CHECKS, SHOP_CHECKS, validate
from rankloom.errors import RankloomError

Change = Callable[[pl.DataFrame], pl.DataFrame]


def first(column: str, value: object) -> Change:
    """Sets the first row of a column."""
    return lambda frame: frame.with_columns(
        pl.when(pl.int_range(pl.len()) == 0)
        .then(pl.lit(value))
        .otherwise(pl.col(column))
        .cast(frame.schema[column])
        .alias(column)
    )


def event(column: str, value: object, kind: str = "impression") -> Change:
    return lambda frame: frame.with_columns(
        pl.when((pl.col("event") == kind) & (pl.col("event") == kind).cum_sum().eq(1))
        .then(pl.lit(value))
        .otherwise(pl.col(column))
        .cast(frame.schema[column])
        .alias(column)
    )


ITEMS, EVENTS, CAMPAIGNS = "items.parquet", "events.parquet", "campaigns.parquet"
BAD: dict[str, tuple[str, Change]] = {
    "item-id-missing": (ITEMS, first("item_id", None)),
    "item-id-duplicate": (ITEMS, lambda f: pl.concat([f, f.head(1)])),
    "item-id-scientific": (ITEMS, first("item_id", "1.2E+15")),
    "item-id-space": (ITEMS, first("item_id", " v1")),
    "item-id-control": (ITEMS, first("item_id", "a\x00b")),
    "item-id-long": (ITEMS, first("item_id", "x" * 300)),
    "title-missing": (ITEMS, first("title", " ")),
    "title-is-id": (ITEMS, lambda f: f.with_columns(pl.when(pl.int_range(pl.len()) == 0).then(pl.col("item_id")).otherwise(pl.col("title")).alias("title"))),
    "title-html": (ITEMS, first("title", "<b>Tea</b>")),
    "title-mojibake": (ITEMS, first("title", "caf\ufffd")),
    "title-control": (ITEMS, first("title", "a\x01b")),
    "title-long": (ITEMS, first("title", "tea " * 200)),
    "price-negative": (ITEMS, first("price_micros", -1)),
    "price-zero": (ITEMS, first("price_micros", 0)),
    "price-outlier": (ITEMS, first("price_micros", 10**15)),
    "duration-invalid": (ITEMS, first("duration_s", -2.0)),
    "category-empty": (ITEMS, lambda f: f.with_columns(pl.when(pl.int_range(pl.len()) > 0).then(pl.col("category")).alias("category"))),
    "user-id-missing": (EVENTS, first("user_id", "")),
    "event-item-missing": (EVENTS, event("item_id", None)),
    "time-missing": (EVENTS, first("timestamp", None)),
    "time-future": (EVENTS, first("timestamp", datetime(2099, 1, 1, tzinfo=UTC))),
    "time-ancient": (EVENTS, first("timestamp", datetime(1970, 1, 2, tzinfo=UTC))),
    "event-unknown": (EVENTS, first("event", "teleport")),
    "event-id-duplicate": (EVENTS, lambda f: f.with_columns(pl.lit("same").alias("event_id"))),
    "surface-unknown": (EVENTS, first("surface", "billboard")),
    "watch-negative": (EVENTS, first("watch_s", -3.0)),
    "watch-nan": (EVENTS, first("watch_s", float("nan"))),
    "watch-huge": (EVENTS, first("watch_s", 1e6)),
    "position-negative": (EVENTS, event("position", -4)),
    "propensity-range": (EVENTS, first("propensity", 1.5)),
    "query-missing": (EVENTS, event("query", None, "search")),
    "budget-invalid": (CAMPAIGNS, first("budget_micros", 0)),
    "campaign-dates": (CAMPAIGNS, first("end", datetime(2000, 1, 1, tzinfo=UTC))),
    "table-empty": (EVENTS, lambda f: f.head(0)),
    "column-missing": (EVENTS, lambda f: f.drop("timestamp")),
    "column-type": (ITEMS, lambda f: f.with_columns(pl.lit("$3").alias("price_micros"))),
    "unjoined-events": (EVENTS, first("item_id", "nowhere")),
    "campaign-item-unknown": (CAMPAIGNS, first("item_id", "nowhere")),
    "user-dominates": (EVENTS, lambda f: f.with_columns(pl.when(pl.int_range(pl.len()) % 3 == 0).then(pl.lit("bot")).otherwise(pl.col("user_id")).alias("user_id"))),
    "times-equal": (EVENTS, lambda f: f.with_columns(pl.col("timestamp").first())),
    "currency-mixed": (ITEMS, first("currency", "EUR")),
    "too-small": (EVENTS, lambda f: f.head(200)),
    "item-never-seen": (EVENTS, lambda f: f.head(200)),
    "user-short-history": (EVENTS, lambda f: f.head(200)),
}  # fmt: skip


def copy(bazaar: Shop, target: Path, table: str | None = None, change: Change | None = None) -> Path:
    target.mkdir()
    for file in bazaar.path.iterdir():
        if file.name == table and change is not None:
            change(pl.read_parquet(file)).write_parquet(target / file.name)
        else:
            (target / file.name).write_bytes(file.read_bytes())
    return target


def test_there_are_at_least_thirty_checks_and_each_has_a_fixture() -> None:
    names = {check.name for check in ROW_CHECKS} | set(SHOP_CHECKS)
    assert len(names) >= 30
    assert names == set(BAD) | {"file-missing", "file-broken"}


def test_a_clean_shop_has_no_error_or_warning(bazaar: Shop) -> None:
    report = validate(bazaar.path)
    assert [f for f in report.findings if f.severity != "info"] == []
    assert "0 errors, 0 warnings" in report.render()


@pytest.mark.parametrize("name", BAD)
def test_each_check_fires_with_fact_place_and_action(bazaar: Shop, tmp_path: Path, name: str) -> None:
    table, change = BAD[name]
    report = validate(copy(bazaar, tmp_path / "shop", table, change))
    found = [finding for finding in report.findings if finding.check == name]
    assert len(found) == 1
    assert found[0].fact
    assert str(tmp_path) in found[0].place
    assert found[0].action
    assert name in report.render()
    assert any(f["check"] == name for f in report.to_dict()["findings"])


def test_missing_and_broken_files(bazaar: Shop, tmp_path: Path) -> None:
    shop = copy(bazaar, tmp_path / "shop")
    (shop / ITEMS).write_bytes(b"PAR1 broken")
    (shop / EVENTS).unlink()
    assert {finding.check for finding in validate(shop).errors} == {"file-broken", "file-missing"}
    with pytest.raises(RankloomError, match="no shop folder"):
        validate(tmp_path / "nothing")
