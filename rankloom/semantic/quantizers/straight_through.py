"""The straight-through estimator: the quantised value forward, the gradient of the identity backward (Bengio et al. 2013)."""

from __future__ import annotations

from torch import Tensor


def straight_through(value: Tensor, quantised: Tensor) -> Tensor:
    """`quantised` in the forward pass; in the backward pass its gradient goes to `value` unchanged. Same shapes."""
    return value + (quantised - value).detach()
