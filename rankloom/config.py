"""One schema for YAML files, command-line flags and the Python API.

Every knob of the system is a field here, in the section of the part that reads it. Unknown keys are errors that
suggest the nearest name. `None` on a data-dependent field means "chosen by the program from the training data".

    config = Config.preset("small")                          # tiny | small | base
    config = Config.load("my.yaml", preset="small")          # a YAML file on top of a preset
    config = config.with_overrides(["model.n_layers=6"])     # what `--set` does
"""

from __future__ import annotations

import difflib
import math
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from rankloom.errors import RankloomError

PresetName = Literal["tiny", "small", "base"]

KEYWORD_TYPES = (
    "entity", "modifier", "brand", "material", "style", "function", "location", "audience", "color",
    "scene", "specifications", "price", "model", "anchor", "series", "marketing", "season", "pattern",
)  # fmt: skip
"""The eighteen types of OneSearch's dictionary (arXiv 2509.03236, keyword enhancement)."""


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)


class DataConfig(Section):
    """Which events train the model and how time is split (data/sequences.py)."""

    split: Literal["leave-one-out", "time"] = "time"
    target_events: tuple[str, ...] = (
        "click",
        "view",
        "like",
        "follow",
        "comment",
        "share",
        "add_to_cart",
        "purchase",
    )
    """Event kinds that the model learns to predict. Impressions and dislikes never are."""
    context_events: tuple[str, ...] = ("dislike",)
    """Event kinds that are seen in the history but never predicted."""
    min_watch_ratio: float | None = Field(default=None, ge=0.0)
    """A `view` with a known watch ratio below this is not a target."""
    valid_share: float = Field(default=0.1, gt=0.0, lt=0.5)
    test_share: float = Field(default=0.1, gt=0.0, lt=0.5)
    """For `time`: the last shares of the log's target events, by time."""
    repeats: Literal["auto", "allow", "mask"] = "auto"
    """Whether served lists may hold seen items. `auto`: allow when over 5% of training targets are repeats."""


class TextConfig(Section):
    """Item text to vectors (semantic/text.py)."""

    embedder: str = "auto"
    """`auto`, `hashed`, `minilm`, `column`, or `sentence-transformers:NAME_OR_PATH`; several side by side with `+`."""
    dim: int = Field(default=256, ge=8)
    """Width of the hashed TF-IDF + SVD embedder."""
    vector_column: str | None = None
    """Own vectors, of pictures say: a list[float] column of items.parquet, for `embedder: column` or beside the text."""

    @model_validator(mode="after")
    def _check(self) -> TextConfig:
        parts = self.embedder.split("+")
        for part in parts:
            named = part.startswith("sentence-transformers:") and not part.endswith(":")
            alone = part in ("auto", "column") and len(parts) == 1
            if not (named or alone or part in ("hashed", "minilm")):
                raise ValueError(
                    f"no text embedder {self.embedder!r}: choose auto, hashed, minilm, minilm+hashed, column or "
                    "sentence-transformers:NAME"
                )
        if self.embedder == "column" and self.vector_column is None:
            raise ValueError("embedder is column but vector_column names none: set text.vector_column")
        return self


