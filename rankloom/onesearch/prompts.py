"""The prompt: what the network reads of a person, a query and a past.

    [task] query, its ID, profile, user ID (short and long), recent queries, recent items, {soft tokens of the long history}

`compact` gives every query one place for its words (their mean) and every ID of the past one place (the sum of its codes);
the current query's ID always has one place a code. `tokens` gives every token a place, as the paper's prompt does. Soft
tokens come from the network itself (models/qformer.py). The profile (`18-23 male`) stands there where a person has one.

Shapes: B contexts, P places, N tokens of a place, L levels, S behaviours, H long history, W window.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray

from rankloom.errors import RankloomError
from rankloom.models.behaviour_uid import behaviour_codes, centroid_codes, hashed_codes
from rankloom.models.encoder_decoder import LongHistory, Part, Prompt
from rankloom.onesearch.contexts import Contexts
from rankloom.onesearch.corpus import BRAND_WORDS, N_RESIDUAL, Items, Queries
from rankloom.onesearch.profiles import Profiles
from rankloom.onesearch.settings import BehaviourConfig, OneSearchConfig
from rankloom.onesearch.vocabulary import Tokens, Vocabulary

KINDS: Final = ("task", "words", "sid", "uid-short", "uid-long", "recent-words", "recent-sid", "item", "profile")
"""Kinds of parts; the soft tokens are one more."""


class Prompts:
    """Makes prompts.

    Args:
        queries: the table that `Contexts.query_C` and `recent_CW` number.
        profiles: what people say of themselves; where nobody has one, the prompt has no place for it.
    """

    def __init__(
        self, vocabulary: Vocabulary, items: Items, queries: Queries, config: BehaviourConfig, profiles: Profiles
    ) -> None:
        self.vocabulary, self.items, self.queries, self.config = vocabulary, items, queries, config
        self.profiles = profiles
        self.profile_UT = profiles.tokens(vocabulary, config.profile_words)
        self.item_token_IL = np.concatenate(
            [vocabulary.code_tokens(items.codes_IL), np.zeros((1, len(items.sizes)), np.int64)]
        )
        self.query_token_QL = np.concatenate(
            [vocabulary.code_tokens(queries.codes_QL), np.zeros((1, len(items.sizes)), np.int64)]
        )
        self.query_word_QT = np.concatenate([queries.word_QT, np.zeros((1, queries.word_QT.shape[1]), np.int64)])
        self.residual_IR = items.codes_IL[:, :N_RESIDUAL]

    def with_queries(self, queries: Queries) -> Prompts:
        """The same over another table of queries."""
        return Prompts(self.vocabulary, self.items, queries, self.config, self.profiles)

    def text(self, task: str, token_BT: Tokens) -> Prompt:
        """A text to be read for a task."""
        return Prompt([self._task(task, len(token_BT)), self._words("words", token_BT[:, None])])

    def codes(self, task: str, token_BL: Tokens) -> Prompt:
        """An ID to be read for a task, one place a code."""
        return Prompt([self._task(task, len(token_BL)), _part("sid", token_BL[:, :, None])])

    def personal(self, own: Contexts, uid_B2L: Tokens | None = None) -> Prompt:
        """The whole prompt of a batch of contexts.

        Args:
            uid_B2L: codes of the user IDs (`uid_codes`), -1 for none; made here where None.
        """
        config = self.config
        parts = [
            self._task("personal", len(own)),
            self._words("words", self.query_word_QT[own.query_C][:, None]),
            _part("sid", self.query_token_QL[own.query_C][:, :, None]),
        ]
        if len(self.profiles):
            parts.append(self._words("profile", self.profile_tokens(own)[:, None]))
        if config.uid != "none":
            codes = self.uid_codes(own) if uid_B2L is None else uid_B2L
            tokens = self.vocabulary.code_tokens(codes)
            parts += [self._id("uid-short", tokens[:, :1]), self._id("uid-long", tokens[:, 1:])]
        if config.short:
            parts += [
                self._words("recent-words", self.query_word_QT[own.recent_CW]),
                self._id("recent-sid", self.query_token_QL[own.recent_CW]),
                self._id("item", self.item_token_IL[own.short(config.window)]),
            ]
        return Prompt(parts, self.long(own) if config.long else None)

    def profile_tokens(self, own: Contexts) -> Tokens:
        """(B, T) tokens of the persons' profiles, PAD for who has none."""
        return self.profile_UT[self.profiles.places(own.user_ids)]

    def uid_codes(self, own: Contexts) -> Tokens:
        """(B, 2, L) codes of the short and the long user ID."""
        config, sizes = self.config, self.items.sizes
        if config.uid == "hashed":
            halves = [hashed_codes(own.user_ids.tolist(), sizes, salt=salt) for salt in ("short", "long")]
            return np.stack(halves, axis=1)
        short = own.short(config.window).astype(np.int64)
        empty = (own.history_CH < 0).all(1, keepdims=True)
        if own.history_CH.shape[1] >= short.shape[1]:
            filled = np.concatenate(
                [np.full((len(own), own.history_CH.shape[1] - short.shape[1]), -1), short], axis=1
            )
            long = np.where(empty, filled, own.history_CH)
        else:
            long = short
        return np.stack([self._uid(short), self._uid(long)], axis=1)

    def _uid(self, item_BM: NDArray[np.int64]) -> Tokens:
        real = item_BM >= 0
        if self.config.uid == "behaviour":
            return behaviour_codes(self.items.codes_IL[item_BM], real)
        return centroid_codes(self.items.rebuilt_IA[item_BM], real, self.items.quantise)

    def long(self, own: Contexts) -> LongHistory:
        """Clicks, orders and the items nearest to the query (RSU), of which the Q-Former makes soft tokens."""
        used = max(1, int((own.history_CH >= 0).sum(1).max(initial=1)))
        history = own.history_CH[:, -used:]
        real = history >= 0
        near = self.nearest_to_query(own, history)
        real_BSH = np.stack([real, own.ordered_CH[:, -used:] & real, near], axis=1)
        codes = np.broadcast_to(self.residual_IR[history][:, None], (*real_BSH.shape, self.residual_IR.shape[1]))
        return LongHistory(torch.from_numpy(np.ascontiguousarray(codes)), torch.from_numpy(real_BSH))

    def nearest_to_query(self, own: Contexts, history_BH: NDArray[np.int32]) -> NDArray[np.bool_]:
        """(B, H) the `rsu` items of each history that are nearest to the query."""
        real = history_BH >= 0
        query = np.where((own.query_C >= 0)[:, None], self.queries.vector_QA[own.query_C], 0.0)
        near = np.einsum("bha,ba->bh", self.items.vector_IA[history_BH], query)
        near = np.where(real, near, -np.inf)
        place = np.argsort(np.argsort(-near, axis=1, kind="stable"), axis=1)
        return real & (place < self.config.rsu) & (own.query_C >= 0)[:, None]

    def _task(self, task: str, batch: int) -> Part:
        return _part("task", np.full((batch, 1, 1), self.vocabulary.task(task)))

    def _words(self, kind: str, token_BPT: Tokens) -> Part:
        if self.config.layout == "compact":
            return _part(kind, token_BPT, mean=True)
        return _part(kind, token_BPT.reshape(len(token_BPT), -1, 1))

    def _id(self, kind: str, token_BPL: Tokens) -> Part:
        if self.config.layout == "compact":
            return _part(kind, token_BPL)
        return _part(kind, token_BPL.reshape(len(token_BPL), -1, 1))


