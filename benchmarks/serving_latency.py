"""How long does one person wait? The `small` preset over HTTP, one request after the other.

    python benchmarks/serving_latency.py [--quick] [--model FOLDER] [--rounds 5] [--json OUT]

A real `rankloom serve` on the loopback address, two processes, default settings (beam 128), and one caller on one connection who asks again
when the answer has come: known people with their history from the model folder, strangers, a third with a filter; then the same people
with searches. Times are the caller's, parsing of the reply excluded. Without `--model` a `small` model is trained first on a simulated
shop: two epochs, which is all that a time depends on. Each figure is of the round with the median p99, the extremes beside it.
"""

from __future__ import annotations

import random
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

from _common import Benchmark, argument_parser
from _serving import MODELS, LiveServer, closed_loop, request, usable

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from _report import publish

from rankloom.config import Config
from rankloom.pipeline import train
from rankloom.recommender import Rankloom
from rankloom.simulation.bazaar import generate_bazaar

QUERIES = ("red lamp", "pan", "yoga mat", "phone", "帐篷", "shoes for running", "tea")


def small_model(quick: bool) -> Path:
    """A model of the `small` preset, trained once."""
    name, scale = ("quick", 0.02) if quick else ("full", 0.3)
    folder = MODELS / f"small-{name}"
    if not usable(folder):
        shutil.rmtree(folder, ignore_errors=True)
        shop = MODELS / f"shop-{name}"
        if not (shop / "shop.json").exists():
            generate_bazaar(shop, seed=1, scale=scale)
        steps = ["training.max_epochs=1", "training.min_steps=4"] if quick else ["training.max_epochs=2"]
        train(shop, folder, Config.preset_config("small").with_overrides([*steps, "selection.refine=true"]))
    return folder


def questions(model: Rankloom, *, search: bool, n: int = 300) -> list[bytes]:
    """Bodies of requests, ready to be sent."""
    rng = random.Random(int(search))
    out = []
    for _ in range(n):
        body: dict[str, Any] = {"user_id": rng.choice(model.users) if rng.random() < 0.9 else f"new-{rng.random()}", "k": 10}
        if rng.random() < 0.3:
            body["filter"] = "price < 30"
        out.append(request("/v1/search", {**body, "query": rng.choice(QUERIES)}) if search else request("/v1/recommend", body))
    return out


def main() -> int:
    parser = argument_parser(__doc__)
    parser.add_argument("--model", type=Path, help="a trained model folder; one of the preset small is made where it is missing")
    parser.add_argument("--rounds", type=int, default=5)
    bench = Benchmark.from_args("serving_latency", __doc__, parser=parser)
    folder = bench.args.model or small_model(bench.quick)
    model = Rankloom.from_pretrained(folder)
    rounds, seconds = (1, 2.0) if bench.quick else (bench.args.rounds, 12.0)
    found: dict[str, list[tuple[float, float]]] = {"feed": [], "search": []}
    with tempfile.TemporaryDirectory() as place:
        server = LiveServer(folder, Path(place) / "state")
        server.start(timeout_s=180)
        try:
            asked = {kind: questions(model, search=kind == "search") for kind in found}
            for kind in found:
                closed_loop(server.port, asked[kind], connections=1, seconds=min(3.0, seconds))
            errors, n = 0, 0
            for _ in range(rounds):
                for kind, own in asked.items():
                    load = closed_loop(server.port, own, connections=1, seconds=seconds)
                    found[kind].append((load.quantile_ms(0.99), load.quantile_ms(0.5)))
                    errors += len(load.sent) - len(load.of(200))
                    n += len(load.sent)
            status = server.stop()
        finally:
            server.kill()
    for kind, times in found.items():
        times.sort()
        p99, p50 = times[len(times) // 2]
        for metric, place_of, value in (("p50_ms", 1, p50), ("p99_ms", 0, p99)):
            low, high = min(own[place_of] for own in times), max(own[place_of] for own in times)
            bench.row(system="rankloom", variant=f"one caller, {kind}", metric=metric, value=round(value, 2), low=round(low, 2), high=round(high, 2), n=n)
        bench.check(f"small, beam {model.config.decoding.beam}, {kind} over HTTP: p50 ms", round(p50, 2), at_most=10.0)
        bench.check(f"small, beam {model.config.decoding.beam}, {kind} over HTTP: p99 ms", round(p99, 2), at_most=25.0)
    bench.check("errors", errors, at_most=0)
    bench.check("exit status after SIGTERM", status, target=0)
    publish(bench, "latency", f"{n:,} requests of one caller, {model.items.height:,} items, rounds of {seconds:.0f} s")
    return bench.finish()


if __name__ == "__main__":
    raise SystemExit(main())
