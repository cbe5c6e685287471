"""The trace tells the beam's way: prefixes, parents, what was legal, what is left."""

from __future__ import annotations

import torch

from rankloom.decoding.beam import beam_search
from rankloom.decoding.masks import MaskIndex
from rankloom.decoding.trace import trace_of
from rankloom.semantic.trie import Trie
from tests.decoding.test_beam import context, small_model


@torch.no_grad()
def test_every_beam_continues_its_parent() -> None:
    model = small_model()
    trie = Trie.build(model.items.codes_IQ.numpy(), model.codebook_sizes)
    index = MaskIndex(trie, 60)
    few = index.compile(torch.arange(60) < 9)
    masks = index.requests([None, few])
    result = beam_search(model, model.prefill(context([4, 2])), trie, beam=[12, 3], masks=masks, trace=True)
    for row, filtered in enumerate([False, True]):
        trace = trace_of(result, trie, row, {"catalogue": 60})
        assert len(trace.levels) == 3
        for depth, level in enumerate(trace.levels, start=1):
            assert len(level) == min([12, 3][row], trace.legal_continuations[depth - 1])
            assert [beam.log_prob for beam in level] == sorted((beam.log_prob for beam in level), reverse=True)
            for beam in level:
                assert len(beam.codes) == depth
                parent = trace.levels[depth - 2][beam.parent].codes if depth > 1 else ()
                assert beam.codes[:-1] == parent
                node = trie.node_of_prefix(beam.codes)
                assert node is not None
                assert beam.n_items == len(trie.items_under(depth, node))
        legal = {tuple(codes[:1]) for codes in model.items.codes_IQ[: 9 if filtered else 60].tolist()}
        assert trace.legal_continuations[0] == len(legal)
        last = [beam.codes for beam in trace.levels[-1]]
        assert last == [tuple(codes) for codes in result.codes_BWL[row].tolist() if codes[0] >= 0]
    assert len(trace_of(result, trie, 0, {}, width=2).levels[1]) == 2
    assert trace.to_dict()["funnel"] == {"catalogue": 60}


@torch.no_grad()
def test_levels_are_kept_only_when_asked_for() -> None:
    model = small_model()
    trie = Trie.build(model.items.codes_IQ.numpy(), model.codebook_sizes)
    masks = MaskIndex(trie, 60).requests([None])
    assert beam_search(model, model.prefill(context([4])), trie, beam=2, masks=masks).levels == []
