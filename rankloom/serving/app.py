"""The HTTP face: recommend, search, events, items, and the page that shows how the beam got there (DESIGN: HTTP).

One lock around the model: requests of one process run one after the other. Events are on disk before they are
acknowledged and count in the same person's next request. Errors are one problem format, without tracebacks.
"""

from __future__ import annotations

import threading
import time
import uuid
from collections import Counter
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import polars as pl
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, PlainTextResponse
from fastapi.staticfiles import StaticFiles
from jinja2 import Environment, FileSystemLoader, select_autoescape
from pydantic import BaseModel, ConfigDict, Field
from starlette.exceptions import HTTPException

from rankloom.data.schema import EVENT_KINDS
from rankloom.errors import RankloomError
from rankloom.recommender import HistoryEvent, Rankloom
from rankloom.recommender import Request as ModelRequest
from rankloom.serving.describe import describe_prefixes
from rankloom.serving.http import CSP
from rankloom.serving.http import problem as _problem
from rankloom.serving.state import EventStore, StoredEvent

_HERE = Path(__file__).parent
_MAX_BODY = 2_000_000


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid")


class HistoryItem(_Body):
    item_id: str = Field(max_length=200)
    event: str = "click"
    timestamp: datetime | None = None
    watch_s: float | None = Field(default=None, ge=0)
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
    exclude: list[str] = Field(default=[], max_length=1000)
    explain: bool = False


class EventIn(_Body):
    event_id: str | None = Field(default=None, max_length=200)
    user_id: str = Field(min_length=1, max_length=200)
    item_id: str = Field(min_length=1, max_length=200)
    event: str
    timestamp: datetime | None = None
    watch_s: float | None = Field(default=None, ge=0)
    surface: Literal["feed", "search", "ads"] = "feed"


class Events(_Body):
    events: list[EventIn] = Field(max_length=10_000)


class ItemIn(_Body):
    item_id: str = Field(min_length=1, max_length=200)
    title: str = Field(min_length=1, max_length=2000)
    description: str | None = None
    brand: str | None = None
    category: list[str] | None = None
    price_micros: int | None = Field(default=None, ge=0)
    duration_s: float | None = Field(default=None, ge=0)
    in_stock: bool | None = None


class Items(_Body):
    items: list[ItemIn] = Field(min_length=1, max_length=10_000)


