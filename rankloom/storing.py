"""A model folder to the parts of a `Rankloom`, and back."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import polars as pl
from numpy.typing import NDArray
from safetensors.numpy import save_file as save_arrays
from safetensors.torch import save_file as save_tensors

from rankloom import model_folder
from rankloom.building import build_model
from rankloom.config import Config
from rankloom.data import schema
from rankloom.decoding.choices import UNTRIED_SEARCH, BroadOrder, Choices
from rankloom.decoding.exposure import Exposure
from rankloom.decoding.memory import BehaviourMemory
from rankloom.decoding.query_memory import QueryMemory, searched_texts
from rankloom.decoding.refine import Refiner
from rankloom.decoding.relevance import Relevance
from rankloom.decoding.select import Weights
from rankloom.files import atomic_folder, read_json, write_json
from rankloom.semantic.tokenizer import Tokenizer

if TYPE_CHECKING:
    from rankloom.recommender import Rankloom

_T = TypeVar("_T")


def load(path: str | Path) -> dict[str, Any]:
    """What `Rankloom` is made of, by the names of its arguments, every file checked against the manifest.

    Raises:
        RankloomError: not a model folder, or a missing or damaged file, by name.
    """
    folder = Path(path)
    manifest = model_folder.check(folder)
    config_path, ids_path, items_path, histories_path = (
        folder / name
        for name in (model_folder.CONFIG, model_folder.SEMANTIC_IDS, model_folder.ITEMS, model_folder.HISTORIES)
    )
    with model_folder.reading(config_path):
        raw = read_json(config_path)
        own, tokenizer_meta = raw["model"], raw["tokenizer"]
        n_trained, mask_seen, weights = int(own["n_trained"]), bool(own["mask_seen"]), Weights(**own["weights"])
        alone = Weights(**own["generator_weights"]) if "generator_weights" in own else None
        searching = dict(own.get("search", {}))
        broad_from = searching.pop("broad_from", None)
        searching = {name: Weights(**value) for name, value in searching.items()}
        search = UNTRIED_SEARCH
        if searching:
            search = Choices(searching["weights"], searching["generator_weights"])
        # folders of earlier versions have none
        relevance = Relevance(**own["relevance"]) if own.get("relevance") else None
        removed = np.asarray(own["removed"], dtype=np.int64)
        read_columns = own.get("read_columns")
        dated, attributed, log_end = bool(own["dated"]), bool(own["attributed"]), own["log_end"]
        config = Config.parse(raw["config"], place=str(config_path))
    with model_folder.reading(ids_path):
        tokenizer = Tokenizer.from_state(model_folder.read_arrays(ids_path), tokenizer_meta)
        alive = np.ones(len(tokenizer.semantic_ids.codes), dtype=np.bool_)
        alive[removed] = False
    with model_folder.reading(items_path):
        items = pl.read_parquet(items_path)
        if items.height != len(alive) or not {"item_id", "title"} <= set(items.columns):
            raise ValueError(f"{items.height} items for {len(alive)} semantic IDs")
    with model_folder.reading(histories_path):
        histories = pl.read_parquet(histories_path) if histories_path.exists() else empty_histories()
    memory = _part(folder / model_folder.MEMORY, BehaviourMemory.from_arrays)
    exposure = _part(folder / model_folder.EXPOSURE, Exposure.from_arrays)
    refiner = _part(folder / model_folder.REFINER, Refiner.from_arrays)
    search_refiner = _part(folder / model_folder.SEARCH_REFINER, partial(Refiner.from_arrays, searches=True))
    broad_refiner = _part(folder / model_folder.BROAD_REFINER, partial(Refiner.from_arrays, searches=True, broad=True))
    broad = None if broad_refiner is None or broad_from is None else BroadOrder(float(broad_from), broad_refiner)
    query_memory = _part(
        folder / model_folder.QUERY_MEMORY, partial(QueryMemory.from_arrays, texts=searched_texts(items))
    )
    with model_folder.reading(folder / model_folder.WEIGHTS):
        read = items.select(read_columns or items.columns)
        model = build_model(config, tokenizer, read, n_trained=n_trained, dated=dated, attributed=attributed)
        model.load_state_dict(model_folder.read_tensors(folder / model_folder.WEIGHTS))
    return {
        "config": config,
        "tokenizer": tokenizer,
        "model": model,
        "items": items,
        "histories": histories,
        "mask_seen": mask_seen,
        "weights": weights,
        "generator_weights": alone,
        "memory": memory,
        "exposure": exposure,
        "refiner": refiner,
        "query_memory": query_memory,
        "search_choices": replace(search, refiner=search_refiner, relevance=relevance, broad=broad),
        "metadata": raw.get("metadata", {}),
        "model_version": manifest["model_version"],
        "alive": alive,
        "log_end": None if log_end is None else float(log_end),
        "read_columns": read_columns,
    }


def _part(path: Path, make: Callable[[dict[str, NDArray[Any]]], _T]) -> _T | None:
    """A part that not every model has."""
    with model_folder.reading(path):
        return make(model_folder.read_arrays(path)) if path.exists() else None


def save(own: Rankloom, path: str | Path, *, overwrite: bool, extra: Mapping[str, str]) -> str:
    """Writes the folder, atomically; returns the model version.

    Args:
        extra: further text files of the folder by name.

    Raises:
        RankloomError: the folder exists and `overwrite` is not set, or it is not a model folder.
    """
    arrays, meta = own.tokenizer.state()
    with atomic_folder(path, overwrite=overwrite, marker=model_folder.MANIFEST) as folder:
        own.items.write_parquet(folder / model_folder.ITEMS, compression="zstd")
        own.histories.write_parquet(folder / model_folder.HISTORIES, compression="zstd")
        save_arrays(model_folder.contiguous(arrays), folder / model_folder.SEMANTIC_IDS)
        search = own.search_choices
        parts = {
            model_folder.MEMORY: own.memory, model_folder.EXPOSURE: own.exposure, model_folder.REFINER: own.refiner,
            model_folder.QUERY_MEMORY: own.query_memory, model_folder.SEARCH_REFINER: search.refiner,
            model_folder.BROAD_REFINER: None if search.broad is None else search.broad.refiner,
        }  # fmt: skip
        for name, part in parts.items():
            if part is not None:
                save_arrays(model_folder.contiguous(part.arrays()), folder / name)
        weights = {name: value.detach().cpu().contiguous() for name, value in own.model.state_dict().items()}
        save_tensors(weights, folder / model_folder.WEIGHTS)
        write_json(
            folder / model_folder.CONFIG,
            {
                "config": own.config.model_dump(mode="json"),
                "tokenizer": meta,
                "model": {
                    "n_trained": own.model.items.n_trained,
                    "mask_seen": own.mask_seen,
                    "weights": asdict(own.weights),
                    "generator_weights": asdict(own.generator_weights),
                    "search": {
                        "weights": asdict(search.weights),
                        "generator_weights": asdict(search.generator_weights),
                        **({} if search.broad is None else {"broad_from": search.broad.least}),
                    },
                    "relevance": None if search.relevance is None else asdict(search.relevance),
                    "removed": np.flatnonzero(~own.alive).tolist(),
                    "dated": own.model.age is not None,
                    "attributed": own.model.items.attributes is not None,
                    "log_end": own.log_end,
                    "read_columns": list(own.read_columns),
                },
                "metadata": own.metadata,
            },
        )
        for name, text in (extra).items():
            (folder / name).write_text(text, encoding="utf-8")
        return model_folder.write_manifest(folder, parents=own.metadata.get("parents", {}))


def empty_histories() -> pl.DataFrame:
    """The histories table with no rows."""
    return pl.DataFrame(
        schema={
            "user_id": pl.String(),
            "item_ids": pl.List(pl.String()),
            "events": pl.List(pl.String()),
            "timestamps": pl.List(schema.TIME),
            "watch_s": pl.List(pl.Float64()),
            "surfaces": pl.List(pl.String()),
            "positions": pl.List(pl.Int32()),
            "queries": pl.List(pl.String()),
        }
    )
