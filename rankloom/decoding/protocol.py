"""What decoding asks of a generator. Any model that can start a request and take one more code fits."""

from __future__ import annotations

from typing import Any, Protocol

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
