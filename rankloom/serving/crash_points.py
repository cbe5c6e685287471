"""Named places where a process can be made to die, for the crash tests: what a promise says must hold at each.

`RANKLOOM_CRASH_AT=NAME:N` kills the process with SIGKILL when it reaches NAME for the N-th time. Without the variable a
place costs one comparison.
"""

from __future__ import annotations

import os
import signal
from typing import Final

NAMES: Final = (
    "open-before-schema",
    "open-before-forgetting-again",
    "append-before-begin",
    "append-between-inserts",
    "append-before-commit",
    "append-after-commit",
    "append-before-acknowledgement",
    "documents-before-commit",
    "documents-after-commit",
    "delete-before-tombstone",
    "delete-after-tombstone",
    "delete-after-commit",
)

_wanted, _, _count = os.environ.get("RANKLOOM_CRASH_AT", "").partition(":")
_left = int(_count or 1)


def reach(name: str) -> None:
    """Dies here when asked to."""
    global _left
    if name == _wanted:
        _left -= 1
        if _left <= 0:
            os.kill(os.getpid(), signal.SIGKILL)
