"""The questions of the search protocol: a person, what they took before, a query, and the item they then took.

The split is leave-one-out: the last item of a person is TEST, the one before it VALID, counts and transitions come from
TRAIN alone. What the person already has is not ranked. A fixed sample of people is asked; the first of them are also the
ones on whose VALID item baselines are tuned, so nothing is chosen on TEST.

Shapes: C cases, I items.
"""

from __future__ import annotations

import random
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
import polars as pl
from numpy.typing import NDArray

from rankloom.data.schema import SURFACE_CODE
from rankloom.data.sequences import TEST, VALID, Cases, Sequences
from rankloom.errors import RankloomError
from rankloom.evaluation.search.queries import Kind, QueryMaker

N_PEOPLE: Final = 5_000
N_FITTING: Final = 3_000
LOG_SHARES: Final[tuple[tuple[Kind, float], ...]] = (("category", 0.45), ("keyword", 0.35))
"""Of the log's events, the share that begins with a search of each kind; the rest are feed events."""


@dataclass(frozen=True)
class SearchCases:
    """C questions of one kind.

    Attributes:
        sequences: the log they are of.
        cases: person, row of the target and target of each; a row may come several times, with other queries.
        query: the words of each.
    """

    sequences: Sequences
    cases: Cases
    query: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.query)

    def take(self, chosen: NDArray[Any]) -> SearchCases:
        """The cases of an index array or a mask."""
        places = np.arange(len(self))[chosen]
        own = Cases(self.cases.user[places], self.cases.row[places], self.cases.target[places])
        return replace(self, cases=own, query=tuple(self.query[place] for place in places))


def sampled_people(sequences: Sequences, n: int = N_PEOPLE, seed: int = 0) -> NDArray[np.int64]:
    """The fixed sample, in the order of drawing; numbers are drawn over the people in natural order of their ids."""
    order = sorted(range(sequences.n_users), key=lambda row: (len(sequences.user_ids[row]), sequences.user_ids[row]))
    drawn = random.Random(seed).sample(range(len(order)), min(n, len(order)))
    return np.asarray([order[place] for place in drawn], dtype=np.int64)


def made_cases(
    sequences: Sequences, stage: int, people: NDArray[np.int64], maker: QueryMaker, kind: Kind
) -> SearchCases:
    """One case a person, the first target of the stage, in the order of `people`; targets without a query are left out."""
    found = sequences.cases(stage, max_per_user=1)
    place_of = np.full(sequences.n_users, -1)
    place_of[found.user] = np.arange(len(found))
    places = place_of[people]
    places = places[places >= 0]
    users = sequences.user_ids[found.user[places]].tolist()
    queries = maker.make_all(kind, users, found.target[places])
    kept = np.asarray(
        [place for place, query in zip(places, queries, strict=True) if query is not None], dtype=np.int64
    )
    cases = Cases(found.user[kept], found.row[kept], found.target[kept])
    return SearchCases(sequences, cases, tuple(query for query in queries if query is not None))


def log_queries(maker: QueryMaker, user_ids: Sequence[str], rows: Sequence[int]) -> list[str | None]:
    """The search, if any, that each event of a log began with: kinds in the shares of `LOG_SHARES`, fixed by person and item."""
    out: list[str | None] = []
    for user, row in zip(user_ids, rows, strict=True):
        draw = zlib.crc32(f"{user}\t{maker.item_ids[row]}\tkind".encode()) / 2**32
        query = None
        for kind, share in LOG_SHARES:
            if 0 <= draw < share:
                query = maker.make(kind, user, row)
                break
            draw -= share
        out.append(query)
    return out


@dataclass(frozen=True)
class GivenQueries:
    """Queries of somebody's own, sorted by what their item is to the person.

    Attributes:
        test, valid: cases.
        training: (user_id, item_id, query) of events that train, for the log.
        unmatched: rows whose person never took the item.
    """

    test: SearchCases
    valid: SearchCases
    training: pl.DataFrame
    unmatched: int


