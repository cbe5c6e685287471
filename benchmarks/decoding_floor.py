"""How far is decoding from the arithmetic it cannot avoid, and where does its time go?

    python benchmarks/decoding_floor.py --quick
    python benchmarks/decoding_floor.py --json out.json

The floor of a search is the time of its multiplications at the rate of a large matrix product, or of reading its weights
and the context's keys and values at the rate of memory, whichever is longer, for prefill and for the later codes. Both
rates are measured in the same process (fp32, one thread, processor time). Two models with random weights:

* `small`: the preset's lazy decoder with a full history, whose context costs its pathway and no layers, beam 128;
* `d256`: a decoder-only model (d 256, 4 layers, history 256, 3073 tokens), where every layer reads every token.

`small` is searched by both engines, in turns: the compiled kernels where numba is installed, and plain torch and NumPy. Then
the stages of a whole answer of `small`, and the trie of a large catalogue (10,000,000 IDs of 3 codes of 8192): time to build,
memory, its share of a search of `small` with heads for these codes, and what the first search after a swap costs. What the
kernels do to logits before they look at any child (log-softmax) is not the trie's. Neither engine compiles anything for a
trie, so a swap costs no compiling. Neither keeps a cache of a person's context: each request computes its context anew.
"""

from __future__ import annotations

import statistics
import time
from collections import defaultdict
from collections.abc import Callable
from contextlib import ExitStack
from types import SimpleNamespace
from typing import Any, Final
from unittest.mock import patch

import numpy as np
import torch
from _common import Benchmark
from _performance import publish
from _qwen import QwenGenerator

from rankloom.compiling import Engine, available
from rankloom.config import Config
from rankloom.decoding import beam as beam_module
from rankloom.decoding.beam import beam_search
from rankloom.decoding.masks import MaskIndex, RequestMasks
from rankloom.decoding.memory import Guide
from rankloom.decoding.refine import Refiner
from rankloom.decoding.refine_features import FEATURES, ItemFacts, RefineInput, features
from rankloom.decoding.select import expand, leaf_log_share, mix_scores, top_k
from rankloom.models.context import ContextBatch
from rankloom.models.lazy_decoder import LazyDecoder
from rankloom.semantic.trie import Trie

SOURCES = ("rankloom/decoding", "rankloom/models", "rankloom/semantic/trie.py", "rankloom/kernels.py", "rankloom/config.py", "benchmarks/_qwen.py",
           "benchmarks/decoding_floor.py")  # fmt: skip
N_ITEMS: Final = 12_000
CODES: Final = (256, 256, 256)
BEAM: Final = 128
BYTES: Final = 4
ENGINES: Final[tuple[Engine, ...]] = ("compiled", "eager") if available() else ("eager",)
BEST: Final = ENGINES[0]


def median_ms(work: Callable[[], Any], repeats: int) -> float:
    work()
    times = []
    for _ in range(repeats):
        begun = time.process_time()
        work()
        times.append((time.process_time() - begun) * 1e3)
    return statistics.median(times)


def rates() -> dict[str, float]:
    """Operations and bytes a millisecond: a large fp32 matrix product, and a sum over 64 MB."""
    left, right = torch.randn(1024, 256), torch.randn(1024, 256)
    long = torch.randn(16_000_000)
    best = min(median_ms(lambda: torch.nn.functional.linear(left, right), 15) for _ in range(3))
    read = min(median_ms(lambda: long.sum(), 5) for _ in range(3))
    return {"flops": 2 * 1024 * 1024 * 256 / best, "bytes": long.numel() * BYTES / read}


def floor_ms(rate: dict[str, float], *, prefill: float, decode: float, weights: float, kv: float, steps: int) -> float:
    """Both phases at whichever rate binds; `weights` and `kv` in bytes, read once a phase or step."""
    first = max(prefill / rate["flops"], (weights + kv) / rate["bytes"])
    return first + max(decode / rate["flops"], steps * (weights + kv) / rate["bytes"])


