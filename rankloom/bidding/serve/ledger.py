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

Not thread safe: whoever calls holds `lock`. `sync` alone may be called without it.
"""

from __future__ import annotations

import fcntl
import hashlib
import heapq
import json
import os
import struct
import threading
from array import array
from collections import Counter, deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, Final
from zlib import crc32

from rankloom.bidding.serve.journal import Journal, read_log
from rankloom.bidding.serve.money import MAX_MICROS
from rankloom.errors import RankloomError
from rankloom.files import atomic_file

_DOCUMENT, _START, _OPEN, _BUDGET, _LEASE, _HOLD, _BID, _WIN, _BILL, _LOSS, _EXPIRE = range(1, 12)
_CONVERSION, _TRAFFIC, _ORPHAN, _MULTIPLIER, _CLOSE, _FORGET = range(12, 18)
KINDS: Final = {_BID: "bid", _WIN: "win", _BILL: "bill", _LOSS: "loss", _ORPHAN: "orphan", _EXPIRE: "expire"}

_S_BID = struct.Struct("<QIqqqBH")  # bid, account, amount, now, p in ppb, tick, tag
_S_NOTICE = struct.Struct("<Qqq")  # bid, now, price (-1: none)
_S_LOSS = struct.Struct("<Qq")
_S_EXPIRE = struct.Struct("<qI")  # now, at most so many
_S_MONEY = struct.Struct("<Iq")  # account, micros
_S_HOLD = struct.Struct("<Iqq")  # account, micros, until
_S_CONVERSION = struct.Struct("<QIBqq")  # hash of the id, account, tick, value micros, now
_S_TRAFFIC = struct.Struct("<IBqqqqq")  # account, tick, volume, sum p, sum bid, sum of least winning cost, its count
_S_ORPHAN = struct.Struct("<QIqqq")  # bid, account, amount, now, price
_S_MULTIPLIER = struct.Struct("<IBq")
_S_NOW = struct.Struct("<q")

OPEN, WON, BILLED, LOST, EXPIRED, DISPUTED = 1, 2, 3, 4, 5, 6
_STATUS = 0x0F
_SAW_WIN = 0x10  # a win or billing notice came: counted once
_BLOCK_BITS = 12
_BLOCK = 1 << _BLOCK_BITS
EPOCH_BITS = 40
SERIES: Final = (
    "spend", "value", "conversions", "bids", "won", "exposed", "volume", "p_sum", "bid_sum", "lwc_sum", "lwc_n", "multiplier",
)  # fmt: skip


class Outcome(StrEnum):
    """What a notice did."""

    WON = "won"
    BILLED = "billed"
    LATE = "late"  # billed although the reservation had lapsed
    DISPUTED = "disputed"  # valid, late, and beyond the late allowance: not charged
    RELEASED = "released"
    DUPLICATE = "duplicate"
    IGNORED = "ignored"  # contradicts what is known already, such as a loss after billing
    TOO_OLD = "too-old"  # the bid is older than the ledger remembers


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


class _Block:
    """Columns of 4,096 consecutive bids."""

    __slots__ = ("account", "amount", "p", "price", "state", "tag", "tick", "time")
    COLUMNS: Final = ("state", "tick", "account", "tag", "amount", "price", "time", "p")

    def __init__(self) -> None:
        self.state, self.tick = bytearray(_BLOCK), bytearray(_BLOCK)
        self.account, self.tag = array("I", bytes(4 * _BLOCK)), array("H", bytes(2 * _BLOCK))
        self.amount, self.price = array("q", bytes(8 * _BLOCK)), array("q", bytes(8 * _BLOCK))
        self.time, self.p = array("q", bytes(8 * _BLOCK)), array("q", bytes(8 * _BLOCK))

    def to_bytes(self) -> bytes:
        return b"".join(bytes(getattr(self, name)) for name in self.COLUMNS)

    @classmethod
    def from_bytes(cls, data: memoryview) -> _Block:
        block, at = cls(), 0
        for name in cls.COLUMNS:
            column = getattr(block, name)
            size = memoryview(column).nbytes
            piece = data[at : at + size]
            if isinstance(column, bytearray):
                column[:] = piece
            else:
                setattr(block, name, array(column.typecode, piece.tobytes()))
            at += size
        return block

    @classmethod
    def size(cls) -> int:
        own = cls()
        return sum(memoryview(getattr(own, name)).nbytes for name in cls.COLUMNS)


@dataclass(frozen=True)
class Bid:
    """What the ledger knows of one bid."""

    bid: int
    account: int
    state: int
    amount: int
    price: int
    time: int
    tick: int
    p_ppb: int
    tag: int


def boot_id() -> str:
    """Names this run of the machine; two different names mean that memory was lost in between."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


