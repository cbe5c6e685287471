"""The default state store: one SQLite file, WAL with full synchronisation, group commit.

Events that arrive while a transaction is being written to disk wait for the next one and share its flush; `append` returns
after it. On a machine whose flush takes 4 ms one caller gets 250 acknowledged events a second, 32 callers get 2,000 and a
batch of 500 gives 37,000 (LMDB in the same test: 125, 410 and 36,000, in a file twice the size; docs/experiments.md).
Reads go through a connection of their own and never wait for a writer.
"""

from __future__ import annotations

import json
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, TypeVar

from rankloom.errors import RankloomError
from rankloom.serving.crash_points import reach
from rankloom.serving.state import (
    HISTORY,
    Document,
    Person,
    StateUnavailableError,
    StoredEvent,
    id_digest,
    pseudonym,
    seen_with,
    to_json,
    tombstone_path,
)
from rankloom.serving.tombstones import Tombstones

T = TypeVar("T")
VERSION: Final = 2
_TABLES: Final = (
    "CREATE TABLE IF NOT EXISTS events (sequence INTEGER PRIMARY KEY, event_id TEXT UNIQUE NOT NULL, user_id TEXT NOT NULL,"
    " item_id TEXT NOT NULL, event TEXT NOT NULL, microseconds INTEGER NOT NULL, watch_s REAL, surface TEXT NOT NULL)",
    "CREATE INDEX IF NOT EXISTS by_user ON events (user_id, microseconds)",
    "CREATE TABLE IF NOT EXISTS retired_ids (digest BLOB PRIMARY KEY) WITHOUT ROWID",
    "CREATE TABLE IF NOT EXISTS tombstones (person BLOB PRIMARY KEY, at INTEGER NOT NULL) WITHOUT ROWID",
    "CREATE TABLE IF NOT EXISTS documents (kind TEXT NOT NULL, name TEXT NOT NULL, value TEXT, sequence INTEGER NOT NULL,"
    " PRIMARY KEY (kind, name)) WITHOUT ROWID",
    "CREATE INDEX IF NOT EXISTS by_sequence ON documents (kind, sequence)",
)
# columns that the first version did not have
_ADDED: Final = (
    "received INTEGER NOT NULL DEFAULT 0",
    "position INTEGER",
    "query TEXT",
    "request_id TEXT",
    "value REAL",
)
_INSERT: Final = (
    "INSERT OR IGNORE INTO events (event_id, user_id, item_id, event, microseconds, watch_s, surface, position, query,"
    " request_id, value, received) VALUES (?,?,?,?,?,?,?,?,?,?,?,?)"
)
_COLUMNS: Final = "event_id, user_id, item_id, event, microseconds, watch_s, surface, position, query, request_id, value"


class _Waiting:
    """A batch on its way into a transaction."""

    def __init__(self, events: Sequence[StoredEvent]) -> None:
        self.events = events
        self.new: list[bool] | None = None
        self.error: Exception | None = None


def _microseconds(when: datetime) -> int:
    return round(when.timestamp() * 1e6)


