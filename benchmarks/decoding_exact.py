"""Is constrained decoding exact?

    python benchmarks/decoding_exact.py [--quick] [--json OUT]

Four checks on random weights (exactness does not depend on training): no invalid, filtered or excluded item among 100,000
generated IDs over presets, filters and exclusions; a beam as wide as the catalogue equals brute force; a batch of any mix
equals one by one; cached equals recomputed.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rankloom.config import Config
from rankloom.decoding.beam import beam_search
from rankloom.decoding.masks import MaskIndex
from rankloom.evaluation.evaluate import machine
from rankloom.models.context import ContextBatch
from rankloom.models.lazy_decoder import LazyDecoder
from rankloom.semantic.trie import Trie

# base at its width and head count with two of its twelve blocks: depth changes nothing about exactness
PRESETS = {"tiny": [], "small": [], "base": ["model.n_layers=2", "quantizer.codebook_sizes=[256,256,256]"]}


def build(preset: str, n_items: int, seed: int) -> tuple[LazyDecoder, Trie, MaskIndex]:
    """A model with random weights for a random catalogue."""
    config = Config.preset_config(preset).with_overrides(PRESETS[preset])
    rng = np.random.default_rng(seed)
    size = {"tiny": 16, "small": 64, "base": 256}[preset]
    codes = rng.integers(0, size, (n_items, 3))
    torch.manual_seed(seed)
    model = LazyDecoder.from_config(
        config,
        codes_IQ=torch.from_numpy(codes),
        content_IC=torch.randn(n_items, 16),
        codebook_sizes=[size] * 3,
        n_trained=n_items,
        text_dim=16,
    ).eval()
    for parameter in model.parameters():
        if parameter.ndim >= 2:
            torch.nn.init.normal_(parameter, std=2.0 / parameter.shape[-1] ** 0.5)
    trie = Trie.build(codes, [size] * 3)
    return model, trie, MaskIndex(trie, n_items)


def contexts(lengths: list[int], n_items: int, rng: np.random.Generator) -> ContextBatch:
    """Random histories of the given lengths."""
    places = max(1, *lengths)
    item = torch.from_numpy(rng.integers(0, n_items, (len(lengths), places)))
    item = torch.where(torch.arange(places) < torch.tensor(lengths)[:, None], item, -1)
    zeros = torch.zeros_like(item)
    return ContextBatch(item, zeros + 2, zeros, zeros, zeros, zeros, torch.tensor(lengths))


@torch.no_grad()
def invalid(preset: str, wanted: int, rng: np.random.Generator) -> dict[str, Any]:
    """Generates `wanted` IDs under random filters and exclusions; counts what must not be there."""
    n_items = 3000
    model, trie, index = build(preset, n_items, 0)
    codes = model.items.codes_IQ
    catalogue = {tuple(row) for row in codes.tolist()}
    generated = wrong = 0
    while generated < wanted:
        batch = 8
        allowed = [torch.from_numpy(rng.random(n_items) < share) for share in rng.choice([0.01, 0.1, 0.5, 1.0], batch)]
        excluded = [torch.from_numpy(rng.choice(n_items, int(n), replace=False)) for n in rng.integers(0, 300, batch)]
        prefix = model.prefill(contexts(rng.integers(0, 12, batch).tolist(), n_items, rng))
        result = beam_search(
            model, prefix, trie, beam=256, masks=index.requests([index.compile(a) for a in allowed], excluded)
        )
        for row in range(batch):
            open_rows = allowed[row].clone()
            open_rows[excluded[row]] = False
            legal = {tuple(own) for own in codes[open_rows].tolist()}
            found = [
                tuple(own)
                for own, leaf in zip(result.codes_BWL[row].tolist(), result.leaf_BW[row].tolist(), strict=True)
                if leaf >= 0
            ]
            generated += len(found)
            wrong += sum(own not in catalogue or own not in legal for own in found) + len(found) - len(set(found))
    return {
        "system": preset,
        "variant": "random filters and exclusions",
        "metric": "invalid",
        "k": 256,
        "masked": True,
        "value": wrong,
        "n": generated,
    }


@torch.no_grad()
def equalities(preset: str, rng: np.random.Generator) -> list[dict[str, Any]]:
    """Largest score difference against each slow twin, and whether the order is the same."""
    n_items = 400
    model, trie, index = build(preset, n_items, 1)
    lengths = [0, 3, 9]
    batch = contexts(lengths, n_items, rng)
    prefix = model.prefill(batch)
    wide = beam_search(model, prefix, trie, beam=n_items, masks=index.requests([None] * 3))
    brute = model.score(prefix, trie.leaf_codes())
    rows = []
    worst, order = 0.0, True
    for row in range(3):
        truth, leaves = brute[row].sort(descending=True, stable=True)
        worst = max(worst, float((wide.log_prob_BW[row] - truth).abs().max()))
        gap = torch.cat([torch.tensor([1.0]), truth[:-1] - truth[1:], torch.tensor([1.0])])
        clear = (gap[:-1] > 1e-4) & (gap[1:] > 1e-4)
        order &= bool((wide.leaf_BW[row][clear] == leaves[clear]).all())
    rows.append(
        {"metric": "beam as wide as the catalogue against brute force", "value": worst, "ok": order and worst < 1e-3}
    )
    mixed = beam_search(model, prefix, trie, beam=50, masks=index.requests([None] * 3))
    worst, order = 0.0, True
    for row, length in enumerate(lengths):
        names = ("item_BT", "kind_BT", "watch_BT", "gap_BT", "surface_BT", "position_BT")
        alone = ContextBatch(
            *(getattr(batch, name)[row : row + 1, : max(1, length)] for name in names), length_B=torch.tensor([length])
        )
        single = beam_search(model, model.prefill(alone), trie, beam=50, masks=index.requests([None]))
        worst = max(worst, float((single.log_prob_BW[0] - mixed.log_prob_BW[row]).abs().max()))
        order &= set(single.leaf_BW[0].tolist()) == set(mixed.leaf_BW[row].tolist())
    rows.append({"metric": "batch against one by one", "value": worst, "ok": order and worst < 1e-3})
    worst = max(
        float((model.score(prefix, mixed.codes_BWL[row])[row] - mixed.log_prob_BW[row]).abs().max()) for row in range(3)
    )
    rows.append({"metric": "cached against recomputed", "value": worst, "ok": worst < 1e-3})
    return [{"system": preset, "variant": "fp32", "k": 50, "masked": True, "n": 3, **own} for own in rows]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="9,000 IDs instead of 100,000")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    rng = np.random.default_rng(0)
    wanted = 3_000 if args.quick else 33_400
    rows: list[dict[str, Any]] = []
    checks = []
    for preset in PRESETS:
        own = invalid(preset, wanted, rng)
        rows.append(own)
        print(f"{preset:<6} invalid among {own['n']:,} generated: {own['value']}")
        for row in equalities(preset, rng):
            checks.append(
                {"name": f"{preset}: {row['metric']}", "value": row["value"], "target": 1e-3, "ok": row.pop("ok")}
            )
            rows.append(row)
            print(
                f"{preset:<6} {row['metric']}: largest difference {row['value']:.2e}, {'equal' if checks[-1]['ok'] else 'NOT EQUAL'}"
            )
    total = sum(row["value"] for row in rows if row["metric"] == "invalid")
    checks.append({"name": "invalid IDs", "value": total, "target": 0, "ok": total == 0})
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(
            json.dumps({"name": "decoding_exact", "machine": machine(), "rows": rows, "checks": checks}, indent=2)
        )
    raise SystemExit(0 if all(check["ok"] for check in checks) else 1)


if __name__ == "__main__":
    main()
