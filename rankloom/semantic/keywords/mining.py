"""Mines the typed keyword dictionary of a shop from its catalogue and its training log.

Paper (OneSearch, keyword enhancement): named-entity recognition over a year of clicked query-item pairs, sorted per type by
page views, the head kept. Here nothing is labelled and no network is needed; five sources are asked instead:

    own       the words of `keywords.terms`
    column    brand, category path and attributes of the catalogue (columns.py)
    lexicon   words of closed types that the shop's texts hold (lexicon.py)
    form      sizes, prices and model numbers that recur (forms.py)
    search    words of queries that led to takes of items that hold them (searches.py)
    phrase    words and phrases of titles that are at home somewhere (phrases.py)

A term is of one type. Where sources differ: own words first; then a column other than the category or the lexicon, by the
number of items behind each; then category, form, search, phrase. A word of the lexicon's adjectives that here closes noun
phrases of one part of the catalogue (`cream`, in a shop of cosmetics) is an entity after all. What only puts keywords side by side (`red
running shoes`) is none, nor is a part of a brand's name that never stands without the whole (`mistral`, of `mistral & co`). A sample of labelled
titles makes a dictionary of its own (labelled.py).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
import polars as pl

from rankloom.config import KeywordsConfig
from rankloom.semantic.keywords.columns import column_values, count_columns
from rankloom.semantic.keywords.dictionary import Keyword, KeywordDictionary, sparse_counts
from rankloom.semantic.keywords.folding import Folded, fold, unspaced
from rankloom.semantic.keywords.forms import known_forms
from rankloom.semantic.keywords.groups import Groups, make_groups
from rankloom.semantic.keywords.lexicon import lexicon
from rankloom.semantic.keywords.matching import KeywordMatcher
from rankloom.semantic.keywords.phrases import PhraseSettings, mine_phrases
from rankloom.semantic.keywords.searches import SearchedTerms, mine_searches
from rankloom.semantic.keywords.segmentation import Segmenter

_NOUNS_TOO: Final = frozenset({"color", "material", "pattern", "function", "scene"})
_RANK: Final = {"own": 0, "column": 1, "lexicon": 1, "category": 2, "form": 3, "search": 4, "phrase": 5}


@dataclass(frozen=True, slots=True)
class _Claim:
    """What one source says of a term."""

    kind: str
    source: str
    support: int

    def order(self) -> tuple[int, int, str]:
        return _RANK[self.source], -self.support, self.kind


def mine(
    items: pl.DataFrame,
    config: KeywordsConfig,
    *,
    searches: Counter[tuple[str, int]] | None = None,
    segmenter: Segmenter | None = None,
) -> KeywordDictionary:
    """The dictionary of a catalogue.

    Args:
        items: the shop's items.
        searches: (query, row of `items`) -> takes of the training period (`searches.training_searches`).
        segmenter: where words lie; jieba for Chinese where nothing is given.

    Raises:
        RankloomError: the extra `search` is not installed.
    """
    segmenter = Segmenter() if segmenter is None else segmenter
    groups = make_groups(items)
    titles = [fold(title or "") for title in items["title"].to_list()]
    values = column_values(items, config.attributes)
    texts = [joined(title, own) for title, own in zip(titles, values, strict=True)]
    searched = mine_searches(searches or Counter(), texts, groups.of_item, segmenter, max_words=config.max_words)

    claims: dict[str, list[_Claim]] = {}

    def claim(term: str, kind: str, source: str, support: int) -> None:
        claims.setdefault(term, []).append(_Claim(kind, source, support))

    for kind, words in config.terms.items():
        for word in words:
            claim(fold(word).text, kind, "own", 0)
    for (term, kind), n in count_columns(values).items():
        if n >= min(2, config.min_items):
            claim(term, kind, "category" if kind == "entity" else "column", n)
    queries = Counter[str]()
    for (query, _), takes in (searches or Counter()).items():
        queries[query] += takes
    for term, n in _count_lexicon(texts, queries, segmenter).items():
        if n >= config.min_items:
            claim(term, lexicon()[term], "lexicon", n)
    for (term, kind), n in Counter(form for title in titles for form in set(known_forms(title))).items():
        if n >= config.min_items:
            claim(term, kind, "form", n)
    settings = PhraseSettings(config.min_items, config.max_words, config.min_lift, config.min_npmi)
    no_brands = "brand" not in items.columns or items["brand"].null_count() == items.height
    phrases = mine_phrases(titles, segmenter, groups.of_item, len(groups.names), settings=settings, brands=no_brands)
    for term, n in searched.takes.items():
        if n >= config.min_takes:
            whole = 2 * searched.whole[term] >= n
            claim(term, "entity" if whole else phrases.get(term, ("modifier", 0))[0], "search", n)
    for term, (kind, n) in phrases.items():
        claim(term, kind, "phrase", n)
    return count(_chosen(claims, config), texts, groups, searched, config, segmenter=segmenter)


def joined(title: Folded, values: Sequence[tuple[str, str]]) -> Folded:
    """A folded text in which title and column values stand apart."""
    return fold("\n|\n".join([title.text, *(value for value, _ in values)]))


def _chosen(claims: Mapping[str, Sequence[_Claim]], config: KeywordsConfig) -> list[Keyword]:
    kept = []
    for term, own in claims.items():
        nouns = [claim for claim in own if (claim.kind, claim.source) == ("entity", "phrase")]
        best = min(own, key=_Claim.order)
        if best.source == "lexicon" and best.kind in _NOUNS_TOO and nouns:
            best = nouns[0]
        if best.source in ("search", "phrase") and _side_by_side(term, claims):
            continue
        # a few spellings of Unicode fold once more: no text of the matcher holds them
        if term and best.kind in config.types and fold(term).text == term:
            kept.append(Keyword(term, best.kind, source="column" if best.source == "category" else best.source))
    return kept


def _side_by_side(term: str, claims: Mapping[str, Sequence[_Claim]]) -> bool:
    """Whether a phrase is two keywords, one of which does not stem from phrases itself."""
    for cut in range(1, len(term)):
        left, right = term[:cut].rstrip(" "), term[cut:].lstrip(" ")
        if left in claims and right in claims:
            sources = {claim.source for part in (left, right) for claim in claims[part]}
            if sources & {"own", "column", "lexicon", "form"} and (
                " " in term[cut - 1 : cut + 1] or unspaced(term[cut])
            ):
                return True
    return False


def _count_lexicon(texts: Sequence[Folded], queries: Mapping[str, int], segmenter: Segmenter) -> Counter[str]:
    """Word of the lexicon -> items and takes after queries that hold it."""
    words = KeywordDictionary([Keyword(term, kind) for term, kind in lexicon().items()])
    matcher = KeywordMatcher(words, overlap="all", numbers=False, segmenter=segmenter)
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(words.keywords[row].term for row in matcher.rows(text.text))
    for query, takes in queries.items():
        for row in matcher.rows(query):
            counts[words.keywords[row].term] += takes
    return counts


def count(
    keywords: Sequence[Keyword],
    texts: Sequence[Folded],
    groups: Groups,
    searched: SearchedTerms,
    config: KeywordsConfig,
    *,
    segmenter: Segmenter | None = None,
) -> KeywordDictionary:
    """Counts what holds each keyword and where, and keeps the head of every type."""
    candidates = KeywordDictionary(keywords)
    matcher = KeywordMatcher(candidates, overlap="all", numbers=config.numbers, segmenter=segmenter)
    held: list[list[int]] = []
    alone: set[int] = set()
    for text in texts:
        held.append(matcher.rows(text.text))
        alone.update(matcher.rows(text.text, overlap="longest"))
    n_items = np.bincount(np.asarray([row for own in held for row in own], dtype=np.int64), minlength=len(keywords))
    counted = [
        replace(keyword, n_items=int(n), n_takes=searched.takes[keyword.term])
        for keyword, n in zip(keywords, n_items, strict=True)
    ]
    names = {part for keyword in keywords if keyword.kind == "brand" for part in keyword.term.split()}
    order = [
        row
        for row in _head(counted, config)
        if row in alone or counted[row].source != "phrase" or keywords[row].term not in names
    ]
    place = {row: at for at, row in enumerate(order)}
    rows: list[int] = []
    columns: list[int] = []
    weights: list[float] = []
    for own, group in zip(held, groups.of_item.tolist(), strict=True):
        if group >= 0:
            mine_here = [place[row] for row in own if row in place]
            rows += mine_here
            columns += [group] * len(mine_here)
            weights += [1.0] * len(mine_here)
    for (term, group), takes in searched.groups.items():
        at = place.get(candidates.index.get(term, -1))
        if group >= 0 and at is not None:
            rows.append(at)
            columns.append(group)
            weights.append(float(takes))
    counts = sparse_counts(np.asarray(rows), np.asarray(columns), np.asarray(weights), (len(order), len(groups.names)))
    sizes = np.bincount(groups.of_item[groups.of_item >= 0], minlength=len(groups.names)).astype(np.float32)
    return KeywordDictionary([counted[row] for row in order], groups.names, counts, sizes)


def _head(keywords: Sequence[Keyword], config: KeywordsConfig) -> list[int]:
    """Rows to keep, by takes and items; own words always, others while their type has room."""
    order = sorted(range(len(keywords)), key=lambda row: (-_support(keywords[row]), keywords[row].term))
    room = Counter(dict.fromkeys(config.types, config.max_per_type))
    kept = []
    for row in order:
        keyword = keywords[row]
        if keyword.source == "own":
            kept.append(row)
        elif room[keyword.kind] > 0 and _support(keyword) > 0:
            room[keyword.kind] -= 1
            kept.append(row)
    return kept


def _support(keyword: Keyword) -> int:
    return keyword.n_items + keyword.n_takes
