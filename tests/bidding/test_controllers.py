"""Feedback and prediction: both settle where budget and CPA meet, stay inside their clamps, and keep no hidden state."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from rankloom.bidding.controllers import CONTROLLERS, MPC, PID, Constant, MinPacing, MPCSettings, StockPID, controller
from rankloom.bidding.controllers.pid import PIDSettings
from rankloom.bidding.curves import MarketPrior
from rankloom.bidding.day import TickOutcome, empty_history, play_day
from rankloom.bidding.protocol import N_TICKS, Campaigns, Controller, Decision, FloatArray, History, Observation
from rankloom.bidding.score import score
from rankloom.errors import RankloomError


class Plant:
    """A market that answers by the prior's own curves, exactly: m, prices and traffic are given paths."""

    name = "plant"

    def __init__(
        self, budget: float, target: float, n: int = 1, *, price_T: FloatArray | None = None, told: bool = True
    ) -> None:
        prior = MarketPrior.default()
        self.curves = prior.curves
        self.m_T = np.exp(prior.p_mean.mean_T)
        self.price_T = np.exp(prior.price.mean_T) if price_T is None else price_T
        self.volume_T = np.exp(prior.volume.mean_T)
        self.told = told
        self.campaigns = Campaigns(
            budget_N=np.full(n, budget),
            target_cpa_N=np.full(n, target),
            category_N=np.zeros(n, dtype=np.int64),
            name=tuple(map(str, range(n))),
        )

    def forecast(self, tick: int) -> tuple[FloatArray, FloatArray] | None:
        n = self.campaigns.n
        return (np.full(n, self.volume_T[tick]), np.full(n, self.m_T[tick])) if self.told else None

    def play(self, tick: int, multiplier_N: FloatArray, remaining_N: FloatArray) -> TickOutcome:
        m, price, volume = self.m_T[tick], self.price_T[tick], self.volume_T[tick]
        value_N, cost_N = self.curves(np.log(np.maximum(multiplier_N * m / price, 1e-12)))
        value_N, cost_N = value_N * volume * m, cost_N * volume * price
        part_N = np.minimum(1.0, remaining_N / np.maximum(cost_N, 1e-12))
        value_N, cost_N = value_N * part_N, cost_N * part_N
        whole_N = np.ones_like(multiplier_N)
        return TickOutcome(
            spend_N=cost_N, value_N=value_N, conversions_N=value_N, judged_N=value_N, volume_N=volume * whole_N,
            p_sum_N=volume * m * whole_N, bid_sum_N=multiplier_N * volume * m, won_N=value_N / m, exposed_N=value_N / m,
            least_winning_cost_N=price * whole_N, stopped_N=part_N < 1,
        )  # fmt: skip


def best_constant(plant: Plant) -> float:
    grid = np.geomspace(0.3, 4, 45)
    return max(float(play_day(plant, Constant(k)).outcome.score()[0]) for k in grid)


@pytest.mark.parametrize("name", sorted(CONTROLLERS))
def test_every_controller_answers_with_finite_multipliers_and_never_overspends(name: str) -> None:
    for budget, target in ((2000.0, 100.0), (50.0, 100.0), (1e6, 60.0)):
        plant = Plant(budget, target, n=3)
        result = play_day(plant, controller(name))
        assert (result.outcome.cost_N <= budget + 1e-6).all()
        assert len(result.decisions) == N_TICKS
        for tick, decision in enumerate(result.decisions):
            assert set(decision.binding) <= {"budget", "cpa", "none", "fallback"}
            if decision.planned_spend_NR is not None:
                assert decision.planned_spend_NR.shape == (3, N_TICKS - tick)
                assert (decision.planned_spend_NR >= -1e-9).all()
                assert (decision.planned_spend_NR.sum(axis=1) <= budget + 1e-6).all()


def test_an_unknown_controller_is_told_by_name() -> None:
    with pytest.raises(RankloomError, match="'pdi'"):
        controller("pdi")
    with pytest.raises(RankloomError, match="finite"):
        Constant(float("inf"))


