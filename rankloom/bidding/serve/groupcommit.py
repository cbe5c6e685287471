"""Group commit: one thread tells the disk for everybody who waits."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import suppress


class GroupCommit:
    """Calls `sync` in a thread whenever somebody asked for it since the last time. `start` it, `stop` it.

    Without `start` nothing is called: for owners that sync themselves.
    """

    def __init__(self, sync: Callable[[], None]) -> None:
        self._sync = sync
        self._stop = False
        self._wanted = threading.Event()
        self._waiting: list[Callable[[OSError | None], object]] = []
        self._waiting_lock = threading.Lock()
        self._thread: threading.Thread | None = None

    @property
    def running(self) -> bool:
        return self._thread is not None

    def start(self) -> None:
        self._thread = threading.Thread(target=self._run, name="ledger-sync", daemon=True)
        self._thread.start()

    def want(self) -> None:
        """Asks for a sync soon."""
        self._wanted.set()

    def then(self, call: Callable[[OSError | None], object]) -> None:
        """Asks for a sync and has `call(error or None)` called after it, from the thread."""
        with self._waiting_lock:
            self._waiting.append(call)
        self._wanted.set()

    def stop(self) -> None:
        """Ends the thread after at most one more sync."""
        self._stop = True
        self._wanted.set()
        if self._thread is not None:
            self._thread.join()

    def _run(self) -> None:
        while not self._stop:
            self._wanted.wait()
            self._wanted.clear()
            with self._waiting_lock:
                waiting, self._waiting = self._waiting, []
            error: OSError | None = None
            try:
                self._sync()
            except OSError as problem:
                error = problem
            for call in waiting:
                with suppress(RuntimeError):  # the event loop that asked may be closed by now
                    call(error)
