"""`amazon`: the review and metadata dumps of 2014, 2018 and 2023 (McAuley Lab), plain or gzip.

Metadata are the files whose name begins with `meta_`, all other `.json` and `.jsonl` files are reviews; several
categories may lie in one folder. The metadata of 2014 are Python literals, one a line. A review is read as a purchase
whose `value` is the stars. In 2023 the item is `parent_asin`, which the metadata are keyed by.
"""

from __future__ import annotations

import html
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import polars as pl

from rankloom.data import catalogue, schema
from rankloom.data.casting import TimeReader, price_micros
from rankloom.data.importers import Importer, Job, Tables
from rankloom.data.reading import json_lines
from rankloom.errors import RankloomError

_SUFFIXES: Final = (".json", ".json.gz", ".jsonl", ".jsonl.gz")
_USER: Final = ("user_id", "reviewerID")
_ITEM: Final = ("parent_asin", "asin")
_TIME: Final = ("timestamp", "unixReviewTime", "sort_timestamp")
_STARS: Final = ("rating", "overall")
_PRICE: Final = r"^\s*(?:from\s+)?\$?\s*(\d{1,3}(?:,\d{3})+|\d+)(\.\d+)?\s*$"
_LETTERS: Final = 2_000
_ATTRIBUTES: Final = 40


@dataclass
class Reviews:
    """Reviews as purchases with stars.

    Raises:
        RankloomError: while reading: a line that is no review, with its number.
    """

    paths: Sequence[Path]
    job: Job
    said: list[str] = field(default_factory=list)

    def __call__(self) -> Iterator[pl.DataFrame]:
        mapping = self.job.mapping
        user_of, item_of, time_of, stars_of = (
            (mapping[shop],) if shop in mapping else usual
            for shop, usual in (("user_id", _USER), ("item_id", _ITEM), ("timestamp", _TIME), ("value", _STARS))
        )
        for path in self.paths:
            clock = TimeReader("timestamp", place=path.name, notices=self.said)
            for rows in json_lines(path, encoding=self.job.encoding, notices=self.said, loose=True, progress=True):
                data: dict[str, list[Any]] = {"user_id": [], "item_id": [], "timestamp": [], "value": []}
                for number, row in rows:
                    data["user_id"].append(_needed(row, user_of, "person", path, number))
                    data["item_id"].append(_needed(row, item_of, "item", path, number))
                    data["timestamp"].append(_when(row, time_of, path, number))
                    data["value"].append(_stars(row, stars_of, path, number))
                lines = [number for number, _ in rows]
                raw = pl.Series("timestamp", data.pop("timestamp"), dtype=pl.Int64)
                times = clock(raw, lambda row, at=path, own=lines: f"{at}, line {own[row]:,}, column {time_of[0]}")  # type: ignore[misc]
                yield pl.DataFrame(
                    data, schema={"user_id": pl.String, "item_id": pl.String, "value": pl.Float64}
                ).with_columns(times, pl.lit("purchase").alias("event"))  # fmt: skip


def _first(row: dict[str, Any], names: Sequence[str]) -> Any:
    return next((row[name] for name in names if row.get(name) not in (None, "")), None)


def _needed(row: dict[str, Any], names: Sequence[str], what: str, path: Path, number: int) -> str:
    value = _first(row, names)
    if isinstance(value, (str, int)) and str(value).strip():
        return str(value).strip()
    raise RankloomError(
        f"the line names no {what} (none of {', '.join(names)}); it has {', '.join(map(repr, list(row)[:8])) or 'nothing'}",
        place=f"{path}, line {number:,}",
        action="is this an Amazon dump? metadata files must begin with meta_; remove the line, or import as jsonl",
        code="column-missing",
    )


def _when(row: dict[str, Any], names: Sequence[str], path: Path, number: int) -> int:
    value = _first(row, names)
    try:
        if isinstance(value, bool):
            raise TypeError
        seconds = int(value)
        if abs(seconds) >= 2**62:
            raise ValueError
        return seconds
    except (TypeError, ValueError, OverflowError):
        raise RankloomError(
            f"{value!r} is no time in seconds or milliseconds", place=f"{path}, line {number:,}, column {names[0]}",
            action="download the file again, or remove the line", code="value-unreadable",
        ) from None  # fmt: skip


def _stars(row: dict[str, Any], names: Sequence[str], path: Path, number: int) -> float | None:
    value = _first(row, names)
    try:
        return None if value is None else float(value)
    except (TypeError, ValueError):
        raise RankloomError(
            f"{value!r} is no rating", place=f"{path}, line {number:,}, column {names[0]}",
            action="download the file again, or remove the line", code="value-unreadable",
        ) from None  # fmt: skip


