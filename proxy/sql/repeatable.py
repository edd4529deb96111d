"""May an expression of a client be written down several times in one statement?

Only if every evaluation gives the same value, has no effect, and costs little: constants, parameters,
columns, operators, casts, CASE and the like, listed functions; no sub-selects, no unknown functions, nothing
long.
"""

from __future__ import annotations

from typing import Any

from proxy.sql.functions import REPEATABLE, foreign_operator, plain_name
from proxy.sql.parse import Node

MAX_EXPRESSION = 512
MAX_CONSTANT = 8192
"""Bounds on the text's length in bytes; the copy is sent and parsed as well."""

_SHAPES = frozenset(
    {
        "A_ArrayExpr", "A_Const", "A_Expr", "A_Indices", "A_Indirection", "BoolExpr", "BooleanTest",
        "CaseExpr", "CaseWhen", "CoalesceExpr", "CollateClause", "ColumnRef", "List", "MinMaxExpr",
        "NullTest", "ParamRef", "RowExpr", "SQLValueFunction", "String", "TypeCast", "TypeName",
    }
)  # fmt: skip
_LEAVES = frozenset({"A_Const", "ColumnRef", "ParamRef", "SQLValueFunction", "String", "TypeName"})
_FUNCTION_FIELDS = frozenset({"funcname", "args", "funcformat", "location", "func_variadic"})


def repeatable(expression: Node, length: int) -> bool:
    """Whether the expression, whose text has ``length`` bytes, may be repeated within one statement."""
    (kind,) = expression
    if length > (MAX_CONSTANT if kind == "A_Const" else MAX_EXPRESSION):
        return False
    return _stable(expression)


def _stable(value: Any) -> bool:
    if isinstance(value, list):
        return all(map(_stable, value))
    if not isinstance(value, dict):
        return True
    for key, child in value.items():
        if key in _LEAVES:
            continue
        if key == "A_Expr" and foreign_operator(child):
            return False
        if key == "FuncCall":
            if plain_name(child["funcname"]) not in REPEATABLE or not child.keys() <= _FUNCTION_FIELDS:
                return False
            if not _stable(child.get("args", ())):
                return False
        elif (key[0].isupper() and key not in _SHAPES) or not _stable(child):
            return False
    return True
