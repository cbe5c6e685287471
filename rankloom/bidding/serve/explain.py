"""Why a campaign bids what it bids: the state it was decided in, the constraint that binds, the plan, and what 10% more would do.

What 10% more would do is read off the slots of the last tick: in every kind of slot the campaign's bid is raised, the
landscape says how much more often it would win and at what cost, and where the raise would overtake another of our own
campaigns that counts too. Without enough notices for a landscape, the slope of spend against multiplier over the day's
ticks is used; without that nothing is said.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final

import numpy as np

from rankloom.bidding.protocol import FloatArray
from rankloom.bidding.serve.accounts import Account
from rankloom.bidding.serve.landscape import Landscape
from rankloom.bidding.serve.money import PPB, units
from rankloom.bidding.serve.slots import SlotTraffic

RAISE: Final = 1.1
_BUSIEST: Final = 512


def responses(
    traffic: Iterable[SlotTraffic],
    landscapes: Mapping[int, Landscape],
    *,
    factor: float = RAISE,
    shading: bool = True,
    alone: frozenset[str] = frozenset(),
) -> dict[str, dict[str, float]]:
    """Per campaign arm the expected `cost`, `worth` (sum of value won) now and with its multiplier times `factor`.

    `seen` counts its opportunities in slots whose landscape is known, out of `all`. A campaign is in a slot where it
    has the highest value of ours; one in `alone` everywhere it fits (block lists keep the others out, say).
    """
    result: dict[str, dict[str, float]] = {}
    for slot in sorted(traffic, key=lambda own: -own.count)[:_BUSIEST]:
        if not slot.arms:
            continue
        v_C = slot.value_C
        rival_C = np.full(len(v_C), v_C[0])
        alone_C = np.array([name in alone for name in slot.arms])
        rival_C[0] = v_C[1] if len(v_C) > 1 else 0.0
        for name, f in (("now", 1.0), ("more", factor)):
            leads = np.flatnonzero((f * v_C > rival_C) | alone_C)
            if f == 1.0 and 0 not in leads:
                leads = np.append(leads, 0)  # a tie goes to the first
            for c in leads:
                own = result.setdefault(slot.arms[c], dict.fromkeys(_FIELDS, 0.0))
                own[f"all_{name}"] += slot.count
                landscape = landscapes.get(int(slot.tag_C[c]))
                if landscape is None or not landscape.ready:
                    continue
                value = float(f * v_C[c])
                bid = float(landscape.shade(int(value))) if slot.first_price and shading else value
                own[f"seen_{name}"] += slot.count
                own[f"cost_{name}"] += slot.count * float(landscape.cost(bid, first_price=slot.first_price))
                # worth in the campaign's own value per conversion, so that the factor itself does not count as worth
                own[f"worth_{name}"] += slot.count * float(landscape.win(bid)) * float(v_C[c])
    return result


_FIELDS: Final = tuple(f"{name}_{when}" for when in ("now", "more") for name in ("all", "seen", "cost", "worth"))


def slope(spend_T: FloatArray, multiplier_T: FloatArray, volume_T: FloatArray) -> float | None:
    """d log(spend per opportunity) / d log(multiplier) over past ticks, at least 0; None where they do not tell."""
    use = (spend_T > 0) & (multiplier_T > 0) & (volume_T > 0)
    if use.sum() < 6 or np.ptp(np.log(multiplier_T[use])) < 0.02:
        return None
    x, y = np.log(multiplier_T[use]), np.log(spend_T[use] / volume_T[use])
    x = x - x.mean()
    return float(np.clip((x * (y - y.mean())).sum() / (x * x).sum(), 0.0, 5.0))


def ten_percent_more(
    response: Mapping[str, float] | None, account: Account, tick: int, target_cpa: int | None
) -> dict[str, Any]:
    """Relative changes of spend and expected conversions, and the cost of the extra conversions in micros each."""
    if response and response["seen_more"] > 0.5 * response["all_more"] > 0 and response["cost_now"] > 0:
        spend = response["cost_more"] / response["cost_now"] - 1
        value = response["worth_more"] / max(response["worth_now"], 1e-12) - 1
        basis = "landscape"
    else:
        series = {
            name: np.array(account.series[name][:tick], dtype=float)
            for name in ("spend", "multiplier", "volume", "value")
        }
        steep = slope(series["spend"], series["multiplier"], series["volume"])
        if steep is None:
            return {"basis": "none"}
        spend = RAISE**steep - 1
        # with the bid up by 10% and the price paid up less than that, conversions follow spend at the marginal price
        value = RAISE ** (steep * 0.5) - 1 if steep > 0 else 0.0
        basis = "history"
    past_spend, past_value = sum(account.series["spend"][:tick]), sum(account.series["value"][:tick]) / PPB
    more: dict[str, Any] = {"basis": basis, "spend": round(spend, 4), "conversions": round(value, 4)}
    if past_spend > 0 and past_value > 0 and value > 0:
        marginal = past_spend / past_value * spend / value
        more["marginal_cpa_micros"] = int(marginal)
        if target_cpa:
            more["within_target"] = marginal <= target_cpa
    return more


def sentence(own: Mapping[str, Any]) -> str:
    """The explanation in words; every figure in it is a figure of the record."""
    state, source = own["state"], own["source"]
    used, passed = state["spent_micros"] / max(state["budget_micros"], 1), state["day_passed"]
    parts = [f"{used:.0%} of the budget is spent with {passed:.0%} of the day over."]
    if own["status"] != "running":
        return f"{parts[0]} The campaign is {own['status']}: it does not bid."
    why = {
        "budget": "The budget binds: bidding higher would spend it before the day ends.",
        "cpa": f"The cost limit of {units(own['target_cpa_micros'] or 0)} a conversion binds.",
        "none": "Neither budget nor cost limit binds: the bid is as high as the controller finds worth while.",
        "fallback": "The controller gave no usable answer: safe pacing decides.",
    }
    parts.append(why.get(own["binding"], why["none"]))
    if source == "fallback":
        parts.append(f"Reason for the fallback: {own['fallback_reason']}.")
    if own["limited_by"]:
        parts.append(f"The controller asked for {units(own['proposed_micros'])}; {' and '.join(own['limited_by'])}.")
    parts.append(
        f"Now {units(own['multiplier_micros'])} a conversion; planned for the rest of the day: {units(own['plan']['total_micros'])}."
    )
    more = own["ten_percent_more"]
    if more["basis"] != "none":
        text = f"10% more would spend {more['spend']:+.0%} and bring {more['conversions']:+.0%} conversions"
        if "marginal_cpa_micros" in more:
            text += f", each extra one at {units(more['marginal_cpa_micros'])}"
        parts.append(text + ".")
    return " ".join(parts)
