"""Each format's own file layout becomes the shop it should: golden values, written out by hand."""

from __future__ import annotations

import gzip
import json
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from rankloom.cli import import_ as import_command
from rankloom.data import schema
from rankloom.data.importers import importers
from rankloom.data.importing import FORMATS, ImportReport, import_data
from rankloom.data.shop import Shop
from rankloom.data.validate import validate
from rankloom.errors import RankloomError
from tests.test_benchmarks import load

sources = load("_sources")


class Imported:
    """A source of `benchmarks/_sources.py` as the shop it became."""

    def __init__(self, name: str, folder: Path, **options: Any) -> None:
        self.format, self.source = sources.write(name, folder / "source")
        self.shop = folder / "shop"
        self.report: ImportReport = import_data(self.format, self.source, self.shop, **options)
        self.items = pl.read_parquet(self.shop / schema.ITEMS)
        self.events = pl.read_parquet(self.shop / schema.EVENTS)

    def item(self, item_id: str) -> dict[str, Any]:
        return self.items.row(by_predicate=pl.col("item_id") == item_id, named=True)

    def kinds(self) -> Counter[str]:
        return Counter(self.events["event"].to_list())

    def said(self, words: str) -> bool:
        return any(words in notice for notice in self.report.notices)


def attributes(item: dict[str, Any]) -> dict[str, str]:
    return {own["key"]: own["value"] for own in item["attributes"]}


def test_every_format_of_the_design_is_there_and_in_the_help() -> None:
    wanted = {"csv", "jsonl", "parquet", "ga4", "merchant-feed", "amazon", "movielens", "kuairand", "kuaisar", "sequences"}
    assert wanted == set(FORMATS) == set(importers())
    help_text = import_command.__annotations__["format"]
    assert [name for name in sorted(FORMATS) if name not in str(help_text)] == []
    page = (Path(__file__).parents[2] / "docs" / "importers.md").read_text(encoding="utf-8")
    assert [name for name in sorted(FORMATS) if f"`{name}`" not in page] == []


@pytest.mark.parametrize("name", sources.SOURCES)
def test_every_source_becomes_a_shop_of_the_schema(tmp_path: Path, name: str) -> None:
    own = Imported(name, tmp_path)
    for table, required, optional in (
        (own.items, schema.ITEM_REQUIRED, schema.ITEM_OPTIONAL), (own.events, schema.EVENT_REQUIRED, schema.EVENT_OPTIONAL)
    ):  # fmt: skip
        known = {**required, **optional}
        assert set(required) <= set(table.columns) <= set(known)
        assert {column: kind for column, kind in table.schema.items() if kind != known[column]} == {}
    assert own.items["title"].null_count() == 0
    assert own.events.filter(~pl.col("event").is_in(schema.EVENT_KINDS[1:])).height == 0
    assert Shop.open(own.shop).origin["importer"] == own.format
    assert own.report.rows["events"] == own.events.height
    if name != "merchant-tsv":
        assert validate(own.shop).errors == []


@pytest.mark.parametrize("name", sources.SOURCES)
def test_an_import_is_deterministic(tmp_path: Path, name: str) -> None:
    first, second = Imported(name, tmp_path / "a"), Imported(name, tmp_path / "b")
    assert first.items.equals(second.items)
    assert first.events.equals(second.events)
    assert first.report.notices == second.report.notices


# -- GA4 ---------------------------------------------------------------------------------------------------------------


def test_ga4_events_with_several_items_become_one_event_each(tmp_path: Path) -> None:
    own = Imported("ga4", tmp_path)
    assert own.kinds() == {"impression": 3, "click": 1, "view": 1, "search": 1, "add_to_cart": 1, "purchase": 2}
    shown = own.events.filter(pl.col("event") == "impression")
    assert shown["position"].to_list() == [1, 2, 3]
    assert set(shown["surface"]) == {"search"}, "the list is named 'Search results'"
    bought = own.events.filter(pl.col("event") == "purchase").to_dicts()
    assert [(e["item_id"], e["value"], e["event_id"]) for e in bought] == [("SKU2", 38.0, "T7:SKU2"), ("SKU3", 28.5, "T7:SKU3")]
    assert own.said("2 purchases delivered twice")
    assert own.said("1 events of other names are not taken (session_start 1)")


