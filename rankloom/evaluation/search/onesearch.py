"""The encoder-decoder OneSearch as a search engine under evaluation."""

from __future__ import annotations

import numpy as np

from rankloom.data.sequences import Sequences
from rankloom.evaluation.search.cases import SearchCases
from rankloom.evaluation.search.systems import Shelf
from rankloom.evaluation.systems import IntArray
from rankloom.onesearch.generating import generate_freely
from rankloom.onesearch.model import OneSearch


class OneSearchSystem:
    """A trained OneSearch behind the search protocol; it is never fitted here.

    Args:
        log: the log that the model was built on, whose rows the cases name.
        select: the reward model orders the list, or the generator alone does.
        beam: semantic IDs carried along; the model's own where None.
    """

    name = "onesearch"

    def __init__(self, model: OneSearch, log: Sequences, *, select: bool = True, beam: int | None = None) -> None:
        self.model, self.log, self.select = model, log, select
        self.beam = beam or model.config.beam
        self.variant = f"{'selected' if select else 'generator'}, beam {self.beam}"

    def fit(self, shelf: Shelf, valid: SearchCases, seed: int) -> None:
        """Nothing: the model is what it is."""

    def rank(self, asked: SearchCases, k: int) -> IntArray:
        """(C, k) items, best first, -1 where fewer; nothing of the case's history."""
        selected, generated = self.both(asked, k)
        return selected if self.select else generated

    def both(self, asked: SearchCases, k: int) -> tuple[IntArray, IntArray]:
        """(C, k) lists in the reward model's order and in the generator's, of one decoding.

        Selection orders all that was generated and cuts afterwards; without a reward model both are the generator's.
        """
        contexts, prompts = self.model.asked(self.log, asked.cases.user, asked.cases.row, asked.query)
        found = self.model.generated(contexts, prompts, longest=max(k, 2 * self.beam), beam=self.beam)
        best = found.item_BK
        if self.model.rewarder is not None:
            best = self.model.selected(contexts, prompts, found)
        return best[:, :k], found.item_BK[:, :k]

    def valid_rate(self, asked: SearchCases, *, beam: int = 128, block: int = 16) -> float:
        """Share of unconstrained beams that are the ID of an item."""
        contexts, prompts = self.model.asked(self.log, asked.cases.user, asked.cases.row, asked.query)
        rates = []
        for begin in range(0, len(contexts), block):
            own = contexts.take(slice(begin, begin + block))
            free = generate_freely(self.model.network, prompts.personal(own), self.model.trie, beam=beam)
            rates += free.valid_BW.mean(1).tolist()
        return float(np.mean(rates)) if rates else float("nan")
