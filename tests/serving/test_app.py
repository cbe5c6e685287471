from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rankloom.errors import RankloomError
from rankloom.recommender import Rankloom
from rankloom.serving.app import create_app
from rankloom.serving.server import bind, run
from rankloom.serving.state import EventStore, StoredEvent


@pytest.fixture
def client(model: Rankloom, tmp_path: Path) -> Iterator[TestClient]:
    with TestClient(create_app(model, state_path=tmp_path / "events.sqlite")) as own:
        yield own


def test_recommend_replies_with_the_contract(client: TestClient, model: Rankloom) -> None:
    reply = client.post(
        "/v1/recommend", json={"user_id": model.users[0], "k": 5, "filter": "price < 30", "explain": True}
    ).json()
    assert set(reply) >= {"request_id", "model_version", "items", "degraded", "timing_ms"}
    assert len(reply["items"]) == 5
    for item in reply["items"]:
        assert set(item) == {"item_id", "title", "score", "sid", "sponsored", "reasons"}
        assert model.items.row(model.row_of(item["item_id"]), named=True)["price_micros"] < 30e6  # type: ignore[arg-type]


def test_an_event_counts_in_the_next_request_and_once(client: TestClient, model: Rankloom) -> None:
    first = client.post("/v1/recommend", json={"user_id": "stranger", "k": 8}).json()["items"]
    event = {"event_id": "e1", "user_id": "stranger", "item_id": first[0]["item_id"], "event": "click"}
    assert client.post("/v1/events", json={"events": [event, event]}).json() == {
        "accepted": 1,
        "duplicate": 1,
        "rejected": [],
    }
    assert client.post("/v1/events", json={"events": [event]}).json()["duplicate"] == 1
    person = client.get("/v1/console/users/stranger").json()
    assert [e["item_id"] for e in person["history"]] == [first[0]["item_id"]]
    trace = client.post("/v1/console/trace", json={"user_id": "stranger", "k": 8}).json()
    assert trace["levels"][0][0]["meaning"]
    if model.mask_seen:
        assert first[0]["item_id"] not in {item["item_id"] for item in trace["items"]}
    assert client.delete("/v1/users/stranger").json()["events_removed"] == 1
    assert client.get("/v1/console/users/stranger").json()["history"] == []


def test_a_deleted_person_is_a_stranger_although_the_folder_knows_them(client: TestClient, model: Rankloom) -> None:
    user = model.users[0]
    assert client.get(f"/v1/console/users/{user}").json()["history"]
    client.delete(f"/v1/users/{user}")
    assert client.get(f"/v1/console/users/{user}").json()["history"] == []
    stranger = client.post("/v1/recommend", json={"user_id": "nobody", "k": 5}).json()["items"]
    assert [i["item_id"] for i in client.post("/v1/recommend", json={"user_id": user, "k": 5}).json()["items"]] == [
        i["item_id"] for i in stranger
    ]


def test_bad_events_are_rejected_one_by_one(client: TestClient, model: Rankloom) -> None:
    good = {"user_id": "u", "item_id": model.items["item_id"][0], "event": "click"}
    reply = client.post(
        "/v1/events", json={"events": [{**good, "event": "teleport"}, good, {**good, "item_id": "nothing"}]}
    ).json()
    assert reply["accepted"] == 1
    assert [(r["index"], r["code"]) for r in reply["rejected"]] == [(0, "event-unknown"), (2, "item-unknown")]


def test_items_come_and_go_live(client: TestClient) -> None:
    item = {
        "item_id": "live",
        "title": "Zenko Premium Phone Case",
        "category": ["Goods", "Electronics"],
        "price_micros": 9_000_000,
    }
    assert client.put("/v1/items", json={"items": [item]}).json() == {"new": 1, "updated": 0}
    ask = {"k": 1, "filter": 'item_id == "live"'}
    assert client.post("/v1/recommend", json=ask).json()["items"][0]["item_id"] == "live"
    assert client.delete("/v1/items/live").json() == {"removed": 1}
    reply = client.post("/v1/recommend", json=ask).json()
    assert reply["items"] == []
    assert reply["degraded"]


