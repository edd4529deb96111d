"""MERGE: left to the guard for old speakers, with lists supplied; a mere source is read as in a SELECT."""

from __future__ import annotations

from proxy.rewrite.assign import assignments
from proxy.rewrite.modify import returning
from proxy.rewrite.reasons import Reason
from proxy.rewrite.relations import FromList, dml_target, with_clause
from proxy.rewrite.resolve import Scope
from proxy.rewrite.rules import Rule
from proxy.rewrite.work import Refused, Work
from proxy.sql.parse import Node
from proxy.sql.quote import idents


def merge(work: Work, node: Node, outer: Scope) -> None:
    """Handle one MergeStmt."""
    ctes = with_clause(work, node, outer)
    target = dml_target(work, node["relation"])
    rule = target.rule
    if rule is not None and (rule.translated or (rule.side == "new" and rule.mirroring)):
        raise Refused(
            Reason.REFUSED_STATEMENT,
            f"MERGE into {rule.model.qualified} is not translated while a migration is in progress",
            hint="Use INSERT ... ON CONFLICT, or UPDATE and INSERT.",
        )
    others = Scope(ctes)
    level = FromList(work, others, ctes)
    level.add(node["sourceRelation"])
    scope = Scope(ctes)
    scope.sources = [*others.sources, target]
    work.visit(node.get("joinCondition", {}), scope)
    for entry in node["mergeWhenClauses"]:
        clause = entry["MergeWhenClause"]
        work.visit(clause.get("condition", {}), scope)
        work.visit(clause.get("values", []), scope)
        if clause.get("commandType") == "CMD_UPDATE":
            assignments(work, clause["targetList"], target, scope)
    if rule is not None:
        _lists(work, node, rule)
        work.leave_to_guard(rule, Reason.GUARD_MERGE, "MERGE is not mirrored inline.")
    returning(work, node, scope, target, level)
    level.finish()


def _lists(work: Work, node: Node, rule: Rule) -> None:
    """Supply the column lists that INSERT actions lack."""
    inserts = [
        clause["MergeWhenClause"]
        for clause in node["mergeWhenClauses"]
        if clause["MergeWhenClause"].get("commandType") == "CMD_INSERT"
    ]
    tokens = work.tokens
    at = tokens.at(node["relation"].get("location", 0))
    for clause in inserts:
        at = _insert_action(work, at)
        if "values" in clause and "targetList" not in clause:
            columns = tuple(column.column for column in rule.columns[: len(clause["values"])])
            work.insert(tokens.ends[at], f" ({idents(columns)})", "expand_list")
            work.tell(
                Reason.EXPAND_STAR, f"The column list of the version of {rule.model.qualified} is supplied."
            )
        at += 1


def _insert_action(work: Work, index: int) -> int:
    """The next INSERT that is an action: it stands after THEN."""
    tokens = work.tokens
    while True:
        index = tokens.names.index("INSERT", index)
        if tokens.name(index - 1) == "THEN":
            return index
        index += 1
