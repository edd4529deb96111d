"""How a decided batch is sent: where it goes, what goes with it, and what it will mean for the session.

Contract: :func:`choose` names the server of a studied batch and the reason; :func:`send` enters the epoch, hands the
bytes to the port and the entries to the reply queue, and notes what the statements leave behind.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from proxy.rewrite.plan import Kind, Plan, Refusal
from proxy.session.book import PlanBook
from proxy.session.context import Flight, Term
from proxy.session.databases import wanted_alone
from proxy.session.effects import FAILED, IDLE
from proxy.session.outbox import discards_all, translated
from proxy.session.ports import Target
from proxy.session.replies import PLAIN_BIND, PLAIN_DESCRIBE, PLAIN_EXECUTE, PLAIN_SYNC, Reply
from proxy.session.spoken import Spoken
from proxy.session.work import Item, Work
from proxy.wire import messages as m

if TYPE_CHECKING:
    from proxy.session.core import Session

ENDS: Final = (m.QUERY, m.SYNC, m.FUNCTION_CALL)
"""What ends a batch and is answered by ReadyForQuery."""
_LEAVES: Final = frozenset((Kind.COMMIT, Kind.ROLLBACK, Kind.SAVEPOINT))
_PLAIN: Final = (PLAIN_BIND, PLAIN_EXECUTE, PLAIN_DESCRIBE, PLAIN_SYNC)
_FORGETFUL: Final = frozenset((Kind.SESSION, Kind.UNPARSED))


def choose(session: Session, work: Work, last: int) -> tuple[Target | None, str]:
    """Where the batch goes, and why; None: nowhere before the other server has answered."""
    if session.flights:
        if session.target is Target.PRIMARY:
            return Target.PRIMARY, "pipelined"
        # The same replica as before, if it is still fit for this one too.
        if (
            work.reads_only
            and last in ENDS
            and session.reading.replica_for(work)[0] == session.reading.replica
        ):
            return Target.REPLICA, "pipelined"
        return None, "drain"
    if session.status != IDLE:
        return Target.PRIMARY, "in_transaction"
    if not session.context.reads.enabled:
        return Target.PRIMARY, "no_replica"
    if not work.reads_only:
        return Target.PRIMARY, "not_read_only"
    if last not in ENDS:
        return Target.PRIMARY, "unfinished_batch"
    if not work.plans:
        return Target.PRIMARY, "no_statement"
    index, reason = session.reading.replica_for(work)
    if index is None:
        session.reading.waits(reason)
        return Target.PRIMARY, reason
    if not session.port.replica_ready(index):
        return Target.PRIMARY, "replica_connecting"
    session.reading.found(index)
    return Target.REPLICA, reason


def send(session: Session, frames: list[bytes], work: Work, target: Target, term: Term) -> None:
    context = session.context
    flight = session.open_flight
    if flight is None:
        flight = Flight(term, target, context.clock(), frames)
        term.active += 1
        session.quiet = not session.flights
        session.flights.append(flight)
    else:
        flight.frames = None
    if term.routing.tables:
        spoken = session.spoken
        flight.translate = functools.partial(_translated, spoken, spoken.version, context.book(), work)
    last = work.items[-1].kind
    session.open_flight = None if last in ENDS else flight
    session.target = target
    if work.touches and not session.touching:
        session.touching = True
        context.hub.touch()
    out: list[bytes] = []
    entries: list[Reply] = []
    failed = (
        session.status == FAILED
        and len(session.flights) == 1
        and not any(plan.kind in _LEAVES for plan in work.plans)
    )
    session.outbox.batch += 1
    flight.books = flight.books or any(
        item.kind in (m.PARSE, m.CLOSE) and item.name != b"" for item in work.items
    )
    for item in work.items:
        entry = session.outbox.emit(item, target, out, entries, failed)
        if item.plan is not None:
            _note(session, item, item.plan, flight)
        ran = item if item.kind == m.QUERY else item.runs
        if ran is not None and ran.plan is not None and ran.plan.kind in _FORGETFUL:
            undo = forget(session, ran.text, flight)
            if undo is not None and item.kind == m.EXECUTE:
                entry = Reply(m.EXECUTE, undo=undo)
            elif undo is not None:
                flight.undo.append(undo)
        if entry is not None:
            entries.append(entry)
    if last == m.SYNC and len(work.items) > 1:
        entries = _coarse(entries)
    session.queues[target].expect_all(entries)
    data = out[0] if len(out) == 1 else b"".join(out)
    if target is Target.PRIMARY:
        session.send_primary(data)
    else:
        session.port.to_server(target, data)


def _translated(spoken: Spoken, version: str, book: PlanBook, work: Work, message: bytes) -> bytes:
    """An error of a batch, in the words of the version under which its statements were prepared."""
    versions = {item.statement.version for item in work.items if item.statement is not None}
    side = spoken.side_of(versions.pop() if len(versions) == 1 else version)
    if isinstance(side, Refusal):
        return message
    tables = {table for plan in work.plans for table in plan.tables}
    return translated(book.translator(side), tuple(tables), message)


def _coarse(entries: list[Reply]) -> list[Reply]:
    """One entry for a batch of which nothing has to be told apart."""
    edits = None
    for entry in entries:
        if entry in _PLAIN:
            continue
        if (
            entry.request not in (m.BIND, m.EXECUTE)
            or entry.edits is None
            or entry.undo is not None
            or edits not in (None, entry.edits)
        ):
            return entries
        edits = entry.edits
    return [PLAIN_SYNC if edits is None else Reply(m.SYNC, edits=edits)]


def forget(session: Session, text: bytes, flight: Flight) -> Callable[[], None] | None:
    """Follow an SQL DEALLOCATE or DISCARD; what brings back what was forgotten, should it fail."""
    undo = session.outbox.forget(text)
    if undo is not None:
        flight.books = True
        if discards_all(text):
            session.effects.discarded(flight)
    return undo


def make_way(session: Session, text: bytes) -> None:
    """A statement may need a database for itsession."""
    name = wanted_alone(text)
    if name is not None:
        session.port.make_way(name)


def _note(session: Session, item: Item, plan: Plan, flight: Flight) -> None:
    """What sending the statement means for the session and its counters."""
    stats = session.context.stats
    if item.fails:
        if item.decides and item.refusal is not None:
            stats.refusals[plan.reason] += 1
        return
    if item.decides and plan.kind in (Kind.DDL, Kind.WRITE) and plan.statements == 1:
        # With the Parse, since what is prepared may be run on the fast path.
        make_way(session, item.text)
    if item.kind == m.QUERY or item.kind == m.BIND:
        if plan.rewritten:
            stats.rewrites[plan.reason] += 1
        flight.mixed = flight.mixed or not plan.mirrored or plan.statements > 1
        if plan.mirrored:
            stats.mirrored += 1
            flight.mirrored += plan.tables
        elif plan.guarded:
            stats.guarded += 1
        session.effects.note(item.text, plan, flight)
        if plan.kind is not Kind.READ:
            session.temporary.sent(item.text, plan)
