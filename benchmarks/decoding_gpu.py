"""How fast is the whole constrained search as one CUDA graph, and how far is it from what the GPU cannot avoid?

    python benchmarks/decoding_gpu.py --quick
    python benchmarks/decoding_gpu.py --json out.json

The `base` preset's lazy decoder (d 640, 12 layers, codes of 8192) with random weights and a context of 1,000 interactions, over a
trie of 1,000,000 items; beams 128, 256 and 512, batches of 1 and 32. Latency is between two CUDA events around a whole search, its
inputs sent and its beams brought back (p50, p99), and around the graph alone. The floor is the larger of

* the arithmetic floor: multiplications at the rate of a large matrix product of the same precision, or weights and the
  context's keys and values at the rate of memory, whichever is longer, for the prefill and for the later codes;
* the launch floor: the graph's kernels times the gap between dependent empty kernels in a graph,

all measured in the same process. MFU is the arithmetic over the time, at the measured rate. Asked of bf16, in which the preset
trains: at most 2 ms at batch 1, at most twice the floor at batch 32. Asked of fp32: the eager engine's items.

Needs a CUDA device; without one it says so and ends with status 1.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any, Final

import numpy as np
import torch
from _common import Benchmark

from rankloom.config import Config
from rankloom.decoding.beam import BeamResult, beam_search
from rankloom.decoding.graph_engine import Searches
from rankloom.decoding.masks import MaskIndex
from rankloom.models.context import ContextBatch
from rankloom.models.lazy_decoder import LazyDecoder
from rankloom.semantic.trie import Trie

SOURCES = ("rankloom/decoding", "rankloom/models", "rankloom/semantic/trie.py", "rankloom/compiling.py", "rankloom/config.py",
           "benchmarks/decoding_gpu.py")  # fmt: skip
CONTEXT: Final = 1_000
BEAMS: Final = (128, 256, 512)
BATCHES: Final = (1, 32)
PRECISIONS: Final = {"fp32": torch.float32, "bf16": torch.bfloat16}
NO_DEVICE: Final = (
    "this benchmark needs a CUDA device and torch finds none: run it on a machine with a GPU and a torch built for it"
)
_CHAIN: Final = 1_000
_CLOSE: Final = 1e-4
"""Differences of log-probabilities that are rounding."""


class Clock:
    """Milliseconds on the device, between events."""

    def ms(self, work: Callable[[], Any]) -> float:
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        work()
        end.record()
        end.synchronize()
        return float(begin.elapsed_time(end))

    def many(self, work: Callable[[], Any], repeats: int) -> list[float]:
        for _ in range(3):
            work()
        return [self.ms(work) for _ in range(repeats)]


def rates(clock: Clock, device: torch.device, *, size: int = 8192, gib: float = 1.0) -> dict[str, float]:
    """Operations a millisecond in each precision, and bytes a millisecond."""
    out = {}
    for name, dtype in PRECISIONS.items():
        left, right = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
        out[name] = 2 * size**3 / min(clock.many(lambda left=left, right=right: left @ right, 10))  # type: ignore[misc]
    long = torch.zeros(int(gib * 2**28), device=device)
    out["bytes"] = long.numel() * 4 / min(clock.many(long.sum, 10))
    return out


def launch_gap(clock: Clock, device: torch.device) -> float:
    """Milliseconds from one dependent empty kernel of a graph to the next."""
    one = torch.zeros(1, device=device)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(_CHAIN):
            one.add_(1)
    return min(clock.many(graph.replay, 10)) / _CHAIN


def kernels_of(work: Callable[[], Any]) -> int:
    """Kernels that run on the device."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        work()
        torch.cuda.synchronize()
    return sum(own.count for own in profile.key_averages() if own.device_type == torch.autograd.DeviceType.CUDA)


