"""The validator: named checks over a shop, each finding a fact with counts and samples, a place, and an action.

A dry run: nothing is changed. Tables are scanned lazily; only counts and samples are held. `validate_source` does the
same to files that are not a shop yet: it imports them into a scratch folder and throws that away.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, Literal

import polars as pl

from rankloom.data import schema
from rankloom.data.importing import ImportReport, import_data
from rankloom.data.reading import SUFFIXES, find_table
from rankloom.errors import RankloomError
from rankloom.files import read_json

Severity = Literal["error", "warning", "info"]


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong or worth knowing."""

    check: str
    severity: Severity
    fact: str
    place: str
    action: str


@dataclass(frozen=True)
class ValidationReport:
    """All findings, worst first, and how many checks ran."""

    findings: list[Finding]
    n_checks: int

    @property
    def errors(self) -> list[Finding]:
        return [finding for finding in self.findings if finding.severity == "error"]

    def to_dict(self) -> dict[str, Any]:
        return {"n_checks": self.n_checks, "findings": [asdict(finding) for finding in self.findings]}

    def render(self) -> str:
        """For a person: severity, check, fact, place, action."""
        lines = []
        for finding in self.findings:
            lines += [
                f"{finding.severity:<8}{finding.check}: {finding.fact}",
                f"        where: {finding.place}",
                f"        what to do: {finding.action}",
            ]
        n_warnings = sum(f.severity == "warning" for f in self.findings)
        lines.append(f"{self.n_checks} checks: {len(self.errors)} errors, {n_warnings} warnings")
        return "\n".join(lines)


@dataclass(frozen=True)
class RowCheck:
    """A check of single rows: `bad` marks them; columns name what must exist for it to apply."""

    name: str
    severity: Severity
    table: str
    columns: tuple[str, ...]
    bad: Callable[[], pl.Expr]
    fact: str
    action: str


_PAST: Final = datetime(1990, 1, 1, tzinfo=UTC)
_SAMPLE_LETTERS: Final = 60
_I, _E, _C, _U = schema.ITEMS, schema.EVENTS, schema.CAMPAIGNS, schema.USERS
# what a time in microseconds looks like whose number was in another unit (1990 to 2100 in s, ms and ns)
_WRONG_UNITS: Final = (("seconds", 6.3e8, 4.2e9), ("milliseconds", 6.3e11, 4.2e12), ("nanoseconds", 6.3e17, 4.2e18))


def _text(column: str, pattern: str) -> Callable[[], pl.Expr]:
    return lambda: pl.col(column).str.contains(pattern)


def _wrong_unit() -> pl.Expr:
    micros = pl.col("timestamp").dt.timestamp("us")
    return pl.any_horizontal([micros.is_between(low, high) for _, low, high in _WRONG_UNITS])


def _early() -> pl.Expr:
    """Rows that come before an earlier row of the same person says they should."""
    return pl.col("timestamp") < pl.col("timestamp").shift().over("user_id")


def _repeated() -> pl.Expr:
    return pl.struct("user_id", "item_id", "timestamp", "event").is_duplicated() & pl.col("item_id").is_not_null()


