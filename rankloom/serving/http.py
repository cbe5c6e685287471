"""What the HTTP faces share: a listening socket, the rule about keys, the one error format."""

from __future__ import annotations

import json
import math
import os
import socket
from typing import Any, Final

from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from rankloom.errors import RankloomError

CSP = "default-src 'self'; style-src 'self'; script-src 'self'; img-src 'self' data:; object-src 'none'; base-uri 'none'; frame-ancestors 'none'"
CONTRACT: Final = "GET /openapi.json has every route, field and limit"


def key_for(host: str, *, keys: bool = False) -> str | None:
    """The key of RANKLOOM_API_KEY.

    Args:
        keys: there are others, from a file.

    Raises:
        RankloomError: a public address without any.
    """
    api_key = os.environ.get("RANKLOOM_API_KEY")
    if not keys and host not in ("127.0.0.1", "localhost", "::1") and not api_key:
        raise RankloomError(
            f"refusing to listen on {host} without a key",
            place="--host",
            action="set RANKLOOM_API_KEY, or listen on 127.0.0.1",
            code="key-needed",
        )
    return api_key or None


def bind(host: str, port: int) -> socket.socket:
    """A listening socket; port 0 takes a free one."""
    # asyncio turns Nagle's algorithm off only where the protocol is named; with it on, a reply waits 40 ms for an ACK
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        raise RankloomError(
            f"cannot listen on {host}:{port}: {error.strerror}",
            place="--port",
            action="choose another --port, or 0 for a free one",
            code="port-taken",
        ) from None
    return listener


def problem(
    status: int,
    code: str,
    message: str,
    *,
    field: str | None = None,
    value: str | None = None,
    action: str | None = None,
    retry_after: float | None = None,
) -> JSONResponse:
    """The one error format. `retry_after` in seconds becomes the header, rounded up to whole ones."""
    body = {"code": code, "message": message, "field": field, "value": value, "action": action}
    headers = None if retry_after is None else {"Retry-After": str(math.ceil(retry_after))}
    return JSONResponse(
        {name: own for name, own in body.items() if own is not None},
        status,
        headers=headers,
        media_type="application/problem+json",
    )


def malformed(error: RequestValidationError) -> JSONResponse:
    """What is wrong with a body or a parameter: 400 where it is no JSON at all, else 422 for the first field that does not fit."""
    first = error.errors()[0]
    kind, given = str(first["type"]), first.get("input")
    if kind == "json_invalid":
        fact = str(first.get("ctx", {}).get("error") or first["msg"])
        return problem(400, "malformed", f"the body is no JSON: {fact}", field="body", action="send one JSON object, in UTF-8")
    if first["loc"] == ("body",) and (kind == "missing" or isinstance(given, bytes)):
        fact = "the body is empty" if not given else "the body does not say that it is JSON"
        return problem(
            400, "malformed", fact, field="body", action="send one JSON object with the header content-type: application/json"
        )  # fmt: skip
    if kind == "missing":
        fact, action = "this field is missing", f"send it; {CONTRACT}"
    elif kind == "extra_forbidden":
        fact, action = "there is no such field here", f"leave it out, or check its name; {CONTRACT}"
    else:
        fact = str(first["msg"]).removeprefix("Value error, ")
        fact, action = fact[:1].lower() + fact[1:], f"correct it; {CONTRACT}"
    # what came may hold half a surrogate pair, which no reply can carry
    place = ".".join(str(part) for part in first["loc"]).encode("utf-8", "replace").decode()
    return problem(422, "malformed", fact, field=place, value=None if kind == "missing" else _shown(given), action=action)


def refused(error: HTTPException) -> JSONResponse:
    """No such route, or not with this method."""
    allowed = (error.headers or {}).get("allow") or (error.headers or {}).get("Allow")
    code, action = {
        400: ("malformed", "send one JSON object, in UTF-8"),
        404: ("not-found", f"check the path; {CONTRACT}"),
        405: ("method-not-allowed", f"use {allowed}; {CONTRACT}" if allowed else CONTRACT),
    }.get(error.status_code, ("refused", CONTRACT))
    own = problem(error.status_code, code, str(error.detail), action=action)
    for name, value in (error.headers or {}).items():
        own.headers[name] = value
    return own


def _shown(value: Any) -> str:
    """What came, as its sender wrote it: text as it is, everything else as JSON."""
    if isinstance(value, bytes):
        value = value.decode("utf-8", "replace")
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    return text[:200].encode("utf-8", "replace").decode()
