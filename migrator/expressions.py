"""Row expressions of a migration (``up``, ``down``, ``check``): parsed once, then rendered wherever they are needed.

An ``Expression`` knows where its column references stand, so that each can be replaced by a function's parameter,
by ``NEW."column"`` or by a plain column without printing the text anew. Nothing here talks to a database.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from pglast.parser import ParseError, parse_sql_json, scan

from migrator.errors import Refused

MAX_LENGTH = 64 * 1024
_OPEN, _CLOSE = "\x01", "\x02"
_HOLE = re.compile(f"{_OPEN}(\\d+){_CLOSE}")
_SELECT = re.compile(r"^\s*select\b", re.IGNORECASE)
_FORBIDDEN = {
    "SubLink": "a subquery (other tables' rows cannot be mirrored)",
    "ParamRef": "a parameter ($n)",
    "A_Star": "a whole row (*)",
    "SetToDefault": "DEFAULT",
    "CurrentOfExpr": "CURRENT OF",
}


@dataclass(frozen=True, slots=True)
class Reference:
    """One column reference inside an expression's text (character offsets)."""

    start: int
    end: int
    name: str


@dataclass(frozen=True, slots=True)
class Expression:
    """A parsed expression."""

    text: str
    node: dict[str, Any]
    """The expression's parse tree, as libpg_query's JSON has it."""
    references: tuple[Reference, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """The distinct columns it refers to, in the order of their first use."""
        return tuple(dict.fromkeys(r.name for r in self.references))

    def template(self, sources: Sequence[str]) -> str:
        """The text with a numbered hole for each reference; fill it with ``render``."""
        place = {name: index for index, name in enumerate(sources)}
        return self.replace(lambda name: f"{_OPEN}{place[name]}{_CLOSE}")

    def replace(self, replacement: Callable[[str], str]) -> str:
        """The text with every reference replaced."""
        parts, at = [], 0
        for reference in self.references:
            parts += [self.text[at : reference.start], replacement(reference.name)]
            at = reference.end
        return "".join(parts) + self.text[at:]


def render(template: str, values: Sequence[str]) -> str:
    """Fill the holes of a template."""
    return _HOLE.sub(lambda match: values[int(match[1])], template)


def parameters(template: str) -> str:
    """The template as a function's body: ``$1``, ``$2``, ..."""
    return _HOLE.sub(lambda match: f"${int(match[1]) + 1}", template)


def parse_expression(text: str, where: str, qualifiers: Sequence[str] = ()) -> Expression:
    """Parse one row expression; pgroll also writes them as ``SELECT expression``.

    Args:
        text: the SQL text.
        where: what messages call it, e.g. ``operations[0].alter_column.up``.
        qualifiers: names that may stand before a column (the table's own).

    Raises:
        Refused: it is not a single expression over the columns of one row.
    """
    body = text.strip().rstrip(";").strip()
    if not body or len(body) > MAX_LENGTH:
        raise Refused(f"{where}: an expression of 1 to {MAX_LENGTH} characters is needed")
    if match := _SELECT.match(body):
        body = body[match.end() :].strip()
    # Both ways: "1) OR (1" is an expression only between parentheses, "1, 2" only there a row.
    target = _target(_wrapped(body)) if _target(f"SELECT {body}\n") is not None else None
    if target is None:
        raise Refused(
            f"{where}: cannot be parsed as one expression: {text.strip()[:200]}",
            detail=_parse_error(body),
            sqlstate="42601",
        )
    references = _references(body, target, where, qualifiers)
    return Expression(body, target, references)


def _wrapped(body: str) -> str:
    return f"SELECT ({body}\n)"


_PREFIX = len("SELECT (")


def _target(statement: str) -> dict[str, Any] | None:
    """The only expression of a bare SELECT; None for anything else."""
    try:
        tree = json.loads(parse_sql_json(statement))
    except (ParseError, RecursionError, ValueError):
        return None
    statements = tree.get("stmts", [])
    if len(statements) != 1:
        return None
    select = statements[0]["stmt"].get("SelectStmt", {})
    allowed = {"targetList", "limitOption", "op"}
    targets = select.get("targetList", [])
    if set(select) - allowed or len(targets) != 1 or "val" not in targets[0].get("ResTarget", {}):
        return None
    if "name" in targets[0]["ResTarget"]:
        return None
    value: dict[str, Any] = targets[0]["ResTarget"]["val"]
    return value


def _parse_error(body: str) -> str:
    try:
        parse_sql_json(_wrapped(body))
    except ParseError as error:
        return str(error.args[0])
    except (RecursionError, ValueError) as error:
        return str(error)
    return "It is more than one expression."


def _references(
    body: str, node: dict[str, Any], where: str, qualifiers: Sequence[str]
) -> tuple[Reference, ...]:
    found: list[tuple[int, list[str]]] = []

    def walk(value: Any) -> None:
        if isinstance(value, list):
            for item in value:
                walk(item)
        elif isinstance(value, dict):
            for key, inner in value.items():
                if key in _FORBIDDEN:
                    raise Refused(f"{where}: {_FORBIDDEN[key]} is not supported in a row expression")
                if key == "ColumnRef":
                    walk([f for f in inner["fields"] if "String" not in f])
                    found.append((inner.get("location", 0), [f["String"]["sval"] for f in inner["fields"]]))
                else:
                    walk(inner)

    walk(node)
    if not found:
        return ()
    raw = body.encode()
    tokens = scan(body)
    starts = {token.start: index for index, token in enumerate(tokens)}
    references = []
    for location, fields in found:
        start = len(raw[: location - _PREFIX].decode())
        last = tokens[starts[start] + 2 * (len(fields) - 1)]
        name = fields[-1]
        if len(fields) > 2 or (len(fields) == 2 and fields[0] not in qualifiers):
            raise Refused(
                f'{where}: "{".".join(fields)}" is not a column of the table',
                hint="Write columns without a table name.",
            )
        references.append(Reference(start, last.end + 1, name))
    return tuple(sorted(references, key=lambda r: r.start))
