"""Why an item is in a list: sentences with evidence that can be checked, never a likeness that is not there.

Evidence, the strongest first: the person took it before; people took it after something of the history (behaviour
memory); its text is nearer to something of the history than to 95% of the catalogue, or it shares the first codes of its
semantic ID; it stands in the same category; many take it. Where there is none, that is said. A search names the words of
the query that the title has, or that the item is nearer to the query than 95% of the catalogue.

Shapes: I catalogue rows, D content dimensions, L codes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray

from rankloom.decoding.memory import BehaviourMemory
from rankloom.decoding.query_memory import QueryMemory, corrections
from rankloom.semantic.words import as_typed, is_character, words

NEAR: Final = 0.95
"""Share of the catalogue that must be less like the evidence."""
POPULAR: Final = 0.95
AT_MOST: Final = 2
"""Sentences an item."""
_SAMPLE: Final = 1000


class Reasons:
    """Reasons for the items of one catalogue.

    Args:
        items: catalogue table with `title`, and `category` where there is one.
        aligned_ID: aligned text vectors, compared among items.
        content_ID: text vectors as the encoder gives them, compared with queries.
        codes_IL: semantic IDs.
        count_I: how often each item was taken in training.
        memory: what people took after what.
    """

    def __init__(
        self, items: pl.DataFrame, aligned_ID: NDArray[np.float32], content_ID: NDArray[np.float32],
        codes_IL: NDArray[np.integer[Any]], count_I: NDArray[Any], memory: BehaviourMemory | None,
    ) -> None:  # fmt: skip
        self.titles: list[str] = items["title"].to_list()
        self.aligned_ID, self.content_ID = _unit(aligned_ID), _unit(content_ID)
        self.codes_IL, self.count_I, self.memory = codes_IL, count_I, memory
        self.categories: list[list[str]] | None = None
        if "category" in items.columns and items["category"].dtype == pl.List(pl.String):
            self.categories = [list(path or ()) for path in items["category"].to_list()]
        n = len(self.titles)
        self.sample = np.random.default_rng(0).choice(n, size=min(n, _SAMPLE), replace=False)
        taken = count_I[count_I > 0]
        self.popular = float(np.quantile(taken, POPULAR)) if len(taken) else float("inf")

    def of_history(self, rows: Sequence[int], history: Sequence[int]) -> list[list[str]]:
        """One to `AT_MOST` sentences per row.

        Args:
            history: rows of the person's items, oldest first; empty for a stranger.
        """
        if not rows:
            return []
        if not history:
            return [["no history yet: what people in general take first"] for _ in rows]
        latest = list(dict.fromkeys(reversed(history)))
        near, standard = self._nearest(rows, latest)
        told = self._remembered(rows, latest)
        out = []
        for place, row in enumerate(rows):
            found: list[str] = []
            others = [own for own in latest if own != row]
            if row in latest:
                found.append("taken before")
            spoke = told[place]
            if spoke is not None:
                found.append(f"people take it after {self.titles[spoke]!r}")
            evidence = near[place]
            if evidence is not None and evidence != spoke:
                shared = self._shared_codes(row, evidence)
                if shared or standard[place] >= NEAR:
                    codes = f" (same first {shared} of {self.codes_IL.shape[1]} codes)" if shared else ""
                    found.append(f"near {self.titles[evidence]!r} in the history{codes}")
            if not found and (kin := self._same_category(row, others)):
                found.append(kin)
            if not found and self.count_I[row] >= self.popular:
                found.append(f"popular: taken {int(self.count_I[row]):,} times in training")
            out.append(found[:AT_MOST] or ["the model's own guess: nothing in the history is much like it"])
        return out

    def of_search(
        self, rows: Sequence[int], query: str, query_D: NDArray[np.float32], memory: QueryMemory | None = None, typos: int = 1
    ) -> list[list[str]]:
        """One sentence per row.

        Args:
            query_D: the query as the encoder gives it.
            memory: knows which words were corrected, and what people typed before they took an item.
            typos: slips of a word that are forgiven.
        """
        typed = dict(reversed(as_typed(query)))
        asked_for = list(dict.fromkeys(words(query)))
        title_of_search = f"for the search {query!r}"
        asked = [False] * len(rows)
        if memory is not None:
            read = memory.read(query, typos)
            asked_for += [own.read_as for own in read if own.read_as is not None and own.read_as not in asked_for]
            asked = [bool(own.any()) for own in memory.evidence(rows, read)[1]]
            if read_as := corrections(read):
                changed = ", ".join(f"{wrong!r} as {right!r}" for wrong, right in read_as)
                title_of_search += f" (reading {changed})"
        vectors, query_D = self.content_ID, _unit(query_D[None])[0]
        limit = float(np.quantile(vectors[self.sample] @ query_D, NEAR)) if len(self.sample) else np.inf
        out = []
        for row, often in zip(rows, asked, strict=True):
            title = set(words(self.titles[row]))
            title |= {character for word in title for character in word if is_character(character)}
            have = [word for word in asked_for if word in title]
            if have:
                out.append([f"{title_of_search}: the title has {', '.join(repr(typed.get(word, word)) for word in have)}"])
            elif often:
                out.append([f"{title_of_search}: people took it after such a search"])
            elif float(vectors[row] @ query_D) >= limit:
                out.append([f"{title_of_search}: near in meaning"])
            else:
                guess = title_of_search.removeprefix("for ")
                out.append([f"the model's guess for {guess}: neither title nor text are much like it"])
        return out

    def _nearest(self, rows: Sequence[int], latest: list[int]) -> tuple[list[int | None], list[float]]:
        """Per row the nearest other item of the history, and what share of the catalogue is less near to that one."""
        close = self.aligned_ID[list(rows)] @ self.aligned_ID[latest].T
        usual = np.sort(self.aligned_ID[self.sample] @ self.aligned_ID[latest].T, axis=0)
        near: list[int | None] = []
        standard = []
        for place, row in enumerate(rows):
            own = np.where(np.asarray(latest) == row, -np.inf, close[place])
            best = int(own.argmax())
            if not np.isfinite(own[best]):
                near.append(None)
                standard.append(0.0)
                continue
            near.append(latest[best])
            standard.append(float(np.searchsorted(usual[:, best], own[best], side="left")) / len(usual))
        return near, standard

    def _remembered(self, rows: Sequence[int], latest: list[int]) -> list[int | None]:
        """Per row the item of the history after which the memory expects it most."""
        best: list[int | None] = [None] * len(rows)
        if self.memory is None:
            return best
        top = [0.0] * len(rows)
        place_of = {row: place for place, row in enumerate(rows)}
        for source in latest:
            # each place of the history alone, so that it is known which one spoke
            _, item, amount = self.memory.recall(torch.tensor([[source]]))
            for row, value in zip(item.tolist(), amount.tolist(), strict=True):
                place = place_of.get(row)
                if place is not None and row != source and value > top[place]:
                    top[place], best[place] = value, source
        return best

    def _shared_codes(self, row: int, other: int) -> int:
        same = self.codes_IL[row] == self.codes_IL[other]
        return int(np.argmin(same)) if not same.all() else len(same)

    def _same_category(self, row: int, others: Sequence[int]) -> str | None:
        if self.categories is None or not self.categories[row]:
            return None
        own = self.categories[row]
        for other in others:
            if self.categories[other] == own:
                return f"same category as {self.titles[other]!r}: {own[-1]}"
        return None


def _unit(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    norm = np.linalg.norm(vectors, axis=1, keepdims=True)
    out: NDArray[np.float32] = vectors / np.maximum(norm, 1e-9)
    return out
