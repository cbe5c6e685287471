"""The three stages of supervised training as sequence-to-sequence tasks (OneSearch, section on staged fine-tuning).

| stage | tasks | user features |
|---|---|---|
| S1 alignment | query>sid, sid>query, title>sid, sid>title, query>category, title>category, sid>category | none |
| S2 co-occurrence | query>title, title>query, query-sid>sid, sid>query-sid, from what searches led to | none |
| S3 personalisation | the whole prompt > sid, every prefix of a person's history a sample | all |

A step is one task, drawn in proportion to its pairs, so that a batch has one shape; an epoch visits every pair of it once.
Two departures help small shops and can be switched off: an item's text is title, brand and category path (`item_text`), of
which a step leaves some words out (`word_dropout`), so that the rest is like a query.
S1 reads the whole catalogue, whose text is known before anybody buys; S2 and S3 only the training period.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
import torch
from torch import Tensor

from rankloom.data.sequences import TRAIN, Sequences
from rankloom.models.encoder_decoder import EncoderDecoder
from rankloom.onesearch.contexts import Contexts
from rankloom.onesearch.corpus import Integers
from rankloom.onesearch.prompts import Prompts
from rankloom.onesearch.scoring import item_log_probs
from rankloom.onesearch.settings import OneSearchConfig
from rankloom.onesearch.vocabulary import Tokens, Vocabulary
from rankloom.training.objectives import TrieSoftmax


class Task(Protocol):
    """Pairs of a prompt and a target."""

    name: str

    def __len__(self) -> int: ...

    def loss(self, model: EncoderDecoder, chosen: Integers) -> Tensor:
        """Mean loss of some of the pairs."""
        ...


@dataclass
class PairTask:
    """Pairs without a person.

    Attributes:
        source_NT: tokens that are read, a text or an ID.
        target_NT: tokens of a text, or codes of an ID.
    """

    name: str
    prompts: Prompts
    reads: Literal["text", "sid"]
    writes: Literal["text", "sid"]
    source_NT: Tokens
    target_NT: Tokens
    smoothing: float = 0.0
    word_dropout: float = 0.0

    def __post_init__(self) -> None:
        # an empty text asks or answers nothing
        kept = (self.source_NT > 0).any(1)
        if self.writes == "text":
            kept &= (self.target_NT > 0).sum(1) > 1
        self.source_NT, self.target_NT = self.source_NT[kept], self.target_NT[kept]

    def __len__(self) -> int:
        return len(self.source_NT)

    def loss(self, model: EncoderDecoder, chosen: Integers) -> Tensor:
        source = self.source_NT[chosen]
        if self.reads == "text" and self.word_dropout and model.training:
            source = _thinned(source, self.word_dropout)
        prompt = self.prompts.text(self.name, source) if self.reads == "text" else self.prompts.codes(self.name, source)
        memory, target = model.encode(prompt), torch.from_numpy(self.target_NT[chosen])
        if self.writes == "text":
            return model.text_loss(memory, target)
        return model.code_loss(memory, target, smoothing=self.smoothing)


def _thinned(token_BT: Tokens, share: float) -> Tokens:
    """Texts without a random share of their words; who would lose all keeps all."""
    kept = torch.rand(token_BT.shape).numpy() >= share
    kept |= ~(kept & (token_BT > 0)).any(1, keepdims=True)
    return np.where(kept, token_BT, 0)


@dataclass
class PersonalTask:
    """Contexts and what was taken.

    Attributes:
        softmax: over the trie of what was taken in training; None for `output` of another kind.
    """

    prompts: Prompts
    contexts: Contexts
    smoothing: float = 0.0
    softmax: TrieSoftmax | None = None
    name: str = "personal"

    def __post_init__(self) -> None:
        # user IDs do not change while the network learns
        self.uid = self.prompts.uid_codes(self.contexts) if self.prompts.config.uid != "none" else None

    def __len__(self) -> int:
        return len(self.contexts)

    def loss(self, model: EncoderDecoder, chosen: Integers) -> Tensor:
        own = self.contexts.take(chosen)
        memory = model.encode(self.prompts.personal(own, None if self.uid is None else self.uid[chosen]))
        codes, target = self.prompts.items.codes_IL, own.target_C
        if self.softmax is not None:
            item_B1 = torch.from_numpy(target[:, None])
            log_prob = item_log_probs(model, memory, item_B1, torch.from_numpy(codes), self.softmax)
            return -log_prob.mean() / len(self.prompts.items.sizes)
        return model.code_loss(memory, torch.from_numpy(codes[target]), smoothing=self.smoothing)


def searched_pairs(sequences: Sequences) -> tuple[Integers, Integers]:
    """(query, item) of every TRAIN take that a search led to, each pair once."""
    rows = np.flatnonzero((sequences.stage == TRAIN) & sequences.target & (sequences.query >= 0))
    pairs = np.unique(np.stack([sequences.query[rows], sequences.item[rows]], axis=1).astype(np.int64), axis=0)
    return pairs[:, 0], pairs[:, 1]


def alignment_tasks(prompts: Prompts, vocabulary: Vocabulary, sequences: Sequences, config: OneSearchConfig) -> list[Task]:
    """S1. Queries are those of the training period; a query's categories are those of what it led to."""
    items, queries = prompts.items, prompts.queries
    query, item = searched_pairs(sequences)
    asked = np.unique(query)
    item_sid, query_sid = vocabulary.code_tokens(items.codes_IL), vocabulary.code_tokens(queries.codes_QL)
    length = config.stages.title_words + 1
    title = vocabulary.written(items.titles, length)
    category = vocabulary.written(items.categories, length)
    query_text = vocabulary.written(queries.texts, config.stages.query_words + 1)
    smoothing, thin = config.stages.smoothing, config.stages.word_dropout
    return [
        PairTask("query>sid", prompts, "text", "sid", queries.word_QT[asked], queries.codes_QL[asked], smoothing, thin),
        PairTask("sid>query", prompts, "sid", "text", query_sid[asked], query_text[asked]),
        PairTask("title>sid", prompts, "text", "sid", items.title_IT, items.codes_IL, smoothing, thin),
        PairTask("sid>title", prompts, "sid", "text", item_sid, title),
        PairTask("query>category", prompts, "text", "text", queries.word_QT[query], category[item], 0.0, thin),
        PairTask("title>category", prompts, "text", "text", items.title_IT, category, 0.0, thin),
        PairTask("sid>category", prompts, "sid", "text", item_sid, category),
    ]


