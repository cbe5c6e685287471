"""Beginnings of children, whichever way they are kept, against a loop over nodes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rankloom.semantic.offsets import Offsets, narrowest


@settings(max_examples=80, deadline=None)
@given(sizes=st.lists(st.sampled_from([1, 1, 1, 1, 2, 5]), min_size=1, max_size=60))
def test_every_way_of_keeping_gives_what_counting_gives(sizes: list[int]) -> None:
    first = np.concatenate([np.arange(size) == 0 for size in sizes])
    offsets = Offsets.of_firsts(first)
    begin = np.cumsum([0, *sizes])
    nodes = np.arange(len(sizes))
    found = offsets.span(nodes)
    assert found[0].tolist() == begin[:-1].tolist()
    assert found[1].tolist() == begin[1:].tolist()
    assert offsets.starts().tolist() == begin.tolist()
    owner = np.repeat(nodes, sizes)
    assert offsets.parents().tolist() == owner.tolist()
    assert offsets.parent(np.arange(len(owner))).tolist() == owner.tolist()
    # any order, repeats included
    some = np.random.default_rng(len(owner)).integers(0, len(owner), 20)
    assert offsets.parent(some).tolist() == owner[some].tolist()
    assert offsets.span(owner[some])[0].tolist() == begin[owner[some]].tolist()


def test_only_what_is_not_implied_is_kept() -> None:
    alone = Offsets.of_firsts(np.ones(1000, dtype=np.bool_))
    assert alone.nbytes() == 0
    few = np.ones(1000, dtype=np.bool_)
    few[[5, 900]] = False
    assert Offsets.of_firsts(few).nbytes() == 2 * 2 * 4
    many = np.arange(1000) % 3 == 0
    assert Offsets.of_firsts(many).nbytes() == (int(many.sum()) + 1) * 4
    assert Offsets.of_root(7).span(np.array([0]))[1].tolist() == [7]


@pytest.mark.parametrize(("largest", "kind"), [(2**31 - 1, np.int32), (2**31, np.int64)])
def test_indices_are_as_narrow_as_their_range_allows(largest: int, kind: type) -> None:
    assert narrowest(largest) is kind
    assert kind(largest) == largest
