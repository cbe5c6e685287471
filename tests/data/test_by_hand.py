"""Small logs and catalogues whose reading is written out by hand: what is refused, where, and what becomes of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from rankloom.config import DataConfig
from rankloom.data import reading, schema
from rankloom.data.casting import TimeReader
from rankloom.data.importing import import_data
from rankloom.data.reading import TableFile
from rankloom.data.sequences import load_sequences
from rankloom.data.shop import write_shop
from rankloom.errors import RankloomError
from tests.test_benchmarks import load

sources = load("_sources")


def test_a_log_of_a_single_event_is_read(tmp_path: Path) -> None:
    items = pl.DataFrame({"item_id": ["a", "b"], "title": ["tea", "cup"]})
    times = pl.Series([1_767_225_600_000_000]).cast(schema.TIME)
    events = pl.DataFrame({"user_id": ["u"], "item_id": ["b"], "event": ["purchase"], "timestamp": times})
    shop = write_shop(tmp_path / "shop", items=items, events=events, origin={"clock": "time"})
    sequences = load_sequences(shop, DataConfig(split="leave-one-out"))
    assert sequences.user_ids.tolist() == ["u"]
    assert sequences.item.tolist() == [1]
    assert sequences.target.tolist() == [True]


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        ([1, None, -3], pl.Int64),
        ([1, 2, 3], pl.Int64),
        ([2**63 - 1, None], pl.Int64),
        ([2**63, None, 5], pl.Float64),
        ([2**70, 5], pl.Float64),
        ([0.5, None, 2], pl.Float64),
    ],
)
def test_json_numbers_stay_whole_where_64_bits_hold_them(
    tmp_path: Path, values: list[Any], kind: type[pl.DataType]
) -> None:
    path = tmp_path / "items.jsonl"
    path.write_text("".join(json.dumps({"n": value}) + "\n" for value in values))
    (batch,) = TableFile(path, "jsonl", notices=[]).batches()
    column = batch.frame["n"]
    assert column.dtype == kind
    assert column.to_list() == [
        None if value is None else float(value) if kind == pl.Float64 else value for value in values
    ]


def test_a_person_who_comes_again_in_a_later_batch_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "BATCH_ROWS", 2)
    source = tmp_path / "source"
    source.mkdir()
    pl.DataFrame({"item_id": ["a", "b"], "title": ["tea", "cup"]}).write_parquet(source / "items.parquet")
    lists = pl.DataFrame({"user_id": ["u", "v", "w", "u"], "items": [["a", "b"]] * 4})
    lists.head(3).write_parquet(source / "sequences.parquet")
    assert import_data("sequences", source, tmp_path / "sound").rows["events"] == 6
    lists.write_parquet(source / "sequences.parquet")
    with pytest.raises(RankloomError, match="a user_id comes twice") as caught:
        import_data("sequences", source, tmp_path / "shop")
    assert caught.value.code == "user-duplicate"
    assert "row 4" in str(caught.value.place)


def test_a_kuairand_video_without_an_id_is_refused(tmp_path: Path) -> None:
    _, source = sources.write("kuairand", tmp_path / "source")
    path = source / "data" / "video_features_basic_pure.csv"
    path.write_text(path.read_text().replace("\n2,789", "\n,789"))
    with pytest.raises(RankloomError, match="1 items have no item_id") as caught:
        import_data("kuairand", source, tmp_path / "shop")
    assert "video_features_basic_pure.csv, row 4" in str(caught.value.place)


def test_a_log_without_kinds_is_clicks_and_says_so(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    (source / "events.csv").write_text("user_id,item_id,timestamp\nu,a,1767225600\nv,b,1767225700\n")
    report = import_data("csv", source, tmp_path / "shop")
    assert pl.read_parquet(tmp_path / "shop" / schema.EVENTS)["event"].to_list() == ["click", "click"]
    assert "events.csv: no event kind; every row read as a click" in report.warnings


def test_what_can_be_ordered_is_in_stock(tmp_path: Path) -> None:
    said = {
        "in stock": True, "in_stock": True, "In Stock": True, "preorder": True, "backorder": True, "available for order": True,
        "out of stock": False, "out_of_stock": False, "sold out": False, "who knows": None,
    }  # fmt: skip
    products = "".join(
        f"<item><id>A{n}</id><title>Cup {n}</title><availability>{own}</availability></item>"
        for n, own in enumerate(said)
    )
    (tmp_path / "feed.xml").write_text(f"<rss><channel>{products}</channel></rss>")
    import_data("merchant-feed", tmp_path / "feed.xml", tmp_path / "shop")
    items = pl.read_parquet(tmp_path / "shop" / schema.ITEMS)
    found = {own["item_id"]: own["in_stock"] for own in items.to_dicts()}
    assert found == {f"A{n}": there for n, there in enumerate(said.values())}


@pytest.mark.parametrize("value", [2**62, -(2**62), 5 * 10**18])
def test_a_ga4_time_beyond_all_clocks_is_refused_at_its_line(tmp_path: Path, value: int) -> None:
    path = tmp_path / "events.jsonl"
    hit = {
        "event_name": "view_item",
        "user_pseudo_id": "1.2",
        "event_timestamp": 1_767_225_600_000_000,
        "items": [{"item_id": "A"}],
    }
    path.write_text(json.dumps(hit) + "\n" + json.dumps({**hit, "event_timestamp": value}) + "\n")
    with pytest.raises(RankloomError, match=f"the event_timestamp {value} is no number") as caught:
        import_data("ga4", path, tmp_path / "shop")
    assert "line 2" in str(caught.value.place)


def test_the_titles_of_a_ga4_log_come_from_the_best_that_lies_beside_it(tmp_path: Path) -> None:
    def title() -> str:
        out = tmp_path / f"shop-{len(list(tmp_path.iterdir()))}"
        import_data("ga4", source, out)
        found: str = pl.read_parquet(out / schema.ITEMS).row(by_predicate=pl.col("item_id") == "A", named=True)["title"]
        return found

    folder = tmp_path / "source"
    folder.mkdir()
    source = folder / "events.jsonl"
    item = {"item_id": "A", "item_name": "of the log"}
    hit = {
        "event_name": "view_item",
        "user_pseudo_id": "1.2",
        "event_timestamp": 1_767_225_600_000_000,
        "items": [item],
    }
    source.write_text(json.dumps(hit) + "\n")
    assert title() == "of the log", "a file alone"
    source = folder
    assert title() == "of the log", "a folder with nothing beside the log"
    (folder / "feed.xml").write_text("<rss><channel><item><id>A</id><title>of the feed</title></item></channel></rss>")
    assert title() == "of the feed"
    (folder / "items.csv").write_text("item_id,title\nA,of the table\n")
    assert title() == "of the table", "a table of items is said on purpose, a feed may be another shop's"


@pytest.mark.parametrize("day", ["19900101", "21001231"])
def test_days_from_1990_to_2100_are_days_and_found_among_seconds(day: str) -> None:
    times = TimeReader("when", place="log.csv", notices=[])(pl.Series("when", [day]))
    assert times.dt.strftime("%Y%m%d").to_list() == [day]
    mixed = pl.Series("when", ["1767225600", "1767225601", day])
    with pytest.raises(RankloomError, match="is mixed: 2 in s, 1 in days") as caught:
        TimeReader("when", place="log.csv", notices=[])(mixed, lambda row: f"row {row + 1}")
    assert caught.value.place == "row 3"


@pytest.mark.parametrize("day", ["19891231", "21010101"])
def test_numbers_outside_those_years_are_no_days(day: str) -> None:
    with pytest.raises(RankloomError) as caught:
        TimeReader("when", place="log.csv", notices=[])(pl.Series("when", [int(day)]))
    assert caught.value.code == "clock-unknown"
