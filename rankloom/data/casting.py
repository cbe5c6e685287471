"""Raw columns to the shop's types: ids, times, prices, categories, attributes, event names; batch by batch.

Every cast that fails on a value that is there is an error that names file, row, column and value.
"""

from __future__ import annotations

import json
import re
import shlex
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

import polars as pl

from rankloom.data import schema
from rankloom.data.mapping import Looks, Mapped, again, guess
from rankloom.data.reading import Batch, TableFile
from rankloom.errors import RankloomError

EVENT_ALIASES: Final[dict[str, str]] = {
    "view_item": "view", "product viewed": "view", "detail_view": "view", "pageview": "view", "page_view": "view", "pv": "view",
    "play": "view", "watch": "view", "watched": "view", "浏览": "view", "播放": "view",
    "select_item": "click", "product clicked": "click", "clk": "click", "点击": "click",
    "view_item_list": "impression", "product list viewed": "impression", "exposure": "impression", "show": "impression",
    "imp": "impression", "曝光": "impression",
    "cart": "add_to_cart", "addtocart": "add_to_cart", "add-to-cart": "add_to_cart", "product added": "add_to_cart",
    "basket": "add_to_cart", "加购": "add_to_cart",
    "buy": "purchase", "order": "purchase", "transaction": "purchase", "order completed": "purchase", "bought": "purchase",
    "rating": "purchase", "review": "purchase", "购买": "purchase", "下单": "purchase",
    "wishlist": "like", "merken": "like", "kauf": "purchase", "gekauft": "purchase", "bestellung": "purchase", "achat": "purchase",
    "kaufen": "purchase", "bestellt": "purchase", "achete": "purchase", "comprar": "purchase", "покупка": "purchase", "заказ": "purchase",
    "purchased": "purchase", "ordered": "purchase", "checkout": "purchase", "viewed": "view", "clicked": "click", "liked": "like",
    "angesehen": "view", "gesehen": "view", "klick": "click", "geklickt": "click", "clic": "click", "vue": "view", "vista": "view",
    "просмотр": "view", "клик": "click", "查看": "view", "加入购物车": "add_to_cart", "加购物车": "add_to_cart", "added_to_cart": "add_to_cart",
    "compra": "purchase", "ansicht": "view", "warenkorb": "add_to_cart", "panier": "add_to_cart", "carrito": "add_to_cart",
    "fav": "like", "favorite": "like", "favourite": "like", "add_to_wishlist": "like", "收藏": "like", "点赞": "like",
    "forward": "share", "转发": "share", "分享": "share", "评论": "comment", "关注": "follow",
    "view_promotion": "impression", "select_promotion": "click", "products searched": "search",
    "product added to wishlist": "like", "product shared": "share",
    "hate": "dislike", "block": "dislike", "不喜欢": "dislike", "view_search_results": "search", "搜索": "search",
}  # fmt: skip
# the same words however they are joined
_WORDS: Final[dict[str, str]] = {
    re.sub(r"[\s_-]+", joint, word): kind
    for word, kind in {**{kind: kind for kind in schema.EVENT_KINDS[1:]}, **EVENT_ALIASES}.items() for joint in ("", " ", "-", "_")
}  # fmt: skip
# (name, divisor to seconds, smallest and largest plausible value: the years 1990 to 2100)
_UNITS: Final = (
    ("s", 1, 6.3e8, 4.2e9),
    ("ms", 10**3, 6.3e11, 4.2e12),
    ("us", 10**6, 6.3e14, 4.2e15),
    ("ns", 10**9, 6.3e17, 4.2e18),
)
_DAYS: Final = "days written as YYYYMMDD"
_FORMATS: Final = (
    "%Y-%m-%d %H:%M:%S", "%Y-%m-%d %H:%M", "%Y-%m-%d", "%Y/%m/%d %H:%M:%S", "%Y/%m/%d %H:%M", "%Y/%m/%d",
    "%d-%b-%Y", "%Y%m%d",
)  # fmt: skip
_SCIENTIFIC: Final = r"^\d(\.\d+)?[eE]\+\d+$"
_IDS: Final = ("item_id", "user_id", "event_id", "request_id", "campaign_id")
_TIMES: Final = ("timestamp", "created_at", "start", "end")
_MONEY: Final = ("price_micros", "budget_micros", "target_cpa_micros")
_NUMBERS: Final = ("duration_s", "watch_s", "position", "value", "propensity")
_TYPES: Final[dict[str, Any]] = {
    **schema.ITEM_OPTIONAL, **schema.EVENT_OPTIONAL, **schema.ITEM_REQUIRED, **schema.EVENT_REQUIRED,
    **schema.CAMPAIGN_OPTIONAL, **schema.CAMPAIGN_REQUIRED,
}  # fmt: skip
_SAMPLE: Final = 1000
KIND_NAMES: Final = ", ".join(schema.EVENT_KINDS[1:])


