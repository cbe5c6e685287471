"""A controller at arm's length: asked once a tick, answered within a deadline or not at all.

`LocalController` asks it in this process (the fallback, tests). `WorkerController` runs it in a process of its own, so
that a slow, leaking or crashing model cannot touch the bid path, and the serving process never imports torch: the
observation goes out and the decision comes back through pipes, as JSON and raw float64, never pickle. A worker that
overstays is left to finish (its late answer is thrown away), and replaced when it overstays three deadlines.

Controllers may keep state from tick to tick. When a server restarts, a campaign joins, or a budget changes, the
controller is started anew and shown the day so far tick by tick, so its state is what it would have been.
"""

from __future__ import annotations

import gc
import hashlib
import json
import os
import select
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, BinaryIO, Final, Protocol

import numpy as np

from rankloom.bidding.protocol import Campaigns, Controller, Decision, FloatArray, History, Observation
from rankloom.errors import RankloomError

_FRAME: Final = struct.Struct("<II")
_SESSIONS: Final = 16


class ControllerFailedError(Exception):
    """No usable decision: `kind` is late, busy, crashed, or error."""

    def __init__(self, kind: str, text: str) -> None:
        super().__init__(text)
        self.kind = kind


class RemoteController(Protocol):
    """What the control loop asks. `cohort` names a batch of campaigns on one day."""

    name: str

    def ask(self, cohort: str, observation: Observation, *, seed: int, deadline_s: float) -> Decision:
        """Raises ControllerFailedError where there is no decision in time."""

    def close(self) -> None: ...


class Sessions:
    """One controller object per cohort, brought up to the tick that is asked about."""

    def __init__(self, make: Callable[[], Controller]) -> None:
        self._make = make
        self._open: dict[str, tuple[Controller, str, int]] = {}

    def decide(self, cohort: str, observation: Observation, seed: int) -> Decision:
        mark = _fingerprint(observation.campaigns)
        controller, known, following = self._open.pop(cohort, (None, "", -1))
        if controller is None or known != mark or following != observation.tick:
            controller = self._make()
            controller.start(observation.campaigns, seed)
            for tick in range(observation.tick):
                controller.decide(as_of(observation, tick))
        decision = controller.decide(observation)
        while len(self._open) >= _SESSIONS:
            self._open.pop(next(iter(self._open)))
        self._open[cohort] = (controller, mark, observation.tick + 1)
        return decision


def as_of(observation: Observation, tick: int) -> Observation:
    """The observation before an earlier tick of the same day; its forecasts are what then came."""
    past = History(*(getattr(observation.history, own.name)[:, :tick] for own in fields(History)))
    volume_N = observation.history.volume_NT[:, tick]
    p_N = observation.history.p_sum_NT[:, tick] / np.maximum(volume_N, 1)
    remaining_N = np.maximum(observation.campaigns.budget_N - past.spend_NT.sum(axis=1), 0.0)
    return replace(
        observation, tick=tick, history=past, remaining_N=remaining_N, volume_forecast_N=volume_N, p_mean_forecast_N=p_N
    )


def _fingerprint(campaigns: Campaigns) -> str:
    digest = hashlib.sha256("\0".join(campaigns.name).encode())
    for own in (campaigns.budget_N, campaigns.target_cpa_N, campaigns.category_N):
        digest.update(own.tobytes())
    return digest.hexdigest()


class LocalController:
    """A controller in this process. The deadline is checked afterwards: fine for what is known to be quick."""

    def __init__(self, make: Callable[[], Controller], name: str | None = None) -> None:
        self._sessions = Sessions(make)
        self.name = name or make().name

    def ask(self, cohort: str, observation: Observation, *, seed: int, deadline_s: float) -> Decision:
        start = time.monotonic()
        try:
            decision = self._sessions.decide(cohort, observation, seed)
        except Exception as error:
            raise ControllerFailedError("error", f"{type(error).__name__}: {error}") from error
        if time.monotonic() - start > deadline_s:
            raise ControllerFailedError(
                "late", f"{self.name} took {time.monotonic() - start:.2f} s of {deadline_s:.2f} s"
            )
        return decision

    def close(self) -> None:
        """Nothing to let go."""


