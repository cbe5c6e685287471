"""What a shopper does with the result of a search beside reading it: order it by price or date, and see what there is of it.

Both read the items that the query's words match well (`matching`), not the whole catalogue: the cheapest item of the shop
that shares one word with a query is no answer to it.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import Final

import numpy as np
import polars as pl
from numpy.typing import NDArray

from rankloom.decoding.query_memory import Match
from rankloom.errors import RankloomError

SORTED_FROM: Final = 200
"""Best items that a list in another order is taken from at least; more where more match."""
MOST_VALUES: Final = 20
"""Values of a facet, the most frequent ones."""
_ENOUGH: Final = 0.5
"""Share of the best item's part of the query that a match has at least."""
_ALIASES: Final = {"price": "price_micros", "newest": "created_at"}


def matching(match: Match, of_all: Match) -> NDArray[np.int64]:
    """Catalogue rows, ascending, that have at least half as much of the query as the item of the catalogue that has most of it.

    Args:
        match: of the items that may be shown.
        of_all: of the whole catalogue.
    """
    rows: NDArray[np.int64] = match.row[match.coverage >= _ENOUGH * of_all.coverage.max(initial=0.0)]
    return rows


def sort_values(items: pl.DataFrame, sort: str) -> NDArray[np.float64]:
    """(I,) what to sort by, lower first, infinite where the catalogue does not say.

    Args:
        sort: a column of numbers or dates, `price` or `newest`; a `-` before it turns the order round.

    Raises:
        RankloomError: no such column, or one of another kind.
    """
    name = sort.removeprefix("-")
    column = _ALIASES.get(name, name)
    usable = [own for own, kind in items.schema.items() if kind.is_numeric() or kind.is_temporal()]
    if column not in usable:
        known = [alias for alias, own in _ALIASES.items() if own in usable] + usable
        close = difflib.get_close_matches(name, known, n=1)
        raise RankloomError(
            f"results cannot be sorted by {name!r}", place="sort",
            action=f"did you mean {close[0]!r}?" if close else f"sort by one of {', '.join(known) or 'nothing: no column has numbers or dates'}",
            code="sort-field",
        )  # fmt: skip
    downwards = sort.startswith("-") != (name == "newest")
    values = items[column].cast(pl.Int64 if items.schema[column].is_temporal() else pl.Float64).cast(pl.Float64)
    out = values.fill_null(np.nan).to_numpy().astype(np.float64)
    return np.where(np.isnan(out), np.inf, -out if downwards else out)


def facets(items: pl.DataFrame, rows: Sequence[int], names: Sequence[str]) -> dict[str, list[tuple[str, int]]]:
    """Of each column the values that these items have, with how many have them, most frequent first, ties by name.

    Every level of a category path counts for itself.

    Raises:
        RankloomError: no such column, or one that has no names in it.
    """
    out: dict[str, list[tuple[str, int]]] = {}
    for name in names:
        kind = items.schema.get(name)
        named = kind in (pl.String(), pl.Boolean(), pl.List(pl.String()))
        if kind is None or not named or name in ("item_id", "title", "description"):
            usable = [
                own for own, theirs in items.schema.items()
                if theirs in (pl.String(), pl.Boolean(), pl.List(pl.String())) and own not in ("item_id", "title", "description")
            ]  # fmt: skip
            raise RankloomError(
                f"there are no facets of {name!r}", place="facets", action=f"choose among {', '.join(usable) or 'no column'}",
                code="facet-field",
            )  # fmt: skip
        column = items[name].gather(list(rows))
        # an item counts once for each of its values
        values = column.list.unique().explode() if isinstance(kind, pl.List) else column.cast(pl.String)
        counted = values.drop_nulls().value_counts(name="n").rename({values.name: "value"}) if len(values) else None
        if counted is None or not counted.height:
            out[name] = []
            continue
        best = counted.sort(["n", "value"], descending=[True, False]).head(MOST_VALUES)
        out[name] = [(str(value), int(n)) for value, n in best.select("value", "n").rows()]
    return out
