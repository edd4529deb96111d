"""INSERT into a table of which the version has virtual columns.

They leave the column list and the rows, and what follows from them is appended. Rows whose expressions would stand
twice then, and rows that a query gives, become a derived table (``proxy.rewrite.derived``).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from proxy.rewrite.derived import Derived, from_query, from_rows, stands_alone
from proxy.rewrite.insertion import Insertion, Span
from proxy.rewrite.reasons import Reason
from proxy.rewrite.relations import is_star
from proxy.rewrite.rules import Rule
from proxy.rewrite.virtual import Cells, check, cut, inserted, is_default, refuse_lost, refused, uses
from proxy.rewrite.work import Unmirrorable, Work
from proxy.sql.parse import Node
from proxy.sql.quote import ident, idents

RECIPE = "virtual_write"


@dataclass(frozen=True, slots=True)
class Row:
    """A row of VALUES."""

    nodes: list[Node]
    cells: list[Span]
    close: int
    """Where its closing bracket stands."""


def check_lost(rule: Rule, columns: Sequence[str], rows: Sequence[Row]) -> None:
    """Refuse a value that nothing in the table could hold."""
    for at, key in enumerate(columns):
        if key in rule.virtuals and not uses(rule, key):
            for row in rows:
                if at < len(row.nodes) and not is_default(rule, key, row.nodes[at]):
                    refuse_lost(rule, key)


def repeats(work: Work, rule: Rule, columns: Sequence[str], rows: Sequence[Row]) -> bool:
    """Whether some expression would stand twice that must not."""
    for at, key in enumerate(columns):
        if uses(rule, key) + (key not in rule.virtuals) < 2:
            continue
        for row in rows:
            if at < len(row.nodes) and "SetToDefault" not in row.nodes[at]:
                start, end = row.cells[at]
                if not work.may_repeat(row.nodes[at], end - start):
                    return True
    return False


def _values(rule: Rule, cells: Cells) -> list[str | None]:
    return [inserted(rule, mirror, cells) for mirror in rule.mirrors]


def _targets(rule: Rule, rows: Sequence[Sequence[str | None]]) -> list[int]:
    """The mirrors that some row gives a value for."""
    return [at for at in range(len(rule.mirrors)) if any(row[at] is not None for row in rows)]


def insert_defaults(work: Work, rule: Rule, before: int) -> None:
    """DEFAULT VALUES has no room for more: it becomes a list and a row of what follows from the defaults.

    ``before`` is the token after which the list must stand.
    """
    tokens = work.tokens
    values = _values(rule, {})
    targets = _targets(rule, [values])
    if not targets:
        return
    names = idents(tuple(rule.mirrors[at].target for at in targets))
    work.insert(tokens.ends[before], f" ({names})", RECIPE)
    word = tokens.names.index("VALUES", before + 1)
    row = ", ".join(values[at] or "" for at in targets)
    work.replace(tokens.starts[word - 1], tokens.ends[word], f"VALUES ({row})", RECIPE)


def insert_rows(
    work: Work,
    rule: Rule,
    columns: Sequence[str],
    rows: Sequence[Row],
    listed: Sequence[Span] | None,
    before: int,
) -> None:
    """Take virtual columns out of rows of VALUES, and add what follows from them.

    ``listed`` are the items of the column list; without one it must stand after the token ``before``.
    """
    tokens = work.tokens
    removed = [at for at, key in enumerate(columns) if key in rule.virtuals]
    values = [
        _values(
            rule,
            {
                key: None if "SetToDefault" in row.nodes[at] else work.rendered(*row.cells[at])
                for at, key in enumerate(columns)
                if at < len(row.nodes) and (key in rule.virtuals or key in rule.sources)
            },
        )
        for row in rows
    ]
    targets = _targets(rule, values)
    added = [rule.mirrors[at].target for at in targets]
    spare = not added and len(removed) == len(columns)
    if spare:
        added = [rule.model.columns[0].name]  # a list must have something
    if listed is not None:
        kept = cut(work, listed, removed, RECIPE)
        close = tokens.starts[tokens.close_of(before + 1)]
        work.insert(close, (", " if kept and added else "") + ", ".join(map(ident, added)), RECIPE)
    else:
        names = [key for key in columns if key not in rule.virtuals]
        work.insert(tokens.ends[before], f" ({idents((*names, *added))})", "expand_list")
    for given, row in zip(values, rows, strict=True):
        kept = cut(work, row.cells, [at for at in removed if at < len(row.cells)], RECIPE)
        appended = ["DEFAULT"] if spare else [given[at] or "DEFAULT" for at in targets]
        if appended:
            work.insert(row.close, ", " * kept + ", ".join(appended), RECIPE)


class VirtualInsertion(Insertion):
    """See the module."""

    def rewrite(self) -> None:
        """Make the edits."""
        rule = self.rule
        columns = self.columns()
        check(rule, columns)
        self._check_parts(columns)
        if self.query is None:
            insert_defaults(self.work, rule, self.target_end)
        elif not self.rows or not stands_alone(self.query):
            self._derive(columns)
        elif any(is_star(cell) for row in self.rows for cell in row):
            raise refused(rule, "A row of VALUES is spread from a composite value.")
        else:
            self.find_rows()
            rows = [
                Row(nodes, cells, close) for nodes, (cells, close) in zip(self.rows, self.spans, strict=True)
            ]
            check_lost(rule, columns, rows)
            if repeats(self.work, rule, columns, rows):
                self._derive(columns)
            else:
                insert_rows(self.work, rule, columns, rows, self._list(), self.target_end)
        self.work.tell(
            Reason.VIRTUAL_WRITE,
            f"Values for columns that only this version of {rule.model.qualified} has become values of the table's.",
        )

    def _check_parts(self, columns: list[str]) -> None:
        for item, key in zip(self.node.get("cols", ()), columns, strict=False):
            if "indirection" in item["ResTarget"] and (key in self.rule.virtuals or key in self.rule.sources):
                raise refused(self.rule, "Only a part of a column is inserted.")

    def _list(self) -> list[Span] | None:
        """The items of the column list."""
        return self.work.tokens.items(self.target_end + 1) if "cols" in self.node else None

    def _derive(self, columns: list[str]) -> None:
        rule, work, tokens = self.rule, self.work, self.work.tokens
        if any("indirection" in item["ResTarget"] for item in self.node.get("cols", ())):
            raise refused(rule, "Only a part of a column is inserted.")
        try:
            derived = self._derived(columns)
        except Unmirrorable as why:
            raise refused(rule, why.sentence) from why
        for key, text in derived.cells.items():
            if text is not None:
                refuse_lost(rule, key)
        values = _values(rule, derived.cells)
        targets = _targets(rule, [values])
        kept = [at for at, key in enumerate(derived.columns) if key not in rule.virtuals]
        derived.outputs = [derived.outputs[at] for at in kept]
        derived.columns = [derived.columns[at] for at in kept]
        names = (*derived.columns, *(rule.mirrors[at].target for at in targets))
        if not names:
            raise refused(rule, "Nothing that is inserted has a place in the table.")
        start = end = tokens.ends[self.target_end]
        if "cols" in self.node:
            start = tokens.starts[self.target_end + 1]
            end = tokens.ends[tokens.close_of(self.target_end + 1)]
            work.take(start, end)
        work.replace(start, end, f" ({idents(names)})" if start == end else f"({idents(names)})", RECIPE)
        derived.write(work, [values[at] or "" for at in targets], RECIPE)

    def _derived(self, columns: list[str]) -> Derived:
        tokens, node = self.work.tokens, self.node
        if self.rows and self.spans:
            start = tokens.starts[self.values_keyword()]
            end = self.spans[-1][1] + 1  # the closing bracket has one byte
            return from_rows(
                self.work, self.rule, node, columns, [cells for cells, _ in self.spans], start, end
            )
        width = len(columns) if self.width is None and "cols" in node else self.width
        return from_query(self.work, self.rule, node, columns, width, self.query_start())
