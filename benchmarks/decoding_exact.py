"""Is constrained decoding exact: never an ID that is not asked for, never one missed, the same as its slow twins?

    python benchmarks/decoding_exact.py --quick
    python benchmarks/decoding_exact.py --json out.json     100,000 IDs a preset and kind of filter (base: over all kinds)

Random weights far from uniform, at each preset's own size and beam: exactness does not depend on training. Filters are
expressions of the filter language over a random catalogue. An ID is invalid when no catalogue item has it that passes
the request's filter and is not excluded, or when it comes twice; it is missing when the beam has room and a legal ID is
not there. The twins: brute force over the catalogue, each request alone, each ID recomputed without a cache. Equal in
fp32 means: the same order wherever two scores differ by more than rounding, and scores within 32 units in the last
place, since sums of differently shaped matrix products round differently.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import polars as pl
import torch
from _common import Benchmark
from torch import Tensor

from rankloom.config import Config
from rankloom.data.filters import parse_filter
from rankloom.decoding.beam import beam_search
from rankloom.decoding.masks import MaskIndex
from rankloom.decoding.memory import Guide
from rankloom.decoding.select import expand, leaf_log_share
from rankloom.models.context import ContextBatch
from rankloom.models.lazy_decoder import LazyDecoder
from rankloom.progress import Progress
from rankloom.semantic.trie import Trie

SOURCES = ("rankloom/decoding", "rankloom/models", "rankloom/semantic/trie.py", "rankloom/data/filters.py",
           "rankloom/config.py", "benchmarks/decoding_exact.py")  # fmt: skip
PRESETS = ("tiny", "small", "base")
N_ITEMS = 3000
# codes a level: about half of the IDs name several items
CODES = {"tiny": [12, 12, 12], "small": [12, 12, 12], "base": [8192, 8192, 8192]}
BATCH = {"tiny": 64, "small": 32, "base": 4}
ULP_LIMIT = 32

Random = np.random.Generator
FILTERS: dict[str, Callable[[Random], str | None]] = {
    "none": lambda rng: None,
    "comparison": lambda rng: f"price {rng.choice(['<', '<=', '>', '>='])} {rng.uniform(0, 100):.2f}",
    "range": lambda rng: f"price >= {rng.uniform(0, 50):.2f} and price < {rng.uniform(50, 100):.2f}",
    "equality": lambda rng: f'brand == "brand-{rng.integers(30)}" or brand != "brand-{rng.integers(30)}"',
    "membership": lambda rng: f'category in ["leaf-{rng.integers(60)}", "leaf-{rng.integers(60)}"]',
    "text": lambda rng: f'title contains "{rng.integers(10, 100)}"',
    "truth and time": lambda rng: f"in_stock == true and created_at >= 2026-0{rng.integers(1, 7)}-15",
    "attribute": lambda rng: f'attributes.color == "{rng.choice(["red", "green", "blue"])}"',
    "missing value": lambda rng: f"duration_s is {rng.choice(['', 'not '])}null",
    "logic": lambda rng: f'not (brand == "brand-{rng.integers(30)}" or price > {rng.uniform(20, 90):.1f}) and not in_stock == false',
    "few items": lambda rng: "item_id in " + json.dumps([f"i{number}" for number in rng.integers(0, N_ITEMS, 5)]),
    "nothing passes": lambda rng: "price < 0",
}  # fmt: skip
KINDS = (*FILTERS, "exclusions", "filter and exclusions", "removed items", "behaviour memory")


def catalogue(rng: Random) -> pl.DataFrame:
    """A random catalogue with a column for every kind of filter."""
    n = N_ITEMS
    start = datetime(2026, 1, 1, tzinfo=UTC)
    return pl.DataFrame(
        {
            "item_id": [f"i{row}" for row in range(n)],
            "title": [f"thing {number}" for number in rng.integers(0, 10_000, n)],
            "price_micros": (rng.uniform(0, 100, n) * 1e6).astype(np.int64),
            "brand": [f"brand-{number}" for number in rng.integers(0, 30, n)],
            "category": [[f"root-{leaf % 6}", f"leaf-{leaf}"] for leaf in rng.integers(0, 60, n)],
            "in_stock": rng.random(n) < 0.7,
            "created_at": [start + timedelta(days=int(day)) for day in rng.integers(0, 180, n)],
            "duration_s": [None if missing else 9.0 for missing in rng.random(n) < 0.4],
            "attributes": [[{"key": "color", "value": color}] for color in rng.choice(["red", "green", "blue"], n)],
        }
    )


@functools.lru_cache(1)  # base has 0.1 billion weights to draw
def build(preset: str, n_items: int, seed: int) -> LazyDecoder:
    """The preset's model with random weights for a random catalogue."""
    config = Config.preset_config(preset)
    rng = np.random.default_rng(seed)
    # few distinct codes a level, wherever in the codebook they lie, so that IDs share prefixes
    columns = [rng.choice(rng.choice(size, min(size, 12), replace=False), n_items) for size in CODES[preset]]
    torch.manual_seed(seed)
    model = LazyDecoder.from_config(
        config,
        codes_IQ=torch.from_numpy(np.stack(columns, axis=1)),
        content_IC=torch.randn(n_items, 16),
        codebook_sizes=CODES[preset],
        n_trained=n_items,
        text_dim=16,
    ).eval()
    for parameter in model.parameters():
        if parameter.ndim >= 2:
            torch.nn.init.normal_(parameter, std=2.0 / parameter.shape[-1] ** 0.5)
    return model


