"""Files as people have them, in batches: text in any encoding, gzip, CSV, JSON lines, Parquet.

Memory is bounded by the batch. What is wrong is told with file and row: a truncated gzip, NUL bytes, text in an unknown
encoding, a ragged row, a quote that is never closed, a line that is no JSON. Nothing here knows what the columns mean.
"""

from __future__ import annotations

import ast
import atexit
import codecs
import csv
import gzip
import io
import json
import math
import re
import threading
import time
import weakref
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Final

import polars as pl
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

from rankloom.errors import RankloomError
from rankloom.progress import Progress

BATCH_BYTES: Final = 8 << 20
BATCH_ROWS: Final = 100_000
_HEAD: Final = 1 << 20
_NULLS: Final = ["", "NULL", "null", "\\N"]
SUFFIXES: Final[dict[str, tuple[str, ...]]] = {
    "csv": (".csv", ".tsv", ".csv.gz", ".tsv.gz"),
    "jsonl": (".jsonl", ".ndjson", ".jsonl.gz", ".ndjson.gz"),
    "parquet": (".parquet",),
}


@dataclass(frozen=True)
class Batch:
    """Rows of a file and the number that a person would find each under (the first row of the file is 1)."""

    frame: pl.DataFrame
    numbers: Sequence[int]


