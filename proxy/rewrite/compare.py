"""Comparisons: where a physical column may stand for a virtual one, so that PostgreSQL can use its indexes.

Equal values of the two are equal for every operator of their family, so what is compared, sorted or tested for NULL
may be the raw column. What is compared with it keeps the meaning it had: a string literal has taken its type from the
virtual column, and is now given that type.
"""

from __future__ import annotations

from collections.abc import Sequence

from proxy.rewrite.figure import field_names, figure_name
from proxy.rewrite.model import Virtual
from proxy.rewrite.relations import is_star
from proxy.rewrite.resolve import Scope, Source, raw_reference, reference
from proxy.rewrite.work import Work
from proxy.sql.parse import Node
from proxy.sql.tokens import RPAREN

_OPERATORS = frozenset({"=", "<>", "!=", "<", ">", "<=", ">="})
_KINDS = frozenset(
    {
        "AEXPR_OP", "AEXPR_OP_ANY", "AEXPR_OP_ALL", "AEXPR_IN", "AEXPR_DISTINCT", "AEXPR_NOT_DISTINCT",
        "AEXPR_BETWEEN", "AEXPR_NOT_BETWEEN", "AEXPR_BETWEEN_SYM", "AEXPR_NOT_BETWEEN_SYM",
    }
)  # fmt: skip
_REFERRING = frozenset({"larg", "sortClause", "groupClause", "distinctClause"})
_OF_ARRAYS = frozenset({"AEXPR_OP_ANY", "AEXPR_OP_ALL"})


def operator(work: Work, node: Node, scope: Scope) -> None:
    """Handle one A_Expr."""
    kind = node["kind"]
    if not work.compares or kind not in _KINDS or not _compares(kind, node["name"]) or "lexpr" not in node:
        work.visit(node, scope)
        return
    left, right = node["lexpr"], node.get("rexpr", {})
    if kind in _OF_ARRAYS:
        found = _operand(work, left, scope)
        work.visit(right, scope)
        if found is not None:
            _typed(work, right, f"{found.column.type}[]")
    elif "List" in right:
        _compared(work, [left, *right["List"]["items"]], scope)
    else:
        _compared(work, [left, right], scope)


def null_test(work: Work, node: Node, scope: Scope) -> None:
    """Handle one NullTest."""
    if work.compares:
        _operand(work, node["arg"], scope)
    else:
        work.visit(node["arg"], scope)


def sub_link(work: Work, node: Node, scope: Scope) -> None:
    """Handle one SubLink: ``x IN (SELECT ...)`` compares, on both sides."""
    tested = node.get("testexpr")
    if tested is not None and work.compares and ("operName" not in node or _compares("", node["operName"])):
        items = tested["RowExpr"].get("args", ()) if _is_row(tested) else (tested,)
        for item in items:
            _operand(work, item, scope)
        if not any("A_Const" in item for item in items):  # a literal takes its type from the column
            work.compared.update(map(id, _outputs(node["subselect"])))
    elif tested is not None:
        work.visit(tested, scope)
    work.visit(node["subselect"], scope)


def _outputs(query: Node) -> Sequence[Node]:
    """The items of a query's list, if nothing within the query refers to them."""
    node = query.get("SelectStmt", {})
    return () if _REFERRING & node.keys() else [item["ResTarget"] for item in node.get("targetList", ())]


_EXTREMES = (["min"], ["max"], ["pg_catalog", "min"], ["pg_catalog", "max"])
_EXTREME_TYPES = frozenset({"smallint", "integer", "bigint"})
"""Types of which the extremes have the same type."""
_EXTREME_FIELDS = frozenset({"funcname", "args", "funcformat", "location"})


def function(work: Work, node: Node, scope: Scope) -> None:
    """Handle one FuncCall: the least and the greatest value are found by an index on the raw column, then read."""
    argument = node.get("args", [{}])[0].get("ColumnRef") if len(node.get("args", ())) == 1 else None
    if not work.compares or argument is None or not node.keys() <= _EXTREME_FIELDS:
        work.visit(node, scope)
        return
    if [part["String"].get("sval", "") for part in node["funcname"]] not in _EXTREMES:
        work.visit(node, scope)
        return
    names = field_names(argument["fields"])
    source = _source(names, scope, False) if names[-1] is not None else None
    virtual = None if source is None or source.rule is None else source.rule.virtual(names[-1] or "")
    work.visit(node, scope)
    if source is None or virtual is None or virtual.sources != (virtual.raw,):
        return
    if virtual.column.type not in _EXTREME_TYPES:
        return
    tokens = work.tokens
    at = tokens.at(argument.get("location", 0))
    last = tokens.dotted_end(at)
    if tokens.name(last + 1) != RPAREN:
        return
    first = at + 2 * max(len(names) - 2, 0)
    if raw_reference(source, names[-1] or "", tokens.starts[first], tokens.ends[last]) is None:
        return
    start, end = node.get("location", 0), tokens.ends[last + 1]
    source.around += [(start, start, f"{virtual.function}("), (end, end, ")")]
    work.wrapped.append(source)


