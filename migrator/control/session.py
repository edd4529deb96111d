"""The migrator's seat: one advisory lock, one fencing token, and transactions that check it.

The lock tells other migrators at once; it dies with its connection. The token is checked, with its row locked, in
every step's transaction, so a migrator that lost its seat without noticing can commit nothing more.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import time
from collections.abc import AsyncIterator

import asyncpg

from migrator.errors import NotObtained

LOCK_KEY = int.from_bytes(b"dualwire", "big")


class Session:
    """A connection that holds the migrator's lock."""

    def __init__(self, conn: asyncpg.Connection, token: int) -> None:
        self.conn = conn
        self.token = token

    @contextlib.asynccontextmanager
    async def transaction(self) -> AsyncIterator[asyncpg.Connection]:
        """A transaction that commits only while this migrator still has its seat."""
        async with self.conn.transaction():
            token = await self.conn.fetchval("SELECT token FROM dualwire.fence FOR UPDATE")
            if token != self.token:
                raise NotObtained(
                    "another migrator has taken over",
                    hint="See `dualwire status`; this one has stopped without changing anything more.",
                )
            yield self.conn


async def acquire(conn: asyncpg.Connection, wait: float = 5.0) -> Session:
    """Take the migrator's seat.

    Raises:
        NotObtained: another migrator has it; the message names it.
    """
    deadline = time.monotonic() + wait
    while not await conn.fetchval("SELECT pg_try_advisory_lock($1)", LOCK_KEY):
        if time.monotonic() >= deadline:
            raise NotObtained(
                f"another migrator is at work: {await _holder(conn)}",
                hint="Wait for it, or end it: its work goes on where it stopped with the same command.",
            )
        await asyncio.sleep(0.1)
    who = f"{socket.gethostname()}:{os.getpid()}"
    token = await conn.fetchval(
        "UPDATE dualwire.fence SET token = token + 1, holder = $1 RETURNING token", who
    )
    return Session(conn, int(token))


async def _holder(conn: asyncpg.Connection) -> str:
    row = await conn.fetchrow(
        "SELECT l.pid, a.application_name, a.client_addr, f.holder FROM pg_locks l"
        " LEFT JOIN pg_stat_activity a ON a.pid = l.pid, dualwire.fence f"
        " WHERE l.locktype = 'advisory' AND l.granted AND l.objsubid = 1"
        "   AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())"
        "   AND ((l.classid::bigint << 32) | l.objid::bigint) = $1",
        LOCK_KEY,
    )
    if row is None:
        return "it has just ended"
    where = f" from {row['client_addr']}" if row["client_addr"] else ""
    return f"server process {row['pid']} ({row['application_name'] or 'no application name'}{where}), {row['holder']}"
