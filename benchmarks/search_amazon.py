"""Personalised product search on public sequences: is one generative model above the engines that a shop would run?

    python benchmarks/search_amazon.py --dataset beauty|toys|scientific|FOLDER [--queries FILE] [--seeds N] [--json OUT]
                                       [--engines NAME ...] [--no-model] [--no-hidden] [--no-feed] [--quick]

A person's last item is the answer, the one before it tunes and fits the baselines, the rest trains; 5,000 people are asked, what
they have is not ranked. The queries are **synthetic**: made from the item's own text (`category`: the words of its category path,
shared by hundreds of items; `keyword`: two words of its title), as `rankloom/evaluation/search/queries.py` says. They
measure whether an engine serves a need for this person, not how people type. FILE (Parquet: `user_id`, `query`, `item_id`)
scores queries of your own instead: rows about a person's last item are asked, those about the item before it tune, others go into
the training log. A data set is a name (found through RANKLOOM_DATA) or a folder with `items.parquet` and `sequences.parquet`.

Our model is trained by the command line, `rankloom import sequences` and `rankloom train`, once a seed: one model for feed and
search, on a log in which 45% of the events begin with a category query, 35% with a keyword query, and the rest come from the
feed; held-out items bring no query into the log. It is measured with selection and as generator alone, and once more with twice the beam for
the depth of the list. Beside it, in the same
run: BM25 by its defaults and tuned, both with popularity, MiniLM, their fusion, and the learned mini-cascade. The first seed also trains
without 5% of the items, which are then added to the finished model, and once without any search, for the feed's quality.
Finished cells are kept in runs/benchmarks/search_amazon, shops and models in runs/search_amazon.
"""

from __future__ import annotations

import sys
import time
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
from _common import ROOT, Benchmark, argument_parser, count_seeds, data_folder
from _search import (
    FEED_BEAM,
    Engines,
    Ranked,
    SearchData,
    evaluation_data,
    feed_ranks,
    file_sum,
    hidden_items,
    model_ranks,
    shop_of,
    train,
)  # fmt: skip

from rankloom.evaluation.search.compare import COLD, difference, figures, value
from rankloom.evaluation.search.own import BEAM

NAMED = {"beauty": "amazon2014_beauty", "toys": "amazon2014_toys", "scientific": "amazon2018_scientific"}
# HR@10 and MRR@10 asked of one model with selection, and what the protocol's baselines reach elsewhere (defaults, no tuning)
GOALS = {
    ("beauty", "category"): (0.30, 0.14),
    ("scientific", "category"): (0.62, 0.32),
    ("beauty", "keyword"): (0.783, 0.422),
}
REFERENCE = {
    ("beauty", "category"): {
        "bm25": (0.1232, 0.0390),
        "bm25+popularity": (0.2058, 0.0752),
        "mini-cascade": (0.2616, 0.1211),
    },
    ("beauty", "keyword"): {"bm25": (0.7602, 0.3669), "mini-cascade": (0.7830, 0.4222)},
    ("scientific", "category"): {"bm25": (0.5126, 0.2226), "mini-cascade": (0.5766, 0.2878)},
    ("scientific", "keyword"): {"bm25": (0.7350, 0.3376), "mini-cascade": (0.7736, 0.4021)},
}
WIDE_GOAL, COLD_GOAL = 0.93, 0.18
DEEP = 1_024
"""Beam of a list that is read to its 350th place: some three times as many codes as places."""
NOISE = 0.02
SOURCES = (
    "rankloom/data", "rankloom/decoding", "rankloom/models", "rankloom/training", "rankloom/semantic", "rankloom/pipeline.py",
    "rankloom/choosing.py", "rankloom/choosing_broad.py", "rankloom/building.py", "rankloom/recommender.py", "rankloom/evaluation/search",
    "rankloom/evaluation/rankloom_system.py", "rankloom/evaluation/systems.py", "benchmarks/_search.py",
    "rankloom/catalogue.py", "rankloom/generating.py", "rankloom/ordering.py", "rankloom/replying.py", "rankloom/request_rows.py",
)  # fmt: skip
BASELINE_SOURCES = (
    "rankloom/data/sequences.py", "rankloom/semantic/minilm.py", "rankloom/semantic/hashed.py", "rankloom/evaluation/search",
    "rankloom/evaluation/systems.py", "benchmarks/_search.py",
)  # fmt: skip


