"""The parts of the search benchmark: the shop with searches in its log, the engines beside the model, ranks as cells."""

from __future__ import annotations

import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray

from rankloom.config import DataConfig
from rankloom.data.schema import EVENTS
from rankloom.data.sequences import TEST, VALID, Sequences, load_sequences
from rankloom.data.shop import Shop
from rankloom.evaluation.rankloom_system import RankloomSystem
from rankloom.evaluation.search.cases import (
    N_FITTING,
    N_PEOPLE,
    SearchCases,
    given_queries,
    log_queries,
    made_cases,
    sampled_people,
)  # fmt: skip
from rankloom.evaluation.search.compare import LONGEST, ranks_of
from rankloom.evaluation.search.dense import Dense, Fusion
from rankloom.evaluation.search.learned import MiniCascade
from rankloom.evaluation.search.lexical import BM25
from rankloom.evaluation.search.own import BEAM, RankloomSearch
from rankloom.evaluation.search.queries import KINDS, QueryMaker
from rankloom.evaluation.search.systems import SearchSystem, Shelf
from rankloom.files import sha256_file, write_json
from rankloom.recommender import Rankloom

FEED_BEAM: Final = 32
QUICK_PEOPLE: Final = 400
HIDDEN_SHARE: Final = 0.05
_QUICK_ASKED: Final = 100
_QUICK: Final = ("training.max_epochs=2", "training.min_steps=40", "text.embedder=hashed")
Ranked = dict[str, Any]


@dataclass(frozen=True)
class SearchData:
    """One data set as the protocol sees it: `cases` and `valid` by kind of query."""

    shop: Shop
    sequences: Sequences
    shelf: Shelf
    cases: dict[str, SearchCases]
    valid: dict[str, SearchCases]


def evaluation_data(source: Path, home: Path, queries: Path | None, *, quick: bool) -> SearchData:
    """Imports the set by the command line and puts the training log's searches into the shop.

    Args:
        source: folder with `items.parquet` and `sequences.parquet`.
        home: where the shop is written.
        queries: somebody's own queries, or None for made ones.
    """
    home.mkdir(parents=True, exist_ok=True)
    if quick:
        source = _sample(source, home / "sample")
    run("import", "sequences", source, "--out", home / "shop", "--yes", "--overwrite")
    shop = Shop.open(home / "shop")
    sequences = load_sequences(shop, DataConfig(split="leave-one-out"))
    items = pl.read_parquet(source / "items.parquet").with_columns(pl.col("item_id").cast(pl.String))
    # the shop keeps one category path an item; a query may come from any
    maker = QueryMaker.of(shop.items().select("item_id").join(items, on="item_id", how="left", maintain_order="left"))
    people = sampled_people(sequences, _QUICK_ASKED if quick else N_PEOPLE)
    if queries is None:
        cases = {kind: made_cases(sequences, TEST, people, maker, kind) for kind in KINDS}
        valid = {kind: made_cases(sequences, VALID, people[:N_FITTING], maker, kind) for kind in KINDS}
        write_log(
            shop, sequences, log_queries(maker, sequences.user_ids[sequences.user].tolist(), sequences.item.tolist())
        )
    else:
        ids = shop.items()["item_id"].to_list()
        given = given_queries(sequences, ids, pl.read_parquet(queries), place=str(queries))
        print(
            f"queries: {len(given.test):,} asked, {len(given.valid):,} tune, {given.training.height:,} train, {given.unmatched:,} meet no event"
        )
        cases, valid = {"given": given.test}, {"given": given.valid}
        own = {(user, item): query for user, item, query in given.training.rows()}
        users = sequences.user_ids[sequences.user].tolist()
        write_log(
            shop,
            sequences,
            [own.get((user, ids[item])) for user, item in zip(users, sequences.item.tolist(), strict=True)],
        )
    return SearchData(shop, sequences, Shelf.of(shop.items(), sequences), cases, valid)


