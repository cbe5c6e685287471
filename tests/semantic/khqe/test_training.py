from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from safetensors.numpy import load, save

from rankloom.config import Config
from rankloom.data.sequences import Sequences
from rankloom.data.shop import Shop
from rankloom.errors import RankloomError
from rankloom.model_folder import contiguous
from rankloom.pipeline import train
from rankloom.recommender import Rankloom
from rankloom.semantic.tokenizer import Tokenizer
from tests.semantic.khqe.logs import Event, searched

KINDS = {"猫砂": "豆腐 除臭", "键盘": "机械 红轴", "dress": "summer linen", "pan": "cast iron", "lamp": "desk led", "裙子": "碎花 雪纺"}
NICKNAMES = ("喵喵", "咔哒", "frock", "skillet", "light", "小仙女")
"""What people type for each kind; no title says it."""


def shop() -> tuple[pl.DataFrame, Sequences]:
    rng = np.random.default_rng(0)
    titles = [f"{kind} {words} {rng.integers(100)}号" for kind, words in KINDS.items() for _ in range(8)]
    items = pl.DataFrame({"item_id": [f"i{n}" for n in range(len(titles))], "title": titles})
    log: list[Event] = []
    for person in range(60):
        kind = person % len(KINDS)
        asked = [NICKNAMES[kind], list(KINDS)[kind], f"{list(KINDS)[kind]} {NICKNAMES[kind]}"]
        log += [
            (f"p{person:02}", int(8 * kind + rng.integers(8)), asked[int(rng.integers(3))], "click" if turn % 2 else "purchase")
            for turn in range(4)
        ]
    return items, searched(log, len(titles))


def config(*assignments: str) -> Config:
    return Config.preset_config("tiny").with_overrides(
        [
            "khqe.enabled=true", "alignment.epochs=30", "alignment.batch_size=64", "alignment.dim=16", "alignment.learning_rate=0.01",
            "quantizer.codebook_sizes=[6,4]", *assignments,
        ]
    )  # fmt: skip


@pytest.fixture(scope="module")
def both() -> Tokenizer:
    items, sequences = shop()
    return Tokenizer.fit(items, sequences, config(), quiet=True)


