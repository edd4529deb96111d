"""What is sent for a studied batch, and which replies are expected for it.

Contract: an :class:`Outbox` turns one decided message after the other into bytes for a server and entries for its reply
queue. It owns the session's prepared statements and knows which texts each server connection has prepared; a statement
whose wanted text differs from the prepared one is closed and prepared anew behind the client's back. A refused
statement is replaced by one that fails on the server, so that the transaction's state there is what PostgreSQL's
would be, and the server's error by ours.

On servers that are shared by transactions (``names`` is set) a statement has a name of its text there: Parse, Bind,
Describe and Close are translated, a Parse of what the server has already becomes a Close of nothing (it keeps its
place in the order and fails where a Parse would be discarded), and error messages get the client's name back.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Mapping
from typing import NamedTuple, final

from proxy.rewrite.plan import Kind, Plan, Refusal
from proxy.rewrite.replies import Translator, located
from proxy.session.names import StatementNames
from proxy.session.ports import Target
from proxy.session.replies import (
    PLAIN_BIND,
    PLAIN_CALL,
    PLAIN_DESCRIBE,
    PLAIN_EXECUTE,
    PLAIN_QUERY,
    PLAIN_SYNC,
    SKIPPED_PARSE,
    Mode,
    Reply,
)
from proxy.session.settings import SessionSettings
from proxy.session.statements import Prepared, Sent, Statement, deallocated
from proxy.session.work import Item
from proxy.stats import Stats
from proxy.wire import messages as m
from proxy.wire.messages import ProtocolViolation

REFUSED_TEXT = b"/* refused by dualwire, see the client's error */ SELECT refused_by_dualwire"
"""What a server gets instead of a refused statement: there is no such column. In a failed transaction it says that."""
_REFUSED_PARSE = m.parse(b"refused_by_dualwire", REFUSED_TEXT, ())
_REFUSED_UNNAMED = m.parse(b"", REFUSED_TEXT, ())
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


_CLOSE_NOTHING = m.frame(m.CLOSE, b"Pdualwire_nothing\0")


class Missing(NamedTuple):
    """A statement as a server must have it: its name there, its text and parameter types."""

    statement: Statement
    name: bytes
    sent: Sent
    plan: Plan


@final
class Outbox:
    """See the module's docstring."""

    def __init__(self, stats: Stats, settings: SessionSettings, names: StatementNames | None = None) -> None:
        self._stats = stats
        self._settings = settings
        self.names = names
        self.batch = 0
        """The number of the batch that is being sent."""
        self.statements: dict[bytes, Statement] = {}
        self.prepared = [Prepared(), Prepared()]
        """What the primary's and the replica's connection have prepared."""

    def emit(
        self, item: Item, target: Target, out: list[bytes], entries: list[Reply], failed: bool = False
    ) -> Reply | None:
        """Append the item's bytes to ``out``; the entry for the item itself is returned, earlier ones appended.

        ``failed``: the transaction is known to have failed.
        """
        kind = item.kind
        if kind == m.EXECUTE:
            self._stats.queries += 1
        if item.fails and kind in (m.QUERY, m.PARSE, m.BIND, m.DESCRIBE):
            return self._emit_failure(item, target, out)
        if kind == m.QUERY:
            return self._emit_query(item, out, entries, failed)
        if kind == m.PARSE:
            return self._emit_parse(item, target, out, entries, failed)
        if (
            kind in (m.BIND, m.DESCRIBE)
            and item.plan is not None
            # What was deallocated earlier in the batch is not there any more.
            and item.statement is not None
            and item.statement is self.statements.get(item.name)
        ):
            name = self._ensure_prepared(item, item.plan, target, out, entries)
            out.append(item.frame if name == item.name else renamed(item.frame, name))
            edits = self._edits(item)
            if kind == m.DESCRIBE:
                return Reply(m.DESCRIBE, capture=item.statement.hear, edits=edits)
            return PLAIN_BIND if edits is None else Reply(m.BIND, edits=edits)
        if kind == m.CLOSE:
            return self._emit_close(item, target, out)
        if (
            self.names is not None
            and (kind == m.BIND or (kind == m.DESCRIBE and item.frame[5:6] == b"S"))
            and not item.name
        ):
            # The client has none, but somebody else may have left one there.
            out.append(m.close_statement(b""))
            entries.append(Reply(m.CLOSE, Mode.SKIP))
            self.prepared[target].drop(b"")
        out.append(item.frame)
        if kind == m.EXECUTE and item.runs is not None:
            edits = self._edits(item.runs)
            if edits is not None:
                return Reply(m.EXECUTE, edits=edits)
        return PLAIN.get(kind)

    def _edits(self, item: Item) -> Callable[[bytes], bytes] | None:
        """What an error of the item's statement goes through on its way to the client."""
        if item.edits is None and item.plan is not None and item.refusal is None and item.plan.rewritten:
            item.edits = functools.partial(_located, item.plan, item.text)
        return item.edits

    def _emit_failure(self, item: Item, target: Target, out: list[bytes]) -> Reply:
        """What fails on the server in the place of a statement that is not sent."""
        error = item.error if item.refusal is None else _refusal_frame(item.refusal)
        kind, fate = m.PARSE, None
        if item.kind == m.QUERY:
            out.append(_REFUSED_QUERY)
            kind = m.QUERY
        elif item.kind == m.PARSE and not item.name:
            out.append(_REFUSED_UNNAMED)
            fate = self._fate(self.prepared[target])
        else:
            out.append(_REFUSED_PARSE)
        if item.tried:
            # Whatever the server says: the trial may have failed the transaction already.
            return Reply(kind, edits=lambda message: error, fate=fate)
        return Reply(kind, Mode.REPLACE, payload=error, fate=fate)

    def _emit_query(self, item: Item, out: list[bytes], entries: list[Reply], failed: bool) -> Reply:
        plan = item.plan
        assert plan is not None
        self._stats.queries += plan.statements
        undo = self._end_unnamed()
        if not plan.rewritten:
            text = self._deallocation(item.text, plan, out, entries, failed)
            out.append(item.frame if text is None else m.query(text))
            return PLAIN_QUERY if undo is None else Reply(m.QUERY, undo=undo)
        out.append(m.query(plan.text))
        return Reply(m.QUERY, undo=undo, edits=functools.partial(_located, plan, item.frame[5:-1]))

    def _end_unnamed(self) -> Callable[[], None] | None:
        """A simple Query ends the unnamed statement; what brings it back if the server skips the Query."""
        statement = self.statements.pop(b"", None)
        sent = [prepared.texts.get(b"") for prepared in self.prepared]
        for prepared in self.prepared:
            prepared.drop(b"")
        if statement is None and not any(sent):
            return None
        servers = list(self.prepared)

        def undo() -> None:
            if statement is not None:
                self.statements[b""] = statement
            for prepared, text in zip(servers, sent, strict=True):
                if text is not None:
                    prepared.put(b"", text, False)

        return undo

    def _deallocation(
        self, text: bytes, plan: Plan, out: list[bytes], entries: list[Reply], failed: bool
    ) -> bytes | None:
        """What an SQL DEALLOCATE of a protocol-level statement becomes on a shared server: one of nothing."""
        names = self.names
        if names is None or failed or plan.kind is not Kind.SESSION:
            return None
        name = deallocated(text)
        if not name or name not in self.statements:
            return None
        self._make_taken(names, out, entries)
        return b"DEALLOCATE " + names.taken

    def _make_taken(self, names: StatementNames, out: list[bytes], entries: list[Reply]) -> None:
        """See to it that the server knows that name, whatever it knew before."""
        out += (m.close_statement(names.taken), m.parse(names.taken, b"", ()))
        entries += (Reply(m.CLOSE, Mode.SKIP), SKIPPED_PARSE)

    def _emit_parse(
        self, item: Item, target: Target, out: list[bytes], entries: list[Reply], failed: bool
    ) -> Reply:
        statement, plan, name = item.statement, item.plan, item.name
        assert statement is not None
        assert plan is not None
        text, wire_name, prepared = plan.text, name, self.prepared[target]
        if self.names is not None:
            if not name:
                text = self._deallocation(statement.text, plan, out, entries, failed) or text
            elif name in self.statements:
                # A name that is taken fails (42P05); so must this one.
                self._make_taken(self.names, out, entries)
                out.append(m.parse(self.names.taken, text, item.oids))
                return Reply(m.PARSE, edits=functools.partial(_with_name, self.names.taken, name))
            else:
                wire_name = self._name_on_servers(statement, (text, item.oids))
                if wire_name in prepared.texts and not failed:
                    undo = self._undo(target, name, wire_name)
                    self.statements[name] = statement
                    prepared.used(wire_name)
                    out.append(_CLOSE_NOTHING)
                    return Reply(m.CLOSE, Mode.ANSWER, payload=m.PARSE_COMPLETE_FRAME, undo=undo)
                self._make_room(prepared, out, entries)
        if text is not plan.text or plan.rewritten or item.oids != statement.oids or wire_name != name:
            out.append(m.parse(wire_name, text, item.oids))
        else:
            out.append(item.frame)
        # A name that is taken already fails (42P05), and then the first statement stays what it is.
        undo = self._undo(target, name, wire_name)
        self.statements[name] = statement
        prepared.put(wire_name, (plan.text, item.oids), plan.rewritten and self.names is None)
        if target is Target.REPLICA and self.names is None:
            self.prepared[Target.PRIMARY].lack(name)
        edits = functools.partial(_located, plan, statement.text) if plan.rewritten else None
        return Reply(m.PARSE, undo=undo, edits=edits, fate=None if name else self._fate(prepared))

    def _undo(self, target: Target, name: bytes, wire_name: bytes) -> Callable[[], None]:
        statement, back = self.statements.get(name), self.prepared[target].undo(wire_name)

        def undo() -> None:
            back()
            if statement is None:
                self.statements.pop(name, None)
            else:
                self.statements[name] = statement

        return undo

    def _fate(self, prepared: Prepared) -> Callable[[], None]:
        """A Parse of the unnamed statement that fails ends the earlier one all the same; a skipped one does not."""

        def ended() -> None:
            self.statements.pop(b"", None)
            prepared.drop(b"")

        return ended

    def _make_room(self, prepared: Prepared, out: list[bytes], entries: list[Reply]) -> None:
        """Close what a shared server has not used for longest, if it is full."""
        assert self.names is not None
        eldest = prepared.eldest(self.names.limit)
        if eldest is not None:
            out.append(m.close_statement(eldest))
            entries.append(Reply(m.CLOSE, Mode.SKIP, undo=prepared.undo(eldest)))
            prepared.drop(eldest)

    def _name_on_servers(self, statement: Statement, sent: Sent) -> bytes:
        """The name under which shared servers know a statement now."""
        assert self.names is not None
        scope = self._settings.scope
        name = self.names.name(sent, scope)
        # What is kept is the name of the client's own text: the fast path sends no other.
        statement.wire_scope, statement.wire_name = scope, name if sent == statement.sent else b""
        return name

    def renew(self, statement: Statement, sent: Sent) -> None:
        """What shared servers know is out of date."""
        assert self.names is not None
        self.names.renew(sent, statement.wire_scope, statement.wire_name)
        statement.wire_name = b""

    def _wanted(self, item: Item, plan: Plan) -> Missing:
        """The statement as a server must have it."""
        assert item.statement is not None
        name, sent = item.name, (plan.text, item.oids)
        if name and self.names is not None:
            name = self._name_on_servers(item.statement, sent)
        return Missing(item.statement, name, sent, plan)

    def _has(self, prepared: Prepared, wanted: Missing) -> bool:
        """Whether the server has it, or will have it before anything of this batch can fail."""
        return (
            prepared.texts.get(wanted.name) == wanted.sent
            and prepared.unproved.get(wanted.name, self.batch) == self.batch
        )

    def missing(self, items: list[Item], target: Target) -> list[Missing]:
        """Statements whose columns the client was told, and that the server would have to prepare first."""
        found: list[Missing] = []
        for item in items:
            statement = item.statement
            if (
                item.kind == m.BIND
                and statement is not None
                and statement.told is not None
                and statement.told[0] == m.ROW_DESCRIPTION
                and item.plan is not None
                and not item.fails
                and statement is self.statements.get(item.name)
            ):
                wanted = self._wanted(item, item.plan)
                if not self._has(self.prepared[target], wanted) or statement.told_as != statement.wire_name:
                    found.append(wanted)
        return found

    def prepare(self, wanted: Missing, target: Target, out: list[bytes], entries: list[Reply]) -> None:
        """Prepare a statement behind the client's back."""
        prepared, name = self.prepared[target], wanted.name
        if name in prepared.texts and name:
            out.append(m.close_statement(name))
            entries.append(Reply(m.CLOSE, Mode.SKIP, undo=prepared.undo(name)))
            prepared.drop(name)
        elif name and self.names is not None:
            self._make_room(prepared, out, entries)
        out.append(m.parse(name, *wanted.sent))
        # Until it has succeeded, a batch that is pipelined behind this one prepares it once more.
        rewritten = wanted.plan.rewritten and self.names is None
        edits = (
            functools.partial(_located, wanted.plan, wanted.statement.text) if wanted.plan.rewritten else None
        )
        proof = functools.partial(prepared.prove, name, rewritten)
        fate = None if name else self._fate(prepared)
        entries.append(
            Reply(m.PARSE, Mode.SKIP, undo=prepared.undo(name), capture=proof, fate=fate, edits=edits)
        )
        prepared.put(name, wanted.sent, True)
        prepared.unproved[name] = self.batch

    def _ensure_prepared(
        self, item: Item, plan: Plan, target: Target, out: list[bytes], entries: list[Reply]
    ) -> bytes:
        """Prepare the statement where the server has not the text that is wanted now; its name on the server."""
        wanted = self._wanted(item, plan)
        if not self._has(self.prepared[target], wanted):
            self.prepare(wanted, target, out, entries)
        elif wanted.name and self.names is not None:
            self.prepared[target].used(wanted.name)
        return wanted.name

    def _emit_close(self, item: Item, target: Target, out: list[bytes]) -> Reply:
        if item.frame[5] != ord("S"):
            out.append(item.frame)
            return Reply(m.CLOSE)
        undo = self._undo(target, item.name, item.name)
        if item.name and self.names is not None:
            # Other clients may use it.
            out.append(_CLOSE_NOTHING)
        else:
            out.append(item.frame)
            self.prepared[target].drop(item.name)
        self.statements.pop(item.name, None)
        return Reply(m.CLOSE, undo=undo)

    def localized(self, message: bytes, frames: list[bytes] | None) -> bytes:
        """An error message with the client's names for statements instead of a shared server's.

        ``frames`` are the messages of the batch that failed.
        """
        names = self.names
        if names is None or names.prefix not in message:
            return message
        for name, statement in self.statements.items():
            wire_name = statement.wire_name
            if name and wire_name and b'"' + wire_name + b'"' in message:
                return _with_name(wire_name, name, message)
        # The statement is gone, with the Parse that failed before; its name is where it was used.
        used = {m.read_bind_names(frame)[1] for frame in frames or () if frame[0] == m.BIND}
        wire_name = names.prefix + message.partition(names.prefix)[2].partition(b'"')[0]
        return _with_name(wire_name, used.pop(), message) if len(used) == 1 else message

    def foreign(self, version: str) -> bool:
        """Whether there are statements of another version: each must be looked at before it is used."""
        return any(statement.version != version for statement in self.statements.values())

    def forget(self, text: bytes) -> Callable[[], None] | None:
        """Follow an SQL DEALLOCATE or DISCARD; what brings back what was forgotten, should it fail."""
        name = deallocated(text)
        if name is None:
            return None
        prepared = self.prepared[Target.PRIMARY]
        statements = dict(self.statements)
        texts = dict(prepared.texts)
        if name:
            self.statements.pop(name, None)
            if self.names is None:
                prepared.drop(name)
        else:
            self.statements.clear()
            prepared.clear()

        def undo() -> None:
            for known, statement in statements.items():
                if known and known not in self.statements:
                    self.statements[known] = statement
            for known, sent in texts.items():
                if known and known not in prepared.texts:
                    prepared.put(known, sent, False)

        return undo


