"""The log as training reads it: interactions in order, merged, split by time before anything is fitted."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rankloom.config import DataConfig
from rankloom.data import schema
from rankloom.data.sequences import TEST, TRAIN, VALID, Sequences, _leave_one_out, load_sequences
from rankloom.data.shop import Shop, write_shop
from rankloom.errors import RankloomError

START = datetime(2026, 3, 1, tzinfo=UTC)
LEAVE_ONE_OUT = DataConfig(split="leave-one-out")


def shop(
    folder: Path,
    events: Sequence[tuple[Any, ...]],
    *,
    columns: str = "user_id item_id minutes event",
    clock: str = "time",
) -> Shop:
    """A shop of items i0..i9 (i0 lasts 10 seconds, i1 has no duration) and the given events, times in minutes."""
    items = pl.DataFrame(
        {
            "item_id": [f"i{n}" for n in range(10)],
            "title": [f"item {n}" for n in range(10)],
            "duration_s": [10.0, None, 0.0, *[20.0] * 7],
        }
    )
    frame = pl.DataFrame(list(events), schema=columns.split(), orient="row", strict=False)
    times = [START + timedelta(minutes=float(value)) for value in frame["minutes"]]
    frame = frame.drop("minutes").with_columns(pl.Series("timestamp", times, dtype=schema.TIME))
    write_shop(folder / "shop", items=items, events=frame, origin={"clock": clock})
    return Shop.open(folder / "shop")


def rows(own: Sequences, user: str) -> slice:
    place = own.user_ids.tolist().index(user)
    return slice(int(own.offsets[place]), int(own.offsets[place + 1]))


def kinds(own: Sequences) -> list[str]:
    return [schema.EVENT_KINDS[kind] for kind in own.kind]


def test_interactions_come_user_by_user_oldest_first(tmp_path: Path) -> None:
    events = [("b", "i3", 5, "click"), ("a", "i1", 9, "click"), ("b", "i2", 1, "purchase"), ("a", "i4", 3, "view")]
    own = load_sequences(shop(tmp_path, events), LEAVE_ONE_OUT)
    assert own.n_users == 2
    assert own.n_interactions == 4
    assert own.item[rows(own, "a")].tolist() == [4, 1]
    assert own.item[rows(own, "b")].tolist() == [2, 3]
    assert kinds(own)[rows(own, "b")] == ["purchase", "click"]
    assert own.user.tolist() == [0, 0, 1, 1]
    assert own.n_items == 10
    assert own.has_clock
    assert (np.diff(own.timestamp[rows(own, "b")]) / 60e6).tolist() == [4.0]
    assert own.history(1, int(own.offsets[1]) + 1).tolist() == [int(own.offsets[1])]


def test_events_of_unknown_items_and_unwanted_kinds_are_left_out(tmp_path: Path) -> None:
    events = [
        ("a", "i1", 0, "click"), ("a", "gone", 1, "click"), ("a", "i2", 2, "impression"), ("a", "i3", 3, "search"),
        ("a", "i4", 4, "dislike"), ("a", "i5", 5, "like"),
    ]  # fmt: skip
    own = load_sequences(shop(tmp_path, events), LEAVE_ONE_OUT)
    assert own.item.tolist() == [1, 4, 5]
    # a dislike is seen and never predicted
    assert own.target.tolist() == [True, False, True]


def test_events_on_one_item_in_succession_are_one_interaction(tmp_path: Path) -> None:
    columns = "user_id item_id minutes event watch_s surface position query"
    events = [
        ("a", "i0", 0, "click", 2.0, "search", 4, None), ("a", "i0", 1, "like", 7.0, "feed", 9, "tea"),
        ("a", "i0", 30, "view", 5.0, "feed", 9, "oil"),
        ("a", "i3", 31, "click", None, "feed", None, None),
        ("a", "i0", 32, "click", None, "ads", 0, None),
        ("b", "i0", 33, "click", None, None, None, None),
    ]  # fmt: skip
    own = load_sequences(shop(tmp_path, events, columns=columns), LEAVE_ONE_OUT)
    assert own.item.tolist() == [0, 3, 0, 0]
    assert kinds(own) == ["like", "click", "click", "click"]
    # the first time, surface and position, the first query there is, the longest watch
    assert own.timestamp[0] == int(START.timestamp() * 1e6)
    assert [schema.SURFACES[code] for code in own.surface] == ["search", "feed", "ads", "feed"]
    assert own.position.tolist() == [4, -1, 0, -1]
    assert [own.queries[code] if code >= 0 else None for code in own.query] == ["tea", None, None, None]
    assert own.watch_ratio[0] == pytest.approx(0.7)
    assert np.isnan(own.watch_ratio[1:]).all()


@pytest.mark.parametrize(("minutes", "count"), [(60, 1), (60.1, 2)])
def test_after_an_hour_the_same_item_is_a_new_interaction(tmp_path: Path, minutes: float, count: int) -> None:
    events = [("a", "i0", 0, "click"), ("a", "i0", minutes, "click"), ("b", "i1", 0, "click")]
    assert load_sequences(shop(tmp_path, events), LEAVE_ONE_OUT).n_interactions == count + 1


def test_a_dislike_makes_its_interaction_no_target(tmp_path: Path) -> None:
    events = [("a", "i0", 0, "click"), ("a", "i0", 1, "dislike"), ("a", "i1", 2, "click")]
    own = load_sequences(shop(tmp_path, events), LEAVE_ONE_OUT)
    assert kinds(own) == ["dislike", "click"]
    assert own.target.tolist() == [False, True]


def test_a_watch_ratio_needs_a_duration_and_short_views_may_be_no_targets(tmp_path: Path) -> None:
    columns = "user_id item_id minutes event watch_s"
    events = [
        ("a", "i0", 0, "view", 2.0), ("a", "i1", 1, "view", 2.0), ("a", "i2", 2, "view", 2.0),
        ("a", "i3", 3, "view", 10.0), ("a", "i4", 4, "click", 1.0), ("a", "i5", 5, "view", None),
    ]  # fmt: skip
    own = load_sequences(shop(tmp_path, events, columns=columns), LEAVE_ONE_OUT)
    np.testing.assert_allclose(own.watch_ratio, [0.2, np.nan, np.nan, 0.5, 0.05, np.nan], rtol=1e-6)
    assert own.target.all()
    strict = DataConfig(split="leave-one-out", min_watch_ratio=0.5)
    own = load_sequences(Shop.open(tmp_path / "shop"), strict)
    # a view that is too short; an unknown ratio and other kinds stay
    assert own.target.tolist() == [False, True, True, True, True, True]


def test_events_of_one_moment_stay_in_the_order_of_the_log(tmp_path: Path) -> None:
    order = np.random.default_rng(0).permutation(10).tolist()
    own = load_sequences(shop(tmp_path, [("a", f"i{n}", 0, "click") for n in order]), LEAVE_ONE_OUT)
    assert own.item.tolist() == order


def test_lists_without_a_clock_keep_their_order_and_their_repeats(tmp_path: Path) -> None:
    events = [("a", "i0", 0, "click"), ("a", "i0", 0, "click"), ("a", "i2", 0, "click"), ("a", "i1", 0, "click")]
    ordered = shop(tmp_path, events, clock="order")
    own = load_sequences(ordered, LEAVE_ONE_OUT)
    assert not own.has_clock
    assert own.item.tolist() == [0, 0, 2, 1]
    with pytest.raises(RankloomError, match="cannot be split by time") as error:
        load_sequences(ordered, DataConfig(split="time"))
    assert error.value.code == "split-needs-clock"


def test_leave_one_out_tests_on_the_last_target_and_validates_on_the_one_before(tmp_path: Path) -> None:
    events = [("a", f"i{n}", n, "click") for n in range(5)]
    events += [("a", "i6", 5, "dislike"), ("b", "i1", 0, "click"), ("b", "i2", 1, "click")]
    own = load_sequences(shop(tmp_path, events), LEAVE_ONE_OUT)
    assert own.stage[rows(own, "a")].tolist() == [TRAIN, TRAIN, TRAIN, VALID, TEST, TEST]
    # two targets are too few to hold any back
    assert own.stage[rows(own, "b")].tolist() == [TRAIN, TRAIN]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(st.booleans(), min_size=1, max_size=8), min_size=1, max_size=6))
def test_leave_one_out_equals_a_loop(users: list[list[bool]]) -> None:
    target = np.array([own for user in users for own in user])
    owner = np.repeat(np.arange(len(users)), [len(user) for user in users])
    stage = _leave_one_out(owner, target, len(users))
    expected = []
    for user in users:
        places = [place for place, own in enumerate(user) if own]
        held = places[-2:] if len(places) >= 3 else []
        expected += [sum(place >= own for own in held) for place in range(len(user))]
    assert stage.tolist() == expected


def test_time_splits_everybody_at_the_same_moments(tmp_path: Path) -> None:
    events = [(f"u{n % 3}", f"i{n % 10}", 100 * n, "click") for n in range(30)]
    events.append(("u0", "i9", 2950, "dislike"))
    own = load_sequences(shop(tmp_path, events), DataConfig(split="time", valid_share=0.2, test_share=0.1))
    minute = (own.timestamp - int(START.timestamp() * 1e6)) / 60e6
    # the last tenth of the targets is test, the fifth before it validation, wherever the other events lie
    assert own.stage[own.target].tolist() == [
        TEST if m >= 2700 else VALID if m >= 2100 else TRAIN for m in minute[own.target]
    ]
    assert np.bincount(own.stage[own.target]).tolist() == [21, 6, 3]
    assert own.stage[~own.target].tolist() == [TEST]
    assert max(own.timestamp[own.stage == TRAIN]) < min(own.timestamp[own.stage == VALID])
    assert max(own.timestamp[own.stage == VALID]) < min(own.timestamp[own.stage == TEST])


def test_a_log_of_one_moment_cannot_be_split_by_time(tmp_path: Path) -> None:
    events = [(f"u{n}", f"i{n}", 0, "click") for n in range(9)]
    with pytest.raises(RankloomError, match="too few or too equal") as error:
        load_sequences(shop(tmp_path, events), DataConfig(split="time"))
    assert error.value.code == "split-impossible"


@pytest.mark.parametrize(
    "events", [[("a", "gone", 0, "click")], [("a", "i1", 0, "impression")], [("a", "i1", 0, "dislike")]]
)
def test_a_log_without_anything_to_learn_is_refused(tmp_path: Path, events: list[tuple[Any, ...]]) -> None:
    with pytest.raises(RankloomError, match="of a kind to learn from") as error:
        load_sequences(shop(tmp_path, events), LEAVE_ONE_OUT)
    assert error.value.code == "no-targets"


def test_cases_are_the_first_targets_of_each_person_in_a_stage(tmp_path: Path) -> None:
    events = [(f"u{n % 4}", f"i{n % 7}", 10 * n, "click") for n in range(80)]
    own = load_sequences(shop(tmp_path, events), DataConfig(split="time", valid_share=0.2, test_share=0.3))
    everything = own.cases(TEST)
    assert everything.row.tolist() == np.flatnonzero((own.stage == TEST) & own.target).tolist()
    assert everything.target.tolist() == own.item[everything.row].tolist()
    assert everything.user.tolist() == own.user[everything.row].tolist()
    assert len(everything) == len(everything.row) == 24
    few = own.cases(TEST, max_per_user=2)
    for user in range(4):
        assert few.row[few.user == user].tolist() == everything.row[everything.user == user][:2].tolist()
    some = own.cases(TEST, max_per_user=2, max_users=3, seed=1)
    assert len(set(some.user.tolist())) == 3
    assert set(some.row.tolist()) <= set(few.row.tolist())
    assert some.row.tolist() == own.cases(TEST, max_per_user=2, max_users=3, seed=1).row.tolist()
    assert own.cases(TEST, max_users=4).row.tolist() == everything.row.tolist()
    chosen = {tuple(own.cases(TEST, max_users=1, seed=seed).user.tolist()) for seed in range(12)}
    assert len(chosen) > 1


def test_a_search_logged_by_itself_belongs_to_what_is_taken_in_the_half_hour_after(tmp_path: Path) -> None:
    columns = "user_id item_id minutes event query surface"
    events = [
        ("a", "i1", 0, "click", None, None),
        ("a", None, 1, "search", "tea", None),
        ("a", "i2", 2, "click", None, None),
        ("a", "i3", 3, "click", None, "feed"),
        ("a", "i4", 4, "click", "pot", None),
        ("a", "i5", 31, "click", None, "search"),
        ("a", "i6", 32, "click", None, None),
        ("b", "i7", 5, "click", None, None),
        ("b", None, 6, "search", None, None),
        ("b", "i8", 7, "click", None, None),
    ]
    own = load_sequences(shop(tmp_path, events, columns=columns), LEAVE_ONE_OUT)
    asked = [None if n < 0 else own.queries[n] for n in own.query[rows(own, "a")]]
    assert own.item[rows(own, "a")].tolist() == [1, 2, 3, 4, 5, 6]
    assert asked == [None, "tea", None, "pot", "tea", None]
    surfaces = [schema.SURFACES[n] for n in own.surface[rows(own, "a")]]
    assert surfaces == ["feed", "search", "feed", "feed", "search", "feed"]
    assert own.item[rows(own, "b")].tolist() == [7, 8]
    assert own.query[rows(own, "b")].tolist() == [-1, -1]


def test_cases_may_be_limited_to_some_interactions(tmp_path: Path) -> None:
    events = [("a", f"i{n}", n, "click") for n in range(6)] + [("b", f"i{n}", n, "click") for n in range(4)]
    own = load_sequences(shop(tmp_path, events), LEAVE_ONE_OUT)
    among = own.item == 3
    assert own.cases(TEST, among=among).target.tolist() == [3]
    assert len(own.cases(VALID, among=among)) == 0
