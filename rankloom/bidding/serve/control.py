"""The control path: once a tick, one observation of all campaigns, one question to the controller, one multiplier each.

    observe    the ledger's series of the day, as the market and a replay give them (one `History`)
    ask        the controller, in its process, within `deadline_s`
    limit      a multiplier is finite, at most `max_ratio` x the cost limit and `max_step` x the one before
    fall back  late, crashed, not finite, malformed: safe pacing decides this tick, and it is written down why
    note       the decision with its explanation goes to the decision log, then to the bid path

Shadow controllers are asked the same question; their answers are written down and never used. Campaigns in a
budget-split test are asked of their own arm's controller.
"""

from __future__ import annotations

import json
import math
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import numpy as np

from rankloom.bidding.protocol import Campaigns, Decision, FloatArray, History, Observation
from rankloom.bidding.serve import explain
from rankloom.bidding.serve.accounts import Account
from rankloom.bidding.serve.arms import Arm
from rankloom.bidding.serve.engine import Engine
from rankloom.bidding.serve.fallback import SafePacing
from rankloom.bidding.serve.money import MAX_MICROS, MICROS, PPB
from rankloom.bidding.serve.slots import SlotTraffic
from rankloom.bidding.serve.worker import ControllerFailedError, LocalController, RemoteController

BINDINGS: Final = ("budget", "cpa", "none", "fallback")


@dataclass(frozen=True)
class ControlSettings:
    """Attributes:
    deadline_s: time for a controller's answer.
    max_step: a multiplier changes at most by this factor from one tick to the next; the first of a day may be anything.
    max_ratio: and is at most this many times the cost limit, where there is one.
    stale_ticks: so long a decision is good; after that the standby multiplier of the fallback is used,
        `dead_ticks`: and after so long there are no bids.
    fade: weight of what was learned of prices before, from tick to tick.
    """

    deadline_s: float = 5.0
    max_step: float = 3.0
    max_ratio: float = 5.0
    stale_ticks: float = 1.5
    dead_ticks: float = 4.0
    fade: float = 0.98
    seed: int = 0


@dataclass(frozen=True)
class Verdict:
    """What the control path decided for one arm."""

    multiplier: int
    proposed: int
    binding: str
    source: str  # controller, fallback
    controller: str
    fallback_reason: str | None
    limited_by: tuple[str, ...]
    planned: tuple[int, ...]
    standby: int


def history_of(accounts: Sequence[Account], tick: int) -> History:
    """The ledger's series of so many past ticks as a controller's history; money in units."""

    def series(name: str, scale: float = 1.0) -> FloatArray:
        return np.array([own.series[name][:tick] for own in accounts], dtype=float).reshape(len(accounts), tick) / scale

    sums_NT, counts_NT = series("lwc_sum"), series("lwc_n")
    mean_NT = np.where(counts_NT > 0, sums_NT / np.maximum(counts_NT, 1) / MICROS, 0.0)
    for t in range(1, tick):  # a tick without notices costs what the one before did
        mean_NT[:, t] = np.where(counts_NT[:, t] > 0, mean_NT[:, t], mean_NT[:, t - 1])
    return History(
        multiplier_NT=series("multiplier", MICROS), spend_NT=series("spend", MICROS), value_NT=series("value", PPB),
        conversions_NT=series("conversions"), volume_NT=series("volume"), p_sum_NT=series("p_sum", PPB),
        bid_sum_NT=series("bid_sum", MICROS), won_NT=series("won"), exposed_NT=series("exposed"),
        least_winning_cost_NT=mean_NT,
    )  # fmt: skip


