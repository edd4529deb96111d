"""The parts of an INSERT's text: its target, column list and rows of VALUES."""

from __future__ import annotations

from proxy.rewrite.assign import set_name
from proxy.rewrite.relations import is_star
from proxy.rewrite.resolve import Source
from proxy.rewrite.rules import Rule
from proxy.rewrite.work import Work
from proxy.sql.parse import Node
from proxy.sql.tokens import LPAREN

Span = tuple[int, int]
"""Byte offsets of the start and the end of a part of the text."""


class Insertion:
    """The part of an INSERT before ON CONFLICT, into a table with a rule."""

    def __init__(self, work: Work, node: Node, target: Source, rule: Rule) -> None:
        self.work = work
        self.node = node
        self.target = target
        self.rule = rule
        tokens = work.tokens
        at = tokens.dotted_end(tokens.at(node["relation"].get("location", 0)))
        if "alias" in node["relation"]:
            at += 2 if tokens.name(at + 1) == "AS" else 1
        self.target_end = at
        """The index of the last token of the table's name and alias."""
        self.query: Node | None = node.get("selectStmt", {}).get("SelectStmt")
        self.rows: list[list[Node]] = [
            row["List"]["items"] for row in (self.query or {}).get("valuesLists", ())
        ]
        self.spans: list[tuple[list[Span], int]] = []
        """Of each row, after ``find_rows``: its cells, and where its closing bracket stands."""
        self.width = self._width()

    def _width(self) -> int | None:
        """How many columns the rows have, if that is known."""
        if self.rows:
            return None if any(map(is_star, self.rows[0])) else len(self.rows[0])
        names = None if self.query is None else self.work.outputs.get(id(self.query))
        return None if names is None else len(names)

    def columns(self) -> list[str]:
        """The physical columns that the statement gives, named or not."""
        if "cols" in self.node:
            return [
                set_name(
                    self.work,
                    self.target,
                    column["ResTarget"]["name"],
                    column["ResTarget"].get("location", 0),
                )
                for column in self.node["cols"]
            ]
        if self.query is None:
            return []
        physical = [column.column for column in self.rule.columns]
        return physical if self.width is None else physical[: self.width]

    def query_start(self) -> int:
        """The index of the first token after the column list, and after OVERRIDING ... VALUE."""
        tokens = self.work.tokens
        at = self.target_end + 1
        if "cols" in self.node:
            at = tokens.close_of(at) + 1
        return at + 3 if tokens.name(at) == "OVERRIDING" else at

    def find_rows(self) -> None:
        """Find the brackets of each row of VALUES, and the cells between them."""
        tokens = self.work.tokens
        self.spans = []
        at = self.values_keyword()
        for row in self.rows:
            at += 1
            if tokens.name(at) != LPAREN:
                raise LookupError("a row of VALUES has no brackets")
            close = tokens.close_of(at)
            cells = tokens.items(at)
            if len(cells) != len(row):
                raise LookupError("the cells of a row of VALUES were not found")
            self.spans.append((cells, tokens.starts[close]))
            at = close + 1

    def values_keyword(self) -> int:
        tokens = self.work.tokens
        at = self.query_start()
        assert self.query is not None
        if "withClause" in self.query:
            outermost = tokens.find("VALUES", at)
            if outermost >= 0:
                return outermost
        return tokens.names.index("VALUES", at)
