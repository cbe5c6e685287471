"""What the model knows of an item: its semantic ID, its content vector, and a learned vector if it was in training.

The vector z_i = LayerNorm-free sum of
    a learned vector of the item (zero for items that came after training, and hidden from a random share of items in
    every training step, so that the other two must be able to stand alone),
    a projection of the frozen content vector (text, aligned vector, own vectors),
    one learned vector per code of the semantic ID.
The same z feeds the context pathway and scores candidates in the selection head.

Shapes: I catalogue size, Q levels, D width of z, C content width.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class ItemEncoder(nn.Module):
    """z for any set of catalogue rows.

    Args:
        dim: width of z.
        n_trained: items with a learned vector; rows beyond have none.
        codes_IQ: semantic IDs of the whole catalogue.
        content_IC: frozen content vectors of the whole catalogue.
        codebook_sizes: codes per level.
        item_dropout: share of learned vectors hidden in a training step.
    """

    codes_IQ: Tensor
    content_IC: Tensor

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
        self.dropout = nn.Dropout(dropout)
        self.register_buffer("codes_IQ", codes_IQ.long(), persistent=False)
        self.register_buffer("content_IC", content_IC.float(), persistent=False)

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
        z = self.content(self.content_IC[rows].to(self.content.weight.dtype))
        codes = self.codes_IQ[rows]
        for level, table in enumerate(self.codes):
            z = z + table(codes[..., level])
        if self.learned is not None:
            known = rows < self.n_trained
            if keep is not None:
                known = known & keep[rows.clamp_max(self.n_trained - 1)]
            z = z + self.learned(rows.clamp_max(self.n_trained - 1)) * known[..., None].to(z.dtype)
        return self.dropout(z)  # type: ignore[no-any-return]

    def replace_catalogue(self, codes_IQ: Tensor, content_IC: Tensor) -> None:
        """Swaps in a catalogue whose first `n_trained` rows are the trained ones (items were added or removed)."""
        self.codes_IQ = codes_IQ.long().to(self.codes_IQ.device)
        self.content_IC = content_IC.float().to(self.content_IC.device)
