from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch

from rankloom.compiling import available
from rankloom.data.sequences import VALID, load_sequences
from rankloom.data.shop import Shop
from rankloom.decoding.select import Weights
from rankloom.errors import RankloomError
from rankloom.models.context import ContextBatch
from rankloom.pipeline import feature_table
from rankloom.recommender import Rankloom
from rankloom.requests import HistoryEvent, Request


def active_user(model: Rankloom) -> str:
    return next(user for user in model.users if len(model.history_of(user)) >= 5)


def test_recommends_unseen_distinct_items_in_order(model: Rankloom) -> None:
    user = active_user(model)
    reply = model.recommend(user, k=12, seen="mask", explain=True)
    ids = [item.item_id for item in reply.items]
    assert len(ids) == len(set(ids)) == 12
    assert not set(ids) & {event.item_id for event in model.history_of(user)}
    scores = [item.score for item in reply.items]
    assert scores == sorted(scores, reverse=True)
    assert all(item.reasons for item in reply.items)
    assert not reply.degraded


def test_every_item_passes_the_filter_and_none_is_excluded(model: Rankloom) -> None:
    first = model.recommend(k=3, filter="price < 20")
    again = model.recommend(k=30, filter="price < 20", exclude=[item.item_id for item in first.items])
    cheap = set(model.items.filter(pl.col("price_micros") < 20e6)["item_id"].to_list())
    shown = {item.item_id for item in again.items}
    assert shown
    assert shown <= cheap
    assert not shown & {item.item_id for item in first.items}


def test_a_filter_that_nothing_passes_gives_an_honest_empty_list(model: Rankloom) -> None:
    reply = model.recommend(k=5, filter="price < 0")
    assert reply.items == []
    assert reply.degraded
    assert reply.degraded_reason is not None
    assert "0 items pass the filter" in reply.degraded_reason


def test_a_mixed_batch_equals_one_by_one(model: Rankloom) -> None:
    users = model.users[:6]
    requests = [Request(user=user, k=3 + n, filter="price > 5" if n % 2 else None) for n, user in enumerate(users)]
    requests.append(Request(history=(HistoryEvent(model.items["item_id"][0]),), k=4))
    requests.append(Request(query="green tea", surface="search", k=4, seen="allow"))
    together = model.recommend_batch(requests)
    for request, reply in zip(requests, together, strict=True):
        alone = model.recommend_batch([request])[0]
        assert [item.item_id for item in alone.items] == [item.item_id for item in reply.items]
        np.testing.assert_allclose([i.score for i in alone.items], [i.score for i in reply.items], atol=1e-4)


@pytest.mark.skipif(not available(), reason="numba is not installed")
def test_both_engines_give_the_same_answers(model: Rankloom) -> None:
    asked = [Request(user=user, k=10, filter="price > 5" if n % 2 else None) for n, user in enumerate(model.users[:8])]
    asked += [Request(query=words, surface="search", user=model.users[0], k=10) for words in ("green tea", "lamp", "zzz")]
    replies = {}
    for engine in ("compiled", "eager"):
        model.config = model.config.with_overrides([f"decoding.engine={engine}"])
        model.model.engine = model.config.decoding.engine
        replies[engine] = [reply for request in asked for reply in model.recommend_batch([request])]
        replies[engine] += model.recommend_batch(asked)
    for own, twin in zip(replies["compiled"], replies["eager"], strict=True):
        assert [item.item_id for item in own.items] == [item.item_id for item in twin.items]
        assert [item.score for item in own.items] == pytest.approx([item.score for item in twin.items], abs=1e-4)


def test_neither_k_nor_beam_of_another_request_changes_an_answer(model: Rankloom) -> None:
    requests = [Request(user=user, k=k, beam=beam) for user, k, beam in zip(model.users, (2, 70, 5), (1, 3, 40), strict=False)]
    for request, reply in zip(requests, model.recommend_batch(requests), strict=True):
        alone = model.recommend_batch([request])[0]
        assert [item.item_id for item in alone.items] == [item.item_id for item in reply.items]
        np.testing.assert_allclose([i.score for i in alone.items], [i.score for i in reply.items], atol=1e-4)
    assert model.recommend_batch([]) == []


