"""A selector over controllers: which bidder plays which campaign, from held-out days, and from its own days once it runs.

Campaigns are put in segments by what their budget buys at their target (budget / C). For every segment and member there is a running mean of normalised score
(score over budget / C) with its count; held-out training days fill it, `record` goes on with days that were played. The choice is the segment's best
mean, shrunk towards the member's overall mean where the segment has seen little; `explore > 0` draws it by Thompson sampling (a Gaussian
around the mean), which is what keeps trying the others once the selector learns from its own days. One campaign keeps one member for the whole day.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from rankloom.bidding.day import DayResult
from rankloom.bidding.protocol import Campaigns, Decision, FloatArray, History, IntArray, Observation, SavedController
from rankloom.bidding.score import score
from rankloom.bidding.state import reference_target

SHRINKAGE: Final = 30.0
"""Campaign-days at which a segment's own mean weighs as much as the overall mean."""


class Selector:
    """See the module's text.

    Args:
        members: controllers to choose from.
        edges: inner edges of the segments of budget / C.
        explore: scale of Thompson sampling; 0 plays the best mean.
    """

    def __init__(self, members: Sequence[SavedController], *, edges: Sequence[float] = (20.0, 35.0), explore: float = 0.0) -> None:
        if not members:
            raise ValueError("a selector needs at least one member")
        self.name = "selector"
        self.members = list(members)
        self.edges = np.asarray(edges, dtype=np.float64)
        self.explore = explore
        shape = (len(self.edges) + 1, len(self.members))
        self.count_SM = np.zeros(shape)
        self.mean_SM = np.zeros(shape)
        self.square_SM = np.zeros(shape)
        self._chosen_N: IntArray = np.zeros(0, dtype=np.int64)
        self._fallback_target = 1.0

    def segment(self, campaigns: Campaigns) -> IntArray:
        target_N = reference_target(campaigns, self._fallback_target).double().numpy()
        return np.asarray(np.searchsorted(self.edges, campaigns.budget_N / target_N), dtype=np.int64)

    def record(self, member: int, campaigns: Campaigns, score_N: FloatArray) -> None:
        """Adds finished campaign-days of one member."""
        target_N = reference_target(campaigns, self._fallback_target).double().numpy()
        share_N = score_N * target_N / campaigns.budget_N
        segment_N = self.segment(campaigns)
        for each in np.unique(segment_N):
            own = share_N[segment_N == each]
            before = self.count_SM[each, member]
            total = before + own.size
            self.mean_SM[each, member] += (own.sum() - own.size * self.mean_SM[each, member]) / total
            self.square_SM[each, member] += (np.square(own).sum() - own.size * self.square_SM[each, member]) / total
            self.count_SM[each, member] = total

    def learn_from(self, results: Sequence[Sequence[DayResult]]) -> None:
        """Held-out days: for each member the days that it played."""
        for member, days in enumerate(results):
            for day in days:
                self.record(member, day.campaigns, day.outcome.score())

    def learn_own_day(self, campaigns: Campaigns, history: History, value_N: FloatArray) -> None:
        """The day that the selector itself has just played."""
        score_N = score(value_N, history.spend_NT.sum(axis=1), campaigns.target_cpa_N)
        for member in np.unique(self._chosen_N):
            mask = self._chosen_N == member
            self.record(int(member), _some(campaigns, np.flatnonzero(mask)), score_N[mask])

    def estimates(self) -> FloatArray:
        """(S, M) shrunk means; members without any day rank last."""
        overall_M = (self.mean_SM * self.count_SM).sum(axis=0) / np.maximum(self.count_SM.sum(axis=0), 1.0)
        share = self.count_SM / (self.count_SM + SHRINKAGE)
        shrunk = share * self.mean_SM + (1 - share) * overall_M
        return np.asarray(np.where(self.count_SM.sum(axis=0) > 0, shrunk, -np.inf if self.count_SM.any() else 0.0))

    def start(self, campaigns: Campaigns, seed: int) -> None:
        estimate_NM = self.estimates()[self.segment(campaigns)]
        if self.explore > 0:
            spread = np.sqrt(np.maximum(self.square_SM - self.mean_SM**2, 1e-4) / np.maximum(self.count_SM, 1.0))
            drawn = np.random.default_rng(seed).standard_normal(estimate_NM.shape)
            estimate_NM = np.where(np.isfinite(estimate_NM), estimate_NM, 0.0) + self.explore * drawn * spread[self.segment(campaigns)]
        self._chosen_N = estimate_NM.argmax(axis=1)
        for member in np.unique(self._chosen_N):
            self.members[member].start(_some(campaigns, np.flatnonzero(self._chosen_N == member)), seed)

    def decide(self, observation: Observation) -> Decision:
        n = observation.campaigns.n
        multiplier_N = np.zeros(n)
        binding = ["none"] * n
        for member in np.unique(self._chosen_N):
            index = np.flatnonzero(self._chosen_N == member)
            decision = self.members[member].decide(_part(observation, index))
            multiplier_N[index] = decision.multiplier_N
            for place, word in zip(index, decision.binding, strict=True):
                binding[place] = word
        return Decision(multiplier_N, tuple(binding), details={"member": self._chosen_N.astype(np.float64)})

    def arrays(self) -> dict[str, NDArray[Any]]:
        own: dict[str, NDArray[Any]] = {
            "count": self.count_SM, "mean": self.mean_SM, "square": self.square_SM, "edges": self.edges,
        }  # fmt: skip
        for place, member in enumerate(self.members):
            own |= {f"member.{place}.{name}": value for name, value in member.arrays().items()}
        return own

    def settings(self) -> dict[str, Any]:
        members = [_described(member) for member in self.members]
        return {"kind": "selector", "name": self.name, "members": members, "options": {"explore": self.explore}}

    @classmethod
    def restore(cls, settings: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> Selector:
        """The inverse of `settings` and `arrays`."""
        from rankloom.bidding.bidders import build

        members = []
        for place, described in enumerate(settings["members"]):
            prefix = f"member.{place}."
            own = {name.removeprefix(prefix): value for name, value in arrays.items() if name.startswith(prefix)}
            members.append(build(described, own))
        found = cls(members, edges=arrays["edges"].tolist(), **settings["options"])
        found.count_SM, found.mean_SM, found.square_SM = (np.array(arrays[name]) for name in ("count", "mean", "square"))
        return found


def _described(member: SavedController) -> dict[str, Any]:
    """A learned member's settings, or which controller of the package it is."""
    settings = member.settings()
    if "kind" in settings:
        return settings
    from rankloom.bidding.controllers import CONTROLLERS

    for name, make in CONTROLLERS.items():
        made = make()
        if type(made) is type(member) and made.name == member.name:
            return {"kind": "built-in", "name": name}
    raise ValueError(f"a selector cannot keep the member {member.name!r}: it is neither learned nor one of the package's own")


def _some(campaigns: Campaigns, index: IntArray) -> Campaigns:
    return Campaigns(
        budget_N=campaigns.budget_N[index],
        target_cpa_N=campaigns.target_cpa_N[index],
        category_N=campaigns.category_N[index],
        name=tuple(campaigns.name[i] for i in index),
    )


def _part(observation: Observation, index: IntArray) -> Observation:
    history = observation.history
    return replace(
        observation,
        campaigns=_some(observation.campaigns, index),
        history=History(**{name: getattr(history, name)[index] for name in History.__dataclass_fields__}),
        remaining_N=observation.remaining_N[index],
        volume_forecast_N=None if observation.volume_forecast_N is None else observation.volume_forecast_N[index],
        p_mean_forecast_N=None if observation.p_mean_forecast_N is None else observation.p_mean_forecast_N[index],
    )
