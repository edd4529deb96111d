"""The mirror of a replaced table: functions and triggers that keep the two tables right, in both directions.

Theory of operation. The mirror never writes what a trigger was handed; it brings single keys up to date: what the
source table holds under a key *now* is written to the target, and a key that is gone is deleted there. A trigger runs
after the row locks of its statement were taken, and each statement in a plpgsql function has a snapshot of its own
under READ COMMITTED, so a key can be synchronized late, twice or in any order. Under REPEATABLE READ the row that
somebody else changed has a newer version, which the statement meets (40001).

Under REPEATABLE READ a key may even show two rows: one that somebody else has deleted since the snapshot, and the one
that this transaction has put in its place. A key that fires a trigger belongs to this transaction, so of the source
table only rows count that it wrote itself: those with an ``age(xmin)`` of zero or less (a row that an older snapshot
shows was written before this transaction had an id). A repair is no write and looks at any row (mode ``repair``).

*Forward*, from the authoritative table, mirrors have transition tables (one statement mirrors all rows; row triggers
on a partitioned table, because those of statements do not fire for a partition that is named directly). *Reverse*,
from the other table, row triggers carry back what came by some other way: psql, a function, a cascade. What a forward
mirror writes must not come back: it leaves its trigger depth in ``dualwire.mirroring``, and the reverse trigger's WHEN
skips exactly the writes of that depth. A reverse mirror's write fires the forward mirror as any other write does.

An error of the mirror never fails the write: data errors make the key a listed problem. Errors that are about the
moment (locks, serialization, resources) and the foreign keys of other tables are the writer's own and pass through.
"""

from __future__ import annotations

from migrator.expressions import render
from migrator.functions import PINNED
from migrator.replace.design import ColumnPair, ReplaceDesign, Side, other
from migrator.sqltext import dollar, ident, literal, names

SETTING = "dualwire.mirroring"
TRIGGER = "zzz_dualwire_mirror"
BEFORE, AFTER = "dualwire_before", "dualwire_after"
OUTER = f"outer_depth constant text := coalesce(current_setting('{SETTING}', true), '');"
RESTORE = f"PERFORM set_config('{SETTING}', outer_depth, true);"
"""Only where all went well: an error takes the setting back with everything else. Nobody but a superuser may give a
function such a setting of its own."""
OWN = "age(s.xmin) <= 0"
"""SQL: this transaction wrote the source row."""
PASSING = "'08', '25', '40', '53', '54', '55', '57', '58', 'XX'"
"""Classes of errors that are not about the row."""
NOT_TAKEN = "the other table has another row with this primary key, or a trigger did not take the row"


def trigger_name(kind: str) -> str:
    """The name of one of the mirror's triggers; the last ones by their names."""
    return f"{TRIGGER}_{kind}"


def function_name(design: ReplaceDesign, kind: str, to: Side) -> str:
    """The name of one of the mirror's functions."""
    return f"dualwire.{kind}_{design.tag}_to_{to}"


def functions(design: ReplaceDesign) -> list[str]:
    """DDL of everything that the mirror consists of but the triggers."""
    statements = [*values(design), *_key(design), *_note(design)]
    for to in _SIDES:
        statements += [
            *_sync(design, to),
            *_statement(design, to),
            *_row(design, to),
            *_truncate(design, to),
        ]
    return statements


def drop_functions(design: ReplaceDesign) -> list[str]:
    """What removes them."""
    made = [f for c in design.columns for f in _made(c) if f is not None]
    made += [f"dualwire.key_{design.tag}", f"dualwire.note_{design.tag}"]
    made += [function_name(design, k, to) for to in _SIDES for k in ("mirror", "row", "truncate", "sync")]
    return [f"DROP FUNCTION IF EXISTS {name}" for name in made]


_SIDES: tuple[Side, Side] = ("new", "old")


def _made(column: ColumnPair) -> list[str | None]:
    return [
        column.up_function,
        column.down_function,
        column.up_assign,
        column.down_assign,
        column.up_try,
        column.down_try,
    ]


# -- triggers ------------------------------------------------------------------------------------------------


def triggers(design: ReplaceDesign, authority: Side) -> list[str]:
    """DDL of the triggers on both tables, with one of them as the authoritative one."""
    return [*_forward(design, authority), *_reverse(design, other(authority))]


