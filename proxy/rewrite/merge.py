"""MERGE: names translated, lists supplied, mirrors added in each action that writes.

The rows that an action works on come from a join, so there is no place in which an INSERT action's volatile expression
could be evaluated once and seen twice. Where one action cannot have its mirrors, none has, and the guard carries the
whole statement over. DELETE and DO NOTHING need none.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import islice

from proxy.rewrite.assign import assignments, require_inline, set_changes, set_name, write_changes
from proxy.rewrite.insert import default_values
from proxy.rewrite.mirror import inserted_columns, inserted_mark, inserted_values
from proxy.rewrite.modify import returning
from proxy.rewrite.multiassign import Change
from proxy.rewrite.reasons import Reason
from proxy.rewrite.relations import FromList, dml_target, with_clause
from proxy.rewrite.resolve import Scope, Source
from proxy.rewrite.rules import Rule
from proxy.rewrite.setlist import Assignment, gives_several
from proxy.rewrite.virtual import check, refused
from proxy.rewrite.virtual_insert import Row, check_lost, insert_defaults, insert_rows, repeats
from proxy.rewrite.virtual_set import set_virtuals
from proxy.rewrite.work import Unmirrorable, Work
from proxy.sql.parse import Node
from proxy.sql.quote import ident, idents
from proxy.sql.tokens import LPAREN

_SEES_SOURCE = frozenset({"MERGE_WHEN_MATCHED", "MERGE_WHEN_NOT_MATCHED_BY_TARGET"})
_SEES_TARGET = frozenset({"MERGE_WHEN_MATCHED", "MERGE_WHEN_NOT_MATCHED_BY_SOURCE"})


@dataclass(slots=True)
class _Insertion:
    """An INSERT action, and what a mirrored one writes besides."""

    clause: Node
    columns: list[str]
    """Physical."""
    given: bool
    """Whether the statement has a column list."""
    at: int
    """The index of the token INSERT."""
    added: list[str] = field(default_factory=list)
    values: list[str] = field(default_factory=list)
    mark: str | None = None


def merge(work: Work, node: Node, outer: Scope) -> None:
    """Handle one MergeStmt."""
    ctes = with_clause(work, node, outer)
    target = dml_target(work, node["relation"])
    others = Scope(ctes)
    level = FromList(work, others, ctes)
    level.add(node["sourceRelation"])
    scope = _scope(ctes, others.sources, target)
    work.visit(node.get("joinCondition", {}), scope)
    updates: list[list[Assignment]] = []
    insertions: list[_Insertion] = []
    clauses = [entry["MergeWhenClause"] for entry in node["mergeWhenClauses"]]
    places = [] if target.rule is None else _actions(work, node, len(clauses))
    for index, clause in enumerate(clauses):
        kind = clause.get("matchKind", "MERGE_WHEN_MATCHED")
        inner = _scope(
            ctes, others.sources if kind in _SEES_SOURCE else [], target if kind in _SEES_TARGET else None
        )
        work.visit(clause.get("condition", {}), inner)
        if clause.get("commandType") == "CMD_UPDATE":
            updates.append(assignments(work, clause["targetList"], target, inner))
        elif clause.get("commandType") == "CMD_INSERT":
            work.visit(clause.get("values", []), inner)
            if target.rule is not None:
                insertions.append(_insertion(work, clause, target, target.rule, places[index]))
    returning(work, node, scope, target, level)
    level.finish()
    if target.rule is not None:
        carry = _translate if target.rule.virtuals else _mirror
        carry(work, target.rule, ident(target.name or ""), updates, insertions)


def _scope(ctes: Scope, sources: list[Source], target: Source | None) -> Scope:
    scope = Scope(ctes)
    scope.sources = [*sources, *([target] if target is not None else [])]
    return scope


def _actions(work: Work, node: Node, count: int) -> list[int]:
    """The index of each action's first token, after its THEN."""
    tokens = work.tokens
    found = tokens.outside_case("THEN", tokens.at(node["relation"].get("location", 0)))
    return [at + 1 for at in islice(found, count)]


def _insertion(work: Work, clause: Node, target: Source, rule: Rule, at: int) -> _Insertion:
    columns = [
        set_name(work, target, column["ResTarget"]["name"], column["ResTarget"].get("location", 0))
        for column in clause.get("targetList", ())
    ]
    if columns or "values" not in clause:
        return _Insertion(clause, columns, bool(columns), at)
    columns = [column.column for column in rule.columns[: len(clause["values"])]]
    return _Insertion(clause, columns, False, at)


def _translate(
    work: Work, rule: Rule, qualifier: str, updates: list[list[Assignment]], insertions: list[_Insertion]
) -> None:
    """Turn what all actions write to virtual columns into values of the table's."""
    several = brought = 0
    for assigned in updates:
        made = set_virtuals(work, rule, qualifier, assigned, in_merge=True)
        brought += made
        several += made or any(map(gives_several, assigned))
    if several > 1 and brought:  # see _set_changes
        raise refused(rule, "More than one action of MERGE would assign the columns of a sub-select.")
    for insertion in insertions:
        clause, tokens = insertion.clause, work.tokens
        check(rule, insertion.columns)
        if any("indirection" in column["ResTarget"] for column in clause.get("targetList", ())):
            raise refused(rule, "Only a part of a column is inserted.")
        if "values" not in clause:
            insert_defaults(work, rule, insertion.at)
            continue
        bracket = _row(work, insertion)
        row = Row(clause["values"], tokens.items(bracket), tokens.starts[tokens.close_of(bracket)])
        if len(row.nodes) != len(row.cells):
            raise refused(rule, "An action's values were not found.")
        check_lost(rule, insertion.columns, [row])
        if repeats(work, rule, insertion.columns, [row]):
            raise refused(rule, "What an action of MERGE inserts may differ, or cost much, if written twice.")
        listed = tokens.items(insertion.at + 1) if insertion.given else None
        insert_rows(work, rule, insertion.columns, [row], listed, insertion.at)
    if insertions:
        work.tell(
            Reason.VIRTUAL_WRITE,
            f"Values for columns that only this version of {rule.model.qualified} has become values of the table's.",
        )


