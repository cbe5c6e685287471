"""Statements of OneRec-V2 sections 4.2 to 4.4."""

from __future__ import annotations

import pytest
import torch

from rankloom.config import Config
from rankloom.models.context import ContextBatch, gap_bucket, position_bucket, watch_bucket
from rankloom.models.layers import GatedFFN, MixtureOfExperts, RMSNorm
from rankloom.models.lazy_decoder import LazyDecoder
from tests.decoding.test_beam import context, small_model

# name, d_model, layers, heads, core parameters in billions (OneRec-V2 section 4.4)
PAPER = [
    (640, 12, 10, 0.0885),
    (896, 12, 14, 0.173),
    (1408, 14, 11, 0.4996),
    (1792, 18, 14, 1.040),
    (2304, 22, 18, 2.10),
    (2944, 26, 23, 4.06),
    (3584, 34, 28, 7.86),
]


def on_meta(**model: int) -> LazyDecoder:
    config = Config.preset_config("base").with_overrides([f"model.{k}={v}" for k, v in model.items()])
    with torch.device("meta"):
        return LazyDecoder.from_config(
            config,
            codes_IQ=torch.zeros(4, 3, dtype=torch.long),
            content_IC=torch.zeros(4, 8),
            codebook_sizes=[8192] * 3,
            n_trained=4,
            text_dim=8,
        )


@pytest.mark.parametrize(("d_model", "n_layers", "n_heads", "billions"), PAPER)
def test_parameter_counts_reproduce_the_papers_table(
    d_model: int, n_layers: int, n_heads: int, billions: float
) -> None:
    model = on_meta(d_model=d_model, n_layers=n_layers, n_heads=n_heads)
    assert model.n_core_parameters() / 1e9 == pytest.approx(billions, rel=0.01)


def test_the_mixture_of_experts_has_four_billion() -> None:
    model = on_meta(
        d_model=1408,
        n_layers=14,
        n_heads=11,
        moe_experts=53,
        moe_top_k=3,
        moe_shared=1,
        moe_expert_hidden=1408,
        moe_first_dense=2,
    )
    assert model.n_core_parameters() / 1e9 == pytest.approx(4.07, rel=0.01)


def test_cross_attention_has_no_key_or_value_projection() -> None:
    names = {name.split(".")[0] for name, _ in small_model().lazy_blocks()[0].cross.named_parameters()}
    assert names == {"query", "out", "recency"}


@torch.no_grad()
def test_context_elements_never_look_at_each_other() -> None:
    model = small_model()
    batch = context([5])
    before = model.context(batch, model.items(batch.item_BT))
    batch.item_BT[0, 2] = (batch.item_BT[0, 2] + 1) % 60
    after = model.context(batch, model.items(batch.item_BT))
    changed = (before.keys[0] != after.keys[0]).any(-1).any(1)[0]
    assert changed.nonzero()[:, 0].tolist() == [3]  # the null element comes first


@torch.no_grad()
def test_logits_of_a_code_do_not_depend_on_it_or_later_ones() -> None:
    model = small_model()
    batch = context([4])
    target = torch.zeros(1, batch.item_BT.shape[1], dtype=torch.bool)
    target[0, 3] = True
    surface = torch.zeros_like(batch.item_BT)
    codes = torch.tensor([[1, 2, 3]])
    base = model(batch, target, codes, surface)
    for changed_code in range(3):
        other = codes.clone()
        other[0, changed_code] = 0
        hidden = model(batch, target, other, surface)
        for level in range(3):
            same = torch.equal(model.code_logits(base, level), model.code_logits(hidden, level))
            assert same == (level <= changed_code)


@torch.no_grad()
def test_a_target_sees_only_what_came_before_it() -> None:
    model = small_model()
    batch = context([6])
    target = torch.ones(1, 6, dtype=torch.bool)
    codes = model.items.codes_IQ[batch.item_BT[0]]
    surface = torch.zeros_like(batch.item_BT)
    base = model(batch, target, codes, surface)
    batch.item_BT[0, 4] = (batch.item_BT[0, 4] + 1) % 60
    moved = model(batch, target, codes, surface)
    same = [torch.equal(base[place], moved[place]) for place in range(6)]
    assert same == [True] * 5 + [False]


@torch.no_grad()
def test_training_on_every_position_equals_asking_one_by_one() -> None:
    model = small_model(l_kv=2, s_kv=2, g_kv=1)
    batch = context([6])
    codes = model.items.codes_IQ[batch.item_BT[0]]
    hidden = model(batch, torch.ones(1, 6, dtype=torch.bool), codes, torch.zeros_like(batch.item_BT))
    for place in range(6):
        names = ("item_BT", "kind_BT", "watch_BT", "gap_BT", "surface_BT", "position_BT")
        cut = ContextBatch(
            *(getattr(batch, name)[:, : max(place, 1)] for name in names), length_B=torch.tensor([place])
        )
        if place == 0:
            cut.item_BT = torch.full_like(cut.item_BT, -1)
        logits, _, cache = model.start(model.prefill(cut))
        torch.testing.assert_close(logits[0], model.code_logits(hidden[place : place + 1], 0), rtol=1e-4, atol=1e-5)
        logits, _ = model.step(model.prefill(cut), 1, codes[place : place + 1, :1], cache)
        torch.testing.assert_close(logits[0], model.code_logits(hidden[place : place + 1], 1), rtol=1e-4, atol=1e-5)


def test_expert_bias_moves_routing_and_never_the_gate() -> None:
    torch.manual_seed(0)
    layer = MixtureOfExperts(8, n_experts=6, top_k=2, n_shared=1, hidden=8)
    x = torch.randn(40, 8)
    chosen, gate = layer.route(x)
    layer.route_bias += 0.05 * torch.randn(6)
    moved, moved_gate = layer.route(x)
    same = (chosen == moved).all(1)
    assert same.any()
    assert not same.all()
    torch.testing.assert_close(gate[same], moved_gate[same])
    torch.testing.assert_close(gate.sum(1), torch.ones(40))


def test_balancing_evens_the_load() -> None:
    torch.manual_seed(0)
    layer = MixtureOfExperts(8, n_experts=4, top_k=1, n_shared=0, hidden=8, bias_step=0.02).train()
    layer.router.weight.data[0] += 1.0
    x = torch.randn(400, 8) + 0.5
    layer(x)
    before = layer.balance().max()
    for _ in range(60):
        layer(x)
        after = layer.balance().max()
    assert after < before
    assert layer(x).shape == x.shape


def test_norm_and_ffn() -> None:
    x = torch.randn(3, 8) * 7
    assert RMSNorm(8)(x).square().mean(-1).allclose(torch.ones(3), atol=1e-4)
    assert sum(p.numel() for p in GatedFFN(16, 64).parameters()) == 12 * 16 * 16


def test_buckets() -> None:
    assert watch_bucket(torch.tensor([float("nan"), 0.0, 1.0, 9.0])).tolist() == [0, 1, 8, 11]
    assert gap_bucket(torch.tensor([-1.0, 0.0, 60.0, 1e9])).tolist()[0] == 0
    gaps = gap_bucket(torch.tensor([0.0, 60.0, 3600.0, 86400.0]))
    assert (gaps.diff() > 0).all()
    assert position_bucket(torch.tensor([-1, 0, 7, 100])).tolist() == [0, 1, 8, 11]
