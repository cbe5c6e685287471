"""What keeps a campaign from bidding: where it may show, and what the request's own lists say against it.

What depends only on the kind of slot is asked once for each kind (`targeted`, `fitting_text`), what depends on the
request on every request (`blocked`).
"""

from __future__ import annotations

import json

from rankloom.bidding.serve import openrtb
from rankloom.bidding.serve.arms import Arm
from rankloom.bidding.serve.campaigns import Creative, Targeting
from rankloom.bidding.serve.openrtb import BidRequest, Imp, Reason, Video


def targeted(target: Targeting, country: str | None, device: int | None, segments: tuple[str, ...]) -> bool:
    """Whether a campaign wants people of this country, kind of device and these segments."""
    return not (
        (target.countries and country not in target.countries)
        or (target.device_types and device not in target.device_types)
        or (target.segments and not set(target.segments) & set(segments))
    )


def fitting_text(
    imp: Imp, sizes: tuple[tuple[int | None, int | None], ...] | None, creative: Creative, text: str, secure: bool
) -> str | None:
    """The bid's fixed text `text`, completed, where the creative may show in the slot; None where it may not.

    Args:
        sizes: widths and heights that the banner takes; None without a banner.
        secure: the slot takes only what is loaded over HTTPS.
    """
    if secure and not creative.secure:
        return None
    if creative.kind == "banner":
        if (
            imp.banner is None
            or not sizes
            or (creative.w, creative.h) not in sizes
            or _share_one(imp.banner.battr, creative.attributes)
        ):
            return None
        return text
    if creative.kind == "video":
        return text if imp.video is not None and _fits_video(imp.video, creative) else None
    if imp.native is None or _share_one(imp.native.battr, creative.attributes):
        return None
    markup = openrtb.native_markup(imp.native.request, creative.native)
    return None if markup is None else f'{text}, "adm": {json.dumps(markup)}'


def _fits_video(video: Video, creative: Creative) -> bool:
    length = creative.duration_s or 0
    return not (
        _share_one(video.battr, creative.attributes)
        or (video.mimes is not None and not set(video.mimes) & set(creative.mimes))
        or (video.protocols is not None and not set(video.protocols) & set(creative.protocols))
        or (video.rqddurs and length not in video.rqddurs)
        or length < (video.minduration or 0)
        or length > (video.maxduration or 1 << 30)
    )


def blocked(request: BidRequest, arm: Arm) -> Reason | None:
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


def _share_one(blocked: list[int] | None, own: tuple[int, ...]) -> bool:
    return bool(blocked and own and set(blocked) & set(own))
