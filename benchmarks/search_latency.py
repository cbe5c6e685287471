"""How long does a search take, beside bm25s, in a catalogue of thousands and in one of a million?

    python benchmarks/search_latency.py [--dataset beauty] [--items 1000000] [--encoders hashed minilm] [--json OUT] [--quick]

One search at a time, as a server answers one shopper: words in, ten items out, beam 128, history read, query embedded, in process.
The queries are those of `search_amazon.py` (half category, half keyword), each asked once, so that its vector is not remembered: first
by people who have not been here yet, whose own earlier queries have to be embedded too (`first`), then by the same people again (`later`).
Two text encoders: `hashed`, that of a plain installation, in a model trained here for one epoch (for its speed, not for its quality), and
`minilm` (the extra), in the model of `search_amazon.py` (trained here where it is not there yet). The large catalogue has so many
items more, with titles drawn from the words of the catalogue as often as they occur, vectors of random items and random semantic
IDs: for its size, not for its quality. bm25s answers the same queries over the same texts, stemming included. Milliseconds of the
clock; the machine's threads are printed.
"""

from __future__ import annotations

import sys
import time
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
import polars as pl
import torch
from _common import ROOT, Benchmark, argument_parser, data_folder
from _search import evaluation_data, run, train
from search_amazon import NAMED, SOURCES

from rankloom.evaluation.search.lexical import DEFAULT_B, DEFAULT_K1, Index
from rankloom.evaluation.search.systems import index_texts
from rankloom.evaluation.search.words import all_terms
from rankloom.progress import track
from rankloom.recommender import Rankloom
from rankloom.request_rows import RequestRows
from rankloom.requests import Request
from rankloom.semantic.ids import SemanticIds
from rankloom.semantic.minilm import minilm_installed

ASKED: Final = 400
BEAM: Final = 128
K: Final = 10
MOST_MS: Final = 15.0
MOST_TIMES: Final = 2.0
ENCODERS: Final = ("hashed", "minilm")


def main() -> int:
    parser = argument_parser(__doc__)
    parser.add_argument("--dataset", default="beauty", help="beauty, toys, scientific, or a folder")
    parser.add_argument("--items", type=int, default=1_000_000, help="size of the large catalogue")
    parser.add_argument("--encoders", nargs="+", choices=ENCODERS, default=list(ENCODERS), help="what embeds a query")
    parser.add_argument("--folder", type=Path, default=ROOT / "runs" / "search_amazon", help="where shops and models lie")
    bench = Benchmark.from_args("search_latency", parser=parser, sources=(*SOURCES, "benchmarks/search_latency.py"))
    name = bench.args.dataset
    source = data_folder(NAMED[name]) if name in NAMED else Path(name)
    home = bench.args.folder / f"{Path(name).name}{'-quick' if bench.quick else ''}"
    large = 20_000 if bench.quick else bench.args.items
    print(f"{torch.get_num_threads()} threads")
    for encoder in bench.args.encoders:
        if encoder == "minilm" and not minilm_installed():
            print("minilm: the extra is not installed")
            continue
        key = {"dataset": name, "items": large, "threads": torch.get_num_threads(), "encoder": encoder}
        found = bench.cell(key, partial(measure, source, home, encoder, large, bench.quick))
        for size in ("catalogue", "large"):
            for system in ("rankloom, first", "rankloom, later", "bm25s"):
                own, items = found[size][system], f"{found[size]['items']:,} items"
                for part, value in own.items():
                    bench.row(system=system, variant=f"{encoder}, {items}", metric=f"{part} ms", value=value)
                print(f"{encoder:<8}{system:<18}{items:>18}   p50 {own['p50']:7.2f} ms   p95 {own['p95']:7.2f} ms")
        p50 = found["catalogue"]["rankloom, later"]["p50"]
        bench.check(f"{encoder}: p50 of {found['catalogue']['items']:,} items, ms", round(p50, 2), at_most=MOST_MS)
        if not bench.quick:
            times = found["large"]["rankloom, later"]["p50"] / p50
            bench.check(f"{encoder}: p50 of {large:,} items over that of the catalogue", round(times, 2), at_most=MOST_TIMES)
    return bench.finish(show_rows=False)


