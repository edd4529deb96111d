"""What the sessions of one database share: the hub, the reads, the plans of the current term.

A :class:`Context` is made for each session, because it carries that session's prober; the rest of it is common.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import final

from proxy.rewrite.plan import Kind
from proxy.session.book import PlanBook
from proxy.session.breaker import Breaker
from proxy.session.names import StatementNames
from proxy.session.ports import HubView, Planning, Prober, Reads, RoutingView, Target
from proxy.stats import Stats


class Books:
    """The plan books in use: one for each setting of a sidecar's own dual-write switch, for the current term."""

    __slots__ = ("_books", "_serial", "_stats", "breaker")

    def __init__(self, stats: Stats) -> None:
        self._stats = stats
        self._serial = -1
        self._books: dict[bool, PlanBook] = {}
        self.breaker = Breaker(stats)
        """Of that term."""

    def get(self, term: Term, dual_write: bool) -> PlanBook:
        """The book of that term; those of earlier terms are dropped."""
        if term.serial != self._serial:
            self._serial = term.serial
            for stale in self._books.values():
                stale.close()
            self._books = {}
            self.breaker.reset()
        book = self._books.get(dual_write)
        if book is None:
            routing = term.routing
            book = PlanBook(
                term.serial, tuple(routing.tables), routing.dual_write and dual_write, self._stats
            )
            self._books[dual_write] = book
        return book


@dataclass(slots=True)
class Context:
    """What the sessions of one database share, and one session's prober."""

    hub: HubView
    reads: Reads
    prober: Prober
    stats: Stats
    clock: Callable[[], float]
    books: Books
    dual_write_enabled: bool = True
    planning: Planning | None = None
    """Who plans large texts; None: they are planned where they come."""
    names: StatementNames | None = None
    """Set where servers are shared by transactions: the names that prepared statements have there."""

    def book(self) -> PlanBook:
        """The plans of the current term."""
        return self.books.get(self.hub.term, self.dual_write_enabled)


@final
class Term:
    """One epoch in use: how many batches are under way that were planned under it."""

    __slots__ = ("active", "routing", "serial")

    def __init__(self, routing: RoutingView, serial: int) -> None:
        self.routing = routing
        self.serial = serial
        """Grows by one with each term of this process, whatever the epoch's counter does after a failover."""
        self.active = 0


@final
class Flight:
    """A batch whose ReadyForQuery has not come yet."""

    __slots__ = (
        "back",
        "books",
        "control",
        "copy_over",
        "data_behind",
        "data_inside",
        "failed",
        "frames",
        "frees",
        "keep_sync",
        "mirrored",
        "mixed",
        "noted",
        "settings",
        "started",
        "target",
        "term",
        "translate",
        "uncertain",
        "undo",
        "unparsed",
    )

    def __init__(self, term: Term, target: Target, started: float, frames: list[bytes] | None = None) -> None:
        self.term = term
        self.target = target
        self.started = started
        self.frames = frames
        """The client's own messages, as long as they might have to be sent again."""
        self.settings: tuple[tuple[str, str | None], ...] = ()
        self.control: tuple[Kind, ...] = ()
        """Transactions begin or end in it."""
        self.back = False
        """It goes back to a savepoint."""
        self.failed = False
        """An error came."""
        self.uncertain = False
        """What it sets cannot be told."""
        self.unparsed = False
        self.frees: tuple[str, ...] = ()
        """The pins that end if it succeeds, outside of a transaction."""
        self.books = False
        """It gives names to statements, or takes them away."""
        self.copy_over = -1
        """COPY data was sent to its end before the server had asked for any: how many requests stood before that."""
        self.data_inside = self.data_behind = False
        """COPY data was sent before the server had asked for any: before, or after the batch's Sync."""
        self.keep_sync = False
        """So it was before the batch's Sync."""
        self.undo: list[Callable[[], None]] = []
        """What brings back what was forgotten when it was sent, should it fail."""
        self.translate: Callable[[bytes], bytes] | None = None
        """Turns the servers' errors into those of the client's version."""
        self.mirrored: tuple[str, ...] = ()
        """Tables that it writes in both shapes."""
        self.mixed = False
        """It has other statements as well."""
        self.noted = False
        """Whether its outcome matters to ``Effects``."""