def test_ga4_people_are_user_id_then_pseudo_id_or_what_is_mapped(tmp_path: Path) -> None:
    own = Imported("ga4", tmp_path / "a")
    assert set(own.events["user_id"]) == {"member-7", "1.123", "2.123"}
    mapped = Imported("ga4", tmp_path / "b", mapping={"user_id": "user_pseudo_id"})
    assert set(mapped.events["user_id"]) == {"0.123", "1.123", "2.123"}


def test_ga4_search_has_words_and_no_item(tmp_path: Path) -> None:
    (search,) = Imported("ga4", tmp_path).events.filter(pl.col("event") == "search").to_dicts()
    assert (search["query"], search["item_id"], search["surface"]) == ("blue cup", None, "search")
    assert search["timestamp"] == datetime(2026, 1, 1, 0, 4, tzinfo=UTC)


def test_ga4_catalogue_comes_from_the_log_and_its_latest_word(tmp_path: Path) -> None:
    folder = tmp_path / "source"
    folder.mkdir()
    lines = [
        sources._ga4_event(n, "view_item", [{"item_id": "A", "item_name": title, "price": price}], currency="EUR")
        for n, title, price in ((1, "Old", 3), (2, None, 4))
    ]
    lines.append(sources._ga4_event(3, "view_item", [{"item_id": "(not set)", "item_name": "B"}]))
    (folder / "events_1.jsonl.gz").write_bytes(sources.packed("".join(json.dumps(line) + "\n" for line in lines)))
    report = import_data("ga4", folder, tmp_path / "shop")
    (item,) = pl.read_parquet(tmp_path / "shop" / "items.parquet").to_dicts()
    assert (item["title"], item["price_micros"], item["currency"]) == ("Old", 4_000_000, "EUR")
    assert any("1 items without item_id" in notice for notice in report.notices)


def test_ga4_without_consent_is_counted_and_left_out(tmp_path: Path) -> None:
    folder = tmp_path / "source"
    folder.mkdir()
    event = sources._ga4_event(2, "view_item", [{"item_id": "A"}])
    nobody = {**event, "user_pseudo_id": None}
    (folder / "events.json").write_text(json.dumps(event) + "\n" + json.dumps(nobody) + "\n")
    report = import_data("ga4", folder, tmp_path / "shop")
    assert report.rows["events"] == 1
    assert any("no consent" in notice for notice in report.notices)


def test_ga4_as_parquet_and_as_flat_csv_reads_like_json(tmp_path: Path) -> None:
    own = Imported("ga4", tmp_path / "json")
    rows = [json.loads(line) for line in (own.source / "events_20260101.json").read_text().splitlines()]
    parquet = tmp_path / "parquet"
    parquet.mkdir()
    for row in rows:
        row["items"] = [{**item, "quantity": item.get("quantity"), "item_list_index": item.get("item_list_index")} for item in row["items"]]
    pl.DataFrame(rows, infer_schema_length=None).write_parquet(parquet / "events_20260101.parquet")
    import_data("ga4", parquet, tmp_path / "from-parquet")
    assert pl.read_parquet(tmp_path / "from-parquet" / "events.parquet").equals(own.events)
    flat = Imported("ga4-csv", tmp_path / "csv")
    assert flat.kinds() == {"view": 4, "search": 1}
    assert flat.item("SKU1")["category"] == ["Home", "Cups"]


def test_ga4_takes_a_catalogue_that_lies_beside_the_log(tmp_path: Path) -> None:
    _, source = sources.write("ga4", tmp_path / "source")
    (source / "items.csv").write_text("item_id,title,price\nSKU2,The blue cup,19\n")
    report = import_data("ga4", source, tmp_path / "shop")
    assert pl.read_parquet(tmp_path / "shop" / "items.parquet")["title"].to_list() == ["The blue cup"]
    assert report.unjoined == 3
    assert set(report.unjoined_samples) == {"SKU1", "SKU3"}


