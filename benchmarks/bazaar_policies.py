"""Does the bazaar reward knowing people, can a model learn from its log, and where does the log differ from the public one?

Three parts on one simulated log. Everything is simulated.

* policies served live to the same people: one that knows their tastes, the logging policy and popularity, chance, in order
  of satisfaction (gated). Videos and goods count half each, so that no policy gains by what it shows more of.
* recall@10 of simple models on the time split (gated: personal signals at least twice popularity).
* figures of the log beside KuaiRand that `benchmarks/bazaar_calibration.py` does not gate: random exposure, duration bias,
  fading, tails, re-exposure. They gate nothing here either; `ok` says which are off.

    python benchmarks/bazaar_policies.py [--quick] [--seeds N ...] [--json OUT]
"""

from __future__ import annotations

import sys
import tempfile
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from _common import Benchmark
from numpy.typing import NDArray

from rankloom.config import DataConfig
from rankloom.data.sequences import TEST, TRAIN, load_sequences
from rankloom.data.shop import Shop
from rankloom.evaluation.floors import ItemKNN, Markov, Popularity
from rankloom.simulation import generate_bazaar
from rankloom.simulation.users import UserModel
from rankloom.simulation.world import N_DAYS, World

Ints = NDArray[np.int64]
Row = dict[str, Any]
LIST = 6
LONG_VIEW_S = 18  # KuaiRand: a long view is 18 seconds or the whole video


def main() -> int:
    bench = Benchmark.from_args(
        "bazaar_policies", __doc__, sources=("rankloom/simulation", "rankloom/data", "benchmarks/bazaar_policies.py")
    )
    scale = 0.25 if bench.quick else 1.0
    for seed in bench.seeds:
        rows = bench.cell({"seed": seed, "scale": scale}, partial(measure, seed, scale))
        for row in rows:
            bench.row(**row, seed=seed)
        value = {(row["system"], row["metric"], row.get("masked")): row["value"] for row in rows}
        worth = {name: value[name, "satisfaction", None] for name in ("oracle", "logging", "popularity", "random")}
        for middle in ("logging", "popularity"):
            order = [worth["oracle"], worth[middle], worth["random"]]
            bench.check(
                f"seed {seed}: satisfaction of oracle > {middle} > random",
                [round(each, 3) for each in order],
                target="in this order",
                ok=all(better > worse for better, worse in pairwise(order)),
            )
        floor = max(value["popularity", "recall", False], 1e-9)
        for name in ("markov", "item-knn"):
            ratio = round(value[name, "recall", False] / floor, 2)
            bench.check(f"seed {seed}: recall@10 of {name} over popularity's", ratio, at_least=2)
    return bench.finish()


def measure(seed: int, scale: float) -> list[Row]:
    """All rows of one seed."""
    world = World.from_seed(seed, scale)
    with tempfile.TemporaryDirectory() as folder:
        shop = generate_bazaar(Path(folder) / "shop", seed=seed, scale=scale, quiet=True)
        return policies(shop, world, seed) + learnability(shop) + shape(shop)


