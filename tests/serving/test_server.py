"""The server as two processes: starts, drains, restarts, dies; and the command line's side of it."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import sys
import threading
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from rankloom.cli import app as cli
from rankloom.decoding.refine import FEATURES, Refiner
from rankloom.errors import RankloomError
from rankloom.recommender import Rankloom
from rankloom.serving.back import build
from rankloom.serving.client import call
from rankloom.serving.gate import Gate
from rankloom.serving.keys import KeyRing
from rankloom.serving.logs import JsonLines
from rankloom.serving.metrics import Metrics
from rankloom.serving.settings import ServerSettings

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))
from _serving import LiveServer


def test_a_life_of_a_server(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keys, verbs of the command line, metrics of both processes, SIGTERM under load, and the restart."""
    keys = tmp_path / "keys.yaml"
    keys.write_text(f"- {{name: web, sha256: {sha256(b'web-key').hexdigest()}, scopes: [recommend, events]}}\n")
    scenarios = tmp_path / "scenarios.yaml"
    scenarios.write_text("home: {filter: price < 30, seen: mask}\n")
    flags = ("--keys", str(keys), "--scenarios", str(scenarios), "--log", "json", "--drain-s", "0.3")
    server = LiveServer(root / "a", tmp_path / "state", *flags, environment={"RANKLOOM_API_KEY": "master"})
    server.start()
    web = {"x-api-key": "web-key"}
    try:
        assert server.ask("POST", "/v1/recommend", {})[1]["code"] == "key-missing"
        status, first = server.ask("POST", "/v1/recommend", {"scenario": "home", "k": 3}, **web, **{"x-request-id": "mine-1"})
        assert (status, first["request_id"], len(first["items"])) == (200, "mine-1", 3)
        event = {"event_id": "e1", "user_id": "zaphod", "item_id": first["items"][0]["item_id"], "event": "click"}
        assert server.ask("POST", "/v1/events", {"events": [event]}, **web)[1]["accepted"] == 1
        status, told = server.ask("GET", "/v1/models", **web)
        assert (status, told["code"]) == (403, "scope-missing")

        monkeypatch.setenv("RANKLOOM_API_KEY", "master")
        address = f"http://127.0.0.1:{server.port}"

        def verb(*words: str, code: int = 0) -> str:
            done = CliRunner().invoke(cli, ["models", *words, "--server", address])
            assert done.exit_code == code, done.output
            return done.output

        assert "is current" in verb("deploy", "b")
        assert "model_version" in verb("rollback")
        assert "is canary" in verb("deploy", "b", "--canary", "0.5")
        assert verb("stop").startswith("stopped: ['")
        assert "is shadow" in verb("deploy", "b", "--shadow")
        assert "model_version" in verb("promote")
        listed = verb("list")
        assert "current" in listed
        assert "promoted" in listed
        now = next(v for v in json.loads(verb("list", "--json"))["versions"] if v["role"] == "current")
        assert now["folder"] == "b"
        with pytest.raises(RankloomError) as refused:
            call(address, "POST", "/v1/models", {"folder": "../a"})
        assert refused.value.code == "model-missing"

        text = server.ask("GET", "/metrics")[1]
        types = [line.split()[2] for line in text.splitlines() if line.startswith("# TYPE")]
        assert len(types) == len(set(types))
        assert 'rankloom_http_requests_total{route="/v1/recommend",status="200"} 1' in text
        assert 'rankloom_refused_total{status="401"} 1' in text
        assert 'rankloom_events_total{outcome="accepted"} 1' in text

        # what is on its way when the signal comes is answered; not ready comes first
        statuses: list[int] = []
        threads = [
            threading.Thread(target=lambda: statuses.append(server.ask("POST", "/v1/recommend", {"k": 50}, **web)[0]))
            for _ in range(6)
        ]
        for thread in threads:
            thread.start()
        assert server.process is not None
        server.process.send_signal(signal.SIGTERM)
        while server.ask("GET", "/readyz")[0] == 200:
            pass
        assert server.ask("POST", "/v1/recommend", {"k": 1}, **web)[0] == 200
        for thread in threads:
            thread.join()
        assert statuses == [200] * 6
        assert server.process.wait(30) == 0
        lines = [json.loads(line) for line in server.log.read_text().splitlines() if line.startswith("{")]
        own = next(line for line in lines if line.get("request_id") == "mine-1")
        assert (own["route"], own["status"], own["key"], own["scenario"]) == ("/v1/recommend", 200, "web", "home")
        assert "zaphod" not in server.log.read_text()

        server.start()  # the same command serves what was promoted, and knows what happened
        assert server.ask("GET", "/readyz")[1]["model_version"] == now["model_version"]
        reply = server.ask("POST", "/v1/recommend", {"user_id": "zaphod", "scenario": "home", "k": 3}, **web)[1]
        assert event["item_id"] not in {item["item_id"] for item in reply["items"]}

        # the model's process dies: the server does not stay as a shell
        os.kill(server.processes()[1], signal.SIGKILL)
        assert server.process.wait(30) != 0
        assert "the model's process has ended" in server.log.read_text()
    finally:
        server.kill()


