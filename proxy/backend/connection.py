"""One connection to a PostgreSQL server: login, our own queries while it is idle, raw bytes while a session has it.

Contract: :func:`connect` gives a connection that is logged in and idle, or raises ServerUnavailable. While *attached*,
every byte from the server goes to the owner unread; while idle, :meth:`ServerConnection.simple` runs a query of ours.
A connection that fails in any way is closed and never used again; whoever holds it hears of it once. Bytes that a
server sends before the TLS handshake are an error, never read as if they had come encrypted (CVE-2021-23222).
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Callable
from typing import Any, Protocol, cast

import structlog

from proxy.backend import tls
from proxy.backend.errors import QueryFailed, ServerUnavailable
from proxy.dsn import Dsn
from proxy.session.settings import NOTHING
from proxy.session.statements import Prepared
from proxy.wire import messages as m
from proxy.wire.framing import Framer
from proxy.wire.messages import ProtocolViolation
from proxy.wire.scram import AuthenticationFailed, ClientExchange, md5_response

log = structlog.get_logger(__name__)

_SSL_REQUEST = b"\x00\x00\x00\x08\x04\xd2\x16\x2f"
_REFUSED_BY_HBA = "28000"
_UNASKED = frozenset((m.PARAMETER_STATUS, m.NOTICE_RESPONSE, m.NOTIFICATION, m.ERROR_RESPONSE))
"""What a server may say at any time; after an error it closes the connection."""


def _nowhere(data: bytes) -> None:
    """Where bytes go before there is a connection."""


class Owner(Protocol):
    """Whoever a connection is attached to."""

    def server_lost(self, connection: ServerConnection) -> None: ...
    def server_writable(self, connection: ServerConnection, writable: bool) -> None: ...


class _Otherwise(Exception):
    """This attempt failed in a way in which the next (with or without TLS) may succeed."""

    def __init__(self, error: ServerUnavailable) -> None:
        super().__init__(error.message)
        self.error = error


class ServerConnection(asyncio.Protocol):
    """See the module's docstring; made by :func:`connect`."""

    def __init__(self, dsn: Dsn, parameters: dict[str, str], password: str | None) -> None:
        self.dsn = dsn
        self.startup_parameters = parameters
        self.parameters: dict[str, str] = {}
        """What the server reported by ParameterStatus."""
        self.greeting: dict[str, str] = {}
        """What it had reported when the login was over."""
        self.search_path = ""
        """The session's default ``search_path``: reported from PostgreSQL 18 on, asked for before."""
        self.pid = 0
        self.secret = b""
        """The cancel key: four bytes, from protocol 3.2 on up to 256."""
        self.minor = dsn.minor
        """The minor version of protocol 3 that is spoken here."""
        self.encrypted = False
        self.closed = False
        self.idle_since = 0.0
        self.applied = NOTHING
        """Session settings that hold here beyond the startup parameters, as the SET statements that made them."""
        self.prepared = Prepared()
        """What is prepared here (connections that are shared by transactions)."""
        self._password = password
        self._transport: asyncio.Transport | None = None
        self.send: Callable[[bytes], None] = _nowhere
        """Writes bytes, as long as the connection is attached and not lost; see :meth:`write` for other times."""
        self._owner: Owner | None = None
        self._sink: Callable[[bytes], None] | None = None
        self._paused = False
        self._framer = Framer(allowed=None)
        self._loop = asyncio.get_running_loop()
        self._ready: asyncio.Future[None] = self._loop.create_future()
        self._answer: asyncio.Future[bytes | None] | None = None
        self._ssl_answer: asyncio.Future[bytes] | None = None
        self._collected: list[bytes] = []
        self._failed: bytes | None = None
        self._scram: ClientExchange | None = None
        self._authenticated = False
        self.cancel_lost = False
        self.cancel_pending = False
        """Whether a cancel request may still reach the server: see :meth:`settled`."""
        self._cancels: set[asyncio.Task[None]] = set()
        self.on_closed: Callable[[ServerConnection], None] | None = None

    # -- asyncio.Protocol ------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self.send = self._transport.write

    def data_received(self, data: bytes) -> None:
        sink = self._sink
        if sink is not None:
            sink(data)
            return
        if self._ssl_answer is not None:
            if not self._ssl_answer.done():
                self._ssl_answer.set_result(data)
                # What comes after the answer belongs to the handshake, or is an attack: it stays unread till then.
                self.pause_reading()
            return
        try:
            for frame in self._framer.feed(data):
                self._on_frame(frame)
        except (ProtocolViolation, AuthenticationFailed) as exc:
            self._break(ServerUnavailable("08P01", f"the server {self.dsn.label} broke the protocol: {exc}"))

    def connection_lost(self, exc: Exception | None) -> None:
        self.closed = True
        reason = f"the server {self.dsn.label} closed the connection" + (f": {exc}" if exc else "")
        self._break(
            ServerUnavailable("08006", reason, hint="See the server's log; the sidecar connects again.")
        )
        owner, self._owner, self._sink = self._owner, None, None
        if owner is not None:
            owner.server_lost(self)
        if self.on_closed is not None:
            self.on_closed(self)

    def pause_writing(self) -> None:
        if self._owner is not None:
            self._owner.server_writable(self, False)

    def resume_writing(self) -> None:
        if self._owner is not None:
            self._owner.server_writable(self, True)

    # -- attached --------------------------------------------------------------------------------------------------

    def attach(self, owner: Owner, sink: Callable[[bytes], None]) -> None:
        """From now on every byte goes to ``sink``, and ``owner`` hears of the rest."""
        self._owner = owner
        self._sink = sink

    def detach(self) -> None:
        """The connection is ours again; the caller has seen the last ReadyForQuery."""
        self._owner = self._sink = None
        if self._paused:
            self.resume_reading()

    @property
    def local_address(self) -> Any:
        """Our end of the socket; None before it is connected."""
        return None if self._transport is None else self._transport.get_extra_info("sockname")

    def write(self, data: bytes) -> None:
        """Send bytes; silently nothing once the connection is lost (the owner has been told)."""
        if self._transport is not None and not self.closed:
            self._transport.write(data)

    def pause_reading(self) -> None:
        """Stop reading from the server: its client does not keep up."""
        if self._transport is not None and not self.closed:
            self._paused = True
            with contextlib.suppress(RuntimeError):
                self._transport.pause_reading()

    def resume_reading(self) -> None:
        """Read again."""
        if self._paused and self._transport is not None and not self.closed:
            self._paused = False
            with contextlib.suppress(RuntimeError):
                self._transport.resume_reading()

    def close(self) -> None:
        """Say goodbye and close."""
        if self._transport is not None and not self.closed:
            self.closed = True
            self._owner = self._sink = None
            if not self._transport.is_closing():
                self._transport.write(m.TERMINATE_FRAME)
            self._transport.close()

    def cancel(self) -> asyncio.Task[None]:
        """Cancel what runs here now. Until the server has taken the request, the connection is nobody else's."""
        task = self._loop.create_task(self._cancel())
        self._cancels.add(task)
        self.cancel_pending = True
        task.add_done_callback(self._cancels.discard)
        return task

    async def _cancel(self) -> None:
        try:
            await cancel(self.dsn, self.pid, self.secret, encrypted=self.encrypted)
        except (OSError, TimeoutError, ServerUnavailable):
            # It may arrive late, and hit the next client's statement.
            self.cancel_lost = True

    async def settled(self) -> bool:
        """Wait for cancel requests under way; False if one of them may still arrive."""
        while self._cancels:
            await asyncio.wait(self._cancels)
        self.cancel_pending = self.cancel_lost
        return not self.cancel_lost

    # -- our own queries -------------------------------------------------------------------------------------------

    async def roundtrip(self, request: bytes) -> list[bytes]:
        """Send messages that end in one ReadyForQuery; the frames that came before it.

        Raises QueryFailed if one of them is an error (the connection stays usable), ServerUnavailable if it is lost.
        """
        if self.closed or self._answer is not None:
            raise ServerUnavailable("08006", f"the connection to {self.dsn.label} is not usable")
        self._collected, self._failed = [], None
        self._answer = self._loop.create_future()
        self.write(request)
        try:
            await self._answer
        except asyncio.CancelledError:
            # The answer is still under way: whoever had the connection next would take it for his own.
            self.close()
            raise
        finally:
            self._answer = None
        if self._failed is not None:
            raise QueryFailed(self._failed, self._collected)
        return self._collected

    async def simple(self, sql: str) -> list[bytes]:
        """Run a simple query of ours."""
        return await self.roundtrip(m.query(sql.encode()))

    # -- login -----------------------------------------------------------------------------------------------------

    async def login(self, way: tls.Way) -> None:
        """TLS if wanted, then startup and authentication."""
        if way is tls.Way.ASK:
            await self._ask_for_tls()
        elif way is tls.Way.DIRECT:
            await self._encrypt()
        self.write(m.startup(self.startup_parameters, self.minor))
        try:
            await self._ready
        except ServerUnavailable as exc:
            if exc.relayed is not None and exc.sqlstate == _REFUSED_BY_HBA and not self._authenticated:
                raise _Otherwise(exc) from exc
            raise

    async def _ask_for_tls(self) -> None:
        self._ssl_answer = self._loop.create_future()
        self.write(_SSL_REQUEST)
        answer = await self._ssl_answer
        self._ssl_answer = None
        if answer == b"S":
            await self._encrypt()
        elif answer[:1] in (b"S", b"N") and len(answer) > 1:
            raise ServerUnavailable(
                "08P01",
                f"the server {self.dsn.label} sent unencrypted data after its answer to an SSLRequest",
                hint="Somebody between the sidecar and the server may have put it there.",
            )
        elif answer == b"N":
            if self.dsn.sslmode != "prefer":
                raise ServerUnavailable(
                    "08001",
                    f"the server {self.dsn.label} does not support TLS, but sslmode is {self.dsn.sslmode}",
                    hint="Enable ssl on the server, or set sslmode=prefer in the connection string.",
                )
            self.resume_reading()
        elif answer[:1] == b"E":
            # Its text is not shown: nobody vouches for it.
            raise _Otherwise(
                ServerUnavailable(
                    "08001", f"the server {self.dsn.label} answered an SSLRequest with an error"
                )
            )
        else:
            raise ServerUnavailable("08P01", f"the server {self.dsn.label} answered garbage to an SSLRequest")

    async def _encrypt(self) -> None:
        assert self._transport is not None
        context = tls.context(self.dsn)
        try:
            transport = await self._loop.start_tls(
                self._transport, self, context, server_hostname=tls.server_name(self.dsn)
            )
        except (OSError, ValueError) as exc:
            raise _Otherwise(
                ServerUnavailable(
                    "08001",
                    f"no TLS with the server {self.dsn.label}: {getattr(exc, 'strerror', None) or exc}",
                    hint="Check sslmode and sslrootcert in the connection string and the server's certificate.",
                )
            ) from exc
        self._transport = cast(asyncio.Transport, transport)
        self.send = self._transport.write
        # The handshake made it read again.
        self._paused = False
        self.encrypted = True
        agreed = self._transport.get_extra_info("ssl_object").selected_alpn_protocol()
        if self.dsn.sslnegotiation == "direct" and agreed != tls.ALPN:
            raise ServerUnavailable(
                "08001", f"the server {self.dsn.label} takes direct TLS connections, but not for PostgreSQL"
            )

    def _on_frame(self, frame: bytes) -> None:
        kind = frame[0]
        asked = self._answer is not None and not self._answer.done()
        if self._ready.done() and not asked and kind not in _UNASKED:
            raise ProtocolViolation(f"it says {chr(kind)!r} unasked")
        if kind == m.READY_FOR_QUERY:
            if not self._ready.done():
                if not self._authenticated:
                    raise ProtocolViolation("it is ready before it let us in")
                self.greeting = self.parameters
                self._ready.set_result(None)
            elif self._answer is not None and not self._answer.done():
                self._answer.set_result(None)
        elif kind == m.ERROR_RESPONSE:
            if not self._ready.done():
                fields = m.error_fields(frame)
                text = fields.get("M", b"login failed").decode("utf-8", "replace")
                self._break(ServerUnavailable(fields.get("C", b"08004").decode(), text, relayed=frame))
            elif self._failed is None:
                self._failed = frame
        elif kind == m.PARAMETER_STATUS:
            name, value = m.read_parameter_status(frame)
            # Never changed in place: sessions remember by the very object what their clients were told.
            self.parameters = {**self.parameters, name: value}
        elif kind == m.BACKEND_KEY_DATA:
            self.pid, self.secret = m.read_backend_key_data(frame)
        elif kind == m.NEGOTIATE_VERSION and not self._authenticated:
            self._negotiate(frame)
        elif kind == m.AUTHENTICATION:
            self._authenticate(int.from_bytes(frame[5:9], "big"), frame[9:])
        elif self._answer is not None:
            self._collected.append(frame)

    def _negotiate(self, frame: bytes) -> None:
        """The server speaks an older version than the one asked for."""
        version, unknown = m.read_negotiate_version(frame)
        minor = version & 0xFFFF
        if unknown or version >> 16 != 3 or minor == 1 or minor >= self.minor:
            raise ProtocolViolation("it negotiates a protocol version or option that was not asked for")
        self.minor = minor

    def _authenticate(self, method: int, body: bytes) -> None:
        if self._authenticated:
            raise ProtocolViolation("it asks for authentication once more")
        if method == 0:
            if self._scram is not None and not self._scram.done:
                raise AuthenticationFailed("it ended the SCRAM exchange without having proved its identity")
            self._authenticated = True
            return
        if method == 12 and self._scram is not None:
            self._scram.verify(body)
            return
        if self._password is None:
            raise AuthenticationFailed(
                "it asks for a password and the connection string has none (PGPASSWORD and ~/.pgpass were tried too)"
            )
        user = self.startup_parameters["user"]
        if method == 3:
            self.write(m.frame(m.PASSWORD, self._password.encode() + b"\0"))
        elif method == 5:
            self.write(md5_response(user, self._password, body[:4]))
        elif method == 10:
            self._scram = ClientExchange(self._password)
            self.write(self._scram.first(body))
        elif method == 11 and self._scram is not None:
            self.write(self._scram.final(body))
        else:
            raise AuthenticationFailed(
                f"it asks for authentication method {method}, which dualwire does not know"
            )

    def _break(self, error: ServerUnavailable) -> None:
        for future in (self._ready, self._answer, self._ssl_answer):
            if future is not None and not future.done():
                future.set_exception(error)
                # Nobody may be waiting any more (a login that timed out): that is no unhandled error.
                future.exception()
        if not self.closed and self._transport is not None:
            self.closed = True
            self._transport.abort()


