"""What the benchmarks of the server share: small models, a real `rankloom serve` process, and a load generator.

The generator is open-loop: requests are sent at the moments that a Poisson process intends, whether or not earlier ones
were answered, and times count from the intended moment. A closed loop would wait with a slow server and hide its queue.
Everything stays on the loopback address and ends by itself.
"""

from __future__ import annotations

import asyncio
import http.client
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
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


@dataclass
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


class _Connection:
    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    async def ask(self, request: bytes) -> tuple[int, bool, bytes]:
        """Status, whether a retry hint came, the body; status 0 where the connection broke."""
        try:
            self.writer.write(request)
            head = (await self.reader.readuntil(b"\r\n\r\n")).lower()
            length = int(re.search(rb"content-length: (\d+)", head)[1])  # type: ignore[index]
            body = await self.reader.readexactly(length)
        except (OSError, asyncio.IncompleteReadError):
            return 0, False, b""
        return int(head[9:12]), b"\r\nretry-after:" in head, body


def request(path: str, body: Any, *, method: str = "POST", headers: str = "") -> bytes:
    """A request as bytes, made before the clock starts."""
    data = json.dumps(body).encode()
    head = f"{method} {path} HTTP/1.1\r\nHost: l\r\nContent-Type: application/json\r\nContent-Length: {len(data)}\r\n{headers}\r\n"
    return head.encode() + data


async def _drive(
    port: int,
    requests: Sequence[bytes],
    moments: Sequence[float] | None,
    seconds: float,
    connections: int,
    note: Callable[[int, int, bytes], None] | None,
    tick: Callable[[float], Any] | None,
) -> Load:
    idle: list[_Connection] = []
    sent: list[Sent] = []

    async def connect() -> _Connection:
        return _Connection(*await asyncio.open_connection("127.0.0.1", port))

    idle += [await connect() for _ in range(connections if moments is None else min(connections, 32))]
    start = time.perf_counter()

    async def one(number: int, intended: float) -> None:
        try:
            while idle and idle[-1].reader.at_eof():  # closed by the server while it was idle
                idle.pop().writer.close()
            own = idle.pop() if idle else await connect()
        except OSError:
            sent.append(Sent(intended, intended, time.perf_counter() - start, 0, False, number))
            return
        at = time.perf_counter() - start
        status, hint, body = await own.ask(requests[number % len(requests)])
        sent.append(Sent(intended, at, time.perf_counter() - start, status, hint, number))
        if note is not None:
            note(number, status, body)
        if status:
            idle.append(own)
        else:
            own.writer.close()

    async def ticking() -> None:
        while tick is not None:
            tick(time.perf_counter() - start)
            await asyncio.sleep(0.5)

    ticker = asyncio.create_task(ticking())
    if moments is None:
        numbers = iter(range(10**9))

        async def loop() -> None:
            while (now := time.perf_counter() - start) < seconds:
                await one(next(numbers), now)

        await asyncio.gather(*(loop() for _ in range(connections)))
    else:
        tasks = set()
        for number, moment in enumerate(moments):
            while (wait := moment - (time.perf_counter() - start)) > 0:
                await asyncio.sleep(wait if wait > 0.002 else 0)
            task = asyncio.create_task(one(number, moment))
            tasks.add(task)
            task.add_done_callback(tasks.discard)
        if tasks:
            await asyncio.wait(tasks, timeout=60)
    ticker.cancel()
    for own in idle:
        own.writer.close()
    return Load(seconds, sent)


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
    return asyncio.run(_drive(port, requests, moments, seconds, 32, note, tick))


def closed_loop(port: int, requests: Sequence[bytes], *, connections: int, seconds: float) -> Load:
    """So many callers, each with its next request as soon as the last is answered: the peak of what is served."""
    return asyncio.run(_drive(port, requests, None, seconds, connections, None, None))
