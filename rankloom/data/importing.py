"""What people have, made into a shop: CSV, JSON lines, Parquet, ordered sequences.

Tables are scanned, cast and checked lazily and streamed to Parquet inside an atomic folder: a killed import leaves
nothing, a refused one says file, row, column and way out. The catalogue is held in memory; events are not.
"""

from __future__ import annotations

import gzip
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

import polars as pl

from rankloom.data import casting, schema
from rankloom.data.mapping import Mapped, check_explicit, guess
from rankloom.errors import RankloomError
from rankloom.files import atomic_folder, write_json

FORMATS: Final = ("csv", "jsonl", "parquet", "sequences")
_SUFFIXES: Final = {
    "csv": (".csv", ".tsv", ".csv.gz", ".tsv.gz"),
    "jsonl": (".jsonl", ".ndjson", ".jsonl.gz"),
    "parquet": (".parquet",),
}
_NOT_TEXT: Final = {"item_id", "n_interactions", "asin", "brand_id"}


@dataclass
class ImportReport:
    """What an import did.

    Attributes:
        rows: rows written per table.
        unjoined: events whose item the catalogue does not have; they are left out. `unjoined_samples` names some.
        mapping: per table what became what.
        notices: what was assumed or repaired.
    """

    rows: dict[str, int] = field(default_factory=dict)
    unjoined: int = 0
    unjoined_samples: list[str] = field(default_factory=list)
    mapping: dict[str, list[Mapped]] = field(default_factory=dict)
    notices: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def render(self) -> str:
        """For a person."""
        lines = []
        for table, own in self.mapping.items():
            lines += [f"{table}: {m.shop} <- {m.source!r} ({m.why})" for m in own]
        lines += [f"note: {notice}" for notice in self.notices]
        if self.unjoined:
            lines.append(
                f"note: {self.unjoined:,} events name items that the catalogue lacks (such as {', '.join(self.unjoined_samples)}); they were left out"
            )
        lines.append("rows: " + ", ".join(f"{name} {count:,}" for name, count in self.rows.items()))
        return "\n".join(lines)


def import_data(
    format: str,
    source: str | Path,
    out: str | Path,
    *,
    mapping: Mapping[str, str] | None = None,
    overwrite: bool = False,
) -> ImportReport:
    """Imports `source` (a folder with items.* and events.*, or a single file of events) as the shop `out`.

    Raises:
        RankloomError: anything wrong with the source, the mapping or the output folder; nothing is written.
    """
    if format not in FORMATS:
        raise RankloomError(
            f"no importer {format!r}",
            place="FORMAT",
            action=f"choose one of {', '.join(FORMATS)}",
            code="unknown-format",
        )
    source = Path(source)
    if not source.exists():
        raise RankloomError(
            f"no file or folder {source}", place=str(source), action="check the path", code="source-missing"
        )
    report = ImportReport()
    with tempfile.TemporaryDirectory(prefix="rankloom-import-") as scratch:
        if format == "sequences":
            items, events, clock = _sequences(source, report)
        else:
            items, events, clock = _tables(format, source, mapping or {}, report, Path(scratch))
        with atomic_folder(out, overwrite=overwrite, marker="shop.json") as folder:
            items.write_parquet(folder / schema.ITEMS, compression="zstd")
            try:
                known = items.lazy().select("item_id", pl.lit(True).alias("__known"))
                wordless = pl.col("item_id").is_null() & (pl.col("event") == "search")
                joined = (
                    events.join(known, on="item_id", how="left", maintain_order="left")
                    .filter(pl.col("__known").fill_null(False) | wordless)
                    .drop("__known")
                )
                joined.sink_parquet(folder / schema.EVENTS, compression="zstd")
            except pl.exceptions.PolarsError as error:
                raise RankloomError(
                    f"the events cannot be read: {error}",
                    place=str(source),
                    action="mend the file",
                    code="events-broken",
                ) from None
            written = pl.scan_parquet(folder / schema.EVENTS).select(pl.len()).collect().item()
            if not written:
                raise RankloomError(
                    "no event joins the catalogue",
                    place=str(source),
                    action="check that both files use the same item ids",
                    code="nothing-joined",
                )
            report.rows = {
                "items": items.height,
                "events": written,
                **{k: v for k, v in report.rows.items() if k not in ("items", "events")},
            }
            origin = {
                "schema_version": 1,
                "importer": format,
                "clock": clock,
                "rows": report.rows,
                "notices": report.notices,
                "unjoined": report.unjoined,
            }
            write_json(folder / "shop.json", origin)
    return report


