"""How long does a bid take, in process and over HTTP, and how long a decision about a batch of campaigns?

    python benchmarks/bidding_latency.py [--quick] [--campaigns N] [--controller SPEC ...] [--json OUT]

In process: `BidServer.bid` on the bytes of OpenRTB requests (banner, video, native, app, deals, several impressions) with
every bid reserved and logged, while its own threads sync and control. Over HTTP: the same requests, one after the other
on one connection, against `rankloom bid serve` pinned to one core. Each is measured in several rounds; the row is the
round with the median p99, its `low` and `high` are the extremes: on a shared machine the extremes show the neighbours.
`floor` is the same client against a route of the same server that does nothing.
"""

from __future__ import annotations

import gc
import http.client
import json
import os
import random
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from _common import ROOT, Benchmark, argument_parser, fingerprint

sys.path.insert(0, str(ROOT))
from tests.bidding.openrtb_requests import campaign_file, fixtures, mutated, request

ROUNDS = 5
CONTROL_MS = {"gave": 10.0, "cbd": 30.0}
"""A decision about 64 campaigns on one core, by kind of bidder."""


def bodies(n: int = 512) -> list[bytes]:
    """Requests of all shapes, with people of different interests."""
    rng = random.Random(0)
    shapes = [own for name, own in fixtures().items() if name != "test"]
    made = []
    for k in range(n):
        body = json.loads(json.dumps(rng.choice(shapes)))
        body["id"] = f"request-{k}"
        if "user" in body:
            body["user"] = {"id": f"u{k % 97}", "data": [{"segment": [{"id": rng.choice(["shoes", "hats", "x"])}]}]}
        body["at"] = rng.choice([1, 2])
        made.append(json.dumps(body).encode())
    return made


def percentiles(seconds: list[float]) -> dict[str, float]:
    own = np.array(seconds) * 1000
    return {
        "p50": float(np.percentile(own, 50)),
        "p99": float(np.percentile(own, 99)),
        "p999": float(np.percentile(own, 99.9)),
    }


def middle(rounds: list[dict[str, float]]) -> dict[str, Any]:
    """The round with the median p99, and the extremes."""
    rounds = sorted(rounds, key=lambda own: own["p99"])
    return {**rounds[len(rounds) // 2], "low": rounds[0]["p99"], "high": rounds[-1]["p99"], "rounds": len(rounds)}


def in_process(n_campaigns: int, n: int) -> dict[str, Any]:
    from rankloom.bidding.serve.fallback import SafePacing
    from rankloom.bidding.serve.service import BidServer
    from rankloom.bidding.serve.worker import LocalController

    sent = bodies()
    with tempfile.TemporaryDirectory() as folder:
        campaigns = campaign_file(n_campaigns, budget_micros=10**13)
        server = BidServer(campaigns, Path(folder), LocalController(SafePacing))
        sys.setswitchinterval(0.0005)
        for body in sent:
            server.bid(body)
        gc.collect()
        gc.freeze()
        rounds, bids = [], 0
        for _ in range(ROUNDS):
            seconds, busy = [], []
            begun, cpu = time.perf_counter(), time.thread_time()
            for k in range(n):
                body = sent[k % len(sent)]
                start, used = time.perf_counter(), time.thread_time_ns()
                reply = server.bid(body)
                busy.append((time.thread_time_ns() - used) / 1e9)
                seconds.append(time.perf_counter() - start)
                bids += reply.bids
            passed, used = time.perf_counter() - begun, time.thread_time() - cpu
            rounds.append(
                {
                    **percentiles(seconds),
                    "per_second": n / passed,
                    "cpu_us": used / n * 1e6,
                    "cpu_p99": percentiles(busy)["p99"],
                }
            )
        server.close()
        gc.unfreeze()
    return {
        **middle(rounds),
        "best_per_second": max(own["per_second"] for own in rounds),
        "bids": bids,
        "n": n * ROUNDS,
    }


def over_http(n_campaigns: int, n: int) -> dict[str, Any]:
    sent = bodies()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder)
        (path / "campaigns.json").write_text(campaign_file(n_campaigns, budget_micros=10**13).model_dump_json())
        command = [
            sys.executable, "-m", "rankloom.cli", "bid", "serve", "safe-pacing", "--campaigns", str(path / "campaigns.json"),
            "--port", "0", "--state", str(path / "state"),
        ]  # fmt: skip
        child = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=ROOT)
        try:
            assert child.stderr is not None
            line = next(own for own in child.stderr if own.startswith("bid requests"))
            host = line.split("//")[1].split("/")[0]
            if hasattr(os, "sched_setaffinity"):
                cores = sorted(os.sched_getaffinity(0))
                for thread in Path(f"/proc/{child.pid}/task").iterdir():
                    os.sched_setaffinity(int(thread.name), {cores[-1]})
            connection = http.client.HTTPConnection(host)
            connection.connect()
            connection.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

            def ask(method: str, target: str, body: bytes | None) -> int:
                connection.request(method, target, body)
                reply = connection.getresponse()
                reply.read()
                return reply.status

            for body in sent:
                ask("POST", "/v1/openrtb/bid", body)
            rounds, floors, statuses = [], [], set()
            for _ in range(ROUNDS):
                seconds, floor = [], []
                for k in range(n):
                    start = time.perf_counter()
                    statuses.add(ask("POST", "/v1/openrtb/bid", sent[k % len(sent)]))
                    seconds.append(time.perf_counter() - start)
                    start = time.perf_counter()
                    ask("POST", "/v1/notices/nothing", b"")
                    floor.append(time.perf_counter() - start)
                rounds.append(percentiles(seconds))
                floors.append(percentiles(floor))
            cpu = sum(
                float(part) for part in Path(f"/proc/{child.pid}/stat").read_text().rsplit(")", 1)[1].split()[11:13]
            )
        finally:
            child.terminate()
            child.wait(timeout=30)
    assert statuses <= {200, 204}, statuses
    return {"bid": middle(rounds), "floor": middle(floors), "n": n * ROUNDS, "cpu_ticks": cpu}