async def _search_path(connection: ServerConnection) -> str:
    reported = connection.parameters.get("search_path")
    if reported is not None:
        return reported
    for message in await connection.simple("SHOW search_path"):
        if message[0] == m.DATA_ROW:
            # One column: the count, its length, its text.
            return message[11:].decode("utf-8", "replace")
    return ""


async def connect(
    dsn: Dsn,
    parameters: dict[str, str],
    *,
    password: str | None,
    timeout: float,
    ask_search_path: bool = True,
) -> ServerConnection:
    """A connection that is logged in and idle. ``parameters`` are the startup packet's; ``timeout`` is in seconds."""
    try:
        async with asyncio.timeout(timeout):
            connection = await _connect(dsn, parameters, password)
            try:
                if ask_search_path:
                    connection.search_path = await _search_path(connection)
            except BaseException:
                connection.close()
                raise
    except TimeoutError as exc:
        raise ServerUnavailable(
            "08001",
            f"the server {dsn.label} did not answer within {timeout:g} s",
            hint="Check that it runs and that the sidecar's connection string is right.",
        ) from exc
    except OSError as exc:
        raise ServerUnavailable(
            "08001",
            f"cannot connect to the server {dsn.label}: {exc.strerror or exc}",
            hint="Check that it runs and that the sidecar's connection string is right.",
        ) from exc
    return connection