class TimeReader:
    """One time column of one file: ISO text, dates, or epoch numbers whose unit is detected once, said, and kept to.

    Args:
        place: the file's name, for notices.
    """

    def __init__(self, column: str, *, place: str, notices: list[str]) -> None:
        self.column = column
        self.place = place
        self.notices = notices
        self.unit: str | None = None
        self._format = _FORMATS[0]

    def __call__(self, series: pl.Series, where: Callable[[int], str] | None = None) -> pl.Series:
        """UTC microseconds; null where a value cannot be read.

        Args:
            where: the place of a row of `series`, for errors.

        Raises:
            RankloomError: values of several units, or numbers that are no time.
        """
        kind = series.dtype
        if isinstance(kind, pl.Datetime):
            times = series.dt.cast_time_unit("us")
            return times.dt.convert_time_zone("UTC") if kind.time_zone else times.dt.replace_time_zone("UTC")
        if kind == pl.Date:
            return series.cast(pl.Datetime("us")).dt.replace_time_zone("UTC")
        if series.null_count() == len(series):
            return pl.Series(series.name, [None] * len(series), dtype=schema.TIME)
        if kind == pl.String:
            series = series.str.strip_chars()
        number = series.cast(pl.Float64, strict=False)
        counts = {unit: int(number.is_between(low, high).sum()) for unit, _, low, high in _UNITS}
        counts[_DAYS] = int((number.is_between(19_900_101, 21_001_231) & (number == number.floor())).sum())
        found = [unit for unit, count in counts.items() if count]
        written = int((series.is_not_null() & number.is_null()).sum())
        if not found and (self.unit == "text" or (self.unit is None and written)):
            return self._written(series)
        if len(found) > 1 or (found and self.unit is not None and found[0] != self.unit):
            rarest = min(found, key=lambda unit: counts[unit])
            low, high = next(((low, high) for unit, _, low, high in _UNITS if unit == rarest), (19_900_101, 21_001_231))
            said = [self.unit] if self.unit is not None and self.unit not in found else []
            listed = ", ".join([f"{own} before" for own in said] + [f"{counts[unit]:,} in {unit}" for unit in found])
            raise RankloomError(
                f"the clock of column {self.column!r} is mixed: {listed}",
                place=self._place(where, number.is_between(low, high)),
                action="convert the column to one unit before the import",
                code="clock-mixed",
            )
        if self.unit is None and not found:
            raise RankloomError(
                f"the numbers of column {self.column!r} are no times between 1990 and 2100 in s, ms, us or ns",
                place=self._place(where, number.is_not_null()),
                action="map another column: --map timestamp=COLUMN, or write ISO times",
                code="clock-unknown",
            )
        if self.unit is None:
            self.unit = found[0]
            if self.unit == _DAYS:
                self.notices.append(f"{self.place}: times of {self.column!r} read as {_DAYS}, in UTC")
            else:
                self.notices.append(f"{self.place}: times of {self.column!r} read as {self.unit} since 1970")
        if self.unit == _DAYS:
            return self._written(number.cast(pl.Int64, strict=False).cast(pl.String))
        divisor = next((own for unit, own, _, _ in _UNITS if unit == self.unit), 1)
        exact = number if kind in (pl.Float32, pl.Float64) else series.cast(pl.Int64, strict=False)
        if kind == pl.String:
            exact = exact.cast(pl.Float64).fill_null(number) if exact.null_count() > series.null_count() else exact
        micros = exact // (divisor // 10**6) if divisor > 10**6 else exact * (10**6 // divisor)
        return micros.cast(pl.Int64, strict=False).cast(pl.Datetime("us")).dt.replace_time_zone("UTC")

    def _place(self, where: Callable[[int], str] | None, rows: pl.Series) -> str:
        first = rows.fill_null(False).arg_max()
        return f"{self.place}, column {self.column}" if where is None else where(int(first or 0))

    def _written(self, series: pl.Series) -> pl.Series:
        frame = series.to_frame("text").lazy()
        offset = pl.col("text").str.extract_groups(r":\d{2}(?:\.\d+)?\s*([+-])(\d{2}):?(\d{2})$")
        minutes = (
            (offset.struct[1].cast(pl.Int64) * 60 + offset.struct[2].cast(pl.Int64))
            * pl.when(offset.struct[0] == "-").then(-1).otherwise(1)
        ).fill_null(0)  # fmt: skip
        zoned = pl.col("text").str.contains(r"(?:Z|UTC|:\d{2}(?:\.\d+)?\s*[+-]\d{2}:?\d{2})$")
        fraction = pl.col("text").str.extract(r":\d{2}\.(\d{1,6})", 1).str.pad_end(6, "0").cast(pl.Int64).fill_null(0)
        plain = (
            pl.col("text")
            .str.replace(r"\s*(?:Z|UTC)$", "")
            .str.replace(r"(:\d{2}(?:\.\d+)?)\s*[+-]\d{2}:?\d{2}$", "$1")
            .str.replace(r"(:\d{2})\.\d+$", "$1")
            .str.replace("T", " ", literal=True)
        )
        parts = frame.select(plain.alias("plain"), minutes.alias("minutes"), zoned.alias("zoned"), fraction.alias("us")).collect()
        formats = (self._format, *(own for own in _FORMATS if own != self._format))
        times = pl.Series("time", [None] * len(series), dtype=pl.Datetime("us"))
        missing = int(series.null_count())
        for own in formats:
            read = parts["plain"].str.to_datetime(own, time_unit="us", strict=False)
            if times.null_count() == len(times) and read.null_count() < len(read):
                self._format = own
            times = times.fill_null(read)
            if times.null_count() == missing:
                break
        micros = times.dt.timestamp("us") + parts["us"] - parts["minutes"] * 60_000_000
        if self.unit is None:
            self.unit = "text"
            if not parts["zoned"].all():
                self.notices.append(f"{self.place}: times of {self.column!r} without a zone read as UTC")
        return micros.cast(pl.Datetime("us")).dt.replace_time_zone("UTC").alias(series.name)


