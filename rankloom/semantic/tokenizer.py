"""The tokenizer: catalogue and training log in, content vectors, aligned vectors and semantic IDs out.

Text -> content vectors -> collaborative alignment (training pairs only) -> residual quantiser -> collision policy.
Its frozen parts name new items deterministically, without retraining.

Collision policies: `list` lets several items share a SID (serving orders them by prior and selection); `dedup` appends one
more code that makes every SID unique.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import polars as pl
from numpy.typing import NDArray

from rankloom.config import Config
from rankloom.data.sequences import TRAIN, Sequences
from rankloom.errors import RankloomError
from rankloom.semantic.alignment import Aligner
from rankloom.semantic.ids import SemanticIds, usage_report
from rankloom.semantic.pairs import Pairs, cooccurrence_pairs, swing_pairs
from rankloom.semantic.quantizers.base import CodeArray, FloatArray
from rankloom.semantic.quantizers.rq_kmeans import RQKMeans, codebook_sizes_for
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
    """

    def __init__(
        self,
        *,
        config: Config,
        embedder_name: str,
        embedder: TextEmbedder | None,
        aligner: Aligner | None,
        quantizer: RQKMeans,
        content: FloatArray,
        aligned: FloatArray,
        semantic_ids: SemanticIds,
        reconstruction: list[float],
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

    @classmethod
    def fit(cls, items: pl.DataFrame, sequences: Sequences, config: Config, *, quiet: bool = False) -> Tokenizer:
        """Fits every part on the catalogue's text and the TRAIN rows of the log."""
        name, embedder, content = _fit_content(items, config)
        aligner: Aligner | None = None
        aligned = content
        if config.alignment.enabled:
            aligner = Aligner(content.shape[1], config.alignment, config.seed)
            aligned = aligner.fit(content, _pairs(sequences, config), quiet=quiet)
        sizes = config.quantizer.codebook_sizes or codebook_sizes_for(items.height)
        rng = np.random.default_rng(config.seed)
        quantizer = RQKMeans(
            sizes, balanced_levels=config.quantizer.balanced_levels, iterations=config.quantizer.iterations
        )
        codes = quantizer.fit(aligned, rng)
        trained = (sequences.stage == TRAIN) & sequences.target
        prior = np.bincount(sequences.item[trained], minlength=items.height).astype(np.float32)
        reconstruction = _reconstruction(quantizer, aligned, codes)
        if config.quantizer.collision == "dedup":
            codes, sizes = _dedup(codes, tuple(sizes), prior)
        return cls(
            config=config,
            embedder_name=name,
            embedder=embedder,
            aligner=aligner,
            quantizer=quantizer,
            content=content,
            aligned=aligned,
            semantic_ids=SemanticIds(codes, tuple(sizes), prior),
            reconstruction=reconstruction,
        )

    def embed_texts(self, texts: list[str]) -> FloatArray:
        """(N, D) content vectors of free text (queries); zero vectors where only own vectors are used."""
        if self.embedder is None:
            return np.zeros((len(texts), self.content.shape[1]), dtype=np.float32)
        vectors = self.embedder.embed(texts)
        missing = self.content.shape[1] - vectors.shape[1]
        return np.pad(vectors, ((0, 0), (0, missing))) if missing else vectors

    def assign(self, items: pl.DataFrame) -> tuple[FloatArray, FloatArray, CodeArray]:
        """(content, aligned, codes) of new items from the frozen parts; with `dedup` they take the next free code."""
        content = _content(items, self.config, self.embedder)
        aligned = content if self.aligner is None else self.aligner.transform(content)
        codes = self.quantizer.encode(aligned)
        if self.config.quantizer.collision == "dedup":
            codes = self._next_free(codes)
        return content, aligned, codes

    def _next_free(self, codes: CodeArray) -> CodeArray:
        used: dict[tuple[int, ...], int] = {}
        for *prefix, last in self.semantic_ids.codes.tolist():
            key = tuple(prefix)
            used[key] = max(used.get(key, -1), last)
        size = self.semantic_ids.codebook_sizes[-1]
        out = []
        for row in codes.tolist():
            key = tuple(row)
            used[key] = min(used.get(key, -1) + 1, size - 1)
            out.append([*row, used[key]])
        return np.asarray(out, dtype=np.int32).reshape(len(codes), -1)

    def report(self) -> dict[str, Any]:
        """Reconstruction error by level (relative to the vectors' variance) and how the codes are used."""
        return {
            "embedder": self.embedder_name,
            "relative_reconstruction_error": self.reconstruction,
            **usage_report(self.semantic_ids),
        }

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
        }
        for group, own in groups.items():
            arrays.update({f"{group}.{name}": value for name, value in own.items()})
        meta = {
            "config": self.config.model_dump(mode="json"),
            "embedder_name": self.embedder_name,
            "codebook_sizes": list(self.semantic_ids.codebook_sizes),
            "reconstruction": self.reconstruction,
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
            quantizer=RQKMeans.from_arrays(group("quantizer")),
            content=arrays["content"],
            aligned=arrays["aligned"],
            semantic_ids=SemanticIds(arrays["codes"], tuple(meta["codebook_sizes"]), arrays["prior"]),
            reconstruction=list(meta["reconstruction"]),
        )


