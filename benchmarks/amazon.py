"""How good is one recipe on public sequence data, beside strong plain baselines, all measured in the same run?

    python benchmarks/amazon.py --dataset beauty --seeds 3 [--json OUT] [--quick]

A data set is `beauty`, `toys`, `scientific` (found through RANKLOOM_DATA) or a folder of the same layout (`items.parquet`,
`sequences.parquet`). Each seed runs the commands that a user has: `rankloom import sequences`, `rankloom train --preset
small --split leave-one-out`; then every system ranks the whole catalogue for the last item of every person, seen items
masked and allowed. Nothing is chosen on test. The public sequences carry no dates, so the order of same-day events is
the files' own for every system alike.

Systems: `rankloom` (generate, then select), `rankloom-generator`, both also without the behaviour memory and with other
beams; `memory` (the behaviour memory alone), `markov`, `item-knn`, `popularity`, `sasrec` with and without text,
`tiger` (an encoder-decoder on our semantic IDs, as long as validation improves, at most --tiger-steps: by default some forty
minutes on one core, a hundredth of the paper's, so read the published figure beside it), and the cascade of recall and
ranking that a generator replaces. Every finished cell is kept in runs/benchmarks/amazon; model
folders lie in runs/amazon.
"""

from __future__ import annotations

import subprocess
import sys
import time
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from _common import ROOT, Benchmark, argument_parser, count_seeds, data_folder
from _paired import check_above

from rankloom.config import EvaluationConfig
from rankloom.data.sequences import TEST, TRAIN, Cases, Sequences, load_sequences
from rankloom.data.shop import Shop
from rankloom.decoding.select import Weights
from rankloom.evaluation.cascade import Cascade
from rankloom.evaluation.evaluate import evaluate
from rankloom.evaluation.floors import BehaviourMemoryAlone, ItemKNN, Markov, Popularity
from rankloom.evaluation.metrics import gains, target_rank
from rankloom.evaluation.rankloom_system import RankloomSystem
from rankloom.evaluation.sasrec import SASRec
from rankloom.evaluation.tiger import Tiger
from rankloom.recommender import Rankloom

NAMED = {"beauty": "amazon2014_beauty", "toys": "amazon2014_toys", "scientific": "amazon2018_scientific"}
# recall@10 and NDCG@10 on test as published, seen items masked or not as each paper does; see the sources named
PUBLISHED = {
    "beauty": [
        ("TIGER (NeurIPS 2023, table 1)", 0.0648, 0.0384),
        ("OneRec-Think (arXiv 2510.11639, table 2)", 0.0791, 0.0471),
    ],
    "toys": [
        ("TIGER (NeurIPS 2023, table 1)", 0.0712, 0.0432),
        ("OneRec-Think (arXiv 2510.11639, table 2)", 0.0797, 0.0482),
    ],
}
GOALS = {"beauty": 0.080, "toys": 0.082}
MINUTES = 45
TIGER_STEPS = 2_000
BEAMS = (10, 32, 512)
SOURCES = (
    "rankloom/catalogue.py", "rankloom/generating.py", "rankloom/ordering.py", "rankloom/replying.py", "rankloom/request_rows.py",
    "rankloom/decoding", "rankloom/models", "rankloom/training", "rankloom/semantic", "rankloom/pipeline.py", "rankloom/choosing.py", "rankloom/building.py", "rankloom/recommender.py",
    *(f"rankloom/evaluation/{name}.py" for name in ("cascade", "evaluate", "floors", "metrics", "rankloom_system", "sasrec", "systems")),
)  # fmt: skip
# what a baseline's figures depend on: neither our generator nor its selection
BASELINE_SOURCES = (
    "rankloom/data", "rankloom/semantic", *(f"rankloom/evaluation/{name}.py" for name in ("evaluate", "metrics", "systems")),
)  # fmt: skip
FILES_OF: dict[str, tuple[str, ...]] = {
    "memory": ("rankloom/decoding/memory.py", "rankloom/evaluation/floors.py"), "cascade": ("rankloom/evaluation/cascade.py", "rankloom/evaluation/cascade_statistics.py"),
    "tiger": ("rankloom/evaluation/tiger.py",), **dict.fromkeys(("sasrec", "sasrec-text"), ("rankloom/evaluation/sasrec.py",)),
    **dict.fromkeys(("markov", "popularity", "item-knn"), ("rankloom/evaluation/floors.py",)),
}  # fmt: skip
Row = dict[str, Any]