def create_app(model: Rankloom, *, state_path: Path | None = None, api_key: str | None = None) -> FastAPI:
    """The application of one model. `state_path` None keeps events in memory only; `api_key` guards every `/v1` route."""
    app = FastAPI(title="Rankloom", version="0.1.0", docs_url=None, redoc_url=None)
    store = EventStore(state_path)
    lock = threading.Lock()
    metrics: Counter[str] = Counter()
    app.state.store = store
    pages = Environment(loader=FileSystemLoader(_HERE / "templates"), autoescape=select_autoescape())
    app.mount("/static", StaticFiles(directory=_HERE / "static"), name="static")
    meanings = describe_prefixes(model)

    @app.middleware("http")
    async def guard(request: Request, call_next: Any) -> Response:
        started = time.perf_counter()
        if int(request.headers.get("content-length") or 0) > _MAX_BODY:
            return _problem(
                413, "body-too-large", f"the body is larger than {_MAX_BODY:,} bytes", action="send smaller batches"
            )
        if api_key is not None and request.url.path.startswith("/v1") and request.headers.get("x-api-key") != api_key:
            return _problem(
                401, "key-missing", "this server needs an API key", action="send it in the header X-Api-Key"
            )
        response: Response = await call_next(request)
        response.headers["Content-Security-Policy"] = CSP
        response.headers["X-Content-Type-Options"] = "nosniff"
        metrics["requests_total"] += 1
        metrics[f"responses_{response.status_code}"] += 1
        metrics["request_microseconds_total"] += int((time.perf_counter() - started) * 1e6)
        return response

    @app.exception_handler(RankloomError)
    async def told(_: Request, error: RankloomError) -> Response:
        return _problem(400, error.code, error.message, field=error.place, action=error.action)

    @app.exception_handler(RequestValidationError)
    async def malformed(_: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        value = str(first.get("input"))[:200]
        return _problem(
            422, "malformed", str(first["msg"]), field=".".join(str(part) for part in first["loc"]), value=value
        )

    @app.exception_handler(HTTPException)
    async def refused(_: Request, error: HTTPException) -> Response:
        return _problem(error.status_code, "not-found" if error.status_code == 404 else "refused", str(error.detail))

    def history_of(user: str | None) -> list[HistoryEvent]:
        if user is None:
            return []
        stored = [] if store.is_deleted(user) else model.history_of(user)
        return [*stored, *store.history(user)]

    def request_of(ask: Ask, *, search: bool) -> ModelRequest:
        if ask.history is not None:
            history = [HistoryEvent(h.item_id, h.event, h.timestamp, h.watch_s, h.surface) for h in ask.history]
        else:
            history = history_of(ask.user_id)
        # a deleted person's static features are forgotten with the history
        user = None if ask.user_id is not None and store.is_deleted(ask.user_id) else ask.user_id
        return ModelRequest(
            user=user, history=tuple(history), k=ask.k, filter=ask.filter, exclude=tuple(ask.exclude), query=ask.query,
            surface="search" if search else "feed", explain=ask.explain, seen="allow" if search else "auto",
        )  # fmt: skip

    def answer(ask: Ask, *, search: bool) -> dict[str, Any]:
        with lock:
            reply = model.recommend_batch([request_of(ask, search=search)])[0]
        return {"request_id": uuid.uuid4().hex, "scenario": ask.scenario, **asdict(reply)}

    @app.post("/v1/recommend")
    def recommend(ask: Ask) -> dict[str, Any]:
        """What to show one person next."""
        return answer(ask, search=ask.query is not None)

    @app.post("/v1/search")
    def search(ask: Ask) -> dict[str, Any]:
        """The same body with a `query`."""
        if not ask.query or not ask.query.strip():
            raise RankloomError(
                "a search needs a query", place="query", action="send the words in `query`", code="query-missing"
            )
        return answer(ask, search=True)

    @app.post("/v1/events")
    def events(batch: Events) -> dict[str, Any]:
        """Stores events before it answers; a repeated `event_id` is counted once."""
        good, rejected = [], []
        for place, e in enumerate(batch.events):
            if e.event not in EVENT_KINDS[1:]:
                rejected.append({"index": place, "code": "event-unknown", "message": f"unknown event kind {e.event!r}"})
            elif model.row_of(e.item_id) is None:
                rejected.append(
                    {"index": place, "code": "item-unknown", "message": f"no item {e.item_id!r} in the catalogue"}
                )
            else:
                when = e.timestamp or datetime.now(UTC)
                when = when if when.tzinfo else when.replace(tzinfo=UTC)
                good.append(
                    StoredEvent(
                        e.event_id or uuid.uuid4().hex, e.user_id, e.item_id, e.event, when, e.watch_s, e.surface
                    )
                )
        new = store.append(good)
        metrics["events_accepted_total"] += sum(new)
        return {"accepted": sum(new), "duplicate": len(new) - sum(new), "rejected": rejected}

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
        lines = [f"rankloom_{name} {value}" for name, value in sorted(metrics.items())]
        lines += [f"rankloom_events_stored {store.count()}", f"rankloom_items {model.trie.n_items}"]
        return PlainTextResponse("\n".join(lines) + "\n")

    # -- the page --------------------------------------------------------------------------------------------------

    @app.get("/", response_class=HTMLResponse)
    def page() -> str:
        return pages.get_template("console.html").render(
            model_version=model.model_version, n_items=model.trie.n_items, n_users=len(model.users)
        )

    @app.get("/v1/console/users")
    def users(prefix: str = "", limit: int = 50) -> list[str]:
        """People whose id starts with `prefix`."""
        return [user for user in model.users if user.startswith(prefix)][: min(limit, 500)]

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
        request = request_of(ask, search=ask.query is not None)
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


def _card(model: Rankloom, item_id: str) -> dict[str, Any]:
    """What a card shows of an item."""
    row = model.row_of(item_id)
    if row is None:
        return {"item_id": item_id, "title": item_id, "category": [], "price": None, "duration_s": None}
    own = model.items.row(row, named=True)
    price = own.get("price_micros")
    return {
        "item_id": item_id, "title": own["title"], "category": own.get("category") or [],
        "price": None if price is None else price / 1e6, "duration_s": own.get("duration_s"),
    }  # fmt: skip
