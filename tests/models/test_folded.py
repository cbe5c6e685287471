"""The folded blocks give what the plain ones give, and never what the weights no longer say."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

from rankloom.models import lazy_decoder
from rankloom.models.folded import MANY
from rankloom.models.lazy_decoder import LazyDecoder
from rankloom.models.prefix import Prefix
from tests.decoding.test_beam import context, small_model

OPTIONS: list[dict[str, Any]] = [
    {},
    {"l_kv": 2},
    {"s_kv": 2},
    {"g_kv": 1},
    {"l_kv": 2, "s_kv": 2, "g_kv": 1, "n_heads": 4},
    {"moe_experts": 4, "moe_first_dense": 1},
    {"history_pool": False},
]


def random_norms(model: LazyDecoder) -> None:
    """Gains and recency away from where they start, so that folding them in matters."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 1 or "recency" in name:
                parameter += 0.3 * torch.randn(parameter.shape)


def walk(model: LazyDecoder, prefix: Prefix, codes_LBW: list[Tensor], parents: list[Tensor]) -> list[Tensor]:
    """Logits of every level along given codes and parents, then the users' states."""
    logits, user, cache = model.start(prefix)
    out = [logits]
    for level, (codes, parent) in enumerate(zip(codes_LBW, parents, strict=True), start=1):
        cache = model.reorder(cache, parent)
        logits, cache = model.step(prefix, level, codes, cache)
        out.append(logits)
    return [*out, user, model.user(prefix)]


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("beams", [1, 3, MANY, 20])
@pytest.mark.parametrize("history", [6, 70])
def test_every_step_equals_the_plain_one(options: dict[str, Any], beams: int, history: int) -> None:
    # a long history is not multiplied with the projections, a short one is for many beams
    torch.manual_seed(beams)
    model = small_model(max_history=80, **options)
    random_norms(model)
    batch = context([history, 0, 3])
    codes = [torch.randint(0, 5, (3, beams)) for _ in range(2)]
    parents = [torch.zeros(3, beams, dtype=torch.long), torch.randint(0, beams, (3, beams))]
    plain_prefix = model.prefill(batch)
    assert plain_prefix.decoder is None
    model.engine = "eager"
    plain = walk(model, plain_prefix, codes, parents)
    with torch.no_grad():
        prefix = model.prefill(batch)
        assert prefix.decoder is not None
        folded = walk(model, prefix, codes, parents)
    assert prefix.folded is not None
    assert bool(prefix.folded.read_BDM) == (beams >= MANY and history == 6)
    for own, twin in zip(folded, plain, strict=True):
        torch.testing.assert_close(own, twin.detach(), rtol=1e-4, atol=1e-5)


def change_in_place(model: LazyDecoder) -> None:
    with torch.no_grad():
        model.heads[0].weight += 1.0  # type: ignore[operator]
        model.lazy_blocks()[1].cross.query.weight *= 2.0
        model.select.weight += 1.0


def take_other_weights(model: LazyDecoder) -> None:
    other = {name: value + 0.5 if "norm" in name else value for name, value in model.state_dict().items()}
    model.load_state_dict(other, assign=True)


def train_a_step(model: LazyDecoder) -> None:
    for block in model.train().lazy_blocks():
        block.ffn_norm.gain.data.mul_(3.0)
    model.eval()


@torch.no_grad()
@pytest.mark.parametrize("change", [change_in_place, take_other_weights, train_a_step])
def test_changed_weights_are_folded_anew(change: Any) -> None:
    model = small_model()
    batch = context([5])
    before = model.prefill(batch)
    stale = model.start(before)[0]
    assert model.prefill(batch).decoder is before.decoder
    change(model)
    prefix = model.prefill(batch)
    assert prefix.decoder is not before.decoder
    logits, user, _ = model.start(prefix)
    assert not torch.allclose(logits, stale)
    with torch.enable_grad():
        twin = model.start(model.prefill(batch))
    torch.testing.assert_close(logits, twin[0].detach(), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(user, twin[1].detach(), rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_gradients_training_and_large_models_run_the_plain_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    model = small_model()
    batch = context([5])
    assert model.prefill(batch).decoder is not None
    assert model.train().prefill(batch).decoder is None
    with torch.enable_grad():
        logits, _, _ = model.eval().start(model.prefill(batch))
    assert logits.requires_grad
    monkeypatch.setattr(lazy_decoder, "LIMIT", 10)
    assert small_model().prefill(batch).decoder is None


@torch.no_grad()
def test_search_and_selection_begin_at_one_bos() -> None:
    model = small_model()
    prefix = model.prefill(context([5, 2]))
    logits, cache = model.step(prefix, 0, None, None)
    assert model.step(prefix, 0, None, None)[1] is cache
    assert torch.equal(model.start(prefix)[0], logits)
    assert torch.equal(model.start(prefix)[1], model.user(prefix))


@torch.no_grad()
def test_a_copy_folds_its_own_weights_and_looks_nothing_up() -> None:
    model = small_model()
    model.items.tabulate()
    batch = context([5])
    before = model.start(model.prefill(batch))[0]
    twin = copy.deepcopy(model)
    change_in_place(twin)
    twin.items.content.weight += 1.0
    assert torch.equal(model.start(model.prefill(batch))[0], before)
    logits = twin.start(twin.prefill(batch))[0]
    with torch.enable_grad():
        plain = twin.start(twin.prefill(batch))[0].detach()
    torch.testing.assert_close(logits, plain, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(logits, before)
