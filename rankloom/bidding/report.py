"""`rankloom bid report`: one offline HTML page with every bidder on every market and budget.

Tables of Score with its interval, then what lies behind it: value, spend, CPA, the multipliers through the day. `page` makes the
same page of rows that a benchmark measured.
"""

from __future__ import annotations

import html
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np

from rankloom.bidding.day import DayResult
from rankloom.bidding.evaluation import Row, budget_name, evaluate
from rankloom.bidding.protocol import N_TICKS, Controller, FloatArray
from rankloom.bidding.traces import MarketDay
from rankloom.files import atomic_file
from rankloom.progress import Progress

BUDGET_RATIOS: Final = (0.5, 0.75, 1.0, 1.25, 1.5)
_ASSETS = Path(__file__).resolve().parent.parent / "evaluation" / "assets"
_COLOURS: Final = (
    "#0b6e58", "#c9842b", "#3d6fb4", "#a8321f", "#7a58a5", "#6b7680", "#8a9a2b", "#d1699e", "#2aa1b8", "#9c6b30",
)  # fmt: skip
Chart = tuple[str, str, dict[str, Any]]  # title, one sentence, ECharts option


def write_report(
    days: Sequence[MarketDay],
    controllers: Sequence[Controller],
    out: str | Path,
    *,
    budget_ratios: Sequence[float] = BUDGET_RATIOS,
    bounds: bool = False,
    quiet: bool = False,
) -> Path:
    """Plays every controller on every day at every budget and writes the page."""
    rows: list[Row] = []
    paths: dict[str, list[FloatArray]] = {}

    def keep(result: DayResult) -> None:
        target_N1 = np.where(np.isfinite(result.campaigns.target_cpa_N), result.campaigns.target_cpa_N, np.nan)[:, None]
        bid_NT = result.history.multiplier_NT
        factor_NT = np.where(bid_NT > 0, bid_NT, np.nan) / target_N1
        spent_NT = np.cumsum(result.history.spend_NT, axis=1) / result.campaigns.budget_N[:, None]
        paths.setdefault(result.controller, []).append(np.stack([factor_NT, spent_NT]))

    with Progress("bidding report", total=len(controllers) * len(budget_ratios), unit="runs", quiet=quiet) as progress:
        for ratio in budget_ratios:
            shown = keep if abs(ratio - 1) < 1e-9 or len(budget_ratios) == 1 else None
            for controller in controllers:
                rows += evaluate(days, [controller], budget_ratio=ratio, keep=shown)["rows"]
                progress.advance()
            if bounds:
                rows += evaluate(days, [], budget_ratio=ratio, bounds=True)["rows"]
    through_day = {name: np.concatenate(parts, axis=1) for name, parts in paths.items()}
    out = Path(out)
    seats = sum(day.campaigns.n for day in days)
    facts = {"days": str(len(days)), "campaign days": f"{seats:,}", "bidders": str(len(controllers))}
    with atomic_file(out) as temporary:
        temporary.write_text(page(rows, through_day=through_day, facts=facts), encoding="utf-8")
    return out


def page(
    rows: Sequence[Mapping[str, Any]],
    *,
    through_day: Mapping[str, FloatArray] | None = None,
    facts: Mapping[str, str] | None = None,
    note: str = "Recorded days, one seat replaced at a time; rivals' bids stand still. Score = conversions x min{(target / CPA)^2, 1}, mean over seats.",
) -> str:
    """The page as text.

    Args:
        rows: tidy rows with `system`, `variant` (budget ...), `metric`, `value`, `market`, and `low`, `high` for Scores.
        through_day: by system (2, N, T): multiplier over target (nan where nothing was bid) and cumulated share of the budget.
    """
    variants = list(dict.fromkeys(str(row["variant"]) for row in rows))
    systems = list(dict.fromkeys(str(row["system"]) for row in rows))
    markets = list(dict.fromkeys(str(row["market"]) for row in rows))
    values = {(row["system"], row["variant"], row["metric"], row["market"]): row for row in rows}

    def value(system: str, variant: str, metric: str, market: str = "all") -> float | None:
        row = values.get((system, variant, metric, market))
        return None if row is None else round(float(row["value"]), 4)

    main = budget_name(1.0) if budget_name(1.0) in variants else variants[0]
    ranked = sorted(systems, key=lambda each: value(each, main, "score") or 0.0)
    sections = [
        ("Score", _score_table(ranked[::-1], variants, values), _score_charts(ranked, variants, markets, main, value))
    ]
    behind: list[Chart] = []
    for metric, title, sentence in (
        ("score_gamma0", "Conversions (gamma 0)", "Without any penalty: what CBD calls Value."),
        ("score_gamma5", "Score with gamma 5", "A hard penalty for CPA above the target."),
        ("utilisation", "Budget spent", "Mean share of the budget."),
        ("cpa_ratio", "CPA over target", "All spend over all that the targets allow for the conversions."),
        ("over_cpa", "Campaigns over their CPA target", "Share of campaign days."),
    ):
        series = {system: [value(system, variant, metric) for variant in variants] for system in ranked}
        behind.append(
            (title, sentence, _lines([each.removeprefix("budget ") for each in variants], series, "budget", ""))
        )
    sections.append(("Behind the Score", "", behind))
    if through_day:
        ticks = list(range(N_TICKS))
        multiplier, spent = {}, {}
        for system, path_2NT in through_day.items():
            with np.errstate(all="ignore"):
                middle = [
                    float(np.nanmedian(column)) if np.isfinite(column).any() else None for column in path_2NT[0].T
                ]
            multiplier[system] = [None if each is None else round(each, 3) for each in middle]
            spent[system] = path_2NT[1].mean(axis=0).round(4).tolist()
        sections.append(
            (
                "Through the day",
                "",
                [
                    (
                        "Multiplier over target",
                        "Median of the campaigns that still bid; 1 is alpha = C.",
                        _lines(ticks, multiplier, "tick", ""),
                    ),
                    ("Budget spent so far", "Mean over campaigns.", _lines(ticks, spent, "tick", "share")),
                ],
            )
        )
    return _render("Bidders", note, facts or {}, sections)


