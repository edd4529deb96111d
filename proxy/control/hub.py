"""The one place where a sidecar keeps what it acts under: the current routing, the epochs in use, the hold.

Theory of operation
-------------------
The control link publishes routing documents here; sessions ask here before every batch that they send to a
server.

1. A *term* is one epoch as this process acts under it. A session enters the current term when it sends a
batch and
   leaves it when the batch's ReadyForQuery arrives. An epoch is acknowledged only when no earlier term is
   entered.
2. A *hold* goes through two phases. ``draining``: statements that may touch a held table are parked, unless
their
   session is in an open transaction (parking it could hold the very lock that the swap waits for). ``held``:
   nobody touches a held table any more, so every further statement on one is parked, inside transactions too,
   until the hold is released. Only :meth:`RoutingHub.try_held` changes the phase, and only when nobody is
   touching.

This class never does I/O and never awaits; who parks gives a callback.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from proxy.control.routing import EMPTY, Routing
from proxy.rewrite.plan import Refusal
from proxy.session.context import Term

Waiter = Callable[[Refusal | None], None]
Listener = Callable[[Routing], None]


@dataclass(slots=True)
class HoldState:
    """A hold that is in force."""

    id: int
    tables: frozenset[str]
    seconds: float
    phase: Literal["draining", "held"] = "draining"


class RoutingHub:
    """Current routing, terms in use, and the hold; see the module's docstring for the rules."""

    __slots__ = (
        "_earlier",
        "_listeners",
        "_parked",
        "_spent_hold",
        "_touching",
        "hold",
        "on_quiet",
        "parked_total",
        "routing",
        "term",
    )

    def __init__(self) -> None:
        self.routing: Routing = EMPTY
        """The routing state that new batches act under."""
        self.term = Term(EMPTY, 0)
        self._earlier: list[Term] = []
        self.hold: HoldState | None = None
        self._spent_hold: int | None = None
        self._touching = 0
        self._parked: list[Waiter] = []
        self._listeners: list[Listener] = []
        self.on_quiet: Callable[[], None] | None = None
        """Called when an earlier term was left by its last batch, or when the last toucher left during a hold."""
        self.parked_total = 0

    def listen(self, listener: Listener) -> None:
        """Call ``listener`` for every publication, before parked statements act under it."""
        self._listeners.append(listener)

    # -- publication -------------------------------------------------------------------------------------------

    def publish(self, routing: Routing) -> None:
        """Make a routing document the current one. The same epoch only replaces what is no write path."""
        current, self.routing = self.routing, routing
        if (routing.epoch, routing.epoch_id) == (current.epoch, current.epoch_id):
            self.term.routing = routing
        else:
            if self.term.active:
                self._earlier.append(self.term)
            self.term = Term(routing, self.term.serial + 1)
        # Before anything that was parked goes on: no replica serves this state until it has replayed it.
        for listener in self._listeners:
            listener(routing)
        hold = routing.hold
        if hold is None or hold.id == self._spent_hold:
            self._end_hold(None)
        elif self.hold is None or self.hold.id != hold.id:
            self._end_hold(None)
            self.hold = HoldState(hold.id, frozenset(hold.tables), hold.seconds)

    # -- epochs ------------------------------------------------------------------------------------------------

    def quiet(self) -> bool:
        """Whether no batch acts under an earlier epoch: the current one may be acknowledged."""
        return not self._earlier

    def leave(self, term: Term) -> None:
        """A batch of that term was answered in full, or its server connection is gone."""
        term.active -= 1
        if term.active == 0 and term is not self.term:
            self._earlier = [other for other in self._earlier if other.active]
            if not self._earlier and self.on_quiet is not None:
                self.on_quiet()

    # -- hold --------------------------------------------------------------------------------------------------

    @property
    def touching(self) -> int:
        """Sessions with a statement or an open transaction that may have touched a table of the routing state."""
        return self._touching

    @property
    def parked(self) -> int:
        """Sessions that wait for the end of the hold."""
        return len(self._parked)

    def touch(self) -> None:
        """A session sends its first statement of a transaction that may touch a table of the routing state."""
        self._touching += 1

    def untouch(self) -> None:
        """Such a session's transaction has ended."""
        self._touching -= 1
        if self._touching == 0 and self.hold is not None and self.on_quiet is not None:
            self.on_quiet()

    def must_park(self, tables: tuple[str, ...], in_transaction: bool, touched: bool) -> bool:
        """Whether a statement that names these tables (none: it could not be parsed) must wait for the hold's end."""
        hold = self.hold
        if hold is None:
            return False
        if tables and hold.tables.isdisjoint(tables):
            return False
        return hold.phase == "held" or not (in_transaction or touched)

    def park(self, waiter: Waiter) -> None:
        """Call ``waiter(None)`` when the hold has ended, or with a refusal if it ended badly."""
        self._parked.append(waiter)
        self.parked_total += 1

    def unpark(self, waiter: Waiter) -> None:
        """Forget a waiter, whose client has gone."""
        if waiter in self._parked:
            self._parked.remove(waiter)

    def try_held(self, hold_id: int) -> bool:
        """Go from ``draining`` to ``held`` if nobody touches a held table; True when the hold is now held."""
        hold = self.hold
        if hold is None or hold.id != hold_id:
            return False
        if hold.phase == "draining" and self._touching == 0:
            hold.phase = "held"
        return hold.phase == "held"

    def release(self, hold_id: int, refusal: Refusal | None = None) -> None:
        """End this hold for good, whatever later documents say of it; parked statements go on, or are refused.

        The caller must have given up the sidecar's hold row first and published the document read after that.
        """
        self._spent_hold = hold_id
        if self.hold is not None and self.hold.id == hold_id:
            self._end_hold(refusal)

    def refuse_parked(self, refusal: Refusal) -> None:
        """Refuse what is parked now and go on holding: how the hold ended cannot be learnt yet."""
        parked, self._parked = self._parked, []
        for waiter in parked:
            waiter(refusal)

    def _end_hold(self, refusal: Refusal | None) -> None:
        self.hold = None
        parked, self._parked = self._parked, []
        for waiter in parked:
            waiter(refusal)
