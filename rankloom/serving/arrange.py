"""From what the model generated to what is shown: youth, diversity, caps, exploration, the fallback. Pure functions.

Everything picks from rows that the rules allow; nothing here can bring in another.

Shapes: P rows of the pool, I catalogue rows, L levels of a semantic ID.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from rankloom.semantic.words import words as words_of


def youth(created_P: NDArray[np.float64], now: float, half_life_days: float) -> NDArray[np.float64]:
    """(P,) 1 for an item of this moment, half after the half-life, 0 where its age is unknown."""
    age_days = np.maximum(0.0, now - created_P) / 86_400
    out: NDArray[np.float64] = np.nan_to_num(np.exp2(-age_days / half_life_days), nan=0.0)
    return out


def shared_prefix(codes_PL: NDArray[np.int64], own_L: NDArray[np.int64]) -> NDArray[np.float64]:
    """(P,) share of the levels, from the first, in which a semantic ID equals `own_L`."""
    same: NDArray[np.bool_] = np.logical_and.accumulate(codes_PL == own_L, axis=1)
    out: NDArray[np.float64] = same.mean(axis=1)
    return out


def pick(
    score_P: Sequence[float],
    k: int,
    *,
    codes_PL: NDArray[np.int64],
    youth_P: NDArray[np.float64],
    groups_P: Sequence[Sequence[str | None]],
    caps: Sequence[int],
    diversity: float,
    freshness: float,
) -> list[int]:
    """Places of the pool, best first: maximal marginal relevance over score and youth, within the caps.

    Args:
        score_P: the model's scores; only their order and distances matter.
        groups_P: per cap the group of each place; None is no group and never capped.
        caps: the most of one group, per entry of `groups_P`.
    """
    if not len(score_P):
        return []
    scores = np.asarray(score_P, dtype=np.float64)
    span = float(scores.max() - scores.min()) or 1.0
    value_P = (1 - freshness) * (scores - scores.min()) / span + freshness * youth_P
    near_P = np.zeros(len(scores))
    open_P = np.ones(len(scores), dtype=np.bool_)
    counts: list[Counter[str]] = [Counter() for _ in caps]
    chosen: list[int] = []
    while len(chosen) < k and open_P.any():
        utility = np.where(open_P, (1 - diversity) * value_P - diversity * near_P, -np.inf)
        best = int(utility.argmax())
        open_P[best] = False
        own = [groups[best] for groups in groups_P]
        if any(g is not None and n[g] >= cap for g, n, cap in zip(own, counts, caps, strict=True)):
            continue
        for g, n in zip(own, counts, strict=True):
            if g is not None:
                n[g] += 1
        chosen.append(best)
        near_P = np.maximum(near_P, shared_prefix(codes_PL, codes_PL[best]))
    return chosen


def explore(rows: list[int], free: NDArray[np.int64], share: float, seed: str) -> tuple[list[int], set[int]]:
    """The list with about `share` of its places given to rows of `free`; the same seed gives the same list.

    Returns:
        the rows, and which of them explore.
    """
    rng = random.Random(seed)
    out = list(rows)
    new: set[int] = set()
    for place in range(len(out)):
        if rng.random() < share and len(new) < len(free):
            while (row := int(free[rng.randrange(len(free))])) in new:
                pass
            out[place] = row
            new.add(row)
    return out, new


def by_words(rows: NDArray[np.int64], titles: Sequence[str], words: str) -> list[int]:
    """Those rows whose title has words of the search, most words first, else in the order given."""
    wanted = set(words_of(words))
    hits = [(len(wanted & set(words_of(titles[row]))), int(row)) for row in rows]
    return [row for n, row in sorted(hits, key=lambda own: -own[0]) if n]
