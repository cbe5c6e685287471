"""The encoder-decoder that generative recommendation began with, as a baseline on the same semantic IDs.

TIGER (Rajput et al. 2023): a history of at most 20 items is written out code by code behind a hashed user token, read by a
T5 encoder, and a T5 decoder writes the codes of the next item (4 layers each, d 128, 6 heads of 64, feed-forward 1,024, ReLU,
dropout .1, relative positions in 32 buckets, cross-entropy of every code). Every training interaction with a history is one
sample, as in the paper's sliding window. Two things differ, both in its favour or none: the IDs are the tokenizer's of the
model it is compared with (items of one ID share its probability by their counts), and beams are searched in the trie, so none
is lost to IDs that do not exist. The paper trains 200,000 steps of 256 (some 390 passes over Amazon Beauty); here training
stops on validation, after `max_epochs` passes, or after `max_steps` steps.

Shapes: B sequences, S encoder places, L codes of an ID, W beams, D width, H heads, E width of a head, K codes of a level.
"""

from __future__ import annotations

import math
import zlib
from dataclasses import dataclass
from typing import Any, Final, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from rankloom.data.sequences import TRAIN, VALID, Cases, Sequences
from rankloom.decoding.beam import beam_search
from rankloom.decoding.masks import MaskIndex
from rankloom.decoding.select import expand, leaf_log_share, top_k
from rankloom.evaluation.metrics import gains, target_rank
from rankloom.evaluation.systems import FloatArray, IntArray, people_come_back, seen_pairs, training_counts
from rankloom.progress import Progress, track
from rankloom.semantic.ids import SemanticIds
from rankloom.semantic.trie import Trie

USER_TOKENS: Final = 2000
HISTORY: Final = 20
BUCKETS: Final = 32
FARTHEST: Final = 128
_PAD: Final = 0
_START: Final = 1
_FIRST: Final = 2
_T = TypeVar("_T")


def relative_bucket(distance: Tensor, *, both_ways: bool) -> Tensor:
    """T5's buckets of key place minus query place: exact when near, logarithmic up to `FARTHEST`."""
    n = BUCKETS
    out = torch.zeros_like(distance)
    if both_ways:
        n //= 2
        out = out + (distance > 0) * n
        distance = distance.abs()
    else:
        distance = (-distance).clamp_min(0)
    exact = n // 2
    far = exact + (torch.log(distance.clamp_min(1) / exact) / math.log(FARTHEST / exact) * (n - exact)).long()
    return out + torch.where(distance < exact, distance, far.clamp_max(n - 1))


class _Attention(nn.Module):
    """T5 attention: no scaling, no bias terms."""

    def __init__(self, dim: int, heads: int, width: int) -> None:
        super().__init__()
        self.heads, self.width = heads, width
        self.q, self.k, self.v = (nn.Linear(dim, heads * width, bias=False) for _ in range(3))
        self.out = nn.Linear(heads * width, dim, bias=False)
        nn.init.normal_(self.q.weight, std=(dim * width) ** -0.5)
        for linear in (self.k, self.v):
            nn.init.normal_(linear.weight, std=dim**-0.5)
        nn.init.normal_(self.out.weight, std=(heads * width) ** -0.5)

    def split(self, x: Tensor) -> Tensor:
        """(B, T, H E) to (B, H, T, E)."""
        return x.view(*x.shape[:-1], self.heads, self.width).transpose(1, 2)

    def mix(self, q_BHTE: Tensor, k_BHSE: Tensor, v_BHSE: Tensor, bias: Tensor | None, dropout: float) -> Tensor:
        mixed = F.scaled_dot_product_attention(q_BHTE, k_BHSE, v_BHSE, attn_mask=bias, dropout_p=dropout, scale=1.0)
        out: Tensor = self.out(mixed.transpose(1, 2).flatten(2))
        return out


class _Layer(nn.Module):
    """Pre-norm self-attention and feed-forward."""

    def __init__(self, dim: int, heads: int, width: int, ffn: int, dropout: float) -> None:
        super().__init__()
        self.norm, self.ffn_norm = nn.RMSNorm(dim, eps=1e-6), nn.RMSNorm(dim, eps=1e-6)
        self.attend = _Attention(dim, heads, width)
        self.up, self.down = nn.Linear(dim, ffn, bias=False), nn.Linear(ffn, dim, bias=False)
        nn.init.normal_(self.up.weight, std=dim**-0.5)
        nn.init.normal_(self.down.weight, std=ffn**-0.5)
        self.dropout = nn.Dropout(dropout)

    def feed_forward(self, h: Tensor) -> Tensor:
        out: Tensor = h + self.dropout(self.down(self.dropout(F.relu(self.up(self.ffn_norm(h))))))
        return out


