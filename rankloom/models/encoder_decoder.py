"""The encoder-decoder of OneSearch: text and IDs are read, IDs (and, while it learns, words) are written.

Notable features:
* one vocabulary of special tokens, words and the codes of every level; input and output share its vectors (BART);
* the prompt comes as parts of places, and a place is a bag of tokens whose vectors are summed: a history item at one place
  is the sum of its codes, a query at one place the mean of its words. One token a place is the paper's layout. Compressed
  to one place an item it trains three to five times as fast on a processor, which is the default layout for that reason;
* soft tokens of the long history by the Q-Former (qformer.py) stand beside those places;
* the context is encoded once per request; the decoder reads its ready keys and values, for any number of targets at once;
* it fits `decoding.protocol.Generator`, so constrained beam search decodes it as it decodes the lazy decoder.

Departures from BART, all of them habits of this package: norms before the sub-layers and RMS, SwiGLU, no biases, small.
The published backbone is BART-base with 768 wide, 6 + 6 layers; the sizes are settings.

Shapes: B requests, P places of a prompt, N tokens of a place, T targets of a request, L tokens of a target, D width, H heads,
W beams, V vocabulary, K codes of a level.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from rankloom.config import Section
from rankloom.models.layers import GatedFFN, RMSNorm, SuffixSelfAttention
from rankloom.models.qformer import BEHAVIOURS, Attention, CentroidSums, QFormer, Scale

PAD: Final = 0
BOS: Final = 1
EOS: Final = 2
Output = Literal["vocabulary", "codebook", "trie"]


class EncoderDecoderConfig(Section):
    """Sizes of the network."""

    d_model: int = Field(default=64, ge=8)
    n_heads: int = Field(default=4, ge=1)
    encoder_layers: int = Field(default=1, ge=1)
    decoder_layers: int = Field(default=2, ge=1)
    ffn_mult: float = Field(default=2.0, gt=0)
    dropout: float = Field(default=0.1, ge=0, lt=1)
    n_soft: int = Field(default=3, ge=1)
    """Soft tokens of the long history; the released templates name three."""
    long_scale: Scale = "sqrt"
    """What a per-level sum over n items is divided by; the paper's is `sum`."""
    output: Output = "vocabulary"
    """What a code's probability is normalised over: every token (the paper), the codes of its level, or, where an item is
    foretold, those that the trie allows (onesearch/scoring.py; its caller's affair)."""
    max_target: int = Field(default=16, ge=2)
    max_places: int = Field(default=64, ge=1)
    """Places of one part of a prompt, at most."""

    @model_validator(mode="after")
    def _check(self) -> EncoderDecoderConfig:
        if self.d_model % self.n_heads:
            raise ValueError(f"d_model {self.d_model} is not a multiple of n_heads {self.n_heads}")
        return self


@dataclass
class Part:
    """Some neighbouring places of a prompt.

    Attributes:
        kind: which part this is (an embedding row).
        token_BPN: tokens of every place, PAD where fewer; a place of nothing but PAD is not read.
        mean: the places' vectors are means and not sums.
    """

    kind: int
    token_BPN: Tensor
    mean: bool = False


@dataclass
class LongHistory:
    """Items of the long history by behaviour: (B, S, H, R) residual codes, and which of them exist."""

    code_BSHR: Tensor
    real_BSH: Tensor


@dataclass
class Prompt:
    """What is read: parts in order, and the long history where it is given. Made by `onesearch.prompts`."""

    parts: list[Part]
    long: LongHistory | None = None

    @property
    def batch_size(self) -> int:
        return self.parts[0].token_BPN.shape[0]


@dataclass
class Memory:
    """An encoded prompt: per decoder layer (B, H, P, E) keys and values, and which places are read."""

    layers: list[tuple[Tensor, Tensor]]
    visible_BP: Tensor


class EncoderLayer(nn.Module):
    """Self-attention over the prompt, FFN."""

    def __init__(self, config: EncoderDecoderConfig) -> None:
        super().__init__()
        dim = config.d_model
        self.norm, self.ffn_norm = RMSNorm(dim), RMSNorm(dim)
        self.attention = Attention(dim, config.n_heads)
        self.ffn = GatedFFN(dim, round(config.ffn_mult * dim))
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x_BPD: Tensor, visible_BP: Tensor) -> Tensor:
        normed = self.norm(x_BPD)
        x_BPD = x_BPD + self.dropout(self.attention(normed, normed, visible_BP))
        return x_BPD + self.dropout(self.ffn(self.ffn_norm(x_BPD)))  # type: ignore[no-any-return]


