"""Keywords from the catalogue's own columns: brands, levels of the category path, values of attributes."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Final

import polars as pl

from rankloom.semantic.keywords.folding import fold, unspaced
from rankloom.semantic.keywords.groups import category_paths
from rankloom.semantic.keywords.kinds import kind_of_attribute

_PARTS: Final = re.compile(r"\s*(?:[&,;/|、，；]|\band\b)\s*", re.IGNORECASE)
_MAX_WORDS: Final = 4
_MAX_CHARACTERS: Final = 12  # of scripts without spaces


def column_values(items: pl.DataFrame, own: Mapping[str, str] | None = None) -> list[list[tuple[str, str]]]:
    """For every item the distinct (term, type) that its columns speak of; a value too long to be a keyword is none.

    `Tools & Accessories` says `tools & accessories`, `tools` and `accessories`.

    Args:
        own: the shop's own `attribute -> type`.
    """
    found: list[dict[tuple[str, str], None]] = [{} for _ in range(items.height)]

    def add(row: int, value: str | None, kind: str) -> None:
        for term in _terms(value or ""):
            found[row][term, kind] = None

    if "brand" in items.columns:
        for row, brand in enumerate(items["brand"].to_list()):
            add_whole = fold(brand or "").text
            if _may_be(add_whole):
                found[row][add_whole, "brand"] = None
    for row, path in enumerate(category_paths(items)):
        for level in path:
            add(row, level, "entity")
    if "attributes" in items.columns:
        for row, pairs in enumerate(items["attributes"].to_list()):
            for pair in pairs or ():
                kind = kind_of_attribute(pair["key"] or "", own)
                if kind is not None:
                    add(row, pair["value"], kind)
    return [list(own_terms) for own_terms in found]


def count_columns(values: list[list[tuple[str, str]]]) -> Counter[tuple[str, str]]:
    """(term, type) -> how many items' columns say it."""
    return Counter(value for row in values for value in row)


def _terms(value: str) -> Iterator[str]:
    whole = fold(value).text
    for term in dict.fromkeys((whole, *_PARTS.split(whole))):
        if _may_be(term):
            yield term


def _may_be(term: str) -> bool:
    """Whether a value is short enough, and more than a number or a single letter."""
    if not any(character.isalpha() for character in term):
        return False
    if any(map(unspaced, term)):
        return 2 <= len(term) <= _MAX_CHARACTERS
    return len(term) >= 2 and term.count(" ") < _MAX_WORDS
