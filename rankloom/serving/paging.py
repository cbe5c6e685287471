"""Pages without repeats and without a session: a cursor carries what was shown and which question it belongs to.

An item is named by five bytes of a hash, so that a page of 20 costs 134 characters; two items of a million share a name
with chance 1e-6, and then the second is left out, never shown twice.
"""

from __future__ import annotations

import base64
import binascii
import json
import struct
from dataclasses import dataclass
from hashlib import blake2b
from typing import Final
from zlib import crc32

from rankloom.errors import RankloomError
from rankloom.serving.contract import Ask

_NAME: Final = 5
_MARK: Final = 8
_LEFT: Final = struct.Struct(">f")
_HEAD: Final = _MARK + _LEFT.size
MAX_SHOWN: Final = 2000


@dataclass(frozen=True, slots=True)
class Cursor:
    """What the pages before showed.

    Attributes:
        left: the chance that a search's pages left to the next, so that relevance means the same on every page; None on the first.
    """

    question: bytes
    shown: frozenset[bytes]
    left: float | None = None


def name_of(item_id: str) -> bytes:
    return blake2b(item_id.encode("utf-8", "surrogatepass"), digest_size=_NAME).digest()


def question_of(ask: Ask, *, search: bool) -> bytes:
    """What must stay the same from page to page."""
    own = ask.model_dump(mode="json", exclude={"cursor", "k", "explain"}, exclude_defaults=True)
    text = json.dumps([search, own], sort_keys=True)
    return blake2b(text.encode("utf-8", "surrogatepass"), digest_size=_MARK).digest()


def write(question: bytes, shown: frozenset[bytes], left: float = 0.0) -> str | None:
    """The next page's cursor; None where there shall be no further page."""
    if len(shown) > MAX_SHOWN:
        return None
    body = question + _LEFT.pack(left) + b"".join(sorted(shown))
    return base64.urlsafe_b64encode(body + crc32(body).to_bytes(4, "big")).decode().rstrip("=")


def read(text: str, question: bytes) -> Cursor:
    """Raises RankloomError: no cursor of ours, or one of another question."""
    try:
        data = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
    except (binascii.Error, ValueError):
        data = b""
    body, check = data[:-4], data[-4:]
    if len(body) < _HEAD or (len(body) - _HEAD) % _NAME or crc32(body).to_bytes(4, "big") != check:
        raise RankloomError(
            "this is no cursor of ours", place="cursor", action="send `next_cursor` of the page before as it came", code="cursor-invalid"
        )  # fmt: skip
    if body[:_MARK] != question:
        raise RankloomError(
            "the cursor belongs to another question", place="cursor", action="repeat the first page's body, and change k alone",
            code="cursor-mismatch",
        )  # fmt: skip
    shown = frozenset(body[at : at + _NAME] for at in range(_HEAD, len(body), _NAME))
    return Cursor(question, shown, *_LEFT.unpack_from(body, _MARK))
