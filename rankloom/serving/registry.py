"""Models as versions: which answers whom, how a new one comes, and how it goes again.

    deploy("model-2")                      loaded, checked, probed, warmed up beside the serving one; then one assignment
    deploy("model-2", mode="canary")       answers a share of the people; goes by itself where the guardrails say so
    deploy("model-2", mode="shadow")       answers in quiet moments what was asked, and nobody sees it
    promote()  rollback()  stop()          one call each; the previous version stays in memory

A request is answered from the routing that it met: one version, whole. A folder that is damaged, of another format, or
does not pass the probe is refused by name while the old model serves. What serves is kept in a file beside the state, so
that a restart serves it again.
"""

from __future__ import annotations

import logging
import os
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from hashlib import blake2b
from pathlib import Path
from typing import Any, Literal, TypeVar

from rankloom.errors import RankloomError
from rankloom.files import read_json, write_json
from rankloom.recommender import Rankloom
from rankloom.serving.guardrails import Guardrails, Outcome, Window, breach
from rankloom.serving.snapshot import KIND, Snapshot
from rankloom.serving.state import Document, StateStore

T = TypeVar("T")
Role = Literal["current", "canary", "shadow", "previous"]
_log = logging.getLogger("rankloom.serving")
_NICE = 10  # loading and copying yield to answering


class RefusedModelError(RankloomError):
    """A model folder that is not put to use; the code says why, `place` which file."""


@dataclass(frozen=True)
class Version:
    """A loaded model folder with its present snapshot."""

    folder: Path | None
    snapshot: Snapshot
    since: datetime
    window: Window = field(default_factory=Window)

    @property
    def version(self) -> str:
        return self.snapshot.version


@dataclass(frozen=True)
class Routing:
    """Who answers whom, as one value: a request that holds it is answered by it."""

    current: Version
    canary: Version | None = None
    share: float = 0.0
    shadow: Version | None = None
    previous: Version | None = None

    def versions(self) -> list[tuple[Role, Version]]:
        """Everything that is loaded."""
        own: list[tuple[Role, Version | None]] = [
            ("current", self.current), ("canary", self.canary), ("shadow", self.shadow), ("previous", self.previous),
        ]  # fmt: skip
        return [(role, version) for role, version in own if version is not None]

    def route(self, person: str) -> Version:
        """The same person meets the same version as long as the routing stays."""
        if self.canary is None:
            return self.current
        draw = int.from_bytes(blake2b(person.encode("utf-8", "surrogatepass"), digest_size=4).digest(), "big") / 2**32
        return self.canary if draw < self.share else self.current


