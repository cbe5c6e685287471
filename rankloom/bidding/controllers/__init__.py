"""Controllers that need no training, by name. Learned ones are loaded from their folder."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from rankloom.bidding.controllers.constant import Constant
from rankloom.bidding.controllers.mpc import MPC, MPCSettings
from rankloom.bidding.controllers.pacing import MinPacing, MinPacingSettings
from rankloom.bidding.controllers.pid import PID, PIDSettings, StockPID
from rankloom.bidding.controllers.population import OnlineLP
from rankloom.bidding.protocol import Controller
from rankloom.errors import RankloomError

CONTROLLERS: Final[dict[str, Callable[[], Controller]]] = {
    "constant": Constant,
    "constant-1.2": lambda: Constant(1.2),
    "stock-pid": StockPID,
    "pid": PID,
    "online-lp": OnlineLP,
    "min-pacing": MinPacing,
    "mpc": MPC,
}


def controller(name: str) -> Controller:
    """A controller that needs no training.

    Raises:
        RankloomError: there is none of that name.
    """
    if name not in CONTROLLERS:
        raise RankloomError(
            f"no controller is called {name!r}",
            action=f"choose one of {', '.join(CONTROLLERS)}, or point to a trained bidder's folder",
            code="controller-unknown",
        )
    return CONTROLLERS[name]()


__all__ = [
    "CONTROLLERS",
    "MPC",
    "PID",
    "Constant",
    "MPCSettings",
    "MinPacing",
    "MinPacingSettings",
    "OnlineLP",
    "PIDSettings",
    "StockPID",
    "controller",
]
