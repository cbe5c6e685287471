"""The bid path: OpenRTB request -> eligible campaigns -> price -> filters -> reservation -> reply. No neural network.

Value of an impression = multiplier x p, in micros; the bid is the value in a second-price auction, the shaded value in a
first-price one, never above the campaign's cap. What depends only on the slot (creatives that fit, targeting, p) is
worked out once per kind of slot and ranked once per control tick, so a request walks a short sorted list and stops at
the first campaign that nothing forbids. What depends on the request (block lists, seats, deals, floors, budget) is asked
on the way, cheapest first; the reason reported is that of the best-valued campaign.

One lock (the ledger's) around everything: requests are answered one after the other.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any, Final
from zlib import crc32

import numpy as np

from rankloom.bidding.protocol import FloatArray, IntArray
from rankloom.bidding.serve import openrtb
from rankloom.bidding.serve.campaigns import Campaign, Creative
from rankloom.bidding.serve.landscape import Landscape
from rankloom.bidding.serve.ledger import Ledger, Refusal
from rankloom.bidding.serve.money import PPB, cpm_text, floor_to_micros, parse_cpm
from rankloom.bidding.serve.notices import Outcome
from rankloom.bidding.serve.openrtb import (
    FIRST_PRICE,
    FIXED_PRICE,
    BidRequest,
    Deal,
    Imp,
    MalformedRequestError,
    Reason,
)
from rankloom.bidding.serve.pcvr import ConversionModel

_MAX_SLOTS: Final = 8192
_BUCKETS: Final = 1 << 16
_HIGHEST_FLOOR: Final = Decimal(10) ** 9
_LOST_ON_PRICE: Final = (102, 103)  # loss reasons: a higher bid, a bid for a private deal


@dataclass(frozen=True)
class EngineSettings:
    """Attributes:
    base_url: where the exchange reaches this server, for the notice addresses.
    rates: micros of our currency for one unit of another, for floors in it.
    min_tmax_ms: below this `tmax` there is no answer in time; `margin_ms` is kept for the way back.
    no_bid_body: answer no-bids with 200, `nbr` and the reason instead of 204.
    shading: bid argmax (value - bid) P(win) in first-price auctions, once the landscape is known.
    """

    currency: str = "USD"
    base_url: str = "http://127.0.0.1:8090"
    rates: dict[str, int] = field(default_factory=dict)
    min_tmax_ms: int = 5
    margin_ms: int = 2
    no_bid_body: bool = False
    shading: bool = True


@dataclass(frozen=True)
class Reply:
    """An HTTP answer. `reason` is empty where there is a bid."""

    status: int
    body: bytes
    reason: str = ""
    bids: int = 0


class Arm:
    """One account holder of the bid path: a campaign, or one side of its budget-split test.

    Attributes:
        multiplier: micros a conversion in force now; `standby` what the fallback controller would use.
        low, high: the arm's share of the 65,536 traffic buckets.
    """

    __slots__ = (
        "account", "blocked_as", "campaign", "creatives", "high", "key", "low", "multiplier", "reasons",
        "standby", "status", "tick",
    )  # fmt: skip

    def __init__(self, key: str, campaign: Campaign, *, low: int = 0, high: int = _BUCKETS) -> None:
        self.key, self.low, self.high = key, low, high
        self.account = 0  # none is open
        self.tick = 0
        self.multiplier = self.standby = 0
        self.status = "running"
        self.reasons: Counter[str] = Counter()
        self.set_campaign(campaign)

    def set_campaign(self, campaign: Campaign) -> None:
        self.campaign = campaign
        self.creatives = [(own, _static_text(campaign, own)) for own in campaign.creatives]
        self.blocked_as = {tax: tuple(own) for tax, own in campaign.categories.items()}

    @property
    def share(self) -> float:
        return (self.high - self.low) / _BUCKETS


def _static_text(campaign: Campaign, creative: Creative) -> str:
    """The part of a bid's JSON that no request changes."""
    first = next(iter(campaign.categories.items()), None)
    body: dict[str, Any] = {
        "adid": creative.creative_id, "adomain": list(campaign.adomain), "cid": campaign.campaign_id, "crid": creative.creative_id,
        "mtype": {"banner": openrtb.BANNER, "video": openrtb.VIDEO, "native": openrtb.NATIVE}[creative.kind],
    }  # fmt: skip
    if first is not None and first[1]:
        body["cattax"], body["cat"] = first[0], list(first[1])
    if campaign.bundle:
        body["bundle"] = campaign.bundle
    if creative.attributes:
        body["attr"] = list(creative.attributes)
    if creative.w and creative.h:
        body["w"], body["h"] = creative.w, creative.h
    if creative.duration_s:
        body["dur"] = creative.duration_s
    if creative.markup is not None:
        body["adm"] = creative.markup
    return json.dumps(body, ensure_ascii=True)[1:-1]


