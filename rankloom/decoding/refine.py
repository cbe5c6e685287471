"""The last word on the order of generated items: a small network that reads, beside the scores, what the scores leave out.

Generator, selection head and memory each have an opinion; how much each is worth depends on the item (new or old, seen
before or not) and on the request (search or feed, long history or none). The refiner reads the opinions and what relates
the item to the moment and to the history (refine_features.py), and adds a correction to the joined score. It is a selection
of generated items like the head before it: it reads the few hundred items of the beam, never the catalogue.

It is fitted on validation cases by the softmax over the generated items, with a fifth of the people held out to choose how
long; where it does not help them it stays out. A few thousand cases leave much to chance, so it is the mean of four small
networks, each fitted by itself: that matters most where the days to come differ from those that it was fitted on.

Shapes: B requests, C generated items, F features, M members of H hidden units.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from rankloom.decoding.refine_features import BROAD_FEATURES, FEATURES, SEARCH_FEATURES
from rankloom.progress import Progress, track

_MEMBERS: Final = 4
_HIDDEN: Final = 16
_EPOCHS: Final = 30
_PATIENCE: Final = 8
"""Epochs without a better held-out figure before no further one is tried."""
_CONSTANT: Final = 1e-4
"""A feature that spreads less than this said nothing in the examples; its scale is 1 then, so that it cannot shout later."""


class Refiner(nn.Module):
    """Features to corrections. See the module's docstring."""

    def __init__(self, mean_F: Tensor, spread_F: Tensor) -> None:
        super().__init__()
        self.register_buffer("mean_F", mean_F)
        self.register_buffer("spread_F", spread_F)
        self.mean_F: Tensor
        self.spread_F: Tensor
        self.up = nn.Linear(len(mean_F), _MEMBERS * _HIDDEN)
        self.down_MH = nn.Parameter(torch.zeros(_MEMBERS, _HIDDEN))
        self.shift_M = nn.Parameter(torch.zeros(_MEMBERS))
        self.dropout = nn.Dropout(0.2)
        nn.init.zeros_(self.up.bias)

    def begin(self) -> None:
        """Draws a start for each member."""
        for part in torch.split(self.up.weight, _HIDDEN):
            nn.init.xavier_uniform_(part)

    def each(self, feature_BCF: Tensor) -> Tensor:
        """(B, C, M) what every member would add to the joined log-probabilities; features after its own are not read."""
        own_BCF = feature_BCF[..., : len(self.mean_F)]
        hidden = self.dropout(nn.functional.gelu(self.up((own_BCF - self.mean_F) / self.spread_F)))
        out: Tensor = (hidden.unflatten(-1, (_MEMBERS, _HIDDEN)) * self.down_MH).sum(-1) + self.shift_M
        return out

    def forward(self, feature_BCF: Tensor) -> Tensor:
        """(B, C) what is added to the joined log-probabilities: the members' mean."""
        return self.each(feature_BCF).mean(-1)

    def arrays(self) -> dict[str, NDArray[Any]]:
        return {name: value.detach().numpy() for name, value in self.state_dict().items()}

    @classmethod
    def from_arrays(cls, arrays: dict[str, NDArray[Any]], *, searches: bool = False, broad: bool = False) -> Refiner:
        own = {name: torch.from_numpy(np.asarray(value)) for name, value in arrays.items()}
        known = len(FEATURES) + (len(SEARCH_FEATURES) if searches else 0) + (len(BROAD_FEATURES) if broad else 0)
        if len(own["mean_F"]) != known:
            raise ValueError(f"{len(own['mean_F'])} features, this version has {known}")
        refiner = cls(own["mean_F"], own["spread_F"])
        refiner.load_state_dict(own)
        return refiner.eval()


@dataclass
class RefineExamples:
    """One batch of cases: features, joined scores (-inf padding) and the row of each target."""

    feature_BCF: Tensor
    score_BC: Tensor
    item_BC: Tensor
    target_B: Tensor


