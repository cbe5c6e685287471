"""The door of the server, in front of everything: what is refused here costs no parsing and no thread.

Size of the body, key and its rate, a queue that is too long, bodies that come too slowly; a request id for every reply;
counts, times and one line of log; the security headers; and the one error format for a defect of ours.
"""

from __future__ import annotations

import asyncio
import logging
import re
import time
import uuid
from collections.abc import Callable
from typing import Any, Final

from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from rankloom.serving.batching import OverloadedError
from rankloom.serving.contract import MAX_BODY
from rankloom.serving.http import CSP, problem
from rankloom.serving.keys import KeyRing, RefusedError
from rankloom.serving.logs import ACCESS
from rankloom.serving.metrics import Metrics

_log = logging.getLogger("rankloom.serving")
_REQUEST_ID: Final = re.compile(rb"[A-Za-z0-9._:-]{1,100}")
_SECURITY: Final = (
    (b"content-security-policy", CSP.encode()),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
)
BATCHED: Final = ("/v1/recommend", "/v1/search")


class _SlowBodyError(Exception):
    pass


class Gate:
    """ASGI middleware; see the module's docstring.

    Args:
        busy: raises OverloadedError where the model could not answer in so many seconds.
        body_s: time in which a body has to come.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        keys: KeyRing,
        metrics: Metrics,
        busy: Callable[[float | None], None],
        body_s: float = 20.0,
    ) -> None:
        self.app = app
        self.keys = keys
        self.metrics = metrics
        self.busy = busy
        self.body_s = body_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started = time.perf_counter()
        own = {name: value for name, value in scope["headers"] if name in _READ}
        given = own.get(b"x-request-id", b"")
        request_id = given.decode() if _REQUEST_ID.fullmatch(given) else uuid.uuid4().hex
        state: dict[str, Any] = scope.setdefault("state", {})
        state["request_id"] = request_id
        status = 0

        async def told(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message["headers"], *_SECURITY, (b"x-request-id", request_id.encode())]
            await send(message)

        response = self._refusal(scope, own, state)
        if response is not None:
            self.metrics.count("rankloom_refused_total", status=str(response.status_code))
            await response(scope, receive, told)
        else:
            try:
                await self.app(scope, self._timed(receive), told)
            except _SlowBodyError:
                response = problem(408, "body-slow", f"the body did not come within {self.body_s:g} s", action="send it again")
            except Exception:
                # a defect of ours: the log keeps what happened, the caller gets the one format
                _log.exception("%s %s", scope["method"], scope["path"], extra={"fields": {"request_id": request_id}})
                response = problem(
                    500, "internal", "the server failed at this request", action="see the server's log; other requests go on"
                )  # fmt: skip
            if response is not None and not status:
                await response(scope, receive, told)
        seconds = time.perf_counter() - started
        # the route and not the path: a path holds ids, and there are as many as people
        matched = scope.get("route")
        route = str(getattr(matched, "path_format", getattr(matched, "path", "other")))
        self.metrics.count("rankloom_http_requests_total", route=route, status=str(status))
        self.metrics.observe(route, seconds)
        if ACCESS.isEnabledFor(logging.INFO):
            fields = {"request_id": request_id, "method": scope["method"], "route": route, "status": status,
                      "ms": round(seconds * 1e3, 2), "key": state.get("key"), **state.get("log", {})}  # fmt: skip
            ACCESS.info("request", extra={"fields": fields})

    def _refusal(self, scope: Scope, own: dict[bytes, bytes], state: dict[str, Any]) -> Response | None:
        """Why a request goes no further, before its body is read."""
        if b"transfer-encoding" in own:
            # a body without a length could be of any size
            return problem(
                411, "length-required", "the body comes without a Content-Length", action="send the body whole, with its length"
            )  # fmt: skip
        length = own.get(b"content-length", b"0")
        if not length.isdigit() or int(length) > MAX_BODY:
            return problem(413, "body-too-large", f"the body is larger than {MAX_BODY:,} bytes", action="send smaller batches")
        path: str = scope["path"]
        try:
            state["key"] = self.keys.admit(path, own.get(b"x-api-key", b"").decode("latin-1"))
            deadline = own.get(b"x-deadline-ms")
            if deadline is not None:
                if not deadline.isdigit() or not 1 <= int(deadline[:9]) <= 60_000:
                    return problem(
                        422, "malformed", "a deadline is 1 to 60000 milliseconds", field="X-Deadline-Ms",
                        value=deadline.decode("latin-1")[:200], action="send a whole number of milliseconds, or leave the header out",
                    )  # fmt: skip
                state["deadline_s"] = int(deadline) / 1e3
            if path in BATCHED and scope["method"] == "POST":
                self.busy(state.get("deadline_s"))
        except RefusedError as error:
            return problem(error.status, error.code, error.message, action=error.action, retry_after=error.retry_after)
        except OverloadedError as error:
            return problem(503, error.code, error.message, action=error.action, retry_after=error.retry_after)
        return None

    def _timed(self, receive: Receive) -> Receive:
        """The body within its time; afterwards only whether the caller is still there."""
        complete = False
        end = time.monotonic() + self.body_s

        async def within() -> Message:
            nonlocal complete
            if complete:
                return await receive()
            try:
                async with asyncio.timeout(max(0.0, end - time.monotonic())):
                    message = await receive()
            except TimeoutError:
                raise _SlowBodyError from None
            complete = message["type"] != "http.request" or not message.get("more_body", False)
            return message

        return within


_READ: Final = frozenset((b"x-request-id", b"transfer-encoding", b"content-length", b"x-api-key", b"x-deadline-ms"))
