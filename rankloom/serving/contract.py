"""The bodies and replies of the HTTP API (DESIGN: HTTP), with the examples that the OpenAPI page shows and the tests run."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, Final, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, Strict, model_validator

MAX_BODY: Final = 2_000_000
_MAX_INT: Final = 2**62
_EARLIEST: Final = datetime(1970, 1, 1, tzinfo=UTC)


def utc(when: datetime) -> datetime:
    """In UTC; a time without a zone is taken as UTC.

    Raises:
        ValueError: before 1970, or so late that no clock is only a little wrong.
    """
    when = when.replace(tzinfo=UTC) if when.tzinfo is None else when
    # compared before it is moved to UTC, which fails at the ends of the calendar
    if not _EARLIEST <= when <= datetime.now(UTC) + timedelta(days=2):
        raise ValueError("the time is before 1970 or in the future")
    return when.astimezone(UTC)


def _number(value: Any) -> Any:
    if isinstance(value, bool | str):
        raise ValueError("a number is needed, not a text or true and false")
    return value


def _time(value: Any) -> Any:
    if isinstance(value, bool):
        raise ValueError("a time is needed, not true and false")
    return value


Moment = Annotated[datetime, BeforeValidator(_time), AfterValidator(utc)]
# JSON has numbers and truth values of its own: "3" and true are no 3 and 1
Count = Annotated[int, BeforeValidator(_number)]
Real = Annotated[float, BeforeValidator(_number)]
Truth = Annotated[bool, Strict()]
Seconds = Annotated[Real, Field(ge=0, le=1e7, allow_inf_nan=False)]
Id = Annotated[str, Field(min_length=1, max_length=200)]
Surface = Literal["feed", "search", "ads"]


class Body(BaseModel):
    """What comes from outside: unknown fields are refused."""

    model_config = ConfigDict(extra="forbid")


def _example(**value: Any) -> ConfigDict:
    return ConfigDict(extra="forbid", json_schema_extra={"examples": [value]})


class HistoryItem(Body):
    item_id: str = Field(max_length=200)
    event: str = Field(default="click", max_length=100)
    timestamp: Moment | None = None
    watch_s: Seconds | None = None
    surface: Surface = "feed"
    query: str | None = Field(default=None, max_length=500)


class Ask(Body):
    """One body for recommend and search."""

    model_config = _example(user_id="u1", k=5, filter="price < 30", explain=True)
    scenario: str = Field(default="default", max_length=100)
    user_id: str | None = Field(default=None, max_length=200)
    history: list[HistoryItem] | None = Field(default=None, max_length=2000)
    query: str | None = Field(default=None, max_length=500)
    k: Count = Field(default=10, ge=1, le=200)
    filter: str | None = Field(default=None, max_length=4000)
    exclude: list[Annotated[str, Field(max_length=200)]] = Field(default=[], max_length=1000)
    explain: Truth = False
    sort: str | None = Field(default=None, max_length=100)
    """Searches: order the matches by a column of numbers or dates: `price`, `-price`, `newest`, ..."""
    facets: list[Annotated[str, Field(max_length=100)]] = Field(default=[], max_length=10)
    """Searches: columns whose values among the matches are counted."""
    min_relevance: Real | None = Field(default=None, ge=0, le=1, allow_inf_nan=False)
    """Searches: show only results whose `relevance` is at least this; the list may be shorter than k, or empty."""
    max_typos: Count | None = Field(default=None, ge=0, le=2)
    """Searches: slips of a word that are forgiven, 0 for none."""
    cursor: str | None = Field(default=None, max_length=20_000)
    """`next_cursor` of the page before: the same question again, without what was shown."""

    @property
    def words(self) -> str | None:
        """The words of a search, None where there are none."""
        return self.query if self.query and self.query.strip() else None


class WordTold(BaseModel):
    """A word of the search, and where the item has it: `title`, `brand`, `category`, `searches` (people typed it before they took the
    item), or nowhere."""

    word: str
    read_as: str | None
    share: float
    where: list[str]
    kind: str | None


class CodeTold(BaseModel):
    """A code of the semantic ID, what the items that share the codes so far have in common, and its log-probability."""

    code: int
    meaning: str
    log_prob: float | None


class Told(BaseModel):
    """How an item came to its place: `parts` of the score add up to how far it is above the mean of what was generated."""

    words: list[WordTold]
    path: list[CodeTold]
    parts: dict[str, float]
    refiner: dict[str, float]


class ReplyItem(BaseModel):
    item_id: str
    title: str
    score: float
    relevance: float | None = None
    """Searches: the calibrated chance, 0 to 1, that this is what the person takes; null where it was not measured."""
    sid: list[int]
    sponsored: bool
    reasons: list[str]
    reason_codes: list[str]
    """Why it is in the list: `personal`, `new-visitor`, `search`, `popular` (fallback), `exploration`, `fresh`."""
    explanation: Told | None = None
    """With `explain`."""


class Facet(BaseModel):
    """A value of a column, and how many of the search's matches have it."""

    value: str
    count: int


