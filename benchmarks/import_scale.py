"""Does an import stay within memory however long the log is? 10 million events in under 2 GB.

    python benchmarks/import_scale.py [--quick] [--events N] [--json OUT]

Writes a log into a scratch folder (CSV, gzip, Parquet, JSON lines), imports it with `rankloom import` in a process of
its own, and reads that process's peak resident memory from the system. A second log of a quarter of the size shows
that memory does not grow with it. What was written is counted and summed against what was generated.
"""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow.parquet
from _common import Benchmark, argument_parser

N_EVENTS = 10_000_000
N_ITEMS = 100_000
N_USERS = 1_000_000
CHUNK = 500_000
START = 1_767_225_600
LIMIT_MB = 2_000.0
KINDS = ("impression", "impression", "impression", "click", "view", "add_to_cart", "purchase")


def chunks(n_events: int, seed: int) -> Iterator[pl.DataFrame]:
    """A log in order of time; one event in a thousand names an item that the catalogue lacks."""
    rng = np.random.default_rng(seed)
    for start in range(0, n_events, CHUNK):
        size = min(CHUNK, n_events - start)
        number = np.arange(start, start + size)
        item = rng.integers(0, N_ITEMS, size)
        item[number % 1000 == 7] += N_ITEMS
        yield pl.DataFrame(
            {
                "user": rng.integers(0, N_USERS, size), "item": item, "time": START + number // 4, "kind": rng.integers(0, len(KINDS), size),
                "watch": rng.integers(0, 600, size),
            }
        ).select(
            pl.format("member-{}", "user").alias("user_id"), pl.format("sku-{}", "item").alias("item_id"), pl.col("time").alias("timestamp"),
            pl.col("kind").replace_strict(list(range(len(KINDS))), list(KINDS), return_dtype=pl.String).alias("event"),
            (pl.col("watch") / 10).alias("watch_s"), pl.lit("feed").alias("surface"), pl.format("r{}", pl.Series("n", number // 8)).alias("request_id"),
        )  # fmt: skip


def write(folder: Path, format: str, n_events: int, seed: int) -> dict[str, Any]:
    """The source in `folder`; what its shop must hold."""
    items = pl.DataFrame({"number": range(N_ITEMS)}).select(
        pl.format("sku-{}", "number").alias("item_id"), pl.format("Thing number {} of the catalogue", "number").alias("title"),
        (pl.col("number") % 90 + 0.5).alias("price"),
    )  # fmt: skip
    joined, watched = 0, 0.0
    parquet: pyarrow.parquet.ParquetWriter | None = None
    suffix = {"csv": "csv", "csv.gz": "csv.gz", "jsonl": "jsonl", "parquet": "parquet"}[format]
    log = folder / f"events.{suffix}"
    for number, chunk in enumerate(chunks(n_events, seed)):
        known = chunk.filter(pl.col("item_id").str.len_chars() < len(f"sku-{N_ITEMS}"))
        joined += known.height
        watched += float(known["watch_s"].sum())
        if format == "parquet":
            table = chunk.to_arrow()
            parquet = parquet or pyarrow.parquet.ParquetWriter(log, table.schema)
            parquet.write_table(table)
        elif format == "jsonl":
            with open(log, "ab") as handle:
                chunk.write_ndjson(handle)
        else:
            text = chunk.write_csv(include_header=number == 0).encode()
            with gzip.open(log, "ab", compresslevel=1) if format == "csv.gz" else open(log, "ab") as handle:
                handle.write(text)
    if parquet is not None:
        parquet.close()
    if format == "parquet":
        items.write_parquet(folder / "items.parquet")
    elif format == "jsonl":
        items.write_ndjson(folder / "items.jsonl")
    else:
        items.write_csv(folder / "items.csv")
    return {"joined": joined, "watched": watched, "source_mb": log.stat().st_size / 2**20}


def measure(format: str, n_events: int, seed: int) -> dict[str, Any]:
    """One import in a process of its own."""
    with tempfile.TemporaryDirectory(prefix="rankloom-scale-") as name:
        source, shop = Path(name) / "source", Path(name) / "shop"
        source.mkdir()
        # in a process of its own too: on Linux a child starts with its parent's peak
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as other:
            wanted = other.submit(write, source, format, n_events, seed).result()
        command = [sys.executable, "-m", "rankloom.cli", "import", format.split(".")[0], str(source), "--out", str(shop), "--yes", "--json"]
        begun = time.perf_counter()
        with open(Path(name) / "said", "wb") as said:
            child = subprocess.Popen(command, stdout=said, stderr=subprocess.DEVNULL)
            _, status, usage = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
        seconds = time.perf_counter() - begun
        if child.returncode:
            raise SystemExit(f"the import of {n_events:,} events ({format}) ended with status {child.returncode}")
        report = json.loads((Path(name) / "said").read_text())
        found = pl.scan_parquet(shop / "events.parquet").select(pl.len().alias("n"), pl.col("watch_s").sum(), pl.col("timestamp").is_sorted().alias("sorted"))
        row = found.collect(engine="streaming").row(0, named=True)
        return {
            "seconds": seconds,
            "cpu_seconds": usage.ru_utime + usage.ru_stime,
            "peak_mb": usage.ru_maxrss / (1024 if sys.platform != "darwin" else 1024**2),
            "shop_mb": sum(path.stat().st_size for path in shop.iterdir()) / 2**20,
            "source_mb": wanted["source_mb"],
            "right": bool(
                row["n"] == wanted["joined"] == n_events - report["unjoined"]
                and abs(row["watch_s"] - wanted["watched"]) < 1e-6 * wanted["watched"]
                and row["sorted"]
            ),
        }  # fmt: skip


def main() -> int:
    parser = argument_parser(__doc__)
    parser.add_argument("--events", type=int, help="events of the largest log")
    bench = Benchmark.from_args("import_scale", parser=parser, sources=("rankloom/data", "rankloom/files.py"))
    n_events = bench.args.events or (200_000 if bench.quick else N_EVENTS)
    runs = [("csv", n_events // 4), ("csv", n_events)]
    runs += [("parquet", n_events // 4), ("jsonl", n_events // 10), ("csv.gz", n_events // 10)]
    peaks: dict[tuple[str, int], float] = {}
    right = True
    for format, size in runs:
        cell = bench.cell({"format": format, "events": size}, lambda own=format, count=size: measure(own, count, bench.seeds[0]))
        peaks[format, size] = cell["peak_mb"]
        right &= cell["right"]
        for metric in ("peak_mb", "cpu_seconds", "seconds", "source_mb", "shop_mb"):
            bench.row(system="rankloom", variant=format, metric=metric, value=cell[metric], n=size)
    bench.check(f"peak memory in MB, {n_events:,} events of CSV", peaks["csv", n_events], at_most=LIMIT_MB)
    bench.check("peak memory in MB, any format", max(peaks.values()), at_most=LIMIT_MB)
    growth = peaks["csv", n_events] / peaks["csv", n_events // 4]
    bench.check("memory, four times the events over one time", growth, at_most=1.5)
    bench.check("everything that joins is in the shop, in order", right, target=True)
    return bench.finish()


if __name__ == "__main__":
    raise SystemExit(main())
