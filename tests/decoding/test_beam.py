"""Beam search against its slow twin: brute force over the catalogue."""

from __future__ import annotations

import itertools
from typing import Any, Literal

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from rankloom.config import Config
from rankloom.decoding.beam import _best, _Scored, beam_search
from rankloom.decoding.children import Children
from rankloom.decoding.masks import MaskIndex
from rankloom.models.context import ContextBatch
from rankloom.models.lazy_decoder import LazyDecoder
from rankloom.semantic.trie import Trie


def small_model(n_items: int = 60, *, seed: int = 0, levels: int = 3, size: int = 5, **model: Any) -> LazyDecoder:
    torch.manual_seed(seed)
    config = Config.preset_config("tiny").with_overrides([f"model.{k}={v}" for k, v in model.items()])
    rng = np.random.default_rng(seed)
    codes = torch.from_numpy(rng.integers(0, size, (n_items, levels)))
    decoder = LazyDecoder.from_config(
        config,
        codes_IQ=codes,
        content_IC=torch.from_numpy(rng.normal(size=(n_items, 7)).astype(np.float32)),
        codebook_sizes=[size] * levels,
        n_trained=n_items,
        text_dim=7,
    )
    for parameter in decoder.parameters():  # far from uniform, so that order is meaningful
        if parameter.ndim >= 2:
            torch.nn.init.normal_(parameter, std=0.3)
    return decoder.eval()


def context(lengths: list[int], n_items: int = 60, seed: int = 0) -> ContextBatch:
    rng = np.random.default_rng(seed)
    places = max(1, *lengths)
    rows = [torch.from_numpy(rng.integers(0, n_items, places)) for _ in lengths]
    item = torch.stack([torch.where(torch.arange(places) < n, row, -1) for n, row in zip(lengths, rows, strict=True)])
    zeros = torch.zeros_like(item)
    return ContextBatch(item, zeros + 2, zeros, zeros, zeros, zeros, torch.tensor(lengths))


def brute_force(model: LazyDecoder, prefix: Any, trie: Trie, allowed: list[set[int]]) -> list[list[tuple[int, float]]]:
    """Every leaf that names an allowed item, by teacher-forced probability."""
    scores: Tensor = model.score(prefix, trie.leaf_codes())
    out = []
    for row, own in enumerate(allowed):
        legal = [
            (leaf, float(scores[row, leaf]))
            for leaf in range(trie.n_leaves)
            if any(int(i) in own for i in trie.items_of(leaf))
        ]
        out.append(sorted(legal, key=lambda pair: (-pair[1], pair[0])))
    return out


@torch.no_grad()
@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    share=st.floats(0.0, 1.0),
    n_excluded=st.integers(0, 40),
    lengths=st.lists(st.integers(0, 6), min_size=1, max_size=4),
)
def test_with_a_beam_as_wide_as_the_catalogue_beam_search_equals_brute_force(
    seed: int, share: float, n_excluded: int, lengths: list[int]
) -> None:
    model = small_model(seed=seed % 3)
    rng = np.random.default_rng(seed)
    trie = Trie.build(model.items.codes_IQ.numpy(), model.codebook_sizes)
    index = MaskIndex(trie, 60)
    filters, excluded, allowed = [], [], []
    for _ in lengths:
        passes = torch.from_numpy(rng.random(60) < share)
        out = torch.from_numpy(rng.choice(60, n_excluded, replace=False))
        filters.append(index.compile(passes))
        excluded.append(out)
        allowed.append({i for i in range(60) if passes[i]} - set(out.tolist()))
    prefix = model.prefill(context(lengths, seed=seed))
    result = beam_search(model, prefix, trie, beam=60, masks=index.requests(list(filters), excluded))
    expected = brute_force(model, prefix, trie, allowed)
    for row, own in enumerate(expected):
        found = [int(leaf) for leaf in result.leaf_BW[row] if leaf >= 0]
        assert sorted(found) == sorted(leaf for leaf, _ in own)
        torch.testing.assert_close(
            result.log_prob_BW[row, : len(own)], torch.tensor([p for _, p in own]), rtol=1e-5, atol=1e-5
        )
        # the same order wherever the scores differ by more than rounding
        for (a, pa), (b, pb) in itertools.pairwise(own):
            if pa - pb > 1e-4:
                assert found.index(a) < found.index(b)


