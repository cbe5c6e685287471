"""`ga4`: Google Analytics 4, as its BigQuery export (JSON lines or Parquet) or as flat CSV with one row an item.

Names of events become the shop's kinds; events of other names carry no item and are counted, not taken. An event with
several items becomes one event each. The person is `user_id` where it is set, else `user_pseudo_id`; rows with neither
(no consent) are counted and left out. Purchases that are delivered twice (one `transaction_id`, one item) are dropped.
The catalogue is what the log says about its items, or a product feed or `items.csv` beside it.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import polars as pl

from rankloom.data import catalogue, schema
from rankloom.data.casting import Caster, TimeReader
from rankloom.data.importers import Importer, Job, Tables
from rankloom.data.reading import TableFile, find_table, json_lines
from rankloom.errors import RankloomError

KINDS: Final[dict[str, str]] = {
    "view_item_list": "impression", "view_promotion": "impression", "select_item": "click", "select_promotion": "click",
    "select_content": "click", "view_item": "view", "add_to_wishlist": "like", "share": "share",
    "add_to_cart": "add_to_cart", "purchase": "purchase", "ecommerce_purchase": "purchase", "in_app_purchase": "purchase",
    "search": "search", "view_search_results": "search",
}  # fmt: skip
_JSON: Final = (".json", ".jsonl", ".ndjson", ".json.gz", ".jsonl.gz", ".ndjson.gz")
_CSV: Final = (".csv", ".csv.gz", ".tsv")
_NOT_SET: Final = (None, "", "(not set)", "(other)")
_CATEGORIES: Final = ("item_category", "item_category2", "item_category3", "item_category4", "item_category5")
_ITEM_FIELDS: Final = (
    "item_id", "item_name", "item_brand", "item_variant", *_CATEGORIES, "price", "quantity", "item_list_name", "item_list_index",
)  # fmt: skip
_EVENT: Final[dict[str, Any]] = {
    "user_id": pl.String(), "item_id": pl.String(), "time": pl.Int64(), "event": pl.String(), "value": pl.Float64(),
    "surface": pl.String(), "query": pl.String(), "position": pl.Int32(), "event_id": pl.String(),
}  # fmt: skip
_ITEM: Final[dict[str, Any]] = {
    "item_id": pl.String(), "title": pl.String(), "brand": pl.String(), "category": pl.List(pl.String()),
    "price_micros": pl.Int64(), "currency": pl.String(),
}  # fmt: skip


@dataclass(frozen=True)
class Hit:
    """One event of GA4, flat: fields of the event, its parameters, its items."""

    fields: dict[str, Any]
    parameters: dict[str, Any]
    items: list[dict[str, Any]]
    place: str


@dataclass
class Ga4Log:
    """The log of one or several exported files.

    Raises:
        RankloomError: while reading: a row without name or time.
    """

    paths: Sequence[Path]
    job: Job
    told: bool = False
    skipped: Counter[str] = field(default_factory=Counter)
    lost: Counter[str] = field(default_factory=Counter)

    def __call__(self) -> Iterator[pl.DataFrame]:
        for events, _ in self.both():
            yield events

    def catalogue(self) -> pl.DataFrame:
        """What the log says about its items; the latest word counts."""
        items = catalogue.merge((items for _, items in self.both(tell=False)), keep_last=True)
        return pl.DataFrame(schema=_ITEM) if items is None else items

    def both(self, *, tell: bool = True) -> Iterator[tuple[pl.DataFrame, pl.DataFrame]]:
        """Batches of events and of what they say about items."""
        self.skipped, self.lost = Counter(), Counter()
        if tell:
            self.job.dropped.update(dict.fromkeys(self.job.dropped, 0))
        bought: set[str] = set()
        for path in self.paths:
            clock = TimeReader("event_timestamp", place=path.name, notices=[] if self.told else self.job.notices)
            for hits in read_hits(path, self.job):
                events: list[dict[str, Any]] = []
                items: list[dict[str, Any]] = []
                for hit in hits:
                    self._take(hit, events, items, bought, tell=tell)
                frame = pl.DataFrame(events, schema={**_EVENT, "place": pl.String})
                places = frame["place"]
                times = clock(frame["time"], lambda row, own=places: f"{own[row]}, column event_timestamp")  # type: ignore[misc]
                yield frame.drop("time", "place").with_columns(times.alias("timestamp")), pl.DataFrame(items, schema=_ITEM)
        if tell and not self.told:
            self.told = True
            self._tell()

    def _take(
        self, hit: Hit, events: list[dict[str, Any]], items: list[dict[str, Any]], bought: set[str], *, tell: bool
    ) -> None:  # fmt: skip
        for item in hit.items:
            known = self._item(item, hit)
            if known is not None:
                items.append(known)
        name = str(hit.fields.get("event_name") or "")
        if not name:
            raise RankloomError(
                "a row has no event_name", place=hit.place, action="is this a GA4 export? give the events_* tables",
                code="column-missing",
            )  # fmt: skip
        word = name.strip().lower()
        if word in self.job.dropped:
            self.job.dropped[word] += tell
            return
        kind = self.job.kinds.get(word) or KINDS.get(name)
        if kind is None:
            self.skipped[name] += 1
            return
        user = self._user(hit)
        if user is None:
            self.lost["without user_id and user_pseudo_id (no consent)"] += 1
            return
        query = _text(hit.parameters.get("search_term") or hit.fields.get("search_term"))
        base = {
            "user_id": user, "time": _time(hit), "event": kind, "query": query, "item_id": None, "value": None,
            "position": None, "event_id": None, "place": hit.place, "surface": "feed" if query is None else "search",
        }  # fmt: skip
        if kind == "search":
            if query is None:
                self.lost["searches without search_term"] += 1
                return
            events.append(base)
            return
        named = hit.items
        if not named and name in ("select_content", "share"):
            content = hit.parameters.get("item_id") or hit.parameters.get("content_id")
            named = [{"item_id": content}] if content not in _NOT_SET else []
        if not named:
            self.lost[f"{name} without items"] += 1
        for item in named:
            own = self._id(item)
            if own is None:
                self.lost["items without item_id"] += 1
                continue
            event = {**base, "item_id": own, "position": _position(item)}
            where = str(item.get("item_list_name") or hit.parameters.get("item_list_name") or "").lower()
            if "search" in where or "搜索" in where:
                event["surface"] = "search"
            if kind in ("purchase", "add_to_cart"):
                price, quantity = _number(item.get("price")), _number(item.get("quantity"))
                event["value"] = None if price is None else price * (quantity or 1.0)
            if kind == "purchase":
                order = hit.fields.get("transaction_id") or hit.parameters.get("transaction_id")
                if order not in _NOT_SET:
                    event["event_id"] = f"{order}:{own}"
                    key = f"{user}\x1f{event['event_id']}"
                    if key in bought:
                        self.lost["purchases delivered twice"] += 1
                        continue
                    bought.add(key)
            events.append(event)

    def _user(self, hit: Hit) -> str | None:
        names = [self.job.mapping["user_id"]] if "user_id" in self.job.mapping else ["user_id", "user_pseudo_id"]
        value = next((hit.fields[name] for name in names if hit.fields.get(name) not in _NOT_SET), None)
        return None if value is None else str(value)

    def _id(self, item: dict[str, Any]) -> str | None:
        value = item.get(self.job.mapping.get("item_id", "item_id"))
        return None if value in _NOT_SET else str(value).strip()

    def _item(self, item: dict[str, Any], hit: Hit) -> dict[str, Any] | None:
        own = self._id(item)
        if own is None:
            return None
        path = [str(item[name]) for name in _CATEGORIES if item.get(name) not in _NOT_SET]
        if len(path) == 1:
            path = [part.strip() for part in re.split(r"[>|/]", path[0]) if part.strip()]
        price = _number(item.get("price"))
        currency = hit.parameters.get("currency") or hit.fields.get("currency")
        return {
            "item_id": own,
            "title": _text(item.get(self.job.mapping.get("title", "item_name"))),
            "brand": _text(item.get(self.job.mapping.get("brand", "item_brand"))),
            "category": path or None,
            "price_micros": None if price is None else round(price * 1e6),
            "currency": _text(currency) if price is not None else None,
        }

    def _tell(self) -> None:
        if self.skipped:
            names = ", ".join(f"{name} {count:,}" for name, count in self.skipped.most_common(5))
            self.job.notices.append(
                f"{sum(self.skipped.values()):,} events of other names are not taken ({names}); --map-event NAME=KIND takes them"
            )
        for what, count in self.lost.most_common():
            self.job.notices.append(f"left out: {count:,} {what}")


def _text(value: Any) -> str | None:
    return None if value in _NOT_SET else str(value).strip() or None


def _number(value: Any) -> float | None:
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if number == number and abs(number) < 1e12 else None


def _position(item: dict[str, Any]) -> int | None:
    number = _number(item.get("item_list_index", item.get("index")))
    return int(number) if number is not None and 0 <= number < 2**31 else None


def _time(hit: Hit) -> int:
    value = hit.fields.get("event_timestamp")
    try:
        if value is None or isinstance(value, bool):
            raise ValueError
        micros = int(value)
        if abs(micros) >= 2**62:
            raise ValueError
        return micros
    except (TypeError, ValueError, OverflowError):
        raise RankloomError(
            "a row has no event_timestamp" if value in _NOT_SET else f"the event_timestamp {value!r} is no number",
            place=hit.place,
            action="export event_timestamp (microseconds since 1970), as the events_* tables have it",
            code="timestamp-missing",
        ) from None


def read_hits(path: Path, job: Job) -> Iterator[list[Hit]]:
    """Batches of events of one exported file."""
    name = path.name.lower()
    if name.endswith(_CSV):
        yield from _flat(TableFile(path, "csv", job.encoding, notices=job.notices), job)
    elif name.endswith(".parquet"):
        file = TableFile(path, "parquet")
        _require(file.columns(), file)
        for batch in file.batches():
            rows = batch.frame.to_dicts()
            yield [_nested(row, file.place(number)) for number, row in zip(batch.numbers, rows, strict=True)]
    else:
        for lines in json_lines(path, encoding=job.encoding, notices=job.notices, progress=True):
            yield [_nested(row, f"{path}, line {number:,}") for number, row in lines]


def _nested(row: dict[str, Any], place: str) -> Hit:
    parameters = {}
    for own in row.get("event_params") or []:
        if isinstance(own, dict) and isinstance(own.get("value"), dict):
            value = next((v for v in own["value"].values() if v is not None), None)
            parameters[str(own.get("key"))] = value
    commerce = row.get("ecommerce")
    if isinstance(commerce, dict):
        row = {**row, "transaction_id": commerce.get("transaction_id")}
    items = row.get("items") or []
    if not isinstance(items, list) or any(not isinstance(own, dict) for own in items):
        raise RankloomError(
            "items is no list of objects", place=place, action="export the events_* tables as they are",
            code="value-unreadable",
        )  # fmt: skip
    return Hit(row, parameters, items, place)


def _flat(file: TableFile, job: Job) -> Iterator[list[Hit]]:
    """Rows with one item each: columns named as in BigQuery, with or without `items.`, `event_params.`."""
    names = {name: _bare(name) for name in file.columns()}
    _require(list(names.values()), file)
    twice = [name for name, count in Counter(names.values()).items() if count > 1]
    if twice:
        raise RankloomError(
            f"several columns could be {', '.join(twice)}", place=file.place(1), action="leave one of each",
            code="mapping-ambiguous",
        )  # fmt: skip
    for batch in file.batches():
        hits = []
        for number, row in zip(batch.numbers, batch.frame.rename(names).to_dicts(), strict=True):
            item = {name: row[name] for name in (*_ITEM_FIELDS, *job.mapping.values()) if row.get(name) is not None}
            items = [item] if item.get(job.mapping.get("item_id", "item_id")) is not None else []
            hits.append(Hit(row, row, items, file.place(number)))
        yield hits


def _bare(name: str) -> str:
    bare = re.sub(r"[\s\-]+", "_", name.strip().lower())
    return re.sub(r"^(?:items?|event_params|params|ecommerce)(?:\.|__)", "", bare)


def _require(columns: Sequence[str], file: TableFile) -> None:
    absent = [name for name in ("event_name", "event_timestamp") if name not in columns]
    people = any(name in columns for name in ("user_pseudo_id", "user_id"))
    if absent or not people:
        raise RankloomError(
            f"{file.path.name} lacks the column {', '.join(absent or ['user_pseudo_id'])}; it has {', '.join(map(repr, columns[:8]))}",
            place=file.place(),
            action="give GA4's event export (the events_* tables), not a report of counts; or import it as csv",
            code="column-missing",
        )


def find_exports(folder: Path) -> list[Path]:
    """The exported files of a folder, in the order of their names (and so of their days)."""
    files = sorted(path for path in folder.iterdir() if path.is_file())
    beside = {"items.csv", "items.jsonl", "items.parquet"}
    wanted = [p for p in files if p.name.lower().endswith((*_JSON, *_CSV, ".parquet")) and p.name.lower() not in beside]
    named = [path for path in wanted if path.name.lower().startswith(("events", "ga4", "analytics", "bquxjob", "bq-results"))]
    return named or [path for path in wanted if path.name.lower().endswith((*_JSON, ".parquet"))]


class Ga4Importer:
    name = "ga4"
    expects = "a BigQuery export of events_* (.json or .jsonl, also .gz, or .parquet) or flat .csv: a file, or a folder of them"

    def read(self, job: Job) -> Tables:
        from rankloom.data.importers.merchant_feed import find_feed, read_catalogue

        job.allow("user_id", "item_id", "title", "brand")
        folder = job.source if job.source.is_dir() else None
        paths = [job.source] if folder is None else find_exports(folder)
        if not paths:
            raise job.missing("an export of events (events_*.json, .jsonl, .parquet or .csv)", self.expects)
        log = Ga4Log(paths, job)
        table = None if folder is None else find_table(folder, "items", ("csv", "jsonl", "parquet"))
        feed = None if folder is None or table is not None else next(iter(folder.glob("*.xml")), None)
        if table is not None:
            file = TableFile(table[0], table[1], job.encoding, notices=job.notices)
            caster = Caster(file, schema.ITEMS, {})
            job.mapped[file.path.name] = caster.mapped
            items = catalogue.finish(catalogue.read_items(caster), file, job.notices)
        elif feed is not None and folder is not None:
            items = read_catalogue(find_feed(folder) or feed, Job(job.source, {}, job.encoding, job.notices))
        else:
            items = catalogue.finish(log.catalogue(), "items of the log", job.notices)
            job.notices.append("the catalogue is what the log says about its items; the latest word counts")
        return Tables(items=items, events=log)


IMPORTERS: Final[tuple[Importer, ...]] = (Ga4Importer(),)
