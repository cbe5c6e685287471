"""The history pool: a weighted mean by hand, what it sees, and that serving computes what training computed."""

from __future__ import annotations

import torch

from rankloom.models.pool import HistoryPool
from tests.decoding.test_beam import context, small_model


def test_a_head_is_a_softmax_weighted_mean_normed_and_scaled() -> None:
    torch.manual_seed(0)
    pool = HistoryPool(6, max_history=5)
    for parameter in pool.parameters():
        torch.nn.init.normal_(parameter)
    batch = context([4])
    vectors = torch.randn(1, 4, 6)
    got = pool(batch, vectors, torch.tensor([[3]]))[0, 0]
    expected = torch.zeros(6)
    kind = int(batch.kind_BT[0, 0])
    for head in range(len(pool.scale)):
        # places 2, 1, 0 are 0, 1, 2 steps back from a target at place 3
        weight = torch.softmax(pool.recency[head, [2, 1, 0]] + pool.kind[head, kind], dim=0) * pool.gate[head, kind]
        mean = (weight[:, None] * vectors[0, :3]).sum(0)
        expected = expected + pool.scale[head] * mean / mean.square().mean().sqrt()
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)


def test_a_target_sees_the_last_places_before_it_and_nothing_else() -> None:
    pool = HistoryPool(6, max_history=2)
    batch = context([5])
    base = torch.randn(1, 5, 6)
    target = torch.tensor([[3]])
    before = pool(batch, base, target)
    for place in range(5):
        moved = base.clone()
        moved[0, place] += 1
        assert torch.equal(pool(batch, moved, target), before) == (place not in (1, 2))


def test_no_history_is_nothing() -> None:
    pool = HistoryPool(6, max_history=5)
    empty = context([0])
    assert not pool(empty, torch.randn(1, 1, 6), torch.tensor([[0]])).any()


def test_only_its_own_query_reaches_a_target() -> None:
    pool = HistoryPool(6, max_history=5)
    batch = context([4])
    batch.query_from_BQ = torch.tensor([[2, 3]])
    vectors, queries = torch.randn(1, 4, 6), torch.randn(1, 2, 6)
    target = torch.tensor([[3]])
    base = pool(batch, vectors, target, queries)
    other = queries.clone()
    other[0, 0] += 1
    assert torch.equal(pool(batch, vectors, target, other), base)
    other[0, 1] += 1
    assert not torch.equal(pool(batch, vectors, target, other), base)


@torch.no_grad()
def test_taste_starts_as_likeness_to_what_was_taken() -> None:
    model = small_model()
    assert model.pool is not None
    model.pool.scale.fill_(1.0)
    for parameter in model.select.parameters():
        parameter.zero_()
    batch = context([3])
    batch.item_BT = torch.tensor([[7, 7, 7]])
    _, user, _ = model.start(model.prefill(batch))
    scores = model.catalogue_scores(user, torch.arange(60))[0]
    vectors = torch.nn.functional.normalize(model.items(torch.arange(60)), dim=1)
    likeness = vectors @ vectors[7]
    # the score is a dot product: long vectors score high, but what points away scores below what points along
    assert float(scores[likeness > 0.2].min()) > float(scores[likeness < -0.2].max())


@torch.no_grad()
def test_serving_pools_all_heads_at_once() -> None:
    torch.manual_seed(0)
    pool = HistoryPool(6, max_history=4)
    for parameter in pool.parameters():
        torch.nn.init.normal_(parameter)
    batch = context([7, 0, 3])
    batch.kind_BT = torch.randint(0, pool.kind.shape[1], batch.kind_BT.shape)
    vectors, queries = torch.randn(3, 7, 6), torch.randn(3, 2, 6)
    for query_from in (None, torch.tensor([[7, 3], [9, 9], [1, 3]])):
        batch.query_from_BQ = query_from
        slow = pool(batch, vectors, batch.length_B[:, None], queries)[:, 0]
        torch.testing.assert_close(pool.last(batch, vectors, queries), slow, rtol=1e-5, atol=1e-6)