ROW_CHECKS: Final = (
    RowCheck("item-id-missing", "error", _I, ("item_id",), lambda: pl.col("item_id").is_null() | (pl.col("item_id") == ""), "items have no item_id", "give every item an id"),
    RowCheck("item-id-duplicate", "error", _I, ("item_id",), lambda: pl.col("item_id").is_duplicated(), "items share their item_id with another row", "keep one row per item"),
    RowCheck("item-id-scientific", "error", _I, ("item_id",), _text("item_id", r"^\d(\.\d+)?[eE]\+\d+$"), "item ids were read as numbers such as 1.2E+15", "export ids as text"),
    RowCheck("item-id-space", "warning", _I, ("item_id",), _text("item_id", r"^\s|\s$"), "item ids begin or end with a space", "strip them, in both tables"),
    RowCheck("item-id-control", "error", _I, ("item_id",), _text("item_id", r"[\x00-\x1f]"), "item ids hold NUL bytes or control characters", "clean the ids"),
    RowCheck("item-id-long", "warning", _I, ("item_id",), lambda: pl.col("item_id").str.len_chars() > 200, "item ids are longer than 200 characters", "use shorter ids"),
    RowCheck("title-duplicate", "info", _I, ("title",), lambda: pl.col("title").is_duplicated() & (pl.col("title").str.strip_chars() != ""), "items share their title with another item", "nothing, where they are variants; else import more columns to tell them apart"),
    RowCheck("title-missing", "warning", _I, ("title",), lambda: pl.col("title").is_null() | (pl.col("title").str.strip_chars() == ""), "items have no title", "fill in titles: they carry the semantic IDs"),
    RowCheck("title-is-id", "warning", _I, ("title", "item_id"), lambda: pl.col("title") == pl.col("item_id"), "titles are only the id", "import a catalogue with titles"),
    RowCheck("title-html", "warning", _I, ("title",), _text("title", r"</?[a-zA-Z]+[^>]*>|&[a-z]+;"), "titles hold HTML", "unescape and strip tags"),
    RowCheck("title-mojibake", "warning", _I, ("title",), _text("title", "[\ufffd]|Ã[\u0080-\u00bf]|锟斤拷"), "titles were decoded with the wrong encoding", "export the file again as UTF-8"),
    RowCheck("title-control", "warning", _I, ("title",), _text("title", r"[\x00-\x08\x0b\x0c\x0e-\x1f]"), "titles hold NUL bytes or control characters", "clean the titles"),
    RowCheck("title-long", "info", _I, ("title",), lambda: pl.col("title").str.len_chars() > 500, "titles are longer than 500 characters", "check for keyword stuffing"),
    RowCheck("price-negative", "error", _I, ("price_micros",), lambda: pl.col("price_micros") < 0, "prices are negative", "mend the prices"),
    RowCheck("price-zero", "warning", _I, ("price_micros",), lambda: pl.col("price_micros") == 0, "prices are zero", "leave unknown prices empty"),
    RowCheck("price-outlier", "warning", _I, ("price_micros",), lambda: pl.col("price_micros") > 1000 * pl.col("price_micros").median(), "prices exceed a thousand times the median", "check the unit: price_micros is millionths of the currency"),
    RowCheck("duration-invalid", "warning", _I, ("duration_s",), lambda: (pl.col("duration_s") <= 0) | pl.col("duration_s").is_nan(), "durations are zero, negative or NaN", "leave unknown durations empty"),
    RowCheck("duration-huge", "warning", _I, ("duration_s",), lambda: (pl.col("duration_s") > 86_400) & pl.col("duration_s").is_finite(), "durations exceed a day", "check the unit: duration_s is seconds"),
    RowCheck("created-future", "warning", _I, ("created_at",), lambda: pl.col("created_at") > datetime.now(UTC), "items were created in the future", "check the clock's unit and zone"),
    RowCheck("category-empty", "info", _I, ("category",), lambda: pl.col("category").is_null() | (pl.col("category").list.len() == 0), "items have no category", "filters on category never match them"),
    RowCheck("user-id-missing", "error", _E, ("user_id",), lambda: pl.col("user_id").is_null() | (pl.col("user_id") == ""), "events have no user_id", "fill them in or drop those rows"),
    RowCheck("user-id-scientific", "error", _E, ("user_id",), _text("user_id", r"^\d(\.\d+)?[eE]\+\d+$"), "user ids were read as numbers such as 1.2E+15", "export ids as text"),
    RowCheck("user-id-space", "warning", _E, ("user_id",), _text("user_id", r"^\s|\s$"), "user ids begin or end with a space", "strip them, so that one person is one id"),
    RowCheck("user-id-control", "error", _E, ("user_id",), _text("user_id", r"[\x00-\x1f]"), "user ids hold NUL bytes or control characters", "clean the ids"),
    RowCheck("event-item-missing", "error", _E, ("item_id", "event"), lambda: pl.col("item_id").is_null() & (pl.col("event") != "search"), "events other than searches have no item_id", "fill them in or drop those rows"),
    RowCheck("time-missing", "error", _E, ("timestamp",), lambda: pl.col("timestamp").is_null(), "events have no timestamp", "fill them in or drop those rows"),
    RowCheck("time-future", "error", _E, ("timestamp",), lambda: (pl.col("timestamp") > datetime.now(UTC)) & ~_wrong_unit(), "events lie in the future", "check the clock's unit and zone"),
    RowCheck("time-ancient", "warning", _E, ("timestamp",), lambda: (pl.col("timestamp") < _PAST) & ~_wrong_unit(), "events lie before 1990", "check the clock"),
    RowCheck("time-unordered", "info", _E, ("timestamp", "user_id"), _early, "events come before an earlier row of the same person", "nothing: training sorts by time; check that late deliveries carry their own time"),
    RowCheck("event-duplicate", "warning", _E, ("user_id", "item_id", "timestamp", "event"), _repeated, "events repeat another row: person, item, time and kind", "drop the repeated deliveries"),
    RowCheck("event-unknown", "error", _E, ("event",), lambda: ~pl.col("event").is_in(list(schema.EVENT_KINDS[1:])), "event kinds are unknown", f"use one of {', '.join(schema.EVENT_KINDS[1:])}"),
    RowCheck("event-id-duplicate", "warning", _E, ("event_id",), lambda: pl.col("event_id").is_not_null() & pl.col("event_id").is_duplicated(), "event ids come more than once", "drop the repeated deliveries"),
    RowCheck("surface-unknown", "warning", _E, ("surface",), lambda: ~pl.col("surface").is_in(list(schema.SURFACES)), "surfaces are unknown", f"use one of {', '.join(schema.SURFACES)}"),
    RowCheck("watch-negative", "error", _E, ("watch_s",), lambda: pl.col("watch_s") < 0, "watch times are negative", "mend the watch times"),
    RowCheck("watch-nan", "warning", _E, ("watch_s",), lambda: pl.col("watch_s").is_nan() | pl.col("watch_s").is_infinite(), "watch times are NaN or infinite", "leave unknown values empty"),
    RowCheck("watch-huge", "warning", _E, ("watch_s",), lambda: (pl.col("watch_s") > 86_400) & pl.col("watch_s").is_finite(), "watch times exceed a day", "check the unit: watch_s is seconds"),
    RowCheck("value-nan", "warning", _E, ("value",), lambda: pl.col("value").is_nan() | pl.col("value").is_infinite(), "values are NaN or infinite", "leave unknown values empty"),
    RowCheck("position-negative", "warning", _E, ("position", "event"), lambda: (pl.col("position") < 0) & (pl.col("event") != "search"), "positions are negative", "count positions from 0"),
    RowCheck("propensity-range", "error", _E, ("propensity",), lambda: (pl.col("propensity") <= 0) | (pl.col("propensity") > 1), "propensities lie outside (0, 1]", "log the chance with which the item was shown"),
    RowCheck("query-missing", "warning", _E, ("query", "event"), lambda: (pl.col("event") == "search") & pl.col("query").is_null(), "searches have no query", "log the words"),
    RowCheck("users-id-missing", "error", _U, ("user_id",), lambda: pl.col("user_id").is_null() | (pl.col("user_id") == ""), "people have no user_id", "drop those rows"),
    RowCheck("users-id-duplicate", "error", _U, ("user_id",), lambda: pl.col("user_id").is_duplicated(), "people share their user_id with another row", "keep one row a person"),
    RowCheck("campaign-id-missing", "error", _C, ("campaign_id",), lambda: pl.col("campaign_id").is_null() | (pl.col("campaign_id") == ""), "campaigns have no campaign_id", "give every campaign an id"),
    RowCheck("campaign-id-duplicate", "error", _C, ("campaign_id",), lambda: pl.col("campaign_id").is_duplicated(), "campaigns share their campaign_id with another row", "keep one row a campaign"),
    RowCheck("budget-invalid", "error", _C, ("budget_micros",), lambda: pl.col("budget_micros") <= 0, "budgets are zero or negative", "mend the budgets"),
    RowCheck("campaign-dates", "error", _C, ("start", "end"), lambda: pl.col("end") <= pl.col("start"), "campaigns end before they start", "mend the dates"),
)  # fmt: skip
SHOP_CHECKS: Final = (
    "file-missing", "file-broken", "column-missing", "column-type", "table-empty", "origin-broken", "rows-differ", "unjoined-events",
    "campaign-item-unknown", "clock-unit", "history-empty", "user-short-history", "item-never-seen", "too-small", "user-dominates",
    "times-equal", "currency-mixed", "watch-exceeds-duration", "simulated-mixed",
)  # fmt: skip
SOURCE_CHECKS: Final = (
    "encoding-other", "encoding-unknown", "encoding-broken", "nul-bytes", "file-empty", "file-is-folder", "file-truncated",
    "row-ragged", "quote-open", "header-duplicate", "json-line-broken", "xml-broken", "xml-entities", "clock-mixed", "clock-unknown",
    "value-unreadable", "id-scientific", "mapping-missing", "mapping-ambiguous", "item-duplicate", "events-missing", "nothing-joined",
)  # fmt: skip
"""Checks of files that are not a shop yet; the importers' error codes are their names."""
_TIME_CHECKS: Final = ("time-future", "time-ancient", "time-unordered")
N_CHECKS: Final = len(ROW_CHECKS) + len(SHOP_CHECKS) + len(SOURCE_CHECKS)


