"""Atomic files and folders, hashes and canonical JSON.

A reader sees the old content or the new, never a half. Data is flushed to disk before the rename, so the promise
holds across a kill as well as a crash. What a killed writer leaves behind is a hidden sibling whose name contains
`.tmp-`; the next writer of the same path removes it.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final

import polars as pl
from safetensors import SafetensorError

from rankloom.errors import RankloomError

_ELSEWHERE: Final = "free disk space or choose another place, and check the permissions"


def _fsync_path(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _pid_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _remove_stale(path: Path) -> None:
    """Removes what writers of `path` that are no longer running left behind."""
    for stale in path.parent.glob(f".{path.name}.tmp-*"):
        pid = stale.name.rsplit("-", 1)[-1]
        if pid.isdigit() and int(pid) != os.getpid() and _pid_alive(int(pid)):
            continue
        if stale.is_dir():
            shutil.rmtree(stale, ignore_errors=True)
        else:
            stale.unlink(missing_ok=True)


@contextmanager
def atomic_file(path: str | Path) -> Iterator[Path]:
    """Yields a temporary path to write; on success it becomes `path`, on any error it is removed."""
    path = Path(path)
    temporary = path.parent / f".{path.name}.tmp-{os.getpid()}"
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove_stale(path)
        try:
            yield temporary
            _fsync_path(temporary)
            os.replace(temporary, path)
            _fsync_path(path.parent)
        finally:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: str | Path, *, overwrite: bool = False, marker: str | None = None) -> Iterator[Path]:
    """Yields a temporary folder to fill; on success it becomes `path`, on any error it is removed.

    Args:
        overwrite: replace an existing folder. Without it an existing, non-empty `path` is refused before any work.
        marker: a file that an existing folder must hold to be replaced, so that a wrong `--out` never deletes
            somebody's documents.

    Raises:
        RankloomError: `path` exists and may not be replaced.
    """
    path = Path(path).absolute()
    check_replaceable(path, overwrite=overwrite, marker=marker)
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove_stale(path)
        temporary = path.parent / f".{path.name}.tmp-{os.getpid()}"
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir()
    retired = path.parent / f".{path.name}.tmp-old-{os.getpid()}"
    try:
        with writing(path):
            yield temporary
            for file in sorted(temporary.rglob("*")):
                if file.is_file():
                    _fsync_path(file)
            _fsync_path(temporary)
            if path.exists():
                os.rename(path, retired)
            os.rename(temporary, path)
            _fsync_path(path.parent)
    except BaseException:
        if retired.exists() and not path.exists():
            os.rename(retired, path)
        raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.rmtree(retired, ignore_errors=True)


def check_replaceable(path: Path, *, overwrite: bool = False, marker: str | None = None) -> None:
    """Refuses an output folder that may not be written or replaced; arguments as of `atomic_folder`."""
    if path.exists() and not path.is_dir():
        raise RankloomError(
            f"{path} is a file, a folder is needed",
            place=str(path),
            action="choose another --out",
            code="out-is-file",
        )
    if path.is_dir() and any(path.iterdir()):
        if not overwrite:
            raise RankloomError(
                f"the folder {path} exists and is not empty",
                place=str(path),
                action="choose another --out, or pass --overwrite to replace it",
                code="out-exists",
            )
        if marker is not None and not (path / marker).exists():
            raise RankloomError(
                f"the folder {path} is not one that Rankloom wrote (no {marker} in it); it is not replaced",
                place=str(path),
                action="choose another --out",
                code="out-foreign",
            )
    _check_can_be_made(path)


def _check_can_be_made(path: Path) -> None:
    """Refuses a path in whose folder, or the one that is to hold that folder, no file can be made."""
    try:
        above = next(parent for parent in path.absolute().parents if parent.exists())
    except OSError as error:
        raise RankloomError(
            f"{path} cannot be written: {error.strerror}", place=str(path), action=_ELSEWHERE, code="write-failed"
        ) from None
    if not above.is_dir():
        raise RankloomError(
            f"{path} cannot be written: {above} is a file", place=str(path), action=_ELSEWHERE, code="write-failed"
        )
    fact = "" if os.access(above, os.W_OK | os.X_OK) else f"no permission in {above}"
    if not fact:
        try:
            # permissions do not tell of a disk that is read-only, or of a folder in which nobody makes files
            with tempfile.TemporaryFile(dir=above):
                pass
        except OSError as error:
            fact = f"no file can be made in {above}: {(error.strerror or str(error)).lower()}"
    if fact:
        raise RankloomError(
            f"{path} cannot be written: {fact}", place=str(path), action=_ELSEWHERE, code="write-failed"
        )


def check_file_target(path: Path) -> None:
    """Refuses an output file that cannot be one, before the work whose result it is to hold."""
    if path.is_dir():
        raise RankloomError(
            f"{path} cannot be written: it is a folder",
            place=str(path),
            action="name a file",
            code="write-failed",
        )
    _check_can_be_made(path)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """A disk that is full, a file too large, a missing permission: one error that names `path`, from any library."""
    try:
        yield
    except OSError as error:
        if error.filename is not None and not str(error.filename).startswith(str(path.parent)):
            raise  # something that is read while this is written
        fact = error.strerror or str(error)
        raise RankloomError(
            f"{path} cannot be written: {fact[:1].lower() + fact[1:]}",
            place=str(path if ".tmp-" in str(error.filename) else error.filename or path),
            action=_ELSEWHERE,
            code="write-failed",
        ) from error
    except (SafetensorError, pl.exceptions.PolarsError) as error:
        # libraries in Rust tell the system's error by its number in their text
        number = re.search(r"os error (\d+)|code: (\d+)", str(error))
        if number is None and "transport error" not in str(error):
            raise
        fact = os.strerror(int(number[1] or number[2])) if number else "the disk is full, or files may not grow"
        raise RankloomError(
            f"{path} cannot be written: {fact[:1].lower() + fact[1:]}",
            place=str(path),
            action=_ELSEWHERE,
            code="write-failed",
        ) from error


def sha256_file(path: str | Path) -> str:
    """Hex SHA-256 of a file, read in blocks."""
    with open(path, "rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def write_json(path: str | Path, value: Any) -> None:
    """Writes `value` as UTF-8 JSON, atomically."""
    with atomic_file(path) as temporary:
        temporary.write_text(json.dumps(value, ensure_ascii=False, indent=2, sort_keys=False) + "\n", encoding="utf-8")


def read_json(path: str | Path) -> Any:
    """Reads JSON; a missing or broken file is a `RankloomError` that names it."""
    path = Path(path)
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise RankloomError(
            f"no file {path.name}", place=str(path), action="check the path", code="file-missing"
        ) from None
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise RankloomError(
            f"{path.name} is not valid JSON: {error}",
            place=str(path),
            action="restore the file",
            code="json-broken",
        ) from None