class KeywordsConfig(Section):
    """Keywords of titles and queries, found and fused into their vectors (semantic/keywords/; OneSearch, KHQE)."""

    enabled: bool = False
    """Mine a typed dictionary and fuse; needs the extra `search`."""
    share: float = Field(default=0.5, ge=0, le=1)
    """Of the keywords in the fused vector; OneSearch's half. 0 keeps the text's vector."""
    guard: Literal["off", "weigh", "strip"] = "strip"
    """Against stuffed titles: nothing; weigh a keyword by how it agrees with the item's columns; also strip what counts 0."""
    types: tuple[str, ...] = KEYWORD_TYPES
    """Types that are kept; OneSearch's eighteen, or fewer, or the shop's own beside them."""
    terms: dict[str, tuple[str, ...]] = Field(default={})
    """Own words by type; they win over what is mined."""
    attributes: dict[str, str] = Field(default={})
    """Type of the shop's own attributes, by their key; the common ones are known."""
    numbers: bool = True
    """English keywords match in singular and plural."""
    min_items: int = Field(default=3, ge=1)
    """Items that hold a word before it is a keyword."""
    min_takes: int = Field(default=3, ge=1)
    """Takes after queries with a word, of items that hold it, before it is one."""
    max_words: int = Field(default=3, ge=1, le=5)
    """Words of a phrase, at most."""
    min_lift: float = Field(default=3.0, ge=1)
    """How many times as frequent a phrase of titles has to be in one category as overall."""
    min_npmi: float = Field(default=0.3, ge=-1, le=1)
    """Normalised pointwise mutual information of its parts."""
    max_per_type: int = Field(default=5000, ge=1)
    """The head of every type, by items and takes."""

    @field_validator("guard", mode="before")
    @classmethod
    def _yaml_off(cls, value: Any) -> Any:
        # YAML reads a bare off as false
        return "off" if value is False else value

    @model_validator(mode="after")
    def _check(self) -> KeywordsConfig:
        unknown = sorted({*self.terms, *self.attributes.values()} - set(self.types))
        if unknown:
            raise ValueError(f"{', '.join(unknown)} of terms or attributes: not in types {list(self.types)}")
        return self


class AlignmentConfig(Section):
    """Collaborative alignment of item vectors (semantic/alignment.py; OneRec TR section on tokenizers)."""

    enabled: bool = True
    pairs: tuple[Literal["cooccurrence", "swing", "target"], ...] = ("swing", "cooccurrence")
    """Which items belong together: near in a history, alike by Swing, a taken item with the most alike one before it."""
    dim: int = Field(default=128, ge=4)
    epochs: int = Field(default=10, ge=0)
    batch_size: int = Field(default=512, ge=8)
    learning_rate: float = Field(default=1e-3, gt=0)
    temperature: float = Field(default=0.07, gt=0)
    content_weight: float = Field(default=0.5, ge=0)
    """Weight of the content-preserving loss that stops the alignment from forgetting what an item is."""


class KhqeConfig(Section):
    """One aligned space and one codebook for queries and items (semantic/khqe/; OneSearch, KHQE). Needs searches in the log.

    The weights are those of the five losses; 0 switches a loss off. Width, epochs, batch, rate, temperature and the weight of
    the content-preserving loss are those of `alignment`.
    """

    enabled: bool = False
    """Align queries and items together; without it items alone are aligned, and queries go through the same projection."""
    q2q: float = Field(default=1.0, ge=0)
    """Queries that led to the same items lie together (in-batch contrast)."""
    i2i: float = Field(default=1.0, ge=0)
    """Items that are used together lie together: the pairs of `alignment.pairs` (in-batch contrast)."""
    q2i: float = Field(default=1.0, ge=0)
    """A query and what was taken after it lie together (in-batch contrast)."""
    rank: float = Field(default=1.0, ge=0)
    """What was ordered after a query is nearer to it than what was clicked, and that nearer than what was shown (margin)."""
    relevance: float = Field(default=1.0, ge=0)
    """How near a query and an item are that are easily confused says how relevant it is."""
    margin: float = Field(default=0.1, ge=0, le=2)
    """Of the rank loss, in cosine, for each of the steps shown, clicked, ordered."""
    min_cosine: float | None = Field(default=None, ge=-1, le=1)
    """Pairs whose vectors before alignment are less alike are dropped. OneSearch: .6 with its encoder; null: `drop_share`."""
    drop_share: float = Field(default=0.1, ge=0, lt=1)
    """Without `min_cosine`: the least alike so many of each kind of pairs are dropped, whatever the encoder's scale."""
    grades: str | None = None
    """A Parquet file of graded relevance: `query`, `item_id`, `label` (a number, more is better). Null: the share of the
    query's words, by how rare they are, that the item's text has."""
    hard_items: int = Field(default=20, ge=1)
    """Items nearest to a query, with which the relevance loss confronts it."""
    hard_queries: int = Field(default=4096, ge=1)
    """Queries that it draws, at most."""
    read_queries: bool = True
    """Hashed text is fitted on queries beside the items' text, so that a word that only people type has a vector."""
    codebook: Literal["both", "items"] = "both"
    """Whose vectors are clustered into codes: queries and items together (OneSearch), or items alone."""


