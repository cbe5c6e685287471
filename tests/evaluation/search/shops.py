"""A shop small enough to be read."""

from __future__ import annotations

import polars as pl

PATHS = {
    "1": [["Beauty", "Make-up", "Nail Polish"]],
    "2": [["Beauty", "Make-up", "Nail Polish"], ["Beauty", "Gifts & Sets"]],
    "3": [["Beauty", "Skin Care", "Hand Care"]],
    "4": [["Beauty"]],
}
TITLES = {"1": "Red Polish", "2": "Blue polish, red polish", "3": "Hand cream with aloe", "4": "Mirror"}


def items() -> pl.DataFrame:
    return pl.DataFrame(
        {"item_id": list(TITLES), "title": list(TITLES.values()), "categories": list(PATHS.values())},
        schema_overrides={"categories": pl.List(pl.List(pl.String))},
    )
