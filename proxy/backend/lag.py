"""Which replica may serve whom: LSN samples, replay positions, and what relations a replica can serve at all.

The rule (DESIGN section 6, read-your-writes): a session that has heard from the primary may use a replica only once
that replica has replayed an LSN that was sampled on the primary by a query *sent* after the session heard. So samples
are numbered in the order of sending; a session remembers the number of the last sample sent when it heard
(``Session.seen``), a replica has ``covered`` the largest number whose LSN it has replayed, and the hot path compares
two integers. The sample is ``pg_current_wal_insert_lsn()``: with ``synchronous_commit = off`` the flushed position
lags behind what commits have shown. Samples of different timelines are never compared.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import asyncpg
import structlog

from proxy.backend.own import dial
from proxy.dsn import Dsn
from proxy.rewrite.plan import Plan

log = structlog.get_logger(__name__)

FASTEST = 0.005
"""Seconds between two samples while sessions wait for a replica to catch up."""
SLOWEST = 0.1
"""Seconds between two samples otherwise."""
RELATION_TTL = 15.0
"""Seconds for which a relation's answer is believed."""
PAGE = 8192
LONG_HEADER = 40

_SAMPLE = (
    """SELECT l - '0/0'::pg_lsn, substr(pg_walfile_name(l), 1, 8) FROM pg_current_wal_insert_lsn() AS l"""
)
_REPLAYED = """SELECT coalesce(pg_last_wal_replay_lsn(), '0/0') - '0/0'::pg_lsn,
    lpad(to_hex(greatest((SELECT timeline_id FROM pg_control_checkpoint()),
                         (SELECT min_recovery_end_timeline FROM pg_control_recovery()))), 8, '0'),
    pg_is_in_recovery()"""
_RELATION = """SELECT c.relkind IN ('r', 'p', 'm') AND c.relpersistence = 'p' AND NOT c.relrowsecurity
FROM unnest($1::text[]) WITH ORDINALITY AS path(nspname, position)
JOIN pg_namespace AS n ON n.nspname = path.nspname
JOIN pg_class AS c ON c.relnamespace = n.oid AND c.relname = $2
ORDER BY path.position LIMIT 1"""


@dataclass(slots=True)
class Replica:
    """What is known of one replica."""

    dsn: Dsn
    index: int
    up: bool = False
    covered: int = -1
    """The largest sample number whose LSN this replica has replayed; -1: none."""
    lag: float = 0.0
    """Seconds since the oldest sample that is not replayed yet was taken; 0 if all are."""
    error: str = ""
    connection: Any = None


@dataclass(slots=True)
class _Sample:
    number: int
    lsn: int
    timeline: str
    taken: float


@dataclass(slots=True)
class _Known:
    servable: bool
    until: float


@dataclass(slots=True)
class ReadState:
    """The hot path's view: numbers only, updated by the monitor."""

    replicas: list[Replica]
    max_lag: float = 1.0
    percent: int = 100
    consistency: str = "session"
    sent: int = 0
    floor: int = 0
    """No replica serves before it has covered a sample later than this: an epoch was published."""
    wanted: asyncio.Event = field(default_factory=asyncio.Event)
    unknown: set[tuple[str, tuple[str, ...], str]] = field(default_factory=set)
    _turn: int = 0
    _relations: dict[tuple[str, tuple[str, ...], str], _Known] = field(default_factory=dict)

    @property
    def enabled(self) -> bool:
        """Whether reads may leave the primary at all."""
        return bool(self.replicas) and self.percent > 0 and self.consistency != "primary"

    def raise_floor(self) -> None:
        """An epoch was read from the primary: a replica must have replayed its publication first."""
        self.floor = self.sent
        self._relations.clear()

    def choose(self, seen: int, current: int | None) -> tuple[int | None, str]:
        """The index of a replica for a session that has seen the primary at sample ``seen``, and the reason.

        A session stays with the replica that it read from before (``current``); it must not go back in time.
        """
        self._turn += self.percent
        if self._turn < 100:
            return None, "replica_percent"
        self._turn -= 100
        needed = max(seen, self.floor)
        candidates: Sequence[Replica] = self.replicas
        if current is not None:
            candidates = (self.replicas[current],)
        reason = "replica_down"
        for replica in candidates:
            if not replica.up:
                continue
            if replica.covered <= needed:
                reason = "read_your_writes"
            elif replica.lag > self.max_lag:
                reason = "replica_lag"
            else:
                return replica.index, "read_only"
        return None, reason

    def request(self) -> None:
        """A session waits for a replica to catch up: sample soon."""
        self.wanted.set()

    def servable(self, plan: Plan, search_path: tuple[str, ...], user: str) -> bool | None:
        """Whether every relation of the plan is an ordinary, permanent table without row security; None: unknown."""
        now = time.monotonic()
        answer: bool | None = True
        for schema, name in plan.relations:
            key = (user, ("pg_catalog", *search_path) if schema is None else (schema,), name)
            known = self._relations.get(key)
            if known is None or known.until < now:
                self.unknown.add(key)
                self.wanted.set()
                if known is None:
                    answer = None if answer else answer
                    continue
            if not known.servable:
                answer = False
        return answer

    def learn(self, key: tuple[str, tuple[str, ...], str], servable: bool) -> None:
        """Remember what a relation is."""
        if len(self._relations) > 10_000:
            self._relations.clear()
        self._relations[key] = _Known(servable, time.monotonic() + RELATION_TTL)