class QuantizerConfig(Section):
    """Aligned vectors to semantic IDs (semantic/quantizers/)."""

    kind: Literal["rq-kmeans", "rq-vae"] = "rq-kmeans"
    """What codes the vectors level by level: residual K-means (OneRec TR), or an RQ-VAE (TIGER) for comparison."""
    codebook_sizes: tuple[int, ...] | None = None
    """Codes per level, first level first; None sizes them to the catalogue: 3 levels, or 2 before `last: fsq`."""
    decreasing: bool = False
    """Codebooks that shrink level by level (OneSearch); without `codebook_sizes`, 4 : 1 : 1/4 at the same product."""
    balanced_levels: tuple[int, ...] = ()
    """Levels (0-based; -1 is the last) whose clusters are forced to equal size. `rq-kmeans` only."""
    iterations: int = Field(default=25, ge=1)
    """Of Lloyd's algorithm per level, at most."""
    last: Literal["none", "fsq", "opq"] = "none"
    """What codes the residual that those levels leave: nothing, one FSQ level (OneMall), or OPQ sub-codes (OneSearch)."""
    fsq_levels: tuple[int, ...] | None = None
    """Values per FSQ dimension; their product is the level's codebook. None: about as many as a residual level has."""
    fsq_hidden: int = Field(default=128, ge=1)
    fsq_epochs: int = Field(default=60, ge=0)
    opq_subspaces: int = Field(default=2, ge=1)
    """OPQ sub-codes, each a further level of the ID."""
    opq_codes: int | None = Field(default=None, ge=2)
    """Codes of each; None: a quarter of a residual level, at most OneSearch's 256."""
    opq_iterations: int = Field(default=20, ge=0)
    """Turns of learning the rotation and the codebooks; 0 is plain product quantisation."""
    vae_hidden: tuple[int, ...] = (256,)
    """Widths between vector and latent; the decoder mirrors them."""
    vae_latent: int = Field(default=64, ge=1)
    vae_epochs: int = Field(default=100, ge=1)
    vae_learning_rate: float = Field(default=1e-3, gt=0)
    vae_commitment: float = Field(default=0.25, ge=0)
    """Weight of the term that keeps the latent near its codes."""
    collision: Literal["dedup", "list"] = "list"
    """`dedup`: one more code makes every SID unique. `list`: a SID names a list of items ordered by prior."""

    @property
    def n_levels(self) -> int:
        """Residual levels, before the last stage and the dedup code."""
        return len(self.codebook_sizes) if self.codebook_sizes is not None else 2 if self.last == "fsq" else 3

    @model_validator(mode="after")
    def _check(self) -> QuantizerConfig:
        sizes = self.codebook_sizes
        if sizes is not None and (not sizes or min(sizes) < 2):
            raise ValueError(f"codebook_sizes {list(sizes)}: at least one level, each of at least 2 codes")
        if sizes is not None and self.decreasing and sorted(sizes, reverse=True) != list(sizes):
            raise ValueError(f"decreasing is set but codebook_sizes {list(sizes)} grow")
        if self.kind == "rq-vae" and self.balanced_levels:
            raise ValueError("rq-vae has no balanced levels; use kind rq-kmeans, or balanced_levels []")
        outside = [level for level in self.balanced_levels if not -self.n_levels <= level < self.n_levels]
        if outside:
            raise ValueError(f"balanced_levels {outside} are outside the {self.n_levels} residual levels")
        if self.fsq_levels is not None:
            if self.last != "fsq":
                raise ValueError(f"fsq_levels are set but last is {self.last}; use last fsq")
            if not self.fsq_levels or min(self.fsq_levels) < 2 or math.prod(self.fsq_levels) > 65_536:
                raise ValueError(
                    f"fsq_levels {list(self.fsq_levels)}: at least 2 values a dimension, a product of at most 65536"
                )
        if self.opq_codes is not None and self.last != "opq":
            raise ValueError(f"opq_codes is set but last is {self.last}; use last opq")
        if not all(width >= 1 for width in self.vae_hidden):
            raise ValueError(f"vae_hidden {list(self.vae_hidden)}: widths of at least 1")
        return self


