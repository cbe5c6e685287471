"""What `/metrics` tells Prometheus: counters and one histogram of request times, in its text format."""

from __future__ import annotations

import threading
from collections import Counter
from typing import Final

# seconds; a beam search on a small machine takes some tens of milliseconds
BUCKETS: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0)
_HELP: Final = {
    "rankloom_http_requests_total": "Requests by route and status.",
    "rankloom_events_total": "Events by what became of them.",
    "rankloom_degraded_total": "Replies with fewer items than asked for.",
}


class Metrics:
    """Counts of one process. Safe from threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counters: dict[str, Counter[tuple[tuple[str, str], ...]]] = {name: Counter() for name in _HELP}
        self._seconds: dict[str, list[int]] = {}
        self._sums: dict[str, float] = {}

    def count(self, name: str, amount: int = 1, **labels: str) -> None:
        """Adds to a counter of `_HELP`."""
        with self._lock:
            self._counters[name][tuple(sorted(labels.items()))] += amount

    def observe(self, route: str, seconds: float) -> None:
        """One request's time."""
        with self._lock:
            counts = self._seconds.setdefault(route, [0] * (len(BUCKETS) + 1))
            for place, edge in enumerate(BUCKETS):
                counts[place] += seconds <= edge
            counts[-1] += 1
            self._sums[route] = self._sums.get(route, 0.0) + seconds

    def render(self, gauges: dict[str, tuple[str, float]]) -> str:
        """The text; `gauges` are (help, value) by name."""
        lines: list[str] = []
        with self._lock:
            for name, help_text in _HELP.items():
                lines += [f"# HELP {name} {help_text}", f"# TYPE {name} counter"]
                lines += [f"{name}{_labels(labels)} {value}" for labels, value in sorted(self._counters[name].items())]
            name = "rankloom_http_request_seconds"
            lines += [f"# HELP {name} Time to answer, by route.", f"# TYPE {name} histogram"]
            for route, counts in sorted(self._seconds.items()):
                for edge, value in zip((*map(str, BUCKETS), "+Inf"), counts, strict=True):
                    lines.append(f"{name}_bucket{_labels((('route', route), ('le', edge)))} {value}")
                lines.append(f"{name}_sum{_labels((('route', route),))} {self._sums[route]:.6f}")
                lines.append(f"{name}_count{_labels((('route', route),))} {counts[-1]}")
        for name, (help_text, number) in gauges.items():
            lines += [f"# HELP {name} {help_text}", f"# TYPE {name} gauge", f"{name} {number:g}"]
        return "\n".join(lines) + "\n"


def _labels(labels: tuple[tuple[str, str], ...]) -> str:
    def escaped(value: str) -> str:
        return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")

    return "{" + ",".join(f'{name}="{escaped(value)}"' for name, value in labels) + "}" if labels else ""