@torch.no_grad()
def test_a_batch_of_any_mix_equals_one_by_one() -> None:
    model = small_model()
    trie = Trie.build(model.items.codes_IQ.numpy(), model.codebook_sizes)
    index = MaskIndex(trie, 60)
    batch = context([0, 3, 6])
    filters = [None, index.compile(torch.arange(60) < 30), index.compile(torch.arange(60) % 7 == 0)]
    excluded = [torch.tensor([], dtype=torch.long), torch.tensor([1, 2, 3]), torch.tensor([0, 7, 7])]
    together = beam_search(model, model.prefill(batch), trie, beam=9, masks=index.requests(filters, excluded))
    for row, length in enumerate([0, 3, 6]):
        alone = ContextBatch(
            *(
                getattr(batch, name)[row : row + 1, : max(1, length)]
                for name in ("item_BT", "kind_BT", "watch_BT", "gap_BT", "surface_BT", "position_BT")
            ),
            length_B=torch.tensor([length]),
        )
        single = beam_search(
            model, model.prefill(alone), trie, beam=9, masks=index.requests([filters[row]], [excluded[row]])
        )
        n = int((single.leaf_BW[0] >= 0).sum())
        assert together.leaf_BW[row, :n].tolist() == single.leaf_BW[0, :n].tolist()
        torch.testing.assert_close(together.log_prob_BW[row, :n], single.log_prob_BW[0, :n], rtol=1e-5, atol=1e-5)
        assert (together.leaf_BW[row, n:] == -1).all()


@torch.no_grad()
@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10_000), beams=st.lists(st.integers(1, 70), min_size=2, max_size=4))
def test_requests_of_any_width_filter_and_length_do_not_touch_each_other(seed: int, beams: list[int]) -> None:
    rng = np.random.default_rng(seed)
    model = small_model()
    trie = Trie.build(model.items.codes_IQ.numpy(), model.codebook_sizes)
    index = MaskIndex(trie, 60)
    lengths = rng.integers(0, 7, len(beams)).tolist()
    batch = context(lengths, seed=seed)
    filters = [index.compile(torch.from_numpy(rng.random(60) < 0.5)) if rng.random() < 0.7 else None for _ in beams]
    excluded = [torch.from_numpy(rng.integers(0, 60, int(rng.integers(0, 30)))) for _ in beams]
    together = beam_search(model, model.prefill(batch), trie, beam=beams, masks=index.requests(list(filters), excluded))
    assert together.leaf_BW.shape[1] <= max(beams)
    for row, width in enumerate(beams):
        names = ("item_BT", "kind_BT", "watch_BT", "gap_BT", "surface_BT", "position_BT", "length_B")
        alone = ContextBatch(**{name: getattr(batch, name)[row : row + 1] for name in names})
        masks = index.requests([filters[row]], [excluded[row]])
        single = beam_search(model, model.prefill(alone), trie, beam=width, masks=masks)
        n = single.leaf_BW.shape[1]
        assert n <= width
        assert together.leaf_BW[row, :n].tolist() == single.leaf_BW[0].tolist()
        torch.testing.assert_close(together.log_prob_BW[row, :n], single.log_prob_BW[0], rtol=1e-5, atol=1e-5)
        assert (together.leaf_BW[row, n:] == -1).all()


@torch.no_grad()
@pytest.mark.parametrize("normalise", ["codebook", "trie"])
def test_a_beam_wider_than_a_codebook_keeps_more_prefixes_than_the_codebook_has_codes(
    normalise: Literal["codebook", "trie"],
) -> None:
    model = small_model(size=3, n_items=27)
    trie = Trie.build(model.items.codes_IQ.numpy(), model.codebook_sizes)
    masks = MaskIndex(trie, 27).requests([None])
    result = beam_search(
        model, model.prefill(context([3], n_items=27)), trie, beam=8, masks=masks, normalise=normalise, trace=True
    )
    widths = [int((level.node_BW >= 0).sum()) for level in result.levels]
    assert widths == [min(8, trie.n_nodes(depth)) for depth in (1, 2, 3)]
    assert widths[0] <= 3 < widths[1]


class TiedGenerator:
    """Every code is as likely as every other."""

    codebook_sizes = (4, 4)

    def step(self, prefix: int, level: int, codes_BW: Tensor | None, cache: Any) -> tuple[Tensor, Any]:
        return torch.zeros(prefix, 1 if codes_BW is None else codes_BW.shape[1], 4), None

    def reorder(self, cache: Any, parent_BW: Tensor) -> Any:
        return None

    def score(self, prefix: int, codes_NL: Tensor) -> Tensor:
        return torch.zeros(prefix, len(codes_NL))


