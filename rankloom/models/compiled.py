"""The lazy decoder as decoding runs it where numba is installed: contexts and steps are one call of a kernel each.

It multiplies what `FoldedDecoder` multiplies, from the same folded matrices, with nothing of torch in between, and makes the
context from the history in the same way. What only some requests have (a query, features of the user) is still torch's.
A mixture of experts, and histories too long to be multiplied with the projections first, stay with the folded blocks.

Shapes: as in decoder_kernels.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from rankloom.kernels import one_thread
from rankloom.models import decoder_kernels as kernels
from rankloom.models.context import ContextBatch, ContextProcessor
from rankloom.models.decoder_kernels import Blocks, Floats, Pathway
from rankloom.models.folded import FoldedDecoder, pays
from rankloom.models.layers import RMSNorm

if TYPE_CHECKING:
    from rankloom.models.lazy_decoder import LazyDecoder


@dataclass
class CompiledContext:
    """A batch of requests as the kernels read it: start of BOS, and per layer the context multiplied with projections."""

    start_BD: Floats
    pool_BZ: Floats
    read_LBDM: Floats
    write_LBMD: Floats
    bias_LBM: Floats


@dataclass
class CompiledCache:
    """Keys and values (B, Y, L, 2 D) of all codes that were ever taken, and each beam's own places in it, (B, W, P)."""

    past_BYLX: Floats
    ancestor_BWP: NDArray[np.int64]

    def reorder(self, parent_BW: Tensor) -> CompiledCache:
        """The cache whose beam w continues the old beam `parent_BW[b, w]`."""
        parent, (batch, width, before) = parent_BW.numpy(), self.ancestor_BWP.shape
        rows = parent + np.arange(batch)[:, None] * width
        return CompiledCache(self.past_BYLX, self.ancestor_BWP.reshape(batch * width, before).take(rows, axis=0))


class CompiledDecoder:
    """See the module's docstring. It never changes the model; `fresh` says whether it is still that model."""

    def __init__(self, model: LazyDecoder, folded: FoldedDecoder) -> None:
        one_thread()
        self.n_heads, self.n_groups = folded.n_heads, folded.n_groups
        layers = folded.layers
        self.blocks = Blocks(
            _array([layer.eps for layer in layers]),
            _array([layer.qkv.T for layer in layers]),
            _array([layer.mixed_DD for layer in layers]),
            _array([layer.gate_up.T for layer in layers if layer.gate_up is not None]),
            _array([layer.down for layer in layers if layer.down is not None]),
        )
        self.heads = [(_array(head.T), np.float32(eps)) for head, eps in zip(folded.heads, folded.head_eps, strict=True)]
        self.select = (_array(folded.select.T), np.float32(folded.select_eps))
        self.tables = [_array(own.weight) for own in model.code_inputs if isinstance(own, nn.Embedding)]
        self.path = _pathway(model, folded)
        parts = (model.context, model.pool, model.pool_in, model.surface, *model.code_inputs)
        weights = [own for part in parts if part is not None for own in part.parameters()]
        self._seen = [(own, own._version) for own in (*weights, model.bos)]

    @property
    def fresh(self) -> bool:
        """Whether the weights of the context and of BOS are still those it was made of."""
        return all(own._version == version for own, version in self._seen)

    def serves(self, batch: ContextBatch) -> bool:
        """Whether the kernels take such requests."""
        n_context = 1 + batch.item_BT.shape[1] + (batch.user_BF is not None)
        n_context += 0 if batch.query_BQD is None else batch.query_BQD.shape[1]
        return pays(self.n_heads, n_context, len(self.path.bos_D))

    def context(
        self, processor: ContextProcessor, batch: ContextBatch, vectors: Tensor, surface_B: Tensor, asked_BZ: Tensor | None
    ) -> CompiledContext:
        """What a batch of requests comes to.

        Args:
            vectors: (B, Q, Z) of the batch's items.
            asked_BZ: what queries add to the pool of the history.
        """
        n_requests, places, width = vectors.shape
        dim, layers = len(self.path.bos_D), len(self.path.set_L)
        elements, seen = processor.further(batch)
        n_context = self.n_heads * (1 + places + elements.shape[1])
        out = CompiledContext(
            np.empty((n_requests, dim), np.float32),
            np.zeros((n_requests, width), np.float32) if asked_BZ is None else np.array(asked_BZ.numpy()),
            np.empty((layers, n_requests, dim, n_context), np.float32),
            np.empty((layers, n_requests, n_context, dim), np.float32),
            np.empty((layers, n_requests, n_context), np.float32),
        )
        history = (batch.item_BT, vectors, batch.kind_BT, batch.watch_BT, batch.gap_BT, batch.surface_BT, batch.position_BT)
        kernels.context(
            self.path, self.n_groups, *map(_as_array, (*history, batch.length_B, elements, seen, surface_B)), out.pool_BZ,
            out.start_BD, out.read_LBDM, out.write_LBMD, out.bias_LBM,
        )  # fmt: skip
        return out

    def advance(
        self, context: CompiledContext, level: int, codes_BW: Tensor | None, cache: CompiledCache | None
    ) -> tuple[Floats, CompiledCache]:
        """(B, W, D) hidden states after all blocks, of BOS or of the codes chosen at `level - 1`; and the cache with them."""
        layers, batch, dim = context.read_LBDM.shape[:3]
        if codes_BW is None or cache is None:
            h_BWD = context.start_BD[:, None].copy()
            cache = CompiledCache(np.empty((batch, 0, layers, 2 * dim), np.float32), np.empty((batch, 1, 0), np.int64))
        else:
            h_BWD = self.tables[level - 1].take(codes_BW.numpy(), axis=0)
        width, before = h_BWD.shape[1], cache.past_BYLX.shape[1]
        # nobody continues the last code
        kept = width if level + 1 < len(self.heads) else 0
        own_BWLX = np.empty((batch, kept, layers, 2 * dim), np.float32)
        kernels.advance(
            self.blocks, self.n_heads, context.read_LBDM, context.write_LBMD, context.bias_LBM,
            h_BWD, cache.past_BYLX, cache.ancestor_BWP, own_BWLX,
        )  # fmt: skip
        if not kept:
            return h_BWD, cache
        past = np.concatenate([cache.past_BYLX, own_BWLX], axis=1) if before else own_BWLX
        own_BW1 = np.broadcast_to(np.arange(before, before + width)[:, None], (batch, width, 1))
        return h_BWD, CompiledCache(past, np.concatenate([cache.ancestor_BWP, own_BW1], axis=2))

    def logits(self, h_BWD: Floats, level: int) -> Tensor:
        """(B, W, K) logits of the code at `level`."""
        return self._project(h_BWD, *self.heads[level])

    def user(self, h_BD: Floats, pool_BZ: Floats) -> Tensor:
        """(B, Z) selection query from the hidden states of BOS and the history's pool (zeros where there is none)."""
        return self._project(h_BD, *self.select).add_(torch.from_numpy(pool_BZ))

    def _project(self, h_RD: Floats, weight_DK: Floats, eps: np.float32) -> Tensor:
        out = np.empty((*h_RD.shape[:-1], weight_DK.shape[1]), np.float32)
        kernels.project(h_RD.reshape(-1, h_RD.shape[-1]), weight_DK, eps, out.reshape(-1, weight_DK.shape[1]))
        return torch.from_numpy(out)


