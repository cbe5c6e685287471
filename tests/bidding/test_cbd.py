"""CBD: what the completer's loss counts, that the observed prefix stays, which way the aligner moves, plan validity."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from rankloom.bidding.day import play_day
from rankloom.bidding.learned.base import RESIDUAL, TrainingSet, prepare
from rankloom.bidding.learned.cbd import (
    BUDGET,
    PLAN,
    PROPERTIES,
    TIME,
    CbdConfig,
    CbdController,
    PlannedDays,
    answer_loss,
    cosine_signal,
    distil,
    impose,
    inverse_loss,
    join,
    meant_plan,
    persistence,
    plan_validity,
    query_mask,
    train_cbd,
    trajectory_properties,
)
from rankloom.bidding.learned.fitting import FitConfig
from rankloom.bidding.learned.outlook import LEAD, Outlook
from rankloom.bidding.learned.unet import TemporalUNet
from rankloom.bidding.protocol import N_TICKS, Decision, Observation
from rankloom.bidding.replay import ReplayMarket
from rankloom.bidding.trajectories import Trajectories
from tests.bidding.small_log import small_day, small_log

SMALL = CbdConfig(widths=(8, 8, 8), diffusion_steps=20, sampling_steps=3)
FEW = FitConfig(steps=4, batch=8, warmup=1, average=0.9)


@pytest.fixture(scope="module")
def log() -> Trajectories:
    return small_log(2)


@pytest.fixture(scope="module")
def data(log: Trajectories) -> TrainingSet:
    return prepare(log)


@pytest.fixture(scope="module")
def model(log: Trajectories, data: TrainingSet) -> CbdController:
    return train_cbd(PlannedDays.of(data, log), cbd=SMALL, config=FEW, quiet=True)[0]


@pytest.fixture(scope="module")
def outlook_data(log: Trajectories) -> TrainingSet:
    return prepare(log, outlook=Outlook.of(scenarios=2))


def plans_of(data: TrainingSet, n: int = 4) -> Tensor:
    from rankloom.bidding.learned.cbd import PLAN_COLUMNS

    return data.x_NTD[:n, :, list(PLAN_COLUMNS)]


# --- completer --------------------------------------------------------------------------------------------------------


def test_a_query_of_length_t_shows_positions_0_to_t() -> None:
    assert query_mask(torch.tensor([0, 2]), 5).tolist() == [[1, 0, 0, 0, 0], [1, 1, 1, 0, 0]]


@given(st.lists(st.integers(0, 46), min_size=1, max_size=4))
def test_the_loss_counts_the_answer_alone(lengths: list[int]) -> None:
    known = query_mask(torch.tensor(lengths))
    error = torch.full((len(lengths), N_TICKS, 3), 2.0)
    error[known > 0] = 1e6
    assert answer_loss(error, known).item() == pytest.approx(4.0)
    assert answer_loss(error, known, 8.0).item() == pytest.approx(4.0)


def test_the_own_column_and_the_budget_count_more_than_the_markets(model: CbdController) -> None:
    error = torch.ones(1, 2, len(PLAN))
    weighted = model.weighted(error)[0, 0].square()
    assert weighted[PLAN.index("log_multiplier_1")].item() == pytest.approx(SMALL.own_weight)
    assert weighted[PLAN.index("budget_left")].item() == pytest.approx(SMALL.pace_weight)
    assert weighted.sum().item() == pytest.approx(SMALL.own_weight + SMALL.pace_weight + len(PLAN) - 2)


def test_positions_right_after_the_query_can_count_more() -> None:
    known, error = query_mask(torch.tensor([1]), 4), torch.zeros(1, 4, 1)
    error[0, 2] = 1.0
    first = 1 + 8
    second = 1 + 8 * np.exp(-0.5)
    assert answer_loss(error, known, 8.0).item() == pytest.approx(first / (first + second))


def test_query_lengths_and_diffusion_steps_are_drawn_per_sample(model: CbdController, data: TrainingSet) -> None:
    seen: list[tuple[Tensor, Tensor]] = []
    handle = model.unet.register_forward_pre_hook(lambda _m, args: seen.append((args[1], args[2])))
    condition = torch.zeros(64, model.unet.condition_mlp[0].in_features)
    model.completer_loss(plans_of(data, 20).repeat(4, 1, 1)[:64], condition, torch.Generator().manual_seed(0))
    handle.remove()
    known, step = seen[0]
    assert len(known.sum(dim=1).unique()) > 20
    assert len(step.unique()) > 10


def test_the_network_sees_the_clean_prefix_and_a_noised_answer(model: CbdController, data: TrainingSet) -> None:
    seen: list[tuple[Tensor, Tensor]] = []
    handle = model.unet.register_forward_pre_hook(lambda _m, args: seen.append((args[0], args[1])))
    plan = plans_of(data, 8)
    model.completer_loss(plan, torch.zeros(8, model.unet.condition_mlp[0].in_features), torch.Generator().manual_seed(0))
    handle.remove()
    noised, known = seen[0]
    assert torch.equal(noised[known > 0], plan[known > 0])
    assert (noised[known == 0] != plan[known == 0]).float().mean() > 0.99


def test_a_plain_diffuser_sees_noise_everywhere_and_answers_for_all_of_it(log: Trajectories, data: TrainingSet) -> None:
    plain = train_cbd(PlannedDays.of(data, log), cbd=replace(SMALL, completer=False), config=FEW, quiet=True)[0]
    seen: list[Tensor] = []
    handle = plain.unet.register_forward_pre_hook(lambda _m, args: seen.append(args[1]))
    plain.completer_loss(plans_of(data), torch.zeros(4, plain.unet.condition_mlp[0].in_features), torch.Generator())
    handle.remove()
    assert seen[0].sum() == 0


@pytest.mark.parametrize("predict", ["x0", "epsilon"])
def test_the_prefix_is_written_in_before_every_denoising_step(model: CbdController, data: TrainingSet, predict: str) -> None:
    model.cbd = replace(SMALL, predict=predict)  # type: ignore[arg-type]
    observed, known = plans_of(data), query_mask(torch.tensor([0, 5, 20, 40]))
    seen: list[Tensor] = []
    handle = model.unet.register_forward_pre_hook(lambda _m, args: seen.append(args[0].clone()))
    with torch.no_grad():
        condition = torch.zeros(4, model.unet.condition_mlp[0].in_features)
        plan = model.complete(observed, known, condition, torch.Generator().manual_seed(0), steps=5)
    handle.remove()
    model.cbd = SMALL
    assert len(seen) == 5
    for given_ in [*seen, plan]:
        assert torch.equal(given_[known > 0], observed[known > 0])
    assert not torch.equal(seen[0][known == 0], seen[1][known == 0])


def test_the_two_parametrisations_agree_on_what_was_predicted(model: CbdController) -> None:
    x = torch.randn(2, N_TICKS, len(PLAN), generator=torch.Generator().manual_seed(0))
    known, condition = torch.zeros(2, N_TICKS), torch.zeros(2, model.unet.condition_mlp[0].in_features)
    signal = model.signal_K[10]
    for predict in ("x0", "epsilon"):
        model.cbd = replace(SMALL, predict=predict)  # type: ignore[arg-type]
        with torch.no_grad():
            clean, noise = model.denoise(x, known, 10, condition)
        torch.testing.assert_close(signal.sqrt() * clean + (1 - signal).sqrt() * noise, x, rtol=1e-4, atol=1e-4)
    model.cbd = SMALL


def test_the_schedule_goes_from_signal_to_noise() -> None:
    signal = cosine_signal(100)
    assert (signal.diff() <= 0).all()
    assert signal[0] > 0.99
    assert signal[-1] < 1e-3


# --- aligner ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("wish", [-2.0, 2.0])
def test_one_step_brings_the_plan_nearer_to_what_was_asked_in_both_directions(
    model: CbdController, data: TrainingSet, wish: float
) -> None:
    plan, known = plans_of(data), query_mask(torch.tensor([10, 10, 10, 10]))
    present = torch.tensor([[1.0, 0.0, 0.0]]).expand(4, 3)
    wishes = model.property_mean + wish * model.property_std * present
    static = model.static(data.x_NTD[:4])
    before = model.misalignment(plan, wishes, present, static)
    moved = model.align(plan, known, wishes, present, static, step=0.1)
    assert (model.misalignment(moved, wishes, present, static) < before).all()
    assert torch.equal(moved[known > 0], plan[known > 0])
    assert not torch.equal(moved, plan)


def test_properties_that_nobody_asks_for_do_not_move_the_plan(model: CbdController, data: TrainingSet) -> None:
    plan, known, nothing = plans_of(data), query_mask(torch.tensor([3, 3, 3, 3])), torch.zeros(4, 3)
    moved = model.align(plan, known, nothing, nothing, model.static(data.x_NTD[:4]), step=1.0)
    assert torch.equal(moved, plan)


def test_sampling_keeps_the_best_aligned_plan(model: CbdController, data: TrainingSet) -> None:
    x = data.x_NTD[:4, :7]
    model.start(small_day(0)[0].campaigns, 0)
    model.cbd = replace(SMALL, aligner="none")
    one = model.plan(x)[0]
    model.cbd = replace(SMALL, aligner="sample", align_samples=8)
    model.start(small_day(0)[0].campaigns, 0)
    best, wish = model.plan(x)
    model.cbd = SMALL
    present = torch.tensor([[1.0, 0.0, 0.0]]).expand(4, 3)
    static = model.static(x)
    # eight plans were drawn: the kept one is at most as far off, on average, as a single draw
    assert model.misalignment(best, wish, present, static).mean() <= model.misalignment(one, wish, present, static).mean()


# --- actions, properties, validity -------------------------------------------------------------------------------------


def test_the_action_follows_from_three_states_and_the_planned_next_one(model: CbdController, data: TrainingSet) -> None:
    plan, static = plans_of(data), model.static(data.x_NTD[:4])
    base = model.act(plan, 10, static)
    for place, matters in ((7, False), (8, True), (9, True), (10, True), (11, True), (12, False)):
        changed = plan.clone()
        changed[:, place] += 1.0
        assert torch.equal(model.act(changed, 10, static), base) is not matters


def test_inverse_loss_ignores_ticks_in_which_nothing_was_decided(model: CbdController, data: TrainingSet) -> None:
    plan, static = plans_of(data), model.static(data.x_NTD[:4])
    residual, alive = data.residual_NT[:4].clone(), torch.ones(4, N_TICKS)
    alive[:, 30:] = 0
    before = inverse_loss(model, plan, residual, alive, static)
    residual[:, 30:] += 5.0
    assert torch.equal(inverse_loss(model, plan, residual, alive, static), before)


def test_properties_by_hand(log: Trajectories) -> None:
    spend = np.zeros((log.n, N_TICKS))
    spend[:, 0], spend[:, 40] = 3.0, 1.0
    shaped = replace(log, history=replace(log.history, spend_NT=spend))
    found = trajectory_properties(shaped, torch.arange(log.n).float())
    assert found[:, PROPERTIES.index("early_spend")].tolist() == pytest.approx([0.75] * log.n)
    flat = replace(log, history=replace(log.history, spend_NT=np.ones((log.n, N_TICKS))))
    smooth = trajectory_properties(flat, torch.zeros(log.n))[:, PROPERTIES.index("unevenness")]
    assert smooth.max() < 1e-5
    # three quarters from the first tick on, all of it from the 41st on
    line = np.arange(1, N_TICKS + 1) / N_TICKS
    by_hand = np.abs(np.where(np.arange(N_TICKS) < 40, 0.75, 1.0) - line).mean()
    assert found[:, PROPERTIES.index("unevenness")].tolist() == pytest.approx([by_hand] * log.n, abs=1e-5)


def test_a_plan_is_valid_while_its_budget_never_rises_and_its_clock_runs() -> None:
    plan = torch.zeros(4, N_TICKS, len(PLAN))
    plan[..., TIME] = 1 - torch.arange(N_TICKS) / N_TICKS
    plan[..., BUDGET] = torch.linspace(1, 0.1, N_TICKS)
    plan[1, 30, BUDGET] += 0.2
    plan[2, :, TIME] = 0.5
    plan[3, 40:, BUDGET] = -0.3
    assert plan_validity(plan, 5).tolist() == [True, False, False, False]
    # what lies before the plan begins is history, not plan
    assert plan_validity(plan, 35).tolist()[1] is True


def test_real_days_are_valid_plans(model: CbdController, data: TrainingSet) -> None:
    assert plan_validity(model.raw(plans_of(data, 20)), 0).all()


# --- training and the student ------------------------------------------------------------------------------------------


def test_one_seed_is_one_planner(log: Trajectories, data: TrainingSet, model: CbdController) -> None:
    again = train_cbd(PlannedDays.of(data, log), cbd=SMALL, config=FEW, quiet=True)[0]
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), again.state_dict().values(), strict=True))


def test_a_student_learns_the_mean_plan_in_one_pass_and_keeps_the_rest(
    model: CbdController, data: TrainingSet, log: Trajectories
) -> None:
    config = FitConfig(steps=25, batch=8, warmup=2, learning_rate=3e-3, average=0.0)
    student, losses = distil(model, PlannedDays.of(data, log), config=config, quiet=True)
    assert losses[-1]["distance"] < losses[0]["distance"]
    for part in ("return_model", "inverse", "target"):
        mine, theirs = getattr(student, part).state_dict(), getattr(model, part).state_dict()
        assert all(torch.equal(mine[name], theirs[name]) for name in mine)
    seen: list[Tensor] = []
    handle = student.unet.register_forward_pre_hook(lambda _m, args: seen.append(args[2]))
    plans = []
    for seed in (0, 1):
        student.start(small_day(0)[0].campaigns, seed)
        plans.append(student.plan(data.x_NTD[:4, :9])[0])
        seen = seen[-1:]
    handle.remove()
    # the mean plan holds no luck
    assert torch.equal(*plans)
    assert [each.unique().tolist() for each in seen] == [[SMALL.diffusion_steps - 1]]


def test_conditions_are_dropped_one_by_one(model: CbdController, data: TrainingSet, log: Trajectories) -> None:
    g = torch.Generator().manual_seed(0)
    properties = trajectory_properties(log, data.return_NT[:, 0])[:4].repeat(500, 1)
    condition = model.draw_condition(properties, model.static(data.x_NTD[:4]).repeat(500, 1), g)
    assert condition[:, 3:6].mean(dim=0).tolist() == pytest.approx([0.8, 0.4, 0.4], abs=0.05)
    assert (condition[:, :3][condition[:, 3:6] == 0] == 0).all()


def test_a_shaped_day_is_shown_with_what_it_was_shaped_in_and_asks_nothing_of_the_return_target(
    model: CbdController, data: TrainingSet, log: Trajectories
) -> None:
    days = PlannedDays.of(data, log)
    g = torch.Generator().manual_seed(0)
    shaped_BC = torch.zeros(2000, 3, dtype=torch.bool)
    shaped_BC[0::4, 1], shaped_BC[1::4, 2], shaped_BC[2::4, 1:] = True, True, True
    drawn = model.draw_condition(days.properties_NC[:1].repeat(2000, 1), model.static(data.x_NTD[:1]).repeat(2000, 1), g, shaped_BC)
    for kind, shown in ((0, [1.0, 0.0]), (1, [0.0, 1.0]), (2, [1.0, 1.0])):
        assert (drawn[kind::4, 4:6] == torch.tensor(shown)).all()
        assert drawn[kind::4, 3].mean().item() == pytest.approx(0.8, abs=0.05)
    assert drawn[3::4, 4:6].mean().item() == pytest.approx(0.4, abs=0.05)
    # however much the shaped days earned, what is thought attainable stays
    half = torch.arange(data.n) % 2 == 0
    shaped = half[:, None] & torch.tensor([False, True, True])
    richer = replace(data, return_NT=torch.where(half[:, None], data.return_NT + 5.0, data.return_NT))
    with_shaped = train_cbd(replace(days, data=richer, shaped_NC=shaped), cbd=SMALL, config=FEW, quiet=True)[0]
    without = train_cbd(replace(days, shaped_NC=shaped), cbd=SMALL, config=FEW, quiet=True)[0]
    mine, theirs = with_shaped.target.state_dict(), without.target.state_dict()
    assert all(torch.equal(mine[name], theirs[name]) for name in mine)


def test_the_planner_answers_a_wish_differently_in_different_states(data: TrainingSet) -> None:
    """What a wish does to the answer is no constant added to it."""
    torch.manual_seed(0)
    network = TemporalUNet(columns=3, condition=2, widths=(8, 8, 8))
    x, known, step = torch.randn(2, N_TICKS, 3), torch.zeros(2, N_TICKS), torch.zeros(2)
    wished, not_wished = (network(x, known, step, torch.full((2, 2), wish)) for wish in (1.0, 0.0))
    effect = wished - not_wished
    assert (effect[0] - effect[1]).abs().mean() > 0.1 * effect.abs().mean()


def test_the_student_learns_what_a_bidder_meant_to_do(outlook_data: TrainingSet) -> None:
    model = CbdController(normaliser=outlook_data.normaliser, fallback_target=1.0, cbd=SMALL, outlook=outlook_data.outlook)
    meant = replace(outlook_data, meant_NT=outlook_data.residual_NT + 0.1)
    goal, plan = meant_plan(model, meant), outlook_data.x_NTD[..., model.columns]
    assert outlook_data.outlook is not None
    assert outlook_data.outlook.normaliser is not None
    std = outlook_data.outlook.normaliser.std_D[LEAD]
    others = [column for column in range(len(model.columns)) if column != model.own]
    assert torch.equal(goal[..., others], plan[..., others])
    assert torch.equal(goal[:, 0], plan[:, 0])
    moved = (goal - plan)[:, 1:, model.own]
    inside = (plan[:, 1:, model.own].abs() < 3) & (outlook_data.residual_NT[:, :-1].abs() < 0.9 * RESIDUAL)
    assert inside.float().mean() > 0.3
    assert ((moved - 0.1 / std).abs() < 1e-3)[inside].all()
    # nothing is known of perturbations in a log: its days as they are
    assert torch.allclose(meant_plan(model, outlook_data)[:, 1:, model.own][inside], plan[:, 1:, model.own][inside], atol=1e-3)


def test_joined_sets_are_the_sets_one_after_the_other(data: TrainingSet) -> None:
    both = join((data, data))
    assert both.n == 2 * data.n
    assert torch.equal(both.x_NTD[data.n :], data.x_NTD)
    assert torch.equal(both.alive_NT[: data.n], data.alive_NT)
    assert both.normaliser is data.normaliser
    assert both.gamma == data.gamma


def test_a_day_is_played_with_plans_and_the_same_seed_plays_it_again(model: CbdController) -> None:
    market = ReplayMarket(small_day(5)[0])
    first, second = (play_day(market, model, seed=3).history.multiplier_NT for _ in range(2))
    np.testing.assert_array_equal(first, second)
    assert not np.array_equal(first, play_day(market, model, seed=4).history.multiplier_NT)


def test_states_that_are_kept_are_those_of_the_day_read_again(data: TrainingSet) -> None:
    """Also where a tick's traffic came otherwise than forecast: its state is built once more when it is over."""
    torch.manual_seed(0)
    kept, again = (
        CbdController(normaliser=data.normaliser, fallback_target=data.fallback_target, cbd=replace(SMALL, noise=0.0)) for _ in range(2)
    )
    again.load_state_dict(kept.state_dict())
    seen: dict[str, list[Tensor]] = {"kept": [], "again": []}
    for name, model in (("kept", kept), ("again", again)):
        inner = model.residual

        def watched(x: Tensor, *rest: object, name: str = name, inner: object = inner) -> object:
            seen[name].append(x)
            return inner(x, *rest)  # type: ignore[operator]

        model.residual = watched  # type: ignore[method-assign]

    class Both:
        name = "both"

        def start(self, campaigns: object, seed: int) -> None:
            kept.start(campaigns, seed)

        def decide(self, observation: Observation) -> Decision:
            assert observation.volume_forecast_N is not None
            wrong = replace(observation, volume_forecast_N=1.3 * observation.volume_forecast_N)
            again.start(observation.campaigns, 0)
            again.decide(wrong)
            return kept.decide(wrong)

    play_day(ReplayMarket(small_day(5)[0]), Both())
    for own, reference in zip(seen["kept"], seen["again"], strict=True):
        torch.testing.assert_close(own, reference, rtol=1e-5, atol=1e-5)


