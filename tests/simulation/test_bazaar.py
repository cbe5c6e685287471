"""The bazaar against the public KuaiRand figures (reference B4), and its promises."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest

from rankloom.data.shop import Shop
from rankloom.files import sha256_file
from rankloom.simulation.bazaar import generate_bazaar
from rankloom.simulation.calibration import calibration, render
from rankloom.simulation.users import UserModel
from rankloom.simulation.world import World


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Shop:
    return generate_bazaar(tmp_path_factory.mktemp("b") / "shop", seed=0, scale=0.25, quiet=True)


def test_marginals_are_those_of_kuairand(shop: Shop) -> None:
    rows = calibration(shop)
    print(render(rows))
    assert len(rows) >= 12
    assert [row.name for row in rows if not row.ok] == []


def test_one_seed_is_one_world(tmp_path: Path) -> None:
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        generate_bazaar(tmp_path / name, seed=seed, scale=0.03, quiet=True)
    hashes = [sha256_file(tmp_path / name / "events.parquet") for name in "abc"]
    assert hashes[0] == hashes[1] != hashes[2]


def test_it_has_what_a_marketplace_has(shop: Shop) -> None:
    items, events = shop.items(), pl.read_parquet(shop.path / "events.parquet")
    assert items["simulated"].all()
    assert events["simulated"].all()
    chinese = items["title"].str.contains(r"\p{Han}").mean()
    assert 0.3 < chinese < 0.6  # type: ignore[operator]
    assert items["title"].str.contains("best seller|爆款").sum() > 0.02 * items.height
    kinds = set(events["event"].unique())
    assert kinds >= {"impression", "click", "like", "dislike", "add_to_cart", "purchase", "search", "comment"}
    assert events.filter(pl.col("event") == "search")["query"].null_count() == 0
    days = events.group_by("user_id").agg(pl.col("timestamp").dt.date().n_unique().alias("days"))
    assert (days["days"] >= 2).mean() > 0.5  # type: ignore[operator]
    impressions = events.filter(pl.col("event") == "impression")
    assert impressions["propensity"].is_between(0, 1, closed="right").all()
    early = impressions.join(items.select("item_id", "created_at"), on="item_id").filter(
        pl.col("timestamp") < pl.col("created_at").dt.truncate("1d")
    )
    assert early.height == 0
    campaigns = shop.campaigns()
    assert campaigns is not None
    assert (campaigns["budget_micros"] > 0).all()


def test_taste_drives_behaviour() -> None:
    world = World.from_seed(0, 0.1)
    people = UserModel(world, np.random.default_rng(0))
    rng = np.random.default_rng(1)
    user = np.repeat(np.arange(world.n_users), 40)
    item = rng.integers(0, world.n_items, len(user))
    feedback = people.respond(user, item)
    want = world.affinity(user, item)
    video = world.is_video[item]
    for kind in (video, ~video):
        top = want[kind] > np.quantile(want[kind], 0.9)
        low = want[kind] < np.quantile(want[kind], 0.5)
        assert feedback.click[kind][top].mean() > 1.3 * feedback.click[kind][low].mean()
    assert not feedback.purchase[video].any()
    assert (feedback.purchase <= feedback.add_to_cart).all()
    assert (feedback.watch_s[~video] == 0).all()


def test_a_policy_that_knows_tastes_satisfies_more_than_popularity_and_that_more_than_chance() -> None:
    world = World.from_seed(0, 0.1)
    rng = np.random.default_rng(0)
    user = np.arange(world.n_users)
    quality = np.argsort(-world.quality)[:20]
    everything = world.affinity(np.repeat(user, world.n_items), np.tile(np.arange(world.n_items), len(user))).reshape(
        len(user), -1
    )
    lists = {
        "oracle": np.argsort(-everything, axis=1)[:, :6],
        "quality": np.tile(quality[:6], (len(user), 1)),
        "random": rng.integers(0, world.n_items, (len(user), 6)),
    }
    mean = {}
    for name, chosen in lists.items():
        people = UserModel(world, np.random.default_rng(5))
        mean[name] = people.respond(np.repeat(user, 6), chosen.reshape(-1)).satisfaction.mean()
    assert mean["oracle"] > mean["quality"] + 0.1 > mean["random"] + 0.1
