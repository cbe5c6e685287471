"""Do 20 model swaps and 20 catalogue swaps under load fail, mix or slow any request?

    python benchmarks/serving_swap.py [--quick] [--requests 100000] [--json OUT]

A real `rankloom serve` answers a Poisson load at 60% of its capacity. Meanwhile another model folder is deployed, then
back, and between those the catalogue changes: prices, removed items, items that come. Every reply names the version of
its model and of its catalogue, and is computed again here, with the library, from that model and that catalogue: a reply that
mixed two versions would not be found in either. Some swaps try a damaged folder, which has to be refused while the load
goes on.

p99 during a swap is over the requests that were due between its start and a fifth of a second after its end; steady is all the
rest of the same run.
"""

from __future__ import annotations

import json
import random
import shutil
import sys
import tempfile
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from _common import ROOT, Benchmark, argument_parser
from _report import publish
from _serving import MODELS, LiveServer, closed_loop, open_loop, request, small_models

sys.path.insert(0, str(ROOT))
from rankloom.recommender import Rankloom
from rankloom.requests import Request

GAP_S = 0.2


@dataclass
class Change:
    """One swap: when, what, and what the server said."""

    kind: str
    start: float
    end: float
    status: int
    catalogue: int = 0
    put: list[dict[str, Any]] = field(default_factory=list)
    gone: list[str] = field(default_factory=list)


def questions(model: Rankloom, n: int = 60) -> list[dict[str, Any]]:
    rng = random.Random(5)
    out: list[dict[str, Any]] = []
    for _ in range(n):
        body: dict[str, Any] = {"user_id": rng.choice(model.users), "k": 10}
        if rng.random() < 0.4:
            body["filter"] = rng.choice(("price < 30", "price >= 30", "duration_s < 60"))
        if rng.random() < 0.15:
            body["query"] = rng.choice(("red lamp", "phone case", "pet bed"))
        out.append(body)
    return out