def main() -> int:
    parser = argument_parser(__doc__)
    count_seeds(parser)
    parser.add_argument("--dataset", default="beauty", help="beauty, toys, scientific, or a folder")
    parser.add_argument(
        "--queries", type=Path, metavar="FILE", help="Parquet with user_id, query, item_id, instead of made queries"
    )
    parser.add_argument(
        "--engines", nargs="+", metavar="NAME", help="only these of the baselines, such as bm25 mini-cascade"
    )
    parser.add_argument("--no-model", action="store_true", help="the baselines only")
    parser.add_argument(
        "--no-hidden", action="store_true", help="leave out the model that has not seen 5%% of the items"
    )
    parser.add_argument("--no-feed", action="store_true", help="leave out the model without searches")
    parser.add_argument(
        "--folder", type=Path, default=ROOT / "runs" / "search_amazon", help="where shops and models lie"
    )
    bench = Benchmark.from_args("search_amazon", parser=parser, sources=SOURCES)
    args, name = bench.args, bench.args.dataset
    source = data_folder(NAMED[name]) if name in NAMED else Path(name)
    home = args.folder / f"{Path(name).name}{'-given' if args.queries else ''}{'-quick' if bench.quick else ''}"

    @cache
    def data() -> SearchData:
        return evaluation_data(source, home, args.queries, quick=bench.quick)

    kinds = ("given",) if args.queries else ("category", "keyword")
    key = {"dataset": name, "queries": _stamp(args.queries)}
    found: dict[tuple[str, str, str], list[Ranked]] = {}

    def add(kind: str, system: str, variant: str, ranked: Ranked) -> None:
        found.setdefault((kind, system, variant), []).append(ranked)

    engines = Engines(data)
    for kind in kinds:
        for system, variant, drawn in engines.names(quick=bench.quick):
            if args.engines and system not in args.engines:
                continue
            for seed in bench.seeds if drawn else bench.seeds[:1]:
                cell = bench.cell(
                    {**key, "kind": kind, "system": system, "variant": variant, "seed": seed},
                    partial(engines.ranks, kind, system, variant, seed), sources=BASELINE_SOURCES,
                )  # fmt: skip
                add(kind, system, variant, cell)
                print(_line(kind, system, variant, cell), flush=True)
    hidden: dict[str, dict[str, Any]] = {}
    feed: dict[str, Any] | None = None
    if not args.no_model:
        for number, seed in enumerate(bench.seeds):
            took = bench.cell(
                {**key, "part": "train", "seed": seed}, partial(_train, data, home, "", seed, bench.quick)
            )
            print(f"{name}, seed {seed}: {took}", flush=True)
            for kind in kinds:
                lists = [("rankloom", "one model", True, BEAM), ("rankloom-generator", "one model", False, BEAM)]
                if kind == "category" and not bench.quick:
                    lists.append(("rankloom-deep", f"beam {DEEP:,}", True, DEEP))
                for system, variant, select, beam in lists:
                    own = {} if beam == BEAM else {"beam": beam}
                    cell = bench.cell(
                        {**key, "kind": kind, "system": system, "seed": seed, **own},
                        partial(model_ranks, data, home / f"model-{seed}", kind, select, bench.quick, beam),
                    )
                    add(kind, system, variant, cell)
                    print(_line(kind, system, variant, cell), flush=True)
            if number == 0 and not args.no_hidden:
                bench.cell(
                    {**key, "part": "train hidden", "seed": seed},
                    partial(_train, data, home, "-hidden", seed, bench.quick),
                )
                for kind in kinds:
                    hidden[kind] = bench.cell(
                        {**key, "part": "hidden", "kind": kind, "seed": seed},
                        partial(_hidden, data, home, kind, seed, bench.quick),
                    )
            if number == 0 and not args.no_feed:
                bench.cell(
                    {**key, "part": "train feed", "seed": seed}, partial(_train, data, home, "-feed", seed, bench.quick)
                )
                feed = bench.cell({**key, "part": "feed", "seed": seed}, partial(_feed, data, home, seed))
    _rows(bench, found)
    _summary(found)
    for kind in kinds:
        _checks(bench, name, kind, found)
    _extra_checks(bench, name, hidden, feed)
    return bench.finish(show_rows=False)


