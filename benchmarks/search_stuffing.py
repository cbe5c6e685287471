"""What does a seller gain who stuffs popular words into titles: in BM25, and in our search?

    python benchmarks/search_stuffing.py --dataset beauty|toys|scientific|FOLDER [--json OUT] [--quick]

500 items, drawn once, get ten of the catalogue's two hundred most frequent title words behind their titles, words that neither
their title, brand nor category has. Each is then asked for by two irrelevant queries, pairs of its own stuffed words. How far does
the item move up? Counted are places in lists of 350; an item that is not listed stands at 351. BM25 is bm25s by its defaults over
the same text (title, brand, category). Ours is the model of `search_amazon.py`, trained by the command line on honest titles
(runs/search_amazon; trained here where it is not there yet); the stuffed titles come in by `add_items`, as `rankloom upsert` does.
"""

from __future__ import annotations

import random
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from _common import ROOT, Benchmark, argument_parser, data_folder
from _search import SearchData, evaluation_data, train
from search_amazon import NAMED, SOURCES

from rankloom.evaluation.search.lexical import DEFAULT_B, DEFAULT_K1, Index
from rankloom.evaluation.search.systems import index_texts
from rankloom.evaluation.search.words import STOP_WORDS, all_terms, plain_words, terms
from rankloom.progress import track
from rankloom.recommender import Rankloom

ITEMS, WORDS, POPULAR, ASKED = 500, 10, 200, 2
LONGEST, BEAM = 350, 512
MOST = 0.05


def main() -> int:
    parser = argument_parser(__doc__)
    parser.add_argument("--dataset", default="beauty", help="beauty, toys, scientific, or a folder")
    parser.add_argument("--folder", type=Path, default=ROOT / "runs" / "search_amazon", help="where shops and models lie")
    bench = Benchmark.from_args("search_stuffing", parser=parser, sources=SOURCES)
    name = bench.args.dataset
    source = data_folder(NAMED[name]) if name in NAMED else Path(name)
    home = bench.args.folder / f"{Path(name).name}{'-quick' if bench.quick else ''}"
    measured = bench.cell({"dataset": name, "quick": bench.quick}, lambda: measure(source, home, bench.quick))
    for system in ("bm25", "rankloom"):
        own = measured[system]
        bench.row(system=system, metric="places moved up", k=LONGEST, value=own["moved"], n=measured["asked"], synthetic=True)
        bench.row(system=system, metric="listed before", k=LONGEST, value=own["before"], n=measured["asked"], synthetic=True)
        bench.row(system=system, metric="listed after", k=LONGEST, value=own["after"], n=measured["asked"], synthetic=True)
        print(
            f"{system:<10} moves up {own['moved']:7.2f} places of {LONGEST}; listed for {own['before']:.1%} of the irrelevant "
            f"queries before, {own['after']:.1%} after"
        )
    share = measured["rankloom"]["moved"] / max(measured["bm25"]["moved"], 1e-9)
    bench.check(f"{name}: movement over that of BM25", round(share, 4), at_most=MOST)
    return bench.finish(show_rows=False)


def measure(source: Path, home: Path, quick: bool) -> dict[str, Any]:
    data = evaluation_data(source, home, None, quick=quick)
    if not (home / "model-0").exists():
        train(data.shop.path, home / "model-0", 0, quick=quick)
    items = data.shop.items()
    chosen, added = stuffing(items, random.Random(0), 40 if quick else ITEMS)
    stuffed = with_titles(items, chosen, added)
    draw = random.Random(1)
    asked = [(row, " ".join(draw.sample(words, 2))) for row, words in zip(chosen, added, strict=True) for _ in range(ASKED)]
    out: dict[str, Any] = {"asked": len(asked)}
    places = [lexical_places(own, asked) for own in (items, stuffed)]
    out["bm25"] = compared(*places)
    model = Rankloom.from_pretrained(home / "model-0")
    before = model_places(model, data, asked)
    model.add_items(stuffed[chosen])
    out["rankloom"] = compared(before, model_places(model, data, asked))
    return out


def stuffing(items: pl.DataFrame, draw: random.Random, n: int) -> tuple[list[int], list[list[str]]]:
    """Rows of the items and the words that each gains."""
    count = Counter(
        word for title in items["title"].to_list() for word in set(plain_words(title)) if len(word) > 2 and word.isalpha()
    )
    popular = [word for word, _ in count.most_common() if word not in STOP_WORDS][:POPULAR]
    texts = index_texts(items)
    chosen = sorted(draw.sample(range(items.height), min(n, items.height)))
    added = []
    for row in chosen:
        own = set(terms(texts[row]))
        foreign = [word for word in popular if not own & set(terms(word))]
        added.append(draw.sample(foreign, WORDS))
    return chosen, added


def with_titles(items: pl.DataFrame, chosen: Sequence[int], added: Sequence[Sequence[str]]) -> pl.DataFrame:
    titles = items["title"].to_list()
    for row, words in zip(chosen, added, strict=True):
        titles[row] = f"{titles[row]} {' '.join(words)}"
    return items.with_columns(pl.Series("title", titles))


def lexical_places(items: pl.DataFrame, asked: Sequence[tuple[int, str]]) -> np.ndarray[Any, Any]:
    """1-based place of each item for its query, `LONGEST` + 1 where it is not listed."""
    index = Index(all_terms(index_texts(items)), DEFAULT_K1, DEFAULT_B)
    out = []
    for row, query in asked:
        score = index.scores(query)
        out.append(int((score > score[row]).sum()) + 1 if score[row] > 0 else LONGEST + 1)
    return np.minimum(out, LONGEST + 1)


def model_places(model: Rankloom, data: SearchData, asked: Sequence[tuple[int, str]]) -> np.ndarray[Any, Any]:
    ids = data.shop.items()["item_id"].to_list()
    out = []
    for row, query in track(asked, "asking our search", unit="queries"):
        found = [item.item_id for item in model.search(query, k=LONGEST, beam=BEAM).items]
        out.append(found.index(ids[row]) + 1 if ids[row] in found else LONGEST + 1)
    return np.asarray(out)


def compared(before: np.ndarray[Any, Any], after: np.ndarray[Any, Any]) -> dict[str, float]:
    return {
        "moved": float((before - after).mean()), "before": float((before <= LONGEST).mean()), "after": float((after <= LONGEST).mean()),
    }  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
