"""Where words lie: by their letters in spaced scripts, by jieba in Chinese.

Mining cuts every title with it; matching cuts a Chinese run in which it found a keyword that is not the whole run.

jieba is an extra (`pip install 'rankloom[search]'`), loaded at the first Chinese run that is to be cut. Its dictionary is read
straight from the package: nothing is printed, and the cache that jieba keeps in the system's temporary folder, which anybody
on the machine may write, is neither read nor written.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import itertools
import logging
import re
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final

from rankloom.errors import RankloomError
from rankloom.semantic.keywords.folding import UNSPACED

_RUNS: Final = re.compile(rf"[{UNSPACED}]+|(?:[^\W_{UNSPACED}]|(?<=\w)['’](?=\w)|(?<=\d)[.,](?=\d))+")
_UNSPACED_RUN: Final = re.compile(rf"[{UNSPACED}]")


class Segmenter:
    """Words of folded text.

    Args:
        words: own words of unspaced scripts and how often each occurs, in place of jieba's dictionary; for tests.
    """

    def __init__(self, words: Mapping[str, int] | None = None) -> None:
        self._words = None if words is None else dict(words)

    def words(self, text: str) -> list[tuple[int, int]]:
        """[start, end) of every word, in order. What is neither letter nor digit belongs to none."""
        found: list[tuple[int, int]] = []
        for run in _RUNS.finditer(text):
            if _UNSPACED_RUN.match(run[0]) is None:
                found.append(run.span())
                continue
            at = run.start()
            for word in self._cut(run[0]):
                found.append((at, at + len(word)))
                at += len(word)
        return found

    def ends(self, run: str) -> tuple[int, ...]:
        """Where the words of a run of unspaced letters end, ascending; the last is the run's length."""
        return tuple(itertools.accumulate(len(word) for word in self._cut(run)))

    def _cut(self, run: str) -> Iterable[str]:
        words: Iterable[str] = self._jieba.cut(run, HMM=self._words is None)
        return words

    def noun(self, word: str) -> bool:
        """Whether jieba's dictionary calls a word of an unspaced script a noun; of own words all are."""
        if self._words is not None:
            return word in self._words
        return word in _shared_jieba()[1]

    @functools.cached_property
    def _jieba(self) -> Any:
        return _shared_jieba()[0] if self._words is None else _load_jieba(self._words)[0]


def require(package: str, purpose: str) -> None:
    """Refuses when `package` of the extra `search` is not installed.

    Raises:
        RankloomError: it is not.
    """
    if importlib.util.find_spec(package) is None:
        raise RankloomError(
            f"{purpose} needs the package {'pyahocorasick' if package == 'ahocorasick' else package}",
            place="keywords",
            action="install it with `pip install 'rankloom[search]'`, or set keywords.enabled=false",
            code="search-extra-missing",
        )


@functools.cache
def _shared_jieba() -> tuple[Any, frozenset[str]]:
    return _load_jieba(None)


def _load_jieba(words: Mapping[str, int] | None) -> tuple[Any, frozenset[str]]:
    """A tokenizer, and the words that its dictionary calls nouns."""
    require("jieba", "finding the words of Chinese text")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its import speaks of pkg_resources
        jieba: Any = importlib.import_module("jieba")
    jieba.setLogLevel(logging.WARNING)
    own = jieba.Tokenizer()
    nouns: frozenset[str] = frozenset()
    if words is None:
        path = Path(jieba.__file__).parent / "dict.txt"
        with open(path, "rb") as handle:
            own.FREQ, own.total = own.gen_pfdict(handle)
        with open(path, encoding="utf-8") as lines:
            entries = (line.split(" ") for line in lines)
            # common nouns and other names of things: not people (nr), places (ns) or organisations (nt)
            nouns = frozenset(word for word, _, tag in entries if tag.strip() in ("n", "nz", "ng", "vn"))
    else:
        for word, count in words.items():
            own.FREQ[word] = count
            for end in range(1, len(word)):
                own.FREQ.setdefault(word[:end], 0)
        own.total = max(1, sum(words.values()))
    own.initialized = True
    return own, nouns
