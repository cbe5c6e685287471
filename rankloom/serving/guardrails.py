"""When a canary has to go: what it did in its last replies beside what the serving model did in as many of its own."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any


@dataclass(frozen=True, slots=True)
class Outcome:
    """One reply of a version.

    Attributes:
        error: the model failed.
        empty: nothing came although the rules leave something.
        invalid: an item that the rules forbid, that is not there, that comes twice, or a score that is no number.
        seconds: the model's time for the batch.
        items: what it named.
    """

    error: bool = False
    empty: bool = False
    invalid: bool = False
    seconds: float = 0.0
    items: tuple[str, ...] = ()


@dataclass(frozen=True)
class Guardrails:
    """Bounds beside the serving model. One invalid reply is enough; the rest needs `min_replies`.

    Attributes:
        window: the last replies that count, per version.
        more_errors, more_empty: share of replies above the serving model's.
        slower: times the serving model's median, plus 5 ms.
        coverage: least share of the serving model's distinct items in as many replies.
    """

    min_replies: int = 50
    window: int = 500
    more_errors: float = 0.02
    more_empty: float = 0.05
    slower: float = 2.0
    coverage: float = 0.5


class Window:
    """The last outcomes of one version."""

    def __init__(self, size: int = 500) -> None:
        self.outcomes: deque[Outcome] = deque(maxlen=size)
        self.total = 0

    def add(self, outcome: Outcome) -> None:
        self.outcomes.append(outcome)
        self.total += 1

    def describe(self) -> dict[str, Any]:
        """Figures for people."""
        own = list(self.outcomes)
        return {
            "replies": self.total,
            "errors": _share(o.error for o in own),
            "empty": _share(o.empty for o in own),
            "invalid": _share(o.invalid for o in own),
            "median_ms": round(_median_s(own) * 1e3, 2),
            "distinct_items": distinct(own),
        }


def breach(canary: Window, serving: Window, rules: Guardrails) -> str | None:
    """Why the canary has to go, with its figures; None where it may stay."""
    own, other = list(canary.outcomes), list(serving.outcomes)
    if any(o.invalid for o in own):
        return f"invalid results: {sum(o.invalid for o in own)} of {len(own)} replies"
    if len(own) < rules.min_replies or not other:
        return None
    for name, share, base, more in (
        ("errors", _share(o.error for o in own), _share(o.error for o in other), rules.more_errors),
        ("empty replies", _share(o.empty for o in own), _share(o.empty for o in other), rules.more_empty),
    ):
        if share > base + more:
            return f"{name}: {share:.1%} against {base:.1%}"
    slow, usual = _median_s(own), _median_s(other)
    if usual and slow > rules.slower * usual + 0.005:
        return f"latency: {slow * 1e3:.1f} ms against {usual * 1e3:.1f} ms a batch"
    same = min(len(own), len(other))
    if same >= rules.min_replies:
        kinds, usual_kinds = distinct(own[-same:]), distinct(other[-same:])
        if kinds < rules.coverage * usual_kinds:
            return f"coverage: {kinds} distinct items in {same} replies against {usual_kinds}"
    return None


def distinct(outcomes: Sequence[Outcome]) -> int:
    return len({item for o in outcomes for item in o.items})


def _share(flags: Iterable[bool]) -> float:
    own = list(flags)
    return sum(own) / len(own) if own else 0.0


def _median_s(outcomes: Sequence[Outcome]) -> float:
    own = [o.seconds for o in outcomes if not o.error]
    return median(own) if own else 0.0
