"""A small simulated shop and a tiny model, made once for all tests of a process."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import settings

from rankloom.config import Config
from rankloom.data.shop import Shop
from rankloom.pipeline import train
from rankloom.recommender import Rankloom
from rankloom.simulation.bazaar import generate_bazaar

# the same examples on every run: a test that fails here fails everywhere
settings.register_profile("steady", derandomize=True, deadline=None)
settings.load_profile("steady")


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def bazaar(tmp_path_factory: pytest.TempPathFactory) -> Shop:
    return generate_bazaar(tmp_path_factory.mktemp("bazaar") / "shop", seed=1, scale=0.05, quiet=True)


@pytest.fixture(scope="session")
def tiny_config() -> Config:
    return Config.preset_config("tiny").with_overrides(["training.min_steps=60", "training.max_epochs=2"])


@pytest.fixture(scope="session")
def model_path(bazaar: Shop, tiny_config: Config, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("model") / "model"
    train(bazaar.path, out, tiny_config, quiet=True)
    return out


@pytest.fixture
def model(model_path: Path) -> Rankloom:
    """A fresh copy: tests may add and remove items."""
    return Rankloom.from_pretrained(model_path)
