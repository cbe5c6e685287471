"""The loop that all of OneSearch's networks are trained by: AdamW, a warm-up and a cosine, clipped gradients.

A run is the same run for the same seed and number of threads.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from rankloom.progress import Progress


@dataclass
class Record:
    """What a loop did: the mean loss of each name over the last tenth of its steps, and the steps."""

    losses: dict[str, float] = field(default_factory=dict)
    steps: int = 0


def fit(
    network: nn.Module,
    steps: Iterable[tuple[str, Callable[[], Tensor]]],
    n_steps: int,
    *,
    learning_rate: float,
    warmup: float = 0.05,
    weight_decay: float = 0.05,
    clip: float = 1.0,
    dropout: bool = True,
    label: str = "training",
    quiet: bool = True,
) -> Record:
    """Minimises what `steps` yield.

    Args:
        steps: names and functions that compute a step's loss.
        n_steps: how many are expected; the learning rate's course depends on it.
        warmup: share of the steps in which the rate rises.
        dropout: as the network is set; False leaves it out.
    """
    if n_steps == 0:
        return Record()
    optimizer = torch.optim.AdamW(_groups(network, weight_decay), lr=learning_rate, betas=(0.9, 0.98))
    rising = max(1, round(warmup * n_steps))
    tail: dict[str, list[float]] = {}
    done = 0
    network.train(dropout)
    with Progress(label, n_steps, unit="steps", quiet=quiet) as progress:
        for name, loss_of in steps:
            rate = min(1.0, (done + 1) / rising) * 0.5 * (1 + math.cos(math.pi * min(1.0, done / n_steps)))
            for group in optimizer.param_groups:
                group["lr"] = learning_rate * max(rate, 0.02)
            optimizer.zero_grad(set_to_none=True)
            loss = loss_of()
            loss.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(network.parameters(), clip)
            optimizer.step()
            done += 1
            if done > n_steps * 0.9:
                tail.setdefault(name, []).append(float(loss.detach()))
            progress.advance()
    network.eval()
    return Record({name: sum(own) / len(own) for name, own in tail.items()}, done)


def _groups(network: nn.Module, weight_decay: float) -> list[dict[str, object]]:
    """Matrices decay; vectors (norms, biases) and embeddings do not."""
    embeddings = {id(own.weight) for own in network.modules() if isinstance(own, nn.Embedding)}
    parameters = [own for own in network.parameters() if own.requires_grad]
    decayed = [own for own in parameters if own.ndim > 1 and id(own) not in embeddings]
    kept = {id(own) for own in decayed}
    return [
        {"params": decayed, "weight_decay": weight_decay},
        {"params": [own for own in parameters if id(own) not in kept], "weight_decay": 0.0},
    ]
