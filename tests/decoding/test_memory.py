"""The behaviour memory: what it recalls, and that interpolated decoding stays exact."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rankloom.decoding.beam import beam_search
from rankloom.decoding.masks import MaskIndex
from rankloom.decoding.memory import (
    AGE_DECAY,
    EVIDENCE,
    REVERSE,
    ROW_POWER,
    STEP_DECAY,
    WINDOW,
    BehaviourMemory,
    Guide,
    in_history,
    latest_first,
)
from rankloom.decoding.select import expand, leaf_log_share
from rankloom.semantic.trie import Trie
from tests.decoding.test_beam import context, small_model

N_ITEMS = 60


def slow_table(user: np.ndarray[Any, Any], item: np.ndarray[Any, Any], n_items: int) -> np.ndarray[Any, Any]:
    table = np.zeros((n_items, n_items))
    for first in range(len(item)):
        for second in range(first + 1, min(first + WINDOW, len(item) - 1) + 1):
            if user[first] == user[second]:
                weight = STEP_DECAY ** (second - first - 1)
                table[item[first], item[second]] += weight
                if item[first] != item[second]:
                    table[item[second], item[first]] += REVERSE * weight
    return np.asarray(table * (1 + table.sum(1, keepdims=True)) ** -ROW_POWER)


def log(seed: int, n_users: int = 12) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    rng = np.random.default_rng(seed)
    user = np.repeat(np.arange(n_users), rng.integers(1, 30, n_users))
    return user, rng.integers(0, N_ITEMS, len(user))


def dense(memory: BehaviourMemory) -> np.ndarray[Any, Any]:
    out = np.zeros((N_ITEMS, N_ITEMS))
    for row in range(N_ITEMS):
        part = slice(int(memory.start_I1[row]), int(memory.start_I1[row + 1]))
        out[row, memory.item_E[part].numpy()] = memory.weight_E[part].numpy()
    return out


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_the_table_is_the_decayed_transition_count_of_every_pair_of_places(seed: int) -> None:
    user, item = log(seed)
    assert np.allclose(dense(BehaviourMemory.fit(user, item, N_ITEMS)), slow_table(user, item, N_ITEMS), atol=1e-5)


def test_only_the_strongest_entries_of_a_row_are_kept() -> None:
    user, item = log(3)
    whole = dense(BehaviourMemory.fit(user, item, N_ITEMS))
    cut = dense(BehaviourMemory.fit(user, item, N_ITEMS, top=2))
    assert ((cut > 0).sum(1) <= 2).all()
    assert np.allclose(cut.sum(1), np.sort(whole, axis=1)[:, -2:].sum(1), atol=1e-5)


def test_recall_sums_the_rows_of_the_history_with_the_latest_first() -> None:
    user, item = log(1)
    memory = BehaviourMemory.fit(user, item, N_ITEMS)
    history = torch.tensor([[4, 9, -1], [-1, -1, -1], [9, -1, 4]])
    request, row, amount = memory.recall(history)
    found = torch.zeros(3, N_ITEMS).index_put_((request, row), amount, accumulate=True)
    table = dense(memory)
    assert np.allclose(found[0], table[4] + AGE_DECAY * table[9], atol=1e-5)
    assert not found[1].any()
    assert np.allclose(found[2], table[9] + AGE_DECAY**2 * table[4], atol=1e-5)


def test_an_item_that_came_after_training_brings_nothing_to_mind() -> None:
    user, item = log(1)
    request, _, _ = BehaviourMemory.fit(user, item, N_ITEMS).recall(torch.tensor([[N_ITEMS + 5]]))
    assert not len(request)


def test_an_empty_log_gives_an_empty_memory() -> None:
    memory = BehaviourMemory.fit(np.array([0, 1]), np.array([3, 4]), N_ITEMS)
    assert not len(memory.item_E)
    assert not len(memory.recall(torch.tensor([[3]]))[0])


def test_the_memory_survives_being_written_down() -> None:
    user, item = log(2)
    memory = BehaviourMemory.fit(user, item, N_ITEMS)
    again = BehaviourMemory.from_arrays(memory.arrays())
    assert torch.equal(again.start_I1, memory.start_I1)
    assert torch.equal(again.item_E, memory.item_E)
    assert torch.equal(again.weight_E, memory.weight_E)


def test_what_does_not_count_as_taken_is_left_out_of_the_history() -> None:
    item = torch.tensor([5, 6, 7, 8])
    counts = torch.tensor([True, False, True, True])
    rows = latest_first(item, counts, torch.tensor([0, 3]), torch.tensor([3, 4]), places=4)
    assert rows.tolist() == [[7, -1, 5, -1], [8, -1, -1, -1]]


def brute_force(model: Any, prefix: Any, trie: Trie, guide: Guide, n_requests: int) -> torch.Tensor:
    """(B, leaves) log-probabilities: every leaf walked code by code, the memory mixed in by counting leaves below."""
    codes = trie.leaf_codes()
    n_leaves = len(codes)
    ancestors = [torch.zeros(n_leaves, dtype=torch.long), *trie.ancestors()]
    total = torch.zeros(n_requests, n_leaves)
    cache = None
    for level in range(trie.n_levels):
        chosen = None if level == 0 else codes[:, level - 1].expand(n_requests, -1)
        logits, cache = model.step(prefix, level, chosen, cache)
        log_probs = torch.log_softmax(logits.float(), -1).expand(-1, n_leaves, -1)
        if level == 0:
            cache = model.reorder(cache, torch.zeros(n_requests, n_leaves, dtype=torch.long))
        for request in range(n_requests):
            amounts = guide.amount(trie.n_levels, torch.full((n_leaves,), request), torch.arange(n_leaves))
            for leaf in range(n_leaves):
                own = math.exp(float(log_probs[request, leaf, codes[leaf, level]]))
                whole = float(amounts[ancestors[level] == ancestors[level][leaf]].sum())
                part = float(amounts[ancestors[level + 1] == ancestors[level + 1][leaf]].sum())
                if whole > 0:
                    share = guide.share * whole / (whole + EVIDENCE)
                    own = (1 - share) * own + share * part / whole
                total[request, leaf] += math.log(own)
    return total


@torch.no_grad()
@pytest.mark.parametrize("share", [0.2, 0.7])
def test_with_a_beam_as_wide_as_the_catalogue_interpolated_search_equals_brute_force(share: float) -> None:
    model = small_model()
    trie = Trie.build(model.items.codes_IQ.numpy(), model.codebook_sizes)
    index = MaskIndex(trie, N_ITEMS)
    batch = context([5, 0, 2])
    prefix = model.prefill(batch)
    user, item = log(5)
    recalled = BehaviourMemory.fit(user, item, N_ITEMS).recall(batch.item_BT)
    guide = Guide(index, recalled, share=share)
    beams = beam_search(model, prefix, trie, beam=trie.n_leaves, masks=index.requests([None] * 3), guide=guide)
    expected = brute_force(model, prefix, trie, guide, 3)
    for request in range(3):
        found = dict(zip(beams.leaf_BW[request].tolist(), beams.log_prob_BW[request].tolist(), strict=True))
        assert sorted(found) == list(range(trie.n_leaves))
        assert np.allclose([found[leaf] for leaf in range(trie.n_leaves)], expected[request], atol=1e-4)


@torch.no_grad()
@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 1000), share=st.floats(0, 0.95))
def test_the_interpolated_generator_is_a_distribution_over_items(seed: int, share: float) -> None:
    model = small_model(seed=seed % 3)
    trie = Trie.build(model.items.codes_IQ.numpy(), model.codebook_sizes)
    index = MaskIndex(trie, N_ITEMS)
    batch = context([4, 1], seed=seed)
    user, item = log(seed)
    guide = Guide(index, BehaviourMemory.fit(user, item, N_ITEMS).recall(batch.item_BT), share=share)
    beams = beam_search(
        model, model.prefill(batch), trie, beam=trie.n_leaves, masks=index.requests([None] * 2), normalise="trie", guide=guide,
    )  # fmt: skip
    prior = torch.ones(N_ITEMS)
    candidates = expand(
        beams.leaf_BW, beams.log_prob_BW, trie=trie,
        log_share=leaf_log_share(trie, prior), guide=guide,
    )  # fmt: skip
    total = candidates.log_prob_BC.exp().sum(1)
    assert torch.allclose(total, torch.ones(2), atol=1e-4)


@torch.no_grad()
def test_a_share_of_zero_changes_nothing_and_a_filter_only_leaves_things_out() -> None:
    model = small_model()
    trie = Trie.build(model.items.codes_IQ.numpy(), model.codebook_sizes)
    index = MaskIndex(trie, N_ITEMS)
    batch = context([5, 3])
    prefix = model.prefill(batch)
    user, item = log(6)
    recalled = BehaviourMemory.fit(user, item, N_ITEMS).recall(batch.item_BT)
    plain = beam_search(model, prefix, trie, beam=20, masks=index.requests([None] * 2))
    zero = beam_search(
        model, prefix, trie, beam=20, masks=index.requests([None] * 2), guide=Guide(index, recalled, share=0.0)
    )
    assert torch.equal(plain.leaf_BW, zero.leaf_BW)
    assert torch.allclose(plain.log_prob_BW, zero.log_prob_BW, atol=1e-6)
    guide = Guide(index, recalled, share=0.5)
    allowed = index.compile(torch.arange(N_ITEMS) % 3 == 0)
    wide = trie.n_leaves
    every = beam_search(model, prefix, trie, beam=wide, masks=index.requests([None] * 2), guide=guide)
    some = beam_search(model, prefix, trie, beam=wide, masks=index.requests([allowed] * 2), guide=guide)
    for request in range(2):
        open_leaves = set(index.leaf_of_row[allowed.allowed_I].tolist())
        expected = [leaf for leaf in every.leaf_BW[request].tolist() if leaf in open_leaves]
        assert [leaf for leaf in some.leaf_BW[request].tolist() if leaf >= 0] == expected


def test_a_share_of_one_is_refused() -> None:
    trie = Trie.build(np.zeros((1, 1), dtype=np.int64), [2])
    nothing = torch.zeros(0, dtype=torch.long)
    with pytest.raises(ValueError, match="share of the memory"):
        Guide(MaskIndex(trie, 1), (nothing, nothing, torch.zeros(0)), share=1.0)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 9999), n=st.integers(0, 30), batch=st.integers(1, 4), columns=st.integers(0, 6))
def test_an_item_is_in_a_history_when_its_own_row_range_names_it(seed: int, n: int, batch: int, columns: int) -> None:
    rng = np.random.default_rng(seed)
    logged = torch.from_numpy(rng.integers(0, 9, n))
    bounds = torch.from_numpy(np.sort(rng.integers(0, n + 1, (batch, 2)), axis=1))
    wanted = torch.from_numpy(rng.integers(-1, 12, (batch, columns)))
    found = in_history(wanted, logged, bounds[:, 0], bounds[:, 1])
    for row in range(batch):
        own = set(logged[bounds[row, 0] : bounds[row, 1]].tolist())
        assert found[row].tolist() == [item in own for item in wanted[row].tolist()]


def test_a_memory_with_nothing_to_say_answers_in_the_shape_of_the_question() -> None:
    trie = Trie.build(np.array([[0], [1]]), [2])
    nothing = torch.zeros(0, dtype=torch.long)
    guide = Guide(MaskIndex(trie, 2), (nothing, nothing, torch.zeros(0)), share=0.5)
    told, whole = guide.items(torch.tensor([[0, 1, -1], [1, -1, -1]]))
    assert told.tolist() == [[0.0] * 3] * 2
    assert whole.tolist() == [[0.0]] * 2
