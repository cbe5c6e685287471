"""The HTTP face of the bid server: OpenRTB, notices, campaigns, explanations, the page (DESIGN: HTTP).

Bid requests and notices do not go through the framework: a plain ASGI function answers them, since a framework's
layers cost more than the bid. Everything else is FastAPI. A notice is acknowledged when the ledger is on disk (group
commit: all notices of some milliseconds share one sync). Importing this imports no torch.
"""

from __future__ import annotations

import asyncio
import hmac
import json
import time
import zlib
from collections.abc import Awaitable, Callable, MutableMapping
from datetime import datetime
from pathlib import Path
from typing import Any, Final
from urllib.parse import parse_qs

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, PlainTextResponse
from fastapi.staticfiles import StaticFiles
from jinja2 import Environment, FileSystemLoader, select_autoescape
from pydantic import BaseModel, ConfigDict, Field
from starlette.exceptions import HTTPException

from rankloom.bidding.serve.openrtb import VERSION
from rankloom.bidding.serve.service import BidServer
from rankloom.errors import RankloomError
from rankloom.serving import http
from rankloom.serving.http import CSP, problem

_HERE = Path(__file__).parent
_MAX_BODY: Final = 1_000_000
BID_PATH: Final = "/v1/openrtb/bid"
NOTICE_PATH: Final = "/v1/notices/"

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Conversion(_Body):
    conversion_id: str = Field(min_length=1, max_length=200)
    bid_id: str | None = Field(default=None, max_length=200)
    campaign_id: str | None = Field(default=None, max_length=200)
    timestamp: datetime | None = None
    value_micros: int | None = Field(default=None, ge=0, le=10**15)


class Conversions(_Body):
    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "examples": [{"conversions": [{"conversion_id": "order-17", "bid_id": "10000000000-1-f03c"}]}]
        },
    )
    conversions: list[Conversion] = Field(min_length=1, max_length=10_000)


class Notice(_Body):
    kind: str = Field(pattern="^(win|bill|loss)$")
    b: str = Field(max_length=200, description="the bid's id, from the notice address")
    t: str = Field(max_length=64, description="its mark")
    p: str = Field(default="", max_length=40, description="price")
    m: str = Field(default="", max_length=40, description="minimum to win")
    r: str = Field(default="", max_length=10, description="loss reason")


class Notices(_Body):
    notices: list[Notice] = Field(min_length=1, max_length=10_000)


class Switch(_Body):
    on: bool


def create_app(server: BidServer, *, api_key: str | None = None) -> Callable[[Scope, Receive, Send], Awaitable[None]]:
    """The ASGI application of one bid server. `api_key` guards every `/v1` route except notices, which carry their own mark."""
    framework = _framework(server, api_key)

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            path = scope["path"]
            if path == BID_PATH and scope["method"] == "POST":
                await _bid(server, api_key, scope, receive, send)
                return
            if path.startswith(NOTICE_PATH) and scope["method"] in ("GET", "POST"):
                await _notice(server, scope, receive, send)
                return
        await framework(scope, receive, send)

    app.framework = framework  # type: ignore[attr-defined]
    return app


# -- the hot path --------------------------------------------------------------------------------------------------------


class _TooLargeError(Exception):
    pass


async def _body(receive: Receive) -> bytes:
    message = await receive()
    body: bytes = message.get("body", b"")
    if not message.get("more_body"):
        if len(body) > _MAX_BODY:
            raise _TooLargeError
        return body
    parts, size = [body], len(body)
    while message.get("more_body"):
        message = await receive()
        if message["type"] == "http.disconnect":
            return b""
        parts.append(message.get("body", b""))
        size += len(parts[-1])
        if size > _MAX_BODY:
            raise _TooLargeError
    return b"".join(parts)


def _unzip(body: bytes) -> bytes:
    """A gzip body, at most as large as a plain one may be. zlib.error where it is none."""
    reader = zlib.decompressobj(wbits=31)
    plain = reader.decompress(body, _MAX_BODY)
    if reader.unconsumed_tail:
        raise _TooLargeError
    if not reader.eof:
        raise zlib.error("the gzip body ends early")
    return plain


