"""Files of judged search sets as their projects publish them: found by name, read whole or refused with what to do.

    WANDS = Source("WANDS", "git clone https://github.com/wayfair/WANDS, and give its folder")
    path = WANDS.find(folder, "product.csv", "dataset/product.csv")
    frame = WANDS.read(path, "csv", {"product_id": Column(), "category": Column(("category hierarchy",), required=False)})

Refused: a file that is not there, a pointer that Git LFS left in a file's place, columns of other names, ids and numbers that are none.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
import polars as pl
from numpy.typing import NDArray

from rankloom.data.reading import TableFile
from rankloom.errors import RankloomError

_POINTER: Final = b"version https://git-lfs.github.com/spec/"


@dataclass(frozen=True)
class Column:
    """A column of a published file.

    Attributes:
        names: what it may be called there; its own name where empty.
        kind: how its values are read: text, whole numbers, or lists of texts.
        required: refuse a file without it, and a row without a value; else both are null.
    """

    names: tuple[str, ...] = ()
    kind: Literal["text", "int", "list"] = "text"
    required: bool = True


@dataclass(frozen=True)
class Source:
    """A data set.

    Attributes:
        name: of the project.
        get: how to get it, for errors.
    """

    name: str
    get: str

    def find(self, folder: Path, *names: str) -> Path:
        """The first of `names` that is in the folder.

        Raises:
            RankloomError: no such folder or file, or a Git LFS pointer in its place.
        """
        if not folder.is_dir():
            raise RankloomError(
                f"no folder {folder}", place="--data", action=f"get {self.name}: {self.get}", code="data-missing"
            )
        found = self.find_any(folder, *names)
        if found is None:
            other = f" (nor {', '.join(names[1:])})" if names[1:] else ""
            raise RankloomError(
                f"{folder} has no {names[0]}{other}", place=str(folder / names[0]), action=f"get {self.name}: {self.get}",
                code="data-missing",
            )  # fmt: skip
        return found

    def find_any(self, folder: Path, *names: str) -> Path | None:
        """Like `find`; None where there is none of them."""
        path = next((folder / name for name in names if (folder / name).is_file()), None)
        if path is not None:
            with path.open("rb") as file:
                head = file.read(len(_POINTER))
            if head == _POINTER:
                raise RankloomError(
                    f"{path.name} is a Git LFS pointer, not the file itself", place=str(path),
                    action=f"run `git lfs install` and `git lfs pull` in the clone, or get {self.name} again: {self.get}",
                    code="data-lfs-pointer",
                )  # fmt: skip
        return path

    def read(
        self, path: Path, format: str, columns: Mapping[str, Column], *, keep: pl.Expr | None = None
    ) -> pl.DataFrame:
        """The named columns of a table, in the order of the file.

        Args:
            format: `csv` (tab-separated), `jsonl` or `parquet`.
            keep: which rows; applied batch by batch, so that memory holds only these.

        Raises:
            RankloomError: not a table of this format, a column or a value is missing, a whole number is none; says where.
        """
        file = TableFile(path, format, separator="\t" if format == "csv" else None)
        there = file.columns()
        used = {
            name: next((own for own in (column.names or (name,)) if own in there), None)
            for name, column in columns.items()
        }
        lacking = [name for name, column in columns.items() if column.required and used[name] is None]
        if lacking:
            wanted = ", ".join(" or ".join(columns[name].names or (name,)) for name in lacking)
            raise RankloomError(
                f"{path.name} has no column {wanted}; it has {', '.join(there[:12])}", place=str(path),
                action=f"give the file as {self.name} publishes it: {self.get}", code="data-columns",
            )  # fmt: skip
        frames = []
        refusal: RankloomError | None = None
        for batch in file.batches():
            # read to the end all the same: a CSV file left early keeps a thread that may stop the interpreter from ending
            if refusal is not None:
                continue
            try:
                series = [
                    _typed(
                        file,
                        batch.numbers,
                        batch.frame,
                        own if own in batch.frame.columns else None,
                        name,
                        columns[name],
                    )
                    for name, own in used.items()
                ]
            except RankloomError as error:
                refusal = error
                continue
            frame = pl.DataFrame(series)
            frames.append(frame if keep is None else frame.filter(keep))
        if refusal is not None:
            raise refusal
        if not frames or not sum(frame.height for frame in frames):
            raise RankloomError(
                f"{path.name} has no rows",
                place=str(path),
                action=f"get {self.name} again: {self.get}",
                code="data-empty",
            )
        return pl.concat(frames)

    def check_values(self, path: Path, values: pl.Series, known: Sequence[str]) -> None:
        """Refuses values that are not among the known ones."""
        odd = values.filter(~values.is_in(list(known)).fill_null(False))
        if len(odd):
            raise RankloomError(
                f"{path.name}, column {values.name}: {odd[0]!r} is none of {', '.join(known)}", place=str(path),
                action=f"give the file as {self.name} publishes it: {self.get}", code="data-value",
            )  # fmt: skip


def _typed(
    file: TableFile, numbers: Sequence[int], frame: pl.DataFrame, own: str | None, name: str, column: Column
) -> pl.Series:
    kind: pl.DataType = {"text": pl.String(), "int": pl.Int64(), "list": pl.List(pl.String)}[column.kind]
    if own is None:
        out = pl.Series(name, [None] * frame.height, dtype=kind)
    elif column.kind == "list":
        given = frame[own]
        out = given.cast(kind) if isinstance(given.dtype, pl.List) else pl.Series(name, [[]] * frame.height, dtype=kind)
        out = out.fill_null([])
    else:
        out = frame[own].cast(kind, strict=False)
    wrong = out.is_null() if column.required else out.is_null() & (frame[own].is_not_null() if own else False)
    if wrong.any():
        at = int(wrong.arg_max() or 0)
        value: Any = frame[own][at] if own else None
        raise RankloomError(
            "a value is missing" if value is None else f"{value!r} is no whole number", place=file.place(numbers[at], own or name),
            action="download the file again, or remove the row", code="data-value",
        )  # fmt: skip
    return out.alias(name)


def stamp(*paths: Path | None) -> str:
    """Names the files that were read, for the keys of cells: another download of another size is another set."""
    return " ".join(f"{path.name}:{path.stat().st_size}" for path in paths if path is not None)


def rows_of(ids: Sequence[str], wanted: pl.Series) -> NDArray[np.int64]:
    """The catalogue's row of each wanted id; what the catalogue lacks gets numbers from its size on, the same id the same number."""
    known = pl.DataFrame({"id": list(ids), "row": np.arange(len(ids))}, schema={"id": pl.String, "row": pl.Int64})
    asked = pl.DataFrame({"id": wanted.cast(pl.String)})
    absent = asked.unique(maintain_order=True).join(known, on="id", how="anti", maintain_order="left")
    extra = absent.with_columns(pl.int_range(len(ids), len(ids) + pl.len(), dtype=pl.Int64).alias("row"))
    return asked.join(pl.concat([known, extra]), on="id", how="left", maintain_order="left")["row"].to_numpy()
