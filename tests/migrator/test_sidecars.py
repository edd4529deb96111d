"""The protocol between migrator and sidecars, with peers that speak it through the control functions alone."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, replace
from typing import Any

import asyncpg
import pytest

from migrator.errors import NotObtained, Refused
from tests.conftest import Database
from tests.migrator.conftest import Migrator

SETUP = (
    "CREATE TABLE items (id int PRIMARY KEY, size text); INSERT INTO items VALUES (1, 'big'), (2, 'small');"
)
SIZES = """
operations:
  - alter_column:
      table: items
      column: size
      type: int
      up: CASE size WHEN 'big' THEN 2 ELSE 1 END
      down: CASE size WHEN 2 THEN 'big' ELSE 'small' END
"""
SECRET = "sixteen characters at least"


@dataclass
class Peer:
    """A sidecar as the database sees one: it reports, acknowledges and holds; ``acknowledges`` may be switched off."""

    conn: Any
    id: str
    acknowledges: bool = True
    holds: bool = True
    old_clients: int = 0
    epochs: list[int] | None = None
    held: int | None = None
    task: asyncio.Task[None] | None = None

    async def call(self, name: str, *args: Any) -> dict[str, Any]:
        places = ", ".join(f"${i + 3}" for i in range(len(args)))
        text = f"SELECT dualwire.{name}($1, $2{', ' if args else ''}{places})"
        document: dict[str, Any] = json.loads(await self.conn.fetchval(text, self.id, SECRET, *args))
        return document

    async def register(self, lease: int = 10) -> dict[str, Any]:
        return await self.call("sidecar_register", "shop", "auto", "{}", lease)

    async def report(self, document: dict[str, Any], lease: int = 10, pids: list[int] | None = None) -> None:
        stats = json.dumps({"clients": {"old": self.old_clients, "new": 0, "auto": 1}})
        await self.call(
            "sidecar_report",
            document["epoch"],
            document["epoch_id"],
            document["revision"],
            lease,
            pids or [],
            stats,
        )

    async def live(self) -> None:
        self.epochs = []
        acknowledged = await self.register()
        while True:
            document = json.loads(await self.conn.fetchval("SELECT dualwire.routing_document()"))
            if self.acknowledges:
                acknowledged = document
            if acknowledged["epoch"] not in self.epochs:
                self.epochs.append(acknowledged["epoch"])
            await self.report(acknowledged)
            hold = document["state"]["hold"]
            if hold is not None and self.holds and self.held != hold["id"]:
                self.held = hold["id"]
                await self.call("sidecar_hold", self.held, True)
            elif hold is None and self.held is not None:
                await self.call("sidecar_hold", self.held, False)
                self.held = None
            await asyncio.sleep(0.02)


@pytest.fixture
async def peer(database: Database, migrator: Migrator) -> AsyncIterator[Callable[..., Any]]:
    """``await peer(id)``: a peer that lives until the test ends."""
    peers: list[Peer] = []

    async def make(name: str = "one", *, alive: bool = True, **options: Any) -> Peer:
        made = Peer(await asyncpg.connect(database.role(f"app_{database.name}")), name, **options)
        peers.append(made)
        if alive:
            made.task = asyncio.create_task(made.live())
            await asyncio.sleep(0.1)
        return made

    yield make
    for made in peers:
        if made.task is not None:
            made.task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await made.task
        made.conn.terminate()


async def test_each_epoch_is_acknowledged_before_the_next_one_is_published(
    db: Any, migrator: Migrator, peer: Any
) -> None:
    await db.execute(SETUP)
    one, two = await peer("one"), await peer("two")
    path = migrator.file("0001_sizes", SIZES)
    await migrator.start(path, "cutover")
    await migrator.complete()
    assert one.epochs == two.epochs == [1, 2, 3, 4, 5, 6]
    assert [tuple(r) for r in await db.fetch("SELECT * FROM items ORDER BY id")] == [(1, 2), (2, 1)]
    state = (await migrator.routing())["state"]
    assert state["hold"] is None


async def test_a_live_sidecar_that_does_not_acknowledge_stops_the_step_and_is_named(
    db: Any, migrator: Migrator, peer: Any
) -> None:
    await db.execute(SETUP)
    one = await peer("one")
    one.acknowledges = False
    migrator.options = replace(migrator.options, ack_timeout=0.5)
    path = migrator.file("0001_sizes", SIZES)
    with pytest.raises(NotObtained, match=r"did not acknowledge epoch 2 .* shop \(one\)"):
        await migrator.start(path)
    assert await db.fetchval("SELECT phase FROM dualwire.migration") == "prepared"
    columns = await db.fetchval(
        "SELECT count(*) FROM pg_attribute WHERE attrelid = 'items'::regclass AND attnum > 0"
    )
    assert columns == 2
    one.acknowledges = True
    assert (await migrator.start(path)).phase == "verified"


async def test_a_sidecar_whose_lease_ran_out_is_forgotten_and_its_connections_end(
    db: Any, migrator: Migrator, peer: Any, database: Database
) -> None:
    await db.execute(SETUP)
    gone = await peer("gone", alive=False)
    document = await gone.register(1)
    server = await database.connect()
    pid = await server.fetchval("SELECT pg_backend_pid()")
    await gone.call("sidecar_enter", [pid])
    await gone.report(document, 1, [pid])
    await migrator.start(migrator.file("0001_sizes", SIZES))
    with pytest.raises((asyncpg.PostgresConnectionError, asyncpg.InterfaceError, asyncpg.PostgresError)):
        await server.fetchval("SELECT 1")
    assert await db.fetchval("SELECT count(*) FROM dualwire.sidecar") == 0
    with pytest.raises(asyncpg.InsufficientPrivilegeError, match="unknown sidecar"):
        await gone.report(document)


async def test_a_pid_that_was_used_again_is_not_terminated(
    db: Any, migrator: Migrator, peer: Any, database: Database
) -> None:
    await db.execute(SETUP)
    gone = await peer("gone", alive=False)
    await gone.register(1)
    server = await database.connect()
    pid = await server.fetchval("SELECT pg_backend_pid()")
    await gone.call("sidecar_enter", [pid])
    await db.execute("UPDATE dualwire.backend SET backend_start = backend_start - interval '1 h'")
    await migrator.start(migrator.file("0001_sizes", SIZES))
    assert await server.fetchval("SELECT 1") == 1
    await server.close()


async def test_a_wrong_secret_an_unknown_id_and_a_stolen_id_are_refused(
    migrator: Migrator, peer: Any
) -> None:
    one = await peer("one", alive=False)
    await one.register()
    with pytest.raises(asyncpg.InsufficientPrivilegeError):
        await one.conn.fetchval(
            "SELECT dualwire.sidecar_register('one', 'another secret of enough length', 'thief', 'auto', '{}', 10)"
        )
    with pytest.raises(asyncpg.InsufficientPrivilegeError):
        await one.conn.fetchval("SELECT dualwire.sidecar_leave('two', $1)", SECRET)
    with pytest.raises(asyncpg.InsufficientPrivilegeError):
        await one.conn.fetchval("SELECT secret_hash FROM dualwire.sidecar")
    with pytest.raises(asyncpg.InvalidParameterValueError):
        await one.conn.fetchval("SELECT dualwire.sidecar_register('x', 'short', 's', 'auto', '{}', 10)")
    await one.conn.fetchval("SELECT dualwire.sidecar_leave('one', $1)", SECRET)
    with pytest.raises(asyncpg.InsufficientPrivilegeError):
        await one.call("sidecar_enter", [1])


async def test_completing_is_refused_while_clients_speak_the_old_version(
    db: Any, migrator: Migrator, peer: Any
) -> None:
    await db.execute(SETUP)
    one = await peer("one", old_clients=3)
    await migrator.start(migrator.file("0001_sizes", SIZES), "cutover")
    with pytest.raises(Refused, match=r"clients still speak the old version: shop \(3\)"):
        await migrator.complete()
    assert await db.fetchval("SELECT phase FROM dualwire.migration") == "cutover"
    one.old_clients = 0
    await asyncio.sleep(0.1)
    assert (await migrator.complete()).phase == "completed"


async def test_a_swap_that_a_sidecar_does_not_hold_for_is_given_up_and_released(
    db: Any, migrator: Migrator, peer: Any
) -> None:
    await db.execute(SETUP)
    one = await peer("one", holds=False)
    await migrator.start(migrator.file("0001_sizes", SIZES), "cutover")
    migrator.options = replace(migrator.options, hold_seconds=0.3, swap_attempts=2)
    with pytest.raises(NotObtained, match=r"did not hold statements .* shop \(one\)"):
        await migrator.complete()
    assert (await migrator.routing())["state"]["hold"] is None
    assert await db.fetchval("SELECT phase FROM dualwire.migration") == "closed"
    one.holds = True
    assert (await migrator.complete()).phase == "completed"


async def test_a_swap_that_finds_the_table_locked_releases_the_hold_and_names_the_blocker(
    db: Any, migrator: Migrator, peer: Any, database: Database
) -> None:
    await db.execute(SETUP)
    await peer("one")
    await migrator.start(migrator.file("0001_sizes", SIZES), "cutover")
    migrator.options = replace(migrator.options, hold_seconds=2.0, swap_attempts=1)
    blocker = await database.connect(server_settings={"application_name": "long report"})

    async def block() -> None:
        while await db.fetchval("SELECT count(*) FROM dualwire.step WHERE name LIKE 'validate%'") < 1:
            await asyncio.sleep(0.01)
        await blocker.execute("BEGIN; SELECT * FROM items")

    blocking = asyncio.create_task(block())
    with pytest.raises(NotObtained, match="long report"):
        await migrator.complete()
    await blocking
    assert (await migrator.routing())["state"]["hold"] is None
    await blocker.close()
    assert (await migrator.complete()).phase == "completed"


async def test_a_release_waits_for_a_swap_under_way_and_reads_what_it_published(
    db: Any, migrator: Migrator, peer: Any, database: Database
) -> None:
    one = await peer("one", alive=False)
    await one.register()
    await one.call("sidecar_hold", 9, True)
    swap = db.transaction()
    await swap.start()
    await db.execute("LOCK TABLE dualwire.sidecar IN SHARE ROW EXCLUSIVE MODE")
    release = asyncio.create_task(one.call("sidecar_hold", 9, False))
    await asyncio.sleep(0.2)
    assert not release.done()
    await db.execute("UPDATE dualwire.routing SET revision = revision + 1")
    await swap.commit()
    assert (await release)["revision"] == 2


async def test_notifications_carry_the_revision(db: Any, migrator: Migrator, database: Database) -> None:
    await db.execute(SETUP)
    heard: list[str] = []
    listener = await database.connect()
    await listener.add_listener("dualwire", lambda *details: heard.append(details[3]))
    await migrator.start(migrator.file("0001_sizes", SIZES), "expanded")
    await asyncio.sleep(0.2)
    assert heard == ["2", "3"]
    await listener.close()


async def test_init_again_keeps_everything(db: Any, migrator: Migrator) -> None:
    await db.execute(SETUP)
    await migrator.start(migrator.file("0001_sizes", SIZES), "expanded")
    before = await migrator.routing()
    assert await migrator.init() is False
    assert await migrator.routing() == before
