"""The folded blocks of the lazy decoder as compiled kernels: a whole step is one call, and so is a request's context.

* rows of requests are taken a few at a time, so that what they pass through stays in the core's cache from block to block;
* each product goes to BLAS; all between two products is one pass over the rows;
* keys and values of earlier codes stay where they were written: a beam knows its ancestors' places, nothing is copied.

Shapes: B requests, W beams, R = rows of the requests at hand, D width, H heads, G K/V groups, E head width, S sets of keys
and values, N context elements, M = H * N, L layers, F hidden width, X = 2 D (keys, values), Y places of earlier codes, P codes
before, Q history places, V rows of vectors, Z their width, C = context width, A pool heads, U further elements (user, queries), K codes.
"""

from __future__ import annotations

import math
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from rankloom.kernels import SMALLEST, exp, jit, ordered, product, unordered

Floats = NDArray[np.float32]
_ROWS: Final = 128
"""Rows that pass the blocks together, if they are of several requests."""
_ONE: Final = np.float32(1)
_UNSEEN: Final = np.float32(-np.inf)


class Blocks(NamedTuple):
    """What a step multiplies with; `FoldedDecoder`'s matrices, the other way round."""

    eps_L3: Floats
    qkv_LDX: Floats
    mixed_LDD: Floats
    gate_up_LDF: Floats
    down_LFD: Floats


class Pathway(NamedTuple):
    """What makes a context.

    Attributes:
        item_ZD, out_DC, shift_C: the two layers of the history's pathway, the first for the item vector alone.
        kind, watch, gap, surface, position: (n, D) what each feature adds to the first layer; the bias is in `kind`.
        slope: of the negative side between the layers.
        null_C: the null element.
        key_gain_SX, value_gain_SX, eps_S2: norms; values are keys where there are no gains for them.
        set_L: which set a layer reads.
        recency_HLR: bias by recency.
        query_LHDE, out_LHED: projections of cross-attention.
        pool_kind, pool_gate: (A, n) by kind of event; `pool_recency_AR` by age, `pool_scale_AZ` of the normed means.
        pool_in_ZD: the pool's part in BOS; no rows where there is no pool.
        bos_D, surface_start: (n, D) what BOS is made of.
    """

    item_ZD: Floats
    out_DC: Floats
    shift_C: Floats
    kind: Floats
    watch: Floats
    gap: Floats
    surface: Floats
    position: Floats
    slope: np.float32
    null_C: Floats
    key_gain_SX: Floats
    value_gain_SX: Floats
    eps_S2: Floats
    set_L: NDArray[np.int64]
    recency_HLR: Floats
    query_LHDE: Floats
    out_LHED: Floats
    pool_kind: Floats
    pool_gate: Floats
    pool_recency_AR: Floats
    pool_scale_AZ: Floats
    pool_in_ZD: Floats
    bos_D: Floats
    surface_start: Floats


@jit
def _unit(x_RD: Any, eps: Any, out_RD: Any) -> None:
    """Rows over their length."""
    width = x_RD.shape[1]
    for r in range(len(x_RD)):
        own, out = x_RD[r], out_RD[r]
        square = np.float32(0)
        for i in range(width):
            square += own[i] * own[i]
        factor = _ONE / np.float32(math.sqrt(square + np.float32(width) * eps))
        for i in range(width):
            out[i] = own[i] * factor


@jit
def _add_unit(x_RD: Any, more_RD: Any, eps: Any, out_RD: Any) -> None:
    """Adds to rows in place, and their unit rows."""
    width = x_RD.shape[1]
    for r in range(len(x_RD)):
        own, more, out = x_RD[r], more_RD[r], out_RD[r]
        square = np.float32(0)
        for i in range(width):
            own[i] += more[i]
            square += own[i] * own[i]
        factor = _ONE / np.float32(math.sqrt(square + np.float32(width) * eps))
        for i in range(width):
            out[i] = own[i] * factor


