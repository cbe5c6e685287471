"""`docs/reliability.md` is written by the benchmarks: each owns one section, a full run replaces it, a quick one does not."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from pathlib import Path

from _common import ROOT, Benchmark, machine

PAGE = ROOT / "docs" / "reliability.md"
ORDER = ("crash", "swap", "load", "latency", "fuzz")
HEAD = """# Reliability

What the server was put through, and what it lost. Each section is written by the last full run of its benchmark; the same
checks run at a smaller count with `--quick`, within a minute. How to run the server: [serving](serving.md).
"""


def section(bench: Benchmark, what: str) -> str:
    """The checks of a run as a table, with what was done and on what."""
    own = machine()
    lines = [
        f"## {bench.name}",
        "",
        f"{what}. `python benchmarks/{bench.name}.py`, {datetime.now(UTC):%Y-%m-%d}, {own['cores']} cores of {own['processor']}.",
        "",
        "| check | measured | asked | |",
        "|---|---|---|---|",
    ]
    for check in bench.checks:
        value = f"{check['value']:,}" if isinstance(check["value"], (int, float)) else str(check["value"])
        lines.append(f"| {check['name']} | {value} | {check['target']} | {'holds' if check['ok'] else '**missed**'} |")
    return "\n".join(lines) + "\n"


def publish(bench: Benchmark, name: str, what: str, *, page: Path = PAGE) -> None:
    """Replaces the section `name`; a quick run leaves the page as it is."""
    if bench.quick:
        return
    text = page.read_text(encoding="utf-8") if page.exists() else ""
    parts = dict(re.findall(r"<!-- (\w+) -->\n(.*?)<!-- end -->", text, re.S))
    parts[name] = section(bench, what)
    body = [f"<!-- {key} -->\n{parts[key]}<!-- end -->\n" for key in ORDER if key in parts]
    page.write_text("\n".join([HEAD, *body]), encoding="utf-8")