# -- merchant feed -----------------------------------------------------------------------------------------------------


def test_a_feed_gives_price_path_stock_and_attributes(tmp_path: Path) -> None:
    item = Imported("merchant-feed", tmp_path).item("A2")
    assert item["title"] == "Green tea & lemon 2"
    assert item["description"] == "Fresh leaves"
    assert (item["price_micros"], item["currency"], item["in_stock"]) == (2_500_000, "USD", True)
    assert item["category"] == ["Food", "Tea", "Green"]
    assert attributes(item) == {"color": "green", "country": "Japan"}


def test_a_feed_alone_is_a_catalogue_and_says_so(tmp_path: Path) -> None:
    own = Imported("merchant-tsv", tmp_path)
    assert own.events.height == 0
    assert own.item("A1")["in_stock"] is False
    assert own.said("the shop has no events yet")
    source = own.source / "feed.tsv"
    assert import_data("merchant-feed", source, tmp_path / "single").rows == {"items": 6, "events": 0}


def test_a_feed_reads_atom_utf16_and_entries_without_prefix(tmp_path: Path) -> None:
    atom = (
        '<?xml version="1.0" encoding="UTF-16"?><feed xmlns="http://www.w3.org/2005/Atom"><entry><id>1</id><title>绿茶</title>'
        '<link href="https://a.example"/><price>EUR 12,50</price></entry></feed>'
    )
    (tmp_path / "feed.xml").write_bytes(atom.encode("utf-16"))
    report = import_data("merchant-feed", tmp_path / "feed.xml", tmp_path / "shop")
    (item,) = pl.read_parquet(tmp_path / "shop" / "items.parquet").to_dicts()
    assert (item["title"], item["price_micros"], item["currency"]) == ("绿茶", 12_500_000, "EUR")
    assert any("UTF-16" in notice for notice in report.notices)


def test_a_feed_with_a_ga4_export_beside_it(tmp_path: Path) -> None:
    _, source = sources.write("ga4", tmp_path / "source")
    products = "".join(f"<item><id>SKU{n}</id><title>Cup {n}</title></item>" for n in (1, 2, 3))
    (source / "feed.xml").write_text(f"<rss><channel>{products}</channel></rss>")
    assert import_data("merchant-feed", source, tmp_path / "a").rows == {"items": 3, "events": 9}
    assert import_data("ga4", source, tmp_path / "b").rows == {"items": 3, "events": 9}


@pytest.mark.parametrize(
    ("products", "words", "place"),
    [
        ("<item>\n<title>x</title></item>", "a product has no id", "line 2"),
        ("<item><id>1</id><title>x</title><price>dear</price></item>", "the price 'dear' cannot be read", "line 2"),
        ("<item><id>1</id><title>x</title></item>\n<item><id>1</id><title>y</title></item>", "comes 2 times", "lines 2 and 3"),
        ("<item><id>1</id><title>a & b</title></item>", "the XML is broken", "line 2"),
        ("", "no <item> or <entry>", "feed.xml"),
    ],
)
def test_a_broken_product_is_refused_with_its_line(tmp_path: Path, products: str, words: str, place: str) -> None:
    (tmp_path / "feed.xml").write_text(f"<rss><channel>\n{products}</channel></rss>")
    with pytest.raises(RankloomError, match=words) as caught:
        import_data("merchant-feed", tmp_path / "feed.xml", tmp_path / "shop")
    assert place in str(caught.value.place)


# -- Amazon ------------------------------------------------------------------------------------------------------------


def test_amazon_2014_with_python_literals_in_gzip(tmp_path: Path) -> None:
    own = Imported("amazon", tmp_path)
    assert own.kinds() == {"purchase": 20}
    assert own.item("B001")["title"] == "Soap n° 1"
    assert own.item("B001")["category"] == ["Beauty", "Bath"], "the first of several paths"
    assert own.item("B003")["title"] == "Beauty It's \"good\"", "built from category and description"
    assert own.said("1 missing titles built")
    assert own.events["value"].unique().to_list() == [4.0]


