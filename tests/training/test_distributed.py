"""Two processes started by `torchrun` train what one process trains that accumulates two batches a step."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from rankloom import model_folder
from rankloom.config import Config
from rankloom.data.shop import Shop
from rankloom.files import sha256_file
from rankloom.pipeline import train

SETTINGS = [
    "training.max_epochs=1", "training.min_steps=12", "training.batch_tokens=400", "training.checkpoint_minutes=0",
    "training.eval_users=60", "decoding.beam=8", "alignment.enabled=false",
    "model.d_model=16", "model.n_layers=2", "model.n_heads=2", "model.moe_experts=3", "model.moe_top_k=1",
    "model.moe_first_dense=1", "text.dim=16",
]  # fmt: skip
PLAIN = ["model.dropout=0", "model.item_dropout=0"]
SCRIPT = """
import json, os, sys
import torch
from pathlib import Path
from safetensors.torch import save_file
from rankloom.config import Config
from rankloom.pipeline import train
from rankloom.training.loop import Trainer

finish, out = Trainer._finish, ""

def keep(self):
    # what this process ended with, before the best weights are loaded
    finish(self)
    save_file(self.model.state_dict(), f"{out}.rank{os.environ['RANK']}")

Trainer._finish = keep
torch.set_num_threads(1)
torch.distributed.init_process_group("gloo")  # one group for all jobs: starting processes is what takes the time
for out, config, limit in json.loads(sys.argv[2]):
    train(sys.argv[1], out, Config.load(config), resume=True, quiet=True, limit_steps=limit)
"""


def torchrun(folder: Path, shop: Path, jobs: list[tuple[str, str, int | None]]) -> None:
    (folder / "jobs.py").write_text(SCRIPT)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "jobs.py"]
    run = subprocess.run(
        [*command, str(shop), json.dumps(jobs)],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert run.returncode == 0, run.stderr[-4000:]


def log_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / model_folder.LOG).read_text(encoding="utf-8").splitlines()]


@pytest.mark.slow
def test_two_processes_agree_resume_and_equal_accumulation(bazaar: Shop, tmp_path: Path) -> None:
    config = Config.preset_config("tiny").with_overrides(SETTINGS)
    plain = config.with_overrides(PLAIN)
    (tmp_path / "config.yaml").write_text(config.to_yaml())
    (tmp_path / "plain.yaml").write_text(plain.to_yaml())
    jobs = [("plain", "plain.yaml", None), ("whole", "config.yaml", None)]
    torchrun(tmp_path, bazaar.path, [*jobs, ("broken", "config.yaml", 7), ("broken", "config.yaml", None)])

    for name in ("plain", "whole", "broken"):
        model_folder.check(tmp_path / name)
        assert not (tmp_path / f"{name}.training").exists()
        first, second = (load_file(tmp_path / f"{name}.rank{rank}") for rank in (0, 1))
        assert first.keys() == second.keys()
        assert all(torch.equal(first[key], second[key]) for key in first)
        losses = [[row["generation_loss"], row["valid_generation_loss"]] for row in log_of(tmp_path / name)]
        assert torch.tensor(losses).isfinite().all()
    weights = [sha256_file(tmp_path / name / model_folder.WEIGHTS) for name in ("whole", "broken")]
    assert weights[0] == weights[1]

    train(bazaar.path, tmp_path / "alone", plain.with_overrides(["training.accumulate=2"]), quiet=True)
    two, one = log_of(tmp_path / "plain"), log_of(tmp_path / "alone")
    assert [row["step"] for row in two] == [row["step"] for row in one]
    assert two[-1]["valid_generation_loss"] == pytest.approx(one[-1]["valid_generation_loss"], rel=1e-4)
    pairs = [load_file(tmp_path / name / model_folder.WEIGHTS) for name in ("plain", "alone")]
    distance = torch.cat([(pairs[0][key] - pairs[1][key]).abs().flatten() for key in pairs[0]])
    assert float((distance < 1e-5).float().mean()) > 0.99
