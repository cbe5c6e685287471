"""The parts of OneSearch: words, contexts, prompts, stage data, negatives, pairs."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from rankloom.data.schema import KIND_CODE
from rankloom.data.sequences import TRAIN, Sequences
from rankloom.models.encoder_decoder import EOS, PAD
from rankloom.onesearch.contexts import (
    DefaultSequences,
    contexts_of,
    feed_orders,
    numbered,
    sampled_contexts,
    training_contexts,
)
from rankloom.onesearch.negatives import Feedback, Negatives, PairCounts
from rankloom.onesearch.pars import feedback_pairs, generated_pairs, reorder
from rankloom.onesearch.settings import BehaviourConfig
from rankloom.onesearch.stages import PairTask, alignment_tasks, cooccurrence_tasks, draw_steps, searched_pairs
from rankloom.onesearch.vocabulary import TASKS, Vocabulary
from tests.onesearch.small import built, log

ORDERS = BehaviourConfig(long_length=6)


def test_text_is_read_and_written_back() -> None:
    own = Vocabulary.of(["red lamp", "red lamps", "a dress", "dress"], (4, 3), most=3)
    assert own.words == ("dress", "lamp", "red")
    written = own.written(["red lamps of red", "unknown", ""], 4)
    assert own.text_of(written[0].tolist()) == "red lamp red"
    assert written[0, -1] == EOS
    assert written[1].tolist() == [EOS, PAD, PAD, PAD]
    assert own.read(["", "a red"], 2).tolist() == [[PAD, PAD], [own.word_start + 2, PAD]]


def test_tokens_of_levels_and_tasks_are_disjoint() -> None:
    own = Vocabulary(("a", "b"), (4, 3, 2))
    codes = own.code_tokens(np.array([[0, 0, 0], [3, 2, 1], [-1, -1, -1]]))
    assert codes[2].tolist() == [PAD] * 3
    everything = [own.task(name) for name in TASKS] + [own.word_start, own.word_start + 1]
    everything += [own.code_start + number for number in range(9)]
    assert codes[:2].ravel().tolist() == [own.code_start + n for n in (0, 4, 7, 3, 6, 8)]
    assert len(set(everything)) == len(everything)
    assert max(everything) == own.n_tokens - 1


def test_contexts_equal_a_loop() -> None:
    own = log()
    cases = np.flatnonzero(own.stage == TRAIN)[::5]
    user = own.user[cases].astype(np.int64)
    found = contexts_of(own, user, cases, own.query[cases], ORDERS)
    for number, (row, who) in enumerate(zip(cases, user, strict=True)):
        before = np.arange(own.offsets[who], row)[-6:]
        history = found.history_CH[number]
        assert history[history >= 0].tolist() == own.item[before].tolist()
        asked = [int(query) for query in own.query[before] if query >= 0][-5:]
        recent = found.recent_CW[number]
        assert recent[recent >= 0].tolist() == asked
        assert found.ordered_CH[number].sum() == len(before)
        assert found.target_C[number] == own.item[row]


def test_the_sliding_window_gives_every_take_and_without_it_the_newest() -> None:
    own = log()
    every, newest = (
        training_contexts(own, BehaviourConfig(long_length=6, sliding_window=window)) for window in (True, False)
    )
    wanted = (own.stage == TRAIN) & (own.query >= 0)
    assert len(every) == wanted.sum()
    assert len(newest) == len(np.unique(own.user[wanted]))


def two_people(kinds: list[str] | None = None) -> Sequences:
    """u0 takes items 0, 1, 0 and u1 items 0, 2, 3, all after query 0 but u1's last two."""
    base = log()
    item = np.array([0, 1, 0, 0, 2, 3], dtype=np.int32)
    codes = [KIND_CODE[kind] for kind in kinds or ["purchase"] * 6]
    return replace(
        base, user_ids=np.array(["u0", "u1"]), offsets=np.array([0, 3, 6]), item=item,
        kind=np.array(codes, dtype=np.int8), timestamp=np.arange(6), watch_ratio=np.zeros(6, np.float32),
        surface=np.array([1, 1, 1, 1, 0, 0], dtype=np.int8), position=np.zeros(6, np.int16),
        query=np.array([0, 0, 0, 0, -1, -1], dtype=np.int32), target=np.ones(6, dtype=bool), stage=np.zeros(6, np.int8),
        n_items=64, queries=("things",),
    )  # fmt: skip


