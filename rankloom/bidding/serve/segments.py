"""The ledger's folder: the lock that keeps a second process out, log segments, snapshots of the state, recovery from both.

    lock                 held while a process has the ledger open
    log-00000001.bin     the first segment of the log, and so on
    state-00000003.bin   the state before segment 3: recovery reads it and the segments from 3 on

A snapshot begins with its length and a CRC-32; one that is not sound is passed over for an older one.
"""

from __future__ import annotations

import fcntl
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Final
from zlib import crc32

from rankloom.bidding.serve.journal import Journal, read_log
from rankloom.errors import RankloomError
from rankloom.files import atomic_file

_SEAL: Final = struct.Struct("<QI")  # bytes of the state, their checksum


def boot_id() -> str:
    """Names this run of the machine; two different names mean that memory was lost in between."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


class Segments:
    """The files of one ledger; they are this process's until `release`.

    Args:
        keep: keep old log segments after a snapshot.

    Raises:
        RankloomError: another process has the ledger open.
    """

    def __init__(self, folder: Path, *, keep: bool) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.keep = folder, keep
        self.generation = 1  # number of the segment that is written
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

    def release(self) -> None:
        os.close(self._guard)

    # -- writing -------------------------------------------------------------------------------------------------------

    def journal(self) -> Journal:
        """The current segment, open for appending."""
        return Journal(self._log(self.generation))

    def next_journal(self) -> Journal:
        """A new segment; the one before must be closed, and is complete."""
        self.generation += 1
        journal = self.journal()
        _sync_folder(self.folder)
        return journal

    def write_state(self, generation: int, data: bytes) -> None:
        """Writes the state before a segment, then deletes the files that recovery needs no longer."""
        with atomic_file(self._state(generation)) as temporary:
            temporary.write_bytes(_SEAL.pack(len(data), crc32(data)) + data)
        for old in self._generations("state"):
            if old < generation:
                self._state(old).unlink()
        if not self.keep:
            for old in self._generations("log"):
                if old < generation:
                    self._log(old).unlink()

    # -- recovery ------------------------------------------------------------------------------------------------------

    def recover(self, restore: Callable[[bytes], None], apply: Callable[[int, bytes], None]) -> int:
        """Latest sound snapshot, then every log segment from there on. Returns the bytes of a torn tail.

        Args:
            restore: takes a snapshot's state.
            apply: takes the kind and payload of each record after it, in order.

        Raises:
            RankloomError: a file is damaged or missing.
        """
        first = self._restore_latest(restore)
        replay = self._segments_from(first)
        cut = 0
        for generation in replay:
            cut += read_log(self._log(generation), apply, last=generation == replay[-1])
        self.generation = max([first, 1, *replay])
        return cut

    def _restore_latest(self, restore: Callable[[bytes], None]) -> int:
        """Restores from the newest sound snapshot; returns its number, 0 where the log tells all."""
        states = self._generations("state")
        for generation in reversed(states):
            data = _unsealed(self._state(generation).read_bytes())
            if data is not None:
                restore(data)
                return generation
        logs = self._generations("log")
        if states and (not logs or logs[0] != 1):
            raise RankloomError(
                "no sound snapshot of the ledger, and the log does not reach back to its start",
                place=str(self.folder),
                action="restore the state folder from a backup",
                code="ledger-damaged",
            )
        return 0

    def _segments_from(self, first: int) -> list[int]:
        """The numbers of the segments that recovery reads after the snapshot `first`; none of them may be missing."""
        replay = [generation for generation in self._generations("log") if generation >= first]
        if replay and replay != list(range(max(first, 1), max(replay) + 1)):
            raise RankloomError(
                "a segment of the ledger's log is missing",
                place=str(self.folder),
                action="restore the state folder from a backup",
                code="ledger-damaged",
            )
        return replay

    # -- names ---------------------------------------------------------------------------------------------------------

    def _log(self, generation: int) -> Path:
        return self.folder / f"log-{generation:08d}.bin"

    def _state(self, generation: int) -> Path:
        return self.folder / f"state-{generation:08d}.bin"

    def _generations(self, kind: str) -> list[int]:
        return sorted(int(path.stem.removeprefix(f"{kind}-")) for path in self.folder.glob(f"{kind}-*.bin"))


def _unsealed(raw: bytes) -> bytes | None:
    """The state in a snapshot's bytes; None where they are not sound."""
    if len(raw) < _SEAL.size:
        return None
    length, checksum = _SEAL.unpack_from(raw)
    data = raw[_SEAL.size :]
    return data if len(data) == length and crc32(data) == checksum else None


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
