"""The books as bytes, for snapshots and for comparing two ledgers: a JSON head, then the columns of the bids."""

from __future__ import annotations

import json
import struct
from collections import deque

from rankloom.bidding.serve.accounts import Account
from rankloom.bidding.serve.bidtable import Block
from rankloom.bidding.serve.books import Books
from rankloom.errors import RankloomError


def to_bytes(books: Books) -> bytes:
    """The whole state: equal books give equal bytes."""
    blocks = books.bids.blocks
    keys = sorted(blocks)
    meta = {
        "epoch": books.epoch, "boot": books.boot, "now": books.now, "next": books.upcoming,
        "next_account": books.next_account, "n_ticks": books.n_ticks, "win_us": books.win_us, "bill_us": books.bill_us,
        "remember_us": books.remember_us, "ppm": books.ppm,
        "accounts": [own.to_json() for own in books.accounts.values()], "documents": books.documents,
        "won": sorted(books.won), "holds": sorted(books.holds), "orphans": sorted(books.orphans.items()),
        "conversions": sorted(books.conversions.items()), "open": list(books.open), "blocks": keys,
        "ends": sorted((epoch, *end) for epoch, end in books.ends.items()),
    }  # fmt: skip
    head = json.dumps(meta, sort_keys=True).encode()
    return b"".join([struct.pack("<Q", len(head)), head, *(blocks[key].to_bytes() for key in keys)])


def restore(books: Books, data: bytes) -> None:
    """Puts what `to_bytes` gave into new books.

    Raises:
        RankloomError: they were kept with another number of ticks a day.
    """
    (length,) = struct.unpack_from("<Q", data)
    meta = json.loads(data[8 : 8 + length])
    if meta["n_ticks"] != books.n_ticks:
        raise RankloomError(
            f"the ledger counts {meta['n_ticks']} ticks a day, the settings say {books.n_ticks}",
            place=books.place,
            action="keep the number of ticks, or start a new --state folder",
            code="ledger-ticks",
        )
    books.epoch, books.boot, books.now = meta["epoch"], meta["boot"], meta["now"]
    books.upcoming, books.next_account = meta["next"], meta["next_account"]
    books.win_us, books.bill_us, books.remember_us = meta["win_us"], meta["bill_us"], meta["remember_us"]
    books.ppm, books.documents = meta["ppm"], meta["documents"]
    books.accounts = {own["index"]: Account.from_json(own, meta["n_ticks"]) for own in meta["accounts"]}
    books.by_key = {(own.campaign, own.day): own.index for own in books.accounts.values()}
    books.won = [(deadline, bid) for deadline, bid in meta["won"]]
    books.holds = [(until, account, amount) for until, account, amount in meta["holds"]]
    books.orphans = dict(meta["orphans"])
    books.conversions = dict(meta["conversions"])
    books.open = deque(meta["open"])
    books.ends = {epoch: (end, when) for epoch, end, when in meta["ends"]}
    view, at, size = memoryview(data), 8 + length, Block.size()
    for key in meta["blocks"]:
        books.bids.blocks[key] = Block.from_bytes(view[at : at + size])
        at += size
