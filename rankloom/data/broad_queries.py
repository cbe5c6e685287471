"""Searches that name a kind of item and no more, made for choosing how broad searches are ordered (choosing_broad.py).

A log's own queries are often precise: who types "cast iron pan" has said what is wanted, and what is chosen on such searches hardly looks at
the person. Who types "kitchen" has not, and is served by what the person likes. So some of the takes of the validation period that no
search came before are read as answers to a search for the item's kind: a name on its category path, below the root where there is more
than one. Made from the catalogue, nothing of the person goes in; and made for choosing alone, no training sees them.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import polars as pl

from rankloom.data.schema import SURFACE_CODE
from rankloom.data.sequences import VALID, Sequences


def with_broad_queries(sequences: Sequences, items: pl.DataFrame, *, ratio: float, seed: int) -> Sequences:
    """The log with such searches in its validation period.

    Args:
        items: the catalogue, in the rows' order.
        ratio: made searches over the log's own there; 0 makes none.

    Returns:
        `sequences` itself where nothing can be made.
    """
    if ratio <= 0 or "category" not in items.columns or items["category"].dtype != pl.List(pl.String):
        return sequences
    validation = (sequences.stage == VALID) & sequences.target
    own = int((validation & (sequences.query >= 0)).sum())
    rows = np.flatnonzero(validation & (sequences.query < 0))
    paths = [[name for name in path or [] if name and name.strip()] for path in items["category"].to_list()]
    named = np.array([bool(path) for path in paths])
    rows = rows[named[sequences.item[rows]]]
    rng = np.random.default_rng((seed, 53))
    rows = np.sort(rng.permutation(rows)[: round(ratio * own)])
    if not len(rows):
        return sequences
    number_of = {text: number for number, text in enumerate(sequences.queries)}
    query, surface = sequences.query.copy(), sequences.surface.copy()
    for row, drawn in zip(rows.tolist(), rng.random(len(rows)).tolist(), strict=True):
        path = paths[sequences.item[row]]
        below = path[1:] or path
        name = below[int(drawn * len(below))].strip().lower()
        query[row] = number_of.setdefault(name, len(number_of))
    surface[rows] = SURFACE_CODE["search"]
    return replace(sequences, query=query, surface=surface, queries=tuple(number_of))