@jit
def _softmax(score_WM: Any, bias_M: Any, heads: Any) -> None:
    """Over the context, head by head, in place."""
    n_context = score_WM.shape[1] // heads
    for w in range(len(score_WM)):
        for head in range(heads):
            own = score_WM[w, head * n_context : (head + 1) * n_context]
            bias = bias_M[head * n_context : (head + 1) * n_context]
            most = SMALLEST
            for i in range(n_context):
                own[i] += bias[i]
                most = max(most, ordered(own[i]))
            top = unordered(most)
            total = np.float32(0)
            for i in range(n_context):
                value = exp(own[i] - top)
                own[i] = value
                total += value
            factor = _ONE / total
            for i in range(n_context):
                own[i] *= factor


@jit
def _look_back(qkv_WX: Any, past_YX: Any, layer: Any, ancestor_WP: Any, heads: Any, weight: Any, out_WD: Any) -> None:
    """Self-attention of the newest codes over themselves and the codes before."""
    dim = out_WD.shape[1]
    width, before = dim // heads, ancestor_WP.shape[1]
    for w in range(len(out_WD)):
        row, out = qkv_WX[w], out_WD[w]
        for head in range(heads):
            first = head * width
            query = row[first : first + width]
            own_key, own_value = row[dim + first : dim + first + width], row[2 * dim + first : 2 * dim + first + width]
            score = np.float32(0)
            for i in range(width):
                score += query[i] * own_key[i]
            weight[before] = top = score
            for p in range(before):
                key = past_YX[ancestor_WP[w, p], layer, first : first + width]
                score = np.float32(0)
                for i in range(width):
                    score += query[i] * key[i]
                weight[p] = score
                top = max(top, score)
            total = np.float32(0)
            for p in range(before + 1):
                weight[p] = exp(weight[p] - top)
                total += weight[p]
            mixed = out[first : first + width]
            share = weight[before] / total
            for i in range(width):
                mixed[i] = share * own_value[i]
            for p in range(before):
                value = past_YX[ancestor_WP[w, p], layer, dim + first : dim + first + width]
                share = weight[p] / total
                for i in range(width):
                    mixed[i] += share * value[i]


@jit
def _gated(gate_up_RF: Any, out_RF: Any) -> None:
    """silu(gate) * up."""
    width = out_RF.shape[1]
    for r in range(len(out_RF)):
        gate, up, out = gate_up_RF[r, :width], gate_up_RF[r, width:], out_RF[r]
        for i in range(width):
            out[i] = gate[i] / (_ONE + exp(-gate[i])) * up[i]


