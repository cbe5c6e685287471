"""One importer a format: how a folder that people have becomes the shop's tables, batch by batch.

A new format is one new module here that names its importers in `IMPORTERS`; the command line, the documentation test
and the benchmark of broken inputs find it by itself.
"""

from __future__ import annotations

import difflib
import functools
import importlib
import pkgutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal, Protocol

import polars as pl

from rankloom.data import schema
from rankloom.data.mapping import Mapped
from rankloom.errors import RankloomError

SHOP_COLUMNS: Final = tuple(
    dict.fromkeys((*schema.ITEM_REQUIRED, *schema.ITEM_OPTIONAL, *schema.EVENT_REQUIRED, *schema.EVENT_OPTIONAL))
)


@dataclass
class Job:
    """One import: what was asked, and what is to be told.

    Attributes:
        source: the folder or file.
        mapping: the user's `--map`, shop column to source column.
        encoding: of text files; None detects it.
        notices: what was assumed or repaired.
        warnings: what a person should look at: columns and files that nothing was made of, rows without a kind.
        mapped: per file what became what.
        kinds: the user's `--map-event`, a word of the log in lower case to an event kind.
        dropped: the user's `--drop-event`, words in lower case; how many events of each were left out.
        files: the user's `--items` and `--events`, by the shop's table.
        discover: whether the source's other files are looked at.
        command: what the user wrote, for suggestions; empty in Python.
        agreed: asked once the mapping is decided, before rows are read; raises where it is not agreed to.
    """

    source: Path
    mapping: Mapping[str, str] = field(default_factory=dict)
    encoding: str | None = None
    notices: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    mapped: dict[str, list[Mapped]] = field(default_factory=dict)
    kinds: Mapping[str, str] = field(default_factory=dict)
    dropped: dict[str, int] = field(default_factory=dict)
    files: Mapping[str, Path] = field(default_factory=dict)
    discover: bool = True
    command: Sequence[str] = ()
    agreed: Callable[[], None] | None = None

    def confirm(self) -> None:
        """Shows the mapping to whoever is to agree, once."""
        ask, self.agreed = self.agreed, None
        if ask is not None:
            ask()

    def allow(self, *columns: str, empty: bool = False) -> None:
        """Refuses a `--map` of any other shop column: this format knows where they are.

        Args:
            empty: whether `--map shop_column=` may leave a column out.
        """
        for shop, source in self.mapping.items():
            if shop in columns and (source or empty):
                continue
            if shop not in SHOP_COLUMNS:
                close = difflib.get_close_matches(shop, SHOP_COLUMNS, n=1)
                raise RankloomError(
                    f"--map {shop}={source}: there is no shop column {shop!r}", place="--map",
                    action=f"did you mean {close[0]}={source}?" if close else f"shop columns: {', '.join(SHOP_COLUMNS)}",
                    code="mapping-unknown",
                )  # fmt: skip
            allowed = f"only {', '.join(columns)} can be mapped" if columns else "nothing can be mapped"
            raise RankloomError(
                f"--map {shop}={source}: this format has fixed columns", place="--map",
                action=f"leave it out ({allowed}), or import as csv, jsonl or parquet", code="mapping-fixed",
            )  # fmt: skip

    def folder(self, expects: str) -> Path:
        """The source as a folder."""
        if not self.source.is_dir():
            raise RankloomError(
                f"{self.source} is a file, a folder is needed", place=str(self.source), action=f"give {expects}",
                code="source-is-file",
            )  # fmt: skip
        return self.source

    def missing(self, what: str, expects: str) -> RankloomError:
        """The error of a source that lacks a file; says what lies there."""
        there = sorted(path.name for path in self.source.iterdir())[:8] if self.source.is_dir() else []
        seen = f"; there are {', '.join(there)}" if there else ""
        return RankloomError(
            f"the folder lacks {what}{seen}", place=str(self.source), action=f"give {expects}", code="source-missing"
        )


@dataclass(frozen=True)
class Tables:
    """What an importer hands over.

    Attributes:
        items: the catalogue, finished.
        events: makes an iterator over batches of events with the shop's columns, in the source's order; it may be
            called more than once. None: the source has no log at all.
        users: one row a person, with `user_id` and any features.
        campaigns: with the shop's columns.
        clock: `time`, or `order` where the timestamps only say an order.
    """

    items: pl.DataFrame
    events: Callable[[], Iterator[pl.DataFrame]] | None
    users: pl.DataFrame | None = None
    campaigns: pl.DataFrame | None = None
    clock: Literal["time", "order"] = "time"


class Importer(Protocol):
    """A format.

    Attributes:
        name: as on the command line.
        expects: what the source must be, as a noun phrase.
    """

    @property
    def name(self) -> str: ...

    @property
    def expects(self) -> str: ...

    def read(self, job: Job) -> Tables:
        """Opens the source; events are read later, when they are iterated.

        Raises:
            RankloomError: the source is not of this format, or broken.
        """
        ...


@functools.cache
def importers() -> dict[str, Importer]:
    """All importers by name."""
    found: dict[str, Importer] = {}
    for module in pkgutil.iter_modules(__path__):
        own = importlib.import_module(f"{__name__}.{module.name}")
        for importer in getattr(own, "IMPORTERS", ()):
            found[importer.name] = importer
    return dict(sorted(found.items()))
