"""What a server is made of beside the model. Light: the process that speaks HTTP reads it and imports no model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rankloom.serving.batching import BatchSettings
from rankloom.serving.guardrails import Guardrails
from rankloom.serving.keys import Key
from rankloom.serving.scenarios import Scenario


@dataclass
class ServerSettings:
    """Settings of one server.

    Attributes:
        state: path of the state file, address of a Valkey server, or None for memory.
        api_key, keys: who may use `/v1`; without any, everybody.
        scenarios: those of the file; others are defined live.
        folder: the model's folder; `asked` is the one that was named at the start, and `root` holds further ones.
        pointer: file that keeps which folder serves.
        context_cache_mb: memory for the contexts of people between their requests (context_cache.py); 0 keeps none.
        gate: whether the application guards itself; in two processes the front does.
    """

    state: Path | str | None = None
    api_key: str | None = None
    keys: Sequence[Key] = ()
    scenarios: Mapping[str, Scenario] = field(default_factory=dict)
    batching: BatchSettings = field(default_factory=BatchSettings)
    guardrails: Guardrails = field(default_factory=Guardrails)
    folder: Path | None = None
    asked: Path | None = None
    root: Path | None = None
    pointer: Path | None = None
    context_cache_mb: float = 0
    gate: bool = True

    def to_head(self) -> dict[str, Any]:
        """As the first message to the model's process carries them; keys stay here."""
        return {
            "state": None if self.state is None else str(self.state),
            "scenarios": {name: own.model_dump(exclude_defaults=True) for name, own in self.scenarios.items()},
            # what waits, waits in the front: the other process refuses nothing that was sent over
            "batching": {**asdict(self.batching), "max_queue": 4 * self.batching.max_queue},
            "guardrails": asdict(self.guardrails),
            "context_cache_mb": self.context_cache_mb,
            "asked": str(self.asked),
            "root": None if self.root is None else str(self.root),
        }

    @classmethod
    def from_head(cls, head: Mapping[str, Any]) -> ServerSettings:
        """What `to_head` told, for the process that has the model."""
        state = head["state"]
        return cls(
            state=state, scenarios={name: Scenario.model_validate(own) for name, own in head["scenarios"].items()},
            batching=BatchSettings(**head["batching"]), guardrails=Guardrails(**head["guardrails"]), asked=Path(head["asked"]),
            root=None if head["root"] is None else Path(head["root"]),
            pointer=Path(f"{state}.models.json") if state is not None and "://" not in state else None,
            context_cache_mb=head["context_cache_mb"], gate=False,
        )  # fmt: skip