def validate(path: str | Path) -> ValidationReport:
    """Runs every check on a shop folder.

    Raises:
        RankloomError: no such folder.
    """
    path = Path(path)
    if not path.is_dir():
        raise RankloomError(
            f"no shop folder {path}",
            place=str(path),
            action="import one with `rankloom import`, or check the path",
            code="shop-missing",
        )
    findings = [*_tables(path), *_origin(path)]
    broken = {finding.place for finding in findings if finding.severity == "error"}
    frames = {
        name: pl.scan_parquet(path / name)
        for name in (_I, _E, _C, _U)
        if (path / name).is_file() and str(path / name) not in broken
    }
    # in a shop of ordered lists the times are only places in the list
    timed = _json(path).get("clock") != "order"
    for check in ROW_CHECKS:
        if check.table in frames and (timed or check.name not in _TIME_CHECKS):
            findings += _rows(check, frames[check.table], path)
    if _I in frames and _E in frames:
        findings += _across(frames, path, timed=timed)
    order = {"error": 0, "warning": 1, "info": 2}
    return ValidationReport(sorted(findings, key=lambda f: order[f.severity]), N_CHECKS)


def validate_source(
    source: str | Path | None, format: str, *, mapping: Mapping[str, str] | None = None, encoding: str | None = None,
    kinds: Mapping[str, str] | None = None, drop: Collection[str] = (),
    items: str | Path | None = None, events: str | Path | None = None,
    show: Callable[[ImportReport], None] = lambda _: None, command: Sequence[str] = (),
) -> ValidationReport:  # fmt: skip
    """Runs every check on files that are to be imported: a dry run of the import, and of the validator on its result.

    Args:
        source, mapping, encoding, kinds, drop, items, events, command: as `import_data` takes them.
        show: shown the mapping as soon as it is decided, and what the import did at its end.

    Raises:
        RankloomError: no such source, format or mapping; what is wrong with the files is a finding instead.
    """

    def shown(report: ImportReport) -> bool:
        show(report)
        return True

    given = source
    source = Path(source) if source is not None else Path(events or ".").parent
    with tempfile.TemporaryDirectory(prefix="rankloom-validate-") as scratch:
        shop = Path(scratch) / "shop"
        try:
            report = import_data(
                format, given, shop, mapping=mapping, encoding=encoding, kinds=kinds, drop=drop, items=items, events=events,
                confirm=shown, command=command,
            )  # fmt: skip
        except RankloomError as error:
            if error.place in ("FORMAT", "SRC") or str(error.place).startswith("--") or error.code == "source-missing":
                raise
            own = Finding(error.code, "error", error.message, error.place or str(source), error.action or "mend it")
            return ValidationReport([own], N_CHECKS)
        # what the values hold comes as findings, with their places
        odd = set(odd_values(shop))
        show(replace(report, mapping={}, warnings=[own for own in report.warnings if own not in odd]))
        findings: list[Finding] = []
        for notice in report.notices:
            name, _, said = notice.partition(": read as ")
            if said:
                fact = f"{name} is {said}, not UTF-8"
                action = "nothing, if its text reads well after the import; else say --encoding"
                findings.append(Finding("encoding-other", "info", fact, str(source), action))
        if report.unjoined:
            fact = f"{report.unjoined:,} events name items that the catalogue lacks, such as {', '.join(report.unjoined_samples)}"
            findings.append(Finding("unjoined-events", "warning", fact, str(source), _UNJOINED))
        checked = validate(shop)
        # the scratch folder is gone when this is read
        findings += [
            replace(finding, place=finding.place.replace(str(shop), f"{source} as a shop")) for finding in checked.findings
        ]
    order = {"error": 0, "warning": 1, "info": 2}
    return ValidationReport(sorted(findings, key=lambda f: order[f.severity]), N_CHECKS)


