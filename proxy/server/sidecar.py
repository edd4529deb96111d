"""The process: listener, clients, cancel keys, databases; start, live settings, draining shutdown.

All process-wide state of a sidecar is in :class:`Sidecar`.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import os
import secrets
import stat
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import structlog

from proxy.config import Address, ConfigError, Settings
from proxy.config_users import User
from proxy.control.routing import Routing
from proxy.dsn import Dsn
from proxy.server.client import ClientConnection
from proxy.server.database import DatabaseRuntime
from proxy.server.relay import Relay
from proxy.server.tls import server_context

log = structlog.get_logger(__name__)

TEND_EVERY = 0.5
MAX_REFUSED = 256
"""Clients beyond the limit that are listened to, so that they can be refused in a way that they understand."""


class Excess(NamedTuple):
    """Why a client is not let in, in words for it."""

    sqlstate: str
    message: str
    hint: str


CancelKey = tuple[int, bytes]
OpenConsole = Callable[[ClientConnection, str, Callable[[CancelKey], CancelKey], bytes], None]
"""Takes over an authenticated client: its user, what makes a cancel key of the right length, and what it sent ahead."""


class Cancellable(Protocol):
    """Whoever has a cancel key."""

    key: tuple[int, bytes]
    database: DatabaseRuntime | None

    async def cancel(self) -> None: ...


class Sidecar:
    """See the module's docstring."""

    def __init__(self, settings: Settings, users: Mapping[str, User]) -> None:
        self.settings = settings
        self.users = users
        self.decoy_key = secrets.token_bytes(16)
        self.tls = server_context(settings.listen)
        self.databases = {
            name: DatabaseRuntime(name, database, settings.limits)
            for name, database in settings.databases.items()
        }
        for runtime in self.databases.values():
            runtime.hub.listen(self._on_routing)
        self.address: Address | None = None
        """Where clients connect, once the listener is open."""
        self.accepting = False
        self.console: OpenConsole | None = None
        """Serves clients that ask for the admin console; set by whoever has one to offer."""
        self._server: asyncio.Server | None = None
        self._clients: set[ClientConnection] = set()
        self._refused: set[ClientConnection] = set()
        self._logins: set[ClientConnection] = set()
        self._relays: set[Relay] = set()
        self._keys: dict[int, list[Cancellable]] = {}
        """By the first half of the cancel key; servers of several databases may have the same."""
        self._numbers = 0
        self._tasks: set[asyncio.Task[Any]] = set()

    # -- life ------------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Start the databases and open the listener; OSError if the address cannot be used."""
        loop = asyncio.get_running_loop()
        for database in self.databases.values():
            await database.start()
        address = self.settings.listen.address
        if address.is_unix:
            _remove_stale_socket(address.socket_path)
            self._server = await loop.create_unix_server(lambda: ClientConnection(self), address.socket_path)
            self.address = address
        else:
            self._server = await loop.create_server(
                lambda: ClientConnection(self), address.host, address.port, backlog=1024
            )
            port = self._server.sockets[0].getsockname()[1]
            self.address = Address(address.host, port)
        self.accepting = True
        self.spawn(self._tend())
        log.info("listening", address=str(self.address), databases=sorted(self.databases))

    async def _tend(self) -> None:
        """End sessions that have been idle for too long."""
        while True:
            await asyncio.sleep(TEND_EVERY)
            limits, now = self.settings.limits, time.monotonic()
            if limits.idle_transaction_timeout or limits.client_idle_timeout:
                for client in list(self._clients):
                    client.check_idle(now)

    async def stop(self) -> None:
        """Stop accepting, let transactions end for ``limits.shutdown_timeout``, close everything."""
        self.accepting = False
        if self._server is not None:
            self._server.close()
        for relay in list(self._relays):
            relay.shut_down()
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self.settings.limits.shutdown_timeout
        while self._clients:
            idle = [client for client in self._clients if not client.busy]
            for client in idle if loop.time() < deadline else list(self._clients):
                client.shut_down()
            if loop.time() >= deadline:
                break
            await asyncio.sleep(0.02)
        await asyncio.sleep(0)
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for database in self.databases.values():
            await database.stop()
        if self.address is not None and self.address.is_unix:
            with contextlib.suppress(OSError):
                os.unlink(self.address.socket_path)
        log.info("stopped")

    def apply(self, settings: Settings, users: Mapping[str, User]) -> None:
        """Take over what may change while running."""
        try:
            self.tls = server_context(settings.listen)
        except ConfigError as exc:
            # It was all right when the configuration was validated, a moment ago.
            log.error("certificate not usable, the old one stays", error=exc.message, hint=exc.hint)
        self.settings = settings
        self.users = users
        for name, database in self.databases.items():
            if name in settings.databases:
                database.apply(settings.databases[name], settings.limits)

    def spawn(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        """Run something beside the event handlers; it is cancelled at shutdown."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)
        return task

    def _done(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            log.error("a task failed", exc_info=task.exception())

    # -- clients ---------------------------------------------------------------------------------------------------

    def admit(self, client: ClientConnection) -> Excess | None:
        """Count a new client in; the reason why not, if there are too many or the sidecar is stopping."""
        limits = self.settings.limits
        if not self.accepting:
            return Excess("57P03", "the sidecar is shutting down", "Connect again.")
        if len(self._clients) + len(self._relays) >= limits.max_clients:
            return Excess(
                "53300",
                f"sorry, too many clients already (max_clients is {limits.max_clients})",
                "Raise limits.max_clients in the sidecar's configuration.",
            )
        if len(self._logins) >= limits.max_logins:
            return Excess(
                "53300",
                f"sorry, too many clients are logging in already (max_logins is {limits.max_logins})",
                "Connect again, or raise limits.max_logins in the sidecar's configuration.",
            )
        self._clients.add(client)
        self._logins.add(client)
        return None

    def authenticated(self, client: ClientConnection) -> None:
        """A client has proved who it is."""
        self._logins.discard(client)

    def admit_to_refuse(self, client: ClientConnection) -> bool:
        """Keep one client too many until it can be told so; False if there are too many of these as well."""
        if len(self._refused) >= MAX_REFUSED:
            return False
        self._refused.add(client)
        return True

    def forget(self, client: ClientConnection) -> None:
        """A client's socket is closed."""
        self._clients.discard(client)
        self._refused.discard(client)
        self._logins.discard(client)

    def hand_over(self, client: ClientConnection, relay: Relay) -> None:
        """A client's connection is a relay's from now on."""
        self.forget(client)
        self._relays.add(relay)

    def relay_ended(self, relay: Relay) -> None:
        """A replication connection is closed."""
        self._relays.discard(relay)
        self.unregister(relay)

    def register(self, client: Cancellable, pid: int = 0) -> tuple[int, tuple[int, bytes]]:
        """A number for a new session, unique in this process, and its cancel key.

        ``pid`` is its server's process, where it keeps one server: clients compare it with what the database says. The
        secret is never that server's. It may be replaced by a longer one: what counts is ``client.key``.
        """
        self._numbers += 1
        # A client takes the first half of the key for a process id, and 0 for none.
        while pid == 0:
            pid = secrets.randbelow((1 << 31) - 1) + 1
            if pid in self._keys:
                pid = 0
        self._keys.setdefault(pid, []).append(client)
        return self._numbers, (pid, secrets.token_bytes(4))

    def unregister(self, client: Cancellable) -> None:
        """A session has ended: its cancel key means nothing any more."""
        pid = client.key[0]
        left = [other for other in self._keys.pop(pid, ()) if other is not client]
        if left:
            self._keys[pid] = left

    async def cancel(self, pid: int, secret: bytes) -> None:
        """Serve a CancelRequest; an unknown key is ignored, as PostgreSQL does."""
        for client in self._keys.get(pid, ()):
            if hmac.compare_digest(client.key[1], secret):
                if client.database is not None:
                    client.database.stats.cancels += 1
                await client.cancel()
                return

    def make_way(self, server: Dsn, name: str) -> None:
        """Leave a database of that server, so that a statement can have it for itself."""
        for database in self.databases.values():
            dsn = database.settings.primary
            if (dsn.host, dsn.port, dsn.database) == (server.host, server.port, name):
                self.spawn(database.retire())

    def login_failed(self, database: str, reason: str) -> None:
        """Count a failed login, for the database it asked for if that is configured."""
        runtime = self.databases.get(database)
        if runtime is not None:
            runtime.stats.login_failures[reason] += 1

    def _on_routing(self, routing: Routing) -> None:
        for client in self._clients:
            client.recount()

    def clients(self) -> Sequence[ClientConnection]:
        """Everyone who is connected."""
        return list(self._clients)


def _remove_stale_socket(path: str) -> None:
    """A socket that a crashed sidecar left behind; anything else in its place stays and fails the listener."""
    with contextlib.suppress(FileNotFoundError):
        if stat.S_ISSOCK(os.stat(path).st_mode):
            os.unlink(path)
