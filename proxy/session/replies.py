"""The reply queue: which of a server's replies belong to which request, and what becomes of each.

Two rules
---------
1. Every message that is sent to a server and that the server will answer has exactly one entry here, appended in the
   order of sending. Nothing else may be sent.
2. Every message that comes back is matched against the *first* entry only, by ``COMPLETED_BY``. An ErrorResponse
   discards entries up to the next Sync, sent already or not, because the server discards the requests; ReadyForQuery
   completes a Sync, a Query or a FunctionCall. Anything that these rules do not explain is a :class:`Desync`: the
   connection is closed, never guessed at.

Theory of operation
-------------------
An entry is *precise* (one for Parse, Bind, Describe, Execute, Close each) or *coarse* (one for a whole batch up to its
ReadyForQuery). Coarse entries forward everything unseen and serve the hot path; precise ones are used for batches in
which we replaced, added or refused something. A mode says what becomes of the reply: ``FORWARD``, ``SKIP`` (we asked,
the client did not) or ``REPLACE`` (an error that we provoked, so that the server's transaction state is right, is
replaced by our own).

While COPY IN runs, a server swallows Sync and Flush (protocol chapter, "COPY Operations"): Syncs that were sent before
CopyInResponse came lose their entries then, and none is queued for a Sync sent during the copy.

Messages that may come at any time (notices, notifications, parameter changes) are forwarded and match nothing.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from enum import Enum
from typing import Final, Protocol, final

from proxy.wire import messages as m
from proxy.wire.messages import ProtocolViolation


class Desync(ProtocolViolation):
    """A reply came that no request explains."""


class Mode(Enum):
    """What becomes of a reply."""

    FORWARD = "forward"
    SKIP = "skip"
    ANSWER = "answer"
    REPLACE = "replace"


@final
class Reply:
    """One expected reply."""

    __slots__ = ("capture", "edits", "fate", "mode", "payload", "request", "undo")

    def __init__(
        self,
        request: int,
        mode: Mode = Mode.FORWARD,
        *,
        payload: bytes = b"",
        undo: Callable[[], None] | None = None,
        edits: Callable[[bytes], bytes] | None = None,
        capture: Callable[[bytes], None] | None = None,
        fate: Callable[[], None] | None = None,
    ) -> None:
        self.request = request
        self.mode = mode
        self.payload = payload
        """REPLACE: the ErrorResponse frame that the client gets; ANSWER: the completion."""
        self.undo = undo
        """Called if the server discards the request because of an error, of this request or an earlier one."""
        self.edits = edits
        """Rewrites the ErrorResponse frame that the client gets, to map a position back to its text."""
        self.capture = capture
        """Gets the message that completes the request; in SKIP the ParameterDescription before it as well."""
        self.fate = fate
        """Called last if the request itself fails."""


PLAIN_SYNC: Final = Reply(m.SYNC)
PLAIN_QUERY: Final = Reply(m.QUERY)
PLAIN_CALL: Final = Reply(m.FUNCTION_CALL)
PLAIN_BIND: Final = Reply(m.BIND)
PLAIN_EXECUTE: Final = Reply(m.EXECUTE)
PLAIN_DESCRIBE: Final = Reply(m.DESCRIBE)
SKIPPED_PARSE: Final = Reply(m.PARSE, Mode.SKIP)
SKIPPED_SYNC: Final = Reply(m.SYNC, Mode.SKIP)

_FAILED_BEFORE: Final = b"\0C25P02\0"

COMPLETED_BY: Final[dict[int, tuple[int, ...]]] = {
    m.PARSE: (m.PARSE_COMPLETE,),
    m.BIND: (m.BIND_COMPLETE,),
    m.DESCRIBE: (m.ROW_DESCRIPTION, m.NO_DATA),
    m.EXECUTE: (m.COMMAND_COMPLETE, m.EMPTY_QUERY, m.PORTAL_SUSPENDED),
    m.CLOSE: (m.CLOSE_COMPLETE,),
    m.SYNC: (m.READY_FOR_QUERY,),
    m.QUERY: (m.READY_FOR_QUERY,),
    m.FUNCTION_CALL: (m.READY_FOR_QUERY,),
}


def _table(*kinds: int) -> bytes:
    """One byte for each message type: whether it is among these. Asking costs no object."""
    return bytes(kind in kinds for kind in range(256))


_COARSE: Final = _table(m.SYNC, m.QUERY, m.FUNCTION_CALL)
_MATCHED: Final = _table(
    *(
        kind
        for kind in range(256)
        if kind
        not in (
            m.DATA_ROW,
            m.COPY_DATA,
            m.NOTICE_RESPONSE,
            m.COPY_DONE,
            m.FUNCTION_RESPONSE,
        )
    )
)
"""What may complete a request, or be of interest to the session."""
_BODY_STREAMED: Final = _table(m.DATA_ROW, m.COPY_DATA)


class ReplyHandler(Protocol):
    """What a session wants to know of a server's replies."""

    def on_ready(self, status: int) -> None:
        """ReadyForQuery came; ``status`` is the byte ``I``, ``T`` or ``E``."""

    def on_copy_in(self, simple: bool) -> int:
        """The server waits for COPY data, in a simple Query or not; how many Syncs sent so far it will swallow."""

    def on_error(self, message: bytes, quiet: bool) -> bytes | None:
        """An ErrorResponse came (before any replacement); ``quiet``: nothing in these bytes precedes it.

        None: it is forwarded; else what the client gets instead. Nothing (``b""``) keeps the rest of the batch from
        the client too: its ReadyForQuery comes as :meth:`on_skipped_ready`.
        """

    def on_skipped_ready(self, status: int) -> None:
        """The ReadyForQuery of a batch came that the client does not hear of."""

    def on_parameter(self, name: str, value: str) -> None:
        """ParameterStatus came."""

    def on_notification(self) -> None:
        """NotificationResponse came."""

    def on_skipped(self) -> None:
        """A Query or FunctionCall was discarded after an error: no ReadyForQuery of its own will come."""