def drop_triggers(design: ReplaceDesign) -> list[str]:
    """What removes them, whichever table is the authoritative one."""
    statements = []
    for side in ("old", "new"):
        for kind in ("ins", "upd", "del", "row", "trunc"):
            statements.append(f"DROP TRIGGER IF EXISTS {trigger_name(kind)} ON {design.table(side)}")
    for schema, name in design.old_partitions:
        statements.append(f"DROP TRIGGER IF EXISTS {trigger_name('trunc')} ON {ident(schema)}.{ident(name)}")
    for name in design.partitions:
        statements.append(
            f"DROP TRIGGER IF EXISTS {trigger_name('trunc')} ON {ident(design.schema_name)}.{ident(name)}"
        )
    return statements


def _forward(design: ReplaceDesign, source: Side) -> list[str]:
    to = other(source)
    table = design.table(source)
    if design.by_row(source):
        return [
            *_always(
                table,
                "row",
                f"AFTER INSERT OR UPDATE OR DELETE ON {table} FOR EACH ROW",
                design,
                to,
                "forward",
            ),
            *_truncations(design, source, "forward"),
        ]
    function = function_name(design, "mirror", to)
    result = []
    for kind, event, referencing in (
        ("ins", "INSERT", f"NEW TABLE AS {AFTER}"),
        ("upd", "UPDATE", f"OLD TABLE AS {BEFORE} NEW TABLE AS {AFTER}"),
        ("del", "DELETE", f"OLD TABLE AS {BEFORE}"),
    ):
        name = trigger_name(kind)
        result += [
            f"CREATE TRIGGER {name} AFTER {event} ON {table} REFERENCING {referencing}"
            f" FOR EACH STATEMENT EXECUTE FUNCTION {function}()",
            f"ALTER TABLE {table} ENABLE ALWAYS TRIGGER {name}",
        ]
    return [*result, *_truncations(design, source, "forward")]


def _reverse(design: ReplaceDesign, source: Side) -> list[str]:
    table = design.table(source)
    clause = f"AFTER INSERT OR UPDATE OR DELETE ON {table} FOR EACH ROW"
    return [
        *_always(table, "row", clause, design, other(source), "reverse"),
        *_truncations(design, source, "reverse"),
    ]


def _always(
    table: str, kind: str, clause: str, design: ReplaceDesign, to: Side, mode: str, scope: str = "all"
) -> list[str]:
    function = function_name(design, "truncate" if kind == "trunc" else kind, to)
    when = ""
    if mode == "reverse":
        when = (
            f" WHEN (current_setting('{SETTING}', true) IS DISTINCT FROM"
            f" '{design.tag}:' || pg_trigger_depth()::text)"
        )
    arguments = f"{literal(mode)}, {literal(scope)}" if kind == "trunc" else literal(mode)
    name = trigger_name(kind)
    return [
        f"CREATE TRIGGER {name} {clause}{when} EXECUTE FUNCTION {function}({arguments})",
        f"ALTER TABLE {table} ENABLE ALWAYS TRIGGER {name}",
    ]


def _truncations(design: ReplaceDesign, source: Side, mode: str) -> list[str]:
    to, table = other(source), design.table(source)
    result = _always(table, "trunc", f"AFTER TRUNCATE ON {table} FOR EACH STATEMENT", design, to, mode)
    parts = (
        design.old_partitions
        if source == "old"
        else [(design.schema_name, name) for name in design.partitions]
    )
    for schema, name in parts:
        part = f"{ident(schema)}.{ident(name)}"
        clause = f"AFTER TRUNCATE ON {part} FOR EACH STATEMENT"
        result += _always(part, "trunc", clause, design, to, mode, "partition")
    return result


# -- functions -----------------------------------------------------------------------------------------------