def _stamp(path: Path | None) -> str:
    return "made" if path is None else f"{path.name} {file_sum(path)}"


def _train(data: Any, home: Path, part: str, seed: int, quick: bool) -> dict[str, Any]:
    return train(shop_of(data(), home, part, seed), home / f"model{part}-{seed}", seed, quick=quick)


def _line(kind: str, system: str, variant: str, ranked: Ranked) -> str:
    rank, count = np.asarray(ranked["rank"]), np.asarray(ranked["count"])
    numbers = [value(rank, "hr", k) for k in (1, 10, 50, 350)] + [
        value(rank, "mrr", 10),
        value(rank, "hr", 10, count <= COLD),
    ]
    return (
        f"{kind:<10}{system:<20}{variant:<30}"
        + "".join(f"{number:>9.4f}" for number in numbers)
        + f"{ranked['minutes']:>8.1f} min"
    )


def _summary(found: dict[tuple[str, str, str], list[Ranked]]) -> None:
    heads = ("HR@1", "HR@10", "+-", "HR@50", "HR@350", "MRR@10", "+-", "cold HR@10")
    print(f"\n{'queries':<10}{'system':<20}{'variant':<30}{'seeds':>6}" + "".join(f"{head:>11}" for head in heads))
    for (kind, system, variant), cells in found.items():
        ranks = [np.asarray(cell["rank"]) for cell in cells]
        cold = np.asarray(cells[0]["count"]) <= COLD

        def over(metric: str, k: int, inside: Any = None, own: Any = ranks) -> tuple[float, float]:
            each = [value(rank, metric, k, inside) for rank in own]
            return float(np.mean(each)), float(np.std(each))

        numbers = [
            over("hr", 1)[0], *over("hr", 10), over("hr", 50)[0], over("hr", 350)[0], *over("mrr", 10), over("hr", 10, cold)[0],
        ]  # fmt: skip
        print(f"{kind:<10}{system:<20}{variant:<30}{len(cells):>6}" + "".join(f"{number:>11.4f}" for number in numbers))


def _rows(bench: Benchmark, found: dict[tuple[str, str, str], list[Ranked]]) -> None:
    for (kind, system, variant), cells in found.items():
        for cell in cells:
            for row in figures(np.asarray(cell["rank"]), np.asarray(cell["count"]), np.asarray(cell["user"])):
                bench.row(
                    system=system, variant=variant, masked=True, queries=kind, synthetic=kind != "given", seed=cell["seed"],
                    minutes=cell["minutes"], chosen=cell["chosen"], **row,
                )  # fmt: skip


def _checks(bench: Benchmark, name: str, kind: str, found: dict[tuple[str, str, str], list[Ranked]]) -> None:
    """The figures asked of this set and kind of query, and whether each engine is beaten on the same cases."""
    if bench.quick:
        return
    title = f"{name}, {kind} queries"
    for system, wanted in REFERENCE.get((name, kind), {}).items():
        variant = "logistic" if system == "mini-cascade" else "default"
        if (kind, system, variant) not in found:
            continue
        rank = np.asarray(found[kind, system, variant][0]["rank"])
        for metric, expected in zip(("hr", "mrr"), wanted, strict=True):
            own = value(rank, metric, 10)
            bench.check(
                f"{title}: {system} ({variant}) {metric}@10 as in the reference", round(own, 4),
                target=f"within {NOISE} of {expected}", ok=abs(own - expected) <= NOISE,
            )  # fmt: skip
    if (kind, "rankloom", "one model") not in found:
        return
    cells = {key[1:]: [np.asarray(cell["rank"]) for cell in own] for key, own in found.items() if key[0] == kind}
    first = found[kind, "rankloom", "one model"][0]
    user, cold = np.asarray(first["user"]), np.asarray(first["count"]) <= COLD
    ours, generator = cells["rankloom", "one model"], cells["rankloom-generator", "one model"]

    def mean(ranks: list[Any], metric: str, k: int, inside: Any = None) -> float:
        return round(float(np.mean([value(rank, metric, k, inside) for rank in ranks])), 4)

    seeds = f"mean of {len(ours)} seeds"
    for metric, goal in zip(("hr", "mrr"), GOALS.get((name, kind), ()), strict=False):
        bench.check(f"{title}: {metric}@10, {seeds}", mean(ours, metric, 10), at_least=goal)
    if (name, kind) == ("beauty", "category"):
        deep = cells["rankloom-deep", f"beam {DEEP:,}"]
        bench.check(f"{title}: hr@350, beam {DEEP:,} ({BEAM}: {mean(ours, 'hr', 350)}), {seeds}", mean(deep, "hr", 350), at_least=WIDE_GOAL)
        bench.check(
            f"{title}: hr@10 of cold targets (n {int(cold.sum())}), {seeds}",
            mean(ours, "hr", 10, cold),
            at_least=COLD_GOAL,
        )
    for (system, variant), theirs in cells.items():
        if system.startswith("rankloom"):
            continue
        pairs = [("rankloom", ours)] + ([("rankloom-generator", generator)] if system == "bm25+popularity" else [])
        for label, own in pairs:
            for metric in ("hr", "mrr"):
                middle, low, high = difference(own, theirs, user, metric, 10)
                bench.check(
                    f"{title}: {label} over {system} ({variant}), {metric}@10, paired", f"{middle:+.4f} ({low:+.4f} .. {high:+.4f})",
                    target="interval above 0", ok=bool(low > 0),
                )  # fmt: skip


