"""Connections of the sidecar's own, through asyncpg: the control link, the replica monitor, the look at readiness.

Clients' statements never go over these; see ``proxy.backend.connection`` for those.
"""

from __future__ import annotations

import ssl
from typing import Any

import asyncpg

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
        ssl=None if dsn.is_unix else _tls(dsn),
        timeout=CONNECT_TIMEOUT,
        server_settings={"application_name": f"dualwire {purpose}"},
        **options,
    )


def _tls(dsn: Dsn) -> Any:
    """What asyncpg's ``ssl`` takes: a context where a root certificate is given, else libpq's word."""
    if dsn.sslrootcert is None:
        return dsn.sslmode
    context = ssl.create_default_context(cafile=dsn.sslrootcert)
    context.check_hostname = dsn.sslmode == "verify-full"
    return context
