"""Keywords of a text: one pass of an Aho-Corasick automaton, then what may not stand is dropped. No model.

A match has to begin and end at a boundary of its script (`ring` is not in `string`; `folding.py`). Chinese has one between any
two characters. There the words decide, cut as mining cuts them (`segmentation.py`): what begins inside one word and ends inside
another stands nowhere (`海鲜` is not in `上海|鲜花`). One end at a word's is enough, since cuts err; what lies inside a single word
stands; so does what begins or ends where the characters' run does, and then nothing is cut. Where matches overlap, the policy
says which stand:

* `longest` (default): longest first, earlier first among equals; one that lies inside a kept match is dropped, two that
  overlap in part both stand. This is containment pruning as in OneSearch, by place rather than by spelling: a word that also
  stands alone elsewhere in the text is kept there.
* `disjoint`: the same order, but one that shares any character with a kept match is dropped.
* `all`: every match.

English terms also match in the other number (`shoe`, `shoes`) where that form is not a keyword itself.
"""

from __future__ import annotations

import functools
import importlib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

from rankloom.semantic.keywords.dictionary import Keyword, KeywordDictionary
from rankloom.semantic.keywords.folding import UNSPACED, fold, unspaced
from rankloom.semantic.keywords.segmentation import Segmenter, require

_RUN: Final = re.compile(rf"[{UNSPACED}]+")
Overlap = Literal["longest", "disjoint", "all"]


@dataclass(frozen=True, slots=True)
class KeywordSpan:
    """A keyword in a text.

    Attributes:
        start, end: [start, end) in characters of the text as it was given.
        row: of the dictionary.
        keyword: its entry.
    """

    start: int
    end: int
    row: int
    keyword: Keyword


class KeywordMatcher:
    """Finds the keywords of a dictionary. Safe to share between threads once built.

    Args:
        overlap: the policy, see above.
        numbers: match English terms in singular and plural.
        segmenter: where the words of Chinese lie; jieba, loaded at the first run that has to be cut, where None.

    Raises:
        RankloomError: the extra `search` is not installed.
    """

    def __init__(
        self,
        dictionary: KeywordDictionary,
        *,
        overlap: Overlap = "longest",
        numbers: bool = True,
        segmenter: Segmenter | None = None,
    ) -> None:
        require("ahocorasick", "matching keywords")
        self.dictionary = dictionary
        self.overlap: Overlap = overlap
        self._automaton: Any = importlib.import_module("ahocorasick").Automaton()
        for form, row in surface_forms(dictionary, numbers=numbers).items():
            self._automaton.add_word(form, (row, len(form)))
        self._automaton.make_automaton()
        # training asks for the same titles several times, people for the same queries
        self._ends = functools.lru_cache(maxsize=4096)((segmenter or Segmenter()).ends)

    def match(self, text: str, *, overlap: Overlap | None = None) -> list[KeywordSpan]:
        """The keywords of `text` by place, then longer first."""
        if not len(self._automaton):
            return []
        folded = fold(text)
        found = [
            (end + 1 - length, end + 1, row)
            for end, (row, length) in self._automaton.iter(folded.text)
            if folded.boundary(end + 1 - length) and folded.boundary(end + 1)
        ]
        found = not_across(folded.text, found, self._ends)
        kept = resolve(found, self.overlap if overlap is None else overlap)
        keywords = self.dictionary.keywords
        return [KeywordSpan(*folded.span(start, end), row, keywords[row]) for start, end, row in kept]

    def rows(self, text: str, *, overlap: Overlap | None = None) -> list[int]:
        """Rows of the distinct keywords of `text`, in the order in which they first occur."""
        return list(dict.fromkeys(span.row for span in self.match(text, overlap=overlap)))


def not_across(
    text: str, found: list[tuple[int, int, int]], ends: Callable[[str], tuple[int, ...]]
) -> list[tuple[int, int, int]]:
    """The (start, end, row) but for those that begin inside one word of a run of unspaced letters and end inside another.

    Args:
        ends: where the words of a run end.
    """
    doubted = {
        place
        for start, end, _ in found
        if end - start > 1 and _in_run(text, start) and _in_run(text, end)
        for place in (start, end)
    }
    if not doubted:
        return found
    # where the word begins that a place is inside of; a place between two words is inside of none
    inside: dict[int, int] = {}
    for run in _RUN.finditer(text):
        if any(run.start() < place < run.end() for place in doubted):
            begin = run.start()
            for end in ends(run[0]):
                inside.update(dict.fromkeys(range(begin + 1, run.start() + end), begin))
                begin = run.start() + end
    return [
        (start, end, row)
        for start, end, row in found
        if start not in inside or end not in inside or inside[start] == inside[end]
    ]


def _in_run(text: str, place: int) -> bool:
    """Whether a place has unspaced letters on both sides."""
    return 0 < place < len(text) and unspaced(text[place - 1]) and unspaced(text[place])


def resolve(found: Sequence[tuple[int, int, int]], overlap: Overlap) -> list[tuple[int, int, int]]:
    """Which of the (start, end, row) stand under a policy; sorted by place, longer first."""
    if overlap == "all":
        return sorted(found, key=lambda span: (span[0], -span[1]))
    kept: list[tuple[int, int, int]] = []
    for start, end, row in sorted(found, key=lambda span: (span[0] - span[1], span[0])):
        if overlap == "disjoint":
            clash = any(start < other_end and other < end for other, other_end, _ in kept)
        else:
            clash = any(other <= start and end <= other_end for other, other_end, _ in kept)
        if not clash:
            kept.append((start, end, row))
    return sorted(kept, key=lambda span: (span[0], -span[1]))


def surface_forms(dictionary: KeywordDictionary, *, numbers: bool) -> dict[str, int]:
    """What the automaton looks for: every term, and the other number of English ones; a form means one row."""
    forms = dict(dictionary.index)
    if numbers:
        for row, keyword in enumerate(dictionary.keywords):
            for form in other_numbers(keyword.term):
                forms.setdefault(form, row)
    return forms


def other_numbers(term: str) -> list[str]:
    """Singulars and plurals that an English term may stand for; none for other scripts, short words and numbers."""
    word = term.rpartition(" ")[2]
    if len(word) < 3 or not (word.isascii() and word.isalpha()):
        return []
    if word.endswith("ies") and len(word) > 4:
        return [term[:-3] + "y"]
    if word.endswith(("sses", "shes", "ches", "xes")):
        return [term[:-2]]
    if word.endswith(("us", "is")):
        return []
    if word.endswith(("ss", "sh", "ch", "x")):
        return [term + "es"]
    if word.endswith("s"):
        return [term[:-1]]
    if word.endswith("y") and word[-2] not in "aeiou":
        return [term[:-1] + "ies"]
    return [term + "s"]
