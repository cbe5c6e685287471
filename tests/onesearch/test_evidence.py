"""What the reward model reads beside vectors: words of the query in the item, counts of the log, and profiles of people."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch

from rankloom.data.sequences import TEST, TRAIN
from rankloom.errors import RankloomError
from rankloom.onesearch import folder
from rankloom.onesearch.lexical import K1, B, Lexical
from rankloom.onesearch.model import OneSearch
from rankloom.onesearch.profiles import Profiles
from rankloom.onesearch.prompts import KINDS
from rankloom.onesearch.settings import BehaviourConfig
from rankloom.onesearch.statistics import Statistics
from tests.onesearch.small import COLOURS, built, catalogue, log, settings, tokenizer

TASTES = ("18-23 male", "18-23 female", "50-60 male", "50-60 female")


def people() -> pl.DataFrame:
    """Age and gender tell which colour a person likes (`small.log`)."""
    said = [TASTES[number % len(TASTES)].split() for number in range(48)]
    return pl.DataFrame(
        {"user_id": [f"u{n}" for n in range(48)], "age": [own[0] for own in said], "gender": [own[1] for own in said]}
    )


def test_words_are_weighed_as_bm25_says() -> None:
    titles, brands, paths = (
        ["red lamp", "red red dress", "blue lamp"],
        ["", "lampo", ""],
        ["home lamps", "dresses", "home lamps"],
    )
    own = Lexical.of(titles, brands, paths)
    found = own.evidence(["red lamp", "unknown", "lamps for dresses"])
    assert found.shape == (3, 3, 4)
    assert (found[1] == 0).all()
    length = np.array([4, 5, 4])
    norm = K1 * (1 - B + B * length / length.mean())
    idf = np.log1p(3 / (0.5 + np.array([2, 2])))  # red and lamp, each in two items
    count = np.array([[1, 2], [2, 0], [0, 2]])  # the category path says lamp once more
    expected = (idf * count * (K1 + 1) / (count + norm[:, None])).sum(1) / (K1 + 1) / idf.sum()
    assert found[0, :, 0] == pytest.approx(expected, rel=1e-5)
    assert found[0, :, 1] == pytest.approx(expected / expected.max(), rel=1e-5)
    assert found[0, :, 2] == pytest.approx([1, 0.5, 0.5])
    assert found[0, :, 3] == pytest.approx([0.5, 0, 0.5])
    assert found.min() >= 0
    assert found.max() <= 1


def test_relevance_is_the_share_of_the_querys_words() -> None:
    own = built()
    assert own.prompts.queries.texts[1] == "lamps"
    lamps = np.array([title.split()[1] == "lamp" for title in own.items.titles], dtype=float)
    titles = list(own.items.titles)
    lexical = Lexical.of(titles, own.items.brands, own.items.categories)
    found = lexical.coverage(["lamps", "red lamp", "zyxnever lamp", "zyxnever", "zyxnever qq lamp", ""])
    assert found.shape == (6, 64)
    # "lamps" is one word, which the sixteen lamps have
    assert found[0] == pytest.approx(lamps)
    assert found[1][titles.index("red lamp small")] == pytest.approx(1)
    # a word that nothing knows is not covered, and weighs more than one that something has
    assert 0 < found[4].max() < found[2].max() < 0.5
    assert found[2] == pytest.approx(lamps * found[2].max())
    assert (found[3] == 0).all()
    assert (found[5] == 0).all()
    # two words of the path and the title together
    assert Lexical.of(["red"], ["acme"], ["home lamps"]).coverage(["acme red lamp"])[0, 0] == pytest.approx(1)


def test_the_reward_models_relevance_counts_words_that_nothing_knows() -> None:
    own = built()
    own.fit_reward(log())
    assert own.rewarder is not None
    cases = log().cases(TEST, max_per_user=1)
    contexts, prompts = own.asked(log(), cases.user[:2], cases.row[:2], ["zyxnever lamp", "lamp"])
    lamp = np.full((2, 1), own.items.titles.index("red lamp small"))
    _, relevance = own.rewarder.with_queries(prompts).inputs(contexts, lamp)
    assert relevance[1, 0] == pytest.approx(1)
    assert 0 < relevance[0, 0] < 0.5


def test_counts_leave_the_samples_own_take_out() -> None:
    own = log()
    counts = Statistics.of(own, BehaviourConfig(long_length=6))
    after, together = np.zeros((64, 64)), np.zeros((64, 64))
    for user in range(own.n_users):
        rows = np.arange(own.offsets[user], own.offsets[user + 1])
        taken = own.item[rows[own.stage[rows] == TRAIN]]
        for place, item in enumerate(taken):
            if place:
                after[taken[place - 1], item] += 1
            for before in taken[:place]:
                together[before, item] += 1
                together[item, before] += 1
    assert (counts.following.toarray() == after).all()
    assert (counts.together.toarray() == together).all()
    one, other = np.argsort(-after.sum(1))[:2].tolist()
    history = np.array([[-1, -1], [-1, one], [3, other]])
    item = np.tile(np.arange(64), (3, 1))
    known = counts.after_last(history, item, None)
    assert (known[0] == 0).all()
    assert (known[1:] == after[[one, other]]).all()
    target = np.array([0, int(after[one].argmax()), int(after[other].argmax())])
    less = counts.after_last(history, item, target)
    assert (known - less).sum(1).tolist() == [0, 1, 1]
    sums = counts.with_history(history, item, None)
    assert (sums == np.stack([np.zeros(64), together[one], together[3] + together[other]])).all()
    clicks = counts.clicks(np.array([0, -1, 99]), item, None)
    asked = (own.stage == TRAIN) & (own.query == 0)
    assert (clicks[0] == np.bincount(own.item[asked], minlength=64)).all()
    assert (clicks[1:] == 0).all()


def test_counts_come_back_from_arrays() -> None:
    own = Statistics.of(log(), BehaviourConfig())
    again = Statistics.from_arrays(own.arrays(), 64)
    assert (again.following != own.following).nnz == 0
    assert (again.together != own.together).nnz == 0
    assert (again.pairs.count_P3 == own.pairs.count_P3).all()


def test_profiles_are_texts_of_the_columns_that_are_named() -> None:
    table = pl.DataFrame({"user_id": ["b", "a", "c"], "age": ["18-23", None, None], "gender": ["male", "female", None]})
    own = Profiles.of(table, ("age", "gender"))
    assert own.text_U == ("female", "18-23 male")
    assert own.places(np.array(["b", "x", "a", "c"])).tolist() == [1, 2, 0, 2]
    assert len(Profiles.of(None, ("age",))) == len(Profiles.of(table, ())) == 0
    with pytest.raises(RankloomError, match="none of the columns"):
        Profiles.of(table, ("town",))
    assert Profiles.of(table, ("town", "gender")).text_U == ("female", "male")


def test_columns_of_the_default_that_are_not_there_are_not_read() -> None:
    some = people().drop("age")
    lists = {"both": people(), "gender": some, "none": some.drop("gender")}
    texts = {}
    for name, users in lists.items():
        texts[name] = OneSearch.build(catalogue(), log(), tokenizer(), settings(), users=users).prompts.profiles.text_U
    assert set(texts["both"]) == set(TASTES)
    assert set(texts["gender"]) == {"male", "female"}
    assert texts["none"] == ()
    # what was asked for by name has to be there
    named = settings(behaviour={"profile": ("town",)})
    with pytest.raises(RankloomError, match="none of the columns town"):
        OneSearch.build(catalogue(), log(), tokenizer(), named, users=people())


def test_the_prompt_has_a_place_for_profiles_where_somebody_has_one() -> None:
    plain = built()
    own = OneSearch.build(catalogue(), log(), tokenizer(), settings(), users=people().head(2))
    for model, there in ((plain, False), (own, True)):
        contexts = model.training_contexts(log())
        parts = {KINDS[part.kind]: part for part in model.prompts.personal(contexts).parts}
        assert ("profile" in parts) == there
        if there:
            said = (parts["profile"].token_BPN != 0).any(-1)[:, 0].numpy()
            assert (said == np.isin(contexts.user_ids, ["u0", "u1"])).all()


def test_a_profile_tells_what_the_rest_of_the_prompt_does_not(tmp_path: Path) -> None:
    silent = {"uid": "none", "short": False, "long": False}
    shares = []
    for users in (None, people()):
        config = settings(
            behaviour=silent, stages={"s1_steps": 0, "s2_steps": 0, "s3_steps": 120, "learning_rate": 1e-2}
        )
        own = OneSearch.build(catalogue(), log(), tokenizer(), config, users=users)
        own.fit_supervised(log())
        own.fit_reward(log())
        cases = log().cases(TEST, max_per_user=1)
        contexts, prompts = own.asked(log(), cases.user, cases.row, ["lamps"] * len(cases))
        lists = own.generated(contexts, prompts, longest=4)
        shares.append(float((lists.item_BK // 4 % len(COLOURS) == (cases.user % len(COLOURS))[:, None]).mean()))
    assert shares[0] < 0.4
    assert shares[1] > 0.55
    # the reward model reads it too, and a folder keeps it
    assert own.rewarder is not None
    assert own.rewarder.towers.profile is not None
    again = folder.load(folder.save(own, catalogue(), tmp_path / "model"))
    assert again.prompts.profiles.text_U == own.prompts.profiles.text_U
    assert torch.equal(
        torch.from_numpy(again.lists(contexts, prompts, longest=5)),
        torch.from_numpy(own.lists(contexts, prompts, longest=5)),
    )
