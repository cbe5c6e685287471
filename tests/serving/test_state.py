"""The state store's promises, the same for SQLite and for a real Valkey server."""

from __future__ import annotations

import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, rule

from rankloom.errors import RankloomError
from rankloom.serving.crash_points import NAMES
from rankloom.serving.sqlite_store import SqliteStore
from rankloom.serving.state import HISTORY, StateStore, StateUnavailableError, open_store, tombstone_path
from tests.serving.stores import event, history, skip_without_valkey, valkey_server


@pytest.fixture(scope="module")
def valkey(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with valkey_server(tmp_path_factory.mktemp("valkey")) as (address, _):
        yield address


@pytest.fixture(params=["memory", "sqlite", "valkey"])
def store(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[StateStore]:
    monkeypatch.chdir(tmp_path)
    where: str | Path | None = None
    if request.param == "sqlite":
        where = tmp_path / "events.sqlite"
    elif request.param == "valkey":
        skip_without_valkey()
        import valkey as client

        where = request.getfixturevalue("valkey")
        client.Valkey.from_url(str(where)).flushall()
    own = open_store(where)
    yield own
    own.close()


def test_an_event_counts_once_however_often_it_is_sent(store: StateStore) -> None:
    assert store.append([event("a"), event("b"), event("a")]) == [True, True, False]
    assert store.append([event("a", item="other")]) == [False]
    assert history(store, "u") == ["i", "i"]
    assert store.count() == 2
    assert store.append([]) == []


def test_events_come_back_in_the_order_of_their_times_and_whole(store: StateStore) -> None:
    late, early = event("late", item="2", at=2e9 - 1), event("early", item="1", at=1e9)
    same = [event(f"s{n}", item=f"s{n}", at=1.5e9) for n in range(20)]
    store.append([late, *same, early])
    assert history(store, "u") == ["1", *(f"s{n}" for n in range(20)), "2"]
    assert store.people(["u"])[0].events[-1] == late
    assert store.people(["nobody", "u"])[0].events == ()


def test_everything_ever_seen_is_known_although_the_history_is_cut(store: StateStore) -> None:
    store.append([event(f"e{n}", item=f"i{n}", at=1e9 + n) for n in range(HISTORY + 30)])
    person = store.people(["u"])[0]
    assert len(person.events) == HISTORY
    assert person.events[-1].item_id == f"i{HISTORY + 29}"
    assert person.seen == {f"i{n}" for n in range(HISTORY + 30)}


def test_a_forgotten_person_is_gone_and_late_retries_do_not_bring_them_back(store: StateStore) -> None:
    store.append([event("a"), event("b"), event("c", user="other")])
    assert store.delete_user("u") == 2
    assert store.delete_user("u") == 0
    assert store.append([event("a")]) == [False]
    person = store.people(["u"])[0]
    assert (person.events, person.deleted) == ((), True)
    assert (history(store, "other"), store.count()) == (["i"], 1)
    assert store.append([event("new", item="j")]) == [True]
    assert history(store, "u") == ["j"]
    assert store.people(["u"])[0].deleted


def test_documents_keep_the_order_of_their_changes(store: StateStore) -> None:
    first = store.put_documents("item", {"a": {"price": 1}, "b": {"标题": "茶"}})
    store.put_documents("scenario", {"home": {}})
    assert [d.name for d in store.documents("item")] == ["a", "b"]
    last = store.put_documents("item", {"a": None})
    assert last > first
    assert [(d.name, d.value) for d in store.documents("item")] == [("b", {"标题": "茶"}), ("a", None)]
    assert [(d.name, d.value, d.sequence) for d in store.documents("item", after=first)] == [("a", None, last)]


def test_many_writers_lose_nothing_and_count_nothing_twice(store: StateStore) -> None:
    accepted: list[bool] = []

    def write(k: int) -> None:
        for n in range(30):
            accepted.extend(store.append([event(f"own{k}-{n}", user=f"u{k}"), event(f"shared{n}", user="all")]))

    threads = [threading.Thread(target=write, args=(k,)) for k in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(accepted) == 8 * 30 + 30 == store.count()
    assert len(history(store, "all")) == 30


@pytest.mark.parametrize("store", ["sqlite", "valkey"], indirect=True)
def test_a_restored_backup_does_not_bring_a_person_back(store: StateStore, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    store.append([event("a", user="ada"), event("b", user="bob")])
    if isinstance(store, SqliteStore):
        where: str | Path = tmp_path / "events.sqlite"
        with sqlite3.connect(where) as source, sqlite3.connect(tmp_path / "backup") as copy:
            source.backup(copy)
        store.delete_user("ada")
        store.close()
        for suffix in ("-wal", "-shm"):
            Path(f"{where}{suffix}").unlink(missing_ok=True)
        shutil.copy(tmp_path / "backup", where)
    else:
        import valkey as client

        where = request.getfixturevalue("valkey")
        raw = client.Valkey.from_url(where)
        dump = {key: raw.dump(key) for key in raw.keys()}  # noqa: SIM118 (a command of the server)
        store.delete_user("ada")
        raw.flushall()
        for key, value in dump.items():
            raw.restore(key, 0, value)
    restored = open_store(where)
    assert history(restored, "ada") == []
    assert restored.people(["ada"])[0].deleted
    assert history(restored, "bob") == ["i"]
    assert restored.append([event("a", user="ada")]) == [False]
    restored.close()


def test_a_forgotten_person_leaves_no_bytes(tmp_path: Path) -> None:
    path = tmp_path / "events.sqlite"
    store = SqliteStore(path)
    store.append([event(f"e{n}-of-zaphod", user="zaphod-beeblebrox", item=f"i{n}") for n in range(50)])
    store.append([event("x", user="trillian")])
    store.delete_user("zaphod-beeblebrox")
    files = [file for file in tmp_path.iterdir() if file.is_file()]
    assert tombstone_path(path) in files
    assert not [file.name for file in files if b"zaphod" in file.read_bytes()]
    assert any(b"trillian" in file.read_bytes() for file in files)
    store.close()


def test_the_first_format_is_read_and_its_forgotten_people_stay_forgotten(tmp_path: Path) -> None:
    path = tmp_path / "events.sqlite"
    with sqlite3.connect(path) as old:
        old.execute(
            "CREATE TABLE events (sequence INTEGER PRIMARY KEY, event_id TEXT UNIQUE NOT NULL, user_id TEXT NOT NULL,"
            " item_id TEXT NOT NULL, event TEXT NOT NULL, microseconds INTEGER NOT NULL, watch_s REAL, surface TEXT NOT NULL)"
        )
        old.execute("CREATE TABLE deleted_users (user_id TEXT PRIMARY KEY)")
        old.execute("INSERT INTO events VALUES (1, 'e', 'u', 'i', 'click', 5, 2.5, 'feed')")
        old.execute("INSERT INTO deleted_users VALUES ('gone')")
    for _ in range(2):
        store = SqliteStore(path)
        assert history(store, "u") == ["i"]
        assert store.people(["gone"])[0].deleted
        assert store.append([event("e")]) == [False]
        store.close()


@pytest.mark.parametrize("content", [b"not a database, not at all, but a long text" * 50, b"\0" * 5000])
def test_a_file_that_is_no_state_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "s").write_bytes(content)
    with pytest.raises(RankloomError) as told:
        SqliteStore(tmp_path / "s")
    assert told.value.code == "state-damaged"
    assert (tmp_path / "s").read_bytes() == content


def test_a_newer_format_and_damaged_tombstones_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "s"
    store = SqliteStore(path)
    store.delete_user("a")
    store.delete_user("b")
    store.close()
    own = tombstone_path(path)
    assert own is not None
    data = own.read_bytes()
    own.write_bytes(data[:20] + b"f" + data[21:] if data[20:21] != b"f" else data[:20] + b"0" + data[21:])
    with pytest.raises(RankloomError, match="line 1 of the tombstones is damaged"):
        SqliteStore(path)
    own.write_bytes(data + b"forgotten 12")  # a torn last line
    SqliteStore(path).close()
    assert own.read_bytes() == data
    own.unlink()  # lost: the store still knows
    SqliteStore(path).close()
    assert sorted(own.read_bytes().splitlines()) == sorted(data.splitlines())
    with sqlite3.connect(path) as db:
        db.execute("PRAGMA user_version = 99")
    with pytest.raises(RankloomError, match="format 99"):
        SqliteStore(path)


def test_a_full_disk_refuses_writes_keeps_reads_and_heals(tmp_path: Path) -> None:
    path = tmp_path / "s"
    store = SqliteStore(path)
    store.append([event("a")])
    pages = store._db.execute("PRAGMA page_count").fetchone()[0]
    store._db.execute(f"PRAGMA max_page_count = {pages}")
    full = [event(f"b{n}", item="x" * 200) for n in range(500)]
    for _ in range(3):
        with pytest.raises(StateUnavailableError) as told:
            store.append(full)
        assert told.value.code == "state-unavailable"
        assert history(store, "u") == ["i"]
    with pytest.raises(StateUnavailableError):
        store.put_documents("item", {f"i{n}": "x" * 500 for n in range(300)})
    store._db.execute("PRAGMA max_page_count = 100000000")
    assert store.append(full) == [True] * 500
    store.close()


def test_a_shared_state_must_be_durable_or_said_not_to_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with valkey_server(tmp_path / "data", fsync="everysec") as (address, process):
        with pytest.raises(RankloomError, match="does not write every command"):
            open_store(address)
        store = open_store(address + "?durable=no")
        store.append([event("a")])
        process.kill()
        process.wait()
        with pytest.raises(StateUnavailableError):
            store.people(["u"])
    with pytest.raises(StateUnavailableError):
        open_store(address)


def test_what_valkey_acknowledged_survives_its_kill(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with valkey_server(tmp_path / "data") as (address, process):
        open_store(address).append([event(f"e{n}", item=f"i{n}", at=1e9 + n) for n in range(20)])
        process.kill()
        process.wait()
    port = int(address.rpartition(":")[2].partition("/")[0])
    with valkey_server(tmp_path / "data", port=port) as (again, _):
        store = open_store(again)
        assert history(store, "u") == [f"i{n}" for n in range(20)]
        assert store.append([event("e3")]) == [False]


def test_without_the_extra_the_address_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "valkey", None)
    with pytest.raises(RankloomError, match="needs the package"):
        open_store("redis://127.0.0.1:1/0")


_CHILD = """
import sys
from pathlib import Path
from tests.serving.stores import event
from rankloom.serving.sqlite_store import SqliteStore
store = SqliteStore(Path(sys.argv[1]))
for n in range(int(sys.argv[2]), 1000):
    store.append([event(f"e{n}a", item=f"i{n}a", at=1e9 + n), event(f"e{n}b", item=f"i{n}b", at=1e9 + n)])
    print("e", n, flush=True)
    if n % 3 == 0:
        store.put_documents("item", {"x": n})
        print("d", n, flush=True)
    if n % 5 == 0:
        store.append([event(f"v{n}", user=f"victim{n}")])
        store.delete_user(f"victim{n}")
        print("f", n, flush=True)
"""


@pytest.mark.parametrize("point", NAMES)
def test_at_no_named_point_does_a_kill_lose_what_was_acknowledged(tmp_path: Path, point: str) -> None:
    path = tmp_path / "s"
    if point == "open-before-forgetting-again":
        store = SqliteStore(path)
        store.append([event("v", user="victim")])
        store.tombstones.add([(b"\1" * 16, 2**60)])
        store.close()
    run: Callable[[str], subprocess.CompletedProcess[str]] = lambda at: subprocess.run(  # noqa: E731
        [sys.executable, "-c", _CHILD, str(path), "0"], capture_output=True, text=True, timeout=60,
        env={**os.environ, "RANKLOOM_CRASH_AT": f"{point}:{at}"}, check=False,
    )  # fmt: skip
    done = run("1" if point.startswith("open") else "3")
    assert done.returncode == -signal.SIGKILL, done.stderr
    said = [line.split() for line in done.stdout.splitlines()]
    store = SqliteStore(path)
    kept = history(store, "u")
    assert kept == sorted(set(kept), key=kept.index)
    told = [int(n) for kind, n in said if kind == "e"]
    assert kept[: 2 * len(told)] == [f"i{n}{half}" for n in told for half in "ab"]
    assert len(kept) in (2 * len(told), 2 * len(told) + 2)  # a batch is there whole or not at all
    for kind, n in said:
        if kind == "d":
            assert store.documents("item")[0].value >= int(n)
        elif kind == "f":
            assert store.people([f"victim{n}"])[0].deleted
            assert history(store, f"victim{n}") == []
    store.close()
    store = SqliteStore(path)  # a second start changes nothing
    assert history(store, "u") == kept
    store.close()


class StoreMachine(RuleBasedStateMachine):
    """Any order of calls and restarts leaves what an obvious store in memory would hold."""

    names = Bundle("names")

    def __init__(self) -> None:
        super().__init__()
        import tempfile

        self.folder = tempfile.TemporaryDirectory()
        self.path = Path(self.folder.name) / "s"
        self.store = SqliteStore(self.path)
        self.known: set[str] = set()
        self.model: dict[str, list[tuple[float, str]]] = {}
        self.deleted: set[str] = set()
        self.documents: dict[str, int | None] = {}

    users = st.sampled_from(["u", "v", "用户", ""])

    @rule(name=st.integers(0, 30), user=users, item=st.sampled_from("abc"), at=st.integers(0, 5))
    def append(self, name: int, user: str, item: str, at: int) -> None:
        new = f"e{name}" not in self.known
        assert self.store.append([event(f"e{name}", user, item, at=1e9 + at)]) == [new]
        if new:
            self.known.add(f"e{name}")
            self.model.setdefault(user, []).append((1e9 + at, item))

    @rule(user=users)
    def forget(self, user: str) -> None:
        assert self.store.delete_user(user) == len(self.model.pop(user, []))
        self.deleted.add(user)

    @rule(name=st.sampled_from("xyz"), value=st.none() | st.integers())
    def document(self, name: str, value: int | None) -> None:
        self.store.put_documents("item", {name: value})
        self.documents.pop(name, None)
        self.documents[name] = value

    @rule()
    def restart(self) -> None:
        self.store.close()
        self.store = SqliteStore(self.path)

    @invariant()
    def agrees(self) -> None:
        for user in ("u", "v", "用户", ""):
            person = self.store.people([user])[0]
            expected = sorted(self.model.get(user, []), key=lambda own: own[0])
            assert [e.item_id for e in person.events] == [item for _, item in expected]
            assert person.deleted == (user in self.deleted)
        assert [(d.name, d.value) for d in self.store.documents("item")] == list(self.documents.items())
        assert self.store.count() == sum(map(len, self.model.values()))

    def teardown(self) -> None:
        self.store.close()
        self.folder.cleanup()


TestStoreMachine = StoreMachine.TestCase
TestStoreMachine.settings = settings(max_examples=15, stateful_step_count=15, deadline=None)
