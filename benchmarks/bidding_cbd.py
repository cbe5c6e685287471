"""CBD: are its plans reachable, does the aligner align, can spending be shaped, and what does one pass instead of many cost?

Trains planners on the training periods of the recorded log and scores them in every seat of recorded days:

* **Variants**: CBD as it is shipped (the one-pass student with the gradient aligner), without aligner, the teacher with 1 and
  with 10 denoising steps and with GS-Align (the best aligned of 10 one-step plans), a plain decision diffuser (DiffBid: no completer) with 10.
* **Plan validity**: share of plans, made at several ticks of recorded days, whose remaining budget never rises (by more than 1% of the budget a tick);
  beside it of those that also stay within the budget and whose clock runs, and with a strict tolerance; completer against plain diffuser.
* **Aligner step** lambda: Score and distance of R(plan) from y.
* **Property control**: early spend and unevenness asked low, as they come, and high; what the played days then have, and what it costs.
* **Latency** of one decision for 64 campaigns on one thread: full chain, few steps, student; GAVE beside them.

    python benchmarks/bidding_cbd.py [--json FILE] [--seeds 0 1 2] [--quick]
"""

from __future__ import annotations

import sys
import time
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from _bidding import Bench, mean_of, measured, played, recorded_days, sources
from _common import Benchmark

from rankloom.bidding.bidders import load_bidder
from rankloom.bidding.controllers import controller
from rankloom.bidding.day import DayResult, play_day
from rankloom.bidding.learned.base import LearnedController
from rankloom.bidding.learned.cbd import (
    PLAN,
    PROPERTIES,
    CbdConfig,
    CbdController,
    distil,
    plan_validity,
    train_cbd,
    trajectory_properties,
)
from rankloom.bidding.protocol import N_TICKS, Controller, Decision, Observation
from rankloom.bidding.replay import ReplayMarket
from rankloom.bidding.responses import CurveMarket
from rankloom.bidding.score import paired_bootstrap
from rankloom.bidding.training import choose_level, held_out_results, learn, shaped_days
from rankloom.bidding.trajectories import from_result

LAMBDAS = (0.0, 0.1, 1.0, 10.0, 100.0)
WISH = 1.5
"""How much of a property is asked for, in standard deviations over the days whose spending was shaped on purpose."""
PLAN_TICKS = (0, 8, 16, 24, 32, 40)
TOLERANCE = 0.01
"""A rise of the remaining budget that does not count, as a share of the budget."""


class _Watched:
    """A planner whose plans of some ticks are kept."""

    def __init__(self, planner: CbdController) -> None:
        self.name = planner.name
        self.planner = planner
        self.plans: dict[int, torch.Tensor] = {}

    def start(self, campaigns: Any, seed: int) -> None:
        self.planner.start(campaigns, seed)

    def decide(self, observation: Observation) -> Decision:
        decision = self.planner.decide(observation)
        if observation.tick in PLAN_TICKS and self.planner.last_plan_NTP is not None:
            alive = torch.from_numpy(observation.remaining_N > 0.01 * observation.campaigns.budget_N)
            self.plans[observation.tick] = self.planner.raw(self.planner.last_plan_NTP)[alive]
        return decision


def validity(planner: CbdController, steps: int) -> dict[str, float]:
    """Share of plans whose budget never rises; that also stay within the budget and on the clock, at the default and at a strict
    tolerance. Whose plans they are is played on the same days."""
    planner.cbd = replace(planner.cbd, sampling_steps=min(steps, planner.cbd.diffusion_steps))
    planner.distilled = planner.distilled and steps == 1
    found: dict[str, list[float]] = {"budget never rises": [], "valid": [], "strict": []}
    for day in recorded_days():
        watched = _Watched(planner)
        play_day(ReplayMarket(day), watched)
        for tick, plans in watched.plans.items():
            left_NT = plans[:, tick:, PLAN.index("budget_left")]
            found["budget never rises"] += (left_NT.diff(dim=1) <= TOLERANCE).all(dim=1).float().tolist()
            found["valid"] += plan_validity(plans, tick).float().tolist()
            found["strict"] += plan_validity(plans, tick, tolerance=0.002).float().tolist()
    return {name: float(np.mean(values)) for name, values in found.items()}


def properties_of(results: list[DayResult]) -> dict[str, list[float]]:
    """Per (day, seat)."""
    rows_NC = torch.cat([trajectory_properties(from_result(each, period=0), torch.zeros(each.campaigns.n)) for each in results])
    found: dict[str, list[float]] = {name: rows_NC[:, place].tolist() for place, name in enumerate(PROPERTIES) if name != "return"}
    spend_NT = np.concatenate([each.history.spend_NT for each in results])
    return found | {"roughness": (spend_NT.std(axis=1) / spend_NT.mean(axis=1).clip(1e-9)).tolist()}


