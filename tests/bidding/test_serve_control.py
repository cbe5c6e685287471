"""The control path: what controllers see, what limits and replaces them, and that explanations say what was decided."""

from __future__ import annotations

import json
import math
import os
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rankloom.bidding.protocol import Campaigns, Decision, History, Observation
from rankloom.bidding.serve.campaigns import Campaign, CampaignFile, load_campaigns
from rankloom.bidding.serve.control import ControlSettings, checked, history_of
from rankloom.bidding.serve.explain import responses, sentence, slope
from rankloom.bidding.serve.fallback import SafePacing
from rankloom.bidding.serve.landscape import Landscape
from rankloom.bidding.serve.ledger import LedgerSettings
from rankloom.bidding.serve.money import PPB
from rankloom.bidding.serve.service import BidServer
from rankloom.bidding.serve.slots import SlotTraffic
from rankloom.bidding.serve.worker import ControllerFailedError, LocalController, Sessions, WorkerController, as_of
from rankloom.errors import RankloomError

from .openrtb_requests import BANNER, campaign_file, request
from .serve_server import MORNING, SECOND, TICK, Clock, Scripted, ask, local, offers, proof, serve


def buy(server: BidServer, n: int, price: str = "5", **top: Any) -> list[str]:
    """Wins and pays for `n` impressions; returns their bid ids."""
    tokens = []
    for _ in range(n):
        _, answer = ask(server, request({"banner": BANNER}, **top))
        token, mark = proof(offers(answer)[0]["burl"])
        assert server.notice("bill", token, mark, price=price) == "billed"
        tokens.append(token)
    return tokens


def following(server: BidServer, clock: Clock) -> None:
    clock.now += TICK
    server.housekeep()
    server.tick()


# -- starting ----------------------------------------------------------------------------------------------------------------


