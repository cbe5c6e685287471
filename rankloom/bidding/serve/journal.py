"""The append-only log under the ledger: framed, checksummed records; group commit; recovery of a torn tail.

A frame is a mark, the kind, the payload's length and a CRC-32 of kind and payload. `append` fills a buffer, `flush`
hands the buffer to the operating system in one write (it then survives the death of this process), `sync` returns when
all of it is on disk (it then survives the machine). Nothing may leave the process before the record that causes it is
flushed; nothing may be acknowledged before it is synced.

Why a log and not SQLite: a bid costs one `write` of some fifty bytes and no lock file, and the durability of bids and
of notices can differ. `benchmarks/bidding_ledger.py` measures both sides.

After a crash a log may end in half a frame: that tail is cut off. A broken frame that is followed by a sound SYNCED
frame was on disk before, so the file was damaged, and the journal refuses to open.
"""

from __future__ import annotations

import os
import struct
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final
from zlib import crc32

from rankloom.errors import RankloomError

MARK: Final = 0xB1
SYNCED: Final = 0  # kind: everything up to the offset in its payload was on disk when it was written
_HEADER: Final = struct.Struct("<BBII")
_OFFSET: Final = struct.Struct("<Q")
MAX_PAYLOAD: Final = 16_000_000


def frame(kind: int, payload: bytes) -> bytes:
    return _HEADER.pack(MARK, kind, len(payload), crc32(payload, kind)) + payload


def frames(data: bytes) -> Iterator[tuple[int, int, bytes]]:
    """(end offset, kind, payload) of each sound frame from the start; stops at the first that is not sound."""
    position, size, header = 0, len(data), _HEADER.size
    while position + header <= size:
        mark, kind, length, checksum = _HEADER.unpack_from(data, position)
        end = position + header + length
        if mark != MARK or length > MAX_PAYLOAD or end > size:
            return
        payload = data[position + header : end]
        if crc32(payload, kind) != checksum:
            return
        position = end
        yield end, kind, payload


def synced_after(data: bytes, position: int) -> int:
    """The largest offset that a sound SYNCED frame somewhere after `position` vouches for; 0 where there is none."""
    best, at = 0, position
    pattern = bytes([MARK, SYNCED]) + _OFFSET.size.to_bytes(4, "little")
    while (at := data.find(pattern, at + 1)) >= 0:
        for _, kind, payload in frames(data[at : at + _HEADER.size + _OFFSET.size]):
            if kind == SYNCED:
                best = max(best, _OFFSET.unpack(payload)[0])
    return best


class Journal:
    """One log file open for appending. `append` and `flush` are for the owner of the ledger's lock; `sync` is for any thread."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        self._buffer = bytearray()
        self.position = os.fstat(self._fd).st_size  # bytes handed to the operating system
        self.synced = self._noted = self.position
        self.broken: str | None = None
        self._sync_lock = threading.Lock()

    def append(self, kind: int, payload: bytes) -> None:
        self._buffer += frame(kind, payload)

    @property
    def pending(self) -> int:
        return len(self._buffer)

    def flush(self) -> None:
        """One write of everything appended. After a short or failed write the rest stays buffered for the next call.

        Raises:
            OSError: the disk is full or gone; nothing that was appended may be acted upon.
        """
        while self._buffer:
            try:
                written = os.write(self._fd, self._buffer)
            except OSError as error:
                self.broken = error.strerror or type(error).__name__
                raise
            self.position += written
            del self._buffer[:written]
        self.broken = None

    def sync(self) -> int:
        """Waits until what was flushed before the call is on disk; returns the offset that is. OSError as `flush`."""
        with self._sync_lock:
            target = self.position
            if target > self.synced and self._fd >= 0:
                os.fdatasync(self._fd)
                self.synced = target
            return self.synced

    def note_synced(self) -> None:
        """Appends a SYNCED frame now and then, so that a later reader can tell damage from a torn tail."""
        if self.synced > self._noted + 4096:
            self._noted = self.synced
            self.append(SYNCED, _OFFSET.pack(self.synced))

    def close(self) -> None:
        with self._sync_lock:  # a syncing thread may hold the descriptor
            os.close(self._fd)
            self._fd = -1


def read_log(path: Path, apply: Callable[[int, bytes], None], *, last: bool) -> int:
    """Feeds every record of a log to `apply`; cuts a torn tail off the last one. Returns the bytes cut.

    Raises:
        RankloomError: the log is damaged where it was already on disk, or is not the last and does not end soundly.
    """
    data = path.read_bytes()
    position = 0
    for position, kind, payload in frames(data):  # noqa: B007 (the last end is used below)
        if kind != SYNCED:
            apply(kind, payload)
    if position == len(data):
        return 0
    if not last or synced_after(data, position) > position:
        raise RankloomError(
            f"the ledger's log is damaged at byte {position:,} of {len(data):,}",
            place=str(path),
            action="restore the state folder from a backup; do not delete the file, it holds billed money",
            code="ledger-damaged",
        )
    with open(path, "r+b") as handle:
        handle.truncate(position)
        handle.flush()
        os.fsync(handle.fileno())
    return len(data) - position
