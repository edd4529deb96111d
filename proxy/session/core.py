"""One client's session: batches in, routing and rewriting decisions made, bytes out to one of two servers.

Contract
--------
Sans-IO: the shell feeds client bytes (:meth:`Session.feed`) and server bytes (:meth:`Session.feed_server`) and gets
calls on its :class:`~proxy.session.ports.Port`. Nothing is sent to a server before its batch (up to Sync, Flush, Query
or FunctionCall) is complete and decided; batches are decided strictly one after the other. A session is *blocked* while
a decision needs something that takes time: the verdict of the prober, the end of a hold, or replies still under way
from the other server. Invariants: one server at a time has requests in flight; a batch is decided under one epoch,
which it has entered before its first byte is sent and leaves when its ReadyForQuery has come.
"""

from __future__ import annotations

from collections import deque
from typing import Any, Literal

from proxy.rewrite.plan import Kind, Plan, Refusal
from proxy.session.context import Context, Flight
from proxy.session.listener import ServerReplies
from proxy.session.outbox import PLAIN, Outbox
from proxy.session.ports import Port, Target, Verdict
from proxy.session.reading import Reading
from proxy.session.replies import PLAIN_BIND, PLAIN_DESCRIBE, PLAIN_EXECUTE, PLAIN_SYNC, Reply, ReplyQueue
from proxy.session.settings import DEFAULT_SEARCH_PATH, DISCARDED, SessionSettings, sets_as_one
from proxy.session.spoken import Spoken
from proxy.session.statements import Statement
from proxy.session.work import Item, Scope, Work, study
from proxy.wire import messages as m
from proxy.wire.framing import Framer

