"""What the ledger's log says: the kinds of records and the bytes of each. The journal frames and checksums them.

Money is in micros, time in microseconds, p in ppb (parts per billion). Most records are fixed columns, little endian;
what comes seldom and has names in it is JSON. The numbers of the kinds and the columns are the format on disk: a new
kind gets a new number, none is used again.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from typing import Any, Final

DOCUMENT, START, OPEN, BUDGET, LEASE, HOLD, BID, WIN, BILL, LOSS, EXPIRE = range(1, 12)
CONVERSION, TRAFFIC, ORPHAN, MULTIPLIER, CLOSE, FORGET = range(12, 18)
KINDS: Final = {BID: "bid", WIN: "win", BILL: "bill", LOSS: "loss", ORPHAN: "orphan", EXPIRE: "expire"}

BID_COLUMNS: Final = struct.Struct("<QIqqqBH")  # bid, account, amount, now, p in ppb, tick, tag
NOTICE_COLUMNS: Final = struct.Struct("<Qqq")  # bid, now, price (-1: none)
LOSS_COLUMNS: Final = struct.Struct("<Qq")  # bid, now
EXPIRE_COLUMNS: Final = struct.Struct("<qI")  # now, at most so many
MONEY_COLUMNS: Final = struct.Struct("<Iq")  # account, micros
HOLD_COLUMNS: Final = struct.Struct("<Iqq")  # account, micros, until
CONVERSION_COLUMNS: Final = struct.Struct("<QIBqq")  # hash of the id, account, tick, value micros, now
# account, tick, volume, sum of p, sum of bids, sum of least winning costs, their number
TRAFFIC_COLUMNS: Final = struct.Struct("<IBqqqqq")
ORPHAN_COLUMNS: Final = struct.Struct("<QIqqq")  # bid, account, amount, now, price
MULTIPLIER_COLUMNS: Final = struct.Struct("<IBq")  # account, tick, micros
NOW_COLUMNS: Final = struct.Struct("<q")


def _fields(payload: bytes) -> tuple[Any, ...]:
    return (json.loads(payload),)


DECODE: Final[dict[int, Callable[[bytes], tuple[Any, ...]]]] = {
    DOCUMENT: json.loads,  # name, value
    START: _fields,  # epoch, boot, now, settings
    OPEN: _fields,  # index, campaign, day, day_start, day_end, budget
    BUDGET: MONEY_COLUMNS.unpack,
    LEASE: MONEY_COLUMNS.unpack,
    HOLD: HOLD_COLUMNS.unpack,
    BID: BID_COLUMNS.unpack,
    WIN: NOTICE_COLUMNS.unpack,
    BILL: NOTICE_COLUMNS.unpack,
    LOSS: LOSS_COLUMNS.unpack,
    EXPIRE: EXPIRE_COLUMNS.unpack,
    CONVERSION: CONVERSION_COLUMNS.unpack,
    TRAFFIC: TRAFFIC_COLUMNS.unpack,
    ORPHAN: ORPHAN_COLUMNS.unpack,
    MULTIPLIER: MULTIPLIER_COLUMNS.unpack,
    CLOSE: MONEY_COLUMNS.unpack,
    FORGET: NOW_COLUMNS.unpack,
}
"""The fields of a payload, by kind."""
