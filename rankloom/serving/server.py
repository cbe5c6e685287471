"""Running the application: load, warm up, listen, drain."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import FrameType

import uvicorn

from rankloom.errors import RankloomError
from rankloom.recommender import Rankloom
from rankloom.serving import logs
from rankloom.serving.app import ServerSettings, Serving, create_app
from rankloom.serving.http import bind, key_for
from rankloom.serving.registry import pointed_to

__all__ = ["Server", "bind", "run"]


class Server(uvicorn.Server):
    """On SIGTERM or SIGINT: not ready at once; after `drain_s` no new connections; what runs is answered; exit status 0."""

    def __init__(self, config: uvicorn.Config, serving: Serving, *, drain_s: float = 0.0) -> None:
        super().__init__(config)
        self._serving = serving
        self._drain_s = drain_s

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """A second signal does not wait."""
        if self._serving.draining:
            self.force_exit = self.should_exit = True
            return
        self._serving.draining = True
        if self._drain_s <= 0:
            self.should_exit = True
            return
        timer = threading.Timer(self._drain_s, lambda: setattr(self, "should_exit", True))
        timer.daemon = True
        timer.start()

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Unlike uvicorn's, does not raise the signal again when all is done."""
        before = {sig: signal.signal(sig, self.handle_exit) for sig in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield
        finally:
            for sig, handler in before.items():
                signal.signal(sig, handler)


def run(
    model_path: Path,
    *,
    host: str,
    port: int,
    state: Path | str | None,
    settings: ServerSettings | None = None,
    drain_s: float = 0.0,
    log: str = "quiet",
    say: Callable[[str], None] = print,
) -> None:
    """Serves a model folder until interrupted.

    Raises:
        RankloomError: a broken folder, a taken port, a state that cannot be used, or a public address without a key.
    """
    import torch

    settings = settings or ServerSettings()
    api_key = key_for(host, keys=bool(settings.keys))
    logs.set_up("json" if log == "json" else "quiet")
    # one thread asks the model and one answers HTTP: on a busy machine a second one inside torch makes both slower
    torch.set_num_threads(1)
    pointer = Path(f"{state}.models.json") if state is not None and "://" not in str(state) else None
    folder = model_path if pointer is None else pointed_to(pointer, model_path)
    if folder != model_path:
        say(f"serving {folder}: it was deployed over {model_path} before the restart")
    try:
        model = Rankloom.from_pretrained(folder)
    except RankloomError as error:
        if folder == model_path:
            raise
        say(f"{error.message}; serving {model_path} instead")
        folder = model_path
        model = Rankloom.from_pretrained(folder)
    listener = bind(host, port)
    try:
        app = create_app(
            model, replace(settings, state=state, api_key=api_key, folder=folder, asked=model_path, pointer=pointer)
        )
        serving: Serving = app.state.serving
        serving.warm_up()
    except BaseException:
        listener.close()
        raise
    listener.listen(2048)  # whoever reads the address below may connect at once
    say(f"open http://{host}:{listener.getsockname()[1]}/   (stop with Ctrl-C)")
    config = uvicorn.Config(
        app, log_level="warning", access_log=False, server_header=False, date_header=False, timeout_graceful_shutdown=30
    )
    Server(config, serving, drain_s=drain_s).run(sockets=[listener])
