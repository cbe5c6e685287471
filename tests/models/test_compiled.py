"""The compiled decoder gives what the eager one gives, and never what the weights no longer say."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from rankloom import compiling
from rankloom.errors import RankloomError
from rankloom.models import lazy_decoder
from rankloom.models.context import ContextBatch
from rankloom.models.lazy_decoder import LazyDecoder
from rankloom.models.prefix import SuffixCache
from tests.decoding.test_beam import context, small_model
from tests.models.test_folded import OPTIONS, change_in_place, random_norms, take_other_weights, train_a_step, walk

needs_numba = pytest.mark.skipif(not compiling.available(), reason="numba is not installed")


def searched(lengths: list[int], seed: int = 0) -> ContextBatch:
    """Histories with random features, of people with static features, some of whom ask for something."""
    rng = np.random.default_rng(seed)
    batch = context(lengths, seed=seed)
    shape = batch.item_BT.shape

    def draw(high: int, *size: int) -> Tensor:
        return torch.from_numpy(rng.integers(0, high, size or shape))

    asked = torch.where(torch.arange(len(lengths)) % 2 == 0, batch.length_B, 2**31 - 1)
    return dataclasses.replace(
        batch, kind_BT=draw(8), watch_BT=draw(12), gap_BT=draw(32), surface_BT=draw(3), position_BT=draw(12),
        query_BQD=torch.from_numpy(rng.normal(size=(len(lengths), 1, 7)).astype(np.float32)), query_from_BQ=asked[:, None],
        user_BF=draw(50, len(lengths), 3) * (torch.arange(len(lengths)) % 3 > 0)[:, None],
    )  # fmt: skip


@needs_numba
@torch.no_grad()
@pytest.mark.parametrize("options", [own for own in OPTIONS if "moe_experts" not in own])
@pytest.mark.parametrize(("levels", "beams"), [(3, 1), (3, 20), (4, 7), (3, 150), (1, 1)])
@pytest.mark.parametrize("kind", ["feed", "search"])
@pytest.mark.parametrize("tabulated", [False, True])
def test_every_step_equals_the_eager_one(
    options: dict[str, Any], levels: int, beams: int, kind: str, tabulated: bool
) -> None:
    torch.manual_seed(beams)
    model = small_model(levels=levels, max_history=10, **options)
    random_norms(model)
    if tabulated:
        model.items.tabulate()
    lengths = [12, 0, 3, 9]
    batch = searched(lengths, seed=beams) if kind == "search" else context(lengths)
    surface = torch.tensor([0, 1, 2, 0])
    codes = [torch.randint(0, 5, (4, beams)) for _ in range(levels - 1)]
    parents = [torch.zeros(4, beams, dtype=torch.long), *(torch.randint(0, beams, (4, beams)) for _ in range(levels - 2))]
    model.engine = "eager"
    eager = model.prefill(batch, surface)
    assert eager.compiled is None
    expected = walk(model, eager, codes, parents[: levels - 1])
    model.engine = "compiled"
    prefix = model.prefill(batch, surface)
    assert prefix.compiled is not None
    found = walk(model, prefix, codes, parents[: levels - 1])
    for own, twin in zip(found, expected, strict=True):
        torch.testing.assert_close(own, twin, rtol=1e-4, atol=2e-5)
    # what nobody asked for is there when it is
    torch.testing.assert_close(prefix.kv.keys[0], eager.kv.keys[0])
    assert torch.equal(prefix.rank_B1N, eager.rank_B1N)
    assert torch.equal(prefix.visible_B1N, eager.visible_B1N)
    assert prefix.batch_size == eager.batch_size == 4


@needs_numba
@torch.no_grad()
def test_experts_long_histories_large_models_and_gradients_stay_eager(monkeypatch: pytest.MonkeyPatch) -> None:
    batch = context([5])
    assert small_model(moe_experts=4, moe_first_dense=1).prefill(batch).compiled is None
    assert small_model(max_history=80).prefill(context([70])).compiled is None
    model = small_model()
    with torch.enable_grad():
        prefix = model.prefill(batch)
        assert prefix.compiled is None
        assert model.start(prefix)[0].requires_grad
    # a prefix that the kernels made still serves where gradients are asked for
    prefix = model.prefill(batch)
    assert prefix.compiled is not None
    with torch.enable_grad():
        logits, _, cache = model.start(prefix)
        assert isinstance(cache, SuffixCache)
        assert logits.requires_grad
    torch.testing.assert_close(logits.detach(), model.start(prefix)[0], rtol=1e-4, atol=1e-5)
    monkeypatch.setattr(lazy_decoder, "LIMIT", 10)
    assert small_model().prefill(batch).compiled is None
    model.engine = "eager"
    assert model.prefill(batch).compiled is None


def change_the_context(model: LazyDecoder) -> None:
    with torch.no_grad():
        model.context.null += 1.0
        model.bos += 0.5


@needs_numba
@torch.no_grad()
@pytest.mark.parametrize("change", [change_in_place, take_other_weights, train_a_step, change_the_context])
def test_changed_weights_are_taken_anew(change: Any) -> None:
    model = small_model()
    batch = context([5])
    before = model.prefill(batch)
    stale = model.start(before)[0]
    assert before.compiled is not None
    change(model)
    prefix = model.prefill(batch)
    assert prefix.compiled is not None
    assert prefix.compiled.decoder is not before.compiled.decoder
    logits, user, _ = model.start(prefix)
    assert not torch.allclose(logits, stale)
    model.engine = "eager"
    expected, state, _ = model.start(model.prefill(batch))
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(user, state, rtol=1e-4, atol=1e-5)


def replace_a_parameter(model: LazyDecoder) -> None:
    model.items.content.weight = torch.nn.Parameter(model.items.content.weight.detach() * 2)


def replace_a_table(model: LazyDecoder) -> None:
    model.items.codes[0] = torch.nn.Embedding(5, model.items.dim)


def replace_contents(model: LazyDecoder) -> None:
    model.items.content_IC = model.items.content_IC + 1


@needs_numba
@torch.no_grad()
@pytest.mark.parametrize("change", [replace_a_parameter, replace_a_table, replace_contents])
def test_vectors_of_items_are_looked_up_only_while_they_hold(change: Any) -> None:
    model = small_model()
    model.items.tabulate()
    assert model.items.table() is not None
    change(model)
    assert model.items.table() is None
    batch = context([5])
    logits = model.start(model.prefill(batch))[0]
    model.engine = "eager"
    torch.testing.assert_close(logits, model.start(model.prefill(batch))[0], rtol=1e-4, atol=1e-5)


@needs_numba
def test_the_exponential_is_that_of_numpy_and_order_is_kept() -> None:
    from rankloom.kernels import exp, ordered, product, unordered

    x = np.r_[np.linspace(-87, 88, 5001), 0.0, -0.0].astype(np.float32)
    found = np.array([exp(own) for own in x])
    assert np.abs(found / np.exp(x.astype(np.float64)) - 1).max() < 5e-7
    assert exp(np.float32(-100)) == 0
    assert exp(np.float32(-np.inf)) == 0
    values = np.array([-np.inf, -3.5, -1e-30, 0.0, 1e-30, 2.0, np.inf], np.float32)
    keys = [int(ordered(own)) for own in values]
    assert keys == sorted(keys)
    assert [unordered(np.int32(key)) for key in keys] == values.tolist()
    rng = np.random.default_rng(0)
    for rows, inner, wide in ((1, 3, 5), (130, 64, 256), (33, 200, 400), (0, 4, 4)):
        left, right = (rng.normal(size=size).astype(np.float32) for size in ((rows, inner), (inner, wide)))
        out = np.empty((rows, wide), np.float32)
        product(left, right, out)
        np.testing.assert_allclose(out, left @ right, rtol=1e-4, atol=1e-4)


def test_what_is_not_installed_is_told_and_auto_does_without(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiling, "available", lambda: False)
    assert not compiling.use_compiled("auto")
    assert not compiling.use_compiled("eager")
    with pytest.raises(RankloomError, match=r"numba.*not installed") as caught:
        compiling.use_compiled("compiled")
    assert "rankloom[compiled]" in str(caught.value.action)
    model = small_model()
    model.engine = "compiled"
    with torch.no_grad(), pytest.raises(RankloomError, match="numba"):
        model.prefill(context([3]))
    model.engine = "auto"
    with torch.no_grad():
        assert model.prefill(context([3])).compiled is None
