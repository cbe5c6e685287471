"""A file that is left in the middle: the process goes on, and ends as it means to."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from rankloom.data.reading import TableFile

LEFT = """
import sys
from pathlib import Path
from rankloom.data.reading import TableFile
def refuse():
    for _ in TableFile(Path(sys.argv[1]), "csv").batches():
        raise ValueError("not this")
try:
    refuse()
except ValueError:
    sys.exit(7)  # the reader lives in the traceback until the interpreter has ended
"""


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("reading") / "items.csv"
    path.write_text("a,b,c\n" + "".join(f"{n},x{n},some words of text {n}\n" for n in range(300_000)), encoding="utf-8")
    return path


def test_a_process_that_leaves_a_file_early_has_its_own_exit_status(table: Path) -> None:
    ended = [subprocess.run([sys.executable, "-c", LEFT, str(table)], check=False).returncode for _ in range(5)]
    assert ended == [7] * 5


def test_a_closed_stream_is_not_read_any_more(table: Path) -> None:
    batches = TableFile(table, "csv").batches()
    next(batches)
    batches.close()  # type: ignore[attr-defined]
    rest = list(TableFile(table, "csv").batches())
    assert sum(batch.frame.height for batch in rest) == 300_000


