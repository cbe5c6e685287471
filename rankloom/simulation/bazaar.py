"""The bazaar: sixty simulated days under a plain logging policy, written as a shop. The embedded default.

The policy fills each list slot from one of four sources with fixed chances: what is popular and fresh overall (35%), in the
cluster the person clicked last (30%), in a cluster they clicked before (20%), or uniformly at random (15%). The logged
`propensity` is the chance that a slot of this policy shows this item to this person.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import numpy as np
import polars as pl

from rankloom.data.shop import Shop, write_shop
from rankloom.progress import Progress
from rankloom.simulation import titles
from rankloom.simulation.users import Feedback, UserModel
from rankloom.simulation.world import N_DAYS, N_STYLES, START, VERSION, Floats, Ints, World

SLATE: Final = 6
SOURCES: Final = (0.35, 0.30, 0.20, 0.15)
_FADE: Final = 1.3  # power-law age exponent of exposure, KuaiRand


def generate_bazaar(
    out: str | Path, *, seed: int = 0, scale: float = 1.0, quiet: bool = False, overwrite: bool = False
) -> Shop:
    """Simulates the marketplace and writes it as a shop folder.

    Args:
        scale: 1 is 6,400 items and 4,000 people over 60 days; tests use less.
    """
    world = World.from_seed(seed, scale)
    events = _Log(world, seed, quiet).run()
    origin = {
        "importer": "bazaar", "clock": "time", "simulated": True, "world": {"seed": seed, "scale": scale, "version": VERSION},
        "notices": ["every row is simulated; see docs/bazaar.md"],
    }  # fmt: skip
    return write_shop(
        out,
        items=world.items,
        events=events,
        users=world.users,
        campaigns=_campaigns(world, seed),
        origin=origin,
        overwrite=overwrite,
    )


class _Log:
    """The simulation's running state: popularity, what people clicked, their mood, and the rows so far."""

    def __init__(self, world: World, seed: int, quiet: bool) -> None:
        self.world = world
        self.rng = np.random.default_rng((seed, 3))
        self.people = UserModel(world, np.random.default_rng((seed, 4)))
        self.quiet = quiet
        self.clicks: Floats = np.zeros(world.n_items)
        self.last: Ints = np.full(world.n_users, -1, dtype=np.int64)
        self.before: Ints = np.full(world.n_users, -1, dtype=np.int64)
        self.mood: Floats = np.zeros(world.n_users)
        self.rows: list[dict[str, Any]] = []
        self.n_requests = 0
        cluster = world.cluster
        self.by_cluster = np.argsort(cluster, kind="stable")
        self.n_clusters = len(titles.CATEGORIES) * N_STYLES

    def run(self) -> pl.DataFrame:
        with Progress("simulating days", N_DAYS, unit="days", quiet=self.quiet) as progress:
            for day in range(N_DAYS):
                self._day(day)
                progress.advance()
        frame = pl.concat([pl.DataFrame(rows) for rows in self.rows], how="diagonal")
        start = int(START.timestamp() * 1e6)
        items, users = self.world.items["item_id"], self.world.users["user_id"]
        frame = frame.select(
            users.gather(frame["user"].to_list()).alias("user_id"),
            pl.when(pl.col("item") >= 0).then(items.gather(frame["item"].clip(0).to_list())).alias("item_id"),
            (pl.col("second") * 1e6).cast(pl.Int64).add(start).cast(pl.Datetime("us")).dt.replace_time_zone("UTC").alias("timestamp"),
            "event", "value", "watch_s", "surface", "query",
            (pl.lit("r") + pl.col("request").cast(pl.String)).alias("request_id"),
            pl.col("position").cast(pl.Int32), "propensity", pl.lit(True).alias("simulated"),
        )  # fmt: skip
        return frame.sort("timestamp", "user_id", "request_id", "position", maintain_order=True)

    def _day(self, day: int) -> None:
        everyone = np.arange(self.world.n_users)
        user = everyone[self.people.returns(everyone, self.mood)]
        if not len(user):
            return
        self.people.start_session(user)
        self._weights(day)
        # evenings are busier
        hour = np.clip(self.rng.normal(19, 4, len(user)) % 24, 0, 23.9)
        second = (day + hour / 24) * 86_400
        searching = self.rng.random(len(user)) < 0.10
        if searching.any():
            self._search(user[searching], second[searching])
            second[searching] += 120
        for _ in range(5):
            feedback, spent = self._slate(user, second)
            mean = feedback.satisfaction.reshape(-1, SLATE).mean(1)
            self.mood[user] = 0.9 * self.mood[user] + 0.1 * mean
            stays = self.people.stays(mean) & (self.rng.random(len(user)) < 0.62)
            second = (second + spent)[stays]
            user = user[stays]
            if not len(user):
                break

    def _weights(self, day: int) -> None:
        """Today's popularity-and-freshness weights, as cumulative sums overall and by cluster."""
        world = self.world
        age = np.maximum(day - world.created_day, 0) + 1
        fresh = np.where(world.is_video, age**-_FADE, age**-0.3)
        alive = world.created_day <= day
        weight = np.where(alive, fresh * (self.clicks + 1.0) ** 0.7, 0.0)
        self.alive = np.flatnonzero(alive)
        self.weight = weight / weight.sum()
        self.global_edges = np.cumsum(self.weight)
        ordered = self.weight[self.by_cluster] + np.where(alive[self.by_cluster], 1e-12, 0.0)
        self.cluster_edges = np.cumsum(ordered)
        counts = np.bincount(world.cluster, minlength=self.n_clusters)
        self.cluster_stop = np.cumsum(counts)
        self.cluster_start = self.cluster_stop - counts
        padded = np.r_[0.0, self.cluster_edges]
        self.cluster_low, self.cluster_high = padded[self.cluster_start], padded[self.cluster_stop]

    def _from_cluster(self, cluster: Ints) -> Ints:
        low, high = self.cluster_low[cluster], self.cluster_high[cluster]
        draw = low + self.rng.random(len(cluster)) * (high - low)
        place = np.searchsorted(self.cluster_edges, draw, side="right").clip(0, len(self.by_cluster) - 1)
        chosen: Ints = self.by_cluster[place]
        return chosen

    def _slate(self, user: Ints, second: Floats) -> tuple[Feedback, Floats]:
        n = len(user) * SLATE
        who = np.repeat(user, SLATE)
        source = self.rng.choice(4, n, p=SOURCES)
        last, before = self.last[who], self.before[who]
        source = np.where(((source == 1) & (last < 0)) | ((source == 2) & (before < 0)), 0, source)
        item = np.searchsorted(self.global_edges, self.rng.random(n), side="right").clip(0, self.world.n_items - 1)
        item = np.where(source == 1, self._from_cluster(np.maximum(last, 0)), item)
        item = np.where(source == 2, self._from_cluster(np.maximum(before, 0)), item)
        item = np.where(source == 3, self.rng.choice(self.alive, n), item)
        # no item twice in one list: a repeat is redrawn at random
        grid = item.reshape(-1, SLATE)
        order = np.argsort(grid, axis=1, kind="stable")
        ordered = np.take_along_axis(grid, order, 1)
        again = np.zeros_like(grid, dtype=bool)
        np.put_along_axis(again, order, np.c_[np.zeros(len(grid), bool), ordered[:, 1:] == ordered[:, :-1]], 1)
        item = np.where(again.reshape(-1), self.rng.choice(self.alive, n), item)
        feedback = self.people.respond(who, item)
        length = np.maximum(feedback.watch_s, 2.0).reshape(-1, SLATE)
        offset = np.cumsum(length, axis=1) - length
        when = (second[:, None] + offset).reshape(-1)
        self._write(
            who, item, when, feedback, surface="feed", propensity=self._propensity(item, last, before), query=None
        )
        self._remember(who, item, feedback)
        return feedback, length.sum(1) + 10

    def _propensity(self, item: Ints, last: Ints, before: Ints) -> Floats:
        """The chance of the item in one slot of this list (the redraw of repeats aside)."""
        cluster = self.world.cluster[item]
        inside = self.weight[item] / np.maximum(self.cluster_high[cluster] - self.cluster_low[cluster], 1e-12)
        share_global = SOURCES[0] + np.where(last < 0, SOURCES[1], 0) + np.where(before < 0, SOURCES[2], 0)
        out: Floats = (
            share_global * self.weight[item]
            + np.where(last == cluster, SOURCES[1] * inside, 0)
            + np.where(before == cluster, SOURCES[2] * inside, 0)
            + SOURCES[3] / len(self.alive)
        )
        return out

    def _search(self, user: Ints, second: Floats) -> None:
        world, rng = self.world, self.rng
        cluster = self.people.intent[user]
        mark = world.mark_taste[user].argmax(1)
        chinese = rng.random(len(user)) < world.reads_chinese[user]
        marked = rng.random(len(user)) < 0.4
        queries = [
            titles.query_text(int(c) // N_STYLES, int(c) % N_STYLES, int(m), chinese=bool(z), with_mark=bool(w))
            for c, m, z, w in zip(cluster, mark, chinese, marked, strict=True)
        ]
        self.rows.append(
            {"user": user, "item": np.full(len(user), -1), "second": second - 1, "event": ["search"] * len(user), "surface": ["search"] * len(user), "query": queries,
             "request": self.n_requests + np.arange(len(user)), "position": np.full(len(user), -1)}
        )  # fmt: skip
        who = np.repeat(user, SLATE)
        item = self._from_cluster(np.repeat(cluster, SLATE))
        feedback = self.people.respond(who, item)
        when = (second[:, None] + np.arange(SLATE) * 3.0).reshape(-1)
        share = self.weight[item] / np.maximum(
            self.cluster_high[world.cluster[item]] - self.cluster_low[world.cluster[item]], 1e-12
        )
        self._write(
            who,
            item,
            when,
            feedback,
            surface="search",
            propensity=share,
            query=np.repeat(np.asarray(queries, dtype=object), SLATE),
        )
        self._remember(who, item, feedback)

    def _remember(self, who: Ints, item: Ints, feedback: Feedback) -> None:
        np.add.at(self.clicks, item[feedback.click], 1.0)
        clicked, cluster = who[feedback.click], self.world.cluster[item[feedback.click]]
        new = cluster != self.last[clicked]
        self.before[clicked[new]] = self.last[clicked[new]]
        self.last[clicked] = cluster

    def _write(
        self, who: Ints, item: Ints, when: Floats, f: Feedback, *, surface: str, propensity: Floats, query: Any
    ) -> None:
        n_lists = len(who) // SLATE
        request = np.repeat(self.n_requests + np.arange(n_lists), SLATE)
        self.n_requests += n_lists
        position = np.tile(np.arange(SLATE), n_lists)
        video = self.world.is_video[item]
        watch = np.where(video, np.round(f.watch_s, 2), np.nan)
        kinds = (
            ("impression", np.ones(len(who), dtype=bool), 0.0), ("click", f.click, 0.5), ("like", f.like, 1.0), ("follow", f.follow, 1.2),
            ("comment", f.comment, 1.4), ("share", f.share, 1.5), ("dislike", f.dislike, 1.0), ("add_to_cart", f.add_to_cart, 1.3), ("purchase", f.purchase, 1.6),
        )  # fmt: skip
        for kind, chosen, later in kinds:
            if not chosen.any():
                continue
            count = int(chosen.sum())
            row: dict[str, Any] = {
                "user": who[chosen], "item": item[chosen], "second": when[chosen] + later, "event": [kind] * count, "surface": [surface] * count,
                "request": request[chosen], "position": position[chosen],
            }  # fmt: skip
            if query is not None:
                row["query"] = query[chosen].tolist()
            if kind == "impression":
                row["propensity"] = propensity[chosen]
            if kind in ("impression", "click"):
                row["watch_s"] = pl.Series(watch[chosen]).fill_nan(None)
            if kind == "purchase":
                row["value"] = self.world.price[item[chosen]]
            self.rows.append(row)


def _campaigns(world: World, seed: int) -> pl.DataFrame:
    """Advertisers: some goods with a budget, a cost-per-order target and a flight of days."""
    rng = np.random.default_rng((seed, 5))
    goods = np.flatnonzero(~world.is_video)
    chosen = np.sort(rng.choice(goods, min(48, len(goods)), replace=False))
    start = rng.integers(0, N_DAYS - 14, len(chosen))
    base = int(START.timestamp() * 1e6)
    day = 86_400_000_000
    price = world.price[chosen]

    def when(days: Ints) -> pl.Series:
        return pl.Series(base + days * day).cast(pl.Datetime("us")).dt.replace_time_zone("UTC")

    return pl.DataFrame(
        {
            "campaign_id": [f"c{n + 1}" for n in range(len(chosen))],
            "item_id": world.items["item_id"].gather(chosen.tolist()),
            "budget_micros": (price * rng.uniform(5, 40, len(chosen)) * 1e6).astype(np.int64),
            "target_cpa_micros": (price * rng.uniform(0.1, 0.3, len(chosen)) * 1e6).astype(np.int64),
            "start": when(start),
            "end": when(start + 14),
            "creative": world.items["title"].gather(chosen.tolist()),
            "simulated": [True] * len(chosen),
        }
    )
