"""GAVE: does each of its pieces pay, does it hold together without supervision, and does the score that it is trained for win?

Trains on the training periods of the recorded log (rebuilt as response curves, with the perturbed expert's population), scores in every
seat of recorded days that nothing was trained or chosen on. Four questions:

* **Ablations** in the paper's order: DT, DT-score (GAVE-VA), GAVE-V (exploration without value function), GAVE, all on the same population with
  the same inputs (MPC's outlook); beside them DT-score as published (without the outlook) on that population and on the logged days alone,
  MPC, and the pathwise expert behind the population. The same four on days of a bidder that leaves room (MPC at 85% of its multiplier, MPC's
  outlook as input and anchor): next to the expert there is little to explore.
* **Collapse**: growth of the multiplier over the day, share of seats over CPA, the weight w_t and beta_t through training, for every seed; and the
  same for the losses as the paper has them.
* **Objective alignment**: trained for gamma 0, 2, 5, scored by gamma 0, 2, 5; the diagonal should win each column.
* Paired bootstrap over (day, seat) of GAVE against DT-score and MPC, seeds averaged per seat.

    python benchmarks/bidding_gave.py [--json FILE] [--seeds 0 1 2 3 4] [--quick]
"""

from __future__ import annotations

import sys
from itertools import pairwise
from typing import Any

import numpy as np
from _bidding import Bench, mean_of, measured, played, sources
from _common import Benchmark

from rankloom.bidding.controllers import controller
from rankloom.bidding.learned.gave import GaveConfig, paper_form, train_gave
from rankloom.bidding.score import DEFAULT_GAMMA, paired_bootstrap
from rankloom.bidding.training import choose_level, held_out_results, learn

GAMMAS = (0.0, 2.0, 5.0)
VARIANTS: dict[str, tuple[str, GaveConfig | None]] = {
    "DT with outlook": ("dt", None),
    "DT-score with outlook": ("dt-score", None),
    "DT-score": ("dt-score", None),
    "GAVE-V": ("gave", GaveConfig(value_function=False)),
    "GAVE": ("gave", GaveConfig()),
}


def train_and_measure(
    bench: Bench, kind: str, gave: GaveConfig | None, *, seed: int, gamma: float, source: str, outlook: bool
) -> dict[str, Any]:
    """One training and its scores on recorded days."""
    experience = bench.low_experience(seed=seed) if source == "low" else bench.experience(seed=seed, gamma=gamma, source=source)
    if gave is None:
        model, figures = learn(kind, experience, effort=bench.effort, seed=seed, outlook=outlook, quiet=True)
        curve: list[dict[str, float]] = []
    else:
        model, curve = train_gave(
            experience.data, gave=gave, config=bench.effort.learner, seed=seed, options=bench.effort.options, quiet=True
        )
        figures = {}
        if experience.market is not None:
            choose_level(model, experience.market, levels=bench.effort.levels, gamma=gamma)
            outcome = held_out_results(model, experience.market).outcome
            figures["held_out_score"] = float(outcome.score(gamma).mean())
        if gave == GaveConfig() and gamma == DEFAULT_GAMMA and source == "rebuilt":
            bench.keep(f"gave-{seed}", model)
    told = {key: [round(each[key], 4) for each in curve] for key in ("step", "weight", "beta", "beta_at_bound") if curve}
    return measured(played(model)) | {"held_out": figures.get("held_out_score"), "curve": told, "level": getattr(model, "level", None)}


