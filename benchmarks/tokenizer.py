"""Which semantic IDs are good ones: what each quantiser keeps and uses, and what the two collision policies are worth.

    python benchmarks/tokenizer.py [--quick] [--embedder hashed] [--json OUT]

Item vectors of Amazon Beauty (`amazon2014_beauty` under RANKLOOM_DATA) and of the bazaar (simulated), with and without
collaborative alignment, are named by every quantiser at the sizes it takes for the catalogue. A row of the first table is
one quantiser: relative reconstruction error (share of the vectors' variance that is lost), CUR by level and in total, mean
entropy over ln K, ICR, largest bucket, codes to decode, CPU seconds of the fit; `dedup` adds its code on top. The second
table trains the tiny preset twice per quantiser, once per collision policy, with the same seed, and says recall@10 over the
whole catalogue (seen items masked) of the generator alone and with selection, and the paired difference with its 95%
interval over people. `--quick` is a small bazaar alone. Finished cells are kept.
"""

from __future__ import annotations

import functools
import time
from pathlib import Path
from typing import Any

import numpy as np
from _common import Benchmark, argument_parser, data_folder, table
from rich.console import Console

from rankloom.config import Config
from rankloom.data.importing import import_data
from rankloom.data.sequences import TEST, TRAIN, Cases, Sequences, load_sequences
from rankloom.data.shop import Shop
from rankloom.evaluation.evaluate import paired_difference
from rankloom.evaluation.metrics import gains, target_rank
from rankloom.evaluation.rankloom_system import RankloomSystem
from rankloom.pipeline import train
from rankloom.recommender import Rankloom
from rankloom.semantic.ids import SemanticIds, usage_report
from rankloom.semantic.quantizers.base import reconstruction_errors
from rankloom.semantic.quantizers.registry import make_quantizer
from rankloom.semantic.tokenizer import Tokenizer, dedup_codes
from rankloom.simulation import generate_bazaar

SOURCES = ("rankloom/semantic", "rankloom/models", "rankloom/training", "rankloom/decoding", "rankloom/config.py",
           "rankloom/catalogue.py", "rankloom/generating.py", "rankloom/ordering.py", "rankloom/replying.py", "rankloom/request_rows.py",
           "rankloom/pipeline.py", "rankloom/choosing.py", "rankloom/building.py", "rankloom/recommender.py", "benchmarks/tokenizer.py")  # fmt: skip
VARIANTS: dict[str, list[str]] = {
    "rq-kmeans": [],
    "rq-kmeans, last balanced": ["balanced_levels=[-1]"],
    "rq-kmeans, all balanced": ["balanced_levels=[0,1,2]"],
    "rq-kmeans, decreasing": ["decreasing=true"],
    "rq-kmeans, decreasing, last balanced": ["decreasing=true", "balanced_levels=[-1]"],
    "rq-vae": ["kind=rq-vae"],
    "rq-kmeans + fsq": ["last=fsq"],
    "rq-vae + fsq": ["kind=rq-vae", "last=fsq"],
    "rq-kmeans + opq": ["last=opq"],
    "rq-kmeans, decreasing, last balanced + opq": ["decreasing=true", "balanced_levels=[-1]", "last=opq"],
}
"""The last is OneSearch's RQ-OPQ, the second all-balanced one the OneRec paper's, the FSQ one OneMall's."""
TRAINED = ("rq-kmeans", "rq-kmeans, decreasing")
POLICIES = ("list", "dedup")


class World:
    """A shop and its item vectors, made when a cell needs them."""

    def __init__(self, name: str, folder: Path, embedder: str, *, quick: bool) -> None:
        self.name, self.folder, self.quick = name, folder / f"shop-{name}", quick
        self.split = "leave-one-out" if name == "beauty" else "time"
        self.embedder = embedder

    @functools.cached_property
    def shop(self) -> Shop:
        if not (self.folder / "shop.json").exists():
            if self.name == "beauty":
                import_data("sequences", data_folder("amazon2014_beauty"), self.folder)
            else:
                generate_bazaar(self.folder, seed=0, scale=0.05 if self.quick else 1.0)
        return Shop.open(self.folder)

    def config(self, preset: str, assignments: list[str]) -> Config:
        own = [f"data.split={self.split}", f"text.embedder={self.embedder}"]
        return Config.preset_config(preset).with_overrides([*own, *assignments])

    @functools.cached_property
    def sequences(self) -> Sequences:
        return load_sequences(self.shop, self.config("small", []).data)

    @functools.cached_property
    def _tokenizer(self) -> Tokenizer:
        # the small preset's vectors; the codes of this fit are not used
        quick = ["alignment.epochs=2"] if self.quick else []
        config = self.config("small", ["quantizer.codebook_sizes=[2]", *quick])
        return Tokenizer.fit(self.shop.items(), self.sequences, config)

    def vectors(self, aligned: bool) -> np.ndarray:
        return self._tokenizer.aligned if aligned else self._tokenizer.content

    @functools.cached_property
    def prior(self) -> np.ndarray:
        trained = (self.sequences.stage == TRAIN) & self.sequences.target
        return np.bincount(self.sequences.item[trained], minlength=self.sequences.n_items).astype(np.float32)


