"""From a log to a bidder's folder: every learner, held-out periods, the selector, and what is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from rankloom.bidding.bidders import BIDDER, WEIGHTS, load_bidder, save_bidder
from rankloom.bidding.controllers import MPC, controller
from rankloom.bidding.day import DayResult, play_day
from rankloom.bidding.learned.base import LearnedController, prepare
from rankloom.bidding.learned.cbd import trajectory_properties
from rankloom.bidding.population import PopulationConfig
from rankloom.bidding.protocol import Campaigns, SavedController
from rankloom.bidding.replay import ReplayMarket
from rankloom.bidding.selector import Selector
from rankloom.bidding.training import (
    CONTROLLERS,
    WITH_OUTLOOK,
    Effort,
    Experience,
    Shaped,
    gather_experience,
    held_out,
    held_out_results,
    learn,
    populate,
    shaped_days,
    train_bidder,
)
from rankloom.bidding.trajectories import from_result, write_trajectories
from rankloom.cli import app
from rankloom.errors import RankloomError
from tests.bidding.small_log import small_day, small_log


@pytest.fixture(scope="module")
def log_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("log") / "log.parquet"
    write_trajectories(path, small_log(5))
    return path


@pytest.fixture(scope="module")
def experience(log_path: Path) -> Experience:
    return gather_experience(log_path, effort=Effort.quick(3), quiet=True)


def test_every_fifth_period_is_held_out() -> None:
    assert held_out([7, 8, 9, 10, 11, 12, 13, 14, 15, 16]) == {11, 16}
    assert held_out([1, 2, 3]) == set()


def test_nothing_is_learned_from_held_out_periods(experience: Experience) -> None:
    market = experience.market
    assert market is not None
    assert set(experience.trajectories.period_N.tolist()) == {0, 1, 2, 3}
    assert set(market.curves.period_N[market.held_out_M].tolist()) == {4}
    assert market.fidelity > 0.9


def test_gave_cbd_and_the_expert_stand_on_mpc_and_the_baselines_do_not(experience: Experience) -> None:
    for name in ("gave", "cbd", "pathwise", "dt-score", "iql"):
        learned, _figures = learn(name, experience, effort=Effort.quick(2), quiet=True)
        assert isinstance(learned, LearnedController)
        assert (learned.outlook is not None) == (name in WITH_OUTLOOK)
    helped, _figures = learn("dt-score", experience, effort=Effort.quick(2), outlook=True, quiet=True)
    assert isinstance(helped, LearnedController)
    assert helped.outlook is not None


def test_what_the_expert_saw_is_what_would_be_seen_again(experience: Experience) -> None:
    assert experience.expert is not None
    anew = prepare(
        experience.trajectories,
        normaliser=experience.data.normaliser,
        outlook=experience.expert.outlook,
    )
    alive = anew.alive_NT > 0
    same = (anew.x_NTD - experience.data.x_NTD).abs().amax(dim=-1) < 1e-3
    assert same[alive].float().mean() > 0.99
    assert ((anew.anchor_NT - experience.data.anchor_NT).abs() < 1e-4)[alive].float().mean() > 0.99


def test_what_the_expert_meant_is_what_it_bid_without_the_perturbation(experience: Experience) -> None:
    config = PopulationConfig()
    alive = experience.data.alive_NT > 0
    noise = (experience.data.residual_NT - experience.data.meant_NT)[alive]
    assert noise.std().item() == pytest.approx((config.expert_day_sd**2 + config.tick_sd**2) ** 0.5, rel=0.2)
    assert abs(noise.mean().item()) < 0.02
    # the days of a log are all that is known of it
    assert torch.equal(experience.plain.meant_NT, experience.plain.residual_NT)
    mixed = populate(
        experience.market, experience.expert, effort=Effort(population=PopulationConfig(expert=1, wander=1)), seed=0  # type: ignore[arg-type]
    )
    assert torch.equal(mixed.data.meant_NT, mixed.data.residual_NT)


def test_shaped_days_are_told_by_how_much_they_differ_from_their_twins(experience: Experience) -> None:
    days = shaped_days(experience, effort=Effort(shaped=2, population=PopulationConfig(expert=1)), seed=0)
    usual, shape = days.properties_NC[~days.shaped_N], days.properties_NC[days.shaped_N]
    assert len(usual) == experience.data.n
    assert len(shape) == 2 * experience.market.training_M.size
    assert days.data.n == len(days.properties_NC)
    assert (usual[:, 1:] == 0).all()
    assert torch.equal(usual[:, 0], experience.data.return_NT[:, 0])
    assert shape[:, 1].std() > 0.03
    assert shape[:, 2].std() > 0.03
    assert shape[:, 1].min() < 0 < shape[:, 1].max()
    # two fifths are shaped in one property, two in the other, a fifth in both; a property's scale is that of the days shaped in it
    shaped = days.shaped_NC[days.shaped_N]
    assert not shaped[:, 0].any()
    assert 0.4 < shaped[:, 1].float().mean() < 0.8
    assert 0 < shaped.sum(dim=1).float().mean() - 1 < 0.4
    # a shape of nothing is the twin itself
    assert (days.scale()[0][1:] == 0).all()
    assert days.scale()[1][1].item() == pytest.approx(shape[shaped[:, 1], 1].std().item())


def test_a_tilt_moves_spending_forward_and_evenness_smooths_it(experience: Experience) -> None:
    assert experience.market is not None

    class Told(Shaped):
        def __init__(self, tilt: float, even: float) -> None:
            super().__init__(MPC())
            self.told = tilt, even

        def start(self, campaigns: Campaigns, seed: int) -> None:
            super().start(campaigns, seed)
            self._tilt_N, self._even_N = (np.full(campaigns.n, each) for each in self.told)

    def properties(tilt: float, even: float) -> torch.Tensor:
        result = held_out_results(Told(tilt, even), experience.market)  # type: ignore[arg-type]
        return trajectory_properties(from_result(result, period=0), torch.zeros(result.campaigns.n)).mean(dim=0)

    plain, early, late, even = properties(0, 0), properties(0.35, 0), properties(-0.35, 0), properties(0, 0.15)
    alone = held_out_results(MPC(), experience.market)
    assert torch.equal(plain, trajectory_properties(from_result(alone, period=0), torch.zeros(alone.campaigns.n)).mean(dim=0))
    assert late[1] + 0.02 < plain[1] < early[1] - 0.02
    assert even[2] < plain[2] - 0.01


def test_where_only_a_log_is_known_no_day_is_shaped(experience: Experience) -> None:
    alone = replace(experience, market=None, expert=None)
    days = shaped_days(alone)
    assert not days.shaped_N.any()
    assert days.data is experience.data
    # by itself a campaign spends as it does on the mean of its days
    seat_N = torch.from_numpy(experience.trajectories.seat_N)
    for seat in seat_N.unique():
        assert days.properties_NC[seat_N == seat, 1:].mean(dim=0).abs().max() < 1e-5


def test_the_planner_of_an_objective_is_that_objectives(log_path: Path) -> None:
    strict = gather_experience(log_path, gamma=5.0, effort=Effort.quick(2), quiet=True)
    assert strict.expert is not None
    assert strict.expert.outlook is not None
    assert strict.expert.outlook.planner.config.gamma == 5.0
    assert strict.data.gamma == 5.0


@pytest.mark.parametrize("name", [each for each in CONTROLLERS if each != "selector"])
def test_every_learner_is_saved_and_loaded_as_the_same_bidder(name: str, experience: Experience, tmp_path: Path) -> None:
    learned, figures = learn(name, experience, effort=Effort.quick(2), quiet=True)
    assert np.isfinite(figures["held_out_score"])
    save_bidder(tmp_path / "b", learned, training=figures)
    loaded = load_bidder(tmp_path / "b")
    assert loaded.name == learned.name
    assert loaded.settings() == learned.settings()
    market = ReplayMarket(small_day(9, seats=6, per_tick=8)[0])
    first, second = (play_day(market, each, seed=1).history.multiplier_NT for each in (learned, loaded))
    np.testing.assert_array_equal(first, second)
    assert "held_out_score" in (tmp_path / "b" / "README.md").read_text()


def test_the_command_trains_a_bidder_that_evaluate_finds(log_path: Path, tmp_path: Path) -> None:
    arguments = ["bid", "train", "--trajectories", str(log_path), "--controller", "bc", "--source", "log", "--steps", "5"]
    out = tmp_path / "bidder"
    result = CliRunner().invoke(app, [*arguments, "--out", str(out)], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    described = json.loads((out / BIDDER).read_text())
    assert described["training"]["source"] == "log"
    assert described["settings"]["kind"] == "policy"
    assert load_bidder(out).name == "bc"
    assert not [each for each in tmp_path.iterdir() if each.name.startswith(".")]


def test_a_folder_in_the_way_is_refused_before_any_work(log_path: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    for overwrite in (False, True):
        with pytest.raises(RankloomError) as error:
            train_bidder(log_path, "bc", tmp_path, overwrite=overwrite, quiet=True)
        assert error.value.code in ("out-exists", "out-foreign")
    assert (tmp_path / "mine.txt").read_text() == "mine"


@pytest.mark.parametrize("name", ["ppo", ""])
def test_unknown_controllers_are_refused(name: str, log_path: Path, tmp_path: Path) -> None:
    with pytest.raises(RankloomError, match="choose one of gave"):
        train_bidder(log_path, name, tmp_path / "b", quiet=True)


def test_a_log_of_few_seats_is_learned_from_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "few.parquet"
    log = small_log(2)
    write_trajectories(path, log.select(log.seat_N < 4))
    said: list[str] = []
    found = gather_experience(path, effort=Effort.quick(2), say=said.append, quiet=True)
    assert found.market is None
    assert found.trajectories.n == 8
    assert "fewer than 8 seats" in said[0]
    with pytest.raises(RankloomError, match="rebuilt days"):
        learn("pathwise", found, quiet=True)


def test_a_damaged_bidder_is_refused_by_the_name_of_the_file(experience: Experience, tmp_path: Path) -> None:
    learned, _ = learn("bc", experience, effort=Effort.quick(1), quiet=True)
    save_bidder(tmp_path / "b", learned)
    weights = tmp_path / "b" / WEIGHTS
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(RankloomError, match=WEIGHTS):
        load_bidder(tmp_path / "b")
    with pytest.raises(RankloomError, match="no bidder's folder"):
        load_bidder(tmp_path)


# --- the selector -----------------------------------------------------------------------------------------------------


def built_in(name: str) -> SavedController:
    found = controller(name)
    assert isinstance(found, SavedController)
    return found


def results_of(selector: Selector, experience: Experience) -> list[list[DayResult]]:
    assert experience.market is not None
    return [[held_out_results(member, experience.market)] for member in selector.members]


def test_the_selector_plays_in_each_segment_the_member_that_was_best_there() -> None:
    selector = Selector([built_in("constant"), built_in("constant-1.2")], edges=[11.0])
    campaigns = small_day(0)[0].campaigns
    small = campaigns.budget_N / campaigns.target_cpa_N < 11.0
    assert small.any()
    assert not small.all()
    for _ in range(20):
        selector.record(0, campaigns, np.where(small, 5.0, 1.0))
        selector.record(1, campaigns, np.where(small, 1.0, 5.0))
    selector.start(campaigns, 0)
    np.testing.assert_array_equal(selector._chosen_N, np.where(small, 0, 1))


def test_a_segment_that_saw_little_follows_the_overall_mean() -> None:
    selector = Selector([built_in("constant"), built_in("constant-1.2")], edges=[11.0])
    campaigns = small_day(0)[0].campaigns
    share = campaigns.budget_N / campaigns.target_cpa_N
    for _ in range(50):
        selector.record(0, campaigns, np.where(share < 11.0, 0.0, 0.8 * share))
        selector.record(1, campaigns, np.where(share < 11.0, 0.0, 0.4 * share))
    selector.count_SM[0] = 1.0
    selector.mean_SM[0] = [0.0, 0.01]
    assert selector.estimates()[0].argmax() == 0


def test_the_selector_learns_from_days_and_is_saved_with_its_members(experience: Experience, tmp_path: Path) -> None:
    selector = Selector([built_in("constant"), built_in("min-pacing"), built_in("mpc")], explore=0.5)
    selector.learn_from(results_of(selector, experience))
    assert (selector.count_SM.sum(axis=0) == 10).all()
    save_bidder(tmp_path / "s", selector)
    loaded = load_bidder(tmp_path / "s")
    market = ReplayMarket(small_day(9, seats=6, per_tick=8)[0])
    first, second = (play_day(market, each, seed=3) for each in (selector, loaded))
    np.testing.assert_array_equal(first.history.multiplier_NT, second.history.multiplier_NT)
    before = selector.count_SM.sum()
    selector.learn_own_day(first.campaigns, first.history, first.judged_N)
    assert selector.count_SM.sum() == before + 6


def test_a_selector_without_members_is_refused() -> None:
    with pytest.raises(ValueError, match="member"):
        Selector([])
