"""Are queries and items better named together? The aligned encoder's five losses, one codebook, keywords, and stuffed titles.

    python benchmarks/khqe.py [--worlds beauty bazaar titles_zh] [--seeds 0 1 2] [--epochs 2] [--quick] [--json OUT]

Figures are Recall@10 and MRR@10 of ranking the whole catalogue for a query by closeness alone, of vectors and of what SIDs stand
for (OneSearch's measure of tokenizers; ties by expectation, seen items left out); ICR; CUR by depth and in total. Worlds: Amazon
Beauty with *made* queries (categories, title words; evaluation/search), the bazaar (*simulated*; its log's own queries, with what
was shown), and Taobao titles (`titles_zh`, no queries: ICR alone). Text is hashed everywhere. Parts:

* `losses` (the text encoder is fitted on items alone, the same for all): text alone, items aligned alone, five losses, each left out, the cosine filter at .6 and at none;
* `codes`: RQ, last level balanced, all balanced, RQ-OPQ, on vectors of the five losses; codebook of both or of items alone;
* `keywords`: fused or not, on vectors and on SIDs;
* `stuffing`: 500 items gain ten popular title words (search_stuffing.py). Share of codes that stay, by level; without keywords,
  with keywords and no guard, with the guard.

`--quick` is a small bazaar. Finished cells are kept.
"""

from __future__ import annotations

import functools
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from _common import Benchmark, argument_parser, data_folder, table
from _khqe import RQ_OPQ, Figures, Space, World, code_space, fit_space, load_world, vector_figures
from rich.console import Console
from search_stuffing import stuffing, with_titles

from rankloom.config import Config
from rankloom.semantic.hashed import HashedTextEmbedder
from rankloom.semantic.ids import SemanticIds, usage_report
from rankloom.semantic.quantizers.registry import make_quantizer

SOURCES = ("rankloom/semantic", "rankloom/evaluation/search", "rankloom/config.py", "benchmarks/_khqe.py", "benchmarks/khqe.py")
LOSSES: dict[str, tuple[str, list[str]]] = {
    "text alone": ("text", []),
    "items aligned alone": ("items", []),
    "five losses": ("five", []),
    "without q2q": ("five", ["khqe.q2q=0"]),
    "without i2i": ("five", ["khqe.i2i=0"]),
    "without q2i": ("five", ["khqe.q2i=0"]),
    "without rank": ("five", ["khqe.rank=0"]),
    "without relevance": ("five", ["khqe.relevance=0"]),
    "without content": ("five", ["alignment.content_weight=0"]),
    "cosine .6": ("five", ["khqe.min_cosine=0.6"]),
    "no filter": ("five", ["khqe.drop_share=0"]),
}
CODES: dict[str, tuple[list[str], bool]] = {
    "rq": (["decreasing=true"], True),
    "rq, last balanced": (["decreasing=true", "balanced_levels=[-1]"], True),
    "rq, all balanced": (["decreasing=true", "balanced_levels=[0,1,2]"], True),
    "rq-opq": (list(RQ_OPQ), True),
    "rq-opq, codebook of items": (list(RQ_OPQ), False),
}
GUARDS = {"none": "without keywords", "off": "keywords, no guard", "strip": "keywords, guard"}
STUFFED = 500


class Run:
    """Worlds and spaces of one run, each made once."""

    def __init__(self, folder: Path, epochs: int, *, quick: bool) -> None:
        self.folder, self.quick, self.epochs = folder, quick, 1 if quick else epochs

    @functools.cache  # noqa: B019  # lives as long as the run
    def world(self, name: str) -> World:
        return load_world(name, self.folder, quick=self.quick)

    @functools.cache  # noqa: B019
    def space(self, name: str, variant: str, keywords: str, seed: int) -> Space:
        kind, assignments = LOSSES[variant]
        own = [f"alignment.epochs={self.epochs}", *assignments]
        return fit_space(self.world(name), own, keywords=keywords, seed=seed, kind=kind)

    def losses(self, name: str, variant: str, seed: int) -> Figures:
        space = self.space(name, variant, "none", seed)
        world = self.world(name)
        pairs = {} if space.material is None else {**space.material.counts(), "least": space.material.least}
        return {
            "vector": vector_figures(world, space), "sid": code_space(world, space, RQ_OPQ, seed=seed), "pairs": pairs,
            "cpu_seconds": space.cpu_seconds,
        }  # fmt: skip

    def codes(self, name: str, variant: str, seed: int) -> Figures:
        assignments, both = CODES[variant]
        return code_space(self.world(name), self.space(name, "five losses", "none", seed), assignments, both=both, seed=seed)

    def keywords(self, name: str, variant: str, guard: str, seed: int) -> Figures:
        space, world = self.space(name, variant, guard, seed), self.world(name)
        return {"vector": vector_figures(world, space), "sid": code_space(world, space, RQ_OPQ, seed=seed)}

    def stuffed(self, name: str, guard: str, seed: int) -> Figures:
        """Share of items whose first l codes stay, and share of codes that stay at each level."""
        world, space = self.world(name), self.space(name, "five losses", guard, seed)
        reader, aligner = world.read(guard), space.aligner  # type: ignore[arg-type]
        assert aligner is not None
        quantizer = make_quantizer(world.config(*(f"quantizer.{own}" for own in RQ_OPQ)).quantizer, world.items.height)
        quantizer.fit(np.concatenate([space.items, space.queries]), np.random.default_rng(seed), quiet=True)
        rows, added = stuffing(world.items, random.Random(0), 40 if self.quick else STUFFED)
        both = [world.items[rows], with_titles(world.items, rows, added)[rows]]
        honest, moved = (quantizer.encode(aligner.transform(reader.assign(items)[0])) for items in both)
        same = honest == moved
        return {"level": same.mean(0).tolist(), "prefix": np.cumprod(same, axis=1).mean(0).tolist(), "n": len(rows)}


