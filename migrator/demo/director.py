"""The story of the demo: a shop under load, two migrations, one rolled back, and the checks in between.

The director starts the servers' shop, the sidecars, the workloads and the migrator's commands, and sends the
traffic nowhere itself. What it tells the workloads is what a team would do: roll services over one by one,
retire a job before its columns go, bring it back with the new names.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import asyncpg

from migrator.cluster import Cluster

from . import check, ledger, shop
from .display import Display, Status
from .ledger import Side
from .meter import merge_phases
from .processes import Command, DemoError, Sidecar, WorkloadProcess, dualwire
from .report import Result

APP = "dualwire_demo_app"
POLL_SECONDS = 0.2
OLD, MIXED, NEW = (
    {"orders": Side.OLD.value, "customers": Side.OLD.value},
    {"orders": Side.NEW.value, "customers": Side.OLD.value},
    {"orders": Side.NEW.value, "customers": Side.NEW.value},
)
WRITTEN_IN_BOTH = ("backfilled", "verified", "cutover")


@dataclass(frozen=True, slots=True)
class Plan:
    """How big and how long the run is."""

    rows: int
    seed: int
    writes: int
    """Acknowledged writes wanted at least; the traffic goes on until there are so many."""
    dwell: float
    """Seconds of traffic between two steps."""
    raw_rate: float = 60.0
    orm_rate: float = 30.0
    sabotage: bool = False


@dataclass
class Director:
    """One run on a started cluster. `run` fills ``result``, whatever happens; `stop` ends the processes."""

    cluster: Cluster
    plan: Plan
    display: Display
    database: str = field(default_factory=lambda: f"dualwire_demo_{secrets.token_hex(4)}")

    def __post_init__(self) -> None:
        self.result = Result(self.plan.seed, self.plan.rows, 0 if self.plan.sabotage else self.plan.writes)
        self.directory: Path = self.cluster.directory / "demo"
        self.password = secrets.token_urlsafe(12)
        self.dsn = self.cluster.primary.dsn(database=self.database)
        self.sidecars: dict[str, Sidecar] = {}
        self._workloads: list[WorkloadProcess] = []
        self._homes: dict[str, WorkloadProcess] = {}
        self._status = Status()
        self._begun = time.monotonic()
        self._phase_begun = self._begun
        self._phase_order: list[str] = []
        self._completed: set[str] = set()
        self._monitor: Any = None

    # The story

    async def run(self) -> None:
        """Everything from the empty database to the verdict."""
        try:
            await self._prepare()
            async with self._watching():
                try:
                    await self._first_migration()
                    if not self.plan.sabotage:
                        await self._second_migration()
                        await self._enough_writes()
                except DemoError as failure:
                    self._failed(str(failure))
                await asyncio.gather(*(workload.do("stop_all") for workload in self._workloads))
                self.display.note("the traffic has stopped; every row is compared once more")
                await self._check("at the end")
        except DemoError as failure:
            self._failed(str(failure))
        await self._collect()

    async def stop(self) -> None:
        """Ends workloads and sidecars, and drops the database where the servers are not ours."""
        if self._monitor is not None:
            self._monitor.terminate()
        await asyncio.gather(*(workload.leave() for workload in self._workloads))
        await asyncio.gather(*(sidecar.stop() for sidecar in self.sidecars.values()))
        if self.cluster.kind == "external":
            await asyncio.to_thread(self.cluster.drop_database, self.database)
            await asyncio.to_thread(self.cluster.primary.sql, f"DROP ROLE IF EXISTS {APP}")

    def service_dsns(self) -> dict[str, str]:
        """How to connect through the sidecars that still run."""
        return {name: sidecar.dsn(APP, self.password) for name, sidecar in self.sidecars.items()}

    async def _prepare(self) -> None:
        self.directory.mkdir()
        for name, text in shop.MIGRATIONS.items():
            (self.directory / f"{name}.yaml").write_text(text)
        await asyncio.to_thread(self._build_shop)
        self.display.note(f"a shop with {self.plan.rows:,} orders on a primary and a replica")
        await self._migrate("init")
        await asyncio.gather(
            self._sidecar("shop-v1", "base"),
            self._sidecar("shop-v2", shop.ORDER_STATE),
            self._sidecar("jobs", "auto"),
        )
        self.display.note(f"three sidecars: services on base, services on {shop.ORDER_STATE}, jobs on auto")
        for index in range(2):
            parameters = {"rows": self.plan.rows, "index": index, "owners": 2, "seed": self.plan.seed}
            log = self.directory / f"workload-{index}.log"
            self._workloads.append(await WorkloadProcess.start(self.cluster, parameters, log, self._failed))
        # The watcher and the story both ask; a connection takes one question at a time.
        self._monitor = await asyncpg.create_pool(self.dsn, min_size=1, max_size=2)

    async def _first_migration(self) -> None:
        name = shop.ORDER_STATE
        self.result.expected_migrations[name] = "completed"
        await self._enter("before")
        for instance in ("checkout-1", "checkout-2"):
            await self._start(instance, "asyncpg", "shop-v1", OLD)
        await self._start("backoffice-1", "sqlalchemy", "shop-v1", OLD)
        await self._start("mailer", "asyncpg", "jobs", None)
        await self._start("nightly-job", "asyncpg", None, OLD)
        self.display.note(
            "traffic: two checkouts, a back office, a mailer; a nightly job comes past the sidecars"
        )
        await self._dwell()
        await self._check("before")

        await self._flip(name, "expand", "start", self._file(name), "--until", "expanded")
        await self._all("mirrored", migration=name)
        if self.plan.sabotage:
            await self._sabotage()
        self.display.note("both shapes exist: services of v2 try to connect until they are served")
        await self._start("web-1", "asyncpg", "shop-v2", MIXED, patient=True)
        await self._start("reports-1", "sqlalchemy", "shop-v2", MIXED, patient=True)
        await self._dwell()
        await self._check("expanded")
        if self.plan.sabotage:
            await self._sabotaged()
            return

        await self._migrate("start", self._file(name), "--until", "verified")
        await self._served("web-1", "reports-1")
        self.display.note("verified: v2 is served beside v1")
        await self._dwell(2)
        await self._check("verified")

        await self._flip(name, "cutover", "cutover")
        await self._dwell()
        for instance in ("checkout-1", "checkout-2", "backoffice-1"):
            await self._roll_over(instance, "shop-v2", MIXED)
        await self._retire_sidecar("shop-v1")
        await self._dwell()
        await self._stop("nightly-job")
        self.display.note("the nightly job is retired: its column goes away")
        await self._check("cutover")

        await self._flip(name, "complete", "complete", "--retention", "0")
        self._completed.add(name)
        await self._start("nightly-job", "asyncpg", None, MIXED)
        self.display.note("completed: only the new shape is left; the nightly job is back with the new names")
        await self._dwell()
        await self._check("completed")

    async def _second_migration(self) -> None:
        name = shop.CUSTOMER_EMAIL
        self.result.expected_migrations[name] = "rolled_back"
        await self._all("focus", orders=0.3)
        await self._sidecar("shop-v3", name)
        await self._flip(name, "expand", "start", self._file(name), "--until", "expanded")
        await self._all("mirrored", migration=name)
        await self._start("web-next", "asyncpg", "shop-v3", NEW, patient=True)
        await self._start("backoffice-next", "sqlalchemy", "shop-v3", NEW, patient=True)
        await self._dwell()
        await self._check("expanded")

        await self._migrate("start", self._file(name), "--until", "verified")
        await self._served("web-next", "backoffice-next")
        await self._dwell()
        await self._check("verified")

        await self._flip(name, "cutover", "cutover")
        await self._dwell()
        await self._stop("web-next")
        await self._stop("backoffice-next")
        await self._retire_sidecar("shop-v3")
        self.display.note("the team changes its mind: the services of v3 are withdrawn")
        await self._check("cutover")

        await self._flip(name, "rollback", "rollback")
        await self._dwell()
        await self._check("rolled back")

    async def _enough_writes(self) -> None:
        deadline = time.monotonic() + 180
        if self._status.writes < self.plan.writes:
            self.display.note(f"the traffic goes on until {self.plan.writes:,} writes are acknowledged")
        while self._status.writes < self.plan.writes and time.monotonic() < deadline:
            await asyncio.sleep(POLL_SECONDS)

    async def _sabotage(self) -> None:
        """Breaks the product behind its back: no sidecar mirrors in this run, and now the guard does nothing.

        The guard's trigger stays as it is, or the migrator would refuse to go on: the table was changed.
        """
        guard = await self._monitor.fetchval(
            "SELECT tgfoid::regproc::text FROM pg_trigger "
            "WHERE tgrelid = 'orders'::regclass AND tgname = 'zzz_dualwire_guard'"
        )
        if guard is None:
            raise DemoError("there is no guard to sabotage")
        for function, row in ((guard, "NULL"), (f"{guard}_fill", "NEW")):
            await self._monitor.execute(
                f"CREATE OR REPLACE FUNCTION {function}() RETURNS trigger LANGUAGE plpgsql"
                f" AS 'BEGIN RETURN {row}; END'"
            )
        self.display.note("SABOTAGE: dual writes are off in every sidecar, and the guard does nothing")

    async def _sabotaged(self) -> None:
        """What the migrator makes of it; its own verification may notice, the ledger must."""
        try:
            await self._migrate("start", self._file(shop.ORDER_STATE), "--until", "verified")
        except DemoError as noticed:
            self.display.note(f"the migrator noticed: {noticed}")
        await self._dwell()

    # Steps

    async def _flip(self, migration: str, flip: str, *command: str) -> None:
        """A command that switches something under the clients: what they feel around it is measured."""
        label = f"{migration}.{flip}"
        await self._all("open_window", name=label)
        try:
            await self._migrate(*command)
        finally:
            await self._all("close_window", name=label)

    async def _migrate(self, *args: str) -> Command:
        shown = [Path(arg).name if arg.startswith("/") else arg for arg in args]
        self.display.note(f"$ dualwire {' '.join(shown)}")
        done = await dualwire(self.cluster, self.dsn, *args)
        if done.status != 0:
            raise DemoError(f"dualwire {' '.join(shown)} ended with status {done.status}: {done.words}")
        return done

    async def _sidecar(self, name: str, version: str) -> None:
        servers = (
            self.cluster.primary.dsn(user=APP, database=self.database),
            self.cluster.replicas[0].dsn(user=APP, database=self.database),
        )
        users = self.directory / "users.txt"
        self.sidecars[name] = await Sidecar.start(
            self.cluster, self.directory, name, version, servers, users, dual_write=not self.plan.sabotage
        )

    async def _retire_sidecar(self, name: str) -> None:
        sidecar = self.sidecars.pop(name)
        status = await sidecar.stop()
        if status != 0:
            self._failed(f"the sidecar {name} ended with status {status}: {sidecar.last_words()}")
        self.display.note(f"the sidecar {name} has no clients left and is retired")

    async def _start(
        self,
        name: str,
        driver: str,
        sidecar: str | None,
        speaks: dict[str, str] | None,
        patient: bool = False,
    ) -> None:
        """Starts a service instance; without a sidecar it connects to the primary itself."""
        direct = self.cluster.primary.dsn(user=APP, database=self.database)
        dsn = direct if sidecar is None else self.sidecars[sidecar].dsn(APP, self.password)
        home = self._workloads[0 if driver == "asyncpg" else 1]
        self._homes[name] = home
        instance = {
            "name": name,
            "driver": driver,
            "dsn": dsn,
            "speaks": speaks,
            "rate": self.plan.raw_rate if driver == "asyncpg" else self.plan.orm_rate,
            "patient": patient,
            "direct": sidecar is None,
        }
        await home.do("start", instance=instance)
        if not patient:
            await self._served(name)

    async def _served(self, *names: str) -> None:
        for name in names:
            try:
                await asyncio.wait_for(self._homes[name].served(name), 30)
            except TimeoutError:
                raise DemoError(f"{name} got no answer within 30 s") from None

    async def _stop(self, name: str) -> None:
        await self._homes.pop(name).do("stop", name=name)

    async def _roll_over(self, name: str, sidecar: str, speaks: dict[str, str]) -> None:
        """Replaces an instance by its next release."""
        driver = "asyncpg" if self._homes[name] is self._workloads[0] else "sqlalchemy"
        await self._stop(name)
        await self._start(f"{name}-v2", driver, sidecar, speaks)
        self.display.note(f"{name} is rolled over to v2")
        await self._dwell(0.3)

    async def _dwell(self, share: float = 1.0) -> None:
        await asyncio.sleep(self.plan.dwell * share)

    async def _all(self, command: str, **arguments: Any) -> list[Any]:
        return await asyncio.gather(*(workload.do(command, **arguments) for workload in self._workloads))

    async def _enter(self, label: str) -> None:
        """Another phase begins for the measurements."""
        now = time.monotonic()
        if self._phase_order:
            last = self._phase_order[-1]
            self.result.seconds[last] = self.result.seconds.get(last, 0.0) + now - self._phase_begun
        self._phase_begun = now
        if label not in self._phase_order:
            self._phase_order.append(label)
        self._status.phase = label
        await self._all("phase", name=label)

    async def _check(self, when: str) -> None:
        """Compares all rows with the ledgers in one snapshot, while the traffic goes on."""
        phases = {row["name"]: row["phase"] for row in await self._phases()}
        connection = await asyncpg.connect(self.dsn)
        try:
            await self._all("begin_check")
            async with connection.transaction(isolation="repeatable_read", readonly=True):
                await connection.fetchval("SELECT count(*) FROM pg_class")
                expectations = await self._all("expectations")
                found = check.Findings()
                for table in shop.TABLES.values():
                    both = phases.get(table.migration) in WRITTEN_IN_BOTH
                    visible = await check.visible_shape(
                        connection, table, both, table.migration in self._completed
                    )
                    seeded = shop.seeded_rows(table.name, self.plan.rows)
                    expected = check.Expected.parse(ledger.merged(expectations, table.name), seeded)
                    rows = check.table_rows(connection, table, visible)
                    found.merge(await check.compare(table, visible, expected, rows))
        finally:
            await connection.close()
        self.result.findings.merge(found)
        self.result.checks += 1
        self.display.note(
            f"checked {found.checked:,} rows ({when}): {len(found.lost)} lost, {len(found.diverged)} diverged"
        )

    # The watcher

    @contextlib.asynccontextmanager
    async def _watching(self) -> AsyncIterator[None]:
        watcher = asyncio.ensure_future(self._watch())
        try:
            yield
        finally:
            watcher.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await watcher

    async def _watch(self) -> None:
        """Follows the migrator through the control schema: phases for the measurements, figures for the
        display.
        """
        served, since = 0, time.monotonic()
        while True:
            await asyncio.sleep(POLL_SECONDS)
            active = await self._phases()
            if active and self._phase_order:
                label = f"{active[-1]['name']} {active[-1]['phase']}"
                if label != self._phase_order[-1]:
                    await self._enter(label)
            status = self._status
            await self._read_backfill(status)
            status.lag = await self._monitor.fetchval(
                "SELECT coalesce(extract(epoch FROM max(replay_lag)), 0)::float8 FROM pg_stat_replication"
            )
            figures = [workload.figures for workload in self._workloads]
            status.writes = sum(each["writes"] for each in figures)
            status.reads = sum(each["reads"] for each in figures)
            status.errors = sum(each["errors"] for each in figures)
            status.p99 = max(each["p99"] for each in figures)
            now = time.monotonic()
            status.seconds = now - self._begun
            if now - since >= 1:
                status.per_second = (status.writes + status.reads - served) / (now - since)
                served, since = status.writes + status.reads, now
            self.display.show(status)

    async def _read_backfill(self, status: Status) -> None:
        row = await self._monitor.fetchrow(
            "SELECT rows_done, rows_total, rate FROM dualwire.backfill WHERE finished_at IS NULL "
            "ORDER BY started_at DESC LIMIT 1"
        )
        status.rows_total = row["rows_total"] if row else 0
        if row:
            status.rows_done, status.rows_per_second = row["rows_done"], row["rate"]
            left = max(row["rows_total"] - row["rows_done"], 0)
            status.eta = left / row["rate"] if row["rate"] > 0 else None

    async def _phases(self) -> list[Any]:
        rows: list[Any] = await self._monitor.fetch("SELECT name, phase FROM dualwire.migration ORDER BY id")
        return rows

    # The end

    async def _collect(self) -> None:
        """Asks the workloads for all they measured."""
        if self._workloads:
            try:
                reports = await self._all("report")
            except DemoError as failure:
                self._failed(str(failure))
                return
            if self._phase_order:
                await self._enter(self._phase_order[-1])
            self.result.phases = merge_phases(reports, self._phase_order)
            for report in reports:
                self.result.errors.extend(report["samples"])
                for name, seconds in report["stalls"].items():
                    self.result.stalls[name] = max(seconds, self.result.stalls.get(name, 0.0))
        if self._monitor is not None:
            self.result.migrations = {row["name"]: row["phase"] for row in await self._phases()}

    def _failed(self, text: str) -> None:
        self.result.failures.append(text)
        self.display.note(f"FAILED: {text}")

    def _file(self, migration: str) -> str:
        return str(self.directory / f"{migration}.yaml")

    def _build_shop(self) -> None:
        self.cluster.create_role(APP, self.password)
        self.cluster.create_database(self.database)
        primary = self.cluster.primary
        primary.sql(shop.SCHEMA + shop.seed_sql(self.plan.rows), database=self.database)
        primary.sql(
            f"GRANT SELECT, INSERT, UPDATE, DELETE ON orders, customers TO {APP}; "
            f"GRANT USAGE ON ALL SEQUENCES IN SCHEMA public TO {APP}",
            database=self.database,
        )
        self.cluster.wait_replayed()
        users = self.directory / "users.txt"
        users.touch(0o600)
        verifier = primary.sql(f"SELECT rolpassword FROM pg_authid WHERE rolname = '{APP}'")
        users.write_text(f'"{APP}" "{verifier}"\n')
