"""The ledger keeps its promises in any interleaving: money balances, each bid is billed once, the bound holds, restarts lose nothing."""

from __future__ import annotations

import shutil
import struct
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from rankloom.bidding.serve.bidtable import BILLED, EXPIRED, LOST, OPEN
from rankloom.bidding.serve.journal import Journal, frame, frames
from rankloom.bidding.serve.ledger import Ledger, LedgerSettings, Refusal
from rankloom.bidding.serve.money import cpm_text, floor_to_micros, parse_cpm, units
from rankloom.bidding.serve.notices import Outcome
from rankloom.errors import RankloomError

SECOND = 1_000_000
DAY = 86_400 * SECOND
SETTINGS = LedgerSettings(win_s=60, bill_s=600, remember_s=3600, late_allowance_ppm=100_000, n_ticks=4)


def open_ledger(folder: Path, *, boot: str = "one", now: int = 0, keep: bool = False) -> Ledger:
    return Ledger(folder, SETTINGS, now=now, boot=boot, keep=keep)


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return open_ledger(tmp_path)


def day(ledger: Ledger, budget: int = 10_000, campaign: str = "c") -> int:
    return ledger.open_account(campaign, "d1", day_start=0, day_end=DAY, budget=budget).index


def reserve(ledger: Ledger, account: int, amount: int, now: int = 0) -> int:
    bid = ledger.reserve(account, amount, now=now, p_ppb=1000)
    assert not isinstance(bid, Refusal)
    return bid


# -- single sentences ------------------------------------------------------------------------------------------------------


def test_only_a_billing_notice_spends(ledger: Ledger) -> None:
    account = day(ledger)
    own = ledger.accounts[account]
    bid = reserve(ledger, account, 900)
    assert (own.spent, own.reserved, own.available) == (0, 900, 9_100)
    assert ledger.win(bid, 700, now=1) is Outcome.WON
    assert (own.spent, own.reserved) == (0, 900)
    assert ledger.bill(bid, 700, now=2) is Outcome.BILLED
    assert (own.spent, own.reserved, own.available) == (700, 0, 9_300)


def test_a_bid_is_billed_once_however_often_and_in_whatever_order_its_notices_come(ledger: Ledger) -> None:
    account = day(ledger)
    bid = reserve(ledger, account, 900)
    assert ledger.bill(bid, 500, now=1) is Outcome.BILLED
    assert ledger.bill(bid, 800, now=2) is Outcome.DUPLICATE
    assert ledger.win(bid, 800, now=3) is Outcome.DUPLICATE
    assert ledger.loss(bid, now=4) is Outcome.IGNORED
    assert ledger.accounts[account].spent == 500
    assert ledger.accounts[account].wins == 1


def test_nothing_is_reserved_beyond_the_budget(ledger: Ledger) -> None:
    account = day(ledger, budget=1000)
    reserve(ledger, account, 600)
    assert ledger.reserve(account, 401, now=0) is Refusal.BUDGET
    reserve(ledger, account, 400)
    assert ledger.accounts[account].available == 0


def test_a_loss_and_a_lapse_give_the_money_back(ledger: Ledger) -> None:
    account = day(ledger, budget=1000)
    lost, silent = reserve(ledger, account, 500), reserve(ledger, account, 500)
    assert ledger.loss(lost, now=SECOND) is Outcome.RELEASED
    assert ledger.loss(lost, now=SECOND) is Outcome.DUPLICATE
    assert ledger.accounts[account].available == 500
    assert ledger.expire(59 * SECOND) == 0
    assert ledger.expire(60 * SECOND) == 1
    assert ledger.accounts[account].available == 1000
    assert (ledger.bid(lost).state, ledger.bid(silent).state) == (LOST, EXPIRED)  # type: ignore[union-attr]


def test_a_won_bid_waits_longer_than_an_open_one(ledger: Ledger) -> None:
    account = day(ledger)
    bid = reserve(ledger, account, 500)
    ledger.win(bid, None, now=30 * SECOND)
    ledger.expire(61 * SECOND)
    assert ledger.accounts[account].reserved == 500
    ledger.expire(630 * SECOND)
    assert ledger.accounts[account].reserved == 0


def test_a_win_after_the_lapse_takes_the_money_again_only_while_there_is_some(ledger: Ledger) -> None:
    account = day(ledger, budget=1000)
    own = ledger.accounts[account]
    one, two = reserve(ledger, account, 400), reserve(ledger, account, 400)
    ledger.expire(60 * SECOND)
    reserve(ledger, account, 300, now=61 * SECOND)
    assert ledger.win(one, None, now=61 * SECOND) is Outcome.WON
    assert own.reserved == 700
    assert ledger.win(two, None, now=61 * SECOND) is Outcome.WON
    assert own.reserved == 700
    assert own.spent + own.reserved <= own.budget


