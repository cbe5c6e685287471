"""What a person says of themselves, as the prompt reads it: a short text such as `18-23 male` (the U of OneSearch's prompt).

Shapes: U people, B contexts, T words of a profile.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from rankloom.errors import RankloomError
from rankloom.onesearch.vocabulary import Tokens, Vocabulary


@dataclass(frozen=True)
class Profiles:
    """
    Attributes:
        user_U: ids, ascending.
        text_U: what each of them says, in the same order.
    """

    user_U: NDArray[np.str_]
    text_U: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.text_U)

    @classmethod
    def of(cls, users: pl.DataFrame | None, columns: Sequence[str], *, required: bool = True) -> Profiles:
        """Of a shop's people; nobody has one where there is no table.

        Args:
            columns: what is read, in this order; values, and columns, that are missing are left out.
            required: the table has to have one of the columns.

        Raises:
            RankloomError: the table has none of the columns, and has to.
        """
        if users is None or not columns:
            return cls(np.zeros(0, dtype=np.str_), ())
        there = [name for name in columns if name in users.columns]
        if not there and not required:
            return cls(np.zeros(0, dtype=np.str_), ())
        if not there:
            raise RankloomError(
                f"the table of people has none of the columns {', '.join(columns)}",
                place="users",
                action="name its columns in behaviour.profile, or switch the profile off with ()",
                code="onesearch-profile",
            )
        said = pl.concat_str([pl.col(name).cast(pl.String) for name in there], separator=" ", ignore_nulls=True)
        table = users.select(pl.col("user_id").cast(pl.String), text=said).unique("user_id", keep="first")
        table = table.filter(pl.col("text") != "")
        ids = np.asarray(table["user_id"].to_list(), dtype=np.str_)
        order, texts = np.argsort(ids, kind="stable"), table["text"].to_list()
        return cls(ids[order], tuple(texts[place] for place in order))

    def places(self, user_ids: NDArray[Any]) -> NDArray[np.int64]:
        """(B,) number of each person's profile, `len(self)` for people without one."""
        asked = np.asarray(user_ids).astype(np.str_)
        if not len(self):
            return np.zeros(len(asked), dtype=np.int64)
        at = np.minimum(np.searchsorted(self.user_U, asked), len(self) - 1)
        return np.where(self.user_U[at] == asked, at, len(self)).astype(np.int64)

    def tokens(self, vocabulary: Vocabulary, length: int) -> Tokens:
        """(U + 1, T) tokens of every profile, and of nobody's."""
        return np.concatenate([vocabulary.read(self.text_U, length), np.zeros((1, length), np.int64)])