@final
class ReplyQueue:
    """Expected replies of one server connection; see the module's docstring for its rules."""

    __slots__ = ("_entries", "_handler", "_held", "_need", "_skipping", "_tail", "_through", "hush", "sent")

    def __init__(self, handler: ReplyHandler) -> None:
        self._entries: deque[Reply] = deque()
        self._handler = handler
        self._tail = bytearray()
        self._need = 0
        self._through = 0
        self._held = b""
        """Answers that the client gets with the next message: until then it has heard nothing."""
        self._skipping = False
        """The server discards everything up to the next Sync, which was not sent yet."""
        self.sent = 0
        """Requests that ever got an entry."""
        self.hush = False
        """The batch under way is all ours: the client gets nothing of it."""

    def __len__(self) -> int:
        return len(self._entries)

    def located(self, message: bytes) -> bytes:
        """An error of the request whose reply is expected now, as one of the client's text."""
        edits = self._entries[0].edits if self._entries else None
        return message if edits is None else edits(message)

    @property
    def buffered(self) -> int:
        """Bytes of an incomplete message."""
        return len(self._tail)

    def clear(self) -> None:
        """Forget everything: the server connection is gone."""
        self._entries.clear()
        self._tail.clear()
        self._need = self._through = 0
        self.hush = self._skipping = False
        self._held = b""

    def expect(self, reply: Reply) -> None:
        """Append the entry of a request that is about to be sent."""
        self._entries.append(reply)
        self.sent += 1
        if self._skipping:
            self._discard()

    def expect_all(self, replies: list[Reply]) -> None:
        """Append the entries of a batch."""
        self._entries.extend(replies)
        self.sent += len(replies)
        if self._skipping:
            self._discard()

    def feed(self, data: bytes) -> list[bytes]:
        """What the client gets of these bytes, in order; raises Desync or ProtocolViolation."""
        out: list[bytes] = []
        position = 0
        if self._through:
            if len(data) <= self._through:
                self._through -= len(data)
                return [data]
            position = self._through
            self._through = 0
        elif self._tail:
            self._tail += data
            if len(self._tail) < self._need:
                return out
            data = bytes(self._tail)
            self._tail.clear()
        start = 0
        size = len(data)
        while size - position >= 5:
            kind = data[position]
            length = (
                data[position + 1] << 24
                | data[position + 2] << 16
                | data[position + 3] << 8
                | data[position + 4]
            )
            if length < 4 or length > m.MAX_MESSAGE:
                raise ProtocolViolation(f"the server sent a message of length {length}")
            end = position + 1 + length
            if end > size:
                if _BODY_STREAMED[kind]:
                    self._through = end - size
                    out.append(data[start:] if start else data)
                    return out
                self._need = end - position
                break
            if _MATCHED[kind] or self.hush or self._held:
                held = self._held
                quiet = position == start and not out
                replacement = (
                    self._match(kind, data, position, end, quiet) if _MATCHED[kind] or self.hush else None
                )
                if held and self._held and replacement != b"":
                    self._held = b""
                    replacement = held + (data[position:end] if replacement is None else replacement)
                if replacement is not None:
                    if position > start:
                        out.append(data[start:position])
                    if replacement:
                        out.append(replacement)
                    start = end
            position = end
        else:
            self._need = 5
        if position > start:
            out.append(data if start == 0 and position == size else data[start:position])
        if position < size:
            self._tail += data[position:] if position else data
        return out

    def _match(self, kind: int, data: bytes, position: int, end: int, quiet: bool) -> bytes | None:
        """None: forward the message; else what the client gets instead (nothing, for a skipped one)."""
        entries = self._entries
        if kind == m.READY_FOR_QUERY:
            if not entries or not _COARSE[entries[0].request]:
                raise Desync("ReadyForQuery without a Sync or Query that it answers")
            if entries.popleft().mode is Mode.SKIP:
                self._handler.on_skipped_ready(data[position + 5])
                return b""
            self._handler.on_ready(data[position + 5])
            return None
        if kind == m.ERROR_RESPONSE:
            return self._error(data[position:end], quiet)
        if kind == m.PARAMETER_STATUS:
            self._handler.on_parameter(*m.read_parameter_status(data[position:end]))
            return None
        if kind == m.NOTIFICATION:
            self._handler.on_notification()
            return None
        if kind == m.COPY_IN_RESPONSE:
            self._copy_in()
            return None
        if not entries:
            return None
        head = entries[0]
        if _COARSE[head.request]:
            return b"" if head.mode is Mode.SKIP else None
        if kind in COMPLETED_BY[head.request]:
            entries.popleft()
            if head.capture is not None:
                head.capture(data[position:end])
            if head.mode is Mode.ANSWER:
                if not entries:
                    return head.payload
                self._held += head.payload
                return b""
            return b"" if head.mode is Mode.SKIP else None
        if self.hush and not _MATCHED[kind]:
            return b""
        if kind == m.PARAMETER_DESCRIPTION and head.request == m.DESCRIBE:
            # That the columns cannot be described any more, a server says only after the parameters.
            if head.mode is not Mode.SKIP:
                self._held += data[position:end]
            elif head.capture is not None:
                head.capture(data[position:end])
            return b""
        if kind == m.COPY_OUT_RESPONSE and head.request == m.EXECUTE:
            return None
        raise Desync(f"message {chr(kind)!r} does not answer a {chr(head.request)!r} request")

    def _error(self, message: bytes, quiet: bool) -> bytes | None:
        replacement = self._handler.on_error(message, quiet)
        entries = self._entries
        if not entries:
            return None
        head = entries[0]
        if replacement is not None and not replacement:
            self._held = b""
            if not _COARSE[head.request]:
                self._discard()
                if head.fate is not None:
                    head.fate()
            entries[0] = SKIPPED_SYNC
            return b""
        if head.mode is Mode.REPLACE:
            # That the transaction has failed before comes before anything that is wrong with the statement.
            if _FAILED_BEFORE not in message:
                replacement = head.payload
        elif head.edits is not None:
            replacement = head.edits(message if replacement is None else replacement)
        if not _COARSE[head.request]:
            self._discard()
            if head.fate is not None:
                head.fate()
        return replacement

    def _discard(self) -> None:
        """Drop the entries of requests that the server discards after an error."""
        entries = self._entries
        discarded: list[Reply] = []
        while entries and entries[0].request != m.SYNC:
            discarded.append(entries.popleft())
        self._skipping = not entries
        # Last in, first out: each brings back what held when it was sent.
        for entry in reversed(discarded):
            if entry.undo is not None:
                entry.undo()
            if _COARSE[entry.request]:
                self._handler.on_skipped()

    def _copy_in(self) -> None:
        """The server reads COPY data, and swallows the Syncs that were sent before their end."""
        entries = self._entries
        simple = bool(entries) and entries[0].request == m.QUERY
        for _ in range(self._handler.on_copy_in(simple)):
            for index, entry in enumerate(entries):
                if entry.request == m.SYNC:
                    del entries[index]
                    self.sent -= 1
                    break
