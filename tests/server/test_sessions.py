"""Real drivers through a real sidecar, no migration: nothing may differ from PostgreSQL."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

import asyncpg
import psycopg
import pytest

from proxy.wire import messages as m
from tests.conftest import Database, Sidecar, SidecarFactory


@pytest.fixture
def proxy(sidecar: SidecarFactory) -> Sidecar:
    """A sidecar in front of primary and replica."""
    return sidecar()


async def test_asyncpg_queries_prepares_copies_and_streams(database: Database, proxy: Sidecar) -> None:
    connection = await proxy.connect()
    await connection.execute("CREATE TABLE t (id int PRIMARY KEY, v text)")
    await connection.copy_records_to_table("t", records=[(n, f"v{n}") for n in range(1000)])
    assert await connection.fetchval("SELECT count(*) FROM t") == 1000
    statement = await connection.prepare("SELECT v FROM t WHERE id = $1")
    assert [await statement.fetchval(n) for n in (1, 999)] == ["v1", "v999"]
    async with connection.transaction():
        rows = [row["id"] async for row in connection.cursor("SELECT id FROM t ORDER BY id", prefetch=7)]
    assert rows == list(range(1000))
    with pytest.raises(asyncpg.UniqueViolationError):
        await connection.execute("INSERT INTO t VALUES (1, 'again')")
    with pytest.raises(asyncpg.PostgresSyntaxError) as caught:
        await connection.fetch("SELECT 1 FRO t")
    assert caught.value.position == "14"
    await connection.close()


def test_psycopg_pipelines_with_an_error_in_the_middle(database: Database, proxy: Sidecar) -> None:
    with psycopg.connect(proxy.dsn(), autocommit=True) as connection:
        connection.execute("CREATE TABLE t (id int PRIMARY KEY)")
        with pytest.raises(psycopg.errors.DivisionByZero):
            _pipeline(connection, "INSERT INTO t VALUES (1)", "SELECT 1/0", "INSERT INTO t VALUES (2)")
        with connection.pipeline() as pipeline:
            cursors = [connection.execute("SELECT %s::int", [n]) for n in range(50)]
            pipeline.sync()
            assert [cursor.fetchone() for cursor in cursors] == [(n,) for n in range(50)]


def _pipeline(connection: psycopg.Connection[Any], *statements: str) -> None:
    with connection.pipeline():
        for statement in statements:
            connection.execute(statement)


def test_psycopg_copies_in_and_out(database: Database, proxy: Sidecar) -> None:
    with psycopg.connect(proxy.dsn(), autocommit=True) as connection:
        connection.execute("CREATE TABLE t (id int, v text)")
        with connection.cursor() as cursor:
            with cursor.copy("COPY t FROM STDIN") as copy:
                for number in range(500):
                    copy.write_row((number, "x" * 500))
            with cursor.copy("COPY t TO STDOUT") as copy:
                assert sum(1 for _ in copy.rows()) == 500
            with (
                pytest.raises(psycopg.errors.InvalidTextRepresentation),
                cursor.copy("COPY t FROM STDIN") as copy,
            ):
                copy.write("no number\tx\n")
            assert cursor.execute("SELECT count(*) FROM t").fetchone() == (500,)


async def test_notifications_reach_the_listener(database: Database, proxy: Sidecar) -> None:
    listener, notifier = await proxy.connect(), await proxy.connect()
    heard: asyncio.Queue[str] = asyncio.Queue()
    await listener.add_listener("c", lambda *args: heard.put_nowait(args[3]))
    await notifier.execute("NOTIFY c, 'hello'")
    assert await asyncio.wait_for(heard.get(), 5) == "hello"
    await listener.close()
    await notifier.close()


async def test_a_cancel_ends_its_own_query_and_no_other(database: Database, proxy: Sidecar) -> None:
    victim, bystander = await proxy.connect(), await proxy.connect()
    other = asyncio.create_task(bystander.fetchval("SELECT 1 FROM pg_sleep(1.5)"))
    with pytest.raises(asyncio.TimeoutError):
        await victim.execute("SELECT pg_sleep(30)", timeout=0.5)
    assert await victim.fetchval("SELECT 7") == 7
    assert await other == 1
    await victim.close()
    await bystander.close()


async def test_settings_do_not_reach_the_next_client(database: Database, proxy: Sidecar) -> None:
    for spoil in (
        "SET search_path TO nowhere",
        "BEGIN; SET work_mem = '77MB'; ROLLBACK",
        "CREATE TEMP TABLE leak (x int)",
        "PREPARE leak AS SELECT 1",
        "BEGIN; SELECT 1",
    ):
        connection = await proxy.connect()
        await connection.execute(spoil)
        connection.terminate()
        await asyncio.sleep(0.05)
        follower = await proxy.connect()
        assert await follower.fetchval("SHOW search_path") == '"$user", public'
        assert await follower.fetchval("SHOW work_mem") != "77MB"
        assert await follower.fetchval("SELECT to_regclass('pg_temp.leak')") is None
        assert await follower.fetchval("SELECT count(*) FROM pg_prepared_statements WHERE name = 'leak'") == 0
        assert not follower.is_in_transaction()
        await follower.close()


async def test_settings_follow_a_session_to_the_replica(database: Database, proxy: Sidecar) -> None:
    connection = await proxy.connect()
    await connection.execute("CREATE TABLE z (at timestamptz)")
    await connection.execute("INSERT INTO z VALUES ('2020-01-01 00:00:00+00')")
    await connection.execute("SET TimeZone TO 'Asia/Tokyo'")
    shown = set()
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        shown.add(await connection.fetchval("SELECT extract(hour FROM at)::text FROM z"))
        if _routed(proxy, "replica"):
            break
        await asyncio.sleep(0.05)
    assert shown == {"9"}
    assert _routed(proxy, "replica") > 0
    await connection.close()


def _routed(proxy: Sidecar, target: str) -> float:
    _, text = proxy.get("/metrics")
    lines = [line for line in text.splitlines() if line.startswith("dualwire_routing_decisions_total")]
    return sum(float(line.split()[-1]) for line in lines if f'target="{target}"' in line)


async def test_a_session_always_reads_its_own_writes_and_replicas_are_used(
    database: Database, proxy: Sidecar
) -> None:
    setup = await proxy.connect()
    await setup.execute("CREATE TABLE r (id int PRIMARY KEY, n int)")
    await setup.execute("INSERT INTO r SELECT g, 0 FROM generate_series(1, 4) g")
    await setup.close()

    async def client(number: int) -> None:
        connection = await proxy.connect()
        for turn in range(1, 40):
            await connection.execute("UPDATE r SET n = $2 WHERE id = $1", number, turn)
            for pause in (0, 0.002, 0.02):
                await asyncio.sleep(pause)
                assert await connection.fetchval("SELECT n FROM r WHERE id = $1", number) == turn
        await connection.close()

    await asyncio.gather(*(client(number) for number in range(1, 5)))
    assert _routed(proxy, "replica") > 0
    assert _routed(proxy, "primary") > 0


async def test_a_replica_that_lags_is_not_read_after_a_write(database: Database, proxy: Sidecar) -> None:
    connection = await proxy.connect()
    await connection.execute("CREATE TABLE r (n int)")
    async with database.connection(replica=True) as replica:
        await replica.execute("SELECT pg_wal_replay_pause()")
        try:
            await connection.execute("INSERT INTO r VALUES (1)")
            for _ in range(20):
                assert await connection.fetchval("SELECT count(*) FROM r") == 1
                await asyncio.sleep(0.02)
        finally:
            await replica.execute("SELECT pg_wal_replay_resume()")
    await connection.close()


def _resident_kb(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text()
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS"))


async def test_a_big_result_to_a_slow_reader_needs_little_memory(database: Database, proxy: Sidecar) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
    writer.write(m.startup({"user": proxy.user, "database": proxy.database}))
    await reader.readuntil(b"Z\x00\x00\x00\x05I")
    writer.write(m.query(b"SELECT repeat('x', 1000) FROM generate_series(1, 300000)"))
    await asyncio.sleep(2)
    resident = _resident_kb(proxy.process.pid)
    assert resident < 250_000, f"{resident} kB"
    total = 0
    while total < 300_000_000:
        total += len(await reader.read(1 << 20))
    writer.close()


async def test_a_statement_under_way_is_finished_before_a_terminating_sidecar_ends(
    database: Database, sidecar: SidecarFactory
) -> None:
    proxy = sidecar()
    busy, idle = await proxy.connect(), await proxy.connect()
    query: asyncio.Task[Any] = asyncio.create_task(busy.fetchval("SELECT 5 FROM pg_sleep(1)"))
    await asyncio.sleep(0.3)
    stopping = asyncio.create_task(asyncio.to_thread(proxy.terminate))
    assert await query == 5
    assert await stopping == 0
    with pytest.raises((asyncpg.PostgresError, OSError, asyncpg.InterfaceError)):
        await idle.fetchval("SELECT 1")


async def test_a_statement_followed_at_once_by_a_goodbye_is_still_done(
    database: Database, proxy: Sidecar
) -> None:
    async with database.connection() as direct:
        await direct.execute("CREATE TABLE t (id int)")
        reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
        writer.write(m.startup({"user": proxy.user, "database": proxy.database}))
        await reader.readuntil(b"Z\x00\x00\x00\x05I")
        writer.write(
            m.query(b"SELECT pg_sleep(0.5)") + m.query(b"INSERT INTO t VALUES (1)") + m.TERMINATE_FRAME
        )
        await writer.drain()
        writer.close()
        async with asyncio.timeout(10):
            while not await direct.fetchval("SELECT count(*) FROM t"):
                await asyncio.sleep(0.05)


async def test_an_asyncpg_pool_goes_on_reading_from_the_replica(database: Database, proxy: Sidecar) -> None:
    async with asyncpg.create_pool(proxy.dsn(), min_size=1, max_size=1) as pool:
        await pool.execute("CREATE TABLE r (n int)")
        before = _routed(proxy, "replica")
        async with asyncio.timeout(20):
            while _routed(proxy, "replica") < before + 5:
                await pool.fetchval("SELECT count(*) FROM r")
                await asyncio.sleep(0.02)
