"""Is the relevance of a search result a chance? Calibration on searches that the fit has not seen.

    python benchmarks/search_relevance.py [--model MODEL --shop SHOP] [--scale 1] [--seeds N] [--json OUT] [--quick]

The calibration is fitted on the validation period's searches and judged on the test period's, which come after it: expected
calibration error of the best place and of the ten best ones (ten bins of equally many results each), of the relevance and of the
plain softmax of the final scores, over lists as `search` serves them, and the error that chances which are true would show on so few
searches. Beside it what a cut leaves of a list, how often it keeps the
item that was taken, and the best relevance of searches of nonsense. Without MODEL and SHOP it makes the bazaar (simulated) and
trains on it, a seed each.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, Final

import numpy as np
from _common import ROOT, Benchmark, argument_parser, count_seeds
from numpy.typing import NDArray

from rankloom import pipeline
from rankloom.calibrating import Judged, calibrate_search, judged, read
from rankloom.config import Config
from rankloom.data.sequences import TEST, load_sequences
from rankloom.data.shop import Shop
from rankloom.decoding.relevance import calibration_error
from rankloom.recommender import Rankloom
from rankloom.simulation.bazaar import generate_bazaar

SOURCES: Final = (
    "rankloom/calibrating.py", "rankloom/decoding", "rankloom/models", "rankloom/training", "rankloom/semantic", "rankloom/pipeline.py",
    "rankloom/choosing.py", "rankloom/recommender.py", "rankloom/generating.py", "rankloom/ordering.py", "rankloom/simulation",
    "rankloom/data",
)  # fmt: skip
CUTS: Final = (0.001, 0.003, 0.01, 0.03)
LIST: Final = 50
NONSENSE: Final = ("qqqq zzzz", "xkcdvb", "blorptastic wuggle", "鑫淼焱垚", "0x7f3a 99zz", "asdf jkl;")
MOST_ERROR: Final = 0.01
MOST_NONSENSE: Final = 0.001


def main() -> int:
    parser = argument_parser(__doc__)
    count_seeds(parser)
    parser.add_argument("--model", type=Path, help="a trained model folder; its relevance is fitted anew")
    parser.add_argument("--shop", type=Path, help="the shop that it was trained on")
    parser.add_argument("--scale", type=float, default=1.0, help="size of the bazaar")
    parser.add_argument(
        "--folder", type=Path, default=ROOT / "runs" / "search_relevance", help="where shops and models lie"
    )
    bench = Benchmark.from_args("search_relevance", parser=parser, sources=SOURCES)
    args = bench.args
    if (args.model is None) != (args.shop is None):
        parser.error("give --model and --shop together")
    scale = 0.05 if bench.quick else args.scale
    seeds = bench.seeds[:1] if args.model else bench.seeds
    errors = []
    for seed in seeds:
        key = {"model": str(args.model), "scale": scale, "seed": seed}
        found = bench.cell(key, lambda seed=seed: measure(args.model, args.shop, args.folder, scale, seed, bench.quick))
        for row in found["rows"]:
            bench.row(system="rankloom", seed=seed, **row)
        errors.append(found["error"])
        bench.check(f"best relevance of nonsense, seed {seed}", round(found["nonsense"], 5), at_most=MOST_NONSENSE)
    bench.check(
        "calibration error of the ten best places, test searches", round(float(np.mean(errors)), 4), at_most=MOST_ERROR
    )
    return bench.finish()


def measure(model: Path | None, shop: Path | None, home: Path, scale: float, seed: int, quick: bool) -> dict[str, Any]:
    if model is None or shop is None:
        shop, model = home / f"shop-{scale:g}-{seed}", home / f"model-{scale:g}-{seed}"
        if not (shop / "shop.json").exists():
            generate_bazaar(shop, seed=seed, scale=scale)
        if not (model / "manifest.json").exists():
            pipeline.train(
                shop, model, Config.preset_config("tiny" if quick else "small").with_overrides([f"seed={seed}"])
            )
    own, opened = Rankloom.from_pretrained(model), Shop.open(shop)
    sequences = load_sequences(opened, own.config.data)
    table = pipeline.feature_table(sequences, own.tokenizer, opened)
    calibrate_search(own, sequences, table)
    choices = own.search_choices
    if choices.relevance is None:
        raise SystemExit("too few searches in the validation period")
    cases = sequences.cases(TEST, max_per_user=5, among=sequences.query >= 0)
    parts = read(own, sequences, table, cases, title="reading the test searches")
    lists = Judged.together([judged(*part, choices.refiner, choices.weights.refine) for part in parts])
    rows = [
        {
            "variant": variant,
            "metric": "calibration error",
            "k": k,
            "value": lists.error(relevance, places=k),
            "n": len(cases),
        }
        for variant, relevance in (("softmax", None), ("relevance", choices.relevance))
        for k in (1, 10)
    ]
    chance, taken = lists.chances(choices.relevance, places=LIST)
    rows += [
        {
            "variant": "true chances",
            "metric": "calibration error",
            "k": k,
            "value": by_chance(chance[:, :k]),
            "n": len(cases),
        }
        for k in (1, 10)
    ]
    rows.append(
        {
            "variant": "relevance",
            "metric": "mean chance of the first place",
            "k": 1,
            "value": float(chance[:, 0].mean()),
        }
    )
    rows.append({"variant": "relevance", "metric": "first place was taken", "k": 1, "value": float(taken[:, 0].mean())})
    for cut in CUTS:
        kept = chance >= cut
        rows.append(
            {"variant": f"cut at {cut:g}", "metric": "places left", "k": LIST, "value": float(kept.sum(1).mean())}
        )
        share = float((kept & taken).sum() / max(1, taken.sum()))
        rows.append(
            {"variant": f"cut at {cut:g}", "metric": "share of the taken items kept", "k": LIST, "value": share}
        )
    nonsense = max(item.relevance or 0.0 for query in NONSENSE for item in own.search(query, k=1).items)
    relevance = choices.relevance
    rows += [
        {"variant": "fit", "metric": name, "value": float(value), "n": relevance.searches}
        for name, value in (
            ("sharpness", relevance.sharpness), ("found", relevance.found), ("usual", relevance.usual),
            ("held-out error of ten, validation", relevance.error or 0.0),
            ("the same of the softmax", relevance.error_before or 0.0),
        )
    ]  # fmt: skip
    return {"rows": rows, "error": lists.error(relevance, places=10), "nonsense": nonsense}


def by_chance(chance_NK: NDArray[np.float64], draws: int = 200) -> float:
    """The error that is measured where every chance is true, from so few searches."""
    chance, rng = chance_NK.reshape(-1), np.random.default_rng(0)
    return float(np.mean([calibration_error(chance, rng.random(len(chance)) < chance) for _ in range(draws)]))


if __name__ == "__main__":
    sys.exit(main())
