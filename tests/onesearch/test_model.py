"""OneSearch end to end on a tiny shop: stages, lists, preference training, the folder, every switch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rankloom.data.sequences import TEST
from rankloom.errors import RankloomError
from rankloom.onesearch import folder
from rankloom.onesearch.contexts import Contexts
from rankloom.onesearch.generating import generate_freely
from rankloom.onesearch.model import OneSearch
from rankloom.onesearch.prompts import Prompts
from rankloom.onesearch.scoring import item_log_probs
from tests.onesearch.small import built, catalogue, log


@pytest.fixture(scope="module")
def trained() -> OneSearch:
    own = built()
    own.fit_supervised(log())
    own.fit_reward(log())
    own.fit_preference(log())
    return own


def asked(own: OneSearch, n: int = 12) -> tuple[Contexts, Prompts]:
    cases = log().cases(TEST, max_per_user=1)
    # one of the log's queries, and one of nobody's
    queries = ["lamps" if number % 2 else "blue giant mug" for number in range(n)]
    return own.asked(log(), cases.user[:n], cases.row[:n], queries)


def test_every_stage_trained(trained: OneSearch) -> None:
    assert {name: record.steps for name, record in trained.records.items()} == {
        "S1": 4, "S2": 4, "S3": 12, "reward": 10, "phase 1": 3, "phase 2": 3,
    }  # fmt: skip
    assert all(np.isfinite(list(record.losses.values())).all() for record in trained.records.values())
    assert 0 < trained.shares["kept"] <= trained.shares["changed"] <= 1


def test_lists_name_unseen_items_once(trained: OneSearch) -> None:
    contexts, prompts = asked(trained)
    lists = trained.lists(contexts, prompts, longest=20)
    for own, history in zip(lists, contexts.history_CH, strict=True):
        named = own[own >= 0]
        assert len(named) == len(set(named.tolist())) == 20
        assert not np.isin(named, history).any()


def test_selection_only_orders_what_was_generated(trained: OneSearch) -> None:
    contexts, prompts = asked(trained)
    found = trained.generated(contexts, prompts, longest=20)
    best = trained.selected(contexts, prompts, found)
    assert (np.sort(best, 1) == np.sort(found.item_BK, 1)).all()
    assert (best != found.item_BK).any()


def test_one_context_gets_alone_what_it_gets_in_a_batch(trained: OneSearch) -> None:
    contexts, prompts = asked(trained)
    together = trained.generated(contexts, prompts, longest=10)
    for number in (0, 5):
        alone = trained.generated(contexts.take(np.array([number])), prompts, longest=10)
        assert alone.item_BK[0].tolist() == together.item_BK[number].tolist()


def test_beam_search_is_brute_force_where_the_beam_is_wide(trained: OneSearch) -> None:
    contexts, prompts = asked(trained, 3)
    found = trained.generated(contexts, prompts, longest=10, beam=200)
    codes = torch.from_numpy(trained.items.codes_IL)
    with torch.inference_mode():
        score = trained.network.score(trained.network.encode(prompts.personal(contexts)), codes).numpy().copy()
    for case, history in enumerate(contexts.history_CH):
        score[case, history[history >= 0]] = -np.inf
        assert found.score_BK[case] == pytest.approx(np.sort(score[case])[::-1][:10], abs=1e-4)


def test_without_the_trie_some_beams_name_nothing(trained: OneSearch) -> None:
    contexts, prompts = asked(trained)
    free = generate_freely(trained.network, prompts.personal(contexts), trained.trie, beam=30)
    assert 0 <= free.valid_rate < 1
    n = {int(valid.sum()) for valid in free.valid_BW}
    assert all(valid.sum() <= 30 for valid in free.valid_BW)
    # a beam as valid as it says: its codes are an item's
    items = {tuple(code) for code in trained.items.codes_IL.tolist()}
    low = np.asarray([own[0] for own in trained.network.ranges])
    for tokens, valid in zip(free.token_BWL.reshape(-1, 5), free.valid_BW.reshape(-1), strict=True):
        assert (tuple((tokens - low).tolist()) in items) == valid
    assert n


def test_training_repeats_itself() -> None:
    first, second, other = built(), built(), built(seed=1)
    for own in (first, second, other):
        own.fit_supervised(log())
    same = zip(first.network.state_dict().values(), second.network.state_dict().values(), strict=True)
    assert all(torch.equal(a, b) for a, b in same)
    assert not torch.equal(first.network.token.weight, other.network.token.weight)


def test_stages_in_parts_are_the_same_training() -> None:
    whole, first, rest = built(), built(), built()
    whole.fit_supervised(log())
    first.fit_supervised(log(), stages=("S1", "S2"))
    rest.network.load_state_dict(first.network.state_dict())
    rest.fit_supervised(log(), stages=("S3",))
    assert (set(first.records), set(rest.records)) == ({"S1", "S2"}, {"S3"})
    same = zip(whole.network.state_dict().values(), rest.network.state_dict().values(), strict=True)
    assert all(torch.equal(a, b) for a, b in same)


def test_preference_training_raises_what_is_preferred() -> None:
    own = built(preference={"phase1_steps": 0, "phase2_steps": 25, "learning_rate": 1e-3})
    own.fit_supervised(log())
    own.fit_reward(log())
    contexts = own.training_contexts(log())
    code = torch.from_numpy(own.items.codes_IL)

    def margin() -> float:
        with torch.inference_mode():
            score = own.network.score(own.network.encode(own.prompts.personal(contexts)), code).numpy()
        taken = score[np.arange(len(contexts)), contexts.target_C]
        return float((taken - score.mean(1)).mean())

    before = margin()
    own.fit_preference(log())
    assert margin() > before + 0.05


def test_preference_training_that_is_off_leaves_the_network(capsys: pytest.CaptureFixture[str]) -> None:
    own = built(preference={"enabled": False, "phase1_steps": 2, "phase2_steps": 2})
    own.fit_supervised(log())
    before = {name: value.clone() for name, value in own.network.state_dict().items()}
    own.fit_preference(log(), quiet=False)
    assert "PARS is off" in capsys.readouterr().err
    own.fit_preference(log())
    assert capsys.readouterr().err == ""
    assert all(torch.equal(before[name], value) for name, value in own.network.state_dict().items())
    assert own.records["phase 1"].steps == own.records["phase 2"].steps == 0
    assert own.shares == {}


@pytest.mark.parametrize(
    ("changes", "needed"),
    [
        ({"behaviour": {"layout": "tokens", "window": 14}}, 140),
        ({"behaviour": {"layout": "tokens", "short": False}, "stages": {"title_words": 31}, "network": {"max_target": 40}}, 65),
        ({"behaviour": {"layout": "tokens", "profile_words": 70}}, 70),
        ({"behaviour": {"window": 65, "long_length": 65}}, 65),
    ],
    ids=str,
)
def test_a_prompt_that_is_too_long_is_refused_when_it_is_built(changes: dict[str, Any], needed: int) -> None:
    with pytest.raises(RankloomError, match=rf"takes {needed} places .* has 64 ") as error:
        built(**changes)
    assert f"network.max_places={needed}" in str(error.value)
    # what the error tells to do is enough, and no less is
    network = {**changes.get("network", {}), "max_places": needed}
    own = built(**{**changes, "network": network})
    contexts, prompts = asked(own, 2)
    own.network.encode(prompts.personal(contexts))
    own.fit_supervised(log())
    with pytest.raises(RankloomError, match=f"has {needed - 1} "):
        built(**{**changes, "network": {**network, "max_places": needed - 1}})


def test_a_folder_gives_the_same_lists(trained: OneSearch, tmp_path: Path) -> None:
    contexts, prompts = asked(trained)
    expected = trained.lists(contexts, prompts, longest=12)
    again = folder.load(folder.save(trained, catalogue(), tmp_path / "model"))
    assert again.config == trained.config
    own, own_prompts = asked(again)
    assert (own.default_CW == contexts.default_CW).all()
    assert (again.lists(own, own_prompts, longest=12) == expected).all()
    assert {path.suffix for path in (tmp_path / "model").iterdir()} == {".json", ".parquet", ".safetensors"}


def test_a_damaged_folder_is_named(trained: OneSearch, tmp_path: Path) -> None:
    path = folder.save(trained, catalogue(), tmp_path / "model")
    raw = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps({**raw, "format": "else"}))
    with pytest.raises(RankloomError, match="another format"):
        folder.load(path)
    (path / "model.safetensors").unlink()
    with pytest.raises(RankloomError, match=r"no model\.safetensors"):
        folder.load(path)


@pytest.mark.parametrize(
    "changes",
    [
        {"behaviour": {"uid": "hashed"}}, {"behaviour": {"uid": "centroid"}}, {"behaviour": {"uid": "none"}},
        {"behaviour": {"short": False}}, {"behaviour": {"long": False}}, {"behaviour": {"sliding_window": False}},
        {"behaviour": {"default_sequence": False}}, {"behaviour": {"layout": "tokens"}}, {"opq": False},
        {"stages": {"s1_steps": 0}}, {"stages": {"s2_steps": 0, "replay": 0.5}}, {"network": {"output": "codebook"}}, {"network": {"output": "trie"}}, {"start": "random"},
        {"stages": {"item_text": "title"}},
        {"network": {"long_scale": "sum"}}, {"select": False},
    ],
    ids=str,
)  # fmt: skip
def test_every_switch_trains_and_lists(changes: dict[str, Any]) -> None:
    own = built(**changes)
    own.fit_supervised(log())
    if own.config.select:
        own.fit_reward(log())
    contexts, prompts = asked(own, 4)
    assert (own.lists(contexts, prompts, longest=10) >= 0).all()
    assert own.items.codes_IL.shape[1] == (5 if own.config.opq else 3)


def test_what_needs_a_reward_model_says_so() -> None:
    own = built()
    contexts, prompts = asked(own, 2)
    with pytest.raises(RankloomError, match="no reward model"):
        own.lists(contexts, prompts, longest=5)
    with pytest.raises(RankloomError, match="no reward model"):
        own.fit_preference(log())


def test_over_the_trie_the_catalogue_is_a_distribution() -> None:
    own = built(network={"output": "trie"})
    contexts, prompts = asked(own, 3)
    softmax, item = own._softmax(), torch.arange(64).expand(3, 64)
    with torch.inference_mode():
        memory = own.network.encode(prompts.personal(contexts))
        log_prob = item_log_probs(own.network, memory, item, torch.from_numpy(own.items.codes_IL), softmax)
    distinct = np.unique(own.items.codes_IL, axis=0, return_index=True)[1]
    assert log_prob[:, distinct].exp().sum(1).tolist() == pytest.approx([1.0] * 3, abs=1e-5)
    found = own.generated(contexts, prompts, longest=5, beam=100)
    for case, items in enumerate(found.item_BK):
        assert found.score_BK[case] == pytest.approx(log_prob[case, items.astype(np.int64)].numpy(), abs=1e-4)
