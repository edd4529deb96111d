"""When rewritten writes fail where the client's own would not, their table is handed to the guard.

Rewritten statements are total (DESIGN section 4): an error that speaks of what dualwire added to a statement, or of a
privilege or an object that the added part lacks, should not exist. One that does is the client's error already; but
after a few of them a table's writes are sent without mirrors, and the guard carries them over, until the next epoch.
That holds for the role that met them: another one may have the privileges that it lacks.

Contract: :func:`ours` tells such an error by its fields alone; a :class:`Breaker` counts them by table and role.
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


Who = tuple[str, ...]
"""The user, and what it has set about its role and its search_path."""


def ours(message: bytes, alone: bool) -> bool:
    """Whether the error of a batch that writes both shapes may come from what was added to it.

    ``alone``: the batch has no other statement, whose own fault it could be.
    """
    fields = m.error_fields(message)
    if alone and fields.get("C") in _SUSPECTS:
        return True
    return any(_FUNCTION.search(fields.get(field, b"")) is not None for field in ("M", "W", "q"))


@final
class Breaker:
    """Counts errors by table, and knows which tables were handed over."""

    __slots__ = ("_counts", "_handed", "_stats")

    def __init__(self, stats: Stats) -> None:
        self._counts: Counter[tuple[str, Who]] = Counter()
        self._handed: set[tuple[str, Who]] = set()
        self._stats = stats

    def failed(self, tables: tuple[str, ...], who: Who) -> None:
        """A statement that writes these tables in both shapes failed by what was added to it."""
        self._stats.mirror_failures += 1
        for table in set(tables):
            self._counts[table, who] += 1
            if self._counts[table, who] >= THRESHOLD:
                self._handed.add((table, who))
                self._stats.handed_to_guard |= {table}

    def handed(self, tables: tuple[str, ...], who: Who) -> bool:
        """Whether what this role writes to any of these tables is left to the guard."""
        return bool(self._handed) and any((table, who) in self._handed for table in tables)

    def reset(self) -> None:
        """Another epoch: everything is tried anew."""
        self._counts.clear()
        self._handed.clear()
        self._stats.handed_to_guard = frozenset()
