"""From the logits of a level to the best continuations of one request, in one pass over its beams' children.

Only the best are ever held: a heap as wide as the beam, whose worst is the bar for what follows. Beams come best first, so
that the bar rises early, and a beam whose most probable code stays under it is not looked through at all. What the memory
names is mixed one by one, apart from that pass, since it may pass the bar where the model alone does not. Filter and
exclusions are asked only about what passes the bar. Nothing is approximated: what is left out could not have been kept.

Shapes: W beams of a request, K codes, P places for continuations, n_l nodes of the level's children, M named children, X excluded nodes.
"""

from __future__ import annotations

import math
from typing import Any, Final

import numpy as np

from rankloom.kernels import SMALLEST, exp, has, jit, ordered, place, unordered
from rankloom.semantic.trie_kernels import span

_NOTHING: Final = np.float32(-np.inf)
_NO_NUMBER: Final = np.float32(np.nan)
_HIGH: Final = np.int64(2**32)
_LOW: Final = np.int64(2**32 - 1)


@jit
def _log_sum(row: Any, top: Any) -> Any:
    """Log of the sum of exponentials of numbers of which `top` is the largest."""
    total = np.float32(0)
    for i in range(len(row)):
        total += exp(row[i] - top)
    return top + np.float32(math.log(total))


@jit
def _top(row: Any) -> Any:
    """The largest, or NaN where one is not a number or none is finite."""
    most, broken = SMALLEST, np.int32(0)
    for i in range(len(row)):
        most = max(most, ordered(row[i]))
        broken += np.int32(row[i] != row[i])
    top = unordered(most)
    return top if broken == 0 and math.isfinite(top) else _NO_NUMBER


@jit
def normalise(logits_WK: Any, log_sum_W: Any) -> None:
    """What `extend` does with logits before it looks at a child: for those who measure what the children cost."""
    for w in range(len(logits_WK)):
        log_sum_W[w] = _log_sum(logits_WK[w], _top(logits_WK[w]))


