"""The list-wise loss by hand, its gradient on pairs in the wrong order, its weights, and the printed misprint."""

from __future__ import annotations

import math

import pytest
import torch

from rankloom.training.preference import PreferenceLoss, Preferences, pair_weights, preference_loss


def given(win: float, lose: list[float], *, reward: tuple[float, list[float]] = (1.0, [0.0]), ref: float = 0.0) -> Preferences:
    rewards = reward[1] if len(reward[1]) == len(lose) else reward[1] * len(lose)
    return Preferences(
        win_B=torch.tensor([win], requires_grad=True), lose_BN=torch.tensor([lose], requires_grad=True),
        win_ref_B=torch.tensor([ref]), lose_ref_BN=torch.full((1, len(lose)), ref),
        reward_win_B=torch.tensor([reward[0]]), reward_lose_BN=torch.tensor([rewards]),
        real_BN=torch.ones(1, len(lose), dtype=torch.bool),
    )  # fmt: skip


def test_sdpo_by_hand() -> None:
    own = given(-2.0, [-1.0, -3.0], ref=-2.5)
    config = PreferenceLoss(weight="none", beta=0.5, anchor=0.25)
    # gains: win .5; lose 1.5, -.5; exponents .5 * (1.5 - .5), .5 * (-.5 - .5)
    total = math.log(math.exp(0.5) + math.exp(-0.5))
    expected = math.log(1 + math.exp(total)) + 0.25 * 2.0
    assert preference_loss(config, own).item() == pytest.approx(expected, rel=1e-6)


def test_one_rejected_item_without_weights_is_dpo() -> None:
    own = given(-1.0, [-1.5])
    config = PreferenceLoss(weight="none", beta=0.3, anchor=0.0)
    assert float(preference_loss(config, own)) == pytest.approx(-math.log(1 / (1 + math.exp(-0.3 * 0.5))), rel=1e-6)


def test_onesug_by_hand() -> None:
    own = given(-2.0, [-1.0, -3.0])
    config = PreferenceLoss(form="onesug", weight="none", beta=1.0, delta=0.2, anchor=0.0)
    total = math.log(math.exp(0.8) + math.exp(0.0))
    assert float(preference_loss(config, own)) == pytest.approx(math.log(1 + math.exp(total)), rel=1e-6)


@pytest.mark.parametrize("form", ["sdpo", "onesug"])
@pytest.mark.parametrize("weight", ["adaptive", "rw_delta", "none"])
def test_a_pair_in_the_wrong_order_is_pushed_apart(form: str, weight: str) -> None:
    own = given(-5.0, [-1.0], reward=(0.9, [0.1]))
    config = PreferenceLoss.model_validate({"form": form, "weight": weight, "anchor": 0.0})
    preference_loss(config, own).backward()
    assert own.win_B.grad is not None
    assert own.lose_BN.grad is not None
    assert float(own.win_B.grad) < 0  # a step against the gradient raises what is preferred
    assert float(own.lose_BN.grad) > 0


def test_the_printed_formula_has_no_gradient_there() -> None:
    """log sigma(log sum exp(w max(0, r(win) - r(lose) - delta))): why it is not built."""
    own = given(-5.0, [-1.0])
    ahead = torch.clamp_min(own.win_B[:, None] - own.lose_BN, 0.0)
    (-torch.nn.functional.logsigmoid(torch.logsumexp(ahead, 1))).sum().backward()
    assert own.win_B.grad is not None
    assert float(own.win_B.grad) == 0


def test_adaptive_weights_are_the_released_form() -> None:
    config = PreferenceLoss(alpha=1.5, least=0.05, largest_weight=1000)
    found = pair_weights(config, torch.tensor([0.4, 2.0]), torch.tensor([[0.5, 0.0], [1.0, 1.99]]))
    # the preferred score counts as at least 1
    expected = [0.5**-1.5 + 1, 2.0, 2.0, 0.05**-1.5 + 1]
    assert found.flatten().tolist() == pytest.approx(expected, rel=1e-5)


def test_rw_delta_weights_are_clamped() -> None:
    config = PreferenceLoss(weight="rw_delta", least=0.1)
    assert pair_weights(config, torch.tensor([0.5]), torch.tensor([[0.0, 0.9]])).flatten().tolist() == pytest.approx([2, 10])


def test_the_hinge_pulls_back_what_fell() -> None:
    fallen, risen = given(-3.0, [-9.0], ref=-2.0), given(-1.0, [-9.0], ref=-2.0)
    with_hinge, without = (PreferenceLoss(anchor=0.0, hinge=weight) for weight in (2.0, 0.0))
    assert float(preference_loss(with_hinge, fallen) - preference_loss(without, fallen)) == pytest.approx(2.0)
    assert float(preference_loss(with_hinge, risen) - preference_loss(without, risen)) == pytest.approx(0.0)


def test_padding_counts_for_nothing() -> None:
    two = given(-2.0, [-1.0, 99.0])
    two.real_BN[0, 1] = False
    config = PreferenceLoss()
    assert float(preference_loss(config, two)) == pytest.approx(float(preference_loss(config, given(-2.0, [-1.0]))))
    two.real_BN[:] = False
    assert float(preference_loss(config, two)) == 0.0


def test_codes_that_both_ids_share_get_no_gradient() -> None:
    """What RAD-DPO detaches cancels in a difference of two log-probabilities; nothing has to be detached here."""
    shared, win, lose = (torch.tensor([value], requires_grad=True) for value in (-1.0, -2.0, -0.5))
    own = given(0.0, [0.0, 0.0])
    own.win_B, own.lose_BN = shared + win, torch.stack([shared + lose, shared + 3 * lose], dim=1)
    preference_loss(PreferenceLoss(anchor=0.0, beta=0.7), own).backward()
    assert shared.grad is not None
    assert win.grad is not None
    assert float(shared.grad) == pytest.approx(0.0, abs=1e-6)
    assert float(win.grad) < -0.05


@pytest.mark.parametrize(("beta", "nats"), [(0.1, 9.6), (1.0, 0.96), (2.0, 0.48)])
def test_beta_says_how_far_apart_a_pair_is_pushed(beta: float, nats: float) -> None:
    """With 8 rejected and the adaptive weight of 2.17 the list is even (loss log 2) only log(8) / (2.17 beta) nats apart."""
    config = PreferenceLoss(beta=beta, anchor=0.0)
    own = given(nats, [0.0] * 8, reward=(0.9, [0.1]))
    assert float(preference_loss(config, own)) == pytest.approx(math.log(2), abs=0.02)