def contexts(lengths: Sequence[int], n_items: int, rng: Random) -> ContextBatch:
    """Random histories of the given lengths, with random features and a query for every second request."""
    batch, places = len(lengths), max(1, *lengths)
    length = torch.tensor(list(lengths))

    def draw(high: int) -> Tensor:
        return torch.from_numpy(rng.integers(0, high, (batch, places)))

    item = torch.where(torch.arange(places) < length[:, None], draw(n_items), -1)
    never = torch.iinfo(torch.int32).max
    return ContextBatch(
        item, draw(12), draw(12), draw(32), draw(3), draw(12), length,
        query_BQD=torch.from_numpy(rng.normal(size=(batch, 1, 16)).astype(np.float32)),
        query_from_BQ=torch.where(torch.arange(batch) % 2 == 0, length, never)[:, None],
    )  # fmt: skip


def alone(batch: ContextBatch, row: int) -> ContextBatch:
    """One request of a batch, without the padding of the others."""
    places = max(1, int(batch.length_B[row]))
    names = ("item_BT", "kind_BT", "watch_BT", "gap_BT", "surface_BT", "position_BT")
    assert batch.query_BQD is not None
    assert batch.query_from_BQ is not None
    has_query = bool(batch.query_from_BQ[row, 0] <= batch.length_B[row])
    return ContextBatch(
        *(getattr(batch, name)[row : row + 1, :places] for name in names),
        length_B=batch.length_B[row : row + 1],
        query_BQD=batch.query_BQD[row : row + 1] if has_query else None,
        query_from_BQ=batch.query_from_BQ[row : row + 1] if has_query else None,
    )