def main() -> int:
    bench = Benchmark.from_args("bidding_gave", __doc__, seeds=(0, 1, 2, 3, 4), sources=sources("gave"))
    shop = Bench(bench)

    def cell(name: str, kind: str, gave: GaveConfig | None, seed: int, gamma: float = 2.0, source: str = "rebuilt") -> dict[str, Any]:
        found: dict[str, Any] = bench.cell(
            {"system": name, "gamma": gamma, "source": source, "seed": seed},
            lambda: train_and_measure(
                shop, kind, gave, seed=seed, gamma=gamma, source=source, outlook=name.endswith("with outlook")
            ),
        )
        return found

    # what the checks need most is measured first, so that a stopped run has it
    trained = {gamma: cell("GAVE", "gave", GaveConfig(), bench.seeds[0], gamma=gamma) for gamma in GAMMAS}
    systems: dict[str, list[dict[str, Any]]] = {}
    for name in ("GAVE", "DT-score", "DT-score with outlook", "GAVE-V", "DT with outlook"):
        kind, gave = VARIANTS[name]
        few = bench.seeds if name == "GAVE" else bench.seeds[:2]
        systems[name] = [cell(name, kind, gave, seed) for seed in few]
    systems["DT-score, log"] = [cell("DT-score", "dt-score", None, seed, source="log") for seed in bench.seeds[:1]]
    systems["GAVE, paper's losses"] = [cell("GAVE, paper", "gave", paper_form(), seed) for seed in bench.seeds[:1]]
    systems["GAVE, paper's losses, log"] = [
        cell("GAVE, paper", "gave", paper_form(), seed, source="log") for seed in bench.seeds[:1]
    ]
    ablations = ["DT with outlook", "DT-score with outlook", "GAVE-V", "GAVE"]
    for name in ablations:
        kind, gave = VARIANTS[name]
        systems[f"{name}, low bidder"] = [cell(name, kind, gave, seed, source="low") for seed in bench.seeds[:1]]
    systems["low bidder"] = [bench.cell({"system": "low bidder"}, lambda: measured(played(shop.low_bidder())))]
    systems["MPC"] = [bench.cell({"system": "mpc"}, lambda: measured(played(controller("mpc"))))]
    systems["pathwise"] = [bench.cell({"system": "pathwise"}, lambda: measured(played(shop.expert())))]
    for name, cells in systems.items():
        scores = mean_of(cells, "score")
        spread = [float(np.mean(each["score"])) for each in cells]
        draws = np.random.default_rng(0).integers(0, scores.size, (4000, scores.size))
        low, high = np.quantile(scores[draws].mean(axis=1), [0.025, 0.975])
        bench.row(
            system=name, variant="budget 100%", metric="score", value=float(scores.mean()), low=float(low), high=float(high),
            n=scores.size, seeds=[round(each, 2) for each in spread],
        )  # fmt: skip
        for metric in ("over_cpa", "utilisation", "growth", "largest_growth"):
            value = float(np.mean([each[metric] for each in cells]))
            bench.row(system=name, variant="budget 100%", metric=metric, value=value, n=scores.size)
        if cells[0].get("curve", {}).get("weight"):
            for metric in ("weight", "beta"):
                bench.row(system=name, variant="end of training", metric=metric, value=float(np.mean([c["curve"][metric][-1] for c in cells])),
                          n=len(cells), curve=[round(v, 3) for v in np.mean([c["curve"][metric] for c in cells], axis=0).tolist()])  # fmt: skip
    for other in ("DT-score", "DT-score with outlook", "DT-score, log", "MPC"):
        mean, low, high = paired_bootstrap(mean_of(systems["GAVE"], "score"), mean_of(systems[other], "score"))
        bench.row(system="GAVE", variant=f"less {other}", metric="score", value=mean, low=low, high=high, n=96)
        if other != "DT-score with outlook":
            bench.check(f"GAVE above {other}: low end of the paired interval", low, at_least=0.0)

    keys = {0.0: "score_gamma0", 2.0: "score", 5.0: "score_gamma5"}
    for own in GAMMAS:
        for judge in GAMMAS:
            bench.row(system="GAVE", variant=f"trained for gamma {own:g}", metric=keys[judge], value=float(np.mean(trained[own][keys[judge]])), n=96)
    for judge in GAMMAS:
        column = {own: float(np.mean(trained[own][keys[judge]])) for own in GAMMAS}
        bench.check(f"scored with gamma {judge:g}: best trained for", max(column, key=lambda own: column[own]), target=judge)

    def score_of(name: str) -> float:
        return float(mean_of(systems[name], "score").mean())

    for where in ("", ", low bidder"):
        order = [f"{name}{where}" for name in ablations]
        told = " < ".join(f"{name.removesuffix(where)} {score_of(name):.2f}" for name in order)
        rising = all(score_of(a) < score_of(b) for a, b in pairwise(order))
        bench.check(f"ablations in the paper's order{where}", told, target="rising", ok=rising)
    bench.check("GAVE: mean Score", score_of("GAVE"), at_least=27.0)
    bench.check("GAVE: least Score of a seed", min(float(np.mean(c["score"])) for c in systems["GAVE"]), at_least=25.0)
    bench.check("GAVE: largest median growth of the multiplier over the day", max(c["growth"] for c in systems["GAVE"]), at_most=3.0)
    over = float(np.mean([c["over_cpa"] for c in systems["GAVE"]]))
    bench.check("GAVE: share over CPA no higher than DT-score's", over, at_most=float(np.mean([c["over_cpa"] for c in systems["DT-score"]])))
    weights = [c["curve"]["weight"][-1] for c in systems["GAVE"]]
    bench.check("GAVE: w_t at the end of training, least seed", min(weights), at_least=0.5)
    return bench.finish()


if __name__ == "__main__":
    sys.exit(main())
