"""Running the server: two processes, listening, draining.

The front (this process) speaks HTTP and has no model; the back has the model (`back.py`). On SIGTERM or SIGINT: not ready
at once; after `drain_s` no new connections; what runs is answered; exit status 0.
"""

from __future__ import annotations

import asyncio
import gc
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from rankloom.errors import RankloomError
from rankloom.serving import logs, loop
from rankloom.serving.channel import FAILED, READY, Channel
from rankloom.serving.http import bind, key_for
from rankloom.serving.keys import KeyRing
from rankloom.serving.metrics import FRONT, Metrics
from rankloom.serving.settings import ServerSettings

__all__ = ["bind", "run"]

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
    settings = replace(settings or ServerSettings(), state=state, asked=model_path)
    keys = KeyRing(list(settings.keys), master=key_for(host, keys=bool(settings.keys)))
    logs.set_up("json" if log == "json" else "quiet")
    listener = bind(host, port)
    ours, theirs = socket.socketpair()
    command = [sys.executable, "-m", "rankloom.serving.back", str(theirs.fileno())]
    back = subprocess.Popen(command, pass_fds=[theirs.fileno()], env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)})
    theirs.close()
    try:
        loop.run(_serve(listener, ours, settings, keys, host=host, drain_s=drain_s, log=log, say=say))
        back.wait(timeout=60)
    finally:
        listener.close()
        if back.poll() is None:
            back.kill()
            back.wait()


async def _serve(
    listener: socket.socket,
    end: socket.socket,
    settings: ServerSettings,
    keys: KeyRing,
    *,
    host: str,
    drain_s: float,
    log: str,
    say: Callable[[str], None],
) -> None:
    # while the model is loaded
    import uvicorn

    from rankloom.serving.front import Front, Server
    from rankloom.serving.gate import Gate

    channel = await Channel.open(end)
    channel.send(0, READY, {**settings.to_head(), "log": log})
    first = await channel.receive()
    if first is None:
        raise RankloomError(
            "the model's process ended before it was ready",
            place=str(settings.asked),
            action="see what it wrote above",
            code="model-process",
        )
    if first[1] == FAILED:
        raise RankloomError(first[2]["message"], place=first[2]["place"], action=first[2]["action"], code=first[2]["code"])
    metrics = Metrics(only=FRONT)
    front = Front(channel, metrics, settings.batching)
    gate = Gate(front, keys=keys, metrics=metrics, busy=front.busy)
    reading = asyncio.create_task(front.read())
    gc.collect()
    gc.freeze()  # no collection walks what is there for good
    listener.listen(2048)  # whoever reads the address below may connect at once
    say(f"open http://{host}:{listener.getsockname()[1]}/   (stop with Ctrl-C)")
    config = uvicorn.Config(
        gate, log_level="warning", access_log=False, server_header=False, date_header=False, lifespan="off",
        timeout_graceful_shutdown=30,
        timeout_keep_alive=75,  # longer than a load balancer keeps its own side, which would meet a closed one
    )  # fmt: skip
    server = Server(config, front, drain_s=drain_s)

    async def end_with_the_model() -> None:
        await front.lost.wait()
        server.should_exit = True

    watching = asyncio.create_task(end_with_the_model())
    await server.serve(sockets=[listener])
    watching.cancel()
    lost = front.lost.is_set()
    channel.close()
    reading.cancel()
    if lost:
        raise RankloomError(
            "the model's process has ended", place=str(settings.asked), action="see what it wrote above, and start again",
            code="model-process",
        )  # fmt: skip