def test_starting_and_the_syncing_thread_do_not_meet_in_the_journal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A write that takes its time, as on a busy disk: what is appended meanwhile must wait for it."""
    write = os.write

    def slow(descriptor: int, data: Any) -> int:
        with memoryview(data) as held:  # what os.write itself does while it lets other threads run
            time.sleep(0.002)
            return write(descriptor, held)

    monkeypatch.setattr("rankloom.bidding.serve.journal.os.write", slow)
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)  # the thread takes its turn as soon as there is something to sync
    try:
        server = BidServer(campaign_file(12), tmp_path, local(Scripted(lambda _: 20.0)), clock=Clock(), boot="test")
        assert len(server.ledger.accounts) == 12
        assert server.ledger.audit() == []
        server.close()
    finally:
        sys.setswitchinterval(interval)


# -- what a controller sees --------------------------------------------------------------------------------------------------


def test_the_observation_is_the_ledger_of_the_day(tmp_path: Path) -> None:
    clock, controller = Clock(), Scripted(lambda o: 20.0 + o.tick)
    server = serve(tmp_path, local(controller), campaigns=campaign_file(1), clock=clock)
    tokens = buy(server, 3)
    ask(server, request({"banner": BANNER, "bidfloor": 99}))  # an opportunity without a bid
    server.convert([{"conversion_id": "x", "bid_id": tokens[0]}])
    following(server, clock)
    seen = controller.seen[-1]
    history = seen.history
    assert (seen.tick, history.n_ticks) == (1, 1)
    assert history.multiplier_NT[0, 0] == 20.0
    assert history.spend_NT[0, 0] == pytest.approx(0.015)
    assert history.value_NT[0, 0] == pytest.approx(0.003)
    assert (history.conversions_NT[0, 0], history.volume_NT[0, 0], history.exposed_NT[0, 0]) == (1, 4, 3)
    assert history.p_sum_NT[0, 0] == pytest.approx(0.004)
    assert history.bid_sum_NT[0, 0] == pytest.approx(0.08)
    assert seen.remaining_N[0] == pytest.approx(50 - 0.015)
    assert seen.campaigns.target_cpa_N[0] == 20.0
    server.close()


def test_late_notices_and_conversions_belong_to_the_tick_of_the_auction(tmp_path: Path) -> None:
    clock = Clock()
    server = serve(tmp_path, campaigns=campaign_file(1), clock=clock)
    _, answer = ask(server, request({"banner": BANNER}))
    token, mark = proof(offers(answer)[0]["burl"])
    clock.now += TICK + SECOND
    server.housekeep()
    server.tick()
    server.notice("bill", token, mark, price="4")
    assert server.convert([{"conversion_id": "late", "bid_id": token}] * 2) == {
        "accepted": 1,
        "duplicate": 1,
        "rejected": [],
    }
    account = next(iter(server.ledger.accounts.values()))
    history = history_of([account], 2)
    assert history.spend_NT[0].tolist() == [0.004, 0.0]
    assert history.conversions_NT[0].tolist() == [1, 0]
    server.close()


def test_days_start_at_the_campaigns_own_midnight(tmp_path: Path) -> None:
    berlin = campaign_file(1, timezone="Europe/Berlin").campaigns[0]
    summer = datetime(2026, 3, 29, 12, tzinfo=UTC)
    _, start, end = berlin.day(int(summer.timestamp() * 1e6))
    assert (end - start) == 23 * 3600 * SECOND  # the clocks go forward
    clock = Clock(MORNING)
    server = serve(tmp_path, campaigns=campaign_file(1, timezone="Asia/Shanghai"), clock=clock)
    account = next(iter(server.ledger.accounts.values()))
    assert account.day_end == MORNING + 16 * 3600 * SECOND
    buy(server, 2)
    clock.now = account.day_end - 60 * SECOND
    server.housekeep()
    assert len(server.ledger.accounts) == 2  # tomorrow is opened ahead
    clock.now = account.day_end + SECOND
    server.tick()
    assert ask(server, request({"banner": BANNER}))[0].status == 200
    new = server.ledger.accounts[server.engine.arms["c0"].account]
    assert (new.budget, new.spent, account.spent) == (50_000_000, 0, 10_000)
    server.close()


def test_a_finished_day_is_archived_and_teaches_tomorrows_traffic(tmp_path: Path) -> None:
    clock, controller = Clock(), Scripted(lambda _: 20.0)
    limits = LedgerSettings(win_s=10, bill_s=60, remember_s=60)
    server = serve(tmp_path, local(controller), campaigns=campaign_file(1), clock=clock, ledger=limits)
    buy(server, 4)
    assert controller.seen[-1].volume_forecast_N is None
    clock.now += 47 * TICK + 1700 * SECOND
    server.housekeep()
    clock.now = MORNING + 48 * TICK + 131 * SECOND
    server.housekeep()
    server.tick()
    (line,) = [line for path in (tmp_path / "days").iterdir() for line in path.read_text().splitlines()]
    assert (json.loads(line)["spent"], json.loads(line)["campaign"]) == (20_000, "c0")
    assert [own.day_start for own in server.ledger.accounts.values()] == [MORNING + 48 * TICK]
    assert controller.seen[-1].tick == 0
    assert controller.seen[-1].volume_forecast_N.tolist() == [4.0]
    server.compact(wait=True)
    server.close()


def test_a_flight_begins_and_ends(tmp_path: Path) -> None:
    clock = Clock(MORNING + 3 * TICK)
    start, end = (datetime.fromtimestamp((MORNING + k * TICK) / 1e6, UTC).isoformat() for k in (4, 6))
    server = serve(tmp_path, campaigns=campaign_file(1, start=start, end=end), clock=clock)
    states = []
    for _ in range(4):
        states.append(ask(server, request({"banner": BANNER}))[0].status)
        following(server, clock)
    assert states == [204, 200, 200, 204]
    server.close()


# -- limits and fallback -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [math.nan, math.inf, -1.0])
def test_a_multiplier_that_is_no_number_is_replaced_and_written_down(tmp_path: Path, bad: float) -> None:
    server = serve(tmp_path, local(Scripted(lambda _: bad)), campaigns=campaign_file(2))
    why = server.explain("c0")
    assert (why["source"], why["binding"]) == ("fallback", "fallback")
    assert "malformed" in why["fallback_reason"]
    assert why["multiplier_micros"] == 20_000_000  # safe pacing starts at the cost limit
    assert ask(server, request({"banner": BANNER}))[0].status == 200
    assert server.control.counts["fallback_malformed"] == 2
    server.close()


def test_a_failing_controller_never_stops_the_bids(tmp_path: Path) -> None:
    def fail(_: Observation) -> float:
        raise RuntimeError("out of memory")

    server = serve(tmp_path, local(Scripted(fail)))
    assert server.explain("c1")["fallback_reason"] == "error: RuntimeError: out of memory"
    assert "safe pacing decides" in server.explain("c1")["text"]
    assert ask(server, request({"banner": BANNER}))[0].status == 200
    server.close()


def test_decisions_of_the_wrong_form_are_told() -> None:
    ok = Decision(np.ones(2), ("none", "cpa"))
    assert checked(ok, 2) is None
    for bad in (
        Decision(np.ones(3), ("none",) * 3),
        Decision(np.ones(2), ("none",)),
        Decision(np.ones(2), ("none", "luck")),
    ):
        assert checked(bad, 2) is not None


def test_a_multiplier_moves_by_steps_and_under_a_ceiling(tmp_path: Path) -> None:
    clock, plan = Clock(), [20.0, 1000.0, 1000.0, 0.001, 0.0]
    server = serve(
        tmp_path, local(Scripted(lambda o: plan[min(o.tick, 4)])), campaigns=campaign_file(1), clock=clock,
        control=ControlSettings(max_step=2.0, max_ratio=3.0),
    )  # fmt: skip
    got = []
    for _ in plan:
        why = server.explain("c0")
        got.append(why["multiplier_micros"] / 1e6)
        assert bool(why["limited_by"]) == (why["multiplier_micros"] != why["proposed_micros"])
        assert all(limit in why["text"] for limit in why["limited_by"])
        following(server, clock)
    assert got == [20.0, 40.0, 60.0, 30.0, 0.0]
    server.close()


def test_a_stale_decision_gives_way_to_the_standby_and_then_to_silence(tmp_path: Path) -> None:
    clock = Clock()
    server = serve(tmp_path, local(Scripted(lambda _: 60.0)), campaigns=campaign_file(1), clock=clock)
    server.engine.on_boundary = lambda _: None  # nobody decides any more
    assert offers(ask(server, request({"banner": BANNER}))[1])[0]["price"] == 60.0
    clock.now += 2 * TICK
    assert offers(ask(server, request({"banner": BANNER}))[1])[0]["price"] == 20.0
    assert server.engine.stale
    assert server.unready() is None
    clock.now += 3 * TICK
    assert ask(server, request({"banner": BANNER}))[0].reason == "control-stale"
    assert server.unready() is not None
    server.tick()
    assert offers(ask(server, request({"banner": BANNER}))[1])[0]["price"] == 60.0
    server.close()


def test_shadows_advise_and_never_decide(tmp_path: Path) -> None:
    def fail(_: Observation) -> float:
        raise RuntimeError

    good, bad = Scripted(lambda _: 3.0), Scripted(fail)
    good.name, bad.name = "good", "bad"
    server = serve(tmp_path, shadows=[local(good), local(bad)])
    why = server.explain("c2")
    assert why["shadows"] == {"good": 3_000_000}
    assert why["multiplier_micros"] == 20_000_000
    server.close()


def test_changes_in_the_middle_of_a_day_reach_ledger_and_controller_and_survive_a_restart(tmp_path: Path) -> None:
    clock, controller = Clock(), Scripted(lambda _: 20.0)
    server = serve(tmp_path, local(controller), campaigns=campaign_file(2), clock=clock)
    buy(server, 2)
    server.change_campaign("c1", {"budget_micros": 7_000_000, "target_cpa_micros": 0})
    seen = controller.seen[-1].campaigns
    assert seen.budget_N.tolist() == [50.0, 7.0]
    assert seen.target_cpa_N.tolist() == [20.0, math.inf]
    server.put_campaign({**campaign_file(1).campaigns[0].model_dump(mode="json"), "campaign_id": "new"})
    server.change_campaign("c0", {"status": "paused"})
    server.kill(True)
    spent = {own.campaign: own.spent for own in server.ledger.accounts.values()}
    server.close()
    again = serve(tmp_path, local(controller), campaigns=campaign_file(2), clock=clock)
    assert again.engine.killed
    assert again.describe("c0")["status"] == "paused"
    assert again.describe("c1")["budget_micros"] == 7_000_000
    assert again.describe("new")["status"] == "running"
    assert {own.campaign: own.spent for own in again.ledger.accounts.values()} == spent
    again.close()
    changed = serve(tmp_path, local(controller), campaigns=campaign_file(2, budget_micros=60_000_000), clock=clock)
    assert changed.describe("c1")["budget_micros"] == 60_000_000  # a changed file wins
    assert changed.describe("c1")["arms"][0]["budget_micros"] == 60_000_000
    changed.close()


@pytest.mark.parametrize(
    ("change", "code"),
    [({"budget_micros": 0}, "budget-zero"), ({"budget_micros": -1}, "campaign-malformed"), ({"nonsense": 1}, "campaign-malformed"),
     ({"status": "asleep"}, "campaign-malformed")],
)  # fmt: skip
def test_a_bad_change_is_refused_whole(tmp_path: Path, change: dict[str, Any], code: str) -> None:
    server = serve(tmp_path)
    before = server.ledger.digest()
    with pytest.raises(RankloomError) as refused:
        server.change_campaign("c0", change)
    assert refused.value.code == code
    assert server.ledger.digest() == before
    server.close()


# -- explanations ------------------------------------------------------------------------------------------------------------


def test_an_explanation_is_the_decision_that_is_in_force(tmp_path: Path) -> None:
    clock = Clock()
    controller = Scripted(
        lambda o: Decision(
            np.full(o.campaigns.n, 20.0 + o.tick), ("budget", "cpa"), np.full((o.campaigns.n, 48 - o.tick), 5.0)
        )
    )
    server = serve(tmp_path, local(controller), campaigns=campaign_file(2), clock=clock)
    for tick in range(6):
        for name, binding in (("c0", "budget"), ("c1", "cpa")):
            why, account = server.explain(name), server.ledger.accounts[server.engine.arms[name].account]
            assert why["multiplier_micros"] == server.engine.arms[name].multiplier == account.series["multiplier"][tick]
            assert (why["tick"], why["binding"], why["source"]) == (tick, binding, "controller")
            assert why["state"]["spent_micros"] == account.spent
            assert len(why["plan"]["per_tick_micros"]) == 48 - tick
            assert sum(why["plan"]["per_tick_micros"]) == why["plan"]["total_micros"] <= account.budget - account.spent
            assert why["text"] == sentence(why)
        buy(server, 5)
        following(server, clock)
    lines = [json.loads(line) for path in (tmp_path / "decisions").iterdir() for line in path.read_text().splitlines()]
    assert len(lines) == 2 * 7
    assert lines[-1] == server.explain("c1")
    server.close()


def test_without_a_plan_the_rest_of_the_budget_is_spread_evenly(tmp_path: Path) -> None:
    server = serve(tmp_path)
    plan = server.explain("c0")["plan"]
    assert plan["total_micros"] == 50_000_000
    assert max(plan["per_tick_micros"]) - min(plan["per_tick_micros"]) <= 1
    server.close()


def test_what_ten_percent_more_would_do_follows_the_landscape() -> None:
    landscape = Landscape()
    for price in np.geomspace(1000, 9000, 500):
        landscape.saw(round(price))
    landscape.fit()
    slot = SlotTraffic(100, False, ("a", "b"), np.array([3000.0, 2900.0]), np.array([1, 1]))
    told = responses([slot], {1: landscape})
    more, now = told["a"]["cost_more"], told["a"]["cost_now"]
    assert more / now == pytest.approx(landscape.second_price(3300) / landscape.second_price(3000))
    assert told["b"]["all_now"] == 0  # its own sister outbids it,
    assert told["b"]["all_more"] == 100  # unless it bids 10% more
    assert responses([slot], {})["a"]["seen_now"] == 0


def test_the_slope_of_spend_against_the_multiplier() -> None:
    multiplier_T = np.linspace(10, 20, 12)
    volume_T = np.full(12, 50.0)
    assert slope(volume_T * multiplier_T**1.5, multiplier_T, volume_T) == pytest.approx(1.5)
    assert slope(volume_T, np.full(12, 10.0), volume_T) is None


def test_the_server_says_how_it_knows_what_ten_percent_more_would_do(tmp_path: Path) -> None:
    clock = Clock()
    server = serve(tmp_path, local(Scripted(lambda o: 20.0 + o.tick % 5)), campaigns=campaign_file(1), clock=clock)
    assert server.explain("c0")["ten_percent_more"] == {"basis": "none"}
    for _ in range(8):
        buy(server, 4 + server.engine.arms["c0"].tick % 5)
        for _ in range(3):
            ask(server, request({"banner": BANNER}))
        following(server, clock)
    assert server.explain("c0")["ten_percent_more"]["basis"] == "history"
    tag = next(iter(server.engine.landscapes))
    for price in np.geomspace(1000, 90_000, 500):
        server.engine.landscapes[tag].saw(round(price))
    server.engine.landscapes[tag].fit()
    buy(server, 4)
    following(server, clock)
    more = server.explain("c0")["ten_percent_more"]
    assert more["basis"] == "landscape"
    assert 0 < more["conversions"] < more["spend"] < 0.3  # the extra conversions cost more than the ones so far
    server.close()


# -- calibration ---------------------------------------------------------------------------------------------------------------


def test_p_follows_realised_conversions_within_bounds(tmp_path: Path) -> None:
    clock = Clock()
    campaigns = campaign_file(1, pcvr={"*": 0.1}, budget_micros=10**12, max_cpm_micros=10**9)
    server = serve(tmp_path, local(Scripted(lambda _: 20.0)), campaigns=campaigns, clock=clock)
    tokens = buy(server, 200)  # 20 conversions are predicted
    server.convert([{"conversion_id": f"o{n}", "bid_id": token} for n, token in enumerate(tokens[:60])])
    following(server, clock)
    assert server.p_model.factor["c0"] == pytest.approx((60 + 20) / (20 + 20))
    _, answer = ask(server, request({"banner": BANNER}))
    assert server.ledger.bid(int(offers(answer)[0]["id"].split("-")[0], 16)).p_ppb == PPB // 5  # type: ignore[union-attr]
    server.close()


# -- safe pacing -----------------------------------------------------------------------------------------------------------------


def world(
    controller: Any, *, budget: float, target: float, volume: float = 1000.0, p: float = 1e-3, slope: float = 40.0
) -> History:
    """A day in which a multiplier m buys the share m / (m + slope) of the opportunities at 0.7 of the bid."""
    columns: dict[str, list[float]] = {name: [] for name in History.__dataclass_fields__}
    campaigns = Campaigns(np.array([budget]), np.array([target]), np.array([0]), ("c",))
    controller.start(campaigns, 0)
    spent = 0.0
    for tick in range(48):
        history = History(*(np.array([columns[name]]) for name in columns))
        own = Observation(tick, campaigns, history, np.array([budget - spent]), np.array([volume]), np.array([p]))
        m = float(controller.decide(own).multiplier_N[0])
        value = volume * p * m / (m + slope)
        cost = min(0.7 * m * value, budget - spent)
        spent += cost
        row = (m, cost, value, 0.0, volume, volume * p, volume * p * m, 0.0, 0.0, 0.0)
        for name, item in zip(columns, row, strict=True):
            columns[name].append(item)
    return History(*(np.array([columns[name]]) for name in columns))


def test_safe_pacing_spends_a_short_budget_over_the_whole_day() -> None:
    history = world(SafePacing(), budget=100.0, target=60.0)
    spend_T = history.spend_NT[0]
    assert spend_T.sum() == pytest.approx(100, rel=0.05)
    rest = 100 - spend_T[:6].sum()
    np.testing.assert_allclose(spend_T[6:], rest / 42, rtol=0.1)  # even, once the first costly ticks are over


def test_safe_pacing_with_money_to_spare_meets_the_cost_limit() -> None:
    history = world(SafePacing(), budget=1e9, target=60.0)
    cpa = history.spend_NT[0, 10:].sum() / history.value_NT[0, 10:].sum()
    assert cpa == pytest.approx(60, rel=0.1)


def test_safe_pacing_needs_no_cost_limit() -> None:
    history = world(SafePacing(), budget=100.0, target=math.inf)
    assert history.spend_NT[0].sum() == pytest.approx(100, rel=0.1)


# -- controllers at arm's length ---------------------------------------------------------------------------------------------


def observation(tick: int, n: int = 3) -> Observation:
    rng = np.random.default_rng(0)
    history = History(*(rng.uniform(1, 2, (n, 48))[:, :tick] for _ in range(10)))
    campaigns = Campaigns(np.full(n, 500.0), np.full(n, 60.0), np.zeros(n, np.int64), tuple("abc"[:n]))
    return Observation(tick, campaigns, history, np.full(n, 400.0))


class Counting:
    """Its multiplier is the number of ticks that it has been asked about."""

    name = "counting"

    def start(self, campaigns: Campaigns, seed: int) -> None:
        self.asked = 0

    def decide(self, own: Observation) -> Decision:
        assert own.history.n_ticks == own.tick == self.asked
        self.asked += 1
        return Decision(np.full(own.campaigns.n, float(self.asked)), ("none",) * own.campaigns.n)


def test_a_controller_that_comes_late_is_shown_the_day_so_far() -> None:
    sessions = Sessions(Counting)
    assert sessions.decide("c", observation(0), 0).multiplier_N[0] == 1
    assert sessions.decide("c", observation(1), 0).multiplier_N[0] == 2
    assert sessions.decide("c", observation(7), 0).multiplier_N[0] == 8  # ticks were missed
    assert sessions.decide("c", observation(7), 0).multiplier_N[0] == 8  # asked again in one tick
    assert sessions.decide("c", observation(8, n=2), 0).multiplier_N[0] == 9  # another batch
    past = as_of(observation(7), 3)
    assert past.history.n_ticks == 3
    np.testing.assert_allclose(past.remaining_N, 500 - observation(7).history.spend_NT[:, :3].sum(axis=1))


def test_a_late_answer_in_this_process_is_not_used() -> None:
    class Slow(Counting):
        def decide(self, own: Observation) -> Decision:
            time.sleep(0.02)
            return super().decide(own)

    with pytest.raises(ControllerFailedError) as late:
        LocalController(Slow).ask("c", observation(0), seed=0, deadline_s=0.001)
    assert late.value.kind == "late"


WORKER = """
import os, sys, time
import numpy as np
from rankloom.bidding.protocol import Decision
from rankloom.bidding.serve import worker
class Odd:
    name = "odd"
    def start(self, campaigns, seed): pass
    def decide(self, o):
        print("chatter")
        n = o.campaigns.n
        if o.remaining_N[0] == 1: time.sleep(1.0)
        if o.remaining_N[0] == 2: os._exit(3)
        if o.remaining_N[0] == 3: raise ValueError("no")
        return Decision(np.arange(n) + o.remaining_N, ("none",) * n, np.ones((n, 48 - o.tick)), {"x": np.ones(n)})
