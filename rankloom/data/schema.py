"""Names and types of the shop's tables: the one place where a column name is spelled.

A shop is a folder of Parquet files (DESIGN: the data). Times are UTC microseconds, money is integer micros of one currency.
"""

from __future__ import annotations

from typing import Final

import polars as pl

ITEMS: Final = "items.parquet"
EVENTS: Final = "events.parquet"
USERS: Final = "users.parquet"
CAMPAIGNS: Final = "campaigns.parquet"

TIME: Final = pl.Datetime("us", "UTC")

ITEM_REQUIRED: Final[dict[str, pl.DataType]] = {"item_id": pl.String(), "title": pl.String()}
ITEM_OPTIONAL: Final[dict[str, pl.DataType]] = {
    "description": pl.String(),
    "brand": pl.String(),
    "category": pl.List(pl.String()),  # root first
    "price_micros": pl.Int64(),
    "currency": pl.String(),
    "attributes": pl.List(pl.Struct({"key": pl.String(), "value": pl.String()})),
    "created_at": TIME,
    "duration_s": pl.Float64(),
    "in_stock": pl.Boolean(),
    "image_url": pl.String(),
    "simulated": pl.Boolean(),
}
EVENT_REQUIRED: Final[dict[str, pl.DataType]] = {
    "user_id": pl.String(),
    "item_id": pl.String(),  # null only for `search`
    "timestamp": TIME,
    "event": pl.String(),
}
EVENT_OPTIONAL: Final[dict[str, pl.DataType]] = {
    "value": pl.Float64(),
    "watch_s": pl.Float64(),
    "surface": pl.String(),
    "query": pl.String(),
    "request_id": pl.String(),
    "position": pl.Int32(),
    "propensity": pl.Float64(),
    "event_id": pl.String(),
    "simulated": pl.Boolean(),
}
USER_REQUIRED: Final[dict[str, pl.DataType]] = {"user_id": pl.String()}
CAMPAIGN_REQUIRED: Final[dict[str, pl.DataType]] = {
    "campaign_id": pl.String(),
    "item_id": pl.String(),
    "budget_micros": pl.Int64(),
}
CAMPAIGN_OPTIONAL: Final[dict[str, pl.DataType]] = {
    "target_cpa_micros": pl.Int64(),
    "start": TIME,
    "end": TIME,
    "creative": pl.String(),
    "simulated": pl.Boolean(),
}

# Code 0 is padding, so that an event kind indexes an embedding table directly.
EVENT_KINDS: Final[tuple[str, ...]] = (
    "<pad>",
    "impression",
    "click",
    "view",
    "like",
    "follow",
    "comment",
    "share",
    "dislike",
    "add_to_cart",
    "purchase",
    "search",
)
KIND_CODE: Final[dict[str, int]] = {kind: code for code, kind in enumerate(EVENT_KINDS)}

SURFACES: Final[tuple[str, ...]] = ("feed", "search", "ads")
SURFACE_CODE: Final[dict[str, int]] = {surface: code for code, surface in enumerate(SURFACES)}
