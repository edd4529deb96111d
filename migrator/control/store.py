"""Migrations, steps and events as the control schema keeps them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, cast

import asyncpg

from migrator.design import Design
from proxy.control.routing import PHASES, Phase


def reached(phase: Phase, goal: Phase) -> bool:
    """Whether a migration in ``phase`` has got as far as ``goal``."""
    return PHASES.index(phase) >= PHASES.index(goal)


@dataclass(frozen=True, slots=True)
class MigrationRow:
    """One row of ``dualwire.migration``."""

    id: int
    name: str
    parent: str
    schema_name: str
    checksum: str
    spec: dict[str, Any]
    design: Design
    phase: Phase
    paused: bool
    catalog: dict[str, Any] | None
    verified_epoch: int | None
    verified_at: datetime | None
    cutover_at: datetime | None
    started_at: datetime
    phase_at: datetime
    finished_at: datetime | None


def _row(record: asyncpg.Record) -> MigrationRow:
    return MigrationRow(
        id=record["id"],
        name=record["name"],
        parent=record["parent"],
        schema_name=record["schema_name"],
        checksum=record["checksum"],
        spec=json.loads(record["spec"]),
        design=Design.model_validate_json(record["design"]),
        phase=cast(Phase, record["phase"]),
        paused=record["paused"],
        catalog=None if record["catalog"] is None else json.loads(record["catalog"]),
        verified_epoch=record["verified_epoch"],
        verified_at=record["verified_at"],
        cutover_at=record["cutover_at"],
        started_at=record["started_at"],
        phase_at=record["phase_at"],
        finished_at=record["finished_at"],
    )


async def active(conn: asyncpg.Connection) -> MigrationRow | None:
    """The migration under way, if there is one."""
    record = await conn.fetchrow(
        "SELECT * FROM dualwire.migration WHERE phase NOT IN ('completed', 'rolled_back')"
    )
    return None if record is None else _row(record)


async def latest(conn: asyncpg.Connection, name: str | None = None) -> MigrationRow | None:
    """The newest migration, or the newest of that name."""
    record = await conn.fetchrow(
        "SELECT * FROM dualwire.migration WHERE $1::text IS NULL OR name = $1 ORDER BY id DESC LIMIT 1", name
    )
    return None if record is None else _row(record)


async def completed_versions(conn: asyncpg.Connection) -> list[str]:
    """``base`` and every migration that was completed, in order."""
    rows = await conn.fetch(
        "SELECT name FROM dualwire.migration WHERE phase = 'completed' ORDER BY finished_at, id"
    )
    return ["base", *(str(r[0]) for r in rows)]


async def next_id(conn: asyncpg.Connection) -> int:
    """The id that the next migration will get."""
    return int(await conn.fetchval("SELECT coalesce(max(id), 0) + 1 FROM dualwire.migration"))


async def insert(
    conn: asyncpg.Connection, design: Design, checksum: str, spec: Mapping[str, Any]
) -> MigrationRow:
    """Record a new migration in phase planned."""
    record = await conn.fetchrow(
        "INSERT INTO dualwire.migration (id, name, parent, schema_name, checksum, spec, design, phase)"
        " VALUES ($1, $2, $3, $4, $5, $6, $7, 'planned') RETURNING *",
        design.id,
        design.migration,
        design.parent,
        design.schema_name,
        checksum,
        json.dumps(spec),
        design.model_dump_json(),
    )
    return _row(record)


async def set_phase(conn: asyncpg.Connection, migration: int, phase: Phase) -> None:
    """Move a migration; the caller's transaction also holds what makes it true."""
    await conn.execute(
        "UPDATE dualwire.migration SET phase = $2, phase_at = clock_timestamp(), finished_at = CASE"
        " WHEN $2 IN ('completed', 'rolled_back') THEN clock_timestamp() END WHERE id = $1",
        migration,
        phase,
    )
    await event(conn, "phase", migration, {"phase": phase})


async def step_state(conn: asyncpg.Connection, migration: int, name: str) -> str | None:
    """``intent``, ``done`` or None."""
    value = await conn.fetchval(
        "SELECT state FROM dualwire.step WHERE migration = $1 AND name = $2", migration, name
    )
    return None if value is None else str(value)


async def step_intent(
    conn: asyncpg.Connection, migration: int, name: str, statements: Sequence[str] = ()
) -> None:
    """Record that a step begins, with its SQL."""
    await conn.execute(
        "INSERT INTO dualwire.step (migration, name, state, statements) VALUES ($1, $2, 'intent', $3)"
        " ON CONFLICT (migration, name) DO UPDATE SET statements = excluded.statements"
        " WHERE dualwire.step.state = 'intent'",
        migration,
        name,
        list(statements),
    )


async def step_done(
    conn: asyncpg.Connection, migration: int, name: str, statements: Sequence[str] = ()
) -> None:
    """Record that a step is done; in the step's own transaction wherever it has one."""
    await conn.execute(
        "INSERT INTO dualwire.step (migration, name, state, statements, finished_at)"
        " VALUES ($1, $2, 'done', $3, clock_timestamp()) ON CONFLICT (migration, name) DO UPDATE"
        " SET state = 'done', finished_at = clock_timestamp(), statements = excluded.statements",
        migration,
        name,
        list(statements),
    )


async def event(
    conn: asyncpg.Connection, kind: str, migration: int | None, details: Mapping[str, Any]
) -> None:
    """Write an audit record."""
    await conn.execute(
        "INSERT INTO dualwire.event (migration, kind, details) VALUES ($1, $2, $3)",
        migration,
        kind,
        json.dumps(details, default=str),
    )


async def problems(
    conn: asyncpg.Connection, migration: int, limit: int = 20, direction: str | None = None
) -> tuple[int, list[dict[str, Any]]]:
    """How many problems there are, and some of them; of one direction only where it is given."""
    total = await conn.fetchval(
        "SELECT count(*) FROM dualwire.problem WHERE migration = $1 AND direction = coalesce($2, direction)",
        migration,
        direction,
    )
    rows = await conn.fetch(
        "SELECT table_name, key, direction, reason FROM dualwire.problem WHERE migration = $1"
        " AND direction = coalesce($3, direction) ORDER BY table_name, key LIMIT $2",
        migration,
        limit,
        direction,
    )
    return int(total), [
        {
            "table": r["table_name"],
            "key": json.loads(r["key"]),
            "direction": r["direction"],
            "reason": r["reason"],
        }
        for r in rows
    ]
