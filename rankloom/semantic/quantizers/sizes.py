"""How large codebooks should be for a catalogue, where the configuration leaves it open.

OneRec and OneSearch choose 8192 and 4096-1024-512 for catalogues of hundreds of millions. A small catalogue needs small
codebooks (each code must name enough items to be learned) that still leave room enough for few collisions.
"""

from __future__ import annotations

import math
from typing import Final

import numpy as np

LARGEST: Final = 8192
"""Codes of a level in OneRec (v1 paper, technical report, V2)."""

# Levels per dimension that use their codes well, by log2 of the product ("Finite Scalar Quantization", appendix: at least
# five values where there is room).
_FSQ_LEVELS: Final[dict[int, tuple[int, ...]]] = {
    3: (4, 2),
    4: (5, 3),
    5: (7, 5),
    6: (8, 8),
    7: (5, 5, 5),
    8: (8, 6, 5),
    9: (8, 8, 8),
    10: (8, 5, 5, 5),
    11: (8, 8, 6, 5),
    12: (7, 5, 5, 5, 5),
    13: (8, 8, 5, 5, 5),
}


def codebook_sizes_for(n_items: int, n_levels: int = 3, *, decreasing: bool = False) -> tuple[int, ...]:
    """Sizes for a catalogue: a power of two near (400 x items)^(1/3), at least 8 and at most 8192.

    12,000 items give 256 a level: room for about a thousand times the catalogue, so that collisions stay few while each
    code keeps enough items to be learned. `decreasing` keeps the product and moves it forward, 4 : 1 : 1/4, the shape of
    OneSearch's 4096-1024-256: early residuals carry more variance.
    """
    root = (400 * max(1, n_items)) ** (1 / 3)
    size = int(2 ** np.clip(np.ceil(np.log2(root) - 0.25), 3, math.log2(LARGEST)))
    if not decreasing or n_levels == 1:
        return (size,) * n_levels
    shifts = [round(2 - 4 * level / (n_levels - 1)) for level in range(n_levels)]
    return tuple(max(2, int(size * 2.0**shift)) for shift in shifts)


def fsq_levels_for(n_items: int) -> tuple[int, ...]:
    """Values per dimension of an FSQ level about as large as a residual level of the same catalogue."""
    return _FSQ_LEVELS[int(math.log2(codebook_sizes_for(n_items, 1)[0]))]


def opq_codes_for(n_items: int) -> int:
    """Codes of one OPQ sub-quantiser: a quarter of a residual level, at least 8, at most OneSearch's 256."""
    return int(np.clip(codebook_sizes_for(n_items, 1)[0] // 4, 8, 256))


def batch_size_for(n_items: int) -> int:
    """Vectors a training step of a learned quantiser: 512, fewer where an epoch would have under sixteen steps."""
    return int(np.clip(n_items // 16, 32, 512))
