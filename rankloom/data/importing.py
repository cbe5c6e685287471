"""What people have, made into a shop. The formats are in `importers/`; this is their face and what all of them share.

Events flow through in batches: read, cast, checked, joined to the catalogue, written. All of it happens inside an
atomic folder, so that a killed import leaves nothing and a refused one says file, row, column and way out. The
catalogue is held in memory; events are not.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

import polars as pl
import pyarrow as pa
import pyarrow.parquet

from rankloom.data import schema
from rankloom.data.casting import KIND_NAMES
from rankloom.data.importers import Job, Tables, importers
from rankloom.data.mapping import Mapped, in_micros
from rankloom.data.reading import SUFFIXES, check_encoding, require_file
from rankloom.errors import RankloomError
from rankloom.files import atomic_folder, write_json

FORMATS: Final = tuple(importers())
_ROW_GROUP: Final = 250_000
_SAMPLES: Final = 3
_WITH_KINDS: Final = (*SUFFIXES, "ga4", "merchant-feed")


@dataclass
class ImportReport:
    """What an import did.

    Attributes:
        rows: rows written per table.
        unjoined: events whose item the catalogue does not have; they are left out. `unjoined_samples` names some.
        mapping: per file what became what.
        notices: what was assumed or repaired.
        warnings: what to look at: columns that nothing was made of, and values that are odd, as `validate` names them.
    """

    rows: dict[str, int] = field(default_factory=dict)
    unjoined: int = 0
    unjoined_samples: list[str] = field(default_factory=list)
    mapping: dict[str, list[Mapped]] = field(default_factory=dict)
    notices: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    @property
    def guessed(self) -> bool:
        """Whether anything of the mapping was neither asked for nor plain from the names."""
        return any(each.guessed for own in self.mapping.values() for each in own)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def render(self) -> str:
        """For a person."""
        lines = []
        for name, own in self.mapping.items():
            wide = [max((len(text) for text in texts), default=0) for texts in zip(*((m.shop, repr(m.source), m.example) for m in own), strict=True)]
            lines.append(f"{name}:")
            lines += [f"  {m.shop:<{wide[0]}} <- {m.source!r:<{wide[1]}}  {m.example:<{wide[2]}}  ({m.why})" for m in own]
        lines += [f"warning: {warning}" for warning in self.warnings]
        lines += [f"note: {notice}" for notice in self.notices]
        if self.unjoined:
            lines.append(
                f"note: {self.unjoined:,} events name items that the catalogue lacks (such as {', '.join(self.unjoined_samples)}); they were left out"
            )
        if self.rows:
            lines.append("rows: " + ", ".join(f"{name} {count:,}" for name, count in self.rows.items()))
        return "\n".join(lines)


def import_data(
    format: str,
    source: str | Path | None,
    out: str | Path,
    *,
    mapping: Mapping[str, str] | None = None,
    overwrite: bool = False,
    encoding: str | None = None,
    kinds: Mapping[str, str] | None = None,
    drop: Collection[str] = (),
    items: str | Path | None = None,
    events: str | Path | None = None,
    confirm: Callable[[ImportReport], bool] | None = None,
    command: Sequence[str] = (),
) -> ImportReport:
    """Imports `source` as the shop `out`.

    Args:
        format: one of `FORMATS`.
        source: the folder or file that the format expects.
        mapping: shop column to source column, where the guess would be wrong.
        overwrite: replace an existing shop.
        encoding: of text files; UTF-8, UTF-16 and GB18030 are recognised without it.
        kinds: words of the log to event kinds, where they are unknown.
        drop: words of the log whose events are left out.
        items: the catalogue's file, of csv, jsonl and parquet; None finds it in `source`.
        events: the log's file, likewise. `source` may be None where it is given, and then no other file is looked at.
        confirm: asked with the mapping before any row is read; False takes the import back.
        command: what the user wrote on the command line, for suggestions.

    Raises:
        RankloomError: anything wrong with the source, the mapping or the output folder; nothing is written.
    """
    if format not in importers():
        raise RankloomError(
            f"no importer {format!r}",
            place="FORMAT",
            action=f"choose one of {', '.join(importers())}",
            code="unknown-format",
        )
    files = {table: Path(path) for table, path in ((schema.ITEMS, items), (schema.EVENTS, events)) if path is not None}
    discover = source is not None
    source = _source(format, source, files)
    check_encoding(encoding)
    job = Job(
        source, in_micros(mapping or {}), encoding, kinds=_kinds(kinds or {}), dropped=dict.fromkeys(_words(drop), 0),
        files=files, discover=discover, command=command,
    )  # fmt: skip
    if (job.kinds or job.dropped) and format not in _WITH_KINDS:
        raise RankloomError(
            f"{format} has event kinds of its own", place="--map-event" if job.kinds else "--drop-event",
            action=f"leave it out, or import as {', '.join(SUFFIXES)}", code="kinds-fixed",
        )  # fmt: skip

    def agree() -> None:
        if confirm is not None and not confirm(
            ImportReport(mapping=job.mapped, notices=list(dict.fromkeys(job.notices)), warnings=list(dict.fromkeys(job.warnings)))
        ):
            raise RankloomError(
                "the import was taken back",
                action="say the mapping with --map shop_column=source_column",
                code="import-declined",
            )

    job.agreed = agree
    try:
        with atomic_folder(out, overwrite=overwrite, marker="shop.json") as folder:
            tables = importers()[format].read(job)
            job.confirm()
            report = _write(tables, job, folder)
            job.notices.extend(
                f"--drop-event {word}: {n:,} events left out" + ("" if n else "; no event has this kind") for word, n in job.dropped.items()
            )
            # a log that is read twice says everything twice
            notices, warnings = list(dict.fromkeys(job.notices)), list(dict.fromkeys(job.warnings))
            origin = {
                "schema_version": 1,
                "importer": format,
                "clock": report.pop("clock"),
                "rows": report["rows"],
                "mapping": {name: {each.shop: each.source for each in own} for name, own in job.mapped.items()},
                "notices": notices,
                "warnings": warnings,
                "unjoined": report["unjoined"],
            }
            write_json(folder / "shop.json", origin)
    except (pl.exceptions.PolarsError, pa.ArrowException, UnicodeError, OSError, ArithmeticError) as error:
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise RankloomError(
            f"the source cannot be read as {format}: {first}",
            place=str(source),
            action="mend or export the files again",
            code="source-broken",
        ) from None
    from rankloom.data.validate import odd_values

    return ImportReport(mapping=job.mapped, notices=notices, warnings=[*warnings, *odd_values(out)], **report)


def _source(format: str, source: str | Path | None, files: Mapping[str, Path]) -> Path:
    """Where the files lie."""
    if files and format not in SUFFIXES:
        raise RankloomError(
            f"{format} knows its files by their names", place="--items" if schema.ITEMS in files else "--events",
            action=f"leave it out, or import as {', '.join(SUFFIXES)}", code="files-fixed",
        )  # fmt: skip
    for path in files.values():
        require_file(path)
    if source is None and schema.EVENTS not in files:
        raise RankloomError(
            "there is no source", place="SRC", action="give a folder, or the log with --events FILE (and --items FILE)",
            code="source-missing",
        )  # fmt: skip
    source = Path(source) if source is not None else files[schema.EVENTS].parent
    if not source.exists():
        raise RankloomError(
            f"no file or folder {source}", place=str(source), action="check the path", code="source-missing"
        )
    if source.is_file():
        require_file(source)
    return source


def _words(words: Collection[str]) -> list[str]:
    return [word.strip().lower() for word in words]


def _kinds(kinds: Mapping[str, str]) -> dict[str, str]:
    """Event kinds by the log's words in lower case."""
    for word, kind in kinds.items():
        if kind not in schema.EVENT_KINDS[1:]:
            raise RankloomError(
                f"there is no event kind {kind!r}", place=f"--map-event {word}={kind}", action=f"choose one of {KIND_NAMES}",
                code="event-unknown",
            )  # fmt: skip
    return {word.strip().lower(): kind for word, kind in kinds.items()}