def policies(shop: Shop, world: World, seed: int) -> list[Row]:
    """One list a person under each policy; the logging policy's lists are those of its last two weeks."""
    rng = np.random.default_rng((seed, 11))
    events = pl.read_parquet(shop.path / "events.parquet").filter(pl.col("surface") == "feed")
    item_row = pl.DataFrame({"item_id": world.items["item_id"]}).with_row_index("item")
    user_row = pl.DataFrame({"user_id": world.users["user_id"]}).with_row_index("user")
    rows_of = events.join(item_row, on="item_id").join(user_row, on="user_id")
    clicked = rows_of.filter(pl.col("event") == "click")["item"].to_numpy()
    clicks = np.bincount(clicked, minlength=world.n_items)
    late = rows_of.filter(
        (pl.col("event") == "impression") & (pl.col("timestamp") >= pl.col("timestamp").max() - pl.duration(days=14))
    )
    everyone = np.arange(world.n_users)
    who = np.repeat(everyone, 2 * LIST)
    # as many videos as goods in every list that is made here
    halves = [np.flatnonzero(world.is_video), np.flatnonzero(~world.is_video)]

    def both(pick: Any) -> Ints:
        lists: Ints = np.concatenate([pick(half) for half in halves], axis=1).reshape(-1)
        return lists

    def wanted(half: Ints) -> Ints:
        picks = np.empty((world.n_users, LIST), dtype=np.int64)
        for begin in range(0, world.n_users, 250):
            block = everyone[begin : begin + 250]
            want = world.affinity(np.repeat(block, len(half)), np.tile(half, len(block))).reshape(len(block), -1)
            picks[block] = half[np.argpartition(-want, LIST, axis=1)[:, :LIST]]
        return picks

    def popular(half: Ints) -> Ints:
        top = half[np.argsort(-clicks[half], kind="stable")[:50]]
        return rng.choice(top, (world.n_users, LIST))

    def uniform(half: Ints) -> Ints:
        return rng.choice(half, (world.n_users, LIST))

    served: dict[str, tuple[Ints, Ints]] = {
        "oracle": (who, both(wanted)),
        "logging": (late["user"].to_numpy().astype(np.int64), late["item"].to_numpy().astype(np.int64)),
        "popularity": (who, both(popular)),
        "random": (who, both(uniform)),
    }
    rows: list[Row] = []
    long_view: dict[str, float] = {}
    for name, (user, item) in served.items():
        people = UserModel(world, np.random.default_rng((seed, 12)))
        people.start_session(everyone)
        feedback = people.respond(user, item)
        video = world.is_video[item]
        watch, duration = feedback.watch_s[video], world.duration_s[item][video]
        long_view[name] = float(((watch >= LONG_VIEW_S) | (watch >= duration)).mean())
        satisfaction = (feedback.satisfaction[video].mean() + feedback.satisfaction[~video].mean()) / 2
        for metric, value in (
            ("satisfaction", float(satisfaction)),
            ("video long view rate", long_view[name]),
            ("goods click rate", float(feedback.click[~video].mean())),
        ):
            rows.append({"system": name, "variant": "served live", "metric": metric, "value": value, "n": len(user)})
    satisfaction_of = {row["system"]: row["value"] for row in rows if row["metric"] == "satisfaction"}
    lead = satisfaction_of["logging"] - satisfaction_of["popularity"]
    ratio = long_view["random"] / long_view["logging"]
    rows.append(_beside("satisfaction, logging policy minus popularity", lead))
    return [*rows, _beside("long view rate, random over logging policy", ratio, 0.26, 0.3, "KuaiRand, random exposure")]


def learnability(shop: Shop) -> list[Row]:
    """Recall@10 of the floors, how many targets are repeats, and how many the training period has never seen."""
    sequences = load_sequences(shop, DataConfig())
    cases = sequences.cases(TEST, max_per_user=5, max_users=1500)
    rows: list[Row] = []
    for system in (Popularity(), Markov(), ItemKNN()):
        system.fit(sequences, None, 0)
        for masked in (False, True):
            hit = (system.rank(sequences, cases, 10, mask_seen=masked) == cases.target[:, None]).any(1)
            rows.append(
                {
                    "system": system.name, "variant": "time split", "metric": "recall", "k": 10, "masked": masked,
                    "value": float(hit.mean()), "n": len(cases),
                }
            )  # fmt: skip
    targets = np.flatnonzero(sequences.target)
    pair = sequences.user[targets].astype(np.int64) * sequences.n_items + sequences.item[targets]
    _, first = np.unique(pair, return_index=True)
    repeat = np.ones(len(targets), dtype=bool)
    repeat[first] = False
    video = shop.items()["duration_s"].is_not_null().to_numpy()[sequences.item[targets]]
    trained = np.bincount(sequences.item[(sequences.stage == TRAIN) & sequences.target], minlength=sequences.n_items)
    return [
        *rows,
        _beside("targets", float(len(targets))),
        _beside("repeats among goods targets", float(repeat[~video].mean())),
        _beside("repeats among video targets", float(repeat[video].mean())),
        _beside("test targets never seen in training", float((trained[cases.target] == 0).mean())),
    ]


