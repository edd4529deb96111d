"""The time before a session: encryption, startup packet, authentication, the first server connection.

Contract: bounded in bytes (PostgreSQL's startup packet limit, one SASL message), in time
(``limits.client_login_timeout``) and in number (``limits.max_logins``); ends in :meth:`ClientConnection.establish`,
in a :class:`Relay` that takes the connection over, or in one clear FATAL error. Bytes that arrive between an SSLRequest
and the handshake are refused, never read as if they had come encrypted (CVE-2021-23222).

Other ways to authenticate (an auth_query, client certificates, pass-through) belong into :meth:`Login._authenticate`.
"""

from __future__ import annotations

import asyncio
import secrets
import socket
import ssl
from typing import TYPE_CHECKING

import structlog

from proxy.backend.connection import ServerConnection, connect
from proxy.backend.errors import ServerUnavailable
from proxy.config import CONSOLE_DATABASE
from proxy.rewrite.plan import Refusal
from proxy.server.database import Greeting
from proxy.server.relay import Relay
from proxy.server.tls import accept, agreed_on_postgresql
from proxy.wire import messages as m
from proxy.wire.messages import ProtocolViolation
from proxy.wire.scram import AuthenticationFailed, ServerExchange, Verifier
from proxy.wire.startup import (
    GSSENC_REQUEST,
    LONG_KEYS,
    SSL_REQUEST,
    TLS_HANDSHAKE,
    CancelRequest,
    EncryptionRequest,
    Startup,
    StartupRefused,
    read_startup,
    unencrypted,
    unsupported,
)

if TYPE_CHECKING:
    from proxy.server.client import ClientConnection
    from proxy.server.database import DatabaseRuntime
    from proxy.server.sidecar import Excess

log = structlog.get_logger(__name__)

