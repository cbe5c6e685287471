"""Requests and replies between the two processes of a server, whole, over one socket pair.

A message is four numbers, a JSON head and a body: number of the request, kind, length of the head, length of the body.
"""

from __future__ import annotations

import asyncio
import json
import socket
import struct
from typing import Any, Final

_HEAD: Final = struct.Struct(">QBII")
ASK: Final = 0
ANSWER: Final = 1
GROUP: Final = 2  # so many ASKs follow (the number), to be answered together
READY: Final = 3
FAILED: Final = 4


class Channel:
    """One end. `send` never waits; `receive` gives (number, kind, head, body), None after the other end has closed."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    @classmethod
    async def open(cls, end: socket.socket) -> Channel:
        return cls(*await asyncio.open_connection(sock=end, limit=1 << 22))

    def send(self, number: int, kind: int, head: Any, body: bytes = b"") -> None:
        data = json.dumps(head).encode()
        self._writer.write(_HEAD.pack(number, kind, len(data), len(body)) + data + body)

    async def receive(self) -> tuple[int, int, Any, bytes] | None:
        try:
            number, kind, head, body = _HEAD.unpack(await self._reader.readexactly(_HEAD.size))
            data = await self._reader.readexactly(head + body)
        except (asyncio.IncompleteReadError, OSError):
            return None
        return number, kind, json.loads(data[:head]), data[head:]

    async def flush(self) -> None:
        """Until all is on its way."""
        await self._writer.drain()

    def close(self) -> None:
        self._writer.close()
