"""OpenRTB 2.6: what is read of a bid request, the reasons for not bidding, the text of a reply, and a check of it.

Only fields that a decision depends on are read; every other field and every `ext` is tolerated and ignored. A field
that is read and has the wrong type makes the request malformed as a whole (an exchange that sends `"bidfloor": "x"` has
a bug that silence would hide). Prices are read as decimals.
"""

from __future__ import annotations

import json
from decimal import Decimal
from enum import StrEnum
from typing import Annotated, Any, Final, TypeGuard

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

VERSION: Final = "2.6"
BANNER, VIDEO, NATIVE = 1, 2, 4  # bid.mtype (1 banner, 2 video, 3 audio, 4 native)
Price = Annotated[Decimal, Field(ge=0, le=Decimal(10) ** 9, allow_inf_nan=False)]
Text = Annotated[str, Field(max_length=4096)]
Id = Annotated[str, Field(min_length=1, max_length=512)]


class _Read(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=False)


class Format(_Read):
    w: int | None = None
    h: int | None = None


class Banner(_Read):
    format: list[Format] | None = None
    w: int | None = None
    h: int | None = None
    battr: list[int] | None = None


class Video(_Read):
    mimes: list[Text] | None = None
    minduration: int | None = None
    maxduration: int | None = None
    rqddurs: list[int] | None = None
    protocols: list[int] | None = None
    battr: list[int] | None = None
    w: int | None = None
    h: int | None = None


class Native(_Read):
    request: Annotated[str, Field(max_length=65_536)] | dict[str, Any] | None = None
    ver: Text | None = None
    battr: list[int] | None = None


class Deal(_Read):
    id: Id
    bidfloor: Price | None = None
    bidfloorcur: Text | None = None
    at: int | None = None
    wseat: list[Text] | None = None
    wadomain: list[Text] | None = None


class Pmp(_Read):
    private_auction: int | None = None
    deals: list[Deal] | None = None


class Imp(_Read):
    id: Id
    banner: Banner | None = None
    video: Video | None = None
    native: Native | None = None
    pmp: Pmp | None = None
    bidfloor: Price | None = None
    bidfloorcur: Text | None = None
    secure: int | None = None


class Segment(_Read):
    id: Text | None = None


class Data(_Read):
    segment: list[Segment] | None = None


class User(_Read):
    id: Text | None = None
    buyeruid: Text | None = None
    data: list[Data] | None = None


class Geo(_Read):
    country: Text | None = None


class Device(_Read):
    devicetype: int | None = None
    geo: Geo | None = None


class Site(_Read):
    domain: Text | None = None


class App(_Read):
    bundle: Text | None = None
    domain: Text | None = None


class Regs(_Read):
    coppa: int | None = None


class BidRequest(_Read):
    id: Id
    imp: Annotated[list[Imp], Field(min_length=1, max_length=256)]
    site: Site | None = None
    app: App | None = None
    device: Device | None = None
    user: User | None = None
    regs: Regs | None = None
    test: int | None = None
    at: int | None = None
    tmax: int | None = None
    wseat: list[Text] | None = None
    bseat: list[Text] | None = None
    cur: list[Text] | None = None
    acat: list[Text] | None = None
    bcat: list[Text] | None = None
    cattax: int | None = None
    badv: list[Text] | None = None
    bapp: list[Text] | None = None


_REQUEST = TypeAdapter(BidRequest)
FIRST_PRICE, SECOND_PRICE, FIXED_PRICE = 1, 2, 3


class MalformedRequestError(Exception):
    """The request cannot be read: which field, and why."""

    def __init__(self, field: str, reason: str, value: str) -> None:
        super().__init__(f"{field or 'the body'}: {reason}")
        self.field, self.reason, self.value = field, reason, value


