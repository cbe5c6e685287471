"""The search as a pure function of tensors against the eager one: every option, any mix of requests, the same answer; and
that a CUDA graph could hold it."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException, FakeTensorMode

from rankloom.decoding.beam import BeamResult, _result, beam_search
from rankloom.decoding.device_trie import DeviceTrie, fits
from rankloom.decoding.exposure import Lift
from rankloom.decoding.graph_engine import _unpacked, bucket, packed
from rankloom.decoding.graph_inputs import (
    FilterSlots,
    LiftRows,
    Shape,
    asked_of,
    buffers,
    most_closed,
    most_named,
    write_asked,
)
from rankloom.decoding.graph_search import Asked, TensorSteps, search
from rankloom.decoding.masks import MaskIndex, RequestMasks
from rankloom.decoding.memory import Guide
from rankloom.semantic.trie import Trie
from tests.decoding.graph_rules import BrokenRuleError, Rules, without_data
from tests.decoding.test_beam import TiedGenerator
from tests.decoding.test_compiled import Drawn, assert_same
from tests.decoding.test_exposure import DAY, log, tables

CPU = torch.device("cpu")


class DrawnSteps:
    """`Drawn` as the graph asks for it; requests that fill the batch get what the first one gets."""

    def __init__(self, model: Drawn, batch: int) -> None:
        spare = batch - len(model.tables[0])
        self.tables = [torch.cat([own, own[:1].expand(spare, -1, -1)]) for own in model.tables]

    def begin(self) -> tuple[Tensor, Any]:
        return self.tables[0][:, :1], None

    def step(self, level: int, code_BW: Tensor, parent_BW: Tensor, state: Any) -> tuple[Tensor, Any]:
        own = self.tables[level]
        return own.gather(1, code_BW[:, :, None].expand(-1, -1, own.shape[2])), None


def asked(
    trie: Trie, masks: RequestMasks, beams: list[int], batch: int, guide: Guide | None, lift: Lift | None, *, over_children: bool
) -> tuple[Asked, Shape]:  # fmt: skip
    """What the engine writes for a batch, in a bucket of `batch` requests."""
    on_device = DeviceTrie.of(trie, CPU)
    filters, lifts = FilterSlots(on_device.n_nodes, CPU), LiftRows(on_device.n_nodes, CPU)
    filtered = [own for own in masks.unique if own.counts is not None]
    shape = Shape(
        batch, 1, max(beams), closed=bucket(most_closed(masks, len(beams)), 4, 4), named=bucket(most_named(guide, len(beams)), 4, 4),
        filters=filters.room(len(filtered)) if filtered else 0, moments=0 if lift is None else lifts.room(len(lift.nodes[0])),
        over_children=over_children,
    )  # fmt: skip
    lying = buffers(shape, trie.n_levels, CPU)
    write_asked(lying.host, np.array(beams), masks, guide)
    if filtered:
        lying.host["slot_B"][: len(beams)] = torch.tensor(filters.place(masks.unique))[torch.from_numpy(masks.which_B)]
    if lift is not None:
        lifts.place(lift)
        lying.host["moment_B"][: len(beams)] = lift.moment_B
    lying.send()
    return asked_of(
        lying.device, shape, trie.n_levels, filters.tables if filtered else None, lifts.tables if lift else None
    ), shape


@torch.no_grad()
def searched(
    steps: TensorSteps, trie: Trie, masks: RequestMasks, own: Asked, shape: Shape, n_requests: int
) -> BeamResult | None:
    """The search under the rules of a graph, as a result."""
    on_device = DeviceTrie.of(trie, CPU)
    with Rules():
        levels = search(steps, on_device, own, width=shape.beam, over_children=shape.over_children)
        out = packed(levels)
    found = _unpacked(out.numpy()[:n_requests], [level.node_BP.shape[1] for level in levels])
    return None if found is None else _result(found, trie, masks, True)


@settings(max_examples=150, deadline=None)
@given(
    seed=st.integers(0, 99_999),
    n_items=st.integers(1, 300),
    sizes=st.sampled_from([(6, 6, 6), (40, 3), (3, 300, 5), (7,)]),
    beams=st.lists(st.integers(1, 60), min_size=1, max_size=4),
    spare=st.integers(0, 2),
    normalise=st.sampled_from(["codebook", "trie"]),
    share=st.sampled_from([None, 0.0, 0.4, 0.9]),
    lifted=st.booleans(),
)
def test_any_search_equals_the_eager_one(
    seed: int, n_items: int, sizes: tuple[int, ...], beams: list[int], spare: int, normalise: Literal["codebook", "trie"],
    share: float | None, lifted: bool,
) -> None:  # fmt: skip
    rng = np.random.default_rng(seed)
    batch = len(beams)
    codes = np.stack([rng.integers(0, size, n_items) for size in sizes], axis=1)
    trie = Trie.build(codes, sizes)
    index = MaskIndex(trie, n_items)
    model = Drawn(batch, sizes, seed)
    filters = [
        index.compile(torch.from_numpy(rng.random(n_items) < 0.6)) if rng.random() < 0.5 else None for _ in beams
    ]
    excluded = [torch.from_numpy(rng.integers(0, n_items, int(rng.integers(0, 40)))) for _ in beams]
    guide = lift = None
    if share is not None:
        n_named = int(rng.integers(0, 80))
        recalled = (
            rng.integers(0, batch, n_named),
            rng.integers(0, n_items, n_named),
            rng.random(n_named).astype(np.float32),
        )
        guide = Guide(index, tuple(map(torch.from_numpy, recalled)), share=share)  # type: ignore[arg-type]
    if lifted and n_items >= 20:
        own = tables(*log(n_items, seed % 7), index)
        lift = own.lift((torch.from_numpy(rng.uniform(20, 40, batch)) * DAY).double(), 0.7)
    masks = index.requests(list(filters), excluded)
    twin = beam_search(
        model,
        None,
        trie,
        beam=beams,
        masks=masks,
        normalise=normalise,
        guide=guide,
        lift=lift,
        trace=True,
        engine="eager",
    )
    given_asked, shape = asked(trie, masks, beams, batch + spare, guide, lift, over_children=normalise == "trie")
    found = searched(DrawnSteps(model, batch + spare), trie, masks, given_asked, shape, batch)
    assert found is not None
    assert_same(found, twin)


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 99_999), beam=st.integers(1, 90), n_items=st.integers(1, 400))
def test_ties_are_broken_by_the_trie(seed: int, beam: int, n_items: int) -> None:
    rng = np.random.default_rng(seed)
    sizes = (5, 200)
    # every beam of a level scores its children alike, in whole numbers
    trie = Trie.build(np.stack([rng.integers(0, size, n_items) for size in sizes], axis=1), sizes)
    masks = MaskIndex(trie, n_items).requests([None], [torch.from_numpy(rng.integers(0, n_items, 5))])
    model = Drawn(1, sizes, seed, rounded=True)
    model.tables[1] = model.tables[1][:, :1].expand(-1, 6, -1).contiguous()
    model.tables[0] = torch.zeros_like(model.tables[0])
    twin = beam_search(model, None, trie, beam=beam, masks=masks, trace=True, engine="eager")
    own, shape = asked(trie, masks, [beam], 1, None, None, over_children=False)
    found = searched(DrawnSteps(model, 1), trie, masks, own, shape, 1)
    assert found is not None
    assert_same(found, twin)


class TiedSteps:
    """`TiedGenerator` as the graph asks for it."""

    def __init__(self, batch: int) -> None:
        self.model, self.batch = TiedGenerator(), batch

    def begin(self) -> tuple[Tensor, Any]:
        return self.model.step(self.batch, 0, None, None)

    def step(self, level: int, code_BW: Tensor, parent_BW: Tensor, state: Any) -> tuple[Tensor, Any]:
        return self.model.step(self.batch, level, code_BW, state)


@pytest.mark.parametrize("beam", [1, 3, 5, 200])
def test_ties_go_to_the_first_in_the_trie_and_a_beam_may_be_wider_than_a_level(beam: int) -> None:
    codes = np.array([[a, b] for a in (3, 0, 2) for b in (2, 1, 3)])
    trie = Trie.build(codes, [4, 4])
    masks = MaskIndex(trie, 9).requests([None, None])
    own, shape = asked(trie, masks, [beam, beam], 2, None, None, over_children=False)
    found = searched(TiedSteps(2), trie, masks, own, shape, 2)
    assert found is not None
    assert found.leaf_BW.tolist() == [list(range(min(beam, 9)))] * 2


def test_zeros_of_either_sign_are_equal() -> None:
    trie = Trie.build(np.array([[0], [1], [2]]), [3])
    masks = MaskIndex(trie, 3).requests([None])
    model = Drawn(1, (3,), 0)
    # with log-softmax over one child left out, what is scored is exactly these
    model.tables[0] = torch.tensor([[[-0.0, 0.0, -0.0]]]).expand(1, 4, 3)
    own, shape = asked(trie, masks, [3], 1, None, None, over_children=False)
    found = searched(DrawnSteps(model, 1), trie, masks, own, shape, 1)
    assert found is not None
    assert found.leaf_BW.tolist() == [[0, 1, 2]]


@pytest.mark.parametrize("normalise", ["codebook", "trie"])
@pytest.mark.parametrize("broken", [float("nan"), float("inf"), -float("nan")])
def test_logits_that_are_no_numbers_are_told(normalise: str, broken: float) -> None:
    trie = Trie.build(np.array([[0, 1], [2, 3], [1, 1]]), [4, 4])
    masks = MaskIndex(trie, 3).requests([None])
    model = Drawn(1, (4, 4), 0)
    own, shape = asked(trie, masks, [2], 1, None, None, over_children=normalise == "trie")
    assert searched(DrawnSteps(model, 1), trie, masks, own, shape, 1) is not None
    model.tables[1][0, 2, 3] = broken
    model.tables[0][0, 0, 2] = 9.0
    assert searched(DrawnSteps(model, 1), trie, masks, own, shape, 1) is None


def test_a_window_holds_any_nodes_children_and_is_no_wider_than_the_codebook() -> None:
    codes = np.array([[0, code] for code in range(5)] + [[1, 0], [2, 1]])
    trie = DeviceTrie.of(Trie.build(codes, [8, 6]), CPU)
    assert trie.window == (4, 6)
    assert trie.n_nodes == (1, 3, 7)
    assert trie.start[1].tolist() == [0, 5, 6, 7]
    assert not fits(Trie.build(np.zeros((0, 2), np.int64), [8, 6]))


# -- a graph could hold it


def everything(seed: int = 0) -> tuple[Trie, RequestMasks, Drawn, Asked, Shape]:
    """A batch with filters, exclusions, memory and lift."""
    rng = np.random.default_rng(seed)
    sizes = (6, 9, 4)
    trie = Trie.build(np.stack([rng.integers(0, size, 90) for size in sizes], axis=1), sizes)
    index = MaskIndex(trie, 90)
    masks = index.requests(
        [None, index.compile(torch.from_numpy(rng.random(90) < 0.5))], [torch.arange(9), torch.arange(30, 50)]
    )
    recalled = (torch.tensor([0, 0, 1]), torch.tensor([5, 70, 33]), torch.tensor([1.0, 2.0, 0.5]))
    lift = tables(*log(90, 1), index).lift(torch.tensor([21.0, 35.0], dtype=torch.float64) * DAY, 0.5)
    own, shape = asked(trie, masks, [12, 7], 4, Guide(index, recalled, share=0.4), lift, over_children=True)
    return trie, masks, Drawn(2, sizes, seed), own, shape


def run_without_data(steps_of: type[DrawnSteps]) -> list[Tensor]:
    """The whole search with tensors that have no data and are on another device than the CPU: what asks for a value, has a shape
    that depends on one, or mixes devices, raises."""
    trie, _, model, own, shape = everything()
    on_host, steps = DeviceTrie.of(trie, CPU), steps_of(model, 4)
    mode = FakeTensorMode()

    def moved(part: Any) -> Any:
        if isinstance(part, Tensor):
            return without_data(mode, part)
        if isinstance(part, list | tuple):
            return type(part)(moved(own) for own in part)
        if hasattr(part, "__dataclass_fields__"):
            return type(part)(**{name: moved(getattr(part, name)) for name in part.__dataclass_fields__})
        return part

    steps.tables, on_device, given = moved(steps.tables), moved(on_host), moved(own)
    with mode, torch.no_grad():
        levels = search(steps, on_device, given, width=shape.beam, over_children=shape.over_children)
        return [packed(levels)]


def test_nothing_in_the_search_asks_for_a_value_or_leaves_the_device() -> None:
    (out,) = run_without_data(DrawnSteps)
    assert out.device.type == "meta"
    assert out.shape == (4, 4 * (6 + 12 + 12))
    trie, masks, model, own, shape = everything()
    assert searched(DrawnSteps(model, 4), trie, masks, own, shape, 2) is not None


class Peeking(DrawnSteps):
    def step(self, level: int, code_BW: Tensor, parent_BW: Tensor, state: Any) -> tuple[Tensor, Any]:
        if code_BW.max().item() < 0:
            return self.begin()
        return super().step(level, code_BW, parent_BW, state)


class Counting(DrawnSteps):
    def step(self, level: int, code_BW: Tensor, parent_BW: Tensor, state: Any) -> tuple[Tensor, Any]:
        (code_BW > 0).nonzero()
        return super().step(level, code_BW, parent_BW, state)


class Copying(DrawnSteps):
    def step(self, level: int, code_BW: Tensor, parent_BW: Tensor, state: Any) -> tuple[Tensor, Any]:
        logits, state = super().step(level, code_BW, parent_BW, state)
        return logits + torch.tensor([1.0], device=logits.device), state


class Selecting(DrawnSteps):
    def step(self, level: int, code_BW: Tensor, parent_BW: Tensor, state: Any) -> tuple[Tensor, Any]:
        logits, state = super().step(level, code_BW, parent_BW, state)
        assert len(logits[code_BW > 0]) >= 0
        return logits, state


@pytest.mark.parametrize(
    ("planted", "fake"),
    [(Peeking, DataDependentOutputException), (Counting, DynamicOutputShapeException), (Selecting, DynamicOutputShapeException), (Copying, AssertionError)],
)  # fmt: skip
def test_a_planted_look_at_values_is_caught(planted: type[DrawnSteps], fake: type[Exception]) -> None:
    trie, masks, model, own, shape = everything()
    with pytest.raises(BrokenRuleError):
        searched(planted(model, 4), trie, masks, own, shape, 2)
    with pytest.raises(fake):
        run_without_data(planted)
