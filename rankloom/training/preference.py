"""The list-wise preference loss of OneSearch's PARS: one item that should be above several others.

With r(i) = log pi(i | x) - log pi_ref(i | x) and per-pair weights w_l, two forms:

* `sdpo` (default; the form of the released code, S-DPO with an adaptive weight)
      -log sigma( -log sum_l exp( w_l beta (r(l) - r(win)) ) ) + anchor * (-log pi(win))
* `onesug` (the form of the same authors' query suggestion)
      -log sigma( -log sum_l exp( w_l max(0, beta r(l) - beta r(win) - delta) ) ) + anchor * (-log pi(win))

The formula that readers print for the first paper has max(0, r(win) - r(l) - delta) inside the exponent and no minus before
the sum: its gradient is zero for exactly those pairs that are in the wrong order. It is taken for a misprint and not built.

Weights: `adaptive` is the released (max(s_win, 1) - s_l)^-alpha + 1 of the two rewards, `rw_delta` the paper's
1 / (s_win - s_l), `none` is 1. Both shrink with the distance: a hard pair counts more. Differences below `least` are taken as
`least`, since an item never shown may score above one often shown.

`hinge` adds relu(log pi_ref(win) - log pi(win)): what is preferred must not become less probable than it was.

Shapes: B contexts, N rejected items.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from rankloom.config import Section


class PreferenceLoss(Section):
    """Settings of the loss; see the module's docstring."""

    form: Literal["sdpo", "onesug"] = "sdpo"
    weight: Literal["adaptive", "rw_delta", "none"] = "adaptive"
    beta: float = Field(default=0.1, gt=0)
    """Not given for OneSearch; DPO's usual."""
    alpha: float = Field(default=1.5, ge=0)
    delta: float = Field(default=0.0, ge=0)
    """Margin of `onesug`, below which a pair in the wrong order still counts as even."""
    anchor: float = Field(default=0.1, ge=0)
    """Weight of the preferred item's own likelihood (the supervised anchor)."""
    hinge: float = Field(default=0.0, ge=0)
    """Weight of the hinge, 0 leaves it out."""
    least: float = Field(default=0.05, gt=0)
    largest_weight: float = Field(default=20.0, gt=0)


@dataclass
class Preferences:
    """Log-probabilities under the model and the reference, and rewards.

    Attributes:
        win_B, lose_BN: log pi.
        win_ref_B, lose_ref_BN: log pi_ref.
        reward_win_B, reward_lose_BN: what the weights are made of.
        real_BN: which rejected items exist.
    """

    win_B: Tensor
    lose_BN: Tensor
    win_ref_B: Tensor
    lose_ref_BN: Tensor
    reward_win_B: Tensor
    reward_lose_BN: Tensor
    real_BN: Tensor


def pair_weights(config: PreferenceLoss, reward_win_B: Tensor, reward_lose_BN: Tensor) -> Tensor:
    """(B, N) weights of the pairs."""
    if config.weight == "none":
        return torch.ones_like(reward_lose_BN)
    win_B1 = reward_win_B[:, None]
    if config.weight == "adaptive":
        distance = (win_B1.clamp_min(1.0) - reward_lose_BN).clamp_min(config.least)
        return (distance**-config.alpha + 1).clamp_max(config.largest_weight)
    return (1 / (win_B1 - reward_lose_BN).clamp_min(config.least)).clamp_max(config.largest_weight)


def preference_loss(config: PreferenceLoss, own: Preferences) -> Tensor:
    """The mean over contexts that have a rejected item; 0 where none has."""
    kept = own.real_BN.any(1)
    if not bool(kept.any()):
        return own.win_B.sum() * 0
    gain_B = own.win_B - own.win_ref_B
    gain_BN = own.lose_BN - own.lose_ref_BN
    weight_BN = pair_weights(config, own.reward_win_B, own.reward_lose_BN)
    behind_BN = config.beta * (gain_BN - gain_B[:, None])
    exponent_BN = weight_BN * (
        behind_BN if config.form == "sdpo" else torch.clamp_min(behind_BN - config.delta, 0.0)
    )
    total_B = torch.logsumexp(exponent_BN.masked_fill(~own.real_BN, float("-inf"))[kept], dim=1)
    # -log sigma(-x) = softplus(x)
    loss_B = F.softplus(total_B) - config.anchor * own.win_B[kept]
    if config.hinge:
        loss_B = loss_B + config.hinge * F.relu(own.win_ref_B[kept] - own.win_B[kept])
    return loss_B.mean()
