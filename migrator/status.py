"""What an operator wants to know now: read in one go, without the migrator's lock."""

from __future__ import annotations

import json
from typing import Any

import asyncpg

from migrator.control import publish, store
from migrator.control.acks import acknowledged, sidecars
from migrator.phases.backfill import replica_lag
from migrator.progress import duration
from migrator.replace.steps import FLIP


async def status(conn: asyncpg.Connection) -> dict[str, Any]:
    """The whole picture as one document."""
    routing = await publish.current(conn)
    row = await store.active(conn) or await store.latest(conn)
    document: dict[str, Any] = {
        "routing": {
            "epoch": routing.epoch,
            "revision": routing.revision,
            "old": routing.old,
            "new": routing.new,
            "serves_old": routing.serves_old,
            "serves_new": routing.serves_new,
            "auto": routing.auto,
            "percent": routing.percent,
            "compat": routing.compat,
            "hold": routing.hold is not None,
        },
        "migration": None,
        "replica_lag_seconds": await replica_lag(conn),
        "sidecars": await _sidecars(conn),
    }
    if row is None:
        return document
    total, listed = await store.problems(conn, row.id)
    document["migration"] = {
        "name": row.name,
        "phase": row.phase,
        "guard": row.design.guard,
        "paused": row.paused,
        "started_at": row.started_at,
        "phase_at": row.phase_at,
        "verified_at": row.verified_at,
        "verified_epoch": row.verified_epoch,
        "cutover_at": row.cutover_at,
        "backfill": await _backfill(conn, row.id),
        "authoritative": await _authoritative(conn, row),
        "problems": total,
        "problem_list": listed,
        "guard_repairs": await guard_repairs(conn, row.design.repairs),
    }
    return document


async def _authoritative(conn: asyncpg.Connection, row: store.MigrationRow) -> dict[str, str]:
    """Which of the two tables holds the rows of a replaced one, for clients of both versions."""
    if row.phase in {"completed", "rolled_back"}:
        return {}
    flipped = await store.step_state(conn, row.id, FLIP) == "done"
    return {r.label: r.temporary if flipped else r.name for r in row.design.replaces}


async def guard_repairs(conn: asyncpg.Connection, sequence: str) -> int:
    """How many writes the guard repaired."""
    if await conn.fetchval("SELECT to_regclass($1)", sequence) is None:
        return 0
    value = await conn.fetchval(f"SELECT CASE WHEN is_called THEN last_value ELSE 0 END FROM {sequence}")
    return int(value)


async def _sidecars(conn: asyncpg.Connection) -> list[dict[str, Any]]:
    routing = await publish.current(conn)
    extra = {
        r["id"]: r
        for r in await conn.fetch(
            "SELECT id, speaks, stats, lease_until, seen_at,"
            " extract(epoch FROM lease_until - clock_timestamp())::float8 AS lease FROM dualwire.sidecar"
        )
    }
    result = []
    for sidecar in await sidecars(conn):
        more = extra.get(sidecar.id)
        if more is None:
            continue
        stats = json.loads(more["stats"])
        result.append(
            {
                "id": sidecar.id,
                "service": sidecar.service,
                "speaks": more["speaks"],
                "live": sidecar.live,
                "lease_seconds": round(more["lease"], 1),
                "epoch": sidecar.epoch,
                "acknowledged": acknowledged(sidecar, routing),
                "revision": sidecar.revision,
                "held": sidecar.held,
                "clients": stats.get("clients", {}),
                "mirrored": stats.get("mirrored", 0),
                "guarded": stats.get("guarded", 0),
                "mirror_failures": stats.get("mirror_failures", 0),
                "handed_to_guard": stats.get("handed_to_guard", []),
            }
        )
    return result


async def _backfill(conn: asyncpg.Connection, migration: int) -> list[dict[str, Any]]:
    rows = await conn.fetch(
        "SELECT table_name, rows_done, rows_total, rate, batch_rows, throttle, position, finished_at,"
        " extract(epoch FROM clock_timestamp() - updated_at)::float8 AS age"
        " FROM dualwire.backfill WHERE migration = $1 ORDER BY started_at",
        migration,
    )
    result = []
    for r in rows:
        left = max(0, r["rows_total"] - r["rows_done"])
        result.append(
            {
                "table": r["table_name"],
                "rows_done": r["rows_done"],
                "rows_total": max(r["rows_total"], r["rows_done"]),
                "rate": round(r["rate"], 1),
                "batch_rows": r["batch_rows"],
                "eta_seconds": round(left / r["rate"], 1) if r["rate"] > 0 and not r["finished_at"] else 0,
                "throttle": r["throttle"],
                "position": r["position"],
                "finished": r["finished_at"] is not None,
            }
        )
    return result


def text(document: dict[str, Any]) -> str:
    """The same for people."""
    routing, row = document["routing"], document["migration"]
    lines = []
    if row is None:
        lines.append("no migration yet")
    else:
        paused = ", paused" if row["paused"] else ""
        lines.append(
            f"migration {row['name']}: {row['phase']}{paused} since {row['phase_at']:%Y-%m-%d %H:%M:%S},"
            f" guard {row['guard']}"
        )
        for table in row["backfill"]:
            state = "done" if table["finished"] else f"ETA {duration(table['eta_seconds'])}"
            throttle = f", throttled: {table['throttle']}" if table["throttle"] else ""
            lines.append(
                f"  backfill {table['table']}: {table['rows_done']}/{table['rows_total']} rows,"
                f" {table['rate']:.0f} rows/s, {state}{throttle}"
            )
        for label, table in row["authoritative"].items():
            lines.append(f"  {label}: both versions use {table}")
        lines.append(f"  problems: {row['problems']}, guard repairs: {row['guard_repairs']}")
        lines += [f"    {p['table']} {p['key']}: {p['reason']}" for p in row["problem_list"]]
        if row["verified_at"]:
            lines.append(
                f"  verified at {row['verified_at']:%Y-%m-%d %H:%M:%S}, epoch {row['verified_epoch']}"
            )
    served = [
        v for v, s in ((routing["old"], routing["serves_old"]), (routing["new"], routing["serves_new"])) if s
    ]
    if routing["compat"]:
        served[0] += " (compat: without its columns)"
    lines.append(
        f"versions served: {', '.join(served)}; auto: {routing['auto']}"
        + (f" ({routing['percent']} %)" if routing["auto"] == "new" else "")
    )
    lines.append(
        f"epoch {routing['epoch']}, revision {routing['revision']},"
        f" replica lag {document['replica_lag_seconds']:.2f} s"
    )
    for s in document["sidecars"]:
        clients = ", ".join(f"{k} {v}" for k, v in s["clients"].items()) or "no clients"
        state = "" if s["live"] else "; LEASE RAN OUT"
        ack = "acknowledged" if s["acknowledged"] else f"still at epoch {s['epoch']}"
        lines.append(
            f"  sidecar {s['service']} ({s['id']}): {ack}, {clients}, lease {s['lease_seconds']} s{state}"
        )
        if s["handed_to_guard"]:
            handed = ", ".join(s["handed_to_guard"])
            lines.append(f"    left to the guard after {s['mirror_failures']} failed writes: {handed}")
    return "\n".join(lines)
