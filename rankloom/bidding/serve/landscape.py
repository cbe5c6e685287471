"""What it takes to win: the distribution of the minimum price to win a slot, learned from notices.

Each auction we bid in tells something of the lowest bid that would have won:

- `AUCTION_MIN_TO_WIN`, or the clearing price of a second-price win: that very price;
- a win without it: the price was at most our bid; a loss without it: it was above our bid.

The distribution is the non-parametric maximum-likelihood estimate from exact and censored observations alike
(self-consistency, Turnbull 1976) on a logarithmic grid of prices, by expectation-maximisation; older observations fade.
From W(b) = P(a bid of b wins) follow

- **bid shading** in a first-price auction: with value v, bid argmax (v - b) W(b) over b <= v. In a paced auction v is
  multiplier x p, so shading and pacing compose;
- **response curves**: the expected cost of bidding b (W(b) b in a first-price auction, the mean price up to b times its
  share in a second-price one), and with it what 10% more would do.

With fewer than `MIN_OBSERVATIONS` notices nothing is known: bids go out unshaded, curves are absent.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np

from rankloom.bidding.protocol import FloatArray

N_BINS: Final = 96
MIN_OBSERVATIONS: Final = 200
_LOW, _HIGH = 1.0, 10_000_000.0  # micros an impression: a CPM of 0.001 to 10,000
EDGES: Final = np.geomspace(_LOW, _HIGH, N_BINS)  # the right edge of bin j is EDGES[j]; bin 0 is "at most EDGES[0]"


def bin_of(price: int) -> int:
    """The bin that holds a price."""
    return int(np.searchsorted(EDGES, price, side="left").clip(0, N_BINS))


class Landscape:
    """The win probability of one kind of slot. Observations are counted as they come; `fit` turns them into a curve."""

    def __init__(self) -> None:
        self.exact = np.zeros(N_BINS + 1)
        self.above = np.zeros(N_BINS + 1)  # lost with a bid in this bin: the price lies in a higher bin or the same
        self.below = np.zeros(N_BINS + 1)  # won with a bid in this bin, price unknown
        self.win_B: FloatArray | None = None
        self.mass_B: FloatArray | None = None
        self._best: FloatArray | None = None

    @property
    def n(self) -> float:
        return float(self.exact.sum() + self.above.sum() + self.below.sum())

    @property
    def ready(self) -> bool:
        return self.win_B is not None

    def saw(self, price: int) -> None:
        self.exact[bin_of(price)] += 1

    def lost(self, bid: int) -> None:
        self.above[bin_of(bid)] += 1

    def won(self, bid: int) -> None:
        self.below[bin_of(bid)] += 1

    def fit(self, *, steps: int = 60, fade: float = 1.0) -> bool:
        """Re-estimates the curve. `fade` multiplies the weight of what was seen so far. False with too little evidence."""
        informative = self.exact.sum() + self.below.sum()
        if self.n < MIN_OBSERVATIONS or informative < MIN_OBSERVATIONS / 10:
            return self.ready
        mass = self.exact + 0.5
        mass /= mass.sum()
        for _ in range(steps):
            tail = np.cumsum(mass[::-1])[::-1]  # P(bin >= j)
            head = np.cumsum(mass)
            # each censored observation is shared among the bins it allows, in proportion to their mass
            from_above = mass * np.cumsum(self.above / np.maximum(tail, 1e-12))
            from_below = mass * np.cumsum((self.below / np.maximum(head, 1e-12))[::-1])[::-1]
            new = self.exact + from_above + from_below + 1e-6
            new /= new.sum()
            done = float(np.abs(new - mass).max()) < 1e-6
            mass = new
            if done:
                break
        self.mass_B = mass
        self.win_B = np.cumsum(mass)[:N_BINS]
        self._best = None
        self.exact *= fade
        self.above *= fade
        self.below *= fade
        return True

    def win(self, bid: Any) -> Any:
        """P(win) of bids (scalar or array), linear in the bid between edges."""
        assert self.win_B is not None
        return np.interp(bid, EDGES, self.win_B, left=0.0)

    def second_price(self, bid: Any) -> Any:
        """Expected payment per auction when the winner pays the minimum to win."""
        assert self.mass_B is not None
        middle = np.concatenate([EDGES[:1], np.sqrt(EDGES[:-1] * EDGES[1:])])
        return np.interp(bid, EDGES, np.cumsum(self.mass_B[:N_BINS] * middle), left=0.0)

    def cost(self, bid: Any, *, first_price: bool) -> Any:
        """Expected payment per auction of a bid."""
        return self.win(bid) * bid if first_price else self.second_price(bid)

    def shade(self, value: int) -> int:
        """The bid that maximises (value - bid) x P(win) in a first-price auction, in whole micros, at most `value`."""
        if self.win_B is None or value <= 1:
            return value
        if self._best is None:
            self._best = np.array([_best_share(self.win_B, float(own)) for own in EDGES])
        share = float(np.interp(np.log(max(value, 1)), np.log(EDGES), self._best))
        return min(max(int(value * share), 1), value)


def _best_share(win_B: FloatArray, value: float) -> float:
    """argmax over bids, as a share of the value."""
    bids = np.append(EDGES[value > EDGES], value)
    surplus = (value - bids) * np.interp(bids, EDGES, win_B, left=0.0)
    return float(bids[int(np.argmax(surplus))] / value) if surplus.max() > 0 else 1.0
