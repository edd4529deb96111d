"""The console's connections: who is let in, the socket, and one command at a time behind it.

Contract: :meth:`ConsoleOffice.open` takes over the transport of a client that has logged in; from then on the client's
own protocol hears nothing of it. The console ends with its connection, and a command that it waits for is cancelled
then, or by a CancelRequest.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterable

import structlog

from proxy.admin.console import Column, Console, Done, Row
from proxy.admin.console_commands import ConsoleError, Operate
from proxy.admin.console_operations import Operations
from proxy.admin.console_tables import SHOWN
from proxy.config import CONSOLE_DATABASE
from proxy.server.client import ClientConnection
from proxy.server.database import DatabaseRuntime
from proxy.server.sidecar import CancelKey, Sidecar
from proxy.wire import messages as m
from proxy.wire.messages import ProtocolViolation

log = structlog.get_logger(__name__)

MAX_QUEUED = 100
"""Messages that may wait for the end of a command before the client is no longer read."""


class ConsoleOffice:
    """Opens consoles."""

    def __init__(self, sidecar: Sidecar, operations: Operations) -> None:
        self._sidecar = sidecar
        self._operations = operations

    def open(
        self, client: ClientConnection, user: str, key_for: Callable[[CancelKey], CancelKey], early: bytes
    ) -> None:
        """Let an authenticated client use the console, or send it away; ``early`` is what it has sent ahead."""
        settings = self._sidecar.settings
        admins, viewers = settings.admin.users, settings.admin.stats_users
        everybody = settings.auth.method == "trust" and not admins and not viewers
        admin = everybody or user in admins
        if not admin and user not in viewers:
            client.fail(
                "42501",
                f'permission denied for database "{CONSOLE_DATABASE}"',
                "List the user in admin.users or admin.stats_users of the sidecar's configuration.",
            )
            return
        if client.transport is not None and not client.transport.is_closing():
            connection = ConsoleConnection(self._sidecar, self._operations, client, user=user, admin=admin)
            connection.start(key_for, early)


class ConsoleConnection(asyncio.Protocol):
    """One console's socket; also the console's ``Desk``, and who is found by its cancel key."""

    def __init__(
        self, sidecar: Sidecar, operations: Operations, client: ClientConnection, *, user: str, admin: bool
    ) -> None:
        assert client.transport is not None
        self.database: DatabaseRuntime | None = None
        self.key: CancelKey = (0, b"")
        self._sidecar = sidecar
        self._operations = operations
        self._client = client
        self._user = user
        self._transport = client.transport
        self._console = Console(self, self._transport.write, user=user, admin=admin)
        self._task: asyncio.Task[None] | None = None
        self._choked = False

    def start(self, key_for: Callable[[CancelKey], CancelKey], early: bytes) -> None:
        """Take the transport over and greet."""
        self._client.login, self._client.user = None, self._user
        _, key = self._sidecar.register(self)
        self.key = key_for(key)
        self._transport.set_protocol(self)
        self._transport.write(self._console.greeting(self.key))
        if early:
            self.data_received(early)
        self._read_or_not()

    # -- asyncio.Protocol ------------------------------------------------------------------------------------------

    def data_received(self, data: bytes) -> None:
        try:
            self._console.feed(data)
        except ProtocolViolation as exc:
            self._transport.write(m.error_response("08P01", f"invalid message: {exc}", severity="FATAL"))
            self._transport.close()
            return
        if self._console.closed:
            self._transport.close()
        self._read_or_not()

    def eof_received(self) -> bool:
        return False

    def pause_writing(self) -> None:
        self._choked = True
        self._read_or_not()

    def resume_writing(self) -> None:
        self._choked = False
        self._read_or_not()

    def connection_lost(self, exc: Exception | None) -> None:
        self._sidecar.unregister(self)
        self._sidecar.forget(self._client)
        if self._task is not None:
            self._task.cancel()

    def _read_or_not(self) -> None:
        if self._transport.is_closing():
            return
        with contextlib.suppress(RuntimeError):
            if self._choked or self._console.queued > MAX_QUEUED:
                self._transport.pause_reading()
            else:
                self._transport.resume_reading()

    # -- cancel ----------------------------------------------------------------------------------------------------

    async def cancel(self) -> None:
        """A CancelRequest has come."""
        if self._task is not None:
            self._task.cancel()

    # -- Desk ------------------------------------------------------------------------------------------------------

    def columns(self, table: str) -> tuple[Column, ...]:
        """The columns of a SHOW."""
        return SHOWN[table].columns

    def rows(self, table: str) -> Iterable[Row]:
        """Its rows now."""
        return SHOWN[table].rows(self._sidecar)

    def operate(self, command: Operate, done: Callable[[Done | ConsoleError], None]) -> None:
        """Carry a command out beside the event handlers."""
        self._task = self._sidecar.spawn(self._operate(command, done))

    async def _operate(self, command: Operate, done: Callable[[Done | ConsoleError], None]) -> None:
        outcome: Done | ConsoleError
        try:
            outcome = await self._operations.carry_out(command)
        except ConsoleError as exc:
            outcome = exc
        except asyncio.CancelledError:
            outcome = ConsoleError("57014", f"canceling {command.operation} due to user request")
        except Exception as exc:
            log.exception("a console command failed", command=command.operation)
            outcome = ConsoleError("XX000", f"{type(exc).__name__}: {exc}", hint="See the sidecar's log.")
        self._task = None
        if not self._transport.is_closing():
            done(outcome)
            if self._console.closed:
                self._transport.close()
        self._read_or_not()
