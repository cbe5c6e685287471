"""The books: what each record does to the balances. A state machine without files, locks or a clock.

The state is a function of the records: `apply` is the same for a record just written and for one read back from the
log. Whether a record should be written at all is decided before, by `ledger.py` and `notices.py`.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable
from typing import Any, Final

from rankloom.bidding.serve import records
from rankloom.bidding.serve.accounts import Account
from rankloom.bidding.serve.bidtable import (
    BILLED,
    DISPUTED,
    EXPIRED,
    LOST,
    OPEN,
    SAW_WIN,
    STATUS,
    WON,
    BidTable,
    Block,
)
from rankloom.errors import RankloomError

EPOCH_BITS: Final = 40
_CONVERSIONS_US: Final = 30 * 86_400_000_000
_TRAFFIC: Final = ("volume", "p_sum", "bid_sum", "lwc_sum", "lwc_n")


class Books:
    """The state of a ledger.

    Args:
        n_ticks: ticks of a day.
        place: the folder of the ledger, for messages.

    Attributes:
        now: the latest time that was told, in microseconds.
        win_us, bill_us, remember_us, ppm: times and late allowance in force; a START record sets them.
        upcoming: id of the next bid; its upper bits are the epoch, which counts openings.
        open: bids in their order that wait for the auction's outcome, or did.
        won: heap of (deadline, bid) of wins that wait for billing, or did.
        holds: heap of (until, account, micros) held back after a power loss.
        orphans: when a bid that a power loss took was billed.
        ends: by epoch the first id that its log does not know and the time of the restart.
        conversions: when the conversion with this hash was counted.
        expired: reservations that lapsed, by this process or in what it read.
        lapsed: told tag and amount of bids without an outcome.
    """

    def __init__(self, *, n_ticks: int, place: str) -> None:
        self.n_ticks, self.place = n_ticks, place
        self.epoch, self.boot, self.now = 0, "", 0
        self.win_us = self.bill_us = self.remember_us = self.ppm = 0
        self.accounts: dict[int, Account] = {}
        self.by_key: dict[tuple[str, str], int] = {}
        self.next_account = 1
        self.documents: dict[str, Any] = {}
        self.bids = BidTable()
        self.upcoming = 0
        self.open: deque[int] = deque()
        self.won: list[tuple[int, int]] = []
        self.holds: list[tuple[int, int, int]] = []
        self.orphans: dict[int, int] = {}
        self.ends: dict[int, tuple[int, int]] = {}
        self.conversions: dict[int, int] = {}
        self.expired = 0
        self.lapsed: Callable[[int, int], None] | None = None

    def apply(self, kind: int, payload: bytes) -> None:
        """Does what a record says.

        Raises:
            RankloomError: the kind is not known.
        """
        does = _DOES.get(kind)
        if does is None:
            raise RankloomError(
                f"the ledger's log holds a record of unknown kind {kind}",
                place=self.place,
                action="open it with the version of Rankloom that wrote it",
                code="ledger-version",
            )
        does(self, *records.DECODE[kind](payload))

    def allowance(self, own: Account) -> int:
        """Micros that late billing may take beyond the day's highest budget."""
        return own.highest * self.ppm // 1_000_000

    def bound(self, own: Account) -> int:
        """What spent + reserved never passes."""
        return own.highest + self.allowance(own)

    # -- openings, accounts, what is kept beside them ------------------------------------------------------------------

    def _start(self, own: dict[str, Any]) -> None:
        if self.epoch:
            self.ends[self.epoch] = (self.upcoming, own["now"])
        self.epoch, self.boot, self.now = own["epoch"], own["boot"], max(self.now, own["now"])
        self.upcoming = self.epoch << EPOCH_BITS
        settings = own["settings"]
        self.win_us, self.bill_us = settings["win_s"] * 1_000_000, settings["bill_s"] * 1_000_000
        self.remember_us, self.ppm = settings["remember_s"] * 1_000_000, settings["late_allowance_ppm"]

    def _open(self, own: dict[str, Any]) -> None:
        account = Account(
            own["index"], own["campaign"], own["day"], own["day_start"], own["day_end"], own["budget"], self.n_ticks
        )
        self.accounts[account.index] = account
        self.by_key[account.campaign, account.day] = account.index
        self.next_account = account.index + 1

    def _budget(self, account: int, budget: int) -> None:
        own = self.accounts[account]
        own.budget, own.highest = budget, max(own.highest, budget)

    def _lease(self, account: int, leased: int) -> None:
        self.accounts[account].leased = leased

    def _hold(self, account: int, amount: int, until: int) -> None:
        self.accounts[account].held += amount
        heapq.heappush(self.holds, (until, account, amount))

    def _close(self, account: int, _: int) -> None:
        own = self.accounts.pop(account)
        del self.by_key[own.campaign, own.day]

    def _document(self, name: str, value: Any) -> None:
        if value is None:
            self.documents.pop(name, None)
        else:
            self.documents[name] = value

    def _conversion(self, key: int, account: int, tick: int, _: int, now: int) -> None:
        self.conversions[key] = now
        self.now = now
        if account in self.accounts:
            self.accounts[account].series["conversions"][tick] += 1

    def _traffic(self, account: int, tick: int, *sums: int) -> None:
        series = self.accounts[account].series
        for name, value in zip(_TRAFFIC, sums, strict=True):
            series[name][tick] += value

    def _multiplier(self, account: int, tick: int, micros: int) -> None:
        self.accounts[account].series["multiplier"][tick] = micros

    # -- bids and notices ----------------------------------------------------------------------------------------------

    def _bid(self, bid: int, account: int, amount: int, now: int, p_ppb: int, tick: int, tag: int) -> None:
        own = self.accounts[account]
        self.bids.add(bid, account, amount, now, p_ppb, tick, tag)
        own.reserved += amount
        own.granted += amount
        own.bids += 1
        own.series["bids"][tick] += 1
        self.open.append(bid)
        self.upcoming = bid + 1
        self.now = now

    def _win(self, bid: int, now: int, price: int) -> None:
        block, at = self.bids.at(bid)
        own, amount = self.accounts[block.account[at]], block.amount[at]
        status = block.state[at] & STATUS
        own.wins += 1
        own.series["won"][block.tick[at]] += 1
        if price >= 0:
            block.price[at] = min(price, amount)
        if status == EXPIRED and own.available >= amount:
            own.reserved += amount  # its money was given back: take it again while there is some
            status = OPEN
        if status == OPEN:
            heapq.heappush(self.won, (now + self.bill_us, bid))
            block.state[at] = WON | SAW_WIN
        else:
            block.state[at] |= SAW_WIN
        self.now = now

    def _bill(self, bid: int, now: int, price: int) -> None:
        block, at = self.bids.at(bid)
        own, amount, state = self.accounts[block.account[at]], block.amount[at], block.state[at]
        if price < 0:
            # a price of 0 in the column and no win notice both mean: nothing better than the bid is known
            price = block.price[at] if state & SAW_WIN and block.price[at] else amount
        if price > amount:
            own.over_price += price - amount
            own.disputed += price - amount
            price = amount
        tick = block.tick[at]
        if not state & SAW_WIN:
            own.wins += 1
            own.series["won"][tick] += 1
        self.now = now
        if state & STATUS in (OPEN, WON):
            own.reserved -= amount
        elif not self._take_late(own, price):
            block.state[at] = DISPUTED | SAW_WIN
            block.price[at] = price
            return
        block.state[at] = BILLED | SAW_WIN
        block.price[at] = price
        own.series["value"][tick] += block.p[at]
        _spend(own, price, tick)

    def _orphan(self, bid: int, account: int, amount: int, now: int, price: int) -> None:
        own = self.accounts[account]
        self.now = now
        self.orphans[bid] = now
        own.wins += 1
        if own.held >= amount:
            own.held -= amount
        elif not self._take_late(own, price):
            return
        _spend(own, price, 0)

    def _take_late(self, own: Account, price: int) -> bool:
        own.late_bills += 1
        if own.spent + own.reserved + own.held + price > self.bound(own):
            own.disputed += price
            return False
        own.late += price
        return True

    def _loss(self, bid: int, now: int) -> None:
        block, at = self.bids.at(bid)
        own = self.accounts[block.account[at]]
        if block.state[at] & STATUS in (OPEN, WON):
            own.reserved -= block.amount[at]
        block.state[at] = LOST | (block.state[at] & SAW_WIN)
        own.losses += 1
        self.now = now

    # -- time ----------------------------------------------------------------------------------------------------------

    def due(self, now: int) -> bool:
        """Whether an EXPIRE record of this time would change anything."""
        if self.open:
            found = self.bids.find(self.open[0])
            if found is None or found[0].time[found[1]] + self.win_us <= now:
                return True
        return bool((self.won and self.won[0][0] <= now) or (self.holds and self.holds[0][0] <= now))

    def _expire(self, now: int, limit: int) -> None:
        self.now = now
        limit = self._expire_open(now, limit)
        self._expire_won(now, limit)
        self._expire_holds(now)

    def _expire_open(self, now: int, limit: int) -> int:
        """Lapses bids without an outcome; returns how much of the limit is left."""
        while self.open and limit:
            found = self.bids.find(self.open[0])
            if found is not None:
                block, at = found
                if block.time[at] + self.win_us > now:
                    break
                if block.state[at] & STATUS == OPEN:
                    self._lapse(block, at)
            self.open.popleft()
            limit -= 1
        return limit

    def _expire_won(self, now: int, limit: int) -> None:
        while self.won and self.won[0][0] <= now and limit:
            _, bid = heapq.heappop(self.won)
            found = self.bids.find(bid)
            if found is not None:
                block, at = found
                if block.state[at] & STATUS == WON:
                    self._lapse(block, at)
            limit -= 1

    def _expire_holds(self, now: int) -> None:
        while self.holds and self.holds[0][0] <= now:
            _, account, amount = heapq.heappop(self.holds)
            if account in self.accounts:
                own = self.accounts[account]
                own.held -= min(own.held, amount)

    def _lapse(self, block: Block, at: int) -> None:
        own = self.accounts[block.account[at]]
        own.reserved -= block.amount[at]
        own.expired += 1
        self.expired += 1
        if self.lapsed is not None and block.state[at] == OPEN:
            self.lapsed(block.tag[at], block.amount[at])
        block.state[at] = EXPIRED | (block.state[at] & SAW_WIN)

    def _forget(self, now: int) -> None:
        self.now = now
        horizon = now - self.win_us - self.bill_us - self.remember_us
        self.bids.drop(horizon, self.upcoming)
        self.orphans = {bid: when for bid, when in self.orphans.items() if when >= horizon}
        self.ends = {epoch: end for epoch, end in self.ends.items() if end[1] >= horizon}
        self.conversions = {own: when for own, when in self.conversions.items() if when >= now - _CONVERSIONS_US}


def _spend(own: Account, price: int, tick: int) -> None:
    own.spent += price
    own.bills += 1
    own.series["spend"][tick] += price
    own.series["exposed"][tick] += 1


_DOES: Final[dict[int, Callable[..., None]]] = {
    records.DOCUMENT: Books._document,
    records.START: Books._start,
    records.OPEN: Books._open,
    records.BUDGET: Books._budget,
    records.LEASE: Books._lease,
    records.HOLD: Books._hold,
    records.BID: Books._bid,
    records.WIN: Books._win,
    records.BILL: Books._bill,
    records.LOSS: Books._loss,
    records.EXPIRE: Books._expire,
    records.CONVERSION: Books._conversion,
    records.TRAFFIC: Books._traffic,
    records.ORPHAN: Books._orphan,
    records.MULTIPLIER: Books._multiplier,
    records.CLOSE: Books._close,
    records.FORGET: Books._forget,
}
