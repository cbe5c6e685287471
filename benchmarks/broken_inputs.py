"""Is every broken input refused with a clear error, and nothing written? 200 broken files over every importer.

    python benchmarks/broken_inputs.py [--quick | --all] [--show] [--json OUT]

Each case takes a good source (`_sources.py`), breaks one thing, and imports it through the command line's entry point.
Asked of every one: exit status 2; a fact, where, and what to do on standard error; the place names the source; no
traceback; no shop, and nothing left beside it; the source unchanged. The cases are drawn with a fixed seed, evenly over
formats and kinds of damage. Good sources are imported too, so that a refusal of everything cannot pass.
"""

from __future__ import annotations

import contextlib
import csv
import gzip
import hashlib
import io
import json
import random
import shutil
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import _sources
import polars as pl
from _common import Benchmark, argument_parser

N_CASES = 200
SEED = 20260101


@dataclass(frozen=True)
class Spec:
    """A file of a good source and what in it matters.

    Attributes:
        kind: `table` (separated text), `lines` (JSON lines), `parquet` or `xml`.
        names: columns of a table without a header.
        needed: columns or keys without which the import cannot be.
        ids: columns that must have a value in every row.
        time: the column with the time.
        numbers: columns that must be numbers.
        unique: whether two different rows of one id are a contradiction.
        optional: the import works without the file.
    """

    kind: str
    separator: str = ","
    names: tuple[str, ...] = ()
    needed: tuple[str, ...] = ()
    ids: tuple[str, ...] = ()
    time: str | None = None
    numbers: tuple[str, ...] = ()
    unique: bool = False
    optional: bool = False
    loose: bool = False


