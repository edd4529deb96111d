"""Making a connection ready for its next client, after the last one has let go of it.

Contract: each gives True if the connection may be used again, and never raises but for cancellation. What they leave
behind in ``applied`` and ``prepared`` is what holds on the server.
"""

from __future__ import annotations

import asyncio
from typing import Final

from proxy.backend.connection import ServerConnection
from proxy.backend.errors import QueryFailed, ServerUnavailable
from proxy.session.settings import NOTHING

RESET: Final = "DISCARD ALL"
ROLLBACK: Final = "ROLLBACK"
TIMEOUT: Final = 10.0


async def settle(connection: ServerConnection) -> bool:
    """Wait for cancel requests under way: they would hit the next client's statement."""
    return await connection.settled()


async def reset(connection: ServerConnection, *, rollback: bool) -> bool:
    """Make it as new; ``rollback`` says that a transaction may be open."""
    try:
        async with asyncio.timeout(TIMEOUT):
            usable = await connection.settled()
            if rollback:
                # By itself: DISCARD ALL cannot run in one text with anything else.
                await connection.simple(ROLLBACK)
            await connection.simple(RESET)
    except (QueryFailed, ServerUnavailable, TimeoutError):
        return False
    connection.applied = NOTHING
    connection.prepared.clear()
    return usable