class ModelConfig(Section):
    """The OneRec-V2 lazy decoder (models/; OneRec-V2 section 4)."""

    d_model: int = Field(default=128, ge=8)
    n_layers: int = Field(default=4, ge=1)
    n_heads: int = Field(default=4, ge=1)
    l_kv: int = Field(default=1, ge=1)
    """Distinct context K/V sets; layer l reads set floor(l * l_kv / n_layers)."""
    s_kv: Literal[1, 2] = 1
    """1: keys and values share one chunk; 2: separate chunks."""
    g_kv: int | None = Field(default=None, ge=1)
    """K/V head groups (GQA) of the context; None means n_heads."""
    ffn_mult: float = Field(default=4.0, gt=0)
    """Hidden width of the gated FFN over d_model."""
    dropout: float = Field(default=0.1, ge=0, lt=1)
    moe_experts: int = Field(default=0, ge=0)
    """Routed experts of a MoE FFN; 0 keeps every FFN dense."""
    moe_top_k: int = Field(default=3, ge=1)
    moe_shared: int = Field(default=1, ge=0)
    moe_expert_hidden: int | None = Field(default=None, ge=1)
    moe_first_dense: int = Field(default=2, ge=0)
    """Leading blocks that stay dense (OneRec-V2 section 4.4)."""
    max_history: int = Field(default=50, ge=1)
    content: Literal["aligned", "both"] = "both"
    """What the model reads of an item's text: the aligned vectors, or the vectors before alignment beside them."""
    item_embedding: bool = True
    """A learned vector per training item beside its SID and text in the context and in the selection head."""
    item_dim: int | None = Field(default=None, ge=8)
    """Width of item vectors, in which selection compares; None is d_model."""
    history_pool: bool = True
    """The user's state starts from recency-weighted means of the history's item vectors (models/pool.py)."""
    item_attributes: bool = True
    """A learned vector per category, brand, price and duration of an item beside them."""
    item_age: bool = True
    """The selection head reads how old an item is at the moment of the request, where log and catalogue say."""
    item_trust: float = Field(default=5.0, ge=0)
    """k of n / (n + k), by which the learned vector of an item that was taken n times counts."""
    item_dropout: float = Field(default=0.2, ge=0, lt=1)
    """Share of items whose learned vector is hidden in a training step, so that SID and text can stand alone."""

    @model_validator(mode="after")
    def _check(self) -> ModelConfig:
        if self.d_model % self.n_heads:
            raise ValueError(f"d_model {self.d_model} is not a multiple of n_heads {self.n_heads}")
        if self.g_kv is not None and self.n_heads % self.g_kv:
            raise ValueError(f"n_heads {self.n_heads} is not a multiple of g_kv {self.g_kv}")
        if self.l_kv > self.n_layers:
            raise ValueError(f"l_kv {self.l_kv} exceeds n_layers {self.n_layers}")
        if self.moe_experts and self.moe_top_k > self.moe_experts:
            raise ValueError(f"moe_top_k {self.moe_top_k} exceeds moe_experts {self.moe_experts}")
        return self


class SelectionConfig(Section):
    """The head that orders generated items (models/selection.py; OneRec TR: generate, then select)."""

    enabled: bool = True
    loss_weight: float = Field(default=1.0, ge=0)
    full_softmax_limit: int = Field(default=60_000, ge=1)
    """Catalogues up to this size train with the full softmax, larger ones with a sampled one."""
    n_negatives: int = Field(default=4096, ge=1)
    refine: bool = True
    """A small network fitted on validation has the last word, where it helps (decoding/refine.py)."""
    mix: float | None = Field(default=None, ge=0, le=1)
    """Weight of the generator's log-probability beside the head's score; None is chosen on validation."""
    broad_searches: float = Field(default=10.0, ge=0)
    """Made searches for a kind of item, at most, over the log's own of the validation period; on them the order of broad searches is fitted
    (choosing_broad.py). With 0 these are ordered like all others."""