@dataclass(frozen=True)
class TableFile:
    """A table in a file.

    Attributes:
        format: `csv`, `jsonl` or `parquet`.
        encoding: of text; None detects UTF-8, UTF-16 and GB18030.
        names: column names of a CSV file without a header.
        separator: of a CSV file; None detects comma, tab, semicolon and bar.
        quoted: whether a CSV file quotes values that hold the separator.
        notices: where what was assumed is said.
    """

    path: Path
    format: str
    encoding: str | None = None
    names: tuple[str, ...] | None = None
    separator: str | None = None
    quoted: bool = True
    notices: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        require_file(self.path)

    def place(self, number: int | None = None, column: str | None = None) -> str:
        """`events.csv, row 3, column time`; the header of a CSV file is row 1."""
        word = "line" if self.format == "jsonl" else "row"
        parts = [str(self.path)]
        if number is not None:
            parts.append(f"{word} {number:,}")
        if column is not None:
            parts.append(f"column {column}")
        return ", ".join(parts)

    def columns(self) -> list[str]:
        """Column names; of JSON lines those of the first batch."""
        if self.format == "csv":
            return self._header()[0]
        if self.format == "parquet":
            with _parquet(self.path) as file:
                return list(file.schema_arrow.names)
        first = next(json_lines(self.path, encoding=self.encoding, notices=self.notices), [])
        return list(dict.fromkeys(name for _, row in first for name in row))

    def batches(self) -> Iterator[Batch]:
        """All rows, in order.

        Raises:
            RankloomError: the file is broken; says where.
        """
        if self.format == "csv":
            return self._csv()
        return self._parquet() if self.format == "parquet" else self._json()

    def _header(self) -> tuple[list[str], str]:
        encoding = self.encoding or detect_encoding(self.path, self.notices)
        with Utf8Stream(self.path, encoding) as stream:
            head = stream.read(_HEAD).decode("utf-8", errors="ignore")
        first = head.split("\n", 1)[0]
        separator = self.separator or max((",", "\t", ";", "|"), key=first.count)
        if self.names is not None:
            return list(self.names), separator
        try:
            lines = io.StringIO(head, newline="")
            if self.quoted:
                names = next(csv.reader(lines, delimiter=separator), [])
            else:
                names = first.rstrip("\r").split(separator)
        except csv.Error as error:
            raise broken(self.path, "csv", str(error), row=1) from None
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise RankloomError(
                f"the header names {', '.join(map(repr, twice))} more than once", place=self.place(1),
                action="give every column its own name", code="header-duplicate",
            )  # fmt: skip
        return names, separator

    def _csv(self) -> Iterator[Batch]:
        names, separator = self._header()
        encoding = self.encoding or detect_encoding(self.path, [])
        invalid: list[pa.csv.InvalidRow] = []

        def refuse(row: pa.csv.InvalidRow) -> str:
            invalid.append(row)
            return "error"

        number = 1 if self.names is not None else 2
        with Utf8Stream(self.path, encoding, progress=True) as stream:
            try:
                reader = pa.csv.open_csv(
                    pa.PythonFile(stream, mode="r"),
                    # one thread: only then does the reader know row numbers, and memory stays one block
                    read_options=pa.csv.ReadOptions(
                        use_threads=False, block_size=BATCH_BYTES, column_names=self.names or None
                    ),
                    parse_options=pa.csv.ParseOptions(
                        delimiter=separator, quote_char='"' if self.quoted else False, newlines_in_values=self.quoted,
                        invalid_row_handler=refuse,
                    ),
                    convert_options=pa.csv.ConvertOptions(
                        column_types=dict.fromkeys(names, pa.string()), strings_can_be_null=True, null_values=_NULLS,
                        check_utf8=False,
                    ),
                )  # fmt: skip
                last: pl.DataFrame | None = None
                for record in reader:
                    frame = _frame(record)
                    if frame.height:
                        yield Batch(frame, range(number, number + frame.height))
                        number += frame.height
                        last = frame.tail(1)
            except pa.ArrowException as error:
                if invalid:
                    own = invalid[0]
                    opened = own.text.startswith('"') or f'{separator}"' in own.text
                    if self.quoted and opened and own.text.count('"') % 2:
                        raise self._open_quote(own.number) from None
                    raise RankloomError(
                        f"a row has {own.actual_columns} values, the header {own.expected_columns}: {own.text[:80]!r}",
                        place=self.place(own.number),
                        action="quote values that hold the separator, or mend the row",
                        code="row-ragged",
                    ) from None
                raise broken(self.path, "csv", str(error), row=number) from None
            swallowed = last is not None and any("\n" in value for value in last.row(0) if isinstance(value, str))
            if self.quoted and swallowed and stream.quotes % 2:
                raise self._open_quote(number - 1)

    def _open_quote(self, number: int) -> RankloomError:
        return RankloomError(
            "a quote is opened and never closed", place=self.place(number),
            action="close it, or double the quotes inside quoted values", code="quote-open",
        )  # fmt: skip

    def _json(self) -> Iterator[Batch]:
        columns: list[str] | None = None
        late: set[str] = set()
        for rows in json_lines(self.path, encoding=self.encoding, notices=self.notices, progress=True):
            if columns is None:
                columns = list(dict.fromkeys(name for _, row in rows for name in row))
            else:
                late |= {name for _, row in rows for name in row}.difference(columns)
            data = {name: _column(name, [row.get(name) for _, row in rows]) for name in columns}
            yield Batch(pl.DataFrame(data), [number for number, _ in rows])
        if late:
            self.notices.append(
                f"{self.path.name}: {', '.join(map(repr, sorted(late)[:5]))} first appear late in the file and are left out"
            )

    def _parquet(self) -> Iterator[Batch]:
        number = 1
        with _parquet(self.path) as file, Progress(f"reading {self.path.name}", file.metadata.num_rows) as progress:
            try:
                for record in file.iter_batches(batch_size=BATCH_ROWS):
                    frame = _frame(record)
                    if frame.height:
                        yield Batch(frame, range(number, number + frame.height))
                    number += frame.height
                    progress.advance(frame.height)
            except (pa.ArrowException, pl.exceptions.PolarsError, OSError) as error:
                raise broken(self.path, "parquet", str(error), row=number) from None


def broken(path: Path, format: str, why: str, *, row: int | None = None) -> RankloomError:
    """The error of a file that its format does not allow."""
    first = (why.splitlines() or ["no reason given"])[0]
    return RankloomError(
        f"{path.name} cannot be read as {format}: {first}",
        place=str(path) if row is None else f"{path}, near row {row:,}",
        action="mend or export the file again",
        code="file-broken",
    )


