"""A table under migration behind a sidecar, and two plain databases that have its old and its new shape."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from migrator import engine
from migrator.cluster import Cluster
from migrator.control import install
from migrator.database import connect
from migrator.phases.context import Options
from migrator.progress import Progress
from tests.conftest import Database, Sidecar, SidecarFactory
from tests.regressions import raw
from tests.regressions.raw import Raw

OTHERS = """
CREATE TABLE customers (id int PRIMARY KEY, status int);
INSERT INTO customers VALUES (1, 1), (2, 2);
CREATE TABLE items (id int PRIMARY KEY, order_id int NOT NULL REFERENCES orders, qty int);
ALTER TABLE orders ADD CONSTRAINT orders_customer_fkey FOREIGN KEY ({customer}) REFERENCES customers;
INSERT INTO orders VALUES (1, {first}, 'a', 1, 1, 'one'), (2, {second}, 'b', 2, 2, 'two, and more');
INSERT INTO items VALUES (1, 1, 10);
"""

OLD = """CREATE TABLE orders (
    id int PRIMARY KEY, status smallint NOT NULL, code varchar(8) CONSTRAINT orders_code_key UNIQUE,
    amount numeric(8,2) NOT NULL DEFAULT 1 CONSTRAINT orders_amount_check CHECK (amount >= 0),
    customer int, note text, CONSTRAINT orders_note_check CHECK (note <> code));
CREATE INDEX orders_status_idx ON orders (status);
""" + OTHERS.format(customer="customer", first=0, second=1)

NEW = """CREATE TABLE orders (
    id int PRIMARY KEY, state varchar(12) NOT NULL CONSTRAINT state_known CHECK (state IN ('new', 'paid', 'sent')),
    sku varchar(8) CONSTRAINT orders_code_key UNIQUE,
    amount numeric(8,2) NOT NULL DEFAULT 1 CONSTRAINT orders_amount_check CHECK (amount >= 0),
    buyer int, note text, CONSTRAINT orders_note_check CHECK (note <> sku));
CREATE INDEX orders_status_idx ON orders (state);
""" + OTHERS.format(customer="buyer", first="'new'", second="'paid'")

MIGRATION = """operations:
  - alter_column:
      table: orders
      column: status
      type: varchar(12)
      nullable: false
      check: {name: state_known, constraint: "status IN ('new', 'paid', 'sent')"}
      up: "CASE status WHEN 0 THEN 'new' WHEN 1 THEN 'paid' ELSE 'sent' END"
      down: "CASE status WHEN 'new' THEN 0 WHEN 'paid' THEN 1 ELSE 2 END"
  - rename_column: {table: orders, from: status, to: state}
  - rename_column: {table: orders, from: code, to: sku}
  - rename_column: {table: orders, from: customer, to: buyer}
"""


@dataclass
class Migrating:
    """The database under migration with a sidecar, and one plain database for each of its versions."""

    database: Database
    sidecar: Sidecar
    plain: dict[str, Database]
    factory: SidecarFactory
    stack: AsyncExitStack

    async def both(self, side: str, sidecar: Sidecar | None = None) -> tuple[Raw, Raw]:
        """A client of that version of a sidecar, and one of a server that knows nothing else."""
        version = "base" if side == "old" else "0001_state"
        through = await raw.connect(sidecar or self.sidecar, options=f"-c dualwire.version={version}")
        native = await self.stack.enter_async_context(raw.directly(self.plain[side]))
        self.stack.callback(through.vanish)
        return through, native


def fresh(cluster: Cluster, setup: str) -> Database:
    """A database with that schema."""
    database = Database(cluster, f"t_{secrets.token_hex(6)}")
    cluster.create_database(database.name)
    database.sql(setup)
    return database


async def started(dsn: str, path: Path | None) -> None:
    """The control schema, and the migration up to verified."""
    conn = await connect(dsn)
    try:
        await install.install(conn)
    finally:
        await conn.close()
    if path is None:
        return
    async with engine.working(dsn, 5) as session:
        await engine.start(session, path, "public", "verified", Progress(quiet=True), Options())


@pytest.fixture(scope="module")
def fleet(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Migrating]:
    """One for all tests of a module: they leave nothing behind that another one would see."""
    directory = tmp_path_factory.mktemp("replies")
    migrated, old, new = (fresh(cluster, setup) for setup in (OLD, OLD, NEW))
    path = directory / "0001_state.yaml"
    path.write_text(MIGRATION)
    asyncio.run(started(migrated.dsn, path))
    factory = SidecarFactory(migrated, directory)
    try:
        yield Migrating(migrated, factory(), {"old": old, "new": new}, factory, AsyncExitStack())
    finally:
        for sidecar in factory.started:
            sidecar.terminate()
        for database in (migrated, old, new):
            cluster.drop_database(database.name)


@pytest.fixture
async def migrating(fleet: Migrating) -> AsyncIterator[Migrating]:
    """The same, with the connections of one test."""
    async with AsyncExitStack() as stack:
        yield Migrating(fleet.database, fleet.sidecar, fleet.plain, fleet.factory, stack)


@pytest.fixture(scope="module")
def shared(fleet: Migrating) -> Sidecar:
    """A sidecar whose servers are shared by transactions."""
    return fleet.factory(fleet.factory.default_config(extra='pool_mode = "transaction"\n'))