def arithmetic(
    model: LazyDecoder, batch: int, beam: int, places: int, rate: dict[str, float], precision: str
) -> dict[str, float]:
    """Operations of a batch, and the milliseconds that they or their reading take at least."""
    dim, layers = model.config.d_model, model.config.n_layers
    levels, head = len(model.codebook_sizes), sum(model.codebook_sizes) / len(model.codebook_sizes)
    matrices = sum(own.numel() for own in model.blocks.parameters() if own.ndim == 2)
    # recency is a matrix that nothing is multiplied with
    matrices -= sum(block.cross.recency.numel() for block in model.lazy_blocks())
    pathway = sum(own.numel() for own in model.context.history_path.parameters() if own.ndim == 2)
    row = 2 * matrices + 4 * layers * places * dim + 2 * dim * head
    prefill, decode = batch * (2 * places * pathway + row), batch * (levels - 1) * beam * row
    size = PRECISIONS[precision].itemsize
    read = (matrices + dim * head) * size + batch * model.config.l_kv * model.config.s_kv * places * dim * size
    flops, memory = rate[precision], rate["bytes"]
    floor = max(prefill / flops, read / memory) + max(decode / flops, (levels - 1) * read / memory)
    return {"operations": prefill + decode, "ms": floor}


def build(*, n_items: int, places: int, preset: str = "base", seed: int = 0) -> tuple[LazyDecoder, MaskIndex]:
    """The preset's model with random weights far from uniform, and the trie of its items."""
    rng = np.random.default_rng(seed)
    config = Config.preset_config(preset).with_overrides([f"model.max_history={places}"])
    sizes = config.quantizer.codebook_sizes or (64, 64, 64)
    torch.manual_seed(seed)
    codes = np.stack([rng.integers(0, size, n_items) for size in sizes], axis=1)
    model = LazyDecoder.from_config(
        config, codes_IQ=torch.from_numpy(codes), content_IC=torch.randn(n_items, 64), codebook_sizes=sizes, n_trained=1, text_dim=64
    ).eval()  # fmt: skip
    for parameter in model.parameters():
        if parameter.ndim >= 2:
            torch.nn.init.normal_(parameter, std=2.0 / parameter.shape[-1] ** 0.5)
    return model, MaskIndex(Trie.build(codes, sizes), n_items)


def histories(batch: int, places: int, n_items: int, seed: int) -> ContextBatch:
    """Full histories with random features."""
    rng = np.random.default_rng(seed)

    def draw(high: int) -> torch.Tensor:
        return torch.from_numpy(rng.integers(0, high, (batch, places)))

    return ContextBatch(draw(n_items), draw(12), draw(12), draw(32), draw(3), draw(12), torch.full((batch,), places))


def alike(found: BeamResult, twin: BeamResult) -> dict[str, float]:
    """Shares of beams that both searches have, and that both have at the same place; the largest difference of log-probabilities of
    those that both have."""
    both = placed = total = 0
    apart = 0.0
    rows = zip(
        found.leaf_BW.tolist(),
        twin.leaf_BW.tolist(),
        found.log_prob_BW.tolist(),
        twin.log_prob_BW.tolist(),
        strict=True,
    )
    for own, other, own_score, other_score in rows:
        score_of = {leaf: score for leaf, score in zip(other, other_score, strict=True) if leaf >= 0}
        mine = {leaf: score for leaf, score in zip(own, own_score, strict=True) if leaf >= 0}
        total += max(len(mine), len(score_of))
        both += len(mine.keys() & score_of.keys())
        placed += sum(a == b for a, b in zip(own, other, strict=False) if a >= 0)
        apart = max([apart, *(abs(mine[leaf] - score_of[leaf]) for leaf in mine.keys() & score_of.keys())])
    return {"both": both / max(1, total), "placed": placed / max(1, total), "apart": apart}


