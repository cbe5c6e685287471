"""The reward model's towers: candidates do not see each other, history's padding is not read, R by hand, labels by tower."""

from __future__ import annotations

import pytest
import torch

from rankloom.models.reward_towers import RewardInput, RewardTowers, TowerConfig, joined_reward, tower_loss

N_SCALARS = 6


def given(batch: int = 2, n: int = 4, length: int = 3, width: int = 5) -> RewardInput:
    draw = torch.Generator().manual_seed(0)
    return RewardInput(
        torch.randn(batch, width, generator=draw), torch.randn(batch, width, generator=draw),
        torch.randn(batch, length, width, generator=draw), torch.ones(batch, length, dtype=torch.bool),
        torch.randn(batch, n, width, generator=draw), torch.randn(batch, n, N_SCALARS, generator=draw),
    )  # fmt: skip


def towers() -> RewardTowers:
    torch.manual_seed(1)
    return RewardTowers(TowerConfig(width=4, hidden=8), 5, n_scalars=N_SCALARS, n_tokens=9).eval()


def test_a_candidate_is_judged_alone() -> None:
    own, data = towers(), given()
    with torch.no_grad():
        all_of_them = own(data)
        one = RewardInput(
            data.query_BA, data.user_BA, data.history_BHA, data.real_BH, data.item_BMA[:, 2:3], data.scalar_BMF[:, 2:3]
        )
        assert torch.allclose(own(one), all_of_them[:, 2:3], atol=1e-6)
    assert all_of_them.shape == (2, 4, 3)


def test_padding_of_the_history_is_not_read_and_no_history_is_no_error() -> None:
    own, data = towers(), given()
    data.real_BH[:, 1:] = False
    data.real_BH[1] = False
    with torch.no_grad():
        before = own(data)
        data.history_BHA[:, 1:] += 7
        data.history_BHA[1] += 7
        assert torch.allclose(own(data), before)
    assert torch.isfinite(before).all()


def test_a_profile_changes_who_is_asked_and_padding_does_not() -> None:
    own, data = towers(), given()
    data.profile_BT = torch.tensor([[3, 4, 0], [0, 0, 0]])
    with torch.no_grad():
        before = own(data)
        data.profile_BT = torch.tensor([[3, 4], [5, 0]])
        after = own(data)
        data.profile_BT = None
        nobody = own(data)
    assert torch.allclose(before[0], after[0], atol=1e-6)
    assert not torch.allclose(before[1], after[1])
    assert torch.allclose(before[1], nobody[1], atol=1e-6)


def test_reward_by_hand_with_relevance_ten_times() -> None:
    logit = torch.tensor([[[0.0, 2.0, -2.0]]])
    expected = 1 * 0.5 + 2 * torch.sigmoid(torch.tensor(2.0)) + 3 * torch.sigmoid(torch.tensor(-2.0)) + 10 * 0.5 * 0.3
    found = joined_reward(logit, torch.tensor([[0.3]]), (1.0, 2.0, 3.0, 0.5))
    assert float(found) == pytest.approx(float(expected), rel=1e-6)


def test_each_tower_learns_from_its_own_labels() -> None:
    clicked = torch.tensor([[True, True, False, False]])
    ordered = torch.tensor([[True, False, False, False]])
    shown = torch.tensor([[True, True, True, False]])
    logit = torch.zeros(1, 4, 3, requires_grad=True)
    tower_loss(logit, clicked, ordered, shown).backward()
    assert logit.grad is not None
    ctr, cvr, ctcvr = logit.grad[0].T
    assert torch.sign(ctr).tolist() == [-1, -1, 1, 0]
    assert torch.sign(cvr).tolist() == [-1, 1, 0, 0]  # among clicks alone
    assert torch.sign(ctcvr).tolist() == [-1, 1, 1, 0]