def test_serving_sees_of_a_person_what_evaluation_sees(bazaar: Shop, model_path: Path) -> None:
    model = Rankloom.from_pretrained(model_path)
    sequences = load_sequences(bazaar, model.config.data)
    table = feature_table(sequences, model.tokenizer, bazaar)
    contexts: list[ContextBatch] = []
    prefill = model.model.prefill

    def keep(batch: ContextBatch, surface_B: torch.Tensor | None = None) -> object:
        contexts.append(batch)
        return prefill(batch, surface_B)

    model.model.prefill = keep  # type: ignore[method-assign, assignment]
    users = np.flatnonzero(np.diff(sequences.offsets) > 0)[:40]
    assert (np.diff(sequences.offsets)[users] > model.config.model.max_history + 1).any()
    asked_a_query = False
    for user in users.tolist():
        stop = torch.tensor([int(sequences.offsets[user + 1])])
        start = torch.tensor([int(sequences.offsets[user])])
        model.rank(table, start, stop, k=1, queries_at=torch.tensor([-1]), user=torch.tensor([user]))
        model.recommend(str(sequences.user_ids[user]), k=1)
        evaluated, served = contexts[-2:]
        for name in ("item_BT", "kind_BT", "watch_BT", "gap_BT", "surface_BT", "position_BT", "length_B"):
            assert torch.equal(getattr(evaluated, name), getattr(served, name)), name
        for name in ("query_BQD", "query_from_BQ", "user_BF"):
            mine, theirs = getattr(served, name), getattr(evaluated, name)
            assert (mine is None) == (theirs is None), name
            if mine is not None:
                torch.testing.assert_close(mine, theirs)
                asked_a_query |= name == "query_BQD"
    assert asked_a_query


def test_a_new_item_is_recommendable_at_once_and_a_removed_one_is_gone(model: Rankloom) -> None:
    twin = model.items.row(0, named=True)
    fresh = pl.DataFrame([{**twin, "item_id": "brand-new"}], schema=model.items.schema)
    assert model.add_items(fresh) == 1
    assert model.add_items(fresh.with_columns(pl.lit(5_000_000).alias("price_micros"))) == 0
    assert model.recommend(k=5, filter='item_id == "brand-new"').items[0].item_id == "brand-new"
    # the same text has the same semantic ID: the tokenizer is frozen
    assert model.semantic_ids.codes[-1].tolist() == model.semantic_ids.codes[0].tolist()
    assert model.remove_items(["brand-new", "never-there"]) == 1
    assert model.recommend(k=5, filter='item_id == "brand-new"').items == []


def test_a_changed_catalogue_survives_saving(model: Rankloom, tmp_path: Path) -> None:
    twin = model.items.row(3, named=True)
    model.add_items(pl.DataFrame([{**twin, "item_id": "kept"}], schema=model.items.schema))
    gone = model.items["item_id"][1]
    model.remove_items([gone])
    version = model.save_pretrained(tmp_path / "m")
    again = Rankloom.from_pretrained(tmp_path / "m")
    assert again.model_version == version
    assert again.recommend(k=1, filter='item_id == "kept"').items[0].item_id == "kept"
    assert again.recommend(k=1, filter=f'item_id == "{gone}"').items == []
    user = active_user(model)
    assert [i.item_id for i in again.recommend(user, k=9).items] == [
        i.item_id for i in model.recommend(user, k=9).items
    ]
    with pytest.raises(RankloomError, match="not empty"):
        model.save_pretrained(tmp_path / "m")


def test_search_answers_a_stranger(model: Rankloom) -> None:
    reply = model.search("running shoes", k=4, explain=True)
    assert len(reply.items) == 4
    assert "running shoes" in reply.items[0].reasons[0]


