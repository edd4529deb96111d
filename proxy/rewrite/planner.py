"""From a statement's text and a version to a plan: the one entry into rewriting.

``Planner.plan`` is pure and never raises, on any bytes. Plans are not cached here.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace

from proxy.rewrite.compare import function, null_test, operator, sub_link
from proxy.rewrite.insert import insert
from proxy.rewrite.model import Side, TableModel
from proxy.rewrite.modify import delete, update
from proxy.rewrite.plan import Edit, Kind, Plan
from proxy.rewrite.reasons import Reason, strongest
from proxy.rewrite.resolve import Scope, column_ref, indirection, row_expr
from proxy.rewrite.rules import Catalog, Rule
from proxy.rewrite.select import select
from proxy.rewrite.utility import UTILITIES, names_in_code, other_statement, tables_named
from proxy.rewrite.work import FALLBACK, MIRROR_RECIPES, Handler, Refused, Work
from proxy.sql.classify import Classified, classify, worst_kind
from proxy.sql.names import touches_names
from proxy.sql.parse import Failure, Parsed, Statement, parse
from proxy.sql.path import path_after
from proxy.sql.splice import apply, characters, ordered
from proxy.sql.tokens import UnclearNames

HANDLERS: Mapping[str, Handler] = {
    "ColumnRef": column_ref,
    "A_Expr": operator,
    "A_Indirection": indirection,
    "FuncCall": function,
    "NullTest": null_test,
    "SubLink": sub_link,
    "RowExpr": row_expr,
    "SelectStmt": select,
    "InsertStmt": insert,
    "UpdateStmt": update,
    "DeleteStmt": delete,
    **UTILITIES,
}

LONG_TEXT = 1 << 15

_WITH_TWINS = frozenset({"SelectStmt", "InsertStmt", "UpdateStmt", "DeleteStmt", "MergeStmt"})
"""Statements whose types and errors can be asked for over empty tables."""


@contextmanager
def _no_collection() -> Iterator[None]:
    """Pause the cyclic garbage collector: it would walk over a long text's tree again and again while that grows."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