def name_items(world: World, assignments: list[str], aligned: bool, seed: int) -> dict[str, Any]:
    """One quantiser on one catalogue: the report of its codes, per collision policy."""
    x = world.vectors(aligned)
    config = world.config("small", [f"quantizer.{a}" for a in assignments]).quantizer
    quantizer = make_quantizer(config, len(x))
    start = time.process_time()
    codes = quantizer.fit(x, np.random.default_rng(seed))
    seconds = time.process_time() - start
    sizes = quantizer.codebook_sizes
    errors = reconstruction_errors(quantizer, x, codes)
    given = {"list": (codes, sizes), "dedup": dedup_codes(codes, sizes, world.prior)}
    out: dict[str, Any] = {"reconstruction_by_level": errors, "n": len(x)}
    for policy in POLICIES:
        report = usage_report(SemanticIds(*given[policy], world.prior))
        full = np.log(report["codebook_sizes"])
        out[policy] = {
            "reconstruction": errors[-1],
            "icr": report["icr"],
            "largest_bucket": report["largest_bucket"],
            "cur_by_level": report["cur"],
            "cur_total": report["cur_total"],
            "entropy_share": float(np.mean(report["entropy_nats"] / full)),
            "entropy_nats": report["entropy_nats"],
            "codebook_sizes": report["codebook_sizes"],
            "cpu_seconds": seconds,
        }
    return out


def train_both(world: World, assignments: list[str], seed: int) -> dict[str, Any]:
    """The tiny preset trained on both policies; recall@10 of each and the paired difference, dedup minus list."""
    lists: dict[tuple[str, str], np.ndarray] = {}
    out: dict[str, Any] = {}
    budget = (
        ["training.max_epochs=1", "training.min_steps=30"]
        if world.quick
        else ["training.max_epochs=6", "training.batch_tokens=1024"]
    )
    cases = world.sequences.cases(TEST, max_per_user=1, max_users=100 if world.quick else 4000, seed=0)
    for policy in POLICIES:
        config = world.config(
            "tiny",
            [
                f"seed={seed}",
                "decoding.beam=64",
                f"quantizer.collision={policy}",
                *budget,
                *(f"quantizer.{a}" for a in assignments),
            ],
        )
        start = time.process_time()
        folder = world.folder.parent / f"model-{world.name}-{policy}"
        train(world.shop.path, folder, config, overwrite=True)
        model = Rankloom.from_pretrained(folder)
        out[policy] = {
            "cpu_seconds": time.process_time() - start,
            "icr": model.tokenizer.report()["shared_sids"]["icr"],
        }
        for select in (False, True):
            system = RankloomSystem(model, world.shop, select=select)
            lists[policy, system.name] = system.rank(world.sequences, cases, 10, mask_seen=True)
            figures = gains(target_rank(lists[policy, system.name], cases.target), 10, "recall")
            out[policy][system.name] = float(figures.mean())
    for name in ("rankloom", "rankloom-generator"):
        out[name] = difference(lists["dedup", name], lists["list", name], cases)
    out["n"] = len(cases)
    return out


def difference(first: np.ndarray, second: np.ndarray, cases: Cases) -> dict[str, float]:
    value, low, high = paired_difference(first, second, cases, metric="recall", k=10)
    return {"value": value, "low": low, "high": high}


