"""Running the application: load, warm up, listen, drain."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from rankloom.recommender import Rankloom
from rankloom.serving.http import bind, key_for

__all__ = ["bind", "run"]


def run(model_path: Path, *, host: str, port: int, state: Path | None, say: Callable[[str], None] = print) -> None:
    """Serves a model folder until interrupted.

    Raises:
        RankloomError: a broken folder, a taken port, or a public address without RANKLOOM_API_KEY.
    """
    import uvicorn

    from rankloom.serving.app import create_app

    api_key = key_for(host)
    model = Rankloom.from_pretrained(model_path)
    listener = bind(host, port)
    app = create_app(model, state_path=state, api_key=api_key)
    model.recommend(k=1)
    say(f"open http://{host}:{listener.getsockname()[1]}/   (stop with Ctrl-C)")
    config = uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=10)
    uvicorn.Server(config).run(sockets=[listener])

