"""OneSearch taken apart: do its parts help where the paper says they do, and is it above the engines of a shop?

    python benchmarks/search_ablation.py --dataset scientific|beauty|toys|FOLDER [--people N] [--seeds N] [--json OUT]
                                         [--variants NAME ...] [--engines NAME ...] [--beam W] [--set SECTION.KEY=VALUE ...] [--quick]

The encoder-decoder OneSearch (rankloom/onesearch) on the protocol of search_amazon.py: **synthetic queries** made from
item text, a person's last item is the answer, the whole catalogue is ranked, what the person has is left out. One catalogue,
one log and one tokenizer (residual K-means with a balanced last level, and OPQ) for all variants of a seed:

| variant | what is different | the paper's sign |
|---|---|---|
| full | nothing: S1, S2, S3, PARS, then the reward model orders the list | |
| no short sequence | recent queries and items are not in the prompt | worse |
| hashed uid | the user ID is a hash and not the behaviour | worse |
| no opq | three residual codes and no OPQ codes | worse |
| no s2 | stage 2 is left out | worse |
| no adaptive reward | no preference training; the reward model still orders the list | worse |
| no selection | full, in the generator's order | worse |
| generator alone | neither preference training nor selection | |

The last three are no trainings of their own. Five of the six signs (category queries, mean over the seeds) are asked for, once for
HR@10 and once for MRR@10; the intervals of the paired differences over people stand beside them, and what they include is not a
result. Every part is printed at three places: the generator's HR@10 and MRR@10, its HR@350 and MRR@350, and HR@10 and MRR@10
after selection. Judged are **the generator's lists**, since that is what the paper's offline table is of (hit rate and reciprocal
rank of what a beam of 512 brings from a catalogue of tens of millions; selection is judged online and apart), at **10**, the depth
of the second paper: the first one's 350 are a list of .001% of the shop and find 66% there, 350 of some thousand items are a
twelfth of it and find nearly all, as HR@10 does not. After selection lists are alike whatever generated them, for the same reason.
The valid-SID rate of unconstrained beams means something with
`--set network.output=vocabulary`; trained over the trie, a network never learns which codes do not exist.
Events of these logs are purchases, so every one counts as an order; there are no impressions, so CTR, CVR and CTCVR learn
from the same takes and level 4 of the feedback is empty. Variants that are trained alike up to a stage share it (S1 and S2; the reward model, which
reads nothing that they change), which their minutes of training do not count. Each trained variant is a cell, kept in
runs/benchmarks/search_ablation; shops, models and shared stages lie in runs/search_ablation.
"""

from __future__ import annotations

import json
import sys
import time
import zlib
from collections.abc import Callable
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from _common import ROOT, Benchmark, argument_parser, count_seeds, data_folder, fingerprint
from _search import Engines, SearchData, evaluation_data
from safetensors.numpy import save_file
from safetensors.torch import save_file as save_tensors

from rankloom import model_folder
from rankloom.config import Config, DataConfig
from rankloom.data.sequences import Sequences, load_sequences
from rankloom.evaluation.search.compare import COLD, LONGEST, difference, figures, ranks_of, value
from rankloom.evaluation.search.onesearch import OneSearchSystem
from rankloom.files import atomic_file, read_json, write_json
from rankloom.onesearch import folder
from rankloom.onesearch.model import OneSearch
from rankloom.onesearch.reward_model import RewardModel
from rankloom.onesearch.settings import OneSearchConfig
from rankloom.semantic.tokenizer import Tokenizer

