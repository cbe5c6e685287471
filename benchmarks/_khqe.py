"""The parts of the KHQE benchmark: logs with searches, spaces fitted with some of the losses, what a space and its codes are worth."""

from __future__ import annotations

import functools
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
import polars as pl
from _common import data_folder

from rankloom.config import Config, DataConfig
from rankloom.data.importing import import_data
from rankloom.data.sequences import TEST, Sequences, load_sequences
from rankloom.data.shop import Shop
from rankloom.evaluation.search.cases import SearchCases, log_queries, made_cases, sampled_people
from rankloom.evaluation.search.closeness import Standing, sid_standing, standing
from rankloom.evaluation.search.queries import KINDS, QueryMaker
from rankloom.semantic.alignment import Aligner
from rankloom.semantic.ids import SemanticIds, usage_report
from rankloom.semantic.khqe.mining import shown_after_queries
from rankloom.semantic.khqe.training import Material, gather, train
from rankloom.semantic.quantizers.registry import make_quantizer
from rankloom.semantic.text import item_texts
from rankloom.semantic.tokenizer import Tokenizer, behaviour_pairs
from rankloom.simulation import generate_bazaar

NAMED: Final = {"beauty": "amazon2014_beauty", "toys": "amazon2014_toys", "scientific": "amazon2018_scientific"}
ASKED: Final = 5_000
RQ_OPQ: Final = ("decreasing=true", "balanced_levels=[-1]", "last=opq")
"""OneSearch's codes: three shrinking levels of residual K-means, the last balanced, then two OPQ codes."""
Figures = dict[str, Any]


@dataclass(frozen=True, eq=False)
class World:
    """A catalogue, a log with searches, and the questions of its test period by kind of query.

    Attributes:
        made: whether the queries are made from item text (else they are the log's own).
        shown: impressions after queries of the training period; None where the log has none.
    """

    name: str
    items: pl.DataFrame
    sequences: Sequences
    cases: dict[str, SearchCases]
    made: bool
    shown: pl.DataFrame | None

    @functools.cached_property
    def texts(self) -> list[str]:
        return item_texts(self.items)

    @functools.cached_property
    def item_pairs(self) -> Any:
        return behaviour_pairs(self.sequences, self.config())

    def config(self, *assignments: str) -> Config:
        split = "time" if self.name == "bazaar" else "leave-one-out"
        own = [f"data.split={split}", "text.embedder=hashed", "khqe.enabled=true", *assignments]
        return Config.preset_config("small").with_overrides(own)

    @functools.cache  # noqa: B019  # a world lives as long as the run
    def read(self, keywords: Literal["none", "off", "weigh", "strip"]) -> Tokenizer:
        """The text encoder, with keywords under a guard or without; its codes are not used."""
        own = ["alignment.enabled=false", "khqe.enabled=false", "quantizer.codebook_sizes=[2]"]
        if keywords != "none":
            own += ["keywords.enabled=true", f"keywords.guard='{keywords}'"]
        return Tokenizer.fit(self.items, self.sequences, self.config(*own), quiet=True)


def load_world(name: str, folder: Path, *, quick: bool) -> World:
    """`bazaar` (simulated; its log has searches and impressions), or an Amazon set with made queries in its log."""
    home = folder / f"shop-{name}"
    if name == "bazaar":
        if not (home / "shop.json").exists():
            generate_bazaar(home, seed=0, scale=0.1 if quick else 1.0)
        shop = Shop.open(home)
        sequences = load_sequences(shop, DataConfig(split="time"))
        asked = sequences.cases(TEST, max_per_user=5, among=sequences.query >= 0)
        words = tuple(sequences.queries[at] for at in sequences.query[asked.row])
        shown = shown_after_queries(shop, sequences, by_time=True)
        cases = {"log": SearchCases(sequences, asked, words)}
        return World(name, shop.items(), sequences, cases, False, shown)
    source = data_folder(NAMED[name])
    if not (home / "shop.json").exists():
        import_data("sequences", source, home)
    shop = Shop.open(home)
    sequences = load_sequences(shop, DataConfig(split="leave-one-out"))
    table = pl.read_parquet(source / "items.parquet").with_columns(pl.col("item_id").cast(pl.String))
    # the shop keeps one category path an item; a query may come from any
    maker = QueryMaker.of(shop.items().select("item_id").join(table, on="item_id", how="left", maintain_order="left"))
    people = sampled_people(sequences, ASKED)
    made = {kind: made_cases(sequences, TEST, people, maker, kind) for kind in KINDS}
    queries = log_queries(maker, sequences.user_ids[sequences.user].tolist(), sequences.item.tolist())
    kept = [None if stage == TEST else query for stage, query in zip(sequences.stage.tolist(), queries, strict=True)]
    texts = tuple(dict.fromkeys(query for query in kept if query is not None))
    number = {text: at for at, text in enumerate(texts)}
    own = np.asarray([-1 if query is None else number[query] for query in kept], dtype=np.int32)
    return World(name, shop.items(), replace(sequences, query=own, queries=texts), dict(made), True, None)