def _tables(
    format: str, source: Path, explicit: Mapping[str, str], report: ImportReport, scratch: Path
) -> tuple[pl.DataFrame, pl.LazyFrame, str]:
    events_path = source if source.is_file() else _find(source, "events", format)
    if events_path is None:
        raise RankloomError(
            f"the folder has no events file ({', '.join('events' + s for s in _SUFFIXES[format])})",
            place=str(source), action="name the log events.csv (or .jsonl, .parquet)", code="events-missing",
        )  # fmt: skip
    items_path = None if source.is_file() else _find(source, "items", format)
    raw_events = _scan(format, events_path, scratch, report)
    raw_items = None if items_path is None else _scan(format, items_path, scratch, report)
    seen = set(raw_events.collect_schema().names()) | (
        set(raw_items.collect_schema().names()) if raw_items is not None else set()
    )
    check_explicit(explicit, seen, place=str(source))
    events = _cast(raw_events, schema.EVENTS, explicit, events_path, report)
    if "event" not in events.collect_schema():
        events = events.with_columns(pl.lit("click").alias("event"))
        report.notices.append(f"{events_path.name}: no event kind; every row read as a click")
    _check_events(events, events_path)
    if raw_items is not None and items_path is not None:
        items = _collect(_cast(raw_items, schema.ITEMS, explicit, items_path, report), items_path)
        items = _finish_items(items, raw_items, items_path, report)
    else:
        ids = _collect(events.select("item_id").unique().drop_nulls().sort("item_id"), events_path)
        items = ids.with_columns(pl.col("item_id").alias("title"))
        report.notices.append("no items file: the catalogue is the items of the log, titled by their ids")
    counts = events.join(items.lazy().select("item_id"), on="item_id", how="anti").filter(
        pl.col("item_id").is_not_null()
    )
    lost = counts.group_by("item_id").len().sort("len", "item_id", descending=[True, False]).collect(engine="streaming")
    report.unjoined = int(lost["len"].sum() or 0)
    report.unjoined_samples = lost["item_id"].head(3).to_list()
    return items, events, "time"


def _cast(
    frame: pl.LazyFrame, table: str, explicit: Mapping[str, str], path: Path, report: ImportReport
) -> pl.LazyFrame:
    mapped = guess(table, frame.collect_schema().names(), explicit, place=str(path))
    report.mapping[path.name] = mapped
    casts = [
        casting.cast_column(frame, own.shop, own.source, place=path.name, notices=report.notices) for own in mapped
    ]
    cast = frame.select(casts)
    failed = [
        (pl.col(own.source).is_not_null() & casts[n].is_null() & (pl.col(own.source).cast(pl.String, strict=False).str.strip_chars() != ""))
        .arg_max().alias(f"{n}.row") for n, own in enumerate(mapped)
        if own.shop in ("timestamp", "price_micros", "duration_s", "watch_s", "position", "value")
    ]  # fmt: skip
    broken = [
        (pl.col(own.source).is_not_null() & casts[n].is_null() & (pl.col(own.source).cast(pl.String, strict=False).str.strip_chars() != ""))
        .sum().alias(f"{n}.count") for n, own in enumerate(mapped)
        if own.shop in ("timestamp", "price_micros", "duration_s", "watch_s", "position", "value")
    ]  # fmt: skip
    if failed:
        found = _collect(frame.select(*failed, *broken), path).row(0, named=True)
        for n, own in enumerate(mapped):
            if found.get(f"{n}.count"):
                row = int(found[f"{n}.row"])
                value = _collect(frame.select(own.source).slice(row, 1), path).item()
                raise RankloomError(
                    f"{value!r} cannot be read as {own.shop} ({found[f'{n}.count']:,} such rows)",
                    place=f"{path}, row {row + 1}, column {own.source}",
                    action=f"mend the values, or map another column: --map {own.shop}=COLUMN",
                    code="value-unreadable",
                )
    return cast


def _check_events(events: pl.LazyFrame, path: Path) -> None:
    columns = ["user_id", "timestamp"]
    missing = _collect(
        events.select(
            [pl.col(c).is_null().sum().alias(c) for c in columns]
            + [pl.col(c).is_null().arg_max().alias(c + ".row") for c in columns]
        ),
        path,
    )
    for column in columns:
        if missing[column][0]:
            raise RankloomError(
                f"{missing[column][0]:,} events have no {column}",
                place=f"{path}, row {int(missing[column + '.row'][0]) + 1}, column {column}",
                action="fill them in or drop those rows",
                code=f"{column}-missing",
            )
    unknown = _collect(
        events.filter(~pl.col("event").is_in(list(schema.EVENT_KINDS[1:])) | pl.col("event").is_null())
        .group_by("event")
        .len()
        .sort("len", descending=True),
        path,
    )
    if unknown.height:
        names = ", ".join(f"{event!r} ({count:,})" for event, count in unknown.head(5).iter_rows())
        raise RankloomError(
            f"unknown event kinds: {names}",
            place=f"{path}, column event",
            action=f"rename them to one of {', '.join(schema.EVENT_KINDS[1:])}",
            code="event-unknown",
        )


