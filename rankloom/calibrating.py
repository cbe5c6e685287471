"""Fits the relevance of search results on the validation period's searches, each judged by parts that it did not fit.

The refiner that orders a list was fitted on the same searches, so its own scores there are too sure. A calibration is fitted on what
people will see, not on what a fit remembers: the people are dealt into folds, for each a refiner is fitted on the others' searches, and
the lists of a fold are scored by the refiner that has not seen them. The same folds give the error that is reported: every
fold's under a calibration of the other folds.

Shapes: B cases of a batch, N cases, C generated items.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray

from rankloom.choosing import questions
from rankloom.data.sequences import Cases, Sequences
from rankloom.decoding.refine import RefineExamples, Refiner, fit_refiner
from rankloom.decoding.relevance import Relevance, best_coverage, calibration_error
from rankloom.progress import track
from rankloom.recommender import Rankloom
from rankloom.training.features import FeatureTable

ENOUGH: Final = 30
"""Validation searches below which nothing is calibrated."""
SEARCHES: Final = 3_000
"""Validation searches that are read, at most."""
SHOWN: Final = 10
"""Best places of which the error is told: what a page shows."""
FOLDS: Final = 3
_PER_PERSON: Final = 20
_SIZE: Final = 64
_BATCHES: Final = 15
"""Batches, where there are searches for so many: a refiner is fitted on some and stopped by others."""


@dataclass(frozen=True)
class Judged:
    """Lists and what was taken.

    Attributes:
        score_NC: final scores, -inf for padding.
        taken_NC: whether the item was the one.
        coverage_NC: share of the query that each item has.
    """

    score_NC: torch.Tensor
    taken_NC: torch.Tensor
    coverage_NC: torch.Tensor

    @classmethod
    def together(cls, parts: Sequence[Judged]) -> Judged:
        """All lists of several."""
        width = max(own.score_NC.shape[1] for own in parts)

        def joined(name: str, padding: float) -> torch.Tensor:
            wide = []
            for part in parts:
                own: torch.Tensor = getattr(part, name)
                wide.append(torch.nn.functional.pad(own, (0, width - own.shape[1]), value=padding))
            return torch.cat(wide)

        return cls(joined("score_NC", float("-inf")), joined("taken_NC", False), joined("coverage_NC", 0.0))

    def fit(self) -> Relevance:
        return Relevance.fit(self.score_NC, self.taken_NC, best_coverage(self.score_NC, self.coverage_NC))

    def chances(
        self, relevance: Relevance | None, *, places: int = SHOWN
    ) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
        """(N, places) chances of the best places, best first, the shares themselves where there is no calibration; and what was
        taken."""
        order = torch.sort(self.score_NC, dim=1, descending=True, stable=True).indices[:, :places]
        best, taken = self.score_NC.gather(1, order), self.taken_NC.gather(1, order)
        if relevance is None:
            relevance = Relevance(1.0, 1.0, 1e-9)
        chance = relevance(best, self.score_NC, self.coverage_NC)
        return chance.double().numpy(), taken.numpy()

    def error(self, relevance: Relevance | None, *, places: int = SHOWN) -> float:
        """Expected calibration error of the best places."""
        chance, taken = self.chances(relevance, places=places)
        return calibration_error(chance.reshape(-1), taken.reshape(-1))


def judged(examples: RefineExamples, coverage_BC: torch.Tensor, refiner: Refiner | None, strength: float) -> Judged:
    """Lists of one batch under a refiner.

    Args:
        coverage_BC: share of the query that each item has.
        strength: of the refiner.
    """
    score_BC = examples.score_BC
    if refiner is not None and strength:
        with torch.no_grad():
            score_BC = score_BC + strength * refiner(examples.feature_BCF)
    score_BC = torch.where(examples.item_BC >= 0, score_BC, float("-inf"))
    return Judged(score_BC.float(), examples.item_BC == examples.target_B[:, None], coverage_BC)


def read(
    rankloom: Rankloom, sequences: Sequences, table: FeatureTable, cases: Cases, *, title: str, quiet: bool = False
) -> list[tuple[RefineExamples, torch.Tensor]]:
    """Lists of searches in batches, as `search` serves them (what the person has had may come again), with their coverage."""
    seconds = torch.from_numpy(sequences.timestamp / 1e6) if sequences.has_clock else None
    out = []
    size = min(_SIZE, max(1, len(cases) // _BATCHES))
    for begin in track(range(0, len(cases), size), title, unit="batches", quiet=quiet):
        part = slice(begin, begin + size)
        row = torch.from_numpy(cases.row[part])
        user = torch.from_numpy(cases.user[part]).long()
        out.append(
            rankloom.search_examples(
                table, torch.from_numpy(sequences.offsets)[user], row, torch.from_numpy(cases.target[part].astype(np.int64)),
                queries_at=row, user=user, surface=table.surface[row], when=None if seconds is None else seconds[row],
            )
        )  # fmt: skip
    return out


def calibrate_search(
    rankloom: Rankloom, sequences: Sequences, table: FeatureTable, *, quiet: bool = False
) -> dict[str, float]:
    """Sets `search_choices.relevance` from the validation period's searches, where there are enough; the figures of it.

    Without enough of them nothing is set: a chance that was not measured would be no chance.
    """
    if rankloom.search_choices.relevance is not None:
        rankloom.search_choices = replace(rankloom.search_choices, relevance=None)
    if rankloom.query_memory is None or not sequences.queries:
        return {}
    kind = partial(questions, rankloom, sequences, searches=True, max_per_user=_PER_PERSON)
    cases, _ = kind(max_users=SEARCHES)
    if len(cases) > SEARCHES:
        cases, _ = kind(max_users=max(1, len(np.unique(cases.user)) * SEARCHES // len(cases)))
    if len(cases) < ENOUGH:
        return {}
    found = read(rankloom, sequences, table, cases, title="calibrating searches on validation", quiet=quiet)
    folds = _folds(rankloom, found, quiet=quiet)
    before, fitted, plain, weight = 0.0, 0.0, 0.0, 0
    for number, own in enumerate(folds):
        relevance = Judged.together([other for place, other in enumerate(folds) if place != number]).fit()
        n = len(own.score_NC)
        before, weight = before + n * own.error(None), weight + n
        fitted, plain = fitted + n * own.error(relevance), plain + n * own.error(replace(relevance, sharpness=1.0))
    relevance = Judged.together(folds).fit()
    if plain < fitted:
        # the scores are as sharp as they should be, and fitting it brought noise
        relevance = replace(relevance, sharpness=1.0)
    after = min(plain, fitted)
    relevance = replace(relevance, error=after / weight, error_before=before / weight)
    rankloom.search_choices = replace(rankloom.search_choices, relevance=relevance)
    return {
        "held-out calibration error, raw shares": before / weight, "held-out calibration error, relevance": after / weight,
        "searches calibrated on": float(len(cases)),
    }  # fmt: skip


def _folds(rankloom: Rankloom, found: list[tuple[RefineExamples, torch.Tensor]], *, quiet: bool) -> list[Judged]:
    """Lists by fold, each scored by a refiner of the other folds; the batches of a fold are neighbours, since the cases of a
    person are."""
    choices = rankloom.search_choices
    strength = choices.weights.refine if choices.refiner is not None else 0.0
    parts = np.array_split(np.arange(len(found)), min(FOLDS, len(found)))
    out = []
    for part in track(parts, "calibrating searches by refiners of the other people's", unit="folds", quiet=quiet):
        own, refiner = set(part.tolist()), choices.refiner
        others = [examples for number, (examples, _) in enumerate(found) if number not in own]
        if strength and len(others) > 1:
            refiner, _ = fit_refiner(others, seed=rankloom.config.seed, quiet=True)
        out.append(
            Judged.together(
                [judged(examples, coverage, refiner, strength) for examples, coverage in found[part[0] : part[-1] + 1]]
            )
        )
    return out