IDLE, IN_TRANSACTION, FAILED = b"ITE"
MAX_BATCH = 1 << 20
"""Bytes of an unfinished batch that are held back before it is decided as it stands."""
_CONTROL = frozenset((Kind.BEGIN, Kind.COMMIT, Kind.ROLLBACK, Kind.SAVEPOINT))
_ENDS = frozenset((m.QUERY, m.SYNC, m.FUNCTION_CALL))


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
        self.number = number
        self.user = user
        self.settings = SessionSettings(user, parameters, search_path)
        self.status = IDLE
        self.outbox = Outbox(context.stats)
        self.queues = (
            ReplyQueue(ServerReplies(self, Target.PRIMARY)),
            ReplyQueue(ServerReplies(self, Target.REPLICA)),
        )
        self.target = Target.PRIMARY
        self.reading = Reading(context.reads, self.settings, user)
        self.flights: deque[Flight] = deque()
        self.copying = False
        self.blocked: Literal["", "probe", "hold", "drain"] = ""
        self.closed = False
        self.leaving = False
        """The client has said goodbye, and waits for nothing."""
        self.saw_fatal = False
        """The server has said why it closes the connection."""
        self.touching = False
        self._open: Flight | None = None
        self._copy_over = False
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
        if kind in (m.COPY_DATA, m.COPY_DONE, m.COPY_FAIL):
            if self._batch:
                self._complete()
            if self._ready:
                self._ready.append([frame])
            else:
                self._send_copy(kind, frame)
            return
        if kind == m.TERMINATE:
            # What was asked before the goodbye is still done, as PostgreSQL does it.
            self.leaving = self._open is None and not self.copying
            if self.drained or not self.leaving:
                self.port.finish()
            return
        if self.copying and kind in (m.SYNC, m.FLUSH):
            self.port.to_server(self.target, frame)
            return
        if kind == m.QUERY and self._batch:
            self._complete()
        self._batch.append(frame)
        self._batch_bytes += len(frame)
        if kind in _ENDS or kind == m.FLUSH or self._batch_bytes > MAX_BATCH:
            self._complete()

    def _send_copy(self, kind: int, frame: bytes) -> None:
        """COPY data. Outside of a copy PostgreSQL ignores it silently; so may we, but not before replies are in."""
        if not self.copying and not self.flights:
            return
        self.port.to_server(self.target, frame)
        if kind != m.COPY_DATA:
            if self.copying:
                self.copying = False
            else:
                self._copy_over = True
                queue = self.queues[self.target]
                queue.keep_sync = not queue.awaits_sync()

    def _complete(self) -> None:
        self._ready.append(self._batch)
        self._batch, self._batch_bytes = [], 0
        if not self.blocked:
            self._pump()

    def _pump(self) -> None:
        while self._ready and not self.blocked and not self.closed:
            if self._dispatch(self._ready[0]) and self._ready:
                self._ready.popleft()

    def _resume(self) -> None:
        """Go on, called by whoever a session waited for: what its client did wrong is nobody else's business."""
        self.blocked = ""
        try:
            self._pump()
        except m.ProtocolViolation as exc:
            self.port.fail("08P01", f"invalid message: {exc}")

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
        if frames[0][0] in (m.COPY_DATA, m.COPY_DONE, m.COPY_FAIL):
            self._send_copy(frames[0][0], frames[0])
            return True
        if (
            not term.routing.tables
            and not context.reads.enabled
            and spoken.refusal is None
            and self._open is None
            and not (spoken.changed and self._still_mixed())
            and not self.outbox.prepared[Target.PRIMARY].rewritten
            and self._pass(frames, term)
        ):
            return True
        if self._open is None and any(flight.settings for flight in self.flights):
            # A name may mean another table once the setting before it has taken effect.
            self.blocked = "drain"
            return False
        work = study(
            frames,
            self.outbox.statements,
            Scope(
                book=context.book(),
                prober=context.prober,
                side_of=spoken.side_of,
                version=spoken.version,
                refusal=spoken.refusal,
                search_path=self.settings.search_path,
                temp=self.settings.temp,
                user=self.user,
                utf8=self.settings.utf8,
            ),
        )
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
        target, reason = self._choose(work, frames[-1][0])
        if target is None:
            self.blocked = "drain"
            return False
        context.stats.decisions[(target.name.lower(), reason)] += 1
        self._send(work, target, term)
        return True

    def _still_mixed(self) -> bool:
        """Whether there are statements of a version that the session speaks no longer; each must be looked at."""
        self.spoken.changed = self.outbox.foreign(self.spoken.version)
        return self.spoken.changed

    def _choose(self, work: Work, last: int) -> tuple[Target | None, str]:
        """Where the batch goes, and why; None: nowhere before the other server has answered."""
        if self.flights:
            if self.target is Target.PRIMARY:
                return Target.PRIMARY, "pipelined"
            # The same replica as before, if it is still fit for this one too.
            if (
                work.reads_only
                and last in _ENDS
                and self.reading.replica_for(work)[0] == self.reading.replica
            ):
                return Target.REPLICA, "pipelined"
            return None, "drain"
        if self.status != IDLE:
            return Target.PRIMARY, "in_transaction"
        if not self.context.reads.enabled:
            return Target.PRIMARY, "no_replica"
        if not work.reads_only:
            return Target.PRIMARY, "not_read_only"
        if last not in _ENDS:
            return Target.PRIMARY, "unfinished_batch"
        if not work.plans:
            return Target.PRIMARY, "no_statement"
        index, reason = self.reading.replica_for(work)
        if index is None:
            self.reading.waits(reason)
            return Target.PRIMARY, reason
        if not self.port.replica_ready(index):
            return Target.PRIMARY, "replica_connecting"
        self.reading.found(index)
        return Target.REPLICA, reason

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

    def _pass(self, frames: list[bytes], term: Any) -> bool:
        """The fast path: no rule can touch the batch, so its bytes go through as they are. False if not possible."""
        last = frames[-1]
        end = last[0]
        if end not in _ENDS:
            return False
        prepared = self.outbox.prepared[Target.PRIMARY]
        queries = 0
        for frame in frames:
            kind = frame[0]
            if kind == m.PARSE:
                if frame[5:6] != b"\0":
                    return False
                self.outbox.statements[b""] = statement = Statement(frame, self.spoken.version)
                prepared.texts[b""] = statement.sent
            elif kind == m.CLOSE:
                return False
            elif kind == m.EXECUTE:
                queries += 1
        # Settings and temporary relations are not followed here; should replicas be switched on, not for this session.
        self.settings.unknown = True
        flight = Flight(term, Target.PRIMARY, self.context.clock())
        if end == m.QUERY:
            queries = 1
            if len(last) > 5 and last[5] in b"dD \t\n\r/-":
                self._forget(last[5:-1], flight)
        self.context.stats.queries += queries
        term.active += 1
        self.flights.append(flight)
        self.target = Target.PRIMARY
        self.queues[Target.PRIMARY].expect(PLAIN[end])
        self.port.to_server(Target.PRIMARY, last if len(frames) == 1 else b"".join(frames))
        return True

    def _send(self, work: Work, target: Target, term: Any) -> None:
        context = self.context
        flight = self._open
        if flight is None:
            flight = Flight(term, target, context.clock())
            term.active += 1
            self.flights.append(flight)
        last = work.items[-1].kind
        self._open = None if last in _ENDS else flight
        self.target = target
        if work.touches and not self.touching:
            self.touching = True
            context.hub.touch()
        out: list[bytes] = []
        entries: list[Reply] = []
        for item in work.items:
            if item.plan is not None:
                self._note(item, item.plan, flight)
            entry = self.outbox.emit(item, target, out, entries)
            if entry is not None:
                entries.append(entry)
        if (
            last == m.SYNC
            and len(work.items) > 1
            and all(entry in (PLAIN_BIND, PLAIN_EXECUTE, PLAIN_DESCRIBE, PLAIN_SYNC) for entry in entries)
        ):
            entries = [PLAIN_SYNC]
        queue = self.queues[target]
        for entry in entries:
            queue.expect(entry)
        self.port.to_server(target, out[0] if len(out) == 1 else b"".join(out))

    def _forget(self, text: bytes, flight: Flight) -> None:
        """Follow an SQL DEALLOCATE or DISCARD."""
        if self.outbox.forget(text):
            flight.settings += DISCARDED

    def _note(self, item: Item, plan: Plan, flight: Flight) -> None:
        """What sending the statement means for the session and its counters."""
        stats = self.context.stats
        if item.refusal is not None:
            if item.decides:
                stats.refusals[plan.reason] += 1
            return
        if item.kind == m.QUERY or item.kind == m.BIND:
            if plan.rewritten:
                stats.rewrites[plan.reason] += 1
            if plan.mirrored:
                stats.mirrored += 1
            elif plan.guarded:
                stats.guarded += 1
            if plan.kind in _CONTROL:
                flight.failed = True
            if plan.settings or plan.kind is Kind.SESSION:
                self._note_settings(plan, item, flight)
            if plan.kind in (Kind.SESSION, Kind.UNPARSED):
                self._forget(item.text, flight)
            if plan.temp_relations:
                self.settings.temp |= frozenset(plan.temp_relations)

    def _note_settings(self, plan: Plan, item: Item, flight: Flight) -> None:
        """Follow what a text sets, if the whole of it takes effect or nothing does; else its effect is unknown."""
        certain = self.status == IDLE and len(self.flights) == 1
        if plan.statements > 1 or plan.kind is not Kind.SET:
            certain = certain and sets_as_one(item.text)
        if not certain:
            self.settings.unknown = True
        else:
            flight.settings += plan.settings

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
            self.port.to_client(chunk)
        if self.leaving and self.drained:
            self.port.finish()
        if self.blocked == "drain" and not self.flights:
            self._resume()

    def on_ready(self, target: Target, status: int) -> None:
        """A batch was answered in full."""
        context = self.context
        flight = self.flights.popleft()
        context.hub.leave(flight.term)
        context.stats.latency.observe(context.clock() - flight.started)
        self.copying = False
        if self._copy_over:
            self._copy_over = self.queues[target].keep_sync = False
        if flight.settings:
            if status == IDLE and not flight.failed:
                self.settings.apply(flight.settings)
            else:
                self.settings.unknown = True
        if target is Target.PRIMARY:
            if (status == IDLE) != (self.status == IDLE):
                context.stats.transactions_open += 1 if self.status == IDLE else -1
            self.status = status
            self.reading.answered()
        if status == IDLE and self.touching and not self.flights:
            self.touching = False
            context.hub.untouch()

    def on_copy_in(self, swallowed_sync: bool) -> None:
        """The server waits for COPY data."""
        if swallowed_sync and self.flights:
            # The Sync that will end this batch is the one that follows the copy.
            self._open = self.flights[0]
        self.copying = not self._copy_over

    def on_error(self, target: Target, message: bytes) -> None:
        """A server answered with an error."""
        if target is Target.REPLICA and not len(self.queues[target]):
            return
        self.context.stats.errors += 1
        self.saw_fatal = self.saw_fatal or b"VFATAL\0" in message[:64]
        self.copying = False
        if self.flights:
            self.flights[0].failed = True

    def on_skipped(self) -> None:
        """A server discards the Query that ended a batch: its batch goes on until the next Sync."""
        if len(self.flights) > 1:
            self.context.hub.leave(self.flights.popleft().term)
            self.flights[0].failed = True
        else:
            self._open = self.flights[0]

    def on_notification(self) -> None:
        """What the client hears of may not be on a replica yet."""
        self.reading.heard()

    def on_parameter(self, target: Target, name: str, value: str) -> None:
        """A reported setting changed."""
        if target is Target.PRIMARY:
            self.settings.report(name, value)

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

    def abandon(self) -> None:
        """The client is gone while requests are under way; the shell has sent a Sync, which ends an open batch."""
        self._ready.clear()
        self._batch.clear()
        self.copying = False
        if self.blocked == "hold":
            self.context.hub.unpark(self._on_release)
            self.context.stats.parked -= 1
        self.blocked = ""
        flight = self._open
        self._open = None
        if flight is None:
            flight = Flight(self.context.hub.term, self.target, self.context.clock())
            flight.term.active += 1
            self.flights.append(flight)
        self.queues[self.target].expect(PLAIN_SYNC)

    def close(self) -> None:
        """The client or a server is gone: leave every epoch and hold."""
        if self.closed:
            return
        self.closed = True
        hub = self.context.hub
        if self.blocked == "hold":
            hub.unpark(self._on_release)
            self.context.stats.parked -= 1
        for flight in self.flights:
            hub.leave(flight.term)
        self.flights.clear()
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