def observe(
    arms: Sequence[Arm], accounts: Sequence[Account], tick: int, profiles: Mapping[str, Sequence[float]]
) -> Observation:
    """What a controller sees before `tick`.

    Args:
        profiles: per arm the opportunities of each tick on earlier days, where there were any.
    """
    targets = [arm.campaign.target_cpa_micros for arm in arms]
    campaigns = Campaigns(
        budget_N=np.array([own.budget / MICROS for own in accounts]),
        target_cpa_N=np.array([math.inf if own is None else own / MICROS for own in targets]),
        category_N=np.array([arm.campaign.category for arm in arms], dtype=np.int64),
        name=tuple(arm.key for arm in arms),
    )
    history = history_of(accounts, tick)
    remaining_N = np.array([max(own.budget - own.spent, 0) / MICROS for own in accounts])
    volume_N = p_N = None
    known = [profiles.get(arm.key) for arm in arms]
    if all(known):
        profile_NT = np.array(known, dtype=float)
        today_N, usual_N = history.volume_NT.sum(axis=1), profile_NT[:, :tick].sum(axis=1)
        volume_N = profile_NT[:, tick] * np.where(usual_N > 0, today_N / np.maximum(usual_N, 1e-9), 1.0)
    elif tick:
        volume_N = history.volume_NT[:, -1]
    if tick:
        recent_N = history.volume_NT[:, -3:].sum(axis=1)
        p_N = history.p_sum_NT[:, -3:].sum(axis=1) / np.maximum(recent_N, 1)
    return Observation(tick, campaigns, history, remaining_N, volume_N, p_N)


def checked(decision: Decision, n: int) -> str | None:
    """What is wrong with a decision, or None."""
    multiplier_N = np.asarray(decision.multiplier_N)
    if multiplier_N.shape != (n,):
        return f"{multiplier_N.shape} multipliers for {n} campaigns"
    if not np.isfinite(multiplier_N).all():
        return "a multiplier is not finite"
    if (multiplier_N < 0).any():
        return "a multiplier is negative"
    if len(decision.binding) != n or any(own not in BINDINGS for own in decision.binding):
        return "the binding constraints are not told for every campaign"
    return None