def guess_format(path: str | Path) -> str | None:
    """The import format of a folder or file that is no shop, by its names; None when they do not tell."""
    path = Path(path)
    if path.is_file():
        return next((own for own, suffixes in SUFFIXES.items() if path.name.lower().endswith(suffixes)), None)
    if (path / "shop.json").exists() or ((path / _I).exists() and (path / _E).exists()):
        return None
    if (path / "sequences.parquet").exists():
        return "sequences"
    if not path.is_dir():
        return None
    found = find_table(path, "events", tuple(SUFFIXES))
    if found is not None:
        return found[1]
    there = [own for own, suffixes in SUFFIXES.items() if any(file.name.lower().endswith(suffixes) for file in path.iterdir())]
    return there[0] if len(there) == 1 else None


def _json(path: Path) -> dict[str, Any]:
    try:
        origin = read_json(path / "shop.json")
    except RankloomError:
        return {}
    return origin if isinstance(origin, dict) else {}


def _origin(path: Path) -> Iterator[Finding]:
    file = path / "shop.json"
    origin = _json(path)
    if not origin:
        yield Finding(
            "origin-broken", "warning", "shop.json is missing or no JSON: where the shop comes from is not known",
            str(file), "import the data again",
        )  # fmt: skip
        return
    for table, wanted in (origin.get("rows") or {}).items():
        try:
            found = pl.scan_parquet(path / f"{table}.parquet").select(pl.len()).collect().item()
        except (pl.exceptions.PolarsError, OSError):
            continue  # `file-broken` or `file-missing` says so
        if found and found != wanted:
            yield Finding(
                "rows-differ", "warning", f"{table}.parquet has {found:,} rows, its import wrote {wanted:,}",
                f"{path / table}.parquet", "if you did not change it, it was copied in part: copy or import it again",
            )  # fmt: skip


