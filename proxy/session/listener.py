"""What the servers say, and what it means for the session: one listener for each of its two reply queues.

Contract: a :class:`ServerReplies` gets a reply queue's events while bytes are read, and changes the session's state; it
sends nothing, and decides nothing that could wait until the bytes at hand are read.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, final

from proxy.rewrite.plan import Kind
from proxy.session.breaker import ours
from proxy.session.context import Flight
from proxy.session.effects import FAILED, IDLE
from proxy.session.ports import Target
from proxy.session.replies import Desync

if TYPE_CHECKING:
    from proxy.session.core import Session


@final
class ServerReplies:
    """The reply handler of one of a session's two servers."""

    __slots__ = ("_doubtful", "_primary", "_session", "_target")

    def __init__(self, session: Session, target: Target) -> None:
        self._session = session
        self._target = target
        self._primary = target is Target.PRIMARY
        self._doubtful = False

    def on_ready(self, status: int) -> None:
        """A batch was answered in full."""
        session = self._session
        if self._doubtful:
            # Before anything is taken for answered.
            raise Desync(
                "whether the server answers a Sync sent behind the data of a failed COPY cannot be known"
            )
        context = session.context
        flight = session.flights.popleft()
        context.hub.leave(flight.term)
        now = context.clock()
        context.stats.latency.observe(now - flight.started)
        session.idle_since = now
        session.copying = session.copy_doubt = False
        if flight.undo and flight.failed:
            for undo in reversed(flight.undo):
                undo()
        if status == IDLE:
            context.stats.transactions += 1
        if self._primary:
            if flight.noted or session.effects.pending:
                session.effects.settle(flight, session.status, status)
            if (status == IDLE) != (session.status == IDLE):
                context.stats.transactions_open += 1 if session.status == IDLE else -1
            if status == IDLE:
                session.temporary.over(
                    session.status == FAILED or flight.failed or Kind.ROLLBACK in flight.control
                )
            session.status = status
            session.reading.answered()
        if status == IDLE and session.touching and not session.flights:
            session.touching = False
            context.hub.untouch()

    def on_copy_in(self, simple: bool) -> int:
        """The server waits for COPY data; the number of Syncs sent before its end, which the server swallows.

        The batches of those Syncs become one with the batch that copies.
        """
        session = self._session
        flights = session.flights
        if not flights:
            return 0
        queue = session.queues[self._target]
        # Of the request that the server has come to; an end of data that was sent before it ended nothing.
        position = queue.sent - len(queue)
        last = len(flights) - 1
        session.copying = True
        session.copied = False
        for index, flight in enumerate(flights):
            if flight.copy_over > position:
                last, session.copying = index, False
                break
        # Whether the last of them goes on behind the data.
        goes_on = flights[last] is session.open_flight if session.copying else flights[last].keep_sync
        data = False
        for index in range(last if goes_on else last + 1):
            flight = flights[index]
            session.copy_doubt = session.copy_doubt or data or flight.data_inside
            data = data or flight.data_inside or flight.data_behind
        first = flights.popleft()
        for index in range(last):
            if simple and goes_on and index == last - 1:
                break
            self._merge(first)
        swallowed = last
        if goes_on:
            swallowed -= 1 if simple and last > 0 else 0
        elif not simple:
            swallowed += 1
            if flights:
                # The Sync that ends it was sent already.
                self._merge(first)
            else:
                session.open_flight = first
        flights.appendleft(first)
        return swallowed

    def _merge(self, first: Flight) -> None:
        """The batch behind ``first`` becomes a part of it."""
        session = self._session
        flight = session.flights.popleft()
        session.context.hub.leave(flight.term)
        if session.open_flight is flight:
            session.open_flight = first

    def on_error(self, message: bytes, quiet: bool) -> bytes | None:
        """An error; what the client gets instead, None for the error itself."""
        session = self._session
        if not self._primary and not len(session.queues[self._target]):
            return None
        if session.cure.asked:
            translate = session.flights[0].translate if session.flights else None
            translated = message if translate is None else translate(message)
            session.cure.heard(session.queues[self._target].located(translated))
            return b""
        if session.copy_doubt:
            self._doubtful = True
        if (
            quiet
            and session.quiet
            and session.status == IDLE
            and session.alone
            and session.cure.wants(message, session.flights[0])
        ):
            session.blocked = "cure"
            return b""
        session.context.stats.errors += 1
        first = session.flights[0] if session.flights else None
        if first is not None and first.mirrored and ours(message, not first.mixed):
            session.context.books.breaker.failed(first.mirrored, (session.user, *session.settings.scope))
        session.cure.outdated(message, session.flights[0].frames if session.flights else None)
        session.saw_fatal = session.saw_fatal or b"VFATAL\0" in message[:64]
        session.copying = False
        if session.flights:
            session.flights[0].failed = True
        flight = session.flights[0] if session.flights else None
        localized = session.outbox.localized(message, flight.frames if flight is not None else None)
        if flight is not None and flight.translate is not None:
            localized = flight.translate(localized)
        return None if localized is message else localized

    def on_skipped_ready(self, status: int) -> None:
        """What the client does not hear of is over."""
        session = self._session
        flight = session.flights.popleft()
        session.context.hub.leave(flight.term)
        if flight.noted:
            flight.failed = True
            session.effects.settle(flight, IDLE, IDLE)
        session.queues[self._target].hush = False
        if self._primary and session.status != IDLE:
            session.status = status
        session.cure.answered(status)

    def on_skipped(self) -> None:
        """A server discards the Query that ended a batch: its batch goes on until the next Sync."""
        session = self._session
        flight = session.flights[0]
        while flight.undo:
            flight.undo.pop()()
        if len(session.flights) > 1:
            session.flights.popleft()
            session.context.hub.leave(flight.term)
            session.flights[0].failed = True
        else:
            session.open_flight = session.flights[0]

    def on_notification(self) -> None:
        """What the client hears of may not be on a replica yet."""
        self._session.reading.heard()

    def on_parameter(self, name: str, value: str) -> None:
        """A reported setting changed."""
        if self._primary:
            session = self._session
            session.settings.report(name, value)
            if session.shared:
                session.reported = {**session.reported, name: value}
                session.port.reported(session.reported)
