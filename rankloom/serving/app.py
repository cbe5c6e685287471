"""The HTTP face: recommend, search, events, items, people, scenarios, models, and the page (DESIGN: HTTP).

Routes are thin: `gate.py` refuses, `service.py` answers, `registry.py` knows the models, the state store remembers.
Errors are one problem format, without tracebacks.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated, Any, Final

from fastapi import APIRouter, FastAPI, Request, Response
from fastapi import Path as PathPart
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse
from fastapi.routing import APIRoute
from fastapi.staticfiles import StaticFiles
from pydantic import ValidationError
from starlette.exceptions import HTTPException

from rankloom import __version__
from rankloom.data.filters import parse_filter
from rankloom.errors import RankloomError
from rankloom.recommender import Rankloom
from rankloom.serving import console, http
from rankloom.serving.batching import OverloadedError
from rankloom.serving.context_cache import ContextCache
from rankloom.serving.contract import (
    Ask,
    Deployment,
    Events,
    EventsReply,
    ForgottenReply,
    Items,
    ItemsReply,
    Problem,
    RemovedReply,
    Reply,
)
from rankloom.serving.events import stored_event
from rankloom.serving.gate import Gate
from rankloom.serving.http import problem
from rankloom.serving.keys import KeyRing
from rankloom.serving.metrics import BACK, Metrics
from rankloom.serving.registry import RefusedModelError, Registry
from rankloom.serving.scenarios import Scenario, Scenarios
from rankloom.serving.service import Service
from rankloom.serving.settings import ServerSettings
from rankloom.serving.state import StateStore, StateUnavailableError, open_store

_HERE = Path(__file__).parent
_log = logging.getLogger("rankloom.serving")
_STATUS: Final = {
    "deployment-running": 409, "nothing-to-promote": 409, "nothing-before": 409,
    "write-failed": 503, "state-unavailable": 503, "overloaded": 503, "deadline-passed": 503,
}  # fmt: skip
Id = Annotated[str, PathPart(min_length=1, max_length=200)]
_POLL_S: Final = 0.25


class LeanRoute(APIRoute):
    """A route whose whole body is one `Ask`: read and checked in one step, without the machinery that finds parameters."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """What the route runs; its signature still makes the OpenAPI page."""
        endpoint = self.endpoint

        async def lean(request: Request) -> Response:
            body = await request.body()
            try:
                ask = Ask.model_validate_json(body)
            except ValidationError as error:
                raise RequestValidationError([{**e, "loc": ("body", *e["loc"])} for e in error.errors()]) from None
            response: Response = await endpoint(ask, request)
            return response

        return lean


class Serving:
    """The parts of one server, put together. `app.state.serving` holds it."""

    def __init__(self, model: Rankloom, settings: ServerSettings) -> None:
        self.settings = settings
        self.store: StateStore = open_store(settings.state)
        self.metrics = Metrics(only=None if settings.gate else BACK)
        self.keys = KeyRing(list(settings.keys), master=settings.api_key)
        self.contexts: ContextCache | None = None
        if settings.context_cache_mb:
            self.contexts = ContextCache(
                int(settings.context_cache_mb * 2**20),
                count=lambda outcome: self.metrics.count("rankloom_context_cache_total", outcome=outcome),
            )
        model.contexts = self.contexts
        self.registry = Registry(
            model, self.store, folder=settings.folder, asked=settings.asked, root=settings.root, pointer=settings.pointer,
            guardrails=settings.guardrails, rules=lambda: self.service.recent_rules(), load=self._load,
        )  # fmt: skip
        self.scenarios = Scenarios(self.store, dict(settings.scenarios), self._check_scenario)
        self.service = Service(
            self.registry, self.store, self.scenarios, self.metrics, settings=settings.batching, contexts=self.contexts
        )
        self._stop = threading.Event()
        self._follower: threading.Thread | None = None

    def _load(self, folder: Path) -> Rankloom:
        model = Rankloom.from_pretrained(folder)
        cutting = sorted(name for name, own in self.scenarios.by_name.items() if own.min_relevance)
        if cutting and model.search_choices.relevance is None:
            raise RankloomError(
                f"the model folder {folder.name} has no calibrated relevance, and these placements cut by it: {', '.join(cutting)}",
                place=str(folder), action="train it on a log with more searches, or take min_relevance out of them", code="model-unfit",
            )  # fmt: skip
        model.contexts = self.contexts
        return model

    def _check_scenario(self, name: str, scenario: Scenario) -> None:
        # not the snapshot's own masks: they belong to the thread that asks the model
        if scenario.filter:
            parse_filter(scenario.filter).mask(self.registry.routing.current.snapshot.model.items)
        if scenario.min_relevance is not None:
            self.registry.routing.current.snapshot.model.check_relevance()

    def warm_up(self) -> None:
        """What has to be done before the first request, so that it is like any other."""
        self.registry.routing.current.snapshot.warm_up(
            [own.filter for own in self.scenarios.by_name.values() if own.filter]
        )

    def start(self) -> None:
        """Follows a store that other servers write to."""
        if self.store.shared and self._follower is None:
            self._follower = threading.Thread(target=self._follow, name="rankloom-follow", daemon=True)
            self._follower.start()

    def _follow(self) -> None:
        while not self._stop.wait(_POLL_S):
            try:
                self.registry.refresh()
                self.scenarios.refresh()
                if self.contexts is not None:
                    self.contexts.sweep()  # a person may have been forgotten by another server
            except RankloomError as error:
                _log.error("%s", error.message)

    def close(self) -> None:
        """Answers what waits, then frees everything."""
        self._stop.set()
        if self._follower is not None:
            self._follower.join()
        self.service.batcher.close()
        self.store.close()

    def events(self, batch: Events) -> dict[str, Any]:
        """Stores what can be stored; durable when it returns."""
        known = self.registry.routing.current.snapshot.model.row_of
        good, rejected = [], []
        for place, event in enumerate(batch.events):
            try:
                good.append(stored_event(event, known))
            except RankloomError as error:
                rejected.append({"index": place, "code": error.code, "message": error.message, "action": error.action})
        new = self.store.append(good)
        counts = {"accepted": sum(new), "duplicate": len(new) - sum(new), "rejected": len(rejected)}
        for outcome, amount in counts.items():
            self.metrics.count("rankloom_events_total", amount, outcome=outcome)
        return {**counts, "rejected": rejected}

    def forget(self, user_id: str) -> int:
        """Forgets a person everywhere in this server; how many stored events that removed."""
        if self.contexts is not None:
            self.contexts.forget(user_id)
        return self.store.delete_user(user_id)

    def gauges(self) -> dict[str, tuple[str, float]]:
        """Present values for `/metrics`."""
        now = self.registry.routing
        try:
            stored = float(self.store.count())
        except StateUnavailableError:
            stored = float("nan")
        kept: dict[str, tuple[str, float]] = {}
        if self.contexts is not None:
            self.contexts.sweep()
            kept = {
                "rankloom_context_cache_bytes": ("Memory of the contexts that are kept.", float(self.contexts.nbytes)),
                "rankloom_context_cache_people": ("People whose context is kept.", float(len(self.contexts))),
            }
        return kept | {
            "rankloom_events_stored": ("Events in the store.", stored),
            "rankloom_items": ("Items that can be recommended.", float(now.current.snapshot.alive.sum())),
            "rankloom_catalogue_version": ("Changes of the live catalogue.", float(now.current.snapshot.catalogue)),
            "rankloom_queue": ("Requests that wait for the model.", float(self.service.batcher.waiting)),
            "rankloom_batch_seconds": ("Smoothed time of a batch.", self.service.batcher.batch_s),
            "rankloom_expired": ("Requests whose deadline passed while they waited.", float(self.service.batcher.expired)),
            "rankloom_canary_share": ("Share of people whom a canary answers.", now.share),
            "rankloom_rollbacks": ("Canaries that a guardrail took back.", float(self.registry.rollbacks)),
        }


def create_app(model: Rankloom, settings: ServerSettings | None = None, **more: Any) -> FastAPI:
    """The application of one model. Keyword arguments are those of `ServerSettings`."""
    serving = Serving(model, settings or ServerSettings(**more))
    registry, service, scenarios = serving.registry, serving.service, serving.scenarios

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        serving.start()
        yield
        serving.close()

    refusals: dict[int | str, dict[str, Any]] = {
        status: {"model": Problem, "description": what}
        for status, what in (
            (400, "wrong in itself"), (401, "no key"), (403, "not with this key"), (413, "too large"), (422, "malformed"),
            (429, "too often"), (503, "not now: see Retry-After"),
        )
    }  # fmt: skip
    app = FastAPI(
        title="Rankloom", version=__version__, docs_url=None, redoc_url=None, lifespan=lifespan, responses=refusals,
        summary="One generative model for feed, search and ads",
    )  # fmt: skip
    app.state.serving = serving
    app.mount("/static", StaticFiles(directory=_HERE / "static"), name="static")
    if serving.settings.gate:
        app.add_middleware(Gate, keys=serving.keys, metrics=serving.metrics, busy=service.batcher.check)
    app.include_router(console.router(service))

    # -- errors ----------------------------------------------------------------------------------------------------

    @app.exception_handler(RankloomError)
    async def told(_: Request, error: RankloomError) -> Response:
        status = _STATUS.get(error.code, 422 if isinstance(error, RefusedModelError) else 400)
        after = error.retry_after if isinstance(error, OverloadedError) else 1.0 if status == 503 else None
        action = error.action or http.CONTRACT
        return problem(status, error.code, error.message, field=error.place, action=action, retry_after=after)

    @app.exception_handler(RequestValidationError)
    async def malformed(_: Request, error: RequestValidationError) -> Response:
        return http.malformed(error)

    @app.exception_handler(HTTPException)
    async def refused(_: Request, error: HTTPException) -> Response:
        return http.refused(error)

    # -- asking ----------------------------------------------------------------------------------------------------

    async def answer(ask: Ask, request: Request, *, search: bool) -> Response:
        state = request.scope["state"]
        if request.query_params.get("explain", "0").lower() in ("", "1", "true"):
            ask = ask.model_copy(update={"explain": True})
        question = service.question(ask, search=search, request_id=state["request_id"])
        reply = await service.answer(question, deadline_s=state.get("deadline_s"))
        state["log"] = {"version": reply["model_version"], "scenario": ask.scenario, "degraded": reply["degraded_cause"]}
        return JSONResponse(reply)

    asking = APIRouter(route_class=LeanRoute)

    @asking.post("/v1/recommend", response_model=Reply)
    async def recommend(ask: Ask, request: Request) -> Response:
        """What to show one person next."""
        return await answer(ask, request, search=ask.words is not None)

    @asking.post(
        "/v1/search",
        response_model=Reply,
        openapi_extra={"requestBody": {"content": {"application/json": {"example": {"query": "green tea", "k": 5, "min_relevance": 0.001, "max_typos": 2, "explain": True}}}}},
    )
    async def search(ask: Ask, request: Request) -> Response:
        """The same body with a `query`. `?explain` in the address asks for explanations too."""
        return await answer(ask, request, search=True)

    app.include_router(asking)

    # -- telling ---------------------------------------------------------------------------------------------------

    @app.post("/v1/events", response_model=EventsReply)
    def events(batch: Events) -> dict[str, Any]:
        """Stores events before it answers; a repeated `event_id` is counted once."""
        return serving.events(batch)

    @app.put("/v1/items", response_model=ItemsReply)
    def put_items(batch: Items) -> dict[str, Any]:
        """Adds or updates items, for good; they can be recommended at once."""
        new, version = registry.put_items([item.model_dump(mode="json", exclude_none=True) for item in batch.items])
        return {"new": new, "updated": len(batch.items) - new, "catalogue_version": version}

    @app.delete("/v1/items/{item_id:path}", response_model=RemovedReply)
    def delete_item(item_id: Id) -> dict[str, Any]:
        """Takes an item out of every answer at once, for good; one that is not in the catalogue is named, and nothing changes."""
        removed, version = registry.remove_item(item_id)
        return {"removed": removed, "unknown": [] if removed else [item_id], "catalogue_version": version}

    @app.delete("/v1/users/{user_id:path}", response_model=ForgottenReply)
    def delete_user(user_id: Id) -> dict[str, Any]:
        """Forgets a person: stored events, and the use of any model folder's copy of their history."""
        return {"user_id": user_id, "events_removed": serving.forget(user_id)}

    # -- scenarios and models --------------------------------------------------------------------------------------

    @app.get("/v1/scenarios")
    def list_scenarios() -> dict[str, Scenario]:
        """Every scenario with its settings."""
        return scenarios.by_name

    @app.put("/v1/scenarios/{name}")
    def put_scenario(name: Annotated[str, PathPart(min_length=1, max_length=100)], scenario: Scenario) -> Scenario:
        """Defines a scenario; in force for the next request."""
        scenarios.put(name, scenario)
        return scenario

    @app.delete("/v1/scenarios/{name}")
    def delete_scenario(name: Annotated[str, PathPart(min_length=1, max_length=100)]) -> dict[str, str]:
        """Removes a definition; requests that name it are refused from now on."""
        scenarios.get(name)
        scenarios.put(name, None)
        return {"removed": name}

    @app.get("/v1/models")
    def models() -> dict[str, Any]:
        """Versions that are loaded, their figures, and what happened to them."""
        return registry.describe()

    @app.post("/v1/models")
    def deploy(own: Deployment) -> dict[str, Any]:
        """Loads, checks, probes and warms up a model folder beside the serving one, then puts it to use."""
        try:
            version = registry.deploy(own.folder, mode=own.mode, share=own.share)
        except RankloomError as error:
            serving.metrics.count("rankloom_deployments_total", outcome=error.code)
            raise
        serving.metrics.count("rankloom_deployments_total", outcome=own.mode)
        return {"model_version": version, "mode": own.mode}

    @app.post("/v1/models/promote")
    def promote() -> dict[str, str]:
        """The canary, else the shadow, answers everybody."""
        return {"model_version": registry.promote()}

    @app.post("/v1/models/rollback")
    def rollback() -> dict[str, str]:
        """The previous version answers everybody again, at once."""
        return {"model_version": registry.rollback()}

    @app.post("/v1/models/stop")
    def stop() -> dict[str, list[str]]:
        """Takes canary and shadow away."""
        return {"stopped": registry.stop()}

    # -- probes ----------------------------------------------------------------------------------------------------

    @app.get("/healthz")
    async def healthz() -> dict[str, str]:
        """The process lives."""
        return {"status": "ok"}

    @app.get("/readyz")
    async def readyz() -> dict[str, str]:
        """It answers requests: loaded, warmed up, not about to stop."""
        return {"status": "ready", "model_version": registry.routing.current.version}

    @app.get("/metrics")
    def prometheus() -> PlainTextResponse:
        """Counters for Prometheus."""
        text = serving.metrics.render(serving.gauges())
        return PlainTextResponse(text, media_type="text/plain; version=0.0.4; charset=utf-8")

    return app
