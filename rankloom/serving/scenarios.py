"""Scenarios: named placements with settings of their own, so that callers name a place and not a policy.

    home:
      filter: in_stock == true
      seen: mask
      diversity: 0.3
      max_per: {brand: 2}
    shorts:
      filter: duration_s < 60
      freshness: 0.2
      exploration: 0.05

A request's own filter narrows the scenario's. Settings come from a file at the start and are changed live; a change is
kept in the state store. A name that nobody defined is refused: a typing error must not lose a filter.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Literal

import yaml
from pydantic import Field

from rankloom.errors import RankloomError, fault_of
from rankloom.serving.contract import Body
from rankloom.serving.state import StateStore

KIND = "scenario"


class Scenario(Body):
    """Settings of one placement."""

    filter: str | None = Field(default=None, max_length=4000)
    """What every item must meet, beside the request's own filter."""
    seen: Literal["auto", "allow", "mask"] = "auto"
    """Whether items of the person's history may be shown; `auto` does what the training log did (searches allow)."""
    diversity: float = Field(default=0.0, ge=0, le=1)
    """0 keeps the model's order; more gives way to items that share fewer codes with those above them."""
    max_per: dict[Literal["brand", "category"], Annotated[int, Field(ge=1)]] = Field(default={})
    """At most so many items of one brand, or of one category (its second level)."""
    freshness: float = Field(default=0.0, ge=0, le=1)
    """Weight of an item's youth beside its score."""
    freshness_days: float = Field(default=14.0, gt=0, le=3650)
    """Age at which half of the youth is gone."""
    exploration: float = Field(default=0.0, ge=0, le=0.5)
    """Share of places given to any item that the rules allow."""
    fallback: Literal["popular", "none"] = "popular"
    """What fills a list that the model cannot: popular items (for a search those whose title has its words), or nothing."""

    min_relevance: float | None = Field(default=None, ge=0, le=1)
    """Of a search: only results at least so relevant, unless the request says otherwise. The list may be short, or empty."""
    max_typos: int | None = Field(default=None, ge=0, le=2)
    """Of a search: slips of a word that are forgiven, unless the request says otherwise."""

    @property
    def rearranges(self) -> bool:
        """Whether the model's first k are not simply the answer."""
        return bool(self.diversity or self.freshness or self.max_per)

    def rule(self, own: str | None) -> str | None:
        """The scenario's filter and the request's, as one."""
        parts = [text for text in (self.filter, own) if text and text.strip()]
        return f"({parts[0]}) and ({parts[1]})" if len(parts) == 2 else parts[0] if parts else None


class Scenarios:
    """All of them by name; `default` always exists. Safe from threads.

    Args:
        check: refuses a scenario whose filter does not fit the catalogue.
    """

    def __init__(self, store: StateStore, given: dict[str, Scenario], check: Callable[[str, Scenario], None]) -> None:
        self._store = store
        self._check = check
        self._lock = threading.Lock()
        for name, own in given.items():
            check(name, own)
        self._given = {"default": Scenario(), **given}
        self._changed: dict[str, Scenario | None] = {}
        self._sequence = 0
        self.refresh()

    def refresh(self) -> None:
        """Takes over what other servers changed in a shared store."""
        with self._lock:
            for document in self._store.documents(KIND, after=self._sequence):
                self._changed[document.name] = None if document.value is None else Scenario.model_validate(document.value)
                self._sequence = document.sequence
            own = {**self._given, **self._changed}
            self.by_name = {name: value for name, value in own.items() if value is not None}
            self.by_name.setdefault("default", self._given["default"])

    def get(self, name: str) -> Scenario:
        """Raises RankloomError for a name that nobody defined."""
        own = self.by_name.get(name)
        if own is None:
            raise RankloomError(
                f"no scenario {name!r}",
                place="scenario",
                action=f"use one of {', '.join(sorted(self.by_name))}, or define it with PUT /v1/scenarios/NAME",
                code="scenario-unknown",
            )
        return own

    def put(self, name: str, scenario: Scenario | None) -> None:
        """Defines a scenario, or removes a definition; in force for the next request."""
        if scenario is not None:
            self._check(name, scenario)
        self._store.put_documents(KIND, {name: None if scenario is None else scenario.model_dump(exclude_defaults=True)})
        self.refresh()


def read_scenarios(path: Path | None) -> dict[str, Scenario]:
    """Scenarios of a YAML file.

    Raises:
        RankloomError: no such file, no YAML, an unknown setting. Filters are checked against the catalogue, later.
    """
    if path is None:
        return {}
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
        if not isinstance(raw, dict):
            raise ValueError("a mapping from names to settings is needed")
        own = {str(name): Scenario.model_validate(value or {}) for name, value in raw.items()}
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise RankloomError(
            f"the scenarios cannot be read: {fault_of(error)}", place=str(path), action="see docs/serving.md", code="scenario-file"
        ) from None
    return own
