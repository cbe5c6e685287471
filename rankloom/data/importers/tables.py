"""`csv`, `jsonl`, `parquet`: tables with any column names, recognised and confirmed or said with `--map`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Final

import polars as pl

from rankloom.data import catalogue, schema
from rankloom.data.casting import Caster, UnknownKinds, first_rows, refuse_missing, text_id, translated
from rankloom.data.importers import Importer, Job, Tables
from rankloom.data.mapping import UnmappedError, again, check_explicit, link
from rankloom.data.reading import SUFFIXES, Batch, TableFile, find_table
from rankloom.errors import RankloomError

_FEW: Final = 6
# rows in which ids of the catalogue are looked for in the log
_LINKED: Final = 100_000


@dataclass(frozen=True)
class TablesImporter:
    """Tables of one file format."""

    name: str

    @property
    def expects(self) -> str:
        suffix = SUFFIXES[self.name][0]
        return f"a folder with events{suffix} and items{suffix} (also users{suffix}, campaigns{suffix}), or one events file"

    def read(self, job: Job) -> Tables:
        paths = self._paths(job)
        files = {table: TableFile(path, self.name, job.encoding, notices=job.notices) for table, path in paths.items()}
        columns = {table: file.columns() for table, file in files.items()}
        check_explicit(job.mapping, {name for own in columns.values() for name in own}, place=str(job.source))
        casters = self._casters(job, files, columns)
        for table, caster in casters.items():
            job.mapped[caster.file.path.name] = caster.shown()
            # of people every column is kept
            unused = None if table == schema.USERS else caster.unused()
            if unused:
                job.warnings.append(unused)
        log = EventLog(casters[schema.EVENTS], job)
        if schema.ITEMS not in casters:
            job.notices.append("no items file: the catalogue is the items of the log, titled by their ids")
        job.confirm()
        if schema.ITEMS in casters:
            items = catalogue.read_items(casters[schema.ITEMS])
            items = catalogue.finish(items, files[schema.ITEMS], job.notices)
        else:
            items = catalogue.of_log(log())
        return Tables(
            items=items,
            events=log,
            users=read_users(casters[schema.USERS]) if schema.USERS in casters else None,
            campaigns=_whole(casters[schema.CAMPAIGNS], "campaign_id") if schema.CAMPAIGNS in casters else None,
        )

    def _casters(self, job: Job, files: Mapping[str, TableFile], columns: Mapping[str, list[str]]) -> dict[str, Caster]:
        """The mapping of every table; what is missing in all of them is one error."""
        casters: dict[str, Caster] = {}
        refused: list[UnmappedError] = []
        # the catalogue first: the log names its items by a column of the same name, or of the same values
        for table in sorted(files, key=lambda table: table != schema.ITEMS):
            asked, other = dict(job.mapping), None
            if table == schema.ITEMS and schema.EVENTS in files:
                other = partial(first_rows, files[schema.EVENTS], _LINKED)
            elif table == schema.EVENTS and schema.ITEMS in casters:
                own = casters[schema.ITEMS].sources["item_id"]
                other = partial(_ids, files[schema.ITEMS], own)
                if own in columns[table] and own.strip().lower() not in ("id", "item_id"):
                    asked.setdefault("item_id", own)
            try:
                caster = Caster(files[table], table, asked, columns=columns[table], kinds=job.kinds, other=other)
            except UnmappedError as error:
                refused.append(error)
                continue
            if asked != dict(job.mapping):
                caster.mapped = [
                    replace(each, why="as in the catalogue") if each.shop == "item_id" else each for each in caster.mapped
                ]
            casters[table] = caster
        if refused:
            missing = any(error.code == "mapping-missing" for error in refused)
            raise UnmappedError(
                "; ".join(error.message for error in refused) if len(refused) == 1
                else "; ".join(f"{Path(str(error.place)).name}: {error.message}" for error in refused),
                place=str(job.source) if len(refused) > 1 else str(refused[0].place),
                flags=_flags(refused), code="mapping-missing" if missing else "mapping-ambiguous", command=job.command,
            )  # fmt: skip
        return casters

    def _paths(self, job: Job) -> dict[str, Path]:
        """The file of each table: as asked, by its name, or by its columns."""
        paths: dict[str, Path] = {}
        if job.source.is_file():
            paths = {schema.EVENTS: job.source}
        elif job.discover:
            stems = {
                schema.EVENTS: "events", schema.ITEMS: "items", schema.USERS: "users", schema.CAMPAIGNS: "campaigns",
            }  # fmt: skip
            found = {table: find_table(job.source, stem, (self.name,)) for table, stem in stems.items()}
            paths = {table: own[0] for table, own in found.items() if own is not None}
        paths |= job.files
        if job.discover and job.source.is_dir() and not (schema.EVENTS in paths and schema.ITEMS in paths):
            paths |= self._by_columns(job, paths)
        if schema.EVENTS not in paths:
            there = sorted(path.name for path in job.source.iterdir())[:8] if job.source.is_dir() else []
            seen = f"; there are {', '.join(there)}" if there else ""
            names = ", ".join("events" + suffix for suffix in SUFFIXES[self.name])
            raise RankloomError(
                f"the folder has no events file ({names}), and none that its columns tell{seen}", place=str(job.source),
                action=f"say which file is the log: {again(job.command, ['--events', 'FILE', '--items', 'FILE'])}",
                code="events-missing",
            )  # fmt: skip
        return paths

    def _by_columns(self, job: Job, known: Mapping[str, Path]) -> dict[str, Path]:
        """Log and catalogue among files of other names.

        The catalogue is the file whose id is unique while the log names it again and again; where that does not tell, the
        log is the one with people and times.
        """
        free = [
            path for path in sorted(job.source.iterdir())
            if path.name.lower().endswith(SUFFIXES[self.name]) and path.is_file() and path not in known.values()
        ]  # fmt: skip
        if not 1 <= len(free) <= _FEW:
            return {}
        logs = [known[schema.EVENTS]] if schema.EVENTS in known else free
        items = [known[schema.ITEMS]] if schema.ITEMS in known else free
        rows: dict[Path, pl.DataFrame] = {}
        broken: RankloomError | None = None
        for path in sorted({*logs, *items}):
            try:
                rows[path] = first_rows(TableFile(path, self.name, job.encoding), _LINKED)
            except RankloomError as error:
                broken = broken or error
        pairs = [
            (own, log) for own in items for log in logs
            if own != log and own in rows and log in rows and link(rows[own], rows[log]) is not None
        ]  # fmt: skip
        found: dict[str, Path] = {}
        if len(pairs) == 1:
            found = {schema.ITEMS: pairs[0][0], schema.EVENTS: pairs[0][1]}
        elif schema.EVENTS not in known:
            if broken is not None:
                # the other file alone would be half of what was meant
                raise broken
            found = self._by_mapping(job, free, known)
        told = {table: path for table, path in found.items() if path not in known.values()}
        if told:
            names = ", ".join(f"{path.name} read as the {table.removesuffix('.parquet')}" for table, path in told.items())
            job.notices.append(f"by their columns: {names}")
        rest = [path.name for path in free if path not in told.values()]
        if rest:
            job.warnings.append(f"files not used: {', '.join(rest)}; --items FILE and --events FILE say which is which")
        return told

    def _by_mapping(self, job: Job, files: Sequence[Path], known: Mapping[str, Path]) -> dict[str, Path]:
        found: dict[str, list[Path]] = {schema.EVENTS: [], schema.ITEMS: []}
        for path in files:
            for table, own in found.items():
                try:
                    Caster(TableFile(path, self.name, job.encoding), table, job.mapping, kinds=job.kinds)
                except RankloomError:
                    continue
                own.append(path)
                break
        logs, items = found[schema.EVENTS], found[schema.ITEMS]
        if len(files) == 1 and not logs and schema.ITEMS in known:
            logs = list(files)
        if len(logs) != 1 or len(items) > 1:
            return {}
        return {schema.EVENTS: logs[0]} | ({schema.ITEMS: items[0]} if items and schema.ITEMS not in known else {})


def _ids(file: TableFile, column: str) -> pl.DataFrame:
    rows = first_rows(file, _LINKED)
    if column not in rows.columns:
        return pl.DataFrame({column: []}, schema={column: pl.String})
    return rows.select(text_id(column, rows.schema[column]).alias(column))


def _flags(errors: Sequence[UnmappedError]) -> list[str]:
    """The flags of several errors, each shop column once: `--map` holds for every table."""
    pairs: dict[str, str] = {}
    for error in errors:
        for flag in error.flags[1::2]:
            pairs.setdefault(flag.partition("=")[0], flag)
    return [word for flag in pairs.values() for word in ("--map", flag)]


class EventLog:
    """The events of one mapped table, read anew at every call.

    Raises:
        RankloomError: while reading: a row without person, time or known event kind, or a value that cannot be read.
    """

    def __init__(self, caster: Caster, job: Job) -> None:
        self.caster = caster
        self.job = job
        self.dropped = job.dropped
        if "event" not in caster.sources:
            job.warnings.append(f"{caster.file.path.name}: no event kind; every row read as a click")

    def __call__(self) -> Iterator[pl.DataFrame]:
        self.dropped.update(dict.fromkeys(self.dropped, 0))
        unknown = UnknownKinds()
        read: dict[str, str] = {}
        for batch in self.caster.file.batches():
            if self.dropped and "event" in self.caster.sources:
                batch = self._kept(batch)
            events = self.caster(batch)
            if "event" in events.columns:
                read |= translated(batch.frame[self.caster.sources["event"]], self.caster.kinds)
            else:
                events = events.with_columns(pl.lit("click").alias("event"))
            refuse_missing(events, "user_id", self.caster, batch)
            refuse_missing(events, "timestamp", self.caster, batch)
            if not unknown.add(events["event"], self.caster, batch):
                yield events
        if unknown.counts:
            raise unknown.error(self.job.command)
        if read:
            told = ", ".join(f"{word!r} as {kind}" for word, kind in sorted(read.items()))
            self.job.notices.append(f"{self.caster.file.path.name}: kinds of events read: {told}")

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