def _settings(design: ReplaceDesign, *, planner: bool = False) -> str:
    used = {s for c in design.columns for v in (c.up, c.down) for s in v.path}
    if design.has_user_triggers:
        # A reverse mirror fires them, and their functions mostly name what is in the table's schema.
        used.add(design.schema_name)
    schemas = sorted(used)
    text = f"SET search_path = {', '.join(['pg_catalog', *map(ident, schemas), 'pg_temp'])}"
    if any(v.volatility == "pinned" for c in design.columns for v in (c.up, c.down)):
        text += f" {PINNED}"
    if planner:
        # A plan that was made for many rows is kept: it must not read all of a table for a single one later.
        text += " SET enable_hashjoin = off SET enable_mergejoin = off"
    return text


def _function(
    name: str, arguments: str, returns: str, settings: str, body: str, *, definer: bool
) -> list[str]:
    security = " SECURITY DEFINER" if definer else ""
    signature = f"{name}({arguments})"
    kinds = ", ".join(a.split(" ", 1)[1] for a in arguments.split(", ")) if arguments else ""
    return [
        f"CREATE OR REPLACE FUNCTION {signature} RETURNS {returns} LANGUAGE plpgsql{security}"
        f" {settings} AS {dollar(body)}",
        f"REVOKE ALL ON FUNCTION {name}({kinds}) FROM PUBLIC",
    ]


def values(design: ReplaceDesign) -> list[str]:
    """Functions that sidecars call to read and write one table in the other one's shape. They may raise."""
    statements = []
    old = {c.name: c.old_type for c in design.columns}
    new = {c.name: c.new_type for c in design.columns}
    for column in design.columns:
        for name, value, types, kind in (
            (column.up_function, column.up, old, column.new_type),
            (column.down_function, column.down, new, column.old_type),
        ):
            if name is None:
                continue
            arguments = ", ".join(f"{ident(s)} {types[s]}" for s in value.sources)
            given = [f"${i + 1}" for i in range(len(value.sources))]
            expression = f"CAST(({render(value.template, given)}\n) AS {kind})"
            head = f"CREATE OR REPLACE FUNCTION {name}({arguments}) RETURNS {kind}"
            if value.inline or (value.volatility == "immutable" and not value.path):
                text = f"{head} LANGUAGE sql IMMUTABLE PARALLEL SAFE RETURN {expression}"
            else:
                path = ", ".join(["pg_catalog", *map(ident, value.path), "pg_temp"])
                pinned = f" {PINNED}" if value.volatility == "pinned" else ""
                text = (
                    f"{head} LANGUAGE sql IMMUTABLE SET search_path = {path}{pinned}"
                    f" AS {dollar(f'SELECT {expression}')}"
                )
            statements += [text, f"GRANT EXECUTE ON FUNCTION {name} TO PUBLIC"]
        for name, value, types, kind, full in (
            (column.up_try, column.up, old, column.new_type, column.new_full),
            (column.down_try, column.down, new, column.old_type, column.old_full),
        ):
            if name is None:
                continue
            arguments = ", ".join(f"{ident(s)} {types[s]}" for s in value.sources)
            given = [f"${i + 1}" for i in range(len(value.sources))]
            body = (
                f"DECLARE dualwire_result {full};\nBEGIN\n"
                f"    dualwire_result := ({render(value.template, given)}\n);\n    RETURN dualwire_result;\n"
                "EXCEPTION WHEN OTHERS THEN\n    RETURN NULL;\nEND"
            )
            path = ", ".join(["pg_catalog", *map(ident, value.path), "pg_temp"])
            pinned = f" {PINNED}" if value.volatility == "pinned" else ""
            statements += [
                f"CREATE OR REPLACE FUNCTION {name}({arguments}) RETURNS {kind} LANGUAGE plpgsql IMMUTABLE"
                f" SET search_path = {path}{pinned} AS {dollar(body)}",
                f"REVOKE ALL ON FUNCTION {name} FROM PUBLIC",
            ]
        for name, kind, full in (
            (column.up_assign, column.new_type, column.new_full),
            (column.down_assign, column.old_type, column.old_full),
        ):
            if name is None:
                continue
            body = f"DECLARE dualwire_result {full};\nBEGIN\n    dualwire_result := $1;\n    RETURN $1;\nEND"
            statements += [
                f"CREATE OR REPLACE FUNCTION {name}({kind}) RETURNS {kind} LANGUAGE plpgsql IMMUTABLE"
                f" SET search_path = pg_catalog, pg_temp AS {dollar(body)}",
                f"GRANT EXECUTE ON FUNCTION {name} TO PUBLIC",
            ]
    return statements


