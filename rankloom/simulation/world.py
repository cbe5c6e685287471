"""The people and things of the bazaar, rebuilt from a seed: latent tastes, item latents, qualities.

Simulated, and marked so wherever it is stored. Latents: an item lies at its category, style and mark; a person wants a few
(category, style) pairs and a few marks, in a language, at a price. Nothing here depends on the clock of the machine.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

import numpy as np
import polars as pl
from numpy.typing import NDArray

from rankloom.simulation import titles

VERSION: Final = 1
N_DAYS: Final = 60
START: Final = datetime(2026, 1, 1, tzinfo=UTC)
N_STYLES: Final = 6
# Log-normal halves of the KuaiRand duration fit (two-piece, median 70 s)
_DURATION: Final = (70.0, 1.376, 0.948)

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class World:
    """See the module's docstring. `World.from_seed(seed)` gives the same people and things every time.

    Attributes:
        category, style, mark: (I,) what an item is; `cluster` = category * 6 + style.
        quality: (I,) standard normal.
        created_day: (I,) days since the start, negative for what was there before.
        duration_s: (I,) seconds, NaN for goods.
        price: (I,) currency units, NaN for videos.
        chinese: (I,) language of the title.
        interest: (U, n_clusters) how much a person wants a cluster, 0 to 1.
        mark_taste: (U, 8) standard normal.
        reads_chinese: (U,) share of their attention that Chinese titles get.
        budget: (U,) log price that suits them.
        activity: (U,) chance to show up on a day.
    """

    seed: int
    category: Ints
    style: Ints
    mark: Ints
    quality: Floats
    created_day: Floats
    duration_s: Floats
    price: Floats
    chinese: NDArray[np.bool_]
    stuffed: NDArray[np.bool_]
    interest: Floats
    mark_taste: Floats
    reads_chinese: Floats
    budget: Floats
    activity: Floats
    items: pl.DataFrame
    users: pl.DataFrame

    @property
    def cluster(self) -> Ints:
        return self.category * N_STYLES + self.style

    @property
    def is_video(self) -> NDArray[np.bool_]:
        return ~np.isnan(self.duration_s)

    @property
    def n_items(self) -> int:
        return len(self.category)

    @property
    def n_users(self) -> int:
        return len(self.activity)

    @classmethod
    def from_seed(cls, seed: int = 0, scale: float = 1.0) -> World:
        """The marketplace at a scale: 1 is 6,400 items and 4,000 people."""
        rng = np.random.default_rng((seed, 1))
        n_items, n_users = max(200, int(6400 * scale)), max(60, int(4000 * scale))
        video_categories = [n for n, c in enumerate(titles.CATEGORIES) if c.video]
        goods_categories = [n for n, c in enumerate(titles.CATEGORIES) if not c.video]
        video = np.arange(n_items) % 2 == 0
        category = np.where(video, rng.choice(video_categories, n_items), rng.choice(goods_categories, n_items))
        style = rng.integers(0, N_STYLES, n_items)
        mark = rng.integers(0, len(titles.MARKS), n_items)
        quality = rng.normal(size=n_items)
        # most videos are uploaded inside the window, most goods were there before
        inside = rng.random(n_items) < np.where(video, 0.65, 0.2)
        created = np.where(inside, rng.uniform(0, N_DAYS, n_items), -rng.exponential(40, n_items) - 1)
        z = rng.normal(size=n_items)
        duration = np.exp(np.log(_DURATION[0]) + z * np.where(z < 0, _DURATION[1], _DURATION[2])).clip(3, 1800)
        base_price = rng.normal(3.2, 0.7, len(titles.CATEGORIES))[category]
        price = np.round(np.exp(base_price + 0.5 * rng.normal(size=n_items)).clip(1, 900), 2)
        chinese = rng.random(n_items) < 0.4
        stuffed = rng.random(n_items) < 0.05
        n_clusters = len(titles.CATEGORIES) * N_STYLES
        interest = np.zeros((n_users, n_clusters))
        for rank, strength in enumerate((1.0, 0.8, 0.6, 0.5)):
            # people like one kind of thing for watching and one for buying more than others
            wanted = rng.choice(video_categories if rank % 2 == 0 else goods_categories, n_users)
            interest[np.arange(n_users), wanted * N_STYLES + rng.integers(0, N_STYLES, n_users)] = strength
            for own in range(N_STYLES):
                column = interest[np.arange(n_users), wanted * N_STYLES + own]
                interest[np.arange(n_users), wanted * N_STYLES + own] = np.maximum(column, 0.3 * strength)
        reads_chinese = rng.beta(0.8, 0.8, n_users)
        catalogue = _catalogue(
            rng,
            category,
            style,
            mark,
            created,
            np.where(video, duration, np.nan),
            np.where(video, np.nan, price),
            chinese,
            stuffed,
        )
        activity = rng.beta(1.2, 6.5, n_users).clip(0.02, 0.9)
        level = np.array(["low", "middle", "high", "full"])[np.digitize(activity, [0.08, 0.2, 0.4])]
        users = pl.DataFrame(
            {
                "user_id": [f"u{n + 1}" for n in range(n_users)],
                "language": np.where(reads_chinese > 0.5, "zh", "en"),
                "activity_level": level,
                "register_days": rng.integers(30, 2000, n_users),
                "simulated": [True] * n_users,
            }
        )
        return cls(
            seed, category, style, mark, quality, created, np.where(video, duration, np.nan), np.where(video, np.nan, price), chinese, stuffed,
            interest, rng.normal(size=(n_users, len(titles.MARKS))), reads_chinese, rng.normal(3.2, 0.6, n_users), activity, catalogue, users,
        )  # fmt: skip

    def affinity(self, user: Ints, item: Ints) -> Floats:
        """How much each person wants each item, before session and noise; about 0 to 3."""
        want = self.interest[user, self.cluster[item]]
        mark = self.mark_taste[user, self.mark[item]]
        language = np.where(self.chinese[item], self.reads_chinese[user], 1 - self.reads_chinese[user])
        price = np.where(
            self.is_video[item],
            0.0,
            -0.25 * np.abs(np.log(np.nan_to_num(self.price[item], nan=25.0)) - self.budget[user]),
        )
        out: Floats = 2.6 * want + 0.35 * mark + 0.5 * self.quality[item] + 0.9 * (language - 0.5) + price
        return out


def _catalogue(
    rng: np.random.Generator, category: Ints, style: Ints, mark: Ints, created: Floats, duration: Floats, price: Floats,
    chinese: NDArray[np.bool_], stuffed: NDArray[np.bool_],
) -> pl.DataFrame:  # fmt: skip
    n = len(category)
    brand, use, hook = (
        rng.integers(0, len(titles.BRANDS), n),
        rng.integers(0, len(titles.USES), n),
        rng.integers(0, len(titles.HOOKS), n),
    )
    season, color = rng.integers(0, 4, n), rng.integers(0, len(titles.COLORS), n)
    described = rng.random(n) < 0.4
    names, paths, descriptions = [], [], []
    for i in range(n):
        own, zh = titles.CATEGORIES[int(category[i])], bool(chinese[i])
        if own.video:
            names.append(
                titles.video_title(
                    int(category[i]),
                    int(style[i]),
                    chinese=zh,
                    mark=mark[i],
                    hook=hook[i],
                    season=season[i],
                    stuffed=bool(stuffed[i]),
                )
            )
        else:
            names.append(
                titles.goods_title(
                    int(category[i]),
                    int(style[i]),
                    chinese=zh,
                    brand=brand[i],
                    mark=mark[i],
                    use=use[i],
                    season=season[i],
                    color=color[i],
                    stuffed=bool(stuffed[i]),
                )
            )
        noun = own.styles[int(style[i])][int(zh)]
        root = ("视频" if own.video else "商品") if zh else ("Videos" if own.video else "Goods")
        paths.append([root, own.chinese if zh else own.english, noun])
        text = (
            f"{titles.MARKS[mark[i]][1]}风格的{noun}，{titles.USES[use[i]][1]}。"
            if zh
            else f"A {titles.MARKS[mark[i]][0]} take on {noun}, {titles.USES[use[i]][0]}."
        )
        descriptions.append(text if described[i] else None)
    goods = np.isnan(duration)
    when = [int(START.timestamp() * 1e6 + day * 86_400e6) for day in created]
    attributes = [
        [{"key": "mark", "value": titles.MARKS[m][int(z)]}, {"key": "color", "value": titles.COLORS[c][int(z)]}]
        if g
        else []
        for m, c, z, g in zip(mark, color, chinese, goods, strict=True)
    ]
    return pl.DataFrame(
        {
            "item_id": [f"{'g' if g else 'v'}{i + 1}" for i, g in enumerate(goods)],
            "title": names,
            "description": descriptions,
            "brand": [titles.BRANDS[b] if g else None for b, g in zip(brand, goods, strict=True)],
            "category": paths,
            "price_micros": pl.Series(
                [round(p * 1e6) if g else None for p, g in zip(price, goods, strict=True)], dtype=pl.Int64()
            ),
            "currency": ["USD" if g else None for g in goods],
            "attributes": attributes,
            "created_at": pl.Series(when).cast(pl.Datetime("us")).dt.replace_time_zone("UTC"),
            "duration_s": pl.Series(np.round(duration, 1)).fill_nan(None),
            "in_stock": pl.Series(
                [bool(s) if g else None for s, g in zip(rng.random(n) > 0.03, goods, strict=True)], dtype=pl.Boolean()
            ),
            "simulated": [True] * n,
        }
    )
