"""The control functions of a database as typed calls over one asyncpg connection.

Contract: one call at a time (the caller serialises). Whatever ends the connection, a timeout included, is
raised as ``LinkLost`` and leaves the connection unusable; ``Unregistered`` and ``SchemaMissing`` leave it
usable; a document that this version does not understand is a ``ValueError``. Nothing is retried here.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import asyncpg

from proxy.backend.own import dial
from proxy.control.routing import Routing, from_document
from proxy.dsn import Dsn

CHANNEL: Final = "dualwire"
# Longer than a swap may hold the sidecar's row: a call that waits for one is not a lost link.
CALL_TIMEOUT: Final = 15.0

Key = tuple[str, int, int]
"""(epoch id, epoch, revision), as ``Routing.key``."""


class LinkLost(Exception):
    """The connection is gone, could not be made, or leads to a server that is no primary."""


class Unregistered(Exception):
    """The database does not know this sidecar (any more): it must register under a new id."""


class SchemaMissing(Exception):
    """The control schema, or a function of it, is not there."""


class ControlClient:
    """One connection to a primary, speaking for one registered sidecar."""

    def __init__(self, connection: Any) -> None:
        self._connection = connection
        self.id = ""
        self.secret = ""

    @classmethod
    async def connect(
        cls, dsn: Dsn, on_notify: Callable[[], None], on_lost: Callable[[], None]
    ) -> ControlClient:
        """Connects, refuses a server in recovery, and listens; the callbacks run in the event loop."""
        try:
            # The functions may be replaced by a newer version at any time; nothing here is worth a plan cache.
            connection = await dial(dsn, "control", statement_cache_size=0)
        except (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError, ValueError) as error:
            raise LinkLost(f"cannot connect to {dsn}: {_text(error)}") from error
        client = cls(connection)
        try:
            if await client._call("SELECT pg_is_in_recovery()"):
                raise LinkLost(f"{dsn} is in recovery: it is no primary")
            connection.add_termination_listener(lambda _connection: on_lost())
            await connection.add_listener(CHANNEL, lambda *_details: on_notify())
        except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
            client.terminate()
            raise LinkLost(f"cannot listen on {dsn}: {_text(error)}") from error
        except BaseException:
            client.terminate()
            raise
        return client

    async def schema_present(self) -> bool:
        """Whether the control schema exists."""
        return bool(await self._call("SELECT to_regclass('dualwire.routing') IS NOT NULL"))

    async def document(self) -> Routing:
        """The routing state as published now."""
        return _routing(await self._call("SELECT dualwire.routing_document()"))

    async def register(
        self, id: str, secret: str, service: str, speaks: str, info: Mapping[str, Any], lease: int
    ) -> None:
        """Makes this sidecar known under an id of its own."""
        await self._call(
            "SELECT dualwire.sidecar_register($1, $2, $3, $4, $5::jsonb, $6)",
            id,
            secret,
            service,
            speaks,
            json.dumps(info),
            lease,
        )
        self.id, self.secret = id, secret

    async def report(
        self,
        acknowledged: tuple[str, int],
        revision: int,
        lease: int,
        pids: Sequence[int],
        stats: Mapping[str, Any],
    ) -> Key:
        """Acknowledges an epoch (id, counter), renews the lease, and gives what is published now."""
        return _key(
            await self._call(
                "SELECT dualwire.sidecar_report($1, $2, $3, $4, $5, $6, $7::int[], $8::jsonb)",
                self.id,
                self.secret,
                acknowledged[1],
                acknowledged[0],
                revision,
                lease,
                list(pids),
                json.dumps(stats),
            )
        )

    async def enter(self, pids: Sequence[int]) -> Key:
        """Registers server connections before their first use and gives what is published now."""
        return _key(
            await self._call(
                "SELECT dualwire.sidecar_enter($1, $2, $3::int[])", self.id, self.secret, list(pids)
            )
        )

    async def hold(self, hold_id: int, held: bool) -> Routing:
        """Says whether this sidecar holds; returns once a swap under way is decided, with the state after
        it."""
        return _routing(
            await self._call(
                "SELECT dualwire.sidecar_hold($1, $2, $3, $4)", self.id, self.secret, hold_id, held
            )
        )

    async def leave(self) -> None:
        """Forgets this sidecar."""
        await self._call("SELECT dualwire.sidecar_leave($1, $2)", self.id, self.secret)

    async def close(self) -> None:
        """Ends the connection in order, or at once where that takes long."""
        try:
            await self._connection.close(timeout=1.0)
        except (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError):
            self.terminate()

    def terminate(self) -> None:
        """Drops the connection without a word."""
        if not self._connection.is_closed():
            self._connection.terminate()

    async def _call(self, query: str, *arguments: Any) -> Any:
        try:
            return await self._connection.fetchval(query, *arguments, timeout=CALL_TIMEOUT)
        except asyncpg.InsufficientPrivilegeError as error:
            raise Unregistered(_text(error)) from error
        except (
            asyncpg.UndefinedFunctionError,
            asyncpg.InvalidSchemaNameError,
            asyncpg.UndefinedTableError,
        ) as error:
            raise SchemaMissing(_text(error)) from error
        except TimeoutError as error:
            self.terminate()
            raise LinkLost(f"no answer within {CALL_TIMEOUT:g} s") from error
        except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
            # Any other error of the server leaves in doubt what was registered: a new connection settles it.
            self.terminate()
            raise LinkLost(_text(error)) from error


def _routing(document: str) -> Routing:
    return from_document(json.loads(document))


def _key(answer: str) -> Key:
    found = json.loads(answer)
    return (found["epoch_id"], found["epoch"], found["revision"])


def _text(error: BaseException) -> str:
    return str(error) or type(error).__name__
