"""Item pairs from behaviour, for collaborative alignment: co-occurrence, Swing and target pairs. Training rows only.

Swing (OneRec TR's choice of item-item similarity): two items are close when users who share both share little else,
sum over user pairs of 1 / (alpha + |common items of the two users|). Target pairs (OneRec TR, section on alignment): what a
user took, with the most similar item among what the same user took just before.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from rankloom.data.sequences import TRAIN, Sequences

Pairs = tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]]


def cooccurrence_pairs(sequences: Sequences, *, window: int = 5, top: int = 20) -> Pairs:
    """(i, j, weight) of items near each other in a history, closer ones more, normalised by both items' counts."""
    rows = np.flatnonzero((sequences.stage == TRAIN) & sequences.target)
    user, item = sequences.user[rows], sequences.item[rows].astype(np.int64)
    left, right, weight = [], [], []
    for gap in range(1, window + 1):
        same = (user[gap:] == user[:-gap]) & (item[gap:] != item[:-gap])
        left.append(item[:-gap][same])
        right.append(item[gap:][same])
        weight.append(np.full(int(same.sum()), 1 / gap))
    i, j, w = np.concatenate(left), np.concatenate(right), np.concatenate(weight)
    n = sequences.n_items
    matrix = sparse.coo_matrix((np.r_[w, w], (np.r_[i, j], np.r_[j, i])), shape=(n, n)).tocsr()
    counts = np.sqrt(np.bincount(item, minlength=n) + 5.0)
    scale = sparse.diags_array(1 / counts)
    return strongest(sparse.csr_matrix(scale @ matrix @ scale), top)


def swing_pairs(
    sequences: Sequences, *, alpha: float = 1.0, top: int = 20, max_users: int = 60, seed: int = 0
) -> Pairs:
    """(i, j, weight) by Swing.

    Popular items keep a random `max_users` of their users, which bounds the user pairs.
    """
    rows = np.flatnonzero((sequences.stage == TRAIN) & sequences.target)
    user, item = sequences.user[rows].astype(np.int64), sequences.item[rows].astype(np.int64)
    n_users, n = sequences.n_users, sequences.n_items
    has: Any = sparse.csr_matrix((np.ones(len(rows), dtype=np.float32), (user, item)), shape=(n_users, n))
    has.data[:] = 1
    rng = np.random.default_rng(seed)
    shuffled = rng.permutation(has.nnz)
    coo = has.tocoo()
    order = shuffled[np.argsort(coo.col[shuffled], kind="stable")]
    sizes = np.bincount(coo.col, minlength=n)
    place = np.arange(len(order)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    kept = order[place < max_users]
    entries: Any = (coo.data[kept], (coo.row[kept], coo.col[kept]))
    members = sparse.csr_matrix(entries, shape=(n_users, n))
    overlap = sparse.triu(members @ members.T, k=1).tocoo()
    pair_weight = 1 / (alpha + overlap.data)
    total: Any = sparse.csr_matrix((n, n), dtype=np.float32)  # type: ignore[arg-type]
    block = 100_000
    for begin in range(0, len(pair_weight), block):
        part = slice(begin, begin + block)
        both = members[overlap.row[part]].multiply(members[overlap.col[part]]).tocsr()
        several = np.diff(both.indptr) >= 2
        both, weight = both[several], pair_weight[part][several]
        total = total + both.T @ sparse.diags_array(weight) @ both
    total = sparse.csr_matrix(total)
    total.setdiag(0)
    total.eliminate_zeros()
    return strongest(total, top)


def target_pairs(sequences: Sequences, similar: Pairs, *, latest: int = 10) -> Pairs:
    """(i, j, weight): a taken item i and the one most similar to it among the user's `latest` before; weight is how often.

    Args:
        similar: the item-item similarity, such as `swing_pairs`; a target with no similar item before it makes no pair.
    """
    rows = np.flatnonzero((sequences.stage == TRAIN) & sequences.target)
    user, item = sequences.user[rows], sequences.item[rows].astype(np.int64)
    n = sequences.n_items
    i, j, weight = similar
    likeness = sparse.csr_matrix((weight, (i, j)), shape=(n, n))
    best = np.zeros(len(item), dtype=np.float32)
    partner = np.full(len(item), -1, dtype=np.int64)
    for gap in range(1, min(latest, len(item) - 1) + 1):
        same = np.flatnonzero(user[gap:] == user[:-gap]) + gap
        if not len(same):
            break
        before = item[same - gap]
        own = np.asarray(likeness[item[same], before], dtype=np.float32).ravel()
        better = own > best[same]
        best[same[better]], partner[same[better]] = own[better], before[better]
    found = (partner >= 0) & (partner != item)
    counts: Any = sparse.coo_matrix(
        (np.ones(int(found.sum()), dtype=np.float32), (item[found], partner[found])), shape=(n, n)
    ).tocsr()
    coo = counts.tocoo()
    return coo.row.astype(np.int64), coo.col.astype(np.int64), coo.data.astype(np.float32)


def strongest(matrix: sparse.csr_matrix, top: int) -> Pairs:
    """The strongest `top` neighbours of each item."""
    coo = matrix.tocoo()
    order = np.lexsort((coo.col, -coo.data, coo.row))
    row = coo.row[order]
    sizes = np.bincount(row, minlength=matrix.shape[0])
    place = np.arange(len(row)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    kept = order[place < top]
    return coo.row[kept].astype(np.int64), coo.col[kept].astype(np.int64), coo.data[kept].astype(np.float32)
