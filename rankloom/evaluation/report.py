"""`rankloom report`: one offline HTML file about a model, with the plots people look for.

Everything is read from the model folder and from `evaluation.json` in or beside it (`rankloom evaluate --out` or the demo
wrote it); the latency of single requests is measured on this machine while the report is made. A section without its input
says which command makes it, and stands at the end.
"""

from __future__ import annotations

import html
import json
import os
import platform
import time
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray

from rankloom import model_folder
from rankloom.evaluation.metrics import BEYOND_K, SLICES
from rankloom.files import atomic_file, check_file_target, read_json
from rankloom.progress import track
from rankloom.recommender import Rankloom
from rankloom.requests import Request

_ASSETS: Final = Path(__file__).parent / "assets"
_K: Final = 10
_FULLEST: Final = 20  # items of a semantic ID that have a bar of their own
# one colour a system, the same in every plot: the model and its generator alone are shades of one
_SYSTEMS: Final = ("#0b6e58", "#5fae97", "#3d6fb4", "#c9842b", "#a8321f", "#7a58a5", "#6b7680", "#8a9a2b", "#b0608f")
_COLOURS: Final = ("#0b6e58", "#c9842b", "#3d6fb4", "#a8321f", "#7a58a5", "#6b7680")


@dataclass(frozen=True)
class Chart:
    """One figure: an ECharts option with a title and one sentence that says how to read it."""

    title: str
    sentence: str
    option: dict[str, Any]
    wide: bool = False


@dataclass(frozen=True)
class Section:
    """Charts under a heading, some HTML before them, and what to do where there is nothing to show."""

    title: str
    charts: list[Chart]
    before: str = ""
    missing: str = ""

    @property
    def empty(self) -> bool:
        return not self.charts and not self.before


def write_report(
    model_path: Path, out: Path, *, evaluation: Path | None = None, latency_seconds: float = 20.0, quiet: bool = False
) -> Path:
    """Renders the report of a model folder.

    Args:
        evaluation: the JSON of `rankloom evaluate`; by default `evaluation.json` in the model folder or beside it.
        latency_seconds: how long single requests are measured at most.

    Raises:
        RankloomError: the folder or the evaluation is broken, or `out` cannot be written; before anything is measured.
    """
    check_file_target(out)
    model = Rankloom.from_pretrained(model_path)
    log_path = model_path / model_folder.LOG
    log = [json.loads(line) for line in log_path.read_text(encoding="utf-8").splitlines()] if log_path.exists() else []
    places = [model_path / "evaluation.json", model_path.parent / "evaluation.json"]
    found = evaluation or next((place for place in places if place.exists()), None)
    figures = Figures(read_json(found)["rows"]) if found else Figures([])
    evaluate = (
        f"Not measured yet. Fill it with: rankloom evaluate {model_path} SHOP --baselines --out {places[1]}, where SHOP is the "
        "folder that the model was trained on; then make the report again."
    )
    again = "Not kept in this model folder; a model that is trained again has it."
    sections = [
        Section("Quality", _quality(figures), _table(figures, model), evaluate),
        Section("Training", _training(log), missing=again),
        Section("Semantic IDs", _semantic(model)),
        Section("Data", _data(model), missing=again),
        _serving(measure_latency(model, seconds=latency_seconds, quiet=quiet), model),
        Section("Model card", [], _card(model)),
    ]
    sections.sort(key=lambda section: section.empty)
    with atomic_file(out) as temporary:
        temporary.write_text(_render(model, figures, sections), encoding="utf-8")
    return out


class Figures:
    """The rows of an evaluation, by system and variant."""

    def __init__(self, rows: list[dict[str, Any]]) -> None:
        self.rows = [row for row in rows if row["metric"] in ("recall", "ndcg", "mrr", "coverage", "gini", "novelty")]
        self.systems = list(
            dict.fromkeys((row["system"], row["variant"]) for row in self.rows if row["slice"] == "all")
        )
        self._row = {
            (row["system"], row["variant"], row["metric"], row["k"], row["masked"], row["slice"]): row
            for row in self.rows
        }
        self.names = [name if variant == "default" else f"{name} {variant}" for name, variant in self.systems]

    def __bool__(self) -> bool:
        return bool(self.rows)

    def row(self, number: int, metric: str, k: int, masked: bool, part: str = "all") -> dict[str, Any]:
        """One figure of system `number`, {} where it was not measured."""
        return self._row.get((*self.systems[number], metric, k, masked, part), {})

    def values(self, metric: str, k: int, masked: bool, part: str = "all") -> list[float | None]:
        """A figure of every system."""
        found = [self.row(n, metric, k, masked, part).get("value") for n in range(len(self.systems))]
        return [None if value is None else round(value, 5) for value in found]


