"""PARS, the preference-aware training of OneSearch: from rewards to pairs, from pairs to two phases of list-wise training.

Phase 1: the supervised model generates lists for training contexts, the reward model re-orders them, and **only contexts
whose order changed** give a sample. Preferred is what was clicked where the list has it (and something was placed above it),
else the best of what the reward model promoted; rejected is what the generator had placed above it and the reward model
demoted. Contexts are takes of the log, or (`sampled`) people at the end of their training period with a query of the log: what
was generated for these the supervised model has not learned by heart. Phase 2: from raw feedback, what was taken (levels 1 to 3) against what was passed over, not shown, or of another
category (levels 4 to 6). The reference of both is the supervised model; phase 2 continues the weights of phase 1.

Weights of the pairs are made of the calibrated r(q, i) (training/feedback.py).

Left out: the weekly and daily schedule of a running shop; both phases run once, over the same log.

Shapes: C contexts, K length of a generated list, N rejected items, B batch, L levels.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from rankloom.models.encoder_decoder import EncoderDecoder
from rankloom.onesearch.contexts import Contexts
from rankloom.onesearch.corpus import Integers
from rankloom.onesearch.fitting import Record, fit
from rankloom.onesearch.negatives import Feedback, Negatives
from rankloom.onesearch.prompts import Prompts
from rankloom.onesearch.scoring import item_log_probs
from rankloom.onesearch.settings import PreferenceConfig
from rankloom.training.objectives import TrieSoftmax
from rankloom.training.preference import Preferences, preference_loss


@dataclass
class Pairs:
    """Preferred and rejected items of contexts.

    Attributes:
        context_C: numbers of the contexts.
        win_C: preferred items.
        lose_CN: rejected items, -1 for padding.
        reward_win_C, reward_lose_CN: calibrated r(q, i).
    """

    context_C: Integers
    win_C: Integers
    lose_CN: Integers
    reward_win_C: NDArray[np.float64]
    reward_lose_CN: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.win_C)

    def with_more(self, more: Pairs, shift: int = 0) -> Pairs:
        """These and then others, whose contexts are numbered from `shift` on."""
        later = replace(more, context_C=more.context_C + shift)
        names = self.__dataclass_fields__
        return Pairs(*(np.concatenate([getattr(self, name), getattr(later, name)]) for name in names))


@dataclass
class Reordered:
    """What the reward model made of generated lists.

    Attributes:
        kept_C: contexts that give a sample.
        win_C: place of the preferred item in the generated list, of all contexts.
        lose_CK: which places are rejected.
        changed_C: whether the order changed at all.
    """

    kept_C: NDArray[np.bool_]
    win_C: Integers
    lose_CK: NDArray[np.bool_]
    changed_C: NDArray[np.bool_]


def reorder(item_CK: NDArray[Any], reward_CK: NDArray[Any], target_C: Integers, nth: int = 0) -> Reordered:
    """Which items of generated lists become preferred and rejected; see the module's docstring.

    Args:
        item_CK: generated items, best first, -1 for padding.
        reward_CK: R of each.
        target_C: what was taken, -1 where that is not known.
        nth: of the promoted items the one that comes n-th (0 is the best); what was clicked stands for the best alone.
    """
    real = item_CK >= 0
    reward = np.where(real, reward_CK, -np.inf)
    order = np.argsort(-reward, axis=1, kind="stable")
    place = np.argsort(order, axis=1, kind="stable")
    before = np.arange(item_CK.shape[1])[None]
    changed = ((place != before) & real).any(1)
    promoted, demoted = real & (place < before), real & (place > before)
    # of the promoted, the one that the reward model puts highest
    column = min(nth, item_CK.shape[1] - 1)
    best = np.argsort(np.where(promoted, place, np.iinfo(np.int64).max), axis=1, kind="stable")[:, column]
    clicked = real & (item_CK == target_C[:, None])
    at_click = clicked.argmax(1)
    by_click = clicked.any(1) & (at_click > 0)
    win = np.where(by_click, at_click, best)
    above = demoted & (before < win[:, None]) & ~clicked
    # what was clicked is preferred whatever the reward model thinks of it: all that stood above it and was demoted
    enough = np.where(by_click, nth == 0, promoted.sum(1) > nth)
    kept = changed & enough & above.any(1)
    return Reordered(kept, win.astype(np.int64), above, changed)


def generated_pairs(
    item_CK: NDArray[Any], reward_CK: NDArray[Any], feedback: Feedback, negatives: Negatives, n_rejected: int, nth: int = 0
) -> tuple[Pairs, dict[str, float]]:
    """Phase 1's pairs, and the shares of contexts whose order changed and that gave one.

    Of more than `n_rejected` rejected items, those that the generator placed highest are taken.

    Args:
        nth: which of the promoted items is preferred (`reorder`).
    """
    found = reorder(item_CK, reward_CK, feedback.target_C, nth)
    # what the person took under the query another time is no wrong answer
    lose_CK = found.lose_CK & ~negatives.was_taken(feedback, item_CK)
    kept_C = found.kept_C & lose_CK.any(1)
    kept = np.flatnonzero(kept_C)
    column = np.argsort(~lose_CK[kept], axis=1, kind="stable")[:, :n_rejected]
    real = np.take_along_axis(lose_CK[kept], column, 1)
    lose = np.where(real, np.take_along_axis(item_CK[kept].astype(np.int64), column, 1), -1)
    win = item_CK[kept, found.win_C[kept]].astype(np.int64)
    own, item = feedback.take(kept), np.concatenate([win[:, None], lose], axis=1)
    unknown = negatives.rewards_of_queries(own.query_C, item)
    reward = np.where((own.target_C >= 0)[:, None], negatives.rewards(own, item), unknown)
    shares = {"changed": float(found.changed_C.mean()), "kept": float(kept_C.mean())} if len(item_CK) else {}
    return Pairs(kept, win, lose, reward[:, 0], reward[:, 1:]), shares


def feedback_pairs(feedback: Feedback, negatives: Negatives, n_rejected: int, rng: np.random.Generator) -> Pairs:
    """Phase 2's pairs: what was taken against levels 4, 5 and 6 in equal parts (more of the others where one lacks)."""
    each = -(-n_rejected // 2)
    target = feedback.target_C
    drawn = np.concatenate(
        [
            negatives.shown(feedback, n_rejected, rng), negatives.same_category(feedback, n_rejected, rng),
            negatives.others(feedback, each, rng),
        ],
        axis=1,
    )  # fmt: skip
    # in turns, so that each level has its part: 4, 5, 6, 4, 5, 6 ..
    turn = np.concatenate([np.arange(n_rejected) * 3, np.arange(n_rejected) * 3 + 1, np.arange(each) * 3 + 2])
    rank = np.where(drawn >= 0, turn, np.iinfo(np.int64).max)
    column = np.argsort(rank, axis=1, kind="stable")[:, :n_rejected]
    lose = np.take_along_axis(drawn, column, 1)
    reward = negatives.rewards(feedback, np.concatenate([target[:, None], lose], axis=1))
    return Pairs(np.arange(len(target)), target, lose, reward[:, 0], reward[:, 1:])


def train_preferences(
    network: EncoderDecoder, reference: EncoderDecoder, contexts: Contexts, prompts: Prompts, pairs: Pairs,
    config: PreferenceConfig, n_steps: int, *, seed: int, label: str, softmax: TrieSoftmax | None = None, quiet: bool = True,
) -> Record:  # fmt: skip
    """One phase: list-wise training of `network` against a `reference` that stays as it is.

    Args:
        softmax: over the trie of the whole catalogue, where items' probabilities are normalised over it.
    """
    if not len(pairs) or not n_steps:
        return Record()
    rng = np.random.default_rng([seed, 11])
    def steps() -> Iterator[tuple[str, Any]]:
        left = np.zeros(0, dtype=np.int64)
        size = min(config.batch_size, len(pairs))
        for _ in range(n_steps):
            if len(left) < size:
                left = np.concatenate([left, rng.permutation(len(pairs))])
            chosen, left = left[:size], left[size:]
            yield label, partial(_loss, network, reference, contexts, prompts, pairs, config, chosen, softmax)

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed + 3)
        return fit(
            network, steps(), n_steps, learning_rate=config.learning_rate, weight_decay=0.0, label=label, quiet=quiet,
            dropout=False,
        )  # fmt: skip


