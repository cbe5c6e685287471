"""The bid server without HTTP: campaigns, ledger, bid path and control path behind one object.

A state folder holds `ledger/` (money and settings), `decisions/` (one JSON line per campaign and tick), `days/`
(finished days) and `secret.key`. Everything that was acknowledged is there after a crash; opening the folder again
continues the day.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from rankloom.bidding.serve.accounts import Account
from rankloom.bidding.serve.arms import BUCKETS, Arm
from rankloom.bidding.serve.campaigns import Campaign, CampaignChange, CampaignFile, check
from rankloom.bidding.serve.control import Control, ControlSettings, tick_end, tick_of
from rankloom.bidding.serve.engine import Engine, EngineSettings, Reply
from rankloom.bidding.serve.ledger import Ledger, LedgerSettings
from rankloom.bidding.serve.money import PPB
from rankloom.bidding.serve.pcvr import SegmentTable
from rankloom.bidding.serve.slots import SlotTraffic
from rankloom.bidding.serve.worker import RemoteController
from rankloom.errors import RankloomError

_SNAPSHOT_BYTES: Final = 64_000_000
_AHEAD_US: Final = (
    120_000_000  # tomorrow's accounts are opened so long before midnight: their leases are on disk by then
)


@dataclass(frozen=True)
class ServiceSettings:
    ledger: LedgerSettings = field(default_factory=LedgerSettings)
    engine: EngineSettings = field(default_factory=EngineSettings)
    control: ControlSettings = field(default_factory=ControlSettings)


class BidServer:
    """Opens the state folder, brings campaigns up to date, decides the current tick, and is ready to bid.

    Args:
        controller: decides multipliers; `shadows` advise; `others` are for budget-split tests, by name.
        background: run the control path and the housekeeping in a thread. Without it the owner calls `tick` and
            `housekeep`: for tests and simulations with a clock of their own.

    Raises:
        RankloomError: the state folder is in use or damaged.
    """

    def __init__(
        self,
        campaigns: CampaignFile,
        state: Path,
        controller: RemoteController,
        *,
        settings: ServiceSettings | None = None,
        shadows: Sequence[RemoteController] = (),
        others: Mapping[str, RemoteController] | None = None,
        clock: Callable[[], int] = lambda: time.time_ns() // 1000,
        background: bool = True,
        keep_log: bool = False,
        boot: str | None = None,
    ) -> None:
        self.settings, self.clock, self.state = settings or ServiceSettings(), clock, state
        self.n_ticks = self.settings.ledger.n_ticks
        state.mkdir(parents=True, exist_ok=True)
        now = clock()
        self.ledger = Ledger(
            state / "ledger", self.settings.ledger, now=now, background=background, keep=keep_log, boot=boot
        )
        try:
            with self.ledger.lock:  # its syncing thread runs already
                self.p_model = SegmentTable()
                self._merge(campaigns)
                engine_settings = self.settings.engine
                self.engine = Engine(
                    self.ledger, [], self.p_model, engine_settings, secret=_secret(state / "secret.key"), clock=clock
                )
                self.engine.killed = bool(self.ledger.documents.get("killed", False))
                self.control = Control(
                    self.engine, controller, settings=self.settings.control, others=others, shadows=shadows,
                    log=state / "decisions",
                )  # fmt: skip
                self.campaigns: dict[str, Campaign] = {}
                self._load_arms()
                self.engine.rebuild()
                self.last_error: str | None = None
                self._due = threading.Event()
                self._stop = threading.Event()
                self._traffic: list[SlotTraffic] = []
                self._roll(now)
                for campaign in self.campaigns.values():
                    self._apply_budget(campaign)  # a file may have been changed since
                self._calibrate(now)
                self._resume_multipliers()
                self.engine.on_boundary = self._boundary
            self.tick()
            self.ledger.sync()
        except BaseException:
            self.ledger.close()
            raise
        self._thread: threading.Thread | None = None
        self.ready = True
        if background:
            self._thread = threading.Thread(target=self._run, name="bid-control", daemon=True)
            self._thread.start()

    # -- campaigns ----------------------------------------------------------------------------------------------------

    def _merge(self, campaigns: CampaignFile) -> None:
        """A campaign whose entry in the file is new or changed is taken from the file; changes made since stay otherwise."""
        names = set()
        for own in campaigns.campaigns:
            spec = own.model_dump(mode="json")
            mark = hashlib.sha256(json.dumps(spec, sort_keys=True).encode()).hexdigest()
            names.add(own.campaign_id)
            known = self.ledger.documents.get(f"campaign:{own.campaign_id}")
            if known is None or known["file"] != mark:
                status = known["status"] if known is not None and known["status"] != "removed" else "running"
                self.ledger.put_document(f"campaign:{own.campaign_id}", {"file": mark, "spec": spec, "status": status})
            elif known["status"] == "removed":
                self.ledger.put_document(f"campaign:{own.campaign_id}", {**known, "status": "running"})
        for name, known in list(self.ledger.documents.items()):
            if name.startswith("campaign:") and known["file"] and name[9:] not in names:
                self.ledger.put_document(name, {**known, "status": "removed"})
        if len(names) != len(campaigns.campaigns):
            raise RankloomError(
                "two campaigns have one id", place="--campaigns", action="make the ids unique", code="campaign-twice"
            )

    def _load_arms(self) -> None:
        for name, known in self.ledger.documents.items():
            if name.startswith("campaign:") and known["status"] != "removed":
                self._install(Campaign.model_validate(known["spec"]), known["status"])

    def _install(self, campaign: Campaign, status: str) -> None:
        self.campaigns[campaign.campaign_id] = campaign
        self.p_model.add(campaign)
        for key, low, high in _arms(campaign):
            arm = self.engine.arms.get(key)
            if arm is None:
                arm = self.engine.arms[key] = Arm(key, campaign)
            arm.set_campaign(campaign)
            arm.low, arm.high, arm.status = low, high, status
        if campaign.experiment is None:
            self.engine.arms.pop(f"{campaign.campaign_id}#B", None)

    def put_campaign(self, data: Any) -> dict[str, Any]:
        """Adds a campaign, or replaces one; it bids from the next decision on, which is taken at once."""
        campaign: Campaign = check(data, Campaign, "campaign")
        with self.ledger.lock:
            known = self.ledger.documents.get(f"campaign:{campaign.campaign_id}")
            new = known is None or known["status"] == "removed"
            if not new and (self.campaigns[campaign.campaign_id].experiment is None) != (campaign.experiment is None):
                raise RankloomError(
                    "a budget-split test begins and ends with a campaign, not in the middle of its day",
                    place="experiment",
                    action="add the campaign under another id",
                    code="experiment-fixed",
                )
            status = "running" if new or known is None else known["status"]
            file = "" if known is None else known["file"]
            self.ledger.put_document(
                f"campaign:{campaign.campaign_id}",
                {"file": file, "spec": campaign.model_dump(mode="json"), "status": status},
            )
            self._install(campaign, status)
            self._apply_budget(campaign)
            self._roll(self.clock())
            self.engine.rebuild()
        self._commit()
        self.decide_now()
        return {"campaign_id": campaign.campaign_id, "new": new}

    def change_campaign(self, campaign_id: str, data: Any) -> dict[str, Any]:
        """Changes budget, cost limit, flight or status of a running campaign, durably, from now on.

        Raises:
            RankloomError: no such campaign, or a bad value.
        """
        change: CampaignChange = check(data, CampaignChange, f"campaign {campaign_id}")
        with self.ledger.lock:
            campaign = self._known(campaign_id)
            known = self.ledger.documents[f"campaign:{campaign_id}"]
            update: dict[str, Any] = {
                name: getattr(change, name)
                for name in ("budget_micros", "max_cpm_micros", "start", "end")
                if getattr(change, name) is not None
            }
            if change.target_cpa_micros is not None:
                update["target_cpa_micros"] = change.target_cpa_micros or None
            if change.budget_micros == 0:
                raise RankloomError(
                    "a budget of 0", place="budget_micros", action='set `"status": "paused"`', code="budget-zero"
                )
            campaign = check({**campaign.model_dump(), **update}, Campaign, f"campaign {campaign_id}")
            status = change.status or known["status"]
            self.ledger.put_document(
                f"campaign:{campaign_id}", {**known, "spec": campaign.model_dump(mode="json"), "status": status}
            )
            self._install(campaign, status)
            if change.budget_micros is not None:
                self._apply_budget(campaign)
            self._roll(self.clock())
            self.engine.rebuild()
        self._commit()
        if status == "running":
            self.decide_now()
        return self.describe(campaign_id)

    def _apply_budget(self, campaign: Campaign) -> None:
        for key, _, _ in _arms(campaign):
            arm = self.engine.arms[key]
            if arm.account:
                self.ledger.set_budget(arm.account, _share(campaign, key))

    def kill(self, on: bool) -> None:
        """The global kill switch: from the next request on there is no bid. Survives a restart."""
        with self.ledger.lock:
            self.engine.killed = on
            self.ledger.put_document("killed", on)
        self._commit()

    def _known(self, campaign_id: str) -> Campaign:
        if campaign_id not in self.campaigns:
            raise RankloomError(
                f"no campaign {campaign_id!r}",
                place="campaign_id",
                action="see GET /v1/campaigns",
                code="campaign-unknown",
            )
        return self.campaigns[campaign_id]

    def _commit(self) -> None:
        self.ledger.sync()

    # -- time ----------------------------------------------------------------------------------------------------------

    def _roll(self, now: int) -> bool:
        """Gives every arm the account and tick of its local time; True where some tick is new. Holder of the lock only."""
        new, boundary = False, 1 << 62
        for arm in self.engine.arms.values():
            account = self.ledger.accounts.get(arm.account)
            if account is None or not account.day_start <= now < account.day_end:
                account = self._open_day(arm, now) if arm.campaign.running(now) else None
                index = 0 if account is None else account.index
                new |= index != arm.account
                if index != arm.account:
                    arm.reasons.clear()
                arm.account = index
            elif not arm.campaign.running(now):
                arm.account, account = 0, None
            if account is None:
                # nothing to bid with: look again when the flight may have begun
                boundary = min(boundary, now + 60_000_000)
                continue
            tick = tick_of(account, now, self.n_ticks)
            new |= tick != arm.tick
            arm.tick = tick
            boundary = min(boundary, tick_end(account, tick, self.n_ticks))
            end = arm.campaign.end
            if end is not None:
                boundary = min(boundary, max(round(end.timestamp() * 1e6), now + 1))
        self.engine.next_boundary = boundary
        if new:
            self.engine.generation += 1
        return new

    def _open_day(self, arm: Arm, now: int) -> Account:
        day, start, end = arm.campaign.day(now)
        return self.ledger.open_account(
            arm.key, day, day_start=start, day_end=end, budget=_share(arm.campaign, arm.key)
        )

    def _boundary(self, now: int) -> None:
        """A request is the first to come after a tick's end: opportunities so far belong to the old tick."""
        traffic = self.engine.collect()
        if self._roll(now):
            self._traffic = traffic
            self._due.set()

    def _resume_multipliers(self) -> None:
        """After a restart the last multiplier of the day holds until the controller was asked."""
        for arm in self.engine.arms.values():
            account = self.ledger.accounts.get(arm.account)
            if account is not None:
                past = [own for own in account.series["multiplier"][: arm.tick + 1] if own]
                arm.multiplier = arm.standby = past[-1] if past else 0

    def tick(self) -> None:
        """One round of the control path for the current time."""
        now = self.clock()
        with self.ledger.lock:
            traffic = self._traffic + self.engine.collect()
            self._traffic = []
            self._roll(now)
            self._calibrate(now)
        self.control.run(now, traffic=traffic or None)

    def decide_now(self) -> None:
        """Asks the controller in the middle of a tick, because a campaign came or changed."""
        if self._thread is None:
            self.tick()
        else:
            self._due.set()

    def _calibrate(self, now: int) -> None:
        """Compares p with conversions of ticks that are over, day by day, over the days the ledger still knows."""
        evidence: dict[str, tuple[float, float]] = {}
        for own in self.ledger.accounts.values():
            campaign = own.campaign.removesuffix("#B")
            last = tick_of(own, now, self.n_ticks) if now < own.day_end else self.n_ticks
            predicted = sum(own.series["value"][:last]) / PPB
            realised = sum(own.series["conversions"][:last])
            if campaign in self.campaigns:
                before = evidence.get(campaign, (0.0, 0.0))
                factor = self.p_model.factor.get(campaign, 1.0)
                # `value` was booked with the factor of its time; the table's own prediction is close to it over today's
                evidence[campaign] = (before[0] + predicted / factor, before[1] + realised)
        reported = {own: pair for own, pair in evidence.items() if pair[1] > 0}
        if reported:  # without any report of a conversion silence is not evidence
            self.p_model.calibrate(reported)
            self.engine.rebuild()

    def housekeep(self) -> None:
        """What a second brings: lapsed reservations, opportunities, finished days, snapshots."""
        now = self.clock()
        with self.ledger.lock:
            self.ledger.expire(now, 5000)
            traffic = self.engine.collect()
            self._traffic = _merged(self._traffic, traffic)
            if now >= self.engine.next_boundary and self._roll(now):
                self._due.set()
            for arm in self.engine.arms.values():
                account = self.ledger.accounts.get(arm.account)
                if account is not None and account.day_end - now < _AHEAD_US and arm.campaign.running(account.day_end):
                    self._open_day(arm, account.day_end)
            finished = [
                body
                for index, own in list(self.ledger.accounts.items())
                if own.day_end <= now and (body := self.ledger.close_account(index)) is not None
            ]
            if finished:
                self._learn_profiles(finished)
            try:
                self.ledger.flush()
            except OSError:
                return
            large = self.ledger.log_bytes > _SNAPSHOT_BYTES
        if finished:
            folder = self.state / "days"
            folder.mkdir(exist_ok=True)
            for body in finished:
                with open(folder / f"{body['day']}.jsonl", "a", encoding="utf-8") as handle:
                    handle.write(json.dumps(body) + "\n")
        if large:
            self.compact()

    def compact(self, *, wait: bool = False) -> None:
        """Forgets what is too old and snapshots the ledger."""
        with self.ledger.lock:
            self.ledger.forget(self.clock())
            self.ledger.snapshot(wait=wait)

    def _learn_profiles(self, finished: Iterable[dict[str, Any]]) -> None:
        profiles = dict(self.ledger.documents.get("profiles", {}))
        for body in finished:
            seen = body["series"]["volume"]
            if sum(seen):
                old = profiles.get(body["campaign"], seen)
                profiles[body["campaign"]] = [(a + b) / 2 for a, b in zip(old, seen, strict=True)]
        self.ledger.put_document("profiles", profiles)

    def _run(self) -> None:
        while not self._stop.is_set():
            due = self._due.wait(1.0)
            if self._stop.is_set():
                return
            try:
                if due:
                    self._due.clear()
                    self.tick()
                self.housekeep()
            except Exception as error:  # the bid path goes stale and says so; this loop must not end
                self.engine.counts["control_errors"] += 1
                self.last_error = f"{type(error).__name__}: {error}"

    # -- requests and notices ------------------------------------------------------------------------------------------

    def bid(self, body: bytes, *, started: float | None = None) -> Reply:
        return self.engine.bid(body, started=started)

    def notice(
        self, kind: str, token: str, proof: str, *, price: str = "", min_to_win: str = "", loss: str = ""
    ) -> str:
        """Applies a notice; acknowledge it after `ledger.sync()` or in `ledger.when_synced`."""
        return self.engine.notice(kind, token, proof, price=price, min_to_win=min_to_win, loss=loss)

    def convert(self, conversions: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Counts conversions by the bid that earned them (`bid_id`), or by campaign where only that is known.

        A conversion is counted in the tick of its auction, on its own day, once per `conversion_id`.
        """
        accepted = duplicate = 0
        rejected: list[dict[str, Any]] = []
        with self.ledger.lock:
            now = self.clock()
            for place, own in enumerate(conversions):
                where = self._earned_by(own, now)
                if where is None:
                    what = "bid" if own.get("bid_id") else "campaign"
                    rejected.append(
                        {"index": place, "code": f"{what}-unknown", "message": f"no such {what}, or it is too old"}
                    )
                elif self.ledger.add_conversion(
                    own["conversion_id"], *where, value=own.get("value_micros") or 0, now=now
                ):
                    accepted += 1
                else:
                    duplicate += 1
            self.ledger.flush()
        self.engine.counts["conversions_accepted"] += accepted
        return {"accepted": accepted, "duplicate": duplicate, "rejected": rejected}

    def _earned_by(self, own: Mapping[str, Any], now: int) -> tuple[int, int] | None:
        token = own.get("bid_id")
        if token:
            try:
                known = self.ledger.bid(int(token.split("-")[0], 16))
            except ValueError:
                return None
            if known is None or known.account not in self.ledger.accounts:
                return None
            return known.account, known.tick
        arm = self.engine.arms.get(str(own.get("campaign_id")))
        account = None if arm is None else self.ledger.accounts.get(arm.account)
        return None if account is None else (account.index, tick_of(account, now, self.n_ticks))

    # -- what people and machines read ---------------------------------------------------------------------------------

    def describe(self, campaign_id: str) -> dict[str, Any]:
        """A campaign's settings and the state of its day; two arms where it is split."""
        campaign = self._known(campaign_id)
        with self.ledger.lock:
            arms = []
            for key, _, _ in _arms(campaign):
                arm = self.engine.arms[key]
                account = self.ledger.accounts.get(arm.account)
                body: dict[str, Any] = {"arm": key, "tick": arm.tick, "multiplier_micros": arm.multiplier}
                if account is not None:
                    body |= {
                        "day": account.day, "budget_micros": account.budget, "spent_micros": account.spent,
                        "reserved_micros": account.reserved, "available_micros": account.available, "bids": account.bids,
                        "wins": account.wins, "billed": account.bills, "late_bills": account.late_bills,
                        "late_micros": account.late, "disputed_micros": account.disputed,
                        "conversions": sum(account.series["conversions"]),
                        "expected_conversions": round(sum(account.series["value"]) / PPB, 6),
                    }  # fmt: skip
                arms.append(body)
            status = self.ledger.documents[f"campaign:{campaign_id}"]["status"]
        return {
            "campaign_id": campaign_id, "name": campaign.name, "status": status, "running": campaign.running(self.clock()),
            "budget_micros": campaign.budget_micros, "target_cpa_micros": campaign.target_cpa_micros,
            "timezone": campaign.timezone,
            "n_ticks": self.n_ticks, "currency": self.settings.engine.currency, "arms": arms,
        }  # fmt: skip

    def explain(self, campaign_id: str) -> dict[str, Any]:
        """The latest decision about a campaign and why; `arms` where it is split in two."""
        campaign = self._known(campaign_id)
        found = [own for key, _, _ in _arms(campaign) if (own := self.control.explanations.get(key)) is not None]
        if not found:
            raise RankloomError(
                f"no decision about {campaign_id!r} yet",
                place="campaign_id",
                action="ask again after the next tick; outside its flight a campaign gets none",
                code="not-decided",
            )
        return {**found[0], "arms": found} if len(found) > 1 else found[0]

    def series(self, campaign_id: str) -> dict[str, Any]:
        """A campaign's day tick by tick, for plots; money in micros, both arms of a split added up."""
        campaign = self._known(campaign_id)
        with self.ledger.lock:
            accounts = [
                self.ledger.accounts[arm.account]
                for key, _, _ in _arms(campaign)
                if (arm := self.engine.arms[key]).account in self.ledger.accounts
            ]
            if not accounts:
                return {"campaign_id": campaign_id, "tick": 0, "n_ticks": self.n_ticks, "series": {}}
            ticks = max(self.engine.arms[key].tick for key, _, _ in _arms(campaign))
            names = ("spend", "value", "conversions", "bids", "won", "exposed", "volume", "bid_sum")
            series = {
                name: [sum(column) for column in zip(*(own.series[name] for own in accounts), strict=True)]
                for name in names
            }
            series["multiplier"] = accounts[0].series["multiplier"].tolist()
            budget = sum(own.budget for own in accounts)
        plan = self.control.explanations.get(campaign_id, {}).get("plan", {}).get("per_tick_micros", [])
        return {
            "campaign_id": campaign_id, "tick": ticks, "n_ticks": self.n_ticks, "budget_micros": budget,
            "target_cpa_micros": campaign.target_cpa_micros, "series": series, "plan": plan,
        }  # fmt: skip

    def metrics(self) -> str:
        """Prometheus text."""
        engine, ledger = self.engine, self.ledger
        with ledger.lock:
            lines = []
            for name, value in sorted(engine.counts.items()):
                lines.append(f"rankloom_bid_{name.replace('-', '_')}_total {value}")
            lines += [f'rankloom_bid_no_bids_total{{reason="{own}"}} {n}' for own, n in sorted(engine.reasons.items())]
            lines += [f"rankloom_bid_control_{name}_total {n}" for name, n in sorted(self.control.counts.items())]
            lines.append(f"rankloom_bid_control_seconds {self.control.seconds:.6f}")
            lines.append(f"rankloom_bid_control_stale {int(engine.stale)}")
            lines.append(f"rankloom_bid_killed {int(engine.killed)}")
            lines.append(f"rankloom_bid_ledger_healthy {int(ledger.healthy)}")
            lines.append(f"rankloom_bid_ledger_log_bytes {ledger.log_bytes}")
            for arm in engine.arms.values():
                account = ledger.accounts.get(arm.account)
                if account is None:
                    continue
                label = f'{{campaign="{_label(arm.campaign.campaign_id)}",arm="{_label(arm.key)}"}}'
                for name in ("budget", "spent", "reserved", "held", "late", "disputed"):
                    lines.append(f"rankloom_bid_{name}_micros{label} {getattr(account, name)}")
                for name in ("bids", "wins", "bills", "losses", "expired", "late_bills"):
                    lines.append(f"rankloom_bid_campaign_{name}_total{label} {getattr(account, name)}")
                lines.append(f"rankloom_bid_multiplier_micros{label} {arm.multiplier}")
        return "\n".join(lines) + "\n"

    def unready(self) -> str | None:
        """Why this server should get no traffic, or None."""
        if not self.ready:
            return "stopping"
        if not self.ledger.healthy:
            return "the ledger cannot be written"
        if self.engine.clock() > self.engine.dead_after:
            return "the control path has not decided for too long"
        return None

    def close(self) -> None:
        """Stops bidding, keeps everything. Notices may be applied until here."""
        self.ready = False
        self._stop.set()
        self._due.set()
        if self._thread is not None:
            self._thread.join(timeout=30)
        with self.ledger.lock:
            self.engine.collect()
        self.control.close()
        self.ledger.close()


def _arms(campaign: Campaign) -> list[tuple[str, int, int]]:
    """Account holders of a campaign and their traffic buckets."""
    if campaign.experiment is None:
        return [(campaign.campaign_id, 0, BUCKETS)]
    cut = min(max(round(campaign.experiment.share * BUCKETS), 1), BUCKETS - 1)
    return [(campaign.campaign_id, cut, BUCKETS), (f"{campaign.campaign_id}#B", 0, cut)]


def _share(campaign: Campaign, key: str) -> int:
    """An arm's part of the budget; the parts add up to the whole."""
    if campaign.experiment is None:
        return campaign.budget_micros
    cut = _arms(campaign)[1][2]
    second = campaign.budget_micros * cut // BUCKETS
    return second if key.endswith("#B") else campaign.budget_micros - second


def _merged(old: list[SlotTraffic], new: list[SlotTraffic]) -> list[SlotTraffic]:
    return (old + new)[-4096:]


def _label(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def _secret(path: Path) -> bytes:
    """The key of the notices' marks, made once; a lost key would orphan every notice under way."""
    try:
        return path.read_bytes()
    except FileNotFoundError:
        secret = secrets.token_bytes(32)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            os.write(descriptor, secret)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        return secret
