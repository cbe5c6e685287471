"""MPC's view as a part of the learned state: the same in training and serving, saved with its bidder, and where the action starts from."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from rankloom.bidding.bidders import copy_of, load_bidder, save_bidder
from rankloom.bidding.curves import MarketPrior
from rankloom.bidding.day import play_day
from rankloom.bidding.learned.base import INPUT_WIDTH, TrainingSet, prepare
from rankloom.bidding.learned.cbd import CbdConfig, CbdController
from rankloom.bidding.learned.decision_transformer import SequenceController
from rankloom.bidding.learned.gave import GaveController
from rankloom.bidding.learned.outlook import LEAD, OUTLOOK, Outlook, with_lead
from rankloom.bidding.learned.pathwise import Factors, PathwiseController, Variation, roll_out, train_reader
from rankloom.bidding.protocol import Campaigns, Decision, History, Observation
from rankloom.bidding.replay import ReplayMarket
from rankloom.bidding.responses import CurveMarket, ResponseCurves
from rankloom.bidding.traces import MarketDay
from rankloom.bidding.trajectories import Trajectories
from tests.bidding.small_log import small_day, small_log

TINY = {"width": 16, "layers": 2, "heads": 2}
FALLBACK = 90.0


@pytest.fixture(scope="module")
def log() -> Trajectories:
    return small_log(2)


@pytest.fixture(scope="module")
def data(log: Trajectories) -> TrainingSet:
    return prepare(log, outlook=Outlook.of())


@pytest.fixture(scope="module")
def market_day() -> MarketDay:
    return small_day(4)[0]


def gave_of(data: TrainingSet, seed: int = 0) -> GaveController:
    torch.manual_seed(seed)
    model = GaveController(normaliser=data.normaliser, fallback_target=data.fallback_target, outlook=data.outlook, **TINY)
    torch.nn.init.normal_(model.action_head.weight, std=0.3)
    return model


class Looking:
    """A controller, and the states that its network is given."""

    def __init__(self, model: SequenceController) -> None:
        self.name, self.model = model.name, model
        self.seen: list[torch.Tensor] = []
        inner = model.residual

        def watched(x_NSD: torch.Tensor, day: object, anchor_NS: torch.Tensor) -> object:
            self.seen.append(torch.cat([x_NSD[:, -1], anchor_NS[:, -1:]], dim=1))
            return inner(x_NSD, day, anchor_NS)  # type: ignore[arg-type]

        model.residual = watched  # type: ignore[assignment, method-assign]

    def start(self, campaigns: Campaigns, seed: int) -> None:
        self.model.start(campaigns, seed)

    def decide(self, observation: Observation) -> Decision:
        return self.model.decide(observation)


def test_the_served_outlook_is_the_training_row(data: TrainingSet, market_day: MarketDay) -> None:
    looking = Looking(gave_of(data))
    result = play_day(ReplayMarket(market_day), looking)
    n = result.campaigns.n
    days = Trajectories(result.campaigns, result.history, np.zeros(n, dtype=np.int64), np.arange(n), ("?",) * n)
    rows = prepare(days, normaliser=data.normaliser, outlook=data.outlook)
    alive = rows.alive_NT > 0
    served = torch.stack(looking.seen, dim=1)
    # where two multipliers of MPC's grid are as good the last bit decides between them
    close = (served[..., :-1] - rows.x_NTD).abs().amax(dim=-1) < 1e-3
    assert close[alive].float().mean() > 0.99
    assert ((served[..., -1] - rows.anchor_NT).abs() < 1e-4)[alive].float().mean() > 0.99


def test_a_network_that_answers_nothing_plays_the_outlooks_mpc(data: TrainingSet, market_day: MarketDay) -> None:
    assert data.outlook is not None
    model = GaveController(normaliser=data.normaliser, fallback_target=data.fallback_target, outlook=data.outlook, **TINY)
    own = play_day(ReplayMarket(market_day), model).history.multiplier_NT
    mpc = play_day(ReplayMarket(market_day), data.outlook.planner).history.multiplier_NT
    target_N1 = market_day.campaigns.target_cpa_N[:, None]
    inside = np.abs(np.log(np.maximum(mpc, 1e-9) / target_N1)) < 2.0
    np.testing.assert_allclose(own[inside], mpc[inside], rtol=1e-4)
    assert inside.any()


def test_the_first_column_is_the_log_of_mpcs_multiplier(log: Trajectories, data: TrainingSet) -> None:
    outlook = Outlook.of()
    looked = outlook.day(log.campaigns, log.history, fallback_target=FALLBACK, n_states=3)
    first = Observation(
        tick=0,
        campaigns=log.campaigns,
        history=History(**{name: values[:, :0] for name, values in vars(log.history).items()}),
        remaining_N=log.campaigns.budget_N,
        volume_forecast_N=log.history.volume_NT[:, 0],
        p_mean_forecast_N=log.history.p_sum_NT[:, 0] / log.history.volume_NT[:, 0],
    )
    expected = np.log(outlook.planner.decide(first).multiplier_N / log.campaigns.target_cpa_N)
    np.testing.assert_allclose(looked[:, 0, 0].numpy(), np.clip(expected, np.log(0.05), np.log(8)), rtol=1e-4)
    assert looked.shape == (log.n, 3, len(OUTLOOK) - 1)
    assert data.x_NTD.shape[2] == INPUT_WIDTH + len(OUTLOOK)


def test_nothing_of_the_future_is_in_an_outlook(log: Trajectories) -> None:
    changed = replace(
        log.history, **{name: np.concatenate([v[:, :6], 1.3 * v[:, 6:]], axis=1) for name, v in vars(log.history).items()}
    )
    before, after = (
        Outlook.of().day(log.campaigns, history, fallback_target=FALLBACK, n_states=7) for history in (log.history, changed)
    )
    assert torch.equal(before[:, :6], after[:, :6])
    assert not torch.equal(before[:, 6], after[:, 6])


def test_the_lead_is_the_last_multiplier_over_mpcs() -> None:
    looked = torch.zeros(1, 3, len(OUTLOOK) - 1)
    looked[0, :, 0] = torch.tensor([0.1, 0.2, 0.3])
    actions = torch.tensor([[0.5, 0.9]])
    assert with_lead(looked, actions)[0, :, LEAD].tolist() == pytest.approx([0.0, 0.4, 0.7])
    # the last two states alone give the same last column
    assert with_lead(looked[:, -2:], actions)[0, -1, LEAD].item() == pytest.approx(0.7)
    assert with_lead(looked[:, :1], actions[:, :0])[0, 0, LEAD].item() == 0.0


def test_what_was_looked_at_is_kept_while_the_day_goes_on_and_else_looked_at_again(data: TrainingSet, market_day: MarketDay) -> None:
    model = gave_of(data)
    reference = play_day(ReplayMarket(market_day), model)
    history = reference.history

    def at(tick: int) -> Observation:
        spent_N = history.spend_NT[:, :tick].sum(axis=1)
        return Observation(
            tick=tick,
            campaigns=reference.campaigns,
            history=History(**{name: values[:, :tick] for name, values in vars(history).items()}),
            remaining_N=reference.campaigns.budget_N - spent_N,
            volume_forecast_N=history.volume_NT[:, tick],
            p_mean_forecast_N=history.p_sum_NT[:, tick] / history.volume_NT[:, tick],
        )

    model.start(reference.campaigns, 0)
    again = model.decide(at(20)).multiplier_N
    np.testing.assert_allclose(again, reference.decisions[20].multiplier_N, rtol=1e-3)
    calls = 0
    assert model.outlook is not None
    look = Outlook.look

    def counted(self: Outlook, observation: Observation, *, fallback_target: float) -> torch.Tensor:
        nonlocal calls
        calls += 1
        return look(self, observation, fallback_target=fallback_target)

    Outlook.look = counted  # type: ignore[method-assign]
    try:
        model.decide(at(21))
        assert calls == 1
        other = at(22)
        model.decide(replace(other, history=replace(other.history, multiplier_NT=1.2 * other.history.multiplier_NT)))
        assert calls == 1 + 23
    finally:
        Outlook.look = look  # type: ignore[method-assign]


@pytest.mark.parametrize("kind", ["gave", "cbd", "pathwise"])
def test_an_outlook_is_saved_with_its_bidder(kind: str, data: TrainingSet, log: Trajectories, market_day: MarketDay, tmp_path: Path) -> None:
    outlook = Outlook.of(replace(MarketPrior.default(), volume=replace(MarketPrior.default().volume)), gamma=5.0, scenarios=6)
    own = prepare(log, outlook=outlook)
    torch.manual_seed(1)
    common = {"normaliser": own.normaliser, "fallback_target": own.fallback_target, "outlook": own.outlook}
    model: GaveController | CbdController | PathwiseController
    if kind == "gave":
        model = GaveController(**TINY, **common)  # type: ignore[arg-type]
    elif kind == "cbd":
        model = CbdController(cbd=CbdConfig(widths=(8, 8, 8), diffusion_steps=4), **common)  # type: ignore[arg-type]
    else:
        model = PathwiseController(width=8, members=2, trust=0.6, **common)  # type: ignore[arg-type]
    save_bidder(tmp_path / kind, model)
    found = load_bidder(tmp_path / kind)
    first, second = (play_day(ReplayMarket(market_day), each).history.multiplier_NT for each in (model, found))
    np.testing.assert_allclose(second, first, rtol=1e-6)
    assert found.settings()["outlook"]["gamma"] == 5.0


def test_an_outlook_of_other_columns_is_refused(data: TrainingSet) -> None:
    assert data.outlook is not None
    with pytest.raises(ValueError, match="columns"):
        Outlook.restore(data.outlook.settings() | {"columns": ["plan_score"]}, data.outlook.arrays())
    with pytest.raises(ValueError, match="fitted"):
        Outlook.of().normalised(torch.zeros(1, len(OUTLOOK)))


# --- the pathwise policy on an outlook --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def curves(market_day: MarketDay) -> ResponseCurves:
    return ResponseCurves.from_days([market_day], quiet=True)


def test_the_rolled_out_day_with_outlook_is_the_played_day(data: TrainingSet, curves: ResponseCurves) -> None:
    torch.manual_seed(1)
    policy = PathwiseController(
        normaliser=data.normaliser, fallback_target=data.fallback_target, outlook=data.outlook, members=2, trust=0.7
    )
    for net in policy.nets:
        torch.nn.init.normal_(net[-1].weight, std=0.2)  # type: ignore[index]
    index = torch.arange(curves.n)
    score, value, spend = roll_out(policy, curves, index, torch.ones(curves.n), gamma=2.0, reader=train_reader(data, steps=3))
    played = play_day(CurveMarket(curves, index.numpy()), policy).outcome
    np.testing.assert_allclose(value.detach().numpy(), played.value_N, rtol=2e-2)
    np.testing.assert_allclose(spend.detach().numpy(), played.cost_N, rtol=2e-2)
    assert score.detach().mean().item() == pytest.approx(played.score().mean(), rel=1e-2)


def test_each_member_bids_on_its_own_in_training_and_all_together_in_play(data: TrainingSet) -> None:
    policy = PathwiseController(
        normaliser=data.normaliser, fallback_target=data.fallback_target, outlook=data.outlook, members=3, trust=0.5
    )
    for shift, net in zip((-0.3, 0.1, 0.5), policy.nets, strict=True):
        torch.nn.init.constant_(net[-1].bias, shift)  # type: ignore[index]
    x, anchor = data.x_NTD[:3, :1], torch.zeros(3, 1)
    alone = policy.log_action(x, anchor, torch.tensor([0, 1, 2]))[:, 0].detach()
    assert alone.tolist() == pytest.approx((0.6 * np.tanh([-0.3, 0.1, 0.5])).tolist())
    assert policy.log_action(x, anchor)[:, 0].detach().tolist() == pytest.approx([0.5 * float(alone.mean())] * 3)


def test_the_reader_lends_mpc_its_slope_and_leaves_its_value(data: TrainingSet, curves: ResponseCurves) -> None:
    policy = PathwiseController(normaliser=data.normaliser, fallback_target=data.fallback_target, outlook=data.outlook)
    index, ratio = torch.arange(curves.n), torch.ones(curves.n)
    reader = train_reader(data, steps=30)
    with_reader = roll_out(policy, curves, index, ratio, gamma=2.0, reader=reader)[0]
    without = roll_out(policy, curves, index, ratio, gamma=2.0)[0]
    torch.testing.assert_close(with_reader, without)
    bias = policy.nets[0][-1].bias  # type: ignore[index]
    slopes = [torch.autograd.grad(each.sum(), bias)[0].item() for each in (with_reader, without)]
    assert slopes[0] != pytest.approx(slopes[1], rel=1e-3)


def test_a_copy_shares_the_weights_and_plays_a_day_of_its_own(data: TrainingSet, market_day: MarketDay) -> None:
    model = gave_of(data)
    alone = play_day(ReplayMarket(market_day), model).history.multiplier_NT
    model.start(market_day.campaigns, 0)
    copied = copy_of(model)
    assert isinstance(copied, GaveController)
    assert copied.action_head.weight is model.action_head.weight
    assert copied.outlook is model.outlook
    np.testing.assert_array_equal(play_day(ReplayMarket(market_day), copied).history.multiplier_NT, alone)
    assert model.looked_NSO is None


def test_a_reader_learns_what_mpc_would_bid(data: TrainingSet) -> None:
    alive = data.alive_NT > 0
    anchor = data.anchor_NT[alive]
    errors = [
        float((train_reader(data, steps=steps)(data.x_NTD[..., :INPUT_WIDTH][alive])[:, 0] - anchor).square().mean())
        for steps in (1, 200)
    ]
    assert errors[1] < 0.3 * errors[0]


def test_a_varied_day_is_the_day_that_the_market_would_have_had(data: TrainingSet, market_day: MarketDay, curves: ResponseCurves) -> None:
    """p 20% higher and rivals' bids 10% lower all day, traffic 30% higher: the curves of such a day, against the shifted ones."""
    varied = replace(
        market_day,
        p_MA=(market_day.p_MA * np.float32(1.2)),
        top_bid_M5=(market_day.top_bid_M5 * np.float32(0.9)),
        sample_fraction=market_day.sample_fraction / 1.3,
    )
    policy = PathwiseController(normaliser=data.normaliser, fallback_target=data.fallback_target)
    index, ratio = torch.arange(curves.n), torch.full((curves.n,), 3.0)
    factors = Factors(*(torch.full((curves.n, 48), float(np.log(each))) for each in (1.2, 1.3, 0.9)))
    shifted = roll_out(policy, curves, index, ratio, gamma=2.0, factors=factors)
    built = roll_out(policy, ResponseCurves.from_days([varied], quiet=True), index, ratio, gamma=2.0)
    plain = roll_out(policy, curves, index, ratio, gamma=2.0)
    for own, reference, other in zip(shifted, built, plain, strict=True):
        np.testing.assert_allclose(own.detach().numpy(), reference.detach().numpy(), rtol=0.03)
        assert not np.allclose(own.detach().numpy(), other.detach().numpy(), rtol=0.05)


def test_variations_hold_for_blocks_and_differ_between_days() -> None:
    factors = Variation(p_day=0.0, p_block=0.2, volume_block=0.1, price_day=0.3).draw(6, torch.Generator().manual_seed(0))
    assert (factors.p_NT.view(6, 6, 8).diff(dim=2) == 0).all()
    assert (factors.volume_NT.view(6, 12, 4).diff(dim=2) == 0).all()
    assert (factors.price_NT.diff(dim=1) == 0).all()
    assert factors.p_NT.std() > 0.1
    assert len(factors.price_NT[:, 0].unique()) == 6
