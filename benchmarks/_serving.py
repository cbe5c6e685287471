"""What the benchmarks of the server share: small models, a real `rankloom serve` process, and a load generator.

The generator is open-loop: requests are sent at the moments that a Poisson process intends, whether or not earlier ones
were answered, and times count from the intended moment. A closed loop would wait with a slow server and hide its queue.
Everything stays on the loopback address and ends by itself.
"""

from __future__ import annotations

import asyncio
import gc
import http.client
import itertools
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Coroutine, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import uvloop
from _common import ROOT

sys.path.insert(0, str(ROOT))
from rankloom.config import Config
from rankloom.errors import RankloomError
from rankloom.pipeline import train
from rankloom.recommender import Rankloom
from rankloom.simulation.bazaar import generate_bazaar

MODELS = ROOT / "runs" / "benchmarks" / "serving_models"


def small_models(n: int = 2, *, scale: float = 0.05) -> list[Path]:
    """So many tiny models of one simulated shop, made once."""
    shop = MODELS / "shop"
    if not (shop / "shop.json").exists():
        generate_bazaar(shop, seed=1, scale=scale, quiet=True)
    folders = []
    for seed in range(n):
        folder = MODELS / f"model-{seed}"
        if not usable(folder):
            shutil.rmtree(folder, ignore_errors=True)
            config = Config.preset_config("tiny").with_overrides(
                ["training.min_steps=60", "training.max_epochs=2", f"seed={seed}"]
            )
            train(shop, folder, config, quiet=True)
        folders.append(folder)
    return folders


def usable(folder: Path) -> bool:
    """Whether the folder is a model of this version; one that an older version left is made again."""
    try:
        Rankloom.from_pretrained(folder)
    except RankloomError:
        return False
    return True


class LiveServer:
    """`rankloom serve` in a process of its own on a free port."""

    def __init__(self, model: Path, state: Path, *flags: str, environment: dict[str, str] | None = None) -> None:
        self.command = [sys.executable, "-m", "rankloom.cli", "serve", str(model), "--port", "0", "--state", str(state), *flags]
        self.environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1", **(environment or {})}
        self.log = state.with_name(state.name + ".log")
        self.process: subprocess.Popen[bytes] | None = None
        self.port = 0

    def start(self, *, timeout_s: float = 60.0) -> float:
        """Until it is ready; the seconds that took.

        Raises:
            RuntimeError: it ended instead.
        """
        began = time.perf_counter()
        self.port = 0
        with open(self.log, "wb") as log:
            self.process = subprocess.Popen(
                self.command, cwd=ROOT, env=self.environment, stdout=subprocess.DEVNULL, stderr=log
            )
        while time.perf_counter() - began < timeout_s:
            if self.process.poll() is not None:
                raise RuntimeError(f"the server ended with {self.process.returncode}:\n{self.log.read_text()[-2000:]}")
            found = re.search(r"open http://[^:]+:(\d+)/", self.log.read_text(errors="replace"))
            if found:
                self.port = int(found[1])
                if self.ask("GET", "/readyz")[0] == 200:
                    return time.perf_counter() - began
            time.sleep(0.01)
        raise RuntimeError("the server does not get ready")

    def ask(self, method: str, path: str, body: Any = None, *, timeout_s: float = 60.0, **headers: str) -> tuple[int, Any]:
        """Status and JSON (or text) of one request on a connection of its own."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout_s)
        try:
            data = None if body is None else body if isinstance(body, bytes) else json.dumps(body).encode()
            connection.request(method, path, data, {"content-type": "application/json", **headers})
            reply = connection.getresponse()
            text = reply.read()
            kind = reply.getheader("content-type") or ""
            return reply.status, json.loads(text) if "json" in kind else text.decode()
        finally:
            connection.close()

    def processes(self) -> list[int]:
        """The front and the model's process."""
        assert self.process is not None
        own = self.process.pid
        return [own, *map(int, Path(f"/proc/{own}/task/{own}/children").read_text().split())]

    def rss_mb(self) -> float:
        """Resident memory of both now."""
        total = 0
        for own in self.processes():
            for line in Path(f"/proc/{own}/status").read_text().splitlines():
                total += int(line.split()[1]) if line.startswith("VmRSS") else 0
        return total / 1024

    def descriptors(self) -> int:
        return sum(len(os.listdir(f"/proc/{own}/fd")) for own in self.processes())

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()

    def stop(self, *, timeout_s: float = 40.0) -> int:
        """Asks it to end; its exit status."""
        assert self.process is not None
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self.kill()
            return -9


