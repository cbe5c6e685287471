"""Progress with an ETA on standard error: a live bar on a terminal, a line now and then anywhere else."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator, Sized
from typing import TypeVar

T = TypeVar("T")


def format_seconds(seconds: float) -> str:
    """`75` -> `1:15`, `3700` -> `1:01:40`."""
    total = max(0, round(seconds))
    hours, rest = divmod(total, 3600)
    minutes, secs = divmod(rest, 60)
    return f"{hours}:{minutes:02d}:{secs:02d}" if hours else f"{minutes}:{secs:02d}"


class Progress:
    """One running task. Silent for its first two seconds; then shows done / total, rate and ETA.

    Args:
        description: what is running, in the user's words.
        total: number of units, or None when it is not known.
        done: units that were done before, in a run that is resumed; the rate is that of the others.
        quiet: never print.
    """

    def __init__(
        self, description: str, total: int | None = None, *, unit: str = "", done: int = 0, quiet: bool = False
    ) -> None:
        self.description = description
        self.total = total
        self.unit = unit
        self.quiet = quiet
        self.done = self._before = done
        self._start = time.monotonic()
        self._next_print = self._start + 2.0
        self._tty = sys.stderr.isatty()
        self._printed = False

    def advance(self, amount: int = 1, note: str = "") -> None:
        self.done += amount
        now = time.monotonic()
        if self.quiet or now < self._next_print:
            return
        self._next_print = now + (0.2 if self._tty else 10.0)
        elapsed = now - self._start
        rate = (self.done - self._before) / max(elapsed, 1e-9)
        if self.total:
            share = min(1.0, self.done / self.total)
            eta = format_seconds((self.total - self.done) / max(rate, 1e-9))
            line = f"{self.description}: {self.done:,}/{self.total:,} {self.unit} ({share:.0%}), ETA {eta}"
        else:
            line = f"{self.description}: {self.done:,} {self.unit}, {rate:,.0f}/s, {format_seconds(elapsed)} so far"
        if note:
            line += f", {note}"
        end = "" if self._tty else "\n"
        prefix = "\r\x1b[2K" if self._tty else ""
        print(f"{prefix}{line}", end=end, file=sys.stderr, flush=True)
        self._printed = True

    def close(self) -> None:
        if self._tty and self._printed:
            print("\r\x1b[2K", end="", file=sys.stderr, flush=True)
            self._printed = False

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def track(
    items: Iterable[T], description: str, total: int | None = None, *, unit: str = "", quiet: bool = False
) -> Iterator[T]:
    """Iterates `items` under a `Progress`."""
    if total is None and isinstance(items, Sized):
        total = len(items)
    with Progress(description, total, unit=unit, quiet=quiet) as progress:
        for item in items:
            yield item
            progress.advance()