def test_late_billing_is_taken_up_to_the_allowance_and_disputed_beyond(ledger: Ledger) -> None:
    account = day(ledger, budget=1000)  # allowance 100
    own = ledger.accounts[account]
    late = [reserve(ledger, account, 90) for _ in range(3)]
    ledger.expire(60 * SECOND)
    reserve(ledger, account, 1000, now=61 * SECOND)
    assert ledger.bill(late[0], 90, now=62 * SECOND) is Outcome.LATE
    assert ledger.bill(late[1], 20, now=62 * SECOND) is Outcome.DISPUTED
    assert ledger.bill(late[1], 20, now=62 * SECOND) is Outcome.DUPLICATE
    assert ledger.bill(late[2], 10, now=62 * SECOND) is Outcome.LATE
    assert (own.spent, own.reserved, own.late, own.disputed) == (100, 1000, 100, 20)
    assert own.spent + own.reserved == ledger.bound(own)


def test_a_price_above_the_bid_is_charged_at_the_bid(ledger: Ledger) -> None:
    account = day(ledger)
    bid = reserve(ledger, account, 300)
    assert ledger.bill(bid, 450, now=1) is Outcome.BILLED
    own = ledger.accounts[account]
    assert (own.spent, own.disputed, own.over_price) == (300, 150, 150)


def test_without_a_price_the_win_notice_counts_and_without_that_the_bid(ledger: Ledger) -> None:
    account = day(ledger)
    one, two = reserve(ledger, account, 300), reserve(ledger, account, 400)
    ledger.win(one, 250, now=1)
    ledger.bill(one, None, now=2)
    ledger.bill(two, None, now=2)
    assert ledger.accounts[account].spent == 250 + 400


def test_a_cut_budget_stops_new_bids_and_undoes_nothing(ledger: Ledger) -> None:
    account = day(ledger, budget=1000)
    bid = reserve(ledger, account, 800)
    ledger.set_budget(account, 500)
    assert ledger.reserve(account, 1, now=0) is Refusal.BUDGET
    assert ledger.bill(bid, 800, now=1) is Outcome.BILLED
    assert ledger.accounts[account].spent == 800
    assert ledger.audit() == []


def test_conversions_count_once_in_the_tick_of_their_auction(ledger: Ledger) -> None:
    account = day(ledger)
    assert ledger.add_conversion("order-1", account, 2, value=5, now=10)
    assert not ledger.add_conversion("order-1", account, 3, value=5, now=11)
    assert ledger.accounts[account].series["conversions"].tolist() == [0, 0, 1, 0]


def test_a_day_is_closed_only_when_no_notice_can_come_any_more(ledger: Ledger) -> None:
    account = day(ledger)
    bid = reserve(ledger, account, 100)
    ledger.bill(bid, 60, now=1)
    ledger.expire(DAY)
    assert ledger.close_account(account) is None
    ledger.expire(DAY + 1)
    ledger.now = DAY + (60 + 600 + 3600) * SECOND
    body = ledger.close_account(account)
    assert body is not None
    assert body["spent"] == 60
    assert ledger.bill(bid, 60, now=ledger.now) in (Outcome.DUPLICATE, Outcome.TOO_OLD)


# -- restarts ----------------------------------------------------------------------------------------------------------------


def test_what_was_flushed_before_a_kill_is_there_after_it(tmp_path: Path) -> None:
    first = open_ledger(tmp_path / "a")
    account = day(first)
    bids = [reserve(first, account, 100 + n) for n in range(20)]
    first.win(bids[0], 50, now=1)
    first.bill(bids[1], 70, now=2)
    first.flush()
    state = first.accounts[account].to_json()
    shutil.copytree(tmp_path / "a", tmp_path / "b")  # what a killed process leaves
    second = open_ledger(tmp_path / "b")
    assert second.accounts[account].to_json() == state
    assert second.bill(bids[1], 70, now=3) is Outcome.DUPLICATE
    assert second.bill(bids[2], 60, now=3) is Outcome.BILLED
    assert second.audit() == []
    assert reserve(second, account, 100) > max(bids)


