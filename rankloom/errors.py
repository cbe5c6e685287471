"""The one error users meet: what is wrong, where, and what to do about it."""

from __future__ import annotations

from pydantic import ValidationError


class RankloomError(Exception):
    """Bad input or an impossible request, told so that the reader can act on it.

    Args:
        message: the fact, naming the offending thing and value.
        place: where it is (file, row, column, flag), if it has a place.
        action: the way out.
        code: stable machine-readable code, `kebab-case`.
    """

    def __init__(
        self, message: str, *, place: str | None = None, action: str | None = None, code: str = "error"
    ) -> None:
        super().__init__(message)
        self.message = message
        self.place = place
        self.action = action
        self.code = code

    def __str__(self) -> str:
        parts = [self.message]
        if self.place:
            parts.append(f"  where: {self.place}")
        if self.action:
            parts.append(f"  what to do: {self.action}")
        return "\n".join(parts)


def fault_of(error: Exception) -> str:
    """What is wrong with a file of settings, in a line; never what was typed there, which may be a secret."""
    if isinstance(error, ValidationError):
        first = error.errors()[0]
        return f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
    return str(error)
