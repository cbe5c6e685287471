"""A small good source of every import format, written by hand: what tests import and what broken inputs are made of.

The shapes are those of the real files: column names, separators, encodings, nesting, compression. No real data.
"""

from __future__ import annotations

import gzip
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl

T0 = 1_767_225_600  # 2026-01-01 UTC


def csv(folder: Path) -> Path:
    rows = [f"A{n},Tea number {n},Leaf,Tea > Green,${n}.50" for n in range(1, 7)]
    events = [f"u{n % 3},A{n % 6 + 1},{T0 + 60 * n},{'view' if n % 2 else 'buy'}" for n in range(24)]
    (folder / "items.csv").write_text("\n".join(["sku,name,brand,kind,price", *rows, ""]), encoding="utf-8")
    (folder / "events.csv").write_text("\n".join(["customer,sku,time,action", *events, ""]), encoding="utf-8")
    return folder


def _tables() -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    items = [
        {"item_id": f"i{n}", "title": f"Pot {n}", "categories": [["Home", "Kitchen"]], "price": 2.5 * n}
        for n in range(1, 7)
    ]
    events = [
        {"user_id": f"u{n % 3}", "item_id": f"i{n % 6 + 1}", "ts": (T0 + 60 * n) * 1000, "event": "click", "watch_s": 2.5}
        for n in range(24)
    ]
    return items, events


