"""From semantic IDs to ordered items: equal to loops over beams and items."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rankloom.decoding.masks import MaskIndex
from rankloom.decoding.memory import Guide
from rankloom.decoding.select import Candidates, expand, leaf_log_share, mix_scores, top_k, with_memory
from rankloom.semantic.trie import Trie

NEVER = float("-inf")


def test_an_ids_probability_is_shared_by_smoothed_prior_and_none_is_lost() -> None:
    trie = Trie.build(np.array([[0, 1], [0, 1], [1, 0]]), [2, 2], np.array([1.0, 5.0, 0.0]))
    share = leaf_log_share(trie, torch.tensor([1.0, 5.0, 0.0]))
    # items of one ID come by prior: item 1 (5 + 1 of 8), item 0 (1 + 1 of 8); an ID of one item gives it all
    assert share.exp().tolist() == pytest.approx([6 / 8, 2 / 8, 1.0])
    even = leaf_log_share(trie, torch.zeros(3), smoothing=2.0)
    assert even.exp().tolist() == pytest.approx([0.5, 0.5, 1.0])


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 9999), shared_filter=st.booleans(), n_excluded=st.integers(0, 12))
def test_expanding_equals_a_loop(seed: int, shared_filter: bool, n_excluded: int) -> None:
    rng = np.random.default_rng(seed)
    n_items, batch, width = 30, 3, 5
    trie = Trie.build(rng.integers(0, 3, (n_items, 2)), [3, 3], rng.random(n_items))
    share = torch.from_numpy(rng.normal(size=n_items).astype(np.float32))
    leaf = torch.stack([torch.from_numpy(rng.permutation(trie.n_leaves)[:width]) for _ in range(batch)])
    leaf[0, 3:] = -1
    log_prob = torch.from_numpy(rng.normal(size=(batch, width)).astype(np.float32)).masked_fill(leaf < 0, NEVER)
    allowed = torch.from_numpy(rng.random(n_items if shared_filter else (batch, n_items)) < 0.6)
    excluded = [torch.from_numpy(rng.integers(0, n_items, n_excluded)) for _ in range(batch)]
    found = expand(
        leaf, log_prob, trie=trie, log_share=share,
        allowed=allowed, excluded=excluded,
    )  # fmt: skip
    longest = 0
    for row in range(batch):
        expected = []
        for beam, own in enumerate(leaf[row].tolist()):
            begin, size = (int(part[0]) for part in trie.places_of(np.array([max(own, 0)])))
            for place in range(begin, begin + size) if own >= 0 else ():
                item = int(trie.leaf_items[place])
                passes = bool(allowed[item] if shared_filter else allowed[row, item])
                if passes and item not in excluded[row].tolist():
                    expected.append((item, float(log_prob[row, beam] + share[place]), beam))
        n = len(expected)
        longest = max(longest, n)
        real = zip(found.item_BC[row, :n], found.log_prob_BC[row, :n], found.beam_BC[row, :n], strict=True)
        assert [(int(item), float(score), int(beam)) for item, score, beam in real] == expected
        assert (found.item_BC[row, n:] == -1).all()
        assert (found.log_prob_BC[row, n:] == NEVER).all()
    assert found.item_BC.shape == (batch, max(1, longest))


def test_without_rules_every_item_of_every_beam_comes() -> None:
    trie = Trie.build(np.array([[0], [0], [1]]), [2])
    leaf = torch.tensor([[1, 0], [-1, -1]])
    found = expand(leaf, torch.zeros(2, 2), trie=trie, log_share=torch.zeros(3))
    assert found.item_BC.tolist() == [[2, 0, 1], [-1, -1, -1]]
    assert found.beam_BC[0].tolist() == [0, 1, 1]


def test_the_mix_weighs_generator_and_head_and_is_a_distribution() -> None:
    generated = torch.tensor([[-1.0, -2.0, NEVER]])
    head = torch.tensor([[0.0, 3.0, NEVER]])
    both = torch.tensor([-1.0, -2.0]).log_softmax(0) * 0.25 + torch.tensor([0.0, 3.0]).log_softmax(0) * 0.75
    mixed = mix_scores(generated, head, 0.25)
    assert mixed[0, :2].tolist() == pytest.approx(both.log_softmax(0).tolist())
    assert mixed[0, 2] == NEVER
    assert float(mixed.exp().sum()) == pytest.approx(1.0)
    assert mix_scores(generated, head, 1.0).argmax() == 0
    assert mix_scores(generated, head, 0.0).argmax() == 1
    assert mix_scores(generated, None, 0.0)[0, :2].exp().tolist() == pytest.approx(
        [1 / (1 + math.exp(-1)), 1 / (1 + math.e)]
    )
    # one scale for both: adding a constant to either changes nothing
    torch.testing.assert_close(mix_scores(generated + 7, head - 3, 0.25), mixed)
    assert (mix_scores(torch.full((1, 2), NEVER), torch.zeros(1, 2), 0.5) == NEVER).all()


def test_the_best_come_first_ties_keep_their_order_and_gaps_are_padded() -> None:
    candidates = Candidates(torch.tensor([[7, 8, 9, -1]]), torch.zeros(1, 4), torch.tensor([[0, 1, 2, 0]]))
    scores = torch.tensor([[-1.0, -0.5, -1.0, NEVER]])
    items, best, beams = top_k(candidates, scores, 3)
    assert items.tolist() == [[8, 7, 9]]
    assert best.tolist() == [[-0.5, -1.0, -1.0]]
    assert beams.tolist() == [[1, 0, 2]]
    items, best, beams = top_k(candidates, scores, 6)
    assert items.tolist() == [[8, 7, 9, -1, -1, -1]]
    assert best[0, 3:].tolist() == [NEVER] * 3
    assert beams.shape == (1, 6)
    assert top_k(candidates, scores, 1)[0].tolist() == [[8]]


def test_the_memory_takes_its_share_of_the_head_where_it_has_something_to_say() -> None:
    trie = Trie.build(np.array([[0], [1], [1], [2]]), [3])
    # request 0 is reminded of rows 0 (amount 1) and 2 (amount 3), request 1 of nothing
    recalled = (torch.tensor([0, 0]), torch.tensor([0, 2]), torch.tensor([1.0, 3.0]))
    guide = Guide(MaskIndex(trie, 4), recalled, share=0.5)
    item = torch.tensor([[2, 0, 1, -1], [3, 0, -1, -1]])
    head = torch.tensor([[0.0, 1.0, 2.0, NEVER], [1.0, 1.0, NEVER, NEVER]])
    mixed = with_memory(head, item, guide, 0.25)
    own = head.softmax(1)
    told = torch.tensor([[0.75, 0.25, 0.0, 0.0]])
    torch.testing.assert_close(mixed[0, :3].exp(), (0.75 * own[0] + 0.25 * told[0])[:3])
    assert mixed[0, 3] == NEVER
    torch.testing.assert_close(mixed[1], head[1].log_softmax(0))