class WorkerController:
    """A controller in a child process, by its specification: a bidder folder, or a built-in name.

    Args:
        command: how the child is started; by default this module, with the specification as its argument.
    """

    def __init__(self, spec: str, *, name: str | None = None, command: list[str] | None = None) -> None:
        self.spec = spec
        self.name = name or Path(spec).name
        self._command = command or [sys.executable, "-m", "rankloom.bidding.serve.worker", spec]
        self._child: subprocess.Popen[bytes] | None = None
        self._number = 0
        self._waiting: tuple[int, float] | None = None  # an unanswered question and when it was asked
        self._buffer = bytearray()

    def start(self, timeout_s: float = 120.0) -> None:
        """Starts the child and waits until its controller is loaded.

        Raises:
            RankloomError: it cannot be loaded; the message is the child's.
        """
        self._spawn()
        try:
            head, _ = self._receive(time.monotonic() + timeout_s)
        except ControllerFailedError as error:
            self.close()
            raise RankloomError(
                f"the controller {self.spec} does not start: {error}",
                place=self.spec,
                action="look at the messages above",
                code="controller-start",
            ) from None
        if "error" in head:
            self.close()
            raise RankloomError(head["error"], place=head.get("place"), action=head.get("action"), code=head["code"])
        self.name = head["name"]

    def _spawn(self) -> None:
        self.close()
        environment = {**os.environ, "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")}
        self._child = subprocess.Popen(
            self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment, start_new_session=True
        )
        self._buffer, self._waiting = bytearray(), None

    def ask(self, cohort: str, observation: Observation, *, seed: int, deadline_s: float) -> Decision:
        end = time.monotonic() + deadline_s
        if self._child is None or self._child.poll() is not None:
            self._spawn()
            self._waiting = (0, time.monotonic())  # its greeting
        self._number += 1
        if self._waiting is not None:
            self._drain(end, deadline_s)
        assert self._child is not None
        assert self._child.stdin is not None
        try:
            write_frame(
                self._child.stdin, {"n": self._number, "cohort": cohort, "seed": seed, **_head(observation)},
                _arrays(observation),
            )  # fmt: skip
        except OSError as error:
            self.close()
            raise ControllerFailedError("crashed", f"{self.name} is gone: {error}") from None
        self._waiting = (self._number, time.monotonic())
        while True:
            head, arrays = self._receive(end)
            if head.get("n") == self._number:
                break
        self._waiting = None
        if "error" in head:
            raise ControllerFailedError("error", head["error"])
        return _decision(head, arrays)

    def _drain(self, end: float, deadline_s: float) -> None:
        """Waits for the answer that is still owed, and throws it away."""
        assert self._waiting is not None
        number, since = self._waiting
        try:
            while True:
                head, _ = self._receive(end)
                if head.get("n", 0) == number:
                    break
        except ControllerFailedError:
            if time.monotonic() - since > 3 * deadline_s + 60 * (number == 0):
                self.close()
            raise ControllerFailedError("busy", f"{self.name} still works on an earlier tick") from None
        self._waiting = None

    def _receive(self, end: float) -> tuple[dict[str, Any], dict[str, FloatArray]]:
        child = self._child
        assert child is not None
        assert child.stdout is not None
        descriptor = child.stdout.fileno()
        while True:
            message = _split(self._buffer)
            if message is not None:
                return message
            left = end - time.monotonic()
            if left <= 0 or not select.select([descriptor], [], [], left)[0]:
                raise ControllerFailedError("late", f"{self.name} did not answer in time")
            chunk = os.read(descriptor, 1 << 20)
            if not chunk:
                self.close()
                raise ControllerFailedError("crashed", f"{self.name} ended without an answer")
            self._buffer += chunk

    def close(self) -> None:
        child, self._child = self._child, None
        if child is None:
            return
        child.kill()
        child.wait()
        for pipe in (child.stdin, child.stdout):
            if pipe is not None:
                pipe.close()
        self._waiting = None


# -- the wire ----------------------------------------------------------------------------------------------------------


def _head(observation: Observation) -> dict[str, Any]:
    return {"tick": observation.tick, "name": list(observation.campaigns.name)}


def _arrays(observation: Observation) -> dict[str, Any]:
    own = observation.campaigns
    arrays: dict[str, Any] = {"budget_N": own.budget_N, "target_cpa_N": own.target_cpa_N, "category_N": own.category_N}
    arrays |= {f.name: getattr(observation.history, f.name) for f in fields(History)}
    arrays["remaining_N"] = observation.remaining_N
    for name in ("volume_forecast_N", "p_mean_forecast_N"):
        if getattr(observation, name) is not None:
            arrays[name] = getattr(observation, name)
    return arrays


