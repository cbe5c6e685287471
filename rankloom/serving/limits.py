"""Token buckets: so many requests a second for each key, with a burst."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable


class Buckets:
    """One bucket a name. `take` answers 0 where the request may go on, else the seconds after which it may.

    Args:
        most: so many names are remembered; the one longest unused is dropped (it has long been full again).
    """

    def __init__(self, *, clock: Callable[[], float] = time.monotonic, most: int = 10_000) -> None:
        self._clock = clock
        self._most = most
        self._lock = threading.Lock()
        self._left: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def take(self, name: str, *, rate: float, burst: float) -> float:
        now = self._clock()
        with self._lock:
            tokens, at = self._left.pop(name, (burst, now))
            # a clock that goes backwards gives nothing
            tokens = min(burst, tokens + max(0.0, now - at) * rate)
            wait = 0.0 if tokens >= 1 else (1 - tokens) / rate
            self._left[name] = (tokens - 1 if tokens >= 1 else tokens, now)
            if len(self._left) > self._most:
                self._left.popitem(last=False)
        return wait
