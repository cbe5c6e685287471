"""Figures of decoding on logs and lists of a few items, against values computed by hand."""

from __future__ import annotations

import math

import pytest
import torch

from rankloom.decoding.exposure import Exposure
from rankloom.decoding.memory import BehaviourMemory
from rankloom.decoding.refine import FEATURES, RefineExamples, fit_refiner
from rankloom.models.age import NOT_YET, UNKNOWN

DAY = 86_400.0


def test_ndcg_at_ten_counts_the_first_ten_places_only() -> None:
    # twelve candidates, best first; the targets are first, second, tenth, eleventh, and none of them
    target = torch.tensor([0, 1, 9, 10, 99])
    score = -torch.arange(12.0).expand(5, 12)
    item = torch.arange(12).expand(5, 12)
    batch = RefineExamples(torch.zeros(5, 12, len(FEATURES)), score, item, target)
    refiner, figures = fit_refiner([batch] * 3, seed=0)
    by_hand = (1 + 1 / math.log2(3) + 1 / math.log2(11) + 0 + 0) / 5
    assert figures["held-out ndcg@10, joined"] == pytest.approx(by_hand, rel=1e-6)
    assert figures["held-out ndcg@10, refined"] == pytest.approx(by_hand, rel=1e-6)
    assert refiner is None, "features that are all the same cannot order anything"


def test_rates_are_takes_per_item_that_was_there_at_that_age() -> None:
    # kind 0: listed on day 0 and on day 1; kind 1: nobody knows when
    created = torch.tensor([0.0, DAY, math.nan], dtype=torch.float64)
    kind = torch.tensor([0, 0, 1])
    when = torch.tensor([0.0, 2 * DAY, 2 * DAY], dtype=torch.float64)
    exposure = Exposure.fit(created, kind, torch.tensor([0, 1, 2]), when, moments=2)
    # moments 0 and 2 days: ages of kind 0 are 0 (bucket 2) and not listed, then 2 days (bucket 6) and 1 day (bucket 5).
    # two takes over three places of known age are 2/3 on average, so that 1 take and 1/average places steady each rate
    first, second = exposure.rate_GA
    for bucket, rate in ((2, 2 / 2.5), (5, 2 / 2.5), (6, 1 / 2.5), (3, 1 / 1.5), (UNKNOWN, 1 / 1.5)):
        assert float(first[bucket]) == pytest.approx(rate)
    # kind 1 was there at both moments and taken once
    assert float(second[UNKNOWN]) == pytest.approx(2 / 3)
    assert float(second[2]) == pytest.approx(1)
    assert float(first[NOT_YET]) == float(second[NOT_YET]) == pytest.approx(1e-6)
    assert exposure.expected_I.tolist() == pytest.approx([0.8 + 0.4, 0.8, 2 * 2 / 3])


def test_the_first_item_after_the_table_brings_nothing_to_mind() -> None:
    # two items were known in training: after 0 came 1 (weight 2), after 1 came 0 (weight 3)
    memory = BehaviourMemory(torch.tensor([0, 1, 2]), torch.tensor([1, 0]), torch.tensor([2.0, 3.0]))
    request, item, amount = memory.recall(torch.tensor([[2, 0, -1], [1, 2, 3]]))
    assert request.tolist() == [0, 1]
    assert item.tolist() == [1, 0]
    assert amount.tolist() == pytest.approx([2 * 0.6, 3.0]), "one step back weighs 0.6"
