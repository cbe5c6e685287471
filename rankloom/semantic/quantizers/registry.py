"""Quantisers by name: the one place that knows every class. A new quantiser is a new file and a line here."""

from __future__ import annotations

from typing import Any, Final

from numpy.typing import NDArray

from rankloom.config import QuantizerConfig
from rankloom.semantic.quantizers.base import NamedQuantizer, Quantizer
from rankloom.semantic.quantizers.fsq import FSQ
from rankloom.semantic.quantizers.opq import OPQ
from rankloom.semantic.quantizers.rq_kmeans import RQKMeans
from rankloom.semantic.quantizers.rq_vae import RQVAE
from rankloom.semantic.quantizers.stack import ResidualStack

KINDS: Final[dict[str, type[NamedQuantizer]]] = {"rq-kmeans": RQKMeans, "rq-vae": RQVAE}
"""`quantizer.kind`: what codes whole vectors, level by level."""

LAST: Final[dict[str, type[NamedQuantizer]]] = {"fsq": FSQ, "opq": OPQ}
"""`quantizer.last`: what codes the residual of those levels."""


def make_quantizer(config: QuantizerConfig, n_items: int) -> Quantizer:
    """The unfitted quantiser of a configuration, for a catalogue of `n_items`."""
    base = KINDS[config.kind].from_config(config, n_items)
    return base if config.last == "none" else ResidualStack(base, LAST[config.last].from_config(config, n_items))


def load_quantizer(config: QuantizerConfig, arrays: dict[str, NDArray[Any]]) -> Quantizer:
    """The fitted quantiser of a configuration from its frozen `arrays`."""
    if config.last == "none":
        return KINDS[config.kind].from_arrays(arrays)
    base = {key.removeprefix("base."): value for key, value in arrays.items() if key.startswith("base.")}
    last = {key.removeprefix("last."): value for key, value in arrays.items() if key.startswith("last.")}
    return ResidualStack(KINDS[config.kind].from_arrays(base), LAST[config.last].from_arrays(last))
