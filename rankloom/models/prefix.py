"""What is computed once for a batch of requests, and what is kept of the codes taken so far.

Shapes: B requests, W beams, N context elements, D width of item vectors, P codes so far, H heads, E head width.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from torch import Tensor

from rankloom.models.context import ContextKV
from rankloom.models.folded import FoldedContext, FoldedDecoder

if TYPE_CHECKING:
    from rankloom.models.compiled import CompiledSteps
    from rankloom.models.graph_decoder import Question
    from rankloom.models.kept_context import KeptContext


@dataclass
class Prefix:
    """Everything about a batch of requests that no beam changes: computed once, and the plain context only if asked for.

    Attributes:
        plain: makes the context's keys and values, recency ranks and visibility.
        begun: hidden state and cache after BOS, once somebody asked; search and selection both start there.
        decoder: the folded blocks that continue it, where no gradient is asked for; None leaves it to the plain ones.
        folded: the context as folded blocks read it.
        compiled: the kernels that continue it instead, with the context as they read it.
        narrow: the context in another width than the plain one, for folded blocks of that width.
        kept: of each request what its next one may use again (kept_context.py); None where that was not asked for or is not
            worth it.
        question: the batch itself, where a captured graph is to compute all of it with the search.
        user_BD: selection queries, where the graph has told them.
        eager: the same requests as plain or folded blocks read them, once somebody asked for a step beside the graph.
    """

    plain: Callable[[], tuple[ContextKV, Tensor, Tensor]]
    surface_B: Tensor
    pool_BD: Tensor | None = None
    begun: tuple[Tensor, SuffixCache] | None = None
    decoder: FoldedDecoder | None = None
    folded: FoldedContext | None = None
    compiled: CompiledSteps | None = None
    narrow: tuple[ContextKV, Tensor, Tensor] | None = None
    kept: list[KeptContext | None] | None = None
    question: Question | None = None
    user_BD: Tensor | None = None
    eager: Prefix | None = None

    @cached_property
    def _context(self) -> tuple[ContextKV, Tensor, Tensor]:
        return self.plain()

    @property
    def reading(self) -> tuple[ContextKV, Tensor, Tensor]:
        """The context as the folded blocks read it: keys and values in their width, ranks, visibility."""
        return self._context if self.narrow is None else self.narrow

    @property
    def kv(self) -> ContextKV:
        return self._context[0]

    @property
    def rank_B1N(self) -> Tensor:
        return self._context[1]

    @property
    def visible_B1N(self) -> Tensor:
        return self._context[2]

    @property
    def batch_size(self) -> int:
        return len(self.surface_B)


@dataclass
class SuffixCache:
    """Per layer the keys and values of the codes chosen so far, (B * W, P, 2, H, E), and the beam count W."""

    layers: list[Tensor]
    n_beams: int
