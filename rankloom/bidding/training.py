"""`rankloom bid train`: from a trajectory log to a bidder's folder.

    log -> checked -> its periods rebuilt as markets -> response curves -> an expert trained by pathwise gradients
        -> the population (the expert and MPC together, perturbed) -> the asked-for learner -> level of its return target chosen
        on held-out periods -> folder

The rebuilding needs every seat of a period in the log (what everybody bid is what a counterfactual is made of). `source="log"` trains
on the logged days alone: that is how the published baselines are trained, and what to use for a log of a few own campaigns. `source="auto"`
rebuilds where playing the log's own multipliers on the rebuilt days gives the spend that the log says, and says so where it does not.

Every fifth period is held out: nothing is trained on it, and the level that a return-conditioned bidder asks for is chosen there.
Days that are to be reported on must not be in the log's split at all.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final, Literal, cast

import numpy as np
import polars as pl
import torch

from rankloom.bidding.bidders import BIDDER, save_bidder
from rankloom.bidding.controllers import MPC
from rankloom.bidding.curves import MarketPrior
from rankloom.bidding.day import DayResult, play_day
from rankloom.bidding.learned.base import TrainingSet, prepare
from rankloom.bidding.learned.cbd import (
    PROPERTIES,
    CbdConfig,
    CbdController,
    PlannedDays,
    distil,
    join,
    train_cbd,
    trajectory_properties,
)
from rankloom.bidding.learned.decision_transformer import SequenceController, train_dt
from rankloom.bidding.learned.fitting import Checkpointing, FitConfig
from rankloom.bidding.learned.gas import train_gas
from rankloom.bidding.learned.gave import GaveConfig, train_gave
from rankloom.bidding.learned.offline_rl import METHODS, Method, train_policy
from rankloom.bidding.learned.outlook import Outlook
from rankloom.bidding.learned.pathwise import PathwiseController, Variation, train_pathwise
from rankloom.bidding.population import PopulationConfig, build_population
from rankloom.bidding.protocol import (
    N_TICKS,
    Campaigns,
    Controller,
    Decision,
    FloatArray,
    IntArray,
    Observation,
    SavedController,
)
from rankloom.bidding.responses import CurveMarket, ResponseCurves
from rankloom.bidding.score import DEFAULT_GAMMA
from rankloom.bidding.surrogate import base_budgets, read_log, rebuild_day
from rankloom.bidding.trajectories import Trajectories, read_trajectories
from rankloom.errors import RankloomError
from rankloom.files import sha256_file
from rankloom.progress import track
from rankloom.training.processor import keep_freed_memory

CONTROLLERS: Final = ("gave", "cbd", "dt", "dt-score", "iql", "cql", "td3-bc", "bc", "gas", "pathwise", "selector")
WITH_OUTLOOK: Final = ("gave", "cbd", "pathwise")
"""Learners that stand on MPC (`learned.outlook`); the others are baselines, trained as published."""
Source = Literal["auto", "rebuilt", "log"]
HOLD_OUT: Final = 5
FIDELITY: Final = 0.7
SAMPLE_FRACTION: Final = 0.06
EXPERT_MEMBERS, EXPERT_TRUST = 2, 0.7
SHAPE_LIMIT: Final = 0.6
"""Of what `Shaped` does to a log multiplier."""
SHAPED_SEED: Final = 1000
PACE_FLOOR: Final = 0.1
"""Added to the shares of budget and day that are compared, so that the first ticks do not decide a day."""


@dataclass(frozen=True)
class Market:
    """What can be asked about the training periods: curves of all seat-days, and which of them are held out.

    Attributes:
        prior: MPC's knowledge of the market, of the training periods alone.
    """

    curves: ResponseCurves
    training_M: IntArray
    held_out_M: IntArray
    fidelity: float
    prior: MarketPrior | None = None


@dataclass(frozen=True)
class Experience:
    """What learners learn from.

    Attributes:
        data: with the outlook that the learners of `WITH_OUTLOOK` have; plain: the same days without. Where a log alone is used nobody has one.
        market: None where the log alone is used. expert: None likewise.
    """

    trajectories: Trajectories
    data: TrainingSet
    plain: TrainingSet
    market: Market | None
    expert: PathwiseController | None


@dataclass(frozen=True)
class Effort:
    """Steps of each part; `None` is the part's own default. `quick` is for tests and documentation.

    Attributes:
        options: of the sequence models: width, layers, heads, window. widths: of CBD's U-Net.
        levels: of the return target, among which the held-out periods choose.
        shaped: passes over all seat-days with spending shaped on purpose (CBD alone learns from them).
    """

    expert: FitConfig | None = None
    learner: FitConfig | None = None
    distillation: FitConfig | None = None
    population: PopulationConfig | None = None
    options: dict[str, Any] = field(default_factory=dict)
    widths: tuple[int, ...] | None = None
    levels: tuple[float, ...] = (0.5, 0.8)
    shaped: int = 1

    @classmethod
    def quick(cls, steps: int = 8) -> Effort:
        small = FitConfig(steps=steps, batch=16, warmup=2, average=0.9)
        return cls(
            expert=small,
            learner=small,
            distillation=small,
            population=PopulationConfig(expert=1),
            options={"width": 16, "layers": 1, "heads": 2},
            widths=(8, 8, 8),
            levels=(0.8,),
        )


def held_out(periods: Sequence[int]) -> set[int]:
    """Every fifth of the periods in order; none where there are fewer than five."""
    ordered = sorted(set(periods))
    return {period for place, period in enumerate(ordered) if place % HOLD_OUT == HOLD_OUT - 1}


class _Watched:
    """A bidder about to be perturbed; what it meant to bid on the days that it played is kept, and what the expert's outlook showed, so
    that this is not worked out again."""

    def __init__(self, controller: Controller, expert: PathwiseController) -> None:
        self.name = "expert"
        self.controller = controller
        self.expert = expert
        self._days: list[torch.Tensor] = []
        self._meant: list[torch.Tensor] = []
        self._today: list[torch.Tensor] = []

    def start(self, campaigns: Campaigns, seed: int) -> None:
        self._today = []
        self.controller.start(campaigns, seed)

    def decide(self, observation: Observation) -> Decision:
        decision = self.controller.decide(observation)
        self._today.append(torch.from_numpy(decision.multiplier_N.copy()))
        if observation.tick == N_TICKS - 1:
            self._meant.append(torch.stack(self._today, dim=1))
            if self.expert.looked_NSO is not None:
                self._days.append(self.expert.looked_NSO)
        return decision

    def looked(self, n: int) -> torch.Tensor | None:
        """(n, T, columns) in the order in which the days were played; None where not all were looked at."""
        return torch.cat(self._days) if sum(map(len, self._days)) == n else None

    def meant(self, n: int) -> torch.Tensor | None:
        """(n, T) multipliers before they were perturbed; None where some of the days are constants', which nobody meant otherwise."""
        return torch.cat(self._meant) if sum(map(len, self._meant)) == n else None


