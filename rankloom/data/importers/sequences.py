"""`sequences`: items and, per person, an ordered list of items without a clock; the order is the time."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Final

import polars as pl

from rankloom.data import catalogue, schema
from rankloom.data.casting import Caster, text_id
from rankloom.data.importers import Importer, Job, Tables
from rankloom.data.reading import TableFile, require_file
from rankloom.errors import RankloomError

_LEFT_OUT: Final = ("n_interactions", "asin", "brand_id")


class SequencesImporter:
    name = "sequences"
    expects = "a folder with items.parquet (item_id and text columns) and sequences.parquet (user_id, items oldest first)"

    def read(self, job: Job) -> Tables:
        folder = job.folder(self.expects)
        for name in ("items.parquet", "sequences.parquet"):
            if not (folder / name).exists():
                raise RankloomError(
                    f"the folder lacks {name}", place=str(folder / name), action=f"give {self.expects}",
                    code="source-missing",
                )  # fmt: skip
            require_file(folder / name)
        job.allow("item_id", "title", "description", "brand", "category", "price_micros", "duration_s", "in_stock")
        file = TableFile(folder / "items.parquet", "parquet", notices=job.notices)
        columns = [name for name in file.columns() if name not in _LEFT_OUT]
        caster = Caster(file, schema.ITEMS, job.mapping, columns=columns)
        job.mapped[file.path.name] = caster.mapped
        items = catalogue.finish(catalogue.read_items(caster), file, job.notices)
        log = OrderedLists(folder / "sequences.parquet", job.notices)
        job.notices.append("list order is time: the shop has no clock and can only be split leave-one-out")
        return Tables(items=items, events=log, clock="order")


class OrderedLists:
    """Events from lists: the nth item of a person happens at second n of 1970.

    Raises:
        RankloomError: columns of another kind, or (while reading) a person with two rows.
    """

    def __init__(self, path: Path, notices: list[str]) -> None:
        self.file = TableFile(path, "parquet", notices=notices)
        if not {"user_id", "items"} <= set(self.file.columns()):
            raise self._columns()

    def _columns(self) -> RankloomError:
        return RankloomError(
            "sequences.parquet needs the columns user_id and items (a list, oldest first)",
            place=str(self.file.path), action="rename or rebuild the columns", code="column-missing",
        )  # fmt: skip

    def __call__(self) -> Iterator[pl.DataFrame]:
        seen: set[str] = set()
        for batch in self.file.batches():
            frame = batch.frame.select("user_id", "items")
            items = frame.schema["items"]
            if not isinstance(items, pl.List):
                raise self._columns()
            users = frame.select(text_id("user_id", frame.schema["user_id"])).to_series()
            again = users.is_duplicated() | users.is_in(list(seen)) if seen else users.is_duplicated()
            for problem, mask in (("a row has no user_id", users.is_null()), ("a user_id comes twice", again)):
                if mask.fill_null(False).any():
                    number = batch.numbers[int(mask.fill_null(False).arg_max() or 0)]
                    raise RankloomError(
                        f"{problem} in sequences.parquet", place=self.file.place(number, "user_id"),
                        action="one row per user", code="user-duplicate" if mask is again else "user-id-missing",
                    )  # fmt: skip
            seen.update(users.to_list())
            yield (
                frame.select(users.alias("user_id"), pl.col("items").alias("item_id"), pl.int_ranges(pl.col("items").list.len()).alias("place"))
                .explode("item_id", "place")
                .drop_nulls("item_id")
                .select(
                    "user_id",
                    text_id("item_id", items.inner),  # type: ignore[arg-type]
                    (pl.col("place") * 1_000_000).cast(pl.Datetime("us")).dt.replace_time_zone("UTC").alias("timestamp"),
                    pl.lit("click").alias("event"),
                )
            )  # fmt: skip


IMPORTERS: Final[tuple[Importer, ...]] = (SequencesImporter(),)
