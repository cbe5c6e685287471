"""What the HTTP faces share: a listening socket, the rule about keys, the one error format."""

from __future__ import annotations

import math
import os
import socket

from fastapi.responses import JSONResponse

from rankloom.errors import RankloomError

CSP = "default-src 'self'; style-src 'self'; script-src 'self'; img-src 'self' data:; object-src 'none'; base-uri 'none'; frame-ancestors 'none'"


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