def test_after_a_power_loss_money_that_may_be_out_is_held_and_pays_forgotten_bids(tmp_path: Path) -> None:
    first = open_ledger(tmp_path / "a")
    account = day(first, budget=1_000_000)
    first.sync()
    size = (tmp_path / "a" / "log-00000001.bin").stat().st_size
    forgotten = reserve(first, account, 2_000)
    granted = first.accounts[account].granted
    first.flush()
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    with open(tmp_path / "b" / "log-00000001.bin", "r+b") as handle:
        handle.truncate(size)  # the disk never heard of the bid
    second = open_ledger(tmp_path / "b", boot="two")
    own = second.accounts[account]
    assert own.granted < granted
    held = own.held
    assert held >= 2_000
    assert second.bill(forgotten, 1_500, now=1) is Outcome.TOO_OLD
    assert second.bill_forgotten(forgotten, account, 2_000, 1_500, now=1) is Outcome.BILLED
    assert second.bill_forgotten(forgotten, account, 2_000, 1_500, now=1) is Outcome.DUPLICATE
    assert own.spent == 1_500
    assert own.held == held - 2_000
    second.expire(second.now + (60 + 600) * SECOND)
    assert own.held == 0
    assert second.audit() == []


def test_the_same_boot_holds_nothing_back(tmp_path: Path) -> None:
    first = open_ledger(tmp_path)
    account = day(first)
    reserve(first, account, 100)
    first.close()
    assert open_ledger(tmp_path).accounts[account].held == 0


def test_reservations_never_pass_a_lease_that_is_not_on_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = open_ledger(tmp_path)
    account = day(own, budget=10**9)
    monkeypatch.setattr(own, "sync", lambda: None)  # the disk is slow
    made = 0
    while not isinstance(outcome := own.reserve(account, 10**6, now=0), Refusal):
        made += 1
        assert made < 10_000
    assert outcome is Refusal.LEDGER
    assert own.accounts[account].granted <= own.accounts[account].leased_durable


def test_a_snapshot_and_the_log_after_it_give_the_same_state_as_the_whole_log(tmp_path: Path) -> None:
    own = open_ledger(tmp_path / "a", keep=True)
    account = day(own, budget=10**9)
    bids = [reserve(own, account, 100 + n % 7, now=n * SECOND) for n in range(5000)]
    for n, bid in enumerate(bids[::3]):
        own.win(bid, 80, now=5000 * SECOND)
        if n % 2:
            own.bill(bid, 80, now=5000 * SECOND)
    own.snapshot()
    for bid in bids[1::3]:
        own.bill(bid, 90, now=5001 * SECOND)
    own.flush()
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    for state in (tmp_path / "b").glob("state-*"):
        state.unlink()
    assert open_ledger(tmp_path / "b").digest() == _reopened(tmp_path / "a", tmp_path / "c").digest()


def _reopened(folder: Path, copy: Path) -> Ledger:
    shutil.copytree(folder, copy)
    return open_ledger(copy)


def test_forgetting_keeps_what_may_still_be_asked_about(ledger: Ledger) -> None:
    account = day(ledger, budget=10**9)
    old = [reserve(ledger, account, 100) for _ in range(5000)]
    ledger.bill(old[0], 50, now=1)
    fresh = reserve(ledger, account, 100, now=5000 * SECOND)
    assert ledger.forget(5000 * SECOND) == 1
    assert ledger.bill(old[0], 50, now=5000 * SECOND) is Outcome.TOO_OLD
    assert ledger.bill(fresh, 50, now=5001 * SECOND) is Outcome.BILLED
    assert ledger.accounts[account].spent == 100


def test_a_torn_tail_is_cut_and_a_damaged_log_is_refused(tmp_path: Path) -> None:
    own = open_ledger(tmp_path)
    account = day(own)
    for _ in range(200):
        reserve(own, account, 10)
    own.sync()
    for _ in range(100):
        reserve(own, account, 10)
    own.close()
    log = tmp_path / "log-00000001.bin"
    whole = log.read_bytes()
    for cut in (1, 7, 30):
        log.write_bytes(whole[:-cut])
        again = open_ledger(tmp_path)
        assert again.cut_bytes > 0
        assert again.audit() == []
        again.close()
    log.write_bytes(whole[:500] + bytes([whole[500] ^ 1]) + whole[501:])
    with pytest.raises(RankloomError, match="damaged at byte"):
        open_ledger(tmp_path)
    assert log.stat().st_size == len(whole)  # nothing was thrown away
    log.write_bytes(whole)
    open_ledger(tmp_path).close()  # what was refused is not held


def test_two_processes_cannot_open_one_ledger(tmp_path: Path) -> None:
    first = open_ledger(tmp_path)
    with pytest.raises(RankloomError) as refused:
        open_ledger(tmp_path)
    assert refused.value.code == "ledger-locked"
    first.close()
    open_ledger(tmp_path).close()


