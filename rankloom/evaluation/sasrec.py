"""The strong plain baseline: SASRec with a full softmax loss, item vectors of ID and (optionally) projected text.

Two causal transformer blocks over the history, every position trained, the next item scored by the dot product with all
item vectors. Kang & McAuley 2018 with the loss of eSASRec's study; stops on the validation NDCG@10.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from rankloom.data.sequences import TRAIN, VALID, Cases, Sequences
from rankloom.evaluation.metrics import gains, target_rank
from rankloom.evaluation.systems import FloatArray, ScoringSystem
from rankloom.progress import Progress


class _Net(nn.Module):
    def __init__(
        self, n_items: int, content: FloatArray | None, *, dim: int, blocks: int, dropout: float, length: int
    ) -> None:
        super().__init__()
        self.ids = nn.Embedding(n_items + 1, dim, padding_idx=n_items)
        self.place = nn.Embedding(length, dim)
        nn.init.normal_(self.ids.weight, std=0.02)
        nn.init.normal_(self.place.weight, std=0.02)
        self.content = None if content is None else torch.from_numpy(np.vstack([content, np.zeros_like(content[:1])]))
        self.project = None if content is None else nn.Linear(content.shape[1], dim, bias=False)
        layer = [
            nn.TransformerEncoderLayer(dim, 1, dim, dropout, "gelu", batch_first=True, norm_first=True)
            for _ in range(blocks)
        ]
        self.blocks = nn.ModuleList(layer)
        self.norm = nn.LayerNorm(dim)
        self.dropout = nn.Dropout(dropout)

    def vectors(self) -> Tensor:
        table = self.ids.weight
        return table if self.content is None or self.project is None else table + self.project(self.content)

    def forward(self, item_BT: Tensor, vectors: Tensor) -> Tensor:
        places = item_BT.shape[1]
        # counted from the end, so that the latest item always has the same place
        back = torch.arange(places - 1, -1, -1).clamp_max(self.place.num_embeddings - 1)
        h = self.dropout(vectors[item_BT] + self.place(back))
        padding = item_BT == len(vectors) - 1
        causal = torch.ones(places, places, dtype=torch.bool).triu(1)
        mask = causal[None] | padding[:, None, :]
        # a row of padding may look at itself, or its softmax would be empty
        mask = mask & ~torch.eye(places, dtype=torch.bool)
        for block in self.blocks:
            h = block(h, src_mask=mask)
        out: Tensor = self.norm(h)
        return out


class SASRec(ScoringSystem):
    """See the module's docstring.

    Args:
        use_text: add projected content vectors to the item vectors (the variant `sasrec-text`).
    """

    def __init__(
        self, *, use_text: bool = True, dim: int = 64, blocks: int = 2, dropout: float = 0.5, length: int = 50,
        max_epochs: int = 40, patience: int = 3, learning_rate: float = 1e-3, batch_tokens: int = 2048, quiet: bool = False,
    ) -> None:  # fmt: skip
        self.name = "sasrec"
        self.variant = "id+text" if use_text else "id"
        self.use_text = use_text
        self.dim, self.blocks, self.dropout, self.length = dim, blocks, dropout, length
        self.max_epochs, self.patience = max_epochs, patience
        self.learning_rate, self.batch_tokens, self.quiet = learning_rate, batch_tokens, quiet

    def fit(self, sequences: Sequences, content: FloatArray | None, seed: int) -> None:
        rows = np.flatnonzero((sequences.stage == TRAIN) & sequences.target)
        owner = sequences.user[rows]
        begin = np.flatnonzero(np.r_[True, owner[1:] != owner[:-1]]) if len(rows) else np.zeros(0, dtype=np.int64)
        end = np.r_[begin[1:], len(rows)].astype(np.int64)
        begin = np.maximum(begin, end - self.length - 1)
        trainable = end - begin >= 2
        begin, end = begin[trainable], end[trainable]
        item = torch.from_numpy(sequences.item[rows].astype(np.int64))
        rng = np.random.default_rng(seed)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.net = _Net(
                sequences.n_items, content if self.use_text else None,
                dim=self.dim, blocks=self.blocks, dropout=self.dropout, length=self.length,
            )  # fmt: skip
            optimizer = torch.optim.AdamW(self.net.parameters(), lr=self.learning_rate, weight_decay=0.01)
            best, best_state, bad = -1.0, None, 0
            cases = sequences.cases(VALID, max_per_user=1, max_users=4000, seed=0)
            with Progress("SASRec", self.max_epochs, unit="epochs", quiet=self.quiet) as progress:
                for _ in range(self.max_epochs):
                    self.net.train()
                    for part in self._batches(end - begin, rng):
                        loss = self._loss(item, begin[part], end[part])
                        optimizer.zero_grad()
                        torch.autograd.backward(loss)
                        optimizer.step()
                    score = self._validate(sequences, cases)
                    progress.advance(note=f"validation N@10 {score:.4f}")
                    if score > best:
                        best, bad = score, 0
                        best_state = {name: value.clone() for name, value in self.net.state_dict().items()}
                    else:
                        bad += 1
                        if bad >= self.patience:
                            break
            if best_state is not None:
                self.net.load_state_dict(best_state)
        self.net.eval()

    def _batches(self, length: NDArray[np.int64], rng: np.random.Generator) -> list[NDArray[np.int64]]:
        order = np.argsort(length * rng.uniform(0.85, 1.15, len(length)), kind="stable")
        out, begin = [], 0
        while begin < len(order):
            size = max(1, self.batch_tokens // int(length[order[min(begin + 63, len(order) - 1)]]))
            out.append(order[begin : begin + size])
            begin += size
        rng.shuffle(out)
        return out

    def _loss(self, item: Tensor, begin: NDArray[np.int64], end: NDArray[np.int64]) -> Tensor:
        vectors = self.net.vectors()
        padding = len(vectors) - 1
        width = int((end - begin).max())
        index = torch.from_numpy(end[:, None] - width + np.arange(width))
        real = index >= torch.from_numpy(begin)[:, None]
        sequence = torch.where(real, item[index.clamp_min(0)], padding)
        hidden = self.net(sequence[:, :-1], vectors)
        trained = real[:, :-1]
        logits = hidden[trained] @ vectors[:-1].T
        return F.cross_entropy(logits, sequence[:, 1:][trained])

    def _validate(self, sequences: Sequences, cases: Cases) -> float:
        if not len(cases):
            return 0.0
        lists = self.rank(sequences, cases, 10, mask_seen=True)
        return float(gains(target_rank(lists, cases.target), 10, "ndcg").mean())

    @torch.no_grad()
    def scores(self, sequences: Sequences, cases: Cases, part: slice) -> FloatArray:
        self.net.eval()
        vectors = self.net.vectors()
        stop = torch.from_numpy(cases.row[part])
        start = torch.from_numpy(sequences.offsets)[torch.from_numpy(cases.user[part]).long()]
        width = max(1, min(self.length, int((stop - start).max())))
        index = stop[:, None] - width + torch.arange(width)
        item = torch.from_numpy(sequences.item.astype(np.int64))
        sequence = torch.where(index >= start[:, None], item[index.clamp_min(0)], len(vectors) - 1)
        hidden = self.net(sequence, vectors)[:, -1]
        out: FloatArray = (hidden @ vectors[:-1].T).numpy()
        return out
