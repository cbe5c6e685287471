"""Do the tests notice faults? 200 mutants of `semantic/`, `decoding/` and `data/`; at least 80% must be caught.

One run of the tests with coverage tells which test runs which line. Each mutant then meets, in a copy of the tree,
only the tests that run its line, the nearest first, and is caught when one fails or runs out of time. A mutant on a
line that no test runs survives. Tests that fail without any fault take no part. The sample is seeded and spread over
the files in proportion to their possible mutants, with at least one of each file.

    python benchmarks/mutation.py --quick          10 mutants
    python benchmarks/mutation.py --json out.json  200 mutants, two at a time; a stopped run goes on where it was

Survivors are listed for review: some are equivalent (no input can tell them apart), the others ask for a test.
"""

from __future__ import annotations

import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from queue import Queue
from typing import Any

import _mutants
from _common import ROOT, Benchmark, argument_parser

from rankloom.progress import Progress

PARTS = ("semantic", "decoding", "data")
MEMORY_LIMIT = 24 * 2**30
"""Address space of a test run in bytes, so that a fault that allocates without end fails instead of the machine."""
SEED = 20251025
COVERAGE_CONFIG = """\
[run]
source = rankloom
concurrency = thread
data_file = {data_file}
"""
RECORDER = '''\
"""Writes each test's outcome and duration to the file named by MUTATION_RECORD."""
import json, os
RECORDS = {}
def pytest_runtest_logreport(report):
    record = RECORDS.setdefault(report.nodeid, {"ok": True, "seconds": 0.0})
    record["seconds"] += report.duration
    record["ok"] = record["ok"] and not report.failed
def pytest_sessionfinish(session):
    with open(os.environ["MUTATION_RECORD"], "w") as handle:
        json.dump(RECORDS, handle)
'''


def copy_tree(folder: Path) -> Path:
    """The package, its tests and what they read, alone, in `folder`."""
    ignored = shutil.ignore_patterns("__pycache__", ".hypothesis", "*.tmp-*")
    for name in ("rankloom", "tests", "benchmarks", "docs"):
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, folder / name, ignore=ignored)
    shutil.copy(ROOT / "pyproject.toml", folder)
    (folder / "mutation_recorder.py").write_text(RECORDER)
    return folder


def run_tests(
    tree: Path, arguments: Sequence[str], *, timeout: float, environment: dict[str, str] | None = None
) -> int | None:
    """Runs pytest in `tree`; its exit status, or None when it ran out of time."""
    command = [sys.executable, "-m", "pytest", "-q", "-o", "addopts=", "-p", "no:cacheprovider", "-p", "no:xdist"]
    process = subprocess.Popen(
        [*command, "--hypothesis-seed=0", *arguments],
        cwd=tree,
        env={
            # a coverage run of these tests must not measure the ones they start
            **{name: value for name, value in os.environ.items() if not name.startswith("COVERAGE_")},
            # no bytecode: two mutants of one file may share its size and its second
            "PYTHONDONTWRITEBYTECODE": "1",
            "PYTHONPATH": str(tree),
            "OMP_NUM_THREADS": "1",
            **(environment or {}),
        },
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        stdin=subprocess.DEVNULL,
        start_new_session=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (MEMORY_LIMIT, MEMORY_LIMIT)),
    )
    try:
        return process.wait(timeout)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        return None


def test_paths(root: Path, parts: Sequence[str]) -> list[str]:
    """The parts' test folders, and the tests of the recommender, where all three meet."""
    folders = [f"tests/{part}" for part in parts if (root / "tests" / part).is_dir()]
    return [*folders, *(path.relative_to(root).as_posix() for path in sorted(root.glob("tests/test_recommender*.py")))]


