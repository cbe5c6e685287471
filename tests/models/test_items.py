"""Item vectors that are looked up are those that would be computed."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from rankloom.models import items as module
from rankloom.models.items import ItemEncoder


def encoder(n: int = 40, seed: int = 0) -> ItemEncoder:
    torch.manual_seed(seed)
    own = ItemEncoder(
        dim=6, n_trained=n - 5, codes_IQ=torch.randint(0, 4, (n, 3)), content_IC=torch.randn(n, 7),
        codebook_sizes=[4, 4, 4], trust_I=torch.rand(n - 5), attributes_IF=torch.randint(0, 9, (n, 2)), dropout=0.5,
    )  # fmt: skip
    return own.eval()


@torch.no_grad()
def test_what_is_looked_up_is_what_is_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    # more than one part
    monkeypatch.setattr(module, "_PART", 16)
    own = encoder()
    rows = torch.tensor([[0, 39, -1], [7, 7, 36]])
    computed = own(rows)
    own.tabulate()
    torch.testing.assert_close(own(rows), computed)
    # one row whichever way it is asked for
    assert torch.equal(own(rows)[1, 0], own(torch.tensor([7]))[0])
    # a hidden learned vector is no matter of the table
    hidden = own(rows, torch.zeros(35, dtype=torch.bool))
    assert not torch.allclose(hidden[0, 0], computed[0, 0])


def weights(own: ItemEncoder) -> None:
    with torch.no_grad():
        own.content.weight += 1.0


def catalogue(own: ItemEncoder) -> None:
    own.replace_catalogue(own.codes_IQ.flip(0), own.content_IC, attributes_IF=own.attributes_IF)


def other_trust(own: ItemEncoder) -> None:
    own.trust_I = torch.zeros_like(own.trust_I)


def precision(own: ItemEncoder) -> None:
    own.double()


@pytest.mark.parametrize("change", [weights, catalogue, other_trust, precision])
def test_a_table_does_not_outlive_what_it_was_made_of(change: Callable[[ItemEncoder], None]) -> None:
    own, twin = encoder(), encoder()
    own.tabulate()
    rows = torch.arange(40)
    with torch.no_grad():
        before = own(rows)
    for each in (own, twin):
        change(each)
    with torch.no_grad():
        assert not torch.equal(own(rows), before)
        assert torch.equal(own(rows), twin(rows))


def test_gradients_and_training_compute() -> None:
    own = encoder()
    own.tabulate()
    own(torch.arange(3)).sum().backward()
    assert own.content.weight.grad is not None
    with torch.no_grad():
        assert not torch.equal(own.train()(torch.arange(40)), own(torch.arange(40)))
