from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from rankloom import model_folder
from rankloom.config import AlignmentConfig, Config
from rankloom.data.sequences import TRAIN, Sequences, load_sequences
from rankloom.data.shop import Shop
from rankloom.errors import RankloomError
from rankloom.pipeline import train
from rankloom.recommender import Rankloom
from rankloom.semantic import minilm
from rankloom.semantic.alignment import Aligner
from rankloom.semantic.hashed import HashedTextEmbedder, terms
from rankloom.semantic.ids import SemanticIds, usage_report
from rankloom.semantic.pairs import cooccurrence_pairs, swing_pairs, target_pairs
from rankloom.semantic.quantizers.kmeans import balanced_assignment, kmeans, nearest
from rankloom.semantic.text import item_texts, latin_share, make_embedder, resolve_embedder, vector_column
from rankloom.semantic.tokenizer import Tokenizer, behaviour_pairs, dedup_codes


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


ZH_KINDS = {
    "猫砂": ["除臭", "豆腐", "膨润土", "无尘", "10公斤", "结团"],
    "机械键盘": ["青轴", "红轴", "87键", "背光", "电竞", "有线"],
    "连衣裙": ["夏季", "碎花", "雪纺", "收腰", "法式", "长款"],
    "蓝牙耳机": ["降噪", "入耳式", "运动", "长续航", "无线", "防水"],
    "防晒霜": ["清爽", "SPF50", "面部", "隔离", "防水", "学生"],
    "保温杯": ["不锈钢", "大容量", "500ml", "便携", "刻字", "男士"],
    "登山包": ["户外", "防水", "40升", "轻便", "双肩", "徒步"],
    "电饭煲": ["智能", "4升", "家用", "预约", "不粘", "迷你"],
}


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_near_duplicate_chinese_titles_are_nearest_neighbours(seed: int) -> None:
    """Sellers list one thing twice with words moved, a mark and spaces added, full-width letters."""
    rng = np.random.default_rng(seed)
    titles, twins = [], []
    for kind, words in ZH_KINDS.items():
        for _ in range(12):
            chosen = [str(word) for word in rng.choice(words, 3, replace=False)]
            shop = "".join(chr(c) for c in rng.integers(0x5000, 0x8FFF, 2))
            titles.append(f"{shop}{chosen[0]}{chosen[1]}{kind}{chosen[2]}")
            twins.append(f"【新品】{shop} {kind} {chosen[2]}{chosen[1]}{chosen[0]}".replace("SPF", "ＳＰＦ"))
    embedder = HashedTextEmbedder(128)
    x = embedder.fit(titles + twins, seed)
    n = len(titles)
    assert ((x[n:] @ x[:n].T).argmax(1) == np.arange(n)).mean() > 0.9
    likeness = x @ x.T - 2 * np.eye(len(x))
    kinds = np.tile(np.repeat(np.arange(len(ZH_KINDS)), 12), 2)
    assert (kinds[np.argsort(-likeness, axis=1)[:, :5]] == kinds[:, None]).mean() > 0.95


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


def test_target_pairs_take_the_most_alike_of_what_came_before() -> None:
    similar = (np.array([3, 3, 2]), np.array([0, 1, 0]), np.array([0.2, 0.9, 0.4], np.float32))
    lists = [[0, 1, 2, 3], [1, 0, 3], [0, 2], [3, 1, 0], [0] + [4] * 10 + [3]]
    i, j, weight = target_pairs(log(lists, 5), similar)
    # 3 meets 1 (0.9) before 0 (0.2) twice; 2 meets 0 twice; what comes later, or more than ten before, does not count
    assert sorted(zip(i.tolist(), j.tolist(), weight.tolist(), strict=True)) == [(2, 0, 2.0), (3, 1, 2.0)]
    assert len(target_pairs(log([[0], [1]], 5), similar)[0]) == 0


def test_every_source_of_pairs_weighs_the_same(bazaar: Shop) -> None:
    sequences = load_sequences(bazaar, Config.preset_config("tiny").data)
    config = Config.preset_config("tiny").with_overrides(["alignment.pairs=[swing,target,cooccurrence]"])
    weight = behaviour_pairs(sequences, config)[2]
    sizes = [len(swing_pairs(sequences)[0])]
    sizes += [len(target_pairs(sequences, swing_pairs(sequences))[0]), len(cooccurrence_pairs(sequences)[0])]
    assert all(sizes)
    np.testing.assert_allclose([part.sum() for part in np.split(weight, np.cumsum(sizes)[:-1])], 1, rtol=1e-3)


