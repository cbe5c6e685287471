"""A catalogue and its tokenizer become a model: what `Rankloom` loads and `rankloom.pipeline` trains."""

from __future__ import annotations

import numpy as np
import polars as pl
import torch
from torch import Tensor

from rankloom.config import Config
from rankloom.models.attributes import item_attributes
from rankloom.models.lazy_decoder import LazyDecoder
from rankloom.semantic.tokenizer import Tokenizer


def created_seconds(items: pl.DataFrame) -> Tensor | None:
    """(I,) float64 seconds when the items were listed, NaN unknown; None without such a column."""
    if "created_at" not in items.columns:
        return None
    stamps = items["created_at"].dt.timestamp("us").cast(pl.Float64) / 1e6
    return torch.from_numpy(stamps.fill_null(float("nan")).to_numpy().copy())


def watched(items: pl.DataFrame) -> Tensor:
    """(I,) the kinds of items that age differently: what is watched (it has a duration) and what is not."""
    if "duration_s" not in items.columns:
        return torch.zeros(items.height, dtype=torch.long)
    return torch.from_numpy(items["duration_s"].is_not_null().to_numpy().copy()).long()


def build_model(
    config: Config,
    tokenizer: Tokenizer,
    items: pl.DataFrame,
    *,
    n_trained: int,
    dated: bool,
    attributed: bool,
    trust_I: Tensor | None = None,
) -> LazyDecoder:
    """A freshly initialised model for a tokenizer's catalogue, the same for the same seed.

    Args:
        dated: whether selection reads the age of items.
        attributed: whether items have attribute tokens.
        trust_I: (n_trained,) how far each item's learned vector counts.
    """
    attributes = None
    if attributed:
        attributes = item_attributes(items)
        if attributes is None:
            attributes = torch.zeros(items.height, 1, dtype=torch.long)
    content = tokenizer.model_content(config.model.content)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        return LazyDecoder.from_config(
            config,
            codes_IQ=torch.from_numpy(tokenizer.semantic_ids.codes.astype(np.int64)),
            content_IC=torch.from_numpy(content),
            codebook_sizes=tokenizer.semantic_ids.codebook_sizes,
            n_trained=n_trained,
            text_dim=content.shape[1],
            dated=dated,
            trust_I=trust_I,
            attributes_IF=attributes,
            created_I=created_seconds(items),
        )
