"""The lazy decoder as a graph runs it gives what the plain blocks give, and holds to a graph's rules."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from rankloom.models.context import ContextBatch
from rankloom.models.graph_decoder import GraphDecoder, Question
from rankloom.models.lazy_decoder import LazyDecoder
from tests.decoding.graph_rules import Rules, without_data
from tests.decoding.test_beam import context, small_model
from tests.models.test_compiled import change_the_context, searched
from tests.models.test_folded import OPTIONS, change_in_place, random_norms, walk


@torch.no_grad()
def steps_along(
    decoder: GraphDecoder, batch: ContextBatch, surface: Tensor, codes: list[Tensor], parents: list[Tensor]
) -> list[Tensor]:
    """Logits of every level along given codes and parents, then the users' states, under a graph's rules."""
    with Rules():
        steps = decoder.steps(Question(batch, surface))
        logits, state = steps.begin()
        out = [logits]
        for level, (code, parent) in enumerate(zip(codes, parents, strict=True), start=1):
            logits, state = steps.step(level, code, parent, state)
            out.append(logits)
    return [*out, steps.user_BD]


@torch.no_grad()
@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize(("levels", "beams"), [(3, 20), (4, 7), (1, 1)])
@pytest.mark.parametrize("kind", ["feed", "search"])
@pytest.mark.parametrize("tabulated", [False, True])
def test_every_step_equals_the_eager_one(
    options: dict[str, Any], levels: int, beams: int, kind: str, tabulated: bool
) -> None:
    torch.manual_seed(beams)
    model = small_model(levels=levels, max_history=10, **options)
    random_norms(model)
    if tabulated:
        model.items.tabulate()
    lengths = [12, 0, 3, 9]
    batch = searched(lengths, seed=beams) if kind == "search" else context(lengths)
    surface = torch.tensor([0, 1, 2, 0])
    # beams of a level may be fewer than those of the next
    widths = [max(1, beams // 2), *[beams] * (levels - 2)] if levels > 1 else []
    codes = [torch.randint(0, 5, (4, width)) for width in widths]
    parents = [torch.randint(0, before, (4, width)) for before, width in zip([1, *widths], widths, strict=False)]
    model.engine = "eager"
    expected = walk(model, model.prefill(batch, surface), codes, parents)[:-1]
    found = steps_along(GraphDecoder(model), batch, surface, codes, parents)
    for own, twin in zip(found, expected, strict=True):
        torch.testing.assert_close(own, twin, rtol=1e-4, atol=2e-5)


@torch.no_grad()
def test_bfloat16_blocks_are_near_and_leave_the_model_as_it_is() -> None:
    model = small_model()
    random_norms(model)
    batch, surface = context([5, 2]), torch.zeros(2, dtype=torch.long)
    codes, parents = [torch.randint(0, 5, (2, 4)) for _ in range(2)], [torch.zeros(2, 4, dtype=torch.long)] * 2
    exact = steps_along(GraphDecoder(model), batch, surface, codes, parents)
    near = steps_along(GraphDecoder(model, torch.bfloat16), batch, surface, codes, parents)
    for own, twin in zip(near, exact, strict=True):
        assert own.dtype == torch.float32
        assert not torch.equal(own, twin)
        assert float((own - twin).abs().max()) < 0.1 * float(twin.abs().max())
    assert {own.dtype for own in model.parameters()} == {torch.float32}


@pytest.mark.parametrize("change", [change_in_place, change_the_context])
def test_it_knows_when_the_model_is_another(change: Any) -> None:
    model = small_model()
    decoder = GraphDecoder(model)
    assert decoder.fresh
    change(model)
    assert not decoder.fresh


@torch.no_grad()
def test_it_knows_when_the_catalogue_is_another() -> None:
    model = small_model()
    decoder = GraphDecoder(model)
    model.items.tabulate()
    assert not decoder.fresh
    decoder = GraphDecoder(model)
    model.items.replace_catalogue(model.items.codes_IQ, model.items.content_IC)
    assert not decoder.fresh


def test_it_knows_when_another_precision_is_asked_for() -> None:
    model = small_model()
    decoder = model.graph_decoder()
    model.precision = "auto"
    assert decoder.fresh
    model.precision = "bf16"
    assert not decoder.fresh
    assert model.graph_decoder().fresh


def take_data(mode: FakeTensorMode, model: LazyDecoder) -> None:
    """Takes the data of the model's tensors, and the CPU."""

    def moved(own: Tensor) -> Tensor:
        return without_data(mode, own)

    for module in model.modules():
        for name, own in module._parameters.items():
            if own is not None:
                module._parameters[name] = moved(own)  # type: ignore[assignment]
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = moved(buffer)


@torch.no_grad()
@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("kind", ["feed", "search"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_step_runs_without_data_on_another_device(options: dict[str, Any], kind: str, dtype: torch.dtype) -> None:
    model = small_model(max_history=10, **options)
    batch = searched([12, 0, 3], seed=1) if kind == "search" else context([12, 0, 3])
    mode = FakeTensorMode()
    take_data(mode, model)
    given = {name: None if own is None else without_data(mode, own) for name, own in vars(batch).items()}
    with mode:
        surface = torch.zeros(3, dtype=torch.long, device="meta")
        steps = GraphDecoder(model, dtype).steps(Question(ContextBatch(**given), surface))
        logits, state = steps.begin()
        for level in (1, 2):
            code = torch.zeros(3, 6, dtype=torch.long, device="meta")
            logits, state = steps.step(level, code, torch.zeros_like(code), state)
        assert logits.device.type == steps.user_BD.device.type == "meta"
        assert logits.shape == (3, 6, 5)
