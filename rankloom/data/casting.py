"""Raw columns to the shop's types: ids, times, prices, categories, event names. Lazy, so events can be of any number.

Every cast that fails on a value that is there is an error that names file, row, column and value.
"""

from __future__ import annotations

from typing import Any, Final

import polars as pl

from rankloom.data import schema
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
    "fav": "like", "favorite": "like", "favourite": "like", "add_to_wishlist": "like", "收藏": "like", "点赞": "like",
    "forward": "share", "转发": "share", "分享": "share", "评论": "comment", "关注": "follow",
    "hate": "dislike", "block": "dislike", "不喜欢": "dislike", "view_search_results": "search", "搜索": "search",
}  # fmt: skip
# (name, divisor to seconds, smallest and largest plausible value: the years 1990 to 2100)
_UNITS: Final = (
    ("s", 1, 6.3e8, 4.2e9),
    ("ms", 10**3, 6.3e11, 4.2e12),
    ("us", 10**6, 6.3e14, 4.2e15),
    ("ns", 10**9, 6.3e17, 4.2e18),
)


def text_id(name: str, kind: pl.DataType) -> pl.Expr:
    """Ids as stripped text; whole floats lose their `.0`."""
    if kind.is_float():
        return pl.col(name).cast(pl.Int64, strict=False).cast(pl.String)
    return pl.col(name).cast(pl.String).str.strip_chars().replace("", None)


def time_column(frame: pl.LazyFrame, name: str, *, place: str, notices: list[str]) -> pl.Expr:
    """UTC microseconds from ISO text, dates, or epoch numbers whose unit is detected and said.

    Raises:
        RankloomError: values of several epoch units, or numbers that are no time.
    """
    kind = frame.collect_schema()[name]
    if isinstance(kind, pl.Datetime):
        column = pl.col(name).dt.cast_time_unit("us")
        return column.dt.convert_time_zone("UTC") if kind.time_zone else column.dt.replace_time_zone("UTC")
    if kind == pl.Date:
        return pl.col(name).cast(pl.Datetime("us")).dt.replace_time_zone("UTC")
    number = pl.col(name).cast(pl.Float64, strict=False) if kind == pl.String else pl.col(name).cast(pl.Float64)
    tests = [number.is_between(low, high).sum().alias(unit) for unit, _, low, high in _UNITS]
    counts = (
        frame.select(number.is_not_null().sum().alias("numbers"), *tests).collect(engine="streaming").row(0, named=True)
    )
    if kind.is_numeric() or counts["numbers"] > 0:
        found = [(unit, divisor) for unit, divisor, _, _ in _UNITS if counts[unit]]
        if len(found) > 1:
            listed = ", ".join(f"{counts[unit]:,} in {unit}" for unit, _ in found)
            raise RankloomError(
                f"the clock of column {name!r} is mixed: {listed}",
                place=f"{place}, column {name}",
                action="convert the column to one unit before the import",
                code="clock-mixed",
            )
        if not found:
            raise RankloomError(
                f"the numbers of column {name!r} are no times between 1990 and 2100 in s, ms, us or ns",
                place=f"{place}, column {name}",
                action="map another column: --map timestamp=COLUMN, or write ISO times",
                code="clock-unknown",
            )
        unit, divisor = found[0]
        notices.append(f"{place}: times of {name!r} read as {unit} since 1970")
        exact = pl.col(name).cast(pl.Float64 if kind.is_float() or kind == pl.String else pl.Int64, strict=False)
        return (exact * 10**6 / divisor).cast(pl.Int64).cast(pl.Datetime("us")).dt.replace_time_zone("UTC")
    notices.append(f"{place}: times of {name!r} without a zone read as UTC")
    text = (
        pl.col(name)
        .str.strip_chars()
        .str.replace(r"\.\d+", "")
        .str.replace("T", " ")
        .str.replace(r"\s*(Z|\+00:?00|UTC)$", "")
    )
    formats = ("%Y-%m-%d %H:%M:%S", "%Y-%m-%d %H:%M", "%Y-%m-%d", "%Y/%m/%d %H:%M:%S", "%Y/%m/%d %H:%M", "%Y/%m/%d")
    parsed = pl.coalesce([text.str.to_datetime(f, time_unit="us", strict=False) for f in formats])
    return parsed.dt.replace_time_zone("UTC")


