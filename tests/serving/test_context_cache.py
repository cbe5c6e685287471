"""Contexts of people between their requests: bounded, forgotten when asked, and never seen in an answer."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fastapi.testclient import TestClient
from hypothesis import given, settings
from hypothesis import strategies as st

from rankloom.models import kept_context
from rankloom.models.kept_context import KeptContext
from rankloom.recommender import Rankloom
from rankloom.serving.app import Serving, create_app
from rankloom.serving.context_cache import IDLE_S, ContextCache
from rankloom.serving.settings import ServerSettings


@pytest.fixture(autouse=True)
def keep_small_ones_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept_context, "LEAST", 0)


def own(size: int, reused: int = 0) -> KeptContext:
    """A context of so many bytes, and somewhat more than a thousand."""
    return KeptContext(np.zeros(0, np.int64), torch.zeros(size, dtype=torch.uint8), torch.zeros(0), (), reused)


@settings(max_examples=60)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["put", "put", "put", "get", "forget", "later"]),
            st.sampled_from("abcdef"),
            st.integers(0, 9000),
        ),
        max_size=60,
    )
)
def test_bytes_are_counted_and_bounded_and_the_forgotten_stay_away(steps: list[tuple[str, str, int]]) -> None:
    now = [0.0]
    told: Counter[str] = Counter()
    cache = ContextCache(12_000, count=lambda what: told.update([what]), clock=lambda: now[0])
    gone: set[str] = set()
    inside: dict[str, dict[str, KeptContext]] = {}
    for what, person, size in steps:
        if what == "put":
            context, version = own(size, reused=size % 2), f"v{size % 3}"
            cache.put(version, person, context)
            found = cache.get(version, person)
            assert found is (None if person in gone else context)
            if found:
                inside.setdefault(person, {})[version] = context
        elif what == "forget":
            cache.forget(person)
            gone.add(person)
        elif what == "later":
            now[0] += size / 10
            cache.sweep()
        there = {name: {v: c for v in ("v0", "v1", "v2") if (c := cache.get(v, name))} for name in "abcdef"}
        assert all(there[name] == {} for name in gone)
        assert all(context is inside[name][v] for name, versions in there.items() for v, context in versions.items())
        assert max((len(versions) for versions in there.values()), default=0) <= 2
        assert (
            cache.nbytes
            == sum(context.nbytes for versions in there.values() for context in versions.values())
            <= cache.limit
        )
        assert len(cache) == sum(bool(versions) for versions in there.values())
    assert told["hit"] + told["miss"] == sum(what == "put" for what, _, _ in steps)


def test_who_was_not_here_for_the_longest_goes_first() -> None:
    now = [0.0]
    told: Counter[str] = Counter()
    cache = ContextCache(10_000, count=lambda what: told.update([what]), clock=lambda: now[0])
    for person in "abc":
        cache.put("v", person, own(2000))
    cache.put("v", "a", own(2000, reused=3))
    cache.put("v", "d", own(2000))
    assert [person for person in "abcd" if cache.get("v", person)] == ["a", "c", "d"]
    cache.put("v", "c", own(20_000))  # does not fit, and what it replaces is out of date
    assert [person for person in "abcd" if cache.get("v", person)] == ["a", "d"]
    now[0] += IDLE_S + 1
    cache.sweep()
    assert (len(cache), cache.nbytes) == (0, 0)
    assert told == {"miss": 5, "hit": 1, "evicted": 3}


# -- in a server


@pytest.fixture
def pair(model_path: Path, tmp_path: Path) -> Iterator[tuple[TestClient, TestClient]]:
    """A server with a cache and one without."""
    clients = []
    for size in (4, 0):
        model = Rankloom.from_pretrained(model_path)
        model.model.engine = "eager"  # the kernels keep nothing
        settings_ = ServerSettings(state=tmp_path / f"{size}.sqlite", context_cache_mb=size, folder=model_path)
        clients.append(TestClient(create_app(model, settings_)))
    with clients[0] as cached, clients[1] as plain:
        yield cached, plain


def serving_of(client: TestClient) -> Serving:
    found: Serving = client.app.state.serving  # type: ignore[attr-defined]
    return found


def contexts(client: TestClient) -> ContextCache:
    found = serving_of(client).contexts
    assert found is not None
    return found


def alike(pair: tuple[TestClient, TestClient], path: str, body: dict[str, Any]) -> None:
    replies = [client.post(path, json=body).json() for client in pair]
    first, second = (reply["items"] for reply in replies)
    assert [item["item_id"] for item in first] == [item["item_id"] for item in second]
    assert [item["score"] for item in first] == pytest.approx([item["score"] for item in second], rel=1e-5, abs=2e-5)


def tell(pair: tuple[TestClient, TestClient], **event: Any) -> None:
    for client in pair:
        assert client.post("/v1/events", json={"events": [event]}).json()["rejected"] == []


@pytest.mark.parametrize("seed", range(3))
def test_answers_are_those_of_a_server_without_it(pair: tuple[TestClient, TestClient], seed: int) -> None:
    rng = np.random.default_rng(seed)
    model = serving_of(pair[0]).registry.routing.current.snapshot.model
    items = model.items["item_id"].to_list()
    people = [model.users[0], model.users[1], "stranger"]
    for step in range(60):
        person, item = people[rng.integers(3)], items[rng.integers(len(items))]
        what = rng.choice(
            ["event", "event", "event", "late", "again", "put", "new", "remove", "forget"],
            p=[0.2, 0.2, 0.2, 0.1, 0.1, 0.06, 0.06, 0.06, 0.02],
        )
        if what in ("event", "again"):
            name = f"e{step}" if what == "event" else f"e{step // 2}"
            tell(
                pair,
                event_id=name,
                user_id=person,
                item_id=item,
                event="click",
                timestamp=f"2026-01-01T00:{step:02}:00Z",
            )
        elif what == "late":
            tell(
                pair,
                user_id=person,
                item_id=item,
                event="purchase",
                timestamp="2025-12-01T00:00:00Z",
                event_id=f"late{step}",
            )
        elif what == "put":
            known = {"item_id": item, "title": "changed", "price_micros": int(rng.integers(10**8)), "brand": f"b{step}"}
            assert all(client.put("/v1/items", json={"items": [known]}).status_code == 200 for client in pair)
        elif what == "new":
            fresh = {"item_id": f"new{step}", "title": f"green tea {step}"}
            assert all(client.put("/v1/items", json={"items": [fresh]}).status_code == 200 for client in pair)
            tell(pair, event_id=f"e{step}", user_id=person, item_id=f"new{step}", event="click")
        elif what == "remove":
            assert all(client.delete(f"/v1/items/{item}").status_code == 200 for client in pair)
        else:
            assert all(client.delete(f"/v1/users/{person}").status_code == 200 for client in pair)
        alike(pair, "/v1/recommend", {"user_id": people[rng.integers(3)], "k": 10})
        if step % 5 == 0:
            alike(pair, "/v1/search", {"user_id": person, "query": "green tea", "k": 5})
    text = pair[0].get("/metrics").text
    hits = int(text.partition('rankloom_context_cache_total{outcome="hit"} ')[2].split()[0])
    assert hits > 20
    assert 'rankloom_context_cache_total{outcome="miss"}' in text
    assert f"rankloom_context_cache_bytes {contexts(pair[0]).nbytes:g}" in text
    assert "rankloom_context_cache_bytes" not in pair[1].get("/metrics").text


def test_a_person_who_is_forgotten_is_gone_at_once_and_stays_away(pair: tuple[TestClient, TestClient]) -> None:
    client, cache = pair[0], contexts(pair[0])
    service = serving_of(client).service
    model = serving_of(client).registry.routing.current.snapshot.model
    tell(pair, user_id="somebody", item_id=model.items["item_id"][0], event="click", event_id="x")
    for user in ("somebody", model.users[0]):
        client.post("/v1/recommend", json={"user_id": user, "k": 5})
    assert len(cache) == 2
    # a request has read the history, and is answered after the deletion
    read, go_on = threading.Event(), threading.Event()
    honest = service._people

    def slow(questions: Any) -> Any:
        found = honest(questions)
        read.set()
        go_on.wait(10)
        return found

    service._people = slow  # type: ignore[method-assign]
    replies: list[Any] = []
    asking = threading.Thread(
        target=lambda: replies.append(client.post("/v1/recommend", json={"user_id": "somebody", "k": 5}))
    )
    asking.start()
    assert read.wait(10)
    assert client.delete("/v1/users/somebody").json()["events_removed"] == 1
    assert len(cache) == 1
    go_on.set()
    asking.join()
    assert replies[0].status_code == 200
    assert len(cache) == 1
    assert cache.get(model.model_version, "somebody") is None


def test_what_another_server_was_told_to_forget_is_gone_when_that_person_asks(
    pair: tuple[TestClient, TestClient],
) -> None:
    client, cache = pair[0], contexts(pair[0])
    user = serving_of(client).registry.routing.current.snapshot.model.users[0]
    client.post("/v1/recommend", json={"user_id": user, "k": 5})
    assert len(cache) == 1
    serving_of(client).store.delete_user(user)
    client.post("/v1/recommend", json={"user_id": user, "k": 5})
    assert len(cache) == 0


def test_a_new_version_keeps_its_own_and_strangers_and_probes_leave_nothing(root: Path, tmp_path: Path) -> None:
    model = Rankloom.from_pretrained(root / "a")
    app = create_app(
        model, ServerSettings(state=tmp_path / "s", context_cache_mb=4, folder=root / "a", asked=root / "a")
    )
    with TestClient(app) as client:
        serving_of(client).warm_up()
        client.post("/v1/recommend", json={"k": 5})
        cache = contexts(client)
        assert len(cache) == 0
        for folder in ("a", "b"):
            version = client.post("/v1/models", json={"folder": folder}).json()["model_version"]
            loaded = serving_of(client).registry.routing.current.snapshot.model
            assert loaded.contexts is cache
            loaded.model.engine = "eager"
            assert len(cache) == (folder == "b")
            client.post("/v1/recommend", json={"user_id": model.users[0], "k": 5})
            assert cache.get(version, model.users[0]) is not None
            # a changed catalogue is another snapshot, with the same cache
            client.put("/v1/items", json={"items": [{"item_id": "fresh", "title": "green tea"}]})
            assert serving_of(client).registry.routing.current.snapshot.model.contexts is cache
        assert len(cache) == 1


def test_the_setting_reaches_the_process_that_has_the_model(tmp_path: Path) -> None:
    settings_ = ServerSettings(asked=tmp_path, state=tmp_path / "s", context_cache_mb=12.5)
    assert ServerSettings.from_head(settings_.to_head()).context_cache_mb == 12.5
    assert ServerSettings().context_cache_mb == 0