async def _connect(dsn: Dsn, parameters: dict[str, str], password: str | None) -> ServerConnection:
    """One attempt for each way that sslmode allows, until one succeeds."""
    failed: ServerUnavailable | None = None
    for way in tls.ways(dsn):
        connection = ServerConnection(dsn, parameters, password)
        try:
            await _open(connection)
            await connection.login(way)
            return connection
        except _Otherwise as exc:
            connection.close()
            log.debug("attempt failed", server=dsn.label, way=way.value, error=exc.error.message)
            # What the server says of the login is worth more than why there was no TLS.
            if failed is None or exc.error.relayed is not None:
                failed = exc.error
        except ServerUnavailable as exc:
            connection.close()
            if failed is not None and exc.relayed is None:
                raise failed from exc
            raise
        except BaseException:
            connection.close()
            raise
    assert failed is not None
    raise failed


async def _open(connection: ServerConnection) -> None:
    loop = asyncio.get_running_loop()
    dsn = connection.dsn
    if dsn.is_unix:
        await loop.create_unix_connection(lambda: connection, dsn.socket_path)
        return
    transport, _ = await loop.create_connection(lambda: connection, dsn.host, dsn.port)
    raw = transport.get_extra_info("socket")
    if raw is not None:
        raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)


async def cancel(dsn: Dsn, pid: int, secret: bytes, timeout: float = 5.0, *, encrypted: bool = False) -> None:
    """Send a CancelRequest for a backend, and wait until the server has taken it.

    ``encrypted`` says whether the connection that it is for was: then the key is not sent in the clear either.
    """
    async with asyncio.timeout(timeout):
        if dsn.is_unix:
            reader, writer = await asyncio.open_unix_connection(dsn.socket_path)
        else:
            reader, writer = await asyncio.open_connection(dsn.host, dsn.port)
        try:
            if encrypted:
                if dsn.sslnegotiation != "direct":
                    writer.write(_SSL_REQUEST)
                    if await reader.read(1) != b"S":
                        raise ConnectionError("no TLS for a cancel request")
                await writer.start_tls(tls.context(dsn), server_hostname=tls.server_name(dsn))
            writer.write(m.cancel_request(pid, secret))
            await writer.drain()
            await reader.read(1)
        finally:
            writer.close()
