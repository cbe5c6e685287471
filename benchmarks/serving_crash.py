"""Does a `kill -9` at any moment lose an acknowledged event, count one twice, or bring a forgotten person back?

    python benchmarks/serving_crash.py [--quick] [--json OUT]

Two kinds of victims, each restarted on what it left, over and over on the same state:

- `writer`: a process that only writes to the store, from four threads: batches of events, retries of old ones, live items,
  people who come and are forgotten. Killed at random moments and at each of the 12 named points (`crash_points.py`).
- `server`: the real `rankloom serve` under load over HTTP; the process that speaks HTTP and the one with the model are
  killed in turn. The time until it is ready again is measured.

This process keeps its own list of what was acknowledged; after each kill it compares it with the file.
"""

from __future__ import annotations

import os
import random
import signal
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from http.client import HTTPException
from pathlib import Path

from _common import ROOT, Benchmark
from _report import publish
from _serving import LiveServer, small_models

sys.path.insert(0, str(ROOT))
from rankloom.serving.crash_points import NAMES
from rankloom.serving.sqlite_store import SqliteStore
from rankloom.serving.state import pseudonym

WRITER = """
import random, sys, threading
from datetime import UTC, datetime
from pathlib import Path
from rankloom.serving.sqlite_store import SqliteStore
from rankloom.serving.state import StoredEvent
path, run = Path(sys.argv[1]), sys.argv[2]
store = SqliteStore(path)
lock = threading.Lock()
def say(*words):
    with lock:
        print(*words, flush=True)
def event(name, user):
    return StoredEvent(name, user, "i", "click", datetime.fromtimestamp(1e9, UTC))
def write(k):
    rng = random.Random(f"{run}-{k}")
    for n in range(100000):
        names = [f"{run}-{k}-{n}-{j}" for j in range(rng.choice((1, 1, 3, 20)))]
        retried = [f"{run}-{k}-{max(0, n - 1)}-0"]
        store.append([event(name, f"u{rng.randrange(50)}") for name in names] + [event(r, "u0") for r in retried])
        say("e", *names)
        if n % 4 == k:
            # grows from life to life: what a later life wrote without acknowledging it is not a loss
            store.put_documents("item", {f"item{k}": 100000 * int(run[1:]) + n})
            say("d", k, 100000 * int(run[1:]) + n)
        if n % 7 == k:
            victim = f"victim-{run}-{k}-{n}"
            store.append([event(f"{victim}-0", victim), event(f"{victim}-1", victim)])
            store.delete_user(victim)
            say("f", victim)
say("r")
threads = [threading.Thread(target=write, args=(k,), daemon=True) for k in range(4)]
for thread in threads: thread.start()
for thread in threads: thread.join()
"""


