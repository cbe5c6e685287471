"""The process that speaks HTTP: everything about a request that needs no model, so that no model can make it wait.

Python runs one thread at a time. A thread that asks a model takes turns with the one that answers HTTP, at every operation;
at twice the load that can be served, refusals then took 200 ms and goodput fell to a quarter (docs/experiments.md). So the
model lives in a process of its own (`back.py`), and this one reads, checks keys and sizes (`gate.py`), refuses what would
wait too long, and passes the rest on.

Questions for the model wait here, not there, and go over in groups: all that came while it worked, when it is done, or a full
batch while it still works. So the other process is disturbed once a batch.
"""

from __future__ import annotations

import asyncio
import signal
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType, SimpleNamespace
from typing import Any, Final

import uvicorn
from starlette.types import Receive, Scope, Send

from rankloom.serving.batching import BatchSettings, OverloadedError
from rankloom.serving.channel import ANSWER, ASK, GROUP, Channel
from rankloom.serving.gate import BATCHED
from rankloom.serving.http import problem
from rankloom.serving.metrics import Metrics

_PASSED: Final = frozenset((b"content-type", b"if-none-match", b"if-modified-since", b"range", b"accept-encoding"))


class Front:
    """ASGI application that passes requests on, and knows how many are on their way."""

    def __init__(self, channel: Channel, metrics: Metrics, settings: BatchSettings) -> None:
        self._channel = channel
        self._metrics = metrics
        self._settings = settings
        self._number = 0
        self._waiting: dict[int, asyncio.Future[tuple[dict[str, Any], bytes]]] = {}
        self._asking = 0  # questions for the model that have no answer yet
        self._there = 0  # those of them that the other process has
        self._sent: set[int] = set()
        self._queue: deque[tuple[int, dict[str, Any], bytes, float]] = deque()
        self._reply_s = 0.0  # smoothed time of a reply
        self._each_s = 0.0  # smoothed time that the model takes for one question, in company
        self._done = 0  # replies since `_since`, while the model had something to do all the time
        self._since = 0.0
        self.draining = False
        self.lost = asyncio.Event()

    def busy(self, deadline_s: float | None) -> None:
        """Raises OverloadedError where one more question would only wait."""
        most = self._settings.max_queue + self._settings.max_batch
        # a reply's time is that of a full queue when there is one; in between, what waits is in proportion
        wait = self._reply_s if self._asking >= self._settings.max_batch else 0.0
        allowed = self._settings.deadline_s if deadline_s is None else deadline_s
        # after a moment without a reply (a busy machine, a swap) more wait than a full queue, and all can be answered in time
        soon = self._each_s > 0 and self._asking * self._each_s <= 0.7 * allowed and self._asking < 4 * self._settings.max_queue
        if (self._asking < most or soon) and wait <= allowed:
            return
        raise OverloadedError(
            f"the server is busy: {self._asking} questions are on their way", retry_after=max(0.1, min(5.0, self._reply_s))
        )

    async def read(self) -> None:
        """Hands replies to those who wait, until the other process ends."""
        while (message := await self._channel.receive()) is not None:
            number, kind, head, body = message
            if number in self._sent:
                self._sent.remove(number)
                self._there -= 1
                self._learn()
                if not self._there or len(self._queue) >= self._settings.max_batch:
                    self._pump()
            future = self._waiting.pop(number, None)
            if kind == ANSWER and future is not None and not future.done():
                future.set_result((head, body))
        self.lost.set()
        for future in self._waiting.values():
            if not future.done():
                future.set_exception(ConnectionResetError())

    def _learn(self) -> None:
        """How long the model takes when enough waits for it, from a full batch of replies; one pause counts little."""
        self._done += 1
        if self._done < self._settings.max_batch:
            return
        now = time.monotonic()
        own = (now - self._since) / self._done
        self._each_s = own if self._each_s == 0 else 0.9 * self._each_s + 0.1 * min(own, 2 * self._each_s)
        self._since, self._done = now, 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        if self.draining and scope["path"] == "/readyz":
            response = problem(503, "draining", "the server is about to stop", action="ask another one", retry_after=5)
            await response(scope, receive, send)
            return
        body = await _body(receive)
        if body is None:
            return
        if self.lost.is_set():
            response = problem(503, "starting", "the model's process has ended", action="send it again", retry_after=2)
            await response(scope, receive, send)
            return
        try:
            head, answer = await self._pass_on(scope, body)
        except OverloadedError as error:
            response = problem(503, error.code, error.message, action=error.action, retry_after=error.retry_after)
            await response(scope, receive, send)
            return
        except ConnectionResetError:
            response = problem(503, "starting", "the model's process has ended", action="send it again", retry_after=2)
            await response(scope, receive, send)
            return
        state = scope["state"]
        state["log"] = head["log"]
        if head["route"] is not None:
            scope["route"] = SimpleNamespace(path=head["route"])
        if scope["path"] == "/metrics" and head["status"] == 200:
            answer += self._metrics.render({}).encode()
        headers = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in head["headers"]]
        headers.append((b"content-length", str(len(answer)).encode()))
        await send({"type": "http.response.start", "status": head["status"], "headers": headers})
        await send({"type": "http.response.body", "body": answer if scope["method"] != "HEAD" else b""})

    async def _pass_on(self, scope: Scope, body: bytes) -> tuple[dict[str, Any], bytes]:
        self._number += 1
        number = self._number
        future: asyncio.Future[tuple[dict[str, Any], bytes]] = asyncio.get_running_loop().create_future()
        self._waiting[number] = future
        head = {
            "method": scope["method"], "path": scope["path"], "query": scope["query_string"].decode("latin-1"),
            "headers": [[n.decode("latin-1"), v.decode("latin-1")] for n, v in scope["headers"] if n in _PASSED],
            "state": scope["state"],
        }  # fmt: skip
        if scope["path"] not in BATCHED or scope["method"] != "POST":
            self._channel.send(number, ASK, head, body)
            return await future
        began = time.monotonic()
        allowed = scope["state"].get("deadline_s", self._settings.deadline_s)
        self._asking += 1
        self._queue.append((number, head, body, began + allowed))
        self._pump()
        try:
            return await future
        finally:
            self._asking -= 1
            took = time.monotonic() - began
            self._reply_s = took if self._reply_s == 0 else 0.9 * self._reply_s + 0.1 * took

    def _pump(self) -> None:
        """Sends a group where the other process has nothing to do, or will soon have and a full batch waits."""
        most = self._settings.max_batch
        if not self._queue or (self._there and (self._there > most or len(self._queue) < most)):
            return
        now = time.monotonic()
        group: list[tuple[int, dict[str, Any], bytes]] = []
        while self._queue and len(group) < most:
            number, head, body, deadline = self._queue.popleft()
            if deadline > now:
                head["state"] = {**head["state"], "deadline_s": deadline - now}
                group.append((number, head, body))
                continue
            future = self._waiting.pop(number)
            if not future.done():
                future.set_exception(
                    OverloadedError("the deadline passed while the request waited", retry_after=1.0, code="deadline-passed")
                )
        if group:
            if not self._there:
                self._since, self._done = now, 0
            self._there += len(group)
            self._sent.update(number for number, _, _ in group)
            self._channel.send(len(group), GROUP, None)
            for own in group:
                self._channel.send(own[0], ASK, own[1], own[2])


