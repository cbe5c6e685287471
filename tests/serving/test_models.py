"""Models as versions: swaps, canaries, shadows, the way back, live items, and the guard around whatever a model says."""

from __future__ import annotations

import json
import shutil
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from rankloom.data.filters import parse_filter
from rankloom.recommender import Rankloom
from rankloom.requests import Recommendation, Request
from rankloom.serving.app import Serving, create_app
from rankloom.serving.guardrails import Guardrails
from rankloom.serving.registry import pointed_to
from rankloom.serving.settings import ServerSettings
from rankloom.serving.snapshot import Snapshot
from rankloom.serving.state import Document, StateUnavailableError

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))


@pytest.fixture
def app(root: Path, tmp_path: Path) -> Any:
    settings = ServerSettings(
        state=tmp_path / "state", folder=root / "a", asked=root / "a", pointer=tmp_path / "pointer.json",
        guardrails=Guardrails(min_replies=20),
    )  # fmt: skip
    return create_app(Rankloom.from_pretrained(root / "a"), settings)


@pytest.fixture
def client(app: Any) -> Iterator[TestClient]:
    with TestClient(app) as own:
        yield own


def serving_of(client: TestClient) -> Serving:
    own: Serving = client.app.state.serving  # type: ignore[attr-defined]
    return own


def ask(client: TestClient, user: str | None = None, **more: Any) -> dict[str, Any]:
    reply = client.post("/v1/recommend", json={"user_id": user, "k": 5, **more})
    assert reply.status_code == 200, reply.text
    own: dict[str, Any] = reply.json()
    return own


def spoil(version: Any, how: Callable[[Rankloom, Sequence[Request]], list[Recommendation]]) -> None:
    """Makes a loaded model answer otherwise."""
    model = version.snapshot.model
    honest = model.recommend_batch
    model.recommend_batch = lambda requests: how(honest, requests)


# -- swaps -----------------------------------------------------------------------------------------------------------------


def test_a_swap_names_the_new_version_and_one_call_goes_back(client: TestClient, root: Path, tmp_path: Path) -> None:
    first = ask(client)["model_version"]
    second = client.post("/v1/models", json={"folder": "b"}).json()["model_version"]
    assert second != first
    assert ask(client)["model_version"] == second
    assert client.get("/readyz").json()["model_version"] == second
    assert pointed_to(tmp_path / "pointer.json", root / "a") == (root / "b").resolve()
    assert pointed_to(tmp_path / "pointer.json", root / "other") == root / "other"
    assert client.post("/v1/models/rollback").json() == {"model_version": first}
    assert ask(client)["model_version"] == first
    told = client.get("/v1/models").json()
    assert [(v["role"], v["model_version"]) for v in told["versions"]] == [("current", first), ("previous", second)]
    assert [e["what"] for e in told["events"]] == ["deployed as current", "rolled back to"]
    (tmp_path / "pointer.json").write_text("{half")
    assert pointed_to(tmp_path / "pointer.json", root / "a") == root / "a"


def test_what_cannot_be_done_is_told(client: TestClient) -> None:
    for path, code in (("rollback", "nothing-before"), ("promote", "nothing-to-promote")):
        reply = client.post(f"/v1/models/{path}")
        assert (reply.status_code, reply.json()["code"]) == (409, code)
    assert client.post("/v1/models/stop").json() == {"stopped": []}
    with serving_of(client).registry._alone():
        reply = client.post("/v1/models", json={"folder": "b"})
        assert (reply.status_code, reply.json()["code"]) == (409, "deployment-running")


def test_every_broken_folder_is_refused_by_name_and_the_old_model_answers(client: TestClient, model_path: Path, root: Path) -> None:
    from _damage import damaged_folders

    version = ask(client)["model_version"]
    tried = 0
    for what, name in damaged_folders(model_path, root):
        reply = client.post("/v1/models", json={"folder": name})
        assert reply.status_code == 422, (what, reply.text)
        assert name.rsplit("/", 1)[-1] in reply.text or ".json" in reply.text or ".parquet" in reply.text or ".safetensors" in reply.text
        tried += 1
    assert tried >= 40
    assert ask(client)["model_version"] == version
    assert len(client.get("/v1/models").json()["versions"]) == 1


def test_a_disk_that_keeps_no_pointer_changes_nothing(client: TestClient, tmp_path: Path) -> None:
    version = ask(client)["model_version"]
    (tmp_path / "pointer.json").mkdir()
    reply = client.post("/v1/models", json={"folder": "b"})
    assert (reply.status_code, reply.json()["code"]) == (503, "write-failed")
    assert ask(client)["model_version"] == version


