"""Account holders of the bid path, and which requests are theirs."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any, Final
from zlib import crc32

from rankloom.bidding.serve import openrtb
from rankloom.bidding.serve.campaigns import Campaign, Creative

BUCKETS: Final = 1 << 16


class Arm:
    """One account holder of the bid path: a campaign, or one side of its budget-split test.

    Attributes:
        multiplier: micros a conversion in force now; `standby` what the fallback controller would use.
        low, high: the arm's share of the 65,536 traffic buckets.
    """

    __slots__ = (
        "account", "blocked_as", "campaign", "creatives", "high", "key", "low", "multiplier", "reasons",
        "standby", "status", "tick",
    )  # fmt: skip

    def __init__(self, key: str, campaign: Campaign, *, low: int = 0, high: int = BUCKETS) -> None:
        self.key, self.low, self.high = key, low, high
        self.account = 0  # none is open
        self.tick = 0
        self.multiplier = self.standby = 0
        self.status = "running"
        self.reasons: Counter[str] = Counter()
        self.set_campaign(campaign)

    def set_campaign(self, campaign: Campaign) -> None:
        self.campaign = campaign
        self.creatives = [(own, _static_text(campaign, own)) for own in campaign.creatives]
        self.blocked_as = {tax: tuple(own) for tax, own in campaign.categories.items()}

    @property
    def share(self) -> float:
        return (self.high - self.low) / BUCKETS


def _static_text(campaign: Campaign, creative: Creative) -> str:
    """The part of a bid's JSON that no request changes."""
    first = next(iter(campaign.categories.items()), None)
    body: dict[str, Any] = {
        "adid": creative.creative_id, "adomain": list(campaign.adomain), "cid": campaign.campaign_id, "crid": creative.creative_id,
        "mtype": {"banner": openrtb.BANNER, "video": openrtb.VIDEO, "native": openrtb.NATIVE}[creative.kind],
    }  # fmt: skip
    if first is not None and first[1]:
        body["cattax"], body["cat"] = first[0], list(first[1])
    if campaign.bundle:
        body["bundle"] = campaign.bundle
    if creative.attributes:
        body["attr"] = list(creative.attributes)
    if creative.w and creative.h:
        body["w"], body["h"] = creative.w, creative.h
    if creative.duration_s:
        body["dur"] = creative.duration_s
    if creative.markup is not None:
        body["adm"] = creative.markup
    return json.dumps(body, ensure_ascii=True)[1:-1]


def bucket_of(request: openrtb.BidRequest) -> int:
    """The traffic bucket of a request. A person stays on one side of a budget split; a request without a person is split by its id."""
    user = request.user
    name = (user.id or user.buyeruid) if user is not None else None
    return crc32((name or request.id).encode("utf-8", "replace")) & (BUCKETS - 1)
