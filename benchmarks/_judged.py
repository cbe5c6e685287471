"""What the benchmarks on judged search sets share: the study, its measures, cells that are kept, paired differences.

A script reads its files into a `Study` (catalogue, questions with graded pairs, parts of the set that learn and are asked) and calls
`run`. Every engine ranks the whole catalogue for every question; a cell keeps what each measure says of each question, so any mean,
interval and difference comes from the same lists. Engines are in _judged_engines.py, files in _judged_files.py.

Shapes: Q questions, K length of a list.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Final

import numpy as np
import polars as pl
from _common import ROOT, Benchmark, argument_parser, count_seeds, table
from numpy.typing import NDArray
from rich.console import Console

from rankloom.data.schema import TIME
from rankloom.data.shop import write_shop
from rankloom.errors import RankloomError
from rankloom.evaluation.metrics import Bootstrap
from rankloom.evaluation.search.judged import Judgements, hit_rate, ndcg, recall
from rankloom.evaluation.search.systems import index_texts
from rankloom.evaluation.systems import IntArray
from rankloom.requests import HistoryEvent
from rankloom.semantic.text import item_texts

SOURCES: Final = (
    "rankloom/data", "rankloom/decoding", "rankloom/models", "rankloom/training", "rankloom/semantic", "rankloom/pipeline.py",
    "rankloom/catalogue.py", "rankloom/generating.py", "rankloom/ordering.py", "rankloom/replying.py", "rankloom/request_rows.py",
    "rankloom/choosing.py", "rankloom/building.py", "rankloom/recommender.py", "rankloom/evaluation/search", "benchmarks/_judged.py",
    "benchmarks/_judged_engines.py",
)  # fmt: skip
BASELINE_SOURCES: Final = (
    "rankloom/semantic", "rankloom/evaluation/search", "benchmarks/_judged.py", "benchmarks/_judged_engines.py",
)  # fmt: skip
DRAWS: Final = 1_000
TAKES_A_VISIT: Final = 3
_START: Final = datetime(2025, 1, 1, tzinfo=UTC)
Values = NDArray[np.float64]


@dataclass(frozen=True)
class Measure:
    """A figure of one question.

    Attributes:
        of: lists and judgements to (Q,) values.
        counted: judgements to (Q,) which questions count; all where None.
    """

    metric: str
    k: int
    of: Callable[[IntArray, Judgements], Values]
    gains: str = ""
    counted: Callable[[Judgements], NDArray[np.bool_]] | None = None

    @property
    def name(self) -> str:
        return f"{self.metric}@{self.k}" + (f", {self.gains}" if self.gains else "")


def ndcg_of(gains: str, gain_G: Sequence[float], k: int = 10) -> Measure:
    return Measure("ndcg", k, partial(ndcg, gain_G=gain_G, k=k), gains)


def recall_of(least: int, k: int) -> Measure:
    return Measure("recall", k, partial(recall, least=least, k=k), counted=partial(_answerable, least=least))


def hit_of(least: int, k: int) -> Measure:
    return Measure("hr", k, partial(hit_rate, least=least, k=k), counted=partial(_answerable, least=least))


def _answerable(judged: Judgements, least: int) -> NDArray[np.bool_]:
    return judged.at_least(least) > 0


@dataclass(frozen=True)
class Questions:
    """Q queries with their graded pairs.

    Attributes:
        owner: (Q,) who asks; resampled together.
        history: what each asker did before, oldest first; None where nobody is known.
        at: the moments, where there are any.
    """

    text: tuple[str, ...]
    judged: Judgements
    owner: NDArray[np.int64]
    user: tuple[str, ...] | None = None
    history: tuple[tuple[HistoryEvent, ...], ...] | None = None
    at: tuple[datetime, ...] | None = None

    def __len__(self) -> int:
        return len(self.text)

    def take(self, places: NDArray[Any]) -> Questions:
        def of(own: Any) -> Any:
            return None if own is None else tuple(own[place] for place in places)

        return Questions(
            of(self.text), self.judged.take(places), self.owner[places], of(self.user), of(self.history), of(self.at)
        )


@dataclass(frozen=True)
class Part:
    """A part of a study that is asked, and what learns for it.

    Attributes:
        asked: places among the study's questions.
        learn: questions that engines learn from; none of them is asked in this part.
        log: writes the shop that our model trains on.
    """

    name: str
    asked: NDArray[np.int64]
    learn: Questions
    log: Callable[[Path], None]


@dataclass(frozen=True, eq=False)
class Study:
    """A judged set as the benchmark asks it.

    Attributes:
        items: the catalogue, in a shop's columns; judged rows from its size on are items that it lacks.
        stamp: of the files and of what was left out; part of every cell's name.
        whole: whether nothing was left out, so that figures may be laid beside published ones.
        measures: the first one tunes and is compared.
        taken: the least grade that counts as taken.
        top: the best grade.
        chinese: whether words have to be cut by jieba.
        published: rows of figures that others report, to print beside.
        goal: a measure's name and what our model is to reach on the whole set.
    """

    name: str
    items: pl.DataFrame
    questions: Questions
    parts: tuple[Part, ...]
    measures: tuple[Measure, ...]
    taken: int
    top: int
    stamp: str
    whole: bool
    chinese: bool = False
    published: tuple[dict[str, Any], ...] = ()
    goal: tuple[str, float] | None = None

    @cached_property
    def short(self) -> tuple[str, ...]:
        """Title, brand and category of every item."""
        return tuple(index_texts(self.items))

    @cached_property
    def long(self) -> tuple[str, ...]:
        """The same with attributes and the start of the description."""
        return tuple(item_texts(self.items))

    @property
    def longest(self) -> int:
        return max(measure.k for measure in self.measures)


def judged_parser(doc: str | None, name: str) -> argparse.ArgumentParser:
    """The flags of these benchmarks."""
    parser = argument_parser(doc)
    count_seeds(parser)
    parser.add_argument("--data", type=Path, required=True, metavar="FOLDER", help="where the downloaded files lie")
    parser.add_argument("--engines", nargs="+", metavar="NAME", help="only these, such as bm25 rrf rankloom")
    parser.add_argument("--no-model", action="store_true", help="the baselines only")
    parser.add_argument(
        "--dense",
        metavar="NAME",
        help="text encoder of the dense engine: minilm (where installed), hashed, or sentence-transformers:NAME",
    )
    parser.add_argument(
        "--items",
        type=int,
        metavar="N",
        help="a smaller catalogue: all judged items and others up to N; figures no longer compare",
    )
    parser.add_argument(
        "--asked", type=int, metavar="N", help="ask N questions only, drawn once; figures no longer compare"
    )
    parser.add_argument("--preset", choices=("tiny", "small", "base"), help="of our model; small")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="a setting of our model, as in `rankloom train`"
    )
    parser.add_argument("--folder", type=Path, default=ROOT / "runs" / name, help="where shops and models lie")
    return parser


def guarded(main: Callable[[], int]) -> int:
    """Runs `main`; what is wrong with the input is told without a traceback, exit status 1."""
    try:
        return main()
    except RankloomError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


def run(bench: Benchmark, study: Study) -> int:
    """Measures every engine on every part, prints the tables, checks, writes the JSON."""
    from _judged_engines import Engines, names

    engines = Engines(bench, study)
    found: dict[tuple[str, str], list[tuple[int, dict[str, Values]]]] = {}
    notes: dict[tuple[str, str], list[str]] = {}
    left_out = "" if study.whole else " (a subset: figures do not compare with published ones)"
    print(f"{study.name}: {study.items.height:,} items, {len(study.questions):,} questions{left_out}", flush=True)
    for system, variant, drawn in names(bench, study):
        for seed in bench.seeds if drawn else bench.seeds[:1]:
            values = {measure.name: np.zeros(len(study.questions)) for measure in study.measures}
            for part in study.parts:
                key = {"set": study.stamp, "part": part.name, "system": system, "variant": variant, "seed": seed}
                own = SOURCES if system.startswith("rankloom") else BASELINE_SOURCES
                key |= engines.settings(system)
                cell = bench.cell(key, partial(_measured, engines, study, part, system, variant, seed), sources=own)
                for measure in study.measures:
                    values[measure.name][part.asked] = cell["values"][measure.name]
                notes.setdefault((system, variant), []).append(cell["chosen"])
                print(f"  {part.name}: {system}, {variant}, seed {seed}, {cell['minutes']:.1f} min", flush=True)
            found.setdefault((system, variant), []).append((seed, values))
    _report(bench, study, found, notes)
    return bench.finish(show_rows=False)


def _measured(engines: Any, study: Study, part: Part, system: str, variant: str, seed: int) -> dict[str, Any]:
    began = time.perf_counter()
    lists, chosen = engines.lists(part, system, variant, seed)
    judged = study.questions.judged.take(part.asked)
    values = {measure.name: np.round(measure.of(lists, judged), 6).tolist() for measure in study.measures}
    return {"values": values, "chosen": chosen, "minutes": (time.perf_counter() - began) / 60}


def _report(
    bench: Benchmark, study: Study, found: dict[tuple[str, str], list[tuple[int, dict[str, Values]]]],
    notes: dict[tuple[str, str], list[str]],
) -> None:  # fmt: skip
    """Rows of every engine, rows of our model minus each other one, and the tables."""
    counted = {
        measure.name: np.ones(len(study.questions), dtype=bool)
        if measure.counted is None
        else measure.counted(study.questions.judged)
        for measure in study.measures
    }
    bootstrap = Bootstrap(study.questions.owner, DRAWS)
    lines: list[dict[str, Any]] = []
    for (system, variant), cells in found.items():
        line: dict[str, Any] = {"system": system, "variant": variant, "seeds": len(cells)}
        for measure in study.measures:
            inside = counted[measure.name]
            for seed, values in cells:
                own = values[measure.name]
                low, high = bootstrap.interval(own, inside)
                bench.row(
                    system=system, variant=variant, metric=measure.metric, k=measure.k, masked=False, value=_mean(own, inside), low=low,
                    high=high, n=int(inside.sum()), seed=seed, gains=measure.gains, set=study.name, whole=study.whole,
                )  # fmt: skip
            line[measure.name] = f"{np.mean([_mean(values[measure.name], inside) for _, values in cells]):.4f}"
        chosen = list(dict.fromkeys(note for note in notes[system, variant] if note))
        lines.append({**line, "chosen": ", ".join(chosen[:3]) + (", ..." if len(chosen) > 3 else "")})
    for row in study.published:
        bench.row(**row, set=study.name, published=True)
    lines += _published_lines(study)
    ours = found.get(("rankloom", "search"))
    against = [] if ours is None else [key for key in found if not key[0].startswith("rankloom")]
    differences = []
    for system, variant in against:
        line = {"rankloom minus": f"{system}, {variant}"}
        for measure in study.measures:
            inside = counted[measure.name]
            gap = _over_seeds(ours or [], measure) - _over_seeds(found[system, variant], measure)
            low, high = bootstrap.interval(gap, inside)
            bench.row(
                system="rankloom", variant=f"minus {system}, {variant}", metric=measure.metric, k=measure.k, masked=False,
                value=_mean(gap, inside), low=low, high=high, n=int(inside.sum()), gains=measure.gains, set=study.name, whole=study.whole,
            )  # fmt: skip
            line[measure.name] = f"{_mean(gap, inside):+.4f} ({low:+.4f} .. {high:+.4f})"
            if measure is study.measures[0] and not bench.quick:
                bench.check(
                    f"{study.name}: rankloom over {system} ({variant}), {measure.name}, paired", line[measure.name],
                    target="interval above 0", ok=bool(low > 0),
                )  # fmt: skip
        differences.append(line)
    if study.goal is not None and study.whole and ours is not None and not bench.quick:
        name, least = study.goal
        reached = float(np.mean([_mean(values[name], counted[name]) for _, values in ours]))
        bench.check(f"{study.name}: {name} of rankloom, {len(ours)} seeds", round(reached, 4), at_least=least)
    console = Console(highlight=False, width=190, stderr=bench.args.json == "-")
    console.print(table(study.name, lines))
    if differences:
        console.print(table("paired, 95% intervals", differences))


def _mean(values: Values, inside: NDArray[np.bool_]) -> float:
    return float(values[inside].mean()) if inside.any() else float("nan")


def _over_seeds(cells: list[tuple[int, dict[str, Values]]], measure: Measure) -> Values:
    """(Q,) the mean of a question's values over the seeds."""
    mean: Values = np.mean([values[measure.name] for _, values in cells], axis=0)
    return mean