@pytest.mark.parametrize("make", [PID, MinPacing, StockPID, lambda: MPC(MPCSettings(scenarios=8))])
def test_decisions_follow_from_the_observation_alone(make: type[PID]) -> None:
    """What a restarted server needs: a fresh controller in the middle of the day decides as the old one would have."""
    result = play_day(Plant(1500.0, 90.0, n=2), make())
    tick = 20
    history = History(**{name: np.asarray(whole)[:, :tick] for name, whole in vars(result.history).items()})
    fresh = make()
    fresh.start(result.campaigns, 0)
    plant = Plant(1500.0, 90.0, n=2)
    told = plant.forecast(tick)
    assert told is not None
    again = fresh.decide(
        Observation(
            tick=tick,
            campaigns=result.campaigns,
            history=history,
            remaining_N=result.campaigns.budget_N - history.spend_NT.sum(axis=1),
            volume_forecast_N=told[0],
            p_mean_forecast_N=told[1],
        )
    )
    assert again.multiplier_N == pytest.approx(result.decisions[tick].multiplier_N)


def test_campaigns_of_a_batch_do_not_touch_each_other() -> None:
    mixed = Plant(2000.0, 100.0, n=3)
    mixed.campaigns = replace(mixed.campaigns, budget_N=np.array([300.0, 2000.0, 9000.0]))
    for name in ("pid", "mpc", "min-pacing"):
        together = play_day(mixed, controller(name)).history.multiplier_NT
        for row, budget in enumerate((300.0, 2000.0, 9000.0)):
            alone = play_day(Plant(budget, 100.0), controller(name)).history.multiplier_NT[0]
            assert alone == pytest.approx(together[row])


# ---- PID


def settles(values: FloatArray, final: float, band: float = 0.1) -> int:
    """First place after which all values stay within the band around `final`."""
    outside = np.flatnonzero(np.abs(values / final - 1) > band)
    return 0 if len(outside) == 0 else int(outside[-1]) + 1


def test_pid_step_response() -> None:
    """A far too high start and, at noon, dearer prices: spend comes back to the pace that uses up the money, without ringing.

    With gains for speed; the default ones are chosen for Score in a noisy market and chase less.
    """
    price_T = np.full(N_TICKS, 0.06)
    plant = Plant(2000.0, 100.0, price_T=price_T)
    plant.m_T, plant.volume_T = np.full(N_TICKS, 5e-4), np.full(N_TICKS, 1e4)
    pid = PID(PIDSettings(budget_p=0.3, budget_i=0.1, budget_d=0.05, window=4))
    pid._traffic_T = np.full(N_TICKS, 1 / N_TICKS)
    steady = play_day(plant, pid)
    spend = steady.history.spend_NT[0]
    assert spend[0] > 3 * spend[-1]
    pace = float(spend[20:44].mean())
    assert settles(spend[:44], pace, 0.1) <= 20
    assert spend[8:].min() > 0.7 * pace  # undershoot after the high start
    assert steady.outcome.utilisation[0] > 0.98
    price_T[24:] *= 1.3
    jumped = play_day(plant, pid)
    assert jumped.outcome.utilisation[0] > 0.95
    after, money = jumped.history.multiplier_NT[0, 24:], jumped.history.spend_NT[0, 24:]
    assert after[-4:].mean() > steady.history.multiplier_NT[0, -4:].mean()  # dearer market, higher bids
    assert settles(money[:20], float(money[10:20].mean()), 0.25) <= 12
    assert money.max() < 1.3 * money[10:20].mean()  # overshoot


@pytest.mark.parametrize("start", [0.4, 1.0, 1.6])
def test_pid_uses_up_the_budget_from_any_start(start: float) -> None:
    result = play_day(Plant(1200.0, 100.0), PID(PIDSettings(start=start)))
    assert result.outcome.utilisation[0] > 0.9


def test_pid_does_not_wind_up_while_clamped() -> None:
    """A morning without traffic leaves the multiplier at its clamp; it leaves the clamp as soon as money flows."""
    plant = Plant(60.0, 100.0)
    plant.volume_T = plant.volume_T.copy()
    plant.volume_T[:16] = 1e-3
    pid = PID()
    multipliers = play_day(plant, pid).history.multiplier_NT[0]
    ceiling = min(pid.config.cpa_ceiling, pid.config.highest) * 100
    assert multipliers[15] <= ceiling + 1e-9
    moved = np.flatnonzero(multipliers[16:22] < multipliers[15] - 1e-9)
    assert len(moved)
    assert moved[0] <= 2


