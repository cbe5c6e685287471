"""What an advertiser sets, checked on entry, and where campaigns come from: a shop folder or a JSON file."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, Any, Literal
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from rankloom.bidding.serve.money import MAX_MICROS
from rankloom.errors import RankloomError

Identifier = Annotated[str, Field(min_length=1, max_length=200)]
Domain = Annotated[str, Field(min_length=1, max_length=253)]
Probability = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]


class _Setting(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class NativeAssets(_Setting):
    """What a native creative can fill the request's assets with (OpenRTB Native 1.2)."""

    title: str = Field(min_length=1, max_length=500)
    link: str = Field(min_length=1, max_length=2000)
    description: str | None = Field(default=None, max_length=2000)
    sponsored: str | None = Field(default=None, max_length=500)
    call_to_action: str | None = Field(default=None, max_length=200)
    image_url: str | None = Field(default=None, max_length=2000)
    image_w: int | None = Field(default=None, ge=1)
    image_h: int | None = Field(default=None, ge=1)
    icon_url: str | None = Field(default=None, max_length=2000)


class Creative(_Setting):
    """One thing to show. `markup` is HTML for a banner, VAST for a video; a native creative has `native` instead."""

    creative_id: Identifier
    kind: Literal["banner", "video", "native"] = "banner"
    w: int | None = Field(default=None, ge=1, le=20_000)
    h: int | None = Field(default=None, ge=1, le=20_000)
    markup: str | None = Field(default=None, max_length=200_000)
    native: NativeAssets | None = None
    attributes: tuple[int, ...] = ()
    mimes: tuple[str, ...] = ("video/mp4",)
    protocols: tuple[int, ...] = (2, 3, 5, 6)  # VAST 2.0 and 3.0, inline and wrapper
    duration_s: int | None = Field(default=None, ge=1, le=3600)
    secure: bool = True

    @model_validator(mode="after")
    def complete(self) -> Creative:
        if self.kind == "native":
            if self.native is None:
                raise ValueError("a native creative needs `native`")
        elif not self.markup:
            raise ValueError(f"a {self.kind} creative needs `markup`")
        if self.kind == "banner" and (self.w is None or self.h is None):
            raise ValueError("a banner creative needs `w` and `h`")
        if self.kind == "video" and self.duration_s is None:
            raise ValueError("a video creative needs `duration_s`")
        return self


class Targeting(_Setting):
    """Where a campaign may show; an empty list means anywhere."""

    countries: tuple[Annotated[str, Field(pattern=r"^[A-Z]{3}$")], ...] = ()  # ISO 3166-1 alpha-3, as in device.geo
    device_types: tuple[int, ...] = ()
    segments: tuple[str, ...] = ()
    sites: tuple[Domain, ...] = ()
    blocked_sites: tuple[Domain, ...] = ()


class Experiment(_Setting):
    """A budget-split test: arm B gets `share` of the traffic and of the budget, and another controller."""

    controller: Identifier
    share: float = Field(default=0.5, gt=0, lt=1)


