"""The page: one person, what the model generates for them, and how the beam got there."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, Query
from fastapi.responses import HTMLResponse
from jinja2 import Environment, FileSystemLoader, select_autoescape

from rankloom.serving.contract import Ask
from rankloom.serving.describe import describe_prefixes, example_filters, example_queries
from rankloom.serving.service import Service
from rankloom.serving.snapshot import Snapshot

_HERE = Path(__file__).parent


def router(service: Service) -> APIRouter:
    """Routes of the page; they show personal histories, so keys need the scope `console`."""
    own = APIRouter()
    pages = Environment(loader=FileSystemLoader(_HERE / "templates"), autoescape=select_autoescape())
    meanings: OrderedDict[str, dict[tuple[int, ...], str]] = OrderedDict()

    def current() -> Snapshot:
        return service.registry.routing.current.snapshot

    def meanings_of(snapshot: Snapshot) -> dict[tuple[int, ...], str]:
        # new items change little of what a code means: once a version is enough
        if snapshot.version not in meanings:
            meanings[snapshot.version] = describe_prefixes(snapshot.model)
            if len(meanings) > 4:
                meanings.popitem(last=False)
        return meanings[snapshot.version]

    @own.get("/", response_class=HTMLResponse, include_in_schema=False)
    def page() -> str:
        snapshot = current()
        return pages.get_template("console.html").render(
            model_version=snapshot.version, n_items=int(snapshot.alive.sum()), n_users=len(snapshot.model.users),
            simulated=bool(snapshot.model.metadata.get("simulated")), examples=example_filters(snapshot.model),
            queries=example_queries(snapshot.model),
        )  # fmt: skip

    @own.get("/v1/console/users")
    def users(
        prefix: Annotated[str, Query(max_length=200)] = "", limit: Annotated[int, Query(ge=1, le=500)] = 50
    ) -> list[str]:
        """People whose id starts with `prefix`."""
        found = list(islice((user for user in current().model.users if user.startswith(prefix)), limit))
        people = service.store.people(found)
        return [user for user, person in zip(found, people, strict=True) if not (person.deleted and not person.events)]

    @own.get("/v1/console/users/{user_id}")
    def user(user_id: str) -> dict[str, Any]:
        """A person's history, latest first, with titles."""
        snapshot = current()
        person = service.store.people([user_id])[0]
        events = service.history(snapshot, Ask(user_id=user_id[:200]), person)[-40:][::-1]
        return {
            "user_id": user_id,
            "known": user_id in snapshot.model.users and not person.deleted,
            "history": [{**card(snapshot, e.item_id), **asdict(e)} for e in events],
        }

    @own.post("/v1/console/trace")
    async def trace(ask: Ask) -> dict[str, Any]:
        """What the model generates and how the beam got there, code by code, with what each code means."""
        question = service.question(ask, search=ask.words is not None, request_id="trace")
        snapshot = current()
        work: Callable[[], Any] = lambda: service.trace(snapshot, question)  # noqa: E731
        reply, beam, seen = await asyncio.wrap_future(service.batcher.call(work))
        told = await asyncio.to_thread(meanings_of, snapshot)
        levels = [[{**asdict(b), "meaning": told.get(b.codes, "")} for b in level] for level in beam.levels]
        return {
            "items": [
                {**asdict(item), **card(snapshot, item.item_id), "seen": item.item_id in seen} for item in reply.items
            ],
            "levels": levels, "legal_continuations": beam.legal_continuations, "funnel": beam.funnel,
            "degraded_reason": reply.degraded_reason, "timing_ms": reply.timing_ms,
            "no_match": reply.no_match, "calibrated": snapshot.model.search_choices.relevance is not None,
            "corrections": [{"typed": typed, "read_as": other} for typed, other in reply.read_as],
            "unknown_words": list(reply.unknown), "matches": reply.matches,
        }  # fmt: skip

    return own


def card(snapshot: Snapshot, item_id: str) -> dict[str, Any]:
    """What a card shows of an item. A shop has one currency: an item that names none is priced in that of the others."""
    model = snapshot.model
    row = model.row_of(item_id)
    if row is None:
        return {"item_id": item_id, "title": item_id, "category": [], "price": None, "currency": None, "duration_s": None}
    own = model.items.row(row, named=True)
    price = own.get("price_micros")
    return {
        "item_id": item_id, "title": own["title"], "category": own.get("category") or [],
        "price": None if price is None else price / 1e6, "currency": own.get("currency") or snapshot.currency, "duration_s": own.get("duration_s"),
    }  # fmt: skip
