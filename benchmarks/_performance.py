"""`docs/performance.md` is written by the benchmarks: each owns one section, a full run replaces it, a quick one does not."""

from __future__ import annotations

import re

from _common import ROOT, Benchmark
from _report import section

PAGE = ROOT / "docs" / "performance.md"
ORDER = ("hf", "floor", "contexts")
HEAD = """# Performance

What decoding costs, in processor time: the time of all threads together, which other work on the machine disturbs less
than it does the clock. Each section is written by the last full run of its benchmark; the same checks run at a smaller count
with `--quick`, within a minute. How the server does under load: [reliability](reliability.md).
"""


def publish(bench: Benchmark, name: str, what: str, *, more: str = "") -> None:
    """Replaces the section `name`, with a table `more` after its checks; a quick run leaves the page as it is."""
    if bench.quick:
        return
    text = PAGE.read_text(encoding="utf-8") if PAGE.exists() else ""
    parts = dict(re.findall(r"<!-- (\w+) -->\n(.*?)<!-- end -->", text, re.S))
    parts[name] = section(bench, what) + (f"\n{more}" if more else "")
    body = [f"<!-- {key} -->\n{parts[key]}<!-- end -->\n" for key in ORDER if key in parts]
    PAGE.write_text("\n".join([HEAD, *body]), encoding="utf-8")
