"""Transaction mode: server connections shared by transactions, and all that a session expects of its own."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from typing import Any

import asyncpg
import psycopg
import pytest

from proxy.wire import messages as m
from tests.conftest import Database, Sidecar, SidecarFactory
from tests.regressions.raw import SYNC, bind, close, codes, connected, describe, execute, kinds, parse, values

Shared = Callable[..., Sidecar]


@pytest.fixture
def shared(database: Database, sidecar: SidecarFactory) -> Shared:
    """A factory of sidecars in transaction mode, with that many server connections and further settings."""

    def start(size: int = 1, *, replicas: bool = False, limits: str = "", extra: str = "") -> Sidecar:
        settings = f'pool_mode = "transaction"\npool_size = {size}\n{extra}'
        config = sidecar.default_config(extra=settings)
        if not replicas:
            config = re.sub(r"^replicas = .*\n", "", config, flags=re.MULTILINE)
        return sidecar(config + (f"[limits]\n{limits}" if limits else ""))

    return start


async def prepare(client: Any, text: str, *arguments: Any) -> Any:
    """Prepare and run once: asyncpg prepares with a Flush, and no server is free before the Sync of an execution."""
    statement = await client.prepare(text)
    await statement.fetchval(*arguments)
    return statement


def bind_text(name: str, value: str) -> bytes:
    """A Bind with one parameter, as text."""
    body = b"\0" + name.encode() + b"\0\0\0\0\1" + len(value).to_bytes(4, "big") + value.encode() + b"\0\0"
    return m.frame(m.BIND, body)


def pins(proxy: Sidecar) -> dict[str, int]:
    """Pinned sessions by reason."""
    found = re.findall(
        r'^dualwire_pinned_sessions\{.*reason="(\w+)".*\} (\d+)', proxy.get("/metrics")[1], re.MULTILINE
    )
    return {reason: int(count) for reason, count in found if int(count)}


async def test_many_clients_share_one_server_connection(shared: Shared) -> None:
    proxy = shared(1)
    clients = [await proxy.connect() for _ in range(20)]
    pids = {await client.fetchval("SELECT pg_backend_pid()") for client in clients}
    assert len(pids) == 1
    results = await asyncio.gather(
        *(client.fetchval("SELECT $1::int", n) for n, client in enumerate(clients))
    )
    assert results == list(range(20))
    for client in clients:
        await client.close()


async def test_a_transaction_keeps_its_server_while_others_wait(shared: Shared) -> None:
    proxy = shared(1)
    one, two = await proxy.connect(), await proxy.connect()
    async with one.transaction():
        assert await one.fetchval("SELECT 1") == 1
        waiting = asyncio.create_task(two.fetchval("SELECT 2"))
        await asyncio.sleep(0.1)
        assert not waiting.done()
        assert await one.fetchval("SELECT 3") == 3
    assert await waiting == 2
    await one.close()
    await two.close()


async def test_settings_travel_with_their_session(shared: Shared) -> None:
    proxy = shared(2)
    one, two = await proxy.connect(), await proxy.connect()
    await one.execute("SET work_mem = '7MB'")
    async with two.transaction():
        await two.execute("SET LOCAL work_mem = '9MB'")
        assert await one.fetchval("SHOW work_mem") == "7MB"
        assert await two.fetchval("SHOW work_mem") == "9MB"
    for _ in range(5):
        assert await two.fetchval("SHOW work_mem") == "4MB"
        assert await one.fetchval("SHOW work_mem") == "7MB"
    async with one.transaction():
        await one.execute("SET work_mem = '11MB'")
    assert await one.fetchval("SHOW work_mem") == "11MB"
    undone = one.transaction()
    await undone.start()
    await one.execute("SET work_mem = '13MB'")
    await undone.rollback()
    assert await two.fetchval("SHOW work_mem") == "4MB"
    assert await one.fetchval("SHOW work_mem") == "11MB"
    await one.execute("SELECT set_config('work_mem', '15MB', false)")
    assert await two.fetchval("SHOW work_mem") == "4MB"
    assert await one.fetchval("SHOW work_mem") == "15MB"
    await one.execute("RESET ALL")
    assert await one.fetchval("SHOW work_mem") == "4MB"
    assert pins(proxy) == {}
    await one.close()
    await two.close()


async def test_a_client_hears_of_settings_that_its_next_server_has_otherwise(shared: Shared) -> None:
    proxy = shared(1)
    one, two = await proxy.connect(), await proxy.connect()
    await one.execute("SET TimeZone = 'Asia/Tokyo'")
    assert one.get_settings().TimeZone == "Asia/Tokyo"
    before = two.get_settings().TimeZone
    assert await two.fetchval("SHOW TimeZone") == before
    assert two.get_settings().TimeZone == before
    assert await one.fetchval("SHOW TimeZone") == "Asia/Tokyo"
    await one.close()
    await two.close()


@pytest.mark.parametrize(
    ("text", "reason", "end"),
    [
        ("LISTEN a", "listen", "UNLISTEN *"),
        ("SELECT pg_advisory_lock(7)", "advisory_lock", "SELECT pg_advisory_unlock_all()"),
        ("CREATE TEMP TABLE mine (id int)", "temp_table", "DISCARD ALL"),
        ("BEGIN; DECLARE c CURSOR WITH HOLD FOR SELECT 1; COMMIT", "with_hold", "DISCARD ALL"),
        ("PREPARE mine AS SELECT 1", "sql_prepare", "DEALLOCATE ALL"),
        ("SELECT set_config('work_mem', '7' || 'MB', false)", "settings", "DISCARD ALL"),
        ("LOAD '$libdir/plpgsql'", "load", "DISCARD ALL"),
    ],
)
async def test_what_lives_in_the_server_session_pins_until_it_ends(
    shared: Shared, text: str, reason: str, end: str
) -> None:
    proxy = shared(2)
    one, two = await proxy.connect(), await proxy.connect()
    await one.execute(text)
    assert reason in pins(proxy)
    pid = await one.fetchval("SELECT pg_backend_pid()")
    for _ in range(3):
        assert await two.fetchval("SELECT pg_backend_pid()") != pid
        assert await one.fetchval("SELECT pg_backend_pid()") == pid
    await one.execute(end)
    assert pins(proxy) == {}
    await one.close()
    assert await two.fetchval("SELECT 1") == 1
    await two.close()


async def test_a_pinned_session_that_ends_leaves_a_clean_connection(shared: Shared) -> None:
    proxy = shared(1)
    one = await proxy.connect()
    await one.execute("CREATE TEMP TABLE mine (id int); SELECT pg_advisory_lock(7); SET work_mem = '7MB'")
    await one.close()
    two = await proxy.connect()
    assert await two.fetchval("SELECT to_regclass('pg_temp.mine')") is None
    assert await two.fetchval("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'") == 0
    assert await two.fetchval("SHOW work_mem") == "4MB"
    assert pins(proxy) == {}
    await two.close()


async def test_code_that_cannot_be_seen_leaves_nothing_to_the_next_client(shared: Shared) -> None:
    proxy = shared(1)
    one, two = await proxy.connect(), await proxy.connect()
    await one.execute("DO $$ BEGIN PERFORM set_config('work_mem', '7MB', false); END $$")
    assert await two.fetchval("SHOW work_mem") == "4MB"
    await one.execute(
        "CREATE FUNCTION tz() RETURNS text LANGUAGE sql AS $$ SELECT set_config('TimeZone', 'Asia/Tokyo', false) $$"
    )
    await one.fetchval("SELECT tz()")
    assert pins(proxy) == {"settings": 1}
    await one.close()
    assert await two.fetchval("SHOW TimeZone") != "Asia/Tokyo"
    await two.close()


async def test_prepared_statements_are_served_by_every_server_connection(
    shared: Shared, database: Database
) -> None:
    proxy = shared(3, extra="max_prepared_statements = 5\n")
    clients = [await proxy.connect() for _ in range(6)]
    texts = [f"SELECT $1::int + {n}" for n in range(8)]
    prepared = [[await prepare(client, text, 0) for text in texts] for client in clients]

    async def use(number: int) -> None:
        for turn in range(30):
            n = (turn * 7 + number) % len(texts)
            async with clients[number].transaction():
                assert await prepared[number][n].fetchval(turn) == turn + n

    await asyncio.gather(*(use(number) for number in range(len(clients))))
    for client in clients:
        await client.close()


async def test_a_statement_name_belongs_to_its_client(shared: Shared) -> None:
    proxy = shared(1)
    async with connected(proxy) as one, connected(proxy) as two:
        assert kinds(await one.ask(parse("SELECT 'one'", "s"), SYNC)) == "1Z"
        assert kinds(await two.ask(parse("SELECT 'two'", "s"), SYNC)) == "1Z"
        for client, value in ((one, "one"), (two, "two"), (one, "one")):
            assert values(await client.ask(bind("s"), execute(), SYNC)) == [value]
        again = await one.ask(parse("SELECT 'three'", "s"), SYNC)
        assert codes(again) == ["42P05"]
        assert b'prepared statement "s" already exists' in b"".join(again)
        missing = await two.ask(bind("t"), execute(), SYNC)
        assert codes(missing) == ["26000"]
        assert b'"t"' in b"".join(missing)
        too_many = await one.ask(parse("SELECT $1::text", "p"), bind("p"), execute(), SYNC)
        assert b'prepared statement "p" requires 1' in b"".join(too_many)


async def test_the_unnamed_statement_of_another_client_is_not_to_be_had(shared: Shared) -> None:
    proxy = shared(1)
    async with connected(proxy) as one, connected(proxy) as two:
        assert kinds(await one.ask(parse("SELECT 'secret'"), SYNC)) == "1Z"
        assert codes(await two.ask(bind(), execute(), SYNC)) == ["26000"]
        assert codes(await two.ask(describe(), SYNC)) == ["26000"]
        assert values(await one.ask(bind(), execute(), SYNC)) == ["secret"]


async def test_deallocate_means_the_clients_own_statement(shared: Shared) -> None:
    proxy = shared(1)
    async with connected(proxy) as one, connected(proxy) as two:
        for client in (one, two):
            await client.ask(parse("SELECT 'kept'", "s"), SYNC)
        assert codes(await one.query("DEALLOCATE s")) == []
        assert codes(await one.ask(bind("s"), execute(), SYNC)) == ["26000"]
        assert values(await two.ask(bind("s"), execute(), SYNC)) == ["kept"]
        assert codes(await one.query("DEALLOCATE s")) == ["26000"]
        assert codes(await one.query("DEALLOCATE ALL")) == []
        assert values(await two.ask(bind("s"), execute(), SYNC)) == ["kept"]


@pytest.mark.parametrize("mode", ["session", "transaction"])
async def test_an_outdated_plan_is_prepared_anew_unseen_unless_the_client_was_told_otherwise(
    database: Database, sidecar: SidecarFactory, mode: str
) -> None:
    database.sql("CREATE TABLE t (a int); INSERT INTO t VALUES (1)")
    config = sidecar.default_config(extra=f'pool_mode = "{mode}"\n')
    proxy = sidecar(re.sub(r"^replicas = .*\n", "", config, flags=re.MULTILINE))
    async with connected(proxy) as undescribed, connected(proxy) as described, connected(proxy) as late:
        await undescribed.ask(parse("SELECT * FROM t", "s"), SYNC)
        await described.ask(parse("SELECT * FROM t", "s"), describe("s"), SYNC)
        await described.ask(bind("s"), execute(), SYNC)
        database.sql("ALTER TABLE t ADD COLUMN b int DEFAULT 2")
        answer = await undescribed.ask(bind("s"), describe("", "P"), execute(), SYNC)
        assert kinds(answer) == "2TDCZ"
        assert b"\x00\x02" in answer[2][:8]
        assert codes(await described.ask(bind("s"), execute(), SYNC)) == ["0A000"]
        # As drivers recover from it.
        assert (
            kinds(await described.ask(close("s"), parse("SELECT * FROM t", "s"), describe("s"), SYNC))
            == "31tTZ"
        )
        assert kinds(await described.ask(bind("s"), execute(), SYNC)) == "2DCZ"
        # Whoever prepares the text for the first time never hears of it.
        database.sql("ALTER TABLE t ADD COLUMN c int DEFAULT 3")
        assert kinds(await late.ask(parse("SELECT * FROM t", "s"), describe("s"), SYNC)) == "1tTZ"
        assert kinds(await late.ask(bind("s"), execute(), SYNC)) == "2DCZ"


async def test_a_change_that_leaves_the_columns_as_told_is_cured(shared: Shared, database: Database) -> None:
    database.sql("CREATE TABLE t (a int); INSERT INTO t VALUES (1)")
    proxy = shared(1)
    client = await proxy.connect()
    statement = await client.prepare("SELECT * FROM t")
    assert await statement.fetchval() == 1
    database.sql("ALTER TABLE t ALTER a TYPE bigint")
    database.sql("ALTER TABLE t ALTER a TYPE int")
    assert await statement.fetchval() == 1
    await client.close()


async def test_a_described_statement_is_not_run_where_it_gives_other_columns(
    shared: Shared, database: Database
) -> None:
    database.sql("CREATE TABLE t (id int, name text); INSERT INTO t VALUES (7, 'one')")
    proxy = shared(2)
    async with connected(proxy) as one, connected(proxy) as two:
        await one.ask(parse("SELECT * FROM t", "s"), describe("s"), bind("s"), execute(), SYNC)
        first = await one.pid()
        await two.query("BEGIN")
        assert await two.pid() == first
        database.sql("ALTER TABLE t DROP COLUMN id; ALTER TABLE t ADD COLUMN id int DEFAULT 7")
        answer = await one.ask(bind("s"), execute(), SYNC)
        assert (kinds(answer), codes(answer)) == ("EZ", ["0A000"])
        assert kinds(await one.ask(close("s"), parse("SELECT * FROM t", "s"), describe("s"), SYNC)) == "31tTZ"
        assert values(await one.ask(bind("s"), execute(), SYNC)) == ["one"]


async def test_a_text_means_what_it_means_under_its_clients_search_path(
    shared: Shared, database: Database
) -> None:
    """One tenant a schema: the first use may be in a transaction, where nothing could be cured."""
    for schema, kind in (("a", "int"), ("b", "text")):
        database.sql(
            f"CREATE SCHEMA {schema}; CREATE TABLE {schema}.t (x {kind}); INSERT INTO {schema}.t VALUES ('1')"
        )
    proxy = shared(1)
    async with connected(proxy) as one, connected(proxy) as two:
        for client, path in ((one, "a"), (two, "b")):
            await client.query(f"SET search_path TO {path}")
            await client.query("BEGIN")
            told = await client.ask(parse("SELECT x FROM t WHERE x = $1", "s"), describe("s"), SYNC)
            assert (kinds(told), codes(told)) == ("1tTZ", [])
            await client.query("COMMIT")
        assert int.from_bytes(told[1][7:11], "big") == 25  # the parameter is text, as in b.t
        # The same client elsewhere: what it was told holds no longer.
        await one.query("SET search_path TO b")
        assert codes(await one.ask(bind_text("s", "1"), execute(), SYNC)) == ["0A000"]


async def test_statements_that_somebody_deallocated_are_prepared_anew(shared: Shared) -> None:
    proxy = shared(1)
    client = await proxy.connect()
    statement = await prepare(client, "SELECT $1::int", 3)
    other = await proxy.connect()
    await other.execute("DO $$ BEGIN EXECUTE 'DEALLOCATE ALL'; END $$")
    assert await statement.fetchval(4) == 4
    await client.close()
    await other.close()


async def test_reads_of_a_replica_are_shared_too(
    shared: Shared, database: Database, eventually: Callable[..., None]
) -> None:
    database.sql("CREATE TABLE t (id int); INSERT INTO t VALUES (1)")
    proxy = shared(1, replicas=True)
    clients = [await proxy.connect() for _ in range(5)]
    statements = [await prepare(client, "SELECT id FROM t WHERE id = $1", 1) for client in clients]

    def replica_reads() -> int:
        found = re.findall(
            r'^dualwire_routing_decisions_total\{.*target="replica".*\} (\d+)',
            proxy.get("/metrics")[1],
            re.MULTILINE,
        )
        return sum(map(int, found))

    for _ in range(200):
        for statement in statements:
            assert await statement.fetchval(1) == 1
        if replica_reads() > 50:
            break
    assert replica_reads() > 50
    for client in clients:
        await client.close()


async def test_sessions_idle_for_too_long_are_ended(shared: Shared, database: Database) -> None:
    proxy = shared(1, limits='idle_transaction_timeout = "300ms"\nclient_idle_timeout = "3s"\n')
    async with connected(proxy) as client, connected(proxy) as other:
        await client.query("BEGIN")
        await client.query("SELECT 1")
        assert codes([await client.frame()]) == ["25P03"]
        assert values(await other.query("SELECT 'free'")) == ["free"]
        assert codes([await other.frame()]) == ["57P05"]


async def test_a_cancel_while_waiting_for_a_server_ends_the_wait(shared: Shared) -> None:
    proxy = shared(1)
    with psycopg.connect(proxy.dsn()) as holder, psycopg.connect(proxy.dsn(), autocommit=True) as waiter:
        holder.execute("SELECT 1")
        waiting = asyncio.create_task(asyncio.to_thread(waiter.execute, "SELECT 2"))
        await asyncio.sleep(0.2)
        waiter.cancel_safe()
        with pytest.raises(psycopg.errors.QueryCanceled):
            await waiting
        holder.rollback()
        assert waiter.execute("SELECT 3").fetchone() == (3,)


async def test_the_console_shows_who_waits_and_who_is_pinned(shared: Shared) -> None:
    proxy = shared(1)
    one, two = await proxy.connect(), await proxy.connect()
    await one.execute("LISTEN a")
    waiting = asyncio.create_task(two.fetchval("SELECT 2"))
    await asyncio.sleep(0.1)
    with psycopg.connect(proxy.dsn(database="dualwire"), autocommit=True) as console:
        clients = console.execute("SHOW CLIENTS")
        names = [column.name for column in clients.description or ()]
        rows = [dict(zip(names, row, strict=True)) for row in clients.fetchall()]
    states = {row["state"]: row for row in rows}
    assert "waiting" in states
    assert any("listen" in str(value) for row in rows for value in row.values())
    await one.execute("UNLISTEN *")
    assert await waiting == 2
    await one.close()
    await two.close()


async def test_portals_are_paged_within_a_transaction(shared: Shared) -> None:
    proxy = shared(1)
    client = await proxy.connect()
    async with client.transaction():
        seen = [row[0] async for row in client.cursor("SELECT generate_series(1, 1000)", prefetch=50)]
    assert seen == list(range(1, 1001))
    with pytest.raises(asyncpg.PostgresError):
        await client.execute("FETCH 1 FROM nowhere")
    await client.close()
