"""What does it take to make the server fail, lie about a rule, or stop?

    python benchmarks/serving_fuzz.py [--quick] [--json OUT]

1. `folders`: a running server is told to deploy model folders that are broken in more than forty ways, forged manifests among
   them. Each is refused by name and the old model answers on.
2. `disk`: at six moments of a running server no file can grow. What cannot be made durable is refused with 503, asking goes
   on, and once there is room the same request succeeds.
3. `properties`: requests that the OpenAPI page allows and ones that it does not (Schemathesis), and mutations of good bodies
   down to the byte. No reply is a 5xx, every error has the one format.
4. `rules`: random rules, seen items, exclusions and pages, with scenarios that rearrange and explore, while items change,
   and a model that fails or forgets the rules now and then. A plain oracle checks every list: no item that the rule forbids,
   none that was seen, none twice across pages.

Parts 3 and 4 call the application in this process, over ASGI, many at once; so batching is part of it.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import random
import resource
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from _common import ROOT, Benchmark, argument_parser
from _damage import damaged_folders
from _report import publish
from _rules import Row, random_rule
from _serving import LiveServer, small_models

sys.path.insert(0, str(ROOT))
from rankloom.progress import Progress
from rankloom.recommender import Rankloom
from rankloom.requests import Recommendation, Request
from rankloom.serving.app import create_app
from rankloom.serving.batching import BatchSettings

# -- broken folders and full disks ---------------------------------------------------------------------------------------


def folders(model: Path, place: Path) -> dict[str, Any]:
    """Broken folders, one after the other, at one server."""
    root = place / "models"
    root.mkdir()
    shutil.copytree(model, root / "good")
    server = LiveServer(root / "good", place / "state")
    server.start()
    tried, accepted, unnamed, silent = 0, [], [], 0
    version = server.ask("GET", "/readyz")[1]["model_version"]
    for what, name in damaged_folders(model, root):
        status, told = server.ask("POST", "/v1/models", {"folder": name})
        tried += 1
        if status != 422:
            accepted.append(f"{what}: {status} {told}")
        text = json.dumps(told)
        if name.rsplit("/", 1)[-1] not in text and not any(part in text for part in (".json", ".parquet", ".safetensors")):
            unnamed.append(f"{what}: {text}")
        status, reply = server.ask("POST", "/v1/recommend", {"user_id": "u1", "k": 5})
        silent += status != 200 or len(reply["items"]) != 5 or reply["model_version"] != version
    return {"tried": tried, "accepted": accepted, "unnamed": unnamed, "silent": silent, "exit": server.stop()}


def disk(model: Path, place: Path) -> dict[str, Any]:
    """No file may grow at six moments."""
    root = place / "models"
    root.mkdir(exist_ok=True)
    for name in ("good", "next"):
        if not (root / name).exists():
            shutil.copytree(model, root / name)
    server = LiveServer(root / "good", place / "disk")
    server.start()
    item = server.ask("POST", "/v1/recommend", {"k": 1})[1]["items"][0]["item_id"]
    event = {"event_id": "full-1", "user_id": "ada", "item_id": item, "event": "click"}
    server.ask("POST", "/v1/events", {"events": [{**event, "event_id": "before"}]})
    moments: list[tuple[str, str, str, Any]] = [
        ("events", "POST", "/v1/events", {"events": [event]}),
        ("items", "PUT", "/v1/items", {"items": [{"item_id": "live", "title": "Green tea"}]}),
        ("item removed", "DELETE", f"/v1/items/{item}", None),
        ("scenario", "PUT", "/v1/scenarios/home", {"diversity": 0.5}),
        ("person forgotten", "DELETE", "/v1/users/ada", None),
        ("model deployed", "POST", "/v1/models", {"folder": "next"}),
    ]
    told: dict[str, tuple[int, int, int, int]] = {}
    back = server.processes()[1]
    _, hard = resource.prlimit(back, resource.RLIMIT_FSIZE)
    for name, method, path, body in moments:
        resource.prlimit(back, resource.RLIMIT_FSIZE, (0, hard))
        refused = [server.ask(method, path, body)[0] for _ in range(2)]
        asking = server.ask("POST", "/v1/recommend", {"user_id": "ada", "k": 5})[0]
        resource.prlimit(back, resource.RLIMIT_FSIZE, (hard, hard))
        told[name] = (refused[0], refused[1], asking, server.ask(method, path, body)[0])
    known = server.ask("GET", "/v1/console/users/ada")[1]["history"]
    status = server.stop()
    return {"moments": told, "left": len(known), "exit": status}


# -- the application in this process -------------------------------------------------------------------------------------


class Local:
    """Calls an application over ASGI without a network, as many at once as one likes."""

    def __init__(self, app: Any) -> None:
        self.app = app

    async def ask(self, method: str, path: str, body: bytes, *headers: tuple[bytes, bytes]) -> tuple[int, bytes]:
        scope = {
            "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": method, "path": path, "raw_path": path.encode("utf-8", "replace"),
            "query_string": b"", "root_path": "", "scheme": "http", "server": ("l", 80), "client": ("l", 1),
            "headers": [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode()), *headers],
        }  # fmt: skip
        status, parts, sent = 0, [], False

        async def receive() -> dict[str, Any]:
            nonlocal sent
            if sent:
                await asyncio.Event().wait()
            sent = True
            return {"type": "http.request", "body": body, "more_body": False}

        async def send(message: Any) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            else:
                parts.append(message.get("body", b""))

        await self.app(scope, receive, send)
        return status, b"".join(parts)

    async def json(self, method: str, path: str, body: Any) -> tuple[int, Any]:
        status, data = await self.ask(method, path, json.dumps(body).encode())
        return status, json.loads(data)


def application(model: Path, **more: Any) -> Any:
    return create_app(Rankloom.from_pretrained(model), batching=BatchSettings(max_queue=10_000, deadline_s=600), **more)


def schemathesis_runs(model: Path, each: int) -> tuple[int, list[str]]:
    """Every operation of the OpenAPI page, `each` generated requests; what a reply did that it should not."""
    import schemathesis
    from hypothesis import HealthCheck, Phase, given, settings

    app = application(model)
    schema = schemathesis.openapi.from_asgi("/openapi.json", app)
    wrong: list[str] = []
    count = 0

    def send(case: Any) -> None:
        nonlocal count
        reply = case.call()
        count += 1
        if reply.status_code >= 500:
            wrong.append(f"{case.operation.label}: {reply.status_code} {reply.text[:200]}")
        try:
            case.operation.validate_response(reply)
        except Exception as error:
            wrong.append(f"{case.operation.label}: {reply.status_code} {str(error)[:300]}")

    steady = settings(
        max_examples=each, deadline=None, database=None, phases=[Phase.generate], suppress_health_check=list(HealthCheck), derandomize=True
    )  # fmt: skip
    for result in schema.get_all_operations():
        steady(given(case=result.ok().as_strategy())(send))()
    app.state.serving.close()
    return count, wrong


NASTY: list[Any] = [
    None, True, False, 0, -1, 1, 2**63, -(2**63), 10**400, 0.5, 1e308, -0.0, "", " ", "\0", "\ud800", "💥" * 50, "ｆｕｌｌ", "a" * 5000, "../../etc/passwd", "' OR 1=1 --",
    "<script>", "2026-01-01", "9999-12-31T23:59:59Z", "0001-01-01T00:00:00+14:00", [], {}, [[]], [None], {"a": {}}, "price < 3", "price <", "not " * 200, "(" * 300, "u1", "click",
]  # fmt: skip


def mutated(rng: random.Random, value: Any, depth: int = 0) -> Any:
    """A good body with something nasty somewhere."""
    if rng.random() < 0.15 + 0.1 * depth:
        return rng.choice(NASTY)
    if isinstance(value, dict):
        out = dict(value)
        for _ in range(rng.choice((0, 1, 1, 2))):
            if out and rng.random() < 0.8:
                name = rng.choice(list(out))
                if rng.random() < 0.25:
                    del out[name]
                else:
                    out[name] = mutated(rng, out[name], depth + 1)
            else:
                out[rng.choice(("k", "x", "filter", "history", "events", "cursor", "", "__proto__"))] = rng.choice(NASTY)
        return out
    if isinstance(value, list):
        out_list = [mutated(rng, own, depth + 1) for own in value]
        return out_list * rng.choice((0, 1, 1, 2))
    return rng.choice(NASTY)


def good_bodies(items: Sequence[str]) -> list[tuple[str, str, Any]]:
    event = {"event_id": "e1", "user_id": "u1", "item_id": items[0], "event": "click", "timestamp": "2026-01-01T00:00:00Z", "watch_s": 3.5, "position": 2}
    history = [{"item_id": items[1], "event": "view", "timestamp": "2026-01-01T00:00:00Z", "watch_s": 1.0}, {"item_id": items[2]}]
    item = {"item_id": "live", "title": "Tea", "category": ["A", "B"], "price_micros": 5, "attributes": {"color": "red"}, "created_at": "2026-01-01T00:00:00Z"}
    ask = {"user_id": "u1", "k": 3, "filter": "price < 30", "exclude": [items[3]], "explain": True, "scenario": "default"}
    return [
        ("POST", "/v1/recommend", ask), ("POST", "/v1/recommend", {"history": history, "k": 3}), ("POST", "/v1/search", {**ask, "query": "red lamp"}),
        ("POST", "/v1/events", {"events": [event]}), ("PUT", "/v1/items", {"items": [item]}), ("PUT", "/v1/scenarios/fuzz", {"diversity": 0.3, "max_per": {"brand": 2}, "filter": "price > 1"}),
        ("POST", "/v1/models", {"folder": "nothing", "mode": "canary", "share": 0.1}), ("POST", "/v1/console/trace", ask), ("DELETE", "/v1/users/u9", None), ("DELETE", "/v1/items/nothing", None),
    ]  # fmt: skip


async def mutations(model: Path, n: int, seed: int) -> tuple[Counter[int], list[str]]:
    """Broken bodies, in waves; replies by status, and what a reply did that it should not."""
    rng = random.Random(seed)
    app = application(model)
    local = Local(app)
    bodies = good_bodies(Rankloom.from_pretrained(model).items["item_id"].to_list())
    # what asks the model or changes the catalogue costs a hundred times the rest
    shares = [8, 4, 2, 60, 0.3, 6, 20, 0.3, 10, 10]
    seen: Counter[int] = Counter()
    wrong: list[str] = []

    async def one() -> None:
        method, path, good = rng.choices(bodies, shares)[0]
        body = json.dumps(mutated(rng, good)).encode()
        if rng.random() < 0.2:
            at = rng.randrange(len(body) + 1)
            body = rng.choice((body[:at], body[:at] + rng.randbytes(3) + body[at:], body[at:], rng.randbytes(20), b"[" * 2000))
        if "/users/" in path or "/items/" in path or "/scenarios/" in path:
            path = path.rpartition("/")[0] + "/" + rng.choice(("x", "\u7528\u6237", "a b", "%00", "'", "x" * 300, "nothing", "..", "fuzz"))
        odd = [(b"x-deadline-ms", rng.choice((b"5", b"-1", b"x", b"99999999999", b"60000")))] if rng.random() < 0.05 else []
        odd += [(b"x-request-id", rng.choice((b"mine", b"bad id", b"x" * 500)))] if rng.random() < 0.05 else []
        status, data = await local.ask(method, path, body, *odd)
        seen[status] += 1
        if status >= 500 and not (status == 503 and odd):
            wrong.append(f"{method} {path} {body[:200]!r}: {status} {data[:200]!r}")
        elif status >= 400 and not {"code", "message"} <= set(json.loads(data)):
            wrong.append(f"{method} {path}: {data[:200]!r}")

    for _ in range(n // 64):
        await asyncio.gather(*(one() for _ in range(64)))
    app.state.serving.close()
    return seen, wrong


# -- rules -----------------------------------------------------------------------------------------------------------------

SCENARIOS = {
    "plain": {"seen": "mask"},
    "mixed": {"seen": "mask", "diversity": 0.4, "max_per": {"brand": 2, "category": 3}, "freshness": 0.3, "freshness_days": 30},
    "open": {"seen": "mask", "exploration": 0.4},
    "goods": {"seen": "mask", "filter": "price > 0"},
    "bare": {"seen": "mask", "fallback": "none"},
}


class Unreliable:
    """A model that now and then fails, and now and then forgets every rule."""

    def __init__(self, model: Rankloom, seed: int, *, lies: float) -> None:
        self.answer = model.recommend_batch
        self.lies = lies
        self.rng = random.Random(seed)
        self.asked = self.failed = self.lied = 0

    def __call__(self, requests: Sequence[Request]) -> list[Recommendation]:
        self.asked += 1
        if self.rng.random() < 0.03:
            self.failed += 1
            raise RuntimeError("out of order")
        # at even distances, so that a short run has its share too
        if self.lies and self.asked % round(1 / self.lies) == 0:
            self.lied += len(requests)
            return self.answer([Request(user=r.user, k=r.k, seen="allow") for r in requests])
        return self.answer(requests)


async def rules(model: Path, n: int, seed: int, *, lies: float = 0.07) -> Counter[str]:
    """Chains of pages under random rules, each list checked by the oracle; `lies` is the share of batches without rules."""
    rng = random.Random(seed)
    own = Rankloom.from_pretrained(model)
    unreliable = Unreliable(own, seed, lies=lies)
    app = application(model)
    serving = app.state.serving
    rows: dict[str, Row] = {row["item_id"]: row for row in own.items.to_dicts()}
    count: Counter[str] = Counter()
    histories: dict[str, set[str]] = {user: {e.item_id for e in own.history_of(user)} for user in own.users}
    local = Local(app)
    for name, settings in SCENARIOS.items():
        status, _ = await local.json("PUT", f"/v1/scenarios/{name}", settings)
        assert status == 200

    async def chain() -> None:
        text, oracle = random_rule(rng, list(rows.values()))
        name = rng.choice(list(SCENARIOS))
        user = rng.choice([*own.users, *extra])
        body: dict[str, Any] = {"scenario": name, "user_id": user, "k": rng.choice((1, 3, 10, 30)), "filter": text}
        if rng.random() < 0.3:
            body["exclude"] = rng.sample(list(rows), 5)
        search = rng.random() < 0.15
        if search:
            body["query"] = rng.choice(("red lamp", "phone case", "\u8336"))
        shown: set[str] = set()
        for _ in range(rng.choice((1, 1, 2, 4))):
            known = set(histories.get(user, set()))
            status, reply = await local.json("POST", "/v1/search" if search else "/v1/recommend", body)
            count["requests"] += 1
            if status != 200:
                count["5xx" if status >= 500 and name != "bare" else f"status {status}"] += 1
                return
            items = [item["item_id"] for item in reply["items"]]
            count["items"] += len(items)
            count["degraded"] += reply["degraded"]
            count["rule broken"] += sum(not oracle(rows[item]) for item in items)
            count["rule broken"] += sum(rows[item].get("price_micros") in (None, 0) for item in items) if name == "goods" else 0
            count["excluded shown"] += len(set(items) & set(body.get("exclude", ())))
            count["seen shown"] += len(set(items) & known)
            count["repeated"] += len(items) - len(set(items) - shown)
            count["too many"] += len(items) > body["k"]
            shown |= set(items)
            if reply["next_cursor"] is None:
                return
            body["cursor"] = reply["next_cursor"]

    extra = [f"visitor-{k}" for k in range(20)]
    while count["requests"] < n:
        serving.registry.routing.current.snapshot.model.recommend_batch = unreliable_of(serving, unreliable)
        await asyncio.gather(*(chain() for _ in range(64)))
        # between two waves: people act, prices change, items come and go
        batch = [{"user_id": rng.choice(extra), "item_id": rng.choice(list(rows)), "event": "view"} for _ in range(5)]
        await local.json("POST", "/v1/events", {"events": batch})
        for event in batch:
            histories.setdefault(event["user_id"], set()).add(event["item_id"])
        if rng.random() < 0.2:
            item = rng.choice(list(rows.values()))
            price = rng.randrange(1, 90) * 1_000_000
            await local.json("PUT", "/v1/items", {"items": [{"item_id": item["item_id"], "title": item["title"], "price_micros": price}]})
            rows[item["item_id"]] = {**item, "price_micros": price}
    count["model failed"], count["model lied"] = unreliable.failed, unreliable.lied
    serving.close()
    return count


def unreliable_of(serving: Any, unreliable: Unreliable) -> Unreliable:
    """The same unreliability around whichever model serves now."""
    model = serving.registry.routing.current.snapshot.model
    unreliable.answer = type(model).recommend_batch.__get__(model)
    return unreliable


# -- cells -----------------------------------------------------------------------------------------------------------------


def _quiet() -> None:
    logging.getLogger("rankloom").setLevel(logging.CRITICAL)
    torch.set_num_threads(1)


def schemathesis_cell(model: str, n: int, seed: int) -> dict[str, Any]:
    generated, wrong = schemathesis_runs(Path(model), n)
    return {"count": {"requests": generated}, "wrong": wrong}


def mutations_cell(model: str, n: int, seed: int) -> dict[str, Any]:
    statuses, wrong = asyncio.run(mutations(Path(model), n, seed))
    return {"count": {f"status_{status}": own for status, own in statuses.items()}, "wrong": wrong[:20]}


def rules_cell(model: str, n: int, seed: int) -> dict[str, Any]:
    return {"count": dict(asyncio.run(rules(Path(model), n, seed))), "wrong": []}


CELLS = {"schemathesis": schemathesis_cell, "mutations": mutations_cell, "rules": rules_cell}


def measured(bench: Benchmark, model: Path, parts: Sequence[tuple[str, int, int]], workers: int) -> dict[str, tuple[Counter[str], list[str]]]:
    """Counts and findings by part; each cell in a process of its own, kept when it is done.

    Args:
        parts: (part, how many requests, seed), a cell each.
    """
    told: dict[str, tuple[Counter[str], list[str]]] = {name: (Counter(), []) for name in CELLS}
    keys: list[dict[str, Any]] = [{"part": part, "n": n, "seed": seed} for part, n, seed in parts]
    missing = [key for key in keys if bench.args.fresh or bench.store.get(key) is None]
    bar = Progress("fuzzing", len(keys), unit="cells", done=len(keys) - len(missing))
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn"), initializer=_quiet) as pool:
        running = {pool.submit(CELLS[key["part"]], str(model), key["n"], key["seed"]): key for key in missing}
        for done in as_completed(running):
            bench.store.put(running[done], done.result())
            bar.advance()
    bar.close()
    for key in keys:
        cell = bench.store.get(key)
        assert cell is not None
        count, wrong = told[key["part"]]
        count.update(cell["count"])
        wrong += cell["wrong"]
    return told


def main() -> int:
    parser = argument_parser(__doc__)
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)), help="processes side by side")
    bench = Benchmark.from_args("serving_fuzz", __doc__, parser=parser, sources=("rankloom", "benchmarks/serving_fuzz.py", "benchmarks/_rules.py"))
    _quiet()
    seed = bench.seeds[0]
    each, n_mutations, n_rules, cells = (4, 4_000, 1_200, 1) if bench.quick else (400, 1_000_000, 50_000, 20)
    (model,) = small_models(1)
    with tempfile.TemporaryDirectory() as place:
        broken = folders(model, Path(place))
        full = disk(model, Path(place))
    parts = [("schemathesis", each, seed)]
    parts += [("mutations", n_mutations // cells, 1000 * seed + cell) for cell in range(cells)]
    parts += [("rules", n_rules // cells, 1000 * seed + cell) for cell in range(cells)]
    own = measured(bench, model, parts, bench.args.workers)
    generated, disliked = own["schemathesis"][0]["requests"], own["schemathesis"][1]
    (statuses, wrong), (told, _) = own["mutations"], own["rules"]

    for status, n in sorted(statuses.items()):
        bench.row(system="rankloom", variant="mutations", metric=status, value=n)
    for name, n in sorted(told.items()):
        bench.row(system="rankloom", variant="rules", metric=name, value=n)
    for text in [*broken["accepted"], *broken["unnamed"], *disliked, *wrong][:10]:
        bench.row(system="rankloom", variant="finding", metric=text[:300], value=1)
    bench.check("damaged model folders", broken["tried"], at_least=40)
    bench.check("damaged folders that were not refused", len(broken["accepted"]), target=0)
    bench.check("refusals without a name", len(broken["unnamed"]), target=0)
    bench.check("replies missing meanwhile", broken["silent"], target=0)
    moments = full["moments"]
    bench.check("moments of a full disk", len(moments), at_least=6)
    bench.check("writes refused with 503 on a full disk", sum(own[0] == own[1] == 503 for own in moments.values()), target=len(moments))
    bench.check("asking goes on with a full disk", sum(own[2] == 200 for own in moments.values()), target=len(moments))
    bench.check("the same write succeeds afterwards", sum(own[3] == 200 for own in moments.values()), target=len(moments))
    bench.check("events left of a person forgotten meanwhile", full["left"], target=0)
    bench.check("exit statuses after SIGTERM", [broken["exit"], full["exit"]], target=[0, 0])
    bench.check("requests generated from the OpenAPI page", generated, at_least=10 * each)
    bench.check("mutated requests", sum(statuses.values()), at_least=int(0.98 * n_mutations))
    bench.check("5xx, and errors of another format", len(disliked) + len(wrong), target=0)
    bench.check("requests with random rules", told["requests"], at_least=n_rules)
    for name in ("rule broken", "excluded shown", "seen shown", "repeated", "too many", "5xx"):
        bench.check(f"random rules: {name}", told[name], target=0)
    bench.check("lists of a model that forgets the rules", told["model lied"], at_least=n_rules // 50)
    publish(bench, "fuzz", f"{generated + sum(statuses.values()):,} fuzzed requests, {told['requests']:,} with random rules")
    return bench.finish()


if __name__ == "__main__":
    raise SystemExit(main())
