"""Parts of the tokenizer on vectors and codes of a few numbers, against values computed by hand."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch

from rankloom.config import AlignmentConfig, Config
from rankloom.errors import RankloomError
from rankloom.semantic.alignment import Aligner
from rankloom.semantic.ids import SemanticIds
from rankloom.semantic.quantizers.base import CodeArray, FloatArray, reconstruction_errors
from rankloom.semantic.quantizers.fsq import _Corrected
from rankloom.semantic.quantizers.opq import OPQ
from rankloom.semantic.quantizers.rq_vae import RQVAE
from rankloom.semantic.quantizers.sizes import codebook_sizes_for, fsq_levels_for, opq_codes_for
from rankloom.semantic.text import vector_column
from rankloom.semantic.tokenizer import Tokenizer, dedup_codes


class Table:
    """A quantiser of two levels: the first names the largest number of a vector; decoding looks codes up."""

    codebook_sizes = (3, 2)

    def __init__(self, *decoded: list[list[float]]) -> None:
        self.decoded = [np.array(own, dtype=np.float32) for own in decoded]

    def fit(self, vectors: FloatArray, rng: np.random.Generator, *, quiet: bool = False) -> CodeArray:
        return self.encode(vectors)

    def encode(self, vectors: FloatArray) -> CodeArray:
        return vectors.argmax(1)[:, None].astype(np.int32)

    def decode(self, codes: CodeArray) -> FloatArray:
        return self.decoded[codes.shape[1] - 1]

    def arrays(self) -> dict[str, Any]:
        return {}


def tokenizer(*, collision: str) -> Tokenizer:
    """Three items of three numbers; 0 and 1 share a SID, which the second level parts."""
    config = Config().with_overrides(
        ["text.embedder=column", "text.vector_column=v", "alignment.enabled=false", f"quantizer.collision={collision}"]
    )
    vectors = np.eye(3, dtype=np.float32)[[0, 0, 1]]
    codes = np.array([[0, 0], [0, 1], [1, 0]], dtype=np.int32)
    return Tokenizer(
        config=config, embedder_name="column", embedder=None, aligner=None, quantizer=Table(), content=vectors, aligned=vectors,
        semantic_ids=SemanticIds(codes, (3, 5), np.ones(3, np.float32)), reconstruction=[0.25],
    )  # fmt: skip


def test_errors_of_vectors_without_spread_are_squared_distances() -> None:
    vectors = np.array([[1, 2], [1, 2]], dtype=np.float32)
    codes = np.zeros((2, 2), dtype=np.int32)
    # the first level answers (0, 2), one off for each of the two; both levels are exact
    assert reconstruction_errors(Table([[0, 2], [0, 2]], [[1, 2], [1, 2]]), vectors, codes) == [2.0, 0.0]


def test_errors_are_shares_of_the_distance_to_the_mean() -> None:
    vectors = np.array([[0, 0], [4, 0]], dtype=np.float32)
    codes = np.zeros((2, 2), dtype=np.int32)
    # 4 + 4 to the mean; the first level is 1 and 1 off, both levels are 0 and 1 off
    assert reconstruction_errors(Table([[1, 0], [3, 0]], [[0, 0], [3, 0]]), vectors, codes) == [0.25, 0.125]


@pytest.mark.parametrize("epochs", [1, 20])
def test_the_codebooks_of_an_rq_vae_start_once_after_the_warm_up(monkeypatch: pytest.MonkeyPatch, epochs: int) -> None:
    steps, starts = [0], []
    step, start = torch.optim.Adam.step, RQVAE._start_codebooks

    def counted(self: torch.optim.Adam, *args: Any, **kwargs: Any) -> Any:
        steps[0] += 1
        return step(self, *args, **kwargs)

    def noted(self: RQVAE, *args: Any) -> None:
        starts.append(steps[0])
        start(self, *args)

    monkeypatch.setattr(torch.optim.Adam, "step", counted)
    monkeypatch.setattr(RQVAE, "_start_codebooks", noted)
    vectors = np.random.default_rng(0).normal(size=(64, 4)).astype(np.float32)
    RQVAE((4, 4), hidden=(8,), latent=4, epochs=epochs).fit(vectors, np.random.default_rng(0), quiet=True)
    # 64 vectors are two batches of 32; a tenth of the epochs is warm-up: two of twenty, none of one
    assert steps == [2 * epochs]
    assert starts == [4 if epochs == 20 else 0]


@pytest.mark.parametrize("bits", range(3, 14))
def test_an_fsq_level_is_about_as_large_as_a_residual_level(bits: int) -> None:
    n_items = max(1, 2 ** (3 * bits) // 400)
    assert codebook_sizes_for(n_items) == (2**bits,) * 3
    levels = fsq_levels_for(n_items)
    assert math.prod(levels) / 2**bits == pytest.approx(1, abs=0.1)
    assert list(levels) == sorted(levels, reverse=True)
    assert max(levels) <= 8
    assert min(levels) >= 5 or bits < 5
    assert opq_codes_for(n_items) == {3: 8, 4: 8, 5: 8, 6: 16, 7: 32, 8: 64, 9: 128}.get(bits, 256)


def test_fsq_levels_are_those_of_the_paper() -> None:
    assert fsq_levels_for(2**24 // 400) == (8, 6, 5)
    assert fsq_levels_for(2**30 // 400) == (8, 5, 5, 5)
    assert fsq_levels_for(2**36 // 400) == (7, 5, 5, 5, 5)


def test_the_layer_of_fsq_adds_its_correction_to_the_line() -> None:
    layer = _Corrected(1, 1, 1)
    with torch.no_grad():
        for part, weight, bias in ((layer.linear, 2.0, 1.0), (layer.inner, 1.0, 0.0), (layer.outer, 3.0, 0.5)):
            part.weight.fill_(weight)
            part.bias.fill_(bias)
        # 2 * 1 + 1, and 3 * silu(1) + 0.5 with silu(1) = 1 / (1 + 1/e)
        expected = 3 + 3 / (1 + math.exp(-1)) + 0.5
        assert float(layer(torch.ones(1, 1))) == pytest.approx(expected, rel=1e-6)


def test_a_turned_grid_is_coded_exactly_along_its_own_axes() -> None:
    # 4 x 4 places, wider in one direction, turned by 45 degrees: two codebooks of four have room for it, if turned back
    wide, narrow = np.meshgrid([-9.0, -2.0, 3.0, 8.0], [-2.0, -1.0, 1.0, 2.0])
    grid = np.stack([wide.ravel(), narrow.ravel()], axis=1)
    turn = np.array([[1, 1], [-1, 1]]) / math.sqrt(2)
    vectors = (grid @ turn).astype(np.float32)
    opq = OPQ(2, 4, iterations=1)
    codes = opq.fit(vectors, np.random.default_rng(0), quiet=True)
    assert len(np.unique(codes, axis=0)) == 16
    np.testing.assert_allclose(opq.decode(codes), vectors, atol=1e-4)
    plain = OPQ(2, 4, iterations=0)
    codes = plain.fit(vectors, np.random.default_rng(0), quiet=True)
    assert float(np.abs(plain.decode(codes) - vectors).max()) > 0.5, "without a turn four values a number are too few"


def test_the_learning_rate_of_the_alignment_falls_along_half_a_cosine(monkeypatch: pytest.MonkeyPatch) -> None:
    rates = []
    step = torch.optim.AdamW.step

    def noted(self: torch.optim.AdamW, *args: Any, **kwargs: Any) -> Any:
        rates.append(float(self.param_groups[0]["lr"]))
        return step(self, *args, **kwargs)

    monkeypatch.setattr(torch.optim.AdamW, "step", noted)
    aligner = Aligner(4, AlignmentConfig(dim=4, epochs=4, batch_size=8, learning_rate=0.01), 0)
    pairs = np.array([0, 1]), np.array([1, 0]), np.ones(2, dtype=np.float32)
    aligner.fit(np.eye(4, dtype=np.float32), pairs, quiet=True)
    half = math.sqrt(0.5)
    assert rates == pytest.approx([0.01, 0.005 * (1 + half), 0.005, 0.005 * (1 - half)])


def test_a_new_item_takes_the_next_code_of_its_sid_until_all_are_taken() -> None:
    own = tokenizer(collision="dedup")
    vectors = np.eye(3)[[0, 2, 0, 1, 0, 0, 0]].tolist()
    items = pl.DataFrame({"item_id": [f"n{n}" for n in range(7)], "v": vectors})
    _, _, codes = own.assign(items)
    # the catalogue has two items of SID 0 and one of SID 1; five codes tell items of one SID apart
    assert codes.tolist() == [[0, 2], [2, 0], [0, 3], [1, 1], [0, 4], [0, 4], [0, 4]]


def test_the_dedup_level_has_room_for_the_largest_bucket_and_eight_more() -> None:
    codes = np.array([[0], [1], [0], [0]], dtype=np.int32)
    named, sizes = dedup_codes(codes, (2,), np.array([1, 5, 9, 1], dtype=np.float32))
    assert named.tolist() == [[0, 1], [1, 0], [0, 0], [0, 2]], "by prior, then in the order of the catalogue"
    assert sizes == (2, 3 + 8)


def test_the_summary_counts_shared_ids_before_the_dedup_code() -> None:
    parted = tokenizer(collision="dedup").summary()
    assert "33.3% of items have one of their own (ICR) before the dedup code, at most 2 share one" in parted
    listed = tokenizer(collision="list").summary()
    assert "100.0% of items have one of their own (ICR), at most 1 share one" in listed
    assert "before the dedup code" not in listed


def test_vectors_of_a_single_item_are_read_and_need_numbers() -> None:
    one = pl.DataFrame({"item_id": ["a"], "v": [[3.0, 4.0]]})
    np.testing.assert_allclose(vector_column(one, "v"), [[0.6, 0.8]], rtol=1e-6)
    none = pl.DataFrame({"item_id": ["a"], "v": [[]]}, schema={"item_id": pl.String, "v": pl.List(pl.Float64)})
    with pytest.raises(RankloomError) as caught:
        vector_column(none, "v")
    assert caught.value.code == "vector-shape"


def test_vectors_of_two_widths_are_refused() -> None:
    two = pl.DataFrame({"item_id": ["a", "b"], "v": [[1.0, 2.0], [1.0]]})
    with pytest.raises(RankloomError) as caught:
        vector_column(two, "v")
    assert caught.value.code == "vector-shape"