class DecoderLayer(nn.Module):
    """Causal self-attention over the target, cross-attention over the memory, FFN."""

    def __init__(self, config: EncoderDecoderConfig) -> None:
        super().__init__()
        dim = config.d_model
        self.self_norm, self.cross_norm, self.ffn_norm = RMSNorm(dim), RMSNorm(dim), RMSNorm(dim)
        self.own = SuffixSelfAttention(dim, n_heads=config.n_heads)
        self.cross = Attention(dim, config.n_heads)
        self.ffn = GatedFFN(dim, round(config.ffn_mult * dim))
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x_BTLD: Tensor, memory: tuple[Tensor, Tensor], visible_BP: Tensor) -> Tensor:
        batch, targets, length, dim = x_BTLD.shape
        own = self.own(self.self_norm(x_BTLD).view(batch * targets, length, dim)).view_as(x_BTLD)
        return self._rest(x_BTLD + self.dropout(own), memory, visible_BP)

    def step(
        self, x_BWD: Tensor, memory: tuple[Tensor, Tensor], visible_BP: Tensor, past: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """One more code of W beams; `past` as in `SuffixSelfAttention.step`, rows in order of request and beam."""
        batch, beams, dim = x_BWD.shape
        own, kept = self.own.step(self.self_norm(x_BWD).reshape(batch * beams, dim), past)
        x_BWD = x_BWD + own.view(batch, beams, dim)
        return self._rest(x_BWD[:, :, None], memory, visible_BP)[:, :, 0], kept

    def _rest(self, x_BTLD: Tensor, memory: tuple[Tensor, Tensor], visible_BP: Tensor) -> Tensor:
        batch, targets, length, dim = x_BTLD.shape
        flat = self.cross_norm(x_BTLD).view(batch, targets * length, dim)
        x_BTLD = x_BTLD + self.dropout(self.cross.read(flat, *memory, visible_BP).view_as(x_BTLD))
        return x_BTLD + self.dropout(self.ffn(self.ffn_norm(x_BTLD)))  # type: ignore[no-any-return]


class EncoderDecoder(nn.Module):
    """See the module's docstring.

    Args:
        n_tokens: size of the vocabulary V.
        code_start: the first token of level 0; the levels follow each other.
        codebook_sizes: codes of each level of an ID.
        n_kinds: kinds of prompt parts.
        centroids: per residual level (K, A), for the long history; without them there is no Q-Former.
    """

    def __init__(
        self, config: EncoderDecoderConfig, *, n_tokens: int, code_start: int, codebook_sizes: Sequence[int], n_kinds: int,
        centroids: Sequence[Tensor] | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        self.config = config
        self.codebook_sizes = tuple(int(size) for size in codebook_sizes)
        ends = torch.tensor([0, *self.codebook_sizes]).cumsum(0) + code_start
        self.ranges = [(int(low), int(high)) for low, high in pairwise(ends)]
        dim = config.d_model
        self.token = nn.Embedding(n_tokens, dim, padding_idx=PAD)
        nn.init.normal_(self.token.weight, std=dim**-0.5)
        with torch.no_grad():
            self.token.weight[PAD] = 0
        self.kind = nn.Embedding(n_kinds + 1, dim)
        self.place = nn.Embedding(config.max_places, dim)
        self.step_place = nn.Embedding(config.max_target, dim)
        for own in (self.kind, self.place, self.step_place):
            nn.init.normal_(own.weight, std=0.02)
        self.encoder = nn.ModuleList(EncoderLayer(config) for _ in range(config.encoder_layers))
        self.encoder_norm = RMSNorm(dim)
        self.decoder = nn.ModuleList(DecoderLayer(config) for _ in range(config.decoder_layers))
        self.decoder_norm = RMSNorm(dim)
        self.dropout = nn.Dropout(config.dropout)
        self.sums: CentroidSums | None = None
        self.qformer: QFormer | None = None
        if centroids is not None:
            self.sums = CentroidSums(centroids, dim, scale=config.long_scale)
            self.qformer = QFormer(
                dim, n_soft=config.n_soft, n_heads=config.n_heads, n_behaviours=len(BEHAVIOURS), n_levels=len(centroids)
            )

    @torch.no_grad()
    def start_tokens(self, first: int, vector_ND: Tensor) -> None:
        """Starts tokens `first`, `first + 1`, .. from given vectors of any scale; rows of zeros keep their random start."""
        norm = vector_ND.norm(dim=1)
        known = norm > 1e-6
        scaled = vector_ND[known] / norm[known].mean()
        place = torch.nonzero(known)[:, 0] + first
        self.token.weight[place] = scaled.to(self.token.weight.dtype)

    # -- reading

    def embed(self, prompt: Prompt) -> tuple[Tensor, Tensor]:
        """(B, P, D) vectors of the places, and (B, P) which of them are read."""
        vectors, visible = [], []
        for part in prompt.parts:
            batch, places, width = part.token_BPN.shape
            flat = part.token_BPN.reshape(batch * places, width)
            real = flat != PAD
            own = F.embedding_bag(
                flat, self.token.weight, mode="mean" if part.mean else "sum", padding_idx=PAD
            ).view(batch, places, -1)
            vectors.append(own + self.kind.weight[part.kind] + self.place.weight[:places])
            visible.append(real.any(1).view(batch, places))
        if prompt.long is not None and self.qformer is not None and self.sums is not None:
            real_BSH = prompt.long.real_BSH
            soft = self.qformer(self.sums(prompt.long.code_BSHR, real_BSH), real_BSH.any(-1))
            vectors.append(soft + self.kind.weight[-1])
            visible.append(torch.ones(soft.shape[:2], dtype=torch.bool))
        return torch.cat(vectors, 1), torch.cat(visible, 1)

    def encode(self, prompt: Prompt) -> Memory:
        """Reads a batch of prompts."""
        x_BPD, visible_BP = self.embed(prompt)
        x_BPD = self.dropout(x_BPD)
        for layer in self.encoder:
            x_BPD = layer(x_BPD, visible_BP)
        x_BPD = self.encoder_norm(x_BPD)
        return Memory([layer.cross.keys(x_BPD) for layer in self.decoder], visible_BP)  # type: ignore[union-attr, operator]

    # -- writing

    def hidden(self, memory: Memory, token_BTL: Tensor) -> Tensor:
        """(B, T, L, D) states of which the l-th foretells token l of each target, teacher forced."""
        begin = torch.full_like(token_BTL[..., :1], BOS)
        read = torch.cat([begin, token_BTL[..., :-1]], -1)
        x_BTLD = self.dropout(self.token(read) + self.step_place.weight[: read.shape[-1]])
        for layer, own in zip(self.decoder, memory.layers, strict=True):
            x_BTLD = layer(x_BTLD, own, memory.visible_BP)
        return self.decoder_norm(x_BTLD)  # type: ignore[no-any-return]

    def text_loss(self, memory: Memory, token_BL: Tensor) -> Tensor:
        """Mean cross-entropy of words (and EOS), PAD left out, over the whole vocabulary."""
        hidden = self.hidden(memory, token_BL[:, None])[:, 0]
        real = token_BL != PAD
        return F.cross_entropy(hidden[real] @ self.token.weight.T, token_BL[real])

    def code_loss(self, memory: Memory, code_BL: Tensor, *, smoothing: float = 0.0) -> Tensor:
        """Mean over B targets and levels of the cross-entropy of their codes."""
        token_BL = self.tokens(code_BL)
        hidden = self.hidden(memory, token_BL[:, None])[:, 0]
        if self.config.output == "vocabulary":
            logits = hidden.flatten(0, 1) @ self.token.weight.T
            return F.cross_entropy(logits, token_BL.flatten(), label_smoothing=smoothing)
        losses = [
            F.cross_entropy(hidden[:, level] @ self.token.weight[low:high].T, code_BL[:, level], label_smoothing=smoothing)
            for level, (low, high) in enumerate(self.ranges)
        ]
        return torch.stack(losses).mean()

    def log_probs(self, memory: Memory, code_BTL: Tensor) -> Tensor:
        """(B, T) log-probabilities of T given IDs per request, each code among the codes of its level."""
        hidden = self.hidden(memory, self.tokens(code_BTL))
        total = hidden.new_zeros(code_BTL.shape[:2])
        for level, (low, high) in enumerate(self.ranges):
            own = torch.log_softmax(hidden[:, :, level] @ self.token.weight[low:high].T, -1)
            total = total + own.gather(-1, code_BTL[..., level : level + 1])[..., 0]
        return total

    def tokens(self, code: Tensor) -> Tensor:
        """(.., L) codes as tokens of the vocabulary."""
        return code + torch.tensor([low for low, _ in self.ranges], dtype=torch.long)

    # -- decoding, as `decoding.protocol.Generator` asks

    def next_hidden(
        self, prefix: Memory, place: int, token_BW: Tensor | None, cache: list[Tensor] | None
    ) -> tuple[Tensor, list[Tensor]]:
        """(B, W, D) states that foretell the token at `place`, after the token before it; and the longer cache."""
        batch = prefix.visible_BP.shape[0]
        token = torch.full((batch, 1), BOS) if token_BW is None else token_BW
        x_BWD = self.token(token) + self.step_place.weight[place]
        kept = []
        for number, (layer, own) in enumerate(zip(self.decoder, prefix.layers, strict=True)):
            x_BWD, past = layer.step(x_BWD, own, prefix.visible_BP, None if cache is None else cache[number])  # type: ignore[operator]
            kept.append(past)
        return self.decoder_norm(x_BWD), kept

    def step(
        self, prefix: Memory, level: int, codes_BW: Tensor | None, cache: list[Tensor] | None
    ) -> tuple[Tensor, list[Tensor]]:
        """(B, W, K) logits of the codes of a level."""
        token = None if codes_BW is None else codes_BW + self.ranges[level - 1][0]
        hidden, kept = self.next_hidden(prefix, level, token, cache)
        low, high = self.ranges[level]
        return hidden @ self.token.weight[low:high].T, kept

    def reorder(self, cache: list[Tensor], parent_BW: Tensor) -> list[Tensor]:
        """The cache whose beam w continues the old beam `parent_BW[b, w]`."""
        batch = parent_BW.shape[0]
        old = cache[0].shape[0] // batch
        row = (parent_BW + torch.arange(batch)[:, None] * old).flatten()
        return [own.index_select(0, row) for own in cache]

    def score(self, prefix: Memory, codes_NL: Tensor) -> Tensor:
        """(B, N) log-probabilities of the same N IDs for every request."""
        batch = prefix.visible_BP.shape[0]
        return self.log_probs(prefix, codes_NL.expand(batch, -1, -1))