_QUOTED = ("src_inter.csv", "movies.csv", "item_features.csv", "data/video_features_basic_pure.csv")
"""Tables with quoted values: one quote more can still be read, as something else."""
_RATING = ("user_id", "movie_id", "rating", "timestamp")
FILES: dict[str, dict[str, Spec]] = {
    "csv": {
        "events.csv": Spec("table", needed=("customer", "sku", "time"), ids=("customer", "time"), time="time"),
        "items.csv": Spec("table", needed=("sku",), ids=("sku",), numbers=("price",), unique=True, optional=True),
    },
    "jsonl": {
        "events.jsonl": Spec("lines", needed=("user_id", "item_id", "ts"), ids=("user_id", "ts"), time="ts", numbers=("watch_s",)),
        "items.jsonl": Spec("lines", needed=("item_id",), ids=("item_id",), numbers=("price",), unique=True, optional=True),
    },
    "parquet": {
        "events.parquet": Spec("parquet", needed=("user_id", "item_id", "ts"), ids=("user_id", "ts"), time="ts"),
        "items.parquet": Spec("parquet", needed=("item_id",), ids=("item_id",), unique=True, optional=True),
    },
    "sequences": {
        "sequences.parquet": Spec("parquet", needed=("user_id", "items"), ids=("user_id",), unique=True),
        "items.parquet": Spec("parquet", needed=("item_id",), ids=("item_id",), unique=True),
    },
    "ga4": {"events_20260101.json": Spec("lines", needed=("event_name", "event_timestamp"), ids=("event_name", "event_timestamp"), time="event_timestamp")},
    "ga4-csv": {"events_export.csv": Spec("table", needed=("event_name", "event_timestamp"), ids=("event_name", "event_timestamp"), time="event_timestamp")},
    "merchant-feed": {
        "feed.xml": Spec("xml", unique=True),
        "events.csv": Spec("table", needed=("user_id", "item_id", "timestamp"), ids=("user_id", "timestamp"), time="timestamp", optional=True),
    },
    "merchant-tsv": {"feed.tsv": Spec("table", "\t", needed=("id",), ids=("id",), numbers=("price",), unique=True)},
    "amazon": {
        "reviews_Beauty_5.json.gz": Spec("lines", needed=("reviewerID", "asin", "unixReviewTime"), ids=("reviewerID", "asin", "unixReviewTime"), time="unixReviewTime", numbers=("overall",)),
        "meta_Beauty.json.gz": Spec("lines", needed=("asin",), ids=("asin",), optional=True, loose=True),
    },
    "amazon-2018": {
        "Tools.json": Spec("lines", needed=("reviewerID", "asin", "unixReviewTime"), ids=("reviewerID", "asin", "unixReviewTime"), time="unixReviewTime", numbers=("overall",)),
        "meta_Tools.json": Spec("lines", needed=("asin",), ids=("asin",), optional=True),
    },
    "amazon-2023": {
        "All_Beauty.jsonl": Spec("lines", needed=("user_id", "timestamp"), ids=("user_id", "timestamp"), time="timestamp", numbers=("rating",)),
        "meta_All_Beauty.jsonl": Spec("lines", needed=("parent_asin",), ids=("parent_asin",), optional=True),
    },
    "movielens": {
        "ratings.csv": Spec("table", needed=("userId", "movieId", "rating", "timestamp"), ids=("userId", "movieId", "timestamp"), time="timestamp", numbers=("rating",)),
        "movies.csv": Spec("table", needed=("movieId", "title", "genres"), ids=("movieId",), unique=True),
    },
    "movielens-1m": {
        "ratings.dat": Spec("table", "::", _RATING, ids=("user_id", "movie_id", "timestamp"), time="timestamp", numbers=("rating",)),
        "movies.dat": Spec("table", "::", ("movie_id", "title", "genres"), ids=("movie_id",), unique=True),
    },
    "movielens-100k": {
        "u.data": Spec("table", "\t", _RATING, ids=("user_id", "movie_id", "timestamp"), time="timestamp", numbers=("rating",)),
        "u.item": Spec("table", "|", ("movie_id", "title", *(f"x{n}" for n in range(22))), ids=("movie_id",), unique=True),
    },
    "kuairand": {
        "data/log_standard_4_08_to_4_21_pure.csv": Spec("table", needed=("user_id", "video_id", "time_ms", "play_time_ms"), ids=("user_id", "video_id", "time_ms"), time="time_ms", numbers=("is_click", "play_time_ms")),
        "data/video_features_basic_pure.csv": Spec("table", needed=("video_id",), ids=("video_id",), unique=True),
        "data/user_features_pure.csv": Spec("table", needed=("user_id",), ids=("user_id",), unique=True, optional=True),
    },
    "kuaisar": {
        "rec_inter.csv": Spec("table", needed=("user_id", "item_id", "timestamp", "playing_time"), ids=("user_id", "item_id", "timestamp"), time="timestamp", numbers=("click", "playing_time")),
        "src_inter.csv": Spec("table", needed=("user_id", "item_id", "search_session_id", "keyword"), ids=("user_id", "search_session_id"), time="search_session_timestamp", numbers=("click_cnt",), optional=True),
        "item_features.csv": Spec("table", needed=("item_id", "caption"), ids=("item_id",), unique=True),
        "user_features.csv": Spec("table", needed=("user_id",), ids=("user_id",), unique=True, optional=True),
    },
}  # fmt: skip