def fit_refiner(
    examples: Sequence[RefineExamples], *, seed: int, also: Sequence[RefineExamples] = (), quiet: bool = True
) -> tuple[Refiner | None, dict[str, float]]:
    """The refiner that ranks held-out cases best, fitted again on all; None where none ranks them better than the joined
    scores do. The figures are NDCG@10 on the held-out fifth, before and after.

    Args:
        examples: batches of cases of different people; every fifth, from the first, is held out.
        also: batches that are only learned from, of none of the people held out: such as the same cases with nothing of
            their history hidden, for lists that may show it.
    """
    held = [own for number, own in enumerate(examples) if number % 5 == 0]
    learned = [own for number, own in enumerate(examples) if number % 5]
    if not held or len(learned) < 2:
        return None, {}
    learned.extend(also)
    flat = torch.cat([own.feature_BCF[own.item_BC >= 0] for own in learned])
    spread = flat.std(0)
    scale = (flat.mean(0), torch.where(spread > _CONSTANT, spread, 1.0))
    before = _ndcg(None, held)
    best, epochs = before, 0
    with Progress("fitting the refiner", _EPOCHS, unit="epochs at most", quiet=quiet) as progress:
        for number, refiner in enumerate(_epochs(Refiner(*scale), learned, seed), start=1):
            value = _ndcg(refiner, held)
            progress.advance(note=f"held-out N@10 {max(value, best):.4f}, joined {before:.4f}")
            if value > best:
                best, epochs = value, number
            elif number >= epochs + _PATIENCE:
                break
    figures = {"held-out ndcg@10, joined": before, "held-out ndcg@10, refined": best, "epochs": float(epochs)}
    if epochs == 0:
        return None, figures
    refiner = Refiner(*scale)
    passes = islice(_epochs(refiner, [*examples, *also], seed), epochs)
    for _ in track(range(epochs), "fitting it again on all", unit="epochs", quiet=quiet):
        next(passes)
    return refiner.eval(), figures


def _epochs(refiner: Refiner, examples: Sequence[RefineExamples], seed: int) -> Iterator[Refiner]:
    """The refiner after each epoch, from a fresh start."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        refiner.begin()
    optimiser = torch.optim.AdamW(refiner.parameters(), lr=3e-3, weight_decay=0.1)
    examples = [found for own in examples if len((found := _found(own)).target_B)]
    for epoch in range(_EPOCHS):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed * 1009 + epoch)
            refiner.train()
            for number in np.random.default_rng((seed, epoch)).permutation(len(examples)):
                _step(refiner, optimiser, examples[number])
        yield refiner.eval()


def _found(own: RefineExamples) -> RefineExamples:
    """The cases whose target was generated: the others teach no order."""
    found = (own.item_BC == own.target_B[:, None]).any(1)
    return RefineExamples(own.feature_BCF[found], own.score_BC[found], own.item_BC[found], own.target_B[found])


def _step(refiner: Refiner, optimiser: torch.optim.Optimizer, own: RefineExamples) -> None:
    real, hit = own.item_BC >= 0, own.item_BC == own.target_B[:, None]
    # a loss of its own for each member: no gradient of one meets another
    score_BCM = torch.where(real[:, :, None], own.score_BC[:, :, None] + refiner.each(own.feature_BCF), float("-inf"))
    loss: Tensor = -torch.where(hit[:, :, None], torch.log_softmax(score_BCM, dim=1), 0.0).sum() / len(real)
    optimiser.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    optimiser.step()


@torch.no_grad()
def ndcgs(refiner: Refiner | None, own: RefineExamples) -> Tensor:
    """(B,) NDCG@10 of each case's target, 0 where it was not generated; without a refiner that of the joined scores."""
    score = own.score_BC if refiner is None else own.score_BC + refiner(own.feature_BCF)
    score = torch.where(own.item_BC >= 0, score, float("-inf"))
    hit = own.item_BC == own.target_B[:, None]
    target = torch.where(hit, score, float("-inf")).amax(1)
    rank = (score > target[:, None]).sum(1)
    return torch.where(hit.any(1) & (rank < 10), 1 / torch.log2(rank + 2.0), 0.0)


def _ndcg(refiner: Refiner | None, examples: Sequence[RefineExamples]) -> float:
    total, cases = 0.0, 0
    for own in examples:
        gain = ndcgs(refiner, own)
        total, cases = total + float(gain.sum()), cases + len(gain)
    return total / max(1, cases)
