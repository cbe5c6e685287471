"""Kinds of slots: what depends only on the slot is worked out once for each kind, and ranked once for each control tick.

Two impressions are of one kind where no campaign can tell them apart: same auction type, sizes, video and native terms,
blocked attributes, segments, country, device and security, as far as some campaign asks about them.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from rankloom.bidding.protocol import FloatArray, IntArray
from rankloom.bidding.serve.arms import BUCKETS, Arm
from rankloom.bidding.serve.filters import fitting_text, targeted
from rankloom.bidding.serve.money import PPB
from rankloom.bidding.serve.openrtb import FIRST_PRICE, Banner, BidRequest, Imp, Native, Reason, User, Video
from rankloom.bidding.serve.pcvr import ConversionModel

_MAX_SLOTS: Final = 8192


class Candidate:
    """One arm in one kind of slot. `bid` is -1 until shading was asked for in this tick."""

    __slots__ = ("arm", "bid", "p", "tag", "text", "value")

    def __init__(self, arm: Arm, p: int, tag: int, text: str) -> None:
        self.arm, self.p, self.tag, self.text = arm, p, tag, text
        self.value = self.bid = -1


class Slot:
    """A kind of slot: who may show there, ranked for the multipliers of `generation`.

    Attributes:
        count, collected: opportunities seen, and how many of them were booked.
        empty: the reason for no bid where no candidate is left to ask.
    """

    __slots__ = ("all", "collected", "count", "empty", "first_price", "generation", "ranked")

    def __init__(self, candidates: list[Candidate], empty: Reason, first_price: bool) -> None:
        self.all, self.empty, self.first_price = candidates, empty, first_price
        self.generation = -1
        self.ranked: list[Candidate] = []
        self.count = self.collected = 0

    def rank(self, generation: int, *, standby: bool) -> None:
        """Values every candidate at the multiplier (or standby multiplier) in force and sorts them, highest first."""
        ranked = []
        stopped = 0
        for candidate in self.all:
            arm = candidate.arm
            if arm.status != "running" or not arm.account:
                stopped += 1
                continue
            multiplier = arm.standby if standby else arm.multiplier
            value = multiplier * candidate.p // PPB
            cap = arm.campaign.max_cpm_micros // 1000
            candidate.value = value if value < cap else cap
            candidate.bid = -1
            if candidate.value > 0:
                ranked.append(candidate)
        ranked.sort(key=lambda own: (-own.value, own.arm.key))
        self.ranked, self.generation = ranked, generation
        if not self.all:
            self.empty = Reason.NO_CAMPAIGN
        elif stopped == len(self.all):
            self.empty = Reason.KILLED
        else:
            self.empty = Reason.NO_MULTIPLIER


@dataclass(frozen=True)
class SlotTraffic:
    """What one kind of slot saw in a tick: for response curves. Arrays over its candidates."""

    count: int
    first_price: bool
    arms: tuple[str, ...]
    value_C: FloatArray
    tag_C: IntArray


@dataclass
class Opportunities:
    """What an account saw in a tick: how often it fits, sums of p (ppb) and of values (micros)."""

    tick: int
    volume: int = 0
    p_sum: int = 0
    value_sum: int = 0


class Slots:
    """All kinds of slots seen since the campaigns changed.

    Args:
        arms: who may bid, by key; the owner's own mapping, read whenever a new kind of slot comes.
        group: the number of a group of slots by its name.
        make_room: called before all slots are dropped because there are too many.
    """

    def __init__(
        self,
        arms: dict[str, Arm],
        p_model: ConversionModel,
        *,
        group: Callable[[str], int],
        make_room: Callable[[], object],
    ) -> None:
        self._arms, self._p_model, self._group, self._make_room = arms, p_model, group, make_room
        self._slots: dict[Any, Slot] = {}
        self.rebuild()

    def rebuild(self) -> None:
        """Forgets every slot, and notes what the campaigns ask about."""
        self._slots = {}
        own = [arm.campaign for arm in self._arms.values()]
        self._countries = {code for c in own for code in c.targeting.countries}
        self._devices = {code for c in own for code in c.targeting.device_types}
        self._segments = {name for c in own for name in (*c.targeting.segments, *c.pcvr) if name != "*"}
        self._attributes = any(creative.attributes for c in own for creative in c.creatives)

    def find(self, request: BidRequest, imp: Imp) -> Slot:
        """The kind of slot of an impression."""
        banner, video, native = imp.banner, imp.video, imp.native
        first_price = request.at == FIRST_PRICE
        sizes = None if banner is None else _sizes(banner)
        attributes: tuple[Any, ...] = ()
        if self._attributes:
            attributes = tuple(tuple(own.battr or ()) if own is not None else None for own in (banner, video, native))
        segments: tuple[str, ...] = ()
        if self._segments and request.user is not None and request.user.data:
            segments = _segments_of(request.user, self._segments)
        device = request.device
        country = device.geo.country if device is not None and device.geo is not None and self._countries else None
        kind = device.devicetype if device is not None and self._devices else None
        secure = imp.secure == 1
        key = (
            first_price, sizes, None if video is None else _video_terms(video), None if native is None else _native_terms(native),
            attributes, segments, country, kind, secure,
        )  # fmt: skip
        slot = self._slots.get(key)
        if slot is None:
            if len(self._slots) >= _MAX_SLOTS:
                self._make_room()
                self._slots.clear()
            slot = self._slots[key] = self._make(imp, first_price, sizes, segments, country, kind, secure)
        return slot

    def _make(
        self, imp: Imp, first_price: bool, sizes: tuple[tuple[int | None, int | None], ...] | None, segments: tuple[str, ...],
        country: str | None, device: int | None, secure: bool,
    ) -> Slot:  # fmt: skip
        candidates = []
        for arm in self._arms.values():
            if not targeted(arm.campaign.targeting, country, device, segments):
                continue
            for creative, text in arm.creatives:
                whole = fitting_text(imp, sizes, creative, text, secure)
                if whole is not None:
                    size = f" {creative.w}x{creative.h}" if creative.kind == "banner" else ""
                    tag = self._group(f"{creative.kind}{size} {'first' if first_price else 'second'}")
                    p = self._p_model.p_ppb(arm.campaign.campaign_id, segments)
                    candidates.append(Candidate(arm, p, tag, whole))
                    break
        return Slot(candidates, Reason.NO_CAMPAIGN, first_price)

    def collect(self) -> tuple[list[SlotTraffic], dict[int, Opportunities]]:
        """Opportunities since the last call, by kind of slot and by account.

        An opportunity counts for every campaign that fits the slot, whether a block list kept it out or not.
        """
        seen: list[SlotTraffic] = []
        sums: dict[int, Opportunities] = {}
        for slot in self._slots.values():
            fresh = slot.count - slot.collected
            if not fresh:
                continue
            slot.collected = slot.count
            _count(slot.all, fresh, sums)
            seen.append(
                SlotTraffic(
                    fresh, slot.first_price, tuple(c.arm.key for c in slot.ranked),
                    np.array([c.value for c in slot.ranked], dtype=float), np.array([c.tag for c in slot.ranked]),
                )
            )  # fmt: skip
        return seen, sums


def _count(candidates: Iterable[Candidate], fresh: int, sums: dict[int, Opportunities]) -> None:
    """Adds so many opportunities to those of every candidate's account; a split campaign sees its share of them."""
    for candidate in candidates:
        arm = candidate.arm
        if arm.account:
            own = sums.get(arm.account)
            if own is None:
                own = sums[arm.account] = Opportunities(arm.tick)
            n = fresh if arm.high - arm.low == BUCKETS else round(fresh * arm.share)
            own.volume += n
            own.p_sum += n * candidate.p
            own.value_sum += n * max(candidate.value, 0)


def _sizes(banner: Banner) -> tuple[tuple[int | None, int | None], ...]:
    sizes = tuple((own.w, own.h) for own in banner.format) if banner.format else ()
    return (*sizes, (banner.w, banner.h)) if banner.w and banner.h else sizes


def _video_terms(video: Video) -> tuple[Any, ...]:
    return (
        tuple(video.mimes or ()), video.minduration, video.maxduration, tuple(video.protocols or ()), tuple(video.rqddurs or ()),
    )  # fmt: skip


def _native_terms(native: Native) -> str:
    return native.request if isinstance(native.request, str) else json.dumps(native.request, sort_keys=True)


def _segments_of(user: User, known: set[str]) -> tuple[str, ...]:
    """The person's segments that some campaign asks about."""
    return tuple(sorted({s.id for d in user.data or () for s in d.segment or () if s.id is not None and s.id in known}))
