"""Which source column is which shop column: guessed from names and values, said, and overridden by `--map shop=source`."""

from __future__ import annotations

import difflib
import re
import shlex
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import polars as pl

from rankloom.data import schema
from rankloom.errors import RankloomError

SYNONYMS: Final[dict[str, tuple[str, ...]]] = {
    "item_id": ("itemid", "item", "sku", "productid", "product", "asin", "parentasin", "movieid", "videoid", "goodsid", "contentid", "id", "artikelnr", "artikelnummer", "artikel", "produktnr", "produkt", "produit", "producto", "referencia", "articulo", "товар", "артикул", "商品id", "商品编号", "物品id", "视频id", "商品", "货号"),
    "user_id": ("userid", "user", "customerid", "customer", "visitorid", "clientid", "memberid", "buyerid", "uid", "reviewerid", "kunde", "kundennr", "kundennummer", "kundenid", "nutzer", "client", "cliente", "usuario", "utilisateur", "покупатель", "пользователь", "клиент", "用户id", "用户", "会员id", "顾客", "客户", "买家"),
    "timestamp": ("time", "ts", "datetime", "date", "when", "eventtime", "createdat", "unixtime", "unixreviewtime", "zeitpunkt", "zeit", "zeitstempel", "datum", "fecha", "heure", "horodatage", "дата", "время", "时间", "时间戳", "日期"),
    "event": ("eventtype", "eventname", "action", "behavior", "behaviour", "type", "interaction", "aktion", "ereignis", "accion", "evenement", "acción", "événement", "событие", "действие", "行为", "行为类型", "事件"),
    "title": ("name", "productname", "itemname", "producttitle", "caption", "bezeichnung", "produktname", "titel", "titre", "titulo", "título", "nombre", "nom", "название", "标题", "商品名称", "名称", "商品标题"),
    "description": ("desc", "details", "summary", "beschreibung", "descripcion", "descripción", "描述", "简介"),
    "brand": ("maker", "manufacturer", "vendor", "brandname", "marke", "hersteller", "marque", "marca", "品牌"),
    "category": ("categories", "kind", "genre", "genres", "department", "producttype", "categorypath", "warengruppe", "kategorie", "categorie", "catégorie", "categoria", "categoría", "категория", "类目", "分类", "品类"),
    "price_micros": ("price", "saleprice", "unitprice", "amount", "cost", "preis", "prix", "precio", "prezzo", "preço", "цена", "价格", "售价", "单价"),
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
_PRICE_WORDS: Final = ("price", "preis", "prix", "precio", "prezzo", "preço", "цена", "价格", "售价", "单价")
_RARELY, _SOME, _MOSTLY, _UNIQUE = 0.05, 0.2, 0.5, 0.95
# more different words than this are names, not kinds of events
_KINDS: Final = 100
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
    """One decision: a shop column, the source column it comes from, why, and a value of it."""

    shop: str
    source: str
    why: str
    example: str = ""

    @property
    def guessed(self) -> bool:
        """Whether a person should look at it: neither asked for nor the shop's own name."""
        return self.why not in (GIVEN, SAME, FIXED)


FIXED: Final = "this format's column"
GIVEN: Final = "given by --map"
SAME: Final = "same name"


class UnmappedError(RankloomError):
    """Columns that are needed and not found, all of one import.

    Attributes:
        flags: what to add to the command, such as `--map user_id=customer`.
    """

    def __init__(self, message: str, *, place: str, flags: Sequence[str], code: str, command: Sequence[str] = ()) -> None:
        super().__init__(message, place=place, action=f"say which it is: {again(command, flags)}", code=code)
        self.flags = list(flags)


def again(command: Sequence[str], flags: Sequence[str]) -> str:
    """The command that a person wrote, with more flags; the flags alone where there is no command."""
    # what answers a question comes last, as people write it
    end = [word for word in command if word == "--yes"]
    return shlex.join([*(word for word in command if word != "--yes"), *flags, *end])


@dataclass(frozen=True)
class Looks:
    """What the values of a table say about its columns.

    Attributes:
        rows: some rows of the table.
        kinds: words for event kinds, in lower case.
        is_time: whether the values of a column are times in one format.
        is_price: whether the values of a column read as prices.
        other: of a log, the catalogue's ids as its only column; of a catalogue, rows of the log.
    """

    rows: Callable[[], pl.DataFrame]
    kinds: Collection[str] = ()
    is_time: Callable[[pl.Series], bool] = lambda _: False
    is_price: Callable[[pl.Series], bool] = lambda _: False
    other: Callable[[], pl.DataFrame] | None = None


def guess(
    table: str, columns: Sequence[str], explicit: Mapping[str, str], *, place: str, looks: Looks | None = None
) -> list[Mapped]:
    """The mapping of one table, by names first and by values where names leave it open.

    Args:
        explicit: shop column to source column; entries whose source is not in this table are ignored here, and an empty
            source leaves the shop column out.

    Raises:
        UnmappedError: required columns have no source, or some have two that fit equally well; says which --map to write.
    """
    folded: dict[str, list[str]] = {}
    for column in columns:
        folded.setdefault(_fold(column), []).append(column)
    chosen: list[Mapped] = []
    used: set[str] = set()
    doubts: list[tuple[str, list[str]]] = []
    for shop, source in explicit.items():
        if shop in _TABLES[table] and source in columns:
            chosen.append(Mapped(shop, source, GIVEN))
            used.add(source)
    left_out = {shop for shop, source in explicit.items() if not source}
    for shop in _TABLES[table]:
        if shop in left_out or any(own.shop == shop for own in chosen):
            continue
        names = (_fold(shop), *(_fold(name) for name in SYNONYMS.get(shop, ())))
        if shop == "item_id" and table == schema.EVENTS:
            names = tuple(name for name in names if name != "id")
        for name in names:
            free = [column for column in folded.get(name, []) if column not in used]
            if not free and shop == "price_micros":
                free = [column for column in columns if column not in used and _MONEY_ENDS.sub("", _fold(column)) == name]
            if len(free) > 1:
                doubts.append((f"{' and '.join(map(repr, free))} both could be {shop}", ["--map", f"{shop}={free[0]}"]))
                left_out.add(shop)
                break
            if free:
                chosen.append(Mapped(shop, free[0], SAME if name == _fold(shop) else "a usual name for it"))
                used.add(free[0])
                break
    if looks is not None:
        chosen = _by_values(table, chosen, columns, left_out, looks)
    missing = [name for name in _REQUIRED[table] if name not in left_out and not any(own.shop == name for own in chosen)]
    missing += [name for name in _REQUIRED[table] if explicit.get(name) == ""]
    code = "mapping-missing" if missing else "mapping-ambiguous"
    if missing:
        flags = _suggestions(missing, [column for column in columns if column not in {own.source for own in chosen}], looks)
        doubts.insert(0, (f"no column for {' and '.join(missing)} among {', '.join(map(repr, columns))}", flags))
    if doubts:
        raise UnmappedError(
            "; ".join(fact for fact, _ in doubts), place=place, flags=[flag for _, own in doubts for flag in own], code=code
        )
    return chosen


def _suggestions(missing: Sequence[str], left: Sequence[str], looks: Looks | None) -> list[str]:
    """A `--map` for each missing column: the name that is most alike, among those whose values could be it."""
    rows = looks.rows() if looks is not None else pl.DataFrame()
    free = list(left)
    flags: list[str] = []
    for name in missing:

        def fit(column: str, name: str = name) -> tuple[bool, float]:
            values = rows[column].drop_nulls() if column in rows.columns else pl.Series([], dtype=pl.String)
            plausible = True
            if len(values) and looks is not None:
                time = looks.is_time(values)
                plausible = time if name == "timestamp" else not time and (name != "user_id" or _few(values))
            return plausible, difflib.SequenceMatcher(None, _fold(name), _fold(column)).ratio()

        best = max(free, key=fit, default="COLUMN")
        if best in free:
            free.remove(best)
        flags += ["--map", f"{name}={best}"]
    return flags


def _few(values: pl.Series) -> bool:
    """Whether values come again, as people's ids in a log do."""
    return not values.dtype.is_nested() and values.n_unique() < _UNIQUE * len(values)


def _by_values(
    table: str, chosen: Sequence[Mapped], columns: Sequence[str], left_out: Collection[str], looks: Looks
) -> list[Mapped]:
    """The mapping with what the values of unused columns add to it."""
    found = list(chosen)

    def free() -> dict[str, pl.Series]:
        rows = looks.rows()
        used = {own.source for own in found}
        return {name: rows[name].drop_nulls() for name in columns if name in rows.columns and name not in used}

    def open_(shop: str) -> bool:
        return shop not in left_out and not any(own.shop == shop for own in found)

    if table == schema.ITEMS:
        if open_("item_id") and looks.other is not None:
            own = link(looks.rows().select(list(free())), looks.other())
            if own is not None:
                found.append(Mapped("item_id", own[0], "unique, and the log names its values"))
        if open_("price_micros"):
            prices = [
                name for name, values in free().items()
                if any(word in _fold(name) for word in _PRICE_WORDS) and len(values) and looks.is_price(values)
            ]  # fmt: skip
            if len(prices) == 1:
                found.append(Mapped("price_micros", prices[0], "its name says price, its values are numbers"))
    if table != schema.EVENTS:
        return found
    if looks.other is not None and "item_id" not in left_out:
        named = next((own for own in found if own.shop == "item_id"), None)
        ids = set(looks.other().to_series().to_list())
        if named is None or (named.why != GIVEN and named.source in looks.rows().columns and _share(looks.rows()[named.source], ids) < _RARELY):
            shares = {name: _share(values, ids) for name, values in free().items()}
            best = max(shares, key=lambda name: (shares[name], looks.rows()[name].n_unique()), default=None)
            if best is not None and shares[best] >= _MOSTLY:
                found = [own for own in found if own is not named]
                found.append(Mapped("item_id", best, "its values are ids of the catalogue"))
    if open_("timestamp"):
        times = [name for name, values in free().items() if len(values) and looks.is_time(values)]
        if len(times) == 1:
            found.append(Mapped("timestamp", times[0], "its values are times"))
    if open_("event"):
        words = set(looks.kinds)
        likely = {
            name: _share(values.str.strip_chars().str.to_lowercase(), words)
            for name, values in free().items() if values.dtype == pl.String and len(values) and values.n_unique() <= _KINDS
        }  # fmt: skip
        best = max(likely, key=lambda name: likely[name], default=None)
        # a log without kinds would be read as clicks: better a guess that the next check refuses than that
        if best is not None and likely[best] >= _SOME:
            found.append(Mapped("event", best, "its values are kinds of events"))
    return found


def _share(values: pl.Series, known: set[str]) -> float:
    """How many of the values that are there are known."""
    if values.dtype.is_nested() or values.dtype.is_temporal():
        return 0.0
    texts = values.drop_nulls().cast(pl.String).str.strip_chars()
    return int(texts.is_in(list(known)).sum()) / len(texts) if len(texts) else 0.0


def link(catalogue: pl.DataFrame, log: pl.DataFrame) -> tuple[str, str] | None:
    """The column that is unique in the catalogue and the column of the log that names its values; None when none does."""
    found: list[tuple[bool, int, str, str]] = []
    for name in catalogue.columns:
        values = catalogue[name]
        if values.dtype.is_nested() or values.dtype.is_float() or values.dtype.is_temporal() or values.null_count():
            continue
        if not len(values) or values.n_unique() < _UNIQUE * len(values):
            continue
        ids = set(values.cast(pl.String).str.strip_chars().to_list())
        for other in log.columns:
            if _share(log[other], ids) >= _MOSTLY and _few(log[other]):
                found.append((_fold(name) == _fold(other), log[other].n_unique(), name, other))
    return None if not found else max(found)[2:]


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
        if source and source not in seen:
            close = difflib.get_close_matches(source, sorted(seen), n=1)
            raise RankloomError(
                f"--map {shop}={source}: the source has no column {source!r}",
                place=place,
                action=f"did you mean {shop}={close[0]}?" if close else f"source columns: {', '.join(sorted(seen))}",
                code="mapping-unknown",
            )


def _fold(name: str) -> str:
    return re.sub(r"[\s_\-.]+", "", name.strip().lower().lstrip("\ufeff"))
