"""Do the bazaar's marginals match the public KuaiRand figures?

python benchmarks/bazaar_calibration.py [--quick] [--json OUT]
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

from rankloom.evaluation.evaluate import machine
from rankloom.simulation import generate_bazaar
from rankloom.simulation.calibration import calibration, render


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a quarter of the people")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        shop = generate_bazaar(Path(folder) / "shop", seed=args.seed, scale=0.25 if args.quick else 1.0)
        rows = calibration(shop)
    print(render(rows))
    if args.json:
        checks = [{"name": r.name, "value": r.value, "target": r.target, "ok": r.ok} for r in rows]
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(
            json.dumps({"name": "bazaar_calibration", "machine": machine(), "rows": [], "checks": checks}, indent=2)
        )


if __name__ == "__main__":
    main()