@jit
def step(
    blocks: Any, heads: Any, read_LBDM: Any, write_LBMD: Any, bias_LBM: Any, head_DK: Any, head_eps: Any,
    h_BWD: Any, past_BYLX: Any, ancestor_BWP: Any, own_BWLX: Any, out_BWK: Any,
) -> None:  # fmt: skip
    """Takes the hidden states `h_BWD` through all blocks, in place, writes the newest keys and values, and the logits.

    Args:
        read_LBDM, write_LBMD, bias_LBM: what `context` wrote.
        past_BYLX: keys and values of earlier codes; `ancestor_BWP` names each beam's places in it.
        own_BWLX: where the newest go; no beams where nobody will ask for them.
    """
    batch, width, dim = h_BWD.shape
    together = max(1, _ROWS // width)
    most = min(batch, together) * width
    unit, more = np.empty((most, dim), np.float32), np.empty((most, dim), np.float32)
    mixed = np.empty((most, dim), np.float32)
    score = np.empty((width, bias_LBM.shape[2]), np.float32)
    qkv = np.empty((most, 3 * dim), np.float32)
    gate_up = np.empty((most, blocks.gate_up_LDF.shape[2]), np.float32)
    active = np.empty((most, blocks.down_LFD.shape[1]), np.float32)
    weight = np.empty(ancestor_BWP.shape[2] + 1, np.float32)
    for first in range(0, batch, together):
        last = min(batch, first + together)
        rows = (last - first) * width
        h = h_BWD[first:last].reshape((rows, dim))
        for layer in range(len(blocks.eps_L3)):
            eps = blocks.eps_L3[layer]
            if layer == 0:
                _unit(h, eps[0], unit[:rows])
            else:
                _add_unit(h, more[:rows], eps[0], unit[:rows])
            for b in range(first, last):
                at, end = (b - first) * width, (b - first + 1) * width
                product(unit[at:end], read_LBDM[layer, b], score)
                _softmax(score, bias_LBM[layer, b], heads)
                product(score, write_LBMD[layer, b], more[at:end])
            _add_unit(h, more[:rows], eps[1], unit[:rows])
            product(unit[:rows], blocks.qkv_LDX[layer], qkv[:rows])
            for b in range(first, last):
                at, end = (b - first) * width, (b - first + 1) * width
                _look_back(qkv[at:end], past_BYLX[b], layer, ancestor_BWP[b], heads, weight, mixed[at:end])
                for w in range(own_BWLX.shape[1]):
                    own_BWLX[b, w, layer] = qkv[at + w, dim:]
            product(mixed[:rows], blocks.mixed_LDD[layer], more[:rows])
            _add_unit(h, more[:rows], eps[2], unit[:rows])
            product(unit[:rows], blocks.gate_up_LDF[layer], gate_up[:rows])
            _gated(gate_up[:rows], active[:rows])
            product(active[:rows], blocks.down_LFD[layer], more[:rows])
        _add_unit(h, more[:rows], head_eps, unit[:rows])
        product(unit[:rows], head_DK, out_BWK[first:last].reshape((rows, out_BWK.shape[2])))


@jit
def project(h_RD: Any, weight_DK: Any, eps: Any, out_RK: Any) -> None:
    """Writes the product of the unit rows with a matrix."""
    unit = np.empty_like(h_RD)
    _unit(h_RD, eps, unit)
    product(unit, weight_DK, out_RK)


@jit
def _normed(x_X: Any, gain_X: Any, eps: Any, out_X: Any) -> None:
    """Root-mean-square norm with a gain."""
    square = np.float32(0)
    for i in range(len(x_X)):
        square += x_X[i] * x_X[i]
    factor = _ONE / np.float32(math.sqrt(square / np.float32(len(x_X)) + eps))
    for i in range(len(x_X)):
        out_X[i] = x_X[i] * factor * gain_X[i]


@jit
def context(
    path: Any, groups: Any, item_BQ: Any, vector_VZ: Any, row_BQ: Any, kind_BQ: Any, watch_BQ: Any, gap_BQ: Any, surface_BQ: Any,
    position_BQ: Any, length_B: Any, further_BUC: Any, seen_BU: Any, surface_B: Any, pool_BZ: Any,
    start_BD: Any, read_LBDM: Any, write_LBMD: Any, bias_LBM: Any,
) -> None:  # fmt: skip
    """Writes the pool, the start of BOS, and the context as the blocks read it.

    Args:
        item_BQ, ..., length_B: as in `ContextBatch`; the vectors of its items are rows `row_BQ` of `vector_VZ`, and those of
            negative numbers may be any.
        further_BUC, seen_BU: elements behind the history, before their norms, and whether the target sees them.
        surface_B: where the answer is shown.
        pool_BZ: what is added to the pool of the history, and then that sum.
    """
    (batch, places), width = item_BQ.shape, vector_VZ.shape[1]
    dim, wide = path.out_DC.shape
    sets, chunk = path.key_gain_SX.shape
    heads, layers, recencies = path.recency_HLR.shape
    n_context = 1 + places + further_BUC.shape[1]
    separate = len(path.value_gain_SX)
    head_dim = path.query_LHDE.shape[3]
    vector = np.empty((places, width), np.float32)
    hidden = np.empty((places, dim), np.float32)
    element = np.empty((n_context, wide), np.float32)
    key = np.empty((sets, groups, n_context, head_dim), np.float32)
    value = np.empty((sets, groups, n_context, head_dim), np.float32)
    normed = np.empty(chunk, np.float32)
    rank = np.empty(n_context, np.int64)
    read = np.empty((dim, n_context), np.float32)
    for b in range(batch):
        for q in range(places):
            vector[q] = vector_VZ[max(0, row_BQ[b, q])]
        product(vector, path.item_ZD, hidden)
        for q in range(places):
            own = hidden[q]
            kind, watch, gap = path.kind[kind_BQ[b, q]], path.watch[watch_BQ[b, q]], path.gap[gap_BQ[b, q]]
            shown, position = path.surface[surface_BQ[b, q]], path.position[position_BQ[b, q]]
            for i in range(dim):
                sum_ = own[i] + kind[i] + watch[i] + gap[i] + shown[i] + position[i]
                own[i] = sum_ if sum_ > 0 else path.slope * sum_
        product(hidden, path.out_DC, element[1 : places + 1])
        for q in range(1, places + 1):
            for i in range(wide):
                element[q, i] += path.shift_C[i]
        element[0] = path.null_C
        rank[0] = 0
        for q in range(places):
            age = length_B[b] - q - 1
            rank[q + 1] = age + 1 if item_BQ[b, q] >= 0 and 0 <= age < recencies - 1 else -1
        for u in range(further_BUC.shape[1]):
            element[places + 1 + u] = further_BUC[b, u]
            rank[places + 1 + u] = 0 if seen_BU[b, u] else -1
        for s in range(sets):
            for n in range(n_context):
                at = s * chunk * (2 if separate else 1)
                _normed(element[n, at : at + chunk], path.key_gain_SX[s], path.eps_S2[s, 0], normed)
                for g in range(groups):
                    key[s, g, n] = normed[g * head_dim : (g + 1) * head_dim]
                if separate:
                    _normed(element[n, at + chunk : at + 2 * chunk], path.value_gain_SX[s], path.eps_S2[s, 1], normed)
                for g in range(groups):
                    value[s, g, n] = normed[g * head_dim : (g + 1) * head_dim]
        for layer in range(layers):
            for head in range(heads):
                own_set, group, first = path.set_L[layer], head * groups // heads, head * n_context
                np.dot(path.query_LHDE[layer, head], key[own_set, group].T, read)
                read_LBDM[layer, b, :, first : first + n_context] = read
                product(value[own_set, group], path.out_LHED[layer, head], write_LBMD[layer, b, first : first + n_context])
                for n in range(n_context):
                    seen = rank[n] >= 0
                    bias_LBM[layer, b, first + n] = path.recency_HLR[head, layer, rank[n]] if seen else _UNSEEN
        start_BD[b] = path.bos_D + path.surface_start[surface_B[b]]
        if len(path.pool_in_ZD):
            _pool(path, rank, kind_BQ[b], vector, pool_BZ[b])
            start_BD[b] += np.dot(pool_BZ[b], path.pool_in_ZD)


@jit
def _pool(path: Any, rank_N: Any, kind_Q: Any, vector_QZ: Any, pool_Z: Any) -> None:
    """Adds the heads of the history's pool, see pool.py."""
    places, width = vector_QZ.shape
    weight = np.empty(places, np.float32)
    for a in range(len(path.pool_kind)):
        top = _UNSEEN
        for q in range(places):
            weight[q] = _UNSEEN
            if rank_N[q + 1] > 0:
                weight[q] = path.pool_recency_AR[a, rank_N[q + 1] - 1] + path.pool_kind[a, kind_Q[q]]
                top = max(top, weight[q])
        if top == _UNSEEN:
            continue
        total = np.float32(0)
        for q in range(places):
            weight[q] = exp(weight[q] - top)
            total += weight[q]
        for q in range(places):
            weight[q] *= path.pool_gate[a, kind_Q[q]] / total
        mean = np.dot(weight, vector_QZ)
        square = np.float32(0)
        for i in range(width):
            square += mean[i] * mean[i]
        factor = _ONE / np.float32(math.sqrt(square / np.float32(width) + np.float32(1e-8)))
        for i in range(width):
            pool_Z[i] += path.pool_scale_AZ[a, i] * mean[i] * factor
