"""Validation during training: teacher-forced losses and the selection head's ranking of the whole catalogue.

Cheap enough to run after every epoch (no beam search), on all or a fixed sample of the validation cases. The ranking
figure is an upper view of what beam search and selection will serve; the served figure is what `rankloom evaluate`
measures.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from rankloom.data.sequences import VALID, Sequences
from rankloom.models.age import AgeIndex
from rankloom.models.lazy_decoder import LazyDecoder
from rankloom.models.prefix import Prefix
from rankloom.training.features import FeatureTable
from rankloom.training.objectives import TrieSoftmax, code_losses

# Catalogues beyond this are ranked against a fixed random subset during training, to bound the cost of an evaluation.
_RANK_LIMIT = 100_000


class Validation:
    """Validation cases of a log, evaluated in batches of requests.

    Args:
        mask_seen: leave items of the history out of the ranking, as serving will.
        softmax: what the generation loss is normalised over, as in training.
    """

    def __init__(
        self,
        sequences: Sequences,
        table: FeatureTable,
        *,
        max_history: int,
        max_cases: int,
        mask_seen: bool,
        seed: int,
        batch_size: int = 256,
        softmax: TrieSoftmax | None = None,
    ) -> None:
        cases = sequences.cases(VALID, max_per_user=5)
        generator = torch.Generator().manual_seed(seed)
        order = torch.randperm(len(cases), generator=generator)[:max_cases].sort().values
        self.row = torch.from_numpy(cases.row)[order]
        self.user = torch.from_numpy(cases.user).long()[order]
        self.target = torch.from_numpy(cases.target).long()[order]
        begin = torch.from_numpy(sequences.offsets)[self.user]
        self.start = torch.maximum(begin, self.row - max_history)
        self.begin = begin
        self.table = table
        self.when = torch.from_numpy(sequences.timestamp / 1e6)[self.row] if sequences.has_clock else None
        self.mask_seen = mask_seen
        self.softmax = softmax
        self.batch_size = batch_size
        candidates = torch.arange(sequences.n_items)
        if sequences.n_items > _RANK_LIMIT:
            candidates = torch.randperm(sequences.n_items, generator=generator)[:_RANK_LIMIT].sort().values
        self.candidates = candidates

    def __len__(self) -> int:
        return len(self.row)

    @torch.no_grad()
    def __call__(self, model: LazyDecoder) -> dict[str, float]:
        """Mean losses in nats, recall@10 and ndcg@10 of the selection head over the catalogue."""
        was_training = model.training
        model.eval()
        totals = {
            "valid_generation_loss": 0.0,
            "valid_selection_loss": 0.0,
            "valid_recall@10": 0.0,
            "valid_ndcg@10": 0.0,
        }
        ages = AgeIndex(model.items.created_I[self.candidates])
        for begin in range(0, len(self.row), self.batch_size):
            part = slice(begin, begin + self.batch_size)
            prefix = model.prefill(
                self.table.pack(self.start[part], self.row[part], queries_at=self.row[part], user=self.user[part]),
                self.table.surface[self.row[part]],
            )
            target = self.target[part]
            generation, user = self._teacher_forced(model, prefix, target)
            when = None if self.when is None else self.when[part]
            scores = model.catalogue_scores(user, self.candidates, None if when is None else ages.buckets(when))
            own = model.select_scores(user, target[:, None], when)[:, 0].float()
            self._agree(scores, own, target)
            if self.mask_seen:
                scores = self._mask(scores, part, target)
            rank = (scores > own[:, None]).sum(1)
            hit = rank < 10
            totals["valid_generation_loss"] += float(generation.sum())
            totals["valid_selection_loss"] += float((torch.logsumexp(scores, 1) - own).sum())
            totals["valid_recall@10"] += float(hit.sum())
            totals["valid_ndcg@10"] += float((hit / torch.log2(rank.float() + 2)).sum())
        model.train(was_training)
        return {name: value / max(1, len(self.row)) for name, value in totals.items()}

    def _agree(self, scores: Tensor, own: Tensor, target: Tensor) -> None:
        """In place: the target's score among the candidates is its own, so that rounding puts nothing above itself."""
        place = torch.searchsorted(self.candidates, target).clamp_max(len(self.candidates) - 1)
        row = torch.nonzero(self.candidates[place] == target)[:, 0]
        scores[row, place[row]] = own[row].to(scores.dtype)

    def _mask(self, scores: Tensor, part: slice, target: Tensor) -> Tensor:
        start, stop = self.begin[part], self.row[part]
        length = stop - start
        row = torch.repeat_interleave(torch.arange(len(length)), length)
        offset = torch.arange(len(row)) - torch.repeat_interleave(length.cumsum(0) - length, length)
        seen = self.table.item[start[row] + offset]
        other = seen != target[row]
        row, seen = row[other], seen[other]
        if len(self.candidates) < int(self.table.item.max()) + 1:
            place = torch.searchsorted(self.candidates, seen).clamp_max(len(self.candidates) - 1)
            found = self.candidates[place] == seen
            row, seen = row[found], place[found]
        scores[row, seen] = -math.inf
        return scores

    def _teacher_forced(self, model: LazyDecoder, prefix: Prefix, item_B: Tensor) -> tuple[Tensor, Tensor]:
        """((B,) mean loss over codes, (B, D) user state), each request scored against its own target."""
        codes_BQ = model.items.codes_IQ[item_B]
        logits, user, cache = model.start(prefix)
        loss = code_losses(self.softmax, logits[:, 0], 0, item_B, codes_BQ[:, 0])
        for level in range(1, codes_BQ.shape[1]):
            logits, cache = model.step(prefix, level, codes_BQ[:, level - 1 : level], cache)
            loss = loss + code_losses(self.softmax, logits[:, 0], level, item_B, codes_BQ[:, level])
        return loss / codes_BQ.shape[1], user