def _tables(path: Path) -> Iterator[Finding]:
    required = {
        _I: schema.ITEM_REQUIRED, _E: schema.EVENT_REQUIRED, _C: schema.CAMPAIGN_REQUIRED, _U: schema.USER_REQUIRED
    }  # fmt: skip
    optional = {_I: schema.ITEM_OPTIONAL, _E: schema.EVENT_OPTIONAL, _C: schema.CAMPAIGN_OPTIONAL}
    for name in (_I, _E, _C, _U):
        file = path / name
        if not file.is_file():
            if name in (_I, _E):
                yield Finding("file-missing", "error", f"there is no {name}", str(file), "import the data again")
            continue
        try:
            columns = pl.scan_parquet(file).collect_schema()
            n_rows = pl.scan_parquet(file).select(pl.len()).collect().item()
        except (pl.exceptions.PolarsError, OSError) as error:
            yield Finding(
                "file-broken",
                "error",
                f"{name} is no readable Parquet: {str(error).splitlines()[0]}",
                str(file),
                "import the data again",
            )
            continue
        missing = [column for column in required.get(name, {}) if column not in columns]
        if missing:
            yield Finding(
                "column-missing", "error", f"{name} lacks {', '.join(missing)}", str(file), "rename or add the column"
            )
        if not n_rows:
            yield Finding("table-empty", "error", f"{name} has no rows", str(file), "export it again")
        wanted = {**required.get(name, {}), **optional.get(name, {})}
        for column, kind in columns.items():
            if (
                column in wanted
                and type(kind) is not type(wanted[column])
                and not (kind.is_numeric() and wanted[column].is_numeric())
            ):
                hint = (
                    "price as text: convert it to integer micros"
                    if column == "price_micros"
                    else f"convert it to {wanted[column]}"
                )
                yield Finding("column-type", "error", f"{column} is {kind}, not {wanted[column]}", str(file), hint)


