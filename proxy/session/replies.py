"""The reply queue: which of a server's replies belong to which request, and what becomes of each.

Two rules
---------
1. Every message that is sent to a server and that the server will answer has exactly one entry here, appended in the
   order of sending. Nothing else may be sent.
2. Every message that comes back is matched against the *first* entry only, by ``COMPLETED_BY``. An ErrorResponse
   discards entries up to the next Sync, because the server discards the requests; ReadyForQuery completes a Sync, a
   Query or a FunctionCall. Anything that these rules do not explain is a :class:`Desync`: the connection is closed,
   never guessed at.

Theory of operation
-------------------
An entry is *precise* (one for Parse, Bind, Describe, Execute, Close each) or *coarse* (one for a whole batch up to its
ReadyForQuery). Coarse entries forward everything unseen and serve the hot path; precise ones are used for batches in
which we replaced, added or refused something. A mode says what becomes of the reply: ``FORWARD``, ``SKIP`` (we asked,
the client did not) or ``REPLACE`` (an error that we provoked, so that the server's transaction state is right, is
replaced by our own).

While COPY IN runs, a server swallows Sync and Flush (protocol chapter, "COPY Operations"): a Sync that was sent before
CopyInResponse came loses its entry then, and none is queued for a Sync sent during the copy.

Messages that may come at any time (notices, notifications, parameter changes) are forwarded and match nothing.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from enum import Enum
from typing import Protocol

from proxy.wire import messages as m
from proxy.wire.messages import ProtocolViolation


class Desync(ProtocolViolation):
    """A reply came that no request explains."""


class Mode(Enum):
    """What becomes of a reply."""

    FORWARD = "forward"
    SKIP = "skip"
    REPLACE = "replace"


class Reply:
    """One expected reply."""

    __slots__ = ("edits", "mode", "payload", "request", "undo")

    def __init__(
        self,
        request: int,
        mode: Mode = Mode.FORWARD,
        *,
        payload: bytes = b"",
        undo: Callable[[], None] | None = None,
        edits: Callable[[bytes], bytes] | None = None,
    ) -> None:
        self.request = request
        self.mode = mode
        self.payload = payload
        """REPLACE: the ErrorResponse frame that the client gets."""
        self.undo = undo
        """Called if the server discards the request because of an error."""
        self.edits = edits
        """Rewrites an ErrorResponse frame, to map a position back to the client's text."""


PLAIN_SYNC = Reply(m.SYNC)
PLAIN_QUERY = Reply(m.QUERY)
PLAIN_CALL = Reply(m.FUNCTION_CALL)
PLAIN_BIND = Reply(m.BIND)
PLAIN_EXECUTE = Reply(m.EXECUTE)
PLAIN_DESCRIBE = Reply(m.DESCRIBE)
SKIPPED_PARSE = Reply(m.PARSE, Mode.SKIP)

COMPLETED_BY: dict[int, frozenset[int]] = {
    m.PARSE: frozenset((m.PARSE_COMPLETE,)),
    m.BIND: frozenset((m.BIND_COMPLETE,)),
    m.DESCRIBE: frozenset((m.ROW_DESCRIPTION, m.NO_DATA)),
    m.EXECUTE: frozenset((m.COMMAND_COMPLETE, m.EMPTY_QUERY, m.PORTAL_SUSPENDED)),
    m.CLOSE: frozenset((m.CLOSE_COMPLETE,)),
    m.SYNC: frozenset((m.READY_FOR_QUERY,)),
    m.QUERY: frozenset((m.READY_FOR_QUERY,)),
    m.FUNCTION_CALL: frozenset((m.READY_FOR_QUERY,)),
}
_COARSE = frozenset((m.SYNC, m.QUERY, m.FUNCTION_CALL))
_UNMATCHED = frozenset(
    (
        m.DATA_ROW,
        m.COPY_DATA,
        m.NOTICE_RESPONSE,
        m.PARAMETER_DESCRIPTION,
        m.COPY_DONE,
        m.FUNCTION_RESPONSE,
    )
)
_BODY_STREAMED = frozenset((m.DATA_ROW, m.COPY_DATA))


