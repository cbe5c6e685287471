"""Rankloom: one generative model and one space of semantic IDs for feed, search and ads.

import rankloom
model = rankloom.Rankloom.from_pretrained("model")
model.recommend("user-1", k=10, filter="price < 30")
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rankloom.config import Config
    from rankloom.errors import RankloomError
    from rankloom.recommender import Rankloom

__version__ = "0.1.0"
__all__ = ["Config", "Rankloom", "RankloomError", "__version__"]

_LAZY = {"Config": "rankloom.config", "RankloomError": "rankloom.errors", "Rankloom": "rankloom.recommender"}


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        import importlib

        return getattr(importlib.import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'rankloom' has no attribute {name!r}")