def given_queries(
    sequences: Sequences, item_ids: Sequence[str], frame: pl.DataFrame, place: str = "queries"
) -> GivenQueries:
    """Sorts a table with `user_id`, `query` and `item_id`: rows whose item is the person's TEST target are questions, those
    of the VALID target tune the baselines, those of earlier events belong into the log.

    Raises:
        RankloomError: a column is missing, or no row meets a TEST target.
    """
    lacking = {"user_id", "query", "item_id"} - set(frame.columns)
    if lacking:
        raise RankloomError(
            f"the query file lacks {', '.join(sorted(lacking))}", place=place,
            action="give a Parquet file with user_id, query and item_id", code="column-missing",
        )  # fmt: skip
    asked = frame.select(pl.col("user_id", "item_id", "query").cast(pl.String)).drop_nulls()
    log = pl.DataFrame(
        {
            "user_id": pl.Series(sequences.user_ids[sequences.user].astype(object), dtype=pl.String()),
            "item_id": pl.Series(np.asarray(item_ids, dtype=object)[sequences.item], dtype=pl.String()),
            "user": sequences.user,
            "row": np.arange(sequences.n_interactions),
            "item": sequences.item,
            "stage": np.where(sequences.target, sequences.stage, -1),
        }
    ).unique(["user_id", "item_id"], keep="last", maintain_order=True)
    joined = asked.join(log, on=["user_id", "item_id"], how="inner", maintain_order="left")

    def cases(stage: int) -> SearchCases:
        own = joined.filter(pl.col("stage") == stage)
        found = Cases(
            own["user"].to_numpy().astype(np.int32),
            own["row"].to_numpy().astype(np.int64),
            own["item"].to_numpy().astype(np.int32),
        )
        return SearchCases(sequences, found, tuple(own["query"].to_list()))

    test = cases(TEST)
    if not len(test):
        raise RankloomError(
            "no row of the query file is about the last item of its person", place=place,
            action="give queries for the held-out items (user_id and item_id as in the data set)", code="queries-unmatched",
        )  # fmt: skip
    training = joined.filter(~pl.col("stage").is_in([TEST, VALID])).select("user_id", "item_id", "query")
    return GivenQueries(test, cases(VALID), training, asked.height - joined.height)


def asked_of(asked: SearchCases) -> list[tuple[SearchCases, NDArray[np.int64]]]:
    """The cases as logs of the people asked alone, the query and the search surface at the target's row; with the places of
    the cases. Several parts where a row is asked with several queries."""
    people, own_user = np.unique(asked.cases.user, return_inverse=True)
    log, start_of = _of_people(asked.sequences, people)
    row = asked.cases.row - asked.sequences.offsets[asked.cases.user] + start_of[own_user]
    times = np.zeros(len(row), dtype=np.int64)
    seen: dict[int, int] = {}
    for place, number in enumerate(row.tolist()):
        times[place] = seen.get(number, 0)
        seen[number] = times[place] + 1
    words = list(dict.fromkeys(asked.query))
    number_of = {text: len(log.queries) + place for place, text in enumerate(words)}
    parts = []
    for turn in range(int(times.max(initial=-1)) + 1):
        places = np.flatnonzero(times == turn)
        query, surface = log.query.copy(), log.surface.copy()
        query[row[places]] = [number_of[asked.query[place]] for place in places]
        surface[row[places]] = SURFACE_CODE["search"]
        own = replace(log, query=query, surface=surface, queries=(*log.queries, *words))
        cases = Cases(own_user[places].astype(np.int32), row[places], asked.cases.target[places])
        parts.append((SearchCases(own, cases, tuple(asked.query[place] for place in places)), places))
    return parts


def _of_people(sequences: Sequences, people: NDArray[Any]) -> tuple[Sequences, NDArray[np.int64]]:
    """The log of some people, queries that nobody of them typed left out; and where each of them begins."""
    length = np.diff(sequences.offsets)[people]
    offsets = np.r_[0, np.cumsum(length)]
    rows = np.repeat(sequences.offsets[people] - offsets[:-1], length) + np.arange(offsets[-1])
    old = sequences.query[rows]
    used, number = np.unique(old[old >= 0], return_inverse=True)
    query = np.full(len(rows), -1, dtype=np.int32)
    query[old >= 0] = number
    columns = {
        name: getattr(sequences, name)[rows]
        for name in ("item", "kind", "timestamp", "watch_ratio", "surface", "position", "target", "stage")
    }
    own = replace(
        sequences, user_ids=sequences.user_ids[people], offsets=offsets.astype(np.int64), query=query,
        queries=tuple(sequences.queries[place] for place in used), **columns,
    )  # fmt: skip
    return own, own.offsets[:-1]