def test_who_has_no_history_gets_what_is_most_clicked_but_not_their_own_click() -> None:
    own = two_people()
    model = built()
    count = np.bincount(own.item, minlength=64)
    first = model.items.codes_IL[:, 0]
    defaults = DefaultSequences.of(own, first, 8, count, 2)
    queries = model.prompts.queries
    two = BehaviourConfig(long_length=6, window=2)
    contexts = contexts_of(own, np.array([0, 1, 0]), np.array([0, 3, 1]), np.array([0, 0, 0]), two)
    filled = defaults.fill(contexts, queries, trained=True)
    # query 0: item 0 three times, item 1 once; the sample's own click of item 0 leaves two
    assert filled.default_CW[0].tolist() == [1, 0]
    assert filled.default_CW[2].tolist() == [-1, -1]  # has a history
    alone = replace(own, query=np.array([0, -1, -1, -1, -1, -1], dtype=np.int32))
    lonely = DefaultSequences.of(alone, first, 8, count, 2).fill(contexts.take(np.array([0])), queries, trained=True)
    # nobody else searched so: the most taken of the query's first code, if any, stand in
    of_code = [row for row in np.argsort(-count, kind="stable") if first[row] == queries.codes_QL[0, 0] and count[row] > 0]
    of_code = [row for row in of_code if not (row == 0 and count[0] == 1)]
    kept = lonely.default_CW[0][lonely.default_CW[0] >= 0]
    assert kept.tolist() == of_code[:2][::-1]


def test_queries_are_numbered_after_those_known() -> None:
    numbers, fresh = numbered(["b", "x", "a", "x", "y"], ["a", "b"])
    assert numbers.tolist() == [1, 2, 0, 2, 3]
    assert fresh == ["x", "y"]


def test_later_orders_from_the_feed_of_the_same_category_are_level_two() -> None:
    own = two_people()
    model = built()
    category = np.full(64, 9)
    category[3] = 5
    items = replace(model.items, category_I=category)
    rows, item, query = feed_orders(own, items, BehaviourConfig())
    # u1 searched and took item 0 (row 3), then item 2 of the same category from the feed; item 3 is of another
    assert (rows.tolist(), item.tolist(), query.tolist()) == ([3], [2], [0])


def test_every_direction_of_every_stage_is_there() -> None:
    own = built()
    s1 = alignment_tasks(own.prompts, own.vocabulary, log(), own.config)
    s2 = cooccurrence_tasks(own.prompts, own.vocabulary, log(), own.config)
    assert [task.name for task in s1 + s2] == [name for name in TASKS if name != "personal"]
    by_name = {task.name: task for task in s1 + s2}
    sizes = {name: len(task) for name, task in by_name.items()}
    assert sizes["title>sid"] == sizes["sid>title"] == sizes["sid>category"] == 64
    assert sizes["query>sid"] == sizes["sid>query"] == 4
    query, item = searched_pairs(log())
    assert sizes["query>title"] == sizes["query-sid>sid"] == len(query) == len(np.unique(query * 64 + item))
    title, there = by_name["sid>title"], by_name["title>sid"]
    assert isinstance(title, PairTask)
    assert isinstance(there, PairTask)
    assert own.vocabulary.text_of(title.target_NT[5].tolist()) == "blue dress large"
    assert there.target_NT[5].tolist() == own.items.codes_IL[5].tolist()
    assert (title.source_NT[5] == own.vocabulary.code_tokens(own.items.codes_IL[5])).all()
    back, forth = by_name["sid>query-sid"], by_name["query-sid>sid"]
    assert isinstance(back, PairTask)
    assert isinstance(forth, PairTask)
    assert (back.source_NT == own.vocabulary.code_tokens(forth.target_NT)).all()
    assert (own.vocabulary.code_tokens(back.target_NT) == forth.source_NT).all()
    for task in s1 + s2:
        assert torch.isfinite(task.loss(own.network, np.arange(3)))


