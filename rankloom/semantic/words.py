"""Text to the words that a search compares: whole words where a script divides them, pairs of neighbours where it does not.

Words are NFKC-folded and lower-cased, English plurals cut (after Harman 1991), so `Dresses`, `dress` and
`DRESS` are one word. Runs of Chinese, Japanese or Korean characters give every pair of neighbouring characters, which needs no
dictionary and finds a word inside any longer one. No word is left out: how little a frequent one says, its weight knows.
"""

from __future__ import annotations

import re
import unicodedata
from functools import lru_cache
from typing import Final

_CJK: Final = r"\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af\uf900-\ufaff"
_RUNS: Final = re.compile(rf"[{_CJK}]+|[^\W_{_CJK}]+", re.UNICODE)
_IS_CJK: Final = re.compile(rf"[{_CJK}]")
_LONGEST: Final = 64
"""Characters of a word; what is longer is no word that anybody types."""


def words(text: str) -> list[str]:
    """The words of a text in order, with repeats."""
    return [word for word, _ in as_typed(text)]


def as_typed(text: str) -> list[tuple[str, str]]:
    """The same, each with how it stood there, in lower case: (`lens` cut to `len`, `lens`)."""
    out: list[tuple[str, str]] = []
    for run in _RUNS.findall(unicodedata.normalize("NFKC", text).lower()):
        if not _IS_CJK.match(run):
            out.append((singular(run[:_LONGEST]), run))
        elif len(run) == 1:
            out.append((run, run))
        else:
            out.extend((run[place : place + 2],) * 2 for place in range(len(run) - 1))
    return out


def is_pair(word: str) -> bool:
    """Whether a word is a pair of neighbouring characters of a script that does not divide words."""
    return len(word) == 2 and bool(_IS_CJK.match(word)) and bool(_IS_CJK.match(word[1]))


def is_character(word: str) -> bool:
    """Whether a word is a single character of such a script."""
    return len(word) == 1 and bool(_IS_CJK.match(word))


@lru_cache(maxsize=100_000)
def singular(word: str) -> str:
    """A word without its English plural: `ies` and `ie` to `y`, `es` after a hiss dropped, else `s`."""
    if len(word) > 4 and word.endswith(("ie", "ies")):
        # cookie and cookies, battery and batteries
        return word.removesuffix("s")[:-2] + "y"
    if len(word) < 4 or not word.endswith("s") or word.endswith(("us", "ss")):
        return word
    if word.endswith(("sses", "shes", "ches", "xes", "zes")):
        return word[:-2]
    return word[:-1]