NAMED: Final = {"beauty": "amazon2014_beauty", "toys": "amazon2014_toys", "scientific": "amazon2018_scientific"}
TRAINED: Final[dict[str, dict[str, Any]]] = {
    "full": {},
    "no short sequence": {"behaviour": {"short": False}},
    "hashed uid": {"behaviour": {"uid": "hashed"}},
    "no opq": {"opq": False},
    "no s2": {"stages": {"s2_steps": 0}},
}
"""Variants that are trained, by what their settings change."""
DERIVED: Final = {
    "no adaptive reward": ("sft", "selected"), "no selection": ("full", "generator"), "generator alone": ("sft", "generator"),
}  # fmt: skip
"""Others, by which weights of `full` they take and in whose order."""
ABLATIONS: Final = ("no short sequence", "hashed uid", "no opq", "no s2", "no adaptive reward", "no selection")
GENERATOR: Final = ", generator"
SIGNS: Final = 5
BASE: Final[dict[str, Any]] = {
    # every event of these logs is a purchase, whatever the importer calls it
    "behaviour": {"orders": ("purchase", "click")},
    # as the rest of this package does; the paper's `vocabulary` takes half as long again
    "network": {"output": "trie"},
    # a minute of one core a variant; further steps still help (docs/experiments.md)
    "stages": {"s1_steps": 80, "s2_steps": 50, "s3_steps": 400}, "reward": {"steps": 250},
    # no impressions in these logs: what phase 2 adds to the samples of S3 (level 4) is not there
    "preference": {"contexts": 600, "sampled": 600, "phase1_steps": 80, "phase2_steps": 0},
}
QUICK: Final[dict[str, Any]] = {
    "network": {"d_model": 32}, "stages": {"s1_steps": 10, "s2_steps": 5, "s3_steps": 20, "batch_size": 64},
    "reward": {"steps": 20, "batch_size": 32},
    "preference": {"contexts": 64, "sampled": 32, "beam": 16, "list_length": 12, "phase1_steps": 4, "phase2_steps": 4, "batch_size": 16},
}  # fmt: skip
TOKENIZER: Final = {
    "text": {"embedder": "hashed"}, "quantizer": {"decreasing": True, "balanced_levels": (-1,), "last": "opq"},
}  # fmt: skip
SOURCES: Final = (
    "rankloom/onesearch", "rankloom/models/encoder_decoder.py", "rankloom/models/qformer.py",
    "rankloom/models/behaviour_uid.py", "rankloom/models/reward_towers.py", "rankloom/training/preference.py",
    "rankloom/training/feedback.py", "rankloom/semantic", "rankloom/decoding/beam.py", "benchmarks/_search.py",
    "rankloom/evaluation/search",
)  # fmt: skip
ENGINES: Final = ("bm25", "bm25+popularity", "mini-cascade")
Found = dict[tuple[str, str], list[dict[str, Any]]]


def main() -> int:
    parser = argument_parser(__doc__)
    count_seeds(parser)
    parser.add_argument("--dataset", default="scientific", help="scientific, beauty, toys, or a folder")
    parser.add_argument("--people", type=int, default=1000, help="people asked, of the protocol's 5,000")
    parser.add_argument("--beam", type=int, default=256, help="semantic IDs carried along")
    parser.add_argument("--variants", nargs="+", metavar="NAME", help=f"only these of: {', '.join([*TRAINED, *DERIVED])}")
    parser.add_argument("--engines", nargs="*", default=list(ENGINES), metavar="NAME", help="baselines beside them")
    parser.add_argument("--kinds", nargs="+", default=["category", "keyword"], help="kinds of queries")
    parser.add_argument(
        "--set", nargs="+", default=[], metavar="S.K=V", dest="settings", help="settings of all variants, such as stages.s3_steps=900"
    )
    parser.add_argument("--folder", type=Path, default=ROOT / "runs" / "search_ablation", help="where shops and models lie")
    bench = Benchmark.from_args("search_ablation", parser=parser, sources=SOURCES)
    args, name = bench.args, bench.args.dataset
    source = data_folder(NAMED[name]) if name in NAMED else Path(name)
    home = args.folder / f"{Path(name).name}{'-quick' if bench.quick else ''}"
    people, beam = (60, LONGEST) if bench.quick else (args.people, args.beam)
    variants = args.variants or (["full", "no opq", *DERIVED] if bench.quick else [*TRAINED, *DERIVED])
    settings = _merged(BASE, QUICK if bench.quick else {}, _typed(args.settings))

    @cache
    def data() -> tuple[SearchData, Sequences]:
        own = evaluation_data(source, home, None, quick=bench.quick)
        fewer = {kind: cases.take(np.arange(min(people, len(cases)))) for kind, cases in own.cases.items()}
        # read again: now the log has its searches
        return replace(own, cases=fewer), load_sequences(own.shop, DataConfig(split="leave-one-out"))

    key = {"dataset": name, "settings": json.dumps(settings, sort_keys=True)}
    found: Found = {}
    trained: dict[str, list[dict[str, Any]]] = {}
    engines = Engines(lambda: data()[0])
    for kind in args.kinds:
        for system, variant, drawn in engines.names(quick=True):
            if system not in args.engines:
                continue
            for seed in bench.seeds if drawn else bench.seeds[:1]:
                cell = bench.cell(
                    {"dataset": name, "people": people, "kind": kind, "system": system, "variant": variant, "seed": seed},
                    partial(engines.ranks, kind, system, variant, seed),
                )
                _add(found, kind, f"{system} ({variant})", cell)
    for seed in bench.seeds:
        for variant in dict.fromkeys("full" if own in DERIVED else own for own in variants):
            own = bench.cell(
                {**key, "part": "train", "variant": variant, "seed": seed}, partial(_train, data, home, variant, settings, seed)
            )
            trained.setdefault(variant, []).append(own)
            print(f"{name}, seed {seed}, {variant}: {own['cpu_minutes']:.1f} minutes of processor time {own['stages']}", flush=True)
        for kind in args.kinds:
            for weights in _weights(variants):
                cells = bench.cell(
                    {**key, "people": people, "beam": beam, "kind": kind, "weights": weights, "seed": seed},
                    partial(_evaluate, data, home / f"{weights}-{seed}", kind, seed, beam),
                )
                for variant, order in _readings(weights, variants):
                    _add(found, kind, variant, {**cells, "rank": cells[order]})
    _rows(bench, found)
    _summary(found)
    if not bench.quick:
        for kind in args.kinds:
            _checks(bench, name, kind, found)
    return bench.finish(show_rows=False)


