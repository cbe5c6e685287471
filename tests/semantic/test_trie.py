from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rankloom.errors import RankloomError
from rankloom.semantic.trie import Trie


def random_codes(seed: int, n: int, size: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, size, (n, 3))


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 9999), n=st.integers(1, 80), size=st.integers(1, 6))
def test_leaves_are_exactly_the_catalogues_semantic_ids(seed: int, n: int, size: int) -> None:
    codes = random_codes(seed, n, size)
    trie = Trie.build(codes, [size] * 3)
    expected = sorted({tuple(row) for row in codes.tolist()})
    assert [tuple(row) for row in trie.leaf_codes().tolist()] == expected
    leaf = trie.leaf_of_item(n)
    for row in range(n):
        assert trie.leaf_codes()[leaf[row]].tolist() == codes[row].tolist()


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 9999), n=st.integers(1, 60))
def test_items_under_a_prefix_are_those_that_start_with_it(seed: int, n: int) -> None:
    codes = random_codes(seed, n, 4)
    trie = Trie.build(codes, [4, 4, 4])
    for prefix in [(), (1,), (2, 3), (0, 0, 0), tuple(codes[0])]:
        expected = [i for i in range(n) if tuple(codes[i, : len(prefix)]) == prefix]
        node = trie.node_of_prefix(prefix)
        if not expected:
            assert node is None
        else:
            assert node is not None
            assert sorted(trie.items_under(len(prefix), node).tolist()) == expected


def test_items_of_one_id_are_ordered_by_prior_then_row() -> None:
    codes = np.array([[1, 1], [1, 1], [0, 1], [1, 1]])
    trie = Trie.build(codes, [2, 2], np.array([1.0, 5.0, 0.0, 5.0]))
    assert trie.leaf_items.tolist() == [2, 1, 3, 0]


def test_rows_choose_the_catalogue() -> None:
    codes = random_codes(0, 20, 3)
    trie = Trie.build(codes, [3, 3, 3], rows=np.array([4, 9]))
    assert sorted(trie.leaf_items.tolist()) == [4, 9]
    assert (trie.leaf_of_item(20) >= 0).sum() == 2


def test_ancestors_agree_with_prefixes() -> None:
    trie = Trie.build(random_codes(1, 50, 4), [4, 4, 4])
    for depth, nodes in enumerate(trie.ancestors(), start=1):
        for leaf, node in enumerate(nodes.tolist()):
            begin, end = trie.leaf_range(depth, node)
            assert begin <= leaf < end


def test_an_empty_catalogue_has_no_leaves() -> None:
    trie = Trie.build(np.zeros((0, 3), dtype=int), [4, 4, 4])
    assert (trie.n_leaves, trie.n_items) == (0, 0)


def test_codes_outside_their_codebook_are_refused() -> None:
    with pytest.raises(RankloomError, match="outside its codebook"):
        Trie.build(np.array([[0, 4]]), [4, 4])
    with pytest.raises(RankloomError, match="do not fit"):
        Trie.build(np.array([[0, 1]]), [4, 4, 4])


