"""Text to terms for an inverted index: Snowball stems without stop words where words are divided, jieba's search cut or pairs
of neighbouring characters where they are not.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import cache
from importlib import import_module
from typing import Any, Final, Literal

from rankloom.errors import RankloomError

Chinese = Literal["bigrams", "jieba"]

# the thirty-three words that Lucene's English analyser leaves out
STOP_WORDS: Final = frozenset(
    re.findall(
        r"\w+",
        "a an and are as at be but by for if in into is it no not of on or such that the their then there these they "
        "this to was will with",
    )
)
_RUN: Final = re.compile(r"[\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff]+|[^\W_]+")
_HAN: Final = re.compile(r"[\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff]")


def plain_words(text: str) -> list[str]:
    """Lower-case words of a text, stop words out; a run of Chinese characters is one word."""
    return [run for run in _runs(text) if run not in STOP_WORDS]


def _runs(text: str) -> list[str]:
    # a letter or digit beside a Chinese character belongs to another word
    return [
        part
        for run in _RUN.findall(text.lower())
        for part in re.split(r"(?<=[^\W\d_a-z])(?=[a-z0-9])|(?<=[a-z0-9])(?=[\u3400-\u9fff])", run)
    ]


def terms(text: str, *, chinese: Chinese = "bigrams") -> list[str]:
    """Index terms in text order, repetitions kept.

    Args:
        chinese: `bigrams` (every pair of neighbouring characters, which needs no dictionary) or `jieba`.
    """
    out: list[str] = []
    stem = _stemmer()
    for run in plain_words(text):
        if not _HAN.search(run):
            out.append(stem(run))
        elif chinese == "jieba":
            out += [word for word in _jieba()(run) if word.strip()]
        else:
            out += [run[place : place + 2] for place in range(len(run) - 1)] or [run]
    return out


def all_terms(texts: Sequence[str], *, chinese: Chinese = "bigrams") -> list[list[str]]:
    """`terms` of every text."""
    return [terms(text, chinese=chinese) for text in texts]


@cache
def _stemmer() -> Callable[[str], str]:
    stem: Callable[[str], str] = cache(optional("Stemmer", "PyStemmer").Stemmer("english").stemWord)
    return stem


@cache
def _jieba() -> Callable[[str], list[str]]:
    jieba = optional("jieba", "jieba")
    jieba.setLogLevel(60)
    return lambda text: list(jieba.lcut_for_search(text))


def optional(module: str, package: str) -> Any:
    """A module that only the baselines need.

    Raises:
        RankloomError: its package is not installed.
    """
    try:
        return import_module(module)
    except ImportError:
        raise RankloomError(
            f"the search baselines need {package}", place=package, action=f"install it: pip install {package}",
            code="package-missing",
        ) from None  # fmt: skip
