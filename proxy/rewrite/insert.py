"""INSERT: column lists supplied and translated, each row's mirrors appended, ON CONFLICT as in an UPDATE.

Rows that cannot take mirrors where they stand become a derived table (``proxy.rewrite.derived``).
"""

from __future__ import annotations

from dataclasses import replace

from proxy.rewrite.assign import assignments, require_inline, set_name
from proxy.rewrite.derived import ROWS, Derived, from_defaults, from_query, from_rows, query_end, stands_alone
from proxy.rewrite.insertion import Insertion
from proxy.rewrite.mirror import inserted_columns, inserted_mark, inserted_values
from proxy.rewrite.modify import returning
from proxy.rewrite.reasons import Reason
from proxy.rewrite.relations import dml_target, is_star, with_clause
from proxy.rewrite.resolve import Role, Scope, Source, no_arbiter
from proxy.rewrite.rules import Rule
from proxy.rewrite.virtual_insert import VirtualInsertion
from proxy.rewrite.virtual_set import carry
from proxy.rewrite.work import FALLBACK, Refused, Unmirrorable, Work
from proxy.sql.parse import Node
from proxy.sql.quote import ident, idents
from proxy.sql.tokens import LPAREN


def insert(work: Work, node: Node, outer: Scope) -> None:
    """Handle one InsertStmt."""
    ctes = with_clause(work, node, outer)
    target = dml_target(work, node["relation"])
    work.visit(node.get("selectStmt", {}), ctes)
    if target.rule is not None:
        (VirtualInsertion if target.rule.virtuals else _Insert)(work, node, target, target.rule).rewrite()
    scope = Scope(ctes)
    scope.sources = [target]
    _on_conflict(work, node.get("onConflictClause"), target, ctes)
    returning(work, node, scope, target, None)


