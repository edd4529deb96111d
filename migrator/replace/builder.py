"""Builds the design of a replaced table from the file and the catalog.

Runs, like ``migrator.designer``, in a transaction that is rolled back: the new table is really made there, so what
the server does not accept is said before anything is changed.
"""

from __future__ import annotations

from collections.abc import Sequence

import asyncpg

from migrator.analysis import Compiled, compile_expression, create_probe, identity_of
from migrator.catalog import CatalogColumn, CatalogTable, read_table
from migrator.draft import ReplaceDraft
from migrator.errors import Refused, from_postgres
from migrator.expressions import Expression, parse_expression
from migrator.operations.replace_table import ReplaceTable
from migrator.replace import mirror, outlive, statements, surroundings
from migrator.replace.design import ColumnPair, KeyPart, ReplaceDesign
from migrator.sqltext import ident, new_column_name

INTEGERS = frozenset({"smallint", "integer", "bigint"})
TEXTS = frozenset({"text", "character varying"})
CUTTING = frozenset({"character varying", "character", "bpchar", "bit", '"bit"', "bit varying"})
"""Types that a cast with a modifier cuts silently where an assignment fails."""


async def build(
    conn: asyncpg.Connection,
    draft: ReplaceDraft,
    catalog: CatalogTable,
    order: Sequence[str],
    *,
    migration: int,
    number: int,
    may_suppress: bool,
) -> tuple[ReplaceDesign, statements.Plan, CatalogTable]:
    """The design, what it was made from, and the new table's catalog entry."""
    spec: ReplaceTable = draft.spec
    where = f"operations[{draft.index}].replace_table"
    _known_columns(spec, catalog, where)
    extra = await surroundings.read(conn, catalog.oid)
    printed = await conn.fetchval("SELECT $1::oid::regclass::text", catalog.oid)
    plan = statements.Plan(migration, number, spec, catalog, extra, order, printed)
    create = statements.create(plan)
    async with conn.transaction():
        await conn.execute(f"SET LOCAL search_path = pg_catalog, {ident(plan.schema)}")
        for statement in create:
            try:
                await conn.execute(statement)
            except asyncpg.PostgresError as error:
                raise from_postgres(error, f"{where}: {statement.splitlines()[0][:120]}") from error
        await conn.execute("SET LOCAL search_path = pg_catalog")
        grants = statements.privileges(plan, await surroundings.grants(conn, plan.new))
        for statement in grants:
            try:
                await conn.execute(statement)
            except asyncpg.PostgresError as error:
                raise from_postgres(error, f"{where}: {statement}") from error
    create += grants
    new = await read_table(
        conn, int(await conn.fetchval("SELECT $1::text::regclass::oid", plan.new)), brief=True
    )
    columns = await _columns(conn, plan, new, where)
    kinds = {c.name: c.new_type for c in columns}
    pair = list(dict.fromkeys([*new.primary_key, *catalog.primary_key]))
    user_triggers = [t for t in catalog.triggers if t.enabled != "D"]
    attach, validate = statements.foreign_keys(plan)
    flip, flip_back = statements.flip(plan, kinds)
    before, after = statements.swap(plan)
    design = ReplaceDesign(
        number=number,
        migration=migration,
        schema_name=plan.schema,
        name=catalog.name,
        temporary=plan.temporary,
        oid=catalog.oid,
        key=[_part(n, catalog, new) for n in catalog.primary_key],
        pair=[_part(n, catalog, new) for n in pair],
        new_key=new.primary_key,
        columns=columns,
        touch=_touched(catalog),
        old_by_row=catalog.kind == "p" or extra.subscribed,
        new_partitioned=plan.partitioned,
        partitions=[p.name for p in spec.partitions],
        old_partitions=extra.partitions,
        suppress_triggers=bool(user_triggers) and may_suppress,
        has_user_triggers=bool(user_triggers),
        functions=[],
        create=create,
        attach=attach if plan.partitioned else [],
        forward=[],
        forward_flipped=[],
        unmirror=[],
        flip=flip,
        flip_back=flip_back,
        indexes=[] if plan.partitioned else statements.indexes(plan),
        keys=[] if plan.partitioned else attach,
        validate_keys=validate,
        replica_identity=statements.replica_identity(plan),
        incoming=statements.incoming(plan),
        identities=statements.identities(plan),
        swap_before=before,
        swap=after,
        shrink=[],
        compat=[],
        labels=[
            (plan.temporary, catalog.name),
            *statements.renames(plan),
            *((key.temporary, key.name) for key in statements.incoming(plan)),
        ],
        rows=catalog.rows,
        bytes=catalog.bytes,
    )
    drops = mirror.drop_triggers(design)
    made = design.model_copy(
        update={
            "functions": mirror.functions(design),
            "forward": mirror.triggers(design, "old"),
            "forward_flipped": mirror.triggers(design, "new"),
            "unmirror": drops,
            "compat": outlive.statements(design, catalog, set()),
            "shrink": [*drops, *statements.shrink(plan), *mirror.drop_functions(design)],
        }
    )
    return made, plan, new