class Campaign(_Setting):
    """One advertiser's order. Money is in micros of the server's currency.

    Attributes:
        target_cpa_micros: limit of the day's cost per conversion; None where there is none.
        pcvr: predicted conversions an impression by segment; the key `*` holds for every other segment.
        categories: the advertiser's categories by taxonomy (`cattax`), against `bcat` and `acat`.
        deals: private deals to take. With `deals_only` nothing else.
        max_cpm_micros: no bid above this, whatever the controller says.
        start, end: the flight; outside of it there are no bids.
        timezone: whose midnight starts the day.
    """

    campaign_id: Annotated[str, Field(min_length=1, max_length=200, pattern=r"^[^#\x00-\x1f]+$")]
    name: str = Field(default="", max_length=500)
    item_id: str | None = None
    budget_micros: int = Field(ge=1, le=MAX_MICROS)
    target_cpa_micros: int | None = Field(default=None, ge=1, le=MAX_MICROS)
    timezone: str = "UTC"
    start: datetime | None = None
    end: datetime | None = None
    category: int = -1
    seat: Identifier = "rankloom"
    adomain: tuple[Domain, ...] = ("example.com",)
    bundle: str | None = None
    categories: dict[int, tuple[str, ...]] = {1: ("IAB3",)}
    deals: tuple[Identifier, ...] = ()
    deals_only: bool = False
    max_cpm_micros: int = Field(default=500_000_000, ge=1_000, le=MAX_MICROS)
    child_directed: bool = False
    targeting: Targeting = Targeting()
    creatives: tuple[Creative, ...] = Field(min_length=1, max_length=500)
    pcvr: dict[str, Probability] = {"*": 0.001}
    experiment: Experiment | None = None

    @field_validator("timezone")
    @classmethod
    def known_zone(cls, name: str) -> str:
        try:
            ZoneInfo(name)
        except (ZoneInfoNotFoundError, ValueError, OSError):
            raise ValueError(f"no time zone {name!r}") from None
        return name

    @field_validator("start", "end")
    @classmethod
    def in_utc(cls, when: datetime | None) -> datetime | None:
        if when is None:
            return None
        return when.astimezone(UTC) if when.tzinfo else when.replace(tzinfo=UTC)

    @field_validator("pcvr")
    @classmethod
    def has_default(cls, table: dict[str, float]) -> dict[str, float]:
        if "*" not in table:
            raise ValueError("needs the key `*`, the probability in every other segment")
        return table

    @model_validator(mode="after")
    def in_order(self) -> Campaign:
        if self.start and self.end and self.end <= self.start:
            raise ValueError("`end` is not after `start`")
        if len({own.creative_id for own in self.creatives}) != len(self.creatives):
            raise ValueError("two creatives have one id")
        return self

    def day(self, now: int) -> tuple[str, int, int]:
        """The local day that holds `now` (microseconds): its date, start and end. Days of 23 and 25 hours are whole days."""
        zone = ZoneInfo(self.timezone)
        local = datetime.fromtimestamp(now / 1e6, zone)
        start = local.replace(hour=0, minute=0, second=0, microsecond=0, fold=0)
        end = start.replace(tzinfo=None) + timedelta(days=1)
        return local.date().isoformat(), _micros(start), _micros(end.replace(tzinfo=zone))

    def running(self, now: int) -> bool:
        return (self.start is None or _micros(self.start) <= now) and (self.end is None or now < _micros(self.end))


class CampaignChange(_Setting):
    """What may change while a campaign runs. A limit of 0 takes the limit away."""

    budget_micros: int | None = Field(default=None, ge=0, le=MAX_MICROS)
    target_cpa_micros: int | None = Field(default=None, ge=0, le=MAX_MICROS)
    max_cpm_micros: int | None = Field(default=None, ge=1_000, le=MAX_MICROS)
    status: Literal["running", "paused", "killed"] | None = None
    start: datetime | None = None
    end: datetime | None = None


class CampaignFile(_Setting):
    """The JSON file of `--campaigns`."""

    currency: str = Field(default="USD", pattern=r"^[A-Z]{3}$")
    campaigns: tuple[Campaign, ...] = Field(min_length=1, max_length=20_000)


def _micros(when: datetime) -> int:
    return round(when.timestamp() * 1e6)


def load_campaigns(path: Path) -> CampaignFile:
    """Campaigns of a JSON file, or of a shop folder with `campaigns.parquet`.

    Raises:
        RankloomError: nothing there, or a field is wrong; the message names campaign and field.
    """
    if path.is_dir():
        return from_shop(path)
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except OSError:
        raise RankloomError(
            f"no file {path}", place="--campaigns", action="give a JSON file or a shop folder", code="file-missing"
        ) from None
    except ValueError as error:
        raise RankloomError(
            f"{path.name} is not valid JSON: {error}", place=str(path), action="mend it", code="json-broken"
        ) from None
    loaded: CampaignFile = check(data, CampaignFile, str(path))
    return loaded


def check(data: Any, model: type[Any], place: str) -> Any:
    """`data` as a `model`; the first thing that is wrong with it as a `RankloomError`."""
    try:
        return model.model_validate(data)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise RankloomError(
            f"{where or 'the body'}: {first['msg']}, got {str(first.get('input'))[:100]!r}",
            place=f"{place} {where}".strip(),
            action="mend this field",
            code="campaign-malformed",
        ) from None


