"""The user guide is true: every command and every Python block on its pages runs, every link leads somewhere.

Each page gets a folder of its own that looks like the repository after `make demo`: a small simulated shop in
`demo/shop`, a tiny model in `demo/model`, trained once for all pages. Blocks of a page run in order.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import chdir
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
BIN = Path(sys.prefix) / "bin"
FENCE = re.compile(
    r"^(?:<!-- docs-test: (?P<directive>.*?) -->\n)?```(?P<language>\w+)\n(?P<text>.*?)^```$", re.M | re.S
)
LINK = re.compile(r"\[[^\]]*\]\((?P<target>[^)\s]+)\)")
BLOCK_SECONDS = 300


@dataclass(frozen=True)
class Block:
    """A fenced block that is to run. `skip` says why it cannot; `check` runs in its place."""

    language: str
    text: str
    line: int
    skip: str | None = None
    check: str | None = None


def blocks(markdown: str) -> list[Block]:
    """The bash and python blocks of a page.

    Raises:
        ValueError: a directive that is not `skip; WHY; check: COMMAND`.
    """
    found = []
    for match in FENCE.finditer(markdown):
        if match["language"] not in ("bash", "python"):
            continue
        line = markdown.count("\n", 0, match.start("text")) + 1
        skip = check = None
        if match["directive"]:
            parts = re.fullmatch(r"skip; (?P<why>.+); check: (?P<check>.+)", match["directive"])
            if parts is None:
                raise ValueError(f"line {line}: a directive reads `skip; WHY; check: COMMAND`")
            skip, check = parts["why"], parts["check"]
        found.append(Block(match["language"], match["text"], line, skip, check))
    return found


def shell(command: str, folder: Path, *, timeout: float = BLOCK_SECONDS) -> subprocess.CompletedProcess[str]:
    """Runs `command` in bash, in `folder`, with the program first on the path."""
    environment = {
        **os.environ,
        "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
        "OMP_NUM_THREADS": "1",
        "MAKEFLAGS": "",
        "COLUMNS": "120",
    }
    return subprocess.run(
        ["bash", "-euo", "pipefail", "-c", command],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=timeout,
        stdin=subprocess.DEVNULL,
    )


@pytest.fixture(scope="session")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder like `demo/` after `make demo`, small: the bazaar at a twentieth and a tiny model."""
    from rankloom.simulation import generate_bazaar

    folder = tmp_path_factory.mktemp("docs") / "demo"
    generate_bazaar(folder / "shop", seed=0, scale=0.05, quiet=True)
    run = shell("rankloom train shop --out model --preset tiny --set training.max_epochs=1", folder)
    assert run.returncode == 0, run.stderr
    return folder


@pytest.fixture
def sandbox(demo: Path, tmp_path: Path) -> Path:
    """A folder that looks like the repository with its environment and its demo."""
    for name in ("docs", "tools", "benchmarks", "Makefile", "pyproject.toml", "requirements.lock"):
        os.symlink(ROOT / name, tmp_path / name)
    os.symlink(sys.prefix, tmp_path / ".venv")
    shutil.copytree(demo, tmp_path / "demo")
    return tmp_path


@pytest.mark.slow
@pytest.mark.parametrize(
    "page", [page for page in PAGES if blocks(page.read_text(encoding="utf-8"))], ids=lambda page: page.name
)
def test_every_block_of_the_page_runs(page: Path, sandbox: Path) -> None:
    namespace: dict[str, Any] = {"__name__": "docs"}
    for block in blocks(page.read_text(encoding="utf-8")):
        place = f"{page.name}:{block.line}"
        if block.language == "bash":
            run = shell(block.check or block.text, sandbox)
            assert run.returncode == 0, f"{place}\n{block.check or block.text}\n{run.stdout}\n{run.stderr}"
            assert "Traceback" not in run.stderr, f"{place}\n{run.stderr}"
        else:
            with chdir(sandbox):
                exec(compile(block.text, place, "exec"), namespace)


def linked_pages() -> Iterator[Path]:
    yield from PAGES
    yield ROOT / "README.zh.md"


@pytest.mark.parametrize("page", linked_pages(), ids=lambda page: page.name)
def test_every_relative_link_leads_to_a_file(page: Path) -> None:
    targets = [match["target"].partition("#")[0] for match in LINK.finditer(page.read_text(encoding="utf-8"))]
    missing = [t for t in targets if t and "://" not in t and not (page.parent / t).exists()]
    assert not missing


def test_every_page_is_in_the_index() -> None:
    index = (ROOT / "docs" / "index.md").read_text(encoding="utf-8")
    assert not [page.name for page in (ROOT / "docs").glob("*.md") if page.stem != "index" and page.name not in index]


def test_the_chinese_readme_mirrors_the_english_one() -> None:
    english, chinese = ((ROOT / name).read_text(encoding="utf-8") for name in ("README.md", "README.zh.md"))

    def outline(text: str) -> tuple[list[int], list[tuple[str, str]], list[str]]:
        headings = [len(line) - len(line.lstrip("#")) for line in text.splitlines() if re.match(r"#+ ", line)]
        code = [(block.language, block.text) for block in blocks(text)]
        return headings, code, sorted(match["target"] for match in LINK.finditer(text))

    assert outline(chinese) == outline(english)


def test_the_readme_opens_with_two_commands_and_a_picture() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    first = blocks(text)[0]
    assert first.text.splitlines() == ["make", "make demo"]
    assert text.index("docs/images/console.png") < 400


def test_the_table_of_settings_is_current() -> None:
    sys.path.insert(0, str(ROOT / "tools"))
    try:
        import config_docs
    finally:
        sys.path.pop(0)
    text = config_docs.PAGE.read_text(encoding="utf-8")
    assert text == config_docs.page(text), "run `make docs`"


def test_the_command_page_names_every_verb() -> None:
    run = shell("rankloom --help", ROOT)
    assert run.returncode == 0, run.stderr
    verbs = set(re.findall(r"^[│\s]+([a-z]+)\s{2,}\S", run.stdout.partition("Commands")[2], re.M))
    assert {"demo", "import", "validate", "train", "evaluate", "recommend", "search", "serve", "report"} <= verbs
    page = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")
    assert not [verb for verb in verbs if f"rankloom {verb}" not in page]


def test_blocks_are_found_with_their_directives() -> None:
    page = (
        "text\n```bash\nrankloom --help\n```\n\n"
        "<!-- docs-test: skip; it serves; check: rankloom serve --help -->\n```bash\nrankloom serve m\n```\n"
        "```yaml\na: 1\n```\n```python\nx = 1\n```\n"
    )
    shown, served, python = blocks(page)
    assert (shown.text, shown.line, shown.check) == ("rankloom --help\n", 3, None)
    assert (served.skip, served.check) == ("it serves", "rankloom serve --help")
    assert python.language == "python"
    with pytest.raises(ValueError, match="line 3"):
        blocks("<!-- docs-test: skip -->\n```bash\nfalse\n```\n")


def test_a_failing_command_in_the_middle_of_a_block_fails_it(tmp_path: Path) -> None:
    assert shell("false\ntrue", tmp_path).returncode != 0
    assert shell("false | cat", tmp_path).returncode != 0
    assert shell("echo $((1 + 1))", tmp_path).stdout == "2\n"