class Books:
    """What was acknowledged, and what of it the file does not hold or holds twice."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.events: set[str] = set()
        self.forgotten: set[str] = set()
        self.documents: dict[str, int] = {}
        self.lost: set[str] = set()
        self.twice = self.back = self.unfinished = 0

    def compare(self) -> None:
        """Opens the store as a restart does, then reads the file itself."""
        store = SqliteStore(self.path)
        kept = {d.name: d.value for d in store.documents("item")}
        for victim in self.forgotten:
            self.back += pseudonym(victim) not in store.tombstones
        store.close()
        with sqlite3.connect(self.path) as db:
            counts = Counter(name for (name,) in db.execute("SELECT event_id FROM events"))
            users = {user for (user,) in db.execute("SELECT DISTINCT user_id FROM events")}
            whole = db.execute("PRAGMA integrity_check").fetchone()[0]
        self.lost |= self.events - counts.keys()
        self.twice += sum(n - 1 for n in counts.values())
        self.back += len(self.forgotten & users)
        self.lost |= {f"{name} = {n}" for name, n in self.documents.items() if kept.get(name, -1) < n}
        self.unfinished += whole != "ok"

    def read(self, lines: list[str]) -> None:
        """Acknowledgements of a writer, as it printed them; half a line was not."""
        for line in lines:
            kind, *words = line.split()
            if kind == "e":
                self.events.update(words)
            elif kind == "d":
                self.documents[f"item{words[0]}"] = int(words[1])
            elif kind == "f":
                self.forgotten.update(words)


def kill_writer(books: Books, run: int, *, point: str | None, delay: float) -> float:
    """One life of a writer; the seconds from its start to its first write."""
    environment = {**os.environ, "RANKLOOM_CRASH_AT": point or ""}
    began = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(books.path), f"r{run}"], cwd=ROOT, env=environment, stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    ready = process.stdout.readline()
    seconds = time.perf_counter() - began
    if point is None:
        time.sleep(delay)
        process.kill()
    timer = threading.Timer(20, process.kill)
    timer.start()
    told = process.stdout.read().decode()
    process.wait()
    timer.cancel()
    if process.returncode != -signal.SIGKILL:
        raise RuntimeError(f"the writer ended with {process.returncode}")
    books.read([line for line in told.splitlines(keepends=True) if line.endswith("\n")])
    books.compare()
    return seconds if ready else 0.0


def kill_server(books: Books, server: LiveServer, run: int, *, front: bool, delay: float) -> float:
    """One life of a server under load; the seconds until it was ready."""
    seconds = server.start()
    processes = server.processes()
    lock = threading.Lock()
    item = server.ask("POST", "/v1/recommend", {"k": 1})[1]["items"][0]["item_id"]

    def load(k: int) -> None:
        for n in range(100000):
            names = [f"s{run}-{k}-{n}-{j}" for j in range(1 + n % 5)]
            body = {"events": [{"event_id": name, "user_id": f"u{k}", "item_id": item, "event": "click"} for name in names]}
            try:
                status, reply = server.ask("POST", "/v1/events", body, timeout_s=10)
            except (OSError, ValueError, HTTPException):
                return
            if status == 200 and reply["accepted"] + reply["duplicate"] == len(names):
                with lock:
                    books.events.update(names)

    threads = [threading.Thread(target=load, args=(k,)) for k in range(6)]
    for thread in threads:
        thread.start()
    time.sleep(delay)
    os.kill(processes[0 if front else 1], signal.SIGKILL)
    assert server.process is not None
    server.process.wait(60)
    for thread in threads:
        thread.join()
    for own in processes:  # the other one does not outlive it
        deadline = time.monotonic() + 30
        while Path(f"/proc/{own}").exists() and time.monotonic() < deadline:
            time.sleep(0.01)
    books.compare()
    return seconds


def main() -> int:
    bench = Benchmark.from_args("serving_crash", __doc__)
    rng = random.Random(bench.seeds[0])
    each, at_random, of_server = (1, 14, 2) if bench.quick else (6, 100, 28)
    (model,) = small_models(1)
    restarts: list[float] = []
    places: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as folder:
        books = Books(Path(folder) / "state.sqlite")
        plan: list[str | None] = [name for name in NAMES for _ in range(each)] + [None] * at_random
        rng.shuffle(plan)
        opened = 0.0
        for run, point in enumerate(plan):
            where = None
            if point is not None:
                where = f"{point}:{1 if point.startswith('open') else rng.randint(1, 12)}"
                if point == "open-before-forgetting-again":
                    # what an older backup, restored, would make necessary
                    store = SqliteStore(books.path)
                    store.tombstones.add([(rng.randbytes(16), time.time_ns() // 1000)])
                    store.close()
            opened = max(opened, kill_writer(books, run, point=where, delay=rng.uniform(0, 0.12)))
            places[point or "random"] += 1
        written = len(books.events)
        server = LiveServer(model, books.path)
        for run in range(of_server):
            restarts.append(kill_server(books, server, run, front=run % 2 == 0, delay=rng.uniform(0.05, 0.8)))
            places["server, front" if run % 2 == 0 else "server, model"] += 1
        restarts.append(server.start())
        status = server.stop()

    for place, n in sorted(places.items()):
        bench.row(system="rankloom", variant=place, metric="kills", value=n)
    bench.row(system="rankloom", variant="writer", metric="acknowledged_events", value=written)
    bench.row(system="rankloom", variant="server", metric="acknowledged_events", value=len(books.events) - written)
    bench.row(system="rankloom", variant="all", metric="forgotten_people", value=len(books.forgotten))
    bench.row(system="rankloom", variant="server", metric="restart_s", value=round(max(restarts), 2), n=len(restarts))
    kills = sum(places.values())
    bench.check("kills", kills, at_least=28 if bench.quick else 200)
    bench.check("named points", sum(name in places for name in NAMES), target=12)
    for name in sorted(books.lost)[:10]:
        bench.row(system="rankloom", variant=f"lost: {name}", metric="events", value=1)
    bench.check("acknowledged events and items lost", len(books.lost), target=0)
    bench.check("events counted twice", books.twice, target=0)
    bench.check("forgotten people who came back", books.back, target=0)
    bench.check("files that are not whole", books.unfinished, target=0)
    bench.check("longest restart of the server, s", round(max(restarts), 2), at_most=5)
    bench.check("exit status after SIGTERM at the end", status, target=0)
    publish(bench, "crash", f"{kills} kills, {len(books.events):,} acknowledged events, {len(books.forgotten):,} people forgotten")
    return bench.finish()


if __name__ == "__main__":
    raise SystemExit(main())
