"""Everything that is no plain SELECT, INSERT, UPDATE or DELETE: COPY, MERGE, statements around others, DDL.

Old speakers may do whatever the guard can carry over; what would bake the shapes' columns into another
object, or change the table under the migration, is refused. New speakers may do what needs no column names,
or what surely translates.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from proxy.rewrite.copy import copy
from proxy.rewrite.merge import merge
from proxy.rewrite.reasons import Reason
from proxy.rewrite.relations import retarget
from proxy.rewrite.resolve import Scope
from proxy.rewrite.rules import Rule
from proxy.rewrite.work import Handler, Refused, Work
from proxy.sql.parse import Node, Statement

_TABLE_OBJECTS = frozenset({"OBJECT_TABLE", "OBJECT_FOREIGN_TABLE", "OBJECT_VIEW", "OBJECT_MATVIEW"})
_PART_OBJECTS = frozenset(
    {"OBJECT_COLUMN", "OBJECT_POLICY", "OBJECT_RULE", "OBJECT_TABCONSTRAINT", "OBJECT_TRIGGER"}
)
_CHANGING = frozenset(
    {
        "AlterObjectSchemaStmt", "AlterOwnerStmt", "AlterPolicyStmt", "AlterTableStmt", "CreatePolicyStmt",
        "CreateTrigStmt", "DropStmt", "RenameStmt", "RuleStmt",
    }
)  # fmt: skip
"""Statements that change a table, or what happens on it."""

_HARMLESS_COMMANDS = frozenset(
    {
        "AT_ClusterOn",
        "AT_DropCluster",
        "AT_ResetRelOptions",
        "AT_SetRelOptions",
        "AT_SetStatistics",
        "AT_SetStorage",
    }
)
_NAMELESS = frozenset(
    {"ClusterStmt", "CommentStmt", "GrantStmt", "LockStmt", "ReindexStmt", "TruncateStmt", "VacuumStmt"}
)
"""Statements that name a table without its columns, except in the fields that ``_columns_named`` finds."""

_RETARGETED = frozenset({"LockStmt", "ReindexStmt", "TruncateStmt", "VacuumStmt"})
"""Those of them that are about its rows, and so about the relation that holds them."""


def tables_named(kind: str, node: Mapping[str, Any]) -> Iterator[tuple[str | None, str]]:
    """(schema or None, name) of tables that a DDL statement names as mere lists of words."""
    object_type = node.get("removeType") or node.get("objtype") or node.get("objectType")
    drop_last = object_type in _PART_OBJECTS
    if not drop_last and object_type not in _TABLE_OBJECTS:
        return
    objects = node.get("objects") or [node.get("object") or {}]
    for value in objects:
        words = [
            part["String"].get("sval", "")
            for part in value.get("List", {}).get("items", ())
            if "String" in part
        ]
        if drop_last:
            words = words[:-1]
        if words:
            yield (words[-2] if len(words) > 1 else None), words[-1]


def names_in_code(work: Work, statement: Statement) -> dict[str, Rule]:
    """Tables whose names stand in the code of a DO block, which is not looked into."""
    if statement.type != "DoStmt":
        return {}
    code = work.text[statement.start : statement.end].lower()
    named = {
        rule.model.qualified: rule for rule in work.catalog.rules if rule.model.name.encode().lower() in code
    }
    for rule in named.values():
        if rule.translated:
            raise _untranslated(rule, "a DO block")
        work.leave_to_guard(rule, Reason.GUARD_CODE, "The code of a DO block is not looked into.")
    return named


def other_statement(work: Work, kind: str, node: Node, named: Mapping[str, Rule]) -> None:
    """Decide about a statement of a kind that has no handler of its own."""
    subject = node.get("relation") or node.get("table")
    other = kind in _CHANGING and subject is not None and work.rule_of(subject) is None
    for rule in named.values():
        if not other:  # else the table is merely referred to, by a foreign key
            _refuse_ddl(kind, node, rule)
        if rule.translated and not _translates_as_it_is(kind, node, rule):
            raise _untranslated(rule, "this statement")
    _retarget(work, node)
    if kind == "ViewStmt":
        work.visit(node.get("query", {}), Scope())


def _retarget(work: Work, value: Any) -> None:
    """Name the relations that hold the rows of the tables that a statement is about."""
    if isinstance(value, dict):
        for key, child in value.items():
            relation = child if key in ("RangeVar", "relation") and isinstance(child, dict) else {}
            if "relname" in relation:
                rule = work.rule_of(relation)
                if rule is not None:
                    retarget(work, relation, rule, alias=False)
            else:
                _retarget(work, child)
    elif isinstance(value, list):
        for child in value:
            _retarget(work, child)


def _refuse_ddl(kind: str, node: Node, rule: Rule) -> None:
    table = rule.model.qualified
    bakes = kind in ("ViewStmt", "CreateFunctionStmt") or (kind == "CreateStmt" and _copies(node))
    if kind == "AlterTableStmt" and all(
        command["AlterTableCmd"].get("subtype") in _HARMLESS_COMMANDS for command in node.get("cmds", ())
    ):
        return
    if kind == "DropStmt" and node.get("removeType") not in _TABLE_OBJECTS | _PART_OBJECTS:
        return
    if kind not in _CHANGING and not (bakes and rule.migrating):
        return
    if rule.migrating:
        raise Refused(
            Reason.REFUSED_DDL,
            f"a migration is in progress on {table}, finish or roll it back first",
            hint="See `dualwire status`.",
        )
    raise Refused(
        Reason.REFUSED_DDL,
        f"the columns of {table} are served through dualwire, which this statement would bypass",
        hint="Make the change by a migration.",
    )


def _copies(node: Node) -> bool:
    return any("TableLikeClause" in element for element in node.get("tableElts", ()))


def _translates_as_it_is(kind: str, node: Node, rule: Rule) -> bool:
    if rule.relation is not None and kind not in _RETARGETED:
        return False
    if kind in ("CreateStmt", "AlterTableStmt"):  # a foreign key to the table, or a partition of it
        return all(rule.by_name.get(name) == name for name in _referenced(node))
    return kind in _NAMELESS and not _columns_named(node)


def _referenced(value: Any) -> Iterator[str]:
    """Column names that the foreign keys of a CREATE TABLE refer to."""
    if isinstance(value, dict):
        for key, child in value.items():
            if key == "pk_attrs":
                yield from (name["String"].get("sval", "") for name in child)
            else:
                yield from _referenced(child)
    elif isinstance(value, list):
        for child in value:
            yield from _referenced(child)


def _columns_named(node: Node) -> bool:
    if node.get("objtype") == "OBJECT_COLUMN":
        return True
    return _mentions(node, "va_cols") or _mentions(node, "cols")


def _mentions(value: Any, key: str) -> bool:
    if isinstance(value, dict):
        return key in value or any(_mentions(child, key) for child in value.values())
    return isinstance(value, list) and any(_mentions(child, key) for child in value)


def _untranslated(rule: Rule, what: str) -> Refused:
    return Refused(
        Reason.REFUSED_STATEMENT,
        f"{what} on {rule.model.qualified} is not translated while a migration is in progress",
        hint="Use SELECT, INSERT, UPDATE or DELETE, or run it after the migration is completed.",
    )


def prepare(work: Work, node: Node, scope: Scope) -> None:
    """PREPARE: the inner statement, whose mirrors are the guard's where there is one (``assign.require_inline``).

    No prober tries it, so parameters have the types that the text gives them.
    """
    types = [given["TypeName"] for given in node.get("argtypes", ())]
    work.declared = frozenset(number for number, given in enumerate(types, 1) if not _unknown(given))
    work.visit(node["query"], scope)
    work.declared = None


def _unknown(name: Node) -> bool:
    return bool(name["names"][-1]["String"].get("sval") == "unknown")


def around(work: Work, node: Node, scope: Scope) -> None:
    """EXPLAIN, DECLARE: the inner statement as it would be planned by itself."""
    work.visit(node["query"], scope)


def create_table_as(work: Work, node: Node, scope: Scope) -> None:
    """CREATE TABLE AS: the inner query. A materialized view keeps its query, and so is DDL on the tables in it."""
    if node.get("objtype") == "OBJECT_MATVIEW":
        for rule in work.named.values():
            _refuse_ddl("ViewStmt", node, rule)
    work.visit(node["query"], scope)


UTILITIES: Mapping[str, Handler] = {
    "CopyStmt": copy,
    "MergeStmt": merge,
    "PrepareStmt": prepare,
    "ExplainStmt": around,
    "DeclareCursorStmt": around,
    "CreateTableAsStmt": create_table_as,
}
