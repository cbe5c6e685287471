"""The encoder-decoder: cached decoding equals the whole, prompts are read as bags, losses by hand, padding is not read."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from rankloom.decoding.beam import beam_search
from rankloom.decoding.masks import MaskIndex
from rankloom.models.encoder_decoder import EOS, EncoderDecoder, EncoderDecoderConfig, LongHistory, Part, Prompt
from rankloom.semantic.trie import Trie

SIZES = (5, 4, 3)
START = 10
N_TOKENS = START + sum(SIZES)


def network(**changes: object) -> EncoderDecoder:
    torch.manual_seed(0)
    config = EncoderDecoderConfig.model_validate({"d_model": 16, "n_heads": 2, "dropout": 0.0, **changes})
    centroids = [torch.randn(size, 6) for size in SIZES]
    return EncoderDecoder(
        config, n_tokens=N_TOKENS, code_start=START, codebook_sizes=SIZES, n_kinds=3, centroids=centroids
    ).eval()


def prompt(batch: int = 3, *, seed: int = 1) -> Prompt:
    draw = torch.Generator().manual_seed(seed)
    words = torch.randint(3, START, (batch, 1, 4), generator=draw)
    codes = torch.randint(START, N_TOKENS, (batch, 5, 3), generator=draw)
    history = torch.stack([torch.randint(size, (batch, 3, 4), generator=draw) for size in SIZES], -1)
    return Prompt([Part(0, words, mean=True), Part(1, codes)], LongHistory(history, torch.ones(batch, 3, 4, dtype=torch.bool)))


def every_id() -> torch.Tensor:
    return torch.cartesian_prod(*(torch.arange(size) for size in SIZES))


def test_ids_are_a_distribution() -> None:
    own = network()
    with torch.no_grad():
        total = own.score(own.encode(prompt()), every_id()).exp().sum(1)
    assert total.tolist() == pytest.approx([1.0] * 3, abs=1e-5)


def test_code_by_code_equals_the_whole_and_beam_search_equals_brute_force() -> None:
    own = network()
    codes = every_id()[torch.randperm(60, generator=torch.Generator().manual_seed(2))[:25]].numpy()
    trie = Trie.build(codes, SIZES)
    index = MaskIndex(trie, len(codes))
    with torch.inference_mode():
        memory = own.encode(prompt())
        found = beam_search(own, memory, trie, beam=30, masks=index.requests([None] * 3))
        score = own.score(memory, torch.from_numpy(np.ascontiguousarray(codes)))
    for case in range(3):
        real = found.leaf_BW[case] >= 0
        assert int(real.sum()) == len(codes)
        best = score[case].sort(descending=True)
        assert torch.allclose(found.log_prob_BW[case][real], best.values, atol=1e-5)
        assert (found.codes_BWL[case][real] == torch.from_numpy(codes)[best.indices]).all()


def test_a_request_reads_its_own_prompt_alone() -> None:
    own = network()
    both, codes = prompt(2), every_id()[:7]
    with torch.no_grad():
        together = own.score(own.encode(both), codes)
        parts = [Part(part.kind, part.token_BPN[1:], part.mean) for part in both.parts]
        assert both.long is not None
        alone = Prompt(parts, LongHistory(both.long.code_BSHR[1:], both.long.real_BSH[1:]))
        assert torch.allclose(own.score(own.encode(alone), codes), together[1:], atol=1e-5)


def test_a_place_is_a_bag_and_an_empty_place_is_not_read() -> None:
    own = network()
    base = prompt(1)
    turned = Prompt([base.parts[0], Part(1, base.parts[1].token_BPN.flip(2))], base.long)
    longer = Prompt([base.parts[0], Part(1, torch.cat([base.parts[1].token_BPN, torch.zeros(1, 2, 3, dtype=torch.long)], 1))], base.long)
    other = Prompt([base.parts[0], Part(1, base.parts[1].token_BPN.flip(1))], base.long)
    with torch.no_grad():
        expected, *rest = (own.score(own.encode(each), every_id()[:9]) for each in (base, turned, longer, other))
    assert torch.allclose(rest[0], expected, atol=1e-5)
    assert torch.allclose(rest[1], expected, atol=1e-5)
    assert not torch.allclose(rest[2], expected, atol=1e-3)


def test_the_long_history_reaches_the_codes() -> None:
    own = network()
    base = prompt(1)
    assert base.long is not None
    without = Prompt(base.parts, LongHistory(base.long.code_BSHR, torch.zeros_like(base.long.real_BSH)))
    with torch.no_grad():
        a, b = (own.score(own.encode(each), every_id()[:9]) for each in (base, without))
    assert not torch.allclose(a, b, atol=1e-4)


def test_code_loss_is_the_mean_of_the_log_probabilities() -> None:
    own = network(output="codebook")
    codes = every_id()[[3, 20, 50]]
    with torch.no_grad():
        memory = own.encode(prompt())
        expected = -own.log_probs(memory, codes[:, None])[:, 0].mean() / len(SIZES)
        assert float(own.code_loss(memory, codes)) == pytest.approx(float(expected), rel=1e-5)
        over_all = network(output="vocabulary")
        over_all.load_state_dict(own.state_dict())
        # words compete too, so the whole vocabulary costs more
        assert float(over_all.code_loss(memory, codes)) > float(expected)


def test_text_loss_leaves_padding_out() -> None:
    own = network()
    with torch.no_grad():
        memory = own.encode(prompt())
        text = torch.tensor([[4, 5, EOS, 0], [6, EOS, 0, 0], [7, 7, 7, EOS]])
        hidden = own.hidden(memory, text[:, None])[:, 0]
        log_prob = torch.log_softmax(hidden @ own.token.weight.T, -1)
        real = [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (2, 0), (2, 1), (2, 2), (2, 3)]
        expected = -sum(float(log_prob[row, place, text[row, place]]) for row, place in real) / len(real)
        assert float(own.text_loss(memory, text)) == pytest.approx(expected, rel=1e-5)


def test_tokens_start_from_given_vectors_at_their_own_scale() -> None:
    own = network()
    before = own.token.weight.detach().clone()
    vectors = torch.tensor([[3.0] + [0.0] * 15, [0.0] * 16, [0.0, 1.0] + [0.0] * 14])
    own.start_tokens(START, vectors)
    now = own.token.weight.detach()
    assert now[START].tolist() == pytest.approx([1.5] + [0.0] * 15)
    assert now[START + 2].tolist() == pytest.approx([0.0, 0.5] + [0.0] * 14)
    kept = torch.ones(N_TOKENS, dtype=torch.bool)
    kept[[START, START + 2]] = False
    assert torch.equal(now[kept], before[kept])


def test_heads_that_do_not_divide_the_width_are_refused() -> None:
    with pytest.raises(ValueError, match="not a multiple"):
        EncoderDecoderConfig(d_model=18, n_heads=4)