class ReplyHandler(Protocol):
    """What a session wants to know of a server's replies."""

    def on_ready(self, status: int) -> None:
        """ReadyForQuery came; ``status`` is the byte ``I``, ``T`` or ``E``."""

    def on_copy_in(self, swallowed_sync: bool) -> None:
        """The server waits for COPY data; it has swallowed (or will) a Sync that was sent before."""

    def on_error(self, message: bytes) -> None:
        """An ErrorResponse came (before any replacement)."""

    def on_parameter(self, name: str, value: str) -> None:
        """ParameterStatus came."""

    def on_notification(self) -> None:
        """NotificationResponse came."""

    def on_skipped(self) -> None:
        """A Query or FunctionCall was discarded after an error: no ReadyForQuery of its own will come."""


class ReplyQueue:
    """Expected replies of one server connection; see the module's docstring for its rules."""

    __slots__ = ("_entries", "_handler", "_need", "_tail", "_through", "keep_sync")

    def __init__(self, handler: ReplyHandler) -> None:
        self._entries: deque[Reply] = deque()
        self._handler = handler
        self._tail = bytearray()
        self._need = 0
        self._through = 0
        self.keep_sync = False
        """COPY data was sent to its end before CopyInResponse came and before any Sync: none is swallowed."""

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def buffered(self) -> int:
        """Bytes of an incomplete message."""
        return len(self._tail)

    def clear(self) -> None:
        """Forget everything: the server connection is gone."""
        self._entries.clear()
        self._tail.clear()
        self._need = self._through = 0

    def awaits_sync(self) -> bool:
        """Whether a Sync is under way."""
        return any(entry.request == m.SYNC for entry in self._entries)

    def expect(self, reply: Reply) -> None:
        """Append the entry of a request that is about to be sent."""
        self._entries.append(reply)

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
            length = int.from_bytes(data[position + 1 : position + 5], "big")
            if length < 4 or length > m.MAX_MESSAGE:
                raise ProtocolViolation(f"the server sent a message of length {length}")
            end = position + 1 + length
            if end > size:
                if kind in _BODY_STREAMED:
                    self._through = end - size
                    out.append(data[start:] if start else data)
                    return out
                self._need = end - position
                break
            if kind not in _UNMATCHED:
                replacement = self._match(kind, data, position, end)
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

    def _match(self, kind: int, data: bytes, position: int, end: int) -> bytes | None:
        """None: forward the message; else what the client gets instead (nothing, for a skipped one)."""
        entries = self._entries
        if kind == m.READY_FOR_QUERY:
            if not entries or entries[0].request not in _COARSE:
                raise Desync("ReadyForQuery without a Sync or Query that it answers")
            entries.popleft()
            self._handler.on_ready(data[position + 5])
            return None
        if kind == m.ERROR_RESPONSE:
            return self._error(data[position:end])
        if kind == m.PARAMETER_STATUS:
            self._handler.on_parameter(*m.read_parameter_status(data[position:end]))
            return None
        if kind == m.NOTIFICATION:
            self._handler.on_notification()
            return None
        if kind == m.COPY_IN_RESPONSE:
            self._copy_in()
            return None
        if not entries or entries[0].request in _COARSE:
            return None
        head = entries[0]
        if kind in COMPLETED_BY[head.request]:
            entries.popleft()
            return b"" if head.mode is Mode.SKIP else None
        if kind == m.COPY_OUT_RESPONSE and head.request == m.EXECUTE:
            return None
        raise Desync(f"message {chr(kind)!r} does not answer a {chr(head.request)!r} request")

    def _error(self, message: bytes) -> bytes | None:
        self._handler.on_error(message)
        entries = self._entries
        if not entries:
            return None
        head = entries[0]
        replacement: bytes | None = None
        if head.mode is Mode.REPLACE:
            replacement = head.payload
        elif head.edits is not None:
            replacement = head.edits(message)
        if head.request not in _COARSE:
            discarded: list[Reply] = []
            while entries and entries[0].request != m.SYNC:
                discarded.append(entries.popleft())
            # Last in, first out: each brings back what held when it was sent.
            for entry in reversed(discarded):
                if entry.undo is not None:
                    entry.undo()
                elif entry.request in _COARSE:
                    self._handler.on_skipped()
        return replacement

    def _copy_in(self) -> None:
        swallowed = False
        if self._entries and self._entries[0].request != m.QUERY and not self.keep_sync:
            for index, entry in enumerate(self._entries):
                if entry.request == m.SYNC:
                    del self._entries[index]
                    swallowed = True
                    break
        self._handler.on_copy_in(swallowed)
