from __future__ import annotations

import html
import json
import re
import shutil
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from fastapi.testclient import TestClient
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rankloom.data.filters import parse_filter
from rankloom.errors import RankloomError
from rankloom.recommender import Rankloom
from rankloom.serving.app import create_app
from rankloom.serving.console import card
from rankloom.serving.describe import example_filters, example_queries
from rankloom.serving.server import bind, run
from rankloom.serving.snapshot import Snapshot
from tests.test_search import rare_word


@pytest.fixture
def client(model: Rankloom, tmp_path: Path) -> Iterator[TestClient]:
    with TestClient(create_app(model, state=tmp_path / "events.sqlite")) as own:
        yield own


def test_recommend_replies_with_the_contract(client: TestClient, model: Rankloom) -> None:
    reply = client.post(
        "/v1/recommend", json={"user_id": model.users[0], "k": 5, "filter": "price < 30", "explain": True}
    ).json()
    assert set(reply) >= {"request_id", "model_version", "items", "degraded", "timing_ms"}
    assert len(reply["items"]) == 5
    for item in reply["items"]:
        assert set(item) == {"item_id", "title", "score", "sid", "sponsored", "reasons", "reason_codes", "relevance", "explanation"}
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
    assert "purchase" in reply["rejected"][0]["action"]
    assert "/v1/items" in reply["rejected"][1]["action"]


def test_events_may_have_the_names_that_an_import_translates(client: TestClient, model: Rankloom) -> None:
    item = model.items["item_id"][0]
    names = ["buy", "Add-To-Cart", " PV ", "收藏", "click"]
    events = [{"user_id": "u", "item_id": item, "event": name, "timestamp": f"2026-01-0{n + 1}"} for n, name in enumerate(names)]
    assert client.post("/v1/events", json={"events": events}).json()["accepted"] == len(names)
    kept = [e["event"] for e in client.get("/v1/console/users/u").json()["history"]][::-1]
    assert kept == ["purchase", "add_to_cart", "view", "like", "click"]
    # and so may a history that is sent along
    told = [client.post("/v1/recommend", json={"history": [{"item_id": item, "event": name}], "k": 5}).json() for name in ("buy", "purchase")]
    assert told[0]["items"] == told[1]["items"]


@pytest.mark.parametrize("words", ["", "  "])
def test_a_search_without_words_is_refused_everywhere(client: TestClient, model: Rankloom, words: str) -> None:
    assert client.post("/v1/search", json={"query": words}).json()["code"] == "query-missing"
    with pytest.raises(RankloomError, match="needs a query") as refused:
        model.search(words)
    assert refused.value.code == "query-missing"


def test_items_come_and_go_live(client: TestClient) -> None:
    item = {
        "item_id": "live",
        "title": "Zenko Premium Phone Case",
        "category": ["Goods", "Electronics"],
        "price_micros": 9_000_000,
    }
    assert client.put("/v1/items", json={"items": [item]}).json() == {
        "new": 1,
        "updated": 0,
        "catalogue_version": 1,
    }
    ask = {"k": 1, "filter": 'item_id == "live"'}
    assert client.post("/v1/recommend", json=ask).json()["items"][0]["item_id"] == "live"
    assert client.delete("/v1/items/live").json() == {"removed": 1, "unknown": [], "catalogue_version": 2}
    # what is not there cannot be removed, and the catalogue stays the one it was
    for gone in ("live", "never-there"):
        assert client.delete(f"/v1/items/{gone}").json() == {"removed": 0, "unknown": [gone], "catalogue_version": 2}
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
        ("/v1/recommend", {"history": [{"item_id": "a", "timestamp": "0001-01-01T00:00:00+14:00"}]}, 422, "malformed"),
        ("/v1/recommend", {"history": [{"item_id": "a", "watch_s": 1e300}]}, 422, "malformed"),
        ("/v1/recommend", {"k": "3"}, 422, "malformed"),
        ("/v1/recommend", {"k": True}, 422, "malformed"),
        ("/v1/recommend", {"explain": "yes"}, 422, "malformed"),
        ("/v1/search", {"query": "tea", "min_relevance": "0.1"}, 422, "malformed"),
        ("/v1/events", {"events": [{"user_id": "u", "item_id": "a", "event": "click", "timestamp": True}]}, 422, "malformed"),
        ("/v1/search", {"query": "   "}, 400, "query-missing"),
        ("/v1/events", {"events": [{"user_id": "", "item_id": "a", "event": "click"}]}, 422, "malformed"),
        ("/v1/items", {}, 405, "method-not-allowed"),
    ],
)
def test_errors_share_one_format(client: TestClient, path: str, body: dict[str, Any], status: int, code: str) -> None:
    reply = client.post(path, json=body)
    assert reply.status_code == status
    problem = reply.json()
    assert problem["code"] == code
    assert problem["message"]
    assert problem["action"]


