"""What a step minimises: the softmax over the trie against its dense twin."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from rankloom.config import Config
from rankloom.training.objectives import NextItem, TrieSoftmax, code_losses

SIZES = (5, 4, 6)


def catalogue(seed: int = 0, n_items: int = 40) -> torch.Tensor:
    rng = np.random.default_rng(seed)
    return torch.from_numpy(np.stack([rng.integers(0, size, n_items) for size in SIZES], axis=1))


def legal(codes_IQ: torch.Tensor, item: int, level: int) -> list[int]:
    same = (codes_IQ[:, :level] == codes_IQ[item, :level]).all(1)
    return sorted(set(codes_IQ[same, level].tolist()))


@pytest.mark.parametrize("level", [0, 1, 2])
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_the_trie_softmax_equals_a_softmax_with_illegal_codes_at_minus_infinity(level: int, smoothing: float) -> None:
    codes = catalogue()
    softmax = TrieSoftmax(codes, SIZES)
    torch.manual_seed(level)
    item = torch.randint(0, len(codes), (64,))
    logits = 3 * torch.randn(64, SIZES[level])
    got = softmax.loss(logits, level, item, smoothing=smoothing)
    for row in range(64):
        allowed = legal(codes, int(item[row]), level)
        log_probs = F.log_softmax(logits[row, allowed], dim=0)
        target = log_probs[allowed.index(int(codes[item[row], level]))]
        expected = -(1 - smoothing) * target - smoothing * log_probs.mean()
        assert float(got[row]) == pytest.approx(float(expected), abs=1e-5)


def test_its_gradient_reaches_legal_codes_alone_and_sums_to_zero() -> None:
    codes = catalogue()
    softmax = TrieSoftmax(codes, SIZES)
    item = torch.arange(len(codes))
    logits = torch.randn(len(codes), SIZES[1], requires_grad=True)
    softmax.loss(logits, 1, item).sum().backward()
    assert logits.grad is not None
    for row in range(len(codes)):
        allowed = legal(codes, row, 1)
        outside = [code for code in range(SIZES[1]) if code not in allowed]
        assert not logits.grad[row, outside].any()
        assert float(logits.grad[row].sum()) == pytest.approx(0.0, abs=1e-6)
    dense = torch.autograd.functional.jacobian(lambda x: softmax.loss(x, 1, item).sum(), logits.detach())
    assert torch.allclose(dense, logits.grad, atol=1e-6)


def test_over_all_items_the_probabilities_of_the_trie_sum_to_one() -> None:
    codes = catalogue(n_items=25).unique(dim=0)
    softmax = TrieSoftmax(codes, SIZES)
    # the same logits for every prefix are enough: legality differs
    rows = [torch.randn(size).expand(len(codes), -1) for size in SIZES]
    item = torch.arange(len(codes))
    loss = sum(softmax.loss(rows[level], level, item) for level in range(3))
    assert float(torch.exp(-torch.as_tensor(loss)).sum()) == pytest.approx(1.0, abs=1e-5)


def test_without_a_trie_the_whole_codebook_is_normalised_over() -> None:
    logits, code = torch.randn(8, 5), torch.randint(0, 5, (8,))
    got = code_losses(None, logits, 0, torch.zeros(8, dtype=torch.long), code, smoothing=0.1)
    assert torch.allclose(got, F.cross_entropy(logits, code, label_smoothing=0.1, reduction="none"))


def test_items_that_nobody_took_are_no_answers_of_the_trie_in_training() -> None:
    codes = catalogue(n_items=30).unique(dim=0)
    rows = torch.arange(0, len(codes), 2)
    softmax = TrieSoftmax(codes, SIZES, rows=rows)
    logits = [torch.randn(size).expand(len(rows), -1) for size in SIZES]
    loss = sum(softmax.loss(logits[level], level, rows) for level in range(3))
    # the probabilities of those that were taken sum to one
    assert float(torch.exp(-torch.as_tensor(loss)).sum()) == pytest.approx(1.0, abs=1e-5)


def test_late_targets_weigh_more_and_one_on_average() -> None:
    day = 86_400.0
    when = torch.tensor([0.0, 10 * day, 20 * day], dtype=torch.float64)
    config = Config.preset_config("tiny").with_overrides(["training.recency_days=10"])
    weight = NextItem(config, torch.ones(5), when_E=when)._recency(when)
    assert weight is not None
    assert float(weight.mean()) == pytest.approx(1.0)
    assert (weight[1] / weight[0]).item() == pytest.approx(2.0)
    assert (weight[2] / weight[1]).item() == pytest.approx(2.0)
    assert NextItem(Config.preset_config("tiny"), torch.ones(5), when_E=when)._recency(when) is None
    assert NextItem(config, torch.ones(5))._recency(None) is None