class MemoryConfig(Section):
    """What people took after what, interpolated with the generator while decoding (decoding/memory.py)."""

    enabled: bool = True
    share: float | None = Field(default=None, ge=0, lt=1)
    """Weight of the memory where it has something to say; None is chosen on validation."""
    top: int = Field(default=256, ge=1)
    """Entries kept per item."""
    queries: bool = True
    """Searches: items whose words a query has, interpolated likewise, with weights and a refiner of their own
    (decoding/query_memory.py)."""
    synonyms: bool = True
    """What people typed before they took an item finds it, as the words of its text do."""
    untried_words: float = Field(default=16.0, ge=0, le=100)
    """Nats that an item gains by having all words of a search that no search of the log had: a new brand, a model number. 0 leaves them to
    what was learned from the log's own words."""
    max_typos: int = Field(default=1, ge=0, le=2)
    """Slips that a word of a search may have and still be read as a known one: 0 none, 1 from four letters on, 2 from eight on. A
    request may ask otherwise."""


class TrainingConfig(Section):
    """The loop (training/loop.py)."""

    max_epochs: int = Field(default=40, ge=1)
    min_steps: int = Field(default=400, ge=0)
    """Small shops train more epochs, and smaller batches, until at least so many steps are planned."""
    max_minutes: float | None = Field(default=None, gt=0)
    """Wall-clock bound; the best checkpoint so far is exported."""
    batch_tokens: int = Field(default=4096, ge=1)
    """History positions a step, after length bucketing."""
    accumulate: int = Field(default=1, ge=1)
    learning_rate: float = Field(default=1e-3, gt=0)
    min_learning_rate_share: float = Field(default=0.05, ge=0, le=1)
    warmup_steps: int = Field(default=100, ge=0)
    weight_decay: float = Field(default=0.05, ge=0)
    betas: tuple[float, float] = (0.9, 0.98)
    clip_norm: float = Field(default=1.0, gt=0)
    label_smoothing: float = Field(default=0.0, ge=0, lt=1)
    precision: Literal["auto", "fp32", "bf16"] = "fp32"
    """`auto`: bf16 where the processor or GPU multiplies it natively."""
    order: Literal["shuffled", "chronological"] = "shuffled"
    supervise: Literal["all", "newest"] = "all"
    """Train every position of a window, or only its newest (OneRec-V2 section 4.1, layout c)."""
    query_dropout: float = Field(default=0.5, ge=0, le=1)
    """Share of the searches that a pass over the log reads as if nothing had been asked, another share in every pass: what
    people took after a query teaches the feed too."""
    recency_days: float | None = Field(default=None, gt=0)
    """Half-life of a target's weight, counted back from the end of the training period; None weighs all alike."""
    ema: float | None = Field(default=None, gt=0, lt=1)
    """Decay of an exponential moving average of the weights; None is off."""
    patience: int = Field(default=5, ge=1)
    """Evaluations without a better validation figure before stopping."""
    eval_users: int = Field(default=4000, ge=1)
    eval_every_epochs: float = Field(default=1.0, gt=0)
    checkpoint_minutes: float = Field(default=2.0, ge=0)
    threads: int | None = Field(default=None, ge=1)


class DecodingConfig(Section):
    """Constrained beam search (decoding/beam.py)."""

    beam: int = Field(default=128, ge=1)
    normalise: Literal["codebook", "trie"] = "codebook"
    """In training and decoding: softmax over a whole codebook (OneRec-V2), or over the codes that the trie allows."""
    lift: float | None = Field(default=None, ge=0, le=2)
    """Strength of the shift from the training period's exposure to that of the moment (decoding/exposure.py); None is
    chosen on validation. Only where log and catalogue say how old items are (`model.item_age`)."""
    engine: Literal["auto", "eager", "compiled", "graph"] = "auto"
    """How requests are computed: `compiled` by kernels, which need `pip install "rankloom[compiled]"`; `eager` by plain torch
    and NumPy; `graph` by one captured CUDA graph; `auto` graph where the model sits on a CUDA device, compiled where numba is
    installed. The answers are the same."""
    precision: Literal["auto", "fp32", "bf16"] = "fp32"
    """Of the matrix products of the eager and the graph engine; the kernels are fp32 always. `bf16` leaves the decoder's kernels
    out; `auto` is bf16 on a processor with AMX, for what the kernels do not run, else fp32, and fp32 on a GPU. In bf16 items of
    nearly equal probability may change places. The eager engine's scores, softmax, residuals and heads are fp32 always; the
    graph engine's heads are of the precision of its blocks."""

    @model_validator(mode="after")
    def _check(self) -> DecodingConfig:
        if self.engine == "compiled" and self.precision == "bf16":
            raise ValueError(
                "precision bf16 needs the eager or the graph engine, the kernels are fp32: set engine to auto, eager or graph, "
                "or precision to auto"
            )
        return self