def test_a_full_disk_stops_bids_and_loses_no_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from rankloom.bidding.serve import journal

    own = open_ledger(tmp_path)
    account = day(own)
    reserve(own, account, 10)
    real = journal.os.write
    room = [7]

    def full(descriptor: int, data: Any) -> int:
        if not room[0]:
            raise OSError(28, "No space left on device")
        written = real(descriptor, bytes(data[: room[0]]))
        room[0] -= written
        return written

    monkeypatch.setattr(journal.os, "write", full)
    with pytest.raises(OSError, match="No space"):
        own.flush()
    assert not own.healthy
    assert own.reserve(account, 10, now=0) is Refusal.LEDGER
    monkeypatch.setattr(journal.os, "write", real)
    own.flush()
    assert own.healthy
    own.close()
    again = open_ledger(tmp_path)
    assert (again.accounts[account].bids, again.cut_bytes) == (1, 0)


def test_frames_survive_any_cut(tmp_path: Path) -> None:
    parts = [frame(kind, bytes(range(kind))) for kind in range(1, 40)]
    whole = b"".join(parts)
    for cut in range(0, len(whole), 11):
        found = list(frames(whole[:cut]))
        assert [payload for _, _, payload in found] == [bytes(range(k)) for k in range(1, len(found) + 1)]
        assert not found or found[-1][0] <= cut
    assert struct.calcsize("<BBII") == 10
    log = Journal(tmp_path / "x")
    log.append(3, b"abc")
    assert log.pending == 13
    log.flush()
    assert (log.pending, log.position) == (0, 13)
    assert log.sync() == 13
    log.close()


# -- any interleaving ----------------------------------------------------------------------------------------------------------


