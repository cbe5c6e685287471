"""Validation while training: a target is never put below itself."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from rankloom.training.features import FeatureTable
from rankloom.training.validation import Validation
from tests.training.test_batches import log


class Rounding:
    """A model whose two ways to the score of one item differ by rounding."""

    training = False

    def __init__(self, n_items: int) -> None:
        self.scores_I = -torch.arange(n_items, dtype=torch.float32)
        self.items = self
        self.created_I = torch.full((n_items,), float("nan"))

    def eval(self) -> None:
        """Nothing to switch."""

    def train(self, mode: bool) -> None:
        """Nor back."""

    def prefill(self, batch: Any, surface: Tensor) -> Tensor:
        return surface

    def catalogue_scores(self, user: Tensor, rows: Tensor, ages: Any) -> Tensor:
        return self.scores_I[rows].expand(len(user), -1).clone()

    def select_scores(self, user: Tensor, rows: Tensor, when: Any) -> Tensor:
        return self.scores_I[rows] - 1e-5


def test_rounding_puts_no_target_below_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    sequences = log([9] * 30, held_out=2, n_items=8)
    sequences.target[:] = True
    sequences.item[:] = 0
    table = FeatureTable.from_sequences(sequences)
    monkeypatch.setattr(
        Validation, "_teacher_forced", lambda self, model, prefix, target: (torch.zeros(len(target)), target[:, None])
    )
    own = Validation(sequences, table, max_history=8, max_cases=100, mask_seen=False, seed=0)
    figures = own(Rounding(8))  # type: ignore[arg-type]
    # the best item of all is first, not second after itself
    assert len(own) > 0
    assert figures["valid_ndcg@10"] == pytest.approx(1)
