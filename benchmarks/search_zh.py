"""Re-ranking Chinese search results that people graded: BM25 on jieba's words, our encoders, and words and vectors joined.

    python benchmarks/search_zh.py [--seeds 0 1 2] [--quick] [--json OUT]

QBQTC (`search_zh` under RANKLOOM_DATA; QQ Browser web search, grades 0 to 2): 788 queries with about 19 graded titles each, cut into
five parts by query and seed. Every query is asked once, by what was fitted and tuned on the other four parts; the dev file (20,000
pairs of other queries, mostly one title a query) belongs to the training data too. No label of an asked query is seen; texts of titles are.
NDCG@10 with gains 2^g - 1 (and g), mean over queries, 95% interval of the difference to BM25 on jieba by resampling queries.

* `bm25, jieba` and `bm25, bigrams`: bm25s over all titles, k1 and b chosen on the training parts;
* `text`: cosine of hashed text vectors, fitted on texts alone;
* `aligned`: the same through the projection of KHQE, trained with q2i, rank and relevance (there are no q2q and i2i pairs: no two
  queries share a title) on the training parts' and dev grades;
* `joined, words` and `joined`: the relevance model (rankloom/semantic/khqe/teacher.py) on the evidence of words, without and with
  vectors: cosines of `text`, of an encoder aligned on dev alone, and to the middle of the query's candidates.

`--quick` is a tenth of the queries and no dev.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import polars as pl
from _common import Benchmark, data_folder, table
from rich.console import Console

from rankloom.config import Config
from rankloom.evaluation.search.lexical import BS, K1S, Index
from rankloom.evaluation.search.words import all_terms
from rankloom.semantic.alignment import Aligner
from rankloom.semantic.hashed import HashedTextEmbedder
from rankloom.semantic.khqe.evidence import Evidence
from rankloom.semantic.khqe.mining import Engagement, ranked_triples, taken_pairs
from rankloom.semantic.khqe.relevance import Scored
from rankloom.semantic.khqe.teacher import RelevanceTeacher
from rankloom.semantic.khqe.training import Material, train

SOURCES = ("rankloom/semantic", "rankloom/evaluation/search", "benchmarks/search_zh.py")
FOLDS, DRAWS, K = 5, 2_000, 10
SYSTEMS = ("bm25, jieba", "bm25, bigrams", "text", "joined, words", "joined", "aligned")
EPOCHS = 2
TOP_GRADE = 2


class Data:
    """Graded lists and dev pairs; P pairs of Q queries, in the order of the file."""

    def __init__(self, *, quick: bool) -> None:
        pairs = pl.read_parquet(data_folder("search_zh", "qbqtc.parquet"))
        lists = pairs.filter(pl.col("split") == "train_2021_first_release")
        names = lists["query"].unique(maintain_order=True)
        lists = lists.filter(pl.col("query").is_in(names[: len(names) // 10].implode())) if quick else lists
        dev = pairs.filter(pl.col("split") == "dev").head(0 if quick else pairs.height)
        self.query, self.title = lists["query"].to_list(), lists["title"].to_list()
        self.grade = lists["label"].to_numpy().astype(np.int64)
        _, self.group = np.unique(self.query, return_inverse=True)
        self.dev = (dev["query"].to_list(), dev["title"].to_list(), dev["label"].to_numpy().astype(np.int64))

    @functools.cached_property
    def text(self) -> HashedTextEmbedder:
        embedder = HashedTextEmbedder(256)
        embedder.fit([*dict.fromkeys([*self.title, *self.dev[1]]), *dict.fromkeys(self.dev[0])])
        return embedder

    @functools.cached_property
    def vectors(self) -> tuple[np.ndarray, np.ndarray]:
        return self.text.embed(self.query), self.text.embed(self.title)

    @functools.cached_property
    def words(self) -> np.ndarray:
        return Evidence().fit(self.title)(self.query, self.title)


def ndcg(score_P: np.ndarray, data: Data, *, linear: bool = False) -> np.ndarray:
    """(Q,) NDCG@10 of each query; equal scores in the order of the file."""
    gain_P = data.grade.astype(np.float64) if linear else 2.0**data.grade - 1
    discount = 1 / np.log2(np.arange(2, K + 2))
    out = []
    for rows in np.split(np.argsort(data.group, kind="stable"), np.cumsum(np.bincount(data.group))[:-1]):
        best = np.sort(gain_P[rows])[::-1][:K]
        found = gain_P[rows[np.argsort(-score_P[rows], kind="stable")]][:K]
        out.append(float(found @ discount[: len(found)]) / max(float(best @ discount[: len(best)]), 1e-12))
    return np.asarray(out)


def bm25(data: Data, chinese: Any, fold_Q: np.ndarray) -> tuple[np.ndarray, list[str]]:
    """Scores, each query's with the k1 and b that are best on the other parts; and which those were."""
    corpus = all_terms(data.title, chinese=chinese)
    scores, found = [], []
    first = np.unique(data.group, return_index=True)[1]
    for k1 in K1S:
        for b in BS:
            index = Index(corpus, k1, b, chinese=chinese)
            own = np.zeros(len(data.query))
            for group, row in enumerate(first):
                rows = np.flatnonzero(data.group == group)
                own[rows] = index.scores(data.query[row])[rows]
            scores.append(own)
            found.append(ndcg(own, data))
    out, chosen = np.zeros(len(data.query)), []
    for fold in range(FOLDS):
        best = int(np.argmax([own[fold_Q != fold].mean() for own in found]))
        asked = fold_Q[data.group] == fold
        out[asked] = scores[best][asked]
        chosen.append(f"k1 {K1S[best // len(BS)]:g} b {BS[best % len(BS)]:g}")
    return out, chosen