def _published_lines(study: Study) -> list[dict[str, Any]]:
    lines: dict[tuple[str, str], dict[str, Any]] = {}
    for row in study.published:
        line = lines.setdefault((row["system"], row["variant"]), {"system": row["system"], "variant": row["variant"]})
        line[f"{row['metric']}@{row['k']}" + (f", {row['gains']}" if row.get("gains") else "")] = f"{row['value']:.4f}"
    return list(lines.values())


# -- what is left out, and the log of a set without people -------------------------------------------------------------


def sample(n: int, limit: int | None, seed: int = 0) -> NDArray[np.int64]:
    """Places of at most `limit` of n things, drawn once, in order."""
    if limit is None or limit >= n:
        return np.arange(n)
    return np.sort(np.random.default_rng(seed).choice(n, limit, replace=False))


def narrowed(
    items: pl.DataFrame, wanted: NDArray[np.int64], limit: int | None
) -> tuple[pl.DataFrame, NDArray[np.int64]]:
    """A smaller catalogue: the wanted rows, and others up to `limit`; and the new row of each old one, -1 where it is gone."""
    n = items.height
    if limit is None or limit >= n:
        return items, np.arange(n)
    kept = np.zeros(n, dtype=bool)
    kept[wanted[wanted < n]] = True
    others = np.flatnonzero(~kept)
    kept[others[sample(len(others), max(0, limit - int(kept.sum())))]] = True
    place = np.where(kept, np.cumsum(kept) - 1, -1)
    return items.filter(pl.Series(kept)), place


