"""What `/metrics` tells Prometheus: counters and histograms of one process, in its text format."""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from itertools import accumulate
from typing import Final

# seconds; a beam search on a small machine takes some tens of milliseconds
BUCKETS: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0)
COUNTERS: Final = {
    "rankloom_http_requests_total": "Requests by route and status.",
    "rankloom_refused_total": "Requests refused before they were read, by status.",
    "rankloom_events_total": "Events by what became of them.",
    "rankloom_replies_total": "Lists given, by model version.",
    "rankloom_degraded_total": "Lists that are not what was asked for, by cause.",
    "rankloom_guarded_total": "Items that a model named and the rules forbid, by model version; none was shown.",
    "rankloom_model_errors_total": "Requests at which a model failed, by model version.",
    "rankloom_state_errors_total": "Times that the state store did not answer.",
    "rankloom_context_cache_total": "Contexts of people by whether the cache had some of it, and people evicted.",
    "rankloom_deployments_total": "Changes of what serves, by outcome.",
}
HISTOGRAMS: Final[dict[str, tuple[str, Sequence[float]]]] = {
    "rankloom_http_request_seconds": ("Time to answer, by route.", BUCKETS),
    "rankloom_batch_size": ("Requests answered together.", (1, 2, 4, 8, 16, 32, 64)),
    "rankloom_shadow_overlap": ("Share of the shown items that the shadow names too.", (0.1, 0.25, 0.5, 0.75, 0.9, 1)),
}
# what the process that speaks HTTP counts, and what the one with the model does
FRONT: Final = frozenset(("rankloom_http_requests_total", "rankloom_refused_total", "rankloom_http_request_seconds"))
BACK: Final = frozenset((*COUNTERS, *HISTOGRAMS)) - FRONT
Labels = tuple[tuple[str, str], ...]


class Metrics:
    """Counts of one process. Safe from threads.

    Args:
        only: names that this process counts, so that none is told twice.
    """

    def __init__(self, *, only: Collection[str] | None = None) -> None:
        self._only = BACK | FRONT if only is None else only
        self._lock = threading.Lock()
        self._counters: dict[str, Counter[Labels]] = {name: Counter() for name in COUNTERS}
        self._counts: dict[str, dict[Labels, list[int]]] = {name: {} for name in HISTOGRAMS}
        self._sums: dict[str, dict[Labels, float]] = {name: {} for name in HISTOGRAMS}

    def count(self, name: str, amount: int = 1, **labels: str) -> None:
        """Adds to one of `COUNTERS`."""
        with self._lock:
            self._counters[name][tuple(sorted(labels.items()))] += amount

    def observe(self, route: str, seconds: float) -> None:
        """One request's time."""
        self.observe_value("rankloom_http_request_seconds", seconds, route=route)

    def observe_value(self, name: str, value: float, **labels: str) -> None:
        """One value of one of `HISTOGRAMS`."""
        own = tuple(labels.items())
        edges = HISTOGRAMS[name][1]
        with self._lock:
            self._counts[name].setdefault(own, [0] * (len(edges) + 1))[bisect_left(edges, value)] += 1
            self._sums[name][own] = self._sums[name].get(own, 0.0) + value

    def render(self, gauges: Mapping[str, tuple[str, float]]) -> str:
        """The text; `gauges` are (help, value) by name."""
        lines: list[str] = []
        with self._lock:
            for name, text in COUNTERS.items():
                if name not in self._only:
                    continue
                lines += [f"# HELP {name} {text}", f"# TYPE {name} counter"]
                lines += [f"{name}{_labels(labels)} {value}" for labels, value in sorted(self._counters[name].items())]
            for name, (text, edges) in HISTOGRAMS.items():
                if name not in self._only:
                    continue
                lines += [f"# HELP {name} {text}", f"# TYPE {name} histogram"]
                for labels, counts in sorted(self._counts[name].items()):
                    for edge, value in zip((*map(str, edges), "+Inf"), accumulate(counts), strict=True):
                        lines.append(f"{name}_bucket{_labels((*labels, ('le', edge)))} {value}")
                    lines.append(f"{name}_sum{_labels(labels)} {self._sums[name][labels]:.6f}")
                    lines.append(f"{name}_count{_labels(labels)} {sum(counts)}")
        for name, (text, number) in gauges.items():
            lines += [f"# HELP {name} {text}", f"# TYPE {name} gauge", f"{name} {number:g}"]
        return "\n".join(lines) + "\n"


def _labels(labels: Labels) -> str:
    def escaped(value: str) -> str:
        return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")

    return "{" + ",".join(f'{name}="{escaped(value)}"' for name, value in labels) + "}" if labels else ""