# -- canary and shadow -----------------------------------------------------------------------------------------------------


def test_a_canary_answers_its_share_always_the_same_people(client: TestClient) -> None:
    first = ask(client)["model_version"]
    second = client.post("/v1/models", json={"folder": "b", "mode": "canary", "share": 0.3}).json()["model_version"]
    met = {f"p{k}": ask(client, f"p{k}")["model_version"] for k in range(60)}
    assert set(met.values()) == {first, second}
    assert 0.1 < sum(v == second for v in met.values()) / 60 < 0.5
    assert all(ask(client, user)["model_version"] == version for user, version in list(met.items())[:10])
    assert client.post("/v1/models/promote").json() == {"model_version": second}
    assert {ask(client, f"p{k}")["model_version"] for k in range(20)} == {second}


def leave_nothing(honest: Any, requests: Sequence[Request]) -> list[Recommendation]:
    return [replace(reply, items=[]) for reply in honest(requests)]


def fail(_: Any, requests: Sequence[Request]) -> list[Recommendation]:
    raise RuntimeError("broken")


def forget_the_rules(honest: Any, requests: Sequence[Request]) -> list[Recommendation]:
    answers: list[Recommendation] = honest([replace(own, filter=None) for own in requests])
    return answers


def no_numbers(honest: Any, requests: Sequence[Request]) -> list[Recommendation]:
    return [replace(r, items=[replace(i, score=float("nan")) for i in r.items]) for r in honest(requests)]


def constant(honest: Any, requests: Sequence[Request]) -> list[Recommendation]:
    one = honest([Request(k=5, filter="price < 20")])[0]
    return [one for _ in requests]


@pytest.mark.parametrize(
    ("how", "why"),
    [(fail, "errors"), (leave_nothing, "empty replies"), (forget_the_rules, "invalid"), (no_numbers, "invalid"), (constant, "coverage")],
)
def test_a_bad_canary_is_taken_back_and_nobody_notices(client: TestClient, model: Rankloom, how: Any, why: str) -> None:
    first = ask(client)["model_version"]
    client.post("/v1/models", json={"folder": "b", "mode": "canary", "share": 0.5})
    registry = serving_of(client).registry
    assert registry.routing.canary is not None
    spoil(registry.routing.canary, how)
    allowed = {item for item, ok in zip(model.items["item_id"], parse_filter("price < 20").mask(model.items), strict=True) if ok}
    for k in range(200):
        reply = ask(client, model.users[k % len(model.users)], filter="price < 20")
        assert len(reply["items"]) == 5
        assert {item["item_id"] for item in reply["items"]} <= allowed
        if registry.routing.canary is None:
            break
    told = client.get("/v1/models").json()
    assert [v["model_version"] for v in told["versions"]] == [first]
    assert told["events"][-1]["what"] == "taken back"
    assert told["events"][-1]["why"].startswith(why)
    assert "rankloom_rollbacks 1" in client.get("/metrics").text


def test_a_shadow_is_asked_and_never_seen(client: TestClient) -> None:
    first = ask(client)["model_version"]
    second = client.post("/v1/models", json={"folder": "b", "mode": "shadow"}).json()["model_version"]
    spoil(serving_of(client).registry.routing.shadow, lambda honest, requests: honest(requests))
    assert {ask(client, f"p{k}")["model_version"] for k in range(8)} == {first}
    serving_of(client).service.batcher.close()  # answers and shadows what waits
    shadow = next(v for v in client.get("/v1/models").json()["versions"] if v["role"] == "shadow")
    assert shadow["model_version"] == second
    assert client.post("/v1/models/stop").json() == {"stopped": [second]}


