"""Progress of long work, on stderr: one living line on a terminal, plain lines at most once a second otherwise."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Any

PLAIN_INTERVAL = 1.0


class Progress:
    """Says what is going on; ``quiet`` says nothing."""

    def __init__(self, *, quiet: bool = False) -> None:
        self._quiet = quiet
        self._terminal = not quiet and sys.stderr.isatty()
        self._status: Any = None
        self._console: Any = None
        self._last = 0.0
        if self._terminal:
            from rich.console import Console

            self._console = Console(stderr=True)

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop()

    def line(self, text: str) -> None:
        """A line that stays."""
        if self._quiet:
            return
        if self._console is not None:
            self._console.print(text, markup=False, highlight=False)
        else:
            print(text, file=sys.stderr, flush=True)

    def wait(self, text: str) -> None:
        """A line about something that is going on; the next one replaces it."""
        if self._quiet:
            return
        if self._console is not None:
            from rich.markup import escape

            if self._status is None:
                self._status = self._console.status(escape(text))
                self._status.start()
            else:
                self._status.update(escape(text))
            return
        now = time.monotonic()
        if now - self._last >= PLAIN_INTERVAL:
            self._last = now
            print(text, file=sys.stderr, flush=True)

    def settle(self) -> None:
        """What was going on is over."""
        self._stop()
        self._last = 0.0

    def _stop(self) -> None:
        if self._status is not None:
            self._status.stop()
            self._status = None


def duration(seconds: float) -> str:
    """``1h02m``, ``3m05s``, ``12s``."""
    whole = int(max(0.0, seconds))
    hours, minutes, rest = whole // 3600, whole // 60 % 60, whole % 60
    if hours:
        return f"{hours}h{minutes:02d}m"
    return f"{minutes}m{rest:02d}s" if minutes else f"{rest}s"
