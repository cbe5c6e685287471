"""The graph engine around its recordings: buckets, memory that stays, what it is told and what it captures anew. A recording
on the CPU is what was done for the first batch, done again; on CUDA it is the graph itself."""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from rankloom import compiling, recommender
from rankloom.config import Config
from rankloom.data.shop import Shop
from rankloom.decoding import beam as beam_module
from rankloom.decoding import graph_engine
from rankloom.decoding.beam import BeamResult, beam_search
from rankloom.decoding.children import Indices
from rankloom.decoding.cuda_graph import CudaRecorder, Recorder
from rankloom.decoding.device_trie import DeviceTrie
from rankloom.decoding.graph_engine import Searches, bucket, place_bucket
from rankloom.decoding.graph_inputs import FilterSlots, LiftRows
from rankloom.decoding.masks import MaskIndex
from rankloom.decoding.memory import Guide
from rankloom.errors import RankloomError
from rankloom.models import kept_context, lazy_decoder
from rankloom.models.context import ContextBatch
from rankloom.models.graph_decoder import GraphDecoder
from rankloom.models.lazy_decoder import LazyDecoder
from rankloom.recommender import Rankloom
from rankloom.requests import Request
from rankloom.semantic.trie import Trie
from rankloom.serving.context_cache import ContextCache
from tests.decoding.graph_rules import TapeRecorder
from tests.decoding.test_beam import context, small_model
from tests.decoding.test_compiled import assert_same
from tests.decoding.test_exposure import DAY, log, tables
from tests.models.test_compiled import searched
from tests.models.test_folded import random_norms, train_a_step

needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


@pytest.fixture
def as_on_cuda(monkeypatch: pytest.MonkeyPatch) -> TapeRecorder:
    """Lets the engine serve models on the CPU, by recordings that hold to a graph's rules."""
    recorder = TapeRecorder()
    for module in (beam_module, lazy_decoder, recommender):
        monkeypatch.setattr(module, "use_graph", lambda engine, device: engine in ("auto", "graph"))
    monkeypatch.setattr(graph_engine, "recorder_for", lambda device: recorder)
    return recorder


def both(
    model: LazyDecoder, trie: Trie, batch: ContextBatch, *, beams: list[int], index: MaskIndex, seed: int = 0, filtered: bool = True,
    **options: Any,
) -> tuple[BeamResult, BeamResult, Tensor, Tensor]:  # fmt: skip
    """A search by the graph engine and by its twin, and the selection queries of both."""
    rng = np.random.default_rng(seed)
    n_rows, size = index.n_rows, len(beams)
    filters = [
        index.compile(torch.from_numpy(rng.random(n_rows) < 0.6)) if filtered and rng.random() < 0.6 else None
        for _ in beams
    ]
    excluded = [torch.from_numpy(rng.integers(0, n_rows, int(rng.integers(0, 40)))) for _ in beams]
    surface = torch.from_numpy(rng.integers(0, 3, size))
    out: list[Any] = []
    for engine in ("graph", "eager"):
        model.engine = engine  # type: ignore[assignment]
        prefix = model.prefill(batch, surface)
        masks = index.requests(list(filters), excluded)
        out.append(beam_search(model, prefix, trie, beam=beams, masks=masks, trace=True, engine=engine, **options))  # type: ignore[arg-type]
        out.append(model.user(prefix))
    return out[0], out[2], out[1], out[3]


