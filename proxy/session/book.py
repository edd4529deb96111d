"""Plans by exact text, for all sessions of one database: nothing is parsed twice under the same epoch.

A book belongs to one term (one epoch as this process acts under it) and is replaced with it. Its size is bounded in
entries and in the length of a cached text; what is evicted is planned again.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import final

from proxy.rewrite.model import Side, TableModel
from proxy.rewrite.plan import Plan
from proxy.rewrite.planner import Planner
from proxy.rewrite.replies import Translator
from proxy.stats import Stats

MAX_TEXT = 32_768
"""Bytes; longer texts are planned each time (bulk statements with literals, which are not repeated)."""
MAX_ENTRIES = 5_000

SearchPath = tuple[str, ...]


@final
class PlanBook:
    """Plans of one database under one term."""

    __slots__ = ("_planners", "_plans", "_stats", "_translators", "serial", "tables")

    def __init__(self, serial: int, tables: Sequence[TableModel], dual_write: bool, stats: Stats) -> None:
        self.serial = serial
        self.tables = tables
        self._planners: dict[Side, Planner] = {
            side: Planner(tables, side, dual_write) for side in ("old", "new")
        }
        self._plans: dict[tuple[Side, SearchPath, bytes], Plan] = {}
        self._translators: dict[Side, Translator] = {}
        self._stats = stats

    def __len__(self) -> int:
        return len(self._plans)

    def translator(self, side: Side) -> Translator:
        """What turns the errors of migrated tables into those of a version."""
        translator = self._translators.get(side)
        if translator is None:
            translator = self._translators[side] = Translator(self.tables, side)
        return translator

    def plan(self, text: bytes, side: Side, search_path: SearchPath, temp: frozenset[str]) -> Plan:
        """The plan of a text; never raises. Sessions with temporary relations have plans of their own."""
        if temp:
            self._stats.plan_misses += 1
            return self._planners[side].plan(text, search_path, temp)
        key = (side, search_path, text)
        plan = self._plans.get(key)
        if plan is not None:
            self._stats.plan_hits += 1
            return plan
        self._stats.plan_misses += 1
        plan = self._planners[side].plan(text, search_path)
        if len(text) <= MAX_TEXT:
            if len(self._plans) >= MAX_ENTRIES:
                for stale in list(self._plans)[: MAX_ENTRIES // 10]:
                    del self._plans[stale]
            self._plans[key] = plan
        return plan
