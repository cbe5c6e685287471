"""Mutants of a Python source: one small fault each, made on the syntax tree.

Operators: comparison, arithmetic, boolean, negated condition, dropped `not` or minus, number, truth value, returned
value, removed call, removed raise, break and continue. Left alone is what no test should pin down: docstrings,
annotations, decorators, protocols, text, error and progress messages, assertions, type-checking imports.
"""

from __future__ import annotations

import ast
import copy
from collections.abc import Iterator
from dataclasses import dataclass

COMPARISONS: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
}
ARITHMETIC: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mult,
    ast.Mod: ast.Mult,
    ast.Pow: ast.Mult,
    ast.BitAnd: ast.BitOr,
    ast.BitOr: ast.BitAnd,
    ast.LShift: ast.RShift,
    ast.RShift: ast.LShift,
}
SKIPPED_FIELDS = {"annotation", "returns", "decorator_list", "type_params", "bases"}
SKIPPED_CALLS = {"RankloomError", "Progress", "track", "advance", "print", "cast", "TypeVar", "Field", "warn"}


@dataclass(frozen=True)
class Mutant:
    """One fault. `index` counts the source's mutants in reading order; lines are those of the enclosing statement."""

    index: int
    operator: str
    line: int
    first_line: int
    last_line: int
    before: str
    after: str


@dataclass(frozen=True)
class _Site:
    parent: ast.AST
    field: str
    position: int | None
    node: ast.AST
    statement: ast.stmt
    top_level: bool


def mutants(source: str) -> list[Mutant]:
    """Every mutant of `source`."""
    found = []
    for index, (site, operator, replacement) in enumerate(_alternatives(ast.parse(source))):
        first, last = _statement_lines(site.statement)
        found.append(
            Mutant(
                index=index,
                operator=operator,
                line=getattr(site.node, "lineno", first),
                first_line=first,
                last_line=last,
                before=_shorten(ast.unparse(site.node)),
                after=_shorten(ast.unparse(replacement)),
            )
        )
    return found


def apply(source: str, index: int) -> str:
    """`source` with its mutant number `index` in it (comments are lost, nothing else changes).

    Raises:
        IndexError: there is no such mutant.
    """
    tree = ast.parse(source)
    for number, (site, _, replacement) in enumerate(_alternatives(tree)):
        if number == index:
            if site.position is None:
                setattr(site.parent, site.field, replacement)
            else:
                getattr(site.parent, site.field)[site.position] = replacement
            return ast.unparse(ast.fix_missing_locations(tree)) + "\n"
    raise IndexError(f"no mutant {index}")


def _alternatives(tree: ast.Module) -> Iterator[tuple[_Site, str, ast.AST]]:
    for site in _sites(tree, None, top_level=True):
        for operator, replacement in _faults(site):
            yield site, operator, ast.copy_location(replacement, site.node)


def _sites(node: ast.AST, statement: ast.stmt | None, *, top_level: bool) -> Iterator[_Site]:
    for field, value in ast.iter_fields(node):
        if field in SKIPPED_FIELDS:
            continue
        children = value if isinstance(value, list) else [value]
        for position, child in enumerate(children):
            if not isinstance(child, ast.AST) or _skipped(child):
                continue
            inside = child if isinstance(child, ast.stmt) else statement
            if inside is not None:
                yield _Site(node, field, position if isinstance(value, list) else None, child, inside, top_level)
            if not isinstance(child, ast.Raise):
                inner = top_level and not isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef))
                yield from _sites(child, inside, top_level=inner)


def _skipped(node: ast.AST) -> bool:
    if isinstance(node, (ast.JoinedStr, ast.Assert, ast.Import, ast.ImportFrom)):
        return True
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
        return True
    if isinstance(node, ast.Call) and _name(node.func) in SKIPPED_CALLS:
        return True
    if isinstance(node, ast.ClassDef):
        return any(_name(base) == "Protocol" for base in node.bases)
    return isinstance(node, ast.If) and _name(node.test) == "TYPE_CHECKING"


def _name(node: ast.AST) -> str:
    if isinstance(node, ast.Subscript):
        return _name(node.value)
    return node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""


def _faults(site: _Site) -> Iterator[tuple[str, ast.AST]]:
    node = site.node
    match node:
        case ast.Compare(ops=[op]) if type(op) in COMPARISONS:
            yield "comparison", _changed(node, ops=[COMPARISONS[type(op)]()])
        case ast.BinOp(left=left, op=op, right=right) if type(op) in ARITHMETIC:
            # `A | B` outside a function is a type; adding text is a message
            is_type = site.top_level and isinstance(op, ast.BitOr)
            if not is_type and not any(_is_text(side) for side in (left, right)):
                yield "arithmetic", _changed(node, op=ARITHMETIC[type(op)]())
        case ast.AugAssign(op=op, value=value) if type(op) in ARITHMETIC and not _is_text(value):
            yield "arithmetic", _changed(node, op=ARITHMETIC[type(op)]())
        case ast.BoolOp(op=op):
            yield "boolean", _changed(node, op=ast.Or() if isinstance(op, ast.And) else ast.And())
        case ast.UnaryOp(op=ast.Not() | ast.USub() | ast.Invert(), operand=operand):
            yield "dropped sign", copy.deepcopy(operand)
        case ast.Constant(value=bool() as value):
            yield "truth value", ast.Constant(not value)
        case ast.Constant(value=int() | float() as value):
            # one more is no fault in a large bound; twice it is
            yield "number", ast.Constant(value + 1 if abs(value) <= 100 else value * 2)
        case ast.Return(value=ast.expr() as value) if not (isinstance(value, ast.Constant) and value.value is None):
            yield "returned value", ast.Return(ast.Constant(None))
        case ast.Expr(value=ast.Call()):
            yield "removed call", ast.Pass()
        case ast.Raise():
            yield "removed raise", ast.Pass()
        case ast.Break():
            yield "loop", ast.Continue()
        case ast.Continue():
            yield "loop", ast.Break()
    if site.field == "test" and isinstance(site.parent, (ast.If, ast.While, ast.IfExp)):
        assert isinstance(node, ast.expr)
        yield "negated condition", ast.UnaryOp(ast.Not(), copy.deepcopy(node))


def _changed(node: ast.AST, **fields: object) -> ast.AST:
    changed = copy.deepcopy(node)
    for field, value in fields.items():
        setattr(changed, field, value)
    return changed


def _is_text(node: ast.AST) -> bool:
    return isinstance(node, ast.JoinedStr) or (isinstance(node, ast.Constant) and isinstance(node.value, (str, bytes)))


def _statement_lines(statement: ast.stmt) -> tuple[int, int]:
    """The lines of a simple statement, the header lines of a compound one."""
    last = statement.end_lineno or statement.lineno
    body = getattr(statement, "body", None)
    if body:
        last = max(statement.lineno, body[0].lineno - 1)
    return statement.lineno, last


def _shorten(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= 100 else line[:97] + "..."
