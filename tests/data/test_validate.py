"""Every check has a bad fixture that triggers it and nothing else: a clean shop with one thing broken."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from rankloom.data import schema
from rankloom.data.shop import Shop
from rankloom.data.validate import (
    N_CHECKS,
    ROW_CHECKS,
    SHOP_CHECKS,
    SOURCE_CHECKS,
    guess_format,
    validate,
    validate_source,
)
from rankloom.errors import RankloomError

Tables = dict[str, pl.DataFrame]
Change = Callable[[Tables], Any]
N_USERS, N_ITEMS, EACH = 60, 60, 12
START = datetime(2026, 1, 1, tzinfo=UTC)


def clean() -> Tables:
    """A shop with nothing to say about: everybody has a history, every item was seen, every field is filled."""
    number = range(N_USERS * EACH)
    items = pl.DataFrame(
        {
            "item_id": [f"i{n}" for n in range(N_ITEMS)],
            "title": [f"Tea number {n}" for n in range(N_ITEMS)],
            "category": [["Tea", "Green"]] * N_ITEMS,
            "price_micros": [(10 + n) * 1_000_000 for n in range(N_ITEMS)],
            "currency": ["EUR"] * N_ITEMS,
            "created_at": [START] * N_ITEMS,
            "duration_s": [30.0] * N_ITEMS,
            "simulated": [True] * N_ITEMS,
        },
        schema_overrides={"created_at": schema.TIME},
    )
    events = pl.DataFrame(
        {
            "user_id": [f"u{n % N_USERS}" for n in number],
            "item_id": [f"i{(n % N_USERS + n // N_USERS * 7) % N_ITEMS}" for n in number],
            "timestamp": [START + timedelta(minutes=n) for n in number],
            "event": ["click" if n % 2 else "view" for n in number],
            "value": [1.0] * len(number),
            "watch_s": [20.0] * len(number),
            "surface": ["feed"] * len(number),
            "query": [None] * len(number),
            "position": [n % 5 for n in number],
            "propensity": [0.2] * len(number),
            "event_id": [f"e{n}" for n in number],
            "simulated": [True] * len(number),
        },
        schema_overrides={"timestamp": schema.TIME, "query": pl.String, "position": pl.Int32},
    )
    users = pl.DataFrame({"user_id": [f"u{n}" for n in range(N_USERS)], "level": [1] * N_USERS})
    campaigns = pl.DataFrame(
        {"campaign_id": ["c1", "c2"], "item_id": ["i1", "i2"], "budget_micros": [10**9, 10**9], "start": [START] * 2, "end": [START + timedelta(days=9)] * 2},
        schema_overrides={"start": schema.TIME, "end": schema.TIME},
    )  # fmt: skip
    return {"items": items, "events": events, "users": users, "campaigns": campaigns}


def write(tables: Tables, folder: Path) -> Path:
    folder.mkdir()
    for name, table in tables.items():
        table.write_parquet(folder / f"{name}.parquet")
    rows = {name: table.height for name, table in tables.items()}
    (folder / "shop.json").write_text(json.dumps({"schema_version": 1, "clock": "time", "rows": rows}))
    return folder


def put(table: str, column: str, value: object, row: int = 0) -> Change:
    """Sets one value."""

    def change(tables: Tables) -> None:
        frame = tables[table]
        values = frame[column].to_list()
        values[row] = value
        tables[table] = frame.with_columns(pl.Series(column, values, dtype=frame.schema[column]))

    return change


def rename(column: str, old: str, new: str) -> Change:
    """Another name for an item or a person, in every table."""

    def change(tables: Tables) -> None:
        for name, frame in tables.items():
            if column in frame.columns:
                tables[name] = frame.with_columns(pl.col(column).replace(old, new))

    return change


def both(*changes: Change) -> Change:
    return lambda tables: [change(tables) for change in changes]


def rows(table: str, take: Callable[[pl.DataFrame], pl.DataFrame]) -> Change:
    return lambda tables: tables.update({table: take(tables[table])})


def again(table: str, **values: object) -> Change:
    """The first row once more, at the end, with other values."""
    return rows(
        table,
        lambda frame: pl.concat([frame, frame.head(1).with_columns(pl.lit(value).cast(frame.schema[name]).alias(name) for name, value in values.items())]),
    )  # fmt: skip


def bot(frame: pl.DataFrame) -> pl.DataFrame:
    more = pl.concat([frame] * 2).head(300).with_row_index("n")
    late = pl.lit(START + timedelta(days=3)).cast(schema.TIME) + pl.duration(minutes=pl.col("n"))
    return pl.concat(
        [frame, more.with_columns(pl.lit("u0").alias("user_id"), late.alias("timestamp"), pl.format("x{}", "n").alias("event_id")).drop("n")]
    )


BAD: dict[str, Change] = {
    "item-id-missing": again("items", item_id=None, title="Nameless"),
    "item-id-duplicate": again("items", title="The same id"),
    "item-id-scientific": rename("item_id", "i5", "1.2E+15"),
    "item-id-space": rename("item_id", "i5", " i5"),
    "item-id-control": rename("item_id", "i5", "i\x005"),
    "item-id-long": rename("item_id", "i5", "x" * 300),
    "title-duplicate": put("items", "title", "Tea number 1"),
    "title-missing": put("items", "title", " "),
    "title-is-id": put("items", "title", "i0"),
    "title-html": put("items", "title", "<b>Tea</b>"),
    "title-mojibake": put("items", "title", "caf\ufffd"),
    "title-control": put("items", "title", "a\x01b"),
    "title-long": put("items", "title", "tea " * 200),
    "price-negative": put("items", "price_micros", -1),
    "price-zero": put("items", "price_micros", 0),
    "price-outlier": put("items", "price_micros", 10**15),
    "duration-invalid": put("items", "duration_s", -2.0),
    "duration-huge": put("items", "duration_s", 1e6),
    "created-future": put("items", "created_at", datetime(2099, 1, 1, tzinfo=UTC)),
    "category-empty": put("items", "category", []),
    "user-id-missing": put("events", "user_id", ""),
    "user-id-scientific": rename("user_id", "u5", "1.2E+15"),
    "user-id-space": rename("user_id", "u5", "u5 "),
    "user-id-control": rename("user_id", "u5", "u\x005"),
    "event-item-missing": put("events", "item_id", None),
    "time-missing": put("events", "timestamp", None),
    "time-future": put("events", "timestamp", datetime(2099, 1, 1, tzinfo=UTC), row=-1),
    "time-ancient": put("events", "timestamp", datetime(1970, 1, 2, tzinfo=UTC)),
    "time-unordered": put("events", "timestamp", START + timedelta(days=2)),
    "event-duplicate": rows("events", lambda frame: pl.concat([frame.head(1).with_columns(pl.lit("again").alias("event_id")), frame])),
    "event-unknown": put("events", "event", "teleport"),
    "event-id-duplicate": put("events", "event_id", "e1"),
    "surface-unknown": put("events", "surface", "billboard"),
    "watch-negative": put("events", "watch_s", -3.0),
    "watch-nan": put("events", "watch_s", float("nan")),
    "watch-huge": put("events", "watch_s", 1e6),
    "value-nan": put("events", "value", float("inf")),
    "position-negative": put("events", "position", -4),
    "propensity-range": put("events", "propensity", 1.5),
    "query-missing": both(put("events", "event", "search"), put("events", "item_id", None)),
    "users-id-missing": again("users", user_id=""),
    "users-id-duplicate": again("users"),
    "campaign-id-missing": put("campaigns", "campaign_id", ""),
    "campaign-id-duplicate": put("campaigns", "campaign_id", "c2"),
    "budget-invalid": put("campaigns", "budget_micros", 0),
    "campaign-dates": put("campaigns", "end", datetime(2000, 1, 1, tzinfo=UTC)),
    "table-empty": rows("events", lambda frame: frame.head(0)),
    "column-missing": rows("events", lambda frame: frame.drop("timestamp")),
    "column-type": rows("items", lambda frame: frame.with_columns(pl.lit("$3").alias("price_micros"))),
    "unjoined-events": put("events", "item_id", "nowhere"),
    "campaign-item-unknown": put("campaigns", "item_id", "nowhere"),
    "clock-unit": put("events", "timestamp", datetime.fromtimestamp(1767.225600, tz=UTC)),
    "history-empty": again("users", user_id="stranger"),
    "user-short-history": again("events", user_id="newcomer", event_id="n1"),
    "item-never-seen": again("items", item_id="i-new", title="Tea to come"),
    "too-small": both(
        rows("events", lambda frame: frame.filter(pl.col("user_id").str.slice(1).cast(pl.Int64) < 45)),
        rows("users", lambda frame: frame.head(45)),
    ),
    "user-dominates": rows("events", bot),
    "times-equal": rows("events", lambda frame: frame.with_columns(pl.col("timestamp").first())),
    "currency-mixed": put("items", "currency", "USD"),
    "watch-exceeds-duration": put("events", "watch_s", 30_000.0),
    "simulated-mixed": put("events", "simulated", False),
}  # fmt: skip
FILES: dict[str, Callable[[Path], object]] = {
    "file-missing": lambda shop: (shop / "events.parquet").unlink(),
    "file-broken": lambda shop: (shop / "items.parquet").write_bytes(b"PAR1 broken"),
    "origin-broken": lambda shop: (shop / "shop.json").write_text("{half"),
    "rows-differ": lambda shop: (shop / "shop.json").write_text(json.dumps({"rows": {"items": 61}})),
}


def test_every_named_check_has_a_bad_fixture() -> None:
    names = [check.name for check in ROW_CHECKS] + list(SHOP_CHECKS) + list(SOURCE_CHECKS)
    assert len(set(names)) == len(names) == N_CHECKS >= 30
    assert set(names) == set(BAD) | set(FILES) | set(SOURCES)


def test_a_clean_shop_triggers_no_check(tmp_path: Path) -> None:
    report = validate(write(clean(), tmp_path / "shop"))
    assert report.findings == []
    assert "0 errors, 0 warnings" in report.render()


def test_the_bazaar_has_no_error_or_warning(bazaar: Shop) -> None:
    assert [finding for finding in validate(bazaar.path).findings if finding.severity != "info"] == []


@pytest.mark.parametrize("name", [*BAD, *FILES])
def test_a_bad_fixture_triggers_exactly_its_check(tmp_path: Path, name: str) -> None:
    tables = clean()
    if name in BAD:
        BAD[name](tables)
    shop = write(tables, tmp_path / "shop")
    if name in FILES:
        FILES[name](shop)
    report = validate(shop)
    assert [finding.check for finding in report.findings] == [name]
    (found,) = report.findings
    assert found.fact
    assert found.action
    assert str(shop) in found.place
    assert name in report.render()
    assert report.to_dict()["findings"][0]["check"] == name


def test_findings_say_how_many_which_and_where(tmp_path: Path) -> None:
    tables = clean()
    for change in (put("events", "watch_s", -3.0, row=6), put("events", "watch_s", -4.0, row=9)):
        change(tables)
    (found,) = validate(write(tables, tmp_path / "shop")).findings
    assert found.fact == "2 of 720: watch times are negative, such as '-3.0', '-4.0'"
    assert found.place.endswith("events.parquet, row 7, column watch_s")


@pytest.mark.parametrize(("unit", "micros"), [("seconds", 1_767_225_600), ("milliseconds", 1_767_225_600_000), ("nanoseconds", 1_767_225_600 * 10**9)])
def test_a_clock_in_another_unit_is_named(tmp_path: Path, unit: str, micros: int) -> None:
    tables = clean()
    row = -1 if unit == "nanoseconds" else 0
    times = tables["events"]["timestamp"].dt.timestamp("us").to_list()
    times[row] = micros
    tables["events"] = tables["events"].with_columns(pl.Series("timestamp", times).cast(pl.Datetime("us")).dt.replace_time_zone("UTC"))
    (found,) = validate(write(tables, tmp_path / "shop")).findings
    assert found.check == "clock-unit"
    assert unit in found.fact


def test_a_shop_of_ordered_lists_is_not_asked_for_a_clock(tmp_path: Path) -> None:
    tables = clean()
    order = (pl.int_range(pl.len()).over("user_id") * 1_000_000).cast(pl.Datetime("us")).dt.replace_time_zone("UTC")
    tables["events"] = tables["events"].with_columns(order.alias("timestamp"))
    shop = write(tables, tmp_path / "shop")
    assert validate(shop).errors == []
    assert {finding.check for finding in validate(shop).findings} == {"time-ancient"}
    (shop / "shop.json").write_text(json.dumps({"clock": "order"}))
    assert validate(shop).findings == []


def test_several_findings_come_worst_first(tmp_path: Path) -> None:
    shop = write(clean(), tmp_path / "shop")
    FILES["file-broken"](shop)
    FILES["file-missing"](shop)
    FILES["origin-broken"](shop)
    findings = validate(shop).findings
    assert [finding.severity for finding in findings] == ["error", "error", "warning"]
    assert {finding.check for finding in findings} == {"file-missing", "file-broken", "origin-broken"}
    with pytest.raises(RankloomError, match="no shop folder"):
        validate(tmp_path / "nothing")


# -- files that are not a shop yet -------------------------------------------------------------------------------------


def text_tables(items: str | None = None, events: str | None = None) -> tuple[str, str]:
    """Clean CSV tables of the clean shop."""
    tables = clean()
    head = "item_id,title,category,price\n"
    lines = [f"i{n},茶 number {n},Tea > Green,{10 + n}.50" for n in range(N_ITEMS)]
    frame = tables["events"].with_columns(pl.col("timestamp").dt.epoch("s"))
    log = [",".join(map(str, row)) for row in frame.select("user_id", "item_id", "timestamp", "event").iter_rows()]
    own_items = items if items is not None else head + "\n".join(lines) + "\n"
    own_events = events if events is not None else "user_id,item_id,timestamp,event\n" + "\n".join(log) + "\n"
    return own_items, own_events


def csv_source(items: str | None = None, events: str | None = None, encoding: str = "utf-8") -> Callable[[Path], str]:
    def make(folder: Path) -> str:
        own_items, own_events = text_tables(items, events)
        (folder / "items.csv").write_bytes(own_items.encode(encoding))
        (folder / "events.csv").write_bytes(own_events.encode(encoding))
        return "csv"

    return make


def edited(old: str, new: str) -> Callable[[Path], str]:
    """One place of the clean events replaced."""
    events = text_tables()[1]
    assert old in events
    return csv_source(events=events.replace(old, new, 1))


def placed(name: str, content: bytes, format: str = "csv") -> Callable[[Path], str]:
    """A file put over the clean tables; an empty name makes a folder of it."""

    def make(folder: Path) -> str:
        csv_source()(folder)
        (folder / name).write_bytes(content)
        return format

    return make


def folder_for_file(folder: Path) -> str:
    csv_source()(folder)
    (folder / "items.csv").unlink()
    (folder / "items.csv").mkdir()
    return "csv"


def json_lines(folder: Path) -> str:
    (folder / "events.jsonl").write_text('{"user_id": "u", "item_id": "i", "timestamp": 1767225600}\n{"user_id": "u", \n')
    return "jsonl"


def feed(text: str) -> Callable[[Path], str]:
    def make(folder: Path) -> str:
        (folder / "feed.xml").write_text(text)
        return "merchant-feed"

    return make


def packed_short(folder: Path) -> str:
    csv_source()(folder)
    whole = gzip.compress(text_tables()[1].encode())
    (folder / "events.csv").unlink()
    (folder / "events.csv.gz").write_bytes(whole[: len(whole) // 2])
    return "csv"


SOURCES: dict[str, Callable[[Path], str]] = {
    "encoding-other": csv_source(encoding="gb18030"),
    "encoding-unknown": placed("items.csv", "item_id,title\ni1,café\ni2,naïve\n".encode("latin-1")),
    "encoding-broken": placed("items.csv", b"item_id,title\n" + b"i1,tea and more tea\n" * 60_000 + b"i2,\xff\xff\n"),
    "nul-bytes": edited("u1,i1", "u1,\x00i1"),
    "file-empty": placed("items.csv", b""),
    "file-is-folder": folder_for_file,
    "file-truncated": packed_short,
    "row-ragged": edited("u1,i1", "u1,i1,extra"),
    "quote-open": edited("\nu59,i16,", '\n"u59,i16,'),
    "header-duplicate": edited("user_id,item_id", "user_id,user_id"),
    "json-line-broken": json_lines,
    "xml-broken": feed("<rss><channel><item><id>1</id></channel></rss>"),
    "xml-entities": feed('<!DOCTYPE rss [<!ENTITY a "b">]><rss><channel><item><id>&a;</id></item></channel></rss>'),
    "clock-mixed": edited("1767225600,", "1767225600000,"),
    "clock-unknown": csv_source(events="user_id,item_id,timestamp\nu1,i1,12\n"),
    "value-unreadable": edited("1767225600,", "soon,"),
    "id-scientific": edited("u1,i1,", "u1,1.2E+15,"),
    "mapping-missing": csv_source(items="foo,bar\n1,2\n"),
    "mapping-ambiguous": csv_source(items="sku,SKU,title\n1,2,Tea\n"),
    "item-duplicate": csv_source(items="item_id,title\ni1,Tea\ni1,Pot\n"),
    "events-missing": lambda folder: "jsonl" if csv_source()(folder) else "",
    "nothing-joined": csv_source(items="item_id,title\nzz,Tea\n"),
}


def test_clean_files_trigger_no_check(tmp_path: Path) -> None:
    csv_source()(tmp_path)
    assert validate_source(tmp_path, "csv").findings == []
    assert sorted(path.name for path in tmp_path.iterdir()) == ["events.csv", "items.csv"]


@pytest.mark.parametrize("name", SOURCES)
def test_a_bad_file_triggers_exactly_its_check(tmp_path: Path, name: str) -> None:
    format = SOURCES[name](tmp_path)
    report = validate_source(tmp_path, format)
    assert [finding.check for finding in report.findings] == [name]
    (found,) = report.findings
    assert found.fact
    assert found.action
    assert str(tmp_path) in found.place


def test_utf16_is_said_and_unjoined_events_are_counted_before_the_import(tmp_path: Path) -> None:
    events = text_tables()[1].replace("u1,i1,", "u1,nowhere,", 1)
    csv_source(events=events, encoding="utf-16")(tmp_path)
    findings = {finding.check: finding for finding in validate_source(tmp_path, "csv").findings}
    assert set(findings) == {"encoding-other", "unjoined-events"}
    assert "UTF-16" in findings["encoding-other"].fact
    assert "1 events name items that the catalogue lacks, such as nowhere" in findings["unjoined-events"].fact


def test_wrong_questions_are_refused_not_reported(tmp_path: Path) -> None:
    csv_source()(tmp_path)
    with pytest.raises(RankloomError, match="no importer"):
        validate_source(tmp_path, "xls")
    with pytest.raises(RankloomError, match="no encoding"):
        validate_source(tmp_path, "csv", encoding="klingon")
    with pytest.raises(RankloomError, match="no shop column"):
        validate_source(tmp_path, "csv", mapping={"colour": "title"})
    with pytest.raises(RankloomError):
        validate_source(tmp_path / "nothing", "csv")


def test_the_format_of_a_folder_is_guessed_by_its_files(tmp_path: Path) -> None:
    for name, format in (("events.csv", "csv"), ("events.tsv", "csv"), ("events.ndjson", "jsonl"), ("events.parquet", "parquet"), ("sequences.parquet", "sequences")):
        folder = tmp_path / name.replace(".", "-")
        folder.mkdir()
        (folder / name).write_text("x")
        assert guess_format(folder) == format
    assert guess_format(tmp_path / "events-csv" / "events.csv") == "csv"
    assert guess_format(write(clean(), tmp_path / "shop")) is None
    assert guess_format(tmp_path) is None
