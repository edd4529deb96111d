"""The guard ``sync``: an AFTER ROW trigger that repairs, in the same transaction, every write that left the two
shapes of a row apart.

Its WHEN clause looks at the data in the direction that the mark names, so a rewritten write costs one comparison and
a copied mark deceives nobody. The function decides which shape the writer meant from what changed, recomputes the
other one from the row as it is then, and records what cannot be computed as a problem. It raises only where a new
speaker breaks a constraint of the new version, with PostgreSQL's own SQLSTATE.

One limit: a mirror whose expression is volatile must not be computed twice, so for it the guard can only see whether
a source changed while the mark did not.
"""

from __future__ import annotations

from typing import Literal

from migrator.design import DirectionDesign, TableDesign
from migrator.sqltext import FENCE_TRIGGER, GUARD_TRIGGER, MARK, dollar, ident, literal, names

Side = Literal["old", "new"]


def guard_function_name(table: TableDesign, migration: int, number: int) -> str:
    """The guard function of one table."""
    return f"dualwire.guard_{migration}_{number}"


def triggers(table: TableDesign, function: str) -> list[str]:
    """DDL of the trigger; two where a volatile mirror needs the row as it was."""
    consistent = table.consistent("NEW.")
    insert = f"NOT ({consistent})"
    if not (table.up.volatile or table.down.volatile):
        return [
            f"CREATE TRIGGER {ident(GUARD_TRIGGER)} AFTER INSERT OR UPDATE ON {table.sql} FOR EACH ROW"
            f" WHEN ({insert}) EXECUTE FUNCTION {function}()",
            f"ALTER TABLE {table.sql} ENABLE ALWAYS TRIGGER {ident(GUARD_TRIGGER)}",
        ]
    sources = _volatile_sources(table)
    stale = (
        f"NEW.{ident(MARK)} IS NOT DISTINCT FROM OLD.{ident(MARK)} AND ({_changed(sources)})"
        if sources
        else "false"
    )
    update = GUARD_TRIGGER + "_update"
    return [
        f"CREATE TRIGGER {ident(GUARD_TRIGGER)} AFTER INSERT ON {table.sql} FOR EACH ROW"
        f" WHEN ({insert}) EXECUTE FUNCTION {function}()",
        f"CREATE TRIGGER {ident(update)} AFTER UPDATE ON {table.sql} FOR EACH ROW"
        f" WHEN ({insert} OR ({stale})) EXECUTE FUNCTION {function}()",
        f"ALTER TABLE {table.sql} ENABLE ALWAYS TRIGGER {ident(GUARD_TRIGGER)}",
        f"ALTER TABLE {table.sql} ENABLE ALWAYS TRIGGER {ident(update)}",
    ]


def drop_triggers(table: TableDesign, function: str) -> list[str]:
    """What removes the guard."""
    return [
        f"DROP TRIGGER IF EXISTS {ident(GUARD_TRIGGER)} ON {table.sql}",
        f"DROP TRIGGER IF EXISTS {ident(GUARD_TRIGGER + '_update')} ON {table.sql}",
        f"DROP FUNCTION IF EXISTS {function}()",
    ]


def guard_function(table: TableDesign, migration: int, function: str) -> list[str]:
    """DDL of the trigger function."""
    replica = " SET session_replication_role = 'replica'" if table.suppress_triggers else ""
    schemas = {s for m in [*table.up.mirrors, *table.down.mirrors] for s in m.value.path}
    schemas |= {s for c in table.up.constraints for s in c.condition.path}
    path = ", ".join(["pg_catalog", *map(ident, sorted(schemas)), "pg_temp"])
    body = _body(table, migration)
    return [
        f"CREATE OR REPLACE FUNCTION {function}() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER"
        f" SET search_path = {path}{replica} AS {dollar(body)}",
        f"REVOKE ALL ON FUNCTION {function}() FROM PUBLIC",
    ]


def _changed(columns: list[str]) -> str:
    if not columns:
        return "false"
    return " OR ".join(f"OLD.{ident(c)} IS DISTINCT FROM NEW.{ident(c)}" for c in columns)


def _volatile_sources(table: TableDesign) -> list[str]:
    found = [
        s
        for direction in (table.up, table.down)
        for m in direction.mirrors
        if m.value.volatility == "volatile"
        for s in m.value.sources
    ]
    return list(dict.fromkeys(found))


