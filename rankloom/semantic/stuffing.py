"""Titles that claim too much: which words of an item's text its category does not bear out.

A seller may write `dress toy phone case best seller` behind `cast iron pan` to be found by every search. The other items of its
category are the witness: a word that is frequent in the catalogue and clearly less frequent among them is foreign to the
item. A few foreign words are honest (a lavender dish soap); an item that has more than `ALLOWED` is suspect, and of its
frequent words only those are believed that are typical of its category. A rare word is always believed, and so is an item
without a category.

Shapes: I items, V words, E entries of a CSR matrix.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import polars as pl
from numpy.typing import NDArray
from scipy import sparse

LEAST: Final = 20
"""Items of a category that can bear witness; smaller ones are read with their parent."""
FREQUENT: Final = 0.005
"""Share of the catalogue that has a word worth stuffing."""
FOREIGN: Final = 0.7
"""A word is foreign to a category where its share is below so much of that in the catalogue."""
ALLOWED: Final = 4
"""Foreign words that an honest title may have."""
TYPICAL: Final = 2.0
"""A word is typical of a category where its share is at least so many times that in the catalogue."""


def witness_groups(items: pl.DataFrame) -> NDArray[np.int64]:
    """(I,) the deepest category of each item with at least `LEAST` items, as a number; -1 where there is none."""
    out = np.full(items.height, -1, dtype=np.int64)
    if "category" not in items.columns or items["category"].dtype != pl.List(pl.String):
        return out
    paths = items["category"]
    deepest = int(paths.list.len().max() or 0)  # type: ignore[arg-type]
    named = 0
    for level in range(1, deepest + 1):
        prefix = pl.select(pl.when(paths.list.len() >= level).then(paths.list.head(level).list.join("\x1f"))).to_series()
        known = prefix.is_not_null().to_numpy()
        group = prefix.rank("dense").fill_null(0).to_numpy().astype(np.int64)
        large = known & (np.bincount(group[known], minlength=int(group.max(initial=0)) + 1)[group] >= LEAST)
        out[large] = named + group[large]
        named += int(group.max(initial=0)) + 1
    return out


def believed(text_IV: sparse.csr_matrix, group_I: NDArray[np.int64]) -> sparse.csr_matrix:
    """The occurrences of words without those that are not believed.

    Args:
        text_IV: occurrences of words in the items' texts.
        group_I: what `witness_groups` returned, or -1 for items not to be judged.
    """
    n, n_words = text_IV.shape
    item = np.repeat(np.arange(n), np.diff(text_IV.indptr))
    word = text_IV.indices.astype(np.int64)
    group_E = group_I[item]
    judged = group_E >= 0
    if not judged.any():
        return text_IV
    everywhere = np.bincount(word, minlength=n_words)
    size = np.bincount(group_I[group_I >= 0])
    _, place, together = np.unique(group_E * n_words + word, return_inverse=True, return_counts=True)
    others_E = (together[place] - 1) / np.maximum(size[np.maximum(group_E, 0)] - 1, 1)
    usual_E = (everywhere[word] - 1) / max(n - 1, 1)
    frequent_E = judged & (everywhere[word] >= max(10.0, FREQUENT * n))
    foreign_E = frequent_E & (others_E < FOREIGN * usual_E)
    suspect_I = np.bincount(item[foreign_E], minlength=n) > ALLOWED
    kept_E = ~(frequent_E & suspect_I[item] & (others_E < TYPICAL * usual_E))
    start = np.r_[0, np.cumsum(np.bincount(item[kept_E], minlength=n))]
    entries: Any = (text_IV.data[kept_E], text_IV.indices[kept_E], start)
    return sparse.csr_matrix(entries, shape=(n, n_words))
