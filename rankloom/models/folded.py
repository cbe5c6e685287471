"""The decoder's blocks as decoding runs them: what depends on weights alone is worked out once.

* the gains of the norms and the scale of the attention scores are folded into the matrices that follow them;
* for many beams, the projections of cross-attention are multiplied with the request's keys and values before any beam is
  looked at: scores = x (W_q K^T) and output = weights (V W_o), two products a layer;
* residuals are added within the products.

It gives what the blocks give but for rounding; they stay the plain twin, which runs wherever gradients do. A mixture of
experts runs as it is.

With `dtype` bfloat16 the matrices are kept, and multiplied, in half the width. Sums within a product, residuals, norms, biases,
softmax, self-attention over the codes, heads and the selection query stay fp32: what is compared is not rounded.

Shapes: B requests, W beams, D width, H heads, G K/V groups, E head width, N context elements, P codes so far, K codes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rankloom.models.layers import GatedFFN, RMSNorm

if TYPE_CHECKING:
    from rankloom.models.lazy_decoder import LazyBlock
    from rankloom.models.prefix import Prefix

LIMIT: Final = 20_000_000
"""Parameters of the blocks above which products dwarf what folding saves, and a second copy of them costs memory."""
MANY: Final = 8
"""Beams from which multiplying the context with the projections first pays."""


@dataclass
class _Layer:
    """One block. Norms have lost their gains and the root of the width to `query`, `qkv`, `gate_up`."""

    eps: tuple[float, float, float]
    query_DD: Tensor
    out_DD: Tensor
    qkv: Tensor
    mixed_DD: Tensor
    gate_up: Tensor | None
    down: Tensor | None
    ffn: nn.Module
    ffn_norm: RMSNorm


@dataclass
class FoldedContext:
    """A prefix as the folded blocks read it.

    Attributes:
        bias_BH1N: per layer, recency bias, -inf for what a request does not see.
        read_BDM, write_BMD: per layer, the context multiplied with the projections, M = H * N; made for many beams.
    """

    bias_BH1N: tuple[Tensor, ...]
    read_BDM: tuple[Tensor, ...] = ()
    write_BMD: tuple[Tensor, ...] = ()


class FoldedDecoder:
    """See the module's docstring.

    Args:
        blocks, head_norms, heads, select_norm, select: the decoder's own; none of them is changed.
        dtype: of the matrices of the blocks, and of the context's keys and values.
    """

    def __init__(
        self,
        blocks: Sequence[LazyBlock],
        head_norms: Sequence[RMSNorm],
        heads: Sequence[nn.Linear],
        select_norm: RMSNorm,
        select: nn.Linear,
        *,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.layers = [_folded(block, dtype) for block in blocks]
        cross = [block.cross for block in blocks]
        self.n_heads, self.n_groups, self.head_dim = cross[0].n_heads, cross[0].g_kv, cross[0].head_dim
        dim = self.n_heads * self.head_dim
        self.sets = [block.kv_set for block in blocks]
        self.recency_HLR = torch.stack([own.recency.detach() for own in cross], dim=1)
        # by the group whose keys a head reads: (L, G, D * H / G, E) and (L, H, E, D)
        queries = [own.query_DD.view(self.n_groups, -1, self.head_dim, dim) for own in self.layers]
        self.query_LGXE = torch.stack([own.transpose(2, 3).flatten(1, 2) for own in queries])
        self.out_LHED = torch.stack([own.out_DD.T.reshape(self.n_heads, self.head_dim, dim) for own in self.layers])
        self.heads = [_after(norm, head.weight.detach()) for norm, head in zip(head_norms, heads, strict=True)]
        self.head_eps = [norm.eps for norm in head_norms]
        self.select, self.select_eps = _after(select_norm, select.weight.detach()), select_norm.eps
        parts = (*blocks, *head_norms, *heads, select_norm, select)
        weights = [own for part in parts for own in part.parameters()]
        self.made_of = [(own, own._version) for own in weights]

    @property
    def fresh(self) -> bool:
        """Whether the weights are still those it was made of."""
        return unchanged(self.made_of)

    def logits(self, h_BWD: Tensor, level: int) -> Tensor:
        """(B, W, K) logits of the code at `level`."""
        return F.linear(_unit(h_BWD, self.head_eps[level]), self.heads[level])

    def user(self, h_BD: Tensor) -> Tensor:
        """(B, D_item) what `LazyDecoder.select` makes of the hidden states of BOS."""
        return F.linear(_unit(h_BD, self.select_eps), self.select)

    def advance(self, prefix: Prefix, h_BWD: Tensor, past: list[Tensor] | None) -> tuple[Tensor, list[Tensor]]:
        """(B, W, D) hidden states after all blocks, and per layer the (B * W, P + 1, 2, H, E) keys and values so far."""
        batch, beams, dim = h_BWD.shape
        context = self._context(prefix)
        absorbed = beams >= MANY and self._absorb(prefix, context)
        grown = []
        for number, layer in enumerate(self.layers):
            if absorbed:
                h_BWD = self._read_absorbed(number, layer, context, h_BWD)
            else:
                h_BWD = self._read(number, layer, context, prefix, h_BWD)
            h_RD = h_BWD.view(batch * beams, dim)
            h_RD, own = self._look_back(layer, h_RD, None if past is None else past[number])
            grown.append(own)
            if layer.gate_up is None or layer.down is None:
                h_RD = h_RD + layer.ffn(layer.ffn_norm(h_RD))
            else:
                gate, up = _linear(_unit(h_RD, layer.eps[2]), layer.gate_up).chunk(2, dim=-1)
                h_RD = _added(h_RD, F.silu(gate).mul_(up), layer.down)
            h_BWD = h_RD.view(batch, beams, dim)
        return h_BWD, grown

    def _read(self, number: int, layer: _Layer, context: FoldedContext, prefix: Prefix, h_BWD: Tensor) -> Tensor:
        """Cross-attention, query by query."""
        batch, beams, dim = h_BWD.shape
        groups, heads, kv_set = self.n_groups, self.n_heads, self.sets[number]
        kv = prefix.reading[0]
        keys, values = kv.keys[kv_set], kv.values[kv_set]
        q = _linear(_unit(h_BWD, layer.eps[0]), layer.query_DD).view(batch, beams, heads, self.head_dim)
        q = q.transpose(1, 2).reshape(batch, groups, -1, self.head_dim)
        # a bias is fp32, and so is the sum
        scores = (q @ keys.transpose(-1, -2)).view(batch, heads, beams, -1) + context.bias_BH1N[number]
        mixed = torch.softmax(scores, dim=-1).view(batch, groups, q.shape[2], -1).to(values.dtype) @ values
        mixed = mixed.view(batch, heads, beams, self.head_dim).transpose(1, 2).reshape(batch, beams, dim)
        return h_BWD + _linear(mixed, layer.out_DD)

    def _read_absorbed(self, number: int, layer: _Layer, context: FoldedContext, h_BWD: Tensor) -> Tensor:
        """Cross-attention with the projections already in the context."""
        batch, beams, _ = h_BWD.shape
        bias = context.bias_BH1N[number].view(batch, 1, -1)
        scores = _added(bias, _unit(h_BWD, layer.eps[0]), context.read_BDM[number])
        weights = torch.softmax(scores.view(batch, beams, self.n_heads, -1), dim=-1)
        return _added(h_BWD, weights.view(batch, beams, -1), context.write_BMD[number])

    def _look_back(self, layer: _Layer, h_RD: Tensor, past: Tensor | None) -> tuple[Tensor, Tensor]:
        """Self-attention over the codes so far."""
        qkv = _linear(_unit(h_RD, layer.eps[1]), layer.qkv).float().view(len(h_RD), 1, 3, self.n_heads, self.head_dim)
        own = qkv[:, :, 1:]
        if past is None:
            # one code looks at itself alone
            mixed = own[:, 0, 1]
        else:
            own = torch.cat([past, own], dim=1)
            weights = torch.softmax((qkv[:, :, 0] * own[:, :, 0]).sum(-1), dim=1)
            mixed = (weights[..., None] * own[:, :, 1]).sum(1)
        return _added(h_RD, mixed.reshape(h_RD.shape), layer.mixed_DD), own

    def _context(self, prefix: Prefix) -> FoldedContext:
        if prefix.folded is None:
            _, rank_B1N, visible_B1N = prefix.reading
            bias_HLB1N = self.recency_HLR[:, :, rank_B1N].masked_fill(~visible_B1N, float("-inf"))
            prefix.folded = FoldedContext(bias_HLB1N.permute(1, 2, 0, 3, 4).contiguous().unbind())
        return prefix.folded

    def _absorb(self, prefix: Prefix, context: FoldedContext) -> bool:
        """Multiplies the context with the projections, once; False where that would be more work than it saves."""
        kv = prefix.reading[0]
        batch, groups, n_context, _ = kv.keys[0].shape
        heads, dim = self.n_heads, self.n_heads * self.head_dim
        if not pays(heads, n_context, dim):
            return False
        if not context.read_BDM:
            keys_LBGNE, values_LBGNE = (
                torch.stack([own[number] for number in self.sets]) for own in (kv.keys, kv.values)
            )
            read = torch.matmul(self.query_LGXE[:, None], keys_LBGNE.transpose(-1, -2))
            read = read.view(-1, batch, heads, dim, n_context).transpose(2, 3)
            context.read_BDM = read.reshape(-1, batch, dim, heads * n_context).unbind()
            values_LBHNE = values_LBGNE.repeat_interleave(heads // groups, dim=2) if heads > groups else values_LBGNE
            write = torch.matmul(values_LBHNE, self.out_LHED[:, None])
            context.write_BMD = write.view(-1, batch, heads * n_context, dim).unbind()
        return True


def unchanged(made_of: Sequence[tuple[Tensor, int]]) -> bool:
    """Whether tensors are still of the versions that they had."""
    # asked in every request: a loop is twice as fast as `all`
    for own, version in made_of:  # noqa: SIM110
        if own._version != version:
            return False
    return True


def pays(heads: int, n_context: int, dim: int) -> bool:
    """Whether multiplying a context with the projections of cross-attention spares many beams more than it costs."""
    return heads * n_context <= 2 * dim


def _linear(x: Tensor, weight: Tensor) -> Tensor:
    """`F.linear` in the width of the weight."""
    return F.linear(x.to(weight.dtype), weight)


def _added(to: Tensor, x: Tensor, right: Tensor) -> Tensor:
    """to + x @ right in the width of `to`; the product in that of the factor."""
    if right.dtype != to.dtype:
        return to + x.to(right.dtype) @ right
    return torch.addmm(to, x, right) if x.ndim == 2 else torch.baddbmm(to, x, right)


def _folded(block: LazyBlock, dtype: torch.dtype) -> _Layer:
    cross, own = block.cross, block.self_attention
    dim, width = cross.query.in_features, cross.head_dim
    qkv = _after(block.self_norm, own.qkv.weight.detach())
    qkv[:dim] /= math.sqrt(width)
    gate_up = down = None
    if isinstance(block.ffn, GatedFFN):
        gate_up = _after(block.ffn_norm, block.ffn.gate_up.weight.detach())
        down = block.ffn.down.weight.detach().T.contiguous()
    return _Layer(
        eps=(block.cross_norm.eps, block.self_norm.eps, block.ffn_norm.eps),
        query_DD=(_after(block.cross_norm, cross.query.weight.detach()) / math.sqrt(width)).to(dtype),
        out_DD=cross.out.weight.detach().to(dtype),
        qkv=qkv.to(dtype),
        mixed_DD=own.out.weight.detach().T.contiguous().to(dtype),
        gate_up=None if gate_up is None else gate_up.to(dtype),
        down=None if down is None else down.to(dtype),
        ffn=block.ffn,
        ffn_norm=block.ffn_norm,
    )


def _after(norm: RMSNorm, weight: Tensor) -> Tensor:
    """A matrix that reads `_unit` of what it read the norm of."""
    return weight * norm.gain.detach() * math.sqrt(weight.shape[1])


def _unit(x: Tensor, eps: float) -> Tensor:
    """x over its length, with the epsilon of a root-mean-square norm; the root of the width is in what follows."""
    length = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    unit: Tensor = x * length.square_().add_(x.shape[-1] * eps).rsqrt_()
    return unit