HIGH_WATER = 256 * 1024
"""Bytes that may wait to be written to a client before its servers are no longer read."""
LONG_KEY = 32
"""Bytes of a cancel key's secret in protocol 3.2: PostgreSQL's."""
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
        self._excess: Excess | None = None
        self._asked: set[bool] = set()
        """The encryption requests so far: False for SSLRequest, True for GSSENCRequest."""
        self._begun = False
        """Something has been read of this client; only its very first byte may begin a TLS handshake."""
        self._encrypted = False
        self._upgrading = False
        self._task: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None

    def connected(self) -> None:
        """The client's socket is there."""
        if self._timer is not None:
            return
        limits = self._sidecar.settings.limits
        self._excess = self._sidecar.admit(self._client)
        if self._excess is not None and not self._sidecar.admit_to_refuse(self._client):
            self._client.finish()
            return
        # One too many is told so when it has said who it is, as PostgreSQL does: a driver that begins with an
        # SSLRequest would not understand an earlier error.
        patience = (
            limits.client_login_timeout if self._excess is None else min(limits.client_login_timeout, 5.0)
        )
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
            try:
                self._read_startup()
            except StartupRefused as exc:
                self._client.to_client(exc.answer)
                self._client.finish()
        elif self._exchange is not None and not self._exchange.done:
            self._read_password()
        elif len(self._data) > MAX_EARLY and self._client.transport is not None:
            self._client.transport.pause_reading()

    def _read_startup(self) -> None:
        if not self._begun and self._data:
            self._begun = True
            if self._data[0] == TLS_HANDSHAKE:
                self._encrypt_directly()
                return
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

    @property
    def _local(self) -> bool:
        """Whether the client came over a unix socket, where nobody can listen."""
        raw = self._client.transport.get_extra_info("socket") if self._client.transport else None
        return raw is not None and raw.family == socket.AF_UNIX

    def _encrypt_directly(self) -> None:
        """The client began with its ClientHello (libpq's ``sslnegotiation=direct``)."""
        context = self._sidecar.tls
        if context is None or self._local:
            log.info("direct TLS refused", reason="not configured" if context is None else "unix socket")
            self._drop()
            return
        hello, self._data = self._data, b""
        self._encrypted = self._upgrading = True
        self._sidecar.spawn(self._start_tls(context, hello))

    def _encrypt(self, request: EncryptionRequest) -> None:
        context = self._sidecar.tls
        if request.gss in self._asked or (self._encrypted and (request.gss or self._asked)):
            raise unsupported(*divmod(GSSENC_REQUEST if request.gss else SSL_REQUEST, 1 << 16))
        self._asked.add(request.gss)
        refused = request.gss or context is None or self._encrypted or self._local
        if refused:
            self._client.to_client(b"N")
        if self._data:
            raise unencrypted(request.gss)
        if refused or context is None:
            return
        self._encrypted = self._upgrading = True
        self._client.to_client(b"S")
        if self._client.transport is not None:
            # From here to the handshake nothing is read: what comes to us before its end has been decrypted.
            self._client.transport.pause_reading()
        self._sidecar.spawn(self._start_tls(context))

    async def _start_tls(self, context: ssl.SSLContext, hello: bytes = b"") -> None:
        client = self._client
        assert client.transport is not None
        try:
            transport = await accept(client.transport, client, context, hello)
        except OSError as exc:
            log.info("TLS handshake failed", error=str(exc))
            self._drop()
            return
        client.transport = transport
        if hello and not agreed_on_postgresql(transport):
            # Nobody can be led here who takes this port for another protocol's (ALPACA).
            log.info("direct TLS refused", reason="no ALPN")
            self._drop()
            return
        transport.set_write_buffer_limits(high=HIGH_WATER)
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
        if startup.negotiate:
            self._client.to_client(m.negotiate_version(startup.spoken, startup.unknown_options))
        if self._excess is not None:
            self._refuse(*self._excess)
            return
        if self._sidecar.settings.listen.tls_mode == "require" and not self._encrypted and not self._local:
            self._refuse_plain(startup)
            return
        if self._sidecar.settings.auth.method == "trust":
            self._begin()
            return
        known = self._sidecar.users.get(user)
        self._known_user = known is not None
        verifier = known.verifier if known is not None else Verifier.decoy(user, self._sidecar.decoy_key)
        self._exchange = ServerExchange(verifier)
        self._client.to_client(ServerExchange.request())

    def _refuse_plain(self, startup: Startup) -> None:
        assert self._client.transport is not None
        peer = self._client.transport.get_extra_info("peername") or ("?",)
        user = startup.parameters["user"]
        name = startup.parameters.get("database", user)
        self._sidecar.login_failed(name, "encryption")
        self._refuse(
            "28000",
            f'connection without TLS refused for host "{peer[0]}", user "{user}", database "{name}", no encryption',
            "Connect with sslmode=require or more.",
        )

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
        self._sidecar.authenticated(self._client)
        if self._timer is not None:
            # Waiting for the server has limits of its own.
            self._timer.cancel()
        work = self._replicate if self._startup.replication else self._lease
        self._task = self._sidecar.spawn(work(self._startup))

    async def _lease(self, startup: Startup) -> None:
        parameters = dict(startup.parameters)
        user = parameters.pop("user")
        name = parameters.pop("database", user)
        if name == CONSOLE_DATABASE and self._sidecar.console is not None:
            self.abandon()
            self._sidecar.console(self._client, user, self._long_key, self._data)
            return
        database = self._sidecar.databases.get(name)
        if database is None:
            self._refuse_database(name)
            return
        version = startup.version or database.settings.schema_version
        database.rouse()
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
        server: ServerConnection | None = None
        try:
            if database.shared:
                greeting = await database.greet(server_parameters, password)
            else:
                server = await database.primary.acquire(server_parameters, password)
                greeting = Greeting.of(server)
        except ServerUnavailable as exc:
            self._refuse_unreached(database, exc)
            return
        database.reached(None)
        self._welcome(database, server, greeting, user, version, server_parameters, password)

    def _refuse_database(self, name: str) -> None:
        known = ", ".join(sorted(self._sidecar.databases))
        self._sidecar.login_failed(name, "database")
        self._refuse("3D000", f'database "{name}" is not configured', f"This sidecar serves: {known}.")

    def _refuse_unreached(self, database: DatabaseRuntime, error: ServerUnavailable) -> None:
        database.stats.login_failures["server"] += 1
        database.reached(error.message if error.relayed is None else None)
        self._client.to_client(error.frame())
        self._client.finish()

    async def _replicate(self, startup: Startup) -> None:
        """A replication connection: a server connection of its own, and a relay between the two."""
        parameters = dict(startup.parameters)
        user = parameters.pop("user")
        name = parameters.pop("database", user)
        database = self._sidecar.databases.get(name)
        if database is None and startup.replication == "physical" and len(self._sidecar.databases) == 1:
            # It is of a whole server: PostgreSQL ignores which database a client names ("replication", often).
            (database,) = self._sidecar.databases.values()
        if database is None:
            self._refuse_database(name)
            return
        dsn = database.settings.primary
        login, password = self._server_login(database, user)
        parameters = {"user": login, "database": dsn.database, **parameters}
        parameters["replication"] = "true" if startup.replication == "physical" else "database"
        timeout = self._sidecar.settings.limits.server_connect_timeout
        try:
            server = await connect(dsn, parameters, password=password, timeout=timeout, ask_search_path=False)
        except ServerUnavailable as exc:
            self._refuse_unreached(database, exc)
            return
        client = self._client
        if client.transport is None or client.transport.is_closing():
            server.close()
            return
        if server.closed:
            self._refuse(
                "08006", f"the server {dsn.label} closed the connection unexpectedly", "Connect again."
            )
            return
        self.abandon()
        relay = Relay(self._sidecar, database, client.transport, server)
        _, relay.key = self._sidecar.register(relay)
        relay.key = self._long_key(relay.key)
        self._sidecar.hand_over(client, relay)
        client.to_client(self._greeting(Greeting.of(server).messages, relay.key))
        relay.start(self._data)

    def _long_key(self, key: tuple[int, bytes]) -> tuple[int, bytes]:
        """The cancel key as the client's protocol version knows it: long from 3.2 on."""
        assert self._startup is not None
        return (key[0], secrets.token_bytes(LONG_KEY)) if self._startup.spoken >= LONG_KEYS else key

    @staticmethod
    def _greeting(reported: bytes, key: tuple[int, bytes]) -> bytes:
        """What follows authentication."""
        return b"".join((m.AUTHENTICATION_OK, reported, m.backend_key_data(*key), m.ready_for_query(b"I")))

    def _server_login(self, database: DatabaseRuntime, user: str) -> tuple[str, str | None]:
        """As whom to log in at the server: the client's own user where its password is known, else the DSN's."""
        dsn = database.settings.primary
        known = self._sidecar.users.get(user)
        if user != dsn.user and known is not None and known.password is not None:
            return user, known.password
        return dsn.user, database.password

    def _welcome(
        self,
        database: DatabaseRuntime,
        server: ServerConnection | None,
        greeting: Greeting,
        user: str,
        version: str,
        parameters: dict[str, str],
        password: str | None,
    ) -> None:
        client = self._client
        if client.transport is None or client.transport.is_closing():
            if server is not None:
                database.primary.release(server, reusable=True)
            return
        self.abandon()
        client.establish(
            database, server, greeting, user=user, version=version, parameters=parameters, password=password
        )
        client.key = self._long_key(client.key)
        client.to_client(self._greeting(greeting.messages, client.key))
        if self._data:
            client.transport.resume_reading()
            client.data_received(self._data)