class Monitor:
    """Keeps a ReadState true: samples the primary, polls the replicas, looks relations up."""

    def __init__(self, primary: Dsn, state: ReadState) -> None:
        self._primary = primary
        self.state = state
        self._connection: Any = None
        self._samples: deque[_Sample] = deque(maxlen=10_000)
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to monitor, if there is anything to do."""
        if self.state.replicas and self._task is None:
            self._task = asyncio.create_task(self._run())

    async def stop(self) -> None:
        """Stop and disconnect."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
            self._task = None
        for connection in (self._connection, *(replica.connection for replica in self.state.replicas)):
            if connection is not None:
                connection.terminate()

    async def _run(self) -> None:
        while True:
            self.state.wanted.clear()
            started = time.monotonic()
            try:
                await self._sample()
                await asyncio.gather(*(self._poll(replica) for replica in self.state.replicas))
                await self._look_up()
            except Exception as exc:
                # Whatever it is, reads hang on this task: it goes on, and says what it was.
                await self._lost(exc)
                await asyncio.sleep(0.5)
            # Sessions that wait may have us sample again soon; without them a slow beat is enough.
            await asyncio.sleep(max(0.0, FASTEST - (time.monotonic() - started)))
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(SLOWEST):
                    await self.state.wanted.wait()

    async def _lost(self, exc: Exception) -> None:
        log.warning("the replica monitor lost the primary", server=self._primary.label, error=str(exc))
        if self._connection is not None:
            self._connection.terminate()
            self._connection = None
        self._samples.clear()
        for replica in self.state.replicas:
            replica.covered = -1

    async def _sample(self) -> None:
        if self._connection is None:
            self._connection = await dial(self._primary, "monitor")
        self.state.sent += 1
        number, taken = self.state.sent, time.monotonic()
        row = await self._connection.fetchrow(_SAMPLE, timeout=5)
        lsn = int(row[0])
        # At a page's beginning the insert position stands after a header that no record belongs to: a replica that
        # has replayed everything reports the position before it.
        if lsn % PAGE <= LONG_HEADER:
            lsn -= lsn % PAGE
        if self._samples and self._samples[-1].timeline != row[1]:
            self._samples.clear()
            for replica in self.state.replicas:
                replica.covered = -1
        self._samples.append(_Sample(number, lsn, row[1], taken))

    async def _poll(self, replica: Replica) -> None:
        try:
            if replica.connection is None:
                replica.connection = await dial(replica.dsn, "monitor")
            row = await replica.connection.fetchrow(_REPLAYED, timeout=5)
        except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError, TimeoutError) as exc:
            if replica.up or not replica.error:
                log.warning("replica unreachable", server=replica.dsn.label, error=str(exc))
            replica.up, replica.error, replica.covered = False, str(exc) or type(exc).__name__, -1
            if replica.connection is not None:
                replica.connection.terminate()
                replica.connection = None
            return
        replayed, timeline, in_recovery = int(row[0]), row[1], row[2]
        usable = in_recovery and bool(self._samples) and timeline == self._samples[-1].timeline
        if usable and not replica.up:
            log.info("replica in use", server=replica.dsn.label)
        replica.up = usable
        replica.error = "" if usable else "not in recovery, or on another timeline than the primary"
        if not usable:
            replica.covered = -1
            return
        pending = None
        for sample in reversed(self._samples):
            if sample.lsn <= replayed:
                replica.covered = max(replica.covered, sample.number)
                break
            pending = sample
        replica.lag = 0.0 if pending is None else time.monotonic() - pending.taken

    async def _look_up(self) -> None:
        while self.state.unknown:
            key = self.state.unknown.pop()
            servable = await self._connection.fetchval(_RELATION, list(key[1]), key[2], timeout=5)
            self.state.learn(key, bool(servable))
