"""The floors every result stands on: popularity, a first-order Markov chain, item-kNN, the behaviour memory alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from scipy import sparse

from rankloom.data.sequences import TRAIN, Cases, Sequences
from rankloom.decoding.memory import BehaviourMemory, latest_first
from rankloom.evaluation.systems import FloatArray, ScoringSystem, last_items, training_counts


class Popularity(ScoringSystem):
    """Training counts, the same for everybody."""

    name = "popularity"

    def fit(self, sequences: Sequences, content: FloatArray | None, seed: int) -> None:
        self.counts = training_counts(sequences).astype(np.float32)

    def scores(self, sequences: Sequences, cases: Cases, part: slice) -> FloatArray:
        return np.tile(self.counts, (len(cases.row[part]), 1))


class Markov(ScoringSystem):
    """What came next after the last item, backed off to popularity."""

    name = "markov"

    def fit(self, sequences: Sequences, content: FloatArray | None, seed: int) -> None:
        rows = np.flatnonzero((sequences.stage == TRAIN) & sequences.target)
        user, item = sequences.user[rows], sequences.item[rows]
        follows = user[1:] == user[:-1]
        n = sequences.n_items
        entries: Any = (np.ones(int(follows.sum()), dtype=np.float32), (item[:-1][follows], item[1:][follows]))
        self.next = sparse.csr_matrix(entries, shape=(n, n))
        counts = training_counts(sequences).astype(np.float32)
        # below one observed transition, so that it only orders what the chain has not seen
        self.backoff = counts / (counts.sum() + 1)

    def scores(self, sequences: Sequences, cases: Cases, part: slice) -> FloatArray:
        last = last_items(sequences, cases, part)
        scores: FloatArray = self.next[np.maximum(last, 0)].toarray() * (last >= 0)[:, None] + self.backoff
        return scores


class ItemKNN(ScoringSystem):
    """Cosine similarity of items by their users, summed over the history with recency decay."""

    name = "item-knn"

    def __init__(self, neighbours: int = 200, decay: float = 0.8) -> None:
        self.neighbours = neighbours
        self.decay = decay

    def fit(self, sequences: Sequences, content: FloatArray | None, seed: int) -> None:
        rows = np.flatnonzero((sequences.stage == TRAIN) & sequences.target)
        n = sequences.n_items
        entries: Any = (np.ones(len(rows), dtype=np.float32), (sequences.user[rows], sequences.item[rows]))
        matrix: Any = sparse.csr_matrix(entries, shape=(sequences.n_users, n))
        matrix.data[:] = 1
        norm = np.sqrt(np.asarray(matrix.sum(0)).ravel())
        scale = sparse.diags_array(1 / np.maximum(norm, 1))
        similar: Any = sparse.csr_matrix(scale @ (matrix.T @ matrix) @ scale)
        similar.setdiag(0)
        similar.eliminate_zeros()
        coo = similar.tocoo()
        order = np.lexsort((coo.col, -coo.data, coo.row))
        sizes = np.bincount(coo.row, minlength=n)
        place = np.arange(len(order)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
        kept = order[place < self.neighbours]
        best: Any = (coo.data[kept], (coo.row[kept], coo.col[kept]))
        self.similar = sparse.csr_matrix(best, shape=(n, n))
        counts = training_counts(sequences).astype(np.float32)
        self.backoff = 1e-6 * counts / (counts.sum() + 1)

    def scores(self, sequences: Sequences, cases: Cases, part: slice) -> FloatArray:
        start = sequences.offsets[cases.user[part]]
        stop = cases.row[part]
        length = stop - start
        place = np.repeat(np.arange(len(length)), length)
        within = np.arange(len(place)) - np.repeat(np.cumsum(length) - length, length)
        rows = np.repeat(start, length) + within
        age = length[place] - 1 - within
        entries: Any = ((self.decay**age).astype(np.float32), (place, sequences.item[rows]))
        history = sparse.csr_matrix(entries, shape=(len(length), sequences.n_items))
        scores: FloatArray = (history @ self.similar).toarray() + self.backoff
        return scores


class BehaviourMemoryAlone(ScoringSystem):
    """The table that decoding interpolates with, ranking the whole catalogue by itself: is the generator needed?"""

    name = "memory"

    def fit(self, sequences: Sequences, content: FloatArray | None, seed: int) -> None:
        trained = (sequences.stage == TRAIN) & sequences.target
        self.memory = BehaviourMemory.fit(sequences.user[trained], sequences.item[trained], sequences.n_items)
        counts = training_counts(sequences).astype(np.float32)
        # below every amount: it only orders what the memory does not name
        self.backoff = 1e-6 * counts / (counts.sum() + 1)
        self.counts_as_taken = torch.from_numpy(sequences.target)

    def scores(self, sequences: Sequences, cases: Cases, part: slice) -> FloatArray:
        stop = torch.from_numpy(cases.row[part])
        start = torch.from_numpy(sequences.offsets[cases.user[part]])
        history = latest_first(torch.from_numpy(sequences.item.astype(np.int64)), self.counts_as_taken, start, stop)
        request, item, amount = self.memory.recall(history)
        scores = torch.zeros(len(stop), sequences.n_items).index_put_((request, item), amount, accumulate=True)
        found: FloatArray = scores.numpy() + self.backoff
        return found