class _Logged:
    name = "logged"

    def __init__(self, multiplier_NT: FloatArray) -> None:
        self.multiplier_NT = multiplier_NT

    def start(self, campaigns: Campaigns, seed: int) -> None: ...

    def decide(self, observation: Observation) -> Decision:
        return Decision(self.multiplier_NT[:, observation.tick], ("none",) * observation.campaigns.n)


def rebuild_market(path: str | Path, logged: Trajectories, *, split: str | None = "train", quiet: bool = False) -> Market:
    """Curves of the log's periods; fidelity is the correlation over seat-days of logged spend with what the logged multipliers spend there."""
    log = read_log(path, split)
    base = base_budgets(log)
    periods = sorted(int(period) for period in log["period"].unique().to_list())
    days = [
        rebuild_day(log, period, sample_fraction=SAMPLE_FRACTION, budgets=base)
        for period in track(periods, "rebuilding days", unit="days", quiet=quiet)
    ]
    curves = ResponseCurves.from_days(days, quiet=quiet)
    curves = replace(curves, period_N=np.asarray(periods)[curves.period_N])
    ratio_N = logged.campaigns.budget_N / curves.campaigns.budget_N
    played = play_day(
        CurveMarket(curves, np.arange(curves.n), budget_ratio_M=ratio_N), _Logged(logged.history.multiplier_NT)
    )
    said, found = logged.history.spend_NT.sum(axis=1), played.history.spend_NT.sum(axis=1)
    fidelity = float(np.corrcoef(said, found)[0, 1]) if said.std() > 0 and found.std() > 0 else 0.0
    out = np.isin(curves.period_N, list(held_out(periods)))
    prior = MarketPrior.fit(log.filter(~pl.col("period").is_in(list(held_out(periods)))), split=None)
    return Market(curves, np.flatnonzero(~out), np.flatnonzero(out), fidelity, prior)


