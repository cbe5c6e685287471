"""The small training loop of all learned bidders: AdamW, warm-up and cosine, averaged weights, exact resume.

A bidder's step is a function of the step number and one random generator, so a run that was stopped and resumed from
its checkpoint gives the same weights as one that was not.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from rankloom.progress import Progress
from rankloom.training.checkpoint import Position, load_checkpoint, save_checkpoint


@dataclass(frozen=True)
class FitConfig:
    """Attributes: steps, batch (trajectories a step), learning_rate at its peak, warmup steps, gradient clip, average: decay
    of the averaged weights that are used after training (0 for none)."""

    steps: int = 450
    batch: int = 24
    learning_rate: float = 1.5e-3
    weight_decay: float = 1e-4
    warmup: int = 50
    clip: float = 1.0
    average: float = 0.99


@dataclass(frozen=True)
class Checkpointing:
    """Where a run keeps its state, how often, and whether it goes on from it.

    Attributes:
        limit_steps: stop after so many steps of this process, as a kill would (tests).
    """

    folder: Path
    fingerprint: str
    resume: bool = False
    every: int = 200
    limit_steps: int | None = None

    def path(self, label: str) -> Path:
        return self.folder / f"{label}.safetensors"


class StoppedEarlyError(Exception):
    """`limit_steps` was reached."""


def fit(
    module: nn.Module,
    step_loss: Callable[[int, torch.Generator], tuple[Tensor, dict[str, float]]],
    config: FitConfig,
    *,
    seed: int,
    label: str,
    checkpointing: Checkpointing | None = None,
    quiet: bool = False,
    log_every: int = 50,
) -> list[dict[str, float]]:
    """Minimises `step_loss(step, generator)` over the module's parameters; returns the log of figures.

    Args:
        step_loss: the loss of one step (it draws its own batch with the generator) and figures to log.
        label: names the run in progress and checkpoints.
    """
    generator = torch.Generator().manual_seed(seed)
    parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=config.learning_rate, weight_decay=config.weight_decay)
    average = {name: value.detach().clone() for name, value in module.state_dict().items()} if config.average else None
    position = Position()
    path = checkpointing.path(label) if checkpointing else None
    if checkpointing and path and checkpointing.resume and path.exists():
        position, average = load_checkpoint(
            path, model=module, optimizer=optimizer, generator=generator, fingerprint=f"{checkpointing.fingerprint}:{label}"
        )
    begun = position.step
    start = time.monotonic() - position.seconds

    def save(finished: bool) -> None:
        if checkpointing and path:
            position.seconds, position.finished = time.monotonic() - start, finished
            save_checkpoint(
                path,
                model=module,
                optimizer=optimizer,
                average=average,
                generator=generator,
                position=position,
                fingerprint=f"{checkpointing.fingerprint}:{label}",
            )

    module.train()
    with Progress(f"training {label}", config.steps, unit="steps", quiet=quiet) as progress:
        progress.done = position.step
        while position.step < config.steps:
            step = position.step
            rate = _rate(step, config)
            for group in optimizer.param_groups:
                group["lr"] = rate
            loss, figures = step_loss(step, generator)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(parameters, config.clip)
            optimizer.step()
            if average is not None:
                # the average starts as the plain mean of the first steps
                decay = min(config.average, (step + 1) / (step + 10))
                with torch.no_grad():
                    for name, value in module.state_dict().items():
                        average[name].lerp_(value, 1 - decay) if value.is_floating_point() else average[name].copy_(value)
            position.step += 1
            if step % log_every == 0 or position.step == config.steps:
                position.log.append({"step": float(step), "loss": float(loss.detach()), **figures})
            progress.advance(note=f"loss {float(loss.detach()):.4f}")
            if checkpointing and position.step % checkpointing.every == 0 and position.step < config.steps:
                save(False)
            if checkpointing and checkpointing.limit_steps and position.step - begun >= checkpointing.limit_steps:
                save(False)
                raise StoppedEarlyError(label)
    save(True)
    if average is not None:
        module.load_state_dict(average)
    module.eval()
    return position.log


def _rate(step: int, config: FitConfig) -> float:
    if step < config.warmup:
        return config.learning_rate * (step + 1) / config.warmup
    share = (step - config.warmup) / max(1, config.steps - config.warmup)
    return config.learning_rate * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * min(1.0, share))))


def draw(n: int, batch: int, generator: torch.Generator) -> Tensor:
    """Indices of a batch, with replacement."""
    return torch.randint(n, (min(batch, n),), generator=generator)
