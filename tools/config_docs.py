"""Writes the table of every setting in docs/configuration.md from rankloom/config.py, between its two marks.

make docs
"""

from __future__ import annotations

import ast
import inspect
import re
from pathlib import Path

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from rankloom import config

PAGE = Path(__file__).resolve().parent.parent / "docs" / "configuration.md"
BEGIN = "<!-- settings: written by tools/config_docs.py -->"
END = "<!-- end of settings -->"


def docstrings() -> dict[tuple[str, str], str]:
    """(class, field) -> the string literal under the field."""
    found = {}
    for node in ast.parse(inspect.getsource(config)).body:
        if not isinstance(node, ast.ClassDef):
            continue
        for field, after in zip(node.body, node.body[1:], strict=False):
            if (
                isinstance(field, ast.AnnAssign)
                and isinstance(field.target, ast.Name)
                and isinstance(after, ast.Expr)
                and isinstance(after.value, ast.Constant)
            ):
                found[node.name, field.target.id] = " ".join(str(after.value.value).split())
    return found


def annotations() -> dict[tuple[str, str], str]:
    """(class, field) -> its type as it is written."""
    return {
        (node.name, field.target.id): ast.unparse(field.annotation)
        for node in ast.parse(inspect.getsource(config)).body
        if isinstance(node, ast.ClassDef)
        for field in node.body
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)
    }


def values(kind: str) -> str:
    """A type in a reader's words."""
    kind = kind.replace("Literal", "").replace("tuple[int, ...]", "list of numbers")
    kind = kind.replace("tuple[str, ...]", "list of names").replace("None", "null").replace("dict[str, ", "mapping to [")
    if kind.startswith("tuple["):
        kind = "list of " + kind.removeprefix("tuple[").removesuffix(", ...]")
    for name, word in (("int", "whole number"), ("float", "number"), ("str", "text"), ("bool", "true, false")):
        kind = re.sub(rf"\b{name}\b", word, kind)
    return kind.replace("[", "").replace("]", "").replace("'", "").replace(" | ", " or ")


def default(field: FieldInfo) -> str:
    value = field.default
    if value is None:
        return "null"
    if isinstance(value, tuple):
        return "[" + ", ".join(str(item) for item in value) + "]"
    return str(value).lower() if isinstance(value, bool) else str(value)


def tables() -> str:
    """The settings of each section as Markdown tables."""
    notes, kinds = docstrings(), annotations()
    lines = []
    for name, section in config.Config.model_fields.items():
        model = section.annotation
        if not (isinstance(model, type) and issubclass(model, BaseModel)):
            continue
        lines += [f"### {name}", "", " ".join((model.__doc__ or "").split()), ""]
        lines += ["| setting | values | default | meaning |", "|---|---|---|---|"]
        for field_name, field in model.model_fields.items():
            key = (model.__name__, field_name)
            meaning = notes.get(key, "").replace("|", "\\|")
            lines.append(f"| `{name}.{field_name}` | {values(kinds[key])} | `{default(field)}` | {meaning} |")
        lines.append("")
    return "\n".join(lines)


def page(text: str) -> str:
    """`text` with its settings written anew."""
    head, _, rest = text.partition(BEGIN)
    _, _, tail = rest.partition(END)
    return f"{head}{BEGIN}\n{tables()}{END}{tail}"


if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
