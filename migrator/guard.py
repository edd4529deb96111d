"""The guard ``sync`` (for the others see ``armed``): an AFTER ROW trigger that repairs, in the same transaction, every
write that left the two shapes of a row apart.

Its WHEN clause looks at the data in the direction that the mark names, so a rewritten write costs one comparison and
a copied mark deceives nobody. The function decides which shape the writer meant from what changed, recomputes the
other one from the row as it is then, and records what cannot be computed as a problem. It raises only where a new
speaker breaks a constraint of the new version, with PostgreSQL's own SQLSTATE.

One limit: a mirror whose expression is volatile must not be computed twice, so for it the guard can only see whether
a source changed while the mark did not.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

from migrator import armed
from migrator.design import ConstraintDesign, DirectionDesign, TableDesign
from migrator.sqltext import FENCE_TRIGGER, GUARD_TRIGGER, MARK, conjunction, dollar, ident, literal, names

Side = Literal["old", "new"]


def guard_function_name(table: TableDesign, migration: int, number: int) -> str:
    """The guard function of one table."""
    return f"dualwire.guard_{migration}_{number}"


def fill_function_name(function: str) -> str:
    """The function that completes a new speaker's row before it is inserted, beside the guard function."""
    return f"{function}_fill"


def fill_function(table: TableDesign, migration: int, function: str) -> list[str]:
    """Completes a row before it is inserted, where that is cheaper than a repair, or the only way.

    A row without a mark whose writer gave nothing of the new shape gets it here: COPY, psql, a function. A new
    speaker's INSERT that was left to the guard must not fail on the old shape's NOT NULL constraints, which are checked
    before an AFTER trigger could repair the row, so the columns that it left NULL are computed. A row that was written
    in both shapes never comes here; whatever comes out of here wrong, the guard sees.
    """
    if not _fills(table):
        return []
    back = [
        f"NEW.{ident(m.target)} := coalesce(NEW.{ident(m.target)}, {m.computed('NEW.')});"
        for m in table.down.mirrors
    ]
    lines = [*back, "RETURN NEW;"]
    if table.fill_old:
        carried = [f"NEW.{ident(m.target)} := {m.computed('NEW.')};" for m in table.up.mirrors]
        mark = "1"
        if table.up.ok is not None:
            mark = f"CASE WHEN {table.up.ok}({names(table.up.ok_sources, 'NEW.')}) THEN 1 END"
        lines = [
            f"IF NEW.{ident(MARK)} IS NULL THEN",
            f"    IF NOT ({_given(_new_given(table))}) THEN",
            *(f"        {line}" for line in carried),
            f"        NEW.{ident(MARK)} := {mark};",
            f"        PERFORM nextval('dualwire.guard_repairs_{migration}');",
            "    END IF;",
            "    RETURN NEW;",
            "END IF;",
            *lines,
        ]
    body = "\n".join(["", "BEGIN", *(f"    {line}" for line in lines), "END"])
    schemas = {s for m in [*table.up.mirrors, *table.down.mirrors] for s in m.value.path}
    path = ", ".join(["pg_catalog", *map(ident, sorted(schemas)), "pg_temp"])
    name = fill_function_name(function)
    return [
        f"CREATE OR REPLACE FUNCTION {name}() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER"
        f" SET search_path = {path} AS {dollar(body)}",
        f"REVOKE ALL ON FUNCTION {name}() FROM PUBLIC",
    ]


def _fills(table: TableDesign) -> bool:
    return bool(table.down.mirrors) or table.fill_old


def _new_given(table: TableDesign) -> list[tuple[str, str | None]]:
    """Columns of the new shape whose value tells that its writer knows them, each with its default."""
    return [(c.name, c.default) for c in table.columns if not c.native and c.default_kind != "volatile"]


