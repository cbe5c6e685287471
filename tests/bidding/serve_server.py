"""A bid server with a clock of its own, for tests."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from rankloom.bidding.protocol import Campaigns, Controller, Decision, Observation
from rankloom.bidding.serve.campaigns import CampaignFile
from rankloom.bidding.serve.control import ControlSettings
from rankloom.bidding.serve.engine import EngineSettings, Reply
from rankloom.bidding.serve.ledger import LedgerSettings
from rankloom.bidding.serve.service import BidServer, ServiceSettings
from rankloom.bidding.serve.worker import LocalController, RemoteController

from .openrtb_requests import campaign_file

SECOND = 1_000_000
MORNING = 1_800_000_000 * SECOND // (86_400 * SECOND) * (86_400 * SECOND)  # a midnight in UTC
TICK = 1800 * SECOND


class Clock:
    def __init__(self, now: int = MORNING) -> None:
        self.now = now

    def __call__(self) -> int:
        return self.now


class Scripted:
    """A controller that says what it is told to; `seen` keeps the observations."""

    def __init__(self, say: Callable[[Observation], Any]) -> None:
        self.name = "scripted"
        self.say = say
        self.seen: list[Observation] = []

    def start(self, campaigns: Campaigns, seed: int) -> None: ...

    def decide(self, observation: Observation) -> Decision:
        self.seen.append(observation)
        said = self.say(observation)
        if isinstance(said, Decision):
            return said
        n = observation.campaigns.n
        return Decision(np.full(n, float(said)), ("none",) * n)


def local(controller: Controller) -> LocalController:
    return LocalController(lambda: controller)


def serve(
    folder: Path,
    controller: RemoteController | None = None,
    *,
    campaigns: CampaignFile | None = None,
    clock: Clock | None = None,
    engine: EngineSettings | None = None,
    control: ControlSettings | None = None,
    ledger: LedgerSettings | None = None,
    **more: Any,
) -> BidServer:
    return BidServer(
        campaigns or campaign_file(), folder, controller or local(Scripted(lambda _: 20.0)),
        settings=ServiceSettings(ledger or LedgerSettings(), engine or EngineSettings(), control or ControlSettings()),
        clock=clock or Clock(), background=False, boot="test", **more,
    )  # fmt: skip


def ask(server: BidServer, body: Any) -> tuple[Reply, Any]:
    reply = server.bid(body if isinstance(body, bytes) else json.dumps(body).encode())
    return reply, json.loads(reply.body) if reply.body else None


def offers(reply: Any) -> list[dict[str, Any]]:
    return [bid for seat in reply["seatbid"] for bid in seat["bid"]]


def proof(url: str) -> tuple[str, str]:
    """The bid's id and mark in a notice address."""
    query = dict(part.split("=", 1) for part in url.split("?")[1].split("&"))
    return query["b"], query["t"]
