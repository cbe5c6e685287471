"""The aligned encoder of queries and items: one projection of their text vectors, trained with five losses (OneSearch, KHQE).

    log, graded pairs -> pairs of three kinds, filtered by cosine; ranked triples; scored hard pairs -> the projection

Every step draws a batch of each kind, half by strength and half evenly, and takes the weighted sum of the losses. The
projection is that of semantic/alignment.py and is frozen afterwards: a new query or item goes through the same function.

Departures from the paper, each by a setting: the text encoder below the projection stays as it is (the paper trains a
distilled BGE through); a content-preserving loss holds what has no pairs (`alignment.content_weight`, 0 off); relevance is
scored by people or by words, not by a language model. Hard pairs are looked up three times: with the vectors before alignment,
then with those of a third and of two thirds of the training.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from rankloom.config import Config
from rankloom.data.sequences import Sequences
from rankloom.errors import RankloomError
from rankloom.progress import Progress
from rankloom.semantic.alignment import Aligner
from rankloom.semantic.khqe.losses import content_kept, in_batch_contrast, rank_margin, relevance_fit
from rankloom.semantic.khqe.mining import (
    Triples,
    engagement,
    keep_similar,
    query_pairs,
    ranked_triples,
    taken_pairs,
)
from rankloom.semantic.khqe.relevance import Scored, WordAgreement, hard_pairs, read_grades
from rankloom.semantic.pairs import Pairs
from rankloom.semantic.quantizers.base import FloatArray

Embed = Callable[[Sequence[str]], FloatArray]
_MININGS: Final = 3
_PASSES: Final = 4
"""Pairs of a kind that an epoch draws, at most, for every item and query."""
_FEWER: Final = 4
"""A contrast lives off the others of its batch; triples and scored pairs stand alone, so a quarter of a batch does."""
_START_SLOPE: Final = 5.0
_NO_PAIRS: Final[Pairs] = (np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0, np.float32))


@dataclass(frozen=True)
class Material:
    """What the losses learn from; lists that no loss asks for are empty.

    Attributes:
        queries: Q texts: of the training log, then those of graded pairs alone.
        q2q, i2i, q2i: filtered pairs.
        ranked: triples.
        graded: pairs that people scored.
        agreement: scores hard pairs where there are no graded ones.
        least: kind of pairs -> the cosine from which on they were kept.
    """

    queries: tuple[str, ...]
    q2q: Pairs = _NO_PAIRS
    i2i: Pairs = _NO_PAIRS
    q2i: Pairs = _NO_PAIRS
    ranked: Triples | None = None
    graded: Scored | None = None
    agreement: WordAgreement | None = None
    least: dict[str, float] = field(default_factory=dict)

    def counts(self) -> dict[str, int]:
        """How many of each, for the report."""
        return {
            "q2q": len(self.q2q[0]), "i2i": len(self.i2i[0]), "q2i": len(self.q2i[0]),
            "rank": 0 if self.ranked is None else len(self.ranked), "graded": 0 if self.graded is None else len(self.graded),
        }  # fmt: skip


def gather(
    items: pl.DataFrame,
    item_texts: Sequence[str],
    sequences: Sequences,
    config: Config,
    *,
    content_ID: FloatArray,
    embed: Embed,
    item_pairs: Callable[[], Pairs],
    shown: pl.DataFrame | None = None,
) -> tuple[Material, FloatArray]:
    """The material, and the (Q, D) vectors of its queries before alignment.

    Args:
        content_ID: items' unit vectors before alignment; `embed` gives those of queries.
        item_pairs: the i2i pairs, made only where they are asked for.
        shown: impressions after queries (`mining.shown_after_queries`).

    Raises:
        RankloomError: neither the training log nor a file of graded pairs has a query.
    """
    own = config.khqe
    log = engagement(sequences, shown)
    queries, graded = log.queries, None
    if own.grades is not None and own.relevance:
        asked, graded = read_grades(own.grades, items["item_id"].cast(pl.String).to_list())
        number = {query: at for at, query in enumerate(dict.fromkeys((*queries, *asked)))}
        queries = tuple(number)
        place = np.asarray([number[query] for query in asked], dtype=np.int64)
        graded = Scored(place[graded.query], graded.item, graded.score)
    if not queries:
        raise RankloomError(
            "the training period has no event with a query, so queries and items cannot be aligned", place="events.parquet, query",
            action="log searches (column query), give khqe.grades, or set khqe.enabled=false", code="khqe-queries",
        )  # fmt: skip
    query_QD = embed(queries)
    least: dict[str, float] = {}

    def filtered(name: str, pairs: Pairs, left: FloatArray, right: FloatArray) -> Pairs:
        kept, least[name] = keep_similar(pairs, left, right, min_cosine=own.min_cosine, drop_share=own.drop_share)
        return kept

    material = Material(
        queries=queries,
        q2q=filtered("q2q", query_pairs(log, items.height), query_QD, query_QD) if own.q2q else _NO_PAIRS,
        i2i=filtered("i2i", item_pairs(), content_ID, content_ID) if own.i2i else _NO_PAIRS,
        q2i=filtered("q2i", taken_pairs(log), query_QD, content_ID) if own.q2i else _NO_PAIRS,
        ranked=ranked_triples(log, config.seed) if own.rank else None,
        graded=graded,
        agreement=WordAgreement(queries, item_texts) if own.relevance and graded is None else None,
        least=least,
    )
    return material, query_QD


def train(
    aligner: Aligner, content_ID: FloatArray, query_QD: FloatArray, material: Material, config: Config, *, quiet: bool = False
) -> None:
    """Trains the aligner's projection in place, with its settings (`alignment`) and the weights of `khqe`."""
    own, weights = config.alignment, config.khqe
    rng = np.random.default_rng(config.seed)
    x_ID, q_QD = (torch.from_numpy(np.ascontiguousarray(vectors)) for vectors in (content_ID, query_QD))
    pairs = {
        "q2q": (material.q2q, q_QD, q_QD, weights.q2q),
        "i2i": (material.i2i, x_ID, x_ID, weights.i2i),
        "q2i": (material.q2i, q_QD, x_ID, weights.q2i),
    }
    active = {name: own for name, own in pairs.items() if own[3] and len(own[0][0])}
    draws = {name: _Draw(kind[0][2]) for name, kind in active.items()}
    ranked = material.ranked if weights.rank and material.ranked is not None and len(material.ranked) else None
    hard = _Hard(material, config, rng) if weights.relevance else None
    n_pairs = sum(len(kind[0][0]) for kind in active.values()) + len(ranked or ()) + len(material.graded or ())
    if not own.epochs or not (n_pairs or (hard and hard.any)):
        return
    per_epoch = max(1, min(max(n_pairs, len(query_QD)), _PASSES * (len(content_ID) + len(query_QD))) // own.batch_size)
    steps, few = own.epochs * per_epoch, max(1, own.batch_size // _FEWER)
    project = aligner.projection
    slope, middle = nn.Parameter(torch.tensor(_START_SLOPE)), nn.Parameter(torch.tensor(0.5))
    groups: list[dict[str, Any]] = [
        {"params": list(project.parameters())},
        {"params": [slope, middle], "lr": 10 * own.learning_rate, "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=own.learning_rate, weight_decay=1e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    with Progress("aligning queries and items", steps, unit="steps", quiet=quiet) as progress:
        for step in range(steps):
            if hard is not None and step % max(1, steps // _MININGS) == 0:
                hard.mine(*((q_QD, x_ID) if not step else (_unit(project, q_QD), _unit(project, x_ID))))
            loss = torch.zeros(())
            for name, (kind, left_ND, right_ND, weight) in active.items():
                at = draws[name](rng, own.batch_size)
                i, j = torch.from_numpy(kind[0][at]), torch.from_numpy(kind[1][at])
                a, b = project(left_ND[i]), project(right_ND[j])
                # a query may have the number of an item: the two are never the same thing
                loss = loss + weight * in_batch_contrast(a, b, i, j, own.temperature)
                if own.content_weight and name != "q2i":
                    loss = loss + own.content_weight * content_kept(a, left_ND[i])
            if ranked is not None:
                at = rng.integers(0, len(ranked), few)
                q, better, worse = (torch.from_numpy(rows[at]) for rows in (ranked.query, ranked.better, ranked.worse))
                ahead = rank_margin(
                    project(q_QD[q]), project(x_ID[better]), project(x_ID[worse]), torch.from_numpy(ranked.steps[at]), weights.margin
                )
                loss = loss + weights.rank * ahead
            if hard is not None and hard.any:
                query, item, score = hard.draw(few)
                fit = relevance_fit(project(q_QD[query]), project(x_ID[item]), score, slope, middle)
                loss = loss + weights.relevance * fit
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            optimizer.step()
            schedule.step()
            progress.advance(note=f"loss {float(loss.detach()):.3f}")


class _Draw:
    """Rows of a list: half by strength, half evenly, so that the tail of queries and items is aligned too."""

    def __init__(self, weight: NDArray[np.float32]) -> None:
        share = weight.astype(np.float64) / max(float(weight.sum(dtype=np.float64)), 1e-12)
        self.bounds = np.cumsum(0.5 * share + 0.5 / len(weight))

    def __call__(self, rng: np.random.Generator, n: int) -> NDArray[np.int64]:
        return np.minimum(np.searchsorted(self.bounds, rng.random(n)), len(self.bounds) - 1)


class _Hard:
    """Scored pairs for the relevance loss: graded ones, or the nearest items of queries, scored by words."""

    def __init__(self, material: Material, config: Config, rng: np.random.Generator) -> None:
        self.scored = material.graded
        self.agreement, self.top, self.rng = material.agreement, config.khqe.hard_items, rng
        n = len(material.queries)
        most = min(n, config.khqe.hard_queries)
        self.queries = np.sort(rng.choice(n, most, replace=False)) if self.agreement is not None else np.zeros(0, np.int64)

    @property
    def any(self) -> bool:
        return bool(len(self.queries)) if self.scored is None else bool(len(self.scored))

    def mine(self, query_QD: Tensor, item_ID: Tensor) -> None:
        if self.agreement is None:
            return
        query, item = hard_pairs(query_QD.numpy()[self.queries], item_ID.numpy(), top=self.top)
        query = self.queries[query]
        self.scored = Scored(query, item, self.agreement(query, item))

    def draw(self, n: int) -> tuple[Tensor, Tensor, Tensor]:
        assert self.scored is not None
        at = self.rng.integers(0, len(self.scored), n)
        return torch.from_numpy(self.scored.query[at]), torch.from_numpy(self.scored.item[at]), torch.from_numpy(self.scored.score[at])


@torch.no_grad()
def _unit(project: nn.Module, x_ND: Tensor) -> Tensor:
    return F.normalize(project(x_ND), dim=-1)
