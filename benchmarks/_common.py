"""What every benchmark shares: arguments, the data folder, the machine, resumable cells, the table and the tidy JSON.

A benchmark is one file with one question. It is run as `python benchmarks/NAME.py`, prints a table with both sides
measured in the same run, and with `--json` writes `{"name", "machine", "rows", "checks"}`: `rows` are what was
measured, `checks` what was asked of it. The exit status is 1 when a check fails, so a benchmark can gate.

    from _common import Benchmark

    def main() -> int:
        bench = Benchmark.from_args("bazaar", __doc__, seeds=(0, 1, 2))
        for seed in bench.seeds:
            cell = bench.cell({"seed": seed}, lambda seed=seed: measure(seed))   # kept on disk, not measured twice
            bench.row(system="rankloom", metric="recall", k=10, value=cell["recall"], n=cell["n"], seed=seed)
        bench.check("recall@10 above popularity", value, at_least=floor)
        return bench.finish()

A finished cell is kept under `runs/benchmarks/NAME/` (or `--cells DIR`) with a fingerprint of the sources it
measured; a run that was stopped goes on where it was, and changed sources are measured again.
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import json
import os
import platform
import resource
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parent.parent
# what is measured is the checkout that the benchmark lies in, whatever is installed
sys.path.insert(0, str(ROOT))

from rankloom.files import write_json  # noqa: E402

ROW_ORDER = ("system", "variant", "metric", "k", "masked", "value", "low", "high", "n")


class MissingDataError(SystemExit):
    """A data folder that the benchmark needs is not on this machine."""


def data_root() -> Path:
    """The folder of public benchmark data: `RANKLOOM_DATA`, else `../shared/data` beside the repository."""
    return Path(os.environ.get("RANKLOOM_DATA") or ROOT.parent / "shared" / "data")


def data_folder(*parts: str) -> Path:
    """A data set's folder or file, such as `data_folder("amazon2014_beauty")`.

    Raises:
        MissingDataError: it is not there; the message says how to point to it. Exits with status 1.
    """
    path = data_root().joinpath(*parts)
    if not path.exists():
        wanted = parts[0] if parts else "the data sets"
        raise MissingDataError(
            f"{path} does not exist.\n  what to do: set RANKLOOM_DATA to the folder that holds {wanted}"
        )
    return path


def peak_memory_mb() -> float:
    """Peak resident memory of this process and the children it has waited for, in MiB."""
    scale = 1024 if sys.platform != "darwin" else 1024**2
    return max(resource.getrusage(who).ru_maxrss / scale for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))


@functools.cache
def machine() -> dict[str, Any]:
    """What the figures were measured on: processor, cores this process may use, memory, versions."""
    from importlib.metadata import PackageNotFoundError, version

    processor = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [
            line.split(":", 1)[1].strip() for line in cpuinfo.read_text().splitlines() if line.startswith("model name")
        ]
        processor = names[0] if names else processor
    versions = {}
    for package in ("rankloom", "torch", "numpy", "polars", "lightgbm"):
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return {
        "processor": processor,
        "cores": cores,
        "memory_gib": round(memory, 1),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "versions": versions,
    }


def fingerprint(paths: Iterable[Path]) -> str:
    """SHA-256 over the Python files at and under `paths`: changes when the measured code does."""
    digest = hashlib.sha256()
    for path in paths:
        for file in sorted(path.rglob("*.py")) if path.is_dir() else [path]:
            digest.update(file.name.encode())
            digest.update(file.read_bytes())
    return digest.hexdigest()[:16]


class CellStore:
    """Finished measurements on disk, one JSON file each, named by what was measured.

    Args:
        folder: where the cells lie; made when the first is written.
        fingerprint: of the measured sources; a cell with another one is measured again.
        keep_stale: use cells whose fingerprint differs all the same.
    """

    def __init__(self, folder: Path, *, fingerprint: str = "", keep_stale: bool = False) -> None:
        self.folder = folder
        self.fingerprint = fingerprint
        self.keep_stale = keep_stale

    def path(self, key: Mapping[str, Any]) -> Path:
        canonical = json.dumps(key, sort_keys=True, ensure_ascii=False, default=str)
        words = "-".join(str(value) for value in key.values())
        slug = "".join(letter if letter.isalnum() or letter in "._" else "-" for letter in words)[:80]
        return self.folder / f"{slug}-{hashlib.sha256(canonical.encode()).hexdigest()[:10]}.json"

    def get(self, key: Mapping[str, Any], fingerprint: str | None = None) -> Any | None:
        """The cell's value, or None when it was not finished or measured other sources.

        Args:
            fingerprint: of the sources of this cell, where it measures others than the rest.
        """
        path = self.path(key)
        if not path.exists():
            return None
        try:
            cell = json.loads(path.read_text(encoding="utf-8"))
        except json.JSONDecodeError:
            return None
        if cell.get("fingerprint") != (fingerprint or self.fingerprint) and not self.keep_stale:
            return None
        return cell["value"]

    def put(
        self, key: Mapping[str, Any], value: Any, *, seconds: float = 0.0, fingerprint: str | None = None
    ) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        write_json(
            self.path(key),
            {
                "key": dict(key),
                "fingerprint": fingerprint or self.fingerprint,
                "seconds": round(seconds, 3),
                "peak_memory_mb": round(peak_memory_mb(), 1),
                "value": value,
            },
        )

    def run(self, key: Mapping[str, Any], measure: Callable[[], Any], fingerprint: str | None = None) -> Any:
        """The kept value, else what `measure()` returns (JSON-able), kept."""
        value = self.get(key, fingerprint)
        if value is None:
            start = time.perf_counter()
            value = measure()
            self.put(key, value, seconds=time.perf_counter() - start, fingerprint=fingerprint)
            # what is used equals what a resumed run would read
            value = json.loads(json.dumps(value))
        return value


def argument_parser(doc: str | None, *, seeds: Sequence[int] = (0,)) -> argparse.ArgumentParser:
    """The flags that every benchmark has; add your own before `Benchmark.from_args(parser=...)`."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--json",
        nargs="?",
        const="-",
        metavar="FILE",
        help="write the tidy JSON to FILE (alone: to standard output)",
    )
    parser.add_argument("--quick", action="store_true", help="a small version that shows that it runs")
    parser.add_argument("--seeds", type=int, nargs="+", default=list(seeds), metavar="N", help="seeds to measure")
    parser.add_argument("--cells", type=Path, metavar="DIR", help="where finished cells are kept")
    parser.add_argument("--fresh", action="store_true", help="measure every cell again")
    parser.add_argument("--keep-stale", action="store_true", help="use cells measured on other sources too")
    return parser