def _extra_checks(bench: Benchmark, name: str, hidden: dict[str, dict[str, Any]], feed: dict[str, Any] | None) -> None:
    for kind, cell in hidden.items():
        for part in ("hidden", "warm"):
            bench.row(
                system="rankloom", variant="5% of the items added after training", metric="hr", k=10, masked=True,
                value=cell[part], n=cell[f"n_{part}"], slice=part, queries=kind,
            )  # fmt: skip
        if not bench.quick:
            bench.check(
                f"{name}, {kind} queries: hr@10 of {cell['n_hidden']} targets added after training, over that of warm targets",
                None if not cell["warm"] else round(cell["hidden"] / cell["warm"], 3), at_least=0.5,
            )  # fmt: skip
    if feed is not None:
        for part in ("shared", "feed only"):
            bench.row(
                system="rankloom",
                variant=part,
                metric="recall",
                k=10,
                masked=True,
                value=feed[part],
                n=feed["n"],
                queries="none",
            )
        if not bench.quick:
            bench.check(
                f"{name}: feed recall@10 of the shared model over that of the feed-only model",
                round(feed["shared"] / feed["feed only"], 4),
                at_least=0.99,
            )


def _hidden(data: Any, home: Path, kind: str, seed: int, quick: bool) -> dict[str, Any]:
    """HR@10 on targets that the model never trained on, and on those with more than three TRAIN events."""
    own = data()
    gone = hidden_items(own)
    ranked = model_ranks(data, home / f"model-hidden-{seed}", kind, True, quick)
    rank, count = np.asarray(ranked["rank"]), np.asarray(ranked["count"])
    new = np.isin(own.cases[kind].cases.target, gone)
    warm = ~new & (count > COLD)
    if not new.any() or not warm.any():
        return {"hidden": float("nan"), "warm": float("nan"), "n_hidden": int(new.sum()), "n_warm": int(warm.sum())}
    return {
        "hidden": value(rank, "hr", 10, new), "warm": value(rank, "hr", 10, warm), "n_hidden": int(new.sum()), "n_warm": int(warm.sum()),
    }  # fmt: skip


def _feed(data: Any, home: Path, seed: int) -> dict[str, Any]:
    """Recall@10 of the last items without any query, of the shared and of the feed-only model."""
    began = time.perf_counter()
    ranks = {
        part: feed_ranks(data, home / f"model{end}-{seed}") for part, end in (("shared", ""), ("feed only", "-feed"))
    }
    out: dict[str, Any] = {part: value(np.asarray(rank), "hr", 10) for part, rank in ranks.items()}
    return {**out, "n": len(ranks["shared"]), "beam": FEED_BEAM, "minutes": (time.perf_counter() - began) / 60}


if __name__ == "__main__":
    sys.exit(main())
