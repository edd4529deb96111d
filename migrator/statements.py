"""Forward and backward SQL of one table, step by step: what the engine runs and ``plan`` prints."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from migrator import armed, copyview, guard
from migrator.armed import strict_name
from migrator.catalog import CatalogColumn, CatalogTable
from migrator.design import NewColumn, TableDesign
from migrator.draft import TableDraft
from migrator.expressions import parse_expression
from migrator.functions import drop_functions, mirror_function, ok_functions
from migrator.sqltext import MARK, cut, ident, literal, qualified

Types = Mapping[str, CatalogColumn]


def all_statements(
    table: TableDesign, catalog: CatalogTable, draft: TableDraft, types: Types, migration: int, number: int
) -> dict[str, Any]:
    """Every list of statements that ``TableDesign`` holds."""
    function = guard.guard_function_name(table, migration, number)
    fence = f"dualwire.fence_{migration}_{number}"
    proxied = f"dualwire.proxied_{migration}_{number}"
    copies = copyview.views(table, types, migration, number)
    dropped = [s for view in copies.values() for s in view.drop()]
    return {
        **{f"copy_{side}": view.name for side, view in copies.items()},
        "functions": _functions(table, types, migration, function),
        "expand": [
            *_expand(table, catalog, draft, function),
            *(s for view in copies.values() for s in view.create()),
        ],
        "arm": _with_path(table, armed.arm(table, proxied, migration)),
        "strengthen": _with_path(table, armed.strengthen(table)),
        "disarm": armed.disarm(table, proxied),
        "shrink": [
            *dropped,
            *(s for item in table.at_close for s in item.unmake),
            *_shrink(table, function, proxied),
        ],
        "native_validate": _native_validate(table, draft),
        "relax": [*_relax(table, catalog), *_close(table, fence)],
        "strict": [*dropped, *_strict(table, function, proxied, fence)],
        "validate_strict": _validate_strict(table),
        "swap": _swap(table, catalog, draft, fence),
        "cleanup": [*drop_functions(table.up), *drop_functions(table.down)],
    }


def _path(table: TableDesign) -> list[str]:
    """Conditions may use objects of the table's schema; everything else is qualified."""
    needed = sorted({s for c in table.up.constraints for s in c.condition.path})
    if not needed:
        return []
    return [f"SET LOCAL search_path = {', '.join(['pg_catalog', *map(ident, needed)])}"]


def _with_path(table: TableDesign, statements: list[str]) -> list[str]:
    return [*_path(table), *statements] if statements else []


def _close(table: TableDesign, fence: str) -> list[str]:
    return _with_path(table, [*armed.close(table), *guard.closing_fence(table, fence)])


def _functions(table: TableDesign, types: Types, migration: int, function: str) -> list[str]:
    if not table.mark:
        return []
    statements = []
    for direction in (table.up, table.down):
        for mirror in direction.mirrors:
            statements += mirror_function(mirror, types)
        statements += ok_functions(direction, types)
    if table.guard != "sync":
        return statements
    return [
        *statements,
        *guard.guard_function(table, migration, function),
        *guard.fill_function(table, migration, function),
    ]


def _expand(table: TableDesign, catalog: CatalogTable, draft: TableDraft, function: str) -> list[str]:
    columns = [_add_column(c) for c in table.columns]
    if table.mark:
        columns.append(f"ADD COLUMN {ident(MARK)} smallint")
    statements = _path(table)
    if columns:
        statements.append(f"ALTER TABLE {table.sql} " + ", ".join(columns))
    defaults = [
        f"ALTER COLUMN {ident(c.name)} SET DEFAULT {c.default}"
        for c in table.columns
        if c.default is not None and not c.native
    ]
    if defaults:
        statements.append(f"ALTER TABLE {table.sql} " + ", ".join(defaults))
    for name, condition in _native_checks(table, draft):
        statements.append(
            f"ALTER TABLE {table.sql} ADD CONSTRAINT {ident(name)} CHECK ({condition}) NOT VALID"
        )
    statements += _grants(table, catalog)
    if table.mark:
        statements += guard.triggers(table, function)
    return statements


def _add_column(column: NewColumn) -> str:
    text = f"ADD COLUMN {ident(column.name)} {column.type_full}"
    if column.collation:
        text += f" COLLATE {column.collation}"
    if column.native:
        if column.default is not None:
            text += f" DEFAULT {column.default}"
        if column.not_null:
            text += " NOT NULL"
    return text


def _native_checks(table: TableDesign, draft: TableDraft) -> list[tuple[str, str]]:
    """Checks of columns that need no mirror: they bind from the start (name, condition)."""
    native = {c.final for c in table.columns if c.native}
    return [
        (check.name, _over_physical(check.expression, table))
        for slot in draft.slots
        if slot.added and slot.new in native
        for check in slot.checks
        if not check.at_close
    ]


def _over_physical(text: str, table: TableDesign) -> str:
    physical = dict(table.new)
    expression = parse_expression(text, f"{table.label}: check", [table.name])
    return expression.replace(lambda name: ident(physical.get(name, name)))