@torch.no_grad()
@pytest.mark.parametrize(
    "options", [{}, {"l_kv": 2, "s_kv": 2, "g_kv": 1, "n_heads": 4}, {"moe_experts": 4, "moe_first_dense": 1}]
)
def test_a_recording_answers_every_batch_of_its_bucket(options: dict[str, Any], as_on_cuda: TapeRecorder) -> None:
    model = small_model(max_history=10, **options)
    random_norms(model)
    trie = Trie.build(model.items.codes_IQ.numpy(), model.codebook_sizes)
    index = MaskIndex(trie, 60)
    moments = tables(*log(60, 1), index)
    rng = np.random.default_rng(3)
    kinds = [*range(6)] * 2
    for number, kind in enumerate(kinds):
        size = int(rng.integers(3, 5))
        lengths = rng.integers(0, 10, size).tolist()
        beams = rng.integers(33, 64, size).tolist() if kind % 2 else rng.integers(1, 8, size).tolist()
        batch = searched(lengths, seed=number) if kind % 3 == 0 else context(lengths, seed=number)
        named = torch.from_numpy(rng.integers(0, 60, 30))
        recalled = (
            torch.from_numpy(rng.integers(0, size, 30)),
            named,
            torch.from_numpy(rng.random(30).astype(np.float32)),
        )
        given: dict[str, Any] = {}
        if kind in (2, 3, 5):
            given["guide"] = Guide(index, recalled, share=0.2 + 0.05 * number)
        if kind > 3:
            given["lift"] = moments.lift(torch.from_numpy(rng.uniform(20, 40, size)) * DAY, 0.7)
        found, twin, user, other = both(
            model, trie, batch, beams=beams, index=index, seed=number, filtered=kind < 4, **given
        )
        assert_same(found, twin)
        torch.testing.assert_close(user, other, rtol=1e-4, atol=2e-5)
    # some batches were of buckets that had been captured
    assert isinstance(model.searches, Searches)
    assert len(as_on_cuda.graphs) == len(model.searches.captured) < len(kinds)


@torch.no_grad()
def test_a_bucket_is_captured_once_whatever_is_asked(as_on_cuda: TapeRecorder) -> None:
    model = small_model(max_history=50)
    trie = Trie.build(model.items.codes_IQ.numpy(), model.codebook_sizes)
    index = MaskIndex(trie, 60)
    for number, lengths in enumerate([[17, 30, 4], [20, 0, 18, 32], [32, 32, 31]]):
        found, twin, *_ = both(
            model,
            trie,
            context(lengths, seed=number),
            beams=[9 + number] * len(lengths),
            index=index,
            seed=5,
            filtered=False,
        )
        assert_same(found, twin)
    assert len(as_on_cuda.graphs) == 1
    both(model, trie, context([16, 5, 3]), beams=[9] * 3, index=index, filtered=False)
    assert len(as_on_cuda.graphs) == 2


