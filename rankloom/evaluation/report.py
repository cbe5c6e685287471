"""`rankloom report`: one offline HTML file about a model, with the plots people look for.

Everything is read from the model folder (and `evaluation.json` beside it, if `rankloom evaluate --out` or the demo wrote
one); decoding latency is measured while the report is made. A section without its input says which command makes it.
"""

from __future__ import annotations

import html
import json
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from rankloom import model_folder
from rankloom.files import atomic_file, read_json
from rankloom.recommender import Rankloom, Request

_ASSETS = Path(__file__).parent / "assets"
Chart = tuple[str, str, dict[str, Any]]  # title, one sentence, ECharts option


def write_report(model_path: Path, out: Path) -> Path:
    """Renders the report of a model folder.

    Raises:
        RankloomError: the folder is broken.
    """
    model = Rankloom.from_pretrained(model_path)
    log_path = model_path / model_folder.LOG
    log = [json.loads(line) for line in log_path.read_text(encoding="utf-8").splitlines()] if log_path.exists() else []
    evaluation_path = next(
        (p for p in (model_path / "evaluation.json", model_path.parent / "evaluation.json") if p.exists()), None
    )
    evaluation = read_json(evaluation_path) if evaluation_path else None
    sections = [
        ("Training", _training(log), "train the model again"),
        ("Quality", _quality(evaluation), "run: rankloom evaluate MODEL SHOP --baselines --out evaluation.json"),
        ("Semantic IDs", _semantic(model), ""),
        ("Data", _data(model), ""),
        ("Serving", _latency(model), ""),
    ]
    with atomic_file(out) as temporary:
        temporary.write_text(_render(model, sections), encoding="utf-8")
    return out


def _axis(name: str, **more: Any) -> dict[str, Any]:
    return {"name": name, "nameLocation": "middle", "nameGap": 28, **more}


def _line(x: list[Any], series: dict[str, list[Any]], x_name: str, y_name: str, **y: Any) -> dict[str, Any]:
    return {
        "xAxis": _axis(x_name, type="category", data=x), "yAxis": _axis(y_name, type="value", scale=True, nameGap=44, **y),
        "legend": {"top": 0}, "series": [{"type": "line", "name": n, "data": d, "showSymbol": False} for n, d in series.items()],
    }  # fmt: skip


def _bar(x: list[Any], series: dict[str, list[Any]], x_name: str, y_name: str, **y: Any) -> dict[str, Any]:
    option = _line(x, series, x_name, y_name, **y)
    for own in option["series"]:
        own["type"] = "bar"
    option["yAxis"]["scale"] = False
    return option


def _training(log: list[dict[str, Any]]) -> list[Chart]:
    if not log:
        return []
    x = [round(r["epoch"], 1) for r in log]

    def column(name: str) -> list[float]:
        return [round(float(r.get(name, 0.0)), 5) for r in log]

    return [
        ("Generation loss", "Mean over the codes, in nats; a gap that widens is overfitting.",
         _line(x, {"training": column("generation_loss"), "validation": column("valid_generation_loss")}, "epoch", "nats")),
        ("Selection loss", "Cross-entropy of the target item; training is against sampled items, so only the shape compares.",
         _line(x, {"training": column("selection_loss"), "validation": column("valid_selection_loss")}, "epoch", "nats")),
        ("Validation ranking", "What chose the checkpoint: the selection head over the whole catalogue.",
         _line(x, {"N@10": column("valid_ndcg@10"), "R@10": column("valid_recall@10")}, "epoch", "share")),
        ("Speed", "Targets a second between evaluations.", _line(x, {"targets/s": column("targets_per_second")}, "epoch", "targets/s")),
    ]  # fmt: skip


