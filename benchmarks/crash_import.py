"""Does a killed import, or a killed export of a model, ever leave half an output?

    python benchmarks/crash_import.py [--quick] [--kills N] [--json OUT]

A child process imports a log, another one exports a model with `Rankloom.save_pretrained`; each is killed with SIGKILL
at random moments while it writes. After each kill the output's name holds nothing, or everything; the same command then
succeeds, what it makes equals an unbroken run byte for byte, and nothing hidden is left beside it. Two shorter series
kill while an existing shop or model is replaced: the old one or the new one is there, whole.
"""

from __future__ import annotations

import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
from _common import Benchmark, argument_parser

from rankloom import model_folder, pipeline
from rankloom.config import Config
from rankloom.data.importing import import_data
from rankloom.data.shop import Shop
from rankloom.errors import RankloomError
from rankloom.files import sha256_file

EXPORT = "import sys; from rankloom.recommender import Rankloom; own = Rankloom.from_pretrained(sys.argv[1]); own.save_pretrained(sys.argv[2], overwrite=len(sys.argv) > 3)"


@dataclass
class Series:
    """One kind of output.

    Attributes:
        command: what makes `out`.
        whole: whether the folder is a complete output.
        content: the files whose bytes an unbroken run decides.
        replaced: the output exists already, and the command replaces it.
    """

    name: str
    command: Callable[[Path], list[str]]
    whole: Callable[[Path], bool]
    content: tuple[str, ...]
    replaced: bool = False


@dataclass
class Tally:
    """What came of the kills."""

    kills: int = 0
    half: int = 0
    different: int = 0
    failed: int = 0
    litter: int = 0
    later: int = 0


def is_shop(path: Path) -> bool:
    """A shop that opens and has as many rows as its import wrote."""
    try:
        shop = Shop.open(path)
        rows = shop.origin["rows"]
        assert isinstance(rows, dict)
        return all(shop.scan(f"{name}.parquet").select(pl.len()).collect().item() == count for name, count in rows.items())
    except (RankloomError, KeyError, pl.exceptions.PolarsError):
        return False


def is_model(path: Path) -> bool:
    try:
        model_folder.check(path)
    except RankloomError:
        return False
    return True


def digests(series: Series, out: Path) -> dict[str, str]:
    return {name: sha256_file(out / name) for name in series.content}


def begun(out: Path) -> bool:
    """Whether a writer of `out` is at work."""
    return any(out.parent.glob(f".{out.name}.tmp-*"))


def start(command: list[str]) -> subprocess.Popen[bytes]:
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def writing_seconds(series: Series, out: Path) -> float:
    """How long the command writes, from the first hidden file to its end."""
    child = start(series.command(out))
    while not begun(out) and child.poll() is None:
        time.sleep(0.001)
    since = time.perf_counter()
    if child.wait() != 0 or not series.whole(out):
        raise SystemExit(f"{series.name}: the unbroken run failed: {' '.join(series.command(out))}")
    return time.perf_counter() - since


def crash(series: Series, folder: Path, kills: int, rng: np.random.Generator) -> Tally:
    """`kills` kills at random moments of the writing."""
    reference = folder / "reference" / "out"
    reference.parent.mkdir(parents=True)
    seconds = writing_seconds(series, reference)
    wanted = digests(series, reference)
    tally = Tally()
    out = folder / "killed" / "out"
    out.parent.mkdir()
    for _ in range(kills * 5):
        if tally.kills >= kills:
            break
        if series.replaced and not out.exists():
            subprocess.run(series.command(out), check=True, capture_output=True)
        child = start(series.command(out))
        while not begun(out) and child.poll() is None:
            time.sleep(0.0005)
        time.sleep(float(rng.uniform(0.0, 1.0)) * seconds)
        child.send_signal(signal.SIGKILL)
        if child.wait() != -signal.SIGKILL:
            # it had ended before the signal came
            if not series.replaced:
                remove(out)
            continue
        tally.kills += 1
        tally.half += (out.exists() or series.replaced) and not series.whole(out)
        tally.later += out.exists() and not series.replaced
        if out.exists() and not series.replaced:
            remove(out)
        again = subprocess.run(series.command(out), capture_output=True, check=False)
        tally.failed += again.returncode != 0
        if again.returncode == 0:
            tally.different += digests(series, out) != wanted
        tally.litter += begun(out)
        if not series.replaced:
            remove(out)
    return tally