# -- plots -------------------------------------------------------------------------------------------------------------


def _axis(name: str, **more: Any) -> dict[str, Any]:
    return {"name": name, "nameLocation": "middle", "nameGap": 28, **more}


def _line(x: list[Any], series: dict[str, list[Any]], x_name: str, y_name: str, **y: Any) -> dict[str, Any]:
    return {
        "xAxis": _axis(x_name, type="category", data=x), "yAxis": _axis(y_name, type="value", scale=True, **{"nameGap": 46, **y}),
        "legend": {"top": 0, "show": len(series) > 1}, "grid": {"top": 54 if len(series) > 4 else 34 if len(series) > 1 else 14},
        "series": [{"type": "line", "name": n, "data": d, "showSymbol": len(x) < 8} for n, d in series.items()],
    }  # fmt: skip


def _bar(x: list[Any], series: dict[str, list[Any]], x_name: str, y_name: str, **y: Any) -> dict[str, Any]:
    option = _line(x, series, x_name, y_name, **y)
    for own in option["series"]:
        own.update(type="bar", barMaxWidth=46)
        del own["showSymbol"]
    option["yAxis"]["scale"] = False
    return option


def _named(option: dict[str, Any], *, rotate: int = 28) -> dict[str, Any]:
    """Every label of the x axis shown, however long."""
    option["xAxis"]["axisLabel"] = {"interval": 0, "rotate": rotate, "hideOverlap": False}
    option["grid"]["bottom"] = 74
    return option


def _training(log: list[dict[str, Any]]) -> list[Chart]:
    if not log:
        return []
    x = [round(r["epoch"], 1) for r in log]

    def column(name: str) -> list[float | None]:
        return [None if r.get(name) is None else round(float(r[name]), 5) for r in log]

    return [
        Chart("Generation loss", "Mean over the codes, in nats; a gap that widens is overfitting.",
              _line(x, {"training": column("generation_loss"), "validation": column("valid_generation_loss")}, "epoch", "nats")),
        Chart("Selection loss", "Cross-entropy of the target item. Training may be against sampled items: then only the shapes compare.",
              _line(x, {"training": column("selection_loss"), "validation": column("valid_selection_loss")}, "epoch", "nats")),
        Chart("Validation ranking", "What chose the checkpoint: the selection head over the whole catalogue.",
              _line(x, {"NDCG@10": column("valid_ndcg@10"), "recall@10": column("valid_recall@10")}, "epoch", "")),
        Chart("Speed", "Targets a second between evaluations.",
              _line(x, {"targets a second": column("targets_per_second")}, "epoch", "targets / s")),
    ]  # fmt: skip


