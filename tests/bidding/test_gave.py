"""GAVE's loss piece by piece against the paper's equations, and where gradients must stop."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from rankloom.bidding.day import play_day
from rankloom.bidding.learned.base import RESIDUAL, TrainingSet, anchor, bounded, expectile_loss, masked_mean, prepare
from rankloom.bidding.learned.decision_transformer import train_dt
from rankloom.bidding.learned.fitting import Checkpointing, FitConfig, StoppedEarlyError
from rankloom.bidding.learned.gave import (
    DEVIATION_SCALE,
    GaveConfig,
    GaveController,
    action_loss,
    exploration_weight,
    paper_form,
    train_gave,
)
from rankloom.bidding.learned.transformer import DayTransformer, TransformerConfig
from rankloom.bidding.replay import ReplayMarket
from tests.bidding.small_log import small_day, small_log

TINY = {"width": 16, "layers": 2, "heads": 2}
FEW = FitConfig(steps=4, batch=8, warmup=1, average=0.9)


@pytest.fixture(scope="module")
def data() -> TrainingSet:
    return prepare(small_log(2))


def model_of(data: TrainingSet, **gave: object) -> GaveController:
    torch.manual_seed(0)
    model = GaveController(
        normaliser=data.normaliser, fallback_target=data.fallback_target, gave=GaveConfig(**gave), **TINY  # type: ignore[arg-type]
    )
    # away from beta = 1, so that every part of the loss is at work
    torch.nn.init.normal_(model.beta_head.weight, std=0.5)
    torch.nn.init.normal_(model.action_head.weight, std=0.2)
    return model


def batch_of(model: GaveController, data: TrainingSet) -> dict[str, Tensor]:
    return model.batch(data, torch.arange(4))


def gradient_of(loss: Tensor, model: GaveController) -> set[str]:
    """Names of the parts of the network that a loss moves."""
    model.zero_grad()
    loss.backward(retain_graph=True)  # type: ignore[no-untyped-call]
    return {
        name.split(".")[0] for name, p in model.named_parameters() if p.grad is not None and float(p.grad.abs().max()) > 0
    }


# --- the pieces by hand -----------------------------------------------------------------------------------------------


def test_equation_18_weight() -> None:
    weight = exploration_weight(torch.tensor([0.6, 0.4]), torch.tensor([0.5, 0.5]), 20.0)
    assert weight.tolist() == pytest.approx([1 / (1 + math.exp(-2)), 1 / (1 + math.exp(2))])


def test_equation_19_action_loss_and_its_frozen_parts() -> None:
    predicted = torch.tensor([0.2], requires_grad=True)
    explored = torch.tensor([0.4], requires_grad=True)
    weight = torch.tensor([0.75], requires_grad=True)
    loss = action_loss(predicted, torch.tensor([0.1]), explored, weight)
    assert loss.item() == pytest.approx(0.25 * 0.01 + 0.75 * 0.04)
    loss.sum().backward()  # type: ignore[no-untyped-call]
    assert predicted.grad is not None
    assert explored.grad is None
    assert weight.grad is None
    assert predicted.grad.item() == pytest.approx(2 * (0.25 * 0.1 + 0.75 * -0.2))


def test_equation_20_expectile_counts_what_lies_above_99_times() -> None:
    assert expectile_loss(torch.tensor([2.0, -2.0]), 0.99).tolist() == pytest.approx([0.99 * 4, 0.01 * 4])


def test_the_expectile_of_a_sample_is_found_by_its_loss() -> None:
    observed = torch.tensor([0.0, 1.0])
    value = torch.zeros((), requires_grad=True)
    optimizer = torch.optim.SGD([value], lr=0.4)
    for _ in range(150):
        optimizer.zero_grad()
        expectile_loss(observed - value, 0.9).sum().backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    # 0.9 (1 - v) = 0.1 v
    assert value.item() == pytest.approx(0.9, abs=1e-3)


def test_means_are_over_ticks_in_which_something_was_decided() -> None:
    assert masked_mean(torch.tensor([1.0, 3.0, 100.0]), torch.tensor([1.0, 1.0, 0.0])).item() == pytest.approx(2.0)


def test_beta_lies_between_half_and_one_and_a_half(data: TrainingSet) -> None:
    model = model_of(data)
    beta = model.beta(torch.randn(1000, 16) * 50)
    assert beta.min() >= 0.5
    assert beta.max() <= 1.5
    assert GaveController(normaliser=data.normaliser, fallback_target=1.0, **TINY).beta(torch.randn(5, 16)).tolist() == [1.0] * 5


def check_parts(
    model: GaveController, batch: dict[str, Tensor], seen_return: Tensor | None, goal: Tensor, read: Tensor, scale: float
) -> None:
    """`read`: how the critic's side reads the logged actions; `scale`: how it reads a change of one in logs."""
    parts, config = model.losses(batch), model.gave
    alive = batch["alive"]
    state, action, kept = model.transformer(seen_return, batch["x"], read)
    returns = model.return_head(action)[..., 0]
    torch.testing.assert_close(parts.return_loss, masked_mean((returns - goal) ** 2, alive))
    beta = model.beta(state)
    torch.testing.assert_close(parts.beta_BT, beta)
    explored = model.return_head(model.transformer.explore(read + scale * torch.log(beta), kept))[..., 0]
    value = model.value_head(state)[..., 0]
    torch.testing.assert_close(parts.value_loss, masked_mean((explored - value) ** 2, alive))
    torch.testing.assert_close(parts.expectile_loss, masked_mean(expectile_loss(goal - value, 0.99), alive))
    torch.testing.assert_close(parts.weight_BT, torch.sigmoid(100.0 * (explored - returns)))
    cost = config.exploration_cost * masked_mean(torch.log(beta) ** 2, alive)
    if config.deviations:
        usual = bounded(model.behaviour(batch["x"])[..., 0])
        cost = cost + masked_mean((usual - batch["residual"]) ** 2, alive)
    expected = 2 * parts.return_loss + 3 * parts.action_loss + 5 * parts.expectile_loss + 7 * parts.value_loss + cost
    torch.testing.assert_close(parts.total, expected)


