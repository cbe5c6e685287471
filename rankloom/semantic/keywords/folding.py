"""One spelling for text and dictionary, with the way back to the original's characters.

Folding is NFKC, lower case, one space for any run of spaces, and a space for a hyphen inside a word, so that `Ｔ-Shirt`,
`t-shirt` and `T  shirt` are one word. It goes cluster by cluster (a letter with its marks), so every folded character
knows where its cluster lies in the original and a span never cuts one.

A *boundary* is a place where a word may begin or end. Scripts that put spaces between words have one wherever a letter or
digit does not follow another; Chinese, Japanese kana, Thai and their like have one between any two clusters.
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from typing import Final

UNSPACED: Final = r"\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3005\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
_IS_UNSPACED: Final = re.compile(rf"[{UNSPACED}]")
_HYPHENS: Final = frozenset("-‐‑‒–")
_JAMO: Final = re.compile(r"[\u1160-\u11ff]")


@dataclass(frozen=True, slots=True)
class Folded:
    """A folded text.

    Attributes:
        text: the folded characters.
        origin: one more than there are characters: where in the original each one's cluster begins; the last is its end.
    """

    text: str
    origin: tuple[int, ...]

    def span(self, start: int, end: int) -> tuple[int, int]:
        """[start, end) of the folded text as [start, end) of the original, whole clusters."""
        after = end
        while self.origin[after] == self.origin[end - 1]:
            after += 1
        return self.origin[start], self.origin[after]

    def boundary(self, position: int) -> bool:
        """Whether a word may begin or end before the character at `position`."""
        if position in (0, len(self.text)):
            return True
        if self.origin[position] == self.origin[position - 1]:
            return False
        before, after = self.text[position - 1], self.text[position]
        if not (_in_word(before) and _in_word(after)):
            # the point of a decimal number holds its digits together
            return not (_is_point(self.text, position) or _is_point(self.text, position - 1))
        return unspaced(before) or unspaced(after)


def unspaced(character: str) -> bool:
    """Whether it is of a script that puts no spaces between words."""
    return _IS_UNSPACED.match(character) is not None


def fold(text: str) -> Folded:
    """The folded text. Spaces at its ends are dropped."""
    if text.isascii():
        return _assemble(list(text.lower()), list(range(len(text))), len(text))
    pieces: list[str] = []
    starts: list[int] = []
    begin = 0
    for at in range(1, len(text) + 1):
        if at < len(text) and (unicodedata.combining(text[at]) or _JAMO.match(text[at])):
            continue
        for character in unicodedata.normalize("NFKC", text[begin:at]).lower():
            pieces.append(character)
            starts.append(begin)
        begin = at
    return _assemble(pieces, starts, len(text))


def _assemble(pieces: list[str], starts: list[int], length: int) -> Folded:
    out: list[str] = []
    origin: list[int] = []
    for at, character in enumerate(pieces):
        if character in _HYPHENS and 0 < at < len(pieces) - 1 and _in_word(pieces[at - 1]) and _in_word(pieces[at + 1]):
            character = " "
        if character.isspace():
            if not out or out[-1] == " ":
                continue
            character = " "
        out.append(character)
        origin.append(starts[at])
    if out and out[-1] == " ":
        length = origin.pop()
        out.pop()
    return Folded("".join(out), (*origin, length))


def _in_word(character: str) -> bool:
    return character.isalnum() or character == "_" or unicodedata.category(character)[0] == "M"


def _is_point(text: str, position: int) -> bool:
    inside = 0 < position < len(text) - 1 and text[position] in ".,"
    return inside and text[position - 1].isdigit() and text[position + 1].isdigit()