def _quality(figures: Figures) -> list[Chart]:
    if not figures:
        return []
    names = figures.names
    lengths = sorted({r["k"] for r in figures.rows if r["metric"] == "recall" and r["slice"] == "all"})

    def both(metric: str) -> dict[str, list[Any]]:
        return {f"seen items {how}": figures.values(metric, _K, masked) for how, masked in (("masked", True), ("allowed", False))}  # fmt: skip

    def by_system(option: dict[str, Any]) -> dict[str, Any]:
        for number, own in enumerate(option["series"]):
            own["color"] = _SYSTEMS[number % len(_SYSTEMS)]
        return option

    recall = _named(_bar(names, both("recall"), "", ""))
    recall["series"] += [
        {"type": "custom", "name": "95% interval", "whisker": [side, 2], "data": _intervals(figures, masked), "z": 5}
        for side, masked in enumerate((True, False))
    ]
    parts = [part for part in SLICES if any(v is not None for v in figures.values("recall", _K, True, part))]
    sizes = {part: figures.row(0, "recall", _K, True, part).get("n", 0) for part in parts}
    by_part = {
        name: [figures.values("recall", _K, True, part)[number] for part in parts] for number, name in enumerate(names)
    }
    curves = {
        name: [figures.row(number, "recall", k, True).get("value") for k in lengths]
        for number, name in enumerate(names)
    }
    return [
        Chart("Recall@10", "The whole catalogue is ranked; one target a case. Whiskers: 95%, people resampled.", recall),
        Chart("NDCG@10", "The same with the place in the list counting.", _named(_bar(names, both("ndcg"), "", ""))),
        Chart("Recall@10 by popularity of the target",
              "Head: the items with half of all training interactions. Mid: the next 40%. Tail: the rest. Cold: none at all. Seen items masked.",
              by_system(_bar([f"{part}\n{sizes[part]:,} cases" for part in parts], by_part, "", "")), wide=True),
        Chart("Recall by length of the list", "Seen items masked.", by_system(_line(lengths, curves, "items shown", ""))),
        Chart("Coverage and concentration", "Share of the catalogue in anybody's top ten, and the Gini index of exposure: 0 is even, 1 one item for all.",
              _named(_bar(names, {m: figures.values(m, BEYOND_K, True) for m in ("coverage", "gini")}, "", ""))),
        Chart("Novelty", "Bits of surprise of what is shown, by training popularity.",
              _named(_bar(names, {"novelty": figures.values("novelty", BEYOND_K, True)}, "", "bits"))),
    ]  # fmt: skip


def _intervals(figures: Figures, masked: bool) -> list[list[Any]]:
    rows = [figures.row(number, "recall", _K, masked) for number in range(len(figures.systems))]
    return [[n, row["low"], row["high"]] for n, row in enumerate(rows) if row.get("low") is not None]


def _semantic(model: Rankloom) -> list[Chart]:
    ids = model.semantic_ids
    report = model.tokenizer.report()
    levels = [f"level {n + 1}" for n in range(ids.n_levels)]
    used = [np.bincount(ids.codes[:, level], minlength=size) for level, size in enumerate(ids.codebook_sizes)]
    by_rank = {name: np.sort(counts)[::-1].tolist() for name, counts in zip(levels, used, strict=True)}
    _, bucket = np.unique(ids.codes, axis=0, return_counts=True)
    sizes = np.bincount(np.minimum(bucket, _FULLEST))
    last = f" The last bar is {_FULLEST} and more." if bucket.max() > _FULLEST else ""
    best = [round(float(np.log(size)), 3) for size in ids.codebook_sizes]
    left = [round(v, 4) for v in report["relative_reconstruction_error"]]
    return [
        Chart("Map of the semantic IDs", "First code, inside it the second; the area is items, the colour the commonest category. Click to go down.",
              _treemap(model), wide=True),
        Chart("Use of each code", "Items per code, the most used first; a flat line is an even codebook.",
              _line(list(range(1, max(ids.codebook_sizes) + 1)), by_rank, "code by rank", "items")),
        Chart("Collisions: items per semantic ID",
              f"{report['icr']:.1%} of the items have an ID of their own; the fullest ID names {report['largest_bucket']}.{last}",
              _bar(list(range(1, len(sizes))), {"IDs": sizes[1:].tolist()}, "items that share an ID", "IDs")),
        Chart("Codebook utilisation", f"Share of each codebook that names an item; {report['cur_total']:.2g} of all possible IDs are in use.",
              _bar(levels, {"in use": [round(v, 4) for v in report["cur"]]}, "", "", max=1)),
        Chart("Entropy of the codes", "Beside the most that a codebook of that size allows.",
              _bar(levels, {"entropy": [round(v, 3) for v in report["entropy_nats"]], "most possible": best}, "", "nats")),
        Chart("Reconstruction", "Share of the vectors' variance that is left after each level.",
              _bar([f"level {n + 1}" for n in range(len(left))], {"left over": left}, "", "")),
    ]  # fmt: skip


