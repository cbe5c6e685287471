"""What holds for every quantiser, and what each paper says of its own."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rankloom.config import Config, QuantizerConfig
from rankloom.errors import RankloomError
from rankloom.semantic.ids import SemanticIds, usage_report
from rankloom.semantic.quantizers.base import Quantizer, reconstruction_errors
from rankloom.semantic.quantizers.fsq import FSQ, bound, scalar_quantise
from rankloom.semantic.quantizers.kmeans import balanced_assignment, kmeans, nearest
from rankloom.semantic.quantizers.opq import OPQ
from rankloom.semantic.quantizers.registry import KINDS, LAST, load_quantizer, make_quantizer
from rankloom.semantic.quantizers.rq_kmeans import RQKMeans
from rankloom.semantic.quantizers.rq_vae import RQVAE, ResidualVAE, nearest_code
from rankloom.semantic.quantizers.sizes import codebook_sizes_for, fsq_levels_for, opq_codes_for
from rankloom.semantic.quantizers.stack import ResidualStack
from rankloom.semantic.quantizers.straight_through import straight_through

QUICK = ["codebook_sizes=[8,8]", "vae_epochs=30", "vae_latent=6", "vae_hidden=[16]", "fsq_epochs=3", "opq_iterations=3"]
EVERY = [(kind, last) for kind in ("rq-kmeans", "rq-vae") for last in ("none", "fsq", "opq")]


def settings_of(*assignments: str) -> QuantizerConfig:
    return Config.preset_config("small").with_overrides([f"quantizer.{a}" for a in assignments]).quantizer


def quick(kind: str, last: str) -> QuantizerConfig:
    return settings_of(*QUICK, f"kind={kind}", f"last={last}")


def vectors(n: int = 300, d: int = 10, seed: int = 0) -> np.ndarray:
    """Points about a few centres, so that there is something to find."""
    rng = np.random.default_rng(seed)
    centers = rng.normal(size=(12, d))
    return (centers[rng.integers(12, size=n)] + 0.4 * rng.normal(size=(n, d))).astype(np.float32)


def fitted(kind: str, last: str, x: np.ndarray, seed: int = 0) -> tuple[Quantizer, np.ndarray]:
    quantizer = make_quantizer(quick(kind, last), len(x))
    return quantizer, quantizer.fit(x, np.random.default_rng(seed), quiet=True)


# -- every quantiser ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "last"), EVERY)
def test_codes_lie_in_their_codebooks_and_repeat(kind: str, last: str) -> None:
    x = vectors()
    quantizer, codes = fitted(kind, last, x)
    assert codes.shape == (len(x), len(quantizer.codebook_sizes))
    assert codes.min() >= 0
    assert (codes < np.asarray(quantizer.codebook_sizes)).all()
    np.testing.assert_array_equal(quantizer.encode(x), codes)
    np.testing.assert_array_equal(fitted(kind, last, x)[1], codes)
    assert not np.array_equal(fitted(kind, last, x, seed=1)[1], codes)


@pytest.mark.parametrize(("kind", "last"), EVERY)
def test_frozen_parts_name_new_vectors_the_same_and_one_by_one(kind: str, last: str) -> None:
    quantizer, codes = fitted(kind, last, vectors())
    again = load_quantizer(quick(kind, last), {name: value.copy() for name, value in quantizer.arrays().items()})
    assert again.codebook_sizes == quantizer.codebook_sizes
    new = vectors(40, seed=9)
    named = quantizer.encode(new)
    np.testing.assert_array_equal(again.encode(new), named)
    np.testing.assert_array_equal(np.concatenate([again.encode(row[None]) for row in new]), named)
    np.testing.assert_array_equal(again.decode(codes), quantizer.decode(codes))
    assert quantizer.encode(new[:0]).shape == (0, named.shape[1])


@pytest.mark.parametrize(("kind", "last"), EVERY)
def test_more_levels_keep_more(kind: str, last: str) -> None:
    x = vectors(600)
    quantizer, codes = fitted(kind, last, x)
    errors = reconstruction_errors(quantizer, x, codes)
    assert len(errors) == len(quantizer.codebook_sizes)
    assert errors == sorted(errors, reverse=True)
    assert 0 < errors[-1] < errors[0] < 1


@pytest.mark.parametrize("last", ["fsq", "opq"])
@pytest.mark.parametrize("kind", ["rq-kmeans", "rq-vae"])
def test_the_last_stage_codes_what_the_levels_left_over(kind: str, last: str) -> None:
    x = vectors()
    stack, codes = fitted(kind, last, x)
    assert isinstance(stack, ResidualStack)
    left = x - stack.base.decode(codes[:, :2])
    np.testing.assert_array_equal(stack.last.encode(left), codes[:, 2:])
    np.testing.assert_allclose(
        stack.decode(codes), stack.base.decode(codes[:, :2]) + stack.last.decode(codes[:, 2:]), atol=1e-6
    )


def test_the_registry_knows_exactly_what_the_settings_allow() -> None:
    fields = QuantizerConfig.model_fields
    assert set(KINDS) == set(fields["kind"].annotation.__args__)  # type: ignore[union-attr]
    assert set(LAST) | {"none"} == set(fields["last"].annotation.__args__)  # type: ignore[union-attr]


@pytest.mark.parametrize(("kind", "last"), EVERY)
def test_identical_vectors_and_tiny_catalogues_are_no_trouble(kind: str, last: str) -> None:
    for x in (np.ones((5, 6), np.float32), vectors(3, 6)):
        quantizer, codes = fitted(kind, last, x)
        assert np.isfinite(quantizer.decode(codes)).all()
        if len(x) == 5:
            assert len(np.unique(codes, axis=0)) == 1


# -- residual K-means --------------------------------------------------------------------------------------------------


@settings(max_examples=30, deadline=None)
@given(
    n=st.integers(2, 80),
    sizes=st.lists(st.integers(2, 9), min_size=1, max_size=4),
    balanced=st.sets(st.integers(0, 3)),
    seed=st.integers(0, 999),
)
def test_residual_kmeans_never_loses_by_a_level(n: int, sizes: list[int], balanced: set[int], seed: int) -> None:
    x = np.random.default_rng(seed).normal(size=(n, 3)).astype(np.float32)
    quantizer = RQKMeans(sizes, balanced_levels=[b for b in balanced if b < len(sizes)], iterations=4)
    codes = quantizer.fit(x, np.random.default_rng(seed))
    # against answering zero, which is where the residuals start
    left = [float((x**2).sum())]
    left += [float(((x - quantizer.decode(codes[:, :depth])) ** 2).sum()) for depth in range(1, len(sizes) + 1)]
    assert all(after <= before * (1 + 1e-5) + 1e-6 for before, after in itertools.pairwise(left))
    for level, size in enumerate(sizes):
        counts = np.bincount(codes[:, level], minlength=size)
        if level in quantizer.balanced:
            assert counts.max() - counts.min() <= 1
        share = counts[counts > 0] / n
        assert -(share * np.log(share)).sum() <= math.log(size) + 1e-9
    if not quantizer.balanced:
        np.testing.assert_array_equal(quantizer.encode(x), codes)


def test_decoding_leaves_the_last_residual() -> None:
    x = vectors(400)
    quantizer = RQKMeans([16, 8, 4], balanced_levels=[-1])
    codes = quantizer.fit(x, np.random.default_rng(0))
    residual = x
    for level, centroids in enumerate(quantizer.centroids):
        residual = residual - centroids[codes[:, level]]
    np.testing.assert_allclose(x - quantizer.decode(codes), residual, atol=1e-5)
    sizes = np.bincount(codes[:, 2], minlength=4)
    assert sizes.max() - sizes.min() <= 1


@settings(max_examples=30, deadline=None)
@given(n=st.integers(1, 60), k=st.integers(1, 10), seed=st.integers(0, 999))
def test_kmeans_ends_where_its_docstring_says(n: int, k: int, seed: int) -> None:
    x = np.random.default_rng(seed).normal(size=(n, 2)).astype(np.float32)
    centroids, plain = kmeans(x, k, np.random.default_rng(seed), iterations=3)
    np.testing.assert_array_equal(plain, nearest(x, centroids))
    centroids, even = kmeans(x, k, np.random.default_rng(seed), iterations=3, balanced=True)
    for code in np.unique(even):
        np.testing.assert_allclose(centroids[code], x[even == code].mean(0), atol=1e-5)


def test_balanced_dealing_costs_little_more_than_greedy_nearest() -> None:
    """The paper's greedy form (each centroid in turn takes its nearest unassigned points) is the twin to beat."""
    x = vectors(240, 4)
    centroids, _ = kmeans(x, 8, np.random.default_rng(0))
    greedy = np.full(len(x), -1)
    for code, centroid in enumerate(centroids):
        free = np.flatnonzero(greedy < 0)
        greedy[free[np.argsort(((x[free] - centroid) ** 2).sum(1))[:30]]] = code
    ours = balanced_assignment(x, centroids)

    def cost(assignment: np.ndarray) -> float:
        return float(((x - centroids[assignment]) ** 2).sum())

    assert np.bincount(ours, minlength=8).tolist() == [30] * 8
    assert cost(ours) < cost(greedy)