def _write(tables: Tables, job: Job, folder: Path) -> dict[str, Any]:
    """The tables of the shop; what became of the events."""
    rows = {"items": tables.items.height}
    tables.items.write_parquet(folder / schema.ITEMS, compression="zstd")
    for name, table in ((schema.USERS, tables.users), (schema.CAMPAIGNS, tables.campaigns)):
        if table is not None:
            table.write_parquet(folder / name, compression="zstd")
            rows[name.removesuffix(".parquet")] = table.height
    known = tables.items.select("item_id").with_columns(pl.lit(True).alias("known"))
    unjoined, read = 0, 0
    samples: list[str] = []
    with EventWriter(folder / schema.EVENTS) as writer:
        for events in tables.events() if tables.events is not None else ():
            read += events.height
            wordless = pl.col("item_id").is_null() & (pl.col("event") == "search")
            joined = events.join(known, on="item_id", how="left", maintain_order="left").with_columns(
                pl.col("known").fill_null(False)
            )
            lost = joined.filter(~pl.col("known") & pl.col("item_id").is_not_null())
            unjoined += lost.height
            if len(samples) < _SAMPLES:
                fresh = lost["item_id"].unique(maintain_order=True).to_list()
                samples = list(dict.fromkeys([*samples, *fresh]))[:_SAMPLES]
            writer.add(joined.filter(pl.col("known") | wordless).drop("known"))
    if read and not writer.rows:
        raise RankloomError(
            "no event joins the catalogue",
            place=str(job.source),
            action="check that both files use the same item ids",
            code="nothing-joined",
        )
    if tables.events is not None and not read:
        raise RankloomError(
            "the log has no events", place=str(job.source), action="export it again", code="events-empty"
        )
    rows = {"items": rows.pop("items"), "events": writer.rows, **rows}
    return {"rows": rows, "unjoined": unjoined, "unjoined_samples": samples, "clock": tables.clock}


class EventWriter:
    """Writes events batch by batch as one Parquet file; columns and types are those of the first batch."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows = 0
        self._writer: pa.parquet.ParquetWriter | None = None
        self._schema: pl.Schema | None = None
        self._waiting: list[pl.DataFrame] = []

    def __enter__(self) -> EventWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is None:
                self._flush()
        finally:
            if self._writer is not None:
                self._writer.close()

    def add(self, events: pl.DataFrame) -> None:
        """Appends events with the shop's columns."""
        wanted = {**schema.EVENT_REQUIRED, **schema.EVENT_OPTIONAL}
        if self._schema is None:
            self._schema = pl.Schema({name: wanted[name] for name in wanted if name in events.columns})
        self._waiting.append(events.select(self._schema.names()).cast(dict(self._schema)))  # type: ignore[arg-type]
        self.rows += events.height
        if sum(frame.height for frame in self._waiting) >= _ROW_GROUP:
            self._flush()

    def _flush(self) -> None:
        wanted = self._schema or pl.Schema(schema.EVENT_REQUIRED)
        table = pl.concat([pl.DataFrame(schema=wanted), *self._waiting]).to_arrow()
        self._waiting = []
        if self._writer is None:
            self._writer = pa.parquet.ParquetWriter(self.path, table.schema, compression="zstd")
        if table.num_rows:
            self._writer.write_table(table)
