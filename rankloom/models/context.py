"""The context processor: user, history and query become keys and values without any context computation.

OneRec-V2 section 4.2. Every element (a past interaction, a query, the user's static features, a constant null element)
goes through its pathway Dense - LeakyReLU - Dense into d_context = S_kv * L_kv * G_kv * E, is cut into chunks, and each
chunk is normed into one K or V of one of the L_kv sets. Elements never look at each other, so a cached context grows
by appending.

Which target sees which element is a matter of two integers: element n is visible to target t when
`visible_from[n] <= t`. An interaction at place p is visible from p + 1, the query of target p from p, statics from 0.

Shapes: B users, N context elements, T targets, Q levels of a semantic ID, G K/V groups, E head width.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rankloom.config import ModelConfig
from rankloom.data.schema import EVENT_KINDS, SURFACES
from rankloom.models.items import ItemEncoder
from rankloom.models.layers import RMSNorm

_ROWS: Final = 16
"""A product of fewer rows adds up in another order: beside others an element would not be, to the bit, what it is alone."""
N_WATCH_BUCKETS: Final = 12
N_GAP_BUCKETS: Final = 32
N_POSITION_BUCKETS: Final = 12
N_USER_FEATURES: Final = 4096


@dataclass
class ContextBatch:
    """What the model is conditioned on. Rows are padded at the end.

    Attributes:
        item_BT: (B, P) catalogue rows of the history, -1 for padding.
        kind_BT, watch_BT, gap_BT, surface_BT, position_BT: (B, P) bucketed features of each interaction.
        query_BQD: (B, R, D_text) vectors of queries, or None.
        query_from_BQ: (B, R) the target from which each query is visible; a large number for padding.
        user_BF: (B, F) hashed static features of the user, 0 for none, or None.
        length_B: (B,) interactions of each row.
    """

    item_BT: Tensor
    kind_BT: Tensor
    watch_BT: Tensor
    gap_BT: Tensor
    surface_BT: Tensor
    position_BT: Tensor
    length_B: Tensor
    query_BQD: Tensor | None = None
    query_from_BQ: Tensor | None = None
    user_BF: Tensor | None = None

    def to(self, device: torch.device | str) -> ContextBatch:
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        moved: dict[str, Any] = {name: None if value is None else value.to(device) for name, value in values.items()}
        return ContextBatch(**moved)

    @property
    def batch_size(self) -> int:
        return self.item_BT.shape[0]


@dataclass
class ContextKV:
    """The L_kv ready-made key/value sets, (B, G, N, E) each, and who may see what.

    Attributes:
        visible_from_BN: (B, N) first target that sees an element.
        is_history_BN: (B, N) whether an element is an interaction (and has a recency).
        length_B: (B,) interactions per row; at serving the one target is t = length.
    """

    keys: list[Tensor]
    values: list[Tensor]
    visible_from_BN: Tensor
    is_history_BN: Tensor
    length_B: Tensor


class ContextProcessor(nn.Module):
    """Elements to K/V sets. See the module's docstring."""

    def __init__(self, config: ModelConfig, *, items: ItemEncoder, text_dim: int) -> None:
        super().__init__()
        self.config = config
        self.g_kv = config.g_kv or config.n_heads
        self.head_dim = config.d_model // config.n_heads
        d_context = config.s_kv * config.l_kv * self.g_kv * self.head_dim
        # OneRec-V2 section 4.4: sparse features are d_model / 20 wide
        width = max(8, config.d_model // 20)
        self.kind = nn.Embedding(len(EVENT_KINDS), width)
        self.watch = nn.Embedding(N_WATCH_BUCKETS, width)
        self.gap = nn.Embedding(N_GAP_BUCKETS, width)
        self.surface = nn.Embedding(len(SURFACES), width)
        self.position = nn.Embedding(N_POSITION_BUCKETS, width)
        self.history_path = _pathway(items.dim + 5 * width, config.d_model, d_context)
        self.query_path = _pathway(text_dim, config.d_model, d_context)
        self.user = nn.EmbeddingBag(N_USER_FEATURES, 4 * width, mode="sum", padding_idx=0)
        self.user_path = _pathway(4 * width, config.d_model, d_context)
        self.null = nn.Parameter(torch.randn(d_context) * 0.02)
        chunk = self.g_kv * self.head_dim
        self.key_norms = nn.ModuleList(RMSNorm(chunk) for _ in range(config.l_kv))
        self.value_norms = nn.ModuleList(RMSNorm(chunk) for _ in range(config.l_kv if config.s_kv == 2 else 0))
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, batch: ContextBatch, item_vectors: Tensor) -> ContextKV:
        """
        Args:
            batch: the context.
            item_vectors: (B, P, D_item) encoded items of `batch.item_BT` (padding rows may hold anything).
        """
        features = (batch.kind_BT, batch.watch_BT, batch.gap_BT, batch.surface_BT, batch.position_BT)
        history_BTD = self.interactions(item_vectors, *features)
        further, _ = self._further(batch)
        null = self.null.expand(batch.batch_size, 1, -1)
        elements = self.dropout(torch.cat([null, history_BTD, *further], dim=1))
        return self.as_kv(batch, self.normed(elements))

    def interactions(
        self, vector: Tensor, kind: Tensor, watch: Tensor, gap: Tensor, surface: Tensor, position: Tensor
    ) -> Tensor:
        """(..., d_context) elements of interactions before their norms, from item vectors (..., D_item) and (...) features."""
        own = [self.kind(kind), self.watch(watch), self.gap(gap), self.surface(surface), self.position(position)]
        features = torch.cat([vector.to(self.null.dtype), *own], dim=-1)
        n_rows = features.shape[:-1].numel()
        if n_rows < _ROWS and not torch.is_grad_enabled():
            rows = F.pad(features.view(n_rows, -1), (0, 0, 0, _ROWS - n_rows))
            few: Tensor = self.history_path(rows)[:n_rows].view(*features.shape[:-1], -1)
            return few
        out: Tensor = self.history_path(features)
        return out

    def normed(self, elements: Tensor) -> list[Tensor]:
        """The chunks of elements (..., d_context), normed: of each set keys, and values if they differ."""
        chunks = elements.chunk(self.config.l_kv * self.config.s_kv, dim=-1)
        norms = list(self.key_norms)
        if self.config.s_kv == 2:
            norms = [own for pair in zip(self.key_norms, self.value_norms, strict=True) for own in pair]
        return [norm(chunk) for norm, chunk in zip(norms, chunks, strict=True)]

    def as_kv(self, batch: ContextBatch, chunks: list[Tensor]) -> ContextKV:
        """The context of normed elements (B, N, C) in their order: null, history, user, queries."""
        batch_size, places = batch.item_BT.shape
        device = batch.item_BT.device
        place = torch.arange(places, device=device).expand(batch_size, places)
        seen_from = torch.where(batch.item_BT >= 0, place + 1, torch.iinfo(torch.int32).max)
        visible_from = [torch.zeros(batch_size, 1, dtype=place.dtype, device=device), seen_from, *self._further_from(batch)]
        visible_from_BN = torch.cat(visible_from, dim=1)
        is_history = torch.zeros(visible_from_BN.shape, dtype=torch.bool, device=device)
        is_history[:, 1 : places + 1].fill_(True)
        own = [self._heads(chunk) for chunk in chunks]
        keys, values = own[:: self.config.s_kv], own[self.config.s_kv - 1 :: self.config.s_kv]
        return ContextKV(keys, values, visible_from_BN, is_history, batch.length_B)

    def _further(self, batch: ContextBatch) -> tuple[list[Tensor], list[Tensor]]:
        """Elements behind the history, the user and queries, and (B, U) from which target each is visible."""
        parts = []
        if batch.user_BF is not None:
            parts.append(self.user_path(self.user(batch.user_BF))[:, None])
        if batch.query_BQD is not None and batch.query_from_BQ is not None:
            parts.append(self.query_path(batch.query_BQD.to(self.null.dtype)))
        return parts, self._further_from(batch)

    @staticmethod
    def _further_from(batch: ContextBatch) -> list[Tensor]:
        visible_from = []
        if batch.user_BF is not None:
            has_user = (batch.user_BF > 0).any(-1, keepdim=True)
            visible_from.append(torch.where(has_user, 0, torch.iinfo(torch.int32).max))
        if batch.query_BQD is not None and batch.query_from_BQ is not None:
            visible_from.append(batch.query_from_BQ)
        return visible_from

    def further(self, batch: ContextBatch) -> tuple[Tensor, Tensor]:
        """(B, U, d_context) those elements before their norms, and (B, U) whether the target after the history sees them."""
        parts, visible_from = self._further(batch)
        if not parts:
            empty = self.null.new_zeros(batch.batch_size, 0, len(self.null))
            return empty, torch.zeros(batch.batch_size, 0, dtype=torch.bool)
        return torch.cat(parts, dim=1), torch.cat(visible_from, dim=1) <= batch.length_B[:, None]

    def _heads(self, x_BNC: Tensor) -> Tensor:
        batch, n_context, _ = x_BNC.shape
        return x_BNC.view(batch, n_context, self.g_kv, self.head_dim).transpose(1, 2)


