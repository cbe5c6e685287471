"""Does the generator with selection beat the floors and the cascade on the simulated marketplace, and does it find new items?

    python benchmarks/bazaar.py [--quick] [--seeds N ...] [--scale 1.0] [--preset small] [--set section.name=value] [--json OUT]

Per seed two measurements, both simulated:

* time split: a bazaar, a model trained on its training period, and recall@10 of generator + selection, generator alone,
  popularity, Markov, item-kNN and the cascade on the same cases. Differences are paired over the cases, intervals
  resample people. The check takes seen items as the model serves them (hidden, or allowed where people come back to
  items); the rows hold both.
* hidden items: 5% of the items and all their events are kept from every training, then added to the model folder, and
  looked for among the whole catalogue. Their recall@10 stands beside that of items the model was trained on.

A finished measurement is kept and not repeated; a killed training goes on where it was. `--quick` measures a tiny model on
a twentieth of the people and judges nothing but that every figure is there.
"""

from __future__ import annotations

import argparse
import sys
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from _common import Benchmark, argument_parser, table
from rich.console import Console

from rankloom.config import Config, EvaluationConfig
from rankloom.data.sequences import TEST, TRAIN, Cases, load_sequences
from rankloom.data.shop import Shop, write_shop
from rankloom.evaluation.evaluate import evaluate
from rankloom.evaluation.metrics import Bootstrap, gains, target_rank
from rankloom.evaluation.rankloom_system import RankloomSystem
from rankloom.evaluation.suite import suite
from rankloom.pipeline import train
from rankloom.recommender import Rankloom
from rankloom.simulation import generate_bazaar

Row = dict[str, Any]
BASELINES = ("popularity", "markov", "item-knn", "cascade")
GATED = ("popularity", "markov", "cascade")
HIDDEN_SHARE = 0.05
MEASURED = tuple(
    f"rankloom/{part}"
    for part in (
        "building.py", "choosing.py", "choosing_broad.py", "config.py", "data", "decoding", "evaluation", "models", "pipeline.py", "recommender.py", "semantic", "simulation", "training",
        "catalogue.py", "generating.py", "ordering.py", "replying.py", "request_rows.py",
    )
)  # fmt: skip


def main() -> int:
    parser = argument_parser(__doc__)
    parser.add_argument("--scale", type=float, help="size of the marketplace; 1 is 4,000 people")
    parser.add_argument("--preset", help="tiny, small or base")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="a setting of the model")
    parser.add_argument("--part", choices=("split", "hidden"), help="only one of the two measurements")
    bench = Benchmark.from_args("bazaar", parser=parser, sources=(*MEASURED, "benchmarks/bazaar.py"))
    options: argparse.Namespace = bench.args
    scale = options.scale or (0.05 if bench.quick else 1.0)
    preset = options.preset or ("tiny" if bench.quick else "small")
    overrides = [*(["training.max_epochs=3", "training.min_steps=100"] if bench.quick else []), *options.set]
    for seed in bench.seeds:
        key = {"seed": seed, "scale": scale, "preset": preset, "set": overrides}
        # models of other sources or settings are other models
        folder = bench.store.path({**key, "sources": bench.store.fingerprint}).with_suffix("")
        if options.part != "hidden":
            split = bench.cell({"part": "split", **key}, partial(time_split, folder, seed, scale, preset, overrides))
            for row in split["rows"]:
                bench.row(**row, seed=seed)
            for row in split["differences"]:
                if row["as_served"] and row["baseline"] in GATED and not bench.quick:
                    bench.check(
                        f"seed {seed}: recall@10 above {row['baseline']} (simulated)",
                        f"{row['value']:+.4f} ({row['low']:+.4f} .. {row['high']:+.4f})",
                        target="interval above 0",
                        ok=row["low"] > 0,
                    )
        if options.part != "split":
            found = bench.cell({"part": "hidden", **key}, partial(hidden_items, folder, seed, scale, preset, overrides))
            for row in found:
                bench.row(**row, seed=seed)
            hidden, warm = (next(row["value"] for row in found if row["slice"] == name) for name in ("hidden", "warm"))
            if not bench.quick:
                name = f"seed {seed}: recall@10 on hidden items (simulated)"
                bench.check(name, hidden, target="> 0", ok=hidden > 0)
                bench.check(f"{name}, over that of trained items", hidden / max(warm, 1e-9), at_least=0.5)
    if bench.quick:
        measured = {(row["system"], row["metric"]) for row in bench.rows if row["value"] is not None}
        wanted = {(name, "recall") for name in ("rankloom", "rankloom-generator", *BASELINES)}
        bench.check("every system is measured", len(wanted & measured), target=len(wanted))
    # some two hundred figures go to the JSON; these are the ones the question is about
    shown = ("system", "variant", "metric", "value", "low", "high", "n", "slice", "seed")
    main_rows = [row for row in bench.rows if row["k"] == 10 and row["metric"].startswith("recall")]
    printed = [
        {**{name: row.get(name) for name in shown}, "seen items": "masked" if row["masked"] else "allowed"}
        for row in main_rows
        if row["slice"] in ("all", "cold", "hidden", "warm")
    ]
    Console(stderr=options.json == "-", width=150).print(table("recall@10 (simulated)", printed))
    return bench.finish(show_rows=False)


