"""Which notices have an effect: asked of the books before a record is written, so that the log holds only what counts."""

from __future__ import annotations

from enum import StrEnum

from rankloom.bidding.serve.bidtable import BILLED, DISPUTED, LOST, SAW_WIN, STATUS
from rankloom.bidding.serve.books import EPOCH_BITS, Books


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


def idle_win(books: Books, bid: int) -> Outcome | None:
    """Why a win notice changes nothing; None where it does. The same below for the other notices."""
    found = books.bids.find(bid)
    if found is None:
        return Outcome.TOO_OLD
    block, at = found
    if block.state[at] & SAW_WIN or block.account[at] not in books.accounts:
        return Outcome.DUPLICATE
    return Outcome.IGNORED if block.state[at] & STATUS == LOST else None


def idle_bill(books: Books, bid: int) -> Outcome | None:
    found = books.bids.find(bid)
    if found is None:
        return Outcome.TOO_OLD
    block, at = found
    if block.state[at] & STATUS in (BILLED, DISPUTED):
        return Outcome.DUPLICATE
    return None if block.account[at] in books.accounts else Outcome.TOO_OLD


def idle_orphan(books: Books, bid: int, account: int) -> Outcome | None:
    """As above, for the billing of a bid that the books do not know."""
    if bid in books.orphans:
        return Outcome.DUPLICATE
    end = books.ends.get(bid >> EPOCH_BITS)
    if account not in books.accounts or end is None or bid < end[0]:
        return Outcome.TOO_OLD
    return None


def idle_loss(books: Books, bid: int) -> Outcome | None:
    found = books.bids.find(bid)
    if found is None:
        return Outcome.TOO_OLD
    block, at = found
    status = block.state[at] & STATUS
    if status == LOST:
        return Outcome.DUPLICATE
    if status in (BILLED, DISPUTED) or block.account[at] not in books.accounts:
        return Outcome.IGNORED
    return None
