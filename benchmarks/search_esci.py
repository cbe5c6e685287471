"""Product search that people graded: the Shopping Queries Dataset (ESCI), United States, small version.

    git lfs install && git clone https://github.com/amazon-science/esci-data
    python benchmarks/search_esci.py --data esci-data [--catalogue judged|all] [--seeds N] [--engines NAME ...] [--no-model] [--quick] [--json OUT]

Reddy et al., 2022 (arXiv 2206.06588); `shopping_queries_dataset_examples.parquet` and `shopping_queries_dataset_products.parquet`, which the
repository keeps in Git LFS. The 8,956 test queries are asked over a whole catalogue, not over the list that each query comes with:
`judged`, all products that any query of the small version names (the default), or `all`, every product of the locale.

NDCG@10 with gains E 1, S .1, C .01, I 0, and with E 3, S 2, C 1, I 0; recall@10 of E, over the queries that have one. What nobody
judged counts 0, which is hard on any engine that finds other good products. The 20,888 training queries tune, align and teach, and their E
pairs are the log that our model trains on: strangers who search and take (`write_visits` in _judged.py). No person is known in this set.

`--quick` asks 100 queries, learns from 300 and has 3,000 products. For orientation only, from another protocol's code: BM25 .305, fine-tuned
SPLADE .389 NDCG@10 (Qdrant's articles on sparse embeddings for e-commerce, 2026). Finished cells are kept in runs/benchmarks/search_esci,
shops and models in runs/search_esci.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Final

import numpy as np
import polars as pl
from _common import Benchmark
from _judged import (
    SOURCES,
    Part,
    Questions,
    Study,
    guarded,
    judged_parser,
    moved,
    narrowed,
    ndcg_of,
    recall_of,
    run,
    sample,
    with_text,
    write_visits,
)
from _judged_files import Column, Source, rows_of, stamp

from rankloom.errors import RankloomError
from rankloom.evaluation.search.judged import Judgements

ESCI: Final = Source(
    "the Shopping Queries Dataset",
    "git lfs install, then git clone https://github.com/amazon-science/esci-data, and give its folder to --data",
)
NAMES: Final = ("shopping_queries_dataset_examples.parquet", "shopping_queries_dataset_products.parquet")
GRADES: Final = ("I", "C", "S", "E")
MEASURES: Final = (
    ndcg_of("E 1, S .1, C .01", (0.0, 0.01, 0.1, 1.0)), ndcg_of("E 3, S 2, C 1", (0.0, 1.0, 2.0, 3.0)), recall_of(3, 10),
)  # fmt: skip
QUICK_ITEMS, QUICK_ASKED, QUICK_LEARN = 3_000, 100, 300


def read(
    folder: Path, *, locale: str = "us", catalogue: str = "judged", n_items: int | None = None, n_asked: int | None = None,
    n_learn: int | None = None,
) -> Study:  # fmt: skip
    """The small version of one locale: its test queries are asked, its training queries learn.

    Args:
        folder: the clone, or its folder `shopping_queries_dataset`.
        catalogue: `judged` or `all`.
        n_items, n_asked, n_learn: at most so many products, test and training queries.

    Raises:
        RankloomError: a file is missing, a Git LFS pointer or of another form, or there is nothing of the locale.
    """
    examples_path, products_path = (ESCI.find(folder, name, f"shopping_queries_dataset/{name}") for name in NAMES)
    examples = ESCI.read(
        examples_path, "parquet",
        {
            "query": Column(), "query_id": Column(), "product_id": Column(), "product_locale": Column(), "esci_label": Column(),
            "small_version": Column(kind="int"), "split": Column(),
        },
        keep=(pl.col("product_locale") == locale) & (pl.col("small_version") == 1),
    )  # fmt: skip
    ESCI.check_values(examples_path, examples["esci_label"], GRADES)
    ESCI.check_values(examples_path, examples["split"], ("train", "test"))
    named = examples["product_id"].unique().implode()
    products = ESCI.read(
        products_path, "parquet",
        {
            "product_id": Column(), "product_title": Column(required=False), "product_description": Column(required=False),
            "product_bullet_point": Column(required=False), "product_brand": Column(required=False), "product_color": Column(required=False),
            "product_locale": Column(),
        },
        keep=(pl.col("product_locale") == locale) & (pl.col("product_id").is_in(named) if catalogue == "judged" else pl.lit(True)),
    )  # fmt: skip
    items = with_text(_items(products).unique("item_id", keep="first", maintain_order=True))
    asked = _questions(examples.filter(pl.col("split") == "test"), items, n_asked)
    learn = _questions(examples.filter(pl.col("split") == "train"), items, n_learn)
    if not len(asked) or not len(learn):
        raise RankloomError(
            f"the examples have no {'test' if not len(asked) else 'training'} query of the locale {locale}", place=str(examples_path),
            action="give another --locale", code="data-empty",
        )  # fmt: skip
    smaller, place = narrowed(items, np.r_[asked.judged.item, learn.judged.item], n_items)
    both = [Questions(own.text, moved(own.judged, place, smaller.height), own.owner) for own in (asked, learn)]
    log = partial(write_visits, study_items=smaller, learn=both[1], taken=3, origin="esci")
    n_test, n_train = (examples.filter(pl.col("split") == name)["query_id"].n_unique() for name in ("test", "train"))
    return Study(
        name=f"ESCI {locale}, {catalogue} products", items=smaller, questions=both[0],
        parts=(Part("test", np.arange(len(asked)), both[1], log),), measures=MEASURES, taken=3, top=3,
        stamp=f"{stamp(examples_path, products_path)} {locale} {catalogue} {smaller.height} {len(asked)} {len(learn)}",
        whole=smaller.height == items.height and len(asked) == n_test and len(learn) == n_train,
    )  # fmt: skip


def _items(products: pl.DataFrame) -> pl.DataFrame:
    """A shop's columns: bullet points and description as one text, without HTML tags; the color as an attribute."""
    said = pl.concat_str(pl.col("product_bullet_point", "product_description").fill_null(""), separator="\n")
    color = pl.struct(pl.lit("color").alias("key"), pl.col("product_color").alias("value"))
    return products.select(
        pl.col("product_id").alias("item_id"), pl.col("product_title").alias("title"), pl.col("product_brand").alias("brand"),
        said.str.replace_all(r"<[^>]{1,60}>", " ").str.strip_chars().alias("description"),
        pl.concat_list(color).list.eval(pl.element().filter(pl.element().struct.field("value").is_not_null())).alias("attributes"),
    )  # fmt: skip