def _grants(table: TableDesign, catalog: CatalogTable) -> list[str]:
    """Who may use a column only by a grant on that column may use its successor, and write the mark with it."""
    statements: list[str] = []
    for column in table.columns:
        if column.replaces is None:
            continue
        for grantee, privilege in catalog.column(column.replaces).grants:
            granted = [ident(column.name)]
            if table.mark and privilege in {"INSERT", "UPDATE", "SELECT"}:
                granted.append(ident(MARK))
            listed = ", ".join(granted)
            statements.append(f"GRANT {privilege} ({listed}) ON {table.sql} TO {grantee}")
    return statements


def _shrink(table: TableDesign, function: str, proxied: str) -> list[str]:
    statements: list[str] = armed.shrink(table, proxied)
    if table.mark:
        statements += guard.drop_triggers(table, function)
    drops = [f"DROP COLUMN IF EXISTS {ident(c.name)}" for c in table.columns]
    if table.mark:
        drops.append(f"DROP COLUMN IF EXISTS {ident(MARK)}")
    if drops:
        statements.append(f"ALTER TABLE {table.sql} " + ", ".join(drops))
    return [*statements, *drop_functions(table.up), *drop_functions(table.down)]


def _native_validate(table: TableDesign, draft: TableDraft) -> list[str]:
    return [
        f"ALTER TABLE {table.sql} VALIDATE CONSTRAINT {ident(name)}"
        for name, _ in _native_checks(table, draft)
    ]


def _relax(table: TableDesign, catalog: CatalogTable) -> list[str]:
    """New speakers give no values for what only the old version has."""
    changes = []
    for name in table.old_only:
        column = catalog.column(name)
        if column.generated:
            continue
        if column.identity:
            changes.append(f"ALTER COLUMN {ident(name)} DROP IDENTITY IF EXISTS")
        elif column.default is not None:
            changes.append(f"ALTER COLUMN {ident(name)} DROP DEFAULT")
        if column.not_null:
            changes.append(f"ALTER COLUMN {ident(name)} DROP NOT NULL")
    return [f"ALTER TABLE {table.sql} " + ", ".join(changes)] if changes else []


def _strict(table: TableDesign, function: str, proxied: str, fence: str) -> list[str]:
    statements = _path(table)
    if table.mark:
        statements += guard.drop_triggers(table, function)
    if not table.mark or table.guard == "sync":
        return [*statements, *guard.fence(table, fence), *armed.binding(table)]
    statements += armed.shrink(table, proxied)
    return [*statements, *guard.drop_fence_triggers(table), *guard.fence(table, fence)]


def _validate_strict(table: TableDesign) -> list[str]:
    statements = []
    for constraint in table.up.constraints:
        name = ident(strict_name(constraint))
        statements.append(f"ALTER TABLE {table.sql} VALIDATE CONSTRAINT {name}")
        if constraint.kind == "not_null":
            # The validated check spares SET NOT NULL the scan.
            statements.append(f"ALTER TABLE {table.sql} ALTER COLUMN {ident(constraint.column)} SET NOT NULL")
            statements.append(f"ALTER TABLE {table.sql} DROP CONSTRAINT {name}")
    return statements


def _swap(table: TableDesign, catalog: CatalogTable, draft: TableDraft, fence: str) -> list[str]:
    statements = guard.drop_fence(table, fence)
    drops = [f"DROP COLUMN {ident(name)}" for name in table.old_only]
    if table.mark:
        drops.append(f"DROP COLUMN {ident(MARK)}")
    if drops:
        statements.append(f"ALTER TABLE {table.sql} " + ", ".join(drops))
    renames = [(physical, name) for name, physical in table.new if physical != name]
    statements += _renames(table, renames)
    for constraint in table.up.constraints:
        if constraint.kind == "check":
            statements.append(
                f"ALTER TABLE {table.sql} RENAME CONSTRAINT {ident(strict_name(constraint))}"
                f" TO {ident(constraint.name)}"
            )
    for item in table.at_close:
        statements += item.swap
    for index in table.indexes:
        if any(i.name == index.final and set(i.columns) & set(table.old_only) for i in catalog.indexes):
            statements.append(
                f"ALTER INDEX {qualified(table.schema_name, index.name)} RENAME TO {ident(index.final)}"
            )
    for column in table.columns:
        if column.comment is not None:
            statements.append(_comment(table, column.final, column.comment))
    for slot in draft.slots:
        if slot.comment_given and not slot.replaced and slot.new is not None:
            statements.append(_comment(table, slot.new, slot.comment))
    return statements


def _comment(table: TableDesign, column: str, comment: str | None) -> str:
    return f"COMMENT ON COLUMN {table.sql}.{ident(column)} IS {literal(comment)}"


def _renames(table: TableDesign, renames: list[tuple[str, str]]) -> list[str]:
    """Renames in an order that never meets a name still in use; circles go through a temporary name."""
    statements = []
    pending = list(renames)
    while pending:
        taken = {old for old, _ in pending}
        ready = [(old, new) for old, new in pending if new not in taken]
        if ready:
            pending = [pair for pair in pending if pair not in ready]
        else:
            old, new = pending.pop()
            temporary = cut("_dualwire_tmp_", old)
            ready = [(old, temporary)]
            pending.append((temporary, new))
        statements += [
            f"ALTER TABLE {table.sql} RENAME COLUMN {ident(old)} TO {ident(new)}" for old, new in ready
        ]
    return statements