class Control:
    """Runs ticks. Not thread safe; the service runs it in one thread.

    Args:
        controller: decides; `others` are controllers of budget-split tests by name, `shadows` only advise.
        log: the folder of the decision log, one file of JSON lines a UTC day; None keeps no log.
    """

    def __init__(
        self,
        engine: Engine,
        controller: RemoteController,
        *,
        settings: ControlSettings | None = None,
        others: Mapping[str, RemoteController] | None = None,
        shadows: Sequence[RemoteController] = (),
        log: Path | None = None,
    ) -> None:
        self.engine, self.ledger = engine, engine.ledger
        self.settings = settings or ControlSettings()
        self.controller, self.others, self.shadows = controller, dict(others or {}), list(shadows)
        n_ticks = self.ledger.settings.n_ticks
        self.fallback = LocalController(lambda: SafePacing(n_ticks=n_ticks))
        self.log = log
        self.explanations: dict[str, dict[str, Any]] = {}
        self.counts: Counter[str] = Counter()
        self.seconds = 0.0
        self.recent: list[SlotTraffic] = []

    def run(self, now: int, *, traffic: Sequence[SlotTraffic] | None = None, arms: Sequence[Arm] | None = None) -> None:
        """One tick for every arm with an open account (or for `arms`), each cohort of one day and controller together."""
        begun = time.monotonic()
        for landscape in list(self.engine.landscapes.values()):
            landscape.fit(fade=self.settings.fade)
        if traffic is not None:
            self.recent = list(traffic)
        engine, ledger = self.engine, self.ledger
        with engine.lock:
            active = [arm for arm in (arms or engine.arms.values()) if arm.account in ledger.accounts]
            cohorts: dict[tuple[int, int, int], list[Arm]] = {}
            for arm in active:
                account = ledger.accounts[arm.account]
                cohorts.setdefault((id(self._controller_of(arm)), account.day_start, arm.tick), []).append(arm)
        verdicts: dict[str, Verdict] = {}
        shadows: dict[str, dict[str, int]] = {}
        for (_, day_start, tick), group in cohorts.items():
            own, told = self._decide(f"{self._controller_of(group[0]).name} {day_start}", group, tick)
            verdicts |= own
            shadows |= told
        with engine.lock:
            ends = [
                (ledger.accounts[arm.account].day_end - ledger.accounts[arm.account].day_start)
                // ledger.settings.n_ticks
                for arm in active
            ]
            length = min(ends, default=1_800_000_000)
            for key, verdict in verdicts.items():
                engine.arms[key].standby = verdict.standby
            engine.set_multipliers(
                {key: own.multiplier for key, own in verdicts.items()},
                fresh_until=now + int(length * self.settings.stale_ticks),
                dead_after=now + int(length * self.settings.dead_ticks),
            )
            curves = explain.responses(self.recent, engine.landscapes, shading=engine.settings.shading)
            never = frozenset(arm.key for arm in active if not curves.get(arm.key, {}).get("all_now"))
            if never:
                again = explain.responses(self.recent, engine.landscapes, shading=engine.settings.shading, alone=never)
                curves |= {key: own for key, own in again.items() if key in never}
            for arm in active:
                self.explanations[arm.key] = self._record(arm, verdicts[arm.key], shadows[arm.key], curves, now)
            ledger.flush()
        self._write([self.explanations[arm.key] for arm in active])
        self.counts["ticks"] += 1
        self.seconds = time.monotonic() - begun

    def _controller_of(self, arm: Arm) -> RemoteController:
        split = arm.campaign.experiment
        if split is not None and arm.key.endswith("#B"):
            return self.others.get(split.controller, self.controller)
        return self.controller

    def _decide(self, cohort: str, arms: list[Arm], tick: int) -> tuple[dict[str, Verdict], dict[str, dict[str, int]]]:
        engine, ledger, settings = self.engine, self.ledger, self.settings
        with engine.lock:
            accounts = [ledger.accounts[arm.account] for arm in arms]
            observation = observe(arms, accounts, tick, ledger.documents.get("profiles", {}))
            before = [own.series["multiplier"][tick - 1] if tick else 0 for own in accounts]
            budgets = [max(own.budget - own.spent, 0) for own in accounts]
            targets = [arm.campaign.target_cpa_micros for arm in arms]
        n, controller, reason = len(arms), self._controller_of(arms[0]), None
        standby = self.fallback.ask(cohort, observation, seed=settings.seed, deadline_s=60)
        try:
            decision = controller.ask(cohort, observation, seed=settings.seed, deadline_s=settings.deadline_s)
            fault = checked(decision, n)
            if fault is not None:
                raise ControllerFailedError("malformed", fault)
        except ControllerFailedError as error:
            decision, reason = standby, f"{error.kind}: {error}"
            self.counts[f"fallback_{error.kind}"] += n
        shadows: dict[str, dict[str, int]] = {arm.key: {} for arm in arms}
        for shadow in self.shadows:
            try:
                told = shadow.ask(cohort, observation, seed=settings.seed, deadline_s=settings.deadline_s)
                if checked(told, n) is None:
                    for arm, value in zip(arms, told.multiplier_N, strict=True):
                        shadows[arm.key][shadow.name] = _micros(float(value))
            except ControllerFailedError as error:
                self.counts[f"shadow_{error.kind}"] += n
        verdicts = {}
        plan_NR = decision.planned_spend_NR
        for i, arm in enumerate(arms):
            # the fallback never needs the step limit's protection from a wild model, but keeps its ceiling
            proposed = _micros(float(decision.multiplier_N[i]))
            multiplier, limited = self._limit(proposed, before[i], targets[i])
            verdicts[arm.key] = Verdict(
                multiplier=multiplier, proposed=proposed, binding="fallback" if reason else decision.binding[i],
                source="fallback" if reason else "controller", controller=controller.name, fallback_reason=reason,
                limited_by=limited, planned=self._plan(plan_NR, i, tick, budgets[i]),
                standby=self._limit(_micros(float(standby.multiplier_N[i])), before[i], targets[i])[0],
            )  # fmt: skip
        return verdicts, shadows

    def _limit(self, proposed: int, before: int, target: int | None) -> tuple[int, tuple[str, ...]]:
        settings, limited, value = self.settings, [], proposed
        if target is not None and value > int(target * settings.max_ratio):
            value = int(target * settings.max_ratio)
            limited.append(f"no more than {settings.max_ratio:g} times the cost limit is allowed")
        if before > 0 and value > int(before * settings.max_step):
            value = int(before * settings.max_step)
            limited.append(f"a rise by more than {settings.max_step:g} times in one tick is not allowed")
        if before > 0 and 0 < value < int(before / settings.max_step):
            value = int(before / settings.max_step)
            limited.append(f"a fall by more than {settings.max_step:g} times in one tick is not allowed")
        return value, tuple(limited)

    def _plan(self, plan_NR: FloatArray | None, i: int, tick: int, remaining: int) -> tuple[int, ...]:
        """Micros of each tick to come, never more in all than what is left."""
        left = self.ledger.settings.n_ticks - tick
        if plan_NR is None or plan_NR.shape[1] != left or not np.isfinite(plan_NR[i]).all():
            return tuple(remaining * (k + 1) // left - remaining * k // left for k in range(left))
        plan = [max(_micros(float(value)), 0) for value in plan_NR[i]]
        total = sum(plan)
        return tuple(own * remaining // total for own in plan) if total > remaining else tuple(plan)

    def _record(
        self, arm: Arm, verdict: Verdict, shadows: dict[str, int], curves: dict[str, dict[str, float]], now: int
    ) -> dict[str, Any]:
        ledger = self.ledger
        own, tick, n_ticks = ledger.accounts[arm.account], arm.tick, ledger.settings.n_ticks
        value, conversions = sum(own.series["value"]), sum(own.series["conversions"])
        record: dict[str, Any] = {
            "campaign_id": arm.campaign.campaign_id, "arm": arm.key, "day": own.day, "tick": tick,
            "time": datetime.fromtimestamp(now / 1e6, UTC).isoformat(timespec="milliseconds"), "status": arm.status,
            "controller": verdict.controller, "source": verdict.source, "fallback_reason": verdict.fallback_reason,
            "binding": verdict.binding, "multiplier_micros": verdict.multiplier, "proposed_micros": verdict.proposed,
            "standby_micros": verdict.standby, "limited_by": list(verdict.limited_by),
            "target_cpa_micros": arm.campaign.target_cpa_micros,
            "state": {
                "budget_micros": own.budget, "spent_micros": own.spent, "reserved_micros": own.reserved, "held_micros": own.held,
                "available_micros": own.available, "late_micros": own.late, "disputed_micros": own.disputed,
                "day_passed": round(tick / n_ticks, 6), "bids": own.bids, "wins": own.wins, "billed": own.bills,
                "opportunities": sum(own.series["volume"]), "expected_conversions": round(value / PPB, 6),
                "conversions": conversions, "cpa_micros": own.spent // conversions if conversions else None,
                "expected_cpa_micros": own.spent * PPB // value if value else None,
            },
            "plan": {"per_tick_micros": list(verdict.planned), "total_micros": sum(verdict.planned)},
            "ten_percent_more": explain.ten_percent_more(curves.get(arm.key), own, tick, arm.campaign.target_cpa_micros),
            "shadows": shadows, "kept_from_bidding": dict(arm.reasons.most_common(5)),
        }  # fmt: skip
        record["text"] = explain.sentence(record)
        return record

    def _write(self, records: list[dict[str, Any]]) -> None:
        if self.log is None or not records:
            return
        self.log.mkdir(parents=True, exist_ok=True)
        with open(self.log / f"decisions-{records[0]['time'][:10]}.jsonl", "a", encoding="utf-8") as handle:
            handle.write("".join(json.dumps(own) + "\n" for own in records))

    def close(self) -> None:
        for own in (self.controller, *self.others.values(), *self.shadows):
            own.close()


def _micros(value: float) -> int:
    return min(round(value * MICROS), MAX_MICROS)


def tick_of(account: Account, now: int, n_ticks: int) -> int:
    """The tick of an account's day that holds `now`: equal parts of the day, whatever its length."""
    passed = (now - account.day_start) * n_ticks // (account.day_end - account.day_start)
    return int(min(max(passed, 0), n_ticks - 1))


def tick_end(account: Account, tick: int, n_ticks: int) -> int:
    length = account.day_end - account.day_start
    return int(account.day_start + -(-(tick + 1) * length // n_ticks))