def main() -> int:
    parser = argument_parser(__doc__)
    count_seeds(parser)
    parser.add_argument("--dataset", default="beauty", help="beauty, toys, scientific, or a folder")
    parser.add_argument("--folder", type=Path, default=ROOT / "runs" / "amazon", help="where shops and models lie")
    parser.add_argument("--no-slow", action="store_true", help="leave out SASRec, TIGER and the cascade")
    parser.add_argument("--skip", nargs="+", default=[], choices=sorted(FILES_OF), help="baselines to leave out")
    parser.add_argument(
        "--tiger-steps", type=int, default=TIGER_STEPS, help=f"of 256 samples at most (default {TIGER_STEPS:,}; the paper: 200,000)"
    )
    parser.add_argument("--beams", action="store_true", help=f"also beams {', '.join(map(str, BEAMS))} (first seed)")
    parser.add_argument("--max-users", type=int, help="rank a random sample of so many people")
    bench = Benchmark.from_args("amazon", parser=parser, sources=SOURCES)
    args = bench.args
    name = args.dataset
    source = data_folder(NAMED[name]) if name in NAMED else Path(name)
    users = 300 if bench.quick else args.max_users
    cells: dict[tuple[str, str, bool], list[list[float]]] = {}
    owner: list[int] = []
    for number, seed in enumerate(bench.seeds):
        key = {"dataset": name, "seed": seed}
        trained = bench.cell({**key, "part": "train"}, partial(train, source, args.folder, name, seed, bench.quick))
        print(f"{name}, seed {seed}: {trained}", flush=True)
        systems = ["rankloom"]
        if number == 0:
            systems += ["rankloom-generator", "rankloom-no-memory", "memory", "markov", "popularity", "item-knn"] + (
                [f"rankloom-beam-{b}" for b in BEAMS] if args.beams else []
            )
        if not args.no_slow and not bench.quick:
            systems += ["sasrec-text"] + (["sasrec", "cascade", "tiger"] if number == 0 else [])
        for system in systems:
            if system in args.skip:
                continue
            own = FILES_OF.get(system)
            found = bench.cell(
                {**key, "system": system, "users": users, **({"steps": args.tiger_steps} if system == "tiger" else {})},
                partial(rank, system, home_of(args.folder, name, seed, bench.quick), seed, users, args.tiger_steps),
                sources=None if own is None else (*BASELINE_SOURCES, *own),
            )
            owner = found["user"]
            minutes = trained["minutes"] if system.startswith("rankloom") else found["minutes"]
            for row in found["rows"]:
                bench.row(**row, seed=seed, minutes=minutes)
            label, variant = found["rows"][0]["system"], found["rows"][0]["variant"]
            for masked in ("masked", "allowed"):
                cells.setdefault((label, variant, masked == "masked"), []).append(found[masked])
    for title, recall, ndcg in PUBLISHED.get(name, []):
        bench.row(system=title, variant="published", metric="recall", k=10, value=recall)
        bench.row(system=title, variant="published", metric="ndcg", k=10, value=ndcg)
    summary(cells)
    checks(bench, name, cells, np.asarray(owner))
    return bench.finish(show_rows=False)


def home_of(folder: Path, name: str, seed: int, quick: bool) -> Path:
    return folder / f"{Path(name).name}-{seed}{'-quick' if quick else ''}"


def train(source: Path, folder: Path, name: str, seed: int, quick: bool) -> dict[str, Any]:
    """Imports and trains by the command line; returns minutes of the training command, sizes, chosen weights."""
    home = home_of(folder, name, seed, quick)
    home.mkdir(parents=True, exist_ok=True)
    shop, model = home / "shop", home / "model"
    rankloom = Path(sys.executable).with_name("rankloom")
    if quick:
        source = _sample(source, home / "sample")
    subprocess.run([rankloom, "import", "sequences", source, "--out", shop, "--yes", "--overwrite"], check=True)
    began = time.perf_counter()
    subprocess.run(
        [
            rankloom, "train", shop, "--out", model, "--preset", "tiny" if quick else "small", "--split", "leave-one-out",
            "--seed", str(seed), "--overwrite",
        ],
        check=True,
    )  # fmt: skip
    minutes = (time.perf_counter() - began) / 60
    own = Rankloom.from_pretrained(model)
    return {
        "minutes": minutes,
        "threads": torch.get_num_threads(),
        "parameters": own.metadata["parameters"],
        "icr": own.metadata["tokenizer"]["icr"],
        "weights": asdict(own.weights),
    }