@pytest.mark.parametrize("beam", [1, 3, 5])
def test_ties_go_to_the_first_in_the_trie(beam: int) -> None:
    codes = np.array([[a, b] for a in (3, 0, 2) for b in (2, 1, 3)])
    trie = Trie.build(codes, [4, 4])
    index = MaskIndex(trie, 9)
    result = beam_search(TiedGenerator(), 2, trie, beam=beam, masks=index.requests([None, None]))
    # a beam keeps the first prefixes, and of those the first leaves
    assert result.leaf_BW.tolist() == [list(range(beam))] * 2


@torch.no_grad()
@pytest.mark.parametrize(
    "options", [{}, {"l_kv": 2}, {"s_kv": 2}, {"g_kv": 1}, {"moe_experts": 4, "moe_first_dense": 1}]
)
def test_cached_decoding_equals_teacher_forcing(options: dict[str, int]) -> None:
    model = small_model(**options)
    trie = Trie.build(model.items.codes_IQ.numpy(), model.codebook_sizes)
    prefix = model.prefill(context([4, 2]))
    masks = MaskIndex(trie, 60).requests([None, None])
    result = beam_search(model, prefix, trie, beam=7, masks=masks)
    for row in range(2):
        recomputed = model.score(prefix, result.codes_BWL[row])[row]
        torch.testing.assert_close(result.log_prob_BW[row], recomputed, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_trie_normalisation_is_a_distribution_over_the_catalogue() -> None:
    model = small_model()
    trie = Trie.build(model.items.codes_IQ.numpy(), model.codebook_sizes)
    masks = MaskIndex(trie, 60).requests([None])
    result = beam_search(model, model.prefill(context([3])), trie, beam=200, masks=masks, normalise="trie")
    assert float(result.log_prob_BW.exp().sum()) == pytest.approx(1.0, abs=1e-4)


@torch.no_grad()
def test_nothing_allowed_is_an_empty_answer() -> None:
    model = small_model()
    trie = Trie.build(model.items.codes_IQ.numpy(), model.codebook_sizes)
    index = MaskIndex(trie, 60)
    nothing = index.compile(torch.zeros(60, dtype=torch.bool))
    result = beam_search(model, model.prefill(context([3, 2])), trie, beam=5, masks=index.requests([nothing, None]))
    assert (result.leaf_BW[0] == -1).all()
    assert (result.leaf_BW[1] >= 0).all()


def test_beams_of_no_width_or_number_are_refused() -> None:
    trie = Trie.build(np.array([[0, 1]]), [4, 4])
    masks = MaskIndex(trie, 1).requests([None])
    for beam in (0, -1, [0]):
        with pytest.raises(ValueError, match="at least 1"):
            beam_search(TiedGenerator(), 1, trie, beam=beam, masks=masks)
    with pytest.raises(ValueError, match="2 beam widths for 1 requests"):
        beam_search(TiedGenerator(), 1, trie, beam=[3, 3], masks=masks)


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 9999),
    counts=st.lists(st.integers(0, 900), min_size=1, max_size=3),
    beams=st.lists(st.integers(1, 12), min_size=3, max_size=3),
    ties=st.booleans(),
    share=st.sampled_from([None, 0.5, 0.01]),
)
def test_the_best_of_a_long_list_are_those_of_a_full_sort(
    seed: int, counts: list[int], beams: list[int], ties: bool, share: float | None
) -> None:
    rng = np.random.default_rng(seed)
    # one level: the children of the root, some of them illegal
    size = max(counts) + 1
    trie = Trie.build(np.arange(size)[:, None], [size])
    batch = len(counts)
    children = Children(trie, 0, np.zeros((batch, 1), dtype=np.int64))
    score = rng.normal(size=children.total).astype(np.float32)
    if ties:
        score = score.round(0)
    legal = None if share is None else rng.random(children.total) < share
    beam = np.array(beams[:batch])
    kept = _best(_Scored(children, children.codes(), score, legal), beam)
    expected = []
    for request in range(batch):
        own = [place for place in range(size) if legal is None or legal[request * size + place]]
        own = sorted(own, key=lambda place, at=request * size: (-score[at + place], place))[: beam[request]]
        expected += [(request, column, place) for column, place in enumerate(own)]
    rows, columns = np.nonzero(kept.node_BP >= 0)
    found = zip(rows.tolist(), columns.tolist(), kept.node_BP[rows, columns].tolist(), strict=True)
    assert list(found) == expected
    assert kept.score_BP[rows, columns].tolist() == [score[request * size + place] for request, _, place in expected]
