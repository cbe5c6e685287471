"""A year of a real wholesale shop, people who buy again, prices, one recipe: is the generator above every baseline?

    python benchmarks/retail.py [--seeds N ...] [--quick] [--no-slow] [--json OUT]

UCI Online Retail (Chen 2012, CC BY 4.0), found through RANKLOOM_DATA. Kept are purchases of known customers at a price; an
item is its description, its price the median of the training period's. The lines of one invoice carry one moment: their order
is shuffled, so that no system can live on the order in which they were typed. Split by time, the last thirty days are test and
the thirty before them validation; of each customer at most the first five purchases of the test period are asked for. Items
seen before are allowed, as the model serves them where people buy again; masked rows stand beside.

Each seed runs the commands a user has: `rankloom import parquet`, `rankloom train --preset small --split time`. Floors and
baselines, in the same run: buy-again (personal frequency, its decay chosen on validation), popularity, Markov, item-kNN, the
behaviour memory alone, SASRec with and without text, and the cascade. Every finished cell is kept in runs/benchmarks/retail.
"""

from __future__ import annotations

import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from _common import ROOT, Benchmark, argument_parser, data_folder
from _paired import check_above

from rankloom.config import EvaluationConfig
from rankloom.data.sequences import TEST, load_sequences
from rankloom.data.shop import Shop
from rankloom.evaluation.buy_again import BuyAgain
from rankloom.evaluation.cascade import Cascade
from rankloom.evaluation.evaluate import evaluate
from rankloom.evaluation.floors import BehaviourMemoryAlone, ItemKNN, Markov, Popularity
from rankloom.evaluation.metrics import gains, target_rank
from rankloom.evaluation.rankloom_system import RankloomSystem
from rankloom.evaluation.sasrec import SASRec
from rankloom.recommender import Rankloom

FAST = ("rankloom", "rankloom-generator", "buy-again", "popularity", "markov", "item-knn", "memory")
SLOW = ("sasrec", "sasrec-text", "cascade")
MINUTES = 60.0
SHARE_DAYS = 30
SOURCES = (
    "rankloom/data", "rankloom/decoding", "rankloom/models", "rankloom/training", "rankloom/semantic", "rankloom/evaluation",
    "rankloom/catalogue.py", "rankloom/generating.py", "rankloom/ordering.py", "rankloom/replying.py", "rankloom/request_rows.py",
    "rankloom/pipeline.py", "rankloom/choosing.py", "rankloom/building.py", "rankloom/recommender.py", "benchmarks/retail.py",
)  # fmt: skip


def main() -> int:
    parser = argument_parser(__doc__)
    parser.add_argument("--folder", type=Path, default=ROOT / "runs" / "retail", help="where shops and models lie")
    parser.add_argument("--no-slow", action="store_true", help="leave out SASRec and the cascade")
    bench = Benchmark.from_args("retail", parser=parser, sources=SOURCES)
    source = data_folder("retail") / "online_retail.parquet"
    ranks: dict[tuple[str, bool], list[list[float]]] = {}
    owner: list[int] = []
    for number, seed in enumerate(bench.seeds):
        home = bench.args.folder / f"{seed}{'-quick' if bench.quick else ''}"
        trained = bench.cell({"seed": seed, "part": "train"}, partial(train, source, home, seed, bench.quick))
        # a baseline is deterministic or slow: one seed
        systems = [*FAST, *(() if bench.args.no_slow or bench.quick else SLOW)] if number == 0 else ["rankloom"]
        for system in systems:
            found = bench.cell({"seed": seed, "system": system}, partial(rank, system, home, seed))
            owner = found["user"]
            minutes = trained["minutes"] if system.startswith("rankloom") else found["minutes"]
            for row in found["rows"]:
                bench.row(**row, seed=seed, minutes=minutes)
            for masked in (True, False):
                ranks.setdefault((system, masked), []).append(found["masked" if masked else "allowed"])
    for (system, masked), own in ranks.items():
        recall, ndcg = (np.mean([gains(np.asarray(r), 10, metric).mean() for r in own]) for metric in ("recall", "ndcg"))
        print(f"{system:<20}{'masked' if masked else 'allowed':<9}{len(own):>3}{recall:>9.4f}{ndcg:>9.4f}")
    checks(bench, ranks, np.asarray(owner))
    return bench.finish(show_rows=False)


