"""Broad searches: where they begin, that they and nobody else are ordered by their own refiner, and that the folder keeps it."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from rankloom import model_folder
from rankloom.choosing import FEW
from rankloom.choosing_broad import choose_broad, describe_broad, lowest_bound
from rankloom.data.broad_queries import with_broad_queries
from rankloom.data.sequences import load_sequences
from rankloom.data.shop import Shop
from rankloom.decoding.choices import UNTRIED_SEARCH, BroadOrder, Choices
from rankloom.decoding.query_memory import DEPTH
from rankloom.decoding.refine import Refiner
from rankloom.decoding.refine_features import BROAD_FEATURES, FEATURES, SEARCH_FEATURES
from rankloom.decoding.select import Weights
from rankloom.files import read_json, write_json
from rankloom.pipeline import feature_table
from rankloom.recommender import Rankloom
from rankloom.requests import Recommendation, Request
from rankloom.simulation.titles import CATEGORIES

KITCHEN = next(category for category in CATEGORIES if category.english == "Kitchen")
BROAD, PRECISE = "kitchen", KITCHEN.styles[0][0]


def backwards() -> Refiner:
    """A last word that turns the order of the joined scores around: far away from all that anybody would choose."""
    n = len(FEATURES) + len(SEARCH_FEATURES) + len(BROAD_FEATURES)
    refiner = Refiner(torch.zeros(n), torch.ones(n))
    with torch.no_grad():
        # gelu(x) is x for a large x
        refiner.up.weight[:, FEATURES.index("generator rank")] = 1.0
        refiner.up.bias[:] = 20.0
        refiner.down_MH[:] = 100.0
    return refiner.eval()


def gated(model: Rankloom) -> Rankloom:
    """The model with a bound between the two queries."""
    assert model.query_memory is not None
    between = np.sqrt(alike(model, BROAD) * alike(model, PRECISE))
    choices = Choices(Weights(mix=0.5, memory=0.6), Weights(mix=1.0, memory=0.6))
    model.search_choices = replace(choices, broad=BroadOrder(float(np.log(between) / np.log(DEPTH)), backwards()))
    return model


def alike(model: Rankloom, query: str) -> int:
    assert model.query_memory is not None
    coverage = model.query_memory.match(query).coverage
    return int((coverage >= coverage.max() - 1e-6).sum())


def ids(reply: Recommendation) -> list[str]:
    return [item.item_id for item in reply.items]


@pytest.mark.parametrize(
    ("breadth", "gain", "least"),
    [
        ([], [], 0.1),
        ([0.1, 0.2, 0.3, 0.4], [1.0, 1.0, 1.0, 1.0], 0.1),
        # two lose below .5, together more than chance
        ([0.2, 0.2, 0.6], [-1.0, -1.0, 0.1], 0.3),
        # a broad one that loses is made good by those below it
        ([0.3, 0.3, 0.6], [0.4, 0.4, -0.5], 0.1),
        # many broad ones that lose are not, whatever precise ones gain
        ([0.1] * 50 + [0.6] * 9, [1.0] * 50 + [-0.1] * 9, 0.7),
        # and where even the broadest lose, nothing is left
        ([0.9] * 9, [-0.1] * 9, None),
    ],
)
def test_the_bound_is_the_lowest_at_which_the_logs_own_searches_lose_nothing(
    breadth: list[float], gain: list[float], least: float | None
) -> None:
    bounds = torch.tensor([0.1, 0.3, 0.5, 0.7])
    found = lowest_bound(torch.tensor(breadth), torch.tensor(gain), bounds)
    assert found == (None if least is None else pytest.approx(least))


def test_broad_searches_and_no_others_are_ordered_by_their_own_refiner(model: Rankloom) -> None:
    assert alike(model, BROAD) > 2 * alike(model, PRECISE) > 0
    gated(model)
    plain = Rankloom.recommend(model, model.users[0], query=PRECISE, surface="search", seen="allow", k=5)
    turned = model.search(BROAD, user=model.users[0], k=5)
    model.search_choices = replace(model.search_choices, broad=None)
    assert ids(model.search(PRECISE, user=model.users[0], k=5)) == ids(plain)
    assert ids(model.search(BROAD, user=model.users[0], k=5)) != ids(turned)
    # the same items are generated: only their order differs
    many = 10 * model.config.decoding.beam
    everything = set(ids(model.search(BROAD, user=model.users[0], k=many, beam=64)))
    gated(model)
    assert set(ids(model.search(BROAD, user=model.users[0], k=many, beam=64))) == everything


def test_a_batch_of_broad_and_precise_searches_equals_one_by_one(model: Rankloom) -> None:
    gated(model)
    requests = [
        Request(user=model.users[n], query=query, k=8, surface="search", seen="allow")
        for n, query in enumerate((BROAD, PRECISE, BROAD, "zzzz qqqq"))
    ]
    together = model.recommend_batch(requests)
    for request, reply in zip(requests, together, strict=True):
        alone = model.recommend_batch([request])[0]
        assert ids(reply) == ids(alone)
        assert [item.score for item in reply.items] == pytest.approx([item.score for item in alone.items], rel=1e-4)


def test_weights_that_a_caller_gives_are_what_orders_the_list(bazaar: Shop, model: Rankloom) -> None:
    gated(model)
    sequences = with_broad_queries(load_sequences(bazaar, model.config.data), bazaar.items(), ratio=5.0, seed=0)
    table = feature_table(sequences, model.tokenizer, bazaar)
    rows = np.flatnonzero([q >= 0 and sequences.queries[q] == BROAD for q in sequences.query.tolist()])[:4]
    assert len(rows)
    row, user = torch.from_numpy(rows), torch.from_numpy(sequences.user[rows]).long()
    ask = {"k": 10, "queries_at": row, "user": user, "surface": table.surface[row]}
    start = torch.from_numpy(sequences.offsets)[user]
    own, _, _ = model.rank(table, start, row, **ask)
    given, _, _ = model.rank(table, start, row, search_weights=model.search_choices.weights, **ask)
    model.search_choices = replace(model.search_choices, broad=None)
    plain, _, _ = model.rank(table, start, row, **ask)
    assert torch.equal(given.item_BK, plain.item_BK)
    assert not torch.equal(own.item_BK, plain.item_BK)


def test_the_folder_keeps_the_bound_and_the_refiner_and_one_without_them_loads(model: Rankloom, tmp_path: Path) -> None:
    gated(model)
    before = ids(model.search(BROAD, user=model.users[0], k=8))
    model.save_pretrained(tmp_path / "with")
    again = Rankloom.from_pretrained(tmp_path / "with")
    assert again.search_choices.broad is not None
    assert model.search_choices.broad is not None
    assert again.search_choices.broad.least == model.search_choices.broad.least
    assert ids(again.search(BROAD, user=again.users[0], k=8)) == before
    # a folder from before there was such a thing names neither
    shutil.copytree(tmp_path / "with", tmp_path / "old")
    (tmp_path / "old" / model_folder.BROAD_REFINER).unlink()
    raw = read_json(tmp_path / "old" / model_folder.CONFIG)
    del raw["model"]["search"]["broad_from"]
    write_json(tmp_path / "old" / model_folder.CONFIG, raw)
    model_folder.write_manifest(tmp_path / "old", parents={})
    old = Rankloom.from_pretrained(tmp_path / "old")
    assert old.search_choices.broad is None
    assert old.search_choices.weights == model.search_choices.weights
    assert len(old.search(BROAD, k=5).items) == 5


def test_training_chooses_for_broad_searches_and_leaves_the_others_as_they_were(bazaar: Shop, model: Rankloom) -> None:
    sequences = load_sequences(bazaar, model.config.data)
    own = (sequences, feature_table(sequences, model.tokenizer, bazaar))
    asked = with_broad_queries(sequences, bazaar.items(), ratio=10.0, seed=0)
    assert int(((asked.query >= 0) & (sequences.query < 0)).sum()) >= FEW
    made = (asked, feature_table(asked, model.tokenizer, bazaar))
    # what validation prefers has little to do with chance: a refiner that turns lists around is worse than any fitted one
    model.search_choices = Choices(Weights(mix=0.9, memory=0.0, refine=1.0), Weights(mix=1.0), backwards())
    before = model.search_choices
    figures = choose_broad(model, own, made, mask_seen=False, quiet=True)
    chosen = model.search_choices.broad
    assert chosen is not None
    assert figures["broad: held-out ndcg@10, refined"] > figures["broad: held-out ndcg@10, as other searches"]
    assert figures["broad: least breadth"] == chosen.least
    assert replace(model.search_choices, broad=None) == before
    assert "own has the last word" in describe_broad(chosen)
    first = chosen.refiner.arrays()
    model.search_choices = before
    choose_broad(model, own, made, mask_seen=False, quiet=True)
    again = model.search_choices.broad
    assert again is not None
    assert all(np.array_equal(value, again.refiner.arrays()[name]) for name, value in first.items())


def test_nothing_is_chosen_where_searches_have_no_selection(bazaar: Shop, model: Rankloom) -> None:
    sequences = load_sequences(bazaar, model.config.data)
    own = (sequences, feature_table(sequences, model.tokenizer, bazaar))
    model.search_choices = UNTRIED_SEARCH
    assert choose_broad(model, own, own, mask_seen=False, quiet=True) == {}
    assert model.search_choices is UNTRIED_SEARCH