def require_file(path: Path) -> None:
    """Refuses what is missing, a folder, or empty."""
    if path.is_dir():
        raise RankloomError(
            f"{path.name} is a folder, a file is needed", place=str(path), action="put the file itself there",
            code="file-is-folder",
        )  # fmt: skip
    if not path.exists():
        raise RankloomError(f"no file {path}", place=str(path), action="check the path", code="source-missing")
    if path.stat().st_size == 0:
        raise RankloomError(f"{path.name} is empty", place=str(path), action="export it again", code="file-empty")


def find_table(folder: Path, stem: str, formats: Sequence[str]) -> tuple[Path, str] | None:
    """`stem` with any suffix of `formats` in `folder`, and its format."""
    for format in formats:
        for suffix in SUFFIXES[format]:
            path = folder / f"{stem}{suffix}"
            if path.exists():
                require_file(path)
                return path, format
    return None


_OPEN: weakref.WeakSet[Utf8Stream] = weakref.WeakSet()
_SETTLED_S: Final = 0.05


@atexit.register
def _settle_all() -> None:
    """A reader that was left early may live in a traceback until the end."""
    for own in list(_OPEN):
        own.settle()


class Utf8Stream(io.RawIOBase):
    """A text file as a stream of UTF-8: unpacked where it is gzip, decoded strictly, without a byte-order mark.

    Attributes:
        quotes: double quotes seen so far.

    Raises:
        RankloomError: while reading, with the line: a broken gzip, bytes that are no text, NUL bytes.
    """

    def __init__(self, path: Path, encoding: str, *, progress: bool = False) -> None:
        super().__init__()
        self.path = path
        self.quotes = 0
        self._raw = open(path, "rb")  # noqa: SIM115 - closed with the stream
        packed = self._raw.read(2) == b"\x1f\x8b"
        self._raw.seek(0)
        self._file: Any = gzip.GzipFile(fileobj=self._raw) if packed else self._raw
        self._encoding = "utf-8-sig" if encoding.lower() in ("utf-8", "utf8") else encoding
        self._decoder = codecs.getincrementaldecoder(self._encoding)("strict")
        self._line = 1
        self._buffer = memoryview(b"")
        self._done = False
        self._reader = 0  # the thread that reads
        self._read_at = 0.0
        _OPEN.add(self)
        total = max(1, path.stat().st_size >> 20)
        self._progress = Progress(f"reading {path.name}", total, unit="MB", quiet=not progress)

    def __enter__(self) -> Utf8Stream:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        self.settle()
        _OPEN.discard(self)
        self._progress.close()
        self._raw.close()
        super().close()

    def settle(self) -> None:
        """Ends the stream for whoever reads it in another thread, and waits until that thread has let go of it.

        Arrow reads ahead in a thread of its own. One that is in the middle of it when the interpreter ends brings the process
        down with it, whatever its exit status was to be.
        """
        ahead = self._reader not in (0, threading.get_ident()) and not self._done
        self._done = True
        while ahead and time.monotonic() - self._read_at < _SETTLED_S:
            time.sleep(_SETTLED_S / 5)

    def readable(self) -> bool:
        return True

    def readinto(self, target: Any) -> int:
        self._reader, self._read_at = threading.get_ident(), math.inf  # until it is done
        try:
            return self._read_into(target)
        finally:
            self._read_at = time.monotonic()

    def _read_into(self, target: Any) -> int:
        while not self._buffer and not self._done:
            self._fill()
        count = min(len(self._buffer), len(target))
        target[:count] = self._buffer[:count]
        self._buffer = self._buffer[count:]
        return count

    def _fill(self) -> None:
        try:
            chunk: bytes = self._file.read(_HEAD)
        except EOFError:
            raise self._error("the gzip file ends too early", "copy or download it again", "file-truncated") from None
        except (gzip.BadGzipFile, zlib.error) as error:
            raise self._error(f"the gzip file is broken: {error}", "download it again", "file-truncated") from None
        self._done = self._done or not chunk
        self._progress.advance(max(0, (self._raw.tell() >> 20) - self._progress.done))
        try:
            text = self._decoder.decode(chunk, final=self._done)
        except UnicodeDecodeError as error:
            self._line += bytes(error.object[: error.start]).count(b"\n")
            raise self._error(
                f"the text is not {self._encoding.removesuffix('-sig').upper()}",
                "save the file as UTF-8, or say what it is with --encoding", "encoding-broken",
            ) from None  # fmt: skip
        if "\x00" in text:
            self._line += text[: text.index("\x00")].count("\n")
            raise self._error("the file holds NUL bytes", "export it again as UTF-8 text", "nul-bytes")
        self._line += text.count("\n")
        self.quotes += text.count('"')
        self._buffer = memoryview(text.encode("utf-8"))

    def _error(self, fact: str, action: str, code: str) -> RankloomError:
        return RankloomError(fact, place=f"{self.path}, line {self._line:,}", action=action, code=code)


