"""What a code means: the category words that set the items under a prefix apart from the catalogue."""

from __future__ import annotations

import json
from collections import Counter

import numpy as np

from rankloom.data.filters import parse_filter
from rankloom.recommender import Rankloom


def describe_prefixes(model: Rankloom, *, words: int = 2) -> dict[tuple[int, ...], str]:
    """Per prefix of every semantic ID its most telling category words (share among its items over share in the catalogue,
    weighted by how many of its items have them); titles' words where there are no categories."""
    if "category" in model.items.columns:
        terms = [list(dict.fromkeys(path or [])) for path in model.items["category"].to_list()]
    else:
        terms = [title.lower().split() for title in model.items["title"].to_list()]
    overall: Counter[str] = Counter(word for own in terms for word in own)
    total = max(1, len(terms))
    rows = model.trie.leaf_items.tolist()
    codes = model.semantic_ids.codes
    inside: dict[tuple[int, ...], Counter[str]] = {}
    sizes: Counter[tuple[int, ...]] = Counter()
    for row in rows:
        for depth in range(1, codes.shape[1] + 1):
            prefix = tuple(int(code) for code in codes[row, :depth])
            sizes[prefix] += 1
            inside.setdefault(prefix, Counter()).update(terms[row])
    out = {}
    for prefix, counts in inside.items():
        scored = [((n / sizes[prefix]) ** 2 * total / overall[word], word) for word, n in counts.items()]
        out[prefix] = " · ".join(word for _, word in sorted(scored, reverse=True)[:words])
    return out


def example_filters(model: Rankloom) -> list[str]:
    """A few filters that mean something for this catalogue, each met by some items and not by all."""
    items, out = model.items, []
    if "price_micros" in items.columns and items["price_micros"].null_count() < items.height:
        middle = float(items["price_micros"].drop_nulls().to_numpy().mean()) / 1e6
        out.append(f"price < {float(f'{middle:.1g}'):g}")
    if "category" in items.columns:
        names = Counter(path[min(1, len(path) - 1)] for path in items["category"].to_list() if path)
        out += [f"category in [{json.dumps(name, ensure_ascii=False)}]" for name, _ in names.most_common(2)]
    if "duration_s" in items.columns and items["duration_s"].null_count() < items.height:
        out.append("duration_s < 60")
    if "in_stock" in items.columns and items["in_stock"].null_count() < items.height:
        out.append("in_stock == true")
    masks = [(text, parse_filter(text).mask(items)) for text in out]
    return [text for text, mask in masks if 0 < int(np.count_nonzero(mask)) < items.height]


def example_queries(model: Rankloom, *, most: int = 2) -> list[str]:
    """What one may search for here: names of large categories, of several scripts where the catalogue has them; else the
    first words of popular titles."""
    if "category" in model.items.columns:
        names = [name for name, _ in Counter(path[-1] for path in model.items["category"].to_list() if path).most_common()]
    else:
        names = []
    if not names:
        titles = model.items["title"].to_list()
        order = np.argsort(-model.semantic_ids.prior, kind="stable")[:50]
        names = list(dict.fromkeys(" ".join(titles[row].split()[:3])[:40] for row in order.tolist()))
    latin = [name for name in names if name.isascii()]
    other = [name for name in names if not name.isascii()]
    mixed = [*latin[:1], *other[:1]]
    return [*mixed, *(name for name in names if name not in mixed)][:most]
