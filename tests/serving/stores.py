"""What the tests of the state store share: events, and a real Valkey or Redis server where one is installed."""

from __future__ import annotations

import importlib.util
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import pytest

from rankloom.serving.state import StateStore, StoredEvent

BINARY = shutil.which("valkey-server") or shutil.which("redis-server")


def event(name: str, user: str = "u", item: str = "i", *, at: float = 1.7e9, kind: str = "click") -> StoredEvent:
    return StoredEvent(name, user, item, kind, datetime.fromtimestamp(at, UTC))


def history(store: StateStore, user: str) -> list[str]:
    return [e.item_id for e in store.people([user])[0].events]


def skip_without_valkey() -> None:
    if BINARY is None:
        pytest.skip("no valkey-server or redis-server on this machine")
    if importlib.util.find_spec("valkey") is None:
        pytest.skip("the package `valkey` is not installed")


@contextmanager
def valkey_server(folder: Path, *, fsync: str = "always", port: int | None = None) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """A server of its own on a free port, keeping its data in `folder`: (address, process)."""
    skip_without_valkey()
    assert BINARY is not None
    folder.mkdir(exist_ok=True)
    if port is None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
    command = [BINARY, "--port", str(port), "--bind", "127.0.0.1", "--dir", str(folder), "--appendonly", "yes",
               "--appendfsync", fsync, "--save", "", "--daemonize", "no"]  # fmt: skip
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 20
        while True:
            try:
                with socket.create_connection(("127.0.0.1", port), timeout=1) as asked:
                    asked.sendall(b"PING\r\n")
                    if asked.recv(100).startswith(b"+PONG"):  # it may still read its log
                        break
            except OSError:
                assert process.poll() is None, "the server ended"
            assert time.monotonic() < deadline
        yield f"valkey://127.0.0.1:{port}/0", process
    finally:
        process.kill()
        process.wait()