async def _body(receive: Receive) -> bytes | None:
    """None where the caller went away."""
    parts = []
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return None
        parts.append(message.get("body", b""))
        if not message.get("more_body"):
            return b"".join(parts)


class Server(uvicorn.Server):
    """On SIGTERM or SIGINT: not ready at once; after `drain_s` no new connections; what runs is answered; exit status 0."""

    def __init__(self, config: uvicorn.Config, front: Front, *, drain_s: float = 0.0) -> None:
        super().__init__(config)
        self._front = front
        self._drain_s = drain_s

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """A second signal does not wait."""
        if self._front.draining:
            self.force_exit = self.should_exit = True
            return
        self._front.draining = True
        if self._drain_s > 0:
            signal.setitimer(signal.ITIMER_REAL, self._drain_s)
        else:
            self.should_exit = True

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Unlike uvicorn's, does not raise the signal again when all is done."""
        handlers: dict[int, Callable[[int, FrameType | None], None]] = {
            signal.SIGTERM: self.handle_exit,
            signal.SIGINT: self.handle_exit,
            signal.SIGALRM: lambda *_: setattr(self, "should_exit", True),
        }
        before = {sig: signal.signal(sig, handler) for sig, handler in handlers.items()}
        try:
            yield
        finally:
            for sig, handler in before.items():
                signal.signal(sig, handler)
