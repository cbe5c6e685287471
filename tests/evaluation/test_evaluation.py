from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest

from rankloom.config import EvaluationConfig
from rankloom.data.sequences import TEST, load_sequences
from rankloom.data.shop import Shop, write_shop
from rankloom.evaluation.evaluate import evaluate, paired_difference, text_table
from rankloom.evaluation.floors import ItemKNN, Markov, Popularity
from rankloom.evaluation.metrics import MISSING, Bootstrap, beyond_accuracy, gains, popularity_buckets, target_rank
from rankloom.evaluation.rankloom_system import RankloomSystem
from rankloom.recommender import Rankloom
from tests.semantic.test_tokenizer import log


def test_metrics_by_hand() -> None:
    lists = np.array([[3, 1, 2], [5, 6, 7], [9, 8, 4]], dtype=np.int32)
    rank = target_rank(lists, np.array([1, 0, 9], dtype=np.int32))
    assert rank.tolist() == [1, MISSING, 0]
    assert gains(rank, 2, "recall").tolist() == [1, 0, 1]
    assert gains(rank, 1, "recall").tolist() == [0, 0, 1]
    assert gains(rank, 3, "ndcg").tolist() == pytest.approx([1 / np.log2(3), 0, 1])
    assert gains(rank, 3, "mrr").tolist() == [0.5, 0, 1]
    with pytest.raises(ValueError, match="unknown metric"):
        gains(rank, 3, "auc")


def test_the_bootstrap_covers_and_keeps_users_together() -> None:
    rng = np.random.default_rng(0)
    user = np.repeat(np.arange(200), 5)
    values = np.repeat(rng.random(200) < 0.3, 5).astype(float)
    low, high = Bootstrap(user, 400).interval(values)
    assert low < values.mean() < high
    narrow = Bootstrap(np.arange(1000), 400).interval(values)
    assert high - low > 1.8 * (narrow[1] - narrow[0])


def test_floors_by_hand() -> None:
    sequences = log([[0, 1, 2], [0, 1], [3, 1], [1, 3]], 5)
    from rankloom.data.sequences import Cases

    cases = Cases(np.array([0, 1], np.int32), np.array([1, 4], np.int64), np.array([4, 4], np.int32))
    for system, best in ((Popularity(), 1), (Markov(), 1), (ItemKNN(), 1)):
        system.fit(sequences, None, 0)
        lists = system.rank(sequences, cases, 5, mask_seen=True)
        assert lists[0, 0] == best
        assert 0 not in lists[0]
        assert 0 in system.rank(sequences, cases, 5, mask_seen=False)[0]


def test_evaluation_is_tidy_and_reports_both_maskings(bazaar: Shop, model_path: Path) -> None:
    own = Rankloom.from_pretrained(model_path)
    sequences = load_sequences(bazaar, own.config.data)
    systems = [
        RankloomSystem(own, bazaar, quiet=True),
        RankloomSystem(own, bazaar, select=False, quiet=True),
        Popularity(),
        Markov(),
    ]
    result = evaluate(systems, sequences, own.tokenizer.content, EvaluationConfig(bootstrap=50, max_cases_per_user=2))
    keys = {"system", "variant", "metric", "k", "masked", "value", "low", "high", "n", "slice"}
    assert all(set(row) == keys for row in result.rows)
    assert {row["system"] for row in result.rows} == {"rankloom", "rankloom-generator", "popularity", "markov"}
    for row in result.rows:
        if row["low"] is not None:
            assert row["low"] <= row["value"] <= row["high"]
    assert result.value("rankloom", "recall", 50, masked=True) >= result.value("rankloom", "recall", 5, masked=True)
    with pytest.raises(KeyError):
        result.value("rankloom", "auc", 5, masked=True)
    assert "rankloom-generator" in text_table(result)
    cases = sequences.cases(TEST, max_per_user=2)
    same = result.lists["rankloom", "default", True]
    assert paired_difference(same, same, cases, metric="ndcg", k=10, n_samples=20) == (0.0, 0.0, 0.0)
    for row, (user, end) in enumerate(zip(cases.user, cases.row, strict=True)):
        seen = set(sequences.item[sequences.offsets[user] : end].tolist())
        assert not seen & set(same[row].tolist())
    figures = beyond_accuracy(same, 10, sequences)
    assert 0 < figures["coverage"] <= 1
    assert 0 <= figures["gini"] < 1


def test_buckets_cover_the_catalogue_once(bazaar: Shop, tiny_config: object) -> None:
    from rankloom.config import DataConfig

    buckets = popularity_buckets(load_sequences(bazaar, DataConfig()))
    total = sum(buckets[name].astype(int) for name in ("head", "mid", "tail", "cold"))
    assert (total == 1).all()


def test_items_the_model_never_saw_get_ids_and_gone_ones_are_not_shown(
    bazaar: Shop, model: Rankloom, tmp_path: Path
) -> None:
    items = bazaar.items()
    changed = pl.concat([items[5:], items[:1].with_columns(pl.lit("late").alias("item_id"))])
    events = pl.read_parquet(bazaar.path / "events.parquet")
    kept = events.join(changed.select("item_id"), on="item_id", how="semi")
    shop = write_shop(tmp_path / "shop", items=changed, events=kept)
    system = RankloomSystem(model, shop, quiet=True)
    assert system.added == 1
    sequences = load_sequences(shop, model.config.data)
    lists = system.rank(sequences, sequences.cases(TEST, max_per_user=1), 10, mask_seen=False)
    assert lists.max() < changed.height
    assert (lists >= 0).all()