def lazy_floor(model: LazyDecoder, places: int, beam: int, rate: dict[str, float]) -> float:
    """Of one request of the lazy decoder with `places` interactions."""
    dim, layers = model.config.d_model, model.config.n_layers
    levels, head = len(model.codebook_sizes), sum(model.codebook_sizes) / len(model.codebook_sizes)
    matrices = sum(p.numel() for p in model.blocks.parameters() if p.ndim == 2)
    pathway = sum(p.numel() for p in model.context.history_path.parameters() if p.ndim == 2)
    pathway += model.items.content.weight.numel()
    row = 2 * matrices + 4 * layers * places * dim + 2 * dim * head
    kv = model.config.l_kv * model.config.s_kv * places * dim * BYTES
    return floor_ms(
        rate, prefill=2 * places * pathway + row, decode=(levels - 1) * beam * row,
        weights=(matrices + dim * head) * BYTES, kv=kv, steps=levels - 1,
    )  # fmt: skip


def decoder_floor(places: int, beam: int, vocabulary: int, levels: int, rate: dict[str, float]) -> float:
    """Of one request of the decoder-only model: d 256, 4 layers, 4 query and 2 key heads of 64, SwiGLU of 1024."""
    dim, layers, heads, groups, width, hidden = 256, 4, 4, 2, 64, 1024
    matrices = 2 * dim * heads * width + 2 * dim * groups * width + 3 * dim * hidden
    prefill = 2 * places * ((layers - 1) * matrices + 2 * dim * groups * width) + 2 * matrices
    prefill += (layers - 1) * 2 * places**2 * heads * width + 4 * places * heads * width + 2 * dim * vocabulary
    row = 2 * layers * matrices + 4 * layers * places * heads * width + 2 * dim * vocabulary
    return floor_ms(
        rate, prefill=prefill, decode=(levels - 1) * beam * row, weights=(layers * matrices + dim * vocabulary) * BYTES,
        kv=layers * 2 * places * groups * width * BYTES, steps=levels - 1,
    )  # fmt: skip


def lazy_model(seed: int, sizes: tuple[int, ...] = CODES) -> tuple[LazyDecoder, ContextBatch]:
    """The `small` preset with random weights, and one request with a full history."""
    rng = np.random.default_rng(seed)
    config = Config.preset_config("small")
    torch.manual_seed(seed)
    codes = np.stack([rng.integers(0, size, N_ITEMS) for size in sizes], axis=1)
    model = LazyDecoder.from_config(
        config, codes_IQ=torch.from_numpy(codes), content_IC=torch.randn(N_ITEMS, 384), codebook_sizes=sizes,
        n_trained=N_ITEMS, text_dim=384,
    ).eval()  # fmt: skip
    for parameter in model.parameters():
        if parameter.ndim >= 2:
            torch.nn.init.normal_(parameter, std=2.0 / parameter.shape[-1] ** 0.5)
    # as `Rankloom` does when it takes a catalogue
    model.items.tabulate()
    places = config.model.max_history

    def draw(high: int) -> torch.Tensor:
        return torch.from_numpy(rng.integers(0, high, (1, places)))

    length = torch.tensor([places])
    return model, ContextBatch(draw(N_ITEMS), draw(12), draw(12), draw(32), draw(3), draw(12), length)


class Stopwatch:
    """Processor time by name, of functions while they are wrapped."""

    def __init__(self) -> None:
        self.ms: dict[str, float] = defaultdict(float)

    def of(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*args: Any, **kwargs: Any) -> Any:
            begun = time.process_time()
            result = function(*args, **kwargs)
            self.ms[name] += (time.process_time() - begun) * 1e3
            return result

        # a function of a class stays one
        return timed


