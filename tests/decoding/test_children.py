"""The flat list of a level's children against loops over requests, beams and children."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rankloom.decoding.children import Children, Named
from rankloom.decoding.masks import MaskIndex
from rankloom.decoding.memory import Guide
from rankloom.semantic.trie import Trie

N_ITEMS = 50


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 9999), level=st.integers(0, 2), size=st.sampled_from([2, 4, 300]), crowded=st.booleans())
def test_places_owners_and_nodes_agree_with_loops(seed: int, level: int, size: int, crowded: bool) -> None:
    rng = np.random.default_rng(seed)
    trie = Trie.build(rng.integers(0, 2 if crowded else size, (N_ITEMS, 3)), [size] * 3)
    beams = [rng.permutation(trie.n_nodes(level))[:4] for _ in range(3)]
    node = np.full((3, 4), -1, dtype=np.int64)
    for row, own in enumerate(beams):
        node[row, rng.permutation(4)[: len(own)]] = own
    children = Children(trie, level, node)
    expected = [
        (request, beam, child)
        for request in range(3)
        for beam in range(4)
        if node[request, beam] >= 0
        for child in range(*(int(own[0]) for own in trie.offsets[level].span(node[request, beam : beam + 1])))
    ]
    assert children.total == len(expected)
    owner = children.owner(np.arange(children.total))
    found = zip(children.request_N[owner], children.pair_N[owner] % 4, children.nodes(), strict=True)
    assert [tuple(int(part) for part in own) for own in found] == expected
    assert children.codes().tolist() == trie.codes_of(level, children.nodes()).tolist()
    assert children.counts().tolist() == [sum(own[0] == request for own in expected) for request in range(3)]
    pairs = sorted({(int(rng.integers(0, 3)), int(rng.integers(0, trie.n_nodes(level + 1)))) for _ in range(40)})
    request, child = np.array(pairs).T
    which, owner, place = children.find(Named(request, child, trie.parent(level, child)))
    at = {(request, child): number for number, (request, _, child) in enumerate(expected)}
    assert dict(zip(which.tolist(), place.tolist(), strict=True)) == {
        number: at[own] for number, own in enumerate(pairs) if own in at
    }
    assert owner.tolist() == children.owner(place).tolist()


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 9999),
    level=st.integers(0, 2),
    kinds=st.lists(st.sampled_from(["none", "half", "few"]), min_size=3, max_size=3),
    n_excluded=st.integers(0, 45),
)
def test_what_is_legal_is_what_is_open(seed: int, level: int, kinds: list[str], n_excluded: int) -> None:
    rng = np.random.default_rng(seed)
    trie = Trie.build(rng.integers(0, 3, (N_ITEMS, 3)), [3] * 3)
    index = MaskIndex(trie, N_ITEMS)
    share = {"half": 0.5, "few": 0.1}
    filters = [
        None if kind == "none" else index.compile(torch.from_numpy(rng.random(N_ITEMS) < share[kind])) for kind in kinds
    ]
    excluded = [torch.from_numpy(rng.integers(-1, N_ITEMS + 3, n_excluded)) for _ in kinds]
    masks = index.requests(list(filters), excluded)
    node = np.stack([rng.integers(-1, trie.n_nodes(level), 1)] * 3)
    children = Children(trie, level, node)
    legal = masks.legal(children)
    expected = masks.open(level + 1, children.spread(children.request_N), children.nodes())
    assert (np.ones(children.total, dtype=bool) if legal is None else legal).tolist() == expected.tolist()


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 9999), level=st.integers(0, 2), share=st.sampled_from([0.0, 0.3, 0.9]))
def test_the_memory_is_mixed_into_a_list_as_into_each_child(seed: int, level: int, share: float) -> None:
    rng = np.random.default_rng(seed)
    trie = Trie.build(rng.integers(0, 4, (N_ITEMS, 3)), [4] * 3, rows=np.arange(40))
    named = int(rng.integers(0, 30))
    recalled = (rng.integers(0, 2, named), rng.integers(0, N_ITEMS, named), rng.random(named).astype(np.float32))
    request, item, amount = (torch.from_numpy(own) for own in recalled)
    guide = Guide(MaskIndex(trie, N_ITEMS), (request, item, amount), share=share)
    node = np.stack([rng.permutation(trie.n_nodes(level))[:1] for _ in range(2)])
    children = Children(trie, level, node)
    log_prob = -rng.random(children.total).astype(np.float32)
    request, parent, child = (
        torch.from_numpy(own)
        for own in (children.spread(children.request_N), children.spread(children.node_N), children.nodes())
    )
    expected = guide.mix(torch.from_numpy(log_prob.copy()), level + 1, request, parent, child)
    guide.mix_children(log_prob, children)
    torch.testing.assert_close(torch.from_numpy(log_prob), expected, rtol=1e-6, atol=1e-6)
    told = [
        sum(
            float(a)
            for r, i, a in zip(*recalled, strict=True)
            if r == own and i < 40 and i in trie.items_under(level + 1, node)
        )
        for own, node in zip(request.tolist(), child.tolist(), strict=True)
    ]
    assert np.allclose(guide.amount(level + 1, request, child).numpy(), told)
