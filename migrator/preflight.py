"""What only the server can tell before a migration starts: how we are connected, who is at work, what we may do."""

from __future__ import annotations

import asyncpg

from migrator.catalog import find_table
from migrator.database import PROBE, connect
from migrator.design import Design, Finding, TableDesign
from migrator.errors import NotObtained, Refused
from migrator.lint import error, warning
from migrator.replace.design import ReplaceDesign

MINIMUM_VERSION = 150000


async def refuse_pooler(conn: asyncpg.Connection, dsn: str | None) -> None:
    """A pooler would take the migrator's lock away between two statements, and a sidecar would rewrite them.

    The process that the connection's key data names must be the one that answers. A sidecar that keeps a server for
    each client hides even that; it is known by a startup parameter that it does not hand on.
    """
    answering = {await conn.fetchval("SELECT pg_backend_pid()") for _ in range(3)}
    direct = answering == {conn.get_server_pid()}
    if direct:
        try:
            probe = await connect(dsn, settings={PROBE: "auto"})
        except NotObtained:
            # Refused for the parameter's sake, as poolers do.
            direct = False
        else:
            direct = await probe.fetchval("SELECT current_setting($1, true)", PROBE) == "auto"
            await probe.close()
    if not direct:
        raise Refused(
            "the DSN goes through a connection pooler or a sidecar",
            hint="Name the primary server itself: the migrator's lock lives in its session.",
        )


async def judge_server(conn: asyncpg.Connection, design: Design) -> list[Finding]:
    """Findings about the server and the role."""
    findings: list[Finding] = []
    version = int(await conn.fetchval("SELECT current_setting('server_version_num')::int"))
    if version < MINIMUM_VERSION:
        findings.append(
            error("server_version", f"PostgreSQL {version // 10000} is too old: 15 or newer is needed")
        )
    prepared = await conn.fetchval(
        "SELECT count(*) FROM pg_prepared_xacts WHERE database = current_database()"
    )
    if prepared:
        findings.append(
            warning("prepared_transactions", f"{prepared} prepared transactions may hold locks for long")
        )
    for table in design.existing:
        owner = await conn.fetchrow(
            "SELECT pg_get_userbyid(relowner) AS owner, pg_has_role(relowner, 'USAGE') AS may FROM pg_class"
            " WHERE oid = $1",
            table.oid,
        )
        if owner is not None and not owner["may"]:
            findings.append(
                error(
                    "owner",
                    f"{table.label} belongs to {owner['owner']}, of whom this role is no member",
                    "Run the migrator as the owner of the tables, or grant it that role.",
                )
            )
        findings += await _text_functions(conn, table)
    for create in design.creates:
        if await find_table(conn, create.schema_name, create.name) is not None:
            findings.append(error("exists", f"{create.sql} already exists"))
    return findings


_FUNCTION_WRITES = {
    "sync": "the guard carries its writes over",
    "check": "its writes of columns that are carried over fail with 23514",
    "off": "its writes through a sidecar are not carried over, and past one they fail with 55000",
}


async def _text_functions(conn: asyncpg.Connection, table: TableDesign | ReplaceDesign) -> list[Finding]:
    """Functions whose text names the table: PostgreSQL does not know what they depend on."""
    rows = await conn.fetch(
        "SELECT p.oid::regprocedure::text AS name FROM pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace"
        " WHERE n.nspname NOT IN ('pg_catalog', 'information_schema', 'dualwire')"
        "   AND p.prosqlbody IS NULL AND p.prosrc ~* ('\\m' || $1 || '\\M') AND p.prokind <> 'a'"
        " ORDER BY 1 LIMIT 20",
        "".join(c if c.isalnum() or c == "_" else "." for c in table.name),
    )
    said = _FUNCTION_WRITES[table.guard]
    return [
        Finding(
            severity="info" if table.guard == "sync" or not table.mark else "warning",
            code="text_function",
            message=f"function {r['name']} names {table.name} in its text: {said};"
            " after completed it must know the new columns",
            waiver=table.guard != "sync" and table.mark,
        )
        for r in rows
    ]
