"""Our model as a search engine under evaluation: the query is part of the context, nothing else differs from the feed."""

from __future__ import annotations

import numpy as np

from rankloom.data.shop import Shop
from rankloom.evaluation.rankloom_system import RankloomSystem
from rankloom.evaluation.search.cases import SearchCases, asked_of
from rankloom.evaluation.search.systems import Shelf
from rankloom.evaluation.systems import IntArray
from rankloom.recommender import Rankloom

BEAM = 512
"""Wide enough for a list of 350: 128 semantic IDs are about 150 items."""


class RankloomSearch:
    """A trained model behind the search protocol; it is never fitted here.

    Args:
        shop: the whole catalogue; what the model does not know is added to it first, as `upsert` does.
        select: order the list by the selection, or by the generator alone.
    """

    def __init__(
        self, model: Rankloom, shop: Shop, *, select: bool = True, beam: int = BEAM, quiet: bool = False
    ) -> None:
        self.system = RankloomSystem(model, shop, select=select, beam=beam, quiet=quiet)
        self.name = self.system.name
        self.variant = f"beam {beam}"

    def fit(self, shelf: Shelf, valid: SearchCases, seed: int) -> None:
        """Nothing: the model folder is what it is."""

    def rank(self, asked: SearchCases, k: int) -> IntArray:
        """(C, k) items, best first, -1 where fewer; nothing of the case's history."""
        out = np.full((len(asked), k), -1, dtype=np.int32)
        for part, places in asked_of(asked):
            out[places] = self.system.rank(part.sequences, part.cases, k, mask_seen=True)
        return out