def test_what_is_asked_for_reaches_the_condition(model: CbdController, data: TrainingSet) -> None:
    model.ask = {"early_spend": 0.9}
    wish, present = model.wishes(data.x_NTD[:3, :5])
    model.ask = {}
    assert wish[:, 1].tolist() == pytest.approx([0.9] * 3)
    assert present.tolist() == [[1.0, 1.0, 0.0]] * 3
    condition = model.condition(wish, present, model.static(data.x_NTD[:3]))
    assert (condition[:, 2] == 0).all()
    assert (condition[:, 3:6] == present).all()


def test_the_last_observed_state_fades_into_the_answer() -> None:
    plan = torch.zeros(2, 12, 1)
    plan[:, 3] = 4.0
    found = persistence(plan, query_mask(torch.tensor([3, 3]), 12))
    assert (found[:, :4] == 0).all()
    assert found[0, 4, 0] == 4.0
    assert found[0, 10, 0].item() == pytest.approx(4.0 * np.exp(-1))
    assert (persistence(plan, torch.zeros(2, 12)) == 0).all()


def test_without_a_word_of_the_network_budget_and_clock_run_out_evenly(model: CbdController, data: TrainingSet) -> None:
    plan = data.x_NTD[:3][..., model.columns]
    known = query_mask(torch.tensor([11, 11, 40]))
    clock, left = model.steered(plan, known, torch.zeros(3, 48))
    steered = plan.clone()
    steered[..., PLAN.index("time_left")], steered[..., PLAN.index("budget_left")] = clock[..., 0], left[..., 0]
    raw, seen = model.raw(impose(steered, plan, known)), model.raw(plan)
    torch.testing.assert_close(raw[..., PLAN.index("time_left")], (1 - torch.arange(48) / 48).expand(3, -1), atol=1e-5, rtol=0)
    budget = PLAN.index("budget_left")
    even = seen[0, 11, budget] * (48 - torch.arange(12, 48)) / 37
    torch.testing.assert_close(raw[0, 12:, budget], even, atol=1e-4, rtol=0)


