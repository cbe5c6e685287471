"""The user guide is true: every command and every Python block on its pages runs, every link leads somewhere.

Each page gets a folder of its own that looks like the repository after `make demo`: a small simulated shop in
`demo/shop`, a tiny model in `demo/model`, trained once for all pages. Blocks of a page run in order.

A comment before a block says what it needs:

    <!-- docs-test: serve -->                      it ends in a server, which runs on a free port until the end of the page
    <!-- docs-test: source NAME FOLDER -->         a download that is not there: NAME of benchmarks/_sources.py, in FOLDER
    <!-- docs-test: file NAME -->                  the block is a file's content; it is written before the page runs
    <!-- docs-test: skip; WHY; check: COMMAND -->  it cannot run here, and COMMAND runs instead; `NOT_RUN` names these
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import chdir
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.test_benchmarks import load

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
BIN = Path(sys.prefix) / "bin"
FENCE = re.compile(
    r"^(?:<!-- docs-test: (?P<directive>.*?) -->\n)?```(?P<language>\w+)\n(?P<text>.*?)^```$", re.M | re.S
)
LINK = re.compile(r"\[[^\]]*\]\((?P<target>[^)\s]+)\)")
SERVE = re.compile(r"^\S*rankloom (?:bid )?serve .*$", re.M)
MODELS = re.compile(r"^(rankloom models (?:list|deploy|promote|rollback|stop)[^#\n]*?)(\s+#.*)?$", re.M)
PORT = 8080  # where `rankloom serve` listens when nothing is said
BLOCK_SECONDS = 300
# what the suite does not run, and what it takes; README.md and README.zh.md say so too
NOT_RUN = {
    "make\nmake demo": "a fresh machine and the network",
    "make\nmake test": "this suite itself",
    "make test": "this suite itself",
    "make bench": "an hour",
    "torchrun": "two processes for minutes; tests/training/test_distributed.py runs two for seconds",
    "rankloom bid train": "minutes; tests/bidding/test_training.py runs it for seconds",
}


@dataclass(frozen=True)
class Block:
    """A fenced block that is to run. `need` is what precedes it, as (kind, arguments)."""

    language: str
    text: str
    line: int
    need: tuple[str, ...] = ()

    @property
    def check(self) -> str | None:
        """What runs in its place."""
        return self.need[2] if self.need[:1] == ("skip",) else None


def blocks(markdown: str) -> list[Block]:
    """The bash and python blocks of a page, and those that are files.

    Raises:
        ValueError: a directive that is none of those above.
    """
    found = []
    for match in FENCE.finditer(markdown):
        directive = match["directive"] or ""
        line = markdown.count("\n", 0, match.start("text")) + 1
        skip = re.fullmatch(r"(skip); (.+); check: (.+)", directive)
        need = skip.groups() if skip else tuple(directive.split())
        if need and (need[0], len(need)) not in (("skip", 3), ("serve", 1), ("source", 3), ("file", 2)):
            raise ValueError(f"line {line}: no such directive: {directive}")
        if match["language"] in ("bash", "python") or need[:1] == ("file",):
            found.append(Block(match["language"], match["text"], line, need))
    return found


def environment() -> dict[str, str]:
    """The program first on the path; one thread; a curl that fails where the server refuses."""
    return {
        **os.environ,
        "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
        "OMP_NUM_THREADS": "1",
        "MAKEFLAGS": "",
        "COLUMNS": "120",
        "CURL_HOME": str(ROOT / "tests" / "fixtures"),
        "PYTHONUNBUFFERED": "1",
    }


def on_free_port(text: str) -> tuple[str, int]:
    """A block that ends in a server, so that it takes a free port; and the port that it names."""
    line = SERVE.search(text)
    assert line is not None, f"no server in {text}"
    port = re.search(r" --port (\d+)", line[0])
    without = line[0] if port is None else line[0].replace(port[0], "")
    return f"{text[: line.start()]}exec {without} --port 0", PORT if port is None else int(port[1])


class Server:
    """What a block starts and the rest of its page talks to: on a free port, in place of the one that the page names."""

    def __init__(self, text: str, folder: Path) -> None:
        command, self.named = on_free_port(text)
        self.log = folder / "server.log"
        with open(self.log, "wb") as log:
            self.process = subprocess.Popen(
                ["bash", "-euo", "pipefail", "-c", command], cwd=folder, env=environment(), stdin=subprocess.DEVNULL,
                stdout=log, stderr=log,
            )  # fmt: skip
        end = time.monotonic() + BLOCK_SECONDS
        while (address := re.search(r"open http://127.0.0.1:(\d+)/", self.said())) is None:
            assert self.process.poll() is None, self.said()
            assert time.monotonic() < end, self.said()
            time.sleep(0.05)
        self.port = int(address[1])

    def said(self) -> str:
        return self.log.read_text(encoding="utf-8", errors="replace")

    def addressed(self, text: str) -> str:
        """A block with the port that is true here."""
        text = MODELS.sub(rf"\1 --server http://127.0.0.1:{self.port}\2", text)
        return re.sub(rf"\b(localhost|127\.0\.0\.1):{self.named}\b", rf"\1:{self.port}", text)

    def stop(self) -> None:
        """It ends as it should when it is asked to."""
        self.process.send_signal(signal.SIGTERM)
        assert self.process.wait(60) in (0, -signal.SIGTERM), self.said()
        assert "Traceback" not in self.said(), self.said()


def shell(command: str, folder: Path, *, timeout: float = BLOCK_SECONDS) -> subprocess.CompletedProcess[str]:
    """Runs `command` in bash, in `folder`, with the program first on the path."""
    return subprocess.run(
        ["bash", "-euo", "pipefail", "-c", command],
        cwd=folder,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=timeout,
        stdin=subprocess.DEVNULL,
    )


@pytest.fixture(scope="session")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder like `demo/` after `make demo`, small: the bazaar at a twentieth and a tiny model."""
    from rankloom import Rankloom
    from rankloom.simulation import generate_bazaar

    folder = tmp_path_factory.mktemp("docs") / "demo"
    generate_bazaar(folder / "shop", seed=0, scale=0.05, quiet=True)
    run = shell("rankloom train shop --out model --preset tiny --set training.max_epochs=1", folder)
    assert run.returncode == 0, run.stderr
    for number in (2, 3):  # further versions for a server to deploy
        other = Rankloom.from_pretrained(folder / "model")
        other.metadata["note"] = str(number)
        other.save_pretrained(folder / f"model-{number}")
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
    own = blocks(page.read_text(encoding="utf-8"))
    if shutil.which("curl") is None and any(block.text.startswith("curl ") for block in own):
        pytest.skip("this machine has no curl")
    for block in own:
        if block.need[:1] == ("file",):
            (sandbox / block.need[1]).write_text(block.text, encoding="utf-8")
        if block.need[:1] == ("source",):
            load("_sources").write(block.need[1], sandbox / block.need[2])
    namespace: dict[str, Any] = {"__name__": "docs"}
    server: Server | None = None
    try:
        for block in own:
            place = f"{page.name}:{block.line}"
            if block.need == ("serve",):
                if server is not None:
                    server.stop()
                server = Server(block.text, sandbox)
                asked = shell(f"curl localhost:{server.port}/readyz localhost:{server.port}/", sandbox)
                assert asked.returncode == 0, f"{place}\n{server.said()}\n{asked.stderr}"
                refused = shell(f"curl localhost:{server.port}/nothing", sandbox)
                assert refused.returncode == 22, "a page's curl has to fail where the server refuses"
            elif block.language == "bash":
                command = block.check or (block.text if server is None else server.addressed(block.text))
                run = shell(command, sandbox)
                assert run.returncode == 0, f"{place}\n{command}\n{run.stdout}\n{run.stderr}"
                assert "Traceback" not in run.stderr, f"{place}\n{run.stderr}"
            elif block.language == "python":
                with chdir(sandbox):
                    exec(compile(block.text, place, "exec"), namespace)
        if server is not None:
            server.stop()
    finally:
        if server is not None:
            server.process.kill()
            server.process.wait()


