"""The guards ``check`` and ``off``: no write is repaired; what did not come rewritten fails, or is found by verify.

Both are *armed* when every sidecar has acknowledged that it writes both shapes, because until then a sidecar's own
plain statement would fail. The backfill, which begins after that, therefore recomputes every row that is not right,
not only those without a mark: at that time nobody speaks the new version, so all of them go from old to new.

``check`` is one CHECK constraint, ``_dualwire_guard``, which the executor tests whatever the path of a write is
(functions, COPY, cascades, a partition named directly, ``session_replication_role = replica``, logical apply). It is
weak until the backfill has ended: a row without a mark passes, because the backfill will come to it. Nothing can hide
there: the mark's default is 1 from the moment of arming, so a row that is inserted without one must be right, and
rows whose missing mark was copied are found by a last pass after the constraint has become strict. Strict means that
a row has no mark only if ``up`` really fails for it: so a sidecar's write of such a row still succeeds, and verify
lists it.

``off`` adds nothing to the rows. Its *fence* is a trigger that refuses (55000) inserts, and updates of columns that
matter, on connections that are not a sidecar's. A sidecar proves itself by its registration: it names each of its
server connections to the database (``dualwire.sidecar_enter``) before their first use, and those of a sidecar that no
longer acknowledges are ended by the migrator. What was proved is kept in a setting of the session, so the lookup runs
once per connection. Against the setting in the startup packet alone: it cannot be stale, and RESET, DISCARD and
ROLLBACK cost one more lookup and nothing else. It stops the innocent, not the hostile, who may write anyway. Through a
sidecar pass functions, DO and triggers whose bodies write the table: verify finds those.

In both, constraints of the new version bind its own speakers as CHECK constraints beside the guard.
"""

from __future__ import annotations

from migrator.design import ConstraintDesign, TableDesign
from migrator.expressions import render
from migrator.sqltext import (
    FENCE_TRIGGER,
    GUARD_CHECK,
    MARK,
    PROXIED_TRIGGER,
    cut,
    dollar,
    ident,
    literal,
    names,
)

PROXIED = "dualwire.proxied"
"""The setting in which a session keeps that it was proved to be a sidecar's."""


def strict_name(constraint: ConstraintDesign) -> str:
    """The name of a constraint until the swap: the final one may still belong to the old column."""
    return constraint.name if constraint.kind == "not_null" else cut("_dualwire_ck_", constraint.name)


def arm(table: TableDesign, function: str, migration: int) -> list[str]:
    """What is installed before the backfill."""
    if not table.mark or table.guard == "sync":
        return []
    statements = [
        f"ALTER TABLE {table.sql} ADD CONSTRAINT {ident(strict_name(c))}"
        f" CHECK ({ident(MARK)} IS NULL OR {ident(MARK)} < 3 OR ({_condition(c)})) NOT VALID"
        for c in table.up.constraints
    ]
    if table.guard == "check":
        return [
            *statements,
            f"ALTER TABLE {table.sql} ALTER COLUMN {ident(MARK)} SET DEFAULT 1",
            _add_check(table, "true"),
        ]
    return [*statements, *_fence(table, function, migration)]


def strengthen(table: TableDesign) -> list[str]:
    """After the backfill a missing mark is right only where the row cannot be carried over."""
    if not table.mark or table.guard != "check":
        return []
    impossible = f"NOT {table.up.ok}({names(table.up.ok_sources)})" if table.up.ok is not None else "false"
    return [_drop_check(table), _add_check(table, impossible)]


def disarm(table: TableDesign, function: str) -> list[str]:
    """What takes all of it away again."""
    if not table.mark or table.guard == "sync":
        return []
    own = [f"DROP CONSTRAINT IF EXISTS {ident(strict_name(c))}" for c in table.up.constraints]
    if table.guard == "check":
        own += [f"DROP CONSTRAINT IF EXISTS {ident(GUARD_CHECK)}", f"ALTER COLUMN {ident(MARK)} DROP DEFAULT"]
        return [f"ALTER TABLE {table.sql} " + ", ".join(own)]
    statements = [f"ALTER TABLE {table.sql} " + ", ".join(own)] if own else []
    return [
        *statements,
        f"DROP TRIGGER IF EXISTS {ident(PROXIED_TRIGGER)} ON {table.sql}",
        f"DROP TRIGGER IF EXISTS {ident(PROXIED_TRIGGER + '_apply')} ON {table.sql}",
        f"DROP FUNCTION IF EXISTS {function}()",
    ]


def shrink(table: TableDesign, function: str) -> list[str]:
    """The same for a rollback, where constraints go with their columns."""
    return [s for s in disarm(table, function) if s.startswith("DROP")]


def pass_fence(migration: int) -> str:
    """What the migrator's own transactions say to the fence."""
    return f"SELECT set_config('{PROXIED}', '{migration}', true)"


def _condition(constraint: ConstraintDesign) -> str:
    if constraint.kind == "not_null":
        return f"{ident(constraint.column)} IS NOT NULL"
    return render(constraint.condition.template, [ident(s) for s in constraint.condition.sources])