def _treemap(model: Rankloom) -> dict[str, Any]:
    codes = model.semantic_ids.codes
    paths = model.items["category"].to_list() if "category" in model.items.columns else [[] for _ in range(len(codes))]
    label = [path[min(1, len(path) - 1)] if path else "" for path in paths]
    place = {name: n for n, (name, _) in enumerate(Counter(name for name in label if name).most_common())}

    def common(rows: NDArray[np.intp]) -> str:
        names = Counter(label[row] for row in rows if label[row])
        return names.most_common(1)[0][0] if names else ""

    def style(name: str) -> dict[str, Any]:
        # golden-angle steps keep the hues of the largest categories apart, however many there are
        n = place.get(name)
        shade = (
            "hsl(210, 6%, 52%)" if n is None else f"hsl({n * 137.5 % 360:.0f}, {30 + n % 3 * 8}%, {40 + n % 2 * 9}%)"
        )
        return {"itemStyle": {"color": shade}}

    tree = []
    for first in np.unique(codes[:, 0]):
        rows = np.flatnonzero(codes[:, 0] == first)
        children = []
        for second in np.unique(codes[rows, 1]) if codes.shape[1] > 1 else ():
            inner = rows[codes[rows, 1] == second]
            name = common(inner)
            children.append({"name": f"{first}-{second}  {name}", "value": len(inner), **style(name)})
        name = common(rows)
        tree.append({"name": f"{first}  {name}", "value": len(rows), "children": children, **style(name)})
    gap = {"borderWidth": 1, "gapWidth": 1, "borderColor": "rgba(128,128,128,.25)"}
    return {
        "tooltip": {},
        "series": [
            {
                "type": "treemap", "name": "all items", "leafDepth": 1, "roam": False, "drillDownIcon": "", "data": tree, "top": 4, "left": 0, "right": 0, "bottom": 34,
                "itemStyle": gap, "label": {"overflow": "truncate", "color": "#fff"},
                "breadcrumb": {"show": True, "bottom": 4, "height": 22, "itemStyle": {"color": "#6b7680"}},
            }
        ],
    }  # fmt: skip


def _data(model: Rankloom) -> list[Chart]:
    shape = model.metadata.get("shape")
    charts: list[Chart] = []
    if shape:
        lengths = shape["history_lengths"]
        tail = f"; the last bar is {len(lengths) - 1} and more" if lengths[-1] else ""
        lengths = lengths[: max((n + 1 for n, people in enumerate(lengths) if people), default=1)]
        charts.append(
            Chart("Length of histories", f"Interactions of a person{tail}.",
                  _bar(list(range(len(lengths))), {"people": lengths}, "interactions", "people"))
        )  # fmt: skip
        pairs = list(zip(shape["popularity_rank"], shape["popularity_count"], strict=True))
        curve = [pair for pair in pairs if pair[1] >= 1]  # none has no place on a logarithmic axis
        untaken = " Items that nobody took are not drawn." if len(curve) < len(pairs) else ""
        charts.append(Chart("Popularity of items", f"Training interactions by rank, both axes logarithmic.{untaken}", {
            "xAxis": _axis("rank", type="log", min=1), "yAxis": _axis("interactions", type="log", min=1, nameGap=44),
            "grid": {"top": 14}, "series": [{"type": "line", "data": curve, "showSymbol": len(curve) < 3}]}))  # fmt: skip
    if "category" in model.items.columns:
        counts = Counter(path[min(1, len(path) - 1)] for path in model.items["category"].to_list() if path)
        if counts:
            names, sizes = zip(*counts.most_common(20), strict=True)
            option = _named(_bar(list(names), {"items": list(sizes)}, "", "items"), rotate=40)
            charts.append(Chart("Catalogue", "Items of the twenty largest categories.", option, wide=True))
    return charts


# -- latency -----------------------------------------------------------------------------------------------------------


def measure_latency(
    model: Rankloom, *, n: int = 200, seconds: float = 20.0, quiet: bool = False
) -> NDArray[np.float64]:
    """(at most n,) milliseconds of single requests for ten items, one after the other, for known people; at least 20, and
    no more once `seconds` have passed."""
    users = model.users or [""]
    for user in users[:3]:
        model.recommend_batch([Request(user=user, k=_K)])
    took: list[float] = []
    begin = time.perf_counter()
    for number in track(range(n), "measuring latency", unit="requests", quiet=quiet):
        started = time.perf_counter()
        model.recommend_batch([Request(user=users[number % len(users)], k=_K)])
        took.append((time.perf_counter() - started) * 1e3)
        if number >= 19 and time.perf_counter() - begin > seconds:
            break
    return np.asarray(took)


