"""The process that has the model: the application of `app.py`, asked over a channel by the process that speaks HTTP.

    python -m rankloom.serving.back DESCRIPTOR     started by server.py alone

It ends when the other end closes, after answering what waits, and dies with a front that is killed.
"""

from __future__ import annotations

import asyncio
import ctypes
import gc
import logging
import os
import signal
import socket
import sys
from contextlib import suppress
from dataclasses import replace
from typing import Any

from rankloom.errors import RankloomError
from rankloom.serving import logs
from rankloom.serving import loop as loop_of_process
from rankloom.serving.app import create_app
from rankloom.serving.channel import ANSWER, FAILED, GROUP, READY, Channel
from rankloom.serving.http import problem
from rankloom.serving.registry import pointed_to, unusable
from rankloom.serving.settings import ServerSettings

_log = logging.getLogger("rankloom.serving")


def build(settings: ServerSettings) -> Any:
    """The application, warmed up. Raises RankloomError."""
    import torch

    from rankloom.recommender import Rankloom

    # one thread asks the model: on a busy machine a second one inside torch makes both slower
    torch.set_num_threads(1)
    asked = settings.asked
    assert asked is not None
    folder = asked if settings.pointer is None else pointed_to(settings.pointer, asked)
    try:
        model = Rankloom.from_pretrained(folder)
    except RankloomError as error:
        if folder == asked:
            raise
        _log.warning("%s; serving %s instead of it", error.message, asked)
        folder = asked
        model = Rankloom.from_pretrained(folder)
    if folder != asked:
        _log.warning("serving %s: it was deployed over %s before the restart", folder, asked)
    app = create_app(model, replace(settings, folder=folder))
    try:
        app.state.serving.warm_up()
    except RankloomError:
        raise
    except Exception as error:
        raise unusable(folder, error) from error
    return app


async def _handle(app: Any, channel: Channel, number: int, head: dict[str, Any], body: bytes) -> None:
    """One request through the application."""
    scope: dict[str, Any] = {
        "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": head["method"], "path": head["path"],
        "raw_path": head["path"].encode("utf-8", "replace"), "query_string": head["query"].encode("latin-1"), "root_path": "",
        "scheme": "http", "headers": [(n.encode("latin-1"), v.encode("latin-1")) for n, v in head["headers"]],
        "server": ("127.0.0.1", 0), "client": None, "state": head["state"],
    }  # fmt: skip
    sent = False

    async def receive() -> dict[str, Any]:
        nonlocal sent
        if sent:
            await asyncio.Event().wait()  # the caller stays
        sent = True
        return {"type": "http.request", "body": body, "more_body": False}

    status = 500
    headers: list[tuple[str, str]] = []
    parts: list[bytes] = []

    async def send(message: Any) -> None:
        nonlocal status, headers
        if message["type"] == "http.response.start":
            status = message["status"]
            headers = [(n.decode("latin-1"), v.decode("latin-1")) for n, v in message["headers"] if n != b"content-length"]
        elif message["type"] == "http.response.body":
            parts.append(message.get("body", b""))

    try:
        await app(scope, receive, send)
    except Exception:
        _log.exception("%s %s", head["method"], head["path"], extra={"fields": {"request_id": head["state"]["request_id"]}})
        own = problem(500, "internal", "the server failed at this request", action="see the server's log; other requests go on")
        status, headers, parts = 500, [("content-type", "application/problem+json")], [bytes(own.body)]
    route = getattr(scope.get("route"), "path_format", None)
    answer = {"status": status, "headers": headers, "route": route, "log": scope["state"].get("log", {})}
    channel.send(number, ANSWER, answer, b"".join(parts))


async def _serve(end: socket.socket) -> None:
    channel = await Channel.open(end)
    first = await channel.receive()
    if first is None:
        return
    logs.set_up(first[2]["log"])
    try:
        app = build(ServerSettings.from_head(first[2]))
    except RankloomError as error:
        told = {"message": error.message, "place": error.place, "action": error.action, "code": error.code}
        channel.send(0, FAILED, told)
        await channel.flush()
        return
    gc.collect()
    gc.freeze()  # no collection walks what is there for good
    serving = app.state.serving
    serving.start()
    channel.send(0, READY, {"model_version": serving.registry.routing.current.version})
    running: set[asyncio.Task[None]] = set()
    loop = asyncio.get_running_loop()
    batcher = serving.service.batcher
    left = 0  # of the present group
    while (message := await channel.receive()) is not None:
        number, kind, head, body = message
        if kind == GROUP:
            left = number
            batcher.hold()
            continue
        task = asyncio.create_task(_handle(app, channel, number, head, body))
        running.add(task)
        task.add_done_callback(running.discard)
        if left:
            left -= 1
            if not left:
                loop.call_soon(batcher.release)  # after the tasks have come to their question
    if running:
        await asyncio.wait(running, timeout=30)
    serving.close()


def main(descriptor: int) -> None:
    for own in (signal.SIGINT, signal.SIGTERM):
        signal.signal(own, signal.SIG_IGN)  # the front ends first, then this
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # Linux: not to outlive the front
    with suppress(OSError, AttributeError):
        os.nice(10)  # what refuses and passes on goes first
    # the model's thread and the loop take turns; the loop's turns are short
    sys.setswitchinterval(0.001)
    loop_of_process.run(_serve(socket.socket(fileno=descriptor)))


if __name__ == "__main__":
    main(int(sys.argv[1]))