def test_swaps_under_load_never_mix_versions(client: TestClient, model: Rankloom) -> None:
    """Two folders answer alike, so the versions of model and catalogue are told apart by a price that the rule names."""
    item = model.items.filter(model.items["price_micros"].is_not_null())["item_id"][0]
    title = model.items.row(model.row_of(item), named=True)["title"]  # type: ignore[arg-type]
    stop = threading.Event()
    replies: list[dict[str, Any]] = []

    def load() -> None:
        while not stop.is_set():
            replies.append(ask(client, k=1, filter=f'item_id == "{item}" and price == 77'))

    threads = [threading.Thread(target=load) for _ in range(4)]
    for thread in threads:
        thread.start()
    cheap: dict[int, bool] = {0: False}
    for n in range(6):
        price = 77_000_000 if n % 2 == 0 else 5_000_000
        told = client.put("/v1/items", json={"items": [{"item_id": item, "title": title, "price_micros": price}]}).json()
        cheap[told["catalogue_version"]] = n % 2 == 0
        assert client.post("/v1/models", json={"folder": "ba"[n % 2]}).status_code == 200
    stop.set()
    for thread in threads:
        thread.join()
    assert len({(r["model_version"], r["catalogue_version"]) for r in replies}) > 4
    for reply in replies:
        assert bool(reply["items"]) == cheap[reply["catalogue_version"]], reply


# -- the catalogue, live ---------------------------------------------------------------------------------------------------


def test_live_items_survive_restarts_and_new_models(client: TestClient, root: Path, tmp_path: Path) -> None:
    item = {"item_id": "live", "title": "Green tea", "category": ["Goods", "Tea"], "price_micros": 9_000_000,
            "attributes": {"color": "green"}, "created_at": "2026-01-01T00:00:00Z"}  # fmt: skip
    gone = ask(client)["items"][0]["item_id"]
    assert client.put("/v1/items", json={"items": [item]}).json()["new"] == 1
    assert client.put("/v1/items", json={"items": [{"item_id": "live", "title": "Greener tea"}]}).json()["updated"] == 1
    assert client.delete(f"/v1/items/{gone}").json()["removed"] == 1
    assert client.delete(f"/v1/items/{gone}").json()["removed"] == 0
    assert client.delete("/v1/items/never-there").json()["removed"] == 0
    twice = client.put("/v1/items", json={"items": [item, item]})
    assert (twice.status_code, twice.json()["code"]) == (400, "item-twice")

    def check(own: TestClient) -> None:
        reply = ask(own, k=1, filter='item_id == "live" and price == 9 and attributes.color == "green"')
        assert [i["title"] for i in reply["items"]] == ["Greener tea"]
        assert ask(own, filter=f'item_id == "{gone}"')["items"] == []

    check(client)
    client.post("/v1/models", json={"folder": "b"})
    check(client)
    client.post("/v1/models/rollback")
    check(client)
    serving_of(client).close()
    with TestClient(create_app(Rankloom.from_pretrained(root / "b"), state=tmp_path / "state")) as again:
        check(again)


def test_a_catalogue_is_the_same_for_a_model_that_comes_later(client: TestClient, model: Rankloom) -> None:
    """Changes one by one, as the serving model met them, and all at once, as a model that is loaded afterwards does."""
    ids = model.items["item_id"].to_list()
    twins = [{"item_id": name, "title": model.items["title"][0]} for name in ("live-a", "live-b")]
    client.put("/v1/items", json={"items": [twins[0], {"item_id": ids[1], "title": "zyzzyva", "price_micros": 1_000_000}]})
    client.put("/v1/items", json={"items": [twins[1]]})
    client.put("/v1/items", json={"items": [{**twins[0], "price_micros": 3_000_000}]})
    assert client.delete(f"/v1/items/{ids[1]}").json()["removed"] == 1
    before = serving_of(client).registry.routing.current.snapshot
    assert client.post("/v1/models", json={"folder": "b"}).status_code == 200
    after = serving_of(client).registry.routing.current.snapshot
    assert (after.catalogue, after.ids) == (before.catalogue, before.ids)
    assert after.version != before.version
    assert after.model.items.equals(before.model.items)
    assert (after.alive == before.alive).all()
    # whoever has the item that was changed and taken out in the history is answered alike
    users = [user for user in model.users if ids[1] in {event.item_id for event in model.history_of(user)}][:3] or model.users[:3]
    for user in users:
        one, two = (own.answer([Request(user, tuple(model.history_of(user)), k=20)])[0].items for own in (before, after))
        assert [item.item_id for item in one] == [item.item_id for item in two]
        assert [item.score for item in one] == pytest.approx([item.score for item in two], abs=1e-5)


