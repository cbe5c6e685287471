"""Money as integer micros of one currency. Text and decimals come in and go out exactly; no float is made on the way.

A price per thousand impressions (CPM) of x units is 1,000 x micros an impression. The ledger counts whole micros an
impression, so a CPM has a grain of 0.001 units. Our own bids lie on that grain; a clearing price between two grains is
rounded half to even, at most half a micro an impression away.
"""

from __future__ import annotations

from decimal import ROUND_CEILING, ROUND_HALF_EVEN, Context, Decimal, InvalidOperation
from typing import Final

MICROS: Final = 1_000_000
PPB: Final = 1_000_000_000
MAX_MICROS: Final = 10**15  # a billion units: anything larger is a unit mistake, and int64 sums stay far from overflow
_CONTEXT: Final = Context(prec=40)


def cpm_to_micros(cpm: Decimal) -> int:
    """Micros an impression of a clearing price, half to even. ValueError where it is not a sane price."""
    if not cpm.is_finite() or cpm < 0 or cpm > 10**12:
        raise ValueError(f"{cpm} is not a price")
    return int((cpm * 1000).quantize(Decimal(1), rounding=ROUND_HALF_EVEN, context=_CONTEXT))


def floor_to_micros(cpm: Decimal) -> int:
    """The smallest whole number of micros an impression that is not below a floor price."""
    if not cpm.is_finite() or cpm < 0 or cpm > 10**12:
        raise ValueError(f"{cpm} is not a price")
    return int((cpm * 1000).quantize(Decimal(1), rounding=ROUND_CEILING, context=_CONTEXT))


def parse_cpm(text: str) -> int | None:
    """A price macro's text in micros an impression; None where the exchange left it unreplaced, empty or unreadable."""
    if not text or len(text) > 40 or not (text[0].isdigit() or text[0] == "."):
        return None
    try:
        return cpm_to_micros(Decimal(text))
    except (InvalidOperation, ValueError):
        return None


def cpm_text(micros: int) -> str:
    """The CPM of so many micros an impression as a JSON number, exact: 2345 -> `2.345`."""
    return f"{micros // 1000}.{micros % 1000:03d}"


def units(micros: int) -> str:
    """Money for people: micros as units with two decimals, exact text."""
    sign, micros = ("-", -micros) if micros < 0 else ("", micros)
    cents = (micros + 5_000) // 10_000
    return f"{sign}{cents // 100:,}.{cents % 100:02d}"
