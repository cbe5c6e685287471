"""What a quantiser is: vectors in, codes out, and its frozen parts as arrays."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float32]
CodeArray = NDArray[np.int32]


class Quantizer(Protocol):
    """One or more levels of codes for (N, D) vectors."""

    codebook_sizes: tuple[int, ...]

    def fit(self, vectors: FloatArray, rng: np.random.Generator) -> CodeArray:
        """Learns the codebooks; returns the (N, L) codes of the vectors (balanced where asked)."""
        ...

    def encode(self, vectors: FloatArray) -> CodeArray:
        """(N, L) codes from the frozen codebooks, deterministic."""
        ...

    def decode(self, codes: CodeArray) -> FloatArray:
        """(N, D) reconstructions."""
        ...

    def arrays(self) -> dict[str, NDArray[Any]]:
        """The frozen parts."""
        ...
