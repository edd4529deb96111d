"""INSERT into a table of which the version has virtual columns.

They leave the column list and the rows, and what follows from them is appended. Rows whose expressions would stand
twice then, and rows that a query gives, become a derived table (``proxy.rewrite.derived``).
"""

from __future__ import annotations

from proxy.rewrite.derived import Derived, from_query, from_rows, stands_alone
from proxy.rewrite.insertion import Insertion, Span
from proxy.rewrite.reasons import Reason
from proxy.rewrite.relations import is_star
from proxy.rewrite.virtual import Cells, check, cut, inserted, is_default, lost, refused, uses
from proxy.rewrite.work import Unmirrorable
from proxy.sql.quote import ident, idents
from proxy.sql.repeatable import repeatable

RECIPE = "virtual_write"


class VirtualInsertion(Insertion):
    """See the module."""

    def rewrite(self) -> None:
        """Make the edits."""
        rule = self.rule
        columns = self.columns()
        check(rule, columns)
        self._check_parts(columns)
        if self.query is None:
            self._default_values()
        elif not self.rows or not stands_alone(self.query):
            self._derive(columns)
        elif any(is_star(cell) for row in self.rows for cell in row):
            raise refused(rule, "A row of VALUES is spread from a composite value.")
        else:
            self._check_lost(columns)
            self.find_rows()
            if self._repeats(columns):
                self._derive(columns)
            else:
                self._rows(columns)
        self.work.tell(
            Reason.VIRTUAL_WRITE,
            f"Values for columns that only this version of {rule.model.qualified} has become values of the table's.",
        )

    def _check_parts(self, columns: list[str]) -> None:
        for item, key in zip(self.node.get("cols", ()), columns, strict=False):
            if "indirection" in item["ResTarget"] and (key in self.rule.virtuals or key in self.rule.sources):
                raise refused(self.rule, "Only a part of a column is inserted.")

    def _check_lost(self, columns: list[str]) -> None:
        for at, key in enumerate(columns):
            if key in self.rule.virtuals and not uses(self.rule, key):
                for row in self.rows:
                    if at < len(row) and not is_default(self.rule, key, row[at]):
                        raise lost(self.rule, key)

    def _repeats(self, columns: list[str]) -> bool:
        """Whether some expression would stand twice that must not."""
        for at, key in enumerate(columns):
            if uses(self.rule, key) + (key not in self.rule.virtuals) < 2:
                continue
            for row, (cells, _) in zip(self.rows, self.spans, strict=True):
                if at < len(row) and "SetToDefault" not in row[at]:
                    start, end = cells[at]
                    if not repeatable(row[at], end - start):
                        return True
        return False

    def _values(self, cells: Cells) -> list[str | None]:
        return [inserted(self.rule, mirror, cells) for mirror in self.rule.mirrors]

    def _targets(self, rows: list[list[str | None]]) -> list[int]:
        """The mirrors that some row gives a value for."""
        return [at for at in range(len(self.rule.mirrors)) if any(row[at] is not None for row in rows)]

    def _default_values(self) -> None:
        """DEFAULT VALUES has no room for more: it becomes a list and a row of what follows from the defaults."""
        work, tokens = self.work, self.work.tokens
        values = self._values({})
        targets = self._targets([values])
        if not targets:
            return
        names = idents(tuple(self.rule.mirrors[at].target for at in targets))
        work.insert(tokens.ends[self.target_end], f" ({names})", RECIPE)
        word = tokens.names.index("VALUES", self.target_end + 1)
        row = ", ".join(values[at] or "" for at in targets)
        work.replace(tokens.starts[word - 1], tokens.ends[word], f"VALUES ({row})", RECIPE)

    def _rows(self, columns: list[str]) -> None:
        rule, work = self.rule, self.work
        removed = [at for at, key in enumerate(columns) if key in rule.virtuals]
        values = [
            self._values(
                {
                    key: None if "SetToDefault" in row[at] else work.rendered(*cells[at])
                    for at, key in enumerate(columns)
                    if at < len(row) and (key in rule.virtuals or key in rule.sources)
                }
            )
            for row, (cells, _) in zip(self.rows, self.spans, strict=True)
        ]
        targets = self._targets(values)
        added = [rule.mirrors[at].target for at in targets]
        spare = not added and len(removed) == len(columns)
        if spare:
            added = [rule.model.columns[0].name]  # a list must have something
        self._list(columns, removed, added)
        for row, (cells, close) in zip(values, self.spans, strict=True):
            kept = cut(work, cells, [at for at in removed if at < len(cells)], RECIPE)
            appended = ["DEFAULT"] if spare else [row[at] or "DEFAULT" for at in targets]
            if appended:
                work.insert(close, ", " * kept + ", ".join(appended), RECIPE)

    def _list(self, columns: list[str], removed: list[int], added: list[str]) -> None:
        """Change the column list, or supply it."""
        work, tokens = self.work, self.work.tokens
        if "cols" in self.node:
            spans, close = self._list_spans()
            kept = cut(work, spans, removed, RECIPE)
            work.insert(close, (", " if kept and added else "") + ", ".join(map(ident, added)), RECIPE)
            return
        kept_columns = [key for at, key in enumerate(columns) if at not in set(removed)]
        work.insert(tokens.ends[self.target_end], f" ({idents((*kept_columns, *added))})", "expand_list")

    def _list_spans(self) -> tuple[list[Span], int]:
        """The column list's items, and where its closing bracket stands."""
        tokens = self.work.tokens
        close = tokens.close_of(self.target_end + 1)
        spans = []
        first = self.target_end + 2
        while first <= close:
            end = tokens.item_end(first)
            spans.append((tokens.starts[first], tokens.ends[end - 1]))
            first = end + 1
        return spans, tokens.starts[close]

    def _derive(self, columns: list[str]) -> None:
        rule, work, tokens = self.rule, self.work, self.work.tokens
        if any("indirection" in item["ResTarget"] for item in self.node.get("cols", ())):
            raise refused(rule, "Only a part of a column is inserted.")
        try:
            derived = self._derived(columns)
        except Unmirrorable as why:
            raise refused(rule, why.sentence) from why
        for key, text in derived.cells.items():
            if key in rule.virtuals and not uses(rule, key) and text is not None:
                raise lost(rule, key)
        values = self._values(derived.cells)
        targets = self._targets([values])
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