def prepare(source: Path, out: Path, seed: int, quick: bool) -> tuple[Path, float, float]:
    """items.parquet and events.parquet of the shop; the shares of its events in validation and test."""
    lines = (
        pl.read_parquet(source)
        .filter(pl.col("customer_id").is_not_null() & (pl.col("quantity") > 0) & (pl.col("unit_price_gbp") > 0))
        .with_columns(pl.col("description").str.strip_chars().str.replace_all(r"\s+", " ").alias("title"))
        .filter(pl.col("title") != "")
        .with_columns(pl.col("title").str.to_uppercase().alias("item_id"))
    )
    if quick:
        lines = lines.filter(pl.col("customer_id") % 20 == 0)
    # lines of one invoice in random order, customers and moments in theirs
    tie = np.random.default_rng(seed).permutation(lines.height)
    lines = lines.with_columns(pl.Series("tie", tie)).sort("customer_id", "invoice_time", "tie")
    end = lines["invoice_time"].max()
    test, valid = (pl.lit(end).dt.offset_by(f"-{days}d") for days in (SHARE_DAYS, 2 * SHARE_DAYS))
    late = float(lines.select((pl.col("invoice_time") >= test).mean()).item())
    middle = float(lines.select(((pl.col("invoice_time") >= valid) & (pl.col("invoice_time") < test)).mean()).item())
    # what training could know of an item; one that came later is priced when it comes
    priced = lines.with_columns(pl.when(pl.col("invoice_time") < valid).then("unit_price_gbp").alias("early"))
    items = priced.group_by("item_id", maintain_order=True).agg(
        pl.col("title").first(), pl.col("early").median().fill_null(pl.col("unit_price_gbp").first()).alias("price"),
    )  # fmt: skip
    events = lines.select(
        pl.col("customer_id").cast(pl.String).alias("user_id"), "item_id", pl.lit("order").alias("event"),
        pl.col("invoice_time").alias("timestamp"), pl.col("unit_price_gbp").alias("price"), "quantity",
    )  # fmt: skip
    out.mkdir(parents=True, exist_ok=True)
    items.write_parquet(out / "items.parquet")
    events.write_parquet(out / "events.parquet")
    return out, middle, late


def train(source: Path, home: Path, seed: int, quick: bool) -> dict[str, Any]:
    """Imports and trains by the command line."""
    table, middle, late = prepare(source, home / "tables", seed, quick)
    shop, model = home / "shop", home / "model"
    rankloom = Path(sys.executable).with_name("rankloom")
    subprocess.run([rankloom, "import", "parquet", table, "--out", shop, "--yes", "--overwrite"], check=True)
    began = time.perf_counter()
    subprocess.run(
        [
            rankloom, "train", shop, "--out", model, "--preset", "tiny" if quick else "small", "--split", "time", "--seed", str(seed),
            "--set", f"data.valid_share={middle:.4f}", "--set", f"data.test_share={late:.4f}", "--overwrite",
        ],
        check=True,
    )  # fmt: skip
    minutes = (time.perf_counter() - began) / 60
    own = Rankloom.from_pretrained(model)
    return {"minutes": minutes, "parameters": own.metadata["parameters"], "repeats": own.metadata["repeat_share"], "mask_seen": own.mask_seen}


def rank(system: str, home: Path, seed: int) -> dict[str, Any]:
    """All rows of one system and the rank of every target, masked and allowed."""
    shop = Shop.open(home / "shop")
    model = Rankloom.from_pretrained(home / "model")
    sequences = load_sequences(shop, model.config.data)
    own: Any
    if system.startswith("rankloom"):
        own = RankloomSystem(model, shop, select=system == "rankloom")
    else:
        own = {
            "buy-again": BuyAgain, "popularity": Popularity, "markov": Markov, "item-knn": ItemKNN,
            "memory": BehaviourMemoryAlone, "sasrec": partial(SASRec, use_text=False),
            "sasrec-text": partial(SASRec, use_text=True), "cascade": partial(Cascade, items=shop.items()),
        }[system]()  # fmt: skip
    began = time.perf_counter()
    result = evaluate([own], sequences, model.tokenizer.content, EvaluationConfig(), seed=seed, say=print)
    cases = sequences.cases(TEST, max_per_user=5, seed=seed)
    ranks = {masked: target_rank(lists, cases.target).tolist() for (_, _, masked), lists in result.lists.items()}
    return {
        "rows": result.rows, "minutes": (time.perf_counter() - began) / 60, "masked": ranks[True], "allowed": ranks[False],
        "user": cases.user.tolist(),
    }  # fmt: skip


def checks(bench: Benchmark, ranks: dict[tuple[str, bool], list[list[float]]], owner: np.ndarray[Any, Any]) -> None:
    if bench.quick:
        bench.check("every system is measured", len({system for system, _ in ranks}), target=len(FAST))
        return
    minutes = max(row["minutes"] for row in bench.rows if row["system"] == "rankloom")
    bench.check("minutes of training, the longest", round(minutes, 1), at_most=MINUTES)
    ours = ranks["rankloom", False]
    for (system, masked), theirs in ranks.items():
        if masked or system.startswith("rankloom"):
            continue
        check_above(bench, f"over {system}, repeats allowed", ours, theirs, owner)


if __name__ == "__main__":
    sys.exit(main())
