"""Connections of the migrator: plain asyncpg, with the few settings that its SQL relies on."""

from __future__ import annotations

from collections.abc import Mapping

import asyncpg

from migrator.errors import NotObtained, Refused, Usage

APPLICATION = "dualwire migrator"


PROBE = "dualwire.version"
"""A startup parameter that a sidecar keeps to itself; a server makes a setting of it."""


async def connect(
    dsn: str | None, *, application: str = APPLICATION, settings: Mapping[str, str] | None = None
) -> asyncpg.Connection:
    """A connection to the primary that is to be migrated, with further startup ``settings``.

    Raises:
        Usage: no DSN, or one that cannot be understood.
        NotObtained: the server cannot be reached or lets nobody in.
        Refused: it is a standby.
    """
    if not dsn:
        raise Usage("no database given", hint="Use --dsn or set DUALWIRE_DSN.")
    try:
        connection = await asyncpg.connect(
            dsn,
            timeout=15,
            statement_cache_size=0,
            server_settings={
                "application_name": application,
                "search_path": "pg_catalog",
                "client_min_messages": "warning",
                "statement_timeout": "0",
                "idle_in_transaction_session_timeout": "0",
                "lock_timeout": "0",
                "jit": "off",
                "default_transaction_isolation": "read committed",
                **(settings or {}),
            },
        )
    except asyncpg.ClientConfigurationError as error:
        raise Usage(
            f"the DSN cannot be used: {error}", hint="postgresql://user@host:port/database"
        ) from error
    except asyncpg.PostgresError as error:
        raise NotObtained(f"cannot connect: {error}", sqlstate=error.sqlstate or "") from error
    except (OSError, TimeoutError, asyncpg.InterfaceError, asyncpg.InternalClientError) as error:
        raise NotObtained(
            f"cannot connect: {error or type(error).__name__}",
            hint="Check that the server runs and that the DSN names the primary itself.",
        ) from error
    if await connection.fetchval("SELECT pg_is_in_recovery()"):
        await connection.close()
        raise Refused("the DSN names a standby", hint="Name the primary.")
    return connection
