"""Where the contexts of people wait for their next request, in the memory of the process that has the model.

Bounded by bytes; who was not here for the longest goes first. What is in it is never trusted: a request compares it with the
history, the items and the weights that it has itself, and uses what is equal (models/kept_context.py). So nothing has to be
told of events, catalogues or models, and an entry that is out of date costs time and no answer.

One thing has to be told: who asked to be forgotten. They are gone from here before the deletion is answered, and do not come
back by a request that had read their history before: what a process has forgotten once it never keeps again.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Final

from rankloom.models.kept_context import KeptContext
from rankloom.serving.state import pseudonym

IDLE_S: Final = 900.0
"""After which somebody who does not come back is not waited for."""
_VERSIONS: Final = 2
"""Models whose contexts of one person are kept: the one that answers them, and one that is on its way in or out."""


class ContextCache:
    """See the module's docstring. Safe from threads.

    Args:
        limit: bytes of all contexts together; one that is larger alone is not kept.
        count: told `hit` (a request that had something to use), `miss` or `evicted`.
        clock: seconds.
    """

    def __init__(
        self, limit: int, *, count: Callable[[str], None] = lambda _: None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.limit = limit
        self._count = count
        self._clock = clock
        self._lock = threading.Lock()
        self._people: OrderedDict[str, dict[str, KeptContext]] = OrderedDict()
        self._last: dict[str, float] = {}
        self._forgotten: set[bytes] = set()
        self._bytes = 0

    @property
    def nbytes(self) -> int:
        return self._bytes

    def __len__(self) -> int:
        """People of whom something is kept."""
        return len(self._people)

    def get(self, version: str, person: str) -> KeptContext | None:
        """What a version of a model made of a person last; None where it is not there any more."""
        with self._lock:
            return self._people.get(person, {}).get(version)

    def put(self, version: str, person: str, own: KeptContext) -> None:
        """What it made now, in place of what was there."""
        self._count("hit" if own.reused else "miss")
        evicted = 0
        with self._lock:
            if pseudonym(person) in self._forgotten:
                return
            versions = self._people.setdefault(person, {})
            self._bytes -= sum(other.nbytes for other in versions.values())
            versions.pop(version, None)
            if own.nbytes <= self.limit:
                versions[version] = own
            while len(versions) > _VERSIONS:
                del versions[next(iter(versions))]
            self._bytes += sum(other.nbytes for other in versions.values())
            self._people.move_to_end(person)
            self._last[person] = self._clock()
            if not versions:
                self._drop(person)
            while self._bytes > self.limit:
                self._drop(next(iter(self._people)))
                evicted += 1
            evicted += self._sweep()
        for _ in range(evicted):
            self._count("evicted")

    def forget(self, person: str) -> None:
        """Removes a person, for good."""
        with self._lock:
            self._forgotten.add(pseudonym(person))
            if person in self._people:
                self._drop(person)

    def sweep(self) -> None:
        """Removes people who were not here for long."""
        with self._lock:
            evicted = self._sweep()
        for _ in range(evicted):
            self._count("evicted")

    def _sweep(self) -> int:
        before, n = self._clock() - IDLE_S, 0
        while self._people and self._last[oldest := next(iter(self._people))] < before:
            self._drop(oldest)
            n += 1
        return n

    def _drop(self, person: str) -> None:
        self._bytes -= sum(own.nbytes for own in self._people.pop(person).values())
        del self._last[person]