@dataclass(slots=True)
class Sent:
    """What one request met; `intended`, `sent` and `done` in seconds since the start."""

    intended: float
    sent: float
    done: float
    status: int
    retry_after: bool
    number: int

    @property
    def latency(self) -> float:
        return self.done - self.intended


@dataclass
class Load:
    """All requests of one run of the generator."""

    seconds: float
    sent: list[Sent]

    def of(self, *statuses: int) -> list[Sent]:
        return [own for own in self.sent if own.status in statuses]

    def quantile_ms(self, q: float, sent: Sequence[Sent] | None = None) -> float:
        own = [s.latency for s in (self.of(200) if sent is None else sent)]
        return float(np.quantile(own, q)) * 1e3 if own else float("nan")


class _Connection(asyncio.Protocol):
    """One connection to the server: one request at a time, its reply handed to `_Drive.replied`."""

    def __init__(self, drive: _Drive) -> None:
        self.drive = drive
        self.transport: asyncio.Transport | None = None
        self.asked: tuple[int, float, float] | None = None  # number, intended, sent
        self.idle_since = 0.0
        self.closed = False
        self._data = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)

    def ask(self, number: int, intended: float, request: bytes) -> None:
        assert self.transport is not None
        self.asked = number, intended, self.drive.now()
        self.transport.write(request)

    def data_received(self, data: bytes) -> None:
        data = self._data = self._data + data
        end = data.find(b"\r\n\r\n") + 4
        if end < 4:
            return
        head = data[:end].lower()
        length = _LENGTH.search(head)
        whole = end + int(length[1]) if length else end
        if len(data) < whole:
            return
        self._data = data[whole:]
        self.drive.replied(self, int(head[9:12]), b"\r\nretry-after:" in head, data[end:whole])

    def connection_lost(self, exc: Exception | None) -> None:
        self.closed = True
        if self.asked is not None:
            self.drive.replied(self, 0, False, b"")


_LENGTH = re.compile(rb"content-length: (\d+)")
_IDLE_S = 50.0  # a caller gives up an idle connection before the server does, or its next request may meet the closing


def request(path: str, body: Any, *, method: str = "POST", headers: str = "") -> bytes:
    """A request as bytes, made before the clock starts."""
    data = json.dumps(body).encode()
    head = f"{method} {path} HTTP/1.1\r\nHost: l\r\nContent-Type: application/json\r\nContent-Length: {len(data)}\r\n{headers}\r\n"
    return head.encode() + data


