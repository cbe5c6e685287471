"""The event store: durable before it is acknowledged, idempotent by event id, in SQLite."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from rankloom.recommender import HistoryEvent


@dataclass(frozen=True)
class StoredEvent:
    """One event as it arrives."""

    event_id: str
    user_id: str
    item_id: str
    event: str
    timestamp: datetime
    watch_s: float | None = None
    surface: str = "feed"


class EventStore:
    """WAL with full synchronisation: what `append` returned for is on disk. One writer at a time; safe from threads."""

    def __init__(self, path: Path | None) -> None:
        self._lock = threading.Lock()
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
        self._db = sqlite3.connect(":memory:" if path is None else path, check_same_thread=False, isolation_level=None)
        self._db.execute("PRAGMA journal_mode=WAL")
        self._db.execute("PRAGMA synchronous=FULL")
        self._db.execute(
            "CREATE TABLE IF NOT EXISTS events (sequence INTEGER PRIMARY KEY, event_id TEXT UNIQUE NOT NULL, user_id TEXT NOT NULL,"
            " item_id TEXT NOT NULL, event TEXT NOT NULL, microseconds INTEGER NOT NULL, watch_s REAL, surface TEXT NOT NULL)"
        )
        self._db.execute("CREATE INDEX IF NOT EXISTS by_user ON events (user_id, microseconds)")
        self._db.execute("CREATE TABLE IF NOT EXISTS deleted_users (user_id TEXT PRIMARY KEY)")

    def append(self, events: Sequence[StoredEvent]) -> list[bool]:
        """Stores a batch in one transaction; per event whether it was new. Returns after the commit is on disk."""
        with self._lock:
            self._db.execute("BEGIN IMMEDIATE")
            try:
                new = []
                for e in events:
                    cursor = self._db.execute(
                        "INSERT OR IGNORE INTO events (event_id, user_id, item_id, event, microseconds, watch_s, surface) VALUES (?,?,?,?,?,?,?)",
                        (
                            e.event_id,
                            e.user_id,
                            e.item_id,
                            e.event,
                            int(e.timestamp.timestamp() * 1e6),
                            e.watch_s,
                            e.surface,
                        ),
                    )
                    new.append(cursor.rowcount == 1)
                self._db.execute("COMMIT")
            except BaseException:
                self._db.execute("ROLLBACK")
                raise
        return new

    def history(self, user_id: str, limit: int = 512) -> list[HistoryEvent]:
        """The person's stored events, oldest first."""
        with self._lock:
            rows = self._db.execute(
                "SELECT item_id, event, microseconds, watch_s, surface FROM events WHERE user_id = ? ORDER BY microseconds DESC, sequence DESC LIMIT ?",
                (user_id, limit),
            ).fetchall()
        return [HistoryEvent(i, e, datetime.fromtimestamp(t / 1e6, UTC), w, s) for i, e, t, w, s in reversed(rows)]

    def delete_user(self, user_id: str) -> int:
        """Forgets a person; remembers for good that the model's own copy of the history must not be used either: events
        that come later start a new history."""
        with self._lock:
            removed = self._db.execute("DELETE FROM events WHERE user_id = ?", (user_id,)).rowcount
            self._db.execute("INSERT OR IGNORE INTO deleted_users VALUES (?)", (user_id,))
        return int(removed)

    def is_deleted(self, user_id: str) -> bool:
        with self._lock:
            return self._db.execute("SELECT 1 FROM deleted_users WHERE user_id = ?", (user_id,)).fetchone() is not None

    def count(self) -> int:
        with self._lock:
            return int(self._db.execute("SELECT COUNT(*) FROM events").fetchone()[0])

    def close(self) -> None:
        with self._lock:
            self._db.close()
