"""The engines of the benchmarks on judged sets: BM25, dense vectors, their fusion, KHQE's encoder and re-ranker, and our model.

* `bm25`: bm25s over title, brand and category (`default`), over all text, and `tuned`: k1, b and which text by the first measure on
  the part's training questions (at most 1,000; of a large catalogue on 200,000 items);
* `dense`: cosine of a text encoder that is not trained here; `rrf`: its reciprocal rank fusion with tuned BM25, a thousand of each;
* `aligned`: hashed text through the projection of KHQE, trained on the graded training pairs (q2i, rank, relevance);
* `joined`: KHQE's relevance model (rankloom/semantic/khqe/teacher.py) over the first 100 of tuned BM25 and the first 50 of an aligned
  encoder; half of the training questions aligns that encoder, the other half teaches the model, so that it sees cosines as they are
  for new queries. Candidates that nobody judged count as irrelevant, in its lessons as in the measure;
* `rankloom`: `rankloom train` on the part's log, then what `rankloom search` answers; `rankloom-generator` is without selection.

Shapes: B questions of a block, Q questions, I items, D width, K length of a list.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cache, cached_property
from pathlib import Path
from typing import Any, Final

import numpy as np
from _common import Benchmark
from _judged import Part, Questions, Study, sample
from numpy.typing import NDArray

from rankloom.config import Config, TextConfig
from rankloom.evaluation.search.judged import UNJUDGED, Judgements
from rankloom.evaluation.search.lexical import BS, DEFAULT_B, DEFAULT_K1, K1S, Index
from rankloom.evaluation.search.systems import DEPTH
from rankloom.evaluation.search.words import Chinese, all_terms, terms
from rankloom.evaluation.systems import FloatArray, IntArray, top_items
from rankloom.pipeline import train as train_model
from rankloom.progress import track
from rankloom.recommender import Rankloom
from rankloom.requests import Request
from rankloom.semantic.alignment import Aligner
from rankloom.semantic.hashed import HashedTextEmbedder
from rankloom.semantic.khqe.evidence import Evidence
from rankloom.semantic.khqe.mining import Engagement, ranked_triples, taken_pairs
from rankloom.semantic.khqe.relevance import Scored
from rankloom.semantic.khqe.teacher import RelevanceTeacher
from rankloom.semantic.khqe.training import Material, train
from rankloom.semantic.minilm import minilm_installed
from rankloom.semantic.text import TextEmbedder, make_embedder

TUNING_QUESTIONS: Final = 1_000
TUNING_ITEMS: Final = 200_000
TEACHER_QUESTIONS: Final = 1_000
LEXICAL_CANDIDATES, ALIGNED_CANDIDATES = 100, 50
ALIGNMENT_EPOCHS: Final = 2
_FUSION: Final = 60.0  # Cormack et al. 2009
_BLOCK_NUMBERS: Final = 50_000_000
_BATCH: Final = 64
QUICK: Final = ("training.max_epochs=2", "training.min_steps=40", "text.embedder=hashed")


def names(bench: Benchmark, study: Study) -> Iterator[tuple[str, str, bool]]:
    """System, variant, and whether a seed changes it."""
    every = [
        ("bm25", "default", False), ("bm25", "default, all text", False), ("bm25", "tuned", False), ("aligned", "hashed text", True),
        ("joined", "words and vectors", True), ("rankloom", "search", True), ("rankloom-generator", "search", True),
    ]  # fmt: skip
    dense = dense_name(bench, study)
    if dense is not None:
        every[3:3] = [("dense", dense, False), ("rrf", f"tuned bm25 and {dense}", False)]
    for system, variant, drawn in every:
        asked = bench.args.engines is None or system in bench.args.engines
        if asked and not (bench.args.no_model and system.startswith("rankloom")):
            yield system, variant, drawn


def dense_name(bench: Benchmark, study: Study) -> str | None:
    """The dense engine's encoder. None where none was named and MiniLM, which reads English, does not serve; a quick run takes hashed text."""
    named: str | None = bench.args.dense
    if named is None:
        named = "hashed" if bench.quick else "minilm" if minilm_installed() and not study.chinese else None
    return named


