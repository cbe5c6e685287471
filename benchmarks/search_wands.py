"""Product search that people graded: WANDS, 480 queries of Wayfair over 42,994 products.

    git clone https://github.com/wayfair/WANDS
    python benchmarks/search_wands.py --data WANDS [--seeds N] [--engines NAME ...] [--no-model] [--quick] [--json OUT]

Chen et al., ECIR 2022; `dataset/query.csv`, `product.csv` and `label.csv`, tab-separated. Every engine ranks the whole catalogue for each of
the 480 queries. NDCG@10 with gains Exact 1, Partial .5, and with 2^g - 1 (Exact 3, Partial 1); what nobody judged counts 0; a query with
nothing to find counts 0. There is no training split: queries are cut into five folds, once, and each fold is asked by what was tuned,
aligned and trained on the other four. Nobody is known in this set, so our model's log is made of the training folds' Exact pairs: strangers
who search and take (`write_visits` in _judged.py). It is trained by the ordinary pipeline, once a fold and seed.

Engines: see _judged_engines.py. `--items` and `--asked` cut the set down; `--quick` asks 60 queries in two folds over 3,000 products.
For orientation only, from another protocol's code: BM25 .329, fine-tuned SPLADE .355 NDCG@10 (Qdrant's articles on sparse embeddings for
e-commerce, 2026). Finished cells are kept in runs/benchmarks/search_wands, shops and models in runs/search_wands.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

import numpy as np
import polars as pl
from _common import Benchmark
from _judged import (
    SOURCES,
    Questions,
    Study,
    folded,
    guarded,
    judged_parser,
    moved,
    narrowed,
    ndcg_of,
    run,
    sample,
    with_text,
)
from _judged_files import Column, Source, rows_of, stamp

from rankloom.evaluation.search.judged import Judgements, folds

WANDS: Final = Source("WANDS", "git clone https://github.com/wayfair/WANDS, and give its folder to --data")
GRADES: Final = ("Irrelevant", "Partial", "Exact")
FOLDS: Final = 5
SIZES: Final = {"query.csv": 480, "product.csv": 42_994, "label.csv": 233_448}
QUICK_ITEMS, QUICK_ASKED, QUICK_FOLDS = 3_000, 60, 2
MEASURES: Final = (ndcg_of("exact 1, partial .5", (0.0, 0.5, 1.0)), ndcg_of("2^g - 1", (0.0, 1.0, 3.0)))


def read(folder: Path, *, n_items: int | None = None, n_asked: int | None = None) -> Study:
    """The set as its repository has it; `folded` gives it parts.

    Args:
        folder: the clone, or its folder `dataset`.
        n_items, n_asked: at most so many products and queries.

    Raises:
        RankloomError: a file is missing, a Git LFS pointer or of another form, or a label is none of the three.
    """
    paths = {name: WANDS.find(folder, name, f"dataset/{name}") for name in SIZES}
    queries = WANDS.read(paths["query.csv"], "csv", {"query_id": Column(), "query": Column()})
    products = WANDS.read(
        paths["product.csv"], "csv",
        {
            "product_id": Column(), "product_name": Column(required=False), "product_class": Column(required=False),
            "category": Column(("category hierarchy", "category_hierarchy"), required=False),
            "product_description": Column(required=False), "product_features": Column(required=False),
        },
    )  # fmt: skip
    labels = WANDS.read(paths["label.csv"], "csv", {"query_id": Column(), "product_id": Column(), "label": Column()})
    WANDS.check_values(paths["label.csv"], labels["label"], GRADES)
    for name, frame in zip(SIZES, (queries, products, labels), strict=True):
        if frame.height != SIZES[name]:
            print(f"note: {name} has {frame.height:,} rows, the published one {SIZES[name]:,}", flush=True)
    items = with_text(_items(products).unique("item_id", keep="first", maintain_order=True))
    asked = rows_of(queries["query_id"].to_list(), labels["query_id"])
    known = asked < queries.height
    grade = labels["label"].replace_strict(list(GRADES), list(range(len(GRADES))), return_dtype=pl.Int64).to_numpy()
    item = rows_of(items["item_id"].to_list(), labels["product_id"])
    judged = Judgements.of(asked[known], item[known], grade[known], queries.height)
    questions = Questions(tuple(queries["query"].to_list()), judged, np.arange(queries.height)).take(
        sample(queries.height, n_asked)
    )
    smaller, place = narrowed(items, questions.judged.item, n_items)
    questions = Questions(questions.text, moved(questions.judged, place, smaller.height), np.arange(len(questions)))
    return Study(
        name="WANDS", items=smaller, questions=questions, parts=(), measures=MEASURES, taken=2, top=2,
        stamp=f"{stamp(*paths.values())} {smaller.height} {len(questions)}",
        whole=smaller.height == items.height and len(questions) == queries.height,
    )  # fmt: skip


def _items(products: pl.DataFrame) -> pl.DataFrame:
    """A shop's columns. The class ends the category path where the path does not have it; features become attributes."""
    path = pl.col("category").fill_null("").str.split("/").list.eval(pl.element().str.strip_chars()).list.eval(
        pl.element().filter(pl.element() != "")
    )  # fmt: skip
    kinds = pl.col("product_class").fill_null("").str.split("|").list.eval(pl.element().filter(pl.element() != ""))
    pairs = pl.col("product_features").fill_null("").str.split("|").list.eval(
        pl.struct(
            pl.element().str.extract(r"^([^:]*):", 1).str.strip_chars().alias("key"),
            pl.element().str.extract(r"^[^:]*:(.*)$", 1).str.strip_chars().alias("value"),
        ).filter(pl.element().str.contains(r"^\s*[^:\s][^:]*:\s*\S"))
    )  # fmt: skip
    return products.select(
        pl.col("product_id").alias("item_id"), pl.col("product_name").alias("title"), pl.col("product_description").alias("description"),
        pl.concat_list(path, kinds).list.unique(maintain_order=True).alias("category"), pairs.alias("attributes"),
    )  # fmt: skip


def main() -> int:
    bench = Benchmark.from_args("search_wands", parser=judged_parser(__doc__, "search_wands"), sources=SOURCES)
    args = bench.args
    quick = (QUICK_ITEMS, QUICK_ASKED) if bench.quick else (None, None)
    study = read(args.data, n_items=args.items or quick[0], n_asked=args.asked or quick[1])
    fold_Q = folds(len(study.questions), QUICK_FOLDS if bench.quick else FOLDS)
    return run(bench, folded(study, fold_Q, "wands"))


if __name__ == "__main__":
    raise SystemExit(guarded(main))