def milliseconds(planner: Controller, shop: Bench, ticks: tuple[int, ...] = (0, 12, 24, 36, 46)) -> float:
    """Median of one `decide` for 64 campaigns on one thread, over the day."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        market = CurveMarket(shop.market().curves, np.arange(64) % shop.market().curves.n)
        seen: list[Observation] = []

        class Taker:
            name = "taker"

            def start(self, campaigns: Any, seed: int) -> None:
                planner.start(campaigns, seed)

            def decide(self, observation: Observation) -> Decision:
                begin = time.perf_counter()
                decision = planner.decide(observation)
                spent.append(time.perf_counter() - begin)
                seen.append(observation)
                return decision

        spent: list[float] = []
        play_day(market, Taker())
        return float(np.median(spent)) * 1000
    finally:
        torch.set_num_threads(threads)


def main() -> int:
    bench = Benchmark.from_args("bidding_cbd", __doc__, seeds=(0, 1, 2), sources=sources("cbd", "unet"))
    shop = Bench(bench)
    base = CbdConfig(widths=(8, 8, 8), diffusion_steps=10) if bench.quick else CbdConfig()

    def trained(name: str, seed: int) -> CbdController:
        """A planner from the store; trained where it is missing or its sources changed."""
        folder = bench.store.folder / f"bidder-{name}-{seed}"
        key = {"train": name, "seed": seed}

        def train() -> dict[str, Any]:
            experience = shop.experience(seed=seed)
            days = shaped_days(experience, effort=shop.effort, seed=seed)
            if name == "student":
                made, _log = distil(trained("cbd", seed), days, config=shop.effort.distillation, seed=seed)
            else:
                cbd = base if name == "cbd" else replace(base, completer=False, aligner="none")
                made, _log = train_cbd(days, cbd=cbd, config=shop.effort.learner, seed=seed)
                if experience.market is not None and len(experience.market.held_out_M):
                    choose_level(made, experience.market, levels=shop.effort.levels)
            shop.keep(f"{name}-{seed}", made)
            assert experience.market is not None
            return {"held_out": float(held_out_results(made, experience.market).outcome.score().mean())}

        if not folder.is_dir():
            bench.store.path(key).unlink(missing_ok=True)
        bench.cell(key, train)
        found = load_bidder(folder)
        assert isinstance(found, CbdController)
        return found

    def scored(variant: str, seed: int) -> dict[str, Any]:
        def measure() -> dict[str, Any]:
            kind = "plain" if variant.startswith("DiffBid") else "cbd" if variant.startswith(("teacher", "GS")) else "student"
            planner = trained(kind, seed)
            if variant == "no aligner":
                planner.cbd = replace(planner.cbd, aligner="none")
            if variant == "GS-Align":
                planner.cbd = replace(planner.cbd, aligner="sample")
            if variant.endswith("10 steps"):
                planner.cbd = replace(planner.cbd, sampling_steps=10)
            return measured(played(planner))

        found: dict[str, Any] = bench.cell({"variant": variant, "seed": seed}, measure)
        return found

    systems = {name: [scored(name, seed) for seed in bench.seeds] for name in ("CBD", "no aligner")}
    for name in ("teacher, 1 step", "teacher, 10 steps", "DiffBid, 10 steps"):
        systems[name] = [scored(name, seed) for seed in bench.seeds[:1]]
    systems["GS-Align"] = [scored("GS-Align", seed) for seed in bench.seeds[:1]]
    systems["MPC"] = [bench.cell({"variant": "mpc"}, lambda: measured(played(controller("mpc"))))]

    def dt_score(seed: int) -> dict[str, Any]:
        return measured(played(learn("dt-score", shop.experience(seed=seed, source="log"), effort=shop.effort, seed=seed)[0]))

    systems["DT-score, log"] = [bench.cell({"variant": "dt-score log", "seed": s}, lambda s=s: dt_score(s)) for s in bench.seeds[:1]]
    for name, cells in systems.items():
        scores = mean_of(cells, "score")
        draws = np.random.default_rng(0).integers(0, scores.size, (4000, scores.size))
        low, high = np.quantile(scores[draws].mean(axis=1), [0.025, 0.975])
        bench.row(
            system=name, variant="budget 100%", metric="score", value=float(scores.mean()), low=float(low), high=float(high),
            n=scores.size, seeds=[round(float(np.mean(each["score"])), 2) for each in cells],
        )  # fmt: skip
        for metric in ("over_cpa", "utilisation", "growth"):
            bench.row(system=name, variant="budget 100%", metric=metric, value=float(np.mean([c[metric] for c in cells])), n=scores.size)
    for other in ("DT-score, log", "MPC"):
        mean, low, high = paired_bootstrap(mean_of(systems["CBD"], "score"), mean_of(systems[other], "score"))
        bench.row(system="CBD", variant=f"less {other}", metric="score", value=mean, low=low, high=high, n=96)
        bench.check(f"CBD above {other}: low end of the paired interval", low, at_least=0.0)
    bench.check("CBD: mean Score", float(mean_of(systems["CBD"], "score").mean()), at_least=27.0)

    first = bench.seeds[0]
    valid = {
        name: bench.cell({"validity": name}, lambda kind=kind, steps=steps: validity(trained(kind, first), steps))
        for name, kind, steps in (("CBD", "student", 1), ("CBD, 10 steps", "cbd", 10), ("DiffBid, 10 steps", "plain", 10))
    }
    for name, found in valid.items():
        for metric, value in found.items():
            bench.row(system=name, variant="plans", metric=f"validity ({metric})", value=value)
    rising = "budget never rises"
    bench.check("CBD: plans whose budget never rises", valid["CBD"][rising], at_least=0.98)
    gain = valid["CBD, 10 steps"][rising] - valid["DiffBid, 10 steps"][rising]
    bench.check("the same: completer above a plain diffuser, both sampled in 10 steps", gain, at_least=0.01)

    def aligned(step: float) -> dict[str, float]:
        planner = trained("student", first)
        planner.cbd = replace(planner.cbd, align_step=step)
        distances: list[float] = []
        inner = planner.plan

        def watched(x_NSD: torch.Tensor, day: Any = None) -> Any:
            plan, wish = inner(x_NSD, day)
            present = torch.zeros_like(wish)
            present[:, 0] = 1.0
            distances.extend(planner.misalignment(plan, wish, present, planner.static(x_NSD)).tolist())
            return plan, wish

        planner.plan = watched  # type: ignore[method-assign]
        return {"score": float(np.mean(measured(played(planner))["score"])), "distance": float(np.mean(distances))}

    for step in LAMBDAS if not bench.quick else LAMBDAS[:2]:
        found = bench.cell({"lambda": step}, lambda step=step: aligned(step))
        for metric, value in found.items():
            bench.row(system="CBD", variant=f"lambda {step:g}", metric=metric, value=value)

    def shaped(name: str, wish: float | None) -> dict[str, list[float]]:
        planner = trained("student", first)
        if wish is not None:
            place = PROPERTIES.index(name)
            planner.ask = {name: float(planner.property_mean[place] + wish * planner.property_std[place])}
        results = played(planner)
        return properties_of(results) | {"score": measured(results)["score"]}

    for name in ("early_spend", "unevenness"):
        got = {
            label: bench.cell({"ask": name, "wish": wish}, lambda n=name, w=wish: shaped(n, w))
            for label, wish in (("low", -WISH), ("nothing", None), ("high", WISH))
        }
        for label, found in got.items():
            for metric in (name, "roughness", "score"):
                bench.row(system="CBD", variant=f"{name} asked: {label}", metric=metric, value=float(np.mean(found[metric])), n=len(found[metric]))
        for below, above in (("low", "nothing"), ("nothing", "high")):
            mean, low, high = paired_bootstrap(np.array(got[above][name]), np.array(got[below][name]))
            bench.row(system="CBD", variant=f"{name} asked: {above} less {below}", metric=name, value=mean, low=low, high=high, n=96)
            bench.check(f"{name} asked {above} against {below}: low end of the paired interval", low, at_least=0.0)

    def latency() -> dict[str, float]:
        teacher, student = trained("cbd", first), trained("student", first)
        found = {"student": milliseconds(student, shop)}
        for steps in (10, 100):
            teacher.cbd = replace(teacher.cbd, sampling_steps=min(steps, teacher.cbd.diffusion_steps))
            found[f"{steps} steps"] = milliseconds(teacher, shop)
        gave, _figures = learn("gave", shop.experience(seed=first), effort=replace(shop.effort, learner=_one_step()), seed=first)
        assert isinstance(gave, LearnedController)
        found["GAVE"] = milliseconds(gave, shop)
        return found

    times = bench.cell({"latency": N_TICKS}, latency)
    for name, value in times.items():
        bench.row(system=name, variant="64 campaigns, one thread", metric="ms", value=value)
    bench.check("CBD few-step: ms a decision for 64 campaigns", times["student"], at_most=30.0)
    bench.check("GAVE: ms a decision for 64 campaigns", times["GAVE"], at_most=10.0)
    return bench.finish()


def _one_step() -> Any:
    from rankloom.bidding.learned.fitting import FitConfig

    return FitConfig(steps=1, batch=4)


if __name__ == "__main__":
    sys.exit(main())