def _add_check(table: TableDesign, unmarked: str) -> str:
    """The constraint; ``unmarked`` is SQL for what a row without a mark must meet.

    A new speaker's row whose ``down`` fails is right as far as this goes: verify lists it.
    """
    mark = ident(MARK)
    carried = [
        f"{ident(m.target)} IS NOT DISTINCT FROM {m.computed('')}" for m in table.down.reproducible
    ] or ["true"]
    return (
        f"ALTER TABLE {table.sql} ADD CONSTRAINT {ident(GUARD_CHECK)} CHECK (CASE WHEN {mark} < 3 THEN"
        f" {table.right('old', '')} WHEN {mark} >= 3 THEN {' AND '.join(carried)} ELSE {unmarked} END) NOT VALID"
    )


def _drop_check(table: TableDesign) -> str:
    return f"ALTER TABLE {table.sql} DROP CONSTRAINT IF EXISTS {ident(GUARD_CHECK)}"


def _fence(table: TableDesign, function: str, migration: int) -> list[str]:
    watched = dict.fromkeys(
        [*table.up.sources, *table.up.targets, *table.down.sources, *table.down.targets, MARK]
    )
    watched.update(dict.fromkeys(s for d in (table.up, table.down) for s in d.ok_sources))
    events = f"INSERT OR UPDATE OF {names(watched)} ON {table.sql}"
    message = f'relation "{table.name}" takes writes through a sidecar only while a migration is in progress'
    body = f"""
BEGIN
    PERFORM FROM dualwire.backend b
    WHERE b.pid = pg_backend_pid()
      AND b.backend_start IS NOT DISTINCT FROM (SELECT a.backend_start FROM pg_stat_get_activity(b.pid) a);
    IF NOT FOUND THEN
        RAISE EXCEPTION USING ERRCODE = '55000', MESSAGE = {literal(message)},
            HINT = 'Connect through dualwire, or run the migration with guard sync.',
            SCHEMA = {literal(table.schema_name)}, TABLE = {literal(table.name)};
    END IF;
    PERFORM set_config('{PROXIED}', '{migration}', false);
    RETURN NULL;
END"""
    unknown = f"WHEN (current_setting('{PROXIED}', true) IS DISTINCT FROM '{migration}')"
    first, second = ident(PROXIED_TRIGGER), ident(PROXIED_TRIGGER + "_apply")
    head = [
        f"CREATE OR REPLACE FUNCTION {function}() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER"
        f" SET search_path = pg_catalog, pg_temp AS {dollar(body)}",
        f"REVOKE ALL ON FUNCTION {function}() FROM PUBLIC",
    ]
    each = f"{unknown} EXECUTE FUNCTION {function}()"
    if table.partitioned:
        # Row triggers are cloned to partitions, so one that is named directly has it as well.
        return [
            *head,
            f"CREATE TRIGGER {first} AFTER {events} FOR EACH ROW {each}",
            f"ALTER TABLE {table.sql} ENABLE ALWAYS TRIGGER {first}",
        ]
    return [
        *head,
        f"CREATE TRIGGER {first} BEFORE {events} FOR EACH STATEMENT {each}",
        f"ALTER TABLE {table.sql} ENABLE ALWAYS TRIGGER {first}",
        # An apply worker fires no statement triggers; under its role, and only there, this one fires.
        f"CREATE TRIGGER {second} AFTER {events} FOR EACH ROW {each}",
        f"ALTER TABLE {table.sql} ENABLE REPLICA TRIGGER {second}",
    ]


def binding(table: TableDesign) -> list[str]:
    """The new version's constraints as they will stay, not validated yet."""
    return [
        f"ALTER TABLE {table.sql} ADD CONSTRAINT {ident(strict_name(c))} CHECK ({_condition(c)}) NOT VALID"
        for c in table.up.constraints
    ]


def close(table: TableDesign) -> list[str]:
    """When the old version ends: new speakers' writes leave the old shape behind, but their constraints bind.

    The fence of ``off`` stays until the one of the closed phase takes its place.
    """
    if not table.mark or table.guard == "sync":
        return []
    return [s for s in disarm(table, "") if s.startswith("ALTER")] + binding(table)


def closing_fence(table: TableDesign, function: str, changed: str, given: str) -> list[str]:
    """Guard ``check`` while sidecars learn that the old version is over.

    Those that have not yet still write both shapes, which passes; a write that gives only old columns a value would
    be lost from here on, so it is an error.
    """
    wrong = f"NOT {table.consistent('NEW.')}"
    columns = names(c for c, _ in table.old_given)
    trigger, update = ident(FENCE_TRIGGER), ident(FENCE_TRIGGER + "_update")
    return [
        f"CREATE TRIGGER {trigger} AFTER INSERT ON {table.sql} FOR EACH ROW WHEN (({given}) AND {wrong})"
        f" EXECUTE FUNCTION {function}()",
        f"CREATE TRIGGER {update} AFTER UPDATE OF {columns} ON {table.sql} FOR EACH ROW"
        f" WHEN (({changed}) AND {wrong}) EXECUTE FUNCTION {function}()",
        f"ALTER TABLE {table.sql} ENABLE ALWAYS TRIGGER {trigger}",
        f"ALTER TABLE {table.sql} ENABLE ALWAYS TRIGGER {update}",
    ]
