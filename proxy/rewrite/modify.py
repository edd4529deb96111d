"""UPDATE and DELETE, and the RETURNING list that they share with INSERT and MERGE."""

from __future__ import annotations

from dataclasses import replace

from proxy.rewrite.assign import assignments
from proxy.rewrite.relations import FromList, dml_target, with_clause
from proxy.rewrite.resolve import Role, Scope, Source
from proxy.rewrite.select import expand_stars, target_list
from proxy.rewrite.virtual_set import carry
from proxy.rewrite.work import Work
from proxy.sql.parse import Node
from proxy.sql.quote import ident


def update(work: Work, node: Node, outer: Scope) -> None:
    """Handle one UpdateStmt."""
    ctes = with_clause(work, node, outer)
    target = dml_target(work, node["relation"])
    level, scope = _from_list(work, node.get("fromClause", ()), target, ctes)
    work.visit(node.get("whereClause", {}), scope)
    assigned = assignments(work, node["targetList"], target, scope)
    returning(work, node, scope, target, level)
    level.finish()
    if target.rule is not None:
        carry(work, target.rule, ident(target.name or ""), assigned)


def delete(work: Work, node: Node, outer: Scope) -> None:
    """Handle one DeleteStmt: there is nothing to mirror, the row goes with both shapes."""
    ctes = with_clause(work, node, outer)
    target = dml_target(work, node["relation"])
    level, scope = _from_list(work, node.get("usingClause", ()), target, ctes)
    work.visit(node.get("whereClause", {}), scope)
    returning(work, node, scope, target, level)
    level.finish()


def _from_list(
    work: Work, items: list[Node] | tuple[()], target: Source, ctes: Scope
) -> tuple[FromList, Scope]:
    """The other relations of a statement (they do not see its target), and the scope of all of them."""
    others = Scope(ctes)
    level = FromList(work, others, ctes)
    for item in items:
        level.add(item)
    scope = Scope(ctes)
    scope.sources = [target, *others.sources]
    return level, scope


def returning(work: Work, node: Node, scope: Scope, target: Source, level: FromList | None) -> None:
    """Handle a RETURNING clause, PostgreSQL 18's OLD and NEW included."""
    clause = node.get("returningClause")
    if clause is None:
        return
    named = {"old": "old", "new": "new"}
    for option in clause.get("options", ()):
        value = option["ReturningOption"]
        which = "new" if value.get("option") == "RETURNING_OPTION_NEW" else "old"
        named[which] = value["value"]
    inner = Scope(scope.parent)
    seen = replace(target, aliases=frozenset(named.values()))
    inner.sources = [
        seen if source is target else source for source in scope.sources if source.role is not Role.EXCLUDED
    ]
    stars = target_list(work, clause["exprs"], inner)
    expand_stars(work, stars, inner, level)