def _quality(evaluation: dict[str, Any] | None) -> list[Chart]:
    if not evaluation:
        return []
    rows = evaluation["rows"]
    systems = list(dict.fromkeys(r["system"] for r in rows))

    def value(system: str, metric: str, k: int, masked: bool, cut: str = "all") -> float | None:
        return next(
            (
                round(r["value"], 5)
                for r in rows
                if (r["system"], r["metric"], r["k"], r["masked"], r["slice"]) == (system, metric, k, masked, cut)
            ),
            None,
        )

    charts: list[Chart] = []
    for metric in ("recall", "ndcg"):
        series: dict[str, list[Any]] = {
            name: [value(s, metric, 10, masked) for s in systems]
            for name, masked in (("seen items masked", True), ("seen items allowed", False))
        }
        charts.append(
            (
                f"{metric.upper() if metric == 'ndcg' else 'Recall'}@10 by system",
                "Whole catalogue ranked, one target a case.",
                _bar(systems, series, "", metric),
            )
        )
    ks = sorted({r["k"] for r in rows if r["metric"] == "recall"})
    charts.append(
        (
            "Recall by list length",
            "Seen items masked.",
            _line(ks, {s: [value(s, "recall", k, True) for k in ks] for s in systems}, "k", "recall"),
        )
    )
    cuts = ["head", "mid", "tail", "cold", "cold<=3"]
    charts.append(("Recall@10 by popularity of the target", "Head: half of all training interactions; cold: none.",
                   _bar(cuts, {s: [value(s, "recall", 10, True, c) for c in cuts] for s in systems}, "", "recall")))  # fmt: skip
    charts.append(("Coverage and concentration", "Share of the catalogue in anybody's top ten, and the Gini index of exposure.",
                   _bar(systems, {m: [value(s, m, 10, True) for s in systems] for m in ("coverage", "gini")}, "", "share")))  # fmt: skip
    charts.append(
        (
            "Novelty",
            "Bits of surprise of what is shown; popularity alone is the floor.",
            _bar(systems, {"novelty": [value(s, "novelty", 10, True) for s in systems]}, "", "bits"),
        )
    )
    return charts


def _semantic(model: Rankloom) -> list[Chart]:
    ids = model.semantic_ids
    report = model.tokenizer.report()
    charts: list[Chart] = []
    series = {
        f"level {level + 1}": np.sort(np.bincount(ids.codes[:, level], minlength=size))[::-1].tolist()
        for level, size in enumerate(ids.codebook_sizes)
    }
    charts.append(
        (
            "Use of each code",
            "Items per code, most used first; a flat line is an even codebook.",
            _line(list(range(1, max(ids.codebook_sizes) + 1)), series, "code by rank", "items"),
        )
    )
    _, bucket = np.unique(ids.codes, axis=0, return_counts=True)
    sizes = np.bincount(np.minimum(bucket, 20))
    charts.append(
        (
            "Items per semantic ID",
            model.tokenizer.summary().split("; ")[1] + ".",
            _bar(list(range(1, len(sizes))), {"IDs": sizes[1:].tolist()}, "items that share an ID", "IDs"),
        )
    )
    levels = [f"level {n + 1}" for n in range(ids.n_levels)]
    charts.append(("Codebook utilisation (CUR)", f"Share of each codebook that names an item; {report['cur_total']:.2g} of all possible IDs are in use.",
                   _bar(levels, {"in use": [round(v, 4) for v in report["cur"]]}, "", "share")))  # fmt: skip
    best = [round(float(np.log(size)), 3) for size in ids.codebook_sizes]
    charts.append(("Entropy of the codes", "Against the most a codebook of that size allows.",
                   _bar(levels, {"entropy": [round(v, 3) for v in report["entropy_nats"]], "ln K": best}, "", "nats")))  # fmt: skip
    charts.append(("Reconstruction", "Share of the vectors' variance that is left after each level.",
                   _bar([f"level {n + 1}" for n in range(len(report["relative_reconstruction_error"]))],
                        {"left over": [round(v, 4) for v in report["relative_reconstruction_error"]]}, "", "share")))  # fmt: skip
    charts.append(
        ("Map of the semantic IDs", "First code, then second; area is items. Click to go down.", _treemap(model))
    )
    return charts


def _treemap(model: Rankloom) -> dict[str, Any]:
    codes = model.semantic_ids.codes
    paths = model.items["category"].to_list() if "category" in model.items.columns else [[] for _ in range(len(codes))]
    overall = Counter(path[min(1, len(path) - 1)] for path in paths if path)
    top = [name for name, _ in overall.most_common(12)]
    tree = []
    for first in np.unique(codes[:, 0]):
        rows = np.flatnonzero(codes[:, 0] == first)
        kinds = Counter(paths[row][min(1, len(paths[row]) - 1)] for row in rows if paths[row])
        name = kinds.most_common(1)[0][0] if kinds else ""
        hue = top.index(name) * 360 // max(1, len(top)) if name in top else 0
        color = f"hsl({hue}, {45 if name in top else 0}%, 52%)"
        seconds = np.unique(codes[rows, 1], return_counts=True)
        children = [{"name": f"{first}-{second}", "value": int(n)} for second, n in zip(*seconds, strict=True)]
        tree.append(
            {"name": f"{first} {name}", "value": len(rows), "itemStyle": {"color": color}, "children": children}
        )
    return {
        "tooltip": {},
        "series": [{"type": "treemap", "leafDepth": 1, "roam": False, "data": tree, "breadcrumb": {"show": True}}],
    }


