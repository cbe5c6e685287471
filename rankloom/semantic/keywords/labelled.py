"""A dictionary from titles in which people marked the keywords, where a shop has such a sample.

A term stays when, of the places where the matcher finds it in the sample, enough were marked: `水泥` in a title may be a
product or a word about one. The sample also says of which type a term is, most often.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from rankloom.semantic.keywords.dictionary import Keyword, KeywordDictionary
from rankloom.semantic.keywords.folding import fold
from rankloom.semantic.keywords.matching import KeywordMatcher, Overlap

Marks = Sequence[tuple[int, int, str]]
"""[start, end) in characters, and the type."""


def mine_labelled(
    texts: Sequence[str],
    marks: Sequence[Marks],
    *,
    min_precision: float = 0.5,
    overlap: Overlap = "longest",
    numbers: bool = True,
) -> KeywordDictionary:
    """The terms that were marked, those left out that are marked too seldom where they stand.

    Args:
        min_precision: share of a term's matches that have to be marked.
        overlap, numbers: as the matcher will be used.
    """
    marked: Counter[str] = Counter()
    kinds: dict[str, Counter[str]] = {}
    for text, own in zip(texts, marks, strict=True):
        for start, end, kind in own:
            term = fold(text[start:end]).text
            if term:
                marked[term] += 1
                kinds.setdefault(term, Counter())[kind] += 1
    every = _dictionary(marked, kinds)
    matcher = KeywordMatcher(every, overlap=overlap, numbers=numbers)
    hits: Counter[str] = Counter()
    met: Counter[str] = Counter()
    for text, own in zip(texts, marks, strict=True):
        places = {(start, end) for start, end, _ in own}
        for span in matcher.match(text):
            met[span.keyword.term] += 1
            hits[span.keyword.term] += (span.start, span.end) in places
    kept = {term: n for term, n in marked.items() if hits[term] >= min_precision * max(1, met[term])}
    return _dictionary(kept, kinds)


def _dictionary(counts: dict[str, int] | Counter[str], kinds: dict[str, Counter[str]]) -> KeywordDictionary:
    ordered = sorted(counts, key=lambda term: (-counts[term], term))
    return KeywordDictionary(
        [Keyword(term, kinds[term].most_common(1)[0][0], counts[term], source="labels") for term in ordered]
    )
