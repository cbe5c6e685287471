"""bfloat16 says nearly what fp32 says, compares in fp32, and is there only where it was asked for."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from rankloom import compiling
from rankloom.compiling import has_amx, use_bf16
from rankloom.config import Config
from rankloom.decoding.beam import beam_search
from rankloom.decoding.masks import MaskIndex
from rankloom.errors import RankloomError
from rankloom.models import kept_context, lazy_decoder
from rankloom.models.folded import MANY
from rankloom.recommender import Rankloom
from rankloom.requests import Request
from rankloom.semantic.trie import Trie
from tests.decoding.test_beam import context, small_model
from tests.models.test_compiled import change_the_context, searched
from tests.models.test_folded import OPTIONS, change_in_place, random_norms, take_other_weights, train_a_step, walk
from tests.models.test_kept_context import batch_of, draw


@torch.no_grad()
@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("beams", [1, MANY, 20])
@pytest.mark.parametrize("history", [6, 70])
def test_every_step_is_near_the_one_in_fp32(options: dict[str, Any], beams: int, history: int) -> None:
    torch.manual_seed(beams)
    model = small_model(max_history=80, **options)
    random_norms(model)
    model.engine = "eager"
    batch = searched([history, 0, 3], seed=beams)
    codes = [torch.randint(0, 5, (3, beams)) for _ in range(2)]
    parents = [torch.zeros(3, beams, dtype=torch.long), torch.randint(0, beams, (3, beams))]
    expected = walk(model, model.prefill(batch), codes, parents)
    model.precision = "bf16"
    prefix = model.prefill(batch)
    found = walk(model, prefix, codes, parents)
    assert prefix.reading[0].keys[0].dtype == torch.bfloat16
    assert bool(prefix.folded and prefix.folded.read_BDM) == (beams >= MANY and history == 6)
    for own, twin in zip(found, expected, strict=True):
        assert own.dtype == torch.float32
        scale = float(twin.std())
        assert 0 < float((own - twin).abs().mean()) < 0.12 * scale, "near, and not the same"
    # the twin of decoding reads a context of full width
    assert prefix.kv.keys[0].dtype == torch.float32
    assert model.score(prefix, torch.zeros(4, 3, dtype=torch.long)).dtype == torch.float32


@torch.no_grad()
def test_all_that_is_found_is_legal_and_most_is_what_fp32_finds() -> None:
    model = small_model(n_items=400, size=12, max_history=20)
    codes = model.items.codes_IQ.numpy()
    trie = Trie.build(codes, model.codebook_sizes)
    excluded = [torch.arange(n, 400, 3) for n in range(3)]
    masks = MaskIndex(trie, 400).requests([None] * 3, excluded)
    found = {}
    for precision in ("fp32", "bf16"):
        model.precision = precision  # type: ignore[assignment]
        found[precision] = beam_search(model, model.prefill(context([9, 0, 20], 400)), trie, beam=50, masks=masks)
    leaves = found["bf16"].leaf_BW
    assert leaves.shape == (3, 50)
    for b in range(3):
        assert len(set(leaves[b].tolist())) == 50
        for leaf in leaves[b].tolist():
            assert not {int(item) for item in trie.items_of(leaf)} <= set(excluded[b].tolist())
        both = set(leaves[b, :10].tolist()) & set(found["fp32"].leaf_BW[b, :10].tolist())
        assert len(both) >= 9
    assert (found["bf16"].log_prob_BW.diff(dim=1) <= 0).all()


def test_a_trained_model_names_the_same_items_and_keeps_its_rules(model: Rankloom) -> None:
    users = model.users[:40]
    requests = [Request(user, k=10, filter="price < 50", exclude=(model.items["item_id"][3],)) for user in users]
    before = model.recommend_batch(requests)
    model.model.precision = "bf16"
    after = model.recommend_batch(requests)
    overlaps = []
    for own, twin in zip(after, before, strict=True):
        items = [item.item_id for item in own.items]
        assert len(set(items)) == len(twin.items)
        for item in items:
            row = model.row_of(item)
            assert row is not None
            assert row != 3
            assert model.items.row(row, named=True)["price_micros"] < 50e6
        overlaps.append(len(set(items) & {item.item_id for item in twin.items}) / max(1, len(items)))
    assert np.mean(overlaps) > 0.95
    assert [r.items for r in after] != [r.items for r in before], "it was asked in another precision"


@torch.no_grad()
@pytest.mark.parametrize("change", [change_in_place, take_other_weights, train_a_step, change_the_context])
def test_changed_weights_are_taken_anew(change: Any) -> None:
    model = small_model()
    model.precision = "bf16"
    batch = context([5])
    before = model.prefill(batch)
    stale = model.start(before)[0]
    assert model.prefill(batch).decoder is before.decoder
    change(model)
    prefix = model.prefill(batch)
    assert prefix.decoder is not before.decoder
    logits = model.start(prefix)[0]
    model.precision = "fp32"
    expected = model.start(model.prefill(batch))[0]
    assert (logits - expected).abs().mean() < 0.1 * (stale - expected).abs().mean()


@torch.no_grad()
def test_a_kept_context_is_of_one_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept_context, "LEAST", 0)
    rng = np.random.default_rng(0)
    model = small_model(max_history=20)
    model.engine = "eager"
    history = [draw(rng) for _ in range(12)]
    kept = model.prefill(batch_of([history], rng), kept=[None]).kept
    model.precision = "bf16"
    batch = batch_of([[*history, draw(rng)]], rng)
    first = model.prefill(batch, kept=kept)
    assert first.kept is not None
    assert first.kept[0] is not None
    assert first.kept[0].reused == 0
    again, anew = model.prefill(batch, kept=first.kept), model.prefill(batch)
    assert again.kept is not None
    assert again.kept[0] is not None
    assert again.kept[0].reused == 13
    assert torch.equal(again.reading[0].keys[0], first.reading[0].keys[0])
    torch.testing.assert_close(model.start(again)[0], model.start(anew)[0], rtol=2e-2, atol=2e-2)


def test_who_runs_what(monkeypatch: pytest.MonkeyPatch) -> None:
    batch = context([5])
    model = small_model()
    for amx in (False, True):
        monkeypatch.setattr(compiling, "has_amx", lambda amx=amx: amx)
        assert [use_bf16(own) for own in ("fp32", "auto", "bf16")] == [False, amx, True]
        # what the processor has is nothing to a GPU
        assert [use_bf16(own, "cuda") for own in ("fp32", "auto", "bf16")] == [False, False, True]
        with torch.no_grad():
            for engine in ("auto", "eager"):
                model.engine = engine  # type: ignore[assignment]
                compiled = engine == "auto" and compiling.available()
                for precision in ("fp32", "auto", "bf16"):
                    model.precision = precision  # type: ignore[assignment]
                    prefix = model.prefill(batch)
                    assert (prefix.compiled is not None) == (compiled and precision != "bf16")
                    narrow = precision == "bf16" or (precision == "auto" and amx and not compiled)
                    assert (prefix.narrow is not None) == narrow
    # not for gradients, whatever is asked for, and for blocks of any size
    assert model.prefill(batch).decoder is None
    monkeypatch.setattr(lazy_decoder, "LIMIT", 10)
    with torch.no_grad():
        assert model.prefill(batch).narrow is not None


def test_a_torch_that_knows_nothing_of_amx_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    assert has_amx() in (False, True)
    for asked, expected in ((None, False), (lambda: True, True), (lambda: 1 / 0, False)):
        has_amx.cache_clear()
        if asked is None:
            monkeypatch.delattr(torch.cpu, "_is_amx_tile_supported", raising=False)
        elif expected:
            monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", asked, raising=False)
        else:

            def fails() -> bool:
                raise RuntimeError("no cpuinfo")

            monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", fails, raising=False)
        assert has_amx() is expected
    has_amx.cache_clear()


def test_what_does_not_go_together_is_refused() -> None:
    config = Config.preset_config("tiny")
    assert config.decoding.precision == "fp32"
    assert config.with_overrides(["decoding.precision=bf16"]).decoding.precision == "bf16"
    with pytest.raises(RankloomError, match=r"kernels are fp32.*engine to auto, eager or graph"):
        config.with_overrides(["decoding.precision=bf16", "decoding.engine=compiled"])
    with pytest.raises(RankloomError, match="precision"):
        config.with_overrides(["decoding.precision=int8"])
