"""What a controller is: the state of a day in, one multiplier per campaign out, with the reason.

A campaign's day has `N_TICKS` ticks. Before each tick a controller sees everything that has happened so far, for a whole
batch of campaigns at once, and answers with one multiplier per campaign: in that tick every opportunity with predicted
conversion probability p gets the bid `multiplier * p` (USCB's duality result: with one CPA constraint the optimal bid is
linear in p; GAVE section 2, CBD section 2). The same record is filled by the market, by a replay of recorded days and by
the live server, so that a controller cannot tell them apart.

Shapes: N campaigns, T = ticks that are over (0 before the first). Money is in one currency, as float; the server's ledger
counts integer micros and converts at this border.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Final, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

N_TICKS: Final = 48

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]


@dataclass(frozen=True)
class Campaigns:
    """A batch of campaigns on one day.

    Attributes:
        budget_N: money for the day; a hard limit, the platform stops the campaign.
        target_cpa_N: limit of cost per conversion over the day; inf where there is none.
        category_N: a small integer class of the advertiser, -1 where unknown.
        name: one label a campaign, for reports.
    """

    budget_N: FloatArray
    target_cpa_N: FloatArray
    category_N: IntArray
    name: tuple[str, ...]

    @property
    def n(self) -> int:
        return int(self.budget_N.shape[0])


@dataclass(frozen=True)
class History:
    """What happened in the ticks that are over, one column a tick; every array is (N, T).

    Attributes:
        multiplier_NT: what the controller asked for (0 once the budget was gone).
        spend_NT: money paid.
        value_NT: expected conversions, sum of p over exposed wins (low noise; what control should look at).
        conversions_NT: realised conversions known so far (late ones are added to the tick of their auction).
        volume_NT: opportunities that came.
        p_sum_NT: sum of p over all opportunities.
        bid_sum_NT: sum of bids over all opportunities.
        won_NT: auctions won (a slot taken); exposed_NT: of those, shown and paid.
        least_winning_cost_NT: mean over opportunities of the lowest bid that would have won a slot.
    """

    multiplier_NT: FloatArray
    spend_NT: FloatArray
    value_NT: FloatArray
    conversions_NT: FloatArray
    volume_NT: FloatArray
    p_sum_NT: FloatArray
    bid_sum_NT: FloatArray
    won_NT: FloatArray
    exposed_NT: FloatArray
    least_winning_cost_NT: FloatArray

    @property
    def n_ticks(self) -> int:
        return int(self.spend_NT.shape[1])


@dataclass(frozen=True)
class Observation:
    """Everything a controller may look at before tick `tick`.

    Attributes:
        volume_forecast_N: expected number of opportunities in the coming tick, where the platform knows it, else None.
        p_mean_forecast_N: expected mean p in the coming tick, likewise (AuctionNet's state has both of the tick at hand).
    """

    tick: int
    campaigns: Campaigns
    history: History
    remaining_N: FloatArray
    volume_forecast_N: FloatArray | None = None
    p_mean_forecast_N: FloatArray | None = None


@dataclass(frozen=True)
class Decision:
    """One multiplier per campaign, and per campaign why.

    Attributes:
        multiplier_N: finite and >= 0.
        binding: per campaign `budget`, `cpa`, `none`, or `fallback`.
        planned_spend_NR: (N, ticks left) money the controller plans to spend in each tick to come, or None.
        details: further per-campaign figures by name, each (N,).
    """

    multiplier_N: FloatArray
    binding: tuple[str, ...]
    planned_spend_NR: FloatArray | None = None
    details: dict[str, FloatArray] = field(default_factory=dict)


@runtime_checkable
class Controller(Protocol):
    """A bidder. `start` opens a day for a batch of campaigns, `decide` is called once a tick, in order."""

    name: str

    def start(self, campaigns: Campaigns, seed: int) -> None: ...

    def decide(self, observation: Observation) -> Decision: ...


@runtime_checkable
class SavedController(Controller, Protocol):
    """A controller with learned or tuned parameters: a folder holds `bidder.json` and, with weights, `model.safetensors`."""

    def arrays(self) -> dict[str, NDArray[Any]]: ...

    def settings(self) -> dict[str, Any]: ...