def _score_table(systems: Sequence[str], variants: Sequence[str], values: Mapping[Any, Mapping[str, Any]]) -> str:
    head = "".join(f"<th>{html.escape(variant.removeprefix('budget '))}</th>" for variant in variants)
    best = {
        variant: max(
            (
                float(values[s, variant, "score", "all"]["value"])
                for s in systems
                if (s, variant, "score", "all") in values
            ),
            default=0.0,
        )
        for variant in variants
    }
    lines = []
    for system in systems:
        cells = []
        for variant in variants:
            row = values.get((system, variant, "score", "all"))
            if row is None:
                cells.append("<td></td>")
                continue
            own = float(row["value"])
            text = f"{own:.1f}"
            mark = "<b>" if own >= best[variant] else "<span>"
            spread = (
                f"<small>{float(row['low']):.1f} to {float(row['high']):.1f}</small>"
                if row.get("low") is not None
                else ""
            )
            cells.append(f"<td>{mark}{text}{mark.replace('<', '</')} {spread}</td>")
        lines.append(f"<tr><th>{html.escape(system)}</th>{''.join(cells)}</tr>")
    return f"<table><tr><th>budget</th>{head}</tr>{''.join(lines)}</table>"


def _score_charts(
    ranked: Sequence[str], variants: Sequence[str], markets: Sequence[str], main: str, value: Any
) -> list[Chart]:
    x = [variant.removeprefix("budget ") for variant in variants]
    bars = _lines(
        list(ranked),
        {market: [value(system, main, "score", market) for system in ranked] for market in markets},
        "",
        "Score",
    )
    for own in bars["series"]:
        own["type"] = "bar"
    bars["yAxis"]["scale"] = False
    bars["xAxis"]["axisLabel"] = {"rotate": 30, "interval": 0}
    bars["grid"] = {"left": 62, "right": 18, "top": 34, "bottom": 96}
    return [
        (f"Score by market, {main}", "All days together, and each.", bars),
        (
            "Score by budget",
            "All days together.",
            _lines(x, {s: [value(s, v, "score") for v in variants] for s in ranked}, "budget", "Score"),
        ),
    ]


def _lines(x: list[Any], series: Mapping[str, list[Any]], x_name: str, y_name: str) -> dict[str, Any]:
    return {
        "xAxis": {"type": "category", "data": x, "name": x_name, "nameLocation": "middle", "nameGap": 28},
        "yAxis": {"type": "value", "scale": True, "name": y_name, "nameLocation": "middle", "nameGap": 44},
        "legend": {"top": 0, "type": "scroll"},
        "series": [{"type": "line", "name": n, "data": d, "showSymbol": len(x) < 12} for n, d in series.items()],
    }


def _render(
    title: str, note: str, facts: Mapping[str, str], sections: Sequence[tuple[str, str, Sequence[Chart]]]
) -> str:
    echarts = (_ASSETS / "echarts.min.js").read_text(encoding="utf-8")
    style = (_ASSETS / "report.css").read_text(encoding="utf-8")
    style += (
        "table { border-collapse:collapse; font-variant-numeric:tabular-nums; } th,td { text-align:right; padding:5px 14px 5px 0; "
        "border-bottom:1px solid var(--line); } th:first-child { text-align:left; } small { color:var(--soft); } .wide { overflow-x:auto; }"
    )
    body: list[str] = []
    options: list[dict[str, Any]] = []
    for name, above, charts in sections:
        body.append(f'<h2>{html.escape(name)}</h2><div class="wide">{above}</div><div class="grid">')
        for heading, sentence, option in charts:
            body.append(
                f"<figure><figcaption><b>{html.escape(heading)}</b> {html.escape(sentence)}</figcaption>"
                f'<div class="chart" id="c{len(options)}"></div></figure>'
            )
            plain = {
                "grid": {"left": 62, "right": 18, "top": 34, "bottom": 48},
                "tooltip": {"trigger": "axis"},
                "animation": False,
            }
            options.append(plain | option)
        body.append("</div>")
    numbers = "".join(f"<div><b>{html.escape(v)}</b><span>{html.escape(k)}</span></div>" for k, v in facts.items())
    data = json.dumps(options, ensure_ascii=False, allow_nan=False).replace("</", "<\\/")
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        f"<title>Rankloom: {html.escape(title)}</title><style>{style}</style></head><body><h1>{html.escape(title)}</h1>"
        f'<p class="missing">{html.escape(note)}</p><div class="facts">{numbers}</div>{"".join(body)}<script>{echarts}</script>'
        "<script>const dark=matchMedia('(prefers-color-scheme: dark)').matches;"
        f"const options={data};options.forEach((o,i)=>echarts.init(document.getElementById('c'+i),dark?'dark':null,{{renderer:'svg'}})"
        f".setOption({{backgroundColor:'transparent',color:{json.dumps(list(_COLOURS))},...o}}));</script></body></html>"
    )