def parse(body: bytes) -> BidRequest:
    """Raises MalformedRequestError where the body is not an OpenRTB 2.x bid request."""
    try:
        request = _REQUEST.validate_json(body)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        field = ".".join(str(part) for part in first["loc"])
        raise MalformedRequestError(field, str(first["msg"]), repr(first.get("input"))[:200]) from None
    if len(request.imp) > 1 and len({imp.id for imp in request.imp}) != len(request.imp):
        raise MalformedRequestError("imp.id", "two impressions have one id", "")
    return request


class Reason(StrEnum):
    """Why there is no bid. Every no-bid has exactly one; `NBR` is its code in the protocol's own list."""

    MALFORMED = "malformed"
    KILLED = "killed"
    NOT_READY = "not-ready"
    TMAX = "tmax"
    CURRENCY = "currency"
    SEAT = "seat-blocked"
    NO_CAMPAIGN = "no-campaign"
    NO_MULTIPLIER = "no-multiplier"
    COPPA = "coppa"
    CATEGORY = "category-blocked"
    DOMAIN = "domain-blocked"
    APP = "app-blocked"
    SITE = "site-blocked"
    NO_DEAL = "no-deal"
    FLOOR_CURRENCY = "floor-currency"
    BELOW_FLOOR = "below-floor"
    BELOW_DEAL_FLOOR = "below-deal-floor"
    BUDGET = "budget"
    LEDGER = "ledger-unavailable"
    STALE = "control-stale"


NBR: Final[dict[Reason, int]] = {
    Reason.MALFORMED: 2,
    Reason.TMAX: 15,
    Reason.SITE: 7,
    Reason.LEDGER: 1,
    Reason.NOT_READY: 1,
}


def nbr(reason: Reason) -> int:
    """No-bid reason code; 0 (unknown) where the public list has no word for it. Codes from 500 on are the exchange's."""
    return NBR.get(reason, 0)


def domain_matches(domain: str, blocked: str) -> bool:
    """`blocked` names the domain itself or one above it."""
    domain, blocked = domain.lower(), blocked.lower()
    return domain == blocked or domain.endswith("." + blocked)


def category_matches(own: str, listed: str) -> bool:
    """A listed category covers its subcategories: IAB7 covers IAB7-3."""
    return own == listed or own.startswith(listed + "-")


# Native 1.2: asset image types and data types
_ICON, _MAIN = 1, 3
_DATA: Final = {1: "sponsored", 2: "description", 12: "call_to_action"}


def native_markup(request: str | dict[str, Any] | None, assets: Any) -> str | None:
    """The native response that fills the request's assets, as text; None where a required one cannot be filled.

    A request that is unreadable or asks for nothing gets none. A title longer than asked for is cut at a word.
    """
    try:
        asked = json.loads(request) if isinstance(request, str) else request
    except (ValueError, RecursionError):
        return None
    if isinstance(asked, dict) and isinstance(asked.get("native"), dict):
        asked = asked["native"]
    wanted = asked.get("assets") if isinstance(asked, dict) else None
    if not isinstance(wanted, list) or not wanted or len(wanted) > 64:
        return None
    filled: list[dict[str, Any]] = []
    for asset in wanted:
        if not isinstance(asset, dict) or not _is_int(asset.get("id")):
            return None
        one = _fill(asset, assets)
        if one is not None:
            filled.append({"id": asset["id"], **one})
        elif asset.get("required") == 1:
            return None
    if not filled:
        return None
    return json.dumps({"native": {"ver": "1.2", "link": {"url": assets.link}, "assets": filled}}, ensure_ascii=True)