worker.resolve = lambda spec: Odd
worker.main("odd")
"""


def test_a_worker_process_may_answer_be_late_fail_and_die() -> None:
    own = WorkerController("odd", command=[sys.executable, "-c", WORKER])
    own.start()
    assert own.name == "odd"

    def asked(sign: int, deadline_s: float = 30.0) -> Any:
        fresh = observation(0)
        seen = Observation(
            0, fresh.campaigns, fresh.history, fresh.remaining_N if not sign else np.full(3, float(sign))
        )
        return own.ask("cohort", seen, seed=0, deadline_s=deadline_s)

    decision = asked(0)
    assert decision.multiplier_N.tolist() == [400.0, 401.0, 402.0]
    assert decision.planned_spend_NR.shape == (3, 48)
    assert decision.details["x"].tolist() == [1, 1, 1]
    with pytest.raises(ControllerFailedError) as late:
        asked(1, 0.05)
    assert late.value.kind == "late"
    with pytest.raises(ControllerFailedError) as busy:
        asked(0, 0.05)
    assert busy.value.kind == "busy"
    assert asked(0).multiplier_N[0] == 400.0  # its late answer was thrown away
    with pytest.raises(ControllerFailedError) as failed:
        asked(3)
    assert failed.value.kind == "error"
    with pytest.raises(ControllerFailedError) as dead:
        asked(2)
    assert dead.value.kind in ("crashed", "late")
    assert asked(0).multiplier_N[0] == 400.0  # it was started again
    own.close()


def test_a_controller_that_does_not_load_is_told_at_the_start() -> None:
    with pytest.raises(RankloomError, match="no controller is called"):
        WorkerController("nonsense").start()


# -- campaigns -------------------------------------------------------------------------------------------------------------------


def test_a_shops_advertisers_become_campaigns_with_tables_from_its_log(tmp_path: Path) -> None:
    from rankloom.simulation import generate_bazaar

    shop = generate_bazaar(tmp_path / "shop", seed=0, scale=0.05, quiet=True)
    loaded = load_campaigns(shop.path)
    assert len(loaded.campaigns) >= 10
    for own in loaded.campaigns:
        assert own.start is None  # a simulated flight lies in the past
        assert all(0 < p <= 1 for p in own.pcvr.values())
        assert {c.kind for c in own.creatives} == {"banner", "native"}
    assert len({p for own in loaded.campaigns for p in own.pcvr.values()}) > 20
    server = serve(tmp_path / "state", campaigns=loaded)
    assert ask(server, request({"banner": BANNER}))[0].status == 200
    server.close()


@pytest.mark.parametrize(
    ("change", "field"),
    [({"budget_micros": 1.5}, "budget_micros"), ({"timezone": "Mars/Base"}, "timezone"), ({"pcvr": {"a": 0.1}}, "pcvr"),
     ({"pcvr": {"*": 2}}, "pcvr"), ({"creatives": []}, "creatives"), ({"campaign_id": "a#B"}, "campaign_id"), ({"budge": 1}, "budge")],
)  # fmt: skip
def test_a_wrong_field_of_a_campaign_is_named(tmp_path: Path, change: dict[str, Any], field: str) -> None:
    body = {**campaign_file(1).campaigns[0].model_dump(mode="json"), **change}
    (tmp_path / "c.json").write_text(json.dumps({"campaigns": [body]}))
    with pytest.raises(RankloomError) as refused:
        load_campaigns(tmp_path / "c.json")
    assert field in refused.value.message


def test_a_campaign_survives_the_trip_through_the_ledger() -> None:
    own = campaign_file(1, experiment={"controller": "pid", "share": 0.5}, start="2026-01-01T00:00:00+02:00").campaigns[
        0
    ]
    assert Campaign.model_validate(json.loads(json.dumps(own.model_dump(mode="json")))) == own
    assert isinstance(campaign_file(2), CampaignFile)
    assert LedgerSettings().n_ticks == 48
