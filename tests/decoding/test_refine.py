"""The refiner: features by hand, padding and neighbours in a batch change nothing, and it learns what scores leave out."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest
import torch

from rankloom.decoding.refine import RefineExamples, Refiner, fit_refiner
from rankloom.decoding.refine_features import (
    BROAD_FEATURES,
    FEATURES,
    SEARCH_FEATURES,
    ItemFacts,
    QueryEvidence,
    RefineInput,
    features,
    item_groups,
    item_sizes,
)

INF = float("inf")
NAN = float("nan")


def facts() -> ItemFacts:
    unit = torch.nn.functional.normalize(torch.tensor([[1.0, 0.0], [1.0, 1.0], [0.0, 1.0], [-1.0, 0.0]]), dim=1)
    return ItemFacts(
        count_I=torch.tensor([9.0, 0.0, 3.0, 1.0]),
        watched_I=torch.tensor([1, 0, 0, 1]),
        unit_ID=unit,
        tokens_IA=torch.tensor([[5, 0], [5, 7], [6, 7], [0, 0]]),
        group_IG=torch.tensor([[1, 1, 0, 1, 1], [1, 1, 2, 1, 2], [2, 1, 2, 2, 3], [0, 0, 0, 2, 3]]),
        size_I2=torch.tensor([[3.0, NAN], [5.0, NAN], [4.0, 6.0], [NAN, NAN]]),
    )


def given() -> RefineInput:
    return RefineInput(
        log_prob_BC=torch.tensor([[-1.0, -2.0, -INF]]),
        select_BC=torch.tensor([[0.5, 2.0, -INF]]),
        item_BC=torch.tensor([[1, 2, -1]]),
        memory_BC=torch.tensor([[0.25, 0.0, 0.0]], dtype=torch.float64),
        told_B=torch.tensor([3.0], dtype=torch.float64),
        now_BC=torch.tensor([[-3.0, -4.0, 0.0]]),
        age_BC=torch.tensor([[2.0, float("nan"), 0.0]], dtype=torch.float64),
        history_BP=torch.tensor([[2, 0, -1]]),
        search_B=torch.tensor([True]),
        seen_BC=torch.tensor([[False, True, False]]),
    )


def test_features_are_what_their_names_say() -> None:
    out = features(given(), facts())
    assert out.shape == (1, 3, len(FEATURES))
    of = {name: out[0, :2, place] for place, name in enumerate(FEATURES)}
    torch.testing.assert_close(of["generator"].exp().sum(), torch.tensor(1.0))
    torch.testing.assert_close(of["generator rank"], torch.log1p(torch.tensor([0.0, 1.0])))
    torch.testing.assert_close(of["selection rank"], torch.log1p(torch.tensor([1.0, 0.0])))
    torch.testing.assert_close(of["memory"], torch.tensor([np.log(0.25), -9.0], dtype=torch.float32))
    assert of["now"].tolist() == [-3.0, -4.0]
    torch.testing.assert_close(of["log count"], torch.log(torch.tensor([1.0, 4.0])))
    assert of["never taken"].tolist() == [1.0, 0.0]
    torch.testing.assert_close(of["log age"], torch.log1p(torch.tensor([2.0, 0.0])))
    torch.testing.assert_close(of["near the last"], torch.tensor([0.5**0.5, 1.0]))
    torch.testing.assert_close(of["nearest"], torch.tensor([0.5**0.5, 1.0]))
    torch.testing.assert_close(of["near the history"], torch.tensor([0.5**0.5, 1 / 1.8]))
    assert of["seen before"].tolist() == [0.0, 1.0]
    assert of["search"].tolist() == [1.0, 1.0]
    # item 1 shares brand 7 with item 2 and category 5 with item 0
    torch.testing.assert_close(of["shared with the last"], torch.tensor([1.0, 2.0]))
    torch.testing.assert_close(of["shared with the history"], torch.tensor([1.0, 2 / 1.8]))
    assert torch.isfinite(out).all()


def test_the_features_of_history_groups_and_company_are_what_their_names_say() -> None:
    out = features(given(), facts())
    of = {name: out[0, :2, place] for place, name in enumerate(FEATURES)}
    torch.testing.assert_close(of["memory says"], torch.log(torch.tensor([4.0, 4.0])))
    # the history is item 2, then item 0; the candidates are items 1 and 2
    assert of["seen lately"].tolist() == [0.0, 1.0]
    torch.testing.assert_close(of["times seen"], torch.log1p(torch.tensor([0.0, 1.0])))
    torch.testing.assert_close(of["steps since seen"], torch.tensor([1 / 204, 1.0]))
    older = 0.95 / 1.95
    torch.testing.assert_close(of["share of category"], torch.tensor([older, 1 - older]))
    torch.testing.assert_close(of["share of department"], torch.tensor([1.0, 1.0]))
    torch.testing.assert_close(of["share of brand"], torch.tensor([1 - older, 1 - older]))
    torch.testing.assert_close(of["share of two codes"], torch.tensor([0.0, 1 - older]))
    assert of["category of the last"].tolist() == [0.0, 1.0]
    assert of["brand of the last"].tolist() == [1.0, 1.0]
    usual = (4.0 + 0.95 * 3.0) / 1.95
    torch.testing.assert_close(of["price above the usual"], torch.tensor([5.0 - usual, 4.0 - usual]))
    torch.testing.assert_close(of["price off the usual"], torch.tensor([5.0 - usual, 4.0 - usual]))
    assert of["duration above the usual"].tolist() == [0.0, 0.0]
    # different categories and first codes: each candidate keeps its own company
    torch.testing.assert_close(of["generator of its category"], of["generator"])
    torch.testing.assert_close(of["selection of its code"], of["selection"])
    torch.testing.assert_close(of["memory of its category"], torch.log(torch.tensor([0.25, 1e-4])))


def test_candidates_of_one_category_share_what_the_opinions_give_it() -> None:
    own, request = facts(), given()
    own.group_IG[2, 0] = 1
    out = features(request, own)
    of = {name: out[0, :2, place] for place, name in enumerate(FEATURES)}
    torch.testing.assert_close(of["generator of its category"], torch.zeros(2))
    torch.testing.assert_close(of["memory of its category"], torch.log(torch.tensor([0.25, 0.25])))
    # without a category there is no company
    own.group_IG[:, 0] = 0
    out = features(request, own)
    place = FEATURES.index("generator of its category")
    torch.testing.assert_close(out[0, :2, place], torch.log(torch.tensor([1e-4, 1e-4])))


def test_what_a_person_takes_of_the_matches_is_told_whatever_else_they_take() -> None:
    own, request = facts(), given()
    # the history is items 2, 3, 3 and 0, with first codes 2, 2, 2 and 1; the candidates have 1, 2, 1 and 2
    request.history_BP = torch.tensor([[2, 3, 3, 0]])
    request.item_BC = torch.tensor([[1, 2, 0, 3]])
    for name in ("log_prob_BC", "select_BC"):
        setattr(request, name, torch.zeros(1, 4))
    request.memory_BC = request.now_BC = request.age_BC = None
    request.seen_BC = torch.zeros(1, 4, dtype=torch.bool)
    weight = 0.95 ** np.arange(4)
    first, second = weight[3] / weight.sum(), weight[:3].sum() / weight.sum()

    def told(coverage: list[float]) -> tuple[list[float], list[float]]:
        given = torch.tensor([coverage])
        request.query = QueryEvidence(given, given, given, given, given, given, torch.zeros(1))
        out = features(request, own)[0]
        before = len(FEATURES) + len(SEARCH_FEATURES)
        places = [before + BROAD_FEATURES.index(f"{log}share of code among the matches") for log in ("", "log ")]
        return out[:, places[0]].tolist(), out[:, places[1]].tolist()

    share, log = told([1.0, 1.0, 1.0, 0.5])
    # code 1 counts once though it has two matches; the last candidate is no match
    assert share == pytest.approx([first, second, first, 0.0], abs=1e-6)
    assert log[:3] == pytest.approx(np.log((np.array([first, second, first]) + 0.005) / 1.005).tolist(), abs=1e-5)
    assert log[3] == pytest.approx(np.log(0.005 / 1.005), abs=1e-5)
    # asked for things of code 1 alone, what else the person takes does not count
    assert told([1.0, 0.0, 1.0, 0.0])[0] == pytest.approx([1.0, 0.0, 1.0, 0.0])
    assert told([0.0, 0.0, 0.0, 0.0]) == ([0.0] * 4, [0.0] * 4)
    request.history_BP = torch.full((1, 4), -1)
    assert told([1.0, 1.0, 1.0, 1.0]) == ([0.0] * 4, [0.0] * 4)


def test_groups_and_sizes_are_read_from_the_catalogue() -> None:
    items = pl.DataFrame(
        {
            "category": [["a", "b"], ["a", "c"], ["a", "b"], None, []],
            "brand": ["x", None, "x", "", "y"],
            "price_micros": [8_000_000, 0, None, 2_000_000, -5],
        },
        schema_overrides={"category": pl.List(pl.String)},
    )
    group = item_groups(items, np.array([[0, 1], [0, 2], [1, 1], [1, 1], [0, 1]]))

    def same(column: int, a: int, b: int) -> bool:
        return bool(group[a, column] == group[b, column] > 0)

    assert same(0, 0, 2)
    assert not same(0, 0, 1)
    assert same(1, 0, 1)
    assert same(2, 0, 2)
    assert not same(2, 0, 4)
    assert group[3, :3].tolist() == [0, 0, 0]
    assert same(3, 0, 4)
    assert same(3, 0, 1)
    assert not same(3, 0, 2)
    assert same(4, 0, 4)
    assert not same(4, 0, 1)
    assert not same(4, 0, 2)
    size = item_sizes(items)
    assert torch.isnan(size[:, 1]).all()
    assert torch.isnan(size[[1, 2, 4], 0]).all()
    torch.testing.assert_close(size[0, 0] - size[3, 0], torch.tensor(2.0))
    bare = item_groups(pl.DataFrame({"title": ["a", "b"]}), np.array([[3], [3]]))
    assert bare[0].tolist() == bare[1].tolist()
    assert bare[0, :3].tolist() == [0, 0, 0]


def test_padding_and_other_requests_change_nothing() -> None:
    one, own = given(), facts()
    longer = {
        name: torch.cat([value, torch.zeros_like(value[:, :2])], dim=1)
        for name, value in vars(one).items()
        if name.endswith("_BC")
    }
    wide = RefineInput(
        **longer,
        told_B=one.told_B,
        history_BP=one.history_BP,
        search_B=one.search_B,
    )
    wide.log_prob_BC[:, 3:], wide.select_BC[:, 3:], wide.item_BC[:, 3:] = -INF, -INF, -1
    assert torch.equal(features(wide, own)[:, :2], features(one, own)[:, :2])


def examples(seed: int, *, useful: bool) -> list[RefineExamples]:
    """Cases whose target is the candidate with the highest last feature, which the score does not know, or any."""
    generator = torch.Generator().manual_seed(seed)
    out = []
    for _ in range(15):
        feature = torch.randn(64, 20, len(FEATURES), generator=generator)
        item = torch.arange(20).expand(64, 20).clone()
        best = feature[:, :, -1].argmax(1)
        target = best if useful else torch.randint(0, 20, (64,), generator=generator)
        out.append(RefineExamples(feature, torch.zeros(64, 20) - torch.arange(20) * 0.01, item, target))
    return out


def test_it_learns_what_the_scores_leave_out_and_survives_saving() -> None:
    refiner, figures = fit_refiner(examples(0, useful=True), seed=0)
    assert refiner is not None
    assert figures["held-out ndcg@10, refined"] > figures["held-out ndcg@10, joined"] + 0.3
    fresh = examples(1, useful=True)[0]
    right = (refiner(fresh.feature_BCF).argmax(1) == fresh.target_B).float().mean()
    assert float(right) > 0.7
    again = Refiner.from_arrays(refiner.arrays())
    assert torch.equal(again(fresh.feature_BCF), refiner(fresh.feature_BCF))


def test_members_differ_and_their_mean_has_the_word() -> None:
    refiner, _ = fit_refiner(examples(0, useful=True), seed=0)
    assert refiner is not None
    feature = examples(1, useful=True)[0].feature_BCF
    each = refiner.each(feature)
    torch.testing.assert_close(refiner(feature), each.mean(-1))
    spread = each - each.mean(-1, keepdim=True)
    assert float(spread.detach().std()) > 1e-3
    # a member by hand: its own slice of the hidden units and nothing else
    scaled = (feature - refiner.mean_F) / refiner.spread_F
    width = refiner.down_MH.shape[1]
    hidden = torch.nn.functional.gelu(scaled @ refiner.up.weight[width : 2 * width].T + refiner.up.bias[width : 2 * width])
    torch.testing.assert_close(hidden @ refiner.down_MH[1] + refiner.shift_M[1], each[..., 1], atol=1e-5, rtol=1e-4)


def test_one_seed_gives_one_refiner() -> None:
    first, second = (fit_refiner(examples(0, useful=True), seed=3)[0] for _ in range(2))
    assert first is not None
    assert second is not None
    assert all(np.array_equal(first.arrays()[name], value) for name, value in second.arrays().items())


def test_a_feature_that_said_nothing_cannot_shout_later() -> None:
    quiet = examples(0, useful=True)
    for own in quiet:
        own.feature_BCF[:, :, FEATURES.index("seen before")] = 0.0
    refiner, _ = fit_refiner(quiet, seed=0)
    assert refiner is not None
    fresh = quiet[0].feature_BCF[:, :10].clone()
    calm = refiner(fresh)
    fresh[:, :, FEATURES.index("seen before")] = 1.0
    assert float((refiner(fresh) - calm).detach().abs().max()) < 2 * float(calm.detach().std())


def test_what_only_further_cases_show_is_learned_from_them() -> None:
    quiet, further = examples(0, useful=True), examples(1, useful=True)[:3]
    place = FEATURES.index("seen before")
    for own in quiet:
        own.feature_BCF[:, :, place] = 0.0
    for own in further:
        # what was seen is never the answer, the best of the others is
        seen = own.item_BC % 2 == 0
        own.feature_BCF[:, :, place] = seen.float()
        own.target_B = own.feature_BCF[:, :, -1].masked_fill(seen, -INF).argmax(1)
    refiner, _ = fit_refiner(quiet, seed=0, also=further)
    assert refiner is not None
    fresh = examples(2, useful=True)[0].feature_BCF
    fresh[:, ::2, place] = 1.0
    fresh[:, 1::2, place] = 0.0
    assert float((refiner(fresh).argmax(1) % 2 == 1).float().mean()) > 0.9


def test_without_enough_cases_there_is_none() -> None:
    assert fit_refiner([], seed=0) == (None, {})
    assert fit_refiner(examples(0, useful=True)[:2], seed=0) == (None, {})
