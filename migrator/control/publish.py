"""Publication of routing states: one row, changed in the transaction of the step that makes it true."""

from __future__ import annotations

import json
import uuid
from dataclasses import replace

import asyncpg

from proxy.control.routing import Routing, from_document, state_to_json, to_document

CHANNEL = "dualwire"


async def current(conn: asyncpg.Connection) -> Routing:
    """The state that is published now."""
    return from_document(json.loads(await conn.fetchval("SELECT dualwire.routing_document()")))


async def publish(conn: asyncpg.Connection, routing: Routing, *, epoch: bool) -> Routing:
    """Publish a state; gives it with its epoch and revision.

    Args:
        epoch: whether the write path changes. Otherwise only the revision grows, and no sidecar is waited for
            before statements may go on.
    """
    before = await current(conn)
    published = replace(
        routing,
        epoch=before.epoch + 1 if epoch else before.epoch,
        epoch_id=str(uuid.uuid4()) if epoch else before.epoch_id,
        revision=before.revision + 1,
        timeline=int(await conn.fetchval("SELECT timeline_id FROM pg_control_checkpoint()")),
    )
    from_document(json.loads(json.dumps(to_document(published))))
    await conn.execute(
        "UPDATE dualwire.routing SET epoch = $1, epoch_id = $2, revision = $3, timeline = $4, state = $5,"
        " published_at = clock_timestamp()",
        published.epoch,
        published.epoch_id,
        published.revision,
        published.timeline,
        json.dumps(state_to_json(published)),
    )
    await conn.execute("SELECT pg_notify($1, $2)", CHANNEL, str(published.revision))
    return published
