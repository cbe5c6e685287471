"""The layers of a small BERT without its modules, for a query that somebody waits for.

Of the time that MiniLM takes for a dozen tokens, half is the products; most of the rest is what a general implementation does around
them. This is the same network (Devlin and others 2019; post-norm, learned places, exact GELU) in one pass over the tokens of all texts, one
behind the other, so that no text is padded to another's length.

Shapes: N texts, S tokens of all, T tokens of one, D width, H heads.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional


class LeanBert:
    """A copy of the references, not of the weights.

    Args:
        model: a `transformers.BertModel` with learned places and GELU.

    Raises:
        ValueError: it is another network.
    """

    def __init__(self, model: Any) -> None:
        config = model.config
        if config.hidden_act != "gelu" or getattr(config, "position_embedding_type", "absolute") != "absolute":
            raise ValueError("not a BERT with learned places and GELU")
        self.heads, self.eps = int(config.num_attention_heads), float(config.layer_norm_eps)
        own = {name: value.detach() for name, value in model.state_dict().items()}
        self.word_VD = own["embeddings.word_embeddings.weight"]
        self.place_PD = own["embeddings.position_embeddings.weight"] + own["embeddings.token_type_embeddings.weight"][0]
        self.norm = self._pair(own, "embeddings.LayerNorm")
        self.layers = []
        for number in range(int(config.num_hidden_layers)):
            at = f"encoder.layer.{number}."
            parts = [self._pair(own, f"{at}attention.self.{name}") for name in ("query", "key", "value")]
            joined = torch.cat([weight for weight, _ in parts]), torch.cat([bias for _, bias in parts])
            names = (
                "attention.output.dense",
                "attention.output.LayerNorm",
                "intermediate.dense",
                "output.dense",
                "output.LayerNorm",
            )
            self.layers.append((joined, *(self._pair(own, at + name) for name in names)))

    @staticmethod
    def _pair(own: dict[str, Tensor], name: str) -> tuple[Tensor, Tensor]:
        return own[f"{name}.weight"], own[f"{name}.bias"]

    @torch.inference_mode()
    def mean(self, texts: Sequence[Sequence[int]]) -> Tensor:
        """(N, D) the mean of each text's last states.

        Args:
            texts: token ids, at least one each.
        """
        sizes = [len(text) for text in texts]
        place_S = torch.cat([torch.arange(size) for size in sizes])
        states_SD = self.word_VD[torch.tensor([token for text in texts for token in text])] + self.place_PD[place_S]
        states_SD = self._normed(states_SD, self.norm)
        for joined, out, out_norm, up, down, down_norm in self.layers:
            attended_SD = functional.linear(self._attended(functional.linear(states_SD, *joined), sizes), *out)
            states_SD = self._normed(states_SD + attended_SD, out_norm)
            fed_SD = functional.linear(functional.gelu(functional.linear(states_SD, *up)), *down)
            states_SD = self._normed(states_SD + fed_SD, down_norm)
        return torch.stack([own_TD.mean(0) for own_TD in torch.split(states_SD, sizes)])

    def _attended(self, joined_S3D: Tensor, sizes: Sequence[int]) -> Tensor:
        """(S, D) of queries, keys and values side by side; no text sees another."""
        out = []
        for own in torch.split(joined_S3D, list(sizes)):
            query_HT, key_HT, value_HT = own.view(len(own), 3, self.heads, -1).permute(1, 2, 0, 3)
            mixed_HT = functional.scaled_dot_product_attention(query_HT[None], key_HT[None], value_HT[None])[0]
            out.append(mixed_HT.transpose(0, 1).reshape(len(own), -1))
        return torch.cat(out) if len(out) > 1 else out[0]

    def _normed(self, states_SD: Tensor, norm: tuple[Tensor, Tensor]) -> Tensor:
        return functional.layer_norm(states_SD, (states_SD.shape[1],), *norm, self.eps)
