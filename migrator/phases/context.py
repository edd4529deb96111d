"""What every phase works with, and the publication that phases share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeVar

import asyncpg

from migrator import drift, models
from migrator.catalog import CatalogTable
from migrator.control import acks, publish, store
from migrator.control.session import Session
from migrator.control.store import MigrationRow
from migrator.design import Design, TableDesign
from migrator.locks import LockOptions
from migrator.partitions import members, tree
from migrator.progress import Progress
from proxy.control.routing import Phase, Routing
from proxy.rewrite.model import Guard, TableModel

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class BackfillOptions:
    """How the backfill goes about it."""

    batch_rows: int | None = None
    """A fixed batch size; None adapts it to ``target_ms``."""
    target_ms: float = 150.0
    throttle: float = 0.0
    """The share of time to rest, 0 to 0.95."""
    max_rate: float | None = None
    """Rows a second at most."""
    max_lag: float = 5.0
    """Seconds that a replica may be behind."""


@dataclass(frozen=True, slots=True)
class Options:
    """Settings of a run."""

    lock: LockOptions = field(default_factory=LockOptions)
    backfill: BackfillOptions = field(default_factory=BackfillOptions)
    ack_timeout: float = 30.0
    hold_seconds: float = 2.0
    swap_attempts: int = 20
    guard: Guard | None = None
    """Overrules what the file says about the guard; None leaves it."""
    compat: bool | None = None
    """Overrules what the file says about serving old clients after closed; None leaves it."""


@dataclass(slots=True)
class Context:
    """One migrator at work on one migration."""

    session: Session
    row: MigrationRow
    progress: Progress
    options: Options

    @property
    def conn(self) -> asyncpg.Connection:
        """The connection that holds the migrator's lock."""
        return self.session.conn

    @property
    def design(self) -> Design:
        """The stored design."""
        return self.row.design

    @property
    def tables(self) -> list[tuple[int, str, str]]:
        """The existing tables, as ``locks`` takes them."""
        return [(t.oid, t.schema_name, t.name) for t in self.design.existing]

    async def reload(self) -> None:
        """Read the migration's row again."""
        row = await store.latest(self.conn, self.row.name)
        assert row is not None
        self.row = row

    async def check_drift(self) -> None:
        """Refuse to go on over somebody else's DDL."""
        await drift.check(self.conn, self.row.catalog, self.design)

    async def look(self, conn: asyncpg.Connection) -> drift.Catalogs:
        """The migrated tables as they are in the step's transaction."""
        return await drift.look(conn, self.design)

    def models(self, make: Callable[[TableDesign, CatalogTable], T], catalogs: drift.Catalogs) -> list[T]:
        """What ``make`` gives for each table, partitions included."""
        return [make(t, c) for t in self.design.tables for c in members(t.oid, catalogs)]

    async def finish_phase(
        self, conn: asyncpg.Connection, phase: Phase, catalogs: drift.Catalogs | None = None
    ) -> None:
        """Record, in the step's transaction, that the phase is reached and what the catalog is now."""
        await store.set_phase(conn, self.row.id, phase)
        await drift.remember(conn, self.row.id, self.design, catalogs)

    async def remember(self, conn: asyncpg.Connection) -> None:
        """Record what the catalog is now, in the step's transaction."""
        await drift.remember(conn, self.row.id, self.design)

    async def wait_acks(self, routing: Routing | None = None) -> Routing:
        """Wait until sidecars acknowledged the epoch that is published (again, after a crash)."""
        routing = routing or await publish.current(self.conn)
        await acks.wait_epoch(self.conn, routing, self.progress, self.options.ack_timeout)
        return routing

    async def publish(
        self,
        conn: asyncpg.Connection,
        change: Callable[[Routing], Routing],
        tables: Sequence[TableModel] | None,
        *,
        epoch: bool,
    ) -> Routing:
        """Publish, in the step's transaction, a changed state.

        Args:
            tables: models of this migration's tables; None keeps the published ones.
        """
        before = await publish.current(conn)
        after = change(before)
        if tables is not None:
            oids = {t.oid for t in self.design.existing} | {t.oid for t in tables}
            for table in self.design.tables:
                oids.update(await tree(conn, table.oid) if table.partitioned else ())
            others = await models.untouched(conn, before.tables, oids)
            after = replace(after, tables=(*others, *tables))
        return await publish.publish(conn, after, epoch=epoch)
