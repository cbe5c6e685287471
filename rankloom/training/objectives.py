"""What a step minimises: next-item generation plus the selection head, on one forward.

* generation (OneRec-V2 section 4.3): mean over the Q codes of the cross-entropy of each code given the ones before it,
  normalised over the whole codebook as in the report, or over the codes that the catalogue's trie allows after those
  before (`decoding.normalise`), which makes the product a distribution over the catalogue;
* selection: softmax cross-entropy of the target item among the catalogue (or, for large catalogues, among sampled
  negatives with the log-Q correction), scored by the user's state against the item vectors.

An objective is one small class: `forward(model, batch) -> Losses`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from rankloom.config import Config
from rankloom.models.age import AgeIndex, age_bucket
from rankloom.models.lazy_decoder import LazyDecoder
from rankloom.semantic.trie import Trie
from rankloom.training.batches import TrainingBatch


@dataclass
class Losses:
    """`total` is what is minimised; the others are what a person reads. All are means over the targets."""

    total: Tensor
    generation: Tensor
    selection: Tensor
    n_targets: int


class TrieSoftmax:
    """Cross-entropy of a code among the legal continuations of its prefix, for the items of one catalogue.

    Only legal codes are gathered (CSR), so the cost is the fan-out of the prefixes, not the codebook.

    Args:
        rows: the items whose codes are legal; None is all. Items that nobody took in training teach nothing but that
            nobody took them: left in, they are learned to be wrong answers, and new items with them.
    """

    def __init__(self, codes_IQ: Tensor, codebook_sizes: Sequence[int], *, rows: Tensor | None = None) -> None:
        own = None if rows is None else rows.cpu().numpy()
        self.trie = Trie.build(codes_IQ.cpu().numpy(), codebook_sizes, rows=own)
        leaf_I = self.trie.leaf_of_item(len(codes_IQ)).clamp_min(0)
        root = torch.zeros(len(codes_IQ), dtype=torch.long)
        self.node_I = [root, *(ancestor[leaf_I] for ancestor in self.trie.ancestors())]

    def loss(self, logits_MK: Tensor, level: int, item_M: Tensor, *, smoothing: float = 0.0) -> Tensor:
        """(M,) losses in nats. With `smoothing` that share of the target is spread evenly over the legal codes."""
        rows, device = len(logits_MK), logits_MK.device
        place = item_M.cpu()
        parent_M = self.node_I[level][place]
        begin_M = self.trie.child_start[level][parent_M]
        fan_M = self.trie.child_start[level][parent_M + 1] - begin_M
        pair = torch.repeat_interleave(torch.arange(rows), fan_M)
        child = begin_M[pair] + torch.arange(len(pair)) - (fan_M.cumsum(0) - fan_M)[pair]
        pair, fan_M = pair.to(device), fan_M.to(device)
        legal = logits_MK[pair, self.trie.child_code[level][child].to(device)]
        peak_M = torch.full((rows,), float("-inf"), device=device).scatter_reduce(0, pair, legal.detach(), "amax")
        total_M = torch.zeros(rows, device=device).index_add(0, pair, (legal - peak_M[pair]).exp())
        log_total_M = total_M.log() + peak_M
        code_M = self.trie.child_code[level][self.node_I[level + 1][place]].to(device)
        chosen_M = logits_MK.gather(1, code_M[:, None])[:, 0]
        if smoothing:
            mean_M = torch.zeros(rows, device=device).index_add(0, pair, legal) / fan_M
            chosen_M = (1 - smoothing) * chosen_M + smoothing * mean_M
        return log_total_M - chosen_M


def code_losses(
    softmax: TrieSoftmax | None,
    logits_MK: Tensor,
    level: int,
    item_M: Tensor,
    code_M: Tensor,
    *,
    smoothing: float = 0.0,
) -> Tensor:
    """(M,) cross-entropies of the code at a level, over the trie's continuations or (None) the whole codebook."""
    if softmax is not None:
        return softmax.loss(logits_MK.float(), level, item_M, smoothing=smoothing)
    return F.cross_entropy(logits_MK.float(), code_M, label_smoothing=smoothing, reduction="none")


