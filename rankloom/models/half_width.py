"""The lazy decoder in bfloat16, as decoding runs it where that was asked for: folded blocks and context pathways of half the width.

The model itself stays as it is, fp32, and is what everything but decoding reads; this is a copy of the matrices that are
multiplied most. Heads, selection, the pool and the vectors of items are the model's own (folded.py says what else is fp32).
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

import torch
from torch import nn

from rankloom.models.folded import FoldedDecoder, unchanged
from rankloom.models.layers import RMSNorm

if TYPE_CHECKING:
    from rankloom.models.lazy_decoder import LazyDecoder


class HalfWidth:
    """See the module's docstring. It never changes the model; `fresh` says whether it is still that model.

    Attributes:
        decoder: the folded blocks.
        context: the pathways; they take fp32 vectors and give bfloat16 keys and values.
    """

    def __init__(self, model: LazyDecoder) -> None:
        norms = [own for own in model.head_norms if isinstance(own, RMSNorm)]
        heads = [own for own in model.heads if isinstance(own, nn.Linear)]
        self.decoder = FoldedDecoder(
            model.lazy_blocks(), norms, heads, model.select_norm, model.select, dtype=torch.bfloat16
        )
        self.context = copy.deepcopy(model.context).to(torch.bfloat16).requires_grad_(False)
        self._seen = [*self.decoder.made_of, *((own, own._version) for own in model.context.parameters())]

    @property
    def fresh(self) -> bool:
        """Whether the weights are still those it was made of."""
        return unchanged(self._seen)