def test_steps_draw_tasks_by_their_size_and_visit_every_pair() -> None:
    own = built()
    tasks = cooccurrence_tasks(own.prompts, own.vocabulary, log(), own.config)
    seen: dict[str, list[int]] = {}
    for task, chosen in draw_steps(tasks, 60, 8, np.random.default_rng(0)):
        seen.setdefault(task.name, []).extend(chosen.tolist())
    assert set(seen) == {task.name for task in tasks}
    for task in tasks:
        counts = np.bincount(seen[task.name], minlength=len(task))
        assert counts.max() - counts.min() <= 1


def test_counts_of_pairs_and_rewards_by_level() -> None:
    own = two_people()
    counts = PairCounts.of(own, BehaviourConfig())
    assert counts.at(np.array([0, 0, 0]), np.array([0, 1, 2])).tolist() == [[3, 3, 3], [1, 1, 1], [0, 0, 0]]
    model = built()
    drawn = Negatives(own, model.items, BehaviourConfig())
    feedback = Feedback.of(own, BehaviourConfig())
    same, other = 5, 40  # another dress, a drill
    reward = drawn.rewards(feedback.take(np.array([0])), np.array([[0, same, other, -1]]))[0]
    unseen = 0.5
    assert reward[0] > 1.5 * unseen  # ordered in a search: lambda 2
    assert reward[1:] == pytest.approx([0.2 * unseen, 0, 0])


def test_what_was_shown_and_passed_over_is_level_four() -> None:
    kinds = ["purchase", "impression", "impression", "purchase", "purchase", "purchase"]
    own = two_people(kinds)
    own = replace(own, target=own.kind != KIND_CODE["impression"])
    model = built()
    drawn = Negatives(own, model.items, BehaviourConfig())
    feedback = Feedback.of(own, BehaviourConfig()).take(np.array([0]))
    shown = drawn.shown(feedback, 50, np.random.default_rng(0))
    # item 0 was shown again, but it is what this person took
    assert set(shown.ravel().tolist()) == {1}
    reward = drawn.rewards(feedback, np.array([[1, 2]]))[0]
    assert reward[0] > 2 * reward[1]


def browsed(kinds: list[str], items: list[int]) -> Sequences:
    """One person's rows under one query; impressions and dislikes are no targets."""
    n = len(kinds)
    own = replace(
        two_people(), user_ids=np.array(["u0"]), offsets=np.array([0, n]), item=np.array(items, dtype=np.int32),
        kind=np.array([KIND_CODE[kind] for kind in kinds], dtype=np.int8), timestamp=np.arange(n),
        watch_ratio=np.zeros(n, np.float32), surface=np.ones(n, np.int8), position=np.zeros(n, np.int16),
        query=np.zeros(n, np.int32), stage=np.zeros(n, np.int8),
    )  # fmt: skip
    return replace(own, target=~np.isin(own.kind, [KIND_CODE["impression"], KIND_CODE["dislike"]]))


@pytest.mark.parametrize(
    ("kinds", "items", "histories"),
    [
        (["impression", "impression", "purchase"], [8, 9, 1], [[]]),
        (["impression", "purchase"], [1, 1], [[]]),
        (["dislike", "purchase", "impression", "purchase"], [5, 6, 7, 8], [[], [6]]),
        (["purchase", "dislike", "impression", "click"], [5, 6, 7, 8], [[], [5]]),
    ],
)
def test_a_history_has_what_was_taken_alone(kinds: list[str], items: list[int], histories: list[list[int]]) -> None:
    own = browsed(kinds, items)
    found = training_contexts(own, ORDERS)
    assert [row[row >= 0].tolist() for row in found.history_CH] == histories
    assert [row[row >= 0].tolist() for row in found.short(2)] == histories
    # one query for each take, none for what was shown under it
    assert [(row >= 0).sum() for row in found.recent_CW] == [len(history) for history in histories]
    assert found.target_C.tolist() == [item for item, taken in zip(items, own.target, strict=True) if taken]
    assert (found.history_CH != found.target_C[:, None]).all()
    # who asks after the last row
    end = contexts_of(own, np.array([0]), np.array([len(items)]), np.array([0]), ORDERS)
    assert end.history_CH[0][end.history_CH[0] >= 0].tolist() == found.target_C.tolist()


