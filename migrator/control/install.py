"""Installs the control schema, or brings it to this version's. Safe to run again at any time."""

from __future__ import annotations

from importlib.resources import files

import asyncpg

from migrator.errors import Refused

VERSION = 1


async def installed_version(conn: asyncpg.Connection) -> int | None:
    """The control schema's version; None where there is none."""
    if await conn.fetchval("SELECT to_regclass('dualwire.version')") is None:
        return None
    return int(await conn.fetchval("SELECT version FROM dualwire.version"))


async def install(conn: asyncpg.Connection) -> bool:
    """Create or upgrade the control schema; gives whether anything was new.

    Raises:
        Refused: the schema belongs to a newer dualwire, or the role may not create it.
    """
    before = await installed_version(conn)
    if before is not None and before > VERSION:
        raise Refused(
            f"the control schema is of version {before}, this dualwire knows {VERSION}",
            hint="Install a newer dualwire.",
        )
    text = files("migrator.control").joinpath("schema.sql").read_text()
    try:
        async with conn.transaction():
            # Two at once would race for the same catalog rows.
            await conn.execute("SELECT pg_advisory_xact_lock(hashtextextended('dualwire init', 0))")
            await conn.execute(text)
    except asyncpg.InsufficientPrivilegeError as error:
        raise Refused(
            f"the control schema cannot be installed: {error}",
            sqlstate=error.sqlstate or "",
            hint="Run `dualwire init` as a role that may create schemas in this database.",
        ) from error
    return before != VERSION


async def require(conn: asyncpg.Connection) -> None:
    """Refuse to work without the control schema."""
    version = await installed_version(conn)
    if version is None:
        raise Refused("this database has no control schema", hint="Run `dualwire init` first.")
    if version != VERSION:
        raise Refused(
            f"the control schema is of version {version}, this dualwire needs {VERSION}",
            hint="Run `dualwire init` with this dualwire.",
        )