def remove(out: Path) -> None:
    for path in sorted(out.glob("*")):
        path.unlink()
    if out.exists():
        out.rmdir()


def write_log(folder: Path, n_events: int, *, users: int = 20_000, items: int = 5_000) -> Path:
    """A CSV source that takes a second or two to import."""
    folder.mkdir()
    number = pl.int_range(n_events, eager=True)
    pl.DataFrame({"n": number}).select(
        pl.format("u{}", pl.col("n") * 7919 % users).alias("user_id"), pl.format("i{}", pl.col("n") * 104_729 % items).alias("item_id"),
        (1_767_225_600 + pl.col("n")).alias("timestamp"), pl.lit("click").alias("event"), (pl.col("n") % 600 / 10).alias("watch_s"),
    ).write_csv(folder / "events.csv")  # fmt: skip
    pl.DataFrame({"n": range(items)}).select(pl.format("i{}", "n").alias("item_id"), pl.format("Thing {}", "n").alias("title")).write_csv(folder / "items.csv")
    return folder


def main() -> int:
    parser = argument_parser(__doc__)
    parser.add_argument("--kills", type=int, help="kills of each series")
    bench = Benchmark.from_args("crash_import", parser=parser)
    kills = bench.args.kills or (3 if bench.quick else 20)
    rng = np.random.default_rng(bench.seeds[0])
    with tempfile.TemporaryDirectory(prefix="rankloom-crash-") as name:
        folder = Path(name)
        source = write_log(folder / "source", 100_000 if bench.quick else 400_000)
        shop, model = folder / "shop", folder / "model"
        # what the model has learned does not matter to its export: a small log is enough
        import_data("csv", write_log(folder / "small", 1_000, users=80, items=150), shop)
        # and nothing is chosen on validation
        config = Config.preset_config("tiny").with_overrides(["training.max_epochs=1", "training.min_steps=0", "training.eval_users=20", "memory.enabled=false", "selection.mix=0.5"])
        pipeline.train(shop, model, config, quiet=True)
        rankloom = [sys.executable, "-m", "rankloom.cli", "import", "csv", str(source), "--yes", "--out"]
        shop_files, model_files = ("items.parquet", "events.parquet", "shop.json"), (model_folder.WEIGHTS, model_folder.SEMANTIC_IDS, model_folder.ITEMS, model_folder.MANIFEST)
        series = [
            Series("import", lambda out: [*rankloom, str(out)], is_shop, shop_files),
            Series("export", lambda out: [sys.executable, "-c", EXPORT, str(model), str(out)], is_model, model_files),
            Series("import that replaces", lambda out: [*rankloom, str(out), "--overwrite"], is_shop, shop_files, replaced=True),
            Series("export that replaces", lambda out: [sys.executable, "-c", EXPORT, str(model), str(out), "x"], is_model, model_files, replaced=True),
        ]  # fmt: skip
        tallies = {}
        for own in series if not bench.quick else series[:2]:
            count = kills if not own.replaced else max(1, kills // 4)
            tallies[own.name] = tally = crash(own, folder / own.name.replace(" ", "-"), count, rng)
            print(f"{own.name}: {tally}")
            for metric in ("kills", "half", "different", "failed", "litter"):
                bench.row(system="rankloom", variant=own.name, metric=metric, value=getattr(tally, metric), n=tally.kills)
    for name, tally in tallies.items():
        bench.check(f"{name}: kills while it wrote", tally.kills, at_least=kills if "replaces" not in name else max(1, kills // 4))
        bench.check(f"{name}: half outputs under the final name", tally.half, target=0)
        bench.check(f"{name}: reruns that failed", tally.failed, target=0)
        bench.check(f"{name}: reruns whose bytes differ from an unbroken run", tally.different, target=0)
        bench.check(f"{name}: hidden files left after the rerun", tally.litter, target=0)
    return bench.finish()


if __name__ == "__main__":
    raise SystemExit(main())
