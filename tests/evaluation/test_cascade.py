"""The cascade: honest statistics, exact recall, features by hand, and strong enough to be worth beating."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import pairwise

import numpy as np
import polars as pl
import pytest

from rankloom.config import EvaluationConfig
from rankloom.data.sequences import TEST, TRAIN, Cases, Sequences
from rankloom.evaluation.cascade import FEATURES, Cascade, split_training
from rankloom.evaluation.cascade_statistics import Catalogue, Past, Statistics
from rankloom.evaluation.evaluate import evaluate
from rankloom.evaluation.floors import ItemKNN, Markov, Popularity
from tests.evaluation.logs import by_time, leave_one_out

N_GROUPS, PER_GROUP = 6, 12
N_ITEMS = N_GROUPS * PER_GROUP


def world(seed: int = 0, people: int = 220) -> tuple[Sequences, pl.DataFrame, np.ndarray]:
    """People move between kinds of items in a fixed order and take what is new of the next kind."""
    rng = np.random.default_rng(seed)
    created = rng.uniform(-20, 60, N_ITEMS)
    lists, days = [], []
    for _ in range(people):
        when = np.sort(rng.uniform(0, 60, 9))
        group, own = rng.integers(0, N_GROUPS), []
        for day in when:
            group = (group + 1) % N_GROUPS
            kind = np.arange(group * PER_GROUP, (group + 1) * PER_GROUP)
            age = day - created[kind]
            weight = np.where(age >= 0, np.exp(-age / 5) + 0.02, 0) * (~np.isin(kind, own) + 1e-9)
            own.append(int(rng.choice(kind, p=weight / weight.sum())))
        lists.append(own)
        days.append(when.tolist())
    start = datetime(1970, 1, 1, tzinfo=UTC)
    items = pl.DataFrame(
        {
            "item_id": [f"i{n}" for n in range(N_ITEMS)],
            "category": [["all", f"kind {n // PER_GROUP}"] for n in range(N_ITEMS)],
            "price_micros": [1_000_000 * (1 + n % PER_GROUP) for n in range(N_ITEMS)],
            "created_at": [start + timedelta(days=float(day)) for day in created],
        }
    )
    content = np.repeat(np.eye(N_GROUPS, dtype=np.float32), PER_GROUP, axis=0)
    return by_time(lists, days, N_ITEMS, valid=48, test=54), items, content


def quick(**options: object) -> Cascade:
    defaults: dict[str, object] = {"n_candidates": 40, "max_trees": 60, "quiet": True}
    return Cascade(**{**defaults, **options})  # type: ignore[arg-type]


def test_it_beats_every_floor_where_what_comes_next_is_a_kind_and_new() -> None:
    sequences, items, content = world()
    systems = [quick(items=items), Popularity(), Markov(), ItemKNN()]
    result = evaluate(systems, sequences, content, EvaluationConfig(bootstrap=0, ks=(3, 10)))
    figures = {system.name: result.value(system.name, "recall", 3, masked=True) for system in systems}
    assert figures["cascade"] > 1.3 * max(value for name, value in figures.items() if name != "cascade")


@pytest.mark.parametrize("has_clock", [True, False])
def test_statistics_of_the_ranker_never_saw_its_targets(has_clock: bool) -> None:
    sequences, _, _ = world()
    if not has_clock:
        ends = sequences.offsets[1:]
        stage = np.full(sequences.n_interactions, TRAIN, np.int8)
        stage[ends - 2], stage[ends - 1] = 1, TEST
        sequences = replace(sequences, stage=stage, has_clock=False)
    rows, held_out = split_training(sequences, 10_000, 0)
    assert not set(rows.tolist()) & set(held_out.row.tolist())
    assert (sequences.stage[held_out.row] == TRAIN).all()
    assert (sequences.stage[rows] == TRAIN).all()
    if has_clock:
        assert sequences.timestamp[rows].max() < sequences.timestamp[held_out.row].min()
        assert np.bincount(held_out.user).max() <= 5
    else:
        # one target a person, and everything before it
        assert len(np.unique(held_out.user)) == len(held_out)
        assert all((rows[sequences.user[rows] == user] < row).all() for user, row in zip(held_out.user, held_out.row, strict=True))  # fmt: skip


def test_nothing_is_learned_from_the_test_part() -> None:
    sequences, items, content = world(people=120)
    rng = np.random.default_rng(5)
    later = sequences.stage == TEST
    changed = replace(sequences, item=np.where(later, rng.integers(0, N_ITEMS, len(later)), sequences.item).astype(np.int32))  # fmt: skip
    first, second = quick(items=items), quick(items=items)
    first.fit(sequences, content, 0)
    second.fit(changed, content, 0)
    assert first.booster.model_to_string() == second.booster.model_to_string()
    for name in ("count", "recent", "vectors", "leaf_next", "last_us"):
        np.testing.assert_array_equal(getattr(first.statistics, name), getattr(second.statistics, name))


def test_one_seed_is_one_result_and_seen_items_are_masked() -> None:
    sequences, items, content = world(people=120)
    cases = sequences.cases(TEST)
    lists = []
    for _ in range(2):
        cascade = quick(items=items)
        cascade.fit(sequences, content, 3)
        lists.append(cascade.rank(sequences, cases, 15, mask_seen=True))
        assert lists[-1].shape == (len(cases), 15)
    np.testing.assert_array_equal(*lists)
    for own, user, row in zip(lists[0], cases.user, cases.row, strict=True):
        shown = own[own >= 0].tolist()
        assert len(set(shown)) == len(shown)
        assert not set(shown) & set(sequences.item[sequences.offsets[user] : row].tolist())


def test_where_people_come_back_their_own_items_can_be_shown_again() -> None:
    lists = [[n % 5, 5 + n % 4, n % 5, 5 + n % 4, n % 5, 5 + n % 4] for n in range(60)]
    sequences = leave_one_out(lists, 12)
    cascade = quick(n_candidates=8)
    cascade.fit(sequences, None, 0)
    cases = sequences.cases(TEST)
    assert cascade.repeats
    again = cascade.rank(sequences, cases, 3, mask_seen=False)
    assert (again == cases.target[:, None]).any(1).mean() > 0.9
    never = cascade.rank(sequences, cases, 3, mask_seen=True)
    assert not (never == cases.target[:, None]).any()


def test_a_small_log_or_an_empty_history_still_gets_a_list() -> None:
    sequences = leave_one_out([[0, 1, 2], [1, 2, 3], [2, 3, 4]], 6)
    cascade = quick()
    cascade.fit(sequences, None, 0)
    assert cascade.booster is None
    first = Cases(np.array([0], np.int32), np.array([0], np.int64), np.array([3], np.int32))
    own = cascade.rank(sequences, first, 3, mask_seen=True)[0]
    assert own[0] >= 0
    nobody = Cases(first.user[:0], first.row[:0], first.target[:0])
    assert cascade.rank(sequences, nobody, 3, mask_seen=True).shape == (0, 3)


def test_similarities_and_transitions_equal_their_definitions() -> None:
    lists = [[0, 1, 2, 0], [0, 1, 3], [2, 3, 1, 4], [4]]
    sequences = leave_one_out(lists, 6)
    sequences = replace(sequences, stage=np.zeros_like(sequences.stage))
    rows = np.arange(sequences.n_interactions)
    known = Statistics.fit(sequences, rows, Catalogue.of(None, 6), 0)
    likes = np.array([[item in own for item in range(6)] for own in lists], float)
    # a person counts by one over the log of how much they took
    weight = 1 / np.log(likes.sum(1) + 2)
    dot = (likes * weight[:, None]).T @ likes
    norm = np.sqrt(np.diag(dot))
    cosine = dot / np.where(norm > 0, norm, 1)[:, None] / np.where(norm > 0, norm, 1)
    np.fill_diagonal(cosine, 0)
    np.testing.assert_allclose(known.similar.toarray(), cosine, atol=1e-6)
    chance = np.zeros((6, 6))
    for own in lists:
        for a, b in pairwise(own):
            chance[a, b] += 1
    np.testing.assert_allclose(known.following.toarray(), chance / (chance.sum(1, keepdims=True) + 5), atol=1e-6)
    assert known.count.tolist() == [3, 3, 2, 2, 2, 0]
    assert np.allclose(np.linalg.norm(known.vectors[:5], axis=1), 1, atol=1e-5)
    assert not known.vectors[5].any()


def test_features_of_a_candidate_by_hand() -> None:
    sequences, items, content = world(people=80)
    cascade = quick(items=items)
    cascade.fit(sequences, content, 0)
    cases = sequences.cases(TEST)
    part = slice(0, 16)
    block = cascade.block(sequences, cases, part, cascade.statistics)
    assert block.feature_BMF.shape == (16, cascade.width, len(FEATURES))
    created = items["created_at"].dt.timestamp("us").to_numpy()
    named = {name: block.feature_BMF[:, :, number] for number, name in enumerate(FEATURES)}
    for case in range(16):
        row, user = int(cases.row[case]), int(cases.user[case])
        past = sequences.item[sequences.offsets[user] : row]
        for place in np.flatnonzero(block.item_BM[case] >= 0)[::7]:
            item = int(block.item_BM[case, place])
            assert bool(block.seen_BM[case, place]) == (item in past)
            assert named["times_seen"][case, place] == (past == item).sum()
            assert named["history_length"][case, place] == len(past)
            assert named["log_count"][case, place] == pytest.approx(np.log1p(cascade.statistics.count[item]))
            assert named["age_days"][case, place] == pytest.approx((sequences.timestamp[row] - created[item]) / 86.4e9, abs=1e-3)  # fmt: skip
            assert named["same_leaf"][case, place] == (item // PER_GROUP == past[-1] // PER_GROUP)
            assert named["content_last"][case, place] == pytest.approx(float(content[item] @ content[past[-1]]))
            assert named["next_chance"][case, place] == pytest.approx(cascade.statistics.following[past[-1], item])
            decayed = sum(0.8**back * cascade.statistics.similar[own, item] for back, own in enumerate(past[::-1]))
            assert named["cf_score"][case, place] == pytest.approx(decayed, rel=1e-4, abs=1e-6)


def test_recall_by_vectors_is_exact() -> None:
    sequences, items, content = world(people=80)
    cascade = quick(items=items)
    cascade.fit(sequences, content, 0)
    past = Past.of(sequences, sequences.cases(TEST), slice(0, 8))
    score, width = cascade.channels(sequences, past, cascade.statistics)["latent"]
    vectors = cascade.statistics.vectors
    for case in range(8):
        own, back = past.item[past.case == case], past.back[past.case == case]
        profile = (0.8 ** back[:, None] * vectors[own]).sum(0)
        expected = vectors @ profile / max(np.linalg.norm(profile), 1e-9)
        np.testing.assert_allclose(score[case], expected, atol=1e-5)
    assert width > 10
