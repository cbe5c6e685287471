"""The folder of a trained bidder: `bidder.json` (kind, settings, hashes), `model.safetensors`, `README.md` (the card, filled by the run).

Written whole or not at all; loaded whole or refused by the name of what is wrong. Never pickle. A bidder serves without its training data.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any, Final

import torch
from numpy.typing import NDArray
from safetensors.numpy import save_file

from rankloom import __version__
from rankloom.bidding.learned.base import LearnedController
from rankloom.bidding.learned.cbd import CbdController
from rankloom.bidding.learned.decision_transformer import SequenceController
from rankloom.bidding.learned.gas import GasController
from rankloom.bidding.learned.gave import GaveController
from rankloom.bidding.learned.offline_rl import PolicyController
from rankloom.bidding.learned.outlook import Outlook
from rankloom.bidding.learned.pathwise import PathwiseController
from rankloom.bidding.protocol import SavedController
from rankloom.bidding.state import STATE, Normaliser
from rankloom.errors import RankloomError
from rankloom.files import atomic_folder, read_json, sha256_file
from rankloom.model_folder import contiguous, read_arrays

BIDDER: Final = "bidder.json"
WEIGHTS: Final = "model.safetensors"
CARD: Final = "README.md"
SCHEMA_VERSION: Final = 1
KINDS: Final[dict[str, type[LearnedController]]] = {
    each.kind: each
    for each in (PathwiseController, PolicyController, SequenceController, GaveController, GasController, CbdController)
}


def save_bidder(
    folder: str | Path,
    controller: SavedController,
    *,
    training: Mapping[str, Any] | None = None,
    overwrite: bool = False,
) -> None:
    """Writes the folder, atomically.

    Args:
        training: figures of the run, kept in `bidder.json` and told in the card.
    """
    with atomic_folder(folder, overwrite=overwrite, marker=BIDDER) as temporary:
        save_file(contiguous(controller.arrays()), temporary / WEIGHTS)
        described = {
            "format": "rankloom-bidder",
            "schema_version": SCHEMA_VERSION,
            "rankloom": __version__,
            "settings": controller.settings(),
            "training": dict(training or {}),
            "files": {WEIGHTS: sha256_file(temporary / WEIGHTS)},
        }
        (temporary / BIDDER).write_text(json.dumps(described, indent=2) + "\n", encoding="utf-8")
        (temporary / CARD).write_text(_card(controller, dict(training or {})), encoding="utf-8")


def load_bidder(folder: str | Path) -> SavedController:
    """A trained bidder, ready for `start`.

    Raises:
        RankloomError: no bidder's folder, a newer format, a missing, truncated or changed file, or a state that this version builds otherwise.
    """
    folder = Path(folder)
    if not (folder / BIDDER).is_file():
        raise RankloomError(
            f"{folder} is no bidder's folder (no {BIDDER} in it)",
            place=str(folder),
            action="pass the folder that `rankloom bid train --out` wrote",
            code="bidder-missing",
        )
    described = read_json(folder / BIDDER)
    if not isinstance(described, dict) or described.get("format") != "rankloom-bidder":
        raise RankloomError(f"{BIDDER} is no bidder's description", place=str(folder / BIDDER), code="bidder-foreign")
    if described.get("schema_version") != SCHEMA_VERSION:
        raise RankloomError(
            f"the bidder has format {described.get('schema_version')}, this version reads {SCHEMA_VERSION}",
            place=str(folder / BIDDER),
            action="use the Rankloom version that wrote it, or train again",
            code="bidder-version",
        )
    weights = folder / WEIGHTS
    if not weights.is_file() or sha256_file(weights) != described.get("files", {}).get(WEIGHTS):
        raise RankloomError(
            f"{WEIGHTS} is missing or differs from what {BIDDER} says",
            place=str(weights),
            action="copy the folder again, or train again",
            code="bidder-damaged",
        )
    try:
        return build(described["settings"], read_arrays(weights))
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise RankloomError(
            f"{BIDDER} and {WEIGHTS} do not fit together: {error}",
            place=str(folder),
            action="copy the folder again, or train again",
            code="bidder-damaged",
        ) from None


def copy_of(controller: SavedController) -> SavedController:
    """A controller with a state of its own and the same weights, which it shares: what a second batch of campaigns is started with."""
    from rankloom.bidding.selector import Selector

    members = controller.members if isinstance(controller, Selector) else [controller]
    networks = [member for member in members if isinstance(member, torch.nn.Module)]
    shared = {id(tensor): tensor for network in networks for tensor in (*network.parameters(), *network.buffers())}
    copied: SavedController = deepcopy(controller, shared)
    return copied


def build(settings: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> SavedController:
    """The controller of `settings` with these arrays: the inverse of its `settings()` and `arrays()`."""
    kind = settings["kind"]
    if kind == "selector":
        from rankloom.bidding.selector import Selector

        return Selector.restore(settings, arrays)
    if kind == "built-in":
        from rankloom.bidding.controllers import controller

        named = controller(settings["name"])
        assert isinstance(named, SavedController)
        return named
    if kind not in KINDS:
        raise ValueError(f"no bidder is of kind {kind!r}")
    if settings["state_columns"] != list(STATE):
        raise ValueError("its state has other columns than this version builds")
    outlook = None
    if "outlook" in settings:
        own = {name.removeprefix("outlook."): value for name, value in arrays.items() if name.startswith("outlook.")}
        outlook = Outlook.restore(settings["outlook"], own)
    tensors = {name: torch.from_numpy(value.copy()) for name, value in arrays.items() if not name.startswith("outlook.")}
    model = KINDS[kind](
        normaliser=Normaliser(tensors.pop("state.mean"), tensors.pop("state.std")),
        fallback_target=float(settings["fallback_target"]),
        name=settings["name"],
        outlook=outlook,
        **settings["options"],
    )
    model.load_state_dict({name.removeprefix("weights."): value for name, value in tensors.items()})
    model.eval()
    return model


def _card(controller: SavedController, training: dict[str, Any]) -> str:
    settings = controller.settings()
    options = "\n".join(f"- {name}: {value}" for name, value in settings.get("options", {}).items())
    figures = "\n".join(f"- {name}: {value}" for name, value in training.items())
    return (
        f"# {controller.name}: a Rankloom bidder\n\n"
        f"Kind `{settings['kind']}`, Rankloom {__version__}. One multiplier per campaign and half hour; bids are multiplier x predicted "
        "conversion probability.\n\n"
        f"## Settings\n\n{options or '- none'}\n\n## Training\n\n{figures or '- not recorded'}\n\n"
        "## Limits\n\nTrained offline, on the log it names and on what that log's market would have answered; rivals that react, other regimes "
        "of price and traffic, and first-price auctions were not seen. Serve it behind the fallback and the budget ledger.\n"
    )