class _DecoderLayer(_Layer):
    """The same with cross-attention between the two."""

    def __init__(self, dim: int, heads: int, width: int, ffn: int, dropout: float) -> None:
        super().__init__(dim, heads, width, ffn, dropout)
        self.cross_norm, self.cross = nn.RMSNorm(dim, eps=1e-6), _Attention(dim, heads, width)

    def read(self, h: Tensor, keys: tuple[Tensor, Tensor], bias: Tensor, rate: float) -> Tensor:
        """(B, W, D) of W queries a sequence."""
        q = self.cross.split(self.cross.q(self.cross_norm(h)))
        out: Tensor = h + self.dropout(self.cross.mix(q, *keys, bias, rate))
        return out


@dataclass
class _Prefix:
    """Per decoder layer the keys and values of the encoded histories (B, H, S, E), and what is padding (B, 1, 1, S)."""

    keys: list[tuple[Tensor, Tensor]]
    bias: Tensor


class TigerNet(nn.Module):
    """The network behind the decoding protocol: `encode` is its prefill."""

    def __init__(
        self, codebook_sizes: tuple[int, ...], *, dim: int = 128, layers: int = 4, heads: int = 6, width: int = 64,
        ffn: int = 1024, dropout: float = 0.1,
    ) -> None:  # fmt: skip
        super().__init__()
        self.codebook_sizes = codebook_sizes
        self.offset = [_FIRST + sum(codebook_sizes[:level]) for level in range(len(codebook_sizes))]
        self.first_user = _FIRST + sum(codebook_sizes)
        self.tokens = nn.Embedding(self.first_user + USER_TOKENS, dim)
        nn.init.normal_(self.tokens.weight, std=1.0)
        self.encoder = nn.ModuleList(_Layer(dim, heads, width, ffn, dropout) for _ in range(layers))
        self.decoder = nn.ModuleList(_DecoderLayer(dim, heads, width, ffn, dropout) for _ in range(layers))
        self.encoder_bias, self.decoder_bias = nn.Embedding(BUCKETS, heads), nn.Embedding(BUCKETS, heads)
        self.encoder_norm, self.decoder_norm = nn.RMSNorm(dim, eps=1e-6), nn.RMSNorm(dim, eps=1e-6)
        self.dropout = nn.Dropout(dropout)

    def encode(self, token_BS: Tensor) -> _Prefix:
        """Reads histories of tokens; 0 is padding."""
        places = torch.arange(token_BS.shape[1])
        relative = self.encoder_bias(relative_bucket(places[None] - places[:, None], both_ways=True)).permute(2, 0, 1)
        padding = torch.zeros(token_BS.shape).masked_fill(token_BS == _PAD, float("-inf"))[:, None, None]
        h = self.dropout(self.tokens(token_BS))
        for layer in self._layers(self.encoder, _Layer):
            x = layer.norm(h)
            q, k, v = (layer.attend.split(part(x)) for part in (layer.attend.q, layer.attend.k, layer.attend.v))
            h = h + layer.dropout(layer.attend.mix(q, k, v, relative[None] + padding, self._rate))
            h = layer.feed_forward(h)
        memory = self.dropout(self.encoder_norm(h))
        cross = [layer.cross for layer in self._layers(self.decoder, _DecoderLayer)]
        keys = [(own.split(own.k(memory)), own.split(own.v(memory))) for own in cross]
        return _Prefix(keys, padding)

    def logits(self, prefix: _Prefix, codes_BL: Tensor) -> list[Tensor]:
        """(B, K) logits of every level, teacher forced with one ID a history."""
        start = torch.full((len(codes_BL), 1), _START)
        given = [codes_BL[:, level] + self.offset[level] for level in range(codes_BL.shape[1] - 1)]
        h = self.dropout(self.tokens(torch.cat([start, *(own[:, None] for own in given)], dim=1)))
        places = torch.arange(h.shape[1])
        relative = self.decoder_bias(relative_bucket(places[None] - places[:, None], both_ways=False)).permute(2, 0, 1)
        causal = relative.masked_fill(places[None] > places[:, None], float("-inf"))[None]
        for layer, keys in zip(self._layers(self.decoder, _DecoderLayer), prefix.keys, strict=True):
            x = layer.norm(h)
            own = [layer.attend.split(part(x)) for part in (layer.attend.q, layer.attend.k, layer.attend.v)]
            h = h + layer.dropout(layer.attend.mix(own[0], own[1], own[2], causal, self._rate))
            h = layer.feed_forward(layer.read(h, keys, prefix.bias, self._rate))
        return [self._head(h[:, level], level) for level in range(codes_BL.shape[1])]

    # -- the decoding protocol -------------------------------------------------------------------------------------

    def step(self, prefix: _Prefix, level: int, codes_BW: Tensor | None, cache: Any) -> tuple[Tensor, Any]:
        """See `decoding.protocol`; the cache is one (K, V) of (B, W, H, T, E) a layer."""
        batch = prefix.bias.shape[0]
        token = torch.full((batch, 1), _START) if codes_BW is None else codes_BW + self.offset[level - 1]
        h = self.tokens(token)
        away = relative_bucket(torch.arange(level + 1) - level, both_ways=False)
        relative = self.decoder_bias(away).T[None, None, :, None]
        fresh = []
        layers = self._layers(self.decoder, _DecoderLayer)
        for number, (layer, keys) in enumerate(zip(layers, prefix.keys, strict=True)):
            x = layer.norm(h)
            # each beam attends to its own codes alone: (B, W, H, 1, E)
            q, own_k, own_v = (
                part(x).view(*x.shape[:2], layer.attend.heads, layer.attend.width)[:, :, :, None]
                for part in (layer.attend.q, layer.attend.k, layer.attend.v)
            )
            if cache is not None:
                own_k, own_v = torch.cat([cache[number][0], own_k], 3), torch.cat([cache[number][1], own_v], 3)
            fresh.append((own_k, own_v))
            mixed = F.scaled_dot_product_attention(q, own_k, own_v, attn_mask=relative, scale=1.0)
            h = h + layer.attend.out(mixed[:, :, :, 0].flatten(2))
            h = layer.feed_forward(layer.read(h, keys, prefix.bias, 0.0))
        return self._head(h, level), fresh

    def reorder(self, cache: Any, parent_BW: Tensor) -> Any:
        rows = torch.arange(len(parent_BW))[:, None]
        return [(k[rows, parent_BW], v[rows, parent_BW]) for k, v in cache]

    def score(self, prefix: _Prefix, codes_NL: Tensor) -> Tensor:
        """(B, N) log-probabilities of given IDs, without a cache."""
        out = []
        for codes in codes_NL:
            rows = codes[None].expand(prefix.bias.shape[0], -1)
            own = self.logits(prefix, rows)
            out.append(sum(torch.log_softmax(o, -1).gather(1, rows[:, n : n + 1])[:, 0] for n, o in enumerate(own)))
        return torch.stack([torch.as_tensor(one) for one in out], dim=1)

    @staticmethod
    def _layers(layers: nn.ModuleList, kind: type[_T]) -> list[_T]:
        return [layer for layer in layers if isinstance(layer, kind)]

    @property
    def _rate(self) -> float:
        return float(self.dropout.p) if self.training else 0.0

    def _head(self, h: Tensor, level: int) -> Tensor:
        # tied to the embedding and scaled, as T5 does
        x = self.dropout(self.decoder_norm(h)) * self.tokens.embedding_dim**-0.5
        first = self.offset[level]
        out: Tensor = x @ self.tokens.weight[first : first + self.codebook_sizes[level]].T
        return out


