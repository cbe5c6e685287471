"""The cascade that the generator replaces: recall by several channels, merge, pre-rank, then a LightGBM lambdarank.

What a careful team without a generative model runs (the "multi-stage cascade architecture" that OneRec and OneSearch are
compared with), so it is built to win:

* recall channels: item-CF (cosine of co-users), directed transitions, nearest vectors learned from co-occurrence (PPMI,
  truncated SVD), nearest content vectors of the profile and of the query, popular items of the categories that come next,
  fresh items of those categories, recent popularity, and the person's own items (for logs with repeats). Nearest neighbours
  are exact: a matrix product over the catalogue, which at these sizes is faster than an index and loses nothing
* merge and pre-rank: reciprocal rank fusion keeps a few hundred candidates
* rank: LambdaMART on some fifty features of candidate, person and moment

Honest by construction: the statistics behind the features of a training target were fitted without it. The training
period is cut once more, by time (or each person's last training target for leave-one-out splits); the ranker learns on the
later part with statistics of the earlier one, and then ranks with statistics of the whole training period. The number of
trees is chosen on VALID. Request-time facts that the generator also has (query, surface, the clock) are features here too.

Shapes: B cases of a block, I items, M candidates, F features, G leaf categories.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray

from rankloom.data.sequences import TRAIN, VALID, Cases, Sequences
from rankloom.evaluation.cascade_statistics import Catalogue, Past, Statistics, unit
from rankloom.evaluation.systems import FloatArray, IntArray, people_come_back, seen_pairs, top_items
from rankloom.progress import Progress

_DAY_US: Final = 86_400_000_000
_FUSION: Final = 60.0  # Cormack et al. 2009, reciprocal rank fusion
_UNRANKED: Final = 1000


@dataclass
class Block:
    """Candidates of B cases: items (-1 padding), whether seen before, features, fused recall score."""

    item_BM: IntArray
    seen_BM: NDArray[np.bool_]
    feature_BMF: FloatArray
    fused_BM: FloatArray


@dataclass
class _Kept:
    """Scored candidates of the last cases asked for: the masked and the unmasked list come from one pass."""

    sequences: Sequences
    cases: Cases
    item_CM: IntArray
    seen_CM: NDArray[np.bool_]
    score_CM: FloatArray


@dataclass
class Cascade:
    """See the module's docstring.

    Args:
        items: the shop's catalogue, in the order of its item numbers; None knows items by behaviour and content only.
        query_vectors: (n_queries, D) content vectors of `Sequences.queries`; None ignores queries.
        n_candidates: new items a case that reach the ranker; where people come back to items, up to 30 seen ones beside them.
        max_training: targets that train the ranker.
        params: LightGBM parameters over the defaults.
    """

    items: pl.DataFrame | None = None
    query_vectors: FloatArray | None = None
    n_candidates: int = 170
    max_training: int = 16_000
    max_trees: int = 600
    params: dict[str, Any] = field(default_factory=dict)
    quiet: bool = False
    name: str = "cascade"

    def __post_init__(self) -> None:
        self.booster: Any = None
        self.repeats = True
        self._kept: _Kept | None = None

    # -- learning --------------------------------------------------------------------------------------------------

    def fit(self, sequences: Sequences, content: FloatArray | None, seed: int) -> None:
        """Statistics and ranker from TRAIN rows; VALID chooses the number of trees."""
        self.catalogue = Catalogue.of(self.items, sequences.n_items)
        self.content = unit(content) if content is not None and content.size else None
        self._kept = None
        trained = np.flatnonzero((sequences.stage == TRAIN) & sequences.target)
        self.repeats = people_come_back(sequences)
        earlier, held_out = split_training(sequences, self.max_training, seed)
        before = Statistics.fit(sequences, earlier, self.catalogue, seed)
        training = self._examples(sequences, held_out, before, "cascade: training candidates")
        self.statistics = Statistics.fit(sequences, trained, self.catalogue, seed)
        cases = sequences.cases(VALID, max_per_user=1, max_users=4000, seed=0)
        validation = self._examples(sequences, cases, self.statistics, "cascade: validation candidates")
        self.booster = self._train(training, validation, seed)

    def _examples(self, sequences: Sequences, cases: Cases, known: Statistics, title: str) -> _Examples:
        """Candidates of the cases whose target was recalled: a list without it teaches a ranker nothing."""
        features, labels, groups = [], [], []
        for part, block in self._blocks(sequences, cases, known, title):
            hit = block.item_BM == cases.target[part][:, None]
            real = (block.item_BM >= 0) & hit.any(1)[:, None]
            features.append(block.feature_BMF[real])
            labels.append(hit[real])
            groups.append(real.sum(1)[hit.any(1)])
        if not features:
            return _Examples(np.zeros((0, len(FEATURES)), np.float32), np.zeros(0, bool), np.zeros(0, int), len(cases))
        return _Examples(np.concatenate(features), np.concatenate(labels), np.concatenate(groups), len(cases))

    def _train(self, training: _Examples, validation: _Examples, seed: int) -> Any:
        import lightgbm

        if len(training.groups) < 20:
            return None  # too few answers to learn an order from: the fused recall score ranks
        params = {
            "objective": "lambdarank", "metric": "ndcg", "eval_at": [10], "label_gain": [0, 1], "lambdarank_truncation_level": 30,
            "learning_rate": 0.05, "num_leaves": 31, "min_data_in_leaf": int(np.clip(len(training.labels) // 500, 5, 200)),
            "feature_fraction": 0.6, "bagging_fraction": 0.8, "bagging_freq": 1, "lambda_l2": 10.0, "max_bin": 127,
            "seed": seed, "deterministic": True, "force_row_wise": True, "num_threads": torch.get_num_threads(), "verbosity": -1,
            **self.params,
        }  # fmt: skip
        data = lightgbm.Dataset(training.features, training.labels, group=training.groups, free_raw_data=True)
        callbacks: list[Any] = []
        valid_sets = []
        if len(validation.groups):
            valid_sets = [data.create_valid(validation.features, validation.labels, group=validation.groups)]
            callbacks.append(lightgbm.early_stopping(40, verbose=False))
        with Progress("cascade: trees", self.max_trees, unit="trees", quiet=self.quiet) as progress:
            callbacks.append(lambda _: progress.advance())
            # without validation cases there is nothing to stop on: a short model
            rounds = self.max_trees if valid_sets else min(100, self.max_trees)
            return lightgbm.train(params, data, rounds, valid_sets=valid_sets, callbacks=callbacks)

    # -- answering -------------------------------------------------------------------------------------------------

    def rank(self, sequences: Sequences, cases: Cases, k: int, *, mask_seen: bool) -> IntArray:
        """(C, k) items, best first, -1 where fewer were recalled."""
        kept = self._score(sequences, cases)
        score = np.where(kept.seen_CM & mask_seen, -np.inf, kept.score_CM)
        place = top_items(score, k)
        found = np.take_along_axis(kept.item_CM, np.maximum(place, 0), 1)
        return np.where(place >= 0, found, -1).astype(np.int32)

    def _score(self, sequences: Sequences, cases: Cases) -> _Kept:
        kept = self._kept
        if (
            kept is not None
            and kept.sequences is sequences
            and np.array_equal(kept.cases.row, cases.row)
            and np.array_equal(kept.cases.user, cases.user)
        ):
            return kept
        items, seen, scores = [], [], []
        for _, block in self._blocks(sequences, cases, self.statistics, "cascade: ranking"):
            score = block.fused_BM.copy()
            real = block.item_BM >= 0
            if self.booster is not None and real.any():
                score[real] = self.booster.predict(block.feature_BMF[real]).astype(np.float32)
            score[~real] = -np.inf
            items.append(block.item_BM)
            seen.append(block.seen_BM)
            scores.append(score)
        empty = np.zeros((0, self.width))
        self._kept = _Kept(
            sequences,
            cases,
            np.concatenate(items) if items else empty.astype(np.int32),
            np.concatenate(seen) if seen else empty.astype(bool),
            np.concatenate(scores) if scores else empty.astype(np.float32),
        )
        return self._kept

    # -- recall and features ---------------------------------------------------------------------------------------

    def _blocks(self, sequences: Sequences, cases: Cases, known: Statistics, title: str) -> Any:
        size = int(np.clip(4_000_000 // max(1, sequences.n_items), 16, 512))
        with Progress(title, len(cases), unit="cases", quiet=self.quiet) as progress:
            for begin in range(0, len(cases), size):
                part = slice(begin, begin + size)
                yield part, self.block(sequences, cases, part, known)
                progress.advance(min(size, len(cases) - begin))

    def block(self, sequences: Sequences, cases: Cases, part: slice, known: Statistics) -> Block:
        """Recalls, merges and describes the candidates of one block of cases."""
        past = Past.of(sequences, cases, part)
        channels = self.channels(sequences, past, known)
        shape, rows = (past.n_cases, sequences.n_items), np.arange(past.n_cases)[:, None]
        fused = np.zeros(shape, dtype=np.float32)
        recalled: dict[str, tuple[NDArray[np.int64], NDArray[np.int16]]] = {}
        for name, (score, width) in channels.items():
            value, best = _best(score, min(width, shape[1]))
            place = np.arange(best.shape[1], dtype=np.int16)
            fused[rows, best] += (value > 0) / (_FUSION + place)
            recalled[name] = best, np.where(value > 0, place, _UNRANKED).astype(np.int16)
        seen = np.zeros(shape, dtype=bool)
        seen[seen_pairs(sequences, cases, part)] = True
        kept, taken = _best(np.where(seen, 0, fused), min(self.n_candidates, shape[1]))
        is_seen = np.zeros(taken.shape, dtype=bool)
        if self.repeats:
            fused += seen / _FUSION
            again, own = _best(np.where(seen, fused, 0), min(_MAX_SEEN, shape[1]))
            kept, taken, is_seen = np.c_[kept, again], np.c_[taken, own], np.c_[is_seen, np.ones(own.shape, bool)]
        ranks: dict[str, NDArray[np.int16]] = {}
        buffer = np.full(shape, _UNRANKED, dtype=np.int16)
        for name, (best, place) in recalled.items():
            buffer[rows, best] = place
            ranks[name] = np.take_along_axis(buffer, taken, 1)
            buffer[rows, best] = _UNRANKED
        scores = {name: np.take_along_axis(score, taken, 1) for name, (score, _) in channels.items()}
        features = self._features(sequences, past, known, taken, scores, ranks)
        pad = ((0, 0), (0, self.width - taken.shape[1]))
        return Block(
            item_BM=np.pad(np.where(kept > 0, taken, -1).astype(np.int32), pad, constant_values=-1),
            seen_BM=np.pad(is_seen, pad),
            feature_BMF=np.pad(features, (*pad, (0, 0))),
            fused_BM=np.pad(np.where(kept > 0, kept, 0).astype(np.float32), pad),
        )

    @property
    def width(self) -> int:
        """Candidates of a case at most."""
        return self.n_candidates + (_MAX_SEEN if self.repeats else 0)

    def channels(self, sequences: Sequences, past: Past, known: Statistics) -> dict[str, tuple[FloatArray, int]]:
        """(B, I) scores by channel, 0 for what it does not recall, and how many it may recall."""
        n = sequences.n_items
        decayed, short = past.matrix(n, 0.8), past.matrix(n, 0.5, newest=3)
        leaf = self.catalogue.leaf
        popular = np.log1p(known.count + 3 * known.recent) + 0.01
        profile = unit(decayed @ known.vectors)
        next_leaf = self._next_leaf(past, known)[:, leaf]
        out = {
            "cf": ((decayed @ known.similar).toarray(), 100),
            "chain": ((short @ known.forward).toarray(), 80),
            "latent": (profile @ known.vectors.T, 80),
            "popularity": (np.broadcast_to(known.count, (past.n_cases, n)), 40),
            "recent": (np.broadcast_to(known.recent, (past.n_cases, n)), 40),
            "category": (next_leaf * popular, 80),
        }
        if np.isfinite(self.catalogue.created_us).any() and sequences.has_clock:
            age = (past.when[:, None] - self.catalogue.created_us[None]) / _DAY_US
            out["fresh"] = (np.where(age >= 0, next_leaf * np.exp(-np.clip(age, 0, 60) / 7), 0).astype(np.float32), 40)
        if self.content is not None:
            out["content"] = (np.maximum(unit(decayed @ self.content) @ self.content.T, 0), 80)
            if self.query_vectors is not None and (past.query >= 0).any():
                wanted = unit(self.query_vectors)[np.maximum(past.query, 0)] * (past.query >= 0)[:, None]
                out["query"] = (np.maximum(wanted @ self.content.T, 0), 80)
        return out

    def _next_leaf(self, past: Past, known: Statistics) -> FloatArray:
        """(B, G) categories to expect: where the last items' categories lead, and the person's own shares."""
        n_leaf = len(known.leaf_next)
        out = np.tile(known.leaf_next.mean(0) * 0.2, (past.n_cases, 1))
        np.add.at(out, past.case, past.decay(0.6)[:, None] * known.leaf_next[self.catalogue.leaf[past.item]])
        own: FloatArray = past.counts(self.catalogue.leaf[past.item], n_leaf, 0.9)
        total: FloatArray = out / out.sum(1, keepdims=True) + own / np.maximum(own.sum(1, keepdims=True), 1)
        return total

    def _features(
        self, sequences: Sequences, past: Past, known: Statistics, item_BM: NDArray[np.int64],
        scores: dict[str, FloatArray], ranks: dict[str, NDArray[np.int16]],
    ) -> FloatArray:  # fmt: skip
        """(B, M, F) float32 in the order of `FEATURES`."""
        shop, shape = self.catalogue, item_BM.shape
        nan = np.full(shape, np.nan, dtype=np.float32)
        has = past.last >= 0
        last = np.maximum(past.last, 0)
        row = np.arange(shape[0])[:, None]

        def of_case(values: NDArray[Any]) -> NDArray[Any]:
            return np.broadcast_to(np.asarray(values)[:, None], shape)

        def share(groups: NDArray[np.int64], decay: float) -> NDArray[Any]:
            own = past.counts(groups[past.item], int(groups.max(initial=0)) + 1, decay)
            out: NDArray[Any] = (own / np.maximum(own.sum(1, keepdims=True), 1e-9))[row, groups[item_BM]]
            return out

        def days(values: NDArray[np.float64]) -> NDArray[Any]:
            return (past.when[:, None] - values[item_BM]) / _DAY_US if sequences.has_clock else nan

        value: dict[str, NDArray[Any]] = {}
        for name in CHANNELS:
            value[f"{name}_rank"] = ranks.get(name, nan)
            value[f"{name}_score"] = scores.get(name, nan)
        value["channels"] = np.sum([value[f"{name}_rank"] < _UNRANKED for name in CHANNELS], axis=0)
        value["cf_last"] = np.where(has[:, None], _pick(known.similar, last, item_BM), np.nan)
        value["cf_mean"] = _pick(past.matrix(sequences.n_items, 1.0) @ known.similar, np.arange(shape[0]), item_BM)
        value["cf_mean"] = value["cf_mean"] / np.sqrt(np.maximum(past.length, 1))[:, None]
        value["next_chance"] = np.where(has[:, None], _pick(known.following, last, item_BM), np.nan)
        recalled = known.vectors[item_BM]
        value["latent_last"] = np.where(has[:, None], np.einsum("bmd,bd->bm", recalled, known.vectors[last]), np.nan)
        value["content_last"] = value["content_max"] = nan
        if self.content is not None:
            own = self.content[item_BM]
            value["content_last"] = np.where(has[:, None], np.einsum("bmd,bd->bm", own, self.content[last]), np.nan)
            newest = past.newest(8)
            closest = np.matmul(
                own, (self.content[np.maximum(newest, 0)] * (newest >= 0)[..., None]).transpose(0, 2, 1)
            )
            value["content_max"] = closest.max(2)
        value["log_count"] = np.log1p(known.count)[item_BM]
        value["log_recent"] = np.log1p(known.recent)[item_BM]
        value["trend"] = ((known.recent + 1) / (known.count + 4))[item_BM]
        leaf_count = np.bincount(shop.leaf, weights=known.count)
        value["share_of_category"] = (known.count / np.maximum(leaf_count[shop.leaf], 1))[item_BM]
        value["leaf_next"] = np.where(has[:, None], known.leaf_next[shop.leaf[last]][row, shop.leaf[item_BM]], np.nan)
        value["leaf_share"], value["top_share"] = share(shop.leaf, 0.9), share(shop.top, 0.9)
        value["leaf_short"], value["brand_share"] = share(shop.leaf, 0.5), share(shop.brand, 0.95)
        value["same_leaf"] = np.where(has[:, None], shop.leaf[item_BM] == shop.leaf[last][:, None], np.nan)
        value["age_days"] = days(shop.created_us)
        value["since_first"], value["since_last"] = days(known.first_us), days(known.last_us)
        value["log_price"], value["log_duration"] = shop.log_price[item_BM], shop.log_duration[item_BM]
        value["price_gap"] = value["log_price"] - of_case(past.mean(shop.log_price))
        value["duration_gap"] = value["log_duration"] - of_case(past.mean(shop.log_duration))
        again = past.counts(past.item, sequences.n_items, 1.0)
        value["times_seen"] = np.take_along_axis(again, item_BM, 1)
        value["steps_since_seen"] = np.take_along_axis(past.steps_since(sequences.n_items), item_BM, 1)
        value["history_length"] = of_case(past.length)
        value["history_popularity"] = of_case(past.mean(np.log1p(known.count)))
        value["hours_since_last"] = of_case(past.hours_since_last if sequences.has_clock else np.full(shape[0], np.nan))
        value["last_kind"], value["surface"] = of_case(past.last_kind), of_case(past.surface)
        return np.stack([value[name].astype(np.float32) for name in FEATURES], axis=2)


@dataclass(frozen=True)
class _Examples:
    features: FloatArray
    labels: NDArray[np.bool_]
    groups: NDArray[np.int64]
    n_cases: int

    @property
    def recalled(self) -> float:
        """Share of the cases whose target is among the candidates: what no ranker can exceed."""
        return len(self.groups) / max(1, self.n_cases)


_MAX_SEEN: Final = 30
CHANNELS: Final = ("cf", "chain", "latent", "content", "query", "category", "fresh", "popularity", "recent")
FEATURES: Final = (
    *(f"{name}_rank" for name in CHANNELS),
    *(f"{name}_score" for name in CHANNELS if name not in ("popularity", "recent")),
    "channels", "cf_last", "cf_mean", "next_chance", "latent_last", "content_last", "content_max",
    "log_count", "log_recent", "trend", "share_of_category", "leaf_next", "leaf_share", "leaf_short", "top_share", "brand_share",
    "same_leaf", "age_days", "since_first", "since_last", "log_price", "log_duration", "price_gap", "duration_gap",
    "times_seen", "steps_since_seen", "history_length", "history_popularity", "hours_since_last", "last_kind", "surface",
)  # fmt: skip


def split_training(sequences: Sequences, limit: int, seed: int) -> tuple[NDArray[np.int64], Cases]:
    """TRAIN rows for the statistics, and later training targets that they have not seen.

    Where the split is by time, the last fifth of the training targets by the clock (at most five a person); else every
    person's last training target.
    """
    rows = np.flatnonzero((sequences.stage == TRAIN) & sequences.target)
    owner, time = sequences.user[rows], sequences.timestamp[rows]
    later = sequences.stage > TRAIN
    by_time = bool(sequences.has_clock and len(rows) and later.any() and time.max() <= sequences.timestamp[later].min())
    if by_time:
        held = time >= np.quantile(time, 0.8)
        picked = np.flatnonzero(held)
        opens = np.r_[True, owner[picked][1:] != owner[picked][:-1]]
        number = np.arange(len(picked)) - np.maximum.accumulate(np.where(opens, np.arange(len(picked)), 0))
        picked = picked[number < 5]
    else:
        held = np.r_[owner[1:] != owner[:-1], True] if len(rows) else np.zeros(0, dtype=bool)
        # somebody's only interaction stays: nothing came before it that could foretell it
        held &= np.bincount(owner, minlength=sequences.n_users)[owner] > 1
        picked = np.flatnonzero(held)
    if len(picked) > limit:
        picked = np.sort(np.random.default_rng(seed).choice(picked, limit, replace=False))
    cases = Cases(
        user=owner[picked].astype(np.int32), row=rows[picked].astype(np.int64), target=sequences.item[rows[picked]]
    )
    return rows[~held], cases


def _best(score: FloatArray, width: int) -> tuple[FloatArray, NDArray[np.int64]]:
    """(B, width) highest scores and their columns, best first."""
    # numpy's partition orders the whole row; torch's top-k keeps a heap of `width`
    value, column = torch.topk(torch.from_numpy(np.require(score, requirements=["C", "W"])), width, dim=1)
    return value.numpy(), column.numpy()


def _pick(matrix: Any, row: NDArray[np.int64], column_BM: NDArray[np.int64]) -> FloatArray:
    """(B, M) entries of a csr matrix at one row a case."""
    return np.take_along_axis(matrix[row].toarray(), column_BM, 1)
