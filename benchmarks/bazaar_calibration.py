"""Do the bazaar's marginals match the public KuaiRand figures?

python benchmarks/bazaar_calibration.py [--quick] [--seeds N ...] [--json OUT]
"""

from __future__ import annotations

import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

from _common import Benchmark

from rankloom.simulation import generate_bazaar
from rankloom.simulation.calibration import calibration


def main() -> int:
    bench = Benchmark.from_args(
        "bazaar_calibration",
        __doc__,
        sources=("rankloom/simulation", "rankloom/data", "benchmarks/bazaar_calibration.py"),
    )
    scale = 0.25 if bench.quick else 1.0
    for seed in bench.seeds:
        for row in bench.cell({"seed": seed, "scale": scale}, partial(measure, seed, scale)):
            bench.row(system="bazaar", variant="simulated", seed=seed, **row)
            bench.check(
                f"seed {seed}: {row['metric']}",
                round(row["value"], 5),
                target=f"{row['target']:g} ± {row['tolerance']:.0%}",
                ok=row["ok"],
            )
    return bench.finish()


def measure(seed: int, scale: float) -> list[dict[str, Any]]:
    """Each calibrated figure of one seed beside its public target."""
    with tempfile.TemporaryDirectory() as folder:
        rows = calibration(generate_bazaar(Path(folder) / "shop", seed=seed, scale=scale, quiet=True))
    return [
        {
            "metric": r.name,
            "value": r.value,
            "target": r.target,
            "tolerance": r.tolerance,
            "source": r.source,
            "ok": r.ok,
        }
        for r in rows
    ]


if __name__ == "__main__":
    sys.exit(main())
