"""How well keywords of Chinese product titles are found, against titles in which people marked them.

    python benchmarks/keywords_zh.py [--quick] [--json OUT]

`titles_zh` under RANKLOOM_DATA: Taobao titles with marked products (HCCX), brands (HPPX) and models (XH); 6,000 train, 998 dev,
1,000 test, as published. Precision, recall and F1 of exact places in the test titles, and of places with the right type; 95%
intervals by resampling titles. Systems:

* `jieba, words`: every word of two characters or more;
* `jieba, tf-idf`: the words of a title that are rarest in the training titles, as many a title as does best on dev;
* `mined, no labels`: the dictionary that a shop gets from the training titles alone, without columns, log or labels; of its
  types those that say what a thing is. `min_items` is chosen on dev;
* `labelled, all`: every term marked in the training titles, by the matcher;
* `labelled`: those that are marked often enough where they stand; the share is chosen on dev.

`--quick` reads a tenth. The last system is what `mine_labelled` makes, the third what `mine` makes.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import polars as pl
from _common import Benchmark, data_folder

from rankloom.config import KeywordsConfig
from rankloom.semantic.keywords.dictionary import KeywordDictionary
from rankloom.semantic.keywords.folding import fold
from rankloom.semantic.keywords.labelled import mine_labelled
from rankloom.semantic.keywords.matching import KeywordMatcher
from rankloom.semantic.keywords.mining import mine
from rankloom.semantic.keywords.segmentation import Segmenter

SOURCES = ("rankloom/semantic/keywords", "benchmarks/keywords_zh.py")
KINDS = {"HCCX": "entity", "HPPX": "brand", "XH": "model"}
PRECISIONS = (0.0, 0.3, 0.4, 0.5, 0.6, 0.7)
MIN_ITEMS = (2, 3, 5)

Span = tuple[int, int, str]
Title = tuple[str, list[Span]]
Extract = Callable[[str], Sequence[Span]]


def read(split: str, *, quick: bool) -> list[Title]:
    """Titles with what is marked in them."""
    table = pl.read_parquet(data_folder("titles_zh", "titles_ner.parquet"))
    table = table.filter((pl.col("domain") == "ecommerce") & (pl.col("split") == split))
    titles = [
        (text, [(own["start"], own["end"], KINDS[own["label"]]) for own in entities if own["label"] in KINDS])
        for text, entities in table.select("text", "entities").iter_rows()
    ]
    return titles[::10] if quick else titles


def counts(extract: Extract, titles: Sequence[Title]) -> np.ndarray:
    """(N, 4) found, marked, both by place, both by place and type."""
    rows = []
    for text, marks in titles:
        found = set(extract(text))
        places = {span[:2] for span in marks}
        right = len({span[:2] for span in found} & places)
        rows.append((len(found), len(set(marks)), right, len(found & set(marks))))
    return np.asarray(rows, dtype=np.float64)


def f1(table: np.ndarray, column: int = 2) -> float:
    found, marked, *_ = total = table.sum(0)
    return float(2 * total[column] / max(1.0, found + marked))


def measure(name: str, extract: Extract, titles: Sequence[Title], *, chosen: Any, n_terms: int | None) -> dict[str, Any]:
    """The figures of one system."""
    start = time.perf_counter()
    table = counts(extract, titles)
    seconds = time.perf_counter() - start
    total = table.sum(0)
    draws = np.random.default_rng(0).integers(0, len(table), (1000, len(table)))
    spread = [f1(table[draw]) for draw in draws]
    return {
        "system": name,
        "chosen": chosen,
        "n_terms": n_terms,
        "precision": total[2] / max(1.0, total[0]),
        "recall": total[2] / total[1],
        "f1": f1(table),
        "low": float(np.quantile(spread, 0.025)),
        "high": float(np.quantile(spread, 0.975)),
        "typed_f1": f1(table, 3),
        "microseconds_a_title": 1e6 * seconds / len(titles),
        "n": len(titles),
    }


def by_matcher(dictionary: KeywordDictionary, kinds: frozenset[str] | None = None) -> Extract:
    matcher = KeywordMatcher(dictionary)

    def extract(text: str) -> list[Span]:
        spans = [(span.start, span.end, span.keyword.kind) for span in matcher.match(text)]
        return spans if kinds is None else [span for span in spans if span[2] in kinds]

    return extract


def jieba_words(segmenter: Segmenter) -> Extract:
    def extract(text: str) -> list[Span]:
        folded = fold(text)
        return [(*folded.span(start, end), "entity") for start, end in segmenter.words(folded.text) if end - start > 1]

    return extract


def jieba_tfidf(segmenter: Segmenter, train: Sequence[Title]) -> Callable[[int], Extract]:
    words = jieba_words(segmenter)
    holds: Counter[str] = Counter()
    for text, _ in train:
        holds.update({text[span[0] : span[1]] for span in words(text)})

    def best(text: str, top: int) -> list[Span]:
        spans = list(words(text))
        often = Counter(text[start:end] for start, end, _ in spans)
        worth = {word: n * np.log(len(train) / (1 + holds[word])) for word, n in often.items()}
        kept = set(sorted(worth, key=lambda word: (-worth[word], word))[:top])
        return [span for span in spans if text[span[0] : span[1]] in kept]

    return lambda top: lambda text: best(text, top)


def best_on(dev: Sequence[Title], options: Sequence[Any], make: Callable[[Any], Extract]) -> tuple[Any, Extract]:
    """The option whose F1 on dev is best."""
    made = [(option, make(option)) for option in options]
    return max(made, key=lambda own: f1(counts(own[1], dev)))


class Data:
    """The three parts, read once."""

    def __init__(self, *, quick: bool) -> None:
        self.train, self.dev, self.test = (read(split, quick=quick) for split in ("train", "dev", "test"))
        self.texts, self.marks = [text for text, _ in self.train], [own for _, own in self.train]
        self.segmenter = Segmenter()


def words(data: Data) -> list[dict[str, Any]]:
    data.segmenter.words("词")  # loads its dictionary, which is not to be timed
    rows = [measure("jieba, words", jieba_words(data.segmenter), data.test, chosen=None, n_terms=None)]
    top, extract = best_on(data.dev, (3, 5, 7, 9, 12), jieba_tfidf(data.segmenter, data.train))
    return [*rows, measure("jieba, tf-idf", extract, data.test, chosen=top, n_terms=None)]


def unlabelled(data: Data) -> list[dict[str, Any]]:
    items = pl.DataFrame({"item_id": [str(n) for n in range(len(data.texts))], "title": data.texts})
    mined = {n: mine(items, KeywordsConfig(min_items=n), segmenter=data.segmenter) for n in MIN_ITEMS}
    what = frozenset({"entity", "brand", "model"})
    n, extract = best_on(data.dev, MIN_ITEMS, lambda n: by_matcher(mined[n], what))
    return [measure("mined, no labels", extract, data.test, chosen=n, n_terms=len(mined[n]))]


def labelled(data: Data) -> list[dict[str, Any]]:
    made = {share: mine_labelled(data.texts, data.marks, min_precision=share) for share in PRECISIONS}
    rows = [measure("labelled, all", by_matcher(made[0.0]), data.test, chosen=None, n_terms=len(made[0.0]))]
    share, extract = best_on(data.dev, PRECISIONS, lambda share: by_matcher(made[share]))
    return [*rows, measure("labelled", extract, data.test, chosen=share, n_terms=len(made[share]))]


def main() -> int:
    bench = Benchmark.from_args("keywords_zh", __doc__, sources=SOURCES)
    data = Data(quick=bench.quick)
    rows: list[dict[str, Any]] = []
    for part in (labelled, words, unlabelled):
        rows += bench.cell({"part": part.__name__}, lambda part=part: part(data))
    for own in rows:
        name, chosen, n = own["system"], own["chosen"], own["n"]
        bench.row(system=name, variant=chosen, metric="f1", value=own["f1"], low=own["low"], high=own["high"], n=n)
        for metric in ("precision", "recall", "typed_f1", "microseconds_a_title", "n_terms"):
            if own[metric] is not None:
                bench.row(system=name, variant=chosen, metric=metric, value=own[metric], n=n)
    f1_of = {own["system"]: own["f1"] for own in rows}
    bench.check("F1 of the labelled dictionary above every word of jieba", f1_of["labelled"], at_least=f1_of["jieba, words"])
    if not bench.quick:
        bench.check("F1 of the labelled dictionary", f1_of["labelled"], at_least=0.7)
    return bench.finish()


if __name__ == "__main__":
    raise SystemExit(main())