def gather_experience(
    path: str | Path,
    *,
    source: Source = "auto",
    split: str | None = "train",
    gamma: float = DEFAULT_GAMMA,
    effort: Effort | None = None,
    seed: int = 0,
    market: Market | None = None,
    expert: PathwiseController | None = None,
    checkpointing: Checkpointing | None = None,
    say: Callable[[str], None] = lambda _text: None,
    quiet: bool = False,
) -> Experience:
    """Log, rebuilt market, expert, population and training set; a market or expert that is there already is used as it is.

    Raises:
        RankloomError: the log is refused, or `source="rebuilt"` and the rebuilt days do not answer as the log says.
    """
    effort = effort or Effort()
    logged = read_trajectories(path, split=split)
    out = np.isin(logged.period_N, list(held_out(logged.period_N.tolist())))
    if source == "auto" and (np.unique(logged.period_N, return_counts=True)[1] < 8).any():
        say("a period of the log has fewer than 8 seats: nothing can be rebuilt, training on the logged days alone")
        source = "log"
    if source != "log" and market is None:
        market = rebuild_market(path, logged, split=split, quiet=quiet)
        if market.fidelity < FIDELITY:
            fact = f"the rebuilt days do not answer as the log says (correlation of spend {market.fidelity:.2f} < {FIDELITY})"
            if source == "rebuilt":
                raise RankloomError(fact, place=str(path), action="train with --source log", code="rebuild-unfaithful")
            say(f"{fact}: training on the logged days alone")
            market = None
        else:
            say(f"rebuilt {len(np.unique(market.curves.period_N))} periods, correlation of spend with the log {market.fidelity:.2f}")
    if market is None or source == "log":
        trajectories = logged.select(~out)
        data = prepare(trajectories, gamma=gamma)
        return Experience(trajectories, data, data, None, None)
    if expert is None:
        expert = train_expert(market, gamma=gamma, effort=effort, seed=seed, checkpointing=checkpointing, quiet=quiet)
    return populate(market, expert, gamma=gamma, effort=effort, seed=seed)


def train_expert(
    market: Market,
    *,
    gamma: float = DEFAULT_GAMMA,
    effort: Effort | None = None,
    seed: int = 0,
    checkpointing: Checkpointing | None = None,
    quiet: bool = False,
) -> PathwiseController:
    """The pathwise policy on the market's training periods; normalisers and reader come from days of MPC, perturbed."""
    effort = effort or Effort()
    outlook = Outlook.of(market.prior, gamma=gamma)
    config = replace(effort.population or PopulationConfig(), expert=1)
    # another MPC than the outlook's: a bidder that plays draws its scenarios anew
    days = build_population(market.curves, market.training_M, MPC(outlook.planner.config, market.prior), config=config, seed=seed)
    expert, _log = train_pathwise(
        market.curves,
        market.training_M,
        prepare(days, gamma=gamma, outlook=outlook),
        gamma=gamma,
        variation=Variation(),
        members=EXPERT_MEMBERS,
        trust=EXPERT_TRUST,
        config=effort.expert,
        seed=seed,
        checkpointing=checkpointing,
        quiet=quiet,
    )
    return expert


def populate(
    market: Market, expert: PathwiseController, *, gamma: float = DEFAULT_GAMMA, effort: Effort | None = None, seed: int = 0
) -> Experience:
    """The population around an expert, and its training set with the days' luck as a baseline."""
    config = (effort or Effort()).population
    watched = _Watched(expert, expert)
    trajectories = build_population(market.curves, market.training_M, watched, config=config, seed=seed)
    place = {(int(p), int(s)): i for i, (p, s) in enumerate(zip(market.curves.period_N, market.curves.seat_N, strict=True))}
    index = np.array([place[int(p), int(s)] for p, s in zip(trajectories.period_N, trajectories.seat_N, strict=True)])
    best = market.curves.best_constants(index, trajectories.campaigns.budget_N, gamma)[1]
    data = prepare(
        trajectories, gamma=gamma, best_score_N=best, outlook=expert.outlook,
        looked_NTO=watched.looked(trajectories.n), meant_multiplier_NT=watched.meant(trajectories.n),
    )  # fmt: skip
    plain = prepare(trajectories, gamma=gamma, best_score_N=best)
    return Experience(trajectories, data, plain, market, expert)


