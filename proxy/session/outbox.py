"""What is sent for a studied batch, and which replies are expected for it.

Contract: an :class:`Outbox` turns one decided message after the other into bytes for a server and entries for its reply
queue. It owns the session's prepared statements and knows which texts each server connection has prepared; a statement
whose wanted text differs from the prepared one is closed and prepared anew behind the client's back. A refused
statement is replaced by one that fails on the server, so that the transaction's state there is what PostgreSQL's
would be, and the server's error by ours.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable

from proxy.rewrite.plan import Plan, Refusal
from proxy.session.ports import Target
from proxy.session.replies import (
    PLAIN_BIND,
    PLAIN_CALL,
    PLAIN_DESCRIBE,
    PLAIN_EXECUTE,
    PLAIN_QUERY,
    PLAIN_SYNC,
    Mode,
    Reply,
)
from proxy.session.statements import Prepared, Statement, deallocated
from proxy.session.work import Item
from proxy.sql.splice import original_position
from proxy.stats import Stats
from proxy.wire import messages as m
from proxy.wire.messages import ProtocolViolation

REFUSED_TEXT = b"/* refused by dualwire, see the client's error */ refused_by_dualwire"
"""What a server gets instead of a refused statement; it does not parse."""
_REFUSED_PARSE = m.parse(b"refused_by_dualwire", REFUSED_TEXT, ())
_REFUSED_QUERY = m.query(REFUSED_TEXT)
_DISCARD_ALL = re.compile(rb"\bDISCARD\s+ALL\b", re.IGNORECASE)
PLAIN = {
    m.BIND: PLAIN_BIND,
    m.EXECUTE: PLAIN_EXECUTE,
    m.DESCRIBE: PLAIN_DESCRIBE,
    m.SYNC: PLAIN_SYNC,
    m.QUERY: PLAIN_QUERY,
    m.FUNCTION_CALL: PLAIN_CALL,
}
"""The entry of a request that nothing special is to be done about."""


class Outbox:
    """See the module's docstring."""

    def __init__(self, stats: Stats) -> None:
        self._stats = stats
        self.statements: dict[bytes, Statement] = {}
        self.prepared = (Prepared(), Prepared())
        """What the primary's and the replica's connection have prepared."""

    def emit(self, item: Item, target: Target, out: list[bytes], entries: list[Reply]) -> Reply | None:
        """Append the item's bytes to ``out``; the entry for the item itself is returned, earlier ones appended."""
        kind = item.kind
        if kind == m.EXECUTE:
            self._stats.queries += 1
        if item.refusal is not None and kind in (m.QUERY, m.PARSE, m.BIND, m.DESCRIBE):
            out.append(_REFUSED_QUERY if kind == m.QUERY else _REFUSED_PARSE)
            return Reply(
                m.QUERY if kind == m.QUERY else m.PARSE, Mode.REPLACE, payload=_refusal_frame(item.refusal)
            )
        if kind == m.QUERY:
            return self._emit_query(item, out)
        if kind == m.PARSE:
            return self._emit_parse(item, target, out)
        if kind in (m.BIND, m.DESCRIBE) and item.statement is not None and item.plan is not None:
            self._ensure_prepared(item, item.plan, target, out, entries)
        out.append(item.frame)
        if kind == m.CLOSE:
            return self._emit_close(item, target)
        return PLAIN.get(kind)

    def _emit_query(self, item: Item, out: list[bytes]) -> Reply:
        plan = item.plan
        assert plan is not None
        self._stats.queries += plan.statements
        self.statements.pop(b"", None)
        for prepared in self.prepared:
            prepared.drop(b"")
        if not plan.rewritten:
            out.append(item.frame)
            return PLAIN_QUERY
        out.append(m.query(plan.text))
        return Reply(m.QUERY, edits=functools.partial(_map_position, plan, item.frame[5:-1]))

    def _emit_parse(self, item: Item, target: Target, out: list[bytes]) -> Reply:
        statement, plan, name = item.statement, item.plan, item.name
        assert statement is not None
        assert plan is not None
        if plan.rewritten or item.oids != statement.oids:
            out.append(m.parse(name, plan.text, item.oids))
        else:
            out.append(item.frame)
        # A name that is taken already fails (42P05), and then the first statement stays what it is.
        undo = self._undo(target, name)
        self.statements[name] = statement
        self.prepared[target].put(name, (plan.text, item.oids), plan.rewritten)
        if target is Target.REPLICA:
            self.prepared[Target.PRIMARY].lack(name)
        edits = functools.partial(_map_position, plan, statement.text) if plan.rewritten else None
        return Reply(m.PARSE, undo=undo, edits=edits)

    def _undo(self, target: Target, name: bytes) -> Callable[[], None]:
        statement, back = self.statements.get(name), self.prepared[target].undo(name)

        def undo() -> None:
            back()
            if statement is None or not name:
                self.statements.pop(name, None)
            else:
                self.statements[name] = statement

        return undo

    def _ensure_prepared(
        self, item: Item, plan: Plan, target: Target, out: list[bytes], entries: list[Reply]
    ) -> None:
        """Prepare the statement behind the client's back where the server has not the text that is wanted now."""
        prepared = self.prepared[target]
        known = prepared.texts.get(item.name)
        if known is not None and known[0] == plan.text and known[1] == item.oids:
            return
        if known is not None and item.name:
            out.append(m.close_statement(item.name))
            entries.append(Reply(m.CLOSE, Mode.SKIP, undo=prepared.undo(item.name)))
            prepared.drop(item.name)
        out.append(m.parse(item.name, plan.text, item.oids))
        entries.append(Reply(m.PARSE, Mode.SKIP, undo=prepared.undo(item.name)))
        prepared.put(item.name, (plan.text, item.oids), plan.rewritten)

    def _emit_close(self, item: Item, target: Target) -> Reply:
        if item.frame[5] != ord("S"):
            return Reply(m.CLOSE)
        undo = self._undo(target, item.name)
        self.statements.pop(item.name, None)
        self.prepared[target].drop(item.name)
        return Reply(m.CLOSE, undo=undo)

    def foreign(self, version: str) -> bool:
        """Whether there are statements of another version: each must be looked at before it is used."""
        return any(statement.version != version for statement in self.statements.values())

    def forget(self, text: bytes) -> bool:
        """Follow an SQL DEALLOCATE or DISCARD; True if it was DISCARD ALL, which resets the session's settings too."""
        name = deallocated(text)
        if name == b"":
            self.statements.clear()
            self.prepared[Target.PRIMARY].clear()
            return _DISCARD_ALL.search(text) is not None
        if name is not None:
            self.statements.pop(name, None)
            self.prepared[Target.PRIMARY].drop(name)
        return False


def _refusal_frame(refusal: Refusal) -> bytes:
    # Drivers recognise a retired prepared statement by the routine's name and prepare it again by themselves.
    routine = "RevalidateCachedQuery" if refusal.message.startswith("cached plan") else ""
    return m.error_response(
        refusal.sqlstate, refusal.message, detail=refusal.detail, hint=refusal.hint, routine=routine
    )


def _map_position(plan: Plan, original: bytes, message: bytes) -> bytes:
    """The error with its position mapped from the rewritten text to the client's."""
    try:
        position = m.error_fields(message).get("P")
    except ProtocolViolation:
        return message
    if position is None:
        return message
    mapped = original_position(original, plan.edits, int(position))
    return m.error_with_fields(message, {"P": str(mapped).encode()})