def fill_trigger(table: TableDesign, function: str) -> list[str]:
    """DDL of the trigger that calls it; the last of the BEFORE triggers by its name."""
    if not _fills(table):
        return []
    mark = f"NEW.{ident(MARK)}"
    missing = " OR ".join(f"NEW.{ident(m.target)} IS NULL" for m in table.down.mirrors)
    when = [f"{mark} IS NULL"] if table.fill_old else []
    if missing:
        when.append(f"({mark} >= 3 AND ({missing}))")
    trigger = ident(GUARD_TRIGGER + "_fill")
    return [
        f"CREATE TRIGGER {trigger} BEFORE INSERT ON {table.sql} FOR EACH ROW"
        f" WHEN ({' OR '.join(when)}) EXECUTE FUNCTION {fill_function_name(function)}()",
        f"ALTER TABLE {table.sql} ENABLE ALWAYS TRIGGER {trigger}",
    ]


def triggers(table: TableDesign, function: str) -> list[str]:
    """DDL of the guard's triggers; one more where a volatile mirror needs the row as it was."""
    if table.guard != "sync":
        return []
    return [*_guard_triggers(table, function), *fill_trigger(table, function)]


def _guard_triggers(table: TableDesign, function: str) -> list[str]:
    consistent = table.consistent("NEW.")
    insert = f"NOT ({consistent})"
    if not (table.up.volatile or table.down.volatile):
        return [
            f"CREATE TRIGGER {ident(GUARD_TRIGGER)} AFTER INSERT OR UPDATE ON {table.sql} FOR EACH ROW"
            f" WHEN ({insert}) EXECUTE FUNCTION {function}()",
            f"ALTER TABLE {table.sql} ENABLE ALWAYS TRIGGER {ident(GUARD_TRIGGER)}",
        ]
    stale = (
        f"NEW.{ident(MARK)} IS NOT DISTINCT FROM OLD.{ident(MARK)} AND ({_changed(_volatile_columns(table))})"
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
    if table.guard != "sync":
        return []
    return [
        f"DROP TRIGGER IF EXISTS {ident(GUARD_TRIGGER)} ON {table.sql}",
        f"DROP TRIGGER IF EXISTS {ident(GUARD_TRIGGER + '_update')} ON {table.sql}",
        f"DROP TRIGGER IF EXISTS {ident(GUARD_TRIGGER + '_fill')} ON {table.sql}",
        f"DROP FUNCTION IF EXISTS {function}()",
        f"DROP FUNCTION IF EXISTS {fill_function_name(function)}()",
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


def _given(columns: Sequence[tuple[str, str | None]], computed: Mapping[str, str] | None = None) -> str:
    """SQL: whether any of the columns holds something else than its default, or than what is computed for it."""
    parts = []
    for name, default in columns:
        value = f"NEW.{ident(name)}"
        others = [f"({default})"] if default is not None else []
        others += [computed[name]] if computed and name in computed else []
        distinct = "".join(f" AND {value} IS DISTINCT FROM {other}" for other in others)
        parts.append(f"({value} IS NOT NULL{distinct})")
    return " OR ".join(parts) or "false"


def _volatile_columns(table: TableDesign) -> list[str]:
    """Sources and targets of mirrors that are never computed twice."""
    found = [
        column
        for direction in (table.up, table.down)
        for m in direction.mirrors
        if m.value.volatility == "volatile"
        for column in (*m.value.sources, m.target)
    ]
    return list(dict.fromkeys(found))


def _body(table: TableDesign, migration: int) -> str:
    mark = f"NEW.{ident(MARK)}"
    old_columns = list(dict.fromkeys([*(c for c, _ in table.old_given), *table.up.sources]))
    violations = _violations(table)
    carried = conjunction(
        [f"NEW.{ident(m.target)} IS NOT DISTINCT FROM {m.computed('NEW.')}" for m in table.up.reproducible]
    )
    possible = [c.holds(_values(c)) for c in table.up.constraints]
    if table.down.ok is not None:
        possible.append(f"{table.down.ok}({names(table.down.ok_sources, 'NEW.')})")
    copied = conjunction(possible)
    back = {m.target: m.computed("NEW.") for m in table.down.reproducible}
    # Rows that can be listed: without a mark, or in a direction whose down may fail.
    listed = "true" if table.down.ok is not None else f"OLD.{ident(MARK)} IS NULL"
    return f"""
DECLARE
    side text;
    old_changed boolean := false;
    new_changed boolean := false;
    reason text;
    row_key constant text := TG_RELID::text || ' ' || {table.key_json("NEW.")}::text;
    outer_key constant text := coalesce(current_setting('dualwire.repairing', true), '');
BEGIN
    -- The repair below fires this trigger again for its own row. Other rows may come in between, where user triggers
    -- fire on the repair and write to the same table: those are guarded like any other.
    IF outer_key = row_key THEN
        RETURN NULL;
    END IF;
    IF TG_OP = 'UPDATE' THEN
        old_changed := {_changed(old_columns)};
        new_changed := {_changed(table.new_only)};
    ELSIF {mark} IS NULL THEN
        -- A value that is no default was given by a writer who knows the column.
        new_changed := {_given(_new_given(table))};
        old_changed := {_given(table.old_given)};
    ELSIF {mark} >= 3 THEN
        -- A copied row whose old columns were changed on the way; a new speaker's own values agree, or cannot.
        old_changed := ({_given(table.old_given, back)}) AND {copied};
    END IF;
    IF old_changed AND new_changed THEN
        side := CASE
            WHEN TG_OP = 'UPDATE' AND {mark} IS NULL AND OLD.{ident(MARK)} IS NOT NULL THEN 'old'
            WHEN TG_OP = 'UPDATE' AND {mark} < 3 AND {mark} IS DISTINCT FROM OLD.{ident(MARK)} THEN 'old'
            WHEN TG_OP = 'UPDATE' AND {mark} >= 3 AND {mark} IS DISTINCT FROM OLD.{ident(MARK)} THEN 'new'
            WHEN {carried} THEN 'old'
            WHEN {table.right("new", "NEW.")} THEN 'new'
            ELSE 'both' END;
    ELSIF new_changed THEN
        -- Without a mark this is the backfill of a row that the new version forbids, and no new speaker.
        side := CASE WHEN {mark} IS NULL AND {carried} THEN 'old' ELSE 'new' END;
    ELSIF old_changed THEN
        side := 'old';
    ELSE
        side := CASE WHEN {mark} >= 3 THEN 'new' ELSE 'old' END;
    END IF;
{violations}
    PERFORM nextval('dualwire.guard_repairs_{migration}');
    PERFORM set_config('dualwire.repairing', row_key, true);
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
    PERFORM set_config('dualwire.repairing', outer_key, true);
    IF reason IS NULL AND TG_OP = 'UPDATE' AND ({listed}) THEN
        DELETE FROM dualwire.problem p
        WHERE p.migration = {migration} AND p.table_name = {literal(table.label)}
          AND p.key = {table.key_json("NEW.")};
    ELSIF reason IS NOT NULL THEN
        INSERT INTO dualwire.problem AS p (migration, table_name, key, direction, reason)
        VALUES ({migration}, {literal(table.label)}, {table.key_json("NEW.")}, side, reason)
        ON CONFLICT ON CONSTRAINT problem_pkey DO UPDATE
            SET direction = excluded.direction, reason = excluded.reason, found_at = clock_timestamp()
            WHERE (p.direction, p.reason) IS DISTINCT FROM (excluded.direction, excluded.reason);
    END IF;
    RETURN NULL;
END"""


def _values(constraint: ConstraintDesign) -> dict[str, str]:
    """The constraint's columns as the trigger sees them."""
    return {name: f"NEW.{ident(name)}" for name in [constraint.column, *constraint.condition.sources]}


def _violations(table: TableDesign) -> str:
    """What a new speaker's own version forbids is an error of its statement, as it would be natively."""
    if not table.up.constraints:
        return ""
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
            f"        IF NOT ({constraint.holds(_values(constraint))}) THEN",
            f"            RAISE EXCEPTION USING ERRCODE = '{code}', MESSAGE = {message},"
            f" DETAIL = {_failing_row(table)},"
            f" SCHEMA = {literal(table.schema_name)}, TABLE = {literal(table.name)}{extra};",
            "        END IF;",
        ]
    return "\n".join([*parts, "    END IF;"])


def _failing_row(table: TableDesign) -> str:
    """SQL for the row as PostgreSQL shows it in an error, with the columns of the new version."""
    values = []
    for _, physical in table.new:
        text = f"NEW.{ident(physical)}::text"
        values.append(
            f"CASE WHEN octet_length({text}) > 64 THEN left({text}, 64) || '...' ELSE coalesce({text}, 'null') END"
        )
    return f"'Failing row contains (' || concat_ws(', ', {', '.join(values)}) || ').'"


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
    names_given = [c for c, _ in table.old_given]
    if not names_given:
        return []
    columns = ", ".join(map(ident, names_given))
    trigger = ident(FENCE_TRIGGER)
    update = ident(FENCE_TRIGGER + "_update")
    given, changed = _old_written(table)
    return [
        *_fence_function(table, function),
        f"CREATE TRIGGER {trigger} AFTER INSERT ON {table.sql} FOR EACH ROW WHEN ({given})"
        f" EXECUTE FUNCTION {function}()",
        f"CREATE TRIGGER {update} AFTER UPDATE OF {columns} ON {table.sql} FOR EACH ROW"
        f" WHEN ({changed}) EXECUTE FUNCTION {function}()",
        f"ALTER TABLE {table.sql} ENABLE ALWAYS TRIGGER {trigger}",
        f"ALTER TABLE {table.sql} ENABLE ALWAYS TRIGGER {update}",
    ]


def closing_fence(table: TableDesign, function: str) -> list[str]:
    """The fence of guard ``check`` until all sidecars know that the old version is over."""
    if not table.mark or table.guard != "check" or not table.old_given:
        return []
    given, changed = _old_written(table)
    return [*_fence_function(table, function), *armed.closing_fence(table, function, changed, given)]


def _old_written(table: TableDesign) -> tuple[str, str]:
    """SQL: whether an inserted row has values in old columns, and whether an update has changed them."""
    columns = [c for c, _ in table.old_given]
    # Their defaults are gone by now: whatever is not NULL was given.
    return _given([(c, None) for c in columns]), _changed(columns)


def _fence_function(table: TableDesign, function: str) -> list[str]:
    names_given = [c for c, _ in table.old_given]
    body = f"""
BEGIN
    RAISE EXCEPTION USING ERRCODE = '0A000',
        MESSAGE = {literal(f'relation "{table.name}" no longer takes values of its old version')},
        DETAIL = {literal("Columns: " + ", ".join(names_given))},
        HINT = 'The migration is closed: write the columns of the new version.',
        SCHEMA = {literal(table.schema_name)}, TABLE = {literal(table.name)};
END"""
    return [
        f"CREATE OR REPLACE FUNCTION {function}() RETURNS trigger LANGUAGE plpgsql"
        f" SET search_path = pg_catalog, pg_temp AS {dollar(body)}",
    ]


def drop_fence_triggers(table: TableDesign) -> list[str]:
    """What removes the fence's triggers."""
    return [
        f"DROP TRIGGER IF EXISTS {ident(FENCE_TRIGGER)} ON {table.sql}",
        f"DROP TRIGGER IF EXISTS {ident(FENCE_TRIGGER + '_update')} ON {table.sql}",
    ]


def drop_fence(table: TableDesign, function: str) -> list[str]:
    """What removes the fence."""
    return [
        *drop_fence_triggers(table),
        f"DROP FUNCTION IF EXISTS {function}()",
    ]