class Caster:
    """The batches of one source table as the shop's columns; the mapping is decided once, from the header.

    Args:
        table: the shop's table.
        explicit: the user's `--map`.
        mapping: a decided mapping instead of guessing.
        kinds: the user's `--map-event`, a word of the log in lower case to an event kind.
        other: of a log, the catalogue's ids as its only column; of a catalogue, rows of the log.

    Raises:
        UnmappedError: a column that is needed has no source or several.
    """

    def __init__(
        self,
        file: TableFile,
        table: str,
        explicit: Mapping[str, str],
        *,
        columns: Sequence[str] | None = None,
        mapping: list[Mapped] | None = None,
        kinds: Mapping[str, str] | None = None,
        other: Callable[[], pl.DataFrame] | None = None,
    ) -> None:
        self.file = file
        self.table = table
        own = list(columns) if columns is not None else file.columns()
        self.kinds = dict(kinds or {})
        self._first: pl.DataFrame | None = None
        looks = Looks(self.sample, {*_WORDS, *self.kinds}, is_time, is_price, other)
        self.mapped = mapping if mapping is not None else guess(table, own, explicit, place=str(file.path), looks=looks)
        self.sources = {each.shop: each.source for each in self.mapped}
        self.rest = [name for name in own if name not in self.sources.values()]
        self._times = {
            shop: TimeReader(source, place=file.path.name, notices=file.notices)
            for shop, source in self.sources.items()
            if shop in _TIMES
        }

    def __call__(self, batch: Batch) -> pl.DataFrame:
        """The mapped columns of a batch.

        Raises:
            RankloomError: a value that cannot be read, with its row.
        """
        absent = [source for source in self.sources.values() if source not in batch.frame.columns]
        raw = batch.frame.with_columns(pl.lit(None, dtype=pl.String).alias(name) for name in absent)
        cast = pl.DataFrame([self._column(shop, source, raw, batch) for shop, source in self.sources.items()])
        for shop, source in self.sources.items():
            if shop in (*_TIMES, *_MONEY, *_NUMBERS, "attributes", "in_stock"):
                self._refuse_unreadable(shop, raw[source], cast[shop], batch)
            elif shop in ("item_id", "user_id"):
                self._refuse_scientific(shop, cast[shop], source, batch)
        return cast

    def sample(self) -> pl.DataFrame:
        """The first rows of the file, as they are."""
        if self._first is None:
            self._first = first_rows(self.file)
        return self._first

    def shown(self) -> list[Mapped]:
        """The mapping, with a value of each column."""
        rows = self.sample()
        return [replace(own, example=_example(rows, own.source)) for own in self.mapped]

    def unused(self) -> str | None:
        """A sentence on the columns that nothing was made of; None when there are none."""
        if not self.rest:
            return None
        examples = [(name, _example(self.sample(), name)) for name in self.rest]
        told = [f"{name!r} (such as {example})" if example else repr(name) for name, example in examples]
        return f"{self.file.path.name}: columns not used: {', '.join(told)}; --map OURS={shlex.quote(self.rest[0])} says what one is"

    def place(self, batch: Batch, index: int, shop: str) -> str:
        """Where the value of a shop column at row `index` of a batch stands in the source."""
        return self.file.place(batch.numbers[index], self.sources.get(shop))

    def _column(self, shop: str, source: str, raw: pl.DataFrame, batch: Batch) -> pl.Series:
        if shop in self._times:
            return self._times[shop](raw[source], lambda row: self.place(batch, row, shop)).alias(shop)
        if shop == "attributes":
            return attributes(raw[source]).alias(shop)
        if shop == "event" and self.kinds:
            return raw.select(event_name(source, self.kinds).alias(shop)).to_series()
        return raw.select(cast_column(shop, source, raw.schema[source])).to_series()

    def _refuse_unreadable(self, shop: str, before: pl.Series, after: pl.Series, batch: Batch) -> None:
        if after.null_count() == before.null_count():
            return
        kept = before.is_not_null()
        if before.dtype == pl.String:
            kept &= ~before.str.strip_chars().str.to_lowercase().is_in(["", "nan", "none", "n/a"])
        elif before.dtype.is_float():
            kept &= before.is_not_nan()
        bad = (kept & after.is_null()).arg_true()
        if len(bad):
            row = int(bad[0])
            raise RankloomError(
                f"{before[row]!r} cannot be read as {shop} ({len(bad):,} such rows here)",
                place=self.place(batch, row, shop),
                action=f"mend the values, or map another column: --map {shop}=COLUMN",
                code="value-unreadable",
            )

    def _refuse_scientific(self, shop: str, ids: pl.Series, source: str, batch: Batch) -> None:
        bad = ids.str.contains(_SCIENTIFIC).fill_null(False).arg_true()
        if len(bad):
            raise RankloomError(
                f"the id {ids[int(bad[0])]!r} was rounded by a spreadsheet ({len(bad):,} such rows here): different ids became one",
                place=self.place(batch, int(bad[0]), shop),
                action=f"export the column {source!r} again as text",
                code="id-scientific",
            )


