"""What a step minimises: next-item generation plus the selection head, on one forward.

* generation (OneRec-V2 section 4.3): mean over the Q codes of the cross-entropy of each code given the ones before it;
* selection: softmax cross-entropy of the target item among the catalogue (or, for large catalogues, among sampled
  negatives with the log-Q correction), scored by the user's state against the item vectors.

An objective is one small class: `forward(model, batch) -> Losses`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from rankloom.config import Config
from rankloom.models.lazy_decoder import LazyDecoder
from rankloom.training.batches import TrainingBatch


@dataclass
class Losses:
    """`total` is what is minimised; the others are what a person reads. All are means over the targets."""

    total: Tensor
    generation: Tensor
    selection: Tensor
    n_targets: int


class NextItem:
    """Generation and selection together.

    Args:
        item_counts: (I,) training frequency of each item, for the log-Q correction of sampled negatives.
    """

    def __init__(self, config: Config, item_counts: Tensor) -> None:
        self.config = config
        self.item_counts = item_counts.float()
        share = (self.item_counts + 1.0) / (self.item_counts + 1.0).sum()
        self.log_q = share.log()

    def forward(self, model: LazyDecoder, batch: TrainingBatch, generator: torch.Generator) -> Losses:
        keep = model.items.keep_mask(generator)
        codes_MQ = model.items.codes_IQ[batch.item_M]
        hidden = model(batch.context, batch.target_BT, codes_MQ, batch.surface_BT, keep=keep)
        generation = hidden.new_zeros(())
        for level in range(len(model.codebook_sizes)):
            logits = model.code_logits(hidden, level).float()
            generation = generation + F.cross_entropy(
                logits, codes_MQ[:, level], label_smoothing=self.config.training.label_smoothing
            )
        generation = generation / len(model.codebook_sizes)
        selection = hidden.new_zeros(())
        if self.config.selection.enabled:
            user = model.user_state(hidden[:, 0])
            selection = self._selection(model, user, batch.item_M, keep, generator)
        total = generation + self.config.selection.loss_weight * selection
        return Losses(total, generation.detach(), selection.detach(), len(batch.item_M))

    def _selection(
        self, model: LazyDecoder, user_MD: Tensor, item_M: Tensor, keep: Tensor | None, generator: torch.Generator
    ) -> Tensor:
        n_items = len(self.item_counts)
        if n_items <= self.config.selection.full_softmax_limit:
            catalogue = model.items(torch.arange(n_items, device=item_M.device), keep)
            return F.cross_entropy((user_MD @ catalogue.T).float(), item_M)
        weights = (self.item_counts + 1.0).to(item_M.device)
        sampled = torch.multinomial(weights, self.config.selection.n_negatives, replacement=True, generator=generator)
        log_q = self.log_q.to(item_M.device)
        negative = (user_MD @ model.items(sampled, keep).T).float() - log_q[sampled]
        negative = negative.masked_fill(sampled[None] == item_M[:, None], float("-inf"))
        positive = (user_MD * model.items(item_M, keep)).sum(-1).float() - log_q[item_M]
        return F.cross_entropy(torch.cat([positive[:, None], negative], dim=1), torch.zeros_like(item_M))