@dataclass
class Case:
    """One thing broken.

    Attributes:
        damage: what kind of damage.
        break_it: changes the source's folder; returns other arguments for the import, where it has any.
    """

    source: str
    file: str
    damage: str
    break_it: Callable[[Path], dict[str, Any] | None]
    arguments: dict[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return f"{self.source}: {self.file}: {self.damage}"


class Text:
    """A text file of a source, whether gzip or not."""

    def __init__(self, path: Path) -> None:
        self.path = path
        raw = path.read_bytes()
        self.packed = raw.startswith(b"\x1f\x8b")
        self.raw = gzip.decompress(raw) if self.packed else raw

    def write(self, raw: bytes) -> None:
        self.path.write_bytes(gzip.compress(raw, mtime=0) if self.packed else raw)

    def lines(self) -> list[bytes]:
        return self.raw.splitlines(keepends=True)


class Rows:
    """A separated table of a source as names and rows of text."""

    def __init__(self, path: Path, spec: Spec) -> None:
        self.text, self.spec = Text(path), spec
        self.encoding = "utf-8"
        try:
            content = self.text.raw.decode()
        except UnicodeDecodeError:
            self.encoding = "latin-1"
            content = self.text.raw.decode("latin-1")
        if spec.separator == "," or (spec.separator == "\t" and not spec.names):
            rows = list(csv.reader(io.StringIO(content), delimiter=spec.separator))
        else:
            rows = [line.split(spec.separator) for line in content.splitlines()]
        self.names = list(spec.names) or rows.pop(0)
        self.rows = rows

    def save(self) -> None:
        rows = self.rows if self.spec.names else [self.names, *self.rows]
        if len(self.spec.separator) == 1 and not self.spec.names:
            buffer = io.StringIO()
            csv.writer(buffer, delimiter=self.spec.separator, lineterminator="\n").writerows(rows)
            content = buffer.getvalue()
        else:
            content = "".join(self.spec.separator.join(row) + "\n" for row in rows)
        self.text.write(content.encode(self.encoding))

    def put(self, row: int, column: str, value: str) -> None:
        self.rows[row][self.names.index(column)] = value


def bytes_damage(path: str, spec: Spec) -> Iterator[tuple[str, Callable[[Path], None]]]:
    """What can happen to any file."""

    def at(folder: Path) -> Path:
        return folder / path

    def folder_instead(folder: Path) -> None:
        at(folder).unlink()
        at(folder).mkdir()

    def broken_gzip(folder: Path) -> None:
        at(folder).write_bytes(b"\x1f\x8b\x08\x00" + bytes(range(40)))

    def cut_gzip(folder: Path) -> None:
        raw = gzip.compress(Text(at(folder)).raw, mtime=0)
        at(folder).write_bytes(raw[: len(raw) * 2 // 3])

    yield "empty file", lambda folder: at(folder).write_bytes(b"") and None
    yield "a folder where a file should be", folder_instead
    if not spec.optional and not path.startswith("data/log_"):  # there is a second log
        yield "missing file", lambda folder: at(folder).unlink()
    if spec.kind == "parquet":
        yield "cut Parquet", lambda folder: cut(at(folder), 0.6)
        yield "Parquet without its end", lambda folder: cut(at(folder), 0.97)
        yield "Parquet header only", lambda folder: at(folder).write_bytes(b"PAR1") and None
        yield "Parquet with a broken footer", lambda folder: poke(at(folder), -8, b"\xff\xff\xff\x7f")
        yield "Parquet with broken pages", lambda folder: poke(at(folder), 4, b"\xff" * 60)
        yield "text with a Parquet name", lambda folder: at(folder).write_text("a,b\n1,2\n") and None
        return
    yield "cut gzip", cut_gzip
    yield "broken gzip", broken_gzip
    yield "NUL byte", lambda folder: insert(at(folder), b"\x00")
    if path not in ("movies.dat", "u.item"):  # Latin-1, which has a letter for every byte
        yield "no text in any encoding", lambda folder: insert(at(folder), b"\xff\xff\xfe")
    yield "cut UTF-16", lambda folder: Text(at(folder)).write(Text(at(folder)).raw.decode("latin-1").encode("utf-16")[:-1])


def cut(path: Path, share: float) -> None:
    raw = path.read_bytes()
    path.write_bytes(raw[: int(len(raw) * share)])


def poke(path: Path, at: int, new: bytes) -> None:
    raw = bytearray(path.read_bytes())
    start = at if at >= 0 else len(raw) + at
    raw[start : start + len(new)] = new[: len(raw) - start]
    path.write_bytes(bytes(raw))


def insert(path: Path, new: bytes) -> None:
    text = Text(path)
    lines = text.lines()
    middle = len(lines) // 2
    lines[middle] = lines[middle][:3] + new + lines[middle][3:]
    text.write(b"".join(lines))


def table_damage(path: str, spec: Spec) -> Iterator[tuple[str, Callable[[Path], None]]]:
    """What can happen to separated text."""

    def edit(change: Callable[[Rows], object]) -> Callable[[Path], None]:
        def apply(folder: Path) -> None:
            rows = Rows(folder / path, spec)
            change(rows)
            rows.save()

        return apply

    def open_quote(folder: Path) -> None:
        text = Text(folder / path)
        lines = text.lines()
        lines[len(lines) // 2] = b'"' + lines[len(lines) // 2]
        text.write(b"".join(lines).replace(b'""', b'"'))

    def drop(rows: Rows, column: str) -> None:
        index = rows.names.index(column)
        rows.names.pop(index)
        for row in rows.rows:
            row.pop(index)

    yield "a value too many", edit(lambda rows: rows.rows[-2].append("more"))
    yield "a value too few", edit(lambda rows: rows.rows[1].pop())
    if not spec.names:
        yield "header only", edit(lambda rows: rows.rows.clear())
        yield "a column named twice", edit(lambda rows: rows.names.__setitem__(-1, rows.names[0]))
        if spec.separator == "," and path not in _QUOTED:
            yield "an open quote", open_quote
        for column in spec.needed:
            yield f"no column {column}", edit(lambda rows, own=column: drop(rows, own))
    for column in spec.ids:
        yield f"no {column} in a row", edit(lambda rows, own=column: rows.put(2 % len(rows.rows), own, ""))
        if column != spec.time and column not in ("event_name", "search_session_id", "id"):
            yield f"{column} read as 1.2E+15", edit(lambda rows, own=column: rows.put(1, own, "1.2E+15"))
    if spec.time is not None:
        yield "a time in words", edit(lambda rows: rows.put(1, spec.time or "", "yesterday"))
        yield "a clock in two units", edit(lambda rows: rows.put(-1, spec.time or "", rescaled(rows)))
        yield "no times at all", edit(lambda rows: [rows.put(n, spec.time or "", "17") for n in range(len(rows.rows))])
    for column in spec.numbers:
        yield f"{column} in words", edit(lambda rows, own=column: rows.put(1, own, "cheap"))
    if spec.unique:
        yield "one id with two contents", edit(lambda rows: rows.rows.append([*rows.rows[0][:1], *["changed" if value else value for value in rows.rows[0][1:2]], *rows.rows[0][2:]]))


def rescaled(rows: Rows) -> str:
    """The last time in another unit."""
    value = rows.rows[-1][rows.names.index(rows.spec.time or "")]
    return str(int(float(value)) * 1000 if len(value.split(".")[0]) < 16 else int(float(value)) // 1000)


def line_damage(path: str, spec: Spec) -> Iterator[tuple[str, Callable[[Path], None]]]:
    """What can happen to JSON lines."""

    def line(number: int, change: Callable[[bytes], bytes]) -> Callable[[Path], None]:
        def apply(folder: Path) -> None:
            text = Text(folder / path)
            lines = text.lines()
            lines[number] = change(lines[number].rstrip(b"\n")) + b"\n"
            text.write(b"".join(lines))

        return apply

    def key(name: str, value: Any, *, gone: bool = False) -> Callable[[bytes], bytes]:
        def change(own: bytes) -> bytes:
            row = eval_line(own)
            row.pop(name, None)
            if name == "parent_asin":
                row.pop("asin", None)
            return json.dumps(row if gone else {**row, name: value}).encode()

        return change

    yield "bad JSON on line 2", line(1, lambda own: own[: len(own) // 2])
    yield "the last line cut", line(-1, lambda own: own[:-3])
    yield "a line that is a list", line(1, lambda own: b"[" + own + b"]" if not spec.loose else b"[1, 2]")
    yield "a line that is a number", line(0, lambda own: b"42")
    yield "two objects on a line", line(1, lambda own: own + b" " + own)
    yield "nested too deeply", line(1, lambda own: b"[" * 200_000)
    yield "one JSON array", lambda folder: Text(folder / path).write(b"[" + b",".join(own.strip() for own in Text(folder / path).lines()) + b"]")
    for name in spec.ids:
        yield f"no {name} on a line", line(2, key(name, None, gone=True))
        if spec.kind == "lines" and path != "events.jsonl":
            yield f"{name} empty on a line", line(1, key(name, ""))
    if spec.time is not None:
        yield "a time in words", line(1, key(spec.time, "yesterday"))
        yield "a clock in two units", line(-2, lambda own: key(spec.time or "", scaled(eval_line(own)[spec.time or ""]))(own))
        yield "a time beyond all numbers", line(1, key(spec.time, 10**30))
    for name in spec.numbers:
        yield f"{name} in words", line(1, key(name, "cheap"))
    if spec.unique:
        yield "one id with two contents", lambda folder: Text(folder / path).write(Text(folder / path).raw + key("title", "changed")(Text(folder / path).lines()[0]) + b"\n")


def eval_line(line: bytes) -> dict[str, Any]:
    import ast

    try:
        return dict(json.loads(line))
    except ValueError:
        return dict(ast.literal_eval(line.decode()))


def scaled(value: Any) -> int:
    number = int(value)
    return number * 1000 if number < 10**15 else number // 1000


def parquet_damage(path: str, spec: Spec) -> Iterator[tuple[str, Callable[[Path], None]]]:
    """What can be wrong in a sound Parquet file."""

    def edit(change: Callable[[pl.DataFrame], pl.DataFrame]) -> Callable[[Path], None]:
        def apply(folder: Path) -> None:
            change(pl.read_parquet(folder / path)).write_parquet(folder / path)

        return apply

    yield "no rows", edit(lambda frame: frame.head(0))
    for name in spec.needed:
        yield f"no column {name}", edit(lambda frame, own=name: frame.drop(own))
    for name in spec.ids:
        hole = pl.int_range(pl.len()) == 1
        yield f"no {name} in a row", edit(lambda frame, own=name, at=hole: frame.with_columns(pl.when(~at).then(pl.col(own)).alias(own)))
    if spec.time is not None:
        yield "a time of yes and no", edit(lambda frame: frame.with_columns(pl.lit(True).alias(spec.time or "")))
        yield "a time in words", edit(lambda frame: frame.with_columns(pl.lit("soon").alias(spec.time or "")))
        last = pl.int_range(pl.len()) == pl.len() - 1
        yield "a clock in two units", edit(lambda frame: frame.with_columns(pl.when(last).then(pl.col(spec.time or "") // 1000).otherwise(pl.col(spec.time or "")).alias(spec.time or "")))
    if path == "sequences.parquet":
        yield "items that are no lists", edit(lambda frame: frame.with_columns(pl.lit(3).alias("items")))
    if spec.unique:
        yield "one id twice", edit(lambda frame: pl.concat([frame, frame.head(1).with_columns(pl.lit("changed").alias("title")) if "title" in frame.columns else frame.head(1)]))


def feed_damage(path: str) -> Iterator[tuple[str, Callable[[Path], None]]]:
    """What can be wrong in a product feed."""

    def swap(old: str, new: str) -> Callable[[Path], None]:
        return lambda folder: (folder / path).write_text((folder / path).read_text().replace(old, new, 1)) and None

    yield "cut XML", lambda folder: cut(folder / path, 0.5)
    yield "a bare ampersand", swap("&amp; lemon 3", "& lemon 3")
    yield "a tag that is not closed", swap("</g:title>", "")
    yield "a prefix that is not declared", swap(' xmlns:g="http://base.google.com/ns/1.0"', "")
    yield "a product without id", swap("<g:id>A3</g:id>", "")
    yield "one id with two products", swap("<g:id>A3</g:id>", "<g:id>A2</g:id>")
    yield "a price in words", swap("<g:price>3.50 USD</g:price>", "<g:price>on request</g:price>")
    yield "entities", swap("<rss", '<!DOCTYPE rss [<!ENTITY a "b"><!ENTITY c "&a;&a;&a;">]>\n<rss')
    yield "no products", lambda folder: (folder / path).write_text("<html><body>Not found</body></html>") and None
    yield "two feeds", lambda folder: shutil.copy(folder / path, folder / "second.xml") and None


def whole_damage(source: str) -> Iterator[Case]:
    """What can be wrong with the call rather than with a file."""
    format = _sources.SOURCES[source][0]

    def call(damage: str, **arguments: Any) -> Case:
        return Case(source, "the call", damage, lambda folder: arguments)

    def empty(folder: Path) -> None:
        for path in list(folder.iterdir()):
            shutil.rmtree(path) if path.is_dir() else path.unlink()

    yield Case(source, "the folder", "an empty folder", empty)
    yield call("no such folder", source="nowhere")
    yield call("the shop is there already", existing=True)
    yield call("the shop is a file", out_file=True)
    yield call("--map of no shop column", options=["--map", "colour=x"])
    yield call("--map without =", options=["--map", "item_id"])
    yield call("--encoding of nowhere", options=["--encoding", "klingon"])
    if format in ("csv", "jsonl", "parquet"):
        yield call("--map of no source column", options=["--map", "item_id=nope"])
        yield call("another format's name", format={"csv": "jsonl", "jsonl": "parquet", "parquet": "csv"}[format])
    else:
        yield call("a format that nobody has", format="xls")
    if source == "csv":
        yield Case(source, "events.csv", "an unknown kind of event", lambda folder: replace_text(folder / "events.csv", "buy", "teleport"))
        yield Case(source, "items.csv", "nothing joins", lambda folder: (folder / "items.csv").write_text("sku,name\nzz,Tea\n") and None)
        yield Case(source, "items.csv", "two columns that could be the id", lambda folder: replace_text(folder / "items.csv", "brand", "SKU"))


def replace_text(path: Path, old: str, new: str) -> None:
    path.write_text(path.read_text().replace(old, new))


def all_cases() -> list[Case]:
    """Every case that there is, by source."""
    cases = []
    for source, files in FILES.items():
        for path, spec in files.items():
            damages = [*bytes_damage(path, spec)]
            own = {"table": table_damage, "lines": line_damage, "parquet": parquet_damage}.get(spec.kind)
            damages += own(path, spec) if own is not None else feed_damage(path)
            cases += [Case(source, path, damage, apply) for damage, apply in damages]
        cases += whole_damage(source)
    return cases


def draw(count: int) -> list[Case]:
    """`count` cases, evenly over the sources, seeded."""
    rng = random.Random(SEED)
    by_source: dict[str, list[Case]] = {}
    for case in all_cases():
        by_source.setdefault(case.source, []).append(case)
    for own in by_source.values():
        rng.shuffle(own)
    chosen: list[Case] = []
    while len(chosen) < count and any(by_source.values()):
        for own in by_source.values():
            if own and len(chosen) < count:
                chosen.append(own.pop())
    return chosen


@dataclass(frozen=True)
class Outcome:
    """What the command did: exit status, what it said, and what is wrong with that."""

    status: int | None
    said: str
    faults: tuple[str, ...]


def command(arguments: list[str]) -> tuple[int | None, str]:
    """`rankloom ARGUMENTS` through its entry point; status None is an exception that a user would see as a traceback."""
    from rankloom import cli

    out, err = io.StringIO(), io.StringIO()
    with mock.patch.object(sys, "argv", ["rankloom", *arguments]), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            cli.main()
            status: int | None = 0
        except SystemExit as stop:
            status = int(stop.code or 0)
        except BaseException:
            traceback.print_exc(file=err)
            status = None
    return status, err.getvalue()


def digest(folder: Path) -> str:
    total = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        total.update(str(path.relative_to(folder)).encode())
        if path.is_file():
            total.update(path.read_bytes())
    return total.hexdigest()


def run(case: Case, folder: Path) -> Outcome:
    """Breaks a source in `folder` and imports it."""
    format, source = _sources.write(case.source, folder / "source")
    own = case.break_it(source)
    arguments: dict[str, Any] = own if isinstance(own, dict) else {}
    place = folder / arguments["source"] if "source" in arguments else source
    out = folder / "out" / "shop"
    out.parent.mkdir()
    if arguments.get("existing"):
        out.mkdir()
        (out / "thesis.txt").write_text("mine")
    if arguments.get("out_file"):
        out.write_text("mine")
    before = digest(folder)
    status, said = command(
        ["import", arguments.get("format", format), str(place), "--out", str(out), "--yes", *arguments.get("options", [])]
    )
    faults = []
    if status != 2:
        faults.append(f"exit status {status}")
    if "Traceback" in said or status is None:
        faults.append("a traceback")
    lines = said.splitlines()
    if not any(line.startswith("error: ") and len(line) > len("error: ") + 8 for line in lines):
        faults.append("no fact")
    where = next((line for line in lines if line.startswith("  where: ")), "")
    if not where:
        faults.append("no place")
    elif case.file not in ("the call", "the folder") and str(folder) not in where:
        faults.append("the place does not name the source")
    if not any(line.startswith("  what to do: ") for line in lines):
        faults.append("no action")
    if digest(folder) != before:
        faults.append("something was written")
    return Outcome(status, said, tuple(faults))


def main() -> int:
    parser = argument_parser(__doc__)
    parser.add_argument("--show", action="store_true", help="print what the command said to each case")
    parser.add_argument("--all", action="store_true", help="every case that there is, over seven hundred")
    bench = Benchmark.from_args("broken_inputs", parser=parser)
    cases = all_cases() if bench.args.all else draw(48 if bench.quick else N_CASES)
    good = 0
    with tempfile.TemporaryDirectory() as name:
        for source in _sources.SOURCES:
            folder = Path(name) / f"good-{source}"
            folder.mkdir()
            format, path = _sources.write(source, folder / "source")
            status, said = command(["import", format, str(path), "--out", str(folder / "shop"), "--yes"])
            good += status == 0
            if status != 0:
                print(f"good {source}: {said}")
        failures = []
        counts: dict[str, list[int]] = {}
        for number, case in enumerate(cases):
            folder = Path(name) / f"{number}"
            folder.mkdir()
            outcome = run(case, folder)
            shutil.rmtree(folder)
            own = counts.setdefault(_sources.SOURCES[case.source][0], [0, 0])
            own[0] += 1
            own[1] += not outcome.faults
            if outcome.faults:
                failures.append((case, outcome))
            if bench.args.show:
                print(f"-- {case.name}\n{outcome.said.replace(name, '')}")
    for case, outcome in failures:
        print(f"FAILED {case.name}: {', '.join(outcome.faults)}\n{outcome.said}")
    for format, (tried, clear) in counts.items():
        bench.row(system="rankloom", variant=format, metric="broken inputs with a clear error", value=clear, n=tried)
    bench.check("clear errors, nothing written", len(cases) - len(failures), at_least=len(cases))
    bench.check("good sources imported", good, target=len(_sources.SOURCES))
    bench.check("formats", len(counts), at_least=10)
    return bench.finish()


if __name__ == "__main__":
    raise SystemExit(main())
