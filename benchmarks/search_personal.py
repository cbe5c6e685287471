"""Same words, two buyers: does each get their own style first? On the simulated marketplace, where the truth is known.

    python benchmarks/search_personal.py [--seeds N ...] [--scale 1.0] [--preset small] [--model MODEL --shop SHOP] [--json OUT] [--quick]

A bazaar, a model trained on its training period by the command line's job. Then pairs of people are drawn who want another style of one
category (one wants cast iron pans, one tea sets) and who have each taken something of their own style at least three times; both
ask with the name of the category (`Kitchen`, 厨房用品), which tells nothing of a style. Right is a list in which the first item
of either style is of the buyer's own. Lists are of 50 items, nothing is hidden. Beside it: the same lists for a stranger (by chance
half are right), and BM25 over the same text, which cannot know who asks. Everything is simulated. MODEL and SHOP are a model that is trained
already and its bazaar, of the seed and scale given: those of `rankloom demo`, of seed 0 and scale 1.
"""

from __future__ import annotations

import argparse
import sys
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
from _common import Benchmark, argument_parser
from numpy.typing import NDArray

from rankloom.config import Config
from rankloom.data.shop import Shop
from rankloom.evaluation.search.lexical import DEFAULT_B, DEFAULT_K1, Index
from rankloom.evaluation.search.systems import index_texts
from rankloom.evaluation.search.words import all_terms
from rankloom.pipeline import train
from rankloom.progress import track
from rankloom.recommender import Rankloom
from rankloom.simulation import generate_bazaar
from rankloom.simulation.titles import CATEGORIES
from rankloom.simulation.world import N_STYLES, World

PAIRS: Final = 300
LEAST: Final = 3
LONG: Final = 50
GOAL: Final = 0.9
SOURCES: Final = tuple(
    f"rankloom/{part}"
    for part in ("catalogue.py", "generating.py", "ordering.py", "replying.py", "request_rows.py", "choosing.py", "choosing_broad.py", "config.py", "data", "decoding", "models", "pipeline.py", "recommender.py", "semantic", "simulation", "training")
)  # fmt: skip


def main() -> int:
    parser = argument_parser(__doc__)
    parser.add_argument("--scale", type=float, help="size of the marketplace; 1 is 4,000 people")
    parser.add_argument("--preset", help="tiny, small or base")
    parser.add_argument("--model", type=Path, help="a trained model folder")
    parser.add_argument("--shop", type=Path, help="the bazaar that it was trained on")
    bench = Benchmark.from_args("search_personal", parser=parser, sources=(*SOURCES, "benchmarks/search_personal.py"))
    options: argparse.Namespace = bench.args
    scale = options.scale or (0.05 if bench.quick else 1.0)
    preset = options.preset or ("tiny" if bench.quick else "small")
    if (options.model is None) != (options.shop is None):
        parser.error("give --model and --shop together")
    for seed in bench.seeds:
        key = {"seed": seed, "scale": scale, "preset": preset, **({} if options.model is None else {"model": str(options.model)})}
        folder = bench.store.path({**key, "sources": bench.store.fingerprint}).with_suffix("")
        given = None if options.model is None else (options.model, Shop.open(options.shop))
        found = bench.cell(key, partial(measure, folder, given, seed, scale, preset, bench.quick))
        for system in ("rankloom", "stranger", "bm25"):
            bench.row(system=system, metric="right style first", k=LONG, value=found[system], n=found["lists"], seed=seed, simulated=True)
            print(f"seed {seed}: {system:<10} right style first in {found[system]:.1%} of {found['lists']} lists (simulated)")
        if not bench.quick:
            bench.check(f"seed {seed}: right style first (simulated)", round(found["rankloom"], 4), at_least=GOAL)
    return bench.finish(show_rows=False)


