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
    """

    def __init__(self, codes_IQ: Tensor, codebook_sizes: Sequence[int]) -> None:
        self.trie = Trie.build(codes_IQ.cpu().numpy(), codebook_sizes)
        leaf_I = self.trie.leaf_of_item(len(codes_IQ))
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
    softmax: TrieSoftmax | None, logits_MK: Tensor, level: int, item_M: Tensor, code_M: Tensor, *, smoothing: float = 0.0
) -> Tensor:
    """(M,) cross-entropies of the code at a level, over the trie's continuations or (None) the whole codebook."""
    if softmax is not None:
        return softmax.loss(logits_MK.float(), level, item_M, smoothing=smoothing)
    return F.cross_entropy(logits_MK.float(), code_M, label_smoothing=smoothing, reduction="none")


class NextItem:
    """Generation and selection together.

    Args:
        item_counts: (I,) training frequency of each item, for the log-Q correction of sampled negatives.
        softmax: normalise codes over this trie; None is the whole codebook.
    """

    def __init__(self, config: Config, item_counts: Tensor, softmax: TrieSoftmax | None = None) -> None:
        self.config = config
        self.softmax = softmax
        self.item_counts = item_counts.float()
        share = (self.item_counts + 1.0) / (self.item_counts + 1.0).sum()
        self.log_q = share.log()

    def forward(self, model: LazyDecoder, batch: TrainingBatch, generator: torch.Generator) -> Losses:
        keep = model.items.keep_mask(generator)
        codes_MQ = model.items.codes_IQ[batch.item_M]
        hidden = model(batch.context, batch.target_BT, codes_MQ, batch.surface_BT, keep=keep)
        generation = hidden.new_zeros(())
        for level in range(len(model.codebook_sizes)):
            losses = code_losses(
                self.softmax, model.code_logits(hidden, level), level, batch.item_M, codes_MQ[:, level],
                smoothing=self.config.training.label_smoothing,
            )  # fmt: skip
            generation = generation + losses.mean()
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