def _weights(variants: list[str]) -> list[str]:
    """Which model folders the variants read."""
    return list(dict.fromkeys(DERIVED[own][0] if own in DERIVED else own for own in variants))


def _readings(weights: str, variants: list[str]) -> list[tuple[str, str]]:
    """(variant, order) of what one decoding with these weights tells."""
    derived = [(own, order) for own, (source, order) in DERIVED.items() if source == weights and own in variants]
    own = [(weights, "selected")] if weights in variants else []
    if weights in ABLATIONS:
        own.append((weights + GENERATOR, "generator"))
    return own + derived


def _judged(variant: str) -> tuple[str, str]:
    """(what is compared, with what) for an ablation: the generator's parts in the generator's order."""
    if variant == "no selection":
        return "full", variant
    return "no selection", "generator alone" if variant == "no adaptive reward" else variant + GENERATOR


def _add(found: Found, kind: str, variant: str, cell: dict[str, Any]) -> None:
    found.setdefault((kind, variant), []).append(cell)
    print(_line(kind, variant, cell), flush=True)


def _train(
    data: Callable[[], tuple[SearchData, Sequences]], home: Path, variant: str, settings: dict[str, Any], seed: int
) -> dict[str, Any]:
    """Trains one variant and saves it; of `full` also what supervised training alone made."""
    own, log = data()
    items = own.shop.items()
    tokenizer = _tokenizer(home / f"tokenizer-{seed}", own, seed)
    began = time.process_time()
    config = OneSearchConfig.model_validate({**_merged(settings, TRAINED[variant]), "seed": seed})
    model = OneSearch.build(items, log, tokenizer, config)
    minutes, clock = {}, began
    for stage, step in (
        ("S1 and S2", partial(_aligned, home, model)), ("S3", partial(model.fit_supervised, stages=("S3",))),
        ("reward", partial(_rewarded, home, model)), ("preference", model.fit_preference),
    ):  # fmt: skip
        step(log)
        minutes[stage] = round((time.process_time() - clock) / 60, 2)
        clock = time.process_time()
        if stage == "reward" and variant == "full":
            folder.save(model, items, home / f"sft-{seed}", overwrite=True)
    folder.save(model, items, home / f"{variant}-{seed}", overwrite=True)
    return {
        "cpu_minutes": (time.process_time() - began) / 60, "stages": minutes, "threads": torch.get_num_threads(),
        "parameters": sum(part.numel() for part in model.network.parameters()), "shares": model.shares,
        "losses": {name: record.losses for name, record in model.records.items()},
    }  # fmt: skip


