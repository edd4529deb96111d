"""When rewritten writes fail where the client's own would not, their table is handed to the guard.

Rewritten statements are total (DESIGN section 4): an error that speaks of what dualwire added to a statement, or of a
privilege or an object that the added part lacks, should not exist. One that does is the client's error already; but
after a few of them a table's writes are sent without mirrors, and the guard carries them over, until the next epoch.

Contract: :func:`ours` tells such an error by its fields alone; a :class:`Breaker` counts them by table.
"""

from __future__ import annotations

import re
from collections import Counter
from typing import Final, final

from proxy.stats import Stats
from proxy.wire import messages as m

THRESHOLD: Final = 3
"""Errors after which a table is handed to the guard."""

_FUNCTION: Final = re.compile(rb'dualwire\.(?:up|down)_|function "?(?:up|down)_(?:ok_|why_)?[0-9]')
_SUSPECTS: Final = frozenset((b"42501", b"42703", b"42883", b"3F000"))
"""What a statement may get for an object that was added to it: privilege, column, function, schema."""


def ours(message: bytes) -> bool:
    """Whether the error of a statement that writes both shapes may come from what was added to it."""
    fields = m.error_fields(message)
    if fields.get("C") in _SUSPECTS:
        return True
    return any(_FUNCTION.search(fields.get(field, b"")) is not None for field in ("M", "W", "q"))


@final
class Breaker:
    """Counts errors by table, and knows which tables were handed over."""

    __slots__ = ("_counts", "_stats")

    def __init__(self, stats: Stats) -> None:
        self._counts: Counter[str] = Counter()
        self._stats = stats

    def failed(self, tables: tuple[str, ...]) -> None:
        """A statement that writes these tables in both shapes failed by what was added to it."""
        self._stats.mirror_failures += 1
        self._counts.update(tables)
        fresh = frozenset(name for name in tables if self._counts[name] >= THRESHOLD)
        self._stats.handed_to_guard |= fresh

    def handed(self, tables: tuple[str, ...]) -> bool:
        """Whether writes of any of these tables are left to the guard."""
        handed = self._stats.handed_to_guard
        return bool(handed) and not handed.isdisjoint(tables)

    def reset(self) -> None:
        """Another epoch: everything is tried anew."""
        self._counts.clear()
        self._stats.handed_to_guard = frozenset()
