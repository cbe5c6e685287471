"""The generator: OneRec-V2's lazy decoder with position-specific heads and a selection head on the same forward.

Notable features:
* context processor without context computation, K/V shared over layers (L_kv), between K and V (S_kv) and heads (G_kv);
* block = cross-attention, causal self-attention, FFN, each pre-normed with a residual (section 4.3, in that order);
* no K/V projection in cross-attention; MoE FFNs with auxiliary-loss-free balancing from block `moe_first_dense` on;
* training on every position of a sequence in one pass: each target is an own little decoder [BOS, s1, .., s_{Q-1}] that
  sees only what came before it;
* decoding code by code with a suffix cache per beam; the context is computed once per request;
* the final hidden state of BOS, before any code is chosen, is the user's state for the selection head.

Shapes: B users or requests, T targets (positions), M = targets in a batch (flattened), L codes in (BOS and the codes
before the last), Q levels, D width, W beams, K codebook size, N context elements.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rankloom.compiling import Engine, Precision, use_bf16, use_compiled, use_graph
from rankloom.config import Config, ModelConfig
from rankloom.data.schema import SURFACES
from rankloom.models.age import AgeHead, age_bucket
from rankloom.models.context import ContextBatch, ContextKV, ContextProcessor, visibility
from rankloom.models.folded import LIMIT, FoldedDecoder
from rankloom.models.graph_decoder import GraphDecoder, Question
from rankloom.models.half_width import HalfWidth
from rankloom.models.items import ItemEncoder
from rankloom.models.kept_context import KeptContext, with_kept, worth_keeping
from rankloom.models.layers import (
    GatedFFN,
    LazyCrossAttention,
    MixtureOfExperts,
    RMSNorm,
    SuffixSelfAttention,
)
from rankloom.models.pool import HistoryPool
from rankloom.models.prefix import Prefix, SuffixCache

if TYPE_CHECKING:
    from rankloom.models.compiled import CompiledCache, CompiledDecoder, CompiledSteps


class LazyBlock(nn.Module):
    """Cross-attention, self-attention, FFN."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        dim = config.d_model
        self.kv_set = layer * config.l_kv // config.n_layers
        self.cross_norm = RMSNorm(dim)
        self.cross = LazyCrossAttention(
            dim, n_heads=config.n_heads, g_kv=config.g_kv or config.n_heads, max_history=config.max_history
        )
        self.self_norm = RMSNorm(dim)
        self.self_attention = SuffixSelfAttention(dim, n_heads=config.n_heads)
        self.ffn_norm = RMSNorm(dim)
        hidden = round(config.ffn_mult * dim)
        self.ffn: GatedFFN | MixtureOfExperts
        if config.moe_experts and layer >= config.moe_first_dense:
            self.ffn = MixtureOfExperts(
                dim,
                n_experts=config.moe_experts,
                top_k=config.moe_top_k,
                n_shared=config.moe_shared,
                # the active experts spend exactly the dense budget (section 4.4)
                hidden=config.moe_expert_hidden or max(1, hidden // (config.moe_top_k + config.moe_shared)),
            )
        else:
            self.ffn = GatedFFN(dim, hidden)
        self.dropout = nn.Dropout(config.dropout)


class LazyDecoder(nn.Module):
    """The whole model. Build it with `LazyDecoder.from_config`."""

    def __init__(
        self,
        config: ModelConfig,
        *,
        items: ItemEncoder,
        codebook_sizes: Sequence[int],
        text_dim: int,
        dated: bool = False,
    ) -> None:
        super().__init__()
        self.config = config
        self.codebook_sizes = tuple(codebook_sizes)
        dim = config.d_model
        self.items = items
        self.context = ContextProcessor(config, items=items, text_dim=text_dim)
        self.bos = nn.Parameter(torch.randn(dim) * 0.02)
        self.surface = nn.Embedding(len(SURFACES), dim)
        # one table per level but the last, whose code is never an input
        self.code_inputs = nn.ModuleList(nn.Embedding(size, dim) for size in self.codebook_sizes[:-1])
        self.blocks = nn.ModuleList(LazyBlock(config, layer) for layer in range(config.n_layers))
        self.head_norms = nn.ModuleList(RMSNorm(dim) for _ in self.codebook_sizes)
        self.heads = nn.ModuleList(nn.Linear(dim, size, bias=False) for size in self.codebook_sizes)
        self.select_norm = RMSNorm(dim)
        self.select = nn.Linear(dim, items.dim, bias=False)
        self.age = AgeHead(items.dim) if dated else None
        self.pool = HistoryPool(items.dim, max_history=config.max_history) if config.history_pool else None
        self.pool_in = nn.Linear(items.dim, dim, bias=False) if config.history_pool else None
        self.dropout = nn.Dropout(config.dropout)
        self.engine: Engine = "auto"
        self.precision: Precision = "fp32"
        self._folded: FoldedDecoder | None = None
        self._compiled: CompiledDecoder | None = None
        self._half: HalfWidth | None = None
        # what decoding/graph_engine.py has captured of this model
        self.searches: Any = None
        self._init_weights()

    @classmethod
    def from_config(
        cls,
        config: Config,
        *,
        codes_IQ: Tensor,
        content_IC: Tensor,
        codebook_sizes: Sequence[int],
        n_trained: int,
        text_dim: int,
        dated: bool = False,
        trust_I: Tensor | None = None,
        attributes_IF: Tensor | None = None,
        created_I: Tensor | None = None,
    ) -> LazyDecoder:
        """The model for a catalogue: `codes_IQ` (I, Q) semantic IDs, `content_IC` (I, C) content vectors.

        Args:
            dated: the selection head knows how old items are.
            trust_I, attributes_IF, created_I: see `ItemEncoder`.
        """
        items = ItemEncoder(
            dim=config.model.item_dim or config.model.d_model,
            n_trained=n_trained,
            codes_IQ=codes_IQ,
            content_IC=content_IC,
            codebook_sizes=codebook_sizes,
            learned=config.model.item_embedding,
            item_dropout=config.model.item_dropout,
            trust_I=trust_I,
            attributes_IF=attributes_IF if config.model.item_attributes else None,
            created_I=created_I,
        )
        return cls(config.model, items=items, codebook_sizes=codebook_sizes, text_dim=text_dim, dated=dated)

    def _init_weights(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            elif isinstance(module, nn.Embedding):
                nn.init.normal_(module.weight, std=0.02)
        # residual branches start small, as deep pre-norm stacks want
        scale = (3 * self.config.n_layers) ** -0.5
        for block in self.lazy_blocks():
            for linear in (block.cross.out, block.self_attention.out):
                linear.weight.data.mul_(scale)

    def lazy_blocks(self) -> list[LazyBlock]:
        return [block for block in self.blocks if isinstance(block, LazyBlock)]

    def n_core_parameters(self) -> int:
        """Parameters of the decoder blocks, the figure that OneRec-V2's table of sizes counts."""
        return sum(
            p.numel()
            for name, p in self.blocks.named_parameters()
            if "norm" not in name and "recency" not in name and "router" not in name
        )

    # -- training: every target of every sequence in one pass ------------------------------------------------------

    def forward(
        self,
        batch: ContextBatch,
        target_BT: Tensor,
        codes_MQ: Tensor,
        surface_BT: Tensor,
        *,
        keep: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Hidden states and user states of all targets, teacher forced.

        Args:
            batch: sequences; the target at place t sees what `visibility` allows.
            target_BT: (B, T) bool, which places are targets; M = target_BT.sum().
            codes_MQ: (M, Q) codes of the targets, in row-major order of `target_BT`.
            surface_BT: (B, T) surface on which each target was shown.
            keep: which learned item vectors may be used (`ItemEncoder.keep_mask`).

        Returns:
            (M, Q, D): row 0 of the second axis is BOS, which predicts the first code; (M, D_item): what selection asks with.
        """
        vectors = self.items(batch.item_BT, keep)
        kv = self.context(batch, vectors)
        batch_size, places = target_BT.shape
        place_BT = torch.arange(places, device=target_BT.device).expand(batch_size, places)
        rank, visible = visibility(kv, place_BT, self.config.max_history)
        row, place = target_BT.nonzero(as_tuple=True)
        pool_BTD = self._pool(batch, vectors, place_BT)
        pool_MD = None if pool_BTD is None else pool_BTD[row, place]
        h_MLD = self._embed(codes_MQ[:, :-1], surface_BT[row, place], pool_MD)
        n_codes = h_MLD.shape[1]
        for block in self.lazy_blocks():
            normed = block.cross_norm(h_MLD)
            grid = normed.new_zeros(batch_size, places, n_codes, normed.shape[-1])
            grid = grid.index_put((row, place), normed)
            crossed = block.cross(grid, kv.keys[block.kv_set], kv.values[block.kv_set], rank, visible)[row, place]
            h_MLD = h_MLD + block.dropout(crossed)
            h_MLD = h_MLD + block.dropout(block.self_attention(block.self_norm(h_MLD)))
            h_MLD = h_MLD + block.dropout(block.ffn(block.ffn_norm(h_MLD)))
        return h_MLD, self.user_state(h_MLD[:, 0], pool_MD)

    def code_logits(self, h_MLD: Tensor, level: int) -> Tensor:
        """(M, K_level) logits of the code at `level` from the hidden states of `forward`."""
        return self.heads[level](self.head_norms[level](h_MLD[:, level]))  # type: ignore[no-any-return]

    def user_state(self, h_BOS: Tensor, pool: Tensor | None = None) -> Tensor:
        """(..., D_item) query vector of the selection head from the final hidden state of BOS and the history's pool."""
        state: Tensor = self.select(self.select_norm(h_BOS))
        return self.dropout(state if pool is None else state + pool)  # type: ignore[no-any-return]

    def _pool(self, batch: ContextBatch, vectors: Tensor, place_BT: Tensor, *, last: bool = False) -> Tensor | None:
        if self.pool is None:
            return None
        queries = self.queries(batch)
        if last:
            return self.pool.last(batch, vectors, queries)[:, None]
        pool: Tensor = self.pool(batch, vectors, place_BT, queries)
        return pool

    def queries(self, batch: ContextBatch) -> Tensor | None:
        """(B, R, D_item) queries as item vectors."""
        return None if batch.query_BQD is None else self.items.content(batch.query_BQD.to(self.items.content.weight.dtype))

    def _embed(self, codes_MP: Tensor, surface_M: Tensor, pool_MD: Tensor | None) -> Tensor:
        parts = [self._start(surface_M, pool_MD)[:, None]]
        parts += [self.code_inputs[level](codes_MP[:, level])[:, None] for level in range(codes_MP.shape[1])]
        return self.dropout(torch.cat(parts, dim=1))  # type: ignore[no-any-return]

    def _start(self, surface_M: Tensor, pool_MD: Tensor | None) -> Tensor:
        start: Tensor = self.bos + self.surface(surface_M)
        if self.pool_in is not None and pool_MD is not None:
            start = start + self.pool_in(pool_MD)
        return start

    # -- decoding: the context once, then code by code -------------------------------------------------------------

    def prefill(
        self, batch: ContextBatch, surface_B: Tensor | None = None, *, kept: Sequence[KeptContext | None] | None = None
    ) -> Prefix:
        """Computes the context of B requests; the one target of each comes right after its history. The graph engine leaves it to
        the search, and keeps nothing.

        Args:
            kept: what earlier requests left of theirs (`Prefix.kept`), for each of these or None.
        """
        if surface_B is None:
            surface_B = torch.zeros(batch.batch_size, dtype=torch.long, device=batch.item_BT.device)
        if not self._plainly() and use_graph(self.engine, self.device.type):
            return Prefix(lambda: self._plain(batch.to(self.device)), surface_B, question=Question(batch, surface_B))
        if batch.item_BT.device != self.device:
            batch, surface_B = batch.to(self.device), surface_B.to(self.device)
        return self._prefill(batch, surface_B, kept)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.bos.device

    @property
    def graph_dtype(self) -> torch.dtype:
        """Of the blocks and heads of a captured graph, as `precision` has it on a GPU."""
        return torch.bfloat16 if use_bf16(self.precision, "cuda") else torch.float32

    def graph_decoder(self) -> GraphDecoder:
        """What a captured graph runs of this model (decoding/graph_engine.py), in `graph_dtype`."""
        return GraphDecoder(self, self.graph_dtype)

    def _prefill(
        self, batch: ContextBatch, surface_B: Tensor, kept: Sequence[KeptContext | None] | None = None
    ) -> Prefix:
        compiled = self._kernels()
        if compiled is not None and compiled.serves(batch):
            context = compiled.context(self, batch, surface_B)
            pool_BD = None if self.pool is None else torch.from_numpy(context.pool_BZ)
            shown = context.surface_B
            return Prefix(lambda: self._plain(batch), shown, pool_BD, None, self._folded, None, compiled.steps(context))
        half = self._half_width()
        processor = self.context if half is None else half.context
        vectors = self.items(batch.item_BT)
        pool = self._pool(batch, vectors, batch.length_B[:, None], last=not torch.is_grad_enabled())
        now = None
        if kept is not None and self._keeps(batch):
            kv, now = with_kept(processor, batch, vectors, kept)
        else:
            kv = processor(batch, vectors)
        made = (kv, *self._seen(kv, batch))
        pool_BD = None if pool is None else pool[:, 0]
        if half is not None:
            return Prefix(lambda: self._plain(batch), surface_B, pool_BD, decoder=half.decoder, narrow=made, kept=now)
        return Prefix(lambda: made, surface_B, pool_BD, decoder=self._inference(), kept=now)

    def _keeps(self, batch: ContextBatch) -> bool:
        """Whether contexts are worth keeping, and are plain numbers."""
        if self._plainly() or batch.item_BT.device.type != "cpu":
            return False
        return worth_keeping(self.context, batch.item_BT.shape[1])

    def _told(self, prefix: Prefix) -> Prefix:
        """The prefix, or where a graph was to compute it, the same requests computed here."""
        if prefix.question is None:
            return prefix
        if prefix.eager is None:
            asked = prefix.question
            prefix.eager = self._prefill(asked.batch.to(self.device), asked.surface_B.to(self.device))
        return prefix.eager

    def _plain(self, batch: ContextBatch) -> tuple[ContextKV, Tensor, Tensor]:
        """Keys and values of the context, recency ranks, and what the target after the history sees."""
        kv = self.context(batch, self.items(batch.item_BT))
        return kv, *self._seen(kv, batch)

    def _seen(self, kv: ContextKV, batch: ContextBatch) -> tuple[Tensor, Tensor]:
        return visibility(kv, batch.length_B[:, None], self.config.max_history)

    def steps(self, prefix: Prefix) -> CompiledSteps | None:
        """The search that the kernels do; None where they do not."""
        return None if torch.is_grad_enabled() else self._told(prefix).compiled

    def step(
        self, prefix: Prefix, level: int, codes_BW: Tensor | None, cache: Any
    ) -> tuple[Tensor, SuffixCache | CompiledCache]:
        """Logits (B, W, K_level) of the next code for every beam.

        At level 0 there is one beam and `codes_BW` is None; later `codes_BW` holds the codes chosen at `level - 1`.
        """
        prefix = self._told(prefix)
        steps = self.steps(prefix)
        if steps is not None:
            logits, cache = steps.step(level, None if codes_BW is None else codes_BW.numpy(), cache)
            return torch.from_numpy(logits), cache
        h_BWD, cache = self._begin(prefix) if codes_BW is None else self._advance(prefix, level, codes_BW, cache)
        return self._logits(prefix, h_BWD, level), cache

    def start(self, prefix: Prefix) -> tuple[Tensor, Tensor, SuffixCache | CompiledCache]:
        """Level 0 with the user's state: ((B, 1, K_0) logits, (B, D_item) selection query, cache)."""
        logits, cache = self.step(prefix, 0, None, None)
        return logits, self.user(prefix), cache

    def user(self, prefix: Prefix) -> Tensor:
        """(B, D_item) selection query of each request."""
        if prefix.user_BD is not None and not torch.is_grad_enabled():
            return prefix.user_BD
        prefix = self._told(prefix)
        steps = self.steps(prefix)
        if steps is not None:
            return steps.user()
        h_BD = self._begin(prefix)[0][:, 0]
        if prefix.decoder is None or torch.is_grad_enabled():
            return self.user_state(h_BD, prefix.pool_BD)
        state = prefix.decoder.user(h_BD)
        return state if prefix.pool_BD is None else state + prefix.pool_BD

    def _logits(self, prefix: Prefix, h_BWD: Tensor, level: int) -> Tensor:
        if prefix.decoder is not None and not torch.is_grad_enabled():
            return prefix.decoder.logits(h_BWD, level)
        return self.heads[level](self.head_norms[level](h_BWD))  # type: ignore[no-any-return]

    def _begin(self, prefix: Prefix) -> tuple[Tensor, SuffixCache]:
        """The hidden state of BOS and the cache that holds it; kept in the prefix where no gradient is asked for."""
        if torch.is_grad_enabled() or self.training:
            return self._advance(prefix, 0, None, None)
        if prefix.begun is None:
            prefix.begun = self._advance(prefix, 0, None, None)
        return prefix.begun

    def _inference(self) -> FoldedDecoder | None:
        """The folded blocks; None where gradients, training, another precision or their size ask for the plain ones."""
        if self._plainly():
            return None
        if self._folded is None or not self._folded.fresh:
            self._compiled = None
            if self.bos.dtype != torch.float32 or sum(p.numel() for p in self.blocks.parameters()) > LIMIT:
                return None
            norms = [own for own in self.head_norms if isinstance(own, RMSNorm)]
            heads = [own for own in self.heads if isinstance(own, nn.Linear)]
            self._folded = FoldedDecoder(self.lazy_blocks(), norms, heads, self.select_norm, self.select)
        return self._folded

    def _half_width(self) -> HalfWidth | None:
        """Blocks and context in bfloat16 where `precision` comes to that and no gradient is asked for."""
        if not use_bf16(self.precision, self.device.type) or self._plainly() or self.bos.dtype != torch.float32:
            return None
        if self._half is None or not self._half.fresh:
            self._half = HalfWidth(self)
        return self._half

    def _kernels(self) -> CompiledDecoder | None:
        """The compiled blocks; None where the folded ones do not serve either, or have experts, `engine` is eager, or bf16 is
        asked for, which they do not have."""
        if self.precision == "bf16":
            return None
        if self._plainly() or not use_compiled(self.engine) or self.config.moe_experts or self.bos.device.type != "cpu":
            return None
        if self._compiled is None or not self._compiled.fresh:
            folded = self._inference()
            if folded is None:
                return None
            from rankloom.models.compiled import CompiledDecoder

            self._compiled = CompiledDecoder(self, folded)
        return self._compiled

    def _plainly(self) -> bool:
        """Whether gradients, training or another precision ask for the plain blocks."""
        return torch.is_grad_enabled() or self.training or torch.is_autocast_enabled(self.bos.device.type)

    def train(self, mode: bool = True) -> Self:
        self._folded = self._compiled = self._half = self.searches = None
        return super().train(mode)

    def __getstate__(self) -> dict[str, Any]:
        """A copy has weights of its own, or is about to: it folds them itself."""
        return {**vars(self), "_folded": None, "_compiled": None, "_half": None, "searches": None}

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        self._folded = self._compiled = self._half = self.searches = None
        return super()._apply(fn, recurse)  # type: ignore[no-untyped-call, no-any-return]

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        self._folded = self._compiled = self._half = self.searches = None
        return super().load_state_dict(state_dict, strict, assign)

    def _advance(
        self, prefix: Prefix, level: int, codes_BW: Tensor | None, cache: SuffixCache | None
    ) -> tuple[Tensor, SuffixCache]:
        batch = prefix.batch_size
        if codes_BW is None:
            h_BWD = self._start(prefix.surface_B, prefix.pool_BD)[:, None]
        else:
            h_BWD = self.code_inputs[level - 1](codes_BW)
        n_beams = h_BWD.shape[1]
        if prefix.decoder is not None and not torch.is_grad_enabled():
            h_BWD, grown = prefix.decoder.advance(prefix, h_BWD, None if cache is None else cache.layers)
            return h_BWD, SuffixCache(grown, n_beams)
        layers: list[Tensor] = []
        for number, block in enumerate(self.lazy_blocks()):
            # beams of one request are rows of one matrix: its context is read once, never copied per beam
            normed = block.cross_norm(h_BWD)[:, None]
            crossed = block.cross(
                normed,
                prefix.kv.keys[block.kv_set],
                prefix.kv.values[block.kv_set],
                prefix.rank_B1N,
                prefix.visible_B1N,
            )
            h_BWD = h_BWD + crossed[:, 0]
            flat = block.self_norm(h_BWD).reshape(batch * n_beams, -1)
            mixed, kv = block.self_attention.step(flat, None if cache is None else cache.layers[number])
            layers.append(kv)
            h_BWD = h_BWD + mixed.view(batch, n_beams, -1)
            h_BWD = h_BWD + block.ffn(block.ffn_norm(h_BWD))
        return h_BWD, SuffixCache(layers, n_beams)

    def reorder(self, cache: SuffixCache | CompiledCache, parent_BW: Tensor) -> SuffixCache | CompiledCache:
        """The cache whose beam w continues the old beam `parent_BW[b, w]`."""
        if not isinstance(cache, SuffixCache):
            return cache.reorder(parent_BW.numpy())
        batch, n_beams = parent_BW.shape
        if cache.n_beams == 1:
            # all beams continue BOS
            shared = [kv[:, None].expand(-1, n_beams, *kv.shape[1:]).flatten(0, 1) for kv in cache.layers]
            return SuffixCache(shared, n_beams)
        offset = torch.arange(batch, device=parent_BW.device)[:, None] * cache.n_beams
        rows = (parent_BW + offset).reshape(-1)
        return SuffixCache([kv.index_select(0, rows) for kv in cache.layers], n_beams)

    def score(self, prefix: Prefix, codes_NQ: Tensor) -> Tensor:
        """(B, N) log-probabilities of given SIDs, each the sum over levels of log-softmax over the whole codebook.

        Teacher forced, without the suffix cache: the slow twin of decoding.
        """
        prefix = self._told(prefix)
        batch, n_sids = prefix.batch_size, len(codes_NQ)
        surface = prefix.surface_B[:, None].expand(batch, n_sids).reshape(-1)
        codes = codes_NQ[None].expand(batch, -1, -1).reshape(batch * n_sids, -1)
        pool = None if prefix.pool_BD is None else prefix.pool_BD.repeat_interleave(n_sids, dim=0)
        h_MLD = self._embed(codes[:, :-1], surface, pool)
        n_codes = h_MLD.shape[1]
        for block in self.lazy_blocks():
            grid = block.cross_norm(h_MLD).view(batch, 1, n_sids * n_codes, -1)
            crossed = block.cross(
                grid,
                prefix.kv.keys[block.kv_set],
                prefix.kv.values[block.kv_set],
                prefix.rank_B1N,
                prefix.visible_B1N,
            )
            h_MLD = h_MLD + crossed.reshape(batch * n_sids, n_codes, -1)
            h_MLD = h_MLD + block.self_attention(block.self_norm(h_MLD))
            h_MLD = h_MLD + block.ffn(block.ffn_norm(h_MLD))
        total = h_MLD.new_zeros(batch * n_sids)
        for level in range(len(self.codebook_sizes)):
            log_probs = F.log_softmax(self.code_logits(h_MLD, level).float(), dim=-1)
            total = total + log_probs.gather(-1, codes[:, level : level + 1])[:, 0]
        return total.view(batch, n_sids)

    def select_scores(
        self, user_BD: Tensor, item_BC: Tensor, when_B: Tensor | None = None, *, keep: Tensor | None = None
    ) -> Tensor:
        """(B, C) selection scores of candidate items (negative rows are padding and score -inf).

        Args:
            when_B: seconds of each request, for the age of the items; None takes no account of it.
        """
        vectors = self.items(item_BC, keep)
        scores: Tensor = (vectors @ user_BD[:, :, None])[..., 0]
        if self.age is not None and when_B is not None:
            bucket = age_bucket(when_B[:, None], self.items.created_I[item_BC.clamp_min(0)])
            scores = scores + self.age(user_BD, vectors, bucket)
        return scores.masked_fill(item_BC < 0, float("-inf"))

    def catalogue_scores(
        self, user_MD: Tensor, rows_N: Tensor, age_MN: Tensor | None = None, *, keep: Tensor | None = None
    ) -> Tensor:
        """(M, N) float32 selection scores of the same items for all users.

        Args:
            age_MN: age buckets of the items for each user; None takes no account of it.
            keep: as in `forward`.
        """
        vectors = self.items(rows_N, keep)
        scores: Tensor = (user_MD @ vectors.T).float()
        if self.age is not None and age_MN is not None:
            scores = scores + self.age(user_MD, vectors, age_MN)
        return scores