class Tiger:
    """See the module's docstring.

    Args:
        ids: semantic IDs in the rows of the log's catalogue.
        beam: IDs carried along, at least the length of the lists asked for.
        max_epochs: passes over the training samples at most; it stops `patience` validations after the best one.
        max_steps: steps at most, whatever the passes.
    """

    name = "tiger"

    def __init__(
        self, ids: SemanticIds, *, beam: int = 64, max_epochs: int = 30, max_steps: int | None = None, patience: int = 4,
        batch: int = 256, learning_rate: float = 1e-3, warmup: int = 200, quiet: bool = False, **sizes: Any,
    ) -> None:  # fmt: skip
        self.ids, self.beam, self.max_epochs, self.max_steps, self.patience = ids, beam, max_epochs, max_steps, patience
        self.batch, self.learning_rate, self.warmup, self.quiet, self.sizes = batch, learning_rate, warmup, quiet, sizes

    def fit(self, sequences: Sequences, content: FloatArray | None, seed: int) -> None:
        counts = training_counts(sequences)
        codes = self.ids.codes.astype(np.int64)
        self.codes = torch.from_numpy(codes)
        self.trie = Trie.build(codes, self.ids.codebook_sizes, counts.astype(np.float32))
        self.index = MaskIndex(self.trie, len(codes))
        self.log_share = leaf_log_share(self.trie, torch.from_numpy(counts))
        self.users = np.array([zlib.crc32(str(own).encode()) % USER_TOKENS for own in sequences.user_ids])
        rows = np.flatnonzero((sequences.stage == TRAIN) & sequences.target)
        rows = rows[rows > sequences.offsets[sequences.user[rows]]]
        cases = sequences.cases(VALID, max_per_user=1, max_users=2000, seed=0)
        repeats = people_come_back(sequences, share=0.05)
        rng = np.random.default_rng(seed)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.net = TigerNet(tuple(self.ids.codebook_sizes), **self.sizes)
            optimiser = torch.optim.AdamW(self.net.parameters(), lr=self.learning_rate, weight_decay=0.01)
            # constant after the warm-up, then by the inverse square root, as the paper's schedule
            hold = 10 * self.warmup
            schedule = torch.optim.lr_scheduler.LambdaLR(
                optimiser, lambda step: min((step + 1) / self.warmup, 1.0, (hold / max(step, 1)) ** 0.5)
            )
            best, best_state, bad = -1.0, None, 0
            left = -(-len(rows) // self.batch) * self.max_epochs
            left = left if self.max_steps is None else min(left, self.max_steps)
            with Progress("TIGER", left, unit="steps", quiet=self.quiet) as progress:
                while left:
                    self.net.train()
                    batches = self._batches(sequences, rows, rng)[:left]
                    left -= len(batches)
                    for part in batches:
                        loss = self._loss(sequences, part)
                        optimiser.zero_grad()
                        torch.autograd.backward(loss)
                        nn.utils.clip_grad_norm_(self.net.parameters(), 1.0)
                        optimiser.step()
                        schedule.step()
                        progress.advance(note=f"loss {float(loss.detach()):.3f}, best validation N@10 {max(best, 0):.4f}")
                    lists = self.rank(sequences, cases, 10, mask_seen=not repeats, quiet=True)
                    score = float(gains(target_rank(lists, cases.target), 10, "ndcg").mean()) if len(cases) else 0.0
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

    def _batches(
        self, sequences: Sequences, rows: NDArray[np.int64], rng: np.random.Generator
    ) -> list[NDArray[np.int64]]:
        length = np.minimum(rows - sequences.offsets[sequences.user[rows]], HISTORY)
        order = np.argsort(length * rng.uniform(0.85, 1.15, len(length)), kind="stable")
        parts = [rows[order[at : at + self.batch]] for at in range(0, len(order), self.batch)]
        return [parts[number] for number in rng.permutation(len(parts))]

    def _loss(self, sequences: Sequences, rows: NDArray[np.int64]) -> Tensor:
        prefix = self.net.encode(self._read(sequences, sequences.user[rows], rows))
        target = self.codes[torch.from_numpy(sequences.item[rows].astype(np.int64))]
        losses = [F.cross_entropy(own, target[:, level]) for level, own in enumerate(self.net.logits(prefix, target))]
        return torch.stack(losses).mean()

    def _read(self, sequences: Sequences, user: NDArray[np.integer[Any]], rows: NDArray[np.int64]) -> Tensor:
        """(B, S) tokens of the user and of the last items before `rows`, oldest first, padded behind."""
        start = np.maximum(sequences.offsets[user], rows - HISTORY)
        length = rows - start
        places = np.arange(max(1, int(length.max(initial=0))))
        index = np.minimum(start[:, None] + places, max(0, sequences.n_interactions - 1))
        code = self.codes[torch.from_numpy(sequences.item[index].astype(np.int64))] + torch.tensor(self.net.offset)
        code = torch.where(torch.from_numpy(places < length[:, None])[:, :, None], code, _PAD)
        own = torch.from_numpy(self.users[user] + self.net.first_user)
        return torch.cat([own[:, None], code.flatten(1)], dim=1)

    @torch.no_grad()
    def rank(
        self, sequences: Sequences, cases: Cases, k: int, *, mask_seen: bool, quiet: bool | None = None
    ) -> IntArray:
        self.net.eval()
        out = np.full((len(cases), k), -1, dtype=np.int32)
        size = 64
        quiet = self.quiet if quiet is None else quiet
        for begin in track(range(0, len(cases), size), self.name, unit="batches", quiet=quiet):
            part = slice(begin, begin + size)
            prefix = self.net.encode(self._read(sequences, cases.user[part], cases.row[part]))
            excluded = None
            batch = len(cases.row[part])
            if mask_seen:
                place, item = seen_pairs(sequences, cases, part)
                excluded = [torch.from_numpy(np.unique(item[place == own]).astype(np.int64)) for own in range(batch)]
            masks = self.index.requests([None] * batch, excluded)
            beams = beam_search(self.net, prefix, self.trie, beam=max(k, self.beam), masks=masks)
            found = expand(
                beams.leaf_BW, beams.log_prob_BW, trie=self.trie,
                log_share=self.log_share, excluded=excluded,
            )  # fmt: skip
            out[part] = top_k(found, found.log_prob_BC, k)[0].numpy()
        return out