@torch.no_grad()
def answer(
    model: LazyDecoder,
    batch: ContextBatch,
    index: MaskIndex,
    facts: ItemFacts,
    refiner: Refiner,
    log_share: torch.Tensor,
    watch: Stopwatch,
    engine: Engine,
) -> None:
    """What `Rankloom` does for one request, stage by stage."""
    trie = index.trie
    places = batch.item_BT.shape[1]
    prefix = watch.of("prefill", model.prefill)(batch)
    excluded = [batch.item_BT[0]]
    masks = watch.of("filter and exclusions", index.requests)([None], excluded)
    share = 0.3
    near = torch.arange(0, 20).repeat_interleave(60)
    recalled = (torch.zeros_like(near), (batch.item_BT[0, near % places] * 31 + torch.arange(len(near))) % N_ITEMS,
                torch.rand(len(near)))  # fmt: skip
    guide = watch.of("memory", Guide)(index, recalled, share=share)
    with ExitStack() as stack:
        timed: tuple[tuple[Any, str, str], ...] = (
            (beam_module, "_continuations", "children of the trie"), (beam_module, "_best", "sort"),
            (model, "step", "steps"), (model, "reorder", "reorder"),
        )  # fmt: skip
        if engine == "compiled":
            from rankloom.decoding import compiled
            from rankloom.models.compiled import CompiledSteps

            timed = (
                (compiled, "advance", "children of the trie"), (CompiledSteps, "_advance", "steps"),
                (CompiledSteps, "reorder", "reorder"),
            )  # fmt: skip
        for owner, name, stage in timed:
            stack.enter_context(patch.object(owner, name, watch.of(stage, getattr(owner, name))))
        begun, before = time.process_time(), sum(watch.ms.values())
        beams = beam_search(model, prefix, trie, beam=BEAM, masks=masks, guide=guide, engine=engine)
        inside = sum(watch.ms.values()) - before
        watch.ms["rest of the search"] += (time.process_time() - begun) * 1e3 - inside
    candidates = watch.of("expand", expand)(
        beams.leaf_BW, beams.log_prob_BW, trie=trie, log_share=log_share,
        allowed=masks.allowed_items(), excluded=excluded, guide=guide,
    )  # fmt: skip
    state = watch.of("select", model.user)(prefix)
    select = watch.of("select", model.select_scores)(state, candidates.item_BC)
    own, whole = guide.items(candidates.item_BC)
    given = RefineInput(
        candidates.log_prob_BC, select, candidates.item_BC, own / whole.clamp_min(1e-300), whole[:, 0], None, None,
        batch.item_BT.flip(1)[:, :60], torch.zeros(1, dtype=torch.bool), torch.isin(candidates.item_BC, batch.item_BT),
    )  # fmt: skip
    feature = watch.of("refine: features", features)(given, facts)
    bonus = watch.of("refine: network", refiner)(feature)
    scores = mix_scores(candidates.log_prob_BC, select, 0.5) + bonus
    watch.of("top k", top_k)(candidates, scores, 10)


@torch.no_grad()
def lazy(repeats: int, seed: int) -> dict[str, Any]:
    """The `small` preset: floor, search, and stages of a whole answer."""
    model, batch = lazy_model(seed)
    places = batch.item_BT.shape[1]
    trie = Trie.build(model.items.codes_IQ.numpy(), CODES)
    index = MaskIndex(trie, N_ITEMS)
    masks = index.requests([None])
    rng = np.random.default_rng(seed)
    facts = ItemFacts(
        torch.ones(N_ITEMS), torch.zeros(N_ITEMS, dtype=torch.bool),
        torch.nn.functional.normalize(torch.randn(N_ITEMS, 256), dim=1), torch.from_numpy(rng.integers(0, 99, (N_ITEMS, 4))),
        torch.from_numpy(rng.integers(0, 99, (N_ITEMS, 5))), torch.randn(N_ITEMS, 2),
    )  # fmt: skip
    refiner = Refiner(torch.zeros(len(FEATURES)), torch.ones(len(FEATURES))).eval()
    log_share = leaf_log_share(trie, torch.ones(N_ITEMS))
    rate = rates()

    def whole(engine: Engine) -> dict[str, float]:
        model.engine, watch = engine, Stopwatch()
        answer(model, batch, index, facts, refiner, log_share, watch, engine)
        return watch.ms

    times = in_turns(lambda engine: _search(model, batch, trie, masks, engine), repeats)
    stages: dict[Engine, list[dict[str, float]]] = {own: [] for own in ENGINES}
    for engine in ENGINES:
        whole(engine)
    for _ in range(repeats):
        for engine in ENGINES:
            stages[engine].append(whole(engine))
    medians = {own: {name: statistics.median(ms[name] for ms in runs) for name in runs[0]} for own, runs in stages.items()}
    again = rates()
    rate = {name: max(rate[name], again[name]) for name in rate}
    return {"floor": lazy_floor(model, places, BEAM, rate), "search": times, "stages": medians, **rate}