def test_pid_cpa_loop_never_pushes_below_its_floor() -> None:
    """Below C no bid can worsen the expected CPA: a terrible start is no reason to throw the day away."""
    pid = PID()
    n = 1
    history = replace(
        empty_history(n),
        **{
            f"{name}_NT": np.ones((n, 8))
            for name in ("volume", "p_sum", "bid_sum", "won", "exposed", "least_winning_cost")
        },
        multiplier_NT=np.full((n, 8), 150.0),
        spend_NT=np.full((n, 8), 100.0),
        value_NT=np.full((n, 8), 0.1),  # CPA 1,000 at a target of 100
        conversions_NT=np.zeros((n, 8)),
    )
    campaigns = Plant(1e6, 100.0).campaigns
    low = min(
        float(
            pid.decide(
                Observation(8, campaigns, replace(history, multiplier_NT=np.full((n, 8), last)), np.array([1e6]))
            ).multiplier_N[0]
        )
        for last in (150.0, 101.0, 100.0 * pid.config.cpa_floor)
    )
    assert low >= 100.0 * min(pid.config.cpa_floor, 1.0) - 1e-9


# ---- MPC


def test_mpc_finds_the_best_constant_when_its_prior_is_certain_and_true() -> None:
    prior = MarketPrior.default()
    certain = replace(
        prior,
        **{
            name: replace(getattr(prior, name), covariance_TT=1e-4 * getattr(prior, name).covariance_TT)
            for name in ("p_mean", "price", "volume")
        },
    )
    for budget, target in ((900.0, 100.0), (3000.0, 80.0), (6000.0, 130.0)):
        plant = Plant(budget, target)
        found = float(play_day(plant, MPC(prior=certain)).outcome.score()[0])
        assert found >= 0.98 * best_constant(plant)


def test_mpc_solves_its_plan() -> None:
    """The multiplier it returns is the best of the grid for the scenarios it drew, found by the obvious loop."""
    plant = Plant(1500.0, 90.0, n=2)
    mpc = MPC(MPCSettings(scenarios=6, points=21))
    mpc.start(plant.campaigns, 3)
    told = plant.forecast(0)
    assert told is not None
    observation = Observation(0, plant.campaigns, empty_history(2), plant.campaigns.budget_N, *told)
    decision = mpc.decide(observation)
    forecast = mpc._forecast(observation)
    curves = mpc.prior.curves
    scores = []
    for factor in mpc._factor_A:
        total = 0.0
        for k in range(6):
            value = cost = 0.0
            for tick in range(N_TICKS):
                m, price, volume = (
                    float(path.values_NKR()[0, k, tick]) for path in (forecast.p_mean, forecast.price, forecast.volume)
                )
                share, paid = curves(np.array(np.log(90.0 * factor * m / price)))
                value += volume * m * float(share)
                cost += volume * price * float(paid)
            part = min(1.0, 1500.0 / cost)
            total += float(score(value * part, cost * part, 90.0)) / 6
        scores.append(total)
    best = int(np.argmax(scores))
    assert decision.multiplier_N[0] / 90.0 == pytest.approx(mpc._factor_A[best], rel=0.08)
    assert decision.details["predicted_score"][0] == pytest.approx(scores[best], rel=0.01)


@pytest.mark.parametrize("told", [True, False])
def test_mpcs_rest_of_the_day_is_the_sum_over_its_ticks(told: bool) -> None:
    """Against every scenario's numbers written out: p, price and traffic of each tick, its place on the grid of shifts, both neighbours."""
    plant = Plant(1500.0, 90.0, n=3, told=told)
    mpc = MPC(MPCSettings(scenarios=5, points=9))
    seen: list[Observation] = []

    class Taker:
        name = "taker"

        def start(self, campaigns: Campaigns, seed: int) -> None: ...

        def decide(self, observation: Observation) -> Decision:
            seen.append(observation)
            return Decision(np.array([60.0, 90.0, 140.0]), ("none",) * 3)

    play_day(plant, Taker())
    observation = seen[11]
    forecast = mpc._forecast(observation)
    value_NKA, cost_NKA = mpc._rest(forecast, observation.campaigns.target_cpa_N)
    p, price, volume = (path.values_NKR() for path in (forecast.p_mean, forecast.price, forecast.volume))
    assert p.shape == (3, 5, N_TICKS - 11)
    if told:
        assert observation.p_mean_forecast_N is not None
        np.testing.assert_allclose(p[:, :, 0], np.tile(observation.p_mean_forecast_N[:, None], 5))
    place = np.clip((np.log(p * 90.0 / price) + 6.0) / 0.05, 0, 199 - 1e-6)
    left, part = place.astype(int), place - place.astype(int)
    for found, weight, table in ((value_NKA, volume * p, mpc._value_HA), (cost_NKA, volume * price, mpc._cost_HA)):
        curve = table[left] * (1 - part)[..., None] + table[np.minimum(left + 1, 199)] * part[..., None]
        np.testing.assert_allclose(found, (weight[..., None] * curve).sum(axis=2), rtol=1e-6)