class Registry:
    """See the module's docstring. Safe from threads; one change at a time.

    Args:
        folder: of `model`; None for a model that was not loaded from one.
        pointer: where what serves is kept; None keeps it in memory.
        root: model folders are named below it; default: beside `folder`.
        rules: filters in use, for the warm-up of a new model.
    """

    def __init__(
        self,
        model: Rankloom,
        store: StateStore,
        *,
        folder: Path | None = None,
        asked: Path | None = None,
        pointer: Path | None = None,
        root: Path | None = None,
        guardrails: Guardrails | None = None,
        rules: Callable[[], Sequence[str]] = list,
        load: Callable[[Path], Rankloom] = Rankloom.from_pretrained,
    ) -> None:
        self._store = store
        self._pointer = pointer
        self._asked = asked or folder
        self._load_model = load
        self._rules = rules
        self.root = (root or (folder.absolute().parent if folder is not None else Path.cwd())).resolve()
        self.guardrails = guardrails or Guardrails()
        self._changing = threading.Lock()  # one deployment at a time
        self._swapping = threading.Lock()  # around every assignment of `routing`
        self.history: deque[dict[str, Any]] = deque(maxlen=100)
        self.rollbacks = 0
        changes = store.documents(KIND)
        self._live: dict[str, Any] = {own.name: own.value for own in changes}
        first = Snapshot(model).with_changes(changes, lenient=True)
        self.routing = Routing(Version(folder, first, datetime.now(UTC), self._window()))

    # -- versions --------------------------------------------------------------------------------------------------

    def deploy(self, name: str, *, mode: Literal["current", "canary", "shadow"] = "current", share: float = 0.1) -> str:
        """Puts a model folder to use; its version.

        Raises:
            RankloomError: another deployment is on its way; no such folder; damaged, foreign, of another format; unfit.
        """
        folder = self._folder(name)
        with self._alone():
            version = Version(folder, quietly(lambda: self._load(folder)), datetime.now(UTC), self._window())
            with self._swapping:
                version = replace(version, snapshot=self._up_to_date(version.snapshot))
                now = self.routing
                if mode == "current":
                    self._point_to(folder, now.current.folder)
                    self.routing = Routing(version, previous=now.current)
                elif mode == "canary":
                    # both are judged by the same time
                    self.routing = replace(now, current=self._fresh(now.current), canary=version, share=share)
                else:
                    self.routing = replace(now, current=self._fresh(now.current), shadow=version)
            self._note(f"deployed as {mode}", version, f"share {share:.0%}" if mode == "canary" else "")
        return version.version

    def promote(self) -> str:
        """The canary, else the shadow, answers everybody."""
        with self._alone(), self._swapping:
            now = self.routing
            chosen = now.canary or now.shadow
            if chosen is None:
                raise RankloomError(
                    "there is no canary and no shadow", place="mode", action="deploy one first", code="nothing-to-promote"
                )
            self._point_to(chosen.folder, now.current.folder)
            self.routing = Routing(chosen, previous=now.current)
        self._note("promoted", chosen)
        return chosen.version

    def rollback(self) -> str:
        """The previous version answers everybody again; what answered becomes the previous one."""
        with self._alone(), self._swapping:
            now = self.routing
            if now.previous is None:
                raise RankloomError(
                    "there is no previous version", place="mode", action="deploy the folder that is to serve", code="nothing-before"
                )  # fmt: skip
            self._point_to(now.previous.folder, now.current.folder)
            self.routing = Routing(replace(now.previous, window=self._window()), previous=now.current)
        self._note("rolled back to", now.previous)
        return now.previous.version

    def stop(self, why: str = "asked to") -> list[str]:
        """Takes canary and shadow away; their versions."""
        with self._swapping:
            now = self.routing
            gone = [own for own in (now.canary, now.shadow) if own is not None]
            self.routing = replace(now, canary=None, share=0.0, shadow=None)
        for own in gone:
            self._note("stopped", own, why)
        return [own.version for own in gone]

    def record(self, version: Version, outcome: Outcome) -> None:
        """One reply of a version; a canary that broke a guardrail is gone when this returns."""
        version.window.add(outcome)
        now = self.routing
        if now.canary is None or version.window is not now.canary.window:
            return
        why = breach(version.window, now.current.window, self.guardrails)
        if why is None:
            return
        with self._swapping:
            if self.routing.canary is None or self.routing.canary.window is not version.window:
                return
            self.routing = replace(self.routing, canary=None, share=0.0)
            self.rollbacks += 1
        self._note("taken back", version, why)

    def describe(self) -> dict[str, Any]:
        """Versions, their figures, and what happened."""
        now = self.routing
        return {
            "versions": [
                {
                    "role": role, "model_version": own.version, "catalogue_version": own.snapshot.catalogue,
                    "folder": own.folder.name if own.folder else None, "since": own.since.isoformat(timespec="seconds"),
                    "items": int(own.snapshot.alive.sum()), **({"share": now.share} if role == "canary" else {}),
                    **own.window.describe(),
                }
                for role, own in now.versions()
            ],
            "events": list(self.history),
        }  # fmt: skip

    # -- the catalogue ---------------------------------------------------------------------------------------------

    def put_items(self, items: Sequence[dict[str, Any]]) -> tuple[int, int]:
        """Adds or updates items, durable and then live in every version: (how many are new, the catalogue's version).

        Raises:
            RankloomError: an item that comes twice, or one that cannot be taken in; nothing was changed.
        """
        names = [own["item_id"] for own in items]
        if len(set(names)) < len(names):
            raise RankloomError("an item_id comes twice", place="item_id", action="send each item once", code="item-twice")
        with self._swapping:
            known = self.routing.current.snapshot.model.row_of
            new = sum(known(name) is None for name in names)
            last = max((own.get("order", 0) for own in self._live.values()), default=0)
            values = {}
            for number, own in enumerate(items, 1):
                before = self._live.get(own["item_id"], {})
                fields = {**before.get("item", {}), **own}
                values[own["item_id"]] = {"item": fields, "removed": False, "order": before.get("order", last + number)}
            return new, self._change(values)

    def remove_item(self, item_id: str) -> tuple[int, int]:
        """Takes an item out of every answer, durably: (1 where it was there, the catalogue's version). One that no version
        can name is no change."""
        with self._swapping:
            loaded = [own.snapshot for _, own in self.routing.versions()]
            live = self._live.get(item_id, {"removed": True})
            # an item of the store that no loaded version could take in may be one that the next version can
            if live["removed"] and not any(own.alive[own.rows([item_id])].any() for own in loaded):
                return 0, loaded[0].catalogue
            return 1, self._change({item_id: {"item": live.get("item", {}), "removed": True, "order": live.get("order", 0)}})

    def _change(self, values: dict[str, Any]) -> int:
        trial = [Document(name, value, 0) for name, value in values.items()]
        quietly(lambda: self.routing.current.snapshot.with_changes(trial))  # what cannot be done is not kept
        self._store.put_documents(KIND, values)
        return self._catch_up()

    def refresh(self) -> int:
        """Takes over what other servers changed in a shared store."""
        with self._swapping:
            return self._catch_up()

    def _catch_up(self) -> int:
        now = self.routing
        after = now.current.snapshot.catalogue
        self._live.update({own.name: own.value for own in self._store.documents(KIND, after=after)})
        newest: dict[str, Any] = quietly(
            lambda: {role: replace(own, snapshot=self._up_to_date(own.snapshot)) for role, own in now.versions()}
        )
        self.routing = replace(now, **newest)
        return self.routing.current.snapshot.catalogue

    def _up_to_date(self, snapshot: Snapshot) -> Snapshot:
        return snapshot.with_changes(self._store.documents(KIND, after=snapshot.catalogue), lenient=True)

    # -- inside ----------------------------------------------------------------------------------------------------

    def _load(self, folder: Path) -> Snapshot:
        try:
            snapshot = Snapshot(self._load_model(folder))
            self._check_related(snapshot, folder)
            snapshot = self._up_to_date(snapshot)
            snapshot.probe()
            snapshot.warm_up(self._rules())
        except RankloomError as error:
            raise RefusedModelError(
                error.message, place=error.place or str(folder), action=error.action, code=error.code
            ) from error
        except (SystemExit, KeyboardInterrupt):
            raise
        except BaseException as error:  # polars ends a panic of its own with a BaseException
            raise unusable(folder, error) from error
        return snapshot

    def _check_related(self, snapshot: Snapshot, folder: Path) -> None:
        """A model of another shop answers, with items that nobody here has."""
        serving, own = set(self.routing.current.snapshot.ids), set(snapshot.ids)
        shared = len(serving & own)
        if shared < 0.5 * min(len(serving), len(own)):
            raise RankloomError(
                f"the model folder {folder.name} is of another catalogue: {shared:,} of its {len(own):,} items are served now",
                place=str(folder),
                action="check the name; to change the catalogue, start another server",
                code="model-mismatch",
            )

    def _folder(self, name: str) -> Path:
        """Below the root, and nowhere else."""
        try:
            folder = (self.root / name).resolve()
            inside = folder.is_relative_to(self.root) and folder != self.root
        except (OSError, ValueError):
            inside = False
        if not inside:
            raise RefusedModelError(
                f"{name!r} is no folder below {self.root}",
                place="folder",
                action=f"put the model folder into {self.root} and give its name",
                code="model-missing",
            )
        return folder

    @contextmanager
    def _alone(self) -> Iterator[None]:
        if not self._changing.acquire(blocking=False):
            raise RankloomError(
                "another deployment is on its way",
                place="folder",
                action="wait for it, then look at GET /v1/models",
                code="deployment-running",
            )
        try:
            yield
        finally:
            self._changing.release()

    def _window(self) -> Window:
        return Window(self.guardrails.window)

    def _fresh(self, version: Version) -> Version:
        return replace(version, window=self._window())

    def _point_to(self, current: Path | None, previous: Path | None) -> None:
        if self._pointer is not None:
            names = {"asked": self._asked, "current": current, "previous": previous}
            write_json(self._pointer, {name: None if own is None else str(own) for name, own in names.items()})

    def _note(self, what: str, version: Version, why: str = "") -> None:
        folder = version.folder.name if version.folder else None
        event = {"at": datetime.now(UTC).isoformat(timespec="seconds"), "what": what, "model_version": version.version,
                 "folder": folder, "why": why}  # fmt: skip
        self.history.append(event)
        _log.warning("model %s %s %s", version.version, what, why)


