"""One client's session: batches in, routing and rewriting decisions made, bytes out to one of two servers.

Contract
--------
Sans-IO: the shell feeds client bytes (:meth:`Session.feed`) and server bytes (:meth:`Session.feed_server`) and gets
calls on its :class:`~proxy.session.ports.Port`. Nothing is sent to a server before its batch (up to Sync, Flush, Query
or FunctionCall) is complete and decided; batches are decided strictly one after the other. A session is *blocked* while
a decision needs something that takes time: the verdict of the prober, the end of a hold, or replies still under way
from the other server. Invariants: one server at a time has requests in flight; a batch is decided under one epoch,
which it has entered before its first byte is sent and leaves when its ReadyForQuery has come.

On servers that are shared by transactions (``context.names`` is set) a session *leases* its primary connection from the
port when a batch is about to be sent, and gives it back when the transaction is over and nothing pins it.
"""

from __future__ import annotations

import functools
from collections import deque
from collections.abc import Callable
from typing import Any, Final, Literal, final

from proxy.rewrite.plan import Plan, Refusal
from proxy.session.context import Context, Flight, Term
from proxy.session.cure import Cure
from proxy.session.effects import FAILED, IDLE, Effects
from proxy.session.fast import harmless_batch, pass_own, pass_shared
from proxy.session.listener import ServerReplies
from proxy.session.outbox import PLAIN, Outbox
from proxy.session.ports import Port, Target, Verdict
from proxy.session.reading import Reading
from proxy.session.replies import PLAIN_SYNC, Reply, ReplyQueue
from proxy.session.sending import ENDS, choose, send
from proxy.session.settings import DEFAULT_SEARCH_PATH, SessionSettings
from proxy.session.spoken import Spoken
from proxy.session.temporary import Temporary
from proxy.session.work import Large, Scope, Unplanned, study
from proxy.wire import messages as m
from proxy.wire.framing import Framer

MAX_BATCH: Final = 65_536
"""Bytes of an unfinished batch that are held back before it is decided as it stands."""
_COPY: Final = (m.COPY_DATA, m.COPY_DONE, m.COPY_FAIL)
_CANCELLED: Final = m.error_response("57014", "canceling statement due to user request")


