"""OneSearch as one object: made from a catalogue and a log, trained stage by stage, asked for lists.

    own = OneSearch.build(items, sequences, tokenizer, config)
    own.fit_supervised(sequences)            # S1, S2, S3
    own.fit_reward(sequences)                # three towers
    own.fit_preference(sequences)            # PARS
    lists = own.lists(contexts, longest=350)

Each step can be left out; `folder.py` saves and loads the whole.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray

from rankloom.data.sequences import TRAIN, Sequences
from rankloom.errors import RankloomError
from rankloom.models.encoder_decoder import EncoderDecoder, Prompt
from rankloom.onesearch.contexts import (
    Contexts,
    DefaultSequences,
    contexts_of,
    feed_orders,
    numbered,
    sampled_contexts,
    training_contexts,
)
from rankloom.onesearch.corpus import Items, Queries, category_texts, code_vectors, main_directions, used_levels
from rankloom.onesearch.fitting import Record, fit
from rankloom.onesearch.generating import Lists, generate
from rankloom.onesearch.negatives import Feedback, Negatives
from rankloom.onesearch.pars import Pairs, feedback_pairs, frozen, generated_pairs, train_preferences
from rankloom.onesearch.profiles import Profiles
from rankloom.onesearch.prompts import KINDS, Prompts, check_places
from rankloom.onesearch.query_ids import QueryEncoder, item_encoder
from rankloom.onesearch.reward_model import RewardModel
from rankloom.onesearch.settings import BehaviourConfig, OneSearchConfig
from rankloom.onesearch.stages import PersonalTask, Task, alignment_tasks, cooccurrence_tasks, draw_steps
from rankloom.onesearch.statistics import Statistics
from rankloom.onesearch.vocabulary import Vocabulary
from rankloom.semantic.tokenizer import Tokenizer
from rankloom.semantic.trie import Trie
from rankloom.training.objectives import TrieSoftmax

STAGES: Final = ("S1", "S2", "S3")


@dataclass
class OneSearch:
    """See the module's docstring.

    Attributes:
        prompts: makes prompts over the log's queries.
        defaults: the default sequences of queries.
        statistics: what the reward model counts.
        encode: queries to IDs.
        rewarder: the reward model, once fitted.
        records: what each stage's training did.
        shares: of the contexts of PARS' phase 1, those whose order changed and those that gave a pair.
    """

    config: OneSearchConfig
    vocabulary: Vocabulary
    tokenizer: Tokenizer
    network: EncoderDecoder
    prompts: Prompts
    defaults: DefaultSequences
    statistics: Statistics
    trie: Trie
    encode: QueryEncoder
    rewarder: RewardModel | None = None
    records: dict[str, Record] = field(default_factory=dict)
    shares: dict[str, float] = field(default_factory=dict)

    @classmethod
    def build(
        cls, items: pl.DataFrame, sequences: Sequences, tokenizer: Tokenizer, config: OneSearchConfig, *,
        encode: QueryEncoder | None = None, users: pl.DataFrame | None = None,
    ) -> OneSearch:  # fmt: skip
        """An untrained model.

        Args:
            sequences: the log, with its queries.
            tokenizer: fitted on the same catalogue, with residual K-means and OPQ.
            encode: IDs of queries; the item encoder where None.
            users: the shop's people, whose columns `behaviour.profile` are read.

        Raises:
            RankloomError: the tokenizer's IDs are of another kind, `users` has none of the columns that were named in place of
                the default's, or a part of the prompt has more places than the network can read.
        """
        columns = config.behaviour.profile
        profiles = Profiles.of(users, columns, required=columns != BehaviourConfig().profile)
        texts = [*items["title"].fill_null("").to_list(), *category_texts(items), *sequences.queries]
        if "brand" in items.columns:
            texts += items["brand"].fill_null("").to_list()
        texts += profiles.text_U
        words = Vocabulary.of(texts, (), most=config.stages.words).words
        trained = (sequences.stage == TRAIN) & sequences.target
        count_I = np.bincount(sequences.item[trained], minlength=items.height).astype(np.int64)
        return cls.assemble(
            items, tokenizer, config, words=words, queries=sequences.queries, count_I=count_I,
            defaults=DefaultSequences.of(
                sequences, tokenizer.semantic_ids.codes[:, 0], tokenizer.semantic_ids.codebook_sizes[0], count_I,
                config.behaviour.window,
            ),
            statistics=Statistics.of(sequences, config.behaviour), encode=encode, profiles=profiles,
        )  # fmt: skip

    @classmethod
    def assemble(
        cls, items: pl.DataFrame, tokenizer: Tokenizer, config: OneSearchConfig, *, words: tuple[str, ...],
        queries: tuple[str, ...], count_I: NDArray[np.int64], defaults: DefaultSequences, statistics: Statistics,
        encode: QueryEncoder | None = None, profiles: Profiles | None = None,
    ) -> OneSearch:  # fmt: skip
        """A model with fresh weights out of what `build` read from a log and a folder keeps of it."""
        encode = encode or item_encoder(tokenizer)
        sizes = tokenizer.semantic_ids.codebook_sizes[: used_levels(tokenizer, config)]
        check_places(config, len(sizes))
        vocabulary = Vocabulary(words, sizes)
        own = Items.of(items, tokenizer, count_I, config, vocabulary)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            network = EncoderDecoder(
                config.network, n_tokens=vocabulary.n_tokens, code_start=vocabulary.code_start, codebook_sizes=sizes,
                n_kinds=len(KINDS),
                centroids=[torch.from_numpy(part) for part in own.centroids] if config.behaviour.long else None,
            )  # fmt: skip
            if config.start == "vectors":
                _start(network, vocabulary, tokenizer, own, encode)
        known = Queries.of(queries, encode, vocabulary, config)
        prompts = Prompts(vocabulary, own, known, config.behaviour, profiles or Profiles.of(None, ()))
        trie = Trie.build(own.codes_IL, own.sizes, own.count_I.astype(np.float64))
        return cls(config, vocabulary, tokenizer, network.eval(), prompts, defaults, statistics, trie, encode)

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

    def fit_supervised(self, sequences: Sequences, *, stages: Sequence[str] = STAGES, quiet: bool = True) -> None:
        """S1, S2 and S3; what has no steps is left out.

        Args:
            stages: those to run, where the weights have been through the others: stages draw from generators of their own, so
                that in parts it is the same training.
        """
        own = self.config.stages
        before: list[Task] = []
        plan: list[tuple[str, int, Callable[[], list[Task]]]] = [
            ("S1", own.s1_steps, lambda: alignment_tasks(self.prompts, self.vocabulary, sequences, self.config)),
            ("S2", own.s2_steps, lambda: cooccurrence_tasks(self.prompts, self.vocabulary, sequences, self.config)),
            ("S3", own.s3_steps, lambda: self._personal(sequences)),
        ]
        for number, (name, n_steps, tasks_of) in enumerate(plan):
            if not n_steps:
                continue
            tasks = tasks_of()
            if name in stages:
                self.records[name] = self._fit(name, tasks, before, n_steps, number, quiet=quiet)
            before += tasks

    def _personal(self, sequences: Sequences) -> list[Task]:
        # what nobody took in training is no wrong answer
        softmax = self._softmax(torch.from_numpy(np.flatnonzero(self.items.count_I)))
        return [PersonalTask(self.prompts, self.training_contexts(sequences), self.config.stages.smoothing, softmax)]

    def _softmax(self, rows: torch.Tensor | None = None) -> TrieSoftmax | None:
        if self.config.network.output != "trie":
            return None
        return TrieSoftmax(torch.from_numpy(self.items.codes_IL), self.items.sizes, rows=rows)

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

    def fit_reward(self, sequences: Sequences, *, quiet: bool = True) -> None:
        """The reward model, on takes of the training period and level 2's extra positives."""
        contexts, feedback = self._feedback(sequences)
        rows, item, query = feed_orders(sequences, self.items, self.config.behaviour)
        if len(rows):
            at = np.searchsorted(feedback.row_C, rows)
            later = replace(
                feedback.take(at), query_C=query, target_C=item, ordered_C=np.ones(len(at), dtype=np.bool_),
                from_feed_C=np.ones(len(at), dtype=np.bool_),
            )  # fmt: skip
            contexts = contexts.with_more(replace(contexts.take(at), target_C=item))
            feedback = feedback.with_more(later)
        self.rewarder = RewardModel.build(self.config.reward, self.prompts, self.statistics, self.config.seed)
        negatives = Negatives(sequences, self.items, self.config.behaviour)
        self.records["reward"] = self.rewarder.fit(contexts, feedback, negatives, seed=self.config.seed, quiet=quiet)

    def _feedback(self, sequences: Sequences) -> tuple[Contexts, Feedback]:
        """Every take that a search led to, whatever samples S3 reads."""
        every = self.config.behaviour.model_copy(update={"sliding_window": True})
        contexts = training_contexts(sequences, every)
        if every.default_sequence:
            contexts = self.defaults.fill(contexts, self.prompts.queries, trained=True)
        return contexts, Feedback.of(sequences, every)

    def fit_preference(self, sequences: Sequences, *, quiet: bool = True) -> None:
        """PARS: phase 1 on generated and re-ordered lists, phase 2 on raw feedback.

        With `preference.enabled=false` neither runs, the records of both have 0 steps, and a line on standard error says so.

        Args:
            quiet: print nothing.

        Raises:
            RankloomError: there is no reward model.
        """
        own = self.config.preference
        if not own.enabled:
            self.records |= {"phase 1": Record(), "phase 2": Record()}
            if not quiet:
                print("PARS is off (preference.enabled=false): the network stays as it is", file=sys.stderr)
            return
        self._rewarder()
        contexts, feedback = self._feedback(sequences)
        negatives = Negatives(sequences, self.items, self.config.behaviour)
        reference, softmax = frozen(self.network), self._softmax()
        rng = np.random.default_rng([self.config.seed, 5])
        if own.phase1_steps and own.contexts + own.sampled:
            chosen = np.sort(rng.permutation(len(contexts))[: own.contexts])
            some, known = contexts.take(chosen), feedback.take(chosen)
            if own.sampled:
                more = sampled_contexts(sequences, own.sampled, self.config.behaviour, rng)
                if self.config.behaviour.default_sequence:
                    more = self.defaults.fill(more, self.prompts.queries, trained=False)
                some, known = some.with_more(more), known.with_more(Feedback.unknown(more.query_C))
            pairs = self._generated_pairs(some, known, negatives)
            self.records["phase 1"] = train_preferences(
                self.network, reference, some, self.prompts, pairs, own, own.phase1_steps, seed=self.config.seed,
                label="PARS phase 1", softmax=softmax, quiet=quiet,
            )  # fmt: skip
        if own.phase2_steps:
            pairs = feedback_pairs(feedback, negatives, own.rejected, rng)
            self.records["phase 2"] = train_preferences(
                self.network, reference, contexts, self.prompts, pairs, own, own.phase2_steps, seed=self.config.seed + 1,
                label="PARS phase 2", softmax=softmax, quiet=quiet,
            )  # fmt: skip

    def _generated_pairs(self, contexts: Contexts, feedback: Feedback, negatives: Negatives) -> Pairs:
        """What the reward model re-orders in the generator's lists."""
        own = self.config.preference
        lists = self.generated(contexts, self.prompts, longest=own.list_length, beam=own.beam, block=64)
        # the target of an unknown take is -1, which no item is: nothing is taken out of its counts
        reward = self._rewarder().rewards(contexts, lists.item_BK, trained=True)
        pairs, self.shares = generated_pairs(lists.item_BK, reward, feedback, negatives, own.rejected)
        for nth in range(1, own.preferred):
            more, _ = generated_pairs(lists.item_BK, reward, feedback, negatives, own.rejected, nth)
            pairs = pairs.with_more(more)
        return pairs

    def _rewarder(self) -> RewardModel:
        if self.rewarder is None:
            raise RankloomError(
                "there is no reward model", place="onesearch", action="call fit_reward first", code="onesearch-no-reward"
            )
        return self.rewarder

    # -- lists

    def generated(self, contexts: Contexts, prompts: Prompts, *, longest: int, beam: int | None = None, block: int = 16) -> Lists:
        """What the generator alone lists."""

        def prompt_of(own: Contexts) -> Prompt:
            return prompts.personal(own)

        return generate(
            self.network, prompt_of, contexts, self.trie, beam=beam or self.config.beam, longest=longest, block=block,
            normalise="trie" if self.config.network.output == "trie" else "codebook",
        )

    def selected(self, contexts: Contexts, prompts: Prompts, lists: Lists) -> NDArray[np.int32]:
        """Generated lists in the reward model's order: the separate last step.

        Raises:
            RankloomError: there is no reward model.
        """
        return self._rewarder().with_queries(prompts).select(contexts, lists.item_BK)

    def lists(self, contexts: Contexts, prompts: Prompts, *, longest: int) -> NDArray[np.int32]:
        """(C, longest) items of every context, best first, -1 where fewer; selected where the settings say so."""
        found = self.generated(contexts, prompts, longest=max(longest, 2 * self.config.beam))
        best = self.selected(contexts, prompts, found) if self.config.select else found.item_BK
        return best[:, :longest]


def _start(
    network: EncoderDecoder, vocabulary: Vocabulary, tokenizer: Tokenizer, items: Items, encode: QueryEncoder
) -> None:
    """Words and codes start where the tokenizer has them, seen along the directions in which items differ most."""
    directions = main_directions(items.vector_IA, network.config.d_model)
    if vocabulary.words:
        vectors, _ = encode(vocabulary.words)
        network.start_tokens(vocabulary.word_start, torch.from_numpy(vectors @ directions))
    for (first, _), own in zip(network.ranges, code_vectors(tokenizer, len(network.ranges)), strict=True):
        network.start_tokens(first, torch.from_numpy(own @ directions))
