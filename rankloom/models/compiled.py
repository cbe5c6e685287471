"""The lazy decoder as decoding runs it where numba is installed: contexts and steps are one call of a kernel each.

It multiplies what `FoldedDecoder` multiplies, from the same folded matrices, with nothing of torch in between, and makes the
context from the history in the same way. What only some requests have (a query, features of the user) is still torch's.
A mixture of experts, and histories too long to be multiplied with the projections first, stay with the folded blocks.

Shapes: as in decoder_kernels.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from rankloom.kernels import one_thread, tell_of_compiling
from rankloom.models import decoder_kernels as kernels
from rankloom.models.context import ContextBatch
from rankloom.models.decoder_kernels import Blocks, Floats, Pathway
from rankloom.models.folded import FoldedDecoder, pays, unchanged
from rankloom.models.layers import RMSNorm

if TYPE_CHECKING:
    from rankloom.models.lazy_decoder import LazyDecoder


@dataclass
class CompiledContext:
    """A batch of requests as the kernels read it: start of BOS, and per layer the context multiplied with projections."""

    surface_B: Tensor
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

    def reorder(self, parent_BW: NDArray[np.int64]) -> CompiledCache:
        """The cache whose beam w continues the old beam `parent_BW[b, w]`."""
        batch, width, before = self.ancestor_BWP.shape
        rows = parent_BW if batch == 1 else parent_BW + np.arange(batch)[:, None] * width
        return CompiledCache(self.past_BYLX, self.ancestor_BWP.reshape(batch * width, before).take(rows, axis=0))


class CompiledDecoder:
    """See the module's docstring. It never changes the model; `fresh` says whether it is still that model."""

    def __init__(self, model: LazyDecoder, folded: FoldedDecoder) -> None:
        one_thread()
        tell_of_compiling(kernels.step)
        self.n_heads, self.n_groups = folded.n_heads, folded.n_groups
        layers = folded.layers
        self.blocks = Blocks(
            eps_L3=np.array([layer.eps for layer in layers], np.float32),
            qkv_LDX=_stack([layer.qkv.T for layer in layers]),
            mixed_LDD=_stack([layer.mixed_DD for layer in layers]),
            gate_up_LDF=_stack([layer.gate_up.T for layer in layers if layer.gate_up is not None]),
            down_LFD=_stack([layer.down for layer in layers if layer.down is not None]),
        )
        self.heads = [(_array(head.T), np.float32(eps)) for head, eps in zip(folded.heads, folded.head_eps, strict=True)]
        self.select = (_array(folded.select.T), np.float32(folded.select_eps))
        self.tables = [_array(own.weight) for own in model.code_inputs if isinstance(own, nn.Embedding)]
        self.path = _pathway(model, folded)
        parts = (model.context, model.pool, model.pool_in, model.surface, *model.code_inputs)
        weights = [own for part in parts if part is not None for own in part.parameters()]
        self._seen = [*folded.made_of, *((own, own._version) for own in (*weights, model.bos))]

    @property
    def fresh(self) -> bool:
        """Whether the weights are still those it was made of."""
        return unchanged(self._seen)

    def serves(self, batch: ContextBatch) -> bool:
        """Whether the kernels take such requests."""
        n_context = 1 + batch.item_BT.shape[1] + (batch.user_BF is not None)
        n_context += 0 if batch.query_BQD is None else batch.query_BQD.shape[1]
        return pays(self.n_heads, n_context, len(self.path.bos_D))

    def context(self, model: LazyDecoder, batch: ContextBatch, surface_B: Tensor | None) -> CompiledContext:
        """What a batch of requests comes to; the kernels copy no vector that is in the table of all items."""
        n_requests, places = batch.item_BT.shape
        dim, layers = len(self.path.bos_D), len(self.path.set_L)
        item = _whole(batch.item_BT)
        vector_VZ, row = model.items.table(), item
        if vector_VZ is None:
            vectors = model.items(batch.item_BT)
            vector_VZ = vectors.reshape(n_requests * places, -1).numpy()
            row = np.arange(n_requests * places).reshape(n_requests, places)
        further: tuple[NDArray[Any], NDArray[Any]] = (
            np.empty((n_requests, 0, self.path.out_DC.shape[1]), np.float32), np.empty((n_requests, 0), np.bool_)
        )  # fmt: skip
        pool_BZ = np.zeros((n_requests, vector_VZ.shape[1]), np.float32)
        if batch.user_BF is not None or batch.query_BQD is not None:
            elements, seen = model.context.further(batch)
            further = (elements.numpy(), seen.numpy())
            asked = None if model.pool is None else model.pool.asked(batch, model.queries(batch))
            pool_BZ = pool_BZ if asked is None else np.array(asked.numpy())
        n_context = self.n_heads * (1 + places + further[0].shape[1])
        if surface_B is None:
            surface_B = torch.zeros(n_requests, dtype=torch.long)
        out = CompiledContext(
            surface_B,
            np.empty((n_requests, dim), np.float32),
            pool_BZ,
            np.empty((layers, n_requests, dim, n_context), np.float32),
            np.empty((layers, n_requests, n_context, dim), np.float32),
            np.empty((layers, n_requests, n_context), np.float32),
        )
        events = (batch.kind_BT, batch.watch_BT, batch.gap_BT, batch.surface_BT, batch.position_BT)
        kind, watch, gap, surface, position = (_whole(own) for own in events)
        kernels.context(
            self.path, self.n_groups, item, vector_VZ, row, kind, watch, gap, surface, position, _whole(batch.length_B),
            *further, _whole(surface_B), pool_BZ, out.start_BD, out.read_LBDM, out.write_LBMD, out.bias_LBM,
        )  # fmt: skip
        return out

    def steps(self, context: CompiledContext) -> CompiledSteps:
        """A search from that context."""
        return CompiledSteps(self, context)

    def user(self, begun_BD: Floats, pool_BZ: Floats) -> Tensor:
        """(B, Z) selection query from the hidden states of BOS and the history's pool (zeros where there is none)."""
        weight, eps = self.select
        out = np.empty((len(begun_BD), weight.shape[1]), np.float32)
        kernels.project(begun_BD, weight, eps, out)
        out += pool_BZ
        return torch.from_numpy(out)


