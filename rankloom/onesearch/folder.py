"""A OneSearch on disk, and back: safetensors, Parquet and JSON, written whole or not at all.

    config.json             settings, words, the log's queries, how the tokenizer was made
    model.safetensors       the generator
    reward.safetensors      the reward model's towers, where fitted
    tokenizer.safetensors   semantic IDs and the tokenizer's frozen parts
    log.safetensors         counts of the training period and the default sequences
    profiles.parquet        what people say of themselves, where they do
    items.parquet           the catalogue
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import numpy as np
import polars as pl
from pydantic import ValidationError
from safetensors.numpy import save_file as save_arrays
from safetensors.torch import save_file as save_tensors

from rankloom import model_folder
from rankloom.errors import RankloomError, fault_of
from rankloom.files import atomic_folder, read_json, write_json
from rankloom.onesearch.contexts import DefaultSequences
from rankloom.onesearch.model import OneSearch
from rankloom.onesearch.profiles import Profiles
from rankloom.onesearch.query_ids import QueryEncoder
from rankloom.onesearch.reward_model import RewardModel
from rankloom.onesearch.settings import OneSearchConfig
from rankloom.onesearch.statistics import Statistics
from rankloom.semantic.tokenizer import Tokenizer

CONFIG: Final = "config.json"
WEIGHTS: Final = "model.safetensors"
REWARD: Final = "reward.safetensors"
TOKENIZER: Final = "tokenizer.safetensors"
LOG: Final = "log.safetensors"
ITEMS: Final = "items.parquet"
PROFILES: Final = "profiles.parquet"
_FORMAT: Final = "rankloom-onesearch"


def save(own: OneSearch, items: pl.DataFrame, path: str | Path, *, overwrite: bool = False) -> Path:
    """Writes the folder.

    Args:
        items: the catalogue that the model was built on.

    Raises:
        RankloomError: the folder is there and may not be replaced, or cannot be written.
    """
    path = Path(path)
    arrays, meta = own.tokenizer.state()
    with atomic_folder(path, overwrite=overwrite, marker=CONFIG) as folder:
        save_tensors({name: value.contiguous() for name, value in own.network.state_dict().items()}, folder / WEIGHTS)
        if own.rewarder is not None:
            save_tensors({name: value.contiguous() for name, value in own.rewarder.towers.state_dict().items()}, folder / REWARD)
        save_arrays(model_folder.contiguous(arrays), folder / TOKENIZER)
        save_arrays(
            model_folder.contiguous({"count": own.items.count_I, **own.defaults.arrays(), **own.statistics.arrays()}),
            folder / LOG,
        )
        profiles = own.prompts.profiles
        if len(profiles):
            table = pl.DataFrame({"user_id": profiles.user_U.tolist(), "text": list(profiles.text_U)})
            table.write_parquet(folder / PROFILES, compression="zstd")
        items.write_parquet(folder / ITEMS, compression="zstd")
        write_json(
            folder / CONFIG,
            {
                "format": _FORMAT, "config": own.config.model_dump(mode="json"), "words": list(own.vocabulary.words),
                "queries": list(own.prompts.queries.texts), "tokenizer": meta,
            },
        )  # fmt: skip
    return path


def load(path: str | Path, *, encode: QueryEncoder | None = None) -> OneSearch:
    """The model of a folder.

    Args:
        encode: IDs of queries, where the model was built with an encoder of its own.

    Raises:
        RankloomError: no such folder, or a file of it is missing or damaged, by name.
    """
    folder = Path(path)
    for name in (CONFIG, WEIGHTS, TOKENIZER, LOG, ITEMS):
        if not (folder / name).is_file():
            raise RankloomError(
                f"the folder has no {name}", place=str(folder / name), action="give a folder that OneSearch was saved to",
                code="onesearch-folder",
            )  # fmt: skip
    with model_folder.reading(folder / CONFIG):
        raw: dict[str, Any] = read_json(folder / CONFIG)
        if raw.get("format") != _FORMAT:
            raise RankloomError(
                f"{CONFIG} is of another format: {raw.get('format')!r}", place=str(folder / CONFIG),
                action="give a folder that OneSearch was saved to", code="onesearch-folder",
            )  # fmt: skip
        try:
            config = OneSearchConfig.model_validate(raw["config"])
        except ValidationError as error:
            raise RankloomError(
                fault_of(error), place=str(folder / CONFIG), action="restore the file", code="onesearch-folder"
            ) from None
    with model_folder.reading(folder / TOKENIZER):
        tokenizer = Tokenizer.from_state(model_folder.read_arrays(folder / TOKENIZER), raw["tokenizer"])
    with model_folder.reading(folder / LOG):
        log = model_folder.read_arrays(folder / LOG)
    items, there = pl.read_parquet(folder / ITEMS), (folder / PROFILES).is_file()
    own = OneSearch.assemble(
        items, tokenizer, config, words=tuple(raw["words"]), queries=tuple(raw["queries"]),
        count_I=np.asarray(log["count"]), defaults=DefaultSequences.from_arrays(log),
        statistics=Statistics.from_arrays(log, items.height), encode=encode,
        profiles=Profiles.of(pl.read_parquet(folder / PROFILES) if there else None, ("text",)),
    )  # fmt: skip
    with model_folder.reading(folder / WEIGHTS):
        own.network.load_state_dict(model_folder.read_tensors(folder / WEIGHTS))
    if (folder / REWARD).is_file():
        own.rewarder = RewardModel.build(config.reward, own.prompts, own.statistics, config.seed)
        with model_folder.reading(folder / REWARD):
            own.rewarder.towers.load_state_dict(model_folder.read_tensors(folder / REWARD))
    return own