def test_the_trace_follows_the_codes(model: Rankloom) -> None:
    trace = model.trace(Request(user=active_user(model), k=5))
    assert len(trace.levels) == model.semantic_ids.n_levels
    for depth, level in enumerate(trace.levels, start=1):
        assert level
        for beam in level:
            assert len(beam.codes) == depth
            assert model.trie.node_of_prefix(beam.codes) is not None
            assert beam.n_items > 0
    twice = [event.item_id for event in model.history_of(active_user(model))]
    again = model.trace(Request(user=active_user(model), k=5, seen="mask", exclude=(*twice, *twice)))
    assert again.funnel["not seen or excluded"] == model.trie.n_items - len(set(twice))
    sizes = list(trace.funnel.values())
    assert sizes[0] >= sizes[1] >= sizes[2] >= sizes[3] >= sizes[4] == 5
    assert trace.to_dict()["funnel"] == trace.funnel


@pytest.mark.parametrize(
    "bad",
    [{"k": 0}, {"k": "3"}, {"k": 2.0}, {"beam": 0}, {"beam": "8"}, {"filter": "price <"}, {"filter": "colour == 'x'"},
     {"surface": "window"}, {"seen": "perhaps"}],
)  # fmt: skip
def test_bad_requests_are_told(model: Rankloom, bad: dict[str, object]) -> None:
    with pytest.raises(RankloomError):
        model.recommend(**bad)  # type: ignore[arg-type]


def test_items_that_the_catalogue_does_not_know_are_passed_over(model: Rankloom) -> None:
    known = model.items["item_id"].to_list()[3:6]
    asked = model.recommend(history=["never-there", *known, "nor-this"], exclude=["nowhere"], k=6)
    assert [item.item_id for item in asked.items] == [item.item_id for item in model.recommend(history=known, k=6).items]
    assert len(model.recommend(history=["never-there"], k=3).items) == 3


def test_incomplete_items_are_refused(model: Rankloom) -> None:
    with pytest.raises(RankloomError, match="needs title"):
        model.add_items(pl.DataFrame({"item_id": ["x"]}))
    with pytest.raises(RankloomError, match="twice"):
        model.add_items(pl.DataFrame({"item_id": ["x", "x"], "title": ["a", "b"]}))


def test_the_moment_of_a_request_changes_what_is_new(model: Rankloom) -> None:
    assert model.log_end is not None
    user = active_user(model)
    end = datetime.fromtimestamp(model.log_end, tz=UTC)
    now = model.recommend(user, k=20)
    assert now == replace(model.recommend(user, k=20, at=end), timing_ms=now.timing_ms)
    # three weeks on, what was new is old
    later = model.recommend(user, k=20, at=end + timedelta(days=21))
    assert [item.score for item in later.items] != [item.score for item in now.items]


def test_moments_of_a_batch_do_not_mix(model: Rankloom) -> None:
    assert model.log_end is not None
    end = datetime.fromtimestamp(model.log_end, tz=UTC)
    users = model.users[:3]
    requests = [Request(user, k=8, at=end - timedelta(days=5 * n)) for n, user in enumerate(users)]
    together = model.recommend_batch(requests)
    for request, reply in zip(requests, together, strict=True):
        alone = model.recommend_batch([request])[0]
        assert [item.item_id for item in alone.items] == [item.item_id for item in reply.items]
        assert [item.score for item in alone.items] == pytest.approx([item.score for item in reply.items], abs=1e-4)


def test_an_item_that_nobody_took_has_no_vector_of_its_own(model: Rankloom) -> None:
    encoder = model.model.items
    assert encoder.learned is not None
    taken = torch.from_numpy(model.semantic_ids.prior > 0)
    assert torch.equal(encoder.trust_I > 0, taken)
    rows = torch.arange(len(taken))
    before = encoder(rows)
    encoder.learned.weight.data += 1
    moved = (encoder(rows) - before).abs().sum(1) > 1e-3
    assert torch.equal(moved, taken)