async def _answer(send: Send, status: int, body: bytes, kind: bytes = b"application/json", **headers: str) -> None:
    pairs = [(b"content-length", str(len(body)).encode())] if status != 204 else []
    if body:
        pairs.append((b"content-type", kind))
    pairs += [(name.replace("_", "-").encode(), value.encode("latin-1", "replace")) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": status, "headers": pairs})
    await send({"type": "http.response.body", "body": body})


def _problem_body(code: str, message: str, **more: str) -> bytes:
    return json.dumps({"code": code, "message": message, **more}).encode()


_PROBLEM: Final = b"application/problem+json"


async def _bid(server: BidServer, api_key: str | None, scope: Scope, receive: Receive, send: Send) -> None:
    started = time.perf_counter()
    zipped, key = False, ""
    for name, value in scope["headers"]:
        if name == b"x-api-key":
            key = value.decode("latin-1")
        elif name == b"content-encoding":
            zipped = value.lower() == b"gzip"
    if api_key is not None:
        key = key or (parse_qs(scope["query_string"].decode("latin-1")).get("key") or [""])[0]
        if not hmac.compare_digest(key.encode("latin-1", "replace"), api_key.encode("latin-1", "replace")):
            text = _problem_body(
                "key-missing", "this server needs an API key", action="send it in the header X-Api-Key or as ?key="
            )
            await _answer(send, 401, text, _PROBLEM)
            return
    try:
        body = await _body(receive)
        if zipped:
            body = _unzip(body)
    except _TooLargeError:
        await _answer(
            send, 413, _problem_body("body-too-large", f"the body is larger than {_MAX_BODY:,} bytes"), _PROBLEM
        )
        return
    except zlib.error as error:
        await _answer(send, 400, _problem_body("malformed", f"the body is not gzip: {error}"), _PROBLEM)
        return
    try:
        reply = server.bid(body, started=started)
    except Exception as error:  # the exchange gets an answer, the operator a counter; money reserved so far lapses
        server.engine.counts["errors"] += 1
        text = _problem_body("internal", f"this request could not be answered: {type(error).__name__}")
        await _answer(send, 500, text, _PROBLEM)
        return
    if reply.status == 200:
        await _answer(send, 200, reply.body, x_openrtb_version=VERSION)
    elif reply.status == 204:
        await _answer(send, 204, b"", x_openrtb_version=VERSION, x_no_bid_reason=reply.reason)
    else:
        await _answer(send, reply.status, reply.body, _PROBLEM)


async def on_disk(server: BidServer) -> None:
    """Waits for the group commit. OSError where the disk refuses."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[None] = loop.create_future()

    def settle(error: OSError | None) -> None:
        if done.done():
            return
        if error is None:
            done.set_result(None)
        else:
            done.set_exception(error)

    server.ledger.when_synced(lambda error: loop.call_soon_threadsafe(settle, error))
    await done


async def _notice(server: BidServer, scope: Scope, receive: Receive, send: Send) -> None:
    kind = scope["path"][len(NOTICE_PATH) :]
    if kind not in ("win", "bill", "loss"):
        await _answer(send, 404, _problem_body("not-found", f"no notice {kind[:50]!r}"), _PROBLEM)
        return
    query = parse_qs(scope["query_string"].decode("latin-1"), max_num_fields=50)
    own = {name: values[0] for name, values in query.items()}
    outcome = server.notice(
        kind, own.get("b", "")[:200], own.get("t", "")[:64], price=own.get("p", ""), min_to_win=own.get("m", ""),
        loss=own.get("r", "")[:10],
    )  # fmt: skip
    if outcome == "forged":
        text = _problem_body("notice-forged", "this notice does not carry the mark of a bid of ours", field="t")
        await _answer(send, 403, text, _PROBLEM)
        return
    try:
        await on_disk(server)
    except OSError as error:
        text = _problem_body(
            "ledger-unavailable", f"the ledger cannot be written: {error.strerror}", action="send it again"
        )
        await _answer(send, 503, text, _PROBLEM)
        return
    await _answer(send, 200, json.dumps({"outcome": outcome}).encode())


# -- everything else -------------------------------------------------------------------------------------------------------


def _framework(server: BidServer, api_key: str | None) -> FastAPI:
    app = FastAPI(title="Rankloom bid server", version="0.1.0", docs_url=None, redoc_url=None)
    pages = Environment(loader=FileSystemLoader(_HERE / "templates"), autoescape=select_autoescape())
    app.mount("/static", StaticFiles(directory=_HERE / "static"), name="static")

    @app.middleware("http")
    async def guard(request: Request, call_next: Any) -> Response:
        if int(request.headers.get("content-length") or 0) > 8 * _MAX_BODY:
            return problem(
                413, "body-too-large", f"the body is larger than {8 * _MAX_BODY:,} bytes", action="send smaller batches"
            )
        if api_key is not None and request.url.path.startswith("/v1"):
            key = request.headers.get("x-api-key", "")
            if not hmac.compare_digest(key.encode("latin-1", "replace"), api_key.encode("latin-1", "replace")):
                return problem(
                    401, "key-missing", "this server needs an API key", action="send it in the header X-Api-Key"
                )
        response: Response = await call_next(request)
        response.headers["Content-Security-Policy"] = CSP
        response.headers["X-Content-Type-Options"] = "nosniff"
        return response

    @app.exception_handler(RankloomError)
    async def told(_: Request, error: RankloomError) -> Response:
        status = 404 if error.code in ("campaign-unknown", "not-decided") else 400
        return problem(status, error.code, error.message, field=error.place, action=error.action)

    @app.exception_handler(RequestValidationError)
    async def malformed(_: Request, error: RequestValidationError) -> Response:
        return http.malformed(error)

    @app.exception_handler(HTTPException)
    async def refused(_: Request, error: HTTPException) -> Response:
        return http.refused(error)

    @app.exception_handler(OSError)
    async def no_disk(_: Request, error: OSError) -> Response:
        return problem(
            503, "ledger-unavailable", f"the ledger cannot be written: {error.strerror}", action="send it again"
        )

    @app.post("/v1/notices")
    async def notices(batch: Notices) -> dict[str, Any]:
        """Win, billing and loss notices in bulk, from a queue for example; on disk before the reply."""
        outcomes = [
            server.notice(own.kind, own.b, own.t, price=own.p, min_to_win=own.m, loss=own.r) for own in batch.notices
        ]
        await on_disk(server)
        return {"outcomes": outcomes}

    @app.post("/v1/conversions")
    async def conversions(batch: Conversions) -> dict[str, Any]:
        """Conversions, late ones too; on disk before the reply; a repeated `conversion_id` counts once."""
        result = server.convert([own.model_dump() for own in batch.conversions])
        await on_disk(server)
        return result

    @app.get("/v1/campaigns")
    def campaigns() -> dict[str, Any]:
        """All campaigns with the state of their day."""
        return {"killed": server.engine.killed, "campaigns": [server.describe(name) for name in list(server.campaigns)]}

    @app.put("/v1/campaigns")
    def put_campaign(body: dict[str, Any]) -> dict[str, Any]:
        """Adds or replaces a campaign."""
        return server.put_campaign(body)

    @app.get("/v1/campaigns/{campaign_id}")
    def campaign(campaign_id: str) -> dict[str, Any]:
        """Settings and state of a campaign."""
        return server.describe(campaign_id)

    @app.patch("/v1/campaigns/{campaign_id}")
    def change(campaign_id: str, body: dict[str, Any]) -> dict[str, Any]:
        """Changes budget, cost limit, cap, flight or status (running, paused, killed) from now on."""
        return server.change_campaign(campaign_id, body)

    @app.get("/v1/campaigns/{campaign_id}/explain")
    def explain(campaign_id: str) -> dict[str, Any]:
        """The latest decision: state, binding constraint, plan, and what 10% more would do."""
        return server.explain(campaign_id)

    @app.get("/v1/campaigns/{campaign_id}/series")
    def series(campaign_id: str) -> dict[str, Any]:
        """The day tick by tick."""
        return server.series(campaign_id)

    @app.post("/v1/kill")
    def kill(switch: Switch) -> dict[str, bool]:
        """The global kill switch; it survives a restart."""
        server.kill(switch.on)
        return {"killed": switch.on}

    @app.get("/healthz")
    def healthz() -> dict[str, str]:
        return {"status": "ok"}

    @app.get("/readyz")
    def readyz() -> Response:
        reason = server.unready()
        if reason is not None:
            return problem(503, "not-ready", reason)
        return Response(
            json.dumps({"status": "ready", "controller": server.control.controller.name}), media_type="application/json"
        )

    @app.get("/metrics")
    def metrics() -> PlainTextResponse:
        return PlainTextResponse(server.metrics())

    @app.get("/", response_class=HTMLResponse)
    def page() -> str:
        return pages.get_template("bidding.html").render(
            currency=server.settings.engine.currency,
            controller=server.control.controller.name,
            needs_key=api_key is not None,
        )

    return app
