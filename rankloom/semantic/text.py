"""Item text and the choice of embedder: MiniLM for Latin-script catalogues, hashed TF-IDF + SVD for any script, own vectors.

Pictures come in as vectors of an image encoder by column, beside the text or alone.

Every embedder is `fit(texts, seed) -> (N, D)`, `embed(texts) -> (N, D)`, `arrays()`, and frozen after the fit.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Final, Protocol

import numpy as np
import polars as pl
from numpy.typing import NDArray

from rankloom.config import TextConfig
from rankloom.errors import RankloomError
from rankloom.semantic.hashed import HashedTextEmbedder
from rankloom.semantic.minilm import SentenceEmbedder, minilm_installed
from rankloom.semantic.quantizers.base import FloatArray

_DESCRIPTION_CHARACTERS: Final = 300
_LATIN = re.compile(r"[A-Za-z\u00c0-\u024f]")
_LETTER = re.compile(r"[^\W\d_]", re.UNICODE)


class TextEmbedder(Protocol):
    """Texts to unit vectors."""

    def fit(self, texts: Sequence[str], seed: int = 0) -> FloatArray: ...

    def embed(self, texts: Sequence[str]) -> FloatArray: ...

    def arrays(self) -> dict[str, NDArray[Any]]: ...


class ConcatEmbedder:
    """Several embedders side by side, each at the same weight; the result has unit length."""

    def __init__(self, parts: Sequence[TextEmbedder]) -> None:
        self.parts = list(parts)

    def fit(self, texts: Sequence[str], seed: int = 0) -> FloatArray:
        return _join([part.fit(texts, seed) for part in self.parts])

    def embed(self, texts: Sequence[str]) -> FloatArray:
        return _join([part.embed(texts) for part in self.parts])

    def arrays(self) -> dict[str, NDArray[Any]]:
        return {f"{n}.{name}": value for n, part in enumerate(self.parts) for name, value in part.arrays().items()}


def _join(parts: list[FloatArray]) -> FloatArray:
    joined = np.concatenate(parts, axis=1) / np.sqrt(len(parts))
    return np.ascontiguousarray(joined, dtype=np.float32)


def item_texts(items: pl.DataFrame) -> list[str]:
    """One text per item: title, brand, category path, attributes, the start of the description."""
    parts = [pl.col("title").fill_null("")]
    if "brand" in items.columns:
        parts.append(pl.col("brand").fill_null(""))
    if "category" in items.columns:
        parts.append(pl.col("category").list.join(" ").fill_null(""))
    if "attributes" in items.columns:
        parts.append(pl.lit(attribute_texts(items)))
    if "description" in items.columns:
        parts.append(pl.col("description").fill_null("").str.slice(0, _DESCRIPTION_CHARACTERS))
    texts: list[str] = items.select(pl.concat_str(parts, separator=" . ").alias("text"))["text"].to_list()
    return texts


def attribute_texts(items: pl.DataFrame) -> pl.Series:
    """(I,) the values of each item's attributes in one text, empty where there are none."""
    if "attributes" not in items.columns or not isinstance(items["attributes"].dtype, pl.List):
        return pl.Series("attributes", [""] * items.height, dtype=pl.String)
    values = pl.col("attributes").list.eval(pl.element().struct.field("value")).list.join(" ", ignore_nulls=True)
    return items.select(values.fill_null("")).to_series()


def latin_share(texts: Sequence[str], *, sample: int = 2000) -> float:
    """Share of Latin letters among all letters of a sample of texts."""
    joined = " ".join(texts[:: max(1, len(texts) // sample)])
    letters = len(_LETTER.findall(joined))
    return len(_LATIN.findall(joined)) / letters if letters else 0.0


def resolve_embedder(config: TextConfig, texts: Sequence[str]) -> str:
    """The embedder's name with `auto` decided: MiniLM beside hashed terms where it is installed and the text is Latin."""
    if config.embedder != "auto":
        return config.embedder
    return "minilm+hashed" if minilm_installed() and latin_share(texts) >= 0.9 else "hashed"


def make_embedder(name: str, config: TextConfig, arrays: dict[str, NDArray[Any]] | None = None) -> TextEmbedder:
    """An embedder by name: fresh, or from its frozen `arrays`.

    Raises:
        RankloomError: an unknown name, or a model that is not installed.
    """
    names = name.split("+")
    if len(names) > 1:
        own = [
            None if arrays is None else {k[2:]: v for k, v in arrays.items() if k.startswith(f"{n}.")}
            for n in range(len(names))
        ]
        return ConcatEmbedder([make_embedder(part, config, sub) for part, sub in zip(names, own, strict=True)])
    if name == "hashed":
        return HashedTextEmbedder(config.dim) if arrays is None else HashedTextEmbedder.from_arrays(arrays)
    if name == "minilm" or name.startswith("sentence-transformers:"):
        return SentenceEmbedder(name)
    raise RankloomError(
        f"no text embedder {name!r}",
        place="text.embedder",
        action="choose auto, hashed, minilm, minilm+hashed, column or sentence-transformers:NAME",
        code="unknown-embedder",
    )


def vector_column(items: pl.DataFrame, name: str) -> FloatArray:
    """(N, D) unit vectors from a list[float] column.

    Raises:
        RankloomError: no such column, rows of different widths, nulls or values that are not finite.
    """
    if name not in items.columns:
        raise RankloomError(
            f"items.parquet has no column {name!r}",
            place="text.vector_column",
            action=f"choose one of {', '.join(items.columns)}",
            code="vector-column",
        )
    column = items[name]
    if isinstance(column.dtype, pl.Array):
        column = column.arr.to_list()
    numeric = isinstance(column.dtype, pl.List) and column.dtype.inner.is_numeric()
    widths = column.list.len() if numeric else None
    if widths is None or column.null_count() or widths.n_unique() > 1 or not widths[0]:
        raise RankloomError(
            f"the column {name!r} must hold one list of numbers of the same length for every item",
            place=f"items.parquet, column {name}",
            action="fill the missing vectors, or leave the column out",
            code="vector-shape",
        )
    vectors = column.explode().cast(pl.Float32).to_numpy().reshape(len(column), -1)
    if not np.isfinite(vectors).all():
        bad = int(np.flatnonzero(~np.isfinite(vectors).all(1))[0])
        raise RankloomError(
            f"the vector of item {items['item_id'][bad]!r} holds NaN or infinity",
            place=f"items.parquet, row {bad + 1}, column {name}",
            action="mend the vector",
            code="vector-nan",
        )
    norm = np.linalg.norm(vectors, axis=1, keepdims=True)
    unit: FloatArray = np.divide(vectors, norm, out=np.zeros_like(vectors), where=norm > 1e-8)
    return unit
