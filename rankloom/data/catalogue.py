"""The catalogue as importers leave it: ids checked, repeats told apart from contradictions, missing titles built."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final

import polars as pl

from rankloom.data import schema
from rankloom.data.casting import Caster, refuse_missing
from rankloom.data.reading import TableFile
from rankloom.errors import RankloomError

_NOT_TEXT: Final = {"item_id", "n_interactions", "asin", "brand_id"}
_EXTRA: Final = "__extra"
_ROW: Final = "__row"
_DESCRIPTION_LETTERS: Final = 80
_EXTRA_LETTERS: Final = 120


def read_items(caster: Caster) -> pl.DataFrame:
    """All items of a table file: the shop's columns, the row each came from, and its other text for a title.

    Raises:
        RankloomError: a value that cannot be read, a missing id.
    """
    frames = []
    for batch in caster.file.batches():
        cast = caster(batch)
        refuse_missing(cast, "item_id", caster, batch)
        texts = [
            name
            for name in caster.rest
            if batch.frame.schema.get(name) == pl.String and name.lower() not in _NOT_TEXT
        ]
        words = [
            pl.when(pl.col(name).str.contains(r"^[\d.,:/\-\s]*$|^https?://")).then(pl.lit("")).otherwise(pl.col(name)).fill_null("")
            for name in texts
        ]  # fmt: skip
        extra = batch.frame.select(
            (pl.concat_str(words, separator=" ") if words else pl.lit("")).alias(_EXTRA),
        ).to_series()
        if len(extra) != cast.height:
            extra = pl.Series(_EXTRA, [""] * cast.height)
        frames.append(cast.with_columns(extra, pl.Series(_ROW, list(batch.numbers), dtype=pl.Int64)))
    if not frames:
        raise RankloomError(
            f"{caster.file.path.name} has no rows", place=str(caster.file.path), action="export it again",
            code="file-empty",
        )  # fmt: skip
    return pl.concat(frames)


def finish(items: pl.DataFrame, file: TableFile | str, notices: list[str], *, lenient: bool = False) -> pl.DataFrame:
    """Items without repeats, each with a title, in the shop's column order.

    Args:
        file: where they come from, for messages.
        lenient: keep the first of several different rows of one item and say so, as the public dumps need it.

    Raises:
        RankloomError: one item with different content in two rows.
    """
    name = file if isinstance(file, str) else file.path.name
    if items["item_id"].is_duplicated().any():
        before = items.height
        content = [column for column in items.columns if column != _ROW]
        single = items.unique(subset=["item_id"] if lenient else content, keep="first", maintain_order=True)
        if single["item_id"].is_duplicated().any():
            raise _contradiction(single, file)
        items = single
        what = "repeated rows of an item dropped, the first kept" if lenient else "repeated identical rows dropped"
        notices.append(f"{name}: {before - items.height:,} {what}")
    items = _titles(items, name, notices)
    order = [column for column in (*schema.ITEM_REQUIRED, *schema.ITEM_OPTIONAL) if column in items.columns]
    return items.select(order)


def _contradiction(items: pl.DataFrame, file: TableFile | str) -> RankloomError:
    twice = items.filter(items["item_id"].is_duplicated())
    first = twice["item_id"][0]
    own = twice.filter(pl.col("item_id") == first)
    place = str(file)
    if _ROW in own.columns:
        rows = " and ".join(f"{row:,}" for row in own[_ROW].head(2).to_list())
        word = "lines" if isinstance(file, TableFile) and file.format == "jsonl" else "rows"
        place = f"{file.path if isinstance(file, TableFile) else file}, {word} {rows}"
    return RankloomError(
        f"the item {first!r} comes {own.height} times with different content ({twice['item_id'].n_unique():,} such ids)",
        place=place,
        action="keep one row per item",
        code="item-duplicate",
    )


def _titles(items: pl.DataFrame, name: str, notices: list[str]) -> pl.DataFrame:
    if "title" not in items.columns:
        items = items.with_columns(pl.lit(None, dtype=pl.String).alias("title"))
    items = items.with_columns(pl.col("title").str.strip_chars().replace("", None))
    missing = int(items["title"].null_count())
    if not missing:
        return items
    parts = []
    if "brand" in items.columns:
        parts.append(pl.col("brand").fill_null(""))
    if "category" in items.columns:
        parts.append(pl.col("category").list.join(" ").fill_null(""))
    if "description" in items.columns:
        parts.append(pl.col("description").fill_null("").str.slice(0, _DESCRIPTION_LETTERS))
    if _EXTRA in items.columns:
        clean = pl.col(_EXTRA).fill_null("").str.replace_all("|", " ", literal=True)
        parts.append(clean.str.replace_all("▁", " ", literal=True).str.slice(0, _EXTRA_LETTERS))
    if not parts:
        notices.append(f"{name}: {missing:,} items have no text at all; their title is their id")
        return items.with_columns(pl.col("title").fill_null(pl.col("item_id")))
    built = pl.concat_str(parts, separator=" ").str.replace_all(r"\s+", " ").str.strip_chars().replace("", None)
    notices.append(f"{name}: {missing:,} missing titles built from the other text columns")
    return items.with_columns(pl.coalesce(pl.col("title"), built, pl.col("item_id")).alias("title"))


def of_log(batches: Iterable[pl.DataFrame]) -> pl.DataFrame:
    """The catalogue of a log without one: its item ids, sorted, as titles too. Memory is bounded by the catalogue."""
    ids = merge(frame.select("item_id") for frame in batches)
    if ids is None:
        return pl.DataFrame(schema=schema.ITEM_REQUIRED)
    ids = ids.sort("item_id")
    return ids.with_columns(pl.col("item_id").alias("title"))


def merge(frames: Iterable[pl.DataFrame], *, keep_last: bool = False) -> pl.DataFrame | None:
    """Rows of many batches, one an item (null ids left out), in order of first appearance.

    Args:
        keep_last: the latest known value of each column wins, else the first row.
    """
    held: pl.DataFrame | None = None
    waiting: list[pl.DataFrame] = []
    size = 0
    for frame in _with_ids(frames):
        waiting.append(frame)
        size += frame.height
        if size >= 500_000:
            held = _fold(held, waiting, keep_last)
            waiting, size = [], 0
    return _fold(held, waiting, keep_last) if waiting else held


def _with_ids(frames: Iterable[pl.DataFrame]) -> Iterator[pl.DataFrame]:
    for frame in frames:
        own = frame.filter(pl.col("item_id").is_not_null())
        if own.height:
            yield own.unique("item_id", keep="first", maintain_order=True) if own.width == 1 else own


def _fold(held: pl.DataFrame | None, waiting: list[pl.DataFrame], keep_last: bool) -> pl.DataFrame:
    frame = pl.concat([*([held] if held is not None else []), *waiting])
    if keep_last:
        rest = [pl.col(name).drop_nulls().last() for name in frame.columns if name != "item_id"]
        return frame.group_by("item_id", maintain_order=True).agg(rest)
    return frame.unique("item_id", keep="first", maintain_order=True)
