"""What the training period says of pairs of items and of queries with items, for the reward model; a sample's own take is left out.

Shapes: I items, B contexts, H places of the history, M candidates.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from rankloom.data.sequences import TRAIN, Sequences
from rankloom.onesearch.negatives import PairCounts
from rankloom.onesearch.settings import BehaviourConfig

FloatArray = NDArray[np.float32]


@dataclass(frozen=True)
class Statistics:
    """
    Attributes:
        following: (I, I) csr, how often an item was taken right after another.
        together: (I, I) csr, how many takes of an item came after another by the same person, at any distance, either way.
        pairs: exposures, clicks and orders of queries and items.
    """

    following: sparse.csr_matrix
    together: sparse.csr_matrix
    pairs: PairCounts

    @classmethod
    def of(cls, sequences: Sequences, config: BehaviourConfig) -> Statistics:
        """Of the takes of the training period; `together` looks back as far as the long history does."""
        rows = np.flatnonzero((sequences.stage == TRAIN) & sequences.target)
        user, item = sequences.user[rows], sequences.item[rows]
        first, second = [], []
        for distance in range(1, min(config.long_length, len(rows) - 1) + 1):
            same = user[distance:] == user[:-distance]
            if not same.any():
                break
            first.append(item[:-distance][same])
            second.append(item[distance:][same])
        n = sequences.n_items
        nothing = np.zeros(0, dtype=np.int32)
        following = _matrix(first[0] if first else nothing, second[0] if second else nothing, n)
        before, after = (np.concatenate([nothing, *own]) for own in (first, second))
        both = _matrix(before, after, n)
        return cls(following, sparse.csr_matrix(both + both.T), PairCounts.of(sequences, config))

    def after_last(self, history_BH: NDArray[Any], item_BM: NDArray[Any], target_B: NDArray[Any] | None) -> FloatArray:
        """(B, M) how often each candidate followed the last item of the history.

        Args:
            target_B: what the contexts' persons then took, where that is counted; it is taken out.
        """
        last_B = history_BH[:, -1]
        found = np.take_along_axis(self.following[np.maximum(last_B, 0)].toarray(), item_BM, 1)
        if target_B is not None:
            found = np.maximum(found - (item_BM == target_B[:, None]), 0)
        return (found * (last_B >= 0)[:, None]).astype(np.float32)

    def with_history(
        self, history_BH: NDArray[Any], item_BM: NDArray[Any], target_B: NDArray[Any] | None
    ) -> FloatArray:
        """(B, M) takes of each candidate together with the items of the history, as a sum over these."""
        real = history_BH >= 0
        row = np.nonzero(real)[0]
        own = sparse.csr_matrix(
            (np.ones(len(row), np.float32), (row, history_BH[real])), shape=(len(history_BH), self.together.shape[0])
        )
        found = np.take_along_axis((own @ self.together).toarray(), item_BM, 1)
        if target_B is not None:
            found = np.maximum(found - (item_BM == target_B[:, None]) * real.sum(1)[:, None], 0)
        return found.astype(np.float32)

    def clicks(self, query_B: NDArray[np.int64], item_BM: NDArray[Any], target_B: NDArray[Any] | None) -> FloatArray:
        """(B, M) clicks of each candidate under the query; 0 for queries that the log does not have."""
        asked = np.broadcast_to(query_B[:, None], item_BM.shape)
        found = self.pairs.at(asked, item_BM)[..., 1] * (asked >= 0)
        if target_B is not None:
            found = np.maximum(found - (item_BM == target_B[:, None]), 0)
        return found.astype(np.float32)

    def arrays(self) -> dict[str, NDArray[Any]]:
        """For a safetensors file."""
        out: dict[str, NDArray[Any]] = {"pairs.key": self.pairs.key_P, "pairs.count": self.pairs.count_P3}
        for name in ("following", "together"):
            own = getattr(self, name)
            out |= {f"{name}.{part}": getattr(own, part) for part in ("data", "indices", "indptr")}
        return out

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[Any]], n_items: int) -> Statistics:
        """What `arrays` described."""
        own = [
            sparse.csr_matrix(
                tuple(np.asarray(arrays[f"{name}.{part}"]) for part in ("data", "indices", "indptr")),
                shape=(n_items, n_items),
            )
            for name in ("following", "together")
        ]
        return cls(
            own[0], own[1], PairCounts(n_items, np.asarray(arrays["pairs.key"]), np.asarray(arrays["pairs.count"]))
        )


def _matrix(row: NDArray[Any], column: NDArray[Any], n_items: int) -> sparse.csr_matrix:
    out = sparse.csr_matrix((np.ones(len(row), np.float32), (row, column)), shape=(n_items, n_items))
    out.sum_duplicates()
    return out
