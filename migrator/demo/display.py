"""What a person sees while the demo runs: a live panel on a terminal, plain lines anywhere else."""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass
from types import TracebackType
from typing import Protocol, TextIO

from rich.console import Console, Group
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

PLAIN_SECONDS = 2.0
NOTES_SHOWN = 12


@dataclass(slots=True)
class Status:
    """The state of the run at one moment."""

    seconds: float = 0.0
    phase: str = "starting"
    rows_done: int = 0
    rows_total: int = 0
    rows_per_second: float = 0.0
    eta: float | None = None
    lag: float = 0.0
    writes: int = 0
    reads: int = 0
    per_second: float = 0.0
    p99: float = 0.0
    errors: int = 0

    @property
    def backfill(self) -> str:
        """Rows, rate and ETA in words; empty while nothing is copied."""
        if not self.rows_total:
            return ""
        left = "" if self.eta is None else f", {self.eta:.0f} s left"
        return f"{self.rows_done:,} of {self.rows_total:,} rows, {self.rows_per_second:,.0f} rows/s{left}"


class Display(Protocol):
    """Where progress goes."""

    def __enter__(self) -> Display: ...

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def note(self, text: str) -> None:
        """Something happened."""

    def show(self, status: Status) -> None:
        """How it stands; called several times a second."""


class PlainDisplay:
    """One line for each event, and one every two seconds for the figures."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._begun = time.monotonic()
        self._shown = 0.0

    def __enter__(self) -> PlainDisplay:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None

    def note(self, text: str) -> None:
        """Prints it with the seconds since the start."""
        print(f"{time.monotonic() - self._begun:6.1f} s  {text}", file=self._stream, flush=True)

    def show(self, status: Status) -> None:
        """Prints a line from time to time."""
        now = time.monotonic()
        if now - self._shown < PLAIN_SECONDS:
            return
        self._shown = now
        backfill = f" | {status.backfill}" if status.backfill else ""
        self.note(
            f"  {status.phase}{backfill} | {status.per_second:.0f} ops/s, p99 {status.p99 * 1000:.1f} ms, "
            f"{status.writes:,} writes, {status.reads:,} reads, {status.errors} errors, "
            f"lag {status.lag * 1000:.0f} ms"
        )


class LiveDisplay:
    """A panel at the bottom with the figures; the latest events above it."""

    def __init__(self, console: Console) -> None:
        self._begun = time.monotonic()
        self._notes: deque[str] = deque(maxlen=NOTES_SHOWN)
        self._live = Live(console=console, refresh_per_second=8, transient=False)
        self._status = Status()

    def __enter__(self) -> LiveDisplay:
        self._live.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.__exit__(kind, value, trace)

    def note(self, text: str) -> None:
        """Adds it to the events."""
        self._notes.append(f"{time.monotonic() - self._begun:6.1f} s  {text}")
        self._draw()

    def show(self, status: Status) -> None:
        """Draws the panel anew."""
        self._status = status
        self._draw()

    def _draw(self) -> None:
        status = self._status
        figures = Table.grid(padding=(0, 2))
        figures.add_row("phase", Text(status.phase, style="bold"))
        if status.rows_total:
            figures.add_row(
                "backfill", ProgressBar(total=status.rows_total, completed=status.rows_done, width=40)
            )
            figures.add_row("", status.backfill)
        figures.add_row("traffic", f"{status.per_second:.0f} ops/s, p99 {status.p99 * 1000:.1f} ms")
        figures.add_row("served", f"{status.writes:,} writes, {status.reads:,} reads")
        figures.add_row("errors", Text(str(status.errors), style="bold red" if status.errors else "green"))
        figures.add_row("replica lag", f"{status.lag * 1000:.0f} ms")
        title = f"dualwire demo, {status.seconds:.0f} s"
        self._live.update(Group(*map(Text, self._notes), Panel(figures, title=title, title_align="left")))