def test_an_old_snapshot_searches_as_before_a_change(model: Rankloom) -> None:
    """What a search reads of the catalogue's words is a snapshot's own, spelling included."""
    old = Snapshot(model)
    assert model.query_memory is not None
    words = [title.split()[0] for title in old.titles[:6]]
    asked = [Request(None, k=10, query=word, surface="search", seen="allow") for word in words]

    def answers() -> list[list[tuple[str, float]]]:
        model.query_memory._kept.clear()  # type: ignore[union-attr]
        return [[(item.item_id, item.score) for item in own.items] for own in old.answer(asked)]

    before = answers()
    ids = [found[0] for own in before for found in own[:3]]
    put = {item: {"item": {"item_id": item, "title": "zyzzyva wombat"}, "removed": False} for item in dict.fromkeys(ids)}
    new = old.with_changes([Document(name, value, number) for number, (name, value) in enumerate(put.items(), 1)])
    assert answers() == before
    found = new.answer([Request(None, k=5, query="zyzzyva", surface="search", seen="allow")])[0].items
    assert {item.title for item in found} == {"zyzzyva wombat"}
    assert model.query_memory.match("zyzzyva").row.tolist() == []


def test_a_change_makes_a_snapshot_and_leaves_the_old_one(model: Rankloom) -> None:
    old = Snapshot(model)
    before = [i.item_id for i in old.answer([Request(k=20)])[0].items]
    changes = [Document(before[0], {"item": {}, "removed": True}, 4), Document("new", {"item": {"item_id": "new", "title": "x"}, "removed": False}, 5)]
    new = old.with_changes(changes)
    assert (new.catalogue, new.n_rows, new.alive.sum()) == (5, old.n_rows + 1, old.alive.sum())
    assert before[0] not in {i.item_id for i in new.answer([Request(k=20)])[0].items}
    assert [i.item_id for i in old.answer([Request(k=20)])[0].items] == before
    shared = {id(p) for p in old.model.model.parameters()}
    assert {id(p) for p in new.model.model.parameters()} == shared
    # what one model cannot take in does not stop the rest, unless it was just sent
    bad = [Document("bad", {"item": {"item_id": "bad"}, "removed": False}, 6), *[replace(c, sequence=7) for c in changes]]
    assert old.with_changes(bad, lenient=True).n_rows == old.n_rows + 1
    with pytest.raises(Exception, match="title"):
        old.with_changes(bad)


# -- rules in every path ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", [fail, forget_the_rules, no_numbers, leave_nothing])
@pytest.mark.parametrize("scenario", [{}, {"diversity": 0.5, "max_per": {"category": 2}}, {"exploration": 0.5}])
def test_whatever_the_model_does_the_rules_hold(client: TestClient, model: Rankloom, how: Any, scenario: dict[str, Any]) -> None:
    client.put("/v1/scenarios/s", json={"seen": "mask", "filter": "price < 60", **scenario})
    spoil(serving_of(client).registry.routing.current, how)
    allowed = parse_filter("price < 60 and price > 5").mask(model.items)
    user = max(model.users, key=lambda own: len(model.history_of(own)))
    seen = {e.item_id for e in model.history_of(user)}
    body = {"scenario": "s", "k": 20, "filter": "price > 5"}
    first = ask(client, user, **body)
    rest = ask(client, user, **body, cursor=first["next_cursor"])
    shown = [item["item_id"] for item in (*first["items"], *rest["items"])]
    assert shown
    assert len(set(shown)) == len(shown)
    assert all(allowed[model.row_of(item)] for item in shown)
    assert not seen & set(shown)
    if how is fail:
        assert (first["degraded"], first["degraded_cause"]) == (True, "model-error")
        assert {code for item in first["items"] for code in item["reason_codes"]} == {"popular"}


def test_a_search_falls_back_on_titles_only(client: TestClient, model: Rankloom) -> None:
    spoil(serving_of(client).registry.routing.current, fail)
    word = model.items["title"][0].split()[0]
    reply = client.post("/v1/search", json={"query": word, "k": 5}).json()
    assert reply["items"]
    assert all(word.casefold() in item["title"].casefold().split() for item in reply["items"])
    assert client.post("/v1/search", json={"query": "qqqq"}).json()["items"] == []
    client.put("/v1/scenarios/none", json={"fallback": "none"})
    assert client.post("/v1/recommend", json={"scenario": "none"}).status_code == 500


def test_without_the_state_nobody_s_history_is_used(client: TestClient, model: Rankloom, monkeypatch: pytest.MonkeyPatch) -> None:
    def away(_: object) -> Any:
        raise StateUnavailableError("gone", place="there")

    stranger = [item["item_id"] for item in ask(client, "nobody")["items"]]
    monkeypatch.setattr(serving_of(client).store, "people", away)
    reply = ask(client, model.users[0])
    assert (reply["degraded"], reply["degraded_cause"]) == (True, "state-unavailable")
    assert [item["item_id"] for item in reply["items"]] == stranger
    assert "rankloom_state_errors_total 1" in client.get("/metrics").text


