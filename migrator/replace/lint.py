"""Judges the replacement of a table before anything is changed.

What cannot be carried to the new table is an error with a way out, never dropped silently.
"""

from __future__ import annotations

from collections.abc import Iterator
from collections.abc import Set as AbstractSet

from migrator.catalog import CatalogTable
from migrator.design import Finding
from migrator.lint import error, info, warning
from migrator.replace.design import ColumnPair, ReplaceDesign
from migrator.replace.mirror import TRIGGER
from migrator.replace.statements import Plan

INTEGERS = ("smallint", "integer", "bigint")


def judge(
    design: ReplaceDesign,
    plan: Plan,
    new: CatalogTable,
    may_suppress: bool,
    server: int,
    replaced: AbstractSet[str],
) -> list[Finding]:
    """All findings about one replaced table; ``replaced`` are all tables that the migration replaces."""
    return [
        *_table(design, plan),
        *_pairs(design, plan, new),
        *_values(design, plan),
        *_around(design, plan, new, server),
        *_together(design, plan, replaced),
        *_triggers(design, plan, may_suppress),
        *_waivers(design),
    ]


def _table(design: ReplaceDesign, plan: Plan) -> Iterator[Finding]:
    catalog, label = plan.catalog, design.label
    if catalog.kind not in {"r", "p"}:
        yield error("table_kind", f"{label} is not a table")
    if catalog.partition or (catalog.inherits and catalog.kind == "r"):
        yield error(
            "inheritance",
            f"{label} is a partition or takes part in inheritance: not supported",
            "Replace the parent.",
        )
    if catalog.persistence == "t":
        yield error("temporary", f"{label} is a temporary table")
    if catalog.has_rules:
        yield error(
            "rules", f"{label} has rules: they would not see what the mirror does", "Drop them first."
        )
    if catalog.row_security or plan.extra.policies:
        yield error(
            "row_security",
            f"{label} has row-level security: policies are not carried over yet",
            "Drop the policies before the migration and create them again on the new table.",
        )
    leftovers = [t.name for t in catalog.triggers if t.name.startswith((TRIGGER, "zzz_dualwire"))]
    if leftovers:
        yield error(
            "leftovers",
            f"{label} holds objects of another migration: {', '.join(leftovers)}",
            "Roll that migration back, or drop them by hand if the control schema was lost.",
        )
    if plan.extra.deferrable:
        yield error(
            "deferrable",
            f"{label}: deferrable keys ({', '.join(plan.extra.deferrable)}) cannot be mirrored",
            "Make them not deferrable first.",
        )
    hashed = "HASH" in (plan.spec.partition_by or "HASH").upper()
    if not hashed and not any(p.default for p in plan.spec.partitions):
        yield warning(
            "no_default_partition",
            f"{label}: the new table has no default partition: rows that fit nowhere become problems",
            "Add {name: ..., default: true} to `partitions`.",
        )


def _pairs(design: ReplaceDesign, plan: Plan, new: CatalogTable) -> Iterator[Finding]:
    columns = {c.name: c for c in design.columns}
    for part in design.pair:
        column, label = columns[part.name], f"{design.label}.{part.name}"
        old = plan.catalog.column(part.name)
        if not (column.carried or column.raw or _one_to_one(column)):
            yield error(
                "key_mapping",
                f"{label}: up and down of a key column must be the column itself or a plain cast between integer"
                " or text types: otherwise rows could not be told to belong together",
            )
        if not old.not_null:
            yield error(
                "key_null",
                f"{label} is part of the new primary key and may be NULL",
                f'ALTER TABLE {design.sql} ALTER COLUMN "{part.name}" SET NOT NULL first.',
            )
        if not old.exact or not new.column(part.name).exact:
            yield error("key_equality", f"{label}: different values of this key column compare equal")
    lost = [k for k in design.new_key if k not in design.key_names]
    if lost:
        yield warning(
            "wider_key",
            f"{design.label}: the new primary key ({', '.join(design.new_key)}) allows several rows with the same"
            f" {', '.join(design.key_names)}; the old table holds one of them, others become problems",
        )


def _one_to_one(column: ColumnPair) -> bool:
    """The same column under another definition (default, NOT NULL)."""
    return column.up.identity and column.down.identity and column.up.sources == [column.name]


def _values(design: ReplaceDesign, plan: Plan) -> Iterator[Finding]:
    for column in design.columns:
        label = f"{design.label}.{column.name}"
        given = plan.given(column.name)
        old = plan.catalog.column(column.name)
        if column.generated and given is not None:
            yield error("generated", f"{label}: a generated column cannot be changed")
        if old.identity == "a" and column.name not in design.pair_names:
            yield error(
                "identity",
                f"{label}: an identity column GENERATED ALWAYS outside the primary key cannot be mirrored",
                "Make it GENERATED BY DEFAULT first.",
            )
        if not column.carried and not old.equality:
            yield error(
                "no_equality",
                f"{label}: type {old.type} has no equality: the two tables could not be compared",
                "Use a type with an equality operator (jsonb instead of json).",
            )
        for side, value in (("up", column.up), ("down", column.down)):
            if value.volatility == "volatile":
                yield error(
                    f"volatile_{side}",
                    f"{label}: {side} is volatile or depends on the session; the mirror computes it at any time",
                )
            elif not value.total and not (side == "down" and column.raw):
                yield warning(
                    f"partial_{side}",
                    f"{label}: {side} is not proved to work for every row;"
                    " rows where it fails become problems that verify lists",
                )
        if column.raw and _rank(column.new_type) > _rank(column.old_type) >= 0:
            yield info(
                "range",
                f"{label}: values beyond {column.old_type} can be held by the new table only; after the flip they"
                " are listed, a rollback would lose them, and clients of the old version cannot read them (22003)",
            )