class Planner:
    """Plans statements for clients of one version."""

    def __init__(self, tables: Sequence[TableModel], side: Side, dual_write: bool = True) -> None:
        self._catalog = Catalog(tables, side)
        self._dual_write = dual_write
        self._touches = touches_names(table.name for table in tables)
        self._ascii = all(table.name.isascii() for table in tables)

    def plan(
        self,
        text: bytes,
        search_path: tuple[str, ...] = ("public",),
        temp_relations: frozenset[str] = frozenset(),
    ) -> Plan:
        """Decide about one text: statements of the simple protocol, or one of the extended protocol."""
        try:
            if len(text) < LONG_TEXT:
                return self._plan(text, search_path, temp_relations)
            with _no_collection():
                return self._plan(text, search_path, temp_relations)
        except UnclearNames as error:
            return self._opaque(Parsed(text, failure=Failure.LIMIT, message=str(error)))
        except RecursionError:
            return self._opaque(Parsed(text, failure=Failure.LIMIT, message="nested too deeply"))
        except Exception as error:  # a bug here must not end a client's session, nor let a wrong text pass
            message = f"{type(error).__name__}: {error}"
            return self._opaque(Parsed(text, failure=Failure.LIMIT, message=message), Reason.INTERNAL_ERROR)

    def unplanned(self, text: bytes, why: str) -> Plan:
        """The plan of a text that is not looked into, for the reason given."""
        # It may be in another encoding than UTF-8.
        return self._opaque(Parsed(text, failure=Failure.ENCODING, message=why))

    def _plan(self, text: bytes, search_path: tuple[str, ...], temporary: frozenset[str]) -> Plan:
        parsed = parse(text)
        if parsed.failure is not None:
            return self._opaque(parsed)
        classified = tuple(classify(statement, text) for statement in parsed.statements)
        kind = worst_kind(classified, parsed)
        work = Work(text, self._catalog, HANDLERS, search_path, temporary, self._dual_write)
        tables: dict[str, Rule] = {}
        try:
            if self._catalog.rules:
                for statement, known in zip(parsed.statements, classified, strict=True):
                    work.named = self._tables(work, statement.type, statement.node, known)
                    tables.update(work.named)
                    work.compares = any(
                        virtual.raw is not None
                        for rule in work.named.values()
                        for virtual in rule.virtuals.values()
                    )
                    if work.named:
                        self._statement(work, statement)
                    else:
                        tables.update(names_in_code(work, statement))
                    work.temporary = work.temporary.union(known.temp_relations)
                    if len(parsed.statements) > 1:
                        work.search_path = path_after(work.search_path, statement, search_path)
        except Refused as refused:
            refusal = refused.refusal
            if refused.location >= 0:
                refusal = replace(refusal, position=characters(text[: refused.location]) + 1)
            return Plan(
                text,
                kind,
                refused.reason.value,
                tables=tuple(tables),
                refusal=refusal,
                statements=len(parsed.statements),
                explanations=(
                    refused.refusal.message,
                    *filter(None, (refused.refusal.detail, refused.refusal.hint)),
                ),
            )
        return self._finished(work, parsed, kind, classified, tuple(tables))

    def _statement(self, work: Work, statement: Statement) -> None:
        handler = HANDLERS.get(statement.type)
        if handler is not None:
            handler(work, statement.node, Scope())
        else:
            other_statement(work, statement.type, statement.node, work.named)

    def _tables(self, work: Work, kind: str, node: dict[str, object], known: Classified) -> dict[str, Rule]:
        named: dict[str, Rule] = {}
        for schema, name in (*known.relations, *tables_named(kind, node)):
            if schema is None and name in known.temp_relations:
                continue
            rule = work.find(schema, name)
            if rule is not None:
                named[rule.model.qualified] = rule
        return named

    def _finished(
        self,
        work: Work,
        parsed: Parsed,
        kind: Kind,
        classified: tuple[Classified, ...],
        tables: tuple[str, ...],
    ) -> Plan:
        text = parsed.text
        edits = ordered(edit for edit in work.edits if edit.recipe != FALLBACK)
        if work.reasons:
            reason = strongest(work.reasons)
        elif tables:
            reason = Reason.PASSED
        else:
            reason = Reason.NO_RULE
        relations = tuple(dict.fromkeys(name for known in classified for name in known.relations))
        settings = tuple(setting for known in classified for setting in known.settings)
        temp_relations = tuple(name for known in classified for name in known.temp_relations)

        twin, twin_edits = None, ordered(work.twin_edits)
        if twin_edits and [statement.type in _WITH_TWINS for statement in parsed.statements] == [True]:
            twin = apply(text, twin_edits)
        else:
            twin_edits = ()

        def plan(edits: tuple[Edit, ...], mirrored: bool, guarded: bool, fallback: Plan | None) -> Plan:
            return Plan(
                apply(text, edits) if edits else text,
                kind,
                reason.value,
                edits=edits,
                tables=tables,
                mirrored=mirrored,
                guarded=guarded,
                relations=relations,
                fallback=fallback,
                settings=settings,
                temp_relations=temp_relations,
                statements=len(parsed.statements),
                explanations=tuple(work.explanations),
                twin=twin,
                twin_edits=twin_edits,
            )

        fallback = None
        if work.mirrored and all(self._has_guard(name) for name in tables):
            kept = ordered(edit for edit in work.edits if edit.recipe not in MIRROR_RECIPES)
            fallback = plan(kept, False, True, None)
        return plan(edits, work.mirrored, work.guarded, fallback)

    def _has_guard(self, table: str) -> bool:
        return all(
            rule.model.guard == "sync" for rule in self._catalog.rules if rule.model.qualified == table
        )

    def _opaque(self, parsed: Parsed, reason: Reason | None = None) -> Plan:
        """A text that cannot be looked into: passed where that is harmless, refused where it may not be."""
        text = parsed.text
        sentence = f"The text could not be parsed: {parsed.message}."
        hidden = parsed.failure is Failure.ENCODING and not self._ascii
        if parsed.failure is Failure.SYNTAX or not (hidden or self._touches(text)):
            return Plan(text, Kind.UNPARSED, (reason or Reason.UNPARSED).value, explanations=(sentence,))
        work = Work(text, self._catalog, HANDLERS, (), frozenset(), self._dual_write)
        try:
            for rule in self._catalog.rules:
                if not rule.prefix or rule.translated:
                    raise Refused(
                        Reason.REFUSED_UNPARSED,
                        "this statement cannot be looked into while a migration is in progress",
                        hint="Make it shorter or less deeply nested, or encode it as UTF-8.",
                        detail=sentence,
                    )
                work.leave_to_guard(rule, Reason.GUARD_UNPARSED, sentence)
        except Refused as refused:
            return Plan(text, Kind.UNPARSED, (reason or refused.reason).value, refusal=refused.refusal)
        told = reason or strongest([Reason.UNPARSED, *work.reasons])
        return Plan(text, Kind.UNPARSED, told.value, guarded=work.guarded, explanations=(sentence,))
