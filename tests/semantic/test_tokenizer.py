from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rankloom.config import Config
from rankloom.data.sequences import TRAIN, Sequences, load_sequences
from rankloom.data.shop import Shop
from rankloom.errors import RankloomError
from rankloom.semantic import minilm
from rankloom.semantic.hashed import HashedTextEmbedder, terms
from rankloom.semantic.ids import SemanticIds, usage_report
from rankloom.semantic.pairs import cooccurrence_pairs, swing_pairs
from rankloom.semantic.quantizers.kmeans import balanced_assignment, kmeans, nearest
from rankloom.semantic.quantizers.rq_kmeans import RQKMeans, codebook_sizes_for
from rankloom.semantic.text import item_texts, latin_share, make_embedder, resolve_embedder, vector_column
from rankloom.semantic.tokenizer import Tokenizer


def vectors(n: int = 200, d: int = 6, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(n, d)).astype(np.float32)


@settings(max_examples=40, deadline=None)
@given(n=st.integers(1, 120), k=st.integers(1, 12), seed=st.integers(0, 999))
def test_balanced_clusters_differ_by_at_most_one(n: int, k: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    assignment = balanced_assignment(
        rng.normal(size=(n, 3)).astype(np.float32), rng.normal(size=(k, 3)).astype(np.float32)
    )
    sizes = np.bincount(assignment, minlength=k)
    assert sizes.sum() == n
    assert sizes.max() - sizes.min() <= 1


def test_kmeans_finds_separate_clusters() -> None:
    centers = np.array([[0, 0], [10, 0], [0, 10]], dtype=np.float32)
    x = np.repeat(centers, 30, axis=0) + 0.1 * vectors(90, 2)
    found, assignment = kmeans(x, 3, np.random.default_rng(0))
    assert sorted(np.bincount(assignment).tolist()) == [30, 30, 30]
    assert np.abs(found[nearest(centers, found)] - centers).max() < 0.2


def test_residuals_shrink_and_decoding_inverts_encoding() -> None:
    x = vectors(400)
    quantizer = RQKMeans([16, 8, 4], balanced_levels=[-1])
    codes = quantizer.fit(x, np.random.default_rng(0))
    errors = []
    for depth in (1, 2, 3):
        partial = sum(quantizer.centroids[level][codes[:, level]] for level in range(depth))
        errors.append(float(((x - partial) ** 2).mean()))
    assert errors[0] > errors[1] > errors[2]
    np.testing.assert_allclose(quantizer.decode(codes), partial, rtol=1e-5, atol=1e-6)
    sizes = np.bincount(codes[:, 2], minlength=4)
    assert sizes.max() - sizes.min() <= 1
    again = RQKMeans.from_arrays(quantizer.arrays())
    np.testing.assert_array_equal(again.encode(x), quantizer.encode(x))


def test_codebooks_grow_with_the_catalogue() -> None:
    sizes = [codebook_sizes_for(n)[0] for n in (1, 1000, 12_000, 10_000_000, 10**11)]
    assert sizes == sorted(sizes)
    assert codebook_sizes_for(12_101) == (256, 256, 256)
    assert sizes[-1] == 8192


def test_usage_report_counts() -> None:
    ids = SemanticIds(np.array([[0, 0], [0, 0], [1, 0], [1, 1]], dtype=np.int32), (4, 2), np.zeros(4, np.float32))
    report = usage_report(ids)
    assert report["cur"] == [0.5, 1.0]
    assert report["icr"] == 0.5
    assert report["largest_bucket"] == 2
    assert report["distinct_sids"] == 3
    assert report["entropy_nats"][0] == pytest.approx(np.log(2))
    assert report["cur_total"] == pytest.approx(3 / 8)


def test_terms_of_spaced_and_unspaced_scripts() -> None:
    assert "running shoes" in terms("Running SHOES")
    chinese = terms("夏季连衣裙")
    assert {"连衣", "连衣裙", "裙"} <= set(chinese)
    assert terms("ＡＢＣ") == ["abc"]


def test_chinese_text_finds_its_kind() -> None:
    kinds = [
        "猫砂 除臭 豆腐",
        "猫砂 膨润土 除臭",
        "机械键盘 青轴",
        "键盘 机械 红轴",
        "防晒霜 清爽",
        "清爽 防晒 喷雾霜",
    ] * 4
    embedder = HashedTextEmbedder(8, n_buckets=1024)
    x = embedder.fit(kinds)
    near = embedder.embed(["除臭猫砂", "红轴机械键盘", "防晒霜"]) @ x[:6].T
    assert near.argmax(1).tolist()[0] in (0, 1)
    assert near.argmax(1).tolist()[1] in (2, 3)
    assert near.argmax(1).tolist()[2] in (4, 5)
    again = HashedTextEmbedder.from_arrays(embedder.arrays())
    np.testing.assert_array_equal(again.embed(kinds), embedder.embed(kinds))
    assert embedder.embed(["zzz"]).tolist() == [[0.0] * 8]


def log(lists: list[list[int]], n_items: int, stage: int = TRAIN) -> Sequences:
    flat = np.array([i for own in lists for i in own], dtype=np.int32)
    n = len(flat)
    return Sequences(
        user_ids=np.array([f"u{u}" for u in range(len(lists))]), offsets=np.r_[0, np.cumsum([len(own) for own in lists])], item=flat,
        kind=np.full(n, 2, np.int8), timestamp=np.arange(n), watch_ratio=np.full(n, np.nan, np.float32), surface=np.zeros(n, np.int8),
        position=np.full(n, -1, np.int16), query=np.full(n, -1, np.int32), target=np.ones(n, bool), stage=np.full(n, stage, np.int8), n_items=n_items,
    )  # fmt: skip


def test_swing_equals_its_definition() -> None:
    lists = [[0, 1, 2], [0, 1, 3], [0, 1], [2, 3]]
    i, j, weight = swing_pairs(log(lists, 4), alpha=1.0)
    expected: dict[tuple[int, int], float] = {}
    for a in range(4):
        for b in range(4):
            both = [set(own) for own in lists if a in own and b in own]
            total = sum(1 / (1 + len(u & v)) for n, u in enumerate(both) for v in both[n + 1 :])
            if a != b and total:
                expected[a, b] = total
    assert {(int(a), int(b)): pytest.approx(float(w)) for a, b, w in zip(i, j, weight, strict=True)} == expected


def test_pairs_never_see_what_comes_after_training() -> None:
    from rankloom.data.sequences import TEST

    later = log([[0, 1, 2]] * 5, 3, stage=TEST)
    assert len(swing_pairs(later)[0]) == 0
    assert len(cooccurrence_pairs(later)[0]) == 0


def test_cooccurrence_prefers_the_near() -> None:
    i, j, weight = cooccurrence_pairs(log([[0, 1, 2]] * 10, 3))
    found = {(int(a), int(b)): float(w) for a, b, w in zip(i, j, weight, strict=True)}
    assert found[0, 1] > found[0, 2]
    assert found[0, 1] == found[1, 0]


@pytest.mark.parametrize("collision", ["list", "dedup"])
def test_new_items_are_named_by_the_frozen_parts(bazaar: Shop, collision: str) -> None:
    config = Config.preset_config("tiny").with_overrides(
        [f"quantizer.collision={collision}", "quantizer.codebook_sizes=[4,4]"]
    )
    items, sequences = bazaar.items(), load_sequences(bazaar, config.data)
    tokenizer = Tokenizer.fit(items, sequences, config, quiet=True)
    content, aligned, codes = tokenizer.assign(items[:7])
    np.testing.assert_allclose(content, tokenizer.content[:7], atol=1e-5)
    np.testing.assert_allclose(aligned, tokenizer.aligned[:7], atol=1e-5)
    np.testing.assert_array_equal(codes[:, :2], tokenizer.semantic_ids.codes[:7, :2])
    report = tokenizer.report()
    if collision == "dedup":
        assert report["icr"] == 1.0
        taken = {tuple(row) for row in tokenizer.semantic_ids.codes.tolist()}
        assert not {tuple(row) for row in codes.tolist()} & taken
    else:
        assert report["icr"] < 1.0
    arrays, meta = tokenizer.state()
    again = Tokenizer.from_state(arrays, meta)
    np.testing.assert_array_equal(again.assign(items[:7])[2], codes)
    np.testing.assert_array_equal(again.embed_texts(["猫砂"]), tokenizer.embed_texts(["猫砂"]))


def test_alignment_brings_together_what_is_used_together(bazaar: Shop) -> None:
    config = Config.preset_config("tiny").with_overrides(["alignment.epochs=80"])
    sequences = load_sequences(bazaar, config.data)
    tokenizer = Tokenizer.fit(bazaar.items(), sequences, config, quiet=True)
    i, j, _ = cooccurrence_pairs(sequences)
    rng = np.random.default_rng(0)
    random = rng.permutation(j)

    def margin(x: np.ndarray) -> float:
        return float((x[i] * x[j]).sum(1).mean() - (x[i] * x[random]).sum(1).mean())

    assert margin(tokenizer.aligned) > margin(tokenizer.content)


def test_own_vectors_by_column(bazaar: Shop) -> None:
    items = bazaar.items()
    own = items.with_columns(pl.Series("v", vectors(items.height, 5).tolist()))
    base = ["text.vector_column=v", "text.embedder=column", "alignment.enabled=false", "quantizer.codebook_sizes=[8,8]"]
    config = Config.preset_config("tiny").with_overrides(base)
    sequences = load_sequences(bazaar, config.data)
    tokenizer = Tokenizer.fit(own, sequences, config, quiet=True)
    assert tokenizer.content.shape[1] == 5
    assert tokenizer.embed_texts(["x"]).shape == (1, 5)
    np.testing.assert_array_equal(tokenizer.assign(own[:3])[2], tokenizer.semantic_ids.codes[:3])
    beside = Config.preset_config("tiny").with_overrides(["text.vector_column=v"])
    assert Tokenizer.fit(own, sequences, beside, quiet=True).content.shape[1] == 69
    broken = own.with_columns(
        pl.when(pl.int_range(pl.len()) == 2).then(pl.lit([float("nan")] * 5)).otherwise(pl.col("v")).alias("v")
    )
    with pytest.raises(RankloomError, match="NaN"):
        vector_column(broken, "v")
    with pytest.raises(RankloomError, match="no column"):
        vector_column(own, "w")
    with pytest.raises(RankloomError, match="same length"):
        vector_column(own.with_columns(pl.lit("x").alias("v")), "v")
    with pytest.raises(RankloomError, match="names none"):
        Tokenizer.fit(own, sequences, Config.preset_config("tiny").with_overrides(["text.embedder=column"]), quiet=True)


def test_the_embedder_follows_the_script() -> None:
    config = Config.preset_config("small").text
    assert resolve_embedder(config, ["夏季连衣裙"] * 5) == "hashed"
    assert latin_share(["abc", "连衣裙"]) == pytest.approx(0.5)
    assert latin_share(["123"]) == 0.0
    with pytest.raises(RankloomError, match="no text embedder"):
        make_embedder("word2vec", config)
    both = make_embedder("hashed+hashed", config)
    x = both.fit(["green tea", "black tea", "tea cup"])
    np.testing.assert_allclose(np.linalg.norm(x, axis=1), 1, atol=1e-5)
    np.testing.assert_array_equal(
        make_embedder("hashed+hashed", config, both.arrays()).embed(["tea"]), both.embed(["tea"])
    )


def test_texts_hold_every_field(bazaar: Shop) -> None:
    text = item_texts(bazaar.items().filter(pl.col("brand").is_not_null() & pl.col("description").is_not_null()))[0]
    row = bazaar.items().filter(pl.col("brand").is_not_null() & pl.col("description").is_not_null()).row(0, named=True)
    for part in (
        row["title"],
        row["brand"],
        row["category"][-1],
        row["description"][:20],
        row["attributes"][0]["value"],
    ):
        assert part in text


def test_tampered_weights_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"not the weights")
    with pytest.raises(RankloomError, match="not the upstream file"):
        minilm.verified_minilm_folder(tmp_path)
    monkeypatch.setattr(minilm, "minilm_folder", lambda: None)
    with pytest.raises(RankloomError, match="not installed"):
        minilm.verified_minilm_folder()


@pytest.mark.skipif(not minilm.minilm_installed(), reason="the extra `minilm` is not installed")
def test_minilm_knows_meaning() -> None:
    assert minilm.verified_minilm_folder().name == "model"
    x = minilm.SentenceEmbedder("minilm").embed(["sneakers for jogging", "running shoes", "green tea"])
    assert x.shape == (3, 384)
    assert x[0] @ x[1] > x[0] @ x[2] + 0.2