def titles_zh(variant: str, seed: int) -> Figures:
    """ICR of Taobao titles, by their text vectors."""
    titles = pl.read_parquet(data_folder("titles_zh", "titles_ner.parquet")).filter(pl.col("domain") == "ecommerce")
    texts = titles["text"].unique(maintain_order=True).to_list()
    vectors = HashedTextEmbedder(256).fit(texts, seed)
    config = Config.preset_config("small").with_overrides([f"quantizer.{own}" for own in CODES[variant][0]]).quantizer
    quantizer = make_quantizer(config, len(vectors))
    codes = quantizer.fit(vectors, np.random.default_rng(seed), quiet=True)
    usage = usage_report(SemanticIds(codes, quantizer.codebook_sizes, np.zeros(len(codes), np.float32)))
    return {"icr": usage["icr"], "cur_total": usage["cur_total"], "cur_prefix": usage["cur_prefix"], "sizes": usage["codebook_sizes"], "n": len(texts)}


def main() -> int:
    parser = argument_parser(__doc__)
    parser.add_argument("--worlds", nargs="+", default=["beauty", "bazaar", "titles_zh"], metavar="NAME")
    parser.add_argument("--epochs", type=int, default=2, help="of the alignment")
    parser.add_argument("--parts", nargs="+", default=["losses", "codes", "keywords", "stuffing"], metavar="NAME")
    bench = Benchmark.from_args("khqe", parser=parser, sources=SOURCES)
    run = Run(bench.store.folder, bench.args.epochs, quick=bench.quick)
    lines: dict[str, list[dict[str, Any]]] = {}
    for name in ["bazaar"] if bench.quick else bench.args.worlds:
        for seed in bench.seeds:
            if name == "titles_zh":
                chinese(bench, seed, lines)
                continue
            for part in bench.args.parts:
                PARTS[part](bench, run, name, seed, lines)
    for title, rows in lines.items():
        Console(highlight=False, width=170).print(table(title, rows))
    return bench.finish(show_rows=False)


def cell(bench: Benchmark, run: Run, measure: Callable[[], Any], **key: Any) -> Any:
    return bench.cell({**key, "epochs": run.epochs}, measure)


def told(bench: Benchmark, what: str, name: str, variant: str, seed: int, own: Figures) -> dict[str, Any]:
    """Rows of one ranking by closeness, and what the printed table says of it."""
    out: dict[str, Any] = {}
    for kind, figure in own.items():
        if isinstance(figure, dict):
            for metric in ("recall", "mrr"):
                bench.row(system=what, variant=variant, metric=metric, k=10, masked=True, value=figure[metric], n=figure["n"],
                          world=name, queries=kind, seed=seed)  # fmt: skip
            out[f"{kind} {what.split()[0]}"] = f"{figure['recall']:.4f} / {figure['mrr']:.4f}"
    return out


def losses(bench: Benchmark, run: Run, name: str, seed: int, lines: dict[str, list[dict[str, Any]]]) -> None:
    found: dict[str, Figures] = {}
    for variant in LOSSES:
        own = cell(bench, run, lambda v=variant: run.losses(name, v, seed), part="losses", world=name, variant=variant, seed=seed)
        found[variant] = own
        line = {"world": name, "seed": seed, "losses": variant, **told(bench, "vectors", name, variant, seed, own["vector"])}
        line |= told(bench, "sids", name, variant, seed, own["sid"])
        bench.row(system="rq-opq", variant=variant, metric="icr", value=own["sid"]["icr"], world=name, seed=seed)
        lines.setdefault("Recall@10 / MRR@10 by closeness, by losses", []).append({**line, "ICR": round(own["sid"]["icr"], 4)})
    if not bench.quick:
        for kind in run_kinds(found["five losses"]):
            gain = found["five losses"]["vector"][kind]["recall"] - found["items aligned alone"]["vector"][kind]["recall"]
            bench.check(f"{name}, seed {seed}, {kind} queries: Recall@10 of vectors, five losses minus items alone", round(gain, 4), at_least=0)


