"""Which version a session speaks, and on which side of the active migration a version stands.

A pinned session speaks one version for good; an ``auto`` session what the routing says, decided between transactions
only. A statement keeps the version under which it was parsed. Both are resolved again under each routing state.
"""

from __future__ import annotations

from typing import final

from proxy.rewrite.model import Side
from proxy.rewrite.plan import Refusal
from proxy.session.ports import RoutingView


@final
class Spoken:
    """The version of one session; ``asked`` is a version's name or ``auto``."""

    __slots__ = ("_asked", "_due", "_number", "_routing", "_sides", "changed", "refusal", "version")

    def __init__(self, asked: str, number: int) -> None:
        self._asked = asked
        self._number = number
        self._routing: RoutingView | None = None
        self._sides: dict[str, Side | Refusal] = {}
        self._due = True
        self.version = asked
        """The version that new statements belong to: a concrete name once routing is known."""
        self.refusal: Refusal | None = None
        """Why that version cannot be served, if so."""
        self.changed = False
        """Set when the version was decided anew: earlier statements may belong to another one."""

    def settled(self, routing: RoutingView) -> bool:
        """Whether there is nothing to decide under this routing state."""
        return routing is self._routing and not self._due

    def follow(self, routing: RoutingView, between_transactions: bool) -> None:
        """Decide under a routing state that is new, if the session may change its version now."""
        if routing is not self._routing:
            self._routing = routing
            self._sides = {}
            self._due = True
        if self._due and between_transactions:
            side = routing.resolve(self._asked, self._number)
            if isinstance(side, Refusal):
                self.refusal, self.version = side, self._asked
            else:
                self.refusal = None
                self.version = routing.new if side == "new" and routing.new is not None else routing.old
            self._due = False
            self.changed = True

    def side_of(self, version: str) -> Side | Refusal:
        """Where a version stands under the current routing state; :meth:`follow` was called before."""
        side = self._sides.get(version)
        if side is None:
            assert self._routing is not None
            side = self._sides[version] = self._routing.resolve(version, self._number)
        return side
