"""`csv`, `jsonl`, `parquet`: tables with any column names, recognised and confirmed or said with `--map`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import polars as pl

from rankloom.data import catalogue, schema
from rankloom.data.casting import Caster, refuse_missing, refuse_unknown_kinds
from rankloom.data.importers import Importer, Job, Tables
from rankloom.data.mapping import check_explicit
from rankloom.data.reading import SUFFIXES, Batch, TableFile, find_table
from rankloom.errors import RankloomError

_FEW: Final = 6


@dataclass(frozen=True)
class TablesImporter:
    """Tables of one file format."""

    name: str

    @property
    def expects(self) -> str:
        suffix = SUFFIXES[self.name][0]
        return f"a folder with events{suffix} and items{suffix} (also users{suffix}, campaigns{suffix}), or one events file"

    def read(self, job: Job) -> Tables:
        if job.source.is_file():
            paths = {schema.EVENTS: job.source}
        else:
            stems = {
                schema.EVENTS: "events", schema.ITEMS: "items", schema.USERS: "users", schema.CAMPAIGNS: "campaigns"
            }  # fmt: skip
            found = {table: find_table(job.source, stem, (self.name,)) for table, stem in stems.items()}
            paths = {table: own[0] for table, own in found.items() if own is not None}
            if schema.EVENTS not in paths and schema.ITEMS not in paths:
                paths |= self._by_columns(job)
        if schema.EVENTS not in paths:
            names = ", ".join("events" + suffix for suffix in SUFFIXES[self.name])
            raise RankloomError(
                f"the folder has no events file ({names})", place=str(job.source),
                action="name the log events.csv (or .jsonl, .parquet), or map its columns: --map user_id=... --map timestamp=...",
                code="events-missing",
            )  # fmt: skip
        files = {table: TableFile(path, self.name, job.encoding, notices=job.notices) for table, path in paths.items()}
        columns = {table: file.columns() for table, file in files.items()}
        check_explicit(job.mapping, {name for own in columns.values() for name in own}, place=str(job.source))
        casters: dict[str, Caster] = {}
        # the catalogue first: the log names its items by a column of the same name
        for table in sorted(files, key=lambda table: table != schema.ITEMS):
            asked = dict(job.mapping)
            if table == schema.EVENTS and schema.ITEMS in casters and "item_id" not in asked:
                own = casters[schema.ITEMS].sources["item_id"]
                if own in columns[table] and own.strip().lower() != "id":
                    asked["item_id"] = own
            caster = Caster(files[table], table, asked, columns=columns[table], kinds=job.kinds)
            if len(asked) > len(job.mapping):
                caster.mapped = [
                    replace(each, why="as in the catalogue") if each.shop == "item_id" else each for each in caster.mapped
                ]
            casters[table] = caster
        for table, caster in casters.items():
            job.mapped[caster.file.path.name] = caster.mapped
            # of people every column is kept
            unused = None if table == schema.USERS else caster.unused()
            if unused:
                job.notices.append(unused)
        log = EventLog(casters[schema.EVENTS], job.notices, job.dropped)
        if schema.ITEMS in casters:
            items = catalogue.read_items(casters[schema.ITEMS])
            items = catalogue.finish(items, files[schema.ITEMS], job.notices)
        else:
            items = catalogue.of_log(log())
            job.notices.append("no items file: the catalogue is the items of the log, titled by their ids")
        return Tables(
            items=items,
            events=log,
            users=read_users(casters[schema.USERS]) if schema.USERS in casters else None,
            campaigns=_whole(casters[schema.CAMPAIGNS], "campaign_id") if schema.CAMPAIGNS in casters else None,
        )


    def _by_columns(self, job: Job) -> dict[str, Path]:
        """Log and catalogue among files of any names: the log is the one with people and times."""
        files = [path for path in sorted(job.source.iterdir()) if path.name.lower().endswith(SUFFIXES[self.name])]
        if not 1 <= len(files) <= _FEW:
            return {}
        found: dict[str, list[Path]] = {schema.EVENTS: [], schema.ITEMS: []}
        for path in files:
            for table, own in found.items():
                try:
                    Caster(TableFile(path, self.name, job.encoding), table, job.mapping, kinds=job.kinds)
                except RankloomError:
                    continue
                own.append(path)
                break
        if len(found[schema.EVENTS]) != 1 or len(found[schema.ITEMS]) > 1:
            return {}
        paths = {table: own[0] for table, own in found.items() if own}
        told = ", ".join(f"{path.name} read as the {table.removesuffix('.parquet')}" for table, path in paths.items())
        job.notices.append(f"by their columns: {told}")
        return paths


class EventLog:
    """The events of one mapped table, read anew at every call.

    Raises:
        RankloomError: while reading: a row without person, time or known event kind, or a value that cannot be read.
    """

    def __init__(self, caster: Caster, notices: list[str], dropped: dict[str, int] | None = None) -> None:
        self.caster = caster
        self.dropped = {} if dropped is None else dropped
        if "event" not in caster.sources:
            notices.append(f"{caster.file.path.name}: no event kind; every row read as a click")

    def __call__(self) -> Iterator[pl.DataFrame]:
        self.dropped.update(dict.fromkeys(self.dropped, 0))
        for batch in self.caster.file.batches():
            if self.dropped and "event" in self.caster.sources:
                batch = self._kept(batch)
            events = self.caster(batch)
            if "event" not in events.columns:
                events = events.with_columns(pl.lit("click").alias("event"))
            refuse_missing(events, "user_id", self.caster, batch)
            refuse_missing(events, "timestamp", self.caster, batch)
            refuse_unknown_kinds(events, self.caster, batch)
            yield events

    def _kept(self, batch: Batch) -> Batch:
        word = batch.frame[self.caster.sources["event"]].cast(pl.String).str.strip_chars().str.to_lowercase()
        for own in self.dropped:
            self.dropped[own] += int((word == own).sum())
        rows = (~word.is_in(list(self.dropped))).fill_null(True)
        return Batch(batch.frame.filter(rows), [n for n, keep in zip(batch.numbers, rows.to_list(), strict=True) if keep])


def read_users(caster: Caster) -> pl.DataFrame:
    """One row a person: `user_id` and every other column as it is.

    Raises:
        RankloomError: a person without an id or with two rows.
    """
    frames = []
    for batch in caster.file.batches():
        users = caster(batch).select("user_id")
        refuse_missing(users, "user_id", caster, batch)
        frames.append(users.hstack(batch.frame.drop(caster.sources["user_id"])))
    return _single(frames, "user_id", caster)


def _whole(caster: Caster, key: str) -> pl.DataFrame:
    frames = []
    for batch in caster.file.batches():
        frame = caster(batch)
        for column in (key, "item_id", "budget_micros"):
            refuse_missing(frame, column, caster, batch)
        frames.append(frame)
    return _single(frames, key, caster)


def _single(frames: list[pl.DataFrame], key: str, caster: Caster) -> pl.DataFrame:
    if not frames:
        raise RankloomError(
            f"{caster.file.path.name} has no rows", place=str(caster.file.path),
            action="export it again, or take it away", code="file-empty",
        )  # fmt: skip
    frame = pl.concat(frames, how="vertical_relaxed")
    twice = frame[key].is_duplicated()
    if twice.any():
        raise RankloomError(
            f"the {key} {frame[key].filter(twice)[0]!r} comes more than once", place=str(caster.file.path),
            action="keep one row of each", code=f"{key.replace('_', '-')}-duplicate",
        )  # fmt: skip
    return frame


def find_log(folder: Path, job: Job) -> TableFile | None:
    """An events table of any of the three formats beside another format's files."""
    found = find_table(folder, "events", tuple(SUFFIXES))
    return None if found is None else TableFile(found[0], found[1], job.encoding, notices=job.notices)


IMPORTERS: Final[tuple[Importer, ...]] = tuple(TablesImporter(name) for name in SUFFIXES)