WEIGHTS = {"return_weight": 2.0, "action_weight": 3.0, "expectile_weight": 5.0, "value_weight": 7.0}


def test_the_papers_loss_predicts_the_next_return_with_returns_in_sight(data: TrainingSet) -> None:
    model = model_of(data, **WEIGHTS, hide_returns=False, deviations=False, exploration_cost=0.0)
    batch = batch_of(model, data)
    assert paper_form(**WEIGHTS) == GaveConfig(
        **WEIGHTS, hide_returns=False, deviations=False, restrict_value_gradient=False, exploration_cost=0.0
    )
    check_parts(model, batch, batch["return"], batch["next_return"], batch["log_action"], 1.0)


def test_by_default_returns_are_hidden_and_actions_are_deviations_from_the_usual(data: TrainingSet) -> None:
    model = model_of(data, **WEIGHTS)
    batch = batch_of(model, data)
    batch["baseline"] = torch.full_like(batch["return"], 0.25)
    usual = bounded(model.behaviour(batch["x"])[..., 0]).detach()
    read = DEVIATION_SCALE * (batch["residual"] - usual)
    check_parts(model, batch, None, batch["return"] - 0.25, read, DEVIATION_SCALE)
    told = {**batch, "return": batch["return"] + 5.0}
    # what the critic's side sees does not change with the return that the policy is told
    torch.testing.assert_close(model.losses(told).beta_BT, model.losses(batch).beta_BT)


def test_deviations_are_read_without_moving_what_is_usual(data: TrainingSet) -> None:
    model = model_of(data)
    parts = model.losses(batch_of(model, data))
    for loss in (parts.return_loss, parts.value_loss, parts.action_loss):
        assert "behaviour" not in gradient_of(loss, model)


def test_the_baseline_takes_the_days_luck_off_the_returns() -> None:
    log = small_log(2)
    plain = prepare(log)
    # a best score that is what each day turned out to be worth
    lucky = prepare(log, best_score_N=log.score_NT()[:, -1])
    left = lucky.return_NT - lucky.baseline_NT
    assert left[:, 0].std() < 0.2 * plain.return_NT[:, 0].std()
    assert torch.equal(plain.baseline_NT, torch.zeros_like(plain.baseline_NT))
    # it is the same for whatever is bid on a day: centred, and a multiple of one number per day
    assert lucky.baseline_NT[:, 0].mean().abs() < 1e-5


def test_with_returns_in_sight_gaining_less_now_looks_better() -> None:
    """Why returns are hidden: r_{t+1} = r_t - (S_t - S_{t-1}) whatever the action does to the rest of the day."""
    log = small_log(1)
    returns, scores = log.returns_to_go_NT(), log.score_NT()
    gained = np.diff(np.concatenate([np.zeros((log.n, 1)), scores], axis=1), axis=1)
    np.testing.assert_allclose(returns[:, 1:], returns[:, :-1] - gained[:, :-1], atol=1e-9)


