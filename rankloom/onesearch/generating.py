"""Decoding: contexts to lists of items, inside the trie or without it.

Constrained, every beam names items of the catalogue and none that the person has (the package's exact beam search).
Unconstrained, any token may follow any other, so that a finished beam may be no ID at all or one that no item has; the
share of beams that are an item's is the valid-SID rate, which the trie makes 1.

Shapes: B contexts, W beams, L levels, K length of a list, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from rankloom.decoding.beam import beam_search
from rankloom.decoding.masks import MaskIndex
from rankloom.models.encoder_decoder import EncoderDecoder, Prompt
from rankloom.onesearch.contexts import Contexts
from rankloom.semantic.trie import Trie


@dataclass
class Lists:
    """(B, K) items, best first, -1 where fewer, and the log-probability of each one's ID."""

    item_BK: NDArray[np.int32]
    score_BK: NDArray[np.float32]


def generate(
    model: EncoderDecoder,
    prompt_of: Callable[[Contexts], Prompt],
    contexts: Contexts,
    trie: Trie,
    *,
    beam: int,
    longest: int,
    masked: bool = True,
    block: int = 32,
    normalise: Literal["codebook", "trie"] = "codebook",
) -> Lists:
    """Constrained lists of every context.

    Args:
        longest: K, at most.
        masked: items of the long history are not generated.
        block: contexts decoded at once.
    """
    index = MaskIndex(trie, trie_rows(trie))
    item = np.full((len(contexts), longest), -1, dtype=np.int32)
    score = np.full((len(contexts), longest), -np.inf, dtype=np.float32)
    model.eval()
    with torch.inference_mode():
        for begin in range(0, len(contexts), block):
            part = slice(begin, begin + block)
            own = contexts.take(part)
            excluded = [torch.from_numpy(np.unique(row[row >= 0])) for row in own.history_CH] if masked else None
            masks = index.requests([None] * len(own), excluded)
            found = beam_search(model, model.encode(prompt_of(own)), trie, beam=beam, masks=masks, normalise=normalise)
            item[part], score[part] = _items_of(trie, found.leaf_BW, found.log_prob_BW, own, longest, masked=masked)
    return Lists(item, score)


def trie_rows(trie: Trie) -> int:
    """Catalogue rows that a trie's items can be of."""
    return int(trie.leaf_items.max()) + 1 if trie.n_items else 0


def _items_of(
    trie: Trie, leaf_BW: torch.Tensor, log_prob_BW: torch.Tensor, own: Contexts, longest: int, *, masked: bool
) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    leaf, log_prob = leaf_BW.numpy(), log_prob_BW.numpy()
    batch = len(leaf)
    row, column = np.nonzero(leaf >= 0)
    begin, size = trie.places_of(leaf[row, column])
    owner = np.repeat(np.arange(len(row)), size)
    place = np.repeat(begin - size.cumsum() + size, size) + np.arange(len(owner))
    item, case, score = trie.leaf_items.numpy()[place], row[owner], log_prob[row, column][owner]
    if masked:
        n_rows = trie_rows(trie)
        seen = (np.arange(batch)[:, None] * n_rows + own.history_CH)[own.history_CH >= 0]
        kept = ~np.isin(case * n_rows + item, seen)
        item, case, score = item[kept], case[kept], score[kept]
    counts = np.bincount(case, minlength=batch)
    at = np.arange(len(case)) - np.repeat(counts.cumsum() - counts, counts)
    inside = at < longest
    items = np.full((batch, longest), -1, dtype=np.int32)
    scores = np.full((batch, longest), -np.inf, dtype=np.float32)
    items[case[inside], at[inside]], scores[case[inside], at[inside]] = item[inside], score[inside]
    return items, scores


@dataclass
class Freely:
    """(B, W, L) tokens written without the trie, their log-probabilities, and which beams name an item."""

    token_BWL: NDArray[np.int64]
    log_prob_BW: NDArray[np.float32]
    valid_BW: NDArray[np.bool_]
    item_lists: list[list[int]]

    @property
    def valid_rate(self) -> float:
        """Share of beams that are the ID of an item."""
        return float(self.valid_BW.mean()) if self.valid_BW.size else 1.0


def generate_freely(model: EncoderDecoder, prompt: Prompt, trie: Trie, *, beam: int) -> Freely:
    """Unconstrained beams over the whole vocabulary."""
    batch, levels = prompt.batch_size, len(model.codebook_sizes)
    model.eval()
    with torch.inference_mode():
        memory = model.encode(prompt)
        token_BWL = torch.zeros(batch, 1, 0, dtype=torch.long)
        score_BW = torch.zeros(batch, 1)
        cache = None
        for level in range(levels):
            last = None if level == 0 else token_BWL[:, :, -1]
            hidden, cache = model.next_hidden(memory, level, last, cache)
            log_prob = torch.log_softmax(hidden @ model.token.weight.T, -1) + score_BW[:, :, None]
            n_tokens = log_prob.shape[-1]
            # the beam grows from one: level 0 has only as many children as there are tokens
            width = min(beam, log_prob.shape[1] * n_tokens)
            score_BW, place = log_prob.flatten(1).topk(width, dim=1)
            parent, token = place // n_tokens, place % n_tokens
            cache = model.reorder(cache, parent)
            before = token_BWL.gather(1, parent[:, :, None].expand(-1, -1, level))
            token_BWL = torch.cat([before, token[:, :, None]], -1)
    low = torch.tensor([own[0] for own in model.ranges])
    high = torch.tensor([own[1] for own in model.ranges])
    right = ((token_BWL >= low) & (token_BWL < high)).all(-1)
    code_BWL = (token_BWL - low).numpy()
    valid = np.zeros(right.shape, dtype=np.bool_)
    lists: list[list[int]] = []
    for case, (fits, codes) in enumerate(zip(right.numpy(), code_BWL, strict=True)):
        own: list[int] = []
        for column in np.flatnonzero(fits):
            leaf = trie.node_of_prefix(codes[column].tolist())
            if leaf is not None:
                valid[case, column] = True
                own += trie.items_of(leaf).tolist()
        lists.append(own)
    return Freely(token_BWL.numpy(), score_BW.numpy(), valid, lists)