class AnyOrder(RuleBasedStateMachine):
    """Bids, notices, time, budget changes, kills, power losses and clean restarts in any order, against a plain account."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp())
        self.number = 0
        self.now = 0
        self.boots = 0
        self.ledger = Ledger(self.folder / "0", SETTINGS, now=0, boot="b0")
        self.amount: dict[int, int] = {}  # every bid that left the process
        self.billed: dict[int, int] = {}  # what the exchange was told is charged

    def teardown(self) -> None:
        self.ledger.close()
        shutil.rmtree(self.folder)

    @initialize(budget=st.integers(500, 5_000))
    def begin(self, budget: int) -> None:
        self.account = self.ledger.open_account("c", "d", day_start=0, day_end=DAY, budget=budget).index
        self.highest = budget
        self.ledger.sync()

    @property
    def own(self) -> Any:
        return self.ledger.accounts[self.account]

    @rule(amount=st.integers(1, 700), p=st.integers(0, 10**6), tick=st.integers(0, 3))
    def bid(self, amount: int, p: int, tick: int) -> None:
        before = self.own.available
        outcome = self.ledger.reserve(self.account, amount, now=self.now, p_ppb=p, tick=tick)
        if amount > before:
            assert outcome is Refusal.BUDGET
        if not isinstance(outcome, Refusal):
            assert outcome not in self.amount
            self.ledger.flush()
            self.amount[outcome] = amount

    @precondition(lambda self: self.amount)
    @rule(data=st.data(), price=st.one_of(st.none(), st.integers(0, 800)))
    def win(self, data: st.DataObject, price: int | None) -> None:
        spent = self.own.spent
        self.ledger.win(data.draw(st.sampled_from(sorted(self.amount))), price, now=self.now)
        assert self.own.spent == spent

    @precondition(lambda self: self.amount)
    @rule(data=st.data(), price=st.integers(0, 800))
    def bill(self, data: st.DataObject, price: int) -> None:
        bid = data.draw(st.sampled_from(sorted(self.amount)))
        spent = self.own.spent
        outcome = self.ledger.bill(bid, price, now=self.now)
        if outcome is Outcome.TOO_OLD:
            outcome = self.ledger.bill_forgotten(bid, self.account, self.amount[bid], price, now=self.now)
        charged = self.own.spent - spent
        if outcome in (Outcome.BILLED, Outcome.LATE):
            assert bid not in self.billed
            assert charged == min(price, self.amount[bid])
            self.billed[bid] = charged
            self.ledger.sync()  # before it is acknowledged
        else:
            assert charged == 0

    @precondition(lambda self: self.amount)
    @rule(data=st.data())
    def loss(self, data: st.DataObject) -> None:
        self.ledger.loss(data.draw(st.sampled_from(sorted(self.amount))), now=self.now)

    @rule(seconds=st.integers(0, 400), limit=st.integers(1, 5))
    def time_passes(self, seconds: int, limit: int) -> None:
        self.now += seconds * SECOND
        self.ledger.expire(self.now, limit)

    @rule(budget=st.integers(0, 6_000))
    def change_budget(self, budget: int) -> None:
        self.ledger.set_budget(self.account, budget)
        self.ledger.sync()
        self.highest = max(self.highest, budget)

    @rule()
    def snapshot(self) -> None:
        digest = self.ledger.digest()
        self.ledger.snapshot()
        assert self.ledger.digest() == digest

    @rule()
    def kill(self) -> None:
        """Everything handed to the operating system survives."""
        self.ledger.flush()
        before = [(b.bid, b.state, b.price) for b in self.ledger.bids()]
        money = (self.own.spent, self.own.reserved, self.own.held, self.own.budget)
        self._restart(f"b{self.boots}", cut=None)
        assert [(b.bid, b.state, b.price) for b in self.ledger.bids()] == before
        assert (self.own.spent, self.own.reserved, self.own.held, self.own.budget) == money

    @rule(share=st.floats(0, 1))
    def power_loss(self, share: float) -> None:
        """Of what was not synced, some prefix survives."""
        self.ledger.flush()
        journal = self.ledger._journal
        spent = self.own.spent
        self.boots += 1
        self._restart(f"b{self.boots}", cut=journal.synced + int(share * (journal.position - journal.synced)))
        assert self.own.spent == spent  # every billing was synced

    def _restart(self, boot: str, cut: int | None) -> None:
        log = self.ledger._journal.path.name
        self.number += 1
        new = self.folder / str(self.number)
        shutil.copytree(self.ledger.folder, new)
        if cut is not None:
            with open(new / log, "r+b") as handle:
                handle.truncate(cut)
        self.ledger.close()
        self.ledger = Ledger(new, SETTINGS, now=self.now, boot=boot)

    @invariant()
    def holds(self) -> None:
        if not hasattr(self, "account"):
            return
        own = self.own
        assert self.ledger.audit() == []
        assert own.spent == sum(self.billed.values())
        assert own.spent + own.reserved + own.held <= self.highest + self.highest // 10
        assert own.available == own.budget - own.spent - own.reserved - own.held
        assert own.late + own.spent >= own.spent


TestAnyOrder = AnyOrder.TestCase
TestAnyOrder.settings = settings(
    max_examples=25, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck)
)


# -- money -----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "micros"),
    [
        ("2.5", 2500),
        ("0", 0),
        ("0.0004", 0),
        ("0.0005", 0),
        ("0.0015", 2),
        ("1e1", 10_000),
        (".5", 500),
        ("123456.789", 123_456_789),
    ],
)
def test_prices_are_read_exactly_half_to_even(text: str, micros: int) -> None:
    assert parse_cpm(text) == micros


@pytest.mark.parametrize(
    "text", ["", "${AUCTION_PRICE}", "-1", "NaN", "inf", "1,5", "0x10", "1e400", "9" * 60, "Zm9v", "--1", "1.2.3"]
)
def test_what_is_not_a_price_is_none(text: str) -> None:
    assert parse_cpm(text) is None


def test_money_makes_no_floats() -> None:
    from decimal import Decimal

    assert floor_to_micros(Decimal("0.0301")) == 31  # not below the floor
    assert cpm_text(2345) == "2.345"
    assert cpm_text(7) == "0.007"
    assert parse_cpm(cpm_text(987_654_321)) == 987_654_321
    assert units(1_234_567_890) == "1,234.57"
    assert units(-5_000) == "-0.01"


def test_the_ledger_holds_no_float(ledger: Ledger) -> None:
    account = day(ledger)
    bid = reserve(ledger, account, 333)
    ledger.win(bid, 111, now=1)
    ledger.bill(bid, 111, now=2)
    ledger.add_traffic(account, 0, volume=3, p_sum=5, bid_sum=7, lwc_sum=1, lwc_n=1)

    def numbers(value: Any) -> Any:
        if isinstance(value, dict):
            for own in value.values():
                yield from numbers(own)
        elif isinstance(value, list):
            for own in value:
                yield from numbers(own)
        else:
            yield value

    assert not [own for own in numbers(ledger.accounts[account].to_json()) if isinstance(own, float)]
    assert ledger.bid(bid).state == BILLED  # type: ignore[union-attr]
    assert OPEN not in {own.state for own in ledger.bids()}