@dataclass(frozen=True)
class Space:
    """A fitted space: vectors of items, of the training log's queries, and of the questions' queries."""

    items: np.ndarray
    queries: np.ndarray
    asked: dict[str, np.ndarray]
    material: Material | None
    cpu_seconds: float
    aligner: Aligner | None


def fit_space(world: World, assignments: Sequence[str], *, keywords: Any = "none", seed: int = 0, kind: str = "five") -> Space:
    """Args: kind: `text` (no alignment), `items` (the alignment of items alone) or `five` (all losses that have a weight)."""
    own = world.read(keywords)
    config = world.config(f"seed={seed}", *assignments)
    texts = {name: list(cases.query) for name, cases in world.cases.items()}
    asked = {name: own.embed_texts(queries) for name, queries in texts.items()}
    start = time.process_time()
    material, query_QD = gather(
        world.items, world.texts, world.sequences, config, content_ID=own.content,
        embed=lambda queries: own.embed_texts(list(queries)), item_pairs=lambda: world.item_pairs, shown=world.shown,
    )  # fmt: skip
    if kind == "text":
        return Space(own.content, query_QD, asked, None, 0.0, None)
    aligner = Aligner(own.content.shape[1], config.alignment, seed)
    if kind == "items":
        aligner.fit(own.content, world.item_pairs, quiet=True)
    else:
        train(aligner, own.content, query_QD, material, config, quiet=True)
    seconds = time.process_time() - start
    moved = {name: aligner.transform(vectors) for name, vectors in asked.items()}
    return Space(aligner.transform(own.content), aligner.transform(query_QD), moved, material, seconds, aligner)


def code_space(world: World, space: Space, assignments: Sequence[str], *, both: bool = True, seed: int = 0) -> Figures:
    """Codes of a space: how they are used, and Recall@10 / MRR@10 of ranking items by them."""
    config = world.config(*(f"quantizer.{assignment}" for assignment in assignments)).quantizer
    quantizer = make_quantizer(config, len(space.items))
    start = time.process_time()
    clustered = np.concatenate([space.items, space.queries]) if both else space.items
    codes = quantizer.fit(clustered, np.random.default_rng(seed), quiet=True)[: len(space.items)]
    seconds = time.process_time() - start
    usage = usage_report(SemanticIds(codes, quantizer.codebook_sizes, np.zeros(len(codes), np.float32)))

    def decode(rows: np.ndarray) -> np.ndarray:
        vectors = quantizer.decode(rows)
        unit: np.ndarray = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-8)
        return unit

    out: Figures = {
        "icr": usage["icr"], "cur": usage["cur"], "cur_prefix": usage["cur_prefix"], "cur_total": usage["cur_total"],
        "sizes": usage["codebook_sizes"], "cpu_seconds": seconds,
    }  # fmt: skip
    for name, cases in world.cases.items():
        out[name] = figures(sid_standing(cases, quantizer.encode(space.asked[name]), codes, decode))
    return out


def vector_figures(world: World, space: Space) -> Figures:
    """Recall@10 / MRR@10 of ranking items by the vectors themselves."""
    rows = np.arange(len(space.items))
    return {name: figures(standing(cases, space.asked[name], space.items, rows)) for name, cases in world.cases.items()}


def figures(own: Standing) -> Figures:
    return {"recall": float(own.recall(10).mean()), "mrr": float(own.reciprocal_rank(10).mean()), "n": len(own.ahead)}
