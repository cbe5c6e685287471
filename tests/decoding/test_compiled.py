"""The compiled cut to the beam against its eager twin: every option, any mix of requests, the same answer."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from rankloom import compiling
from rankloom.decoding import beam as beam_module
from rankloom.decoding.beam import BeamResult, beam_search
from rankloom.decoding.masks import MaskIndex
from rankloom.decoding.memory import Guide
from rankloom.semantic.offsets import Offsets
from rankloom.semantic.trie import Trie
from tests.decoding.test_beam import TiedGenerator
from tests.decoding.test_exposure import DAY, log, tables

pytestmark = pytest.mark.skipif(not compiling.available(), reason="numba is not installed")


class Drawn:
    """Logits drawn by request, level and the code before, so that every beam of a code has the same."""

    def __init__(self, batch: int, sizes: tuple[int, ...], seed: int, *, rounded: bool = False) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.codebook_sizes = sizes
        most = max(sizes) + 1
        self.tables = [2 * torch.randn(batch, most, size, generator=generator) for size in sizes]
        if rounded:
            self.tables = [own.round() for own in self.tables]

    def step(self, prefix: Any, level: int, codes_BW: Tensor | None, cache: Any) -> tuple[Tensor, Any]:
        own = self.tables[level]
        if codes_BW is None:
            return own[:, :1], None
        return own.gather(1, codes_BW[:, :, None].expand(-1, -1, own.shape[2])), None

    def reorder(self, cache: Any, parent_BW: Tensor) -> Any:
        return cache

    def score(self, prefix: Any, codes_NL: Tensor) -> Tensor:
        raise NotImplementedError


def assert_same(found: BeamResult, twin: BeamResult) -> None:
    assert found.leaf_BW.tolist() == twin.leaf_BW.tolist()
    assert found.codes_BWL.tolist() == twin.codes_BWL.tolist()
    torch.testing.assert_close(found.log_prob_BW, twin.log_prob_BW, rtol=1e-5, atol=2e-5)
    for own, other in zip(found.levels, twin.levels, strict=True):
        assert own.node_BW.tolist() == other.node_BW.tolist()
        assert own.parent_BW.tolist() == other.parent_BW.tolist()
        assert own.n_legal_B.tolist() == other.n_legal_B.tolist()


@settings(max_examples=120, deadline=None)
@given(
    seed=st.integers(0, 99_999),
    n_items=st.integers(1, 300),
    sizes=st.sampled_from([(6, 6, 6), (40, 3), (3, 300, 5), (7,)]),
    beams=st.lists(st.integers(1, 60), min_size=1, max_size=4),
    normalise=st.sampled_from(["codebook", "trie"]),
    share=st.sampled_from([None, 0.0, 0.4, 0.9]),
    lifted=st.booleans(),
)
def test_any_search_equals_the_eager_one(
    seed: int, n_items: int, sizes: tuple[int, ...], beams: list[int], normalise: Literal["codebook", "trie"],
    share: float | None, lifted: bool,
) -> None:  # fmt: skip
    rng = np.random.default_rng(seed)
    batch = len(beams)
    codes = np.stack([rng.integers(0, size, n_items) for size in sizes], axis=1)
    trie = Trie.build(codes, sizes)
    index = MaskIndex(trie, n_items)
    model = Drawn(batch, sizes, seed)
    filters = [index.compile(torch.from_numpy(rng.random(n_items) < 0.6)) if rng.random() < 0.5 else None for _ in beams]
    excluded = [torch.from_numpy(rng.integers(0, n_items, int(rng.integers(0, 40)))) for _ in beams]
    guide = lift = None
    if share is not None:
        n_named = int(rng.integers(0, 80))
        recalled = (rng.integers(0, batch, n_named), rng.integers(0, n_items, n_named), rng.random(n_named).astype(np.float32))
        guide = Guide(index, tuple(map(torch.from_numpy, recalled)), share=share)  # type: ignore[arg-type]
    if lifted:
        own = tables(*log(max(20, n_items), seed % 7), MaskIndex(Trie.build(codes, sizes), n_items)) if n_items >= 20 else None
        if own is not None:
            when = torch.from_numpy(rng.uniform(20, 40, batch)) * DAY
            lift = own.lift(when.double(), 0.7)
    both = [
        beam_search(
            model, None, trie, beam=beams, masks=index.requests(list(filters), excluded), normalise=normalise,
            guide=guide, lift=lift, trace=True, engine=engine,
        )
        for engine in ("compiled", "eager")
    ]  # fmt: skip
    assert_same(*both)


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 99_999), beam=st.integers(1, 90), n_items=st.integers(1, 400))
def test_ties_are_broken_by_the_trie(seed: int, beam: int, n_items: int) -> None:
    rng = np.random.default_rng(seed)
    sizes = (5, 200)
    # every beam of a level scores its children alike, in whole numbers
    trie = Trie.build(np.stack([rng.integers(0, size, n_items) for size in sizes], axis=1), sizes)
    index = MaskIndex(trie, n_items)
    masks = index.requests([None], [torch.from_numpy(rng.integers(0, n_items, 5))])
    model = Drawn(1, sizes, seed, rounded=True)
    model.tables[1] = model.tables[1][:, :1].expand(-1, 6, -1).contiguous()
    model.tables[0] = torch.zeros_like(model.tables[0])
    both = [beam_search(model, None, trie, beam=beam, masks=masks, engine=engine) for engine in ("compiled", "eager")]
    assert_same(*both)


def test_ties_go_to_the_first_in_the_trie() -> None:
    codes = np.array([[a, b] for a in (3, 0, 2) for b in (2, 1, 3)])
    trie = Trie.build(codes, [4, 4])
    masks = MaskIndex(trie, 9).requests([None, None])
    for beam in (1, 3, 5):
        result = beam_search(TiedGenerator(), 2, trie, beam=beam, masks=masks, engine="compiled")
        assert result.leaf_BW.tolist() == [list(range(beam))] * 2


@pytest.mark.parametrize("normalise", ["codebook", "trie"])
@pytest.mark.parametrize("broken", [float("nan"), float("inf")])
def test_logits_that_are_no_numbers_are_answered_as_the_eager_engine_does(
    normalise: Literal["codebook", "trie"], broken: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    trie = Trie.build(np.array([[0, 1], [2, 3], [1, 1]]), [4, 4])
    masks = MaskIndex(trie, 3).requests([None])
    model = Drawn(1, (4, 4), 0)
    model.tables[1][0, 2, 3] = broken
    asked: list[int] = []
    eager = beam_module._continuations
    monkeypatch.setattr(beam_module, "_continuations", lambda *own: asked.append(own[1]) or eager(*own))
    both = [
        beam_search(model, None, trie, beam=3, masks=masks, normalise=normalise, engine=engine)
        for engine in ("compiled", "eager")
    ]
    assert asked == [1, 0, 1]
    np.testing.assert_array_equal(both[0].leaf_BW.numpy(), both[1].leaf_BW.numpy())
    np.testing.assert_allclose(both[0].log_prob_BW.numpy(), both[1].log_prob_BW.numpy(), rtol=1e-5)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 9999), n=st.integers(1, 3000), share=st.floats(0, 0.6))
def test_spans_are_those_of_the_offsets(seed: int, n: int, share: float) -> None:
    from rankloom.semantic.offsets import RUN
    from rankloom.semantic.trie_kernels import span

    first = np.random.default_rng(seed).random(n) >= share
    first[0] = True
    own = Offsets.of_firsts(first)
    nothing = np.zeros(0, np.int32)
    start = nothing if own.start is None else own.start
    further = nothing if own.further_parent is None else own.further_parent
    node = np.arange(own.n_nodes)
    begin, end = own.span(node)
    found = [span(start, further, own.runs, RUN, number) for number in node]
    assert found == list(zip(begin.tolist(), end.tolist(), strict=True))


def test_a_new_catalogue_compiles_nothing() -> None:
    from rankloom.decoding import frontier_kernels

    model = Drawn(1, (6, 6, 6), 0)
    rng = np.random.default_rng(0)

    def search(n_items: int) -> None:
        trie = Trie.build(rng.integers(0, 6, (n_items, 3)), (6, 6, 6))
        beam_search(model, None, trie, beam=8, masks=MaskIndex(trie, n_items).requests([None]), engine="compiled")

    search(200)
    known = len(frontier_kernels.extend.signatures)  # type: ignore[attr-defined]
    for n_items in (1, 50, 5000):
        search(n_items)
    assert len(frontier_kernels.extend.signatures) == known  # type: ignore[attr-defined]
