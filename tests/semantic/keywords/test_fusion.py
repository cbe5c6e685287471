from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from rankloom.config import Config, KeywordsConfig
from rankloom.data.sequences import load_sequences
from rankloom.data.shop import Shop
from rankloom.errors import RankloomError
from rankloom.model_folder import contiguous
from rankloom.semantic.hashed import HashedTextEmbedder
from rankloom.semantic.keywords.dictionary import Keyword, KeywordDictionary, sparse_counts
from rankloom.semantic.keywords.enhancer import KeywordEnhancer, keywords_of_items, strip_items
from rankloom.semantic.keywords.fusion import fuse, weight_matrix
from rankloom.semantic.keywords.guard import agreement, lift, strip
from rankloom.semantic.keywords.matching import KeywordMatcher
from rankloom.semantic.keywords.mining import mine
from rankloom.semantic.keywords.segmentation import Segmenter
from rankloom.semantic.text import item_texts
from rankloom.semantic.tokenizer import Tokenizer


def unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 9999), share=st.sampled_from([0.0, 0.3, 0.5, 1.0]))
def test_fusion_is_the_papers_equation(seed: int, share: float) -> None:
    rng = np.random.default_rng(seed)
    vectors, keywords = unit(rng.normal(size=(4, 5))), unit(rng.normal(size=(6, 5)))
    rows = [rng.choice(6, size=n, replace=False).tolist() for n in (3, 1, 0, 2)]
    weights = [rng.random(len(own)).tolist() for own in rows]
    weights[3] = [0.0, 0.0]
    fused = fuse(vectors, keywords, weight_matrix(rows, weights, 6), share=share)
    for n in range(4):
        expected = vectors[n]
        if sum(weights[n]) > 0 and share > 0:
            mean = sum(w * keywords[k] for k, w in zip(rows[n], weights[n], strict=True)) / sum(weights[n])
            expected = unit((1 - share) * vectors[n] + share * mean)
        np.testing.assert_allclose(fused[n], expected, atol=1e-5)


def test_half_the_text_and_half_the_mean_of_its_keywords() -> None:
    fused = fuse(np.array([[1.0, 0, 0]]), np.array([[0, 1.0, 0], [0, 0, 1.0]]), weight_matrix([[0, 1]], [[1, 1]], 2))
    np.testing.assert_allclose(fused, unit(np.array([[0.5, 0.25, 0.25]])), atol=1e-6)
    # a text that the embedder does not know has its keywords; keywords that it does not know change nothing
    known = fuse(np.zeros((1, 3)), np.array([[0, 1.0, 0]]), weight_matrix([[0]], [[1]], 1))
    np.testing.assert_allclose(known, [[0, 1, 0]])
    unknown = fuse(np.array([[1.0, 0, 0]]), np.zeros((1, 3)), weight_matrix([[0]], [[1]], 1))
    np.testing.assert_allclose(unknown, [[1, 0, 0]])


def home() -> KeywordDictionary:
    """Two groups of 50 items: dresses and pans."""
    told = [
        ("dress", "entity", (50, 0)),
        ("pan", "entity", (0, 50)),
        ("skillet", "entity", (0, 30)),
        ("red", "color", (40, 1)),
        ("acme", "brand", (20, 20)),
        ("gift", "marketing", (20, 20)),
    ]
    counts = np.array([own[2] for own in told], dtype=float)
    rows, columns = np.nonzero(counts)
    matrix = sparse_counts(rows, columns, counts[rows, columns], counts.shape)
    return KeywordDictionary([Keyword(t, k) for t, k, _ in told], ["Dresses", "Pans"], matrix, np.array([50.0, 50.0]))


def test_a_keyword_is_worth_what_its_group_says() -> None:
    own = home()
    rows = [own.index[term] for term in ("dress", "pan", "skillet", "red", "acme", "gift")]
    np.testing.assert_allclose(lift(own, rows[:2], 0), [52.5 / 27.5, 2.5 / 27.5], rtol=1e-6)
    np.testing.assert_allclose(lift(own, rows, -1), 1)
    weights = agreement(own, rows, 0, [], own_brand=False)
    expected = [np.log2(2 * 52.5 / 27.5) / 2, 0, 0, np.log2(2 * 42.5 / 23) / 2, 0.5, 0]
    np.testing.assert_allclose(weights, expected, atol=1e-6)
    # red pans are rare: believed, unless the title claims twice to be something else
    assert agreement(own, rows[1:4], 1, [], own_brand=False)[2] == 0.5
    stuffed = [own.index["dress"], own.index["red"]]
    assert agreement(own, stuffed, 1, [], own_brand=False).tolist() == [0, 0.5]
    # what a column says is believed; a word of marketing never counts
    assert agreement(own, rows, 0, rows, own_brand=True).tolist() == [1, 1, 1, 1, 1, 0]
    # another brand than the item's own counts half at most
    assert agreement(own, [own.index["acme"]], -1, [], own_brand=True).tolist() == [0.5]
    assert agreement(own, [own.index["acme"]], -1, [], own_brand=False).tolist() == [1]


def test_stripping_leaves_what_a_good_keyword_shares() -> None:
    own = KeywordDictionary([Keyword(term, "entity") for term in ("sun cream", "cream cake", "gift")])
    text = "Sun Cream cake, gift!"
    spans = KeywordMatcher(own).match(text)
    assert strip(text, spans, {0: 1.0, 1: 0.0, 2: 0.0}) == "Sun Cream , !"
    assert strip(text, spans, {0: 1.0, 1: 1.0, 2: 1.0}) == text


