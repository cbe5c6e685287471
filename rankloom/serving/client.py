"""The command line's side of a running server: one call, its answer, errors as everywhere else."""

from __future__ import annotations

import json
import os
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

from rankloom.errors import RankloomError


def call(server: str, method: str, path: str, body: dict[str, Any] | None = None, *, timeout_s: float = 300.0) -> Any:
    """The JSON that a server answers; RANKLOOM_API_KEY opens it.

    Raises:
        RankloomError: no server there, or what it answers instead.
    """
    if not server.startswith(("http://", "https://")):
        server = f"http://{server}"
    headers = {"content-type": "application/json"}
    if key := os.environ.get("RANKLOOM_API_KEY"):
        headers["x-api-key"] = key
    data = None if body is None else json.dumps(body).encode()
    request = Request(server.rstrip("/") + path, data=data, method=method, headers=headers)
    try:
        with urlopen(request, timeout=timeout_s) as reply:
            return json.load(reply)
    except HTTPError as error:
        try:
            told = json.load(error)
            raise RankloomError(told["message"], place=told.get("field"), action=told.get("action"), code=told["code"]) from None
        except (ValueError, KeyError, TypeError):
            raise RankloomError(f"{server} answers {error.code}", place="--server", code="server-foreign") from None
    except (URLError, OSError, ValueError) as error:
        raise RankloomError(
            f"no server answers at {server}: {getattr(error, 'reason', error)}",
            place="--server",
            action="start one with `rankloom serve MODEL`, or check the address",
            code="server-missing",
        ) from None
