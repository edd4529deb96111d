"""One client's connections: the socket from the client, one to the primary, one to a replica; only moves bytes.

Contract: implements :class:`asyncio.Protocol` for the client's side, ``proxy.backend.connection.Owner`` for the
servers' and ``proxy.session.ports.Port`` for the session, where every decision is made. A client that vanishes while
requests are under way leaves an *orphan*: its query is cancelled and its epoch is kept until the server has answered,
because a statement that still runs still acts under its epoch.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from typing import TYPE_CHECKING, Any, cast

import structlog

from proxy.backend.connection import ServerConnection
from proxy.backend.errors import QueryFailed, ServerUnavailable
from proxy.backend.pool import Key
from proxy.server.login import HIGH_WATER, Login
from proxy.session.core import Session
from proxy.session.ports import Target
from proxy.wire import messages as m
from proxy.wire.messages import ProtocolViolation

if TYPE_CHECKING:
    from proxy.server.database import DatabaseRuntime, Greeting
    from proxy.server.sidecar import Sidecar

log = structlog.get_logger(__name__)

PRIMARY, REPLICA = Target.PRIMARY, Target.REPLICA
ORPHAN_SECONDS = 30.0
CANCEL_AGAIN_SECONDS = 1.0
BLOCKED_CHECK = 0.02
UNFINISHED_WAIT = 0.005
"""Seconds after which requests go to the server though the end of their batch has not come."""
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
        self._lease_task: asyncio.Task[None] | None = None
        self._taken: ServerConnection | None = None
        """A primary connection that has yet to be brought to the session's settings."""
        self._server_parameters: dict[str, str] = {}
        self._pool_key: Key = ()
        self._connected = 0.0
        self._hurrying = False
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
                if not session.stuck:
                    return
                if session.waiting:
                    self._pause_while_blocked()
                elif not self._hurrying:
                    self._hurrying = True
                    self._loop.call_later(UNFINISHED_WAIT, self._hurry)
            elif self.login is not None:
                self.login.feed(data)
        except ProtocolViolation as exc:
            self.fail("08P01", str(exc))

    def _hurry(self) -> None:
        self._hurrying = False
        session = self.session
        if session is not None and not session.waiting:
            try:
                session.hurry()
            except ProtocolViolation as exc:
                self.fail("08P01", str(exc))

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
        if self.session is not None:
            self.session.send_client = _nowhere
        self.sidecar.forget(self)
        if self.login is not None:
            self.login.abandon()
        session = self.session
        if session is None:
            self._end(reusable=False)
        elif session.leaving and not session.drained and not session.closed and not session.unended:
            return
        elif session.flights and not session.closed:
            self._orphan(session)
        else:
            self._leave(session)

    def _leave(self, session: Session) -> None:
        """Nothing is under way any more: an open transaction is rolled back, the connections go to others."""
        reusable, rollback = session.clean, session.in_transaction
        session.close()
        self._end(reusable=reusable, rollback=rollback)

    def _orphan(self, session: Session) -> None:
        """The client is gone, its statement is not: cancel it and wait for the answer."""
        server = self._servers[session.target]
        if server is None or server.closed:
            session.close()
            self._end(reusable=False)
            return
        if session.unended:
            # Its Sync would commit what the client has not asked to commit; without one nothing of it can be.
            server.cancel()
            session.close()
            self._end(reusable=False)
            return
        server.resume_reading()
        if session.copying:
            server.write(_COPY_FAIL)
        server.write(m.SYNC_FRAME)
        session.abandon()
        self._cancel_until_over(session, server)
        self._loop.call_later(ORPHAN_SECONDS, self._orphan_over)

    def _cancel_until_over(self, session: Session, server: ServerConnection) -> None:
        """A request that arrives before its statement has begun cancels nothing, so there may be more than one."""
        if session.closed or server.closed:
            return
        server.cancel()
        self._loop.call_later(CANCEL_AGAIN_SECONDS, self._cancel_until_over, session, server)

    def _orphan_over(self) -> None:
        if self.session is not None and not self.session.closed:
            self.session.close()
            self._end(reusable=False)

    # -- an established session ------------------------------------------------------------------------------------

    def establish(
        self,
        database: DatabaseRuntime,
        server: ServerConnection | None,
        greeting: Greeting,
        *,
        user: str,
        version: str,
        parameters: dict[str, str],
        password: str | None,
    ) -> None:
        """The client is authenticated: from now on the session decides.

        ``server`` is its primary connection, None where servers are shared by transactions.
        """
        self.login = None
        self.database = database
        self.speaks = version
        self.user = user
        self._server_parameters = parameters
        self._password = password
        self._servers[0] = server
        self._pool_key = database.primary.key(parameters)
        number, self.key = self.sidecar.register(self, server.pid if server is not None else 0)
        self.session = Session(
            database.context(number, parameters, password),
            self,
            number=number,
            # Whom the server knows: its search_path says "$user" of that one.
            user=parameters["user"],
            version=version,
            parameters=greeting.parameters,
            search_path=greeting.search_path,
            max_message=min(self.sidecar.settings.limits.max_packet, m.MAX_MESSAGE),
        )
        self._connected = self.session.idle_since = time.monotonic()
        if self.transport is not None:
            self.session.send_client = self.transport.write
        if server is not None:
            server.attach(self, self._primary_data)
            self.session.send_primary = server.send
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

    def _end(self, *, reusable: bool, rollback: bool = False) -> None:
        """Give the server connections back, once."""
        database, self.database = self.database, None
        for task in (self._replica_task, self._lease_task):
            if task is not None:
                task.cancel()
        primary, replica = self._servers
        self._servers = [None, None]
        taken, self._taken = self._taken, None
        if self.session is not None:
            self.session.send_primary = _nowhere
        if database is None:
            return
        if primary is not None:
            database.primary.release(primary, reusable=reusable, rollback=rollback)
        if taken is not None:
            # The task that was to have it has been cancelled before it could begin.
            database.primary.release(taken, reusable=True)
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
            if self.session is None or self.session.blocked != "lease":
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
        if session is None or session.cancel_waiting() or not session.flights:
            return
        server = self._servers[session.target]
        if server is not None:
            await asyncio.shield(server.cancel())

    # -- Owner -----------------------------------------------------------------------------------------------------

    def _primary_data(self, data: bytes) -> None:
        """Bytes from the primary connection."""
        session = self.session
        if session is None or session.closed:
            return
        try:
            session.feed_server(PRIMARY, data)
        except ProtocolViolation as exc:
            self._out_of_step(self._servers[0], exc)
            return
        if self._gone:
            self._go_on_without_client(session)

    def _replica_data(self, data: bytes) -> None:
        """Bytes from the replica connection."""
        session = self.session
        if session is None or session.closed:
            return
        try:
            session.feed_server(REPLICA, data)
        except ProtocolViolation as exc:
            self._out_of_step(self._servers[1], exc)
            return
        if self._gone:
            self._go_on_without_client(session)

    def _out_of_step(self, server: ServerConnection | None, exc: ProtocolViolation) -> None:
        log.error("reply out of step", server=server.dsn.label if server else "", error=str(exc))
        self.fail("08P01", f"the server's reply could not be matched to a request: {exc}")

    def _go_on_without_client(self, session: Session) -> None:
        if session.copying:
            # The copy began after its client had gone; without CopyDone nothing of it can be committed.
            session.close()
            self._end(reusable=False)
        elif session.drained and not session.closed:
            self._leave(session)

    def server_lost(self, connection: ServerConnection) -> None:
        """A server connection is gone."""
        session = self.session
        if session is None or session.closed:
            return
        if connection is self._servers[1] and not (session.flights and session.target is Target.REPLICA):
            self._servers[1] = None
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

    def lease(self) -> bool:
        """Take a primary connection for a transaction, now or in :meth:`_wait_for_server`."""
        database, session = self.database, self.session
        if database is None or session is None or self._lease_task is not None:
            return False
        applied = session.settings.applied
        server = database.primary.take(self._pool_key, applied)
        if server is not None and (server.applied is applied or server.applied == applied):
            self._have(server, session)
            return True
        self._taken = server
        self._lease_task = self.sidecar.spawn(self._wait_for_server(database, session))
        return False

    def _have(self, server: ServerConnection, session: Session) -> None:
        self._servers[0] = server
        session.outbox.prepared[0] = server.prepared
        server.attach(self, self._primary_data)
        session.send_primary = server.send
        if self._choked:
            server.pause_reading()
        told = session.reported
        if server.parameters is not told:
            session.reported = server.parameters
            if server.parameters != told:
                for name, value in server.parameters.items():
                    if told.get(name) != value:
                        self.to_client(m.parameter_status(name, value))
                        session.settings.report(name, value)

    async def _wait_for_server(self, database: DatabaseRuntime, session: Session) -> None:
        """Wait for a primary connection and bring it to the session's settings."""
        pool = database.primary
        server, self._taken = self._taken, None
        try:
            if server is None:
                server = await pool.acquire(self._server_parameters, self._password)
            await _bring(server, session.settings.applied)
        except (ServerUnavailable, QueryFailed) as exc:
            if server is not None:
                pool.release(server, reusable=isinstance(exc, QueryFailed))
            self._lease_task = None
            if not session.closed:
                self._fail_lease(exc)
            return
        except BaseException:
            if server is not None:
                pool.release(server, reusable=False)
            raise
        self._lease_task = None
        if session.closed:
            pool.give(server)
            return
        self._have(server, session)
        session.on_leased()
        if self._paused:
            self._check_blocked()

    def _fail_lease(self, exc: ServerUnavailable | QueryFailed) -> None:
        if isinstance(exc, QueryFailed):
            self.fail("08000", f"the session's settings could not be restored on another connection: {exc}")
            return
        self.to_client(m.error_with_fields(exc.frame(), {"S": b"FATAL", "V": b"FATAL"}))
        assert self.session is not None
        self.session.close()
        self._end(reusable=False)
        self._close()

    def release(self, dirty: bool) -> None:
        """The transaction is over: others may have the primary connection."""
        server, session, database = self._servers[0], self.session, self.database
        if server is None or session is None or database is None:
            return
        self._servers[0] = None
        session.send_primary = _nowhere
        server.applied = session.settings.applied
        if dirty:
            database.primary.release(server, reusable=True)
        else:
            database.primary.give(server)

    def release_replica(self) -> None:
        """The read is over: others may have the replica connection."""
        server, session, database = self._servers[1], self.session, self.database
        if server is None or session is None or database is None or session.reading.replica is None:
            return
        self._servers[1] = None
        database.replicas[session.reading.replica].give(server)

    def reported(self, parameters: dict[str, str]) -> None:
        """The leased connection has reported a setting, and the client hears it."""
        server = self._servers[0]
        if server is not None:
            server.parameters = parameters

    def replica_ready(self, index: int) -> bool:
        """Whether the replica connection can be used now; if not, it is being connected or brought up to date."""
        session, server = self.session, self._servers[1]
        assert session is not None
        if self._replica_task is None:
            if server is None and session.shared and self.database is not None:
                server = self._take_replica(self.database, session, index)
            if server is not None and not server.closed and server.applied == session.settings.applied:
                return True
            self._replica_task = self.sidecar.spawn(self._prepare_replica(session, index))
        return False

    def _take_replica(
        self, database: DatabaseRuntime, session: Session, index: int
    ) -> ServerConnection | None:
        server = database.replicas[index].take(self._pool_key, session.settings.applied)
        if server is not None:
            session.reading.replica = index
            session.outbox.prepared[1] = server.prepared
            self._servers[1] = server
            server.attach(self, self._replica_data)
            if self._choked:
                server.pause_reading()
        return server

    async def _prepare_replica(self, session: Session, index: int) -> None:
        """Connect to a replica if need be, and replay the session's settings there."""
        database = self.database
        assert database is not None
        server = self._servers[1]
        try:
            if server is None:
                pool = database.replicas[index]
                server = await pool.acquire(self._server_parameters, self._password)
                if session.closed or self._gone:
                    pool.release(server, reusable=True)
                    return
                session.reading.replica = index
                session.outbox.prepared[1] = server.prepared
                self._servers[1] = server
            else:
                server.detach()
            await _bring(server, session.settings.applied)
            # Fails where nothing could be read: a standby cannot serve serializable transactions.
            await server.simple("SELECT 1")
            if not session.closed:
                server.attach(self, self._replica_data)
                if self._choked:
                    server.pause_reading()
                if session.shared:
                    self.release_replica()
        except (ServerUnavailable, QueryFailed) as exc:
            # What a replica refuses once it will refuse again; a failed connection may come back.
            session.settings.unknown |= isinstance(exc, QueryFailed) and not session.shared
            log.warning("replica connection not usable", database=database.name, error=str(exc))
            if server is not None:
                server.close()
            self._servers[1] = None
            session.replica_gone()
        finally:
            self._replica_task = None

    def make_way(self, database: str) -> None:
        """A statement needs that database for itself."""
        if self.database is not None:
            self.sidecar.make_way(self.database.settings.primary, database)

    def finish(self) -> None:
        """The client has said goodbye, and everything that can be answered was."""
        session = self.session
        if self._gone and session is not None and not session.closed and session.unended:
            self._orphan(session)
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

    def check_idle(self, now: float) -> None:
        """End a session that has been idle for longer than the limits allow; ``now`` is ``time.monotonic()``."""
        session, limits = self.session, self.sidecar.settings.limits
        if session is None or session.closed or not session.drained or session.waiting:
            return
        idle = now - session.idle_since
        if session.in_transaction:
            if 0 < limits.idle_transaction_timeout < idle:
                self.fail(
                    "25P03",
                    "terminating connection due to idle-in-transaction timeout",
                    "limits.idle_transaction_timeout in the sidecar's configuration sets it.",
                )
        elif 0 < limits.client_idle_timeout < idle:
            self.fail(
                "57P05",
                "terminating connection due to idle-session timeout",
                "limits.client_idle_timeout in the sidecar's configuration sets it.",
            )

    def describe(self) -> dict[str, Any]:
        """This client in /status and SHOW CLIENTS; times are seconds since the epoch."""
        session, transport = self.session, self.transport
        known: dict[str, Any] = {
            "user": self.user,
            "speaks": self.speaks,
            "in_transaction": session.in_transaction if session else False,
            "blocked": session.blocked if session else "",
        }
        if session is None or self.database is None or transport is None:
            return known
        started = session.flights[0].started if session.flights else None
        peer = transport.get_extra_info("peername")
        server = self._servers[session.target]
        tls = transport.get_extra_info("ssl_object")
        known |= {
            "id": session.number,
            "database": self.database.name,
            "address": peer[0] if isinstance(peer, tuple) else "unix",
            "port": peer[1] if isinstance(peer, tuple) else None,
            "state": self._state(session),
            "connected_at": _wall_clock(self._connected),
            "request_at": None if started is None else _wall_clock(started),
            "server_pid": None if server is None else server.pid,
            "pinned": sorted(session.effects.pins),
            "application_name": self._server_parameters.get("application_name"),
            "tls": tls.version() if tls is not None else None,
            "prepared_statements": len(session.outbox.statements),
        }
        return known

    @staticmethod
    def _state(session: Session) -> str:
        if session.blocked == "lease":
            return "waiting"
        if session.flights or session.waiting:
            return "active"
        return "idle in transaction" if session.in_transaction else "idle"


def _nowhere(data: bytes) -> None:
    """Where bytes for a client go that is gone."""


def _wall_clock(moment: float) -> float:
    """A moment of ``time.monotonic()`` in seconds since the epoch."""
    return time.time() - (time.monotonic() - moment)


async def _bring(server: ServerConnection, wanted: dict[str, str]) -> None:
    """Give an idle connection these settings, and no others beyond its startup parameters."""
    if server.applied == wanted:
        server.applied = wanted
        return
    # One text, so that all of it takes effect or nothing; a comment at a statement's end must not hide the next one.
    await server.simple("\n;".join((_RESET, *wanted.values()) if server.applied else wanted.values()))
    server.applied = wanted
