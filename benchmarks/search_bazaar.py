"""English and Chinese searches of the simulated marketplace: is our search above BM25 on words cut by jieba, in both?

    python benchmarks/search_bazaar.py [--model MODEL --shop SHOP] [--scale 1] [--seeds N] [--json OUT] [--quick]

The bazaar's people search for kinds and styles in either language, and every item has a title in one of them. Asked are the searches of
the test period, each with the person's history; right is the item that was taken then. What the person has had is not ranked, so
searches after which it was taken again are left out. BM25 (bm25s; Chinese text cut by jieba, or in pairs of characters) is tuned
on the validation period's searches, with popularity too. Without MODEL and SHOP it makes the bazaar and trains on it, a seed each.
Everything is simulated.
"""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
from _common import ROOT, Benchmark, argument_parser, count_seeds
from search_known import SOURCES, trained

from rankloom.data.sequences import TEST, VALID, Sequences, load_sequences
from rankloom.data.shop import Shop
from rankloom.evaluation.search.cases import SearchCases
from rankloom.evaluation.search.compare import difference, ranks_of, value
from rankloom.evaluation.search.lexical import BM25
from rankloom.evaluation.search.own import RankloomSearch
from rankloom.evaluation.search.systems import Shelf
from rankloom.recommender import Rankloom
from rankloom.semantic.words import is_pair, words

LONG: Final = 50
PER_PERSON: Final = 10
LANGUAGES: Final = ("Chinese", "English")


def main() -> int:
    parser = argument_parser(__doc__)
    count_seeds(parser)
    parser.add_argument("--model", type=Path, help="a trained model folder")
    parser.add_argument("--shop", type=Path, help="the bazaar that it was trained on")
    parser.add_argument("--scale", type=float, default=1.0, help="size of the bazaar")
    parser.add_argument("--folder", type=Path, default=ROOT / "runs" / "search_known", help="where shops and models lie")
    bench = Benchmark.from_args("search_bazaar", parser=parser, sources=(*SOURCES, "rankloom/evaluation/search", "benchmarks/search_bazaar.py"))
    args = bench.args
    if (args.model is None) != (args.shop is None):
        parser.error("give --model and --shop together")
    scale = 0.05 if bench.quick else args.scale
    for seed in bench.seeds[:1] if args.model else bench.seeds:
        if args.model is None:
            model = trained(args.folder, scale, seed, bench.quick)
            shop = args.folder / f"shop-{scale:g}-{seed}"
        else:
            model, shop = args.model, args.shop
        found = bench.cell({"model": str(model), "scale": scale, "seed": seed}, partial(measure, model, shop))
        report(bench, seed, found)
    return bench.finish()


def report(bench: Benchmark, seed: int, found: dict[str, Any]) -> None:
    for language, own in found.items():
        user = np.asarray(own["user"])
        ranks = {system: np.asarray(rank) for system, rank in own["rank"].items()}
        for system, rank in ranks.items():
            for metric, k in (("hr", 10), ("mrr", 10), ("hr", LONG)):
                bench.row(system=system, variant=language, metric=metric, k=k, value=value(rank, metric, k), n=len(rank), seed=seed, simulated=True)
        for system in ranks:
            if system != "rankloom":
                middle, low, high = difference([ranks["rankloom"]], [ranks[system]], user, "hr", 10)
                bench.check(
                    f"seed {seed}, {language}: over {system}, hr@10, paired (simulated)", f"{middle:+.4f} ({low:+.4f} .. {high:+.4f})",
                    target="interval above 0", ok=bool(low > 0),
                )  # fmt: skip


def measure(model: Path, shop: Path) -> dict[str, Any]:
    opened = Shop.open(shop)
    own = Rankloom.from_pretrained(model)
    sequences = load_sequences(opened, own.config.data)
    shelf = Shelf.of(opened.items(), sequences)
    engines: dict[str, Any] = {"rankloom": RankloomSearch(own, opened)}
    for chinese in ("jieba", "bigrams"):
        engines[f"bm25, {chinese}"] = BM25(tuned=True, chinese=chinese)
        engines[f"bm25+popularity, {chinese}"] = BM25(tuned=True, popularity=0.5, chinese=chinese)
    asked = {stage: searches(sequences, stage) for stage in (VALID, TEST)}
    out: dict[str, Any] = {}
    for language in LANGUAGES:
        valid, test = (of_language(asked[stage], language) for stage in (VALID, TEST))
        rank = {}
        for name, engine in engines.items():
            print(f"{language}: {name}", flush=True)
            engine.fit(shelf, valid, 0)
            rank[name] = ranks_of(engine.rank(test, LONG), test.cases.target).tolist()
        out[language] = {"rank": rank, "user": test.cases.user.tolist()}
    return out


def searches(sequences: Sequences, stage: int) -> SearchCases:
    """Those after which something was taken that the person had not had."""
    cases = sequences.cases(stage, max_per_user=PER_PERSON, among=sequences.query >= 0)
    fresh = np.array(
        [
            target not in sequences.item[sequences.offsets[user] : row]
            for user, row, target in zip(cases.user, cases.row, cases.target, strict=True)
        ],
        dtype=np.bool_,
    )
    whole = SearchCases(sequences, cases, tuple(sequences.queries[n] for n in sequences.query[cases.row]))
    return whole.take(fresh)


def of_language(asked: SearchCases, language: str) -> SearchCases:
    chinese = np.array([any(is_pair(word) for word in words(query)) for query in asked.query], dtype=np.bool_)
    return asked.take(chinese if language == "Chinese" else ~chinese)


if __name__ == "__main__":
    sys.exit(main())
