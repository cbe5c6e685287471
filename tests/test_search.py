"""Search from the model folder: words found, slips forgiven, new items at once, feed and search apart."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch

from rankloom.choosing import FEW, choose_search, questions
from rankloom.config import Config
from rankloom.data.sequences import VALID, load_sequences
from rankloom.data.shop import Shop
from rankloom.decoding.choices import UNTRIED_SEARCH, Choices
from rankloom.decoding.query_memory import NAMED
from rankloom.decoding.refine_features import FEATURES, SEARCH_FEATURES
from rankloom.decoding.select import Weights
from rankloom.errors import RankloomError
from rankloom.pipeline import feature_table, query_memory_of, train
from rankloom.recommender import Rankloom
from rankloom.requests import Recommendation, Request
from rankloom.semantic.words import words


def rare_word(model: Rankloom) -> tuple[str, set[str]]:
    """A word of a few titles that nobody searched for, and the items that have it."""
    assert model.query_memory is not None
    owners: dict[str, set[str]] = {}
    for item, title in model.items.select("item_id", "title").rows():
        for word in set(words(title)):
            owners.setdefault(word, set()).add(item)
    usable = sorted(w for w, own in owners.items() if 2 <= len(own) <= 5 and len(w) > 5 and w.isalpha() and w.isascii())
    word = next(w for w in usable if not any(model.query_memory.asked(list(range(model.items.height)), w)))
    return word, owners[word]


def test_a_rare_word_brings_its_items_first(model: Rankloom) -> None:
    word, owners = rare_word(model)
    found = [item.item_id for item in model.search(word, k=len(owners)).items]
    assert set(found) == owners


def test_who_types_a_title_finds_its_item_first(model: Rankloom) -> None:
    titles = model.items.filter(pl.col("title").is_unique())["title"].to_list()
    asked = [title for title in titles[::17] if len(set(words(title))) >= NAMED][:12]
    assert len(asked) == 12
    assert [model.search(title, k=1, user=model.users[0]).items[0].title for title in asked] == asked


def test_a_word_of_today_is_found_whatever_the_log_teaches(model: Rankloom, model_path: Path) -> None:
    own = Rankloom.from_pretrained(model_path)
    titles = [f"qzvwok{letter} {title}" for letter, title in zip("abcdefgh", own.items["title"].to_list(), strict=False)]
    new = pl.DataFrame({"item_id": [f"new-{n}" for n in range(8)], "title": titles})
    own.add_items(new)
    for item, title in new.rows():
        assert own.search(title.split()[0], k=1, user=own.users[0]).items[0].item_id == item
        assert own.search(title, k=1, user=own.users[0]).items[0].item_id == item


def test_what_the_log_has_not_searched_is_lifted_above_what_it_taught(model_path: Path) -> None:
    own = Rankloom.from_pretrained(model_path)
    made = [f"qzvwok{letter} {title}" for letter, title in zip("abcdefgh", own.items["title"].to_list(), strict=False)]
    own.add_items(pl.DataFrame({"item_id": [f"new-{n}" for n in range(8)], "title": made}))

    def first(untried: float) -> int:
        # words are worth nothing, as a log teaches whose people often take what lacks one
        own.search_choices = Choices(Weights(0.0, 0.3, untried=untried), UNTRIED_SEARCH.generator_weights)
        return sum(own.search(title.split()[0], k=1).items[0].item_id.startswith("new-") for title in made)

    assert first(16.0) == 8
    assert first(0.0) < 8


def test_values_of_attributes_are_searched(model: Rankloom, model_path: Path) -> None:
    own = Rankloom.from_pretrained(model_path)
    made = {"item_id": "new-a", "title": "plain shirt", "attributes": [{"key": "material", "value": "zyxcotton"}]}
    own.add_items(pl.DataFrame([made]))
    found = own.search("zyxcotton", k=1, explain=True).items[0]
    assert found.item_id == "new-a"
    assert found.explanation is not None
    assert found.explanation.words[0].where == ("attributes",)


def test_a_slip_is_forgiven_and_said(model: Rankloom) -> None:
    word, owners = rare_word(model)
    slipped = word[:2] + word[3] + word[2] + word[4:] if word[2] != word[3] else word[:2] + word[3:]
    reply = model.search(slipped, k=1, explain=True)
    assert reply.items[0].item_id in owners
    assert f"reading {slipped!r} as {word!r}" in reply.items[0].reasons[0]


def test_a_new_item_is_found_by_its_words_and_a_changed_title_by_the_new_ones(model: Rankloom, tmp_path: Path) -> None:
    model.add_items(pl.DataFrame({"item_id": ["new-1"], "title": ["zyxwphone quuxcase"]}))
    assert model.search("quuxcase", k=1).items[0].item_id == "new-1"
    model.save_pretrained(tmp_path / "changed")
    again = Rankloom.from_pretrained(tmp_path / "changed")
    assert again.search("quuxcase", k=3).items[0].item_id == "new-1"
    again.add_items(pl.DataFrame({"item_id": ["new-1"], "title": ["plain thing"]}))
    assert again.query_memory is not None
    assert not len(again.query_memory.match("quuxcase").row)
    again.remove_items(["new-1"])
    assert "new-1" not in [item.item_id for item in again.search("plain thing", k=5).items]


def test_a_batch_of_feeds_and_searches_equals_one_by_one(model: Rankloom) -> None:
    word, _ = rare_word(model)
    user = model.users[0]
    requests = [
        Request(user=user, k=5), Request(query=word, k=3, surface="search", seen="allow"), Request(user=user, query=word, k=4),
        Request(k=5), Request(user=user, query=" ?! ", k=5),
    ]  # fmt: skip
    together = model.recommend_batch(requests)
    for request, reply in zip(requests, together, strict=True):
        alone = model.recommend_batch([request])[0]
        assert [item.item_id for item in reply.items] == [item.item_id for item in alone.items]
        assert [item.score for item in reply.items] == pytest.approx([item.score for item in alone.items], abs=1e-4)
    # without a word there is nothing to search for
    assert [item.item_id for item in together[4].items] == [item.item_id for item in together[0].items]


def test_nothing_that_anybody_knows_still_gets_a_list(model: Rankloom) -> None:
    assert len(model.search("qqqqzzzz", k=5).items) == 5


def test_searches_are_chosen_for_on_searches_alone(bazaar: Shop, model: Rankloom) -> None:
    sequences = load_sequences(bazaar, model.config.data)
    assert int(((sequences.stage == VALID) & sequences.target & (sequences.query >= 0)).sum()) >= FEW
    for searches in (False, True):
        cases, unasked = questions(model, sequences, searches=searches, max_per_user=5, max_users=10_000)
        assert not unasked
        assert bool(((sequences.query[cases.row] >= 0) == searches).all())
        assert len(cases)
    table = feature_table(sequences, model.tokenizer, bazaar)
    model.search_choices = UNTRIED_SEARCH
    before = (model.weights, model.refiner)
    figures = choose_search(model, sequences, table, mask_seen=model.mask_seen, limit=100, quiet=True)
    assert figures
    assert model.search_choices is not UNTRIED_SEARCH
    assert (model.weights, model.refiner) == before
    refiner = model.search_choices.refiner
    assert refiner is None or len(refiner.mean_F) == len(FEATURES) + len(SEARCH_FEATURES)
    best = max(value for name, value in figures.items() if "held-out" not in name and name != "epochs")
    cases, _ = questions(model, sequences, searches=True, max_per_user=1, max_users=100)
    row, user = torch.from_numpy(cases.row), torch.from_numpy(cases.user).long()
    # the weights that are kept are the best of those tried
    assert best > 0
    assert len(row) == len(user)


def test_a_log_of_searches_alone_chooses_for_the_feed_without_their_words(bazaar: Shop, model: Rankloom) -> None:
    sequences = load_sequences(bazaar, model.config.data)
    sequences.query[:] = 0
    cases, unasked = questions(model, sequences, searches=False, max_per_user=1, max_users=50)
    assert unasked
    assert len(cases)


def test_what_was_chosen_for_searches_is_in_the_folder(model: Rankloom, tmp_path: Path) -> None:
    kept = model.search_choices
    model.save_pretrained(tmp_path / "again")
    again = Rankloom.from_pretrained(tmp_path / "again")
    assert again.search_choices.weights == kept.weights
    assert again.search_choices.generator_weights == kept.generator_weights
    assert (again.search_choices.refiner is None) == (kept.refiner is None)
    word, _ = rare_word(model)
    assert [i.item_id for i in again.search(word, k=5).items] == [i.item_id for i in model.search(word, k=5).items]
    if kept.refiner is not None:
        own = again.search_choices.refiner
        assert own is not None
        for name, value in kept.refiner.arrays().items():
            assert np.array_equal(value, own.arrays()[name])


def test_without_a_query_memory_a_query_is_context_and_nothing_else(
    bazaar: Shop, tiny_config: Config, tmp_path: Path
) -> None:
    config = tiny_config.with_overrides(["memory.queries=false", "training.max_epochs=1", "training.min_steps=10"])
    train(bazaar.path, tmp_path / "model", config, quiet=True)
    own = Rankloom.from_pretrained(tmp_path / "model")
    assert own.query_memory is None
    assert own.search_choices == UNTRIED_SEARCH
    assert own.search("tea", k=5).items


def test_the_index_is_of_training_alone(bazaar: Shop, tiny_config: Config) -> None:
    sequences = load_sequences(bazaar, tiny_config.data)
    items = bazaar.items()
    before = query_memory_of(sequences, items)
    later = sequences.stage != 0
    sequences.query[later] = -1
    after = query_memory_of(sequences, items)
    assert (before._asked != after._asked).nnz == 0


def dear(model: Rankloom) -> Rankloom:
    """The same with a family of items of known prices, dates and brands."""
    day = datetime(2026, 3, 1, tzinfo=UTC)
    model.add_items(
        pl.DataFrame(
            {
                "item_id": [f"lamp-{n}" for n in range(6)],
                "title": ["quuxlamp desk", "quuxlamp desk", "quuxlamp", "quuxlamp desk", "quuxlamp desk", "desk"],
                "price_micros": [3_000_000, 1_000_000, 500_000, 2_000_000, None, 1],
                "brand": ["A", "B", "A", "A", None, "C"],
                "category": [["Home", "Lamps"]] * 5 + [["Home", "Desks"]],
                "created_at": [day + timedelta(days=n) for n in (3, 1, 2, 9, 5, 7)],
            },
            schema_overrides={"created_at": model.items.schema["created_at"]},
        )
    )
    return model


def ids(reply: Recommendation) -> list[str]:
    return [item.item_id for item in reply.items]


def test_matches_can_be_sorted_and_only_matches_are(model: Rankloom) -> None:
    own = dear(model)
    assert ids(own.search("quuxlamp", k=5, sort="price")) == ["lamp-2", "lamp-1", "lamp-3", "lamp-0", "lamp-4"]
    assert ids(own.search("quuxlamp", k=3, sort="-price")) == ["lamp-0", "lamp-3", "lamp-1"]
    assert ids(own.search("quuxlamp", k=2, sort="newest")) == ["lamp-3", "lamp-4"]
    assert ids(own.search("quuxlamp", k=2, sort="newest", filter="brand == 'A'")) == ["lamp-3", "lamp-0"]
    few = own.search("quuxlamp", k=50, sort="price")
    assert set(ids(few)) == {f"lamp-{n}" for n in range(5)}
    assert few.degraded
    assert few.degraded_reason == "5 of 50: no more matches of the search to sort"


def test_every_match_is_sorted_however_many_there_are(model: Rankloom) -> None:
    n = 230
    model.add_items(
        pl.DataFrame(
            {
                "item_id": [f"quux-{place:03}" for place in range(n)],
                "title": ["quuxlamp desk"] * n,
                "price_micros": [(n - place // 2) * 1_000_000 for place in range(n)],
            }
        )
    )
    cheapest = [f"quux-{place:03}" for place in sorted(range(n), key=lambda place: (n - place // 2, place))]
    assert ids(model.search("quuxlamp", k=n, sort="price")) == cheapest
    assert ids(model.search("quuxlamp", k=3, sort="price")) == cheapest[:3]
    assert ids(model.search("quuxlamp", k=3, sort="price", min_relevance=0.0)) == cheapest[:3]
    few = model.search("quuxlamp", k=2, sort="-price", exclude=["quux-000"])
    assert ids(few) == ["quux-001", "quux-002"]
    assert few.matches == n - 1


def test_facets_count_the_matches_that_may_be_shown(model: Rankloom) -> None:
    own = dear(model)
    found = own.search("quuxlamp", k=1, facets=["brand", "category"]).facets
    assert found == {"brand": [("A", 3), ("B", 1)], "category": [("Home", 5), ("Lamps", 5)]}
    some = own.search("quuxlamp", k=1, facets=["brand"], filter="price > 1", exclude=["lamp-0"]).facets
    assert some == {"brand": [("A", 1)]}
    assert own.search("qqqqzzzz", k=1, facets=["brand"]).facets == {"brand": []}


def test_what_cannot_be_sorted_or_counted_is_said(model: Rankloom) -> None:
    with pytest.raises(RankloomError, match="sorted by 'prize'") as sorting:
        model.search("tea", sort="prize")
    assert sorting.value.code == "sort-field"
    assert sorting.value.action == "did you mean 'price'?"
    with pytest.raises(RankloomError, match="no facets of 'title'") as counting:
        model.search("tea", facets=["title"])
    assert counting.value.code == "facet-field"
    for option in ({"sort": "price"}, {"facets": ["brand"]}):
        with pytest.raises(RankloomError) as without:
            model.recommend(model.users[0], **option)
        assert without.value.code == "search-only"


def test_a_search_that_nothing_matches_says_so(model: Rankloom) -> None:
    word, owners = rare_word(model)
    # a filter that leaves none of the matches
    banned = " and ".join(f"item_id != '{item}'" for item in sorted(owners))
    narrowed = model.search(word, k=2, sort="price", filter=banned)
    assert (narrowed.no_match, narrowed.matches) == (True, 0)
    assert model.search(word, k=2, seen="mask", surface="feed").items
    assert model.search("qqqqzzzz", k=2).no_match
    assert not model.search(word, k=2).no_match
    assert not model.recommend(model.users[0], k=2).no_match


@pytest.mark.parametrize("query", ["!!!", "\N{TEACUP WITHOUT HANDLE}", "\0"])
def test_a_query_without_a_word_is_answered_as_one_that_nothing_knows(model: Rankloom, query: str) -> None:
    for reply in (model.search(query, k=3), model.search(query, k=3, sort="price"), model.search("qqqqzzzz", k=3)):
        assert len(reply.items) == 3
        assert reply.no_match
        assert reply.matches == 0
        assert [item.relevance for item in reply.items] == [0.0] * 3
    assert model.search(query, k=3, min_relevance=0.001).items == []
    assert len(model.search(query, k=3, explain=True).items) == 3


def test_weights_of_searches_are_judged_by_the_lists_they_serve(bazaar: Shop, model: Rankloom) -> None:
    sequences = load_sequences(bazaar, model.config.data)
    table = feature_table(sequences, model.tokenizer, bazaar)
    cases, _ = questions(model, sequences, searches=True, max_per_user=1, max_users=60)
    row, user = torch.from_numpy(cases.row), torch.from_numpy(cases.user).long()
    start, target = torch.from_numpy(sequences.offsets)[user], torch.from_numpy(cases.target).long()
    grid = [Weights(1.0, 0.9), Weights(1.0, 0.9, words=6.0), Weights(0.3, 0.6, 0.3, words=2.0), Weights(0.0, 0.3)]
    asked = {"user": user, "surface": table.surface[row]}
    fast = model.ndcg_of_weights(table, start, row, target, grid, **asked)
    gain = 1 / torch.log2(torch.arange(10) + 2.0)
    for weights, value in zip(grid, fast, strict=True):
        ranking, _, _ = model.rank(table, start, row, k=10, search_weights=weights, queries_at=row, **asked)
        assert value == pytest.approx(float(((ranking.item_BK == target[:, None]) * gain).sum()), abs=1e-3)
    assert fast.max() > 0
