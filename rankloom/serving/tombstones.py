"""Who asked to be forgotten, in a file of its own: it survives the restore of an older backup of the store.

One line a person: the format's mark, the pseudonym, the time of the request, a checksum. A line is on disk before the
store forgets anything, so that a crash in between is finished at the next start. A torn last line was never acknowledged
and is cut off. Keep the file out of backups that are restored over it.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable
from pathlib import Path
from zlib import crc32

from rankloom.errors import RankloomError
from rankloom.serving.state import StateUnavailableError


def _line(person: bytes, at: int) -> bytes:
    body = f"forgotten {person.hex()} {at}"
    return f"{body} {crc32(body.encode()):08x}\n".encode()


def _parse(line: bytes) -> tuple[bytes, int] | None:
    try:
        word, person, at, _ = line.decode("ascii").split(" ")
        own = bytes.fromhex(person), int(at)
    except ValueError:
        return None
    return own if word == "forgotten" and line == _line(*own)[:-1] else None


class Tombstones:
    """The file at `path` (None: memory only). Safe from threads."""

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self._lock = threading.Lock()
        self._at: dict[bytes, int] = {}
        if path is None or not path.exists():
            return
        data = path.read_bytes()
        *lines, tail = data.split(b"\n")
        for number, line in enumerate(lines, start=1):
            own = _parse(line)
            if own is None:
                raise RankloomError(
                    f"line {number} of the tombstones is damaged",
                    place=str(path),
                    action="restore this file from its newest copy: without it, people who were forgotten could come back",
                    code="state-damaged",
                )
            self._at[own[0]] = own[1]
        if tail:
            with open(path, "r+b") as handle:
                handle.truncate(len(data) - len(tail))
                os.fsync(handle.fileno())

    def __contains__(self, person: bytes) -> bool:
        return person in self._at

    def items(self) -> list[tuple[bytes, int]]:
        """(pseudonym, microseconds) of everyone."""
        with self._lock:
            return list(self._at.items())

    def add(self, people: Iterable[tuple[bytes, int]]) -> None:
        """On disk when it returns.

        Raises:
            StateUnavailableError: the file cannot be written; nobody was added.
        """
        with self._lock:
            new = [(person, at) for person, at in people if self._at.get(person, -1) < at]
            if not new:
                return
            if self.path is not None:
                self._append(b"".join(_line(*own) for own in new))
            self._at.update(new)

    def _append(self, data: bytes) -> None:
        assert self.path is not None
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            fresh = not self.path.exists()
            descriptor = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
            try:
                before = os.fstat(descriptor).st_size
                try:
                    if os.write(descriptor, data) < len(data):
                        raise OSError(28, "the disk is full")
                    os.fsync(descriptor)
                except OSError:
                    os.ftruncate(descriptor, before)  # half a line must not stand before a whole one
                    raise
            finally:
                os.close(descriptor)
            if fresh:
                folder = os.open(self.path.parent, os.O_RDONLY)
                try:
                    os.fsync(folder)
                finally:
                    os.close(folder)
        except OSError as error:
            raise StateUnavailableError(error.strerror or str(error), place=str(self.path)) from error