QUICK = ["quantizer.vae_epochs=4", "quantizer.fsq_epochs=3", "quantizer.opq_iterations=2", "alignment.epochs=1"]


def through_a_file(tokenizer: Tokenizer, folder: Path) -> Tokenizer:
    """Saved and loaded the way a model folder does it."""
    arrays, meta = tokenizer.state()
    save_file(model_folder.contiguous(arrays), folder / "semantic_ids.safetensors")
    return Tokenizer.from_state(
        model_folder.read_arrays(folder / "semantic_ids.safetensors"), json.loads(json.dumps(meta))
    )


@pytest.mark.parametrize("collision", ["list", "dedup"])
@pytest.mark.parametrize("last", ["none", "fsq", "opq"])
@pytest.mark.parametrize("kind", ["rq-kmeans", "rq-vae"])
def test_new_items_are_named_by_the_frozen_parts(
    bazaar: Shop, tmp_path: Path, kind: str, last: str, collision: str
) -> None:
    config = Config.preset_config("tiny").with_overrides(
        [*QUICK, f"quantizer.kind={kind}", f"quantizer.last={last}"]
        + [f"quantizer.collision={collision}", "quantizer.codebook_sizes=[4,4]"]
        + (["quantizer.fsq_levels=[2,2]"] if last == "fsq" else [])
    )
    items, sequences = bazaar.items(), load_sequences(bazaar, config.data)
    tokenizer = Tokenizer.fit(items, sequences, config, quiet=True)
    ids, report = tokenizer.semantic_ids, tokenizer.report()
    n_shared = len(tokenizer.quantizer.codebook_sizes)
    content, aligned, codes = tokenizer.assign(items[:7])
    np.testing.assert_allclose(content, tokenizer.content[:7], atol=1e-5)
    np.testing.assert_allclose(aligned, tokenizer.aligned[:7], atol=1e-5)
    np.testing.assert_array_equal(codes[:, :n_shared], ids.codes[:7, :n_shared])
    assert report["collision"] == collision
    assert report["shared_sids"]["icr"] < 1.0
    assert len(report["relative_reconstruction_error"]) == n_shared
    if collision == "dedup":
        assert report["icr"] == 1.0
        assert report["largest_bucket"] == 1
        assert ids.codebook_sizes[-1] == report["shared_sids"]["largest_bucket"] + 8
        taken = {tuple(row) for row in ids.codes.tolist()}
        assert not {tuple(row) for row in codes.tolist()} & taken
    else:
        assert report["icr"] == report["shared_sids"]["icr"]
    again = through_a_file(tokenizer, tmp_path)
    assert again.report() == report
    assert again.summary() == tokenizer.summary()
    np.testing.assert_array_equal(again.assign(items[:7])[2], codes)
    np.testing.assert_array_equal(again.embed_texts(["猫砂"]), tokenizer.embed_texts(["猫砂"]))
    np.testing.assert_array_equal(Tokenizer.fit(items, sequences, config, quiet=True).semantic_ids.codes, ids.codes)


def test_a_model_folder_names_new_items_as_the_model_in_memory_did(bazaar: Shop, tmp_path: Path) -> None:
    config = Config.preset_config("tiny").with_overrides(
        [
            *QUICK,
            "quantizer.kind=rq-vae",
            "quantizer.last=fsq",
            "quantizer.collision=dedup",
            "training.max_epochs=1",
            "training.min_steps=4",
        ]
    )
    train(bazaar.path, tmp_path / "model", config, quiet=True)
    new = pl.DataFrame({"item_id": ["n1", "n2", "n3"], "title": ["除臭猫砂", "除臭猫砂", "running shoes"]})
    model = Rankloom.from_pretrained(tmp_path / "model")
    model.add_items(new)
    codes = model.semantic_ids.codes[-3:]
    model.save_pretrained(tmp_path / "again")
    np.testing.assert_array_equal(Rankloom.from_pretrained(tmp_path / "again").semantic_ids.codes[-3:], codes)
    other = Rankloom.from_pretrained(tmp_path / "model")
    for row in new.iter_slices(1):
        other.add_items(row)
    np.testing.assert_array_equal(other.semantic_ids.codes[-3:], codes)
    # twins share everything but the dedup code
    np.testing.assert_array_equal(codes[0, :-1], codes[1, :-1])
    assert codes[0, -1] + 1 == codes[1, -1]
    assert len(np.unique(model.semantic_ids.codes, axis=0)) == len(model.items)


