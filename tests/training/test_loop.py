"""The loop: steps, precision, schedule, early stop and checkpoints."""

from __future__ import annotations

import copy
import itertools
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from rankloom.config import Config
from rankloom.errors import RankloomError
from rankloom.models.layers import MixtureOfExperts
from rankloom.models.lazy_decoder import LazyDecoder
from rankloom.training.checkpoint import load_checkpoint
from rankloom.training.loop import Trainer, parameter_groups
from rankloom.training.objectives import NextItem
from tests.decoding.test_beam import small_model
from tests.training.test_batches import batches, log

FEATURES = ["item", "kind", "watch_ratio", "timestamp", "position"]


def trainer(folder: Path, *, model: LazyDecoder | None = None, score: Any = None, **options: Any) -> Trainer:
    config = Config.preset_config("tiny").with_overrides([f"training.{k}={v}" for k, v in options.items()])
    model = model or small_model(dropout=0, item_dropout=0)
    made = batches(log([20] * 8, n_items=60))
    folder.mkdir(exist_ok=True)
    return Trainer(
        model,
        NextItem(config, torch.ones(60)),
        made,
        validate=lambda own: {"valid_generation_loss": 1.0, "valid_ndcg@10": 0.5},
        score=score or (lambda figures: figures["step"]),
        config=config.training,
        seed=5,
        folder=folder,
        fingerprint="f",
        quiet=True,
        limit_steps=options.get("limit"),
    )


def gradients(run: Trainer, pending: list[Any]) -> dict[str, torch.Tensor]:
    run.model.train()
    run._step(pending)
    return {n: p.grad for n, p in run.model.named_parameters() if p.grad is not None}