def baseline(parts: Sequence[str]) -> dict[str, Any]:
    """Which tests there are, how long each takes, and which of them run which line.

    Returns:
        `tests`: node id -> seconds, of those that pass; `order`: node ids; `lines`: file -> line -> indices into
        `order`; `failing`: node ids of the others.
    """
    import coverage

    with tempfile.TemporaryDirectory() as temporary:
        tree = copy_tree(Path(temporary) / "tree")
        data_file = Path(temporary) / "coverage"
        (tree / "mutation.coveragerc").write_text(COVERAGE_CONFIG.format(data_file=data_file))
        record = Path(temporary) / "record.json"
        run_tests(
            tree,
            [
                *test_paths(tree, parts),
                *("-p", "mutation_recorder", "--cov", "--cov-config=mutation.coveragerc", "--cov-context=test"),
                "--cov-report=",
            ],
            timeout=3600,
            environment={"MUTATION_RECORD": str(record)},
        )
        if not record.exists():
            raise SystemExit("the tests did not run\n  what to do: run pytest on tests/semantic, decoding and data")
        records = json.loads(record.read_text())
        passing = {name: entry["seconds"] for name, entry in records.items() if entry["ok"]}
        order = sorted(passing)
        index = {name: position for position, name in enumerate(order)}
        data = coverage.CoverageData(str(data_file))
        data.read()
        lines: dict[str, dict[str, list[int]]] = {}
        for measured in data.measured_files():
            relative = Path(measured).resolve().relative_to(tree.resolve()).as_posix()
            lines[relative] = {
                str(line): sorted({index[name] for c in contexts if (name := c.rsplit("|", 1)[0]) in index})
                for line, contexts in data.contexts_by_lineno(measured).items()
            }
    return {"tests": passing, "order": order, "lines": lines, "failing": sorted(set(records) - set(passing))}


def tests_of(mutant: _mutants.Mutant, file: str, base: dict[str, Any]) -> list[str]:
    """Node ids of the tests that run the mutant's statement: the mirrored test file's first, then the fastest."""
    lines = base["lines"].get(file, {})
    found = {test for line in range(mutant.first_line, mutant.last_line + 1) for test in lines.get(str(line), [])}
    if not found and any(str(line) in lines for line in range(mutant.first_line, mutant.last_line + 1)):
        # run at import, in no test's name: whatever runs the file may notice
        found = {test for tests in lines.values() for test in tests}
    mirror = f"test_{Path(file).stem}"
    names = [base["order"][test] for test in found]
    return sorted(names, key=lambda name: (mirror not in name.split("::")[0], base["tests"][name], name))


def sample(parts: Sequence[str], count: int, seed: int) -> list[tuple[str, _mutants.Mutant]]:
    """`count` mutants, spread over the files in proportion to their possible ones, at least one of each."""
    rng = random.Random(seed)
    possible = {
        path.relative_to(ROOT).as_posix(): _mutants.mutants(path.read_text(encoding="utf-8"))
        for part in parts
        for path in sorted((ROOT / "rankloom" / part).rglob("*.py"))
    }
    possible = {file: found for file, found in possible.items() if found}
    for found in possible.values():
        rng.shuffle(found)
    total = sum(len(found) for found in possible.values())
    share = {file: max(1, int(count * len(found) / total)) for file, found in possible.items()}
    chosen = [(file, mutant) for file, found in possible.items() for mutant in found[: share[file]]]
    rest = [(file, mutant) for file, found in possible.items() for mutant in found[share[file] :]]
    rng.shuffle(chosen)
    rng.shuffle(rest)
    return (chosen + rest)[:count]


def meet(tree: Path, file: str, mutant: _mutants.Mutant, base: dict[str, Any]) -> dict[str, Any]:
    """Puts the mutant into `tree`, runs its tests, puts the original back."""
    tests = tests_of(mutant, file, base)
    result: dict[str, Any] = {"tests": len(tests), "outcome": "survived", "seconds": 0.0}
    if not tests:
        return {**result, "outcome": "not covered"}
    path = tree / file
    original = path.read_text(encoding="utf-8")
    expected = sum(base["tests"][name] for name in tests)
    listing = tree / "mutation_tests.txt"
    listing.write_text("".join(f"{name}\n" for name in tests))
    start = time.perf_counter()
    try:
        path.write_text(_mutants.apply(original, mutant.index), encoding="utf-8")
        status = run_tests(tree, ["-x", f"@{listing.name}"], timeout=60 + 4 * expected)
    finally:
        path.write_text(original, encoding="utf-8")
    outcome = {None: "caught by time", 0: "survived", 5: "not covered"}.get(status, "caught")
    return {**result, "outcome": outcome, "seconds": round(time.perf_counter() - start, 2)}