class Correction(BaseModel):
    """A word of the search, and the known word that it was taken for."""

    typed: str
    read_as: str


class Reply(BaseModel):
    """What recommend and search answer."""

    request_id: str
    scenario: str
    model_version: str
    catalogue_version: int
    items: list[ReplyItem]
    next_cursor: str | None
    degraded: bool
    degraded_cause: str | None
    degraded_reason: str | None
    facets: dict[str, list[Facet]]
    """Counted over the search's `matches`, never over the whole catalogue; `min_relevance` and k do not change them."""
    matches: int | None = None
    """Searches: items that may be shown and have at least half as much of the query as the one that has most; at most 1,000."""
    corrections: list[Correction] = []
    unknown_words: list[str] = []
    """Words that neither items nor earlier searches have."""
    timing_ms: dict[str, float]


class EventIn(Body):
    event_id: Id | None = None
    user_id: Id
    item_id: Id
    event: str = Field(max_length=100)
    timestamp: Annotated[datetime, BeforeValidator(_time)] | None = None
    watch_s: Seconds | None = None
    surface: Surface = "feed"
    position: Count | None = Field(default=None, ge=0, le=100_000)
    query: str | None = Field(default=None, max_length=500)
    request_id: str | None = Field(default=None, max_length=200)
    value: Real | None = Field(default=None, ge=-1e15, le=1e15, allow_inf_nan=False)


class Events(Body):
    model_config = _example(events=[{"event_id": "e-1", "user_id": "u1", "item_id": "v1", "event": "click"}])
    events: list[EventIn] = Field(max_length=10_000)


class Rejected(BaseModel):
    index: int
    code: str
    message: str
    action: str


class EventsReply(BaseModel):
    accepted: int
    duplicate: int
    rejected: list[Rejected]


class ItemIn(Body):
    item_id: Id
    title: str = Field(min_length=1, max_length=2000)
    description: str | None = Field(default=None, max_length=20_000)
    brand: str | None = Field(default=None, max_length=500)
    category: list[Annotated[str, Field(max_length=500)]] | None = Field(default=None, max_length=20)
    price: Real | None = Field(
        default=None, ge=0, le=1e12, allow_inf_nan=False, exclude=True, description="in the currency's unit, instead of price_micros"
    )
    price_micros: Count | None = Field(default=None, ge=0, le=_MAX_INT)
    currency: str | None = Field(default=None, max_length=10)
    attributes: dict[Annotated[str, Field(max_length=200)], Annotated[str, Field(max_length=2000)]] | None = Field(
        default=None, max_length=100
    )
    created_at: Moment | None = None
    duration_s: Seconds | None = None
    in_stock: Truth | None = None
    image_url: str | None = Field(default=None, max_length=2000)

    @model_validator(mode="after")
    def _one_price(self) -> ItemIn:
        if self.price is not None:
            micros = round(self.price * 1e6)
            if self.price_micros not in (None, micros):
                raise ValueError("price and price_micros differ: give one of them")
            self.price_micros = micros
        return self


class Items(Body):
    model_config = _example(
        items=[
            {"item_id": "live-1", "title": "Green tea, 50 g", "category": ["Goods", "Tea"], "price_micros": 9_500_000, "in_stock": True}
        ]
    )
    items: list[ItemIn] = Field(min_length=1, max_length=10_000)


class ItemsReply(BaseModel):
    new: int
    updated: int
    catalogue_version: int


class RemovedReply(BaseModel):
    removed: int
    unknown: list[str]
    """Ids that the catalogue does not hold, or no longer."""
    catalogue_version: int


class ForgottenReply(BaseModel):
    user_id: str
    events_removed: int


class Deployment(Body):
    """A model folder to put to use."""

    model_config = _example(folder="model-2", mode="canary", share=0.1)
    folder: str = Field(min_length=1, max_length=500)
    mode: Literal["current", "canary", "shadow"] = "current"
    share: Real = Field(default=0.1, gt=0, le=1, allow_inf_nan=False)
    """Share of people that a canary answers."""


class Problem(BaseModel):
    """The one error format."""

    code: str
    message: str
    field: str | None = None
    value: str | None = None
    action: str | None = None