def test_accumulated_batches_have_the_gradient_of_one_larger_batch(tmp_path: Path) -> None:
    run = trainer(tmp_path, clip_norm=1e9)
    windows = np.arange(len(run.batches.windows.start))
    uneven = [run.batches.build(windows[:3]), run.batches.build(windows[3:4]), run.batches.build(windows[4:9])]
    weights = copy.deepcopy(run.model.state_dict())
    parts = gradients(run, uneven)
    run.model.load_state_dict(weights)
    whole = gradients(run, [run.batches.build(windows[:9])])
    assert parts.keys() == whole.keys()
    for name, gradient in whole.items():
        torch.testing.assert_close(parts[name], gradient, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("model", [{}, {"moe_experts": 3, "moe_top_k": 2, "moe_first_dense": 1, "s_kv": 2, "g_kv": 1}])
def test_training_lowers_the_loss_in_either_precision(
    tmp_path: Path, precision: Literal["fp32", "bf16"], model: dict[str, int]
) -> None:
    run = trainer(tmp_path, model=small_model(**model), precision=precision, learning_rate=0.02, warmup_steps=0)
    run.model.train()
    pending = [run.batches.build(np.arange(9))]
    losses = [run._step(pending) for _ in range(12)]
    assert all(np.isfinite(own).all() for own in losses)
    assert losses[-1][0] < 0.8 * losses[0][0]
    assert losses[-1][1] < 0.8 * losses[0][1]
    # weights and moments stay in fp32
    assert {p.dtype for p in run.model.parameters()} == {torch.float32}
    states = [value for state in run.optimizer.state.values() for value in state.values() if torch.is_tensor(value)]
    assert {value.dtype for value in states} == {torch.float32}
    moved = [m for m in run.model.modules() if isinstance(m, MixtureOfExperts) and m.route_bias.any()]
    assert bool(moved) == bool(model)


def test_the_learning_rate_warms_up_and_falls_on_a_cosine(tmp_path: Path) -> None:
    run = trainer(tmp_path, learning_rate=1.0, warmup_steps=10, min_learning_rate_share=0.1)
    run.total_steps = 1000
    rates = [run.learning_rate(step) for step in range(1001)]
    assert rates[:10] == pytest.approx([(step + 1) / 10 for step in range(10)])
    assert rates[10] == 1.0
    assert all(a > b for a, b in itertools.pairwise(rates[10:]))
    assert rates[505] == pytest.approx((1 + 0.1) / 2, abs=0.01)
    assert rates[1000] == pytest.approx(0.1)


def test_weight_decay_is_for_matrices_alone() -> None:
    model = small_model()
    decayed, plain = parameter_groups(model, 0.1)
    assert (decayed["weight_decay"], plain["weight_decay"]) == (0.1, 0.0)
    assert isinstance(decayed["params"], list)
    assert isinstance(plain["params"], list)
    assert {p.ndim for p in plain["params"]} == {1}
    assert min(p.ndim for p in decayed["params"]) == 2
    assert len(decayed["params"]) + len(plain["params"]) == len(list(model.parameters()))


def test_patience_stops_and_the_best_weights_come_back(tmp_path: Path) -> None:
    kept: dict[int, dict[str, torch.Tensor]] = {}

    def score(figures: dict[str, float]) -> float:
        step = int(figures["step"])
        kept[step] = copy.deepcopy(run.model.state_dict())
        return -abs(len(kept) - 2)  # the second evaluation is the best

    run = trainer(tmp_path, score=score, patience=3, eval_every_epochs=0.1, max_epochs=2, min_steps=0)
    position = run.fit()
    assert len(kept) == 5
    assert position.best_step == sorted(kept)[1]
    assert position.finished
    best = kept[position.best_step]
    assert all(torch.equal(value, best[name]) for name, value in run.model.state_dict().items())


def test_the_average_of_the_weights_is_what_is_validated_and_kept(tmp_path: Path) -> None:
    run = trainer(tmp_path, ema=0.9, max_epochs=2, min_steps=0)
    run.fit()
    assert run.average is not None
    live = load_file(tmp_path / "checkpoint.safetensors")
    kept = run.model.state_dict()
    assert all(torch.equal(kept[name], value) for name, value in run.average.items())
    assert not all(torch.equal(live[f"model.{name}"], value) for name, value in run.average.items())


@pytest.mark.parametrize(("ema", "accumulate"), [("null", 1), ("0.9", 2)])
def test_a_run_that_stops_anywhere_goes_on_to_the_same_bits(tmp_path: Path, ema: str, accumulate: int) -> None:
    options = {"checkpoint_minutes": 0, "ema": ema, "accumulate": accumulate, "max_epochs": 1, "min_steps": 0}

    def run(name: str) -> Trainer:
        return trainer(tmp_path / name, model=small_model(dropout=0.3, item_dropout=0.3), **options)

    whole = run("whole")
    whole.fit()
    stops = 0
    while not (part := run("broken")).position.finished:
        part.limit_steps = 3
        if part.fit(resume=True).finished:
            break
        stops += 1
    assert stops >= 1
    assert part.position.step == whole.position.step
    assert part.position.best_step == whole.position.best_step
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, part.model.state_dict()[name])


def test_without_validation_the_last_weights_are_kept_after_a_resume_too(tmp_path: Path) -> None:
    from rankloom.pipeline import _score

    score = _score(Config.preset_config("tiny"), 0)
    for limit in (4, None):
        run = trainer(tmp_path, score=score, max_epochs=1, min_steps=0, eval_every_epochs=0.3)
        run.limit_steps = limit
        position = run.fit(resume=True)
    assert position.finished
    assert position.best_step == position.step


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    run = trainer(tmp_path, checkpoint_minutes=0)
    run.limit_steps = 2
    run.fit()
    return run.checkpoint_path


def read(path: Path, fingerprint: str = "f") -> None:
    run = trainer(path.parent)
    load_checkpoint(path, model=run.model, optimizer=run.optimizer, generator=run.generator, fingerprint=fingerprint)


def test_a_checkpoint_tells_whose_it_is(checkpoint: Path) -> None:
    read(checkpoint)
    with pytest.raises(RankloomError, match="another shop, configuration or version") as error:
        read(checkpoint, "g")
    assert error.value.code == "checkpoint-foreign"