@pytest.mark.parametrize(
    ("path", "body", "status", "code"),
    [
        ("/v1/recommend", {"k": 0}, 422, "malformed"),
        ("/v1/recommend", {"q": 1}, 422, "malformed"),
        ("/v1/recommend", {"filter": "price <"}, 400, "filter-syntax"),
        ("/v1/recommend", {"filter": "prise < 3"}, 400, "filter-field"),
        ("/v1/search", {"k": 3}, 400, "query-missing"),
        ("/v1/nothing", {}, 404, "not-found"),
        ("/v1/recommend", {"user_id": "x" * 3_000_000}, 413, "body-too-large"),
    ],
)
def test_errors_share_one_format(client: TestClient, path: str, body: dict[str, Any], status: int, code: str) -> None:
    reply = client.post(path, json=body)
    assert reply.status_code == status
    problem = reply.json()
    assert problem["code"] == code
    assert problem["message"]


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 10**12) | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["user_id", "k", "filter", "history", "item_id", "x"]), inner, max_size=3)
    ),
    max_leaves=5,
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    body=st.dictionaries(
        st.sampled_from(["user_id", "k", "filter", "history", "exclude", "query", "explain", "events"]),
        json_values,
        max_size=4,
    ),
    path=st.sampled_from(["/v1/recommend", "/v1/search", "/v1/events", "/v1/console/trace"]),
)
def test_no_body_is_a_server_error(client: TestClient, body: dict[str, Any], path: str) -> None:
    reply = client.post(path, content=json.dumps(body), headers={"content-type": "application/json"})
    assert reply.status_code < 500


def test_a_key_guards_the_api(model: Rankloom) -> None:
    with TestClient(create_app(model, api_key="secret")) as client:
        assert client.post("/v1/recommend", json={}).status_code == 401
        assert client.post("/v1/recommend", json={}, headers={"X-Api-Key": "secret"}).status_code == 200
        assert client.get("/healthz").status_code == 200


def test_the_page_and_the_probes(client: TestClient, model: Rankloom) -> None:
    page = client.get("/")
    assert "script-src 'self'" in page.headers["content-security-policy"]
    assert not re.search(r"<script(?![^>]*src=)|<style|\son\w+=|https?://", page.text)
    for asset in re.findall(r'(?:href|src)="(/static/[^"]+)"', page.text):
        assert client.get(asset).status_code == 200
    assert client.get("/readyz").json()["model_version"] == model.model_version
    assert client.get("/v1/console/users?limit=3").json() == model.users[:3]
    client.post("/v1/recommend", json={})
    assert re.search(r"rankloom_requests_total \d+", client.get("/metrics").text)
    paths = client.get("/openapi.json").json()["paths"]
    assert {"/v1/recommend", "/v1/search", "/v1/events", "/v1/items"} <= set(paths)


def test_both_languages_have_every_string() -> None:
    script = (Path(__file__).parents[2] / "rankloom/serving/static/console.js").read_text(encoding="utf-8")
    english, chinese = (set(re.findall(r"(\w+): \"", part)) for part in script.split("zh: {", 1))
    page = (Path(__file__).parents[2] / "rankloom/serving/templates/console.html").read_text(encoding="utf-8")
    used = set(re.findall(r'data-t="(\w+)"', page))
    assert used <= english
    assert used <= chinese


def test_what_was_acknowledged_survives_a_kill(tmp_path: Path) -> None:
    path = tmp_path / "events.sqlite"
    program = (
        "import os, sys; from datetime import UTC, datetime; from pathlib import Path\n"
        "from rankloom.serving.state import EventStore, StoredEvent\n"
        f"store = EventStore(Path({str(path)!r}))\n"
        "for n in range(40):\n"
        "    store.append([StoredEvent(f'e{n}', 'u', f'i{n}', 'click', datetime.fromtimestamp(n, UTC))]); print(n, flush=True)\n"
        "    if n == 25: os.kill(os.getpid(), 9)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    acknowledged = [int(line) for line in done.stdout.split()]
    assert acknowledged[-1] == 25
    store = EventStore(path)
    assert [e.item_id for e in store.history("u")] == [f"i{n}" for n in acknowledged]
    assert store.append([StoredEvent("e3", "u", "i3", "click", datetime.now(UTC))]) == [False]
    store.close()


def test_a_public_address_needs_a_key_and_a_port_must_be_free(
    model_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RANKLOOM_API_KEY", raising=False)
    with pytest.raises(RankloomError, match="without a key"):
        run(model_path, host="0.0.0.0", port=0, state=None)
    taken = bind("127.0.0.1", 0)
    taken.listen()
    with pytest.raises(RankloomError, match="cannot listen"):
        bind("127.0.0.1", taken.getsockname()[1])
    taken.close()