def in_turns(work: Callable[[Engine], Any], repeats: int) -> dict[str, float]:
    """Median processor time by engine, ms. The engines take turns of five runs, of which the first warms up, as any server
    is that has just answered."""
    times: dict[str, list[float]] = {engine: [] for engine in ENGINES}
    for _ in range(repeats):
        for engine in ENGINES:
            for number in range(5):
                begun = time.process_time()
                work(engine)
                if number:
                    times[engine].append((time.process_time() - begun) * 1e3)
    return {engine: statistics.median(own) for engine, own in times.items()}


@torch.no_grad()
def decoder(beam: int, repeats: int, seed: int) -> dict[str, Any]:
    """The decoder-only model: floor and search."""
    codes = (1024, 1024, 1024)
    model = _qwen_weights(seed)
    generator = QwenGenerator(model, codes)
    rng = np.random.default_rng(seed)
    own = np.unique(np.stack([rng.integers(0, size, 20_000) for size in codes], axis=1), axis=0)
    trie = Trie.build(own, codes)
    masks = MaskIndex(trie, len(own)).requests([None])
    token = torch.from_numpy(rng.integers(1, 3073, (1, 256)))
    rate = rates()
    search = median_ms(lambda: beam_search(generator, generator.prefill(token), trie, beam=beam, masks=masks), repeats)
    return {"floor": decoder_floor(256, beam, 3073, 3, rate), "search": search, **rate}


def _qwen_weights(seed: int) -> Any:
    """Random weights under the names of `transformers`, without it."""
    torch.manual_seed(seed)
    config = SimpleNamespace(
        num_attention_heads=4, num_key_value_heads=2, head_dim=64, rms_norm_eps=1e-6, hidden_size=256, num_hidden_layers=4,
        rope_parameters={"rope_theta": 10_000.0},
    )  # fmt: skip
    shapes = {"model.embed_tokens.weight": (3073, 256), "lm_head.weight": (3073, 256)}
    one = {"model.norm.weight": 256}
    for number in range(4):
        at = f"model.layers.{number}"
        shapes |= {
            f"{at}.self_attn.{name}_proj.weight": (rows, 256) for name, rows in (("q", 256), ("k", 128), ("v", 128))
        }
        shapes |= {f"{at}.self_attn.o_proj.weight": (256, 256), f"{at}.mlp.down_proj.weight": (256, 1024)}
        shapes |= {f"{at}.mlp.{name}_proj.weight": (1024, 256) for name in ("gate", "up")}
        one |= {f"{at}.{name}_layernorm.weight": 256 for name in ("input", "post_attention")}
        one |= {f"{at}.self_attn.{name}_norm.weight": 64 for name in "qk"}
    weights = {name: torch.randn(shape) * 0.06 for name, shape in shapes.items()}
    weights |= {name: torch.ones(size) for name, size in one.items()}
    return SimpleNamespace(config=config, state_dict=lambda: weights)


class _NoModel:
    """Random logits at no cost, so that what is left of a search is the trie's."""

    def __init__(self, codebook_sizes: tuple[int, ...], beam: int) -> None:
        self.codebook_sizes = codebook_sizes
        self.logits = torch.randn(1, beam, max(codebook_sizes))

    def step(self, prefix: Any, level: int, codes_BW: torch.Tensor | None, cache: Any) -> tuple[torch.Tensor, Any]:
        return self.logits[:, : 1 if codes_BW is None else codes_BW.shape[1]], None

    def reorder(self, cache: Any, parent_BW: torch.Tensor) -> Any:
        return cache

    def score(self, prefix: Any, codes_NL: torch.Tensor) -> torch.Tensor:
        return torch.log_softmax(self.logits[0, 0], dim=-1)[codes_NL].sum(-1)[None]