class EvaluationConfig(Section):
    """What `rankloom evaluate` measures (evaluation/)."""

    ks: tuple[int, ...] = (5, 10, 50)
    max_cases_per_user: int = Field(default=5, ge=1)
    """For the time split: at most the first so many targets of a user in the test period."""
    bootstrap: int = Field(default=1000, ge=0)


class Config(Section):
    """The whole of it. `rankloom train --config FILE` reads this schema; the model folder keeps it."""

    seed: int = Field(default=0, ge=0, lt=2**32)
    preset: PresetName = "small"
    data: DataConfig = DataConfig()
    text: TextConfig = TextConfig()
    keywords: KeywordsConfig = KeywordsConfig()
    alignment: AlignmentConfig = AlignmentConfig()
    khqe: KhqeConfig = KhqeConfig()
    quantizer: QuantizerConfig = QuantizerConfig()
    model: ModelConfig = ModelConfig()
    selection: SelectionConfig = SelectionConfig()
    memory: MemoryConfig = MemoryConfig()
    training: TrainingConfig = TrainingConfig()
    decoding: DecodingConfig = DecodingConfig()
    evaluation: EvaluationConfig = EvaluationConfig()

    @model_validator(mode="after")
    def _check(self) -> Config:
        if self.keywords.enabled and self.text.embedder == "column":
            raise ValueError("keywords.enabled needs a text embedder, but text.embedder is column")
        if self.khqe.enabled and self.text.embedder == "column":
            raise ValueError("khqe.enabled reads queries and needs a text embedder, but text.embedder is column")
        if self.khqe.enabled and not self.alignment.enabled:
            raise ValueError("khqe.enabled trains the alignment, but alignment.enabled is false")
        return self

    @classmethod
    def preset_config(cls, name: str) -> Config:
        """The named preset. Raises `RankloomError` for an unknown name."""
        if name not in PRESETS:
            raise RankloomError(
                f"no preset {name!r}", action=f"choose one of {', '.join(PRESETS)}", code="unknown-preset"
            )
        return cls.parse({"preset": name}, place=f"preset {name}")

    @classmethod
    def load(cls, path: str | Path, *, preset: str = "small") -> Config:
        """A YAML file on top of a preset; the file's own `preset:` wins over the argument."""
        path = Path(path)
        try:
            raw = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
        except FileNotFoundError:
            raise RankloomError(
                f"no configuration file {path}",
                place=str(path),
                action="check --config",
                code="config-missing",
            ) from None
        except OSError as error:
            raise RankloomError(
                f"the configuration {path} cannot be read: {error.strerror}",
                place=str(path),
                action="pass a YAML file with --config",
                code="config-missing",
            ) from None
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise RankloomError(
                f"{path.name} is not valid YAML: {error}",
                place=str(path),
                action="mend the file",
                code="config-broken",
            ) from None
        if not isinstance(raw, dict):
            raise RankloomError(
                f"{path.name} must hold a mapping of sections",
                place=str(path),
                action="see docs/configuration.md",
                code="config-broken",
            )
        return cls.parse({"preset": preset, **raw}, place=str(path))

    @classmethod
    def parse(cls, raw: dict[str, Any], *, place: str = "configuration") -> Config:
        """Validates `raw` on top of the preset it names."""
        preset = raw.get("preset", "small")
        if preset not in PRESETS:
            raise RankloomError(
                f"no preset {preset!r}",
                place=place,
                action=f"choose one of {', '.join(PRESETS)}",
                code="unknown-preset",
            )
        try:
            return cls.model_validate(_merge(PRESETS[preset], raw))
        except ValidationError as error:
            raise _explain(error, place) from None

    def with_overrides(self, assignments: list[str], *, place: str = "--set") -> Config:
        """Applies `section.field=value` strings; values are read as YAML."""
        raw = self.model_dump(mode="json")
        for assignment in assignments:
            name, separator, value = assignment.partition("=")
            if not separator:
                raise RankloomError(
                    f"{assignment!r} is not name=value",
                    place=place,
                    action="write e.g. --set model.n_layers=6",
                    code="config-override",
                )
            node = raw
            *parents, leaf = name.strip().split(".")
            for parent in parents:
                node = node.setdefault(parent, {})
                if not isinstance(node, dict):
                    raise RankloomError(
                        f"{parent!r} in {name!r} is not a section",
                        place=place,
                        action="see docs/configuration.md",
                        code="config-override",
                    )
            try:
                node[leaf] = yaml.safe_load(value)
            except yaml.YAMLError:
                raise RankloomError(
                    f"the value {value!r} of {name!r} cannot be read",
                    place=place,
                    action="write numbers, true or false, words, or lists such as [256,256,256]",
                    code="config-override",
                ) from None
        try:
            return Config.model_validate(raw)
        except ValidationError as error:
            raise _explain(error, place) from None

    def to_yaml(self) -> str:
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