class _Insert(Insertion):
    """The part of an INSERT before ON CONFLICT, into a table with a rule."""

    def __init__(self, work: Work, node: Node, target: Source, rule: Rule) -> None:
        super().__init__(work, node, target, rule)
        self.mark_recipe = "mirror_insert" if rule.side == "old" else "mark_insert"
        """An old speaker's mark belongs to the mirrors; a new one's stays, or the guard would not know whose it is."""

    def rewrite(self) -> None:
        columns = self.columns()
        added, mark, per_row = [], None, None
        try:
            per_row = self._mirrored(columns)
            added = inserted_columns(self.rule) if per_row is not None else []
        except Unmirrorable as why:
            try:
                self._derive(columns, why)
                return
            except Unmirrorable as reason:
                self.work.leave_to_guard(self.rule, reason.reason, reason.sentence)
        if self.rule.mark is not None and (per_row is not None or self.rule.side == "new"):
            # A new speaker's row always says so: else the guard would take the old shape's nulls for the
            # truth.
            mark = self.rule.mark
        self._column_list(columns, added, mark)
        if mark is None and per_row is None:
            return
        if per_row is not None:
            self._append_mirrors(per_row)
        else:
            self._append_marks(self.mark_recipe)

    def _mirrored(self, columns: list[str]) -> list[tuple[list[str], str]] | None:
        """Per row, the cells to append and the mark; None where nothing is to be mirrored inline."""
        rule, work = self.rule, self.work
        if not rule.mirroring:
            return None
        require_inline(work, rule)
        if self._overridden(columns):
            raise Unmirrorable(
                Reason.GUARD_COMPUTED_COLUMN,
                "OVERRIDING USER VALUE: only the server knows the value of an identity column.",
            )
        if any("indirection" in column["ResTarget"] for column in self.node.get("cols", ())):
            raise Unmirrorable(Reason.GUARD_SUBSCRIPT, "Only a part of a column is inserted.")
        if self.query is not None and not self.rows:
            raise Unmirrorable(Reason.GUARD_INSERT_SELECT, "The rows come from a query.")
        if self.query is None:
            return [self._row({})]
        if any(is_star(cell) for row in self.rows for cell in row):
            raise Unmirrorable(Reason.GUARD_OTHER, "A row of VALUES is spread from a composite value.")
        self.find_rows()
        wanted = [(at, name) for at, name in enumerate(columns) if name in rule.sources]
        return [self._row(self._cells(row, wanted, at)) for at, row in enumerate(self.rows)]

    def _overridden(self, columns: list[str]) -> bool:
        """Whether values that mirrors depend on are given, and not taken."""
        return self.node.get("override") == "OVERRIDING_USER_VALUE" and any(
            name in self.rule.sources and self.rule.model.column(name).identity for name in columns
        )

    def _derive(self, columns: list[str], why: Unmirrorable) -> None:
        """Write the derived form, or raise why this statement must be left to the guard."""
        rule, work = self.rule, self.work
        if why.reason is Reason.GUARD_INSERT_SELECT:
            derived = self._derived_query(columns)
        elif why.reason in (Reason.GUARD_VOLATILE_EXPRESSION, Reason.GUARD_VOLATILE_DEFAULT):
            try:
                derived = self._derived_rows(columns)
            except Unmirrorable as other:
                sentence = f"{why.sentence} {other.sentence}"
                raise Unmirrorable(why.reason, sentence) from other
        else:
            raise why
        derived.give_defaults(rule)
        values, marked = self._row(derived.cells)
        added = inserted_columns(rule)
        mark = rule.mark
        if derived.columns == columns:
            self._column_list(columns, added, mark)
        else:
            self._column_list(columns, [], mark if rule.side == "new" else None)
            self._shorter_list(derived.columns + added + ([mark] if mark else []))
        derived.write(work, [*values, *([marked] if mark else ())])
        if mark and rule.side == "new":
            self._append_marks(FALLBACK)
        work.mirrored = True
        work.tell(
            Reason.DUAL_WRITE,
            f"Rows inserted into {rule.model.qualified} get both shapes; what is inserted becomes a derived table, so"
            " that each of its expressions is evaluated once.",
        )

    def _derived_query(self, columns: list[str]) -> Derived:
        width, assumed = self.width, False
        if width is None and self.rule.model.guard == "sync":
            # The prober asks the server. Without a guard it has no choice.
            width, assumed = len(columns), True
        return from_query(
            self.work, self.rule, self.node, columns, width, self.query_start(), assumed=assumed
        )

    def _derived_rows(self, columns: list[str]) -> Derived:
        tokens = self.work.tokens
        if self.query is None:
            first = self.target_end + 1
            return from_defaults(tokens.starts[first], tokens.ends[tokens.names.index("VALUES", first)])
        if not stands_alone(self.query):
            return self._derived_query(columns)
        start = tokens.starts[self.values_keyword()]
        end = self.spans[-1][1] + 1  # the closing bracket has one byte
        return from_rows(
            self.work, self.rule, self.node, columns, [cells for cells, _ in self.spans], start, end
        )

    def _shorter_list(self, names: list[str]) -> None:
        """Replace the column list by one that leaves out what is DEFAULT in every row."""
        tokens = self.work.tokens
        start = end = tokens.ends[self.target_end]
        if "cols" in self.node:
            end = tokens.ends[tokens.close_of(self.target_end + 1)]
        self.work.only_in_fallback(start, end)
        self.work.replace(start, end, f" ({idents(tuple(names))})", "mirror_insert")

    def _row(self, cells: dict[str, str | None]) -> tuple[list[str], str]:
        return inserted_values(self.rule, cells), inserted_mark(self.rule, cells)

    def _cells(self, row: list[Node], wanted: list[tuple[int, str]], index: int) -> dict[str, str | None]:
        cells: dict[str, str | None] = {}
        spans = self.spans[index][0]
        for at, name in wanted:
            if at >= len(row):
                continue
            start, end = spans[at]
            if "SetToDefault" in row[at]:
                cells[name] = None
            elif self.work.may_repeat(row[at], end - start):
                cells[name] = self.work.rendered(start, end)
            else:
                raise Unmirrorable(
                    Reason.GUARD_VOLATILE_EXPRESSION,
                    f"What is inserted into column {name} may differ, or cost much, if written twice.",
                )
        return cells

    def _column_list(self, columns: list[str], added: list[str], mark: str | None) -> None:
        work, tokens = self.work, self.work.tokens
        extra = "".join(f", {ident(name)}" for name in added)
        marked = f", {ident(mark)}" if mark else ""
        if "cols" in self.node:
            at = tokens.starts[tokens.close_of(self.target_end + 1)]
            self._insert(at, extra, "mirror_insert")
            self._insert(at, marked, self.mark_recipe)
            return
        at = tokens.ends[self.target_end]
        if self.query is None:
            return
        if self.width is None and self.rule.prefix and not marked and not extra:
            # A list could be longer than what the query gives, which without one is no error.
            return
        # The fallback has such a list only where it must be.
        taken = self.width is None and self.rule.prefix and self.rule.side == "old"
        recipe = "mirror_insert" if taken else "expand_list"
        self._insert(at, f" ({idents(tuple(columns))}", recipe)
        self._insert(at, extra, "mirror_insert")
        self._insert(at, marked, self.mark_recipe)
        self._insert(at, ")", recipe)
        work.tell(
            Reason.EXPAND_STAR, f"The column list of the version of {self.rule.model.qualified} is supplied."
        )

    def _append_mirrors(self, per_row: list[tuple[list[str], str]]) -> None:
        work = self.work
        if self.query is None:
            values, marked = per_row[0]
            default_values(
                work,
                self.rule,
                self.target_end,
                inserted_columns(self.rule),
                values,
                marked,
                self.mark_recipe,
            )
        else:
            for (values, marked), (_, close) in zip(per_row, self.spans, strict=True):
                self._insert(close, "".join(f", {value}" for value in values), "mirror_insert")
                self._insert(close, f", {marked}" if self.rule.mark else "", self.mark_recipe)
        work.mirrored = True
        work.tell(Reason.DUAL_WRITE, f"Rows inserted into {self.rule.model.qualified} get both shapes.")

    def _append_marks(self, recipe: str) -> None:
        """A new speaker's rows that the guard must complete: only the mark is added."""
        if self.query is None:
            default_values(self.work, self.rule, self.target_end, [], [], "3::int2", recipe)
        elif self.rows:
            self.find_rows()
            for _, close in self.spans:
                self.work.insert(close, ", 3::int2", recipe)
        else:
            self._mark_query(self.query, recipe)

    def _mark_query(self, query: Node, recipe: str) -> None:
        """Add the mark to the lists of a query, or around it where TABLE or VALUES leaves no place."""
        work, tokens = self.work, self.work.tokens
        leaves = _leaves(query)
        if any("targetList" not in leaf and "valuesLists" not in leaf for leaf in leaves):
            raise Refused(
                Reason.REFUSED_CONSTRUCT,
                f"this INSERT into {self.rule.model.qualified} cannot be translated",
                hint="Write its query as a SELECT with a list of columns.",
            )
        items = [leaf["targetList"][-1]["ResTarget"] if "targetList" in leaf else {} for leaf in leaves]
        lasts = [item.get("location", 0) if item else -1 for item in items]
        if min(lasts) < 0:
            first = self.query_start()
            end = tokens.ends[query_end(work, self.node, first) - 1]
            work.insert(tokens.starts[first], "SELECT *, 3::int2 FROM (", recipe)
            work.insert(end, f") AS {ROWS}", recipe)
            return
        for last in lasts:
            end = tokens.item_end(tokens.at(last))
            work.insert(tokens.ends[end - 1], ", 3::int2", recipe)

    def _insert(self, at: int, text: str, recipe: str) -> None:
        if text:
            self.work.insert(at, text, recipe)