class Shaped:
    """A controller whose spending is shaped on purpose, each campaign's day in its own way.

    Some campaigns spend early or late: multipliers times exp(tilt) in the first tick, exp(-tilt) in the last, a straight line in logs between
    them. Others spend more or less evenly: lower multipliers the more of the budget is gone beyond the share of the day that is over, higher
    ones where spending lags behind. (Looking at the last ticks' spend instead overshoots, and bidding less where a tick offers more does not smooth.)
    """

    def __init__(self, inner: Controller, *, tilt_sd: float = 0.35, evenness: tuple[float, float] = (-0.12, 0.35)) -> None:
        self.name = f"{inner.name}, shaped"
        self.inner = inner
        self.tilt_sd, self.evenness = tilt_sd, evenness
        self._tilt_N = self._even_N = np.zeros(0)
        self.shaped_NC = torch.zeros(0, len(PROPERTIES), dtype=torch.bool)
        """In which of `PROPERTIES` each campaign of the days started so far was shaped: two fifths in one, two fifths in the other, a fifth in both."""

    def start(self, campaigns: Campaigns, seed: int) -> None:
        rng = np.random.default_rng((seed, 41))
        drawn_N = rng.random(campaigns.n)
        tilted_N, evened_N = drawn_N < 0.6, drawn_N > 0.4
        self._tilt_N = np.where(tilted_N, self.tilt_sd * rng.standard_normal(campaigns.n), 0.0)
        self._even_N = np.where(evened_N, rng.uniform(*self.evenness, campaigns.n), 0.0)
        shaped_NC = np.stack([np.zeros_like(tilted_N), tilted_N, evened_N], axis=1)
        self.shaped_NC = torch.cat([self.shaped_NC, torch.from_numpy(shaped_NC)])
        self.inner.start(campaigns, seed)

    def decide(self, observation: Observation) -> Decision:
        decision = self.inner.decide(observation)
        shape_N = self._tilt_N * (1 - 2 * observation.tick / (N_TICKS - 1))
        spent_N = 1 - observation.remaining_N / observation.campaigns.budget_N
        shape_N = shape_N - self._even_N * np.log((spent_N + PACE_FLOOR) / (observation.tick / N_TICKS + PACE_FLOOR))
        return replace(decision, multiplier_N=decision.multiplier_N * np.exp(np.clip(shape_N, -SHAPE_LIMIT, SHAPE_LIMIT)))


def shaped_days(experience: Experience, *, effort: Effort | None = None, seed: int = 0) -> PlannedDays:
    """The experience's days, and days of its expert whose spending was shaped on purpose, for a planner that can be asked for that.

    Left to themselves good bidders spend alike. What is early, late or uneven in their days is the traffic, and a planner that learns from them
    answers a wish for early spending with a forecast of early traffic. So the shape of a shaped day is told as the difference to its twin: the
    same campaign's day with the same budget, noise and conversions, not shaped. Where only a log is known there are no such days.
    """
    market, expert, data = experience.market, experience.expert, experience.data
    effort = effort or Effort()
    if market is None or expert is None or effort.shaped == 0:
        return PlannedDays.of(data, experience.trajectories)
    config = replace(effort.population or PopulationConfig(), expert=effort.shaped, hindsight=0, wander=0)

    def play(controller: Controller) -> Trajectories:
        return build_population(market.curves, market.training_M, controller, config=config, seed=seed + SHAPED_SEED)

    shaper = Shaped(expert)
    watched = _Watched(shaper, expert)
    days, twins = play(watched), play(expert)
    shaped = prepare(
        days, gamma=data.gamma, normaliser=data.normaliser, outlook=data.outlook,
        looked_NTO=watched.looked(days.n), meant_multiplier_NT=watched.meant(days.n),
    )  # fmt: skip
    shape_NC = trajectory_properties(days, shaped.return_NT[:, 0]) - trajectory_properties(twins, torch.zeros(days.n))
    usual_NC = torch.zeros(data.n, shape_NC.shape[1])
    usual_NC[:, 0] = data.return_NT[:, 0]
    return PlannedDays(
        join((data, shaped)),
        torch.cat([usual_NC, shape_NC]),
        torch.cat([torch.zeros(data.n, len(PROPERTIES), dtype=torch.bool), shaper.shaped_NC]),
    )


