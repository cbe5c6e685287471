"""Keywords that are known by their form: sizes and weights, prices, model numbers. Mining counts the ones that recur."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

from rankloom.semantic.keywords.folding import Folded

_NUMBER: Final = r"\d+(?:[.,]\d+)?"
_UNITS: Final = (
    r"fl oz|fluid ounces?|ounces?|oz|lbs?|pounds?|kg|kilograms?|grams?|mg|ml|cl|liters?|litres?|quarts?|gallons?|mm|cm|inch(?:es)?|"
    r"feet|foot|ft|yards?|gb|tb|mb|mah|watts?|volts?|hz|packs?|pk|pcs?|pieces?|counts?|ct|sheets?|g|l|m|w|v|"
    r"毫升|升|千克|公斤|克|斤|两|毫米|厘米|公分|米|寸|英寸|码|号|瓦|伏|毫安|片装|片|支装|支|包装|袋装|袋|瓶装|瓶|盒装|盒|只装|件套|抽|层|斤装|人份"
)
_PATTERNS: Final = (
    ("price", re.compile(rf"[$€£¥]\s?{_NUMBER}|{_NUMBER}\s?(?:元|块钱|dollars?|usd|euros?|yuan)")),
    ("specifications", re.compile(rf"{_NUMBER}(?:\s?[x*×]\s?{_NUMBER}){{0,2}}\s?(?:{_UNITS})")),
    ("specifications", re.compile(r"\d{2,3}a?[a-g]|[smlx]{1,4}码|(?:x{1,3}|[2-6]x)[sl]")),
    ("model", re.compile(r"(?=[a-z0-9]*[a-z])(?=[a-z0-9]*\d)[a-z0-9]{3,12}(?:/[a-z0-9]{1,8})?")),
)


def known_forms(folded: Folded) -> Iterator[tuple[str, str]]:
    """(term, type) of what is a price, a specification or a model number by its form; of two that overlap the first listed."""
    taken: list[tuple[int, int]] = []
    for kind, pattern in _PATTERNS:
        for match in pattern.finditer(folded.text):
            start, end = match.span()
            if not (folded.boundary(start) and folded.boundary(end)):
                continue
            if all(end <= other or other_end <= start for other, other_end in taken):
                taken.append((start, end))
                yield match[0], kind