def detect_encoding(path: Path, notices: list[str]) -> str:
    """`utf-8`, `utf-16` or `gb18030`, from the file's beginning; anything but UTF-8 is said.

    Raises:
        RankloomError: it is none of the three, or not readable.
    """
    with open(path, "rb") as raw:
        packed = raw.read(2) == b"\x1f\x8b"
        raw.seek(0)
        try:
            head = (gzip.GzipFile(fileobj=raw) if packed else raw).read(_HEAD)
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise RankloomError(
                f"the gzip file is broken: {error}", place=str(path), action="copy or download it again",
                code="file-truncated",
            ) from None  # fmt: skip
    encoding = "utf-8"
    if head.startswith((b"\xff\xfe", b"\xfe\xff")):
        encoding = "utf-16"
    elif not _decodes(head, "utf-8"):
        declared = re.match(rb"\s*<\?xml[^>]*encoding=[\"']([\w.-]+)[\"']", head)
        if declared is not None and _known(declared[1].decode()):
            encoding = declared[1].decode().lower()
        elif _decodes(head, "gb18030") and _looks_chinese(head):
            encoding = "gb18030"
        else:
            line = head[: _bad_byte(head)].count(b"\n") + 1
            raise RankloomError(
                "the text is neither UTF-8, UTF-16 nor GB18030",
                place=f"{path}, line {line:,}",
                action="save it as UTF-8, or say what it is with --encoding (such as latin-1)",
                code="encoding-unknown",
            )
    if encoding != "utf-8":
        notice = f"{path.name}: read as {encoding.upper()}"
        if notice not in notices:
            notices.append(notice)
    return encoding


def check_encoding(encoding: str | None) -> None:
    """Refuses an encoding that Python does not know."""
    if encoding is not None and not _known(encoding):
        raise RankloomError(
            f"no encoding {encoding!r}", place="--encoding", action="write e.g. utf-8, utf-16, gb18030 or latin-1",
            code="encoding-unknown",
        )  # fmt: skip


def _known(encoding: str) -> bool:
    try:
        # codecs such as base64 are no text encodings
        return bool(codecs.lookup(encoding)._is_text_encoding)
    except LookupError:
        return False


def _decodes(head: bytes, encoding: str) -> bool:
    try:
        # the head may end within a character
        codecs.getincrementaldecoder(encoding)("strict").decode(head, final=len(head) < _HEAD)
    except UnicodeDecodeError:
        return False
    return True


def _looks_chinese(head: bytes) -> bool:
    """Chinese letters are pairs of high bytes; the accents of Latin text stand alone."""
    runs = [len(run) for run in re.findall(rb"[\x81-\xfe]+", head)]
    return sum(length % 2 == 0 for length in runs) >= 0.6 * len(runs)


