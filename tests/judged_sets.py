"""Small judged search sets in exactly the files of WANDS, ESCI and KuaiSearch-Lite, for the benchmarks that read these."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import polars as pl

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:4a735b693b4a424a6fc67f5be6e4c811495c488bbf66d02a602d308b2744263a\nsize 51286808\n"
KINDS = ("coffee table", "arm chair", "bar stool", "floor lamp", "area rug", "wall clock")
COLORS = ("blue", "red", "green", "white", "black")
STUFF = ("oak", "steel")
PRODUCTS = [(kind, color, stuff) for kind in KINDS for color in COLORS for stuff in STUFF]
QUERIES = [f"{color} {kind}" for color, kind in zip(COLORS * 3, (*KINDS, *KINDS, *KINDS[:3]), strict=True)]


ASKED = [query.replace("red", "crimson") for query in QUERIES]
"""As people type them: a word that no product has."""


def grade(query: str, product: tuple[str, str, str]) -> int:
    """2 right, 1 of the kind, 0 neither."""
    kind, color, _ = product
    return 0 if kind not in query else 1 + int(color in query)


def wands(folder: Path) -> Path:
    """60 products, 15 queries, 12 judged products a query; a null description, a quoted quote, `category hierarchy` with a blank."""
    (folder / "dataset").mkdir(parents=True)
    products = pl.DataFrame(
        {
            "product_id": list(range(len(PRODUCTS))),
            "product_name": [f"{color} {kind} 27.5 '' {stuff}" for kind, color, stuff in PRODUCTS],
            "product_class": [f"{kind.title()}s" + ("|Accent Pieces" if color == "red" else "") for kind, color, _ in PRODUCTS],
            "category hierarchy": [f"Furniture / Living Room / {kind.title()}s" for kind, _, _ in PRODUCTS],
            "product_description": [
                None if place % 7 == 0 else f'a {color} {kind} , "made" of {stuff}' for place, (kind, color, stuff) in enumerate(PRODUCTS)
            ],
            "product_features": [f"color : {color}|material:{stuff}|legs : 4|loose words" for _, color, stuff in PRODUCTS],
            "rating_count": [15.0] * len(PRODUCTS), "average_rating": [4.5] * len(PRODUCTS), "review_count": [3.0] * len(PRODUCTS),
        }
    )  # fmt: skip
    products.write_csv(folder / "dataset" / "product.csv", separator="\t")
    queries = pl.DataFrame(
        {"query_id": list(range(100, 115)), "query": ASKED, "query_class": [query.title() for query in QUERIES]}
    )
    queries.write_csv(folder / "dataset" / "query.csv", separator="\t")
    names = ("Irrelevant", "Partial", "Exact")
    pairs = [(100 + q, p, names[grade(QUERIES[q], PRODUCTS[p])]) for q, p in judged_pairs()]
    labels = pl.DataFrame(pairs, schema=["query_id", "product_id", "label"], orient="row").with_row_index("id")
    labels.write_csv(folder / "dataset" / "label.csv", separator="\t")
    return folder


def judged_pairs() -> list[tuple[int, int]]:
    """(query, product): all of the kind, and two others."""
    out = []
    for q, query in enumerate(QUERIES):
        own = [p for p, product in enumerate(PRODUCTS) if product[0] in query]
        out += [(q, p) for p in [*own, (own[-1] + 1) % len(PRODUCTS), (own[-1] + 2) % len(PRODUCTS)]]
    return out


def esci(folder: Path) -> Path:
    """15 queries of the United States (10 train, 5 test), one query of the large version alone, one of another locale."""
    home = folder / "shopping_queries_dataset"
    home.mkdir(parents=True)
    products = pl.DataFrame(
        {
            "product_id": [f"B{place:04}" for place in range(len(PRODUCTS))] + ["B9999", "B0000"],
            "product_title": [f"{kind.title()}, {color}" for kind, color, _ in PRODUCTS] + [None, "Mesa"],
            "product_description": [f"<p>A {kind} of {stuff}</p>" for kind, _, stuff in PRODUCTS] + [None, None],
            "product_bullet_point": [f"made of {stuff}\n{color}" for _, color, stuff in PRODUCTS] + [None, None],
            "product_brand": ["Acme" if stuff == "oak" else None for _, _, stuff in PRODUCTS] + [None, None],
            "product_color": [color if stuff == "oak" else None for _, color, stuff in PRODUCTS] + [None, None],
            "product_locale": ["us"] * (len(PRODUCTS) + 1) + ["es"],
        }
    )  # fmt: skip
    products.write_parquet(home / "shopping_queries_dataset_products.parquet")
    rows = []
    for q, p in judged_pairs():
        label = "ISE"[grade(QUERIES[q], PRODUCTS[p])]
        label = "C" if label == "I" and p % 2 else label
        rows.append((ASKED[q], q, f"B{p:04}", "us", label, 1, 1, "test" if q % 3 == 0 else "train"))
    rows += [("big only", 90, "B0001", "us", "E", 0, 1, "test"), ("mesa", 91, "B0000", "es", "E", 1, 1, "test")]
    names = [
        "query",
        "query_id",
        "product_id",
        "product_locale",
        "esci_label",
        "small_version",
        "large_version",
        "split",
    ]
    examples = pl.DataFrame(rows, schema=names, orient="row").with_row_index("example_id")
    examples.write_parquet(home / "shopping_queries_dataset_examples.parquet")
    return folder


ZH_KINDS = ("连衣裙", "运动鞋", "电饭煲", "保温杯", "毛绒玩具", "羽绒服")
ZH_COLORS = ("红色", "蓝色", "绿色", "白色", "黑色")
ZH_STYLES = ("高档", "学生", "轻奢", "复古")


def kuaisearch(folder: Path, *, n_users: int = 30, seed: int = 0) -> Path:
    """120 items, twenty of a kind; 30 people who keep to one color, with four training sessions each, and a test session of half of them."""
    goods = [(kind, color, style) for kind in ZH_KINDS for color in ZH_COLORS for style in ZH_STYLES]
    items = [
        {
            "item_id": 1000 + place, "item_title": f"【{style}】{color}{kind}新款", "brand_id": place % 3, "brand_name": ("金粟兰", "其他/other", "UNKNOWN")[place % 3],
            "seller_id": place % 4, "seller_name": f"{color}小店", "category_level1_id": 1, "category_level1_name": "百货",
            "category_level2_id": 2, "category_level2_name": kind, "category_level3_id": 0, "category_level3_name": "UNKNOWN",
        }
        for place, (kind, color, style) in enumerate(goods)
    ]  # fmt: skip
    rng = np.random.default_rng(seed)
    sessions = []
    for user in range(n_users):
        color = ZH_COLORS[user % len(ZH_COLORS)]
        for turn in range(5 if user % 2 == 0 else 4):
            kind = ZH_KINDS[int(rng.integers(len(ZH_KINDS)))]
            own = [1000 + place for place, good in enumerate(goods) if good[0] == kind]
            liked = [1000 + place for place, good in enumerate(goods) if good[:2] == (kind, color)]
            sessions.append(
                {
                    "user_id": user, "session_id": len(sessions) + 1, "impressed_item_ids": [*own, 5_000_000 + user], "clicked_item_ids": liked,
                    "purchased_item_ids": liked[:1] if turn == 2 else [], "time_index": 1000 + 4000 * turn + 17 * user, "query": kind,
                    "split": "test" if turn == 4 else "train",
                }
            )  # fmt: skip
    # nobody took anything, and something that no item row has was taken
    sessions[0]["clicked_item_ids"], sessions[0]["purchased_item_ids"] = [], []
    next(own for own in sessions if own["split"] == "test")["clicked_item_ids"].append(777)
    users = [
        {
            "user_id": user,
            "gender": "MF"[user % 2],
            "age_bucket": "31-40",
            "fre_country": "中国",
            "fre_province": "辽宁",
            "fre_city": None,
        }
        for user in range(n_users)
    ]
    for name, rows in (("items_lite", items), ("recall_lite", sessions), ("users_lite", users)):
        write_lines(folder / name / "train.jsonl", rows)
    return folder


def write_lines(path: Path, rows: Sequence[object]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
