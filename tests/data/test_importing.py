from __future__ import annotations

import gzip
import json
from pathlib import Path

import polars as pl
import pytest

from rankloom.data.importing import import_data
from rankloom.data.shop import Shop
from rankloom.errors import RankloomError

ITEMS = 'sku,name,brand,kind,price\nA1,Green tea,Leaf,Tea > Green,$3.50\nA2,绿茶杯,,Cups,"1,299.00"\nA3,Pot,Leaf,,\n'
EVENTS = "customer,sku,time,action\nu1,A1,1767225600,view\nu1,A2,1767225700,buy\nu2,A1,1767225800,点击\nu2,ZZ,1767225900,view\n"


def folder(tmp_path: Path, items: str = ITEMS, events: str = EVENTS, encoding: str = "utf-8") -> Path:
    source = tmp_path / "source"
    source.mkdir(exist_ok=True)
    (source / "items.csv").write_bytes(items.encode(encoding))
    (source / "events.csv").write_bytes(events.encode(encoding))
    return source


def rows(shop: Path, table: str) -> list[dict[str, object]]:
    return pl.read_parquet(shop / table).to_dicts()


def test_csv_with_own_names_becomes_a_shop(tmp_path: Path) -> None:
    report = import_data("csv", folder(tmp_path), tmp_path / "shop")
    items = rows(tmp_path / "shop", "items.parquet")
    assert items[0] == {
        "item_id": "A1",
        "title": "Green tea",
        "brand": "Leaf",
        "category": ["Tea", "Green"],
        "price_micros": 3_500_000,
    }
    assert items[1]["price_micros"] == 1_299_000_000
    assert items[2]["price_micros"] is None
    events = rows(tmp_path / "shop", "events.parquet")
    assert [(e["user_id"], e["item_id"], e["event"]) for e in events] == [
        ("u1", "A1", "view"),
        ("u1", "A2", "purchase"),
        ("u2", "A1", "click"),
    ]
    assert events[0]["timestamp"].isoformat() == "2026-01-01T00:00:00+00:00"
    assert (report.unjoined, report.unjoined_samples) == (1, ["ZZ"])
    text = report.render()
    assert "item_id      <- 'sku'    'A1'" in text
    assert "read as s since 1970" in text
    assert Shop.open(tmp_path / "shop").origin["unjoined"] == 1


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "gb18030"])
def test_encodings_are_recognised(tmp_path: Path, encoding: str) -> None:
    report = import_data("csv", folder(tmp_path, encoding=encoding), tmp_path / "shop")
    assert rows(tmp_path / "shop", "items.parquet")[1]["title"] == "绿茶杯"
    if encoding in ("utf-16", "gb18030"):
        assert any(encoding.upper() in notice for notice in report.notices)


@pytest.mark.parametrize(("unit", "factor"), [("s", 1), ("ms", 10**3), ("us", 10**6), ("ns", 10**9)])
def test_clocks_are_recognised_and_said(tmp_path: Path, unit: str, factor: int) -> None:
    events = f"user_id,item_id,timestamp\nu1,A1,{1767225600 * factor}\nu1,A2,{1767225601 * factor}\n"
    report = import_data("csv", folder(tmp_path, events=events), tmp_path / "shop")
    assert rows(tmp_path / "shop", "events.parquet")[1]["timestamp"].isoformat() == "2026-01-01T00:00:01+00:00"
    assert any(f"read as {unit}" in notice for notice in report.notices)


@pytest.mark.parametrize(
    ("text", "iso"),
    [
        ("2026-01-02T03:04:05Z", "2026-01-02T03:04:05"),
        ("2026-01-02 03:04:05.123", "2026-01-02T03:04:05.123000"),
        ("2026-01-02T03:04:05+08:00", "2026-01-01T19:04:05"),
        ("2026-01-02 03:04:05.5 -0130", "2026-01-02T04:34:05.500000"),
        ("20260102", "2026-01-02T00:00:00"),
        ("2026/01/02 03:04", "2026-01-02T03:04:00"),
        ("2026-01-02", "2026-01-02T00:00:00"),
    ],
)
def test_written_times(tmp_path: Path, text: str, iso: str) -> None:
    import_data("csv", folder(tmp_path, events=f"user_id,item_id,timestamp\nu1,A1,{text}\n"), tmp_path / "shop")
    assert rows(tmp_path / "shop", "events.parquet")[0]["timestamp"].isoformat() == iso + "+00:00"