def price_micros(name: str, kind: pl.DataType) -> pl.Expr:
    """Integer micros from numbers or text such as `$1,299.00`, `1.299,00 €`, `￥12.5`."""
    if kind.is_numeric():
        return (pl.col(name).cast(pl.Float64) * 1e6).round().cast(pl.Int64)
    digits = pl.col(name).cast(pl.String).str.replace_all(r"[^\d.,\-]", "")
    # the last separator followed by one or two digits is the decimal point
    comma = digits.str.contains(r",\d{1,2}$")
    plain = (
        pl.when(comma)
        .then(digits.str.replace_all(".", "", literal=True).str.replace(",", ".", literal=True))
        .otherwise(digits.str.replace_all(",", "", literal=True))
    )
    return (plain.cast(pl.Float64, strict=False) * 1e6).round().cast(pl.Int64)


def category_path(name: str, kind: pl.DataType) -> pl.Expr:
    """A path, root first: nested lists flattened without repeats, text split at > | or ;."""
    column = pl.col(name)
    while isinstance(kind, pl.List) and isinstance(kind.inner, pl.List):
        column = column.list.eval(pl.element().explode())
        kind = kind.inner
    if isinstance(kind, pl.List):
        return (
            column.list.eval(pl.element().cast(pl.String).str.strip_chars())
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


def event_name(name: str) -> pl.Expr:
    """Canonical event kinds; unknown names stay and are refused by the caller."""
    lowered = pl.col(name).cast(pl.String).str.strip_chars().str.to_lowercase()
    return lowered.replace(EVENT_ALIASES)


def flag(name: str, kind: pl.DataType) -> pl.Expr:
    """Booleans from booleans, numbers or words."""
    if kind == pl.Boolean:
        return pl.col(name)
    if kind.is_numeric():
        return pl.col(name) > 0
    word = pl.col(name).cast(pl.String).str.strip_chars().str.to_lowercase()
    return (
        pl.when(word.is_in(["1", "true", "yes", "y", "in stock", "in_stock", "available", "是", "有货"]))
        .then(True)
        .when(word.is_in(["0", "false", "no", "n", "out of stock", "out_of_stock", "sold out", "否", "缺货"]))
        .then(False)
    )


def cast_column(frame: pl.LazyFrame, shop: str, source: str, *, place: str, notices: list[str]) -> pl.Expr:
    """The expression that turns a source column into a shop column."""
    kind = frame.collect_schema()[source]
    if shop in ("item_id", "user_id", "event_id", "request_id", "campaign_id"):
        return text_id(source, kind).alias(shop)
    if shop in ("timestamp", "created_at", "start", "end"):
        return time_column(frame, source, place=place, notices=notices).alias(shop)
    if shop in ("price_micros", "budget_micros", "target_cpa_micros"):
        if source.endswith("_micros"):
            return pl.col(source).cast(pl.Int64, strict=False).alias(shop)
        return price_micros(source, kind).alias(shop)
    if shop == "category":
        return category_path(source, kind).alias(shop)
    if shop == "event":
        return event_name(source).alias(shop)
    if shop == "in_stock":
        return flag(source, kind).alias(shop)
    types: dict[str, Any] = {
        **schema.ITEM_OPTIONAL,
        **schema.EVENT_OPTIONAL,
        **schema.ITEM_REQUIRED,
        **schema.CAMPAIGN_OPTIONAL,
    }
    wanted = types[shop]
    if isinstance(kind, pl.List) and wanted == pl.String:
        return pl.col(source).list.eval(pl.element().cast(pl.String)).list.join(" ").alias(shop)
    if wanted == pl.String:
        return pl.col(source).cast(pl.String).str.strip_chars().replace("", None).alias(shop)
    if kind == wanted:
        return pl.col(source).alias(shop)
    return pl.col(source).cast(wanted, strict=False).alias(shop)