def jsonl(folder: Path) -> Path:
    items, events = _tables()
    for name, rows in (("items", items), ("events", events)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return folder


def parquet(folder: Path) -> Path:
    items, events = _tables()
    pl.DataFrame(items).write_parquet(folder / "items.parquet")
    pl.DataFrame(events).write_parquet(folder / "events.parquet")
    return folder


def sequences(folder: Path) -> Path:
    pl.DataFrame({"item_id": [1, 2, 3], "title": ["Soap", "Comb", "Brush"], "brand": ["B", None, None]}).write_parquet(
        folder / "items.parquet"
    )
    pl.DataFrame({"user_id": [1, 2], "items": [[1, 2, 3], [3, 1]]}).write_parquet(folder / "sequences.parquet")
    return folder


def _ga4_event(n: int, name: str, items: list[dict[str, Any]], **parameters: str) -> dict[str, Any]:
    return {
        "event_date": "20260101",
        "event_timestamp": str((T0 + 60 * n) * 1_000_000),
        "event_name": name,
        "event_params": [{"key": key, "value": {"string_value": value}} for key, value in parameters.items()],
        "user_id": "member-7" if n % 2 else None,
        "user_pseudo_id": f"{n % 3}.123",
        "ecommerce": {"transaction_id": f"T{n}"} if name == "purchase" else {},
        "items": items,
    }


def ga4(folder: Path) -> Path:
    def item(n: int, **more: Any) -> dict[str, Any]:
        return {
            "item_id": f"SKU{n}", "item_name": f"Cup {n}", "item_brand": "Kiln", "item_category": "Home",
            "item_category2": "Cups", "price": 9.5 * n, **more,
        }  # fmt: skip

    events = [
        _ga4_event(0, "session_start", []),
        _ga4_event(1, "view_item_list", [item(n, item_list_index=str(n)) for n in (1, 2, 3)], item_list_name="Search results"),
        _ga4_event(2, "select_item", [item(2, item_list_index="2")]),
        _ga4_event(3, "view_item", [item(2)], currency="EUR"),
        _ga4_event(4, "view_search_results", [], search_term="blue cup"),
        _ga4_event(5, "add_to_cart", [item(2, quantity="2")]),
        _ga4_event(7, "purchase", [item(2, quantity="2"), item(3, quantity="1")], currency="EUR"),
        _ga4_event(7, "purchase", [item(2, quantity="2"), item(3, quantity="1")], currency="EUR"),
    ]  # fmt: skip
    (folder / "events_20260101.json").write_text("".join(json.dumps(own) + "\n" for own in events), encoding="utf-8")
    return folder


def ga4_csv(folder: Path) -> Path:
    rows = [
        f"view_item,{(T0 + n) * 1_000_000},,{n % 2}.5,SKU{n},Cup {n},Kiln,Home/Cups,9.5,1," for n in range(1, 5)
    ] + [f"view_search_results,{(T0 + 9) * 1_000_000},,1.5,,,,,,,blue cup"]
    header = (
        "event_name,event_timestamp,user_id,user_pseudo_id,items.item_id,items.item_name,items.item_brand,"
        "items.item_category,items.price,items.quantity,search_term"
    )
    (folder / "events_export.csv").write_text("\n".join([header, *rows, ""]), encoding="utf-8")
    return folder


FEED = """<?xml version="1.0" encoding="UTF-8"?>
<rss xmlns:g="http://base.google.com/ns/1.0" version="2.0">
<channel>
<title>A tea shop</title>
<link>https://shop.example</link>
{items}</channel>
</rss>
"""
PRODUCT = """<item>
<g:id>A{n}</g:id>
<g:title>Green tea &amp; lemon {n}</g:title>
<g:description>&lt;p&gt;Fresh &lt;b&gt;leaves&lt;/b&gt;&lt;/p&gt;</g:description>
<g:link>https://shop.example/{n}</g:link>
<g:image_link>https://shop.example/{n}.jpg</g:image_link>
<g:availability>in_stock</g:availability>
<g:price>{n}.50 USD</g:price>
<g:brand>Leaf</g:brand>
<g:google_product_category>2073</g:google_product_category>
<g:product_type>Food &gt; Tea &gt; Green</g:product_type>
<g:color>green</g:color>
<g:product_detail><g:section_name>Origin</g:section_name><g:attribute_name>country</g:attribute_name><g:attribute_value>Japan</g:attribute_value></g:product_detail>
</item>
"""


def merchant_feed(folder: Path) -> Path:
    products = "".join(PRODUCT.format(n=n) for n in range(1, 7))
    (folder / "feed.xml").write_text(FEED.format(items=products), encoding="utf-8")
    events = [f"u{n % 3},A{n % 6 + 1},{T0 + 60 * n},view" for n in range(24)]
    (folder / "events.csv").write_text("\n".join(["user_id,item_id,timestamp,event", *events, ""]), encoding="utf-8")
    return folder


def merchant_tsv(folder: Path) -> Path:
    header = "id\ttitle\tdescription\tlink\timage link\tavailability\tprice\tbrand\tproduct type\tcolor"
    rows = [
        f"A{n}\tTea {n}\tFresh\thttps://shop.example/{n}\thttps://shop.example/{n}.jpg\tout of stock\t{n}.50 USD\tLeaf\tFood > Tea\tgreen"
        for n in range(1, 7)
    ]
    (folder / "feed.tsv").write_text("\n".join([header, *rows, ""]), encoding="utf-8")
    return folder


def amazon(folder: Path) -> Path:
    """2014: gzip, Python literals in the metadata."""
    reviews = [
        {"reviewerID": f"R{n % 3}", "asin": f"B00{n % 4}", "overall": 4.0, "reviewText": "fine", "unixReviewTime": 1_400_000_000 + 86_400 * n}
        for n in range(20)
    ]  # fmt: skip
    metadata: list[dict[str, Any]] = [
        {"asin": f"B00{n}", "title": f"Soap n\u00b0 {n}", "price": 3.25, "brand": "Foam", "imUrl": "http://i.example/a.jpg",
         "categories": [["Beauty", "Bath"], ["Beauty", "Gifts"]], "related": {"also_bought": ["B001"]}}
        for n in range(3)
    ]  # fmt: skip
    metadata.append({"asin": "B003", "categories": [["Beauty"]], "description": "It's \"good\""})
    with gzip.open(folder / "reviews_Beauty_5.json.gz", "wt", encoding="utf-8") as handle:
        handle.writelines(json.dumps(own) + "\n" for own in reviews)
    with gzip.open(folder / "meta_Beauty.json.gz", "wt", encoding="utf-8") as handle:
        handle.writelines(repr(own) + "\n" for own in metadata)
    return folder


def amazon_2018(folder: Path) -> Path:
    reviews = [
        {"reviewerID": f"R{n % 3}", "asin": f"B00{n % 2}", "overall": 5.0, "verified": True, "unixReviewTime": 1_500_000_000 + n}
        for n in range(9)
    ]
    metadata = [
        {"asin": "B000", "title": "Saw", "category": ["Tools", "Saws"], "brand": "Cut", "price": "$1,299.00", "feature": ["sharp"],
         "description": ["Cuts.", "Well."], "main_cat": "Tools", "imageURL": ["http://i.example/s.jpg"], "details": {"Weight:": "2 kg"}},
        {"asin": "B001", "title": "", "category": [], "main_cat": "Tools", "price": ".a-box-inner{background-color:#fff}", "feature": ["a steel rule"]},
        {"asin": "B000", "title": "Saw", "category": ["Tools"], "price": "$9.99 - $20.00"},
    ]  # fmt: skip
    (folder / "Tools.json").write_text("".join(json.dumps(own) + "\n" for own in reviews), encoding="utf-8")
    (folder / "meta_Tools.json").write_text("".join(json.dumps(own) + "\n" for own in metadata), encoding="utf-8")
    return folder


def amazon_2023(folder: Path) -> Path:
    reviews = [
        {"rating": 5.0, "title": "Nice", "text": "x", "asin": f"V{n}", "parent_asin": f"P{n % 3}", "user_id": f"AE{n % 3}",
         "timestamp": 1_588_687_728_923 + n, "helpful_vote": 0, "verified_purchase": True}
        for n in range(9)
    ]  # fmt: skip
    metadata = [
        {"main_category": "All Beauty", "title": f"Balm {n}", "features": ["soft"], "description": [], "price": None if n else 12.5,
         "images": [{"thumb": "t", "large": "http://i.example/l.jpg"}], "store": "Balms", "categories": [],
         "details": '{"Scent": "mint"}', "parent_asin": f"P{n}"}
        for n in range(3)
    ]  # fmt: skip
    (folder / "All_Beauty.jsonl").write_text("".join(json.dumps(own) + "\n" for own in reviews), encoding="utf-8")
    (folder / "meta_All_Beauty.jsonl").write_text("".join(json.dumps(own) + "\n" for own in metadata), encoding="utf-8")
    return folder


def movielens(folder: Path) -> Path:
    """The CSV releases."""
    movies = ['1,Toy Story (1995),Adventure|Animation', '2,"American President, The (1995)",(no genres listed)', "3,Heat,Action"]
    ratings = [f"{n % 3 + 1},{n % 3 + 1},{n % 5 + 0.5},{964_982_703 + n}" for n in range(18)]
    (folder / "movies.csv").write_text("\n".join(["movieId,title,genres", *movies, ""]), encoding="utf-8")
    (folder / "ratings.csv").write_text("\n".join(["userId,movieId,rating,timestamp", *ratings, ""]), encoding="utf-8")
    return folder


def movielens_1m(folder: Path) -> Path:
    (folder / "movies.dat").write_bytes("1::Les Misérables (1995)::Drama|Musical\n2::Heat (1995)::Action\n".encode("latin-1"))
    ratings = [f"{n % 3 + 1}::{n % 2 + 1}::{n % 5 + 1}::{978_300_760 + n}" for n in range(12)]
    (folder / "ratings.dat").write_text("\n".join([*ratings, ""]), encoding="utf-8")
    (folder / "users.dat").write_text("1::F::1::10::48067\n2::M::56::16::70072\n3::M::25::15::55117\n", encoding="utf-8")
    return folder


def movielens_100k(folder: Path) -> Path:
    flags = "|".join("1" if n in (1, 5) else "0" for n in range(19))
    films = [
        f"1|Toy Story (1995)|01-Jan-1995||http://us.imdb.com/1|{flags}",
        f'2|"Été", un (1996)|||http://us.imdb.com/2|{flags}',
    ]
    (folder / "u.item").write_bytes("\n".join([*films, ""]).encode("latin-1"))
    ratings = [f"{n % 3 + 1}\t{n % 2 + 1}\t{n % 5 + 1}\t{881_250_949 + n}" for n in range(12)]
    (folder / "u.data").write_text("\n".join([*ratings, ""]), encoding="utf-8")
    (folder / "u.user").write_text("1|24|M|technician|85711\n2|53|F|other|94043\n3|23|M|writer|32067\n", encoding="utf-8")
    return folder


KUAIRAND_LOG = (
    "user_id,video_id,date,hourmin,time_ms,is_click,is_like,is_follow,is_comment,is_forward,is_hate,long_view,"
    "play_time_ms,duration_ms,profile_stay_time,comment_stay_time,is_profile_enter,is_rand,tab"
)


def kuairand(folder: Path) -> Path:
    data = folder / "data"
    data.mkdir()
    start = 1_649_645_295_928

    def row(n: int, *signals: int, play: int = 1970) -> str:
        return ",".join(map(str, (n % 3, n % 4, 20220411, 1100, start + 1000 * n, *signals, play, 79733, 0, 0, 0, 0, 1)))

    shown = [row(0, 1, 1, 0, 0, 0, 0, 1, play=20_000), row(1, 0, 0, 0, 0, 0, 1, 0), row(2, 1, 0, 1, 1, 1, 0, 0)]
    shown += [row(n, 1, 0, 0, 0, 0, 0, 0) for n in range(3, 9)]
    (data / "log_standard_4_08_to_4_21_pure.csv").write_text("\n".join([KUAIRAND_LOG, *shown, ""]), encoding="utf-8")
    (data / "log_random_4_22_to_5_08_pure.csv").write_text("\n".join([KUAIRAND_LOG, row(90, *[0] * 7), ""]), encoding="utf-8")
    videos = [
        "video_id,author_id,video_type,upload_dt,upload_type,visible_status,video_duration,server_width,server_height,music_id,music_type,tag",
        "0,123,NORMAL,2022-04-10,LongImport,0.0,87433.0,720.0,1280.0,9155697141,9.0,39",
        '1,456,AD,2022-04-10,Kmovie,0.0,,720.0,1280.0,63558107,9.0,"11,34"',
        "2,789,NORMAL,,ShortImport,0.0,9233.0,720.0,1280.0,6354810746,4.0,",
        "3,789,NORMAL,2022-04-09,ShortImport,0.0,9233.0,720.0,1280.0,6354810746,4.0,1",
    ]
    (data / "video_features_basic_pure.csv").write_text("\n".join([*videos, ""]), encoding="utf-8")
    users = ["user_id,user_active_degree,follow_user_num", "0,full_active,514", "1,high_active,3", "2,UNKNOWN,0"]
    (data / "user_features_pure.csv").write_text("\n".join([*users, ""]), encoding="utf-8")
    return folder


def kuaisar(folder: Path) -> Path:
    start = 1_684_763_932_919
    feed = [
        f"{n % 3},{n % 4},{60792.0},{45400.0},2023-05-22 15:53:20,{float(start + 1000 * n)},{n % 2},0,{int(n == 1)},0,0,0" for n in range(12)
    ]
    (folder / "rec_inter.csv").write_text(
        "\n".join(
            ["user_id,item_id,playing_time,duration_ms,time,timestamp,click,forward,like,follow,search,search_item_related", *feed, ""]
        ),
        encoding="utf-8",
    )
    search = [
        f'{n % 3},{n // 3},2023-05-22 21:58:52,{start + 1000 * (n // 3)},"[20, {n // 3}, 3]",USER_INPUT,{n % 4},{n % 3 % 2},VIDEO' for n in range(9)
    ]
    (folder / "src_inter.csv").write_text(
        "\n".join(
            ["user_id,search_session_id,search_session_time,search_session_timestamp,keyword,search_source,item_id,click_cnt,item_type", *search, ""]
        ),
        encoding="utf-8",
    )
    levels = ",".join(f"{level}_level_category_id,{level}_level_category_name,{level}_level_category_name_en" for level in ("first", "second", "third", "fourth"))
    items = [
        f'{n},"[1, {n}, 24]",10,NORMAL,{"2023-04-22" if n else "1970-01-01"},LongImport,8,搞笑,Funny,136,搞笑段子,Funny joke,0,空,empty,0,空,empty'
        for n in range(4)
    ]
    (folder / "item_features.csv").write_text(
        "\n".join([f"item_id,caption,author_id,item_type,upload_time,upload_type,{levels}", *items, ""]), encoding="utf-8"
    )
    (folder / "user_features.csv").write_text(
        "user_id,search_active_level,rec_active_level,onehot_feat1,onehot_feat2\n0,1,2,0,3\n1,1,1,2,4\n2,0,0,1,1\n", encoding="utf-8"
    )
    return folder


SOURCES: dict[str, tuple[str, Callable[[Path], Path]]] = {
    "csv": ("csv", csv), "jsonl": ("jsonl", jsonl), "parquet": ("parquet", parquet), "sequences": ("sequences", sequences),
    "ga4": ("ga4", ga4), "ga4-csv": ("ga4", ga4_csv), "merchant-feed": ("merchant-feed", merchant_feed),
    "merchant-tsv": ("merchant-feed", merchant_tsv), "amazon": ("amazon", amazon), "amazon-2018": ("amazon", amazon_2018),
    "amazon-2023": ("amazon", amazon_2023), "movielens": ("movielens", movielens), "movielens-1m": ("movielens", movielens_1m),
    "movielens-100k": ("movielens", movielens_100k), "kuairand": ("kuairand", kuairand), "kuaisar": ("kuaisar", kuaisar),
}  # fmt: skip
"""Name of the source to (format, what writes it into an empty folder and returns what to import)."""


def write(name: str, folder: Path) -> tuple[str, Path]:
    """Writes a source into a new folder; returns the format and the path to import."""
    folder.mkdir(parents=True)
    format, make = SOURCES[name]
    return format, make(folder)


def packed(text: str) -> bytes:
    """`text` as gzip without a clock in it."""
    buffer = io.BytesIO()
    with gzip.GzipFile(fileobj=buffer, mode="wb", mtime=0) as handle:
        handle.write(text.encode())
    return buffer.getvalue()