def discards_all(text: bytes) -> bool:
    """Whether a text that deallocates is DISCARD ALL, which resets the session's settings too."""
    return _DISCARD_ALL.search(text) is not None


def renamed(frame: bytes, name: bytes) -> bytes:
    """A Bind or Describe message for another statement."""
    if frame[0] == m.DESCRIBE:
        return m.describe_statement(name)
    portal_end = frame.index(b"\0", m.HEADER) + 1
    return m.frame(m.BIND, frame[m.HEADER : portal_end] + name + frame[frame.index(b"\0", portal_end) :])


def _with_name(wire_name: bytes, name: bytes, message: bytes) -> bytes:
    """An error with a statement's name replaced."""
    text = m.error_fields(message).get("M", b"")
    return m.error_with_fields(message, {"M": text.replace(b'"' + wire_name + b'"', b'"' + name + b'"')})


def _refusal_frame(refusal: Refusal) -> bytes:
    # Drivers recognise a retired prepared statement by the routine's name and prepare it again by themselves.
    routine = "RevalidateCachedQuery" if refusal.message.startswith("cached plan") else ""
    return m.error_response(
        refusal.sqlstate,
        refusal.message,
        detail=refusal.detail,
        hint=refusal.hint,
        routine=routine,
        position=refusal.position,
    )


def _located(plan: Plan, original: bytes, message: bytes) -> bytes:
    """The error of a rewritten text, as one of the client's text."""
    return _changed(message, lambda fields: located(plan, original, fields))


def translated(translator: Translator, tables: tuple[str, ...], message: bytes) -> bytes:
    """The error of a migrated table, as one of the client's version; ``tables`` are those of the batch."""
    return _changed(message, lambda fields: translator.error(fields, tables))


def _changed(message: bytes, change: Callable[[dict[str, str]], Mapping[str, str | None]]) -> bytes:
    try:
        fields = {
            key: value.decode("utf-8", "surrogateescape") for key, value in m.error_fields(message).items()
        }
    except ProtocolViolation:
        return message
    changes = change(fields)
    if not changes:
        return message
    return m.error_with_fields(
        message,
        {
            key: None if value is None else value.encode("utf-8", "surrogateescape")
            for key, value in changes.items()
        },
    )