def test_a_small_id_costs_few_bytes() -> None:
    trie = Trie.build(random_codes(0, 5000, 256), [256] * 3)
    # codes of one byte, rows of four, and where nodes have more than one child
    assert trie.nbytes() / 5000 < 10


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 9999), n=st.integers(0, 80), size=st.sampled_from([3, 8192, 2**22]), weighted=st.booleans())
def test_rows_are_ordered_by_codes_then_prior_then_row_however_large_the_codebooks(
    seed: int, n: int, size: int, weighted: bool
) -> None:
    rng = np.random.default_rng(seed)
    codes = rng.choice(rng.integers(0, size, 3), (n, 3))
    prior = rng.integers(0, 3, n).astype(np.float32) if weighted else None
    rows = rng.permutation(n)[: rng.integers(0, n + 1)]
    trie = Trie.build(codes, [size] * 3, prior, rows=rows)
    weight = np.zeros(n) if prior is None else prior
    assert trie.leaf_items.tolist() == sorted(rows.tolist(), key=lambda row: (*codes[row], -weight[row], row))
    for level, start in enumerate(trie.child_start):
        assert start[-1] == trie.n_nodes(level + 1)
        assert len(start) == (trie.n_nodes(level) if len(rows) else int(level == 0)) + 1


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 9999),
    n=st.integers(1, 80),
    sizes=st.tuples(*[st.sampled_from([1, 2, 128, 256, 257, 32768, 65536, 65537])] * 3),
    unique=st.booleans(),
)
def test_what_is_asked_of_nodes_is_what_the_codes_say_at_the_edges_of_every_type(
    seed: int, n: int, sizes: tuple[int, ...], unique: bool
) -> None:
    rng = np.random.default_rng(seed)
    # the smallest and the largest codes of every codebook, and some between
    codes = np.stack([rng.choice([0, size // 2, size - 1], n) for size in sizes], axis=1)
    if unique:
        codes = np.unique(codes, axis=0)
        n = len(codes)
    trie = Trie.build(codes, sizes)
    names = [sorted({tuple(row[:depth]) for row in codes.tolist()}) for depth in range(4)]
    leaf = trie.leaf_of_item(n).numpy()
    assert [names[3][own] for own in leaf] == [tuple(row) for row in codes.tolist()]
    for depth, nodes in enumerate(trie.path(leaf), start=1):
        assert [names[depth][own] for own in nodes] == [tuple(row[:depth]) for row in codes.tolist()]
    for level in range(3):
        every = np.arange(trie.n_nodes(level))
        begin, size = trie.children(level, every)
        for node, first, count in zip(every, begin, size, strict=True):
            own = names[level + 1][first : first + count]
            assert [name[:-1] for name in own] == [names[level][node]] * count
            assert trie.codes_of(level, np.arange(first, first + count)).tolist() == [name[-1] for name in own]
        assert sum(size) == trie.n_nodes(level + 1)
        some = rng.permutation(every)
        ranges = trie.codes_of_ranges(level, begin[some], size[some])
        expected = [names[level + 1][c][-1] for v in some for c in range(begin[v], begin[v] + size[v])]
        assert ranges.tolist() == expected
        assert [len(trie.items_under(level, v)) for v in every] == trie.n_items_under(level, every).tolist()
    begin, size = trie.places_of(np.arange(trie.n_leaves))
    assert (size == 1).all() or not unique
    for own in range(trie.n_leaves):
        rows = [row for row in range(n) if tuple(codes[row].tolist()) == names[3][own]]
        assert trie.items_of(own).tolist() == rows
    value = rng.integers(0, 9, n)
    for depth, total in enumerate(trie.sums(value[trie.leaf_items.numpy()]), start=1):
        below = [value[[tuple(row[:depth]) == name for row in codes.tolist()]].sum() for name in names[depth]]
        assert total.tolist() == below
    kinds = [np.uint8 if size <= 256 else np.uint16 if size <= 65536 else np.uint32 for size in sizes]
    assert [own.dtype for own in trie.codes] == kinds


def test_an_empty_catalogue_answers_what_it_is_asked() -> None:
    trie = Trie.build(np.zeros((0, 2), dtype=int), [4, 4])
    nothing = np.zeros(0, dtype=np.int64)
    assert [own.tolist() for own in trie.children(0, np.array([0]))] == [[0], [0]]
    assert trie.n_items_under(0, np.array([0])).tolist() == [0]
    assert [own.tolist() for own in trie.path(nothing)] == [[], []]
    assert [own.tolist() for own in trie.sums(nothing)] == [[], []]
    assert trie.leaf_of_item(2).tolist() == [-1, -1]


def test_a_catalogue_of_one_item_an_id_costs_its_codes_and_rows() -> None:
    codes = np.stack([np.arange(4096) // 64, np.arange(4096) % 64, np.zeros(4096, dtype=int)], axis=1)
    trie = Trie.build(codes, [300, 300, 300])
    # the root's two beginnings and those of 64 nodes with 64 children each
    assert trie.nbytes() == 64 * 2 + 2 * 4096 * 2 + 4096 * 4 + (2 + 65) * 4
