"""When to try a failing server again: at once the first time, then ever later, up to a bound.

Contract: pure bookkeeping, without a clock or a task of its own. Between a failure and the moment when a retry is due,
:meth:`Backoff.refusal` gives every caller the error of that failure, so that a flood of clients costs a dead server
nothing. Failures of attempts that ran side by side count once.
"""

from __future__ import annotations

from proxy.backend.errors import ServerUnavailable

FIRST_DELAY = 0.1


class Backoff:
    """The retries of one server."""

    __slots__ = ("_delay", "bound", "due", "error")

    def __init__(self, bound: float) -> None:
        self.bound = bound
        """The longest delay in seconds; 0 tries again at once, always."""
        self.error: ServerUnavailable | None = None
        """Why the last attempt failed; None after a success, and before the first attempt."""
        self.due = 0.0
        """When the next attempt may be made, in the caller's clock."""
        self._delay = 0.0

    @property
    def failing(self) -> bool:
        """Whether the last attempt failed."""
        return self.error is not None

    def failed(self, error: ServerUnavailable, now: float) -> None:
        """An attempt failed."""
        if self.error is None or now >= self.due:
            self._delay = min(self.bound, self._delay * 2 or FIRST_DELAY)
            self.due = now + self._delay
        self.error = error

    def succeeded(self) -> None:
        """An attempt succeeded, or somebody else has seen the server answer."""
        self.error = None
        self._delay = 0.0
        self.due = 0.0

    def refusal(self, now: float) -> ServerUnavailable | None:
        """The last failure's error, for a caller of its own; None where an attempt may be made."""
        error = self.error
        if error is None or now >= self.due:
            return None
        return ServerUnavailable(error.sqlstate, error.message, hint=error.hint, relayed=error.relayed)
