"""An event as it came over HTTP becomes one of the state store, under the names that an import would give it."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from datetime import UTC, datetime

from rankloom.data.casting import EVENT_ALIASES, KIND_NAMES
from rankloom.data.schema import EVENT_KINDS
from rankloom.errors import RankloomError
from rankloom.serving.contract import EventIn, utc
from rankloom.serving.state import StoredEvent


def event_kind(name: str) -> str | None:
    """The shop's name of an event kind, from any of the names that an import translates; None where it is none."""
    folded = name.strip().lower()
    kind = EVENT_ALIASES.get(folded, folded)
    return kind if kind in EVENT_KINDS[1:] else None


def stored_event(event: EventIn, known: Callable[[str], int | None]) -> StoredEvent:
    """What is kept of an event.

    Args:
        known: the catalogue row of an item id, None where there is none.

    Raises:
        RankloomError: an impossible time, an unknown kind, an unknown item.
    """
    when = datetime.now(UTC)
    if event.timestamp is not None:
        try:
            when = utc(event.timestamp)
        except ValueError as error:
            raise RankloomError(
                str(error), action="send when it happened; without a timestamp it is now", code="time-range"
            ) from None
    kind = event_kind(event.event)
    if kind is None:
        raise RankloomError(f"unknown event kind {event.event!r}", action=f"use one of {KIND_NAMES}", code="event-unknown")
    if known(event.item_id) is None:
        raise RankloomError(
            f"no item {event.item_id!r} in the catalogue", action="add it with PUT /v1/items, then send the event again",
            code="item-unknown",
        )  # fmt: skip
    return StoredEvent(
        event.event_id or uuid.uuid4().hex, event.user_id, event.item_id, kind, when, watch_s=event.watch_s,
        surface=event.surface, position=event.position, query=event.query, request_id=event.request_id, value=event.value,
    )  # fmt: skip