def _pair_arguments(design: ReplaceDesign, side: Side) -> str:
    return ", ".join(f"k{i} {p.of(side)}" for i, p in enumerate(design.pair, start=1))


def wider_types(design: ReplaceDesign) -> list[str]:
    """Types that take the keys of both tables."""
    widths = ("smallint", "integer", "bigint")
    kinds = []
    for part in design.pair:
        kind = part.type
        if kind in widths and part.new_type in widths:
            kind = widths[max(widths.index(kind), widths.index(part.new_type))]
        kinds.append(kind)
    return kinds


def _key(design: ReplaceDesign) -> list[str]:
    parts = ", ".join(f"{literal(p.name)}, ${i}" for i, p in enumerate(design.pair, start=1))
    name = f"dualwire.key_{design.tag}"
    arguments = ", ".join(f"k{i} {kind}" for i, kind in enumerate(wider_types(design), start=1))
    return [
        f"CREATE OR REPLACE FUNCTION {name}({arguments}) RETURNS jsonb LANGUAGE sql STABLE"
        f" SET search_path = pg_catalog, pg_temp SET TimeZone = 'UTC' SET extra_float_digits = 1"
        f" AS {dollar(f'SELECT jsonb_build_object({parts})')}",
        f"GRANT EXECUTE ON FUNCTION {name} TO PUBLIC",
    ]


def _note(design: ReplaceDesign) -> list[str]:
    """Lists a key as a problem, or takes it off the list."""
    body = f"""
BEGIN
    IF a_reason IS NULL THEN
        DELETE FROM dualwire.problem p WHERE {design.problems_where} AND p.key = a_key;
    ELSE
        INSERT INTO dualwire.problem AS p (migration, table_name, key, direction, reason)
        VALUES ({design.migration}, {literal(design.label)}, a_key, a_side, a_reason)
        ON CONFLICT ON CONSTRAINT problem_pkey DO UPDATE
            SET direction = excluded.direction, reason = excluded.reason, found_at = clock_timestamp()
            WHERE (p.direction, p.reason) IS DISTINCT FROM (excluded.direction, excluded.reason);
    END IF;
END"""
    settings = "SET search_path = pg_catalog, pg_temp"
    arguments = "a_key jsonb, a_side text, a_reason text"
    return _function(f"dualwire.note_{design.tag}", arguments, "void", settings, body, definer=True)


def _insert(design: ReplaceDesign, to: Side, source: str) -> str:
    """INSERT of what ``source`` (a FROM clause with alias s) gives, or the same as an update."""
    written = design.written()
    columns = names([c.name for c in written])
    values = ", ".join(c.computed(to, "s.") for c in written)
    key = names(design.primary_key(to))
    sets = ", ".join(f"{ident(n)} = excluded.{ident(n)}" for n in _set_columns(design))
    where = ""
    if design.wide(to):
        where = " WHERE " + design.paired("t.", "excluded.")
    sets = sets or f"{ident(design.touch)} = t.{ident(design.touch)}"
    return (
        f"INSERT INTO {design.table(to)} AS t ({columns}) OVERRIDING SYSTEM VALUE"
        f" SELECT {values} FROM {source} ON CONFLICT ({key}) DO UPDATE SET {sets}{where}"
    )


def _set_columns(design: ReplaceDesign) -> list[str]:
    """What an update may set: the rest tells which rows belong together and is equal."""
    pair = set(design.pair_names)
    return [c.name for c in design.written() if c.name not in pair]


def _fatal(design: ReplaceDesign, reverse: str) -> str:
    """SQL: whether the error in hand is the writer's own."""
    text = f"left(SQLSTATE, 2) IN ({PASSING}) OR SQLSTATE = '23503'"
    if design.has_user_triggers:
        # What the authoritative table's own trigger forbids is forbidden.
        text += f" OR ({reverse} AND SQLSTATE = 'P0001')"
    return text


