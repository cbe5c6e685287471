"""`kuaisar`: KuaiSAR (Sun et al., CIKM 2023), search and recommendation of the same people, as unpacked.

`rec_inter.csv` becomes the surface `feed`, one impression a row and one event for each signal that is set.
`src_inter.csv` becomes the surface `search`: a `search` event with the query when a session begins, an impression for
each item shown and a click where it was clicked; the session is the `request_id`. Words are anonymised to numbers:
queries and captions are the numbers with spaces between, one vocabulary, so that they match each other. Durations come
from `rec_inter.csv`. Files do not say ranks, so no positions are made up.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import polars as pl

from rankloom.data import catalogue, schema
from rankloom.data.casting import Caster, refuse_missing
from rankloom.data.importers import Importer, Job, Tables
from rankloom.data.importers.kuairand import Signals, flags, pairs, require_columns, require_rows, spread
from rankloom.data.importers.tables import read_users
from rankloom.data.mapping import FIXED, Mapped
from rankloom.data.reading import TableFile

_SIGNALS: Final = (("click", "click"), ("like", "like"), ("follow", "follow"), ("forward", "share"))
_LEVELS: Final = ("first", "second", "third", "fourth")
_EMPTY: Final = ["空", "empty", "UNKNOWN", "0", ""]
_COLUMNS: Final = ("user_id", "item_id", "timestamp", "event", "watch_s", "surface", "query", "request_id")


def words(column: str) -> pl.Expr:
    """Anonymised words `[20, 34, 3]` as the text `20 34 3`; null where there are none."""
    text = pl.col(column).cast(pl.String).str.replace_all(r"[\[\],'\"\s]+", " ").str.strip_chars()
    return text.replace(["", "0"], None)


@dataclass(frozen=True)
class Searches:
    """Search sessions: the query once, then what was shown and clicked."""

    caster: Caster

    def __call__(self) -> Iterator[pl.DataFrame]:
        seen: set[str] = set()
        for batch in require_rows(self.caster.file):
            events = self.caster(batch).with_columns(
                batch.frame.select(words("keyword").alias("query")).to_series(),
                pl.lit("search").alias("surface"), pl.lit(None, dtype=pl.Float64).alias("watch_s"),
            )  # fmt: skip
            for column in ("user_id", "item_id", "timestamp", "request_id"):
                refuse_missing(events, column, self.caster, batch)
            begun = events["request_id"].is_first_distinct()
            if seen:
                begun &= ~events["request_id"].is_in(list(seen.intersection(events["request_id"].to_list())))
            seen.update(events["request_id"].filter(begun).to_list())
            clicked = flags(batch.frame["click_cnt"], self.caster.file, batch.numbers)
            everything = pl.Series([True] * events.height)
            yield spread(events, [("search", begun), ("impression", everything), ("click", clicked)]).with_columns(
                pl.when(pl.col("event") != "search").then(pl.col("item_id")).alias("item_id")
            )


@dataclass(frozen=True)
class Both:
    """The feed's log, then the search's."""

    feed: Signals
    search: Searches | None

    def __call__(self) -> Iterator[pl.DataFrame]:
        for frame in self.feed():
            blank = [pl.lit(None, dtype=pl.String).alias(name) for name in ("query", "request_id")]
            yield frame.with_columns(blank).select(_COLUMNS)
        for frame in self.search() if self.search is not None else ():
            yield frame.select(_COLUMNS)


class KuaiSARImporter:
    name = "kuaisar"
    expects = "an unpacked KuaiSAR folder with rec_inter.csv, src_inter.csv, user_features.csv and item_features.csv"

    def read(self, job: Job) -> Tables:
        folder = job.folder(self.expects)
        job.allow()

        def file(stem: str, *needed: str) -> TableFile | None:
            path = next((own for own in (folder / f"{stem}.csv", folder / f"{stem}.csv.gz") if own.exists()), None)
            if path is None:
                return None
            table = TableFile(path, "csv", job.encoding, notices=job.notices)
            require_columns(table, needed)
            return table

        feed = file("rec_inter", "user_id", "item_id", "timestamp", "playing_time", "click")
        search = file("src_inter", "user_id", "item_id", "search_session_id", "search_session_timestamp", "keyword", "click_cnt")
        items = file("item_features", "item_id", "caption")
        people = file("user_features", "user_id")
        if feed is None:
            raise job.missing("rec_inter.csv", self.expects)
        if items is None:
            raise job.missing("item_features.csv", self.expects)
        same = [Mapped("user_id", "user_id", FIXED), Mapped("item_id", "item_id", FIXED)]
        shown = Signals((Caster(feed, schema.EVENTS, {}, mapping=[*same, Mapped("timestamp", "timestamp", FIXED)]),), _SIGNALS, "playing_time")
        searched = None
        if search is not None:
            mapping = [*same, Mapped("timestamp", "search_session_timestamp", FIXED), Mapped("request_id", "search_session_id", FIXED)]
            searched = Searches(Caster(search, schema.EVENTS, {}, mapping=mapping))
        else:
            job.notices.append("there is no src_inter.csv: the shop has no searches")
        job.notices.append("words are anonymised: titles and queries are the numbers of the words")
        return Tables(
            items=_items(items, feed, job),
            events=Both(shown, searched),
            users=None if people is None else read_users(Caster(people, schema.USERS, {}, mapping=same[:1])),
        )


def _items(file: TableFile, feed: TableFile, job: Job) -> pl.DataFrame:
    columns = file.columns()
    levels = [
        next((own for own in (f"{level}_level_category_name_en", f"{level}_level_category_name") if own in columns), None)
        for level in _LEVELS
    ]  # fmt: skip
    named = [pl.col(own).replace(_EMPTY, None) for own in levels if own is not None]
    mapping = [Mapped("item_id", "item_id", FIXED)]
    if "upload_time" in columns:
        mapping.append(Mapped("created_at", "upload_time", FIXED))
    caster = Caster(file, schema.ITEMS, {}, mapping=mapping)
    frames = []
    for batch in file.batches():
        items = caster(batch)
        refuse_missing(items, "item_id", caster, batch)
        raw = batch.frame.with_columns(
            pl.lit(None, dtype=pl.String).alias(name)
            for name in ("author_id", "item_type", "upload_type")
            if name not in columns
        )
        more = raw.select(
            words("caption").alias("title"),
            pl.concat_list(named).list.drop_nulls().alias("category") if named else pl.lit(None, dtype=pl.List(pl.String)).alias("category"),
            pairs(("author", "author_id"), ("kind", "item_type"), ("upload", "upload_type")),
        )  # fmt: skip
        items = items.hstack(more)
        if "created_at" in items.columns:
            # 1970-1-1 is padding
            items = items.with_columns(pl.when(pl.col("created_at").dt.year() > 1970).then(pl.col("created_at")))
        frames.append(items.with_columns(pl.Series("__row", list(batch.numbers), dtype=pl.Int64)))
    if not frames:
        raise job.missing("rows in item_features.csv", KuaiSARImporter.expects)
    items = catalogue.finish(pl.concat(frames), file, job.notices)
    durations = catalogue.merge(_durations(feed))
    if durations is not None:
        items = items.join(durations, on="item_id", how="left", maintain_order="left")
    return items


def _durations(feed: TableFile) -> Iterator[pl.DataFrame]:
    if "duration_ms" not in feed.columns():
        return
    for batch in feed.batches():
        seconds = pl.col("duration_ms").cast(pl.Float64, strict=False) / 1000
        yield batch.frame.select("item_id", pl.when(seconds > 0).then(seconds).alias("duration_s")).drop_nulls()


IMPORTERS: Final[tuple[Importer, ...]] = (KuaiSARImporter(),)
