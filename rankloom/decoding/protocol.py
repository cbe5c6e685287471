"""What decoding asks of a generator. Any model that can start a request and take one more code fits."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


class Generator(Protocol):
    """A model over semantic IDs. `prefix` and `cache` are opaque to decoding.

    Shapes: B requests, W beams, K codes of a level, N given SIDs, L levels.
    """

    codebook_sizes: tuple[int, ...]

    def step(self, prefix: Any, level: int, codes_BW: Tensor | None, cache: Any) -> tuple[Tensor, Any]:
        """(B, W, K_level) logits of the next code, and the cache that holds one more code per beam.

        At level 0 there is one beam, `codes_BW` and `cache` are None; at level l `codes_BW` are the codes of level l - 1.
        """
        ...

    def reorder(self, cache: Any, parent_BW: Tensor) -> Any:
        """The cache whose beam w continues the old beam `parent_BW[b, w]`."""
        ...

    def score(self, prefix: Any, codes_NL: Tensor) -> Tensor:
        """(B, N) log-probabilities of given SIDs, teacher forced and without a cache: the slow twin."""
        ...


class Steps(Protocol):
    """A search through one batch of requests as `beam_search` asks for it, in NumPy arrays.

    A generator that can do without torch offers `steps(prefix)`, which returns one or None; `TorchSteps` serves for others.
    """

    def step(self, level: int, codes_BW: NDArray[np.int64] | None, cache: Any) -> tuple[NDArray[np.float32], Any]:
        """As `Generator.step`."""
        ...

    def reorder(self, cache: Any, parent_BW: NDArray[np.int64]) -> Any:
        """As `Generator.reorder`."""
        ...


class TorchSteps:
    """`Steps` of any generator, on whichever device it computes."""

    def __init__(self, model: Generator, prefix: Any) -> None:
        self.model, self.prefix = model, prefix
        self.device = getattr(model, "device", torch.device("cpu"))

    # nothing of the search is differentiated: what torch would note for that is left out
    @torch.inference_mode()
    def step(self, level: int, codes_BW: NDArray[np.int64] | None, cache: Any) -> tuple[NDArray[np.float32], Any]:
        chosen = None if codes_BW is None else torch.from_numpy(codes_BW).to(self.device)
        logits, cache = self.model.step(self.prefix, level, chosen, cache)
        return logits.float().contiguous().cpu().numpy(), cache

    @torch.inference_mode()
    def reorder(self, cache: Any, parent_BW: NDArray[np.int64]) -> Any:
        return self.model.reorder(cache, torch.from_numpy(parent_BW).to(self.device))


def steps_of(model: Generator, prefix: Any) -> Steps:
    """The model's own, or `TorchSteps`."""
    own = getattr(model, "steps", None)
    found: Steps | None = None if own is None else own(prefix)
    return TorchSteps(model, prefix) if found is None else found