def test_jsonl_gzip_and_parquet(tmp_path: Path) -> None:
    source = tmp_path / "jsonl"
    source.mkdir()
    (source / "items.jsonl").write_text(
        json.dumps({"item_id": 7, "title": "Pot", "categories": [["Home", "Kitchen"], ["Home", "Tea"]]}) + "\n"
    )
    with gzip.open(source / "events.jsonl.gz", "wt") as handle:
        handle.write(
            json.dumps({"user": "u", "item_id": 7, "ts": 1767225600000, "event": "add-to-cart", "watch_s": 2.5}) + "\n"
        )
    import_data("jsonl", source, tmp_path / "a")
    assert rows(tmp_path / "a", "items.parquet")[0]["category"] == ["Home", "Kitchen", "Tea"]
    assert rows(tmp_path / "a", "events.parquet")[0]["event"] == "add_to_cart"
    parquet = tmp_path / "parquet"
    parquet.mkdir()
    pl.DataFrame({"item_id": ["a"], "title": ["b"], "in_stock": ["yes"], "price": [2.5]}).write_parquet(
        parquet / "items.parquet"
    )
    pl.DataFrame(
        {"user_id": ["u"], "item_id": ["a"], "date": [pl.Series(["2026-01-01"]).str.to_date()[0]]}
    ).write_parquet(parquet / "events.parquet")
    import_data("parquet", parquet, tmp_path / "b")
    item = rows(tmp_path / "b", "items.parquet")[0]
    assert (item["in_stock"], item["price_micros"]) == (True, 2_500_000)


def test_a_single_events_file_is_enough(tmp_path: Path) -> None:
    source = folder(tmp_path)
    report = import_data("csv", source / "events.csv", tmp_path / "shop")
    assert report.rows["items"] == 3
    assert any("titled by their ids" in notice for notice in report.notices)


def test_searches_need_no_item(tmp_path: Path) -> None:
    events = "user_id,item_id,timestamp,event,query\nu1,,1767225600,search,tea\nu1,A1,1767225601,click,tea\n"
    import_data("csv", folder(tmp_path, events=events), tmp_path / "shop")
    assert [e["event"] for e in rows(tmp_path / "shop", "events.parquet")] == ["search", "click"]


def sequences(tmp_path: Path, **changes: pl.DataFrame) -> Path:
    source = tmp_path / "seq"
    source.mkdir(exist_ok=True)
    items = pl.DataFrame(
        {
            "item_id": [1, 2, 3],
            "asin": ["x", "y", "z"],
            "n_interactions": [5, 6, 7],
            "brand": ["B", None, None],
            "keywords": ["soap|hand", "comb", ""],
        }
    )
    lists = pl.DataFrame({"user_id": [1, 2], "items": [[1, 2, 3], [3, 1]]})
    changes.get("items", items).write_parquet(source / "items.parquet")
    changes.get("lists", lists).write_parquet(source / "sequences.parquet")
    return source


def test_ordered_lists_become_a_shop_without_a_clock(tmp_path: Path) -> None:
    report = import_data("sequences", sequences(tmp_path), tmp_path / "shop")
    events = rows(tmp_path / "shop", "events.parquet")
    assert [e["item_id"] for e in events if e["user_id"] == "1"] == ["1", "2", "3"]
    times = [e["timestamp"] for e in events if e["user_id"] == "1"]
    assert times == sorted(times)
    assert Shop.open(tmp_path / "shop").origin["clock"] == "order"
    titles = [item["title"] for item in rows(tmp_path / "shop", "items.parquet")]
    assert titles == ["B soap hand", "comb", "3"]
    assert any("3 missing titles built" in notice for notice in report.notices)


