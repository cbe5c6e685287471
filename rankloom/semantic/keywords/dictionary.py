"""The typed keyword dictionary: what a shop's words are, how much stands behind each, and among which items each is at home.

It is a value: mined once (`mining.py`), read by the matcher, the guard and the fusion, kept as JSON beside other things or
as arrays inside a safetensors file. Terms are folded (`folding.py`), each once, in the order of their support.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from rankloom.errors import RankloomError
from rankloom.files import read_json, write_json
from rankloom.semantic.keywords.folding import fold

FORMAT: Final = "rankloom-keywords"
VERSION: Final = 1


@dataclass(frozen=True, slots=True)
class Keyword:
    """One entry.

    Attributes:
        term: folded.
        kind: its type.
        n_items: items of the catalogue whose title or structured columns hold it.
        n_takes: takes in the training log that followed a query with it, of items that hold it.
        source: what made it a keyword: `own`, `column`, `lexicon`, `form`, `search`, `phrase` or `labels`.
    """

    term: str
    kind: str
    n_items: int = 0
    n_takes: int = 0
    source: str = "own"


def sparse_counts(
    rows: NDArray[Any], columns: NDArray[Any], values: NDArray[Any], shape: tuple[int, int]
) -> sparse.csr_matrix:
    """(K, G) sums of `values` by row and column."""
    pairs = (rows.astype(np.int64), columns.astype(np.int64))
    return sparse.csr_matrix(sparse.coo_matrix((values.astype(np.float32), pairs), shape=shape))


class KeywordDictionary:
    """K keywords, and where among G groups of items they occur.

    Args:
        keywords: distinct terms, folded.
        groups: names of the groups, a category path each; empty where the catalogue has no categories.
        counts_KG: sparse, items of the group that hold the keyword, and takes there after a query with it.
        group_sizes_G: items of each group.

    Raises:
        RankloomError: a term that is empty, not folded or there twice, or counts of another shape.
    """

    def __init__(
        self,
        keywords: Sequence[Keyword],
        groups: Sequence[str] = (),
        counts_KG: sparse.csr_matrix | None = None,
        group_sizes_G: NDArray[np.float32] | None = None,
    ) -> None:
        self.keywords = tuple(keywords)
        self.groups = tuple(groups)
        none = np.zeros(0, dtype=np.int64)
        shape = (len(self.keywords), len(self.groups))
        self.counts_KG = sparse_counts(none, none, none, shape) if counts_KG is None else counts_KG
        sizes = np.zeros(len(self.groups)) if group_sizes_G is None else group_sizes_G
        self.group_sizes_G: NDArray[np.float32] = np.asarray(sizes, dtype=np.float32)
        self.index = {keyword.term: at for at, keyword in enumerate(self.keywords)}
        self._check()

    def __len__(self) -> int:
        return len(self.keywords)

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, KeywordDictionary)
            and self.keywords == other.keywords
            and self.groups == other.groups
            and np.array_equal(self.group_sizes_G, other.group_sizes_G)
            and abs(self.counts_KG - other.counts_KG).sum() == 0
        )

    __hash__ = None  # type: ignore[assignment]

    def _check(self) -> None:
        fault = ""
        wrong = next((k.term for k in self.keywords if not k.term or fold(k.term).text != k.term), None)
        if wrong is not None:
            fault = f"the keyword {wrong!r} is not folded"
        elif len(self.index) != len(self.keywords):
            fault = "a keyword is there twice"
        elif self.counts_KG.shape != (len(self.keywords), len(self.groups)):
            fault = f"counts of shape {self.counts_KG.shape} for {len(self.keywords)} keywords and {len(self.groups)} groups"
        elif self.group_sizes_G.shape != (len(self.groups),):
            fault = f"{self.group_sizes_G.shape} group sizes for {len(self.groups)} groups"
        if fault:
            raise RankloomError(
                f"not a keyword dictionary: {fault}",
                place="keywords",
                action="mine it again",
                code="keywords-broken",
            )

    def report(self) -> dict[str, Any]:
        """How many keywords of which type and source."""
        kinds: dict[str, int] = {}
        sources: dict[str, int] = {}
        for keyword in self.keywords:
            kinds[keyword.kind] = kinds.get(keyword.kind, 0) + 1
            sources[keyword.source] = sources.get(keyword.source, 0) + 1
        return {"keywords": len(self), "kinds": kinds, "sources": sources, "groups": len(self.groups)}

    def to_json(self) -> dict[str, Any]:
        """What `from_json` reads; a reader may edit the terms by hand."""
        counts = self.counts_KG.tocoo()
        return {
            "format": FORMAT,
            "version": VERSION,
            "keywords": [[k.term, k.kind, k.n_items, k.n_takes, k.source] for k in self.keywords],
            "groups": [[name, float(size)] for name, size in zip(self.groups, self.group_sizes_G, strict=True)],
            "counts": [counts.row.tolist(), counts.col.tolist(), counts.data.tolist()],
        }

    @classmethod
    def from_json(cls, value: Any, *, place: str = "keywords") -> KeywordDictionary:
        """The dictionary that `to_json` described.

        Raises:
            RankloomError: not one, or of a newer format.
        """
        if not isinstance(value, dict) or value.get("format") != FORMAT or value.get("version") != VERSION:
            raise RankloomError(
                "this is not a keyword dictionary that this version reads",
                place=place,
                action="mine it again, or use the version that wrote it",
                code="keywords-foreign",
            )
        try:
            keywords = [
                Keyword(str(term), str(kind), int(items), int(takes), str(source))
                for term, kind, items, takes, source in value["keywords"]
            ]
            groups = [str(name) for name, _ in value["groups"]]
            sizes = np.array([size for _, size in value["groups"]], dtype=np.float32)
            rows, columns, data = (np.asarray(part) for part in value["counts"])
            counts = sparse_counts(rows, columns, data, (len(keywords), len(groups)))
        except (KeyError, TypeError, ValueError) as error:
            raise _damaged(error, place) from None
        return cls(keywords, groups, counts, sizes)

    def save(self, path: str | Path) -> None:
        """Writes it as JSON, whole or not at all."""
        write_json(path, self.to_json())

    @classmethod
    def load(cls, path: str | Path) -> KeywordDictionary:
        """Reads what `save` wrote.

        Raises:
            RankloomError: no such file, not JSON, or not a dictionary.
        """
        return cls.from_json(read_json(path), place=str(path))

    def arrays(self) -> dict[str, NDArray[Any]]:
        """As arrays for a safetensors file."""
        told = json.dumps(self.to_json(), ensure_ascii=False, separators=(",", ":")).encode()
        return {"dictionary": np.frombuffer(told, dtype=np.uint8)}

    @classmethod
    def from_arrays(cls, arrays: dict[str, NDArray[Any]], *, place: str = "keywords") -> KeywordDictionary:
        """What `arrays` described.

        Raises:
            RankloomError: as `from_json`.
        """
        try:
            value = json.loads(arrays["dictionary"].astype(np.uint8).tobytes())
        except (KeyError, UnicodeDecodeError, json.JSONDecodeError) as error:
            raise _damaged(error, place) from None
        return cls.from_json(value, place=place)


def _damaged(error: Exception, place: str) -> RankloomError:
    return RankloomError(
        f"the keyword dictionary is damaged: {error}", place=place, action="mine it again", code="keywords-broken"
    )