def unusable(folder: Path, error: BaseException) -> RefusedModelError:
    """A model folder that is whole by its manifest, and at which something failed that nobody expected."""
    return RefusedModelError(
        f"the model folder {folder.name} cannot be used: {type(error).__name__}: {str(error).partition(chr(10))[0][:300]}",
        place=str(folder),
        action="use the version that wrote the folder, copy the folder again, whole, or train again",
        code="model-mismatch",
    )


def pointed_to(pointer: Path, asked: Path) -> Path:
    """The folder to serve: what was deployed over `asked` before a restart, else `asked`."""
    if not pointer.exists():
        return asked
    with suppress(RankloomError, TypeError, KeyError):
        own = read_json(pointer)
        if own["asked"] is not None and Path(own["asked"]).absolute() == asked.absolute() and own["current"]:
            return Path(own["current"])
    return asked


def quietly(what: Callable[[], T]) -> T:
    """Runs something in a thread that the system schedules after those that answer requests."""
    result: list[T] = []
    failed: list[BaseException] = []

    def run() -> None:
        with suppress(AttributeError, OSError):  # elsewhere than on Linux a thread has no priority of its own
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), min(19, os.getpriority(os.PRIO_PROCESS, 0) + _NICE))
        try:
            result.append(what())
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=run, name="rankloom-quiet")
    thread.start()
    thread.join()
    if failed:
        raise failed[0]
    return result[0]
