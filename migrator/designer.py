"""Builds the design of a migration from its file and the catalog.

Runs inside a transaction that the caller rolls back: it makes a probe table and asks the server about types and
expressions, and leaves nothing. Mistakes that make a design impossible are raised as ``Refused``; everything that
can be judged on a finished design is a finding.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import asyncpg

from migrator import atclose, partitions, statements
from migrator.analysis import Compiled, compile_expression, create_probe, identity_of
from migrator.catalog import CatalogColumn, CatalogTable, find_table, read_table
from migrator.defaults import new_default
from migrator.design import (
    ConstraintDesign,
    CreateDesign,
    Design,
    DirectionDesign,
    Finding,
    KeyColumn,
    MirrorDesign,
    NewColumn,
    SqlDesign,
    TableDesign,
)
from migrator.draft import Check, Draft, Slot, TableDraft
from migrator.errors import Refused
from migrator.expressions import Expression, parse_expression
from migrator.indexes import index_designs
from migrator.lint import judge_sql, judge_table
from migrator.models import logical_order
from migrator.replace.builder import build as build_replaced
from migrator.replace.lint import judge as judge_replaced
from migrator.spec import Migration
from migrator.sqltext import cut, new_column_name
from migrator.usertriggers import overruling
from proxy.rewrite.model import NOT_NULL_CHECK, Guard

Orders = Mapping[int, Sequence[tuple[str, str]]]
"""For tables whose logical column order differs from the physical one: (logical, physical) names by OID."""


async def draft_of(
    conn: asyncpg.Connection, migration: Migration, schema: str, orders: Orders
) -> tuple[Draft, dict[str, CatalogTable]]:
    """Fold the operations; gives the draft and the catalog entries of the tables that exist."""
    tables: dict[str, CatalogTable] = {}
    wanted = set()
    for operation in migration.operations:
        for key in ("table", "name"):
            value = getattr(operation, key, None)
            if isinstance(value, str):
                wanted.add(value)
    for name in sorted(wanted):
        oid = await find_table(conn, schema, name)
        if oid is not None:
            tables[name] = await read_table(conn, oid)

    def lookup(name: str) -> TableDraft | None:
        table = tables.get(name)
        if table is None:
            return None
        order = logical_order(table, orders.get(table.oid))
        return TableDraft(schema, name, [Slot(old=n, new=n, physical=p, aliases={n}) for n, p in order])

    draft = Draft(schema, lookup)
    for index, operation in enumerate(migration.operations):
        operation.apply(draft, index)
    return draft, tables


async def build(
    conn: asyncpg.Connection, migration: Migration, *, id: int, schema: str, parent: str, orders: Orders
) -> Design:
    """The whole design. The transaction must be rolled back afterwards."""
    draft, catalog = await draft_of(conn, migration, schema, orders)
    suppress = await _may_suppress(conn)
    findings: list[Finding] = []
    tables: list[TableDesign] = []
    counter = _Counter(id)
    ordered = sorted(draft.tables.values(), key=lambda t: catalog[t.name].oid)
    for number, table_draft in enumerate(ordered, start=1):
        table = catalog[table_draft.name]
        parts = await partitions.read_partitions(conn, table)
        builder = _TableBuilder(
            conn,
            table_draft,
            partitions.merged(table, parts),
            counter,
            number,
            suppress,
            migration.guard or "sync",
        )
        builder.partitions, builder.known = parts, orders
        tables.append(await builder.build())
        findings += builder.findings
    creates = [
        CreateDesign(schema_name=c.schema, name=c.name, statements=c.statements) for c in draft.created
    ]
    sql = [SqlDesign(up=s.up, down=s.down, on_complete=s.on_complete) for s in draft.sql]
    findings += judge_sql(draft)
    replaces = []
    names = {r.name for r in draft.replaced}
    for number, replaced in enumerate(draft.replaced, start=1):
        table = catalog[replaced.name]
        order = [p for _, p in logical_order(table, orders.get(table.oid))]
        made, plan, new = await build_replaced(
            conn, replaced, table, order, migration=id, number=number, may_suppress=suppress
        )
        version = int(await conn.fetchval("SELECT current_setting('server_version_num')::int"))
        findings += judge_replaced(made, plan, new, suppress, version, names)
        if (migration.guard or "sync") != "sync":
            findings.append(
                Finding(
                    severity="error",
                    code="guard",
                    message=f"{made.label}: guard {migration.guard} is not possible: a replaced table is kept right"
                    " by triggers on every path",
                    hint="Leave `guard` out.",
                )
            )
        replaces.append(made)
    mirrored = any(t.mark for t in tables)
    sequence = f"dualwire.guard_repairs_{id}"
    return Design(
        id=id,
        migration=migration.name,
        schema_name=schema,
        parent=parent,
        tables=tables,
        creates=creates,
        sql=sql,
        replaces=replaces,
        prelude=[f"CREATE SEQUENCE IF NOT EXISTS {sequence}"] if mirrored else [],
        epilogue=[f"DROP SEQUENCE IF EXISTS {sequence}"] if mirrored else [],
        findings=findings,
        guard=migration.guard or "sync",
    )


async def _may_suppress(conn: asyncpg.Connection) -> bool:
    try:
        async with conn.transaction():
            await conn.execute("SET LOCAL session_replication_role = 'replica'")
            await conn.execute("SET LOCAL session_replication_role = 'origin'")
        return True
    except asyncpg.PostgresError:
        return False


class _Counter:
    """Names of the migration's functions: ``up_<id>_<n>``, counted over all tables."""

    def __init__(self, id: int) -> None:
        self.id = id
        self._last: dict[str, int] = {}

    def next(self, prefix: str) -> str:
        self._last[prefix] = self._last.get(prefix, 0) + 1
        return f"dualwire.{prefix}_{self.id}_{self._last[prefix]}"


