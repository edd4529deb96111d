"""Temporary relations of a session: names under which its statements mean nothing of the routing state.

Contract: :meth:`Temporary.sent` is told of every statement that is sent, :meth:`Temporary.over` of the end of every
transaction. ``SessionSettings.temp`` holds the names as far as can be told; a savepoint that is gone back to may leave
a name there that is gone.
"""

from __future__ import annotations

import re
from typing import final

from proxy.rewrite.plan import Plan
from proxy.session.settings import SessionSettings

_DROPS = re.compile(rb"\bDROP\s+(?:TABLE|VIEW|SEQUENCE)\b", re.IGNORECASE)
_DISCARDS = re.compile(rb"\bDISCARD\s+TEMP", re.IGNORECASE)
_PASSING = re.compile(rb"\bON\s+COMMIT\s+DROP\b", re.IGNORECASE)


@final
class Temporary:
    """See the module's docstring."""

    __slots__ = ("_before", "_passing", "_settings")

    def __init__(self, settings: SessionSettings) -> None:
        self._settings = settings
        self._before = settings.temp
        """What there was when the transaction began."""
        self._passing: frozenset[str] = frozenset()
        """What goes with the end of the transaction."""

    def sent(self, text: bytes, plan: Plan) -> None:
        """A statement that is no mere read is sent."""
        settings = self._settings
        if plan.temp_relations:
            made = frozenset(plan.temp_relations)
            settings.temp |= made
            if _PASSING.search(text) is not None:
                self._passing |= made
        elif settings.temp:
            if _DROPS.search(text) is not None:
                lowered = text.lower()
                settings.temp = frozenset(n for n in settings.temp if n.lower().encode() not in lowered)
            elif _DISCARDS.search(text) is not None:
                settings.temp = frozenset()

    def over(self, undone: bool) -> None:
        """A transaction has ended; ``undone``: it was rolled back."""
        settings = self._settings
        if settings.temp is not self._before:
            if undone:
                settings.temp = self._before
            else:
                if self._passing:
                    settings.temp -= self._passing
                self._before = settings.temp
            self._passing = frozenset()
