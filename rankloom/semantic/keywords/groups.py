"""Which group of the catalogue an item is of: the deepest part of its category path that enough items share."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import polars as pl
from numpy.typing import NDArray

SEPARATOR: Final = " > "


@dataclass(frozen=True)
class Groups:
    """Attributes:
    names: G category paths, joined by ` > `.
    of_item: (I,) int32, the group of each item; -1 where the catalogue does not say.
    """

    names: tuple[str, ...]
    of_item: NDArray[np.int32]


def make_groups(items: pl.DataFrame, *, min_items: int = 20) -> Groups:
    """Groups of at least `min_items`; an item whose own branch is smaller belongs to a branch above it, a root stays."""
    paths = category_paths(items)
    sizes = Counter(path[:depth] for path in paths for depth in range(1, len(path) + 1))
    places: list[tuple[str, ...]] = []
    for path in paths:
        depth = len(path)
        while depth > 1 and sizes[path[:depth]] < min_items:
            depth -= 1
        places.append(path[:depth])
    names = tuple(sorted({SEPARATOR.join(place) for place in places if place}))
    index = {name: at for at, name in enumerate(names)}
    of_item = [index[SEPARATOR.join(place)] if place else -1 for place in places]
    return Groups(names, np.asarray(of_item, dtype=np.int32))


def find_groups(items: pl.DataFrame, index: Mapping[str, int]) -> NDArray[np.int32]:
    """(N,) the group of other items: the deepest known part of their path, -1 for none."""
    found = np.full(items.height, -1, dtype=np.int32)
    for row, path in enumerate(category_paths(items)):
        for depth in range(len(path), 0, -1):
            at = index.get(SEPARATOR.join(path[:depth]))
            if at is not None:
                found[row] = at
                break
    return found


def category_paths(items: pl.DataFrame) -> list[tuple[str, ...]]:
    """The category path of every item, root first; empty where there is none."""
    if "category" not in items.columns:
        return [()] * items.height
    paths: Sequence[Sequence[str | None] | None] = items["category"].to_list()
    return [tuple(level for level in path or () if level) for path in paths]