@dataclass
class CompiledSteps:
    """A search through one batch of requests (`decoding.protocol.Steps`); BOS is taken once, for search and selection.

    Attributes:
        begun: hidden states (B, D), logits (B, 1, K) and cache after BOS, once somebody asked.
    """

    decoder: CompiledDecoder
    context: CompiledContext
    begun: tuple[Floats, Floats, CompiledCache] | None = None

    def begin(self) -> tuple[Floats, Floats, CompiledCache]:
        """What BOS comes to."""
        if self.begun is None:
            h_BD = self.context.start_BD.copy()
            batch, layers = len(h_BD), len(self.context.read_LBDM)
            nothing = CompiledCache(
                np.empty((batch, 0, layers, 2 * h_BD.shape[1]), np.float32), np.empty((batch, 1, 0), np.int64)
            )
            logits, cache = self._advance(0, h_BD[:, None], nothing)
            self.begun = (h_BD, logits, cache)
        return self.begun

    def user(self) -> Tensor:
        """(B, Z) selection query of each request."""
        return self.decoder.user(self.begin()[0], self.context.pool_BZ)

    def step(
        self, level: int, codes_BW: NDArray[np.int64] | None, cache: CompiledCache | None
    ) -> tuple[Floats, CompiledCache]:
        """(B, W, K) logits of the next code, and the cache with the codes chosen at `level - 1`."""
        if codes_BW is None or cache is None:
            return self.begin()[1:]
        return self._advance(level, self.decoder.tables[level - 1].take(codes_BW, axis=0), cache)

    def reorder(self, cache: CompiledCache, parent_BW: NDArray[np.int64]) -> CompiledCache:
        """The cache whose beam w continues the old beam `parent_BW[b, w]`."""
        return cache.reorder(parent_BW)

    def _advance(self, level: int, h_BWD: Floats, cache: CompiledCache) -> tuple[Floats, CompiledCache]:
        own, context = self.decoder, self.context
        (batch, width, dim), before = h_BWD.shape, cache.past_BYLX.shape[1]
        head_DK, eps = own.heads[level]
        out = np.empty((batch, width, head_DK.shape[1]), np.float32)
        # nobody continues the last code
        kept = width if level + 1 < len(own.heads) else 0
        own_BWLX = np.empty((batch, kept, len(context.read_LBDM), 2 * dim), np.float32)
        kernels.step(
            own.blocks, own.n_heads, context.read_LBDM, context.write_LBMD, context.bias_LBM, head_DK, eps,
            h_BWD, cache.past_BYLX, cache.ancestor_BWP, own_BWLX, out,
        )  # fmt: skip
        if not kept:
            return out, cache
        past = np.concatenate([cache.past_BYLX, own_BWLX], axis=1) if before else own_BWLX
        ancestor = np.empty((batch, width, cache.ancestor_BWP.shape[2] + 1), np.int64)
        ancestor[:, :, :-1] = cache.ancestor_BWP
        ancestor[:, :, -1] = np.arange(before, before + width)
        return out, CompiledCache(past, ancestor)


