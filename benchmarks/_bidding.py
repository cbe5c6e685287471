"""What the bidding benchmarks share: the log, its rebuilt market and expert (made once, kept), recorded days, scores per seat."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from _common import ROOT, Benchmark, data_folder, fingerprint
from numpy.typing import NDArray

from rankloom.bidding.bidders import load_bidder, save_bidder
from rankloom.bidding.day import DayResult
from rankloom.bidding.learned.pathwise import PathwiseController
from rankloom.bidding.population import PopulationConfig
from rankloom.bidding.protocol import Controller, Decision, Observation
from rankloom.bidding.replay import replay
from rankloom.bidding.score import DEFAULT_GAMMA
from rankloom.bidding.surrogate import read_log
from rankloom.bidding.traces import MarketDay, load_traces
from rankloom.bidding.training import (
    Effort,
    Experience,
    Market,
    gather_experience,
    populate,
    rebuild_market,
    train_expert,
)
from rankloom.bidding.trajectories import read_trajectories
from rankloom.files import atomic_folder, sha256_file
from rankloom.training.processor import keep_freed_memory

_SHARED = (
    "state", "trajectories", "surrogate", "replay", "day", "score", "responses", "population", "curves", "controllers/mpc",
    "learned/base", "learned/outlook", "learned/fitting", "learned/pathwise", "learned/transformer", "learned/decision_transformer",
)  # fmt: skip


LOW = 0.85
"""Of MPC's multiplier: what the bidder bids whose days the ablations of GAVE learn from beside the expert's."""


def sources(*own: str) -> tuple[str, ...]:
    """What a benchmark's figures depend on: what all of them share, and its own files of `learned`."""
    return tuple(f"rankloom/bidding/{name}.py" for name in (*_SHARED, *(f"learned/{each}" for each in own)))


def effort(bench: Benchmark) -> Effort:
    return Effort.quick(4) if bench.quick else Effort()


def log_path() -> Path:
    return data_folder("bidding", "auctionnet_sim_trajectories.parquet")


def recorded_days() -> list[MarketDay]:
    """The days that are reported on; nothing is trained or chosen on them."""
    return load_traces(data_folder("bidding"))


class Bench:
    """Markets and experts of a benchmark, kept beside its cells and made anew when the sources change."""

    def __init__(self, bench: Benchmark, log: Path | None = None) -> None:
        keep_freed_memory()
        self.bench = bench
        self.effort = effort(bench)
        self._market: Market | None = None
        self.log = log or log_path()

    def market(self) -> Market:
        """The training periods as response curves (in a quick run six periods of them)."""
        if self._market is None:
            logged = read_trajectories(self.log)
            path: Any = self.log
            if self.bench.quick:
                wanted = sorted(set(logged.period_N.tolist()))[:5]
                logged = logged.select(np.isin(logged.period_N, wanted))
                log = read_log(path)
                path = log.filter(log["period"].is_in(wanted))
            self._market = rebuild_market(path, logged)
        return self._market

    def expert(self, gamma: float = DEFAULT_GAMMA) -> PathwiseController:
        """The expert of one objective: trained once, for all benchmarks."""
        stamp = f"{fingerprint(ROOT / source for source in sources())}-{sha256_file(self.log)[:8]}"
        own = self.bench.store.folder
        experts = own if self.bench.args.cells else own.parent.parent / "bidding_experts" / own.name
        folder = experts / f"expert-{stamp}-gamma{gamma:g}"
        if not folder.is_dir():
            trained = train_expert(self.market(), gamma=gamma, effort=self.effort, quiet=True)
            for old in experts.glob(f"expert-*-gamma{gamma:g}"):
                shutil.rmtree(old)
            experts.mkdir(parents=True, exist_ok=True)
            save_bidder(folder, trained)
        found = load_bidder(folder)
        assert isinstance(found, PathwiseController)
        return found

    def experience(self, *, seed: int, gamma: float = DEFAULT_GAMMA, source: str = "rebuilt") -> Experience:
        """The population of a seed, or the logged days."""
        if source == "log":
            return gather_experience(self.log, source="log", gamma=gamma, seed=seed)
        return populate(self.market(), self.expert(gamma), gamma=gamma, effort=self.effort, seed=seed)

    def low_bidder(self) -> PathwiseController:
        """MPC at 85% of its multiplier: a bidder that leaves room, as those of a log often do."""
        low = self.expert()
        low.trust = 0.0
        decide = low.decide

        def lower(observation: Observation) -> Decision:
            decision = decide(observation)
            return replace(decision, multiplier_N=LOW * decision.multiplier_N)

        low.decide = lower  # type: ignore[method-assign]
        return low

    def low_experience(self, *, seed: int) -> Experience:
        """The low bidder's days, perturbed more than the expert's are."""
        population = replace(self.effort.population or PopulationConfig(), expert_day_sd=0.10, tick_sd=0.15)
        return populate(self.market(), self.low_bidder(), effort=replace(self.effort, population=population), seed=seed)

    def keep(self, name: str, controller: Any) -> Path:
        """A trained bidder beside the cells, for other cells to measure."""
        folder = self.bench.store.folder / f"bidder-{name}"
        with atomic_folder(folder.parent / f".{folder.name}.write", overwrite=True) as temporary:
            save_bidder(temporary / "b", controller)
            shutil.rmtree(folder, ignore_errors=True)
            shutil.move(temporary / "b", folder)
        shutil.rmtree(folder.parent / f".{folder.name}.write", ignore_errors=True)
        return folder


def played(controller: Controller, *, budget_ratio: float = 1.0, seed: int = 0) -> list[DayResult]:
    """The controller in every seat of the recorded days."""
    return replay(recorded_days(), controller, budget_ratio=budget_ratio, seed=seed)


def measured(results: list[DayResult]) -> dict[str, Any]:
    """Scores per (day, seat) under three exponents, and what tells a collapse: growth of the multiplier, share over CPA."""
    multiplier = np.concatenate([each.history.multiplier_NT for each in results])
    target = np.concatenate([each.campaigns.target_cpa_N for each in results])
    alive = multiplier > 0
    relative = np.where(alive, multiplier / target[:, None], np.nan)
    last = np.array([row[~np.isnan(row)][-1] for row in relative])
    return {
        "score": np.concatenate([each.outcome.score() for each in results]).tolist(),
        "score_gamma0": np.concatenate([each.outcome.score(0.0) for each in results]).tolist(),
        "score_gamma5": np.concatenate([each.outcome.score(5.0) for each in results]).tolist(),
        "over_cpa": float(np.concatenate([each.outcome.over_cpa for each in results]).mean()),
        "utilisation": float(np.concatenate([each.outcome.utilisation for each in results]).mean()),
        "growth": float(np.median(last / relative[:, 0])),
        "largest_growth": float((last / relative[:, 0]).max()),
        "median_multiplier": np.nanmedian(relative, axis=0).round(3).tolist(),
    }


def mean_of(cells: list[dict[str, Any]], key: str) -> NDArray[np.float64]:
    """(pairs,) the mean over seeds of a figure per (day, seat)."""
    found: NDArray[np.float64] = np.mean([cell[key] for cell in cells], axis=0)
    return found
