"""Checkpoints: everything a run needs to go on as if it had never stopped, in one safetensors file.

Model, optimiser moments, averaged weights and random states are tensors; the data position, the schedule and the log
are JSON in the file's metadata. One file, written atomically, so there is never half a checkpoint; a digest over all of
it, so that a flipped bit is told and not trained on. Never pickle.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from rankloom.errors import RankloomError
from rankloom.files import atomic_file


@dataclass
class Position:
    """Where a run is.

    Attributes:
        step: optimiser steps done.
        epoch, batch: the next batch to read.
        best: best validation score so far, and the step it was measured at.
        bad_evaluations: evaluations since.
        seconds: wall-clock training time so far, over all resumes.
        log: one record per evaluation.
    """

    step: int = 0
    epoch: int = 0
    batch: int = 0
    best: float = float("-inf")
    best_step: int = 0
    bad_evaluations: int = 0
    seconds: float = 0.0
    finished: bool = False
    log: list[dict[str, float]] = field(default_factory=list)


def save_checkpoint(
    path: Path,
    *,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    average: dict[str, Tensor] | None,
    generator: torch.Generator,
    position: Position,
    fingerprint: str,
) -> None:
    """Writes the run's whole state to `path`, atomically."""
    tensors = {f"model.{name}": value for name, value in model.state_dict().items()}
    for index, state in optimizer.state_dict()["state"].items():
        for name, value in state.items():
            tensors[f"optimizer.{index}.{name}"] = torch.as_tensor(value)
    for name, value in (average or {}).items():
        tensors[f"average.{name}"] = value
    tensors["random.torch"] = torch.get_rng_state()
    tensors["random.generator"] = generator.get_state()
    metadata = {"position": json.dumps(asdict(position)), "fingerprint": fingerprint}
    tensors = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    metadata["digest"] = _digest(tensors, metadata)
    with atomic_file(path) as temporary:
        save_file(tensors, temporary, metadata)


def load_checkpoint(
    path: Path,
    *,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    generator: torch.Generator,
    fingerprint: str,
) -> tuple[Position, dict[str, Tensor] | None]:
    """Restores what `save_checkpoint` wrote; returns the position and the averaged weights.

    Raises:
        RankloomError: the file is damaged, or belongs to another shop, configuration or code.
    """
    try:
        with safe_open(path, framework="pt") as handle:
            metadata = handle.metadata() or {}
            tensors = {name: handle.get_tensor(name) for name in handle.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise _damaged(path, str(error)) from None
    if metadata.pop("digest", None) != _digest(tensors, metadata):
        raise _damaged(path, "its content differs from its digest")
    if metadata.get("fingerprint") != fingerprint:
        raise RankloomError(
            "the checkpoint belongs to another shop, configuration or version",
            place=str(path),
            action="resume with the same shop and flags, or train without --resume",
            code="checkpoint-foreign",
        )
    model.load_state_dict({name[6:]: value for name, value in tensors.items() if name.startswith("model.")})
    state: dict[int, dict[str, Any]] = {}
    for name, value in tensors.items():
        if name.startswith("optimizer."):
            _, index, key = name.split(".", 2)
            state.setdefault(int(index), {})[key] = value
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": state, "param_groups": groups})
    torch.set_rng_state(tensors["random.torch"])
    generator.set_state(tensors["random.generator"])
    average = {name[8:]: value for name, value in tensors.items() if name.startswith("average.")}
    return Position(**json.loads(metadata["position"])), average or None


def load_weights(path: Path) -> dict[str, Tensor]:
    """The weights of the best step so far. Raises `RankloomError` for a damaged file."""
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise _damaged(path, str(error)) from None


def _digest(tensors: dict[str, Tensor], metadata: dict[str, str]) -> str:
    digest = hashlib.sha256(json.dumps(metadata, sort_keys=True).encode())
    for name in sorted(tensors):
        digest.update(name.encode())
        digest.update(tensors[name].reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _damaged(path: Path, fact: str) -> RankloomError:
    return RankloomError(
        f"the checkpoint is damaged: {fact}",
        place=str(path),
        action="train without --resume: it starts anew",
        code="checkpoint-damaged",
    )
