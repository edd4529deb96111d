"""Plans for all sessions of one database: nothing is parsed twice under the same epoch.

A book belongs to one term (one epoch as this process acts under it) and is replaced with it. A plan is found by the
exact text, or follows from a template where texts differ in their literals only (``proxy.rewrite.template``); one is
made when a second text of a shape comes. Both caches are bounded in entries and bytes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from typing import final

from proxy.caches import Cache
from proxy.rewrite.model import Side, TableModel
from proxy.rewrite.plan import Plan
from proxy.rewrite.planner import Planner
from proxy.rewrite.replies import Translator
from proxy.rewrite.template import Family
from proxy.sql.literals import Split, split
from proxy.stats import Stats

LARGE_TEXT = 8_192
"""Bytes; longer texts take too long to plan on the event loop, and are no templates."""
MAX_ENTRIES = 5_000
MAX_BYTES = 16 << 20
MAX_LARGE = 64
"""Plans of large texts; they have a cache of their own, so that a few of them do not drive out all others."""
MAX_SHAPES = 2_000
MAX_SHAPE_BYTES = 8 << 20
_OVERHEAD = 1_200
"""Bytes that a plan takes besides its texts."""

SearchPath = tuple[str, ...]
PlanKey = tuple[Side, SearchPath, bytes]


@final
class PlanBook:
    """Plans of one database under one term."""

    __slots__ = (
        "_large",
        "_planners",
        "_plans",
        "_shapes",
        "_split",
        "_split_text",
        "_stats",
        "_translators",
        "dual_write",
        "serial",
        "tables",
    )

    def __init__(self, serial: int, tables: Sequence[TableModel], dual_write: bool, stats: Stats) -> None:
        self.serial = serial
        self.tables = tables
        self.dual_write = dual_write
        self._planners: dict[Side, Planner] = {
            side: Planner(tables, side, dual_write) for side in ("old", "new")
        }
        self._translators: dict[Side, Translator] = {}
        self._plans: Cache[PlanKey, Plan] = Cache(MAX_ENTRIES, MAX_BYTES, stats.caches["plans"])
        self._large: Cache[PlanKey, Plan] = Cache(MAX_LARGE, MAX_BYTES, stats.caches["plans"])
        self._shapes: Cache[PlanKey, Family] = Cache(MAX_SHAPES, MAX_SHAPE_BYTES, stats.caches["templates"])
        self._stats = stats
        self._split_text = b""
        self._split: Split | None = None

    def __len__(self) -> int:
        return len(self._plans) + len(self._large)

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
        plans = self._plans if len(text) <= LARGE_TEXT else self._large
        plan = plans.get(key)
        if plan is not None:
            self._stats.plan_hits += 1
            return plan
        if plans is self._large:
            self._stats.plan_misses += 1
            plan = self._planners[side].plan(text, search_path)
        else:
            parts = self._parts(text)
            if parts is not None:
                shape = (side, search_path, parts.shape)
                family = self._shapes.get(shape)
                if family is not None:
                    plan = family.plan(text, parts)
                    if plan is not None:
                        self._stats.plan_templates += 1
                        return plan
            self._stats.plan_misses += 1
            planner = self._planners[side]
            plan = planner.plan(text, search_path)
            if parts is not None:
                if family is None:
                    family = Family()
                else:
                    family.learn(lambda text: planner.plan(text, search_path), text, parts, plan)
                self._shapes.put(shape, family, len(shape[2]) + family.size)
        plans.put(key, plan, size_of(plan) + len(text))
        return plan

    def large(self, text: bytes, side: Side, search_path: SearchPath, temp: frozenset[str]) -> Plan | None:
        """The plan of a large text, if it is at hand."""
        plan = None if temp else self._large.get((side, search_path, text))
        if plan is not None:
            self._stats.plan_hits += 1
        return plan

    def keep(
        self, text: bytes, side: Side, search_path: SearchPath, temp: frozenset[str], plan: Plan
    ) -> None:
        """The plan of a large text was made elsewhere."""
        self._stats.plan_misses += 1
        self._stats.plans_apart += 1
        if not temp:
            self._large.put((side, search_path, text), plan, size_of(plan) + len(text))

    def unplanned(self, text: bytes, side: Side, why: str = "it took too long, or too much memory") -> Plan:
        """What becomes of a text that nobody could look into."""
        return self._planners[side].unplanned(text, why)

    def tried_as(self, text: bytes, simple: bool) -> bytes:
        """Under what a text is known that was tried on the server: in a simple query its literals do not count."""
        if len(text) > LARGE_TEXT:
            return hashlib.sha256(text).digest()
        parts = self._parts(text) if simple else None
        return text if parts is None else parts.shape

    def _parts(self, text: bytes) -> Split | None:
        """The text taken apart; a statement's text is often asked for twice."""
        if text is not self._split_text:
            self._split_text, self._split = text, split(text)
        return self._split

    def plans(self) -> Iterator[tuple[PlanKey, Plan, int]]:
        """All plans by exact text, and how often each was asked for again."""
        for cache in (self._plans, self._large):
            for key, kept in cache.items():
                yield key, kept.value, kept.hits

    def templates(self) -> Iterator[tuple[PlanKey, Plan, int]]:
        """All shapes with templates (a question mark for each literal), an example, and how often each was of use."""
        for (side, search_path, shape), kept in self._shapes.items():
            example = kept.value.example
            if example is not None:
                pieces = shape.split(b"\0")[:-1]
                yield (side, search_path, b"?".join(pieces)), example, kept.hits

    def close(self) -> None:
        """The term is over."""
        for cache in (self._plans, self._large):
            cache.clear()
        self._shapes.clear()


def size_of(plan: Plan) -> int:
    """About how many bytes a plan takes, the client's text left out."""
    size = _OVERHEAD + len(plan.text) + sum([200 + len(edit.text) for edit in plan.edits])
    if plan.twin is not None:
        size += len(plan.twin) + 200 * len(plan.twin_edits)
    return size if plan.fallback is None else size + size_of(plan.fallback)
