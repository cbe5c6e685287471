"""What validation decides after training: how generator, memory and selection are joined, and whether a refiner helps.

The feed and searches are chosen for apart, each on its own validation cases: behind a query the words count for more and what
is taken often for less.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray

from rankloom.data.sequences import VALID, Cases, Sequences
from rankloom.decoding.choices import Choices
from rankloom.decoding.refine import RefineExamples, Refiner, fit_refiner
from rankloom.decoding.refine_features import FEATURES, SEARCH_FEATURES
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
SEARCH_SHARES: Final = (0.3, 0.6, 0.8, 0.95)
SEARCH_OWN_SHARES: Final = (0.0, 0.3, 0.6, 0.95)
WORDS: Final = (0.0, 2.0, 6.0)
"""For searches: shares of the query memory in the code and in the selection, and what having all words is worth."""
REFINED: Final = 10_000
"""Cases that the refiner is fitted on, about."""
FEW: Final = 50
"""Validation cases of one kind (searches, or no searches) below which nothing is chosen on them."""


def questions(
    rankloom: Rankloom, sequences: Sequences, *, searches: bool, max_per_user: int, max_users: int
) -> tuple[Cases, bool]:
    """Validation cases with or without a query, and whether the queries that they have must be left out: for a feed, where
    hardly anything is taken without a search before it."""

    def ask(among: NDArray[np.bool_] | None) -> Cases:
        return sequences.cases(VALID, max_per_user=max_per_user, max_users=max_users, seed=0, among=among)

    if rankloom.query_memory is None or not sequences.queries:
        return ask(None), False
    own = ask((sequences.query >= 0) == searches)
    return (own, False) if searches or len(own) >= FEW else (ask(None), True)


def excluded_rows(sequences: Sequences, cases: Cases, part: slice) -> list[torch.Tensor]:
    """Per case the items of its history other than its target."""
    out = []
    for user, row, target in zip(cases.user[part], cases.row[part], cases.target[part], strict=True):
        seen = np.unique(sequences.item[sequences.offsets[user] : row])
        out.append(torch.from_numpy(seen[seen != target].astype(np.int64)))
    return out


def choose_weights(
    rankloom: Rankloom, sequences: Sequences, table: FeatureTable, *, mask_seen: bool, limit: int, searches: bool = False,
    quiet: bool = False,
) -> tuple[Weights, Weights, dict[str, float]]:  # fmt: skip
    """The weights that rank validation targets best (NDCG@10), those of the generator without selection, and the figures of
    all that were tried.

    Weights that the configuration fixes are kept. Where the model knows how old items are, the strength of the lift is
    chosen first, beside a middling memory; then the others together.

    Args:
        searches: choose for searches, whose memory is the query memory; a lift is the feed's alone.
    """
    config = rankloom.config
    remembers = rankloom.memory is not None or searches
    shares = SEARCH_SHARES if searches else SHARES if remembers else (0.0,)
    if rankloom.memory is not None and config.memory.share is not None and not searches:
        shares = (config.memory.share,)
    mixes = MIXES if config.selection.enabled else (1.0,)
    if config.selection.enabled and config.selection.mix is not None:
        mixes = (config.selection.mix,)
    lifts = (0.0,) if rankloom.exposure is None or searches else LIFTS
    if rankloom.exposure is not None and config.decoding.lift is not None and not searches:
        lifts = (config.decoding.lift,)

    def grid(memories: tuple[float, ...], strengths: tuple[float, ...], owns: tuple[float, ...]) -> list[Weights]:
        # the generator alone reads no selection
        return [
            Weights(mix, memory, own, lift)
            for lift in strengths
            for memory in memories
            for mix in mixes
            for own in (owns if mix < 1 and remembers else (0.0,))
        ]

    def with_words(tried: list[Weights]) -> list[Weights]:
        if not searches:
            return tried
        # without the log's words none is known to have been tried
        untried = config.memory.untried_words if config.memory.synonyms else 0.0
        return [replace(own, words=words, untried=untried) for own in tried for words in WORDS]

    cases, unasked = questions(
        rankloom, sequences, searches=searches, max_per_user=1, max_users=min(limit, 2000)
    )  # fmt: skip
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
                excluded=excluded_rows(sequences, cases, part) if mask_seen else None,
                queries_at=torch.full_like(row, -1) if unasked else row, user=user,
                surface=torch.zeros_like(row) if unasked else table.surface[row],
                when=None if seconds is None else seconds[row],
            )  # fmt: skip
        mean = totals / max(1, len(cases))
        figures.update({_label(w): float(v) for w, v in zip(tried, mean, strict=True)})
        return mean

    nows = (0.0,)
    if len(lifts) > 1:
        tried = [replace(w, now=now) for w in grid(shares[:3], lifts, FEW_SHARES) for now in NOWS]
        chosen = tried[int(tell(tried, "choosing the lift on validation").argmax())]
        lifts, nows = (chosen.lift,), (chosen.now,)
    owns = SEARCH_OWN_SHARES if searches else SHARES
    tried = with_words([replace(w, now=now) for w in grid(shares, lifts, owns) for now in nows])
    mean = tell(tried, f"choosing weights{' of searches' if searches else ''} on validation")
    best = tried[int(mean.argmax())]
    alone = np.flatnonzero([weights.mix == 1 and weights.words == 0 for weights in tried])
    generator = replace(tried[int(alone[mean[alone].argmax()])] if len(alone) else replace(best, mix=1.0), untried=0.0)
    return best, generator, figures


def choose_refiner(
    rankloom: Rankloom,
    sequences: Sequences,
    table: FeatureTable,
    *,
    mask_seen: bool,
    searches: bool = False,
    quiet: bool = False,
) -> tuple[Refiner | None, dict[str, float]]:
    """The refiner fitted on some ten thousand validation cases, at most five a person; None where it does not help.

    Where lists hide what was seen, it learns from a fifth of the cases with nothing hidden as well: a request may ask for that.
    """
    kind = partial(questions, rankloom, sequences, searches=searches, max_per_user=5)
    cases, unasked = kind(max_users=REFINED)
    if len(cases) > REFINED:
        cases, unasked = kind(max_users=len(np.unique(cases.user)) * REFINED // len(cases))
    title = f"refining{' searches' if searches else ''} on validation"
    examples, also = examples_of(
        rankloom, sequences, table, cases, mask_seen=mask_seen, unasked=unasked, title=title, quiet=quiet
    )
    # what broad searches are told by is for their own refiner
    read = len(FEATURES) + len(SEARCH_FEATURES)
    examples, also = ([replace(own, feature_BCF=own.feature_BCF[..., :read]) for own in part] for part in (examples, also))
    return fit_refiner(examples, seed=rankloom.config.seed, also=also, quiet=quiet)


def examples_of(
    rankloom: Rankloom, sequences: Sequences, table: FeatureTable, cases: Cases, *, mask_seen: bool, title: str,
    unasked: bool = False, quiet: bool = False,
) -> tuple[list[RefineExamples], list[RefineExamples]]:  # fmt: skip
    """What a refiner is fitted on, and, where lists hide what was seen, a fifth of the cases with nothing hidden.

    Args:
        unasked: leave out the queries that the cases have.
    """
    seconds = torch.from_numpy(sequences.timestamp / 1e6) if sequences.has_clock else None
    examples, also = [], []
    size = 64
    for number, begin in enumerate(track(range(0, len(cases), size), title, unit="batches", quiet=quiet)):
        part = slice(begin, begin + size)
        row = torch.from_numpy(cases.row[part])
        user = torch.from_numpy(cases.user[part]).long()
        ask = partial(
            rankloom.refine_examples,
            table, torch.from_numpy(sequences.offsets)[user], row, torch.from_numpy(cases.target[part].astype(np.int64)),
            queries_at=torch.full_like(row, -1) if unasked else row, user=user,
            surface=torch.zeros_like(row) if unasked else table.surface[row],
            when=None if seconds is None else seconds[row],
        )  # fmt: skip
        examples.append(ask(excluded=excluded_rows(sequences, cases, part) if mask_seen else None))
        # far from the held-out batches, every fifth from the first: a person's cases may lie in two that are neighbours
        if mask_seen and number % 5 == 2:
            also.append(ask(excluded=None))
    return examples, also


def choose_search(
    rankloom: Rankloom, sequences: Sequences, table: FeatureTable, *, mask_seen: bool, limit: int, quiet: bool = False
) -> dict[str, float]:
    """Sets the model's `search_choices` from the searches of the validation period, where there are enough; the figures of
    all that was tried."""
    if rankloom.query_memory is None:
        return {}
    if int(((sequences.stage == VALID) & sequences.target & (sequences.query >= 0)).sum()) < FEW:
        return {}
    own, alone, figures = choose_weights(
        rankloom, sequences, table, mask_seen=mask_seen, limit=limit, searches=True, quiet=quiet
    )
    rankloom.search_choices = Choices(own, alone)
    selection = rankloom.config.selection
    if selection.enabled and selection.refine and own.mix < 1:
        refiner, refined = choose_refiner(
            rankloom, sequences, table, mask_seen=mask_seen, searches=True, quiet=quiet
        )
        rankloom.search_choices = Choices(replace(own, refine=float(refiner is not None)), alone, refiner)
        figures.update(refined)
    return figures


def _label(weights: Weights) -> str:
    parts = [weights.mix, weights.memory, weights.selection_memory, weights.lift, weights.now]
    return " ".join(f"{part:g}" for part in [*parts, *([weights.words] if weights.words else [])])


def describe_weights(weights: Weights, *, searches: bool = False) -> str:
    """One sentence on how generator, memory and selection are joined."""
    memory = "the query memory" if searches else "the behaviour memory"
    if weights.mix >= 1:
        order = "the generator orders the list"
    elif weights.mix <= 0:
        order = "the selection head orders what is generated"
    else:
        order = (
            f"the list is ordered {weights.mix:.0%} by the generator and {1 - weights.mix:.0%} by the selection head"
        )
    parts = [order]
    if weights.memory or weights.selection_memory:
        share = f"{memory} is {weights.memory:.0%} of the generator"
        parts.append(share + (f" and {weights.selection_memory:.0%} of the selection" if weights.mix < 1 else ""))
    else:
        parts.append(f"no {memory.removeprefix('the ')}")
    if weights.lift or weights.now:
        parts.append(
            f"shifted to what is taken now (strength {weights.lift:g} in the generator, {weights.now:g} in the order)"
        )
    if weights.words:
        parts.append(f"having all words is worth {weights.words:g} nats")
    if weights.untried:
        parts.append(f"having all words that no search has had is worth {weights.untried:g} nats more")
    if weights.refine:
        parts.append("a refiner has the last word")
    return "; ".join(parts)
