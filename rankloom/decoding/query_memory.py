"""Query memory: the items whose words a query has, interpolated with the generator inside the trie.

A generator that reads a query as a vector knows what it means and forgets what it says: a model number, a brand that
came yesterday, the second of two words. The memory is an inverted index over the catalogue's text and over the words that
people typed before they took an item whose text has not got them, scored by BM25. For a query q and a history h it names
items with an amount

    memory(i | q, h) ~ exp(SHARPNESS * (bm25(q, i) / best - 1)) * sqrt(1 + n_i / mean n) * (1 + PERSONAL * behaviour(i | h))

the relevance of the words, how often the item is taken, and what the person's history brings to mind (memory.py). The
amounts add up over the trie as those of the behaviour memory do (`Guide`), in whose place they stand when somebody
searches; how much they count is chosen on validation. A new item is in the index at once. Words are compared in every
script (semantic/words.py); one that nothing knows is read as the known word few slips away (semantic/spelling.py), and a
title that claims too much is not believed (semantic/stuffing.py). The words that people typed before they took an item are its
synonyms: they find it, and are forgiven slips, as the words of its text are.

What is learned from a log's searches holds for words like theirs: a shop whose people search for kinds and styles teaches that the taken
item often lacks a word. Of a word that no search has had, a model number or a brand of today, it says nothing, and who types it is taken
at their word, and so is who types the whole title of an item. So a match tells how much of the query an item has in such untried words,
and the order lifts it (`Weights.untried`).

Shapes: I catalogue rows, V words, E entries, B requests, N named (request, item) pairs.
"""

from __future__ import annotations

import copy
from collections import Counter, OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray
from scipy import sparse
from torch import Tensor

from rankloom.semantic.spelling import Spelling
from rankloom.semantic.stuffing import believed
from rankloom.semantic.text import attribute_texts
from rankloom.semantic.words import as_typed, is_character, is_pair, words

K1: Final = 0.9
B: Final = 0.6
"""BM25's saturation of repeated words and discount of long texts (Robertson and Zaragoza 2009)."""
DEPTH: Final = 1_000
"""Best items of a query that are remembered."""
SHARPNESS: Final = 14.0
PERSONAL: Final = 200.0
CERTAINTY: Final = 5.0
"""Amount of all that a fully understood query says, beside `EVIDENCE` (memory.py)."""
SLIP: Final = 0.7
"""Weight of a word that was corrected."""
TRIED: Final = 3.0
"""Items taken after a search with a word, by which what is untried of it falls to one e-th."""
NAMED: Final = 4
"""Words from which on a query that has all words of a title, and no others, names the item."""
_COMPARED: Final = 50
"""Items whose titles are compared, at most: of more with all words of a query it names none."""
_MANY: Final = 50_000
"""Matches from which on a part of them says which can be among the best."""
_KEPT: Final = 2_048

IntArray = NDArray[np.int64]
FloatArray = NDArray[np.float32]


@dataclass(frozen=True)
class Match:
    """What the words of one query find.

    Attributes:
        row: (n,) catalogue rows, ascending, at most `DEPTH`.
        relevance: (n,) BM25 score over the best one's, in (0, 1].
        coverage: (n,) share of the query that the item has, words weighed by how rare they are.
        place: (n,) 0-based place by relevance.
        untried: (n,) share of the query that the item has in words that no search of the log has had, less where few have; 1 where the
            query is its title.
        read_as: words of the query that were taken for another one, and for which.
        unknown: words of the query that nothing knows.
    """

    row: IntArray
    relevance: FloatArray
    coverage: FloatArray
    place: IntArray
    untried: FloatArray
    read_as: tuple[tuple[str, str], ...] = ()
    unknown: tuple[str, ...] = ()


@dataclass(frozen=True)
class ReadWord:
    """One word of a query as it was understood.

    Attributes:
        word: as it was typed, in lower case.
        number: of the known word that it stands for; -1 where nothing knows it.
        read_as: that word, where it is another one.
        weight: how much of a word it counts, less where it was corrected.
        within: numbers of the known words that have it, of a single Chinese character; together they are one word.
    """

    word: str
    number: int
    read_as: str | None = None
    weight: float = 1.0
    within: tuple[int, ...] = ()


