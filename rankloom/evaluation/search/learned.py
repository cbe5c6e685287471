"""The learned mini-cascade: BM25 finds a thousand candidates, a small ranker that knows the person orders them.

Features of a candidate: its BM25 score and place, log popularity, cosine of its text and the mean of the person's history,
cosine of its text and the last item's, and how often it followed the last item in TRAIN. Two rankers on them: LambdaMART
(LightGBM), and a logistic regression, the form in which the reference figures were measured. They learn from the VALID items
of people with statistics of TRAIN alone; the number of trees is chosen on a fifth of these people.

Shapes: B cases of a block, M candidates, F features, I items.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import sparse

from rankloom.config import TextConfig
from rankloom.data.sequences import TRAIN, Sequences
from rankloom.evaluation.cascade_statistics import unit
from rankloom.evaluation.search.cases import SearchCases
from rankloom.evaluation.search.lexical import BM25
from rankloom.evaluation.search.systems import DEPTH, Shelf, without_seen
from rankloom.evaluation.systems import FloatArray, IntArray, last_items, seen_pairs, top_items
from rankloom.semantic.text import make_embedder

Ranker = Literal["lightgbm", "logistic"]
FEATURES: Final = ("bm25", "bm25_share", "bm25_place", "popularity", "history_cosine", "last_cosine", "markov")
_TEXT_DIM: Final = 128
_NEAREST: Final = 150  # negatives of a training list: so many from the top, so many from the rest
_OTHERS: Final = 100


@dataclass
class _Lists:
    """Training lists: (N, F) features, (N,) labels, sizes of the lists."""

    features: FloatArray
    labels: NDArray[np.bool_]
    groups: NDArray[np.int64]


class MiniCascade:
    """See the module's docstring.

    Args:
        lexical: the fitted first stage.
        max_trees: LightGBM's limit.
    """

    name = "mini-cascade"

    def __init__(self, lexical: BM25, ranker: Ranker = "lightgbm", *, max_trees: int = 400, block: int = 128) -> None:
        self.lexical, self.variant, self.max_trees, self.block = lexical, ranker, max_trees, block
        self._model: Any = None

    def fit(self, shelf: Shelf, valid: SearchCases, seed: int) -> None:
        """Statistics of TRAIN; the ranker from the VALID cases (without any, BM25's order stays)."""
        embedder = make_embedder("hashed", TextConfig(dim=_TEXT_DIM))
        self.content_ID = unit(embedder.fit(list(shelf.texts), seed))
        self.log_count_I = np.log1p(shelf.count_I).astype(np.float32)
        self.following = transitions(shelf.sequences)
        self._model = None
        if not len(valid):
            return
        held = np.arange(len(valid)) % 5 == 4
        learn, stop = self._lists(valid.take(~held), seed), self._lists(valid.take(held), seed + 1)
        if len(learn.groups) and len(stop.groups):
            self._model = self._boost(learn, stop, seed) if self.variant == "lightgbm" else _logistic(learn)

    def rank(self, asked: SearchCases, k: int) -> IntArray:
        """(C, k) items, best first, -1 where fewer."""
        out = np.full((len(asked), k), -1, dtype=np.int32)
        for begin in range(0, len(asked), self.block):
            part = slice(begin, begin + self.block)
            item_BM, feature_BMF = self.candidates(asked, part)
            real = item_BM >= 0
            score = np.full(item_BM.shape, -np.inf, dtype=np.float32)
            if self._model is None:
                score[real] = feature_BMF[real][:, 0]
            elif real.any():
                score[real] = self._model(feature_BMF[real])
            place = top_items(score, k)
            out[part] = np.where(place >= 0, np.take_along_axis(item_BM, np.maximum(place, 0), 1), -1)
        return out

    def candidates(self, asked: SearchCases, part: slice) -> tuple[IntArray, FloatArray]:
        """(B, M) items in BM25's order, -1 padding, and their (B, M, F) features in the order of `FEATURES`."""
        lexical_BI = without_seen(self.lexical.lexical(asked, part), asked, part)
        item_BM = top_items(lexical_BI, min(DEPTH, lexical_BI.shape[1]))
        at = np.maximum(item_BM, 0)
        case, item = seen_pairs(asked.sequences, asked.cases, part)
        weights: Any = (np.ones(len(item), np.float32), (case, item))
        history = sparse.csr_matrix(weights, shape=lexical_BI.shape)
        profile = unit(np.asarray(history @ self.content_ID))
        last_B = last_items(asked.sequences, asked.cases, part)
        known = (last_B >= 0)[:, None]
        last = self.content_ID[np.maximum(last_B, 0)] * known
        followed = np.log1p(self.following[np.maximum(last_B, 0)].toarray()) * known

        def of(values_BI: NDArray[Any]) -> NDArray[Any]:
            return np.take_along_axis(values_BI, at, 1)

        score = np.where(item_BM >= 0, of(lexical_BI), 0)
        parts = (
            score,
            score / np.maximum(score.max(1, keepdims=True), 1e-9),
            np.broadcast_to(np.log1p(np.arange(item_BM.shape[1])), item_BM.shape),
            self.log_count_I[at],
            of(profile @ self.content_ID.T),
            of(last @ self.content_ID.T),
            of(followed),
        )
        return item_BM, np.stack(parts, axis=2).astype(np.float32)

    def _lists(self, valid: SearchCases, seed: int) -> _Lists:
        """Of each case whose target was found: the target, the first candidates and some of the others."""
        rng = np.random.default_rng(seed)
        features, labels, groups = [], [], []
        for begin in range(0, len(valid), self.block):
            part = slice(begin, begin + self.block)
            item_BM, feature_BMF = self.candidates(valid, part)
            hit_BM = item_BM == valid.cases.target[part][:, None]
            width = item_BM.shape[1]
            kept = np.arange(width) < _NEAREST
            others = rng.random(item_BM.shape) < _OTHERS / max(1, width - _NEAREST)
            real = (kept | others | hit_BM) & (item_BM >= 0) & hit_BM.any(1)[:, None]
            features.append(feature_BMF[real])
            labels.append(hit_BM[real])
            groups.append(real.sum(1)[hit_BM.any(1)])
        return _Lists(np.concatenate(features), np.concatenate(labels), np.concatenate(groups))

    def _boost(self, learn: _Lists, stop: _Lists, seed: int) -> Any:
        import lightgbm

        params = {
            "objective": "lambdarank", "metric": "map", "eval_at": [10], "label_gain": [0, 1], "lambdarank_truncation_level": 30,
            "learning_rate": 0.05, "num_leaves": 15, "min_data_in_leaf": int(np.clip(len(learn.labels) // 2000, 5, 200)),
            # in a 5-core set an item that is rare in TRAIN must be frequent in what is held out: trees would learn that, so
            # popularity may only help
            "monotone_constraints": [int(name == "popularity") for name in FEATURES],
            "lambda_l2": 10.0, "max_bin": 127, "seed": seed, "deterministic": True, "force_row_wise": True,
            "num_threads": torch.get_num_threads(), "verbosity": -1,
        }  # fmt: skip
        data = lightgbm.Dataset(learn.features, learn.labels, group=learn.groups)
        check = data.create_valid(stop.features, stop.labels, group=stop.groups)
        booster = lightgbm.train(
            params, data, self.max_trees, valid_sets=[check], callbacks=[lightgbm.early_stopping(40, verbose=False)]
        )
        return booster.predict


def transitions(sequences: Sequences) -> Any:
    """(I, I) csr: how often an item came right after another among TRAIN targets."""
    rows = np.flatnonzero((sequences.stage == TRAIN) & sequences.target)
    user, item = sequences.user[rows], sequences.item[rows]
    same = user[1:] == user[:-1]
    pairs: Any = (np.ones(int(same.sum()), np.float32), (item[:-1][same], item[1:][same]))
    return sparse.csr_matrix(pairs, shape=(sequences.n_items, sequences.n_items))


def _logistic(learn: _Lists) -> Any:
    """Log-odds of a regression on the five features of the reference, standardised."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    used = [place for place, name in enumerate(FEATURES) if name not in ("bm25_share", "bm25_place")]
    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=500))
    model.fit(learn.features[:, used], learn.labels)
    return lambda features: model.decision_function(features[:, used])
