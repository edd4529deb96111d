"""Things die in the middle of a migration: nothing acknowledged is lost, and everything goes on."""

from __future__ import annotations

import asyncio
import json
import signal
from collections.abc import Callable
from typing import Any

import asyncpg

from tests.conftest import Cli, Database, Sidecar, SidecarFactory
from tests.integration.traffic import MIGRATION, SETUP, Writer, wrong

NEW = "_dualwire_new_state"


async def _prepare(database: Database, cli: Cli, rows: int = 2000) -> None:
    async with database.connection() as direct:
        await direct.execute(SETUP.format(rows=rows))
    (cli.directory / "0001_state.yaml").write_text(MIGRATION)
    initialised = await asyncio.to_thread(cli, "init")
    assert initialised.returncode == 0, initialised.stderr


async def _run(cli: Cli, *arguments: str) -> None:
    done = await asyncio.to_thread(cli, *arguments)
    assert done.returncode == 0, f"{arguments}: {done.returncode}\n{done.stdout}\n{done.stderr}"


async def _both_shapes(database: Database) -> dict[int, tuple[int | None, str | None]]:
    async with database.connection() as direct:
        rows = await direct.fetch(f'SELECT id, status, "{NEW}" FROM orders')
    return {row[0]: (row[1], row[2]) for row in rows}


async def _until(writers: list[Writer], more: int) -> None:
    """Let the writers acknowledge so many further writes each."""
    goals = [writer.acknowledged + more for writer in writers]
    async with asyncio.timeout(60):
        while any(writer.acknowledged < goal for writer, goal in zip(writers, goals, strict=True)):
            assert not any(writer.failure for writer in writers), [writer.failure for writer in writers]
            await asyncio.sleep(0.02)


async def _stop(writers: list[Writer], tasks: list[asyncio.Task[None]]) -> None:
    for writer in writers:
        writer.stop = True
    await asyncio.gather(*tasks)


def _through(proxy: Sidecar, version: str) -> Callable[[], Any]:
    return lambda: proxy.connect(version=version, timeout=10)


async def test_a_killed_sidecar_loses_nothing_and_its_clients_come_back(
    database: Database, sidecar: SidecarFactory, migrator_cli: Cli
) -> None:
    await _prepare(database, migrator_cli)
    victim, other = sidecar(), sidecar()
    writers = [
        Writer(1, _through(victim, "base")),
        Writer(2, _through(other, "base")),
        Writer(3, database.connect),
    ]
    tasks = [asyncio.create_task(writer.run()) for writer in writers]
    await _until(writers, 30)
    await _run(migrator_cli, "start", "0001_state.yaml", "--until", "expanded")
    await _until(writers, 50)
    victim.kill()
    await asyncio.sleep(0.3)
    await _check_while_writing(database, writers[1:])
    restarted = sidecar(port=victim.port)
    await _until(writers, 50)
    assert writers[0].reconnects > 0
    assert writers[1].reconnects == writers[2].reconnects == 0
    # The dead sidecar's lease runs out; the migrator does not wait for it for ever.
    await _run(migrator_cli, "start", "0001_state.yaml", "--until", "verified")
    await _stop(writers, tasks)
    assert not wrong(writers, await _both_shapes(database))
    await _run(migrator_cli, "verify")
    assert restarted.process.poll() is None


async def test_a_frozen_sidecar_does_not_stop_the_migration_nor_corrupt_a_row_when_it_wakes(
    database: Database, sidecar: SidecarFactory, migrator_cli: Cli
) -> None:
    await _prepare(database, migrator_cli)
    frozen = sidecar()
    writer = Writer(1, _through(frozen, "base"))
    task = asyncio.create_task(writer.run())
    await _until([writer], 30)
    frozen.signal(signal.SIGSTOP)
    await _run(migrator_cli, "start", "0001_state.yaml", "--until", "expanded")
    frozen.signal(signal.SIGCONT)
    await _until([writer], 50)
    await _stop([writer], [task])
    assert not wrong([writer], await _both_shapes(database))


