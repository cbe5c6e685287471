"""The predicted conversion probability of an impression: a table by campaign and segment, kept calibrated by conversions.

Any object with `p_ppb(campaign, segment)` can take its place: a lookup of scores that a model wrote, for example. It is
asked when a slot is seen for the first time in a tick, not once a request.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final, Protocol

from rankloom.bidding.serve.campaigns import Campaign
from rankloom.bidding.serve.money import PPB


class ConversionModel(Protocol):
    """p in parts per billion, so that a bid is an integer product."""

    def p_ppb(self, campaign: str, segments: tuple[str, ...]) -> int: ...


class SegmentTable:
    """p(campaign, segment) x the campaign's calibration.

    Calibration is realised over predicted conversions of past impressions, both with `strength` conversions of prior
    evidence that the table is right, within [0.5, 2]: ten conversions must not double every bid.
    """

    BOUNDS: Final = (0.5, 2.0)

    def __init__(self, campaigns: Iterable[Campaign] = (), *, strength: float = 20.0) -> None:
        self._tables: dict[str, dict[str, int]] = {}
        self.factor: dict[str, float] = {}
        self.strength = strength
        for own in campaigns:
            self.add(own)

    def add(self, campaign: Campaign) -> None:
        self._tables[campaign.campaign_id] = {key: round(p * PPB) for key, p in campaign.pcvr.items()}
        self.factor.setdefault(campaign.campaign_id, 1.0)

    def calibrate(self, evidence: Mapping[str, tuple[float, float]]) -> None:
        """`evidence`: per campaign (predicted, realised) conversions of impressions old enough to have converted."""
        low, high = self.BOUNDS
        for campaign, (predicted, realised) in evidence.items():
            ratio = (realised + self.strength) / (predicted + self.strength)
            self.factor[campaign] = min(max(ratio, low), high)

    def p_ppb(self, campaign: str, segments: tuple[str, ...]) -> int:
        """With several known segments the most specific evidence is not known: their mean."""
        table = self._tables[campaign]
        known = [table[own] for own in segments if own in table]
        p = sum(known) // len(known) if known else table["*"]
        return min(int(p * self.factor[campaign]), PPB)
