"""A context that is built upon an earlier one is the context that is computed anew, whatever happened to the history."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from rankloom.decoding.beam import beam_search
from rankloom.decoding.masks import MaskIndex
from rankloom.models import kept_context
from rankloom.models.context import ContextBatch, ContextProcessor
from rankloom.models.kept_context import KeptContext
from rankloom.models.lazy_decoder import LazyDecoder
from rankloom.semantic.trie import Trie
from tests.decoding.test_beam import small_model
from tests.models.test_folded import OPTIONS, random_norms

WINDOW = 20
Event = tuple[int, int, int, int, int, int]
OPERATIONS = (
    "append",
    "append",
    "append",
    "late",
    "edit",
    "drop",
    "forget",
    "repeat",
    "item",
    "catalogue",
    "weights",
    "nothing",
)


@pytest.fixture(autouse=True, scope="module")
def keep_small_ones_too() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(kept_context, "LEAST", 0)
        yield


def eager(**options: Any) -> LazyDecoder:
    model = small_model(max_history=WINDOW, **options)
    random_norms(model)
    model.items.tabulate()
    model.engine = "eager"
    return model


def batch_of(histories: list[list[Event]], rng: np.random.Generator) -> ContextBatch:
    """The last events of each, with a query for some and features of the user for all."""
    own = [history[-WINDOW:] for history in histories]
    places = max(1, *map(len, own))
    table = np.zeros((len(own), places, 6), np.int64)
    table[:, :, 0] = -1
    for row, history in enumerate(own):
        if history:
            table[row, : len(history)] = history
    columns = [torch.from_numpy(table[:, :, n].copy()) for n in range(6)]
    length = torch.tensor([len(history) for history in own])
    asked = torch.where(torch.arange(len(own)) % 2 == 0, length, 2**31 - 1)
    return ContextBatch(
        *columns, length, torch.from_numpy(rng.normal(size=(len(own), 1, 7)).astype(np.float32)), asked[:, None],
        torch.from_numpy(rng.integers(0, 3, (len(own), 3))),
    )  # fmt: skip


def draw(rng: np.random.Generator) -> Event:
    kind, watch, gap, surface, position = (int(rng.integers(high)) for high in (8, 12, 32, 3, 12))
    return int(rng.integers(60)), kind, watch, gap, surface, position


def happens(what: str, history: list[Event], model: LazyDecoder, rng: np.random.Generator) -> None:
    if what == "append":
        history.append(draw(rng))
    elif what == "repeat" and history:
        history.append(history[-1])
    elif what == "late":
        history.insert(int(rng.integers(len(history) + 1)), draw(rng))
    elif what == "edit" and history:
        place = int(rng.integers(len(history)))
        history[place] = (history[place][0], *draw(rng)[1:])
    elif what == "drop" and history:
        del history[: int(rng.integers(1, len(history) + 1))]
    elif what == "forget":
        history.clear()
    elif what == "item" and history:  # its metadata changed, as when a catalogue is replaced
        contents = model.items.content_IC.clone()
        contents[history[-1][0]] += 1
        model.items.replace_catalogue(model.items.codes_IQ, contents)
        model.items.tabulate()
    elif what == "catalogue":
        grown = (torch.cat([own, own[:5]]) for own in (model.items.codes_IQ, model.items.content_IC))
        model.items.replace_catalogue(*grown)
        model.items.tabulate()
    elif what == "weights":
        with torch.no_grad():
            model.context.key_norms[0].gain += 0.1  # type: ignore[operator]


def same_search(
    model: LazyDecoder, trie: Trie, index: MaskIndex, batch: ContextBatch, kept: Any
) -> list[KeptContext | None]:
    """Asserts that the search is the same, and gives what is kept now."""
    prefix, anew = model.prefill(batch, kept=kept), model.prefill(batch)
    assert prefix.kept is not None
    for own, twin in zip((*prefix.kv.keys, *prefix.kv.values), (*anew.kv.keys, *anew.kv.values), strict=True):
        # padding is seen by nobody
        seen = anew.visible_B1N[:, :, :, None].to(own.dtype)
        torch.testing.assert_close(own * seen, twin * seen, rtol=1e-6, atol=1e-6)
    assert torch.equal(prefix.rank_B1N, anew.rank_B1N)
    assert torch.equal(prefix.visible_B1N, anew.visible_B1N)
    masks = index.requests([None] * batch.batch_size)
    found, twin = (beam_search(model, own, trie, beam=12, masks=masks) for own in (prefix, anew))
    assert torch.equal(found.leaf_BW, twin.leaf_BW)
    torch.testing.assert_close(found.log_prob_BW, twin.log_prob_BW, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(model.user(prefix), model.user(anew), rtol=1e-6, atol=1e-6)
    return prefix.kept


@torch.no_grad()
@settings(max_examples=25)
@given(
    option=st.sampled_from([own for own in OPTIONS if "moe_experts" not in own]),
    people=st.integers(1, 3),
    operations=st.lists(st.tuples(st.sampled_from(OPERATIONS), st.integers(0, 2)), min_size=1, max_size=30),
    seed=st.integers(0, 1000),
)
def test_whatever_happens_to_histories_the_search_is_that_of_contexts_computed_anew(
    option: dict[str, Any], people: int, operations: list[tuple[str, int]], seed: int
) -> None:
    rng = np.random.default_rng(seed)
    model = eager(seed=seed, **option)
    trie = Trie.build(model.items.codes_IQ.numpy(), model.codebook_sizes)
    index = MaskIndex(trie, 60)
    histories = [[draw(rng) for _ in range(rng.integers(WINDOW + 3))] for _ in range(people)]
    kept: list[KeptContext | None] = [None] * people
    for what, who in operations:
        happens(what, histories[who % people], model, rng)
        kept = same_search(model, trie, index, batch_of(histories, rng), kept)


def computed(
    model: LazyDecoder, histories: list[list[Event]], kept: Any, monkeypatch: pytest.MonkeyPatch
) -> tuple[int, Any]:
    """How many interactions a request computed, and what it kept."""
    rows: list[int] = []
    honest = ContextProcessor.interactions

    def counted(own: ContextProcessor, vector: Tensor, *features: Tensor) -> Tensor:
        rows.append(vector.shape[:-1].numel())
        return honest(own, vector, *features)

    with torch.no_grad(), monkeypatch.context() as patched:
        patched.setattr(ContextProcessor, "interactions", counted)
        prefix = model.prefill(batch_of(histories, np.random.default_rng(0)), kept=kept)
    assert prefix.kept is not None
    assert sum(rows) == sum(map(len, (own[-WINDOW:] for own in histories))) - sum(
        own.reused for own in prefix.kept if own
    )
    return sum(rows), prefix.kept


def test_only_what_is_new_is_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    model = eager()
    history = [draw(rng) for _ in range(WINDOW)]
    before, kept = computed(model, [history], [None], monkeypatch)
    assert before == WINDOW
    assert computed(model, [history], kept, monkeypatch)[0] == 0
    longer = [*history, draw(rng)]  # the oldest is out of the window
    assert computed(model, [longer], kept, monkeypatch)[0] == 1
    assert computed(model, [[*history[:7], draw(rng), *history[7:]]], kept, monkeypatch)[0] == 1
    assert computed(model, [[*history[:7], draw(rng), *history[8:]]], kept, monkeypatch)[0] == 1
    assert computed(model, [history[::-1]], kept, monkeypatch)[0] == 0
    assert computed(model, [[]], kept, monkeypatch)[0] == 0
    # another person's, who shares nothing, and one beside whom somebody else is asked for
    assert computed(model, [[draw(rng) for _ in range(5)]], kept, monkeypatch)[0] == 5
    assert computed(model, [longer, history[:3]], [*kept, None], monkeypatch)[0] == 1 + 3


@pytest.mark.parametrize("what", ["item", "weights"])
def test_what_an_element_was_made_of_is_compared_and_not_told(what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(1)
    model = eager()
    history = [(n, 2, 0, 0, 0, 0) for n in range(10)]
    _, kept = computed(model, [history], [None], monkeypatch)
    happens(what, history, model, rng)
    assert computed(model, [history], kept, monkeypatch)[0] == (1 if what == "item" else 10)
    # a model with the same numbers in other tensors is another one: who asked for it pays once
    assert computed(copy.deepcopy(model), [history], kept, monkeypatch)[0] == 10


@torch.no_grad()
def test_a_person_keeps_their_own_memory_and_the_kernels_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(2)
    model = eager()
    histories = [[draw(rng) for _ in range(size)] for size in (18, 2, 0)]
    _, kept = computed(model, histories, [None] * 3, monkeypatch)
    assert kept[2] is None
    assert kept[1].ready_PC.untyped_storage().nbytes() == kept[1].ready_PC.nbytes == 2 * 32 * 4
    assert kept[1].nbytes > kept[1].event_P.nbytes + kept[1].vector_PZ.nbytes + kept[1].ready_PC.nbytes
    batch = batch_of(histories, rng)
    assert model.prefill(batch).kept is None
    with torch.enable_grad():
        assert model.prefill(batch, kept=kept).kept is None
    model.engine = "auto"
    prefix = model.prefill(batch, kept=kept)
    assert (prefix.kept is None) == (prefix.compiled is not None)


@torch.no_grad()
def test_contexts_that_cost_less_than_looking_them_up_are_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(3)
    model = eager()
    one_place = sum(own.numel() for own in model.context.history_path.parameters() if own.ndim == 2)
    monkeypatch.setattr(kept_context, "LEAST", 10 * one_place)
    for length, expected in ((9, False), (10, True), (WINDOW, True)):
        history = [draw(rng) for _ in range(length)]
        assert (model.prefill(batch_of([history], rng), kept=[None]).kept is not None) == expected
