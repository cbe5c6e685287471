"""The lazy decoder as a captured graph runs it: context, BOS and every code as operations of fixed shapes, nothing asked back.

It computes what the plain blocks compute (lazy_decoder.py, the twin), with what does not hold in a captured graph done
otherwise:

* histories are padded to a bucket and the context to a multiple of sixteen elements, which nobody sees;
* keys and values of the codes stay where they were written, once per level; each beam has pointers to its ancestors' rows,
  and a level gathers by them, all layers at once, instead of reordering caches;
* a mixture of experts runs all of them and weighs those that were not chosen with nothing, since choosing rows has no fixed
  shape; it costs as much more as there are experts for each one chosen.

Weights are the model's own in float32; in bfloat16 the blocks and heads are copies, made once. Context, norms inside,
softmax and logits stay float32.

Shapes: B requests, P places of the history, N context elements, W beams, D width, H heads, G K/V groups, E head width,
L layers, S codes so far, X = 2 D, R = B * W.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rankloom.models.context import ContextBatch, visibility
from rankloom.models.folded import unchanged
from rankloom.models.layers import GatedFFN, MixtureOfExperts, RMSNorm

if TYPE_CHECKING:
    from rankloom.models.lazy_decoder import LazyBlock, LazyDecoder

_STEP: Final = 16
"""Attention kernels read a bias whose rows are a multiple of this as it lies; others they copy first."""


@dataclass(frozen=True)
class Question:
    """A batch of requests before anything of it is computed, on any device; see `ContextBatch`."""

    batch: ContextBatch
    surface_B: Tensor


@dataclass
class Suffix:
    """Per level so far the (L, B, W', X) keys and values of its beams' codes, and (B, W) which row of it is each beam's
    ancestor, None for BOS, which has one; the last level's rows are the beams' own and need no pointers."""

    rows: list[Tensor] = field(default_factory=list)
    ancestors: list[Tensor | None] = field(default_factory=list)


@dataclass(frozen=True)
class _FFN:
    gate_up: Tensor
    down: Tensor


@dataclass(frozen=True)
class _Layer:
    """The weights of one block in the precision of the blocks."""

    kv_set: int
    norms: tuple[Tensor, Tensor, Tensor]
    eps: tuple[float, float, float]
    query: Tensor
    out: Tensor
    qkv: Tensor
    mixed: Tensor
    dense: list[_FFN]
    experts: list[_FFN]
    moe: MixtureOfExperts | None


class GraphDecoder:
    """See the module's docstring. It never changes the model; `fresh` says whether it is still that model."""

    def __init__(self, model: LazyDecoder, dtype: torch.dtype = torch.float32) -> None:
        self.model, self.dtype = model, dtype
        blocks = model.lazy_blocks()
        self.n_heads, self.head_dim = blocks[0].cross.n_heads, blocks[0].cross.head_dim
        self.layers = [_layer(block, dtype) for block in blocks]
        self.recency_LHR = torch.stack([block.cross.recency.detach() for block in blocks]).float()
        norms = [own for own in model.head_norms if isinstance(own, RMSNorm)]
        linears = [own for own in model.heads if isinstance(own, nn.Linear)]
        self.heads = [
            (own.gain.detach().to(dtype), own.eps, head.weight.detach().to(dtype))
            for own, head in zip(norms, linears, strict=True)
        ]
        self.tables = [own.weight.detach().to(dtype) for own in model.code_inputs if isinstance(own, nn.Embedding)]
        self._made_of = [(own, own._version) for own in model.parameters()]
        self._catalogue = (model.items._table, model.items.codes_IQ)

    @property
    def fresh(self) -> bool:
        """Whether weights, precision, catalogue and the table of item vectors are still those that it was made of."""
        items = self.model.items
        held = self._catalogue[0] is items._table and self._catalogue[1] is items.codes_IQ
        asked = self.dtype == self.model.graph_dtype
        return held and asked and not self.model.training and unchanged(self._made_of)

    def steps(self, question: Question) -> GraphSteps:
        """A search of that batch, which is on the model's device."""
        return GraphSteps(self, question)


class GraphSteps:
    """A search through one batch (`decoding.graph_search.TensorSteps`).

    Attributes:
        user_BD: (B, D_item) selection queries, once it has begun.
    """

    user_BD: Tensor

    def __init__(self, decoder: GraphDecoder, question: Question) -> None:
        self.decoder, self.question = decoder, question

    def begin(self) -> tuple[Tensor, Suffix]:
        """(B, 1, K) logits of the first code, and the suffix with BOS."""
        model, batch = self.decoder.model, self.question.batch
        vectors = model.items(batch.item_BT)
        self._read_context(batch, vectors)
        start = model.bos + model.surface(self.question.surface_B)
        pool = None
        if model.pool is not None:
            pool = model.pool.last(batch, vectors, model.queries(batch))
            if model.pool_in is not None:
                start = start + model.pool_in(pool)
        h_BWD, rows = self._blocks(start.to(self.decoder.dtype)[:, None], Suffix(), keep=len(self.decoder.heads) > 1)
        user: Tensor = model.select(model.select_norm(h_BWD[:, 0].to(model.bos.dtype)))
        self.user_BD = user if pool is None else user + pool
        return self._logits(h_BWD, 0), Suffix(rows, [])

    def step(self, level: int, code_BW: Tensor, parent_BW: Tensor, state: Suffix) -> tuple[Tensor, Suffix]:
        """(B, W, K) logits of the code at `level` for beams that took these codes, and the suffix with them."""
        pointers = [None if own is None else own.gather(1, parent_BW) for own in state.ancestors]
        suffix = Suffix(state.rows, [*pointers, parent_BW if pointers else None])
        h_BWD, own = self._blocks(
            F.embedding(code_BW, self.decoder.tables[level - 1]), suffix, keep=level + 1 < len(self.decoder.heads)
        )
        return self._logits(h_BWD, level), Suffix([*suffix.rows, *own], suffix.ancestors)

    def _read_context(self, batch: ContextBatch, vectors: Tensor) -> None:
        """Keys and values of the context for every head, and per layer the (B, H, 1, N) bias of its elements."""
        own = self.decoder
        kv = own.model.context(batch, vectors)
        rank, visible = visibility(kv, batch.length_B[:, None], own.model.config.max_history)
        short = -kv.keys[0].shape[2] % _STEP
        groups = own.n_heads // kv.keys[0].shape[1]

        def ready(part_BGNE: Tensor) -> Tensor:
            padded = F.pad(part_BGNE.to(own.dtype), (0, 0, 0, short))
            return padded.repeat_interleave(groups, dim=1) if groups > 1 else padded

        self.keys = [ready(part) for part in kv.keys]
        self.values = [
            key if part is whole else ready(part)
            for part, whole, key in zip(kv.values, kv.keys, self.keys, strict=True)
        ]
        bias_LHBN = own.recency_LHR[:, :, rank[:, 0]].masked_fill(~visible[:, 0], float("-inf"))
        bias_LHBN = F.pad(bias_LHBN, (0, short), value=float("-inf")).to(own.dtype)
        self.bias_LBH1N = bias_LHBN.transpose(1, 2)[:, :, :, None].unbind()

    def _logits(self, h_BWD: Tensor, level: int) -> Tensor:
        gain, eps, head = self.decoder.heads[level]
        return F.linear(F.rms_norm(h_BWD, gain.shape, gain, eps), head).float()

    def _blocks(self, h_BWD: Tensor, suffix: Suffix, *, keep: bool) -> tuple[Tensor, list[Tensor]]:
        """(B, W, D) hidden states after all blocks, and one (L, B, W, X) of their own keys and values if they are kept."""
        batch, width, dim = h_BWD.shape
        past = self._past(suffix, width)
        grown = []
        for number, layer in enumerate(self.decoder.layers):
            h_BWD = h_BWD + self._cross(number, layer, h_BWD)
            mixed, own = self._look_back(layer, h_BWD.view(batch * width, dim), None if past is None else past[number])
            grown.append(own.view(batch, width, 2 * dim))
            h_BWD = h_BWD + mixed.view(batch, width, dim)
            h_BWD = h_BWD + self._feed(layer, F.rms_norm(h_BWD, (dim,), layer.norms[2], layer.eps[2]))
        return h_BWD, [torch.stack(grown)] if keep else []

    def _past(self, suffix: Suffix, width: int) -> Tensor | None:
        """(L, R, S, 2, H, E) keys and values of every beam's ancestors."""
        if not suffix.rows:
            return None
        parts = []
        for rows_LBWX, ancestor_BW in zip(suffix.rows, suffix.ancestors, strict=True):
            layers, batch, before, size = rows_LBWX.shape
            if ancestor_BW is None:
                parts.append(rows_LBWX.expand(layers, batch, width, size))
            else:
                first = torch.arange(batch, device=ancestor_BW.device)[:, None] * before
                taken = rows_LBWX.flatten(1, 2).index_select(1, (ancestor_BW + first).view(-1))
                parts.append(taken.view(layers, batch, width, size))
        stacked = torch.stack(parts, dim=3)
        return stacked.view(len(stacked), -1, len(parts), 2, self.decoder.n_heads, self.decoder.head_dim)

    def _cross(self, number: int, layer: _Layer, h_BWD: Tensor) -> Tensor:
        batch, width, dim = h_BWD.shape
        q = F.linear(F.rms_norm(h_BWD, (dim,), layer.norms[0], layer.eps[0]), layer.query)
        mixed = F.scaled_dot_product_attention(
            q.view(batch, width, self.decoder.n_heads, -1).transpose(1, 2),
            self.keys[layer.kv_set],
            self.values[layer.kv_set],
            attn_mask=self.bias_LBH1N[number].expand(-1, -1, width, -1),
        )
        return F.linear(mixed.transpose(1, 2).reshape(batch, width, dim), layer.out)

    def _look_back(self, layer: _Layer, h_RD: Tensor, past: Tensor | None) -> tuple[Tensor, Tensor]:
        """(R, D) self-attention over the codes so far, and (R, 2, H, E) the last code's keys and values."""
        rows, dim = h_RD.shape
        qkv = F.linear(F.rms_norm(h_RD, (dim,), layer.norms[1], layer.eps[1]), layer.qkv)
        qkv = qkv.view(rows, 3, self.decoder.n_heads, self.decoder.head_dim)
        own = qkv[:, 1:]
        if past is None:
            # one code looks at itself alone
            return F.linear(own[:, 1].reshape(rows, dim), layer.mixed), own.reshape(rows, -1)
        k, v = torch.cat([past, own[:, None]], dim=1).unbind(2)
        scores = (qkv[:, None, 0] * k).sum(-1).float() / math.sqrt(self.decoder.head_dim)
        weights = torch.softmax(scores, dim=1).to(v.dtype)
        return F.linear((weights[..., None] * v).sum(1).reshape(rows, dim), layer.mixed), own.reshape(rows, -1)

    def _feed(self, layer: _Layer, x_BWD: Tensor) -> Tensor:
        if layer.moe is None:
            return _gated(layer.dense[0], x_BWD)
        x_RD = x_BWD.flatten(0, 1)
        chosen, gate = layer.moe.route(x_RD.to(layer.moe.router.weight.dtype))
        gate_RE = gate.new_zeros(len(x_RD), len(layer.experts)).scatter(1, chosen, gate).to(x_RD.dtype)
        out = torch.zeros_like(x_RD)
        for shared in layer.dense:
            out = out + _gated(shared, x_RD)
        for number, expert in enumerate(layer.experts):
            out = out + _gated(expert, x_RD) * gate_RE[:, number, None]
        return out.view_as(x_BWD)


def _gated(own: _FFN, x: Tensor) -> Tensor:
    gate, up = F.linear(x, own.gate_up).chunk(2, dim=-1)
    return F.linear(F.silu(gate) * up, own.down)


def _layer(block: LazyBlock, dtype: torch.dtype) -> _Layer:
    def ready(weight: Tensor) -> Tensor:
        return weight.detach().to(dtype)

    def ffn(own: nn.Module) -> _FFN:
        assert isinstance(own, GatedFFN)
        return _FFN(ready(own.gate_up.weight), ready(own.down.weight))

    norms = (block.cross_norm, block.self_norm, block.ffn_norm)
    moe = block.ffn if isinstance(block.ffn, MixtureOfExperts) else None
    return _Layer(
        kv_set=block.kv_set,
        norms=(ready(norms[0].gain), ready(norms[1].gain), ready(norms[2].gain)),
        eps=(norms[0].eps, norms[1].eps, norms[2].eps),
        query=ready(block.cross.query.weight),
        out=ready(block.cross.out.weight),
        qkv=ready(block.self_attention.qkv.weight),
        mixed=ready(block.self_attention.out.weight),
        dense=[ffn(own) for own in (moe.shared if moe is not None else [block.ffn])],
        experts=[] if moe is None else [ffn(own) for own in moe.experts],
        moe=moe,
    )