# -- RQ-VAE ------------------------------------------------------------------------------------------------------------


def test_straight_through_is_the_quantised_value_with_the_identitys_gradient() -> None:
    value = torch.randn(5, 3, requires_grad=True)
    out = straight_through(value, value.round())
    torch.testing.assert_close(out, value.round())
    weight = torch.randn(5, 3)
    torch.autograd.backward((out * weight).sum())
    torch.testing.assert_close(value.grad, weight)


def net(commitment: float = 0.25) -> ResidualVAE:
    torch.manual_seed(0)
    own = ResidualVAE(6, [8], 4, [5, 3], commitment=commitment)
    for book in own.codebooks:
        torch.nn.init.normal_(book)
    return own


def test_the_encoder_learns_from_the_reconstruction_as_if_nothing_were_rounded() -> None:
    own, x = net(commitment=0.0), torch.randn(7, 6)
    _, _, loss = own(x)
    torch.autograd.backward(loss)
    got = [p.grad.clone() for p in own.encoder.parameters() if p.grad is not None]
    own.zero_grad()
    z = own.encoder(x)
    total = own.quantise(z)[1].detach().requires_grad_()
    torch.autograd.backward(((x - own.decoder(total)) ** 2).sum(1).mean())
    torch.autograd.backward(z, total.grad)
    for mine, theirs in zip(got, own.encoder.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs.grad)