def first_rows(file: TableFile, n: int = _SAMPLE) -> pl.DataFrame:
    """The first rows of a file, as they are: at most `n`, and no more than a batch."""
    first = next(iter(file.batches()), None)
    return pl.DataFrame() if first is None else first.frame.head(n)


def _example(rows: pl.DataFrame, name: str) -> str:
    values = rows[name].drop_nulls() if name in rows.columns else pl.Series([], dtype=pl.String)
    return repr(str(values[0])[:40]) if len(values) else ""


def is_time(values: pl.Series) -> bool:
    """Whether all values are times, in one format."""
    if values.dtype.is_temporal():
        return True
    if values.dtype != pl.String and not values.dtype.is_integer():
        return False
    try:
        return TimeReader(values.name, place="", notices=[])(values).null_count() == 0
    except RankloomError:
        return False


def is_price(values: pl.Series) -> bool:
    """Whether all values read as prices; words are none, even with a number among them."""
    if values.dtype == pl.String:
        short = values.str.strip_chars().str.contains(r"^\D{0,5}\d[\d.,'\s]*\D{0,5}$")
        if not short.all():
            return False
    elif not values.dtype.is_numeric():
        return False
    return values.to_frame("price").select(price_micros("price", values.dtype)).to_series().null_count() == 0