def _pathway(model: LazyDecoder, folded: FoldedDecoder) -> Pathway:
    processor, dim = model.context, model.config.d_model
    first, slope, last = processor.history_path
    assert isinstance(first, nn.Linear) and isinstance(slope, nn.LeakyReLU) and isinstance(last, nn.Linear)
    tables = (processor.kind, processor.watch, processor.gap, processor.surface, processor.position)
    item, *parts = first.weight.detach().split([model.items.dim, *(table.embedding_dim for table in tables)], dim=1)
    added = [table.weight.detach() @ part.T for table, part in zip(tables, parts, strict=True)]
    added[0] = added[0] + first.bias.detach()
    keys = [own for own in processor.key_norms if isinstance(own, RMSNorm)]
    values = [own for own in processor.value_norms if isinstance(own, RMSNorm)] or keys
    blocks, pool, pool_in = model.lazy_blocks(), model.pool, model.pool_in
    heads, width = folded.n_heads, folded.head_dim
    queries = [layer.query_DD.view(heads, width, dim).transpose(1, 2) for layer in folded.layers]
    nothing = np.zeros((0, model.items.dim), np.float32)
    return Pathway(
        _array(item.T), _array(last.weight.T), _array(last.bias), *map(_array, added), np.float32(slope.negative_slope),
        _array(processor.null), _array([own.gain for own in keys]),
        _array([own.gain for own in processor.value_norms if isinstance(own, RMSNorm)]) if len(processor.value_norms)
        else np.zeros((0, len(keys[0].gain)), np.float32),
        _array([(key.eps, value.eps) for key, value in zip(keys, values, strict=True)]),
        np.array([block.kv_set for block in blocks], np.int64), _array(folded.recency_HLR),
        _array(queries), _array(folded.out_LHED),
        *((nothing,) * 4 if pool is None else map(_array, (pool.kind, pool.gate, pool.recency, pool.scale))),
        nothing if pool_in is None else _array(pool_in.weight.T), _array(model.bos), _array(model.surface.weight),
    )  # fmt: skip


def _as_array(own: Tensor) -> NDArray[np.generic]:
    out: NDArray[np.generic] = np.ascontiguousarray(own.numpy())
    return out


def _array(own: Tensor | list[Tensor] | list[tuple[float, ...]]) -> Floats:
    """float32 and of its own memory."""
    if isinstance(own, list):
        own = torch.stack([torch.as_tensor(part, dtype=torch.float32) for part in own])
    return np.array(own.detach().numpy(), dtype=np.float32, order="C")