def _serving(took: NDArray[np.float64], model: Rankloom) -> Section:
    counts, edges = np.histogram(took, bins=24, range=(0, float(np.quantile(took, 0.99)) * 1.05))
    tiles = [
        (name, f"{np.quantile(took, share):.1f} ms") for name, share in (("p50", 0.5), ("p90", 0.9), ("p99", 0.99))
    ]
    tiles += [("slowest", f"{took.max():.1f} ms"), ("a second", f"{1000 / took.mean():.0f}")]
    sentence = (
        f"{len(took)} requests for {_K} items, one by one, beam {model.config.decoding.beam}, measured "
        f"{time.strftime('%Y-%m-%d %H:%M', time.gmtime())} UTC on {_processor()}, {torch.get_num_threads()} threads of {os.cpu_count()} cores, "
        "inside the program: no network, no HTTP."
    )
    option = _bar([f"{edge:.0f}" for edge in edges[:-1]], {"requests": counts.tolist()}, "milliseconds", "requests")
    chart = Chart("Latency of a request", "Requests by their time; the slowest one in a hundred is beyond the right edge.", option, wide=True)  # fmt: skip
    return Section("Serving", [chart], _facts(tiles) + f'<p class="note">{html.escape(sentence)}</p>')


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [line.split(":", 1)[1].strip() for line in cpuinfo.read_text().splitlines() if line.startswith("model name")]  # fmt: skip
        if names:
            return names[0]
    return platform.processor() or platform.machine()


# -- text --------------------------------------------------------------------------------------------------------------


def _table(figures: Figures, model: Rankloom) -> str:
    """The main figures of every system as a table, seen items as the model serves them first."""
    if not figures:
        return ""
    lengths = sorted({r["k"] for r in figures.rows if r["metric"] == "recall" and r["slice"] == "all"})
    heads = ["system", *[f"R@{k}" for k in lengths], "N@10", "MRR@10", "R@10, 95% interval", "cold R@10", "coverage"]
    out = []
    for masked in (model.mask_seen, not model.mask_seen):
        how = "masked" if masked else "allowed"
        served = " (as this model serves)" if masked == model.mask_seen else ""
        rows = []
        for number, name in enumerate(figures.names):

            def cell(metric: str, k: int = _K, part: str = "all", n: int = number, m: bool = masked) -> str:
                value = figures.row(n, metric, k, m, part).get("value")
                return "" if value is None else f"{value:.4f}"

            own = figures.row(number, "recall", _K, masked)
            interval = "" if own.get("low") is None else f"{own['low']:.4f} .. {own['high']:.4f}"
            cells = [
                *[cell("recall", k) for k in lengths], cell("ndcg"), cell("mrr"), interval, cell("recall", part="cold"), cell("coverage"),
            ]  # fmt: skip
            mark = ' class="own"' if figures.systems[number][0].startswith("rankloom") else ""
            inner = "".join(f"<td>{value}</td>" for value in cells)
            rows.append(f"<tr{mark}><th>{html.escape(name)}</th>{inner}</tr>")
        n = figures.row(0, "recall", _K, masked).get("n", 0)
        header = "".join(f"<th>{html.escape(head)}</th>" for head in heads)
        out.append(
            f'<div class="scroll"><table><caption>Seen items {how}{served}; {n:,} cases of the test part</caption>'
            f"<thead><tr>{header}</tr></thead><tbody>{''.join(rows)}</tbody></table></div>"
        )
    return "".join(out)