def test_codebooks_move_to_their_residuals_and_commitment_holds_the_latent() -> None:
    own, z = net(), torch.randn(50, 4, requires_grad=True)
    codes, total, loss = own.quantise(z)
    torch.autograd.backward(loss)
    residual = z.detach()
    wanted = torch.zeros_like(z)
    for level, book in enumerate(own.codebooks):
        torch.testing.assert_close(codes[:, level], nearest_code(residual, book.detach()))
        gradient = torch.zeros_like(book)
        gradient.index_add_(0, codes[:, level], 2 * (book.detach()[codes[:, level]] - residual) / len(z))
        torch.testing.assert_close(book.grad, gradient)
        residual = residual - book.detach()[codes[:, level]]
        wanted += 0.25 * 2 * residual / len(z)
    torch.testing.assert_close(z.grad, wanted)
    torch.testing.assert_close(total.detach(), z.detach() - residual)


def test_codes_that_name_nothing_are_moved() -> None:
    x = vectors(400, 6)
    own = RQVAE([8], hidden=[16], latent=4, epochs=20)
    own.fit(x, np.random.default_rng(0), quiet=True)
    with torch.no_grad():
        own.net.codebooks[0][3:] = 1e3
    optimizer = torch.optim.Adam(own.net.parameters())
    used = torch.tensor([5, 5, 5, 0, 0, 0, 0, 0])
    before = own.revived
    own._revive(own._scaled(x), [used], optimizer, np.random.default_rng(0))
    assert own.revived == before + 5
    assert float(own.net.codebooks[0].detach().abs().max()) < 1e3
    assert len(np.unique(own.encode(x))) > 3


def test_training_the_rq_vae_lowers_its_error() -> None:
    x = vectors(500, 8)

    def error(epochs: int) -> float:
        own = RQVAE([8, 8], hidden=[32], latent=6, epochs=epochs)
        return reconstruction_errors(own, x, own.fit(x, np.random.default_rng(0), quiet=True))[-1]

    assert error(60) < 0.7 * error(2)