def cooccurrence_tasks(prompts: Prompts, vocabulary: Vocabulary, sequences: Sequences, config: OneSearchConfig) -> list[Task]:
    """S2: what searches led to, as text and as IDs, both ways."""
    items, queries = prompts.items, prompts.queries
    query, item = searched_pairs(sequences)
    item_sid, query_sid = vocabulary.code_tokens(items.codes_IL), vocabulary.code_tokens(queries.codes_QL)
    title = vocabulary.written(items.titles, config.stages.title_words + 1)
    query_text = vocabulary.written(queries.texts, config.stages.query_words + 1)
    smoothing, thin = config.stages.smoothing, config.stages.word_dropout
    return [
        PairTask("query>title", prompts, "text", "text", queries.word_QT[query], title[item], 0.0, thin),
        PairTask("title>query", prompts, "text", "text", items.title_IT[item], query_text[query], 0.0, thin),
        PairTask("query-sid>sid", prompts, "sid", "sid", query_sid[query], items.codes_IL[item], smoothing),
        PairTask("sid>query-sid", prompts, "sid", "sid", item_sid[item], queries.codes_QL[query], smoothing),
    ]


def draw_steps(tasks: list[Task], n_steps: int, batch_size: int, rng: np.random.Generator) -> Iterator[tuple[Task, Integers]]:
    """Tasks and pairs of every step."""
    tasks = [task for task in tasks if len(task)]
    if not tasks:
        return
    share = np.array([len(task) for task in tasks], dtype=np.float64)
    left = [np.zeros(0, dtype=np.int64) for _ in tasks]
    for number in rng.choice(len(tasks), size=n_steps, p=share / share.sum()):
        size = min(batch_size, len(tasks[number]))
        if len(left[number]) < size:
            left[number] = np.concatenate([left[number], rng.permutation(len(tasks[number]))])
        chosen, left[number] = left[number][:size], left[number][size:]
        yield tasks[number], chosen