CATEGORIES = {"Dresses": "linen dress summer gown", "Pans": "cast iron pan skillet", "Toys": "wooden train toy puzzle"}


def shop(n: int = 60) -> pl.DataFrame:
    rng = np.random.default_rng(0)
    rows = []
    for at in range(n):
        category = list(CATEGORIES)[at % 3]
        words = CATEGORIES[category].split()
        picked = rng.choice(words, size=3, replace=False).tolist()
        rows.append((str(at), f"{' '.join(picked)} for home no {at}", ("Acme", "Boro", None)[at % 5 % 3], [category]))
    return pl.DataFrame(rows, schema=["item_id", "title", "brand", "category"], orient="row")


def enhanced(items: pl.DataFrame, config: KeywordsConfig) -> tuple[KeywordEnhancer, HashedTextEmbedder]:
    dictionary = mine(shop(), config, segmenter=Segmenter({}))
    matcher = KeywordMatcher(dictionary)
    embedder = HashedTextEmbedder(32, n_buckets=1024)
    embedder.fit(item_texts(strip_items(shop(), keywords_of_items(matcher, shop(), config), config)))
    return KeywordEnhancer.fit(matcher, embedder.embed, config), embedder


def vectors(enhancer: KeywordEnhancer, embedder: HashedTextEmbedder, items: pl.DataFrame) -> np.ndarray:
    found = keywords_of_items(enhancer.matcher, items, enhancer.config)
    return enhancer.items(found, embedder.embed(item_texts(strip_items(items, found, enhancer.config))))


def test_a_stuffed_title_keeps_its_vector() -> None:
    """A pan whose title gains the words of dresses and toys, and words of marketing, stays a pan."""
    items = shop()
    pans = items.filter(pl.col("category").list.first() == "Pans")
    stuffed = pans.with_columns(pl.col("title") + " linen dress gown wooden puzzle train toy free shipping best seller")
    moved = {}
    for guard in ("off", "weigh", "strip"):
        # words of marketing are in the shop's dictionary because it lists them
        config = KeywordsConfig(guard=guard, min_lift=1.5, terms={"marketing": ("free shipping", "best seller")})  # type: ignore[arg-type]
        own, embedder = enhanced(items, config)
        before, after = vectors(own, embedder, pans), vectors(own, embedder, stuffed)
        moved[guard] = float(np.mean(1 - np.sum(before * after, axis=1)))
    assert moved["strip"] < 0.01 * moved["off"]
    assert moved["weigh"] < 0.8 * moved["off"]
    assert moved["off"] > 0.1


def test_repeating_a_keyword_gains_nothing() -> None:
    own, _ = enhanced(shop(), KeywordsConfig(min_lift=1.5))
    row = shop()[1:2]
    again = row.with_columns(pl.col("title") + " " + pl.col("title") + " " + pl.col("title"))
    once, thrice = (keywords_of_items(own.matcher, items, own.config)[0] for items in (row, again))
    assert (once.rows, once.weights) == (thrice.rows, thrice.weights)


def test_the_enhancer_comes_back_from_a_file(tmp_path: Path) -> None:
    own, embedder = enhanced(shop(), KeywordsConfig(min_lift=1.5))
    save_file(contiguous(own.arrays()), tmp_path / "k.safetensors")
    again = KeywordEnhancer.from_arrays(load_file(tmp_path / "k.safetensors"), own.config)
    np.testing.assert_array_equal(vectors(again, embedder, shop()), vectors(own, embedder, shop()))
    text = ["linen dress"]
    np.testing.assert_array_equal(again.queries(text, embedder.embed(text)), own.queries(text, embedder.embed(text)))
    with pytest.raises(RankloomError, match="keywords but vectors"):
        KeywordEnhancer(own.matcher, own.vectors_KD[1:], own.config)


def test_the_tokenizer_fuses_items_and_queries_alike(bazaar: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    # words of Chinese text from a small list: jieba's own takes a second to load
    words = ["卫衣", "跑鞋", "猫砂", "复古", "简约", "黑色", "夏季", "面膜"]
    monkeypatch.setattr("rankloom.semantic.keywords.mining.Segmenter", lambda: Segmenter(dict.fromkeys(words, 9)))
    config = Config.preset_config("tiny").with_overrides(["keywords.enabled=true", "alignment.enabled=false"])
    items, sequences = bazaar.items(), load_sequences(bazaar, config.data)
    own = Tokenizer.fit(items, sequences, config, quiet=True)
    assert own.keywords is not None
    assert own.report()["keywords"]["keywords"] == len(own.keywords.dictionary) > 50
    np.testing.assert_allclose(own.assign(items[:7])[0], own.content[:7], atol=1e-5)
    assert own.embedder is not None
    query = ["vintage sweatshirt"]
    plain = own.embedder.embed(query)
    np.testing.assert_allclose(own.embed_texts(query), own.keywords.queries(query, plain), atol=1e-6)
    assert np.abs(own.embed_texts(query) - plain).max() > 1e-3
    arrays, meta = own.state()
    again = Tokenizer.from_state(arrays, meta)
    assert again.keywords is not None
    assert again.keywords.dictionary == own.keywords.dictionary
    np.testing.assert_array_equal(again.assign(items[:7])[2], own.assign(items[:7])[2])
    off = Tokenizer.fit(items, sequences, config.with_overrides(["keywords.enabled=false"]), quiet=True)
    assert off.keywords is None
    assert "keywords" not in off.report()
    assert not [name for name in off.state()[0] if name.startswith("keywords.")]
