"""The swap of a replaced table: the old one goes, the new one gets its names; in the swap's one transaction."""

from __future__ import annotations

from dataclasses import dataclass

import asyncpg

from migrator.phases.context import Context
from migrator.replace import mirror, steps
from migrator.replace.design import ReplaceDesign
from migrator.sqltext import ident, literal, qualified


@dataclass(frozen=True, slots=True)
class _Drawn:
    """How far an identity's sequence is."""

    last_value: int
    is_called: bool


async def tables(ctx: Context) -> list[tuple[int, str, str]]:
    """What the swap locks beyond the migration's own tables: the new ones, and those that reference them."""
    found = []
    for design in ctx.design.replaces:
        found.append((await steps.new_oid(ctx.conn, design), design.schema_name, design.temporary))
        found += [(k.oid, k.schema_name, k.table) for k in design.incoming]
    return list(dict.fromkeys(found))


def forward_of(design: ReplaceDesign, drawn: dict[tuple[str, str], _Drawn] | None = None) -> list[str]:
    """The SQL of the swap; as ``plan`` prints it, without how far the sequences of identities are."""
    after = []
    for identity in design.identities:
        after.append(_identity(design, identity))
        if drawn is not None:
            after.append(_setval(identity, drawn[identity[1], identity[2]]))
    return [
        *mirror.drop_triggers(design),
        *design.swap_before,
        *_undefault(design),
        f"DROP TABLE {design.sql}",
        *design.swap,
        *after,
        *mirror.drop_functions(design),
    ]


async def run(conn: asyncpg.Connection, design: ReplaceDesign) -> list[str]:
    """Swap one table; gives what was run."""
    drawn = {}
    for _, schema, name, _ in design.identities:
        record = await conn.fetchrow(f"SELECT last_value, is_called FROM {qualified(schema, name)}")
        drawn[schema, name] = _Drawn(record["last_value"], record["is_called"])
    statements = forward_of(design, drawn)
    for statement in statements:
        await conn.execute(statement)
    return statements


def _undefault(design: ReplaceDesign) -> list[str]:
    """The identity's sequence goes with the old table; the new one gets its own of the same name."""
    return [
        f"ALTER TABLE {design.new_sql} ALTER COLUMN {ident(column)} DROP DEFAULT"
        for column, _, _, _ in design.identities
    ]


def _identity(design: ReplaceDesign, identity: tuple[str, str, str, str]) -> str:
    column, schema, name, how = identity
    kind, options = how.split("|", 1)
    return (
        f"ALTER TABLE {design.sql} ALTER COLUMN {ident(column)} ADD GENERATED {kind} AS IDENTITY"
        f" (SEQUENCE NAME {qualified(schema, name)} {options})"
    )


def _setval(identity: tuple[str, str, str, str], drawn: _Drawn) -> str:
    _, schema, name, _ = identity
    called = "true" if drawn.is_called else "false"
    return f"SELECT setval({literal(qualified(schema, name))}, {drawn.last_value}, {called})"