@pytest.mark.parametrize("path", ["/v1/recommend", "/v1/search", "/v1/events"])
@pytest.mark.parametrize("kind", ["application/json", "text/plain", ""])
@pytest.mark.parametrize("body", [b"{bad", b"", b"\xff\xfe", b"{'k': 3}"])
def test_a_body_that_is_no_json_is_a_bad_request(client: TestClient, path: str, kind: str, body: bytes) -> None:
    reply = client.post(path, content=body, headers={"content-type": kind})
    problem = reply.json()
    assert (reply.status_code, problem["code"]) == (400, "malformed")
    assert "JSON" in problem["action"]
    assert "b'" not in reply.text


def test_a_value_is_told_as_it_was_sent(client: TestClient) -> None:
    told = client.post("/v1/recommend", json={"k": {"a": None, "b": [True, "x"]}}).json()
    assert (told["field"], told["value"]) == ("body.k", '{"a": null, "b": [true, "x"]}')
    assert client.post("/v1/recommend", json={"k": "many"}).json()["value"] == "many"
    assert client.post("/v1/recommend", json={"kk": 1}).json()["message"] == "there is no such field here"
    early = client.post("/v1/recommend", json={"history": [{"item_id": "a", "timestamp": "1066-10-14T09:00:00Z"}]}).json()
    assert early["message"] == "the time is before 1970 or in the future"
    slow = client.post("/v1/recommend", json={}, headers={"X-Deadline-Ms": "soon"}).json()
    assert (slow["value"], bool(slow["action"])) == ("soon", True)


# what a client may send where something else was meant; lone surrogates are valid JSON and no valid text
text = st.text(max_size=8) | st.sampled_from(
    ["price < 3", "u1", "2026-01-01", "2026-01-01T00:00:00+00:00", "\ud800", "\0", "click"]
)
names = ["user_id", "k", "filter", "history", "exclude", "query", "explain", "events", "items", "item_id", "event", "event_id",
         "timestamp", "watch_s", "surface", "title", "category", "price_micros", "duration_s", "x"]  # fmt: skip
