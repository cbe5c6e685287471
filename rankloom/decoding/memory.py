"""Behaviour memory: what people took after what, interpolated with the generator inside the trie.

A generator generalises; it forgets the pair that happened three times. The memory is the directed, distance-weighted
transition count of the training period plus a share of its reverse, each row scaled down by a power of its sum. For a
history it names items with an amount

    memory(i | h) = sum over the history, latest first, of decay^age * weight[h_age, i]

and the amounts of the items below a node of the trie add up, so that it is a distribution over the next code too:

    p(code | prefix, h) = (1 - s) * p_model(code | prefix, h) + s * memory(prefix + code) / memory(prefix)
    s = share * memory(prefix) / (memory(prefix) + EVIDENCE)

so that a memory that says much counts in full and a faint one hardly (as in Witten and Bell's backoff). That is the interpolation of kNN language models (Khandelwal et al.
2020) and of the copy mechanism (See et al. 2017), with behaviour as the datastore; generators and memories win on
different requests (arXiv 2603.19809). Only rows of the person's own items are read, so the cost does not grow with the
catalogue. New items are not in the memory; the model alone finds them.

Shapes: I catalogue rows, E table entries, B requests, P places of a padded history, N named (request, item) pairs.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import sparse
from torch import Tensor

from rankloom.decoding.children import Children, Indices, Named, runs
from rankloom.decoding.masks import MaskIndex

WINDOW: Final = 20
"""Steps between two interactions of a person that still count."""
STEP_DECAY: Final = 0.85
"""Weight of one more step between them."""
REVERSE: Final = 0.5
"""Weight of the pair in the other direction."""
ROW_POWER: Final = 0.4
"""Rows are divided by (1 + their sum) to this power: between counts (0) and probabilities (1)."""
AGE_DECAY: Final = 0.6
"""Weight of one more step back in the history at serving."""
EVIDENCE: Final = 0.2
"""Amount of memory that counts half."""


class BehaviourMemory:
    """The table as CSR: row i holds what followed item i.

    Args:
        start_I1: (I + 1,) int64 offsets of the rows.
        item_E: (E,) int64 catalogue rows.
        weight_E: (E,) float32.
    """

    def __init__(self, start_I1: Tensor, item_E: Tensor, weight_E: Tensor) -> None:
        self.start_I1, self.item_E, self.weight_E = start_I1.long(), item_E.long(), weight_E.float()

    @classmethod
    def fit(
        cls, user: NDArray[np.integer[Any]], item: NDArray[np.integer[Any]], n_items: int, *, top: int = 256
    ) -> BehaviourMemory:
        """From the training targets of a log, each person's in order of time; keeps the `top` entries of a row."""
        total = _pair_weights(user, item.astype(np.int64), n_items)
        scale = _row_scale(total)
        coo = sparse.csr_matrix(sparse.diags_array(scale) @ total).tocoo()
        order = np.lexsort((coo.col, -coo.data, coo.row))
        sizes = np.bincount(coo.row, minlength=n_items)
        place = np.arange(len(order)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
        kept = order[place < top]
        return cls(
            torch.from_numpy(np.r_[0, np.cumsum(np.minimum(sizes, top))]),
            torch.from_numpy(coo.col[kept].astype(np.int64)),
            torch.from_numpy(coo.data[kept].astype(np.float32)),
        )

    def recall(self, history_BP: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(N,) request, (N,) catalogue row, (N,) amount of everything that the histories bring to mind.

        Args:
            history_BP: catalogue rows, latest first, -1 for padding and for what should not count.
        """
        request, place = (history_BP >= 0).nonzero(as_tuple=True)
        source = history_BP[request, place]
        # items that came after training have no row
        known = source < len(self.start_I1) - 1
        request, place, source = request[known], place[known], source[known]
        begin = self.start_I1[source]
        size = self.start_I1[source + 1] - begin
        pair = torch.repeat_interleave(torch.arange(len(source)), size)
        entry = begin[pair] + torch.arange(len(pair)) - (size.cumsum(0) - size)[pair]
        amount = self.weight_E[entry] * AGE_DECAY ** place[pair].float()
        return request[pair], self.item_E[entry], amount

    def arrays(self) -> dict[str, NDArray[Any]]:
        return {
            "start": self.start_I1.numpy(),
            "item": self.item_E.to(torch.int32).numpy(),
            "weight": self.weight_E.numpy(),
        }

    @classmethod
    def from_arrays(cls, arrays: dict[str, NDArray[Any]]) -> BehaviourMemory:
        return cls(*(torch.from_numpy(np.asarray(arrays[name])) for name in ("start", "item", "weight")))


def _pair_weights(user: NDArray[np.integer[Any]], item: NDArray[np.integer[Any]], n_items: int) -> Any:
    """(I, I) CSR: decayed counts of item after item, and a share of the reverse."""
    left, right, weight = [], [], []
    for gap in range(1, WINDOW + 1):
        same = user[gap:] == user[:-gap]
        if not same.any():
            break
        left.append(item[:-gap][same])
        right.append(item[gap:][same])
        weight.append(np.full(int(same.sum()), STEP_DECAY ** (gap - 1)))
    if not left:
        return sparse.csr_matrix((n_items, n_items))
    entries: Any = (np.concatenate(weight), (np.concatenate(left), np.concatenate(right)))
    forward: Any = sparse.coo_matrix(entries, shape=(n_items, n_items)).tocsr()
    # a repeat has no direction: it is counted once
    total: Any = forward + REVERSE * forward.T.tocsr() - REVERSE * sparse.diags_array(forward.diagonal())
    total = sparse.csr_matrix(total)
    total.eliminate_zeros()
    return total


def _row_scale(weights: Any) -> NDArray[np.float64]:
    scale: NDArray[np.float64] = (1 + np.asarray(weights.sum(1)).ravel()) ** -ROW_POWER
    return scale


class Guide:
    """The memory of a batch of requests laid over a trie.

    Args:
        index: the trie and the leaves of its items.
        recalled: what `BehaviourMemory.recall` returned.
        share: weight of the memory where it has much to say, in [0, 1).
    """

    def __init__(self, index: MaskIndex, recalled: tuple[Tensor, Tensor, Tensor], *, share: float) -> None:
        if not 0 <= share < 1:
            raise ValueError(f"the share of the memory is {share}, not in [0, 1)")
        self.share = share
        self.n_levels = index.trie.n_levels
        self._sizes = [*(index.trie.n_nodes(depth) for depth in range(self.n_levels + 1)), index.n_rows]
        request, item, amount = (own.numpy() for own in recalled)
        known = index.unfiltered.allowed_I.numpy()[item]
        key, item_amount = _summed(request[known] * index.n_rows + item[known], amount[known].astype(np.float64))
        request, item = np.divmod(key, max(1, index.n_rows))
        leaf = index.leaf_of_row.numpy()[item]
        by_leaf, amount = _summed(request * max(1, self._sizes[-2]) + leaf, item_amount)
        request, leaf = np.divmod(by_leaf, max(1, self._sizes[-2]))
        # per depth 0..L + 1 the nodes (then catalogue rows) that the memory names, as keys, and what it has below them
        self._named: list[Named] = []
        self._keys: list[Indices] = []
        self._amounts: list[NDArray[np.float64]] = []
        above = np.zeros_like(leaf)
        for depth, node in enumerate([above, *index.trie.path(leaf)]):
            # nodes come in the order of their leaves, so that nothing is sorted again
            first = np.flatnonzero(runs(request, node))
            named = Named(request[first], node[first], above[first])
            self._named.append(named)
            self._keys.append(named.request_M * self._sizes[depth] + named.node_M)
            self._amounts.append(np.add.reduceat(amount, first) if len(first) else amount)
            above = node
        self._keys.append(key)
        self._amounts.append(item_amount)

    def _amount(self, depth: int, request_P: Indices, node_P: Indices) -> NDArray[np.float64]:
        keys = self._keys[depth]
        if not len(keys):
            return np.zeros(node_P.shape)
        wanted = request_P * self._sizes[depth] + node_P
        at = np.minimum(keys.searchsorted(wanted), len(keys) - 1)
        return np.where(keys[at] == wanted, self._amounts[depth][at], 0.0)

    def amount(self, depth: int, request: Tensor, node: Tensor) -> Tensor:
        """(P,) memory below each (request, node of a depth 0..L); depth L + 1 asks for catalogue rows."""
        return torch.from_numpy(self._amount(depth, request.numpy(), node.numpy()))

    def named(self, depth: int, request: int) -> tuple[Indices, Indices, NDArray[np.float64]]:
        """(M,) nodes of a depth 0..L that the memory names for a request, ascending, their parents, and what it has below
        them."""
        named = self._named[depth]
        own = named.range(request)
        return named.node_M[own], named.parent_M[own], self._amounts[depth][own]

    def items(self, item_BC: Tensor) -> tuple[Tensor, Tensor]:
        """(B, C) memory of catalogue rows (0 for negative ones) and (B, 1) all that each history brings to mind."""
        request = torch.arange(len(item_BC))[:, None]
        told = self.amount(self.n_levels + 1, request.expand_as(item_BC), item_BC.clamp_min(0))
        return torch.where(item_BC >= 0, told, 0.0), self.amount(0, request, torch.zeros_like(request))

    def mix(self, log_prob: Tensor, depth: int, request: Tensor, parent: Tensor, child: Tensor) -> Tensor:
        """(P,) log-probabilities of continuing `parent` (depth - 1) with `child` (depth), memory and model together."""
        whole = self._amount(depth - 1, request.numpy(), parent.numpy())
        part = self._amount(depth, request.numpy(), child.numpy())
        own = log_prob.numpy() + self._left(whole)
        return torch.from_numpy(np.logaddexp(own, self._told(part, whole)))

    def mix_children(self, log_prob_C: NDArray[np.float32], children: Children) -> None:
        """`mix` of all children of a level's beams, in place; only those that the memory names are looked at one by one."""
        depth = children.level + 1
        whole_N = self._amount(depth - 1, children.request_N, children.node_N)
        if not whole_N.any():
            return
        log_prob_C += children.spread(self._left(whole_N))
        which, owner, place = children.find(self._named[depth])
        told = self._told(self._amounts[depth][which], whole_N[owner])
        # a broken model's scores are told by whoever asks for them
        with np.errstate(invalid="ignore"):
            log_prob_C[place] = np.logaddexp(log_prob_C[place], told)

    def _left(self, whole: NDArray[np.float64]) -> NDArray[np.float32]:
        """Log of what the memory leaves to the model."""
        return np.log1p(-self.share * whole / (whole + EVIDENCE)).astype(np.float32)

    def _told(self, part: NDArray[np.float64], whole: NDArray[np.float64]) -> NDArray[np.float32]:
        """Log of what the memory gives to a continuation."""
        with np.errstate(divide="ignore"):
            # share * whole / (whole + EVIDENCE) of part / whole
            return np.log(self.share * part / (whole + EVIDENCE)).astype(np.float32)


def _summed(key: Indices, amount: NDArray[np.float64]) -> tuple[Indices, NDArray[np.float64]]:
    """Distinct keys, ascending, and what belongs to each."""
    order = key.argsort(kind="stable")
    key = key[order]
    first = np.flatnonzero(runs(key))
    return key[first], np.add.reduceat(amount[order], first) if len(first) else amount[:0]


def latest_first(item_E: Tensor, counts_E: Tensor, start_B: Tensor, stop_B: Tensor, *, places: int = 20) -> Tensor:
    """(B, places) catalogue rows of the latest interactions of each row range, -1 where there are fewer.

    Args:
        counts_E: which interactions count as taken (a dislike does not).
    """
    if not len(item_E):
        return torch.full((len(start_B), places), -1, dtype=torch.long)
    index = stop_B[:, None] - 1 - torch.arange(places)
    inside = index >= start_B[:, None]
    index = index.clamp_min(0)
    return torch.where(inside & counts_E[index], item_E[index], -1)


def in_history(item_BC: Tensor, item_E: Tensor, start_B: Tensor, stop_B: Tensor) -> Tensor:
    """(B, C) bool: whether each request's items are among the interactions of its row range."""
    batch = len(item_BC)
    size_B = (stop_B - start_B).clamp_min(0)
    request = torch.repeat_interleave(torch.arange(batch), size_B)
    entry = start_B[request] + torch.arange(len(request)) - (size_B.cumsum(0) - size_B)[request]
    # negative rows (padding) keep a number of their own in every request
    known = [int(own.max()) for own in (item_BC, item_E) if own.numel()]
    span = max([0, *known]) + 2
    own = item_BC.clamp_min(-1) + 1 + torch.arange(batch)[:, None] * span
    return torch.isin(own, item_E[entry].clamp_min(-1) + 1 + request * span)