def write_log(shop: Shop, sequences: Sequences, queries: list[str | None]) -> None:
    """The shop's events with `query` and `surface`. TEST events bring no query: what is asked is nowhere in the log."""
    kept = [None if stage == TEST else query for stage, query in zip(sequences.stage.tolist(), queries, strict=True)]
    ids = shop.items()["item_id"]
    made = pl.DataFrame(
        {
            "user_id": pl.Series(sequences.user_ids[sequences.user].astype(object), dtype=pl.String()),
            "item_id": ids.gather(sequences.item.tolist()),
            "timestamp": pl.Series(sequences.timestamp).cast(pl.Datetime("us")).dt.replace_time_zone("UTC"),
            "query": pl.Series(kept, dtype=pl.String()),
        }
    )
    events = pl.read_parquet(shop.path / EVENTS)
    # an order's clock counts places, so person and time name one event
    joined = events.drop("query", "surface", strict=False).join(
        made, on=["user_id", "item_id", "timestamp"], how="left", maintain_order="left"
    )
    surface = pl.when(pl.col("query").is_null()).then(pl.lit("feed")).otherwise(pl.lit("search")).alias("surface")
    joined.with_columns(surface).write_parquet(shop.path / EVENTS, compression="zstd")


def hidden_items(data: SearchData) -> NDArray[np.int64]:
    """Rows of 5% of the items, drawn once."""
    n = data.sequences.n_items
    return np.asarray(sorted(random.Random(5).sample(range(n), max(1, int(n * HIDDEN_SHARE)))), dtype=np.int64)


def shop_of(data: SearchData, home: Path, part: str, seed: int) -> Path:
    """The shop to train on: the whole (``), without some items (`-hidden`), or without searches (`-feed`)."""
    if not part:
        return data.shop.path
    out = home / f"shop{part}"
    out.mkdir(parents=True, exist_ok=True)
    items, events = data.shop.items(), pl.read_parquet(data.shop.path / EVENTS)
    if part == "-hidden":
        gone = items["item_id"].gather(hidden_items(data).tolist()).implode()
        items, events = items.filter(~pl.col("item_id").is_in(gone)), events.filter(~pl.col("item_id").is_in(gone))
        # a shorter list moves the split towards the past, never past a held-out item; who has fewer than three would only
        # train, the last item too
        events = events.filter(pl.len().over("user_id") >= 3)
    else:
        events = events.drop("query", "surface")
    items.write_parquet(out / "items.parquet", compression="zstd")
    events.write_parquet(out / EVENTS, compression="zstd")
    write_json(out / "shop.json", {**data.shop.origin, "rows": {"items": items.height, "events": events.height}})
    return out


def train(shop: Path, model: Path, seed: int, *, quick: bool) -> dict[str, Any]:
    """Trains by the command line; returns its minutes and sizes."""
    began = time.perf_counter()
    options = [word for setting in _QUICK for word in ("--set", setting)] if quick else []
    run(
        "train", shop, "--out", model, "--preset", "tiny" if quick else "small", "--split", "leave-one-out", "--seed", seed,
        "--overwrite", *options,
    )  # fmt: skip
    own = Rankloom.from_pretrained(model)
    return {
        "minutes": (time.perf_counter() - began) / 60, "threads": torch.get_num_threads(),
        "parameters": own.metadata["parameters"], "icr": own.metadata["tokenizer"]["icr"],
    }  # fmt: skip


def run(*words: Any) -> None:
    subprocess.run([Path(sys.executable).with_name("rankloom"), *map(str, words)], check=True)


def model_ranks(
    data: Callable[[], SearchData], model: Path, kind: str, select: bool, quick: bool, beam: int = BEAM
) -> Ranked:
    """The places of the targets in our model's lists."""
    own = data()
    system = RankloomSearch(Rankloom.from_pretrained(model), own.shop, select=select, beam=LONGEST if quick else beam)
    return _ranked(system, own, kind, _seed_of(model))


def feed_ranks(data: Callable[[], SearchData], model: Path) -> list[int]:
    """The places of the asked people's last items in the feed, no query given."""
    own = data()
    sequences = own.sequences
    asked = np.unique(np.concatenate([cases.cases.user for cases in own.cases.values()]))
    cases = sequences.cases(TEST, max_per_user=1)
    kept = np.isin(cases.user, asked)
    cases = type(cases)(cases.user[kept], cases.row[kept], cases.target[kept])
    lists = RankloomSystem(Rankloom.from_pretrained(model), own.shop, beam=FEED_BEAM).rank(
        load_sequences(own.shop, DataConfig(split="leave-one-out")), cases, 10, mask_seen=True
    )
    return [int(place) for place in ranks_of(lists, cases.target)]


