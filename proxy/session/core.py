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

from collections import deque
from typing import Any, Literal

from proxy.rewrite.plan import Kind, Plan, Refusal
from proxy.session.context import Context, Flight
from proxy.session.cure import Cure
from proxy.session.databases import wanted_alone
from proxy.session.effects import FAILED, IDLE, Effects
from proxy.session.harmless import harmless
from proxy.session.listener import ServerReplies
from proxy.session.outbox import PLAIN, Outbox, discards_all, renamed
from proxy.session.ports import Port, Target, Verdict
from proxy.session.reading import Reading
from proxy.session.replies import PLAIN_BIND, PLAIN_DESCRIBE, PLAIN_EXECUTE, PLAIN_SYNC, Reply, ReplyQueue
from proxy.session.settings import DEFAULT_SEARCH_PATH, SessionSettings
from proxy.session.spoken import Spoken
from proxy.session.statements import Statement
from proxy.session.work import Item, Scope, Work, study
from proxy.wire import messages as m
from proxy.wire.framing import Framer

MAX_BATCH = 1 << 16
"""Bytes of an unfinished batch that are held back before it is decided as it stands."""
_ENDS = frozenset((m.QUERY, m.SYNC, m.FUNCTION_CALL))
_LEAVES = frozenset((Kind.COMMIT, Kind.ROLLBACK, Kind.SAVEPOINT))
_CANCELLED = m.error_response("57014", "canceling statement due to user request")


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
        self.shared = context.names is not None
        self.leased = not self.shared
        """Whether the primary connection is at hand."""
        self.outbox = Outbox(context.stats, context.names)
        self.effects = Effects(self.settings, context.stats, self.shared)
        self.queues = (
            ReplyQueue(ServerReplies(self, Target.PRIMARY)),
            ReplyQueue(ServerReplies(self, Target.REPLICA)),
        )
        self.target = Target.PRIMARY
        self.reading = Reading(context.reads, self.settings, user)
        self.flights: deque[Flight] = deque()
        self.copying = False
        self.blocked: Literal["", "probe", "hold", "drain", "lease", "cure"] = ""
        self.closed = False
        self.leaving = False
        """The client has said goodbye, and waits for nothing."""
        self.saw_fatal = False
        """The server has said why it closes the connection."""
        self.touching = False
        self.idle_since = 0.0
        """When the client was last answered, while it has a transaction open (seconds of ``context.clock``)."""
        self._cure = Cure(self, self.outbox)
        self._quiet = False
        """The client has heard nothing since the batch under way was sent."""
        self._open: Flight | None = None
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
            if self.copying:
                # The server has two errors to say about that.
                self.port.to_server(self.target, frame)
                return
            self.leaving = self._open is None
            if self.drained or not self.leaving:
                self.port.finish()
            return
        if self.copying and not self._batch and kind in (m.SYNC, m.FLUSH):
            self.port.to_server(self.target, frame)
            return
        if kind == m.QUERY and self._batch:
            self._complete()
        self._batch.append(frame)
        self._batch_bytes += len(frame)
        if kind in _ENDS or kind == m.FLUSH or self._batch_bytes > MAX_BATCH:
            self._complete()

    @property
    def unfinished(self) -> bool:
        """Whether there are requests that wait for the end of their batch."""
        return bool(self._batch)

    def hurry(self) -> None:
        """Decide and send an unfinished batch as it stands: its end does not come, but its errors may matter."""
        if self._batch and not self.closed:
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
                flight = self.flights[-1]
                flight.copy_over = True
                flight.keep_sync = flight is self._open

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
                if self._open is not None or frames[-1][0] not in (m.QUERY, m.SYNC):
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
        ):
            if not self.shared:
                if not self.outbox.prepared[Target.PRIMARY].rewritten and self._pass(frames, term):
                    return True
            elif not self.effects.busy and _harmless(frames, self.outbox.statements):
                if not self.leased and not self._lease():
                    return False
                if self._pass_shared(frames, term):
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
                shared=self.shared,
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
        if target is Target.PRIMARY and not self.leased and not self._lease():
            return False
        context.stats.decisions[(target.name.lower(), reason)] += 1
        self._send(frames, work, target, term)
        return True

    def _lease(self) -> bool:
        """Get a primary connection, now or later (``on_leased``)."""
        if self.port.lease():
            self.leased = True
            return True
        self.blocked = "lease"
        return False

    def on_leased(self) -> None:
        """The port has got a primary connection."""
        if self.closed:
            return
        self.leased = True
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
            self.leased = False
            dirty, self.effects.dirty = self.effects.dirty, False
            self.port.release(dirty)

    def cancel_waiting(self) -> bool:
        """The client cancels a batch that waits for a server connection; False if that is not what it waits for."""
        if self.blocked != "lease" or self.flights or self._ready[0][-1][0] not in _ENDS:
            return False
        self._ready.popleft()
        self.port.to_client(_CANCELLED + m.ready_for_query(b"I"))
        self._resume()
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
        if end not in _ENDS or (end == m.FUNCTION_CALL and len(frames) > 1):
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
            elif kind == m.DESCRIBE:
                # What the client is told of a named statement is kept in mind, see ``proxy.session.cure``.
                if frame[5:6] == b"S" and len(frame) > 7:
                    return False
            elif kind == m.EXECUTE:
                queries += 1
        # Settings and temporary relations are not followed here; should replicas be switched on, not for this session.
        self.settings.unknown = True
        flight = self._fly(frames, term)
        if end == m.QUERY:
            queries = 1
            if len(last) > 5 and last[5] in b"dDaAcC \t\n\r/-":
                self._forget(last[5:-1], flight)
                self._make_way(last[5:-1])
        self.context.stats.queries += queries
        self.queues[Target.PRIMARY].expect(PLAIN[end])
        self.port.to_server(Target.PRIMARY, last if len(frames) == 1 else b"".join(frames))
        return True

    def _pass_shared(self, frames: list[bytes], term: Any) -> bool:
        """The fast path on a shared server, for batches that leave nothing behind. False if it has not all it needs."""
        outbox = self.outbox
        prepared = outbox.prepared[Target.PRIMARY]
        if prepared.rewritten:
            return False
        last = frames[-1]
        end = last[0]
        queries = 0
        if end == m.QUERY:
            queries = 1
            prepared.texts.pop(b"", None)
            outbox.statements.pop(b"", None)
        else:
            names = outbox.names
            assert names is not None
            out: list[bytes] = []
            fresh: Statement | None = None
            for frame in frames:
                kind = frame[0]
                if kind == m.PARSE:
                    fresh = Statement(frame, self.spoken.version)
                elif kind == m.BIND:
                    name = m.read_bind_names(frame)[1]
                    statement = fresh if fresh is not None and not name else outbox.statements.get(name)
                    if statement is None:
                        return False
                    if name:
                        if not statement.wire_name:
                            statement.wire_name = names.name(statement.sent)
                        name = statement.wire_name
                        if name not in prepared.texts:
                            return False
                        prepared.used(name)
                        frame = renamed(frame, name)
                    elif statement is not fresh and prepared.texts.get(b"") != statement.sent:
                        return False
                elif kind == m.EXECUTE:
                    queries += 1
                out.append(frame)
            if fresh is not None:
                outbox.statements[b""] = fresh
                prepared.texts[b""] = fresh.sent
            last = b"".join(out)
        self._fly(frames, term)
        self.context.stats.queries += queries
        self.queues[Target.PRIMARY].expect(PLAIN[end])
        self.port.to_server(Target.PRIMARY, last)
        return True

    def _send_raw(self, frames: list[bytes]) -> bool:
        """Send a batch to the primary as it is; False if it must wait."""
        if self.flights and self.target is not Target.PRIMARY:
            self.blocked = "drain"
            return False
        if not self.leased and not self._lease():
            return False
        self._fly(frames, self.context.hub.term)
        self.queues[Target.PRIMARY].expect(PLAIN[frames[-1][0]])
        self.port.to_server(Target.PRIMARY, b"".join(frames))
        return True

    def _fly(self, frames: list[bytes], term: Any) -> Flight:
        """A batch is about to be sent to the primary on the fast path."""
        flight = Flight(term, Target.PRIMARY, self.context.clock(), frames)
        term.active += 1
        self._quiet = not self.flights
        self.flights.append(flight)
        self.target = Target.PRIMARY
        return flight

    def _send(self, frames: list[bytes], work: Work, target: Target, term: Any) -> None:
        context = self.context
        flight = self._open
        if flight is None:
            flight = Flight(term, target, context.clock(), frames)
            term.active += 1
            self._quiet = not self.flights
            self.flights.append(flight)
        else:
            flight.frames = None
        last = work.items[-1].kind
        self._open = None if last in _ENDS else flight
        self.target = target
        if work.touches and not self.touching:
            self.touching = True
            context.hub.touch()
        out: list[bytes] = []
        entries: list[Reply] = []
        failed = (
            self.status == FAILED
            and len(self.flights) == 1
            and not any(plan.kind in _LEAVES for plan in work.plans)
        )
        self.outbox.batch += 1
        for item in work.items:
            entry = self.outbox.emit(item, target, out, entries, failed)
            if item.plan is not None:
                self._note(item, item.plan, flight)
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
        undo = self.outbox.forget(text)
        if undo is not None:
            flight.undo.append(undo)
            if discards_all(text):
                self.effects.discarded(flight)

    def _make_way(self, text: bytes) -> None:
        """A statement may need a database for itself."""
        name = wanted_alone(text)
        if name is not None:
            self.port.make_way(name)

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
            self.effects.note(item.text, plan, flight)
            if plan.kind in (Kind.SESSION, Kind.UNPARSED):
                self._forget(item.text, flight)
            elif plan.kind in (Kind.DDL, Kind.WRITE) and plan.statements == 1:
                self._make_way(item.text)
            if plan.temp_relations:
                self.settings.temp |= frozenset(plan.temp_relations)

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
            self._quiet = False
            self.port.to_client(chunk)
        if self._cure.due:
            self._cure.proceed()
        if self.leaving and self.drained:
            self.port.finish()
        if self.blocked == "drain" and (not self.flights or self._open is not None):
            self._resume()
        if self.shared and not self.flights:
            self._settle_lease()
            if target:
                self.port.release_replica()

    def on_ready(self, target: Target, status: int) -> None:
        """A batch was answered in full."""
        context = self.context
        flight = self.flights.popleft()
        context.hub.leave(flight.term)
        context.stats.latency.observe(context.clock() - flight.started)
        self.copying = False
        if flight.undo and flight.failed:
            for undo in flight.undo:
                undo()
        if target is Target.PRIMARY:
            if flight.noted or self.effects.pending:
                self.effects.settle(flight, self.status, status)
            if (status == IDLE) != (self.status == IDLE):
                context.stats.transactions_open += 1 if self.status == IDLE else -1
            self.status = status
            if status != IDLE:
                self.idle_since = context.clock()
            self.reading.answered()
        if status == IDLE and self.touching and not self.flights:
            self.touching = False
            context.hub.untouch()

    def on_copy_in(self, simple: bool) -> int:
        """The server waits for COPY data; the number of Syncs sent before its end, which the server swallows.

        The batches of those Syncs become one with the batch that copies.
        """
        flights = self.flights
        if not flights:
            return 0
        last = len(flights) - 1
        self.copying = True
        for index, flight in enumerate(flights):
            if flight.copy_over:
                last, self.copying = index, False
                break
        # Whether the last of them goes on behind the data.
        goes_on = flights[last] is self._open if self.copying else flights[last].keep_sync
        first = flights.popleft()
        for index in range(last):
            if simple and goes_on and index == last - 1:
                break
            self._merge(first)
        swallowed = last
        if goes_on:
            swallowed -= simple and last > 0
        elif not simple:
            swallowed += 1
            if flights:
                # The Sync that ends it was sent already.
                self._merge(first)
            else:
                self._open = first
        flights.appendleft(first)
        return swallowed

    def _merge(self, first: Flight) -> None:
        """The batch behind ``first`` becomes a part of it."""
        flight = self.flights.popleft()
        self.context.hub.leave(flight.term)
        if self._open is flight:
            self._open = first

    def on_error(self, target: Target, message: bytes, quiet: bool) -> bytes | None:
        """A server answered with an error; what the client gets instead, None for the error itself."""
        if target is Target.REPLICA and not len(self.queues[target]):
            return None
        if self._cure.asked:
            return b""
        if (
            quiet
            and self._quiet
            and self.status == IDLE
            and len(self.flights) == 1
            and self._open is None
            and not self._ready
            and self._cure.wants(message, self.flights[0])
        ):
            self.blocked = "cure"
            return b""
        self.context.stats.errors += 1
        self.saw_fatal = self.saw_fatal or b"VFATAL\0" in message[:64]
        self.copying = False
        if self.flights:
            self.flights[0].failed = True
        localized = self.outbox.localized(message, self.flights[0].frames if self.flights else None)
        return None if localized is message else localized

    def on_skipped_ready(self, target: Target) -> None:
        """What the client does not hear of is over."""
        flight = self.flights.popleft()
        self.context.hub.leave(flight.term)
        if flight.noted:
            flight.failed = True
            self.effects.settle(flight, IDLE, IDLE)
        self.queues[target].hush = False
        self._cure.answered()

    def ask(self, target: Target, requests: bytes, entries: list[Reply]) -> None:
        """Send a batch of our own, of which the client hears nothing."""
        term = self.context.hub.term
        term.active += 1
        self.flights.append(Flight(term, target, self.context.clock()))
        queue = self.queues[target]
        queue.hush = True
        for entry in entries:
            queue.expect(entry)
        self.port.to_server(target, requests)

    def repeat(self, frames: list[bytes]) -> None:
        """Decide and send a batch once more, before anything that came after it."""
        self._ready.appendleft(frames)
        self._resume()

    def give_up(self, error: bytes) -> None:
        """The client gets the error of its batch after all."""
        self.context.stats.errors += 1
        self.port.to_client(error + m.ready_for_query(b"I"))
        self._resume()

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
            if self.shared:
                self.port.reported(name, value)

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
        return self._open is not None

    def abandon(self) -> None:
        """The client is gone while requests are under way; the shell has sent one more Sync."""
        self._ready.clear()
        self._batch.clear()
        self.copying = False
        if self.blocked == "hold":
            self.context.hub.unpark(self._on_release)
            self.context.stats.parked -= 1
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


def _harmless(frames: list[bytes], statements: dict[bytes, Statement]) -> bool:
    """Whether a batch leaves nothing behind on a shared server and asks for nothing that has to be translated."""
    last = frames[-1]
    if last[0] == m.QUERY:
        return len(frames) == 1 and harmless(last[5:-1])
    if last[0] != m.SYNC:
        return False
    for frame in frames:
        kind = frame[0]
        if kind == m.PARSE:
            if frame[5:6] != b"\0" or not harmless(m.cstring(frame, m.HEADER + 1)[0]):
                return False
        elif kind == m.BIND:
            name = m.read_bind_names(frame)[1]
            if name:
                statement = statements.get(name)
                if statement is None or not statement.harmless:
                    return False
        elif kind == m.CLOSE or (kind == m.DESCRIBE and frame[5:6] == b"S"):
            return False
    return True
