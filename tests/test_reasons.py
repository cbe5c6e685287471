"""Reasons name evidence that is there, and say so where there is none."""

from __future__ import annotations

import numpy as np
import polars as pl
import torch

from rankloom.decoding.memory import BehaviourMemory
from rankloom.reasons import AT_MOST, Reasons

TITLES = ["Lens 50 mm", "Camera body", "Flower pot", "自行车 前灯", "Garden hose", "Tripod"]
CATEGORIES = [["Camera", "Lenses"], ["Camera", "Bodies"], ["Garden"], ["Cycling"], ["Garden"], ["Camera", "Lenses"]]


def reasons(*, memory: bool = True) -> Reasons:
    """Six items, of which lens, body and tripod lie together; 60 more fill the rest of the circle."""
    angle = np.r_[[0.0, 0.1, 2.0, 3.0, 2.9, 0.12], np.linspace(1.0, 6.0, 60)]
    vectors = np.stack([np.cos(angle), np.sin(angle)], axis=1).astype(np.float32)
    items = pl.DataFrame(
        {"title": TITLES + [f"Thing {n}" for n in range(60)], "category": CATEGORIES + [["Other", f"{n}"] for n in range(60)]}
    )
    codes = np.arange(66 * 2).reshape(66, 2)
    codes[1, 0] = codes[0, 0]
    count = np.r_[[3, 3, 40, 2, 1, 0], np.ones(60, dtype=int)]
    # the hose comes after the lens
    table = BehaviourMemory(torch.tensor([0, 1, *[1] * 65]), torch.tensor([4]), torch.tensor([1.0]))
    return Reasons(items, vectors, vectors, codes, count, table if memory else None)


def test_what_is_far_from_the_history_is_not_called_near() -> None:
    found = reasons().of_history([2, 5, 1], [0])
    assert found[0] == ["popular: taken 40 times in training"]
    assert found[1] == ["near 'Lens 50 mm' in the history"]
    assert found[2] == ["near 'Lens 50 mm' in the history (same first 1 of 2 codes)"]


def test_the_memory_names_the_item_it_speaks_of() -> None:
    assert reasons().of_history([4], [0, 2])[0][0] == "people take it after 'Lens 50 mm'"
    assert "people take it" not in " ".join(reasons(memory=False).of_history([4], [0])[0])


def test_without_evidence_it_says_so() -> None:
    own = reasons()
    assert own.of_history([10], [0]) == [["the model's own guess: nothing in the history is much like it"]]
    assert own.of_history([10], []) == [["no history yet: what people in general take first"]]
    assert own.of_history([], [0]) == []


def test_what_was_taken_before_and_the_same_category() -> None:
    own = reasons(memory=False)
    assert own.of_history([0], [0]) == [["taken before"]]
    assert own.of_history([4], [2]) == [["same category as 'Flower pot': Garden"]]
    assert all(1 <= len(one) <= AT_MOST for one in own.of_history(list(range(66)), [0, 1, 2, 5]))


def test_a_search_names_the_words_of_the_title_in_any_script() -> None:
    own = reasons()
    at = own.content_ID
    assert own.of_search([0], "lens for video", at[0]) == [["for the search 'lens for video': the title has 'lens'"]]
    assert own.of_search([3], "自行车灯", at[3]) == [["for the search '自行车灯': the title has '自行', '行车'"]]
    assert own.of_search([5], "zoom", at[0]) == [["for the search 'zoom': near in meaning"]]
    assert "guess" in own.of_search([2], "zoom", at[0])[0][0]
