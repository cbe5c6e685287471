"""The model folder: what a trained Rankloom is on disk (Hugging Face habits; never pickle).

    config.json               the configuration, what training decided, the tokenizer's settings
    model.safetensors         weights
    semantic_ids.safetensors  semantic IDs, content vectors and the tokenizer's frozen parts
    items.parquet             the catalogue
    memory.safetensors        what people took after what, for decoding (decoding/memory.py)
    query_memory.safetensors  the words of items and of the queries that led to them (decoding/query_memory.py)
    refiner.safetensors, search_refiner.safetensors, broad_refiner.safetensors
                              the last word on the order of feeds, searches and broad searches (decoding/refine.py)
    histories.parquet         the last interactions of each user, so that it serves without the training data
    training_log.jsonl        one record per evaluation
    README.md                 the card, filled by the run
    manifest.json             schema version, SHA-256 of each file, parents

A folder is written whole or not at all, and loaded whole or refused by the name of the file that is wrong.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from polars.exceptions import PolarsError
from safetensors import SafetensorError, safe_open
from torch import Tensor

from rankloom.errors import RankloomError
from rankloom.files import read_json, sha256_file

SCHEMA_VERSION: Final = 1
CONFIG: Final = "config.json"
WEIGHTS: Final = "model.safetensors"
SEMANTIC_IDS: Final = "semantic_ids.safetensors"
ITEMS: Final = "items.parquet"
HISTORIES: Final = "histories.parquet"
MEMORY: Final = "memory.safetensors"
EXPOSURE: Final = "exposure.safetensors"
REFINER: Final = "refiner.safetensors"
QUERY_MEMORY: Final = "query_memory.safetensors"
SEARCH_REFINER: Final = "search_refiner.safetensors"
BROAD_REFINER: Final = "broad_refiner.safetensors"
LOG: Final = "training_log.jsonl"
CARD: Final = "README.md"
MANIFEST: Final = "manifest.json"
_TIMES: Final = ("seconds", "training_seconds", "targets_per_second")
REQUIRED: Final = (CONFIG, WEIGHTS, SEMANTIC_IDS, ITEMS, MANIFEST)


def write_manifest(folder: Path, *, parents: dict[str, str]) -> str:
    """Hashes every file of `folder` into `manifest.json`; returns the model version.

    The version is a short hash over all that the model is: how long its training took and the log of it are left out, so
    two trainings with one seed have one version.
    """
    files = sorted(file for file in folder.iterdir() if file.is_file() and file.name not in (MANIFEST, CARD))
    hashes = {file.name: sha256_file(file) for file in files}
    lasting = {name: value for name, value in hashes.items() if name != LOG}
    if CONFIG in lasting:
        told = json.dumps(_timeless(read_json(folder / CONFIG)), sort_keys=True)
        lasting[CONFIG] = hashlib.sha256(told.encode()).hexdigest()
    version = hashlib.sha256(json.dumps(lasting, sort_keys=True).encode()).hexdigest()[:12]
    manifest = {
        "format": "rankloom-model",
        "schema_version": SCHEMA_VERSION,
        "model_version": version,
        "files": {name: {"sha256": value, "bytes": (folder / name).stat().st_size} for name, value in hashes.items()},
        "parents": parents,
    }
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
    return version


def _timeless(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _timeless(own) for name, own in value.items() if name not in _TIMES}
    return value


def check(folder: str | Path) -> dict[str, Any]:
    """The manifest of a model folder whose files are all there and unchanged.

    Raises:
        RankloomError: not a model folder, a newer format, or a missing, truncated or changed file, by name.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise RankloomError(
            f"no model folder {folder}",
            place=str(folder),
            action="train one with `rankloom train SHOP --out MODEL`, or check the path",
            code="model-missing",
        )
    if not (folder / MANIFEST).exists():
        raise RankloomError(
            f"{folder} is not a model folder (no {MANIFEST} in it)",
            place=str(folder),
            action="pass the folder that `rankloom train --out` wrote",
            code="model-foreign",
        )
    manifest = read_json(folder / MANIFEST)
    if (
        not isinstance(manifest, dict)
        or manifest.get("format") != "rankloom-model"
        or not isinstance(manifest.get("files"), dict)
        or not isinstance(manifest.get("model_version"), str)
    ):
        raise RankloomError(
            f"{MANIFEST} is not a Rankloom manifest", place=str(folder / MANIFEST), code="model-foreign"
        )
    if manifest.get("schema_version") != SCHEMA_VERSION:
        raise RankloomError(
            f"the model folder has format {manifest.get('schema_version')}, this version reads {SCHEMA_VERSION}",
            place=str(folder / MANIFEST),
            action="use the Rankloom version that wrote it, or train again",
            code="model-version",
        )
    for name in REQUIRED:
        if name != MANIFEST and name not in manifest["files"]:
            raise RankloomError(
                f"the manifest does not list {name}", place=str(folder / MANIFEST), code="model-incomplete"
            )
    for name, entry in manifest["files"].items():
        file = folder / name
        if not isinstance(entry, dict) or not {"bytes", "sha256"} <= set(entry):
            raise RankloomError(
                f"the manifest's entry of {name} is broken", place=str(folder / MANIFEST), code="model-foreign"
            )
        if Path(name).name != name or not file.is_file():
            raise RankloomError(
                f"the model folder lacks {name}",
                place=str(file),
                action="copy the folder again, whole",
                code="model-incomplete",
            )
        if file.stat().st_size != entry["bytes"] or sha256_file(file) != entry["sha256"]:
            raise RankloomError(
                f"{name} is damaged: it differs from what the manifest says",
                place=str(file),
                action="copy the folder again, or train again",
                code="model-damaged",
            )
    return manifest


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """What cannot be understood inside becomes an error that names the file: it is whole, but not of this format."""
    try:
        yield
    except RankloomError:
        raise
    except (KeyError, TypeError, ValueError, IndexError, AttributeError, RuntimeError, OSError, PolarsError) as error:
        fact = f"{error} is missing" if isinstance(error, KeyError) else str(error).partition("\n")[0]
        raise RankloomError(
            f"{path.name} is not what this version of Rankloom writes: {fact}",
            place=str(path),
            action="use the version that wrote the folder, copy the folder again, whole, or train again",
            code="model-mismatch",
        ) from error


def read_arrays(path: Path) -> dict[str, NDArray[Any]]:
    """All tensors of a safetensors file as numpy arrays."""
    try:
        with safe_open(path, framework="np") as handle:
            return {name: handle.get_tensor(name) for name in handle.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise RankloomError(f"{path.name} is damaged: {error}", place=str(path), code="model-damaged") from None


def read_tensors(path: Path) -> dict[str, Tensor]:
    """All tensors of a safetensors file."""
    try:
        with safe_open(path, framework="pt") as handle:
            return {name: handle.get_tensor(name) for name in handle.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise RankloomError(f"{path.name} is damaged: {error}", place=str(path), code="model-damaged") from None


def contiguous(arrays: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """Arrays as safetensors wants them."""
    return {name: np.ascontiguousarray(value) for name, value in arrays.items()}