def count_seeds(parser: argparse.ArgumentParser) -> None:
    """Makes `--seeds N` the number of seeds, from 0 on, three where it is left out."""
    parser.set_defaults(seeds=[0, 1, 2])
    seeds = next(action for action in parser._actions if action.dest == "seeds")
    seeds.nargs, seeds.type, seeds.help, seeds.metavar = None, lambda n: list(range(int(n))), "how many seeds", "N"


@dataclass
class Benchmark:
    """Rows and checks of one run; see the module's docstring.

    `fresh` cells are measured once a run, then read from the store like the others.
    """

    name: str
    args: argparse.Namespace
    store: CellStore
    rows: list[dict[str, Any]] = field(default_factory=list)
    checks: list[dict[str, Any]] = field(default_factory=list)
    _start: float = field(default_factory=time.perf_counter)
    _measured: set[Path] = field(default_factory=set)

    @classmethod
    def from_args(
        cls,
        name: str,
        doc: str | None = None,
        *,
        seeds: Sequence[int] = (0,),
        parser: argparse.ArgumentParser | None = None,
        argv: Sequence[str] | None = None,
        sources: Sequence[str] = ("rankloom",),
    ) -> Benchmark:
        """Parses the command line.

        Args:
            parser: one made by `argument_parser`, with the benchmark's own flags added.
            sources: files and folders, relative to the repository, whose change makes kept cells stale.
        """
        args = (parser or argument_parser(doc, seeds=seeds)).parse_args(argv)
        folder = args.cells or ROOT / "runs" / "benchmarks" / name
        store = CellStore(
            folder / ("quick" if args.quick else "full"),
            fingerprint=fingerprint(ROOT / source for source in sources),
            keep_stale=args.keep_stale,
        )
        return cls(name=name, args=args, store=store)

    @property
    def quick(self) -> bool:
        return bool(self.args.quick)

    @property
    def seeds(self) -> list[int]:
        return list(self.args.seeds[:1] if self.quick else self.args.seeds)

    def cell(
        self, key: Mapping[str, Any], measure: Callable[[], Any], *, sources: Sequence[str] | None = None
    ) -> Any:
        """A measurement that is kept on disk; `key` names everything it depends on beside the sources.

        Args:
            sources: what this cell measures, where that is less than the rest of the benchmark.
        """
        path = self.store.path(key)
        if self.args.fresh and path not in self._measured:
            path.unlink(missing_ok=True)
        self._measured.add(path)
        own = None if sources is None else fingerprint(ROOT / source for source in sources)
        return self.store.run(key, measure, own)

    def row(self, **values: Any) -> None:
        """One measured figure; keys of DESIGN's tidy row first, any others after."""
        ordered = {key: values.pop(key) for key in ROW_ORDER if key in values}
        self.rows.append(_plain({**ordered, **values}))

    def check(
        self,
        name: str,
        value: Any,
        *,
        target: Any = None,
        at_least: Any = None,
        at_most: Any = None,
        ok: bool | None = None,
    ) -> bool:
        """One thing that was asked, and whether it holds.

        Exactly one of `target` (equality, or a description with `ok` given), `at_least` and `at_most`.
        """
        given = [option is not None for option in (target, at_least, at_most)]
        if sum(given) != 1:
            raise ValueError(f"check {name!r} needs exactly one of target, at_least, at_most")
        if at_least is not None:
            wanted, holds = f">= {at_least}", value is not None and value >= at_least
        elif at_most is not None:
            wanted, holds = f"<= {at_most}", value is not None and value <= at_most
        else:
            wanted, holds = target, value == target
        holds = bool(holds if ok is None else ok)
        self.checks.append(_plain({"name": name, "value": value, "target": wanted, "ok": holds}))
        return holds

    def to_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "machine": machine(),
            "quick": self.quick,
            "seconds": round(time.perf_counter() - self._start, 1),
            "peak_memory_mb": round(peak_memory_mb(), 1),
            "rows": self.rows,
            "checks": self.checks,
        }

    def finish(self, *, show_rows: bool = True) -> int:
        """Prints the tables, writes the JSON where asked. Returns the exit status: 1 when a check fails.

        Args:
            show_rows: print the rows too; a benchmark with hundreds prints a table of its own instead.
        """
        to_stdout = self.args.json == "-"
        console = Console(stderr=to_stdout, highlight=False)
        if not console.is_terminal:
            # a log file has no width; 80 columns would fold every row
            console = Console(stderr=to_stdout, highlight=False, width=150)
        if self.rows and show_rows:
            console.print(table(self.name, self.rows))
        if self.checks:
            console.print(table("checks", self.checks))
        result = self.to_json()
        if to_stdout:
            print(json.dumps(result, ensure_ascii=False, indent=2))
        elif self.args.json:
            write_json(self.args.json, result)
            console.print(f"written: {self.args.json}")
        return 0 if all(check["ok"] for check in self.checks) else 1


def table(title: str, rows: Sequence[Mapping[str, Any]]) -> Table:
    """A rich table of tidy rows; columns in the order in which keys first appear."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    numeric = {c for c in columns if all(_is_number(row[c]) for row in rows if row.get(c) is not None)}
    printed = Table(title=title, title_justify="left")
    for column in columns:
        printed.add_column(column, justify="right" if column in numeric else "left", overflow="fold")
    for row in rows:
        printed.add_row(*(_text(row.get(column)) for column in columns))
    return printed


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _text(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "NO"
    if isinstance(value, float):
        return f"{value:,.1f}" if abs(value) >= 1000 else f"{value:.4g}"
    return str(value)


def _plain(value: Any) -> Any:
    """NumPy and torch scalars, arrays and paths as what JSON knows."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if hasattr(value, "tolist"):
        return value.tolist()
    return str(value) if isinstance(value, Path) else value
