"""The relevance of a search's results: a chance in [0, 1] that means the same in every list, and can be cut at.

    relevance(i) = P(i is what the person takes | the query, the list that may be shown, the history)

That is what a log can bear out: it says what people took after a search, and never what they would have found good. So the
best of two hundred alike dresses is rarely above a tenth, and the one item with a model number's words near one. The model's own
share of an item, the softmax p of the final scores over the generated items, is not yet that chance: it knows nothing of a query
that the shop does not understand, and scores that were fitted to order lists are too sure or too shy. Hence

    z(i) = p(i) * understood        understood: the most of the query, words by how rare they are, that any generated item has
    relevance(i) = sigmoid(a * log z - b * log(1 - z) + c),   a, b >= 0

beta calibration (Kull, Silva Filho and Flach 2017): three numbers, so that fifty searches suffice, and rising in z, so that the
order of a list stays. Where no item has a word of the query z is 0, and so is the relevance: nothing in the log could vouch for it.

Shapes: B requests, C generated items, N (search, item) pairs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import minimize
from torch import Tensor

Floats = NDArray[np.float64]

BINS: Final = 10
"""Of the calibration error, each of as many pairs."""
_LEAST: Final = 1e-12
_PENALTY: Final = 1e-3
"""Towards the model's own shares (a = b = 1, c = 0), in nats a search: decides only where the searches do not."""


@dataclass(frozen=True)
class Relevance:
    """A fitted calibration. See the module's docstring.

    Attributes:
        a, b, c: of beta calibration.
        searches: how many it was fitted on.
        error: expected calibration error of the ten best places on searches that it was not fitted on.
        error_before: that of the shares as they were, on the same.
    """

    a: float
    b: float
    c: float
    searches: int = 0
    error: float | None = None
    error_before: float | None = None

    def describe(self) -> str:
        """One sentence on what it was fitted on and how well."""
        error = "" if self.error is None else f"; its error on held-out ones is {self.error:.4f} ({self.error_before:.4f} before)"
        return f"calibrated on {self.searches:,} searches of the validation period{error}"

    def __call__(self, share: Tensor) -> Tensor:
        """Chances of any shape, float32, 0 where the share is.

        Args:
            share: what `understood_shares` gave.
        """
        z = share.double().clamp(0.0, 1.0 - _LEAST)
        odds = self.a * z.clamp_min(_LEAST).log() - self.b * torch.log1p(-z) + self.c
        return torch.where(z > 0, torch.sigmoid(odds), 0.0).float()

    @classmethod
    def fit(cls, share_N: Floats, taken_N: NDArray[np.bool_], *, searches: int) -> Relevance:
        """By the likelihood of what was taken.

        Args:
            share_N: of every (search, item) pair, z; pairs with 0 say nothing and are left out.
            searches: how many searches the pairs come from.
        """
        told = share_N > 0
        z = np.clip(share_N[told], _LEAST, 1 - _LEAST)
        y = taken_N[told].astype(np.float64)
        log_z, log_rest = np.log(z), -np.log1p(-z)
        n = max(1, searches)

        def loss(at: Floats) -> tuple[float, Floats]:
            odds = at[0] * log_z + at[1] * log_rest + at[2]
            off = at - np.array([1.0, 1.0, 0.0])
            value = (np.logaddexp(0, odds) - y * odds).sum() / n + _PENALTY * float(off @ off)
            error = (1 / (1 + np.exp(-odds)) - y) / n
            slope = np.array([error @ log_z, error @ log_rest, error.sum()]) + 2 * _PENALTY * off
            return value, slope

        # a of at least a little: equal chances would lose the order
        best = minimize(loss, np.array([1.0, 1.0, 0.0]), jac=True, method="L-BFGS-B", bounds=[(0.05, None), (0.0, None), (None, None)])
        a, b, c = (float(own) for own in best.x)
        return cls(a, b, c, searches)


def understood_shares(score_BK: Tensor, score_BC: Tensor, coverage_BC: Tensor) -> Tensor:
    """(B, K) z of the module's docstring: each item's share of the final scores, times how much of the query any generated one has.

    Args:
        score_BK: final scores of the items that are asked about, -inf for padding.
        score_BC: of all that were generated, likewise.
        coverage_BC: share of the query that each of these has (`QueryEvidence`).
    """
    whole_B1 = torch.logsumexp(score_BC, dim=1, keepdim=True)
    share = torch.where(torch.isinf(score_BK), 0.0, torch.exp(score_BK - whole_B1))
    padding = torch.isinf(score_BC)
    return share * torch.where(padding, 0.0, coverage_BC).amax(1, keepdim=True).clamp(0.0, 1.0)


def calibration_error(chance_N: Floats, taken_N: NDArray[np.bool_], *, bins: int = BINS) -> float:
    """Expected calibration error: how far mean chance and frequency lie apart in bins of equally many pairs, averaged (Naeini and
    others 2015, there with bins of equal width)."""
    if not len(chance_N):
        return float("nan")
    parts = np.array_split(np.argsort(chance_N, kind="stable"), min(bins, len(chance_N)))
    return float(sum(len(own) * abs(chance_N[own].mean() - taken_N[own].mean()) for own in parts) / len(chance_N))