@final
class Session:
    """See the module's docstring. ``version`` is what the client asked for: a version's name or ``auto``."""

    def __init__(
        self,
        context: Context,
        port: Port,
        *,
        number: int,
        user: str,
        version: str,
        parameters: dict[str, str],
        search_path: str = DEFAULT_SEARCH_PATH,
        max_message: int = m.MAX_MESSAGE,
    ) -> None:
        self.context = context
        self.port = port
        self.send_client: Callable[[bytes], None] = port.to_client
        self.send_primary: Callable[[bytes], None] = functools.partial(port.to_server, Target.PRIMARY)
        """The port's own; the shell puts shorter ways in their place."""
        self.number = number
        self.user = user
        self.settings = SessionSettings(user, parameters, search_path)
        self.temporary = Temporary(self.settings)
        self.status = IDLE
        self.shared = context.names is not None
        self.leased = not self.shared
        """Whether the primary connection is at hand."""
        self.outbox = Outbox(context.stats, self.settings, context.names)
        self.effects = Effects(self.settings, context.stats, self.shared)
        self.queues: list[ReplyQueue] = [ReplyQueue(ServerReplies(self, target)) for target in Target]
        self.target = Target.PRIMARY
        self.reading = Reading(context.reads, self.settings, user)
        self.flights: deque[Flight] = deque()
        self.copying = False
        self.copied = False
        """Data was sent since the server asked for it."""
        self.copy_doubt = False
        """A Sync was sent behind COPY data: should the copy fail, nobody knows whether it is answered."""
        self.blocked: Literal["", "plan", "probe", "hold", "drain", "lease", "cure"] = ""
        self._planned: dict[Large, Plan] = {}
        """The plans of large texts in the batch that is being decided."""
        self._wanted: Large | None = None
        """The large text whose plan the session waits for."""
        self._withdraw: Callable[[], None] = _nothing
        self.closed = False
        self.leaving = False
        """The client has said goodbye, and waits for nothing."""
        self.saw_fatal = False
        """The server has said why it closes the connection."""
        self.touching = False
        self.idle_since = 0.0
        """When the client was last answered (seconds of ``context.clock``)."""
        self.cure = Cure(self, self.outbox)
        self.tried: dict[tuple[Any, ...], Verdict] = {}
        """What was tried on the primary connection for the batch that is being decided, up to its end."""
        self.reported = parameters
        """The settings that the client was told of; never changed in place."""
        self._lease_began = (self.reported, self.settings.applied)
        self.abandoned = False
        """The client is gone."""
        self.quiet = False
        """The client has heard nothing since the batch under way was sent."""
        self.open_flight: Flight | None = None
        self._framer = Framer(limit=max_message)
        self._batch: list[bytes] = []
        self._batch_bytes = 0
        self._ready: deque[list[bytes]] = deque()
        self.spoken = Spoken(version, number)

    # -- from the client -------------------------------------------------------------------------------------------

    def feed(self, data: bytes) -> None:
        """Bytes from the client; raises ProtocolViolation."""
        self.context.stats.bytes_from_clients += len(data)
        for frame in self._framer.feed(data):
            self._on_frame(frame)
            if self.closed:
                return

    def _on_frame(self, frame: bytes) -> None:
        kind = frame[0]
        if kind in _COPY:
            if self._batch:
                self._complete()
            if self._ready:
                self._ready.append([frame])
            else:
                self._send_copy(kind, frame)
            return
        if kind == m.TERMINATE:
            # What was asked before the goodbye is still done, as PostgreSQL does it.
            if self.copying:
                # The server has two errors to say about that.
                self.port.to_server(self.target, frame)
                return
            self.leaving = self.open_flight is None
            if self.drained or not self.leaving:
                self.port.finish()
            return
        if self.copying and not self._batch and not self._ready and kind in (m.SYNC, m.FLUSH):
            self._send_into_copy([frame])
            return
        if kind == m.QUERY and self._batch:
            self._complete()
        self._batch.append(frame)
        self._batch_bytes += len(frame)
        if kind in ENDS or kind == m.FLUSH or self._batch_bytes > MAX_BATCH:
            self._complete()

    @property
    def stuck(self) -> bool:
        """Whether something that the client has sent does not go on: the session waits, or the batch is unfinished."""
        return bool(self.blocked) or bool(self._batch)

    def hurry(self) -> None:
        """Decide and send an unfinished batch as it stands: its end does not come, but its errors may matter."""
        if self._batch and not self.closed:
            self._complete()

    def _send_copy(self, kind: int, frame: bytes) -> None:
        """COPY data. Outside of a copy PostgreSQL ignores it silently; so may we, but not before replies are in."""
        if not self.copying and not self.flights:
            return
        self.port.to_server(self.target, frame)
        if kind == m.COPY_DATA:
            if self.copying:
                self.copied = True
            elif self.flights[-1] is self.open_flight:
                self.open_flight.data_inside = True
            else:
                self.flights[-1].data_behind = True
        else:
            if self.copying:
                self.copying = False
            else:
                flight = self.flights[-1]
                flight.copy_over = self.queues[self.target].sent
                flight.keep_sync = flight is self.open_flight

    def _send_into_copy(self, frames: list[bytes]) -> None:
        """While a server reads COPY data it swallows Sync and Flush, and ends the connection at anything else."""
        self.copy_doubt = self.copy_doubt or (self.copied and any(frame[0] == m.SYNC for frame in frames))
        self.port.to_server(self.target, b"".join(frames))

    def _complete(self) -> None:
        self._ready.append(self._batch)
        self._batch, self._batch_bytes = [], 0
        if not self.blocked:
            self._pump()

    def _pump(self) -> None:
        while self._ready and not self.blocked and not self.closed:
            frames = self._ready[0]
            try:
                sent = self._dispatch(frames)
            except m.ProtocolViolation:
                # A message whose body cannot be read: what is wrong with it, the server says best.
                if self.open_flight is not None or frames[-1][0] not in (m.QUERY, m.SYNC):
                    raise
                sent = self._send_raw(frames)
            if sent and self._ready:
                self._ready.popleft()

    def _resume(self) -> None:
        """Go on, called by whoever a session waited for: what its client did wrong is nobody else's business."""
        self.blocked = ""
        try:
            self._pump()
        except m.ProtocolViolation as exc:
            self.port.fail("08P01", str(exc))
        if self.leaving:
            self._leave()

    def _leave(self) -> None:
        """After a goodbye: everything was answered, or what is left is a batch that nobody will end."""
        if not self._ready and not self.blocked and (not self.flights or self.open_flight is not None):
            self.port.finish()

    @property
    def drained(self) -> bool:
        """Whether everything that the client has asked for was answered."""
        return not self.flights and not self._ready

    @property
    def waiting(self) -> bool:
        """Whether the client has sent more than we have decided (the shell stops reading from it)."""
        return bool(self.blocked)

    # -- deciding --------------------------------------------------------------------------------------------------

    @property
    def _between_transactions(self) -> bool:
        return self.status == IDLE and not self.flights

    def _dispatch(self, frames: list[bytes]) -> bool:
        """Decide one batch and send it; False if it must wait."""
        context = self.context
        term = context.hub.term
        spoken = self.spoken
        if not spoken.settled(term.routing):
            spoken.follow(term.routing, self._between_transactions)
        if frames[0][0] in _COPY:
            self._send_copy(frames[0][0], frames[0])
            return True
        if self.copying:
            self._send_into_copy(frames)
            return True
        if self.shared and self.flights and self._in_doubt(frames):
            self.blocked = "drain"
            return False
        if (
            not term.routing.tables
            and not context.reads.enabled
            and spoken.refusal is None
            and self.open_flight is None
            and not (spoken.changed and self._still_mixed())
        ):
            if not self.shared:
                if not self.outbox.prepared[0].rewritten and pass_own(self, frames, term):
                    return True
            elif not self.effects.busy and harmless_batch(frames, self.outbox.statements):
                if not self.leased and not self._lease():
                    return False
                if pass_shared(self, frames, term):
                    return True
        if self.open_flight is None and any(flight.settings for flight in self.flights):
            # A name may mean another table once the setting before it has taken effect.
            self.blocked = "drain"
            return False
        scope = Scope(
            book=context.book(),
            prober=context.prober,
            side_of=spoken.side_of,
            version=spoken.version,
            refusal=spoken.refusal,
            search_path=self.settings.search_path,
            temp=self.settings.temp,
            user=self.user,
            misread=self.settings.misread,
            breaker=context.books.breaker,
            tried=self.tried,
            who=(self.user, *self.settings.scope),
            planned=None if context.planning is None else self._planned,
            shared=self.shared,
        )
        try:
            work = study(frames, self.outbox.statements, scope)
        except Unplanned as unplanned:
            self._plan_apart(unplanned.large, scope)
            return False
        if work.unproved is not None:
            self.blocked = "probe"
            context.prober.probe(work.probe_key, work.unproved, work.probe_oids, self._on_verdict)
            return False
        hub = context.hub
        if (
            work.touches
            and hub.hold is not None
            and hub.must_park(work.tables, not self._between_transactions, self.touching)
        ):
            self.blocked = "hold"
            context.stats.parked += 1
            hub.park(self._on_release)
            return False
        target, reason = choose(self, work, frames[-1][0])
        if target is None:
            self.blocked = "drain"
            return False
        if target is Target.PRIMARY and not self.leased and not self._lease():
            return False
        if (
            work.doubt is not None
            and target is Target.PRIMARY
            and self.open_flight is None
            and self.status != FAILED
        ):
            self.blocked = "drain" if self.flights else "cure"
            if not self.flights:
                self.cure.try_here(work.doubt)
            return False
        if (
            (self.shared or target is Target.REPLICA or self.outbox.prepared[0].rewritten)
            and self.open_flight is None
            and self.status != FAILED
            and frames[-1][0] == m.SYNC
        ):
            missing = self.outbox.missing(work.items, target)
            if missing:
                self.blocked = "drain" if self.flights else "cure"
                if not self.flights:
                    self.cure.check(missing, target)
                return False
        if self._planned:
            self._planned = {}
        context.stats.decisions[(target.name.lower(), reason)] += 1
        send(self, frames, work, target, term)
        if self.tried and self.open_flight is None:
            self.tried.clear()
        return True

    def _plan_apart(self, large: Large, scope: Scope) -> None:
        """Have a large text planned elsewhere; meanwhile the session waits."""
        planning = self.context.planning
        assert planning is not None
        _, side, search_path, temp, text = large
        self.blocked, self._wanted = "plan", large
        self._withdraw = planning.plan(
            scope.book, text, side, search_path, temp, functools.partial(self._on_plan, large)
        )

    def _on_plan(self, large: Large, plan: Plan) -> None:
        if self.closed or self.blocked != "plan" or large != self._wanted:
            return
        self._planned[large] = plan
        self._wanted = None
        self._resume()

    def _lease(self) -> bool:
        """Get a primary connection, now or later (``on_leased``)."""
        if self.port.lease():
            self.leased = True
            self._lease_began = (self.reported, self.settings.applied)
            return True
        self.blocked = "lease"
        return False

    def on_leased(self) -> None:
        """The port has got a primary connection."""
        if self.closed:
            return
        self.leased = True
        self._lease_began = (self.reported, self.settings.applied)
        if self.blocked == "lease":
            self._resume()
        self._settle_lease()

    def _settle_lease(self) -> None:
        """Give the primary connection back if nothing needs it."""
        if (
            self.shared
            and self.leased
            and self.status == IDLE
            and not self.flights
            and not self.effects.pins
            and self.blocked != "cure"
            and not self.closed
        ):
            reported, applied = self._lease_began
            if (
                self.reported is not reported
                and self.settings.applied is applied
                and self.reported != reported
            ):
                # Something was set where it could not be seen, in a function perhaps.
                self.effects.lose()
                return
            self.leased = False
            dirty, self.effects.dirty = self.effects.dirty, False
            self.port.release(dirty)

    def cancel_waiting(self) -> bool:
        """The client cancels a batch that waits outside of a transaction and was not sent; False if there is none."""
        if (
            self.blocked not in ("lease", "hold", "probe", "plan")
            or self.flights
            or self.status != IDLE
            or self._ready[0][-1][0] not in ENDS
        ):
            return False
        if self.blocked == "hold":
            self.context.hub.unpark(self._on_release)
            self.context.stats.parked -= 1
        self._stop_planning()
        self._ready.popleft()
        self.port.to_client(_CANCELLED + m.ready_for_query(b"I"))
        self._resume()
        return True

    def _in_doubt(self, frames: list[bytes]) -> bool:
        """Whether a batch names a statement, while it is open which names there are: a server's answer will tell.

        On a server of its own the client's names mean there what they mean here, and the server sorts it out.
        """
        return any(flight.books for flight in self.flights if flight is not self.open_flight) and any(
            _names_statement(frame) for frame in frames
        )

    def _still_mixed(self) -> bool:
        """Whether there are statements of a version that the session speaks no longer; each must be looked at."""
        self.spoken.changed = self.outbox.foreign(self.spoken.version)
        return self.spoken.changed

    def _on_verdict(self, verdict: Verdict) -> None:
        if not self.closed and self.blocked == "probe":
            if not verdict.mirrored:
                self.context.stats.fallbacks += 1
            self._resume()

    def _on_release(self, refusal: Refusal | None) -> None:
        if self.closed:
            return
        self.context.stats.parked -= 1
        if refusal is not None:
            self.blocked = ""
            self.port.fail(refusal.sqlstate, refusal.message, refusal.hint)
            return
        self._resume()

    # -- sending ---------------------------------------------------------------------------------------------------

    def _send_raw(self, frames: list[bytes]) -> bool:
        """Send a batch to the primary as it is; False if it must wait."""
        if self.flights and self.target is not Target.PRIMARY:
            self.blocked = "drain"
            return False
        if not self.leased and not self._lease():
            return False
        self.fly(frames, self.context.hub.term)
        self.queues[Target.PRIMARY].expect(PLAIN[frames[-1][0]])
        self.port.to_server(Target.PRIMARY, b"".join(frames))
        return True

    def fly(self, frames: list[bytes], term: Term) -> Flight:
        """A batch is about to be sent to the primary on the fast path."""
        flight = Flight(term, Target.PRIMARY, self.context.clock(), frames)
        term.active += 1
        self.quiet = not self.flights
        self.flights.append(flight)
        self.target = Target.PRIMARY
        return flight

    # -- from the servers ------------------------------------------------------------------------------------------

    def feed_server(self, target: Target, data: bytes) -> None:
        """Bytes from a server; what the client gets goes to the port. Raises ProtocolViolation."""
        stats = self.context.stats
        queue = self.queues[target]
        # What a replica says unasked (that it shuts down, what was reconfigured there) is not for the client.
        unasked = target and not len(queue)
        for chunk in queue.feed(data):
            if unasked:
                break
            stats.bytes_to_clients += len(chunk)
            self.quiet = False
            self.send_client(chunk)
        if self.cure.due:
            self.cure.proceed()
        if self.leaving and self.copying:
            # It has said goodbye instead of sending data; the server has two errors to say about that.
            self.copying = False
            self.port.to_server(target, m.TERMINATE_FRAME)
        if self.blocked == "drain" and (not self.flights or self.open_flight is not None or self.copying):
            self._resume()
        if self.leaving:
            self._leave()
        if self.shared and not self.flights:
            self._settle_lease()
            if target:
                self.port.release_replica()

    @property
    def alone(self) -> bool:
        """Whether the batch under way is the only one that the client has sent."""
        return len(self.flights) == 1 and self.open_flight is None and not self._ready

    def ask(self, target: Target, requests: bytes, entries: list[Reply]) -> None:
        """Send a batch of our own, of which the client hears nothing."""
        term = self.context.hub.term
        term.active += 1
        self.flights.append(Flight(term, target, self.context.clock()))
        queue = self.queues[target]
        queue.hush = True
        queue.expect_all(entries)
        self.port.to_server(target, requests)

    def repeat(self, frames: list[bytes]) -> None:
        """Decide and send a batch once more, before anything that came after it."""
        if not self.abandoned:
            self._ready.appendleft(frames)
        self._resume()

    def go_on(self, error: bytes, status: int) -> None:
        """Our own question was answered: the batch that waits for it goes on, or gets the error as its answer."""
        if error and self._ready:
            self._ready.popleft()
            self.context.stats.errors += 1
            self.port.to_client(error + m.ready_for_query(bytes((status,))))
        self._resume()

    def replica_gone(self) -> None:
        """The replica connection was lost or given up while nothing was in flight on it."""
        self.outbox.prepared[Target.REPLICA].clear()
        self.queues[Target.REPLICA].clear()
        self.reading.lost()

    # -- the end ---------------------------------------------------------------------------------------------------

    @property
    def in_transaction(self) -> bool:
        """Whether the client has a transaction open."""
        return self.status != IDLE

    @property
    def unended(self) -> bool:
        """Whether a server has requests of a batch whose end the client has not sent."""
        return self.open_flight is not None

    def _stop_planning(self) -> None:
        """Nobody waits for the plan of a large text any more."""
        if self._wanted is not None:
            self._wanted = None
            self._withdraw()
        self._planned = {}

    def abandon(self) -> None:
        """The client is gone while requests are under way; the shell has sent one more Sync."""
        self.abandoned = True
        self._ready.clear()
        self._batch.clear()
        self.copying = False
        if self.blocked == "hold":
            self.context.hub.unpark(self._on_release)
            self.context.stats.parked -= 1
        self._stop_planning()
        if self.blocked != "cure":
            self.blocked = ""
        flight = Flight(self.context.hub.term, self.target, self.context.clock())
        flight.term.active += 1
        self.flights.append(flight)
        self.queues[self.target].expect(PLAIN_SYNC)

    def close(self) -> None:
        """The client or a server is gone: leave every epoch and hold."""
        if self.closed:
            return
        self.closed = True
        self._stop_planning()
        hub = self.context.hub
        if self.blocked == "hold":
            hub.unpark(self._on_release)
            self.context.stats.parked -= 1
        for flight in self.flights:
            hub.leave(flight.term)
        self.flights.clear()
        self.effects.free(self.effects.pins)
        if self.touching:
            self.touching = False
            hub.untouch()
        if self.status != IDLE:
            self.context.stats.transactions_open -= 1
            self.status = IDLE

    @property
    def clean(self) -> bool:
        """Whether the primary connection can be given to another client after a reset."""
        return self.status == IDLE and not self.flights and not len(self.queues[Target.PRIMARY])


def _nothing() -> None:
    """What withdraws no question."""


def _names_statement(frame: bytes) -> bool:
    """Whether a message has to do with a named statement."""
    kind = frame[0]
    if kind == m.BIND:
        return m.read_bind_names(frame)[1] != b""
    if kind == m.PARSE:
        return frame[5:6] != b"\0"
    if kind in (m.DESCRIBE, m.CLOSE):
        return frame[5:6] == b"S" and len(frame) > 7
    return kind == m.QUERY and frame[5:6] in b"dDeE \t\r\n/-"
