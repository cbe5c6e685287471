"""The behaviour-built user ID: its weights, its codes by hand, and what the other modes do."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from rankloom.models.behaviour_uid import behaviour_codes, centroid_codes, hashed_codes, recency_weights


def test_the_five_weights_of_the_paper() -> None:
    found = recency_weights(np.ones((1, 5), dtype=bool))[0]
    assert found == pytest.approx([0.093, 0.141, 0.193, 0.253, 0.320], abs=5e-4)


@given(arrays.arrays(np.bool_, (3, 9)))
def test_weights_sum_to_one_and_grow_with_recency(real: np.ndarray) -> None:
    weights = recency_weights(real)
    assert weights.sum(1) == pytest.approx(real.any(1).astype(float))
    for own, there in zip(weights, real, strict=True):
        assert (np.diff(own[there]) > 0).all()
        assert (own[~there] == 0).all()


def test_a_thousand_places_stay_finite() -> None:
    weights = recency_weights(np.ones((1, 1000), dtype=bool))
    assert np.isfinite(weights).all()
    assert weights.sum() == pytest.approx(1)


def test_codes_are_rounded_up_means_by_hand() -> None:
    real = np.array([[False, True, True], [False, False, False]])
    code = np.array([[[9, 9], [4, 0], [1, 2]], [[0, 0]] * 3])
    first, second = np.exp(1.0), np.exp(np.sqrt(2.0))
    expected = [np.ceil((4 * first + second) / (first + second)), np.ceil(2 * second / (first + second))]
    assert behaviour_codes(code, real).tolist() == [[int(value) for value in expected], [-1, -1]]


@given(st.integers(1, 12), st.integers(0, 500))
def test_a_history_of_one_item_is_its_id_however_often(times: int, code: int) -> None:
    codes = np.full((1, times, 3), code)
    assert behaviour_codes(codes, np.ones((1, times), dtype=bool)).tolist() == [[code] * 3]


def test_centroid_mode_names_the_mean_vector() -> None:
    book = np.array([[0.0, 0.0], [1.0, 0.0], [0.0, 4.0]])

    def nearest(vectors: np.ndarray) -> np.ndarray:
        return ((vectors[:, None] - book) ** 2).sum(2).argmin(1)[:, None]

    vectors = np.array([[[0.0, 0.0], [1.5, 0.0]]])
    assert centroid_codes(vectors, np.ones((1, 2), dtype=bool), nearest).tolist() == [[1]]
    assert centroid_codes(vectors, np.zeros((1, 2), dtype=bool), nearest).tolist() == [[-1]]


def test_hashed_codes_know_the_person_and_nothing_else() -> None:
    sizes = (7, 5, 3)
    both = hashed_codes(["a", "b", "a"], sizes, salt="x")
    assert both[0].tolist() == both[2].tolist()
    many = hashed_codes([str(number) for number in range(500)], sizes)
    assert (many < np.asarray(sizes)).all()
    assert {len(np.unique(column)) for column in many.T} == {7, 5, 3}
    assert hashed_codes(["a"], (1000,), salt="x").tolist() != hashed_codes(["a"], (1000,), salt="y").tolist()
