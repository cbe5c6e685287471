"""The reward model on contexts and candidates: its features, its training, and the order it gives to a list.

Trained on what searches led to (levels 1 and 3 of training/feedback.py), on what the person later took from the feed of the
same category (level 2, the paper's extra positives), against what was shown and passed over, items of the same category and
any others. Where a log has no impressions, the last two stand for what was not taken, and CTR, CVR and CTCVR learn from the
same takes.

Beside what the paper names (query, behaviour, profile, item) it reads BM25 and where the words stand (lexical.py) and how often
the candidate went with the last item, the history and the query (statistics.py); `evidence: false` leaves these out.

Shapes: B contexts, M candidates, H searched-out history, A width of vectors.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray

from rankloom.models.behaviour_uid import recency_weights
from rankloom.models.reward_towers import RewardInput, RewardTowers, joined_reward, tower_loss
from rankloom.onesearch.contexts import Contexts
from rankloom.onesearch.corpus import Integers, Items
from rankloom.onesearch.fitting import Record, fit
from rankloom.onesearch.lexical import EVIDENCE, Lexical
from rankloom.onesearch.negatives import Feedback, Negatives
from rankloom.onesearch.prompts import Prompts
from rankloom.onesearch.settings import RewardConfig
from rankloom.onesearch.statistics import Statistics

_COUNT_SCALE: Final = 5.0
SCALARS: Final = (
    "cosine to the query", "words", *EVIDENCE, "cosine to the history", "cosine to the last", "popularity", "category share",
    "after the last", "with the history", "clicks of the query",
)  # fmt: skip


@dataclass
class RewardModel:
    """Towers with what they read.

    Attributes:
        prompts: for its items, its queries and the search of histories.
        statistics: counts of the training period.
        lexical: the catalogue's words.
    """

    config: RewardConfig
    towers: RewardTowers
    prompts: Prompts
    statistics: Statistics
    lexical: Lexical

    @classmethod
    def build(cls, config: RewardConfig, prompts: Prompts, statistics: Statistics, seed: int) -> RewardModel:
        """Untrained towers."""
        items = prompts.items
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            towers = RewardTowers(
                config.towers, items.vector_IA.shape[1], n_scalars=len(SCALARS),
                n_tokens=prompts.vocabulary.n_tokens if len(prompts.profiles) else 0,
            )  # fmt: skip
        return cls(config, towers.eval(), prompts, statistics, Lexical.of(items.titles, items.brands, items.categories))

    @property
    def items(self) -> Items:
        return self.prompts.items

    def with_queries(self, prompts: Prompts) -> RewardModel:
        """The same over another table of queries."""
        return replace(self, prompts=prompts)

    def inputs(self, own: Contexts, item_BM: NDArray[Any], *, trained: bool = False) -> tuple[RewardInput, NDArray[np.float32]]:
        """Features, and (B, M) relevance by words.

        Args:
            trained: the contexts' own clicks are among the counts, and are taken out of them.
        """
        items, queries = self.items, self.prompts.queries
        used = max(1, int((own.history_CH >= 0).sum(1).max(initial=1)))
        history = own.history_CH[:, -used:]
        real = history >= 0
        vector_BHA = items.vector_IA[history] * real[:, :, None]
        near = self.prompts.nearest_to_query(own, history)
        width = max(1, int(near.sum(1).max(initial=1)))
        column = np.argsort(~near, axis=1, kind="stable")[:, :width]
        kept = np.take_along_axis(near, column, 1)
        searched_BHA = np.take_along_axis(vector_BHA, column[:, :, None], 1)
        weights = recency_weights(real).astype(np.float32)
        user_BA = np.einsum("bh,bha->ba", weights, vector_BHA)
        query_BA = np.where((own.query_C >= 0)[:, None], queries.vector_QA[own.query_C], 0.0).astype(np.float32)
        item_BMA = items.vector_IA[item_BM]
        last_BA = vector_BHA[:, -1]
        target_B = own.target_C if trained else None
        words_BM, evidence_BMF = self._words(own, item_BM)
        count = items.count_I[item_BM].astype(np.float32)
        if trained:
            count = count - (item_BM == own.target_C[:, None])
        same = (items.category_I[item_BM][:, :, None] == items.category_I[history][:, None]) & real[:, None]
        numbers = self.statistics
        counted = [
            numbers.after_last(history, item_BM, target_B),
            numbers.with_history(history, item_BM, target_B),
            numbers.clicks(own.query_C, item_BM, target_B),
        ]
        if not self.config.evidence:
            evidence_BMF, counted = np.zeros_like(evidence_BMF), [np.zeros_like(part) for part in counted]
        scalar = np.stack(
            [
                np.einsum("bma,ba->bm", item_BMA, query_BA),
                words_BM,
                *np.moveaxis(evidence_BMF, 2, 0),
                np.einsum("bma,ba->bm", item_BMA, user_BA),
                np.einsum("bma,ba->bm", item_BMA, last_BA),
                np.log1p(np.maximum(count, 0)) / _COUNT_SCALE,
                same.sum(2) / np.maximum(real.sum(1), 1)[:, None],
                *(np.log1p(part) for part in counted),
            ],
            axis=2,
        ).astype(np.float32)
        tensors = (torch.from_numpy(np.ascontiguousarray(part)) for part in (query_BA, user_BA, searched_BHA, kept, item_BMA, scalar))
        features = RewardInput(*tensors)
        if len(self.prompts.profiles):
            features.profile_BT = torch.from_numpy(self.prompts.profile_tokens(own))
        return features, words_BM

    def _words(self, own: Contexts, item_BM: NDArray[Any]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """(B, M) coverage by words and (B, M, 4) evidence of each context's query and its candidates."""
        asked, place = np.unique(np.maximum(own.query_C, 0), return_inverse=True)
        place = place.reshape(-1)
        texts = tuple(self.prompts.queries.texts[number] for number in asked)
        has_query = own.query_C >= 0
        share = self.lexical.coverage(texts)[place[:, None], item_BM] * has_query[:, None]
        evidence = self.lexical.evidence(texts)[place[:, None], item_BM] * has_query[:, None, None]
        return share.astype(np.float32), evidence.astype(np.float32)

    # -- training

    def fit(
        self, contexts: Contexts, feedback: Feedback, negatives: Negatives, *, seed: int, quiet: bool = True
    ) -> Record:
        """Trains the towers.

        Args:
            contexts, feedback: one for one; `contexts.target_C` is what was taken.
        """
        rng = np.random.default_rng([seed, 7])

        def steps() -> Iterator[tuple[str, Any]]:
            for _ in range(self.config.steps):
                chosen = rng.integers(len(contexts), size=self.config.batch_size)
                yield "towers", partial(self._loss, contexts.take(chosen), feedback.take(chosen), negatives, rng)

        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed + 1)
            return fit(
                self.towers, steps(), self.config.steps, learning_rate=self.config.learning_rate, weight_decay=0.01,
                label="OneSearch reward model", quiet=quiet,
            )  # fmt: skip

    def _loss(self, own: Contexts, feedback: Feedback, negatives: Negatives, rng: np.random.Generator) -> torch.Tensor:
        item_BM = candidates(self.config, feedback, negatives, rng)
        features, _ = self.inputs(own, np.maximum(item_BM, 0), trained=True)
        taken = item_BM == own.target_C[:, None]
        ordered = taken & feedback.ordered_C[:, None]
        tensors = (torch.from_numpy(part) for part in (taken, ordered, item_BM >= 0))
        return tower_loss(self.towers(features), *tensors)

    # -- use

    def rewards(self, own: Contexts, item_BM: NDArray[Any], *, block: int = 128, trained: bool = False) -> NDArray[np.float32]:
        """(B, M) R of candidates, -inf for padding."""
        out = np.full(item_BM.shape, -np.inf, dtype=np.float32)
        self.towers.eval()
        with torch.inference_mode():
            for begin in range(0, len(own), block):
                part = slice(begin, begin + block)
                item = item_BM[part]
                features, words_BM = self.inputs(own.take(part), np.maximum(item, 0), trained=trained)
                reward = joined_reward(
                    self.towers(features), torch.from_numpy(words_BM), self.config.weights, self.config.relevance_times
                )
                out[part] = np.where(item >= 0, reward.numpy(), -np.inf)
        return out

    def select(self, own: Contexts, item_BM: NDArray[np.int32]) -> NDArray[np.int32]:
        """The lists in the reward model's order; equal rewards stay in the generator's."""
        order = np.argsort(-self.rewards(own, item_BM), axis=1, kind="stable")
        return np.take_along_axis(item_BM, order, 1)


def candidates(config: RewardConfig, feedback: Feedback, negatives: Negatives, rng: np.random.Generator) -> Integers:
    """(B, 1 + N) what was taken, then what was not: shown, of the same category, others."""
    parts = [
        feedback.target_C[:, None],
        negatives.shown(feedback, config.n_shown, rng),
        negatives.same_category(feedback, config.n_same, rng),
        negatives.others(feedback, config.n_random, rng),
    ]
    return np.concatenate(parts, axis=1)
