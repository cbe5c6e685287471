"""A language-neutral text embedder without weights: hashed TF-IDF, then SVD.

Terms are words, word pairs and the four-letter starts of long words for spaced scripts, and character uni-, bi- and
trigrams for Chinese, Japanese and Korean runs, after NFKC folding. Terms hash into a fixed number of buckets, so any
later text embeds with the frozen parts.
"""

from __future__ import annotations

import re
import unicodedata
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from rankloom.semantic.quantizers.base import FloatArray

_CJK = r"\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af\uf900-\ufaff"
_RUNS = re.compile(rf"[{_CJK}]+|[^\W_{_CJK}]+", re.UNICODE)
_IS_CJK = re.compile(rf"[{_CJK}]")


def terms(text: str) -> list[str]:
    """The terms of a text, in order, with repeats."""
    out: list[str] = []
    previous = ""
    for run in _RUNS.findall(unicodedata.normalize("NFKC", text).lower()):
        if _IS_CJK.match(run):
            for n in (1, 2, 3):
                out.extend(run[i : i + n] for i in range(len(run) - n + 1))
            previous = ""
            continue
        out.append(run)
        if len(run) > 5:
            out.append(run[:4] + "*")
        if previous:
            out.append(previous + " " + run)
        previous = run
    return out


class HashedTextEmbedder:
    """Texts to unit vectors of `dim` numbers. `fit` on the catalogue, then `embed` anything."""

    def __init__(self, dim: int, *, n_buckets: int = 32_768) -> None:
        self.dim = dim
        self.n_buckets = n_buckets
        self.idf: FloatArray = np.zeros(0, dtype=np.float32)
        self.components: NDArray[np.float16] = np.zeros((0, 0), dtype=np.float16)

    def fit(self, texts: Sequence[str], seed: int = 0) -> FloatArray:
        """Learns document frequencies and the SVD; returns the (N, dim) vectors of the texts."""
        counts = self._counts(texts)
        frequency = np.bincount(counts.indices, minlength=self.n_buckets)
        # a term of one text says nothing about any other
        self.idf = np.where(
            frequency >= min(2, len(texts)), np.log((1 + len(texts)) / (1 + frequency)) + 1, 0.0
        ).astype(np.float32)
        weighted = self._weighted(counts)
        rank = min(self.dim, min(weighted.shape) - 1)
        components = np.zeros((self.n_buckets, self.dim), dtype=np.float16)
        if rank > 0 and weighted.nnz:
            # half a second of imports that only fitting needs, not serving
            from sklearn.utils.extmath import randomized_svd

            _, _, v_t = randomized_svd(weighted, n_components=rank, n_iter=4, random_state=seed)
            components[:, :rank] = v_t.T
        self.components = components
        return self.embed(texts)

    def embed(self, texts: Sequence[str]) -> FloatArray:
        """(N, dim) unit vectors; zero for texts without any known term."""
        weighted = self._weighted(self._counts(texts))
        # a query has some dozens of the buckets: the others stay as they are stored
        used, column = np.unique(weighted.indices, return_inverse=True)
        narrow = sparse.csr_matrix((weighted.data, column, weighted.indptr), shape=(len(texts), len(used)))
        vectors = np.asarray(narrow @ self.components[used].astype(np.float32), dtype=np.float32)
        norm = np.linalg.norm(vectors, axis=1, keepdims=True)
        unit: FloatArray = np.divide(vectors, norm, out=np.zeros_like(vectors), where=norm > 1e-8)
        return unit

    def _counts(self, texts: Sequence[str]) -> sparse.csr_matrix:
        indices: list[int] = []
        starts = [0]
        for text in texts:
            indices.extend(zlib.crc32(term.encode()) % self.n_buckets for term in terms(text))
            starts.append(len(indices))
        matrix = sparse.csr_matrix(
            (np.ones(len(indices), dtype=np.float32), np.asarray(indices, dtype=np.int32), np.asarray(starts)),
            shape=(len(texts), self.n_buckets),
        )
        matrix.sum_duplicates()
        return matrix

    def _weighted(self, counts: sparse.csr_matrix) -> sparse.csr_matrix:
        weighted = counts.copy()
        weighted.data = (1 + np.log(weighted.data)) * self.idf[weighted.indices]
        norm = np.sqrt(np.asarray(weighted.multiply(weighted).sum(1)).ravel())
        scale = np.divide(1.0, norm, out=np.zeros_like(norm), where=norm > 0).astype(np.float32)
        return sparse.csr_matrix(sparse.diags_array(scale) @ weighted)

    def arrays(self) -> dict[str, NDArray[Any]]:
        return {"idf": self.idf, "components": self.components}

    @classmethod
    def from_arrays(cls, arrays: dict[str, NDArray[Any]]) -> HashedTextEmbedder:
        own = cls(arrays["components"].shape[1], n_buckets=arrays["components"].shape[0])
        own.idf, own.components = arrays["idf"], arrays["components"]
        return own