def default_values(
    work: Work, rule: Rule, after: int, names: list[str], values: list[str], marked: str, recipe: str
) -> None:
    """DEFAULT VALUES has no room for more: after the token ``after`` come a list and a row of what is added."""
    tokens, mark = work.tokens, rule.mark
    start = tokens.starts[after + 1]
    end = tokens.ends[tokens.names.index("VALUES", after)]
    at = tokens.ends[after]
    between = ", " if mark and names else ""
    edits = [
        (at, " (", recipe),
        (at, ", ".join(map(ident, names)) + between, "mirror_insert"),
        (at, f"{ident(mark)})" if mark else ")", recipe),
        (end, ", ".join(values) + between, "mirror_insert"),
        (end, f"{marked})" if mark else ")", recipe),
    ]
    work.replace(start, end, "VALUES (", recipe)
    for place, text, name in edits:
        if text:
            work.insert(place, text, name)


def _leaves(query: Node) -> list[Node]:
    """The SELECTs and VALUES under set operations."""
    if "larg" in query:
        return _leaves(query["larg"]) + _leaves(query["rarg"])
    return [query]


def _on_conflict(work: Work, clause: Node | None, target: Source, ctes: Scope) -> None:
    if clause is None:
        return
    rule = target.rule
    infer = clause.get("infer")
    if infer is not None:
        bare = Scope(ctes)
        bare.sources = [replace(target, bare=True)]
        if rule is not None and rule.translated:
            _conflict_columns(work, clause, infer, target)
        for element in infer.get("indexElems", ()):
            work.visit(element["IndexElem"].get("expr", {}), bare)
        work.visit(infer.get("whereClause", {}), bare)
    if clause.get("action") != "ONCONFLICT_UPDATE":
        return
    scope = Scope(ctes)
    excluded = Source("excluded", rule, target.columns, Role.EXCLUDED)
    scope.sources = [target, excluded]
    assigned = assignments(work, clause["targetList"], target, scope)
    work.visit(clause.get("whereClause", {}), scope)
    if rule is not None:
        carry(work, rule, ident(target.name or ""), assigned)


def _conflict_columns(work: Work, clause: Node, infer: Node, target: Source) -> None:
    """Translate the plain column names of ON CONFLICT (...)."""
    tokens = work.tokens
    at = tokens.at(clause.get("location", 0)) + 2
    if tokens.name(at) != LPAREN:
        return
    at += 1
    for element in infer.get("indexElems", ()):
        name = element["IndexElem"].get("name")
        virtual = None if name is None or target.rule is None else target.rule.virtual(name)
        if virtual is not None:
            if virtual.raw is None:
                raise no_arbiter(target, virtual)
            work.replace(tokens.starts[at], tokens.ends[at], ident(virtual.raw), "translate")
        elif name is not None:
            set_name(work, target, name, tokens.starts[at])
        at = tokens.item_end(at) + 1