def shape(shop: Shop) -> list[Row]:
    """Figures of the log that the calibration table does not hold."""
    items = shop.items().select("item_id", "duration_s", "created_at")
    events = pl.read_parquet(shop.path / "events.parquet").filter(pl.col("surface") == "feed")
    shown = events.filter(pl.col("event") == "impression").join(items, on="item_id")
    videos = shown.filter(pl.col("duration_s").is_not_null())
    watch, duration = videos["watch_s"].to_numpy(), videos["duration_s"].to_numpy()
    long_view = (watch >= LONG_VIEW_S) | (watch >= duration)
    quintile = np.searchsorted(np.quantile(duration, [0.2, 0.4, 0.6, 0.8]), duration)
    per_video = videos.group_by("item_id").len()["len"].to_numpy()
    per_person = shown.group_by("user_id").len()["len"].to_numpy()
    active_days = shown.select("user_id", pl.col("timestamp").dt.date()).n_unique()
    pairs = videos.select("user_id", "item_id").n_unique()
    goods = shown.height - videos.height
    orders = events.filter(pl.col("event") == "purchase").height
    return [
        *[
            _beside(f"long view rate, duration quintile {n + 1}", float(long_view[quintile == n].mean()), target, 0.25, "KuaiRand")
            for n, target in enumerate((0.30, 0.36, 0.36, 0.36, 0.33))
        ],
        _beside("fade exponent of new videos", _fade(videos), 1.33, 0.2, "KuaiRand, uploads of three days"),
        _beside("impressions per video, p90 over median", float(np.quantile(per_video, 0.9) / np.median(per_video)), 369 / 44, 0.5, "KuaiRand-Pure"),
        _beside("impressions per person, p90 over median", float(np.quantile(per_person, 0.9) / np.median(per_person)), 97 / 31, 0.3, "KuaiRand-Pure"),
        _beside("video impressions that repeat a pair", 1 - pairs / videos.height, 0.0413, 0.5, "KuaiRand"),
        _beside("impressions per person and active day", shown.height / active_days, 381.0, 0.2, "KuaiRand-27K; out of reach by design"),
        _beside("active days of a person, share", active_days / shown["user_id"].n_unique() / N_DAYS),
        _beside("orders per goods impression", orders / goods),
        _beside("impressions", float(shown.height)),
    ]  # fmt: skip


def _fade(videos: pl.DataFrame) -> float:
    """Minus the slope of log impressions on log age, days 1 to 20, of videos uploaded in the first half of the days."""
    start = videos["timestamp"].dt.truncate("1d").min()
    age = (
        videos.filter(pl.col("created_at").is_between(start, pl.lit(start) + pl.duration(days=N_DAYS // 2)))
        .select((pl.col("timestamp") - pl.col("created_at")).dt.total_days() + 1)
        .to_series()
        .to_numpy()
    )
    counts = np.bincount(age, minlength=21)[1:21]
    return float(-np.polyfit(np.log(np.arange(1, 21)), np.log(np.maximum(counts, 1)), 1)[0])


def _beside(
    metric: str, value: float, target: float | None = None, tolerance: float | None = None, source: str = "assumed"
) -> Row:
    """A figure of the log; without a public target it is assumed."""
    row: Row = {"system": "bazaar", "variant": "log", "metric": metric, "value": value, "source": source}
    if target is not None and tolerance is not None:
        row |= {"target": target, "tolerance": tolerance, "ok": abs(value - target) <= tolerance * target}
    return row


if __name__ == "__main__":
    sys.exit(main())
