"""Connections of the sidecar's own, through asyncpg: the control link, the replica monitor, the look at readiness.

Clients' statements never go over these; see ``proxy.backend.connection`` for those.
"""

from __future__ import annotations

from typing import Any

import asyncpg

from proxy.backend import tls
from proxy.backend.errors import ServerUnavailable
from proxy.dsn import Dsn

CONNECT_TIMEOUT = 5.0
"""Seconds."""


async def dial(dsn: Dsn, purpose: str, **options: Any) -> Any:
    """An asyncpg connection that names itself ``dualwire <purpose>``; raises what asyncpg raises."""
    return await asyncpg.connect(
        host=dsn.host,
        port=dsn.port,
        user=dsn.user,
        database=dsn.database,
        password=dsn.password_or_default(),
        ssl=_tls(dsn),
        direct_tls=not dsn.is_unix and dsn.sslnegotiation == "direct",
        timeout=CONNECT_TIMEOUT,
        server_settings={"application_name": f"dualwire {purpose}"},
        **options,
    )


def _tls(dsn: Dsn) -> Any:
    """What asyncpg's ``ssl`` takes: False, libpq's word where TLS may come or not, else the context for it."""
    if dsn.is_unix or dsn.sslmode == "disable":
        return False
    if dsn.sslmode in ("allow", "prefer"):
        return dsn.sslmode
    try:
        return tls.context(dsn)
    except ServerUnavailable as exc:
        raise OSError(exc.message) from exc
