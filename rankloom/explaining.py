"""What `explain` adds to each result beside its sentences: figures that can be checked, computed only when somebody asks.

* the words of the query: how each was read, how much of the query it is, and where this item has it (title, brand, category, or
  what people typed before they took it, which is how a log's synonyms work), with its type where it is known;
* the way through the codes: what each code of the semantic ID means (the categories and title words that set its items apart) and
  how probable the generator found it, the query memory's share included;
* the parts of the score, in nats above the mean of what was generated: they add up to how far the item's score is above that mean;
* what the refiner went by: how much its correction changes where a kind of evidence is taken to be the list's usual one. What such
  a change does depends on the rest, so these do not add up.

Shapes: C generated items of one request, F features, I catalogue rows, L levels.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Final

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray
from torch import Tensor

from rankloom.decoding.beam import BeamResult
from rankloom.decoding.query_memory import QueryMemory, ReadWord
from rankloom.decoding.refine import Refiner
from rankloom.decoding.refine_features import BROAD_FEATURES, FEATURES, SEARCH_FEATURES
from rankloom.requests import CodeStep, WordMatch
from rankloom.semantic.keywords.matching import KeywordMatcher
from rankloom.semantic.text import attribute_texts
from rankloom.semantic.trie import Trie
from rankloom.semantic.words import as_typed, words

_READ: Final = 200
"""Items under a prefix that are read for its meaning."""
_BACKGROUND: Final = 4_000
"""Items of the catalogue that it is set apart from."""
_TERMS: Final = 2
_COMMON: Final = 0.2
"""Share of a prefix's items that have a term before it says what they are."""
_EVERYWHERE: Final = 0.25
"""Share of the catalogue that has a term which tells nothing."""
_EMPTY: Final = frozenset(("and", "by", "for", "from", "in", "of", "on", "or", "the", "to", "with"))
_KINDS: Final = {
    "words": (*SEARCH_FEATURES, "search"),
    "memory": ("memory", "memory says", "memory of its category", "memory of its code"),
    "scores": ("generator", "selection", "generator rank", "selection rank", "generator of its category",
               "generator of its code", "selection of its category", "selection of its code"),
    "popularity and age": ("now", "log count", "never taken", "watched", "log age", "age"),
    "price and length": tuple(f"{name} {way}" for name in ("price", "duration") for way in ("above the usual", "off the usual")),
}  # fmt: skip
_REST: Final = "history"


