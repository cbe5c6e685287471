"""Which source column is which shop column: guessed from names, said, and overridden by `--map shop=source`."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from rankloom.data import schema
from rankloom.errors import RankloomError

SYNONYMS: Final[dict[str, tuple[str, ...]]] = {
    "item_id": ("itemid", "item", "sku", "productid", "product", "asin", "parentasin", "movieid", "videoid", "goodsid", "contentid", "id", "商品id", "商品编号", "物品id", "视频id"),
    "user_id": ("userid", "user", "customerid", "customer", "visitorid", "clientid", "memberid", "buyerid", "uid", "reviewerid", "用户id", "用户", "会员id"),
    "timestamp": ("time", "ts", "datetime", "date", "when", "eventtime", "createdat", "unixtime", "unixreviewtime", "时间", "时间戳", "日期"),
    "event": ("eventtype", "eventname", "action", "behavior", "behaviour", "type", "interaction", "行为", "行为类型", "事件"),
    "title": ("name", "productname", "itemname", "producttitle", "caption", "标题", "商品名称", "名称", "商品标题"),
    "description": ("desc", "details", "summary", "描述", "简介"),
    "brand": ("maker", "manufacturer", "vendor", "brandname", "品牌"),
    "category": ("categories", "kind", "genre", "genres", "department", "producttype", "categorypath", "类目", "分类", "品类"),
    "price_micros": ("price", "saleprice", "unitprice", "amount", "cost", "价格", "售价", "单价"),
    "currency": ("currencycode", "币种"),
    "duration_s": ("duration", "length", "seconds", "videoduration", "时长"),
    "in_stock": ("instock", "available", "availability", "stock", "库存"),
    "image_url": ("image", "imageurl", "picture", "imagelink", "图片"),
    "created_at": ("created", "uploaded", "published", "listedat", "上架时间", "发布时间"),
    "watch_s": ("watchtime", "playtime", "watchseconds", "dwell", "dwelltime", "观看时长", "播放时长"),
    "value": ("rating", "score", "overall", "quantity", "评分"),
    "surface": ("channel", "scene", "场景"),
    "query": ("searchterm", "keyword", "keywords", "searchquery", "搜索词"),
    "request_id": ("requestid", "impressionid", "listid"),
    "position": ("rank", "pos", "位置"),
    "event_id": ("eventid", "logid"),
    "propensity": ("probability", "propensityscore"),
}  # fmt: skip
_TABLES: Final = {
    schema.ITEMS: {**schema.ITEM_REQUIRED, **schema.ITEM_OPTIONAL},
    schema.EVENTS: {**schema.EVENT_REQUIRED, **schema.EVENT_OPTIONAL},
    schema.USERS: schema.USER_REQUIRED,
    schema.CAMPAIGNS: {**schema.CAMPAIGN_REQUIRED, **schema.CAMPAIGN_OPTIONAL},
}
_REQUIRED: Final = {
    schema.ITEMS: ("item_id",),
    schema.EVENTS: ("user_id", "item_id", "timestamp"),
    schema.USERS: ("user_id",),
    schema.CAMPAIGNS: ("campaign_id", "item_id", "budget_micros"),
}


@dataclass(frozen=True)
class Mapped:
    """One decision: a shop column, the source column it comes from, and why."""

    shop: str
    source: str
    why: str


def guess(table: str, columns: Sequence[str], explicit: Mapping[str, str], *, place: str) -> list[Mapped]:
    """The mapping of one table.

    Args:
        explicit: shop column to source column; entries whose source is not in this table are ignored here.

    Raises:
        RankloomError: a required column has no source or two that fit equally well; says which --map to write.
    """
    folded: dict[str, list[str]] = {}
    for column in columns:
        folded.setdefault(_fold(column), []).append(column)
    chosen: list[Mapped] = []
    used: set[str] = set()
    for shop, source in explicit.items():
        if shop in _TABLES[table] and source in columns:
            chosen.append(Mapped(shop, source, "given by --map"))
            used.add(source)
    for shop in _TABLES[table]:
        if any(own.shop == shop for own in chosen):
            continue
        names = (_fold(shop), *SYNONYMS.get(shop, ()))
        if shop == "item_id" and table == schema.EVENTS:
            names = tuple(name for name in names if name != "id")
        for name in names:
            free = [column for column in folded.get(name, []) if column not in used]
            if len(free) > 1:
                raise RankloomError(
                    f"{' and '.join(map(repr, free))} both could be {shop}",
                    place=place,
                    action=f"say which: --map {shop}={free[0]}",
                    code="mapping-ambiguous",
                )
            if free:
                why = "same name" if name == _fold(shop) else "a usual name for it"
                chosen.append(Mapped(shop, free[0], why))
                used.add(free[0])
                break
    for required in _REQUIRED[table]:
        if not any(own.shop == required for own in chosen):
            close = difflib.get_close_matches(required, columns, n=1, cutoff=0.3) or list(columns[:1]) or ["COLUMN"]
            raise RankloomError(
                f"no column for {required} among {', '.join(map(repr, columns))}",
                place=place,
                action=f"say which it is: --map {required}={close[0]}",
                code="mapping-missing",
            )
    return chosen


def check_explicit(explicit: Mapping[str, str], seen: set[str], *, place: str) -> None:
    """Refuses a --map that names no shop column or no source column."""
    known = {name for columns in _TABLES.values() for name in columns}
    for shop, source in explicit.items():
        if shop not in known:
            close = difflib.get_close_matches(shop, sorted(known), n=1)
            raise RankloomError(
                f"--map {shop}={source}: there is no shop column {shop!r}",
                place="--map",
                action=f"did you mean {close[0]}={source}?" if close else f"shop columns: {', '.join(sorted(known))}",
                code="mapping-unknown",
            )
        if source not in seen:
            close = difflib.get_close_matches(source, sorted(seen), n=1)
            raise RankloomError(
                f"--map {shop}={source}: the source has no column {source!r}",
                place=place,
                action=f"did you mean {shop}={close[0]}?" if close else f"source columns: {', '.join(sorted(seen))}",
                code="mapping-unknown",
            )


def _fold(name: str) -> str:
    return re.sub(r"[\s_\-.]+", "", name.strip().lower().lstrip("\ufeff"))
