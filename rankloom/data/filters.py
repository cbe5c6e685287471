"""The filter language of the command line, the API and the page: small, safe, parsed to a tree, never evaluated as code.

    price < 30 and category in ["Hair", "Skin"] and not brand == "Acme"
    title contains "shampoo" or created_at >= 2026-02-01
    attributes.color == "red" and duration_s is not null

`price` stands for price_micros in currency units. On a list column, a comparison holds when any element does. Logic is
two-valued: a comparison with a missing value is false (and its `not` true); `is null` asks for missing values.
"""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

import numpy as np
import polars as pl
from numpy.typing import NDArray

from rankloom.errors import RankloomError

Value = str | float | bool | datetime
_MAX_LENGTH: Final = 4000
_MAX_DEPTH: Final = 40
_TOKEN = re.compile(
    r"""\s*(?:
      (?P<date>\d{4}-\d{2}-\d{2}(?:[T ]\d{2}:\d{2}(?::\d{2})?Z?)?)
    | (?P<number>-?\d+(?:\.\d+)?(?:[eE][+-]?\d+)?)
    | (?P<string>"(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*')
    | (?P<op><=|>=|==|!=|=|<|>|\(|\)|\[|\]|,)
    | (?P<name>[^\W\d][\w.]*)
    )""",
    re.VERBOSE,
)
_KEYWORDS: Final = {"and", "or", "not", "in", "is", "null", "contains", "has", "true", "false"}


@dataclass(frozen=True)
class Compare:
    """field op value, with op one of == != < <= > >= contains."""

    field: str
    op: str
    value: Value


@dataclass(frozen=True)
class In:
    """field in [values]."""

    field: str
    values: tuple[Value, ...]


@dataclass(frozen=True)
class IsNull:
    field: str


@dataclass(frozen=True)
class Not:
    inner: Node


@dataclass(frozen=True)
class And:
    left: Node
    right: Node


@dataclass(frozen=True)
class Or:
    left: Node
    right: Node


Node = Compare | In | IsNull | Not | And | Or


@dataclass(frozen=True)
class Filter:
    """A parsed filter: `mask(items)` says which rows of the catalogue pass; `str()` is its canonical text."""

    root: Node

    def mask(self, items: pl.DataFrame) -> NDArray[np.bool_]:
        """(I,) bool. Raises `RankloomError` for an unknown field or values of the wrong type."""
        expression = _compile(self.root, items)
        result: NDArray[np.bool_] = (
            items.select(expression.fill_null(False).alias("m"))["m"].to_numpy().astype(np.bool_)
        )
        return result

    def __str__(self) -> str:
        return _text(self.root)


def parse_filter(text: str) -> Filter:
    """Parses a filter. Raises `RankloomError` with a caret under the place that is wrong."""
    if len(text) > _MAX_LENGTH:
        raise RankloomError(f"the filter is longer than {_MAX_LENGTH} characters", place="filter", code="filter-long")
    return Filter(_Parser(text).parse())


