"""Micro-batching: requests that wait together are answered together; what cannot be answered in time is refused at once.

One thread asks the model. While it works, requests queue; it then takes all that fit. So a lone request never waits for a
window, and the busier the server, the larger its batches. A request is admitted only when, by the time that recent batches
took, its answer is there before its deadline; and what is past it is dropped before it costs anything.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from rankloom.errors import RankloomError

Q = TypeVar("Q")
R = TypeVar("R")
T = TypeVar("T")


class OverloadedError(RankloomError):
    """Not now: the queue is full, or the deadline would pass. `retry_after` in seconds."""

    def __init__(self, message: str, *, retry_after: float, code: str = "overloaded") -> None:
        super().__init__(message, action=f"send it again in {retry_after:.1f} s", code=code)
        self.retry_after = retry_after


@dataclass
class Ticket(Generic[Q, R]):
    """One request on its way: the question, its cost in beam rows, when it came and when it must be answered."""

    question: Q
    weight: int
    arrived: float
    deadline: float
    loop: asyncio.AbstractEventLoop
    future: asyncio.Future[R] = field(repr=False)
    result: R | None = None
    error: BaseException | None = None


@dataclass(frozen=True)
class BatchSettings:
    """Bounds of the queue.

    Attributes:
        max_batch: requests answered together.
        max_weight: beam rows answered together.
        max_queue: requests that may wait: enough to live through a hiccup, and not more than a deadline can hold.
        deadline_s: what a request is given that names no deadline.
    """

    max_batch: int = 32
    max_weight: int = 8192
    max_queue: int = 192
    deadline_s: float = 1.0


class Batcher(Generic[Q, R]):
    """See the module's docstring.

    Args:
        run: answers tickets: sets `result` or `error` of each. Called from one thread only.
        idle: work for when nobody waits; returns False when there is none.
    """

    def __init__(
        self,
        run: Callable[[Sequence[Ticket[Q, R]]], None],
        *,
        settings: BatchSettings | None = None,
        idle: Callable[[], bool] = lambda: False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.settings = settings or BatchSettings()
        self._run = run
        self._idle = idle
        self._clock = clock
        self._lock = threading.Condition()
        self._queue: deque[Ticket[Q, R]] = deque()
        self._calls: deque[tuple[Callable[[], Any], Future[Any]]] = deque()
        self._thread: threading.Thread | None = None
        self._closed = False
        self._held = False
        self._busy_since: float | None = None
        self.batch_s = 0.0  # smoothed time of a batch
        self.expired = 0

    # -- from the event loop ---------------------------------------------------------------------------------------

    def wait_s(self) -> float:
        """When an answer to a request that comes now is expected."""
        batches = len(self._queue) // self.settings.max_batch + 1
        busy = self._busy_since
        left = 0.0 if busy is None else max(0.0, self.batch_s - (self._clock() - busy))
        return left + batches * self.batch_s

    def check(self, deadline_s: float | None = None) -> None:
        """Raises OverloadedError where a request that comes now would be refused. Cheap: nothing was read yet."""
        if not self._queue and self._busy_since is None:
            return  # however slow the last batch was: only by answering does one learn that the next is not
        wait = self.wait_s()
        full = len(self._queue) >= self.settings.max_queue
        if full or wait > (self.settings.deadline_s if deadline_s is None else deadline_s):
            fact = f"{len(self._queue)} requests wait" if full else f"an answer would take {wait:.2f} s"
            raise OverloadedError(f"the server is busy: {fact}", retry_after=max(0.1, min(5.0, wait)))

    async def submit(self, question: Q, *, weight: int, deadline_s: float | None = None) -> R:
        """The answer.

        Raises:
            OverloadedError: the queue is full, or the deadline passed before the model was asked.
        """
        self.check(deadline_s)
        loop = asyncio.get_running_loop()
        now = self._clock()
        allowed = self.settings.deadline_s if deadline_s is None else deadline_s
        ticket: Ticket[Q, R] = Ticket(question, weight, now, now + allowed, loop, loop.create_future())
        with self._lock:
            self._start()
            self._queue.append(ticket)
            self._lock.notify()
        return await ticket.future

    def call(self, what: Callable[[], T]) -> Future[T]:
        """Runs something between two batches, in the thread that asks the model."""
        future: Future[T] = Future()
        with self._lock:
            self._start()
            self._calls.append((what, future))
            self._lock.notify()
        return future

    def hold(self) -> None:
        """Takes no batch until `release`: more of a group is on its way."""
        self._held = True

    def release(self) -> None:
        """The group is here."""
        with self._lock:
            self._held = False
            self._lock.notify()

    @property
    def waiting(self) -> int:
        return len(self._queue)

    def close(self) -> None:
        """Answers what waits, then ends."""
        with self._lock:
            self._closed = True
            self._lock.notify()
            thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join()
        self._thread = None

    # -- the thread ------------------------------------------------------------------------------------------------

    def _start(self) -> None:
        if self._thread is None:
            self._closed = False
            self._thread = threading.Thread(target=self._work, name="rankloom-model", daemon=True)
            self._thread.start()

    def _work(self) -> None:
        while True:
            with self._lock:
                while self._held and not self._closed:
                    self._lock.wait(timeout=0.1)
                while not (self._queue or self._calls or self._closed):
                    # what waits for a quiet moment runs now, in small pieces
                    self._lock.release()
                    try:
                        more = self._idle()
                    finally:
                        self._lock.acquire()
                    if not more and not (self._queue or self._calls or self._closed):
                        self._lock.wait(timeout=0.25)
                if self._closed and not (self._queue or self._calls):
                    return
                if self._held and not self._closed:
                    continue
                call = self._calls.popleft() if self._calls else None
                batch = [] if call else self._take()
            if call is not None:
                _settle(*call)
                continue
            self._answer(batch)

    def _take(self) -> list[Ticket[Q, R]]:
        """The oldest that fit together; at least one."""
        batch: list[Ticket[Q, R]] = []
        weight = 0
        while self._queue and len(batch) < self.settings.max_batch:
            weight += self._queue[0].weight
            if batch and weight > self.settings.max_weight:
                break
            batch.append(self._queue.popleft())
        return batch

    def _answer(self, batch: list[Ticket[Q, R]]) -> None:
        started = self._clock()
        live = [own for own in batch if own.deadline >= started]
        for own in batch:
            if own.deadline < started:
                self.expired += 1
                own.error = OverloadedError(
                    "the deadline passed while the request waited", retry_after=max(0.1, self.batch_s), code="deadline-passed"
                )  # fmt: skip
        if live:
            self._busy_since = started
            try:
                self._run(live)
            except BaseException as error:  # the callers get it; the thread goes on
                for own in live:
                    own.error = own.error or error
            self._busy_since = None
            took = self._clock() - started
            self.batch_s = took if self.batch_s == 0 else 0.8 * self.batch_s + 0.2 * took
        loops: dict[asyncio.AbstractEventLoop, list[Ticket[Q, R]]] = {}
        for own in batch:
            loops.setdefault(own.loop, []).append(own)
        for loop, tickets in loops.items():
            if not loop.is_closed():
                loop.call_soon_threadsafe(_deliver, tickets)


def _deliver(tickets: list[Ticket[Any, Any]]) -> None:
    for own in tickets:
        if own.future.done():  # the caller went away
            continue
        if own.error is not None:
            own.future.set_exception(own.error)
        else:
            own.future.set_result(own.result)


def _settle(what: Callable[[], Any], future: Future[Any]) -> None:
    try:
        future.set_result(what())
    except BaseException as error:
        future.set_exception(error)