def main() -> int:
    parser = argument_parser(__doc__, seeds=(SEED,))
    parser.add_argument("--mutants", type=int, default=200, metavar="N", help="size of the sample")
    parser.add_argument("--parts", nargs="+", default=list(PARTS), metavar="FOLDER", help="folders of rankloom/")
    parser.add_argument("--workers", type=int, default=2, metavar="N", help="mutants at a time")
    # what is mutated and what tests it: a change elsewhere leaves finished mutants valid
    sources = [f"{root}/{part}" for part in PARTS for root in ("rankloom", "tests")]
    sources += ["tests/conftest.py", "tests/test_recommender.py", "benchmarks/_mutants.py"]
    bench = Benchmark.from_args("mutation", parser=parser, sources=sources)
    count = 10 if bench.quick else bench.args.mutants
    parts = list(bench.args.parts)

    print("running the tests once, to learn which test runs which line", file=sys.stderr)
    base = bench.cell({"baseline": parts}, lambda: baseline(parts))
    if base["failing"]:
        print(f"{len(base['failing'])} tests fail without a fault and take no part", file=sys.stderr)
    chosen = sample(parts, count, bench.seeds[0])

    with tempfile.TemporaryDirectory() as temporary:
        trees: Queue[Path] = Queue()
        for worker in range(bench.args.workers):
            trees.put(copy_tree(Path(temporary) / f"tree{worker}"))
        progress = Progress("mutants", len(chosen))

        def one(entry: tuple[str, _mutants.Mutant]) -> dict[str, Any]:
            file, mutant = entry

            def measure() -> dict[str, Any]:
                tree = trees.get()
                try:
                    return meet(tree, file, mutant, base)
                finally:
                    trees.put(tree)

            result = bench.cell({"file": file, **asdict(mutant)}, measure)
            progress.advance(note=f"{file}:{mutant.line} {result['outcome']}")
            return {**asdict(mutant), "file": file, **result}

        with ThreadPoolExecutor(bench.args.workers) as pool:
            results = list(pool.map(one, chosen))
        progress.close()

    report(bench, results, parts)
    return bench.finish()


def report(bench: Benchmark, results: list[dict[str, Any]], parts: Sequence[str]) -> None:
    """Rows per folder and operator, the survivors, and the check."""
    for kind, value, members in [
        *(("folder", part, [r for r in results if r["file"].startswith(f"rankloom/{part}/")]) for part in parts),
        *(
            ("operator", name, [r for r in results if r["operator"] == name])
            for name in sorted({r["operator"] for r in results})
        ),
        ("all", "all", results),
    ]:
        if members:
            caught = sum(r["outcome"].startswith("caught") for r in members)
            bench.row(
                system="tests", variant=f"{kind}: {value}", metric="caught", value=caught / len(members), n=len(members)
            )
    survivors = [r for r in results if not r["outcome"].startswith("caught")]
    for r in sorted(survivors, key=lambda r: (r["file"], r["line"])):
        bench.row(
            system="survivor",
            variant=f"{r['file']}:{r['line']}",
            metric=f"{r['operator']} ({r['outcome']})",
            value=f"{r['before']}  ->  {r['after']}",
            n=r["tests"],
        )
    share = 1 - len(survivors) / max(1, len(results))
    bench.check("share of mutants caught", round(share, 4), at_least=0.8)
    bench.check("mutants", len(results), at_least=10 if bench.quick else 200)


if __name__ == "__main__":
    raise SystemExit(main())