PRESETS: dict[str, dict[str, Any]] = {
    "tiny": {
        "text": {"dim": 64, "embedder": "hashed"},
        "alignment": {"dim": 32, "epochs": 3},
        "model": {"d_model": 32, "n_layers": 2, "n_heads": 2, "max_history": 20},
        "training": {"max_epochs": 3, "min_steps": 150, "eval_users": 500},
        "decoding": {"beam": 32},
    },
    "small": {
        "model": {
            "d_model": 64,
            "n_layers": 2,
            "n_heads": 2,
            "ffn_mult": 2.0,
            "dropout": 0.3,
            "content": "aligned",
            "item_dropout": 0.3,
        },
        "training": {
            "batch_tokens": 1024,
            "max_epochs": 12,
            "eval_users": 4000,
            "learning_rate": 2e-3,
            "label_smoothing": 0.1,
            "weight_decay": 0.2,
            "ema": 0.998,
            "precision": "auto",
        },
        "decoding": {"normalise": "trie"},
    },
    # OneRec-V2 section 4.4, the 0.1B row
    "base": {
        "model": {"d_model": 640, "n_layers": 12, "n_heads": 10, "max_history": 512},
        "quantizer": {"codebook_sizes": [8192, 8192, 8192]},
        "training": {"learning_rate": 5e-4, "precision": "bf16", "batch_tokens": 16384},
        "decoding": {"beam": 512},
    },
}


def _merge(base: dict[str, Any], top: dict[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in top.items():
        if isinstance(value, dict) and isinstance(merged.get(key), dict):
            merged[key] = _merge(merged[key], value)
        else:
            merged[key] = value
    return merged


def _known_fields(location: tuple[int | str, ...]) -> list[str]:
    model: type[BaseModel] = Config
    for part in location[:-1]:
        field = model.model_fields.get(str(part))
        if field is None or not (isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel)):
            return []
        model = field.annotation
    return list(model.model_fields)


def _explain(error: ValidationError, place: str) -> RankloomError:
    lines, actions = [], []
    for item in error.errors():
        name = ".".join(str(part) for part in item["loc"]) or "configuration"
        if item["type"] == "extra_forbidden":
            known = _known_fields(item["loc"])
            close = difflib.get_close_matches(str(item["loc"][-1]), known, n=1)
            lines.append(f"unknown key {name!r}")
            actions.append(f"did you mean {close[0]!r}?" if close else f"known here: {', '.join(known)}")
        elif item["type"] == "value_error":
            # a section's own check names the values that do not go together
            lines.append(f"{name}: {item['ctx']['error']}")
        else:
            lines.append(f"{name}: {item['msg']} (got {item['input']!r})")
    return RankloomError(
        "; ".join(lines),
        place=place,
        action=" ".join(actions) or "see docs/configuration.md",
        code="config-invalid",
    )