BROKEN = {
    "empty file": ("", EVENTS, "is empty"),
    "no id column": ("foo,bar\n1,2\n", EVENTS, "no column for item_id"),
    "missing id": ("sku,name\n,Tea\n", EVENTS, "no item_id"),
    "two different rows of one item": ("sku,name\nA1,Tea\nA1,Pot\n", EVENTS, "comes 2 times"),
    "mixed clock": (ITEMS, "customer,sku,time\nu,A1,1767225600\nu,A1,1767225600000\n", "mixed"),
    "no clock": (ITEMS, "customer,sku,time\nu,A1,12\n", "no times between"),
    "unreadable time": (ITEMS, "customer,sku,time\nu,A1,soon\n", "cannot be read as timestamp"),
    "unknown event": (ITEMS, "customer,sku,time,action\nu,A1,1767225600,teleport\n", "unknown event kinds"),
    "no user": (ITEMS, "customer,sku,time\n,A1,1767225600\n", "have no user_id"),
    "nothing joins": (ITEMS, "customer,sku,time\nu,QQ,1767225600\n", "no event joins"),
    "price as words": ("sku,name,price\nA1,Tea,cheap\n", EVENTS, "cannot be read as price_micros"),
    "NUL bytes": ("sku,name\nA1,T\x00ea\n", EVENTS, "NUL bytes"),
    "ragged row": (ITEMS, "customer,sku,time\nu,A1,1767225600,x,y,z\n", "a row has 6 values, the header 3"),
    "two candidates": ("sku,SKU,name\nA1,A2,Tea\n", EVENTS, "both could be"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_input_is_refused_whole(tmp_path: Path, name: str) -> None:
    items, events, message = BROKEN[name]
    with pytest.raises(RankloomError, match=message) as caught:
        import_data("csv", folder(tmp_path, items, events), tmp_path / "shop")
    assert caught.value.place
    assert caught.value.action
    assert sorted(path.name for path in tmp_path.iterdir()) == ["source"]


@pytest.mark.parametrize("format", ["csv", "jsonl", "parquet", "sequences"])
@pytest.mark.parametrize("garbage", [b"\x00\x01\x02", b"PAR1 nonsense", b'{"a": [1, 2', b"\xff\xfe\x00"])
def test_garbage_is_refused(tmp_path: Path, format: str, garbage: bytes) -> None:
    source = tmp_path / "source"
    source.mkdir()
    suffix = {"sequences": "parquet"}.get(format, format)
    for name in ("items", "events", "sequences"):
        (source / f"{name}.{suffix}").write_bytes(garbage)
    with pytest.raises(RankloomError):
        import_data(format, source, tmp_path / "shop")
    assert not (tmp_path / "shop").exists()


def test_wrong_calls_are_told(tmp_path: Path) -> None:
    source = folder(tmp_path)
    for format, where, out, mapping, message in (
        ("xml", source, "s", {}, "no importer"),
        ("csv", tmp_path / "none", "s", {}, "no file or folder"),
        ("jsonl", source, "s", {}, "no events file"),
        ("csv", source, "s", {"item": "sku"}, "no shop column"),
        ("csv", source, "s", {"item_id": "skuu"}, "did you mean item_id=sku"),
        ("sequences", source, "s", {}, "lacks items.parquet"),
        ("csv", source, "source", {}, "not empty"),
    ):
        with pytest.raises(RankloomError) as caught:
            import_data(format, where, tmp_path / out, mapping=mapping)
        assert message in str(caught.value)
    for lists in (pl.DataFrame({"user_id": [1, 1], "items": [[1], [2]]}), pl.DataFrame({"user": [1], "items": [[1]]})):
        with pytest.raises(RankloomError):
            import_data("sequences", sequences(tmp_path, lists=lists), tmp_path / "s")