def held_out_results(controller: Controller, market: Market, *, budget_ratio: float = 1.0, seed: int = 0) -> DayResult:
    """The controller in all held-out seat-days at once, on the curves."""
    return play_day(CurveMarket(market.curves, market.held_out_M, budget_ratio_M=budget_ratio), controller, seed=seed)


def choose_level(
    controller: SequenceController | CbdController,
    market: Market,
    *,
    levels: Sequence[float] = (0.5, 0.8),
    gamma: float = DEFAULT_GAMMA,
    seed: int = 0,
) -> dict[float, float]:
    """Sets the expectile that is asked for to the one with the best held-out score; returns all scores."""
    scores: dict[float, float] = {}
    if not len(market.held_out_M):
        return scores

    def ask(level: float) -> None:
        if isinstance(controller, CbdController):
            controller.cbd = replace(controller.cbd, level=level)
        else:
            controller.level = level

    for level in levels:
        ask(level)
        scores[level] = float(held_out_results(controller, market, seed=seed).outcome.score(gamma).mean())
    ask(max(scores, key=lambda level: scores[level]))
    return scores


def learn(
    controller: str,
    experience: Experience,
    *,
    effort: Effort | None = None,
    seed: int = 0,
    gave: GaveConfig | None = None,
    cbd: CbdConfig | None = None,
    outlook: bool | None = None,
    checkpointing: Checkpointing | None = None,
    say: Callable[[str], None] = lambda _text: None,
    quiet: bool = False,
) -> tuple[SavedController, dict[str, Any]]:
    """One learner on the experience; returns it and figures of the run.

    Args:
        outlook: whether it stands on MPC; None: as `WITH_OUTLOOK` says.

    Raises:
        RankloomError: no learner is called so, or it needs rebuilt days and there are none.
    """
    effort = effort or Effort()
    stands_on_mpc = controller in WITH_OUTLOOK if outlook is None else outlook
    data, market = experience.data if stands_on_mpc else experience.plain, experience.market
    common: dict[str, Any] = {"seed": seed, "checkpointing": checkpointing, "quiet": quiet}
    config = effort.learner
    learned: SavedController
    if controller in ("dt", "dt-score"):
        learned, log = train_dt(data, score_aligned=controller == "dt-score", config=config, options=effort.options, **common)
    elif controller == "gave":
        learned, log = train_gave(data, gave=gave, config=config, options=effort.options, **common)
    elif controller == "gas":
        learned, log = train_gas(data, config=config, options=effort.options, **common)
    elif controller == "cbd":
        cbd = cbd or CbdConfig()
        cbd = cbd if effort.widths is None else replace(cbd, widths=effort.widths)
        days = shaped_days(experience, effort=effort, seed=seed)
        teacher, log = train_cbd(days, cbd=cbd, config=config, **common)
        learned, _distance = distil(teacher, days, config=effort.distillation, **common)
        learned.name = "cbd"
    elif controller in METHODS:
        learned, log = train_policy(data, method=cast(Method, controller), config=config, **common)
    elif controller in ("pathwise", "selector"):
        if experience.expert is None or market is None:
            raise RankloomError(
                f"{controller} is trained on rebuilt days, and this log allows none",
                place="--controller",
                action="log every seat of every period, or choose another controller",
                code="controller-needs-market",
            )
        if controller == "selector":
            return _selector(experience, market, effort, common, say)
        learned, log = experience.expert, []
    else:
        raise RankloomError(
            f"no learned controller is called {controller!r}",
            place="--controller",
            action=f"choose one of {', '.join(CONTROLLERS)}",
            code="controller-unknown",
        )
    figures: dict[str, Any] = {"trajectories": data.n, "source": "rebuilt days" if market else "log", "seed": seed}
    if log:
        figures["last"] = {name: round(value, 5) for name, value in log[-1].items()}
    if market is not None and len(market.held_out_M):
        if isinstance(learned, SequenceController | CbdController):
            scores = choose_level(learned, market, levels=effort.levels, gamma=data.gamma)
            figures["held_out_score_by_level"] = {str(level): round(value, 3) for level, value in scores.items()}
        figures["held_out_score"] = round(float(held_out_results(learned, market).outcome.score(data.gamma).mean()), 3)
        say(f"{learned.name}: Score {figures['held_out_score']:.2f} on held-out training periods")
    return learned, figures


