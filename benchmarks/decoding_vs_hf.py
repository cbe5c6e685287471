"""How much less processor time does one whole constrained search take than Hugging Face `generate`, at equal output?

    python benchmarks/decoding_vs_hf.py --quick
    python benchmarks/decoding_vs_hf.py --json out.json         needs `pip install transformers`

Both sides have the same random weights: a decoder-only model of Qwen3's shape (d 256, 4 layers, 4 query and 2 key heads,
FFN 1024, 3 codebooks of 1024, 3073 tokens), a history of 256 tokens, 20,000 semantic IDs, fp32, one thread.

* `generate`: transformers' own model and beam search, with a prefix constraint by `prefix_allowed_tokens_fn` over a
  ready-made table of children, `num_return_sequences = num_beams`, no end token, no length penalty;
* rankloom: the same weights behind `rankloom.decoding.beam.beam_search` (`_qwen.py`), history and search together. It
  scores over the whole vocabulary, as `generate` does.

bfloat16 is asked for on a processor with AMX: the same search with matrices and what passes between them in bf16, lengths,
softmax and logits in fp32, has to be 150 times as cheap as `generate` at beam 64. Elsewhere that row is not run. What bf16
does to lists is asked everywhere, since a processor without it rounds alike: a model that `rankloom train` makes of a bazaar
(simulated) ranks the same cases in both (`_half_width.py`).

A case counts only when both give the same IDs in the same order, wherever two scores differ by more than rounding.
Compared is the processor time of all threads (`time.process_time`), which a busy machine disturbs less than the clock; the
repeats of both sides alternate, and a ratio is that of the medians.
"""

from __future__ import annotations

import functools
import statistics
import time
from collections.abc import Callable
from typing import Any, Final

import numpy as np
import torch
from _common import ROOT, Benchmark, fingerprint
from _half_width import quality
from _performance import publish
from _qwen import QwenGenerator
from torch import Tensor

from rankloom.compiling import has_amx
from rankloom.decoding.beam import BeamResult, beam_search
from rankloom.decoding.masks import MaskIndex
from rankloom.semantic.trie import Trie

SOURCES = ("rankloom/decoding/beam.py", "rankloom/decoding/masks.py", "rankloom/semantic/trie.py", "benchmarks/_qwen.py",
           "benchmarks/decoding_vs_hf.py")  # fmt: skip
LISTS: Final = (
    "rankloom/models", "rankloom/decoding", "rankloom/config.py", "rankloom/recommender.py", "benchmarks/_half_width.py",
    "rankloom/catalogue.py", "rankloom/generating.py", "rankloom/ordering.py", "rankloom/replying.py", "rankloom/request_rows.py",
)  # fmt: skip
HISTORY: Final = 256
CODES: Final = (1024, 1024, 1024)
N_ITEMS: Final = 20_000
# batch, beam, repeats of `generate`, at least so many times faster
FULL: Final = ((1, 10, 9, 12), (1, 64, 5, 60), (1, 256, 3, 120), (32, 32, 2, 45))
# a batch of 32 takes `generate` most of a minute: two requests show that a batch has the same output. With fewer beams in
# all our side gains less, so they are held to less
QUICK: Final = ((1, 10, 3, 12), (1, 64, 1, 60), (1, 256, 1, 120), (2, 32, 1, 30))
PER_REPEAT: Final = 5
"""Searches of rankloom's for each of `generate`."""
TOLERANCE: Final = 1e-4
HALF_BEAM: Final = 64
HALF_TIMES: Final = 150
NO_AMX: Final = "not run: no AMX on this processor"


def hf_model(seed: int) -> Any:
    """transformers' model with random weights far from uniform."""
    try:
        from transformers import Qwen3Config, Qwen3ForCausalLM
    except ImportError:
        raise SystemExit(
            "this benchmark compares with Hugging Face transformers, which is not installed.\n"
            "  what to do: pip install transformers"
        ) from None
    torch.manual_seed(seed)
    config = Qwen3Config(
        vocab_size=1 + sum(CODES), hidden_size=256, intermediate_size=1024, num_hidden_layers=4, num_attention_heads=4,
        num_key_value_heads=2, head_dim=64, tie_word_embeddings=False, initializer_range=0.06,
    )  # fmt: skip
    model: Any = Qwen3ForCausalLM(config)
    return model.eval()


def allowed_tokens(codes: Any) -> Callable[[int, Tensor], list[int]]:
    """`prefix_allowed_tokens_fn` over a table of the children of every prefix."""
    first = np.cumsum([1, *CODES[:-1]])
    children: dict[tuple[int, ...], set[int]] = {}
    for row in (codes + first).tolist():
        for level in range(len(CODES)):
            children.setdefault(tuple(row[:level]), set()).add(row[level])
    table = {prefix: sorted(own) for prefix, own in children.items()}
    return lambda _, token_T: table[tuple(token_T[HISTORY:].tolist())]