@torch.no_grad()
def test_inputs_that_were_read_while_recording_are_found(
    as_on_cuda: TapeRecorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    planted = graph_engine.question_of
    monkeypatch.setattr(
        graph_engine, "question_of", lambda own: planted({name: part.clone() for name, part in own.items()})
    )
    model = small_model()
    trie = Trie.build(model.items.codes_IQ.numpy(), model.codebook_sizes)
    index = MaskIndex(trie, 60)
    with pytest.raises(AssertionError):
        assert_same(*both(model, trie, context([7]), beams=[9], index=index, filtered=False)[:2])


@torch.no_grad()
def test_changed_weights_another_trie_and_another_catalogue_are_captured_anew(as_on_cuda: TapeRecorder) -> None:
    model = small_model()
    trie = Trie.build(model.items.codes_IQ.numpy(), model.codebook_sizes)
    index = MaskIndex(trie, 60)
    batch = context([4])

    def same() -> None:
        assert_same(*both(model, index.trie, batch, beams=[20], index=index, filtered=False)[:2])

    same()
    model.heads[0].weight += torch.randn_like(model.heads[0].weight)  # type: ignore[arg-type, operator]
    same()
    model.items.replace_catalogue(model.items.codes_IQ.flip(0), model.items.content_IC.flip(0))
    model.items.tabulate()
    same()
    index = MaskIndex(Trie.build(model.items.codes_IQ.numpy(), model.codebook_sizes, rows=np.arange(0, 60, 3)), 60)
    same()
    assert len(as_on_cuda.graphs) == 4
    same()
    assert len(as_on_cuda.graphs) == 4
    model.load_state_dict({name: own + 0.01 for name, own in model.state_dict().items()})
    assert model.searches is None
    same()
    train_a_step(model)
    assert model.searches is None
    same()
    assert copy.deepcopy(model).searches is None


@torch.no_grad()
def test_what_no_graph_answers_is_answered_by_the_eager_engine(as_on_cuda: TapeRecorder) -> None:
    model = small_model()
    nothing = Trie.build(np.zeros((0, 3), np.int64), model.codebook_sizes)
    index = MaskIndex(nothing, 60)
    found, twin, *_ = both(model, nothing, context([4]), beams=[5], index=index, filtered=False)
    assert found.leaf_BW.tolist() == twin.leaf_BW.tolist() == [[-1]]
    assert not as_on_cuda.graphs
    trie = Trie.build(model.items.codes_IQ.numpy(), model.codebook_sizes)
    model.heads[1].weight[2] = float("nan")  # type: ignore[operator, index]
    found, twin, user, other = both(model, trie, context([4]), beams=[60], index=MaskIndex(trie, 60), filtered=False)
    assert len(as_on_cuda.graphs) == 1
    np.testing.assert_array_equal(found.leaf_BW.numpy(), twin.leaf_BW.numpy())
    torch.testing.assert_close(user, other)
    # a step beside the search computes the context then
    model.engine = "auto"
    prefix = model.prefill(context([4]))
    assert prefix.question is not None
    model.engine = "eager"
    torch.testing.assert_close(model.user(prefix), model.user(model.prefill(context([4]))))


def test_filters_keep_their_row_and_the_latest_stay() -> None:
    trie = Trie.build(np.arange(12).reshape(6, 2) % 4, [4, 4])
    index = MaskIndex(trie, 6)
    rng = np.random.default_rng(0)
    own = [index.compile(torch.from_numpy(rng.random(6) < 0.5)) for _ in range(6)]
    slots = FilterSlots(DeviceTrie.of(trie, "cpu").n_nodes, torch.device("cpu"))
    assert slots.room(2) == 4

    def check(filters: list[Any]) -> list[int]:
        rows = slots.place(filters)
        for number, row in zip(filters, rows, strict=True):
            for depth, table in enumerate(slots.tables):
                expected = np.ones(table.shape[1], bool) if number.counts is None else number.counts[depth] > 0
                assert table[row].tolist() == expected.tolist()
        return rows

    first = check([own[0], own[1], index.unfiltered])
    assert first[2] == 0
    assert len({*first}) == 3
    assert check([own[1], own[0]]) == first[1::-1]
    check([own[2]])
    # the one that was not used for longest makes room, never one of the same batch
    rows = check([own[1], own[3], own[4]])
    assert rows[0] == first[1]
    assert len({*rows}) == 3
    assert slots.room(3) == 4
    assert slots.room(4) == 8
    check([own[0], own[1], own[2], own[5]])


def test_a_lift_is_sent_when_it_is_another() -> None:
    model = small_model()
    trie = Trie.build(model.items.codes_IQ.numpy(), model.codebook_sizes)
    moments = tables(*log(60, 1), MaskIndex(trie, 60))
    rows = LiftRows(DeviceTrie.of(trie, "cpu").n_nodes, torch.device("cpu"))
    when = torch.tensor([21.0, 35.0], dtype=torch.float64) * DAY
    assert rows.room(2) == 4
    rows.place(moments.lift(when, 0.7))
    rows.tables[0].fill_(7.0)
    rows.place(moments.lift(when, 0.7))
    assert float(rows.tables[0].min()) == 7.0
    for other in (moments.lift(when, 0.6), moments.lift(when + DAY, 0.6)):
        rows.place(other)
        for table, own in zip(rows.tables, other.nodes, strict=True):
            torch.testing.assert_close(table[:2], own)


def test_buckets() -> None:
    assert [bucket(n, 16, 2) for n in (0, 1, 16, 17, 64, 65)] == [0, 16, 16, 32, 64, 128]
    assert [bucket(n, 64, 4) for n in (1, 65, 257)] == [64, 256, 1024]
    assert [place_bucket(n, 50) for n in (1, 16, 17, 50, 51)] == [16, 16, 50, 50, 51]


# -- how it is chosen


def test_the_graph_engine_without_cuda_is_refused() -> None:
    assert compiling.use_graph("auto", "cuda")
    assert compiling.use_graph("graph", "cuda")
    assert not any(compiling.use_graph(engine, "cuda") for engine in ("eager", "compiled"))  # type: ignore[arg-type]
    assert not any(compiling.use_graph(engine, "cpu") for engine in ("auto", "eager", "compiled"))  # type: ignore[arg-type]
    assert not compiling.use_compiled("graph")
    model = small_model()
    trie = Trie.build(model.items.codes_IQ.numpy(), model.codebook_sizes)
    prefix = model.prefill(context([3]))
    with pytest.raises(RankloomError, match="needs the model on a CUDA device, and it is on cpu") as told:
        beam_search(model, prefix, trie, beam=3, masks=MaskIndex(trie, 60).requests([None]), engine="graph")
    assert told.value.place == "decoding.engine"
    assert told.value.code == "engine-missing"
    assert "auto" in str(told.value.action)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_model_that_asks_for_it_without_cuda_is_refused(model: Rankloom) -> None:
    config = model.config.with_overrides(["decoding.engine=graph"])
    parts = {"tokenizer": model.tokenizer, "items": model.items, "histories": model.histories, "mask_seen": False}
    with pytest.raises(RankloomError, match="torch finds none"):
        Rankloom(config=config, model=model.model, **parts)  # type: ignore[arg-type]
    with pytest.raises(RankloomError, match="no CUDA device for cuda"):
        model.to("cuda")
    assert model.to("cpu") is model


def test_settings_name_it() -> None:
    config = Config.preset_config("tiny").with_overrides(["decoding.engine=graph", "decoding.precision=bf16"])
    assert config.decoding.engine == "graph"
    assert config.decoding.precision == "bf16"


@torch.no_grad()
def test_precision_is_of_the_graph_and_auto_is_fp32(as_on_cuda: TapeRecorder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiling, "has_amx", lambda: True)
    model = small_model(max_history=10)
    trie = Trie.build(model.items.codes_IQ.numpy(), model.codebook_sizes)
    masks = MaskIndex(trie, 60).requests([None, None])
    batch, scores, captured = context([4, 2], seed=1), {}, []
    model.engine = "graph"
    for precision in ("fp32", "auto", "bf16"):
        model.precision = precision  # type: ignore[assignment]
        found = beam_search(model, model.prefill(batch), trie, beam=60, masks=masks, engine="graph")
        assert isinstance(model.searches, Searches)
        assert model.searches.decoder.dtype == (torch.bfloat16 if precision == "bf16" else torch.float32)
        scores[precision] = found.log_prob_BW.sort(dim=1).values
        captured.append(len(as_on_cuda.graphs))
    assert torch.equal(scores["auto"], scores["fp32"])
    assert not torch.equal(scores["bf16"], scores["fp32"])
    torch.testing.assert_close(scores["bf16"], scores["fp32"], rtol=5e-2, atol=5e-2)
    assert captured == [1, 1, 2]


@torch.no_grad()
def test_a_graph_keeps_no_contexts(model: Rankloom, as_on_cuda: TapeRecorder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept_context, "LEAST", 0)
    config, user = model.config, model.users[0]
    kept = {}
    for engine in ("eager", "graph"):
        model.config = config.with_overrides([f"decoding.engine={engine}"])
        model.model.engine = engine  # type: ignore[assignment]
        model.contexts = ContextCache(10**7)
        model.recommend(user, history=model.items["item_id"].to_list()[:4], k=3)
        kept[engine] = len(model.contexts)
    assert kept == {"eager": 1, "graph": 0}
    assert as_on_cuda.graphs
    # nor where somebody asks for a step beside it
    generator = model.model
    prefix = generator.prefill(context([3]), kept=[None])
    assert prefix.question is not None
    generator.start(prefix)
    assert prefix.kept is None
    assert prefix.eager is not None
    assert prefix.eager.kept is None


def answers(model: Rankloom, bazaar: Shop) -> list[Any]:
    users = model.users[:3]
    ids = model.items["item_id"].to_list()
    requests = [
        Request(users[0], k=5), Request(users[1], k=12, filter="price < 40", exclude=tuple(ids[:30])),
        Request(None, k=3, seen="mask"), Request(users[2], k=5, query="blue", surface="search"),
    ]  # fmt: skip
    replies = [*model.recommend_batch(requests), model.answer_with_trace(requests[1])[0]]
    return [[(item.item_id, pytest.approx(item.score, abs=1e-4)) for item in reply.items] for reply in replies]


def test_a_whole_answer_is_the_same(model: Rankloom, bazaar: Shop, as_on_cuda: TapeRecorder) -> None:
    model.model.engine = "eager"
    config = model.config
    model.config = config.with_overrides(["decoding.engine=eager"])
    expected = answers(model, bazaar)
    model.config = config.with_overrides(["decoding.engine=auto"])
    model.model.engine = "auto"
    assert answers(model, bazaar) == expected
    assert as_on_cuda.graphs
    captured = len(as_on_cuda.graphs)
    assert answers(model, bazaar) == expected
    assert len(as_on_cuda.graphs) == captured


def test_what_is_captured_beforehand_serves_the_feed(model: Rankloom, as_on_cuda: TapeRecorder) -> None:
    # 16 places and the 20 of the preset, with and without searches among them, batches of 1 and 4
    assert model.capture((1, 4)) == 8
    assert len(as_on_cuda.graphs) == 8
    model.recommend_batch([Request(user, k=4) for user in model.users[:3]])
    model.recommend(history=model.items["item_id"].to_list()[:18], seen="mask")
    model.recommend(history=["nobody knows it"])
    assert len(as_on_cuda.graphs) == 8


def test_without_graphs_nothing_is_captured_beforehand(model: Rankloom) -> None:
    assert model.capture() == 0


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_whole_work_of_a_bucket_holds_to_the_rules(dtype: torch.dtype) -> None:
    model = small_model(max_history=10)
    trie = Trie.build(model.items.codes_IQ.numpy(), model.codebook_sizes)
    index = MaskIndex(trie, 60)
    own = Searches(GraphDecoder(model, dtype), trie, TapeRecorder())
    batch = searched([4, 2], seed=1)
    model.engine = "graph"
    question = lazy_decoder.Question(batch, torch.zeros(2, dtype=torch.long))
    masks = index.requests([None, index.compile(torch.arange(60) % 2 == 0)], [torch.arange(5), torch.arange(3)])
    widths: Indices = np.array([9, 4])
    found = own.search(question, widths, masks, over_children=True, guide=None, lift=None)
    assert found is not None
    assert [level.node_BP.shape[1] for level in found[0]][-1] == 9


# -- on a device


def cuda_recorder() -> Recorder:
    return CudaRecorder(torch.device("cuda", torch.cuda.current_device()))


@needs_cuda
def test_a_recorded_graph_reads_its_inputs_anew() -> None:
    given = torch.ones(4, device="cuda")
    recording = cuda_recorder().record(lambda: (given * 2,))
    for value in (3.0, 5.0):
        given.fill_(value)
        assert recording.run()[0].tolist() == [2 * value] * 4


@needs_cuda
@torch.no_grad()
@pytest.mark.parametrize("kind", ["feed", "search"])
def test_a_search_on_the_device_is_that_of_the_eager_engine(kind: str) -> None:
    model = small_model(max_history=10)
    random_norms(model)
    trie = Trie.build(model.items.codes_IQ.numpy(), model.codebook_sizes)
    index = MaskIndex(trie, 60)
    model.to("cuda")
    model.items.tabulate()
    for number in range(6):
        lengths = [4, 0, 9][: 1 + number % 3]
        batch = searched(lengths, seed=number) if kind == "search" else context(lengths, seed=number)
        found, twin, user, other = both(model, trie, batch, beams=[40, 3, 60][: len(lengths)], index=index, seed=number)
        assert_same(found, twin)
        torch.testing.assert_close(user, other, rtol=1e-4, atol=1e-4)
    assert isinstance(model.searches, Searches)
    assert model.searches.captured


@needs_cuda
def test_a_whole_answer_on_the_device_is_the_same(model: Rankloom, bazaar: Shop) -> None:
    expected = answers(model, bazaar)
    model.to("cuda")
    assert answers(model, bazaar) == expected
    assert isinstance(model.model.searches, Searches)
    assert dataclasses.is_dataclass(next(iter(model.model.searches.captured)))