def _rank(kind: str) -> int:
    return INTEGERS.index(kind) if kind in INTEGERS else -1


def _around(design: ReplaceDesign, plan: Plan, new: CatalogTable, server: int) -> Iterator[Finding]:
    label, extra = design.label, plan.extra
    for dependent in extra.dependents:
        yield error(
            "dependents",
            f"{label} is used by {dependent}, which would go on using the old table and forbid to drop it",
            "Drop it before the migration and create it again after it.",
        )
    statistics = sorted({d.object for d in plan.catalog.dependents if d.kind == "statistics"})
    if statistics:
        yield warning("statistics", f"{label}: {', '.join(statistics)} will go with the old table")
    unique = [set(c.columns) for c in new.constraints if c.kind in {"p", "u"}]
    for key in extra.incoming:
        child = f"{key.schema_name}.{key.table}"
        if set(key.referenced) not in unique:
            yield error(
                "foreign_key",
                f"{label}: the foreign key {key.name} of {child} points at ({', '.join(key.referenced)}), which is"
                " not unique in the new table",
                "Drop the foreign key before the migration, or choose another primary key.",
            )
        elif key.kind == "p" and server < 180000:
            yield error(
                "foreign_key",
                f"{label}: the foreign key {key.name} of {child}: a partitioned table cannot get another one without"
                " being locked while it is validated",
                "Drop the foreign key before the migration and add it again after it.",
            )
        else:
            yield info(
                "foreign_key", f"{label}: {child} gets a second foreign key to the new table before the swap"
            )
    named = {p.name for p in extra.publications}
    broad = [p for p in plan.catalog.publications if p not in {n.strip('"') for n in named}]
    if broad:
        yield warning(
            "publications",
            f"{label} is published by {', '.join(broad)} with all tables: subscribers get the new table under its"
            f" temporary name {design.temporary} as well",
            "Create that table on subscribers first, or publish tables by name.",
        )
    if named:
        yield warning(
            "publications",
            f"{label} is published by {', '.join(sorted(named))}: the swap puts the new table in its place",
            "Subscribers need columns that take the new values.",
        )


def _together(design: ReplaceDesign, plan: Plan, replaced: AbstractSet[str]) -> Iterator[Finding]:
    for key in plan.extra.incoming:
        if key.schema_name == design.schema_name and key.table in replaced:
            yield error(
                "foreign_key",
                f"{design.label}: the foreign key {key.name} comes from {key.table}, which is replaced as well",
                "Replace one of them in a migration before or after this one.",
            )


def _triggers(design: ReplaceDesign, plan: Plan, may_suppress: bool) -> Iterator[Finding]:
    active = [t for t in plan.catalog.triggers if t.enabled != "D"]
    if not active:
        return
    listed = ", ".join(t.name for t in active)
    yield info(
        "triggers_move",
        f"{design.label}: triggers {listed} fire on the new table from the flip on, where TG_TABLE_NAME is"
        f" {design.temporary} until the swap",
    )
    loose = [t.name for t in active if not t.pinned]
    if loose:
        yield info(
            "triggers_path",
            f"{design.label}: a write past the sidecars to the old table after the flip fires {', '.join(loose)} with"
            f" search_path = pg_catalog, {design.schema_name}",
        )
    if not may_suppress:
        grant = "GRANT SET ON PARAMETER session_replication_role TO the migrator's role"
        if loose:
            yield error(
                "triggers_fire_unpinned",
                f"{design.label}: this role may not set session_replication_role, so the backfill fires"
                f" {', '.join(loose)}, whose functions have no search_path of their own and could fail there",
                f"{grant}, or ALTER FUNCTION ... SET search_path for them.",
            )
        else:
            yield warning(
                "triggers_fire",
                f"{design.label}: this role may not set session_replication_role: the backfill fires {listed}",
                f"{grant}.",
            )


def _waivers(design: ReplaceDesign) -> Iterator[Finding]:
    yield warning(
        "touch",
        f"{design.label}: the backfill makes a new version of every row: a REPEATABLE READ or SERIALIZABLE"
        " transaction that writes a row touched since its snapshot fails with 40001",
        waiver=True,
    )
    yield warning(
        "reverse_deadlock",
        f"{design.label}: from the flip to the swap, a write past the sidecars to the old table may meet one to the"
        " same row through them and fail with 40P01; both tables stay right",
        waiver=True,
    )
