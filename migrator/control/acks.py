"""Waiting for sidecars: until each live one has acknowledged an epoch, applied a revision or parked its statements.

A sidecar whose lease ran out is not waited for: the server processes that it registered are terminated, then it is
forgotten and has to register anew. Leases only decide how long is waited; that no write is lost rests on the guard
and on the locks of the steps.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import asyncpg

from migrator.errors import NotObtained
from migrator.progress import Progress
from proxy.control.routing import Routing

POLL = 0.05


@dataclass(frozen=True, slots=True)
class SidecarRow:
    """What a sidecar last said."""

    id: str
    service: str
    live: bool
    epoch: int
    epoch_id: str
    revision: int
    hold_id: int | None
    held: bool


async def sidecars(conn: asyncpg.Connection) -> list[SidecarRow]:
    """All registered sidecars."""
    rows = await conn.fetch(
        "SELECT id, service, lease_until > clock_timestamp() AS live, epoch, epoch_id, revision, hold_id, held"
        " FROM dualwire.sidecar ORDER BY service, id"
    )
    return [SidecarRow(**dict(r)) for r in rows]


def acknowledged(sidecar: SidecarRow, routing: Routing) -> bool:
    """Whether no session of the sidecar acts under an epoch before the routing's."""
    if sidecar.epoch == routing.epoch:
        return sidecar.epoch_id == routing.epoch_id
    return sidecar.epoch > routing.epoch


async def wait_epoch(conn: asyncpg.Connection, routing: Routing, progress: Progress, timeout: float) -> None:
    """Wait until every live sidecar has acknowledged the routing's epoch."""
    await _wait(
        conn, lambda s: acknowledged(s, routing), f"acknowledge epoch {routing.epoch}", progress, timeout
    )


async def wait_revision(
    conn: asyncpg.Connection, routing: Routing, progress: Progress, timeout: float
) -> None:
    """Wait until every live sidecar has applied the routing's revision."""
    await _wait(
        conn,
        lambda s: s.revision >= routing.revision,
        f"apply revision {routing.revision}",
        progress,
        timeout,
    )


async def wait_held(conn: asyncpg.Connection, hold: int, progress: Progress, timeout: float) -> None:
    """Wait until every live sidecar reports that it holds."""
    await _wait(conn, lambda s: s.held and s.hold_id == hold, "hold statements", progress, timeout)


async def _wait(
    conn: asyncpg.Connection,
    satisfied: Callable[[SidecarRow], bool],
    what: str,
    progress: Progress,
    timeout: float,
) -> None:
    deadline = time.monotonic() + timeout
    while True:
        rows = await sidecars(conn)
        waiting = [s for s in rows if not satisfied(s)]
        for sidecar in [s for s in waiting if not s.live]:
            await forget(conn, sidecar, progress)
        waiting = [s for s in waiting if s.live]
        if not waiting:
            return
        names = ", ".join(f"{s.service} ({s.id})" for s in waiting)
        if time.monotonic() >= deadline:
            raise NotObtained(
                f"{len(waiting)} sidecar(s) did not {what} within {timeout:g} s: {names}",
                hint="Look for long statements there, or stop that sidecar; then run the same command again.",
            )
        progress.wait(f"waiting for {len(waiting)} of {len(rows)} sidecars to {what}: {names}")
        await asyncio.sleep(POLL)


async def forget(conn: asyncpg.Connection, sidecar: SidecarRow, progress: Progress) -> None:
    """Terminate what a lapsed sidecar left behind, then forget it.

    Raises:
        NotObtained: a server process of it is there and this role may not end it.
    """
    rows = await conn.fetch(
        "SELECT b.pid FROM dualwire.backend b JOIN pg_stat_activity a USING (pid)"
        " WHERE b.sidecar = $1 AND a.backend_start IS NOT DISTINCT FROM b.backend_start",
        sidecar.id,
    )
    for row in rows:
        try:
            await conn.fetchval("SELECT pg_terminate_backend($1, 5000)", row["pid"])
        except asyncpg.InsufficientPrivilegeError as error:
            raise NotObtained(
                f"the lease of sidecar {sidecar.service} ({sidecar.id}) ran out and its server process"
                f" {row['pid']} cannot be ended: {error}",
                hint="GRANT pg_signal_backend to the migrator's role, or end the process.",
            ) from error
    await conn.execute(
        "DELETE FROM dualwire.sidecar WHERE id = $1 AND lease_until <= clock_timestamp()", sidecar.id
    )
    progress.line(
        f"forgot sidecar {sidecar.service} ({sidecar.id}): its lease ran out"
        + (f"; ended {len(rows)} server process(es)" if rows else "")
    )


async def clients_on_old(conn: asyncpg.Connection) -> list[dict[str, Any]]:
    """Live sidecars with clients that speak the old version."""
    rows = await conn.fetch(
        "SELECT service, id, (stats->'clients'->>'old')::int AS clients FROM dualwire.sidecar"
        " WHERE lease_until > clock_timestamp() AND coalesce((stats->'clients'->>'old')::int, 0) > 0"
        " ORDER BY service, id"
    )
    return [dict(r) for r in rows]