def align(data: Data, query: list[str], title: list[str], grade: np.ndarray, seed: int) -> Aligner:
    """The projection, trained on graded pairs: grade 2 is what was taken, grades are levels, and relevance is the grade."""
    queries = tuple(dict.fromkeys(query))
    titles = list(dict.fromkeys(title))
    number, place = ({text: at for at, text in enumerate(texts)} for texts in (queries, titles))
    q, i = np.asarray([number[text] for text in query]), np.asarray([place[text] for text in title])
    own = Engagement(queries, q, i, grade.astype(np.int8), (grade == TOP_GRADE).astype(np.float32))
    graded = Scored(q, i, (grade / TOP_GRADE).astype(np.float32))
    material = Material(queries, q2i=taken_pairs(own), ranked=ranked_triples(own, seed), graded=graded)
    config = Config.preset_config("small").with_overrides([f"seed={seed}", "khqe.enabled=true", f"alignment.epochs={EPOCHS}"])
    content, asked = data.text.embed(titles), data.text.embed(list(queries))
    aligner = Aligner(content.shape[1], config.alignment, seed)
    train(aligner, content, asked, material, config, quiet=True)
    return aligner


def cosines(data: Data, aligner: Aligner) -> np.ndarray:
    query, title = (aligner.transform(own) for own in data.vectors)
    out: np.ndarray = (query * title).sum(1)
    return out


def to_the_middle(data: Data) -> np.ndarray:
    """(P,) cosine of each title to the mean of its query's titles."""
    title = data.vectors[1]
    total = np.zeros((data.group.max() + 1, title.shape[1]), dtype=np.float32)
    np.add.at(total, data.group, title)
    middle = total / np.maximum(np.linalg.norm(total, axis=1, keepdims=True), 1e-8)
    out: np.ndarray = (title * middle[data.group]).sum(1)
    return out


def measure(data: Data, system: str, seed: int) -> dict[str, Any]:
    """NDCG@10 of every query, by both gains."""
    fold_Q = np.random.default_rng(seed).permutation(data.group.max() + 1) % FOLDS
    fold_P = fold_Q[data.group]
    score, chosen = np.zeros(len(fold_P)), []
    query, title = data.vectors
    if system.startswith("bm25"):
        score, chosen = bm25(data, system.removeprefix("bm25, "), fold_Q)
    elif system == "text":
        score = (query * title).sum(1)
    else:
        features = data.words
        if system == "joined":
            outside = [(query * title).sum(1), to_the_middle(data)]
            # an encoder that has seen no label of these lists: its cosines mean the same on both sides of the cut
            outside += [cosines(data, align(data, *data.dev, seed))] if data.dev[0] else []
            features = np.concatenate([features, *(own[:, None] for own in outside)], axis=1)
        for fold in range(FOLDS):
            asked, rest = fold_P == fold, np.flatnonzero(fold_P != fold)
            if system == "aligned":
                lists = ([data.query[row] for row in rest], [data.title[row] for row in rest])
                grades = np.r_[data.dev[2], data.grade[rest]]
                aligner = align(data, [*data.dev[0], *lists[0]], [*data.dev[1], *lists[1]], grades, seed)
                score[asked] = cosines(data, aligner)[asked]
            else:
                teacher = RelevanceTeacher().fit(features[rest], data.grade[rest], data.group[rest], seed=seed)
                score[asked] = teacher.score(features[asked], data.group[asked])
    return {"ndcg": ndcg(score, data).tolist(), "linear": ndcg(score, data, linear=True).tolist(), "chosen": chosen}


def main() -> int:
    bench = Benchmark.from_args("search_zh", __doc__, sources=SOURCES)
    data = Data(quick=bench.quick)
    lines = []
    for seed in bench.seeds:
        own = {
            name: bench.cell({"system": name, "seed": seed}, lambda name=name, seed=seed: measure(data, name, seed)) for name in SYSTEMS
        }
        base = np.asarray(own["bm25, jieba"]["ndcg"])
        draws = np.random.default_rng(0).integers(0, len(base), (DRAWS, len(base)))
        for name in SYSTEMS:
            figure = np.asarray(own[name]["ndcg"])
            spread = (figure - base)[draws].mean(1)
            low, high = (float(np.quantile(spread, share)) for share in (0.025, 0.975))
            bench.row(system=name, metric="ndcg", k=K, value=figure.mean(), n=len(figure), seed=seed)
            bench.row(system=name, variant="linear gains", metric="ndcg", k=K, value=np.mean(own[name]["linear"]), n=len(figure), seed=seed)
            bench.row(system=name, variant="minus bm25, jieba", metric="ndcg", k=K, value=(figure - base).mean(), low=low, high=high, n=len(figure), seed=seed)
            lines.append(
                {"seed": seed, "system": name, "NDCG@10": round(float(figure.mean()), 4), "linear gains": round(float(np.mean(own[name]["linear"])), 4),
                 "minus bm25, jieba": f"{(figure - base).mean():+.4f} ({low:+.4f} to {high:+.4f})", "chosen": ", ".join(own[name]["chosen"])}
            )  # fmt: skip
            if name == "joined" and not bench.quick:
                bench.check(f"seed {seed}: NDCG@10 of joined minus bm25 on jieba, lower end", round(low, 4), at_least=0)
    Console(highlight=False, width=170).print(table("NDCG@10, QBQTC", lines))
    return bench.finish(show_rows=False)


if __name__ == "__main__":
    raise SystemExit(main())