def _metadata(paths: Sequence[Path], job: Job) -> pl.DataFrame:
    wanted: dict[str, Any] = {
        "item_id": pl.String(), "title": pl.String(), "description": pl.String(), "brand": pl.String(),
        "category": pl.List(pl.String()), "price": pl.String(), "image_url": pl.String(),
        "attributes": schema.ITEM_OPTIONAL["attributes"], "__extra": pl.String(),
    }  # fmt: skip
    item_of = (job.mapping["item_id"],) if "item_id" in job.mapping else _ITEM
    frames = []
    for path in paths:
        for rows in json_lines(path, encoding=job.encoding, notices=job.notices, loose=True, progress=True):
            data: dict[str, list[Any]] = {name: [] for name in wanted}
            for number, row in rows:
                data["item_id"].append(_needed(row, item_of, "item", path, number))
                for name, value in _describe(row, job).items():
                    data[name].append(value)
            frames.append(pl.DataFrame(data, schema=wanted))
    items = pl.concat(frames).unique("item_id", keep="first", maintain_order=True) if frames else pl.DataFrame(schema=wanted)
    repeats = sum(frame.height for frame in frames) - items.height
    if repeats:
        job.notices.append(f"metadata: {repeats:,} repeated rows of an item dropped, the first kept")
    readable = pl.when(pl.col("price").str.contains(_PRICE)).then(pl.col("price"))
    unread = int(items.select((pl.col("price").is_not_null() & ~pl.col("price").str.contains(_PRICE)).sum()).item())
    if unread:
        job.notices.append(f"metadata: {unread:,} prices are ranges or remains of a web page; left empty")
    items = items.with_columns(readable.alias("price")).with_columns(
        price_micros("price", pl.String()).alias("price_micros"),
        pl.when(pl.col("price").is_not_null()).then(pl.lit("USD")).alias("currency"),
    )
    return items.drop("price")


def _describe(row: dict[str, Any], job: Job) -> dict[str, Any]:
    """The shop's columns of one metadata line of any year."""

    def text(*names: str, shop: str = "") -> str | None:
        value = _first(row, (job.mapping[shop],) if shop in job.mapping else names)
        return _plain(value)

    price = row.get("price")
    image = row.get("images") or row.get("imageURLHighRes") or row.get("imageURL") or row.get("imUrl")
    if isinstance(image, list) and image:
        image = image[0]
    if isinstance(image, dict):
        image = image.get("large") or image.get("hi_res") or image.get("thumb")
    return {
        "title": text("title", shop="title"),
        "description": text("description", shop="description"),
        "brand": text("brand", "store", shop="brand"),
        "category": _path(row),
        "price": None if price in (None, "", "None", "—") else str(price),
        "image_url": image if isinstance(image, str) else None,
        "attributes": _details(row.get("details")),
        "__extra": _plain([row.get("features") or row.get("feature") or "", row.get("main_category") or row.get("main_cat") or ""]),
    }  # fmt: skip


def _plain(value: Any) -> str | None:
    """Text without tags and entities; lists are joined."""
    if isinstance(value, list):
        value = " ".join(filter(None, (_plain(own) for own in value)))
    if not isinstance(value, (str, int, float)):
        return None
    text = html.unescape(str(value))
    # dumps of 2018 hold whole scripts where a page was read wrongly
    text = re.sub(r"(?is)<(script|style)\b.*?(?:</\1>|$)|<[^<>]{1,400}>", " ", text)
    return re.sub(r"\s+", " ", text).strip()[:_LETTERS] or None


def _path(row: dict[str, Any]) -> list[str] | None:
    """2014: several paths, the first is taken; 2018 and 2023: one path; an empty one is the main category."""
    value = row.get("categories") or row.get("category")
    if isinstance(value, list) and value and isinstance(value[0], list):
        value = value[0]
    if isinstance(value, str):
        value = [value]
    names = [name for name in (_plain(own) for own in value) if name] if isinstance(value, list) else []
    main = _plain(row.get("main_category") or row.get("main_cat"))
    return list(dict.fromkeys(names)) or ([main] if main else None)


def _details(value: Any) -> list[dict[str, str]] | None:
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError:
            return None
    if not isinstance(value, dict):
        return None
    pairs = [{"key": str(key).strip(" :\n"), "value": text} for key, own in value.items() if (text := _plain(own))]
    return pairs[:_ATTRIBUTES] or None


class AmazonImporter:
    name = "amazon"
    expects = "a folder with reviews (.json or .jsonl, also .gz) and their meta_*.json or .jsonl, or one review file"

    def read(self, job: Job) -> Tables:
        job.allow("item_id", "user_id", "timestamp", "value", "title", "description", "brand")
        if job.source.is_file():
            reviews, metadata = [job.source], []
        else:
            files = sorted(path for path in job.source.iterdir() if path.name.lower().endswith(_SUFFIXES))
            metadata = [path for path in files if path.name.lower().startswith("meta")]
            reviews = [path for path in files if path not in metadata]
        if not reviews:
            raise job.missing("a review file (.json or .jsonl, also .gz)", self.expects)
        job.notices.append("a review is read as a purchase; the stars are its value")
        log = Reviews(reviews, job, said=job.notices)
        if metadata:
            items = catalogue.finish(_metadata(metadata, job), "metadata", job.notices, lenient=True)
        else:
            items = catalogue.of_log(Reviews(reviews, job)())
            job.notices.append("there is no meta_* file: the catalogue is the items of the reviews, titled by their ids")
        return Tables(items=items, events=log)


IMPORTERS: Final[tuple[Importer, ...]] = (AmazonImporter(),)