def _rows(check: RowCheck, frame: pl.LazyFrame, path: Path) -> Iterator[Finding]:
    columns = frame.collect_schema()
    if not all(column in columns for column in check.columns):
        return
    bad = check.bad().fill_null(False)
    first = check.columns[0]
    try:
        found = frame.select(
            bad.sum().alias("count"), pl.len().alias("rows"), bad.arg_max().alias("row"),
            pl.col(first).filter(bad).head(3).cast(pl.String, strict=False).implode().alias("samples") if not isinstance(columns[first], pl.List) else pl.lit(None).alias("samples"),
        ).collect().row(0, named=True)  # fmt: skip
    except pl.exceptions.PolarsError:
        return  # the column has another type, which `column-type` says
    if found["count"]:
        samples = [str(value)[:_SAMPLE_LETTERS] for value in (found["samples"] or []) if value is not None]
        shown = f", such as {', '.join(map(repr, samples))}" if samples else ""
        yield Finding(
            check.name, check.severity, f"{found['count']:,} of {found['rows']:,}: {check.fact}{shown}",
            f"{path / check.table}, row {int(found['row']) + 1}, column {first}", check.action,
        )  # fmt: skip


# they compare rows with one another: their memory grows with the log, which an import's does not
_HEAVY: Final = ("event-duplicate", "event-id-duplicate", "time-unordered")


def odd_values(path: str | Path) -> list[str]:
    """Sentences on values of a fresh shop that no import refuses: the errors and warnings of the checks of single values."""
    path = Path(path)
    timed = _json(path).get("clock") != "order"
    said: list[str] = []
    for table in (_I, _E):
        frame = pl.scan_parquet(path / table)
        there = set(frame.collect_schema().names())
        checks = [
            check for check in ROW_CHECKS
            if check.table == table and check.severity != "info" and check.name not in _HEAVY and there.issuperset(check.columns)
            and (timed or check.name not in _TIME_CHECKS)
        ]  # fmt: skip
        counts = frame.select(check.bad().fill_null(False).sum().alias(check.name) for check in checks).collect(engine="streaming")
        for check in checks:
            if counts[check.name][0]:
                said += [f"{own.check}: {own.fact} ({own.place}); {own.action}" for own in _rows(check, frame, path)]
    return said


_UNJOINED: Final = "import the missing items, or accept that those events are ignored"