class Explainer:
    """Of one catalogue; what it has read of it is kept.

    Args:
        items: with `title`, and `brand` and `category` where they are known.
        codes_IL: semantic IDs.
        memory: of queries, None without one.
        keywords: finds typed keywords, None without a dictionary.
    """

    def __init__(
        self,
        items: pl.DataFrame,
        trie: Trie,
        codes_IL: NDArray[np.integer],
        memory: QueryMemory | None,
        keywords: KeywordMatcher | None,
    ) -> None:
        self.trie, self.codes_IL, self.memory, self.keywords = trie, codes_IL, memory, keywords
        self.titles: list[str] = items["title"].fill_null("").to_list()
        self.brands: list[str | None] = [None] * items.height
        if "brand" in items.columns:
            self.brands = items["brand"].cast(pl.String, strict=False).to_list()
        self.paths: list[list[str]] = [[] for _ in range(items.height)]
        if "category" in items.columns and items["category"].dtype == pl.List(pl.String):
            self.paths = [[name for name in path or () if name] for path in items["category"].to_list()]
        self.attributes: list[str] = attribute_texts(items).to_list()
        self._meanings: dict[tuple[int, ...], str] = {}
        self._usual: tuple[Counter[str], Counter[str], int] | None = None

    # -- words -----------------------------------------------------------------------------------------------------

    def words(self, rows: Sequence[int], query: str, typos: int) -> list[list[WordMatch]]:
        """Of each row the words of the query."""
        if self.memory is None:
            return [[] for _ in rows]
        read = self.memory.read(query, typos)
        shares = self.memory.shares(read)
        in_text, asked = self.memory.evidence(rows, read)
        kinds = self._kinds(query, read)
        out = []
        for place, row in enumerate(rows):
            fields = {"title": set(words(self.titles[row])), "brand": set(words(self.brands[row] or "")),
                      "category": set(words(" ".join(self.paths[row]))), "attributes": set(words(self.attributes[row]))}  # fmt: skip
            own = []
            for at, word in enumerate(read):
                where = [name for name, has in fields.items() if in_text[place, at] and _stands_in(word, has)]
                if asked[place, at]:
                    where.append("searches")
                kind = kinds[at] or ("brand" if "brand" in where else None)
                own.append(WordMatch(word.word, word.read_as, round(shares[at], 4), tuple(where), kind))
            out.append(own)
        return out

    def _kinds(self, query: str, read: Sequence[ReadWord]) -> list[str | None]:
        """The type of the keyword that each word belongs to, the longest one."""
        if self.keywords is None:
            return [None] * len(read)
        texts = [query, " ".join(own.read_as or own.word for own in read)]
        of: dict[str, str] = {}
        for text in texts:
            for span in self.keywords.match(text):
                for word in words(text[span.start : span.end]):
                    of.setdefault(word, span.keyword.kind)
        return [of.get(form_of(own)) for own in read]

    # -- codes -----------------------------------------------------------------------------------------------------

    def path(self, row: int, beams: BeamResult, request: int) -> list[CodeStep]:
        """The codes of an item, what they mean, and the log-probability of each given those before it; None where the beam did not
        keep it."""
        out: list[CodeStep] = []
        before: float | None = 0.0
        prefix: tuple[int, ...] = ()
        for depth, code in enumerate(self.codes_IL[row].tolist()):
            prefix = (*prefix, int(code))
            total = _log_prob_of(beams, depth, request, self.trie.node_of_prefix(prefix))
            own = None if total is None or before is None else round(total - before, 4)
            out.append(CodeStep(int(code), self.meaning(prefix), own))
            before = total
        return out

    def meaning(self, prefix: tuple[int, ...]) -> str:
        """The categories and title words that set the items under a prefix apart from the catalogue."""
        if prefix not in self._meanings:
            node = self.trie.node_of_prefix(prefix)
            rows = [] if node is None else self.trie.items_under(len(prefix), node).tolist()
            self._meanings[prefix] = self._told(rows[:: max(1, len(rows) // _READ)][:_READ])
        return self._meanings[prefix]

    def _told(self, rows: Sequence[int]) -> str:
        if not rows:
            return ""
        categories, terms, n = self._background()
        found = _telling(
            Counter(name for row in rows for name in dict.fromkeys(self.paths[row])), categories, len(rows), n
        )
        said = set(words(" ".join(found)))
        forms = [dict(as_typed(self.titles[row])) for row in rows]
        counted = Counter(
            word for own in forms for word in own if len(word) > 1 and not word.isdigit() and word not in _EMPTY
        )
        typical = [word for word in _telling(counted, terms, len(rows), n, most=2 * _TERMS) if word not in said]
        typed = {word: form for own in forms for word, form in own.items()}
        return " · ".join([*found, *(typed[word] for word in typical[:_TERMS])])

    def _background(self) -> tuple[Counter[str], Counter[str], int]:
        if self._usual is None:
            rows = self.trie.leaf_items.tolist()
            if len(rows) > _BACKGROUND:
                rows = np.random.default_rng(0).choice(rows, _BACKGROUND, replace=False).tolist()
            self._usual = (
                Counter(name for row in rows for name in dict.fromkeys(self.paths[row])),
                Counter(word for row in rows for word in set(words(self.titles[row]))),
                len(rows),
            )
        return self._usual


def _stands_in(word: ReadWord, has: set[str]) -> bool:
    """Whether a word is among those of a field; a single Chinese character in any word that has it."""
    form = form_of(word)
    return any(form in own for own in has) if word.within else form in has


def form_of(word: ReadWord) -> str:
    """A word of a query in the form in which it is compared."""
    return word.read_as or (words(word.word) or [word.word])[0]


def _telling(inside: Counter[str], usual: Counter[str], size: int, n: int, *, most: int = _TERMS) -> list[str]:
    """Terms that many of these items have and few others: share among them, squared, over share in the catalogue."""
    scored = [
        ((count / size) ** 2 * (n + 1) / (usual[term] + 1), term)
        for term, count in inside.items()
        if count >= _COMMON * size and usual[term] <= _EVERYWHERE * n
    ]
    return [term for value, term in sorted(scored, key=lambda own: (-own[0], own[1]))[:most] if value > 1]


def _log_prob_of(beams: BeamResult, depth: int, request: int, node: int | None) -> float | None:
    if node is None or depth >= len(beams.levels):
        return None
    level = beams.levels[depth]
    at = torch.nonzero(level.node_BW[request] == node)
    return float(level.log_prob_BW[request, int(at[0, 0])]) if len(at) else None


# -- the score -----------------------------------------------------------------------------------------------------


def above_the_mean(parts: dict[str, Tensor], real_C: Tensor, columns: Sequence[int]) -> list[dict[str, float]]:
    """Of each column every part of the score, less its mean over the generated items.

    Args:
        parts: (C,) each.
        real_C: which items are no padding.
    """
    told: list[dict[str, float]] = [{} for _ in columns]
    for name, value_C in parts.items():
        usual = float(value_C[real_C].double().mean())
        for own, column in zip(told, columns, strict=True):
            own[name] = round(float(value_C[column]) - usual, 4)
    return told


@torch.no_grad()
def refiner_parts(
    refiner: Refiner, feature_CF: Tensor, real_C: Tensor, columns: Sequence[int]
) -> list[dict[str, float]]:
    """Of each column how much its correction changes by each kind of evidence, see the module's docstring."""
    names = (*FEATURES, *SEARCH_FEATURES, *BROAD_FEATURES)[: feature_CF.shape[1]]
    usual_F = feature_CF[real_C].mean(0)
    own_F = feature_CF[list(columns)]
    whole: Callable[[Tensor], Tensor] = lambda feature: refiner(feature[None])[0]  # noqa: E731
    full = whole(own_F)
    told: list[dict[str, float]] = [{} for _ in columns]
    for kind in (*_KINDS, _REST):
        inside = torch.tensor([kind_of(name) == kind for name in names])
        if not inside.any():
            continue
        change = full - whole(torch.where(inside, usual_F, own_F))
        for own, value in zip(told, change.tolist(), strict=True):
            own[kind] = round(value, 4)
    return told


def kind_of(feature: str) -> str:
    """The kind of evidence that a feature of the refiner is."""
    return next((kind for kind, names in _KINDS.items() if feature in names), _REST)
