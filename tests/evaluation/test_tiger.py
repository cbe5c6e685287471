"""The encoder-decoder baseline: cached steps equal teacher forcing, padding is not read, beams are exact, and it learns."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from rankloom.data.sequences import TEST
from rankloom.decoding.beam import beam_search
from rankloom.decoding.masks import MaskIndex
from rankloom.evaluation.tiger import BUCKETS, FARTHEST, Tiger, TigerNet, relative_bucket
from rankloom.semantic.ids import SemanticIds
from rankloom.semantic.trie import Trie
from tests.evaluation.logs import leave_one_out

SMALL = {"dim": 32, "layers": 2, "heads": 2, "width": 16, "ffn": 64}


def net(sizes: tuple[int, ...] = (4, 3, 2), seed: int = 0) -> TigerNet:
    torch.manual_seed(seed)
    return TigerNet(sizes, **SMALL).eval()


def test_buckets_are_exact_near_and_meet_far_away() -> None:
    near = relative_bucket(torch.arange(-7, 8), both_ways=True)
    assert len(set(near.tolist())) == 15
    assert int(relative_bucket(torch.tensor([FARTHEST * 9]), both_ways=True)) == BUCKETS - 1
    past = relative_bucket(torch.arange(-15, 1), both_ways=False)
    assert past.tolist() == list(range(15, -1, -1))
    assert relative_bucket(torch.tensor([5]), both_ways=False).tolist() == [0]


@torch.no_grad()
def test_padding_changes_nothing() -> None:
    own = net()
    tokens = torch.tensor([[2, 3, 7, 9]])
    padded = torch.cat([tokens, torch.zeros(1, 5, dtype=torch.long)], dim=1)
    codes = torch.tensor([[1, 2, 0]])
    for plain, wide in zip(own.logits(own.encode(tokens), codes), own.logits(own.encode(padded), codes), strict=True):
        torch.testing.assert_close(plain, wide, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_a_beam_as_wide_as_the_trie_is_brute_force() -> None:
    own, rng = net(), np.random.default_rng(0)
    codes = np.unique(np.stack([rng.integers(0, size, 40) for size in own.codebook_sizes], 1), axis=0)
    trie = Trie.build(codes, own.codebook_sizes)
    prefix = own.encode(torch.randint(2, 11, (3, 7)))
    masks = MaskIndex(trie, len(codes)).requests([None] * 3)
    found = beam_search(own, prefix, trie, beam=len(codes), masks=masks)
    slow = own.score(prefix, torch.from_numpy(codes))
    for row in range(3):
        best = slow[row].sort(descending=True)
        torch.testing.assert_close(found.log_prob_BW[row], best.values, atol=1e-5, rtol=1e-5)
        assert torch.equal(found.codes_BWL[row], torch.from_numpy(codes)[best.indices])


def ring(people: int = 60, n_items: int = 12) -> tuple[list[list[int]], SemanticIds]:
    """Everybody walks on along a ring of items, from a place of their own."""
    lists = [[(start + step) % n_items for step in range(8)] for start in range(people)]
    codes = np.array([[item // 4, item % 4] for item in range(n_items)])
    return lists, SemanticIds(codes=codes, codebook_sizes=(3, 4), prior=np.ones(n_items, dtype=np.float32))


@pytest.fixture(scope="module")
def trained() -> tuple[Tiger, np.ndarray]:
    lists, ids = ring()
    sequences = leave_one_out(lists, 12)
    system = Tiger(ids, batch=64, max_epochs=12, warmup=10, learning_rate=5e-3, quiet=True, **SMALL)
    system.fit(sequences, None, 0)
    return system, system.rank(sequences, sequences.cases(TEST), 5, mask_seen=True)


def test_it_learns_what_comes_next_and_shows_nothing_seen(trained: tuple[Tiger, np.ndarray]) -> None:
    lists, _ = ring()
    _, found = trained
    assert np.mean([own[0] == rest[-1] for own, rest in zip(found, lists, strict=True)]) > 0.9
    for own, rest in zip(found, lists, strict=True):
        assert not set(own[own >= 0].tolist()) & set(rest[:-1])


def test_one_seed_is_one_result(trained: tuple[Tiger, np.ndarray]) -> None:
    lists, ids = ring()
    sequences = leave_one_out(lists, 12)
    again = Tiger(ids, batch=64, max_epochs=12, warmup=10, learning_rate=5e-3, quiet=True, **SMALL)
    again.fit(sequences, None, 0)
    assert np.array_equal(again.rank(sequences, sequences.cases(TEST), 5, mask_seen=True), trained[1])


def test_steps_may_be_limited() -> None:
    lists, ids = ring()
    sequences = leave_one_out(lists, 12)
    taken = []

    class Counted(Tiger):
        def _loss(self, *given: Any) -> torch.Tensor:
            taken.append(1)
            return super()._loss(*given)

    Counted(ids, batch=64, max_epochs=12, max_steps=7, warmup=2, quiet=True, **SMALL).fit(sequences, None, 0)
    assert len(taken) == 7