@torch.no_grad()
def large_trie(n_ids: int, repeats: int, seed: int) -> dict[str, Any]:
    """Build, memory, gathering of legal children, and the first search after a swap."""
    rng = np.random.default_rng(seed)
    codes = rng.integers(0, 8192, (n_ids, 3)).astype(np.int32)
    sizes = (8192, 8192, 8192)
    begun = time.process_time()
    trie = Trie.build(codes, sizes)
    build = time.process_time() - begun
    index = MaskIndex(trie, n_ids)
    masks = index.requests([None])
    model, batch = lazy_model(seed, sizes)
    whole = in_turns(lambda engine: _search(model, batch, trie, masks, engine), max(2, repeats // 5))
    idle: Any = _NoModel(sizes, BEAM)
    parts = {engine: _trie_ms(idle, trie, masks, engine, repeats) for engine in ENGINES}
    other = Trie.build(codes[: n_ids // 2], sizes)
    other_masks = MaskIndex(other, n_ids).requests([None])
    begun = time.process_time()
    beam_search(idle, None, other, beam=BEAM, masks=other_masks, engine=BEST)
    swapped = (time.process_time() - begun) * 1e3
    warm = median_ms(lambda: beam_search(idle, None, other, beam=BEAM, masks=other_masks, engine=BEST), repeats)
    return {
        "build": build, "bytes": trie.nbytes() / n_ids,
        "masks": (index.leaf_of_row.nbytes + index.unfiltered.allowed_I.nbytes) / n_ids, "search": whole, "trie": parts,
        "first": swapped, "warm": warm,
    }  # fmt: skip


def _search(model: LazyDecoder, batch: ContextBatch, trie: Trie, masks: RequestMasks, engine: Engine) -> None:
    # setting an attribute of a module is no part of a search
    if model.engine != engine:
        model.engine = engine
    beam_search(model, model.prefill(batch), trie, beam=BEAM, masks=masks, engine=engine)


def _trie_ms(model: Any, trie: Trie, masks: RequestMasks, engine: Engine, repeats: int) -> float:
    """Median processor time of the trie's part of a search: eager, its children and their scores; compiled, these and the
    cut to the beam, without the log-softmax of the logits, which is measured right after each search."""
    owner: Any = beam_module
    name = "_continuations"
    if engine == "compiled":
        from rankloom.decoding import compiled, frontier_kernels

        owner, name = compiled, "advance"
    logits, out = model.logits[0].numpy(), np.empty(BEAM, np.float32)
    times = []
    for _ in range(3 * repeats):
        watch = Stopwatch()
        with patch.object(owner, name, watch.of("trie", getattr(owner, name))):
            beam_search(model, None, trie, beam=BEAM, masks=masks, engine=engine)
        if engine == "compiled":
            begun = time.process_time()
            for level in range(trie.n_levels):
                frontier_kernels.normalise(logits if level else logits[:1], out)
            watch.ms["trie"] -= (time.process_time() - begun) * 1e3
        times.append(watch.ms["trie"])
    return statistics.median(times)


def main() -> int:
    bench = Benchmark.from_args("decoding_floor", __doc__, sources=SOURCES)
    torch.set_num_threads(1)
    seed = bench.seeds[0]
    repeats = 7 if bench.quick else 31
    own = bench.cell({"model": "small", "engines": ENGINES, "repeats": repeats, "seed": seed}, lambda: lazy(repeats, seed))
    bench.row(system="machine", metric="fp32 GFLOP/s", value=own["flops"] / 1e6)
    bench.row(system="machine", metric="memory GB/s", value=own["bytes"] / 1e6)
    bench.row(system="small", variant=f"beam {BEAM}", metric="floor, cpu ms", value=own["floor"])
    for engine in ENGINES:
        bench.row(system="small", variant=f"beam {BEAM}, {engine}", metric="search, cpu ms", value=own["search"][engine], n=repeats)
        for name, value in own["stages"][engine].items():
            bench.row(system="small", variant=f"{name}, {engine}", metric="stage, cpu ms", value=value, n=repeats)
    for engine in ENGINES:
        name = f"small, beam 128, {engine}: search over the floor"
        bench.check(name, round(own["search"][engine] / own["floor"], 2), at_most=1.8)
    for beam in (10, 64, 256):
        cell = bench.cell(
            {"model": "d256", "beam": beam, "repeats": repeats, "seed": seed},
            lambda beam=beam: decoder(beam, repeats, seed),  # type: ignore[misc]
        )
        bench.row(system="d256", variant=f"beam {beam}", metric="floor, cpu ms", value=cell["floor"])
        bench.row(system="d256", variant=f"beam {beam}", metric="search, cpu ms", value=cell["search"], n=repeats)
        bench.check(f"d256, beam {beam}: search over the floor", round(cell["search"] / cell["floor"], 2), at_most=1.8)
    n_ids = 1_000_000 if bench.quick else 10_000_000
    tree = bench.cell(
        {"trie": n_ids, "engines": ENGINES, "repeats": repeats, "seed": seed}, lambda: large_trie(n_ids, repeats, seed)
    )
    bench.check(f"trie of {n_ids:,} IDs: build, seconds", round(tree["build"], 2), at_most=2 * n_ids / 10_000_000)
    bench.check(f"trie of {n_ids:,} IDs: bytes an ID", round(tree["bytes"], 1), at_most=9)
    bench.row(system="trie", variant=f"{n_ids:,} IDs", metric="bytes an ID of the leaves of items, for masks", value=tree["masks"])
    for engine in ENGINES:
        part, whole = tree["trie"][engine], tree["search"][engine]
        bench.row(system="trie", variant=f"{n_ids:,} IDs, {engine}", metric="the trie's part, cpu ms", value=part)
        bench.row(system="trie", variant=f"{n_ids:,} IDs, {engine}", metric="search of small with these codes, cpu ms", value=whole)
        beside = own["search"][engine] + part
        bench.row(system="trie", variant=f"{n_ids:,} IDs, {engine}", metric="beside a search of small over 12,000, %", value=100 * part / beside)
        name = f"trie of {n_ids:,} IDs, {engine}: share of a search of small with these codes, %"
        bench.check(name, round(100 * part / whole, 1), at_most=5)
    bench.check("first search after a swap over a warm one", round(tree["first"] / tree["warm"], 2), at_most=5)
    names = list(own["stages"]["eager"])
    stages = f"| stage of an answer of `small`, processor time, ms | {' | '.join(ENGINES)} |\n|---|{'---|' * len(ENGINES)}\n"
    for name in names:
        values = [own["stages"][engine].get(name) for engine in ENGINES]
        stages += f"| {name} | {' | '.join('in the line above' if own is None else f'{own:.2f}' for own in values)} |\n"
    totals = [sum(own["stages"][engine].values()) for engine in ENGINES]
    stages += f"| all | {' | '.join(f'{total:.2f}' for total in totals)} |\n"
    part = tree["trie"][BEST]
    what = (
        f"Processor time over the arithmetic floor, fp32, one thread, at {own['flops'] / 1e6:.0f} GFLOP/s and "
        f"{own['bytes'] / 1e6:.0f} GB/s measured in the same process; the machine was busy with other work. The compiled engine is "
        "numba's kernels, the eager one plain torch and NumPy; neither compiles anything for a trie, and neither keeps a cache of a "
        "person's context. The rate is that of plain matrix products; packed ones are some 15% faster on this machine, so the "
        "multiples of d256 flatter by as much. The share of the trie is of a search of `small` over the ten million IDs, its heads "
        f"made for their codes; beside a search of `small` over twelve thousand IDs the same time ({part:.2f} ms) would be "
        f"{100 * part / (own['search'][BEST] + part):.1f}%"
    )
    publish(bench, "floor", what, more=stages)
    return bench.finish()


if __name__ == "__main__":
    raise SystemExit(main())
