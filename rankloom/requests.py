"""What is asked of a model and what it answers: requests, the events of a history, recommendations."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime
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
        timestamp: when; None where unknown, without a zone in UTC.
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

    def __post_init__(self) -> None:
        object.__setattr__(self, "timestamp", _in_utc(self.timestamp))


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
    min_relevance: float | None = None
    max_typos: int | None = None
    chance_left: float | None = None
    """Of a further page of a search: the chance that the pages before have left (`Recommendation.chance` less what they showed)."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "at", _in_utc(self.at))


@dataclass(frozen=True)
class WordMatch:
    """A word of a search, and where an item has it.

    Attributes:
        word: as it was typed, in lower case; of Chinese text a pair of neighbouring characters.
        read_as: the known word that it was taken for, None where it was taken as it is.
        share: of the query, words weighed by how rare they are.
        where: `title`, `brand`, `category`, `attributes`; `searches`: people typed it before they took the item. Empty: the item has it nowhere.
        kind: its type (`brand`, `color`, ...), where a dictionary of keywords or the item's columns say.
    """

    word: str
    read_as: str | None
    share: float
    where: tuple[str, ...]
    kind: str | None = None


@dataclass(frozen=True)
class CodeStep:
    """One code of a semantic ID: what the items that share the codes so far have in common, and the log-probability with which it
    was generated after them; None where the beam had dropped it."""

    code: int
    meaning: str
    log_prob: float | None


@dataclass(frozen=True)
class Explanation:
    """How an item came to its place; only where it was asked for.

    Attributes:
        words: the query's words and where the item has them; empty for a feed.
        path: its codes.
        parts: of the score, in nats above the mean of everything generated; they sum to how far the score is above it.
        refiner: how much of the refiner's part goes by each kind of evidence; empty without a refiner.
    """

    words: list[WordMatch]
    path: list[CodeStep]
    parts: dict[str, float]
    refiner: dict[str, float]


@dataclass(frozen=True)
class RecommendedItem:
    """One answer. `score` is the log-probability among the generated items; `reasons` are sentences with evidence.

    Attributes:
        relevance: of a search, the calibrated chance that this is what the person takes (decoding/relevance.py); None where the
            model was not calibrated.
        explanation: with `explain`.
    """

    item_id: str
    title: str
    score: float
    sid: tuple[int, ...]
    sponsored: bool = False
    reasons: list[str] = field(default_factory=list)
    relevance: float | None = None
    explanation: Explanation | None = None


@dataclass(frozen=True)
class Recommendation:
    """The reply to one request. `degraded` says that fewer or other items than asked for came, and why.

    Attributes:
        facets: of each column asked for, the values among the items that match the search, with how many have them.
        no_match: a search of whose words no item that may be shown has enough, whose list is by meaning and history; or of whose
            results none reaches `min_relevance`, whose list is empty.
        matches: of a search, how many items that may be shown match it, at most a thousand: what the facets count.
        read_as: words of a search that were taken for another one, and for which.
        unknown: words of a search that neither items nor earlier searches have.
        chance: what the relevances of all that was generated sum to; None where there are none.
    """

    items: list[RecommendedItem]
    model_version: str
    degraded: bool = False
    degraded_reason: str | None = None
    timing_ms: dict[str, float] = field(default_factory=dict)
    facets: dict[str, list[tuple[str, int]]] = field(default_factory=dict)
    no_match: bool = False
    matches: int | None = None
    read_as: tuple[tuple[str, str], ...] = ()
    unknown: tuple[str, ...] = ()
    chance: float | None = None


def check_request(request: Request) -> None:
    """Raises RankloomError for a k or beam below 1, a query without words, what is for searches without a query, a
    min_relevance or max_typos out of range, an unknown surface or policy for seen items, a value of another type."""
    _check_types(request)
    if isinstance(request.k, bool) or not isinstance(request.k, int) or request.k < 1:
        raise RankloomError(f"k is {request.k!r}", place="k", action="ask for at least one item", code="k-range")
    if request.beam is not None and (isinstance(request.beam, bool) or not isinstance(request.beam, int) or request.beam < 1):
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
    for_searches = (
        ("sort", request.sort or None), ("facets", request.facets or None), ("min_relevance", request.min_relevance),
        ("max_typos", request.max_typos),
    )  # fmt: skip
    for name, given in for_searches:
        if given is not None and request.query is None:
            raise RankloomError(
                f"{name} is for searches", place=name, action="send a query too, or leave it out", code="search-only"
            )
    cut, typos = request.min_relevance, request.max_typos
    if cut is not None and (isinstance(cut, bool) or not isinstance(cut, int | float) or not 0 <= cut <= 1):
        raise RankloomError(
            f"min_relevance is {cut!r}", place="min_relevance", action="use a chance between 0 and 1", code="relevance-range"
        )
    if typos is not None and (isinstance(typos, bool) or typos not in (0, 1, 2)):
        raise RankloomError(
            f"max_typos is {typos!r}", place="max_typos", action="use 0 (none), 1 or 2", code="typos-range"
        )
    if request.seen not in get_args(SeenPolicy):
        raise RankloomError(
            f"no policy {request.seen!r} for seen items",
            place="seen",
            action=f"choose one of {', '.join(get_args(SeenPolicy))}",
            code="unknown-policy",
        )


def _check_types(request: Request) -> None:
    for name in ("user", "filter", "query", "surface", "sort", "seen"):
        value = getattr(request, name)
        if value is not None and not isinstance(value, str):
            raise _wrong_type(name, value, "a text")
    for name in ("exclude", "facets"):
        value = getattr(request, name)
        if isinstance(value, str) or not all(isinstance(own, str) for own in value):
            raise _wrong_type(name, value, "a list of texts")
    for event in request.history or ():
        if not isinstance(event, HistoryEvent) or not isinstance(event.item_id, str):
            raise _wrong_type("history", event, "a list of item ids or HistoryEvents")
        if event.timestamp is not None and not isinstance(event.timestamp, datetime):
            raise _wrong_type("history", event.timestamp, "a datetime in each event's timestamp")
    if request.at is not None and not isinstance(request.at, datetime):
        raise _wrong_type("at", request.at, "a datetime")


def _wrong_type(name: str, value: object, wanted: str) -> RankloomError:
    return RankloomError(f"{name} is {value!r}", place=name, action=f"give {wanted}", code="wrong-type")


def _in_utc(when: datetime | None) -> datetime | None:
    """A time without a zone is in UTC, as in a shop's folder; one that is none is told by `check_request`."""
    return when.replace(tzinfo=UTC) if isinstance(when, datetime) and when.tzinfo is None else when
