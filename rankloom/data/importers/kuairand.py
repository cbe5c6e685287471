"""`kuairand`: KuaiRand-Pure, -1K and -27K (Gao et al., CIKM 2022), as unpacked.

A row of `log_*.csv` is one video shown to one person with twelve feedback signals; it becomes an `impression` and one
event for each signal that is set: `is_click` click, `long_view` view, `is_like` like, `is_follow` follow, `is_comment`
comment, `is_forward` share, `is_hate` dislike. Seconds watched stand at impression, click and view. The videos have no
words (`video_features_basic_*.csv`): titles are built from tag, kind and author, or from the category names where
`kuairand_video_categories.csv` lies beside. `video_features_statistic_*` counts later traffic too and is not read.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import polars as pl

from rankloom.data import catalogue, schema
from rankloom.data.casting import Caster, refuse_missing
from rankloom.data.importers import Importer, Job, Tables
from rankloom.data.importers.tables import read_users
from rankloom.data.mapping import FIXED, Mapped
from rankloom.data.reading import Batch, TableFile
from rankloom.errors import RankloomError

_SIGNALS: Final = (
    ("is_click", "click"), ("long_view", "view"), ("is_like", "like"), ("is_follow", "follow"),
    ("is_comment", "comment"), ("is_forward", "share"), ("is_hate", "dislike"),
)  # fmt: skip
_WATCHED: Final = ("impression", "click", "view")
_CATEGORIES: Final = "kuairand_video_categories.csv"


@dataclass(frozen=True)
class Signals:
    """A log whose rows carry several yes-or-no signals.

    Attributes:
        signals: (column, event kind), in the order in which the events of a row are written.
        milliseconds: the column with the time watched.
    """

    casters: tuple[Caster, ...]
    signals: Sequence[tuple[str, str]]
    milliseconds: str

    def __call__(self) -> Iterator[pl.DataFrame]:
        for caster in self.casters:
            for batch in require_rows(caster.file):
                events = caster(batch)
                for column in ("user_id", "item_id", "timestamp"):
                    refuse_missing(events, column, caster, batch)
                watched = reals(batch.frame[self.milliseconds], caster.file, batch.numbers) / 1000
                kinds = [("impression", pl.Series([True] * events.height))]
                for column, kind in self.signals:
                    if column in batch.frame.columns:
                        kinds.append((kind, flags(batch.frame[column], caster.file, batch.numbers)))
                events = events.with_columns(watched.alias("watch_s"), pl.lit("feed").alias("surface"))
                yield spread(events, kinds)


def require_rows(file: TableFile) -> Iterator[Batch]:
    """The batches of a file that must have rows: a dump with a header alone was cut.

    Raises:
        RankloomError: there are none.
    """
    empty = True
    for batch in file.batches():
        empty = False
        yield batch
    if empty:
        raise RankloomError(
            f"{file.path.name} has no rows", place=file.place(), action="download it again", code="file-empty"
        )


def flags(column: pl.Series, file: TableFile, numbers: Sequence[int]) -> pl.Series:
    """A yes-or-no column; counts above one are yes."""
    return (reals(column, file, numbers) > 0).fill_null(False)


def reals(column: pl.Series, file: TableFile, numbers: Sequence[int]) -> pl.Series:
    """A column of numbers; NaN is unknown.

    Raises:
        RankloomError: a value that is no number.
    """
    values = column.cast(pl.Float64, strict=False)
    bad = (values.is_null() & column.is_not_null()).arg_true()
    if len(bad):
        row = int(bad[0])
        raise RankloomError(
            f"{column[row]!r} is no number", place=file.place(numbers[row], column.name),
            action="mend the value, or download the file again", code="value-unreadable",
        )  # fmt: skip
    return values.fill_nan(None)


def spread(events: pl.DataFrame, kinds: Sequence[tuple[str, pl.Series]]) -> pl.DataFrame:
    """One event for each kind that is set in a row, rows in order; the time watched stays where watching happens."""
    parts = []
    for place, (kind, chosen) in enumerate(kinds):
        watch = pl.col("watch_s") if kind in _WATCHED else pl.lit(None, dtype=pl.Float64)
        parts.append(
            events.with_row_index("__row")
            .filter(chosen)
            .with_columns(
                pl.lit(kind).alias("event"), watch.alias("watch_s"), pl.lit(place, dtype=pl.Int8).alias("__place")
            )
        )
    return pl.concat(parts).sort("__row", "__place").drop("__row", "__place")


def require_columns(file: TableFile, names: Sequence[str]) -> list[str]:
    """The file's columns, when all of `names` are among them."""
    columns = file.columns()
    absent = [name for name in names if name not in columns]
    if absent:
        raise RankloomError(
            f"{file.path.name} lacks the column {', '.join(absent)}", place=file.place(),
            action="download the file again", code="column-missing",
        )  # fmt: skip
    return columns