def _sync(design: ReplaceDesign, to: Side) -> list[str]:
    """Bring one key of the target up to date; gives why that cannot be done, or NULL."""
    source, target = design.table(other(to)), design.table(to)
    mine = " AND ".join(f"s.{ident(n)} = k{i}" for i, n in enumerate(design.pair_names, start=1))
    mine += f" AND (a_mode = 'repair' OR {OWN})"
    theirs = " AND ".join(f"t.{ident(n)} = k{i}" for i, n in enumerate(design.pair_names, start=1))
    values = {c.name: c.computed(to, "s.") for c in design.written()}
    sets = ", ".join(f"{ident(n)} = {values[n]}" for n in _set_columns(design))
    if sets:
        update = f"UPDATE {target} AS t SET {sets} FROM {source} AS s WHERE {mine} AND {theirs};"
    else:
        update = f"PERFORM FROM {target} AS t, {source} AS s WHERE {mine} AND {theirs};"
    body = f"""
BEGIN
    IF NOT EXISTS (SELECT FROM {source} AS s WHERE {mine}) THEN
        DELETE FROM {target} AS t WHERE {theirs};
        RETURN NULL;
    END IF;
    IF a_mode = 'reverse' THEN
        -- The triggers of the authoritative table see an update as one.
        {update}
        IF FOUND THEN
            RETURN NULL;
        END IF;
    END IF;
    {_insert(design, to, f"{source} AS s WHERE {mine}")};
    IF NOT FOUND THEN
        RETURN {literal(NOT_TAKEN)};
    END IF;
    RETURN NULL;
EXCEPTION WHEN OTHERS THEN
    IF {_fatal(design, "a_mode = 'reverse'")} THEN
        RAISE;
    END IF;
    RETURN SQLERRM;
END"""
    arguments = f"{_pair_arguments(design, other(to))}, a_mode text"
    name = function_name(design, "sync", to)
    return _function(name, arguments, "text", _settings(design), body, definer=False)


def _call(design: ReplaceDesign, to: Side, prefix: str) -> str:
    return f"{function_name(design, 'sync', to)}({names(design.pair_names, prefix)}, TG_ARGV[0])"


def _depth(design: ReplaceDesign) -> str:
    return f"PERFORM set_config('{SETTING}', '{design.tag}:' || pg_trigger_depth(), true);"


def _statement(design: ReplaceDesign, to: Side) -> list[str]:
    """The forward mirror of a whole statement; if that fails, key by key."""
    source, target = design.table(other(to)), design.table(to)
    side = other(to)
    json_arguments = ", ".join(f"CAST(item->>{literal(p.name)} AS {p.of(other(to))})" for p in design.pair)
    short = (
        f"""
            GET DIAGNOSTICS done = ROW_COUNT;
            IF done < (SELECT count(*) FROM {AFTER}) THEN
                RAISE EXCEPTION 'dualwire: not all rows were taken';
            END IF;"""
        if design.wide(to)
        else ""
    )
    body = f"""
DECLARE
    {OUTER}
    done bigint;
    item jsonb;
    reason text;
    todo jsonb[];
    failed jsonb[];
    reasons text[];
BEGIN
    {_depth(design)}
    BEGIN
        IF TG_OP <> 'INSERT' THEN
            DELETE FROM {target} AS t USING {BEFORE} AS k WHERE {design.paired("t.", "k.")}
                AND NOT EXISTS (SELECT FROM {source} AS s WHERE {design.paired("s.", "k.")} AND {OWN});
        END IF;
        IF TG_OP <> 'DELETE' THEN
            {_insert(design, to, f"{AFTER} AS k JOIN {source} AS s ON {design.paired('s.', 'k.')} AND {OWN}")};{short}
        END IF;
        IF EXISTS (SELECT FROM dualwire.problem p WHERE {design.problems_where}) THEN
            IF TG_OP <> 'INSERT' THEN
                DELETE FROM dualwire.problem p USING {BEFORE} AS k
                WHERE {design.problems_where} AND p.key = {design.key_json("k.")};
            END IF;
            IF TG_OP <> 'DELETE' THEN
                DELETE FROM dualwire.problem p USING {AFTER} AS k
                WHERE {design.problems_where} AND p.key = {design.key_json("k.")};
            END IF;
        END IF;
        {RESTORE}
        RETURN NULL;
    EXCEPTION WHEN OTHERS THEN
        IF {_fatal(design, "false")} THEN
            RAISE;
        END IF;
    END;
    IF TG_OP <> 'INSERT' THEN
        todo := ARRAY(SELECT {design.key_json("k.")} FROM {BEFORE} AS k);
        FOREACH item IN ARRAY todo LOOP
            PERFORM dualwire.note_{design.tag}(item, '{side}',
                {function_name(design, "sync", to)}({json_arguments}, 'forward'));
        END LOOP;
    END IF;
    IF TG_OP <> 'DELETE' THEN
        -- A key may wait for another one's value of a unique column: again, as long as some succeed.
        todo := ARRAY(SELECT {design.key_json("k.")} FROM {AFTER} AS k);
        LOOP
            failed := '{{}}';
            reasons := '{{}}';
            FOREACH item IN ARRAY todo LOOP
                reason := {function_name(design, "sync", to)}({json_arguments}, 'forward');
                IF reason IS NULL THEN
                    PERFORM dualwire.note_{design.tag}(item, '{side}', NULL);
                ELSE
                    failed := failed || item;
                    reasons := reasons || reason;
                END IF;
            END LOOP;
            EXIT WHEN cardinality(failed) IN (0, cardinality(todo));
            todo := failed;
        END LOOP;
        FOR place IN 1 .. cardinality(failed) LOOP
            PERFORM dualwire.note_{design.tag}(failed[place], '{side}', reasons[place]);
        END LOOP;
    END IF;
    {RESTORE}
    RETURN NULL;
END"""
    name = function_name(design, "mirror", to)
    settings = _settings(design, planner=True)
    return _function(name, "", "trigger", settings, body, definer=True)