def test_weights_are_judged_by_the_lists_they_serve(bazaar: Shop, model: Rankloom) -> None:
    sequences = load_sequences(bazaar, model.config.data)
    table = feature_table(sequences, model.tokenizer, bazaar)
    cases = sequences.cases(VALID, max_per_user=1)
    row, user = torch.from_numpy(cases.row), torch.from_numpy(cases.user).long()
    start, target = torch.from_numpy(sequences.offsets)[user], torch.from_numpy(cases.target).long()
    when = torch.from_numpy(sequences.timestamp / 1e6)[row]
    asked = {"user": user, "surface": table.surface[row], "when": when}
    grid = [
        Weights(1.0, 0.3), Weights(0.0), Weights(0.3, 0.3, 0.6), Weights(0.45, 0.0, 0.15, 0.5, 0.3), Weights(1.0, 0.0, 0.0, 1.0),
    ]  # fmt: skip
    fast = model.ndcg_of_weights(table, start, row, target, grid, **asked)
    gain = 1 / torch.log2(torch.arange(10) + 2.0)
    for weights, value in zip(grid, fast, strict=True):
        ranking, _, _ = model.rank(table, start, row, k=10, weights=weights, queries_at=row, **asked)
        assert value == pytest.approx(float(((ranking.item_BK == target[:, None]) * gain).sum()), abs=1e-3)
    assert fast.max() > 0


@pytest.mark.parametrize(
    ("name", "value"),
    [("user", 7), ("filter", 3.5), ("query", 12), ("exclude", "item-1"), ("exclude", [1]), ("facets", "brand"), ("history", "item-1"),
     ("history", [3]), ("history", 3), ("at", "2026-01-01"), ("k", True), ("k", "3"), ("beam", True),
     ("history", [HistoryEvent("a", timestamp="yesterday")])],  # type: ignore[arg-type]
)  # fmt: skip
def test_a_value_of_another_type_is_named(model: Rankloom, name: str, value: object) -> None:
    with pytest.raises(RankloomError) as caught:
        model.recommend(**{name: value})  # type: ignore[arg-type]
    assert caught.value.place == name
    assert caught.value.action


def test_times_without_a_zone_are_in_utc_wherever_this_runs(model: Rankloom) -> None:
    items, moment = model.items["item_id"].to_list()[:2], datetime(2026, 3, 1, 12)
    asked = [
        Request(history=tuple(HistoryEvent(item, timestamp=when) for item in items), at=when, k=5)
        for when in (moment, moment.replace(tzinfo=UTC))
    ]
    assert asked[0] == asked[1]


def test_a_column_that_came_live_can_be_filtered_and_changes_no_order(model: Rankloom, model_path: Path, tmp_path: Path) -> None:
    own = Rankloom.from_pretrained(model_path)
    own.items = own.items.drop("brand", "in_stock")
    own.read_columns = tuple(own.items.columns)
    own._refresh()
    before = own.recommend(own.users[0], k=20, seen="allow")
    first = before.items[0].item_id
    title = own.items.filter(pl.col("item_id") == first)["title"]
    own.add_items(pl.DataFrame({"item_id": [first], "title": title, "brand": ["Newbrand"], "in_stock": [True]}))
    assert own.recommend(own.users[0], k=20, seen="allow").items == before.items
    assert [item.item_id for item in own.recommend(k=5, filter="brand == 'Newbrand'").items] == [first]
    found = own.search("newbrand", k=5, facets=["brand"])
    assert found.items[0].item_id == first
    assert found.facets == {"brand": [("Newbrand", 1)]}
    # a folder keeps which columns the network has read
    own.save_pretrained(tmp_path / "own")
    again = Rankloom.from_pretrained(tmp_path / "own")
    assert again.read_columns == own.read_columns
    assert again.recommend(own.users[0], k=20, seen="allow").items == before.items