def _aligned(home: Path, model: OneSearch, log: Sequences) -> None:
    """S1 and S2, or the weights after them where a variant that reads the same in them has been there."""
    config = model.config
    same = {"network": config.network, "stages": config.stages, "start": config.start, "opq": config.opq}
    path = _shared(home, "aligned", config.seed, {name: own if isinstance(own, (bool, str)) else own.model_dump() for name, own in same.items()})
    if path.exists():
        model.network.load_state_dict(model_folder.read_tensors(path))
        return
    model.fit_supervised(log, stages=("S1", "S2"))
    with atomic_file(path) as own:
        save_tensors({name: value.contiguous() for name, value in model.network.state_dict().items()}, own)


def _rewarded(home: Path, model: OneSearch, log: Sequences) -> None:
    """The reward model, which reads nothing that a variant changes: one for all variants of a seed."""
    config = model.config
    path = _shared(home, "reward", config.seed, {"reward": config.reward.model_dump(), "orders": list(config.behaviour.orders)})
    if path.exists():
        model.rewarder = RewardModel.build(config.reward, model.prompts, model.statistics, config.seed)
        model.rewarder.towers.load_state_dict(model_folder.read_tensors(path))
        return
    model.fit_reward(log)
    assert model.rewarder is not None
    with atomic_file(path) as own:
        save_tensors({name: value.contiguous() for name, value in model.rewarder.towers.state_dict().items()}, own)


def _shared(home: Path, name: str, seed: int, read: dict[str, Any]) -> Path:
    """A file for what several variants have in common: another one for other settings, and for other sources."""
    key = json.dumps({**read, "sources": fingerprint(ROOT / source for source in SOURCES)}, sort_keys=True)
    return home / f"{name}-{seed}-{zlib.crc32(key.encode()):08x}.safetensors"


def _tokenizer(path: Path, data: SearchData, seed: int) -> Tokenizer:
    """The tokenizer of a seed, the same for every variant."""
    arrays_path, meta_path = path.with_suffix(".safetensors"), path.with_suffix(".json")
    if not (arrays_path.exists() and meta_path.exists()):
        config = Config.model_validate({**TOKENIZER, "seed": seed})
        arrays, meta = Tokenizer.fit(data.shop.items(), data.sequences, config, quiet=True).state()
        save_file(model_folder.contiguous(arrays), arrays_path)
        write_json(meta_path, meta)
    return Tokenizer.from_state(model_folder.read_arrays(arrays_path), read_json(meta_path))


def _evaluate(
    data: Callable[[], tuple[SearchData, Sequences]], path: Path, kind: str, seed: int, beam: int
) -> dict[str, Any]:
    own, log = data()
    asked = own.cases[kind]
    model = folder.load(path)
    system, learned = OneSearchSystem(model, log, beam=beam), model.config.network.output == "vocabulary"
    began = time.process_time()
    selected, generated = system.both(asked, LONGEST)
    spent = time.process_time() - began
    return {
        "selected": ranks_of(selected, asked.cases.target).tolist(),
        "generator": ranks_of(generated, asked.cases.target).tolist(),
        # trained over the trie, a network never learns which codes do not exist
        **({"valid_rate": system.valid_rate(asked.take(np.arange(min(200, len(asked)))))} if learned else {}),
        "user": asked.cases.user.tolist(), "count": own.shelf.count_I[asked.cases.target].tolist(), "seed": seed,
        "ms": 1000 * spent / max(1, len(asked)),
    }  # fmt: skip


def _numbers(cell: dict[str, Any]) -> list[float]:
    rank, cold = np.asarray(cell["rank"]), np.asarray(cell["count"]) <= COLD
    return [*(value(rank, "hr", k) for k in (10, 50, 350)), value(rank, "mrr", 10), value(rank, "hr", 10, cold)]


def _line(kind: str, variant: str, cell: dict[str, Any]) -> str:
    return f"{kind:<10}{variant:<30}" + "".join(f"{number:>9.4f}" for number in _numbers(cell))


