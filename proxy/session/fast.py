"""The fast path: batches that no rule can touch go to the primary as they are, unparsed.

Contract: both functions either send the whole batch and say True, or change nothing that matters and say False; then
the session studies the batch. :func:`harmless_batch` says which batches may take it on servers that are shared by
transactions, where also what outlives a transaction must be seen.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from proxy.session.context import Term
from proxy.session.harmless import harmless
from proxy.session.outbox import PLAIN, renamed
from proxy.session.sending import forget, make_way
from proxy.session.statements import Statement
from proxy.wire import messages as m

_OF_INTEREST: Final = b"dDaAcC \t\n\r/-"
"""With what a DEALLOCATE, a DISCARD or a statement on databases may begin."""

if TYPE_CHECKING:
    from proxy.session.core import Session


def pass_own(session: Session, frames: list[bytes], term: Term) -> bool:
    """Send a batch to the server that the session has for itself."""
    last = frames[-1]
    end = last[0]
    queries = 0
    outbox = session.outbox
    if end == m.QUERY:
        queries = 1
    elif end == m.SYNC:
        for frame in frames:
            kind = frame[0]
            if kind == m.EXECUTE:
                queries += 1
            elif kind == m.PARSE:
                if frame[5:6] != b"\0":
                    return False
                statement = Statement(frame, session.spoken.version)
                outbox.prepared[0].texts[b""] = statement.sent
                outbox.statements[b""] = statement
                if len(frame) > 6 and frame[6] in _OF_INTEREST:
                    make_way(session, statement.text)
            elif kind == m.CLOSE:
                return False
            elif kind == m.DESCRIBE and len(frame) > 7 and frame[5] == 0x53:
                # What the client is told of a named statement is kept in mind, see ``proxy.session.cure``.
                return False
    elif end != m.FUNCTION_CALL or len(frames) > 1:
        return False
    # Settings and temporary relations are not followed here; should replicas be switched on, not for this session.
    session.settings.unknown = True
    flight = session.fly(frames, term)
    if end == m.QUERY and len(last) > 5 and last[5] in _OF_INTEREST:
        undo = forget(session, last[5:-1], flight)
        if undo is not None:
            flight.undo.append(undo)
        make_way(session, last[5:-1])
    session.context.stats.queries += queries
    session.queues[0].expect(PLAIN[end])
    session.send_primary(last if len(frames) == 1 else b"".join(frames))
    return True


def pass_shared(session: Session, frames: list[bytes], term: Term) -> bool:
    """Send a harmless batch to the server that the session has for this transaction."""
    outbox = session.outbox
    prepared = outbox.prepared[0]
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
                fresh = Statement(frame, session.spoken.version)
            elif kind == m.BIND:
                name = m.read_bind_names(frame)[1]
                statement = fresh if fresh is not None and not name else outbox.statements.get(name)
                if statement is None:
                    return False
                if name:
                    scope = session.settings.scope
                    if not statement.wire_name or statement.wire_scope is not scope:
                        if statement.told is not None:
                            return False
                        statement.wire_scope = scope
                        statement.wire_name = names.name(statement.sent, scope)
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
            prepared.texts[b""] = fresh.sent
            outbox.statements[b""] = fresh
        last = b"".join(out)
    session.fly(frames, term)
    session.context.stats.queries += queries
    session.queues[0].expect(PLAIN[end])
    session.send_primary(last)
    return True


def harmless_batch(frames: list[bytes], statements: dict[bytes, Statement]) -> bool:
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
                if statement is None or statement.changed or not statement.harmless:
                    return False
        elif kind == m.CLOSE or (kind == m.DESCRIBE and frame[5:6] == b"S"):
            return False
    return True
