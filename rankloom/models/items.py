"""What the model knows of an item: its semantic ID, its content vector, its attributes, and a learned vector if training
saw it taken.

The vector z_i = LayerNorm-free sum of
    a learned vector of the item, trusted as far as it was learned: scaled by n / (n + k) for an item taken n times in
    training (zero for one that nobody took), and hidden from a random share of items in every training step, so that the
    others must be able to stand alone,
    a projection of the frozen content vector (text, aligned vector, own vectors),
    one learned vector per code of the semantic ID,
    one learned vector per attribute (attributes.py).
The same z feeds the context pathway and scores candidates in the selection head.

Shapes: I catalogue size, Q levels, D width of z, C content width, F attribute tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from rankloom.models.attributes import N_ATTRIBUTES

_PART: Final = 65_536
"""Rows whose vectors are worked out at a time."""


class ItemEncoder(nn.Module):
    """z for any set of catalogue rows.

    Args:
        dim: width of z.
        n_trained: items with a learned vector; rows beyond have none.
        codes_IQ: semantic IDs of the whole catalogue.
        content_IC: frozen content vectors of the whole catalogue.
        codebook_sizes: codes per level.
        item_dropout: share of learned vectors hidden in a training step.
        trust_I: (n_trained,) in [0, 1], how far the learned vector of each counts (`trust`); None is 1 for all.
        attributes_IF: (I, F) tokens of `item_attributes`, or None.
        created_I: (I,) float64 seconds when each item was listed, NaN unknown; None is all unknown.
    """

    codes_IQ: Tensor
    content_IC: Tensor
    created_I: Tensor
    trust_I: Tensor
    attributes_IF: Tensor | None

    def __init__(
        self,
        *,
        dim: int,
        n_trained: int,
        codes_IQ: Tensor,
        content_IC: Tensor,
        codebook_sizes: Sequence[int],
        learned: bool = True,
        item_dropout: float = 0.0,
        dropout: float = 0.0,
        trust_I: Tensor | None = None,
        attributes_IF: Tensor | None = None,
        created_I: Tensor | None = None,
    ) -> None:
        super().__init__()
        self.dim = dim
        self.n_trained = n_trained
        self.item_dropout = item_dropout
        self.learned = nn.Embedding(n_trained, dim) if learned else None
        if self.learned is not None:
            nn.init.normal_(self.learned.weight, std=0.02)
        self.content = nn.Linear(content_IC.shape[1], dim, bias=False)
        self.codes = nn.ModuleList(nn.Embedding(size, dim) for size in codebook_sizes)
        for table in self.codes:
            nn.init.normal_(table.weight, std=0.02)  # type: ignore[arg-type]
        self.attributes = nn.Embedding(N_ATTRIBUTES, dim) if attributes_IF is not None else None
        self.dropout = nn.Dropout(dropout)
        self.register_buffer("codes_IQ", codes_IQ.long(), persistent=False)
        self.register_buffer("content_IC", content_IC.float(), persistent=False)
        self.register_buffer("attributes_IF", attributes_IF, persistent=False)
        self.register_buffer("created_I", _known_or_nan(created_I, len(codes_IQ)), persistent=False)
        self._table: _Table | None = None
        self.register_buffer("trust_I", torch.ones(n_trained) if trust_I is None else trust_I.float())

    @property
    def n_items(self) -> int:
        return self.codes_IQ.shape[0]

    def keep_mask(self, generator: torch.Generator | None = None) -> Tensor | None:
        """(n_trained,) which learned vectors this training step may use; None outside training."""
        if not self.training or self.item_dropout == 0 or self.learned is None:
            return None
        return torch.rand(self.n_trained, generator=generator, device=self.content_IC.device) >= self.item_dropout

    def forward(self, rows: Tensor, keep: Tensor | None = None) -> Tensor:
        """(..., D) vectors of catalogue rows; negative rows (padding) read row 0 and must be masked by the caller."""
        rows = rows.clamp_min(0)
        if self._table is not None and keep is None and self._table.serves(self):
            return functional.embedding(rows, self._table.vectors_ID)
        return self._vectors(rows, keep)

    def table(self) -> NDArray[np.float32] | None:
        """(I, D) every vector of the catalogue, if it has been worked out and would be the same now; not to be changed."""
        return self._table.array if self._table is not None and self._table.serves(self) else None

    def _vectors(self, rows: Tensor, keep: Tensor | None) -> Tensor:
        z = self.content(self.content_IC[rows].to(self.content.weight.dtype))
        codes = self.codes_IQ[rows]
        for level, table in enumerate(self.codes):
            z = z + table(codes[..., level])
        if self.attributes is not None and self.attributes_IF is not None:
            tokens = self.attributes_IF[rows]
            z = z + (self.attributes(tokens) * (tokens > 0)[..., None].to(z.dtype)).sum(-2)
        if self.learned is not None:
            own = rows.clamp_max(self.n_trained - 1)
            trust = self.trust_I[own] * (rows < self.n_trained)
            if keep is not None:
                trust = trust * keep[own]
            z = z + self.learned(own) * trust[..., None].to(z.dtype)
        return self.dropout(z)  # type: ignore[no-any-return]

    @torch.no_grad()
    def tabulate(self) -> None:
        """Works out every vector of the catalogue; until weights or catalogue change, one without gradients is looked up."""
        self._table = None
        if self.training or not self.n_items:
            return
        rows = torch.arange(self.n_items, device=self.codes_IQ.device)
        parts = [self._vectors(rows[at : at + _PART], None) for at in range(0, len(rows), _PART)]
        self._table = _Table(torch.cat(parts), self)

    def __getstate__(self) -> dict[str, Any]:
        """A copy is made to be given another catalogue."""
        return {**vars(self), "_table": None}

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        self._table = None
        return super()._apply(fn, recurse)  # type: ignore[no-untyped-call, no-any-return]

    def replace_catalogue(
        self,
        codes_IQ: Tensor,
        content_IC: Tensor,
        *,
        attributes_IF: Tensor | None = None,
        created_I: Tensor | None = None,
    ) -> None:
        """Swaps in a catalogue whose first `n_trained` rows are the trained ones (items were added or removed)."""
        self._table = None
        device = self.codes_IQ.device
        self.codes_IQ = codes_IQ.long().to(device)
        self.content_IC = content_IC.float().to(device)
        self.attributes_IF = None if attributes_IF is None else attributes_IF.to(device)
        self.created_I = _known_or_nan(created_I, len(codes_IQ)).to(device)


class _Table:
    """Every vector of a catalogue, and what it was made of: the tensors by where they were found, as they were."""

    def __init__(self, vectors_ID: Tensor, encoder: ItemEncoder) -> None:
        self.vectors_ID = vectors_ID
        self.array: NDArray[np.float32] = vectors_ID.numpy() if vectors_ID.device.type == "cpu" else np.zeros((0, 0), np.float32)
        modules = list(encoder.modules())
        kept: list[tuple[dict[str, Any], str]] = [(own._parameters, name) for own in modules for name in own._parameters]
        kept += [(encoder._buffers, name) for name in encoder._buffers]
        self._made_of = [(found, name, found[name], _version(found[name])) for found, name in kept]
        self._parts = [(own._modules, name, own._modules[name]) for own in modules for name in own._modules]

    def serves(self, encoder: ItemEncoder) -> bool:
        """Whether `encoder` would compute the same now, and no gradient is asked for."""
        if encoder.training or torch.is_grad_enabled():
            return False
        # asked in every request, so without looking for the tensors again
        for found, name, tensor, version in self._made_of:
            if found.get(name) is not tensor or (tensor is not None and tensor._version != version):
                return False
        return all(found.get(name) is part for found, name, part in self._parts)


def _version(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor._version


def trust(counts_I: Tensor, prior: float) -> Tensor:
    """(I,) n / (n + prior) for items taken n times in training: a vector learned from little says little."""
    counts = counts_I.float()
    return torch.where(counts > 0, counts / (counts + prior), 0.0)


def _known_or_nan(created_I: Tensor | None, n_items: int) -> Tensor:
    return torch.full((n_items,), float("nan"), dtype=torch.float64) if created_I is None else created_I.double()
