"""A causal transformer over (return-to-go, state, action) triples of a day, with a second pass for explored actions.

Three tokens a tick, in this order; the state token of tick t sees everything up to s_t, the action token everything up to a_t (GAVE section 3.1,
DT section 3). Three ways through the same weights:

* `forward`: a whole day in parallel (training);
* `step`: the tokens of one tick with keys and values of the earlier ones kept (serving: a tick costs three tokens a campaign);
* `explore`: GAVE's second pass (equation 18). The explored action a~_t stands in the place of a_t with the LOGGED history before it. Since an
  explored token sees the first pass's tokens up to s_t and itself, and no other token sees it, all ticks' explored tokens go through together
  on the kept keys and values; it equals running T sequences with one action exchanged in each.

Shapes: B days, T ticks, L = 3 T tokens, H heads, E head width, W width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as functional
from torch import Tensor, nn

from rankloom.bidding.protocol import N_TICKS


@dataclass(frozen=True)
class TransformerConfig:
    """Attributes: input_width of a state; window: how many earlier ticks a token sees (M of GAVE); None is the whole day."""

    input_width: int
    width: int = 64
    layers: int = 3
    heads: int = 4
    window: int | None = None

    def __post_init__(self) -> None:
        if self.width % self.heads:
            raise ValueError(f"width {self.width} is not a multiple of heads {self.heads}")
        if self.window is not None and self.window < 1:
            raise ValueError("window must be at least 1 tick")


KeyValue = tuple[Tensor, Tensor]


class _Block(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm_1 = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.norm_2 = nn.LayerNorm(width)
        self.up = nn.Linear(width, 4 * width)
        self.down = nn.Linear(4 * width, width)

    def project(self, x_BLW: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        b, length, width = x_BLW.shape
        qkv = self.qkv(self.norm_1(x_BLW)).view(b, length, 3, self.heads, width // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        return q, k, v

    def finish(self, x_BLW: Tensor, attended_BHLE: Tensor) -> Tensor:
        x_BLW = x_BLW + self.out(attended_BHLE.transpose(1, 2).flatten(2))
        out: Tensor = x_BLW + self.down(functional.gelu(self.up(self.norm_2(x_BLW))))
        return out


class DayTransformer(nn.Module):
    """See the module's text."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.config = config
        width = config.width
        self.embed_return = nn.Linear(1, width)
        self.embed_state = nn.Linear(config.input_width, width)
        self.embed_action = nn.Linear(1, width)
        self.embed_tick = nn.Embedding(N_TICKS, width)
        self.embed_kind = nn.Embedding(3, width)
        self.unknown_return = nn.Parameter(torch.zeros(width))
        nn.init.normal_(self.embed_tick.weight, std=0.02)
        nn.init.normal_(self.embed_kind.weight, std=0.02)
        self.blocks = nn.ModuleList(_Block(width, config.heads) for _ in range(config.layers))
        self.norm = nn.LayerNorm(width)

    def tokens(self, return_BT: Tensor | None, x_BTD: Tensor, action_BT: Tensor) -> Tensor:
        """(B, 3 T, W) in the order r_t, s_t, a_t; None hides the returns."""
        when_T1W = self.embed_tick(torch.arange(x_BTD.shape[1]))[:, None]
        state_BTW, action_BTW = self.embed_state(x_BTD), self.embed_action(action_BT[..., None])
        if return_BT is None:
            return_BTW = self.unknown_return.expand_as(state_BTW)
        else:
            return_BTW = self.embed_return(return_BT[..., None])
        stacked_BT3W = torch.stack([return_BTW, state_BTW, action_BTW], dim=2)
        tokens: Tensor = (stacked_BT3W + when_T1W + self.embed_kind.weight).flatten(1, 2)
        return tokens

    def _mask(self, query_L: Tensor, key_L: Tensor) -> Tensor:
        """Bool (Lq, Lk): token positions that may be seen."""
        seen = key_L[None, :] <= query_L[:, None]
        if self.config.window is not None:
            seen &= query_L[:, None] // 3 - key_L[None, :] // 3 <= self.config.window
        return seen

    def forward(
        self, return_BT: Tensor | None, x_BTD: Tensor, action_BT: Tensor
    ) -> tuple[Tensor, Tensor, list[KeyValue]]:
        """A whole day.

        Args:
            return_BT: returns-to-go; None hides them, for heads that must not be told how the day ended.

        Returns:
            (B, T, W) of the state tokens, (B, T, W) of the action tokens, and keys and values of every layer for `explore`.
        """
        h = self.tokens(return_BT, x_BTD, action_BT)
        positions = torch.arange(h.shape[1])
        mask = self._mask(positions, positions)
        kept: list[KeyValue] = []
        for block in self.blocks:
            q, k, v = block.project(h)  # type: ignore[operator]
            kept.append((k, v))
            h = block.finish(h, functional.scaled_dot_product_attention(q, k, v, attn_mask=mask))  # type: ignore[operator]
        h = self.norm(h)
        return h[:, 1::3], h[:, 2::3], kept

    def explore(self, action_BT: Tensor, kept: list[KeyValue]) -> Tensor:
        """(B, T, W) of action tokens with `action_BT` in the place of the logged a_t, history kept (GAVE equation 18)."""
        n_ticks = action_BT.shape[1]
        ticks = torch.arange(n_ticks)
        h = self.embed_action(action_BT[..., None]) + self.embed_tick(ticks) + self.embed_kind.weight[2]
        n_tokens = kept[0][0].shape[2]
        # the last token before a_t is s_t, at position 3 t + 1
        seen = self._mask(3 * ticks + 1, torch.arange(n_tokens))
        mask = torch.cat([seen, torch.eye(n_ticks, dtype=torch.bool)], dim=1)
        for block, (past_k, past_v) in zip(self.blocks, kept, strict=True):
            q, k, v = block.project(h)  # type: ignore[operator]
            attended = functional.scaled_dot_product_attention(
                q, torch.cat([past_k, k], dim=2), torch.cat([past_v, v], dim=2), attn_mask=mask
            )
            h = block.finish(h, attended)  # type: ignore[operator]
        out: Tensor = self.norm(h)
        return out

    def peek(self, action_BC: Tensor, tick: int, kept: list[KeyValue]) -> Tensor:
        """(B, C, W) of C candidate actions of one tick, each as if it alone came after the kept tokens up to s_t."""
        n_candidates, n_tokens = action_BC.shape[1], 3 * tick + 2
        h = self.embed_action(action_BC[..., None]) + self.embed_tick.weight[tick] + self.embed_kind.weight[2]
        seen = self._mask(torch.full((n_candidates,), 3 * tick + 1), torch.arange(n_tokens))
        mask = torch.cat([seen, torch.eye(n_candidates, dtype=torch.bool)], dim=1)
        for block, (past_k, past_v) in zip(self.blocks, kept, strict=True):
            q, k, v = block.project(h)  # type: ignore[operator]
            attended = functional.scaled_dot_product_attention(
                q,
                torch.cat([past_k[:, :, :n_tokens], k], dim=2),
                torch.cat([past_v[:, :, :n_tokens], v], dim=2),
                attn_mask=mask,
            )
            h = block.finish(h, attended)  # type: ignore[operator]
        out: Tensor = self.norm(h)
        return out

    def step(
        self, return_B: Tensor | None, x_BD: Tensor, previous_action_B: Tensor | None, tick: int, kept: list[KeyValue] | None
    ) -> tuple[Tensor, list[KeyValue]]:
        """One tick of serving.

        Args:
            previous_action_B: a_{t-1}, whose token could not be made before it was known; None at tick 0.
            kept: what the last step returned; it is written on.

        Returns:
            (B, W) of the state token, and keys and values up to it (room for the whole day, so that a tick copies its own tokens alone).
        """
        if (tick == 0) != (kept is None) or (tick == 0) != (previous_action_B is None):
            raise ValueError("tick 0 has no earlier action and nothing kept; every later tick has both")
        when = self.embed_tick.weight[tick]
        rows = [
            (self.unknown_return.expand(len(x_BD), -1) if return_B is None else self.embed_return(return_B[:, None]))
            + when
            + self.embed_kind.weight[0],
            self.embed_state(x_BD) + when + self.embed_kind.weight[1],
        ]
        first = 3 * tick
        if previous_action_B is not None:
            earlier = self.embed_tick.weight[tick - 1]
            rows.insert(0, self.embed_action(previous_action_B[:, None]) + earlier + self.embed_kind.weight[2])
            first -= 1
        h = torch.stack(rows, dim=1)
        query = first + torch.arange(h.shape[1])
        end = first + h.shape[1]
        hidden = ~self._mask(query, torch.arange(end))
        if kept is None:
            room = (len(x_BD), self.config.heads, 3 * N_TICKS, self.config.width // self.config.heads)
            kept = [(h.new_empty(room), h.new_empty(room)) for _ in self.blocks]
        for block, (keys, values) in zip(self.blocks, kept, strict=True):
            q, k, v = block.project(h)  # type: ignore[operator]
            keys[:, :, first:end], values[:, :, first:end] = k, v
            # three queries against a day: the fused kernel, made for many queries, takes half as long again
            scores_BHQL = (q / q.shape[-1] ** 0.5) @ keys[:, :, :end].transpose(2, 3)
            attended = scores_BHQL.masked_fill_(hidden, -torch.inf).softmax(dim=-1) @ values[:, :, :end]
            h = block.finish(h, attended)  # type: ignore[operator]
        return self.norm(h)[:, -1], kept