def moved(judged: Judgements, place: NDArray[np.int64], n_items: int) -> Judgements:
    """The same pairs by the rows of a smaller catalogue. Items that the files lack stay beyond its end."""
    n = len(place)
    row = np.where(judged.item < n, place[np.minimum(judged.item, n - 1)], judged.item - n + n_items)
    kept = row >= 0
    return Judgements.of(judged.query[kept], row[kept], judged.grade[kept], len(judged))


def write_visits(folder: Path, study_items: pl.DataFrame, learn: Questions, taken: int, origin: str) -> None:
    """A shop whose log is made of judged queries: strangers who search and take what people judged right.

    Nobody is known in these sets. The items of a query are drawn into visits of at most three, each by a stranger of its own, so that
    a search is mostly asked without a history, as in the test, and items that answer one query still meet. Queries come in random order,
    an hour apart: the last tenth of the log, which chooses the weights, is of queries that did not train.
    """
    rng = np.random.default_rng(0)
    ids = study_items["item_id"]
    judged = learn.judged
    rows: list[tuple[str, int, datetime, str]] = []
    for hour, query in enumerate(rng.permutation(len(learn)).tolist()):
        own = slice(judged.offsets[query], judged.offsets[query + 1])
        right = judged.item[own][(judged.grade[own] >= taken) & (judged.item[own] < study_items.height)]
        for number, item in enumerate(rng.permutation(right).tolist()):
            visit, place = divmod(number, TAKES_A_VISIT)
            when = _START + timedelta(hours=hour, seconds=20 * (visit % 100) + 5 * place)
            rows.append((f"q{query}v{visit}", item, when, learn.text[query]))
    if not rows:
        raise RankloomError(
            "no training query has an item that was judged right",
            place="--data",
            action="give the whole set",
            code="log-empty",
        )
    user, item, when, text = zip(*rows, strict=True)
    events = pl.DataFrame(
        {
            "user_id": list(user), "item_id": ids.gather(list(item)), "timestamp": pl.Series(list(when)).cast(TIME), "event": ["click"] * len(rows),
            "surface": ["search"] * len(rows), "query": list(text),
        }
    ).sort("timestamp", maintain_order=True)  # fmt: skip
    write_shop(folder, items=study_items, events=events, origin={"importer": origin}, overwrite=True)


def with_text(items: pl.DataFrame) -> pl.DataFrame:
    """Items whose title is null get an empty one: a judged item stays in the catalogue."""
    return items.with_columns(pl.col("title").fill_null(""))


def folded(study: Study, fold_Q: NDArray[np.int64], origin: str) -> Study:
    """The study in parts by fold: each is asked by what learns from the others."""
    parts = []
    for fold in np.unique(fold_Q).tolist():
        learn = study.questions.take(np.flatnonzero(fold_Q != fold))
        log = partial(write_visits, study_items=study.items, learn=learn, taken=study.taken, origin=origin)
        parts.append(Part(f"fold {fold + 1}", np.flatnonzero(fold_Q == fold), learn, log))
    return replace(study, parts=tuple(parts))