def fuzz(n: int) -> dict[str, Any]:
    """Injured requests: every reply must be valid, and nothing may crash."""
    from rankloom.bidding.serve.fallback import SafePacing
    from rankloom.bidding.serve.openrtb import reply_faults
    from rankloom.bidding.serve.service import BidServer
    from rankloom.bidding.serve.worker import LocalController

    rng = random.Random(1)
    counts: dict[str, int] = {}
    crashes = faults = 0
    with tempfile.TemporaryDirectory() as folder:
        server = BidServer(campaign_file(8, budget_micros=10**12), Path(folder), LocalController(SafePacing))
        for _ in range(n):
            body = mutated(rng)
            try:
                reply = server.bid(body)
                counts[str(reply.status)] = counts.get(str(reply.status), 0) + 1
                if reply.status == 200:
                    faults += bool(reply_faults(json.loads(body), json.loads(reply.body)))
                elif reply.status == 400:
                    faults += not json.loads(reply.body)["message"]
                else:
                    faults += reply.status != 204 or not reply.reason
            except Exception as error:
                crashes += 1
                print(f"{type(error).__name__}: {error}: {body[:300]!r}", file=sys.stderr)
        faults += len(server.ledger.audit())
        server.close()
    return {"crashes": crashes, "faults": faults, "counts": counts, "n": n}


def conformance() -> dict[str, Any]:
    from rankloom.bidding.serve.fallback import SafePacing
    from rankloom.bidding.serve.openrtb import reply_faults
    from rankloom.bidding.serve.service import BidServer
    from rankloom.bidding.serve.worker import LocalController

    wrong = []
    with tempfile.TemporaryDirectory() as folder:
        server = BidServer(campaign_file(4), Path(folder), LocalController(SafePacing))
        for name, body in fixtures().items():
            reply = server.bid(json.dumps(body).encode())
            if reply.status != 200 or reply_faults(body, json.loads(reply.body)):
                wrong.append(name)
        server.close()
    return {"n": len(fixtures()), "wrong": wrong}


def control(spec: str, n: int, repeats: int) -> dict[str, Any]:
    """A decision about a batch of `n` campaigns late in the day, asked of the controller in its own process."""
    from rankloom.bidding.protocol import Campaigns, History, Observation
    from rankloom.bidding.serve.worker import WorkerController

    rng = np.random.default_rng(0)
    own = WorkerController(spec)
    own.start()
    day = [rng.uniform(0.5, 1.5, (n, 48)) for _ in range(10)]
    campaigns = Campaigns(np.full(n, 3000.0), np.full(n, 90.0), np.arange(n) % 6, tuple(f"c{k}" for k in range(n)))

    def seen(tick: int) -> Observation:
        history = History(
            *(
                part[:, :tick] * scale
                for part, scale in zip(day, (90, 60, 0.7, 0.7, 9000, 5, 450, 300, 250, 0.02), strict=True)
            )
        )
        remaining_N = campaigns.budget_N - history.spend_NT.sum(axis=1)
        return Observation(tick, campaigns, history, remaining_N, np.full(n, 9000.0), np.full(n, 5e-4))

    rounds, n_decisions = [], 0
    for _ in range(repeats + 1):
        seconds = []
        for tick in range(48):
            start = time.perf_counter()
            own.ask("day", seen(tick), seed=0, deadline_s=600)
            seconds.append(time.perf_counter() - start)
        rounds.append(percentiles(seconds))
        n_decisions += len(seconds)
    own.close()
    # the first day warms up
    return {**middle(rounds[1:] or rounds), "n": n_decisions}


