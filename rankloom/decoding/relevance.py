"""The relevance of a search's results: a chance in [0, 1] that means the same in every list, and can be cut at.

    relevance(i) = P(i is what the person takes | the query, the list that may be shown, the history)

That is what a log can bear out: it says what people took after a search, and never what else they would have found good. So the
best of forty alike dresses is rarely above a tenth, and the one item with a model number's words near one. It is

    found * understood * softmax(sharpness * score)(i)        over the generated items

* `sharpness`, one over a temperature (Guo and others 2017): scores that were fitted to order lists may be too sure or too shy;
* `found`: how often what was taken is among the generated items at all;
* `understood`: 1 for a query of which some generated item has as much as of a usual search (words by how rare they are), less in
  proportion below that, and 0 where no item has a word of it. A log has hardly any searches of nonsense to learn this from, since
  people take nothing after them: below what it has seen, less is believed.

Three numbers, so that some dozens of searches suffice; the chances of a list never sum to more than one; and they fall along the list.

Shapes: B requests, C generated items, K of them that are asked about, N searches.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar
from torch import Tensor

BINS: Final = 10
"""Of the calibration error, each of as many pairs."""
USUAL: Final = 0.05
"""Share of the log's searches of which less is understood than of a usual one."""
_PRIOR: Final = 2.0
"""Nats of a sharpness that is e times off: a normal prior of deviation one half, so that few searches bend the chances little."""
_BOUNDS: Final = (-2.0, 2.0)


@dataclass(frozen=True)
class Relevance:
    """A fitted calibration. See the module's docstring.

    Attributes:
        sharpness, found: as there.
        usual: share of the query that the best item has in a usual search.
        searches: how many it was fitted on.
        error: expected calibration error of the ten best places on searches that it was not fitted on.
        error_before: that of the shares as they were, the softmax of the scores, on the same.
    """

    sharpness: float
    found: float
    usual: float
    searches: int = 0
    error: float | None = None
    error_before: float | None = None

    def describe(self) -> str:
        """One sentence on what it was fitted on and how well."""
        error = (
            ""
            if self.error is None
            else f"; its error on held-out ones is {self.error:.4f} ({self.error_before:.4f} before)"
        )
        return f"calibrated on {self.searches:,} searches of the validation period{error}"

    def __call__(self, score_BK: Tensor, score_BC: Tensor, coverage_BC: Tensor) -> Tensor:
        """(B, K) chances, float32; 0 for padding.

        Args:
            score_BK: final scores of the items that are asked about, -inf for padding.
            score_BC: of all that were generated, likewise.
            coverage_BC: share of the query that each of these has (`QueryEvidence`).
        """
        return (self.most(score_BC, coverage_BC)[:, None] * self.share(score_BK, score_BC)).float()

    def share(self, score_BK: Tensor, score_BC: Tensor) -> Tensor:
        """(B, K) of the chance of a whole list."""
        whole_B1 = torch.logsumexp(self.sharpness * score_BC, dim=1, keepdim=True)
        return torch.where(torch.isinf(score_BK), 0.0, torch.exp(self.sharpness * score_BK - whole_B1))

    def most(self, score_BC: Tensor, coverage_BC: Tensor) -> Tensor:
        """(B,) what the chances of a whole list sum to."""
        understood = (best_coverage(score_BC, coverage_BC) / self.usual).clamp(0.0, 1.0)
        return self.found * understood

    @classmethod
    def fit(cls, score_NC: Tensor, taken_NC: Tensor, coverage_N: Tensor) -> Relevance:
        """By the likelihood of what was taken.

        Args:
            score_NC: final scores, -inf for padding.
            taken_NC: bool, at most one a row.
            coverage_N: what `best_coverage` gave.
        """
        found_N = taken_NC.any(1)
        found = (float(found_N.sum()) + 0.5) / (len(found_N) + 1)
        score = score_NC[found_N].double()
        taken = torch.where(taken_NC[found_N], score, 0.0).sum(1)

        def loss(log_sharpness: float) -> float:
            sharpness = float(np.exp(log_sharpness))
            own = torch.logsumexp(sharpness * score, dim=1) - sharpness * taken
            return float(own.sum()) + _PRIOR * log_sharpness**2

        best = minimize_scalar(loss, bounds=_BOUNDS, method="bounded").x if len(score) else 0.0
        usual = float(torch.quantile(coverage_N.double(), USUAL)) if len(coverage_N) else 1.0
        return cls(float(np.exp(best)), found, max(usual, 0.05), len(found_N))


def best_coverage(score_BC: Tensor, coverage_BC: Tensor) -> Tensor:
    """(B,) the most of each query that any generated item has; -inf scores are padding."""
    return torch.where(torch.isinf(score_BC), 0.0, coverage_BC).amax(1)


def calibration_error(chance_N: NDArray[Any], taken_N: NDArray[np.bool_], *, bins: int = BINS) -> float:
    """Expected calibration error: how far mean chance and frequency lie apart in bins of equally many pairs, averaged (Naeini and
    others 2015, there with bins of equal width)."""
    if not len(chance_N):
        return float("nan")
    parts = np.array_split(np.argsort(chance_N, kind="stable"), min(bins, len(chance_N)))
    return float(sum(len(own) * abs(chance_N[own].mean() - taken_N[own].mean()) for own in parts) / len(chance_N))
