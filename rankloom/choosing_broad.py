"""What validation decides for searches that leave much to the person: a last word of their own, and from which breadth on it holds.

Who types "cast iron pan" has said what is wanted; who types "kitchen" is served by what they like. A log's own queries are often
precise, and one refiner for both gives to the one kind what it takes from the other. So a second one is fitted on made
searches for a kind of item (data/broad_queries.py), and a search is told by its breadth: how many items have as much of its words as
the best one. The bound is the lowest from which on the log's own searches lose nothing by the second refiner, so that a log whose own
searches are broad, and are served well, keeps the first for them.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rankloom.choosing import REFINED, examples_of
from rankloom.data.sequences import VALID, Cases, Sequences
from rankloom.decoding.choices import BroadOrder
from rankloom.decoding.query_memory import DEPTH
from rankloom.decoding.refine import RefineExamples, fit_refiner, ndcgs
from rankloom.decoding.refine_features import FEATURES, SEARCH_FEATURES
from rankloom.recommender import Rankloom
from rankloom.training.features import FeatureTable

PER_PERSON: Final = 5
"""Cases of a person, at most."""
BOUNDS: Final = 40
"""Bounds that are tried: quantiles of the made searches' breadths."""
_BREADTH: Final = len(FEATURES) + SEARCH_FEATURES.index("breadth of the query")


def choose_broad(
    rankloom: Rankloom, own: tuple[Sequences, FeatureTable], made: tuple[Sequences, FeatureTable], *, mask_seen: bool,
    quiet: bool = False,
) -> dict[str, float]:  # fmt: skip
    """Sets what `search_choices` does with broad searches, after `choose_search`; the figures (NDCG@10) of what was tried.

    Nothing is set where searches have no selection to refine, where the made searches are served no better than by the refiner of
    all searches, or where the log's own lose at every bound.

    Args:
        own: the log.
        made: the log with made searches beside its own.
    """
    choices = rankloom.search_choices
    selection = rankloom.config.selection
    if rankloom.query_memory is None or not (selection.enabled and selection.refine and choices.weights.mix < 1):
        return {}
    asks = own[0].query >= 0
    cases = _cases(made[0], (made[0].query >= 0) & ~asks)
    title = "refining broad searches on validation"
    examples, also = examples_of(rankloom, *made, cases, mask_seen=mask_seen, title=title, quiet=quiet)
    refiner, fitted = fit_refiner(examples, seed=rankloom.config.seed, also=also, quiet=quiet)
    if refiner is None:
        return {}
    first = torch.cat([ndcgs(choices.refiner, held) for held in examples[::5]]).mean()
    figures = {
        "broad: held-out ndcg@10, as other searches": float(first),
        "broad: held-out ndcg@10, refined": fitted["held-out ndcg@10, refined"],
    }
    if figures["broad: held-out ndcg@10, refined"] <= float(first):
        return figures
    title = "how broad a search must be"
    asked, _ = examples_of(rankloom, *own, _cases(own[0], asks), mask_seen=mask_seen, title=title, quiet=quiet)
    gain = torch.cat([ndcgs(refiner, batch) - ndcgs(choices.refiner, batch) for batch in asked])
    bounds = torch.unique(torch.quantile(_breadths(examples), torch.linspace(0, 1, BOUNDS + 1), interpolation="lower"))
    least = lowest_bound(_breadths(asked), gain, bounds)
    if least is None:
        return figures
    rankloom.search_choices = replace(choices, broad=BroadOrder(least, refiner))
    return {**figures, "broad: least breadth": least}


def lowest_bound(breadth_N: Tensor, gain_N: Tensor, bounds: Tensor) -> float | None:
    """The lowest of the bounds from which on nothing is lost in sum; None where there is none.

    It is looked for from above, down to where a loss is larger than chance (one standard error): what is lost there isn't made good
    by what precise searches gain.

    Args:
        breadth_N: of the log's own searches.
        gain_N: what each would gain.
        bounds: ascending.
    """
    least = None
    for bound in reversed(bounds.tolist()):
        gain = gain_N[breadth_N >= bound].double()
        if float(gain.sum()) >= 0:
            least = float(bound)
        elif float(gain.sum()) < -float(gain.square().sum().sqrt()):
            break
    return least


def describe_broad(broad: BroadOrder) -> str:
    """One sentence on which searches are broad."""
    return f"where {DEPTH**broad.least:.0f} items or more have as much of the words as the best, a refiner of their own has the last word"


def _cases(sequences: Sequences, among: NDArray[np.bool_]) -> Cases:
    """Some `REFINED` validation cases at most, five a person."""
    cases = sequences.cases(VALID, max_per_user=PER_PERSON, among=among)
    if len(cases) <= REFINED:
        return cases
    people = len(np.unique(cases.user)) * REFINED // len(cases)
    return sequences.cases(VALID, max_per_user=PER_PERSON, max_users=people, among=among)


def _breadths(examples: list[RefineExamples]) -> Tensor:
    """(N,) of every case: one number for all of its items."""
    return torch.cat([batch.feature_BCF[:, 0, _BREADTH] for batch in examples])
