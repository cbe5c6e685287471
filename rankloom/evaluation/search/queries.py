"""Synthetic queries out of item text, the same for the same seed: what a shopper might have typed to get to an item.

No public set has people, histories, item text and queries together, so product search is measured on made ones, after
HEM (Ai et al., SIGIR 2017): they stand for needs, not for the words of real people, and every figure on them says so.

* `category`: the words of one of the item's category paths. Hundreds of items share it, so the person decides.
* `keyword`: two words of the title that at least three items have together. Nearly the item's name; words decide.
"""

from __future__ import annotations

import random
import zlib
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any, Final, Literal

import numpy as np
import polars as pl

from rankloom.evaluation.search.words import STOP_WORDS, plain_words

Kind = Literal["category", "keyword"]
KINDS: Final[tuple[Kind, ...]] = ("category", "keyword")
_FEWEST: Final = 5
_COMMONEST: Final = 12  # a title word in more than a twelfth of the catalogue says too little
_SHARED: Final = 3
_PAIRS: Final = 40


def category_paths(categories: pl.Series | None, n_items: int) -> list[list[list[str]]]:
    """Every item's category paths, root first, from the column's three usual forms: lists of paths, one path, or one path
    in a string with commas, `>` or `|` between its levels."""
    if categories is None:
        return [[] for _ in range(n_items)]
    out: list[list[list[str]]] = []
    for value in categories.to_list():
        if not value:
            out.append([])
        elif isinstance(value, str):
            mark = next((mark for mark in (">", "|", ",") if mark in value), ",")
            out.append([[level.strip() for level in value.split(mark) if level.strip()]])
        elif isinstance(value[0], str):
            out.append([list(value)])
        else:
            out.append([[level for level in path if level] for path in value])
    return out


@dataclass(frozen=True)
class QueryMaker:
    """Queries of one catalogue.

    Attributes:
        item_ids: of the shop, as text.
        category_I: per item the queries of its paths with two levels or more.
        keyword_I: per item the title words that may serve (5 items to a twelfth of the catalogue have them).
        owners: the items that have a word in their title.
    """

    item_ids: tuple[str, ...]
    category_I: tuple[tuple[str, ...], ...]
    keyword_I: tuple[tuple[str, ...], ...]
    owners: dict[str, frozenset[int]]

    @classmethod
    def of(cls, items: pl.DataFrame) -> QueryMaker:
        """From a catalogue with `item_id`, `title` and, for category queries, `categories` or `category`."""
        column = next((items[name] for name in ("categories", "category") if name in items.columns), None)
        paths = category_paths(column, items.height)
        titles = [list(dict.fromkeys(plain_words(title or ""))) for title in items["title"].to_list()]
        owners: dict[str, set[int]] = defaultdict(set)
        for row, words in enumerate(titles):
            for word in words:
                owners[word].add(row)
        most = items.height / _COMMONEST
        usable = {word: frozenset(rows) for word, rows in owners.items() if _FEWEST <= len(rows) <= most}
        return cls(
            item_ids=tuple(items["item_id"].cast(pl.String).to_list()),
            category_I=tuple(tuple(words_of_path(path) for path in own if len(path) >= 2) for own in paths),
            keyword_I=tuple(tuple(word for word in words if word in usable) for words in titles),
            owners=usable,
        )

    def make(self, kind: Kind, user_id: str, row: int) -> str | None:
        """The query that led a person to the item of a catalogue row; None where the item's text gives none."""
        draw = random.Random(case_seed(user_id, self.item_ids[row]))
        if kind == "category":
            own = self.category_I[row]
            return draw.choice(own) if own else None
        return self._keyword(row, draw)

    def make_all(
        self, kind: Kind, user_ids: Sequence[str], rows: Sequence[int] | np.ndarray[Any, Any]
    ) -> list[str | None]:
        """`make` for each pair."""
        return [self.make(kind, user, int(row)) for user, row in zip(user_ids, rows, strict=True)]

    def _keyword(self, row: int, draw: random.Random) -> str | None:
        words = self.keyword_I[row]
        pairs = list(combinations(range(len(words)), 2))
        draw.shuffle(pairs)
        for first, second in pairs[:_PAIRS]:
            # title order, as one would type a name
            if len(self.owners[words[first]] & self.owners[words[second]]) >= _SHARED:
                return f"{words[first]} {words[second]}"
        return None


def words_of_path(path: Sequence[str]) -> str:
    """Lower-case words of all levels, stop words out, a repeated word once, at its last place."""
    words = [word for level in path for word in plain_words(level)]
    last = {word: place for place, word in enumerate(words)}
    return " ".join(word for place, word in enumerate(words) if last[word] == place and word not in STOP_WORDS)


def case_seed(user_id: str, item_id: str) -> int:
    """user * 31 + item where both are numbers, else a checksum of the two."""
    if user_id.isdigit() and item_id.isdigit():
        return int(user_id) * 31 + int(item_id)
    return zlib.crc32(f"{user_id}\t{item_id}".encode())