def test_mpc_says_what_binds() -> None:
    poor, rich = (play_day(Plant(budget, 100.0), MPC()).decisions[10] for budget in (200.0, 1e6))
    assert poor.binding == ("budget",)
    assert rich.binding == ("cpa",)
    assert poor.details["cost_at_10_percent_more"][0] >= poor.details["predicted_cost"][0]


def test_mpc_needs_no_forecast_from_the_platform() -> None:
    plant = Plant(2000.0, 100.0, told=False)
    assert float(play_day(plant, MPC()).outcome.score()[0]) >= 0.85 * best_constant(plant)


class _Recorder:
    """Passes decisions on and keeps the errors of prediction."""

    def __init__(self, inner: Controller) -> None:
        self.inner, self.name, self.errors = inner, inner.name, []  # type: ignore[var-annotated]

    def start(self, campaigns: Campaigns, seed: int) -> None:
        self.inner.start(campaigns, seed)

    def decide(self, observation: Observation) -> Decision:
        decision = self.inner.decide(observation)
        self.errors.append(decision.details.get("cost_error"))
        return decision


def test_fresh_scenarios_differ_from_tick_to_tick_and_only_then() -> None:
    played = {}
    for fresh in (False, True):
        mpc = MPC(MPCSettings(scenarios=4, points=21, fresh=fresh))
        played[fresh] = [play_day(Plant(2000.0, 100.0), mpc, seed=5).history.multiplier_NT for _ in range(2)]
        assert np.array_equal(*played[fresh])
        first, last = mpc._normals[0][0], mpc._normals[-1][0]
        assert np.array_equal(first, last) is not fresh
        # a Latin hypercube: every tick holds the same levels, in another order
        np.testing.assert_allclose(np.sort(first, axis=0), np.sort(last, axis=0))
    # the first set is the same, so is the first decision
    assert played[True][0][0, 0] == played[False][0][0, 0]
    assert not np.array_equal(played[True][0][0, 1:], played[False][0][0, 1:])


def test_mpc_logs_its_prediction_error() -> None:
    recorder = _Recorder(MPC())
    play_day(Plant(2000.0, 100.0), recorder)
    assert recorder.errors[0] is None
    errors = np.concatenate(recorder.errors[1:])
    assert np.abs(errors[:20]).max() < 0.05  # the plant answers by its curves


# ---- campaigns without a CPA limit


@pytest.mark.parametrize("name", ["pid", "mpc", "min-pacing", "online-lp"])
@pytest.mark.parametrize(("money", "p"), [(1.0, 1.0), (0.01, 1.0), (0.01, 10.0), (150.0, 1.0)])
def test_without_a_limit_the_budget_is_used_up_in_any_currency(name: str, money: float, p: float) -> None:
    """Prices and budget in other units, p at another level: nobody told the controller, it reads it off the market."""
    prior = MarketPrior.default()
    plant = Plant(2000.0 * money, np.inf, n=2, price_T=np.exp(prior.price.mean_T) * money)
    plant.m_T = plant.m_T * p
    result = play_day(plant, controller(name))
    assert np.isfinite(result.history.multiplier_NT).all()
    assert result.outcome.utilisation.min() > 0.85
    spent_by_noon = result.history.spend_NT[:, :24].sum(axis=1) / result.campaigns.budget_N
    assert spent_by_noon.max() < 0.97