def test_amazon_2018_prices_repeats_and_details(tmp_path: Path) -> None:
    own = Imported("amazon-2018", tmp_path)
    saw = own.item("B000")
    assert (saw["price_micros"], saw["currency"], saw["description"]) == (1_299_000_000, "USD", "Cuts. Well.")
    assert attributes(saw) == {"Weight": "2 kg"}
    assert own.item("B001")["price_micros"] is None
    assert own.said("1 repeated rows of an item dropped")
    assert own.said("1 prices are ranges or remains of a web page")


def test_amazon_2023_joins_by_parent_asin(tmp_path: Path) -> None:
    own = Imported("amazon-2023", tmp_path)
    assert own.report.unjoined == 0
    assert set(own.events["item_id"]) == {"P0", "P1", "P2"}
    assert own.item("P0")["category"] == ["All Beauty"]
    assert attributes(own.item("P0")) == {"Scent": "mint"}
    assert own.events["timestamp"][0] == datetime(2020, 5, 5, 14, 8, 48, 923_000, tzinfo=UTC)


def test_amazon_reviews_alone_and_their_mapping(tmp_path: Path) -> None:
    _, source = sources.write("amazon-2023", tmp_path / "source")
    report = import_data("amazon", source / "All_Beauty.jsonl", tmp_path / "shop", mapping={"item_id": "asin"})
    assert report.rows == {"items": 9, "events": 9}
    with pytest.raises(RankloomError, match="fixed columns"):
        import_data("amazon", source, tmp_path / "no", mapping={"surface": "x"})


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("{'asin': 'B1', 'reviewerID'", "neither JSON nor a Python literal"),
        ("[1, 2]", "no JSON object"),
        ('{"asin": "B1", "unixReviewTime": 1400000000}', "names no person"),
        ('{"asin": "B1", "reviewerID": "R", "unixReviewTime": "May"}', "no time in seconds"),
        ('{"asin": "B1", "reviewerID": "R", "unixReviewTime": 1400000000, "overall": "good"}', "no rating"),
        ('{"asin": "B1", "reviewerID": "R", "unixReviewTime": 1400000000000}', "is mixed"),
        ("__import__('os').getcwd()", "neither JSON nor a Python literal"),
    ],
)
def test_a_malformed_review_is_refused_with_file_and_line(tmp_path: Path, line: str, words: str) -> None:
    good = '{"asin": "B1", "reviewerID": "R", "overall": 5.0, "unixReviewTime": 1400000000}\n'
    source = tmp_path / "source"
    source.mkdir()
    (source / "reviews.json").write_text(good * 2 + line + "\n" + good)
    with pytest.raises(RankloomError, match=words) as caught:
        import_data("amazon", source, tmp_path / "shop")
    assert "reviews.json, line 3" in str(caught.value.place)
    assert not (tmp_path / "shop").exists()


# -- MovieLens ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["movielens", "movielens-1m", "movielens-100k"])
def test_movielens_ratings_are_views_with_stars(tmp_path: Path, name: str) -> None:
    own = Imported(name, tmp_path)
    assert set(own.kinds()) == {"view"}
    assert own.events["value"].is_between(0.5, 5.0).all()
    assert attributes(own.item("1"))["year"] == "1995"
    assert own.said("a rating is read as a view")


def test_movielens_titles_of_the_old_releases_are_latin_1(tmp_path: Path) -> None:
    assert Imported("movielens-1m", tmp_path / "a").item("1")["title"] == "Les Misérables (1995)"
    hundred = Imported("movielens-100k", tmp_path / "b")
    assert hundred.item("2")["title"] == '"Été", un (1996)'
    assert hundred.item("1")["category"] == ["Action", "Comedy"]
    users = Shop.open(hundred.shop).users()
    assert users is not None
    assert users.row(0, named=True) == {"user_id": "1", "age": "24", "gender": "M", "occupation": "technician", "zip_code": "85711"}


