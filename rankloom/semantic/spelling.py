"""Which known word a mistyped one stands for: the fewest slips away, the more frequent the likelier.

A slip is a letter too many, one missing, one replaced, or two neighbours changed over (Damerau 1964, each place touched once). Words
that share a spelling with some letters dropped are few slips apart (the deletion index of SymSpell), so a lookup reads a few dozen
words however large the vocabulary is. One slip is forgiven from four letters on, two from eight on.

Chinese has no letters: a wrong character spoils the two pairs that it stands in (words.py). `mended_pair` finds the character that
makes known pairs of them again.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping
from functools import cached_property
from typing import Final

SHORTEST: Final = 4
"""Letters of a word that may be corrected: shorter ones are too easily another word."""
SHORTEST_TWICE: Final = 8
"""Letters of one in which two slips are forgiven."""
MOST_TYPOS: Final = 2
_PLURAL: Final = 2
"""Letters that a plural has more, at most (words.py)."""
_TELLING: Final = 0.5
"""Share of the items with a pair that must go on with the other one, before a wrong character at the edge of a run is seen as such."""


class Spelling:
    """Args: frequency: how often each known word is used; words without use are not suggested."""

    def __init__(self, frequency: Mapping[str, int]) -> None:
        self.frequency = {word: n for word, n in frequency.items() if n > 0 and len(word) >= SHORTEST - 1}
        self._pairs = [word for word, n in frequency.items() if n > 0 and len(word) == 2]

    @cached_property
    def _by_deletion(self) -> dict[str, list[str]]:
        return _index(self.frequency, 1)

    @cached_property
    def _by_two_deletions(self) -> dict[str, list[str]]:
        # built when somebody asks for it: some fifty spellings a word
        return _index([word for word in self.frequency if len(word) >= SHORTEST_TWICE - 2], 2)

    @cached_property
    def _by_first(self) -> dict[str, list[str]]:
        return _grouped(self._pairs, 0)

    @cached_property
    def _by_second(self) -> dict[str, list[str]]:
        return _grouped(self._pairs, 1)

    def correct(self, word: str, typos: int = 1, typed: str | None = None) -> str | None:
        """The most frequent known word that is the fewest slips away, ties by alphabet; None where there is none.

        Args:
            typos: slips that are forgiven, 0 to `MOST_TYPOS`.
            typed: the word before its `s` was cut as a plural's (`dres`, `lams`): it may be the one meant, and its letters count.
        """
        forms = [word] if typed is None or not 0 < len(typed) - len(word) <= _PLURAL else [word, typed]
        length = len(forms[-1])
        if typos < 1 or length < SHORTEST or not word.isalpha():
            return None
        near = {own for form in forms for own in self._near(form, self._by_deletion, 1)}
        if len(word) < SHORTEST:
            near = {own for own in near if len(own) >= SHORTEST}
        if not near and typos > 1 and length >= SHORTEST_TWICE:
            near = {own for form in forms for own in self._near(form, self._by_two_deletions, 2)}
        return min(near, key=lambda other: (-self.frequency[other], other), default=None)

    def _near(self, word: str, index: Mapping[str, list[str]], typos: int) -> set[str]:
        found = {other for spelling in _deletions(word, typos) for other in index.get(spelling, ())}
        return {other for other in found if other != word and slips(word, other, most=typos) <= typos}

    def mended_pair(
        self, before: str | None, pair: str, after: str | None, follows: Callable[[str, str], float]
    ) -> tuple[str, ...] | None:
        """The known pairs that an unknown pair of characters stands for, or None.

        Args:
            before: the known pair that ends with the first character of `pair`, where there is one.
            after: the *unknown* pair that begins with the second, for a wrong character within a run; the *known* one, for a wrong
                character at its beginning.
            follows: share of the items with the first pair that have the second too.

        Returns:
            both pairs where the character in the middle was wrong, else the one.
        """
        if before is None and after is None:
            return None
        if before is None and after is not None and self._known(after):
            own = [other for other in self._by_second.get(pair[1], ()) if follows(after, other) >= _TELLING]
            best = max(own, key=lambda other: (follows(after, other), other), default=None)
            return None if best is None else (best,)
        if after is not None:
            ends = {other[0]: other for other in self._by_second.get(after[1], ())}
            both = [(other, ends[other[1]]) for other in self._by_first.get(pair[0], ()) if other[1] in ends]
            scored = [(min(follows(*two), follows(two[1], two[0])), two) for two in both]
            return max([own for own in scored if own[0] > 0], default=(0.0, None))[1]
        assert before is not None
        own = [other for other in self._by_first.get(pair[0], ()) if follows(before, other) >= _TELLING]
        best = max(own, key=lambda other: (follows(before, other), other), default=None)
        return None if best is None else (best,)

    def _known(self, pair: str) -> bool:
        return pair in self._by_first.get(pair[0], ())


def slips(first: str, second: str, *, most: int) -> int:
    """Insertions, deletions, replacements and swaps of neighbours between two words; `most` + 1 where there are more."""
    if abs(len(first) - len(second)) > most:
        return most + 1
    older: list[int] = []
    old = list(range(len(second) + 1))
    for place, letter in enumerate(first, start=1):
        new = [place]
        for at, other in enumerate(second, start=1):
            value = min(old[at] + 1, new[at - 1] + 1, old[at - 1] + (letter != other))
            if place > 1 and at > 1 and letter == second[at - 2] and first[place - 2] == other:
                value = min(value, older[at - 2] + 1)
            new.append(value)
        if min(new) > most:
            return most + 1
        older, old = old, new
    return min(old[-1], most + 1)


def one_slip(first: str, second: str) -> bool:
    """Whether two different words are one insertion, deletion, replacement or swap of neighbours apart."""
    return first != second and slips(first, second, most=1) == 1


def _index(words: Mapping[str, int] | list[str], n: int) -> dict[str, list[str]]:
    out: defaultdict[str, list[str]] = defaultdict(list)
    for word in words:
        for spelling in _deletions(word, n):
            out[spelling].append(word)
    return dict(out)


def _grouped(pairs: list[str], at: int) -> dict[str, list[str]]:
    out: defaultdict[str, list[str]] = defaultdict(list)
    for pair in pairs:
        out[pair[at]].append(pair)
    return dict(out)


def _deletions(word: str, n: int) -> set[str]:
    found = {word}
    for _ in range(n):
        found |= {own[:place] + own[place + 1 :] for own in found for place in range(len(own))}
    return found