class Engines:
    """All engines of a study; what several of them stand on is made once."""

    def __init__(self, bench: Benchmark, study: Study) -> None:
        self.bench, self.study, self.quick = bench, study, bench.quick
        self.chinese: Chinese = "jieba" if study.chinese else "bigrams"
        self._tuned: dict[str, tuple[float, float, bool]] = {}
        self._aligners: dict[tuple[str, str, int], tuple[Aligner, FloatArray]] = {}

    def settings(self, system: str) -> dict[str, Any]:
        """What else decides an engine's figures, for the key of its cells."""
        if system.startswith("rankloom"):
            return {"preset": self.preset, "set": " ".join(self.bench.args.set)}
        return {}

    def lists(self, part: Part, system: str, variant: str, seed: int) -> tuple[IntArray, str]:
        """(Q, K) the best items for the part's questions, -1 where fewer; and what was chosen, in words."""
        asked = self.study.questions.take(part.asked)
        k = self.study.longest
        if system == "bm25":
            k1, b, long = (
                self.tuned(part) if variant == "tuned" else (DEFAULT_K1, DEFAULT_B, variant.endswith("all text"))
            )
            chosen = f"k1 {k1:g} b {b:g} {'all text' if long else 'title'}" if variant == "tuned" else ""
            return self.lexical(asked.text, k1, b, long, k)[0], chosen
        if system == "dense":
            return self.nearest(asked, k), ""
        if system == "rrf":
            depth = min(DEPTH, self.study.items.height)
            return fuse([self.lexical(asked.text, *self.tuned(part), depth)[0], self.nearest(asked, depth)], k), ""
        if system == "aligned":
            aligner, item_ID = self.aligned(part, "all", part.learn, seed)
            return self.by_cosine(aligner.transform(self.text.embed(list(asked.text))), item_ID, k), ""
        if system == "joined":
            return self.joined(part, asked, seed, k), ""
        return self.searched(part, asked, seed, k, generator=system == "rankloom-generator"), ""

    # -- words ---------------------------------------------------------------------------------------------------------

    @cache  # noqa: B019  # lives as long as the run
    def corpus(self, long: bool) -> list[list[str]]:
        return all_terms(self.study.long if long else self.study.short, chinese=self.chinese)

    def lexical(self, queries: Sequence[str], k1: float, b: float, long: bool, k: int) -> tuple[IntArray, FloatArray]:
        """(Q, k) items by BM25, -1 where no term is shared, and their scores."""
        return self._search(self._index(k1, b, long), queries, k, f"bm25, k1 {k1:g} b {b:g}")

    @cache  # noqa: B019
    def _index(self, k1: float, b: float, long: bool) -> Index:
        return Index(self.corpus(long), k1, b, chinese=self.chinese)

    def _search(
        self, index: Index, queries: Sequence[str], k: int, name: str, *, quiet: bool = False
    ) -> tuple[IntArray, FloatArray]:
        items = np.full((len(queries), k), -1, dtype=np.int32)
        scores = np.zeros((len(queries), k), dtype=np.float32)
        for row, query in enumerate(track(queries, name, unit="queries", quiet=quiet)):
            known = [term for term in terms(query, chinese=self.chinese) if term in index.engine.vocab_dict]
            if not known:
                continue
            own = np.asarray(index.engine.get_scores(known), dtype=np.float32)
            own[own <= 0] = -np.inf
            items[row] = top_items(own[None], k)[0]
            scores[row] = np.where(items[row] >= 0, own[np.maximum(items[row], 0)], 0)
        return items, scores

    def tuned(self, part: Part) -> tuple[float, float, bool]:
        """k1, b and whether all text is read: the best by the study's first measure on the part's training questions."""
        if part.name not in self._tuned:
            learn = part.learn.take(sample(len(part.learn), TUNING_QUESTIONS))
            rows, judged = self._tuning_items(learn.judged)
            measure = self.study.measures[0]
            best, chosen = -1.0, (DEFAULT_K1, DEFAULT_B, False)
            grid = [(k1, b, long) for long in (False, True) for k1 in K1S for b in BS]
            for k1, b, long in track(grid, f"tuning bm25, {part.name}", unit="settings"):
                corpus = self.corpus(long)
                index = Index(corpus if rows is None else [corpus[row] for row in rows], k1, b, chinese=self.chinese)
                lists, _ = self._search(index, learn.text, measure.k, "", quiet=True)
                figure = float(measure.of(lists, judged).mean())
                if figure > best:
                    best, chosen = figure, (k1, b, long)
            self._tuned[part.name] = chosen
        return self._tuned[part.name]

    def _tuning_items(self, judged: Judgements) -> tuple[NDArray[np.int64] | None, Judgements]:
        """Rows to tune on, None for all, and the judgements by their numbers."""
        n = self.study.items.height
        if n <= TUNING_ITEMS:
            return None, judged
        wanted = np.unique(judged.item[judged.item < n])
        others = np.setdiff1d(np.arange(n), wanted, assume_unique=True)
        rows = np.sort(np.r_[wanted, others[sample(len(others), max(0, TUNING_ITEMS - len(wanted)))]])
        # what the catalogue lacks stays beyond the end
        item = np.where(judged.item < n, np.searchsorted(rows, judged.item), judged.item)
        return rows, Judgements.of(judged.query, item, judged.grade, len(judged))

    # -- vectors -------------------------------------------------------------------------------------------------------

    @cached_property
    def dense(self) -> TextEmbedder:
        return make_embedder(dense_name(self.bench, self.study) or "hashed", TextConfig())

    @cached_property
    def dense_vectors(self) -> FloatArray:
        return self.dense.fit(list(self.study.short), 0)

    def nearest(self, asked: Questions, k: int) -> IntArray:
        """(Q, k) nearest items by the dense engine's encoder, which some encoders fit on the catalogue first."""
        vectors = self.dense_vectors
        return self.by_cosine(self.dense.embed(list(asked.text)), vectors, k)

    @cached_property
    def text(self) -> HashedTextEmbedder:
        return HashedTextEmbedder(64 if self.quick else 256)

    @cached_property
    def text_vectors(self) -> FloatArray:
        return self.text.fit(list(self.study.long))

    def by_cosine(self, query_QD: FloatArray, item_ID: FloatArray, k: int) -> IntArray:
        """(Q, k) nearest items over the whole catalogue."""
        block = max(1, _BLOCK_NUMBERS // len(item_ID))
        out = np.full((len(query_QD), k), -1, dtype=np.int32)
        for begin in track(range(0, len(query_QD), block), "nearest vectors", unit="blocks"):
            part = slice(begin, begin + block)
            out[part] = top_items((query_QD[part] @ item_ID.T).astype(np.float32), k)
        return out

    def aligned(self, part: Part, name: str, learn: Questions, seed: int) -> tuple[Aligner, FloatArray]:
        """The projection trained on graded pairs, and the catalogue through it."""
        key = (part.name, name, seed)
        if key not in self._aligners:
            content = self.text_vectors
            judged = learn.judged
            queries = tuple(dict.fromkeys(learn.text))
            number = {text: at for at, text in enumerate(queries)}
            kept = judged.item < self.study.items.height
            query = np.asarray([number[text] for text in learn.text], dtype=np.int64)[judged.query][kept]
            item, grade = judged.item[kept], judged.grade[kept]
            own = Engagement(
                queries, query, item, grade.astype(np.int8), (grade >= self.study.taken).astype(np.float32)
            )
            graded = Scored(query, item, (grade / self.study.top).astype(np.float32))
            material = Material(queries, q2i=taken_pairs(own), ranked=ranked_triples(own, seed), graded=graded)
            config = Config.preset_config("tiny" if self.quick else "small").with_overrides(
                [f"seed={seed}", "khqe.enabled=true", f"alignment.epochs={ALIGNMENT_EPOCHS}"]
            )
            aligner = Aligner(content.shape[1], config.alignment, seed)
            train(aligner, content, self.text.embed(list(queries)), material, config)
            self._aligners = {key: (aligner, aligner.transform(content))}
        return self._aligners[key]

    # -- the re-ranker -------------------------------------------------------------------------------------------------

    @cached_property
    def evidence(self) -> Evidence:
        return Evidence().fit(self.study.short)

    def joined(self, part: Part, asked: Questions, seed: int, k: int) -> IntArray:
        """(Q, k) candidates of words and vectors, ordered by the relevance model."""
        shuffled = np.random.default_rng(seed).permutation(len(part.learn))
        half = len(shuffled) // 2
        aligner, item_ID = self.aligned(part, "half", part.learn.take(shuffled[:half]), seed)
        lessons = part.learn.take(shuffled[half : half + TEACHER_QUESTIONS])
        lists = self._candidates(part, lessons, aligner, item_ID)
        features, group = self._features(lessons, lists, aligner, item_ID)
        grade = lessons.judged.grades(lists)
        teacher = RelevanceTeacher().fit(features, np.where(grade == UNJUDGED, 0, grade)[lists >= 0], group, seed=seed)
        lists = self._candidates(part, asked, aligner, item_ID)
        features, group = self._features(asked, lists, aligner, item_ID)
        score = np.full(lists.shape, -np.inf, dtype=np.float32)
        score[lists >= 0] = teacher.score(features, group)
        place = top_items(score, k)
        return np.where(place >= 0, np.take_along_axis(lists, np.maximum(place, 0), 1), -1)

    def _candidates(self, part: Part, asked: Questions, aligner: Aligner, item_ID: FloatArray) -> IntArray:
        """(Q, 150) items of tuned BM25, then those that only vectors find; -1 where fewer."""
        n = self.study.items.height
        words, _ = self.lexical(asked.text, *self.tuned(part), min(LEXICAL_CANDIDATES, n))
        near = self.by_cosine(aligner.transform(self.text.embed(list(asked.text))), item_ID, min(ALIGNED_CANDIDATES, n))
        again = (near[:, :, None] == words[:, None, :]).any(2)
        return np.concatenate([words, np.where(again, -1, near)], axis=1)

    def _features(
        self, asked: Questions, lists: IntArray, aligner: Aligner, item_ID: FloatArray
    ) -> tuple[FloatArray, NDArray[np.int64]]:
        """Evidence of every candidate, and the question each belongs to."""
        group, _ = np.nonzero(lists >= 0)
        item = lists[lists >= 0]
        text = self.text.embed(list(asked.text))
        vectors = ((text, self.text_vectors), (aligner.transform(text), item_ID))
        parts = []
        size = 20_000
        for begin in track(range(0, len(item), size), "evidence of words", unit="blocks"):
            g, i = group[begin : begin + size], item[begin : begin + size]
            cosines = [(query_QD[g] * own_ID[i]).sum(1) for query_QD, own_ID in vectors]
            parts.append(self.evidence([asked.text[row] for row in g], [self.study.short[row] for row in i], cosines))
        return np.concatenate(parts), group

    # -- our model -----------------------------------------------------------------------------------------------------

    @property
    def preset(self) -> str:
        return str(self.bench.args.preset or ("tiny" if self.quick else "small"))

    def searched(self, part: Part, asked: Questions, seed: int, k: int, *, generator: bool) -> IntArray:
        """(Q, k) what `rankloom search` answers, for the asker's history where there is one."""
        model = Rankloom.from_pretrained(self._trained(part, seed))
        if generator:
            model.weights = model.generator_weights
            chosen = model.search_choices
            model.search_choices = replace(chosen, weights=chosen.generator_weights)
        row_of = {item: row for row, item in enumerate(self.study.items["item_id"].to_list())}
        out = np.full((len(asked), k), -1, dtype=np.int32)
        for begin in track(range(0, len(asked), _BATCH), f"rankloom search, {part.name}", unit="batches"):
            places = range(begin, min(begin + _BATCH, len(asked)))
            replies = model.recommend_batch(
                [
                    Request(
                        user=None if asked.user is None else asked.user[place], history=() if asked.history is None else asked.history[place],
                        k=k, query=asked.text[place], surface="search", seen="allow", at=None if asked.at is None else asked.at[place],
                    )
                    for place in places
                ]
            )  # fmt: skip
            for place, reply in zip(places, replies, strict=True):
                rows = [row_of[item.item_id] for item in reply.items][:k]
                out[place, : len(rows)] = rows
        return out

    def _trained(self, part: Part, seed: int) -> Path:
        """The model folder of a part and seed: kept, gone on with, or trained. A change of what it stands on makes another folder."""
        own = f"{self.study.stamp} {self.preset} {self.bench.args.set} {self.bench.store.fingerprint}"
        home = Path(self.bench.args.folder) / hashlib.sha256(own.encode()).hexdigest()[:12]
        model = home / f"model-{part.name.replace(' ', '-')}-{seed}"
        if not (model / "manifest.json").exists():
            shop = home / f"shop-{part.name.replace(' ', '-')}"
            if not (shop / "shop.json").exists():
                part.log(shop)
            config = Config.preset_config(self.preset).with_overrides(
                [
                    f"seed={seed}",
                    "data.split=time",
                    "data.test_share=0.01",
                    *(QUICK if self.quick else ()),
                    *self.bench.args.set,
                ]
            )
            begun = model.with_name(f"{model.name}.training").exists()
            train_model(shop, model, config, resume=begun, say=lambda line: print(f"    {line}", flush=True))
        return model


def fuse(lists: Sequence[IntArray], k: int) -> IntArray:
    """(Q, k) reciprocal rank fusion; equal sums in the order of item numbers."""
    out = np.full((len(lists[0]), k), -1, dtype=np.int32)
    for row in range(len(out)):
        own = [found[row][found[row] >= 0] for found in lists]
        item = np.concatenate(own)
        worth = np.concatenate([1 / (_FUSION + 1 + np.arange(len(found))) for found in own])
        kept, place = np.unique(item, return_inverse=True)
        total = np.bincount(place.reshape(-1), weights=worth, minlength=len(kept))
        best = np.lexsort((kept, -total))[:k]
        out[row, : len(best)] = kept[best]
    return out
