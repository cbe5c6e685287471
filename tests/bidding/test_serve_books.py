"""The books are a function of the log, and what cannot be read back soundly is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from rankloom.bidding.serve import booksfile, records
from rankloom.bidding.serve.books import Books
from rankloom.bidding.serve.journal import Journal, read_log
from rankloom.bidding.serve.ledger import Ledger, LedgerSettings, Refusal
from rankloom.errors import RankloomError

SECOND = 1_000_000
SETTINGS = LedgerSettings(win_s=60, bill_s=600, remember_s=3600, late_allowance_ppm=100_000, n_ticks=4)


def busy(folder: Path, *, snapshots: int = 0) -> Ledger:
    """A ledger with a record of nearly every kind, and a snapshot now and then."""
    own = Ledger(folder, SETTINGS, now=0, boot="one", keep=True)
    account = own.open_account("c", "d", day_start=0, day_end=86_400 * SECOND, budget=10**6).index
    for part in range(snapshots + 1):
        now = part * 1000 * SECOND
        bids = [bid for _ in range(8) if not isinstance(bid := own.reserve(account, 500, now=now), Refusal)]
        assert len(bids) == 8
        own.win(bids[0], 300, now=now)
        own.bill(bids[0], None, now=now)
        own.bill(bids[1], 900, now=now)
        own.loss(bids[2], now=now)
        own.expire(now + 60 * SECOND)
        own.bill(bids[3], 400, now=now + 61 * SECOND)
        own.add_conversion(f"order-{part}", account, 1, value=7, now=now)
        own.add_traffic(account, 2, volume=9, p_sum=8, bid_sum=7, lwc_sum=6, lwc_n=5)
        own.set_multiplier(account, 3, 1234)
        own.set_budget(account, 900_000 + part)
        own.put_document("name", {"part": part})
        own.put_document("gone", part)
        own.put_document("gone", None)
        own.forget(now + 62 * SECOND)
        if part < snapshots:
            own.snapshot()
    own.sync()
    return own


def books() -> Books:
    return Books(n_ticks=SETTINGS.n_ticks, place="here")


def test_the_log_alone_gives_the_state(tmp_path: Path) -> None:
    own = busy(tmp_path)
    again = books()
    assert read_log(tmp_path / "log-00000001.bin", again.apply, last=True) == 0
    assert booksfile.to_bytes(again) == booksfile.to_bytes(own._books)
    assert again.accounts[1].spent == own.accounts[1].spent > 0


def test_the_state_as_bytes_comes_back_equal_and_takes_further_records(tmp_path: Path) -> None:
    own = busy(tmp_path)
    data = booksfile.to_bytes(own._books)
    again = books()
    booksfile.restore(again, data)
    assert booksfile.to_bytes(again) == data
    bid = again.upcoming
    again.apply(records.BID, records.BID_COLUMNS.pack(bid, 1, 100, own.now, 0, 0, 0))
    assert booksfile.to_bytes(again) != data
    assert own.reserve(1, 100, now=own.now) == bid
    assert booksfile.to_bytes(again) == booksfile.to_bytes(own._books)


def test_every_kind_of_record_is_known_and_no_other_is_taken() -> None:
    assert sorted(records.DECODE) == list(range(1, 18))
    for kind in records.DECODE:
        with pytest.raises(Exception) as refused:
            books().apply(kind, b"")
        assert not isinstance(refused.value, RankloomError)
    with pytest.raises(RankloomError, match="unknown kind 99") as unknown:
        books().apply(99, b"")
    assert (unknown.value.code, unknown.value.place) == ("ledger-version", "here")


def test_a_ledger_is_opened_with_the_ticks_it_was_kept_with(tmp_path: Path) -> None:
    busy(tmp_path, snapshots=1).close()
    with pytest.raises(RankloomError, match="counts 4 ticks a day, the settings say 48") as refused:
        Ledger(tmp_path, LedgerSettings(), now=0)
    assert refused.value.code == "ledger-ticks"


@pytest.mark.parametrize("damage", [b"", b"short", None])
def test_a_snapshot_that_is_not_sound_is_passed_over_for_the_log(tmp_path: Path, damage: bytes | None) -> None:
    own = busy(tmp_path, snapshots=2)
    spent = own.accounts[1].to_json()
    own.close()
    (state,) = tmp_path.glob("state-*.bin")
    whole = state.read_bytes()
    state.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]) if damage is None else damage)
    again = Ledger(tmp_path, SETTINGS, now=0, boot="one")
    assert again.accounts[1].to_json() == spent
    again.close()


def test_without_a_sound_snapshot_a_log_that_does_not_reach_back_is_refused(tmp_path: Path) -> None:
    busy(tmp_path, snapshots=2).close()
    (state,) = tmp_path.glob("state-*.bin")
    state.write_bytes(b"")
    (tmp_path / "log-00000001.bin").unlink()
    with pytest.raises(RankloomError, match="no sound snapshot") as refused:
        Ledger(tmp_path, SETTINGS, now=0)
    assert refused.value.code == "ledger-damaged"


def test_a_missing_segment_is_refused(tmp_path: Path) -> None:
    busy(tmp_path, snapshots=1).close()
    Journal(tmp_path / "log-00000004.bin").close()
    with pytest.raises(RankloomError, match="a segment of the ledger's log is missing") as refused:
        Ledger(tmp_path, SETTINGS, now=0)
    assert refused.value.code == "ledger-damaged"