def test_what_the_suite_does_not_run_is_named() -> None:
    skipped = [block for page in PAGES for block in blocks(page.read_text(encoding="utf-8")) if block.check]
    unnamed = [block.text for block in skipped if not block.text.startswith(tuple(NOT_RUN))]
    assert unnamed == []
    texts = [block.text for block in skipped]
    assert [name for name in NOT_RUN if not any(text.startswith(name) for text in texts)] == []
    for readme in ("README.md", "README.zh.md"):
        told = next(line for line in (ROOT / readme).read_text(encoding="utf-8").split("\n\n") if "`torchrun`" in line)
        assert all(f"`{name}`" in told for name in ("make", "make demo", "make test", "make bench", "rankloom bid train"))


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
        "<!-- docs-test: skip; it takes an hour; check: rankloom train --help -->\n```bash\nrankloom train s\n```\n"
        "```yaml\na: 1\n```\n<!-- docs-test: file x.yaml -->\n```yaml\nb: 1\n```\n```python\nx = 1\n```\n"
    )
    shown, skipped, file, python = blocks(page)
    assert (shown.text, shown.line, shown.check) == ("rankloom --help\n", 3, None)
    assert (skipped.need[1], skipped.check) == ("it takes an hour", "rankloom train --help")
    assert (file.need, file.text) == (("file", "x.yaml"), "b: 1\n")
    assert python.language == "python"
    for wrong in ("skip", "serves", "source x", "file"):
        with pytest.raises(ValueError, match="line 3"):
            blocks(f"<!-- docs-test: {wrong} -->\n```bash\nfalse\n```\n")


def test_a_page_talks_to_the_server_that_runs() -> None:
    assert on_free_port("cd x\nrankloom serve m --port 80 --log json\n") == ("cd x\nexec rankloom serve m --log json --port 0", 80)
    assert on_free_port("rankloom bid serve mpc") == ("exec rankloom bid serve mpc --port 0", PORT)
    server = Server.__new__(Server)
    server.named, server.port = 8080, 4711
    assert server.addressed("curl localhost:8080/v1/x localhost:80801") == "curl localhost:4711/v1/x localhost:80801"
    told = server.addressed("rankloom models deploy b --shadow   # unseen\nrankloom models list\n")
    assert told == (
        "rankloom models deploy b --shadow --server http://127.0.0.1:4711   # unseen\n"
        "rankloom models list --server http://127.0.0.1:4711\n"
    )


def test_a_failing_command_in_the_middle_of_a_block_fails_it(tmp_path: Path) -> None:
    assert shell("false\ntrue", tmp_path).returncode != 0
    assert shell("false | cat", tmp_path).returncode != 0
    assert shell("echo $((1 + 1))", tmp_path).stdout == "2\n"
