"""Takes people who asked to be forgotten out of a model folder's copy of the histories too.

The server never uses that copy once its owner is forgotten; this removes the bytes. The weights are what they were: train
again, without those people, to have what they did out of them.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import polars as pl

from rankloom import model_folder
from rankloom.files import atomic_folder
from rankloom.serving.state import pseudonym, tombstone_path
from rankloom.serving.tombstones import Tombstones


def forget(folder: Path, state: str | Path) -> tuple[int, str]:
    """Rewrites the folder, whole or not at all: (how many people were in it, its version now).

    Raises:
        RankloomError: not a whole model folder, damaged tombstones, a disk that is full.
    """
    manifest = model_folder.check(folder)
    gone = Tombstones(tombstone_path(state))
    path = folder / model_folder.HISTORIES
    if not path.exists():
        return 0, str(manifest["model_version"])
    with model_folder.reading(path):
        histories = pl.read_parquet(path)
        kept = histories.filter([pseudonym(user) not in gone for user in histories["user_id"]])
    removed = histories.height - kept.height
    if not removed:
        return 0, str(manifest["model_version"])
    with atomic_folder(folder, overwrite=True, marker=model_folder.MANIFEST) as fresh:
        for file in folder.iterdir():
            if file.is_file() and file.name not in (model_folder.MANIFEST, model_folder.HISTORIES):
                shutil.copy2(file, fresh / file.name)
        kept.write_parquet(fresh / model_folder.HISTORIES, compression="zstd")
        parents = {**manifest.get("parents", {}), "with_people_since_forgotten": str(manifest["model_version"])}
        version = model_folder.write_manifest(fresh, parents=parents)
    return removed, version