# --- gradients --------------------------------------------------------------------------------------------------------


def test_by_default_the_value_loss_moves_the_beta_head_alone(data: TrainingSet) -> None:
    model = model_of(data)
    assert gradient_of(model.losses(batch_of(model, data)).value_loss, model) == {"beta_head"}


def test_in_the_papers_form_it_also_moves_backbone_and_return_head_but_never_the_value(data: TrainingSet) -> None:
    model = model_of(data, restrict_value_gradient=False)
    moved = gradient_of(model.losses(batch_of(model, data)).value_loss, model)
    # V itself is frozen: its head never moves by L_v
    assert moved == {"beta_head", "transformer", "return_head"}


def test_the_action_loss_does_not_move_beta_value_or_return_head(data: TrainingSet) -> None:
    for restricted in (True, False):
        model = model_of(data, restrict_value_gradient=restricted)
        assert gradient_of(model.losses(batch_of(model, data)).action_loss, model) == {"transformer", "action_head"}


def test_the_expectile_loss_moves_value_head_and_backbone(data: TrainingSet) -> None:
    model = model_of(data)
    assert gradient_of(model.losses(batch_of(model, data)).expectile_loss, model) == {"transformer", "value_head"}


def test_without_value_function_exploration_is_guided_by_the_predicted_gain(data: TrainingSet) -> None:
    model = model_of(data, value_function=False)
    parts = model.losses(batch_of(model, data))
    assert parts.expectile_loss == 0
    # equation 26: 1 - w, with gradient
    torch.testing.assert_close(parts.value_loss, masked_mean(1 - parts.weight_BT, batch_of(model, data)["alive"]))
    assert gradient_of(parts.value_loss, model) == {"beta_head"}


def test_without_exploration_it_is_dt_score_with_a_return_loss(data: TrainingSet) -> None:
    model = model_of(data, exploration=False)
    parts = model.losses(batch_of(model, data))
    assert parts.value_loss == 0
    assert parts.expectile_loss == 0
    assert gradient_of(parts.total, model) == {"transformer", "action_head", "return_head"}


def test_parameters_train_again_after_the_frozen_pass(data: TrainingSet) -> None:
    model = model_of(data)
    model.losses(batch_of(model, data))
    assert all(p.requires_grad for p in model.parameters())


# --- the transformer --------------------------------------------------------------------------------------------------


def random_day(width: int = 5, b: int = 3, t: int = 12) -> tuple[Tensor, Tensor, Tensor]:
    g = torch.Generator().manual_seed(0)
    return torch.randn(b, t, generator=g), torch.randn(b, t, width, generator=g), torch.randn(b, t, generator=g)


