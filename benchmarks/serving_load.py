"""Does the server keep its times under load, and does it refuse quickly what is too much?

    python benchmarks/serving_load.py [--quick] [--minutes 30] [--json OUT]

A real `rankloom serve` on the loopback address with a tiny model of the bazaar (simulated), asked by another process.

1. Capacity: the most that a closed loop of 64 callers gets.
2. 70% of it, Poisson arrivals, for `--minutes`: no errors, p99 at most 5 times p50, memory and descriptors flat.
3. Twice the capacity: goodput (answers within the deadline of a second) at least 90% of the peak, which is measured before
   and after; whatever is refused comes back within 10 ms, with 429 or 503 and a hint when to retry.

The two processes share the machine's cores with whatever else runs there.
"""

from __future__ import annotations

import random
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from _common import Benchmark, argument_parser
from _serving import LiveServer, Load, closed_loop, open_loop, request, small_models

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from _report import publish

from rankloom.recommender import Rankloom

DEADLINE_S = 1.0


def questions(model: Path, n: int = 400) -> list[bytes]:
    """Known people, strangers, filters and searches."""
    rng = random.Random(0)
    users = Rankloom.from_pretrained(model).users
    bodies: list[tuple[str, dict[str, Any]]] = []
    for _ in range(n):
        body: dict[str, Any] = {"user_id": rng.choice(users) if rng.random() < 0.8 else f"new-{rng.random()}", "k": rng.choice((5, 10, 20))}
        if rng.random() < 0.3:
            body["filter"] = rng.choice(("price < 30", "duration_s < 60", 'category in ["Goods"]'))
        search = rng.random() < 0.1
        bodies.append(("/v1/search" if search else "/v1/recommend", {**body, "query": "red lamp"} if search else body))
    return [request(path, body) for path, body in bodies]


def goodput(load: Load) -> float:
    """Answers within the deadline, a second, from the first second on."""
    settled = [own for own in load.of(200) if own.intended >= 1 and own.done - own.sent <= DEADLINE_S + 0.1]
    return len(settled) / (load.seconds - 1)


def main() -> int:
    parser = argument_parser(__doc__)
    parser.add_argument("--minutes", type=float, default=30.0, help="length of the part at 70%% of the capacity")
    bench = Benchmark.from_args("serving_load", __doc__, parser=parser)
    steady_s = 12.0 if bench.quick else 60 * bench.args.minutes
    burst_s, overload_s = (4.0, 6.0) if bench.quick else (15.0, 60.0)
    (model,) = small_models(1)
    own = questions(model)
    with tempfile.TemporaryDirectory() as folder:
        server = LiveServer(model, Path(folder) / "state")
        ready_s = server.start()
        try:
            closed_loop(server.port, own, connections=64, seconds=2)
            time.sleep(0.5)  # until the server has seen that its callers left
            open_before = server.descriptors()
            before = goodput(closed_loop(server.port, own, connections=64, seconds=burst_s))

            memory: list[tuple[float, float]] = []
            steady = open_loop(
                server.port, own, rate=0.7 * before, seconds=steady_s, seed=1, tick=lambda at: memory.append((at, server.rss_mb()))
            )  # fmt: skip

            middle = goodput(closed_loop(server.port, own, connections=64, seconds=burst_s))
            overload = open_loop(server.port, own, rate=2 * middle, seconds=overload_s, seed=2)
            after = goodput(closed_loop(server.port, own, connections=64, seconds=burst_s))
            time.sleep(0.5)
            open_after = server.descriptors()
            status = server.stop()
        finally:
            server.kill()

    peak = (middle + after) / 2
    p50, p99, p999 = (steady.quantile_ms(q) for q in (0.5, 0.99, 0.999))
    wrong = len(steady.sent) - len(steady.of(200))
    half = [mb for at, mb in memory if at > steady_s / 4]
    first, last = np.mean(half[: len(half) // 3]), np.mean(half[-(len(half) // 3) :])
    refused = overload.of(429, 503)
    quick_ms = [1e3 * (own.done - own.sent) for own in refused]
    other = len(overload.sent) - len(refused) - len(overload.of(200))

    for name, load in (("70% of capacity", steady), ("2x overload", overload)):
        for code in sorted({own.status for own in load.sent} - {200}):
            bench.row(system="rankloom", variant=name, metric=f"status_{code}", value=len(load.of(code)), n=len(load.sent))
    bench.row(system="rankloom", variant="start", metric="ready_s", value=round(ready_s, 2), n=1)
    bench.row(system="rankloom", variant="64 callers", metric="peak_per_s", value=round(before, 1), n=1)
    for metric, value in (("p50_ms", p50), ("p99_ms", p99), ("p99.9_ms", p999), ("errors", wrong), ("memory_first_mb", first), ("memory_last_mb", last)):
        bench.row(system="rankloom", variant="70% of capacity", metric=metric, value=round(float(value), 2), n=len(steady.sent))
    for metric, value in (("goodput_per_s", goodput(overload)), ("peak_per_s", peak), ("p99_ms", overload.quantile_ms(0.99)),
                          ("refused", len(refused)), ("refused_p50_ms", np.median(quick_ms or [0])), ("refused_p99_ms", np.quantile(quick_ms or [0], 0.99))):  # fmt: skip
        bench.row(system="rankloom", variant="2x overload", metric=metric, value=round(float(value), 2), n=len(overload.sent))
    bench.check("errors at 70% of capacity", wrong, at_most=0)
    bench.check("p99 / p50 at 70% of capacity", round(p99 / p50, 2), at_most=5)
    bench.check("memory at the end / before", round(float(last / first), 3), at_most=1.15 if bench.quick else 1.05)
    bench.check("descriptors left open", open_after - open_before, at_most=2)
    bench.check("goodput at 2x / peak", round(goodput(overload) / peak, 3), at_least=0.9)
    bench.check("refused within ms (99%)", round(float(np.quantile(quick_ms or [0], 0.99)), 2), at_most=10)
    bench.check("refused with a hint", sum(own.retry_after for own in refused), target=len(refused))
    bench.check("neither answered nor refused", other, at_most=0)
    bench.check("exit status after SIGTERM", status, target=0)
    publish(bench, "load", f"{len(steady.sent):,} requests at 70% of capacity in {steady_s / 60:.1f} minutes, {len(overload.sent):,} at twice the capacity")
    return bench.finish()


if __name__ == "__main__":
    raise SystemExit(main())
