"""What the server says about a migration's expressions: type, volatility, and whether they parse at all.

Works on a temporary probe table inside a transaction that the caller rolls back, so nothing of it stays. The probe
has the old physical columns and the new ones, each under its physical name.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any, Literal

import asyncpg
from pglast.parser import ParseError, parse_sql_json
from pydantic import BaseModel, ConfigDict

from migrator.catalog import CatalogColumn, CatalogTable, read_table
from migrator.errors import Refused, from_postgres
from migrator.expressions import Expression, render
from migrator.sqltext import ident, qualified
from migrator.totality import ColumnType, prove, prove_cast

PROBE = "_dualwire_probe"
Volatility = Literal["immutable", "pinned", "volatile"]

PINNED_FUNCTIONS = frozenset(
    {
        "array_to_string",
        "concat",
        "concat_ws",
        "date_part",
        "date_trunc",
        "extract",
        "format",
        "quote_literal",
        "quote_nullable",
        "timezone",
        "to_char",
        "to_date",
        "to_number",
        "to_timestamp",
        "to_json",
        "to_jsonb",
        "json_build_object",
        "jsonb_build_object",
        "json_build_array",
        "jsonb_build_array",
    }
)
"""Stable functions of PostgreSQL that depend on settings only: with the settings pinned they are reproducible."""


class Compiled(BaseModel):
    """An expression as the server understands it, ready to be written into functions and conditions."""

    model_config = ConfigDict(frozen=True)

    template: str
    """The text with numbered holes for ``sources`` (``migrator.expressions.render``), already of the target type
    where ``total``."""
    sources: list[str]
    """Physical columns, in the order of the holes."""
    total: bool
    """Proved unable to raise and exactly of the target type."""
    not_null: bool
    """Proved never NULL."""
    volatility: Volatility
    path: list[str]
    """Schemas that its names need besides pg_catalog."""
    identity: bool = False
    """It is one column unchanged."""

    @property
    def inline(self) -> bool:
        """Whether its text may stand in a trigger's WHEN clause and in SQL-standard function bodies."""
        return self.total and self.volatility == "immutable" and not self.path


async def create_probe(
    conn: asyncpg.Connection, table: CatalogTable, columns: Mapping[str, tuple[str, str | None]], schema: str
) -> CatalogTable:
    """Make the probe table; gives its catalog entry.

    Args:
        columns: the new physical columns: name to (type text, default text).

    Raises:
        Refused: a type or default that the server does not accept.
    """
    await conn.execute(f"DROP TABLE IF EXISTS pg_temp.{PROBE}")
    await conn.execute(f"CREATE TEMP TABLE {PROBE} (LIKE {qualified(table.schema_name, table.name)})")
    for name, (kind, default) in columns.items():
        check_type(kind, f'column "{name}"')
        text = f"ALTER TABLE pg_temp.{PROBE} ADD COLUMN {ident(name)} {kind}"
        await _try(conn, schema, text, f"type {kind}")
        if default is not None:
            text = f"ALTER TABLE pg_temp.{PROBE} ALTER COLUMN {ident(name)} SET DEFAULT {default}"
            await _try(conn, schema, text, f"default {default}")
    oid = await conn.fetchval(f"SELECT 'pg_temp.{PROBE}'::regclass::oid")
    return await read_table(conn, int(oid))


def check_type(kind: str, where: str) -> None:
    """Refuse a type text that holds anything but one type."""
    try:
        tree = json.loads(parse_sql_json(f"CREATE TABLE t (c {kind}\n)"))
        [statement] = tree["stmts"]
        [column] = statement["stmt"]["CreateStmt"]["tableElts"]
        if column["ColumnDef"].get("constraints"):
            raise ValueError("constraints")
    except (ParseError, ValueError, KeyError) as error:
        raise Refused(f"{where}: {kind!r} is not a type", sqlstate="42601") from error