class Ledger:
    """Opens (or recovers) the ledger in `folder`; one process at a time.

    Args:
        background: sync in a thread, so that nothing on the bid path waits for the disk. Without it a lease is synced
            where it is taken, which is deterministic and slow: for tests and tools.
        keep: keep old log segments after a snapshot, for an audit from the first record on.

    Raises:
        RankloomError: another process has it open, or a file is damaged.
    """

    now: int
    epoch: int
    _generation: int

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
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.settings, self.keep = folder, settings or LedgerSettings(), keep
        self.lock = threading.RLock()
        self._guard = os.open(folder / "lock", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(self._guard, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(self._guard)
            raise RankloomError(
                f"the ledger in {folder} is open in another process",
                place=str(folder),
                action="stop that server, or choose another --state",
                code="ledger-locked",
            ) from None
        self._reset()
        self.lapsed: Callable[[int, int], None] | None = None  # told tag and amount of bids without an outcome
        self.ignored: Counter[str] = Counter()  # notices without effect, by outcome; of this process only
        self._background, self._stop = background, False
        self._wanted = threading.Event()
        self._lease_marks: list[tuple[Account, int]] = []
        self.cut_bytes = self._recover()
        self.now = max(self.now, now)
        self._journal = Journal(self._segment(self._generation))
        boot = boot_id() if boot is None else boot
        lost_power = self.epoch > 0 and (boot == "" or boot != self._boot)
        self._record(
            _START,
            json.dumps(
                {"epoch": self.epoch + 1, "boot": boot, "now": self.now, "settings": asdict(self.settings)}
            ).encode(),
        )
        if lost_power:
            self._hold_leases()
        self._waiting: list[Callable[[OSError | None], object]] = []
        self._waiting_lock = threading.Lock()
        self.sync()
        self._thread = threading.Thread(target=self._run, name="ledger-sync", daemon=True) if background else None
        if self._thread is not None:
            self._thread.start()

    def _reset(self) -> None:
        self.epoch, self._boot, self.now = 0, "", 0
        self._next, self._generation = 0, 1
        self.accounts: dict[int, Account] = {}
        self._by_key: dict[tuple[str, str], int] = {}
        self._next_account = 1
        self.documents: dict[str, Any] = {}
        self._blocks: dict[int, _Block] = {}
        self._open: deque[int] = deque()
        self._won: list[tuple[int, int]] = []
        self._holds: list[tuple[int, int, int]] = []
        self._orphans: dict[int, int] = {}
        self._ends: dict[int, tuple[int, int]] = {}  # epoch: first id that its log does not know, time of the restart
        self._expired = 0
        self._conversions: dict[int, int] = {}
        self._win_us = self.settings.win_s * 1_000_000
        self._bill_us = self.settings.bill_s * 1_000_000
        self._remember_us = self.settings.remember_s * 1_000_000
        self._ppm = self.settings.late_allowance_ppm

    # -- reservations ----------------------------------------------------------------------------------------------------

    def reserve(
        self, account: int, amount: int, *, now: int, tick: int = 0, p_ppb: int = 0, tag: int = 0
    ) -> int | Refusal:
        """Reserves `amount` micros for a bid and returns its id. `flush` before the bid leaves the process."""
        own = self.accounts[account]
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
        self.now = now if now > self.now else self.now
        bid = self._next
        self._record(_BID, _S_BID.pack(bid, account, amount, self.now, p_ppb, tick, tag))
        return bid

    def _lease(self, own: Account, limit: int) -> None:
        """Lets cumulative reservations go up to `limit` as soon as that is on disk."""
        self._record(_LEASE, _S_MONEY.pack(own.index, limit))
        self._lease_marks.append((own, limit))
        if self._background:
            self._wanted.set()
        else:
            self.sync()

    def _apply_bid(self, bid: int, account: int, amount: int, now: int, p_ppb: int, tick: int, tag: int) -> None:
        own = self.accounts[account]
        key, at = bid >> _BLOCK_BITS, bid & (_BLOCK - 1)
        block = self._blocks.get(key)
        if block is None:
            block = self._blocks[key] = _Block()
        block.state[at], block.tick[at] = OPEN, tick
        block.account[at], block.tag[at], block.amount[at], block.time[at], block.p[at] = (
            account,
            tag,
            amount,
            now,
            p_ppb,
        )
        own.reserved += amount
        own.granted += amount
        own.bids += 1
        own.series["bids"][tick] += 1
        self._open.append(bid)
        self._next = bid + 1
        self.now = now

    # -- notices -----------------------------------------------------------------------------------------------------------

    def _find(self, bid: int) -> tuple[_Block, int] | None:
        block = self._blocks.get(bid >> _BLOCK_BITS)
        if block is None or not block.state[bid & (_BLOCK - 1)]:
            return None
        return block, bid & (_BLOCK - 1)

    def win(self, bid: int, price: int | None, *, now: int) -> Outcome:
        """The exchange says that a bid won. Never moves money to `spent`."""
        found = self._find(bid)
        if found is None:
            return self._no_effect(Outcome.TOO_OLD)
        block, at = found
        status = block.state[at] & _STATUS
        if block.state[at] & _SAW_WIN or block.account[at] not in self.accounts:
            return self._no_effect(Outcome.DUPLICATE)
        if status == LOST:
            return self._no_effect(Outcome.IGNORED)
        self.now = max(self.now, now)
        self._record(_WIN, _S_NOTICE.pack(bid, self.now, -1 if price is None else price))
        return Outcome.WON

    def _apply_win(self, bid: int, now: int, price: int) -> None:
        block, at = self._blocks[bid >> _BLOCK_BITS], bid & (_BLOCK - 1)
        own, amount = self.accounts[block.account[at]], block.amount[at]
        status = block.state[at] & _STATUS
        own.wins += 1
        own.series["won"][block.tick[at]] += 1
        if price >= 0:
            block.price[at] = min(price, amount)
        if status == EXPIRED and own.budget - own.spent - own.reserved - own.held >= amount:
            own.reserved += amount  # its money was given back: take it again while there is some
            status = OPEN
        if status == OPEN:
            heapq.heappush(self._won, (now + self._bill_us, bid))
            block.state[at] = WON | _SAW_WIN
        else:
            block.state[at] |= _SAW_WIN
        self.now = now

    def bill(self, bid: int, price: int | None, *, now: int) -> Outcome:
        """The exchange charges for a bid: the one place where money is spent, at most once a bid.

        Without a readable price the win notice's price counts, else the bid itself.
        """
        found = self._find(bid)
        if found is None:
            return self._no_effect(Outcome.TOO_OLD)
        block, at = found
        if block.state[at] & _STATUS in (BILLED, DISPUTED):
            return self._no_effect(Outcome.DUPLICATE)
        own = self.accounts.get(block.account[at])
        if own is None:
            return self._no_effect(Outcome.TOO_OLD)
        late, disputed = own.late_bills, own.disputed - own.over_price
        self.now = max(self.now, now)
        self._record(_BILL, _S_NOTICE.pack(bid, self.now, -1 if price is None else price))
        if own.disputed - own.over_price > disputed:
            return Outcome.DISPUTED
        return Outcome.LATE if own.late_bills > late else Outcome.BILLED

    def _apply_bill(self, bid: int, now: int, price: int) -> None:
        block, at = self._blocks[bid >> _BLOCK_BITS], bid & (_BLOCK - 1)
        own, amount, state = self.accounts[block.account[at]], block.amount[at], block.state[at]
        if price < 0:
            # a price of 0 in the column and no win notice both mean: nothing better than the bid is known
            price = block.price[at] if state & _SAW_WIN and block.price[at] else amount
        if price > amount:
            own.over_price += price - amount
            own.disputed += price - amount
            price = amount
        tick = block.tick[at]
        if not state & _SAW_WIN:
            own.wins += 1
            own.series["won"][tick] += 1
        self.now = now
        if state & _STATUS in (OPEN, WON):
            own.reserved -= amount
        elif not self._take_late(own, price):
            block.state[at] = DISPUTED | _SAW_WIN
            block.price[at] = price
            return
        block.state[at] = BILLED | _SAW_WIN
        block.price[at] = price
        own.spent += price
        own.bills += 1
        own.series["spend"][tick] += price
        own.series["exposed"][tick] += 1
        own.series["value"][tick] += block.p[at]

    def _take_late(self, own: Account, price: int) -> bool:
        own.late_bills += 1
        if own.spent + own.reserved + own.held + price > own.highest + self.allowance(own):
            own.disputed += price
            return False
        own.late += price
        return True

    def bill_forgotten(self, bid: int, account: int, amount: int, price: int | None, *, now: int) -> Outcome:
        """A billing notice whose authentic id names a bid that a power loss took: paid from what is held back."""
        if self._find(bid) is not None:
            return self.bill(bid, price, now=now)
        if bid in self._orphans:
            return self._no_effect(Outcome.DUPLICATE)
        own = self.accounts.get(account)
        end = self._ends.get(bid >> EPOCH_BITS)
        if own is None or end is None or bid < end[0]:
            return self._no_effect(Outcome.TOO_OLD)
        disputed = own.disputed
        self.now = max(self.now, now)
        charged = amount if price is None else min(price, amount)
        self._record(_ORPHAN, _S_ORPHAN.pack(bid, account, amount, self.now, charged))
        return Outcome.DISPUTED if own.disputed > disputed else Outcome.BILLED

    def _apply_orphan(self, bid: int, account: int, amount: int, now: int, price: int) -> None:
        own = self.accounts[account]
        self.now = now
        self._orphans[bid] = now
        own.wins += 1
        if own.held >= amount:
            own.held -= amount
        elif not self._take_late(own, price):
            return
        own.spent += price
        own.bills += 1
        own.series["spend"][0] += price
        own.series["exposed"][0] += 1

    def loss(self, bid: int, *, now: int) -> Outcome:
        """The exchange says that a bid lost, or won and was not rendered: its money is available again."""
        found = self._find(bid)
        if found is None:
            return self._no_effect(Outcome.TOO_OLD)
        block, at = found
        status = block.state[at] & _STATUS
        if status == LOST:
            return self._no_effect(Outcome.DUPLICATE)
        if status in (BILLED, DISPUTED) or block.account[at] not in self.accounts:
            return self._no_effect(Outcome.IGNORED)
        self.now = max(self.now, now)
        self._record(_LOSS, _S_LOSS.pack(bid, self.now))
        return Outcome.RELEASED

    def _apply_loss(self, bid: int, now: int) -> None:
        block, at = self._blocks[bid >> _BLOCK_BITS], bid & (_BLOCK - 1)
        own = self.accounts[block.account[at]]
        if block.state[at] & _STATUS in (OPEN, WON):
            own.reserved -= block.amount[at]
        block.state[at] = LOST | (block.state[at] & _SAW_WIN)
        own.losses += 1
        self.now = now

    def _no_effect(self, outcome: Outcome) -> Outcome:
        self.ignored[outcome] += 1
        return outcome

    # -- time --------------------------------------------------------------------------------------------------------------

    def expire(self, now: int, limit: int = 1_000_000) -> int:
        """Gives back the money of lapsed reservations, at most `limit` of them. Returns how many."""
        self.now = max(self.now, now)
        if not self._due(self.now):
            return 0
        before = self._expired
        self._record(_EXPIRE, _S_EXPIRE.pack(self.now, limit))
        return self._expired - before

    def expiry_due(self, now: int) -> bool:
        return self._due(max(self.now, now))

    def _due(self, now: int) -> bool:
        if self._open:
            first = self._open[0]
            block = self._blocks.get(first >> _BLOCK_BITS)
            if block is None or block.time[first & (_BLOCK - 1)] + self._win_us <= now:
                return True
        return bool((self._won and self._won[0][0] <= now) or (self._holds and self._holds[0][0] <= now))

    def _apply_expire(self, now: int, limit: int) -> None:
        self.now = now
        while self._open and limit:
            bid = self._open[0]
            block, at = self._blocks.get(bid >> _BLOCK_BITS), bid & (_BLOCK - 1)
            if block is not None:
                if block.time[at] + self._win_us > now:
                    break
                if block.state[at] & _STATUS == OPEN:
                    self._lapse(block, at)
            self._open.popleft()
            limit -= 1
        while self._won and self._won[0][0] <= now and limit:
            _, bid = heapq.heappop(self._won)
            block, at = self._blocks.get(bid >> _BLOCK_BITS), bid & (_BLOCK - 1)
            if block is not None and block.state[at] & _STATUS == WON:
                self._lapse(block, at)
            limit -= 1
        while self._holds and self._holds[0][0] <= now:
            _, account, amount = heapq.heappop(self._holds)
            if account in self.accounts:
                own = self.accounts[account]
                own.held -= min(own.held, amount)

    def _lapse(self, block: _Block, at: int) -> None:
        own = self.accounts[block.account[at]]
        own.reserved -= block.amount[at]
        own.expired += 1
        self._expired += 1
        if self.lapsed is not None and block.state[at] == OPEN:
            self.lapsed(block.tag[at], block.amount[at])
        block.state[at] = EXPIRED | (block.state[at] & _SAW_WIN)

    def forget(self, now: int) -> int:
        """Drops bids, orphans and conversion ids that are too old to be asked about. Returns the blocks dropped."""
        self.expire(now)
        before = len(self._blocks)
        self._record(_FORGET, _S_NOW.pack(max(self.now, now)))
        return before - len(self._blocks)

    def _apply_forget(self, now: int) -> None:
        self.now = now
        horizon = now - self._win_us - self._bill_us - self._remember_us
        current = self._next >> _BLOCK_BITS
        for key in [key for key in self._blocks if key < current]:
            block = self._blocks[key]
            if max(block.time) < horizon and not any(s & _STATUS in (OPEN, WON) for s in block.state):
                del self._blocks[key]
        self._orphans = {bid: when for bid, when in self._orphans.items() if when >= horizon}
        self._ends = {epoch: end for epoch, end in self._ends.items() if end[1] >= horizon}
        self._conversions = {own: when for own, when in self._conversions.items() if when >= now - 30 * 86_400_000_000}

    # -- accounts ------------------------------------------------------------------------------------------------------------

    def open_account(self, campaign: str, day: str, *, day_start: int, day_end: int, budget: int) -> Account:
        """The account of a campaign's day; an existing one is returned as it is."""
        known = self._by_key.get((campaign, day))
        if known is not None:
            return self.accounts[known]
        if not 0 <= budget <= MAX_MICROS:
            raise ValueError(f"a budget of {budget} micros")
        body = {
            "index": self._next_account, "campaign": campaign, "day": day,
            "day_start": day_start, "day_end": day_end, "budget": budget,
        }  # fmt: skip
        self._record(_OPEN, json.dumps(body).encode())
        if budget:
            self._lease(self.accounts[self._next_account - 1], budget * self.settings.lease_ppm // 1_000_000)
        return self.accounts[self._by_key[campaign, day]]

    def _apply_open(self, own: dict[str, Any]) -> None:
        account = Account(
            own["index"], own["campaign"], own["day"], own["day_start"], own["day_end"], own["budget"],
            self.settings.n_ticks,
        )  # fmt: skip
        self.accounts[account.index] = account
        self._by_key[account.campaign, account.day] = account.index
        self._next_account = account.index + 1

    def account_of(self, campaign: str, day: str) -> Account | None:
        index = self._by_key.get((campaign, day))
        return None if index is None else self.accounts[index]

    def set_budget(self, account: int, budget: int) -> None:
        """Changes a day's budget. What is spent or reserved already stays; nothing new is reserved beyond the new one."""
        if not 0 <= budget <= MAX_MICROS:
            raise ValueError(f"a budget of {budget} micros")
        if budget != self.accounts[account].budget:
            self._record(_BUDGET, _S_MONEY.pack(account, budget))

    def close_account(self, account: int) -> dict[str, Any] | None:
        """Takes a past day out of the books and returns it; None while money is reserved or notices may still come."""
        own = self.accounts[account]
        if own.reserved or own.held or self.now < own.day_end + self._win_us + self._bill_us + self._remember_us:
            return None
        body = own.to_json()
        self._record(_CLOSE, _S_MONEY.pack(account, 0))
        return body

    def allowance(self, own: Account) -> int:
        """Micros that late billing may take beyond the day's highest budget."""
        return own.highest * self._ppm // 1_000_000

    def bound(self, own: Account) -> int:
        """What spent + reserved never passes."""
        return own.highest + self.allowance(own)

    def put_document(self, name: str, value: Any) -> None:
        """Keeps a small JSON value durably, such as a campaign's settings; None removes it."""
        self._record(_DOCUMENT, json.dumps([name, value]).encode())

    def add_conversion(self, conversion: str, account: int, tick: int, *, value: int, now: int) -> bool:
        """Counts a conversion in the tick of its auction; False where this id was counted before."""
        key = int.from_bytes(hashlib.blake2b(conversion.encode("utf-8", "replace"), digest_size=8).digest(), "little")
        if key in self._conversions:
            return False
        self.now = max(self.now, now)
        self._record(_CONVERSION, _S_CONVERSION.pack(key, account, tick, value, self.now))
        return True

    def add_traffic(
        self, account: int, tick: int, *, volume: int, p_sum: int, bid_sum: int, lwc_sum: int = 0, lwc_n: int = 0
    ) -> None:
        """Adds observed opportunities: their number, sums of p (ppb) and of bids (micros), least winning costs seen."""
        self._record(_TRAFFIC, _S_TRAFFIC.pack(account, tick, volume, p_sum, bid_sum, lwc_sum, lwc_n))

    def set_multiplier(self, account: int, tick: int, micros: int) -> None:
        """Notes which multiplier (micros a conversion) was in force in a tick."""
        self._record(_MULTIPLIER, _S_MULTIPLIER.pack(account, tick, micros))

    def bid(self, bid: int) -> Bid | None:
        found = self._find(bid)
        if found is None:
            return None
        block, at = found
        return Bid(
            bid, block.account[at], block.state[at] & _STATUS, block.amount[at], block.price[at], block.time[at],
            block.tick[at], block.p[at], block.tag[at],
        )  # fmt: skip

    def bids(self) -> Iterator[Bid]:
        for key in sorted(self._blocks):
            for at, state in enumerate(self._blocks[key].state):
                if state:
                    own = self.bid((key << _BLOCK_BITS) | at)
                    assert own is not None
                    yield own

    def audit(self) -> list[str]:
        """Recounts every account from the bids that are remembered; each sentence is a broken invariant."""
        reserved: Counter[int] = Counter()
        spent: Counter[int] = Counter()
        for own in self.bids():
            if own.state in (OPEN, WON):
                reserved[own.account] += own.amount
            elif own.state == BILLED:
                spent[own.account] += own.price
        faults = []
        for index, account in self.accounts.items():
            if reserved[index] != account.reserved:
                faults.append(f"account {index}: {account.reserved} reserved, its bids say {reserved[index]}")
            if spent[index] > account.spent:
                faults.append(f"account {index}: {account.spent} spent, its bids say {spent[index]}")
            if account.spent + account.reserved + account.held > self.bound(account):
                faults.append(f"account {index}: {account.spent + account.reserved} is beyond {self.bound(account)}")
            if min(account.spent, account.reserved, account.held) < 0:
                faults.append(f"account {index}: negative money")
            if account.spent != sum(account.series["spend"]):
                faults.append(f"account {index}: its ticks do not add up to {account.spent}")
        return faults

    # -- records -----------------------------------------------------------------------------------------------------------

    def _record(self, kind: int, payload: bytes) -> None:
        self._journal.append(kind, payload)
        self._apply(kind, payload)

    def _apply(self, kind: int, payload: bytes) -> None:
        if kind == _BID:
            self._apply_bid(*_S_BID.unpack(payload))
        elif kind == _WIN:
            self._apply_win(*_S_NOTICE.unpack(payload))
        elif kind == _BILL:
            self._apply_bill(*_S_NOTICE.unpack(payload))
        elif kind == _LOSS:
            self._apply_loss(*_S_LOSS.unpack(payload))
        elif kind == _EXPIRE:
            self._apply_expire(*_S_EXPIRE.unpack(payload))
        elif kind == _TRAFFIC:
            account, tick, *sums = _S_TRAFFIC.unpack(payload)
            series = self.accounts[account].series
            for name, value in zip(("volume", "p_sum", "bid_sum", "lwc_sum", "lwc_n"), sums, strict=True):
                series[name][tick] += value
        elif kind == _CONVERSION:
            key, account, tick, _, now = _S_CONVERSION.unpack(payload)
            self._conversions[key] = now
            self.now = now
            if account in self.accounts:
                self.accounts[account].series["conversions"][tick] += 1
        elif kind == _LEASE:
            account, leased = _S_MONEY.unpack(payload)
            self.accounts[account].leased = leased
        elif kind == _MULTIPLIER:
            account, tick, micros = _S_MULTIPLIER.unpack(payload)
            self.accounts[account].series["multiplier"][tick] = micros
        elif kind == _BUDGET:
            account, budget = _S_MONEY.unpack(payload)
            own = self.accounts[account]
            own.budget, own.highest = budget, max(own.highest, budget)
        elif kind == _ORPHAN:
            self._apply_orphan(*_S_ORPHAN.unpack(payload))
        elif kind == _HOLD:
            account, amount, until = _S_HOLD.unpack(payload)
            self.accounts[account].held += amount
            heapq.heappush(self._holds, (until, account, amount))
        elif kind == _OPEN:
            self._apply_open(json.loads(payload))
        elif kind == _DOCUMENT:
            name, value = json.loads(payload)
            if value is None:
                self.documents.pop(name, None)
            else:
                self.documents[name] = value
        elif kind == _FORGET:
            self._apply_forget(*_S_NOW.unpack(payload))
        elif kind == _CLOSE:
            own = self.accounts.pop(_S_MONEY.unpack(payload)[0])
            del self._by_key[own.campaign, own.day]
        elif kind == _START:
            self._apply_start(json.loads(payload))
        else:
            raise RankloomError(
                f"the ledger's log holds a record of unknown kind {kind}",
                place=str(self.folder),
                action="open it with the version of Rankloom that wrote it",
                code="ledger-version",
            )

    def _apply_start(self, own: dict[str, Any]) -> None:
        if self.epoch:
            self._ends[self.epoch] = (self._next, own["now"])
        self.epoch, self._boot, self.now = own["epoch"], own["boot"], max(self.now, own["now"])
        self._next = self.epoch << EPOCH_BITS
        settings = own["settings"]
        self._win_us, self._bill_us = settings["win_s"] * 1_000_000, settings["bill_s"] * 1_000_000
        self._remember_us, self._ppm = settings["remember_s"] * 1_000_000, settings["late_allowance_ppm"]

    def _hold_leases(self) -> None:
        """After a power loss: what may have been reserved without a trace waits until no notice of it can come."""
        until = self.now + self._win_us + self._bill_us
        for own in self.accounts.values():
            gap = min(own.leased - own.granted, own.available)
            if gap > 0:
                self._record(_HOLD, _S_HOLD.pack(own.index, gap, until))

    # -- durability ----------------------------------------------------------------------------------------------------------

    def flush(self) -> None:
        """Hands every record so far to the operating system. OSError where that fails; then nothing may be acted upon."""
        self._journal.flush()

    @property
    def healthy(self) -> bool:
        return self._journal.broken is None

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
        with self._waiting_lock:
            self._waiting.append(call)
        self._wanted.set()

    def _run(self) -> None:
        while not self._stop:
            self._wanted.wait()
            self._wanted.clear()
            with self._waiting_lock:
                waiting, self._waiting = self._waiting, []
            error: OSError | None = None
            try:
                self.sync()
            except OSError as problem:
                error = problem
            for call in waiting:
                with suppress(RuntimeError):  # the event loop that asked may be closed by now
                    call(error)

    def snapshot(self, *, wait: bool = True) -> threading.Thread | None:
        """Starts a new log segment and writes the state before it to a file, so that recovery reads little.

        The state is copied at once; the file is written by a thread unless `wait`.
        """
        with self.lock:
            self.sync()
            data = self._serialise()
            self._journal.close()
            self._generation += 1
            self._journal = Journal(self._segment(self._generation))
            _sync_folder(self.folder)
            generation = self._generation
        if wait:
            self._write_snapshot(generation, data)
            return None
        thread = threading.Thread(target=self._write_snapshot, args=(generation, data), daemon=True)
        thread.start()
        return thread

    @property
    def log_bytes(self) -> int:
        """Size of the current segment: what recovery would read."""
        return self._journal.position

    def _write_snapshot(self, generation: int, data: bytes) -> None:
        with atomic_file(self.folder / f"state-{generation:08d}.bin") as temporary:
            temporary.write_bytes(struct.pack("<QI", len(data), crc32(data)) + data)
        for path in self.folder.glob("state-*.bin"):
            if int(path.stem[6:]) < generation:
                path.unlink()
        if not self.keep:
            for path in self.folder.glob("log-*.bin"):
                if int(path.stem[4:]) < generation:
                    path.unlink()

    def _serialise(self) -> bytes:
        keys = sorted(self._blocks)
        meta = {
            "epoch": self.epoch, "boot": self._boot, "now": self.now, "next": self._next, "next_account": self._next_account,
            "n_ticks": self.settings.n_ticks, "win_us": self._win_us, "bill_us": self._bill_us, "remember_us": self._remember_us,
            "ppm": self._ppm, "accounts": [own.to_json() for own in self.accounts.values()], "documents": self.documents,
            "won": sorted(self._won), "holds": sorted(self._holds), "orphans": sorted(self._orphans.items()),
            "conversions": sorted(self._conversions.items()), "open": list(self._open), "blocks": keys, "ends": sorted((epoch, *end) for epoch, end in self._ends.items()),
        }  # fmt: skip
        head = json.dumps(meta, sort_keys=True).encode()
        return b"".join([struct.pack("<Q", len(head)), head, *(self._blocks[key].to_bytes() for key in keys)])

    def _restore(self, data: bytes) -> None:
        (length,) = struct.unpack_from("<Q", data)
        meta = json.loads(data[8 : 8 + length])
        if meta["n_ticks"] != self.settings.n_ticks:
            raise RankloomError(
                f"the ledger counts {meta['n_ticks']} ticks a day, the settings say {self.settings.n_ticks}",
                place=str(self.folder),
                action="keep the number of ticks, or start a new --state folder",
                code="ledger-ticks",
            )
        self.epoch, self._boot, self.now = meta["epoch"], meta["boot"], meta["now"]
        self._next, self._next_account = meta["next"], meta["next_account"]
        self._win_us, self._bill_us, self._remember_us = meta["win_us"], meta["bill_us"], meta["remember_us"]
        self._ppm, self.documents = meta["ppm"], meta["documents"]
        self.accounts = {own["index"]: Account.from_json(own, meta["n_ticks"]) for own in meta["accounts"]}
        self._by_key = {(own.campaign, own.day): own.index for own in self.accounts.values()}
        self._won = [(deadline, bid) for deadline, bid in meta["won"]]
        self._holds = [(until, account, amount) for until, account, amount in meta["holds"]]
        self._orphans = dict(meta["orphans"])
        self._conversions = dict(meta["conversions"])
        self._open = deque(meta["open"])
        self._ends = {epoch: (end, when) for epoch, end, when in meta["ends"]}
        view, at, size = memoryview(data), 8 + length, _Block.size()
        for key in meta["blocks"]:
            self._blocks[key] = _Block.from_bytes(view[at : at + size])
            at += size

    def digest(self) -> str:
        """SHA-256 of the whole state: two ledgers with one digest are equal."""
        return hashlib.sha256(self._serialise()).hexdigest()

    def _segment(self, generation: int) -> Path:
        return self.folder / f"log-{generation:08d}.bin"

    def _recover(self) -> int:
        """Latest sound snapshot, then every log segment from there on. Returns the bytes of a torn tail."""
        logs = sorted(int(path.stem[4:]) for path in self.folder.glob("log-*.bin"))
        states = sorted((int(path.stem[6:]) for path in self.folder.glob("state-*.bin")), reverse=True)
        first = 0
        for generation in states:
            raw = (self.folder / f"state-{generation:08d}.bin").read_bytes()
            if len(raw) < 12:
                continue
            length, checksum = struct.unpack_from("<QI", raw)
            data = raw[12:]
            if len(data) == length and crc32(data) == checksum:
                self._restore(data)
                first = generation
                break
        if states and not first and (not logs or logs[0] != 1):
            raise RankloomError(
                "no sound snapshot of the ledger, and the log does not reach back to its start",
                place=str(self.folder),
                action="restore the state folder from a backup",
                code="ledger-damaged",
            )
        replay = [generation for generation in logs if generation >= first]
        wanted = list(range(max(first, 1), max([*replay, first, 1]) + 1)) if replay else []
        if replay != wanted:
            raise RankloomError(
                "a segment of the ledger's log is missing",
                place=str(self.folder),
                action="restore the state folder from a backup",
                code="ledger-damaged",
            )
        cut = 0
        for generation in replay:
            cut += read_log(self._segment(generation), self._apply, last=generation == replay[-1])
        self._generation = max([first, 1, *replay])
        for own in self.accounts.values():
            own.leased_durable = own.leased
        return cut

    def close(self) -> None:
        """Syncs and lets go. The next opening recovers exactly this state."""
        self._stop = True
        self._wanted.set()
        if self._thread is not None:
            self._thread.join()
        with self.lock:
            try:
                self.sync()
                self._journal.flush()
            finally:
                self._journal.close()
                os.close(self._guard)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