def _finish_items(items: pl.DataFrame, raw: pl.LazyFrame, path: Path, report: ImportReport) -> pl.DataFrame:
    """Missing titles built, missing and duplicate ids refused."""
    empty = items["item_id"].is_null()
    if empty.any():
        raise RankloomError(
            f"{int(empty.sum()):,} items have no item_id", place=f"{path}, row {int(empty.arg_max() or 0) + 1}",
            action="fill them in or drop those rows", code="item-id-missing",
        )  # fmt: skip
    duplicated = items["item_id"].is_duplicated()
    if duplicated.any():
        before = items.height
        items = items.unique(maintain_order=True, keep="first")
        duplicated = items["item_id"].is_duplicated()
        if not duplicated.any():
            report.notices.append(f"{path.name}: {before - items.height:,} repeated identical rows dropped")
        else:
            first = items.filter(duplicated)["item_id"][0]
            rows = [int(r) + 1 for r in (items["item_id"] == first).arg_true().to_list()[:2]]
            raise RankloomError(
                f"the item {first!r} comes {int((items['item_id'] == first).sum())} times with different content ({items.filter(duplicated)['item_id'].n_unique():,} such ids)",
                place=f"{path}, rows {rows[0]} and {rows[1]}",
                action="keep one row per item",
                code="item-duplicate",
            )
    return _titles(items, raw, path, report)


def _titles(items: pl.DataFrame, raw: pl.LazyFrame, path: Path, report: ImportReport) -> pl.DataFrame:
    if "title" not in items.columns:
        items = items.with_columns(pl.lit(None, dtype=pl.String()).alias("title"))
    missing = int(items["title"].is_null().sum())
    if missing:
        parts = [pl.col(c).fill_null("") for c in ("brand",) if c in items.columns]
        parts += [pl.col("category").list.join(" ").fill_null("")] if "category" in items.columns else []
        parts += [pl.col("description").fill_null("").str.slice(0, 80)] if "description" in items.columns else []
        extra = [
            name for name, kind in raw.collect_schema().items()
            if kind == pl.String and name not in items.columns and name.lower() not in _NOT_TEXT
        ]  # fmt: skip
        if extra and raw.select(pl.len()).collect().item() == items.height:
            joined = raw.select(
                pl.concat_str([pl.col(c).fill_null("") for c in extra], separator=" ").alias("extra")
            ).collect()["extra"]
            items = items.with_columns(
                joined.str.replace_all("|", " ", literal=True)
                .str.replace_all("▁", " ", literal=True)
                .str.slice(0, 120)
                .alias("__extra")
            )
            parts.append(pl.col("__extra"))
        built = (
            pl.concat_str(parts, separator=" ").str.replace_all(r"\s+", " ").str.strip_chars().replace("", None)
            if parts
            else pl.lit(None)
        )
        items = items.with_columns(pl.coalesce(pl.col("title"), built, pl.col("item_id")).alias("title")).drop(
            "__extra", strict=False
        )
        report.notices.append(f"{path.name}: {missing:,} missing titles built from the other text columns")
    order = [c for c in (*schema.ITEM_REQUIRED, *schema.ITEM_OPTIONAL) if c in items.columns]
    return items.select(order)


def _sequences(source: Path, report: ImportReport) -> tuple[pl.DataFrame, pl.LazyFrame, str]:
    """A folder with items.parquet and sequences.parquet (`user_id`, `items` oldest first); the order is the time."""
    for name in ("items.parquet", "sequences.parquet"):
        if not (source / name).is_file():
            raise RankloomError(
                f"the folder lacks {name}",
                place=str(source / name),
                action="give a folder with items.parquet and sequences.parquet",
                code="source-missing",
            )
    raw = _scan("parquet", source / "items.parquet", source, report)
    columns = [c for c in raw.collect_schema().names() if c not in ("n_interactions", "asin", "brand_id")]
    raw = raw.select(columns)
    items = _collect(_cast(raw, schema.ITEMS, {}, source / "items.parquet", report), source / "items.parquet")
    items = _finish_items(items, raw, source / "items.parquet", report)
    sequences = _scan("parquet", source / "sequences.parquet", source, report)
    kinds = sequences.collect_schema()
    if "user_id" not in kinds or not isinstance(kinds.get("items"), pl.List):
        raise RankloomError(
            "sequences.parquet needs the columns user_id and items (a list, oldest first)",
            place=str(source / "sequences.parquet"), action="rename or rebuild the columns", code="column-missing",
        )  # fmt: skip
    if _collect(sequences.select(pl.col("user_id").is_duplicated().any()), source / "sequences.parquet").item():
        raise RankloomError(
            "a user_id comes twice in sequences.parquet",
            place=str(source / "sequences.parquet"),
            action="one row per user",
            code="user-duplicate",
        )
    events = (
        sequences.select(pl.col("user_id").cast(pl.String), pl.col("items").alias("item_id"), pl.int_ranges(pl.col("items").list.len()).alias("place"))
        .explode("item_id", "place")
        .drop_nulls("item_id")
        .select(
            "user_id", pl.col("item_id").cast(pl.String),
            (pl.col("place") * 1_000_000).cast(pl.Datetime("us")).dt.replace_time_zone("UTC").alias("timestamp"),
            pl.lit("click").alias("event"),
        )
    )  # fmt: skip
    lost = _collect(
        events.join(items.lazy().select("item_id"), on="item_id", how="anti").group_by("item_id").len().sort("item_id"),
        source,
    )
    report.unjoined = int(lost["len"].sum() or 0)
    report.unjoined_samples = lost["item_id"].head(3).to_list()
    report.notices.append("list order is time: the shop has no clock and can only be split leave-one-out")
    return items, events, "order"


