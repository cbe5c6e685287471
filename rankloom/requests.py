"""What is asked of a model and what it answers: requests, the events of a history, recommendations."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from typing import Literal, get_args

from rankloom.data import schema
from rankloom.errors import RankloomError

SeenPolicy = Literal["auto", "allow", "mask"]


@dataclass(frozen=True)
class HistoryEvent:
    """One past interaction of a person.

    Attributes:
        item_id: the item.
        event: kind, see `schema.EVENT_KINDS`.
        timestamp: when; None where unknown.
        watch_s: seconds watched, for videos.
        surface: where it was shown.
        position: its rank in the list shown, first is 0.
        query: the words it answered.
    """

    item_id: str
    event: str = "click"
    timestamp: datetime | None = None
    watch_s: float | None = None
    surface: str = "feed"
    position: int | None = None
    query: str | None = None


@dataclass(frozen=True)
class Request:
    """One question to the model: who, where, how many, under which rules."""

    user: str | None = None
    history: tuple[HistoryEvent, ...] | None = None
    k: int = 10
    filter: str | None = None
    exclude: tuple[str, ...] = ()
    query: str | None = None
    surface: str = "feed"
    explain: bool = False
    beam: int | None = None
    seen: SeenPolicy = "auto"
    at: datetime | None = None
    sort: str | None = None
    facets: tuple[str, ...] = ()


@dataclass(frozen=True)
class RecommendedItem:
    """One answer. `score` is the log-probability among the generated items; `reasons` are sentences with evidence."""

    item_id: str
    title: str
    score: float
    sid: tuple[int, ...]
    sponsored: bool = False
    reasons: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Recommendation:
    """The reply to one request. `degraded` says that fewer or other items than asked for came, and why.

    Attributes:
        facets: of each column asked for, the values among the items that match the search, with how many have them.
        no_match: a search of whose words the catalogue has none; the list is by meaning and history.
    """

    items: list[RecommendedItem]
    model_version: str
    degraded: bool = False
    degraded_reason: str | None = None
    timing_ms: dict[str, float] = field(default_factory=dict)
    facets: dict[str, list[tuple[str, int]]] = field(default_factory=dict)
    no_match: bool = False


def check_request(request: Request) -> None:
    """Raises RankloomError for a k or beam below 1, a query without words, sorting or facets without a query, an unknown
    surface or policy for seen items."""
    if not isinstance(request.k, int) or request.k < 1:
        raise RankloomError(f"k is {request.k!r}", place="k", action="ask for at least one item", code="k-range")
    if request.beam is not None and (not isinstance(request.beam, int) or request.beam < 1):
        raise RankloomError(
            f"beam is {request.beam!r}", place="beam", action="use a beam of at least 1", code="beam-range"
        )
    if request.surface not in schema.SURFACE_CODE:
        raise RankloomError(
            f"no surface {request.surface!r}",
            place="surface",
            action=f"choose one of {', '.join(schema.SURFACES)}",
            code="unknown-surface",
        )
    if request.query is not None and not request.query.strip():
        raise RankloomError(
            "a search needs a query", place="query", action="give the words to search for", code="query-missing"
        )
    for name, given in (("sort", request.sort), ("facets", request.facets)):
        if given and request.query is None:
            raise RankloomError(
                f"{name} is for searches", place=name, action="send a query too, or leave it out", code="search-only"
            )
    if request.seen not in get_args(SeenPolicy):
        raise RankloomError(
            f"no policy {request.seen!r} for seen items",
            place="seen",
            action=f"choose one of {', '.join(get_args(SeenPolicy))}",
            code="unknown-policy",
        )
