"""What does a request cost less when the context of the person's last one is still there?

    python benchmarks/context_cache.py --quick
    python benchmarks/context_cache.py --json out.json

One event has come since. Cold: the whole context is computed, then decoded. Cached: the context is built upon what the request
before it left (`rankloom serve --context-cache`), then decoded. Both have the same weights (random) and the same history, and
have to give the same IDs in the same order. Processor time, one thread, the two in turns, medians.

* `small` with a history of 256, beam 128, and `base` with 256 and 1,000, beam 64, by the eager engine, which serves such
  histories whatever is installed. All are kept here; the server keeps those of `kept_context.LEAST` multiplications and more;
* `small` as the preset has it (50) by the compiled kernels, which keep nothing: there a context of one event beside that of
  fifty says what a cache could save at most.

The lazy decoder's context passes no layers, so there is little to save: what is asked for is what decoder-only models, whose
context is most of the work, can reach.
"""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Callable
from typing import Any, Final
from unittest.mock import patch

import numpy as np
import torch
from _common import Benchmark
from _performance import publish

from rankloom.compiling import available
from rankloom.config import Config
from rankloom.decoding.beam import beam_search
from rankloom.decoding.masks import MaskIndex
from rankloom.models import kept_context
from rankloom.models.context import ContextBatch
from rankloom.models.kept_context import KeptContext
from rankloom.models.lazy_decoder import LazyDecoder
from rankloom.semantic.trie import Trie

SOURCES = (
    "rankloom/models",
    "rankloom/decoding",
    "rankloom/semantic/trie.py",
    "rankloom/config.py",
    "benchmarks/context_cache.py",
)
N_ITEMS: Final = 12_000
TOLERANCE: Final = 1e-6
# preset, history, beam, codebook, repeats, at most so much of a cold request
FULL: Final = (
    ("small", 256, 128, 256, 101, 0.65),
    ("base", 256, 64, 8192, 15, 0.65),
    ("base", 1000, 64, 8192, 15, 0.3),
)
QUICK: Final = (("small", 256, 128, 256, 21, 0.65), ("base", 1000, 64, 8192, 3, 0.3))


def model_of(preset: str, history: int, codebook: int, seed: int) -> LazyDecoder:
    """The preset's decoder with random weights."""
    rng = np.random.default_rng(seed)
    torch.manual_seed(seed)
    config = Config.preset_config(preset).with_overrides([f"model.max_history={history}"])
    model = LazyDecoder.from_config(
        config, codes_IQ=torch.from_numpy(rng.integers(0, codebook, (N_ITEMS, 3))), content_IC=torch.randn(N_ITEMS, 384),
        codebook_sizes=(codebook,) * 3, n_trained=N_ITEMS, text_dim=384,
    ).eval()  # fmt: skip
    for parameter in model.parameters():
        if parameter.ndim >= 2:
            torch.nn.init.normal_(parameter, std=2.0 / parameter.shape[-1] ** 0.5)
    model.items.tabulate()
    return model


def history_of(length: int, rng: np.random.Generator) -> ContextBatch:
    """One full history."""

    def draw(high: int) -> torch.Tensor:
        return torch.from_numpy(rng.integers(0, high, (1, length)))

    return ContextBatch(draw(N_ITEMS), draw(12), draw(12), draw(32), draw(3), draw(12), torch.tensor([length]))


def appended(batch: ContextBatch, rng: np.random.Generator) -> ContextBatch:
    """One event later: the oldest is out of the window."""
    fresh = history_of(1, rng)
    names = ("item_BT", "kind_BT", "watch_BT", "gap_BT", "surface_BT", "position_BT")
    grown = {name: torch.cat([getattr(batch, name)[:, 1:], getattr(fresh, name)], dim=1) for name in names}
    return dataclasses.replace(batch, **grown)


def cpu_ms(work: Callable[[], Any]) -> tuple[float, Any]:
    begun = time.process_time()
    result = work()
    return (time.process_time() - begun) * 1e3, result


@torch.no_grad()
def compare(preset: str, history: int, beam: int, codebook: int, repeats: int, seed: int) -> dict[str, Any]:
    """Medians of a cold and of a cached request, whole and their contexts alone."""
    rng = np.random.default_rng([seed, history])
    model = model_of(preset, history, codebook, seed)
    model.engine = "eager"
    kept = kept_context.worth_keeping(model.context, history)
    codes = model.items.codes_IQ.numpy()
    trie = Trie.build(codes, model.codebook_sizes)
    masks = MaskIndex(trie, len(codes)).requests([None])
    batch = history_of(history, rng)

    def request(batch: ContextBatch, kept: list[KeptContext | None] | None) -> Any:
        begun = time.process_time()
        prefix = model.prefill(batch, kept=kept)
        context = (time.process_time() - begun) * 1e3
        return context, prefix, beam_search(model, prefix, trie, beam=beam, masks=masks)

    with patch.object(kept_context, "LEAST", 0):
        before = model.prefill(batch, kept=[None]).kept
    times: dict[str, list[float]] = {name: [] for name in ("cold", "cached", "cold context", "cached context")}
    equal, worst, size = True, 0.0, 0
    for turn in range(repeats + 2):
        batch = appended(batch, rng)
        results = {}
        # whoever goes second finds a warmer memory
        for name in ("cold", "cached") if turn % 2 else ("cached", "cold"):
            own = before if name == "cached" else None
            with patch.object(kept_context, "LEAST", 0):
                whole, results[name] = cpu_ms(lambda batch=batch, own=own: request(batch, own))
            if turn >= 2:
                times[name].append(whole)
                times[f"{name} context"].append(results[name][0])
        cold, cached = results["cold"][2], results["cached"][2]
        equal &= torch.equal(cold.leaf_BW, cached.leaf_BW)
        worst = max(worst, float((cold.log_prob_BW - cached.log_prob_BW).abs().max()))
        before = results["cached"][1].kept
        assert before[0].reused == history - 1
        size = before[0].nbytes
    return {
        **{name: statistics.median(own) for name, own in times.items()},
        "equal": equal,
        "difference": worst,
        "bytes": size,
        "worth": kept,
    }


