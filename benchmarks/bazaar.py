"""Does the generator with selection beat the floors on the simulated marketplace?

    python benchmarks/bazaar.py [--quick] [--seeds N] [--hide 0.05] [--json OUT]

Per seed: a bazaar, a model trained on it with the time split, recall@10 of generator + selection, generator alone,
popularity, Markov and item-kNN in the same run, and paired intervals. With `--hide`, a share of the items (and their
events) is kept from training, added to the model afterwards, and looked for. Simulated throughout. Finished seeds are kept
in runs/bazaar and not run again.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from rankloom.config import Config, EvaluationConfig
from rankloom.data.sequences import TEST, Cases, load_sequences
from rankloom.data.shop import Shop, write_shop
from rankloom.evaluation.evaluate import evaluate, machine, paired_difference, text_table
from rankloom.evaluation.floors import ItemKNN, Markov, Popularity
from rankloom.evaluation.metrics import gains, target_rank
from rankloom.evaluation.rankloom_system import RankloomSystem
from rankloom.pipeline import train
from rankloom.recommender import Rankloom
from rankloom.simulation import generate_bazaar


def trained(shop: Path, out: Path, preset: str, seed: int, epochs: int | None) -> Rankloom:
    """The model of a shop, trained once."""
    if not (out / "manifest.json").exists():
        overrides = [f"seed={seed}"] + ([f"training.max_epochs={epochs}"] if epochs else [])
        train(shop, out, Config.preset_config(preset).with_overrides(overrides), resume=True, say=print)
    return Rankloom.from_pretrained(out)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a twentieth of the people and the tiny preset")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--epochs", type=int)
    parser.add_argument("--hide", type=float, default=0.0, help="share of items kept from training")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--folder", type=Path, default=Path("runs/bazaar"))
    args = parser.parse_args()
    scale, preset = (0.05, "tiny") if args.quick else (1.0, "small")
    rows: list[dict[str, Any]] = []
    checks: list[dict[str, Any]] = []
    for seed in range(args.seeds):
        folder = args.folder / f"{preset}-{scale}-{seed}"
        shop = (
            Shop.open(folder / "shop")
            if (folder / "shop").exists()
            else generate_bazaar(folder / "shop", seed=seed, scale=scale)
        )
        model = trained(shop.path, folder / "model", preset, seed, args.epochs)
        sequences = load_sequences(shop, model.config.data)
        systems = [
            RankloomSystem(model, shop),
            RankloomSystem(model, shop, select=False),
            Popularity(),
            Markov(),
            ItemKNN(),
        ]
        result = evaluate(systems, sequences, None, EvaluationConfig(max_cases_per_user=2), seed=seed, say=print)
        print(text_table(result))
        rows += [{**row, "seed": seed} for row in result.rows]
        cases = sequences.cases(TEST, max_per_user=2)
        ours = result.lists["rankloom", "default", True]
        for other in ("popularity", "markov", "item-knn"):
            difference, low, high = paired_difference(
                ours, result.lists[other, "default", True], cases, metric="recall", k=10
            )
            checks.append(
                {
                    "name": f"seed {seed}: recall@10 minus {other} (simulated)",
                    "value": difference,
                    "low": low,
                    "high": high,
                    "target": 0,
                    "ok": low > 0,
                }
            )
            print(f"recall@10 minus {other}: {difference:+.4f} ({low:+.4f} .. {high:+.4f})")
        if args.hide:
            checks.append(hidden(shop, folder, preset, seed, args.hide, args.epochs))
            print(checks[-1])
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(
            json.dumps({"name": "bazaar", "machine": machine(), "rows": rows, "checks": checks}, indent=2)
        )


def hidden(shop: Shop, folder: Path, preset: str, seed: int, share: float, epochs: int | None) -> dict[str, Any]:
    """Recall@10 on items that no training saw, against items it saw."""
    items = shop.items()
    hide = np.random.default_rng(seed).random(items.height) < share
    kept = items.filter(pl.Series(~hide))
    part = folder / "shop-without"
    if not part.exists():
        events = pl.read_parquet(shop.path / "events.parquet").join(kept.select("item_id"), on="item_id", how="semi")
        write_shop(part, items=kept, events=events, users=shop.users(), origin=shop.origin)
    model = trained(part, folder / "model-without", preset, seed, epochs)
    system = RankloomSystem(model, shop)
    sequences = load_sequences(shop, model.config.data)
    every = sequences.cases(TEST, max_per_user=5)
    cold = hide[every.target]
    figures = {}
    for name, chosen in (("cold", cold), ("warm", ~cold)):
        cases = Cases(every.user[chosen], every.row[chosen], every.target[chosen])
        lists = system.rank(sequences, cases, 10, mask_seen=True)
        figures[name] = float(gains(target_rank(lists, cases.target), 10, "recall").mean())
    ok = figures["cold"] > 0 and figures["cold"] >= 0.5 * figures["warm"]
    return {
        "name": f"seed {seed}: recall@10 on hidden items (simulated)",
        "value": figures["cold"],
        "target": 0.5 * figures["warm"],
        "ok": ok,
        "n": int(cold.sum()),
    }


if __name__ == "__main__":
    main()