def measure(source: Path, home: Path, encoder: str, large: int, quick: bool) -> dict[str, Any]:
    data = evaluation_data(source, home, None, quick=quick)
    model = Rankloom.from_pretrained(trained(data.shop.path, home, encoder, quick))
    queries = asked(data.cases, 2 * (60 if quick else ASKED))
    half = len(queries) // 2
    # the same people, with other words
    again = [(user, words) for (user, _), (_, words) in zip(queries[:half], queries[half:], strict=False)]
    out: dict[str, Any] = {}
    for size in ("catalogue", "large"):
        if size == "large":
            grow(model, large)
            # nothing is remembered of the smaller catalogue's searches
            model.request_rows = RequestRows(model.config, model.histories, model.log_end)
        answer = partial(search, model)
        out[size] = {
            "items": model.items.height,
            "rankloom, first": times(queries[:half], answer),
            "rankloom, later": times(again, answer),
            "bm25s": times(queries[:half], lexical(index_texts(model.items))),
        }
    return out


def trained(shop: Path, home: Path, encoder: str, quick: bool) -> Path:
    model = home / ("model-0" if encoder == "minilm" else "model-hashed")
    if not (model / "manifest.json").exists():
        if encoder == "minilm":
            train(shop, model, 0, quick=quick)
        else:
            options = ["text.embedder=hashed", "training.max_epochs=1", "training.min_steps=0", "selection.broad_searches=0"]
            run(
                "train", shop, "--out", model, "--preset", "tiny" if quick else "small", "--split", "leave-one-out", "--overwrite",
                *(word for option in options for word in ("--set", option)),
            )  # fmt: skip
    return model


def asked(cases: dict[str, Any], n: int) -> list[tuple[str, str]]:
    """(person, query), no query twice."""
    out: dict[str, str] = {}
    for own in cases.values():
        taken = 0
        for user, query in zip(own.cases.user.tolist(), own.query, strict=True):
            if taken < n // len(cases) and query not in out:
                out[query] = str(own.sequences.user_ids[user])
                taken += 1
    pairs = [(user, query) for query, user in out.items()]
    return [pairs[place] for place in np.random.default_rng(0).permutation(len(pairs))]


def search(model: Rankloom, user: str, words: str) -> None:
    model.recommend_batch([Request(user=user, query=words, k=K, surface="search", seen="allow", beam=BEAM)])


def lexical(texts: list[str]) -> Any:
    index = Index(all_terms(texts), DEFAULT_K1, DEFAULT_B)

    def answer(_: str, words: str) -> None:
        score = index.scores(words)
        best = np.argpartition(-score, K)[:K]
        best[np.argsort(-score[best])]

    return answer


def times(queries: list[tuple[str, str]], answer: Any) -> dict[str, float]:
    """Milliseconds after a warm-up with the last queries."""
    for user, words in queries[-20:]:
        answer(user, words)
    took = []
    for user, words in track(queries[:-20], "searching", unit="queries"):
        began = time.perf_counter()
        answer(user, words)
        took.append((time.perf_counter() - began) * 1e3)
    return {"p50": float(np.percentile(took, 50)), "p95": float(np.percentile(took, 95))}


def grow(model: Rankloom, n: int) -> None:
    """Adds made items until the catalogue has `n`."""
    draw = np.random.default_rng(0)
    more = max(0, n - model.items.height)
    titles = [title.split() for title in model.items["title"].to_list() if title]
    pool, lengths = np.concatenate(titles), np.asarray([len(title) for title in titles])
    sizes = draw.choice(lengths, more)
    words = draw.choice(pool, int(sizes.sum()))
    ends = np.cumsum(sizes)
    made = [" ".join(words[end - size : end]) for size, end in zip(sizes.tolist(), ends.tolist(), strict=True)]
    like = draw.integers(0, model.items.height, more)
    fresh = model.items[like].with_columns(
        pl.Series("item_id", [f"made-{number}" for number in range(more)]), pl.Series("title", made)
    )
    tokenizer, ids = model.tokenizer, model.semantic_ids
    codes = np.stack([draw.integers(0, size, more) for size in ids.codebook_sizes], axis=1).astype(ids.codes.dtype)
    tokenizer.content = np.concatenate([tokenizer.content, tokenizer.content[like]])
    tokenizer.aligned = np.concatenate([tokenizer.aligned, tokenizer.aligned[like]])
    tokenizer.semantic_ids = SemanticIds(
        np.concatenate([ids.codes, codes]), ids.codebook_sizes, np.concatenate([ids.prior, np.zeros(more, ids.prior.dtype)])
    )
    model.items = pl.concat([model.items, fresh])
    model._alive = np.ones(model.items.height, dtype=np.bool_)
    model._refresh()


if __name__ == "__main__":
    sys.exit(main())