def _pathway(source: int, hidden: int, out: int) -> nn.Sequential:
    """Dense - LeakyReLU - Dense, as every behaviour pathway of the technical report."""
    return nn.Sequential(nn.Linear(source, hidden), nn.LeakyReLU(), nn.Linear(hidden, out))


def visibility(kv: ContextKV, target_BT: Tensor, max_history: int) -> tuple[Tensor, Tensor]:
    """(B, T, N) recency ranks and (B, T, N) visibility of the context for targets at the given places.

    An interaction older than `max_history` places before its target is not visible, so that training on long sequences
    sees the same window as serving.
    """
    age = target_BT[:, :, None] - kv.visible_from_BN[:, None, :]
    visible = age >= 0
    history = kv.is_history_BN[:, None, :].expand_as(age)
    visible = visible & (~history | (age < max_history))
    rank = torch.where(history & visible, age + 1, 0).clamp(0, max_history)
    return rank, visible


def watch_bucket(ratio: Tensor) -> Tensor:
    """Watched share of the duration to a bucket; 0 is unknown."""
    bounds = torch.tensor([0.02, 0.1, 0.2, 0.35, 0.5, 0.7, 0.9, 1.1, 1.6, 3.0])
    bucket = 1 + torch.bucketize(torch.nan_to_num(ratio, nan=0.0), bounds)
    return torch.where(torch.isnan(ratio), 0, bucket)


def gap_bucket(seconds: Tensor) -> Tensor:
    """Seconds since the interaction before to a bucket on a log scale (half octaves of minutes); 0 is unknown."""
    minutes = seconds.clamp_min(0).double() / 60
    bucket = 1 + (torch.log2(minutes + 1) * 1.5).floor().long()
    return torch.where(seconds < 0, 0, bucket.clamp(1, N_GAP_BUCKETS - 1))


def position_bucket(position: Tensor) -> Tensor:
    """Rank in the list shown to a bucket; 0 is unknown."""
    bucket = 1 + torch.where(position < 8, position, 8 + torch.log2(position.clamp_min(8).float() / 8).long()).long()
    return torch.where(position < 0, 0, bucket.clamp(1, N_POSITION_BUCKETS - 1))


def unused_features(batch_size: int, places: int) -> dict[str, Tensor]:
    """Zero features of the right shape, for callers that only have items."""
    zeros = torch.zeros(batch_size, places, dtype=torch.long)
    return dict.fromkeys(("kind_BT", "watch_BT", "gap_BT", "surface_BT", "position_BT"), zeros)
