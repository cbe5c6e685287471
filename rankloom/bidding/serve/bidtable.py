"""The bids that the ledger remembers: columns in blocks of 4,096 consecutive ids, some fifty bytes a bid."""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

OPEN, WON, BILLED, LOST, EXPIRED, DISPUTED = 1, 2, 3, 4, 5, 6
STATUS: Final = 0x0F
SAW_WIN: Final = 0x10  # a win or billing notice came: counted once
_BLOCK_BITS: Final = 12
_BLOCK: Final = 1 << _BLOCK_BITS
_PLACE: Final = _BLOCK - 1


class Block:
    """Columns of 4,096 consecutive bids; a `state` of 0 is no bid."""

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
    def from_bytes(cls, data: memoryview) -> Block:
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


class BidTable:
    """Bids by id. Ids only grow; `drop` takes whole blocks away at the old end."""

    def __init__(self) -> None:
        self.blocks: dict[int, Block] = {}

    def add(self, bid: int, account: int, amount: int, time: int, p_ppb: int, tick: int, tag: int) -> None:
        key, at = bid >> _BLOCK_BITS, bid & _PLACE
        block = self.blocks.get(key)
        if block is None:
            block = self.blocks[key] = Block()
        block.state[at] = OPEN
        block.tick[at] = tick
        block.account[at] = account
        block.tag[at] = tag
        block.amount[at] = amount
        block.time[at] = time
        block.p[at] = p_ppb

    def find(self, bid: int) -> tuple[Block, int] | None:
        """The block of a bid and its place there; None where it is not, or no longer, known."""
        block = self.blocks.get(bid >> _BLOCK_BITS)
        if block is None or not block.state[bid & _PLACE]:
            return None
        return block, bid & _PLACE

    def at(self, bid: int) -> tuple[Block, int]:
        """As `find`, for a bid that is known."""
        return self.blocks[bid >> _BLOCK_BITS], bid & _PLACE

    def drop(self, horizon: int, upcoming: int) -> None:
        """Forgets blocks before that of the bid `upcoming` whose bids are older than `horizon` and all decided."""
        current = upcoming >> _BLOCK_BITS
        for key in [key for key in self.blocks if key < current]:
            block = self.blocks[key]
            if max(block.time) < horizon and not any(s & STATUS in (OPEN, WON) for s in block.state):
                del self.blocks[key]

    def read(self, bid: int) -> Bid | None:
        found = self.find(bid)
        if found is None:
            return None
        block, at = found
        return Bid(
            bid, block.account[at], block.state[at] & STATUS, block.amount[at], block.price[at], block.time[at],
            block.tick[at], block.p[at], block.tag[at],
        )  # fmt: skip

    def __iter__(self) -> Iterator[Bid]:
        for key in sorted(self.blocks):
            for at, state in enumerate(self.blocks[key].state):
                if state:
                    own = self.read((key << _BLOCK_BITS) | at)
                    assert own is not None
                    yield own