@jit
def _push(heap: Any, owner: Any, held: Any, key: Any, beam: Any) -> Any:
    """Takes a key of beam `beam` into a full or growing heap, whose least is at 0; how many it holds."""
    if held < len(heap):
        at = held
        while at > 0 and heap[(at - 1) // 2] > key:
            above = (at - 1) // 2
            heap[at], owner[at] = heap[above], owner[above]
            at = above
        heap[at], owner[at] = key, beam
        return held + 1
    if key > heap[0]:
        _sink(heap, owner, held, key, beam)
    return held


@jit
def _sink(heap: Any, owner: Any, held: Any, key: Any, beam: Any) -> None:
    """Puts a key in place of the least."""
    at = 0
    while True:
        below = 2 * at + 1
        if below >= held:
            break
        if below + 1 < held and heap[below + 1] < heap[below]:
            below += 1
        if heap[below] >= key:
            break
        heap[at], owner[at] = heap[below], owner[below]
        at = below
    heap[at], owner[at] = key, beam


@jit
def _key(score: Any, node: Any) -> Any:
    """A whole number that is larger for a better score and, of equal ones, for the earlier node."""
    return np.int64(ordered(score)) * _HIGH + (_LOW - node)


@jit
def _bar(heap: Any, held: Any) -> Any:
    """What a score must reach to be kept."""
    return unordered(np.int32(heap[0] // _HIGH)) if held == len(heap) else _NOTHING


@jit
def _both(a: Any, b: Any) -> Any:
    """Log of the sum of two probabilities."""
    more, less = max(a, b), min(a, b)
    return more if less == _NOTHING else np.float32(more + math.log1p(math.exp(less - more)))


@jit
def _normalise(value: Any) -> Any:
    """Log-softmax, in place; False where there is none."""
    top = _top(value)
    log_sum = _log_sum(value, top)
    for i in range(len(value)):
        value[i] -= log_sum
    return math.isfinite(top)


@jit
def extend(
    logits_WK: Any, node_W: Any, score_W: Any, start: Any, further: Any, runs: Any, run: Any, codes: Any,
    over_children: Any, shift_n: Any, counts_n: Any, blocked_X: Any, named_M: Any, parent_M: Any, amount_M: Any,
    above: Any, above_amount: Any, share: Any, evidence: Any, beam: Any, out_3P: Any, out_score: Any,
) -> Any:  # fmt: skip
    """Writes the best legal continuations, best first, `beam` at most, ties by node; how many, or -1 where a beam's logits have
    no log-softmax.

    Args:
        logits_WK: of the next code.
        node_W, score_W: the beams, -1 for none, best first.
        start, further, runs, run: where the trie keeps their children (`Offsets`); `codes` are these nodes' last codes.
        over_children: normalise over the children and not over the codebook.
        shift_n: added to the log-probabilities of nodes before these are normalised again; empty for none.
        counts_n: allowed items below nodes; empty where all are allowed.
        blocked_X: nodes that exclusions have emptied, ascending.
        named_M, parent_M, amount_M: what the memory names at this depth; `above`, `above_amount` one depth up.
        share, evidence: see `Guide`.
        out_3P: node, parent and code of each; places beyond get -1, 0 and 0, and a score of -inf.
    """
    heap, owner = np.empty(beam, np.int64), np.empty(beam, np.int64)
    held = 0
    spelled = over_children or len(shift_n) > 0
    scratch = np.empty(logits_WK.shape[1] if spelled else 0, np.float32)
    begin_W, end_W = np.empty(len(node_W), np.int64), np.empty(len(node_W), np.int64)
    # one after the other, so that they wait for memory together
    for w in range(len(node_W)):
        if node_W[w] >= 0:
            begin_W[w], end_W[w] = span(start, further, runs, run, node_W[w])
    for w in range(len(node_W)):
        begin, end, base, row = begin_W[w], end_W[w], score_W[w], logits_WK[w]
        # no continuation is more probable than its beam
        if node_W[w] < 0 or base < _bar(heap, held):
            continue
        top = np.float32(0) if over_children else _top(row)
        if math.isnan(top):
            return -1
        whole, left = 0.0, np.float32(0)
        first = last = 0
        if len(above):
            at = place(above, node_W[w], 0, len(above))
            if at < len(above) and above[at] == node_W[w]:
                whole = above_amount[at]
                left = np.float32(math.log1p(-share * whole / (whole + evidence)))
                first = last = place(parent_M, node_W[w], 0, len(parent_M))
                while last < len(parent_M) and parent_M[last] == node_W[w]:
                    last += 1
        if spelled:
            value = scratch[: end - begin]
            own = np.float32(0) if over_children else _log_sum(row, top)
            for c in range(begin, end):
                value[c - begin] = row[codes[c]] - own
            if over_children and not _normalise(value):
                return -1
            if last > first:
                for i in range(len(value)):
                    value[i] += left
                for m in range(first, last):
                    told = np.float32(math.log(share * amount_M[m] / (whole + evidence)))
                    value[named_M[m] - begin] = _both(value[named_M[m] - begin], told)
            if len(shift_n):
                for i in range(len(value)):
                    value[i] += shift_n[begin + i]
                if not _normalise(value):
                    return -1
            bar = _bar(heap, held)
            for i in range(len(value)):
                score = value[i] + base
                if score >= bar and _legal(begin + i, counts_n, blocked_X):
                    held = _push(heap, owner, held, _key(score, begin + i), w)
                    bar = _bar(heap, held)
            continue
        log_sum = _log_sum(row, top)
        for m in range(first, last):
            child = named_M[m]
            told = np.float32(math.log(share * amount_M[m] / (whole + evidence)))
            score = _both(row[codes[child]] - log_sum + left, told) + base
            if score >= _bar(heap, held) and _legal(child, counts_n, blocked_X):
                held = _push(heap, owner, held, _key(score, child), w)
        own = (left - log_sum) + base
        bar = _bar(heap, held)
        if top + own < bar:
            continue
        for c in range(begin, end):
            score = row[codes[c]] + own
            if score >= bar and not (last > first and has(named_M, c, first, last)) and _legal(c, counts_n, blocked_X):
                held = _push(heap, owner, held, _key(score, c), w)
                bar = _bar(heap, held)
    found = held
    while held > 0:
        key, w = heap[0], owner[0]
        held -= 1
        _sink(heap, owner, held, heap[held], owner[held])
        node = _LOW - (key & _LOW)
        out_3P[0, held], out_3P[1, held], out_3P[2, held] = node, w, codes[node]
        out_score[held] = unordered(np.int32(key // _HIGH))
    for i in range(found, len(out_score)):
        out_3P[0, i], out_3P[1, i], out_3P[2, i], out_score[i] = -1, 0, 0, _NOTHING
    return found


@jit
def _legal(node: Any, counts_n: Any, blocked_X: Any) -> Any:
    if len(counts_n) and counts_n[node] <= 0:
        return False
    return not (len(blocked_X) and has(blocked_X, node, 0, len(blocked_X)))
