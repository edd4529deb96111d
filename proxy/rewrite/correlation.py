"""Does a sub-select refer to the row that is being updated? As far as the text can tell.

PostgreSQL runs a sub-select that does not once for the whole statement, one that does for each row. Where the mirrors
need its columns it must stay so, which takes two forms (``proxy.rewrite.multiassign``).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from proxy.rewrite.figure import field_names
from proxy.rewrite.resolve import Scope
from proxy.rewrite.rules import SYSTEM_COLUMNS
from proxy.sql.functions import AGGREGATES, REPEATABLE, foreign_operator, plain_name
from proxy.sql.parse import Node

_NAMELESS = frozenset({"JsonTable", "RangeFunction", "RangeSubselect", "RangeTableFunc"})
"""Relations, even without a name."""


def correlated(query: Node, scope: Scope) -> bool | None:
    """Whether a sub-select refers to a relation of the scope around it; None where that cannot be told."""
    inner = set(_names(query))
    outer = {
        name
        for level in scope.levels()
        for source in level.sources
        for name in (source.name, *source.aliases)
    }
    columns: set[str] | None = set(SYSTEM_COLUMNS)
    for level in scope.levels():
        for source in level.sources:
            columns = None if columns is None or source.columns is None else columns.union(source.columns)
    uncertain = False
    for fields in _references(query):
        parts = field_names(fields)
        if len(parts) == 1:
            name = parts[0]
            if name is None or (columns is not None and name not in columns and name not in outer):
                continue
            if not inner and columns is not None:
                return True
            uncertain = True
        elif parts[-2] in outer:
            if parts[-2] not in inner:
                return True
            uncertain = True
    return None if uncertain else False


def stable(value: Any) -> bool:
    """Whether a sub-select calls only functions that give the same whenever they are called in one statement."""
    if isinstance(value, list):
        return all(map(stable, value))
    if not isinstance(value, dict):
        return True
    for key, child in value.items():
        if key == "FuncCall" and plain_name(child["funcname"]) not in REPEATABLE | AGGREGATES:
            return False
        if key == "A_Expr" and foreign_operator(child):
            return False
        if not stable(child):
            return False
    return True


def _names(value: Any) -> Iterator[str]:
    """All names that relations have within a sub-select."""
    if isinstance(value, list):
        for item in value:
            yield from _names(item)
    elif isinstance(value, dict):
        for key, child in value.items():
            if key in ("relname", "aliasname", "ctename"):
                yield child
            else:
                if key in _NAMELESS:
                    yield ""
                yield from _names(child)


def _references(value: Any) -> Iterator[list[Node]]:
    if isinstance(value, list):
        for item in value:
            yield from _references(item)
    elif isinstance(value, dict):
        for key, child in value.items():
            if key == "ColumnRef":
                yield child["fields"]
            else:
                yield from _references(child)
