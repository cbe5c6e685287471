"""How do all controllers do on recorded market days, at all budgets, and what shakes them?

On recorded days (`--traces DIR`; the public AuctionNet simulator's days by default) every controller plays every seat:
constants, AuctionNet's stock PID, PID, min-pacing, OnlineLP, MPC and the trained bidders of `--bidders DIR`, beside the best
constant in hindsight and the knapsack oracle. Trained bidders that are missing are trained first on the training periods of the log
(`--train KIND ...`; minutes each). Then each at 100% budget under: rivals' bids x1.1, CPA targets x0.8, a traffic spike,
predictions 20% too high and too low; and in a live simulated market in which rivals have 1.1 times their budgets.
Paired bootstrap over (day, seat) against the best of MPC and DT with score. Nothing was tuned on these days.

    python benchmarks/bidding.py --traces DIR --json OUT [--bidders DIR] [--train gave cbd ...] [--report PAGE.html] [--quick]
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from _common import Benchmark, argument_parser, data_folder

from rankloom.bidding.bounds import best_constant, knapsack_oracle
from rankloom.bidding.controllers import CONTROLLERS
from rankloom.bidding.day import play_day
from rankloom.bidding.evaluation import BOUNDS, budget_name, find_controller, rows_of
from rankloom.bidding.market import MarketSettings, simulate
from rankloom.bidding.protocol import N_TICKS
from rankloom.bidding.replay import ReplayMarket
from rankloom.bidding.report import BUDGET_RATIOS, page
from rankloom.bidding.score import Outcome, concatenate, paired_bootstrap
from rankloom.bidding.traces import MarketDay, load_trace
from rankloom.errors import RankloomError

SPIKE = np.ones(N_TICKS)
SPIKE[20:24] = 2.0
SHAKES: dict[str, dict[str, Any]] = {
    "none": {},
    "rivals' bids x1.1": {"rival_bid_factor": 1.1},
    "CPA target x0.8": {"cpa_ratio": 0.8},
    "traffic x2 for two hours": {"volume_factor_T": SPIKE},
    "predictions 20% too high": {"p_bias": 1.2},
    "predictions 20% too low": {"p_bias": 0.8},
}
PID_FLOOR, MPC_FLOOR, GENERATIVE_FLOOR = 24.6, 26.0, 27.0
GENERATIVE = ("gave", "cbd")
Cell = dict[str, list[float]]


def main() -> int:
    parser = argument_parser(__doc__)
    parser.add_argument("--traces", type=Path, help="folder of recorded days; the public ones by default")
    parser.add_argument(
        "--bidders", type=Path, default=Path("runs/bidders"), help="folder of trained bidders, one folder each"
    )
    parser.add_argument(
        "--train", nargs="*", default=[], metavar="KIND", help="train these kinds where they are missing"
    )
    parser.add_argument("--trajectories", type=Path, help="log to train on; the public one by default")
    parser.add_argument("--report", type=Path, help="write the HTML page here")
    bench = Benchmark.from_args("bidding", parser=parser, sources=("rankloom/bidding", "benchmarks/bidding.py"))
    args = bench.args
    traces = args.traces or data_folder("bidding")
    paths = sorted(traces.glob("*_trace.npz"))
    if not paths:
        raise SystemExit(f"no recorded days (*_trace.npz) in {traces}\n  what to do: pass --traces DIR")
    train_missing(args.train, args.bidders, bench, args.trajectories)
    names = list(CONTROLLERS)
    names += [str(each) for each in sorted(args.bidders.glob("*")) if (each / "bidder.json").exists()]
    ratios = (1.0,) if bench.quick else BUDGET_RATIOS
    if bench.quick:
        paths, names = paths[:1], [name for name in names if name != "mpc"] + ["mpc"]
    days = {path: load_trace(path) for path in paths}
    labels = {name: find_controller(name).name for name in names}

    def played(name: str, path: Path, ratio: float, shake: str = "none") -> Outcome:
        key = {"name": labels[name], "day": path.name, "budget": ratio, "shake": shake, "bidder": stamp(name)}
        return outcome(bench.cell(key, partial(play, name, days[path], ratio, shake)))

    together: dict[tuple[str, float], Outcome] = {}
    for ratio in ratios:
        for name in names:
            outcomes = [played(name, path, ratio) for path in paths]
            together[name, ratio] = concatenate(outcomes)
            for row in rows_of(labels[name], budget_name(ratio), outcomes, [day.name for day in days.values()]):
                bench.row(**row)
        bounds = [
            [
                outcome(
                    bench.cell(
                        {"bound": bound, "day": path.name, "budget": ratio}, partial(bounded, bound, days[path], ratio)
                    )
                )
                for path in paths
            ]
            for bound in (BOUNDS[:1] if bench.quick else BOUNDS)
        ]
        for bound, outcomes in zip(BOUNDS, bounds, strict=False):
            for row in rows_of(bound, budget_name(ratio), outcomes, [day.name for day in days.values()]):
                bench.row(**row)
    shaken(bench, names, labels, paths, played)
    if not bench.quick:
        live(bench, names, labels)
    checks(bench, names, labels, together, ratios)
    if args.report:
        args.report.write_text(page([row for row in bench.rows if "market" in row]), encoding="utf-8")
    return bench.finish()


def stamp(name: str) -> str:
    """What a trained bidder is: its description's hash, so that a new one is measured anew."""
    file = Path(name) / "bidder.json"
    if not file.exists():
        return ""
    from rankloom.files import sha256_file

    weights = Path(name) / "model.safetensors"
    return sha256_file(file)[:12] + (sha256_file(weights)[:12] if weights.exists() else "")


