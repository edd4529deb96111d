"""A SET list taken apart: its items, the columns that each gives, and where their expressions stand in the text.

``(a, b) = (x, y)`` and ``(a, b) = ROW(x, y)`` mean the same to PostgreSQL as ``a = x, b = y``; of ``(a, b) = (SELECT
...)`` only the whole is known. The lists of UPDATE, of ON CONFLICT DO UPDATE and of MERGE's actions are alike, except
that in MERGE the next WHEN ends them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from proxy.rewrite.relations import is_star
from proxy.rewrite.work import Work
from proxy.sql.parse import Node
from proxy.sql.tokens import EQUALS, LPAREN, Tokens

Span = tuple[int, int]
"""Byte offsets of a part of the text."""


@dataclass(slots=True)
class Assignment:
    """One column of a SET list, as the tree has it."""

    column: str
    """Physical name."""
    node: Node
    start: int
    """Where the column's name stands, as a byte offset."""
    partial: bool
    """Whether a subscript or a field is assigned."""
    correlated: bool | None = None
    """For columns that a sub-select gives: whether it refers to the row that is updated, where that can be told."""


@dataclass(slots=True, eq=False)
class Cell:
    """One column and the expression that it is given."""

    column: str
    node: Node
    span: Span
    partial: bool = False


@dataclass(slots=True, eq=False)
class Item:
    """What stands between two commas of the list."""

    start: int
    end: int
    cells: list[Cell]
    query: Node | None = None
    """The sub-select that gives all cells; their own nodes are empty then."""
    correlated: bool | None = None
    """Whether the sub-select refers to the row that is updated, where that can be told."""
    opaque: bool = False
    """Whether it cannot be told which expression a column is given."""


def gives_several(assignment: Assignment) -> bool:
    """Whether the column is one of those that a sub-select gives."""
    return "SubLink" in assignment.node.get("MultiAssignRef", {}).get("source", {})


def take_apart(work: Work, assigned: Sequence[Assignment], *, in_merge: bool = False) -> list[Item]:
    """The items of a SET list."""
    tokens = work.tokens
    items = []
    at = 0
    while at < len(assigned):
        first = assigned[at]
        multiple = first.node.get("MultiAssignRef")
        name = tokens.at(first.start)
        if multiple is None:
            at += 1
            value = tokens.after(EQUALS, name)
            span = _span(tokens, value, in_merge)
            items.append(Item(first.start, span[1], [Cell(first.column, first.node, span, first.partial)]))
            continue
        group = assigned[at : at + multiple.get("ncolumns", 1)]
        at += len(group)
        value = tokens.close_of(name - 1) + 2
        start = tokens.starts[name - 1]
        items.append(_group(tokens, group, multiple["source"], value, start, in_merge))
    return items


def _span(tokens: Tokens, value: int, in_merge: bool) -> Span:
    return tokens.starts[value], tokens.ends[tokens.item_end(value, before_when=in_merge) - 1]


def _group(
    tokens: Tokens, group: Sequence[Assignment], source: Node, value: int, start: int, in_merge: bool
) -> Item:
    """Several columns in brackets; ``value`` is the token at which what they are given starts."""
    span = _span(tokens, value, in_merge)
    if "SubLink" in source:
        cells = [Cell(item.column, {}, span, item.partial) for item in group]
        return Item(
            start, span[1], cells, query=source["SubLink"]["subselect"], correlated=group[0].correlated
        )
    row = source.get("RowExpr", {})
    nodes: list[Node] = row.get("args", [])
    spans: list[Span] = []
    if len(nodes) == len(group) and not any(map(is_star, nodes)):
        spans = _row(tokens, value, len(nodes), row.get("row_format") == "COERCE_EXPLICIT_CALL")
    if len(spans) != len(group):
        cells = [Cell(item.column, {}, span, item.partial) for item in group]
        return Item(start, span[1], cells, opaque=True)
    cells = [
        Cell(item.column, node, part, item.partial)
        for item, node, part in zip(group, nodes, spans, strict=True)
    ]
    return Item(start, span[1], cells)


def _row(tokens: Tokens, at: int, width: int, explicit: bool) -> list[Span]:
    """The expressions of a row; there may be more brackets around it."""
    while tokens.name(at) in (LPAREN, "ROW"):
        if tokens.name(at) == "ROW":
            return tokens.items(at + 1)
        if not explicit:
            spans = tokens.items(at)
            if len(spans) == width:
                return spans
        at += 1
    return []