def _find(folder: Path, stem: str, format: str) -> Path | None:
    return next(
        (folder / f"{stem}{suffix}" for suffix in _SUFFIXES[format] if (folder / f"{stem}{suffix}").is_file()), None
    )


def _scan(format: str, path: Path, scratch: Path, report: ImportReport) -> pl.LazyFrame:
    """A lazy frame of a file in any encoding; CSV values stay text."""
    if path.stat().st_size == 0:
        raise RankloomError(f"{path.name} is empty", place=str(path), action="export it again", code="file-empty")
    try:
        if format == "parquet":
            frame = pl.scan_parquet(path)
        else:
            path = _as_utf8(path, scratch, report)
            if format == "jsonl":
                frame = pl.scan_ndjson(path, infer_schema_length=10_000)
            else:
                frame = pl.scan_csv(
                    path,
                    separator=_separator(path),
                    infer_schema=False,
                    truncate_ragged_lines=False,
                    null_values=["", "NULL", "null", "\\N"],
                )
        frame.collect_schema()
        return frame
    except (pl.exceptions.PolarsError, OSError, EOFError, UnicodeDecodeError) as error:
        raise RankloomError(
            f"{path.name} cannot be read as {format}: {str(error).splitlines()[0]}",
            place=str(path),
            action="mend or export the file again",
            code="file-broken",
        ) from None


def _as_utf8(path: Path, scratch: Path, report: ImportReport) -> Path:
    """The file itself when it is UTF-8, else a transcoded copy; gzip is unpacked. NUL bytes are refused."""
    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "rb") as handle:
        head = handle.read(1 << 20)
    encoding = "utf-8"
    if head.startswith((b"\xff\xfe", b"\xfe\xff")):
        encoding = "utf-16"
    elif b"\x00" in head:
        line = head[: head.index(b"\x00")].count(b"\n") + 1
        raise RankloomError(
            "the file holds NUL bytes", place=f"{path}, line {line}", action="export it as UTF-8 text", code="nul-bytes"
        )
    else:
        try:
            head[: max(0, len(head) - 4)].decode("utf-8")
        except UnicodeDecodeError as error:
            encoding = "gb18030"
            try:
                head[: max(0, len(head) - 4)].decode(encoding)
            except UnicodeDecodeError:
                line = head[: error.start].count(b"\n") + 1
                raise RankloomError(
                    "the text is neither UTF-8, UTF-16 nor GB18030",
                    place=f"{path}, line {line}",
                    action="save it as UTF-8",
                    code="encoding-unknown",
                ) from None
    if encoding == "utf-8" and path.suffix != ".gz":
        return path
    if encoding != "utf-8":
        report.notices.append(f"{path.name}: read as {encoding.upper()}")
    copy = scratch / path.name.removesuffix(".gz")
    with (
        opener(path, "rt", encoding=encoding, newline="") as reader,
        open(copy, "w", encoding="utf-8", newline="") as writer,
    ):
        shutil.copyfileobj(reader, writer, 1 << 20)
    return copy


def _separator(path: Path) -> str:
    with open(path, encoding="utf-8-sig", errors="replace") as handle:
        head = handle.readline()
    return max((",", "\t", ";", "|"), key=head.count)


def _collect(frame: pl.LazyFrame, path: Path) -> pl.DataFrame:
    try:
        return frame.collect(engine="streaming")
    except (pl.exceptions.PolarsError, OSError) as error:
        raise RankloomError(
            f"{path.name} cannot be read: {str(error).splitlines()[0]}",
            place=str(path),
            action="mend or export the file again",
            code="file-broken",
        ) from None