def time_split(folder: Path, seed: int, scale: float, preset: str, overrides: list[str]) -> dict[str, list[Row]]:
    """Rows of all systems, and paired differences of the model to each baseline."""
    shop = bazaar(folder / "shop", seed, scale)
    model = trained(shop, folder / "model", preset, seed, overrides)
    sequences = load_sequences(shop, model.config.data)
    systems, content = suite(RankloomSystem(model, shop), shop, sequences, baselines="quick")
    result = evaluate(systems, sequences, content, EvaluationConfig(max_cases_per_user=2), seed=seed, say=tell)
    differences: list[Row] = []
    for masked in (True, False):
        for baseline in BASELINES:
            value, low, high = result.difference("rankloom", baseline, masked=masked)
            row: Row = {
                "system": "rankloom", "variant": f"minus {baseline}", "metric": "recall difference", "k": 10, "masked": masked,
                "value": value, "low": low, "high": high, "n": len(sequences.cases(TEST, max_per_user=2)), "slice": "all",
            }  # fmt: skip
            differences.append({**row, "baseline": baseline, "as_served": masked == model.mask_seen})
    shown = [{k: v for k, v in row.items() if k not in ("baseline", "as_served")} for row in differences]
    return {"rows": [*result.rows, *shown], "differences": differences}


def hidden_items(folder: Path, seed: int, scale: float, preset: str, overrides: list[str]) -> list[Row]:
    """Recall@10 on items that no training saw and on items it saw, after the first were added to the model."""
    shop = bazaar(folder / "shop", seed, scale)
    items = shop.items()
    hidden = np.random.default_rng(seed).random(items.height) < HIDDEN_SHARE
    part = folder / "shop-without"
    if not (part / "shop.json").exists():
        kept = items.filter(pl.Series(~hidden))
        events = pl.read_parquet(shop.path / "events.parquet")
        # a search has no item: it stays
        events = events.filter(pl.col("item_id").is_null() | pl.col("item_id").is_in(kept["item_id"].to_list()))
        write_shop(part, items=kept, events=events, users=shop.users(), origin=shop.origin, overwrite=True)
    without = Shop.open(part)
    model = trained(without, folder / "model-without", preset, seed, overrides)
    learned = load_sequences(without, model.config.data)
    system = RankloomSystem(model, shop)
    assert system.added == int(hidden.sum())
    sequences = load_sequences(shop, model.config.data)
    cases = sequences.cases(TEST, max_per_user=5)
    # both logs are cut at their own quantile of the clock: nothing counts that the training without saw the time of
    late = sequences.timestamp[cases.row] >= learned.timestamp[learned.stage == TEST].min()
    cases = Cases(cases.user[late], cases.row[late], cases.target[late])
    row_of = {item: row for row, item in enumerate(items["item_id"].to_list())}
    ours = np.array([row_of[item] for item in without.items()["item_id"].to_list()])
    trained_rows = learned.item[(learned.stage == TRAIN) & learned.target]
    warm = np.zeros(items.height, dtype=bool)
    warm[ours[np.unique(trained_rows)]] = True
    masked = model.mask_seen
    rank = target_rank(system.rank(sequences, cases, 50, mask_seen=masked), cases.target)
    bootstrap = Bootstrap(cases.user, 1000, seed)
    rows: list[Row] = []
    for name, kind in (("hidden", hidden), ("warm", warm)):
        inside = kind[cases.target]
        for k in (10, 50):
            values = gains(rank, k, "recall")
            low, high = bootstrap.interval(values, inside)
            rows.append(
                {
                    "system": "rankloom", "variant": "items added afterwards", "metric": "recall", "k": k, "masked": masked,
                    "value": float(values[inside].mean()), "low": low, "high": high, "n": int(inside.sum()), "slice": name,
                }
            )  # fmt: skip
    return rows


def bazaar(path: Path, seed: int, scale: float) -> Shop:
    """The marketplace of a seed, simulated once."""
    if (path / "shop.json").exists():
        return Shop.open(path)
    return generate_bazaar(path, seed=seed, scale=scale, overwrite=True)


def trained(shop: Shop, out: Path, preset: str, seed: int, overrides: list[str]) -> Rankloom:
    """The model of a shop, trained once; what a killed run left is taken up."""
    if not (out / "manifest.json").exists():
        config = Config.preset_config(preset).with_overrides([f"seed={seed}", "data.split=time", *overrides])
        resume = (out.parent / f"{out.name}.training" / "run.json").exists()
        train(shop.path, out, config, resume=resume, say=tell)
    return Rankloom.from_pretrained(out)


def tell(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
