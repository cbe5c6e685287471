"""The bid path: OpenRTB request -> eligible campaigns -> price -> filters -> reservation -> reply. No neural network.

Value of an impression = multiplier x p, in micros; the bid is the value in a second-price auction, the shaded value in a
first-price one, never above the campaign's cap. What depends only on the slot (creatives that fit, targeting, p) is
worked out once per kind of slot and ranked once per control tick, so a request walks a short sorted list and stops at
the first campaign that nothing forbids. What depends on the request (block lists, seats, deals, floors, budget) is asked
on the way, cheapest first; the reason reported is that of the best-valued campaign.

One lock (the ledger's) around everything: requests are answered one after the other.

Here a request and a notice take their way. `slots.py` is the kinds of slots, `filters.py` what keeps a campaign out,
`pricing.py` the price, `lessons.py` what notices teach, `marks.py` the ids that notices carry.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from rankloom.bidding.serve import openrtb
from rankloom.bidding.serve.arms import Arm, bucket_of
from rankloom.bidding.serve.filters import blocked
from rankloom.bidding.serve.landscape import Landscape
from rankloom.bidding.serve.ledger import Ledger, Refusal
from rankloom.bidding.serve.lessons import Lessons
from rankloom.bidding.serve.marks import Marks, token_of, trial_token
from rankloom.bidding.serve.money import cpm_text, parse_cpm
from rankloom.bidding.serve.notices import Outcome
from rankloom.bidding.serve.openrtb import BidRequest, Imp, MalformedRequestError, Reason
from rankloom.bidding.serve.pcvr import ConversionModel
from rankloom.bidding.serve.pricing import Pricing
from rankloom.bidding.serve.slots import Candidate, Slot, Slots, SlotTraffic


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
        self.arms: dict[str, Arm] = {arm.key: arm for arm in arms}
        self.killed = False
        self.stale = False
        self.fresh_until = self.dead_after = 1 << 62
        self.next_boundary = 1 << 62
        self.on_boundary: Callable[[int], None] = lambda _: None
        self.on_stale: Callable[[], None] = lambda: None
        self.generation = 0
        self.reasons: Counter[str] = Counter()
        self.counts: Counter[str] = Counter()
        self._lessons = Lessons(ledger)
        ledger.lapsed = self._lessons.lapsed
        self._slots = Slots(self.arms, p_model, group=self._lessons.tag, make_room=self.collect)
        self._pricing = Pricing(
            self._lessons.landscapes, currency=self.settings.currency, rates=self.settings.rates,
            shading=self.settings.shading,
        )  # fmt: skip
        self._marks = Marks(secret, self.settings.base_url)
        self._test_ids = 0
        self.rebuild()

    # -- what the control path sets and reads --------------------------------------------------------------------------

    def rebuild(self) -> None:
        """Forgets every worked-out slot: campaigns, creatives or p changed."""
        with self.lock:
            self.collect()
            self._slots.rebuild()
            self.generation += 1

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

    @property
    def landscapes(self) -> dict[int, Landscape]:
        """What is known of prices to win, by group of slots."""
        return self._lessons.landscapes

    def group_name(self, tag: int) -> str:
        return self._lessons.name(tag)

    def collect(self) -> list[SlotTraffic]:
        """Books the opportunities seen since the last call, and returns them by kind of slot."""
        with self.lock:
            seen, sums = self._slots.collect()
            self._lessons.book()
            for account, own in sums.items():
                if account in self.ledger.accounts:
                    self.ledger.add_traffic(
                        account, own.tick, volume=own.volume, p_sum=own.p_sum, bid_sum=own.value_sum
                    )
            return seen

    # -- requests ------------------------------------------------------------------------------------------------------

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
        bucket = bucket_of(request)
        for imp in request.imp:
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
        return self._offer(request, seats)

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

    def _offer(self, request: BidRequest, seats: dict[str, list[str]]) -> Reply:
        number = sum(map(len, seats.values()))
        self.counts["bids"] += number
        offers = ",".join(f'{{"seat":{json.dumps(seat)},"bid":[{",".join(own)}]}}' for seat, own in seats.items())
        text = f'{{"id":{json.dumps(request.id)},"cur":"{self.settings.currency}","seatbid":[{offers}]}}'
        return Reply(200, text.encode("ascii"), "", number)

    def _no_bid(self, request: BidRequest, reason: Reason) -> Reply:
        self.reasons[reason] += 1
        if not self.settings.no_bid_body and request.test != 1:
            return Reply(204, b"", reason)
        body = f'{{"id":{json.dumps(request.id)},"nbr":{openrtb.nbr(reason)},"ext":{{"reason":"{reason}"}}}}'
        return Reply(200, body.encode("ascii"), reason)

    def _bid_on(
        self, request: BidRequest, imp: Imp, now: int, bucket: int, test: bool
    ) -> Reason | tuple[str, str, int]:
        slot = self._slots.find(request, imp)
        if slot.generation != self.generation:
            slot.rank(self.generation, standby=self.stale)
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
        """Seat, JSON and number of a bid of this candidate, or why it makes none."""
        arm = candidate.arm
        reason = blocked(request, arm)
        if reason is not None:
            return reason
        price, deal = self._pricing.price(imp, slot, candidate)
        if isinstance(price, Reason):
            return price
        if test:
            self._test_ids += 1
            return arm.campaign.seat, self._text(trial_token(self._test_ids), imp, price, deal, candidate), 0
        bid = self.ledger.reserve(arm.account, price, now=now, tick=arm.tick, p_ppb=candidate.p, tag=candidate.tag)
        if isinstance(bid, Refusal):
            return Reason.BUDGET if bid is Refusal.BUDGET else Reason.LEDGER
        return arm.campaign.seat, self._text(token_of(bid, arm.account, price), imp, price, deal, candidate), bid

    def _text(self, token: str, imp: Imp, price: int, deal: str | None, candidate: Candidate) -> str:
        deal_text = f'"dealid":{json.dumps(deal)},' if deal is not None else ""
        return (
            f'{{"id":"{token}","impid":{json.dumps(imp.id)},"price":{cpm_text(price)},{deal_text}"exp":{self.ledger.settings.bill_s},'
            f"{self._marks.links(token)},{candidate.text}}}"
        )

    # -- notices -------------------------------------------------------------------------------------------------------

    def read_token(self, token: str, proof: str) -> tuple[int, int, int] | None:
        """(bid, account, amount) of an id that this server made, (0, 0, 0) of a test bid, None of any other text."""
        return self._marks.read(token, proof)

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
            self._lessons.learn(kind, bid, outcome, micros, lowest, loss)
        return outcome