class KuaiRandImporter:
    name = "kuairand"
    expects = "an unpacked KuaiRand folder with log_*.csv, video_features_basic_*.csv and user_features_*.csv"

    def read(self, job: Job) -> Tables:
        folder = job.folder(self.expects)
        job.allow()
        if not list(folder.glob("log_*.csv*")) and (folder / "data").is_dir():
            folder = folder / "data"
        logs = [TableFile(path, "csv", job.encoding, notices=job.notices) for path in sorted(folder.glob("log_*.csv*"), key=_when)]
        videos = sorted(folder.glob("video_features_basic*.csv*"))
        if not logs:
            raise job.missing("log_*.csv", self.expects)
        if not videos:
            raise job.missing("video_features_basic_*.csv", self.expects)
        mapping = [Mapped("user_id", "user_id", FIXED), Mapped("item_id", "video_id", FIXED), Mapped("timestamp", "time_ms", FIXED)]
        for log in logs:
            require_columns(log, ["user_id", "video_id", "time_ms", "play_time_ms", "is_click"])
        casters = tuple(Caster(log, schema.EVENTS, {}, mapping=mapping) for log in logs)
        job.notices.append("a row of the log is an impression and one event for each signal that is set; long_view is a view")
        people = sorted(folder.glob("user_features*.csv*"))
        users = None
        if people:
            file = TableFile(people[0], "csv", job.encoding, notices=job.notices)
            users = read_users(Caster(file, schema.USERS, {}, mapping=[Mapped("user_id", "user_id", FIXED)]))
        return Tables(items=_videos(videos, folder, job), events=Signals(casters, _SIGNALS, "play_time_ms"), users=users)


def _when(path: Path) -> tuple[str, str]:
    """Logs by their first day, so that a person's events come in order as far as the files allow."""
    name = path.name.removeprefix("log_random_").removeprefix("log_standard_")
    return name, path.name


def _videos(paths: Sequence[Path], folder: Path, job: Job) -> pl.DataFrame:
    frames = []
    first = TableFile(paths[0], "csv", job.encoding, notices=job.notices)
    for path in paths:
        file = TableFile(path, "csv", job.encoding, notices=job.notices)
        columns = require_columns(file, ["video_id"])
        mapping = [Mapped("item_id", "video_id", FIXED)]
        if "upload_dt" in columns:
            mapping.append(Mapped("created_at", "upload_dt", FIXED))
        caster = Caster(file, schema.ITEMS, {}, mapping=mapping)
        for batch in file.batches():
            items = caster(batch)
            refuse_missing(items, "item_id", caster, batch)
            raw = batch.frame.with_columns(
                pl.lit(None, dtype=pl.String).alias(name)
                for name in ("video_duration", "tag", "author_id", "video_type", "upload_type", "music_id")
                if name not in batch.frame.columns
            )
            tags = pl.col("tag").str.split(",").list.eval("tag " + pl.element().str.strip_chars())
            said = [
                pl.col("tag").str.replace_all(r"\s*,\s*", " ").pipe(lambda own: pl.lit("tag ") + own),
                pl.col("video_type"), pl.col("upload_type"), pl.lit("author ") + pl.col("author_id"),
            ]  # fmt: skip
            extra = raw.select(
                (pl.col("video_duration").cast(pl.Float64, strict=False) / 1000).alias("duration_s"),
                pl.when(pl.col("tag").is_not_null()).then(tags).alias("category"),
                pl.concat_str(said, separator=" ", ignore_nulls=True).alias("__extra"),
                pairs(("author", "author_id"), ("kind", "video_type"), ("upload", "upload_type"), ("music", "music_id")),
            )
            items = items.hstack(extra.with_columns(pl.when(pl.col("duration_s") > 0).then(pl.col("duration_s"))))
            if "created_at" in items.columns:
                items = items.with_columns(pl.when(pl.col("created_at").dt.year() > 1970).then(pl.col("created_at")))
            frames.append(items.with_columns(pl.Series("__row", list(batch.numbers), dtype=pl.Int64)))
    if not frames:
        raise job.missing("rows in video_features_basic_*.csv", KuaiRandImporter.expects)
    items = pl.concat(frames)
    names = next((own for own in (folder / _CATEGORIES, folder.parent / _CATEGORIES) if own.exists()), None)
    if names is not None:
        items = _named(items, TableFile(names, "csv", job.encoding, notices=job.notices))
    # category names say more than the tag numbers, which the title then repeats only once
    built = items.with_columns(
        pl.coalesce("__title", "__extra").alias("title") if "__title" in items.columns else pl.col("__extra").alias("title")
    ).drop("__extra", "__title", strict=False)
    job.notices.append(
        f"{first.path.name}: the videos have no titles; they were built from "
        + ("the category names, tag" if names is not None else "tag") + ", kind and author"
    )  # fmt: skip
    return catalogue.finish(built, first, job.notices)


def pairs(*columns: tuple[str, str]) -> pl.Expr:
    """Attributes (key, source column); empty values are left out."""
    each = [pl.struct(pl.lit(key).alias("key"), pl.col(source).alias("value")) for key, source in columns]
    return pl.concat_list(each).list.eval(pl.element().filter(pl.element().struct.field("value").is_not_null())).alias("attributes")


def _named(items: pl.DataFrame, file: TableFile) -> pl.DataFrame:
    """Category paths and titles from the names of the categories, where a video has any."""
    columns = require_columns(file, ["final_video_id", "first_level_category_name"])
    levels = [f"{level}_level_category_name" for level in ("first", "second", "third", "fourth")]
    own = [pl.col(name).replace(["UNKNOWN", "空", "-124"], None) for name in levels if name in columns]
    named = pl.concat(
        [
            batch.frame.select(
                pl.col("final_video_id").alias("item_id"), pl.concat_list(own).list.drop_nulls().alias("path")
            )
            for batch in file.batches()
        ]
    ).unique("item_id", keep="first")
    known = pl.col("path").list.len() > 0
    return (
        items.join(named, on="item_id", how="left", maintain_order="left")
        .with_columns(
            pl.when(known).then(pl.col("path")).otherwise(pl.col("category")).alias("category"),
            pl.when(known).then(pl.col("path").list.join(" ") + " " + pl.col("__extra")).alias("__title"),
        )
        .drop("path")
    )


IMPORTERS: Final[tuple[Importer, ...]] = (KuaiRandImporter(),)
