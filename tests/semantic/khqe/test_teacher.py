from __future__ import annotations

import numpy as np
import pytest

from rankloom.semantic.keywords.segmentation import Segmenter
from rankloom.semantic.khqe.evidence import NAMES, Evidence
from rankloom.semantic.khqe.teacher import RelevanceTeacher, in_lists

WORDS = {"夏季": 5, "连衣裙": 5, "碎花": 3, "手机": 4, "手机壳": 4}
TEXTS = ["夏季碎花连衣裙", "连衣裙 长款", "手机壳 iPhone 15", "碎花手机壳", "夏季"]


def features(query: str, text: str) -> dict[str, float]:
    own = Evidence(Segmenter(WORDS)).fit(TEXTS)([query], [text])
    return dict(zip(NAMES, own[0].tolist(), strict=True))


def test_the_whole_of_a_query_is_covered_by_its_own_text() -> None:
    own = features("夏季碎花连衣裙", "夏季碎花连衣裙")
    assert [own[f"{view}_covered"] for view in ("word", "pair", "character")] == pytest.approx([1, 1, 1])
    assert own["stretch"] == own["whole"] == 1
    assert own["begins"] == 0


def test_nothing_is_covered_by_a_text_that_shares_nothing() -> None:
    own = features("连衣裙", "手机壳 iphone 15")
    assert all(own[name] == 0 for name in NAMES if name.endswith(("covered", "said", "bm25")))
    assert own["begins"] == 1


def test_a_rare_word_covers_more_than_a_frequent_one() -> None:
    rare, frequent = features("长款连衣裙", "长款"), features("长款连衣裙", "连衣裙")
    assert rare["word_covered"] < 1
    assert rare["character_covered"] > 0
    own = Evidence(Segmenter({"甲": 9, "乙": 9})).fit(["甲", "甲", "甲 丙", "乙"])
    both = own(["甲 乙", "甲 乙"], ["甲", "乙"])
    assert both[0, 0] < both[1, 0]
    assert frequent["word_covered"] > 0


def test_stretch_is_the_longest_common_substring() -> None:
    rng = np.random.default_rng(0)
    own = Evidence(Segmenter({"a": 1})).fit(["a"])
    place = NAMES.index("stretch")
    for _ in range(50):
        query, text = ("".join(rng.choice(list("abc"), size)) for size in (6, 12))
        longest = max(
            (end - start for start in range(6) for end in range(start + 1, 7) if query[start:end] in text), default=0
        )
        assert own([query], [text])[0, place] == pytest.approx(longest / 6)


def test_numbers_that_both_name() -> None:
    assert features("iphone 15", "手机壳 iPhone 15")["numbers"] == 1
    assert features("iphone 14", "手机壳 iPhone 15")["numbers"] == 0
    assert features("手机壳", "手机壳")["numbers"] == 1


def test_cosines_stand_last() -> None:
    own = Evidence(Segmenter(WORDS)).fit(TEXTS)(["手机"] * 2, TEXTS[:2], [np.array([0.1, 0.2], np.float32)])
    assert own.shape == (2, len(NAMES) + 1)
    assert own[:, -1].tolist() == pytest.approx([0.1, 0.2])


def test_features_in_lists_equal_the_loop() -> None:
    rng = np.random.default_rng(0)
    x, group = rng.normal(size=(20, 3)).astype(np.float32), rng.integers(0, 4, 20) * 7
    wide = in_lists(x, group)
    for row in range(20):
        own = x[group == group[row]]
        np.testing.assert_allclose(wide[row], np.r_[x[row], x[row] - own.max(0), x[row] - own.mean(0)], atol=1e-6)


def test_the_teacher_learns_what_decides_and_is_the_same_for_the_same_seed() -> None:
    rng = np.random.default_rng(0)
    group = np.repeat(np.arange(120), 10)
    x = rng.normal(size=(1200, 4)).astype(np.float32)
    signal = x[:, 1] + 0.3 * rng.normal(size=1200)
    grade = np.digitize(signal, [0.0, 1.0])
    known = group < 80
    teacher = RelevanceTeacher(rounds=30, seeds=2).fit(x[known], grade[known], group[known])
    score = teacher.score(x[~known], group[~known])
    assert np.corrcoef(score, x[~known, 1])[0, 1] > 0.8
    again = RelevanceTeacher(rounds=30, seeds=2).fit(x[known], grade[known], group[known])
    np.testing.assert_array_equal(again.score(x[~known], group[~known]), score)