# -- FSQ ---------------------------------------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(levels=st.lists(st.integers(2, 9), min_size=1, max_size=5), seed=st.integers(0, 999))
def test_each_fsq_dimension_has_exactly_its_number_of_values(levels: list[int], seed: int) -> None:
    sizes = torch.tensor(levels)
    wide = torch.linspace(-30, 30, 4001)[:, None].expand(-1, len(levels))
    digits = scalar_quantise(wide, sizes)
    for dimension, size in enumerate(levels):
        assert digits[:, dimension].unique().tolist() == [float(v) for v in range(-(size // 2), (size + 1) // 2)]
    z = (3 * torch.randn(20, len(levels), generator=torch.Generator().manual_seed(seed))).requires_grad_()
    torch.autograd.backward(scalar_quantise(z, sizes).sum())
    own = z.detach().clone().requires_grad_()
    torch.autograd.backward(bound(own, sizes).sum())
    torch.testing.assert_close(z.grad, own.grad)


@settings(max_examples=25, deadline=None)
@given(levels=st.lists(st.integers(2, 7), min_size=1, max_size=4), seed=st.integers(0, 99))
def test_an_fsq_code_is_its_digits_and_back(levels: list[int], seed: int) -> None:
    own = FSQ(levels, hidden=4, epochs=0)
    x = vectors(50, 5, seed)
    codes = own.fit(x, np.random.default_rng(seed))
    assert own.codebook_sizes == (math.prod(levels),)
    assert codes.max() < own.codebook_sizes[0]
    # every code decodes to one point, and equal codes to equal points
    every = own.decode(np.arange(own.codebook_sizes[0], dtype=np.int32)[:, None])
    np.testing.assert_allclose(own.decode(codes), every[codes[:, 0]], atol=1e-5)
    assert len(np.unique(every.round(5), axis=0)) == own.codebook_sizes[0] or min(levels) == 2 or len(levels) > 5


def test_fsq_uses_its_codes_and_training_helps() -> None:
    x = vectors(1500, 6)
    plain = FSQ((5, 5, 5), epochs=0)
    start = plain.fit(x, np.random.default_rng(0))
    own = FSQ((5, 5, 5), epochs=15)
    codes = own.fit(x, np.random.default_rng(0), quiet=True)
    assert len(np.unique(codes)) > 0.7 * 125
    assert reconstruction_errors(own, x, codes)[0] < reconstruction_errors(plain, x, start)[0] < 1


# -- OPQ ---------------------------------------------------------------------------------------------------------------


@settings(max_examples=15, deadline=None)
@given(n=st.integers(3, 80), d=st.integers(2, 9), m=st.integers(1, 4), seed=st.integers(0, 99))
def test_opq_rotates_and_is_no_worse_than_pq(n: int, d: int, m: int, seed: int) -> None:
    m = min(m, d)
    rng = np.random.default_rng(seed)
    x = (rng.normal(size=(n, d)) @ rng.normal(size=(d, d))).astype(np.float32)
    plain, own = OPQ(m, 4, iterations=0), OPQ(m, 4, iterations=6)
    plain_codes = plain.fit(x, np.random.default_rng(seed))
    codes = own.fit(x, np.random.default_rng(seed))
    np.testing.assert_array_equal(plain.rotation, np.eye(d))
    np.testing.assert_allclose(own.rotation @ own.rotation.T, np.eye(d), atol=1e-4)

    def error(quantizer: OPQ, own_codes: Any) -> float:
        return float(((x - quantizer.decode(own_codes)) ** 2).sum())

    assert error(own, codes) <= error(plain, plain_codes) * (1 + 1e-4) + 1e-5


def test_opq_finds_the_axes_that_pq_misses() -> None:
    """Two correlated halves: the product of their codebooks is wasted until they are rotated apart."""
    rng = np.random.default_rng(0)
    half = rng.normal(size=(800, 3)).astype(np.float32)
    x = np.concatenate([half, half + 0.05 * rng.normal(size=(800, 3)).astype(np.float32)], axis=1)
    plain, own = OPQ(2, 16, iterations=0), OPQ(2, 16)
    worse = reconstruction_errors(plain, x, plain.fit(x, np.random.default_rng(0)))[-1]
    assert reconstruction_errors(own, x, own.fit(x, np.random.default_rng(0)))[-1] < 0.8 * worse


def test_opq_refuses_more_subspaces_than_numbers() -> None:
    with pytest.raises(RankloomError, match="3 OPQ subspaces do not fit vectors of 2 numbers"):
        OPQ(3, 4).fit(vectors(20, 2), np.random.default_rng(0))


# -- sizes, settings, report -------------------------------------------------------------------------------------------


def test_codebooks_grow_with_the_catalogue() -> None:
    sizes = [codebook_sizes_for(n)[0] for n in (1, 1000, 12_000, 10_000_000, 10**11)]
    assert sizes == sorted(sizes)
    assert codebook_sizes_for(12_101) == (256, 256, 256)
    assert sizes[-1] == 8192


@given(n=st.integers(1, 10**12), levels=st.integers(1, 4))
def test_decreasing_codebooks_keep_the_room(n: int, levels: int) -> None:
    even, falling = codebook_sizes_for(n, levels), codebook_sizes_for(n, levels, decreasing=True)
    assert list(falling) == sorted(falling, reverse=True)
    assert math.prod(even) == math.prod(falling)
    assert 0.5 <= math.prod(fsq_levels_for(n)) / even[0] <= 1.25
    assert 8 <= opq_codes_for(n) <= 256


def test_a_small_catalogue_gets_the_shapes_of_the_papers() -> None:
    assert make_quantizer(settings_of("decreasing=true"), 12_101).codebook_sizes == (1024, 256, 64)
    assert make_quantizer(settings_of("last=fsq"), 12_101).codebook_sizes == (256, 256, 240)
    assert make_quantizer(settings_of("last=opq"), 12_101).codebook_sizes == (256, 256, 256, 64, 64)
    assert make_quantizer(settings_of("last=fsq", "fsq_levels=[8,8,8,8]"), 1).codebook_sizes[-1] == 4096


@pytest.mark.parametrize(
    ("assignments", "says"),
    [
        (["kind=rq-vae", "balanced_levels=[-1]"], "rq-vae has no balanced levels"),
        (["balanced_levels=[3]"], "outside the 3 residual levels"),
        (["last=fsq", "balanced_levels=[2]"], "outside the 2 residual levels"),
        (["codebook_sizes=[8,16]", "decreasing=true"], "grow"),
        (["codebook_sizes=[]"], "at least one level"),
        (["codebook_sizes=[8,1]"], "at least 2 codes"),
        (["fsq_levels=[5,5]"], "last is none"),
        (["last=fsq", "fsq_levels=[1,5]"], "at least 2 values"),
        (["last=fsq", "fsq_levels=[9,9,9,9,9,9]"], "at most 65536"),
        (["last=fsq", "opq_codes=16"], "last is fsq"),
        (["kind=rq-vae", "vae_hidden=[0]"], "widths of at least 1"),
        (["kind=lsh"], "rq-kmeans"),
        (["fsq_level=[5]"], "did you mean 'fsq_levels'"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(assignments: list[str], says: str) -> None:
    with pytest.raises(RankloomError) as raised:
        settings_of(*assignments)
    assert says in str(raised.value) + str(raised.value.action)
    # the reader is told what is wrong, not shown the whole section
    assert len(raised.value.message) < 300


@settings(max_examples=40, deadline=None)
@given(
    codes=st.lists(st.tuples(st.integers(0, 2), st.integers(0, 3), st.integers(0, 1)), min_size=1, max_size=40),
)
def test_the_report_equals_its_definitions(codes: list[tuple[int, ...]]) -> None:
    sizes = (3, 4, 2)
    report = usage_report(SemanticIds(np.array(codes, np.int32), sizes, np.zeros(len(codes), np.float32)))
    n = len(codes)
    for level, size in enumerate(sizes):
        own = [code[level] for code in codes]
        assert report["cur"][level] == pytest.approx(len(set(own)) / size)
        shares = [own.count(code) / n for code in set(own)]
        assert report["entropy_nats"][level] == pytest.approx(-sum(p * math.log(p) for p in shares))
        prefixes = {code[: level + 1] for code in codes}
        assert report["cur_prefix"][level] == pytest.approx(len(prefixes) / math.prod(sizes[: level + 1]))
    assert report["cur_total"] == report["cur_prefix"][-1]
    assert report["icr"] == pytest.approx(sum(codes.count(code) == 1 for code in codes) / n)
    assert report["icr"] + report["collision_rate"] == pytest.approx(1)
    assert report["largest_bucket"] == max(codes.count(code) for code in codes)
    assert report["distinct_sids"] == len(set(codes))


def test_reconstruction_error_is_the_share_of_variance_that_is_lost() -> None:
    x = vectors(100, 4)
    quantizer = RQKMeans([2])
    codes = quantizer.fit(x, np.random.default_rng(0))
    wanted = ((x - quantizer.decode(codes)) ** 2).sum() / ((x - x.mean(0)) ** 2).sum()
    assert reconstruction_errors(quantizer, x, codes) == [pytest.approx(float(wanted), rel=1e-5)]
    quantizer.centroids = [np.repeat(x.mean(0)[None], 2, axis=0)]
    assert reconstruction_errors(quantizer, x, codes) == [pytest.approx(1.0, rel=1e-4)]
