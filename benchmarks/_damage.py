"""Forty ways in which a model folder can be broken: cut, flipped, swapped, forged with a manifest that fits, or none at all."""

from __future__ import annotations

import json
import random
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from _common import ROOT
from safetensors.numpy import load_file, save_file

sys.path.insert(0, str(ROOT))
from rankloom.files import read_json, sha256_file, write_json
from rankloom.model_folder import CARD, MANIFEST

FILES = ("config.json", "model.safetensors", "semantic_ids.safetensors", "items.parquet", "histories.parquet", "memory.safetensors")
Damage = Callable[[Path], None]


def _cut(name: str) -> Damage:
    def own(folder: Path) -> None:
        data = (folder / name).read_bytes()
        (folder / name).write_bytes(data[: len(data) // 2])

    return own


def _flip(name: str) -> Damage:
    def own(folder: Path) -> None:
        data = bytearray((folder / name).read_bytes())
        data[random.Random(name).randrange(len(data))] ^= 0x10
        (folder / name).write_bytes(data)

    return own


def _gone(name: str) -> Damage:
    return lambda folder: (folder / name).unlink()


def _forged(change: Damage) -> Damage:
    """With a manifest that fits the broken files."""

    def own(folder: Path) -> None:
        change(folder)
        manifest = read_json(folder / MANIFEST)
        files = [file for file in folder.iterdir() if file.is_file() and file.name not in (MANIFEST, CARD)]
        manifest["files"] = {file.name: {"sha256": sha256_file(file), "bytes": file.stat().st_size} for file in files}
        write_json(folder / MANIFEST, manifest)

    return own


def _bytes(name: str, content: bytes) -> Damage:
    def own(folder: Path) -> None:
        (folder / name).write_bytes(content)

    return own


def _append(name: str, content: bytes) -> Damage:
    def own(folder: Path) -> None:
        with open(folder / name, "ab") as handle:
            handle.write(content)

    return own


def _arrays(name: str, change: Callable[[dict[str, Any]], None]) -> Damage:
    def own(folder: Path) -> None:
        arrays = load_file(folder / name)
        change(arrays)
        save_file(arrays, folder / name)

    return own


def _config(change: Callable[[dict[str, Any]], None]) -> Damage:
    def own(folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text())
        change(config)
        (folder / "config.json").write_text(json.dumps(config))

    return own


def _items(change: Callable[[pl.DataFrame], pl.DataFrame]) -> Damage:
    def own(folder: Path) -> None:
        change(pl.read_parquet(folder / "items.parquet")).write_parquet(folder / "items.parquet")

    return own


def _manifest(change: Callable[[dict[str, Any]], None]) -> Damage:
    def own(folder: Path) -> None:
        manifest = json.loads((folder / "manifest.json").read_text())
        change(manifest)
        (folder / "manifest.json").write_text(json.dumps(manifest))

    return own


def _fill(value: float) -> Callable[[dict[str, Any]], None]:
    def own(arrays: dict[str, Any]) -> None:
        for name, array in arrays.items():
            if array.dtype == np.float32:
                arrays[name] = np.full_like(array, value)

    return own


def _first(change: Callable[[Any], Any]) -> Callable[[dict[str, Any]], None]:
    def own(arrays: dict[str, Any]) -> None:
        name = next(name for name, array in sorted(arrays.items()) if array.ndim == 2)
        arrays[name] = np.ascontiguousarray(change(arrays[name]))

    return own


def _codes(change: Callable[[Any], Any]) -> Callable[[dict[str, Any]], None]:
    def own(arrays: dict[str, Any]) -> None:
        name = next(name for name in sorted(arrays) if "codes" in name)
        arrays[name] = np.ascontiguousarray(change(arrays[name]))

    return own


def _drop(arrays: dict[str, Any]) -> None:
    del arrays[sorted(arrays)[0]]


def _folder_for_file(folder: Path) -> None:
    (folder / "items.parquet").unlink()
    (folder / "items.parquet").mkdir()


def _strangers(frame: pl.DataFrame) -> pl.DataFrame:
    return frame.with_columns(("other-" + pl.col("item_id")).alias("item_id"))


def _empty(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.mkdir()


def _file(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.write_text("no folder")


def _escape(manifest: dict[str, Any]) -> None:
    manifest["files"]["../../outside"] = manifest["files"]["config.json"]


PICKLE = b"\x80\x04cposix\nsystem\n\x94\x8c\x04true\x94\x85\x94R\x94."
WEIGHTS, IDS = "model.safetensors", "semantic_ids.safetensors"
DAMAGES: dict[str, Damage] = {
    **{f"cut {name}": _cut(name) for name in (*FILES, "manifest.json")},
    **{f"bit flipped in {name}": _flip(name) for name in FILES},
    **{f"without {name}": _gone(name) for name in ("config.json", WEIGHTS, IDS, "items.parquet", "manifest.json")},
    "weights: cut, forged": _forged(_cut(WEIGHTS)),
    "weights: header of 2^60 bytes, forged": _forged(_bytes(WEIGHTS, (2**60).to_bytes(8, "little") + b"{}")),
    "weights: header is no JSON, forged": _forged(_bytes(WEIGHTS, (8).to_bytes(8, "little") + b"not json" + b"\0" * 64)),
    "weights: empty, forged": _forged(_bytes(WEIGHTS, b"")),
    "weights: a pickle, forged": _forged(_bytes(WEIGHTS, PICKLE)),
    "weights: a pickle appended, forged": _forged(_append(WEIGHTS, PICKLE)),
    "weights: a tensor missing, forged": _forged(_arrays(WEIGHTS, _drop)),
    "weights: a tensor of another shape, forged": _forged(_arrays(WEIGHTS, _first(lambda a: a[:-1]))),
    "weights: NaN, forged": _forged(_arrays(WEIGHTS, _fill(float("nan")))),
    "weights: infinite, forged": _forged(_arrays(WEIGHTS, _fill(float("inf")))),
    "semantic IDs: cut, forged": _forged(_cut(IDS)),
    "semantic IDs: codes out of range, forged": _forged(_arrays(IDS, _codes(lambda a: a + 10_000))),
    "semantic IDs: half of the items, forged": _forged(_arrays(IDS, _codes(lambda a: a[: len(a) // 2]))),
    "semantic IDs: a level less, forged": _forged(_arrays(IDS, _codes(lambda a: a[:, :-1] if a.ndim == 2 else a[:-1]))),
    "items: no Parquet, forged": _forged(_bytes("items.parquet", b"PAR1 not at all PAR1")),
    "items: half of them, forged": _forged(_items(lambda f: f.head(f.height // 2))),
    "items: no titles, forged": _forged(_items(lambda f: f.drop("title"))),
    "items: of another shop, forged": _forged(_items(_strangers)),
    "config: no JSON, forged": _forged(_bytes("config.json", b"{half")),
    "config: a list, forged": _forged(_bytes("config.json", b"[]")),
    "config: an unknown setting, forged": _forged(_config(lambda c: c["config"].update(colour="red"))),
    "config: another width, forged": _forged(_config(lambda c: c["config"]["model"].update({k: 48 for k in list(c["config"]["model"]) if k in ("dim", "d_model", "width")} or {"max_history": -1}))),
    "histories: no Parquet, forged": _forged(_bytes("histories.parquet", b"nothing")),
    "memory: empty, forged": _forged(_bytes("memory.safetensors", b"")),
    "manifest: a newer format": _manifest(lambda m: m.update(schema_version=99)),
    "manifest: no JSON": _bytes("manifest.json", b"\xff\xfe{"),
    "manifest: of something else": _bytes("manifest.json", b'{"format": "another"}'),
    "manifest: leads outside": _manifest(_escape),
    "a folder in place of a file": _folder_for_file,
    "an empty folder": _empty,
    "a file in place of the folder": _file,
}


def damaged_folders(model: Path, root: Path) -> Iterator[tuple[str, str]]:
    """Makes each in turn below `root`: (what is wrong, name of the folder). It is gone when the next is asked for."""
    for number, (what, damage) in enumerate(DAMAGES.items()):
        folder = root / f"damaged-{number}"
        shutil.copytree(model, folder)
        try:
            damage(folder)
            yield what, folder.name
        finally:
            shutil.rmtree(folder, ignore_errors=True)
            folder.unlink(missing_ok=True)
    yield "no such folder", "nothing-here"
    yield "a way out of the root", "../../../etc"
    yield "an absolute way out", "/etc"
