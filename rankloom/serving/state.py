"""What the server remembers beside the model: events, people who are forgotten, live items, settings.

`StateStore` is the small protocol that the server asks for. `sqlite_store.py` is the default, one file on the server's
disk; `valkey_store.py` is for several servers that share one state. Both promise the same:

- `append` returns when the events are durable. A repeated `event_id` counts once, also after the events are gone.
- What `append` acknowledged is in the next `person`.
- `delete_user` removes a person's events; a tombstone outside the store keeps them removed after a restore of a backup.
- Documents (live items, scenarios) keep the order of their changes, so that a reader takes up where it was.

Nothing here imports the model, so that a tool that only writes events starts at once.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from hashlib import sha256
from pathlib import Path
from typing import Any, Final, Protocol

from rankloom.errors import RankloomError

HISTORY: Final = 512  # the latest events of a person that a request reads


@dataclass(frozen=True, slots=True)
class StoredEvent:
    """One event as it arrives. The optional fields are those of the shop's `events.parquet`."""

    event_id: str
    user_id: str
    item_id: str
    event: str
    timestamp: datetime
    watch_s: float | None = None
    surface: str = "feed"
    position: int | None = None
    query: str | None = None
    request_id: str | None = None
    value: float | None = None


@dataclass(frozen=True, slots=True)
class Person:
    """What the store knows of someone.

    Attributes:
        events: the latest `HISTORY`, oldest first.
        seen: every item of all their events, also of those no longer among `events`.
        deleted: asked to be forgotten at some time: no other copy of their history may be used.
    """

    events: tuple[StoredEvent, ...] = ()
    seen: frozenset[str] = frozenset()
    deleted: bool = False


@dataclass(frozen=True, slots=True)
class Document:
    """A named JSON value of a kind, None where it was removed; `sequence` orders all changes of a store."""

    name: str
    value: Any
    sequence: int


class StateStore(Protocol):
    """See the module's docstring. Safe from threads. Every method may raise `StateUnavailableError`."""

    @property
    def shared(self) -> bool:
        """Whether other servers write to it too."""
        ...

    def append(self, events: Sequence[StoredEvent]) -> list[bool]:
        """Stores a batch whole or not at all; per event whether it was new."""
        ...

    def people(self, user_ids: Sequence[str]) -> list[Person]:
        """What is known of each."""
        ...

    def delete_user(self, user_id: str) -> int:
        """Forgets a person; how many events that removed."""
        ...

    def put_documents(self, kind: str, values: Mapping[str, Any]) -> int:
        """Writes (None: removes) documents together; the sequence of the last."""
        ...

    def documents(self, kind: str, *, after: int = 0) -> list[Document]:
        """Those changed after a sequence, in the order of their last change."""
        ...

    def count(self) -> int:
        """Events in the store."""
        ...

    def close(self) -> None:
        """Frees what it holds; it is not used afterwards."""
        ...


class StateUnavailableError(RankloomError):
    """The store cannot be read or written now; nothing was acknowledged, and trying again later is safe."""

    def __init__(self, fact: str, *, place: str) -> None:
        super().__init__(
            f"the state store cannot be used: {fact}",
            place=place,
            action="send it again; the operator finds the cause (disk, network) under `where`",
            code="state-unavailable",
        )


def pseudonym(user_id: str) -> bytes:
    """What stands for a person who is forgotten: enough to recognise the id when it comes back, not the id."""
    return sha256(b"rankloom user\0" + user_id.encode("utf-8", "surrogatepass")).digest()[:16]


def id_digest(event_id: str) -> bytes:
    """What stands for the `event_id` of an event that is gone, so that a late retry does not bring it back."""
    return sha256(b"rankloom event\0" + event_id.encode("utf-8", "surrogatepass")).digest()[:16]


def seen_with(events: Sequence[StoredEvent], others: Sequence[str] = ()) -> frozenset[str]:
    return frozenset(e.item_id for e in events).union(others)


def to_json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def open_store(where: str | Path | None) -> StateStore:
    """The store of an address: None (memory), a path (SQLite), or `valkey://` / `redis://HOST:PORT/N`.

    Raises:
        RankloomError: a damaged or foreign file, no permission, or a server that is not there or not durable.
    """
    text = str(where) if where is not None else ""
    if text.partition("://")[0] in ("valkey", "valkeys", "redis", "rediss"):
        from rankloom.serving.valkey_store import ValkeyStore

        return ValkeyStore(text)
    from rankloom.serving.sqlite_store import SqliteStore

    return SqliteStore(None if where is None else Path(where))


def tombstone_path(where: str | Path | None) -> Path | None:
    """Where the tombstones of a store lie: beside the file, or in the working folder for a shared one."""
    if where is None:
        return None
    text = str(where)
    if "://" in text:
        with suppress(ValueError):
            text = text.partition("://")[2].rpartition("@")[2]
        return Path("".join(c if c.isalnum() or c in ".-" else "_" for c in text) + ".tombstones")
    return Path(text + ".tombstones")