def run_kinds(own: Figures) -> list[str]:
    return [kind for kind, figure in own["vector"].items() if isinstance(figure, dict)]


def codes(bench: Benchmark, run: Run, name: str, seed: int, lines: dict[str, list[dict[str, Any]]]) -> None:
    found: dict[str, Figures] = {}
    for variant in CODES:
        own = cell(bench, run, lambda v=variant: run.codes(name, v, seed), part="codes", world=name, variant=variant, seed=seed)
        found[variant] = own
        usage_rows(bench, name, variant, seed, own)
        line = {"world": name, "seed": seed, "codes": variant, **told(bench, "sids", name, variant, seed, own)}
        lines.setdefault("codes on vectors of the five losses", []).append({**line, **usage_line(own)})
    verdicts(bench, name, seed, found)


def chinese(bench: Benchmark, seed: int, lines: dict[str, list[dict[str, Any]]]) -> None:
    found = {}
    for variant in list(CODES)[:4]:
        found[variant] = bench.cell({"part": "titles_zh", "variant": variant, "seed": seed}, lambda v=variant: titles_zh(v, seed))
        usage_rows(bench, "titles_zh", variant, seed, found[variant])
        line = {"world": "titles_zh", "seed": seed, "codes": variant, **usage_line(found[variant])}
        lines.setdefault("codes on vectors of the five losses", []).append(line)
    verdicts(bench, "titles_zh", seed, found)


def usage_rows(bench: Benchmark, name: str, variant: str, seed: int, own: Figures) -> None:
    bench.row(system=variant, metric="icr", value=own["icr"], world=name, seed=seed)
    bench.row(system=variant, metric="cur_total", value=own["cur_total"], world=name, seed=seed)
    for depth, share in enumerate(own["cur_prefix"]):
        bench.row(system=variant, metric="cur_prefix", k=depth + 1, value=share, world=name, seed=seed)


def usage_line(own: Figures) -> dict[str, Any]:
    return {
        "sizes": "x".join(map(str, own["sizes"])), "CUR by depth": " ".join(f"{share:.3g}" for share in own["cur_prefix"]),
        "ICR": round(own["icr"], 4),
    }  # fmt: skip


def verdicts(bench: Benchmark, name: str, seed: int, found: dict[str, Figures]) -> None:
    if bench.quick:
        return
    bench.check(f"{name}, seed {seed}: ICR of RQ-OPQ minus RQ", round(found["rq-opq"]["icr"] - found["rq"]["icr"], 4), at_least=0.1)
    change = found["rq, all balanced"]["cur_total"] / found["rq, last balanced"]["cur_total"] - 1
    bench.check(f"{name}, seed {seed}: total CUR, all levels balanced against the last (relative)", round(change, 4), at_most=-1e-9)


def keywords(bench: Benchmark, run: Run, name: str, seed: int, lines: dict[str, list[dict[str, Any]]]) -> None:
    for variant in ("text alone", "five losses"):
        for guard in ("none", "strip"):
            key = {"part": "keywords", "world": name, "variant": variant, "guard": guard, "seed": seed}
            own = cell(bench, run, lambda v=variant, g=guard: run.keywords(name, v, g, seed), **key)
            label = f"{variant}, {GUARDS[guard]}"
            line = {"world": name, "seed": seed, "space": label, **told(bench, "vectors", name, label, seed, own["vector"])}
            line |= told(bench, "sids", name, label, seed, own["sid"])
            lines.setdefault("Recall@10 / MRR@10 by closeness, keywords", []).append({**line, "ICR": round(own["sid"]["icr"], 4)})


def stuffed(bench: Benchmark, run: Run, name: str, seed: int, lines: dict[str, list[dict[str, Any]]]) -> None:
    found = {}
    for guard, label in GUARDS.items():
        own = cell(bench, run, lambda g=guard: run.stuffed(name, g, seed), part="stuffing", world=name, guard=guard, seed=seed)
        found[guard] = own
        for metric in ("level", "prefix"):
            for depth, share in enumerate(own[metric]):
                bench.row(system=label, variant="stuffed titles", metric=f"unchanged_{metric}", k=depth + 1, value=share, n=own["n"], world=name, seed=seed)
        lines.setdefault("codes that stay when a title gains ten popular words", []).append(
            {"world": name, "seed": seed, "keywords": label, "by level": shares(own["level"]), "from the first on": shares(own["prefix"])}
        )
    if not bench.quick:
        gain = found["strip"]["level"][0] - found["off"]["level"][0]
        bench.check(f"{name}, seed {seed}: first codes that stay with the guard minus without", round(gain, 4), at_least=0)


def shares(values: Sequence[float]) -> str:
    return " ".join(f"{value:.3f}" for value in values)


PARTS = {"losses": losses, "codes": codes, "keywords": keywords, "stuffing": stuffed}


if __name__ == "__main__":
    raise SystemExit(main())