class _TableBuilder:
    """Builds the design of one table."""

    def __init__(
        self,
        conn: asyncpg.Connection,
        draft: TableDraft,
        catalog: CatalogTable,
        counter: _Counter,
        number: int,
        suppress: bool,
        guard: Guard,
    ) -> None:
        self.conn = conn
        self.draft = draft
        self.catalog = catalog
        self.counter = counter
        self.number = number
        self.may_suppress = suppress
        self.guard = guard
        self.findings: list[Finding] = []
        self.partitions: list[CatalogTable] = []
        self.known: Orders = {}
        self.new_names: dict[int, str] = {}
        taken = {c.name for c in catalog.columns}
        for index, slot in enumerate(draft.slots):
            if slot.replaced and slot.new is not None:
                name = new_column_name(slot.new)
                suffix = 0
                while name in taken:
                    suffix += 1
                    name = cut(f"_dualwire_new{suffix}_", slot.new)
                taken.add(name)
                self.new_names[index] = name

    @property
    def schema(self) -> str:
        return self.draft.schema

    def new_physical(self, index: int) -> str:
        slot = self.draft.slots[index]
        name = self.new_names.get(index) or slot.physical
        assert name is not None
        return name

    async def build(self) -> TableDesign:
        slots = self.draft.slots
        old = [(s.old, s.physical) for s in slots if s.old is not None and s.physical is not None]
        new = [(s.new, self.new_physical(i)) for i, s in enumerate(slots) if s.new is not None]
        old_physical, new_physical = {p for _, p in old}, {p for _, p in new}
        self.probe = await create_probe(self.conn, self.catalog, self._probe_columns(), self.schema)
        up = await self._up()
        columns = await self._new_columns(up)
        self.probe = await create_probe(
            self.conn, self.catalog, {c.name: (self._type_text(c), c.default) for c in columns}, self.schema
        )
        columns = [
            c.model_copy(
                update={
                    "default": self.probe.column(c.name).default,
                    "default_kind": self.probe.column(c.name).default_kind,
                }
            )
            for c in columns
        ]
        down = await self._down()
        up = await self._constrain(up, columns)
        mark = bool(up.mirrors or down.mirrors)
        user_triggers = [t for t in self.catalog.triggers if t.enabled != "D"]
        design = TableDesign(
            schema_name=self.schema,
            name=self.draft.name,
            oid=self.catalog.oid,
            key=[KeyColumn(name=k, type=self.catalog.column(k).type) for k in self.catalog.primary_key],
            old=old,
            new=new,
            final=[(name, name) for name, _ in new],
            columns=columns,
            old_only=[p for _, p in old if p not in new_physical],
            old_given=[
                (c.name, c.default if c.default_kind == "stable" else None)
                for c in self.catalog.columns
                if c.name in old_physical - new_physical and not c.generated
            ],
            new_only=[p for _, p in new if p not in old_physical],
            up=up,
            down=down,
            mark=mark,
            indexes=[],
            functions=[],
            expand=[],
            shrink=[],
            native_validate=[],
            relax=[],
            strict=[],
            validate_strict=[],
            swap=[],
            cleanup=[],
            rows=self.catalog.rows,
            bytes=self.catalog.bytes,
            # A generated column has no value yet before the row is inserted.
            fill_old=bool(up.mirrors)
            and not any(
                self.catalog.column(s).generated
                for s in {*up.sources, *up.ok_sources}
                if s not in self.new_names.values()
            ),
            suppress_triggers=bool(user_triggers or self.catalog.has_rules) and self.may_suppress,
            guard=self.guard,
            partitioned=self.catalog.kind == "p",
            partition_orders=partitions.odd_orders(self.catalog, self.partitions, old, self.known),
        )
        # Guard check cannot carry over what is left to it: there a write that is overruled fails.
        overruled = overruling(self.catalog, design) or self.catalog.has_rules
        design = design.model_copy(update={"inline": not overruled or self.guard != "sync"})
        late, said = await atclose.designed(self.conn, self.draft, self.new_physical, self._compile_check)
        design = design.model_copy(update={"at_close": late})
        gone = {s.physical: s.old for s in slots if s.physical and s.old and (s.replaced or s.dropped)}
        self.findings += atclose.judge(self.catalog, design, list(gone), said)
        self.findings += partitions.judge(self.catalog, self.partitions, design, gone)
        indexes, index_findings = await index_designs(self.conn, self.catalog, design, self.counter.id)
        self.findings += index_findings
        design = design.model_copy(update={"indexes": indexes})
        self.findings += judge_table(self.draft, self.catalog, self.probe, design, self.may_suppress)
        types = {c.name: c for c in [*self.probe.columns, *self.catalog.columns]}
        return design.model_copy(
            update=statements.all_statements(
                design, self.catalog, self.draft, types, self.counter.id, self.number
            )
        )

    # -- columns ---------------------------------------------------------------------------------------------

    def _slot_type(self, slot: Slot) -> str:
        if slot.type is not None:
            return slot.type
        assert slot.physical is not None
        column = self.catalog.column(slot.physical)
        return column.type_full + (f" COLLATE {column.collation}" if column.collation else "")

    def _probe_columns(self) -> dict[str, tuple[str, str | None]]:
        return {name: (self._slot_type(self.draft.slots[i]), None) for i, name in self.new_names.items()}

    @staticmethod
    def _type_text(column: NewColumn) -> str:
        return column.type_full + (f" COLLATE {column.collation}" if column.collation else "")

    async def _new_columns(self, up: DirectionDesign) -> list[NewColumn]:
        computed = {m.target: m for m in up.mirrors}
        columns = []
        for index, name in self.new_names.items():
            slot = self.draft.slots[index]
            probed = self.probe.column(name)
            default = await new_default(
                self.conn, self.catalog, self.probe, slot, probed, computed.get(name), self.findings
            )
            before = self.catalog.column(slot.physical) if slot.physical else None
            not_null = not slot.nullable if slot.nullable is not None else bool(before and before.not_null)
            assert slot.new is not None
            columns.append(
                NewColumn(
                    name=name,
                    final=slot.new,
                    type=probed.type,
                    type_full=probed.type_full,
                    collation=probed.collation,
                    default=default,
                    default_kind="none" if default is None else "stable",
                    not_null=not_null,
                    native=name not in computed,
                    comment=slot.comment if slot.comment_given else (before.comment if before else None),
                    replaces=slot.physical,
                )
            )
        return columns

    # -- expressions -----------------------------------------------------------------------------------------

    def _where(self, slot: Slot, key: str) -> str:
        return f"{self.draft.name}.{slot.new or slot.old}: {key}"

    def _names(self, expression: Expression, side: str, where: str) -> dict[str, str]:
        """Physical columns behind the names that an expression of one side uses."""
        slots = list(enumerate(self.draft.slots))
        result = {}
        for name in expression.names:
            found: str | None = None
            if side == "up":
                exact = [s.physical for _, s in slots if s.old == name]
                alias = [s.physical for _, s in slots if s.old is not None and name in s.aliases]
                found = next(iter(exact + alias), None)
            else:
                exact = [self.new_physical(i) for i, s in slots if s.new == name]
                alias = [
                    self.new_physical(i)
                    for i, s in slots
                    if s.new is not None and (name in s.aliases or name == s.old)
                ]
                found = next(iter(exact + alias), None)
            if found is None:
                known = [s.old if side == "up" else s.new for _, s in slots]
                version = "old" if side == "up" else "new"
                raise Refused(
                    f'{where}: the {version} version of "{self.draft.name}" has no column "{name}"',
                    hint=f"Columns there: {', '.join(sorted(k for k in known if k))}.",
                    sqlstate="42703",
                )
            result[name] = found
        return result

    async def _compile(self, text: str, side: str, target: CatalogColumn | None, where: str) -> Compiled:
        expression = parse_expression(text, where, [self.draft.name])
        physical = self._names(expression, "up" if side == "up" else "down", where)
        return await compile_expression(
            self.conn, self.probe, expression, physical, target, self.schema, where
        )

    async def _compile_check(self, slot: Slot, check: Check) -> Compiled:
        where = self._where(slot, f"check {check.name}")
        return await self._compile(check.expression, "check", None, where)

    async def _up(self) -> DirectionDesign:
        mirrors = []
        for index, name in self.new_names.items():
            slot = self.draft.slots[index]
            target = self.probe.column(name)
            if slot.up is not None:
                value = await self._compile(slot.up, "up", target, self._where(slot, "up"))
            elif slot.physical is not None:
                value = identity_of(slot.physical, self.catalog.column(slot.physical).not_null)
            else:
                continue
            mirrors.append(MirrorDesign(target=name, function=self.counter.next("up"), value=value))
        return DirectionDesign(mirrors=mirrors)

    async def _down(self) -> DirectionDesign:
        mirrors, constraints = [], []
        for index, slot in enumerate(self.draft.slots):
            if slot.old is None or slot.physical is None:
                continue
            name = self.new_names.get(index)
            target = self.probe.column(slot.physical)
            if slot.down is not None:
                value = await self._compile(slot.down, "down", target, self._where(slot, "down"))
            elif name is not None:
                value = identity_of(name, False)
            else:
                continue
            keeps = target.not_null and not value.not_null
            mirrors.append(
                MirrorDesign(
                    target=slot.physical, function=self.counter.next("down"), value=value, keeps=keeps
                )
            )
            if keeps:
                constraints.append(
                    ConstraintDesign(
                        name=f"_dualwire_old_{self.number}_{index}",
                        kind="not_null",
                        column=slot.physical,
                        label=slot.old,
                        condition=identity_of(slot.physical, False),
                        proved=False,
                    )
                )
        return self._with_ok(DirectionDesign(mirrors=mirrors, constraints=constraints), "down")

    async def _constrain(self, up: DirectionDesign, columns: list[NewColumn]) -> DirectionDesign:
        """The new version's constraints on columns that old speakers' rows get by mirrors."""
        computed = {m.target: m for m in up.mirrors}
        constraints = []
        for index, name in self.new_names.items():
            if name not in computed:
                continue
            slot, value = self.draft.slots[index], computed[name].value
            column = next(c for c in columns if c.name == name)
            assert slot.new is not None
            if column.not_null and not slot.not_null_at_close:
                constraints.append(
                    ConstraintDesign(
                        name=cut(NOT_NULL_CHECK, slot.new),
                        kind="not_null",
                        column=name,
                        label=slot.new,
                        condition=identity_of(name, False),
                        proved=value.not_null,
                    )
                )
            for check in slot.checks:
                if check.at_close:
                    continue
                condition = await self._compile_check(slot, check)
                constraints.append(
                    ConstraintDesign(
                        name=check.name,
                        kind="check",
                        column=name,
                        label=slot.new,
                        condition=condition,
                        proved=False,
                    )
                )
            constraints += await self._carried(slot, name, value)
        return self._with_ok(up.model_copy(update={"constraints": constraints}), "up")

    async def _carried(self, slot: Slot, name: str, value: Compiled) -> list[ConstraintDesign]:
        """CHECK constraints of a column that keeps its type go over to the column that replaces it."""
        if slot.type is not None or slot.physical is None or slot.new is None:
            return []
        carried = []
        for constraint in self.catalog.constraints:
            if constraint.kind != "c" or constraint.columns != [slot.physical]:
                continue
            text = constraint.definition.removeprefix("CHECK ").removesuffix(" NOT VALID")
            where = self._where(slot, f"constraint {constraint.name}")
            expression = parse_expression(text, where)
            condition = await compile_expression(
                self.conn, self.probe, expression, {slot.physical: name}, None, self.schema, where
            )
            proved = value.identity and value.sources == [slot.physical] and constraint.validated
            carried.append(
                ConstraintDesign(
                    name=constraint.name,
                    kind="check",
                    column=name,
                    label=slot.new,
                    condition=condition,
                    proved=proved,
                )
            )
        return carried

    def _with_ok(self, direction: DirectionDesign, prefix: str) -> DirectionDesign:
        """Name the ok function where anything can fail, and list its arguments."""
        trapped = any(not m.value.total for m in direction.mirrors)
        unproved = any(not c.proved for c in direction.constraints)
        if not (trapped or unproved):
            return direction
        targets = set(direction.targets)
        needed = [s for m in direction.mirrors for s in m.value.sources]
        needed += [s for c in direction.constraints for s in c.condition.sources if s not in targets]
        base = f"{prefix}_ok_{self.counter.id}_{self.number}"
        return direction.model_copy(
            update={
                "ok": f"dualwire.{base}",
                "why": f"dualwire.{prefix}_why_{self.counter.id}_{self.number}",
                "ok_sources": list(dict.fromkeys(needed)),
            }
        )
