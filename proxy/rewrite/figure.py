"""The parts of a column reference, and the name that PostgreSQL gives to an output column that has none."""

from __future__ import annotations

from typing import Any

from proxy.sql.parse import Node


def field_names(fields: list[Node]) -> list[str | None]:
    """The parts of a column reference; None for a star."""
    return [part["String"].get("sval", "") if "String" in part else None for part in fields]


def figure_name(node: Node) -> tuple[str, int]:
    """The name that PostgreSQL gives an unnamed select item, and how sure it is of it (0 to 2)."""
    ((kind, value),) = node.items()
    return _figure(kind, value)


_FIXED_NAMES = {
    "A_ArrayExpr": "array",
    "RowExpr": "row",
    "CoalesceExpr": "coalesce",
    "GroupingFunc": "grouping",
    "MergeSupportFunc": "merge_action",
    "JsonObjectConstructor": "json_object",
    "JsonArrayConstructor": "json_array",
}


def _figure(kind: str, value: Any) -> tuple[str, int]:
    if kind == "ColumnRef":
        names = [name for name in field_names(value["fields"]) if name is not None]
        return (names[-1], 2) if names else ("?column?", 0)
    if kind == "A_Indirection":
        selected = [part["String"].get("sval", "") for part in value["indirection"] if "String" in part]
        return (selected[-1], 2) if selected else figure_name(value["arg"])
    if kind == "FuncCall":
        return value["funcname"][-1]["String"].get("sval", ""), 2
    if kind == "A_Expr":
        return ("nullif", 2) if value["kind"] == "AEXPR_NULLIF" else ("?column?", 0)
    if kind == "TypeCast":
        name, strength = figure_name(value["arg"])
        return (
            (name, strength)
            if strength > 1
            else (value["typeName"]["names"][-1]["String"].get("sval", ""), 1)
        )
    if kind == "CollateClause":
        return figure_name(value["arg"])
    if kind == "CaseExpr":
        name, strength = figure_name(value["defresult"]) if "defresult" in value else ("", 0)
        return (name, strength) if strength > 1 else ("case", 1)
    if kind == "MinMaxExpr":
        return ("greatest" if value.get("op") == "IS_GREATEST" else "least"), 2
    if kind == "SubLink":
        return _figure_sublink(value)
    if kind == "SQLValueFunction":
        return str(value["op"]).removeprefix("SVFOP_").removesuffix("_N").lower(), 2
    return (_FIXED_NAMES[kind], 2) if kind in _FIXED_NAMES else ("?column?", 0)


def _figure_sublink(value: Node) -> tuple[str, int]:
    kind = value["subLinkType"]
    if kind == "EXISTS_SUBLINK":
        return "exists", 2
    if kind == "ARRAY_SUBLINK":
        return "array", 2
    if kind == "EXPR_SUBLINK":
        targets = value["subselect"].get("SelectStmt", {}).get("targetList", ())
        if targets:
            item = targets[0]["ResTarget"]
            # PostgreSQL takes the name that the sub-select's column has got, whatever it is.
            return (item["name"] if "name" in item else figure_name(item["val"])[0]), 2
    return "?column?", 0