def _observation(head: dict[str, Any], arrays: dict[str, FloatArray]) -> Observation:
    campaigns = Campaigns(
        arrays["budget_N"], arrays["target_cpa_N"], arrays["category_N"].astype(np.int64), tuple(head["name"])
    )
    history = History(*(arrays[f.name] for f in fields(History)))
    return Observation(
        head["tick"], campaigns, history, arrays["remaining_N"], arrays.get("volume_forecast_N"), arrays.get("p_mean_forecast_N")
    )  # fmt: skip


def _decision(head: dict[str, Any], arrays: dict[str, FloatArray]) -> Decision:
    details = {name[7:]: own for name, own in arrays.items() if name.startswith("detail:")}
    return Decision(arrays["multiplier_N"], tuple(head["binding"]), arrays.get("planned_spend_NR"), details)


def write_frame(pipe: BinaryIO | Any, head: dict[str, Any], arrays: dict[str, Any]) -> None:
    plain = {name: np.ascontiguousarray(own, dtype=np.float64) for name, own in arrays.items()}
    head = {**head, "arrays": [[name, list(own.shape)] for name, own in plain.items()]}
    text = json.dumps(head).encode()
    body = b"".join(own.tobytes() for own in plain.values())
    pipe.write(_FRAME.pack(len(text), len(body)) + text + body)
    pipe.flush()


def _split(buffer: bytearray) -> tuple[dict[str, Any], dict[str, FloatArray]] | None:
    """Takes one whole message off the front of a buffer."""
    if len(buffer) < _FRAME.size:
        return None
    n_text, n_body = _FRAME.unpack_from(buffer)
    end = _FRAME.size + n_text + n_body
    if len(buffer) < end:
        return None
    head = json.loads(bytes(buffer[_FRAME.size : _FRAME.size + n_text]))
    data, at, arrays = bytes(buffer[_FRAME.size + n_text : end]), 0, {}
    del buffer[:end]
    for name, shape in head.pop("arrays"):
        size = int(np.prod(shape)) * 8
        arrays[name] = np.frombuffer(data[at : at + size], dtype=np.float64).reshape(shape)
        at += size
    return head, arrays


def resolve(spec: str) -> Callable[[], Controller]:
    """What makes controllers of a specification: a trained bidder's folder, or the name of one that needs no training.

    Raises:
        RankloomError: no such controller, or a broken folder.
    """
    if spec == "safe-pacing":
        from rankloom.bidding.serve.fallback import SafePacing

        return SafePacing
    if Path(spec).is_dir():
        from rankloom.bidding.bidders import copy_of, load_bidder

        loaded = load_bidder(Path(spec))  # a broken folder is told at the start
        return lambda: copy_of(loaded)
    from rankloom.bidding.controllers import controller

    controller(spec)
    return lambda: controller(spec)


def main(spec: str) -> None:
    """The child: reads observations from standard input until it closes, writes decisions to standard output."""
    out = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever a controller prints must not get between the frames
    import torch  # not in the process that bids

    from rankloom.training.processor import keep_freed_memory

    keep_freed_memory()  # a decision asks for the same megabytes every time: mapping them anew is half of its time
    torch.set_num_threads(1)  # it is too small to be shared out: threads would wait for the busiest core
    try:
        make = resolve(spec)
        name = make().name
    except RankloomError as error:
        greeting = {"error": error.message, "place": error.place, "action": error.action, "code": error.code}
        write_frame(out, greeting, {})
        return
    except Exception as error:
        text = f"the controller {spec} does not load: {type(error).__name__}: {error}"
        write_frame(out, {"error": text, "place": spec, "action": None, "code": "controller-start"}, {})
        return
    write_frame(out, {"n": 0, "name": name}, {})
    gc.collect()
    gc.freeze()  # what is loaded stays: to look through it again and again takes longer than a decision
    sessions = Sessions(make)
    pipe, buffer = sys.stdin.buffer, bytearray()
    while True:
        message = _split(buffer)
        if message is None:
            chunk = os.read(pipe.fileno(), 1 << 20)
            if not chunk:
                return
            buffer += chunk
            continue
        head, arrays = message
        try:
            decision = sessions.decide(head["cohort"], _observation(head, arrays), head["seed"])
        except Exception as error:
            write_frame(out, {"n": head["n"], "error": f"{type(error).__name__}: {error}"}, {})
            continue
        answer: dict[str, Any] = {"multiplier_N": decision.multiplier_N}
        if decision.planned_spend_NR is not None:
            answer["planned_spend_NR"] = decision.planned_spend_NR
        answer |= {f"detail:{key}": own for key, own in decision.details.items()}
        write_frame(out, {"n": head["n"], "binding": list(decision.binding)}, answer)


if __name__ == "__main__":
    main(sys.argv[1])
