"""Statements that a server cannot run as they were prepared are prepared anew, unseen by the client.

After DDL a server refuses an earlier prepared statement with 0A000 "cached plan must not change result type"; on a
server that is shared by transactions somebody may have deallocated what we prepared (26000). Contract: a batch is
repeated once, if it began outside of a transaction, if it is the only one under way, and if the client has heard
nothing of it yet: then the error has undone whatever the batch did, and nobody can tell. A statement that the client
has Described as a statement is described again first: if its columns are not what the client was told, the error is the
client's, because drivers decode rows by the description that they have.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, final

from proxy.session.context import Flight
from proxy.session.outbox import Outbox
from proxy.session.ports import Target
from proxy.session.replies import SKIPPED_PARSE, SKIPPED_SYNC, Mode, Reply
from proxy.session.statements import Prepared, Statement
from proxy.wire import messages as m

if TYPE_CHECKING:
    from proxy.session.core import Session

_CHANGED = b"\0C0A000\0"
_ROUTINE = b"\0RRevalidateCachedQuery\0"
_MISSING = b"\0C26000\0"


_CHECK = b"dualwire_check"


@final
class Cure:
    """The repetition of one session's batches; see the module's docstring."""

    __slots__ = (
        "_asked",
        "_described",
        "_error",
        "_frames",
        "_outbox",
        "_session",
        "_stage",
        "_statements",
        "_target",
    )

    def __init__(self, session: Session, outbox: Outbox) -> None:
        self._session = session
        self._outbox = outbox
        self._frames: list[bytes] = []
        self._error = b""
        self._target = Target.PRIMARY
        self._statements: list[Statement] = []
        self._described: list[bytes] = []
        self._stage: Literal["", "failed", "asked", "answered"] = ""
        self._asked = False

    @property
    def asked(self) -> bool:
        """Whether the batch under way is our own question."""
        return self._stage == "asked"

    @property
    def due(self) -> bool:
        """Whether :meth:`proceed` is to be called once the bytes at hand are read."""
        return self._stage == "answered"

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
        statements = self._bound(frames)
        if not statements:
            return False
        self._frames, self._error, self._target, self._statements = frames, message, flight.target, statements
        self._described = []
        self._asked = False
        self._stage = "failed"
        return True

    def _bound(self, frames: list[bytes]) -> list[Statement]:
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
            for statement in self._bound(frames):
                names.renew(statement.sent, statement.wire_name)
                statement.wire_name = b""

    def answered(self) -> None:
        """The ReadyForQuery came that ends what the client does not hear of."""
        self._stage = "answered"

    def proceed(self) -> None:
        """Go on with the next step."""
        prepared = self._outbox.prepared[self._target]
        told = [statement.told for statement in self._statements if statement.told is not None]
        if self._asked or not told:
            same = len(told) == len(self._described) and all(
                shape(one) == shape(other) for one, other in zip(told, self._described, strict=False)
            )
            self._finish(prepared, same)
        elif self._session.context.hub.term.routing.tables:
            # What is to be described is what the rules make of the text.
            self._finish(prepared, False)
        else:
            self._verify()

    def _verify(self) -> None:
        """Ask what the described statements give now, under a name of our own."""
        requests: list[bytes] = []
        entries: list[Reply] = []
        for statement in self._statements:
            if statement.told is not None:
                text, oids = statement.sent
                requests += (
                    m.parse(_CHECK, text, oids),
                    m.describe_statement(_CHECK),
                    m.close_statement(_CHECK),
                )
                entries += (
                    SKIPPED_PARSE,
                    Reply(m.DESCRIBE, Mode.SKIP, capture=self._described.append),
                    Reply(m.CLOSE, Mode.SKIP),
                )
        self._stage = "asked"
        self._asked = True
        # An error leaves fewer descriptions than statements; with none at all the error is the client's too.
        self._session.ask(self._target, b"".join((*requests, m.SYNC_FRAME)), [*entries, SKIPPED_SYNC])

    def _finish(self, prepared: Prepared, same: bool) -> None:
        self._stage = ""
        if not same:
            self.outdated(self._error, self._frames)
            self._session.give_up(self._error)
            return
        if _MISSING in self._error:
            prepared.clear()
        names, book = self._outbox.names, self._outbox.statements
        for name, statement in book.items():
            if statement in self._statements:
                if name and names is not None:
                    names.renew(statement.sent, statement.wire_name)
                    statement.wire_name = b""
                else:
                    prepared.distrust(name)
        for frame in self._frames:
            if frame[0] == m.PARSE:
                # It was answered, but unheard: it is new again.
                book.pop(m.cstring(frame, m.HEADER)[0], None)
        self._session.repeat(self._frames)


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
