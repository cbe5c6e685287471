"""Keywords that nobody filed: words and short phrases of titles that recur, hold together and are at home somewhere.

A phrase counts once an item. It is a keyword when enough items hold it, when its parts come together far more often than
chance (normalised pointwise mutual information), and when it is *concentrated*: in some group of the catalogue it is several
times as frequent as overall. Without categories its rarity stands in for that. What mostly closes a noun phrase (`running
shoes` in `red running shoes for men`) is an entity, and so is a Chinese one that ends in a noun; another single word is a modifier; what mostly opens titles of a
catalogue without a brand column is a brand.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from rankloom.semantic.keywords.dictionary import sparse_counts
from rankloom.semantic.keywords.folding import Folded, unspaced
from rankloom.semantic.keywords.lexicon import STOP_WORDS
from rankloom.semantic.keywords.segmentation import Segmenter

_SHRINK: Final = 5.0
"""Items of no group in particular that every phrase is given before its concentration is read."""
_MAX_SHARE: Final = 0.1
"""Without categories: a phrase that more of the items hold says nothing."""
_OPENING: Final = 0.8
_PREPOSITIONS: Final = frozenset({"for", "with", "without", "by", "from", "in", "on", "at", "to"})
"""What stands after one is not what the title is about."""
_MAX_TITLES: Final = 200_000
"""Larger catalogues are read in even steps: a phrase of theirs that so many titles miss is a rare one."""


@dataclass(frozen=True, slots=True)
class PhraseSettings:
    """What is asked of a phrase.

    Attributes:
        min_items: items that hold it.
        max_words: its words.
        min_lift: how many times as frequent it is in its best group as overall.
        min_npmi: of its parts, -1 to 1.
    """

    min_items: int = 3
    max_words: int = 3
    min_lift: float = 3.0
    min_npmi: float = 0.3


@dataclass(slots=True)
class _Phrase:
    n_items: int = 0
    closing: int = 0
    opening: int = 0


def mine_phrases(
    texts: Sequence[Folded],
    segmenter: Segmenter,
    group_of_item: NDArray[np.int32],
    n_groups: int,
    *,
    settings: PhraseSettings,
    brands: bool = False,
) -> dict[str, tuple[str, int]]:
    """term -> (type, items that hold it).

    Args:
        texts: N titles.
        group_of_item: (N,) group of each, -1 for none.
        brands: look for brands too: there is no column of them.
    """
    step = max(1, -(-len(texts) // _MAX_TITLES))
    texts, group_of_item = texts[::step], group_of_item[::step]
    words = [segmenter.words(text.text) for text in texts]
    totals: dict[str, _Phrase] = {}
    for text, own in zip(texts, words, strict=True):
        for term, closes, opens in _once(_phrases(text.text, own, settings.max_words)):
            phrase = totals.setdefault(term, _Phrase())
            phrase.n_items += 1
            phrase.closing += closes
            phrase.opening += opens
    counts = {term: phrase.n_items for term, phrase in totals.items()}
    frequent = [
        term
        for term, n in counts.items()
        if n >= settings.min_items and cohesion(term, counts, len(texts), segmenter) >= settings.min_npmi
    ]
    index = {term: at for at, term in enumerate(frequent)}
    held = [
        sorted({index[term] for term, _, _ in _phrases(text.text, own, settings.max_words) if term in index})
        for text, own in zip(texts, words, strict=True)
    ]
    lift = best_lift(len(frequent), held, group_of_item, n_groups)
    found: dict[str, tuple[str, int]] = {}
    for at, term in enumerate(frequent):
        phrase = totals[term]
        opens = phrase.opening >= _OPENING * phrase.n_items
        first = term[: segmenter.words(term)[0][1]]
        # a name of several words is one whose first word seldom stands without the rest
        whole = phrase.n_items >= _OPENING * counts.get(first, 0)
        if brands and opens and whole and phrase.closing < 0.5 * phrase.n_items:
            found[term] = ("brand", phrase.n_items)
            continue
        at_home = lift[at] >= settings.min_lift if n_groups > 1 else phrase.n_items <= _MAX_SHARE * len(texts)
        if not at_home:
            continue
        if 2 * phrase.closing >= phrase.n_items or _ends_in_noun(term, segmenter):
            found[term] = ("entity", phrase.n_items)
        elif len(segmenter.words(term)) == 1:
            found[term] = ("modifier", phrase.n_items)
    return found


def _ends_in_noun(term: str, segmenter: Segmenter) -> bool:
    """Chinese titles run on without breaks: there the part of speech says what closes a noun phrase."""
    return unspaced(term[-1]) and segmenter.noun(term[segmenter.words(term)[-1][0] :])


def phrases_of(text: Folded, segmenter: Segmenter, max_words: int) -> set[str]:
    """The distinct words and phrases of a text that could be keywords by their form."""
    return {term for term, _, _ in _phrases(text.text, segmenter.words(text.text), max_words)}


def _phrases(text: str, words: Sequence[tuple[int, int]], max_words: int) -> Iterator[tuple[str, bool, bool]]:
    """(phrase, whether it closes a noun phrase, whether it opens the text), with repeats."""
    for chunk, after in _chunks(text, words):
        for first in range(len(chunk)):
            for last in range(first, min(first + max_words, len(chunk))):
                term = text[chunk[first][0] : chunk[last][1]]
                if may_be_phrase(term):
                    yield term, last == len(chunk) - 1 and after not in _PREPOSITIONS, chunk[first][0] == 0


def _chunks(text: str, words: Sequence[tuple[int, int]]) -> Iterator[tuple[list[tuple[int, int]], str]]:
    """Words in an unbroken row, and the stop word before it: nothing between them, or one space; a stop word ends the row."""
    chunk: list[tuple[int, int]] = []
    after = ""
    for start, end in words:
        stop = text[start:end] in STOP_WORDS
        joined = bool(chunk) and (start == chunk[-1][1] or text[chunk[-1][1] : start] == " ")
        # in Chinese a space is a break that was meant
        broken = joined and start > chunk[-1][1] and (unspaced(text[start]) or unspaced(text[chunk[-1][1] - 1]))
        if chunk and (stop or not joined or broken):
            yield chunk, after
            chunk, after = [], ""
        if stop:
            after = text[start:end]
        else:
            chunk.append((start, end))
    if chunk:
        yield chunk, after


def may_be_phrase(term: str) -> bool:
    """Two characters at least, of which one is a letter; of unspaced scripts at most ten."""
    if len(term) < 2 or not any(character.isalpha() for character in term):
        return False
    return not any(map(unspaced, term)) or len(term) <= 10


def _once(found: Iterable[tuple[str, bool, bool]]) -> list[tuple[str, bool, bool]]:
    """Each phrase of a text once: whether it closes and opens anywhere in it."""
    merged: dict[str, tuple[bool, bool]] = {}
    for term, closes, opens in found:
        before = merged.get(term, (False, False))
        merged[term] = (before[0] or closes, before[1] or opens)
    return [(term, closes, opens) for term, (closes, opens) in merged.items()]


def cohesion(term: str, counts: dict[str, int], n: int, segmenter: Segmenter) -> float:
    """The least normalised pointwise mutual information over the places where a phrase may be cut; 1 for a word."""
    words = segmenter.words(term)
    least = 1.0
    p_whole = counts[term] / n
    for cut in range(1, len(words)):
        left, right = term[: words[cut - 1][1]], term[words[cut][0] :]
        # a part that is no phrase itself (a number, a letter) is as frequent as the whole
        p_left, p_right = (max(counts.get(part, 0), counts[term]) / n for part in (left, right))
        least = min(least, 1.0 if p_whole >= 1 else math.log(p_whole / (p_left * p_right)) / -math.log(p_whole))
    return least


def best_lift(
    n_terms: int, held: Sequence[Sequence[int]], group_of_item: NDArray[np.int32], n_groups: int
) -> NDArray[np.float64]:
    """(T,) how many times as frequent each term is in its best group as overall; 1 without groups.

    Every term is first given `_SHRINK` items spread like the catalogue, so that a few chance items prove nothing.

    Args:
        held: the terms of each item.
    """
    best = np.ones(n_terms)
    grouped = group_of_item >= 0
    if n_groups < 2 or not n_terms or not grouped.any():
        return best
    rows = np.asarray([row for own, known in zip(held, grouped, strict=True) if known for row in own], dtype=np.int64)
    sizes = [len(own) for own, known in zip(held, grouped, strict=True) if known]
    columns = np.repeat(group_of_item[grouped], sizes)
    counts = sparse_counts(rows, columns, np.ones(len(rows)), (n_terms, n_groups)).tocoo()
    share_G = np.bincount(group_of_item[grouped], minlength=n_groups) / int(grouped.sum())
    total_T = np.bincount(counts.row, weights=counts.data, minlength=n_terms)
    share = share_G[counts.col]
    lift = (counts.data + _SHRINK * share) / ((total_T[counts.row] + _SHRINK) * share)
    np.maximum.at(best, counts.row, lift)
    return best
