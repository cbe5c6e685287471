"""Bid requests in the shapes of the public OpenRTB 2.6 specification, written for these tests, and mutations of them."""

from __future__ import annotations

import copy
import json
import random
from typing import Any

from rankloom.bidding.serve.campaigns import CampaignFile

SITE = {
    "id": "site-1", "domain": "news.example.org", "cat": ["IAB12"], "page": "https://news.example.org/a", "publisher": {"id": "p-1"},
}  # fmt: skip
APP = {"id": "app-1", "bundle": "org.example.game", "storeurl": "https://store.example/1", "cat": ["IAB9"]}
DEVICE = {
    "ua": "Mozilla/5.0",
    "ip": "192.0.2.7",
    "devicetype": 4,
    "os": "android",
    "geo": {"country": "USA", "lat": 40.5, "lon": -74.25},
}
BANNER = {"w": 300, "h": 250, "format": [{"w": 300, "h": 250}, {"w": 320, "h": 50}], "pos": 1, "battr": [13]}
VIDEO = {
    "mimes": ["video/mp4", "video/webm"],
    "minduration": 5,
    "maxduration": 30,
    "protocols": [2, 3, 7],
    "w": 640,
    "h": 360,
    "plcmt": 1,
}
NATIVE = {
    "ver": "1.2",
    "request": json.dumps(
        {
            "ver": "1.2", "context": 1, "plcmttype": 1,
            "assets": [
                {"id": 1, "required": 1, "title": {"len": 25}},
                {"id": 2, "required": 1, "img": {"type": 3, "wmin": 300, "hmin": 150}},
                {"id": 3, "required": 0, "data": {"type": 1, "len": 25}},
                {"id": 4, "data": {"type": 3}},
            ],
        }
    ),
}  # fmt: skip


def request(*imps: dict[str, Any], **top: Any) -> dict[str, Any]:
    """A request with defaults of a mobile site; `None` removes a field."""
    body: dict[str, Any] = {
        "id": "req-1", "imp": [{"id": str(n + 1), **imp} for n, imp in enumerate(imps)], "site": SITE, "device": DEVICE,
        "user": {"id": "u-1", "data": [{"id": "dmp", "segment": [{"id": "shoes"}]}]}, "at": 2, "tmax": 200, "cur": ["USD"],
    }  # fmt: skip
    body.update(top)
    return {name: own for name, own in body.items() if own is not None}


def fixtures() -> dict[str, dict[str, Any]]:
    """One request for each shape that the specification shows or describes; every one of them can be bid on."""
    deal = {"id": "deal-1", "bidfloor": 2.5, "bidfloorcur": "USD", "at": 1, "wseat": ["rankloom"]}
    return {
        "banner": request({"banner": BANNER, "bidfloor": 0.03}),
        "banner in formats only": request({"banner": {"format": [{"w": 728, "h": 90}, {"w": 300, "h": 250}]}}),
        "first price": request({"banner": BANNER}, at=1),
        "no auction type": request({"banner": BANNER}, at=None),
        "video": request({"video": VIDEO, "secure": 1, "bidfloor": 1}),
        "native": request({"native": NATIVE}),
        "native as an object": request({"native": {"request": json.loads(NATIVE["request"])}}),  # type: ignore[arg-type]
        "many formats, one impression": request({"banner": BANNER, "video": VIDEO, "native": NATIVE}),
        "many impressions": request({"banner": BANNER}, {"video": VIDEO}, {"native": NATIVE}, {"banner": {"w": 1, "h": 1}}),
        "app": request({"banner": BANNER, "instl": 1, "displaymanager": "sdk"}, site=None, app=APP),
        "dooh": request({"banner": BANNER, "qty": {"multiplier": 14.2}}, site=None, dooh={"id": "screen", "venuetype": ["airport"]}),
        "open auction with a deal": request({"banner": BANNER, "pmp": {"private_auction": 0, "deals": [deal]}}),
        "private auction": request({"banner": BANNER, "bidfloor": 9e8, "pmp": {"private_auction": 1, "deals": [deal]}}),
        "fixed price deal": request({"banner": BANNER, "pmp": {"private_auction": 1, "deals": [{**deal, "at": 3}]}}),
        "test": request({"banner": BANNER}, test=1),
        "block lists": request({"banner": BANNER}, bcat=["IAB25", "IAB26-1"], badv=["rival.example"], bapp=["org.x"], acat=None, cattax=1),
        "seats": request({"banner": BANNER}, wseat=["other", "rankloom"]),
        "several currencies": request({"banner": BANNER}, cur=["EUR", "USD"]),
        "no currency, user, device": request({"banner": BANNER}, cur=None, user=None, device=None),
        "pod of videos": request(*[{"video": {**VIDEO, "podid": "pod-1", "slotinpod": n, "mincpmpersec": 0.01}} for n in (1, 0, -1)]),
        "unknown fields everywhere": request(
            {"banner": {**BANNER, "ext": {"x": [1]}, "new": None}, "ext": {"gpid": "/1/2"}, "rwdd": 0, "ssai": 0, "novel": {"a": [{}]}},
            ext={"prebid": {"targeting": {}}}, source={"schain": {"complete": 1, "nodes": [], "ver": "1.0"}}, regs={"gpp": "DB", "ext": {}},
        ),
        "nulls": request({"banner": {**BANNER, "battr": None}, "bidfloor": None, "pmp": None, "secure": None}, bcat=None, wseat=[]),
    }  # fmt: skip


