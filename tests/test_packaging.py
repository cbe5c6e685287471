"""The package, the lock file and the two commands keep their promises."""

from __future__ import annotations

import ast
import importlib
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from types import ModuleType

import pytest

import rankloom

ROOT = Path(__file__).resolve().parent.parent
LOCK = (ROOT / "requirements.lock").read_text(encoding="utf-8")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def locked() -> dict[str, str]:
    """Package -> version."""
    return dict(re.findall(r"^([a-z0-9.-]+)==([^\s;\\]+)", LOCK, re.M))


def lock_tool() -> ModuleType:
    sys.path.insert(0, str(ROOT / "tools"))
    try:
        return importlib.import_module("lock")
    finally:
        sys.path.pop(0)


def python(code: str) -> str:
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    return run.stdout.strip()


# -- the lock file


def test_every_locked_package_but_torch_has_hashes() -> None:
    for block in re.split(r"\n(?=[a-z0-9])", LOCK):
        if "==" not in block or block.startswith("#"):
            continue
        assert ("--hash=sha256:" in block) != block.startswith("torch=="), block.splitlines()[0]


def test_torch_is_asked_for_by_exact_version_and_without_its_cuda_packages() -> None:
    assert re.fullmatch(r"\d+\.\d+\.\d+", locked()["torch"])
    assert not [name for name in locked() if name.startswith(("nvidia", "cuda", "triton"))]


def test_the_lock_names_no_place_to_fetch_from() -> None:
    assert "://" not in LOCK
    assert not re.search(r"^\s*(-i|-f|--index-url|--extra-index-url|--find-links)\b", LOCK, re.M)


def test_the_lock_holds_every_declared_dependency() -> None:
    project = PROJECT["project"]
    declared = [*project["dependencies"], *PROJECT["build-system"]["requires"]]
    declared += [item for extra in ("minilm", "bidding", "search", "dev") for item in project["optional-dependencies"][extra]]
    names = {re.split(r"[<>=!~;\[ ]", item)[0].lower().replace("_", "-") for item in declared}
    assert not names - set(locked())


def test_the_lock_is_for_our_targets_and_not_for_cuda() -> None:
    pytest.importorskip("packaging")
    tool = lock_tool()
    resolved = (
        "# a comment\nnumpy==2.0 ; python_full_version >= '3.11' \\\n    --hash=sha256:aa \\\n    --hash=sha256:bb\n"
        "colorama==0.4 ; sys_platform == 'win32' \\\n    --hash=sha256:cc\n"
        "nvidia-nccl==1.0 ; sys_platform == 'linux' \\\n    --hash=sha256:dd\n"
        "triton==3.0 \\\n    --hash=sha256:ee\n"
        "torch==2.13.0 \\\n    --hash=sha256:ff\n"
    )
    text = tool.lock(resolved)
    assert text.removeprefix(tool.HEADER) == (
        "numpy==2.0 ; python_full_version >= '3.11' \\\n    --hash=sha256:aa \\\n    --hash=sha256:bb\ntorch==2.13.0\n"
    )


# -- the package


def test_importing_the_package_loads_no_torch() -> None:
    assert python("import rankloom, sys; print('torch' in sys.modules, 'polars' in sys.modules)") == "False False"


def test_the_public_names_are_found_when_asked_for() -> None:
    assert rankloom.__version__ == PROJECT["project"]["version"]
    for name in rankloom.__all__:
        assert getattr(rankloom, name)
    with pytest.raises(AttributeError, match="no attribute"):
        _ = rankloom.nothing


def test_versions_agree_and_the_licence_is_there() -> None:
    assert (ROOT / "LICENSE").read_text(encoding="utf-8").lstrip().startswith("Apache License")
    assert PROJECT["project"]["license"] == "Apache-2.0"
    for text in ("README.md", "README.zh.md", "CONTRIBUTING.md", "NOTICE"):
        assert (ROOT / text).stat().st_size > 100


