"""The ledger: every micro of every campaign's day is available, held, reserved or spent, and moves only by a logged record.

    bid      available -> reserved     the full bid price, before the reply leaves the process
    win      (nurl) the reservation now waits for billing instead of for the auction's outcome
    billing  (burl) reserved -> spent  the clearing price, the rest back to available: the only move into spent
    loss     (lurl) reserved -> available
    expiry   reserved -> available     no outcome within `win_s`, or a win not billed within `bill_s`

Notices may come twice, late, in any order, or never; each bid is billed at most once.

**The bound.** spent + reserved <= highest budget of the day + late allowance, always. Reservations alone never pass the
budget. Only a billing notice for a reservation that had lapsed can, and such late money is taken only up to the late
allowance; what is beyond is refused, counted as `disputed` and left to be settled with the exchange. A clearing price
above the bid is charged at the bid, the excess is disputed.

**Crashes.** A record is handed to the operating system before the process acts on it: killing the process loses
nothing. The disk is told later (group commit), so a power loss can lose the last bids, which is why money is leased:
the cumulative reservations of an account may not pass a limit that is already on disk. After a power loss (another
boot id in the log) the unused part of the lease is held back until no notice can come any more, and a billing notice
of a forgotten bid, whose id carries account and amount, is paid from there.

The ledger is deterministic: the state is a function of the records. Time is passed in, in microseconds, and never
runs backwards. A day is an *account*; a reservation and its billing belong to the day of the auction.

Here a call becomes a record, or is refused. `records.py` is what a record looks like, `books.py` what it does,
`notices.py` which notices have an effect, `segments.py` the files, `groupcommit.py` the thread that syncs.

Not thread safe: whoever calls holds `lock`. `sync` alone may be called without it.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from rankloom.bidding.serve import booksfile, notices, records
from rankloom.bidding.serve.accounts import Account
from rankloom.bidding.serve.audit import audit
from rankloom.bidding.serve.bidtable import Bid
from rankloom.bidding.serve.books import Books
from rankloom.bidding.serve.groupcommit import GroupCommit
from rankloom.bidding.serve.money import MAX_MICROS
from rankloom.bidding.serve.notices import Outcome
from rankloom.bidding.serve.segments import Segments, boot_id


class Refusal(StrEnum):
    """Why a reservation was not made."""

    BUDGET = "budget"
    LEDGER = "ledger-unavailable"


@dataclass(frozen=True)
class LedgerSettings:
    """Times and limits; those in force when a record was written are in the log.

    Attributes:
        win_s: how long a bid's money waits for the auction's outcome.
        bill_s: how long a won bid's money waits for its billing notice (`exp` of our bids).
        remember_s: how long bids are known after that, so that late and repeated notices are recognised.
        late_allowance_ppm: money that late billing may take beyond the budget, in millionths of it.
        lease_ppm: how much reserving one lease on disk covers, in millionths of the budget.
        n_ticks: ticks of a day.
    """

    win_s: int = 60
    bill_s: int = 3600
    remember_s: int = 6 * 3600
    late_allowance_ppm: int = 20_000
    lease_ppm: int = 50_000
    n_ticks: int = 48


class Ledger:
    """Opens (or recovers) the ledger in `folder`; one process at a time.

    Args:
        background: sync in a thread, so that nothing on the bid path waits for the disk. Without it a lease is synced
            where it is taken, which is deterministic and slow: for tests and tools.
        keep: keep old log segments after a snapshot, for an audit from the first record on.

    Raises:
        RankloomError: another process has it open, or a file is damaged.
    """

    def __init__(
        self,
        folder: Path,
        settings: LedgerSettings | None = None,
        *,
        now: int,
        background: bool = False,
        keep: bool = False,
        boot: str | None = None,
    ) -> None:
        self.folder, self.settings = folder, settings or LedgerSettings()
        self.lock = threading.RLock()
        self.ignored: Counter[str] = Counter()  # notices without effect, by outcome; of this process only
        self._segments = Segments(folder, keep=keep)
        self._books = Books(n_ticks=self.settings.n_ticks, place=str(folder))
        self._lease_marks: list[tuple[Account, int]] = []
        self._commits = GroupCommit(self.sync)
        try:
            self.cut_bytes = self._recover()
        except BaseException:
            # a ledger that is not opened holds nothing: it can be tried again once the folder is mended
            self._segments.release()
            raise
        self._journal = self._segments.journal()
        self._start(now, boot_id() if boot is None else boot)
        self.sync()
        if background:
            self._commits.start()

    def _recover(self) -> int:
        books = self._books
        cut = self._segments.recover(lambda data: booksfile.restore(books, data), books.apply)
        for own in books.accounts.values():
            own.leased_durable = own.leased
        return cut

    def _start(self, now: int, boot: str) -> None:
        """Notes the opening. After a power loss what may have been reserved without a trace is held back."""
        books = self._books
        books.now = max(books.now, now)
        lost_power = books.epoch > 0 and (boot == "" or boot != books.boot)
        body = {"epoch": books.epoch + 1, "boot": boot, "now": books.now, "settings": asdict(self.settings)}
        self._record(records.START, json.dumps(body).encode())
        if lost_power:
            self._hold_leases()

    def _hold_leases(self) -> None:
        until = self.now + self._books.win_us + self._books.bill_us  # no notice can come any more
        for own in self.accounts.values():
            gap = min(own.leased - own.granted, own.available)
            if gap > 0:
                self._record(records.HOLD, records.HOLD_COLUMNS.pack(own.index, gap, until))

    def _record(self, kind: int, payload: bytes) -> None:
        self._journal.append(kind, payload)
        self._books.apply(kind, payload)

    def _at(self, now: int) -> int:
        """Takes note of the time; it never runs backwards."""
        books = self._books
        if now > books.now:
            books.now = now
        return books.now

    # -- what is in it -------------------------------------------------------------------------------------------------

    @property
    def now(self) -> int:
        """The latest time that was told, in microseconds."""
        return self._books.now

    @now.setter
    def now(self, now: int) -> None:
        self._books.now = now

    @property
    def epoch(self) -> int:
        """How often the ledger was opened."""
        return self._books.epoch

    @property
    def accounts(self) -> dict[int, Account]:
        return self._books.accounts

    @property
    def documents(self) -> dict[str, Any]:
        return self._books.documents

    @property
    def lapsed(self) -> Callable[[int, int], None] | None:
        """Told tag and amount of bids without an outcome."""
        return self._books.lapsed

    @lapsed.setter
    def lapsed(self, call: Callable[[int, int], None] | None) -> None:
        self._books.lapsed = call

    def bid(self, bid: int) -> Bid | None:
        return self._books.bids.read(bid)

    def bids(self) -> Iterator[Bid]:
        return iter(self._books.bids)

    def account_of(self, campaign: str, day: str) -> Account | None:
        index = self._books.by_key.get((campaign, day))
        return None if index is None else self.accounts[index]

    def allowance(self, own: Account) -> int:
        """Micros that late billing may take beyond the day's highest budget."""
        return self._books.allowance(own)

    def bound(self, own: Account) -> int:
        """What spent + reserved never passes."""
        return self._books.bound(own)

    def audit(self) -> list[str]:
        """Recounts every account from the bids that are remembered; each sentence is a broken invariant."""
        return audit(self._books)

    def digest(self) -> str:
        """SHA-256 of the whole state: two ledgers with one digest are equal."""
        return hashlib.sha256(booksfile.to_bytes(self._books)).hexdigest()

    # -- reservations --------------------------------------------------------------------------------------------------

    def reserve(
        self, account: int, amount: int, *, now: int, tick: int = 0, p_ppb: int = 0, tag: int = 0
    ) -> int | Refusal:
        """Reserves `amount` micros for a bid and returns its id. `flush` before the bid leaves the process."""
        books = self._books
        own = books.accounts[account]
        if amount <= 0 or amount > MAX_MICROS:
            raise ValueError(f"a bid of {amount} micros")
        if own.budget - own.spent - own.reserved - own.held < amount:
            return Refusal.BUDGET
        if self._journal.broken is not None:
            return Refusal.LEDGER
        granted = own.granted + amount
        chunk = max(own.budget * self.settings.lease_ppm // 1_000_000, 1000 * amount)
        if granted + chunk // 2 > own.leased:
            self._lease(own, granted + chunk)
        if granted > own.leased_durable:
            return Refusal.LEDGER
        bid = books.upcoming
        self._record(records.BID, records.BID_COLUMNS.pack(bid, account, amount, self._at(now), p_ppb, tick, tag))
        return bid

    def _lease(self, own: Account, limit: int) -> None:
        """Lets cumulative reservations go up to `limit` as soon as that is on disk."""
        self._record(records.LEASE, records.MONEY_COLUMNS.pack(own.index, limit))
        self._lease_marks.append((own, limit))
        if self._commits.running:
            self._commits.want()
        else:
            self.sync()

    # -- notices -------------------------------------------------------------------------------------------------------

    def win(self, bid: int, price: int | None, *, now: int) -> Outcome:
        """The exchange says that a bid won. Never moves money to `spent`."""
        idle = notices.idle_win(self._books, bid)
        if idle is not None:
            return self._no_effect(idle)
        self._record(records.WIN, records.NOTICE_COLUMNS.pack(bid, self._at(now), -1 if price is None else price))
        return Outcome.WON

    def bill(self, bid: int, price: int | None, *, now: int) -> Outcome:
        """The exchange charges for a bid: the one place where money is spent, at most once a bid.

        Without a readable price the win notice's price counts, else the bid itself.
        """
        books = self._books
        idle = notices.idle_bill(books, bid)
        if idle is not None:
            return self._no_effect(idle)
        block, at = books.bids.at(bid)
        own = books.accounts[block.account[at]]
        late, disputed = own.late_bills, own.disputed - own.over_price
        self._record(records.BILL, records.NOTICE_COLUMNS.pack(bid, self._at(now), -1 if price is None else price))
        if own.disputed - own.over_price > disputed:
            return Outcome.DISPUTED
        return Outcome.LATE if own.late_bills > late else Outcome.BILLED

    def bill_forgotten(self, bid: int, account: int, amount: int, price: int | None, *, now: int) -> Outcome:
        """A billing notice whose authentic id names a bid that a power loss took: paid from what is held back."""
        books = self._books
        if books.bids.find(bid) is not None:
            return self.bill(bid, price, now=now)
        idle = notices.idle_orphan(books, bid, account)
        if idle is not None:
            return self._no_effect(idle)
        own = books.accounts[account]
        disputed = own.disputed
        charged = amount if price is None else min(price, amount)
        self._record(records.ORPHAN, records.ORPHAN_COLUMNS.pack(bid, account, amount, self._at(now), charged))
        return Outcome.DISPUTED if own.disputed > disputed else Outcome.BILLED

    def loss(self, bid: int, *, now: int) -> Outcome:
        """The exchange says that a bid lost, or won and was not rendered: its money is available again."""
        idle = notices.idle_loss(self._books, bid)
        if idle is not None:
            return self._no_effect(idle)
        self._record(records.LOSS, records.LOSS_COLUMNS.pack(bid, self._at(now)))
        return Outcome.RELEASED

    def _no_effect(self, outcome: Outcome) -> Outcome:
        self.ignored[outcome] += 1
        return outcome

    # -- time ----------------------------------------------------------------------------------------------------------

    def expire(self, now: int, limit: int = 1_000_000) -> int:
        """Gives back the money of lapsed reservations, at most `limit` of them. Returns how many."""
        books = self._books
        now = self._at(now)
        if not books.due(now):
            return 0
        before = books.expired
        self._record(records.EXPIRE, records.EXPIRE_COLUMNS.pack(now, limit))
        return books.expired - before

    def expiry_due(self, now: int) -> bool:
        return self._books.due(max(self._books.now, now))

    def forget(self, now: int) -> int:
        """Drops bids, orphans and conversion ids that are too old to be asked about. Returns the blocks dropped."""
        self.expire(now)
        blocks = self._books.bids.blocks
        before = len(blocks)
        self._record(records.FORGET, records.NOW_COLUMNS.pack(max(self.now, now)))
        return before - len(blocks)

    # -- accounts ------------------------------------------------------------------------------------------------------

    def open_account(self, campaign: str, day: str, *, day_start: int, day_end: int, budget: int) -> Account:
        """The account of a campaign's day; an existing one is returned as it is."""
        known = self.account_of(campaign, day)
        if known is not None:
            return known
        if not 0 <= budget <= MAX_MICROS:
            raise ValueError(f"a budget of {budget} micros")
        index = self._books.next_account
        body = {
            "index": index, "campaign": campaign, "day": day,
            "day_start": day_start, "day_end": day_end, "budget": budget,
        }  # fmt: skip
        self._record(records.OPEN, json.dumps(body).encode())
        own = self.accounts[index]
        if budget:
            self._lease(own, budget * self.settings.lease_ppm // 1_000_000)
        return own

    def set_budget(self, account: int, budget: int) -> None:
        """Changes a day's budget. What is spent or reserved already stays; nothing new is reserved beyond the new one."""
        if not 0 <= budget <= MAX_MICROS:
            raise ValueError(f"a budget of {budget} micros")
        if budget != self.accounts[account].budget:
            self._record(records.BUDGET, records.MONEY_COLUMNS.pack(account, budget))

    def close_account(self, account: int) -> dict[str, Any] | None:
        """Takes a past day out of the books and returns it; None while money is reserved or notices may still come."""
        books = self._books
        own = books.accounts[account]
        if own.reserved or own.held or books.now < own.day_end + books.win_us + books.bill_us + books.remember_us:
            return None
        body = own.to_json()
        self._record(records.CLOSE, records.MONEY_COLUMNS.pack(account, 0))
        return body

    # -- what is kept beside the money ---------------------------------------------------------------------------------

    def put_document(self, name: str, value: Any) -> None:
        """Keeps a small JSON value durably, such as a campaign's settings; None removes it."""
        self._record(records.DOCUMENT, json.dumps([name, value]).encode())

    def add_conversion(self, conversion: str, account: int, tick: int, *, value: int, now: int) -> bool:
        """Counts a conversion in the tick of its auction; False where this id was counted before."""
        key = int.from_bytes(hashlib.blake2b(conversion.encode("utf-8", "replace"), digest_size=8).digest(), "little")
        if key in self._books.conversions:
            return False
        self._record(records.CONVERSION, records.CONVERSION_COLUMNS.pack(key, account, tick, value, self._at(now)))
        return True

    def add_traffic(
        self, account: int, tick: int, *, volume: int, p_sum: int, bid_sum: int, lwc_sum: int = 0, lwc_n: int = 0
    ) -> None:
        """Adds observed opportunities: their number, sums of p (ppb) and of bids (micros), least winning costs seen."""
        self._record(
            records.TRAFFIC, records.TRAFFIC_COLUMNS.pack(account, tick, volume, p_sum, bid_sum, lwc_sum, lwc_n)
        )

    def set_multiplier(self, account: int, tick: int, micros: int) -> None:
        """Notes which multiplier (micros a conversion) was in force in a tick."""
        self._record(records.MULTIPLIER, records.MULTIPLIER_COLUMNS.pack(account, tick, micros))

    # -- durability ----------------------------------------------------------------------------------------------------

    def flush(self) -> None:
        """Hands every record so far to the operating system. OSError where that fails; then nothing may be acted upon."""
        self._journal.flush()

    @property
    def healthy(self) -> bool:
        return self._journal.broken is None

    @property
    def log_bytes(self) -> int:
        """Size of the current segment: what recovery would read."""
        return self._journal.position

    def sync(self) -> None:
        """Returns when every record so far is on disk."""
        with self.lock:
            self._journal.flush()
            marks, self._lease_marks = self._lease_marks, []
            journal = self._journal
        journal.sync()
        with self.lock:
            for own, leased in marks:
                own.leased_durable = max(own.leased_durable, leased)
            journal.note_synced()

    def when_synced(self, call: Callable[[OSError | None], object]) -> None:
        """Calls `call(error or None)` from the syncing thread once every record so far is on disk: the group commit."""
        self._commits.then(call)

    def snapshot(self, *, wait: bool = True) -> threading.Thread | None:
        """Starts a new log segment and writes the state before it to a file, so that recovery reads little.

        The state is copied at once; the file is written by a thread unless `wait`.
        """
        with self.lock:
            self.sync()
            data = booksfile.to_bytes(self._books)
            self._journal.close()
            self._journal = self._segments.next_journal()
            generation = self._segments.generation
        if wait:
            self._segments.write_state(generation, data)
            return None
        thread = threading.Thread(target=self._segments.write_state, args=(generation, data), daemon=True)
        thread.start()
        return thread

    def close(self) -> None:
        """Syncs and lets go. The next opening recovers exactly this state."""
        self._commits.stop()
        with self.lock:
            try:
                self.sync()
                self._journal.flush()
            finally:
                self._journal.close()
                self._segments.release()