def _questions(examples: pl.DataFrame, items: pl.DataFrame, limit: int | None) -> Questions:
    """Queries in the order of the file, with their graded products."""
    queries = examples.select("query_id", "query").unique("query_id", keep="first", maintain_order=True)
    queries = queries[sample(queries.height, limit)]
    examples = examples.filter(pl.col("query_id").is_in(queries["query_id"].implode()))
    grade = (
        examples["esci_label"].replace_strict(list(GRADES), list(range(len(GRADES))), return_dtype=pl.Int64).to_numpy()
    )
    judged = Judgements.of(
        rows_of(queries["query_id"].to_list(), examples["query_id"]), rows_of(items["item_id"].to_list(), examples["product_id"]), grade,
        queries.height,
    )  # fmt: skip
    return Questions(tuple(queries["query"].to_list()), judged, np.arange(queries.height))


def main() -> int:
    parser = judged_parser(__doc__, "search_esci")
    parser.add_argument("--catalogue", choices=("judged", "all"), default="judged", help="which products are ranked")
    parser.add_argument("--locale", choices=("us", "es"), default="us")
    bench = Benchmark.from_args("search_esci", parser=parser, sources=SOURCES)
    args = bench.args
    quick = (QUICK_ITEMS, QUICK_ASKED, QUICK_LEARN) if bench.quick else (None, None, None)
    study = read(
        args.data, locale=args.locale, catalogue=args.catalogue, n_items=args.items or quick[0], n_asked=args.asked or quick[1],
        n_learn=quick[2],
    )  # fmt: skip
    return run(bench, study)


if __name__ == "__main__":
    raise SystemExit(guarded(main))