def _body(table: TableDesign, migration: int) -> str:
    mark = f"NEW.{ident(MARK)}"
    old_columns = list(dict.fromkeys([*table.old_only, *table.up.sources]))
    given = [
        f"(NEW.{ident(c.name)} IS NOT NULL"
        + (f" AND NEW.{ident(c.name)} IS DISTINCT FROM ({c.default})" if c.default is not None else "")
        + ")"
        for c in table.columns
        if not c.native and c.default_kind != "volatile"
    ]
    violations = _violations(table)
    return f"""
DECLARE
    side text;
    old_changed boolean := false;
    new_changed boolean := false;
    reason text;
BEGIN
    -- The repair below fires this trigger again.
    IF current_setting('dualwire.repairing', true) = TG_RELID::text THEN
        RETURN NULL;
    END IF;
    IF TG_OP = 'UPDATE' THEN
        old_changed := {_changed(old_columns)};
        new_changed := {_changed(table.new_only)};
    ELSIF {mark} IS NULL THEN
        -- An INSERT that names columns of the new shape only a writer does that knows them.
        new_changed := {" OR ".join(given) or "false"};
        old_changed := new_changed;
    END IF;
    IF old_changed AND new_changed THEN
        side := CASE
            WHEN TG_OP = 'UPDATE' AND {mark} IS NULL AND OLD.{ident(MARK)} IS NOT NULL THEN 'old'
            WHEN TG_OP = 'UPDATE' AND {mark} < 3 AND {mark} IS DISTINCT FROM OLD.{ident(MARK)} THEN 'old'
            WHEN TG_OP = 'UPDATE' AND {mark} >= 3 AND {mark} IS DISTINCT FROM OLD.{ident(MARK)} THEN 'new'
            WHEN {table.right("old", "NEW.")} THEN 'old'
            WHEN {table.right("new", "NEW.")} THEN 'new'
            ELSE 'both' END;
    ELSIF new_changed THEN
        side := 'new';
    ELSIF old_changed THEN
        side := 'old';
    ELSE
        side := CASE WHEN {mark} >= 3 THEN 'new' ELSE 'old' END;
    END IF;
{violations}
    PERFORM nextval('dualwire.guard_repairs_{migration}');
    PERFORM set_config('dualwire.repairing', TG_RELID::text, true);
    IF side = 'both' THEN
        UPDATE {table.sql} AS t SET {ident(MARK)} = NULL
        WHERE {table.key_equals("t.", "NEW.")} AND t.{ident(MARK)} IS NOT NULL;
        reason := 'both shapes were changed and do not agree';
        side := 'old';
    ELSIF side = 'new' THEN
{_repair(table, table.down, "new")}
    ELSE
{_repair(table, table.up, "old")}
    END IF;
    PERFORM set_config('dualwire.repairing', '', true);
    IF reason IS NULL THEN
        DELETE FROM dualwire.problem p
        WHERE p.migration = {migration} AND p.table_name = {literal(table.label)}
          AND p.key = {table.key_json("NEW.")};
    ELSE
        INSERT INTO dualwire.problem AS p (migration, table_name, key, direction, reason)
        VALUES ({migration}, {literal(table.label)}, {table.key_json("NEW.")}, side, reason)
        ON CONFLICT ON CONSTRAINT problem_pkey DO UPDATE
            SET direction = excluded.direction, reason = excluded.reason, found_at = clock_timestamp()
            WHERE (p.direction, p.reason) IS DISTINCT FROM (excluded.direction, excluded.reason);
    END IF;
    RETURN NULL;
END"""


def _violations(table: TableDesign) -> str:
    """What a new speaker's own version forbids is an error of its statement, as it would be natively."""
    if not table.up.constraints:
        return ""
    columns = {s for c in table.up.constraints for s in [c.column, *c.condition.sources]}
    values = {name: f"NEW.{ident(name)}" for name in columns}
    parts = ["    IF side = 'new' THEN"]
    for constraint in table.up.constraints:
        if constraint.kind == "not_null":
            code, extra = "23502", f", COLUMN = {literal(constraint.label)}"
            text = (
                f'null value in column "{constraint.label}" of relation "{table.name}"'
                " violates not-null constraint"
            )
        else:
            code, extra = "23514", f", CONSTRAINT = {literal(constraint.name)}"
            text = f'new row for relation "{table.name}" violates check constraint "{constraint.name}"'
        message = literal(text)
        parts += [
            f"        IF NOT ({constraint.holds(values)}) THEN",
            f"            RAISE EXCEPTION USING ERRCODE = '{code}', MESSAGE = {message},"
            f" SCHEMA = {literal(table.schema_name)}, TABLE = {literal(table.name)}{extra};",
            "        END IF;",
        ]
    return "\n".join([*parts, "    END IF;"])


