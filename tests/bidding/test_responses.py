"""Response curves: a day on the curves is the day replayed, and policies get exact gradients through it."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from rankloom.bidding.controllers import Constant
from rankloom.bidding.day import play_day
from rankloom.bidding.learned.base import prepare
from rankloom.bidding.learned.fitting import FitConfig
from rankloom.bidding.learned.pathwise import PathwiseController, roll_out, train_pathwise
from rankloom.bidding.population import PopulationConfig, build_population
from rankloom.bidding.replay import ReplayMarket
from rankloom.bidding.responses import CurveMarket, ResponseCurves
from rankloom.bidding.traces import MarketDay
from tests.bidding.small_log import small_day


@pytest.fixture(scope="module")
def days() -> list[MarketDay]:
    return [small_day(seed)[0] for seed in (0, 1)]


@pytest.fixture(scope="module")
def curves(days: list[MarketDay]) -> ResponseCurves:
    return ResponseCurves.from_days(days, quiet=True)


@pytest.mark.parametrize("place", [10, 24, 30, 40])
def test_a_constant_on_the_grid_gets_what_the_replay_gives(days: list[MarketDay], curves: ResponseCurves, place: int) -> None:
    factor = float(torch.exp(curves.grid_G[place])) * (1 + 1e-6)
    replayed = play_day(ReplayMarket(days[1], budget_ratio=1e3), Constant(factor)).history
    looked_up = play_day(CurveMarket(curves, np.arange(10, 20), budget_ratio_M=1e3), Constant(factor)).history
    for name in ("spend_NT", "value_NT", "won_NT", "exposed_NT"):
        np.testing.assert_allclose(getattr(looked_up, name), getattr(replayed, name), rtol=2e-3, atol=1e-2, err_msg=name)


def test_curves_never_fall(curves: ResponseCurves) -> None:
    assert (curves.table_NTGQ[..., :4].diff(dim=2) >= -1e-3).all()


def test_budgets_are_never_exceeded(curves: ResponseCurves) -> None:
    ratio = np.linspace(0.1, 2.0, curves.n)
    outcome = play_day(CurveMarket(curves, np.arange(curves.n), budget_ratio_M=ratio), Constant(3.0)).outcome
    assert (outcome.cost_N <= outcome.budget_N * (1 + 1e-6)).all()
    assert outcome.utilisation.max() > 0.99


def test_the_best_constant_beats_every_constant_of_the_grid(curves: ResponseCurves) -> None:
    index = np.arange(curves.n)
    best, best_score = curves.best_constants(index, curves.campaigns.budget_N)
    for place in range(0, len(curves.grid_G), 6):
        factor = float(torch.exp(curves.grid_G[place]))
        score = play_day(CurveMarket(curves, index), Constant(factor)).outcome.score()
        assert (score <= best_score + 1e-2).all()
    assert np.isin(np.round(best, 4), np.round(curves.grid_G.double().numpy(), 4)).all()


def test_the_rolled_out_day_is_the_played_day(curves: ResponseCurves) -> None:
    data = prepare(build_population(curves, np.arange(curves.n), None, config=PopulationConfig(hindsight=1, wander=1), seed=0))
    torch.manual_seed(1)
    policy = PathwiseController(normaliser=data.normaliser, fallback_target=data.fallback_target)
    torch.nn.init.normal_(policy.nets[0][-1].weight, std=0.2)  # type: ignore[index]
    index = torch.arange(curves.n)
    score, value, spend = roll_out(policy, curves, index, torch.ones(curves.n), gamma=2.0)
    played = play_day(CurveMarket(curves, index.numpy()), policy).outcome
    np.testing.assert_allclose(value.detach().numpy(), played.value_N, rtol=2e-3)
    np.testing.assert_allclose(spend.detach().numpy(), played.cost_N, rtol=2e-3)
    np.testing.assert_allclose(score.detach().numpy(), played.score(), rtol=5e-3)


def test_the_gradient_of_a_day_is_its_slope(curves: ResponseCurves) -> None:
    data = prepare(build_population(curves, np.arange(curves.n), None, seed=0))
    policy = PathwiseController(normaliser=data.normaliser, fallback_target=data.fallback_target)
    index, ratio = torch.arange(curves.n), torch.full((curves.n,), 30.0)
    bias = policy.nets[0][-1].bias  # type: ignore[index]
    assert isinstance(bias, torch.Tensor)
    # with the last weights 0 the bias moves the one multiplier of all ticks; gamma 0 and no budget in the way: value of a constant
    policy.zero_grad()
    roll_out(policy, curves, index, ratio, gamma=0.0)[1].sum().backward()  # type: ignore[no-untyped-call]
    assert bias.grad is not None
    step = 0.02
    values = []
    for shift in (-step, step):
        with torch.no_grad():
            bias += shift
            values.append(float(roll_out(policy, curves, index, ratio, gamma=0.0)[1].sum()))
            bias -= shift
    assert float(bias.grad) == pytest.approx((values[1] - values[0]) / (2 * step), rel=0.15)


def test_the_expert_learns_and_one_seed_is_one_expert(curves: ResponseCurves) -> None:
    index = np.arange(curves.n)
    data = prepare(build_population(curves, index, None, seed=0))

    def trained(steps: int) -> PathwiseController:
        config = FitConfig(steps=steps, batch=20, learning_rate=1e-2, warmup=2, average=0.0)
        return train_pathwise(curves, index, data, config=config, seed=3, quiet=True)[0]

    first, second = trained(2).state_dict(), trained(2).state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)
    untrained = PathwiseController(normaliser=data.normaliser, fallback_target=data.fallback_target)
    before, after = (
        play_day(CurveMarket(curves, index), each).outcome.score().mean() for each in (untrained, trained(8))
    )
    assert after > before


def test_the_population_holds_what_it_was_asked_for(curves: ResponseCurves) -> None:
    config = PopulationConfig(hindsight=2, expert=3, wander=1)
    population = build_population(curves, np.arange(5), None, config=config, seed=4)
    assert population.source.count("hindsight") == 10
    assert population.source.count("wander") == 5
    assert "expert" not in population.source
    again = build_population(curves, np.arange(5), None, config=config, seed=4)
    np.testing.assert_array_equal(population.history.multiplier_NT, again.history.multiplier_NT)
    ratio = population.campaigns.budget_N / np.tile(curves.campaigns.budget_N[:5], 3)
    assert ratio.min() >= config.budget_ratios[0]
    assert ratio.max() <= config.budget_ratios[1]
    assert ratio.std() > 0.1