def _selector(
    experience: Experience, market: Market, effort: Effort, common: dict[str, Any], say: Callable[[str], None]
) -> tuple[SavedController, dict[str, Any]]:
    from rankloom.bidding.controllers import controller
    from rankloom.bidding.selector import Selector

    members: list[SavedController] = []
    for name in ("mpc", "min-pacing"):
        built_in = controller(name)
        assert isinstance(built_in, SavedController)
        members.append(built_in)
    for name in ("dt-score", "gave"):
        members.append(learn(name, experience, effort=effort, say=say, **common)[0])
    affordable = market.curves.campaigns.budget_N / market.curves.campaigns.target_cpa_N
    selector = Selector(members, edges=np.quantile(affordable, [1 / 3, 2 / 3]).tolist())
    results = [[held_out_results(member, market, budget_ratio=ratio) for ratio in (0.75, 1.0, 1.25)] for member in members]
    selector.learn_from(results)
    best = selector.estimates().argmax(axis=1)
    figures = {"segments": {f"segment {i}": members[int(m)].name for i, m in enumerate(best)}}
    return selector, figures


def train_bidder(
    path: str | Path,
    controller: str,
    out: str | Path,
    *,
    source: Source = "auto",
    split: str | None = "train",
    gamma: float = DEFAULT_GAMMA,
    seed: int = 0,
    steps: int | None = None,
    resume: bool = False,
    overwrite: bool = False,
    effort: Effort | None = None,
    say: Callable[[str], None] = lambda _text: None,
    quiet: bool = False,
) -> SavedController:
    """The whole way; see the module's text.

    Args:
        steps: training steps of the learner, instead of its default.
        resume: go on from the checkpoints that an interrupted run with the same log and flags left beside `out`.

    Raises:
        RankloomError: unknown controller, refused log, `out` in the way; nothing is written then.
    """
    out = Path(out).absolute()
    if controller not in CONTROLLERS:
        raise RankloomError(
            f"no learned controller is called {controller!r}",
            place="--controller",
            action=f"choose one of {', '.join(CONTROLLERS)}",
            code="controller-unknown",
        )
    if out.exists() and not overwrite and (not out.is_dir() or any(out.iterdir())):
        raise RankloomError(
            f"{out} exists",
            place="--out",
            action="choose another --out, or pass --overwrite to replace a bidder",
            code="out-exists",
        )
    if out.is_dir() and any(out.iterdir()) and not (out / BIDDER).is_file():
        raise RankloomError(
            f"the folder {out} is not a bidder; it is not replaced", place="--out", action="choose another --out", code="out-foreign"
        )
    effort = effort or Effort()
    if steps is not None:
        effort = replace(effort, learner=replace(effort.learner or _default_config(controller), steps=steps))
    told = f"{sha256_file(path) if Path(path).is_file() else ''}:{controller}:{source}:{split}:{gamma}:{seed}:{effort}"
    work = out.parent / f".{out.name}.training"
    checkpointing = Checkpointing(
        folder=work, fingerprint=hashlib.sha256(told.encode()).hexdigest()[:16], resume=resume
    )
    torch.manual_seed(seed)
    keep_freed_memory()
    experience = gather_experience(
        path, source=source, split=split, gamma=gamma, effort=effort, seed=seed, checkpointing=checkpointing, say=say, quiet=quiet
    )
    learned, figures = learn(
        controller, experience, effort=effort, seed=seed, checkpointing=checkpointing, say=say, quiet=quiet
    )
    save_bidder(
        out,
        learned,
        training={"log": Path(path).name, "split": split, "gamma": gamma, **figures},
        overwrite=overwrite,
    )
    for leftover in work.glob("*.safetensors"):
        leftover.unlink()
    if work.is_dir() and not any(work.iterdir()):
        work.rmdir()
    return learned


def _default_config(controller: str) -> FitConfig:
    if controller in METHODS:
        return FitConfig(steps=3000, batch=512, learning_rate=1e-3, average=0.995)
    if controller == "cbd":
        return FitConfig(steps=600, batch=48, learning_rate=2e-3, average=0.99)
    return FitConfig()