def refuse_missing(frame: pl.DataFrame, column: str, caster: Caster, batch: Batch) -> None:
    """Refuses rows without a value that every row needs."""
    missing = frame[column].is_null().arg_true()
    if len(missing):
        thing = "items" if caster.table == schema.ITEMS else "events" if caster.table == schema.EVENTS else "rows"
        raise RankloomError(
            f"{len(missing):,} {thing} have no {column}",
            place=caster.place(batch, int(missing[0]), column),
            action="fill them in or drop those rows",
            code=f"{column.replace('_', '-')}-missing",
        )


class UnknownKinds:
    """Event kinds that are none of the shop's, over all batches of a log, so that they are told at once."""

    def __init__(self) -> None:
        self.counts: Counter[str | None] = Counter()
        self._place = ""

    def add(self, kinds: pl.Series, caster: Caster, batch: Batch) -> bool:
        """Counts those of a batch; whether any came so far."""
        bad = (~kinds.is_in(list(schema.EVENT_KINDS[1:])) | kinds.is_null()).fill_null(True)
        if bad.any():
            self._place = self._place or caster.place(batch, int(bad.arg_max() or 0), "event")
            self.counts.update(dict(kinds.filter(bad).value_counts(name="n").iter_rows()))
        return bool(self.counts)

    def error(self, command: Sequence[str]) -> RankloomError:
        """What is unknown, and the command that leaves it out."""
        worst = sorted(self.counts.items(), key=lambda own: (-own[1], str(own[0])))[:8]
        more = len(self.counts) - len(worst)
        names = ", ".join(f"{event!r} ({count:,})" for event, count in worst) + (f" and {more:,} more" if more else "")
        words = [str(event) for event, _ in worst if event]
        if not words:
            return RankloomError(
                f"{sum(self.counts.values()):,} events have no kind", place=self._place, action="fill them in or drop those rows",
                code="event-unknown",
            )  # fmt: skip
        dropped = again(command, [flag for word in words for flag in ("--drop-event", word)])
        return RankloomError(
            f"unknown event kinds: {names}",
            place=self._place,
            action=f"say what each is with --map-event {shlex.quote(words[0] + '=KIND')} (KIND: {KIND_NAMES}), "
            f"or leave it out with --drop-event: {dropped}",
            code="event-unknown",
        )