json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 10**25) | st.floats(allow_nan=False) | text,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(names), inner, max_size=4),
    max_leaves=6,
)
near_events = st.fixed_dictionaries(
    {
        "user_id": text,
        "item_id": st.sampled_from(["v1", "g2", "nothing"]),
        "event": st.sampled_from(["click", "view", "fly"]),
    },
    optional={"timestamp": json_values, "watch_s": json_values, "surface": json_values, "event_id": json_values},
)
near_items = st.fixed_dictionaries(
    {"item_id": text, "title": text},
    optional={"category": json_values, "price_micros": json_values, "duration_s": json_values, "in_stock": json_values},
)
near_history = st.lists(
    st.fixed_dictionaries(
        {"item_id": st.sampled_from(["v1", "g2"])}, optional={"timestamp": text, "watch_s": json_values}
    ),
    max_size=3,
)
bodies = (
    st.dictionaries(st.sampled_from(names), json_values, max_size=4)
    | st.fixed_dictionaries({"events": st.lists(near_events, max_size=3)})
    | st.fixed_dictionaries({"items": st.lists(near_items, max_size=3)})
    | st.fixed_dictionaries({"history": near_history}, optional={"k": st.integers(1, 5), "query": text, "filter": text})
    | json_values
)
routes = st.sampled_from(
    [("POST", "/v1/recommend"), ("POST", "/v1/search"), ("POST", "/v1/events"), ("POST", "/v1/console/trace"), ("PUT", "/v1/items")]
)  # fmt: skip


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(body=bodies, route=routes)
def test_no_body_is_a_server_error(client: TestClient, body: Any, route: tuple[str, str]) -> None:
    method, path = route
    reply = client.request(method, path, content=json.dumps(body), headers={"content-type": "application/json"})
    assert reply.status_code < 500, (body, reply.text)
    if reply.status_code >= 400:
        assert {"code", "message"} <= set(reply.json())


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    body=st.binary(max_size=40),
    kind=st.sampled_from(["application/json", "text/plain", "", "application/x-www-form-urlencoded"]),
)
def test_bytes_that_are_no_json_are_told(client: TestClient, body: bytes, kind: str) -> None:
    reply = client.post("/v1/recommend", content=body, headers={"content-type": kind})
    assert reply.status_code in (200, 400, 422)
    assert reply.status_code == 200 or reply.json()["code"] == "malformed"


def test_a_body_without_a_length_is_refused(client: TestClient) -> None:
    reply = client.post("/v1/recommend", content=iter([b"{}"]), headers={"content-type": "application/json"})
    assert reply.status_code == 411
    assert reply.json()["code"] == "length-required"