class NextItem:
    """Generation and selection together.

    Args:
        item_counts: (I,) training frequency of each item: those without any are not among the answers that selection
            is asked to choose from, and sampled negatives are corrected by it (log-Q).
        softmax: normalise codes over this trie; None is the whole codebook.
        when_E: seconds of the training targets, for `training.recency_days`.
    """

    def __init__(
        self, config: Config, item_counts: Tensor, softmax: TrieSoftmax | None = None, when_E: Tensor | None = None
    ) -> None:
        self.config = config
        self.softmax = softmax
        self.item_counts = item_counts.float()
        share = (self.item_counts + 1.0) / (self.item_counts + 1.0).sum()
        self.log_q = share.log()
        self.recency: tuple[float, float] | None = None
        if when_E is not None and config.training.recency_days is not None and len(when_E):
            end = float(when_E.max())
            mean = torch.exp2((when_E - end) / (86_400 * config.training.recency_days)).mean()
            self.recency = (end, float(mean))
        self._rows: Tensor | None = None

    def forward(self, model: LazyDecoder, batch: TrainingBatch, generator: torch.Generator) -> Losses:
        keep = model.items.keep_mask(generator)
        codes_MQ = model.items.codes_IQ[batch.item_M]
        hidden, user = model(batch.context, batch.target_BT, codes_MQ, batch.surface_BT, keep=keep)
        generation = hidden.new_zeros(())
        weight_M = self._recency(batch.when_M)
        for level in range(len(model.codebook_sizes)):
            losses = code_losses(
                self.softmax, model.code_logits(hidden, level), level, batch.item_M, codes_MQ[:, level],
                smoothing=self.config.training.label_smoothing,
            )  # fmt: skip
            generation = generation + (losses.mean() if weight_M is None else (losses * weight_M).mean())
        generation = generation / len(model.codebook_sizes)
        selection = hidden.new_zeros(())
        if self.config.selection.enabled:
            selection = self._selection(model, user, batch, keep, generator)
        total = generation + self.config.selection.loss_weight * selection
        return Losses(total, generation.detach(), selection.detach(), len(batch.item_M))

    def _selection(
        self,
        model: LazyDecoder,
        user_MD: Tensor,
        batch: TrainingBatch,
        keep: Tensor | None,
        generator: torch.Generator,
    ) -> Tensor:
        item_M = batch.item_M
        when_M = batch.when_M if model.age is not None else None
        if len(self._answers(model)) <= self.config.selection.full_softmax_limit:
            ages = None if when_M is None else self._ages.buckets(when_M)
            scores = model.catalogue_scores(user_MD, self._answers(model), ages, keep=keep)
            return self._mean(F.cross_entropy(scores, self._place_I[item_M], reduction="none"), batch)
        weights = (self.item_counts + 1.0).to(item_M.device)
        weights = torch.where(self.item_counts.to(item_M.device) > 0, weights, 0.0)
        sampled = torch.multinomial(weights, self.config.selection.n_negatives, replacement=True, generator=generator)
        log_q = self.log_q.to(item_M.device)
        ages = None if when_M is None else age_bucket(when_M[:, None], model.items.created_I[sampled])
        negative = model.catalogue_scores(user_MD, sampled, ages, keep=keep) - log_q[sampled]
        negative = negative.masked_fill(sampled[None] == item_M[:, None], float("-inf"))
        positive = model.select_scores(user_MD, item_M[:, None], when_M, keep=keep)[:, 0].float() - log_q[item_M]
        scores = torch.cat([positive[:, None], negative], dim=1)
        return self._mean(F.cross_entropy(scores, torch.zeros_like(item_M), reduction="none"), batch)

    def _mean(self, losses_M: Tensor, batch: TrainingBatch) -> Tensor:
        weight_M = self._recency(batch.when_M)
        return losses_M.mean() if weight_M is None else (losses_M * weight_M).mean()

    def _recency(self, when_M: Tensor | None) -> Tensor | None:
        """(M,) weights of the targets, 1 on average over the training period."""
        days = self.config.training.recency_days
        if days is None or when_M is None or self.recency is None:
            return None
        end, mean = self.recency
        return (torch.exp2((when_M - end) / (86_400 * days)) / mean).float()

    def _answers(self, model: LazyDecoder) -> Tensor:
        """The items that selection chooses from in training, in order of birth."""
        if self._rows is None:
            created_I = model.items.created_I
            rows = torch.nonzero(self.item_counts.to(created_I.device) > 0)[:, 0]
            self._rows = rows[torch.argsort(created_I[rows], stable=True)]
            self._ages = AgeIndex(created_I[self._rows])
            self._place_I = torch.zeros(len(created_I), dtype=torch.long, device=created_I.device)
            self._place_I[self._rows] = torch.arange(len(rows), device=created_I.device)
        return self._rows
