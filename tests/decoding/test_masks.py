"""A node is open for a request exactly when an item below it passes the filter and is not excluded."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rankloom.decoding.masks import MaskIndex
from rankloom.semantic.trie import Trie

N_ITEMS = 40


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 9999),
    kinds=st.lists(st.sampled_from(["none", "first", "second", "nothing"]), min_size=1, max_size=4),
    n_excluded=st.lists(st.integers(0, 60), min_size=4, max_size=4),
    removed=st.integers(0, 20),
)
def test_open_nodes_are_those_with_an_allowed_item_below(
    seed: int, kinds: list[str], n_excluded: list[int], removed: int
) -> None:
    rng = np.random.default_rng(seed)
    alive = np.sort(rng.permutation(N_ITEMS)[removed:])
    trie = Trie.build(rng.integers(0, 3, (N_ITEMS, 3)), [3, 3, 3], rows=alive)
    index = MaskIndex(trie, N_ITEMS)
    passes = {
        "first": torch.from_numpy(rng.random(N_ITEMS) < 0.5),
        "second": torch.from_numpy(rng.random(N_ITEMS) < 0.1),
        "nothing": torch.zeros(N_ITEMS, dtype=torch.bool),
        "none": torch.ones(N_ITEMS, dtype=torch.bool),
    }
    compiled = {name: None if name == "none" else index.compile(mask) for name, mask in passes.items()}
    # excluded rows come with duplicates, padding and rows that the catalogue no longer has
    excluded = [torch.from_numpy(rng.integers(-1, N_ITEMS + 5, n)) for n in n_excluded[: len(kinds)]]
    masks = index.requests([compiled[name] for name in kinds], excluded)
    allowed_items = masks.allowed_items()
    for request, name in enumerate(kinds):
        allowed = {row for row in alive.tolist() if passes[name][row]}
        own = allowed_items if allowed_items.ndim == 1 else allowed_items[request]
        assert set(torch.nonzero(own)[:, 0].tolist()) == allowed
        left = allowed - set(excluded[request].tolist())
        for depth in (1, 2, 3):
            nodes = np.arange(trie.n_nodes(depth))
            found = masks.open(depth, np.full_like(nodes, request), nodes)
            expected = [bool(left & set(trie.items_under(depth, node).tolist())) for node in nodes.tolist()]
            assert found.tolist() == expected


def test_requests_with_one_filter_share_its_counts() -> None:
    trie = Trie.build(np.array([[0], [1], [1]]), [2])
    index = MaskIndex(trie, 3)
    own = index.compile(torch.tensor([True, False, True]))
    assert own.counts is not None
    assert [count.tolist() for count in own.counts] == [[1, 1]]
    masks = index.requests([own, None, own])
    assert masks.which_B.tolist() == [0, 1, 0]
    assert len(masks.unique) == 2
    assert index.requests([own, own]).allowed_items().tolist() == [True, False, True]
