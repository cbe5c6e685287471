"""Which source column is which shop column: guessed from names and values, said, and overridden by `--map shop=source`."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import polars as pl

from rankloom.data import schema
from rankloom.errors import RankloomError

SYNONYMS: Final[dict[str, tuple[str, ...]]] = {
    "item_id": ("itemid", "item", "sku", "productid", "product", "asin", "parentasin", "movieid", "videoid", "goodsid", "contentid", "id", "artikelnr", "artikelnummer", "artikel", "produktnr", "produkt", "produit", "producto", "referencia", "articulo", "商品id", "商品编号", "物品id", "视频id"),
    "user_id": ("userid", "user", "customerid", "customer", "visitorid", "clientid", "memberid", "buyerid", "uid", "reviewerid", "kunde", "kundennr", "kundennummer", "kundenid", "nutzer", "client", "cliente", "usuario", "用户id", "用户", "会员id"),
    "timestamp": ("time", "ts", "datetime", "date", "when", "eventtime", "createdat", "unixtime", "unixreviewtime", "zeitpunkt", "zeit", "zeitstempel", "datum", "fecha", "heure", "horodatage", "时间", "时间戳", "日期"),
    "event": ("eventtype", "eventname", "action", "behavior", "behaviour", "type", "interaction", "aktion", "ereignis", "accion", "evenement", "acción", "événement", "行为", "行为类型", "事件"),
    "title": ("name", "productname", "itemname", "producttitle", "caption", "bezeichnung", "produktname", "titel", "titre", "titulo", "título", "nombre", "nom", "标题", "商品名称", "名称", "商品标题"),
    "description": ("desc", "details", "summary", "beschreibung", "descripcion", "descripción", "描述", "简介"),
    "brand": ("maker", "manufacturer", "vendor", "brandname", "marke", "hersteller", "marque", "marca", "品牌"),
    "category": ("categories", "kind", "genre", "genres", "department", "producttype", "categorypath", "warengruppe", "kategorie", "categorie", "catégorie", "categoria", "categoría", "类目", "分类", "品类"),
    "price_micros": ("price", "saleprice", "unitprice", "amount", "cost", "preis", "prix", "precio", "prezzo", "价格", "售价", "单价"),
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
ALIASES: Final = {"price": "price_micros", "budget": "budget_micros", "target_cpa": "target_cpa_micros"}
"""How people write columns that the shop keeps in micros; their values are in the currency's own unit."""
_MONEY_ENDS: Final = re.compile(r"(eur|usd|gbp|chf|cny|rmb|jpy|€|\$|£|¥)$")
_DATED: Final = r"^\d{4}[-/]\d{1,2}[-/]\d{1,2}"
_MOSTLY: Final = 0.5
_NEARLY_ALL: Final = 0.95
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


def guess(
    table: str, columns: Sequence[str], explicit: Mapping[str, str], *, place: str,
    sample: Callable[[], pl.DataFrame] | None = None, kinds: Collection[str] = (),
) -> list[Mapped]:  # fmt: skip
    """The mapping of one table.

    Args:
        explicit: shop column to source column; entries whose source is not in this table are ignored here.
        sample: rows of the table, read when names leave the time or the kind of events open.
        kinds: words for event kinds, in lower case.

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
        names = (_fold(shop), *(_fold(name) for name in SYNONYMS.get(shop, ())))
        if shop == "item_id" and table == schema.EVENTS:
            names = tuple(name for name in names if name != "id")
        for name in names:
            free = [column for column in folded.get(name, []) if column not in used]
            if not free and shop == "price_micros":
                free = [column for column in columns if column not in used and _MONEY_ENDS.sub("", _fold(column)) == name]
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
    if table == schema.EVENTS and sample is not None:
        chosen += _by_values(chosen, [column for column in columns if column not in used], sample, kinds)
    missing = [name for name in _REQUIRED[table] if not any(own.shop == name for own in chosen)]
    if missing:
        left = [column for column in columns if column not in {own.source for own in chosen}] or list(columns) or ["COLUMN"]
        close = [(difflib.get_close_matches(name, left, n=1, cutoff=0.3) or [left[at % len(left)]])[0] for at, name in enumerate(missing)]
        raise RankloomError(
            f"no column for {' and '.join(missing)} among {', '.join(map(repr, columns))}",
            place=place,
            action="say which it is: " + " ".join(f"--map {name}={own}" for name, own in zip(missing, close, strict=True)),
            code="mapping-missing",
        )
    return chosen


def _by_values(
    chosen: Sequence[Mapped], free: Sequence[str], sample: Callable[[], pl.DataFrame], kinds: Collection[str]
) -> list[Mapped]:
    """Time and kind of events, recognised by what their columns hold."""
    open_ = [name for name in ("timestamp", "event") if not any(own.shop == name for own in chosen)]
    if not open_ or not free:
        return []
    rows = sample()
    found: list[Mapped] = []
    texts = {name: rows[name].drop_nulls() for name in free if name in rows.columns}
    if "timestamp" in open_:
        times = [
            name for name, own in texts.items()
            if own.dtype.is_temporal()
            or (own.dtype == pl.String and len(own) and int(own.str.strip_chars().str.contains(_DATED).sum()) >= _NEARLY_ALL * len(own))
        ]  # fmt: skip
        if len(times) == 1:
            found.append(Mapped("timestamp", times[0], "its values are times"))
    if "event" in open_:
        likely = {
            name: int(own.str.strip_chars().str.to_lowercase().is_in(list(kinds)).sum()) / len(own)
            for name, own in texts.items() if own.dtype == pl.String and len(own)
        }  # fmt: skip
        best = max(likely, key=lambda name: likely[name], default=None)
        if best is not None and likely[best] >= _MOSTLY:
            found.append(Mapped("event", best, "its values are kinds of events"))
    return found


def in_micros(explicit: Mapping[str, str]) -> dict[str, str]:
    """A mapping with `price` and the like under the shop's names."""
    return {ALIASES.get(shop, shop): source for shop, source in explicit.items()}


def check_explicit(explicit: Mapping[str, str], seen: set[str], *, place: str) -> None:
    """Refuses a --map that names no shop column or no source column."""
    known = {name for columns in _TABLES.values() for name in columns}
    for shop, source in explicit.items():
        if shop not in known:
            close = difflib.get_close_matches(shop, sorted(known), n=1)
            raise RankloomError(
                f"--map {shop}={source}: there is no shop column {shop!r}",
                place="--map",
                action=f"did you mean {close[0]}={source}?" if close else f"shop columns: {', '.join(sorted({*known, *ALIASES}))}",
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