def _mirror(
    work: Work, rule: Rule, qualifier: str, updates: list[list[Assignment]], insertions: list[_Insertion]
) -> None:
    """Write the mirrors of all actions, or of none."""
    changes: list[Change] = []
    mirrored = rule.mirroring
    try:
        changes = _set_changes(work, rule, qualifier, updates)
        for insertion in insertions:
            if mirrored:
                _values(work, rule, insertion)
    except Unmirrorable as why:
        work.leave_to_guard(rule, why.reason, why.sentence)
        changes, mirrored = [], False
    if changes:
        write_changes(work, rule, changes)
    for insertion in insertions:
        if not mirrored:
            insertion.added, insertion.values = [], []
            insertion.mark = "3::int2" if rule.mark is not None and rule.side == "new" else None
        _insert(work, rule, insertion)
    if insertions and mirrored:
        work.mirrored = True
        work.tell(Reason.DUAL_WRITE, f"Rows inserted into {rule.model.qualified} get both shapes.")


def _set_changes(work: Work, rule: Rule, qualifier: str, updates: list[list[Assignment]]) -> list[Change]:
    """The edits that mirror all UPDATE actions."""
    changes: list[Change] = []
    several = 0
    for assigned in updates:
        added = set_changes(work, rule, qualifier, assigned, in_merge=True)
        brought = any(change.assigns_several for change in added)
        several += brought or any(gives_several(item) for item in assigned)
        changes += added
    if several > 1 and any(change.assigns_several for change in changes):
        # PostgreSQL (18 too) takes the columns of one action's sub-select for those of another's.
        raise Unmirrorable(
            Reason.GUARD_VOLATILE_EXPRESSION,
            "More than one action of MERGE would assign the columns of a sub-select.",
        )
    return changes


def _values(work: Work, rule: Rule, insertion: _Insertion) -> None:
    """Find what an INSERT action must write besides, or raise Unmirrorable."""
    require_inline(work, rule)
    clause = insertion.clause
    nodes: list[Node] = clause.get("values", [])
    spans = work.tokens.items(_row(work, insertion)) if nodes else []
    targets = [column["ResTarget"] for column in clause.get("targetList", ())]
    if any("indirection" in column for column in targets):
        raise Unmirrorable(Reason.GUARD_SUBSCRIPT, "Only a part of a column is inserted.")
    if len(nodes) != len(insertion.columns) or len(spans) != len(nodes):
        raise Unmirrorable(Reason.GUARD_OTHER, "An action's values are not as many as its columns.")
    overridden = clause.get("override") == "OVERRIDING_USER_VALUE"
    cells: dict[str, str | None] = {}
    for name, value, (start, end) in zip(insertion.columns, nodes, spans, strict=True):
        if name not in rule.sources:
            continue
        if overridden and rule.model.column(name).identity:
            raise Unmirrorable(
                Reason.GUARD_COMPUTED_COLUMN,
                "OVERRIDING USER VALUE: only the server knows the value of an identity column.",
            )
        if "SetToDefault" in value:
            cells[name] = None
        elif work.may_repeat(value, end - start):
            cells[name] = work.rendered(start, end)
        else:
            raise Unmirrorable(
                Reason.GUARD_VOLATILE_EXPRESSION,
                f"What is inserted into column {name} may differ, or cost much, if written twice.",
            )
    insertion.added = inserted_columns(rule)
    insertion.values = inserted_values(rule, cells)
    insertion.mark = None if rule.mark is None else inserted_mark(rule, cells)


def _row(work: Work, insertion: _Insertion) -> int:
    """The index of the bracket that opens an INSERT action's values."""
    at = insertion.at + 1
    if work.tokens.name(at) == LPAREN:
        at = work.tokens.close_of(at)
    return work.tokens.names.index("VALUES", at) + 1


def _insert(work: Work, rule: Rule, insertion: _Insertion) -> None:
    """Complete an INSERT action's column list and its row."""
    tokens = work.tokens
    recipe = "mirror_insert" if rule.side == "old" else "mark_insert"
    names = "".join(f", {ident(name)}" for name in insertion.added)
    values = "".join(f", {value}" for value in insertion.values)
    mark = f", {ident(rule.mark)}" if rule.mark is not None and insertion.mark else ""
    marked = f", {insertion.mark}" if mark else ""
    if "values" not in insertion.clause:
        if names or mark:
            default_values(
                work, rule, insertion.at, insertion.added, insertion.values, insertion.mark or "", recipe
            )
        return
    after = tokens.ends[insertion.at]
    if insertion.given:
        end = tokens.starts[tokens.close_of(insertion.at + 1)]
        _add(work, end, names, "mirror_insert")
        _add(work, end, mark, recipe)
    else:
        work.insert(after, f" ({idents(tuple(insertion.columns))}", "expand_list")
        _add(work, after, names, "mirror_insert")
        _add(work, after, mark, recipe)
        work.insert(after, ")", "expand_list")
        work.tell(
            Reason.EXPAND_STAR, f"The column list of the version of {rule.model.qualified} is supplied."
        )
    end = tokens.starts[tokens.close_of(_row(work, insertion))]
    _add(work, end, values, "mirror_insert")
    _add(work, end, marked, recipe)


def _add(work: Work, at: int, text: str, recipe: str) -> None:
    if text:
        work.insert(at, text, recipe)
