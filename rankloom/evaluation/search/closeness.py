"""How well a space ranks items for a query by closeness alone: the measure of an aligned space and of its codes.

OneSearch (arXiv 2509.03236, tables of tokenizers) reports Recall@10 and MRR@10 of ranking items by how near what their SID stands
for is to what the query's SID stands for. Items that share a SID are equally near: such ties count by expectation, so nothing
is won by the order of item numbers nor by popularity. What the person already has is not ranked.

Shapes: C cases, S distinct vectors, I items, D width.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rankloom.evaluation.search.cases import SearchCases
from rankloom.evaluation.systems import seen_pairs
from rankloom.semantic.quantizers.base import CodeArray, FloatArray

_BLOCK = 256


@dataclass(frozen=True)
class Standing:
    """Where the targets stand.

    Attributes:
        ahead: (C,) items that are nearer to the query than the target.
        level: (C,) other items that are exactly as near.
    """

    ahead: NDArray[np.int64]
    level: NDArray[np.int64]

    def recall(self, k: int) -> NDArray[np.float64]:
        """(C,) chance that the target is among the first k, ties in random order."""
        return np.clip((k - self.ahead) / (self.level + 1), 0.0, 1.0)

    def reciprocal_rank(self, k: int) -> NDArray[np.float64]:
        """(C,) expected 1 / place, 0 behind place k, ties in random order."""
        harmonic = np.concatenate([[0.0], np.cumsum(1 / np.arange(1, k + 1))])
        first, last = np.minimum(self.ahead, k), np.minimum(self.ahead + self.level + 1, k)
        out: NDArray[np.float64] = (harmonic[last] - harmonic[first]) / (self.level + 1)
        return out


def standing(asked: SearchCases, query_CD: FloatArray, vector_SD: FloatArray, vector_of_I: NDArray[Any]) -> Standing:
    """Ranks the catalogue for every case by the dot product.

    Args:
        query_CD: unit vectors of the cases' queries.
        vector_SD: distinct unit vectors of items; `vector_of_I` says which is whose.
    """
    ahead = np.zeros(len(asked), dtype=np.int64)
    level = np.zeros(len(asked), dtype=np.int64)
    for begin in range(0, len(asked), _BLOCK):
        part = slice(begin, begin + _BLOCK)
        near_BI = (query_CD[part] @ vector_SD.T)[:, vector_of_I]
        target_B = asked.cases.target[part].astype(np.int64)[:, None]
        own_B = np.take_along_axis(near_BI, target_B, 1)
        near_BI[seen_pairs(asked.sequences, asked.cases, part)] = -np.inf
        ahead[part] = (near_BI > own_B).sum(1)
        # a target that was had before is not counted among those seen
        np.put_along_axis(near_BI, target_B, -np.inf, 1)
        level[part] = (near_BI == own_B).sum(1)
    return Standing(ahead, level)


def sid_standing(asked: SearchCases, query_codes_CL: CodeArray, item_codes_IL: CodeArray, decode: Callable[[CodeArray], FloatArray]) -> Standing:
    """`standing` by what codes stand for.

    Args:
        decode: codes (N, L) -> (N, D) unit vectors, such as `Tokenizer.sid_vectors`.
    """
    distinct, of_item = np.unique(item_codes_IL, axis=0, return_inverse=True)
    return standing(asked, decode(query_codes_CL), decode(distinct), of_item.reshape(-1))