def nearest_kind(own: Tokenizer, texts: list[str]) -> list[int]:
    assert own.aligner is not None
    near = own.aligner.transform(own.embed_texts(texts)) @ own.aligned.T
    return [int(np.bincount(np.argsort(-row)[:8] // 8).argmax()) for row in near]


def test_words_of_people_lead_to_what_they_took(both: Tokenizer) -> None:
    assert nearest_kind(both, list(NICKNAMES)) == list(range(len(KINDS)))


def test_a_word_that_only_people_type_has_a_vector_where_queries_are_read(both: Tokenizer) -> None:
    items, sequences = shop()
    blind = Tokenizer.fit(items, sequences, config("khqe.read_queries=false", "alignment.epochs=1"), quiet=True)
    assert np.abs(blind.embed_texts(["frock"])).max() == 0
    assert np.linalg.norm(both.embed_texts(["frock"])) == pytest.approx(1, abs=1e-5)


def test_every_loss_can_be_switched_off_and_changes_the_space() -> None:
    items, sequences = shop()
    short = ["alignment.epochs=2"]
    whole = Tokenizer.fit(items, sequences, config(*short), quiet=True).aligned
    for loss in ("q2q", "i2i", "q2i", "rank", "relevance"):
        assert not np.allclose(Tokenizer.fit(items, sequences, config(*short, f"khqe.{loss}=0"), quiet=True).aligned, whole), loss


def test_without_any_loss_nothing_is_trained() -> None:
    items, sequences = shop()
    off = [f"khqe.{loss}=0" for loss in ("q2q", "i2i", "q2i", "rank", "relevance")]
    assert np.array_equal(
        Tokenizer.fit(items, sequences, config(*off), quiet=True).aligned,
        Tokenizer.fit(items, sequences, config("alignment.epochs=0"), quiet=True).aligned,
    )


def test_the_same_seed_gives_the_same_space_and_codes(both: Tokenizer) -> None:
    items, sequences = shop()
    again = Tokenizer.fit(items, sequences, config(), quiet=True)
    np.testing.assert_array_equal(again.aligned, both.aligned)
    np.testing.assert_array_equal(again.semantic_ids.codes, both.semantic_ids.codes)


def reloaded(own: Tokenizer) -> Tokenizer:
    arrays, meta = own.state()
    return Tokenizer.from_state(load(save(contiguous(arrays))), json.loads(json.dumps(meta)))


def test_a_query_has_one_name_before_and_after_saving_alone_and_among_others(both: Tokenizer) -> None:
    texts = ["猫砂", "frock", "summer dress", "碎花裙子", "never seen words"]
    named = both.query_sids(texts)
    again = reloaded(both)
    np.testing.assert_array_equal(again.query_sids(texts), named)
    for text, codes in zip(texts, named, strict=True):
        np.testing.assert_array_equal(again.query_sids([text])[0], codes)
    assert again.report()["queries"] == both.report()["queries"]
    assert (named < both.semantic_ids.codebook_sizes).all()


def test_a_query_and_an_item_of_the_same_words_have_the_same_name(both: Tokenizer) -> None:
    items, _ = shop()
    _, _, codes = both.assign(items)
    np.testing.assert_array_equal(both.query_sids(items["title"].to_list()), codes)


def test_queries_take_part_in_the_codebook() -> None:
    items, sequences = shop()
    spaces = {kind: Tokenizer.fit(items, sequences, config(f"khqe.codebook={kind}"), quiet=True) for kind in ("both", "items")}
    np.testing.assert_array_equal(spaces["both"].aligned, spaces["items"].aligned)

    def lost(own: Tokenizer) -> float:
        assert own.aligner is not None
        vectors = own.aligner.transform(own.embed_texts(list(sequences.queries)))
        return float(((vectors - own.quantizer.decode(own.quantizer.encode(vectors))) ** 2).sum())

    assert lost(spaces["both"]) < lost(spaces["items"])


def test_the_report_speaks_of_queries(both: Tokenizer) -> None:
    own = both.report()["queries"]
    assert own["n"] == len(shop()[1].queries)
    assert own["pairs"]["q2q"] > 0
    assert own["pairs"]["rank"] > 0
    assert set(own["least_cosine"]) == {"q2q", "i2i", "q2i"}
    assert 0 <= own["with_items"] <= 1
    assert len(own["cur"]) == 2


def test_dedup_codes_are_for_items_alone() -> None:
    items, sequences = shop()
    own = Tokenizer.fit(items, sequences, config("quantizer.collision=dedup", "alignment.epochs=1"), quiet=True)
    assert own.query_sids(["pan"]).shape[1] == own.item_sids().shape[1] == own.semantic_ids.n_levels - 1
    np.testing.assert_allclose(np.linalg.norm(own.sid_vectors(own.item_sids()), axis=1), 1, atol=1e-5)


def test_a_log_without_searches_is_refused() -> None:
    items, sequences = shop()
    silent = replace(sequences, query=np.full_like(sequences.query, -1), queries=())
    with pytest.raises(RankloomError, match="no event with a query"):
        Tokenizer.fit(items, silent, config(), quiet=True)


def test_grades_teach_without_a_single_search(tmp_path: Path) -> None:
    items, sequences = shop()
    silent = replace(sequences, query=np.full_like(sequences.query, -1), queries=())
    file = tmp_path / "grades.parquet"
    rows = [(NICKNAMES[kind], f"i{8 * other + n}", int(kind == other)) for kind in range(6) for other in range(6) for n in range(8)]
    pl.DataFrame(rows, schema=["query", "item_id", "label"], orient="row").write_parquet(file)
    # a nickname that no text has gets no vector from hashed text, so the queries hold the kind's own name too
    table = pl.read_parquet(file).with_columns(pl.col("query").replace_strict(dict(zip(NICKNAMES, KINDS, strict=True))))
    table.write_parquet(file)
    own = Tokenizer.fit(items, silent, config(f"khqe.grades={file}"), quiet=True)
    assert own.query_report is not None
    assert own.query_report["pairs"]["graded"] == 6 * 48
    assert nearest_kind(own, list(KINDS)) == list(range(len(KINDS)))


@pytest.mark.parametrize("wrong", ["alignment.enabled=false", "text.embedder=column"])
def test_what_cannot_align_queries_is_refused(wrong: str) -> None:
    with pytest.raises(RankloomError, match=r"khqe\.enabled"):
        config(wrong, "text.vector_column=v")


def test_a_guard_that_is_off_can_be_said_on_the_command_line() -> None:
    assert config("keywords.guard=off").keywords.guard == "off"


def test_a_model_folder_names_queries(bazaar: Shop, tiny_config: Config, tmp_path: Path) -> None:
    brief = ["khqe.enabled=true", "training.max_epochs=1", "training.min_steps=1", "alignment.epochs=1"]
    train(bazaar.path, tmp_path / "model", tiny_config.with_overrides(brief), quiet=True)
    first, again = (Rankloom.from_pretrained(tmp_path / "model").tokenizer for _ in range(2))
    own = first.report()["queries"]
    # the bazaar logs what was shown after a query
    assert own["pairs"]["rank"] > 0
    texts = ["noodle soup", "never typed", "面条"]
    np.testing.assert_array_equal(first.query_sids(texts), again.query_sids(texts))
    assert first.query_sids(texts).shape == (3, first.item_sids().shape[1])
