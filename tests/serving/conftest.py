"""Two versions of one model, side by side."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from rankloom.recommender import Rankloom


@pytest.fixture(scope="module")
def root(model_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two models that answer alike and are two versions: `a` and `b`."""
    own = tmp_path_factory.mktemp("models")
    shutil.copytree(model_path, own / "a")
    other = Rankloom.from_pretrained(model_path)
    other.metadata["note"] = "b"
    other.save_pretrained(own / "b")
    return own