def test_the_dedup_code_is_the_place_by_prior_and_new_items_come_after(bazaar: Shop) -> None:
    config = Config.preset_config("tiny").with_overrides(
        ["quantizer.collision=dedup", "quantizer.codebook_sizes=[4,4]", "alignment.epochs=1"]
    )
    items = bazaar.items()
    tokenizer = Tokenizer.fit(items, load_sequences(bazaar, config.data), config, quiet=True)
    ids = tokenizer.semantic_ids
    buckets: dict[tuple[int, ...], list[int]] = {}
    for row, code in enumerate(ids.codes.tolist()):
        buckets.setdefault(tuple(code[:-1]), []).append(row)
    for rows in buckets.values():
        wanted = sorted(rows, key=lambda row: (-ids.prior[row], row))
        assert [int(ids.codes[row, -1]) for row in wanted] == list(range(len(rows)))
    # one item again and again: each takes the next place of its bucket, and the last is shared once all are taken
    same = pl.concat([items[:1]] * 400)
    codes = tokenizer.assign(same)[2]
    begin, size = len(buckets[tuple(ids.codes[0, :-1].tolist())]), ids.codebook_sizes[-1]
    assert codes[:, -1].tolist() == [min(begin + n, size - 1) for n in range(400)]


def test_the_catalogue_order_does_not_change_a_dedup_bucket() -> None:
    codes = np.array([[0, 0], [1, 0], [0, 0], [0, 0]], np.int32)
    prior = np.array([1, 9, 3, 2], np.float32)
    named, sizes = dedup_codes(codes, (2, 1), prior)
    assert named[:, -1].tolist() == [2, 0, 0, 1]
    assert sizes == (2, 1, 11)
    order = np.array([3, 1, 0, 2])
    np.testing.assert_array_equal(dedup_codes(codes[order], (2, 1), prior[order])[0], named[order])


def margin(x: np.ndarray, i: np.ndarray, j: np.ndarray) -> float:
    """How much nearer pairs are than random ones."""
    random = np.random.default_rng(0).permutation(j)
    return float((x[i] * x[j]).sum(1).mean() - (x[i] * x[random]).sum(1).mean())


def test_alignment_brings_together_what_is_used_together(bazaar: Shop) -> None:
    config = Config.preset_config("tiny").with_overrides(["alignment.epochs=40"])
    sequences = load_sequences(bazaar, config.data)
    tokenizer = Tokenizer.fit(bazaar.items(), sequences, config, quiet=True)
    i, j, _ = cooccurrence_pairs(sequences)
    assert margin(tokenizer.aligned, i, j) > margin(tokenizer.content, i, j)
    assert margin(tokenizer.aligned, i, j) > 0.02


