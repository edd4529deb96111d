"""The time before a session: encryption, startup packet, authentication, the first server connection.

Contract: bounded in bytes (PostgreSQL's startup packet limit, one SASL message) and in time
(``limits.client_login_timeout``); ends in :meth:`ClientConnection.establish` or in one clear FATAL error. Bytes that
arrive between an SSLRequest and the handshake are refused, never read as if they had come encrypted (CVE-2021-23222).
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from typing import TYPE_CHECKING, cast

import structlog

from proxy.backend.connection import ServerConnection
from proxy.backend.errors import ServerUnavailable
from proxy.config import ConfigError
from proxy.rewrite.plan import Refusal
from proxy.wire import messages as m
from proxy.wire.messages import ProtocolViolation
from proxy.wire.scram import AuthenticationFailed, ServerExchange, Verifier
from proxy.wire.startup import CancelRequest, EncryptionRequest, Startup, read_startup

if TYPE_CHECKING:
    from proxy.server.client import ClientConnection
    from proxy.server.database import DatabaseRuntime

log = structlog.get_logger(__name__)

HIGH_WATER = 256 * 1024
"""Bytes that may wait to be written to a client before its servers are no longer read."""
MAX_AUTH_MESSAGE = 4096
MAX_EARLY = 65_536
"""Bytes of requests that a client may send ahead of its login's end, before it is no longer read."""
ROUTING_WAIT = 3.0


