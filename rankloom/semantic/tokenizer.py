"""The tokenizer: catalogue and training log in, content vectors, aligned vectors and semantic IDs out.

Text (and its keywords, where `keywords.enabled`) -> content vectors -> collaborative alignment (training pairs only) ->
quantiser -> collision policy. With `khqe.enabled` (OneSearch) queries of the training period are aligned together with the
items and their vectors stand beside the items' when codes are learned: one space and one codebook for both.
Its frozen parts name new items and any query deterministically, without retraining.

Collision policies: `list` lets several items share a SID (serving orders them by prior and selection); `dedup` (TIGER)
appends one more code, the item's place among those that share its SID by prior. Its codebook has a place for the largest
bucket and eight more; a new item takes the next place, and shares the last one when all are taken.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, Literal

import numpy as np
import polars as pl
from numpy.typing import NDArray

from rankloom.config import Config
from rankloom.data.sequences import TRAIN, Sequences
from rankloom.errors import RankloomError
from rankloom.semantic.alignment import Aligner
from rankloom.semantic.ids import SemanticIds, usage_report
from rankloom.semantic.keywords.enhancer import KeywordEnhancer, keywords_of_items, strip_items
from rankloom.semantic.keywords.matching import KeywordMatcher
from rankloom.semantic.keywords.mining import mine
from rankloom.semantic.keywords.searches import training_searches
from rankloom.semantic.khqe.mining import engagement
from rankloom.semantic.khqe.training import gather
from rankloom.semantic.khqe.training import train as align_both
from rankloom.semantic.pairs import Pairs, cooccurrence_pairs, swing_pairs, target_pairs
from rankloom.semantic.quantizers.base import CodeArray, FloatArray, Quantizer, reconstruction_errors
from rankloom.semantic.quantizers.registry import load_quantizer, make_quantizer
from rankloom.semantic.text import (
    TextEmbedder,
    item_texts,
    make_embedder,
    resolve_embedder,
    vector_column,
)

_DEDUP_SPARE: Final = 8


class Tokenizer:
    """See the module's docstring. Build with `fit` or `from_state`.

    Attributes:
        content: (I, D) unit vectors before alignment.
        aligned: (I, A) vectors that were quantised.
        semantic_ids: the codes.
        embedder_name: what `auto` became.
        keywords: the dictionary and its vectors; None where keywords are not fused.
        query_report: with `khqe.enabled`, see `report`; else None.
    """

    def __init__(
        self,
        *,
        config: Config,
        embedder_name: str,
        embedder: TextEmbedder | None,
        aligner: Aligner | None,
        quantizer: Quantizer,
        content: FloatArray,
        aligned: FloatArray,
        semantic_ids: SemanticIds,
        reconstruction: list[float],
        keywords: KeywordEnhancer | None = None,
        query_report: dict[str, Any] | None = None,
    ) -> None:
        self.config = config
        self.embedder_name = embedder_name
        self.embedder = embedder
        self.aligner = aligner
        self.quantizer = quantizer
        self.content = content
        self.aligned = aligned
        self.semantic_ids = semantic_ids
        self.reconstruction = reconstruction
        self.keywords = keywords
        self.query_report = query_report

    @classmethod
    def fit(
        cls,
        items: pl.DataFrame,
        sequences: Sequences,
        config: Config,
        *,
        shown: pl.DataFrame | None = None,
        quiet: bool = False,
    ) -> Tokenizer:
        """Fits every part on the catalogue's text and the TRAIN rows of the log.

        Args:
            shown: with `khqe.enabled`, items that were shown after queries (`khqe.mining.shown_after_queries`).
        """
        name, embedder, keywords, content = _fit_content(items, sequences, config)
        aligner: Aligner | None = None
        aligned = content
        asked = np.zeros((0, content.shape[1]), dtype=np.float32)
        report: dict[str, Any] | None = None
        if config.alignment.enabled:
            aligner = Aligner(content.shape[1], config.alignment, config.seed)
            if config.khqe.enabled:
                material, asked = gather(
                    items, item_texts(items), sequences, config, content_ID=content,
                    embed=lambda texts: _embed_queries(embedder, keywords, content.shape[1], texts),
                    item_pairs=lambda: behaviour_pairs(sequences, config), shown=shown,
                )  # fmt: skip
                align_both(aligner, content, asked, material, config, quiet=quiet)
                aligned = aligner.transform(content)
                # a query of which no word is known has no place
                asked = aligner.transform(asked[np.linalg.norm(asked, axis=1) > 0])
                report = {"n": len(material.queries), "pairs": material.counts(), "least_cosine": material.least}
            else:
                aligned = aligner.fit(content, behaviour_pairs(sequences, config), quiet=quiet)
        quantizer = make_quantizer(config.quantizer, items.height)
        both = np.concatenate([aligned, asked]) if report is not None and config.khqe.codebook == "both" else aligned
        codes = quantizer.fit(both, np.random.default_rng(config.seed), quiet=quiet)[: items.height]
        sizes = quantizer.codebook_sizes
        if report is not None:
            report = {**report, **_queries_beside(codes, quantizer.encode(asked), sizes)}
        trained = (sequences.stage == TRAIN) & sequences.target
        prior = np.bincount(sequences.item[trained], minlength=items.height).astype(np.float32)
        reconstruction = reconstruction_errors(quantizer, aligned, codes)
        if config.quantizer.collision == "dedup":
            codes, sizes = dedup_codes(codes, sizes, prior)
        return cls(
            config=config,
            embedder_name=name,
            embedder=embedder,
            aligner=aligner,
            quantizer=quantizer,
            content=content,
            aligned=aligned,
            semantic_ids=SemanticIds(codes, sizes, prior),
            reconstruction=reconstruction,
            keywords=keywords,
            query_report=report,
        )

    def embed_texts(self, texts: list[str]) -> FloatArray:
        """(N, D) content vectors of free text (queries); zero vectors where only own vectors are used."""
        return _embed_queries(self.embedder, self.keywords, self.content.shape[1], texts)

    def query_sids(self, texts: list[str]) -> CodeArray:
        """(N, L) codes of queries by the frozen parts, in the items' own codebooks; the dedup code names items alone.

        A query of which no word is known gets the codes of the space's middle.
        """
        content = self.embed_texts(texts)
        return self.quantizer.encode(content if self.aligner is None else self.aligner.transform(content))

    def item_sids(self) -> CodeArray:
        """(I, L) codes of the catalogue without the dedup code: what `query_sids` and `sid_vectors` speak of."""
        codes = self.semantic_ids.codes
        return codes[:, :-1] if self.config.quantizer.collision == "dedup" else codes

    def sid_vectors(self, codes: CodeArray) -> FloatArray:
        """(N, A) unit vectors that codes stand for, of items or queries; of the first l levels where l columns are given."""
        vectors = self.quantizer.decode(codes)
        norm = np.linalg.norm(vectors, axis=1, keepdims=True)
        unit: FloatArray = np.divide(vectors, norm, out=np.zeros_like(vectors), where=norm > 1e-8)
        return unit

    def query_vectors(self, texts: list[str], kind: Literal["aligned", "both"]) -> FloatArray:
        """(N, C) free text as the model reads the text of items: in the space of `model_content`."""
        content = self.embed_texts(texts)
        return self._read(content, content if self.aligner is None else self.aligner.transform(content), kind)

    def model_content(self, kind: Literal["aligned", "both"]) -> FloatArray:
        """(I, A) or (I, D + A) what the model reads of the catalogue beside its codes: aligned vectors, or content too."""
        return self._read(self.content, self.aligned, kind)

    def _read(self, content: FloatArray, aligned: FloatArray, kind: Literal["aligned", "both"]) -> FloatArray:
        if kind == "aligned" or self.aligner is None:
            return aligned
        return np.concatenate([content, aligned], axis=1)

    def assign(self, items: pl.DataFrame) -> tuple[FloatArray, FloatArray, CodeArray]:
        """(content, aligned, codes) of new items from the frozen parts; with `dedup` they take the next free code."""
        content = _content(items, self.config, self.embedder, self.keywords)
        if content.shape[1] != self.content.shape[1]:
            raise RankloomError(
                f"the vectors of {self.config.text.vector_column!r} make {content.shape[1]} numbers an item, the model was "
                f"trained on {self.content.shape[1]}",
                place=f"items, column {self.config.text.vector_column}",
                action="make the new vectors with the encoder that made the old ones",
                code="vector-width",
            )
        aligned = content if self.aligner is None else self.aligner.transform(content)
        codes = self.quantizer.encode(aligned)
        if self.config.quantizer.collision == "dedup":
            codes = self._next_free(codes)
        return content, aligned, codes

    def _next_free(self, codes: CodeArray) -> CodeArray:
        """Appends the dedup code: after the highest of the same SID in the catalogue, then in the order given."""
        known = self.semantic_ids.codes
        known = known[np.isin(known[:, 0], codes[:, 0])]
        _, group = np.unique(np.concatenate([known[:, :-1], codes]), axis=0, return_inverse=True)
        group = group.reshape(-1)
        highest = np.full(len(group), -1, dtype=np.int64)
        np.maximum.at(highest, group[: len(known)], known[:, -1])
        own = group[len(known) :]
        place = highest[own] + 1 + _rank_within(own)
        last = np.minimum(place, self.semantic_ids.codebook_sizes[-1] - 1)
        named: CodeArray = np.c_[codes, last].astype(np.int32)
        return named

    def report(self) -> dict[str, Any]:
        """How well the vectors and the codes are kept and used.

        * `relative_reconstruction_error`: per level, see `reconstruction_errors`; of the fit's vectors;
        * `collision`: the policy, and with `dedup` what it had to part: `shared_sids` says `icr`, `largest_bucket` and
          `distinct_sids` of the codes without the dedup code;
        * `keywords`: of which types and sources, where they are fused;
        * `queries`, with `khqe.enabled`: `n` queries of the training period, `pairs` per loss, `least_cosine` that the filter
          let through, `distinct_sids` of theirs, `with_items`: share of queries whose SID names an item too, `cur` per level
          and `cur_total` of queries and items together;
        * the rest as in `usage_report`, dedup code included.
        """
        ids = self.semantic_ids
        shared = ids
        if self.config.quantizer.collision == "dedup":
            shared = SemanticIds(ids.codes[:, :-1], ids.codebook_sizes[:-1], ids.prior)
        before = usage_report(shared)
        return {
            "embedder": self.embedder_name,
            "quantizer": self.config.quantizer.kind,
            "last": self.config.quantizer.last,
            "collision": self.config.quantizer.collision,
            **({} if self.keywords is None else {"keywords": self.keywords.dictionary.report()}),
            **({} if self.query_report is None else {"queries": self.query_report}),
            "shared_sids": {name: before[name] for name in ("icr", "largest_bucket", "distinct_sids")},
            "relative_reconstruction_error": self.reconstruction,
            **usage_report(ids),
        }

    def summary(self) -> str:
        """The report in a sentence or two."""
        own = self.report()
        shared = own["shared_sids"]
        name = own["quantizer"] + ("" if own["last"] == "none" else f" + {own['last']}")
        parts = [
            f"semantic IDs: {name}, {'x'.join(map(str, own['codebook_sizes']))} codes, text by {own['embedder']}",
            f"{shared['icr']:.1%} of items have one of their own (ICR), at most {shared['largest_bucket']} share one",
            f"codes in use {', '.join(f'{share:.0%}' for share in own['cur'])} by level (CUR), {own['cur_total']:.2g} of all IDs",
            f"{self.reconstruction[-1]:.1%} of the vectors' variance is not kept",
        ]
        if own["collision"] == "dedup":
            parts[1] = parts[1].replace("(ICR)", "(ICR) before the dedup code")
        return "; ".join(parts)

    def state(self) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
        """(arrays for a safetensors file, JSON-able settings)."""
        arrays: dict[str, NDArray[Any]] = {
            "codes": self.semantic_ids.codes,
            "prior": self.semantic_ids.prior,
            "content": self.content,
            "aligned": self.aligned,
        }
        groups = {
            "embedder": {} if self.embedder is None else self.embedder.arrays(),
            "aligner": {} if self.aligner is None else self.aligner.arrays(),
            "quantizer": self.quantizer.arrays(),
            "keywords": {} if self.keywords is None else self.keywords.arrays(),
        }
        for group, own in groups.items():
            arrays.update({f"{group}.{name}": value for name, value in own.items()})
        meta = {
            "config": self.config.model_dump(mode="json"),
            "embedder_name": self.embedder_name,
            "codebook_sizes": list(self.semantic_ids.codebook_sizes),
            "reconstruction": self.reconstruction,
            "query_report": self.query_report,
            "report": self.report(),
        }
        return arrays, meta

    @classmethod
    def from_state(cls, arrays: dict[str, NDArray[Any]], meta: dict[str, Any]) -> Tokenizer:
        """The tokenizer that `state` described."""
        config = Config.parse(meta["config"], place="semantic_ids")
        name = str(meta["embedder_name"])

        def group(prefix: str) -> dict[str, NDArray[Any]]:
            return {key[len(prefix) + 1 :]: value for key, value in arrays.items() if key.startswith(prefix + ".")}

        embedder = None if name == "column" else make_embedder(name, config.text, group("embedder"))
        aligner = Aligner.from_arrays(group("aligner"), config.alignment) if group("aligner") else None
        return cls(
            config=config,
            embedder_name=name,
            embedder=embedder,
            aligner=aligner,
            quantizer=load_quantizer(config.quantizer, group("quantizer")),
            content=arrays["content"],
            aligned=arrays["aligned"],
            semantic_ids=SemanticIds(arrays["codes"], tuple(meta["codebook_sizes"]), arrays["prior"]),
            reconstruction=list(meta["reconstruction"]),
            keywords=KeywordEnhancer.from_arrays(group("keywords"), config.keywords) if group("keywords") else None,
            query_report=meta.get("query_report"),
        )


def _embed_queries(
    embedder: TextEmbedder | None, keywords: KeywordEnhancer | None, width: int, texts: Sequence[str]
) -> FloatArray:
    if embedder is None:
        return np.zeros((len(texts), width), dtype=np.float32)
    vectors = embedder.embed(texts)
    if keywords is not None:
        vectors = keywords.queries(texts, vectors)
    missing = width - vectors.shape[1]
    return np.pad(vectors, ((0, 0), (0, missing))) if missing else vectors


def _queries_beside(items: CodeArray, queries: CodeArray, sizes: tuple[int, ...]) -> dict[str, Any]:
    """How queries use the codes that they share with items; see `Tokenizer.report`."""
    both = np.concatenate([items, queries])
    usage = usage_report(SemanticIds(both, sizes, np.zeros(len(both), dtype=np.float32)))
    _, number = np.unique(both, axis=0, return_inverse=True)
    number = number.reshape(-1)
    own, of_items = number[len(items) :], number[: len(items)]
    return {
        "distinct_sids": len(np.unique(own)),
        "with_items": float(np.isin(own, of_items).mean()) if len(own) else 0.0,
        "cur": usage["cur"],
        "cur_total": usage["cur_total"],
    }


def _fit_content(
    items: pl.DataFrame, sequences: Sequences, config: Config
) -> tuple[str, TextEmbedder | None, KeywordEnhancer | None, FloatArray]:
    own = None if config.text.vector_column is None else vector_column(items, config.text.vector_column)
    if config.text.embedder == "column":
        assert own is not None
        return "column", None, None, own
    asked = list(engagement(sequences).queries) if config.khqe.enabled and config.khqe.read_queries else []
    if not config.keywords.enabled:
        texts = item_texts(items)
        name = resolve_embedder(config.text, texts)
        embedder = make_embedder(name, config.text)
        return name, embedder, None, _beside(embedder.fit([*texts, *asked], config.seed)[: items.height], own)
    dictionary = mine(items, config.keywords, searches=training_searches(sequences))
    matcher = KeywordMatcher(dictionary, numbers=config.keywords.numbers)
    found = keywords_of_items(matcher, items, config.keywords)
    texts = item_texts(strip_items(items, found, config.keywords))
    name = resolve_embedder(config.text, texts)
    embedder = make_embedder(name, config.text)
    content = embedder.fit([*texts, *asked], config.seed)[: items.height]
    keywords = KeywordEnhancer.fit(matcher, embedder.embed, config.keywords)
    return name, embedder, keywords, _beside(keywords.items(found, content), own)


def _content(
    items: pl.DataFrame, config: Config, embedder: TextEmbedder | None, keywords: KeywordEnhancer | None
) -> FloatArray:
    own = None if config.text.vector_column is None else vector_column(items, config.text.vector_column)
    if embedder is None:
        assert own is not None
        return own
    if keywords is None:
        return _beside(embedder.embed(item_texts(items)), own)
    found = keywords_of_items(keywords.matcher, items, config.keywords)
    content = embedder.embed(item_texts(strip_items(items, found, config.keywords)))
    return _beside(keywords.items(found, content), own)


def _beside(content: FloatArray, own: FloatArray | None) -> FloatArray:
    if own is None:
        return content
    both: FloatArray = (np.concatenate([content, own], axis=1) / np.sqrt(2)).astype(np.float32)
    return both


def behaviour_pairs(sequences: Sequences, config: Config) -> Pairs:
    asked = config.alignment.pairs
    swing = swing_pairs(sequences, seed=config.seed) if {"swing", "target"} & set(asked) else None
    parts = []
    if swing is not None and "swing" in asked:
        parts.append(swing)
    if swing is not None and "target" in asked:
        parts.append(target_pairs(sequences, swing))
    if "cooccurrence" in asked:
        parts.append(cooccurrence_pairs(sequences))
    # each source weighs the same, whatever its scale
    scaled = [(i, j, w / max(float(w.sum()), 1e-9)) for i, j, w in parts]
    i, j, w = (np.concatenate(columns) for columns in zip(*scaled, strict=True)) if scaled else ([], [], [])
    return np.asarray(i), np.asarray(j), np.asarray(w, dtype=np.float32)


def dedup_codes(
    codes: CodeArray, sizes: tuple[int, ...], prior: NDArray[np.float32]
) -> tuple[CodeArray, tuple[int, ...]]:
    """Appends the rank of an item among those that share its SID, by prior; leaves room for new items."""
    order = np.lexsort((np.arange(len(codes)), -prior))
    _, group = np.unique(codes, axis=0, return_inverse=True)
    rank = np.empty(len(codes), dtype=np.int32)
    rank[order] = _rank_within(group.reshape(-1)[order])
    return np.c_[codes, rank].astype(np.int32), (*sizes, int(rank.max(initial=0)) + 1 + _DEDUP_SPARE)


def _rank_within(group: NDArray[np.int64]) -> NDArray[np.int64]:
    """How many earlier rows are of the same group."""
    order = np.argsort(group, kind="stable")
    ordered = group[order]
    opens = np.r_[True, ordered[1:] != ordered[:-1]][: len(group)]
    start = np.maximum.accumulate(np.where(opens, np.arange(len(group)), 0))
    rank = np.empty(len(group), dtype=np.int64)
    rank[order] = np.arange(len(group)) - start
    return rank
