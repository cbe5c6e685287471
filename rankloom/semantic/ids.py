"""Semantic IDs of a catalogue."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class SemanticIds:
    """The codes that name items.

    Attributes:
        codes: (I, L) int32; extra levels (FSQ, OPQ, dedup) included.
        codebook_sizes: codes per level.
        prior: (I,) float32, orders items that share a SID, higher first; 0 for items without training events.
    """

    codes: NDArray[np.int32]
    codebook_sizes: tuple[int, ...]
    prior: NDArray[np.float32]

    @property
    def n_items(self) -> int:
        return len(self.codes)

    @property
    def n_levels(self) -> int:
        return len(self.codebook_sizes)


def usage_report(ids: SemanticIds) -> dict[str, Any]:
    """How well the codes are used.

    * `cur`: per level the share of the codebook that names at least one item (OneRec TR's utilisation);
    * `cur_prefix`: per depth the distinct prefixes over the product of the codebook sizes so far, and `cur_total` its last
      (OneSearch's codebook utilisation rate CUR_L1, CUR_L1xL2, ..., CUR_Total);
    * `entropy_nats`: per level, of the code's distribution over items (at most ln K);
    * `icr`: share of items whose SID is theirs alone; `collision_rate` the rest;
    * `largest_bucket`: most items that share one SID.
    """
    n_items = max(1, ids.n_items)
    cur, entropy = [], []
    for level, size in enumerate(ids.codebook_sizes):
        counts = np.bincount(ids.codes[:, level], minlength=size)
        share = counts[counts > 0] / n_items
        cur.append(float((counts > 0).mean()))
        entropy.append(float(-(share * np.log(share)).sum()))
    room = np.cumprod([float(size) for size in ids.codebook_sizes])
    prefixes = [len(np.unique(ids.codes[:, : depth + 1], axis=0)) for depth in range(ids.n_levels)]
    _, bucket = np.unique(ids.codes, axis=0, return_counts=True)
    alone = int((bucket == 1).sum())
    return {
        "codebook_sizes": list(ids.codebook_sizes),
        "n_items": ids.n_items,
        "distinct_sids": len(bucket),
        "cur": cur,
        "cur_prefix": [float(count / size) for count, size in zip(prefixes, room, strict=True)],
        "cur_total": float(len(bucket) / room[-1]),
        "entropy_nats": entropy,
        "icr": alone / n_items,
        "collision_rate": 1 - alone / n_items,
        "largest_bucket": int(bucket.max(initial=0)),
    }
