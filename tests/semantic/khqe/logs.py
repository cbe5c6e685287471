"""A small log with searches, by hand."""

from __future__ import annotations

import numpy as np

from rankloom.data.schema import KIND_CODE
from rankloom.data.sequences import TRAIN, Sequences

Event = tuple[str, int, str | None, str]


def searched(events: list[Event], n_items: int, stages: list[int] | None = None) -> Sequences:
    """A log of (person, item, query or None, kind of event); times are places."""
    events = sorted(events, key=lambda event: event[0])
    people = sorted({event[0] for event in events})
    n = len(events)
    queries = tuple(dict.fromkeys(event[2] for event in events if event[2] is not None))
    number = {query: at for at, query in enumerate(queries)}
    return Sequences(
        user_ids=np.array(people), offsets=np.searchsorted([event[0] for event in events], [*people, "~"]).astype(np.int64),
        item=np.array([event[1] for event in events], np.int32), kind=np.array([KIND_CODE[event[3]] for event in events], np.int8),
        timestamp=np.arange(n), watch_ratio=np.full(n, np.nan, np.float32), surface=np.zeros(n, np.int8), position=np.full(n, -1, np.int16),
        query=np.array([-1 if event[2] is None else number[event[2]] for event in events], np.int32), target=np.ones(n, bool),
        stage=np.array(stages or [TRAIN] * n, np.int8), n_items=n_items, queries=queries,
    )  # fmt: skip
