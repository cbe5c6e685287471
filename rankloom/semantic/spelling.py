"""Which known word a mistyped one stands for: one slip away, the more frequent the likelier.

A slip is a letter too many, one missing, one replaced, or two neighbours changed over (Damerau 1964). Words that share a
spelling with one letter dropped are one or two slips apart (the deletion index of SymSpell), so a lookup reads a few dozen
words however large the vocabulary is.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from typing import Final

SHORTEST: Final = 4
"""Letters of a word that may be corrected: shorter ones are too easily another word."""


class Spelling:
    """Args: frequency: how often each known word is used; words without use are not suggested."""

    def __init__(self, frequency: Mapping[str, int]) -> None:
        self.frequency = {word: n for word, n in frequency.items() if n > 0 and len(word) >= SHORTEST - 1}
        self._by_deletion: defaultdict[str, list[str]] = defaultdict(list)
        for word in self.frequency:
            for spelling in _deletions(word):
                self._by_deletion[spelling].append(word)

    def correct(self, word: str) -> str | None:
        """The most frequent known word one slip away, ties by alphabet; None where there is none."""
        if len(word) < SHORTEST or not word.isalpha():
            return None
        near = {other for spelling in _deletions(word) for other in self._by_deletion.get(spelling, ())}
        near = {other for other in near if one_slip(word, other)}
        return min(near, key=lambda other: (-self.frequency[other], other), default=None)


def one_slip(first: str, second: str) -> bool:
    """Whether two different words are one insertion, deletion, replacement or swap of neighbours apart."""
    if first == second or abs(len(first) - len(second)) > 1:
        return False
    start = 0
    while start < min(len(first), len(second)) and first[start] == second[start]:
        start += 1
    a, b = first[start:], second[start:]
    if len(a) == len(b):
        return a[1:] == b[1:] or (a[:2] == b[1::-1] and a[2:] == b[2:])
    longer, shorter = (a, b) if len(a) > len(b) else (b, a)
    return longer[1:] == shorter


def _deletions(word: str) -> set[str]:
    return {word, *(word[:place] + word[place + 1 :] for place in range(len(word)))}