class Candidate:
    """One arm in one kind of slot. `bid` is -1 until shading was asked for in this tick."""

    __slots__ = ("arm", "bid", "p", "tag", "text", "value")

    def __init__(self, arm: Arm, p: int, tag: int, text: str) -> None:
        self.arm, self.p, self.tag, self.text = arm, p, tag, text
        self.value = self.bid = -1


class Slot:
    """A kind of slot: who may show there, ranked for the multipliers of `generation`."""

    __slots__ = ("all", "collected", "count", "empty", "first_price", "generation", "ranked")

    def __init__(self, candidates: list[Candidate], empty: Reason, first_price: bool) -> None:
        self.all, self.empty, self.first_price = candidates, empty, first_price
        self.generation = -1
        self.ranked: list[Candidate] = []
        self.count = self.collected = 0


@dataclass(frozen=True)
class SlotTraffic:
    """What one kind of slot saw in a tick: for response curves. Arrays over its candidates."""

    count: int
    first_price: bool
    arms: tuple[str, ...]
    value_C: FloatArray
    tag_C: IntArray


class Engine:
    """Answers bid requests and notices.

    Args:
        secret: key of the marks that prove a notice's id is ours.
        clock: the time in microseconds.
    """

    def __init__(
        self,
        ledger: Ledger,
        arms: Iterable[Arm],
        p_model: ConversionModel,
        settings: EngineSettings | None = None,
        *,
        secret: bytes,
        clock: Callable[[], int] = lambda: time.time_ns() // 1000,
    ) -> None:
        self.ledger, self.p_model, self.settings, self.clock = ledger, p_model, settings or EngineSettings(), clock
        self.lock = ledger.lock
        self._mac = hashlib.blake2b(key=secret, digest_size=8)
        self.arms: dict[str, Arm] = {arm.key: arm for arm in arms}
        self.killed = False
        self.stale = False
        self.fresh_until = self.dead_after = 1 << 62
        self.next_boundary = 1 << 62
        self.on_boundary: Callable[[int], None] = lambda _: None
        self.on_stale: Callable[[], None] = lambda: None
        self.generation = 0
        self._slots: dict[Any, Slot] = {}
        self.reasons: Counter[str] = Counter()
        self.counts: Counter[str] = Counter()
        groups = ledger.documents.get("groups", [])
        self._groups: dict[str, int] = {name: tag for tag, name in enumerate(groups, start=1)}
        self.landscapes: dict[int, Landscape] = {tag: Landscape() for tag in self._groups.values()}
        self._lwc: dict[tuple[int, int], list[int]] = {}
        ledger.lapsed = self._lapsed
        url = self.settings.base_url.rstrip("/") + "/v1/notices/"
        text = json.dumps(url)[1:-1]
        tail = "&p=${AUCTION_PRICE}&c=${AUCTION_CURRENCY}&m=${AUCTION_MIN_TO_WIN}"
        self._urls = (
            f'"nurl":"{text}win?b=', f'{tail}","burl":"{text}bill?b=', f'{tail}","lurl":"{text}loss?b=',
            f'{tail}&r=${{AUCTION_LOSS}}"',
        )  # fmt: skip
        self._test_ids = 0
        self.rebuild()

    # -- structure: changes with campaigns, not with requests ---------------------------------------------------------------

    def rebuild(self) -> None:
        """Forgets every worked-out slot: campaigns, creatives or p changed."""
        with self.lock:
            self.collect()
            self._slots = {}
            self.generation += 1
            own = [arm.campaign for arm in self.arms.values()]
            self._countries = {code for c in own for code in c.targeting.countries}
            self._devices = {code for c in own for code in c.targeting.device_types}
            self._segments = {name for c in own for name in (*c.targeting.segments, *c.pcvr) if name != "*"}
            self._attributes = any(creative.attributes for c in own for creative in c.creatives)

    def set_multipliers(self, multipliers: dict[str, int], *, fresh_until: int, dead_after: int) -> None:
        """The control path's word for the coming tick, in micros a conversion."""
        with self.lock:
            for key, micros in multipliers.items():
                arm = self.arms.get(key)
                if arm is not None:
                    arm.multiplier = micros
                    if arm.account:
                        self.ledger.set_multiplier(arm.account, arm.tick, micros)
            self.fresh_until, self.dead_after, self.stale = fresh_until, dead_after, False
            self.generation += 1

    def _group(self, name: str) -> int:
        tag = self._groups.get(name)
        if tag is None:
            if len(self._groups) >= 4000:
                return 0
            tag = self._groups[name] = len(self._groups) + 1
            self.landscapes[tag] = Landscape()
            self.ledger.put_document("groups", list(self._groups))
        return tag

    def group_name(self, tag: int) -> str:
        return next((name for name, own in self._groups.items() if own == tag), "?")

    def _slot(self, request: BidRequest, imp: Imp) -> Slot:
        banner, video, native = imp.banner, imp.video, imp.native
        first_price = request.at == FIRST_PRICE
        sizes = video_key = native_key = None
        if banner is not None:
            sizes = tuple((own.w, own.h) for own in banner.format) if banner.format else ()
            if banner.w and banner.h:
                sizes = (*sizes, (banner.w, banner.h))
        if video is not None:
            video_key = (
                tuple(video.mimes or ()), video.minduration, video.maxduration, tuple(video.protocols or ()), tuple(video.rqddurs or ()),
            )  # fmt: skip
        if native is not None:
            native_key = (
                native.request if isinstance(native.request, str) else json.dumps(native.request, sort_keys=True)
            )
        attributes: tuple[Any, ...] = ()
        if self._attributes:
            attributes = tuple(tuple(own.battr or ()) if own is not None else None for own in (banner, video, native))
        segments: tuple[str, ...] = ()
        if self._segments and request.user is not None and request.user.data:
            known = self._segments
            segments = tuple(
                sorted({s.id for d in request.user.data for s in d.segment or () if s.id is not None and s.id in known})
            )
        device = request.device
        country = device.geo.country if device is not None and device.geo is not None and self._countries else None
        kind = device.devicetype if device is not None and self._devices else None
        secure = imp.secure == 1
        key = (first_price, sizes, video_key, native_key, attributes, segments, country, kind, secure)
        slot = self._slots.get(key)
        if slot is None:
            if len(self._slots) >= _MAX_SLOTS:
                self.collect()
                self._slots.clear()
            slot = self._slots[key] = self._make_slot(imp, first_price, sizes, segments, country, kind, secure)
        if slot.generation != self.generation:
            self._rank(slot)
        return slot

    def _make_slot(
        self, imp: Imp, first_price: bool, sizes: Any, segments: tuple[str, ...], country: str | None, device: int | None,
        secure: bool,
    ) -> Slot:  # fmt: skip
        candidates = []
        for arm in self.arms.values():
            target = arm.campaign.targeting
            if (
                (target.countries and country not in target.countries)
                or (target.device_types and device not in target.device_types)
                or (target.segments and not set(target.segments) & set(segments))
            ):
                continue
            for creative, text in arm.creatives:
                whole = self._fits(imp, sizes, creative, text, secure)
                if whole is not None:
                    size = f" {creative.w}x{creative.h}" if creative.kind == "banner" else ""
                    tag = self._group(f"{creative.kind}{size} {'first' if first_price else 'second'}")
                    p = self.p_model.p_ppb(arm.campaign.campaign_id, segments)
                    candidates.append(Candidate(arm, p, tag, whole))
                    break
        return Slot(candidates, Reason.NO_CAMPAIGN, first_price)

    def _fits(self, imp: Imp, sizes: Any, creative: Creative, text: str, secure: bool) -> str | None:
        """The bid's fixed text where the creative may show in the slot."""
        if secure and not creative.secure:
            return None
        if creative.kind == "banner":
            if (
                imp.banner is None
                or (creative.w, creative.h) not in sizes
                or _any(imp.banner.battr, creative.attributes)
            ):
                return None
            return text
        if creative.kind == "video":
            video, length = imp.video, creative.duration_s or 0
            if (
                video is None
                or _any(video.battr, creative.attributes)
                or (video.mimes is not None and not set(video.mimes) & set(creative.mimes))
                or (video.protocols is not None and not set(video.protocols) & set(creative.protocols))
                or (video.rqddurs and length not in video.rqddurs)
                or length < (video.minduration or 0)
                or length > (video.maxduration or 1 << 30)
            ):
                return None
            return text
        if imp.native is None or _any(imp.native.battr, creative.attributes):
            return None
        markup = openrtb.native_markup(imp.native.request, creative.native)
        return None if markup is None else f'{text}, "adm": {json.dumps(markup)}'

    def _rank(self, slot: Slot) -> None:
        ranked = []
        stopped = 0
        for candidate in slot.all:
            arm = candidate.arm
            if arm.status != "running" or not arm.account:
                stopped += 1
                continue
            multiplier = arm.standby if self.stale else arm.multiplier
            value = multiplier * candidate.p // PPB
            cap = arm.campaign.max_cpm_micros // 1000
            candidate.value = value if value < cap else cap
            candidate.bid = -1
            if candidate.value > 0:
                ranked.append(candidate)
        ranked.sort(key=lambda own: (-own.value, own.arm.key))
        slot.ranked, slot.generation = ranked, self.generation
        if not slot.all:
            slot.empty = Reason.NO_CAMPAIGN
        elif stopped == len(slot.all):
            slot.empty = Reason.KILLED
        else:
            slot.empty = Reason.NO_MULTIPLIER

    # -- requests ---------------------------------------------------------------------------------------------------------------

    def bid(self, body: bytes, *, started: float | None = None) -> Reply:
        """Answers one bid request. `started` is the `time.perf_counter()` of its arrival, for `tmax`."""
        started = time.perf_counter() if started is None else started
        try:
            request = openrtb.parse(body)
        except MalformedRequestError as error:
            self.counts["malformed"] += 1
            problem = {"code": "malformed", "message": error.reason, "field": error.field, "value": error.value}
            return Reply(400, json.dumps(problem).encode(), Reason.MALFORMED)
        with self.lock:
            return self._answer(request, started)

    def _answer(self, request: BidRequest, started: float) -> Reply:
        now = self.clock()
        if now >= self.next_boundary:
            self.on_boundary(now)
        self.counts["requests"] += 1
        reason = self._refuse_all(request, now)
        if reason is not None:
            return self._no_bid(request, reason)
        if self.ledger.expiry_due(now):
            self.ledger.expire(now, 64)
        seats: dict[str, list[str]] = {}
        made: list[int] = []
        test = request.test == 1
        bucket = -1
        for imp in request.imp:
            if bucket < 0:
                bucket = _bucket(request)
            outcome = self._bid_on(request, imp, now, bucket, test)
            if isinstance(outcome, Reason):
                reason = reason or outcome
                continue
            seat, text, bid = outcome
            seats.setdefault(seat, []).append(text)
            if bid:
                made.append(bid)
        if not seats:
            return self._no_bid(request, reason or Reason.NO_CAMPAIGN)
        try:
            self.ledger.flush()
        except OSError:
            return self._no_bid(request, Reason.LEDGER)
        if request.tmax is not None and (time.perf_counter() - started) * 1000 > request.tmax - self.settings.margin_ms:
            for bid in made:
                self.ledger.loss(bid, now=now)
            return self._no_bid(request, Reason.TMAX)
        number = sum(map(len, seats.values()))
        self.counts["bids"] += number
        offers = ",".join(f'{{"seat":{json.dumps(seat)},"bid":[{",".join(own)}]}}' for seat, own in seats.items())
        text = f'{{"id":{json.dumps(request.id)},"cur":"{self.settings.currency}","seatbid":[{offers}]}}'
        return Reply(200, text.encode("ascii"), "", number)

    def _refuse_all(self, request: BidRequest, now: int) -> Reason | None:
        if self.killed:
            return Reason.KILLED
        if now > self.fresh_until:
            if now > self.dead_after:
                return Reason.STALE
            if not self.stale:
                self.stale = True
                self.generation += 1
                self.counts["stale"] += 1
                self.on_stale()
        if request.tmax is not None and request.tmax < self.settings.min_tmax_ms:
            return Reason.TMAX
        if request.cur and self.settings.currency not in request.cur:
            return Reason.CURRENCY
        return None

    def _no_bid(self, request: BidRequest, reason: Reason) -> Reply:
        self.reasons[reason] += 1
        if not self.settings.no_bid_body and request.test != 1:
            return Reply(204, b"", reason)
        body = f'{{"id":{json.dumps(request.id)},"nbr":{openrtb.nbr(reason)},"ext":{{"reason":"{reason}"}}}}'
        return Reply(200, body.encode("ascii"), reason)

    def _bid_on(
        self, request: BidRequest, imp: Imp, now: int, bucket: int, test: bool
    ) -> Reason | tuple[str, str, int]:
        slot = self._slot(request, imp)
        if not test:
            slot.count += 1
        first: Reason | None = None
        for candidate in slot.ranked:
            arm = candidate.arm
            if not arm.low <= bucket < arm.high:
                continue
            outcome = self._try(request, imp, slot, candidate, now, test)
            if not isinstance(outcome, Reason):
                return outcome
            arm.reasons[outcome] += 1
            first = first or outcome
        return first or slot.empty

    def _try(
        self, request: BidRequest, imp: Imp, slot: Slot, candidate: Candidate, now: int, test: bool
    ) -> Reason | tuple[str, str, int]:
        arm = candidate.arm
        reason = _blocked(request, arm)
        if reason is not None:
            return reason
        price, deal = self._price(imp, slot, candidate)
        if isinstance(price, Reason):
            return price
        campaign = arm.campaign
        if test:
            self._test_ids += 1
            token, bid = f"t-{self._test_ids:x}", 0
        else:
            outcome = self.ledger.reserve(
                arm.account, price, now=now, tick=arm.tick, p_ppb=candidate.p, tag=candidate.tag
            )
            if isinstance(outcome, Refusal):
                return Reason.BUDGET if outcome is Refusal.BUDGET else Reason.LEDGER
            bid = outcome
            token = f"{bid:x}-{arm.account:x}-{price:x}"
        mac = self._mac.copy()
        mac.update(token.encode())
        proof = f"{token}&t={mac.hexdigest()}"
        one, two, three, four = self._urls
        deal_text = f'"dealid":{json.dumps(deal)},' if deal is not None else ""
        text = (
            f'{{"id":"{token}","impid":{json.dumps(imp.id)},"price":{cpm_text(price)},{deal_text}"exp":{self.ledger.settings.bill_s},'
            f"{one}{proof}{two}{proof}{three}{proof}{four},{candidate.text}}}"
        )
        return campaign.seat, text, bid

    def _price(self, imp: Imp, slot: Slot, candidate: Candidate) -> tuple[int, str | None] | tuple[Reason, None]:
        """Micros an impression to bid, and the deal it is for. The open auction's floor, or the deal's own."""
        campaign = candidate.arm.campaign
        pmp = imp.pmp
        if pmp is not None and pmp.deals and campaign.deals:
            best = self._deal_price(pmp.deals, slot, candidate)
            if best is not None:
                return best
            below = any(deal.id in campaign.deals for deal in pmp.deals)
        else:
            below = False
        if campaign.deals_only or (pmp is not None and pmp.private_auction == 1):
            return (Reason.BELOW_DEAL_FLOOR if below else Reason.NO_DEAL), None
        floor = self._floor(imp.bidfloor, imp.bidfloorcur)
        if floor is None:
            return Reason.FLOOR_CURRENCY, None
        if candidate.value < floor:
            return Reason.BELOW_FLOOR, None
        bid = self._shaded(candidate, slot.first_price)
        return max(bid, floor), None

    def _deal_price(self, deals: list[Deal], slot: Slot, candidate: Candidate) -> tuple[int, str] | None:
        campaign = candidate.arm.campaign
        for deal in deals:
            if deal.id not in campaign.deals or (deal.wseat and campaign.seat not in deal.wseat):
                continue
            if deal.wadomain and not any(domain in deal.wadomain for domain in campaign.adomain):
                continue
            floor = self._floor(deal.bidfloor, deal.bidfloorcur)
            if floor is None or candidate.value < floor:
                continue
            if deal.at == FIXED_PRICE and floor:
                return floor, deal.id  # at 3 the deal's floor is the agreed price
            first_price = slot.first_price if deal.at is None else deal.at == FIRST_PRICE
            return max(self._shaded(candidate, first_price), floor), deal.id
        return None

    def _shaded(self, candidate: Candidate, first_price: bool) -> int:
        if not first_price or not self.settings.shading:
            return candidate.value
        if candidate.bid < 0:
            landscape = self.landscapes.get(candidate.tag)
            candidate.bid = candidate.value if landscape is None else landscape.shade(candidate.value)
        return candidate.bid

    def _floor(self, floor: Any, currency: str | None) -> int | None:
        if not floor:
            return 1
        if currency is not None and currency != self.settings.currency:
            rate = self.settings.rates.get(currency)
            if rate is None:
                return None
            floor = floor * rate / 1_000_000
        return max(floor_to_micros(min(floor, _HIGHEST_FLOOR)), 1)

    # -- notices ----------------------------------------------------------------------------------------------------------------

    def read_token(self, token: str, proof: str) -> tuple[int, int, int] | None:
        """(bid, account, amount) of an id that this server made, (0, 0, 0) of a test bid, None of any other text."""
        mac = self._mac.copy()
        mac.update(token.encode("utf-8", "replace"))
        if not hmac.compare_digest(mac.hexdigest().encode(), proof.encode("utf-8", "replace")):
            return None
        if token.startswith("t-"):
            return 0, 0, 0
        bid, account, amount = token.split("-")
        return int(bid, 16), int(account, 16), int(amount, 16)

    def notice(
        self, kind: str, token: str, proof: str, *, price: str = "", min_to_win: str = "", loss: str = ""
    ) -> str:
        """Applies a win, bill or loss notice. Returns the outcome; `flush` (and sync) before it is acknowledged.

        A notice whose mark is wrong is `forged` and changes nothing.
        """
        own = self.read_token(token, proof)
        if own is None:
            self.counts["notices_forged"] += 1
            return "forged"
        bid, account, amount = own
        if not account:
            return "test"
        with self.lock:
            now = self.clock()
            micros, lowest = parse_cpm(price), parse_cpm(min_to_win)
            ledger = self.ledger
            if kind == "win":
                outcome = ledger.win(bid, micros, now=now)
            elif kind == "bill":
                outcome = ledger.bill(bid, micros, now=now)
                if outcome is Outcome.TOO_OLD:
                    outcome = ledger.bill_forgotten(bid, account, amount, micros, now=now)
                if micros is None and outcome in (Outcome.BILLED, Outcome.LATE):
                    self.counts["bills_without_price"] += 1
            else:
                outcome = ledger.loss(bid, now=now)
            self.counts[f"notices_{kind}_{outcome}"] += 1
            self._learn(kind, bid, outcome, micros, lowest, loss)
        return outcome

    def _learn(self, kind: str, bid: int, outcome: Outcome, price: int | None, lowest: int | None, loss: str) -> None:
        """What a notice says of the price to win."""
        if (kind, outcome) not in (("win", Outcome.WON), ("loss", Outcome.RELEASED)):
            return
        known = self.ledger.bid(bid)
        landscape = None if known is None else self.landscapes.get(known.tag)
        if known is None or landscape is None:
            return
        first_price = self.group_name(known.tag).endswith("first")
        seen = lowest
        if seen is None and price is not None and (kind == "loss" or not first_price):
            seen = price
        if seen is not None:
            landscape.saw(seen)
            sums = self._lwc.setdefault((known.account, known.tick), [0, 0])
            sums[0] += seen
            sums[1] += 1
        elif kind == "win":
            landscape.won(known.amount)
        elif not loss.isdigit() or int(loss) in _LOST_ON_PRICE:
            landscape.lost(known.amount)

    def _lapsed(self, tag: int, amount: int) -> None:
        landscape = self.landscapes.get(tag)
        if landscape is not None:  # exchanges that send no loss notices say it by silence
            landscape.lost(amount)

    # -- what the control path and the page read ------------------------------------------------------------------------------

    def collect(self) -> list[SlotTraffic]:
        """Books the opportunities seen since the last call, and returns them by kind of slot.

        An opportunity counts for every campaign that fits the slot, whether a block list kept it out or not.
        """
        with self.lock:
            sums: dict[int, list[int]] = {}
            seen = []
            for slot in self._slots.values():
                fresh = slot.count - slot.collected
                if not fresh:
                    continue
                slot.collected = slot.count
                for candidate in slot.all:
                    arm = candidate.arm
                    if arm.account:
                        own = sums.setdefault(arm.account, [arm.tick, 0, 0, 0])
                        n = fresh if arm.high - arm.low == _BUCKETS else round(fresh * arm.share)
                        own[1] += n
                        own[2] += n * candidate.p
                        own[3] += n * max(candidate.value, 0)
                seen.append(
                    SlotTraffic(
                        fresh, slot.first_price, tuple(c.arm.key for c in slot.ranked),
                        np.array([c.value for c in slot.ranked], dtype=float), np.array([c.tag for c in slot.ranked]),
                    )
                )  # fmt: skip
            for (account, tick), (total, n) in self._lwc.items():
                if account in self.ledger.accounts:
                    self.ledger.add_traffic(account, tick, volume=0, p_sum=0, bid_sum=0, lwc_sum=total, lwc_n=n)
            self._lwc = {}
            for account, (tick, volume, p_sum, bid_sum) in sums.items():
                if account in self.ledger.accounts:
                    self.ledger.add_traffic(account, tick, volume=volume, p_sum=p_sum, bid_sum=bid_sum)
            return seen