def _fill(asset: dict[str, Any], assets: Any) -> dict[str, Any] | None:
    title, image, data = asset.get("title"), asset.get("img"), asset.get("data")
    if isinstance(title, dict):
        limit = title.get("len")
        text = assets.title
        if _is_int(limit) and 0 < limit < len(text):
            text = text[: limit + 1].rsplit(" ", 1)[0][:limit] if " " in text[: limit + 1] else text[:limit]
        return {"title": {"text": text}}
    if isinstance(image, dict):
        if image.get("type") == _ICON:
            return {"img": {"url": assets.icon_url}} if assets.icon_url else None
        if image.get("type") in (_MAIN, None) and assets.image_url:
            small = any(
                _is_int(least) and (size or 0) < least
                for least, size in ((image.get("wmin"), assets.image_w), (image.get("hmin"), assets.image_h))
            )
            return None if small else {"img": {"url": assets.image_url, "w": assets.image_w, "h": assets.image_h}}
        return None
    if isinstance(data, dict):
        name = _DATA.get(data["type"]) if _is_int(data.get("type")) else None
        value = getattr(assets, name) if name else None
        return {"data": {"value": value}} if value else None
    return None


def _is_int(value: Any) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool)


def reply_faults(request: Any, reply: Any) -> list[str]:
    """What a reply lacks to be a valid OpenRTB answer to a request (both parsed JSON); each sentence is one fault."""
    faults: list[str] = []
    if not isinstance(reply, dict):
        return ["the reply is not an object"]
    if reply.get("id") != request.get("id"):
        faults.append("the reply's id is not the request's")
    if "seatbid" not in reply:
        if not _is_int(reply.get("nbr")):
            faults.append("neither a bid nor a no-bid reason")
        return faults
    currencies = request.get("cur") or []
    if currencies and reply.get("cur", "USD") not in currencies:
        faults.append("a currency that was not offered")
    imps = {imp["id"]: imp for imp in request["imp"]}
    seen: set[str] = set()
    for seat in reply["seatbid"]:
        if seat.get("seat") in (request.get("bseat") or []):
            faults.append("a blocked seat")
        if request.get("wseat") and seat.get("seat") not in request["wseat"]:
            faults.append("a seat that is not allowed")
        for bid in seat["bid"]:
            faults += _bid_faults(imps.get(bid.get("impid")), bid, request)
            if bid.get("id") in seen or not isinstance(bid.get("id"), str):
                faults.append("bid ids are not unique texts")
            seen.add(str(bid.get("id")))
    return faults


def _bid_faults(imp: dict[str, Any] | None, bid: dict[str, Any], request: dict[str, Any]) -> list[str]:
    if imp is None:
        return ["a bid for an impression that was not offered"]
    faults = []
    price = bid.get("price")
    if isinstance(price, bool) or not isinstance(price, int | float) or price <= 0:
        faults.append("no positive price")
    deals = {deal["id"]: deal for deal in (imp.get("pmp") or {}).get("deals") or []}
    if "dealid" in bid and bid["dealid"] not in deals:
        faults.append("a deal that was not offered")
    if (imp.get("pmp") or {}).get("private_auction") == 1 and "dealid" not in bid:
        faults.append("an open bid in a private auction")
    floor = deals[bid["dealid"]].get("bidfloor") if bid.get("dealid") in deals else imp.get("bidfloor")
    if isinstance(price, int | float) and floor and price < float(floor) - 1e-9:
        faults.append("a price below the floor")
    kind = {1: "banner", 2: "video", 4: "native"}.get(bid.get("mtype", 0))
    if kind is None or imp.get(kind) is None:
        faults.append("markup of a kind that was not asked for")
    for name in ("adm", "crid", "adomain"):
        if not bid.get(name):
            faults.append(f"no {name}")
    for domain in bid.get("adomain", []):
        if any(domain_matches(domain, blocked) for blocked in request.get("badv") or []):
            faults.append("a blocked advertiser")
    if kind == "banner" and imp.get("banner"):
        banner = imp["banner"]
        sizes = {(own.get("w"), own.get("h")) for own in banner.get("format") or []} | {
            (banner.get("w"), banner.get("h"))
        }
        if (bid.get("w"), bid.get("h")) not in sizes:
            faults.append("a size that was not offered")
    return faults