def _repair(table: TableDesign, direction: DirectionDesign, side: Side) -> str:
    """Recompute the other shape from the row as it is now, and say why where that is impossible."""
    first, second = (1, 2) if side == "old" else (3, 4)
    toggle = f"CASE t.{ident(MARK)} WHEN {first} THEN {second}::smallint ELSE {first}::smallint END"
    arguments = names(direction.ok_sources, "t.")
    sets = []
    for mirror in direction.mirrors:
        value = mirror.computed("t.")
        if mirror.keeps:
            value = f"coalesce({value}, t.{ident(mirror.target)})"
        sets.append(f"{ident(mirror.target)} = {value}")
    if side == "new" or direction.ok is None:
        sets.append(f"{ident(MARK)} = {toggle}")
    else:
        sets.append(f"{ident(MARK)} = CASE WHEN {direction.ok}({arguments}) THEN {toggle} END")
    update = [
        f"UPDATE {table.sql} AS t SET {', '.join(sets)}",
        f"WHERE {table.key_equals('t.', 'NEW.')}",
    ]
    if direction.why is not None:
        update.append(f"RETURNING {direction.why}({arguments}) INTO reason")
    update[-1] += ";"
    if side == "new" or direction.ok is None:
        return "\n".join(f"        {line}" for line in update)
    # A row that is known to be a problem is not written again for every change of another column.
    same = [
        f"NEW.{ident(m.target)} IS NOT DISTINCT FROM {m.computed('NEW.')}" for m in direction.reproducible
    ]
    settled = " AND ".join([f"NEW.{ident(MARK)} IS NULL", *same])
    return "\n".join(
        [
            f"        reason := {direction.why}({names(direction.ok_sources, 'NEW.')});",
            f"        IF reason IS NULL OR NOT ({settled}) THEN",
            *(f"            {line}" for line in update),
            "        END IF;",
        ]
    )


def fence(table: TableDesign, function: str) -> list[str]:
    """After closed: a write to a column that only the old version has would be lost, so it is an error."""
    if not table.old_only:
        return []
    columns = ", ".join(ident(c) for c in table.old_only)
    given = " OR ".join(f"NEW.{ident(c)} IS NOT NULL" for c in table.old_only)
    body = f"""
BEGIN
    RAISE EXCEPTION USING ERRCODE = '0A000',
        MESSAGE = {literal(f'relation "{table.name}" no longer takes values of its old version')},
        DETAIL = {literal("Columns: " + ", ".join(table.old_only))},
        HINT = 'The migration is closed: write the columns of the new version.',
        SCHEMA = {literal(table.schema_name)}, TABLE = {literal(table.name)};
END"""
    trigger = ident(FENCE_TRIGGER)
    update = ident(FENCE_TRIGGER + "_update")
    return [
        f"CREATE OR REPLACE FUNCTION {function}() RETURNS trigger LANGUAGE plpgsql"
        f" SET search_path = pg_catalog, pg_temp AS {dollar(body)}",
        f"CREATE TRIGGER {trigger} AFTER INSERT ON {table.sql} FOR EACH ROW WHEN ({given})"
        f" EXECUTE FUNCTION {function}()",
        f"CREATE TRIGGER {update} AFTER UPDATE OF {columns} ON {table.sql} FOR EACH ROW"
        f" WHEN ({_changed(table.old_only)}) EXECUTE FUNCTION {function}()",
        f"ALTER TABLE {table.sql} ENABLE ALWAYS TRIGGER {trigger}",
        f"ALTER TABLE {table.sql} ENABLE ALWAYS TRIGGER {update}",
    ]


def drop_fence(table: TableDesign, function: str) -> list[str]:
    """What removes the fence."""
    return [
        f"DROP TRIGGER IF EXISTS {ident(FENCE_TRIGGER)} ON {table.sql}",
        f"DROP TRIGGER IF EXISTS {ident(FENCE_TRIGGER + '_update')} ON {table.sql}",
        f"DROP FUNCTION IF EXISTS {function}()",
    ]
