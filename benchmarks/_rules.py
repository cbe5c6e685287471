"""Random rules with an oracle that shares nothing with the library: plain Python over plain rows, two-valued logic."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from typing import Any

Row = dict[str, Any]
Rule = tuple[str, Callable[[Row], bool]]
_NUMBERS: dict[str, Callable[[Row], float | None]] = {
    "price": lambda row: None if row.get("price_micros") is None else row["price_micros"] / 1e6,
    "duration_s": lambda row: row.get("duration_s"),
}
_OPS: dict[str, Callable[[float, float], bool]] = {
    "<": lambda a, b: a < b, "<=": lambda a, b: a <= b, ">": lambda a, b: a > b, ">=": lambda a, b: a >= b,
    "==": lambda a, b: a == b, "!=": lambda a, b: a != b,
}  # fmt: skip


def random_rule(rng: random.Random, rows: Sequence[Row], depth: int = 3) -> Rule:
    """(text, oracle). About half of the rules pass between a tenth and nine tenths of the items."""
    kind = rng.random()
    if depth and kind < 0.25:
        (a, first), (b, second) = random_rule(rng, rows, depth - 1), random_rule(rng, rows, depth - 1)
        return f"({a}) and ({b})", lambda row: first(row) and second(row)
    if depth and kind < 0.5:
        (a, first), (b, second) = random_rule(rng, rows, depth - 1), random_rule(rng, rows, depth - 1)
        return f"({a}) or ({b})", lambda row: first(row) or second(row)
    if depth and kind < 0.6:
        a, first = random_rule(rng, rows, depth - 1)
        return f"not ({a})", lambda row: not first(row)
    return _leaf(rng, rows)


def _leaf(rng: random.Random, rows: Sequence[Row]) -> Rule:
    some = rng.choice(rows)
    kind = rng.choice(("number", "number", "brand", "brands", "category", "categories", "title", "null", "stock", "id"))
    if kind == "number":
        name, op = rng.choice(list(_NUMBERS)), rng.choice(list(_OPS))
        value = round(rng.uniform(0, 120), 2)
        return f"{name} {op} {value}", lambda row: (own := _NUMBERS[name](row)) is not None and _OPS[op](own, value)
    if kind == "brand" and some.get("brand"):
        brand = some["brand"]
        return f"brand == {_text(brand)}", lambda row: row.get("brand") == brand
    if kind == "brands":
        brands = [row["brand"] for row in rng.choices(rows, k=4) if row.get("brand")] or ["nobody"]
        return f"brand in [{', '.join(map(_text, brands))}]", lambda row: row.get("brand") in brands
    if kind == "category" and some.get("category"):
        name = rng.choice(some["category"])
        return f"category == {_text(name)}", lambda row: name in (row.get("category") or [])
    if kind == "categories":
        names = [rng.choice(row["category"]) for row in rng.choices(rows, k=3) if row.get("category")] or ["nothing"]
        return f"category in [{', '.join(map(_text, names))}]", lambda row: bool(set(names) & set(row.get("category") or []))
    if kind == "title":
        word = rng.choice(some["title"].split())
        return f"title contains {_text(word)}", lambda row: word.lower() in row["title"].lower()
    if kind == "null":
        name = rng.choice(("price_micros", "duration_s", "brand"))
        return f"{name} is null", lambda row: row.get(name) is None
    if kind == "stock":
        return "in_stock == true", lambda row: row.get("in_stock") is True
    own = some["item_id"]
    return f"item_id != {_text(own)}", lambda row: row["item_id"] != own


def _text(value: str) -> str:
    return json.dumps(value, ensure_ascii=False)
