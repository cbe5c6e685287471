"""The HTTP face: recommend, search, events, items, and the page that shows how the beam got there (DESIGN: HTTP).

One lock around the model: requests of one process run one after the other. Events are on disk before they are
acknowledged and count in the same person's next request. Errors are one problem format, without tracebacks.
"""

from __future__ import annotations

import hmac
import logging
import threading
import time
import uuid
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from itertools import islice
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import polars as pl
from fastapi import FastAPI, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, PlainTextResponse
from fastapi.staticfiles import StaticFiles
from jinja2 import Environment, FileSystemLoader, select_autoescape
from pydantic import AfterValidator, BaseModel, ConfigDict, Field
from starlette.exceptions import HTTPException

from rankloom.data.schema import EVENT_KINDS
from rankloom.errors import RankloomError
from rankloom.recommender import HistoryEvent, Rankloom
from rankloom.recommender import Request as ModelRequest
from rankloom.serving.describe import describe_prefixes, example_filters
from rankloom.serving.http import CSP
from rankloom.serving.http import problem as _problem
from rankloom.serving.metrics import Metrics
from rankloom.serving.state import StoredEvent, open_store

_HERE = Path(__file__).parent
_MAX_BODY: Final = 2_000_000
_MAX_INT: Final = 2**62
_EARLIEST: Final = datetime(1970, 1, 1, tzinfo=UTC)
_log = logging.getLogger("rankloom.serving")


def _utc(when: datetime) -> datetime:
    """In UTC; a time without a zone is taken as UTC.

    Raises:
        ValueError: before 1970, or so late that no clock is only a little wrong.
    """
    when = when.replace(tzinfo=UTC) if when.tzinfo is None else when
    # compared before it is moved to UTC, which fails at the ends of the calendar
    if not _EARLIEST <= when <= datetime.now(UTC) + timedelta(days=2):
        raise ValueError("the time is before 1970 or in the future")
    return when.astimezone(UTC)


Moment = Annotated[datetime, AfterValidator(_utc)]
Seconds = Annotated[float, Field(ge=0, le=1e7, allow_inf_nan=False)]


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid")


class HistoryItem(_Body):
    item_id: str = Field(max_length=200)
    event: str = Field(default="click", max_length=100)
    timestamp: Moment | None = None
    watch_s: Seconds | None = None
    surface: Literal["feed", "search", "ads"] = "feed"


