"""Structured logs: one JSON object a line on standard error. No user id, no history, no query is written: they are
personal; a line is joined to what the caller knows by its request id."""

from __future__ import annotations

import json
import logging
import sys
from datetime import UTC, datetime
from typing import Any, Literal

ACCESS = logging.getLogger("rankloom.access")


class JsonLines(logging.Formatter):
    """A record and its `extra={"fields": {...}}` as one JSON object."""

    def format(self, record: logging.LogRecord) -> str:
        own: dict[str, Any] = {
            "at": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            own["error"] = self.formatException(record.exc_info)
        return json.dumps(own, ensure_ascii=False)


def set_up(kind: Literal["json", "quiet"]) -> None:
    """`json`: every request and everything else; `quiet`: warnings only, also as JSON."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines())
    root = logging.getLogger("rankloom")
    root.handlers = [handler]
    root.propagate = False
    root.setLevel(logging.INFO if kind == "json" else logging.WARNING)
