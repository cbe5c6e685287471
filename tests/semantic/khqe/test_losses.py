from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from rankloom.semantic.khqe.losses import content_kept, in_batch_contrast, rank_margin, relevance_fit


def unit(*rows: list[float]) -> torch.Tensor:
    return F.normalize(torch.tensor(rows), dim=1)


def test_contrast_equals_its_definition_over_the_batch() -> None:
    rng = torch.Generator().manual_seed(0)
    a, b = (F.normalize(torch.randn(5, 4, generator=rng), dim=1) for _ in range(2))
    left, right = torch.tensor([0, 1, 2, 0, 4]), torch.tensor([7, 8, 9, 6, 8])
    total = 0.0
    for i in range(5):
        for one, other, who, whom in ((a, b, left, right), (b, a, right, left)):
            # another pair with the same left or the same right is no negative
            others = [j for j in range(5) if j == i or (who[j] != who[i] and whom[j] != whom[i])]
            scores = np.array([float(one[i] @ other[j]) / 0.1 for j in others])
            total += float(np.log(np.exp(scores).sum()) - scores[others.index(i)])
    assert float(in_batch_contrast(a, b, left, right, 0.1)) == pytest.approx(total / 10, rel=1e-5)


def test_contrast_pulls_a_pair_together_and_pushes_others_away() -> None:
    a = unit([1.0, 0.0], [0.0, 1.0]).requires_grad_()
    b = unit([0.8, 0.6], [0.6, 0.8])
    in_batch_contrast(a, b, torch.tensor([0, 1]), torch.tensor([0, 1]), 0.5).backward()
    assert a.grad is not None
    step = -a.grad
    assert float(step[0] @ b[0]) > 0 > float(step[0] @ b[1])


def test_rank_margin_is_zero_when_every_level_is_far_enough_ahead() -> None:
    query = unit([1.0, 0.0])
    ordered, clicked, shown = unit([1.0, 0.0]), unit([0.8, 0.6]), unit([0.0, 1.0])
    one, two = torch.tensor([1.0]), torch.tensor([2.0])
    assert float(rank_margin(query, ordered, clicked, one, 0.1)) == 0
    assert float(rank_margin(query, ordered, clicked, two, 0.15)) == pytest.approx(0.1, abs=1e-6)
    assert float(rank_margin(query, shown, ordered, two, 0.1)) == pytest.approx(1.2, abs=1e-6)


def test_rank_margin_moves_the_better_nearer_and_the_worse_away() -> None:
    query, better, worse = unit([1.0, 0.0]), unit([0.6, 0.8]).requires_grad_(), unit([0.7, 0.7]).requires_grad_()
    rank_margin(query, better, worse, torch.tensor([1.0]), 0.1).backward()
    assert better.grad is not None
    assert worse.grad is not None
    assert float(-better.grad @ query.T) > 0 > float(-worse.grad @ query.T)


def test_relevance_pulls_to_its_score_from_both_sides() -> None:
    query = unit([1.0, 0.0], [1.0, 0.0])
    item = unit([0.5, 0.866], [0.5, 0.866]).requires_grad_()
    slope, middle = torch.tensor(5.0), torch.tensor(0.5)
    relevance_fit(query, item, torch.tensor([1.0, 0.0]), slope, middle).backward()
    assert item.grad is not None
    assert float(-item.grad[0] @ query[0]) > 0 > float(-item.grad[1] @ query[1])
    at_rest = relevance_fit(query, item.detach(), torch.tensor([0.5, 0.5]), slope, middle)
    assert float(at_rest) == pytest.approx(np.log(2), abs=1e-3)


def test_content_is_kept_by_a_rotation_and_not_by_a_collapse() -> None:
    x = unit([1.0, 0.0], [0.0, 1.0], [0.6, 0.8])
    turned = x @ torch.tensor([[0.0, 1.0], [-1.0, 0.0]])
    assert float(content_kept(turned, x)) == pytest.approx(0, abs=1e-9)
    assert float(content_kept(x[:1].repeat(3, 1), x)) > 0.1