class Ask(_Body):
    """One body for recommend and search."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={"examples": [{"user_id": "u1", "k": 5, "filter": "price < 30", "explain": True}]},
    )
    scenario: str = Field(default="default", max_length=100)
    user_id: str | None = Field(default=None, max_length=200)
    history: list[HistoryItem] | None = Field(default=None, max_length=2000)
    query: str | None = Field(default=None, max_length=500)
    k: int = Field(default=10, ge=1, le=200)
    filter: str | None = Field(default=None, max_length=4000)
    exclude: list[Annotated[str, Field(max_length=200)]] = Field(default=[], max_length=1000)
    explain: bool = False


class EventIn(_Body):
    event_id: str | None = Field(default=None, max_length=200)
    user_id: str = Field(min_length=1, max_length=200)
    item_id: str = Field(min_length=1, max_length=200)
    event: str = Field(max_length=100)
    timestamp: datetime | None = None
    watch_s: Seconds | None = None
    surface: Literal["feed", "search", "ads"] = "feed"


class Events(_Body):
    events: list[EventIn] = Field(max_length=10_000)


class ItemIn(_Body):
    item_id: str = Field(min_length=1, max_length=200)
    title: str = Field(min_length=1, max_length=2000)
    description: str | None = Field(default=None, max_length=20_000)
    brand: str | None = Field(default=None, max_length=500)
    category: list[Annotated[str, Field(max_length=500)]] | None = Field(default=None, max_length=20)
    price_micros: int | None = Field(default=None, ge=0, le=_MAX_INT)
    duration_s: Seconds | None = None
    in_stock: bool | None = None


class Items(_Body):
    items: list[ItemIn] = Field(min_length=1, max_length=10_000)


def create_app(model: Rankloom, *, state_path: Path | None = None, api_key: str | None = None) -> FastAPI:
    """The application of one model. `state_path` None keeps events in memory only; `api_key` guards every `/v1` route."""
    app = FastAPI(title="Rankloom", version="0.1.0", docs_url=None, redoc_url=None)
    store = open_store(state_path)
    lock = threading.Lock()
    metrics = Metrics()
    app.state.store = store
    pages = Environment(loader=FileSystemLoader(_HERE / "templates"), autoescape=select_autoescape())
    app.mount("/static", StaticFiles(directory=_HERE / "static"), name="static")
    meanings = describe_prefixes(model)

    def refusal(request: Request) -> Response | None:
        """Why a request goes no further, before its body is read."""
        length = request.headers.get("content-length", "0")
        if request.headers.get("transfer-encoding"):
            # a body without a length could be of any size
            return _problem(
                411, "length-required", "the body comes without a Content-Length", action="send the body whole, with its length"
            )  # fmt: skip
        if not length.isdigit() or int(length) > _MAX_BODY:
            return _problem(
                413, "body-too-large", f"the body is larger than {_MAX_BODY:,} bytes", action="send smaller batches"
            )
        if api_key is not None and request.url.path.startswith("/v1"):
            given = request.headers.get("x-api-key", "")
            if not hmac.compare_digest(given.encode(), api_key.encode()):
                return _problem(
                    401, "key-missing", "this server needs an API key", action="send it in the header X-Api-Key"
                )
        return None

    @app.middleware("http")
    async def guard(request: Request, call_next: Any) -> Response:
        started = time.perf_counter()
        response: Response | None = refusal(request)
        if response is None:
            try:
                response = await call_next(request)
            except Exception:
                # a defect of ours: the log keeps what happened, the caller gets the one format
                _log.exception("%s %s", request.method, request.url.path)
                response = _problem(
                    500, "internal", "the server failed at this request", action="see the server's log; other requests go on"
                )  # fmt: skip
        response.headers["Content-Security-Policy"] = CSP
        response.headers["X-Content-Type-Options"] = "nosniff"
        response.headers["Referrer-Policy"] = "no-referrer"
        # the route and not the path: a path holds ids, and there are as many as people
        route = getattr(request.scope.get("route"), "path", "other")
        metrics.count("rankloom_http_requests_total", route=route, status=str(response.status_code))
        metrics.observe(route, time.perf_counter() - started)
        return response

    @app.exception_handler(RankloomError)
    async def told(_: Request, error: RankloomError) -> Response:
        return _problem(400, error.code, error.message, field=error.place, action=error.action)

    @app.exception_handler(RequestValidationError)
    async def malformed(_: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        # what came may hold half a surrogate pair, which no reply can carry
        value = str(first.get("input"))[:200].encode("utf-8", "replace").decode()
        field = ".".join(str(part) for part in first["loc"]).encode("utf-8", "replace").decode()
        return _problem(422, "malformed", str(first["msg"]), field=field, value=value)

    @app.exception_handler(HTTPException)
    async def refused(_: Request, error: HTTPException) -> Response:
        code = {400: "malformed", 404: "not-found", 405: "method-not-allowed"}.get(error.status_code, "refused")
        return _problem(error.status_code, code, str(error.detail))

    def history_of(user: str | None) -> list[HistoryEvent]:
        if user is None:
            return []
        person = store.people([user])[0]
        stored = [] if person.deleted else model.history_of(user)
        return [*stored, *(HistoryEvent(e.item_id, e.event, e.timestamp, e.watch_s, e.surface) for e in person.events)]

    def request_of(ask: Ask, *, search: bool) -> ModelRequest:
        if ask.history is not None:
            history = [HistoryEvent(h.item_id, h.event, h.timestamp, h.watch_s, h.surface) for h in ask.history]
        else:
            history = history_of(ask.user_id)
        # a deleted person's static features are forgotten with the history
        user = None if ask.user_id is not None and store.people([ask.user_id])[0].deleted else ask.user_id
        return ModelRequest(
            user=user, history=tuple(history), k=ask.k, filter=ask.filter, exclude=tuple(ask.exclude), query=words_of(ask),
            surface="search" if search else "feed", explain=ask.explain, seen="allow" if search else "auto",
        )  # fmt: skip

    def answer(ask: Ask, *, search: bool) -> dict[str, Any]:
        request = request_of(ask, search=search)
        with lock:
            reply = model.recommend_batch([request])[0]
        if reply.degraded:
            metrics.count("rankloom_degraded_total")
        return {"request_id": uuid.uuid4().hex, "scenario": ask.scenario, **asdict(reply)}

    @app.post("/v1/recommend")
    def recommend(ask: Ask) -> dict[str, Any]:
        """What to show one person next."""
        return answer(ask, search=words_of(ask) is not None)

    @app.post("/v1/search")
    def search(ask: Ask) -> dict[str, Any]:
        """The same body with a `query`."""
        if words_of(ask) is None:
            raise RankloomError(
                "a search needs a query", place="query", action="send the words in `query`", code="query-missing"
            )
        return answer(ask, search=True)

    @app.post("/v1/events")
    def events(batch: Events) -> dict[str, Any]:
        """Stores events before it answers; a repeated `event_id` is counted once."""
        good, rejected = [], []
        for place, e in enumerate(batch.events):

            def reject(code: str, message: str, index: int = place) -> None:
                rejected.append({"index": index, "code": code, "message": message})

            try:
                when = datetime.now(UTC) if e.timestamp is None else _utc(e.timestamp)
            except ValueError as error:
                reject("time-range", str(error))
                continue
            if e.event not in EVENT_KINDS[1:]:
                reject("event-unknown", f"unknown event kind {e.event!r}")
            elif model.row_of(e.item_id) is None:
                reject("item-unknown", f"no item {e.item_id!r} in the catalogue")
            else:
                own = e.event_id or uuid.uuid4().hex
                good.append(StoredEvent(own, e.user_id, e.item_id, e.event, when, e.watch_s, e.surface))
        new = store.append(good)
        counts = {"accepted": sum(new), "duplicate": len(new) - sum(new), "rejected": len(rejected)}
        for outcome, amount in counts.items():
            metrics.count("rankloom_events_total", amount, outcome=outcome)
        return {**counts, "rejected": rejected}

    @app.put("/v1/items")
    def put_items(batch: Items) -> dict[str, Any]:
        """Adds or updates items; they can be recommended at once."""
        frame = pl.DataFrame([item.model_dump(exclude_none=True) for item in batch.items], infer_schema_length=None)
        with lock:
            new = model.add_items(frame)
        return {"new": new, "updated": len(batch.items) - new}

    @app.delete("/v1/items/{item_id}")
    def delete_item(item_id: str) -> dict[str, int]:
        """Takes an item out of every answer at once."""
        with lock:
            return {"removed": model.remove_items([item_id])}

    @app.delete("/v1/users/{user_id}")
    def delete_user(user_id: str) -> dict[str, Any]:
        """Forgets a person: stored events, and the use of the model folder's copy of the history."""
        return {"user_id": user_id, "events_removed": store.delete_user(user_id)}

    @app.get("/healthz")
    def healthz() -> dict[str, str]:
        return {"status": "ok"}

    @app.get("/readyz")
    def readyz() -> dict[str, str]:
        return {"status": "ready", "model_version": model.model_version}

    @app.get("/metrics")
    def prometheus() -> PlainTextResponse:
        gauges = {
            "rankloom_events_stored": ("Events in the store.", float(store.count())),
            "rankloom_items": ("Items that can be recommended.", float(model.trie.n_items)),
        }
        return PlainTextResponse(metrics.render(gauges), media_type="text/plain; version=0.0.4; charset=utf-8")

    # -- the page --------------------------------------------------------------------------------------------------

    @app.get("/", response_class=HTMLResponse)
    def page() -> str:
        return pages.get_template("console.html").render(
            model_version=model.model_version, n_items=model.trie.n_items, n_users=len(model.users),
            simulated=bool(model.metadata.get("simulated")), examples=example_filters(model),
        )  # fmt: skip

    @app.get("/v1/console/users")
    def users(
        prefix: Annotated[str, Query(max_length=200)] = "", limit: Annotated[int, Query(ge=1, le=500)] = 50
    ) -> list[str]:
        """People whose id starts with `prefix`."""
        return list(islice((user for user in model.users if user.startswith(prefix)), limit))

    @app.get("/v1/console/users/{user_id}")
    def user(user_id: str) -> dict[str, Any]:
        """A person's history, latest first, with titles."""
        events = history_of(user_id)[-40:][::-1]
        return {
            "user_id": user_id,
            "known": user_id in model.users,
            "history": [{**_card(model, e.item_id), **asdict(e)} for e in events],
        }

    @app.post("/v1/console/trace")
    def trace(ask: Ask) -> dict[str, Any]:
        """What the model generates and how the beam got there, code by code, with what each code means."""
        request = request_of(ask, search=words_of(ask) is not None)
        with lock:
            reply, own = model.answer_with_trace(request)
        levels = [
            [{**asdict(beam), "meaning": meanings.get(beam.codes, "")} for beam in level] for level in own.levels
        ]  # fmt: skip
        return {
            "items": [{**asdict(item), **_card(model, item.item_id)} for item in reply.items],
            "levels": levels, "legal_continuations": own.legal_continuations, "funnel": own.funnel,
            "degraded_reason": reply.degraded_reason, "timing_ms": reply.timing_ms,
        }  # fmt: skip

    return app


def words_of(ask: Ask) -> str | None:
    """The words of a search, None where there are none."""
    return ask.query if ask.query and ask.query.strip() else None


def _card(model: Rankloom, item_id: str) -> dict[str, Any]:
    """What a card shows of an item."""
    row = model.row_of(item_id)
    if row is None:
        return {
            "item_id": item_id,
            "title": item_id,
            "category": [],
            "price": None,
            "currency": None,
            "duration_s": None,
        }
    own = model.items.row(row, named=True)
    price = own.get("price_micros")
    return {
        "item_id": item_id, "title": own["title"], "category": own.get("category") or [],
        "price": None if price is None else price / 1e6, "currency": own.get("currency"), "duration_s": own.get("duration_s"),
    }  # fmt: skip