def _bad_byte(head: bytes) -> int:
    try:
        head.decode("utf-8")
    except UnicodeDecodeError as error:
        return error.start
    return 0


def json_lines(
    path: Path, *, encoding: str | None = None, notices: list[str] | None = None, loose: bool = False,
    progress: bool = False,
) -> Iterator[list[tuple[int, dict[str, Any]]]]:  # fmt: skip
    """Batches of (line number, object) of a file with one JSON object a line; blank lines are skipped.

    Args:
        loose: also read Python literals, as in the Amazon dumps of 2014.

    Raises:
        RankloomError: a line that is no object; says which.
    """
    require_file(path)
    own = encoding or detect_encoding(path, notices if notices is not None else [])
    rows: list[tuple[int, dict[str, Any]]] = []
    size = 0
    with Utf8Stream(path, own, progress=progress) as stream:
        for number, line in enumerate(io.BufferedReader(stream, BATCH_BYTES), start=1):
            if not line.strip():
                continue
            rows.append((number, _object(line, path, number, loose)))
            size += len(line)
            if size >= BATCH_BYTES or len(rows) >= BATCH_ROWS:
                yield rows
                rows, size = [], 0
    if rows:
        yield rows


def _object(line: bytes, path: Path, number: int, loose: bool) -> dict[str, Any]:
    why = "it is no object {...}"
    value: Any = None
    try:
        value = json.loads(line)
    except RecursionError:
        why = "it is nested too deeply"
    except ValueError as error:
        why = str(error)
        if loose:
            try:
                value = ast.literal_eval(line.decode("utf-8").strip())
            except (ValueError, SyntaxError, RecursionError, MemoryError):
                why = "it is neither JSON nor a Python literal"
    if isinstance(value, dict):
        return value
    raise RankloomError(
        f"the line is no JSON object: {why}: {line[:60].decode('utf-8', errors='replace')!r}",
        place=f"{path}, line {number:,}",
        action="write one JSON object a line, or remove the line",
        code="json-line-broken",
    )


def text_lines(path: Path, *, encoding: str | None = None, notices: list[str] | None = None) -> Iterator[tuple[int, str]]:
    """(line number, line without its end) of a text file."""
    require_file(path)
    own = encoding or detect_encoding(path, notices if notices is not None else [])
    with Utf8Stream(path, own, progress=True) as stream:
        for number, line in enumerate(io.BufferedReader(stream, BATCH_BYTES), start=1):
            yield number, line.decode("utf-8").rstrip("\r\n")


def _parquet(path: Path) -> pa.parquet.ParquetFile:
    try:
        return pa.parquet.ParquetFile(path)
    except (pa.ArrowException, OSError) as error:
        raise broken(path, "parquet", str(error)) from None


def _frame(record: pa.RecordBatch) -> pl.DataFrame:
    frame = pl.from_arrow(record)
    assert isinstance(frame, pl.DataFrame)
    return frame


def _column(name: str, values: list[Any]) -> pl.Series:
    """JSON values of one field as a series: scalars of one type keep it, lists become text lists, objects JSON text."""
    kinds = {type(value) for value in values if value is not None}
    if list in kinds:
        lists = [None if value is None else _texts(value) for value in values]
        return pl.Series(name, lists, dtype=pl.List(pl.String))
    if kinds <= {bool}:
        return pl.Series(name, values, dtype=pl.Boolean)
    if kinds <= {int} and all(value is None or abs(value) < 2**63 for value in values):
        return pl.Series(name, values, dtype=pl.Int64)
    if kinds <= {int, float}:
        return pl.Series(name, [None if value is None else float(value) for value in values], dtype=pl.Float64)
    return pl.Series(name, [None if value is None else _text(value) for value in values], dtype=pl.String)


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _texts(value: Any) -> list[str]:
    if not isinstance(value, list):
        return [_text(value)]
    flat: list[str] = []
    for own in value:
        flat += _texts(own) if isinstance(own, list) else [] if own is None else [_text(own)]
    return flat
