"""The process: listener, clients, cancel keys, databases; start, live settings, draining shutdown.

All process-wide state of a sidecar is in :class:`Sidecar`.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import ssl
import stat
from collections.abc import Coroutine, Mapping, Sequence
from typing import Any

import structlog

from proxy.config import Address, Settings
from proxy.config_users import User
from proxy.control.routing import Routing
from proxy.server.client import ClientConnection
from proxy.server.database import DatabaseRuntime

log = structlog.get_logger(__name__)

MAX_REFUSED = 256
"""Clients beyond the limit that are listened to, so that they can be refused in a way that they understand."""


class Sidecar:
    """See the module's docstring."""

    def __init__(self, settings: Settings, users: Mapping[str, User]) -> None:
        self.settings = settings
        self.users = users
        self.decoy_key = secrets.token_bytes(16)
        self.tls = _tls(settings)
        self.databases = {
            name: DatabaseRuntime(name, database, settings.limits)
            for name, database in settings.databases.items()
        }
        for runtime in self.databases.values():
            runtime.hub.listen(self._on_routing)
        self.address: Address | None = None
        """Where clients connect, once the listener is open."""
        self.accepting = False
        self._server: asyncio.Server | None = None
        self._clients: set[ClientConnection] = set()
        self._refused: set[ClientConnection] = set()
        self._keys: dict[tuple[int, bytes], ClientConnection] = {}
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
        log.info("listening", address=str(self.address), databases=sorted(self.databases))

    async def stop(self) -> None:
        """Stop accepting, let transactions end for ``limits.shutdown_timeout``, close everything."""
        self.accepting = False
        if self._server is not None:
            self._server.close()
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

    def admit(self, client: ClientConnection) -> bool:
        """Count a new client in; False if there are too many, or the sidecar is stopping."""
        if not self.accepting or len(self._clients) >= self.settings.limits.max_clients:
            return False
        self._clients.add(client)
        return True

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

    def register(self, client: ClientConnection) -> tuple[int, tuple[int, bytes]]:
        """A number for a new session, unique in this process, and its cancel key."""
        self._numbers += 1
        while True:
            key = (secrets.randbelow(1 << 31), secrets.token_bytes(4))
            if key not in self._keys:
                break
        self._keys[key] = client
        return self._numbers, key

    def unregister(self, client: ClientConnection) -> None:
        """A session has ended: its cancel key means nothing any more."""
        self._keys.pop(client.key, None)

    async def cancel(self, pid: int, secret: bytes) -> None:
        """Serve a CancelRequest; an unknown key is ignored, as PostgreSQL does."""
        client = self._keys.get((pid, secret))
        if client is not None:
            if client.database is not None:
                client.database.stats.cancels += 1
            await client.cancel()

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


def _tls(settings: Settings) -> ssl.SSLContext | None:
    listen = settings.listen
    if listen.tls_cert is None or listen.tls_key is None:
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.load_cert_chain(listen.tls_cert, listen.tls_key)
    return context