def from_shop(path: Path, *, prior: float = 200.0) -> CampaignFile:
    """A shop's advertisers, with banner and native creatives made of the item, and conversion tables from its log.

    The flights of a simulated shop lie in its own past: they are ignored. `prior` is the strength, in impressions, with
    which a segment's rate is drawn to the item's, and the item's to the shop's.
    """
    from rankloom.data.shop import Shop

    shop = Shop.open(path)
    table = shop.campaigns()
    if table is None or table.is_empty():
        raise RankloomError(
            "the shop has no campaigns",
            place=str(path),
            action="add campaigns.parquet (campaign_id, item_id, budget_micros), or give a JSON file",
            code="campaigns-missing",
        )
    items = {row["item_id"]: row for row in shop.items().iter_rows(named=True)}
    tables = conversion_tables(shop, table["item_id"].to_list(), prior=prior)
    roots = {
        root: code for code, root in enumerate(sorted({(row.get("category") or [""])[0] for row in items.values()}))
    }
    simulated = "simulated" in table.columns and bool(table["simulated"].any())
    campaigns = []
    for row in table.iter_rows(named=True):
        item = items.get(row["item_id"], {"item_id": row["item_id"], "title": row["item_id"]})
        campaigns.append(
            check(
                {
                    "campaign_id": row["campaign_id"],
                    "name": item["title"],
                    "item_id": row["item_id"],
                    "budget_micros": row["budget_micros"],
                    "target_cpa_micros": row.get("target_cpa_micros"),
                    "start": None if simulated else row.get("start"),
                    "end": None if simulated else row.get("end"),
                    "category": roots.get((item.get("category") or [""])[0], -1),
                    "creatives": creatives_of(item, row.get("creative")),
                    "pcvr": tables[row["item_id"]],
                },
                Campaign,
                f"{path} campaign {row['campaign_id']}",
            )
        )
    currency = next((row.get("currency") for row in items.values() if row.get("currency")), None) or "USD"
    return CampaignFile(currency=currency, campaigns=tuple(campaigns))


def creatives_of(item: dict[str, Any], creative: str | None) -> list[dict[str, Any]]:
    """Text banners in the three most common sizes and a native creative, from an item's own words."""
    from html import escape

    title = creative or item["title"]
    link = f"https://example.com/items/{item['item_id']}"
    markup = f'<a href="{escape(link, quote=True)}" style="font:16px sans-serif">{escape(title)}</a>'
    sizes = ((300, 250), (320, 50), (728, 90))
    banners: list[dict[str, Any]] = [
        {"creative_id": f"{item['item_id']}-{w}x{h}", "kind": "banner", "w": w, "h": h, "markup": markup}
        for w, h in sizes
    ]
    native = {
        "title": title[:500], "link": link, "description": (item.get("description") or None), "sponsored": item.get("brand"),
        "image_url": item.get("image_url"), "image_w": 1200 if item.get("image_url") else None,
        "image_h": 627 if item.get("image_url") else None,
    }  # fmt: skip
    return [*banners, {"creative_id": f"{item['item_id']}-native", "kind": "native", "native": native}]


def conversion_tables(shop: Any, items: Sequence[str], *, prior: float) -> dict[str, dict[str, float]]:
    """P(purchase | impression) of each item, and by the root category a person deals with most, from the shop's log.

    A segment's rate is the item's rate with `prior` impressions of evidence, plus what was seen in it; likewise the
    item's from the shop's. The segment's name is what an exchange would send in `user.data.segment`.
    """
    import polars as pl

    events = shop.scan("events.parquet").select("user_id", "item_id", "event")
    catalogue = shop.items()
    roots = (
        catalogue.lazy().select("item_id", pl.col("category").list.first().alias("segment"))
        if "category" in catalogue.columns
        else catalogue.lazy().select("item_id", pl.lit(None, dtype=pl.String).alias("segment"))
    )
    tastes = (
        events.join(roots, on="item_id", how="inner")
        .filter(pl.col("segment").is_not_null() & (pl.col("event") != "impression"))
        .group_by("user_id", "segment").len()
        .sort(["user_id", "len", "segment"], descending=[False, True, False])
        .group_by("user_id", maintain_order=True).first()
        .select("user_id", "segment")
    )  # fmt: skip
    counted = (
        events.filter(pl.col("event").is_in(["impression", "purchase"]))
        .join(tastes, on="user_id", how="left")
        .group_by("item_id", "segment")
        .agg(
            (pl.col("event") == "impression").sum().alias("shown"), (pl.col("event") == "purchase").sum().alias("bought")
        )
        .collect()
    )  # fmt: skip
    shown, bought = int(counted["shown"].sum()), int(counted["bought"].sum())
    base = bought / shown if shown else 0.001
    wanted = counted.filter(pl.col("item_id").is_in(list(items)))
    tables: dict[str, dict[str, float]] = {}
    by_item: dict[str, list[tuple[str | None, int, int]]] = {}
    for item, segment, n, k in wanted.select("item_id", "segment", "shown", "bought").iter_rows():
        by_item.setdefault(item, []).append((segment, n, k))
    for item in items:
        rows = by_item.get(item, [])
        n, k = sum(row[1] for row in rows), sum(row[2] for row in rows)
        rate = min((k + prior * base) / (n + prior), 1.0)
        tables[item] = {"*": rate}
        for segment, seen, sold in rows:
            if segment is not None:
                tables[item][segment] = min((sold + prior * rate) / (seen + prior), 1.0)
    return tables