def text_id(name: str, kind: pl.DataType) -> pl.Expr:
    """Ids as stripped text; whole floats lose their `.0`."""
    column = pl.col(name)
    if kind.is_float():
        whole = column == column.floor()
        return pl.when(whole).then(column.cast(pl.Int64, strict=False).cast(pl.String)).otherwise(column.cast(pl.String))
    return column.cast(pl.String).str.strip_chars().replace("", None)


def price_micros(name: str, kind: pl.DataType) -> pl.Expr:
    """Integer micros from numbers or text such as `$1,299.00`, `1.299,00 €`, `￥12.5`; null for what is no price."""
    if kind.is_numeric():
        return (pl.col(name).cast(pl.Float64) * 1e6).round().cast(pl.Int64, strict=False)
    digits = pl.col(name).cast(pl.String).str.replace_all(r"[^\d.,\-]", "").str.strip_chars_end(".,-")
    # the last separator followed by one or two digits is the decimal point
    comma = digits.str.contains(r",\d{1,2}$")
    plain = (
        pl.when(comma)
        .then(digits.str.replace_all(".", "", literal=True).str.replace(",", ".", literal=True))
        .otherwise(digits.str.replace_all(",", "", literal=True))
    )
    return (plain.cast(pl.Float64, strict=False) * 1e6).round().cast(pl.Int64, strict=False)


def category_path(name: str, kind: pl.DataType) -> pl.Expr:
    """A path, root first: nested lists flattened without repeats, text split at > | or ;, else at commas."""
    column = pl.col(name)
    while isinstance(kind, pl.List) and isinstance(kind.inner, pl.List):
        column = column.list.eval(pl.element().explode())
        kind = kind.inner
    if isinstance(kind, pl.List):
        return (
            column.list.eval(pl.element().cast(pl.String).str.strip_chars().replace("", None))
            .list.drop_nulls()
            .list.unique(maintain_order=True)
        )
    text = column.cast(pl.String)
    cut = (
        pl.when(text.str.contains(r"[>|;]"))
        .then(text.str.replace_all(r"\s*[>|;]\s*", "\x1f"))
        .otherwise(text.str.replace_all(r",\s*", "\x1f"))
    )
    return cut.str.split("\x1f").list.eval(pl.element().str.strip_chars().replace("", None)).list.drop_nulls()


def attributes(series: pl.Series) -> pl.Series:
    """Key and value pairs from objects, JSON text or `colour=red; size=M`; null where a text is none of these."""
    wanted = schema.ITEM_OPTIONAL["attributes"]
    if series.dtype == wanted:
        return series
    return pl.Series(series.name, [_pairs(value) for value in series.to_list()], dtype=wanted)


def _pairs(value: Any) -> list[dict[str, str]] | None:
    if isinstance(value, str):
        text = value.strip()
        if text.startswith(("{", "[")):
            try:
                return _pairs(json.loads(text))
            except ValueError:
                return None
        parts = [part for part in re.split(r"\s*[;|\n]\s*", text) if part]
        cut = [re.split(r"\s*[=:]\s*", part, maxsplit=1) for part in parts]
        if not cut or any(len(own) != 2 for own in cut):
            return None
        return [{"key": own[0], "value": own[1]} for own in cut]
    if isinstance(value, dict):
        if set(value) == {"key", "value"}:
            return [{"key": str(value["key"]), "value": str(value["value"])}]
        return [{"key": str(key), "value": _flat(own)} for key, own in value.items() if own not in (None, "", [])]
    if isinstance(value, list):
        each = [_pairs(own) for own in value]
        return None if any(own is None for own in each) else [pair for own in each if own for pair in own]
    return None