def _across(frames: dict[str, pl.LazyFrame], path: Path, *, timed: bool) -> Iterator[Finding]:
    items, events = frames[_I], frames[_E]
    ids = items.select(pl.col("item_id").cast(pl.String)).drop_nulls()
    targets = events.filter(~pl.col("event").is_in(["impression", "search"]) & (pl.col("user_id") != ""))
    lost = events.filter(pl.col("item_id").is_not_null()).join(ids, on="item_id", how="anti").group_by("item_id").len()
    lost_rows = lost.sort("len", "item_id", descending=[True, False]).collect()
    if lost_rows.height:
        names = ", ".join(repr(item) for item in lost_rows["item_id"].head(3).to_list())
        fact = f"{int(lost_rows['len'].sum()):,} events name {lost_rows.height:,} items that the catalogue lacks, such as {names}"
        yield Finding(
            "unjoined-events",
            "warning",
            fact,
            str(path / _E),
            _UNJOINED,
        )
    active = targets.group_by("user_id").len().collect()
    lengths = active["len"]
    people = [events.select("user_id"), *([frames[_U].select("user_id")] if _U in frames else [])]
    everyone = pl.concat(people).filter(pl.col("user_id") != "").unique()
    idle = everyone.join(active.lazy(), on="user_id", how="anti").sort("user_id").collect()["user_id"]
    if len(idle):
        fact = f"{len(idle):,} people have an empty history (no interaction), such as {', '.join(map(repr, idle.head(3).to_list()))}"
        yield Finding("history-empty", "info", fact, str(path / _E), "nothing: they are served as new visitors")
    short = int((lengths < 3).sum())
    if short:
        fact = f"{short:,} of {len(lengths):,} people have fewer than 3 interactions"
        yield Finding(
            "user-short-history",
            "info",
            fact,
            str(path / _E),
            "they train the model but are not evaluated leave-one-out",
        )
    unseen = ids.join(events.select("item_id").unique(), on="item_id", how="anti").select(pl.len()).collect().item()
    if unseen:
        yield Finding(
            "item-never-seen",
            "info",
            f"{unseen:,} items have no event",
            str(path / _I),
            "nothing: they are recommended by their text",
        )
    n_items = items.select(pl.len()).collect().item()
    if len(lengths) < 50 or n_items < 50 or int(lengths.sum() or 0) < 500:
        fact = f"{len(lengths):,} people, {n_items:,} items, {int(lengths.sum() or 0):,} interactions"
        yield Finding(
            "too-small",
            "warning",
            fact,
            str(path),
            "results are unstable below 50 people, 50 items and 500 interactions",
        )
    if len(lengths) > 20 and int(lengths.max()) > 0.2 * int(lengths.sum()):  # type: ignore[arg-type]
        yield Finding(
            "user-dominates",
            "warning",
            "one person has over a fifth of all interactions",
            str(path / _E),
            "check for a bot or a default user id",
        )
    yield from _clock(events, path, timed=timed)
    if "currency" in items.collect_schema():
        kinds = items.select(pl.col("currency").drop_nulls().unique().sort()).collect()["currency"].to_list()
        if len(kinds) > 1:
            yield Finding(
                "currency-mixed",
                "error",
                f"prices are in {', '.join(kinds)}",
                str(path / _I),
                "convert them to one currency",
            )
    if _C in frames:
        unknown = frames[_C].join(ids, on="item_id", how="anti").select(pl.len()).collect().item()
        if unknown:
            yield Finding(
                "campaign-item-unknown",
                "error",
                f"{unknown:,} campaigns advertise unknown items",
                str(path / _C),
                "import those items, or drop the campaigns",
            )
    yield from _watching(items, events, path)
    for name, frame in frames.items():
        if "simulated" in frame.collect_schema():
            marked = frame.select(pl.col("simulated").fill_null(False).mean()).collect().item()
            if marked is not None and 0 < marked < 1:
                yield Finding(
                    "simulated-mixed", "warning", f"{marked:.1%} of the rows are simulated, the others are not",
                    str(path / name), "keep simulated and real shops apart: no result of a mixture can be named either",
                )  # fmt: skip


def _clock(events: pl.LazyFrame, path: Path, *, timed: bool) -> Iterator[Finding]:
    times = events.select(pl.col("timestamp").n_unique().alias("n"), pl.len().alias("rows")).collect().row(0)
    if times[1] > 1 and times[0] == 1:
        yield Finding(
            "times-equal", "error", "all events have the same time", str(path / _E),
            "export the real times, or import ordered lists as `sequences`",
        )  # fmt: skip
    if not timed:
        return
    micros = pl.col("timestamp").dt.timestamp("us")
    for unit, low, high in _WRONG_UNITS:
        wrong = micros.is_between(low, high)
        found = events.select(wrong.sum().alias("n"), wrong.arg_max().alias("row")).collect().row(0, named=True)
        if found["n"]:
            yield Finding(
                "clock-unit", "error", f"{found['n']:,} times look like {unit} that were read as microseconds",
                f"{path / _E}, row {int(found['row']) + 1}, column timestamp", "convert them, and import again",
            )  # fmt: skip


def _watching(items: pl.LazyFrame, events: pl.LazyFrame, path: Path) -> Iterator[Finding]:
    """Somebody may watch a loop again and again, but not all the time: hours for a minute are another unit."""
    if "duration_s" not in items.collect_schema() or "watch_s" not in events.collect_schema():
        return
    known = items.select("item_id", "duration_s").filter(pl.col("duration_s") > 0).unique("item_id")
    joined = events.select("item_id", "watch_s").filter(pl.col("watch_s") <= 86_400).join(known, on="item_id")
    ratio = joined.select((pl.col("watch_s") > 100 * pl.col("duration_s")).sum().alias("n"), pl.len().alias("rows")).collect().row(0)
    if ratio[0]:
        yield Finding(
            "watch-exceeds-duration", "warning", f"{ratio[0]:,} of {ratio[1]:,} watch times are over a hundred times the item's duration",
            f"{path / _E}, column watch_s", "check the units: watch_s and duration_s are seconds",
        )  # fmt: skip