def campaign_file(n: int = 4, **more: Any) -> CampaignFile:
    """Advertisers with a creative of each kind; the first also takes deal-1."""
    campaigns = []
    for k in range(n):
        own: dict[str, Any] = {
            "campaign_id": f"c{k}", "name": f"Shop {k}", "budget_micros": 50_000_000, "target_cpa_micros": 20_000_000 + k * 1_000_000,
            "adomain": [f"shop{k}.example"], "categories": {1: ["IAB22-2"]}, "deals": ["deal-1"] if k == 0 else [],
            "pcvr": {"*": 0.0005, "shoes": 0.001},
            "creatives": [
                {"creative_id": f"b{k}", "kind": "banner", "w": 300, "h": 250, "markup": "<a href=\"https://shop.example/\">buy</a>"},
                {"creative_id": f"v{k}", "kind": "video", "duration_s": 15, "markup": "<VAST version=\"3.0\"/>"},
                {"creative_id": f"n{k}", "kind": "native", "native": {
                    "title": "A pair of shoes that nobody needs", "link": "https://shop.example/", "sponsored": "Shop",
                    "image_url": "https://shop.example/i.png", "image_w": 1200, "image_h": 627}},
            ],
        }  # fmt: skip
        own.update(more)
        campaigns.append(own)
    return CampaignFile.model_validate({"currency": "USD", "campaigns": campaigns})


_ODD: tuple[Any, ...] = (
    None, True, -1, 0, 1, 2**63, -(2**70), 1e308, -0.0, 0.1, "", "0", "x" * 5000, "\u2028\u0000", "${AUCTION_PRICE}", [], {}, [None],
    [[[]]], {"id": {}}, "💸", "IAB25", "USD", 3.7, "12", [1, "a"], {"w": -1}, 1e-320,
)  # fmt: skip


def mutated(rng: random.Random) -> bytes:
    """A fixture with a few random injuries: fields replaced, removed, doubled, or bytes broken."""
    body: Any = copy.deepcopy(rng.choice(_FIXTURES))
    for _ in range(rng.randint(1, 4)):
        places = list(_places(body))
        holder, key = rng.choice(places)
        kind = rng.random()
        if kind < 0.5:
            holder[key] = copy.deepcopy(rng.choice(_ODD))
        elif kind < 0.7:
            del holder[key]
        elif kind < 0.85 and isinstance(holder, list):
            holder.extend(copy.deepcopy(holder[key]) for _ in range(rng.choice((1, 2, 300))))
        else:
            other, name = rng.choice(places)
            try:
                holder[key] = copy.deepcopy(other[name])
            except (KeyError, IndexError):
                continue
        if not isinstance(body, dict | list) or not list(_places(body)):
            break
    text = json.dumps(body).encode()
    if rng.random() < 0.2 and text:
        broken = bytearray(text)
        for _ in range(rng.randint(1, 3)):
            at = rng.randrange(len(broken))
            kind = rng.random()
            if kind < 0.4:
                broken[at] = rng.randrange(256)
            elif kind < 0.7:
                del broken[at : at + rng.randint(1, 20)]
                if not broken:
                    break
            else:
                broken[at:at] = rng.choice((b"NaN", b"\\ud800", b"\xff", b"[" * 400, b"1e999", b'"', b"{"))
        return bytes(broken)
    return text


def _places(value: Any) -> Any:
    if isinstance(value, dict):
        for key in list(value):
            yield value, key
            yield from _places(value[key])
    elif isinstance(value, list):
        for key in range(len(value)):
            yield value, key
            yield from _places(value[key])


_FIXTURES = list(fixtures().values())
