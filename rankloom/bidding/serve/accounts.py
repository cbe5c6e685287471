"""An account: one campaign on one day, its balances and what happened in each of its ticks."""

from __future__ import annotations

from array import array
from typing import Any, Final

SERIES: Final = (
    "spend", "value", "conversions", "bids", "won", "exposed", "volume", "p_sum", "bid_sum", "lwc_sum", "lwc_n", "multiplier",
)  # fmt: skip


class Account:
    """One campaign on one day. Money in micros; series have one entry per tick of the auction."""

    __slots__ = (
        "bids", "bills", "budget", "campaign", "day", "day_end", "day_start", "disputed", "expired", "granted", "held", "highest",
        "index", "late", "late_bills", "leased", "leased_durable", "losses", "over_price", "reserved", "series", "spent", "wins",
    )  # fmt: skip
    _SAVED: Final = (
        "index", "campaign", "day", "day_start", "day_end", "budget", "highest", "spent", "reserved", "held", "granted", "leased",
        "bids", "wins", "bills", "losses", "expired", "late_bills", "late", "disputed", "over_price",
    )  # fmt: skip

    def __init__(
        self, index: int, campaign: str, day: str, day_start: int, day_end: int, budget: int, n_ticks: int
    ) -> None:
        self.index, self.campaign, self.day = index, campaign, day
        self.day_start, self.day_end = day_start, day_end
        self.budget = self.highest = budget
        self.spent = self.reserved = self.held = 0
        self.granted = 0  # micros ever reserved
        self.leased = self.leased_durable = 0
        self.bids = self.wins = self.bills = self.losses = self.expired = self.late_bills = 0
        self.late = self.disputed = self.over_price = 0
        self.series: dict[str, array[int]] = {name: array("q", bytes(8 * n_ticks)) for name in SERIES}

    @property
    def available(self) -> int:
        return self.budget - self.spent - self.reserved - self.held

    def to_json(self) -> dict[str, Any]:
        return {
            **{name: getattr(self, name) for name in self._SAVED},
            "series": {name: own.tolist() for name, own in self.series.items()},
        }

    @classmethod
    def from_json(cls, own: dict[str, Any], n_ticks: int) -> Account:
        account = cls(
            own["index"], own["campaign"], own["day"], own["day_start"], own["day_end"], own["budget"], n_ticks
        )
        for name in cls._SAVED:
            setattr(account, name, own[name])
        account.series = {name: array("q", values) for name, values in own["series"].items()}
        account.leased_durable = account.leased
        return account
