"""Why a server connection could not be had, in PostgreSQL's terms, fit to be shown to a client."""

from __future__ import annotations

from collections.abc import Sequence

from proxy.wire import messages as m


class ServerUnavailable(Exception):
    """No connection to the server: it cannot be reached, refuses us, or all connections are taken.

    ``relayed`` is the server's own ErrorResponse frame, where it gave one: it goes to the client field by field.
    """

    def __init__(self, sqlstate: str, message: str, *, hint: str = "", relayed: bytes | None = None) -> None:
        super().__init__(message)
        self.sqlstate = sqlstate
        self.message = message
        self.hint = hint
        self.relayed = relayed

    def frame(self) -> bytes:
        """The ErrorResponse that a client gets, with severity FATAL."""
        if self.relayed is not None:
            return m.error_with_fields(self.relayed, {"S": b"FATAL", "V": b"FATAL"})
        return m.error_response(self.sqlstate, self.message, hint=self.hint, severity="FATAL")


class QueryFailed(Exception):
    """The server answered one of our own queries with an error."""

    def __init__(self, frame: bytes, before: Sequence[bytes] = ()) -> None:
        fields = m.error_fields(frame)
        self.frame = frame
        """The ErrorResponse."""
        self.before = before
        """What the server had said until then."""
        super().__init__(fields.get("M", b"unknown error").decode("utf-8", "replace"))
        self.sqlstate = fields.get("C", b"").decode("ascii", "replace")
