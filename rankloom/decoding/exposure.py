"""What is shown changes with the hour; what the generator learned does not. The lift is the difference.

A generator trained on a log reproduces how often each item was taken *in the training period*. New items were taken
never, last month's hits a lot. Under a shift of the prior alone (Saerens, Latinne & Decaestecker 2002) the distribution
of today is the learned one times the ratio of the priors,

    p_now(i | h)  ~  p_train(i | h) * now(i, t) / train(i)

and the ratio of a node of the trie is that of the sums below it, so it can be applied code by code. `train` is the count
of an item; `now` is rate(kind, age at t) * quality(item): how often an item of its kind and age is taken while it is there,
and how much more or less than that this item was,

    quality = (count + K) / (expected count at the rates of its ages + K).

An item that training never saw has quality 1: it is taken as new items are. Nothing here looks at anything but catalogue
and training log, and a table of one moment (rounded to the hour) serves all requests of that hour.

Shapes: I catalogue rows, E takes of the training log, G kinds, A age buckets, H moments, B requests, n_l nodes at depth l.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rankloom.decoding.masks import MaskIndex
from rankloom.models.age import N_AGES, NOT_YET, age_bucket

QUALITY_PRIOR: Final = 5.0
"""K: takes at the expected rate that every item is given beforehand."""
TRAIN_PRIOR: Final = 0.5
"""Takes that every item is given in `train`, so that none is divided by."""
MOMENT_SECONDS: Final = 3600.0
_KEPT_MOMENTS: Final = 256
_HARDLY: Final = 1e-6


class Exposure:
    """Rates and expected counts of a training log.

    Args:
        rate_GA: takes per item while it is there, by kind and age; only ratios matter.
        expected_I: (n_trained,) what each item would have been taken at those rates in the training period.
    """

    def __init__(self, rate_GA: Tensor, expected_I: Tensor) -> None:
        self.rate_GA, self.expected_I = rate_GA.double(), expected_I.double()

    @classmethod
    def fit(cls, created_I: Tensor, kind_I: Tensor, item_E: Tensor, when_E: Tensor, *, moments: int = 200) -> Exposure:
        """
        Args:
            created_I: (I,) seconds when each item was listed, NaN unknown.
            kind_I: (I,) kinds that age differently, from 0.
            item_E, when_E: what was taken in the training period, and when (seconds).
        """
        n_kinds = int(kind_I.max()) + 1
        taken = torch.zeros(n_kinds, N_AGES, dtype=torch.float64)
        ones = torch.ones(len(item_E), dtype=torch.float64)
        taken.index_put_((kind_I[item_E], age_bucket(when_E, created_I[item_E])), ones, accumulate=True)
        grid = torch.linspace(float(when_E.min()), float(when_E.max()), moments, dtype=torch.float64)
        there = torch.zeros_like(taken)
        each = torch.ones(len(created_I), dtype=torch.float64)
        for when in grid:
            there.index_put_((kind_I, age_bucket(when, created_I)), each, accumulate=True)
        # one take at the average rate of the kind steadies ages that hardly occurred
        average = taken.sum(1, keepdim=True) / there[:, NOT_YET + 1 :].sum(1, keepdim=True).clamp_min(1)
        rate = (taken + 1) / (there + 1 / average.clamp_min(1e-9))
        rate[:, NOT_YET] = _HARDLY * rate.max()
        expected = torch.zeros(len(created_I), dtype=torch.float64)
        for when in grid:
            bucket = age_bucket(when, created_I)
            expected += torch.where(bucket == NOT_YET, 0.0, rate[kind_I, bucket])
        return cls(rate, expected)

    def now(self, when: float, created_I: Tensor, kind_I: Tensor, count_I: Tensor) -> Tensor:
        """(I,) float64: how often each item is taken at a moment, in expectation; only ratios matter."""
        expected = torch.zeros(len(created_I), dtype=torch.float64)
        expected[: len(self.expected_I)] = self.expected_I[: len(expected)]
        quality = (count_I.double() + QUALITY_PRIOR) / (expected + QUALITY_PRIOR)
        moment = torch.tensor(when, dtype=torch.float64)
        kind = kind_I.clamp_max(len(self.rate_GA) - 1)
        return self.rate_GA[kind, age_bucket(moment, created_I)] * quality

    def arrays(self) -> dict[str, NDArray[Any]]:
        return {"rate": self.rate_GA.numpy(), "expected": self.expected_I.numpy()}

    @classmethod
    def from_arrays(cls, arrays: dict[str, NDArray[Any]]) -> Exposure:
        return cls(*(torch.from_numpy(np.asarray(arrays[name])) for name in ("rate", "expected")))


class Lift:
    """The shift of a batch of requests laid over a trie.

    Attributes:
        nodes: per depth 1..L, (H, n_l) log ratio of each node, times the strength.
        item_HI: (H, I) log `now` of the items, for their shares within a leaf.
        moment_B: (B,) which of the moments a request is at.
        made_of: strength and kept tables of the moments; two lifts of the same are the same but for `moment_B`.
    """

    def __init__(
        self, nodes: list[Tensor], item_HI: Tensor, moment_B: Tensor, made_of: tuple[float, list[Any]] | None = None
    ) -> None:
        self.nodes, self.item_HI, self.moment_B, self.made_of = nodes, item_HI, moment_B, made_of

    def alike(self, made_of: tuple[float, list[Any]] | None) -> bool:
        """Whether it is of that strength and of those very tables."""
        if self.made_of is None or made_of is None or self.made_of[0] != made_of[0]:
            return False
        own, other = self.made_of[1], made_of[1]
        return len(own) == len(other) and all(a is b for a, b in zip(own, other, strict=True))

    def of(self, depth: int, request: Tensor, node: Tensor) -> Tensor:
        """(P,) what is added to the log-probability of nodes of a depth 1..L."""
        return self.nodes[depth - 1][self.moment_B[request], node]


class LiftTables:
    """Tables of moments for one catalogue and trie, kept by the hour."""

    def __init__(
        self, exposure: Exposure, index: MaskIndex, *, created_I: Tensor, kind_I: Tensor, count_I: Tensor
    ) -> None:
        self.exposure, self.index = exposure, index
        self.created_I, self.kind_I, self.count_I = created_I, kind_I, count_I
        self._kept: dict[int, tuple[list[Tensor], Tensor]] = {}

    def log_now(self, when_B: Tensor, item_BC: Tensor) -> Tensor:
        """(B, C) log of how often items are taken at the moments of requests; negative rows are padding."""
        tables, moment_B = self._tables(when_B)
        return torch.stack([items for _, items in tables])[moment_B[:, None], item_BC.clamp_min(0)]

    def _tables(self, when_B: Tensor) -> tuple[list[tuple[list[Tensor], Tensor]], Tensor]:
        hours = torch.where(when_B.isnan(), -1.0, torch.floor(when_B / MOMENT_SECONDS)).long()
        moments, moment_B = torch.unique(hours, return_inverse=True)
        return [self._table(int(hour)) for hour in moments], moment_B

    def lift(self, when_B: Tensor, strength: float) -> Lift:
        """The lift of requests at `when_B` (seconds); NaN is no lift."""
        tables, moment_B = self._tables(when_B)
        nodes = [torch.stack(level) * strength for level in zip(*(nodes for nodes, _ in tables), strict=True)]
        return Lift(nodes, torch.stack([items for _, items in tables]), moment_B, (strength, tables))

    def _table(self, hour: int) -> tuple[list[Tensor], Tensor]:
        if hour not in self._kept:
            if len(self._kept) >= _KEPT_MOMENTS:
                self._kept.clear()
            self._kept[hour] = self._fresh(hour)
        return self._kept[hour]

    def _fresh(self, hour: int) -> tuple[list[Tensor], Tensor]:
        count = self.count_I.double() + TRAIN_PRIOR
        now = count if hour < 0 else self.exposure.now(
            (hour + 0.5) * MOMENT_SECONDS, self.created_I, self.kind_I, self.count_I
        )  # fmt: skip
        row = self.index.trie.leaf_items.numpy()
        today, before = (self.index.trie.sums(own.numpy()[row]) for own in (now, count))
        nodes = [
            torch.from_numpy((np.log(own.clip(1e-300)) - np.log(then.clip(1e-300))).astype(np.float32))
            for own, then in zip(today, before, strict=True)
        ]
        return nodes, now.clamp_min(1e-300).log().float()
