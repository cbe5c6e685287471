"""What a title's keywords are worth when sellers write titles to be found: the guard against keyword stuffing.

Paper (OneSearch): the dictionary keeps the head of clicked pairs, and the item's side is read from image and title together by
a vision-language model, so that a word without a picture of it does not count. Without pictures the catalogue's own columns are
the witness here:

* a keyword that a column of the item says (brand, category, attribute) counts fully;
* a word of marketing counts nothing: it says nothing about what the item is;
* any other is weighed by its *lift* in the item's group: how many times as frequent it is there as overall, among items and
  among takes after searches. Half as frequent or less counts 0, as frequent as overall 1/2, twice or more 1, by logarithm;
* an attribute (colour, material, size, ...) may be unusual: it counts at least 1/2, unless the title makes two claims or more
  of what the item is (entity, brand, model, series, ...) that count 0;
* a brand other than the item's own counts at most 1/2.

A keyword counts once, however often it is repeated. With `strip` the places of keywords that count 0 are also taken out of the
text before it is embedded, so that the text's half of the vector does not follow them either. Without a category and without
columns nothing is known against a word: it counts fully, as in the paper.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from rankloom.semantic.keywords.dictionary import KeywordDictionary
from rankloom.semantic.keywords.folding import fold
from rankloom.semantic.keywords.matching import KeywordSpan

FloatArray = NDArray[np.float32]
CLAIMS: Final = frozenset({"entity", "modifier", "brand", "model", "series", "anchor"})
"""Types that say what an item is; the others say how it is."""
_SHRINK: Final = 5.0
_FOREIGN_BRAND: Final = 0.5
_EXCUSED: Final = 0.5
_STUFFED: Final = 2


def lift(dictionary: KeywordDictionary, rows: Sequence[int], group: int) -> FloatArray:
    """(n,) how many times as frequent keywords are in a group as overall; 1 for no group.

    Every keyword is first given `_SHRINK` items spread like the catalogue.
    """
    if group < 0 or not len(rows):
        return np.ones(len(rows), dtype=np.float32)
    share = float(dictionary.group_sizes_G[group] / max(1.0, float(dictionary.group_sizes_G.sum())))
    picked = dictionary.counts_KG[np.asarray(rows)]
    here = np.asarray(picked[:, [group]].todense(), dtype=np.float32).ravel()
    overall = np.asarray(picked.sum(1), dtype=np.float32).ravel()
    ratio: FloatArray = (here + _SHRINK * share) / ((overall + _SHRINK) * share)
    return ratio


def agreement(
    dictionary: KeywordDictionary, rows: Sequence[int], group: int, said: Sequence[int], *, own_brand: bool
) -> FloatArray:
    """(n,) weight of each keyword of a title, 0 to 1; see the module's docstring.

    Args:
        rows: distinct rows of the dictionary.
        group: of the item, -1 unknown.
        said: rows that a column of the item says.
        own_brand: whether the item's brand is known.
    """
    kinds = [dictionary.keywords[row].kind for row in rows]
    in_columns = np.isin(np.asarray(rows, dtype=np.int64), np.asarray(said, dtype=np.int64))
    if group < 0:
        weight = np.ones(len(rows), dtype=np.float32)
    else:
        weight = np.clip(np.log2(2 * lift(dictionary, rows, group)) / 2, 0, 1).astype(np.float32)
    brand = np.array([kind == "brand" for kind in kinds], dtype=bool)
    if own_brand:
        weight[brand] = np.minimum(weight[brand], _FOREIGN_BRAND)
    weight[in_columns] = 1.0
    claims = np.array([kind in CLAIMS for kind in kinds], dtype=bool)
    if int((weight[claims] == 0).sum()) < _STUFFED:
        weight[~claims] = np.maximum(weight[~claims], _EXCUSED)
    weight[np.array([kind == "marketing" for kind in kinds], dtype=bool)] = 0.0
    return weight


def strip(text: str, spans: Sequence[KeywordSpan], weights: dict[int, float]) -> str:
    """`text` without the places of keywords that count 0, where no keyword that counts shares them."""
    out = np.zeros(len(text), dtype=bool)
    for span in spans:
        if weights.get(span.row, 1.0) == 0:
            out[span.start : span.end] = True
    for span in spans:
        if weights.get(span.row, 1.0) > 0:
            out[span.start : span.end] = False
    if not out.any():
        return text
    kept = "".join(" " if gone else character for character, gone in zip(text, out.tolist(), strict=True))
    return " ".join(kept.split())


def folded_values(values: Sequence[tuple[str, str]]) -> str:
    """Column values as one text for the matcher, apart from each other."""
    return fold("\n|\n".join(value for value, _ in values)).text
