"""A decoder-only generator of Qwen3's shape (pre-norm blocks, grouped-query attention with normed and rotated heads,
SwiGLU) over `transformers`' weights, as rankloom's beam search asks for one.

* the history is computed once a request, its last layer for the last token only; beams attend the same keys and values and
  own those of their few codes;
* logits are over the whole vocabulary, each level's codes first, so that the scores are those of a search that normalises
  over the vocabulary, as `generate` does;
* what depends on weights alone is done once: gains and scales are folded into the matrices that follow, the first layer's
  projections are a table by token, matrices are packed for oneDNN, which also adds residuals and gates in the product.

Shapes: B requests, T history tokens, W beams, H query heads, G key/value heads, M = H / G, E head width, D model width,
V vocabulary, L levels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F


class Packed:
    """A linear map whose weight lies as oneDNN reads it, where torch has oneDNN; else a plain one.

    Packing is worth the most for few rows, where a plain product spends its time on reading the weight.
    """

    def __init__(self, weight: Tensor) -> None:
        self.weight = weight.contiguous()
        self.packed = None
        if torch._C._has_mkldnn:
            self.packed = torch.ops.mkldnn._reorder_linear_weight(self.weight, None)

    def __call__(self, x: Tensor) -> Tensor:
        if self.packed is None:
            return F.linear(x, self.weight)
        out: Tensor = torch.ops.mkldnn._linear_pointwise(x, self.packed, None, "none", [], "")
        return out

    def silu(self, x: Tensor) -> Tensor:
        if self.packed is None:
            return F.silu(F.linear(x, self.weight))
        out: Tensor = torch.ops.mkldnn._linear_pointwise(x, self.packed, None, "swish", [], "")
        return out

    def plus(self, x: Tensor, other: Tensor) -> Tensor:
        if self.packed is None:
            return F.linear(x, self.weight) + other
        out: Tensor = torch.ops.mkldnn._linear_pointwise.binary(x, other, self.packed, None, "add")
        return out

    def times(self, x: Tensor, other: Tensor) -> Tensor:
        if self.packed is None:
            return F.linear(x, self.weight) * other
        out: Tensor = torch.ops.mkldnn._linear_pointwise.binary(x, other, self.packed, None, "mul")
        return out


@dataclass
class _Layer:
    """One block. `cos` and `sin` (places, H + G, E) hold the gains of the heads' norms and the scale of the scores."""

    qkv: Packed
    q: Packed
    kv: Packed
    out: Packed
    gate: Packed
    up: Packed
    down: Packed
    cos: Tensor
    sin: Tensor


@dataclass
class Prefix:
    """Keys and values of the history, (B * G, T, E) a layer, and the final hidden state (B, D) of its last token."""

    layers: list[tuple[Tensor, Tensor]]
    last_BD: Tensor
    length: int


Cache = list[list[tuple[Tensor, Tensor]]]
"""Per layer and code chosen, keys and values (B, W, G, E)."""


