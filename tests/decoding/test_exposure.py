"""The lift: rates and quality by hand, node ratios as sums over items, and a beam that equals brute force under it."""

from __future__ import annotations

import numpy as np
import torch

from rankloom.decoding.beam import beam_search
from rankloom.decoding.exposure import TRAIN_PRIOR, Exposure, LiftTables
from rankloom.decoding.masks import MaskIndex
from rankloom.decoding.select import expand
from rankloom.models.age import N_AGES, NOT_YET, age_bucket
from rankloom.semantic.trie import Trie
from tests.decoding.test_beam import context, small_model

DAY = 86_400.0


def log(n_items: int = 60, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Items born over 30 days, taken when young; the last ten never."""
    rng = np.random.default_rng(seed)
    created = torch.from_numpy(np.sort(rng.uniform(0, 30, n_items)) * DAY)
    kind = torch.from_numpy(rng.integers(0, 2, n_items))
    item = torch.from_numpy(rng.integers(0, n_items - 10, 400))
    when = created[item] + torch.from_numpy(rng.exponential(2, 400)) * DAY
    return created, kind, item, when


def tables(created: torch.Tensor, kind: torch.Tensor, item: torch.Tensor, when: torch.Tensor, index: MaskIndex) -> LiftTables:
    counts = torch.bincount(item, minlength=len(created))
    exposure = Exposure.fit(created, kind, item, when)
    return LiftTables(exposure, index, created_I=created, kind_I=kind, count_I=counts)


def test_an_item_is_expected_by_the_rate_of_its_age_times_its_quality() -> None:
    created, kind, item, when = log()
    exposure = Exposure.fit(created, kind, item, when)
    counts = torch.bincount(item, minlength=60)
    now = exposure.now(31 * DAY, created, kind, counts)
    bucket = age_bucket(torch.tensor(31 * DAY, dtype=torch.float64), created)
    quality = (counts + 5) / (exposure.expected_I + 5)
    torch.testing.assert_close(now, exposure.rate_GA[kind, bucket] * quality)
    # young items are taken more
    assert float(exposure.rate_GA[:, 4:7].mean()) > 2 * float(exposure.rate_GA[:, 11:13].mean())
    # what is not listed yet is hardly taken, and a new item is of quality 1
    before = exposure.now(-DAY, created, kind, counts)
    assert float(before.max()) < 1e-3 * float(now.max())
    fresh = exposure.now(31 * DAY, torch.cat([created, torch.tensor([30.5 * DAY])]), torch.cat([kind, kind[:1]]), torch.cat([counts, counts[:1] * 0]))
    assert float(fresh[-1]) == float(exposure.rate_GA[kind[0], age_bucket(torch.tensor(31 * DAY), torch.tensor([30.5 * DAY]))[0]])


def test_the_ratio_of_a_node_is_that_of_the_sums_below_it() -> None:
    created, kind, item, when = log()
    model = small_model()
    trie = Trie.build(model.items.codes_IQ.numpy(), model.codebook_sizes)
    own = tables(created, kind, item, when, MaskIndex(trie, 60))
    # middle of an hour: the table's own moment
    moment = (24 * 33 + 0.5) * 3600.0
    lift = own.lift(torch.tensor([moment], dtype=torch.float64), strength=0.5)
    now = own.exposure.now(moment, created, kind, own.count_I)
    train = own.count_I.double() + TRAIN_PRIOR
    for node in range(trie.n_nodes(1)):
        below = model.items.codes_IQ[:, 0] == trie.child_code[0][node]
        expected = 0.5 * (now[below].sum().log() - train[below].sum().log())
        got = lift.of(1, torch.tensor([0]), torch.tensor([node]))
        torch.testing.assert_close(got[0].double(), expected, rtol=1e-4, atol=1e-4)


def test_a_request_without_a_moment_is_not_lifted_and_moments_of_a_batch_do_not_mix() -> None:
    created, kind, item, when = log()
    model = small_model()
    trie = Trie.build(model.items.codes_IQ.numpy(), model.codebook_sizes)
    own = tables(created, kind, item, when, MaskIndex(trie, 60))
    moments = torch.tensor([float("nan"), 20 * DAY, 40 * DAY], dtype=torch.float64)
    together = own.lift(moments, 1.0)
    nodes = torch.arange(trie.n_nodes(2))
    for request in range(3):
        alone = own.lift(moments[request : request + 1], 1.0).of(2, torch.zeros_like(nodes), nodes)
        assert torch.equal(together.of(2, torch.full_like(nodes, request), nodes), alone)
    assert not together.of(2, torch.zeros_like(nodes), nodes).any()
    assert not torch.equal(together.of(2, torch.ones_like(nodes), nodes), together.of(2, torch.ones_like(nodes) * 2, nodes))


@torch.no_grad()
def test_a_lifted_beam_as_wide_as_the_catalogue_is_the_learned_distribution_times_the_lift_renormalised() -> None:
    created, kind, item, when = log()
    model = small_model()
    codes = model.items.codes_IQ
    trie = Trie.build(codes.numpy(), model.codebook_sizes)
    index = MaskIndex(trie, 60)
    lift = tables(created, kind, item, when, index).lift(torch.tensor([33 * DAY], dtype=torch.float64), 1.0)
    prefix = model.prefill(context([4]))
    masks = index.requests([None])
    plain = beam_search(model, prefix, trie, beam=200, masks=masks, normalise="trie")
    lifted = beam_search(model, prefix, trie, beam=200, masks=masks, normalise="trie", lift=lift)
    total = dict(zip(plain.leaf_BW[0].tolist(), plain.log_prob_BW[0].tolist(), strict=True))
    children: dict[tuple[int, ...], float] = {}
    leaf_codes, ancestors = trie.leaf_codes(), trie.ancestors()
    # by hand: at every level the learned conditional times exp(lift), over the children of the prefix
    learned: dict[tuple[int, ...], float] = {}
    for leaf, log_prob in total.items():
        own = tuple(leaf_codes[leaf].tolist())
        for depth in range(len(own) + 1):
            learned[own[:depth]] = learned.get(own[:depth], 0.0) + float(np.exp(log_prob))
    node_of = {
        tuple(leaf_codes[leaf].tolist()[: depth + 1]): int(ancestors[depth][leaf])
        for leaf in total
        for depth in range(3)
    }
    for prefix_codes, node in node_of.items():
        depth = len(prefix_codes)
        weight = learned[prefix_codes] / learned[prefix_codes[:-1]]
        children[prefix_codes] = weight * float(lift.of(depth, torch.tensor([0]), torch.tensor([node])).exp())
    for leaf, got in zip(lifted.leaf_BW[0].tolist(), lifted.log_prob_BW[0].tolist(), strict=True):
        own, expected = tuple(leaf_codes[leaf].tolist()), 0.0
        for depth in range(1, 4):
            whole = sum(v for k, v in children.items() if len(k) == depth and k[:-1] == own[: depth - 1])
            expected += float(np.log(children[own[:depth]] / whole))
        assert abs(got - expected) < 1e-3
    assert abs(float(lifted.log_prob_BW.exp().sum()) - 1) < 1e-4


def test_items_of_a_leaf_share_it_as_they_are_taken_now() -> None:
    trie = Trie.build(np.zeros((3, 1), dtype=np.int64), [2])
    index = MaskIndex(trie, 3)
    created = torch.tensor([0.0, 20 * DAY, 90 * DAY], dtype=torch.float64)
    item = torch.tensor([0] * 30 + [1] * 30)
    when = torch.cat([torch.linspace(0, 2, 30), torch.linspace(20, 22, 30)]).double() * DAY
    own = tables(created, torch.zeros(3, dtype=torch.long), item, when, index)
    lift = own.lift(torch.tensor([21 * DAY], dtype=torch.float64), 1.0)
    found = expand(
        torch.zeros(1, 1, dtype=torch.long), torch.zeros(1, 1), trie=trie,
        log_share=torch.log(torch.tensor([0.5, 0.5, 1e-6])), lift=lift,
    )  # fmt: skip
    share = {int(i): float(p) for i, p in zip(found.item_BC[0], found.log_prob_BC[0].exp(), strict=True)}
    assert abs(sum(share.values()) - 1) < 1e-5
    assert share[1] > 5 * share[0]
    assert share[2] < 1e-3
    assert own.exposure.rate_GA.shape == (1, N_AGES)
    assert float(own.exposure.rate_GA[0, NOT_YET]) > 0
