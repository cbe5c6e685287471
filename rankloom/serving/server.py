"""Running the application: load, warm up, listen, drain."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from pathlib import Path

from rankloom.errors import RankloomError
from rankloom.recommender import Rankloom


def run(model_path: Path, *, host: str, port: int, state: Path | None, say: Callable[[str], None] = print) -> None:
    """Serves a model folder until interrupted.

    Raises:
        RankloomError: a broken folder, a taken port, or a public address without RANKLOOM_API_KEY.
    """
    import uvicorn

    from rankloom.serving.app import create_app

    api_key = os.environ.get("RANKLOOM_API_KEY")
    if host not in ("127.0.0.1", "localhost", "::1") and not api_key:
        raise RankloomError(
            f"refusing to listen on {host} without a key",
            place="--host",
            action="set RANKLOOM_API_KEY, or listen on 127.0.0.1",
            code="key-needed",
        )
    model = Rankloom.from_pretrained(model_path)
    listener = bind(host, port)
    app = create_app(model, state_path=state, api_key=api_key)
    model.recommend(k=1)
    say(f"open http://{host}:{listener.getsockname()[1]}/   (stop with Ctrl-C)")
    config = uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=10)
    uvicorn.Server(config).run(sockets=[listener])


def bind(host: str, port: int) -> socket.socket:
    """A listening socket; port 0 takes a free one."""
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
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
