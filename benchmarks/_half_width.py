"""What bfloat16 does to a trained model's lists: the same cases in fp32 and in bf16, by the eager engine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from rankloom.config import Config, PresetName
from rankloom.data.sequences import TEST, load_sequences
from rankloom.data.shop import Shop
from rankloom.evaluation.metrics import gains, target_rank
from rankloom.evaluation.rankloom_system import RankloomSystem
from rankloom.pipeline import train
from rankloom.recommender import Rankloom
from rankloom.simulation import generate_bazaar


def quality(folder: Path, preset: PresetName, scale: float, seed: int, *, epochs: int | None = None) -> dict[str, Any]:
    """NDCG@10 in both precisions over the test cases of a bazaar (simulated), how much of the lists is the same, and how
    many of the items named in bf16 are none of the catalogue or had been seen."""
    made = folder / "shop"
    shop = Shop.open(made) if made.exists() else generate_bazaar(made, seed=seed, scale=scale, quiet=True)
    config = Config.preset_config(preset).with_overrides([f"seed={seed}"])
    if epochs is not None:
        config = config.with_overrides([f"training.max_epochs={epochs}"])
    if not (folder / "model").exists():
        train(shop.path, folder / "model", config, quiet=True)
    model = Rankloom.from_pretrained(folder / "model")
    model.model.engine = "eager"
    sequences = load_sequences(shop, config.data)
    cases = sequences.cases(TEST, max_per_user=5, seed=seed)
    system = RankloomSystem(model, shop, quiet=True)
    ndcg, lists = {}, {}
    for precision in ("fp32", "bf16"):
        model.model.precision = precision
        lists[precision] = system.rank(sequences, cases, 10, mask_seen=True)
        ndcg[precision] = float(gains(target_rank(lists[precision], cases.target), 10, "ndcg").mean())
    same = [len(set(a.tolist()) & set(b.tolist())) / len(a) for a, b in zip(lists["fp32"], lists["bf16"], strict=True)]
    invalid = 0
    for place, own in enumerate(lists["bf16"]):
        start = sequences.offsets[cases.user[place]]
        seen = set(sequences.item[start : cases.row[place]].tolist())
        named = [row for row in own.tolist() if row >= 0]
        invalid += len(named) - len(set(named) - seen) + sum(row >= shop.items().height for row in named)
    return {"cases": len(cases), "overlap": float(np.mean(same)), "invalid": invalid, **ndcg}