def frozen(network: EncoderDecoder) -> EncoderDecoder:
    """A copy that is not trained: the reference."""
    return copy.deepcopy(network).requires_grad_(False).eval()


def preferences(
    network: EncoderDecoder, reference: EncoderDecoder, contexts: Contexts, prompts: Prompts, pairs: Pairs, chosen: Integers,
    softmax: TrieSoftmax | None = None,
) -> Preferences:  # fmt: skip
    """Log-probabilities and rewards of some of the pairs."""
    own = contexts.take(pairs.context_C[chosen])
    prompt = prompts.personal(own)
    item = np.concatenate([pairs.win_C[chosen, None], pairs.lose_CN[chosen]], axis=1)
    item_BT, code_IL = torch.from_numpy(np.maximum(item, 0)), torch.from_numpy(prompts.items.codes_IL)
    log_prob = item_log_probs(network, network.encode(prompt), item_BT, code_IL, softmax)
    with torch.no_grad():
        given = item_log_probs(reference, reference.encode(prompt), item_BT, code_IL, softmax)
    return Preferences(
        win_B=log_prob[:, 0], lose_BN=log_prob[:, 1:], win_ref_B=given[:, 0], lose_ref_BN=given[:, 1:],
        reward_win_B=torch.from_numpy(pairs.reward_win_C[chosen]).float(),
        reward_lose_BN=torch.from_numpy(pairs.reward_lose_CN[chosen]).float(),
        real_BN=torch.from_numpy(pairs.lose_CN[chosen] >= 0),
    )  # fmt: skip


def _loss(
    network: EncoderDecoder, reference: EncoderDecoder, contexts: Contexts, prompts: Prompts, pairs: Pairs,
    config: PreferenceConfig, chosen: Integers, softmax: TrieSoftmax | None,
) -> torch.Tensor:  # fmt: skip
    return preference_loss(config.loss, preferences(network, reference, contexts, prompts, pairs, chosen, softmax))