def test_a_defect_of_ours_is_told_in_the_one_format_and_logged(
    client: TestClient, model: Rankloom, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(_: object) -> None:
        raise ZeroDivisionError("secret detail")

    client.put("/v1/scenarios/strict", json={"fallback": "none"})
    monkeypatch.setattr(model, "recommend_batch", broken)
    reply = client.post("/v1/recommend", json={"scenario": "strict"})
    assert reply.status_code == 500
    assert reply.json()["code"] == "internal"
    assert "secret" not in reply.text
    assert "ZeroDivisionError" in caplog.text
    monkeypatch.undo()
    assert client.post("/v1/recommend", json={}).status_code == 200


def test_times_with_and_without_a_zone_mix_and_impossible_ones_are_rejected(
    client: TestClient, model: Rankloom
) -> None:
    items = model.items["item_id"][:3].to_list()
    history = [
        {"item_id": items[0], "timestamp": "2026-01-01T10:00:00"},
        {"item_id": items[1], "timestamp": "2026-01-01T12:00:00+02:00"},
        {"item_id": items[2]},
    ]
    assert client.post("/v1/recommend", json={"history": history, "k": 3}).status_code == 200
    good = {"user_id": "u", "item_id": items[0], "event": "click"}
    bad = [{**good, "timestamp": "9999-12-31T23:59:59-12:00"}, good, {**good, "timestamp": "1066-10-14T09:00:00Z"}]
    reply = client.post("/v1/events", json={"events": bad}).json()
    assert reply["accepted"] == 1
    assert [(r["index"], r["code"]) for r in reply["rejected"]] == [(0, "time-range"), (2, "time-range")]


def test_what_was_forgotten_stays_forgotten_when_the_person_comes_back(client: TestClient, model: Rankloom) -> None:
    user = model.users[0]
    client.delete(f"/v1/users/{user}")
    item = model.items["item_id"][0]
    client.post("/v1/events", json={"events": [{"user_id": user, "item_id": item, "event": "click"}]})
    assert [e["item_id"] for e in client.get(f"/v1/console/users/{user}").json()["history"]] == [item]


def test_a_key_guards_the_api(model: Rankloom) -> None:
    with TestClient(create_app(model, api_key="secret")) as client:
        assert client.post("/v1/recommend", json={}).status_code == 401
        assert client.post("/v1/recommend", json={}, headers={"X-Api-Key": "secre"}).json()["code"] == "key-unknown"
        assert client.post("/v1/recommend", json={}, headers={"X-Api-Key": "secret"}).status_code == 200
        for path in ("/healthz", "/readyz", "/metrics", "/"):
            assert client.get(path).status_code == 200
        # refusals are counted like any reply, and carry the same headers
        assert 'route="other",status="401"' in client.get("/metrics").text
        assert client.delete("/v1/users/u1").headers["x-content-type-options"] == "nosniff"


def test_the_page_and_the_probes(client: TestClient, model: Rankloom) -> None:
    page = client.get("/")
    assert "script-src 'self'" in page.headers["content-security-policy"]
    assert not re.search(r"<script(?![^>]*src=)|<style|\son\w+=|https?://", page.text)
    for asset in re.findall(r'(?:href|src)="(/static/[^"]+)"', page.text):
        assert client.get(asset).status_code == 200
    assert client.get("/readyz").json()["model_version"] == model.model_version
    assert client.get("/v1/console/users?limit=3").json() == model.users[:3]
    client.post("/v1/recommend", json={})
    client.post("/v1/events", json={"events": [{"user_id": "u", "item_id": "nothing", "event": "click"}]})
    client.delete("/v1/users/somebody")
    text = client.get("/metrics").text
    assert 'rankloom_http_requests_total{route="/v1/recommend",status="200"} 1' in text
    assert 'rankloom_events_total{outcome="rejected"} 1' in text
    assert 'route="/v1/users/{user_id}"' in text
    assert f"rankloom_items {model.trie.n_items}" in text
    buckets = [int(n) for n in re.findall(r'request_seconds_bucket\{route="/v1/recommend",le="[^"]+"\} (\d+)', text)]
    assert buckets == sorted(buckets)
    assert buckets[-1] == 1
    for line in text.splitlines():
        assert line.startswith("# ") or re.fullmatch(r'\w+(\{(\w+="[^"]*",?)*\})? [-+.\deinf]+', line)
    paths = client.get("/openapi.json").json()["paths"]
    assert {"/v1/recommend", "/v1/search", "/v1/events", "/v1/items"} <= set(paths)


def test_both_languages_have_every_string() -> None:
    script = (Path(__file__).parents[2] / "rankloom/serving/static/console.js").read_text(encoding="utf-8")
    english, chinese = (set(re.findall(r"(\w+): \"", part)) for part in script.split("zh: {", 1))
    page = (Path(__file__).parents[2] / "rankloom/serving/templates/console.html").read_text(encoding="utf-8")
    used = set(re.findall(r'data-t="(\w+)"', page)) | set(re.findall(r'\bt\("(\w+)"\)', script))
    assert used <= english
    assert used <= chinese


def test_the_filters_that_the_page_offers_mean_something_here(client: TestClient, model: Rankloom) -> None:
    offered = example_filters(model)
    assert len(offered) >= 3
    page = html.unescape(client.get("/").text)
    for text in offered:
        assert f">{text}</button>" in page
        trace = client.post("/v1/console/trace", json={"filter": text, "k": 3}).json()
        assert 0 < trace["funnel"]["passes the filter"] < trace["funnel"]["catalogue"]
        assert len(trace["items"]) == 3


def test_the_searches_that_the_page_offers_come_from_the_shop(client: TestClient, model: Rankloom) -> None:
    offered = example_queries(model)
    leaves = {path[-1] for path in model.items["category"].to_list() if path}
    assert len(offered) == 2
    assert set(offered) <= leaves
    assert f'placeholder="{" / ".join(offered)}"' in html.unescape(client.get("/").text)
    model.items = model.items.drop("category")
    titles = model.items["title"].to_list()
    assert all(any(title.startswith(words) for title in titles) for words in example_queries(model))


def test_the_page_marks_what_the_person_had_before(client: TestClient, model: Rankloom) -> None:
    user = model.users[0]
    had = {event.item_id for event in model.history_of(user)}
    client.put("/v1/scenarios/again", json={"seen": "allow"})
    trace = client.post("/v1/console/trace", json={"user_id": user, "scenario": "again", "k": 50}).json()
    assert {item["item_id"] for item in trace["items"] if item["seen"]} == had & {item["item_id"] for item in trace["items"]}
    assert any(item["seen"] for item in trace["items"])


def test_every_price_on_the_page_has_the_currency_of_the_shop(model: Rankloom) -> None:
    goods = model.items.filter(pl.col("price_micros").is_not_null())["item_id"][0]
    one_unnamed = pl.when(pl.col("item_id") == goods).then(None).otherwise(pl.lit("EUR"))
    model.items = model.items.with_columns(one_unnamed.alias("currency"))
    assert card(Snapshot(model), goods)["currency"] == "EUR"
    model.items = model.items.drop("currency")
    assert card(Snapshot(model), goods)["currency"] is None


def test_nothing_on_the_page_scrolls_by_itself() -> None:
    style = (Path(__file__).parents[2] / "rankloom/serving/static/console.css").read_text(encoding="utf-8")
    assert not re.search(r"overflow(-y)?:\s*(auto|scroll)|max-height", style)


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


def test_pages_follow_one_another_without_repeats_to_the_end(client: TestClient, model: Rankloom) -> None:
    body: dict[str, Any] = {"user_id": model.users[0], "k": 40, "filter": "price < 60"}
    shown: list[str] = []
    while True:
        reply = client.post("/v1/recommend", json=body).json()
        shown += [item["item_id"] for item in reply["items"]]
        if reply["next_cursor"] is None:
            break
        body["cursor"] = reply["next_cursor"]
        body["k"] = 30  # the size of a page may change
    assert len(set(shown)) == len(shown)
    everything = parse_filter("price < 60").mask(model.items)
    assert set(shown) == {item for item, ok in zip(model.items["item_id"], everything, strict=True) if ok}
    other = client.post("/v1/recommend", json={**body, "filter": "price < 59"})
    assert (other.status_code, other.json()["code"]) == (400, "cursor-mismatch")
    assert client.post("/v1/recommend", json={"cursor": "nonsense"}).json()["code"] == "cursor-invalid"


def test_request_ids_and_deadlines(client: TestClient) -> None:
    reply = client.post("/v1/recommend", json={}, headers={"X-Request-Id": "mine"})
    assert reply.headers["x-request-id"] == reply.json()["request_id"] == "mine"
    for bad in ("no spaces", "x" * 200):
        assert client.post("/v1/recommend", json={}, headers={"X-Request-Id": bad}).json()["request_id"] != bad
    assert client.get("/v1/nothing").headers["x-request-id"]
    for bad in ("0", "-1", "x", "99999999999"):
        told = client.post("/v1/recommend", json={}, headers={"X-Deadline-Ms": bad})
        assert (told.status_code, told.json()["field"]) == (422, "X-Deadline-Ms")
    assert client.post("/v1/recommend", json={}, headers={"X-Deadline-Ms": "60000"}).status_code == 200


def test_an_event_keeps_all_that_it_says(client: TestClient, model: Rankloom) -> None:
    event = {"event_id": "e", "user_id": "u", "item_id": model.items["item_id"][0], "event": "purchase", "position": 3,
             "query": "tea", "request_id": "r-1", "value": 12.5, "watch_s": 2.0, "surface": "search"}  # fmt: skip
    assert client.post("/v1/events", json={"events": [event]}).json()["accepted"] == 1
    kept = asdict(client.app.state.serving.store.people(["u"])[0].events[0])  # type: ignore[attr-defined]
    kept.pop("timestamp")
    assert kept == event
    assert client.post("/v1/events", json={"events": [{**event, "event_id": ""}]}).status_code == 422


def test_every_example_of_the_contract_runs(model: Rankloom, model_path: Path, tmp_path: Path) -> None:
    shutil.copytree(model_path, tmp_path / "model-2")
    app = create_app(model, state=tmp_path / "state", folder=tmp_path / "model")
    with TestClient(app) as client:
        page = client.get("/openapi.json").json()
        schemas, run = page["components"]["schemas"], 0
        for path, operations in page["paths"].items():
            for method, operation in operations.items():
                body = operation.get("requestBody", {}).get("content", {}).get("application/json", {})
                schema = body.get("schema", {})
                own = schemas.get(schema.get("$ref", "").rpartition("/")[2], schema)
                examples = [body["example"]] if "example" in body else own.get("examples", [])
                for example in examples:
                    reply = client.request(method, path, json=example)
                    assert reply.status_code == 200, (path, example, reply.text)
                    run += 1
        assert run >= 6


def test_requests_that_the_contract_allows_get_replies_that_it_allows(model_path: Path) -> None:
    from tests.test_benchmarks import load

    count, wrong = load("serving_fuzz").schemathesis_runs(model_path, 3)
    assert count >= 40
    assert not wrong, wrong[:3]


def test_searches_can_be_sorted_and_counted_over_http(client: TestClient, model: Rankloom) -> None:
    items = [
        {"item_id": f"lamp-{n}", "title": "quuxlamp", "brand": brand, "price_micros": price}
        for n, (brand, price) in enumerate([("A", 300), ("B", 100), ("A", 200)])
    ]
    assert client.put("/v1/items", json={"items": items}).status_code == 200
    body = {"query": "quuxlamp", "sort": "price", "facets": ["brand"], "k": 10}
    reply = client.post("/v1/search", json=body).json()
    assert [item["item_id"] for item in reply["items"]] == ["lamp-1", "lamp-2", "lamp-0"]
    assert reply["facets"] == {"brand": [{"value": "A", "count": 2}, {"value": "B", "count": 1}]}
    assert reply["degraded_cause"] == "fewer-items"
    first = client.post("/v1/search", json={**body, "k": 2}).json()
    second = client.post("/v1/search", json={**body, "k": 2, "cursor": first["next_cursor"]}).json()
    assert [item["item_id"] for item in second["items"]] == ["lamp-0"]
    unknown = client.post("/v1/search", json={"query": "qqqqzzzz", "k": 2}).json()
    assert unknown["degraded_cause"] == "no-match"
    assert len(unknown["items"]) == 2
    for wrong, code in (({"sort": "prize"}, "sort-field"), ({"facets": ["title"]}, "facet-field")):
        refused = client.post("/v1/search", json={"query": "tea", **wrong})
        assert (refused.status_code, refused.json()["code"]) == (400, code)
    refused = client.post("/v1/recommend", json={"sort": "price"})
    assert (refused.status_code, refused.json()["code"]) == (400, "search-only")


def test_a_search_is_cut_explained_and_says_how_it_was_read_over_http(client: TestClient, model: Rankloom) -> None:
    word, owners = rare_word(model)
    slipped = word[:3] + word[4:]
    whole = client.post("/v1/search", json={"query": slipped, "k": 6}).json()
    assert whole["corrections"] == [{"typed": slipped, "read_as": word}]
    assert whole["matches"] == len(owners)
    assert all(item["explanation"] is None for item in whole["items"])
    chances = [item["relevance"] for item in whole["items"]]
    assert chances == sorted(chances, reverse=True)
    cut = {"query": slipped, "k": 6, "min_relevance": chances[1]}
    some = client.post("/v1/search?explain", json=cut).json()
    assert [item["item_id"] for item in some["items"]] == [item["item_id"] for item in whole["items"]][: len(some["items"])]
    assert 2 <= len(some["items"]) < 6
    # it is as short as was asked for: nothing popular fills it, and no page follows
    assert not some["degraded"]
    assert some["next_cursor"] is None
    for item in some["items"]:
        assert [step["code"] for step in item["explanation"]["path"]] == item["sid"]
        assert item["explanation"]["words"][0]["read_as"] == word
    nothing = client.post("/v1/search", json={"query": "qqqqzzzz", "min_relevance": 0.01, "facets": ["brand"]}).json()
    assert (nothing["items"], nothing["degraded_cause"], nothing["facets"]) == ([], "no-match", {"brand": []})
    assert nothing["unknown_words"] == ["qqqqzzzz"]
    assert "0.01" in nothing["degraded_reason"]
    strict = client.post("/v1/search", json={"query": slipped, "k": 2, "max_typos": 0}).json()
    assert (strict["corrections"], strict["degraded_cause"]) == ([], "no-match")
    for bad in ({"min_relevance": 2}, {"max_typos": 5}):
        assert client.post("/v1/search", json={"query": "tea", **bad}).status_code == 422
    assert client.post("/v1/recommend", json={"min_relevance": 0.1}).json()["code"] == "search-only"


def test_relevance_means_the_same_on_every_page(client: TestClient, model: Rankloom) -> None:
    word, _ = rare_word(model)
    cut = {"query": word, "min_relevance": 1e-3}
    whole = client.post("/v1/search", json={**cut, "k": 60}).json()["items"]
    assert len(whole) > 3
    paged: list[Any] = []
    body: dict[str, Any] = {**cut, "k": 2}
    while body.get("cursor", "") is not None:
        reply = client.post("/v1/search", json=body).json()
        paged += reply["items"]
        body["cursor"] = reply["next_cursor"]
    # each page is decoded anew, so that the end of the list may differ; but no page starts the chances again
    assert [item["item_id"] for item in paged[:4]] == [item["item_id"] for item in whole[:4]]
    assert 2 < len(paged) <= len(whole) + 3
    chances = [item["relevance"] for item in paged]
    assert sum(chances) <= 1.001
    assert all(later <= 1.2 * earlier for earlier, later in zip(chances, chances[2:], strict=False))


def test_ids_with_a_slash_can_be_deleted(client: TestClient, model: Rankloom) -> None:
    event = {"event_id": "slash", "user_id": "a/b", "item_id": model.items["item_id"][0], "event": "click"}
    assert client.post("/v1/events", json={"events": [event]}).json()["accepted"] == 1
    assert client.delete("/v1/users/a%2Fb").json() == {"user_id": "a/b", "events_removed": 1}
    client.put("/v1/items", json={"items": [{"item_id": "x/1", "title": "Slash"}]})
    assert client.delete("/v1/items/x%2F1").json()["removed"] == 1


def test_a_placement_can_have_a_cut_unless_the_model_has_no_chances(client: TestClient, model: Rankloom) -> None:
    word, _ = rare_word(model)
    settings = {"min_relevance": 0.9999, "max_typos": 0, "exploration": 0.5}
    assert client.put("/v1/scenarios/strict", json=settings).status_code == 200
    own = client.post("/v1/search", json={"query": word, "scenario": "strict"}).json()
    assert (own["items"], own["degraded_cause"]) == ([], "no-match")
    # the request's own wish goes first, and a feed knows no relevance
    assert len(client.post("/v1/search", json={"query": word, "scenario": "strict", "min_relevance": 0, "k": 3}).json()["items"]) == 3
    assert len(client.post("/v1/recommend", json={"scenario": "strict", "k": 3}).json()["items"]) == 3
    model.search_choices = replace(model.search_choices, relevance=None)
    assert client.put("/v1/scenarios/other", json={"min_relevance": 0.1}).json()["code"] == "relevance-missing"
    refused = client.post("/v1/search", json={"query": word, "min_relevance": 0.1})
    assert (refused.status_code, refused.json()["code"]) == (400, "relevance-missing")
    assert client.post("/v1/search", json={"query": word, "k": 1}).json()["items"][0]["relevance"] is None