def main() -> int:
    parser = argument_parser(__doc__, seeds=(0,))
    parser.add_argument("--embedder", default="hashed", help="text.embedder of the item vectors")
    bench = Benchmark.from_args("tokenizer", parser=parser, sources=SOURCES)
    embedder = bench.args.embedder
    names = ["bazaar"] if bench.quick else ["beauty", "bazaar"]
    worlds = [World(name, bench.store.folder, embedder, quick=bench.quick) for name in names]
    wide: list[dict[str, Any]] = []
    reports: dict[tuple[str, bool, str], dict[str, Any]] = {}
    for world in worlds:
        for aligned in (True, False):
            for variant, assignments in VARIANTS.items():
                seed = bench.seeds[0]
                cell = bench.cell(
                    {"what": "names", "shop": world.name, "text": embedder, "aligned": aligned, "variant": variant, "seed": seed},
                    lambda w=world, a=assignments, al=aligned, s=seed: name_items(w, a, al, s),
                )  # fmt: skip
                reports[world.name, aligned, variant] = cell
                for policy in POLICIES:
                    own = cell[policy]
                    for metric in (
                        "reconstruction",
                        "cur_total",
                        "entropy_share",
                        "icr",
                        "largest_bucket",
                        "cpu_seconds",
                    ):
                        bench.row(system=variant, variant=policy, metric=metric, value=own[metric], n=cell["n"],
                                  shop=world.name, aligned=aligned, codebook_sizes="x".join(map(str, own["codebook_sizes"])))  # fmt: skip
                    for level, (cur, entropy) in enumerate(zip(own["cur_by_level"], own["entropy_nats"], strict=True)):
                        for metric, value in (("cur", cur), ("entropy_nats", entropy)):
                            bench.row(system=variant, variant=policy, metric=metric, k=level + 1, value=value, n=cell["n"],
                                      shop=world.name, aligned=aligned)  # fmt: skip
                wide.append(_line(world.name, aligned, variant, cell))
    Console(highlight=False, width=170).print(table("semantic IDs by quantiser", wide))
    trained: list[dict[str, Any]] = []
    for world in worlds[:1]:
        for variant in TRAINED[: 1 if bench.quick else None]:
            for seed in bench.seeds:
                cell = bench.cell(
                    {"what": "policies", "shop": world.name, "text": embedder, "variant": variant, "seed": seed},
                    lambda w=world, v=variant, s=seed: train_both(w, VARIANTS[v], s),
                )
                line: dict[str, Any] = {
                    "shop": world.name,
                    "quantiser": variant,
                    "seed": seed,
                    "icr": cell["list"]["icr"],
                }
                for system, short in (("rankloom-generator", "generator"), ("rankloom", "selected")):
                    for policy in POLICIES:
                        bench.row(system=system, variant=f"{variant}, {policy}", metric="recall", k=10, masked=True,
                                  value=cell[policy][system], n=cell["n"], shop=world.name, seed=seed)  # fmt: skip
                        line[f"{short}, {policy}"] = cell[policy][system]
                    own = cell[system]
                    bench.row(system=system, variant=f"{variant}, dedup minus list", metric="recall", k=10, masked=True,
                              value=own["value"], low=own["low"], high=own["high"], n=cell["n"], shop=world.name, seed=seed)  # fmt: skip
                    line[f"{short}, dedup - list"] = f"{own['value']:+.4f} ({own['low']:+.4f} .. {own['high']:+.4f})"
                trained.append(line)
    Console(highlight=False, width=170).print(table("recall@10 by collision policy, tiny preset", trained))
    _check(bench, reports, [world.name for world in worlds])
    return bench.finish(show_rows=False)


def _line(shop: str, aligned: bool, variant: str, cell: dict[str, Any]) -> dict[str, Any]:
    own, dedup = cell["list"], cell["dedup"]
    return {
        "shop": shop,
        "vectors": "aligned" if aligned else "content",
        "quantiser": variant,
        "codes": "x".join(map(str, own["codebook_sizes"])),
        "lost": round(own["reconstruction"], 4),
        "CUR": " ".join(f"{share:.2f}" for share in own["cur_by_level"]),
        "CUR total": own["cur_total"],
        "entropy/ln K": round(own["entropy_share"], 4),
        "ICR": round(own["icr"], 4),
        "largest": own["largest_bucket"],
        "dedup codes": dedup["codebook_sizes"][-1],
        "dedup ICR": dedup["icr"],
        "CPU s": round(own["cpu_seconds"], 1),
    }


def _check(bench: Benchmark, reports: dict[tuple[str, bool, str], dict[str, Any]], shops: list[str]) -> None:
    bench.check(
        "lowest ICR after the dedup code",
        min(cell["dedup"]["icr"] for cell in reports.values()),
        at_least=1.0,
    )
    if bench.quick:
        return
    for shop in shops:

        def figure(variant: str, metric: str, shop: str = shop) -> float:
            return float(reports[shop, True, variant]["list"][metric])

        bench.check(
            f"{shop}: reconstruction lost by RQ-VAE minus RQ-KMeans (OneRec TR: RQ-KMeans keeps more)",
            figure("rq-vae", "reconstruction") - figure("rq-kmeans", "reconstruction"),
            at_least=0,
        )
        bench.check(
            f"{shop}: collisions of RQ-OPQ over those of RQ (OneSearch: 8 of 32 left)",
            (1 - figure("rq-kmeans + opq", "icr")) / (1 - figure("rq-kmeans", "icr")),
            at_most=0.5,
        )
        if shop == "beauty":
            # on the bazaar, whose titles come from few words, a learned level has too little to learn from
            bench.check(
                f"{shop}: collisions of two levels and FSQ over those of three levels (OneMall: 11 of 36 left)",
                (1 - figure("rq-kmeans + fsq", "icr")) / (1 - figure("rq-kmeans", "icr")),
                at_most=0.5,
            )
        bench.check(
            f"{shop}: ICR with the last level balanced minus plain (OneSearch)",
            figure("rq-kmeans, last balanced", "icr") - figure("rq-kmeans", "icr"),
            at_least=0,
        )


if __name__ == "__main__":
    raise SystemExit(main())
