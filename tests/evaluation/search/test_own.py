"""Our model as a search engine: the evaluation asks what `recommend` with a query answers."""

from __future__ import annotations

from datetime import UTC

import numpy as np

from rankloom.data.sequences import TEST, load_sequences
from rankloom.data.shop import Shop
from rankloom.evaluation.search.cases import SearchCases
from rankloom.evaluation.search.own import RankloomSearch
from rankloom.recommender import Rankloom
from rankloom.requests import Request


def test_the_evaluation_asks_what_recommend_answers(model: Rankloom, bazaar: Shop) -> None:
    sequences = load_sequences(bazaar, model.config.data)
    ids = bazaar.items()["item_id"].to_list()
    titles = bazaar.items()["title"].to_list()
    cases = sequences.cases(TEST, max_per_user=1, max_users=6)
    queries = tuple(titles[target].lower() for target in cases.target)
    engine = RankloomSearch(model, bazaar, beam=32, quiet=True)
    lists = engine.rank(SearchCases(sequences, cases, queries), 10)
    assert lists.shape == (6, 10)
    compared = 0
    for case, query in enumerate(queries):
        user, row = str(sequences.user_ids[cases.user[case]]), int(cases.row[case])
        before = row - int(sequences.offsets[cases.user[case]])
        stored = model.history_of(user)
        begin = len(stored) - int(np.diff(sequences.offsets)[cases.user[case]])
        history = tuple(stored[: begin + before])
        seen = sequences.item[sequences.offsets[cases.user[case]] : row]
        assert not np.isin(lists[case], seen).any()
        if begin < 0:
            continue  # longer than what the folder keeps
        when = sequences.timestamp[row]
        request = Request(
            user=user, history=history, k=10, query=query, surface="search", beam=32, seen="mask",
            at=np.datetime64(int(when), "us").astype(object).replace(tzinfo=UTC),
        )  # fmt: skip
        answer = [item.item_id for item in model.recommend_batch([request])[0].items]
        assert [ids[item] for item in lists[case] if item >= 0] == answer
        compared += 1
    assert compared >= 3


def test_two_queries_at_one_place_are_two_answers(model: Rankloom, bazaar: Shop) -> None:
    sequences = load_sequences(bazaar, model.config.data)
    titles = bazaar.items()["title"].to_list()
    one = sequences.cases(TEST, max_per_user=1, max_users=1)
    both = type(one)(np.repeat(one.user, 2), np.repeat(one.row, 2), np.repeat(one.target, 2))
    engine = RankloomSearch(model, bazaar, select=False, beam=32, quiet=True)
    together = engine.rank(SearchCases(sequences, both, (titles[0], titles[-1])), 10)
    for case, query in enumerate((titles[0], titles[-1])):
        assert together[case].tolist() == engine.rank(SearchCases(sequences, one, (query,)), 10)[0].tolist()