def _known_columns(spec: ReplaceTable, catalog: CatalogTable, where: str) -> None:
    known = {c.name for c in catalog.columns}
    groups = {
        "columns": [c.name for c in spec.columns],
        "primary_key": spec.primary_key,
        "key": spec.key,
        "up": list(spec.up),
        "down": list(spec.down),
    }
    for group, listed in groups.items():
        for name in listed:
            if name not in known:
                raise Refused(
                    f'{where}.{group}: table "{catalog.name}" has no column "{name}", and a replaced table has the'
                    " columns of the old one: a new one could not hold a value before the flip",
                    hint="Add, drop or rename columns in a migration before or after this one.",
                    sqlstate="42703",
                )
    if not catalog.primary_key:
        raise Refused(
            f'{where}: table "{catalog.name}" has no primary key: its rows could not be paired',
            hint="Add a primary key first.",
        )
    missing = [k for k in catalog.primary_key if spec.key and k not in spec.key]
    if missing:
        raise Refused(
            f"{where}.key: rows are paired by the old primary key ({', '.join(catalog.primary_key)}),"
            f" {', '.join(missing)} is missing"
        )


def _part(name: str, old: CatalogTable, new: CatalogTable) -> KeyPart:
    return KeyPart(name=name, type=old.column(name).type, new_type=new.column(name).type)


def _touched(catalog: CatalogTable) -> str:
    """The column that the backfill sets to itself: best one in no index, so that the row stays where it is."""
    indexed = {c for i in catalog.indexes for c in i.columns}
    usable = [c.name for c in catalog.columns if not c.generated and c.identity != "a"]
    if not usable:
        raise Refused(
            f'table "{catalog.name}" has only generated columns: its rows cannot be touched',
            hint="Make the identity column GENERATED BY DEFAULT first.",
        )
    return next((n for n in usable if n not in indexed), usable[0])


