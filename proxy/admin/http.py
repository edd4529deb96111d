"""The HTTP endpoints: /metrics, /healthz, /readyz and /status. Read-only; there is nothing to protect but
figures.

``/healthz`` answers 200 while the process serves HTTP at all. ``/readyz`` answers 200 only when a client's
statement would be answered rightly: the listener is open, every primary was reached, and every routing state
is known; else 503 with the reasons. ``/status`` is for people and for tests: JSON, its keys only ever added
to.
"""

from __future__ import annotations

import json
import time
from datetime import UTC, datetime
from typing import Any, Final

from aiohttp import web
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

from proxy.admin.metrics import dualwire_version, registry
from proxy.admin.view import DatabaseView, ReloadSource, SidecarView
from proxy.build.state import describe
from proxy.config import Address
from proxy.control.routing import Routing

VIEW: Final = web.AppKey("view", SidecarView)
RELOADS: Final = web.AppKey("reloads", ReloadSource)
REGISTRY: Final = web.AppKey("registry", CollectorRegistry)
STARTED: Final = web.AppKey("started", float)


def application(view: SidecarView, reloads: ReloadSource) -> web.Application:
    """The aiohttp application over a view."""
    app = web.Application()
    app[VIEW] = view
    app[RELOADS] = reloads
    app[REGISTRY] = registry(view, reloads)
    app[STARTED] = time.monotonic()
    app.router.add_get("/metrics", _metrics)
    app.router.add_get("/healthz", _healthz)
    app.router.add_get("/readyz", _readyz)
    app.router.add_get("/status", _status)
    return app


class AdminServer:
    """The endpoints on one address, from ``start`` to ``stop``."""

    def __init__(self, address: Address, view: SidecarView, reloads: ReloadSource) -> None:
        self._address = address
        self._runner = web.AppRunner(
            application(view, reloads), access_log=None, handle_signals=False, shutdown_timeout=1.0
        )
        self.port = address.port
        """The port in use; differs from the configured one where that is 0."""

    async def start(self) -> None:
        """Open the listener; OSError if the address cannot be used."""
        await self._runner.setup()
        try:
            await web.TCPSite(self._runner, self._address.host, self._address.port).start()
        except BaseException:
            await self._runner.cleanup()
            raise
        self.port = self._runner.addresses[0][1]

    async def stop(self) -> None:
        """Close the listener and end requests under way."""
        await self._runner.cleanup()


def not_ready(view: SidecarView) -> list[str]:
    """Why the sidecar is not ready, in words; empty where it is."""
    reasons = [] if view.listening() else ["not listening for clients"]
    for database in view.databases():
        if not database.primary_reached:
            reasons.append(f"{database.name}: the primary was not reached")
        if not database.link.known:
            why = database.link.problem or "the primary was not asked yet"
            reasons.append(f"{database.name}: the routing state is not known: {why}")
    return reasons


async def _metrics(request: web.Request) -> web.Response:
    return web.Response(
        body=generate_latest(request.app[REGISTRY]), headers={"Content-Type": CONTENT_TYPE_LATEST}
    )


async def _healthz(_request: web.Request) -> web.Response:
    return _json({"ok": True})


async def _readyz(request: web.Request) -> web.Response:
    reasons = not_ready(request.app[VIEW])
    return _json({"ready": not reasons, "reasons": reasons}, status=503 if reasons else 200)


async def _status(request: web.Request) -> web.Response:
    view = request.app[VIEW]
    reload = request.app[RELOADS].view()
    return _json(
        {
            "version": dualwire_version(),
            "hot_path": describe(),
            "uptime_seconds": round(time.monotonic() - request.app[STARTED], 1),
            "listening": view.listening(),
            "ready": not not_ready(view),
            "config": {
                "path": view.config_path(),
                "reload": {
                    "at": None if reload.at is None else datetime.fromtimestamp(reload.at, UTC).isoformat(),
                    "result": reload.result,
                    "error": reload.error,
                    "pending_restart": list(reload.pending_restart),
                    "totals": dict(reload.totals),
                },
            },
            "databases": {database.name: _database(database) for database in view.databases()},
        }
    )


def _database(database: DatabaseView) -> dict[str, Any]:
    stats, link = database.stats, database.link
    p99 = stats.latency.quantile(0.99)
    return {
        "schema_version": database.schema_version,
        "dual_write_enabled": database.dual_write_enabled,
        "primary_reached": database.primary_reached,
        "routing": _routing(database.routing),
        "control": {
            "sidecar": link.sidecar_id,
            "connected": link.connected,
            "schema_present": link.schema_present,
            "registered": link.registered,
            "known": link.known,
            "acknowledged": {"epoch_id": link.acknowledged[0], "epoch": link.acknowledged[1]},
            "lease_seconds": round(link.lease_seconds, 1),
            "reconnects": link.reconnects,
            "holding": link.holding,
            "problem": link.problem,
        },
        "clients": {speaks: stats.clients.get(speaks, 0) for speaks in ("old", "new", "auto")},
        "replication": stats.replication,
        "transactions_open": stats.transactions_open,
        "pools": [
            {
                "server": pool.server,
                "role": pool.role,
                "active": pool.active,
                "idle": pool.idle,
                "connecting": pool.connecting,
                "waiting": pool.waiting,
                "limit": pool.limit,
                "cleaning": pool.cleaning,
                "paused": pool.paused,
                "failing": pool.failing,
            }
            for pool in database.pools
        ],
        "replicas": [
            {
                "server": replica.server,
                "usable": replica.usable,
                "lag_seconds": replica.lag_seconds,
                "replayed_lsn": replica.replayed_lsn,
                "reason": replica.reason,
            }
            for replica in database.replicas
        ],
        "counts": {
            "queries": stats.queries,
            "errors": stats.errors,
            "refused": stats.refused,
            "mirrored": stats.mirrored,
            "guarded": stats.guarded,
            "fallbacks": stats.fallbacks,
            "mirror_failures": stats.mirror_failures,
            "parked": database.holds_total,
            "rewrites": dict(stats.rewrites),
            "refusals": dict(stats.refusals),
            "decisions": {f"{target}:{reason}": n for (target, reason), n in list(stats.decisions.items())},
        },
        "handed_to_guard": sorted(stats.handed_to_guard),
        "p99_seconds": p99,
    }


def _routing(routing: Routing) -> dict[str, Any]:
    hold = routing.hold
    return {
        "epoch": routing.epoch,
        "epoch_id": routing.epoch_id,
        "timeline": routing.timeline,
        "revision": routing.revision,
        "migration": routing.migration,
        "phase": routing.phase,
        "old": routing.old,
        "new": routing.new,
        "serves": list(routing.visible_versions),
        "auto": routing.auto,
        "percent": routing.percent,
        "compat": routing.compat,
        "dual_write": routing.dual_write,
        "versions": list(routing.versions),
        "tables": [table.qualified for table in routing.tables],
        "hold": None
        if hold is None
        else {"id": hold.id, "tables": list(hold.tables), "seconds": hold.seconds},
    }


def _json(value: dict[str, Any], status: int = 200) -> web.Response:
    return web.Response(
        text=json.dumps(value, indent=2) + "\n", status=status, content_type="application/json"
    )
