"""BC, IQL, CQL, TD3-BC and GAS: loss pieces by hand, and small worlds in which each must find the better action."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from rankloom.bidding.day import play_day
from rankloom.bidding.learned.base import INPUT_WIDTH, RESIDUAL, TrainingSet, prepare
from rankloom.bidding.learned.fitting import FitConfig
from rankloom.bidding.learned.gas import HistoryCritic, train_gas, vote
from rankloom.bidding.learned.offline_rl import (
    METHODS,
    Critic,
    advantage_weight,
    conservative_penalty,
    train_policy,
)
from rankloom.bidding.learned.transformer import TransformerConfig
from rankloom.bidding.replay import ReplayMarket
from tests.bidding.small_log import small_day, small_log


@pytest.fixture(scope="module")
def data() -> TrainingSet:
    return prepare(small_log(2))


def one_step_world(data: TrainingSet) -> TrainingSet:
    """Logged residuals are spread evenly; the return of a tick is highest at a residual of +0.4."""
    g = torch.Generator().manual_seed(0)
    residual = (2 * torch.rand(data.residual_NT.shape, generator=g) - 1) * 0.6
    reward = 1.0 - (residual - 0.4) ** 2
    # rewards add up to the returns-to-go
    returns = torch.flip(torch.cumsum(torch.flip(reward, [1]), dim=1), [1])
    return replace(data, residual_NT=residual, return_NT=returns, alive_NT=torch.ones_like(reward))


def test_advantages_are_weighted_by_a_bounded_exponential() -> None:
    weight = advantage_weight(torch.tensor([0.0, 0.1, 5.0], requires_grad=True), 10.0)
    assert weight.tolist() == pytest.approx([1.0, np.e, 20.0])
    assert not weight.requires_grad


def test_the_conservative_penalty_by_hand() -> None:
    sampled = torch.tensor([[1.0], [3.0]])
    expected = np.log((np.exp(1) + np.exp(3)) / 2) - 2.5
    assert conservative_penalty(sampled, torch.tensor([2.5])).item() == pytest.approx(expected, abs=1e-6)
    # nothing to push when all actions are worth the same
    assert conservative_penalty(torch.full((5, 1), 2.0), torch.tensor([2.0])).item() == pytest.approx(0.0, abs=1e-6)


def test_the_lower_of_the_twin_critics_counts() -> None:
    torch.manual_seed(0)
    critic = Critic(8)
    x, a = torch.randn(6, INPUT_WIDTH), torch.zeros(6)
    first, second = critic(x, a)
    assert torch.equal(critic.least(x, a), torch.minimum(first, second))
    assert not torch.equal(first, second)


@pytest.mark.parametrize("method", METHODS)
def test_each_method_does_what_it_is_for(data: TrainingSet, method: str) -> None:
    world = one_step_world(data)
    config = FitConfig(steps=200, batch=256, learning_rate=3e-3, warmup=10, average=0.0)
    # the Q of a whole day dwarfs what one action changes: TD3-BC's normalisation by its mean asks for a large weight here
    policy, _ = train_policy(
        world, method=method, config=config, width=32, beta=4.0, td3_weight=100.0, quiet=True,  # type: ignore[arg-type]
    )  # fmt: skip
    with torch.no_grad():
        chosen = float(policy.act(world.x_NTD).mean())
    if method == "bc":
        # the mean of what was logged, whatever it brought
        assert abs(chosen - float(world.residual_NT.mean())) < 0.08
    else:
        assert chosen > 0.08


def test_one_seed_is_one_policy(data: TrainingSet) -> None:
    config = FitConfig(steps=5, batch=32, warmup=1)
    runs = [train_policy(data, method="iql", config=config, width=16, seed=2, quiet=True)[0].state_dict() for _ in range(2)]
    assert all(torch.equal(runs[0][name], runs[1][name]) for name in runs[0])


def test_unknown_methods_are_refused(data: TrainingSet) -> None:
    with pytest.raises(ValueError, match="method"):
        train_policy(data, method="ppo")  # type: ignore[arg-type]


def test_votes_are_sums_of_min_max_normalised_scores() -> None:
    # critic 1 speaks in thousands, critic 2 in tenths: each has one vote of the same size
    scores = torch.tensor([[[0.0, 1000.0, 900.0]], [[0.3, 0.1, 0.28]]])
    # normalised: (0, 1, 0.9) + (1, 0, 0.9)
    assert vote(scores).tolist() == [2]
    assert vote(torch.tensor([[[5.0, 5.0, 5.0]], [[0.0, 0.0, 1.0]]])).tolist() == [2]


def test_a_critic_reads_candidates_with_the_history_kept() -> None:
    torch.manual_seed(0)
    critic = HistoryCritic(TransformerConfig(input_width=5, width=16, layers=2, heads=2))
    x, actions = torch.randn(3, 6, 5), torch.randn(3, 6)
    candidates = torch.randn(3, 4)
    kept = None
    for tick in range(6):
        _, kept = critic.transformer.step(None, x[:, tick], actions[:, tick - 1] if tick else None, tick, kept)
    assert kept is not None
    found = critic.candidates(5, kept, candidates)
    for c in range(4):
        exchanged = torch.cat([actions[:, :-1], candidates[:, c : c + 1]], dim=1)
        torch.testing.assert_close(found[:, c], critic(x, exchanged)[:, -1], rtol=1e-4, atol=1e-5)


def test_gas_plays_a_candidate_near_its_policys_action(data: TrainingSet) -> None:
    model, log = train_gas(
        data,
        config=FitConfig(steps=4, batch=8, warmup=1),
        options={"width": 16, "layers": 2, "heads": 2, "critics": 2, "candidates": 3},
        quiet=True,
    )
    assert log
    assert len({tuple(c.head[0].weight.flatten().tolist()[:3]) for c in model.critics}) == 2
    result = play_day(ReplayMarket(small_day(5)[0], budget_ratio=1e3), model)
    assert (result.history.multiplier_NT > 0).all()
    assert RESIDUAL < 1
