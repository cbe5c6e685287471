"""How probable an item is: over the codes of each level, or over those that the trie allows after the codes before.

The paper normalises over tokens. Over the trie (`network.output: trie`) the product of an item's codes is a distribution over
the catalogue, and a network need not learn which codes exist: the two OPQ codes are mostly decided by the three before.
"""

from __future__ import annotations

import torch
from torch import Tensor

from rankloom.models.encoder_decoder import EncoderDecoder, Memory
from rankloom.training.objectives import TrieSoftmax


def item_log_probs(
    network: EncoderDecoder, memory: Memory, item_BT: Tensor, code_IL: Tensor, softmax: TrieSoftmax | None
) -> Tensor:
    """(B, T) log-probabilities of items for each request.

    Args:
        softmax: over a trie that has these items, or None for each level's codebook.
    """
    code_BTL = code_IL[item_BT]
    if softmax is None:
        return network.log_probs(memory, code_BTL)
    hidden = network.hidden(memory, network.tokens(code_BTL))
    item = item_BT.flatten()
    losses = [
        softmax.loss(hidden[:, :, level].flatten(0, 1) @ network.token.weight[low:high].T, level, item)
        for level, (low, high) in enumerate(network.ranges)
    ]
    return -torch.stack(losses).sum(0).view(item_BT.shape)
