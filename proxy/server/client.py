"""One client's connections: the socket from the client, one to the primary, one to a replica; only moves bytes.

Contract: implements :class:`asyncio.Protocol` for the client's side, ``proxy.backend.connection.Owner`` for the
servers' and ``proxy.session.ports.Port`` for the session, where every decision is made. A client that vanishes while
requests are under way leaves an *orphan*: its query is cancelled and its epoch is kept until the server has answered,
because a statement that still runs still acts under its epoch.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any, cast

import structlog

from proxy.backend.connection import ServerConnection
from proxy.backend.errors import QueryFailed, ServerUnavailable
from proxy.server.login import HIGH_WATER, Login
from proxy.session.core import Session
from proxy.session.ports import Target
from proxy.wire import messages as m
from proxy.wire.messages import ProtocolViolation

if TYPE_CHECKING:
    from proxy.server.database import DatabaseRuntime
    from proxy.server.sidecar import Sidecar

log = structlog.get_logger(__name__)

ORPHAN_SECONDS = 30.0
BLOCKED_CHECK = 0.02
LINGER_SECONDS = 30.0
"""How long a closing connection waits for a client that does not read."""
_RESET = "SET SESSION AUTHORIZATION DEFAULT; RESET ALL"
_COPY_FAIL = m.frame(m.COPY_FAIL, b"the client has gone\0")


class ClientConnection(asyncio.Protocol):
    """See the module's docstring."""

    def __init__(self, sidecar: Sidecar) -> None:
        self.sidecar = sidecar
        self.login: Login | None = Login(self)
        self.session: Session | None = None
        self.database: DatabaseRuntime | None = None
        self.key: tuple[int, bytes] = (0, b"")
        self.speaks = "auto"
        self.user: str | None = None
        self.transport: asyncio.Transport | None = None
        self._servers: list[ServerConnection | None] = [None, None]
        self._replica_task: asyncio.Task[None] | None = None
        self._server_parameters: dict[str, str] = {}
        self._password: str | None = None
        self._gone = False
        self._paused = False
        self._choked = False
        """The client does not keep up with what its servers send."""
        self._flooded = False
        """A server does not keep up with what the client sends."""
        self._loop = asyncio.get_running_loop()

    # -- the client's socket ---------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self.transport.set_write_buffer_limits(high=HIGH_WATER)
        if self.login is not None:
            self.login.connected()

    def data_received(self, data: bytes) -> None:
        session = self.session
        try:
            if session is not None:
                session.feed(data)
                if session.waiting:
                    self._pause_while_blocked()
            elif self.login is not None:
                self.login.feed(data)
        except ProtocolViolation as exc:
            self.fail("08P01", f"invalid message: {exc}")

    def eof_received(self) -> bool:
        return False

    def pause_writing(self) -> None:
        self._choked = True
        for server in self._servers:
            if server is not None:
                server.pause_reading()

    def resume_writing(self) -> None:
        self._choked = False
        for server in self._servers:
            if server is not None:
                server.resume_reading()

    def connection_lost(self, exc: Exception | None) -> None:
        self._gone = True
        self.sidecar.forget(self)
        if self.login is not None:
            self.login.abandon()
        session = self.session
        if session is None:
            self._end(reusable=False)
        elif session.leaving and not session.drained and not session.closed:
            return
        elif session.flights and not session.closed:
            self._orphan(session)
        else:
            reusable = session.clean
            session.close()
            self._end(reusable=reusable)

    def _orphan(self, session: Session) -> None:
        """The client is gone, its statement is not: cancel it and wait for the answer."""
        server = self._servers[session.target]
        if server is None or server.closed:
            session.close()
            self._end(reusable=False)
            return
        server.resume_reading()
        if session.copying:
            server.write(_COPY_FAIL)
        server.write(m.SYNC_FRAME)
        session.abandon()
        server.cancel()
        self._loop.call_later(ORPHAN_SECONDS, self._orphan_over)

    def _orphan_over(self) -> None:
        if self.session is not None and not self.session.closed:
            self.session.close()
            self._end(reusable=False)

    # -- an established session ------------------------------------------------------------------------------------

    def establish(
        self,
        database: DatabaseRuntime,
        server: ServerConnection,
        *,
        user: str,
        version: str,
        parameters: dict[str, str],
        password: str | None,
    ) -> None:
        """The client is authenticated and has its primary connection: from now on the session decides."""
        self.login = None
        self.database = database
        self.speaks = version
        self.user = user
        self._server_parameters = parameters
        self._password = password
        self._servers[Target.PRIMARY] = server
        number, self.key = self.sidecar.register(self)
        self.session = Session(
            database.context(number, parameters, password),
            self,
            number=number,
            # Whom the server knows: its search_path says "$user" of that one.
            user=parameters["user"],
            version=version,
            parameters=server.parameters,
            search_path=server.search_path,
            max_message=min(self.sidecar.settings.limits.max_packet, m.MAX_MESSAGE),
        )
        server.attach(self)
        database.stats.clients_total += 1
        database.stats.clients[self.side] += 1
        self._counted = self.side

    @property
    def side(self) -> str:
        """What the client speaks, for counting: ``old``, ``new`` or ``auto``."""
        if self.speaks == "auto" or self.database is None:
            return "auto"
        routing = self.database.hub.routing
        return "new" if routing.new is not None and self.speaks == routing.new else "old"

    def recount(self) -> None:
        """The routing changed: a pinned version that was new may now be the only one."""
        if self.session is not None and self.database is not None and self._counted != self.side:
            self.database.stats.clients[self._counted] -= 1
            self._counted = self.side
            self.database.stats.clients[self._counted] += 1

    def _end(self, *, reusable: bool) -> None:
        """Give the server connections back, once."""
        database, self.database = self.database, None
        if self._replica_task is not None:
            self._replica_task.cancel()
        primary, replica = self._servers
        self._servers = [None, None]
        if database is None:
            return
        if primary is not None:
            database.primary.release(primary, reusable=reusable)
        session = self.session
        if replica is not None and session is not None and session.reading.replica is not None:
            clean = not len(session.queues[Target.REPLICA])
            database.replicas[session.reading.replica].release(replica, reusable=clean)
        elif replica is not None:
            replica.close()
        if session is not None:
            database.stats.clients[self._counted] -= 1
            database.forget(session.number)
            self.sidecar.unregister(self)

    def _pause_while_blocked(self) -> None:
        """Read no more from a client that is ahead of what can be decided."""
        if not self._paused and self.transport is not None and not self.transport.is_closing():
            self._paused = True
            self._read_or_not()
            self._loop.call_later(BLOCKED_CHECK, self._check_blocked)

    def _check_blocked(self) -> None:
        session = self.session
        if self.transport is None or self.transport.is_closing() or session is None or session.closed:
            return
        if session.waiting:
            self._loop.call_later(BLOCKED_CHECK, self._check_blocked)
            return
        self._paused = False
        self._read_or_not()

    def _read_or_not(self) -> None:
        """Read from the client unless it is ahead of our decisions or of a server."""
        if self.transport is None or self.transport.is_closing():
            return
        with contextlib.suppress(RuntimeError):
            if self._paused or self._flooded:
                self.transport.pause_reading()
            else:
                self.transport.resume_reading()

    async def cancel(self) -> None:
        """Cancel what the client's session is doing now, on the server where it does it."""
        session = self.session
        if session is None or not session.flights:
            return
        server = self._servers[session.target]
        if server is not None:
            await asyncio.shield(server.cancel())

    # -- Owner -----------------------------------------------------------------------------------------------------

    def server_data(self, connection: ServerConnection, data: bytes) -> None:
        """Bytes from one of the servers."""
        session = self.session
        if session is None or session.closed:
            return
        target = Target.PRIMARY if connection is self._servers[Target.PRIMARY] else Target.REPLICA
        try:
            session.feed_server(target, data)
        except ProtocolViolation as exc:
            log.error("reply out of step", server=connection.dsn.label, error=str(exc))
            self.fail("08P01", f"the server's reply could not be matched to a request: {exc}")
            return
        if self._gone and session.copying:
            # The copy began after its client had gone; without CopyDone nothing of it can be committed.
            session.close()
            self._end(reusable=False)
        elif self._gone and session.drained and not session.closed:
            reusable = session.clean
            session.close()
            self._end(reusable=reusable)

    def server_lost(self, connection: ServerConnection) -> None:
        """A server connection is gone."""
        session = self.session
        if session is None or session.closed:
            return
        if connection is self._servers[Target.REPLICA] and not (
            session.flights and session.target is Target.REPLICA
        ):
            self._servers[Target.REPLICA] = None
            session.replica_gone()
            return
        if session.saw_fatal:
            # The client has been told; a dead server acts under no epoch.
            session.close()
            self._end(reusable=False)
            self._close()
        else:
            self.fail(
                "08006",
                f"the server {connection.dsn.label} closed the connection unexpectedly",
                "Connect again; an open transaction was rolled back.",
            )

    def server_writable(self, connection: ServerConnection, writable: bool) -> None:
        """A server does (not) keep up with what the client sends."""
        self._flooded = not writable
        self._read_or_not()

    # -- Port ------------------------------------------------------------------------------------------------------

    def to_client(self, data: bytes) -> None:
        """Bytes for the client."""
        if self.transport is not None and not self._gone:
            self.transport.write(data)

    def to_server(self, target: Target, data: bytes) -> None:
        """Bytes for one of the servers."""
        server = self._servers[target]
        if server is not None:
            server.write(data)

    def replica_ready(self, index: int) -> bool:
        """Whether the replica connection can be used now; if not, it is being connected or brought up to date."""
        session, server = self.session, self._servers[Target.REPLICA]
        assert session is not None
        if self._replica_task is None:
            if server is not None and not server.closed and server.applied == session.settings.applied:
                return True
            self._replica_task = self.sidecar.spawn(self._prepare_replica(session, index))
        return False

    async def _prepare_replica(self, session: Session, index: int) -> None:
        """Connect to a replica if need be, and replay the session's settings there."""
        database = self.database
        assert database is not None
        server = self._servers[Target.REPLICA]
        try:
            if server is None:
                pool = database.replicas[index]
                server = await pool.acquire(self._server_parameters, self._password)
                if session.closed or self._gone:
                    pool.release(server, reusable=True)
                    return
                session.reading.replica = index
                self._servers[Target.REPLICA] = server
            else:
                server.detach()
            wanted = dict(session.settings.applied)
            if server.applied and server.applied != wanted:
                await server.simple(_RESET)
            for text in wanted.values():
                await server.simple(text)
            # Fails where nothing could be read: a standby cannot serve serializable transactions.
            await server.simple("SELECT 1")
            server.applied = wanted
            if not session.closed:
                server.attach(self)
                if self._choked:
                    server.pause_reading()
        except (ServerUnavailable, QueryFailed) as exc:
            # What a replica refuses once it will refuse again; a failed connection may come back.
            session.settings.unknown |= isinstance(exc, QueryFailed)
            log.warning("replica connection not usable", database=database.name, error=str(exc))
            if server is not None:
                server.close()
            self._servers[Target.REPLICA] = None
            session.replica_gone()
        finally:
            self._replica_task = None

    def finish(self) -> None:
        """The client has said goodbye."""
        self._close()

    def fail(self, sqlstate: str, message: str, hint: str = "") -> None:
        """Tell the client why, and close."""
        self.to_client(m.error_response(sqlstate, message, hint=hint, severity="FATAL"))
        session = self.session
        if session is not None and not session.closed:
            session.close()
            self._end(reusable=False)
        self._close()

    def _close(self) -> None:
        if self.transport is not None and not self.transport.is_closing():
            self.transport.close()
            if self.transport.get_write_buffer_size():
                self._loop.call_later(LINGER_SECONDS, self.transport.abort)

    # -- shutdown --------------------------------------------------------------------------------------------------

    @property
    def busy(self) -> bool:
        """Whether the client has a statement or a transaction under way."""
        session = self.session
        return session is not None and (bool(session.flights) or session.in_transaction or session.waiting)

    def shut_down(self) -> None:
        """The sidecar stops: end this session as PostgreSQL ends one."""
        self.fail("57P01", "terminating connection because the sidecar is shutting down", "Connect again.")

    def describe(self) -> dict[str, Any]:
        """This client in /status."""
        session = self.session
        return {
            "user": self.user,
            "speaks": self.speaks,
            "in_transaction": session.in_transaction if session else False,
            "blocked": session.blocked if session else "",
        }