@torch.no_grad()
def invalid(preset: str, kind: str, wanted: int, beam: int, seed: int) -> dict[str, int]:
    """Generates `wanted` IDs (fewer where the filter leaves too few) with beams around `beam`; counts what is wrong."""
    rng = np.random.default_rng([seed, PRESETS.index(preset), KINDS.index(kind)])
    items = catalogue(rng)
    model = build(preset, N_ITEMS, seed)
    codes = model.items.codes_IQ
    # every ID as one number, for a check that knows no trie
    place_value = np.array([8192**2, 8192, 1])
    names = codes.numpy() @ place_value
    alive = rng.random(N_ITEMS) < (0.6 if kind == "removed items" else 1.1)
    trie = Trie.build(codes.numpy(), CODES[preset], rows=np.flatnonzero(alive))
    index = MaskIndex(trie, N_ITEMS)
    share = leaf_log_share(trie, torch.ones(N_ITEMS))
    batch = BATCH[preset]
    generated = requests = wrong = missing = wrong_items = 0
    progress = Progress(f"{preset}, {kind}", wanted, unit="IDs")
    # a filter that leaves almost nothing would never fill the count: as many requests as would be enough without it
    while generated < wanted and requests < max(4 * batch, 2 * wanted // beam):
        allowed, excluded = [], []
        for _ in range(batch):
            mixed = str(rng.choice(list(FILTERS)))
            name = {"exclusions": "none", "removed items": "none"}.get(kind, kind if kind in FILTERS else mixed)
            text = FILTERS[name](rng)
            mask = np.ones(N_ITEMS, dtype=bool) if text is None else parse_filter(text).mask(items)
            allowed.append(torch.from_numpy(mask & alive))
            n_excluded = int(rng.integers(0, 1500)) if "exclusions" in kind or kind == "behaviour memory" else 0
            excluded.append(torch.from_numpy(rng.choice(N_ITEMS, n_excluded, replace=False)))
        masks = index.requests([index.compile(own) for own in allowed], excluded)
        prefix = model.prefill(contexts(rng.integers(0, 12, batch).tolist(), N_ITEMS, rng))
        beams = rng.integers(1, 2 * beam, batch).tolist()
        guide = None
        if kind == "behaviour memory":
            # it names items that are filtered, excluded or removed as well
            named_by = torch.from_numpy(np.repeat(np.arange(batch), 200))
            recalled = (named_by, torch.from_numpy(rng.integers(0, N_ITEMS, len(named_by))), torch.rand(len(named_by)))
            guide = Guide(index, recalled, share=0.5)
        result = beam_search(model, prefix, trie, beam=beams, masks=masks, guide=guide)
        expanded = expand(
            result.leaf_BW, result.log_prob_BW, trie=trie,
            log_share=share, allowed=masks.allowed_items(), excluded=excluded, guide=guide,
        )  # fmt: skip
        before = generated
        for row in range(batch):
            open_rows = allowed[row].numpy().copy()
            open_rows[excluded[row].numpy()] = False
            legal = np.unique(names[open_rows])
            found = result.codes_BWL[row].numpy()
            found = found[found[:, 0] >= 0] @ place_value
            distinct = np.unique(found)
            generated += len(found)
            wrong += int((~np.isin(found, legal)).sum()) + len(found) - len(distinct)
            missing += min(beams[row], len(legal)) - int(np.isin(distinct, legal).sum())
            shown = expanded.item_BC[row].numpy()
            shown = shown[shown >= 0]
            named = np.flatnonzero(open_rows & np.isin(names, distinct))
            wrong_items += len(np.setxor1d(named, shown)) + len(shown) - len(np.unique(shown))
        requests += batch
        progress.advance(generated - before)
    progress.close()
    return {"generated": generated, "requests": requests, "invalid": wrong, "missing": missing, "items": wrong_items}


def difference(scores: Tensor, truth: Tensor) -> float:
    """Largest difference in units in the last place of the largest score."""
    return float((scores - truth).abs().max() / (truth.abs().max() * torch.finfo(torch.float32).eps))


def same_order(found: Tensor, scores: Tensor, truth_ids: Tensor, truth: Tensor) -> bool:
    """Whether two rankings agree wherever neighbours differ by more than rounding."""
    rounding = ULP_LIMIT * torch.finfo(torch.float32).eps * float(truth.abs().max())
    gap = torch.full((len(truth) + 1,), float("inf"))
    gap[1:-1] = truth[:-1] - truth[1:]
    clear = (gap[:-1] > rounding) & (gap[1:] > rounding)
    return bool((found[clear] == truth_ids[clear]).all())


@torch.no_grad()
def equalities(preset: str, n_items: int, seed: int) -> dict[str, dict[str, Any]]:
    """Each slow twin: the largest difference in the last place, and whether the order is the same."""
    rng = np.random.default_rng([seed, PRESETS.index(preset)])
    model = build(preset, n_items, seed + 1)
    trie = Trie.build(model.items.codes_IQ.numpy(), CODES[preset])
    index = MaskIndex(trie, n_items)
    lengths = [0, 3, 9, 17, 1]
    batch = contexts(lengths, n_items, rng)
    prefix = model.prefill(batch)
    masks = [None, None, *(torch.from_numpy(rng.random(n_items) < keep) for keep in (0.5, 0.1, 0.9))]
    filters = [None if mask is None else index.compile(mask) for mask in masks]
    excluded = [torch.from_numpy(rng.choice(n_items, n_items // n, replace=False)) for n in (400, 10, 10, 80, 2)]
    out: dict[str, dict[str, Any]] = {}

    wide = beam_search(model, prefix, trie, beam=n_items, masks=index.requests(list(filters), excluded))
    brute = model.score(prefix, trie.leaf_codes())
    worst, order = 0.0, True
    for row in range(len(lengths)):
        open_rows = torch.ones(n_items, dtype=torch.bool) if masks[row] is None else masks[row].clone()
        open_rows[excluded[row]] = False
        legal = torch.unique(index.leaf_of_row[open_rows])
        truth, place = brute[row, legal].sort(descending=True, stable=True)
        found = wide.leaf_BW[row][wide.leaf_BW[row] >= 0]
        order &= len(found) == len(legal) and same_order(found, wide.log_prob_BW[row], legal[place], truth)
        worst = max(worst, difference(wide.log_prob_BW[row, : len(legal)], truth))
    out["beam as wide as the catalogue against brute force"] = {"ulp": worst, "order": order}

    beams = [50, 7, 64, 20, 400]
    mixed = beam_search(model, prefix, trie, beam=beams, masks=index.requests(list(filters), excluded))
    worst, order = 0.0, True
    for row in range(len(lengths)):
        single = beam_search(
            model, model.prefill(alone(batch, row)), trie, beam=beams[row],
            masks=index.requests([filters[row]], [excluded[row]]),
        )  # fmt: skip
        width = single.leaf_BW.shape[1]
        order &= bool((mixed.leaf_BW[row, width:] < 0).all())
        order &= same_order(mixed.leaf_BW[row, :width], mixed.log_prob_BW[row], single.leaf_BW[0], single.log_prob_BW[0])
        worst = max(worst, difference(mixed.log_prob_BW[row, :width], single.log_prob_BW[0]))
    out["batch of a mix against one by one"] = {"ulp": worst, "order": order}

    worst = 0.0
    for row in range(len(lengths)):
        found_codes = mixed.codes_BWL[row][mixed.leaf_BW[row] >= 0]
        recomputed = model.score(prefix, found_codes)[row]
        worst = max(worst, difference(mixed.log_prob_BW[row, : len(found_codes)], recomputed))
    out["cached against recomputed"] = {"ulp": worst, "order": True}
    return out


def main() -> int:
    bench = Benchmark.from_args("decoding_exact", __doc__, sources=SOURCES)
    seed = bench.seeds[0]
    totals = dict.fromkeys(("invalid", "missing", "items"), 0)
    for preset in PRESETS:
        wanted = 400 if bench.quick else 100_000
        own_beam = Config.preset_config(preset).decoding.beam
        if preset == "base":
            # over all kinds; four of them leave too few items to fill their share
            wanted = wanted // (len(KINDS) - 5)
        beam = min(64, own_beam) if bench.quick else own_beam
        preset_total = 0
        for kind in KINDS:
            cell = bench.cell(
                {"preset": preset, "kind": kind, "ids": wanted, "beam": beam, "seed": seed},
                lambda preset=preset, kind=kind, wanted=wanted, beam=beam: invalid(preset, kind, wanted, beam, seed),
            )
            preset_total += cell["generated"]
            for name in totals:
                totals[name] += cell[name]
            bench.row(
                system=preset, variant=kind, metric="invalid", value=cell["invalid"], n=cell["generated"],
                missing=cell["missing"], wrong_items=cell["items"], requests=cell["requests"],
            )  # fmt: skip
        if not bench.quick:
            bench.check(f"{preset}: IDs generated", preset_total, at_least=100_000)
        n_items = 80 if bench.quick else 400
        twins = bench.cell(
            {"preset": preset, "twins": n_items, "seed": seed},
            lambda preset=preset, n_items=n_items: equalities(preset, n_items, seed),
        )
        for name, cell in twins.items():
            bench.row(system=preset, variant=name, metric="units in the last place", value=cell["ulp"])
            bench.check(f"{preset}: {name}: units in the last place", round(cell["ulp"], 2), at_most=ULP_LIMIT)
            bench.check(f"{preset}: {name}: same order", cell["order"], target=True)
    bench.check("invalid IDs", totals["invalid"], target=0)
    bench.check("legal IDs missing where the beam had room", totals["missing"], target=0)
    bench.check("items of the IDs that are wrong or missing", totals["items"], target=0)
    return bench.finish()


if __name__ == "__main__":
    raise SystemExit(main())