def places_of_parts(config: OneSearchConfig, n_levels: int) -> dict[str, int]:
    """Places of every part of a prompt that a setting makes longer, by kind.

    Args:
        n_levels: codes of an ID that are written.
    """
    behaviour, stages = config.behaviour, config.stages
    by_token = behaviour.layout == "tokens"
    # the longest text that is read in one part: a query, or an item's title, brand and category path (corpus.py)
    text = max(stages.query_words, stages.title_words)
    if stages.item_text == "all":
        text = max(text, 2 * stages.title_words + BRAND_WORDS)
    places = {"words": text if by_token else 1, "sid": n_levels, "profile": behaviour.profile_words if by_token else 1}
    if behaviour.short:
        places |= {
            "recent-words": behaviour.window * (stages.query_words if by_token else 1),
            "recent-sid": behaviour.window * (n_levels if by_token else 1),
            "item": behaviour.window * (n_levels if by_token else 1),
        }
    return places


def check_places(config: OneSearchConfig, n_levels: int) -> None:
    """Whether the network has a place for everything that a prompt may hold.

    Raises:
        RankloomError: a part of the prompt is longer than `network.max_places`.
    """
    places, most = places_of_parts(config, n_levels), config.network.max_places
    kind = max(places, key=lambda own: places[own])
    if places[kind] > most:
        behaviour = config.behaviour
        raise RankloomError(
            f"the part {kind!r} of the prompt takes {places[kind]} places (behaviour.layout={behaviour.layout}, "
            f"behaviour.window={behaviour.window}), and the network has {most} (network.max_places)",
            place="network.max_places",
            action=f"set network.max_places={places[kind]}, or a smaller behaviour.window, stages.query_words or "
            "stages.title_words, or behaviour.layout=compact",
            code="onesearch-places",
        )


def _part(kind: str, token_BPN: Tokens, *, mean: bool = False) -> Part:
    return Part(KINDS.index(kind), torch.from_numpy(np.ascontiguousarray(token_BPN)), mean)