def searched_texts(items: pl.DataFrame) -> list[str]:
    """Title, brand, category path and values of attributes of every item, whatever of them there is; the title is the first line."""
    columns = [items["title"].fill_null("").str.replace_all("\n", " ", literal=True) + "\n"]
    if "brand" in items.columns:
        columns.append(items["brand"].cast(pl.String, strict=False).fill_null(""))
    if "category" in items.columns and items["category"].dtype == pl.List(pl.String):
        columns.append(items["category"].list.join(" ", ignore_nulls=True).fill_null(""))
    if "attributes" in items.columns:
        columns.append(attribute_texts(items))
    return pl.select(pl.concat_str(columns, separator=" ")).to_series().to_list()


class QueryMemory:
    """See the module's docstring. `fit` it; `following` gives the one of a live catalogue.

    Args:
        vocabulary: distinct words.
        text_IV: occurrences of words in the items' texts, CSR.
        asked_IV: log-scaled takes of items after queries with these words, CSR.
        texts: what `text_IV` was counted in.
    """

    def __init__(
        self, vocabulary: Sequence[str], text_IV: sparse.csr_matrix, asked_IV: sparse.csr_matrix, texts: Sequence[str]
    ) -> None:
        self.vocabulary = {word: number for number, word in enumerate(vocabulary)}
        self._text, self._asked, self._texts = text_IV, asked_IV, list(texts)
        self._spelling: Spelling | None = None
        self._by_character: dict[str, list[int]] | None = None
        n = len(self._texts)
        self._follow(self._texts, np.ones(n, dtype=np.bool_), np.zeros(n, np.float32), np.full(n, -1, dtype=np.int64))

    @classmethod
    def fit(cls, texts: Sequence[str], takes: Iterable[tuple[int, str]]) -> QueryMemory:
        """From the texts of the catalogue and (row, query) of the training period's takes after searches."""
        vocabulary: dict[str, int] = {}
        counted: Counter[tuple[int, int]] = Counter()
        for row, query in takes:
            counted.update((row, vocabulary.setdefault(word, len(vocabulary))) for word in dict.fromkeys(words(query)))
        text = _counts(texts, vocabulary)
        pairs = sorted(counted)
        asked: Any = (
            np.log2([1.0 + counted[pair] for pair in pairs]).astype(np.float32),
            ([row for row, _ in pairs], [word for _, word in pairs]),
        )
        shape = (len(texts), len(vocabulary))
        return cls(list(vocabulary), _wide(text, shape), sparse.csr_matrix(asked, shape=shape, dtype=np.float32), texts)

    # -- the catalogue ---------------------------------------------------------------------------------------------

    def following(
        self,
        texts: Sequence[str],
        alive_I: NDArray[np.bool_],
        count_I: NDArray[np.floating[Any]],
        group_I: NDArray[np.int64],
    ) -> QueryMemory:
        """The memory of these texts: new and changed ones are read, the others kept. This one stays as it is: a server answers from it
        until the new catalogue is whole.

        Args:
            alive_I: rows that may be found.
            count_I: how often each was taken in training.
            group_I: whose words bear out an item's own (semantic/stuffing.py), -1 for nobody's.
        """
        other = copy.copy(self)
        other.vocabulary = dict(self.vocabulary)
        other._follow(texts, alive_I, count_I, group_I)
        return other

    def _follow(
        self, texts: Sequence[str], alive_I: NDArray[np.bool_], count_I: NDArray[np.floating[Any]], group_I: NDArray[np.int64]
    ) -> None:
        known = len(self._texts)
        changed = [row for row, text in enumerate(texts) if row >= known or text != self._texts[row]]
        if changed:
            fresh = _counts([texts[row] for row in changed], self.vocabulary)
            shape = (len(texts), len(self.vocabulary))
            kept = np.ones(len(texts), dtype=np.float32)
            kept[changed] = 0
            place: Any = (np.ones(len(changed), np.float32), (changed, np.arange(len(changed))))
            spread = sparse.csr_matrix(place, shape=(len(texts), len(changed)))
            self._text = sparse.csr_matrix(
                sparse.diags_array(kept) @ _wide(self._text, shape) + spread @ _wide(fresh, (len(changed), shape[1]))
            ).astype(np.float32)
            self._text.eliminate_zeros()
            self._asked = _wide(self._asked, shape)
            self._texts = list(texts)
            self._spelling = self._by_character = None
        self._weigh(alive_I, group_I)
        taken = np.asarray(count_I, dtype=np.float64)
        self._popularity = np.sqrt(1 + taken / max(float(taken.mean()) if len(taken) else 0.0, 1e-9)).astype(np.float32)
        self._kept: OrderedDict[tuple[str, int], Match] = OrderedDict()

    def _weigh(self, alive_I: NDArray[np.bool_], group_I: NDArray[np.int64]) -> None:
        """BM25 impacts of every entry by word, over the items that may be found and the words that are believed."""
        present = sparse.diags_array(alive_I.astype(np.float32))
        text = sparse.csr_matrix(present @ self._text)
        text.eliminate_zeros()
        text = believed(text, np.where(alive_I, group_I, -1))
        asked = sparse.csr_matrix(present @ self._asked)
        # what an item says of itself needs no second telling: it would make the words of popular items weigh more
        taken_V = np.bincount(self._asked.indices, minlength=len(self.vocabulary))
        self._untried = np.exp(-taken_V / TRIED).astype(np.float32)
        asked = asked - asked.multiply(text > 0)
        total = sparse.csr_matrix(text + asked)
        total.eliminate_zeros()
        self._n = n = max(1, int(alive_I.sum()))
        length = np.asarray(self._text.sum(1)).ravel()
        usual = max(float(length[alive_I].mean()) if alive_I.any() else 0.0, 1e-9)
        by_word = total.tocsc()
        frequency = np.diff(by_word.indptr)
        self._idf = np.log1p((n - frequency + 0.5) / (frequency + 0.5)).astype(np.float32)
        self._unknown = float(np.log1p(n + 0.5) + np.log(2))
        discount = K1 * (1 - B + B * length[by_word.indices] / usual)
        impact = by_word.data * (K1 + 1) / (by_word.data + discount) * np.repeat(self._idf, frequency)
        self._start, self._row = by_word.indptr.astype(np.int64), by_word.indices.astype(np.int64)
        self._impact = impact.astype(np.float32)

    # -- asking ----------------------------------------------------------------------------------------------------

    def match(self, query: str, typos: int = 1) -> Match:
        """The items that share a word with the query; the matches of the last queries are kept, many people type the same.

        Args:
            typos: slips of a word that are forgiven, 0 to 2.
        """
        asked = (query, typos)
        found = self._kept.get(asked)
        if found is None:
            found = self._match(query, typos)
            if len(self._kept) >= _KEPT:
                self._kept.popitem(last=False)
            self._kept[asked] = found
        else:
            self._kept.move_to_end(asked)
        return found

    def match_among(self, query: str, typos: int, allowed_I: NDArray[np.bool_]) -> Match:
        """`match`, of the items that are allowed alone: a filter may leave none of the thousand best of the whole catalogue."""
        found = self.match(query, typos)
        if len(found.row) < DEPTH:
            kept = allowed_I[found.row]
            place = np.empty(int(kept.sum()), dtype=np.int64)
            place[np.argsort(found.place[kept], kind="stable")] = np.arange(len(place))
            relevance = found.relevance[kept] / max(float(found.relevance[kept].max(initial=0.0)), 1e-9)
            return replace(
                found, row=found.row[kept], relevance=relevance, coverage=found.coverage[kept], place=place, untried=found.untried[kept]
            )  # fmt: skip
        return self._match(query, typos, allowed_I)

    def _match(self, query: str, typos: int, allowed_I: NDArray[np.bool_] | None = None) -> Match:
        score = np.zeros(len(self._texts), np.float32)
        read = self.read(query, typos)
        found = [None if own.number < 0 else self._entries(own) for own in read]
        for own, entries in zip(read, found, strict=True):
            if entries is not None:
                score[entries[0]] += own.weight * entries[1]
        row = _best(score, allowed_I)
        # what else is told of them needs no pass over the catalogue
        covered, untried, whole = np.zeros(len(row), np.float32), np.zeros(len(row), np.float32), 0.0
        for own, entries, share in zip(read, found, self._untried_shares(read), strict=True):
            if entries is None:
                whole += self._unknown
                continue
            rows, _, idf = entries
            has = _among(row, rows)
            covered[has] += own.weight * idf
            untried[has] += own.weight * idf * share
            whole += idf
        best = float(score[row].max()) if len(row) else 1.0
        order = np.argsort(-score[row], kind="stable")
        place = np.empty(len(row), dtype=np.int64)
        place[order] = np.arange(len(row))
        read_as = corrections(read)
        unknown = tuple(own.word for own in read if own.number < 0)
        coverage, meant = (own / max(whole, 1e-9) for own in (covered, untried))
        meant[self._titled(row, coverage, read)] = 1.0
        return Match(row, score[row] / best, coverage, place, meant, read_as, unknown)

    def _titled(self, row: IntArray, coverage: FloatArray, read: Sequence[ReadWord]) -> IntArray:
        """Places among the rows whose title the query is, in whatever order."""
        asked = {own.read_as or words(own.word)[0] for own in read if own.number >= 0}
        if len(asked) < max(NAMED, len(read)):
            return np.zeros(0, dtype=np.int64)
        full = np.flatnonzero(coverage >= coverage.max(initial=0.0) - 1e-6)
        if len(full) > _COMPARED:
            return np.zeros(0, dtype=np.int64)
        return full[[set(words(self._texts[row[place]].split("\n", 1)[0])) == asked for place in full.tolist()]]

    def _untried_shares(self, read: Sequence[ReadWord]) -> list[float]:
        """How far each word is one that no search of the log has had. A Chinese pair that meets a tried one in a character counts as that
        does: two words that stand together make a pair that is no word."""
        own = [1.0 if word.number < 0 else float(self._untried[list(word.within) or word.number].min()) for word in read]
        forms = [word.read_as or word.word for word in read]
        out = list(own)
        for place in range(1, len(read)):
            first, second = forms[place - 1], forms[place]
            if is_pair(first) and is_pair(second) and first[1] == second[0]:
                out[place - 1] = min(out[place - 1], own[place])
                out[place] = min(out[place], own[place - 1])
        return out

    def _entries(self, own: ReadWord) -> tuple[IntArray, FloatArray, float]:
        """(E,) rows, each once, (E,) BM25 impacts and the idf of a known word; a character counts as the best word that has it."""
        if not own.within:
            entries = slice(self._start[own.number], self._start[own.number + 1])
            return self._row[entries], self._impact[entries], float(self._idf[own.number])
        places = np.concatenate([np.arange(self._start[number], self._start[number + 1]) for number in own.within])
        idf_E = np.repeat(self._idf[list(own.within)], [self._start[n + 1] - self._start[n] for n in own.within])
        rows, which = np.unique(self._row[places], return_inverse=True)
        best = np.zeros(len(rows), np.float32)
        np.maximum.at(best, which, self._impact[places] / idf_E)
        idf = float(np.log1p((self._n - len(rows) + 0.5) / (len(rows) + 0.5)))
        return rows, best * np.float32(idf), idf

    def read(self, query: str, typos: int = 1) -> list[ReadWord]:
        """The distinct words of a query as they are understood.

        Two Chinese words that meet make a pair that nobody knows: between known or corrected pairs it is no word and is left out.
        """
        given = as_typed(query)
        typed = [word for word, _ in given]
        known = [self._known(word) for word in typed]
        out: dict[str, ReadWord] = {}
        done: set[int] = set()
        for place, word in enumerate(typed):
            if word in out or place in done:
                continue
            number = self.vocabulary[word] if known[place] else -1
            within = self._within(word) if is_character(word) else ()
            if within:
                out[word] = ReadWord(word, within[0], within=within)
                continue
            if number < 0 and is_pair(word):
                before = place > 0 and is_pair(typed[place - 1]) and typed[place - 1][1] == word[0]
                after = place + 1 < len(typed) and is_pair(typed[place + 1]) and typed[place + 1][0] == word[1]
                if before and after and known[place - 1] and known[place + 1]:
                    continue
                mended = self._mended(
                    typed[place - 1] if before and known[place - 1] else None, word, typed[place + 1] if after else None, typos
                )  # fmt: skip
                for at, other in enumerate(mended):
                    own = typed[place + at]
                    done.add(place + at)
                    out.setdefault(own, ReadWord(own, self.vocabulary[other], other, SLIP))
                if mended:
                    continue
            elif number < 0:
                corrected = self._speller.correct(word, typos, given[place][1]) if typos else None
                if corrected is not None:
                    out[word] = ReadWord(given[place][1], self.vocabulary[corrected], corrected, SLIP)
                    continue
            out[word] = ReadWord(given[place][1], number)
        for place in range(1, len(typed) - 1):
            first, own, last = typed[place - 1 : place + 2]
            meet = is_pair(first) and is_pair(own) and is_pair(last) and first[1] == own[0] and own[1] == last[0]
            if meet and own in out and out[own].number < 0 and all(known[at] or at in done for at in (place - 1, place + 1)):
                del out[own]
        return list(out.values())

    def _within(self, character: str) -> tuple[int, ...]:
        """Numbers of the words in use that have the character."""
        if self._by_character is None:
            self._by_character = {}
            for word, number in self.vocabulary.items():
                if is_pair(word) or is_character(word):
                    for own in set(word):
                        self._by_character.setdefault(own, []).append(number)
        return tuple(n for n in self._by_character.get(character, ()) if self._start[n] < self._start[n + 1])

    def _known(self, word: str) -> bool:
        number = self.vocabulary.get(word, -1)
        return number >= 0 and bool(self._start[number] < self._start[number + 1])

    def _mended(self, before: str | None, pair: str, after: str | None, typos: int) -> tuple[str, ...]:
        if typos < 1:
            return ()
        return self._speller.mended_pair(before, pair, after, self._follows) or ()

    def _follows(self, first: str, second: str) -> float:
        """Share of the items with the first word that have the second too."""
        one, two = (self._row[self._start[n] : self._start[n + 1]] for n in (self.vocabulary[first], self.vocabulary[second]))
        return float(np.isin(one, two).mean()) if len(one) else 0.0

    @property
    def _speller(self) -> Spelling:
        if self._spelling is None:
            frequency = np.diff(self._start)
            self._spelling = Spelling({own: int(frequency[number]) for own, number in self.vocabulary.items()})
        return self._spelling

    def shares(self, read: Sequence[ReadWord]) -> list[float]:
        """How much of the query each of its words is, by how rare they are; they sum to 1."""
        weights = [self._unknown if own.number < 0 else self._entries(own)[2] for own in read]
        return [weight / max(sum(weights), 1e-9) for weight in weights]

    def evidence(self, rows: Sequence[int], read: Sequence[ReadWord]) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        """((n, words), (n, words)): whether each item's text has a word of a query, and whether people typed it before they took
        the item."""
        numbers = [max(0, own.number) for own in read]
        real = np.array([own.number >= 0 for own in read], dtype=np.bool_)
        shape = (len(rows), len(read))
        if not rows or not read or not self.vocabulary:
            return np.zeros(shape, dtype=np.bool_), np.zeros(shape, dtype=np.bool_)
        text, asked = (own[list(rows)][:, numbers].toarray() > 0 for own in (self._text, self._asked))
        for place, word in enumerate(read):
            if word.within:
                for found, counted in ((text, self._text), (asked, self._asked)):
                    found[:, place] = counted[list(rows)][:, list(word.within)].toarray().any(1)
        return text & real, asked & real

    def recall(
        self, matches: Sequence[Match], behaviour: tuple[Tensor, Tensor, Tensor]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """(N,) request, (N,) catalogue row, (N,) amount of everything that queries and histories bring to mind.

        Args:
            matches: one a request.
            behaviour: what `BehaviourMemory.recall` returned for the histories.
        """
        request = np.repeat(np.arange(len(matches)), [len(match.row) for match in matches])
        row = np.concatenate([match.row for match in matches]) if matches else np.zeros(0, np.int64)
        told = behaviour_of(behaviour, torch.from_numpy(request), torch.from_numpy(row), len(self._texts)).numpy()
        amounts = []
        begin = 0
        for match in matches:
            own = np.exp(SHARPNESS * (match.relevance.astype(np.float64) - 1)) * self._popularity[match.row]
            own *= 1 + PERSONAL * told[begin : begin + len(match.row)]
            begin += len(match.row)
            amounts.append(own * (CERTAINTY * float(match.coverage.max(initial=0.0)) / max(own.sum(), 1e-300)))
        amount = np.concatenate(amounts) if amounts else np.zeros(0)
        return torch.from_numpy(request), torch.from_numpy(row), torch.from_numpy(amount)

    def asked(self, rows: Sequence[int], query: str) -> list[bool]:
        """Whether people took each item after a search for one of these words."""
        asked = self.evidence(rows, self.read(query, typos=0))[1]
        return [bool(own.any()) for own in asked]

    # -- folders ---------------------------------------------------------------------------------------------------

    def arrays(self) -> dict[str, NDArray[Any]]:
        out = {"vocabulary": np.frombuffer("\n".join(self.vocabulary).encode(), dtype=np.uint8)}
        for name, own in (("text", self._text), ("asked", self._asked)):
            out[f"{name}.start"] = own.indptr.astype(np.int64)
            out[f"{name}.word"] = own.indices.astype(np.int32)
            out[f"{name}.count"] = own.data.astype(np.float32)
        return out

    @classmethod
    def from_arrays(cls, arrays: dict[str, NDArray[Any]], texts: Sequence[str]) -> QueryMemory:
        """Raises ValueError where the arrays are not of these texts."""
        vocabulary = bytes(arrays["vocabulary"]).decode().split("\n") if len(arrays["vocabulary"]) else []
        parts = []
        for name in ("text", "asked"):
            start, word, count = (np.asarray(arrays[f"{name}.{part}"]) for part in ("start", "word", "count"))
            if len(start) != len(texts) + 1 or (len(word) and int(word.max()) >= len(vocabulary)):
                raise ValueError(
                    f"{len(start) - 1} texts of {len(vocabulary)} words, the catalogue has {len(texts)} items"
                )
            parts.append(sparse.csr_matrix((count, word, start), shape=(len(texts), len(vocabulary))))
        return cls(vocabulary, parts[0], parts[1], texts)


def _best(score_I: FloatArray, allowed_I: NDArray[np.bool_] | None) -> IntArray:
    """(n,) ascending rows of the `DEPTH` highest scores above 0."""
    row: IntArray = np.flatnonzero(score_I > 0 if allowed_I is None else (score_I > 0) & allowed_I)
    if len(row) > _MANY:
        # the thousandth of a part is no better than that of the whole: what is below it is out
        value = score_I[row]
        part = value[::8]
        row = row[value >= np.partition(part, len(part) - DEPTH)[len(part) - DEPTH]]
    if len(row) > DEPTH:
        row = row[np.argpartition(-score_I[row], DEPTH - 1)[:DEPTH]]
        row.sort()
    return row


def _among(row: IntArray, rows: IntArray) -> NDArray[np.bool_]:
    """Whether each row is one of the others, both ascending."""
    if not len(rows):
        return np.zeros(len(row), dtype=np.bool_)
    found: NDArray[np.bool_] = rows[np.searchsorted(rows, row).clip(max=len(rows) - 1)] == row
    return found


def corrections(read: Sequence[ReadWord]) -> tuple[tuple[str, str], ...]:
    """What was typed and what it was read as; pairs of characters that share the wrong one are told together."""
    out: list[tuple[str, str]] = []
    for own in read:
        if own.read_as is None:
            continue
        if out and is_pair(own.word) and out[-1][0][-1] == own.word[0] and out[-1][1][-1] == own.read_as[0] != own.word[0]:
            wrong, right = out.pop()
            out.append((wrong + own.word[1], right + own.read_as[1]))
        else:
            out.append((own.word, own.read_as))
    return tuple(out)


def behaviour_of(recalled: tuple[Tensor, Tensor, Tensor], request: Tensor, item: Tensor, n_rows: int) -> Tensor:
    """(P,) amount of a behaviour memory for each (request, catalogue row)."""
    own_request, own_item, amount = recalled
    if not len(own_item):
        return torch.zeros(len(request), dtype=torch.float64)
    keys, place = torch.unique(own_request * n_rows + own_item, return_inverse=True)
    total = torch.zeros(len(keys), dtype=torch.float64).index_add_(0, place, amount.double())
    wanted = request * n_rows + item
    at = torch.searchsorted(keys, wanted).clamp_max(len(keys) - 1)
    return torch.where(keys[at] == wanted, total[at], 0.0)


def _counts(texts: Sequence[str], vocabulary: dict[str, int]) -> sparse.csr_matrix:
    """(n, V) occurrences of words; new words get the next numbers."""
    numbers: list[int] = []
    start = [0]
    for text in texts:
        numbers.extend(vocabulary.setdefault(word, len(vocabulary)) for word in words(text))
        start.append(len(numbers))
    entries: Any = (np.ones(len(numbers), np.float32), np.asarray(numbers, np.int64), np.asarray(start))
    counts = sparse.csr_matrix(entries, shape=(len(texts), len(vocabulary)))
    counts.sum_duplicates()
    return counts


def _wide(matrix: sparse.csr_matrix, shape: tuple[int, int]) -> sparse.csr_matrix:
    """The same entries in a matrix of at least its size."""
    start = np.append(matrix.indptr, np.full(shape[0] - matrix.shape[0], matrix.indptr[-1]))
    entries: Any = (matrix.data, matrix.indices, start)
    return sparse.csr_matrix(entries, shape=shape)