@pytest.mark.parametrize("damage", ["truncated", "empty", "no header", "a flipped bit", "a changed position", "absent"])
def test_a_damaged_checkpoint_is_told_by_name(checkpoint: Path, damage: str) -> None:
    content = bytearray(checkpoint.read_bytes())
    if damage == "a changed position":
        with safe_open(checkpoint, framework="pt") as handle:
            metadata = {**handle.metadata(), "position": handle.metadata()["position"].replace('"step": 2', '"step": 1')}
        save_file(load_file(checkpoint), checkpoint, metadata)
    elif damage == "absent":
        checkpoint.unlink()
    else:
        if damage == "a flipped bit":
            content[-5] ^= 1
        cut = {"truncated": len(content) // 2, "empty": 0}.get(damage, len(content))
        checkpoint.write_bytes(b"\xff" * 64 if damage == "no header" else bytes(content[:cut]))
    with pytest.raises(RankloomError, match="damaged") as error:
        read(checkpoint)
    assert error.value.code == "checkpoint-damaged"
    assert error.value.place == str(checkpoint)
    assert error.value.action


def test_damaged_best_weights_are_told_by_name(tmp_path: Path) -> None:
    run = trainer(tmp_path, max_epochs=1, min_steps=0)
    run.fit()
    run.best_path.write_bytes(run.best_path.read_bytes()[:100])
    with pytest.raises(RankloomError, match="damaged"):
        trainer(tmp_path, max_epochs=1, min_steps=0).fit(resume=True)


@torch.no_grad()
@pytest.mark.parametrize("options", [{}, {"l_kv": 2, "s_kv": 2, "g_kv": 1, "moe_experts": 3, "moe_first_dense": 0}])
def test_nothing_at_or_after_a_target_changes_its_logits(options: dict[str, int]) -> None:
    rng = np.random.default_rng(0)
    model = small_model(**options)
    sequences = log([14, 9], n_items=60, held_out=0)
    sequences = replace(sequences, target=np.ones_like(sequences.target))
    query_reached = surface_reached = False

    def states(own: Any) -> torch.Tensor:
        batch = batches(own, max_history=20).build(np.arange(2))
        hidden, _ = model(batch.context, batch.target_BT, model.items.codes_IQ[batch.item_M], batch.surface_BT)
        assert len(hidden) == 23
        return hidden

    base = states(sequences)
    for row in (0, 5, 13, 14, 22):
        user = slice(0, 14) if row < 14 else slice(14, 23)
        before = np.r_[user.start : row]
        others = np.setdiff1d(np.arange(23), np.r_[user])
        after = np.r_[row : user.stop]
        for name in FEATURES:
            changed = getattr(sequences, name).copy()
            if name == "item":
                changed[after] = (changed[after] + rng.integers(1, 60, len(after))) % 60
            elif name == "kind":
                changed[after] = 1 + changed[after] % 10
            elif name == "timestamp":
                changed[after] += 10**10 * np.arange(1, len(after) + 1)
            else:
                changed[after] = 19 - changed[after]
            moved = states(replace(sequences, **{name: changed}))
            for places in (before, others):
                assert torch.equal(moved[places], base[places]), name
            # of the target itself only the code inputs differ, which its first code does not see
            assert torch.equal(moved[row, 0], base[row, 0]), name
            if name != "item":
                assert torch.equal(moved[row], base[row]), name
            later = np.r_[row + 1 : user.stop]
            assert len(later) == 0 or not torch.equal(moved[later], base[later]), name
        for name, n in (("query", 5), ("surface", 3)):
            # what is known when the request comes: the target may use it, nothing before may
            changed = getattr(sequences, name).copy()
            changed[after] = (changed[after] + 1) % n
            moved = states(replace(sequences, **{name: changed}))
            assert torch.equal(moved[before], base[before]), name
            assert torch.equal(moved[others], base[others]), name
            query_reached |= name == "query" and not torch.equal(moved[row], base[row])
            surface_reached |= name == "surface" and not torch.equal(moved[row], base[row])
    assert query_reached
    assert surface_reached