def _any(blocked: list[int] | None, own: tuple[int, ...]) -> bool:
    return bool(blocked and own and set(blocked) & set(own))


def _bucket(request: BidRequest) -> int:
    """A person stays on one side of a budget split; a request without a person is split by its id."""
    user = request.user
    name = (user.id or user.buyeruid) if user is not None else None
    return crc32((name or request.id).encode("utf-8", "replace")) & (_BUCKETS - 1)


def _blocked(request: BidRequest, arm: Arm) -> Reason | None:
    """What the request's own lists say against a campaign."""
    campaign = arm.campaign
    if (request.wseat and campaign.seat not in request.wseat) or (request.bseat and campaign.seat in request.bseat):
        return Reason.SEAT
    if request.regs is not None and request.regs.coppa == 1 and not campaign.child_directed:
        return Reason.COPPA
    if request.badv and any(openrtb.domain_matches(own, bad) for bad in request.badv for own in campaign.adomain):
        return Reason.DOMAIN
    if request.bcat or request.acat:
        own = arm.blocked_as.get(request.cattax or 1)
        # categories in another taxonomy cannot be compared: stay out rather than break the publisher's rule
        if not own:
            return Reason.CATEGORY
        if request.bcat and any(openrtb.category_matches(mine, bad) for bad in request.bcat for mine in own):
            return Reason.CATEGORY
        if request.acat and not any(openrtb.category_matches(mine, good) for good in request.acat for mine in own):
            return Reason.CATEGORY
    if request.bapp and campaign.bundle is not None and campaign.bundle in request.bapp:
        return Reason.APP
    target = campaign.targeting
    if target.sites or target.blocked_sites:
        place = (request.site.domain if request.site else None) or (request.app.domain if request.app else None) or ""
        if target.sites and not any(openrtb.domain_matches(place, own) for own in target.sites):
            return Reason.SITE
        if any(openrtb.domain_matches(place, own) for own in target.blocked_sites):
            return Reason.SITE
    return None