def _compares(kind: str, name: Sequence[Node]) -> bool:
    words = [part["String"].get("sval", "") for part in name]
    if kind.endswith(("BETWEEN", "BETWEEN_SYM")):
        return True
    return words[-1] in _OPERATORS and words[:-1] in ([], ["pg_catalog"])


def _is_row(node: Node) -> bool:
    """Whether it is a row whose items can be told apart."""
    return "RowExpr" in node and all(
        field_names(item.get("ColumnRef", {}).get("fields", [{"String": {}}]))[-1] is not None
        for item in node["RowExpr"].get("args", ())
    )


def _compared(work: Work, operands: Sequence[Node], scope: Scope) -> None:
    """Walk over expressions that are compared with each other, rows column by column."""
    if all(map(_is_row, operands)):
        rows = [operand["RowExpr"].get("args", ()) for operand in operands]
        if len({len(row) for row in rows}) == 1:
            for column in zip(*rows, strict=True):
                _compared(work, column, scope)
            return
    found = [_operand(work, operand, scope) for operand in operands]
    virtual = next(filter(None, found), None)
    if virtual is not None:
        for operand in operands:
            _typed(work, operand, virtual.column.type)


def _operand(work: Work, node: Node, scope: Scope) -> Virtual | None:
    if "ColumnRef" in node:
        return reference(work, node["ColumnRef"], scope, compared=True)
    work.visit(node, scope)
    return None


def _typed(work: Work, node: Node, type_name: str) -> None:
    """Give a string literal the type that it took from the virtual column."""
    constant = node.get("A_Const", {})
    if "sval" not in constant:
        return
    tokens = work.tokens
    first = last = tokens.at(constant.get("location", 0))
    if tokens.name(first + 1) == "UESCAPE":
        last += 2
    work.insert(tokens.starts[first], "CAST(", "virtual_read")
    work.insert(tokens.ends[last], f" AS {type_name})", "virtual_read")


def sort_key(work: Work, value: Node, targets: Sequence[Node], scope: Scope, *, raw: bool) -> None:
    """Walk over an item of ORDER BY; ``raw`` says that the SELECT neither groups nor drops duplicates.

    A plain name means an output column before it means a table's, and a number always does.
    """
    meant = _meant(value, targets) if raw and work.compares else None
    if not _is_named_output(value, targets):
        work.visit(value, scope)
    if meant is None:
        return
    source = _source(meant, scope, any(is_star(target["val"]) for target in targets))
    if source is None:
        return
    ((_, node),) = value.items()
    tokens = work.tokens
    first = tokens.at(node.get("location", 0))
    last = tokens.dotted_end(first)
    if "ColumnRef" in value:
        first += 2 * max(len(node["fields"]) - 2, 0)
    raw_reference(source, meant[-1] or "", tokens.starts[first], tokens.ends[last])


def _is_named_output(value: Node, targets: Sequence[Node]) -> bool:
    names = field_names(value.get("ColumnRef", {}).get("fields", ()))
    return len(names) == 1 and any(target.get("name") == names[0] for target in targets)


def _meant(value: Node, targets: Sequence[Node]) -> list[str | None] | None:
    """The parts of the column reference that an item of ORDER BY means, if it means one."""
    if "A_Const" in value:
        position = value["A_Const"].get("ival", {}).get("ival", 0)
        if not 0 < position <= len(targets) or any(is_star(target["val"]) for target in targets[:position]):
            return None
        value = targets[position - 1]["val"]
    else:
        names = field_names(value.get("ColumnRef", {}).get("fields", ()))
        if len(names) == 1:
            outputs = [
                target["val"]
                for target in targets
                if not is_star(target["val"])
                and (target["name"] if "name" in target else figure_name(target["val"])[0]) == names[0]
            ]
            if outputs:
                value = outputs[0]
    names = field_names(value.get("ColumnRef", {}).get("fields", ()))
    return names if names and names[-1] is not None else None


def _source(parts: list[str | None], scope: Scope, stars: bool) -> Source | None:
    """The relation that a column reference of a SELECT's own level means, if that is certain."""
    if len(parts) > 1:
        return scope.qualified(parts[-2] or "")
    if stars and any(source.columns is None for source in scope.sources):
        return None
    having = [source for source in scope.sources if source.columns is not None and parts[0] in source.columns]
    if len(having) != 1 or not having[0].merged.isdisjoint((parts[0], None)):
        return None
    return having[0]