def calls_and_imports(path: Path) -> set[str]:
    """Names of what a file calls by name and imports: `eval`, `torch.load`, `pickle`."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        match node:
            case ast.Call(func=ast.Name(id=name)):
                found.add(name)
            case ast.Call(func=ast.Attribute(value=ast.Name(id=module), attr=name)):
                found.add(f"{module}.{name}")
            case ast.Import(names=names):
                found.update(alias.name.partition(".")[0] for alias in names)
            case ast.ImportFrom(module=str(module)):
                found.add(module.partition(".")[0])
    return found


def test_no_file_of_the_package_unpickles_or_evaluates() -> None:
    forbidden = {"pickle", "dill", "joblib", "cloudpickle", "marshal", "shelve", "torch.load", "eval", "exec"}
    found = {
        str(path.relative_to(ROOT)): used
        for path in (ROOT / "rankloom").rglob("*.py")
        if (used := calls_and_imports(path) & forbidden)
    }
    assert not found


LAYERS = ["data", "semantic", "models", "training", "decoding", "onesearch", "simulation", "evaluation", "serving"]


def test_imports_never_point_against_the_layers() -> None:
    found = []
    for position, layer in enumerate(LAYERS):
        later = "|".join(LAYERS[position + 1 :])
        pattern = re.compile(
            rf"^\s*(?:from|import) rankloom\.({later}|cli)\b" if later else r"^\s*from rankloom\.cli\b"
        )
        for path in (ROOT / "rankloom" / layer).rglob("*.py"):
            for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
                if pattern.search(line):
                    found.append(f"{path.relative_to(ROOT)}:{number}: {line.strip()}")
    assert not found


# -- the two commands

needs_make = pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")


def copy_of_the_build(folder: Path) -> Path:
    for name in ("Makefile", "pyproject.toml", "requirements.lock"):
        shutil.copy(ROOT / name, folder)
    shutil.copytree(ROOT / "tools", folder / "tools", ignore=shutil.ignore_patterns("__pycache__"))
    return folder


def make(folder: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}
    return subprocess.run(
        ["make", *arguments], cwd=folder, env={**clean, **environment}, capture_output=True, text=True, timeout=60
    )


@needs_make
def test_demo_installs_first_and_passes_its_arguments_on(tmp_path: Path) -> None:
    run = make(copy_of_the_build(tmp_path), "-n", "demo", "ARGS=--no-serve")
    assert run.returncode == 0, run.stderr
    assert run.stdout.index("tools/install.sh") < run.stdout.index(".venv/bin/rankloom demo --no-serve")


@needs_make
def test_what_is_installed_is_not_installed_again(tmp_path: Path) -> None:
    folder = copy_of_the_build(tmp_path)
    (folder / ".venv").mkdir()
    (folder / ".venv" / ".installed").touch()
    assert "install.sh" not in make(folder, "-n", "install").stdout
    os.utime(folder / "requirements.lock")
    future = (folder / ".venv" / ".installed").stat().st_mtime + 10
    os.utime(folder / "requirements.lock", (future, future))
    assert "install.sh" in make(folder, "-n", "install").stdout


def fake_python(folder: Path, body: str) -> str:
    folder.mkdir(exist_ok=True)
    path = folder / "python3"
    path.write_text(f"#!/bin/bash\n{body}\n")
    path.chmod(0o755)
    return str(path)


@needs_make
def test_an_old_python_is_refused_with_the_way_out(tmp_path: Path) -> None:
    old = fake_python(tmp_path / "bin", "exit 1")
    run = make(copy_of_the_build(tmp_path), "install", f"PYTHON={old}")
    assert run.returncode != 0
    assert "is not a Python of at least 3.11" in run.stderr
    assert "what to do:" in run.stderr
    assert not (tmp_path / ".venv").exists()


@needs_make
def test_a_python_without_venv_is_refused_with_the_way_out(tmp_path: Path) -> None:
    # Debian ships ensurepip apart
    body = 'case "$*" in *ensurepip*) exit 1;; --version) echo "Python 3.11.2";; *) exit 0;; esac'
    run = make(copy_of_the_build(tmp_path), "install", f"PYTHON={fake_python(tmp_path / 'bin', body)}")
    assert run.returncode != 0
    assert "has no venv module" in run.stderr
    assert "python3-venv" in run.stderr


def test_ci_runs_the_tests_and_stops_at_the_first_failure() -> None:
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    assert os.access(ROOT / ".ci" / "run", os.X_OK)
    assert "set -euo pipefail" in script
    assert script.rstrip().endswith("make test")