def train_missing(kinds: Sequence[str], folder: Path, bench: Benchmark, log: Path | None) -> None:
    """Trains on one experience: the market, the expert and the perturbed days are the same for all kinds."""
    missing = [kind for kind in kinds if not (folder / kind / "bidder.json").exists()]
    if not missing:
        return
    from _bidding import Bench

    from rankloom.bidding.bidders import save_bidder
    from rankloom.bidding.training import learn

    shop = Bench(bench, log)
    experience = shop.experience(seed=0)
    for kind in missing:
        learned, figures = learn(kind, experience, effort=shop.effort, seed=0, say=print, quiet=True)
        save_bidder(folder / kind, learned, training={"log": shop.log.name, **figures})


def play(name: str, day: MarketDay, ratio: float, shake: str) -> Cell:
    result = play_day(ReplayMarket(day, budget_ratio=ratio, **SHAKES[shake]), find_controller(name))
    return cell(result.outcome)


def bounded(bound: str, day: MarketDay, ratio: float) -> Cell:
    market = partial(ReplayMarket, day, budget_ratio=ratio)
    return cell(best_constant(market)[1] if bound == BOUNDS[0] else knapsack_oracle(market()))


def cell(found: Outcome) -> Cell:
    return {name: values.tolist() for name, values in vars(found).items()}


def outcome(kept: Cell) -> Outcome:
    return Outcome(**{name: np.asarray(values) for name, values in kept.items()})


def shaken(bench: Benchmark, names: list[str], labels: dict[str, str], paths: list[Path], played: Any) -> None:
    """Loss of Score of each controller under each shake, on the recorded days."""
    for name in names:
        base = np.concatenate([played(name, path, 1.0).score() for path in paths])
        for shake in SHAKES:
            if shake == "none" or (bench.quick and shake != "CPA target x0.8"):
                continue
            own = concatenate([played(name, path, 1.0, shake) for path in paths])
            _, low, high = paired_bootstrap(own.score(), base, draws=2000)
            change = float(own.score().mean() / max(base.mean(), 1e-9) - 1)
            bench.row(system=labels[name], variant=shake, metric="score", value=float(own.score().mean()), n=len(base))
            bench.row(
                system=labels[name], variant=shake, metric="score_change", value=change,
                low=low / max(float(base.mean()), 1e-9), high=high / max(float(base.mean()), 1e-9), n=len(base),
            )  # fmt: skip
            bench.row(
                system=labels[name], variant=shake, metric="over_cpa", value=float(own.over_cpa.mean()), n=len(base)
            )
            most = float(own.utilisation.max())
            if most > 1 + 1e-9:
                bench.check(f"{labels[name]}, {shake}: share of a budget spent", most, at_most=1.0)