def _fit_content(items: pl.DataFrame, config: Config) -> tuple[str, TextEmbedder | None, FloatArray]:
    own = None if config.text.vector_column is None else vector_column(items, config.text.vector_column)
    if config.text.embedder == "column":
        if own is None:
            raise RankloomError(
                "text.embedder is `column` but text.vector_column names none",
                place="text.vector_column",
                action="set text.vector_column to a list[float] column of items.parquet",
                code="vector-column",
            )
        return "column", None, own
    texts = item_texts(items)
    name = resolve_embedder(config.text, texts)
    embedder = make_embedder(name, config.text)
    content = embedder.fit(texts, config.seed)
    if own is not None:
        content = (np.concatenate([content, own], axis=1) / np.sqrt(2)).astype(np.float32)
    return name, embedder, content


def _content(items: pl.DataFrame, config: Config, embedder: TextEmbedder | None) -> FloatArray:
    own = None if config.text.vector_column is None else vector_column(items, config.text.vector_column)
    if embedder is None:
        assert own is not None
        return own
    content = embedder.embed(item_texts(items))
    if own is not None:
        content = (np.concatenate([content, own], axis=1) / np.sqrt(2)).astype(np.float32)
    return content


def _pairs(sequences: Sequences, config: Config) -> Pairs:
    parts = []
    if "swing" in config.alignment.pairs:
        parts.append(swing_pairs(sequences, seed=config.seed))
    if "cooccurrence" in config.alignment.pairs:
        parts.append(cooccurrence_pairs(sequences))
    # each source weighs the same, whatever its scale
    scaled = [(i, j, w / max(float(w.sum()), 1e-9)) for i, j, w in parts]
    i, j, w = (np.concatenate(columns) for columns in zip(*scaled, strict=True)) if scaled else ([], [], [])
    return np.asarray(i), np.asarray(j), np.asarray(w, dtype=np.float32)


def _reconstruction(quantizer: RQKMeans, vectors: FloatArray, codes: CodeArray) -> list[float]:
    residual = vectors.copy()
    total = float(((vectors - vectors.mean(0)) ** 2).sum()) or 1.0
    errors = []
    for level, centroids in enumerate(quantizer.centroids):
        residual -= centroids[codes[:, level]]
        errors.append(float((residual**2).sum()) / total)
    return errors


def _dedup(codes: CodeArray, sizes: tuple[int, ...], prior: NDArray[np.float32]) -> tuple[CodeArray, tuple[int, ...]]:
    """Appends the rank of an item among those that share its SID, by prior; leaves room for new items."""
    order = np.lexsort((np.arange(len(codes)), -prior, *codes.T[::-1]))
    ordered = codes[order]
    opens = np.r_[True, (ordered[1:] != ordered[:-1]).any(1)]
    start = np.maximum.accumulate(np.where(opens, np.arange(len(codes)), 0))
    rank = np.empty(len(codes), dtype=np.int32)
    rank[order] = np.arange(len(codes)) - start
    return np.c_[codes, rank].astype(np.int32), (*sizes, int(rank.max(initial=0)) + 1 + _DEDUP_SPARE)