def test_who_was_only_shown_things_has_no_history_to_be_drawn() -> None:
    own = browsed(["purchase", "purchase", "impression"], [1, 2, 3])
    two = replace(own, user_ids=np.array(["u0", "u1"]), offsets=np.array([0, 2, 3]))
    assert set(sampled_contexts(two, 20, ORDERS, np.random.default_rng(0)).user_ids.tolist()) == {"u0"}


def test_pairs_that_were_only_shown_have_no_clicks_and_no_category() -> None:
    own = browsed(["impression", "dislike", "impression", "click", "purchase"], [3, 4, 5, 5, 5])
    counts = PairCounts.of(own, BehaviourConfig())
    assert counts.at(np.zeros(3, dtype=np.int64), np.array([3, 4, 5])).tolist() == [[1, 0, 0], [1, 0, 0], [3, 2, 1]]
    category = np.arange(64) + 100
    assert counts.category_of(np.array([0]), category).tolist() == [105]
    only = PairCounts.of(browsed(["impression"], [3]), BehaviourConfig())
    assert only.category_of(np.array([0]), category).tolist() == [-1]


def test_what_the_person_took_under_the_query_is_never_a_negative() -> None:
    own = browsed(["purchase", "impression", "purchase", "impression"], [0, 1, 1, 2])
    drawn = Negatives(own, built().items, BehaviourConfig())
    feedback, rng = Feedback.of(own, BehaviourConfig()), np.random.default_rng(0)
    # items 0 to 15 are one category; both takes are known to either context
    assert set(drawn.shown(feedback, 50, rng).ravel().tolist()) == {2}
    for found in (drawn.same_category(feedback, 400, rng), drawn.others(feedback, 900, rng)):
        assert {2, 3} <= set(found.ravel().tolist())
        assert not np.isin(found, [0, 1]).any()
    pairs = feedback_pairs(feedback, drawn, 6, rng)
    assert not np.isin(pairs.lose_CN, [0, 1]).any()
    # another person's takes are no matter, nor those under another query
    other = replace(feedback, user_C=np.array([1, 1]), target_C=np.array([5, 5]))
    assert {0, 1} <= set(drawn.same_category(other, 400, rng).ravel().tolist())


def test_a_generated_list_rejects_nothing_that_was_taken_under_the_query() -> None:
    own = browsed(["purchase", "purchase"], [0, 1])
    drawn = Negatives(own, built().items, BehaviourConfig())
    feedback = Feedback.of(own, BehaviourConfig())
    # the reward model puts 12 up, above 1 and 10; for the second context above 0 alone, which gives no pair
    item, reward = np.array([[1, 10, 12], [0, 12, -1]]), np.array([[2.0, 1, 3], [1, 2, 9]])
    pairs, shares = generated_pairs(item, reward, feedback, drawn, 2)
    assert (pairs.context_C.tolist(), pairs.win_C.tolist(), pairs.lose_CN.tolist()) == ([0], [12], [[10, -1]])
    assert shares == {"changed": 1.0, "kept": 0.5}


def test_negatives_are_of_the_category_and_never_the_target() -> None:
    model = built()
    drawn = Negatives(log(), model.items, BehaviourConfig())
    target = np.arange(64)
    feedback = replace(Feedback.unknown(np.zeros(64, dtype=np.int64)), target_C=target)
    same = drawn.same_category(feedback, 400, np.random.default_rng(0))
    there = same >= 0
    assert (same != target[:, None])[there].all()
    category = model.items.category_I
    assert (category[same] == category[:, None])[there].all()
    assert set(same[0][there[0]].tolist()) == set(range(1, 16))