class _Parser:
    """Recursive descent: or < and < not < comparison."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.tokens: list[tuple[str, str, int]] = []
        place = 0
        while place < len(text.rstrip()):
            match = _TOKEN.match(text, place)
            if match is None:
                start = place + len(text[place:]) - len(text[place:].lstrip())
                raise self.error(f"unexpected character {text[start]!r}", start)
            kind = str(match.lastgroup)
            self.tokens.append((kind, match.group(kind), match.start(kind)))
            place = match.end()
        self.at = 0
        self.depth = 0

    def parse(self) -> Node:
        if not self.tokens:
            raise self.error("the filter is empty", 0)
        node = self.either()
        if self.at < len(self.tokens):
            raise self.error(f"unexpected {self.tokens[self.at][1]!r}", self.tokens[self.at][2])
        return node

    def error(self, message: str, place: int) -> RankloomError:
        return RankloomError(
            f"{message}\n    {self.text}\n    {' ' * place}^",
            place=f"filter, character {place + 1}",
            action='write e.g. price < 30 and category in ["Hair"]; see docs/filters.md',
            code="filter-syntax",
        )

    def word(self) -> str | None:
        """The next token as a lower-case keyword or operator."""
        if self.at >= len(self.tokens):
            return None
        kind, value, _ = self.tokens[self.at]
        if kind == "op":
            return value
        return value.lower() if kind == "name" and value.lower() in _KEYWORDS else None

    def take(self, *wanted: str) -> bool:
        if self.word() in wanted:
            self.at += 1
            return True
        return False

    def expect(self, wanted: str) -> None:
        if not self.take(wanted):
            raise self.error(f"expected {wanted!r}", self.here())

    def here(self) -> int:
        return self.tokens[self.at][2] if self.at < len(self.tokens) else len(self.text.rstrip())

    def either(self) -> Node:
        self.depth += 1
        if self.depth > _MAX_DEPTH:
            raise self.error("the filter is nested too deeply", self.here())
        node = self.both()
        while self.take("or"):
            node = Or(node, self.both())
        self.depth -= 1
        return node

    def both(self) -> Node:
        node = self.negated()
        while self.take("and"):
            node = And(node, self.negated())
        return node

    def negated(self) -> Node:
        turns = 0
        while self.take("not"):
            turns += 1
        node = self.comparison()
        return Not(node) if turns % 2 else node

    def comparison(self) -> Node:
        if self.take("("):
            node = self.either()
            self.expect(")")
            return node
        if self.at >= len(self.tokens) or self.tokens[self.at][0] != "name" or self.word() is not None:
            raise self.error("expected a field name", self.here())
        field = self.tokens[self.at][1]
        self.at += 1
        if self.take("is"):
            negative = self.take("not")
            self.expect("null")
            return Not(IsNull(field)) if negative else IsNull(field)
        negative = self.take("not")
        if self.take("in"):
            node = In(field, self.values())
            return Not(node) if negative else node
        if self.take("contains", "has"):
            own = Compare(field, "contains", self.value())
            return Not(own) if negative else own
        if negative:
            raise self.error("expected `in` or `contains` after `not`", self.here())
        op = self.word()
        if op not in ("=", "==", "!=", "<", "<=", ">", ">="):
            raise self.error("expected a comparison (== != < <= > >= in contains is)", self.here())
        self.at += 1
        return Compare(field, "==" if op == "=" else op, self.value())

    def values(self) -> tuple[Value, ...]:
        self.expect("[")
        out: list[Value] = []
        while not self.take("]"):
            if out:
                self.expect(",")
            out.append(self.value())
        return tuple(out)

    def value(self) -> Value:
        if self.at >= len(self.tokens):
            raise self.error("expected a value", self.here())
        kind, text, place = self.tokens[self.at]
        self.at += 1
        if kind == "number":
            return float(text)
        if kind == "string":
            return re.sub(r"\\(.)", r"\1", text[1:-1])
        if kind == "date":
            try:
                when = datetime.fromisoformat(text.rstrip("Z").replace(" ", "T"))
            except ValueError:
                raise self.error(f"{text!r} is not a date", place) from None
            return when.replace(tzinfo=UTC)
        if kind == "name" and text.lower() in ("true", "false"):
            return text.lower() == "true"
        raise self.error(f"expected a value, found {text!r} (text needs quotes)", place)


def _compile(node: Node, items: pl.DataFrame) -> pl.Expr:
    if isinstance(node, And):
        return _compile(node.left, items) & _compile(node.right, items)
    if isinstance(node, Or):
        return _compile(node.left, items) | _compile(node.right, items)
    if isinstance(node, Not):
        return ~_compile(node.inner, items)
    column, kind = _column(node.field, items)
    if isinstance(node, IsNull):
        return column.is_null()
    if isinstance(kind, pl.List):
        element = pl.element()
        inner = kind.inner
        assert isinstance(inner, pl.DataType)
        return column.list.eval(_leaf(node, element, inner).fill_null(False)).list.any().fill_null(False)
    return _leaf(node, column, kind).fill_null(False)


def _leaf(node: Compare | In, column: pl.Expr, kind: pl.DataType) -> pl.Expr:
    if isinstance(node, In):
        parts = [_compare(Compare(node.field, "==", value), column, kind) for value in node.values]
        return pl.any_horizontal(parts).fill_null(False) if parts else column.is_null() & False
    return _compare(node, column, kind)


def _compare(node: Compare, column: pl.Expr, kind: pl.DataType) -> pl.Expr:
    value = node.value
    fits = (
        (kind.is_numeric() and isinstance(value, float))
        or (kind == pl.String and isinstance(value, str))
        or (kind == pl.Boolean and isinstance(value, bool))
        or (isinstance(kind, pl.Datetime) and isinstance(value, datetime))
    )
    if not fits or (node.op == "contains" and kind != pl.String):
        raise RankloomError(
            f"{node.field} holds {_kind_name(kind)}; it cannot be compared with `{node.op} {_literal(value)}`",
            place=f"filter, field {node.field}",
            action=f"compare it with {_kind_name(kind)}",
            code="filter-type",
        )
    literal = pl.lit(value)
    if node.op == "contains":
        return column.str.to_lowercase().str.contains(str(value).lower(), literal=True)
    compared = {
        "==": column == literal,
        "!=": column != literal,
        "<": column < literal,
        "<=": column <= literal,
        ">": column > literal,
        ">=": column >= literal,
    }[node.op]
    # NaN is a missing number
    return compared & ~column.is_nan() if kind.is_float() else compared


def _column(field: str, items: pl.DataFrame) -> tuple[pl.Expr, pl.DataType]:
    if field == "price" and "price" not in items.columns and "price_micros" in items.columns:
        return pl.col("price_micros") / 1e6, pl.Float64()
    if field.startswith("attributes.") and "attributes" in items.columns:
        name = field.removeprefix("attributes.")
        pair = pl.element().struct
        own = pl.col("attributes").list.eval(pl.when(pair.field("key") == name).then(pair.field("value")))
        return own.list.drop_nulls(), pl.List(pl.String())
    if field not in items.columns:
        known = [*items.columns, *(["price"] if "price_micros" in items.columns else [])]
        close = difflib.get_close_matches(field, known, n=1)
        raise RankloomError(
            f"items have no field {field!r}",
            place=f"filter, field {field}",
            action=f"did you mean {close[0]!r}?" if close else f"known fields: {', '.join(known)}",
            code="filter-field",
        )
    return pl.col(field), items.schema[field]


def _kind_name(kind: pl.DataType) -> str:
    if kind.is_numeric():
        return "numbers"
    if isinstance(kind, pl.Datetime):
        return "dates"
    return "true or false" if kind == pl.Boolean else "text"


def _literal(value: Value) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return repr(int(value)) if value.is_integer() and abs(value) < 1e15 else repr(value)
    if isinstance(value, datetime):
        return value.strftime("%Y-%m-%dT%H:%M:%SZ")
    escaped = value.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def _text(node: Node) -> str:
    match node:
        case And(left, right):
            return f"({_text(left)} and {_text(right)})"
        case Or(left, right):
            return f"({_text(left)} or {_text(right)})"
        case Not(inner):
            return f"not ({_text(inner)})"
        case IsNull(field):
            return f"{field} is null"
        case In(field, values):
            return f"{field} in [{', '.join(_literal(value) for value in values)}]"
        case Compare(field, op, value):
            return f"{field} {op} {_literal(value)}"