async def compile_expression(
    conn: asyncpg.Connection,
    probe: CatalogTable,
    expression: Expression,
    physical: Mapping[str, str],
    target: CatalogColumn | None,
    schema: str,
    where: str,
) -> Compiled:
    """Ask the server about one expression.

    Args:
        physical: physical column for each name that the expression uses.
        target: the column that takes the value; None for a condition (boolean).

    Raises:
        Refused: the server does not accept it.
    """
    sources = list(dict.fromkeys(physical[name] for name in expression.names))
    types = {name: _column_type(probe.column(physical[name])) for name in expression.names}
    text = expression.replace(lambda name: ident(physical[name]))
    path: list[str] = []
    try:
        oid = await _result_type(conn, text, "pg_catalog")
    except asyncpg.PostgresError:
        path = [schema]
        try:
            oid = await _result_type(conn, text, f"pg_catalog, {ident(schema)}")
        except asyncpg.PostgresError as error:
            raise from_postgres(error, where) from error
    volatility = await _volatility(conn, expression, text, path)
    proof = prove(expression.node, types)
    template = expression.template(expression.names)
    renamed = _renumber(template, [physical[n] for n in expression.names], sources)
    if target is None:
        return Compiled(
            template=renamed,
            sources=sources,
            total=proof.total,
            not_null=proof.not_null,
            volatility=volatility,
            path=path,
        )
    identity = "ColumnRef" in expression.node and _same_type(probe.column(sources[0]), target)
    total = identity or (proof.total and oid == target.type_oid and target.typmod == -1)
    not_null = proof.not_null
    if not total and target.typmod == -1 and not path:
        widened = prove_cast(expression.node, target.type, types)
        if widened.total:
            total, renamed = True, f"CAST(({renamed}) AS {target.type})"
            not_null = widened.not_null
    if not total:
        await _assignable(conn, text, target, schema, where)
    return Compiled(
        template=renamed,
        sources=sources,
        total=total,
        not_null=not_null and total,
        volatility=volatility,
        path=path,
        identity=identity,
    )


def identity_of(column: str, not_null: bool) -> Compiled:
    """The expression that keeps a column as it is."""
    return Compiled(
        template="\x010\x02",
        sources=[column],
        total=True,
        not_null=not_null,
        volatility="immutable",
        path=[],
        identity=True,
    )


def _renumber(template: str, used: list[str], sources: list[str]) -> str:
    return render(template, [f"\x01{sources.index(name)}\x02" for name in used])


def _column_type(column: CatalogColumn) -> ColumnType:
    known = column.collation is None and column.kind in {"b", "e"}
    return ColumnType(column.type if known else "", column.not_null, known and column.kind == "e")


def _same_type(a: CatalogColumn, b: CatalogColumn) -> bool:
    return (a.type_oid, a.typmod, a.collation) == (b.type_oid, b.typmod, b.collation)


async def _try(conn: asyncpg.Connection, schema: str, statement: str, where: str) -> None:
    try:
        async with conn.transaction():
            await conn.execute(f"SET LOCAL search_path = pg_catalog, {ident(schema)}")
            await conn.execute(statement)
            await conn.execute("SET LOCAL search_path = pg_catalog")
    except asyncpg.PostgresError as error:
        raise from_postgres(error, where) from error


async def _result_type(conn: asyncpg.Connection, text: str, path: str) -> int:
    async with conn.transaction():
        await conn.execute(f"SET LOCAL search_path = {path}")
        statement = await conn.prepare(f"SELECT ({text}\n) FROM pg_temp.{PROBE}")
        await conn.execute("SET LOCAL search_path = pg_catalog")
        return int(statement.get_attributes()[0].type.oid)


async def _assignable(
    conn: asyncpg.Connection, text: str, target: CatalogColumn, schema: str, where: str
) -> None:
    """Refuse a value that has no way into the column; what only may fail is trapped later."""
    try:
        async with conn.transaction():
            await conn.execute(f"SET LOCAL search_path = pg_catalog, {ident(schema)}")
            await conn.prepare(f"UPDATE pg_temp.{PROBE} SET {ident(target.name)} = ({text}\n)")
            await conn.execute("SET LOCAL search_path = pg_catalog")
    except asyncpg.PostgresError as error:
        raise from_postgres(error, where) from error


async def _volatility(
    conn: asyncpg.Connection, expression: Expression, text: str, path: list[str]
) -> Volatility:
    search = ", ".join(["pg_catalog", *map(ident, path)])
    try:
        transaction = conn.transaction()
        await transaction.start()
        try:
            await conn.execute(f"SET LOCAL search_path = {search}")
            await conn.execute(f"CREATE INDEX ON pg_temp.{PROBE} ((({text}\n)))")
        finally:
            await transaction.rollback()
        return "immutable"
    except asyncpg.PostgresError as error:
        if error.sqlstate != "42P17":
            return "immutable"
    names = set(_functions(expression.node))
    if "" in names:
        return "volatile"
    rows = await conn.fetch(
        "SELECT DISTINCT p.proname, n.nspname FROM pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace"
        " WHERE p.proname = ANY ($1) AND p.provolatile <> 'i' AND n.nspname = ANY ($2)",
        list(names),
        ["pg_catalog", *path],
    )
    unpinned = [r for r in rows if r["nspname"] != "pg_catalog" or r["proname"] not in PINNED_FUNCTIONS]
    return "volatile" if unpinned else "pinned"


def _functions(node: Any) -> Iterator[str]:
    """Names of all functions called; an empty name stands for CURRENT_TIMESTAMP and its like."""
    if isinstance(node, list):
        for item in node:
            yield from _functions(item)
    elif isinstance(node, dict):
        for key, value in node.items():
            if key == "SQLValueFunction":
                yield ""
            if key == "FuncCall":
                yield value["funcname"][-1]["String"]["sval"]
            yield from _functions(value)