def _card(model: Rankloom) -> str:
    meta, config = model.metadata, model.config
    tokens = meta.get("tokenizer", {})
    network = config.model
    best = meta.get("best_validation", {})
    facts = [
        ("Version", model.model_version),
        ("Preset, seed", f"{config.preset}, {config.seed}"),
        ("Decoder", f"{network.n_layers} blocks, width {network.d_model}, {network.n_heads} heads, {meta.get('parameters', 0):,} parameters"),
        ("Experts", "none" if not network.moe_experts else f"{network.moe_experts} routed, {network.moe_top_k} at work, {network.moe_shared} shared"),
        ("History", f"the newest {network.max_history} interactions"),
        ("Item text", str(tokens.get("embedder", ""))),
        ("Codebooks", " × ".join(str(size) for size in model.semantic_ids.codebook_sizes)),
        ("Trained on", f"{meta.get('n_training_targets', 0):,} interactions of {meta.get('n_users', 0):,} people, split {meta.get('split', '')}"),
        ("Training", f"{meta.get('steps', 0):,} steps in {meta.get('training_seconds', 0) / 60:.1f} minutes; the weights are those of step {meta.get('best_step', 0):,}"),
        ("Validation", ", ".join(f"{name.removeprefix('valid_')} {value:.4f}" for name, value in best.items() if name.startswith("valid_"))),
        ("Repeats", f"{meta.get('repeat_share', 0):.1%} of the training interactions; lists {'hide' if model.mask_seen else 'may show'} what was seen"),
        ("Decoding", f"beam {config.decoding.beam}, over the {config.decoding.normalise}"),
        ("Joined by", ", ".join(f"{name.replace('_', ' ')} {value:g}" for name, value in vars(model.weights).items())),
        ("Shop", f"{meta.get('shop', {}).get('importer', '')} {meta.get('parents', {}).get('shop', '')}"),
    ]  # fmt: skip
    rows = "".join(f"<dt>{html.escape(name)}</dt><dd>{html.escape(value)}</dd>" for name, value in facts if value)
    return f"<dl>{rows}</dl>"


def _in_rows(charts: list[Chart]) -> list[Chart]:
    """The same charts, two a row; one that would stand alone in its row takes all of it."""
    out: list[Chart] = []
    alone = False
    for chart in [*charts, None]:
        if (chart is None or chart.wide) and alone:
            out[-1] = replace(out[-1], wide=True)
        alone = chart is not None and not chart.wide and not alone
        if chart is not None:
            out.append(chart)
    return out


def _facts(facts: list[tuple[str, str]]) -> str:
    tiles = "".join(f"<div><b>{html.escape(value)}</b><span>{html.escape(name)}</span></div>" for name, value in facts)
    return f'<div class="facts">{tiles}</div>'


def _render(model: Rankloom, figures: Figures, sections: list[Section]) -> str:
    echarts = (_ASSETS / "echarts.min.js").read_text(encoding="utf-8")
    style = (_ASSETS / "report.css").read_text(encoding="utf-8")
    script = (_ASSETS / "report.js").read_text(encoding="utf-8")
    meta = model.metadata
    body: list[str] = []
    options: list[dict[str, Any]] = []
    for section in sections:
        anchor = section.title.lower().replace(" ", "-")
        body.append(f'<section id="{anchor}"><h2>{html.escape(section.title)}</h2>{section.before}')
        if section.empty:
            body.append(f'<p class="missing">{html.escape(section.missing)}</p>')
        body.append('<div class="grid">')
        for chart in _in_rows(section.charts):
            wide = ' class="wide"' if chart.wide else ""
            body.append(
                f"<figure{wide}><figcaption><b>{html.escape(chart.title)}</b> {html.escape(chart.sentence)}</figcaption>"
                f'<div class="chart" id="c{len(options)}"></div></figure>'
            )
            options.append(chart.option)
        body.append("</div></section>")
    facts = [
        ("items", f"{model.trie.n_items:,}"), ("people", f"{meta.get('n_users', 0):,}"),
        ("training interactions", f"{meta.get('n_training_targets', 0):,}"), ("parameters", f"{meta.get('parameters', 0):,}"),
        ("training minutes", f"{meta.get('training_seconds', 0) / 60:.1f}"), ("split", str(meta.get("split", ""))),
    ]  # fmt: skip
    recall = figures.row(0, "recall", _K, model.mask_seen).get("value") if figures else None
    if recall is not None:
        facts.insert(0, ("recall@10 on test", f"{recall:.4f}"))
    simulated = '<p class="note"><b>Simulated.</b> The log comes from a simulated marketplace.</p>' if meta.get("simulated") else ""  # fmt: skip
    links = "".join(f'<a href="#{s.title.lower().replace(" ", "-")}">{html.escape(s.title)}</a>' for s in sections)
    data = json.dumps({"options": options, "colours": _COLOURS}, ensure_ascii=False).replace("</", "<\\/")
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>Rankloom report {html.escape(model.model_version)}</title><style>{style}</style></head>"
        f"<body><header><h1>Rankloom model <code>{html.escape(model.model_version)}</code></h1><nav>{links}</nav></header>"
        f"{simulated}{_facts(facts)}{''.join(body)}"
        f'<script>{echarts}</script><script type="application/json" id="report-data">{data}</script><script>{script}</script></body></html>'
    )