class _Drive:
    """One run of the generator, without a task for a request: its own time is part of every time it measures."""

    def __init__(
        self, port: int, requests: Sequence[bytes], seconds: float, note: Callable[[int, int, bytes], None] | None
    ) -> None:
        self.port, self.requests, self.seconds, self.note = port, requests, seconds, note
        self.sent: list[Sent] = []
        self.idle: list[_Connection] = []
        self.open = 0  # requests without a reply
        self.again: Callable[[_Connection], None] = self.idle.append  # what a connection does after a reply
        self.quiet = asyncio.Event()
        self.connecting: set[asyncio.Task[None]] = set()
        self.start = time.perf_counter()

    def now(self) -> float:
        return time.perf_counter() - self.start

    async def connect(self) -> _Connection:
        loop = asyncio.get_running_loop()
        return (await loop.create_connection(lambda: _Connection(self), "127.0.0.1", self.port))[1]

    def send(self, number: int, intended: float) -> None:
        """On an idle connection, or a new one."""
        self.open += 1
        self.quiet.clear()
        while self.idle:
            own = self.idle.pop()
            if not own.closed:
                own.ask(number, intended, self.requests[number % len(self.requests)])
                return
        task = asyncio.ensure_future(self._on_new(number, intended))
        self.connecting.add(task)
        task.add_done_callback(self.connecting.discard)

    async def _on_new(self, number: int, intended: float) -> None:
        try:
            own = await self.connect()
        except OSError:
            self._done(Sent(intended, intended, self.now(), 0, False, number))
            return
        own.ask(number, intended, self.requests[number % len(self.requests)])

    def replied(self, own: _Connection, status: int, hint: bool, body: bytes) -> None:
        """Notes a reply; status 0 where the connection broke."""
        assert own.asked is not None
        number, intended, at = own.asked
        own.asked = None
        own.idle_since = self.now()
        self._done(Sent(intended, at, own.idle_since, status, hint, number))
        if self.note is not None:
            self.note(number, status, body)
        if status:
            self.again(own)

    def _done(self, own: Sent) -> None:
        self.sent.append(own)
        self.open -= 1
        if not self.open:
            self.quiet.set()

    def give_up_idle(self) -> None:
        """The longest unused stand first."""
        while self.idle and self.now() - self.idle[0].idle_since > _IDLE_S:
            self._close(self.idle.pop(0))

    @staticmethod
    def _close(own: _Connection) -> None:
        if own.transport is not None:
            own.transport.close()

    def close(self) -> None:
        for own in self.idle:
            self._close(own)


async def _drive(
    port: int,
    requests: Sequence[bytes],
    moments: Sequence[float] | None,
    seconds: float,
    connections: int,
    note: Callable[[int, int, bytes], None] | None,
    tick: Callable[[float], Any] | None,
) -> Load:
    run = _Drive(port, requests, seconds, note)
    first = [await run.connect() for _ in range(connections)]
    run.start = time.perf_counter()

    async def ticking() -> None:
        while True:
            if tick is not None:
                tick(run.now())
            run.give_up_idle()
            await asyncio.sleep(0.5)

    ticker = asyncio.create_task(ticking())
    if moments is None:
        numbers = itertools.count()

        def again(own: _Connection) -> None:
            now = run.now()
            if now >= seconds:
                run.idle.append(own)
                return
            run.open += 1
            run.quiet.clear()
            number = next(numbers)
            own.ask(number, now, requests[number % len(requests)])

        run.again = again
        for own in first:
            again(own)
    else:
        run.idle += first
        for number, moment in enumerate(moments):
            # timers count whole milliseconds: up to one late, which counts against the server
            while (wait := moment - run.now()) > 0:
                await asyncio.sleep(wait)
            run.send(number, moment)
    if run.open:
        with suppress(TimeoutError):
            await asyncio.wait_for(run.quiet.wait(), 60)
    ticker.cancel()
    run.close()
    return Load(seconds, run.sent)


def _run(main: Coroutine[Any, Any, Load]) -> Load:
    """On the faster loop; no garbage collection, which would walk a million notes and stand in the measured times."""
    gc.collect()
    gc.disable()
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            return runner.run(main)
    finally:
        gc.enable()


def open_loop(
    port: int,
    requests: Sequence[bytes],
    *,
    rate: float,
    seconds: float,
    seed: int = 0,
    note: Callable[[int, int, bytes], None] | None = None,
    tick: Callable[[float], Any] | None = None,
) -> Load:
    """Poisson arrivals at `rate` a second; `tick` is called twice a second with the time, `note` with every reply."""
    rng = random.Random(seed)
    moments, at = [], 0.0
    while (at := at + rng.expovariate(rate)) < seconds:
        moments.append(at)
    return _run(_drive(port, requests, moments, seconds, 32, note, tick))


def closed_loop(port: int, requests: Sequence[bytes], *, connections: int, seconds: float) -> Load:
    """So many callers, each with its next request as soon as the last is answered: the peak of what is served."""
    return _run(_drive(port, requests, None, seconds, connections, None, None))
