"""A table under migration behind a sidecar, and two plain databases that have its old and its new shape."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Literal

import pytest

from migrator import engine
from migrator.cluster import Cluster
from migrator.control import install
from migrator.database import connect
from migrator.phases.context import Options
from migrator.progress import Progress
from proxy.control.routing import Phase
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


ITEMS = """
CREATE TABLE customers (id int PRIMARY KEY);
INSERT INTO customers VALUES (1), (2);
CREATE TABLE items (
    id {key} PRIMARY KEY,
    customer int REFERENCES customers,
    code varchar(8) NOT NULL CONSTRAINT items_code UNIQUE,
    qty int NOT NULL DEFAULT 1 CONSTRAINT qty_positive CHECK (qty > 0),
    note text
);
CREATE INDEX items_customer ON items (customer);
CREATE TABLE notes (id int PRIMARY KEY, item int CONSTRAINT notes_item REFERENCES items);
INSERT INTO items VALUES (1, 1, 'a', 1, 'one'), (2, 2, 'b', 2, 'two, and more');
INSERT INTO notes VALUES (1, 1);
"""

REPLACE = """operations:
  - replace_table:
      table: items
      columns:
        - {name: id, type: bigint}
      down: {id: "id::int4"}
"""


@dataclass(frozen=True)
class Case:
    """A migration between two schemas, and how far it has come."""

    old: str
    new: str
    migration: str
    phase: Phase | Literal["compat"] = "verified"


RETYPED = Case(OLD, NEW, MIGRATION)
COMPAT = Case(OLD, NEW, MIGRATION, "compat")
REPLACED = Case(ITEMS.format(key="int"), ITEMS.format(key="bigint"), REPLACE)
FLIPPED = replace(REPLACED, phase="cutover")


@dataclass
class Migrating:
    """The database under migration with a sidecar, and one plain database for each of its versions."""

    case: Case
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


async def started(dsn: str, path: Path | None, phase: Phase | Literal["compat"] = "verified") -> None:
    """The control schema, and the migration up to a phase (``compat``: completed, with the old version served on)."""
    conn = await connect(dsn)
    try:
        await install.install(conn)
    finally:
        await conn.close()
    if path is None:
        return
    async with engine.working(dsn, 5) as session:
        options, progress = Options(compat=phase == "compat"), Progress(quiet=True)
        if phase == "compat":
            await engine.run(session, path, "public", "completed", timedelta(0), progress, options)
        else:
            await engine.start(session, path, "public", phase, progress, options)


@pytest.fixture(scope="module")
def fleet(
    request: pytest.FixtureRequest, cluster: Cluster, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Migrating]:
    """One for all tests of a module and a case: they leave nothing behind that another one would see."""
    case: Case = getattr(request, "param", RETYPED)
    directory = tmp_path_factory.mktemp("replies")
    migrated, old, new = (fresh(cluster, setup) for setup in (case.old, case.old, case.new))
    path = directory / "0001_state.yaml"
    path.write_text(case.migration)
    asyncio.run(started(migrated.dsn, path, case.phase))
    factory = SidecarFactory(migrated, directory)
    try:
        yield Migrating(case, migrated, factory(), {"old": old, "new": new}, factory, AsyncExitStack())
    finally:
        for sidecar in factory.started:
            sidecar.terminate()
        for database in (migrated, old, new):
            cluster.drop_database(database.name)


@pytest.fixture
async def migrating(fleet: Migrating) -> AsyncIterator[Migrating]:
    """The same, with the connections of one test."""
    async with AsyncExitStack() as stack:
        yield replace(fleet, stack=stack)


@pytest.fixture(scope="module")
def shared(fleet: Migrating) -> Sidecar:
    """A sidecar whose servers are shared by transactions."""
    return fleet.factory(fleet.factory.default_config(extra='pool_mode = "transaction"\n'))