def test_only_lists_whose_order_changed_give_a_pair() -> None:
    item = np.array([[10, 11, 12, 13], [10, 11, 12, 13], [10, 11, 12, -1], [10, 11, 12, 13]])
    reward = np.array(
        [[4.0, 3, 2, 1], [1.0, 2, 4, 3], [1.0, 3, 2, 99], [3.0, 1, 2, 0.5]],
    )
    found = reorder(item, reward, np.array([13, 99, 12, 10]))
    # unchanged; the best promoted; what was clicked; clicked on top: the best promoted, below which 11 fell
    assert found.changed_C.tolist() == [False, True, True, True]
    assert found.kept_C.tolist() == [False, True, True, True]
    assert item[np.arange(1, 4), found.win_C[1:]].tolist() == [12, 12, 12]
    assert [item[row][found.lose_CK[row]].tolist() for row in (1, 2, 3)] == [[10, 11], [10], [11]]


def test_the_second_best_promoted_is_a_sample_of_its_own_where_nothing_was_clicked() -> None:
    item = np.array([[10, 11, 12, 13], [10, 11, 12, 13], [10, 11, 12, 13]])
    reward = np.array([[1.0, 2, 4, 3], [1.0, 2, 4, 3], [1.0, 4, 3, 2]])
    found = reorder(item, reward, np.array([-1, 13, -1]), nth=1)
    # the second promoted above which 10 and 11 fell; a click stands for the best alone; second of three promoted
    assert found.kept_C.tolist() == [True, False, True]
    assert item[[0, 2], found.win_C[[0, 2]]].tolist() == [13, 12]
    assert [item[row][found.lose_CK[row]].tolist() for row in (0, 2)] == [[10, 11], [10]]
    assert not reorder(item, reward, np.array([-1, -1, -1]), nth=3).kept_C.any()


def test_sampled_contexts_are_people_at_the_end_of_their_training_period() -> None:
    own = log()
    found = sampled_contexts(own, 60, ORDERS, np.random.default_rng(0))
    assert len(found) == 60
    assert (found.target_C == -1).all()
    assert set(found.query_C.tolist()) == {0, 1, 2, 3}
    for user, history in zip(found.user_ids, found.history_CH, strict=True):
        who = int(str(user)[1:])
        rows = np.arange(own.offsets[who], own.offsets[who + 1])
        assert history[history >= 0].tolist() == own.item[rows[own.stage[rows] == TRAIN]][-6:].tolist()
    nobody = replace(own, query=np.full_like(own.query, -1))
    assert len(sampled_contexts(nobody, 5, ORDERS, np.random.default_rng(0))) == 0


def test_where_no_take_is_known_the_level_is_what_the_log_says_of_the_pair() -> None:
    own = two_people(["purchase", "click", "purchase", "purchase", "purchase", "purchase"])
    model = built()
    drawn = Negatives(own, model.items, BehaviourConfig())
    same, other = 5, 40  # another dress, a drill
    reward = drawn.rewards_of_queries(np.array([0, 3]), np.array([[0, 1, same, other, -1], [0, 1, same, other, -1]]))
    assert reward[0, 0] > 1.5 * reward[0, 1] > 1.5 * reward[0, 2] > 0
    assert reward[0, 2:] == pytest.approx([0.1, 0, 0])
    # nobody asked this query
    assert (reward[1] == 0).all()


def test_pairs_of_both_phases() -> None:
    model = built()
    drawn = Negatives(log(), model.items, model.config.behaviour)
    feedback = Feedback.of(log(), model.config.behaviour).take(np.arange(4))
    item = np.tile(np.arange(20, 26), (4, 1))
    reward = np.tile(np.arange(6.0), (4, 1))
    pairs, shares = generated_pairs(item, reward, feedback, drawn, 2)
    assert shares == {"changed": 1.0, "kept": 1.0}
    assert pairs.lose_CN.shape == (4, 2)
    no_click = ~np.isin(feedback.target_C, item[0])
    assert (pairs.win_C[no_click] == 25).all()
    assert (pairs.lose_CN[no_click] == [20, 21]).all()
    second = feedback_pairs(feedback, drawn, 4, np.random.default_rng(0))
    assert (second.win_C == feedback.target_C).all()
    assert (second.lose_CN != second.win_C[:, None]).all()
    assert (second.reward_win_C[:, None] > second.reward_lose_CN).all()
    category = model.items.category_I
    same = category[second.lose_CN] == category[second.win_C][:, None]
    # no impressions in this log: levels 5 and 6
    assert same.any(1).all()
    assert (~same).any(1).any()
