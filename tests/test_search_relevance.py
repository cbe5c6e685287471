"""Results of a search with a calibrated relevance, a cut at it, and an explanation of every one."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from rankloom import model_folder, telling
from rankloom.calibrating import ENOUGH, calibrate_search
from rankloom.data.sequences import VALID, load_sequences
from rankloom.data.shop import Shop
from rankloom.errors import RankloomError
from rankloom.pipeline import feature_table
from rankloom.recommender import Rankloom
from rankloom.requests import Request
from rankloom.semantic.words import words
from tests.test_search import ids, rare_word


def relevances(model: Rankloom, query: str, k: int = 10, **options: object) -> list[float]:
    return [item.relevance or 0.0 for item in model.search(query, k=k, **options).items]


def uncalibrated(model: Rankloom) -> Rankloom:
    model.search_choices = replace(model.search_choices, relevance=None)
    return model


def test_training_calibrates_on_searches_and_says_how_well(model: Rankloom) -> None:
    own = model.search_choices.relevance
    assert own is not None
    assert own.searches >= ENOUGH
    assert own.error is not None
    assert 0 <= own.error < 0.1


def test_relevance_is_a_chance_that_falls_along_the_list(model: Rankloom) -> None:
    word, _ = rare_word(model)
    for query in (word, "tea", "红色"):
        own = relevances(model, query, k=40)
        assert own == sorted(own, reverse=True)
        assert all(0 <= value <= 1 for value in own)
        # what is taken is one item, so that the chances of a list are shares of one
        assert sum(own) <= 1
    assert relevances(model, word)[0] > 0
    assert all(item.relevance is None for item in model.recommend(model.users[0], k=3).items)


def test_nonsense_and_words_of_no_item_score_low(model: Rankloom) -> None:
    word, _ = rare_word(model)
    sense = relevances(model, word)[0]
    assert relevances(model, "qqqqzzzz xxkkvv") == [0.0] * 10
    assert relevances(model, "鑫淼焱") == [0.0] * 10
    half = relevances(model, f"{word} qqqqzzzz xxkkvv")[0]
    assert 0 < half < 0.8 * sense


def test_a_cut_leaves_the_head_of_the_list_and_nothing_of_nonsense(model: Rankloom) -> None:
    word, _ = rare_word(model)
    whole = model.search(word, k=20)
    chances = [item.relevance or 0.0 for item in whole.items]
    cut = (chances[2] + chances[3]) / 2
    assert chances[2] > chances[3]
    some = model.search(word, k=20, min_relevance=cut)
    assert ids(some) == ids(whole)[:3]
    assert not some.degraded
    assert not some.no_match
    assert ids(model.search(word, k=20, min_relevance=0.0)) == ids(whole)
    nothing = model.search("qqqqzzzz", k=5, min_relevance=1e-6)
    assert nothing.items == []
    assert nothing.no_match
    # in another order too, what is not relevant enough does not come in
    assert set(ids(model.search(word, k=20, min_relevance=cut, sort="price"))) <= set(ids(some))


def test_a_batch_cuts_each_search_by_its_own_wish(model: Rankloom) -> None:
    word, _ = rare_word(model)
    asked = [Request(query=word, k=5, surface="search", seen="allow", min_relevance=cut) for cut in (None, 0.999, 0.0)]
    lengths = [len(reply.items) for reply in model.recommend_batch(asked)]
    assert lengths == [5, 0, 5]


def test_relevance_is_in_the_folder_and_an_older_folder_has_none(model: Rankloom, tmp_path: Path) -> None:
    word, _ = rare_word(model)
    model.save_pretrained(tmp_path / "new")
    again = Rankloom.from_pretrained(tmp_path / "new")
    assert again.search_choices.relevance == model.search_choices.relevance
    assert relevances(again, word) == relevances(model, word)
    config = json.loads((tmp_path / "new" / model_folder.CONFIG).read_text(encoding="utf-8"))
    del config["model"]["relevance"]
    (tmp_path / "new" / model_folder.CONFIG).write_text(json.dumps(config), encoding="utf-8")
    model_folder.write_manifest(tmp_path / "new", parents={})
    old = Rankloom.from_pretrained(tmp_path / "new")
    assert [item.relevance for item in old.search(word, k=3).items] == [None] * 3
    assert ids(old.search(word, k=3)) == ids(model.search(word, k=3))
    with pytest.raises(RankloomError, match="not calibrated") as refused:
        old.search(word, min_relevance=0.1)
    assert refused.value.code == "relevance-missing"


def test_without_enough_searches_nothing_is_calibrated(bazaar: Shop, model: Rankloom) -> None:
    sequences = load_sequences(bazaar, model.config.data)
    table = feature_table(sequences, model.tokenizer, bazaar)
    searches = (sequences.stage == VALID) & sequences.target & (sequences.query >= 0)
    sequences.query[searches.nonzero()[0][ENOUGH - 1 :]] = -1
    assert calibrate_search(model, sequences, table, quiet=True) == {}
    assert model.search_choices.relevance is None


@pytest.mark.parametrize(("option", "code"), [
    ({"min_relevance": 1.5}, "relevance-range"), ({"min_relevance": float("nan")}, "relevance-range"),
    ({"min_relevance": True}, "relevance-range"), ({"max_typos": 3}, "typos-range"),
])  # fmt: skip
def test_what_is_out_of_range_is_said(model: Rankloom, option: dict[str, float], code: str) -> None:
    with pytest.raises(RankloomError) as refused:
        model.search("tea", **option)
    assert refused.value.code == code
    with pytest.raises(RankloomError) as feed:
        model.recommend(model.users[0], max_typos=1)
    assert feed.value.code == "search-only"


# -- explanations


def test_the_parts_of_a_score_add_up(model: Rankloom) -> None:
    word, _ = rare_word(model)
    for reply in (model.search(word, k=8, explain=True), model.recommend(model.users[0], k=8, explain=True)):
        first = reply.items[0]
        assert first.explanation is not None
        for item in reply.items:
            assert item.explanation is not None
            apart = sum(item.explanation.parts.values()) - sum(first.explanation.parts.values())
            assert apart == pytest.approx(item.score - first.score, abs=2e-3)
            # of a broad search the refiner of broad ones has the last word
            assert bool(item.explanation.refiner) == ("refiner" in item.explanation.parts)
    assert model.search_choices.broad is not None
    broad = model.search("lamp", k=2, explain=True).items
    assert all(item.explanation is not None and item.explanation.refiner for item in broad)


def test_the_path_is_the_semantic_id_with_its_meaning_and_probabilities(model: Rankloom) -> None:
    reply = model.search(rare_word(model)[0], k=5, explain=True)
    trace = model.trace(Request(query=rare_word(model)[0], k=5, surface="search", seen="allow"))
    shown = {beam.codes: beam.log_prob for level in trace.levels for beam in level}
    checked = 0
    for item in reply.items:
        assert item.explanation is not None
        path = item.explanation.path
        assert tuple(step.code for step in path) == item.sid
        assert any(step.meaning for step in path)
        total = 0.0
        for depth, step in enumerate(path, start=1):
            assert step.log_prob is not None
            assert step.log_prob <= 1e-4
            total += step.log_prob
            if item.sid[:depth] in shown:
                assert total == pytest.approx(shown[item.sid[:depth]], abs=1e-3)
                checked += 1
    assert checked


def test_words_are_found_where_the_item_has_them(model: Rankloom) -> None:
    word, owners = rare_word(model)
    slipped = word[:3] + word[4:]
    reply = model.search(f"{slipped} qqqqzzzz", k=3, explain=True)
    assert reply.read_as == ((slipped, word),)
    assert reply.unknown == ("qqqqzzzz",)
    item = reply.items[0]
    assert item.item_id in owners
    assert item.explanation is not None
    first, second = item.explanation.words
    assert (first.word, first.read_as) == (slipped, word)
    assert "title" in first.where
    assert word in words(item.title)
    assert (second.word, second.where) == ("qqqqzzzz", ())
    assert first.share + second.share == pytest.approx(1.0, abs=1e-3)


def test_nothing_is_explained_unasked(model: Rankloom, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: object, **__: object) -> None:
        raise AssertionError("explained")

    for name in ("explanations", "reasons"):
        monkeypatch.setattr(model.teller, name, never)
    monkeypatch.setattr(telling, "parts", never)
    word, _ = rare_word(model)
    assert all(item.explanation is None for item in model.search(word, k=3).items)
    with pytest.raises(AssertionError, match="explained"):
        model.search(word, k=3, explain=True)


def test_a_search_counts_its_matches_as_its_facets_do(model: Rankloom) -> None:
    word, owners = rare_word(model)
    reply = model.search(word, k=1, facets=["category"])
    assert reply.matches == len(owners)
    assert max(n for _, n in reply.facets["category"]) <= reply.matches
    cheaper = model.search(word, k=1, exclude=sorted(owners)[:1])
    assert cheaper.matches == len(owners) - 1
    if model.search_choices.relevance is not None:
        assert model.search(word, k=1, min_relevance=0.999).matches == len(owners)
    assert model.search("qqqqzzzz", k=1).matches == 0
    assert model.recommend(model.users[0], k=1).matches is None
