"""One vocabulary for what is read and written: special tokens, one token a task, words, and the codes of every level.

Text is cut into the words that search compares (semantic/words.py), and the most frequent of them are tokens. The paper
adds its codes to the 50,265 subwords of BART; a catalogue of some thousand items has some thousand words.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from rankloom.models.encoder_decoder import EOS, PAD
from rankloom.semantic.words import words

TASKS: Final = (
    "query>sid", "sid>query", "title>sid", "sid>title", "query>category", "title>category", "sid>category",
    "query>title", "title>query", "query-sid>sid", "sid>query-sid", "personal",
)  # fmt: skip
"""What the network may be asked to do; the first place of a prompt says which."""
_SPECIAL: Final = 3
Tokens = NDArray[np.int64]


@dataclass(frozen=True)
class Vocabulary:
    """
    Attributes:
        words: those that are tokens, most frequent first.
        codebook_sizes: codes of each level.
    """

    words: tuple[str, ...]
    codebook_sizes: tuple[int, ...]

    @classmethod
    def of(cls, texts: Iterable[str], codebook_sizes: Sequence[int], *, most: int = 4096, least: int = 2) -> Vocabulary:
        """The `most` frequent words that stand in at least `least` texts."""
        counts: Counter[str] = Counter()
        for text in texts:
            counts.update(set(words(text)))
        kept = sorted((word for word, count in counts.items() if count >= least), key=lambda word: (-counts[word], word))
        return cls(tuple(kept[:most]), tuple(int(size) for size in codebook_sizes))

    @cached_property
    def _number(self) -> dict[str, int]:
        return {word: place + self.word_start for place, word in enumerate(self.words)}

    @property
    def word_start(self) -> int:
        return _SPECIAL + len(TASKS)

    @property
    def code_start(self) -> int:
        return self.word_start + len(self.words)

    @property
    def n_tokens(self) -> int:
        return self.code_start + sum(self.codebook_sizes)

    def task(self, name: str) -> int:
        """The token of a task."""
        return _SPECIAL + TASKS.index(name)

    def read(self, texts: Sequence[str], length: int) -> Tokens:
        """(N, length) the first words of each text that are tokens, PAD at the end; empty texts are all PAD."""
        out = np.full((len(texts), length), PAD, dtype=np.int64)
        for row, text in enumerate(texts):
            own = [self._number[word] for word in words(text) if word in self._number][:length]
            out[row, : len(own)] = own
        return out

    def written(self, texts: Sequence[str], length: int) -> Tokens:
        """(N, length) the same as targets, with EOS after the last word."""
        out = self.read(texts, length - 1)
        out = np.concatenate([out, np.full((len(out), 1), PAD, dtype=np.int64)], axis=1)
        out[np.arange(len(out)), (out != PAD).sum(1)] = EOS
        return out

    def code_tokens(self, codes: NDArray[Any]) -> Tokens:
        """(.., L) tokens of codes; PAD where a code is below 0."""
        starts = self.code_start + np.r_[0, np.cumsum(self.codebook_sizes)[:-1]]
        codes = np.asarray(codes, dtype=np.int64)
        tokens: Tokens = np.where(codes < 0, PAD, codes + starts)
        return tokens

    def text_of(self, tokens: Sequence[int]) -> str:
        """Words of tokens, up to EOS; others are left out."""
        out = []
        for token in tokens:
            if token == EOS:
                break
            if self.word_start <= token < self.code_start:
                out.append(self.words[token - self.word_start])
        return " ".join(out)