def _flat(value: Any) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, list) and all(not isinstance(own, (list, dict)) for own in value):
        return ", ".join(map(str, value))
    return json.dumps(value, ensure_ascii=False)


def event_name(name: str, own: Mapping[str, str] | None = None) -> pl.Expr:
    """Canonical event kinds; unknown names stay and are refused by the caller.

    Args:
        own: words of this log in lower case to event kinds, before the usual ones.
    """
    lowered = pl.col(name).cast(pl.String).str.strip_chars().str.to_lowercase()
    return lowered.replace({**_WORDS, **(own or {})})


def translated(words: pl.Series, own: Mapping[str, str]) -> dict[str, str]:
    """The words of a batch that are not the kind's own name, and what each is read as."""
    frame = words.unique().drop_nulls().cast(pl.String).str.strip_chars().alias("word").to_frame()
    pairs = frame.with_columns(event_name("word", own).alias("kind"))
    return dict(pairs.filter(pl.col("word").str.to_lowercase() != pl.col("kind")).iter_rows())


def surface_name(name: str) -> pl.Expr:
    """Canonical surfaces; unknown names stay, which the validator says."""
    lowered = pl.col(name).cast(pl.String).str.strip_chars().str.to_lowercase().replace("", None)
    return lowered.replace(
        {"recommendation": "feed", "rec": "feed", "home": "feed", "ad": "ads", "推荐": "feed", "搜索": "search", "广告": "ads"}
    )


def flag(name: str, kind: pl.DataType) -> pl.Expr:
    """Booleans from booleans, numbers or words."""
    if kind == pl.Boolean:
        return pl.col(name)
    if kind.is_numeric():
        return pl.col(name) > 0
    word = pl.col(name).cast(pl.String).str.strip_chars().str.to_lowercase().str.replace_all("_", " ", literal=True)
    number = word.cast(pl.Float64, strict=False)
    return (
        pl.when(word.is_in(["true", "yes", "y", "in stock", "available", "preorder", "backorder", "是", "有货"]) | (number > 0))
        .then(True)
        .when(word.is_in(["false", "no", "n", "out of stock", "sold out", "unavailable", "否", "缺货"]) | (number == 0))
        .then(False)
    )


def number_column(name: str, kind: pl.DataType, wanted: pl.DataType) -> pl.Expr:
    """Numbers from numbers or text; NaN is unknown. Whole numbers must be whole."""
    real = pl.col(name).cast(pl.String).str.strip_chars() if kind == pl.String else pl.col(name)
    real = real.cast(pl.Float64, strict=False).fill_nan(None)
    return pl.when(real == real.floor()).then(real).cast(wanted, strict=False) if wanted.is_integer() else real


def cast_column(shop: str, source: str, kind: pl.DataType) -> pl.Expr:
    """The expression that turns a source column into a shop column; times and attributes have readers of their own."""
    column = pl.col(source)
    if isinstance(kind, pl.List) and shop not in ("category",):
        column = column.list.eval(pl.element().cast(pl.String)).list.join(" ")
        if _TYPES[shop] == pl.String:
            return column.str.strip_chars().replace("", None).alias(shop)
        return column.cast(_TYPES[shop], strict=False).alias(shop)
    if shop in _IDS:
        return text_id(source, kind).alias(shop)
    if shop in _MONEY:
        if source.endswith("_micros"):
            return column.cast(pl.Int64, strict=False).alias(shop)
        return price_micros(source, kind).alias(shop)
    if shop == "category":
        return category_path(source, kind).alias(shop)
    if shop == "event":
        return event_name(source).alias(shop)
    if shop == "surface":
        return surface_name(source).alias(shop)
    if shop in ("in_stock", "simulated"):
        return flag(source, kind).alias(shop)
    if shop in _NUMBERS:
        return number_column(source, kind, _TYPES[shop]).alias(shop)
    return column.cast(pl.String).str.strip_chars().replace("", None).alias(shop)
