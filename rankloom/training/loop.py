"""The one training loop: AdamW, warm-up and cosine, accumulation, bf16, DDP, early stop, exact resume.

It knows models, batches and an objective; it does not know shops, text or HTTP. Run several processes with `torchrun`
and every process trains its share of the batches: a step of N processes is the step of one that accumulates over N.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable
from contextlib import nullcontext
from datetime import timedelta
from pathlib import Path
from typing import Protocol

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch import distributed as dist
from torch.nn.parallel import DistributedDataParallel

from rankloom.config import TrainingConfig
from rankloom.files import atomic_file
from rankloom.models.layers import MixtureOfExperts
from rankloom.models.lazy_decoder import LazyDecoder
from rankloom.progress import Progress
from rankloom.training.batches import SequenceBatches, TrainingBatch
from rankloom.training.checkpoint import Position, load_checkpoint, load_weights, save_checkpoint
from rankloom.training.objectives import Losses
from rankloom.training.processor import resolve_precision, return_freed_memory


class Objective(Protocol):
    """What a step minimises."""

    def forward(self, model: LazyDecoder, batch: TrainingBatch, generator: torch.Generator) -> Losses: ...


class _Step(nn.Module):
    """Model and objective as one module, so that DistributedDataParallel sees the whole forward."""

    def __init__(self, model: LazyDecoder, objective: Objective, generator: torch.Generator) -> None:
        super().__init__()
        self.model = model
        self.objective = objective
        self.generator = generator

    def forward(self, batch: TrainingBatch) -> tuple[Tensor, Tensor, Tensor]:
        losses = self.objective.forward(self.model, batch, self.generator)
        return losses.total, losses.generation, losses.selection


class Trainer:
    """One run.

    Args:
        validate: figures of a model on validation data; `score` turns them into the number to maximise.
        folder: where checkpoints and the log live while the run lasts.
        fingerprint: what the checkpoint must agree with to be resumed (shop, configuration).
        limit_steps: stop after so many steps of this process, as a kill would (tests).
    """

    def __init__(
        self,
        model: LazyDecoder,
        objective: Objective,
        batches: SequenceBatches,
        *,
        validate: Callable[[LazyDecoder], dict[str, float]],
        score: Callable[[dict[str, float]], float],
        config: TrainingConfig,
        seed: int,
        folder: Path,
        fingerprint: str,
        quiet: bool = False,
        limit_steps: int | None = None,
    ) -> None:
        self.model = model
        self.batches = batches
        self.validate = validate
        self.score = score
        self.config = config
        self.precision = resolve_precision(config.precision)
        self.folder = folder
        self.fingerprint = fingerprint
        self.quiet = quiet
        self.limit_steps = limit_steps
        self.generator = torch.Generator().manual_seed(seed + 1)
        self.seed = seed
        step = _Step(model, objective, self.generator)
        self.distributed = dist.is_available() and dist.is_initialized()
        self.step_module: nn.Module = step
        if self.distributed:
            parallel = DistributedDataParallel(step, find_unused_parameters=True)
            # routing biases and loads are kept equal by hand; the catalogue in the buffers never changes
            parallel.broadcast_buffers = False
            self.step_module = parallel
        self.rank, self.world_size = (dist.get_rank(), dist.get_world_size()) if self.distributed else (0, 1)
        self.leader = self.rank == 0
        self.optimizer = torch.optim.AdamW(
            parameter_groups(model, config.weight_decay), lr=config.learning_rate, betas=config.betas
        )
        self.average = {n: p.detach().clone() for n, p in model.named_parameters()} if config.ema else None
        self.position = Position()
        self.steps_per_epoch = max(1, batches.n_batches(0) // config.accumulate)
        self.max_epochs = max(config.max_epochs, -(-config.min_steps // self.steps_per_epoch))
        self.total_steps = self.steps_per_epoch * self.max_epochs

    @property
    def checkpoint_path(self) -> Path:
        return self.folder / "checkpoint.safetensors"

    @property
    def best_path(self) -> Path:
        return self.folder / "best.safetensors"

    def fit(self, *, resume: bool = False) -> Position:
        """Trains until the epochs, the minutes or the patience run out; leaves the best weights in the model."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            if resume and self.checkpoint_path.exists():
                self.position, average = load_checkpoint(
                    self.checkpoint_path,
                    model=self.model,
                    optimizer=self.optimizer,
                    generator=self.generator,
                    fingerprint=self.fingerprint,
                )
                self.average = average if self.config.ema else None
            if not self.position.finished:
                self._run()
        # the leader writes the best weights and removes the folder afterwards: nobody reads too early or too late
        self._wait()
        if self.best_path.exists():
            self.model.load_state_dict(load_weights(self.best_path))
        self._wait()
        self.model.eval()
        return self.position

    def _run(self) -> None:
        position, config = self.position, self.config
        started = time.monotonic() - position.seconds
        saved = time.monotonic()
        stop_after = None if self.limit_steps is None else position.step + self.limit_steps
        # small shops have short epochs: do not evaluate more often than twenty times a run
        every = max(1, round(self.steps_per_epoch * config.eval_every_epochs), self.total_steps // 20)
        self.model.train()
        quiet = self.quiet or not self.leader
        with Progress("training", self.total_steps, unit="steps", done=position.step, quiet=quiet) as progress:
            running = _Running()
            while position.epoch < self.max_epochs:
                pending: list[TrainingBatch] = []
                for batch in self.batches.epoch(position.epoch, skip=position.batch):
                    pending.append(batch)
                    position.batch += 1
                    if len(pending) < config.accumulate:
                        continue
                    running.add(self._step(pending))
                    pending = []
                    position.step += 1
                    position.seconds = time.monotonic() - started
                    progress.advance(note=running.note(position))
                    if position.step % every == 0:
                        stop = self._evaluate(running)
                        return_freed_memory()
                        running = _Running()
                        self._save()
                        saved = time.monotonic()
                        if self._as_the_leader([stop or self._out_of_time()])[0]:
                            return self._finish()
                    elif time.monotonic() - saved > 60 * config.checkpoint_minutes:
                        self._save()
                        saved = time.monotonic()
                    if stop_after is not None and position.step >= stop_after:
                        return None
                position.epoch += 1
                position.batch = 0
            if not position.log or position.log[-1]["step"] != position.step:
                self._evaluate(running)
        return self._finish()

    def _out_of_time(self) -> bool:
        return self.config.max_minutes is not None and self.position.seconds > 60 * self.config.max_minutes

    def _finish(self) -> None:
        self.position.finished = True
        self._save()

    def learning_rate(self, step: int) -> float:
        """Linear warm-up, then a cosine down to `min_learning_rate_share` at the last step."""
        config = self.config
        warmup = min(config.warmup_steps, max(1, self.total_steps // 10))
        if step < warmup:
            return config.learning_rate * (step + 1) / warmup
        share = min(1.0, (step - warmup) / max(1, self.total_steps - warmup))
        low = config.min_learning_rate_share
        return config.learning_rate * (low + (1 - low) * 0.5 * (1 + math.cos(math.pi * share)))

    def _step(self, pending: list[TrainingBatch]) -> tuple[float, float, int]:
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate(self.position.step)
        self.optimizer.zero_grad(set_to_none=True)
        generation = selection = 0.0
        n_targets = sum(len(batch.item_M) for batch in pending)
        all_targets = torch.tensor(float(n_targets))
        if self.distributed:
            dist.all_reduce(all_targets)
            # the checkpoint holds the leader's random state only: each step draws from its own seed
            draw = (self.seed * 1_000_003 + self.position.step) * self.world_size + self.rank
            torch.manual_seed(draw)
            self.generator.manual_seed(draw + 1)
        device = next(self.model.parameters()).device.type
        mixed = torch.autocast(device, dtype=torch.bfloat16) if self.precision == "bf16" else nullcontext()
        for batch in pending:
            share = len(batch.item_M) / n_targets
            with mixed:
                total, own_generation, own_selection = self.step_module(batch)
            # DistributedDataParallel averages over processes; every target of a step weighs the same
            (total * (len(batch.item_M) * self.world_size / float(all_targets))).backward()
            generation += float(own_generation) * share
            selection += float(own_selection) * share
        nn.utils.clip_grad_norm_(self.model.parameters(), self.config.clip_norm)
        self.optimizer.step()
        for module in self.model.modules():
            if isinstance(module, MixtureOfExperts):
                if self.distributed:
                    dist.all_reduce(module.load)
                module.balance()
        if self.average is not None and self.config.ema is not None:
            # a short horizon at first, so that the average forgets the random start
            decay = min(self.config.ema, (1 + self.position.step) / (10 + self.position.step))
            with torch.no_grad():
                for name, parameter in self.model.named_parameters():
                    self.average[name].lerp_(parameter, 1 - decay)
        return generation, selection, n_targets

    def _evaluate(self, running: _Running) -> bool:
        """Logs, keeps the best weights, and says whether patience has run out."""
        position = self.position
        live = None
        if self.average is not None:
            live = {n: p.detach().clone() for n, p in self.model.named_parameters()}
            self.model.load_state_dict(self.average, strict=False)
        measured = self.validate(self.model)
        # rounding differs between machines, the decision to stop must not
        figures = dict(zip(measured, self._as_the_leader(list(measured.values())), strict=True))
        score = self.score({**figures, "step": position.step})
        record = {
            "step": position.step,
            "epoch": round(position.step / self.steps_per_epoch, 3),
            "seconds": round(position.seconds, 2),
            "learning_rate": self.learning_rate(position.step),
            "targets_per_second": round(running.targets / max(1e-9, position.seconds - running.began(position)), 1),
            **running.means(),
            **figures,
        }
        position.log.append(record)
        if score > position.best:
            position.best, position.best_step, position.bad_evaluations = score, position.step, 0
            if self.leader:
                weights = {n: v.detach().cpu().contiguous() for n, v in self.model.state_dict().items()}
                with atomic_file(self.best_path) as temporary:
                    save_file(weights, temporary)
        else:
            position.bad_evaluations += 1
        if live is not None:
            self.model.load_state_dict(live, strict=False)
        if self.leader:
            with atomic_file(self.folder / "training_log.jsonl") as temporary:
                temporary.write_text("".join(json.dumps(record) + "\n" for record in position.log), encoding="utf-8")
        return position.bad_evaluations >= self.config.patience

    def _as_the_leader(self, values: list[float]) -> list[float]:
        """The leader's values in every process."""
        if not self.distributed:
            return values
        shared = torch.tensor(values, dtype=torch.float64)
        dist.broadcast(shared, 0)
        return shared.tolist()

    def _wait(self) -> None:
        if self.distributed:
            dist.barrier()

    def _save(self) -> None:
        if self.leader:
            save_checkpoint(
                self.checkpoint_path,
                model=self.model,
                optimizer=self.optimizer,
                average=self.average,
                generator=self.generator,
                position=self.position,
                fingerprint=self.fingerprint,
            )


class _Running:
    """Means of the training losses since the last evaluation."""

    def __init__(self) -> None:
        self.generation = self.selection = 0.0
        self.steps = 0
        self.targets = 0

    def add(self, losses: tuple[float, float, int]) -> None:
        self.generation += losses[0]
        self.selection += losses[1]
        self.targets += losses[2]
        self.steps += 1

    def means(self) -> dict[str, float]:
        steps = max(1, self.steps)
        return {"generation_loss": self.generation / steps, "selection_loss": self.selection / steps}

    def began(self, position: Position) -> float:
        return float(position.log[-1]["seconds"]) if position.log else 0.0

    def note(self, position: Position) -> str:
        means = self.means()
        text = f"loss {means['generation_loss']:.3f} + {means['selection_loss']:.3f}"
        if position.log and "valid_ndcg@10" in position.log[-1]:
            text += f", validation N@10 {position.log[-1]['valid_ndcg@10']:.4f}"
        return text


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, object]]:
    """Weight decay on matrices, none on gains, biases and single vectors."""
    decayed = [p for p in model.parameters() if p.requires_grad and p.ndim >= 2]
    plain = [p for p in model.parameters() if p.requires_grad and p.ndim < 2]
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": plain, "weight_decay": 0.0}]


def start_distributed() -> bool:
    """Joins the process group when started by `torchrun` and not in one yet; returns whether it did.

    Tensors stay on the CPU, so the group speaks gloo.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and not dist.is_initialized():
        # the others wait while the leader fits semantic IDs; a dead leader is torchrun's to notice
        dist.init_process_group("gloo", timeout=timedelta(hours=12))
        return True
    return False