@pytest.mark.parametrize("window", [None, 4])
def test_exploring_all_ticks_at_once_equals_one_sequence_per_exchanged_action(window: int | None) -> None:
    torch.manual_seed(0)
    net = DayTransformer(TransformerConfig(input_width=5, width=16, layers=2, heads=2, window=window)).eval()
    returns, x, actions = random_day()
    explored = actions + 0.3
    _state, _action, kept = net(returns, x, actions)
    together = net.explore(explored, kept)
    for tick in range(x.shape[1]):
        exchanged = actions.clone()
        exchanged[:, tick] = explored[:, tick]
        # the logged history stays; only the current action differs
        one = net(returns, x, exchanged)[1][:, tick]
        torch.testing.assert_close(together[:, tick], one, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("window", [None, 4])
def test_a_day_tick_by_tick_equals_the_day_at_once(window: int | None) -> None:
    torch.manual_seed(0)
    net = DayTransformer(TransformerConfig(input_width=5, width=16, layers=2, heads=2, window=window)).eval()
    returns, x, actions = random_day()
    whole = net(returns, x, actions)[0]
    kept = None
    for tick in range(x.shape[1]):
        previous = actions[:, tick - 1] if tick else None
        hidden, kept = net.step(returns[:, tick], x[:, tick], previous, tick, kept)
        torch.testing.assert_close(hidden, whole[:, tick], rtol=1e-4, atol=1e-5)


def test_a_state_token_sees_neither_its_own_action_nor_the_future() -> None:
    torch.manual_seed(0)
    net = DayTransformer(TransformerConfig(input_width=5, width=16, layers=2, heads=2))
    returns, x, actions = random_day()
    before = net(returns, x, actions)[0]
    changed = actions.clone()
    changed[:, 6:] += 1.0
    later = x.clone()
    later[:, 7:] += 1.0
    after = net(returns, later, changed)[0]
    torch.testing.assert_close(after[:, :7], before[:, :7])
    assert not torch.allclose(after[:, 7], before[:, 7])


# --- as a controller --------------------------------------------------------------------------------------------------


def test_the_anchor_is_the_mean_of_the_last_four_log_actions() -> None:
    found = anchor(torch.tensor([[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]]), 6)
    assert found.tolist()[0] == pytest.approx([0.0, 1.0, 1.5, 2.0, 2.5, 3.5])


def test_one_tick_cannot_change_the_multiplier_by_more_than_the_residual(data: TrainingSet) -> None:
    model = model_of(data)
    torch.nn.init.constant_(model.action_head.bias, 100.0)
    result = play_day(ReplayMarket(small_day(5)[0], budget_ratio=1e3), model)
    target = result.campaigns.target_cpa_N[:, None]
    log_action = torch.from_numpy(np.log(result.history.multiplier_NT / target))
    above = log_action - anchor(log_action, 48)
    assert above.max() <= RESIDUAL + 1e-5
    assert log_action.max() <= math.log(8.0) + 1e-6


def test_what_is_kept_between_ticks_gives_the_same_day_as_reading_it_again(data: TrainingSet) -> None:
    model = model_of(data)

    class Forgetful:
        name = "forgetful"

        def start(self, campaigns: object, seed: int) -> None:
            model.start(campaigns, seed)  # type: ignore[arg-type]

        def decide(self, observation: object) -> object:
            model.begin()
            return model.decide(observation)  # type: ignore[arg-type]

    day = small_day(5)[0]
    kept = play_day(ReplayMarket(day), model).history.multiplier_NT
    again = play_day(ReplayMarket(day), Forgetful()).history.multiplier_NT  # type: ignore[arg-type]
    np.testing.assert_allclose(kept, again, rtol=1e-4)


def test_what_is_asked_for_differs_between_campaigns_and_is_never_negative(data: TrainingSet) -> None:
    model, _ = train_gave(data, config=FEW, options=TINY, quiet=True)
    result = play_day(ReplayMarket(small_day(5)[0]), model)
    asked = np.stack([decision.details["return_target"] for decision in result.decisions], axis=1)
    assert (asked >= 0).all()
    assert asked[:, 0].std() > 0
    assert asked[0].std() > 0


def test_one_seed_is_one_bidder_and_seeds_differ(data: TrainingSet) -> None:
    first, second, other = (
        train_gave(data, config=FEW, options=TINY, seed=seed, quiet=True)[0].state_dict() for seed in (1, 1, 2)
    )
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


def test_an_interrupted_run_resumes_to_the_same_weights(data: TrainingSet, tmp_path: object) -> None:
    from pathlib import Path

    folder = Path(str(tmp_path))
    whole = train_gave(data, config=FEW, options=TINY, quiet=True)[0].state_dict()
    stop = Checkpointing(folder=folder, fingerprint="f", limit_steps=2)
    with pytest.raises(StoppedEarlyError):
        train_gave(data, config=FEW, options=TINY, checkpointing=stop, quiet=True)
    go_on = Checkpointing(folder=folder, fingerprint="f", resume=True)
    resumed = train_gave(data, config=FEW, options=TINY, checkpointing=go_on, quiet=True)[0].state_dict()
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_the_imitation_loss_falls_for_dt_and_dt_score(data: TrainingSet) -> None:
    config = FitConfig(steps=30, batch=8, warmup=2, learning_rate=3e-3, average=0.0)
    for aligned in (True, False):
        model, log = train_dt(data, score_aligned=aligned, config=config, options=TINY, quiet=True)
        assert log[-1]["loss"] < log[0]["loss"]
        assert model.name == ("dt-score" if aligned else "dt")
        assert torch.equal(model.returns_of(data), data.return_NT if aligned else data.value_return_NT)


def test_settings_that_make_no_sense_are_refused() -> None:
    for wrong in ({"tau": 1.0}, {"tau": 0.0}, {"alpha_r": 0.0}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            GaveConfig(**wrong)
    with pytest.raises(ValueError, match="heads"):
        TransformerConfig(input_width=3, width=10, heads=4)