async def _columns(
    conn: asyncpg.Connection, plan: statements.Plan, new: CatalogTable, where: str
) -> list[ColumnPair]:
    old = plan.catalog
    probes = {n: new_column_name(n) for n in plan.order}
    listed = {}
    for name, physical in probes.items():
        column = new.column(name)
        listed[physical] = (
            column.type_full + (f" COLLATE {column.collation}" if column.collation else ""),
            None,
        )
    probe = await create_probe(conn, old, dict(listed), plan.schema)
    result = []
    for index, name in enumerate(plan.order):
        before, after = old.column(name), new.column(name)
        generated = bool(before.generated)
        if generated:
            up = down = identity_of(name, before.not_null)
        else:
            up = await _compile(conn, plan, probe, name, "up", probes, where)
            down = await _compile(conn, plan, probe, name, "down", probes, where)
        same = _same(before, after)
        carried = generated or (
            same
            and up.identity
            and down.identity
            and up.sources == [name]
            and down.sources == [name]
            and before.not_null == after.not_null
            and (before.default == after.default or bool(before.identity))
        )
        raw = not carried and _raw(before, after) and _plain(plan, name)
        number = f"{plan.migration}_{plan.number}_{index}"
        result.append(
            ColumnPair(
                name=name,
                old_type=before.type,
                old_full=before.type_full,
                new_type=after.type,
                new_full=after.type_full,
                up=up,
                down=down,
                carried=carried,
                raw=raw,
                exact=before.equality and before.exact and after.equality and after.exact,
                generated=generated,
                up_function=None if carried else f"dualwire.up_{number}",
                down_function=None if carried else f"dualwire.down_{number}",
                up_assign=f"dualwire.up_assign_{number}" if not carried and _cuts(after) else None,
                down_assign=f"dualwire.down_assign_{number}" if not carried and _cuts(before) else None,
                up_try=f"dualwire.up_try_{number}" if not (carried or raw or up.inline) else None,
                down_try=f"dualwire.down_try_{number}" if not (carried or raw or down.inline) else None,
            )
        )
    return result


def _same(before: CatalogColumn, after: CatalogColumn) -> bool:
    return (before.type_oid, before.typmod, before.collation) == (
        after.type_oid,
        after.typmod,
        after.collation,
    )


def _cuts(column: CatalogColumn) -> bool:
    return column.type in CUTTING and column.typmod != -1


def _raw(before: CatalogColumn, after: CatalogColumn) -> bool:
    if _same(before, after) or (before.type in INTEGERS and after.type in INTEGERS):
        return True
    free = before.typmod == after.typmod == -1 and before.collation == after.collation
    return free and before.type in TEXTS and after.type in TEXTS


def _plain(plan: statements.Plan, name: str) -> bool:
    """Whether both ways the column alone is converted, by nothing but a cast."""
    for given in (plan.spec.up.get(name), plan.spec.down.get(name)):
        if given is None:
            continue
        expression = parse_expression(given, name, [plan.catalog.name])
        node = expression.node
        while "TypeCast" in node:
            node = node["TypeCast"]["arg"]
        if "ColumnRef" not in node or expression.names != (name,):
            return False
    return True


async def _compile(
    conn: asyncpg.Connection,
    plan: statements.Plan,
    probe: CatalogTable,
    name: str,
    side: str,
    probes: dict[str, str],
    where: str,
) -> Compiled:
    texts = plan.spec.up if side == "up" else plan.spec.down
    place = f"{where}.{side}.{name}"
    source, target = (name, probes[name]) if side == "up" else (probes[name], name)
    text = texts.get(name)
    if text is None:
        one, two = probe.column(source), probe.column(target)
        if _same(one, two):
            return identity_of(name, one.not_null)
        if not any(one.type in kind and two.type in kind for kind in (INTEGERS, TEXTS)):
            raise Refused(
                f"{place}: missing: {one.type_full} does not become {two.type_full} by itself",
                hint="up gives the new value from the old columns, down the old value from the new ones.",
            )
        text = f"{ident(name)}::{two.type}"
    expression = parse_expression(text, place, [plan.catalog.name])
    physical = _physical(expression, probes, side, place)
    value = await compile_expression(
        conn, probe, expression, physical, probe.column(target), plan.schema, place
    )
    back = {p: n for n, p in probes.items()}
    return value.model_copy(update={"sources": [back.get(s, s) for s in value.sources]})


def _physical(expression: Expression, probes: dict[str, str], side: str, place: str) -> dict[str, str]:
    for name in expression.names:
        if name not in probes:
            raise Refused(
                f'{place}: there is no column "{name}"',
                hint=f"Columns there: {', '.join(sorted(probes))}.",
                sqlstate="42703",
            )
    return {n: n if side == "up" else probes[n] for n in expression.names}
