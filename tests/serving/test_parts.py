"""The parts of the server that need no model: batching, arranging, pages, keys, limits, guardrails, metrics."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rankloom.errors import RankloomError
from rankloom.serving import arrange, paging
from rankloom.serving.batching import Batcher, BatchSettings, OverloadedError, Ticket
from rankloom.serving.contract import Ask
from rankloom.serving.front import Front
from rankloom.serving.guardrails import Guardrails, Outcome, Window, breach
from rankloom.serving.keys import Key, KeyRing, RefusedError, read_keys
from rankloom.serving.limits import Buckets
from rankloom.serving.metrics import BACK, FRONT, Metrics
from rankloom.serving.scenarios import Scenario, read_scenarios

# -- batching --------------------------------------------------------------------------------------------------------------


class Slow:
    """Answers a batch when told to."""

    def __init__(self) -> None:
        self.go = threading.Semaphore(0)
        self.started = threading.Semaphore(0)
        self.batches: list[list[int]] = []

    def __call__(self, tickets: Sequence[Ticket[int, int]]) -> None:
        self.batches.append([t.question for t in tickets])
        self.started.release()
        assert self.go.acquire(timeout=10)
        for t in tickets:
            if t.question < 0:
                t.error = RankloomError("negative")
            else:
                t.result = t.question * 2


def test_what_waits_together_is_answered_together_and_each_gets_its_own() -> None:
    slow = Slow()
    batcher: Batcher[int, int] = Batcher(slow, settings=BatchSettings(max_batch=4, max_queue=10, deadline_s=60))

    async def run() -> list[Any]:
        first = asyncio.create_task(batcher.submit(0, weight=1))
        await asyncio.to_thread(slow.started.acquire)
        rest = [asyncio.create_task(batcher.submit(n, weight=1)) for n in (1, 2, -3, 4, 5)]
        await asyncio.sleep(0)
        for _ in range(3):
            slow.go.release()
        return await asyncio.gather(first, *rest, return_exceptions=True)

    answers = asyncio.run(run())
    assert slow.batches == [[0], [1, 2, -3, 4], [5]]
    assert [a for a in answers if not isinstance(a, Exception)] == [0, 2, 4, 8, 10]
    assert isinstance(answers[3], RankloomError)
    batcher.close()


def test_beam_rows_bound_a_batch_but_one_request_always_fits() -> None:
    slow = Slow()
    batcher: Batcher[int, int] = Batcher(slow, settings=BatchSettings(max_batch=9, max_weight=100, deadline_s=60))

    async def run() -> None:
        batcher.hold()
        tasks = [asyncio.create_task(batcher.submit(n, weight=w)) for n, w in enumerate((60, 60, 500, 10, 10))]
        await asyncio.sleep(0)
        for _ in range(4):
            slow.go.release()
        batcher.release()
        await asyncio.gather(*tasks)

    asyncio.run(run())
    assert slow.batches == [[0], [1], [2], [3, 4]]
    batcher.close()


def test_a_full_queue_refuses_at_once_and_a_passed_deadline_costs_nothing() -> None:
    slow, now = Slow(), [0.0]
    batcher: Batcher[int, int] = Batcher(
        slow, settings=BatchSettings(max_batch=1, max_queue=2, deadline_s=5), clock=lambda: now[0]
    )

    async def run() -> list[Any]:
        first = asyncio.create_task(batcher.submit(0, weight=1))
        await asyncio.to_thread(slow.started.acquire)
        waiting = [asyncio.create_task(batcher.submit(n, weight=1, deadline_s=d)) for n, d in ((1, 5.0), (2, 60.0))]
        await asyncio.sleep(0)
        with pytest.raises(OverloadedError, match="2 requests wait") as told:
            await batcher.submit(3, weight=1)
        assert told.value.retry_after > 0
        now[0] = 6.0  # the first batch took six seconds
        slow.go.release()
        slow.go.release()
        return await asyncio.gather(first, *waiting, return_exceptions=True)

    answers = asyncio.run(run())
    assert answers[0] == 0
    assert isinstance(answers[1], OverloadedError)
    assert answers[1].code == "deadline-passed"
    assert answers[2] == 4
    assert slow.batches == [[0], [2]]
    # slow as the last batch was, an idle server lets the next in
    batcher.check(0.001)
    batcher.close()


def test_a_failing_batch_fails_its_callers_alone() -> None:
    def broken(tickets: Sequence[Ticket[int, int]]) -> None:
        if tickets[0].question == 0:
            raise ZeroDivisionError
        tickets[0].result = 7

    batcher: Batcher[int, int] = Batcher(broken)

    async def run() -> None:
        with pytest.raises(ZeroDivisionError):
            await batcher.submit(0, weight=1)
        assert await batcher.submit(1, weight=1) == 7
        assert await asyncio.wrap_future(batcher.call(lambda: "between")) == "between"
        with pytest.raises(KeyError):
            await asyncio.wrap_future(batcher.call(lambda: {}["x"]))

    asyncio.run(run())
    batcher.close()


class Wire:
    """The channel of a front, without another process."""

    def __init__(self) -> None:
        self.sent: list[tuple[int, int]] = []
        self.replies: asyncio.Queue[Any] = asyncio.Queue()

    def send(self, number: int, kind: int, head: Any, body: bytes = b"") -> None:
        self.sent.append((number, kind))

    async def receive(self) -> Any:
        return await self.replies.get()


def test_the_front_sends_groups_refuses_the_rest_and_survives_the_loss_of_the_model() -> None:
    async def run() -> None:
        wire = Wire()
        front = Front(wire, Metrics(only=FRONT), BatchSettings(max_batch=2, max_queue=2, deadline_s=60))  # type: ignore[arg-type]
        reading = asyncio.create_task(front.read())
        statuses: list[int] = []

        async def ask() -> None:
            scope = {"type": "http", "method": "POST", "path": "/v1/recommend", "query_string": b"", "headers": [], "state": {}}

            async def receive() -> Any:
                return {"type": "http.request", "body": b"{}", "more_body": False}

            async def send(message: Any) -> None:
                if message["type"] == "http.response.start":
                    statuses.append(message["status"])

            await front(scope, receive, send)

        tasks = [asyncio.create_task(ask()) for _ in range(4)]
        await asyncio.sleep(0)
        # the first went at once, a full group behind it, the last waits
        assert wire.sent == [(1, 2), (1, 0), (2, 2), (2, 0), (3, 0)]
        with pytest.raises(OverloadedError):
            front.busy(None)
        head = {"status": 200, "headers": [], "route": None, "log": {}}
        for number in (1, 2, 3):
            wire.replies.put_nowait((number, 1, head, b""))
        await asyncio.gather(*tasks[:3])
        assert wire.sent[5:] == [(1, 2), (4, 0)]
        front.busy(None)
        wire.replies.put_nowait(None)
        await asyncio.gather(*tasks)
        assert statuses == [200, 200, 200, 503]
        assert front.lost.is_set()
        await ask()
        assert statuses[-1] == 503
        await reading

    asyncio.run(run())


def test_after_a_pause_of_the_model_more_may_wait_than_a_queue_holds_as_long_as_it_is_in_time() -> None:
    front = Front(Wire(), Metrics(only=FRONT), BatchSettings(max_batch=2, max_queue=10, deadline_s=1.0))  # type: ignore[arg-type]
    front._asking = 20
    with pytest.raises(OverloadedError):
        front.busy(None)  # nothing is known of the model: the queue's length counts
    front._each_s = 0.02
    front.busy(None)  # 20 questions of 20 ms are 0.4 s of the second
    with pytest.raises(OverloadedError):
        front.busy(0.5)
    front._asking = 40
    with pytest.raises(OverloadedError):
        front.busy(None)


def test_one_pause_among_full_batches_hardly_changes_what_a_question_is_thought_to_take(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("rankloom.serving.front.time.monotonic", lambda: now[0])
    front = Front(Wire(), Metrics(only=FRONT), BatchSettings(max_batch=4))  # type: ignore[arg-type]

    def batch(seconds: float, replies: int = 4) -> None:
        now[0] += seconds
        for _ in range(replies):
            front._learn()

    for _ in range(20):
        batch(0.04)
    assert front._each_s == pytest.approx(0.01)
    batch(5.0)
    assert front._each_s <= 0.0111
    for _ in range(60):
        batch(0.08)
    assert front._each_s == pytest.approx(0.02, rel=0.05)


# -- arranging -------------------------------------------------------------------------------------------------------------

pools = st.integers(1, 25).flatmap(
    lambda n: st.tuples(
        st.lists(st.integers(-2000, 0).map(lambda own: own / 100), min_size=n, max_size=n),
        st.lists(st.tuples(*[st.integers(0, 3)] * 3), min_size=n, max_size=n),
        st.lists(st.sampled_from(["a", "b", "c", None]), min_size=n, max_size=n),
    )
)


def pick(pool: Any, k: int, cap: int, diversity: float, freshness: float = 0.0, youth: Any = None) -> list[int]:
    scores, codes, groups = pool
    return arrange.pick(
        scores, k, codes_PL=np.array(codes), youth_P=np.zeros(len(scores)) if youth is None else youth, groups_P=[groups],
        caps=[cap], diversity=diversity, freshness=freshness,
    )  # fmt: skip


@given(pool=pools, k=st.integers(1, 30), cap=st.integers(1, 4), diversity=st.floats(0, 1))
def test_caps_hold_and_nothing_comes_twice(pool: Any, k: int, cap: int, diversity: float) -> None:
    places = pick(pool, k, cap, diversity)
    assert len(set(places)) == len(places) <= k
    groups = [pool[2][p] for p in places]
    assert all(groups.count(g) <= cap for g in "abc")
    # a list is short only when the caps leave nothing more
    possible = sum(min(cap, pool[2].count(g)) for g in "abc") + pool[2].count(None)
    assert len(places) == min(k, possible)


@given(pool=pools, k=st.integers(1, 30))
def test_without_wishes_the_model_s_order_stays(pool: Any, k: int) -> None:
    scores = pool[0]
    assert [scores[p] for p in pick(pool, k, 100, 0.0)] == sorted(scores, reverse=True)[:k]


def test_diversity_gives_way_to_other_codes_and_freshness_to_the_young() -> None:
    pool = ([-1.0, -1.1, -1.2, -3.0], [(0, 0, 0), (0, 0, 1), (0, 0, 2), (3, 3, 3)], [None] * 4)
    assert pick(pool, 2, 9, 0.0) == [0, 1]
    assert pick(pool, 2, 9, 0.6) == [0, 3]
    youth = arrange.youth(np.array([0.0, np.nan, 0.0, 10 * 86_400.0]), 24 * 86_400.0, 14.0)
    assert youth[3] == pytest.approx(0.5)
    assert youth[1] == 0
    assert pick(pool, 1, 9, 0.0, freshness=0.9, youth=np.array([0, 0, 0, 1.0])) == [3]
    # more diversity, never more alike: the measured effect follows the setting
    rng = np.random.default_rng(0)
    codes = rng.integers(0, 4, (60, 3))
    alike = []
    for d in (0.0, 0.3, 0.6, 1.0):
        chosen = pick((rng.normal(size=60).tolist(), codes.tolist(), [None] * 60), 10, 99, d)
        alike.append(np.mean([arrange.shared_prefix(codes[chosen], codes[p]).sum() - 1 for p in chosen]))
    assert alike[0] > alike[1] >= alike[2] >= alike[3]


@given(n=st.integers(1, 30), free=st.integers(0, 40), share=st.floats(0, 0.5), seed=st.text(max_size=5))
def test_exploration_draws_from_what_is_free_and_repeats_itself(n: int, free: int, share: float, seed: str) -> None:
    rows, pool = list(range(n)), np.arange(100, 100 + free)
    out, new = arrange.explore(rows, pool, share, seed)
    assert (out, new) == arrange.explore(rows, pool, share, seed)
    assert len(set(out)) == n
    assert all(row in new or row == place for place, row in enumerate(out))
    assert new <= set(pool.tolist())


def test_exploration_takes_about_its_share() -> None:
    taken = sum(len(arrange.explore(list(range(20)), np.arange(100, 900), 0.1, f"{k}")[1]) for k in range(500))
    assert 0.09 < taken / 10_000 < 0.11


# -- pages -----------------------------------------------------------------------------------------------------------------


@given(st.sets(st.text(max_size=8), max_size=30))
def test_a_cursor_comes_back_as_it_was_written(shown: set[str]) -> None:
    names = frozenset(paging.name_of(item) for item in shown)
    question = paging.question_of(Ask(user_id="u", filter="price < 3"), search=False)
    text = paging.write(question, names)
    assert text is not None
    assert paging.read(text, question).shown == names


@given(st.text(max_size=60))
def test_what_is_no_cursor_is_told(text: str) -> None:
    with pytest.raises(RankloomError) as told:
        paging.read(text, b"12345678")
    assert told.value.code in ("cursor-invalid", "cursor-mismatch")


def test_a_cursor_belongs_to_its_question_and_ends_somewhere() -> None:
    own = paging.question_of(Ask(user_id="u"), search=False)
    text = paging.write(own, frozenset([b"abcde"]))
    assert text is not None
    assert own == paging.question_of(Ask(user_id="u", k=50, explain=True), search=False)
    for other in (Ask(user_id="v"), Ask(user_id="u", filter="price < 3"), Ask(user_id="u", scenario="home")):
        with pytest.raises(RankloomError, match="another question"):
            paging.read(text, paging.question_of(other, search=False))
    assert paging.write(own, frozenset(n.to_bytes(5, "big") for n in range(paging.MAX_SHOWN + 1))) is None


# -- keys and limits -------------------------------------------------------------------------------------------------------


def key(name: str, *scopes: str, **more: Any) -> Key:
    return Key.model_validate({"name": name, "sha256": sha256(name.encode()).hexdigest(), "scopes": list(scopes), **more})


@pytest.mark.parametrize(
    ("path", "scope"),
    [
        ("/v1/recommend", "recommend"), ("/v1/search", "recommend"), ("/v1/events", "events"), ("/v1/items", "items"),
        ("/v1/items/x", "items"), ("/v1/users/u", "users"), ("/v1/console/users", "console"), ("/v1/models", "admin"),
        ("/v1/models/rollback", "admin"), ("/v1/scenarios/x", "admin"), ("/v1/what-comes-later", "admin"), ("/v1", "admin"),
    ],
)  # fmt: skip
def test_each_scope_opens_its_routes_and_admin_all(path: str, scope: str) -> None:
    scopes = ("recommend", "events", "items", "users", "console", "admin")
    ring = KeyRing([key(own, own) for own in scopes])
    for own in scopes:
        if own in (scope, "admin"):
            assert ring.admit(path, own) == own
        else:
            with pytest.raises(RefusedError) as told:
                ring.admit(path, own)
            assert (told.value.status, told.value.code) == (403, "scope-missing")


def test_missing_wrong_expired_and_fast_keys() -> None:
    ring = KeyRing([key("old", "admin", expires="2020-01-01"), key("web", "recommend", rate=2.0, burst=3.0)], master="secret")
    for given_key, code in (("", "key-missing"), ("nobody", "key-unknown"), ("old", "key-expired"), ("sécret", "key-unknown")):
        with pytest.raises(RefusedError) as told:
            ring.admit("/v1/recommend", given_key)
        assert (told.value.status, told.value.code) == (401, code)
    assert ring.admit("/v1/models", "secret") == "RANKLOOM_API_KEY"
    assert ring.admit("/healthz", "") == "open"
    assert KeyRing().admit("/v1/models", "") == "open"
    for _ in range(3):
        ring.admit("/v1/recommend", "web")
    with pytest.raises(RefusedError) as told:
        ring.admit("/v1/recommend", "web")
    assert told.value.status == 429
    assert told.value.retry_after is not None
    assert 0 < told.value.retry_after <= 0.5


@given(st.lists(st.floats(0, 3), max_size=40), st.floats(0.5, 5), st.integers(1, 5))
def test_a_bucket_never_gives_more_than_its_rate(gaps: list[float], rate: float, burst: int) -> None:
    now = [0.0]
    buckets = Buckets(clock=lambda: now[0])
    passed = 0
    for gap in gaps:
        now[0] += gap
        wait = buckets.take("a", rate=rate, burst=burst)
        passed += wait == 0
        assert wait <= 1 / rate + 1e-9
        assert passed <= burst + now[0] * rate + 1e-6


def test_a_clock_that_goes_back_gives_nothing_and_few_names_are_kept() -> None:
    now = [100.0]
    buckets = Buckets(clock=lambda: now[0], most=3)
    assert buckets.take("a", rate=1, burst=1) == 0
    now[0] = 0.0
    assert buckets.take("a", rate=1, burst=1) > 0
    for name in "bcdef":
        buckets.take(name, rate=1, burst=1)
    assert len(buckets._left) == 3


@pytest.mark.parametrize(
    "text",
    ["{half", "a: 1", "- name: x", "- {name: x, sha256: zz, scopes: [admin]}", f"- {{name: x, sha256: {'0' * 64}, scopes: [root]}}",
     f"- {{name: x, sha256: {'0' * 64}, scopes: [admin]}}\n- {{name: x, sha256: {'1' * 64}, scopes: [admin]}}"],
)  # fmt: skip
def test_a_keys_file_that_is_none_is_told(tmp_path: Path, text: str) -> None:
    (tmp_path / "keys.yaml").write_text(text)
    with pytest.raises(RankloomError, match="the keys cannot be read"):
        read_keys(tmp_path / "keys.yaml")


def test_scenarios_of_a_file(tmp_path: Path) -> None:
    (tmp_path / "s.yaml").write_text("home: {filter: price < 3, seen: mask, max_per: {brand: 2}}\nplain:\n")
    own = read_scenarios(tmp_path / "s.yaml")
    assert own["home"].rule("in_stock == true") == "(price < 3) and (in_stock == true)"
    assert own["plain"] == Scenario()
    assert own["plain"].rule(" ") is None
    for text in ("home: {colour: red}", "[1]", "home: {diversity: 2}", "home: {max_per: {size: 1}}"):
        (tmp_path / "s.yaml").write_text(text)
        with pytest.raises(RankloomError, match="the scenarios cannot be read"):
            read_scenarios(tmp_path / "s.yaml")


# -- guardrails ------------------------------------------------------------------------------------------------------------


def window(n: int, **outcome: Any) -> Window:
    own = Window()
    for k in range(n):
        own.add(Outcome(**{"seconds": 0.01, "items": tuple(f"i{(k * 7 + j) % 90}" for j in range(5)), **outcome}))
    return own


@pytest.mark.parametrize(
    ("outcome", "why"),
    [
        ({}, None),
        ({"invalid": True}, "invalid results"),
        ({"error": True}, "errors: 100"),
        ({"empty": True}, "empty replies"),
        ({"seconds": 0.04}, "latency: 40.0 ms against 10.0"),
        ({"seconds": 0.02}, None),
        ({"items": ("i1", "i2", "i3")}, "coverage: 3 distinct"),
    ],
)
def test_a_canary_goes_when_it_is_worse_and_says_why(outcome: dict[str, Any], why: str | None) -> None:
    told = breach(window(60, **outcome), window(300), Guardrails())
    assert (told is None) == (why is None)
    assert why is None or (told is not None and told.startswith(why))


def test_few_replies_say_nothing_but_one_invalid_one_does() -> None:
    assert breach(window(49, error=True), window(300), Guardrails()) is None
    assert breach(window(60, error=True), Window(), Guardrails()) is None
    assert breach(window(1, invalid=True), window(300), Guardrails()) is not None


# -- metrics ---------------------------------------------------------------------------------------------------------------


def test_the_two_processes_tell_every_metric_once() -> None:
    front, back = Metrics(only=FRONT), Metrics(only=BACK)
    front.observe("/v1/recommend", 0.02)
    back.observe_value("rankloom_batch_size", 3)
    text = back.render({}) + front.render({})
    names = [line.split()[2] for line in text.splitlines() if line.startswith("# TYPE")]
    assert len(names) == len(set(names)) == len(FRONT | BACK)
    assert 'rankloom_http_request_seconds_bucket{route="/v1/recommend",le="0.01"} 0' in text
    assert 'rankloom_http_request_seconds_bucket{route="/v1/recommend",le="0.025"} 1' in text
    assert 'rankloom_batch_size_bucket{le="4"} 1' in text
    assert json.dumps(text)


def test_what_fills_a_search_is_cut_into_words_as_searches_are() -> None:
    titles = ["Red dresses", "红色连衣裙 女士", "Dress, red", "Address book", "蓝色雨伞"]
    rows = np.arange(len(titles))
    assert arrange.by_words(rows, titles, "RED dress") == [0, 2]
    assert arrange.by_words(rows, titles, "红色裙") == [1]
    assert arrange.by_words(rows, titles, "连衣裙") == [1]
    assert arrange.by_words(rows, titles, "?!") == []