def test_caps_and_exploration_of_a_scenario_are_seen_in_the_list(client: TestClient, model: Rankloom) -> None:
    client.put("/v1/scenarios/capped", json={"max_per": {"category": 1}})
    items = [item["item_id"] for item in ask(client, k=6, scenario="capped")["items"]]
    groups = [tuple(model.items.row(model.row_of(i), named=True)["category"][:2]) for i in items]  # type: ignore[arg-type]
    assert len(set(groups)) == len(groups)
    client.put("/v1/scenarios/open", json={"exploration": 0.3})
    new = [item for k in range(30) for item in ask(client, f"p{k}", k=10, scenario="open")["items"] if item["reason_codes"] == ["exploration"]]
    assert 0.2 < len(new) / 300 < 0.4


def test_scenarios_are_defined_live_kept_and_refused_when_unknown(client: TestClient, root: Path, tmp_path: Path) -> None:
    assert client.post("/v1/recommend", json={"scenario": "hmoe"}).json()["code"] == "scenario-unknown"
    assert client.put("/v1/scenarios/home", json={"filter": "prise < 3"}).json()["code"] == "filter-field"
    assert client.put("/v1/scenarios/home", json={"filter": "price < 9", "seen": "mask"}).status_code == 200
    assert client.get("/v1/scenarios").json()["home"]["filter"] == "price < 9"
    serving_of(client).close()
    with TestClient(create_app(Rankloom.from_pretrained(root / "a"), state=tmp_path / "state")) as again:
        assert ask(again, scenario="home")["scenario"] == "home"
        assert again.delete("/v1/scenarios/home").json() == {"removed": "home"}
        assert again.post("/v1/recommend", json={"scenario": "home"}).json()["code"] == "scenario-unknown"
        assert json.dumps(again.get("/v1/scenarios").json())


def test_two_servers_share_one_state(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tests.serving.stores import skip_without_valkey, valkey_server

    skip_without_valkey()
    monkeypatch.chdir(tmp_path)
    with valkey_server(tmp_path / "valkey") as (address, _):
        apps = [create_app(Rankloom.from_pretrained(root / "a"), state=address) for _ in range(2)]
        with TestClient(apps[0]) as one, TestClient(apps[1]) as two:
            event = {"event_id": "e", "user_id": "ada", "item_id": ask(one)["items"][0]["item_id"], "event": "click"}
            assert one.post("/v1/events", json={"events": [event]}).json()["accepted"] == 1
            assert two.post("/v1/events", json={"events": [event]}).json()["duplicate"] == 1
            assert len(two.get("/v1/console/users/ada").json()["history"]) == 1
            version = one.put("/v1/items", json={"items": [{"item_id": "live", "title": "Tea"}]}).json()["catalogue_version"]
            one.put("/v1/scenarios/home", json={"filter": 'item_id == "live"'})
            registry, scenarios = serving_of(two).registry, serving_of(two).scenarios
            registry.refresh()  # what the server does four times a second
            scenarios.refresh()
            reply = ask(two, scenario="home")
            assert [item["item_id"] for item in reply["items"]] == ["live"]
            assert reply["catalogue_version"] == version
            one.delete("/v1/users/ada")
            assert two.get("/v1/console/users/ada").json()["history"] == []


def test_forgotten_people_leave_the_model_folder_too(model_path: Path, model: Rankloom, tmp_path: Path) -> None:
    from typer.testing import CliRunner

    from rankloom.cli import app as cli
    from rankloom.serving.sqlite_store import SqliteStore

    folder, state = tmp_path / "model", tmp_path / "state"
    shutil.copytree(model_path, folder)
    ada, bob = model.users[:2]
    store = SqliteStore(state)

    def forget() -> Any:
        done = CliRunner().invoke(cli, ["models", "forget", str(folder), "--state", str(state), "--json"])
        assert done.exit_code == 0, done.output
        return json.loads(done.output)

    assert forget() == {"removed": 0, "model_version": model.model_version}
    store.delete_user(ada)
    told = forget()
    assert told["removed"] == 1
    assert told["model_version"] != model.model_version
    own = Rankloom.from_pretrained(folder)
    assert own.model_version == told["model_version"]
    assert (own.history_of(ada), bool(own.history_of(bob))) == ([], True)
    assert forget()["removed"] == 0
    store.close()