def test_whatever_the_network_says_a_planned_budget_never_rises(model: CbdController, data: TrainingSet) -> None:
    plan = data.x_NTD[:4][..., model.columns]
    known = query_mask(torch.tensor([0, 11, 40, 46]))
    said = 8 * torch.randn(4, 48, generator=torch.Generator().manual_seed(0))
    left = model.steered(plan, known, said)[1]
    steered = plan.clone()
    steered[..., PLAN.index("budget_left")] = left[..., 0]
    raw = model.raw(impose(steered, plan, known))
    assert plan_validity(raw, 0, tolerance=1e-4).all()
    # more said is more spent
    mild, more = (model.steered(plan, known, 0.1 * said + extra)[1] for extra in (0.0, 1.0))
    assert (more[1, 13:] < mild[1, 13:]).all()


def test_the_clock_of_a_plan_is_never_wrong(model: CbdController, data: TrainingSet) -> None:
    model.start(small_day(0)[0].campaigns, 0)
    plans, _wishes = model.plan(data.x_NTD[:4, :9])
    time_left = model.raw(plans)[..., PLAN.index("time_left")]
    torch.testing.assert_close(time_left, (1 - torch.arange(48) / 48).expand(4, -1), atol=2e-3, rtol=0)


def test_impose_takes_known_positions_from_what_was_observed() -> None:
    plan, observed = torch.zeros(1, 3, 2), torch.ones(1, 3, 2)
    assert impose(plan, observed, torch.tensor([[1.0, 0.0, 1.0]]))[0, :, 0].tolist() == [1.0, 0.0, 1.0]


def test_settings_that_make_no_sense_are_refused() -> None:
    with pytest.raises(ValueError, match="sampling_steps"):
        CbdConfig(diffusion_steps=10, sampling_steps=11)