def test_movielens_genres_and_quoted_titles(tmp_path: Path) -> None:
    own = Imported("movielens", tmp_path)
    assert own.item("1")["category"] == ["Adventure", "Animation"]
    assert own.item("2") == {"item_id": "2", "title": "American President, The (1995)", "category": [], "attributes": [{"key": "year", "value": "1995"}]}
    assert own.item("3")["attributes"] is None


def test_a_movielens_line_with_too_few_values_is_refused(tmp_path: Path) -> None:
    _, source = sources.write("movielens-1m", tmp_path / "source")
    lines = (source / "ratings.dat").read_text().splitlines()
    lines[4] = "1::2::5"
    (source / "ratings.dat").write_text("\n".join(lines) + "\n")
    with pytest.raises(RankloomError, match="3 values between '::', not 4") as caught:
        import_data("movielens", source, tmp_path / "shop")
    assert "ratings.dat, row 5" in str(caught.value.place)


# -- KuaiRand and KuaiSAR ----------------------------------------------------------------------------------------------


def test_kuairand_signals_become_events(tmp_path: Path) -> None:
    own = Imported("kuairand", tmp_path)
    assert own.kinds() == {"impression": 10, "click": 8, "view": 1, "like": 1, "dislike": 1, "follow": 1, "comment": 1, "share": 1}
    first = own.events.head(4)
    assert first["event"].to_list() == ["impression", "click", "view", "like"]
    assert first["watch_s"].to_list() == [20.0, 20.0, 20.0, None]
    assert set(own.events["surface"]) == {"feed"}
    assert own.events["timestamp"][0] == datetime(2022, 4, 11, 2, 48, 15, 928_000, tzinfo=UTC)


def test_kuairand_videos_have_built_titles_durations_and_tags(tmp_path: Path) -> None:
    own = Imported("kuairand", tmp_path)
    assert own.item("1")["title"] == "tag 11 34 AD Kmovie author 456"
    assert own.item("1")["category"] == ["tag 11", "tag 34"]
    assert (own.item("0")["duration_s"], own.item("1")["duration_s"]) == (87.433, None)
    assert own.item("2")["title"] == "NORMAL ShortImport author 789"
    attributes = {entry["key"]: entry["value"] for entry in own.item("1")["attributes"]}
    assert attributes == {"author": "456", "kind": "AD", "upload": "Kmovie", "music": "63558107"}
    assert own.said("the videos have no titles; they were built from tag, kind and author")
    users = Shop.open(own.shop).users()
    assert users is not None
    assert users.columns == ["user_id", "user_active_degree", "follow_user_num"]


def test_kuairand_takes_category_names_where_they_lie_beside(tmp_path: Path) -> None:
    _, source = sources.write("kuairand", tmp_path / "source")
    header = "final_video_id,first_level_category_id,first_level_category_name,first_level_category_prob,second_level_category_name"
    (source / "kuairand_video_categories.csv").write_text(f"{header}\n0,39.0,Pets,0.9,Cats\n1,-124.0,UNKNOWN,0.9,UNKNOWN\n")
    import_data("kuairand", source, tmp_path / "shop")
    items = pl.read_parquet(tmp_path / "shop" / "items.parquet")
    assert items["category"].to_list()[:2] == [["Pets", "Cats"], ["tag 11", "tag 34"]]
    assert items["title"][0] == "Pets Cats tag 39 NORMAL LongImport author 123"


