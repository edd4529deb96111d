"""Judges a design before anything is changed. Every rule gives findings: error (start refuses), warning, info.

Rules look at values only (catalog, draft, design); what has to be asked of the server stands in ``preflight``.
A finding with ``waiver`` names a statement that may fail during the migration though it would succeed without it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator

from pglast.parser import ParseError, parse_sql_json

from migrator.catalog import CatalogTable
from migrator.design import Finding, TableDesign
from migrator.draft import Draft, Slot, TableDraft
from migrator.sqltext import FENCE_TRIGGER, GUARD_CHECK, GUARD_TRIGGER, MARK, NEW_PREFIX
from migrator.usertriggers import cascades, listed, overruling, watched

_TRANSACTIONAL = {"TransactionStmt": "transaction control", "VacuumStmt": "VACUUM"}


def error(code: str, message: str, hint: str = "") -> Finding:
    """A finding that forbids to start."""
    return Finding(severity="error", code=code, message=message, hint=hint)


def warning(code: str, message: str, hint: str = "", *, waiver: bool = False) -> Finding:
    """A finding that the operator should know."""
    return Finding(severity="warning", code=code, message=message, hint=hint, waiver=waiver)


def info(code: str, message: str, hint: str = "") -> Finding:
    """A finding that explains."""
    return Finding(severity="info", code=code, message=message, hint=hint)


def judge_table(
    draft: TableDraft, catalog: CatalogTable, probe: CatalogTable, design: TableDesign, may_suppress: bool
) -> list[Finding]:
    """All findings about one table."""
    return [
        *_table_kind(catalog, design),
        *_columns(draft, catalog, design),
        *_equality(catalog, probe, design),
        *_dependents(draft, catalog, design),
        *_constraints(draft, catalog, design),
        *_expressions(design),
        *_triggers(catalog, design, may_suppress),
        *_overruled(catalog, design, may_suppress),
        *_guard(catalog, design),
        *_copies(catalog, design),
        *_clients(catalog, design),
    ]


def _table_kind(catalog: CatalogTable, design: TableDesign) -> Iterator[Finding]:
    label = design.label
    kinds = {"v": "a view", "m": "a materialized view", "f": "a foreign table"}
    if catalog.kind not in {"r", "p"}:
        yield error("table_kind", f"{label} is {kinds.get(catalog.kind, 'not a table')}: not supported yet")
    if catalog.partition:
        yield error("inheritance", f"{label} is a partition", "Migrate the partitioned table.")
    elif catalog.inherits and catalog.kind != "p":
        yield error("inheritance", f"{label} takes part in inheritance: not supported yet")
    if catalog.persistence == "t":
        yield error("temporary", f"{label} is a temporary table")
    if design.mark and not design.key:
        yield error(
            "no_primary_key",
            f"{label} has no primary key: rows could be neither backfilled nor verified",
            "Add a primary key first.",
        )
    if catalog.instead_rules and design.mark:
        yield error("rules", f"{label} has INSTEAD rules: writes would go elsewhere", "Drop them first.")
    if catalog.row_security and design.mark:
        yield warning(
            "row_security",
            f"{label} has row-level security: policies apply to the added columns as well",
            "Check that the migrator's role bypasses row security; otherwise backfill misses rows.",
        )
    leftovers = [c.name for c in catalog.columns if c.name == MARK or c.name.startswith(NEW_PREFIX)]
    leftovers += [t.name for t in catalog.triggers if t.name.startswith((GUARD_TRIGGER, FENCE_TRIGGER))]
    if leftovers:
        yield error(
            "leftovers",
            f"{label} holds objects of another migration: {', '.join(leftovers)}",
            "Roll that migration back, or drop them by hand if the control schema was lost.",
        )


def _replaced(draft: TableDraft) -> Iterator[tuple[Slot, str]]:
    """Slots whose old physical column goes away, with that column."""
    for slot in draft.slots:
        if slot.physical is not None and (slot.replaced or slot.dropped):
            yield slot, slot.physical


def _columns(draft: TableDraft, catalog: CatalogTable, design: TableDesign) -> Iterator[Finding]:
    for slot, name in _replaced(draft):
        column = catalog.column(name)
        verb = "dropping" if slot.dropped else "changing"
        if name in catalog.primary_key:
            yield error(
                "primary_key", f"{design.label}.{slot.old}: {verb} a primary-key column is not supported yet"
            )
        if column.identity and not slot.dropped:
            yield error(
                "identity", f"{design.label}.{slot.old}: changing an identity column is not supported yet"
            )
        if column.generated and not slot.dropped:
            yield error(
                "generated", f"{design.label}.{slot.old}: changing a generated column is not supported yet"
            )
        has_value = column.default is not None or bool(column.identity) or bool(column.generated)
        if slot.dropped and slot.down is None and column.not_null and not has_value:
            yield error(
                "drop_not_null",
                f"{design.label}.{slot.old} is NOT NULL without a default and drop_column has no down:"
                " inserts of new speakers would fail",
                "Give `down`, the value that old speakers see for rows of new speakers.",
            )
        if slot.dropped and slot.down is not None and (column.generated or column.identity == "a"):
            yield error("generated", f"{design.label}.{slot.old}: down for a generated column makes no sense")
    for new in design.columns:
        if new.native and new.default_kind == "volatile":
            yield error(
                "volatile_default",
                f"{design.label}.{new.final}: a volatile default needs `up` with the same expression",
                "Existing rows get their values by the backfill; the default alone would rewrite the table.",
            )


def _equality(catalog: CatalogTable, probe: CatalogTable, design: TableDesign) -> Iterator[Finding]:
    used = {
        name
        for direction in (design.up, design.down)
        for mirror in direction.mirrors
        for name in (mirror.target, *mirror.value.sources)
    }
    labels = {physical: name for name, physical in [*design.new, *design.old]}
    for name in sorted(used):
        column = probe.column(name)
        label = f"{design.label}.{labels.get(name, name)}"
        if not column.equality:
            yield error(
                "no_equality",
                f"{label}: type {column.type} has no equality, changes of it cannot be told",
                "Use a type with an equality operator (jsonb instead of json).",
            )
        elif column.extension:
            yield error("extension_type", f"{label}: type {column.type} of an extension is not supported yet")
        elif not column.exact:
            yield error(
                "inexact_equality",
                f"{label}: different values compare equal (citext or a nondeterministic collation),"
                " so a change between them would be missed: not supported yet",
            )


def _dependents(draft: TableDraft, catalog: CatalogTable, design: TableDesign) -> Iterator[Finding]:
    gone = {name: slot for slot, name in _replaced(draft)}
    renamed = {s.physical for s in draft.slots if s.old and s.new and s.old != s.new and not s.replaced}
    for dependent in catalog.dependents:
        if dependent.column in gone and dependent.kind != "statistics":
            yield error(
                "dependents",
                f"{design.label}.{dependent.column} is used by {dependent.kind} {dependent.object}",
                "Drop it before the migration, or make it use another column.",
            )
        elif dependent.column in renamed:
            yield info(
                "dependents",
                f"{dependent.kind} {dependent.object} uses {design.label}.{dependent.column}, which is renamed:"
                " PostgreSQL keeps it working",
            )
    if catalog.whole_row and (design.columns or design.mark):
        yield warning(
            "whole_row",
            f"functions use the row type of {design.label}: {', '.join(catalog.whole_row)};"
            " they see the added columns",
            "Check that none of them breaks with one more column.",
        )
    if catalog.publications and (design.columns or design.mark):
        yield warning(
            "publications",
            f"{design.label} is published without a column list by {', '.join(catalog.publications)}:"
            " subscribers get the added columns",
            "Add the columns on subscribers first, or publish a column list.",
        )


def _constraints(draft: TableDraft, catalog: CatalogTable, design: TableDesign) -> Iterator[Finding]:
    gone = {name: slot for slot, name in _replaced(draft)}
    for constraint in catalog.constraints:
        touched = [c for c in constraint.columns if c in gone]
        if not touched or constraint.kind == "p":
            continue
        slots = [gone[c] for c in touched]
        changed = [s for s in slots if not s.dropped]
        if constraint.kind in {"f", "u", "x"}:
            kind = {"f": "foreign key", "u": "unique constraint", "x": "exclusion constraint"}[
                constraint.kind
            ]
            if changed:
                if constraint.kind == "f":  # unique and exclusion constraints are reported with their index
                    yield error(
                        "foreign_key",
                        f"{design.label}: changing a column of the {kind} {constraint.name} is not supported yet",
                        "Drop the constraint before the migration and add it again after it.",
                    )
            elif any(s.down is not None for s in slots):
                yield error(
                    "drop_constrained",
                    f"{design.label}: down for a column of the {kind} {constraint.name} is not supported yet",
                    "Drop the constraint first.",
                )
            else:
                yield warning(
                    "drop_constrained",
                    f"{design.label}: the {kind} {constraint.name} goes with column {touched[0]}",
                )
        elif constraint.kind == "c" and changed:
            kept = constraint.columns == touched and all(s.type is None for s in changed)
            if kept:
                continue
            if len(constraint.columns) > 1:
                yield error(
                    "check",
                    f"{design.label}: changing a column of the check {constraint.name} over several columns"
                    " is not supported yet",
                    "Drop the constraint before the migration.",
                )
            else:
                yield warning(
                    "check",
                    f"{design.label}: the check {constraint.name} binds the old column only and goes with it;"
                    " a new speaker's write fails while `down` gives a value that breaks it",
                    "Give `check` for the new column.",
                    waiver=True,
                )
    for foreign in catalog.foreign:
        columns = foreign[foreign.rindex("(") + 1 : -1].split(", ")
        if set(columns) & set(gone):
            yield error(
                "foreign_key",
                f"{design.label}: a foreign key of another table points at a changed column: {foreign}",
                "Drop it before the migration.",
            )
    taken = {c.name for c in catalog.constraints}
    for check in design.up.constraints:
        if (
            check.kind == "check"
            and check.name in taken
            and not any(
                c.name == check.name and c.columns and c.columns[0] in gone for c in catalog.constraints
            )
        ):
            yield error("constraint_name", f"{design.label}: constraint {check.name} already exists")


def _expressions(design: TableDesign) -> Iterator[Finding]:
    labels = {physical: name for name, physical in [*design.new, *design.old]}
    for side, direction in (("up", design.up), ("down", design.down)):
        for mirror in direction.mirrors:
            label = f"{design.label}.{labels.get(mirror.target, mirror.target)}"
            if mirror.value.volatility == "volatile":
                yield warning(
                    f"volatile_{side}",
                    f"{label}: {side} is volatile or depends on the session: it is never computed twice, so"
                    " verify checks presence and constraints only, and a write that copies the mark column"
                    " (INSERT ... SELECT *) is not seen by the guard",
                )
            elif not mirror.value.total:
                yield warning(
                    f"partial_{side}",
                    f"{label}: {side} is not proved to work for every row;"
                    " rows where it fails become problems that verify lists",
                    "Cover every value, e.g. with CASE ... ELSE and pg_input_is_valid() before a cast.",
                )
            if side == "down" and mirror.keeps:
                yield warning(
                    "down_null",
                    f"{label} is NOT NULL and down may give NULL: then a new speaker's write fails with 23502"
                    " until closed",
                    "Give a `down` that is never NULL, e.g. with COALESCE.",
                    waiver=True,
                )
        for constraint in direction.constraints if side == "up" else []:
            if constraint.condition.volatility == "volatile":
                yield error("volatile_check", f"{design.label}: check {constraint.name} must not be volatile")
            foreign = [
                s for s in constraint.condition.sources if s in design.new_only and s != constraint.column
            ]
            if foreign:
                yield error(
                    "check_columns",
                    f"{design.label}: check {constraint.name} uses another new column"
                    f" ({', '.join(labels[f] for f in foreign)}): not supported yet",
                )
            elif not constraint.proved:
                what = "NOT NULL" if constraint.kind == "not_null" else f"check {constraint.name}"
                yield info(
                    "constraint",
                    f"{design.label}.{constraint.label}: {what} is not proved for what up gives;"
                    " rows that break it become problems that verify lists",
                )


def _triggers(catalog: CatalogTable, design: TableDesign, may_suppress: bool) -> Iterator[Finding]:
    active = [t for t in catalog.triggers if t.enabled != "D"]
    if not active or not design.mark:
        return
    listed = ", ".join(t.name for t in active)
    late = [t.name for t in active if t.name > GUARD_TRIGGER]
    if late and design.guard == "sync":
        yield warning(
            "late_triggers", f"{design.label}: triggers {', '.join(late)} fire after the guard by their names"
        )
    if not may_suppress:
        grant = "GRANT SET ON PARAMETER session_replication_role TO the migrator's role"
        loose = [t.name for t in active if not t.pinned]
        if loose:
            yield error(
                "triggers_fire_unpinned",
                f"{design.label}: this role may not set session_replication_role, so repairs and the backfill fire"
                f" {', '.join(loose)}, whose functions have no search_path of their own and could fail there",
                f"{grant}, or ALTER FUNCTION ... SET search_path for them.",
            )
        else:
            yield warning(
                "triggers_fire",
                f"{design.label}: this role may not set session_replication_role: backfill and repairs fire {listed}",
                f"{grant}.",
            )


def _overruled(catalog: CatalogTable, design: TableDesign, may_suppress: bool) -> Iterator[Finding]:
    """What may write other values than a statement gives."""
    if not design.mark:
        return
    label = design.label
    triggers = overruling(catalog, design)
    if triggers and design.guard == "sync":
        yield info(
            "before_triggers",
            f"{label} has BEFORE triggers that may change columns which are carried over ({listed(triggers)}):"
            " sidecars leave its writes to the guard",
        )
    elif triggers and design.guard == "check":
        yield warning(
            "before_triggers",
            f"{label}: a write fails with 23514 ({GUARD_CHECK}) where a BEFORE trigger ({listed(triggers)})"
            " changes what is carried over",
            "Use guard sync.",
            waiver=True,
        )
    elif triggers:
        yield error(
            "before_triggers",
            f"{label}: BEFORE triggers ({listed(triggers)}) may change what is carried over, and with guard off"
            " nothing would notice",
            "Use guard sync.",
        )
    if catalog.has_rules:
        yield info("rules", f"{label} has rules: sidecars leave its writes to the guard")
        if design.guard != "sync":
            yield error("rules", f"{label} has rules: its writes need guard sync", "Use guard sync.")
        elif not may_suppress:
            yield error(
                "rules_fire",
                f"{label}: this role may not set session_replication_role: backfill and repairs would run its rules",
                "GRANT SET ON PARAMETER session_replication_role TO the migrator's role",
            )


def _copies(catalog: CatalogTable, design: TableDesign) -> Iterator[Finding]:
    """What COPY through a view of the version does differently."""
    statement = [
        t.name
        for t in catalog.triggers
        if t.enabled != "D" and t.inserts and " FOR EACH STATEMENT " in t.definition
    ]
    if statement and design.mark:
        yield info(
            "copy_triggers",
            f"{design.label}: statement triggers ({listed(statement)}) fire once for each row of a COPY by clients"
            " of the new version",
        )


def _guard(catalog: CatalogTable, design: TableDesign) -> Iterator[Finding]:
    """What the chosen guard costs."""
    if not design.mark or design.guard == "sync":
        return
    label, mode = design.label, design.guard
    if design.up.volatile or design.down.volatile:
        yield error(
            "guard_volatile",
            f"{label}: up or down is volatile or depends on the session, which guard {mode} cannot check",
            "Use guard sync.",
        )
    for key in cascades(catalog, design):
        if mode == "off":
            yield error(
                "guard_cascade",
                f"{label}: the foreign key {key.name} changes {listed(key.columns)} by cascade, which guard off"
                " does not see",
                "Use guard sync.",
            )
        else:
            yield warning(
                "guard_cascade",
                f"{label}: a write to the referenced table that reaches {listed(key.columns)} by the foreign key"
                f" {key.name} fails with 23514 ({GUARD_CHECK})",
                "Use guard sync.",
                waiver=True,
            )
    if mode == "check":
        yield warning(
            "guard_check",
            f"{label}: whatever comes past a sidecar (functions, triggers, DO, psql, logical apply) and writes"
            f" {listed(watched(design))} fails with 23514 ({GUARD_CHECK}); so does COPY from there",
            waiver=True,
        )
    else:
        yield warning(
            "guard_off",
            f"{label}: writes of {listed(watched(design))} that come past a sidecar fail with 55000; what"
            " functions, triggers and DO write there through a sidecar is not carried over, verify finds it",
            waiver=True,
        )


def _clients(catalog: CatalogTable, design: TableDesign) -> Iterator[Finding]:
    physical = [c.name for c in catalog.columns if c.name not in design.old_only]
    final = [name for name, _ in design.final]
    renamed = {physical_name: name for name, physical_name in design.new}
    after = [renamed[p] for p in physical if p in renamed] + [
        c.final for c in design.columns if c.final not in physical
    ]
    if [a for a in after if a in final] != final:
        yield warning(
            "column_order",
            f"{design.label}: after completed the physical column order differs from the version's"
            f" ({', '.join(final)}); sidecars hide that, clients that come past them see it in SELECT * and in"
            " INSERT or COPY without a column list",
        )
    if design.mark:
        yield warning(
            "repeatable_read",
            f"{design.label}: a REPEATABLE READ or SERIALIZABLE transaction that updates a row which the backfill"
            " has just touched gets 40001",
            waiver=True,
        )


def judge_sql(draft: Draft) -> list[Finding]:
    """Findings about ``sql`` operations."""
    findings = []
    for operation in draft.sql:
        for key, text in (("up", operation.up), ("down", operation.down)):
            where = f"operations[{operation.index}].sql.{key}"
            if text:
                findings += _judge_statements(where, text)
        if not operation.on_complete:
            findings.append(
                warning(
                    "raw_sql",
                    f"operations[{operation.index}].sql: dualwire cannot tell what raw SQL does to clients",
                    waiver=True,
                )
            )
            if not operation.down:
                findings.append(
                    warning(
                        "no_down",
                        f"operations[{operation.index}].sql has no down: a rollback will not undo it",
                    )
                )
    return findings


def _judge_statements(where: str, text: str) -> list[Finding]:
    try:
        tree = json.loads(parse_sql_json(text))
    except (ParseError, RecursionError, ValueError) as failure:
        return [error("sql", f"{where}: cannot be parsed: {failure}")]
    findings = []
    for item in tree.get("stmts", []):
        [(kind, body)] = item["stmt"].items()
        if kind in _TRANSACTIONAL or body.get("concurrent"):
            what = _TRANSACTIONAL.get(kind, "CONCURRENTLY")
            findings.append(
                error("sql", f"{where}: {what} is not supported, the statements run in one transaction")
            )
    return findings
