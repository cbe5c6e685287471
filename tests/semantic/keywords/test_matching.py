from __future__ import annotations

import importlib.util
import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rankloom.errors import RankloomError
from rankloom.semantic.keywords import segmentation
from rankloom.semantic.keywords.dictionary import Keyword, KeywordDictionary
from rankloom.semantic.keywords.folding import fold, unspaced
from rankloom.semantic.keywords.matching import KeywordMatcher, Overlap, other_numbers, resolve, surface_forms
from rankloom.semantic.keywords.segmentation import Segmenter

ALPHABET = "abs 1.-红色鞋é"


def dictionary(*terms: str, kind: str = "entity") -> KeywordDictionary:
    return KeywordDictionary([Keyword(term, kind) for term in terms])


def found(matcher: KeywordMatcher, text: str, overlap: Overlap | None = None) -> list[str]:
    return [text[span.start : span.end] for span in matcher.match(text, overlap=overlap)]


def slow_match(
    own: KeywordDictionary, text: str, overlap: Overlap, numbers: bool, segmenter: Segmenter
) -> list[tuple[int, int, int]]:
    """Every form tried at every place, then kept one by one by the words of the policy."""
    folded = fold(text)
    matches = []
    for form, row in surface_forms(own, numbers=numbers).items():
        for start in range(len(folded.text)):
            end = start + len(form)
            whole = folded.text[start:end] == form and folded.boundary(start) and folded.boundary(end)
            words = [set(range(*word)) for word in segmenter.words(folded.text) if unspaced(folded.text[word[0]])]
            # the words that an end cuts in two
            first, last = ([word for word in words if {at - 1, at} <= word] for at in (start, end))
            if whole and not (first and last and first != last):
                matches.append((start, end, row))
    if overlap != "all":
        matches.sort(key=lambda match: (-(match[1] - match[0]), match[0]))
        kept: list[tuple[int, int, int]] = []
        for match in matches:
            places = set(range(match[0], match[1]))
            others = [set(range(other[0], other[1])) for other in kept]
            clash = any(places & other for other in others) if overlap == "disjoint" else any(places <= other for other in others)
            if not clash:
                kept.append(match)
        matches = kept
    return sorted(((*folded.span(start, end), row) for start, end, row in matches), key=lambda m: (m[0], -m[1], m[2]))


@settings(max_examples=150, deadline=None)
@given(
    terms=st.lists(st.text(ALPHABET, min_size=1, max_size=4), max_size=8),
    text=st.text(ALPHABET, max_size=16),
    overlap=st.sampled_from(["longest", "disjoint", "all"]),
    numbers=st.booleans(),
)
def test_the_automaton_finds_what_trying_every_place_finds(
    terms: list[str], text: str, overlap: Overlap, numbers: bool
) -> None:
    folded = [fold(term).text for term in terms]
    own = dictionary(*dict.fromkeys(term for term in folded if term and fold(term).text == term))
    segmenter = Segmenter({"红色": 3, "色鞋": 1, "鞋红": 1})
    matcher = KeywordMatcher(own, overlap=overlap, numbers=numbers, segmenter=segmenter)
    spans = [(span.start, span.end, span.row) for span in matcher.match(text)]
    assert sorted(spans, key=lambda m: (m[0], -m[1], m[2])) == slow_match(own, text, overlap, numbers, segmenter)


@settings(max_examples=100, deadline=None)
@given(spans=st.lists(st.tuples(st.integers(0, 12), st.integers(1, 5)), max_size=12, unique=True))
def test_what_stands_after_pruning(spans: list[tuple[int, int]]) -> None:
    every = [(start, start + length, row) for row, (start, length) in enumerate(spans)]
    disjoint = resolve(every, "disjoint")
    assert all(a[1] <= b[0] for a, b in itertools.pairwise(disjoint))
    longest = resolve(every, "longest")
    assert not [(a, b) for a in longest for b in longest if a != b and b[0] <= a[0] and a[1] <= b[1]]
    # whatever was dropped lies inside something that was kept
    assert all(any(k[0] <= s[0] and s[1] <= k[1] for k in longest) for s in every)
    assert resolve(every, "all") == sorted(every, key=lambda span: (span[0], -span[1]))


def test_a_word_is_not_found_inside_another() -> None:
    matcher = KeywordMatcher(dictionary("ring", "3", "t shirt", "women"))
    assert found(matcher, "String of 3.5 spring earrings, 13") == []
    assert found(matcher, "RING (3) for Women's T-Shirt") == ["RING", "3", "Women", "T-Shirt"]


def test_chinese_words_stand_without_spaces() -> None:
    matcher = KeywordMatcher(dictionary("跑鞋", "nike", "运动"))
    assert found(matcher, "Ｎｉｋｅ男士运动跑鞋") == ["Ｎｉｋｅ", "运动", "跑鞋"]
    assert found(matcher, "nikes2跑鞋") == ["跑鞋"]