def _row(design: ReplaceDesign, to: Side) -> list[str]:
    """The mirror of a single row, forward from a partitioned table or reverse."""
    side = other(to)
    changed = f"({names(design.pair_names, 'OLD.')}) IS DISTINCT FROM ({names(design.pair_names, 'NEW.')})"

    def one(prefix: str, indent: str) -> str:
        return (
            f"reason := {_call(design, to, prefix)};\n"
            f"{indent}IF reason IS NOT NULL OR listed THEN\n"
            f"{indent}    PERFORM dualwire.note_{design.tag}({design.key_json(prefix)}, '{side}', reason);\n"
            f"{indent}END IF;"
        )

    body = f"""
DECLARE
    {OUTER}
    reason text;
    listed constant boolean := EXISTS (SELECT FROM dualwire.problem p WHERE {design.problems_where});
BEGIN
    IF TG_ARGV[0] = 'forward' THEN
        {_depth(design)}
    END IF;
    IF TG_OP = 'DELETE' THEN
        {one("OLD.", " " * 8)}
        {RESTORE}
        RETURN NULL;
    END IF;
    IF TG_OP = 'UPDATE' THEN
        IF {changed} THEN
            {one("OLD.", " " * 12)}
        END IF;
    END IF;
    {one("NEW.", " " * 4)}
    {RESTORE}
    RETURN NULL;
END"""
    name = function_name(design, "row", to)
    return _function(name, "", "trigger", _settings(design), body, definer=True)


def _truncate(design: ReplaceDesign, to: Side) -> list[str]:
    """TRUNCATE of the table, or of one of its partitions: whatever is not there any more goes."""
    source, target = design.table(other(to)), design.table(to)
    gone = f"NOT EXISTS (SELECT FROM {source} AS s WHERE {design.paired('s.', 't.')})"
    body = f"""
DECLARE
    {OUTER}
BEGIN
    IF TG_ARGV[0] = 'forward' THEN
        {_depth(design)}
    END IF;
    IF TG_ARGV[1] = 'partition' THEN
        DELETE FROM {target} AS t WHERE {gone};
    ELSE
        BEGIN
            TRUNCATE {target};
        EXCEPTION WHEN feature_not_supported OR object_in_use THEN
            -- Referenced by a foreign key, or in use by this transaction.
            DELETE FROM {target} AS t;
        END;
        DELETE FROM dualwire.problem p WHERE {design.problems_where};
    END IF;
    {RESTORE}
    RETURN NULL;
END"""
    name = function_name(design, "truncate", to)
    return _function(name, "", "trigger", _settings(design), body, definer=True)