def _pathway(model: LazyDecoder, folded: FoldedDecoder) -> Pathway:
    processor, dim = model.context, model.config.d_model
    first, slope, last = processor.history_path
    assert isinstance(first, nn.Linear)
    assert isinstance(slope, nn.LeakyReLU)
    assert isinstance(last, nn.Linear)
    tables = (processor.kind, processor.watch, processor.gap, processor.surface, processor.position)
    widths = [model.items.dim, *(table.embedding_dim for table in tables)]
    item, *parts = torch.split(first.weight.detach(), widths, dim=1)
    kind, watch, gap, surface, position = (
        _array(table.weight.detach() @ part.T) for table, part in zip(tables, parts, strict=True)
    )
    keys = [own for own in processor.key_norms if isinstance(own, RMSNorm)]
    values = [own for own in processor.value_norms if isinstance(own, RMSNorm)]
    heads, width = folded.n_heads, folded.head_dim
    pool, pool_in = model.pool, model.pool_in
    nothing = np.zeros((0, model.items.dim), np.float32)
    return Pathway(
        item_ZD=_array(item.T),
        out_DC=_array(last.weight.T),
        shift_C=_array(last.bias),
        kind=kind + _array(first.bias),
        watch=watch,
        gap=gap,
        surface=surface,
        position=position,
        slope=np.float32(slope.negative_slope),
        null_C=_array(processor.null),
        key_gain_SX=_stack([own.gain for own in keys]),
        value_gain_SX=_stack([own.gain for own in values]) if values else np.zeros((0, len(keys[0].gain)), np.float32),
        eps_S2=np.array([(k.eps, v.eps) for k, v in zip(keys, values or keys, strict=True)], np.float32),
        set_L=np.array(folded.sets, np.int64),
        recency_HLR=_array(folded.recency_HLR),
        query_LHDE=_stack([layer.query_DD.view(heads, width, dim).transpose(1, 2) for layer in folded.layers]),
        out_LHED=_array(folded.out_LHED),
        pool_kind=nothing if pool is None else _array(pool.kind),
        pool_gate=nothing if pool is None else _array(pool.gate),
        pool_recency_AR=nothing if pool is None else _array(pool.recency),
        pool_scale_AZ=nothing if pool is None else _array(pool.scale),
        pool_in_ZD=nothing if pool_in is None else _array(pool_in.weight.T),
        bos_D=_array(model.bos),
        surface_start=_array(model.surface.weight),
    )


def _whole(own: Tensor) -> NDArray[Any]:
    out: NDArray[Any] = own.numpy()
    return out if out.flags.c_contiguous else np.ascontiguousarray(out)


def _array(own: Tensor) -> Floats:
    """float32, and of its own memory."""
    return np.array(own.detach().numpy(), dtype=np.float32, order="C")


def _stack(parts: Sequence[Tensor]) -> Floats:
    return _array(torch.stack(list(parts)))
