"""What validation decides after training: how generator, memory and selection are joined, and whether a refiner helps."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray

from rankloom.data.sequences import VALID, Cases, Sequences
from rankloom.decoding.refine import Refiner, fit_refiner
from rankloom.decoding.select import Weights
from rankloom.progress import track
from rankloom.recommender import Rankloom
from rankloom.training.features import FeatureTable

FloatArray = NDArray[np.float64]

MIXES: Final = (0.0, 0.15, 0.3, 0.45, 0.6, 0.8, 1.0)
LIFTS: Final = (0.0, 0.5, 0.75, 1.0)
NOWS: Final = (0.0, 0.15, 0.3)
SHARES: Final = (0.0, 0.15, 0.3, 0.45, 0.6, 0.8, 0.95)
FEW_SHARES: Final = (0.0, 0.3, 0.6)
"""Of the selection, while the lift is chosen."""
REFINED: Final = 10_000
"""Cases that the refiner is fitted on, about."""


def excluded_rows(sequences: Sequences, cases: Cases, part: slice) -> list[torch.Tensor]:
    """Per case the items of its history other than its target."""
    out = []
    for user, row, target in zip(cases.user[part], cases.row[part], cases.target[part], strict=True):
        seen = np.unique(sequences.item[sequences.offsets[user] : row])
        out.append(torch.from_numpy(seen[seen != target].astype(np.int64)))
    return out


def choose_weights(
    rankloom: Rankloom, sequences: Sequences, table: FeatureTable, *, mask_seen: bool, limit: int, quiet: bool = False
) -> tuple[Weights, Weights, dict[str, float]]:
    """The weights that rank validation targets best (NDCG@10), those of the generator without selection, and the figures of
    all that were tried.

    Weights that the configuration fixes are kept. Where the model knows how old items are, the strength of the lift is
    chosen first, beside a middling memory; then the others together.
    """
    config = rankloom.config
    shares = (0.0,) if rankloom.memory is None else SHARES
    if rankloom.memory is not None and config.memory.share is not None:
        shares = (config.memory.share,)
    mixes = MIXES if config.selection.enabled else (1.0,)
    if config.selection.enabled and config.selection.mix is not None:
        mixes = (config.selection.mix,)
    lifts = (0.0,) if rankloom.exposure is None else LIFTS
    if rankloom.exposure is not None and config.decoding.lift is not None:
        lifts = (config.decoding.lift,)

    def grid(memories: tuple[float, ...], strengths: tuple[float, ...], owns: tuple[float, ...]) -> list[Weights]:
        # the generator alone reads no selection
        return [
            Weights(mix, memory, own, lift)
            for lift in strengths
            for memory in memories
            for mix in mixes
            for own in (owns if mix < 1 and rankloom.memory is not None else (0.0,))
        ]

    cases = sequences.cases(VALID, max_per_user=1, max_users=min(limit, 2000), seed=0)
    seconds = torch.from_numpy(sequences.timestamp / 1e6) if sequences.has_clock else None
    figures: dict[str, float] = {}

    def tell(tried: list[Weights], title: str) -> FloatArray:
        totals = np.zeros(len(tried))
        size = 64
        for begin in track(range(0, len(cases), size), title, unit="batches", quiet=quiet):
            part = slice(begin, begin + size)
            row = torch.from_numpy(cases.row[part])
            user = torch.from_numpy(cases.user[part]).long()
            totals += rankloom.ndcg_of_weights(
                table, torch.from_numpy(sequences.offsets)[user], row,
                torch.from_numpy(cases.target[part].astype(np.int64)), tried,
                excluded=excluded_rows(sequences, cases, part) if mask_seen else None, user=user,
                surface=table.surface[row], when=None if seconds is None else seconds[row],
            )  # fmt: skip
        mean = totals / max(1, len(cases))
        figures.update({_label(w): float(v) for w, v in zip(tried, mean, strict=True)})
        return mean

    nows = (0.0,)
    if len(lifts) > 1:
        tried = [replace(w, now=now) for w in grid(shares[:3], lifts, FEW_SHARES) for now in NOWS]
        chosen = tried[int(tell(tried, "choosing the lift on validation").argmax())]
        lifts, nows = (chosen.lift,), (chosen.now,)
    tried = [replace(w, now=now) for w in grid(shares, lifts, SHARES) for now in nows]
    mean = tell(tried, "choosing weights on validation")
    best = tried[int(mean.argmax())]
    alone = np.flatnonzero([weights.mix == 1 for weights in tried])
    generator = tried[int(alone[mean[alone].argmax()])] if len(alone) else replace(best, mix=1.0)
    return best, generator, figures


def choose_refiner(
    rankloom: Rankloom, sequences: Sequences, table: FeatureTable, *, mask_seen: bool, quiet: bool = False
) -> tuple[Refiner | None, dict[str, float]]:
    """The refiner fitted on some ten thousand validation cases, at most five a person; None where it does not help.

    Where lists hide what was seen, it learns from a fifth of the cases with nothing hidden as well: a request may ask for that.
    """
    cases = sequences.cases(VALID, max_per_user=5, max_users=REFINED, seed=0)
    if len(cases) > REFINED:
        people = len(np.unique(cases.user)) * REFINED // len(cases)
        cases = sequences.cases(VALID, max_per_user=5, max_users=people, seed=0)
    seconds = torch.from_numpy(sequences.timestamp / 1e6) if sequences.has_clock else None
    examples, also = [], []
    size = 64
    for number, begin in enumerate(track(range(0, len(cases), size), "refining on validation", unit="batches", quiet=quiet)):
        part = slice(begin, begin + size)
        row = torch.from_numpy(cases.row[part])
        user = torch.from_numpy(cases.user[part]).long()
        ask = partial(
            rankloom.refine_examples,
            table, torch.from_numpy(sequences.offsets)[user], row, torch.from_numpy(cases.target[part].astype(np.int64)),
            user=user, surface=table.surface[row], when=None if seconds is None else seconds[row],
        )  # fmt: skip
        examples.append(ask(excluded=excluded_rows(sequences, cases, part) if mask_seen else None))
        # far from the held-out batches, every fifth from the first: a person's cases may lie in two that are neighbours
        if mask_seen and number % 5 == 2:
            also.append(ask(excluded=None))
    return fit_refiner(examples, seed=rankloom.config.seed, also=also)


def _label(weights: Weights) -> str:
    return " ".join(f"{v:g}" for v in (weights.mix, weights.memory, weights.selection_memory, weights.lift, weights.now))


def describe_weights(weights: Weights) -> str:
    """One sentence on how generator, memory and selection are joined."""
    if weights.mix >= 1:
        order = "the generator orders the list"
    elif weights.mix <= 0:
        order = "the selection head orders what is generated"
    else:
        order = f"the list is ordered {weights.mix:.0%} by the generator and {1 - weights.mix:.0%} by the selection head"
    parts = [order]
    if weights.memory or weights.selection_memory:
        share = f"the behaviour memory is {weights.memory:.0%} of the generator"
        parts.append(share + (f" and {weights.selection_memory:.0%} of the selection" if weights.mix < 1 else ""))
    else:
        parts.append("no behaviour memory")
    if weights.lift or weights.now:
        parts.append(f"shifted to what is taken now (strength {weights.lift:g} in the generator, {weights.now:g} in the order)")
    if weights.refine:
        parts.append("a refiner has the last word")
    return "; ".join(parts)
