"""`movielens`: GroupLens' releases, each by the files it has.

ml-100k (`u.data`, `u.item`, `u.user`), ml-1m and ml-10m (`ratings.dat`, `movies.dat`, `users.dat`), and the CSV
releases (`ratings.csv`, `movies.csv`). A rating says that the film was watched: it becomes a `view` whose `value` is
the stars. The year at the end of a title becomes an attribute; genres are the category path.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Final

import polars as pl

from rankloom.data import catalogue, schema
from rankloom.data.casting import Caster, refuse_missing
from rankloom.data.importers import Importer, Job, Tables
from rankloom.data.mapping import FIXED, Mapped
from rankloom.data.reading import BATCH_ROWS, Batch, TableFile, text_lines
from rankloom.errors import RankloomError

_RATING: Final = {"user_id": "user_id", "item_id": "movie_id", "value": "rating", "timestamp": "timestamp"}
_CSV_RATING: Final = {"user_id": "userId", "item_id": "movieId", "value": "rating", "timestamp": "timestamp"}
# ml-100k's README: the last 19 fields of u.item are flags of these genres, in this order
_GENRES: Final = (
    "unknown", "Action", "Adventure", "Animation", "Children's", "Comedy", "Crime", "Documentary", "Drama", "Fantasy",
    "Film-Noir", "Horror", "Musical", "Mystery", "Romance", "Sci-Fi", "Thriller", "War", "Western",
)  # fmt: skip
_NO_GENRES: Final = ("(no genres listed)", "unknown")


class DoubleColonFile(TableFile):
    """A file whose values are parted by `::`, in Latin-1 as GroupLens wrote it unless it is UTF-8."""

    def columns(self) -> list[str]:
        return list(self.names or ())

    def batches(self) -> Iterator[Batch]:
        names = self.columns()
        rows: list[list[str]] = []
        numbers: list[int] = []
        for number, line in text_lines(self.path, encoding=self.encoding):
            if not line:
                continue
            values = line.split("::")
            if len(values) != len(names):
                raise RankloomError(
                    f"the line has {len(values)} values between '::', not {len(names)} ({', '.join(names)}): {line[:60]!r}",
                    place=self.place(number),
                    action="mend the line, or download the file again",
                    code="row-ragged",
                )
            rows.append(values)
            numbers.append(number)
            if len(rows) >= BATCH_ROWS:
                yield self._batch(names, rows, numbers)
                rows, numbers = [], []
        if rows:
            yield self._batch(names, rows, numbers)

    @staticmethod
    def _batch(names: list[str], rows: list[list[str]], numbers: list[int]) -> Batch:
        columns = zip(*rows, strict=True)
        data = {name: pl.Series(name, column, dtype=pl.String) for name, column in zip(names, columns, strict=True)}
        return Batch(pl.DataFrame(data).select(pl.all().replace("", None)), numbers)


class Ratings:
    """Ratings as views with stars."""

    def __init__(self, file: TableFile, sources: dict[str, str]) -> None:
        absent = [name for name in sources.values() if name not in file.columns()]
        if absent:
            raise RankloomError(
                f"{file.path.name} lacks the column {', '.join(absent)}", place=file.place(),
                action="download the file again, or import it as csv", code="column-missing",
            )  # fmt: skip
        self.caster = Caster(file, schema.EVENTS, {}, mapping=[Mapped(own, name, FIXED) for own, name in sources.items()])

    def __call__(self) -> Iterator[pl.DataFrame]:
        for batch in self.caster.file.batches():
            events = self.caster(batch)
            for column in ("user_id", "item_id", "timestamp"):
                refuse_missing(events, column, self.caster, batch)
            yield events.with_columns(pl.lit("view").alias("event"))


class MovieLensImporter:
    name = "movielens"
    expects = "an unpacked MovieLens folder: u.data and u.item, ratings.dat and movies.dat, or ratings.csv and movies.csv"

    def read(self, job: Job) -> Tables:
        folder = job.folder(self.expects)
        job.allow()
        notices = job.notices

        def table(name: str, names: tuple[str, ...], separator: str) -> TableFile:
            path = folder / name
            own = _encoding(path, job) if name == "u.item" else job.encoding
            return TableFile(path, "csv", own, names, separator, quoted=False, notices=notices)

        def double(name: str, names: tuple[str, ...]) -> TableFile:
            path = folder / name
            own = _encoding(path, job) if name == "movies.dat" else job.encoding
            return DoubleColonFile(path, "csv", own, names, notices=notices)

        def has(*names: str) -> bool:
            return all((folder / name).exists() for name in names)

        users: TableFile | None = None
        if has("u.data", "u.item"):
            names = ("movie_id", "title", "release_date", "video_release_date", "url", *_GENRES)
            movies = table("u.item", names, "|")
            ratings, sources = table("u.data", ("user_id", "movie_id", "rating", "timestamp"), "\t"), _RATING
            if has("u.user"):
                users = table("u.user", ("user_id", "age", "gender", "occupation", "zip_code"), "|")
        elif has("ratings.dat", "movies.dat"):
            movies = double("movies.dat", ("movie_id", "title", "genres"))
            ratings, sources = double("ratings.dat", ("user_id", "movie_id", "rating", "timestamp")), _RATING
            if has("users.dat"):
                users = double("users.dat", ("user_id", "gender", "age", "occupation", "zip_code"))
        elif has("ratings.csv", "movies.csv"):
            movies = TableFile(folder / "movies.csv", "csv", job.encoding, notices=notices)
            ratings = TableFile(folder / "ratings.csv", "csv", job.encoding, notices=notices)
            sources = _CSV_RATING
        else:
            raise job.missing("a pair of ratings and films", self.expects)
        notices.append("a rating is read as a view: the film was watched; the stars are its value")
        return Tables(
            items=catalogue.finish(_movies(movies), movies, notices, lenient=False),
            events=Ratings(ratings, sources),
            users=None if users is None else pl.concat([batch.frame for batch in users.batches()]),
        )


def _encoding(path: Path, job: Job) -> str | None:
    """GroupLens' older releases are Latin-1; a copy that somebody converted is UTF-8."""
    if job.encoding is not None:
        return job.encoding
    head = path.read_bytes()[: 1 << 22] if path.is_file() else b""
    try:
        head.decode("utf-8")
    except UnicodeDecodeError as error:
        return "utf-8" if error.reason == "unexpected end of data" and len(head) == 1 << 22 else "latin-1"
    return None


