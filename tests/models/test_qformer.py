"""The Q-Former and its sums: order does not matter, length is scaled, what is not there is not read."""

from __future__ import annotations

import pytest
import torch

from rankloom.models.qformer import CentroidSums, QFormer, Scale

SIZES, WIDTH, DIM = (5, 4, 3), 6, 8


def centroids() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(size, WIDTH, generator=generator) for size in SIZES]


def sums(scale: Scale) -> CentroidSums:
    torch.manual_seed(0)
    return CentroidSums(centroids(), DIM, scale=scale)


def history(length: int, seed: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    code = torch.stack([torch.randint(size, (2, 3, length), generator=generator) for size in SIZES], -1)
    return code, torch.ones(2, 3, length, dtype=torch.bool)


@pytest.mark.parametrize("scale", ["sum", "mean", "sqrt"])
def test_sums_equal_a_loop_over_items(scale: Scale) -> None:
    own = sums(scale)
    code, real = history(4)
    real[0, 1, :3] = False
    real[1, 2] = False
    found = own(code, real)
    for b in range(2):
        for s in range(3):
            n = int(real[b, s].sum())
            for level, book in enumerate(centroids()):
                total = sum((book[code[b, s, h, level]] for h in range(4) if real[b, s, h]), torch.zeros(WIDTH))
                total = total / {"sum": 1, "mean": max(n, 1), "sqrt": max(n, 1) ** 0.5}[scale]
                assert torch.allclose(found[b, s, level], own.project(total), atol=1e-5)


def test_the_order_of_a_long_history_does_not_matter() -> None:
    own = sums("sqrt")
    code, real = history(6)
    order = torch.randperm(6, generator=torch.Generator().manual_seed(4))
    assert torch.allclose(own(code, real), own(code[:, :, order], real), atol=1e-5)


def test_a_history_repeated_four_times_is_the_same_by_mean_and_doubles_by_root() -> None:
    code, real = history(3)
    again = code.repeat(1, 1, 4, 1), real.repeat(1, 1, 4)
    for scale, factor in (("mean", 1.0), ("sqrt", 2.0), ("sum", 4.0)):
        own = sums(scale)  # type: ignore[arg-type]
        assert torch.allclose(own(*again), factor * own(code, real), atol=1e-4)


def test_soft_tokens_read_what_is_there_and_nothing_else() -> None:
    torch.manual_seed(0)
    former = QFormer(DIM, n_soft=2, n_heads=2, n_behaviours=3, n_levels=3).eval()
    total = torch.randn(2, 3, 3, DIM)
    has = torch.tensor([[True, False, True], [False, False, False]])
    changed = total.clone()
    changed[0, 1] += 5
    changed[1] += 5
    assert torch.allclose(former(total, has), former(changed, has))
    changed[0, 0] += 1
    assert not torch.allclose(former(total, has)[0], former(changed, has)[0])
    assert torch.isfinite(former(total, has)).all()
    # without a history the tokens say only what they always say
    assert torch.allclose(former(total, torch.zeros_like(has))[0], former(changed, torch.zeros_like(has))[1])


def test_centroids_stay_as_the_tokenizer_made_them() -> None:
    own = sums("mean")
    assert {name for name, _ in own.named_parameters()} == {"project.weight"}
    assert {name for name, _ in own.named_buffers()} == {"centroids_0", "centroids_1", "centroids_2"}