def cpu_ms(work: Callable[[], Any]) -> tuple[float, Any]:
    begun = time.process_time()
    result = work()
    return (time.process_time() - begun) * 1e3, result


@functools.lru_cache(1)
def sides(seed: int, dtype: torch.dtype = torch.float32) -> tuple[Callable[[Tensor, int], Any], Callable[[Tensor, int], BeamResult]]:
    """The two searches of (B, T) histories with a beam; `dtype` is of ours."""
    model = hf_model(seed)
    rng = np.random.default_rng(seed)
    codes = np.unique(np.stack([rng.integers(0, size, N_ITEMS) for size in CODES], axis=1), axis=0)
    allowed = allowed_tokens(codes)
    generator = QwenGenerator(model, CODES, dtype=dtype)
    trie = Trie.build(codes, CODES)
    index = MaskIndex(trie, len(codes))

    def generate(token_BT: Tensor, beam: int) -> Any:
        return model.generate(
            token_BT, attention_mask=torch.ones_like(token_BT), num_beams=beam, num_return_sequences=beam,
            max_new_tokens=len(CODES), prefix_allowed_tokens_fn=allowed, do_sample=False, length_penalty=0.0,
            eos_token_id=None, pad_token_id=0, return_dict_in_generate=True, output_scores=True,
        )  # fmt: skip

    def search(token_BT: Tensor, beam: int) -> BeamResult:
        masks = index.requests([None] * len(token_BT))
        return beam_search(generator, generator.prefill(token_BT), trie, beam=beam, masks=masks)

    return generate, search


def agreement(theirs: Any, ours: BeamResult) -> dict[str, Any]:
    """Whether the IDs and their order are the same, and the largest difference of scores."""
    batch, beam = ours.leaf_BW.shape
    first = torch.tensor(np.cumsum([1, *CODES[:-1]]))
    token = theirs.sequences[:, HISTORY:].view(batch, beam, len(CODES)) - first
    score = theirs.sequences_scores.view(batch, beam)
    same = (token == ours.codes_BWL).all(-1)
    # two IDs may change places where their scores are equal but for rounding
    close = torch.full_like(same, False)
    close[:, 1:] |= score[:, :-1] - score[:, 1:] < TOLERANCE
    close[:, :-1] |= close[:, 1:].clone()
    return {
        "same": bool((same | close).all()),
        "identical": float(same.float().mean()),
        "difference": float((score - ours.log_prob_BW).abs().max()),
    }


@torch.no_grad()
def compare(batch: int, beam: int, repeats: int, seed: int) -> dict[str, Any]:
    generate, search = sides(seed)
    rng = np.random.default_rng([seed, batch, beam])
    token = torch.from_numpy(rng.integers(1, 1 + sum(CODES), (batch, HISTORY)))
    for _ in range(2):
        search(token, beam)
    theirs, ours = [], []
    agreed: dict[str, Any] = {}
    for _ in range(repeats):
        own = [cpu_ms(lambda: search(token, beam)) for _ in range(PER_REPEAT)]
        ours += [value for value, _ in own]
        value, result = cpu_ms(lambda: generate(token, beam))
        theirs.append(value)
        agreed = agreed or agreement(result, own[0][1])
        del result
    hf, rankloom = statistics.median(theirs), statistics.median(ours)
    return {"hf": hf, "rankloom": rankloom, "ratio": hf / rankloom, **agreed}


@torch.no_grad()
def compare_half(repeats: int, seed: int) -> dict[str, Any]:
    """`generate` in fp32 beside the search in bf16, one request."""
    generate, search = sides(seed, torch.bfloat16)
    token = torch.from_numpy(np.random.default_rng([seed, HALF_BEAM]).integers(1, 1 + sum(CODES), (1, HISTORY)))
    for _ in range(2):
        search(token, HALF_BEAM)
    theirs, ours = [], []
    for _ in range(repeats):
        ours += [cpu_ms(lambda: search(token, HALF_BEAM))[0] for _ in range(PER_REPEAT)]
        value, result = cpu_ms(lambda: generate(token, HALF_BEAM))
        theirs.append(value)
    found = search(token, HALF_BEAM)
    first = torch.tensor(np.cumsum([1, *CODES[:-1]]))
    wanted = {tuple(own) for own in (result.sequences[:, HISTORY:] - first).tolist()}
    same = len(wanted & {tuple(own) for own in found.codes_BWL[0].tolist()}) / HALF_BEAM
    return {"hf": statistics.median(theirs), "rankloom": statistics.median(ours), "overlap": same}