def _movies(file: TableFile) -> pl.DataFrame:
    columns = file.columns()
    key = "movieId" if "movieId" in columns else "movie_id"
    mapping = [Mapped("item_id", key, FIXED), Mapped("title", "title", FIXED)]
    if "u.item" not in file.path.name:
        mapping.append(Mapped("category", "genres", FIXED))
    absent = [own.source for own in mapping if own.source not in columns]
    if absent:
        raise RankloomError(
            f"{file.path.name} lacks the column {', '.join(absent)}", place=file.place(),
            action="download the file again, or import it as csv", code="column-missing",
        )  # fmt: skip
    caster = Caster(file, schema.ITEMS, {}, mapping=mapping)
    frames = []
    for batch in file.batches():
        items = caster(batch)
        refuse_missing(items, "item_id", caster, batch)
        if "category" in items.columns:
            items = items.with_columns(pl.col("category").list.eval(pl.element().filter(~pl.element().is_in(list(_NO_GENRES)))))
        else:
            flags = [pl.when(batch.frame[name] == "1").then(pl.lit(name)) for name in _GENRES if name not in _NO_GENRES]
            items = items.with_columns(batch.frame.select(pl.concat_list(flags).list.drop_nulls()).to_series().alias("category"))
        year = pl.col("title").str.extract(r"\((\d{4})(?:-\d{0,4})?\)\s*$", 1)
        pair = pl.concat_list(pl.struct(pl.lit("year").alias("key"), year.alias("value")))
        items = items.with_columns(pl.when(year.is_not_null()).then(pair).alias("attributes"))
        frames.append(items.with_columns(pl.Series("__row", list(batch.numbers), dtype=pl.Int64)))
    if not frames:
        raise RankloomError(
            f"{file.path.name} has no rows", place=file.place(), action="download it again", code="file-empty"
        )
    return pl.concat(frames)


IMPORTERS: Final[tuple[Importer, ...]] = (MovieLensImporter(),)