@torch.no_grad()
def measure(
    model: LazyDecoder, index: MaskIndex, *, batch: int, beam: int, places: int, precision: str, repeats: int, seed: int,
    clock: Clock, kernels: Callable[[Callable[[], Any]], int],
) -> dict[str, Any]:  # fmt: skip
    """Latencies of one shape, and in fp32 what the eager engine says of the same requests."""
    model.precision = precision  # type: ignore[assignment]
    given = histories(batch, places, index.n_rows, seed)
    masks = index.requests([None] * batch)

    def search(engine: Any) -> BeamResult:
        model.engine = engine
        return beam_search(model, model.prefill(given), index.trie, beam=beam, masks=masks, engine=engine)

    started = time.perf_counter()
    # graphs of another precision are not these
    model.searches = None
    found = search("graph")
    captured = time.perf_counter() - started
    whole = clock.many(lambda: search("graph"), repeats)
    assert isinstance(model.searches, Searches)
    (own,) = model.searches.captured.values()
    graph = clock.many(own.recording.run, repeats)
    out: dict[str, Any] = {
        "p50": statistics.median(whole), "p99": float(np.percentile(whole, 99)), "graph": statistics.median(graph),
        "kernels": kernels(own.recording.run), "capture": captured,
    }  # fmt: skip
    return out if precision != "fp32" else {**out, **alike(found, search("eager"))}


def report(
    bench: Benchmark,
    model: LazyDecoder,
    machine: dict[str, float],
    own: dict[str, Any],
    *,
    batch: int,
    beam: int,
    places: int,
    precision: str,
) -> None:
    """Rows and checks of one shape."""
    name = f"{precision}, batch {batch}, beam {beam}"
    sums = arithmetic(model, batch, beam, places, machine, precision)
    launch = own["kernels"] * machine["gap"]
    floor = max(sums["ms"], launch)
    for metric, value in (
        ("search p50, ms", own["p50"]), ("search p99, ms", own["p99"]), ("graph p50, ms", own["graph"]),
        ("arithmetic floor, ms", sums["ms"]), ("launch floor, ms", launch), ("kernels", own["kernels"]),
        ("MFU, %", 100 * sums["operations"] / machine[precision] / own["p50"]), ("search over the floor", own["p50"] / floor),
        ("capture, s", own["capture"]),
    ):  # fmt: skip
        bench.row(system="graph", variant=name, metric=metric, value=value)
    if precision == "fp32":
        bench.row(
            system="graph", variant=name, metric="beams at the same place as the eager engine's", value=own["placed"]
        )
        # a near tie at the edge of a level's beam may let another one through
        bench.check(f"{name}: share of the eager engine's items", round(own["both"], 4), at_least=0.999)
        bench.check(f"{name}: largest difference of log-probabilities", own["apart"], at_most=_CLOSE)
    elif batch == 1:
        bench.check(f"{name}: search p50, ms", round(own["p50"], 3), at_most=2.0)
    else:
        bench.check(f"{name}: search over the floor", round(own["p50"] / floor, 2), at_most=2.0)


def main(argv: list[str] | None = None) -> int:
    bench = Benchmark.from_args("decoding_gpu", __doc__, sources=SOURCES, argv=argv)
    if not torch.cuda.is_available():
        raise SystemExit(NO_DEVICE)
    device = torch.device("cuda", torch.cuda.current_device())
    repeats, n_items, seed = (20, 50_000, bench.seeds[0]) if bench.quick else (200, 1_000_000, bench.seeds[0])
    beams = BEAMS[::2] if bench.quick else BEAMS
    clock = Clock()
    machine = {**rates(clock, device), "gap": launch_gap(clock, device)}
    bench.row(
        system="machine", variant=torch.cuda.get_device_name(device), metric="fp32 TFLOP/s", value=machine["fp32"] / 1e9
    )
    bench.row(system="machine", metric="bf16 TFLOP/s", value=machine["bf16"] / 1e9)
    bench.row(system="machine", metric="memory GB/s", value=machine["bytes"] / 1e6)
    bench.row(system="machine", metric="launch gap, us", value=machine["gap"] * 1e3)
    model, index = build(n_items=n_items, places=CONTEXT, seed=seed)
    model.to(device)
    # as `Rankloom` does when it takes a catalogue
    model.items.tabulate()
    for precision in PRECISIONS:
        for batch in BATCHES:
            for beam in beams:
                shape = {"batch": batch, "beam": beam, "places": CONTEXT, "precision": precision}
                own = measure(model, index, repeats=repeats, seed=seed, clock=clock, kernels=kernels_of, **shape)  # type: ignore[arg-type]
                report(bench, model, machine, own, **shape)  # type: ignore[arg-type]
    return bench.finish()


if __name__ == "__main__":
    raise SystemExit(main())
