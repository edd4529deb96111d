"""Statements that a server has not got as they are wanted are prepared anew, unseen by the client.

After DDL a server refuses an earlier prepared statement with 0A000 "cached plan must not change result type"; on a
server that is shared by transactions somebody may have deallocated what we prepared (26000), or it has never had it.

Contract, in three parts. *Repeat*: a batch that failed so is sent once more, if it began outside of a transaction, if
it is the only one under way, and if the client has heard nothing of it yet: then the error has undone whatever the
batch did, and nobody can tell. *Check*: before a statement that the client has Described as one is used on a server
that must prepare it first, it is prepared and described there; if its columns are not what the client was told, the
client gets 0A000, because drivers decode rows by the description that they have.

*Try*: where a spare connection has an error for a statement's twin, the session's own one is asked too, which knows
the session's temporary tables and what its transaction has made. Its error is the client's, and has done to the
transaction what the statement would have done.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Literal, final

from proxy.session.context import Flight
from proxy.session.outbox import Missing, Outbox
from proxy.session.ports import Target
from proxy.session.replies import SKIPPED_PARSE, SKIPPED_SYNC, Mode, Reply
from proxy.session.statements import Statement
from proxy.session.twins import DIFFERENT, rejected
from proxy.session.work import Doubt, Tried
from proxy.wire import messages as m

if TYPE_CHECKING:
    from proxy.session.core import Session

_CHANGED = b"\0C0A000\0"
_ROUTINE = b"\0RRevalidateCachedQuery\0"
_MISSING = b"\0C26000\0"
_TRIAL = b"dualwire_trial"


@final
class Cure:
    """See the module's docstring."""

    __slots__ = (
        "_doubt",
        "_error",
        "_frames",
        "_outbox",
        "_rows",
        "_session",
        "_stage",
        "_statements",
        "_status",
        "_target",
        "_types",
    )

    def __init__(self, session: Session, outbox: Outbox) -> None:
        self._session = session
        self._outbox = outbox
        self._frames: list[bytes] = []
        self._error = b""
        self._target = Target.PRIMARY
        self._statements: list[Statement] = []
        self._status = 0
        self._stage: Literal["", "failed", "over", "asked", "answered"] = ""
        self._doubt: Doubt | None = None
        self._types: tuple[int, ...] = ()
        self._rows: list[bytes] = []
        """How the twin was described, and then the text that is to be sent."""

    @property
    def asked(self) -> bool:
        """Whether the batch under way is our own question."""
        return self._stage == "asked"

    @property
    def due(self) -> bool:
        """Whether :meth:`proceed` is to be called once the bytes at hand are read."""
        return self._stage == "over" or self._stage == "answered"

    # -- repeat ----------------------------------------------------------------------------------------------------

    def wants(self, message: bytes, flight: Flight) -> bool:
        """Whether an error that the client has not heard of can be cured; the caller has seen to the rest."""
        frames = flight.frames
        if frames is None or frames is self._frames or frames[-1][0] != m.SYNC:
            return False
        if _CHANGED in message:
            if _ROUTINE not in message:
                return False
        elif _MISSING not in message or self._outbox.names is None:
            return False
        statements = self._used(frames)
        if not statements:
            return False
        self._frames, self._error, self._target, self._statements = frames, message, flight.target, statements
        self._stage = "failed"
        return True

    def _used(self, frames: list[bytes]) -> list[Statement]:
        """The statements that the batch uses and that the server had before it."""
        found: list[Statement] = []
        parsed: set[bytes] = set()
        shared = self._outbox.names is not None
        for frame in frames:
            if frame[0] == m.PARSE and not shared:
                parsed.add(m.cstring(frame, m.HEADER)[0])
            elif frame[0] == m.BIND or (frame[0] == m.DESCRIBE and frame[5:6] == b"S"):
                name = m.read_bind_names(frame)[1] if frame[0] == m.BIND else m.read_target(frame)[1]
                statement = self._outbox.statements.get(name)
                if statement is not None and name not in parsed and statement not in found:
                    found.append(statement)
        return found

    def outdated(self, message: bytes, frames: list[bytes] | None) -> None:
        """An error goes to the client: what it says is out of date on shared servers is not used there again."""
        names = self._outbox.names
        if names is not None and frames is not None and _CHANGED in message and _ROUTINE in message:
            for statement in self._used(frames):
                self._outbox.renew(statement, statement.sent)

    def _repeat(self) -> None:
        prepared = self._outbox.prepared[self._target]
        if _MISSING in self._error:
            prepared.clear()
        names, book = self._outbox.names, self._outbox.statements
        for name, statement in book.items():
            if statement in self._statements:
                if name and names is not None:
                    self._outbox.renew(statement, statement.sent)
                else:
                    prepared.distrust(name)
        for frame in self._frames:
            if frame[0] == m.PARSE:
                # It was answered, but unheard: it is new again.
                book.pop(m.cstring(frame, m.HEADER)[0], None)
        self._session.repeat(self._frames)

    # -- check -----------------------------------------------------------------------------------------------------

    def check(self, missing: list[Missing], target: Target) -> None:
        """Prepare statements on a server and see whether they still give what the client was told."""
        requests: list[bytes] = []
        entries: list[Reply] = []
        for one in missing:
            self._outbox.prepare(one, target, requests, entries)
            requests.append(m.describe_statement(one.name))
            compare = functools.partial(self._compare, one, target)
            entries.append(Reply(m.DESCRIBE, Mode.SKIP, capture=compare))
        self._stage, self._error, self._target = "asked", b"", target
        self._session.ask(target, b"".join((*requests, m.SYNC_FRAME)), [*entries, SKIPPED_SYNC])

    def _compare(self, one: Missing, target: Target, description: bytes) -> None:
        if description[0] == m.PARAMETER_DESCRIPTION:
            return
        statement = one.statement
        if statement.told is None or shape(statement.told) == shape(description):
            statement.told_as = statement.wire_name
            return
        statement.changed = True
        if self._outbox.names is None:
            self._outbox.prepared[target].rewritten.add(one.name)

    def heard(self, error: bytes) -> None:
        """Our question was answered with an error."""
        self._error = error

    # -- try -------------------------------------------------------------------------------------------------------

    def try_here(self, doubt: Doubt) -> None:
        """Ask the primary connection about a statement's twin, and then about the text that is to be sent."""
        assert doubt.plan.twin is not None
        self._doubt, self._rows = doubt, []
        self._describe(doubt.plan.twin, doubt.oids)

    def _describe(self, text: bytes, oids: tuple[int, ...]) -> None:
        requests = (
            m.parse(_TRIAL, text, oids),
            m.describe_statement(_TRIAL),
            m.close_statement(_TRIAL),
            m.SYNC_FRAME,
        )
        described = Reply(m.DESCRIBE, Mode.SKIP, capture=self._hear)
        entries = [SKIPPED_PARSE, described, Reply(m.CLOSE, Mode.SKIP), SKIPPED_SYNC]
        self._stage, self._error, self._target = "asked", b"", Target.PRIMARY
        self._session.ask(Target.PRIMARY, b"".join(requests), entries)

    def _hear(self, description: bytes) -> None:
        if description[0] != m.PARAMETER_DESCRIPTION:
            self._rows.append(description)
        elif not self._rows:
            self._types = m.read_parameter_oids(description)

    def _tried(self, doubt: Doubt) -> None:
        plan, session, error = doubt.plan, self._session, self._error
        if not error and len(self._rows) == 1 and plan.fallback is None:
            self._describe(plan.text, self._types)
            return
        self._doubt = None
        if error and not self._rows:
            verdict = Tried(False, error=error)
        elif error:
            fields = m.error_fields(error)
            said, sqlstate = (fields.get(code, b"").decode("utf-8", "replace") for code in "MC")
            verdict = Tried(False, refusal=rejected(said, sqlstate))
        elif plan.fallback is not None:
            verdict = Tried(False)
        elif shape(self._rows[0]) == shape(self._rows[1]):
            verdict = Tried(True, self._types)
        else:
            verdict = Tried(False, refusal=DIFFERENT)
        session.tried[doubt.key] = verdict
        session.go_on(b"", self._status)

    # -- either ----------------------------------------------------------------------------------------------------

    def answered(self, status: int) -> None:
        """The ReadyForQuery came that ends what the client does not hear of."""
        self._status = status
        self._stage = "answered" if self._stage == "asked" else "over"

    def proceed(self) -> None:
        """Go on with the next step."""
        stage, self._stage = self._stage, ""
        if stage == "over":
            self._repeat()
        elif self._doubt is not None:
            self._tried(self._doubt)
        else:
            self._session.go_on(self._error, self._status)


def shape(description: bytes) -> list[bytes]:
    """What a driver decodes rows by, of a RowDescription or NoData frame: each column's name, type and typmod."""
    columns: list[bytes] = []
    if description[0] != m.ROW_DESCRIPTION:
        return columns
    position = m.HEADER + 2
    while position < len(description):
        name, after = m.cstring(description, position)
        # After the name: table, attribute number, type, size, typmod, format.
        columns.append(name + b"\0" + description[after + 6 : after + 16])
        position = after + 18
    return columns
