"""The strong plain baseline: SASRec with a softmax loss, item vectors of ID and (optionally) projected text.

Causal transformer blocks over the history, every position trained, the next item scored by the dot product with all item
vectors (Kang & McAuley 2018). What makes it strong is the loss: a softmax over the catalogue instead of one sampled
negative per positive (Klenitskiy & Vasilev 2023; Petrov & Macdonald 2023). Catalogues above `full_softmax_limit` train
with a softmax over the target and a fresh uniform sample of items a step, which ranks as well and costs a fraction.
Training stops on the validation NDCG@10; nothing sees the test part.

Shapes: B sequences, T places, D width, I items, N items scored in a step, M trained places.
"""

from __future__ import annotations

from itertools import chain
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from rankloom.data.sequences import TRAIN, VALID, Cases, Sequences
from rankloom.evaluation.metrics import gains, target_rank
from rankloom.evaluation.systems import FloatArray, ScoringSystem, people_come_back, training_counts
from rankloom.progress import Progress

_TEXT_DIM: Final = 128
_ROUND_STEPS: Final = 40


class _Block(nn.Module):
    """Pre-norm causal self-attention and feed-forward, one head."""

    def __init__(self, dim: int, dropout: float) -> None:
        super().__init__()
        self.attention_norm, self.ffn_norm = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.qkv, self.out = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.up, self.down = nn.Linear(dim, dim), nn.Linear(dim, dim)
        self.dropout = nn.Dropout(dropout)

    def forward(self, h_BTD: Tensor) -> Tensor:
        q, k, v = self.qkv(self.attention_norm(h_BTD)).chunk(3, dim=-1)
        rate = self.dropout.p if self.training else 0.0
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True, dropout_p=rate)
        h_BTD = h_BTD + self.dropout(self.out(mixed))
        inner = self.dropout(F.gelu(self.up(self.ffn_norm(h_BTD))))
        out_BTD: Tensor = h_BTD + self.dropout(self.down(inner))
        return out_BTD


class _Net(nn.Module):
    content: Tensor | None

    def __init__(
        self, n_items: int, content: FloatArray | None, *, dim: int, blocks: int, dropout: float, length: int
    ) -> None:
        super().__init__()
        self.ids = nn.Embedding(n_items, dim)
        self.place = nn.Embedding(length, dim)
        nn.init.normal_(self.ids.weight, std=0.02)
        nn.init.normal_(self.place.weight, std=0.02)
        self.register_buffer("content", None if content is None else torch.from_numpy(content), persistent=False)
        self.project = None if content is None else nn.Linear(content.shape[1], dim, bias=False)
        self.blocks = nn.ModuleList(_Block(dim, dropout) for _ in range(blocks))
        self.norm = nn.LayerNorm(dim)
        self.dropout = nn.Dropout(dropout)

    def vectors(self, item: Tensor | None = None) -> Tensor:
        """(N, D) vectors of some items, or of all."""
        table = self.ids.weight if item is None else self.ids(item)
        if self.content is None or self.project is None:
            return table
        out: Tensor = table + self.project(self.content if item is None else self.content[item])
        return out

    def forward(self, vector_BTD: Tensor, length_B: Tensor) -> Tensor:
        """(B, T, D) hidden states of right-padded sequences: no real place ever sees padding."""
        places = vector_BTD.shape[1]
        # counted from the end, so that the newest item always has the same place
        back = (length_B[:, None] - 1 - torch.arange(places)).clamp(0, self.place.num_embeddings - 1)
        h_BTD = self.dropout(vector_BTD + self.place(back))
        for block in self.blocks:
            h_BTD = block(h_BTD)
        out_BTD: Tensor = self.norm(h_BTD)
        return out_BTD


