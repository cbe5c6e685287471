"""Writes requirements.lock: every package that `make` installs, at one version, with the hashes of all its files.

    make lock        runs this in an environment of its own

It covers the library, the English text model, the bidding environment, the words of search, the compiled kernels and the
development tools, for CPython 3.11 and 3.12 on Linux (x86_64 and aarch64). Two things differ from what the resolver says:

- torch is pinned by version only. Its wheel differs by machine (CPU or CUDA build, same version), so that no list of
  hashes fits; tools/install.sh installs it last and by exact version.
- what only torch's CUDA build needs is left out; where pip chooses that build, pip brings those along by itself.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from pathlib import Path

from packaging.markers import Marker

ROOT = Path(__file__).resolve().parent.parent
LOCK = ROOT / "requirements.lock"
TORCH = "2.13.0"
EXTRAS = ("minilm", "bidding", "search", "compiled", "dev")
ONLY_WITH_CUDA = re.compile(r"^(nvidia-|cuda-|triton\b)")
TARGETS = [
    {
        "python_version": version,
        "python_full_version": f"{version}.9",
        "platform_machine": architecture,
        "sys_platform": "linux",
        "platform_system": "Linux",
        "os_name": "posix",
        "implementation_name": "cpython",
        "platform_python_implementation": "CPython",
        "extra": "",
    }
    for version in ("3.11", "3.12")
    for architecture in ("x86_64", "aarch64")
]
HEADER = """\
# Every package that `make` installs. Written by `make lock` (tools/lock.py); not edited by hand.
# torch has no hashes: its build depends on the machine. tools/install.sh installs it by this exact version.
"""


def resolve() -> str:
    """What uv resolves from pyproject.toml, as requirement blocks with hashes."""
    with tempfile.TemporaryDirectory() as folder:
        build = Path(folder) / "build.in"
        build.write_text("setuptools>=77\n")
        overrides = Path(folder) / "overrides.txt"
        overrides.write_text(f"torch=={TORCH}\n")
        command = [sys.executable, "-m", "uv", "pip", "compile", "pyproject.toml", str(build), "--quiet"]
        command += [flag for extra in EXTRAS for flag in ("--extra", extra)]
        command += ["--universal", "--python-version", "3.11", "--fork-strategy", "fewest"]
        command += ["--override", str(overrides), "--generate-hashes", "--no-header", "--no-annotate"]
        command += ["--no-emit-index-url", "--no-emit-find-links"]
        return subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True).stdout


def wanted(requirement: str) -> bool:
    """Whether a requirement line is for one of our targets and not for CUDA alone."""
    if ONLY_WITH_CUDA.match(requirement):
        return False
    _, semicolon, marker = requirement.partition(";")
    return not semicolon or any(Marker(marker.strip()).evaluate(target) for target in TARGETS)


def lock(resolved: str) -> str:
    """The text of the lock file from the resolver's output."""
    blocks: list[list[str]] = []
    for line in resolved.splitlines():
        if line.startswith(" "):
            blocks[-1].append(line)
        elif line.strip() and not line.startswith("#"):
            blocks.append([line])
    kept = []
    for block in blocks:
        requirement = block[0].rstrip("\\ ")
        if not wanted(requirement):
            continue
        kept.append(requirement if requirement.startswith("torch==") else "\n".join(block))
    return HEADER + "\n".join(kept) + "\n"


if __name__ == "__main__":
    text = lock(resolve())
    LOCK.write_text(text, encoding="utf-8")
    print(f"{LOCK.name}: {sum('==' in line for line in text.splitlines())} packages")
