"""OneSearch as one object: made from a catalogue and a log, trained stage by stage, asked for lists, saved and loaded.

    own = OneSearch.build(items, sequences, tokenizer, config)
    own.fit_supervised(sequences)            # S1, S2, S3
    own.fit_reward(sequences)                # three towers
    own.fit_preference(sequences)            # PARS
    lists = own.lists(contexts, longest=350)

The folder: `config.json` (settings, words), `model.safetensors` (the generator), `reward.safetensors` (the towers, where
fitted), `tokenizer.safetensors` with `tokenizer.json`, `items.parquet`, and `counts.safetensors` (what the training period
took, for the order inside an ID and for the reward model). Nothing is pickled.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray

from rankloom.data.sequences import Sequences
from rankloom.errors import RankloomError
from rankloom.models.encoder_decoder import EncoderDecoder, Prompt
from rankloom.models.reward_towers import RewardTowers
from rankloom.onesearch.contexts import Contexts, DefaultSequences, contexts_of, numbered, training_contexts
from rankloom.onesearch.corpus import Items, Queries, category_texts
from rankloom.onesearch.fitting import Record, fit
from rankloom.onesearch.generating import Lists, generate
from rankloom.onesearch.prompts import KINDS, Prompts
from rankloom.onesearch.query_ids import QueryEncoder, item_encoder
from rankloom.onesearch.settings import OneSearchConfig
from rankloom.onesearch.stages import PersonalTask, Task, alignment_tasks, cooccurrence_tasks, draw_steps
from rankloom.onesearch.vocabulary import Vocabulary
from rankloom.semantic.tokenizer import Tokenizer
from rankloom.semantic.trie import Trie


@dataclass
class OneSearch:
    """See the module's docstring.

    Attributes:
        prompts: makes prompts over the log's queries.
        defaults: the default sequences of queries.
        encode: queries to IDs.
        towers: the reward model, once fitted.
        records: what each stage's training did.
    """

    config: OneSearchConfig
    vocabulary: Vocabulary
    tokenizer: Tokenizer
    network: EncoderDecoder
    prompts: Prompts
    defaults: DefaultSequences
    trie: Trie
    encode: QueryEncoder
    towers: RewardTowers | None = None
    records: dict[str, Record] = field(default_factory=dict)

    @classmethod
    def build(
        cls, items: pl.DataFrame, sequences: Sequences, tokenizer: Tokenizer, config: OneSearchConfig, *,
        encode: QueryEncoder | None = None,
    ) -> OneSearch:  # fmt: skip
        """An untrained model.

        Args:
            sequences: the log, with its queries.
            tokenizer: fitted on the same catalogue, with residual K-means and OPQ.
            encode: IDs of queries; the item encoder where None.

        Raises:
            RankloomError: the tokenizer's IDs are of another kind.
        """
        encode = encode or item_encoder(tokenizer)
        levels = tokenizer.semantic_ids.n_levels if config.opq else 3
        texts = [*items["title"].fill_null("").to_list(), *category_texts(items), *sequences.queries]
        if "brand" in items.columns:
            texts += items["brand"].fill_null("").to_list()
        vocabulary = Vocabulary.of(texts, tokenizer.semantic_ids.codebook_sizes[:levels], most=config.stages.words)
        own = Items.of(items, tokenizer, sequences, config, vocabulary)
        queries = Queries.of(sequences.queries, encode, vocabulary, config)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            network = EncoderDecoder(
                config.network, n_tokens=vocabulary.n_tokens, code_start=vocabulary.code_start, codebook_sizes=own.sizes,
                n_kinds=len(KINDS),
                centroids=[torch.from_numpy(part) for part in own.centroids] if config.behaviour.long else None,
            )  # fmt: skip
        prompts = Prompts(vocabulary, own, queries, config.behaviour)
        trie = Trie.build(own.codes_IL, own.sizes, own.count_I)
        return cls(
            config, vocabulary, tokenizer, network.eval(), prompts,
            DefaultSequences(sequences, own, config.behaviour.window), trie, encode,
        )  # fmt: skip

    @property
    def items(self) -> Items:
        return self.prompts.items

    # -- contexts

    def training_contexts(self, sequences: Sequences) -> Contexts:
        """The samples of S3, default sequences filled in."""
        own = training_contexts(sequences, self.config.behaviour)
        if not self.config.behaviour.default_sequence:
            return own
        return self.defaults.fill(own, self.prompts.queries, trained=True)

    def asked(
        self, sequences: Sequences, user: NDArray[Any], row: NDArray[Any], queries: Sequence[str]
    ) -> tuple[Contexts, Prompts]:
        """Contexts of questions with queries of their own, and the prompts that know these.

        Args:
            sequences: the log that the model was built on, or one with the same queries.
            row: the history is what stands before it.
        """
        known = self.prompts.queries
        if sequences.queries != known.texts[: len(sequences.queries)]:
            raise RankloomError(
                "the log's queries are not those that the model was built on",
                place="sequences",
                action="ask with the log that the model was built on",
                code="onesearch-log",
            )
        number, fresh = numbered(queries, known.texts)
        table = known.joined(Queries.of(fresh, self.encode, self.vocabulary, self.config)) if fresh else known
        prompts = self.prompts.with_queries(table)
        own = contexts_of(sequences, user, row, number, self.config.behaviour)
        own = replace(own, target_C=np.full(len(own), -1, dtype=np.int64))
        if self.config.behaviour.default_sequence:
            own = self.defaults.fill(own, table, trained=False)
        return own, prompts

    # -- training

    def fit_supervised(self, sequences: Sequences, *, quiet: bool = True) -> None:
        """S1, S2 and S3; what has no steps is left out."""
        stages = self.config.stages
        before: list[Task] = []
        plan = [
            ("S1", stages.s1_steps, lambda: alignment_tasks(self.prompts, self.vocabulary, sequences, self.config)),
            ("S2", stages.s2_steps, lambda: cooccurrence_tasks(self.prompts, self.vocabulary, sequences, self.config)),
            ("S3", stages.s3_steps, lambda: self._personal(sequences)),
        ]
        for number, (name, n_steps, tasks_of) in enumerate(plan):
            if not n_steps:
                continue
            tasks = tasks_of()
            self.records[name] = self._fit(name, tasks, before, n_steps, number, quiet=quiet)
            before += tasks

    def _personal(self, sequences: Sequences) -> list[Task]:
        return [PersonalTask(self.prompts, self.training_contexts(sequences), self.config.stages.smoothing)]

    def _fit(self, name: str, tasks: list[Task], before: list[Task], n_steps: int, number: int, *, quiet: bool) -> Record:
        stages = self.config.stages
        rng = np.random.default_rng([self.config.seed, number])
        again = draw_steps(before, n_steps, stages.batch_size, rng)

        def steps() -> Any:
            for task, chosen in draw_steps(tasks, n_steps, stages.batch_size, rng):
                own, pairs = task, chosen
                if before and rng.random() < stages.replay:
                    own, pairs = next(again)
                yield own.name, lambda own=own, pairs=pairs: own.loss(self.network, pairs)

        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.config.seed * 10 + number)
            return fit(
                self.network, steps(), n_steps, learning_rate=stages.learning_rate, warmup=stages.warmup,
                weight_decay=stages.weight_decay, label=f"OneSearch {name}", quiet=quiet,
            )  # fmt: skip

    # -- lists

    def generated(self, contexts: Contexts, prompts: Prompts, *, longest: int, beam: int | None = None, block: int = 16) -> Lists:
        """What the generator alone lists."""

        def prompt_of(own: Contexts) -> Prompt:
            return prompts.personal(own)

        return generate(
            self.network, prompt_of, contexts, self.trie, beam=beam or self.config.beam, longest=longest, block=block
        )
