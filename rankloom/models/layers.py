"""The parts a lazy decoder block is made of (OneRec-V2 sections 4.2 and 4.3).

* RMSNorm before every sub-layer;
* lazy cross-attention: a query and an output projection, no key or value projection, grouped-query attention over the
  context's ready-made K/V;
* causal self-attention over the few codes of one item, with a suffix cache for decoding;
* gated FFN (SwiGLU), dense or as a mixture of experts with auxiliary-loss-free balancing.

Shapes: M items being decoded (or beams), L codes of one item, D model width, H query heads, G K/V groups, E head width,
B requests, T targets of a request, W beams, N context elements.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class RMSNorm(nn.Module):
    """Root-mean-square norm with a learned gain, computed in fp32."""

    def __init__(self, dim: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.eps = eps
        self.gain = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        wide = x.float()
        normed = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.eps)
        return (normed * self.gain.float()).to(x.dtype)


class GatedFFN(nn.Module):
    """SwiGLU: down(silu(gate(x)) * up(x)). Three matrices of D x hidden, 12 D^2 parameters at hidden = 4 D."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.gate_up = nn.Linear(dim, 2 * hidden, bias=False)
        self.down = nn.Linear(hidden, dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        gate, up = self.gate_up(x).chunk(2, dim=-1)
        return self.down(F.silu(gate) * up)  # type: ignore[no-any-return]


class MixtureOfExperts(nn.Module):
    """Routed and shared SwiGLU experts with auxiliary-loss-free balancing (DeepSeek; OneRec TR and V2).

    A bias per routed expert is added to the routing affinity to choose the top k, and to nothing else: the gate weights
    come from the unbiased affinities. `balance()` moves the biases after each optimiser step towards equal load.
    """

    load: Tensor
    route_bias: Tensor

    def __init__(
        self, dim: int, *, n_experts: int, top_k: int, n_shared: int, hidden: int, bias_step: float = 1e-3
    ) -> None:
        super().__init__()
        self.top_k = top_k
        self.bias_step = bias_step
        self.router = nn.Linear(dim, n_experts, bias=False)
        self.experts = nn.ModuleList(GatedFFN(dim, hidden) for _ in range(n_experts))
        self.shared = nn.ModuleList(GatedFFN(dim, hidden) for _ in range(n_shared))
        self.register_buffer("route_bias", torch.zeros(n_experts))
        self.register_buffer("load", torch.zeros(n_experts), persistent=False)

    def route(self, x_RD: Tensor) -> tuple[Tensor, Tensor]:
        """(R, k) chosen experts and (R, k) gate weights that sum to one."""
        affinity = torch.sigmoid(self.router(x_RD).float())
        chosen = (affinity + self.route_bias).topk(self.top_k, dim=-1).indices
        gate = affinity.gather(-1, chosen)
        return chosen, gate / gate.sum(-1, keepdim=True).clamp_min(1e-9)

    def forward(self, x: Tensor) -> Tensor:
        x_RD = x.reshape(-1, x.shape[-1])
        chosen, gate = self.route(x_RD)
        if self.training:
            self.load += torch.bincount(chosen.flatten(), minlength=len(self.experts)).to(self.load.dtype)
        out = torch.zeros_like(x_RD)
        for shared in self.shared:
            out = out + shared(x_RD)
        for number, expert in enumerate(self.experts):
            row, slot = (chosen == number).nonzero(as_tuple=True)
            if len(row):
                out = out.index_add(0, row, (expert(x_RD[row]) * gate[row, slot, None]).to(out.dtype))
        return out.view_as(x)

    @torch.no_grad()
    def balance(self) -> Tensor:
        """Moves each bias one step against its expert's load; returns the (n_experts,) share of load and resets it."""
        total = self.load.sum()
        share = self.load / total.clamp_min(1)
        if total > 0:
            self.route_bias += self.bias_step * torch.sign(share.mean() - share)
        self.load.zero_()
        return share


class LazyCrossAttention(nn.Module):
    """Attention of the codes over the context's ready-made K/V: only W_q and W_o are learned (OneRec-V2 section 4.3).

    A learned bias per head and recency rank stands in for the context positions, which the report leaves open: the
    context cache stays free of positions, so that appending an event changes no other element.
    """

    def __init__(self, dim: int, *, n_heads: int, g_kv: int, max_history: int) -> None:
        super().__init__()
        self.n_heads = n_heads
        self.g_kv = g_kv
        self.head_dim = dim // n_heads
        self.query = nn.Linear(dim, dim, bias=False)
        self.out = nn.Linear(dim, dim, bias=False)
        self.recency = nn.Parameter(torch.zeros(n_heads, max_history + 1))

    def forward(self, x_BTLD: Tensor, k_BGNE: Tensor, v_BGNE: Tensor, rank_BTN: Tensor, visible_BTN: Tensor) -> Tensor:
        """
        Args:
            x_BTLD: normed hidden states, L codes of T targets (or beams) per request.
            k_BGNE, v_BGNE: the context's keys and values.
            rank_BTN: recency rank of each element for each target, 0 = not a history element, 1 = the latest.
            visible_BTN: which elements a target may see.

        Returns:
            (B, T, L, D).
        """
        batch, targets, length, dim = x_BTLD.shape
        n_context = k_BGNE.shape[2]
        per_group = self.n_heads // self.g_kv
        q = self.query(x_BTLD).view(batch, targets, length, self.g_kv, per_group, self.head_dim)
        q = q.permute(0, 3, 4, 1, 2, 5).reshape(batch, self.g_kv, per_group * targets * length, self.head_dim)
        scores = (q @ k_BGNE.transpose(-1, -2)) / math.sqrt(self.head_dim)
        scores = scores.view(batch, self.n_heads, targets, length, n_context).float()
        bias = self.recency.float()[:, rank_BTN].permute(1, 0, 2, 3)
        bias = bias.masked_fill(~visible_BTN[:, None], float("-inf"))
        weights = torch.softmax(scores + bias[:, :, :, None], dim=-1).to(v_BGNE.dtype)
        weights = weights.view(batch, self.g_kv, per_group * targets * length, n_context)
        mixed = (weights @ v_BGNE).view(batch, self.n_heads, targets, length, self.head_dim)
        return self.out(mixed.permute(0, 2, 3, 1, 4).reshape(batch, targets, length, dim))  # type: ignore[no-any-return]


class SuffixSelfAttention(nn.Module):
    """Causal self-attention over the codes of one item, in one piece for training or code by code with a cache."""

    def __init__(self, dim: int, *, n_heads: int) -> None:
        super().__init__()
        self.n_heads = n_heads
        self.head_dim = dim // n_heads
        self.qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.out = nn.Linear(dim, dim, bias=False)

    def forward(self, x_MLD: Tensor) -> Tensor:
        items, length, dim = x_MLD.shape
        q, k, v = self.qkv(x_MLD).view(items, length, 3, self.n_heads, self.head_dim).unbind(2)
        return self.out(self._attend(q, k, v).reshape(items, length, dim))  # type: ignore[no-any-return]

    def step(self, x_MD: Tensor, past: Tensor | None) -> tuple[Tensor, Tensor]:
        """One more code. `past` holds the (M, P, 2, H, E) keys and values of the codes before it."""
        items, dim = x_MD.shape
        qkv = self.qkv(x_MD).view(items, 1, 3, self.n_heads, self.head_dim)
        q, kv = qkv[:, :, 0], qkv[:, :, 1:]
        if past is not None:
            kv = torch.cat([past, kv], dim=1)
        k, v = kv.unbind(2)
        scores = (q * k).sum(-1).float() / math.sqrt(self.head_dim)  # (M, P + 1, H)
        weights = torch.softmax(scores, dim=1).to(v.dtype)
        mixed = (weights[..., None] * v).sum(1)
        return self.out(mixed.reshape(items, dim)), kv

    def _attend(self, q_MLHE: Tensor, k_MLHE: Tensor, v_MLHE: Tensor) -> Tensor:
        # With three to five codes, products along E beat thousands of 4 x 4 matrix multiplications.
        length = q_MLHE.shape[1]
        rows = []
        for row in range(length):
            scores = (q_MLHE[:, row : row + 1] * k_MLHE[:, : row + 1]).sum(-1).float() / math.sqrt(self.head_dim)
            weights = torch.softmax(scores, dim=1).to(v_MLHE.dtype)
            rows.append((weights[..., None] * v_MLHE[:, : row + 1]).sum(1))
        return torch.stack(rows, dim=1)