def test_a_server_that_cannot_start_says_why(root: Path, tmp_path: Path) -> None:
    (tmp_path / "state").write_text("no state at all, but a file" * 100)
    with pytest.raises(RuntimeError, match="the state file cannot be opened"):
        LiveServer(root / "a", tmp_path / "state").start()


def test_a_model_that_cannot_answer_is_told_at_the_start(model: Rankloom, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_: object) -> None:
        raise ValueError("19 columns, not 18\nsecond line")

    monkeypatch.setattr(model, "recommend_batch", broken)
    monkeypatch.setattr(Rankloom, "from_pretrained", lambda _: model)
    with pytest.raises(RankloomError, match=r"old cannot be used: ValueError: 19 columns, not 18\n  where") as refused:
        build(ServerSettings(asked=tmp_path / "old"))
    assert refused.value.code == "model-mismatch"
    assert "the version that wrote the folder" in str(refused.value.action)


@pytest.mark.parametrize("damage", ["an older refiner", "a byte", "no weights", "no model at all"])
def test_a_folder_that_is_damaged_or_older_is_told_by_name(model_path: Path, tmp_path: Path, damage: str) -> None:
    folder = tmp_path / "model"
    shutil.copytree(model_path, folder)
    if damage == "an older refiner":
        n = len(FEATURES) - 1
        old = Refiner(torch.zeros(n), torch.ones(n))
        own = Rankloom.from_pretrained(model_path)
        own.refiner = old
        own.save_pretrained(folder, overwrite=True)
    elif damage == "a byte":
        with open(folder / "model.safetensors", "r+b") as handle:
            handle.seek(5000)
            handle.write(b"\xff\xff")
    elif damage == "no weights":
        (folder / "model.safetensors").unlink()
    else:
        shutil.rmtree(folder)
    with pytest.raises(RankloomError) as refused:
        build(ServerSettings(asked=folder))
    assert refused.value.code in ("model-mismatch", "model-damaged", "model-incomplete", "model-missing")
    assert str(folder) in str(refused.value.place)
    assert refused.value.action


def test_the_command_line_tells_when_nobody_answers() -> None:
    for address in ("127.0.0.1:9", "http://127.0.0.1:9"):
        with pytest.raises(RankloomError, match="no server answers"):
            call(address, "GET", "/v1/models", timeout_s=5)


def test_a_body_that_comes_too_slowly_is_refused() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        while (await receive())["more_body"]:
            pass

    statuses: list[int] = []

    async def run() -> None:
        gate = Gate(app, keys=KeyRing(), metrics=Metrics(), busy=lambda _: None, body_s=0.05)
        parts = iter([{"type": "http.request", "body": b"{", "more_body": True}])

        async def receive() -> Any:
            part = next(parts, None)
            if part is None:
                await asyncio.Event().wait()
            return part

        async def send(message: Any) -> None:
            if message["type"] == "http.response.start":
                statuses.append(message["status"])

        await gate({"type": "http", "method": "POST", "path": "/v1/events", "headers": []}, receive, send)

    asyncio.run(run())
    assert statuses == [408]


def test_a_log_line_is_json_with_its_error() -> None:
    import logging

    try:
        raise ValueError("x\ny")
    except ValueError:
        record = logging.LogRecord("rankloom.serving", logging.ERROR, "f", 1, "what %s", ("now",), sys.exc_info())
    own = json.loads(JsonLines().format(record))
    assert (own["message"], own["level"]) == ("what now", "error")
    assert "ValueError" in own["error"]
