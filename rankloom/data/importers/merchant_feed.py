"""`merchant-feed`: a Google Merchant product feed (RSS 2.0 or Atom with the `g:` namespace, or tab-separated).

A feed is a catalogue. The log lies beside it: `events.csv` (`.tsv`, `.jsonl`, `.parquet`), or a GA4 export. Without
one the shop has no events yet, and that is said: such a shop gives a trained model its new items.

The XML is read as a stream; entities are never expanded.
"""

from __future__ import annotations

import html
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from xml.parsers import expat

import polars as pl

from rankloom.data import catalogue, schema
from rankloom.data.casting import Caster, category_path, price_micros
from rankloom.data.importers import SHOP_COLUMNS, Importer, Job, Tables
from rankloom.data.importers.tables import EventLog, find_log
from rankloom.data.mapping import UnmappedError, check_explicit
from rankloom.data.reading import TableFile, Utf8Stream, detect_encoding, require_file
from rankloom.errors import RankloomError

_XML: Final = (".xml", ".rss", ".atom", ".xml.gz")
_TABLE: Final = (".tsv", ".txt", ".csv", ".tsv.gz", ".txt.gz", ".csv.gz")
_ATTRIBUTES: Final = (
    "color", "size", "material", "pattern", "gender", "age_group", "condition", "item_group_id", "gtin", "mpn",
    "sale_price", "custom_label_0", "custom_label_1", "custom_label_2", "custom_label_3", "custom_label_4",
)  # fmt: skip
_CHUNK: Final = 1 << 16


@dataclass(frozen=True)
class Product:
    """One product of a feed: its fields without prefix, and the line it begins at."""

    fields: dict[str, list[str]]
    line: int

    def first(self, *names: str) -> str | None:
        return next((self.fields[name][0] for name in names if self.fields.get(name)), None)