def test_kuaisar_has_two_surfaces_and_queries(tmp_path: Path) -> None:
    own = Imported("kuaisar", tmp_path)
    feed = own.events.filter(pl.col("surface") == "feed")
    search = own.events.filter(pl.col("surface") == "search")
    assert Counter(feed["event"].to_list()) == {"impression": 12, "click": 6, "like": 1}
    assert Counter(search["event"].to_list()) == {"search": 3, "impression": 9, "click": 3}
    begun = search.filter(pl.col("event") == "search")
    assert begun["query"].to_list() == ["20 0 3", "20 1 3", "20 2 3"]
    assert begun["item_id"].null_count() == 3
    assert search.filter(pl.col("event") == "click")["request_id"].to_list() == ["0", "1", "2"]
    assert own.item("1")["title"] == "1 1 24"
    assert own.item("1")["category"] == ["Funny", "Funny joke"]
    assert own.item("1")["duration_s"] == 45.4
    assert (own.item("0")["created_at"], own.item("1")["created_at"]) == (None, datetime(2023, 4, 22, tzinfo=UTC))


@pytest.mark.parametrize("name", ["movielens", "kuairand", "kuaisar"])
def test_formats_with_fixed_columns_take_no_mapping_and_need_their_files(tmp_path: Path, name: str) -> None:
    format, source = sources.write(name, tmp_path / "source")
    with pytest.raises(RankloomError, match="fixed columns"):
        import_data(format, source, tmp_path / "shop", mapping={"title": "tag"})
    with pytest.raises(RankloomError, match="no shop column 'titel'") as caught:
        import_data(format, source, tmp_path / "shop", mapping={"titel": "tag"})
    assert "did you mean title=tag" in str(caught.value)
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(RankloomError, match="the folder lacks"):
        import_data(format, empty, tmp_path / "shop")
    (empty / "file").write_text("x")
    with pytest.raises(RankloomError, match="a folder is needed"):
        import_data(format, empty / "file", tmp_path / "shop")


# -- what all formats share --------------------------------------------------------------------------------------------


def test_people_and_campaigns_come_along(tmp_path: Path) -> None:
    _, source = sources.write("csv", tmp_path / "source")
    (source / "users.csv").write_text("customer,town\nu0,Ulm\nu1,Bonn\n")
    (source / "campaigns.csv").write_text("campaign_id,sku,budget_micros\nc1,A1,5000000\n")
    report = import_data("csv", source, tmp_path / "shop")
    assert report.rows == {"items": 6, "events": 24, "users": 2, "campaigns": 1}
    shop = Shop.open(tmp_path / "shop")
    users, campaigns = shop.users(), shop.campaigns()
    assert users is not None
    assert campaigns is not None
    assert users.row(1) == ("u1", "Bonn")
    assert campaigns.row(0, named=True) == {"campaign_id": "c1", "item_id": "A1", "budget_micros": 5_000_000}
    (source / "users.csv").write_text("customer,town\nu0,Ulm\nu0,Bonn\n")
    with pytest.raises(RankloomError, match="comes more than once"):
        import_data("csv", source, tmp_path / "again")