def test_the_content_loss_keeps_what_an_item_is() -> None:
    """People use kinds 0 and 6, 1 and 7, ... together; the loss keeps them from becoming one kind."""
    rng = np.random.default_rng(0)
    kind = np.repeat(np.arange(12), 10)
    content = rng.normal(size=(12, 24))[kind] + 0.5 * rng.normal(size=(120, 24))
    content = (content / np.linalg.norm(content, axis=1, keepdims=True)).astype(np.float32)
    left = rng.integers(0, 120, 1500)
    right = (left // 10 + 6) % 12 * 10 + rng.integers(0, 10, 1500)
    same_kind, relations = {}, {}
    for content_weight in (0.0, 20.0):
        config = AlignmentConfig(dim=16, epochs=12, batch_size=64, learning_rate=3e-3, content_weight=content_weight)
        x = Aligner(24, config, 0).fit(content, (left, right, np.ones(1500, np.float32)), quiet=True)
        np.testing.assert_allclose(np.linalg.norm(x, axis=1), 1, atol=1e-4)
        assert margin(x, left, right) > margin(content, left, right) + 0.2
        same_kind[content_weight] = float((kind[(x @ x.T - 2 * np.eye(120)).argmax(1)] == kind).mean())
        relations[content_weight] = float(np.corrcoef((x @ x.T).ravel(), (content @ content.T).ravel())[0, 1])
    assert same_kind[0.0] < 0.6 < 0.95 < same_kind[20.0]
    assert relations[0.0] < 0.6 < 0.8 < relations[20.0]


def test_alignment_without_pairs_still_gives_unit_vectors() -> None:
    none = np.zeros(0, np.int64)
    x = Aligner(6, AlignmentConfig(dim=4), 0).fit(vectors(20), (none, none, np.zeros(0, np.float32)), quiet=True)
    np.testing.assert_allclose(np.linalg.norm(x, axis=1), 1, atol=1e-5)


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
    with pytest.raises(RankloomError, match="same length"):
        vector_column(own.with_columns(pl.Series("v", [[1.0]] + [[1.0, 2.0]] * (own.height - 1))), "v")
    fixed = own.with_columns(pl.col("v").list.to_array(5))
    np.testing.assert_array_equal(vector_column(fixed, "v"), vector_column(own, "v"))
    with pytest.raises(RankloomError, match="names none"):
        Config.preset_config("tiny").with_overrides(["text.embedder=column"])
    with pytest.raises(RankloomError, match="trained on 5"):
        tokenizer.assign(own[:2].with_columns(pl.Series("v", [[1.0, 2.0]] * 2)))
    with pytest.raises(RankloomError, match="no column 'v'"):
        tokenizer.assign(items[:2])


def test_the_embedder_follows_the_script() -> None:
    config = Config.preset_config("small").text
    assert resolve_embedder(config, ["夏季连衣裙"] * 5) == "hashed"
    assert latin_share(["abc", "连衣裙"]) == pytest.approx(0.5)
    assert latin_share(["123"]) == 0.0
    with pytest.raises(RankloomError, match="no text embedder"):
        make_embedder("word2vec", config)
    for wrong in ("word2vec", "sentence-transformers:", "auto+hashed", "hashed+column", "hashed+"):
        with pytest.raises(RankloomError, match="no text embedder"):
            Config.parse({"preset": "small", "text": {"embedder": wrong}})
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
def test_a_query_is_embedded_as_a_catalogue_is() -> None:
    own = minilm.SentenceEmbedder("minilm")
    texts = ["running shoes", "", "a very long " * 200, "绿茶", "Tea & kettle", "x"]
    many = own.embed(texts * 6)[: len(texts)]
    np.testing.assert_allclose(own.embed(texts), many, atol=2e-6)
    assert own._lean is not None
    for row, text in enumerate(texts):
        np.testing.assert_allclose(own.embed([text])[0], many[row], atol=2e-6)
        np.testing.assert_allclose(np.linalg.norm(own.embed([text])[0]), 1.0, rtol=1e-5)


@pytest.mark.skipif(not minilm.minilm_installed(), reason="the extra `minilm` is not installed")
def test_minilm_knows_meaning() -> None:
    assert minilm.verified_minilm_folder().name == "model"
    x = minilm.SentenceEmbedder("minilm").embed(["sneakers for jogging", "running shoes", "green tea"])
    assert x.shape == (3, 384)
    assert x[0] @ x[1] > x[0] @ x[2] + 0.2


@pytest.mark.skipif(not minilm.minilm_installed(), reason="the extra `minilm` is not installed")
def test_any_sentence_encoder_by_name_or_path_without_a_network() -> None:
    folder = minilm.verified_minilm_folder()
    text = ["running shoes", "green tea", ""]
    by_path = minilm.SentenceEmbedder(f"sentence-transformers:{folder}").embed(text)
    np.testing.assert_allclose(by_path, minilm.SentenceEmbedder("minilm").embed(text), atol=1e-6)
    with pytest.raises(RankloomError, match="not on this machine") as raised:
        minilm.SentenceEmbedder("sentence-transformers:nobody/nothing").embed(text)
    assert "hf download nobody/nothing" in str(raised.value)