def _seed_of(model: Path) -> int:
    return int(model.name.rsplit("-", 1)[1])


def _ranked(system: SearchSystem, data: SearchData, kind: str, seed: int, fitted: float = 0.0) -> Ranked:
    asked = data.cases[kind]
    began = time.perf_counter()
    rank = ranks_of(system.rank(asked, LONGEST), asked.cases.target)
    return {
        "rank": rank.tolist(), "user": asked.cases.user.tolist(), "count": data.shelf.count_I[asked.cases.target].tolist(),
        "seed": seed, "minutes": (time.perf_counter() - began + fitted) / 60, "chosen": _chosen(system),
    }  # fmt: skip


def _chosen(system: SearchSystem) -> str:
    if isinstance(system, BM25):
        return f"k1 {system.k1:g}, b {system.b:g}, popularity {system.popularity:g}"
    return system.variant


class Engines:
    """The baselines of one data set, made when first asked for; the fusion and the cascades stand on BM25 as fitted here."""

    def __init__(self, data: Callable[[], SearchData]) -> None:
        self.data = data
        self._kept: dict[tuple[str, str, str], SearchSystem] = {}

    @cached_property
    def dense(self) -> Dense:
        return Dense()

    def names(self, *, quick: bool) -> Iterator[tuple[str, str, bool]]:
        """System, variant, and whether a seed changes it."""
        for system in ("bm25", "bm25+popularity"):
            for variant in ("default", "tuned"):
                yield system, variant, False
        if not quick:  # loading the encoder alone takes longer than the rest
            yield "minilm", "default", False
            yield "rrf", "tuned bm25 and minilm", False
        yield "mini-cascade", "logistic", False
        yield "mini-cascade", "lightgbm", True

    def ranks(self, kind: str, system: str, variant: str, seed: int) -> Ranked:
        """Fits one engine on VALID cases and ranks the TEST cases."""
        began = time.perf_counter()
        engine = self._fitted(kind, system, variant, seed)
        return _ranked(engine, self.data(), kind, seed, time.perf_counter() - began)

    def _fitted(self, kind: str, system: str, variant: str, seed: int) -> SearchSystem:
        place = (kind, system, variant)
        if place in self._kept and system != "mini-cascade":
            return self._kept[place]
        engine: Any
        if system.startswith("bm25"):
            engine = BM25(popularity=0.5 if system == "bm25+popularity" else 0.0, tuned=variant == "tuned")
        elif system == "minilm":
            engine = self.dense
        elif system == "rrf":
            self._fitted(kind, "minilm", "default", seed)
            engine = Fusion(self._bm25(kind, "tuned", seed), self.dense)
        else:
            # the reference's form stands on the defaults
            first = self._bm25(kind, "default" if variant == "logistic" else "tuned", seed)
            engine = MiniCascade(first, "logistic" if variant == "logistic" else "lightgbm")
        engine.fit(self.data().shelf, self.data().valid[kind], seed)
        self._kept[place] = engine
        return engine  # type: ignore[no-any-return]

    def _bm25(self, kind: str, variant: str, seed: int) -> BM25:
        found = self._fitted(kind, "bm25", variant, seed)
        assert isinstance(found, BM25)
        return found


def file_sum(path: Path) -> str:
    """A short sum of a file: cells of other queries are other cells."""
    return sha256_file(path)[:12]


def _sample(source: Path, out: Path) -> Path:
    """The first people and their items: for a quick look that everything runs."""
    out.mkdir(exist_ok=True)
    sequences = pl.read_parquet(source / "sequences.parquet").head(QUICK_PEOPLE)
    items = pl.read_parquet(source / "items.parquet")
    sequences.write_parquet(out / "sequences.parquet")
    items.filter(pl.col("item_id").is_in(sequences["items"].explode().unique().implode())).write_parquet(
        out / "items.parquet"
    )
    return out