def trained(folder: Path, seed: int, scale: float, preset: Any, quick: bool) -> tuple[Path, Shop]:
    made = folder / "shop"
    shop = Shop.open(made) if made.exists() else generate_bazaar(made, seed=seed, scale=scale)
    if not (folder / "model").exists():
        config = Config.preset_config(preset).with_overrides([f"seed={seed}", *(["training.max_epochs=3"] if quick else [])])
        train(shop.path, folder / "model", config, resume=(folder / "model.training").exists(), say=print)
    return folder / "model", shop


def measure(
    folder: Path, given: tuple[Path, Shop] | None, seed: int, scale: float, preset: Any, quick: bool
) -> dict[str, Any]:
    trained_folder, shop = given or trained(folder, seed, scale, preset, quick)
    model = Rankloom.from_pretrained(trained_folder)
    world = World.from_seed(seed, scale)
    place = {item: row for row, item in enumerate(world.items["item_id"].to_list())}
    pairs = buyers(world, model, place, np.random.default_rng(seed), 40 if quick else PAIRS)
    items = shop.items()
    if items["item_id"].to_list() != world.items["item_id"].to_list():
        raise SystemExit(f"{shop.path} is no bazaar of seed {seed} and scale {scale:g}")
    index = Index(all_terms(index_texts(items)), DEFAULT_K1, DEFAULT_B)
    ids = items["item_id"].to_list()
    right: dict[str, list[float]] = {"rankloom": [], "stranger": [], "bm25": []}
    for first, second, category, chinese in track(pairs, "asking for two buyers", unit="pairs"):
        words = CATEGORIES[category].chinese if chinese else CATEGORIES[category].english
        score = index.scores(words)
        listed = {"bm25": [ids[row] for row in np.argsort(-score, kind="stable")[:LONG] if score[row] > 0]}
        listed["stranger"] = [item.item_id for item in model.search(words, k=LONG).items]
        for own, other in ((first, second), (second, first)):
            user = world.users["user_id"][int(own[0])]
            listed["rankloom"] = [item.item_id for item in model.search(words, user=user, k=LONG).items]
            for system, found in listed.items():
                clusters = world.cluster[[place[item] for item in found]]
                right[system].append(first_is(clusters, own[1], other[1]))
    return {"lists": 2 * len(pairs), **{system: float(np.mean(values)) for system, values in right.items()}}


def first_is(clusters: NDArray[np.int64], own: int, other: int) -> float:
    """1 where the first of the two styles in a list is the own one, half where it has neither."""
    at = np.flatnonzero((clusters == own) | (clusters == other))
    return float(clusters[at[0]] == own) if len(at) else 0.5


def buyers(
    world: World, model: Rankloom, place: dict[str, int], draw: np.random.Generator, n: int
) -> list[tuple[tuple[int, int], tuple[int, int], int, bool]]:
    """Pairs of ((person, cluster), (person, cluster), category, whether they ask in Chinese)."""
    wanting: dict[int, list[tuple[int, int]]] = {}
    for user, name in enumerate(world.users["user_id"].to_list()):
        taken = [world.cluster[place[e.item_id]] for e in model.history_of(name) if e.item_id in place and e.event != "impression"]
        count = np.bincount(np.asarray(taken, dtype=np.int64), minlength=world.interest.shape[1])
        for category in range(len(CATEGORIES)):
            part = slice(category * N_STYLES, (category + 1) * N_STYLES)
            best = int(world.interest[user, part].argmax())
            if world.interest[user, part][best] >= 0.5 and count[part][best] >= LEAST:
                wanting.setdefault(category, []).append((user, category * N_STYLES + best))
    out = []
    for _ in range(50 * n):
        category = int(draw.choice(sorted(wanting)))
        if len(wanting[category]) < 2:
            continue
        one, two = (wanting[category][int(k)] for k in draw.choice(len(wanting[category]), 2, replace=False))
        if one[1] != two[1]:
            out.append((one, two, category, bool(draw.random() < 0.5)))
        if len(out) == n:
            break
    return out


if __name__ == "__main__":
    sys.exit(main())