@torch.no_grad()
def at_most(repeats: int, seed: int) -> dict[str, float]:
    """Contexts of fifty events and of one by the compiled kernels, and a search."""
    rng = np.random.default_rng(seed)
    model = model_of("small", 50, 256, seed)
    codes = model.items.codes_IQ.numpy()
    trie = Trie.build(codes, model.codebook_sizes)
    masks = MaskIndex(trie, len(codes)).requests([None])
    batches = {"context of 50": history_of(50, rng), "context of 1": history_of(1, rng)}
    prefix = model.prefill(batches["context of 50"])
    assert prefix.compiled is not None
    times: dict[str, list[float]] = {name: [] for name in (*batches, "request")}
    for turn in range(repeats + 2):
        for name, batch in batches.items():
            own, prefix = cpu_ms(lambda batch=batch: model.prefill(batch))
            times[name] += [own] * (turn >= 2)
            if name == "context of 50":
                search, _ = cpu_ms(lambda prefix=prefix: beam_search(model, prefix, trie, beam=128, masks=masks))
                times["request"] += [own + search] * (turn >= 2)
    return {name: statistics.median(own) for name, own in times.items()}


def main() -> int:
    bench = Benchmark.from_args("context_cache", __doc__, sources=SOURCES)
    torch.set_num_threads(1)
    seed = bench.seeds[0]
    table = "| model, history, beam | cold, ms | cached, ms | of that contexts, ms | a person's | the server keeps it |\n|---|---|---|---|---|---|\n"
    for preset, history, beam, codebook, repeats, wanted in QUICK if bench.quick else FULL:
        key = {
            "preset": preset,
            "history": history,
            "beam": beam,
            "codebook": codebook,
            "repeats": repeats,
            "seed": seed,
        }
        own = bench.cell(key, lambda key=key: compare(**key))
        name = f"{preset}, history {history:,}, beam {beam}"
        for metric in ("cold", "cached", "cold context", "cached context"):
            bench.row(system="eager", variant=name, metric=f"{metric}, cpu ms", value=own[metric], n=repeats, seed=seed)
        bench.row(system="eager", variant=name, metric="bytes kept of a person", value=own["bytes"])
        bench.check(f"{name}: same IDs in the same order", own["equal"], target=True)
        bench.check(f"{name}: largest difference of log-probabilities", own["difference"], at_most=TOLERANCE)
        if own["worth"]:
            ratio = round(own["cached context"] / own["cold context"], 2)
            bench.check(f"{name}: its context over a cold one", ratio, at_most=1)
        bench.check(f"{name}: cached request over a cold one", round(own["cached"] / own["cold"], 2), at_most=wanted)
        table += (
            f"| {name} | {own['cold']:.2f} | {own['cached']:.2f} | {own['cold context']:.2f}, {own['cached context']:.2f} | "
            f"{own['bytes'] / 1e6:.2f} MB | {'yes' if own['worth'] else 'no'} |\n"
        )
    least = ""
    if available():
        repeats = 41 if bench.quick else 301
        own = bench.cell({"what": "at most", "repeats": repeats, "seed": seed}, lambda: at_most(repeats, seed))
        for metric, value in own.items():
            bench.row(
                system="compiled",
                variant="small, history 50, beam 128",
                metric=f"{metric}, cpu ms",
                value=value,
                n=repeats,
                seed=seed,
            )
        saved = max(0.0, own["context of 50"] - own["context of 1"])
        least = (
            f". With the compiled kernels (`small`, history 50) a context costs {own['context of 50']:.3f} ms, one of a single event "
            f"{own['context of 1']:.3f}: at most {100 * saved / own['request']:.0f}% of {own['request']:.2f} ms, so they keep nothing"
        )
    what = (
        "A request of the eager engine one event after the last, its context built upon the one that is still there "
        "(`rankloom serve --context-cache MB`), against computing it anew: random weights, fp32, one thread, medians of processor "
        "time, in turns. The lazy decoder's context passes no layers; what was asked for is what a decoder-only model, whose "
        "context is most of the work, can reach" + least
    )
    publish(bench, "contexts", what, more=table)
    return bench.finish()


if __name__ == "__main__":
    raise SystemExit(main())
