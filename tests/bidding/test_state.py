"""The state: AuctionNet's 16 columns, the relative ones, and one builder for training rows and served decisions."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from rankloom.bidding.protocol import N_TICKS, History, Observation
from rankloom.bidding.state import (
    AUCTIONNET_STATE,
    CONTEXT,
    LOG_ACTION_MAX,
    LOG_ACTION_MIN,
    STATE,
    Normaliser,
    day_states,
    day_tensors,
    log_action,
    observation_tensors,
    score_so_far,
)
from rankloom.bidding.trajectories import Trajectories
from tests.bidding.small_log import small_log


@pytest.fixture(scope="module")
def log() -> Trajectories:
    return small_log(2)


def observed(log: Trajectories, tick: int) -> Observation:
    """What a controller would have seen before `tick` of the logged days."""
    history = log.history
    p_mean = history.p_sum_NT / history.volume_NT
    return Observation(
        tick=tick,
        campaigns=log.campaigns,
        history=History(**{name: getattr(history, name)[:, :tick] for name in History.__dataclass_fields__}),
        remaining_N=log.remaining_NT[:, tick],
        volume_forecast_N=history.volume_NT[:, tick],
        p_mean_forecast_N=p_mean[:, tick],
    )


@pytest.mark.parametrize("tick", [0, 1, 3, 20, 47])
def test_the_served_state_is_the_training_row(log: Trajectories, tick: int) -> None:
    trained, context = day_states(day_tensors(log.campaigns, log.history, fallback_target=90.0))
    day = observation_tensors(observed(log, tick), fallback_target=90.0)
    for last in (None, 1, 2):
        served, served_context = day_states(day, last=last)
        torch.testing.assert_close(served[:, -1], trained[:, tick], rtol=2e-5, atol=2e-5)
        assert torch.equal(served_context[:, -1], context[:, tick])


def test_auctionnets_columns_are_means_over_ticks_of_the_ticks_means(log: Trajectories) -> None:
    states = day_states(day_tensors(log.campaigns, log.history, fallback_target=90.0))[0][..., :16].double().numpy()
    history, tick = log.history, 5
    p = history.p_sum_NT / history.volume_NT
    bid = history.bid_sum_NT / history.volume_NT
    expected = {
        "time_left": np.full(log.n, (48 - tick) / 48),
        "budget_left": log.remaining_NT[:, tick] / log.campaigns.budget_N,
        "bid_mean": bid[:, :tick].mean(axis=1),
        "bid_mean_3": bid[:, tick - 3 : tick].mean(axis=1),
        "least_winning_cost_mean": history.least_winning_cost_NT[:, :tick].mean(axis=1),
        "p_mean_3": p[:, tick - 3 : tick].mean(axis=1),
        "conversions_mean": (history.conversions_NT / history.volume_NT)[:, :tick].mean(axis=1),
        "win_rate": (history.won_NT / history.volume_NT)[:, :tick].mean(axis=1),
        "p_now": p[:, tick],
        "volume_now": history.volume_NT[:, tick],
        "volume_3": history.volume_NT[:, tick - 3 : tick].sum(axis=1),
        "volume_so_far": history.volume_NT[:, :tick].sum(axis=1),
    }
    for name, value in expected.items():
        np.testing.assert_allclose(states[:, tick, AUCTIONNET_STATE.index(name)], value, rtol=1e-5, err_msg=name)


def test_relative_columns_do_not_depend_on_the_currency(log: Trajectories) -> None:
    def relative(scale: float) -> torch.Tensor:
        history, campaigns = log.history, log.campaigns
        money = ("multiplier_NT", "spend_NT", "bid_sum_NT", "least_winning_cost_NT")
        scaled = History(
            **{name: getattr(history, name) * (scale if name in money else 1.0) for name in History.__dataclass_fields__}
        )
        other = type(campaigns)(
            campaigns.budget_N * scale, campaigns.target_cpa_N * scale, campaigns.category_N, campaigns.name
        )
        return day_states(day_tensors(other, scaled, fallback_target=1.0))[0]

    free = [i for i, name in enumerate(STATE) if i >= 16 and name not in ("log_target", "log_p_now_at_target")]
    torch.testing.assert_close(relative(1.0)[..., free], relative(7.0)[..., free], rtol=1e-4, atol=1e-4)


def test_nothing_of_the_future_is_in_a_state(log: Trajectories) -> None:
    states = day_states(day_tensors(log.campaigns, log.history, fallback_target=90.0))[0]
    changed = {name: getattr(log.history, name).copy() for name in History.__dataclass_fields__}
    for value in changed.values():
        value[:, 20:] *= 3.0
    later = day_states(day_tensors(log.campaigns, History(**changed), fallback_target=90.0))[0]
    torch.testing.assert_close(later[:, :20], states[:, :20])


def test_score_so_far_squares_the_penalty() -> None:
    value, cost, target = torch.tensor([[10.0]]), torch.tensor([[200.0]]), torch.tensor([10.0])
    assert score_so_far(value, cost, target, 2.0).item() == pytest.approx(10 * 0.25)
    assert score_so_far(value, cost, target, 0.0).item() == pytest.approx(10.0)


def test_without_a_forecast_the_last_tick_stands_in(log: Trajectories) -> None:
    seen = observed(log, 6)
    blind = Observation(tick=6, campaigns=seen.campaigns, history=seen.history, remaining_N=seen.remaining_N)
    state = day_states(observation_tensors(blind, fallback_target=90.0))[0][:, -1]
    np.testing.assert_allclose(state[:, AUCTIONNET_STATE.index("volume_now")], log.history.volume_NT[:, 5], rtol=1e-6)


def test_log_actions_stay_in_the_learned_range() -> None:
    found = log_action(torch.tensor([[1e-9, 50.0, 1e9]]), torch.tensor([50.0]))
    assert found.tolist()[0] == pytest.approx([LOG_ACTION_MIN, 0.0, LOG_ACTION_MAX], abs=1e-6)


def test_when_the_budget_is_gone_the_last_multiplier_stands() -> None:
    found = log_action(torch.tensor([[0.0, 100.0, 200.0, 0.0, 0.0], [0.0] * 5]), torch.tensor([100.0, 100.0]))
    assert found[0].tolist() == pytest.approx([0.0, 0.0, np.log(2), np.log(2), np.log(2)], abs=1e-6)
    assert found[1].tolist() == [0.0] * 5


def test_context_is_one_hot_and_unknown_categories_are_empty(log: Trajectories) -> None:
    context = day_states(day_tensors(log.campaigns, log.history, fallback_target=90.0))[1]
    assert context.shape[-1] == len(CONTEXT)
    assert context.shape[1] == N_TICKS
    assert torch.equal(context[..., :8].sum(dim=-1), torch.ones(log.n, N_TICKS))
    unknown = type(log.campaigns)(
        log.campaigns.budget_N, log.campaigns.target_cpa_N, np.full(log.n, -1), log.campaigns.name
    )
    assert day_states(day_tensors(unknown, log.history, fallback_target=90.0))[1][..., :8].sum() == 0


def test_z_scores_have_mean_0_and_std_1_and_constant_columns_stay() -> None:
    x = torch.randn(500, 3, generator=torch.Generator().manual_seed(0)) * torch.tensor([1e-4, 1.0, 0.0]) + 5e-4
    scored = Normaliser.fit(x)(x)
    assert scored[:, :2].mean(dim=0).abs().max() < 0.02
    assert (scored[:, :2].std(dim=0) - 1).abs().max() < 0.05
    assert scored[:, 2].abs().max() < 1e-3