def test_attributes_are_read_from_objects_json_and_pairs(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    rows: list[dict[str, Any]] = [
        {"item_id": "a", "title": "A", "attributes": {"colour": "red", "sizes": ["S", "M"]}},
        {"item_id": "b", "title": "B", "attributes": "colour=blue; size: L"},
    ]
    (source / "items.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (source / "events.jsonl").write_text(json.dumps({"user_id": "u", "item_id": "a", "timestamp": 1767225600}) + "\n")
    import_data("jsonl", source, tmp_path / "shop")
    items = pl.read_parquet(tmp_path / "shop" / "items.parquet").to_dicts()
    assert attributes(items[0]) == {"colour": "red", "sizes": "S, M"}
    assert attributes(items[1]) == {"colour": "blue", "size": "L"}


def test_a_declined_mapping_takes_the_import_back(tmp_path: Path) -> None:
    _, source = sources.write("csv", tmp_path / "source")
    asked: list[ImportReport] = []

    def no(report: ImportReport) -> bool:
        asked.append(report)
        return False

    import_data("csv", source, tmp_path / "shop")
    before = (tmp_path / "shop" / "shop.json").read_bytes()
    with pytest.raises(RankloomError, match="taken back"):
        import_data("csv", source, tmp_path / "shop", overwrite=True, confirm=no)
    assert ("item_id", "sku") in {(own.shop, own.source) for own in asked[0].mapping["events.csv"]}
    assert (tmp_path / "shop" / "shop.json").read_bytes() == before
    assert import_data("csv", source, tmp_path / "other", confirm=lambda _: True).rows["events"] == 24


def test_events_come_out_in_batches_and_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from rankloom.data import importing, reading

    whole = Imported("csv", tmp_path / "whole")
    monkeypatch.setattr(reading, "BATCH_BYTES", 200)
    monkeypatch.setattr(reading, "_HEAD", 64)
    monkeypatch.setattr(importing, "_ROW_GROUP", 5)
    for packed in (False, True):
        folder = tmp_path / f"small-{packed}"
        _, source = sources.write("csv", folder)
        if packed:
            (source / "events.csv.gz").write_bytes(gzip.compress((source / "events.csv").read_bytes()))
            (source / "events.csv").unlink()
        import_data("csv", source, folder / "shop")
        assert pl.read_parquet(folder / "shop" / "events.parquet").equals(whole.events)


def test_a_mixed_clock_is_found_across_batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from rankloom.data import reading

    monkeypatch.setattr(reading, "BATCH_BYTES", 200)
    _, source = sources.write("csv", tmp_path / "source")
    with open(source / "events.csv", "a") as handle:
        handle.write("u1,A1,1767230000000,view\n")
    with pytest.raises(RankloomError, match=r"is mixed: .* in ms") as caught:
        import_data("csv", source, tmp_path / "shop")
    assert "events.csv, row 26, column time" in str(caught.value.place)
    assert not (tmp_path / "shop").exists()


@pytest.mark.parametrize("encoding", ["latin-1", "big5"])
def test_an_encoding_that_is_not_recognised_can_be_said(tmp_path: Path, encoding: str) -> None:
    text = "né" if encoding == "latin-1" else "綠茶"
    _, source = sources.write("csv", tmp_path / "source")
    (source / "items.csv").write_bytes(f"sku,name\nA1,{text} \n".encode(encoding))
    import_data("csv", source, tmp_path / "shop", encoding=encoding)
    assert pl.read_parquet(tmp_path / "shop" / "items.parquet")["title"].to_list() == [text]
    with pytest.raises(RankloomError, match="no encoding 'klingon'"):
        import_data("csv", source, tmp_path / "no", encoding="klingon")
    with pytest.raises(RankloomError, match="no encoding 'base64'"):
        import_data("csv", source, tmp_path / "no", encoding="base64")


def test_ids_that_a_spreadsheet_rounded_are_refused(tmp_path: Path) -> None:
    _, source = sources.write("csv", tmp_path / "source")
    (source / "items.csv").write_text("sku,name\nA1,Tea\n1.2E+15,Pot\n")
    with pytest.raises(RankloomError, match=r"the id '1.2E\+15' was rounded by a spreadsheet") as caught:
        import_data("csv", source, tmp_path / "shop")
    assert "items.csv, row 3, column sku" in str(caught.value.place)


# -- the command line --------------------------------------------------------------------------------------------------


def test_the_command_imports_and_looks_before_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = load("broken_inputs").command
    _, source = sources.write("kuairand", tmp_path / "source")
    status, said = command(["validate", str(source), "--format", "kuairand"])
    assert (status, said) == (0, "")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["source"]
    status, _ = command(["import", "kuairand", str(source), "--out", str(tmp_path / "shop"), "--json"])
    assert status == 0
    assert command(["validate", str(tmp_path / "shop")])[0] == 0
    (source / "data" / "user_features_pure.csv").write_bytes(b"")
    assert command(["validate", str(source), "--format", "kuairand"])[0] == 1
    (tmp_path / "shop" / "events.parquet").unlink()
    assert command(["validate", str(tmp_path / "shop")])[0] == 1
    status, said = command(["validate", str(source), "--format", "kuairand", "--map", "title"])
    assert status == 2
    assert "is not shop_column=source_column" in said
