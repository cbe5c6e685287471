"""What is worked out of one state of the catalogue: which semantic IDs may be generated, what a filter leaves of them, and what
the refiner reads of each item.

A `Catalogue` is never changed. Adding and removing items makes another one (`Rankloom.add_items`); copies of a model share it.

Shapes: I catalogue rows, removed items included.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray
from torch import Tensor

from rankloom.building import watched
from rankloom.data.filters import parse_filter
from rankloom.decoding.exposure import Exposure, LiftTables
from rankloom.decoding.masks import MaskIndex, NodeCounts
from rankloom.decoding.refine_features import ItemFacts, item_groups, item_sizes
from rankloom.decoding.select import leaf_log_share
from rankloom.models.items import ItemEncoder
from rankloom.semantic.ids import SemanticIds
from rankloom.semantic.trie import Trie

_FILTERS: Final = 256
"""Filters whose node counts are kept."""


class Catalogue:
    """See the module's docstring.

    Args:
        items: one row an item, with `item_id` and `title`.
        read: the same rows with the columns that the model was trained with.
        alive: (I,) which may be shown.
        ids: semantic IDs of all rows.
        aligned_ID: aligned text vectors.
        encoder: the model's items, which know ages and attributes.
        exposure: how often items were taken when; None where the model does not follow it.
    """

    def __init__(
        self, items: pl.DataFrame, read: pl.DataFrame, alive: NDArray[np.bool_], ids: SemanticIds, aligned_ID: NDArray[np.float32],
        encoder: ItemEncoder, exposure: Exposure | None,
    ) -> None:  # fmt: skip
        self.items = items
        self.ids: list[str] = items["item_id"].to_list()
        self.titles: list[str] = items["title"].to_list()
        self.row_of = {item: row for row, item in enumerate(self.ids)}
        self.trie = Trie.build(ids.codes, ids.codebook_sizes, ids.prior, rows=np.flatnonzero(alive))
        self.index = MaskIndex(self.trie, len(ids.codes))
        prior_I = torch.from_numpy(ids.prior)
        self.log_share = leaf_log_share(self.trie, prior_I)
        self.created_I: Tensor = encoder.created_I.cpu()
        self.lifts: LiftTables | None = None
        if exposure is not None:
            self.lifts = LiftTables(
                exposure, self.index, created_I=self.created_I, kind_I=watched(read), count_I=prior_I
            )
        tokens = encoder.attributes_IF
        self.facts = ItemFacts(
            count_I=prior_I,
            watched_I=watched(read),
            unit_ID=torch.nn.functional.normalize(torch.from_numpy(aligned_ID).float(), dim=1),
            tokens_IA=None if tokens is None else tokens.cpu(),
            group_IG=item_groups(read, ids.codes),
            size_I2=item_sizes(read),
        )
        self._filters: dict[str, NodeCounts] = {}

    def filter(self, text: str | None) -> NodeCounts | None:
        """What a filter leaves; None for no filter.

        Raises:
            RankloomError: it cannot be read, or does not fit the catalogue's columns.
        """
        if text is None or not text.strip():
            return None
        if text not in self._filters:
            if len(self._filters) > _FILTERS:
                self._filters.clear()
            self._filters[text] = self.index.compile(torch.from_numpy(parse_filter(text).mask(self.items)))
        return self._filters[text]

    def only(self, rows: NDArray[np.int64]) -> NodeCounts:
        """A filter that these rows pass and no others."""
        among = torch.zeros(self.items.height, dtype=torch.bool)
        among[torch.from_numpy(rows)] = True
        return self.index.compile(among)

    def passing(self, filter: NodeCounts | None) -> NodeCounts:
        """The filter, or where there is none what is alive."""
        return self.index.unfiltered if filter is None else filter

    def known_rows(self, item_ids: Sequence[str]) -> list[int]:
        """Rows of the items that are known, in the order given."""
        return [self.row_of[item] for item in item_ids if item in self.row_of]