def half_width(bench: Benchmark, seed: int) -> str:
    """Rows, checks and a sentence about bf16."""
    name = f"bf16, batch 1, beam {HALF_BEAM}"
    if has_amx():
        repeats = 1 if bench.quick else 5
        own = bench.cell({"what": "bf16", "repeats": repeats, "seed": seed}, lambda: compare_half(repeats, seed))
        bench.row(system="rankloom bf16", variant=name, metric="cpu ms", value=own["rankloom"], n=repeats, seed=seed)
        bench.row(system="rankloom bf16", variant=name, metric="share of the beams of hf", value=own["overlap"], seed=seed)
        bench.check(f"{name}: times less processor time", round(own["hf"] / own["rankloom"], 1), at_least=HALF_TIMES)
        told = f"In bf16 {100 * own['overlap']:.0f}% of the beams are those of fp32"
    else:
        bench.row(system="rankloom bf16", variant=name, metric="times less processor time", value=NO_AMX, wanted=HALF_TIMES)
        told = f"{name}, at least {HALF_TIMES} times less processor time: {NO_AMX}"
    preset, scale, epochs = ("tiny", 0.1, 2) if bench.quick else ("small", 0.25, None)
    key: dict[str, Any] = {"what": "lists in bf16", "preset": preset, "scale": scale, "epochs": epochs, "seed": seed}
    folder = bench.store.path({**key, "sources": fingerprint(ROOT / own for own in LISTS)}).with_suffix("")
    found = bench.cell(key, lambda: quality(folder, preset, scale, seed, epochs=epochs), sources=LISTS)
    variant = f"{preset} on a bazaar (simulated)"
    for system in ("fp32", "bf16"):
        bench.row(system=f"rankloom {system}", variant=variant, metric="ndcg", k=10, masked=True, value=found[system], n=found["cases"], seed=seed)
    change = 100 * abs(found["bf16"] / found["fp32"] - 1)
    # a few hundred cases tell 0.1% from nothing only by luck
    if not bench.quick:
        bench.check(f"{variant}: change of NDCG@10 by bf16, %", round(change, 3), at_most=0.1)
    bench.check(f"{variant}: items that bf16 named and must not", found["invalid"], target=0)
    bench.check(f"{variant}: items of lists of ten that fp32 names too", round(found["overlap"], 3), at_least=0.945)
    return f"{told}. {variant}, {found['cases']:,} cases: NDCG@10 {found['fp32']:.4f} in fp32, {found['bf16']:.4f} in bf16"


def main() -> int:
    bench = Benchmark.from_args("decoding_vs_hf", __doc__, sources=SOURCES)
    torch.set_num_threads(1)
    for batch, beam, repeats, wanted in QUICK if bench.quick else FULL:
        ratios, equal, worst = [], True, 0.0
        for seed in bench.seeds:
            cell = bench.cell(
                {"batch": batch, "beam": beam, "repeats": repeats, "seed": seed},
                lambda batch=batch, beam=beam, repeats=repeats, seed=seed: compare(batch, beam, repeats, seed),
            )
            variant = f"batch {batch}, beam {beam}"
            for system in ("hf", "rankloom"):
                bench.row(system=system, variant=variant, metric="cpu ms", value=cell[system], n=repeats, seed=seed)
            ratios.append(cell["ratio"])
            equal &= cell["same"]
            worst = max(worst, cell["difference"])
        name = f"batch {batch}, beam {beam}"
        bench.check(f"{name}: times less processor time", round(statistics.median(ratios), 1), at_least=wanted)
        bench.check(f"{name}: same IDs in the same order", equal, target=True)
        bench.check(f"{name}: largest difference of log-probabilities", worst, at_most=TOLERANCE)
    half = half_width(bench, bench.seeds[0])
    what = (
        "One whole constrained search, history included, against Hugging Face `generate` with a prefix constraint: the same "
        "weights of a decoder-only model (d 256, 4 layers, history 256, 3 codes), the same output, fp32, one thread. Medians "
        "of processor time; the machine was busy with other work. The network between the two searches is a decoder-only one "
        "of Qwen3's shape, not the lazy decoder that `rankloom train` makes: on our side its matrices are packed and its steps "
        "fused, which is part of the figure. At beams 10 and 64 the margin is within the noise of such a machine. " + half
    )
    publish(bench, "hf", what)
    return bench.finish()


if __name__ == "__main__":
    raise SystemExit(main())