def _sample(source: Path, out: Path) -> Path:
    """The first 600 people and their items: for a quick look that everything runs."""
    out.mkdir(exist_ok=True)
    sequences = pl.read_parquet(source / "sequences.parquet").head(600)
    items = pl.read_parquet(source / "items.parquet")
    sequences.write_parquet(out / "sequences.parquet")
    items.filter(pl.col("item_id").is_in(sequences["items"].explode().unique().implode())).write_parquet(
        out / "items.parquet"
    )
    return out


def rank(system: str, home: Path, seed: int, users: int | None, tiger_steps: int = TIGER_STEPS) -> dict[str, Any]:
    """All rows of one system and the rank of every target, masked and allowed."""
    shop = Shop.open(home / "shop")
    model = Rankloom.from_pretrained(home / "model")
    sequences = load_sequences(shop, model.config.data)
    own: Any
    if system.startswith("rankloom"):
        beam = int(system.rsplit("-", 1)[1]) if "beam" in system else None
        if system == "rankloom-no-memory":
            model.weights = Weights(mix=0.5)
        own = RankloomSystem(model, shop, select=system != "rankloom-generator", beam=beam)
        own.variant = {"rankloom-no-memory": "no memory, mix 0.5"}.get(system, f"beam {beam}" if beam else "default")
    else:
        own = {
            "memory": BehaviourMemoryAlone,
            "markov": Markov,
            "popularity": Popularity,
            "item-knn": ItemKNN,
            "sasrec": partial(SASRec, use_text=False),
            "sasrec-text": partial(SASRec, use_text=True),
            "cascade": Cascade,
            "tiger": partial(Tiger, model.tokenizer.semantic_ids, max_steps=tiger_steps),
        }[system]()
    began = time.perf_counter()
    content = model.tokenizer.content
    result = evaluate([own], sequences, content, EvaluationConfig(), seed=seed, max_cases=users, say=print)
    minutes = (time.perf_counter() - began) / 60
    cases = sequences.cases(TEST, max_per_user=5, max_users=users, seed=seed)
    ranks = {
        masked: target_rank(lists, cases.target).tolist()
        for (_, _, masked), lists in result.lists.items()
    }  # fmt: skip
    return {
        "rows": result.rows,
        "minutes": minutes,
        "masked": ranks[True],
        "allowed": ranks[False],
        "user": cases.user.tolist(),
        "cold": cold(sequences, cases),
    }


def cold(sequences: Sequences, cases: Cases) -> int:
    """Targets that training has never seen."""
    trained = (sequences.stage == TRAIN) & sequences.target
    counts = np.bincount(sequences.item[trained], minlength=sequences.n_items)
    return int((counts[cases.target] == 0).sum())


def summary(cells: dict[tuple[str, str, bool], list[list[float]]]) -> None:
    """Means over seeds, and the spread where there are several."""
    print(f"{'system':<22}{'variant':<20}{'seen':<9}{'seeds':>5}{'R@10':>9}{'+-':>8}{'N@10':>9}{'+-':>8}")
    for (system, variant, masked), ranks in cells.items():
        recall = [gains(np.asarray(one), 10, "recall").mean() for one in ranks]
        ndcg = [gains(np.asarray(one), 10, "ndcg").mean() for one in ranks]
        print(
            f"{system:<22}{variant:<20}{'masked' if masked else 'allowed':<9}{len(ranks):>5}{np.mean(recall):>9.4f}"
            f"{np.std(recall):>8.4f}{np.mean(ndcg):>9.4f}{np.std(ndcg):>8.4f}"
        )


def checks(
    bench: Benchmark, name: str, cells: dict[tuple[str, str, bool], list[list[float]]], owner: np.ndarray[Any, Any]
) -> None:
    ours = cells["rankloom", "default", True]
    recall = float(np.mean([gains(np.asarray(one), 10, "recall").mean() for one in ours]))
    minutes = max(row["minutes"] for row in bench.rows if row["system"] == "rankloom")
    if name in GOALS and not bench.quick:
        bench.check(f"{name}: recall@10, seen items masked, mean of {len(ours)} seeds", recall, at_least=GOALS[name])
    bench.check(f"{name}: minutes of training, the longest", round(minutes, 1), at_most=MINUTES)
    for (system, variant, masked), theirs in cells.items():
        # 300 people decide nothing
        if bench.quick:
            break
        if not masked or system.startswith("rankloom"):
            continue
        check_above(bench, f"over {system} {variant}", ours, theirs, owner, prefix=f"{name}: ")


if __name__ == "__main__":
    sys.exit(main())
