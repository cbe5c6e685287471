"""Real shop search with people behind it: KuaiSearch-Lite, what a person clicks or orders after a query on Kuaishou.

    hf download benchen4395/KuaiSearch --repo-type dataset --include "items_lite/*" "recall_lite/*" "users_lite/*" --local-dir KuaiSearch
    python benchmarks/search_kuaisearch.py --data KuaiSearch [--seeds N] [--engines NAME ...] [--no-model] [--quick] [--json OUT]

Li et al., 2026 (arXiv 2602.11518); JSON lines in the folders `items_lite`, `recall_lite` and `users_lite` (the last may be missing). The
README's protocol, as its recall code has it: a session of the split `test` with a click or an order is one question, all that was clicked
or ordered in it is right, and the whole catalogue is ranked: recall and hit rate at 10, 20 and 50. Nothing is left out of a list because
the person has had it. The README's table is printed beside; it compares only with a run on all items and all test sessions.

Training sessions are our model's log: who searched for what, when, and clicked or ordered which items. Impressions are left out (about 127
a session); `time_index` has no stated unit and is read as seconds. A question is asked with the person's last 50 clicks and orders of
earlier training sessions. BM25, dense vectors and the re-ranker do not know the person. 20,000 training sessions tune, align and teach;
in these, what was shown and not clicked counts as irrelevant.

The Lite catalogue has 6.6 million items: a run on all of it needs a large machine, which we have not tried; `--items` and `--asked` cut it
down. `--quick` asks 100 sessions over 3,000 items. Finished cells are kept in runs/benchmarks/search_kuaisearch, shops and models in
runs/search_kuaisearch.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
import polars as pl
from _common import Benchmark
from _judged import (
    SOURCES,
    Part,
    Questions,
    Study,
    guarded,
    hit_of,
    judged_parser,
    moved,
    narrowed,
    recall_of,
    run,
    sample,
    with_text,
)
from _judged_files import Column, Source, rows_of, stamp

from rankloom.data.shop import write_shop
from rankloom.errors import RankloomError
from rankloom.evaluation.search.judged import Judgements
from rankloom.requests import HistoryEvent

KUAISEARCH: Final = Source(
    "KuaiSearch-Lite",
    "download the folders items_lite, recall_lite and users_lite of the data set benchen4395/KuaiSearch on Hugging Face",
)
MEASURES: Final = tuple(make(1, k) for k in (10, 20, 50) for make in (hit_of, recall_of))
HISTORY: Final = 50
LEARN: Final = 20_000
QUICK_ITEMS, QUICK_ASKED, QUICK_LEARN = 3_000, 100, 300
_START: Final = datetime(2025, 1, 1, tzinfo=UTC)
_NO_NAME: Final = ("", "UNKNOWN", "其他/other", "其他", "无品牌")
# the README's "Recall Task" table at 9515032: recall and hit rate at 10, 20 and 50
_README: Final = {
    "BM25": (0.0706, 0.1001, 0.1037, 0.1427, 0.1564, 0.2088),
    "DocT5Query": (0.0784, 0.1098, 0.1156, 0.1594, 0.1772, 0.2381),
    "DPR-ADE": (0.0818, 0.1184, 0.1254, 0.1745, 0.2026, 0.2709),
    "DPR-SDE": (0.0826, 0.1210, 0.1293, 0.1814, 0.2079, 0.2769),
    "DSI": (0.0623, 0.0965, 0.0892, 0.1344, 0.1369, 0.2018),
    "LTRGR": (0.0688, 0.1049, 0.0986, 0.1477, 0.1501, 0.2184),
}
PUBLISHED: Final = tuple(
    {"system": name, "variant": "KuaiSearch README", "metric": metric, "k": k, "value": value}
    for name, values in _README.items()
    for (k, metric), value in zip(
        [(k, metric) for k in (10, 20, 50) for metric in ("recall", "hr")], values, strict=True
    )
)
GOAL: Final = ("hr@10", 0.1210)  # above DPR-SDE, the best of the table


def read(folder: Path, *, n_items: int | None = None, n_asked: int | None = None, n_learn: int = LEARN) -> Study:
    """The Lite version: test sessions are asked, training sessions are the log.

    Args:
        folder: with `items_lite/train.jsonl` and `recall_lite/train.jsonl` (or `items_lite.jsonl`, ...; or `corpus.jsonl` and
            `recall.jsonl`, as the README's code names them).
        n_items, n_asked: at most so many items and test sessions.
        n_learn: training sessions that tune, align and teach; all of them are in the log.

    Raises:
        RankloomError: a file is missing, a Git LFS pointer or of another form, or one of the two splits has no session with a click.
    """
    items_path = KUAISEARCH.find(folder, "items_lite/train.jsonl", "items_lite.jsonl", "corpus.jsonl")
    recall_path = KUAISEARCH.find(folder, "recall_lite/train.jsonl", "recall_lite.jsonl", "recall.jsonl")
    users_path = KUAISEARCH.find_any(folder, "users_lite/train.jsonl", "users_lite.jsonl", "users.jsonl")
    optional = Column(required=False)
    items = KUAISEARCH.read(
        items_path, "jsonl",
        {
            "item_id": Column(), "item_title": optional, "brand_name": optional, "seller_name": optional, "category_level1_name": optional,
            "category_level2_name": optional, "category_level3_name": optional,
        },
    )  # fmt: skip
    sessions = KUAISEARCH.read(
        recall_path, "jsonl",
        {
            "user_id": Column(), "session_id": Column(), "time_index": Column(kind="int"), "query": Column(), "split": Column(),
            "clicked_item_ids": Column(kind="list"), "purchased_item_ids": Column(kind="list"),
            "impressed_item_ids": Column(kind="list", required=False),
        },
    )  # fmt: skip
    KUAISEARCH.check_values(recall_path, sessions["split"], ("train", "test"))
    items = with_text(_items(items).unique("item_id", keep="first", maintain_order=True))
    taken = sessions.filter(pl.col("clicked_item_ids").list.len() + pl.col("purchased_item_ids").list.len() > 0)
    tests, trains = (taken.filter(pl.col("split") == name) for name in ("test", "train"))
    for name, own in (("test", tests), ("training", trains)):
        if not own.height:
            raise RankloomError(
                f"{recall_path.name} has no {name} session with a click or an order (the demo of the GitHub repository has training rows "
                "alone)", place=str(recall_path), action=f"get KuaiSearch-Lite: {KUAISEARCH.get}", code="data-empty",
            )  # fmt: skip
    # the README's code: a session is one question, its last row's query, the takes of all its rows
    tests = tests.group_by("session_id", maintain_order=True).agg(
        pl.col("user_id", "time_index", "query").last(), pl.col("clicked_item_ids", "purchased_item_ids").explode().drop_nulls(),
    )  # fmt: skip
    whole_asked = tests.height
    tests, learning = tests[sample(tests.height, n_asked)], trains[sample(trains.height, n_learn)]
    ids = items["item_id"].to_list()
    asked, learn = _judgements(tests, ids), _judgements(learning, ids)
    smaller, place = narrowed(items, np.r_[asked.item, learn.item[learn.grade > 0]], n_items)
    if smaller.height < items.height:
        asked, learn = moved(asked, place, smaller.height), moved(learn, place, smaller.height)
    log = _log(trains)
    owner = tests["user_id"].rank("dense").to_numpy().astype(np.int64)
    at = tuple(_START + timedelta(seconds=second) for second in tests["time_index"].to_list())
    history = _histories(tests, log.filter(pl.col("item_id").is_in(smaller["item_id"].implode())))
    questions = Questions(tuple(tests["query"].to_list()), asked, owner, tuple(tests["user_id"].to_list()), history, at)
    lessons = Questions(tuple(learning["query"].to_list()), learn, np.arange(learning.height))
    users = None if users_path is None else _users(users_path)
    return Study(
        name="KuaiSearch-Lite", items=smaller, questions=questions,
        parts=(Part("test", np.arange(len(questions)), lessons, partial(_write_log, items=smaller, log=log, users=users)),),
        measures=MEASURES, taken=1, top=2, chinese=True, published=PUBLISHED, goal=GOAL,
        stamp=f"{stamp(items_path, recall_path, users_path)} {smaller.height} {len(questions)} {len(lessons)}",
        whole=smaller.height == items.height and len(questions) == whole_asked,
    )  # fmt: skip


def _items(items: pl.DataFrame) -> pl.DataFrame:
    """A shop's columns: the category path without unnamed levels, the seller as an attribute."""

    def named(column: str) -> pl.Expr:
        value = pl.col(column).str.strip_chars()
        return pl.when(~value.is_in(list(_NO_NAME))).then(value)

    path = pl.concat_list([named(f"category_level{level}_name") for level in (1, 2, 3)]).list.drop_nulls()
    seller = pl.struct(pl.lit("seller").alias("key"), named("seller_name").alias("value"))
    return items.select(
        "item_id", pl.col("item_title").alias("title"), named("brand_name").alias("brand"), path.alias("category"),
        pl.concat_list(seller).list.eval(pl.element().filter(pl.element().struct.field("value").is_not_null())).alias("attributes"),
    )  # fmt: skip


def _judgements(sessions: pl.DataFrame, ids: list[str]) -> Judgements:
    """Grade 2 ordered, 1 clicked, 0 shown alone, by session in the order of the frame."""
    frame = sessions.with_row_index("q")
    columns = [("purchased_item_ids", 2), ("clicked_item_ids", 1)] + (
        [("impressed_item_ids", 0)] if "impressed_item_ids" in frame.columns else []
    )
    pairs = pl.concat(
        [
            frame.select("q", pl.col(name).alias("item_id"), pl.lit(grade).alias("grade"))
            .explode("item_id")
            .drop_nulls()
            for name, grade in columns
        ]
    )
    row = rows_of(ids, pairs["item_id"])
    # what was shown and is no item of the catalogue teaches nothing
    kept = (pairs["grade"].to_numpy() > 0) | (row < len(ids))
    return Judgements.of(pairs["q"].to_numpy()[kept], row[kept], pairs["grade"].to_numpy()[kept], sessions.height)


def _log(sessions: pl.DataFrame) -> pl.DataFrame:
    """A shop's events of training sessions: each item once a session, as an order where it was ordered."""
    both = [
        sessions.select(
            "user_id", "session_id", "time_index", "query", pl.col(name).alias("item_id"), pl.lit(event).alias("event")
        )
        .explode("item_id")
        .drop_nulls("item_id")
        for name, event in (("purchased_item_ids", "purchase"), ("clicked_item_ids", "click"))
    ]
    events = pl.concat(both).unique(["user_id", "session_id", "item_id"], keep="first", maintain_order=True)
    when = pl.lit(_START).dt.cast_time_unit("us") + pl.duration(seconds=pl.col("time_index"))
    return events.select(
        "user_id", "item_id", when.alias("timestamp"), "event", pl.lit("search").alias("surface"), "query",
        pl.col("session_id").alias("request_id"),
    ).sort("timestamp", maintain_order=True)  # fmt: skip


def _histories(tests: pl.DataFrame, log: pl.DataFrame) -> tuple[tuple[HistoryEvent, ...], ...]:
    """What each asker clicked and ordered in training sessions before the question, at most the last 50, oldest first."""
    own = log.filter(pl.col("user_id").is_in(tests["user_id"].unique().implode()))
    events: dict[str, list[HistoryEvent]] = {}
    for row in own.select("user_id", "item_id", "event", "timestamp", "query").iter_rows():
        user, item, event, when, query = row
        events.setdefault(user, []).append(HistoryEvent(item, event, when, surface="search", query=query))
    out = []
    for user, second in tests.select("user_id", "time_index").iter_rows():
        before = [
            event
            for event in events.get(user, [])
            if event.timestamp is not None and event.timestamp < _START + timedelta(seconds=second)
        ]
        out.append(tuple(before[-HISTORY:]))
    return tuple(out)


def _users(path: Path) -> pl.DataFrame:
    """A shop's people with the features that the file has of them."""
    names = ("gender", "age_bucket", "fre_country", "fre_province", "fre_city")
    users = KUAISEARCH.read(path, "jsonl", {"user_id": Column(), **{name: Column(required=False) for name in names}})
    return users.unique("user_id", keep="first", maintain_order=True)


def _write_log(folder: Path, items: pl.DataFrame, log: pl.DataFrame, users: pl.DataFrame | None) -> None:
    """The shop that our model trains on."""
    events = log.filter(pl.col("item_id").is_in(items["item_id"].implode()))
    origin: dict[str, Any] = {"importer": "kuaisearch"}
    write_shop(folder, items=items, events=events, users=users, origin=origin, overwrite=True)


def main() -> int:
    bench = Benchmark.from_args(
        "search_kuaisearch", parser=judged_parser(__doc__, "search_kuaisearch"), sources=SOURCES
    )
    args = bench.args
    quick = (QUICK_ITEMS, QUICK_ASKED) if bench.quick else (None, None)
    study = read(
        args.data,
        n_items=args.items or quick[0],
        n_asked=args.asked or quick[1],
        n_learn=QUICK_LEARN if bench.quick else LEARN,
    )
    return run(bench, study)


if __name__ == "__main__":
    raise SystemExit(guarded(main))