class SASRec(ScoringSystem):
    """See the module's docstring.

    Args:
        use_text: add projected content vectors to the item vectors (the variant `id+text`).
        max_rounds: validations at most; a round is an epoch, or several where an epoch is only a few steps.
        batch_tokens: places a step; a small log is cut into at least some twenty steps an epoch.
        n_negatives: items of a sampled softmax.
        patience: rounds without a better validation figure before stopping.
    """

    name = "sasrec"

    def __init__(
        self, *, use_text: bool = True, dim: int = 64, blocks: int = 2, dropout: float = 0.5, length: int = 50,
        max_rounds: int = 80, patience: int = 5, learning_rate: float = 2e-3, batch_tokens: int = 2048,
        full_softmax_limit: int = 4096, n_negatives: int = 2048, quiet: bool = False,
    ) -> None:  # fmt: skip
        self.variant = "id+text" if use_text else "id"
        self.use_text = use_text
        self.dim, self.blocks, self.dropout, self.length = dim, blocks, dropout, length
        self.max_rounds, self.patience = max_rounds, patience
        self.learning_rate, self.batch_tokens, self.quiet = learning_rate, batch_tokens, quiet
        self.full_softmax_limit, self.n_negatives = full_softmax_limit, n_negatives

    def fit(self, sequences: Sequences, content: FloatArray | None, seed: int) -> None:
        begin, end = self._windows(sequences)
        self._counts = training_counts(sequences).astype(np.float32)
        self._repeats = people_come_back(sequences, share=0.05)
        item = torch.from_numpy(sequences.item[(sequences.stage == TRAIN) & sequences.target].astype(np.int64))
        rng = np.random.default_rng(seed)
        text = _reduced(content, seed) if self.use_text and content is not None else None
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.net = _Net(
                sequences.n_items, text, dim=self.dim, blocks=self.blocks, dropout=self.dropout, length=self.length
            )
            optimizer = torch.optim.AdamW(self.net.parameters(), lr=self.learning_rate, weight_decay=0.01)
            best, best_state, bad = -1.0, None, 0
            cases = sequences.cases(VALID, max_per_user=1, max_users=4000, seed=0)
            epochs = -(-_ROUND_STEPS // max(1, len(self._batches(end - begin, np.random.default_rng(seed)))))
            with Progress(f"SASRec ({self.variant})", self.max_rounds, unit="rounds", quiet=self.quiet) as progress:
                for _ in range(self.max_rounds):
                    self.net.train()
                    for part in chain.from_iterable(self._batches(end - begin, rng) for _ in range(epochs)):
                        loss = self._loss(item, torch.from_numpy(begin[part]), torch.from_numpy(end[part]))
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
        self._vectors: Tensor | None = None

    def _windows(self, sequences: Sequences) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Ranges of training targets, counted among the training targets: each person's, cut into pieces that fit."""
        owner = sequences.user[(sequences.stage == TRAIN) & sequences.target]
        opens = np.flatnonzero(np.r_[True, owner[1:] != owner[:-1]]) if len(owner) else np.zeros(0, dtype=np.int64)
        ends = np.r_[opens[1:], len(owner)].astype(np.int64)[: len(opens)]
        # the first item of a piece is only an input, so pieces overlap by one
        pieces = np.maximum(1, -(-(ends - opens - 1) // self.length))
        which = np.repeat(np.arange(len(opens)), pieces)
        back = np.arange(len(which)) - np.repeat(np.cumsum(pieces) - pieces, pieces)
        stop = ends[which] - back * self.length
        start = np.maximum(opens[which], stop - self.length - 1)
        trainable = stop - start >= 2
        return start[trainable], stop[trainable]

    def _batches(self, length: NDArray[np.int64], rng: np.random.Generator) -> list[NDArray[np.int64]]:
        tokens = min(self.batch_tokens, max(128, int(length.sum()) // 20))
        order = np.argsort(length * rng.uniform(0.85, 1.15, len(length)), kind="stable")
        out, begin = [], 0
        while begin < len(order):
            size = max(1, tokens // int(length[order[min(begin + 63, len(order) - 1)]]))
            out.append(order[begin : begin + size])
            begin += size
        rng.shuffle(out)
        return out

    def _loss(self, item: Tensor, begin_B: Tensor, end_B: Tensor) -> Tensor:
        length_B = end_B - begin_B - 1
        places = int(length_B.max())
        index = begin_B[:, None] + torch.arange(places + 1)
        sequence = item[index.clamp_max(len(item) - 1)]
        real = torch.arange(places) < length_B[:, None]
        hidden_BTD = self.net(self.net.vectors(sequence[:, :-1]), length_B)
        hidden_MD, target_M = hidden_BTD[real], sequence[:, 1:][real]
        n_items = self.net.ids.num_embeddings
        if n_items <= self.full_softmax_limit:
            return F.cross_entropy(hidden_MD @ self.net.vectors().T, target_M)
        sampled_N = torch.randint(n_items, (self.n_negatives,))
        logits = hidden_MD @ self.net.vectors(sampled_N).T
        # uniform sampling has the same correction for every negative: each stands for I / N items
        logits = logits + float(np.log(n_items / self.n_negatives))
        logits = logits.masked_fill(sampled_N[None] == target_M[:, None], float("-inf"))
        positive = (hidden_MD * self.net.vectors(target_M)).sum(-1)
        loss: Tensor = (torch.logaddexp(torch.logsumexp(logits, dim=1), positive) - positive).mean()
        return loss

    def _validate(self, sequences: Sequences, cases: Cases) -> float:
        if not len(cases):
            return 0.0
        self._vectors = None
        lists = self.rank(sequences, cases, 10, mask_seen=not self._repeats)
        return float(gains(target_rank(lists, cases.target), 10, "ndcg").mean())

    @torch.no_grad()
    def scores(self, sequences: Sequences, cases: Cases, part: slice) -> FloatArray:
        self.net.eval()
        if self._vectors is None:
            self._vectors = self.net.vectors().contiguous()
        stop = cases.row[part]
        start = np.maximum(sequences.offsets[cases.user[part]], stop - self.length)
        length = stop - start
        places = max(1, int(length.max()))
        index = np.minimum(start[:, None] + np.arange(places), max(0, sequences.n_interactions - 1))
        sequence = torch.from_numpy(sequences.item[index].astype(np.int64))
        hidden_BTD = self.net(self._vectors[sequence], torch.from_numpy(length))
        newest = torch.from_numpy(np.maximum(length - 1, 0))
        hidden_BD = hidden_BTD[torch.arange(len(newest)), newest]
        out: FloatArray = (hidden_BD @ self._vectors.T).numpy()
        # without a history there is nothing to attend to
        out[length == 0] = self._counts
        return out


def _reduced(content: FloatArray, seed: int) -> FloatArray:
    """(I, at most 128) principal components of the content vectors, scaled to a mean norm of one: wide text vectors would
    cost more than the model."""
    from sklearn.decomposition import PCA

    width = min(_TEXT_DIM, *content.shape)
    if content.shape[1] > width:
        content = PCA(width, svd_solver="randomized", random_state=seed).fit_transform(content)
    scale = float(np.linalg.norm(content, axis=1).mean()) or 1.0
    return np.ascontiguousarray(content / scale, dtype=np.float32)
