"""A catalogue and a log small enough to train on in a second: four kinds of thing, people who like one colour."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import polars as pl

from rankloom.config import Config
from rankloom.data.schema import KIND_CODE, SURFACE_CODE
from rankloom.data.sequences import TEST, TRAIN, VALID, Sequences
from rankloom.onesearch.model import OneSearch
from rankloom.onesearch.settings import OneSearchConfig
from rankloom.semantic.tokenizer import Tokenizer

KINDS = ("dress", "lamp", "drill", "mug")
COLOURS = ("red", "blue", "green", "black")
SIZES = ("small", "large", "giant", "tiny")
N_USERS = 48
LENGTH = 7


def catalogue() -> pl.DataFrame:
    rows = [(kind, colour, size) for kind in KINDS for colour in COLOURS for size in SIZES]
    return pl.DataFrame(
        {
            "item_id": [str(number) for number in range(len(rows))],
            "title": [f"{colour} {kind} {size}" for kind, colour, size in rows],
            "category": [["home" if kind in ("lamp", "mug") else "other", f"{kind}s"] for kind, _, _ in rows],
        }
    )


@cache
def log() -> Sequences:
    """Everybody likes one colour; most takes follow a search for a kind, some come from the feed."""
    rng = np.random.default_rng(3)
    queries = tuple(f"{kind}s" for kind in KINDS)
    user = np.repeat(np.arange(N_USERS), LENGTH)
    kind = rng.integers(len(KINDS), size=len(user))
    colour = user % len(COLOURS)
    item = kind * 16 + colour * 4 + rng.integers(4, size=len(user))
    asked = rng.random(len(user)) < 0.7
    place = np.tile(np.arange(LENGTH), N_USERS)
    stage = np.select([place == LENGTH - 1, place == LENGTH - 2], [TEST, VALID], default=TRAIN)
    return Sequences(
        user_ids=np.asarray([f"u{number}" for number in range(N_USERS)]),
        offsets=np.arange(0, len(user) + 1, LENGTH),
        item=item.astype(np.int32),
        kind=np.full(len(user), KIND_CODE["purchase"], dtype=np.int8),
        timestamp=place.astype(np.int64),
        watch_ratio=np.full(len(user), np.nan, dtype=np.float32),
        surface=np.where(asked, SURFACE_CODE["search"], SURFACE_CODE["feed"]).astype(np.int8),
        position=np.full(len(user), -1, dtype=np.int16),
        query=np.where(asked, kind, -1).astype(np.int32),
        target=np.ones(len(user), dtype=np.bool_),
        stage=stage.astype(np.int8),
        n_items=64,
        queries=queries,
        has_clock=False,
    )


@cache
def tokenizer() -> Tokenizer:
    settings = {
        "text": {"embedder": "hashed", "dim": 16},
        "alignment": {"enabled": False},
        "quantizer": {
            "codebook_sizes": (8, 6, 4), "balanced_levels": (-1,), "last": "opq", "opq_codes": 4, "opq_iterations": 3,
        },
    }  # fmt: skip
    return Tokenizer.fit(catalogue(), log(), Config.model_validate(settings), quiet=True)


def settings(**changes: Any) -> OneSearchConfig:
    """A tiny configuration; changes by section."""
    small: dict[str, Any] = {
        "network": {"d_model": 16, "n_heads": 2, "dropout": 0.0},
        "behaviour": {"long_length": 6, "rsu": 2},
        "stages": {"s1_steps": 4, "s2_steps": 4, "s3_steps": 12, "batch_size": 16},
        "reward": {"steps": 10, "batch_size": 16, "n_same": 3, "n_random": 3, "towers": {"width": 4, "hidden": 8}},
        "preference": {
            "contexts": 40, "sampled": 20, "beam": 8, "list_length": 8, "rejected": 3, "phase1_steps": 3, "phase2_steps": 3, "batch_size": 8,
        },
        "beam": 40,
    }  # fmt: skip
    for name, value in changes.items():
        small[name] = {**small[name], **value} if isinstance(value, dict) else value
    return OneSearchConfig.model_validate(small)


def built(**changes: Any) -> OneSearch:
    return OneSearch.build(catalogue(), log(), tokenizer(), settings(**changes))
