"""Writes rankloom/bidding/resources/market_prior.json anew: response curves and day paths of the public log's training days.

    python tools/bidding_prior.py ../shared/data/bidding/auctionnet_sim_trajectories.parquet
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np

from rankloom.bidding.curves import MarketPrior
from rankloom.files import atomic_file

OUT = Path(__file__).resolve().parent.parent / "rankloom" / "bidding" / "resources" / "market_prior.json"
NOTICE = (
    "Aggregates (isotonic response curves; means and covariances of log mean prediction, log price, log volume over 48 ticks) of 30 days "
    "of the public AuctionNet simulator (alimama-tech/AuctionNet, Apache-2.0; competition traffic generator)."
)


def rounded(array: np.ndarray) -> list[object]:
    return json.loads(json.dumps(np.vectorize(lambda each: float(f"{each:.5g}"))(array).tolist()))


def main() -> int:
    prior = MarketPrior.fit(sys.argv[1])
    content = {"notice": NOTICE, "arrays": {name: rounded(array) for name, array in prior.arrays().items()}}
    with atomic_file(OUT) as temporary:
        temporary.write_text(json.dumps(content, separators=(",", ":")) + "\n", encoding="utf-8")
    print(f"written: {OUT}, {OUT.stat().st_size:,} bytes")
    return 0


if __name__ == "__main__":
    sys.exit(main())
