"""The auditor of the books: counts every account again from its bids."""

from __future__ import annotations

from collections import Counter

from rankloom.bidding.serve.bidtable import BILLED, OPEN, WON
from rankloom.bidding.serve.books import Books


def audit(books: Books) -> list[str]:
    """Recounts every account from the bids that are remembered; each sentence is a broken invariant."""
    reserved: Counter[int] = Counter()
    spent: Counter[int] = Counter()
    for own in books.bids:
        if own.state in (OPEN, WON):
            reserved[own.account] += own.amount
        elif own.state == BILLED:
            spent[own.account] += own.price
    faults = []
    for index, account in books.accounts.items():
        if reserved[index] != account.reserved:
            faults.append(f"account {index}: {account.reserved} reserved, its bids say {reserved[index]}")
        if spent[index] > account.spent:
            faults.append(f"account {index}: {account.spent} spent, its bids say {spent[index]}")
        if account.spent + account.reserved + account.held > books.bound(account):
            faults.append(f"account {index}: {account.spent + account.reserved} is beyond {books.bound(account)}")
        if min(account.spent, account.reserved, account.held) < 0:
            faults.append(f"account {index}: negative money")
        if account.spent != sum(account.series["spend"]):
            faults.append(f"account {index}: its ticks do not add up to {account.spent}")
    return faults
