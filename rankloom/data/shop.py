"""The shop: a folder of Parquet tables that everything reads and writes.

`Shop.open` is cheap (it reads file footers); tables are lazy frames, so nothing larger than what is asked for is loaded.
Writing goes through `write_shop` (small tables in memory) or through the importers' streaming writer.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import polars as pl

from rankloom.data import schema
from rankloom.errors import RankloomError
from rankloom.files import atomic_folder, read_json, write_json


@dataclass(frozen=True)
class Shop:
    """An opened shop folder.

    Attributes:
        path: the folder.
        origin: the content of `shop.json`: importer, version, counts, what was said at import.
    """

    path: Path
    origin: dict[str, object]

    @classmethod
    def open(cls, path: str | Path) -> Shop:
        """Opens a shop folder. Raises `RankloomError` when it is not one."""
        path = Path(path)
        if not path.is_dir():
            raise RankloomError(
                f"no shop folder {path}",
                place=str(path),
                action="import one with `rankloom import`, or check the path",
                code="shop-missing",
            )
        for name, required in ((schema.ITEMS, schema.ITEM_REQUIRED), (schema.EVENTS, schema.EVENT_REQUIRED)):
            if not (path / name).is_file():
                raise RankloomError(
                    f"the shop {path} has no {name}",
                    place=str(path / name),
                    action="import the data again with `rankloom import`",
                    code="shop-incomplete",
                )
            try:
                columns = pl.scan_parquet(path / name).collect_schema()
            except Exception as error:
                raise RankloomError(
                    f"{name} is not readable Parquet: {error}",
                    place=str(path / name),
                    action="import the data again",
                    code="parquet-broken",
                ) from None
            missing = [column for column in required if column not in columns]
            if missing:
                raise RankloomError(
                    f"{name} lacks the column {', '.join(missing)}",
                    place=str(path / name),
                    action="run `rankloom validate` on the shop",
                    code="column-missing",
                )
        origin = read_json(path / "shop.json") if (path / "shop.json").exists() else {}
        return cls(path=path, origin=origin)

    def scan(self, table: str) -> pl.LazyFrame:
        """A lazy frame of `items.parquet`, `events.parquet`, `users.parquet` or `campaigns.parquet`."""
        return pl.scan_parquet(self.path / table)

    def has(self, table: str) -> bool:
        return (self.path / table).is_file()

    def items(self) -> pl.DataFrame:
        """The catalogue in file order; row number = item index everywhere in the code."""
        return pl.read_parquet(self.path / schema.ITEMS)

    def users(self) -> pl.DataFrame | None:
        return pl.read_parquet(self.path / schema.USERS) if self.has(schema.USERS) else None

    def campaigns(self) -> pl.DataFrame | None:
        return pl.read_parquet(self.path / schema.CAMPAIGNS) if self.has(schema.CAMPAIGNS) else None


def write_shop(
    path: str | Path,
    *,
    items: pl.DataFrame,
    events: pl.DataFrame,
    users: pl.DataFrame | None = None,
    campaigns: pl.DataFrame | None = None,
    origin: dict[str, object] | None = None,
    overwrite: bool = False,
) -> Shop:
    """Writes tables that already have the shop's columns as one atomic folder, and opens it."""
    tables = {schema.ITEMS: items, schema.EVENTS: events, schema.USERS: users, schema.CAMPAIGNS: campaigns}
    with atomic_folder(path, overwrite=overwrite, marker="shop.json") as folder:
        counts: dict[str, int] = {}
        for name, table in tables.items():
            if table is not None:
                table.write_parquet(folder / name, compression="zstd")
                counts[name.removesuffix(".parquet")] = table.height
        write_json(folder / "shop.json", {"schema_version": 1, "rows": counts, **(origin or {})})
    return Shop.open(path)
