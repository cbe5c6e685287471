"""What validation chose for searches; the feed's weights and refiner are the model's own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from rankloom.decoding.refine import Refiner
from rankloom.decoding.relevance import Relevance
from rankloom.decoding.select import Weights


@dataclass(frozen=True)
class BroadOrder:
    """The last word on searches that leave much to the person (choosing_broad.py); all before it is as for any search.

    Attributes:
        least: breadth (`QueryEvidence.breadth_B`) from which on a search is broad.
    """

    least: float
    refiner: Refiner


@dataclass(frozen=True)
class Choices:
    """How searches are joined and ordered, the generator's weights where it is asked alone, their refiner, what a score is worth as
    a chance, and the refiner of broad ones where they have one of their own."""

    weights: Weights
    generator_weights: Weights
    refiner: Refiner | None = None
    relevance: Relevance | None = None
    broad: BroadOrder | None = None


UNTRIED_SEARCH: Final = Choices(Weights(mix=1.0, memory=0.9, words=4.0, untried=16.0), Weights(mix=1.0, memory=0.9))
"""For a shop whose log has no searches to choose on: the words decide most."""