class Driver(threading.Thread):
    """Swaps while the load runs; `changes` is what it did."""

    def __init__(self, server: LiveServer, folders: list[Path], model: Rankloom, swaps: int, seconds: float) -> None:
        super().__init__()
        self.server, self.folders, self.model = server, folders, model
        self.swaps, self.seconds = swaps, seconds
        self.changes: list[Change] = []
        self.refused: list[tuple[int, str]] = []
        self.rollback_s = 0.0
        self.begin = 0.0

    def run(self) -> None:
        rng = random.Random(9)
        ids = self.model.items.filter(pl.col("price_micros").is_not_null())["item_id"].to_list()
        gap = self.seconds / (2 * self.swaps + 1)
        for n in range(2 * self.swaps):
            wait = self.begin + gap * (n + 0.5) - time.perf_counter()
            time.sleep(max(0.0, wait))
            if n % 2 == 0:
                self._model(n // 2)
            else:
                self._catalogue(n // 2, rng, ids)
            if n % 10 == 4:
                status, told = self.server.ask("POST", "/v1/models", {"folder": "damaged"})
                self.refused.append((status, told["code"]))

    def _model(self, n: int) -> None:
        start = time.perf_counter()
        if n == self.swaps - 1:  # the last one is the way back
            status, _ = self.server.ask("POST", "/v1/models/rollback")
            self.rollback_s = time.perf_counter() - start
        else:
            status, _ = self.server.ask("POST", "/v1/models", {"folder": self.folders[(n + 1) % 2].name})
        self._note(Change("model", start, time.perf_counter(), status))

    def _catalogue(self, n: int, rng: random.Random, ids: list[str]) -> None:
        title = self.model.items["title"][0]
        if n % 2 == 0:
            put = [{"item_id": own, "title": title, "price_micros": rng.randrange(1, 60) * 1_000_000} for own in rng.sample(ids, 20)]
            put += [{"item_id": f"live-{n % 4}", "title": title, "price_micros": 5_000_000}]
            start = time.perf_counter()
            status, told = self.server.ask("PUT", "/v1/items", {"items": put})
            self._note(Change("catalogue", start, time.perf_counter(), status, told.get("catalogue_version", 0), put=put))
            return
        gone = ids.pop(rng.randrange(len(ids)))  # each once: taking out what is not there is no change
        start = time.perf_counter()
        status, told = self.server.ask("DELETE", f"/v1/items/{gone}")
        self._note(Change("catalogue", start, time.perf_counter(), status, told.get("catalogue_version", 0), gone=[gone]))

    def _note(self, change: Change) -> None:
        change.start -= self.begin
        change.end -= self.begin
        self.changes.append(change)


def recompute(
    folders: list[Path], changes: list[Change], asked: list[dict[str, Any]], seen: Counter[tuple[int, str, int, tuple[str, ...]]]
) -> tuple[int, int]:
    """(replies that are not those of the version they name, pairs of version and question that were compared)."""
    wrong = 0
    compared = set()
    for folder in folders:
        model = Rankloom.from_pretrained(folder)
        states: list[Change | None] = [None, *(c for c in changes if c.kind == "catalogue")]
        for change in states:
            if change is not None:
                if change.put:
                    model.add_items(pl.DataFrame(change.put))
                if change.gone:
                    model.remove_items(change.gone)
            catalogue = change.catalogue if change is not None else 0
            met = {n for n, version, own, _ in seen if version == model.model_version and own == catalogue}
            numbers = sorted(met)
            expected = dict(zip(numbers, model.recommend_batch([_as_request(model, asked[n]) for n in numbers]), strict=True)) if numbers else {}
            for (n, version, own, items), count in seen.items():
                if version != model.model_version or own != catalogue:
                    continue
                compared.add((n, version, own))
                right = [item.item_id for item in expected[n].items]
                if list(items) != right and not _ties(items, expected[n].items):
                    wrong += count
    known = {model for _, model, _, _ in seen} - {Rankloom.from_pretrained(folder).model_version for folder in folders}
    versions = {0, *(c.catalogue for c in changes if c.kind == "catalogue")}
    strangers = sum(count for (_, model, own, _), count in seen.items() if model in known or own not in versions)
    return wrong + strangers, len(compared)


def _as_request(model: Rankloom, body: dict[str, Any]) -> Request:
    words = body.get("query")
    return Request(
        body["user_id"], tuple(model.history_of(body["user_id"])), body["k"], body.get("filter"), query=words,
        surface="search" if words else "feed", seen="allow" if words else "auto",
    )  # fmt: skip


def _ties(items: tuple[str, ...], right: list[Any]) -> bool:
    """The same list up to items whose scores differ by less than rounding: batches of other sizes add in another order."""
    score = {own.item_id: own.score for own in right}
    last = min(score.values(), default=0.0)
    return len(items) == len(right) and all(abs(score.get(item, last) - own.score) < 1e-4 for item, own in zip(items, right, strict=True))


def main() -> int:
    parser = argument_parser(__doc__)
    parser.add_argument("--requests", type=int, default=100_000)
    bench = Benchmark.from_args("serving_swap", __doc__, parser=parser)
    swaps = 4 if bench.quick else 20
    folders = small_models(2)
    own = Rankloom.from_pretrained(folders[0])
    asked = questions(own)
    wire = [request("/v1/search" if "query" in body else "/v1/recommend", body) for body in asked]
    damaged = MODELS / "damaged"
    shutil.rmtree(damaged, ignore_errors=True)
    shutil.copytree(folders[1], damaged)
    with open(damaged / "model.safetensors", "r+b") as handle:
        handle.seek(5000)
        handle.write(b"\xff\xff\xff\xff")
    seen: Counter[tuple[int, str, int, tuple[str, ...]]] = Counter()

    def note(number: int, status: int, body: bytes) -> None:
        if status == 200:
            told = json.loads(body)
            items = tuple(item["item_id"] for item in told["items"])
            seen[number % len(asked), told["model_version"], told["catalogue_version"], items] += 1

    with tempfile.TemporaryDirectory() as folder:
        server = LiveServer(folders[0], Path(folder) / "state", "--models", str(MODELS))
        server.start()
        try:
            closed_loop(server.port, wire, connections=32, seconds=2)
            capacity = len(closed_loop(server.port, wire, connections=64, seconds=3 if bench.quick else 10).of(200)) / (3 if bench.quick else 10)
            rate = 0.6 * capacity
            seconds = 16.0 if bench.quick else bench.args.requests * 1.02 / rate
            memory = [server.rss_mb()]
            driver = Driver(server, folders, own, swaps, seconds)
            driver.begin = time.perf_counter()
            driver.start()
            load = open_loop(server.port, wire, rate=rate, seconds=seconds, note=note, tick=lambda _: memory.append(server.rss_mb()))
            driver.join()
            status = server.stop()
        finally:
            server.kill()

    changes = driver.changes
    during = [s for s in load.of(200) if any(c.start <= s.intended <= c.end + GAP_S for c in changes)]
    ids = {id(s) for s in during}
    steady = [s for s in load.of(200) if id(s) not in ids]
    wrong, compared = recompute(folders, changes, asked, seen)
    p99 = {name: load.quantile_ms(0.99, part) for name, part in (("steady", steady), ("during a swap", during))}
    for name, part in (("steady", steady), ("during a swap", during)):
        bench.row(system="rankloom", variant=name, metric="p50_ms", value=round(load.quantile_ms(0.5, part), 2), n=len(part))
        bench.row(system="rankloom", variant=name, metric="p99_ms", value=round(p99[name], 2), n=len(part))
    for kind in ("model", "catalogue"):
        took = [c.end - c.start for c in changes if c.kind == kind]
        bench.row(system="rankloom", variant=f"{kind} swap", metric="median_s", value=round(float(np.median(took)), 3), n=len(took))
        bench.row(system="rankloom", variant=f"{kind} swap", metric="longest_s", value=round(max(took), 3), n=len(took))
    bench.row(system="rankloom", variant="memory", metric="first_mb", value=round(memory[0], 1))
    bench.row(system="rankloom", variant="memory", metric="last_mb", value=round(memory[-1], 1))
    bench.row(system="rankloom", variant="recomputed", metric="version_and_question_pairs", value=compared)
    for other in sorted({s.status for s in load.sent} - {200}):
        bench.row(system="rankloom", variant="failed", metric=f"status_{other}", value=len(load.of(other)))
    bench.check("requests", len(load.sent), at_least=1000 if bench.quick else bench.args.requests)
    bench.check("model swaps done", sum(c.kind == "model" and c.status == 200 for c in changes), target=swaps)
    bench.check("catalogue swaps done", sum(c.kind == "catalogue" and c.status == 200 for c in changes), target=swaps)
    bench.check("requests failed", len(load.sent) - len(load.of(200)), target=0)
    bench.check("replies that are not of the one version they name", wrong, target=0)
    bench.check("versions that answered", len({(version, own) for _, version, own, _ in seen}), at_least=2 * swaps)
    bench.check("p99 during a swap / steady", round(p99["during a swap"] / p99["steady"], 2), at_most=2)
    bench.check("longest catalogue change, s", round(max(c.end - c.start for c in changes if c.kind == "catalogue"), 2), at_most=1)
    bench.check("rollback, s", round(driver.rollback_s, 3), at_most=1)
    bench.check("damaged folders refused by name", sum(own == (422, "model-damaged") for own in driver.refused), target=len(driver.refused))
    bench.check("memory at the end / after the first swaps", round(memory[-1] / max(memory[len(memory) // 4 : len(memory) // 2]), 3), at_most=1.1)
    bench.check("exit status after SIGTERM", status, target=0)
    publish(bench, "swap", f"{len(load.sent):,} requests at {rate:.0f} a second, {compared:,} answers of a version computed again")
    return bench.finish()


if __name__ == "__main__":
    raise SystemExit(main())