def stamp(spec: str) -> str:
    """Changes with a bidder's folder and with what makes its decisions."""
    file = Path(spec) / "bidder.json"
    code = fingerprint([ROOT / "rankloom" / "bidding" / "learned", ROOT / "rankloom" / "bidding" / "controllers"])
    return code + (file.read_text(encoding="utf-8")[-80:] if file.is_file() else "")


def kind_of(spec: str) -> str:
    """What a bidder's folder holds; the name itself where it is none."""
    file = Path(spec) / "bidder.json"
    return str(json.loads(file.read_text(encoding="utf-8"))["settings"]["kind"]) if file.is_file() else spec


def main() -> int:
    parser = argument_parser(__doc__)
    parser.add_argument("--campaigns", type=int, default=64, help="campaigns that bid")
    parser.add_argument(
        "--controller", action="append", default=[], metavar="SPEC", help="a controller to time: a folder or a name"
    )
    bench = Benchmark.from_args(
        "bidding_latency", __doc__, parser=parser,
        sources=("rankloom/bidding/serve", "rankloom/serving/bidding_app.py", "rankloom/serving/bidding_server.py", "tests/bidding/openrtb_requests.py", "benchmarks/bidding_latency.py"),
    )  # fmt: skip
    args, quick = bench.args, bench.quick
    n_campaigns = args.campaigns
    assert request({"banner": {}})["imp"]

    shapes = bench.cell({"what": "conformance"}, conformance)
    bench.row(
        system="rankloom",
        variant="fixtures",
        metric="valid replies",
        value=shapes["n"] - len(shapes["wrong"]),
        n=shapes["n"],
    )
    injured = bench.cell({"what": "fuzz", "n": 1000 if quick else 10_000}, lambda: fuzz(1000 if quick else 10_000))
    bench.row(
        system="rankloom",
        variant="fuzzed requests",
        metric="valid replies",
        value=injured["n"] - injured["faults"] - injured["crashes"],
        n=injured["n"],
    )
    n = 2_000 if quick else 40_000
    inside = bench.cell({"what": "in process", "campaigns": n_campaigns, "n": n}, lambda: in_process(n_campaigns, n))
    for metric, name in (
        ("p50 ms", "p50"),
        ("p99 ms", "p99"),
        ("p99.9 ms", "p999"),
        ("p99 ms of own CPU time", "cpu_p99"),
        ("requests a second", "per_second"),
        ("CPU us a request", "cpu_us"),
    ):
        extremes = {"low": inside["low"], "high": inside["high"]} if name == "p99" else {}
        bench.row(
            system="rankloom",
            variant=f"in process, {n_campaigns} campaigns",
            metric=metric,
            value=inside[name],
            n=inside["n"],
            **extremes,
        )
    n = 300 if quick else 4_000
    outside = bench.cell({"what": "http", "campaigns": n_campaigns, "n": n}, lambda: over_http(n_campaigns, n))
    for system, name in (("rankloom", "bid"), ("floor", "floor")):
        for metric, key in (("p50 ms", "p50"), ("p99 ms", "p99"), ("p99.9 ms", "p999")):
            extremes = {"low": outside[name]["low"], "high": outside[name]["high"]} if key == "p99" else {}
            bench.row(
                system=system,
                variant=f"HTTP, one core, {n_campaigns} campaigns",
                metric=metric,
                value=outside[name][key],
                n=outside["n"],
                **extremes,
            )
    repeats = 1 if quick else 5
    for spec in ["safe-pacing", *args.controller]:
        told = bench.cell(
            {"what": "control", "spec": spec, "bidder": stamp(spec), "repeats": repeats}, lambda spec=spec: control(spec, 64, repeats)
        )
        for metric, key in (("p50 ms", "p50"), ("p99 ms", "p99")):
            extremes = {"low": told["low"], "high": told["high"]} if key == "p99" else {}
            bench.row(
                system=Path(spec).name, variant="control path, batch of 64", metric=metric, value=told[key], n=told["n"],
                **extremes,
            )  # fmt: skip
        limit = CONTROL_MS.get(kind_of(spec))
        if limit is not None:
            bench.check(f"control path, {Path(spec).name}, batch of 64: p50 ms", told["p50"], at_most=limit)
            bench.check(f"control path, {Path(spec).name}, batch of 64: p99 ms of the best day", told["low"], at_most=limit)

    bench.check("valid replies to the specification's shapes", shapes["n"] - len(shapes["wrong"]), target=shapes["n"])
    bench.check("fuzzed requests: crashes", injured["crashes"], target=0)
    bench.check("fuzzed requests: invalid replies", injured["faults"], target=0)
    bench.check("bid path in process, p99 ms", inside["p99"], at_most=0.2)
    bench.check("bid path in process, requests a second", inside["per_second"], at_least=5000)
    bench.check("bid path over HTTP on one core, p99 ms", outside["bid"]["p99"], at_most=2.0)
    return bench.finish()


if __name__ == "__main__":
    raise SystemExit(main())
