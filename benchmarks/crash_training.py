"""Does a training that is killed anywhere resume to the same weights, and leave no half model?

    python benchmarks/crash_training.py --quick          3 kills in training, 2 in export
    python benchmarks/crash_training.py --json out.json  20 kills in training, 20 in export

A child process trains the tiny preset on a small bazaar. It is killed with SIGKILL at a random moment (reading and
tokenising, training, choosing weights) or while it writes the model folder, and started again with --resume until it
ends. Whatever the kill, there must be no model folder or a whole one; the final weights must equal those of an unbroken
run bit for bit, and nothing temporary may be left behind. Each round of kills is a cell: a stopped benchmark goes on.
"""

from __future__ import annotations

import contextlib
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from _common import Benchmark, argument_parser

from rankloom import model_folder
from rankloom.errors import RankloomError
from rankloom.files import read_json, sha256_file
from rankloom.progress import Progress
from rankloom.simulation import generate_bazaar

SETTINGS = ("training.max_epochs=3", "training.checkpoint_minutes=0", "training.eval_users=200", "training.precision=fp32")


def start(shop: Path, out: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "rankloom.cli", "train", str(shop), "--out", str(out), "--preset", "tiny", "--resume"]
    command += [part for setting in SETTINGS for part in ("--set", setting)]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


def finish(child: subprocess.Popen[bytes]) -> None:
    _, errors = child.communicate()
    if child.returncode:
        raise SystemExit(f"a training failed by itself:\n{errors.decode(errors='replace')}")


def exporting(out: Path) -> bool:
    return any(out.parent.glob(f".{out.name}.tmp-*"))


def place_of_death(out: Path) -> str:
    """What the killed process was doing, told by what it left."""
    work = out.with_name(out.name + ".training")
    if exporting(out):
        return "export"
    if (out / model_folder.MANIFEST).exists():
        return "after the export"
    if (work / "checkpoint.safetensors").exists():
        return "training or choosing weights"
    return "reading and tokenising" if (work / "run.json").exists() else "starting"


def whole_or_absent(out: Path) -> bool:
    if not out.exists():
        return True
    try:
        model_folder.check(out)
    except RankloomError:
        return False
    return True


def unbroken(folder: Path, shop: Path) -> dict[str, Any]:
    started = time.monotonic()
    finish(start(shop, folder / "whole"))
    seconds = time.monotonic() - started
    return {"seconds": seconds, "weights": sha256_file(folder / "whole" / model_folder.WEIGHTS)}


def killed_round(folder: Path, shop: Path, whole: dict[str, Any], kind: str, number: int, kills: int) -> dict[str, Any]:
    """One training brought to its end through `kills` kills; what each hit, what was left, whether the weights agree."""
    rng = np.random.default_rng([number, kind == "export"])
    out = folder / f"{kind}-{number}"
    places: list[str] = []
    half = 0
    while not (out / model_folder.MANIFEST).exists():
        child = start(shop, out)
        if len(places) < kills:
            if kind == "export":
                while child.poll() is None and not exporting(out):
                    time.sleep(0.0005)
                time.sleep(float(rng.uniform(0, 0.03)))
            else:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    child.wait(float(rng.uniform(0.05, 0.95) * whole["seconds"]))
            if child.poll() is None:
                child.kill()
                child.communicate()
                places.append(place_of_death(out))
                half += not whole_or_absent(out)
                continue
        finish(child)
    left = [path.name for path in folder.glob(f"*{out.name}*") if path != out]
    if places and places[-1] == "after the export":
        # the model was there and the working folder not yet removed; nobody comes back for it
        left = [name for name in left if not name.endswith(".training")]
    seen = sha256_file(out / model_folder.WEIGHTS)
    return {"places": places, "half": half, "left": left, "equal": seen == whole["weights"], "whole": whole_or_absent(out)}


def main() -> int:
    parser = argument_parser(__doc__)
    parser.add_argument("--kills", type=int, default=20, metavar="N", help="kills of each kind")
    bench = Benchmark.from_args("crash_training", parser=parser)
    seed = bench.seeds[0]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        shop = generate_bazaar(folder / "shop", seed=seed, scale=0.05, quiet=True).path
        # measured in every run: how long it takes decides where the kills fall
        whole = unbroken(folder, shop)
        steps = read_json(folder / "whole" / model_folder.CONFIG)["metadata"]["steps"]
        bench.row(system="unbroken run", metric="seconds", value=round(whole["seconds"], 2), n=steps)
        for kind in ("training", "export"):
            wanted = (3 if kind == "training" else 2) if bench.quick else bench.args.kills
            done, half, rounds, left, equal = 0, 0, 0, [], True
            places: list[str] = []
            progress = Progress(f"kills during {kind}", wanted)
            while done < wanted and rounds < 4 * wanted:
                kills = min(3, wanted - done)
                cell = bench.cell(
                    {"kind": kind, "round": rounds, "kills": kills, "seed": seed},
                    lambda kind=kind, rounds=rounds, kills=kills: killed_round(folder, shop, whole, kind, rounds, kills),
                )
                rounds += 1
                done += len(cell["places"])
                places += cell["places"]
                half += cell["half"] + (not cell["whole"])
                left += cell["left"]
                equal &= cell["equal"]
                progress.advance(len(cell["places"]), note=f"{rounds} runs ended")
            progress.close()
            for place in sorted(set(places)):
                bench.row(system=f"killed during {kind}", variant=place, metric="kills", value=places.count(place))
            bench.check(f"{kind}: kills", done, at_least=wanted)
            bench.check(f"{kind}: half-written model folders", half, target=0)
            bench.check(f"{kind}: files left behind after the end", len(left), target=0)
            bench.check(f"{kind}: weights bit-equal to an unbroken run", equal, target=True)
    return bench.finish()


if __name__ == "__main__":
    raise SystemExit(main())