async def test_a_restarting_server_gives_clear_errors_and_the_sidecar_recovers(
    database: Database, sidecar: SidecarFactory, migrator_cli: Cli, eventually: Callable[..., None]
) -> None:
    await _prepare(database, migrator_cli)
    proxy = sidecar()
    writer = Writer(1, _through(proxy, "base"))
    task = asyncio.create_task(writer.run())
    await _run(migrator_cli, "start", "0001_state.yaml", "--until", "expanded")
    await _until([writer], 50)
    idle = await proxy.connect(version="base")
    await asyncio.to_thread(database.cluster.primary.stop)
    try:
        failure: Exception | None = None
        try:
            await proxy.connect(version="base", timeout=10)
        except asyncpg.PostgresError as error:
            failure = error
        assert failure is not None
        assert failure.sqlstate is not None
        assert failure.sqlstate.startswith(("08", "57"))
    finally:
        await asyncio.to_thread(database.cluster.primary.start)
    await _until([writer], 50)
    assert idle.is_closed() or not await _usable(idle)
    assert writer.reconnects > 0
    eventually(lambda: proxy.get("/readyz")[0] == 200, what="readiness after the restart")
    await _run(migrator_cli, "start", "0001_state.yaml", "--until", "verified")
    await _stop([writer], [task])
    assert not wrong([writer], await _both_shapes(database))
    status = json.loads(proxy.get("/status")[1])
    assert status["databases"]["shop"]["routing"]["phase"] == "verified"


async def _usable(connection: Any) -> bool:
    try:
        await connection.fetchval("SELECT 1")
    except (asyncpg.PostgresError, asyncpg.InterfaceError, OSError):
        return False
    return True


async def test_a_whole_migration_with_old_new_and_bypassing_writers_loses_nothing(
    database: Database, sidecar: SidecarFactory, migrator_cli: Cli
) -> None:
    await _prepare(database, migrator_cli)
    first, second = sidecar(), sidecar()
    old = [
        Writer(1, _through(first, "base")),
        Writer(2, _through(second, "base")),
        Writer(3, database.connect),
    ]
    old_tasks = [asyncio.create_task(writer.run()) for writer in old]
    await _until(old, 20)
    await _run(migrator_cli, "start", "0001_state.yaml", "--until", "verified")
    new = [
        Writer(4, _through(first, "0001_state"), "state"),
        Writer(5, _through(second, "0001_state"), "state"),
    ]
    new_tasks = [asyncio.create_task(writer.run()) for writer in new]
    await _until([*old, *new], 40)
    await _run(migrator_cli, "cutover", "--percent", "50")
    await _run(migrator_cli, "cutover")
    await _until([*old, *new], 40)
    await _check_while_writing(database, [*old, *new])
    refused = await asyncio.to_thread(migrator_cli, "complete", "--retention", "0")
    assert refused.returncode == 3, "old clients are still connected"
    await _stop(old, old_tasks)
    await asyncio.sleep(1.5)
    await _run(migrator_cli, "complete", "--retention", "0")
    await _until(new, 40)
    await _stop(new, new_tasks)
    async with database.connection() as direct:
        rows = {row[0]: (None, row[1]) for row in await direct.fetch("SELECT id, state FROM orders")}
        columns = await direct.fetch("SELECT * FROM orders LIMIT 0")
        assert columns == []
    assert not wrong([*old, *new], rows)
    assert all(writer.reconnects == 0 for writer in [*old, *new])
    connection = await first.connect()
    row = await connection.fetchrow("SELECT * FROM orders WHERE id = 1")
    assert list(row.keys()) == ["id", "state", "note"]
    await connection.close()


async def _check_while_writing(database: Database, writers: list[Writer]) -> None:
    """Compare everything but the rows that are being written around the snapshot."""
    before = {
        key: writer.attempts[key]
        for writer in writers
        for key, codes in writer.known.items()
        if len(codes) == 1
    }
    rows = await _both_shapes(database)
    still = {key for writer in writers for key in writer.known if before.get(key) == writer.attempts[key]}
    moving = {key for writer in writers for key in writer.known} - still
    assert still
    assert not wrong(writers, rows, frozenset(moving))
