"""Does a training that is killed anywhere resume to the same weights, and leave no half model?

    python benchmarks/crash_training.py [--quick] [--kills N] [--json OUT]

A child process trains; it is killed with SIGKILL at random moments (during tokenising, training and export alike) and
started again with --resume, until it ends. Its weights must equal, bit for bit, those of an unbroken run.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from rankloom import model_folder
from rankloom.evaluation.evaluate import machine
from rankloom.files import sha256_file
from rankloom.simulation import generate_bazaar


def command(shop: Path, out: Path) -> list[str]:
    settings = ["training.max_epochs=4", "training.checkpoint_minutes=0"]
    sets = [part for own in settings for part in ("--set", own)]
    return [
        sys.executable,
        "-m",
        "rankloom.cli",
        "train",
        str(shop),
        "--out",
        str(out),
        "--preset",
        "tiny",
        "--resume",
        *sets,
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="4 kills instead of 20")
    parser.add_argument("--kills", type=int)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    kills = args.kills or (4 if args.quick else 20)
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        shop = generate_bazaar(folder / "shop", seed=0, scale=0.05, quiet=True).path
        started = time.monotonic()
        subprocess.run(command(shop, folder / "whole"), check=True, capture_output=True)
        seconds = time.monotonic() - started
        done = half = 0
        round_number = 0
        equal = True
        while done < kills:
            out = folder / f"broken-{round_number}"
            while True:
                child = subprocess.Popen(command(shop, out), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
                try:
                    child.wait(timeout=float(rng.uniform(0.3, 1.0) * seconds))
                except subprocess.TimeoutExpired:
                    child.kill()
                    child.wait()
                    done += 1
                    half += out.exists() and not (out / model_folder.MANIFEST).exists()
                if (out / model_folder.MANIFEST).exists():
                    break
            model_folder.check(out)
            equal &= sha256_file(out / model_folder.WEIGHTS) == sha256_file(folder / "whole" / model_folder.WEIGHTS)
            round_number += 1
            print(
                f"{done} kills, {round_number} runs brought to their end, weights {'equal' if equal else 'DIFFER'}, half-written folders {half}"
            )
    checks = [
        {"name": "half-written model folders", "value": half, "target": 0, "ok": half == 0},
        {"name": "weights bit-equal to an unbroken run", "value": int(equal), "target": 1, "ok": equal},
        {"name": "kills", "value": done, "target": kills, "ok": done >= kills},
    ]
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(
            json.dumps({"name": "crash_training", "machine": machine(), "rows": [], "checks": checks}, indent=2)
        )
    raise SystemExit(0 if all(check["ok"] for check in checks) else 1)


if __name__ == "__main__":
    main()