@pytest.mark.parametrize(
    ("text", "terms", "stand"),
    [
        ("上海鲜花", ("海鲜", "鲜花", "上海"), ["上海", "鲜花"]),
        ("昨天上海鲜花，海鲜", ("海鲜", "鲜花", "上海"), ["上海", "鲜花", "海鲜"]),
        ("男士运动鞋", ("运动鞋",), ["运动鞋"]),
        ("男士运动鞋", ("男士运动鞋",), ["男士运动鞋"]),
        ("上海鲜花", ("上海鲜花", "海鲜"), ["上海鲜花"]),
        # the whole run, whatever the words in it
        ("海鲜", ("海鲜",), ["海鲜"]),
        ("Nike 海鲜 2kg", ("海鲜",), ["海鲜"]),
        # inside one word, and with one end at a word's
        ("男士运动鞋子", ("运动",), ["运动"]),
        ("昨天上海鲜", ("上海鲜", "天上海"), ["天上海", "上海鲜"]),
    ],
)
def test_a_chinese_keyword_does_not_lie_across_two_words(text: str, terms: tuple[str, ...], stand: list[str]) -> None:
    words = Segmenter({"上海": 9, "鲜花": 9, "海鲜": 2, "男士": 9, "运动鞋": 9, "运动鞋子": 9, "昨天": 9})
    assert found(KeywordMatcher(dictionary(*terms), segmenter=words), text) == stand
    assert found(KeywordMatcher(dictionary(*terms), segmenter=words), text, "all") == stand


def test_jieba_tells_where_chinese_words_lie() -> None:
    matcher = KeywordMatcher(dictionary("海鲜", "鲜花", "上海", "运动鞋"))
    assert found(matcher, "上海鲜花") == ["上海", "鲜花"]
    assert found(matcher, "上海海鲜") == ["上海", "海鲜"]
    assert found(matcher, "男士运动鞋") == ["运动鞋"]


def test_nothing_is_cut_where_no_keyword_could_lie_across_words(monkeypatch: pytest.MonkeyPatch) -> None:
    cut: list[str] = []

    class Counting(Segmenter):
        def ends(self, run: str) -> tuple[int, ...]:
            cut.append(run)
            return super().ends(run)

    matcher = KeywordMatcher(dictionary("上海", "花", "nike", "鲜花"), segmenter=Counting({"上海": 1, "鲜花": 1}))
    for text in ("nike shoes", "上海", "上海鲜花", "nike 上海 nike", "大花园", "没有", "t恤上海"):
        matcher.match(text)
    assert cut == []
    assert found(matcher, "买上海鲜花吧 没有的词") == ["上海", "鲜花"]
    assert found(matcher, "买上海鲜花吧") == ["上海", "鲜花"]
    # the run alone that is in doubt, and once
    assert cut == ["买上海鲜花吧"]


def test_the_longest_keyword_wins_and_what_lies_inside_it_is_dropped() -> None:
    matcher = KeywordMatcher(dictionary("running shoes", "shoes", "running", "red running"))
    assert found(matcher, "red running shoes and shoes") == ["red running", "running shoes", "shoes"]
    assert found(matcher, "red running shoes and shoes", "disjoint") == ["running shoes", "shoes"]
    assert found(matcher, "running shoes", "all") == ["running shoes", "running", "shoes"]


def test_english_keywords_are_found_in_the_other_number() -> None:
    matcher = KeywordMatcher(dictionary("running shoe", "berries", "watch", "glass", "跑鞋"))
    text = "Running Shoes, berry, watches, glasses"
    assert [span.keyword.term for span in matcher.match(text)] == ["running shoe", "berries", "watch", "glass"]
    assert found(KeywordMatcher(dictionary("running shoe"), numbers=False), text) == []
    # a form that is a keyword itself means that keyword
    both = KeywordMatcher(dictionary("shoe", "shoes"))
    assert [span.keyword.term for span in both.match("shoes shoe")] == ["shoes", "shoe"]


@pytest.mark.parametrize(
    ("term", "forms"),
    [
        ("shoe", ["shoes"]),
        ("dress", ["dresses"]),
        ("dresses", ["dress"]),
        ("box", ["boxes"]),
        ("toy", ["toys"]),
        ("party", ["parties"]),
        ("cactus", []),
        ("5ml", []),
        ("鞋", []),
    ],
)
def test_numbers_of_english_words(term: str, forms: list[str]) -> None:
    assert other_numbers(term) == forms


@settings(max_examples=150, deadline=None)
@given(text=st.text(max_size=30))
def test_folded_places_lead_back_to_the_text(text: str) -> None:
    folded = fold(text)
    assert len(folded.origin) == len(folded.text) + 1
    assert list(folded.origin) == sorted(folded.origin)
    for start in range(len(folded.text)):
        begin, end = folded.span(start, start + 1)
        assert 0 <= begin < end <= len(text)
    # every word of the folded text folds from its own piece of the original
    for start in range(len(folded.text)):
        if not (folded.boundary(start) and folded.boundary(start + 1)) or folded.text[start] == " ":
            continue
        begin, end = folded.span(start, start + 1)
        assert fold(text[begin:end]).text == folded.text[start]


def test_folding_by_hand() -> None:
    assert fold("  Ｔ-Shirt\u3000 Café ").text == "t shirt café"
    decomposed = fold("Cafe\u0301s")
    assert decomposed.text == "cafés"
    assert decomposed.span(3, 4) == (3, 5)
    assert unspaced("鞋")
    assert not unspaced("한")


def test_an_empty_dictionary_and_an_empty_text_have_no_keywords() -> None:
    assert KeywordMatcher(KeywordDictionary([])).match("shoes") == []
    assert KeywordMatcher(dictionary("shoe")).match("") == []


def test_without_the_extra_the_error_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    for call in (lambda: KeywordMatcher(dictionary("shoe")), lambda: segmentation._load_jieba({"跑鞋": 3})):
        with pytest.raises(RankloomError, match="needs the package") as error:
            call()
        assert "rankloom[search]" in str(error.value)