class SqliteStore:
    """A `StateStore` in one file; `path` None keeps it in memory.

    Raises:
        RankloomError: the file is damaged, no state of ours, or of a newer version.
    """

    shared = False

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self.tombstones = Tombstones(tombstone_path(path))
        self._write_lock = threading.Lock()
        self._queue_lock = threading.Lock()
        self._queue: list[_Waiting] = []
        try:
            if path is not None:
                path.parent.mkdir(parents=True, exist_ok=True)
            self._db = self._connect()
            self._prepare()
            self._reader = self._db if path is None else self._connect()
        except (sqlite3.Error, OSError) as error:
            raise RankloomError(
                f"the state file cannot be opened: {error}",
                place=str(path),
                action="check the path, its permissions and the disk; a damaged file is restored from a backup",
                code="state-damaged",
            ) from error
        self._read_lock = self._write_lock if path is None else threading.Lock()

    def _connect(self) -> sqlite3.Connection:
        own = sqlite3.connect(
            ":memory:" if self.path is None else self.path, check_same_thread=False, isolation_level=None, timeout=10
        )
        own.execute("PRAGMA journal_mode=WAL")
        own.execute("PRAGMA synchronous=FULL")
        own.execute("PRAGMA secure_delete=ON")  # what is forgotten leaves no bytes behind
        return own

    def _prepare(self) -> None:
        reach("open-before-schema")
        version = int(self._db.execute("PRAGMA user_version").fetchone()[0])
        if version > VERSION:
            raise RankloomError(
                f"the state file has format {version}, this version reads up to {VERSION}",
                place=str(self.path),
                action="use the Rankloom version that wrote it",
                code="state-version",
            )
        with self._transaction():
            for statement in _TABLES:
                self._db.execute(statement)
            have = {row[1] for row in self._db.execute("PRAGMA table_info(events)")}
            for column in _ADDED:
                if column.partition(" ")[0] not in have:
                    self._db.execute(f"ALTER TABLE events ADD COLUMN {column}")
            self._db.execute(f"PRAGMA user_version = {VERSION}")
        if self._db.execute("SELECT 1 FROM sqlite_master WHERE name = 'deleted_users'").fetchone():
            now = time.time_ns() // 1000
            self.tombstones.add((pseudonym(user), now) for (user,) in self._db.execute("SELECT * FROM deleted_users"))
            self._db.execute("DROP TABLE deleted_users")
        self._forget_again()

    def _forget_again(self) -> None:
        """Makes the file and its tombstones agree: after a crash in a deletion, and after an older backup came back."""
        known = dict(self._db.execute("SELECT person, at FROM tombstones"))
        self.tombstones.add(known.items())
        missing = {person: at for person, at in self.tombstones.items() if known.get(person, -1) < at}
        if not missing:
            return
        reach("open-before-forgetting-again")
        with self._transaction():
            for (user,) in self._db.execute("SELECT DISTINCT user_id FROM events").fetchall():
                at = missing.get(pseudonym(user))
                if at is not None:
                    self._remove(user, at)
            self._db.executemany("INSERT OR REPLACE INTO tombstones VALUES (?,?)", missing.items())
        self._scrub()

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield
            self._db.execute("COMMIT")
        except BaseException:
            with suppress(sqlite3.Error):
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
            raise

    # -- events ----------------------------------------------------------------------------------------------------

    def append(self, events: Sequence[StoredEvent]) -> list[bool]:
        """See `StateStore`."""
        own = _Waiting(events)
        with self._queue_lock:
            self._queue.append(own)
        with self._write_lock:
            # whoever comes first takes all that wait; the others find theirs done
            if own.new is None and own.error is None:
                with self._queue_lock:
                    group, self._queue = self._queue, []
                self._commit(group)
        if own.error is not None:
            raise own.error
        assert own.new is not None
        reach("append-before-acknowledgement")
        return own.new

    def _commit(self, group: list[_Waiting]) -> None:
        try:
            reach("append-before-begin")
            with self._transaction():
                results = [[self._insert(e) for e in own.events] for own in group]
                reach("append-before-commit")
            reach("append-after-commit")
        except Exception as error:
            down = isinstance(error, sqlite3.DatabaseError)
            if len(group) > 1 and not down:
                for own in group:  # one of them cannot be stored: the others must not suffer
                    self._commit([own])
                return
            for own in group:
                own.error = self._unavailable(error) if down else error
            return
        for own, new in zip(group, results, strict=True):
            own.new = new

    def _insert(self, e: StoredEvent) -> bool:
        if self._db.execute("SELECT 1 FROM retired_ids WHERE digest = ?", (id_digest(e.event_id),)).fetchone():
            return False
        row = (
            e.event_id, e.user_id, e.item_id, e.event, _microseconds(e.timestamp), e.watch_s, e.surface, e.position, e.query,
            e.request_id, e.value, time.time_ns() // 1000,
        )  # fmt: skip
        new = self._db.execute(_INSERT, row).rowcount == 1
        reach("append-between-inserts")
        return new

    def people(self, user_ids: Sequence[str]) -> list[Person]:
        """See `StateStore`."""
        return self._read(lambda: [self._person(user) for user in user_ids])

    def _person(self, user_id: str) -> Person:
        deleted = pseudonym(user_id) in self.tombstones
        rows = self._reader.execute(
            f"SELECT {_COLUMNS} FROM events WHERE user_id = ? ORDER BY microseconds DESC, sequence DESC LIMIT {HISTORY + 1}",
            (user_id,),
        ).fetchall()
        older: list[str] = []
        if len(rows) > HISTORY:
            rows.pop()
            older = [
                item for (item,) in self._reader.execute("SELECT DISTINCT item_id FROM events WHERE user_id = ?", (user_id,))
            ]  # fmt: skip
        events = tuple(
            StoredEvent(i, u, item, kind, datetime.fromtimestamp(at / 1e6, UTC), *rest)
            for i, u, item, kind, at, *rest in reversed(rows)
        )
        return Person(events, seen_with(events, older), deleted)

    def delete_user(self, user_id: str) -> int:
        """See `StateStore`. A repetition finishes what failed half way."""
        person = pseudonym(user_id)
        latest = self._read(
            lambda: self._reader.execute("SELECT MAX(received) FROM events WHERE user_id = ?", (user_id,)).fetchone()[0]
        )
        now = max(time.time_ns() // 1000, latest or 0)  # clocks are sometimes set back
        reach("delete-before-tombstone")
        self.tombstones.add([(person, now)])
        reach("delete-after-tombstone")
        with self._writing():
            with self._transaction():
                removed = self._remove(user_id, now)
                self._db.execute("INSERT OR REPLACE INTO tombstones VALUES (?,?)", (person, now))
            reach("delete-after-commit")
            self._scrub()
        return removed

    def _remove(self, user_id: str, at: int) -> int:
        """Within a transaction: the person's events up to `at` go, the digests of their ids stay."""
        own = "user_id = ? AND received <= ?"
        rows = self._db.execute(f"SELECT event_id FROM events WHERE {own}", (user_id, at)).fetchall()
        self._db.executemany("INSERT OR IGNORE INTO retired_ids VALUES (?)", ((id_digest(i),) for (i,) in rows))
        self._db.execute(f"DELETE FROM events WHERE {own}", (user_id, at))
        return len(rows)

    def _scrub(self) -> None:
        """Writes the log of changes back, so that no old page of it shows what was removed."""
        with suppress(sqlite3.OperationalError):  # a reader is in the way: the next checkpoint does it
            self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)")

    def count(self) -> int:
        """See `StateStore`."""
        return self._read(lambda: int(self._reader.execute("SELECT COUNT(*) FROM events").fetchone()[0]))

    # -- documents -------------------------------------------------------------------------------------------------

    def put_documents(self, kind: str, values: Mapping[str, Any]) -> int:
        """See `StateStore`."""
        with self._writing(), self._transaction():
            last = int(self._db.execute("SELECT COALESCE(MAX(sequence), 0) FROM documents").fetchone()[0])
            rows = [
                (kind, name, None if value is None else to_json(value), last + place)
                for place, (name, value) in enumerate(values.items(), start=1)
            ]
            self._db.executemany("INSERT OR REPLACE INTO documents VALUES (?,?,?,?)", rows)
            reach("documents-before-commit")
        reach("documents-after-commit")
        return last + len(rows)

    def documents(self, kind: str, *, after: int = 0) -> list[Document]:
        """See `StateStore`."""
        rows = self._read(
            lambda: self._reader.execute(
                "SELECT name, value, sequence FROM documents WHERE kind = ? AND sequence > ? ORDER BY sequence", (kind, after)
            ).fetchall()
        )  # fmt: skip
        return [Document(name, None if value is None else json.loads(value), at) for name, value, at in rows]

    # -- the edges -------------------------------------------------------------------------------------------------

    def _read(self, what: Callable[[], T]) -> T:
        try:
            with self._read_lock:
                return what()
        except sqlite3.DatabaseError as error:
            raise self._unavailable(error) from error

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            with self._write_lock:
                yield
        except sqlite3.DatabaseError as error:
            raise self._unavailable(error) from error

    def _unavailable(self, error: Exception) -> StateUnavailableError:
        return StateUnavailableError(str(error), place=str(self.path or "memory"))

    def close(self) -> None:
        """See `StateStore`."""
        with self._write_lock:
            if self._reader is not self._db:
                self._reader.close()
            self._db.close()