def _summary(found: Found) -> None:
    heads = ("HR@10", "+-", "HR@50", "HR@350", "MRR@10", "+-", "cold HR@10", "valid SID", "ms")
    print(f"\n{'queries':<10}{'variant':<30}{'seeds':>6}" + "".join(f"{head:>11}" for head in heads))
    for (kind, variant), cells in found.items():
        each = np.asarray([_numbers(cell) for cell in cells])
        mean, spread = each.mean(0), each.std(0)
        numbers = [mean[0], spread[0], mean[1], mean[2], mean[3], spread[3], mean[4]]
        more = [float(np.mean([cell.get(name, np.nan) for cell in cells])) for name in ("valid_rate", "ms")]
        print(f"{kind:<10}{variant:<30}{len(cells):>6}" + "".join(f"{number:>11.4f}" for number in [*numbers, *more]))


def _rows(bench: Benchmark, found: Found) -> None:
    for (kind, variant), cells in found.items():
        for cell in cells:
            same = {"system": "onesearch" if "(" not in variant else variant.split(" (")[0], "variant": variant}
            for row in figures(np.asarray(cell["rank"]), np.asarray(cell["count"]), np.asarray(cell["user"])):
                bench.row(**same, masked=True, queries=kind, synthetic=True, seed=cell["seed"], **row)
            if "valid_rate" in cell:
                bench.row(**same, metric="valid_sid_rate", queries=kind, seed=cell["seed"], value=cell["valid_rate"])


def _checks(bench: Benchmark, name: str, kind: str, found: Found) -> None:
    if (kind, "full") not in found:
        return
    user = np.asarray(found[kind, "full"][0]["user"])
    ours = [np.asarray(cell["rank"]) for cell in found[kind, "full"]]
    for (other, variant), cells in found.items():
        if other != kind or variant == "full":
            continue
        theirs = [np.asarray(cell["rank"]) for cell in cells]
        for metric in ("hr", "mrr"):
            middle, low, high = difference(ours, theirs, user, metric, 10)
            if "(" in variant:
                bench.check(
                    f"{name}, {kind} queries: full over {variant}, {metric}@10, paired", f"{middle:+.4f} ({low:+.4f} .. {high:+.4f})",
                    target="interval above 0", ok=bool(low > 0),
                )  # fmt: skip
            else:
                print(f"{name}, {kind} queries: full less {variant}, {metric}@10, paired: {middle:+.4f} ({low:+.4f} .. {high:+.4f})")
    pairs = [_judged(variant) for variant in ABLATIONS]
    if kind != "category" or any((kind, own) not in found for pair in pairs for own in pair):
        return
    for metric, k in (("hr", 10), ("mrr", 10), ("hr", LONGEST), ("mrr", LONGEST)):
        right, sure = 0, 0
        for (better, worse), ablation in zip(pairs, ABLATIONS, strict=True):
            ranks = ([np.asarray(cell["rank"]) for cell in found[kind, own]] for own in (better, worse))
            middle, low, high = difference(*ranks, user, metric, k)
            right, sure = right + (middle > 0), sure + (low > 0)
            print(f"{name}, {kind}: {better} less {worse}, {metric}@{k}, paired: {middle:+.4f} ({low:+.4f} .. {high:+.4f})")
            bench.row(
                system="onesearch", variant=ablation, better=better, worse=worse, metric=f"{metric} difference", k=k, queries=kind,
                synthetic=True, value=middle, low=low, high=high, n=len(user),
            )  # fmt: skip
        place = f"{name}: ablations with the paper's sign in {metric}@{k} of the generator's list, of {len(pairs)}"
        if k == LONGEST:
            print(f"{place}: {right}, {sure} with the interval above 0")
            continue
        bench.check(place, right, at_least=SIGNS)
        print(f"{place}: {sure} with the interval above 0")


def _merged(*parts: dict[str, Any]) -> dict[str, Any]:
    """Settings by section; later parts win."""
    out: dict[str, Any] = {}
    for part in parts:
        for name, own in part.items():
            out[name] = _merged(out.get(name, {}), own) if isinstance(own, dict) else own
    return out


def _typed(settings: list[str]) -> dict[str, Any]:
    """`section.key=value` with values as JSON, or words."""
    out: dict[str, Any] = {}
    for setting in settings:
        path, text = setting.split("=", 1)
        try:
            own: Any = json.loads(text)
        except json.JSONDecodeError:
            own = text
        for name in reversed(path.split(".")):
            own = {name: own}
        out = _merged(out, own)
    return out


if __name__ == "__main__":
    sys.exit(main())
