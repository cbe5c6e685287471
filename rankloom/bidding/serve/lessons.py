"""What notices, and their absence, teach about the price to win: one landscape for each group of slots."""

from __future__ import annotations

from typing import Final

from rankloom.bidding.serve.landscape import Landscape
from rankloom.bidding.serve.ledger import Ledger
from rankloom.bidding.serve.notices import Outcome

_LOST_ON_PRICE: Final = (102, 103)  # loss reasons: a higher bid, a bid for a private deal
_MAX_GROUPS: Final = 4000


class Lessons:
    """Groups of slots by number (a bid's `tag`, at least 1) and what is known of the prices there.

    The names of the groups are kept in the ledger, so that the tags of its bids keep their meaning.
    """

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        groups = ledger.documents.get("groups", [])
        self._groups: dict[str, int] = {name: tag for tag, name in enumerate(groups, start=1)}
        self.landscapes: dict[int, Landscape] = {tag: Landscape() for tag in self._groups.values()}
        self._least_costs: dict[tuple[int, int], list[int]] = {}  # by account and tick: sum and number

    def tag(self, group: str) -> int:
        """The number of a group, a new one where it was not seen before; 0 where there are too many."""
        tag = self._groups.get(group)
        if tag is None:
            if len(self._groups) >= _MAX_GROUPS:
                return 0
            tag = self._groups[group] = len(self._groups) + 1
            self.landscapes[tag] = Landscape()
            self._ledger.put_document("groups", list(self._groups))
        return tag

    def name(self, tag: int) -> str:
        return next((name for name, own in self._groups.items() if own == tag), "?")

    def learn(self, kind: str, bid: int, outcome: Outcome, price: int | None, lowest: int | None, loss: str) -> None:
        """What a notice says of the price to win.

        Args:
            price: micros that the exchange names as the auction's price.
            lowest: micros that would have won, where it tells them.
            loss: its code of why the bid lost.
        """
        if (kind, outcome) not in (("win", Outcome.WON), ("loss", Outcome.RELEASED)):
            return
        known = self._ledger.bid(bid)
        landscape = None if known is None else self.landscapes.get(known.tag)
        if known is None or landscape is None:
            return
        first_price = self.name(known.tag).endswith("first")
        seen = lowest
        if seen is None and price is not None and (kind == "loss" or not first_price):
            seen = price
        if seen is not None:
            landscape.saw(seen)
            sums = self._least_costs.setdefault((known.account, known.tick), [0, 0])
            sums[0] += seen
            sums[1] += 1
        elif kind == "win":
            landscape.won(known.amount)
        elif not loss.isdigit() or int(loss) in _LOST_ON_PRICE:
            landscape.lost(known.amount)

    def lapsed(self, tag: int, amount: int) -> None:
        """A bid without an outcome: exchanges that send no loss notices say it by silence."""
        landscape = self.landscapes.get(tag)
        if landscape is not None:
            landscape.lost(amount)

    def book(self) -> None:
        """Adds the least winning costs seen since the last call to the ledger."""
        for (account, tick), (total, n) in self._least_costs.items():
            if account in self._ledger.accounts:
                self._ledger.add_traffic(account, tick, volume=0, p_sum=0, bid_sum=0, lwc_sum=total, lwc_n=n)
        self._least_costs = {}