class Login:
    """The login of one client."""

    def __init__(self, client: ClientConnection) -> None:
        self._client = client
        self._sidecar = client.sidecar
        self._data = b""
        self._startup: Startup | None = None
        self._exchange: ServerExchange | None = None
        self._known_user = False
        self._admitted = False
        self._asked: set[bool] = set()
        self._encrypted = False
        self._upgrading = False
        self._task: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None

    def connected(self) -> None:
        """The client's socket is there."""
        if self._timer is not None:
            return
        limits = self._sidecar.settings.limits
        self._admitted = self._sidecar.admit(self._client)
        if not self._admitted and not self._sidecar.admit_to_refuse(self._client):
            self._client.finish()
            return
        # One too many is told so when it has said who it is, as PostgreSQL does: a driver that begins with an
        # SSLRequest would not understand an earlier error.
        patience = limits.client_login_timeout if self._admitted else min(limits.client_login_timeout, 5.0)
        self._timer = asyncio.get_running_loop().call_later(patience, self._too_slow)

    def abandon(self) -> None:
        """The client has gone, or is established."""
        if self._timer is not None:
            self._timer.cancel()
        if self._task is not None and self._task is not asyncio.current_task():
            self._task.cancel()

    def _too_slow(self) -> None:
        if self._upgrading:
            self._drop()
            return
        self._refuse("08P01", "the client did not finish its login in time")

    def _refuse(self, sqlstate: str, message: str, hint: str = "", detail: str = "") -> None:
        self._client.to_client(
            m.error_response(sqlstate, message, hint=hint, detail=detail, severity="FATAL")
        )
        self._client.finish()

    # -- packets ---------------------------------------------------------------------------------------------------

    def feed(self, data: bytes) -> None:
        """Bytes before the session; raises ProtocolViolation."""
        self._data += data
        if self._upgrading:
            return
        if self._startup is None:
            self._read_startup()
        elif self._exchange is not None and not self._exchange.done:
            self._read_password()
        elif len(self._data) > MAX_EARLY and self._client.transport is not None:
            self._client.transport.pause_reading()

    def _read_startup(self) -> None:
        found = read_startup(self._data)
        if found is None:
            return
        request, taken = found
        self._data = self._data[taken:]
        if isinstance(request, EncryptionRequest):
            self._encrypt(request)
        elif isinstance(request, CancelRequest):
            self._sidecar.spawn(self._cancel(request))
        else:
            self._startup = request
            self._authenticate(request)

    async def _cancel(self, request: CancelRequest) -> None:
        await self._sidecar.cancel(request.pid, request.secret)
        self._client.finish()

    def _encrypt(self, request: EncryptionRequest) -> None:
        context = self._sidecar.tls
        if self._encrypted or request.gss in self._asked:
            raise ProtocolViolation("encryption was asked for twice")
        self._asked.add(request.gss)
        if request.gss or context is None:
            self._client.to_client(b"N")
            if self._data:
                self._read_startup()
            return
        if self._data:
            raise ProtocolViolation("received unencrypted data after SSL request")
        self._encrypted = self._upgrading = True
        self._client.to_client(b"S")
        if self._client.transport is not None:
            # From here to the handshake nothing is read: what comes to us before its end has been decrypted.
            self._client.transport.pause_reading()
        self._sidecar.spawn(self._start_tls(context))

    async def _start_tls(self, context: ssl.SSLContext) -> None:
        client = self._client
        assert client.transport is not None
        try:
            transport = await asyncio.get_running_loop().start_tls(
                client.transport, client, context, server_side=True
            )
        except (OSError, ConnectionError) as exc:
            log.info("TLS handshake failed", error=str(exc))
            self._drop()
            return
        client.transport = cast(asyncio.Transport, transport)
        client.transport.set_write_buffer_limits(high=HIGH_WATER)
        self._upgrading = False
        client.data_received(b"")

    def _drop(self) -> None:
        """Close without a word; a connection lost in the middle of a handshake is not reported to its protocol."""
        self.abandon()
        if self._client.transport is not None:
            self._client.transport.abort()
        self._sidecar.forget(self._client)

    # -- authentication --------------------------------------------------------------------------------------------

    def _authenticate(self, startup: Startup) -> None:
        user = startup.parameters["user"]
        if not self._admitted:
            limit = self._sidecar.settings.limits.max_clients
            self._refuse(
                "53300",
                f"sorry, too many clients already (max_clients is {limit})",
                "Raise limits.max_clients in the sidecar's configuration.",
            )
            return
        if startup.minor or startup.unknown_options:
            names = b"".join(name.encode() + b"\0" for name in startup.unknown_options)
            count = len(startup.unknown_options).to_bytes(4, "big")
            self._client.to_client(m.frame(m.NEGOTIATE_VERSION, (3 << 16).to_bytes(4, "big") + count + names))
        if self._sidecar.settings.auth.method == "trust":
            self._begin()
            return
        known = self._sidecar.users.get(user)
        self._known_user = known is not None
        verifier = known.verifier if known is not None else Verifier.decoy(user, self._sidecar.decoy_key)
        self._exchange = ServerExchange(verifier)
        self._client.to_client(ServerExchange.request())

    def _read_password(self) -> None:
        if len(self._data) < 5:
            return
        length = int.from_bytes(self._data[1:5], "big") + 1
        if length > MAX_AUTH_MESSAGE or self._data[0] != m.PASSWORD:
            raise ProtocolViolation("expected a SASL response")
        if len(self._data) < length:
            return
        message, self._data = self._data[:length], self._data[length:]
        assert self._exchange is not None
        assert self._startup is not None
        user = self._startup.parameters["user"]
        try:
            answer = self._exchange.respond(message)
        except AuthenticationFailed as exc:
            log.info("authentication failed", user=user, known=self._known_user, error=str(exc))
            self._sidecar.login_failed(self._startup.parameters.get("database", user), "password")
            self._refuse("28P01", f'password authentication failed for user "{user}"')
            return
        self._client.to_client(answer)
        if self._exchange.done:
            self._begin()

    # -- the first server connection -------------------------------------------------------------------------------

    def _begin(self) -> None:
        assert self._startup is not None
        self._task = self._sidecar.spawn(self._lease(self._startup))

    async def _lease(self, startup: Startup) -> None:
        parameters = dict(startup.parameters)
        user = parameters.pop("user")
        name = parameters.pop("database", user)
        if parameters.pop("replication", "false").lower() not in ("false", "off", "no", "0"):
            self._refuse(
                "0A000", "replication connections are not supported", "Connect to the server itself."
            )
            return
        database = self._sidecar.databases.get(name)
        if database is None:
            known = ", ".join(sorted(self._sidecar.databases))
            self._sidecar.login_failed(name, "database")
            self._refuse("3D000", f'database "{name}" is not configured', f"This sidecar serves: {known}.")
            return
        version = startup.version or database.settings.schema_version
        if not await database.link.wait_known(ROUTING_WAIT):
            reason = database.link.status().problem or "no answer from the primary"
            self._refuse(
                "08006",
                f"the routing state of {name} is not known: {reason}",
                f"Check that the primary {database.settings.primary.label} runs; see the sidecar's /status.",
            )
            return
        side = database.hub.routing.resolve(version, 0)
        if isinstance(side, Refusal):
            database.stats.refusals["version_not_served"] += 1
            self._refuse(side.sqlstate, side.message, side.hint, side.detail)
            return
        login, password = self._server_login(database, user)
        server_parameters = {"user": login, "database": database.settings.primary.database, **parameters}
        try:
            server = await database.primary.acquire(server_parameters, password)
        except ServerUnavailable as exc:
            database.stats.login_failures["server"] += 1
            database.reached(exc.message if exc.relayed is None else None)
            self._client.to_client(exc.frame())
            self._client.finish()
            return
        except asyncio.CancelledError:
            raise
        database.reached(None)
        self._welcome(database, server, user, version, server_parameters, password)

    def _server_login(self, database: DatabaseRuntime, user: str) -> tuple[str, str | None]:
        """As whom to log in at the server: the client's own user where its password is known, else the DSN's."""
        dsn = database.settings.primary
        known = self._sidecar.users.get(user)
        if user != dsn.user and known is not None and known.password is not None:
            return user, known.password
        with contextlib.suppress(ConfigError):
            return dsn.user, dsn.password_or_default()
        return dsn.user, dsn.password

    def _welcome(
        self,
        database: DatabaseRuntime,
        server: ServerConnection,
        user: str,
        version: str,
        parameters: dict[str, str],
        password: str | None,
    ) -> None:
        client = self._client
        if client.transport is None or client.transport.is_closing():
            database.primary.release(server, reusable=True)
            return
        self.abandon()
        client.establish(
            database, server, user=user, version=version, parameters=parameters, password=password
        )
        greeting = [m.AUTHENTICATION_OK]
        greeting += [m.parameter_status(name, value) for name, value in server.parameters.items()]
        greeting += [m.backend_key_data(*client.key), m.ready_for_query(b"I")]
        client.to_client(b"".join(greeting))
        if self._data:
            client.transport.resume_reading()
            client.data_received(self._data)