def live(bench: Benchmark, names: list[str], labels: dict[str, str]) -> None:
    """A sixth of the seats of a simulated market, where rivals react; then with rivals' budgets x1.1."""
    seats = np.arange(3, 48, 6)
    for name in names:
        for factor in (1.0, 1.1):
            found = []
            for seed in range(2):
                key = {"live": labels[name], "seed": seed, "rival budgets": factor, "bidder": stamp(name)}
                found.append(outcome(bench.cell(key, partial(play_live, name, seats, seed, factor))))
            own = concatenate(found)
            variant = "live simulated market" if factor == 1 else "live simulated market, rivals' budgets x1.1"
            bench.row(
                system=labels[name],
                variant=variant,
                metric="score",
                value=float(own.score().mean()),
                n=len(own.value_N),
            )


def play_live(name: str, seats: np.ndarray, seed: int, factor: float) -> Cell:
    settings = MarketSettings(opportunities=20_000, budget_factor=factor)
    day = simulate(settings, seed=seed, tested={"tested": find_controller(name)}, tested_seats={"tested": seats})
    return cell(day.results["tested"].outcome)


def checks(
    bench: Benchmark,
    names: list[str],
    labels: dict[str, str],
    together: dict[tuple[str, float], Outcome],
    ratios: Sequence[float],
) -> None:
    def mean(name: str, ratio: float = 1.0) -> float:
        return float(together[name, ratio].score().mean())

    most = max(float(each.utilisation.max()) for each in together.values())
    bench.check("highest share of a budget spent", most, at_most=1.0 + 1e-9)
    bench.check("PID, Score at 100%", mean("pid"), at_least=PID_FLOOR)
    bench.check("MPC, Score at 100%", mean("mpc"), at_least=MPC_FLOOR)
    kind = {name: Path(name).name for name in names}
    by_kind = {own: name for name, own in kind.items()}
    bar = max((each for each in ("mpc", *(n for n in names if kind[n] == "dt-score"))), key=mean)
    for own in GENERATIVE:
        if own not in by_kind:
            continue
        name = by_kind[own]
        bench.check(f"{own}, Score at 100%", mean(name), at_least=GENERATIVE_FLOOR)
        difference, low, high = paired_bootstrap(together[name, 1.0].score(), together[bar, 1.0].score())
        bench.row(
            system=labels[name], variant=f"{budget_name(1.0)}, minus {labels[bar]}", metric="score_difference", value=difference,
            low=low, high=high, n=len(together[name, 1.0].value_N),
        )  # fmt: skip
        bench.check(
            f"{own} minus {labels[bar]}, 95% interval", [round(low, 3), round(high, 3)], target="above 0", ok=low > 0
        )
    generative = [by_kind[own] for own in GENERATIVE if own in by_kind]
    for ratio in ratios:
        if not generative or ratio == 1.0:
            continue
        best = max(names, key=lambda each: mean(each, ratio))
        leader = max(generative, key=lambda each: mean(each, ratio))
        bench.row(
            system=labels[leader], variant=budget_name(ratio), metric="score_minus_best_other",
            value=mean(leader, ratio) - max(mean(each, ratio) for each in names if each not in generative), leads=best in generative,
        )  # fmt: skip


if __name__ == "__main__":
    try:
        sys.exit(main())
    except RankloomError as error:
        sys.exit(str(error))