def _data(model: Rankloom) -> list[Chart]:
    shape = model.metadata.get("shape")
    charts: list[Chart] = []
    if shape:
        charts.append(
            (
                "Length of histories",
                "Interactions per person; the last bar is 60 and more.",
                _bar(list(range(61)), {"people": shape["history_lengths"]}, "interactions", "people"),
            )
        )
        curve = [
            [max(r, 1), max(c, 0.5)] for r, c in zip(shape["popularity_rank"], shape["popularity_count"], strict=True)
        ]
        charts.append(("Popularity of items", "Training interactions by rank, both axes logarithmic.", {
            "xAxis": _axis("rank", type="log"), "yAxis": _axis("interactions", type="log", nameGap=44),
            "series": [{"type": "line", "data": curve, "showSymbol": False}]}))  # fmt: skip
    if "category" in model.items.columns:
        counts = Counter(path[min(1, len(path) - 1)] for path in model.items["category"].to_list() if path).most_common(
            20
        )
        if counts:
            charts.append(
                (
                    "Catalogue",
                    "Items of the twenty largest categories.",
                    _bar([n for n, _ in counts], {"items": [c for _, c in counts]}, "", "items"),
                )
            )
    return charts


def _latency(model: Rankloom, n: int = 60) -> list[Chart]:
    users = model.users[:n] or [""]
    seconds = []
    for user in [users[0], *users]:
        started = time.perf_counter()
        model.recommend_batch([Request(user=user, k=10)])
        seconds.append((time.perf_counter() - started) * 1e3)
    own = np.sort(seconds[1:])
    bins = np.histogram(own, bins=20)
    text = f"{len(own)} requests one by one, beam {model.config.decoding.beam}: p50 {np.quantile(own, 0.5):.1f} ms, p95 {np.quantile(own, 0.95):.1f} ms on this machine."
    return [
        (
            "Latency of a request",
            text,
            _bar([f"{edge:.1f}" for edge in bins[1][:-1]], {"requests": bins[0].tolist()}, "ms", "requests"),
        )
    ]


def _render(model: Rankloom, sections: list[tuple[str, list[Chart], str]]) -> str:
    echarts = (_ASSETS / "echarts.min.js").read_text(encoding="utf-8")
    style = (_ASSETS / "report.css").read_text(encoding="utf-8")
    meta = model.metadata
    body: list[str] = []
    options: list[dict[str, Any]] = []
    for title, charts, missing in sections:
        body.append(f"<h2>{html.escape(title)}</h2>")
        if not charts:
            body.append(f'<p class="missing">No data for this section; {html.escape(missing)}</p>')
        body.append('<div class="grid">')
        for name, sentence, option in charts:
            body.append(
                f'<figure><figcaption><b>{html.escape(name)}</b> {html.escape(sentence)}</figcaption><div class="chart" id="c{len(options)}"></div></figure>'
            )
            options.append(
                {
                    "grid": {"left": 62, "right": 18, "top": 34, "bottom": 48},
                    "tooltip": {"trigger": "axis"},
                    "animation": False,
                    **option,
                }
            )
        body.append("</div>")
    facts = [
        ("items", f"{model.trie.n_items:,}"), ("people", f"{meta.get('n_users', 0):,}"), ("training interactions", f"{meta.get('n_training_targets', 0):,}"),
        ("parameters", f"{meta.get('parameters', 0):,}"), ("training minutes", f"{meta.get('training_seconds', 0) / 60:.1f}"), ("split", str(meta.get("split", ""))),
    ]  # fmt: skip
    numbers = "".join(
        f"<div><b>{html.escape(value)}</b><span>{html.escape(name)}</span></div>" for name, value in facts
    )
    simulated = '<p class="missing">The log is simulated.</p>' if meta.get("simulated") else ""
    data = json.dumps(options, ensure_ascii=False).replace("</", "<\\/")
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>Rankloom report</title>'
        f"<style>{style}</style></head><body><h1>Rankloom model {html.escape(model.model_version)}</h1>{simulated}<div class='facts'>{numbers}</div>"
        f"{''.join(body)}<script>{echarts}</script><script>const dark=matchMedia('(prefers-color-scheme: dark)').matches;"
        f"const options={data};options.forEach((o,i)=>echarts.init(document.getElementById('c'+i),dark?'dark':null,{{renderer:'svg'}})"
        f".setOption({{backgroundColor:'transparent',color:['#0b6e58','#c9842b','#3d6fb4','#a8321f','#7a58a5','#6b7680','#8a9a2b'],...o}}));</script></body></html>"
    )
