"""Is an item found by who knows it? Whole titles, rare words, and words that came today.

    python benchmarks/search_known.py [--model MODEL ...] [--scale 1] [--seeds N] [--json OUT] [--quick]

A log teaches what its own searches are like. Where people search for kinds and styles and often take what lacks a word, words come to
matter little, and a shopper who types the name of a thing gets something else that people like. Asked here, by strangers, of items
drawn at random: the whole title (of at least four words, no other item's), its two rarest words, and of items added to the finished model,
whose titles are those of others with a made word in front, the made word and the title. Right is the list that has the item, first or within
ten. Beside it the same model with `memory.untried_words` off in the order, and BM25 over the same text. Without MODEL it makes the bazaar
(simulated) and trains on it, a seed each.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
import polars as pl
from _common import ROOT, Benchmark, argument_parser, count_seeds

from rankloom import pipeline
from rankloom.config import Config
from rankloom.decoding.query_memory import NAMED, searched_texts
from rankloom.evaluation.search.lexical import DEFAULT_B, DEFAULT_K1, Index
from rankloom.evaluation.search.words import all_terms
from rankloom.progress import track
from rankloom.recommender import Rankloom
from rankloom.semantic.words import as_typed, words
from rankloom.simulation.bazaar import generate_bazaar

SOURCES: Final = (
    "rankloom/decoding", "rankloom/models", "rankloom/training", "rankloom/semantic", "rankloom/pipeline.py", "rankloom/choosing.py",
    "rankloom/choosing_broad.py", "rankloom/recommender.py", "rankloom/ordering.py", "rankloom/generating.py", "rankloom/replying.py",
    "rankloom/simulation", "rankloom/data", "benchmarks/search_known.py",
)  # fmt: skip
ASKED: Final = 300
ADDED: Final = 100
GOAL: Final = 0.95
Answer = Callable[[str], list[str]]


def main() -> int:
    parser = argument_parser(__doc__)
    count_seeds(parser)
    parser.add_argument("--model", type=Path, nargs="+", help="trained model folders")
    parser.add_argument("--scale", type=float, default=1.0, help="size of the bazaar")
    parser.add_argument("--folder", type=Path, default=ROOT / "runs" / "search_known", help="where shops and models lie")
    bench = Benchmark.from_args("search_known", parser=parser, sources=SOURCES)
    args = bench.args
    scale = 0.05 if bench.quick else args.scale
    models = {str(path): partial(Path, path) for path in args.model or ()} or {
        f"bazaar, seed {seed}": partial(trained, args.folder, scale, seed, bench.quick) for seed in bench.seeds
    }
    asked, added = (40, 10) if bench.quick else (ASKED, ADDED)
    for name, folder in models.items():
        found = bench.cell({"model": name, "scale": scale}, lambda folder=folder: measure(folder(), asked, added))
        for row in found:
            bench.row(variant=name, **row)
        ours = {(row["queries"], row["k"]): row["value"] for row in found if row["system"] == "rankloom"}
        bench.check(f"{name}: title, first", round(ours["whole title", 1], 3), at_least=GOAL)
        bench.check(f"{name}: new item by its one new word, first", round(ours["new word", 1], 3), at_least=GOAL)
        bench.check(f"{name}: new item by its title, first", round(ours["new title", 1], 3), at_least=GOAL)
    return bench.finish()


def trained(home: Path, scale: float, seed: int, quick: bool) -> Path:
    shop, model = home / f"shop-{scale:g}-{seed}", home / f"model-{scale:g}-{seed}"
    if not (shop / "shop.json").exists():
        generate_bazaar(shop, seed=seed, scale=scale)
    if not (model / "manifest.json").exists():
        pipeline.train(shop, model, Config.preset_config("tiny" if quick else "small").with_overrides([f"seed={seed}"]))
    return model


def measure(folder: Path, n_asked: int, n_added: int) -> list[dict[str, Any]]:
    own = Rankloom.from_pretrained(folder)
    draw = np.random.default_rng(0)
    titled = own.items.filter(own.items["title"].is_unique()).select("item_id", "title").rows()
    titled = [(item, title) for item, title in titled if len(set(words(title))) >= NAMED]
    drawn = [titled[n] for n in draw.permutation(len(titled))[: n_asked + n_added]]
    known, models = drawn[:n_asked], drawn[n_asked:]
    added = [(f"new-{n}", f"{made_word(n)} {title}") for n, (_, title) in enumerate(models)]
    own.add_items(pl.DataFrame(added, schema=["item_id", "title"], orient="row"))
    usual = own.search_choices
    off = replace(usual, weights=replace(usual.weights, untried=0.0))
    index = Index(all_terms(searched_texts(own.items)), DEFAULT_K1, DEFAULT_B)
    ids = own.items["item_id"].to_list()

    def ours(choices: Any, query: str) -> list[str]:
        own.search_choices = choices
        return [item.item_id for item in own.search(query, k=10).items]

    def bm25(query: str) -> list[str]:
        score = index.scores(query)
        return [ids[row] for row in np.argsort(-score, kind="stable")[:10] if score[row] > 0]

    frequency = Counter(word for title in own.items["title"].to_list() for word in set(words(title)))
    questions = {
        "whole title": [(item, title) for item, title in known],
        "two rarest words": [(item, rarest(title, frequency)) for item, title in known],
        "new word": [(item, title.split()[0]) for item, title in added],
        "new title": added,
    }
    systems: dict[str, Answer] = {"rankloom": partial(ours, usual), "rankloom, untried words off": partial(ours, off), "bm25": bm25}
    rows = []
    for queries, cases in questions.items():
        for system, answer in systems.items():
            lists = [(item, answer(query)) for item, query in track(cases, f"{queries}, {system}", unit="searches")]
            for k in (1, 10):
                share = float(np.mean([item in found[:k] for item, found in lists]))
                rows.append({"system": system, "queries": queries, "metric": "hr", "k": k, "value": share, "n": len(lists)})
    return rows


def rarest(title: str, frequency: Counter[str]) -> str:
    """Its two rarest words, in their order, as they stand there."""
    stands = list(dict(as_typed(title)).items())
    two = sorted(range(len(stands)), key=lambda n: (frequency[stands[n][0]], n))[:2]
    return " ".join(stands[n][1] for n in sorted(two))


def made_word(n: int) -> str:
    """A word that no catalogue has, not one slip from the next."""
    letters = "bdfgklmnprstvz"
    return "qx" + "".join(letters[(n // len(letters) ** place) % len(letters)] * 2 for place in range(3)) + "wok"


if __name__ == "__main__":
    sys.exit(main())
