"""What to bid for an impression: the value, shaded in a first-price auction, against the open auction's floor or a deal's."""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal
from typing import Any, Final

from rankloom.bidding.serve.landscape import Landscape
from rankloom.bidding.serve.money import floor_to_micros
from rankloom.bidding.serve.openrtb import FIRST_PRICE, FIXED_PRICE, Deal, Imp, Reason
from rankloom.bidding.serve.slots import Candidate, Slot

_HIGHEST_FLOOR: Final = Decimal(10) ** 9


class Pricing:
    """Prices bids.

    Args:
        landscapes: what is known of prices to win, by group of slots.
        currency: ours; `rates` are micros of it for one unit of another.
        shading: bid less than the value in first-price auctions, once the landscape is known.
    """

    def __init__(
        self, landscapes: Mapping[int, Landscape], *, currency: str, rates: Mapping[str, int], shading: bool
    ) -> None:
        self._landscapes, self._currency, self._rates, self._shading = landscapes, currency, rates, shading

    def price(self, imp: Imp, slot: Slot, candidate: Candidate) -> tuple[int, str | None] | tuple[Reason, None]:
        """Micros an impression to bid, and the deal it is for. The open auction's floor, or the deal's own."""
        campaign = candidate.arm.campaign
        pmp = imp.pmp
        if pmp is not None and pmp.deals and campaign.deals:
            best = self._deal_price(pmp.deals, slot, candidate)
            if best is not None:
                return best
            below = any(deal.id in campaign.deals for deal in pmp.deals)
        else:
            below = False
        if campaign.deals_only or (pmp is not None and pmp.private_auction == 1):
            return (Reason.BELOW_DEAL_FLOOR if below else Reason.NO_DEAL), None
        floor = self._floor(imp.bidfloor, imp.bidfloorcur)
        if floor is None:
            return Reason.FLOOR_CURRENCY, None
        if candidate.value < floor:
            return Reason.BELOW_FLOOR, None
        bid = self._shaded(candidate, slot.first_price)
        return max(bid, floor), None

    def _deal_price(self, deals: list[Deal], slot: Slot, candidate: Candidate) -> tuple[int, str] | None:
        campaign = candidate.arm.campaign
        for deal in deals:
            if deal.id not in campaign.deals or (deal.wseat and campaign.seat not in deal.wseat):
                continue
            if deal.wadomain and not any(domain in deal.wadomain for domain in campaign.adomain):
                continue
            floor = self._floor(deal.bidfloor, deal.bidfloorcur)
            if floor is None or candidate.value < floor:
                continue
            if deal.at == FIXED_PRICE and floor:
                return floor, deal.id  # at 3 the deal's floor is the agreed price
            first_price = slot.first_price if deal.at is None else deal.at == FIRST_PRICE
            return max(self._shaded(candidate, first_price), floor), deal.id
        return None

    def _shaded(self, candidate: Candidate, first_price: bool) -> int:
        if not first_price or not self._shading:
            return candidate.value
        if candidate.bid < 0:
            landscape = self._landscapes.get(candidate.tag)
            candidate.bid = candidate.value if landscape is None else landscape.shade(candidate.value)
        return candidate.bid

    def _floor(self, floor: Any, currency: str | None) -> int | None:
        """Micros an impression, at least 1; None in a currency that is not known."""
        if not floor:
            return 1
        if currency is not None and currency != self._currency:
            rate = self._rates.get(currency)
            if rate is None:
                return None
            floor = floor * rate / 1_000_000
        return max(floor_to_micros(min(floor, _HIGHEST_FLOOR)), 1)
