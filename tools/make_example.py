"""Writes docs/example: a small tea shop's export with column names of its own, as the user guide's example.

    .venv/bin/python tools/make_example.py

Invented from tables below by a seed; no real person or product is in it.
"""

from __future__ import annotations

import csv
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np

FOLDER = Path(__file__).resolve().parent.parent / "docs" / "example"
KINDS = {
    "Green tea": ("Sencha", "Gyokuro", "Longjing", "Genmaicha", "Bancha"),
    "Black tea": ("Assam", "Darjeeling", "Keemun", "Ceylon", "Earl Grey"),
    "Oolong": ("Tieguanyin", "Dong Ding", "Da Hong Pao", "Milk Oolong"),
    "Herbal": ("Rooibos", "Chamomile", "Peppermint", "Hibiscus", "Lemon Verbena"),
    "Teaware": ("Gaiwan", "Kyusu teapot", "Bamboo whisk", "Tasting cup", "Tea tin"),
}
GRADES = ("everyday", "spring harvest", "organic", "reserve")
MAKERS = ("Cloud Terrace", "Old Harbour", "Nine Bends", "Field & Kettle", "Moonlit Leaf")
START = datetime(2026, 1, 5, 8, 0)
N_CUSTOMERS = 240
N_DAYS = 90


def main() -> None:
    rng = np.random.default_rng(7)
    products = []
    for kind, names in KINDS.items():
        for name in names:
            for grade in GRADES:
                price = round(float(rng.uniform(4, 18) * (2 if grade == "reserve" else 1)), 2)
                products.append((f"T{len(products) + 101}", f"{name}, {grade}", rng.choice(MAKERS), kind, price))
    kinds = list(KINDS)
    kind_of = np.array([kinds.index(product[3]) for product in products])
    quality = rng.gamma(2.0, 1.0, len(products))
    rows = []
    for customer in range(N_CUSTOMERS):
        taste = rng.dirichlet(np.full(len(kinds), 0.3))
        now = START + timedelta(minutes=float(rng.uniform(0, N_DAYS * 0.6 * 1440)))
        last = None
        for _ in range(int(rng.integers(4, 26))):
            weight = taste[kind_of] * quality
            if last is not None:
                # the next look is often at a neighbour: another grade of the same tea
                weight = weight * np.where(np.arange(len(products)) // len(GRADES) == last // len(GRADES), 6.0, 1.0)
                weight[last] = 0.0
            last = int(rng.choice(len(products), p=weight / weight.sum()))
            sku = products[last][0]
            rows.append((now, f"C{customer + 1:03d}", sku, "view"))
            if rng.random() < 0.3:
                rows.append((now + timedelta(minutes=2), f"C{customer + 1:03d}", sku, "purchase"))
            gap = float(rng.exponential(0.5 if rng.random() < 0.7 else 4.0 * 24) * 60 + 3)
            now += timedelta(minutes=gap)
    rows.sort()
    FOLDER.mkdir(parents=True, exist_ok=True)
    with open(FOLDER / "items.csv", "w", newline="", encoding="utf-8") as handle:
        writer = csv.writer(handle, lineterminator="\n")
        writer.writerow(["sku", "product name", "maker", "kind", "price"])
        writer.writerows(products)
    with open(FOLDER / "events.csv", "w", newline="", encoding="utf-8") as handle:
        writer = csv.writer(handle, lineterminator="\n")
        writer.writerow(["customer", "sku", "when", "action"])
        writer.writerows((who, sku, when.strftime("%Y-%m-%d %H:%M:%S"), action) for when, who, sku, action in rows)


if __name__ == "__main__":
    main()