class _Products:
    """Collects products while the parser runs."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.done: list[Product] = []
        self.parser = expat.ParserCreate("utf-8", "}")
        self.parser.buffer_text = True
        self.parser.StartElementHandler = self._start
        self.parser.EndElementHandler = self._end
        self.parser.CharacterDataHandler = self._data
        self.parser.EntityDeclHandler = self._entity
        self._fields: dict[str, list[str]] | None = None
        self._line = 0
        self._open: list[str] = []
        self._text: list[str] = []
        self._detail: dict[str, str] = {}

    def take(self) -> list[Product]:
        done, self.done = self.done, []
        return done

    def _entity(self, *_: object) -> None:
        raise RankloomError(
            "the feed declares XML entities, which are not expanded",
            place=f"{self.path}, line {self.parser.CurrentLineNumber:,}",
            action="export the feed without a DOCTYPE",
            code="xml-entities",
        )

    def _start(self, tag: str, attributes: dict[str, str]) -> None:
        name = _name(tag)
        if self._fields is None:
            if name in ("item", "entry"):
                self._fields, self._open, self._line = {}, [], self.parser.CurrentLineNumber
            return
        self._open.append(name)
        self._text = []
        if name == "link" and attributes.get("href"):
            self._fields.setdefault("link", []).append(attributes["href"])

    def _data(self, data: str) -> None:
        if self._open:
            self._text.append(data)

    def _end(self, tag: str) -> None:
        if self._fields is None:
            return
        if not self._open:
            self.done.append(Product(self._fields, self._line))
            self._fields = None
            return
        name = self._open.pop()
        text = "".join(self._text).strip()
        self._text = []
        if self._open and self._open[0] == "product_detail":
            self._detail[name] = text
        elif name == "product_detail":
            key, value = self._detail.get("attribute_name"), self._detail.get("attribute_value")
            if key and value:
                self._fields.setdefault(name, []).append(f"{key}\x1f{value}")
            self._detail = {}
        elif text and not self._open:
            self._fields.setdefault(name, []).append(text)


def _name(tag: str) -> str:
    return tag.rsplit("}", 1)[-1].lower()


def read_xml(path: Path, job: Job) -> Iterator[Product]:
    """The products of an RSS or Atom feed.

    Raises:
        RankloomError: the XML is broken or declares entities; says the line.
    """
    require_file(path)
    encoding = job.encoding or detect_encoding(path, job.notices)
    found = _Products(path)
    count, begun = 0, False
    with Utf8Stream(path, encoding, progress=True) as stream:
        try:
            while chunk := stream.read(_CHUNK):
                found.parser.Parse(chunk if begun else chunk.lstrip(), False)
                begun = True
                products = found.take()
                count += len(products)
                yield from products
            found.parser.Parse(b"", True)
        except expat.ExpatError as error:
            raise RankloomError(
                f"the XML is broken: {expat.errors.messages[error.code]}",
                place=f"{path}, line {error.lineno:,}, column {error.offset + 1:,}",
                action="export the feed again; & must be written &amp;",
                code="xml-broken",
            ) from None
    if not count:
        raise RankloomError(
            "the XML holds no <item> or <entry>", place=str(path),
            action="is this a product feed? give RSS 2.0 or Atom with the g: namespace", code="feed-empty",
        )  # fmt: skip


def read_table(path: Path, job: Job) -> Iterator[Product]:
    """The products of a tab- or comma-separated feed; headers may have spaces or underscores."""
    file = TableFile(path, "csv", job.encoding, notices=job.notices)
    names = {name: re.sub(r"[\s\-]+", "_", name.strip().lower()).removeprefix("g:") for name in file.columns()}
    if "id" not in names.values() and "item_id" not in job.mapping:
        raise RankloomError(
            f"the feed has no column id; it has {', '.join(map(repr, names))}", place=file.place(1),
            action="give a product feed, or say the column: --map item_id=COLUMN", code="column-missing",
        )  # fmt: skip
    for batch in file.batches():
        for number, row in zip(batch.numbers, batch.frame.rename(names).to_dicts(), strict=True):
            yield Product({name: [value.strip()] for name, value in row.items() if value and value.strip()}, number)


def read_catalogue(path: Path, job: Job) -> pl.DataFrame:
    """A feed as the shop's items.

    Raises:
        RankloomError: the feed is broken, a product has no id or an unreadable price, or one id has two products.
    """
    xml = path.name.lower().endswith(_XML) or _is_xml(path)
    wanted: dict[str, Any] = {
        "item_id": pl.String(), "title": pl.String(), "description": pl.String(), "brand": pl.String(),
        "path": pl.String(), "price": pl.String(), "availability": pl.String(), "image_url": pl.String(),
        "attributes": schema.ITEM_OPTIONAL["attributes"], "__row": pl.Int64(),
    }  # fmt: skip
    rows: list[dict[str, Any]] = []
    frames: list[pl.DataFrame] = []
    for product in read_xml(path, job) if xml else read_table(path, job):
        rows.append(_row(product, path, job))
        if len(rows) >= 20_000:
            frames.append(pl.DataFrame(rows, schema=wanted))
            rows = []
    frames.append(pl.DataFrame(rows, schema=wanted))
    items = pl.concat(frames)
    if not items.height:
        raise RankloomError(f"{path.name} has no products", place=str(path), action="export it again", code="file-empty")
    items = items.with_columns(
        price_micros("price", pl.String()).alias("price_micros"),
        pl.col("price").str.extract(r"\b([A-Z]{3})\b", 1).alias("currency"),
        category_path("path", pl.String()).alias("category"),
        pl.col("availability").str.to_lowercase().str.replace_all("_", " ").replace_strict(
            {"in stock": True, "preorder": True, "backorder": True, "available for order": True, "out of stock": False, "sold out": False},
            default=None, return_dtype=pl.Boolean,
        ).alias("in_stock"),
    )  # fmt: skip
    bad = (items["price"].is_not_null() & items["price_micros"].is_null()).arg_true()
    if len(bad):
        row = int(bad[0])
        raise RankloomError(
            f"the price {items['price'][row]!r} cannot be read ({len(bad):,} such products)",
            place=f"{path}, line {items['__row'][row]:,}, price", action="write it as 12.50 USD", code="value-unreadable",
        )  # fmt: skip
    return catalogue.finish(items, TableFile(path, "jsonl" if xml else "csv"), job.notices)


def _is_xml(path: Path) -> bool:
    require_file(path)
    with open(path, "rb") as raw:
        return raw.read(256).lstrip(b"\xef\xbb\xbf \r\n\t").startswith(b"<")


def _row(product: Product, path: Path, job: Job) -> dict[str, Any]:
    def source(shop: str, *usual: str) -> tuple[str, ...]:
        return (job.mapping[shop].removeprefix("g:"),) if shop in job.mapping else usual

    item = product.first(*source("item_id", "id"))
    if item is None:
        raise RankloomError(
            "a product has no id", place=f"{path}, line {product.line:,}", action="give every product its g:id",
            code="item-id-missing",
        )  # fmt: skip
    attributes = [{"key": name, "value": product.fields[name][0]} for name in _ATTRIBUTES if product.fields.get(name)]
    for detail in product.fields.get("product_detail", []):
        key, separator, value = detail.partition("\x1f")
        if separator:
            attributes.append({"key": key, "value": value})
    category = product.first("google_product_category")
    return {
        "item_id": item,
        "title": product.first(*source("title", "title", "structured_title")),
        "description": _plain(product.first(*source("description", "description", "summary", "content"))),
        "brand": product.first(*source("brand", "brand")),
        # Google's numbers say nothing without its taxonomy
        "path": product.first(*source("category", "product_type")) or (None if category is None or category.isdigit() else category),
        "price": product.first(*source("price_micros", "price")),
        "availability": product.first("availability"),
        "image_url": product.first("image_link"),
        "attributes": attributes or None,
        "__row": product.line,
    }  # fmt: skip


def _plain(text: str | None) -> str | None:
    if text is None:
        return None
    return re.sub(r"\s+", " ", re.sub(r"<[^<>]{1,400}>", " ", html.unescape(text))).strip() or None


def find_feed(folder: Path) -> Path | None:
    """The one feed of a folder: an XML file, else a table that is not the log.

    Raises:
        RankloomError: several.
    """
    files = sorted(path for path in folder.iterdir() if path.is_file())
    feeds = [path for path in files if path.name.lower().endswith(_XML)]
    feeds = feeds or [
        path for path in files if path.name.lower().endswith(_TABLE) and not path.name.lower().startswith("events")
    ]  # fmt: skip
    if len(feeds) > 1:
        raise RankloomError(
            f"the folder holds several feeds: {', '.join(path.name for path in feeds[:4])}", place=str(folder),
            action="leave one there", code="feed-ambiguous",
        )  # fmt: skip
    return feeds[0] if feeds else None


class MerchantFeedImporter:
    name = "merchant-feed"
    expects = "a product feed (.xml, .tsv or .txt), or a folder with one and a log: events.csv (.jsonl, .parquet) or a GA4 export"

    def read(self, job: Job) -> Tables:
        from rankloom.data.importers.ga4 import Ga4Log, find_exports

        feed = job.source if job.source.is_file() else find_feed(job.source)
        if feed is None:
            raise job.missing("a product feed (.xml, .tsv or .txt)", self.expects)
        log = None if job.source.is_file() else find_log(job.source, job)
        exports = [] if job.source.is_file() or log is not None else [p for p in find_exports(job.source) if p != feed]
        if log is None:
            job.allow("item_id", "title", "description", "brand", "category", "price_micros", "user_id")
        else:
            job.allow(*SHOP_COLUMNS, empty=True)
            of_log = {shop: name for shop, name in job.mapping.items() if shop not in schema.ITEM_REQUIRED and shop not in schema.ITEM_OPTIONAL}
            check_explicit(of_log, set(log.columns()), place=log.place())
        items = read_catalogue(feed, job)
        if log is not None:
            of_log = {own: name for own, name in job.mapping.items() if own != "title"}
            try:
                caster = Caster(log, schema.EVENTS, of_log, kinds=job.kinds, other=lambda: items.select("item_id"))
            except UnmappedError as error:
                raise UnmappedError(
                    error.message, place=str(error.place), flags=error.flags, code=error.code, command=job.command
                ) from None
            job.mapped[log.path.name] = caster.shown()
            unused = caster.unused()
            if unused:
                job.warnings.append(unused)
            return Tables(items=items, events=EventLog(caster, job))
        if exports:
            return Tables(items=items, events=Ga4Log(exports, job))
        job.notices.append(
            "a feed is a catalogue: the shop has no events yet. Put events.csv or a GA4 export beside the feed and import the folder"
        )
        return Tables(items=items, events=None)


IMPORTERS: Final[tuple[Importer, ...]] = (MerchantFeedImporter(),)
