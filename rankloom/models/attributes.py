"""Static attributes of items as hashed tokens: where they stand in the category tree, brand, price, duration.

A new item has no learned vector, but its category has. Tokens are `column=value`, hashed, so that the same value means
the same vector for items that come after training; numbers are cut into half octaves.

Shapes: I items, F tokens an item.
"""

from __future__ import annotations

import zlib
from typing import Final

import numpy as np
import polars as pl
import torch
from torch import Tensor

N_ATTRIBUTES: Final = 8192
"""Rows of the hashed table; row 0 is no token."""
CATEGORY_LEVELS: Final = 4


def item_attributes(items: pl.DataFrame) -> Tensor | None:
    """(I, F) int64 tokens, 0 where the catalogue does not say; None when no column says anything."""
    columns: list[np.ndarray] = []
    names = items.columns
    if "category" in names and items["category"].dtype == pl.List(pl.String):
        paths = items["category"]
        for level in range(1, CATEGORY_LEVELS + 1):
            prefix = pl.select(
                pl.when(paths.list.len() >= level).then(paths.list.head(level).list.join("\x1f"))
            ).to_series()
            columns.append(_hashed(prefix, f"category{level}"))
    if "brand" in names:
        columns.append(_hashed(items["brand"], "brand"))
    for name in ("price_micros", "duration_s"):
        if name in names:
            value = items[name].cast(pl.Float64, strict=False)
            # what is free or without end has no logarithm, and no token
            octave = (value.log(2) * 2).round(0).cast(pl.Int64, strict=False)
            columns.append(_hashed(octave.cast(pl.String), name))
    tokens = [column for column in columns if column.any()]
    return torch.from_numpy(np.stack(tokens, axis=1)) if tokens else None


def _hashed(column: pl.Series, name: str) -> np.ndarray:
    text = column.cast(pl.String, strict=False)
    distinct = [value for value in text.unique().drop_nulls().to_list() if value]
    if not distinct:
        return np.zeros(len(column), dtype=np.int64)
    codes = [1 + zlib.crc32(f"{name}={value}".encode()) % (N_ATTRIBUTES - 1) for value in distinct]
    mapped = text.replace_strict(distinct, codes, default=0, return_dtype=pl.Int64)
    return mapped.fill_null(0).to_numpy().astype(np.int64)
