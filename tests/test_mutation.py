"""The mutation benchmark catches what tests can see, and says what they cannot."""

from __future__ import annotations

import ast
import json
from pathlib import Path

import pytest

from tests.test_benchmarks import load

mutants = load("_mutants")
mutation = load("mutation")

SOURCE = '''
"""Not mutated: 1 + 1."""
from typing import Protocol

LIMIT: int = 5000

class Shape(Protocol):
    size: int = 3
    def area(self) -> int: ...

def clip(x: int, low: int = 0, *, strict: bool = False) -> int:
    """Nor this."""
    if x < low and not strict:
        raise RankloomError(f"{x} is below {low - 1}", place="a" + "b")
    values = [-1]
    values.append(x)
    for value in values:
        if value == 3:
            break
    return x + low
'''


def found(operator: str) -> set[tuple[str, str]]:
    return {(m.before, m.after) for m in mutants.mutants(SOURCE) if m.operator == operator}


def test_each_operator_makes_its_fault() -> None:
    assert found("comparison") == {("x < low", "x <= low"), ("value == 3", "value != 3")}
    assert found("boolean") == {("x < low and (not strict)", "x < low or not strict")}
    assert found("arithmetic") == {("x + low", "x - low")}
    assert found("number") == {("5000", "10000"), ("0", "1"), ("1", "2"), ("3", "4")}
    assert found("truth value") == {("False", "True")}
    assert found("dropped sign") == {("not strict", "strict"), ("-1", "1")}
    assert found("negated condition") == {
        ("x < low and (not strict)", "not (x < low and (not strict))"),
        ("value == 3", "not value == 3"),
    }
    assert found("returned value") == {("return x + low", "return None")}
    assert found("removed call") == {("values.append(x)", "pass")}
    assert {after for _, after in found("removed raise")} == {"pass"}
    assert found("loop") == {("break", "continue")}


def test_text_messages_annotations_and_protocols_are_left_alone() -> None:
    for mutant in mutants.mutants(SOURCE):
        tree = ast.parse(mutants.apply(SOURCE, mutant.index))
        assert ast.get_docstring(tree) == "Not mutated: 1 + 1."
        protocol = next(node for node in tree.body if isinstance(node, ast.ClassDef))
        assert "size: int = 3" in ast.unparse(protocol)


def test_every_mutant_differs_from_the_source_and_from_the_others() -> None:
    original = ast.unparse(ast.parse(SOURCE)) + "\n"
    all_mutants = mutants.mutants(SOURCE)
    texts = [mutants.apply(SOURCE, mutant.index) for mutant in all_mutants]
    assert original not in texts
    # a negated comparison may equal the swapped one; text for text they differ
    assert len(set(texts)) == len(texts)
    with pytest.raises(IndexError):
        mutants.apply(SOURCE, len(all_mutants))


def test_the_statement_lines_of_a_condition_are_its_header() -> None:
    source = "def f(x):\n    if (x\n            > 0):\n        return 2\n"
    condition = next(m for m in mutants.mutants(source) if m.operator == "comparison")
    assert (condition.first_line, condition.last_line) == (2, 3)


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package with one tested, one half-tested and one untested function, and a test that always fails."""
    root = tmp_path / "project"
    (root / "rankloom" / "data").mkdir(parents=True)
    (root / "tests" / "data").mkdir(parents=True)
    for folder in ("rankloom", "rankloom/data", "tests", "tests/data"):
        (root / folder / "__init__.py").write_text("")
    (root / "pyproject.toml").write_text("[tool.pytest.ini_options]\naddopts = ''\n")
    (root / "rankloom" / "data" / "sums.py").write_text(
        "def add(a, b):\n    return a + b\n\n\ndef untested(a):\n    return a * 7\n\n\n"
        "def shallow(a):\n    return a > 3\n\n\ndef endless(n):\n    while n > 0:\n        n -= 1\n    return n\n"
    )
    (root / "tests" / "data" / "test_sums.py").write_text(
        "from rankloom.data.sums import add, shallow, endless\n\n"
        "def test_add():\n    assert add(2, 3) == 5\n\n"
        "def test_shallow():\n    assert shallow(9)\n\n"
        "def test_endless():\n    assert endless(2) == 0\n\n"
        "def test_broken():\n    assert add(1, 1) == 3\n"
    )
    monkeypatch.setattr(mutation, "ROOT", root)
    return root


def test_faults_are_caught_by_the_tests_that_run_them(
    project: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = mutation.baseline(["data"])
    assert base["failing"] == ["tests/data/test_sums.py::test_broken"]
    file = "rankloom/data/sums.py"
    source = (project / file).read_text()
    by_text = {(m.operator, m.before): m for m in mutants.mutants(source)}
    tree = mutation.copy_tree(tmp_path / "tree")

    def outcome(operator: str, before: str) -> str:
        return str(mutation.meet(tree, file, by_text[operator, before], base)["outcome"])

    assert mutation.tests_of(by_text["arithmetic", "a + b"], file, base) == ["tests/data/test_sums.py::test_add"]
    assert outcome("arithmetic", "a + b") == "caught"
    assert outcome("arithmetic", "a * 7") == "not covered"
    assert outcome("comparison", "a > 3") == "survived"
    assert (tree / file).read_text() == source


def test_a_fault_that_never_ends_is_caught_by_time(project: Path, tmp_path: Path) -> None:
    tree = mutation.copy_tree(tmp_path / "tree")
    (tree / "rankloom/data/sums.py").write_text("def add(a, b):\n    while True: pass\nendless = shallow = add\n")
    assert mutation.run_tests(tree, ["tests/data/test_sums.py"], timeout=3) is None


def test_the_sample_is_seeded_and_holds_every_file(project: Path) -> None:
    (project / "rankloom" / "data" / "small.py").write_text("def f(x):\n    return x\n")
    first = mutation.sample(["data"], 4, seed=1)
    assert first == mutation.sample(["data"], 4, seed=1)
    assert first != mutation.sample(["data"], 4, seed=2)
    assert {file for file, _ in first} == {"rankloom/data/sums.py", "rankloom/data/small.py"}
    assert len(first) == 4


def test_the_report_lists_survivors_and_checks_the_share(tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    bench = mutation.Benchmark.from_args("mutation", argv=["--quick", "--json", str(out), "--cells", str(tmp_path)])
    result = {"file": "rankloom/data/a.py", "line": 3, "operator": "number", "before": "1", "after": "2", "tests": 2}
    results = [{**result, "outcome": outcome} for outcome in ["caught"] * 8 + ["caught by time", "survived"]]
    mutation.report(bench, results, ["semantic", "data"])
    assert bench.finish() == 0
    written = json.loads(out.read_text())
    assert {row["variant"]: row["value"] for row in written["rows"] if row["system"] == "tests"}["all: all"] == 0.9
    assert [row["variant"] for row in written["rows"] if row["system"] == "survivor"] == ["rankloom/data/a.py:3"]
    assert all(check["ok"] for check in written["checks"])