class QwenGenerator:
    """See the module's docstring.

    Args:
        model: a `Qwen3ForCausalLM`; its weights are used, not trained.
        codebook_sizes: codes a level; code c of level l is the token `1 + sum(sizes before l) + c`.
        places: longest history and codes.
        dtype: of matrices and of what passes between them; lengths, softmax and logits are fp32.
    """

    def __init__(
        self, model: Any, codebook_sizes: tuple[int, ...], *, places: int = 320, dtype: torch.dtype = torch.float32
    ) -> None:
        config = model.config
        self.codebook_sizes = codebook_sizes
        self.heads, self.groups, self.width = config.num_attention_heads, config.num_key_value_heads, config.head_dim
        self.eps = float(config.rms_norm_eps)
        weights = {name: value.detach() for name, value in model.state_dict().items()}
        self.embedding = weights["model.embed_tokens.weight"].to(dtype)
        self.first = [1 + sum(codebook_sizes[:level]) for level in range(len(codebook_sizes))]
        # `_unit` leaves out the root of the width; it is a factor of every gain
        root = math.sqrt(config.hidden_size)
        head = weights["lm_head.weight"] * weights["model.norm.weight"] * root
        self.level_heads = []
        for size, first in zip(codebook_sizes, self.first, strict=True):
            own_head = torch.cat([head[first : first + size], head[:first], head[first + size :]])
            self.level_heads.append(Packed(own_head))
        turns = _turns(places, self.width, float(config.rope_parameters["rope_theta"]))
        self.layers: list[_Layer] = []
        for number in range(config.num_hidden_layers):
            own = {n.split(".", 3)[3]: w for n, w in weights.items() if n.startswith(f"model.layers.{number}.")}
            query, key, value = (
                own[f"self_attn.{name}_proj.weight"] * own["input_layernorm.weight"] * root for name in "qkv"
            )
            gate, up = (
                own[f"mlp.{n}_proj.weight"] * own["post_attention_layernorm.weight"] * root for n in ("gate", "up")
            )
            gains = [own["self_attn.q_norm.weight"] / math.sqrt(self.width)] * self.heads
            gain = torch.stack(gains + [own["self_attn.k_norm.weight"]] * self.groups) * math.sqrt(self.width)
            self.layers.append(
                _Layer(
                    qkv=Packed(torch.cat([query, key, value]).to(dtype)),
                    q=Packed(query.to(dtype)),
                    kv=Packed(torch.cat([key, value]).to(dtype)),
                    out=Packed(own["self_attn.o_proj.weight"].to(dtype)),
                    gate=Packed(gate.to(dtype)),
                    up=Packed(up.to(dtype)),
                    down=Packed(own["mlp.down_proj.weight"].to(dtype)),
                    cos=(turns[0][:, None] * gain).to(dtype),
                    sin=(turns[1][:, None] * gain.roll(self.width // 2, -1)).to(dtype),
                )
            )
        with torch.no_grad():
            projected = self._in_heads(self.layers[0].qkv(self._unit(self.embedding)))
            self.turned, self.values = self._unit(projected[:, : -self.groups]), projected[:, -self.groups :]

    def _unit(self, x: Tensor) -> Tensor:
        """x over its length, with the epsilon of a root-mean-square norm."""
        length = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=torch.float32)
        unit: Tensor = x * length.square_().add_(x.shape[-1] * self.eps).rsqrt_().to(x.dtype)
        return unit

    def _in_heads(self, x: Tensor) -> Tensor:
        return x.view(*x.shape[:-1], -1, self.width)

    def _ffn(self, layer: _Layer, h: Tensor) -> Tensor:
        normed = self._unit(h)
        return layer.down.plus(layer.up.times(normed, layer.gate.silu(normed)), h)

    def _heads(self, layer: _Layer, number: int, h: Tensor, token: Tensor) -> tuple[Tensor, Tensor]:
        """(..., H + G, E) normed queries and keys, (..., G, E) values; the first layer's are looked up."""
        if number == 0:
            return self.turned[token], self.values[token]
        out = self._in_heads(layer.qkv(self._unit(h)))
        return self._unit(out[..., : -self.groups, :]), out[..., -self.groups :, :]

    def _turn(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        return torch.addcmul(x * cos, x.roll(self.width // 2, -1), sin)

    @torch.no_grad()
    def prefill(self, token_BT: Tensor) -> Prefix:
        """Keys and values of histories of one length."""
        length = token_BT.shape[1]
        h = self.embedding[token_BT]
        layers = []
        for number, layer in enumerate(self.layers):
            last = number + 1 == len(self.layers)
            cos, sin = layer.cos[:length], layer.sin[:length]
            if last and number:
                normed = self._unit(h)
                k, v = self._in_heads(layer.kv(normed)).chunk(2, dim=-2)
                k = self._turn(self._unit(k), cos[:, self.heads :], sin[:, self.heads :])
                q = self._unit(self._in_heads(layer.q(normed[:, -1:])))
                q = self._turn(q, cos[-1:, : self.heads], sin[-1:, : self.heads])
                h = h[:, -1:].contiguous()
            else:
                qk, v = self._heads(layer, number, h, token_BT)
                qk = self._turn(qk, cos, sin)
                q, k = qk[:, :, : self.heads], qk[:, :, self.heads :]
            q, k, v = q.transpose(1, 2), k.transpose(1, 2).contiguous(), v.transpose(1, 2).contiguous()
            layers.append((k.flatten(0, 1), v.flatten(0, 1)))
            mixed = F.scaled_dot_product_attention(
                q, k, v, is_causal=q.shape[2] > 1, scale=1.0, enable_gqa=self.heads > self.groups
            )
            h = layer.out.plus(mixed.transpose(1, 2).flatten(2), h)
            h = self._ffn(layer, h)
        return Prefix(layers, h[:, -1], length)

    def step(self, prefix: Prefix, level: int, codes_BW: Tensor | None, cache: Cache | None) -> tuple[Tensor, Cache]:
        """Logits (B, W, V) of the next code, the codes of `level` first."""
        if codes_BW is None:
            return self.level_heads[0](self._unit(prefix.last_BD.float()))[:, None], [[] for _ in self.layers]
        assert cache is not None
        batch, beams = codes_BW.shape
        token = codes_BW + self.first[level - 1]
        place = prefix.length + level - 1
        h = self.embedding[token]
        grown: Cache = []
        grouped = (batch, beams, self.groups, self.heads // self.groups, self.width)
        for number, layer in enumerate(self.layers):
            qk, v = self._heads(layer, number, h, token)
            qk = self._turn(qk, layer.cos[place], layer.sin[place])
            own = [*cache[number], (qk[:, :, self.heads :], v)]
            grown.append(own)
            # (B, G, W, M, E): beams and heads that read the same keys are rows of one matrix
            rows = qk[:, :, : self.heads].reshape(grouped).permute(0, 2, 1, 3, 4).contiguous()
            flat = rows.view(batch * self.groups, -1, self.width)
            keys, values = prefix.layers[number]
            scores = [torch.bmm(flat, keys.transpose(1, 2)).view(*rows.shape[:-1], -1)]
            for k, _ in own:
                scores.append((rows * k.transpose(1, 2)[:, :, :, None]).sum(-1, keepdim=True))
            weights = torch.softmax(torch.cat(scores, dim=-1), dim=-1, dtype=torch.float32).to(h.dtype)
            shared = weights.view(len(flat), flat.shape[1], -1)[..., : prefix.length]
            mixed = torch.bmm(shared, values).view(rows.shape)
            for at, (_, v) in enumerate(own, start=prefix.length):
                mixed.addcmul_(weights[..., at : at + 1], v.transpose(1, 2)[:, :, :, None])
            h = layer.out.plus(mixed.permute(0, 2, 1, 3, 4).reshape(batch, beams, -1), h)
            h = self._ffn(layer, h)
        return self.level_heads[level](self._unit(h.float())), grown

    def reorder(self, cache: Cache, parent_BW: Tensor) -> Cache:
        """The cache whose beam w continues the old beam `parent_BW[b, w]`."""
        request = torch.arange(len(parent_BW))[:, None]
        return [[(k[request, parent_BW], v[request, parent_BW]) for k, v in layer] for layer in cache]

    def score(self, prefix: Prefix, codes_NL: Tensor) -> Tensor:
        """(B, N) log-probabilities of given SIDs."""
        batch, n = len(prefix.last_BD), len(codes_NL)
        total = torch.zeros(batch, n)
        cache: Cache | None = None
        for level in range(codes_NL.shape[1]):
            before = None if level == 0 else codes_NL[:, level - 1].expand(batch, -1)
            logits, cache = self.step(prefix, level, before, cache)
            log_probs = torch.log_softmax(logits, dim=-1).expand(-1, n, -1)
            total += log_probs.gather(-1, codes_NL[:, level].expand(batch, -1)[..., None])[..., 0]
        return total


def _turns(places: int, width: int, theta: float) -> tuple[Tensor, Tensor]:
    """(places, E) cosines, and sines with the sign of the half that is swapped in."""
    frequency = 1.0 / (theta ** (torch.arange(0, width, 2, dtype=torch.float32) / width))
    angle = torch.arange(places)[:, None].float() * frequency
    return torch.cat([angle.cos()] * 2, dim=-1), torch.cat([-angle.sin(), angle.sin()], dim=-1)
