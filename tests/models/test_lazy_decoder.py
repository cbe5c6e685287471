"""Statements of OneRec-V2 sections 4.2 to 4.4."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from rankloom.config import Config
from rankloom.models.context import ContextBatch, gap_bucket, position_bucket, watch_bucket
from rankloom.models.layers import GatedFFN, LazyCrossAttention, MixtureOfExperts, RMSNorm
from rankloom.models.lazy_decoder import LazyDecoder
from rankloom.training.batches import TrainingBatch
from rankloom.training.objectives import NextItem
from tests.decoding.test_beam import context, small_model

# billions in the paper's table, d_model, layers, heads, width of a sparse feature, core parameters in billions as
# derived from the table's GFLOPs (OneRec-V2 section 4.4)
PAPER = [
    (0.1, 640, 12, 10, 32, 0.0885),
    (0.2, 896, 12, 14, 45, 0.1734),
    (0.5, 1408, 14, 11, 70, 0.4996),
    (1, 1792, 18, 14, 90, 1.040),
    (2, 2304, 22, 18, 115, 2.10),
    (4, 2944, 26, 23, 147, 4.06),
    (8, 3584, 34, 28, 179, 7.86),
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


@pytest.mark.parametrize(("name", "d_model", "n_layers", "n_heads", "feature", "billions"), PAPER)
def test_parameter_counts_reproduce_the_papers_table(
    name: float, d_model: int, n_layers: int, n_heads: int, feature: int, billions: float
) -> None:
    model = on_meta(d_model=d_model, n_layers=n_layers, n_heads=n_heads)
    core = model.n_core_parameters() / 1e9
    assert core == pytest.approx(billions, rel=0.002)
    assert round(core, 1 if name < 1 else 0) == name
    # W_q, W_o; W_qkv, W_o; three FFN matrices of 4 d^2
    assert model.n_core_parameters() == n_layers * 18 * d_model**2
    assert all(parameter.is_meta for parameter in model.parameters())
    assert abs(model.context.kind.embedding_dim - feature) <= 1


def test_the_base_preset_is_the_first_row_of_the_table() -> None:
    config = Config.preset_config("base")
    _, d_model, n_layers, n_heads, _, _ = PAPER[0]
    assert (config.model.d_model, config.model.n_layers, config.model.n_heads) == (d_model, n_layers, n_heads)
    assert config.quantizer.codebook_sizes == (8192, 8192, 8192)
    assert config.training.learning_rate == 5e-4
    assert config.decoding.beam == 512
    assert (config.model.l_kv, config.model.s_kv, config.model.g_kv) == (1, 1, None)


def test_the_mixture_of_experts_has_four_billion_and_runs_half_a_billion() -> None:
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
    assert model.n_core_parameters() / 1e9 == pytest.approx(4.07, rel=0.002)
    kinds = [type(block.ffn) for block in model.lazy_blocks()]
    assert kinds == [GatedFFN] * 2 + [MixtureOfExperts] * 12
    routed = sum(
        p.numel() for block in model.lazy_blocks()[2:] for p in block.ffn.experts.parameters()  # type: ignore[union-attr]
    )
    active = model.n_core_parameters() - routed * (53 - 3) // 53
    # the dense 0.5B row spends the same
    assert active == on_meta(d_model=1408, n_layers=14, n_heads=11).n_core_parameters()


@pytest.mark.parametrize(("l_kv", "s_kv", "g_kv"), [(1, 1, None), (1, 2, None), (3, 1, 2), (6, 2, 1)])
def test_the_context_has_exactly_the_shared_keys_and_values(l_kv: int, s_kv: int, g_kv: int | None) -> None:
    model = small_model(d_model=24, n_heads=6, n_layers=6, l_kv=l_kv, s_kv=s_kv, **({"g_kv": g_kv} if g_kv else {}))
    groups = g_kv or 6
    torch.nn.init.normal_(model.context.null)
    batch = context([5])
    kv = model.context(batch, model.items(batch.item_BT))
    assert len(kv.keys) == len(kv.values) == l_kv
    # null element and five interactions
    assert all(k.shape == v.shape == (1, groups, 6, 4) for k, v in zip(kv.keys, kv.values, strict=True))
    assert all((k.data_ptr() == v.data_ptr()) == (s_kv == 1) for k, v in zip(kv.keys, kv.values, strict=True))
    # d_context = S_kv L_kv G_kv d_head
    assert model.context.null.shape == (s_kv * l_kv * groups * 4,)
    assert [block.kv_set for block in model.lazy_blocks()] == [layer * l_kv // 6 for layer in range(6)]
    # each chunk is normed on its own
    for tensor in (*kv.keys, *kv.values):
        flat = tensor.transpose(1, 2).reshape(1, 6, -1)
        assert flat.square().mean(-1).allclose(torch.ones(1, 6), atol=1e-3)
    # the context's only parameters: features, pathways, the null element, one norm a chunk
    names = {name.split(".")[0] for name, _ in model.context.named_parameters()}
    features = {"kind", "watch", "gap", "surface", "position", "user"}
    assert names - features == {"history_path", "query_path", "user_path", "null", "key_norms"} | (
        {"value_norms"} if s_kv == 2 else set()
    )


@torch.no_grad()
def test_a_block_is_cross_attention_then_self_attention_then_ffn_each_normed_before_and_added() -> None:
    model = small_model(n_layers=1, history_pool=False)
    block = model.lazy_blocks()[0]
    calls: list[str] = []
    seen: dict[str, torch.Tensor] = {}
    for name in ("cross_norm", "cross", "self_norm", "self_attention", "ffn_norm", "ffn"):
        def note(module: torch.nn.Module, inputs: Any, output: torch.Tensor, name: str = name) -> None:
            calls.append(name)
            seen[f"{name} in"], seen[name] = inputs[0], output

        getattr(block, name).register_forward_hook(note)
    batch = context([4])
    target = torch.zeros(1, 4, dtype=torch.bool)
    target[0, 3] = True
    codes = torch.tensor([[1, 2, 3]])
    out, _ = model(batch, target, codes, torch.zeros_like(batch.item_BT))
    assert calls == ["cross_norm", "cross", "self_norm", "self_attention", "ffn_norm", "ffn"]
    start = seen["cross_norm in"]
    # BOS (with its surface) and the codes before the last
    expected = torch.stack(
        [model.bos + model.surface.weight[0], *(model.code_inputs[level].weight[codes[0, level]] for level in (0, 1))]
    )
    torch.testing.assert_close(start[0], expected)
    torch.testing.assert_close(seen["cross in"][0, 3], seen["cross_norm"][0])
    after_cross = start + seen["cross"][0, 3]
    torch.testing.assert_close(seen["self_norm in"], after_cross)
    after_self = after_cross + seen["self_attention"]
    torch.testing.assert_close(seen["ffn_norm in"], after_self)
    torch.testing.assert_close(out, after_self + seen["ffn"])


@torch.no_grad()
def test_each_code_has_a_norm_and_a_head_of_its_own() -> None:
    model = small_model()
    hidden = torch.randn(2, 3, model.config.d_model)
    for level in range(3):
        norm = hidden[:, level] * hidden[:, level].square().mean(-1, keepdim=True).add(1e-6).rsqrt()
        expected = (norm * model.head_norms[level].gain) @ model.heads[level].weight.T
        torch.testing.assert_close(model.code_logits(hidden, level), expected)
    assert len({id(head.weight) for head in model.heads}) == 3
    assert [head.weight.shape[0] for head in model.heads] == list(model.codebook_sizes)


@torch.no_grad()
def test_lazy_cross_attention_equals_a_loop_over_heads_and_targets() -> None:
    torch.manual_seed(0)
    layer = LazyCrossAttention(12, n_heads=6, g_kv=2, max_history=5)
    layer.recency.normal_()
    x, k, v = torch.randn(2, 3, 2, 12), torch.randn(2, 2, 7, 2), torch.randn(2, 2, 7, 2)
    rank, visible = torch.randint(0, 6, (2, 3, 7)), torch.rand(2, 3, 7) < 0.6
    visible[..., 0] = True
    got = layer(x, k, v, rank, visible)
    for b in range(2):
        for t in range(3):
            for code in range(2):
                q = (layer.query.weight @ x[b, t, code]).view(6, 2)
                mixed = []
                for head in range(6):
                    group = head // 3
                    scores = k[b, group] @ q[head] / 2**0.5 + layer.recency[head, rank[b, t]]
                    mixed.append(scores.masked_fill(~visible[b, t], float("-inf")).softmax(0) @ v[b, group])
                torch.testing.assert_close(got[b, t, code], layer.out.weight @ torch.cat(mixed), rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_the_decoders_work_grows_with_the_context_by_the_attention_scores_alone() -> None:
    model = small_model(max_history=100)
    # only torch's own operations are counted
    model.engine = "eager"

    def flops(places: int) -> int:
        prefix = model.prefill(context([places]))
        with FlopCounterMode(display=False) as counter:
            logits, cache = model.step(prefix, 0, None, None)
            cache = model.reorder(cache, torch.zeros(1, 4, dtype=torch.long))
            model.step(prefix, 1, logits[:, 0].topk(4).indices, cache)
        return counter.get_total_flops()

    dim, layers, rows = model.config.d_model, model.config.n_layers, 1 + 4
    # scores and mixing, 2 dim operations each per row, layer and element
    assert flops(60) - flops(20) == 40 * layers * rows * 2 * (2 * dim)
    assert flops(20) < flops(60)


@torch.no_grad()
def test_a_context_grows_by_appending() -> None:
    model = small_model()
    longer = context([6])
    names = ("item_BT", "kind_BT", "watch_BT", "gap_BT", "surface_BT", "position_BT")
    shorter = ContextBatch(*(getattr(longer, name)[:, :4] for name in names), length_B=torch.tensor([4]))
    whole = model.context(longer, model.items(longer.item_BT))
    part = model.context(shorter, model.items(shorter.item_BT))
    torch.testing.assert_close(whole.keys[0][:, :, :5], part.keys[0])


def test_cross_attention_has_no_key_or_value_projection() -> None:
    names = {name.split(".")[0] for name, _ in small_model().lazy_blocks()[0].cross.named_parameters()}
    assert names == {"query", "out", "recency"}


@torch.no_grad()
@pytest.mark.parametrize("changes", ["item_BT", "kind_BT", "watch_BT", "gap_BT", "surface_BT", "position_BT", "query", "user"])
def test_context_elements_never_look_at_each_other(changes: str) -> None:
    model = small_model(l_kv=2, s_kv=2)
    batch = context([5])
    batch.query_BQD, batch.query_from_BQ = torch.randn(1, 2, 7), torch.tensor([[1, 4]])
    batch.user_BF = torch.tensor([[3, 9]])
    before = model.context(batch, model.items(batch.item_BT))
    # null element, five interactions, the user, two queries
    if changes == "query":
        batch.query_BQD[0, 1] += 1
        element = 8
    elif changes == "user":
        batch.user_BF[0, 1] = 10
        element = 6
    else:
        getattr(batch, changes)[0, 2] += 1
        element = 3
    after = model.context(batch, model.items(batch.item_BT))
    for old, new in zip([*before.keys, *before.values], [*after.keys, *after.values], strict=True):
        assert (old != new).any(-1).any(1)[0].nonzero()[:, 0].tolist() == [element]


@torch.no_grad()
def test_a_query_and_static_features_reach_the_request_that_has_them_and_no_other() -> None:
    model = small_model()
    never = torch.iinfo(torch.int32).max

    def logits(**change: Any) -> torch.Tensor:
        batch = context([3, 3])
        batch.query_BQD, batch.query_from_BQ = torch.ones(2, 1, 7), torch.tensor([[3], [never]])
        batch.user_BF = torch.tensor([[3, 9], [0, 0]])
        for name, value in change.items():
            setattr(batch, name, value)
        return model.start(model.prefill(batch))[0]

    base = logits()
    other_query = logits(query_BQD=torch.full((2, 1, 7), 2.0))
    other_user = logits(user_BF=torch.tensor([[3, 10], [0, 0]]))
    for moved in (other_query, other_user):
        assert not torch.equal(moved[0], base[0])
        assert torch.equal(moved[1], base[1])
    # without any of it, the second request is what a batch without queries and users gives
    plain = model.start(model.prefill(context([3, 3])))[0]
    torch.testing.assert_close(plain[1], base[1])
    on_search = model.start(model.prefill(context([3, 3]), torch.tensor([1, 0])))[0]
    assert not torch.equal(on_search[0], plain[0])


@torch.no_grad()
def test_only_the_last_interactions_are_visible_as_when_served() -> None:
    model = small_model(max_history=3)
    batch = context([6])
    base = model.start(model.prefill(batch))[0]
    batch.item_BT[0, 2] = (batch.item_BT[0, 2] + 1) % 60
    assert torch.equal(model.start(model.prefill(batch))[0], base)
    batch.item_BT[0, 3] = (batch.item_BT[0, 3] + 1) % 60
    assert not torch.equal(model.start(model.prefill(batch))[0], base)


def test_the_loss_is_the_mean_over_codes() -> None:
    config = Config.preset_config("tiny").with_overrides(["selection.enabled=false"])
    model = small_model()
    batch = context([4])
    target = torch.ones(1, 4, dtype=torch.bool)
    item = batch.item_BT[0]
    training = TrainingBatch(batch, target, item, torch.zeros_like(batch.item_BT))
    losses = NextItem(config, torch.ones(60)).forward(model, training, torch.Generator())
    codes = model.items.codes_IQ[item]
    hidden, _ = model(batch, target, codes, training.surface_BT)
    by_hand = [F.cross_entropy(model.code_logits(hidden, level), codes[:, level]) for level in range(3)]
    torch.testing.assert_close(losses.generation, sum(by_hand).detach() / 3)
    assert losses.total == losses.generation


@torch.no_grad()
def test_logits_of_a_code_do_not_depend_on_it_or_later_ones() -> None:
    model = small_model()
    batch = context([4])
    target = torch.zeros(1, batch.item_BT.shape[1], dtype=torch.bool)
    target[0, 3] = True
    surface = torch.zeros_like(batch.item_BT)
    codes = torch.tensor([[1, 2, 3]])
    base, _ = model(batch, target, codes, surface)
    for changed_code in range(3):
        other = codes.clone()
        other[0, changed_code] = 0
        hidden, _ = model(batch, target, other, surface)
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
    base, _ = model(batch, target, codes, surface)
    batch.item_BT[0, 4] = (batch.item_BT[0, 4] + 1) % 60
    moved, _ = model(batch, target, codes, surface)
    same = [torch.equal(base[place], moved[place]) for place in range(6)]
    assert same == [True] * 5 + [False]


@torch.no_grad()
def test_training_on_every_position_equals_asking_one_by_one() -> None:
    model = small_model(l_kv=2, s_kv=2, g_kv=1)
    batch = context([6])
    codes = model.items.codes_IQ[batch.item_BT[0]]
    hidden, _ = model(batch, torch.ones(1, 6, dtype=torch.bool), codes, torch.zeros_like(batch.item_BT))
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


@torch.no_grad()
def test_a_mixture_is_its_shared_experts_and_its_gated_top_k() -> None:
    torch.manual_seed(0)
    layer = MixtureOfExperts(8, n_experts=5, top_k=2, n_shared=2, hidden=6).eval()
    layer.route_bias.copy_(torch.tensor([0.0, 3.0, 0.0, -3.0, 0.0]))
    x = torch.randn(2, 7, 8)
    got = layer(x).view(-1, 8)
    for row, own in enumerate(x.view(-1, 8)):
        affinity = torch.sigmoid(layer.router.weight @ own)
        chosen = (affinity + layer.route_bias).topk(2).indices.tolist()
        # the bias decides who works, and not how much it counts
        assert 1 in chosen
        assert 3 not in chosen
        gate = affinity[chosen] / affinity[chosen].sum()
        expected = sum(expert(own) for expert in layer.shared)
        expected = expected + sum(g * layer.experts[e](own) for g, e in zip(gate, chosen, strict=True))
        torch.testing.assert_close(got[row], expected, rtol=1e-4, atol=1e-5)
    assert not layer.load.any()  # only training counts


def test_balancing_moves_each_bias_one_step_against_its_load_and_no_gradient_reaches_it() -> None:
    layer = MixtureOfExperts(4, n_experts=3, top_k=1, n_shared=0, hidden=4, bias_step=0.5)
    layer.load.copy_(torch.tensor([6.0, 3.0, 0.0]))
    share = layer.balance()
    assert share.tolist() == pytest.approx([2 / 3, 1 / 3, 0])
    assert layer.route_bias.tolist() == [-0.5, 0.0, 0.5]
    assert not layer.load.any()
    assert layer.balance().tolist() == [0, 0, 0]
    assert layer.route_bias.tolist() == [-0.5, 0.0, 0.5]
    assert "route_bias" not in dict(layer.named_parameters())
    assert "route_bias" in layer.state_dict()


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
